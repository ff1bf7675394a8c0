"""Row S5 on a booted device: software, parameters or settings that changed while it was off."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from meterd.device.archive import segment_name
from tests.accounts import Account
from tests.container.build import BASE, PYTHON, VENV, install
from tests.container.device import BROKER_UNIT, ETC, STATE, Board, begin, deliver, enrol, wheel
from tests.container.machine import METER, Machine, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)  # whichever comes first boots the machine

PACKAGE = f"{VENV}/lib/python{PYTHON}/site-packages/meterd"
SETTINGS, SOFTWARE, ACCOUNT = 78, 78, 65
QUIET_S = 8  # four times RestartSec: a unit that is started again has been by then


class Device(NamedTuple):
    """A device that runs, its files, and what it was installed from."""

    machine: Machine
    tree: Tree
    built: Path

    def inside(self, path: str) -> Path:
        return self.tree.path / path[1:]

    @property
    def account(self) -> Account:
        state = self.inside(STATE)
        return Account(state=state, registers={}, kinds={}, accepted=0, gaps=0, dropped={})


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A device that meters and seals."""
    folder = tmp_path_factory.mktemp("changed")
    with Tree(folder, BASE / "root") as tree:
        built = wheel(folder)
        deliver(tree, built)
        (tree.path / "etc/systemd/system/broker.service").write_text(BROKER_UNIT)
        enrol(tree)
        with (
            Board(folder, tree.id_of("meterd")) as board,
            Machine(tree, board=board.link.resolve()) as machine,
        ):
            begin(machine)
            machine.until(lambda: status(machine)["height"] >= 1, "a sealed block")
            yield Device(machine, tree, built)


def status(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.run("meterctl", "status", "--json"))
    return found


def flip(path: Path, offset: int) -> bytes:
    """Change one bit of a file, and return what it was; mode and owner stay."""
    was = path.read_bytes()
    assert 0 < offset < len(was)
    path.write_bytes(was[:offset] + bytes([was[offset] ^ 1]) + was[offset + 1 :])
    return was


def refused(device: Device, code: int) -> str:
    """Start the meter, which has to refuse once and stay so; return what its journal says."""
    machine = device.machine
    machine.run("systemctl", "start", "--no-block", METER)
    machine.until(lambda: machine.shown(METER, "ActiveState") == "failed", "it refuses to start")
    assert machine.shown(METER, "ExecMainStatus") == str(code)
    machine.run("sleep", str(QUIET_S))
    assert machine.shown(METER, "ActiveState") == "failed"
    assert machine.shown(METER, "NRestarts") == "0"
    invocation = machine.shown(METER, "InvocationID")
    journal = ("journalctl", "--namespace=meterd", "--no-pager", "-o", "cat")
    said = machine.run(*journal, f"_SYSTEMD_INVOCATION_ID={invocation}")
    assert said.count("meterd: error:") == said.count("meterd: hint:") == 1, said
    return said


class Before(NamedTuple):
    """What the account had before it was changed."""

    blocks: list[bytes]
    rows: int
    events: int


def stop(device: Device) -> Before:
    device.machine.run("systemctl", "stop", METER)
    device.machine.run("systemctl", "reset-failed", METER)
    account = device.account
    return Before([block.hash for block in account.blocks], len(account.rows), len(account.events))


def goes_on(device: Device, before: Before) -> list[str]:
    """Start the meter, which has to go on with all it had; return the kinds of its new events."""
    machine = device.machine
    machine.run("systemctl", "reset-failed", METER)
    machine.restart(METER)
    height = len(before.blocks)
    machine.until(lambda: status(machine)["height"] > height, "it seals on")
    verdict = json.loads(machine.run("meterctl", "verify", STATE, "--json", check=False))
    assert verdict["verdict"] == "good", verdict
    account = device.account
    assert [block.hash for block in account.blocks][:height] == before.blocks
    assert len(account.rows) > before.rows
    return [event.kind for event in account.events[before.events :]]


def test_s5_a_byte_of_an_installed_module_stops_sealing_until_it_is_installed_anew(
    device: Device,
) -> None:
    before = stop(device)
    module = device.inside(f"{PACKAGE}/metering/energy.py")
    flip(module, module.read_bytes().index(b'"""') + 5)
    said = refused(device, SOFTWARE)
    assert "meterd/metering/energy.py is not as it was installed" in said
    assert "install meterd afresh" in said
    kinds = device.account.kinds_of_events[before.events :]
    assert kinds == ["refused", "alarm"]
    assert device.account.events[-1]["alarm"] == "software_changed"
    assert [block.hash for block in device.account.blocks] == before.blocks
    inside = device.tree.path / "tmp" / device.built.name
    inside.write_bytes(device.built.read_bytes())
    install(device.tree.path, "--force-reinstall", f"/tmp/{device.built.name}")
    assert goes_on(device, before)[:3] == ["refused", "alarm", "started"]


def test_s5_a_byte_of_the_parameter_record_stops_sealing_until_it_is_put_back(
    device: Device,
) -> None:
    before = stop(device)
    stream = device.inside(f"{STATE}/events/{segment_name(1)}")
    was = flip(stream, stream.read_bytes().index(b"rpict3v1"))
    try:
        said = refused(device, ACCOUNT)
        assert "does not verify" in said
        assert "meterctl verify" in said
        verdict = json.loads(device.machine.run("meterctl", "verify", STATE, "--json", check=False))
        assert verdict["verdict"] == "bad"
        assert verdict["first_bad"]["stream"] == "events"
    finally:
        stream.write_bytes(was)
    kinds = goes_on(device, before)
    assert kinds.count("failed") == 1
    failed = [event for event in device.account.events if event.kind == "failed"][-1]
    assert "does not verify" in str(failed["reason"])
    assert failed["code"] == ACCOUNT


def test_a_credential_that_is_missing_is_named_until_it_is_put_back(device: Device) -> None:
    """It may come back by itself, as a store that is mounted late: the unit tries on."""
    before = stop(device)
    kept = device.inside("/etc/credstore.encrypted/meterd.device")
    aside = kept.rename(kept.with_suffix(".aside"))
    machine = device.machine
    try:
        machine.run("systemctl", "start", "--no-block", METER)
        machine.until(lambda: int(machine.shown(METER, "NRestarts")) >= 2, "it is tried again")
        journal = ("journalctl", "--namespace=meterd", "--no-pager", "-o", "cat", "--lines=20")
        said = machine.run(*journal, "-u", METER)
    finally:
        aside.rename(kept)
    assert "the credential meterd.device is not there" in said
    assert "put back /etc/credstore.encrypted/meterd.device" in said
    assert device.account.kinds_of_events[before.events :] == []
    assert goes_on(device, before).count("failed") == 1


def test_s5_settings_with_a_mistake_stop_the_start_and_another_ratio_is_on_record(
    device: Device,
) -> None:
    before = stop(device)
    settings = device.inside(f"{ETC}/meterd.toml")
    was = settings.read_bytes()
    settings.write_bytes(was.replace(b'role = "mains"', b'role = "mane"'))
    said = refused(device, SETTINGS)
    assert "config check" in said
    assert device.account.kinds_of_events[before.events :] == []
    settings.write_bytes(was.replace(b'role = "mains"', b'role = "mains"\nscale = 1.5'))
    kinds = goes_on(device, before)
    assert kinds.count("failed") == kinds.count("parameters") == 1
    changes = [event for event in device.account.events if event.kind == "parameters"][-1]
    assert any("1.5" in str(value) for _, value in changes.details)
