"""Who comes to a booted device, and who is not let in: events of its account, by the real sshd."""

from __future__ import annotations

import json
import subprocess
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT
from tests.container.build import BASE
from tests.container.device import BROKER_UNIT, STATE, Board, begin, deliver, enrol, wheel
from tests.container.machine import METER, Machine, Tree
from tests.container.technicians import Caller, admit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(400)  # whichever comes first boots the machine

LOGINS = "meterd-logins.service"
SOURCES = (f"127.0.{high}.{low}" for high in count(1) for low in range(1, 255))
AT_ONCE = 16  # events of one kind of caller, before they are rationed
EXPOSURE_MAX = 12  # tenths, as `systemd-analyze security` counts them
LINE = "/run/meterd.line"
KEPT = "/run/meterd-logins/read"  # where the watcher has read to, and what it told


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A device that meters, takes technicians in, and watches its door."""
    folder = tmp_path_factory.mktemp("access")
    with Tree(folder, BASE / "root") as tree:
        deliver(tree, wheel(folder))
        (tree.path / "etc/systemd/system/broker.service").write_text(BROKER_UNIT)
        enrol(tree)
        admit(tree)
        with (
            Board(folder, tree.id_of("meterd")) as board,
            Machine(tree, board=board.link.resolve()) as machine,
        ):
            begin(machine)
            machine.run("systemctl", "start", "ssh.service", LOGINS)
            yield machine


@pytest.fixture
def device(booted: Machine) -> Machine:
    """It, with a whole ration of events."""
    again(booted, METER)
    return booted


def again(device: Machine, unit: str) -> None:
    """Start a unit anew; so many starts on purpose are no reason for systemd to give up."""
    device.run("systemctl", "reset-failed", unit)
    device.restart(unit)


@pytest.fixture
def caller(device: Machine) -> Callable[..., Caller]:
    """Callers, each from an address of its own."""

    def come(name: str, **more: object) -> Caller:
        return Caller(device, name, next(SOURCES), **more)  # type: ignore[arg-type]

    return come


def told(device: Machine, *kinds: str) -> list[dict[str, Any]]:
    """Return the events of some kinds, oldest first."""
    wanted = [word for kind in kinds for word in ("--kind", kind)]
    said = device.run("meterctl", "events", "--json", *wanted)
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def of_source(device: Machine, source: str, *kinds: str) -> list[dict[str, Any]]:
    """Return the details of those that name a source."""
    return [
        one["details"] for one in told(device, *kinds) if one["details"].get("source") == source
    ]


# --- who came -------------------------------------------------------------------------------------


def test_e1_a_login_is_one_event_with_certificate_serial_key_and_source(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo = caller("jo")
    assert jo.ssh("version").status == 0
    kinds = ("technician_entered", "technician_left")
    [entered] = of_source(device, jo.source, "technician_entered")
    key = jo.run("ssh-keygen", "-lf", "/root/jo.pub").text.split()[1]
    assert entered == {"certificate": "jo", "serial": 1, "key": key, "source": jo.source}
    assert len(of_source(device, jo.source, *kinds)) == 2
    assert of_source(device, jo.source, "login_refused") == []
    verdict = json.loads(device.run("meterctl", "verify", STATE, "--json", check=False))
    assert verdict["verdict"] == "good"


def test_a5_what_changes_something_is_in_the_account_by_certificate_before_it_is_done(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo, sam = caller("jo"), caller("sam")
    for someone in (jo, sam):
        said = someone.ssh("case ack --json")
        assert (said.status, json.loads(said.text)) == (0, {"stood": False})
        assert someone.ssh("status").status == 0  # it only looks, and is in the journal alone
    commands = [one["details"] for one in told(device, "technician_command")]
    assert commands[-2:] == [
        {"certificate": "jo", "serial": 1, "command": "case ack --json"},
        {"certificate": "sam", "serial": 2, "command": "case ack --json"},
    ]


def test_e1_a_technician_gets_in_while_no_daemon_answers_and_changes_nothing(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo = caller("jo")
    device.run("systemctl", "stop", METER)
    try:
        assert jo.ssh("version").status == 0
        said = jo.ssh("case ack")
        assert said.status == 69, said.text
        assert "no event of this session" in said.text
    finally:
        again(device, METER)
    events = [one["METERD_EVENT"] for one in jo.records()]
    assert events.count("technician_entered") == events.count("technician_unrecorded") == 2
    assert of_source(device, jo.source, "technician_entered") == []


# --- who did not ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more", "account_reason"),
    [
        pytest.param("expired", {}, ("technician", "expired"), id="expired"),
        pytest.param("not-yet", {}, ("technician", "not_yet_valid"), id="not valid yet"),
        pytest.param("gone", {}, ("technician", "revoked"), id="revoked"),
        pytest.param("elsewhere", {}, ("technician", "principal"), id="of another principal"),
        pytest.param("no-principal", {}, ("technician", "principal"), id="of no principal"),
        pytest.param("stranger", {}, ("technician", "key"), id="of another CA"),
        pytest.param("bound", {}, ("technician", "source"), id="for another source"),
        pytest.param("bare", {"certified": False}, ("technician", "key"), id="none: a key alone"),
        pytest.param("as-root", {"user": "root"}, ("root", "account"), id="for root"),
        pytest.param("jo", {"user": "meterd"}, ("other", "account"), id="for another account"),
        pytest.param("jo", {"user": "nobody-at-all"}, ("other", "account"), id="for none at all"),
        pytest.param(
            "jo",
            {"user": "technician from 192.0.2.66 port 9 ssh2"},
            ("other", "account"),
            id="for a name that spells another address",
        ),
    ],
)
def test_e1_a_refused_login_is_one_event_over_restarts_for_a_certificate_that_is(
    device: Machine,
    caller: Callable[..., Caller],
    name: str,
    more: dict[str, object],
    account_reason: tuple[str, str],
) -> None:
    someone = caller(name, **more)
    assert someone.ssh("status").status == 255

    def refused() -> list[dict[str, Any]]:
        return of_source(device, someone.source, "login_refused")

    device.until(lambda: bool(refused()), "the event")
    for unit in (LOGINS, METER):
        again(device, unit)
    after = caller("bare", certified=False)  # whoever comes next is told behind what came before
    after.ssh("status")
    device.until(lambda: bool(of_source(device, after.source, "login_refused")), "the next event")
    [found] = refused()
    assert (found["account"], found["reason"]) == account_reason, sshd_said(device)
    assert "192.0.2.66" not in json.dumps(told(device, "login_refused"))
    assert "nobody-at-all" not in json.dumps(told(device, "login_refused"))


def sshd_said(device: Machine) -> str:
    return device.run("journalctl", "-u", "ssh.service", "--no-pager", "--lines=40", "-o", "short")


def test_e1_who_is_let_in_by_the_second_key_was_not_refused(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo = caller("jo", options=("IdentityFile=/root/bare", "IdentityFile=/root/jo"))
    flags = [word for word in jo.flags if word not in {"-i", jo.copy}]
    assert jo.run("ssh", *flags, "technician@127.0.0.1", "version").status == 0
    after = caller("bare", certified=False)
    after.ssh("status")
    device.until(lambda: bool(of_source(device, after.source, "login_refused")), "the next event")
    assert of_source(device, jo.source, "login_refused") == []


def test_e1_what_was_refused_while_no_daemon_ran_is_told_to_the_next(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    stranger = caller("stranger")
    device.run("systemctl", "stop", METER)
    stranger.ssh("status")
    again(device, METER)
    device.until(lambda: len(of_source(device, stranger.source, "login_refused")) == 1, "one event")


def test_e1_a_flood_of_refused_logins_does_not_fill_the_card_and_is_counted(
    device: Machine,
) -> None:
    """Each from a source of its own, so that sshd's penalties keep none of them out."""
    before = len(told(device, "login_refused"))
    callers = [Caller(device, "bare", next(SOURCES), certified=False) for _ in range(40)]
    for someone in callers:
        someone.ssh("status")
    last = callers[-1].source
    device.until(lambda: last in device.run("cat", KEPT, check=False), "the watcher is through")
    device.run("systemctl", "stop", METER)  # what was counted is told at a stop
    again(device, METER)
    sources = {someone.source for someone in callers}

    def of_these() -> list[dict[str, Any]]:
        events = told(device, "login_refused")[before:]
        return [one["details"] for one in events if one["details"]["source"] in sources]

    def counted() -> int:
        return sum(1 + int(one.get("untold", 0)) for one in of_these())

    device.until(lambda: counted() >= len(callers), "all of them")
    assert counted() == len(callers)
    assert AT_ONCE <= len(of_these()) < len(callers)


