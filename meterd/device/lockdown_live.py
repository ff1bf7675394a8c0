"""What is known of a device besides its files, and what has to be told to a system that runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.device import lockdown_text as text
from meterd.device.lockdown_device import Content, Facts, Gone, Link, Session, UsbDevice
from meterd.errors import AbsentError, StorageError
from meterd.software import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from meterd.device.lockdown_device import Item
    from meterd.device.lockdown_files import DeviceTree

SETTINGS = "/etc/meterd/meterd.toml"
TELLABLE = frozenset({"udev", "systemd-resolved.service", "usbguard.service", "ssh.service"})
COMMAND_S_MAX = 90.0  # a unit has 90 s to stop before systemd ends it
_PROGRAMS = {"nft": "nftables", "sshd": "openssh-server", "usbguard-daemon": "usbguard"}
_SBIN = ("/usr/sbin", "/sbin", "/usr/bin")
_TTY_MAJOR, _TTYS_FIRST, _TTYAMA_MAJOR, _TTYAMA_FIRST = 4, 64, 204, 64  # the kernel's devices.txt
_USB_TTY_MAJORS = {188: "ttyUSB", 166: "ttyACM"}
_CONSOLE = (5, 1)
_PARENTS_MAX = 64


def share_folder() -> Path:
    """Return the folder that holds `systemd/` and `config/`: beside the modules, or the source's.

    Raises:
        AbsentError: Neither is there.
    """
    for folder in (PACKAGE / "share", PACKAGE.parent):
        if (folder / "systemd" / "meterd.service").is_file() and (folder / "config").is_dir():
            return folder
    raise AbsentError(
        f"the files that a lockdown installs are not in {PACKAGE / 'share'}",
        hint="install meterd from its wheel, or run it from its source tree",
    )


def read_share(folder: Path) -> dict[str, bytes]:
    """Return what meterd brings, by path; what is written for people alone is left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in ("systemd", "config")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".md"
    }


def facts_of(tree: DeviceTree, share: Path) -> Facts:
    """Return what is known of a device; of one that does not run here, its files alone tell.

    Raises:
        StorageError: Its settings cannot be read.
    """
    live = is_live(tree)
    settings = _settings(tree)
    port = str(_table(settings, "board").get("port", ""))
    status = tree.where("/etc/x").parent.stat()
    return Facts(
        share=read_share(share),
        programs=frozenset(
            program
            for program in _PROGRAMS
            if any(not isinstance(tree.entry(f"{folder}/{program}"), Gone) for folder in _SBIN)
        ),
        broker_ports=tuple(text.settings_ports(_table(settings, "network"))),
        anchor_port=text.url_port(_table(settings, "anchor").get("url", "")),
        board_port=port,
        own_usb=tuple(own_usb(Path("/sys"), port)) if live else (),
        wireless=not live or uses_wireless(Path("/sys"), tree),
        owner=(status.st_uid, status.st_gid),
    )


def is_live(tree: DeviceTree) -> bool:
    """Return whether the device is the system that runs this."""
    return tree.root.resolve() == Path("/")


