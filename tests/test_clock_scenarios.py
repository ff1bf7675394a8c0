"""What clocks do, as a table: the energy is that of a good clock in all of it, bit for bit.

Each script is played twice, with its clock and with a good one; boards, loads and restarts are the
same. Times are those of 1 January 2026 (a boundary of every interval), true ones; blocks are placed
by what the clock said.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.metering.placement import BEHIND
from tests.accounts import config_text, flag_names
from tests.rig import BUILD_MS, MIDNIGHT_S, WATTS, Rig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
YEAR_MS = 365 * DAY_MS
POLLING_MS = 5000
TEXT = config_text(polling_ms=POLLING_MS)


def ms(text: str) -> int:
    """Return a time of the day, in ms since 1970; hours past 24 are of later days."""
    hours, minutes, *seconds = text.split(":")
    second = float(seconds[0]) if seconds else 0
    return (MIDNIGHT_S + int(hours) * 3600 + int(minutes) * 60) * 1000 + round(second * 1000)


class House:
    """A meter in a house, with a clock that may be wrong; `good` if it never is."""

    def __init__(self, state: Path, *, good: bool) -> None:
        self.rig = Rig(state, TEXT)
        self.good = good
        self.true_ms = 0
        self.lines = 0
        self.alarms: list[str] = []

    def boot(self, at: str, *, error_ms: int = 0, status: str = "S") -> None:
        self.true_ms = ms(at)
        self.rig.start(self.true_ms / 1000)
        self.set_clock(error_ms, status)

    def boot_at_1970(self, at: str) -> None:
        self.boot(at, error_ms=30_000 - ms(at), status="R")

    def set_clock(self, error_ms: int, status: str = "S") -> None:
        """Let the clock be wrong by `error_ms` from now on."""
        if not self.good:
            self.rig.wall_ms, self.rig.status = self.true_ms + error_ms, status

    def meter(self, until: str, *, each_ms: int = POLLING_MS) -> None:
        """Take a reading every 5 s, the first after 5 s, the last at `until`."""
        while self.true_ms < ms(until):
            elapsed_ms = min(each_ms, ms(until) - self.true_ms)
            self.true_ms += elapsed_ms
            self.lines += 1
            self.rig.row(WATTS[self.lines // 5 % len(WATTS)], elapsed_ms)
            self.rig.commit()
        self.alarms.append(self.rig.book.placement.alarm)

    def stop(self) -> None:
        self.rig.stop()

    def crash(self) -> None:
        """End without a word; all readings were durable."""
        self.rig.card.close()

    def finish(self) -> None:
        self.rig.book.seal_open()
        self.rig.commit()
        self.rig.card.close()
        verdict = self.rig.assert_good()
        assert verdict.open_rows == 0


class Shown(NamedTuple):
    """A block: its times, its flags, its clock status, minutes measured."""

    start: str
    end: str
    flags: str
    status: str
    measured_min: float


def shown(at_s: int) -> str:
    days, second = divmod(at_s - MIDNIGHT_S, 86_400)
    clock = f"{second // 3600:02}:{second // 60 % 60:02}"
    clock += f":{second % 60:02}" if second % 60 else ""
    return f"{days:+}d {clock}" if days else clock


def blocks(house: House) -> list[Shown]:
    return [
        Shown(
            shown(block.start_s),
            shown(block.end_s),
            ", ".join(flag_names(block.flags)),
            block.clock.status,
            round(block.clock.measured_ms / MINUTE_MS, 3),
        )
        for block in house.rig.blocks
    ]


# --- the scripts -------------------------------------------------------------------------------


def boot_at_1970_then_synchronised(house: House) -> None:
    house.boot_at_1970("10:00")
    house.meter("10:20")
    house.set_clock(0)
    house.meter("11:00")


def never_synchronised(house: House) -> None:
    house.boot("10:00", status="R")
    house.meter("12:00")


def never_synchronised_and_before_the_build(house: House) -> None:
    house.boot("10:00")
    house.meter("10:30")
    house.stop()
    house.boot("11:00", error_ms=BUILD_MS - DAY_MS - ms("11:00"), status="R")
    house.meter("12:30")
    house.stop()
    house.boot("13:00")
    house.meter("13:30")


def by_a_clock_chip(house: House) -> None:
    house.boot("10:00", status="I")
    house.meter("10:40")
    house.set_clock(0)
    house.meter("11:30")


def an_hour_on(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10:00.4")
    house.set_clock(HOUR_MS)
    house.meter("10:30")


def an_hour_back(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10")
    house.set_clock(-HOUR_MS)
    house.meter("12:00")


def an_hour_back_and_on_again(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10")
    house.set_clock(-HOUR_MS)
    house.meter("10:15")
    house.set_clock(0)
    house.meter("10:30")


def back_across_an_interval(house: House) -> None:
    house.boot("10:00")
    house.meter("10:40")
    house.set_clock(-40 * MINUTE_MS)
    house.meter("11:40")


def a_year_on_and_stays(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10")
    house.set_clock(YEAR_MS)
    house.meter("10:40")


def a_year_on_and_goes_back(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10")
    house.set_clock(YEAR_MS)
    house.meter("10:19")
    house.set_clock(0)
    house.meter("10:30")


def a_year_on_unsynchronised(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10")
    house.set_clock(YEAR_MS, "R")
    house.meter("12:00")


def a_year_back_and_stays(house: House) -> None:
    house.boot("10:00")
    house.meter("10:40")
    house.set_clock(-YEAR_MS)
    house.meter("11:40")


def a_year_back_and_on_again(house: House) -> None:
    house.boot("10:00")
    house.meter("10:40")
    house.set_clock(-YEAR_MS)
    house.meter("10:50")
    house.set_clock(0)  # a step on of more than a day: it must stand first
    house.meter("11:30")


def ninety_days_off(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10:00.4")
    house.stop()
    house.boot("2172:10")
    house.meter("2172:30")


def a_restart_within_an_interval(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10:00.4")
    house.stop()
    house.boot("10:12")
    house.meter("10:30")


def a_crash_before_the_clock_was_set(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10")
    house.stop()
    house.boot_at_1970("10:12")
    house.meter("10:20")
    house.crash()
    house.boot("10:40")
    house.meter("11:00")


def runs_that_never_knew_the_time(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10")
    house.stop()
    for begin, end in (("10:12", "10:14"), ("10:20", "10:50"), ("11:00", "11:20")):
        house.boot_at_1970(begin)
        house.meter(end)
        house.stop()
    house.boot("11:40")
    house.meter("12:00")


def an_account_that_begins_without_the_time(house: House) -> None:
    house.boot_at_1970("10:00")
    house.meter("10:05")
    house.stop()
    house.boot("10:10")
    house.meter("10:30")


def a_restart_while_a_long_step_is_held(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10")
    house.set_clock(YEAR_MS)
    house.meter("10:15")
    house.stop()
    house.boot("10:20")
    house.meter("10:30")


def a_restart_while_a_long_step_is_held_that_stays(house: House) -> None:
    house.boot("10:00")
    house.meter("10:10")
    house.set_clock(YEAR_MS)
    house.meter("10:15")
    house.stop()
    house.boot("10:20", error_ms=YEAR_MS)
    house.meter("10:30")


def a_restart_after_a_step_back(house: House) -> None:
    house.boot("10:00")
    house.meter("10:20")
    house.set_clock(-HOUR_MS)
    house.meter("10:40")
    house.crash()
    house.boot("10:50")
    house.meter("11:00")


def a_restart_after_a_step_on(house: House) -> None:
    house.boot("10:00")
    house.meter("10:20")
    house.set_clock(HOUR_MS)
    house.meter("10:25")
    house.crash()
    house.boot("10:26", error_ms=HOUR_MS)
    house.meter("10:30")


BEGAN, WHOLE = 29.917, 30.0  # the first reading comes 5 s after the start
FIRST = Shown("10:00", "10:30", "partial", "S", BEGAN)
SCENARIOS: list[tuple[Callable[[House], None], list[Shown]]] = [
    (
        boot_at_1970_then_synchronised,
        [
            Shown("10:00", "10:30", "partial", "I", BEGAN),
            Shown("10:30", "11:00", "", "S", WHOLE),
        ],
    ),
    (
        never_synchronised,
        [
            Shown("10:00", "10:30", "partial", "I", BEGAN),
            Shown("10:30", "11:00", "", "I", WHOLE),
            Shown("11:00", "11:30", "", "I", WHOLE),
            Shown("11:30", "12:00", "", "I", WHOLE),
        ],
    ),
    (
        never_synchronised_and_before_the_build,
        [
            FIRST,
            Shown("10:30", "13:00", "gap", "R", 89.917),
            Shown("13:00", "13:30", "gap", "S", BEGAN),
        ],
    ),
    (
        by_a_clock_chip,
        [
            Shown("10:00", "10:30", "partial", "I", BEGAN),
            Shown("10:30", "11:00", "", "I", WHOLE),
            Shown("11:00", "11:30", "", "S", WHOLE),
        ],
    ),
    (
        an_hour_on,
        [
            Shown("10:00", "10:10:01", "clock stepped, partial", "S", 9.923),
            Shown("10:10:01", "11:00", "gap", "S", 0),
            Shown("11:00", "11:30", "gap", "S", 19.993),
        ],
    ),
    (
        an_hour_back,
        [
            Shown("10:00", "10:30", "clock stepped, partial", "S", 89.917),
            Shown("10:30", "11:00", "", "S", WHOLE),
        ],
    ),
    (
        an_hour_back_and_on_again,
        [Shown("10:00", "10:30", "clock stepped, partial", "S", BEGAN)],
    ),
    (
        back_across_an_interval,
        [FIRST, Shown("10:30", "11:00", "clock stepped", "S", 70)],
    ),
    (
        a_year_on_and_stays,
        [
            Shown("10:00", "10:10", "clock stepped, partial", "S", 9.917),
            Shown("10:10", "+365d 10:00", "gap", "S", 0),
            Shown("+365d 10:00", "+365d 10:30", "gap", "S", 20),
            Shown("+365d 10:30", "+365d 10:40", "partial", "S", 10),
        ],
    ),
    (a_year_on_and_goes_back, [FIRST]),
    (
        a_year_on_unsynchronised,
        [
            FIRST,
            Shown("10:30", "11:00", "", "S", WHOLE),
            Shown("11:00", "11:30", "", "S", WHOLE),
            Shown("11:30", "12:00", "", "S", WHOLE),
        ],
    ),
    (
        a_year_back_and_stays,
        [FIRST, Shown("10:30", "10:30:01", "clock stepped, partial", "S", 70)],
    ),
    (
        a_year_back_and_on_again,
        [
            FIRST,
            Shown("10:30", "11:00", "clock stepped", "S", WHOLE),
            Shown("11:00", "11:30", "", "S", WHOLE),
        ],
    ),
    (
        ninety_days_off,
        [
            Shown("10:00", "10:10:01", "partial", "S", 9.923),
            Shown("10:10:01", "+90d 12:00", "gap", "S", 0),
            Shown("+90d 12:00", "+90d 12:30", "gap", "S", 19.917),
        ],
    ),
    (
        a_restart_within_an_interval,
        [
            Shown("10:00", "10:10:01", "partial", "S", 9.923),
            Shown("10:10:01", "10:30", "gap", "S", 17.917),
        ],
    ),
    (
        a_crash_before_the_clock_was_set,
        [
            Shown("10:00", "10:10", "partial", "S", 9.917),
            Shown("10:10", "10:30", "gap", "R", 7.917),
            Shown("10:30", "11:00", "gap", "S", 19.917),
        ],
    ),
    (
        runs_that_never_knew_the_time,
        [
            Shown("10:00", "10:10", "partial", "S", 9.917),
            Shown("10:10", "11:30", "gap", "R", 51.75),
            Shown("11:30", "12:00", "gap", "S", 19.917),
        ],
    ),
    (
        an_account_that_begins_without_the_time,
        [
            Shown("10:00", "10:10:05", "gap, partial", "R", 4.917),
            Shown("10:10:05", "10:30", "", "S", 19.917),
        ],
    ),
    (
        a_restart_while_a_long_step_is_held,
        [
            Shown("10:00", "10:15", "partial", "S", 14.917),
            Shown("10:15", "10:30", "gap", "S", 9.917),
        ],
    ),
    (
        a_restart_while_a_long_step_is_held_that_stays,
        [
            Shown("10:00", "10:15", "partial", "S", 14.917),
            Shown("10:15", "+365d 10:00", "gap", "S", 0),
            Shown("+365d 10:00", "+365d 10:30", "gap", "S", 9.917),
        ],
    ),
    (
        a_restart_after_a_step_back,
        [
            Shown("10:00", "10:00:01", "clock stepped, partial", "S", 39.917),
            Shown("10:00:01", "10:30", "gap", "S", 0),
            Shown("10:30", "11:00", "gap", "S", 9.917),
        ],
    ),
    (
        a_restart_after_a_step_on,
        [
            Shown("10:00", "10:20", "clock stepped, partial", "S", 19.917),
            Shown("10:20", "11:00", "gap", "S", 0),
            Shown("11:00", "11:25", "gap, partial", "S", 5),
            Shown("11:25", "11:30", "gap", "S", 3.917),
        ],
    ),
]


@pytest.mark.parametrize(
    ("script", "expected"),
    [pytest.param(*one, id=one[0].__name__.replace("_", " ")) for one in SCENARIOS],
)
def test_the_energy_is_that_of_a_good_clock_when(
    script: Callable[[House], None], expected: list[Shown], tmp_path: Path
) -> None:
    wrong, good = House(tmp_path / "wrong", good=False), House(tmp_path / "good", good=True)
    for house in (wrong, good):
        script(house)
        house.finish()
    assert blocks(wrong) == expected
    assert wrong.rig.book.registers_uj() == good.rig.book.registers_uj()
    sealed = [[(e.obis, e.last_uj) for e in h.rig.blocks[-1].energy] for h in (wrong, good)]
    assert sealed[0] == sealed[1]


def test_what_a_step_says_for_itself(tmp_path: Path) -> None:
    house = House(tmp_path / "account", good=False)
    a_year_on_and_goes_back(house)
    house.finish()
    assert [event.kind for event in house.rig.events if event.kind.startswith("clock")] == [
        "clock_set",
        "clock_held",
        "clock_went_back",
    ]
    assert "a day or more ahead" in house.alarms[1]
    assert house.alarms[2] == ""


def test_a_clock_far_behind_is_an_alarm_until_it_has_caught_up(tmp_path: Path) -> None:
    house = House(tmp_path / "account", good=False)
    a_year_back_and_stays(house)
    assert house.alarms == ["", BEHIND]
    house.stop()
    house.boot("11:45", error_ms=-YEAR_MS)
    house.meter("11:50")
    assert house.alarms[-1] == BEHIND
    house.set_clock(0)
    house.meter("12:00")
    assert house.alarms[-1] == ""
    house.finish()
    assert blocks(house)[2:] == [
        Shown("10:30:01", "11:30", "gap", "I", 0),
        Shown("11:30", "12:00", "gap", "I", 14.917),
    ]


@pytest.mark.parametrize(
    ("midnight", "hours"), [("2026-03-29T00:00+01:00", 23), ("2026-10-25T00:00+02:00", 25)]
)
def test_daylight_saving_moves_nothing(midnight: str, hours: int, tmp_path: Path) -> None:
    """A local day of Paris has an hour less, or more; in UTC no interval knows."""
    text = config_text(polling_ms=MINUTE_MS).replace("[board]", 'zone = "Europe/Paris"\n[board]')
    rig = Rig(tmp_path / "account", text)
    start_s = int(datetime.fromisoformat(midnight).astimezone(UTC).timestamp())
    rig.start(start_s - 60)
    rig.rows(1 + hours * 60, MINUTE_MS)
    rig.commit()
    rig.card.close()
    rig.assert_good()
    found = rig.blocks
    assert [block.start_s for block in found] == [start_s + k * 1800 for k in range(2 * hours)]
    assert {(block.flags, block.clock.measured_ms) for block in found} == {(0, 1_800_000)}
