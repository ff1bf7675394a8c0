from __future__ import annotations

import pytest

from meterd.metering.interval import Wall
from meterd.metering.placement import (
    BEHIND,
    CLOCK_EVENTS,
    WALL_MS_MIN,
    WALLS_MAX,
    Decision,
    Placement,
    clock_details,
)

MIDNIGHT_S = 1_767_225_600  # 2026-01-01 00:00 UTC
MIDNIGHT_MS = MIDNIGHT_S * 1000
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
BUILD_MS = MIDNIGHT_MS - DAY_MS
INTERVAL_S = 60


def wall(offset_ms: int = MIDNIGHT_MS, status: str = "S", error_ms: int = 0) -> Wall:
    return Wall(offset_ms, status, error_ms)


class Clock:
    """Asks a placement about rows; wall times in ms from midnight."""

    def __init__(self, last_end_s: int | None = None) -> None:
        self.placement = Placement(interval_s=INTERVAL_S, build_ms=BUILD_MS)
        self.last_end_s = last_end_s
        self.boot_ms = 0

    def ask(self, elapsed_ms: int, wall_ms: int, status: str = "S") -> Decision:
        self.boot_ms += elapsed_ms
        now_ms = MIDNIGHT_MS + wall_ms
        return self.placement.decide(self.boot_ms, now_ms, status, 0, self.last_end_s)

    def placed(self, wall_ms: int = 0) -> Clock:
        assert self.ask(1000, wall_ms).wall is not None
        return self


def kind(decision: Decision) -> str:
    return decision.event[0] if decision.event else ""


@pytest.mark.parametrize("status", ["S", "I"])
def test_a_good_clock_places_the_first_row(status: str) -> None:
    clock = Clock()
    decision = clock.ask(1000, 0, status)
    assert decision.wall == Wall(MIDNIGHT_MS - 1000, status, 0)
    assert (decision.again, kind(decision)) == ((), "clock_set")
    assert clock.placement.alarm == ""


def test_rows_before_the_first_that_is_placed_are_fed_again_as_informative() -> None:
    clock = Clock()
    assert clock.ask(1000, -MIDNIGHT_MS + 5, "R").wall is None
    assert "not set" in clock.placement.alarm
    decision = clock.ask(1000, 0)
    assert decision.wall == Wall(MIDNIGHT_MS - 2000, "S", 0)
    assert decision.again == ((0, Wall(MIDNIGHT_MS - 2000, "I", 0)),)
    assert clock.placement.alarm == ""


def test_a_clock_before_2000_is_not_believed_whatever_the_kernel_says() -> None:
    clock = Clock()
    assert clock.ask(0, WALL_MS_MIN - MIDNIGHT_MS - 1).wall is None
    assert "2000" in clock.placement.alarm
    assert clock.ask(1, WALL_MS_MIN - MIDNIGHT_MS).wall is not None


@pytest.mark.parametrize(
    ("boot_ms", "wall_ms", "last_end_s", "used"),
    [
        pytest.param(HOUR_MS - 1, 0, None, False, id="too early"),
        pytest.param(HOUR_MS, 0, None, True, id="after an hour"),
        pytest.param(HOUR_MS, -DAY_MS, None, True, id="at the build's date"),
        pytest.param(HOUR_MS, -DAY_MS - 1, None, False, id="before the build's date"),
        pytest.param(HOUR_MS, 0, MIDNIGHT_S, False, id="at the last end"),
        pytest.param(HOUR_MS, 1, MIDNIGHT_S, True, id="behind the last end"),
    ],
)
def test_without_synchronisation_wall_time_is_used_after_an_hour_if_it_can_be_right(
    boot_ms: int, wall_ms: int, last_end_s: int | None, used: bool
) -> None:
    decision = Clock(last_end_s).ask(boot_ms, wall_ms, "R")
    expected = Wall(MIDNIGHT_MS + wall_ms - boot_ms, "I", 0)
    assert decision.wall == (expected if used else None)


@pytest.mark.parametrize(("wall_ms", "used"), [(-60_000, True), (-60_001, False)])
def test_a_clock_more_than_an_interval_before_the_last_end_places_nothing(
    wall_ms: int, used: bool
) -> None:
    clock = Clock(MIDNIGHT_S)
    assert (clock.ask(0, wall_ms).wall is not None) is used
    assert clock.placement.alarm == ("" if used else BEHIND)


def test_one_answer_serves_while_nothing_changes() -> None:
    clock = Clock().placed()
    assert clock.ask(5000, 5000) is clock.ask(5000, 10_000)


def test_a_clock_that_is_lost_after_it_was_set_is_informative() -> None:
    clock = Clock().placed()
    decision = clock.ask(5000, 5000, "R")
    assert decision == Decision(Wall(MIDNIGHT_MS - 1000, "I", 0))


@pytest.mark.parametrize(
    ("step_ms", "told"),
    [
        (2000, ""),
        (-2000, ""),
        (2001, "clock_stepped"),
        (-2001, "clock_stepped"),
        (DAY_MS, "clock_stepped"),
        (DAY_MS + 1, "clock_held"),
        (-400 * DAY_MS, "clock_stepped"),
    ],
)
def test_what_a_change_of_the_clock_is(step_ms: int, told: str) -> None:
    decision = Clock().placed().ask(5000, 5000 + step_ms)
    assert kind(decision) == told
    assert (decision.wall is None) == (told == "clock_held")


