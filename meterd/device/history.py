"""Looks back in an account that has been verified: how the run before began, and where it ended.

Nothing is remembered beside the account. What is looked for is in the newest segments, and older
ones are read as bytes until it is found.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from meterd.device.archive import read_file, read_part, segment_name, segment_numbers
from meterd.ledger.event import decode_event
from meterd.ledger.row import read_rows
from meterd.ledger.segment import read_header, walk_frames
from meterd.since import ended, last_of

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.device.recovery import Recovered
    from meterd.ledger.event import Event
    from meterd.since import Last

STARTED = "started"


def last_started(state: Path) -> Event | None:
    """Return the event of the last start; None before the first.

    Raises:
        StorageError: The events cannot be read.
        EncodingError: They are not as they were when they were verified.
    """
    folder = state / "events"
    for number in reversed(segment_numbers(folder)):
        data = read_file(folder / segment_name(number))
        if STARTED.encode() not in data:  # a day's events of a run that went on
            continue
        header, _ = read_header(data, "events")
        events = [decode_event(frame.body) for frame in walk_frames(data, header)]
        found = next((event for event in reversed(events) if event.kind == STARTED), None)
        if found is not None:
            return found
    return None


def last_row_ms(state: Path, recovered: Recovered) -> int | None:
    """Return the boot clock of the last run's last row; None where blocks have taken all of them.

    Raises:
        StorageError: The samples cannot be read.
    """
    found = [part.segment for part in recovered.found.open]
    if not found or found[-1].header.run != recovered.run:
        return None
    segment, header = found[-1], found[-1].header
    data = read_part(state, header.number, segment.begin, segment.offset(segment.rows))
    last = deque(read_rows(data, header.row_bytes, header.base_ms), maxlen=1)
    return last[0].at_ms if last else None


def last_known(state: Path, recovered: Recovered) -> Last | None:
    """Return the last that is known of the run before; None where it has ended by itself.

    Raises:
        StorageError: The account cannot be read.
    """
    found, run = recovered.found, recovered.run
    if ended(found.events, run=run):
        return None
    walls = recovered.walls.get(run)
    offset_ms = walls[-1][1].offset_ms if walls else None
    row_ms = last_row_ms(state, recovered)
    return last_of(run, found.events, row_ms, offset_ms, found.chain.head.end_s)
