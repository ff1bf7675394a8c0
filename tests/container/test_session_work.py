"""What a technician does to a meter in a session, by the real sshd: it is taken into service."""

from __future__ import annotations

import json
import re
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from meterd.ctl.advice import FOR_ROOT
from meterd.ctl.session import PROMPT
from meterd.ctl.show import COLUMNS
from meterd.ctl.technician_commands import chosen
from meterd.device.control_parameters import INTERFACE
from tests.container.build import BASE, VENV
from tests.container.device import BROKER_UNIT, STATE, Board, begin, deliver, enrol, wheel
from tests.container.machine import METER, Machine, Tree
from tests.container.technicians import Caller, admit
from tests.container.test_units import certified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(500)  # it installs, boots, and waits for an interval's end

GRID = "grid-co"
COMMISSION = "commission --again --seconds 3"
TRIES_MAX = 5  # of a commissioning, on a busy machine
SOURCES = (f"127.0.{high}.{low}" for high in count(1) for low in range(1, 255))
ASK = f"""\
import sys
from pathlib import Path
from meterd.device.control_client import ControlClient
from meterd.errors import MeterdError
try:
    desk = ControlClient(Path("/run/meterd/control"), interface="{INTERFACE}")
    print("done", desk.call("Commission", record="5f" * 32, owner=sys.argv[1]))
except MeterdError as error:
    print("refused", error.exit_code, error)
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A device in a distributor's network that meters, and takes technicians in."""
    folder = tmp_path_factory.mktemp("session")
    with Tree(folder, BASE / "root") as tree:
        deliver(tree, wheel(folder))
        (tree.path / "etc/systemd/system/broker.service").write_text(BROKER_UNIT)
        enrol(tree, distributor=GRID)
        admit(tree)
        (tree.path / "srv/ask.py").write_text(ASK)
        with (
            Board(folder, tree.id_of("meterd"), "--noise-w", "2") as board,
            Machine(tree, board=board.link.resolve()) as machine,
        ):
            begin(machine)
            machine.run("systemctl", "start", "ssh.service")
            machine.until(lambda: certified(machine) >= 1, "a certified block")
            yield machine


@pytest.fixture
def caller(device: Machine) -> Callable[..., Caller]:
    """Callers, each from an address of its own, with a whole ration of logins and commands."""
    device.run("systemctl", "reset-failed", METER)
    device.restart(METER)

    def come(name: str) -> Caller:
        return Caller(device, name, next(SOURCES))

    return come


def told(device: Machine, *kinds: str) -> list[dict[str, Any]]:
    """Return the details of the events of some kinds, oldest first."""
    wanted = [word for kind in kinds for word in ("--kind", kind)]
    said = device.run("meterctl", "events", "--json", *wanted)
    return [json.loads(line)["details"] for line in said.splitlines() if line.startswith("{")]


def commissioned(device: Machine) -> list[dict[str, Any]]:
    return told(device, "commissioned")


def at_a_terminal(caller: Caller, script: str) -> str:
    """Let somebody type at a session's terminal, as `script` does; return what stands there."""
    caller.device.run("truncate", "--size=0", SHOWN)
    feed = f"{{\n{script}\n}} | {caller.line('-tt')} | tee {SHOWN}\n"
    return caller.device.run("timeout", "120", "bash", "-c", feed, check=False)


SHOWN = "/root/shown"  # what stands at the terminal so far
RUNS = "pgrep --uid technician --full 'meterctl commission' >/dev/null"


