"""A Raspberry Pi's word on its supply, from files like those of its kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.device.power import HOLD_MS, POLL_MS, THROTTLED, Power, Supply, find_flag, read_flag

if TYPE_CHECKING:
    from pathlib import Path


def hwmon(sys_folder: Path, number: int, name: str, flag: str | None = None) -> Path:
    """Make a hwmon device, and its flag if it has one."""
    folder = sys_folder / f"class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    if flag is not None:
        (folder / "in0_lcrit_alarm").write_text(f"{flag}\n")
    return folder / "in0_lcrit_alarm"


def throttled(sys_folder: Path, text: str) -> Path:
    path = sys_folder / THROTTLED
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def power(sys_folder: Path) -> Power:
    return Power({"METERD_SYS": str(sys_folder)})


def test_the_flag_is_that_of_the_supply_among_other_sensors(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "cpu_thermal", "1")
    flag = hwmon(tmp_path, 1, "rpi_volt", "0")
    throttled(tmp_path, "50005\n")
    assert find_flag(tmp_path) == flag


def test_where_there_is_no_driver_the_firmware_is_asked(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "rpi_volt")
    assert find_flag(tmp_path) is None
    assert find_flag(tmp_path / "absent") is None
    flag = throttled(tmp_path, "0\n")
    assert find_flag(tmp_path) == flag


@pytest.mark.parametrize(
    ("text", "low"),
    [
        pytest.param("0\n", False, id="well"),
        pytest.param("1\n", True, id="low now"),
        pytest.param("50005\n", True, id="low and throttled, now and before"),
        pytest.param("50000\n", False, id="only before"),
        pytest.param("0x1\n", True, id="spelt with its base"),
        pytest.param("e0008\n", False, id="too hot"),
        pytest.param("", False, id="empty"),
        pytest.param("yes\n", False, id="a word"),
        pytest.param("\xff" * 99, False, id="noise"),
    ],
)
def test_of_the_firmwares_flags_the_first_counts(tmp_path: Path, text: str, low: bool) -> None:
    assert read_flag(throttled(tmp_path, text)) is low


def test_a_machine_without_a_flag_says_nothing(tmp_path: Path) -> None:
    assert power(tmp_path).low(0) is False


def test_a_flag_that_goes_away_says_nothing(tmp_path: Path) -> None:
    flag = hwmon(tmp_path, 0, "rpi_volt", "1")
    one = power(tmp_path)
    flag.unlink()
    assert one.low(0) is False


def test_the_flag_is_read_every_ten_seconds(tmp_path: Path) -> None:
    flag = hwmon(tmp_path, 0, "rpi_volt", "0")
    one = power(tmp_path)
    assert one.low(0) is False
    flag.write_text("1\n")
    assert one.low(POLL_MS - 1) is False
    assert one.low(POLL_MS) is True


def test_the_alarm_stands_until_the_supply_has_held_for_a_while() -> None:
    supply = Supply()
    assert not supply.see(low=False, now_ms=0)
    stands = [
        supply.see(low=now_ms % 60_000 == 0, now_ms=now_ms) for now_ms in range(0, 10**6, 500)
    ]
    assert all(stands), "each sag is a change of its own"
    assert supply.see(low=False, now_ms=10**6)
    assert not supply.see(low=False, now_ms=10**6 + HOLD_MS)
