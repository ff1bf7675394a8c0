"""When a watt was: runs without the time, clocks that are set, days that end."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meterd.device import log as log_module
from meterd.device import rows as rows_module
from meterd.device.archive import segment_numbers
from meterd.device.recovery import CHECKPOINT_FILE
from meterd.ledger.segment import STREAMS
from meterd.metering.interval import STEP_MS
from tests.accounts import folder
from tests.bookkeeper_kit import (
    DAY_S,
    TEXT,
    assert_checkpoint_agrees,
    headers,
    perform_but_blocks,
    spans,
    with_circuits,
)
from tests.rig import MIDNIGHT_S, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "account")


# --- runs that do not know the time ------------------------------------------------------------


def test_samples_of_a_run_that_never_knew_the_time_go_into_the_gap_block(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(14)
    rig.stop()
    sealed_uj = rig.imported_uj()
    for _ in range(2):
        rig.start(10, status="R")
        rig.rows(6)
        rig.stop()
        assert rig.imported_uj() > sealed_uj
        sealed_uj = rig.imported_uj()
    rig.start(MIDNIGHT_S + 290)
    assert rig.imported_uj() == sealed_uj
    rig.rows(3)
    rig.commit()
    assert spans(rig)[1:3] == [(60, 70, ("partial",)), (70, 240, ("gap",))]
    block = rig.blocks[2]
    assert (block.clock.status, block.records, block.clock.measured_ms) == ("R", 12, 50_000)
    assert block.energy[0].last_uj == sealed_uj
    rig.assert_good()


def test_circuits_of_a_run_without_time_are_counted_after_their_clamps_are_gone(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(14)
    rig.stop()
    rig.start(10, status="R", text=with_circuits(2))
    rig.rows(6)
    rig.stop()
    owed = rig.book.registers_uj()
    assert owed["1-2:1.8.0"][0] > 0
    rig.start(10, status="R", text=with_circuits(1))
    rig.rows(6)
    rig.stop()
    assert rig.book.registers_uj()["1-2:1.8.0"] == owed["1-2:1.8.0"]
    assert rig.book.registers_uj()["1-1:1.8.0"] > owed["1-1:1.8.0"]
    owed = rig.book.registers_uj()
    rig.start(MIDNIGHT_S + 300, text=TEXT)
    assert rig.book.registers_uj() == owed
    rig.rows(14)
    rig.commit()
    energy = {f"1-{e.obis[1]}:{e.obis[2]}.8.0": e.last_uj for e in rig.blocks[-1].energy}
    assert energy["1-1:1.8.0"] == owed["1-1:1.8.0"][0]
    assert energy["1-2:1.8.0"] == owed["1-2:1.8.0"][0]
    rig.assert_good()
    assert rig.book.registers_uj()["1-2:1.8.0"] == owed["1-2:1.8.0"]


def test_a_crash_before_owed_energy_is_sealed_loses_none_of_it(rig: Rig) -> None:
    """The run that places the gap block dies before it is durable; the next start makes it."""
    rig.start(MIDNIGHT_S)
    rig.rows(14)
    rig.stop()
    rig.start(10, status="R", text=with_circuits(2))
    rig.rows(6)
    rig.stop()
    owed = rig.book.registers_uj()["1-2:1.8.0"]
    rig.start(MIDNIGHT_S + 300, text=TEXT)
    rig.rows(1)
    perform_but_blocks(rig)
    rig.start(MIDNIGHT_S + 400)
    assert rig.book.registers_uj()["1-2:1.8.0"] == owed
    rig.rows(14)
    rig.commit()
    rig.assert_good()


def late_placing(rig: Rig, *, crash: bool) -> None:
    rig.start(60, status="R")
    rig.rows(40)
    if crash:
        rig.commit()
    rig.wait(0, step_ms=MIDNIGHT_S * 1000)
    rig.status = "S"
    rig.rows(1)
    if crash:
        perform_but_blocks(rig)
        rig.start(rig.wall_ms / 1000 + 100)
    else:
        rig.stop()
        rig.start(rig.wall_ms / 1000 + 100)
    rig.commit()


def test_a_run_placed_late_is_cut_as_if_the_clock_had_been_right(rig: Rig, tmp_path: Path) -> None:
    late_placing(rig, crash=False)
    assert spans(rig)[:4] == [(60, 120, ("partial",)), (120, 180, ()), (180, 240, ()),
                              (240, 265, ("partial",))]  # fmt: skip
    assert {block.clock.status for block in rig.blocks} == {"I"}
    right = Rig(tmp_path / "right")
    right.start(MIDNIGHT_S + 60)
    right.rows(40)
    right.rows(1)
    right.stop()
    assert [b.energy for b in rig.blocks[:3]] == [b.energy for b in right.blocks[:3]]
    assert rig.book.registers_uj() == right.book.registers_uj()
    rig.assert_good()


def test_a_crash_while_it_is_placed_late_leaves_the_same_blocks(rig: Rig, tmp_path: Path) -> None:
    late_placing(rig, crash=True)
    whole = Rig(tmp_path / "whole")
    late_placing(whole, crash=False)
    assert spans(rig)[:3] == spans(whole)[:3]
    assert [b.energy for b in rig.blocks[:3]] == [b.energy for b in whole.blocks[:3]]
    assert [b.clock.status for b in rig.blocks[:3]] == ["I", "I", "I"]
    rig.assert_good()


def test_months_of_rows_that_wait_for_the_time_are_never_all_in_memory(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "ROWS_READ", 16)
    rig.start(60, status="R")
    longest: list[int] = []
    read = rig.book._rows._read

    def watched(number: int, begin: int, end: int) -> bytes:
        longest.append(end - begin)
        return read(number, begin, end)

    monkeypatch.setattr(rig.book._rows, "_read", watched)
    rig.rows(200)
    rig.wait(0, step_ms=MIDNIGHT_S * 1000)
    rig.status = "S"
    rig.rows(1)
    rig.commit()
    rig.assert_good()
    assert len(rig.blocks) > 10
    assert max(longest) <= 16 * headers(rig)[0].row_bytes
    assert len(headers(rig)) == 1


# --- clocks that are set -----------------------------------------------------------------------


@pytest.mark.parametrize("step_ms", [3_600_000, -3_600_000, 25_000, -25_000])
def test_a_crash_behind_a_clock_step_places_each_row_as_it_was(
    rig: Rig, tmp_path: Path, step_ms: int
) -> None:
    """Rows before the step lie where they lay; those behind it where they lie now."""
    other = Rig(tmp_path / "other")
    for one in (rig, other):
        one.start(MIDNIGHT_S + 7200)
        one.rows(6)
        one.wait(0, step_ms=step_ms)
        one.rows(1)
        if one is rig:
            perform_but_blocks(one)
        else:
            one.stop()
        one.start(MIDNIGHT_S + 20_000)
        one.rows(1)
        one.commit()
        one.assert_good()
    assert [span[:2] for span in spans(rig)] == [span[:2] for span in spans(other)]
    assert [block.energy for block in rig.blocks] == [block.energy for block in other.blocks]
    stepped = next(span for span in spans(rig) if "clock stepped" in span[2])
    assert stepped in spans(other)


# All by three seconds: what some of them come to together is nothing, or a step, and never a slew.
STEPS_MS = (0, 9000, 24_000, 54_000, 60_000, 63_000, 129_000, 3_600_000)
steps_ms = st.sampled_from([*STEPS_MS, *(-ms for ms in STEPS_MS)])


def blocks_behind(
    begin_s: int, script: list[tuple[int, int]], last: int, *, sealed: bool
) -> tuple[list[tuple[int, int, tuple[str, ...]]], list[tuple[object, int]]]:
    """Step the clock so far behind so many rows each; return what the next start has in blocks.

    Args:
        begin_s: Seconds from a boundary to the start.
        script: Rows, and by how many milliseconds the clock steps behind them.
        last: Rows behind the last step.
        sealed: Whether the run seals its last block, or leaves that to the next start.
    """
    with folder() as state:
        rig = Rig(state)
        rig.start(MIDNIGHT_S + 7200 + begin_s)
        rig.rows(1)
        for count, step_ms in script:
            rig.rows(count)
            rig.wait(0, step_ms=step_ms)
        rig.rows(last)
        rig.commit()
        if sealed:
            rig.book.seal_open()
            rig.commit()
        rig.card.close()
        rig.start(MIDNIGHT_S + 30_000)
        rig.rows(2)
        rig.commit()
        rig.assert_good()
        rig.card.close()
        return spans(rig), [(block.energy, block.clock.measured_ms) for block in rig.blocks]


@settings(max_examples=60)
@example(begin_s=0, script=[(5, 9000)], last=3)  # on, within the interval
@example(begin_s=0, script=[(5, 130_000)], last=3)  # over whole intervals
@example(begin_s=0, script=[(11, 9000)], last=3)  # behind a reading on the boundary
@example(begin_s=0, script=[(6, -25_000), (3, 61_000)], last=3)  # back, then on past the end
@example(begin_s=0, script=[(0, -55_000), (1, 130_000)], last=1)  # ... with little to seal
@given(
    begin_s=st.integers(0, 60),
    script=st.lists(st.tuples(st.integers(0, 14), steps_ms), min_size=1, max_size=5),
    last=st.integers(0, 3),
)
def test_behind_any_clock_steps_the_next_start_seals_what_the_run_would_have(
    begin_s: int, script: list[tuple[int, int]], last: int
) -> None:
    left_open = blocks_behind(begin_s, script, last, sealed=False)
    assert left_open == blocks_behind(begin_s, script, last, sealed=True)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([(3, -1000)], id="back"),
        pytest.param([(3, 2000)], id="on"),
        pytest.param([(3, -900), (2, -900)], id="back twice"),
        pytest.param([(0, 60_000), (0, -61_000)], id="on and further back between two readings"),
    ],
)
def test_a_slew_that_no_event_tells_of_moves_a_recovered_end_and_no_energy(
    script: list[tuple[int, int]],
) -> None:
    """Limits in README: rows hold the boot clock; what is too small for a step is in no event."""
    spans_sealed, energy_sealed = blocks_behind(0, script, 3, sealed=True)
    spans_left, energy_left = blocks_behind(0, script, 3, sealed=False)
    assert energy_left == energy_sealed
    moved_s = abs(sum(step_ms for _, step_ms in script)) / 1000
    assert moved_s <= STEP_MS / 1000
    assert len(spans_left) == len(spans_sealed)
    assert abs(spans_left[0][1] - spans_sealed[0][1]) in {int(moved_s), int(moved_s) + 1}
    assert spans_left[0][1] != spans_sealed[0][1]


def test_a_restart_while_a_long_step_is_held_places_rows_as_before_it(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(5)
    rig.wait(0, step_ms=400 * DAY_S * 1000)
    rig.rows(20)
    assert rig.book.placement.held
    assert rig.blocks == []
    held_uj = rig.imported_uj()
    rig.stop()
    rig.start(MIDNIGHT_S + 200)
    assert rig.imported_uj() == held_uj
    rig.rows(3)
    rig.commit()
    assert [span[:2] for span in spans(rig)[:3]] == [(0, 60), (60, 120), (120, 125)]
    assert "clock_held" in {event.kind for event in rig.events}
    rig.assert_good()


def test_a_long_step_that_stands_places_rows_from_where_it_came(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(5)
    rig.wait(0, step_ms=2 * DAY_S * 1000)
    rig.rows(122)
    assert not rig.book.placement.held
    (stepped,) = rig.told("clock_stepped")
    assert stepped["from_ms"] == 31_000
    rig.stop()
    rig.start(MIDNIGHT_S + 2 * DAY_S + 700)
    rig.commit()
    assert spans(rig)[0] == (0, 25, ("clock stepped", "partial"))
    assert spans(rig)[1][1] == 2 * DAY_S
    rig.assert_good()


def test_a_clock_that_loses_its_synchronisation_is_told_once(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    for status in "SSIIISS":
        rig.status = status
        rig.rows(1)
    rig.commit()
    assert [event["status"] for event in rig.told("clock_status")] == ["I", "S"]
    rig.start(MIDNIGHT_S + 100)
    rig.commit()
    assert rig.blocks[0].clock.status == "I", "what recovery seals says so too"


# --- days --------------------------------------------------------------------------------------


@contextmanager
def turned(rig: Rig) -> Iterator[None]:
    """Expect each stream to have turned once, and recovery to go on from the checkpoint."""
    assert not (rig.state / CHECKPOINT_FILE).exists()
    yield
    rig.commit()
    assert (rig.state / CHECKPOINT_FILE).exists()
    rig.assert_good()
    assert_checkpoint_agrees(rig)
    rig.rows(14)
    rig.commit()
    rig.assert_good()
    for stream in STREAMS:
        assert len(segment_numbers(rig.state / stream)) >= 2


def test_a_day_ends_exactly_at_a_reading(rig: Rig) -> None:
    rig.start(MIDNIGHT_S - 125)
    with turned(rig):
        rig.rows(28)
    assert [header.base_ms for header in headers(rig)[:2]] == [6000, 126_000]


def test_a_day_ends_between_two_readings(rig: Rig) -> None:
    rig.start(MIDNIGHT_S - 127)
    with turned(rig):
        rig.rows(28)


def test_a_day_ends_with_the_last_reading_before_a_crash(rig: Rig) -> None:
    """The checkpoint's own reading is the only one behind it."""
    rig.start(MIDNIGHT_S - 127)
    with turned(rig):
        rig.rows(26)
        assert rig.book.log.open_records == 1