def test_a2_without_a_terminal_a_commissioning_asks_nobody_and_takes_no_path(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo, before = caller("jo"), commissioned(device)
    said = jo.ssh("commission --check --again --seconds 3", said="\n\ny\n")
    assert said.status == 64, said.text
    assert "nobody can be asked" in said.text
    said = jo.ssh("commission --seconds 3 --answers load=skip,zero=skip", said="y\n")
    assert said.status in {1, 64}, said.text
    for more in ("--owner " + "5f" * 32, "-o /tmp/record", "--state /tmp", "--by jo", "--line /x"):
        said = jo.ssh(f"commission {more}")
        assert said.status == 64, said.text
        assert "does not take" in said.text
    assert commissioned(device) == before


def test_what_a_technician_did_by_hand_is_kept_for_the_next_command(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo, look = caller("jo"), "commission --check --seconds 3 --json"

    def seen() -> bool:
        said = jo.ssh(f"{look} --answers load=on,zero=skip")
        found = [line for line in said.text.splitlines() if line.startswith("{")]
        steps = json.loads(found[0])["steps"] if found else []  # none while a meter starts anew
        return {"good"} == {one["verdict"] for one in steps if one["name"] == "direction"}

    device.until(seen, "a load")
    said = jo.ssh(f"{look} --answers zero=skip")
    assert "nobody can be asked" not in said.text
    [path] = device.run("sh", "-c", "ls -d /tmp/meterd-*").split()
    assert device.run("stat", "-c", "%U %a", path).split() == ["technician", "600"]
    assert "nobody can be asked" in jo.ssh(f"{look} --answers zero=skip --again").text


def test_a2_an_interrupt_at_a_question_ends_the_commissioning_and_not_the_session(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo, before = caller("jo"), commissioned(device)
    said = at_a_terminal(
        jo,
        f"""\
echo 'commission --check --again --seconds 10'
until grep -q 'Enter when it is so' {SHOWN}; do sleep 0.1; done
printf '\\003'
while {RUNS}; do sleep 0.1; done
printf 'version\\nexit\\n'
""",
    )
    assert "Enter when it is so" in said, said
    assert "meterctl 0.1.0 (software " in said
    assert "uid=" not in said
    results = [
        (one["METERD_COMMAND"], one["METERD_RESULT"] != "0")
        for one in jo.records()
        if one["METERD_EVENT"] == "technician_result"
    ]
    assert results == [("'commission --check --again --seconds 10'", True), ("'version'", False)]
    assert commissioned(device) == before


def test_what_a_session_says_can_be_done_there_and_fits_eighty_columns(
    caller: Callable[..., Caller],
) -> None:
    """In one session at a terminal: logins are rationed, and other tests need theirs."""
    lines = ("status", "doctor", "events", "peers", "parameters", "vault list", "registers")
    asked = "\\n".join(
        (*lines, "head", "blocks", "relay show", "report", "replace", "help", "exit")
    )
    said = at_a_terminal(caller("jo"), f"printf '{asked}\\n'").partition(PROMPT)[2]
    shown = [line.strip("\r").removeprefix(PROMPT) for line in said.split("\n")]
    assert [line for line in shown if len(line) > COLUMNS] == []
    text = re.sub(r"\s+", " ", said)
    for told in ("the office can look", "is not bound to the board", "from your own machine"):
        assert told in text
    assert "with sudo" not in text
    for said in text.split(PROMPT):
        for advised in re.split(r"\b(?:do|hint): ", said)[1:]:
            for command in re.findall(r"`([^`]+)`", advised.partition(FOR_ROOT)[0]):
                chosen(command)


def test_s3_over_the_socket_a_technician_names_no_owner(device: Machine) -> None:
    owner, before = "5f" * 32, commissioned(device)
    user = ("setpriv", "--reuid=technician", "--regid=technician", "--init-groups")
    said = device.run(*user, f"{VENV}/bin/python", "/srv/ask.py", owner)
    assert said.startswith("refused 77 a technician commissions a meter whose distributor is known")
    assert commissioned(device) == before


def test_a2_a_session_says_where_the_devices_chain_ends_and_what_the_office_types(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo = caller("jo")
    answers: list[dict[str, Any]] = []

    def may_go() -> bool:
        said = jo.ssh("replace --json")
        answers.append(json.loads(said.text.splitlines()[0]))
        assert (said.status == 0) == answers[-1]["safe"], said.text
        return not answers[-1]["waiting"]

    device.until(may_go, "all that is sealed certified")
    told = answers[-1]
    assert told["reasons"] == [
        "it alone vouches for its blocks: copy the account before the card goes"
    ]
    assert (told["meter"], told["verdict"], told["running"]) == ("kitchen-12", "good", True)
    assert told["certified"]["height"] == told["sealed"]["height"] >= 1
    assert told["office"][0] == (
        "meterctl order revoke --meter kitchen-12 --incarnation 1 --reason replaced"
    )
    shown = jo.ssh("replace").text
    assert "safe to go  no" in shown
    assert "others vouch" not in shown
    assert "meterctl replace new --meter kitchen-12 --network elm-street" in shown
    for more in ("old", "lost --meter kitchen-12", "--state /tmp", "new"):
        assert jo.ssh(f"replace {more}").status == 64
    assert [one for one in told_of(jo) if "replace" in one] == []


def told_of(caller: Caller) -> list[str]:
    """Return the commands of a caller that the account has: those that change something."""
    return [one["command"] for one in told(caller.device, "technician_command")]


def test_a5_a_technician_commissions_at_the_terminal_and_the_command_is_on_record(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    """As a person does: what a busy machine lets stand for a moment goes by itself."""
    script = f"""\
echo '{COMMISSION}'
until {RUNS}; do sleep 0.1; done
printf 's\\ns\\ny\\n'
while {RUNS}; do sleep 0.1; done
printf 'commission --seconds 3 --answers load=skip,zero=skip\\nversion\\nexit\\n'
"""
    jo, said, tries = caller("jo"), "", 0
    while not commissioned(device) and tries < TRIES_MAX:
        jo, tries = caller("jo"), tries + 1
        said = at_a_terminal(jo, script)
    assert "commission it? [y/N]" in said, said
    assert "COMMISSIONING OF AN ELECTRICITY METER" in said
    assert "by certificate jo, serial 1" in said
    assert "kitchen-12 is commissioned already" in said
    [event] = commissioned(device)
    assert event["record"] in said
    assert "owner" not in event
    commands = told(device, "technician_command")
    assert {"certificate": "jo", "serial": 1, "command": COMMISSION} in commands
    by_line = [
        (one["METERD_EVENT"], one.get("METERD_COMMAND"), one.get("METERD_RESULT"))
        for one in jo.records()
        if "METERD_COMMAND" in one
    ]
    assert by_line[:2] == [
        ("technician_command", repr(COMMISSION), None),
        ("technician_result", repr(COMMISSION), "0"),
    ]
    assert len(by_line) == 6, "what was answered is no line of the session"
    verdict = json.loads(device.run("meterctl", "verify", STATE, "--json", check=False))
    assert verdict["verdict"] == "good"
