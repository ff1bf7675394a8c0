from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.metering.energy import ROW_ESTIMATED, ROW_GAP
from meterd.metering.interval import (
    ESTIMATED,
    GAP,
    PARTIAL,
    STEPPED,
    Base,
    Cut,
    Cutter,
    Wall,
    seconds_up,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

MIDNIGHT_S = 1_767_225_600  # 2026-01-01 00:00 UTC
MIDNIGHT_MS = MIDNIGHT_S * 1000
INTERVAL_S = 60
HOUR_MS = 3_600_000
W = 1_000_000  # mW of a kilowatt: 1 kW for 1 s is 10^9 uJ


def wall(offset_ms: int = MIDNIGHT_MS, status: str = "S", error_ms: int = 0) -> Wall:
    return Wall(offset_ms, status, error_ms)


class Shown(NamedTuple):
    """What a case says of a cut; times in seconds from midnight, import in ms of a kilowatt."""

    start_s: int
    end_s: int
    flags: int
    measured_ms: int
    records: int
    imported: int


def show(cuts: Iterable[Cut]) -> list[Shown]:
    return [
        Shown(
            cut.start_s - MIDNIGHT_S,
            cut.end_s - MIDNIGHT_S,
            cut.flags,
            cut.measured_ms,
            cut.records,
            (cut.last_uj[0] - cut.first_uj[0]) // W,
        )
        for cut in cuts
    ]


class Feeder:
    """A cutter of one quantity, fed rows of a kilowatt by the second, with all its cuts."""

    def __init__(self, base: Base | None = None) -> None:
        self.cutter = Cutter(interval_s=INTERVAL_S, quantities=1, base=base)
        self.cuts: list[Cut] = []
        self.run = False

    def feed(self, *at_s: float, at: Wall | None = None, flags: int = 0, power: int = W) -> None:
        for each in at_s:
            of_row = flags if self.run else flags | ROW_GAP
            self.run = True
            self.cuts += self.cutter.feed(round(each * 1000), (power,), of_row, at or wall())

    def hold(self, *at_s: float, flags: int = 0) -> None:
        for each in at_s:
            self.cutter.hold(round(each * 1000), (W,), flags if self.run else flags | ROW_GAP)
            self.run = True

    def restart(self) -> None:
        self.cuts += self.cutter.restart()
        self.run = False

    def tick(self, now_s: float, at: Wall | None = None) -> None:
        self.cuts += self.cutter.tick(round(now_s * 1000), at or wall())

    @property
    def shown(self) -> list[Shown]:
        return show(self.cuts)


# --- placed rows -------------------------------------------------------------------------------


def test_metering_begins_within_an_interval() -> None:
    meter = Feeder()
    meter.feed(7, 12, 61)
    assert meter.shown == [Shown(0, 60, PARTIAL, 53_000, 2, 53_000)]


def test_metering_begins_on_a_boundary() -> None:
    meter = Feeder()
    meter.feed(0, 5, 61)
    assert meter.shown == [Shown(0, 60, 0, 60_000, 2, 60_000)]


def test_a_row_on_the_boundary_closes_and_is_taken() -> None:
    meter = Feeder()
    meter.feed(0, 55, 60)
    assert meter.shown == [Shown(0, 60, 0, 60_000, 3, 60_000)]
    assert meter.cuts[0].takes_row
    meter.feed(65, 120)
    assert meter.shown[1:] == [Shown(60, 120, 0, 60_000, 2, 60_000)]


def test_a_row_past_the_boundary_is_not_taken() -> None:
    meter = Feeder()
    meter.feed(0, 55, 60.001)
    assert meter.shown == [Shown(0, 60, 0, 60_000, 2, 60_000)]
    assert not meter.cuts[0].takes_row
    assert meter.cuts[0].cut_ms == 60_000


def test_the_reading_at_the_boundary_is_inserted_into_both() -> None:
    meter = Feeder()
    meter.feed(59, power=1000)
    meter.feed(62, power=2000)  # at the boundary: 1000 + 1000/3, floored: 1333
    meter.restart()
    first, second = meter.cuts
    assert first.last_uj[0] == (1000 + 1333) * 1000 // 2
    assert second.last_uj[0] - second.first_uj[0] == (1333 + 2000) * 2000 // 2


def test_the_odd_half_is_carried_over_a_cut() -> None:
    meter = Feeder()
    meter.feed(59.999, power=1)
    meter.feed(60, power=2)
    meter.feed(60.001, power=1)
    meter.restart()
    assert [cut.last_uj[0] for cut in meter.cuts] == [1, 3]


def test_one_row_may_close_many_intervals() -> None:
    meter = Feeder()
    meter.feed(50, 190)
    assert meter.shown == [
        Shown(0, 60, PARTIAL, 10_000, 1, 10_000),
        Shown(60, 120, 0, 60_000, 0, 60_000),
        Shown(120, 180, 0, 60_000, 0, 60_000),
    ]


def test_readings_between_the_first_two_place_all_boundaries_between_them() -> None:
    meter = Feeder()
    meter.feed(59, power=0)
    meter.feed(122, power=63_000)
    assert [cut.last_uj[0] for cut in meter.cuts] == [500_000, 500_000 + 31_000 * 60_000]


def test_a_hole_within_an_interval() -> None:
    meter = Feeder()
    meter.feed(0, 5)
    meter.feed(40, flags=ROW_GAP)
    meter.feed(60)
    assert meter.shown == [Shown(0, 60, GAP, 25_000, 4, 25_000)]


def test_a_hole_over_a_boundary_is_in_both_intervals() -> None:
    meter = Feeder()
    meter.feed(0, 40)
    meter.feed(70, flags=ROW_GAP)
    meter.feed(120)
    assert meter.shown == [
        Shown(0, 60, GAP, 40_000, 2, 40_000),
        Shown(60, 120, GAP, 50_000, 2, 50_000),
    ]


def test_a_hole_of_whole_intervals_is_one_gap_block() -> None:
    meter = Feeder()
    meter.feed(0, 40)
    meter.feed(250, flags=ROW_GAP)
    meter.restart()
    assert meter.shown == [
        Shown(0, 60, GAP, 40_000, 2, 40_000),
        Shown(60, 240, GAP, 0, 0, 0),
        Shown(240, 250, GAP | PARTIAL, 0, 1, 0),
    ]
    assert meter.cuts[1].cut_ms == 0


@pytest.mark.parametrize("at_s", [60, 180])
def test_a_hole_that_ends_on_a_boundary_is_not_in_the_interval_behind_it(at_s: int) -> None:
    meter = Feeder()
    meter.feed(0, 40)
    meter.feed(at_s, flags=ROW_GAP)
    meter.feed(at_s + 60)
    assert meter.shown[-1].flags == 0


def test_a_hole_from_a_boundary_on() -> None:
    meter = Feeder()
    meter.feed(0, 60)
    meter.feed(90, flags=ROW_GAP)
    meter.feed(120)
    assert meter.shown == [
        Shown(0, 60, 0, 60_000, 2, 60_000),
        Shown(60, 120, GAP, 30_000, 2, 30_000),
    ]


def test_an_estimated_row_is_told_by_the_interval_that_takes_it() -> None:
    meter = Feeder()
    meter.feed(0)
    meter.feed(60, 61, flags=ROW_ESTIMATED)
    meter.feed(120, 180)
    assert [shown.flags for shown in meter.shown] == [ESTIMATED, ESTIMATED, 0]


def test_the_worst_clock_of_an_interval_is_told() -> None:
    meter = Feeder()
    meter.feed(0)
    meter.feed(5, at=wall(status="I", error_ms=16_000))
    meter.feed(10, at=wall(error_ms=5))
    meter.feed(60, 120, at=wall(error_ms=1))
    assert [(cut.status, cut.error_ms) for cut in meter.cuts] == [("I", 16_000), ("S", 1)]


def test_two_rows_of_one_stamp_on_either_side_of_a_boundary() -> None:
    meter = Feeder()
    meter.feed(0, 59.9)
    meter.feed(59.9, at=wall(MIDNIGHT_MS + 500), power=5 * W)
    meter.restart()
    assert meter.shown == [
        Shown(0, 60, 0, 59_900, 2, 59_900),
        Shown(60, 61, PARTIAL, 0, 1, 0),
    ]


def test_a_cut_states_the_sums_at_the_row_before() -> None:
    meter = Feeder()
    meter.feed(0, 5)
    meter.feed(10)
    assert meter.cutter.row_sums == (2 * 5000 * W, 0)


# --- closing by time ---------------------------------------------------------------------------


def test_an_interval_closes_by_time() -> None:
    meter = Feeder()
    meter.feed(0, 40)
    meter.tick(60)
    assert meter.shown == []
    meter.tick(60.001)
    assert meter.shown == [Shown(0, 60, GAP, 40_000, 2, 40_000)]
    meter.tick(130)
    assert len(meter.cuts) == 1
    meter.feed(250, flags=ROW_GAP)
    assert meter.shown[1:] == [Shown(60, 240, GAP, 0, 0, 0)]


def test_closing_by_time_comes_to_the_same_as_the_next_row() -> None:
    found = []
    for now_s in (70, None):
        meter = Feeder()
        meter.feed(0, 40)
        if now_s:
            meter.tick(now_s)
        meter.feed(75, flags=ROW_GAP)
        meter.feed(120)
        found.append(meter.cuts)
    assert found[0] == found[1]


def test_nothing_closes_by_time_before_a_row_is_placed() -> None:
    meter = Feeder()
    meter.tick(100)
    meter.hold(10)
    meter.tick(100)
    assert meter.cuts == []


def test_nothing_closes_by_time_while_rows_are_held() -> None:
    meter = Feeder()
    meter.feed(0, 5)
    meter.hold(10)
    meter.tick(100)
    assert meter.cuts == []


def test_nothing_closes_by_a_clock_that_stepped() -> None:
    meter = Feeder()
    meter.feed(0, 5)
    meter.tick(10, wall(MIDNIGHT_MS + HOUR_MS))
    assert meter.cuts == []


# --- restarts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last_s", "end_s"),
    [
        pytest.param(30, 30, id="on a second"),
        pytest.param(30.001, 31, id="rounded up"),
        pytest.param(59.5, 60, id="no further than the boundary"),
    ],
)
def test_a_restart_closes_at_the_last_row_s_second(last_s: float, end_s: int) -> None:
    meter = Feeder()
    meter.feed(0, last_s)
    meter.restart()
    measured_ms = round(last_s * 1000)
    assert meter.shown == [Shown(0, end_s, PARTIAL, measured_ms, 2, measured_ms)]
    assert meter.cuts[0].cut_ms == measured_ms


