"""How much memory a report takes, whoever asks for it and from when on."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

from meterd.device import report
from meterd.ledger.event import Event
from meterd.ledger.report import EVENTS_MAX

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SEGMENTS, EVENTS = 200, 1000  # a segment has a day's
PEAK_BYTES_MAX = 4_000_000  # the unit has 128 MB, for all


def test_a_report_since_the_beginning_takes_no_more_memory_than_one_since_yesterday(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def events_in(path: Path) -> list[Event]:
        first = (int(path.stem) - 1) * EVENTS
        return [
            Event(number=first + n, boot_ms=0, wall_ms=10**12 + first + n, kind="alarm", details=())
            for n in range(1, EVENTS + 1)
        ]

    monkeypatch.setattr(report, "segment_numbers", lambda _: list(range(1, SEGMENTS + 1)))
    monkeypatch.setattr(report, "_events_in", events_in)
    tracemalloc.start()
    happened, left_out = report.recent_events(tmp_path, 0, SEGMENTS * EVENTS)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < PEAK_BYTES_MAX
    assert left_out == SEGMENTS * EVENTS - EVENTS_MAX
    numbers = [one.number for one in happened]
    assert numbers == list(range(left_out + 1, SEGMENTS * EVENTS + 1))
