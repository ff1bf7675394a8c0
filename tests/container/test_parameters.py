"""Commissioning and signed commands on a booted device, under its units (row S3)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.container.build import BASE
from tests.container.device import BROKER_UNIT, ETC, STATE, Board, begin, deliver, enrol, wheel
from tests.container.machine import METER, Machine, Tree
from tests.container.test_units import certified, journal

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(400)  # it installs, boots, and waits for an interval's end

OWNER = "/root/owner.key"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("parameters")
    with Tree(folder, BASE / "root") as tree:
        deliver(tree, wheel(folder))
        (tree.path / "etc/systemd/system/broker.service").write_text(BROKER_UNIT)
        enrol(tree)
        with (
            Board(folder, tree.id_of("meterd")) as board,
            Machine(tree, board=board.link.resolve()) as machine,
        ):
            begin(machine)
            yield machine


def ctl(device: Machine, *arguments: str) -> Any:  # noqa: ANN401 - whatever the command prints
    return json.loads(device.run("meterctl", *arguments, "--json", check=False).splitlines()[-1])


def test_s3_a_device_is_commissioned_and_then_changed_by_command_alone(device: Machine) -> None:
    device.until(lambda: certified(device) >= 1, "a certified block")
    public = ctl(device, "calibrate", "key", "-o", OWNER)["key"]
    answers = ("--answers", "load=skip,zero=skip", "--owner", public, "--seconds", "5", "--yes")
    said: dict[str, Any] = {}

    def commissioned() -> bool:
        """Try as a technician does: what a busy machine lets stand for a moment goes by itself."""
        said.update(ctl(device, "commission", *answers))
        return bool(said["commissioned"])

    device.until(commissioned, "a commissioning")
    pid = device.shown(METER, "MainPID")
    change = ("--set", "clamp.1.scale=1.01", "--sign-with", OWNER)
    changed = ctl(device, "calibrate", *change)
    assert (changed["by"], changed["sequence"]) == ("owner", said["sequence"] + 1)
    assert ctl(device, "parameters")["settings"]["clamp.1.scale"] == "1.01"
    assert device.shown(METER, "MainPID") == pid, "the same process"
    assert (device.shown(METER, "ActiveState"), device.shown(METER, "NRestarts")) == ("active", "0")
    device.run("sed", "-i", 's/role = "mains"/role = "mains"\\nscale = 0.5/', f"{ETC}/meterd.toml")
    device.run("systemctl", "restart", METER)
    device.until(lambda: "alarm=parameters" in journal(device), "an alarm")
    assert ctl(device, "parameters")["settings"]["clamp.1.scale"] == "1.01"
    kinds = device.run("meterctl", "events", "--kind", "commissioned", "--kind", "parameters")
    assert kinds.count("parameters") == 3
    assert ctl(device, "verify", STATE)["verdict"] == "good"
