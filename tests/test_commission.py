"""`meterctl commission`: the rules by their words, and a person at a terminal with a meter."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from meterd.ctl import commission_rules as rules
from tests.ctl_kit import Ctl, Said, ctl
from tests.daemon_kit import DEADLINE_S, Cable, make_house
from tests.parameters_kit import OWNER, command, desk, shown, signed, wait_sequence
from tests.test_calibrate import Speaking

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from meterd.ledger.event import Event
    from tests.daemon_kit import House

__all__ = ["ctl"]
PUBLIC = bytes(OWNER.verify_key).hex()
PROGRAM = "import sys; from meterd.ctl import main; sys.exit(main())"
ALONE = {"voters": 0, "certified_height": 0, "order": 0, "waits": ""}
STREET = {"voters": 4, "certified_height": 7, "order": 0, "waits": ""}
STATUS: dict[str, Any] = {"port": "open", "clock": "S", "height": 9, "neighbours": ALONE}
TOLD: dict[str, Any] = {
    "port": "/dev/ttyAMA0",
    "last_dropped": "",
    "meter": "kitchen-12",
    "network": "elm-street",
    "distributor": "",
    "case_switch": True,
}
SETTINGS = {
    "board.layout": "rpict3v1",
    "board.fields": "node RP1 RP2 RP3 Irms1 Irms2 Irms3 Vrms",
}
MAINS = {"mains": ("clamp.1", "false")}
NOISE = {"mains": ("clamp.1", "0")}
SIXTEEN = " ".join(["1"] * 16)


@pytest.mark.parametrize(
    ("step", "verdict", "words"),
    [
        (rules.board(STATUS, TOLD, 3), "good", "3 readings from /dev/ttyAMA0"),
        (rules.board(STATUS, TOLD, 0), "bad", "open and silent -> see that the board has power"),
        (rules.board(STATUS | {"port": "lost"}, TOLD, 0), "bad", "port is lost -> see that /dev/"),
        (rules.board(STATUS, TOLD | {"last_dropped": "x"}, 0), "bad", "none is a reading"),
        (rules.layout(SETTINGS, TOLD, 1), "good", "lines are of rpict3v1"),
        (rules.layout(SETTINGS, TOLD, 0), "bad", "no line has come"),
        (
            rules.layout(SETTINGS, TOLD | {"last_dropped": SIXTEEN}, 0),
            "bad",
            "has 16 fields, rpict3v1 has 8 -> set board.layout to rpict3v1-sketch2 or rpict7v1",
        ),
        (
            rules.layout(SETTINGS, TOLD | {"last_dropped": "11 1 2 3 4 5 6 nan"}, 0),
            "bad",
            "has 8 fields, rpict3v1 has 8 -> look at the line",
        ),
        (
            rules.layout(SETTINGS, TOLD | {"last_dropped": "1, 2, 3"}, 0),
            "bad",
            "has 3 fields, rpict3v1 has 8 -> no known layout has so many",
        ),
        (rules.direction(None, MAINS), "skipped", "no load was switched on"),
        (rules.direction({"mains": [2_000_000] * 3}, MAINS), "good", "mains 2000 W"),
        (
            rules.direction({"mains": [-2_000_000] * 3}, MAINS),
            "bad",
            "counts it as export -> turn mains round on its wire, or have clamp.1.reversed set",
        ),
        (
            rules.direction({"mains": [-2_000_000]}, {"mains": ("clamp.1", "true")}),
            "bad",
            "have clamp.1.reversed set to false",
        ),
        (rules.direction({"mains": [99_999]}, MAINS), "bad", "no load is seen by mains"),
        (rules.direction({"mains": []}, MAINS), "bad", "no load is seen by mains"),
        (rules.zero(None, NOISE), "skipped", "left on"),
        (rules.zero({"mains": [0, 0]}, NOISE), "good", "mains 0.0 W"),
        (rules.zero({"mains": [0, -7_000]}, NOISE), "bad", "set clamp.1.zero_below_w to 11"),
        (rules.zero({"mains": [50_001]}, NOISE), "bad", "a load is on mains -> switch it off"),
        (rules.clock(STATUS), "good", "synchronised"),
        (rules.clock(STATUS | {"clock": "I"}), "note", "clock chip"),
        (rules.clock(STATUS | {"clock": "R"}), "bad", "not set -> see that a time server"),
        (rules.enrolment(STATUS, TOLD, "5f"), "good", "a network of its own, an owner's key"),
        (rules.enrolment(STATUS, TOLD, ""), "bad", "-> make its owner's key"),
        (rules.enrolment(STATUS, TOLD, "", operator=False), "bad", "-> commission it with --owner"),
        (
            rules.enrolment(STATUS | {"neighbours": STREET}, TOLD | {"distributor": "grid-co"}, ""),
            "good",
            "4 voters, orders by grid-co",
        ),
        (rules.peers(STATUS, None), "skipped", "there are none"),
        (rules.peers(STATUS | {"neighbours": STREET}, {}), "skipped", "no others"),
        (rules.peers(STATUS | {"neighbours": STREET}, None), "bad", "peer process does not run"),
        (rules.peers(STATUS | {"neighbours": STREET}, {"a": True}), "good", "1 of 1 are heard"),
        (
            rules.peers(STATUS | {"neighbours": STREET}, {"a": True, "b": False}),
            "note",
            "1 of 2 are heard -> not heard: b",
        ),
        (rules.peers(STATUS | {"neighbours": STREET}, {"a": False}), "bad", "0 of 1 are heard"),
        (
            rules.peers(STATUS | {"neighbours": STREET | {"waits": "for 2 answers"}}, {"a": True}),
            "bad",
            "sealing waits: for 2 answers",
        ),
        (rules.vault(secret=True, used=True), "good", "a device secret opens it"),
        (rules.vault(secret=False, used=True), "note", "root alone"),
        (rules.vault(secret=False, used=False), "note", "-> stop the meter, and as root"),
        (rules.case(TOLD, []), "good", "shut"),
        (rules.case(TOLD, ["case: it was opened"]), "bad", "-> shut it, then `meterctl case ack`"),
        (rules.case(TOLD | {"case_switch": False}, []), "note", "no switch is wired"),
        (rules.no_alarms(["clock: not set"]), "good", "none"),
        (
            rules.no_alarms(["frozen: one line", "adaptor_out: x"]),
            "bad",
            "frozen: one line; 1 more -> take",
        ),
        (rules.block(STATUS), "good", "block 9 is sealed"),
        (rules.block(STATUS | {"height": 0}), "bad", "none is sealed yet -> it comes at the end"),
        (rules.block(STATUS | {"neighbours": STREET}), "good", "block 7 is certified"),
        (
            rules.block(STATUS | {"neighbours": STREET | {"certified_height": 0}}),
            "bad",
            "9 sealed, none certified",
        ),
    ],
)
def test_a_step_says_what_was_found_and_what_to_do(
    step: rules.Step, verdict: str, words: str
) -> None:
    assert step.name in rules.STEPS
    assert step.verdict == verdict
    assert words in f"{step.found} -> {step.todo}"
    assert all(len(line) <= rules.COLUMNS for line in rules.lines([step]))
    assert rules.ready([step]) == (verdict != "bad")
    assert step.todo or verdict != "bad"


# --- with a meter -------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path, polling_ms=200, commit_s=1, interval_s=60)


class Running:
    """A meter with a board that speaks, started a second time so that a block is sealed."""

    def __init__(self, house: House, cable: Cable, power_w: float) -> None:
        self.house, self._cable = house, cable
        self.speaking = Speaking(cable, power_w)
        for _ in range(2):
            self.meter = house.run()
            self.meter.hear("port_opened")
            house.wait_accepted(3)
            if not house.ask().call("Status")["height"]:
                assert self.meter.stop() == 0
                self.meter.close()

    def say(self, power_w: float) -> None:
        """Let the board say another power from now on."""
        self.speaking.close()
        self.speaking = Speaking(self._cable, power_w)

    def close(self) -> None:
        self.speaking.close()
        if self.meter.process.poll() is None:
            self.meter.stop()
        self.meter.close()


@pytest.fixture
def running(house: House) -> Iterator[Running]:
    with Cable(house.port) as cable:
        running = Running(house, cable, 2000)
        yield running
        running.close()


def events(house: House, kind: str) -> list[Event]:
    return [event for event in house.account.events if event.kind == kind]


class Person:
    """Somebody who types at a terminal, and reads what is there."""

    def __init__(self, arguments: Sequence[object]) -> None:
        self._fd, theirs = pty.openpty()
        self.read = ""
        self._looked = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def wait_for(self, text: str) -> None:
        ends_s = time.monotonic() + DEADLINE_S
        while text not in self.read[self._looked :]:
            assert self._take(ends_s), f"{text!r} did not come, but:\n{self.read}"
        self._looked = self.read.index(text, self._looked) + len(text)

    def _take(self, ends_s: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], max(0, ends_s - time.monotonic()))
        try:
            data = os.read(self._fd, 4096) if ready else b""
        except OSError:  # the other end is closed
            data = b""
        self.read += data.decode()
        return bool(data)

    def type(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def end(self) -> int:
        ends_s = time.monotonic() + DEADLINE_S
        while self._take(ends_s):
            pass
        os.close(self._fd)
        return self.process.wait(DEADLINE_S)


def test_a_person_commissions_a_meter_step_by_step_and_s3_binds_from_then_on(
    running: Running, tmp_path: Path
) -> None:
    house, written = running.house, tmp_path / "record.txt"
    arguments = ("commission", "--state", house.state, "--owner", PUBLIC, "--seconds", "1")
    person = Person((*arguments, "-o", written, "--by", "Jo, Elm Street"))
    person.wait_for("switch a known load on")
    person.type("")
    person.wait_for("watching for up to 1 s")
    person.wait_for("switch off all")
    running.say(0)
    time.sleep(0.5)  # the last line of the load has been read
    person.type("")
    person.wait_for("commission it? [y/N]")
    person.type("y")
    person.wait_for("commissioned: record")
    assert person.end() == 0, person.read
    text = written.read_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "direction  good" in text
    assert "zero       good" in text
    assert "by Jo, Elm Street" in text
    (event,) = events(house, "commissioned")
    assert event.bytes_of("record") == sha256(written.read_bytes()).digest()
    told = shown(house)
    assert told["owner"] == PUBLIC
    assert told["signed"]["signed.commissioned"] == event.bytes_of("record").hex()
    assert not (house.state / "commissioning.json").exists()
    reply = desk(house).call("Change", command=signed(command(told, {"clamp.1.scale": "1.1"})))
    wait_sequence(house, reply["sequence"])
    running.close()
    house.verify_good()


def run(ctl: Ctl, house: House, *arguments: object) -> Said:
    return ctl("commission", "--state", house.state, "--seconds", "1", *arguments)


def verdicts(said: Said) -> dict[str, str]:
    return {step["name"]: step["verdict"] for step in said.json["steps"]}


def test_what_a_person_has_done_is_kept_for_the_next_run(running: Running, ctl: Ctl) -> None:
    house = running.house
    said = run(ctl, house, "--answers", "load=on,zero=skip", "--json", "--yes")
    assert said.status == 1
    assert "not commissioned: enrolment" in said.err
    assert verdicts(said)["direction"] == "good"
    running.say(-2000)  # the load is off by now, and the sun shines
    said = run(ctl, house, "--answers", "zero=skip", "--owner", PUBLIC, "--check", "--json")
    assert said.status == 0, said.err
    assert list(verdicts(said)) == list(rules.STEPS)
    again = run(ctl, house, "--answers", "load=on,zero=skip", "--owner", PUBLIC, "--json")
    assert (again.status, verdicts(again)["direction"]) == (1, "bad")
    assert events(house, "commissioned") == []


def test_a_board_that_is_silent_is_said_and_what_to_do(house: House, ctl: Ctl) -> None:
    with Cable(house.port), house.run() as meter:
        meter.hear("port_opened")
        house.ask()
        said = run(ctl, house, "--answers", "load=on,zero=off", "--owner", PUBLIC, "--yes")
        assert said.status == 1
        assert "open and silent" in " ".join(said.out.split())
        assert "-> see that the board has power" in said.out.replace("\n" + " " * 24, " ")
        meter.stop()


def test_a_board_of_another_layout_is_said_with_the_right_one(house: House, ctl: Ctl) -> None:
    with Cable(house.port) as cable, house.run() as meter:
        meter.hear("port_opened")
        house.ask()
        for _ in range(3):
            cable.say(b"11 1.0 2.0 3.0 4.0 5.0\r\n")
            time.sleep(0.2)
        said = run(ctl, house, "--answers", "load=on,zero=off", "--yes", "--json")
        (step,) = (step for step in said.json["steps"] if step["name"] == "layout")
        assert step["todo"] == "set board.layout to rpict3t1"
        meter.stop()


def test_a_meter_is_commissioned_once(running: Running, ctl: Ctl) -> None:
    house = running.house
    answers = ("--answers", "load=skip,zero=skip", "--owner", PUBLIC, "--yes")
    said = run(ctl, house, *answers, "--json")
    assert said.status == 0, said.err
    assert sha256(said.json["text"].encode()).hexdigest() == said.json["record_sha256"]
    again = run(ctl, house, *answers)
    assert (again.status, "is commissioned already" in again.err) == (64, True)
    assert run(ctl, house, *answers, "--check").status == 0
    assert len(events(house, "commissioned")) == 1


def test_a5_the_record_names_the_certificate_whose_session_it_is(
    running: Running, ctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERD_TECHNICIAN", "jo/17")
    answers = ("--answers", "load=skip,zero=skip", "--yes", "--json")
    refused = run(ctl, running.house, *answers)
    [step] = (step for step in refused.json["steps"] if step["name"] == "enrolment")
    assert (refused.status, "office; root does it: commission it with --owner" in step["todo"]) == (
        1,
        True,
    )
    said = run(ctl, running.house, *answers, "--owner", PUBLIC)
    assert said.status == 0, said.err
    assert "by certificate jo, serial 17" in said.json["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--answers", "load=off"), "known are load=on|skip, zero=off|skip"),
        (("--answers", "heat=on"), "'heat=on' is not known"),
        (("--owner", "5f"), "expected 64 hex digits"),
        (("--by", "a\nb"), "at most 60 letters"),
        (("--answers", "zero=skip"), "nobody can be asked"),
    ],
)
def test_what_is_put_wrongly_is_said(
    running: Running, ctl: Ctl, arguments: tuple[str, ...], message: str
) -> None:
    said = run(ctl, running.house, *arguments)
    assert (said.status, said.out) == (64, "")
    assert message in said.err


def test_without_a_terminal_and_a_yes_nothing_is_commissioned(running: Running, ctl: Ctl) -> None:
    house = running.house
    said = run(ctl, house, "--answers", "load=skip,zero=skip", "--owner", PUBLIC)
    assert said.status == 64
    assert "there is no terminal to ask at: the meter is not commissioned" in said.err
    assert events(house, "commissioned") == []


def test_the_help_has_examples_in_eighty_columns(ctl: Ctl) -> None:
    said = ctl("commission", "--help")
    assert "examples:\n  meterctl commission" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
