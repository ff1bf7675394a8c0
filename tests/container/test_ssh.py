"""A technician's way in, by the real sshd of a booted device: who enters, into what, on record."""

from __future__ import annotations

import json
import sys
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT
from tests.container.build import BASE
from tests.container.device import BROKER_UNIT, Board, begin, deliver, enrol, wheel
from tests.container.machine import Machine, Tree
from tests.container.technicians import CA, EXEMPT, SSH_ETC, Caller, admit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(400)  # whichever comes first boots the machine

SOURCES = (f"127.0.{high}.{low}" for high in count(1) for low in range(1, 255))
BANNER = "SSH-2.0-OpenSSH_10.0p2\n"  # what the protocol demands; Debian's revision is not in it
POLICY = "Hardened Debian 13 (version 1)"
LISTENER = """\
import socket
with socket.create_server(("127.0.0.1", 7000)) as server:
    while True:
        with server.accept()[0] as caller:
            caller.sendall(b"reached\\n")
"""
CONNECT = """\
import socket, sys
try:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10) as line:
        line.settimeout(10)
        print("got", line.recv(100))
except OSError as error:
    print("got nothing", type(error).__name__)
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A device that meters, and takes technicians in."""
    folder = tmp_path_factory.mktemp("ssh")
    with Tree(folder, BASE / "root") as tree:
        deliver(tree, wheel(folder))
        (tree.path / "etc/systemd/system/broker.service").write_text(BROKER_UNIT)
        enrol(tree)
        admit(tree)
        for name, text in (("listener.py", LISTENER), ("connect.py", CONNECT)):
            (tree.path / "root" / name).write_text(text)
        with (
            Board(folder, tree.id_of("meterd")) as board,
            Machine(tree, board=board.link.resolve()) as machine,
        ):
            begin(machine)
            machine.run("systemctl", "start", "ssh.service")
            machine.run("systemd-run", "--unit=listener", "python3", "/root/listener.py")
            machine.until(lambda: "reached" in connect(machine, 7000), "a listener")
            yield machine


@pytest.fixture
def caller(device: Machine) -> Callable[..., Caller]:
    """Callers, each from an address of its own: one's failures lock out no other."""

    def come(name: str, **more: object) -> Caller:
        return Caller(device, name, next(SOURCES), **more)  # type: ignore[arg-type]

    return come


def connect(device: Machine, port: int) -> str:
    return device.run("python3", "/root/connect.py", str(port))


def came(caller: Caller, event: str) -> list[dict[str, str]]:
    return [one for one in caller.records() if one["METERD_EVENT"] == event]


# --- A1 -------------------------------------------------------------------------------------------


def test_a1_a_certificate_of_the_ca_enters(caller: Callable[..., Caller]) -> None:
    jo = caller("jo")
    said = jo.ssh("status", "--json")
    assert said.status == 0, said.text
    assert json.loads(said.text)["source"] == "daemon"
    assert len(came(jo, "technician_entered")) == 1


@pytest.mark.parametrize(
    ("name", "more"),
    [
        pytest.param("expired", {}, id="expired"),
        pytest.param("not-yet", {}, id="not valid yet"),
        pytest.param("elsewhere", {}, id="of another principal"),
        pytest.param("no-principal", {}, id="of no principal"),
        pytest.param("gone", {}, id="revoked"),
        pytest.param("stranger", {}, id="of another CA"),
        pytest.param("as-host", {}, id="of a host"),
        pytest.param("bound", {}, id="for another source"),
        pytest.param("ecdsa", {}, id="over a key of another type"),
        pytest.param("jo", {"certified": False}, id="left at home: a key alone"),
        pytest.param("bare", {"certified": False}, id="none: a key that authorized_keys has"),
        pytest.param("as-root", {"user": "root"}, id="for root"),
        pytest.param("bare", {"certified": False, "user": "root"}, id="none: a key of root's"),
        pytest.param("jo", {"user": "meterd"}, id="for another account"),
        pytest.param("jo", {"user": "nobody-at-all"}, id="for an account that is not"),
    ],
)
def test_a1_nobody_enters_by_a_certificate_that_is(
    caller: Callable[..., Caller], name: str, more: dict[str, object]
) -> None:
    someone = caller(name, **more)
    said = someone.ssh("status")
    assert said.status == 255, said.text
    assert "Permission denied (publickey)" in said.text
    assert someone.records() == []


