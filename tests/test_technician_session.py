"""A technician's session without sshd: who opened it, what may be asked, and what is on record."""

from __future__ import annotations

import base64
import io
import logging
import os
import pty
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.access import LETTERS_MAX
from meterd.ctl.options import STATE_DEFAULT
from meterd.ctl.session import (
    LINE_EVERY_MS,
    LINES_AT_ONCE,
    Asked,
    HungUp,
    RanOut,
    Session,
    main,
    perform,
    prompt,
    read_entry,
)
from meterd.ctl.technician_certificate import (
    CERTIFICATE_BYTES_MAX,
    Certificate,
    decode_certificate,
    decode_entry,
    encode_key,
    encode_string,
    fingerprint,
)
from meterd.ctl.technician_commands import LINE_LETTERS_MAX, OFFERS, chosen, help_lines, name_of
from meterd.device.systemd import record_logger
from meterd.errors import AbsentError, BusyError, EncodingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TYPE = "ssh-ed25519-cert-v01@openssh.com"
TOKEN = "sk-ssh-ed25519-cert-v01@openssh.com"
PROGRAM = "import sys; from meterd.ctl import main; sys.exit(main())"
PUBLIC = bytes(range(32))
CA = encode_key("ssh-ed25519", bytes(32))
PTY = encode_string(b"permit-pty") + encode_string(b"")
FIELDS = {
    "type": encode_string(TYPE.encode()),
    "nonce": encode_string(b"n" * 32),
    "key": encode_string(PUBLIC),
    "serial": struct.pack(">Q", 17),
    "kind": struct.pack(">I", 1),
    "id": encode_string(b"jo@grid-co"),
    "principals": encode_string(encode_string(b"technician") + encode_string(b"elm-street")),
    "begins": struct.pack(">Q", 1_800_000_000),
    "ends": struct.pack(">Q", 1_800_028_800),
    "critical": encode_string(b""),
    "extensions": encode_string(PTY),
    "reserved": encode_string(b""),
    "ca": encode_string(CA),
    "signature": encode_string(b"s" * 83),
}
JO = Certificate(
    key=encode_key("ssh-ed25519", PUBLIC),
    serial=17,
    identity="jo@grid-co",
    principals=("technician", "elm-street"),
    begins_s=1_800_000_000,
    ends_s=1_800_028_800,
    critical=(),
    extensions=("permit-pty",),
    ca=CA,
)


def spelt(**changed: bytes) -> bytes:
    """Return a certificate; its fields in their order, some of them changed."""
    return b"".join((FIELDS | changed).values())


def entry(blob: bytes, kind: str = TYPE) -> bytes:
    return f"publickey {kind} {base64.b64encode(blob).decode()}\n".encode()


# --- who opened it --------------------------------------------------------------------------------


def test_a_certificate_says_whose_it_is_and_what_it_opens() -> None:
    assert decode_certificate(TYPE, spelt()) == JO
    assert decode_entry(entry(spelt())) == JO


def test_a_certificate_over_a_key_in_a_token_names_what_the_key_is_for() -> None:
    key = encode_string(PUBLIC) + encode_string(b"ssh:")
    found = decode_certificate(TOKEN, spelt(type=encode_string(TOKEN.encode()), key=key))
    assert found.key == encode_key("sk-ssh-ed25519@openssh.com", PUBLIC, b"ssh:")


