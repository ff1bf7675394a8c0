from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.alarm import (
    ALARM_BYTES_MAX,
    ALARM_CONTEXT,
    STANDING_MAX,
    Alarm,
    Standing,
    decode_alarm,
    open_alarm,
    seal_alarm,
)
from meterd.ledger.encoding import UINT_MAX, decode, encode, seal
from tests.authority.examples import ELSEWHERE, GENESIS, HOUSE, key, public
from tests.ledger.alarms import ALARM, MANY, OVER, STARTED, WIDEST
from tests.ledger.examples import changed


@pytest.mark.parametrize("alarm", [ALARM, OVER, STARTED, WIDEST])
def test_what_is_told_is_what_is_heard(alarm: Alarm) -> None:
    message = seal_alarm(alarm, key(f"{HOUSE} seals"), GENESIS.hash)
    assert open_alarm(message, public(f"{HOUSE} seals"), GENESIS.hash) == alarm


numbers = st.integers(1, UINT_MAX)
words = st.from_regex(r"[a-z_]{1,32}", fullmatch=True)


@given(numbers, numbers, st.dictionaries(words, numbers, max_size=STANDING_MAX), words)
def test_whatever_can_be_told_is_heard(
    number: int, untold: int, stand: dict[str, int], kind: str
) -> None:
    standing = tuple(Standing(word, min(n, number), n) for word, n in sorted(stand.items()))
    alarm = STARTED._replace(number=number, untold=untold, standing=standing)
    if kind not in {"alarm", "alarm_over"}:
        alarm = alarm._replace(kind=kind)
    assert decode_alarm(alarm.encode()) == alarm


@pytest.mark.parametrize(
    ("place", "new", "reason"),
    [
        pytest.param((0,), "meterd/alarm/v2", "expected meterd/alarm/v1", id="of a new version"),
        pytest.param((0,), ["meterd/alarm/v1"], "not an alarm", id="of an odd context"),
        pytest.param((1,), "House", "of no meter", id="of a misnamed meter"),
        pytest.param((2,), 0, "of no incarnation", id="of no incarnation"),
        pytest.param((3,), 0, "of no event", id="of no event"),
        pytest.param((3,), b"7", "not an alarm", id="of an event in bytes"),
        pytest.param((4,), "now", "not an alarm", id="of a time in words"),
        pytest.param((5,), "Alarm", "a word that is none", id="of a kind in capitals"),
        pytest.param((5,), "", "a word that is none", id="of no kind"),
        pytest.param((5,), "k" * 33, "a word that is none", id="of a kind of 33 letters"),
        pytest.param((5,), "started", "one too many", id="with a word and a kind without"),
        pytest.param((5,), "alarm_over", "not what the event says", id="that is over and stands"),
        pytest.param((6,), "", "a word that is none", id="without its word"),
        pytest.param((6,), "case", "not what the event says", id="raised by another event"),
        pytest.param((6,), "magnet", "not what the event says", id="raised and not standing"),
        pytest.param((6,), "Mr Smith", "a word that is none", id="with a person for a word"),
        pytest.param((7,), "many", "not an alarm", id="with many left out"),
        pytest.param((8,), b"", "not an alarm", id="with bytes that stand"),
        pytest.param((8, 0), ["case", 40], "misshapen", id="standing since no time"),
        pytest.param((8, 0, 0), "case 12", "a word that is none", id="standing by a number"),
        pytest.param((8, 0, 0), "port", "in disorder", id="standing twice"),
        pytest.param((8, 0, 0), "zebra", "in disorder", id="standing in disorder"),
        pytest.param((8, 0, 1), 0, "since an event that is none", id="standing since no event"),
        pytest.param((8, 0, 1), 42, "yet to come", id="standing since a later event"),
        pytest.param((8,), [[*one] for one in MANY], "more than 32", id="with 33 that stand"),
        pytest.param((8,), [["x" * 3000, 1, 0]], "at most 2048 bytes", id="too long"),
    ],
)
def test_an_alarm_is_refused(place: tuple[int, ...], new: Any, reason: str) -> None:  # noqa: ANN401
    message = seal(
        encode(changed(decode(ALARM.encode()), place, new)), key(f"{HOUSE} seals"), GENESIS.hash
    )
    with pytest.raises(EncodingError, match=reason):
        open_alarm(message, public(f"{HOUSE} seals"), GENESIS.hash)


@pytest.mark.parametrize(
    ("by", "genesis", "reason"),
    [
        pytest.param("house-2 seals", GENESIS.hash, "sealed by key", id="another meter"),
        pytest.param(f"{HOUSE} votes", GENESIS.hash, "sealed by key", id="its own voting key"),
        pytest.param(f"{HOUSE} seals", ELSEWHERE.hash, "not this meter's", id="another network"),
    ],
)
def test_an_alarm_is_refused_that_was_sealed_in(by: str, genesis: bytes, reason: str) -> None:
    message = seal_alarm(ALARM, key(by), genesis)
    with pytest.raises(BlockRejectedError, match=reason):
        open_alarm(message, public(f"{HOUSE} seals"), GENESIS.hash)


def test_what_contradicts_itself_is_not_sealed_in_the_first_place() -> None:
    with pytest.raises(EncodingError, match="not what the event says"):
        seal_alarm(ALARM._replace(standing=()), key(f"{HOUSE} seals"), GENESIS.hash)


def test_the_longest_that_can_be_told_may_be_heard() -> None:
    assert ALARM_BYTES_MAX - 250 < len(WIDEST.encode()) <= ALARM_BYTES_MAX
    assert WIDEST.encode()[2 : 2 + len(ALARM_CONTEXT)] == ALARM_CONTEXT.encode()
