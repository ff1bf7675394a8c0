"""`meterctl doctor` and `report` on a booted device: real units, a vault, a broker, a group."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.container.build import BASE
from tests.container.device import (
    BROKER_UNIT,
    ETC,
    STATE,
    UNITS,
    Board,
    begin,
    deliver,
    enrol,
    wheel,
)
from tests.container.machine import PORT, Machine, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)  # whichever comes first boots the machine

Findings = dict[str, list[dict[str, str]]]
GROUP = ("setpriv", "--reuid=technician", "--regid=technician", "--init-groups")


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("doctor")
    with Tree(folder) as tree:
        deliver(tree, wheel(folder))
        (tree.path / "etc/systemd/system/broker.service").write_text(BROKER_UNIT)
        enrol(tree)
    machine_folder = tmp_path_factory.mktemp("doctor-device")
    with (
        Tree(machine_folder, folder / "own", BASE / "root") as tree,
        Board(machine_folder, tree.id_of("meterd")) as board,
        Machine(tree, board=board.link.resolve()) as machine,
    ):
        begin(machine)
        machine.run("systemctl", "enable", *UNITS)
        yield machine


@pytest.fixture
def device(booted: Machine) -> Machine:
    """It is well: the test before may just have started what it had stopped."""
    booted.until(lambda: well(booted, "daemon") and well(booted, "broker"), "it meters")
    return booted


def findings(machine: Machine, *options: str, by: tuple[str, ...] = ()) -> Findings:
    said = machine.run(*by, "meterctl", "doctor", "--json", *options, check=False)
    told = json.loads(said.splitlines()[-1])
    found: Findings = {}
    for each in told["findings"]:
        found.setdefault(each["check"], []).append(each)
    return found


def well(machine: Machine, check: str) -> bool:
    found = findings(machine, "--quick").get(check, [])
    return bool(found) and all(each["verdict"] == "ok" for each in found)


def verdicts(found: Findings) -> dict[str, set[str]]:
    return {check: {each["verdict"] for each in all_of} for check, all_of in found.items()}


def test_a_device_that_runs_is_seen_to_by_root(device: Machine) -> None:
    found = findings(device)
    told = verdicts(found)
    for check in (
        *("daemon", "unit meterd", "unit meterd-peer", "unit run-meterd.line.mount", "settings"),
        *("port", "account", "vault", "device secret", "voting key", "software", "broker"),
        *("certificate", "TLS key", "system", "kernel", "memory", "journal"),
    ):
        assert told[check] == {"ok"}, found[check]
    assert told["sync"] in ({"ok"}, {"warn"}), "whoever builds beside this makes a card slow"
    assert found["broker"][0]["found"].endswith("says the peer process")
    assert found["software"][0]["found"].endswith("as their RECORD says")
    assert told["lockdown"] == {"warn"}  # nobody has closed this one
    assert told["clock"] in ({"warn"}, {"fail"})  # it is trusted blindly here
    assert "board" not in found  # it is listened to where nobody meters


def test_who_is_of_the_group_sees_what_a_group_may(device: Machine) -> None:
    found = findings(device, by=GROUP)
    told = verdicts(found)
    for check in ("daemon", "unit meterd", "account", "software", "broker", "certificate"):
        assert told[check] == {"ok"}, found[check]
    for check in ("lockdown", "vault", "sync"):
        assert told[check] == {"unknown"}, found[check]
        assert found[check][0]["todo"] == "run it with sudo"


def test_a_report_is_made_by_the_meter_for_its_group_and_judged_elsewhere(
    device: Machine, tmp_path: Path
) -> None:
    device.run(*GROUP, "sh", "-c", "meterctl report > /var/tmp/kitchen.report")
    shutil.copy(device.tree.path / "var/tmp/kitchen.report", tmp_path / "kitchen.report")
    said = device.run(
        "meterctl",
        "verify",
        "/var/tmp/kitchen.report",
        "--genesis",
        f"{STATE}/genesis.cbor",
        "--json",
    )
    report: dict[str, Any] = json.loads(said)
    assert (report["verdict"], report["meter"]) == ("good", "kitchen-12")
    assert {"ok"} == {
        claim["verdict"] for claim in report["claimed_by_tool"] if claim["check"] == "daemon"
    }
    spoilt = device.tree.path / "var/tmp/spoilt.report"
    data = bytearray((tmp_path / "kitchen.report").read_bytes())
    data[300] ^= 1
    spoilt.write_bytes(data)
    said = device.run(
        *("meterctl", "verify", "/var/tmp/spoilt.report", "--genesis", f"{STATE}/genesis.cbor"),
        check=False,
    )
    assert not said.startswith("good")


def test_what_is_broken_is_found_with_what_to_do(device: Machine) -> None:
    """One after another, each mended again: no two faults may hide each other."""
    device.run("systemctl", "stop", "meterd-peer.service", "broker.service")
    device.until(
        lambda: "connection refused" in findings(device, "--quick")["broker"][0]["found"],
        "what the peer process said last is too old",
    )
    found = findings(device, "--quick")
    assert found["unit meterd-peer"][0]["found"] == "is inactive"
    assert "systemctl start meterd-peer.service" in found["unit meterd-peer"][0]["todo"]
    assert found["broker"][0]["verdict"] == "fail"
    device.run("systemctl", "start", "broker.service", "meterd-peer.service")

    device.run("systemctl", "disable", "meterd.service")
    assert "will not start by itself" in findings(device, "--quick")["unit meterd"][0]["found"]
    device.run("systemctl", "enable", "meterd.service")

    kept = "/etc/credstore.encrypted/meterd.device"
    device.run("chmod", "666", kept)
    assert "mode 0666" in findings(device, "--quick")["device secret"][0]["found"]
    device.run("chmod", "600", kept)

    device.run("mv", kept, "/root/meterd.device")
    found = findings(device, "--quick")
    assert verdicts(found)["vault"] == {"fail"}
    assert verdicts(found)["device secret"] == {"fail"}
    device.run("mv", "/root/meterd.device", kept)

    path = "/usr/lib/meterd/lib/python3.13/site-packages/meterd/lamp.py"
    device.run("sh", "-c", f"echo >> {path}")
    (changed,) = findings(device, "--quick")["software"]
    assert changed["found"] == "meterd/lamp.py is not as it was installed"
    device.run("sed", "-i", "$ d", path)
    assert verdicts(findings(device, "--quick"))["software"] == {"ok"}


def test_a_board_is_listened_to_once_the_meter_is_stopped(device: Machine) -> None:
    device.run("systemctl", "stop", "meterd.service")
    found = findings(device)
    assert verdicts(found)["daemon"] == {"fail"}
    assert verdicts(found)["board"] == {"ok"}, found["board"]
    device.run("sed", "-i", 's/layout = "rpict3v1"/layout = "rpict7v1"/', f"{ETC}/meterd.toml")
    assert "board.layout says" in findings(device)["board"][0]["found"]
    device.run("sed", "-i", 's/layout = "rpict7v1"/layout = "rpict3v1"/', f"{ETC}/meterd.toml")
    device.restart("meterd.service")
    assert PORT in findings(device, "--quick")["port"][0]["found"]