def test_a_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path: Path) -> None:
    path = tmp_path / "jo.pub"
    path.write_text(f"ssh-ed25519 {base64.b64encode(JO.key).decode()} jo\n")
    shown = subprocess.run(
        ["ssh-keygen", "-lf", path], check=True, capture_output=True, text=True
    ).stdout
    assert shown.split()[1] == fingerprint(JO.key)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        pytest.param(spelt()[:-1], "expected 83 more bytes, got 82", id="is cut"),
        pytest.param(spelt() + b"x", "1 bytes too many", id="goes on"),
        pytest.param(spelt(type=encode_string(TOKEN.encode())), "another type", id="is of another"),
        pytest.param(spelt(key=encode_string(PUBLIC[1:])), "key of 32 bytes", id="has a short key"),
        pytest.param(spelt(serial=bytes(8)), "no serial", id="has no serial"),
        pytest.param(spelt(kind=struct.pack(">I", 2)), "one of a host", id="is a host's"),
        pytest.param(spelt(id=encode_string(b"")), "printable letters", id="has no id"),
        pytest.param(
            spelt(id=encode_string(b"jo\nroot")), "printable", id="has an id of two lines"
        ),
        pytest.param(spelt(id=encode_string(b"jo root")), "printable", id="has an id with a blank"),
        pytest.param(spelt(id=encode_string("jö".encode())), "printable", id="has other letters"),
        pytest.param(spelt(id=encode_string(b"j" * 129)), "1 to 128", id="has a long id"),
        pytest.param(spelt(principals=encode_string(b"")), "got 0", id="opens nothing"),
        pytest.param(
            spelt(principals=encode_string(encode_string(b""))), "printable", id="opens ''"
        ),
        pytest.param(
            spelt(principals=encode_string(encode_string(b"p") * 65)), "got 65", id="opens 65"
        ),
        pytest.param(spelt(extensions=encode_string(PTY * 2)), "repeated", id="permits twice"),
        pytest.param(spelt(reserved=encode_string(b"x")), "reserved", id="uses what is reserved"),
        pytest.param(bytes(CERTIFICATE_BYTES_MAX + 1), "a certificate of", id="is huge"),
        pytest.param(b"", "expected 4 more bytes", id="is empty"),
    ],
)
def test_a_certificate_is_refused_that(blob: bytes, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        decode_certificate(TYPE, blob)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(entry(spelt())[:-1], id="a line without its end"),
        pytest.param(entry(spelt()) * 2, id="two certificates"),
        pytest.param(entry(spelt()) + b"password\n", id="a password besides"),
        pytest.param(entry(spelt()).replace(b"publickey", b"hostbased"), id="another method"),
        pytest.param(entry(JO.key, "ssh-ed25519"), id="a key alone"),
        pytest.param(entry(spelt(), TOKEN), id="another type than its own"),
        pytest.param(entry(spelt()).replace(b" AAAA", b" AA\nAA"), id="a line that is cut"),
        pytest.param(f"publickey {TYPE} AB==\n".encode(), id="another spelling"),
        pytest.param(f"publickey {TYPE} ****\n".encode(), id="no base64"),
        pytest.param("publickey é AAAA\n".encode(), id="a type in other letters"),
    ],
)
def test_a_session_is_nobodys_that_was_opened_by(data: bytes) -> None:
    with pytest.raises(EncodingError):
        decode_entry(data)


@given(st.binary(max_size=600))
def test_any_bytes_are_a_certificate_or_refused(data: bytes) -> None:
    with suppress(EncodingError):
        decode_certificate(TYPE, FIELDS["type"] + data)
    with suppress(EncodingError):
        decode_entry(data)


