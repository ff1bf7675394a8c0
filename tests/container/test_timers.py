"""What the timers start, in a booted container, each once, and what comes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.conftest import ROOT
from tests.container.build import BASE
from tests.container.device import BROKER_UNIT, ETC, STATE, Board, begin, deliver, enrol, wheel
from tests.container.machine import Machine, Tree
from tests.tsa import make_authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)  # whichever comes first boots the machine

NAMES = ("prune", "check", "anchor")
EXPOSURE_MAX = 12  # tenths, as row H1 has it for the meter itself
TSA_PORT = 8318
ANCHORS = "/var/lib/meterd-anchor"
SEGMENTS = f"{STATE}/samples"
# The flags of a file, by the kernel; the container has no lsattr.
FLAGS = """
import fcntl, pathlib, struct, sys
for folder in ("samples", "events", "blocks"):
    for path in sorted(pathlib.Path(sys.argv[1], folder).iterdir()):
        with path.open("rb") as file:
            [flags] = struct.unpack("l", fcntl.ioctl(file, 0x80086601, bytes(8)))
        print(path.relative_to(sys.argv[1]), int(bool(flags & 0x20)))
"""
CLEAR = """
import fcntl, pathlib, struct, sys
for path in pathlib.Path(sys.argv[1]).rglob("*.*"):
    if path.is_file():
        with path.open("rb") as file:
            [flags] = struct.unpack("l", fcntl.ioctl(file, 0x80086601, bytes(8)))
            fcntl.ioctl(file, 0x40086602, struct.pack("l", flags & ~0x20))
"""


class Running(NamedTuple):
    """A device with timers, and the authority that its settings name."""

    machine: Machine
    root: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A device that meters; a timestamp authority of the host is on its loopback."""
    folder = tmp_path_factory.mktemp("timers")
    root = make_authority(folder / "authority")
    with Tree(folder, BASE / "root") as tree:
        deliver(tree, wheel(folder))
        units = tree.path / "etc/systemd/system"
        (units / "broker.service").write_text(BROKER_UNIT)
        for path in sorted((ROOT / "systemd").glob("meterd-*")):
            if path.stem.removeprefix("meterd-") in NAMES:
                (units / path.name).write_bytes(path.read_bytes())
        settings = tree.path / ETC[1:] / "meterd.toml"
        url = f"http://127.0.0.1:{TSA_PORT}/tsr"
        settings.write_text(
            f'{settings.read_text()}[anchor]\nurl = "{url}"\nca = "{ETC}/tsa.pem"\n'
        )
        (tree.path / ETC[1:] / "tsa.pem").write_bytes(root.read_bytes())
        enrol(tree)
        with (
            Board(folder, tree.id_of("meterd")) as board,
            Machine(tree, board=board.link.resolve()) as machine,
        ):
            begin(machine)
            program = [sys.executable, "-m", "tests.tsa", str(folder / "authority"), str(TSA_PORT)]
            within = ["nsenter", "-t", machine._init, "-n"]
            tsa = subprocess.Popen([*within, *program], cwd=ROOT, stdout=subprocess.PIPE)
            assert tsa.stdout is not None
            assert tsa.stdout.readline() == b"ready\n"
            try:
                machine.until(lambda: height(machine) >= 1, "a sealed block")
                yield Running(machine, root)
            finally:
                tsa.terminate()
                tsa.communicate()
                machine.run("systemctl", "stop", "meterd.service", check=False)
                machine.run("python3", "-c", CLEAR, STATE)  # or the folder would stay for ever


@pytest.fixture
def device(running: Running) -> Machine:
    return running.machine


def height(device: Machine) -> int:
    return int(json.loads(device.run("meterctl", "status", "--json"))["height"])


def segments(device: Machine) -> list[str]:
    return device.run("ls", SEGMENTS).split()


def start(device: Machine, name: str, *, result: str = "success") -> str:
    """Start what a timer starts, wait for its end, and return what it said."""
    unit = f"meterd-{name}.service"
    device.run("systemctl", "reset-failed", unit, check=False)
    journal = ("journalctl", "--namespace=meterd", "--no-pager")
    _, cursor = device.run(*journal, "--lines=0", "--show-cursor").split("cursor: ")
    device.run("systemctl", "start", unit, check=False)
    device.run(*journal, "--sync")
    # By unit and cursor: which start it was, the journal does not know of what has ended at once.
    said = device.run(*journal, "-o", "cat", f"--unit={unit}", f"--after-cursor={cursor.strip()}")
    assert device.shown(unit, "Result") == result, said
    return said


