"""What a Pi's own files say of power, UART and watchdog, and whether that will do.

>>> power_troubles("50005")
['under-voltage now', 'throttled now', 'under-voltage since the start', 'throttled since the start']
>>> console_words("console=ttyAMA0,115200 root=/dev/mmcblk0p2 console=tty1", "ttyAMA0")
['console=ttyAMA0,115200']
>>> console_words("console=serial0,115200 root=/dev/mmcblk0p2", "ttyAMA0")
['console=serial0,115200']
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

THROTTLED = {  # bits of the firmware's word, as `vcgencmd get_throttled` prints it
    0: "under-voltage now",
    2: "throttled now",
    16: "under-voltage since the start",
    18: "throttled since the start",
}
WATCHDOG_S_MAX = 60  # a hang longer than this is a hole in the samples
SERIAL_ALIASES = ("serial0", "serial1")  # the firmware's names for whichever UART it chose


def power_troubles(word: str) -> list[str]:
    """Return what a word of the firmware says is wrong with the power; it is in hex."""
    bits = int(word, 16)
    return [said for bit, said in THROTTLED.items() if bits >> bit & 1]


def read_power(root: Path) -> list[str] | None:
    """Return what is wrong with the power; None where nothing on this machine tells."""
    for path in root.glob("sys/devices/platform/soc*/soc*:firmware/get_throttled"):
        return power_troubles(path.read_text().strip())
    for name in root.glob("sys/class/hwmon/hwmon*/name"):
        if name.read_text().strip() == "rpi_volt":
            low = (name.parent / "in0_lcrit_alarm").read_text().strip() != "0"
            return ["under-voltage since the start"] if low else []
    return None


def console_words(cmdline: str, port: str) -> list[str]:
    """Return the words of the kernel's command line that put a console on a port.

    Args:
        cmdline: As /proc/cmdline has it.
        port: The device's name, `ttyAMA0`.
    """
    names = (port, *SERIAL_ALIASES)
    return [
        word
        for word in cmdline.split()
        if word.partition("=")[0] in {"console", "kgdboc", "earlycon"}
        and any(name in word.partition("=")[2].split(",") for name in names)
    ]


def holders(port: Path) -> list[str]:
    """Return the programs that have a port open now, as far as this user may see."""
    found = set()
    device = port.resolve()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if Path(os.readlink(link)) == device:  # noqa: PTH115 - followed once, and no further
                found.add((link.parents[1] / "comm").read_text().strip())
    return sorted(found)


def read_watchdog(root: Path) -> tuple[str, int] | None:
    """Return the hardware watchdog's state and time-out in seconds; None where there is none."""
    folder = root / "sys/class/watchdog/watchdog0"
    if not (folder / "state").exists():
        return None
    return (folder / "state").read_text().strip(), int((folder / "timeout").read_text())