@given(st.integers(0, len(spelt()) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_says_something_else(place: int, change: int) -> None:
    """But for nonce and signature, which are sshd's matter."""
    data = bytearray(spelt())
    data[place] ^= change
    with suppress(EncodingError):
        found = decode_certificate(TYPE, bytes(data))
        nonce = len(FIELDS["type"])
        free = (
            range(nonce + 4, nonce + len(FIELDS["nonce"])),
            range(len(data) - 83, len(data)),
        )
        assert found != JO or any(place in one for one in free)


@pytest.mark.parametrize("mode", [0o622, 0o620, 0o602], ids=oct)
def test_what_others_could_have_written_says_nothing(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "auth"
    path.write_bytes(entry(spelt()))
    assert read_entry(path) == entry(spelt())
    path.chmod(mode)
    with pytest.raises(EncodingError, match="others could have written"):
        read_entry(path)


def test_a_link_or_a_pipe_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "auth").write_bytes(entry(spelt()))
    (tmp_path / "link").symlink_to("auth")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="symbolic links"):
        read_entry(tmp_path / "link")
    with pytest.raises(EncodingError, match="not for this user"):
        read_entry(tmp_path / "pipe")


def test_of_the_environment_only_what_can_be_is_taken() -> None:
    asked = Asked.of({"SSH_CONNECTION": "192.0.2.7 4 192.0.2.1 22", "TERM": "xterm-256color"})
    assert asked == ("", None, "192.0.2.7", "xterm-256color")
    hostile = Asked.of({"SSH_CONNECTION": "a b", "TERM": "../../x", "SSH_ORIGINAL_COMMAND": ""})
    assert hostile == ("", "", "unknown", "dumb")


# --- what may be asked ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("status", ("status",)),
        ("meterctl status --json", ("status", "--json")),
        ("watch --count 5", ("watch", "--count", "5")),
        ("events --kind alarm --last=3", ("events", "--kind", "alarm", "--last", "3")),
        ("events --from '2026-11-30T18:00'", ("events", "--from", "2026-11-30T18:00")),
        ("verify --json", ("verify", "/var/lib/meterd", "--json")),
        ("version", ("--version",)),
        ("case ack --json", ("case", "ack", "--json")),
        ("meterctl relay show", ("relay", "show")),
        ("events --security", ("events", "--security")),
        ("help", ("help",)),
    ],
)
def test_a_line_asks_for(line: str, arguments: tuple[str, ...]) -> None:
    assert chosen(line) == arguments


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no command ''"),
        ("meterctl", "no command ''"),
        ("meterctl meterctl status", "no command 'meterctl'"),
        ("sh", "no command 'sh'"),
        ("Status", "no command 'Status'"),
        ("status extra", "status does not take 'extra'"),
        ("status --state /etc", "does not take '--state'"),
        ("status --socket=/run/x", "does not take '--socket'"),
        ("status --json=x", "--json takes no value"),
        ("status -h", "does not take '-h'"),
        ("status --", "does not take '--'"),
        ("status @/etc/passwd", "does not take '@/etc/passwd'"),
        ("watch --count", "--count does not take ''"),
        ("watch --count -1", "--count does not take '-1'"),
        ("watch --count 9999999", "--count does not take"),
        ("watch --count ٣", "plain letters"),
        ("events --from --json", "--from does not take '--json'"),
        ("events --kind ../x", "--kind does not take"),
        ("verify /etc", "verify does not take '/etc'"),
        ("verify --key /etc/shadow", "--key does not take"),
        ("verify --genesis /x", "does not take '--genesis'"),
        ("help status", "no command 'help'"),
        ("case", "no command 'case'"),
        ("case open", "no command 'case'"),
        ("'case ack'", "no command 'case ack'"),
        ("case ack now", "case ack does not take 'now'"),
        ("relay open", "no command 'relay'"),
        ("status 'x", "a quote is left open"),
        ("status\nid", "plain letters"),
        ("status\x00", "plain letters"),
        ("status \x1b[2J", "plain letters"),
        ("status " + "x" * LINE_LETTERS_MAX, f"at most {LINE_LETTERS_MAX}"),
    ],
)
def test_nothing_is_asked_for_by(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        chosen(line)
    assert refused.value.hint


@given(
    st.lists(st.sampled_from([*OFFERS, "--json", "--last", "--from", "5", "/etc", "-x", "=", ";"]))
)
def test_whatever_is_asked_for_is_in_the_list(words: list[str]) -> None:
    with suppress(UsageError):
        arguments = chosen(" ".join(words))
        name = "version" if arguments[0] == "--version" else name_of(arguments)
        offer = OFFERS[name]
        rest = list(arguments[len(name.split()) + len(offer.fixed) :])
        while rest:
            pattern = offer.options[rest.pop(0)]
            assert pattern is None or pattern.fullmatch(rest.pop(0))


def test_the_help_names_all_there_is() -> None:
    shown = "\n".join(help_lines())
    assert all(name in shown for name in (*OFFERS, "help", "exit"))
    assert max(map(len, help_lines())) <= 80


def test_the_help_says_how_a_value_is_put_and_so_does_a_refusal() -> None:
    shown = "\n".join(help_lines())
    for told in ("[--from TIME]", "[--head HEIGHT:HEX]", "[--answers load=on,zero=off]", "[--yes]"):
        assert told in shown
    for offer in OFFERS.values():
        for option in (name for name, pattern in offer.options.items() if pattern is not None):
            assert f"[{option} " in shown
    with pytest.raises(UsageError, match="--from does not take 'yesterday'") as refused:
        chosen("events --from yesterday")
    assert "as 2026-11-30" in refused.value.hint


# --- what is on record ----------------------------------------------------------------------------


class Journal(logging.Handler):
    """Keeps what is handed over, until it refuses."""

    def __init__(self, holds: int = 99) -> None:
        super().__init__()
        self.holds = holds
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.lines) >= self.holds:
            raise AbsentError("the journal is gone")
        self.lines.append(record.getMessage())