@pytest.mark.parametrize("name", NAMES)
def test_h1_what_a_timer_starts_is_exposed_no_more_than_the_meter(name: str) -> None:
    path = str(ROOT / "systemd" / f"meterd-{name}.service")
    analyze = ("systemd-analyze", "security", "--offline=true", "--no-pager")
    done = subprocess.run(
        [*analyze, f"--threshold={EXPOSURE_MAX}", path], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_units_are_understood_and_the_timers_made_good_when_missed(device: Machine) -> None:
    units = [f"meterd-{name}.{kind}" for name in NAMES for kind in ("service", "timer")]
    said = device.run("systemd-analyze", "verify", "--man=no", *units, check=False)
    assert "meterd" not in said, said
    for name in NAMES:
        timer = f"meterd-{name}.timer"
        device.run("systemctl", "enable", "--now", timer)
        assert device.shown(timer, "Persistent") == "yes"
        assert device.shown(timer, "RandomizedDelayUSec") != "0"
        assert device.shown(timer, "NextElapseUSecRealtime")


def test_the_check_says_what_it_found_and_writes_nothing(device: Machine) -> None:
    assert "good: " in start(device, "check")
    assert device.shown("meterd-check.service", "User") == "meterd-check"


def test_a_check_of_a_damaged_account_has_failed_for_all_to_see(device: Machine) -> None:
    """On a copy that lies over the account for as long as this check runs."""
    script = f"""\
set -e
mkdir -p /run/damaged && cp -a {STATE}/. /run/damaged/
python3 - <<'END'
import pathlib
path = sorted(pathlib.Path("/run/damaged/blocks").iterdir())[0]
data = bytearray(path.read_bytes())
data[300] ^= 1
path.write_bytes(data)
END
mkdir -p /run/systemd/system/meterd-check.service.d
printf '[Service]\\nBindReadOnlyPaths=/run/damaged:{STATE}\\n' \\
    > /run/systemd/system/meterd-check.service.d/test.conf
systemctl daemon-reload
"""
    device.run("bash", "-c", script)
    try:
        said = start(device, "check", result="exit-code")
        failed = device.run("systemctl", "--failed", "--plain", "--no-legend")
    finally:
        device.run("rm", "-r", "/run/systemd/system/meterd-check.service.d", "/run/damaged")
        device.run("systemctl", "daemon-reload")
    assert "bad: " in said
    assert "meterd-check.service" in failed
    assert device.shown("meterd-check.service", "ExecMainStatus") == "1"
    assert "good: " in start(device, "check")
    assert "meterd-check" not in device.run("systemctl", "--failed", "--plain", "--no-legend")


def test_what_is_written_is_protected_and_what_was_pruned_goes(device: Machine) -> None:
    """The daemon may not remove a file any more; the account's own event is what removes it."""
    said = start(device, "prune")
    assert "0 pruned segments removed" in said
    flags = dict(line.split() for line in device.run("python3", "-c", FLAGS, STATE).splitlines())
    assert set(flags.values()) == {"1"}
    for _ in range(2):
        before = height(device)
        device.restart("meterd.service")
        seal_on(device, before)
    old = segments(device)[0]
    refused = device.run(
        *("setpriv", "--reuid=meterd", "--regid=meterd", "--clear-groups"),
        *("rm", "-f", f"{SEGMENTS}/{old}"),
        check=False,
    )
    assert "Operation not permitted" in refused
    device.until(lambda: "files stay" in prune(device), "the daemon has pruned, as its event says")
    assert old in segments(device)
    assert json.loads(device.run("meterctl", "verify", STATE, "--json"))["verdict"] == "good"
    assert " removed: " in start(device, "prune")
    assert old not in segments(device)
    flags = dict(line.split() for line in device.run("python3", "-c", FLAGS, STATE).splitlines())
    assert set(flags.values()) == {"1"}
    assert json.loads(device.run("meterctl", "verify", STATE, "--json"))["verdict"] == "good"
    assert device.shown("meterd.service", "ActiveState") == "active"
    seal_on(device, height(device))  # into files that are append-only


def seal_on(device: Machine, before: int) -> None:
    device.until(lambda: height(device) > before, f"a block behind {before} is sealed")


def prune(device: Machine) -> str:
    return device.run("meterctl", "prune", "--before", "2099-01-01", check=False)


def test_the_head_is_anchored_by_who_sees_blocks_alone(running: Running) -> None:
    device = running.machine
    assert "stamped " in start(device, "anchor")  # "at", or "already" where its timer was first
    token = device.run("ls", ANCHORS).split()[-1]
    assert device.run("stat", "-c", "%U %a", ANCHORS).split() == ["meterd-anchor", "750"]
    command = ("meterctl", "anchor", "--check", "--json")
    checked = json.loads(device.run(*command))
    assert checked["verdict"] == "good"
    assert f"{checked['anchored']:010}" in token
    look = "ls /var/lib/meterd /var/lib/meterd-peer /run/meterd"
    unit = device.run("systemctl", "cat", "meterd-anchor.service")
    settings = [
        f"--property={line}"
        for line in unit.splitlines()
        if line.partition("=")[0]
        in {
            *("User", "Group", "TemporaryFileSystem", "BindReadOnlyPaths", "InaccessiblePaths"),
            *("ProtectSystem", "PrivateMounts", "PrivateUsers", "CapabilityBoundingSet"),
        }
    ]
    seen = device.run(
        "systemd-run", "--quiet", "--pipe", "--wait", *settings, "sh", "-c", look, check=False
    )
    assert "blocks" in seen.split()
    for hidden in ("samples", "events", "vault", "peer.db", "control"):
        assert hidden not in seen.split()


def test_a_check_of_anchors_finds_an_account_that_was_put_back(device: Machine) -> None:
    start(device, "anchor")
    script = f"""\
rm -rf /run/put-back && mkdir /run/put-back && cp -r {STATE}/. /run/put-back/
rm /run/put-back/blocks/*
meterctl anchor --check --state /run/put-back; echo "status $?"
"""
    said = device.run("bash", "-c", script)
    assert "it was cut back since" in said
    assert "status 1" in said


def test_without_an_authority_the_timer_does_nothing(device: Machine) -> None:
    settings = f"{ETC}/meterd.toml"
    device.run("sed", "-i.kept", "s/^url = .*/url = ''/", settings)
    try:
        assert "nobody is asked" in start(device, "anchor")
    finally:
        device.run("mv", f"{settings}.kept", settings)