# --- the groups -----------------------------------------------------------------------------------


def as_user(user: str, *command: str) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *command)


def test_a_technician_reads_the_account_and_neither_keys_nor_the_line(device: Machine) -> None:
    assert device.run(*as_user("technician", "id", "-Gn")).split() == [
        "technician",
        "meterd-control",
    ]
    assert "genesis.cbor" in device.run(*as_user("technician", "ls", STATE))
    for command in ("head", "peers", "status", "registers"):
        said = device.run(*as_user("technician", "meterctl", command), check=False)
        assert "permission denied" not in said, said
    assert device.run(*as_user("technician", "cat", f"{LINE}/peer.json"))
    for path in (f"{STATE}/vault", LINE, f"{LINE}/inbox", "/run/meterd", "/var/lib/meterd-peer"):
        assert "Permission denied" in device.run(*as_user("technician", "ls", path), check=False)
    groups = device.run("find", STATE, "-not", "-group", "meterd-control")
    assert groups == "", "all of the account is the group's, what an earlier release made too"


def test_a_process_of_the_peer_process_group_reads_nothing_of_the_account(device: Machine) -> None:
    peer = ("setpriv", "--reuid=meterd-peer", "--regid=meterd", "--init-groups")
    assert "Permission denied" in device.run(*peer, "ls", STATE, check=False)
    said = device.run(*peer, "meterctl", "status", check=False)
    assert "not allowed" in said


