"""Rows E1, E2 and A5 by whole daemons: what is provoked is one event, and the account is good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from nacl.signing import SigningKey

from meterd.device.control_client import ControlClient
from meterd.device.keys import create_next_seal, take_in
from meterd.errors import AbsentError
from meterd.event_kinds import KINDS, METERING
from tests.conftest import ROOT
from tests.daemon_kit import Cable, House, Program, line, make_house, small_card, until
from tests.test_pins_daemon import Wires

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meterd.ledger.event import Event

GPIO = """
[gpio]
case_switch = 17
magnet = 27
relay = 24
relay_closed = "high"
"""
SECOND_MS = 1000
DEVICE_KEY = bytes(range(32))
PATCHED = """\
import sys
import meterd.{module} as module
module.{name} = lambda *_: bytes.fromhex("{value}")
from meterd.__main__ import main
sys.exit(main())
"""
JOURNALCTL = """\
#!{python}
import pathlib, signal, sys
folder = pathlib.Path({folder!r})
with (folder / "asked").open("a") as asked:
    asked.write(" ".join(sys.argv) + "\\n")
lines = (folder / "journal").read_text().splitlines()
after = [word.partition("=")[2] for word in sys.argv if word.startswith("--after-cursor=")]
begin = next((n for n, line in enumerate(lines, 1) if f'"{{after[0]}}"' in line), 0) if after else 0
print(*lines[begin:], sep="\\n", flush=True)
signal.pause()
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = make_house(tmp_path, commit_s=1, polling_ms=200)
    with Cable(house.port) as cable:
        cable.say(line(100.0))
        yield house


def patched(module: str, name: str, value: bytes) -> tuple[str, ...]:
    """Return a program that is the daemon with one function that gives something else."""
    return (sys.executable, "-c", PATCHED.format(module=module, name=name, value=value.hex()))


def once(house: House, *, environ: dict[str, str] | None = None) -> list[str]:
    """Run the daemon, and stop it; return the kinds of the events of this run."""
    before = len(house.account.events)
    with house.run(environ=environ) as meter:
        house.ask()
        assert meter.stop() == 0
    return [event.kind for event in house.account.events[before:]]


def told(house: House, kind: str) -> list[Event]:
    return [event for event in house.account.events if event.kind == kind]


def meterctl(
    house: House, *arguments: str, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    code = "import sys; from meterd.ctl import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments, "--state", str(house.state)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | (environ or {}),
    )


# --- E1: starts, settings, keys, software ---------------------------------------------------------


def test_e1_a_start_and_a_stop_are_one_event_each_and_the_first_tells_what_it_has(
    house: House,
) -> None:
    kinds = once(house)
    for kind in ("started", "stopped", "configuration", "key_made", "parameters"):
        assert kinds.count(kind) == 1, kind
    again = once(house)
    assert {kind for kind in again if not kind.startswith("clock_")} <= {
        *("started", "stopped", "sealed"),
        *("port_opened", "port_lost", "port_silent", "port_speaks", "alarm", "alarm_over"),
    }
    house.verify_good()


def test_e1_other_settings_are_one_event_with_both_digests(house: House) -> None:
    once(house)
    old = sha256(house.config.read_bytes()).digest()
    house.config.write_text(house.config.read_text() + "\n# a word more\n")
    new = sha256(house.config.read_bytes()).digest()
    for _ in range(2):
        once(house)
    assert [event.details for event in told(house, "configuration")] == [
        (("new", old),),
        (("old", old), ("new", new)),
    ]
    house.verify_good()


def test_e1_other_software_is_one_event_with_both_identifiers(house: House) -> None:
    once(house)
    house.program = patched("software", "software_id", b"x" * 32)
    for _ in range(2):
        once(house)
    [event] = told(house, "software_updated")
    [before] = {event["software"] for event in told(house, "started")} - {b"x" * 32}
    assert event.details == (("old", before), ("new", b"x" * 32))
    house.verify_good()


def test_e1_a_key_is_one_event_as_it_is_made_and_one_as_the_vault_takes_it(
    house: House,
) -> None:
    once(house)
    made = create_next_seal(house.state, bytes(range(1, 33)))
    once(house)
    take_in(house.state, DEVICE_KEY)
    house.program = patched("device.secret", "find_device_key", DEVICE_KEY)
    for _ in range(2):
        once(house)
    keys = [event["key"] for event in told(house, "key_made")]
    assert keys == [house.public_key, bytes(made.verify_key)]
    moved = [event.details for event in told(house, "key_moved")]
    assert moved == [(("key", key), ("to", "vault")) for key in keys]
    house.verify_good()


def test_e1_little_room_on_the_card_is_one_event_and_its_end_another(tmp_path: Path) -> None:
    with small_card(tmp_path / "card", 4096) as card:
        house = make_house(tmp_path, state=card / "account", commit_s=1)
        with Cable(house.port) as cable:
            cable.say(line(100.0))
            for _ in range(2):
                once(house)
        alarms = [event for event in told(house, "alarm") if event["alarm"] == "storage_low"]
        assert len(alarms) == 2, "one for each run: alarms begin anew with it"


