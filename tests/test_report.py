"""`meterctl report` by a running meter, and what an office makes of the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.ctl.technician_commands import chosen
from meterd.device.control_client import ControlClient
from meterd.device.report import recent_events
from meterd.errors import UsageError
from meterd.init import read_genesis
from meterd.ledger import report as reports
from meterd.ledger.report import decode_file, encode_file, encode_side
from meterd.software import software_id
from tests.ctl_kit import Ctl, program
from tests.daemon_kit import Cable, House, line, make_house

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(capsys)


class Told(NamedTuple):
    """A meter that has metered a while, its report, and the registers as they were asked for."""

    house: House
    file: Path
    registers: dict[str, dict[str, object]]
    socket: Path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("report")
    house = make_house(folder, polling_ms=500)
    with Cable(house.port) as cable, house.run() as daemon:
        daemon.hear("port_opened")
        for power_w in range(500, 505):
            cable.say(line(power_w))
        house.wait_accepted(2)
        daemon.hear("alarm=port")  # the cable says no more
        registers = house.ask().call("Registers")["registers"]
        said = program(
            *("report", "--state", house.state, "--config", house.config),
            *("-o", folder / "kitchen.report"),
        )
        assert said.returncode == 0, said.stderr
        assert b"wrote " in said.stdout
        yield Told(house, folder / "kitchen.report", registers, house.state / "control")
        assert daemon.stop() == 0


def test_a_report_says_what_the_device_says(ctl: Ctl, told: Told) -> None:
    said = ctl("verify", told.file, "--key", told.house.public_key.hex(), "--json")
    assert (said.status, said.err) == (0, "")
    report = said.json
    genesis = read_genesis(told.house.state)
    assert report["verdict"] == "good"
    assert report["meter"] == "kitchen-12"
    assert report["genesis_hash"] == genesis.hash.hex()
    assert report["software"] == software_id().hex()
    assert report["registers"] == told.registers
    assert report["alarms"] == ["port: the board is silent"]
    assert report["head"]["height"] == report["certified_height"] == 0
    kinds = {event["kind"] for event in report["events"]["happened"]}
    assert {"started", "port_opened", "port_silent", "alarm"} <= kinds
    assert all(
        set(event) == {"number", "wall_ms", "kind"} for event in report["events"]["happened"]
    )
    claims = {claim["check"]: claim["verdict"] for claim in report["claimed_by_tool"]}
    assert claims["alarm port"] == "fail"
    assert claims["settings"] == "ok"


def test_a_genesis_serves_as_well_and_people_read_it_in_eighty_columns(
    ctl: Ctl, told: Told
) -> None:
    genesis = told.house.state / "genesis.cbor"
    said = ctl("verify", told.file, "--genesis", genesis)
    assert said.status == 0
    assert said.out.startswith("good: kitchen-12 (1) says of itself, under its seal:")
    assert "said beside it by the tool on the device, and not known to the meter:" in said.out
    assert "alarm     port: the board is silent" in said.out
    assert [each for each in said.out.splitlines() if len(each) > 80] == []
    assert ctl("report", "--check", told.file, "--genesis", genesis).out == said.out


def test_what_others_have_changed_is_bad(ctl: Ctl, told: Told, tmp_path: Path) -> None:
    key = told.house.public_key.hex()
    message, side = decode_file(told.file.read_bytes())
    flipped = bytearray(message)
    flipped[200] ^= 1
    for name, data, reason in (
        ("seal", encode_file(bytes(flipped), side), ""),
        ("side", encode_file(message, encode_side([])), "is not what stood there"),
        ("none", encode_file(message, b""), "is not what stood there"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        said = ctl("verify", path, "--key", key, "--json")
        assert (said.status, said.json["verdict"]) in {(1, "bad"), (2, "unreadable")}
        assert reason in said.json["reason"]
    said = ctl("verify", told.file, "--key", "00" * 31 + "01")
    assert said.status == 1
    assert "not by this meter's" in said.out


def test_a_report_of_another_network_is_bad(ctl: Ctl, told: Told, tmp_path: Path) -> None:
    other = make_house(tmp_path, network="elsewhere")
    said = ctl("verify", told.file, "--genesis", other.state / "genesis.cbor")
    assert said.status == 1
    assert "another network" in said.out


def test_a_report_without_a_key_is_not_judged_and_what_is_none_is_unreadable(
    ctl: Ctl, told: Told, tmp_path: Path
) -> None:
    said = ctl("verify", told.file)
    assert said.status == 64
    assert "takes --key KEY or --genesis FILE" in said.err
    (tmp_path / "x").write_bytes(told.file.read_bytes()[:-1])
    said = ctl("report", "--check", tmp_path / "x", "--key", "00" * 32)
    assert said.status == 2
    assert ctl("report", "--key", "00" * 32).status == 64


def test_a_report_goes_to_standard_output_and_is_never_written_over(told: Told) -> None:
    options = ("--state", told.house.state, "--config", told.house.config)
    said = program("report", "--no-doctor", *options)
    assert said.returncode == 0
    assert decode_file(said.stdout)[1] == b""
    again = program("report", *options, "-o", told.file)
    assert again.returncode == 78
    assert b"is there already" in again.stderr


def test_without_a_meter_there_is_no_report(ctl: Ctl, tmp_path: Path) -> None:
    said = ctl("report", "--state", tmp_path, "--no-doctor", "-o", tmp_path / "r")
    assert said.status == 69
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("side", ["xyz", "00" * 31, "00" * 200])
def test_the_meter_binds_a_digest_and_nothing_else(told: Told, side: str) -> None:
    with pytest.raises(UsageError, match="side: expected"):
        ControlClient(told.socket).call("Report", since_s=0, side=side)


def test_events_before_the_instant_are_not_told(told: Told) -> None:
    reply = ControlClient(told.socket).call("Report", since_s=2**40)
    report = reports.open_report(bytes.fromhex(reply["report"]), told.house.public_key)
    assert report.happened == ()
    assert report.events[0] > 0


def test_the_newest_events_are_told_and_the_rest_counted(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, none = recent_events(told.house.state, 0, 10**9)
    assert none == 0
    monkeypatch.setattr("meterd.device.report.EVENTS_MAX", 2)
    newest, left_out = recent_events(told.house.state, 0, 10**9)
    assert newest == everything[-2:]
    assert left_out == len(everything) - 2
    first, _ = recent_events(told.house.state, 0, 1)
    assert first == everything[:1]


def test_a_technician_sends_it_to_a_file_of_their_own() -> None:
    assert chosen("report --since 2026-11-01") == ("report", "--since", "2026-11-01")
    with pytest.raises(UsageError, match="does not take '-o' here"):
        chosen("report -o /etc/passwd")


def test_json_of_a_report_is_one_object(ctl: Ctl, told: Told) -> None:
    said = ctl("report", "--check", told.file, "--key", told.house.public_key.hex(), "--json")
    assert json.loads(said.out)["kind"] == "report"
