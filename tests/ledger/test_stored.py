"""Segments that power failure left behind: told of by an event, passed over, and held to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.device.archive import segment_name
from meterd.ledger.segment import STREAMS
from meterd.ledger.stored import End, read_frames
from tests.ledger.memory import DAY_ONE, DAY_TWO, Stored, Street

if TYPE_CHECKING:
    from pathlib import Path


def left_behind(state: Path, stream: str, what: str) -> Stored:
    """Return an account that went on after a crash left bytes behind the end of a stream."""
    street = Street(state).feed((5, 100, 5), (20, 100, 5), (35, 100, 5), (45, 90, 5)).restart()
    before = street.stored
    last = before.last(stream)
    data = b"" if what == "an empty segment" else before.segment(stream, last)[:40]
    number = last if what == "a torn record" else last + 1
    with (state / stream / segment_name(number)).open("ab") as file:
        file.write(data)
    return street.feed(*DAY_TWO).finish().stored


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("what", ["a torn record", "a torn segment", "an empty segment"])
def test_what_a_crash_left_is_good_once_an_event_tells_of_it(
    tmp_path: Path, stream: str, what: str
) -> None:
    stored = left_behind(tmp_path / "account", stream, what)
    verdict = stored.judge()
    assert (verdict.verdict, verdict.first_bad, verdict.tail) == ("good", None, None)
    (told,) = [event for event in stored.events if event.kind == "torn_tail"]
    number, offset = told.number_of("segment"), told.number_of("offset")
    assert told["stream"] == stream

    data = stored.segment(stream, number)
    for changed in (data + b"\0", data[:-1] if data[offset:] else b"\xff", None):
        bad = stored.with_segment(stream, number, changed).judge().first_bad
        assert bad is not None
        assert (bad.stream, bad.segment) == (stream, number)


@pytest.mark.parametrize("stream", STREAMS)
def test_what_lies_past_a_counted_length_and_no_event_tells_of_is_bad(
    tmp_path: Path, stream: str
) -> None:
    stored = Street(tmp_path / "account").feed(*DAY_ONE).restart().feed(*DAY_TWO).finish().stored
    data = stored.segment(stream, 1)
    bad = stored.with_segment(stream, 1, data + bytes(5)).judge().first_bad
    assert bad is not None
    assert (bad.stream, bad.segment, bad.offset) == (stream, 1, len(data))
    assert bad.reason.endswith("that no event tells of lie past the counted length")


def test_a_stream_that_is_read_in_parts_goes_on_where_a_part_ended(tmp_path: Path) -> None:
    stored = left_behind(tmp_path / "account", "events", "a torn segment")
    genesis, _ = stored.header("events", 1)
    end, frames = End(), 0
    for number, data in stored.streams["events"].items():
        part = read_frames("events", [(number, data)], genesis.genesis, genesis.meter, end)
        assert part.damage is None
        end, frames = part.end, frames + len(part.frames)
    assert frames == len(stored.events)
    assert end.number == stored.last("events")


def test_a_segment_of_samples_may_be_a_header_alone(tmp_path: Path) -> None:
    """Power failed behind the header: no row was lost, and the next header names this one."""
    state = tmp_path / "account"
    street = Street(state).feed((5, 100, 5), (20, 100, 5), (35, 100, 5)).restart()
    stored = street.feed((45, 90, 5)).commit().stored
    _, begin = stored.header("samples", 2)
    stored.with_segment("samples", 2, stored.segment("samples", 2)[:begin]).write(state)
    stored = Street(state, salt_seed=b"another").feed((70, 80, 5), (80, 70, 5)).finish().stored
    verdict = stored.judge()
    assert (verdict.verdict, verdict.first_bad, verdict.tail) == ("good", None, None)
    data = stored.segment("samples", 2)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        bad = stored.with_segment("samples", 2, changed).judge().first_bad
        assert bad is not None
        assert (bad.stream, bad.segment) == ("samples", 2)
