"""Looks at the computer for `meterctl doctor`: its firmware, its kernel, its system, its port.

A shell without rules: what it all means is said in `doctor_checks`. Paths are taken below a root,
and programs are asked through a function, so that a test shows it any computer.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.ctl.doctor_facts import Memory, Port, Unit, Unseen, Verdict
from meterd.device.port import CANDIDATES, PTY_MAJORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ASK_S_MAX = 10  # systemctl answers at once; a system that is stopping may hold it
UNITS = ("meterd.service", "meterd-peer.service", "run-meterd.line.mount")
_BOOT_FOLDERS = ("boot/firmware", "boot")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_TIMESPAN_S = {"min": 60, "s": 1, "h": 3600, "ms": 0}
_CONSOLE_ALIASES = {"ttyAMA0": {"serial0", "ttyAMA0"}, "ttyS0": {"serial0", "serial1", "ttyS0"}}


def ask(*command: str) -> str | None:
    """Return what a program says; None where it is not installed, fails, or does not end."""
    program = shutil.which(command[0], path=_PATH)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=ASK_S_MAX,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


class Machine:
    """The computer, below a root.

    Attributes:
        root: `/`, or the files of a test.
    """

    def __init__(
        self, root: Path = Path("/"), asked: Callable[..., str | None] | None = None
    ) -> None:
        """Look below `root`, and ask programs by `asked`."""
        self.root = root
        self._ask = asked or ask

    def text(self, path: str) -> str | None:
        """Return a small file's text without blanks around it; None where there is none to read."""
        try:
            return (self.root / path).read_bytes().replace(b"\0", b"").decode("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None

    # --- the computer -----------------------------------------------------------------------

    @property
    def model(self) -> str:
        """What the board calls itself; empty where it has no device tree."""
        return self.text("proc/device-tree/model") or ""

    @property
    def is_pi(self) -> bool:
        """Whether it is a Raspberry Pi."""
        return "Raspberry Pi" in self.model

    def config_txt(self) -> str | Unseen | None:
        """Return the firmware's settings."""
        for folder in _BOOT_FOLDERS:
            found = self.text(f"{folder}/config.txt")
            if found is not None:
                return found
        return Unseen("there is no config.txt to be read") if self.is_pi else None

    def throttled(self) -> int | Unseen | None:
        """Return the firmware's bits of supply and throttling."""
        if not self.is_pi:
            return None
        told = self.text("sys/devices/platform/soc/soc:firmware/get_throttled")
        if told is None:
            told = self._ask("vcgencmd", "get_throttled")
        found = re.search(r"(?:0x)?([0-9a-fA-F]+)\s*$", told or "")
        return int(found[1], 16) if found else Unseen("the firmware does not say it to this user")

    def low_voltage(self) -> bool | None:
        """Return whether the kernel's alarm of the supply stands; None where it has none."""
        for folder in sorted((self.root / "sys/class/hwmon").glob("*")):
            if self.text(f"sys/class/hwmon/{folder.name}/name") == "rpi_volt":
                return self.text(f"sys/class/hwmon/{folder.name}/in0_lcrit_alarm") == "1"
        return None

    def celsius(self) -> int | None:
        """Return the processor's temperature; None where nothing measures it."""
        told = self.text("sys/class/thermal/thermal_zone0/temp") or ""
        return int(told) // 1000 if told.lstrip("-").isdecimal() else None

    def bits(self) -> int:
        """Return of how many bits the userland is."""
        return struct.calcsize("P") * 8

    def memory(self) -> Memory | Unseen:
        """Return how much memory there is."""
        found = dict(
            re.findall(
                r"^(MemTotal|MemAvailable): +([0-9]+) kB",
                self.text("proc/meminfo") or "",
                re.MULTILINE,
            )
        )
        if len(found) != 2:  # noqa: PLR2004 - the two of them
            return Unseen("the kernel does not say it")
        controllers = self.text("sys/fs/cgroup/cgroup.controllers")
        bounded = None if controllers is None else "memory" in controllers.split()
        return Memory(1024 * int(found["MemTotal"]), 1024 * int(found["MemAvailable"]), bounded)

    def wear(self, device: int) -> tuple[int, int] | None:
        """Return what a card with the device number says of its life; None for most cards."""
        link = self.root / f"sys/dev/block/{os.major(device)}:{os.minor(device)}"
        try:
            here = link.resolve(strict=True)
        except OSError:
            return None
        for folder in (here, here.parent):
            try:
                life = (folder / "device/life_time").read_text().split()
                end = (folder / "device/pre_eol_info").read_text().strip()
                return max(int(tenth, 16) for tenth in life), int(end, 16)
            except (OSError, ValueError):
                continue
        return None

    # --- its system -------------------------------------------------------------------------

    @property
    def has_systemd(self) -> bool:
        """Whether systemd runs here."""
        return (self.root / "run/systemd/system").is_dir()

    def units(self, *, peer: bool) -> tuple[Unit, ...] | Unseen | None:
        """Return how our units are; `peer` says whether the peer process is needed."""
        if not self.has_systemd:
            return None
        listed = self._ask("systemctl", "list-unit-files", "--plain", "--no-legend", "meterd*")
        others = tuple(_beside(listed or ""))
        told = self._ask(
            "systemctl",
            "show",
            "--property=Id,ActiveState,UnitFileState,NRestarts",
            *UNITS,
            *others,
        )
        if told is None:
            return Unseen("systemd does not answer")
        return tuple(_units_in(told, peer=peer))

    def journal(self) -> Verdict | None:
        """Return whether the meter's own journal is there."""
        if not self.has_systemd:
            return None
        if (self.root / "run/systemd/journal.meterd").is_dir():
            return Verdict(good=True, told="the meter's own namespace is there")
        hint = "it comes with the unit: LogNamespace=meterd; else see `journalctl -u meterd`"
        return Verdict(good=False, told="there is no namespace meterd", hint=hint)

    def watchdog(self) -> tuple[bool, int] | Unseen | None:
        """Return whether there is a hardware watchdog, and after how many seconds it bites."""
        there = (self.root / "dev/watchdog0").exists()
        if not self.has_systemd or not (there or self.is_pi):
            return None
        told = self._ask("systemctl", "show", "--property=RuntimeWatchdogUSec", "--value")
        return Unseen("systemd does not answer") if told is None else (there, seconds_in(told))

    # --- the port ---------------------------------------------------------------------------

    def port(self, path: str) -> Port:
        """Return how the board's port is."""
        device = self.root / path.removeprefix("/")
        try:
            found = device.stat()
        except OSError:
            return Port(path, there=False, others=tuple(self._ports(path)))
        name = Path(os.path.realpath(device)).name
        names = {name, Path(path).name} | _CONSOLE_ALIASES.get(name, set())
        holders, whole = self._holders(device)
        words = (self.text("proc/cmdline") or "").split()
        return Port(
            path,
            there=stat.S_ISCHR(found.st_mode),
            others=tuple(self._ports(path)),
            usable=os.access(device, os.R_OK | os.W_OK),
            mode=f"{stat.filemode(found.st_mode)} {_owner(found)}",
            holders=holders,
            holders_whole=whole,
            console=tuple(
                word
                for word in words
                if word.startswith("console=") and word[8:].partition(",")[0] in names
            ),
            gettys=tuple(self._gettys(names)),
        )

    def _ports(self, path: str) -> Iterator[str]:
        for pattern in CANDIDATES:
            for found in sorted((self.root / "dev").glob(pattern)):
                if f"/dev/{found.name}" != path:
                    yield f"/dev/{found.name}"

    def _gettys(self, names: set[str]) -> Iterator[str]:
        told = self._ask(
            *("systemctl", "list-units", "--plain", "--no-legend", "--state=active"), "*getty@*"
        )
        for line in (told or "").splitlines():
            unit = line.split()[0] if line.split() else ""
            if unit.partition("@")[2].removesuffix(".service") in names:
                yield unit

    def _holders(self, device: Path) -> tuple[tuple[str, ...], bool]:
        """Return who has a device open but a meter, and whether all processes could be seen."""
        wanted, whole = _device_of(device), True
        found: list[str] = []
        for process in sorted((self.root / "proc").glob("[0-9]*")):
            try:
                links = [
                    link
                    for link in (process / "fd").iterdir()
                    if str(link.readlink()).startswith("/dev/")
                ]
                held = any(_device_of(link) == wanted for link in links)
            except PermissionError:
                whole = False
                continue
            except OSError:  # it has ended meanwhile
                continue
            if held and not self._meters(process.name):
                name = self.text(f"proc/{process.name}/comm") or "a program"
                found.append(f"{name} ({process.name})")
        return tuple(found), whole

    def _meters(self, pid: str) -> bool:
        """Return whether a process is this doctor's own, or `meterd run`."""
        if pid == str(os.getpid()):
            return True
        try:
            words = (self.root / f"proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return b"run" in words and any(
            word == b"meterd" or word.endswith(b"/meterd") for word in words
        )


def _device_of(path: Path) -> tuple[int, ...]:
    """Return what tells a device from all others.

    Not its name: each container has a /dev/pts/0 of its own, with the same number. And of a real
    port not the file either: a unit may have it in a /dev of its own.
    """
    found = path.stat()
    if os.major(found.st_rdev) in PTY_MAJORS:
        return found.st_rdev, found.st_dev, found.st_ino
    return (found.st_rdev,)


def _beside(listed: str) -> Iterator[str]:
    """Yield our units besides `UNITS` that are to run by themselves: not those a timer starts."""
    for line in listed.splitlines():
        name, *states = line.split() or [""]
        if name not in UNITS and (
            name.endswith(".timer") or states[:1] in (["enabled"], ["disabled"])
        ):
            yield name


def _units_in(told: str, *, peer: bool) -> Iterator[Unit]:
    for block in told.strip().split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = fields.get("Id", "")
        yield Unit(
            name=name,
            active=fields.get("ActiveState", ""),
            enabled=fields.get("UnitFileState", ""),
            restarts=int(fields.get("NRestarts") or 0),
            needed=peer if name == "meterd-peer.service" else name in UNITS,
        )


def seconds_in(timespan: str) -> int:
    """Return the seconds of a time span as systemctl shows it; 0 for none.

    >>> seconds_in("1min 30s"), seconds_in("15s"), seconds_in("infinity"), seconds_in("0")
    (90, 15, 0, 0)
    """
    return sum(
        int(number) * _TIMESPAN_S[unit]
        for number, unit in re.findall(r"([0-9]+)(min|ms|s|h)\b", timespan)
    )


def _owner(found: os.stat_result) -> str:
    import grp
    import pwd

    try:
        user = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        user = str(found.st_uid)
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return f"{user}:{group}"