def test_e1_what_bears_on_security_is_listed_by_itself(house: House) -> None:
    once(house)
    all_kinds, security = (
        {json.loads(line)["kind"] for line in meterctl(house, *words).stdout.splitlines()}
        for words in (("events", "--json"), ("events", "--json", "--security"))
    )
    assert security >= {"started", "stopped", "key_made", "configuration"}
    assert all_kinds - security == {
        kind for kind in all_kinds if kind in KINDS and KINDS[kind].area == METERING
    } - {"alarm", "alarm_over"}
    assert "port_opened" in all_kinds - security


# --- E2: an end without a word --------------------------------------------------------------------


def test_e2_power_that_was_lost_is_found_at_the_start_with_the_last_instant(
    tmp_path: Path,
) -> None:
    house = make_house(tmp_path, commit_s=1, polling_ms=200)
    with Cable(house.port) as cable:
        with house.run() as meter:
            house.ask()
            meter.hear("port_opened")
            for power_w in (100.0, 200.0, 300.0):
                cable.say(line(power_w))
            house.wait_accepted(2)
            samples = house.state / "samples"
            until(
                lambda: any(path.stat().st_size > 300 for path in samples.iterdir()),
                "rows are on the card",
            )
            meter.stop(signal.SIGKILL)
        last_ms = max(house.account.events[-1].boot_ms, 0)
        house.program = patched("device.clock", "read_boot_id", b"another boot, ok")
        for _ in range(2):
            once(house)
    [event] = told(house, "power_lost")
    assert event["run"] == 1
    assert event.number_of("last_boot_ms") >= last_ms
    assert event.number_of("last_ms") <= event.wall_ms
    assert event.wall_ms - event.number_of("last_ms") < 60 * SECOND_MS
    assert told(house, "died") == []
    house.verify_good()


def test_e2_a_daemon_that_was_killed_is_told_apart_from_lost_power(house: House) -> None:
    with house.run() as meter:
        house.ask()
        until(lambda: bool(house.account.events), "the start is on the card")
        meter.stop(signal.SIGKILL)
    with house.run() as meter:
        meter.hear(r"^died run=1 last_boot_ms=\d+ last_ms=\d+$")
        house.ask()
        assert meter.stop() == 0
    once(house)
    assert [event["run"] for event in told(house, "died")] == [1]
    assert told(house, "power_lost") == []


# --- E1, E2, A5: hands on the meter ---------------------------------------------------------------


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Wires]:
    house = make_house(tmp_path, commit_s=3600)
    house.config.write_text(house.config.read_text() + GPIO)
    with Cable(house.port):
        yield Wires(house)


def test_a5_a_case_is_acknowledged_by_whoever_the_session_says(wires: Wires) -> None:
    house = wires.house
    with wires.running("17=low,27=high") as meter:
        wires.move("17 high")
        meter.hear("alarm alarm=case ")
        session = {"METERD_TECHNICIAN": "jo@grid-co/17"}
        for _ in range(2):
            assert meterctl(house, "case", "ack", environ=session).returncode == 0
        meter.hear("alarm_over alarm=case")
        # On the card as the command ends, and so after a kill.
        meter.stop(signal.SIGKILL)
    [event] = told(house, "case_acknowledged")
    assert event.details == (("certificate", "jo@grid-co"), ("serial", 17))
    with wires.running("17=high,27=high") as meter:
        assert ControlClient(house.state / "control").call("Status")["alarms"] == []
        assert meter.stop() == 0
    house.verify_good()


def test_a_session_that_commissions_ends_once_though_the_meter_starts_anew(house: House) -> None:
    who: dict[str, object] = {"certificate": "jo", "serial": 17}
    with house.run() as daemon:
        client = house.ask()
        client.call("Login", **who, key="SHA256:x", source="192.0.2.7")
        parameters = ControlClient(house.state / "control", interface="org.meterd.Parameters")
        owner = bytes(SigningKey(DEVICE_KEY[::-1]).verify_key).hex()
        parameters.call("Commission", record=bytes(32).hex(), owner=owner)
        daemon.hear("starts_anew")
        daemon.hear("started ")
        house.ask().call("Left", **who, source="192.0.2.7")
        house.ask().call("Left", **who, source="192.0.2.7")
        assert daemon.stop() == 0
    kinds = [event.kind for event in house.account.events]
    assert kinds.count("commissioned") == kinds.count("technician_left") == 1
    house.verify_good()


def test_e1_a_relay_that_is_switched_is_one_event_and_says_by_whom(wires: Wires) -> None:
    house = wires.house
    with wires.running("17=low,27=high") as meter:
        for _ in range(2):
            assert meterctl(house, "relay", "open").returncode == 0
        shown = ControlClient(house.state / "control").call("Relay")
        assert shown == {"wished": "open", "state": "open"}
        assert meter.stop() == 0
        assert "pin GPIO24 output low" in meter.lines
    [event] = told(house, "relay_ordered")
    assert event.details == (("to", "open"), ("by", "operator"))
    assert len(told(house, "relay_confirmed")) == 1
    house.verify_good()


