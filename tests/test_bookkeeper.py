"""The whole path of a watt, driven reading by reading: what a capture cannot say."""

from __future__ import annotations

import random
import shutil
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meterd.device import log as log_module
from meterd.device import rows as rows_module
from meterd.device.archive import segment_name, segment_numbers
from meterd.device.recovery import CHECKPOINT_FILE
from meterd.errors import LedgerDamagedError, StorageError
from meterd.flapping import FALL_EVERY_MS, FALLS_AT_ONCE
from meterd.ledger.account import decode_parameters
from meterd.ledger.block import UJ_MAX
from meterd.ledger.row import ELAPSED_MS_MAX
from meterd.ledger.segment import STREAMS, SampleHeader, read_header
from tests.accounts import config_text, flag_names, folder, replay_lines
from tests.rig import INTERVAL_S, MIDNIGHT_S, POLLING_MS, WATTS, RecordingCard, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meterd.bookkeeper import Bookkeeper

DAY_S = 86_400
TEXT = config_text(interval_s=INTERVAL_S, polling_ms=POLLING_MS)
CIRCUITS = ("oven", "heat-pump")


def with_circuits(count: int, *, polling_ms: int = POLLING_MS) -> str:
    """Return the settings with so many circuit clamps besides the mains."""
    clamps = [f'[[clamp]]\nname = "{name}"\nrole = "circuit"\n\n' for name in CIRCUITS[:count]]
    text = config_text(interval_s=INTERVAL_S, polling_ms=polling_ms)
    return text.replace("[clock]", "".join(clamps) + "[clock]")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "account")


def spans(rig: Rig) -> list[tuple[int, int, tuple[str, ...]]]:
    """Return begin, end (seconds from the first midnight) and flags of each block."""
    return [
        (block.start_s - MIDNIGHT_S, block.end_s - MIDNIGHT_S, flag_names(block.flags))
        for block in rig.blocks
    ]


def perform_but_blocks(rig: Rig) -> None:
    """Commit, and let power fail before the first block."""
    blocks = rig.state / "blocks"
    rig.card.perform(
        takewhile(lambda one: blocks not in {one.path, one.path.parent}, rig.book.commit())
    )
    rig.card.close()


def headers(rig: Rig) -> list[SampleHeader]:
    """Return the headers of all samples segments."""
    found = []
    for number in segment_numbers(rig.state / "samples"):
        data = (rig.state / "samples" / segment_name(number)).read_bytes()
        header, _ = read_header(data, "samples")
        assert isinstance(header, SampleHeader)
        found.append(header)
    return found


def assert_checkpoint_agrees(rig: Rig) -> None:
    """With its checkpoint and without it, a start comes to the same."""
    rig.card.close()
    copy = rig.state.with_name("without")
    shutil.copytree(rig.state, copy)
    (copy / CHECKPOINT_FILE).unlink()
    without = Rig(copy, software_id=rig.software_id)
    without.settings = rig.settings
    wall_s = rig.wall_ms / 1000 + 1
    assert rig.start(wall_s).registers_uj() == without.start(wall_s).registers_uj()
    assert rig.book.cutter.base == without.book.cutter.base
    assert rig.book.chain.head.energy == without.book.chain.head.energy
    assert rig.book.chain.head.end_s == without.book.chain.head.end_s
    shutil.rmtree(copy)


# --- starting and stopping ---------------------------------------------------------------------