def test_steps_behind_each_other_are_told_by_their_own_size() -> None:
    clock = Clock().placed()
    details = [dict(clock.ask(0, step_ms).event[1]) for step_ms in (3000, -1000)]  # type: ignore[index]
    assert [detail["by_ms"] for detail in details] == ["3000", "-4000"]
    assert kind(clock.ask(0, -1000)) == ""


def test_the_alarm_of_a_clock_behind_falls_when_it_has_caught_up() -> None:
    clock = Clock().placed()
    clock.last_end_s = MIDNIGHT_S
    assert clock.ask(0, -60_001).wall is not None
    assert clock.placement.alarm == BEHIND
    clock.ask(0, -60_001)
    assert clock.placement.alarm == BEHIND
    clock.ask(1, -60_000)
    assert clock.placement.alarm == ""


def held(*, status: str = "S") -> Clock:
    clock = Clock().placed()
    assert clock.ask(5000, 5000 + 365 * DAY_MS, status).wall is None
    assert clock.placement.held
    assert "ahead" in clock.placement.alarm
    return clock


YEAR_MS = 365 * DAY_MS
BEFORE, AFTER = Wall(MIDNIGHT_MS - 1000, "S", 0), Wall(MIDNIGHT_MS - 1000 + YEAR_MS, "S", 0)


def test_a_long_step_is_believed_when_it_has_stood_ten_minutes() -> None:
    clock = held()
    assert clock.ask(599_999, 604_999 + YEAR_MS) == Decision(None)
    decision = clock.ask(1, 605_000 + YEAR_MS)
    assert decision.wall == AFTER
    assert decision.again == ((1000, BEFORE), (6000, AFTER))
    assert kind(decision) == "clock_stepped"
    assert not clock.placement.held
    assert clock.placement.alarm == ""
    assert kind(clock.ask(1, 605_001 + YEAR_MS)) == ""


def test_a_long_step_that_goes_back_never_was() -> None:
    clock = held()
    decision = clock.ask(1000, 6000)
    assert decision.wall == BEFORE
    assert decision.again == ((1000, BEFORE),)
    assert kind(decision) == "clock_went_back"
    assert not clock.placement.held
    assert kind(clock.ask(1000, 7000)) == ""


def test_a_long_step_that_goes_back_elsewhere_is_a_short_one() -> None:
    clock = held()
    decision = clock.ask(1000, 6000 + HOUR_MS)
    assert decision.wall == Wall(MIDNIGHT_MS - 1000 + HOUR_MS, "S", 0)
    assert decision.again == ((1000, BEFORE),)
    assert list(clock.placement.walls) == [(1000, BEFORE), (7000, decision.wall)]


def test_a_long_step_that_moves_begins_to_stand_anew() -> None:
    clock = held()
    assert clock.ask(300_000, 305_000 + 2 * YEAR_MS).wall is None
    assert clock.ask(599_999, 904_999 + 2 * YEAR_MS).wall is None
    decision = clock.ask(1, 905_000 + 2 * YEAR_MS)
    assert decision.wall == Wall(MIDNIGHT_MS - 1000 + 2 * YEAR_MS, "S", 0)
    assert decision.again[-1] == (6000, decision.wall)


@pytest.mark.parametrize("status", ["I", "R"])
def test_a_long_step_does_not_stand_while_it_is_not_synchronised(status: str) -> None:
    clock = held(status=status)
    assert clock.ask(600_000, 605_000 + YEAR_MS, status).wall is None
    assert clock.ask(1000, 606_000 + YEAR_MS).wall is None
    assert clock.ask(599_999, 1_205_999 + YEAR_MS).wall is None
    decision = clock.ask(1, 1_206_000 + YEAR_MS)
    assert decision.wall == AFTER
    assert decision.again[-1] == (6000, AFTER._replace(status="I"))


def test_a_step_to_the_future_after_one_to_the_past_keeps_both_in_mind() -> None:
    clock = Clock().placed()
    clock.ask(5000, 5000 - HOUR_MS)
    clock.ask(5000, 10_000 + YEAR_MS)
    decision = clock.ask(600_000, 610_000 + YEAR_MS)
    back = Wall(MIDNIGHT_MS - 1000 - HOUR_MS, "S", 0)
    assert decision.again == ((1000, BEFORE), (6000, back), (11_000, AFTER))


def test_a_change_of_status_is_kept_in_mind() -> None:
    clock = Clock().placed()
    clock.ask(5000, 5000, "I")
    clock.ask(5000, 10_000)
    assert [(at_ms, known.status) for at_ms, known in clock.placement.walls] == [
        (1000, "S"),
        (6000, "I"),
        (11_000, "S"),
    ]


def test_a_mad_clock_is_not_remembered_for_ever() -> None:
    clock = Clock().placed()
    for number in range(3 * WALLS_MAX):
        clock.ask(1000, (number % 2) * HOUR_MS)
    assert len(clock.placement.walls) == WALLS_MAX
    assert clock.placement.walls[-1][0] == clock.boot_ms


def test_events_that_place_a_run_say_where() -> None:
    details = clock_details(Wall(MIDNIGHT_MS, "I", 7), 5)
    assert dict(details) == {
        "boot_ms": 5,
        "wall_ms": MIDNIGHT_MS + 5,
        "status": "I",
        "error_ms": 7,
    }
    clock = Clock()
    told = [clock.ask(0, 0), clock.ask(1000, HOUR_MS), clock.ask(0, YEAR_MS), clock.ask(0, HOUR_MS)]
    events = [decision.event for decision in told if decision.event]
    assert [event[0] for event in events if dict(event[1]).keys() > dict(details).keys()] == [
        "clock_stepped"
    ]
    assert {event[0] for event in events} == {*CLOCK_EVENTS, "clock_held"}