class Desk:
    """A session with a journal, and what was done."""

    def __init__(self, *, holds: int = 99, outcome: int | BaseException = 0) -> None:
        self.journal = Journal(holds)
        self.outcome = outcome
        self.done: list[tuple[tuple[str, ...], int]] = []
        log = logging.Logger("test", logging.INFO)  # noqa: LOG001 - of this desk alone
        log.addHandler(self.journal)
        self.session = Session(JO, "192.0.2.7", log, self.perform)

    def perform(self, arguments: tuple[str, ...]) -> int:
        self.done.append((arguments, len(self.journal.lines)))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


WHO = f"certificate=jo@grid-co serial=17 key={fingerprint(JO.key)} source=192.0.2.7"


def test_a5_a_command_is_on_record_before_it_is_done_and_its_result_after() -> None:
    desk = Desk(outcome=74)
    assert desk.session.do("status --json") == 74
    assert desk.done == [(("status", "--json"), 1)]
    assert desk.journal.lines == [
        f"technician_command {WHO} line=1 command=\"'status --json'\"",
        f"technician_result {WHO} line=1 command=\"'status --json'\" result=74",
    ]


def test_a5_what_is_refused_is_on_record_and_not_done() -> None:
    desk = Desk()
    with pytest.raises(UsageError):
        desk.session.do("rm -rf /")
    assert desk.done == []
    [line] = desk.journal.lines
    assert line.startswith(f"technician_refused {WHO} line=1 command=\"'rm -rf /'\" reason=")


@pytest.mark.parametrize("line", ["status", "rm -rf /"])
def test_a5_what_cannot_be_recorded_is_not_done(line: str) -> None:
    desk = Desk(holds=0)
    with pytest.raises(AbsentError):
        desk.session.do(line)
    assert desk.done == []


@pytest.mark.parametrize("outcome", [HungUp(), RanOut(), OSError("no such program")])
def test_a5_a_command_that_does_not_end_by_itself_has_a_result(outcome: BaseException) -> None:
    desk = Desk(outcome=outcome)
    with pytest.raises(type(outcome)):
        desk.session.do("watch")
    assert desk.journal.lines[-1].endswith(f"result={type(outcome).__name__}")


class Typed(io.StringIO):
    """A terminal, and all that is typed at it."""

    def isatty(self) -> bool:
        return True

    def reconfigure(self, **_: object) -> None:
        return


def test_lines_come_no_faster_than_the_journal_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk, now_s = Desk(), 100.0
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        waited.append(seconds)

    monkeypatch.setattr("meterd.ctl.session.time.monotonic", lambda: now_s)
    monkeypatch.setattr("meterd.ctl.session.time.sleep", sleep)
    monkeypatch.setattr(sys, "stdin", Typed("no such thing\n" * (LINES_AT_ONCE + 30)))
    assert prompt(desk.session) == 0
    assert len(desk.journal.lines) == LINES_AT_ONCE + 30
    assert sum(waited) == pytest.approx(30 * LINE_EVERY_MS / 1000, abs=1)


class Account:
    """A daemon that takes what it is told, while it is there."""

    def __init__(self, *, there: bool = True) -> None:
        self.there = there
        self.told: list[tuple[str, dict[str, object]]] = []

    def tell(self, method: str, **about: object) -> None:
        if not self.there:
            raise AbsentError("no meterd answers")
        self.told.append((method, about))

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.told]


def visit(account: Account, *, outcome: int = 0) -> Desk:
    desk = Desk(outcome=outcome)
    desk.session._tell = account.tell
    return desk


NAMED = {"certificate": "jo@grid-co", "serial": 17}


def test_e1_the_account_is_told_of_a_session_after_the_journal() -> None:
    account = Account()
    desk = visit(account)
    desk.session.enter()
    assert desk.journal.lines == [f"technician_entered {WHO}"]
    assert account.told == [("Login", {**NAMED, "key": fingerprint(JO.key), "source": "192.0.2.7"})]
    desk.session.do("status")
    desk.session.leave()
    assert account.told[1:] == [("Left", {**NAMED, "source": "192.0.2.7"})]


def test_a5_what_changes_something_is_in_journal_and_account_before_it_is_done() -> None:
    account = Account()
    desk = visit(account)
    desk.session.enter()
    told_before: list[int] = []

    def perform(_: tuple[str, ...]) -> int:
        told_before.append(len(account.told))
        return 0

    desk.session._perform = perform
    assert desk.session.do("case ack --json") == 0
    assert account.told[1] == ("Command", {**NAMED, "command": "case ack --json"})
    assert told_before == [2]
    assert [line.split()[0] for line in desk.journal.lines[1:]] == [
        "technician_command",
        "technician_result",
    ]


