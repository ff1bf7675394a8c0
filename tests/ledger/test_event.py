from __future__ import annotations

import pytest

from meterd.errors import EncodingError
from meterd.ledger.encoding import decode, encode
from meterd.ledger.event import Event, decode_event
from tests.ledger.examples import changed

EVENT = Event(
    number=7,
    boot_ms=1000,
    wall_ms=1_170_633_600_000,
    kind="sealed",
    details=(("height", 3), ("hash", bytes(32)), ("why", "an end")),
)


def test_an_event_is_read_as_it_was_written() -> None:
    assert decode_event(EVENT.encode()) == EVENT


def test_details_are_found_by_name_and_kind() -> None:
    assert (EVENT["why"], EVENT.number_of("height"), EVENT.bytes_of("hash")) == (
        "an end",
        3,
        bytes(32),
    )


def test_a_detail_that_is_not_there_or_of_another_kind_is_told() -> None:
    with pytest.raises(KeyError, match="nothing"):
        EVENT["nothing"]
    with pytest.raises(EncodingError, match=r"event 7 \(sealed\) has no number hash"):
        EVENT.number_of("hash")
    with pytest.raises(EncodingError, match=r"event 7 \(sealed\) has no bytes why"):
        EVENT.bytes_of("why")
    with pytest.raises(EncodingError, match="has no number nothing"):
        EVENT.number_of("nothing")


@pytest.mark.parametrize(
    ("place", "new"),
    [
        pytest.param((0,), "7", id="whose number is text"),
        pytest.param((3,), b"sealed", id="whose kind is bytes"),
        pytest.param((4,), 0, id="whose details are a number"),
        pytest.param((4, 0), ["height"], id="with half a detail"),
        pytest.param((4, 0, 0), 1, id="with a detail without a name"),
        pytest.param((4, 0, 1), [1], id="with a detail that is an array"),
    ],
)
def test_an_event_is_refused(place: tuple[int, ...], new: object) -> None:
    with pytest.raises(EncodingError, match="not an event"):
        decode_event(encode(changed(decode(EVENT.encode()), place, new)))