@pytest.mark.parametrize("user", ["technician", "root"])
@pytest.mark.parametrize("method", ["password", "keyboard-interactive"])
def test_a1_no_password_enters(caller: Callable[..., Caller], user: str, method: str) -> None:
    options = (f"PreferredAuthentications={method}", "BatchMode=no")
    someone = caller("bare", certified=False, user=user, options=options)
    asks = ("SSH_ASKPASS=/root/asks", "SSH_ASKPASS_REQUIRE=force")
    command = ("ssh", "-o", "BatchMode=no", *someone.flags, f"{user}@127.0.0.1", "status")
    said = someone.run("env", *asks, *command)
    assert said.status == 255, said.text
    assert "Permission denied (publickey)" in said.text
    assert someone.records() == []


def test_a1_without_a_list_of_what_is_revoked_nobody_enters(caller: Callable[..., Caller]) -> None:
    jo = caller("jo")
    path = f"{SSH_ETC}/revoked"
    jo.device.run("mv", path, f"{path}.away")
    try:
        assert jo.ssh("status").status == 255
    finally:
        jo.device.run("mv", f"{path}.away", path)
    assert jo.ssh("status").status == 0


def test_a1_a_certificate_is_refused_once_its_revocation_is_there(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    device.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/kim")
    given = ("--id", "kim", "--key", "/root/kim.pub", "-o", "/root/kim-cert.pub")
    serial = json.loads(device.run("meterctl", "ca", "issue", "--ca", CA, *given, "--json"))[
        "serial"
    ]
    kim = caller("kim")
    assert kim.ssh("version").status == 0
    device.run("meterctl", "ca", "revoke", "--ca", CA, str(serial))
    device.run("install", "-m", "644", f"{CA}/revoked", f"{SSH_ETC}/revoked")
    assert kim.ssh("version").status == 255
    assert caller("jo").ssh("version").status == 0


# --- A2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        "id",
        "/bin/sh",
        "sh -c id",
        "status; id",
        "status && id",
        "status | id",
        "status $(id)",
        "status `id`",
        "status\nid",
        "status --state /etc",
        "status --socket /run/x",
        "samples",
        "prune --before 2099-01-01",
        "network enrol",
        "ca list --ca /root/tech-ca",
        "status --help",
        "rsync --server . /tmp",
        "/usr/lib/openssh/sftp-server",
        "internal-sftp",
        "status " + "x" * 100_000,
    ],
)
def test_a2_nothing_comes_of(caller: Callable[..., Caller], asked: str) -> None:
    jo = caller("jo")
    said = jo.ssh(asked)
    assert said.status == 64, said.text
    assert "uid=" not in said.text
    assert said.text.startswith("meterctl: error: ")
    assert len(came(jo, "technician_refused")) == 1
    assert came(jo, "technician_command") == []


def test_a2_a_session_is_the_prompt_of_the_tool_and_no_shell(caller: Callable[..., Caller]) -> None:
    jo = caller("jo")
    lines = ("id", "!id", "exec sh", "sh", "`id`", "help", "version", "exit")
    said = jo.ssh(flags=("-tt",), said="".join(f"{line}\n" for line in lines))
    assert said.status == 0, said.text
    assert said.text.count("meterctl> ") == len(lines)
    assert "uid=" not in said.text
    assert "meterctl 0.1.0 (software " in said.text
    assert [one["METERD_COMMAND"] for one in came(jo, "technician_refused")] == [
        repr(line) for line in lines[:5]
    ]