def test_a5_the_longest_line_is_one_that_the_account_takes() -> None:
    account = Account()
    desk = visit(account)
    desk.session.enter()
    line = "calibrate --json --clamp mains-a-long-name-of-32-letters- --seconds 999999 --text "
    line += "x" * 2500
    assert desk.session.do(line) == 0
    command = str(account.told[1][1]["command"])
    assert len(command) <= LETTERS_MAX, "or `Access` refuses it, and nothing is ever applied"
    assert f"(2500 letters, SHA-256 {sha256(b'x' * 2500).hexdigest()})" in command
    assert desk.done[0][0][-1] == "x" * 2500


def test_a5_without_a_daemon_a_session_looks_and_changes_nothing() -> None:
    account = Account(there=False)
    desk = visit(account)
    desk.session.enter()
    assert desk.session.do("status") == 0
    with pytest.raises(AbsentError, match=r"nothing was changed: .* no event of this") as told:
        desk.session.do("case ack")
    assert told.value.hint.startswith("no meterd answers: it has to run for a change")
    desk.session.leave()
    assert [arguments for arguments, _ in desk.done] == [("status",)]
    words = [line.split()[0] for line in desk.journal.lines]
    assert words.count("technician_unrecorded") == 1, "told once, however often it is tried"
    assert desk.journal.lines[-2].endswith("result=AbsentError")
    assert account.told == []


def test_e1_the_account_is_told_once_a_daemon_is_there() -> None:
    account = Account(there=False)
    desk = visit(account)
    desk.session.enter()
    account.there = True
    for line in ("status", "case ack", "status"):
        assert desk.session.do(line) == 0
    assert account.methods == ["Login", "Command"]
    account.there = False
    desk.session.leave()
    assert desk.journal.lines[-1].startswith("technician_left")


def test_a5_what_the_account_does_not_take_is_not_done() -> None:
    account = Account()
    desk = visit(account)
    desk.session.enter()
    account.there = False
    with pytest.raises(AbsentError):
        desk.session.do("case ack")
    assert desk.done == []


