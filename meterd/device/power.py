"""Says whether the board's supply is too weak, as a Raspberry Pi tells it; others tell nothing.

The kernel's driver `raspberrypi-hwmon` asks the firmware every two seconds and shows what it said
as `in0_lcrit_alarm` of a hwmon device called `rpi_volt`. Kernels of Raspberry Pi itself have the
firmware's own flags besides, in `get_throttled`: bit 0 says that it is so now.

A supply that sags sags again, each time a radio or a disk starts. So the alarm stands until it has
held for a while, and costs the account two events for each such stretch, not for each sag.

>>> supply = Supply()
>>> supply.see(low=True, now_ms=0), supply.see(low=False, now_ms=HOLD_MS - 1)
(True, True)
>>> supply.see(low=False, now_ms=HOLD_MS)
False
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

POLL_MS = 10_000  # the flag itself is two seconds old; a board that starves does so for longer
HOLD_MS = 600_000
FLAG_BYTES_MAX = 32
SYS = "METERD_SYS"  # names another folder than /sys, for a machine that has no such flag
HWMON, HWMON_NAME, HWMON_FLAG = "class/hwmon/hwmon*/name", "rpi_volt", "in0_lcrit_alarm"
THROTTLED = "devices/platform/soc/soc:firmware/get_throttled"
LOW_NOW = 1  # bit 0 of `get_throttled`
UNDERVOLTAGE = (
    "the supply's voltage is too low: use the board's own supply and a short, thick cable; "
    "a card that is written to meanwhile may be damaged"
)


class Supply:
    """Whether the alarm stands, by what was read of the flag."""

    def __init__(self) -> None:
        """Begin with a supply that holds."""
        self._low_ms: int | None = None

    def see(self, *, low: bool, now_ms: int) -> bool:
        """Take note of the flag; return whether the alarm stands."""
        if low:
            self._low_ms = now_ms
        elif self._low_ms is not None and now_ms - self._low_ms >= HOLD_MS:
            self._low_ms = None
        return self._low_ms is not None


class Power:
    """The flag of this board, read once in a while."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Find it; where there is none, `low` says that the supply holds."""
        sys_folder = Path(environ.get(SYS) or "/sys")
        self._flag = find_flag(sys_folder)
        self._supply = Supply()
        self._read_ms: int | None = None
        self._stands = False

    def low(self, now_ms: int) -> bool:
        """Say whether the alarm stands; the flag is read every `POLL_MS`."""
        if self._flag is None:
            return False
        if self._read_ms is None or now_ms - self._read_ms >= POLL_MS:
            self._read_ms = now_ms
            self._stands = self._supply.see(low=read_flag(self._flag), now_ms=now_ms)
        return self._stands


def find_flag(sys_folder: Path) -> Path | None:
    """Return the file that tells of low voltage, or None where this machine has none."""
    for name in sorted(sys_folder.glob(HWMON)):
        flag = name.with_name(HWMON_FLAG)
        if _text(name) == HWMON_NAME and flag.exists():
            return flag
    throttled = sys_folder / THROTTLED
    return throttled if throttled.exists() else None


def read_flag(flag: Path) -> bool:
    """Return whether the voltage is low; a flag that cannot be read, or is none, says that not."""
    text = _text(flag)
    try:
        value = int(text, 16 if flag.name == Path(THROTTLED).name else 10)
    except ValueError:
        return False
    return bool(value & LOW_NOW)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FLAG_BYTES_MAX).decode("ascii", "replace").strip()
    except OSError:
        return ""
