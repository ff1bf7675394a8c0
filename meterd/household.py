"""What a household draws: a seeded model of its appliances, or a recording.

The model answers for any instant without living through the ones before, and always alike. Times
are the household's own: milliseconds since 1970 by its local clock.

>>> household = synthetic_household(seed=1)
>>> noon_ms = 1_184_068_800_000  # 2007-07-10T12:00
>>> household(noon_ms) == synthetic_household(seed=1)(noon_ms)
True
>>> household(noon_ms).channels[0].power_mw < 0  # photovoltaics: it feeds the grid
True
"""

from __future__ import annotations

import csv
import gzip
from array import array
from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, datetime
from math import cos, hypot, pi, sin
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

DAY_S = 86_400
CIRCUITS = ("mains", "heat pump", "kitchen", "laundry", "photovoltaics")
"""What the model's channels are, in order; that of photovoltaics is positive when it generates."""

VOLTAGE_V = 231.0
VOLTS_PER_KW = 0.4  # what the supply cable costs
PV_PEAK_W = 3600.0
KETTLE_HOURS = (7, 10, 13, 16, 20)
KETTLE_CHANCE = 0.8  # at each of these hours
OVEN_CHANCE = 0.5  # a day
WASHING_CHANCE = 0.4  # a day
CLOUDS_S = 600  # how long a cloud takes to pass
DAYS_KEPT_MAX = 2  # an interval that crosses midnight asks for both


class Channel(NamedTuple):
    """What one clamp sees.

    Attributes:
        power_mw: Active power; positive is drawn from the grid, negative is fed into it.
        current_ma: RMS current, never negative.
        voltage_mv: RMS voltage.
    """

    power_mw: int
    current_ma: int
    voltage_mv: int


class Moment(NamedTuple):
    """What all clamps see at one instant, the mains first."""

    channels: tuple[Channel, ...]


Load = Callable[[int], Moment | None]
"""From the household's time in milliseconds; None: the power is off, and the board with it."""


# The model

_Use = tuple[float, float, float]  # from second to second of the day, watts


def synthetic_household(seed: int) -> Load:
    """Return the model household of `seed`."""
    days: dict[int, _Day] = {}

    def moment(at_ms: int) -> Moment:
        day_number, ms = divmod(at_ms, DAY_S * 1000)
        day = days.get(day_number)
        if day is None:
            while len(days) >= DAYS_KEPT_MAX:
                del days[next(iter(days))]
            day = days[day_number] = _Day(seed, day_number)
        return day.moment(ms / 1000)

    return moment


