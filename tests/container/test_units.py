"""Both processes under their units, in a booted container: what they do there, and cannot."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.conftest import ROOT
from tests.container.build import BASE, VENV
from tests.container.device import (
    BROKER_UNIT,
    PEER_STATE,
    STATE,
    Board,
    begin,
    deliver,
    enrol,
    wheel,
)
from tests.container.machine import METER, Machine, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(400)  # whichever comes first boots the machine

PEER = "meterd-peer.service"
REFUSED = {
    "write /etc": "EROFS",
    "write /usr": "EACCES",
    "write /home": "EACCES",
    "write /var/lib": "EROFS",
    "write /run": "EROFS",
    "write /boot": "EROFS",
    "run what it wrote": "EACCES",
    "read /root": "EACCES",
    "read the other's state": "EACCES",
    "read the shadow": "EACCES",
    "see process 1": "ENOENT",
    "netlink socket": "EAFNOSUPPORT",
    "packet socket": "EAFNOSUPPORT",
    "new user namespace": "EPERM",
    "new network namespace": "EPERM",
    "mount": "EPERM",
    "set the clock": "EPERM",
    "be root": "EPERM",
    "make a file of root's": "EPERM",
    "set-user-id": "EPERM",
    "trace a process": "EPERM",
    "write and execute memory": "EACCES",
    "restart the machine": "EPERM",
    "load a module": "EPERM",
    "raise its priority": "EPERM",
}
ALLOWED = dict.fromkeys(("write its state", "write the line", "unix socket"), "done")
NO_NETWORK = dict.fromkeys(
    ("internet socket", "internet socket, version 6", "listen", "listen on a port", "raw socket"),
    "EAFNOSUPPORT",
)
OUTWARD = {
    "internet socket": "done",
    "internet socket, version 6": "done",
    "listen": "EPERM",
    "listen on a port": "EPERM",
    "raw socket": "EPROTONOSUPPORT",
}
EXPOSURE_MAX = 12  # tenths, as `systemd-analyze security` counts them
METER_EXPOSURE_MAX = 10
SERVICES = sorted(path.name for path in (ROOT / "systemd").glob("*.service"))
WRITABLE = "/run/{0} /run/meterd.line /tmp /var/lib/{0} /var/tmp"  # the temporary ones are its own
RESTARTS = 8  # more than the five in ten seconds that systemd bears by default
WATCHDOG_S, RESTART_S, STARTING_S = 4, 2, 30
LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000  # linux/ptrace.h, linux/wait.h


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device as it leaves the bench: a layer over the base."""
    folder = tmp_path_factory.mktemp("delivered")
    with Tree(folder) as tree:
        deliver(tree, wheel(folder))
        (tree.path / "etc/systemd/system/broker.service").write_text(BROKER_UNIT)
        enrol(tree)
    return folder / "own"


class Running(NamedTuple):
    """A device that runs, and its board."""

    machine: Machine
    board: Board
    keys: tuple[str, ...]


