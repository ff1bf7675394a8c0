"""As fast as a board could ever speak, and faster: no line is lost, and nothing grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.daemon_kit import Stored, make_house

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon_kit import House

SPEED = 60  # so that a block is sealed every second
POLLING_MS = 1000
POWERS = 100_000  # of a tenth of a watt: within the fuse, and no line like the one before
GROWTH_KB_MAX = 8000  # some 25,000 rows that wait while a card is slow; kept lines cost more
DESCRIPTORS_MORE_MAX = 3  # an answer in the making, a segment that is being begun
WARM = 20_000  # lines until all that a run ever needs has been made


def make_recording(path: Path) -> Path:
    """Write a household whose power is another one each second."""
    with path.open("w") as file:
        file.write("timestamp,voltage_v,current_a,active_power_w\n")
        for count in range(POWERS):
            minutes, second = divmod(count, 60)
            hours, minute = divmod(minutes, 60)
            day, hour = divmod(hours, 24)
            when = f"2026-11-{day + 1:02}T{hour:02}:{minute:02}:{second:02}"
            file.write(f"{when},230.0,1.0,{count / 10:.1f}\n")
    return path


def flood(house: House, lines: int, *, deadline_s: float) -> None:
    """Let the daemon swallow so many lines as fast as it reads, and look for each on the card."""
    recording = make_recording(house.folder / "flood.csv")
    options = ("--csv", recording, "--loop", "--polling-ms", str(POLLING_MS), "--flood")
    with house.board(*options, "--count", str(lines)) as board, house.run_scaled(SPEED) as meter:
        house.wait_accepted(WARM, deadline_s=deadline_s)
        rss_kb, descriptors = meter.rss_kb, meter.descriptors
        said = board.hear(r"(\d+) lines said, (\d+) of them to nobody", deadline_s=deadline_s)
        assert said.groups() == (str(lines), "0")
        house.wait_accepted(lines)
        assert meter.rss_kb - rss_kb <= GROWTH_KB_MAX
        assert meter.descriptors - descriptors <= DESCRIPTORS_MORE_MAX
        assert house.ask().call("Registers")["readings"] == {"accepted": lines, "dropped": {}}
        assert meter.stop() == 0
    assert Stored(house.state).powers_mw == [count % POWERS * 100 for count in range(lines)]
    verdict = house.verify_good()
    assert verdict.records + verdict.open_rows == lines
    assert verdict.blocks > 1


@pytest.mark.timeout(900)
def test_a_hundred_thousand_distinct_lines_through_a_pty_lose_none(tmp_path: Path) -> None:
    house = make_house(tmp_path, polling_ms=POLLING_MS, interval_s=60, commit_s=10)
    flood(house, 100_000, deadline_s=300)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_million_distinct_lines_through_a_pty_lose_none(tmp_path: Path) -> None:
    house = make_house(tmp_path, polling_ms=POLLING_MS, interval_s=60, commit_s=10)
    flood(house, 1_000_000, deadline_s=1000)