class _Day:
    """One day of the model: what runs when, and how the sun shines."""

    def __init__(self, seed: int, day_number: int) -> None:
        # 1 in the middle of January, -1 in the middle of July; 1970-01-15 is day 14.
        winter = cos(2 * pi * (day_number - 14) / 365.25)

        def chance(appliance: str) -> Random:
            return Random(f"{seed} {day_number} {appliance}")  # noqa: S311 (a model, not a secret)

        self._circuits = [
            _Steps(_heat_pump(chance("heat pump"), winter)),
            _Steps([*_kettle(chance("kettle")), *_oven(chance("oven"))]),
            _Steps(_washing_machine(chance("washing machine"))),
            _Steps([*_fridge(chance("fridge")), *_lights(chance("lights"), winter)]),
        ]
        self._standby_w = chance("standby").uniform(45, 70)
        clouds = chance("clouds")
        dull = clouds.random()
        self._clearness = [1 - dull * clouds.random() for _ in range(DAY_S // CLOUDS_S + 2)]
        self._pv_peak_w = PV_PEAK_W * (0.7 - 0.3 * winter)
        self._sun_s = 3600 * (12 - 3.5 * winter)  # from rise to set, noon in the middle

    def moment(self, at_s: float) -> Moment:
        heat_w, kitchen_w, laundry_w, rest_w = (steps.watts(at_s) for steps in self._circuits)
        rest_w += self._standby_w
        pv_w = self._pv_w(at_s)
        net_w = heat_w + kitchen_w + laundry_w + rest_w - pv_w
        volts = VOLTAGE_V + 1.5 * sin(2 * pi * at_s / DAY_S) - VOLTS_PER_KW * net_w / 1000
        heat_var, laundry_var = 0.35 * heat_w, 0.2 * laundry_w  # motors
        return Moment(
            (
                _channel(
                    net_w, heat_var + laundry_var + 60, volts
                ),  # 60 var of supplies on standby
                _channel(heat_w, heat_var, volts),
                _channel(kitchen_w, 0.0, volts),
                _channel(laundry_w, laundry_var, volts),
                _channel(pv_w, 0.0, volts),
            )
        )

    def _pv_w(self, at_s: float) -> float:
        since_rise = (at_s - (DAY_S - self._sun_s) / 2) / self._sun_s
        if not 0 < since_rise < 1:
            return 0.0
        number, part = divmod(at_s / CLOUDS_S, 1)
        before, after = self._clearness[int(number) : int(number) + 2]
        clearness = before + (after - before) * part
        height: float = sin(pi * since_rise) ** 1.3
        return self._pv_peak_w * height * clearness


def _channel(watts: float, var: float, volts: float) -> Channel:
    return Channel(
        power_mw=round(watts * 1000),
        current_ma=round(hypot(watts, var) / volts * 1000),
        voltage_mv=round(volts * 1000),
    )


class _Steps:
    """Appliances that go on and off, added up into one flight of steps."""

    def __init__(self, uses: list[_Use]) -> None:
        changes = sorted(
            change for start, end, watts in uses for change in ((start, watts), (end, -watts))
        )
        self._from_s = [0.0, *(at_s for at_s, _ in changes)]
        self._watts = [0.0]
        for _, change in changes:
            self._watts.append(self._watts[-1] + change)

    def watts(self, at_s: float) -> float:
        return self._watts[bisect_right(self._from_s, at_s) - 1]


def _fridge(chance: Random) -> list[_Use]:
    uses = []
    at_s = -chance.uniform(0, 2700)
    while at_s < DAY_S:
        on_s = chance.uniform(660, 1020)
        uses.append((max(at_s, 0.0), max(at_s + on_s, 0.0), chance.uniform(85, 100)))
        at_s += on_s + chance.uniform(1500, 2100)
    return uses


def _heat_pump(chance: Random, winter: float) -> list[_Use]:
    """Run about two thirds of a winter's day, in summer for the hot water alone."""
    uses = []
    share = 0.35 + 0.28 * winter
    at_s = chance.uniform(0, 1800)
    while at_s < DAY_S:
        on_s = chance.uniform(720, 1800)
        uses.append((at_s, at_s + on_s, chance.uniform(1100, 1500) + 400 * winter))
        at_s += on_s / share
    return uses


def _kettle(chance: Random) -> list[_Use]:
    uses = []
    for hour in KETTLE_HOURS:
        if chance.random() < KETTLE_CHANCE:
            at_s = hour * 3600 + chance.uniform(-1800, 1800)
            uses.append((at_s, at_s + chance.uniform(110, 240), 2100.0))
    return uses


def _oven(chance: Random) -> list[_Use]:
    if chance.random() > OVEN_CHANCE:
        return []
    at_s = chance.uniform(17 * 3600, 19 * 3600)
    warm_s = at_s + chance.uniform(600, 840)
    return [
        (at_s, warm_s, 2400.0),
        *((warm_s + k * 240 + 150, warm_s + (k + 1) * 240, 2400.0) for k in range(10)),
    ]


def _washing_machine(chance: Random) -> list[_Use]:
    if chance.random() > WASHING_CHANCE:
        return []
    at_s = chance.uniform(9 * 3600, 17 * 3600)
    return [
        (at_s, at_s + 840, 2000.0),
        *((at_s + 840 + k * 60, at_s + 880 + k * 60, 180.0) for k in range(40)),
        (at_s + 3300, at_s + 3780, 420.0),
    ]


def _lights(chance: Random, winter: float) -> list[_Use]:
    uses = []
    for room_w in (12.0, 18.0, 40.0, 9.0, 60.0):
        rise_s = 3600 * chance.uniform(6, 7)
        uses.append((rise_s, rise_s + 1800 * (2 + winter) * chance.random(), room_w))
        dusk_s = 3600 * (18.5 - 2 * winter) + chance.uniform(0, 5400)
        uses.append((dusk_s, min(dusk_s + chance.uniform(3600, 18_000), DAY_S - 600.0), room_w))
    return uses


# Recordings


class Recording:
    """A household as it was: each point holds until the next, the last as long as the one before.

    Attributes:
        start_ms: The first point.
        end_ms: Where the last one ends.
    """

    def __init__(self, points: Iterator[tuple[int, Channel | None]], what: str) -> None:
        """Take `points`: milliseconds, ascending, and what the mains clamp saw, None for nothing.

        Raises:
            UsageError: There are none, or they do not ascend; the message begins with `what`.
        """
        self._at_ms = array("q")
        self._values = array("q")  # power, current, voltage; all zero where nothing was measured
        for at_ms, channel in points:
            if self._at_ms and at_ms <= self._at_ms[-1]:
                raise UsageError(f"{what}: its times do not ascend", hint=ONE_HOUSEHOLD_HINT)
            self._at_ms.append(at_ms)
            self._values.extend(channel or (0, 0, 0))
        if not self._at_ms:
            raise UsageError(f"{what}: it has no points", hint=ONE_HOUSEHOLD_HINT)
        self.start_ms = self._at_ms[0]
        last_ms = self._at_ms[-1]
        held_ms = last_ms - self._at_ms[-2] if len(self._at_ms) > 1 else DAY_S * 1000
        self.end_ms = last_ms + held_ms

    def __call__(self, at_ms: int) -> Moment | None:
        """Return what was drawn at `at_ms`; None outside the recording and where it has a hole."""
        at = 3 * (bisect_right(self._at_ms, at_ms) - 1)
        if at < 0 or at_ms >= self.end_ms:
            return None
        channel = Channel(*self._values[at : at + 3])
        return Moment((channel,)) if channel.voltage_mv else None


ONE_HOUSEHOLD_HINT = "if the file has several households, name one with --household"
_MINUTE_COLUMNS = ("timestamp", "voltage_v", "current_a", "active_power_w")
_ENERGY_COLUMNS = ("timestamp", "consumption_kwh", "generation_kwh")


def read_recording(path: Path, household: str | None = None) -> Recording:
    """Return the recording in a CSV file, plain or gzipped.

    It has either timestamp, voltage_v, current_a and active_power_w, empty where nothing was
    measured, or timestamp (the interval's start), consumption_kwh and generation_kwh: then power
    is the mean of consumption less generation, at nominal voltage.

    Args:
        path: The file.
        household: Only lines with this in their column `household` count.

    Raises:
        UsageError: It is no such file.
        OSError: It cannot be read.
    """
    opened: TextIO
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as opened:
        rows = csv.DictReader(opened)
        try:
            columns = set(rows.fieldnames or ())
            if household is not None and "household" not in columns:
                raise UsageError(f"{path}: it has no column household")
            chosen = (row for row in rows if household is None or row["household"] == household)
            if columns.issuperset(_MINUTE_COLUMNS):
                return Recording(map(_minute_point, chosen), str(path))
            if columns.issuperset(_ENERGY_COLUMNS):
                return Recording(_energy_points(chosen), str(path))
        except (ValueError, TypeError, csv.Error, EOFError) as error:
            raise UsageError(f"{path}: line {rows.line_num}: {error}") from error
    wanted = " or ".join(map(",".join, (_MINUTE_COLUMNS, _ENERGY_COLUMNS)))
    raise UsageError(f"{path}: its columns are not those of a recording", hint=f"needs {wanted}")


def local_ms(timestamp: str) -> int:
    """Return an ISO 8601 time without a zone as the household's milliseconds since 1970.

    Raises:
        ValueError: It is none.
    """
    local = datetime.fromisoformat(timestamp)
    return round(local.replace(tzinfo=local.tzinfo or UTC).timestamp() * 1000)


def _minute_point(row: dict[str, str]) -> tuple[int, Channel | None]:
    at_ms = local_ms(row["timestamp"])
    if row["active_power_w"] == "":  # that of a torn line is None, and refused
        return at_ms, None
    return at_ms, Channel(
        power_mw=round(float(row["active_power_w"]) * 1000),
        current_ma=round(float(row["current_a"]) * 1000),
        voltage_mv=round(float(row["voltage_v"]) * 1000),
    )


def _energy_points(rows: Iterator[dict[str, str]]) -> Iterator[tuple[int, Channel | None]]:
    """Yield mean powers; the intervals are as long as the first one."""
    energies = (
        (
            local_ms(row["timestamp"]),
            float(row["consumption_kwh"]) - float(row["generation_kwh"] or 0),
        )
        for row in rows
    )
    try:
        first, second = next(energies), next(energies)
    except StopIteration:
        return
    hours = (
        max(second[0] - first[0], 1) / 3_600_000
    )  # that they ascend is checked by who takes them
    for at_ms, kwh in (first, second, *energies):
        watts = kwh * 1000 / hours
        yield at_ms, _channel(watts, 0.0, 230.0)