@pytest.mark.parametrize(
    ("method", "parameters", "may"),
    [
        ("Status", "{}", True),
        ("CaseAcknowledge", "{}", True),
        ("RelaySet", '{"closed": true}', False),
        ("Prune", '{"before_s": 1}', False),
    ],
)
def test_over_the_socket_the_kernel_says_who_is_a_technician(
    device: Machine, method: str, parameters: str, may: bool
) -> None:
    """Under PrivateUsers= the daemon sees no other user's number."""
    call = ("varlinkctl", "call", "/run/meterd/control", f"org.meterd.Control.{method}", parameters)
    said = device.run(*as_user("technician", *call), check=False)
    assert ("PermissionDenied" not in said) is may, said
    assert "PermissionDenied" not in device.run(*call, check=False)


def test_h1_the_watcher_is_exposed_no_more_than_it_may_and_has_no_network(device: Machine) -> None:
    analyze = ("systemd-analyze", "security", "--offline=true", "--no-pager")
    path = str(ROOT / "systemd" / LOGINS)
    done = subprocess.run(
        [*analyze, f"--threshold={EXPOSURE_MAX}", path], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]
    pid = device.shown(LOGINS, "MainPID")
    links = device.run("nsenter", "-t", pid, "-n", "ip", "-brief", "link")
    assert [line.split()[0] for line in links.splitlines()] == ["lo"]
    said = device.run("systemd-analyze", "verify", "--man=no", LOGINS, check=False)
    assert said == ""


def test_the_status_line_of_the_unit_says_whether_the_meter_is_well(device: Machine) -> None:
    device.until(
        lambda: device.shown(METER, "StatusText").startswith("well: metering; "), "it is well"
    )