def test_a2_an_interrupt_ends_a_command_and_leaves_nobody_in_a_shell(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo = caller("jo")
    script = f"""\
{{
    echo watch
    until pgrep --uid technician --full 'meterctl watch' >/dev/null; do sleep 0.1; done
    printf '\\003\\034'
    while pgrep --uid technician --full 'meterctl watch' >/dev/null; do sleep 0.1; done
    printf 'version\\nexit\\n'
}} | {jo.line("-tt")}
"""
    said = device.run("timeout", "60", "bash", "-c", script)
    assert "uid=" not in said
    assert "meterctl 0.1.0 (software " in said
    results = {one["METERD_COMMAND"]: one["METERD_RESULT"] for one in came(jo, "technician_result")}
    assert results.keys() == {"'watch'", "'version'"}
    assert results["'watch'"] != "0" == results["'version'"]
    assert len(came(jo, "technician_left")) == 1


def test_a2_without_a_terminal_and_a_command_nothing_is_read(
    caller: Callable[..., Caller],
) -> None:
    jo = caller("jo")
    said = jo.ssh(flags=("-T",), said="status\n")
    assert said.status == 64, said.text
    assert came(jo, "technician_command") == []


def test_a2_a_certificate_cannot_put_a_command_in_the_place_of_the_tool(
    caller: Callable[..., Caller],
) -> None:
    said = caller("forcing").ssh("status")
    assert "uid=" not in said.text


def test_a2_there_is_no_sftp(caller: Callable[..., Caller]) -> None:
    jo = caller("roomy")
    said = jo.run("sftp", "-b", "-", *jo.flags, "technician@127.0.0.1", said="ls /\n")
    assert said.status != 0
    assert "etc" not in said.text
    again = caller("roomy")
    assert again.ssh("sftp", flags=("-s",)).status != 0


@pytest.mark.parametrize("protocol", [(), ("-O",)], ids=["sftp", "of old"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("technician@127.0.0.1:/etc/hostname", "/tmp/taken"),
        ("/root/known", "technician@127.0.0.1:/tmp/brought"),
    ],
    ids=["from the device", "to the device"],
)
def test_a2_there_is_no_scp(
    caller: Callable[..., Caller], protocol: tuple[str, ...], source: str, target: str
) -> None:
    jo = caller("roomy")
    said = jo.run("scp", *protocol, *jo.flags, source, target)
    assert said.status != 0, said.text
    assert jo.device.run("sh", "-c", "ls /tmp/taken /tmp/brought 2>/dev/null", check=False) == ""


@pytest.mark.parametrize(
    "flags", [("-L", "7001:127.0.0.1:7000"), ("-L", "7001:localhost:7000")], ids=["IPv4", "a name"]
)
def test_a2_nothing_is_reached_through_a_forwarded_port(
    device: Machine, caller: Callable[..., Caller], flags: tuple[str, str]
) -> None:
    """The client's end listens: what counts is that nothing answers from the other."""
    jo = caller("roomy")
    unit = "--unit=forward"
    device.run("systemd-run", unit, "--collect", "sh", "-c", f"exec {jo.line('-N', *flags)}")
    try:
        device.until(lambda: ":7001 " in device.run("ss", "-Hltn"), "the client's end")
        assert "got nothing" in connect(device, 7001) or "got b''" in connect(device, 7001)
        assert "reached" in connect(device, 7000)
    finally:
        device.run("systemctl", "stop", "forward.service", check=False)


def test_a2_nothing_is_reached_over_standard_input(caller: Callable[..., Caller]) -> None:
    said = caller("roomy").ssh(flags=("-W", "127.0.0.1:7000"))
    assert said.status != 0
    assert "reached" not in said.text


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("-R", "7002:127.0.0.1:7000"), id="port"),
        pytest.param(("-R", "7002"), id="any port"),
        pytest.param(("-R", "/tmp/back.sock:127.0.0.1:7000"), id="socket"),
    ],
)
def test_a2_nothing_listens_on_the_device_for_a_client(
    device: Machine, caller: Callable[..., Caller], flags: tuple[str, str]
) -> None:
    jo = caller("roomy", options=("ExitOnForwardFailure=yes",))
    said = jo.ssh(flags=("-N", *flags))
    assert said.status == 255, said.text
    assert "forwarding" in said.text
    assert ":7002 " not in device.run("ss", "-Hltn")