def test_a_restart_within_the_second_in_which_the_stretch_began() -> None:
    meter = Feeder()
    meter.feed(30)
    meter.restart()
    meter.feed(29.9)
    meter.restart()
    assert meter.shown == [
        Shown(0, 30, PARTIAL, 0, 1, 0),
        Shown(30, 31, PARTIAL, 0, 1, 0),
    ]


def test_a_restart_with_nothing_open_closes_nothing() -> None:
    meter = Feeder()
    meter.restart()
    meter.feed(0, 60)
    meter.restart()
    assert len(meter.cuts) == 1


def test_what_is_open_after_a_restart_is_a_gap() -> None:
    meter = Feeder()
    meter.feed(0, 20.4)
    meter.restart()
    meter.feed(40, 60)
    assert meter.shown[1:] == [Shown(21, 60, GAP, 20_000, 2, 20_000)]


def test_an_absence_is_one_gap_block_to_the_last_boundary_passed() -> None:
    meter = Feeder()
    meter.feed(0, 20.4)
    meter.restart()
    meter.feed(90 * 86_400 + 5, 90 * 86_400 + 60)
    assert meter.shown[1:] == [
        Shown(21, 90 * 86_400, GAP, 0, 0, 0),
        Shown(90 * 86_400, 90 * 86_400 + 60, GAP, 55_000, 2, 55_000),
    ]


