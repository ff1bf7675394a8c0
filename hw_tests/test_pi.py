"""The Pi itself: its power, its UART, its watchdog; and that these tests can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hw_tests import pi

if TYPE_CHECKING:
    from pathlib import Path

    from hw_tests.rig import Rig

THROTTLED = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"


def test_the_power_supply_holds(rig: Rig) -> None:
    troubles = pi.read_power(rig.root())
    if troubles is None:
        pytest.skip("no Pi's firmware here: nothing tells of under-voltage")
    assert troubles == [], "take the Pi's own power supply, and a short cable"


def test_no_console_is_on_the_boards_port(rig: Rig) -> None:
    cmdline = (rig.root() / "proc/cmdline").read_text()
    words = pi.console_words(cmdline, rig.bench.port.resolve().name)
    assert words == [], "take them out of cmdline.txt: `meterctl lockdown apply` does"
    assert pi.holders(rig.bench.port) == [], "another program reads the board"


def test_the_hardware_watchdog_runs(rig: Rig) -> None:
    found = pi.read_watchdog(rig.root())
    if found is None:
        pytest.skip("no watchdog here: dtparam=watchdog=on in config.txt (`meterctl lockdown`)")
    state, timeout_s = found
    assert state == "active", "nobody feeds it: RuntimeWatchdogSec= in system.conf"
    assert timeout_s <= pi.WATCHDOG_S_MAX


@pytest.mark.parametrize(
    ("files", "troubles"),
    [
        ({THROTTLED: "0\n"}, []),
        ({THROTTLED: "1\n"}, ["under-voltage now"]),
        ({THROTTLED: "50000\n"}, ["under-voltage since the start", "throttled since the start"]),
        (
            {
                "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
                "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n",
            },
            ["under-voltage since the start"],
        ),
        (
            {
                "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
                "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0\n",
            },
            [],
        ),
        ({"sys/class/hwmon/hwmon0/name": "cpu_thermal\n"}, None),
        ({}, None),
    ],
)
def test_a_pi_says_of_its_power(
    tmp_path: Path, files: dict[str, str], troubles: list[str] | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert pi.read_power(tmp_path) == troubles