def test_a2_no_environment_rc_file_or_agent_comes_in(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    planted = ("PLANTED", "LD_PRELOAD", "PYTHONPATH", "METERD_STATE", "BASH_ENV", "LANG", "LC_ALL")
    setting = "SetEnv=" + " ".join(f"{name}=/tmp/planted" for name in (*planted, "LC_PLANTED"))
    jo = caller("roomy", options=(setting, "ForwardAgent=yes", "ForwardX11=yes"))
    device.run("systemd-run", "--unit=looking", "--collect", "sh", "-c", f"exec {jo.line()} watch")
    try:
        device.until(lambda: bool(came(jo, "technician_command")), "a command")
        device.until(lambda: bool(processes(device, "meterctl")), "its process")
        [of_command] = processes(device, "meterctl")
        [of_session] = processes(device, "meterd-session")
        assert set(of_command) == {"PATH", "LANG", "TERM", "METERD_TECHNICIAN"}
        assert of_command["METERD_TECHNICIAN"] == "roomy/108"
        assert not set(of_session) & {"SSH_AUTH_SOCK", "DISPLAY", *planted[:5]}
        assert (of_session["LANG"], of_session["LC_ALL"]) == ("C.UTF-8", "C.UTF-8")
    finally:
        device.run("systemctl", "stop", "looking.service", check=False)
        device.until(lambda: not processes(device, "meterctl"), "its end")
    assert "rc-ran" not in device.run("ls", "/tmp")


def processes(device: Machine, program: str) -> list[dict[str, str]]:
    """Return the environments of the technician's processes that run a program."""
    script = f"""\
for path in $(pgrep --uid technician --full '/{program}( |$)'); do
    tr '\\0' '\\n' </proc/$path/environ; echo
done
"""
    return [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in device.run("bash", "-c", script).split("\n\n")
        if "=" in block
    ]


# --- A3 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hammering", "beside", "who"),
    [
        pytest.param("127.0.0.20", "127.0.0.21", {"name": "stranger"}, id="certificates"),
        pytest.param("127.0.0.22", "127.0.0.23", {"name": "bare", "certified": False}, id="keys"),
        pytest.param("127.0.0.24", "127.0.0.25", {"name": "jo", "user": "root"}, id="names"),
    ],
)
def test_a3_five_failures_lock_out_their_source_and_no_other(
    device: Machine, hammering: str, beside: str, who: dict[str, Any]
) -> None:
    jo = Caller(device, "jo", hammering)
    assert jo.ssh("version").status == 0
    failing = Caller(device, source=hammering, **who)
    if not failing.certified:
        device.run("cp", f"/root/{failing.name}", failing.copy)
    often = f"for each in 1 2 3 4 5; do {failing.line()} version; done"
    device.run("bash", "-c", often, check=False)
    locked = jo.ssh("version")
    assert locked.status == 255
    assert "Permission denied" not in locked.text  # it is not even asked for its key
    assert Caller(device, "jo", beside).ssh("version").status == 0
    assert jo.ssh("version").status == 255
    said = device.run("journalctl", "-u", "ssh.service", "--no-pager", "-o", "cat")
    assert [line for line in said.splitlines() if f"[{hammering}]" in line and "penalty" in line]


