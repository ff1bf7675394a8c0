"""A device that is locked down, in a booted container, with a neighbour on its network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Self

import pytest

from meterd.device import lockdown_text as text
from meterd.device.lockdown_device import Content, Facts
from meterd.device.lockdown_files import ACCOUNT_FILES, KEPT, DeviceTree
from meterd.device.lockdown_live import read_share
from meterd.device.lockdown_way_in import CA_FILE, ssh_file
from tests.conftest import ROOT
from tests.container.build import BASE, VENV, install
from tests.container.device import ETC, SETTINGS, UNITS, wheel
from tests.container.machine import Machine, Tree
from tests.device.test_lockdown import CA, CMDLINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from meterd.device.lockdown_device import Entry

pytestmark = pytest.mark.timeout(600)  # whichever comes first installs, boots, and boots again

DEVICE4, DEVICE6 = "10.77.0.1", "fd77::1"
NEIGHBOUR = ("10.77.0.2", "10.77.0.3", "10.77.0.4")
NEIGHBOUR6 = ("fd77::2", "fd77:0:0:1::2")
SSH, BROKER, OTHER = 22, 8883, 8884
TIMED = tuple(
    f"meterd-{name}.{kind}"
    for name in ("prune", "check", "anchor")
    for kind in ("service", "timer")
)
BURST = 10  # new connections of one source that the firewall lets in at once
WAIT_S = 1.0  # a packet that is dropped has no other sign
PASSWORD = "pi:$y$j9T$c29tZXNhbHQ$hash:20000:0:99999:7:::\n"

CONNECT = """
import socket, sys
source, host, port, wait_s, times = sys.argv[1:]
for _ in range(int(times)):
    try:
        own = (source, 0) if source else None
        with socket.create_connection((host, int(port)), float(wait_s), own):
            print("open")
    except TimeoutError:
        print("dropped")
    except OSError as error:
        print(error.strerror)
"""
LISTEN = """
import signal, socket, sys
listening = [socket.create_server(("::", int(port)), family=socket.AF_INET6,
                                  dualstack_ipv6=True, backlog=64) for port in sys.argv[1:]]
print("ready", flush=True)
signal.pause()
"""
HELD = """
import pathlib, socket, time
with socket.create_server(("", 22)) as server:
    pathlib.Path("/run/held-ready").touch()
    session, _ = server.accept()
    while not pathlib.Path("/run/held-go").exists():
        time.sleep(0.02)
    session.sendall(b"still here")
    session.recv(1)