def test_coming_back_on_a_boundary_leaves_no_gap_behind_it() -> None:
    meter = Feeder()
    meter.feed(0, 20)
    meter.restart()
    meter.feed(180, 240)
    assert [shown.flags for shown in meter.shown] == [PARTIAL, GAP, 0]


@pytest.mark.parametrize(("back_s", "flags"), [(1.9, 0), (2.1, STEPPED), (40, STEPPED)])
def test_coming_back_before_the_last_end_is_a_step(back_s: float, flags: int) -> None:
    meter = Feeder()
    meter.feed(0, 60)
    meter.restart()
    meter.feed(60 - back_s, 120)
    assert meter.shown[1].flags == flags


# --- steps of the clock ------------------------------------------------------------------------


def test_a_step_forward_closes_the_stretch_and_a_gap_block_covers_the_jump() -> None:
    meter = Feeder()
    meter.feed(0, 10.5)
    meter.feed(15, 20, 60, at=wall(MIDNIGHT_MS + HOUR_MS))
    assert meter.shown == [
        Shown(0, 11, STEPPED | PARTIAL, 10_500, 2, 10_500),
        Shown(11, 3600, GAP, 0, 0, 0),
        Shown(3600, 3660, GAP, 49_500, 3, 49_500),
    ]


def test_a_step_forward_within_the_interval() -> None:
    meter = Feeder()
    meter.feed(0, 10.5)
    meter.feed(15, 50, at=wall(MIDNIGHT_MS + 10_000))
    assert meter.shown == [
        Shown(0, 11, STEPPED | PARTIAL, 10_500, 2, 10_500),
        Shown(11, 60, GAP, 39_500, 2, 39_500),
    ]


