"""Many steps, and not a microjoule lost or gained (M3)."""

from __future__ import annotations

import random
from array import array
from itertools import accumulate, pairwise

import pytest

from meterd.metering.interval import Cutter, Wall

CHUNK = 100_000
INTERVAL_MS = 1_800_000
POWER_MW_MAX = 22_000_000
WALL = Wall(1_795_996_800_000, "S", 0)  # a whole number of intervals


class Straight:
    """Import and export in half microjoules, by the stated rule and nothing else: no state to cut.

    Energy between two readings is the mean of their powers times the time between; a boundary
    between them is given the reading that lies on the straight line, floored to a milliwatt.
    """

    def __init__(self) -> None:
        self.imported = self.exported = 0

    def take(self, points: list[tuple[int, int]]) -> None:
        """Take readings in order, (ms, mW); the first was the last of the call before."""
        areas = []
        for (early_ms, early), (late_ms, late) in pairwise(points):
            if early_ms // INTERVAL_MS != late_ms // INTERVAL_MS:
                areas += self.split(early_ms, early, late_ms, late)
            else:
                areas.append((early + late) * (late_ms - early_ms))
        gained = sum(area for area in areas if area > 0)
        self.imported += gained
        self.exported += gained - sum(areas)

    @staticmethod
    def split(early_ms: int, early: int, late_ms: int, late: int) -> list[int]:
        first = (early_ms // INTERVAL_MS + 1) * INTERVAL_MS
        bounds = range(first, late_ms, INTERVAL_MS)
        slope = [early + (late - early) * (at - early_ms) // (late_ms - early_ms) for at in bounds]
        points = [(early_ms, early), *zip(bounds, slope, strict=True), (late_ms, late)]
        return [(p0 + p1) * (t1 - t0) for (t0, p0), (t1, p1) in pairwise(points)]


def accumulate_steps(count: int) -> None:
    chance = random.Random(count)
    cutter = Cutter(interval_s=INTERVAL_MS // 1000, quantities=1)
    cutter.feed(0, (0,), 1, WALL)
    straight = Straight()
    last, cuts = (0, 0), 0
    before: tuple[int, ...] = (0, 0)
    for _ in range(count // CHUNK):
        powers = [power * POWER_MW_MAX >> 15 for power in array("h", chance.randbytes(2 * CHUNK))]
        steps_ms = [1 + (ms >> 5) for ms in array("H", chance.randbytes(2 * CHUNK))]
        times = list(accumulate(steps_ms, initial=last[0]))[1:]
        feed = cutter.feed
        for at_ms, power in zip(times, powers, strict=True):
            for cut in feed(at_ms, (power,), 0, WALL):
                cuts += 1
                assert cut.first_uj == before
                before = cut.last_uj
        points = list(zip(times, powers, strict=True))
        straight.take([last, *points])
        last = points[-1]
        assert cutter.sums == [straight.imported, straight.exported]
    assert cuts == last[0] // INTERVAL_MS


def test_a_million_steps_equal_the_reference() -> None:
    accumulate_steps(1_000_000)


@pytest.mark.soak
def test_a_hundred_million_steps_equal_the_reference() -> None:
    accumulate_steps(100_000_000)