@pytest.fixture(scope="module")
def running(delivered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A device that runs, with a board, and what only credentials may hold."""
    folder = tmp_path_factory.mktemp("device")
    with Tree(folder, delivered, BASE / "root") as tree:
        for unit, state in ((METER, STATE), (PEER, PEER_STATE)):
            (tree.path / f"etc/systemd/system/probe-{unit}").write_text(probe_unit(unit, state))
        quick = tree.path / f"etc/systemd/system/{METER}.d/test.conf"
        quick.parent.mkdir()
        quick.write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}s\n")
        shutil.copy(Path(__file__).parent / "probe.py", tree.path / "usr/lib/probe.py")
        with (
            Board(folder, tree.id_of("meterd")) as board,
            Machine(tree, board=board.link.resolve()) as machine,
        ):
            keys = secrets_of(tree)
            begin(machine)
            yield Running(machine, board, keys)


@pytest.fixture
def device(running: Running) -> Machine:
    return running.machine


def secrets_of(tree: Tree) -> tuple[str, ...]:
    """Return both keys as they are spelt, and a line of the private key for TLS."""
    vote, seal = ((tree.path / STATE[1:] / f"{name}.key").read_text() for name in ("peer", "seal"))
    line = (tree.path / "root/tls.key").read_text().splitlines()[1]
    return vote.strip(), seal.strip(), line


def probe_unit(unit: str, state: str) -> str:
    """Return a unit that is the same but for the program."""
    text = (ROOT / "systemd" / unit).read_text()
    own = r"^(Type|WatchdogSec|Restart|RestartSec|RuntimeDirectory)=.*\n"
    text = re.sub(own, "", text, flags=re.MULTILINE)
    program = f"ExecStart={VENV}/bin/python3 /usr/lib/probe.py {state}\nType=oneshot"
    return re.sub(r"^ExecStart=.*$", program, text, flags=re.MULTILINE)


@pytest.mark.parametrize("unit", SERVICES)
def test_h1_units_are_exposed_no_more_than_they_may(unit: str) -> None:
    path = str(ROOT / "systemd" / unit)
    exposure = METER_EXPOSURE_MAX if unit == METER else EXPOSURE_MAX
    analyze = ("systemd-analyze", "security", "--offline=true", "--no-pager")
    done = subprocess.run(
        [*analyze, f"--threshold={exposure}", path],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(("unit", "more"), [(METER, NO_NETWORK), (PEER, OUTWARD)])
def test_h1_what_a_process_under_its_unit_is_refused(
    device: Machine, unit: str, more: dict[str, str]
) -> None:
    device.run("systemctl", "start", f"probe-{unit}")
    device.run("journalctl", "--namespace=meterd", "--sync")
    said = device.run(
        "journalctl", "--namespace=meterd", "-u", f"probe-{unit}", "-o", "cat", "--no-pager"
    )
    [line] = [line for line in said.splitlines() if line.startswith("{")]
    found = json.loads(line)
    folders = {
        "writable folders": WRITABLE.format(unit.removesuffix(".service")),
        "runs what it wrote in": "",
    }
    assert found == REFUSED | ALLOWED | more | folders


@pytest.mark.parametrize("unit", [METER, PEER])
def test_h1_no_capability_no_new_privilege_and_a_filter(device: Machine, unit: str) -> None:
    pid = device.shown(unit, "MainPID")
    status = dict(
        line.split(":\t", 1)
        for line in device.run("cat", f"/proc/{pid}/status").splitlines()
        if ":\t" in line
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "0" not in status["Uid"].split()


def test_h1_the_meter_has_no_socket_but_those_of_its_machine(device: Machine) -> None:
    pid = device.shown(METER, "MainPID")
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet"):
        assert len(device.run("cat", f"/proc/{pid}/net/{kind}").splitlines()) <= 1, kind
    links = device.run("nsenter", "-t", pid, "-n", "ip", "-brief", "link")
    assert [line.split()[0] for line in links.splitlines()] == ["lo"]


def test_h1_blocks_are_sealed_and_certified_under_these_units_over_tls(device: Machine) -> None:
    device.until(lambda: "protocol=5" in journal(device), "a broker")
    device.until(lambda: sealed(device) >= 1, "a sealed block")
    device.until(lambda: certified(device) >= 1, "a certified block")
    verdict = device.run("meterctl", "verify", STATE, "--json", check=False)
    assert json.loads(verdict)["verdict"] == "good"


def test_the_peer_process_is_shut_out_of_the_meters_folder_after_a_stop_too(
    device: Machine,
) -> None:
    peer = device.shown("meterd-peer.service", "MainPID")

    def seen() -> str:
        looks = ("nsenter", f"--target={peer}", "--mount", "stat", "--format=%a")
        return device.run(*looks, "/run/meterd").strip()

    assert seen() == "0"
    device.run("systemctl", "stop", "meterd.service")
    assert seen() == "0"
    device.run("systemctl", "start", "meterd.service")
    assert seen() == "0"
    assert device.shown("meterd-peer.service", "MainPID") == peer


def test_h4_the_sealing_key_is_in_the_vault_alone(device: Machine) -> None:
    held = json.loads(device.run("meterctl", "vault", "list", "--json"))
    assert [(one["subject"], one["purpose"]) for one in held["records"]] == [("device", "seal-1")]
    names = device.run("ls", "-A", STATE).split()
    assert "vault" in names
    assert not [name for name in names if name.endswith(".key")]
    again = json.loads(device.run("meterctl", "vault", "init", "--json"))
    assert again == {"secret_made": False, "keys_taken": 0}


def journal(device: Machine) -> str:
    return device.run("journalctl", "--namespace=meterd", "--no-pager", "-o", "cat")


def status(device: Machine) -> dict[str, object]:
    reply = device.run("meterctl", "status", "--json")
    found: dict[str, object] = json.loads(reply)
    return found


def sealed(device: Machine) -> int:
    return int(str(status(device)["height"]))


def certified(device: Machine) -> int:
    neighbours = status(device)["neighbours"]
    assert isinstance(neighbours, dict)
    return int(neighbours["certified_height"])


def pings(device: Machine) -> int:
    return int(device.shown(METER, "WatchdogTimestampMonotonic"))


def standing(device: Machine) -> list[str] | None:
    """The alarms that stand, as the unit that has the network publishes them; None before any."""
    told = json.loads(device.run("meterctl", "peers", "--json"))["alarms"]
    return [one["alarm"] for one in told[0]["standing"]] if told else None


def test_e1_alarms_cross_the_line_between_the_units_and_are_published(running: Running) -> None:
    device, board = running.machine, running.board
    assert board.program is not None
    device.until(lambda: standing(device) is not None, "the start is told")
    board.program.process.send_signal(signal.SIGSTOP)
    try:
        device.until(lambda: "port" in (standing(device) or ()), "the alarm is published")
    finally:
        board.program.process.send_signal(signal.SIGCONT)
    device.until(lambda: "port" not in (standing(device) or ()), "it is over")

    def letters() -> list[str]:
        names = device.run("ls", "/run/meterd.line/outbox").split()
        return [name for name in names if name.startswith("alarm-")]

    device.until(lambda: len(letters()) == 1, "the older letters are taken")


def test_h2_a_silent_port_is_an_alarm_and_no_restart(running: Running) -> None:
    device, board = running.machine, running.board
    before = device.shown(METER, "MainPID"), device.shown(METER, "NRestarts")
    assert board.program is not None
    board.program.process.send_signal(signal.SIGSTOP)
    try:
        device.until(lambda: "port_silent" in journal(device), "the alarm")
        begun_us = pings(device)
        device.until(lambda: pings(device) > begun_us + 4_000_000, "pings for a whole watchdog")
    finally:
        board.program.process.send_signal(signal.SIGCONT)
    assert (device.shown(METER, "MainPID"), device.shown(METER, "NRestarts")) == before


def test_h2_both_units_start_however_often_they_are_stopped(device: Machine) -> None:
    """As a technician may do who looks for a fault; the journal they share has to stay for it."""
    for _ in range(RESTARTS):
        device.run("systemctl", "stop", METER, PEER)
        device.run("systemctl", "start", METER, PEER)
    for unit in (METER, PEER):
        assert device.shown(unit, "ActiveState") == "active"
        assert device.shown(unit, "NRestarts") == "0"


SEARCH = """
grep --no-messages --text --recursive --fixed-strings --files-with-matches --regexp="$KEY" \\
    /etc /run/systemd /usr/lib/systemd /var/lib /var/log /root
for file in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do
    grep --quiet --text --fixed-strings --regexp="$KEY" "$file" 2>/dev/null && echo "$file"
done
journalctl --merge --all --no-pager --output=export | grep --quiet --text --fixed-strings \\
    --regexp="$KEY" && echo journal
exit 0
"""


def places_of(device: Machine, key: str) -> list[str]:
    """Return where a text is found inside; the text itself is told to the search by its input."""
    return device.run("bash", "-c", "read -r KEY;" + SEARCH, said=key).split()


def test_h4_keys_are_in_no_environment_argument_unit_journal_or_state(running: Running) -> None:
    device = running.machine
    for unit in (METER, PEER):
        device.restart(unit)
    planted = "4a61d8f0c2"
    device.run("bash", "-c", f"echo {planted} > /etc/planted; logger {planted}")
    device.run("systemd-run", f"--setenv=PLANTED={planted}", "--unit=planted", "sleep", "600")
    found = places_of(device, planted)
    assert {"/etc/planted", "journal"} <= set(found)
    assert any(place.endswith("/environ") for place in found)
    device.run("systemctl", "stop", "planted")
    for key in running.keys:
        assert places_of(device, key) == []


def hold_until_killed(pid: int) -> int:
    """Keep the first thread of a process from running, and no other; return which signal ends it.

    A tracer can do that. The end is told to it first, and to the process's parent behind it.
    """
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        assert LIBC.ptrace(request, pid, None, None) == 0, os.strerror(ctypes.get_errno())
    _, stopped = os.waitpid(pid, WALL)
    assert os.WIFSTOPPED(stopped)
    _, ended = os.waitpid(pid, WALL)
    assert os.WIFSIGNALED(ended)
    return os.WTERMSIG(ended)


def test_h2_a_measuring_loop_that_hangs_alone_is_killed_and_started_again(device: Machine) -> None:
    """The other threads of the process go on, and none of them pings in its place."""
    shipped = (ROOT / "systemd" / METER).read_text()  # the device's own is shorter, and hides it
    assert re.search(r"^WatchdogSec=[1-9][0-9]*s$", shipped, flags=re.MULTILINE)
    pid = device.shown(METER, "MainPID")
    threads = ("ls", f"/proc/{pid}/task")
    device.until(lambda: len(device.run(*threads).split()) > 1, "a thread that writes the card")
    begun_s = time.monotonic()
    assert hold_until_killed(device.outside_id(pid)) == signal.SIGABRT
    device.until(
        lambda: (
            device.shown(METER, "MainPID") not in {"0", pid}
            and device.shown(METER, "ActiveState") == "active"
        ),
        "a restart",
    )
    assert time.monotonic() - begun_s <= WATCHDOG_S + RESTART_S + STARTING_S
    said = device.run("journalctl", "-u", METER, "--no-pager", "-o", "cat")
    assert "Watchdog timeout" in said