def test_a_step_forward_in_the_last_second_of_an_interval() -> None:
    meter = Feeder()
    meter.feed(0, 59.5)
    meter.feed(59.9, at=wall(MIDNIGHT_MS + HOUR_MS))
    assert meter.shown == [
        Shown(0, 60, STEPPED, 59_500, 2, 59_500),
        Shown(60, 3600, GAP, 0, 0, 0),
    ]


def test_a_step_forward_from_a_boundary_is_told_by_the_gap_block() -> None:
    meter = Feeder()
    meter.feed(0, 60)
    meter.feed(65, 120, at=wall(MIDNIGHT_MS + HOUR_MS))
    assert meter.shown == [
        Shown(0, 60, 0, 60_000, 2, 60_000),
        Shown(60, 3660, STEPPED | GAP, 0, 0, 0),
        Shown(3660, 3720, GAP, 60_000, 2, 60_000),
    ]


def test_a_step_forward_from_a_boundary_to_within_the_interval_behind_it() -> None:
    meter = Feeder()
    meter.feed(0, 60)
    meter.feed(65, 100, at=wall(MIDNIGHT_MS + 20_000))
    assert meter.shown[1:] == [Shown(60, 120, STEPPED | GAP, 40_000, 2, 40_000)]


def test_a_step_forward_is_noted_once() -> None:
    meter = Feeder()
    meter.feed(0, 60)
    meter.feed(65, 70, 125, 180, at=wall(MIDNIGHT_MS + HOUR_MS))
    assert [shown.flags for shown in meter.shown[1:]] == [STEPPED | GAP, GAP, 0]


