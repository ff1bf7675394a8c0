"""`meterctl doctor` on real things: a daemon, a pty, a held port, files of other computers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meterd.ctl.doctor_card import open_files
from meterd.ctl.doctor_dates import certificate_ends_s, revoked_made_s
from meterd.ctl.doctor_facts import Unit, Unseen
from meterd.ctl.doctor_machine import Machine
from meterd.ctl.technician_commands import chosen
from meterd.device.port import open_port
from meterd.errors import EncodingError, UsageError
from tests.ctl_kit import Ctl
from tests.daemon_kit import Cable, House, Program, line, make_house

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(capsys)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path, polling_ms=500)


def findings(ctl: Ctl, house: House, *options: object) -> dict[str, list[dict[str, Any]]]:
    """Return what doctor finds, by check."""
    said = ctl(*("doctor", "--json", "--state", house.state, "--config", house.config), *options)
    assert said.err == ""
    told = json.loads(said.out)
    assert said.status == (0 if told["well"] else 1)
    found: dict[str, list[dict[str, Any]]] = {}
    for each in told["findings"]:
        found.setdefault(each["check"], []).append(each)
    assert told["counts"] == {
        verdict: sum(each["verdict"] == verdict for each in told["findings"])
        for verdict in ("fail", "warn", "unknown", "ok")
    }
    return found


def meter_some(house: House, cable: Cable, daemon: Program) -> None:
    """Let a daemon that has just been started take some readings."""
    daemon.hear("port_opened")
    for power_w in range(500, 505):
        cable.say(line(power_w))
    house.wait_accepted(2)


@contextmanager
def saying(cable: Cable, chunks: list[bytes]) -> Iterator[None]:
    """Play a board that says `chunks` again and again, each 50 ms."""
    ends = threading.Event()

    def speak() -> None:
        for chunk in cycle(chunks):
            if ends.wait(0.05):
                return
            cable.say(chunk)

    speaker = threading.Thread(target=speak)
    speaker.start()
    yield
    ends.set()
    speaker.join()


def only(found: dict[str, list[dict[str, Any]]], check: str) -> tuple[str, str]:
    ((each),) = found[check]
    return each["verdict"], each["found"]


# --- a meter --------------------------------------------------------------------------------------


def test_a_meter_that_meters_is_seen_to_and_nothing_is_written(ctl: Ctl, house: House) -> None:
    with Cable(house.port) as cable, house.run() as daemon:
        meter_some(house, cable, daemon)
        before = set(house.state.rglob("*"))
        with saying(cable, [line(power_w) for power_w in range(505, 525)]):
            found = findings(ctl, house, "--quick")
        assert set(house.state.rglob("*")) == before
        assert daemon.stop() == 0
    assert only(found, "daemon") == ("ok", "answers: metering, block 0 is the last")
    assert only(found, "port")[0] == "ok"
    assert only(found, "settings")[0] == "ok"
    assert only(found, "account")[0] == "ok"
    assert only(found, "sealing key")[0] == "ok"
    assert only(found, "sync")[0] == "ok"
    assert only(found, "software")[0] == "ok"
    assert "board" not in found  # the daemon has the port: it says how the board is
    assert only(found, "events")[0] == "ok"


def test_an_alarm_of_the_daemon_is_a_finding_with_what_to_do(ctl: Ctl, house: House) -> None:
    with Cable(house.port) as cable, house.run() as daemon:
        meter_some(house, cable, daemon)
        daemon.hear("alarm=port")
        ((alarm),) = findings(ctl, house, "--quick")["alarm port"]
    assert (alarm["verdict"], alarm["found"]) == ("fail", "the board is silent")
    assert "cable and power" in alarm["todo"]


@pytest.mark.parametrize(
    ("says", "verdict", "told"),
    [
        pytest.param([], "fail", "not a byte", id="silent"),
        pytest.param([line(500)] * 4, "ok", r"[2-9]\d* readings", id="well"),
        pytest.param([b"11 1.0 2.0\r\n"] * 9, "fail", "lines have 3 fields", id="another layout"),
        pytest.param([b"\xf8\x00\x80\xfe" * 100], "fail", "garbage", id="another speed"),
    ],
)
def test_a_board_is_listened_to_where_nobody_meters(
    ctl: Ctl, house: House, says: list[bytes], verdict: str, told: str
) -> None:
    with Cable(house.port) as cable, saying(cable, says):
        found = findings(ctl, house)
    assert only(found, "daemon")[0] == "fail"
    got = only(found, "board")
    assert got[0] == verdict
    assert re.search(told, got[1])


def test_whoever_holds_the_port_is_named(ctl: Ctl, house: House) -> None:
    script = "import sys; f = open(sys.argv[1], 'rb', buffering=0); print(flush=True); input()"
    with (
        Cable(house.port),
        subprocess.Popen(
            [sys.executable, "-c", script, house.port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder,
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        found = findings(ctl, house, "--quick")
        assert only(found, "port")[0] == "fail"
        assert f"({holder.pid})" in only(found, "port")[1]
        holder.communicate(b"\n")
        assert only(findings(ctl, house, "--quick"), "port")[0] == "ok"


def test_a_meter_that_systemd_starts_just_now_finds_its_port_free(
    ctl: Ctl, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for active, listens in (("activating", False), ("failed", True)):
        units = (Unit("meterd.service", active, "enabled", 9),)
        monkeypatch.setattr(Machine, "units", lambda *_, told=units, **__: told)
        with Cable(house.port):
            assert ("board" in findings(ctl, house)) is listens


@pytest.mark.skipif(os.geteuid() != 0, reason="a terminal of another namespace takes root")
def test_whoever_has_a_terminal_of_the_same_name_elsewhere_is_not_named(
    ctl: Ctl, house: House
) -> None:
    """Each container has a /dev/pts/0 of its own: held are all that could be taken for the port."""
    script = (
        "import os, sys\nfor _ in range(64): os.openpty()\nprint(flush=True)\nsys.stdin.read()\n"
    )
    mount = "mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts && "
    mount += 'mount --bind /dev/pts/ptmx /dev/ptmx && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", mount, sys.executable, script]
    with (
        Cable(house.port),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as elsewhere,
    ):
        assert elsewhere.stdout is not None
        assert elsewhere.stdout.readline() == b"\n"
        found = findings(ctl, house, "--quick")
        elsewhere.communicate(b"")
    assert only(found, "port")[0] == "ok", found["port"]


def test_a_port_that_another_has_locked_is_not_listened_to(ctl: Ctl, house: House) -> None:
    with Cable(house.port):
        taken = open_port(str(house.port))
        try:
            found = findings(ctl, house)
        finally:
            taken.close()
    assert only(found, "board") == ("unknown", "another program holds the port")


def test_a_port_that_is_not_there_and_settings_that_are_wrong(ctl: Ctl, house: House) -> None:
    assert only(findings(ctl, house), "port") == ("fail", f"there is no {house.port}")
    house.config.write_text(house.config.read_text().replace("[board]", "[bord]"))
    found = findings(ctl, house)
    assert only(found, "settings")[0] == "fail"
    assert "there is no such table" in only(found, "settings")[1]


def test_damage_to_the_account_and_a_key_that_others_read_are_found(ctl: Ctl, house: House) -> None:
    with Cable(house.port) as cable, house.run() as daemon:
        meter_some(house, cable, daemon)
        assert daemon.stop() == 0
    segment = min((house.state / "events").iterdir())
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    (house.state / "seal.key").chmod(0o644)
    found = findings(ctl, house, "--quick")
    assert only(found, "account")[0] == "fail"
    assert "mode 0644" in only(found, "sealing key")[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes nobody here")
def test_without_root_what_cannot_be_seen_is_said_to_be_unknown(ctl: Ctl, house: House) -> None:
    house.state.chmod(0o700)
    os.seteuid(65_534)
    try:
        found = findings(ctl, house)
    finally:
        os.seteuid(0)
    assert only(found, "account") == ("unknown", "needs root")
    assert only(found, "lockdown") == ("unknown", "needs root")


def test_people_get_the_answer_first_in_eighty_columns(ctl: Ctl, house: House) -> None:
    said = ctl("doctor", "--state", house.state, "--config", house.config)
    assert said.status == 1
    assert said.out.startswith("not well: ")
    assert "do: " in said.out
    assert [each for each in said.out.splitlines() if len(each) > 80] == []


def test_a_technician_has_doctor_and_may_not_name_files() -> None:
    assert chosen("doctor --quick --json") == ("doctor", "--quick", "--json")
    with pytest.raises(UsageError, match="does not take '--config' here"):
        chosen("doctor --config /etc/shadow")


@pytest.mark.skipif(os.geteuid() != 0, reason="root sets the flag here")
def test_segments_of_past_days_that_are_not_append_only_are_counted(tmp_path: Path) -> None:
    segments = [tmp_path / stream / "1" for stream in ("samples", "events", "blocks")]
    for path in segments:
        path.parent.mkdir()
        path.touch()
        os.utime(path, (1, 1))
    flagged = subprocess.run(["chattr", "+a", segments[0]], check=False, capture_output=True)
    if flagged.returncode:
        pytest.skip("this filesystem has no append-only files")
    try:
        assert open_files(tmp_path, 100.0) == 2
        segments[1].touch()
        assert open_files(tmp_path, 100.0) == 1
    finally:
        subprocess.run(["chattr", "-a", segments[0]], check=True)
    assert open_files(Path("/proc/self/nothing"), 100.0) == 0


# --- other computers ------------------------------------------------------------------------------


def computer(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_raspberry_pi_tells_of_its_supply_and_its_heat(tmp_path: Path) -> None:
    root = computer(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
            "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
            "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
            "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n",
            "sys/class/thermal/thermal_zone0/temp": "51540\n",
            "boot/firmware/config.txt": "[all]\n",
            "proc/meminfo": "MemTotal:        947732 kB\nMemAvailable:    612340 kB\n",
        },
    )
    machine = Machine(root, lambda *_: None)
    assert machine.is_pi
    assert machine.throttled() == 0x50005
    assert machine.low_voltage() is True
    assert machine.celsius() == 51
    assert machine.config_txt() == "[all]"
    assert machine.memory() == (970_477_568, 627_036_160, None)
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for controllers, bounded in (("cpuset cpu io pids\n", False), ("cpu memory pids\n", True)):
        (root / "sys/fs/cgroup/cgroup.controllers").write_text(controllers)
        assert machine.memory() == (970_477_568, 627_036_160, bounded)


def test_where_the_firmware_does_not_say_it_vcgencmd_is_asked(tmp_path: Path) -> None:
    root = computer(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5\0"})
    asked: list[tuple[str, ...]] = []

    def ask(*command: str) -> str:
        asked.append(command)
        return "throttled=0x80000\n"

    assert Machine(root, ask).throttled() == 0x80000
    assert asked == [("vcgencmd", "get_throttled")]
    assert isinstance(Machine(root, lambda *_: None).throttled(), Unseen)


def test_another_machine_is_not_asked_for_what_a_pi_has(tmp_path: Path) -> None:
    machine = Machine(computer(tmp_path, {"proc/cmdline": "quiet"}), lambda *_: None)
    assert machine.throttled() is None
    assert machine.config_txt() is None
    assert machine.low_voltage() is None
    assert machine.units(peer=True) is None
    assert machine.watchdog() is None


def test_units_are_told_as_systemd_has_them(tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    shown = (
        "Id=meterd.service\nActiveState=active\nUnitFileState=enabled\nNRestarts=2\n\n"
        "Id=meterd-peer.service\nActiveState=inactive\nUnitFileState=disabled\nNRestarts=0\n\n"
        "Id=meterd-prune.timer\nActiveState=active\nUnitFileState=enabled\n"
    )
    replies = {
        "list-unit-files": (
            "meterd.service enabled enabled\n"
            "meterd-prune.service static -\n"
            "meterd-logins.service disabled enabled\n"
            "meterd-prune.timer enabled enabled\n"
        ),
        "show": shown,
    }
    commands: list[tuple[str, ...]] = []

    def ask(*command: str) -> str:
        commands.append(command)
        return replies[command[1]]

    units = Machine(tmp_path, ask).units(peer=False)
    assert units is not None
    assert not isinstance(units, Unseen)
    assert [(unit.name, unit.active, unit.restarts, unit.needed) for unit in units] == [
        ("meterd.service", "active", 2, True),
        ("meterd-peer.service", "inactive", 0, False),
        ("meterd-prune.timer", "active", 0, False),
    ]
    assert commands[1][-2:] == ("meterd-logins.service", "meterd-prune.timer")
    assert Machine(tmp_path, lambda *_: None).units(peer=True) == Unseen("systemd does not answer")


def test_consoles_and_gettys_are_those_of_the_board_s_port(tmp_path: Path) -> None:
    root = computer(tmp_path, {"proc/cmdline": "console=tty1 console=ttyAMA0,115200 quiet"})
    (root / "dev").mkdir()
    (root / "dev/ttyAMA0").symlink_to("/dev/null")
    listed = (
        "getty@tty1.service loaded active running x\n"
        "serial-getty@ttyAMA0.service loaded active running x\n"
    )
    port = Machine(root, lambda *_: listed).port("/dev/ttyAMA0")
    assert port.there
    assert port.console == ("console=ttyAMA0,115200",)
    assert port.gettys == ("serial-getty@ttyAMA0.service",)


def test_an_emmc_says_how_worn_it_is_and_a_card_does_not(tmp_path: Path) -> None:
    root = computer(
        tmp_path,
        {
            "sys/devices/mmcblk0/device/life_time": "0x02 0x0b\n",
            "sys/devices/mmcblk0/device/pre_eol_info": "0x01\n",
            "sys/devices/mmcblk0/mmcblk0p2/partition": "2\n",
            "sys/devices/sda/sda1/partition": "1\n",
        },
    )
    blocks = root / "sys/dev/block"
    blocks.mkdir(parents=True)
    (blocks / "179:2").symlink_to("../../devices/mmcblk0/mmcblk0p2")
    (blocks / "8:1").symlink_to("../../devices/sda/sda1")
    machine = Machine(root)
    assert machine.wear(os.makedev(179, 2)) == (11, 1)
    assert machine.wear(os.makedev(8, 1)) is None
    assert machine.wear(os.makedev(9, 9)) is None


# --- certificates ---------------------------------------------------------------------------------


def test_a_certificate_is_read_until_when_it_is_good() -> None:
    from datetime import UTC, datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "kitchen-12")])
    for ends in (datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC), datetime(2071, 1, 1, tzinfo=UTC)):
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
            .not_valid_after(ends)
            .sign(key, hashes.SHA256())
        )
        data = made.public_bytes(serialization.Encoding.PEM)
        assert certificate_ends_s(data) == int(ends.timestamp())
        for cut in range(len(data) - 1):
            with pytest.raises(EncodingError):
                certificate_ends_s(data[:cut])


def test_a_revocation_list_says_when_it_was_made(tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    subprocess.run(
        ["ssh-keygen", "-k", "-f", tmp_path / "revoked", tmp_path / "none"],
        check=True,
        capture_output=True,
    )
    data = (tmp_path / "revoked").read_bytes()
    written_s = (tmp_path / "revoked").stat().st_mtime
    assert abs(revoked_made_s(data, 0) - written_s) < 60
    assert revoked_made_s(b"ssh-ed25519 AAAA\n", 1234.5) == 1234
