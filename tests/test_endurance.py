"""Row H3: what both processes hold is bounded, however long they run.

Two houses with a real broker live through a day. The soak lets it pass at a hundred times its
speed; `make test` lets some hours of it pass faster. Meanwhile boards are unplugged, the broker
goes and comes back, and the control socket is asked: what is opened then has to be closed again.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.device.control_client import ControlClient
from meterd.errors import AbsentError
from tests.conftest import ROOT
from tests.street_kit import Street, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.street_kit import House

WARM_PART = 0.25  # of the samples: caches fill, modules come on their first use
PROCESSES = ("meter", "peer")
UNITS = {"meter": "meterd.service", "peer": "meterd-peer.service"}


class Sample(NamedTuple):
    """What a process holds at one moment.

    Attributes:
        at_s: When, in seconds of the simulated day.
        rss_kb: Resident memory.
        descriptors: Open files and sockets.
        tasks: Threads.
    """

    at_s: float
    rss_kb: int
    descriptors: int
    tasks: int


class Pace(NamedTuple):
    """How a day passes, and how much may come of it.

    Attributes:
        speed: So many times as fast.
        hours: Of it.
        every_s: Between two samples, simulated.
        trouble_s: Between two troubles, simulated.
        rss_kb_max: By how much the memory may grow over the whole run, by its slope.
    """

    speed: int
    hours: float
    every_s: float
    trouble_s: float
    rss_kb_max: int


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between all pairs (Theil-Sen): outliers do not move it."""
    return statistics.median(
        (y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in combinations(points, 2)
    )


def growth(samples: Sequence[Sample], name: str) -> float:
    """Return by how much what is called `name` grew while `samples` were taken, but at first."""
    warm = samples[int(len(samples) * WARM_PART) :]
    points = [(one.at_s, float(getattr(one, name))) for one in warm]
    return slope(points) * (points[-1][0] - points[0][0])


def sampled(pid: int, at_s: float) -> Sample:
    """Ask the kernel what a process holds."""
    proc = Path(f"/proc/{pid}")
    status = (proc / "status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None, status
    descriptors = len(list((proc / "fd").iterdir()))
    return Sample(at_s, int(found[1]), descriptors, len(list((proc / "task").iterdir())))


def limit(what: str, name: str) -> int:
    """Return a limit of the unit that a process runs under: bytes, or a count."""
    text = (ROOT / "systemd" / UNITS[what]).read_text()
    found = re.search(rf"^{name}=(\d+)(M?)$", text, flags=re.MULTILINE)
    assert found is not None, name
    return int(found[1]) * (1 << 20 if found[2] else 1)


def trouble(street: Street, number: int) -> None:
    """Take a board away and bring it back, or the broker."""
    if number % 2:
        street.end_broker()
        street.start_broker()
    else:
        house = street.houses[number // 2 % len(street.houses)]
        house.end("board")
        begun_s = house.begun_s
        house.start_board()
        house.begun_s = begun_s  # its clock goes on


def ask(house: House) -> None:
    """Ask as `meterctl status` does; a meter between two ports may be too busy to answer."""
    with suppress(AbsentError):
        ControlClient(house.state / "control").call("Status")


def live(street: Street, pace: Pace) -> dict[tuple[str, str], list[Sample]]:
    """Let the day pass; return the samples of each process, by house and process."""
    for house in street.houses:
        until((house.state / "control").exists, house.log("meter"))
        until(lambda house=house: bool(house.shown()["chains"]), house.log("peer"))  # type: ignore[misc]
    samples: dict[tuple[str, str], list[Sample]] = {}
    begun_s = time.monotonic()
    troubles = 0
    for count in range(int(pace.hours * 3600 / pace.every_s) + 1):
        time.sleep(max(0, begun_s + count * pace.every_s / pace.speed - time.monotonic()))
        at_s = (time.monotonic() - begun_s) * pace.speed
        for house in street.houses:
            for what in PROCESSES:
                process = house.processes[what]
                assert process.poll() is None, house.log(what)[-2000:]
                samples.setdefault((house.name, what), []).append(sampled(process.pid, at_s))
            ask(house)
        if at_s > (troubles + 1) * pace.trouble_s:
            trouble(street, troubles)
            troubles += 1
    assert troubles > 1
    return samples


def live_within_bounds(folder: Path, pace: Pace) -> None:
    """Let a day pass, and hold what was sampled to the bounds; print the figures."""
    with Street(folder, 2, speed=pace.speed) as street:
        samples = live(street, pace)
        intervals = pace.hours * 2
        assert all(height >= intervals * 0.8 for height in street.heights().values())
        street.is_certified()
        for house in street.houses:
            for what in PROCESSES:
                house.end(what)
        street.is_good()
    for (name, what), taken in samples.items():
        grown = {one: round(growth(taken, one), 1) for one in ("rss_kb", "descriptors", "tasks")}
        most = {
            one: max(getattr(sample, one) for sample in taken)
            for one in ("rss_kb", "descriptors", "tasks")
        }
        print(json.dumps({"house": name, "process": what, "most": most, "grown": grown}))
        assert grown["rss_kb"] <= pace.rss_kb_max, (name, what, taken)
        assert grown["descriptors"] < 1, (name, what, taken)
        assert grown["tasks"] < 1, (name, what, taken)
        assert most["rss_kb"] * 1024 <= limit(what, "MemoryMax") // 2, (name, what)
        assert most["descriptors"] <= limit(what, "LimitNOFILE") // 4, (name, what)
        assert most["tasks"] <= limit(what, "TasksMax"), (name, what)


@pytest.mark.timeout(180)
def test_h3_memory_descriptors_and_tasks_are_bounded_over_hours(tmp_path: Path) -> None:
    """Some hours in a minute; the bound is one that a leak in each line or block would pass."""
    pace = Pace(speed=600, hours=7.5, every_s=450, trouble_s=5400, rss_kb_max=768)
    live_within_bounds(tmp_path, pace)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_h3_memory_descriptors_and_tasks_are_bounded_over_a_day(tmp_path: Path) -> None:
    """24 hours at 100 times their speed."""
    pace = Pace(speed=100, hours=24, every_s=600, trouble_s=3600, rss_kb_max=1024)
    live_within_bounds(tmp_path, pace)


def series(values: Sequence[float]) -> list[Sample]:
    """Return samples ten minutes apart whose memory is `values`."""
    return [Sample(600.0 * n, int(value), 20, 3) for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "least_kb", "most_kb"),
    [
        pytest.param([30_000] * 144, 0, 0, id="flat"),
        pytest.param([30_000 + 20 * n for n in range(144)], 2000, 2200, id="a steady leak"),
        pytest.param([20_000 + 10_000 * (n > 10) for n in range(144)], 0, 0, id="warms up"),
        pytest.param([30_000 + 9000 * (n % 9 == 0) for n in range(144)], 0, 0, id="peaks"),
        pytest.param([30_000 + 100 * (n % 7) for n in range(144)], -30, 30, id="saw"),
        pytest.param([30_000 + 400 * (n // 12) for n in range(144)], 3000, 3800, id="steps"),
    ],
)
def test_growth_is_told_from_noise(values: list[float], least_kb: float, most_kb: float) -> None:
    assert least_kb <= growth(series(values), "rss_kb") <= most_kb