def test_a_step_back_leaves_the_stretch_open() -> None:
    meter = Feeder()
    meter.feed(0, 10)
    meter.feed(3550, 3700, at=wall(MIDNIGHT_MS - HOUR_MS), power=W)
    assert meter.shown == [Shown(0, 60, STEPPED, 3_660_000, 3, 3_660_000)]


def test_a_step_forward_before_a_step_back_is_made_good_is_as_if_nothing_had_been() -> None:
    meter = Feeder()
    meter.feed(0, 10)
    meter.feed(15, at=wall(MIDNIGHT_MS - HOUR_MS))
    meter.feed(20, 60)
    assert meter.shown == [Shown(0, 60, STEPPED, 60_000, 5, 60_000)]


def test_a_step_forward_past_the_end_after_a_step_back() -> None:
    meter = Feeder()
    meter.feed(0, 10)
    meter.feed(15, at=wall(MIDNIGHT_MS - HOUR_MS))
    meter.feed(20, at=wall(MIDNIGHT_MS + HOUR_MS))
    assert meter.shown == [
        Shown(0, 60, STEPPED, 15_000, 3, 15_000),
        Shown(60, 3600, GAP, 0, 0, 0),
    ]


def test_what_was_measured_before_a_step_may_be_more_than_the_rest_of_the_interval_holds() -> None:
    meter = Feeder()
    meter.feed(0, 5)
    meter.feed(45, at=wall(MIDNIGHT_MS + 70_000))  # a slow board: 40 s from row to row
    meter.restart()
    assert meter.shown == [
        Shown(0, 5, STEPPED | PARTIAL, 5000, 2, 5000),
        Shown(5, 60, GAP, 0, 0, 0),
        Shown(60, 115, GAP | PARTIAL, 40_000, 1, 40_000),
    ]
    meter = Feeder()
    meter.feed(0, 5)
    meter.feed(45, at=wall(MIDNIGHT_MS + 80_000))
    meter.restart()
    assert meter.shown[2] == Shown(120, 125, GAP | PARTIAL | STEPPED, 40_000, 1, 40_000)


def test_a_clock_that_is_slewed_does_not_step() -> None:
    meter = Feeder()
    for number in range(100):
        meter.feed(number * 6, at=wall(MIDNIGHT_MS + number * 150))
    assert not any(cut.flags & STEPPED for cut in meter.cuts)


# --- rows that wait for the time ---------------------------------------------------------------


def test_energy_of_a_run_that_never_knew_the_time_goes_into_the_gap_block() -> None:
    meter = Feeder()
    meter.feed(0, 20)
    meter.restart()
    meter.hold(0, 30)
    meter.hold(33, flags=ROW_GAP | ROW_ESTIMATED)
    meter.hold(43)
    meter.restart()
    meter.feed(130, 180)
    assert meter.shown == [
        Shown(0, 20, PARTIAL, 20_000, 2, 20_000),
        Shown(20, 120, GAP | ESTIMATED, 40_000, 4, 40_000),
        Shown(120, 180, GAP, 50_000, 2, 50_000),
    ]
    assert [cut.status for cut in meter.cuts] == ["S", "R", "S"]


def test_energy_of_several_such_runs_adds_up() -> None:
    meter = Feeder()
    meter.feed(0, 20)
    meter.restart()
    for _ in range(3):
        meter.hold(0, 10)
        meter.restart()
    meter.feed(130)
    assert meter.shown[1:] == [Shown(20, 120, GAP, 30_000, 6, 30_000)]


def test_where_no_boundary_was_passed_it_goes_into_a_part_of_an_interval() -> None:
    meter = Feeder()
    meter.feed(0, 20)
    meter.restart()
    meter.hold(0, 500)
    meter.restart()
    meter.feed(45.5, 60)
    assert meter.shown[1:] == [
        Shown(20, 45, GAP | PARTIAL, 500_000, 2, 500_000),
        Shown(45, 60, GAP, 14_500, 2, 14_500),
    ]