def test_a_day_ends_in_a_hole(rig: Rig) -> None:
    rig.start(MIDNIGHT_S - 127)
    with turned(rig):
        rig.rows(5)
        rig.row(300, 200_000)
        rig.rows(3)
    assert ("gap",) in {span[2] for span in spans(rig)}


def test_a_day_ends_in_silence(rig: Rig) -> None:
    rig.start(MIDNIGHT_S - 127)
    with turned(rig):
        rig.rows(5)
        rig.wait(60_000)
        rig.book.tick(rig.boot_ms, rig.stamp)
        assert rig.book.pending
        rig.rows(13)


def test_a_day_ends_while_the_meter_is_off(rig: Rig) -> None:
    rig.start(MIDNIGHT_S - 127)
    with turned(rig):
        rig.rows(5)
        rig.stop()
        rig.start(MIDNIGHT_S + 1000)
        rig.rows(14)


def test_a_day_ends_with_several_boundaries_between_two_readings(tmp_path: Path) -> None:
    """Then the streams turn at the next boundary that has none beside it."""
    text = with_circuits(1, polling_ms=60_000)
    rig = Rig(tmp_path / "account", text)
    rig.start(MIDNIGHT_S - 300)
    with turned(rig):
        for _ in range(7):
            rig.rows(1, 130_000)
        rig.rows(3, 59_000)