def test_a_restart_within_an_interval_makes_two_blocks_of_it(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    rig.stop()
    rig.start(MIDNIGHT_S + 30.4)
    rig.rows(7)
    rig.commit()
    assert spans(rig) == [(0, 15, ("partial",)), (15, 60, ("gap",))]
    first, second = rig.blocks
    assert (first.clock.measured_ms, second.clock.measured_ms) == (10_000, 24_600)
    rig.assert_good()


def test_many_restarts_lose_no_sealed_energy_and_count_no_hole_twice(rig: Rig) -> None:
    sums = []
    for number in range(20):
        rig.start(MIDNIGHT_S + 7 * number)
        sums.append(rig.imported_uj())
        rig.rows(1)
        rig.commit()
    assert sums == sorted(sums)
    rig.assert_good()


def test_starts_without_a_reading_make_no_blocks(rig: Rig) -> None:
    for number in range(5):
        rig.start(MIDNIGHT_S + 100 * number)
        rig.stop()
    assert rig.blocks == []
    rig.assert_good()


def test_what_a_start_seals_was_measured_under_its_own_parameters(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    rig.stop()
    old = rig.book.parameters
    rig.start(MIDNIGHT_S + 30, text=TEXT.replace("polling_ms", "# longer\npolling_ms", 1))
    assert rig.book.parameters == old, "a comment changes nothing"
    rig.stop()
    rig.start(MIDNIGHT_S + 40, text=TEXT.replace('name = "mains"', 'name = "mains"\nscale = 2'))
    rig.rows(9)
    rig.stop()
    new = rig.book.parameters
    assert new.sequence == 2
    by_hash = {event.bytes_of("record"): event for event in rig.told("parameters")}
    assert [decode_parameters(record) for record in by_hash] == [old, new]
    changed = dict(rig.told("parameters")[1].details)
    values = {name: value for name, value in changed.items() if name.startswith("clamp")}
    assert set(values.values()) == {"1", "2"}
    assert all(name.endswith((" old", " new")) for name in values)
    seen = [block.parameters for block in rig.blocks]
    assert seen[0] != seen[-1]
    assert len(set(seen)) == 2
    rig.assert_good()


def test_another_software_is_another_parameter_record(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "account")
    for number, software in enumerate((b"\1" * 32, b"\1" * 32, b"\2" * 32)):
        rig.software_id = software
        rig.start(MIDNIGHT_S + 100 * number)
        rig.rows(14)
        rig.stop()
    first, second = rig.told("parameters")
    assert decode_parameters(first.bytes_of("record")).sequence == 1
    assert second["software old"] == ("01" * 32)
    assert second["software new"] == ("02" * 32)
    rig.assert_good()


def test_registers_of_clamps_that_are_gone_stay_as_they_are(rig: Rig) -> None:
    seen: dict[str, int] = {}
    for number, count in enumerate((0, 2, 1, 0, 2)):
        rig.start(MIDNIGHT_S + 300 * number, text=with_circuits(count))
        rig.rows(30)
        rig.stop()
        now = {code: uj for code, (uj, _) in rig.book.registers_uj().items()}
        assert now.keys() >= seen.keys(), "a register vanished"
        for code, uj in seen.items():
            fed = code[2] == "0" or int(code[2]) <= count
            assert now[code] > uj if fed else now[code] == uj
        seen = now
    assert len(seen) == 5
    rig.start(MIDNIGHT_S + 3000)
    rig.commit()
    assert {code: uj for code, (uj, _) in rig.book.registers_uj().items()} == seen
    rig.assert_good()


def test_a_register_that_changes_its_kind_says_so_from_the_next_parameters_on(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(14)
    rig.stop()
    estimated = TEXT.replace('port = "/dev/null"', 'port = "/dev/null"\nlayout = "rpict3t1"')
    rig.start(MIDNIGHT_S + 100, text=estimated)
    rig.rows(14)
    rig.stop()
    kinds = [block.energy[0].kind for block in rig.blocks]
    assert kinds == sorted(kinds)
    assert set(kinds) == {0, 1}
    rig.assert_good()


def test_there_is_one_start(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    with pytest.raises(AssertionError):
        rig.book.start(0, 0)


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


STEPS_MS = (0, 9000, 25_000, 55_000, 60_000, 61_000, 130_000, 3_600_000)
steps_ms = st.sampled_from([*STEPS_MS, *(-ms for ms in STEPS_MS)])


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
    found = []
    for sealed in (True, False):
        with folder() as state:
            rig = Rig(state)
            rig.start(MIDNIGHT_S + 7200 + begin_s)
            rig.rows(1)
            for count, step_ms in script:
                rig.rows(count)
                rig.wait(0, step_ms=step_ms)
            rig.rows(last)
            rig.commit()
            if sealed:  # as the next start must find it to have been
                rig.book.seal_open()
                rig.commit()
            rig.card.close()
            rig.start(MIDNIGHT_S + 30_000)
            rig.rows(2)
            rig.commit()
            rig.assert_good()
            rig.card.close()
            measured = [(block.energy, block.clock.measured_ms) for block in rig.blocks]
            found.append((spans(rig), measured))
    assert found[0] == found[1]


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


# --- holes, silence ----------------------------------------------------------------------------


def test_a_silence_longer_than_a_row_can_say_begins_a_segment_of_its_own(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(20, 59_000)
    rig.row(300, ELAPSED_MS_MAX + 1)
    rig.rows(20, 59_000)
    rig.stop()
    first, second = headers(rig)[0], headers(rig)[-1]
    assert second.run == first.run
    assert (second.base_ms, second.before) == (1000 + 20 * 59_000 + ELAPSED_MS_MAX + 1, b"")
    rig.assert_good()
    rig.start(MIDNIGHT_S + 100 * DAY_S)
    rig.rows(3)
    rig.commit()
    rig.assert_good()


def test_the_longest_silence_that_a_row_can_say(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    rig.row(300, ELAPSED_MS_MAX)
    rig.rows(3)
    rig.stop()
    assert [row.at_ms for row in rig.account.rows][3] == 16_000 + ELAPSED_MS_MAX
    rig.assert_good()


def test_such_a_silence_without_the_time_needs_a_new_run(rig: Rig) -> None:
    """The segment behind it would state sums that change once its rows are placed."""
    rig.start(60, status="R")
    rig.rows(30)
    with pytest.raises(StorageError, match="metering begins anew"):
        rig.row(300, ELAPSED_MS_MAX + 1)
    rig.stop()
    rig.start(60 + ELAPSED_MS_MAX // 1000, status="R")
    rig.rows(14)
    rig.wait(0, step_ms=MIDNIGHT_S * 1000)
    rig.status = "S"
    rig.rows(14)
    rig.stop()
    rig.assert_good()
    rig.start(MIDNIGHT_S + 100 * DAY_S)
    rig.rows(3)
    rig.commit()
    rig.assert_good()


def test_a_replay_of_such_a_silence_begins_a_run(tmp_path: Path) -> None:
    """Powers whose boundary readings are floored: the sums do change once rows are placed."""
    lines = [f"{n * 5}\t{n * 5000}\t11 {310 + n * n % 7}.7 0 0 0 0 0 230" for n in range(30)]
    late_ms = 30 * 5000 + ELAPSED_MS_MAX
    lines += [f"{9 + n * 5}\t{late_ms + n * 5000}\t11 {n % 9}.3 0 0 0 0 0 230" for n in range(30)]
    late_ms += 150_000
    lines += [
        f"{MIDNIGHT_S + n * 5}\t{late_ms + n * 5000}\t11 {n % 9}.3 0 0 0 0 0 230" for n in range(30)
    ]
    account = replay_lines(lines, TEXT, tmp_path / "account")
    assert account.verify().verdict == "good"
    assert account.accepted == 90


def test_a_tick_closes_an_interval_that_nothing_comes_for(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.book.tick(rig.boot_ms, rig.stamp)  # nothing has come yet
    rig.rows(5)
    for elapsed_ms in (10_000, 15_000):
        rig.wait(elapsed_ms)
        rig.book.tick(rig.boot_ms, rig.stamp)
        assert not rig.book.pending, "its end has not passed"
    rig.wait(10_001)
    rig.book.tick(rig.boot_ms, rig.stamp)
    assert rig.book.pending
    rig.commit()
    assert spans(rig) == [(0, 60, ("gap", "partial"))]
    sealed = rig.told("sealed")[-1]
    assert (sealed.boot_ms, sealed.wall_ms) == (rig.boot_ms, rig.wall_ms)
    rig.rows(13)
    rig.commit()
    rig.assert_good()


# --- a full card -------------------------------------------------------------------------------


def test_a_full_card_loses_samples_and_no_energy(rig: Rig, tmp_path: Path) -> None:
    other = Rig(tmp_path / "other")
    for one in (rig, other):
        one.start(MIDNIGHT_S)
        one.rows(20)
        one.book.storing = one is other
        one.rows(40)
        one.commit()
        one.book.storing = True
        one.rows(40)
        one.commit()
    assert rig.book.registers_uj() == other.book.registers_uj()
    assert [b.energy for b in rig.blocks] == [b.energy for b in other.blocks]
    flags = [span[2] for span in spans(rig)]
    assert flags == [("partial",), *[("samples lost",)] * 4, *[()] * 3]
    assert rig.assert_good().records < other.assert_good().records


def test_blocks_behind_a_full_card_can_be_audited_again(rig: Rig) -> None:
    """A wrong register in a later block is found: its rows are there again."""
    rig.start(MIDNIGHT_S)
    rig.rows(20)
    rig.book.storing = False
    rig.rows(8)
    rig.book.storing = True
    rig.rows(30)
    rig.book.cutter.sums[0] += 2
    rig.rows(12)
    rig.commit()
    bad = rig.verify().first_bad
    assert bad is not None
    assert bad.height == 5
    assert "add up to" in bad.reason


@pytest.mark.parametrize("offset_ms", [0, 3000])
@pytest.mark.parametrize("stops", range(10, 15))
@pytest.mark.parametrize("lasts", [1, 2, 3, 13])
def test_a_card_is_full_around_a_boundary(rig: Rig, stops: int, lasts: int, offset_ms: int) -> None:
    """The first or last lost reading is the one before, at, or behind the boundary."""
    rig.start(MIDNIGHT_S - 120 + offset_ms / 1000)
    rig.rows(stops)
    rig.book.storing = False
    rig.rows(lasts)
    rig.book.storing = True
    rig.rows(30)
    rig.commit()
    rig.assert_good()
    rig.start(MIDNIGHT_S + 300)
    rig.rows(3)
    rig.commit()
    rig.assert_good()


def test_a_card_that_is_full_from_the_start(rig: Rig) -> None:
    rig.start(MIDNIGHT_S - 30)
    rig.book.storing = False
    rig.rows(20)
    rig.commit()
    assert headers(rig) == []
    rig.book.storing = True
    rig.rows(30)
    rig.commit()
    rig.assert_good()
    uj = rig.imported_uj()
    rig.start(MIDNIGHT_S + 300)
    assert rig.imported_uj() == uj


def test_a_crash_on_a_full_card_keeps_what_was_sealed_and_what_was_stored(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(14)
    rig.commit()
    kept_uj = rig.imported_uj()
    rig.book.storing = False
    rig.rows(4)
    rig.commit()
    rig.start(MIDNIGHT_S + 100)
    assert rig.imported_uj() == kept_uj
    rig.rows(14)
    rig.commit()
    rig.assert_good()


def test_a_single_reading_lost_before_a_clock_step_leaves_a_block_of_nothing(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.book.storing = False
    rig.rows(1)
    rig.wait(0, step_ms=30_000)
    rig.rows(1)
    rig.stop()
    assert spans(rig) == [(0, 5, ("clock stepped", "gap", "partial", "samples lost"))]
    rig.assert_good()


def test_a_full_card_without_the_time(rig: Rig) -> None:
    rig.start(60, status="R")
    rig.rows(20)
    rig.book.storing = False
    rig.rows(20)
    uj = rig.imported_uj()
    rig.wait(0, step_ms=MIDNIGHT_S * 1000)
    rig.status = "S"
    rig.rows(1)
    assert rig.imported_uj() >= uj, "the energy of what was lost is counted"
    rig.book.storing = True
    rig.rows(30)
    rig.commit()
    assert "samples lost" in {name for span in spans(rig) for name in span[2]}
    assert spans(rig)[-1][2] == ()
    rig.assert_good()


# --- events, alarms, counts --------------------------------------------------------------------


def test_an_alarm_is_told_when_it_changes_and_not_while_it_stands(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    heard: list[tuple[str, str, bool]] = []
    rig.book.alarmed = lambda kind, text, *, stands: heard.append((kind, text, stands))
    changes = [
        rig.book.raise_alarm("case", "open", stands=stands)
        for stands in (False, True, True, False, False, True)
    ]
    assert changes == [False, True, False, True, False, True]
    assert heard == [("case", "open", True), ("case", "open", False), ("case", "open", True)]
    assert rig.book.alarms == {"case": "open"}
    rig.stop()
    kinds = [event.kind for event in rig.events if event.kind.startswith("alarm")]
    assert kinds == ["alarm", "alarm_over", "alarm"]
    assert {event["alarm"] for event in rig.told("alarm")} == {"case"}


def test_an_alarm_that_flaps_stands_and_cannot_fill_the_card(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    heard: list[str] = []
    rig.book.told = lambda event: heard.append(event.kind)

    def flap(kind: str) -> list[str]:
        heard.clear()
        for _ in range(1000):
            rig.book.raise_alarm(kind, "out", stands=True)
            rig.book.raise_alarm(kind, "out", stands=False)
        return list(heard)

    flaps = ["alarm", "alarm_over"] * FALLS_AT_ONCE
    assert flap("adaptor_out") == [*flaps, "alarm"]
    assert flap("garbage") == [*flaps, "alarm"]
    assert flap("adaptor_out") == []
    rig.book.raise_alarm("garbage", "out", stands=True)
    rig.wait(FALL_EVERY_MS)
    rig.book.stamp(rig.stamp)
    rig.book.tick(rig.boot_ms, rig.stamp)
    assert heard == ["alarm_over"]
    assert rig.book.alarms == {"garbage": "out"}
    rig.stop()
    rig.assert_good()


def test_events_are_told_as_they_come_and_numbered(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    told: list[str] = []
    rig.book.told = lambda event: told.append(event.kind)
    assert rig.book.told is not None
    rig.rows(13)
    rig.stop()
    assert told == ["clock_set", "sealed", "stopped"]
    assert [event.number for event in rig.events] == list(range(1, len(rig.events) + 1))


def test_events_bear_the_clocks_of_their_reading_or_of_who_says_so(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(2)
    rig.book.event("one")
    rig.wait(700)
    rig.book.stamp(rig.stamp)
    rig.book.event("two")
    rig.stop()
    (one,), (two,) = rig.told("one"), rig.told("two")
    assert (one.boot_ms, one.wall_ms) == (11_000, MIDNIGHT_S * 1000 + 10_000)
    assert (two.boot_ms, two.wall_ms) == (11_700, MIDNIGHT_S * 1000 + 10_700)


def test_dropped_lines_are_counted_with_the_next_block(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(2)
    rig.book.count_dropped({"banner": 2})
    rig.book.count_dropped({"banner": 2})
    rig.row(300, 20_000)
    rig.book.count_dropped({"banner": 3, "partial": 1})
    assert rig.told("counted") == []
    rig.rows(8)
    rig.commit()
    (counted,) = rig.told("counted")
    assert dict(counted.details) == {"dropped.banner": 3, "dropped.partial": 1, "gaps": 1}
    assert counted.number < rig.told("sealed")[0].number, "the block vouches for it"
    assert rig.blocks[0].events >= counted.number
    rig.book.note_counts()
    rig.book.count_dropped({"banner": 4, "partial": 1})
    rig.book.note_counts()
    rig.stop()
    assert dict(rig.told("counted")[-1].details) == {"dropped.banner": 1}


def test_duplicates_are_counted_and_not_metered(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    before, rig._lines = rig.book.accepted, rig._lines - 1
    rig.row(WATTS[2], 400)
    assert rig.book.accepted == before
    rig.book.count_dropped({})
    rig.book.note_counts()
    rig.stop()
    assert dict(rig.told("counted")[0].details) == {"dropped.duplicate": 1}


def test_a_full_register_is_not_sealed(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    rig.book.cutter.sums[0] = 2 * UJ_MAX + 2
    with pytest.raises(LedgerDamagedError, match=r"register 1-0:1\.8\.0 is full"):
        rig.rows(12)


def test_what_its_peers_would_refuse_is_not_sealed(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(13)
    rig.book.cutter._first = (0, 0, 0)
    with pytest.raises(LedgerDamagedError, match="refuses to seal") as refused:
        rig.rows(12)
    assert "an error in meterd" in refused.value.hint
    assert len(rig.blocks) == 0


# --- how it becomes durable --------------------------------------------------------------------


def test_a_block_is_durable_behind_its_rows_and_its_event_behind_it(tmp_path: Path) -> None:
    card = RecordingCard()
    rig = Rig(tmp_path / "account", card=card)
    rig.start(MIDNIGHT_S + 2)
    rig.rows(3)
    rig.commit()
    card.done.clear()
    rig.book.raise_alarm("case", "open", stands=True)
    rig.rows(9)
    rig.commit()
    done = [(one.kind, one.path.relative_to(rig.state).parts[0]) for one in card.done]
    assert done == [
        ("append", "events"), ("sync", "events"),
        ("append", "samples"), ("sync", "samples"),
        ("create", "blocks"), ("sync_folder", "blocks"),
        ("append", "events"), ("sync", "events"),
    ]  # fmt: skip
    assert b"sealed" in card.done[-2].data
    assert len(card.done[2].data) == 9 * headers(rig)[0].row_bytes, "the reading past the end too"


def test_a_checkpoint_comes_behind_all_that_it_stands_on(tmp_path: Path) -> None:
    card = RecordingCard()
    rig = Rig(tmp_path / "account", card=card)
    rig.start(MIDNIGHT_S - 122)
    rig.rows(25)
    rig.commit()
    kinds = [one.kind for one in card.done]
    at = kinds.index("replace")
    assert kinds.count("replace") == 1
    unsynced = {one.path for one in card.done[:at] if one.kind == "append"}
    for one in card.done[:at]:
        if one.kind == "sync":
            unsynced.discard(one.path)
    assert unsynced == set()


def test_the_same_readings_make_the_same_account(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        rig = Rig(tmp_path / name)
        rig.start(MIDNIGHT_S - 100)
        rig.rows(60)
        rig.stop()
        made.append({p.relative_to(rig.state): p.read_bytes() for p in rig.state.rglob("*.seg")})
    assert made[0] == made[1]


def test_small_and_large_commits_make_the_same_account(tmp_path: Path) -> None:
    made = []
    for each in (1, 1000):
        rig = Rig(tmp_path / str(each))
        rig.start(MIDNIGHT_S - 100)
        for number in range(60):
            rig.rows(1)
            if number % each == 0:
                rig.commit()
        rig.stop()
        made.append({p.relative_to(rig.state): p.read_bytes() for p in rig.state.rglob("*.seg")})
    assert made[0] == made[1]


def test_sealing_what_is_open_is_what_the_next_start_would_do(tmp_path: Path) -> None:
    made = []
    for at_once in (True, False):
        rig = Rig(tmp_path / str(at_once))
        rig.start(MIDNIGHT_S - 100)
        rig.rows(40)
        rig.wait(0, step_ms=400 * DAY_S * 1000)
        rig.rows(7)
        rig.commit()
        if at_once:
            rig.book.seal_open()
        else:
            rig.start(MIDNIGHT_S + 4000)
        rig.commit()
        rig.assert_good()
        made.append(spans(rig))
        assert rig.book.log.open_records == 0
    assert made[0] == made[1]


def test_a_book_forgets_what_recovery_found(rig: Rig) -> None:
    """The events of a whole account, where its checkpoint was lost."""
    book: Bookkeeper = rig.start(MIDNIGHT_S)
    assert book._recovered is None


# --- whatever may come -------------------------------------------------------------------------


class Life:
    """What may happen to a meter, drawn at random; its account is judged at every start."""

    def __init__(self, state: Path, seed: int, *, polling_ms: int) -> None:
        self.chance = random.Random(seed)
        self.polling_ms = polling_ms
        self.wall_s = MIDNIGHT_S - self.chance.randrange(400) + self.chance.choice([0, 0.5, 0.001])
        self.rig = Rig(state, with_circuits(self.chance.randrange(3), polling_ms=polling_ms))
        self.durable: dict[str, int] = {}
        self.unset = False
        self.start()

    def start(self) -> None:
        chance = self.chance
        status = chance.choice("SSSIR")
        self.unset = status == "R" and chance.random() < 0.5
        count = chance.randrange(3) if chance.random() < 0.4 else None
        self.rig.start(
            10 if self.unset else self.wall_s,
            boot_ms=chance.choice([0, 777, 5_000_000]),
            status=status,
            text="" if count is None else with_circuits(count, polling_ms=self.polling_ms),
        )
        now = self.rig.book.registers_uj()
        fell = [code for code, uj in self.durable.items() if now.get(code, (0, 0))[0] < uj]
        assert not fell, "a register fell"

    def commit(self) -> None:
        self.rig.commit()
        for energy in self.rig.book.chain.head.energy:
            code = f"1-{energy.obis[1]}:{energy.obis[2]}.8.0"
            self.durable[code] = energy.last_uj

    def pass_time(self, elapsed_ms: int) -> None:
        self.wall_s += elapsed_ms / 1000

    def meter(self) -> None:
        count, part = self.chance.randrange(1, 14), self.chance.choice([1000, 1000, 980, 1001, 500])
        elapsed_ms = self.polling_ms * part // 1000
        self.rig.rows(count, elapsed_ms)
        self.pass_time(count * elapsed_ms)

    def meter_once(self) -> None:
        gap_ms = 3 * self.polling_ms
        elapsed_ms = self.chance.choice([1, gap_ms - 1, gap_ms, gap_ms + 1, 61_000, 300_000])
        elapsed_ms = self.chance.choice([elapsed_ms] * 8 + [DAY_S * 250])
        self.rig.row(self.chance.choice(WATTS), elapsed_ms, estimated=self.chance.random() < 0.1)
        self.pass_time(elapsed_ms)

    def be_silent(self) -> None:
        elapsed_ms = self.chance.choice([16_000, 61_000, 200_000])
        self.rig.wait(elapsed_ms)
        self.pass_time(elapsed_ms)
        self.rig.book.tick(self.rig.boot_ms, self.rig.stamp)

    def set_clock(self) -> None:
        far_ms = 3 * DAY_S * 1000
        step_ms = self.chance.choice(
            [30_000, -30_000, 3_600_000, -3_600_000, far_ms, -far_ms, 1500]
        )
        self.rig.wait(0, step_ms=step_ms)
        self.wall_s += step_ms / 1000

    def synchronise(self) -> None:
        if self.unset and self.chance.random() < 0.5:
            self.rig.wall_ms, self.unset = int(self.wall_s * 1000), False
        if not self.unset:
            self.rig.status = self.chance.choice("SI")

    def fill(self) -> None:
        self.rig.book.storing = not self.rig.book.storing

    def tell(self) -> None:
        self.rig.book.raise_alarm("case", "open", stands="case" not in self.rig.book.alarms)
        self.rig.book.note_counts()

    def restart(self) -> None:
        if self.chance.random() < 0.5:
            self.rig.stop()
            self.commit()
        self.rig.card.close()
        self.wall_s += self.chance.choice([0.5, 3, 20, 61, 300, 90_000])
        self.rig.assert_good()
        self.start()

    def live(self, turns: int) -> None:
        happenings = (
            [self.meter] * 11 + [self.meter_once] * 2 + [self.be_silent, self.set_clock, self.tell]
            + [self.synchronise, self.fill, self.restart]
        )  # fmt: skip
        for _ in range(turns):
            self.chance.choice(happenings)()
            if self.chance.random() < 0.3 or self.rig.book.pending:
                self.commit()
        self.rig.stop()
        self.rig.assert_good()
        (self.rig.state / CHECKPOINT_FILE).unlink(missing_ok=True)
        self.start()
        self.rig.rows(15)
        self.rig.commit()
        self.rig.assert_good()


def live(seed: int) -> None:
    with folder() as state:
        Life(state, seed, polling_ms=60_000 if seed % 4 == 3 else POLLING_MS).live(60)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_the_account_is_good_and_no_register_falls(seed: int) -> None:
    live(seed)


@pytest.mark.soak
def test_whatever_happens_at_length() -> None:
    for seed in range(100, 4000):
        live(seed)