# --- A4, E5 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--policy", POLICY)], ids=["scan", "policy of Debian 13"])
def test_a4_ssh_audit_finds_nothing(device: Machine, flags: tuple[str, ...]) -> None:
    done = device.outside(sys.executable, "-m", "ssh_audit", *flags, EXEMPT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


def test_e5_before_a_login_sshd_says_its_protocol_and_no_more(device: Machine) -> None:
    look = "exec 3<>/dev/tcp/127.0.0.1/22; head -n 1 <&3 | tr -d '\\r'"
    assert device.run("bash", "-c", look) == BANNER
    settings = device.run("sshd", "-T")
    assert "banner none" in settings
    assert "versionaddendum none" in settings


def test_the_settings_in_force_are_those_that_are_delivered(device: Machine) -> None:
    """Debian's own come after: each of ours has to be the first of its name."""
    in_force = device.run("sshd", "-T", "-C", "user=technician,host=x,addr=192.0.2.1")
    values = dict(line.split(" ", 1) for line in in_force.splitlines() if " " in line)
    ours = [
        line.split(" ", 1)
        for line in (ROOT / "config/sshd.conf").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    apart = {"setenv", "persourcepenalties", "persourcepenaltyexemptlist", "allowusers"}
    assert len(ours) > 50
    for name, value in ours:
        if name.lower() not in apart:
            assert values[name.lower()] == value.removesuffix("s" if value == "60s" else ""), name


# --- A5 -------------------------------------------------------------------------------------------


def test_a5_each_command_is_on_record_by_certificate_and_serial_with_its_result(
    caller: Callable[..., Caller],
) -> None:
    jo, sam = caller("jo"), caller("sam")
    for someone, name, serial in ((jo, "jo", "1"), (sam, "sam", "2")):
        someone.ssh("registers", "--json")
        someone.ssh("events", "--from", "2026-13-45")
        someone.ssh("rm", "-rf", "/")
        shown = someone.run("ssh-keygen", "-lf", f"/root/{name}.pub").text.split()[1]
        found = someone.records()
        for one in found:
            assert (one["METERD_CERTIFICATE"], one["METERD_SERIAL"]) == (name, serial)
            assert one["METERD_KEY"] == shown
            assert one["_UID"] == someone.device.run("id", "-u", "technician").strip()
        events = [
            (
                one["METERD_EVENT"].removeprefix("technician_"),
                one.get("METERD_COMMAND"),
                one.get("METERD_RESULT"),
            )
            for one in found
            if one["METERD_EVENT"] != "technician_unrecorded"  # so many come here; see test_access
        ]
        assert events == [
            ("entered", None, None),
            ("command", "'registers --json'", None),
            ("result", "'registers --json'", "0"),
            ("left", None, None),
            ("entered", None, None),
            ("command", "'events --from 2026-13-45'", None),
            ("result", "'events --from 2026-13-45'", "64"),
            ("left", None, None),
            ("entered", None, None),
            ("refused", "'rm -rf /'", None),
            ("left", None, None),
        ]


def test_a5_a_command_is_on_record_before_it_ends_and_an_end_by_force_is_too(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo = caller("jo")
    device.run(
        "systemd-run", "--unit=held", "--collect", "sh", "-c", f"exec {jo.line('-tt')} watch"
    )
    try:
        device.until(lambda: bool(came(jo, "technician_command")), "a record")
        assert came(jo, "technician_result") == []
    finally:
        device.run("systemctl", "stop", "held.service", check=False)
    device.until(lambda: bool(came(jo, "technician_left")), "its end")
    [result] = came(jo, "technician_result")
    assert result["METERD_RESULT"] in {"HungUp", "141"}


def test_a_session_ends_with_the_certificate_that_has_opened_it(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    device.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/brief")
    dates = ("-n", "technician", "-z", "110", "-V", "-1m:+20s")
    given = ("-I", "brief", *dates, "/root/brief.pub")
    device.run("ssh-keygen", "-q", "-s", f"{CA}/technician-ca", *given)
    brief = caller("brief")
    said = brief.ssh("watch", "--count", "999999")
    assert said.status == 77, said.text
    assert "the certificate of brief has run out" in said.text
    assert len(came(brief, "technician_left")) == 1
    [result] = came(brief, "technician_result")
    assert result["METERD_RESULT"] == "RanOut"


def test_a5_what_the_journal_does_not_take_is_not_done(
    device: Machine, caller: Callable[..., Caller]
) -> None:
    jo = caller("jo")
    script = """\
mount --bind /tmp /run/systemd/journal && mount --bind /tmp /run/systemd/journal.meterd
"""
    device.run("sh", "-c", script)
    try:
        said = jo.ssh("version")
    finally:
        device.run("umount", "/run/systemd/journal", "/run/systemd/journal.meterd")
    assert said.status == 69, said.text
    assert "does not take records" in said.text
    assert "meterctl 0.1.0" not in said.text