def test_several_days_pass_between_two_readings(rig: Rig) -> None:
    rig.start(MIDNIGHT_S - 127)
    with turned(rig):
        rig.rows(5)
        rig.row(300, 3 * DAY_S * 1000)


def test_a_day_without_a_cut_does_not_turn(rig: Rig) -> None:
    """Set back by days, the open interval stays open, and its segment with it."""
    rig.start(MIDNIGHT_S - 20)
    rig.rows(2)
    rig.wait(0, step_ms=-3 * DAY_S * 1000)
    for _ in range(3):
        rig.rows(1)
        rig.row(300, DAY_S * 1000 // 2)
    rig.stop()
    assert not (rig.state / CHECKPOINT_FILE).exists()
    assert len(headers(rig)) == 1
    rig.start(MIDNIGHT_S + 100)
    rig.rows(14)
    rig.commit()
    rig.assert_good()


def test_rows_are_fed_again_from_several_segments(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long step is held over rows that lie in segments of before and after."""
    monkeypatch.setattr(log_module, "SAMPLES_BYTES_MAX", 400)
    rig.start(MIDNIGHT_S - 150)
    rig.rows(8)
    rig.commit()
    rig.wait(0, step_ms=-2 * DAY_S * 1000)  # nothing is cut from here on
    for _ in range(2):
        rig.rows(10)
        rig.commit()
    rig.wait(0, step_ms=4 * DAY_S * 1000)
    for _ in range(2):
        rig.rows(10)
        rig.commit()
    rig.wait(0, step_ms=-2 * DAY_S * 1000)  # it goes back: all of it is fed again
    for _ in range(4):
        rig.rows(10)
        rig.commit()
    assert len(headers(rig)) > 3
    rig.assert_good()


def test_a_fast_board_does_not_make_long_segments(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "SAMPLES_BYTES_MAX", 400)
    rig.start(MIDNIGHT_S - 150)
    for _ in range(6):
        rig.rows(10, 997)
        rig.commit()
    rig.stop()
    sizes = [path.stat().st_size for path in (rig.state / "samples").iterdir()]
    assert len(sizes) > 3
    assert max(sizes) < 800
    rig.start(MIDNIGHT_S)
    rig.rows(14)
    rig.commit()
    rig.assert_good()
