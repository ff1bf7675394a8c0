"""Reads the events of an account's last days from the card, for a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.device.archive import read_file, segment_name, segment_numbers
from meterd.errors import EncodingError
from meterd.ledger.event import decode_event
from meterd.ledger.report import EVENTS_MAX, Happened
from meterd.ledger.segment import read_header, walk_frames

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.ledger.event import Event


def recent_events(state: Path, since_s: int, count: int) -> tuple[tuple[Happened, ...], int]:
    """Return what has happened since an instant, and how much of it is left out.

    Read from the end: a day has a segment, so what is older is not read. A clock that was wrong
    may put an event outside; the number of all events is in the report besides.

    Args:
        state: Folder of the account.
        since_s: Unix seconds.
        count: How many events there are: later ones are not part of it.

    Returns:
        The newest `EVENTS_MAX` of them, the oldest first; and how many more there are.
    """
    folder = state / "events"
    found: list[Happened] = []  # the newest alone, however far back somebody asks
    many = 0
    for number in reversed(segment_numbers(folder)):
        events = _events_in(folder / segment_name(number))
        here = [
            Happened(event.number, event.wall_ms, event.kind)
            for event in events
            if event.number <= count and event.wall_ms >= since_s * 1000
        ]
        many += len(here)
        found = (here + found)[-EVENTS_MAX:]
        if events and not here and events[-1].number <= count:
            break
    return tuple(found), many - len(found)


def _events_in(path: Path) -> list[Event]:
    """Return a segment's events, up to where its links hold."""
    data = read_file(path)
    try:
        header, _ = read_header(data, "events")
        return [decode_event(frame.body) for frame in walk_frames(data, header)]
    except EncodingError:  # torn: what had not come to the card is in no report
        return []