"""


class Neighbour:
    """A network namespace of the host, joined to the device's network by a cable."""

    def __init__(self, machine: Machine) -> None:
        self.name = f"meterd-{os.getpid()}"
        self._machine = machine
        self._listening: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        host("ip", "netns", "add", self.name)
        inside = self._machine._init
        self.ip("link", "set", "lo", "up")
        host(
            *("ip", "-n", self.name, "link", "add", "cable", "type", "veth"),
            *("peer", "name", "eth0", "netns", inside),
        )
        self.ip("link", "set", "cable", "up")
        for address in NEIGHBOUR:
            self.ip("address", "add", f"{address}/24", "dev", "cable")
        for address in NEIGHBOUR6:
            self.ip("address", "add", f"{address}/48", "dev", "cable", "nodad")
        self._machine.run("ip", "address", "add", f"{DEVICE4}/24", "dev", "eth0")
        self._machine.run("ip", "address", "add", f"{DEVICE6}/48", "dev", "eth0", "nodad")
        self._machine.run("ip", "link", "set", "eth0", "up")
        self._listening = subprocess.Popen(
            [*self.within, LISTEN, str(BROKER), str(OTHER), "53"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._listening.stdout is not None
        assert self._listening.stdout.readline() == "ready\n"
        return self

    @property
    def within(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name, sys.executable, "-c")

    def ip(self, *command: str) -> None:
        host("ip", "-n", self.name, *command)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._listening is not None:
            self._listening.terminate()
            self._listening.communicate()
        host("ip", "netns", "del", self.name)

    def connect(self, port: int, *, source: str = "", to: str = DEVICE4) -> str:
        """Return what comes of a connection to the device."""
        [came] = self.connect_often(1, port, source=source, to=to)
        return came

    def connect_often(
        self, times: int, port: int, *, source: str = "", to: str = DEVICE4
    ) -> list[str]:
        """Return what comes of connections to the device, one behind the other."""
        arguments = (source, to, str(port), str(WAIT_S), str(times))
        return host(*self.within, CONNECT, *arguments).splitlines()


def host(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def reach(machine: Machine, user: str, port: int, *, to: str = NEIGHBOUR[0]) -> str:
    """Return what comes of a connection of a user of the device to the neighbour."""
    as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
    if user.startswith("meterd-"):
        as_user = ("setpriv", f"--reuid={user}", "--regid=meterd", "--clear-groups")
    program = ("python3", "-c", CONNECT, "", to, str(port), str(WAIT_S), "1")
    return machine.run(*as_user, *program).strip()


def asked(machine: Machine, command: str) -> dict[str, list[dict[str, object]]]:
    """Return what a command answers; notes come before it."""
    said = machine.run("meterctl", "lockdown", command, "--json", check=False)
    found: dict[str, list[dict[str, object]]] = json.loads(said.splitlines()[-1])
    return found


def paths_in(items: list[dict[str, object]]) -> list[str]:
    return [str(item["path"]) for item in items]


@pytest.fixture(scope="module")
def flashed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """A device as it is flashed: consoles, passwords, an SSH that starts, and meterd installed."""
    folder = tmp_path_factory.mktemp("flashed")
    with Tree(folder) as tree:
        built = wheel(folder)
        inside = tree.path / "tmp" / built.name
        inside.write_bytes(built.read_bytes())
        install(tree.path, f"/tmp/{built.name}")
        inside.unlink()
        (tree.path / "usr/bin/meterctl").symlink_to(f"{VENV}/bin/meterctl")
        (tree.path / ETC[1:] / "ssh").mkdir(parents=True)
        (tree.path / ETC[1:] / "meterd.toml").write_text(SETTINGS)
        ca = ssh_file(Facts(share=read_share(ROOT)), "TrustedUserCAKeys", CA_FILE)
        (tree.path / ca[1:]).write_bytes(CA)
        boot = tree.path / "boot/firmware"
        boot.mkdir()
        (boot / "cmdline.txt").write_text(CMDLINE)
        (boot / "config.txt").write_text("dtparam=audio=on\n")
        tree.run("useradd", "--create-home", "pi")
        shadow = tree.path / "etc/shadow"
        lines = [line for line in shadow.read_text().splitlines(keepends=True) if line[:3] != "pi:"]
        shadow.write_text("".join(lines) + PASSWORD)
        tree.run("systemctl", "enable", "ssh.service")
        yield tree


class Locked(NamedTuple):
    """A device while and after it was locked down.

    Attributes:
        machine: It.
        neighbour: Who shares its network.
        before: What was at each path of the plan.
        said: What the lockdown said.
        open_before: What came of connections before.
        held: What a session heard that was open before, and whose other side spoke first.
    """

    machine: Machine
    neighbour: Neighbour
    tree: Tree
    before: dict[str, Entry]
    said: str
    open_before: dict[int, str]
    held: bytes


@contextmanager
def held_session(machine: Machine, neighbour: Neighbour) -> Iterator[subprocess.Popen[bytes]]:
    """A session at port 22, open and silent."""
    machine.run("systemctl", "stop", "ssh.service")
    machine.run("systemd-run", "--quiet", "--unit=held", "python3", "-c", HELD)
    machine.until(lambda: "held-ready" in machine.run("ls", "/run"), "a server at port 22")
    program = (
        "import socket, sys; s = socket.create_connection(sys.argv[1:3], 300);"
        "print('in', flush=True); print(s.recv(99).decode())"
    )
    client = subprocess.Popen(
        [*neighbour.within, program, DEVICE4, str(SSH)], stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"in\n"
    try:
        yield client
    finally:
        client.communicate()
        machine.run("systemctl", "stop", "held.service", check=False)


@pytest.fixture(scope="module")
def locked(flashed: Tree) -> Iterator[Locked]:
    """It is booted, locked down as a technician does it, and has a neighbour."""
    with Machine(flashed) as machine, Neighbour(machine) as neighbour:
        program = ("python3", "-c", LISTEN, str(OTHER))
        machine.run("systemd-run", "--quiet", "--unit=other", *program)
        machine.until(lambda: neighbour.connect(OTHER) == "open", "a port to drop")
        ports = {port: neighbour.connect(port) for port in (SSH, OTHER)}
        planned = asked(machine, "plan")
        files = DeviceTree(flashed.path)
        before = {path: files.entry(path) for path in paths_in(planned["changes"])}
        with held_session(machine, neighbour) as client:
            said = machine.run("meterctl", "lockdown", "apply", "--yes", check=False)
            machine.run("touch", "/run/held-go")
            assert client.stdout is not None
            heard = client.stdout.readline()
        machine.run("systemctl", "restart", "ssh.service")
        machine.run("systemctl", "stop", "other.service")
        yield Locked(machine, neighbour, flashed, before, said, ports, heard)


def test_what_was_open_before_is_shut_now(locked: Locked) -> None:
    assert locked.open_before == {SSH: "open", OTHER: "open"}
    assert "applied" in locked.said
    assert "failed" not in locked.said, locked.said[-2000:]
    assert locked.neighbour.connect(OTHER) == "dropped"
    assert locked.neighbour.connect(OTHER, to=DEVICE6) == "dropped"


def test_a_session_that_was_open_goes_on_though_it_was_silent(locked: Locked) -> None:
    assert locked.held == b"still here\n"


def test_a3_ssh_is_let_in_a_few_times_and_others_still_are(locked: Locked) -> None:
    neighbour = locked.neighbour
    came = neighbour.connect_often(BURST + 2, SSH, source=NEIGHBOUR[1])
    assert came == ["open"] * BURST + ["dropped"] * 2
    assert neighbour.connect(SSH, source=NEIGHBOUR[2]) == "open"
    came = neighbour.connect_often(BURST + 1, SSH, source=NEIGHBOUR6[1], to=DEVICE6)
    assert came == ["open"] * BURST + ["dropped"]
    assert neighbour.connect(SSH, source=NEIGHBOUR6[0], to=DEVICE6) == "open"


@pytest.mark.parametrize("to", [NEIGHBOUR[0], NEIGHBOUR6[0]])
@pytest.mark.parametrize(
    ("user", "port", "open_"),
    [
        pytest.param("meterd-peer", BROKER, True, id="the peer process to a broker"),
        pytest.param("meterd-peer", 53, True, id="the peer process for a name"),
        pytest.param("meterd-peer", OTHER, False, id="the peer process to another port"),
        pytest.param("meterd", BROKER, False, id="the meter to a broker"),
        pytest.param("root", BROKER, False, id="root to a broker"),
        pytest.param("root", 53, False, id="root for a name"),
        pytest.param("mosquitto", BROKER, False, id="another user to a broker"),
        pytest.param("meterd-anchor", OTHER, False, id="the anchor, where no authority is named"),
        pytest.param("meterd-anchor", 53, False, id="the anchor for a name, likewise"),
    ],
)
def test_e4_outward_goes(locked: Locked, user: str, port: int, open_: bool, to: str) -> None:
    came = reach(locked.machine, user, port, to=to)
    assert (came == "open") is open_, came


def test_the_network_itself_works_behind_the_firewall(locked: Locked) -> None:
    """Neighbours are found anew; IPv6 needs its own messages for that."""
    for address, source in ((DEVICE4, NEIGHBOUR[0]), (DEVICE6, NEIGHBOUR6[0])):
        host("ip", "-n", locked.neighbour.name, "neighbour", "flush", "all")
        locked.machine.run("ip", "neighbour", "flush", "all")
        assert locked.neighbour.connect(SSH, source=source, to=address) == "open"


def test_e4_open_sockets_are_those_listed(locked: Locked) -> None:
    said = locked.machine.run("ss", "-H", "-lntup")
    listed = text.listed_sockets((ROOT / "config" / "sockets").read_text())
    assert text.open_sockets(said) == sorted(
        one._replace(always=False) for one in listed if one.always
    )


def test_e4_a_socket_more_is_found_by_check(locked: Locked) -> None:
    program = ("python3", "-c", LISTEN, "8081")
    locked.machine.run("systemd-run", "--quiet", "--unit=more", *program)
    try:
        locked.machine.until(lambda: ":8081" in locked.machine.run("ss", "-lnt"), "a socket")
        said = locked.machine.run("meterctl", "lockdown", "check", check=False)
    finally:
        locked.machine.run("systemctl", "stop", "more.service")
    assert "tcp [::]:8081 python3 is closed" in said


def test_check_holds_and_applying_again_changes_nothing(locked: Locked) -> None:
    found = asked(locked.machine, "check")
    assert [item for item in found["items"] if not item["holds"]] == []
    assert "nothing to do" in locked.machine.run("meterctl", "lockdown", "apply", "--yes")


def test_the_settings_are_understood_by_those_who_read_them(locked: Locked) -> None:
    machine = locked.machine
    units = (
        *("emergency.service", "rescue.service"),
        *("meterd.service", "meterd-peer.service", "meterd-logins.service"),
        *TIMED,
    )
    said = machine.run("systemd-analyze", "verify", "--man=no", *units, check=False)
    assert "meterd" not in said, said
    assert "no-login" not in said, said
    for bounded in ("ssh.service", "user-1000.slice"):
        assert machine.shown(bounded, "TasksMax") == "128"
        assert machine.shown(bounded, "CPUWeight") == "20"
        assert machine.shown(bounded, "MemoryMax") != "infinity"
    rules = ("/etc/udev/rules.d/98-meterd-usb.rules", "/etc/udev/rules.d/99-meterd.rules")
    machine.run("udevadm", "verify", *rules)
    machine.run("usbguard-rule-parser", "-f", "/etc/usbguard/rules.conf")
    guard = ("usbguard-daemon", "-d", "-f", "-c", "/etc/usbguard/usbguard-daemon.conf")
    machine.run("systemd-run", "--quiet", "--unit=guard", *guard)
    guarded = ("journalctl", "-u", "guard", "--no-pager", "-o", "cat")
    machine.until(lambda: "Configuration loaded" in machine.run(*guarded), "its settings are read")
    machine.run("systemctl", "stop", "guard.service", check=False)
    assert "Configuration loaded successfully" in machine.run(*guarded)
    assert "plugdev" not in machine.run(*guarded)
    machine.run("nft", "-c", "-f", "/etc/nftables.conf")
    machine.run("sshd", "-t")


def test_e3_nothing_waits_for_a_login(locked: Locked) -> None:
    machine = locked.machine
    units = machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend")
    waiting = [line for line in units.splitlines() if "getty@" in line and " active " in line]
    assert waiting == []
    for unit in ("getty@tty1", "serial-getty@ttyAMA0", "console-getty", "autovt@tty2"):
        state = machine.run("systemctl", "is-enabled", f"{unit}.service", check=False).strip()
        assert state == "masked", unit
        refused = machine.run("systemctl", "start", f"{unit}.service", check=False)
        assert "masked" in refused
    words = (locked.tree.path / "boot/firmware/cmdline.txt").read_text().split()
    assert [word for word in words if "console=" in word] == ["console=null"]


@contextmanager
def restarted(locked: Locked, name: str) -> Iterator[tuple[Tree, Machine]]:
    """The same files, booted anew."""
    folder = locked.tree.own.parent
    host("cp", "--archive", str(locked.tree.own), str(folder / f"{name}-below"))
    below = (folder / f"{name}-below", BASE / "root")
    with Tree(folder / name, *below) as tree, Machine(tree) as machine:
        yield tree, machine


def test_e3_e4_after_a_restart_all_holds(locked: Locked) -> None:
    """The firewall is there before anybody asks for it, and no login is."""
    with restarted(locked, "holds") as (_, machine):
        found = asked(machine, "check")
        assert [item for item in found["items"] if not item["holds"]] == []
        assert "policy drop" in machine.run("nft", "list", "table", "inet", "meterd")
        for timer in TIMED[1::2]:
            assert machine.shown(timer, "ActiveState") == "active", timer
        units = machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend")
        assert "getty@" not in units
        assert "sshd-unix-local" not in units
        said = machine.run("journalctl", "--no-pager", "-o", "cat", "_PID=1")
        assert "Unknown key" not in said
        assert "Failed to parse" not in said


def test_undo_puts_back_every_path(locked: Locked) -> None:
    assert locked.before
    with restarted(locked, "undone") as (tree, machine):
        said = machine.run("meterctl", "lockdown", "undo", "--yes")
        files = DeviceTree(tree.path)
        left = {
            path for path, was in locked.before.items() if files.entry(path) != was
        }  # the units have made their states: their users stay
        assert left <= ACCOUNT_FILES, said
        for path in left:
            was, now = locked.before[path], files.entry(path)
            assert isinstance(was, Content)
            assert isinstance(now, Content)
            assert [line for line in was.text.splitlines() if line not in now.text] == []
        assert not (tree.path / KEPT[1:]).exists()
        assert machine.run("nft", "list", "tables").strip() == ""
        for unit in UNITS:
            assert machine.shown(unit, "ActiveState") in {"inactive", "failed"}