def test_an_account_may_begin_with_such_a_run() -> None:
    meter = Feeder()
    meter.hold(0, 10)
    meter.restart()
    meter.feed(45, 60)
    assert meter.shown == [
        Shown(0, 45, GAP | PARTIAL, 10_000, 2, 10_000),
        Shown(45, 60, 0, 15_000, 2, 15_000),
    ]


def test_what_waits_for_the_time_is_handed_on() -> None:
    first = Feeder()
    first.hold(0, 10, flags=ROW_ESTIMATED)
    first.restart()
    second = Feeder(first.cutter.base)
    second.hold(0, 10)
    second.restart()
    third = Feeder(second.cutter.base)
    third.feed(45)
    assert third.shown == [Shown(0, 45, GAP | PARTIAL | ESTIMATED, 20_000, 4, 20_000)]


def test_such_a_run_is_closed_no_later_than_the_boundary_and_no_shorter_than_a_second() -> None:
    meter = Feeder()
    meter.hold(0, 10)
    meter.restart()
    meter.feed(0, 5)
    assert meter.shown == [Shown(0, 1, GAP | PARTIAL, 10_000, 2, 10_000)]


def test_rows_are_fed_again_from_the_last_cut() -> None:
    whole, held = Feeder(), Feeder()
    for meter in (whole, held):
        meter.feed(0, 55, 65)
    whole.feed(70, 120)
    held.hold(70, 120)
    assert held.cutter.records == 3
    held.cutter.restore(held.cutter.base)
    held.feed(65, 70, 120)
    assert held.cuts == whole.cuts
    assert held.cutter.sums == whole.cutter.sums


def test_a_step_behind_the_last_cut_is_found_again() -> None:
    meter = Feeder()
    meter.feed(0, 60)
    back = wall(MIDNIGHT_MS - HOUR_MS)
    meter.feed(65, at=back)
    meter.cutter.restore(meter.cutter.base)
    meter.feed(65, 3720, at=back)
    assert meter.shown[1:] == [Shown(60, 120, STEPPED, 3_660_000, 2, 3_660_000)]


def test_a_step_that_made_the_last_cut_is_not_found_again() -> None:
    meter = Feeder()
    on = wall(MIDNIGHT_MS + HOUR_MS)
    meter.feed(0, 10)
    meter.feed(15, at=on)
    meter.cutter.restore(meter.cutter.base)
    meter.feed(15, 60, at=on)
    assert meter.shown[2:] == [Shown(3600, 3660, GAP, 50_000, 2, 50_000)]


@pytest.mark.parametrize(("wall_s", "flags"), [(0.1, GAP), (0, 0)])
def test_recovery_does_not_know_of_a_step_that_made_the_last_cut(wall_s: float, flags: int) -> None:
    base = Base(MIDNIGHT_S, (0, 0), 1000, (W,))
    meter = Feeder(base)
    meter.run = True
    meter.feed(2, at=wall(MIDNIGHT_MS + round(wall_s * 1000) - 2000))
    meter.restart()
    assert [shown.flags for shown in meter.shown] == [flags | PARTIAL]


def test_seconds_are_rounded_up() -> None:
    assert [seconds_up(ms) for ms in (0, 1, 999, 1000, 1001)] == [0, 1, 1, 1, 2]


def test_an_interval_that_changes_at_a_midnight_cuts_by_the_old_one_before_it() -> None:
    midnight_s = MIDNIGHT_MS // 1000
    cutter = Cutter(interval_s=1800, quantities=1)
    cutter.plan(((midnight_s, 900),))
    cuts = [
        cut
        for at_s in (-3600, -1800, 0, 900, 1800)
        for cut in cutter.feed((at_s + 7200) * 1000, (1000,), 0, wall(MIDNIGHT_MS - 7_200_000))
    ]
    assert [(cut.start_s - midnight_s, cut.end_s - midnight_s) for cut in cuts] == [
        (-3600, -1800),
        (-1800, 0),
        (0, 900),
        (900, 1800),
    ]