def test_without_a_relay_there_is_none_to_switch(house: House) -> None:
    with house.run() as meter:
        house.ask()
        done = meterctl(house, "relay", "show")
        assert done.returncode == AbsentError.exit_code
        assert "name its pin as `relay` in [gpio]" in done.stderr
        assert meter.stop() == 0


def test_e2_case_and_magnet_are_events_within_a_second_each_once(wires: Wires) -> None:
    house = wires.house
    with wires.running("17=low,27=high") as meter:
        client = house.ask()
        status = client.call("Status")
        assert status["alarms"] == []
        wires.move("17 high", "17 low", "17 high", "27 low", "27 high", "27 low")
        meter.hear("alarm alarm=(case|magnet) ")
        meter.hear("alarm alarm=(case|magnet) ")
        assert meter.stop() == 0
    [opened], [magnet] = told(house, "case_opened"), told(house, "magnet")
    assert abs(opened.boot_ms - magnet.boot_ms) <= SECOND_MS
    alarms = [event["alarm"] for event in told(house, "alarm")]
    assert (alarms.count("case"), alarms.count("magnet")) == (1, 1)
    house.verify_good()


def test_e2_a_switch_that_does_not_come_to_rest_is_an_alarm_and_not_a_flood(wires: Wires) -> None:
    house = wires.house
    with wires.running("17=low,27=high") as meter:
        house.ask()
        rattle = [level for _ in range(200) for level in ("17 high", "17 low")]
        while not meter.listen_for("alarm alarm=case_switch_stuck ", deadline_s=0.01):
            wires.move(*rattle)
        wires.move("17 low")
        meter.hear("alarm_over alarm=case_switch_stuck")
        assert meter.stop() == 0
    stuck = [event for event in told(house, "alarm") if event["alarm"] == "case_switch_stuck"]
    assert len(stuck) == 1
    assert len([event for event in house.account.events if event.kind.startswith("case_")]) <= 34


# --- E1: the watcher of logins --------------------------------------------------------------------


class Watch:
    """`meterd-logins` beside a journal of the test's own."""

    def __init__(self, folder: Path, house: House) -> None:
        self.folder, self.house = folder, house
        program = folder / "bin" / "journalctl"
        program.parent.mkdir()
        program.write_text(JOURNALCTL.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)
        self.journal = folder / "journal"
        self.journal.touch()
        self.lines = 0

    def say(self, *texts: str, pid: int) -> None:
        """Have sshd say something."""
        with self.journal.open("a") as file:
            for text in texts:
                self.lines += 1
                entry = {
                    "MESSAGE": text,
                    "SYSLOG_IDENTIFIER": "sshd-session",
                    "_PID": str(pid),
                    "_UID": "0",
                    "_BOOT_ID": "boot",
                    "__CURSOR": f"c{self.lines}",
                    "__REALTIME_TIMESTAMP": f"{1_795_305_600 + self.lines}000000",
                }
                file.write(json.dumps(entry) + "\n")

    def refuse(self, port: int) -> None:
        where = f"192.0.2.7 port {port}"
        self.say(
            f"Connection from {where} on 192.0.2.1 port 22",
            f"Failed publickey for technician from {where} ssh2: ED25519 SHA256:x",
            f"Connection closed by authenticating user technician {where} [preauth]",
            pid=port,
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[Program]:
        code = "import sys; from meterd.logins import main; sys.exit(main())"
        kept = ("--kept", str(self.folder / "read"))
        control = ("--socket", str(self.house.state / "control"))
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environ = {"PATH": path, "PYTHONPATH": str(ROOT)}
        with Program([sys.executable, "-c", code, *control, *kept], environ=environ) as program:
            yield program
            assert program.stop() == 0

    def refusals(self) -> list[dict[str, Any]]:
        return [dict(event.details) for event in told(self.house, "login_refused")]


def test_e1_refused_logins_are_told_once_over_restarts_of_all(tmp_path: Path, house: House) -> None:
    watch = Watch(tmp_path, house)
    watch.refuse(1)
    with house.run() as meter:
        house.ask()
        with watch.running():
            until(lambda: len(watch.refusals()) == 1, "the first")
        watch.refuse(2)
        watch.say("Connection from 192.0.2.7 port 9 on 192.0.2.1 port 22", pid=9)
        with watch.running():
            until(lambda: len(watch.refusals()) == 2, "the second")
        assert meter.stop() == 0
    watch.refuse(3)
    with watch.running() as program:
        program.hear("meter_absent ")
        with house.run() as meter:
            until(lambda: len(watch.refusals()) == 3, "the third, to the next daemon")
            assert meter.stop() == 0
    found = watch.refusals()
    assert [one["at_s"] - 1_795_305_600 for one in found] == [3, 6, 10]
    assert {(one["account"], one["reason"], one["source"]) for one in found} == {
        ("technician", "key", "192.0.2.7")
    }
    assert "--after-cursor=" in (tmp_path / "asked").read_text().splitlines()[-1]
    house.verify_good()
