"""How a figure is taken and told."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

REPEATS = 5


def cpu_s(work: Callable[[], object]) -> float:
    """Return the CPU seconds that `work` took, in this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def median_cpu_s(works: list[Callable[[], object]], repeats: int = REPEATS) -> list[float]:
    """Return the median CPU time of each work, measured in turns so that noise hits all alike."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for place, work in zip(taken, works, strict=True):
            place.append(cpu_s(work))
    return [statistics.median(times) for times in taken]


def children_cpu_s() -> float:
    """Return the CPU seconds of children that have ended, by process accounting."""
    times = os.times()
    return times.children_user + times.children_system


def tell(what: str, figure: str, aim: str = "", *, met: bool | None = None) -> None:
    """Print one line: a figure, and whether it meets its aim."""
    verdict = "" if met is None else ("   met" if met else "   MISSED")
    against = f"   aim: {aim}" if aim else ""
    print(f"{what:<60} {figure:>18}{against}{verdict}", flush=True)
