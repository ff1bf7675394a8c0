"""Every row of the table of intervals that outside scripts rely on, through a replay."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from tests.accounts import config_text, flag_names, replay_lines
from tests.rig import Rig

if TYPE_CHECKING:
    from pathlib import Path

    from tests.accounts import Account

DAY_S = int(datetime(2026, 3, 2, tzinfo=UTC).timestamp())
POLL_MS = 5000


def s(text: str) -> int:
    """Return the Unix second of a time of the day; hours past 24 are of later days."""
    hours, minutes, *seconds = text.split(":")
    return DAY_S + int(hours) * 3600 + int(minutes) * 60 + (int(seconds[0]) if seconds else 0)


def lines(first: str, last: str, *, boot_ms: int | None = None, shift_ms: int = 0) -> list[str]:
    """Return a reading each 5 s of household time, its wall clock shifted by so much."""
    found = []
    for number, at_s in enumerate(range(s(first), s(last) + 1, POLL_MS // 1000)):
        wall = f"{(at_s * 1000 + shift_ms) / 1000:.3f}"
        power = 1000 + number % 7
        boot = "" if boot_ms is None else f"{boot_ms + number * POLL_MS}\t"
        found.append(f"{wall}\t{boot}11 {power}.0 0.0 0.0 4400.0 0.0 0.0 230.0")
    return found


def play(tmp_path: Path, *parts: list[str]) -> Account:
    every = [line for part in parts for line in part]
    account = replay_lines(every, config_text(polling_ms=POLL_MS), tmp_path / "account")
    assert account.verify().verdict == "good"
    return account


def blocks(account: Account) -> list[tuple[str, str, str]]:
    """Return (start, end, flags) of each block, times as those of the day."""

    def shown(at_s: int) -> str:
        days, second = divmod(at_s - DAY_S, 86_400)
        clock = f"{second // 3600:02}:{second // 60 % 60:02}"
        return (f"{days}d " if days else "") + clock + (f":{second % 60:02}" if second % 60 else "")

    return [(shown(i.start_s), shown(i.end_s), " ".join(i.flags)) for i in account.intervals]


RESTART = ["!restart"]


def test_metering_begins_within_an_interval(tmp_path: Path) -> None:
    found = blocks(play(tmp_path, lines("10:07", "10:30:05")))
    assert found[0] == ("10:00", "10:30", "partial")


def test_a_reading_on_the_boundary_closes_and_opens_and_no_block_is_empty(tmp_path: Path) -> None:
    account = play(tmp_path, lines("10:00", "10:30"))
    assert blocks(account) == [("10:00", "10:30", "")]
    assert account.blocks[0].records == 361


def test_a_hole_is_flagged_and_no_energy_is_invented(tmp_path: Path) -> None:
    account = play(tmp_path, lines("10:00", "10:20"), lines("10:20:40", "10:30"))
    assert blocks(account) == [("10:00", "10:30", "gap")]
    assert account.intervals[0].measured_ms == (1800 - 40) * 1000


def test_a_boundary_between_two_readings_gets_one_of_its_own(tmp_path: Path) -> None:
    account = play(tmp_path, lines("10:00", "10:29:55"), lines("10:30:04", "10:31"))
    assert blocks(account)[0] == ("10:00", "10:30", "")
    assert account.intervals[0].measured_ms == 1_800_000


def restarted(tmp_path: Path, first_after: str, last: str) -> list[tuple[str, str, str]]:
    before = lines("10:00", "10:10")[:-1]
    before.append(f"{s('10:10') + 0.4:.3f}\t11 1000.0 0.0 0.0 4400.0 0.0 0.0 230.0")
    return blocks(play(tmp_path, before, RESTART, lines(first_after, last)))


def test_a_restart_closes_the_stretch_and_the_rest_is_a_gap(tmp_path: Path) -> None:
    assert restarted(tmp_path, "10:12", "10:30") == [
        ("10:00", "10:10:01", "partial"),
        ("10:10:01", "10:30", "gap"),
    ]


@pytest.mark.parametrize(
    ("first", "last", "boundary", "end"),
    [
        pytest.param("12:40", "13:00", "12:30", "13:00", id="hours off"),
        pytest.param("2170:40", "2171:00", "90d 10:30", "90d 11:00", id="90 days off"),
    ],
)
def test_any_absence_is_one_gap_block(
    tmp_path: Path, first: str, last: str, boundary: str, end: str
) -> None:
    assert restarted(tmp_path, first, last) == [
        ("10:00", "10:10:01", "partial"),
        ("10:10:01", boundary, "gap"),
        (boundary, end, "gap"),
    ]


def test_a_calibration_that_is_changed_is_a_record_of_its_own(tmp_path: Path) -> None:
    settings = config_text(interval_s=1800, polling_ms=POLL_MS)
    rig = Rig(tmp_path / "account", settings)
    rig.start(s("10:00") - 4.6)
    rig.rows(121)  # to 10:10:00.4
    rig.stop()
    rig.start(
        s("10:10:05"), text=settings.replace('name = "mains"', 'name = "mains"\nscale = 1.02')
    )
    rig.rows(239)
    rig.commit()
    rig.assert_good()
    before, after = rig.blocks[-2:]
    assert (before.end_s, flag_names(before.flags)) == (s("10:10:01"), ("partial",))
    assert (after.start_s, after.end_s) == (s("10:10:01"), s("10:30"))
    old, new = (event.bytes_of("record") for event in rig.told("parameters"))
    assert [before.parameters, after.parameters] == [sha256(old).digest(), sha256(new).digest()]
    changed = rig.told("parameters")[1]
    assert dict(changed.details).get("clamp.1.scale new") == "1.02"


def good_clock(tmp_path: Path, first: str, last: str) -> dict[str, int]:
    text = config_text(polling_ms=POLL_MS)
    return replay_lines(lines(first, last, boot_ms=1000), text, tmp_path / "good").registers


def test_a_boot_at_1970_is_cut_once_the_clock_is_set(tmp_path: Path) -> None:
    whole = lines("10:00", "10:40", boot_ms=1000)
    unset = [line.split("\t", 1) for line in whole]
    early = [f"{(int(rest.split(chr(9))[0])) / 1000:.3f}\t{rest}" for _, rest in unset[:240]]
    account = play(tmp_path, early, whole[240:])
    assert blocks(account)[0] == ("10:00", "10:30", "")
    assert account.intervals[0].status == "I"
    assert account.registers == good_clock(tmp_path, "10:00", "10:40")


def test_a_step_of_an_hour_closes_the_stretch_and_a_gap_block_covers_the_jump(
    tmp_path: Path,
) -> None:
    whole = lines("10:00", "10:40", boot_ms=1000)
    stepped = lines("10:00", "10:40", boot_ms=1000, shift_ms=3_600_000)
    account = play(tmp_path, whole[:121], stepped[121:])
    assert blocks(account)[:3] == [
        ("10:00", "10:10", "clock stepped partial"),
        ("10:10", "11:00", "gap"),
        ("11:00", "11:30", "gap"),
    ]
    assert account.registers == good_clock(tmp_path, "10:00", "10:40")


def test_a_step_of_a_year_waits_ten_minutes(tmp_path: Path) -> None:
    whole = lines("10:00", "10:40", boot_ms=1000)
    year = lines("10:00", "10:40", boot_ms=1000, shift_ms=365 * 86_400_000)
    account = play(tmp_path, whole[:121], year[121:])
    assert blocks(account)[0] == ("10:00", "10:10", "clock stepped partial")
    assert blocks(account)[1] == ("10:10", "365d 10:00", "gap")
    assert account.registers == good_clock(tmp_path, "10:00", "10:40")


def test_a_step_of_a_year_that_goes_back_never_happened(tmp_path: Path) -> None:
    whole = lines("10:00", "10:40", boot_ms=1000)
    year = lines("10:00", "10:40", boot_ms=1000, shift_ms=365 * 86_400_000)
    account = play(tmp_path, whole[:121], year[121:181], whole[181:])
    assert blocks(account)[0] == ("10:00", "10:30", "")
    assert {"clock_held", "clock_went_back"} <= set(account.kinds_of_events)
    assert account.registers == good_clock(tmp_path, "10:00", "10:40")


def test_a_step_back_leaves_the_interval_open(tmp_path: Path) -> None:
    whole = lines("10:00", "11:40", boot_ms=1000)
    back = lines("10:00", "11:40", boot_ms=1000, shift_ms=-3_600_000)
    account = play(tmp_path, whole[:121], back[121:])
    assert blocks(account)[0] == ("10:00", "10:30", "clock stepped")
    assert account.intervals[0].measured_ms == 5_400_000
    assert account.registers == good_clock(tmp_path, "10:00", "11:40")


def test_daylight_saving_moves_nothing(tmp_path: Path) -> None:
    changed = int(datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()) - DAY_S  # 02:00 local, Paris
    hour = changed // 3600
    account = play(tmp_path, lines(f"{hour - 1}:00", f"{hour + 1}:00"))
    assert [flags for _, _, flags in blocks(account)] == [""] * 4
    assert all(interval.measured_ms == 1_800_000 for interval in account.intervals)


def test_the_worked_capture(tmp_path: Path) -> None:
    capture = [
        "1170633600\t11 374.0 0.0 0.0 1600.0 0.0 0.0 243.87",
        "1170633660\t11 356.0 0.0 0.0 1600.0 0.0 0.0 243.96",
        r"1170633720" + "\t" + r"# RPICT3 \xa0\x00",
        "1170633780\t11 346.0 0.0 -0.0 1600.0 0.0 0.0 244.30",
    ]
    account = replay_lines(capture, config_text(polling_ms=60_000), tmp_path / "account")
    assert account.registers["1-0:1.8.0"] == 64_020_000_000
    assert account.registers["1-0:2.8.0"] == 0
    assert (account.accepted, account.dropped, account.gaps) == (3, {"banner": 1}, 0)
    verdict = account.verify()
    assert (verdict.verdict, verdict.blocks, verdict.records) == ("good", 1, 3)
    assert (verdict.first_bad, verdict.tail) == (None, None)