def _settings(tree: DeviceTree) -> dict[str, Any]:
    found = tree.entry(SETTINGS)
    if not isinstance(found, Content):
        return {}
    try:
        return tomllib.loads(found.data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StorageError(
            f"{SETTINGS} cannot be read: {error}", hint="see `meterctl config check`"
        ) from error


def _table(settings: dict[str, Any], name: str) -> dict[str, Any]:
    table = settings.get(name)
    return table if isinstance(table, dict) else {}


def own_usb(sys: Path, board_port: str) -> list[UsbDevice]:
    """Return what on USB carries the system's disk, a network that is up, or the board's port."""
    carried: list[tuple[Path, str]] = []
    with suppress(OSError):
        disk = os.stat("/").st_dev  # noqa: PTH116 - the device alone
        carried.append((sys / f"dev/block/{os.major(disk)}:{os.minor(disk)}", "disk"))
    for link in sorted((sys / "class/net").glob("*")):
        with suppress(OSError):
            if (link / "operstate").read_text().strip() in {"up", "unknown"}:
                carried.append((link / "device", "network"))
    with suppress(OSError):
        carried.append((sys / "class/tty" / Path(board_port).resolve().name / "device", "board"))
    found: dict[tuple[str, str], UsbDevice] = {}
    for path, purpose in carried:
        for vendor, product in _usb_above(path, sys):
            found.setdefault((vendor, product), UsbDevice(vendor, product, purpose))
    return list(found.values())


def _usb_above(path: Path, sys: Path) -> Iterable[tuple[str, str]]:
    """Yield the devices of USB that a device hangs on: itself, hubs, not the controller."""
    if not path.exists():
        return
    here = path.resolve()
    while here not in (sys, here.parent):
        with suppress(OSError):
            vendor = (here / "idVendor").read_text().strip()
            product = (here / "idProduct").read_text().strip()
            if re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", f"{vendor}:{product}") and vendor != "1d6b":
                yield vendor, product
        here = here.parent


def uses_wireless(sys: Path, tree: DeviceTree) -> bool:
    """Return whether a wireless network is up, or set up."""
    for link in (sys / "class/net").glob("*"):
        with suppress(OSError):
            radio = (link / "wireless").exists() or (link / "phy80211").exists()
            if radio and (link / "operstate").read_text().strip() == "up":
                return True
    places = (
        ("/etc/NetworkManager/system-connections", "type=wifi"),
        ("/run/NetworkManager/system-connections", "type=wifi"),
        ("/etc/wpa_supplicant", "network={"),
        ("/etc/netplan", "wifis:"),
        ("/etc/network/interfaces.d", "wpa-"),
        ("/etc/network", "wpa-"),
        ("/var/lib/iwd", "Passphrase="),
    )
    for folder, word in places:
        for name in tree.names(folder):
            found = tree.entry(f"{folder}/{name}")
            if isinstance(found, Content) and word in found.text.replace(" ", ""):
                return True
    return False


def session_of(proc: Path, pid: int) -> Session:
    """Return how whoever started a process has come in; `sudo` hides it, its parents do not."""
    tty, ssh_port = "", None
    for _ in range(_PARENTS_MAX):
        try:
            fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
            environment = (proc / str(pid) / "environ").read_bytes()
        except OSError:
            break
        name = tty_name(int(fields[4]))
        if Session(name).at_console:
            tty = name
        for variable in environment.split(b"\0"):
            key, _, value = variable.partition(b"=")
            words = value.decode(errors="replace").split()
            if key == b"SSH_CONNECTION" and len(words) == 4 and words[3].isdecimal():  # noqa: PLR2004
                ssh_port = int(words[3])
        pid = int(fields[1])
        if pid <= 1:
            break
    return Session(tty, ssh_port)


def tty_name(number: int) -> str:
    """Return the name of a terminal by its device number, if it is one of a console."""
    major, minor = os.major(number), os.minor(number)
    if (major, minor) == _CONSOLE:
        return "console"
    if major == _TTY_MAJOR and minor < _TTYS_FIRST:
        return f"tty{minor}"
    if major == _TTY_MAJOR:
        return f"ttyS{minor - _TTYS_FIRST}"
    if major == _TTYAMA_MAJOR and minor >= _TTYAMA_FIRST:
        return f"ttyAMA{minor - _TTYAMA_FIRST}"
    return f"{_USB_TTY_MAJORS[major]}{minor}" if major in _USB_TTY_MAJORS else ""


class Told(NamedTuple):
    """A command that was given to the running system.

    Attributes:
        command: As a shell would have it.
        said: What it said where it failed; empty where it did not.
    """

    command: str
    said: str


def proofs(paths: Collection[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return what judges the new files, with the path that is put back where it refuses."""
    found: list[tuple[str, tuple[str, ...]]] = []
    if "/etc/nftables.conf" in paths:
        found.append(("/etc/nftables.conf", ("nft", "-c", "-f", "/etc/nftables.conf")))
    ssh = ("/etc/ssh/sshd_config.d/10-meterd.conf", "/etc/ssh/sshd_config")
    return found + [(path, ("sshd", "-t")) for path in ssh if path in paths]


def present() -> frozenset[str]:
    """Return whom of `TELLABLE` the running system has; a container has neither udev nor USB."""
    folders = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
    found = {unit for unit in TELLABLE if any((folder / unit).exists() for folder in folders)}
    if not Path("/sys/bus/usb").exists():
        found.discard("usbguard.service")
    return frozenset(found | ({"udev"} if Path("/run/udev/control").exists() else set()))


def commands(changed: Collection[Item], there: Collection[str]) -> list[tuple[str, ...]]:
    """Return what has to be told to a running system once these paths have changed.

    Args:
        changed: What has changed.
        there: Whom of `TELLABLE` it has.
    """
    paths = {item.path for item in changed}
    masked = [
        item.path.rpartition("/")[2]
        for item in changed
        if item.wanted == Link("/dev/null") and "/etc/systemd/system/" in item.path
    ]
    enabled = {
        item.wanted.target.rpartition("/")[2]
        for item in changed
        if isinstance(item.wanted, Link) and item.path.startswith("/etc/systemd/system/")
    } - {"null"}
    found: list[tuple[str, ...]] = []
    if any(path.startswith(("/etc/systemd/", "/etc/systemd/system.conf.d")) for path in paths):
        found.append(("systemctl", "daemon-reload"))
    if "udev" in there and any(path.startswith("/etc/udev/") for path in paths):
        found.append(("udevadm", "control", "--reload"))
        found.append(
            (
                *("udevadm", "trigger", "--action=change"),
                *("--subsystem-match=tty", "--subsystem-match=gpio"),
            )
        )
    if any(path.startswith("/etc/sysctl.d/") for path in paths):
        found.append(("systemctl", "restart", "systemd-sysctl.service"))
    resolved = any(path.startswith("/etc/systemd/resolved.conf.d/") for path in paths)
    if resolved and "systemd-resolved.service" in there:
        found.append(("systemctl", "try-restart", "systemd-resolved.service"))
    if "/etc/nftables.conf" in paths or "nftables.service" in enabled:
        found.append(("nft", "-f", "/etc/nftables.conf"))
    if masked:
        patterns = [unit.replace("@.", "@*.") for unit in masked]
        found.append(("systemctl", "stop", *patterns))
    if "usbguard.service" in there and any(p.startswith("/etc/usbguard/") for p in paths):
        found.append(("systemctl", "restart", "usbguard.service"))
    if any(path.startswith("/etc/ssh/") for path in paths) or "ssh.service" in enabled:
        found.append(("systemctl", "reload-or-restart", "ssh.service"))
    mounts = sorted(unit for unit in enabled if unit.endswith(".mount"))
    if mounts:
        found.append(("systemctl", "start", *mounts))
    return found


def commands_first(gone: Collection[str]) -> list[tuple[str, ...]]:
    """Return what a running system is told before these paths go: to end what they started."""
    folder = "/etc/systemd/system/"
    units = {path.removeprefix(folder) for path in gone if path.startswith(folder)}
    ours = sorted(u for u in units if u.startswith(("meterd", "run-meterd")) and "/" not in u)
    return [("systemctl", "stop", *ours)] if ours else []


def commands_back(paths: Collection[str], there: Collection[str]) -> list[tuple[str, ...]]:
    """Return what has to be told to a running system once these paths are as they were."""
    found: list[tuple[str, ...]] = []
    if "/etc/nftables.conf" in paths:
        drop = "add table inet meterd; delete table inet meterd"
        found.append(("nft", drop))
    if any(path.startswith("/etc/systemd/") for path in paths):
        found.append(("systemctl", "daemon-reload"))
        if "systemd-resolved.service" in there:
            found.append(("systemctl", "try-restart", "systemd-resolved.service"))
    if "udev" in there and any(path.startswith("/etc/udev/") for path in paths):
        found.append(("udevadm", "control", "--reload"))
    if "usbguard.service" in there and any(p.startswith("/etc/usbguard/") for p in paths):
        found.append(("systemctl", "try-restart", "usbguard.service"))
    if "ssh.service" in there and any(path.startswith("/etc/ssh/") for path in paths):
        found.append(("systemctl", "try-reload-or-restart", "ssh.service"))
    return found


def tell(command: tuple[str, ...]) -> Told:
    """Give a command to the running system."""
    shown = " ".join(command)
    program = shutil.which(command[0], path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        return Told(shown, f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_S_MAX,
        )
    except subprocess.TimeoutExpired:
        return Told(shown, f"no end within {COMMAND_S_MAX:g} s")
    said = done.stdout.decode(errors="replace").strip() or f"status {done.returncode}"
    return Told(shown, said if done.returncode else "")


def consoles_open() -> str:
    """Return the names of the logins that wait at a console."""
    names = ("getty@*", "serial-getty@*", "console-getty*", "container-getty@*", "autovt@*")
    said = _ask("systemctl", "list-units", "--plain", "--no-legend", "--state=active", *names)
    return " ".join(line.split()[0] for line in said.splitlines() if line.split())


def firewall_loaded() -> bool:
    """Return whether the kernel drops what our table does not name."""
    chains = [_ask("nft", "list", "chain", "inet", "meterd", name) for name in ("input", "output")]
    return all("policy drop" in chain for chain in chains)


def _ask(*command: str) -> str:
    program = shutil.which(command[0], path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        return ""
    done = subprocess.run([program, *command[1:]], check=False, capture_output=True, text=True)
    return done.stdout if not done.returncode else ""


def listening() -> list[text.Socket]:
    """Return what listens on the running system.

    Raises:
        AbsentError: There is no program to ask.
        StorageError: It failed.
    """
    program = shutil.which("ss", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise AbsentError("`ss` is not installed", hint="apt-get install iproute2")
    done = subprocess.run([program, "-H", "-lntup"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise StorageError(f"`ss -lntup` ended with {done.returncode}: {done.stderr.strip()[:200]}")
    return text.open_sockets(done.stdout)