@pytest.fixture
def datagrams(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    """A journal's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        journal.settimeout(5)
        yield tmp_path / "journal", journal


def test_a_record_reaches_the_first_journal_there_is(
    tmp_path: Path, datagrams: tuple[Path, socket.socket]
) -> None:
    path, journal = datagrams
    log = record_logger("meterd-session", (tmp_path / "absent", path))
    Session(replace(JO, serial=3), "::1", log, lambda _: 0).do("status")
    first = journal.recv(65_536)
    for name, value in (
        ("METERD_EVENT", b"technician_command"),
        ("METERD_SERIAL", b"3"),
        ("METERD_COMMAND", b"'status'"),
        ("SYSLOG_IDENTIFIER", b"meterd-session"),
        ("PRIORITY", b"6"),
    ):
        assert name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n" in first


def test_a_record_that_no_journal_takes_is_an_error(tmp_path: Path) -> None:
    log = record_logger("meterd-session", (tmp_path / "absent",))
    with pytest.raises(AbsentError, match="does not take records"):
        Session(JO, "::1", log, lambda _: 0).do("status")


# --- how it is done -------------------------------------------------------------------------------


def test_a_command_gets_nothing_of_what_is_around_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\necho "$@"; /usr/bin/env; cat\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("METERD_STATE", "/planted")
    assert perform(("status", "--json"), "xterm", "jo/17") == 0
    words, *environment = capfd.readouterr().out.splitlines()
    assert words == f"-I {tmp_path / 'meterctl'} status --json"
    assert {line.partition("=")[0] for line in environment} == {
        *("PATH", "LANG", "TERM", "PWD"),
        "METERD_TECHNICIAN",
    }
    assert "METERD_TECHNICIAN=jo/17" in environment


@pytest.mark.parametrize(
    ("command", "terminal", "read"),
    [
        pytest.param("commission", True, "typed\n", id="one that asks"),
        pytest.param("commission", False, "", id="one that asks, of nobody"),
        pytest.param("status", True, "", id="one that does not ask"),
        pytest.param("calibrate", True, "", id="one that changes, and does not ask"),
    ],
)
def test_a2_what_is_typed_reaches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, terminal: bool, read: str
) -> None:
    python, said = tmp_path / "python3", tmp_path / "said"
    python.write_text(f"#!/bin/sh\nhead -n 1 >{said}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    theirs, ours = pty.openpty() if terminal else os.pipe()[::-1]
    os.write(theirs, b"typed\n")
    with os.fdopen(ours) as stdin:
        saved = os.dup(0)
        os.dup2(ours, 0)
        monkeypatch.setattr(sys, "stdin", stdin)
        try:
            assert perform((command,), "dumb", "jo/17") == 0
        finally:
            os.dup2(saved, 0)
            os.close(saved)
            os.close(theirs)
    assert said.read_text() == read


@pytest.mark.parametrize(("ends", "status"), [("exit 74", 74), ("kill -TERM $$", 143)])
def test_a_command_ends_as_a_shell_would_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str, status: int
) -> None:
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\n{ends}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert perform(("status",), "dumb", "jo/17") == status


def test_a_session_that_nobody_opened_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    datagrams: tuple[Path, socket.socket],
) -> None:
    path, journal = datagrams
    monkeypatch.delenv("SSH_USER_AUTH", raising=False)
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "version")
    monkeypatch.setattr("meterd.ctl.session.signal.signal", lambda *_: None)
    monkeypatch.setattr(
        "meterd.ctl.session.record_logger", lambda name: record_logger(name, (path,))
    )
    assert main() == 77
    assert "whose certificate" in capsys.readouterr().err
    assert b"technician_unknown" in journal.recv(65_536)


@pytest.mark.parametrize(
    ("by_hand", "status"),
    [pytest.param(True, 0, id="by hand"), pytest.param(False, 69, id="under sshd")],
)
def test_it_says_what_it_is_without_a_journal_and_to_nobody_who_comes_in(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    *,
    by_hand: bool,
    status: int,
) -> None:
    for name in ("SSH_CONNECTION", "SSH_USER_AUTH"):
        monkeypatch.delenv(name, raising=False)
    if not by_hand:
        monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 50022 192.0.2.1 22")
    monkeypatch.setattr("meterd.ctl.session.signal.signal", lambda *_: None)
    nowhere = (tmp_path / "no journal",)
    monkeypatch.setattr(
        "meterd.ctl.session.record_logger", lambda name: record_logger(name, nowhere)
    )
    monkeypatch.setattr(sys, "argv", ["meterd-session", "--help"])
    assert main() == status
    said = capsys.readouterr()
    assert said.out.startswith("usage: meterd-session\n") == by_hand
    assert bool(said.err) != by_hand
    assert [line for line in said.out.splitlines() if len(line) > 80] == []


def test_too_many_logins_are_no_daemon_that_does_not_run() -> None:
    def busy(_: str, **__: object) -> None:
        raise BusyError("too many logins", hint="wait, try again")

    desk = Desk()
    desk.session._tell = busy
    desk.session.enter()
    with pytest.raises(AbsentError, match="nothing was changed") as told:
        desk.session.do("case ack")
    assert told.value.hint == "too many logins: wait, try again"
    assert desk.done == []


def test_a_list_of_commands_has_only_commands_that_there_are() -> None:
    from meterd.ctl import COMMANDS

    assert {name.split()[0] for name in OFFERS} - {"version"} <= set(COMMANDS)


def test_what_is_offered_is_understood_by_the_tool(tmp_path: Path) -> None:
    """Each option of the list, by the tool's own parser: with a folder that holds no account."""
    values = {"--count": "1", "--last": "1", "--kind": "alarm", "--from": "2026", "--to": "2026"}
    values |= {"--key": "0" * 64, "--head": f"1:{'0' * 64}", "--clamp": "mains", "--seconds": "1"}
    values |= {"--reference-w": "1", "--reference-wh": "1", "--text": "A" * 100}
    values["--since"] = "2026-11-01"
    values["--answers"] = "load=on,zero=skip"
    for name, offer in OFFERS.items():
        words = name.split()
        for option, pattern in offer.options.items():
            words += [option] if pattern is None else [option, values[option]]
        arguments = [
            str(tmp_path) if word == STATE_DEFAULT else word for word in chosen(" ".join(words))
        ]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            check=False,
            capture_output=True,
            text=True,
            env={"METERD_STATE": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )
        assert "unrecognized" not in done.stderr, done.stderr
        assert "--help" not in done.stderr, done.stderr
