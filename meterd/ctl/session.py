"""`meterd-session`: what sshd starts for a technician, whatever was asked for.

It is the ForceCommand, and the account's shell as well: there is no shell to get out to. It takes
nothing from its arguments, and from its environment four things that sshd sets: which certificate
has opened the session, what was asked for, where from, and the terminal's type. A line that was
sent is one command of the closed list in `technician_commands`; with none, and a terminal, lines
are read from a prompt.

Each line is in the journal, with the certificate's id and serial, before anything comes of it, and
its result after. Where that cannot be, or nobody can say whose certificate it is, nothing is done.

A session ends with the certificate that has opened it: sshd looks at its dates once, at the door.

The account has an event of the session, and of each command that changes something. The daemon
writes it; while none answers a technician gets in all the same, since that is when one is needed,
and may look but change nothing. The event follows with the next line once a daemon is there; where
none comes until the end, the journal alone has the session.

    journalctl METERD_EVENT=technician_command
    journalctl METERD_CERTIFICATE=jo METERD_SERIAL=17
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meterd.cli import run
from meterd.ctl.in_session import VARIABLE, spell
from meterd.ctl.options import CONTROL_SYSTEM
from meterd.ctl.technician_certificate import (
    CERTIFICATE_BYTES_MAX,
    Certificate,
    decode_entry,
    fingerprint,
)
from meterd.ctl.technician_commands import (
    HELP,
    HINT,
    asks,
    changes,
    chosen,
    help_lines,
    recorded,
    shown,
)
from meterd.device.control_client import ControlClient
from meterd.device.systemd import log_event, record_logger
from meterd.errors import AbsentError, DeniedError, EncodingError, MeterdError, UsageError
from meterd.pins import Ration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

IDENTIFIER = "meterd-session"
PROMPT = "meterctl> "
ENDS = frozenset({"exit", "quit", "logout"})
EXIT_SIGNAL = 128  # and the signal's number, as a shell has it
DAEMON_S_MAX = 3.0  # to answer, before a line is done without it; it answers once its card has
ENTRY_BYTES_MAX = 2 * CERTIFICATE_BYTES_MAX  # base64 takes a third more
LINES_AT_ONCE = 16  # typed; more are pasted, or piped in
LINE_EVERY_MS = 1000  # from then on: the journal drops in silence what is past 10,000 in 30 s
SESSION_S_MAX = 604_800  # as long as the CA lets a certificate be
_HANG_UPS = (signal.SIGHUP, signal.SIGTERM)
_TERMINAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,31}")
_SOURCE = re.compile(r"[0-9A-Fa-f:.%a-z]{2,64}")


_UNDER_SSHD = frozenset({"SSH_CONNECTION", "SSH_USER_AUTH"})
ABOUT = """\
usage: meterd-session

What sshd starts for a technician (ForceCommand in config/sshd.conf). Nobody
starts it by hand: without a certificate that sshd has checked it does nothing.
It takes no options. What a technician may ask for is a closed list of commands
of meterctl, each on record before it is done; in a session `help` shows them.

examples:
  ssh technician@kitchen-12
  ssh technician@kitchen-12 status
  ssh technician@kitchen-12 report > kitchen-12.report

exit status: that of the last command that was sent; 64 not in the list,
  69 nothing records it, 77 nobody can say whose session it is"""


class HungUp(Exception):  # noqa: N818 - nothing went wrong
    """The client, or the machine, ends the session."""


class RanOut(HungUp):
    """The certificate that has opened the session is not valid any more."""


class Asked(NamedTuple):
    """What sshd says of a session, in its environment.

    Attributes:
        entry: The file that says how it was opened; empty where there is none.
        line: What was asked for; None where it was a session as such.
        source: Address of the client.
        terminal: Type of the terminal.
    """

    entry: str
    line: str | None
    source: str
    terminal: str

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Asked:
        """Take from `environ` what is ours, and of that nothing that cannot be."""
        source = environ.get("SSH_CONNECTION", "").partition(" ")[0]
        terminal = environ.get("TERM", "")
        return cls(
            environ.get("SSH_USER_AUTH", ""),
            environ.get("SSH_ORIGINAL_COMMAND"),
            source if _SOURCE.fullmatch(source) else "unknown",
            terminal if _TERMINAL.fullmatch(terminal) else "dumb",
        )


class Session:
    """Lines of one technician: each is recorded, judged, recorded again."""

    def __init__(
        self,
        who: Certificate,
        source: str,
        log: logging.Logger,
        perform: Callable[[tuple[str, ...]], int],
        tell: Callable[..., object] | None = None,
    ) -> None:
        """Begin a session.

        Args:
            who: Whose certificate opened it.
            source: Address of the client.
            log: Raises where it cannot record.
            perform: Does a command of `meterctl`, and returns its exit status.
            tell: Calls a method of the daemon; raises MeterdError where none does it. None where
                there is no account to write to.
        """
        self._who = {
            "certificate": who.identity,
            "serial": who.serial,
            "key": fingerprint(who.key),
            "source": source,
        }
        self._log, self._perform, self._tell = log, perform, tell
        self._lines = 0
        self._unrecorded: MeterdError | None = None  # why the account has no event of this session
        self._inside = False

    def record(self, level: int, event: str, **fields: object) -> None:
        """Have the journal say what happens.

        Raises:
            AbsentError: It does not.
        """
        log_event(self._log, level, event, **self._who, **fields)

    def enter(self) -> None:
        """Have the journal say that the session begins, and then the account.

        Raises:
            AbsentError: The journal does not.
        """
        self.record(logging.INFO, "technician_entered")
        self._enter_account()

    def leave(self) -> None:
        """Have both say that it ends.

        Raises:
            AbsentError: The journal does not.
        """
        self.record(logging.INFO, "technician_left")
        if self._tell is not None and self._inside:
            with contextlib.suppress(MeterdError):  # the journal has it
                self._tell("Left", **self._named, source=self._who["source"])

    @property
    def _named(self) -> dict[str, object]:
        return {name: self._who[name] for name in ("certificate", "serial")}

    def _enter_account(self) -> None:
        if self._tell is None or self._inside:
            return
        about = {name: self._who[name] for name in ("key", "source")}
        try:
            self._tell("Login", **self._named, **about)
        except MeterdError as error:
            if self._unrecorded is None:
                self.record(logging.WARNING, "technician_unrecorded", reason=str(error))
            self._unrecorded = error
        else:
            self._inside = True

    def _record_change(self, command: str) -> None:
        """Have the account say what is about to be changed.

        Raises:
            MeterdError: It does not.
        """
        if self._tell is None:
            return
        if not self._inside:
            raise AbsentError(
                "nothing was changed: the account has no event of this session",
                hint=_why(self._unrecorded),
            )
        self._tell("Command", **self._named, command=command)

    def do(self, line: str) -> int:
        """Do what a line asks for; return the exit status.

        Raises:
            UsageError: It is not in the list: nothing came of it.
            AbsentError: It could not be recorded: nothing came of it, or its result is not known.
            MeterdError: The account does not take it, and it changes something: nothing came of it.
        """
        self._enter_account()
        self._lines += 1
        about = {"line": self._lines, "command": shown(line)}
        try:
            arguments = chosen(line)
        except UsageError as error:
            self.record(logging.WARNING, "technician_refused", **about, reason=str(error))
            raise
        self.record(logging.INFO, "technician_command", **about)
        try:
            if changes(arguments):
                self._record_change(recorded(arguments))
            status = self._perform(arguments)
        except BaseException as error:
            self.record(logging.WARNING, "technician_result", **about, result=type(error).__name__)
            raise
        self.record(logging.INFO, "technician_result", **about, result=status)
        return status


def _why(error: MeterdError | None) -> str:
    """Return why the account has no event, and what to do about it."""
    if isinstance(error, AbsentError):
        return f"{error}: it has to run for a change; tell the office, or try again"
    return ": ".join(filter(None, (str(error), getattr(error, "hint", ""))))


def main() -> int:
    """Run a session and return its exit code; under sshd, arguments say nothing."""
    if not _UNDER_SSHD.intersection(os.environ) and {"-h", "--help"}.intersection(sys.argv[1:]):
        print(ABOUT)
        return 0
    return run("meterctl", lambda: _main(Asked.of(os.environ)))


def _main(asked: Asked) -> int:
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # a result could not be recorded after it
    signal.signal(signal.SIGINT, _stay)
    for number in _HANG_UPS:
        signal.signal(number, _hang_up)
    log = record_logger(IDENTIFIER)
    try:
        who = decode_entry(read_entry(Path(asked.entry)))
    except (OSError, EncodingError) as error:
        log_event(
            log, logging.WARNING, "technician_unknown", source=asked.source, reason=str(error)
        )
        raise DeniedError(
            "nobody can say whose certificate has opened this session",
            hint="come in over SSH, and see that `sshd -T` has `exposeauthinfo yes`",
        ) from error
    signal.signal(signal.SIGALRM, _run_out)
    signal.alarm(seconds_left(who, int(time.time())))
    session = Session(
        who,
        asked.source,
        log,
        partial(perform, terminal=asked.terminal, technician=spell(who.identity, who.serial)),
        ControlClient(CONTROL_SYSTEM, timeout_s=DAEMON_S_MAX).call,
    )
    session.enter()
    try:
        if asked.line is not None:
            return session.do(asked.line)
        return prompt(session)
    except RanOut as ended:
        raise DeniedError(
            f"the certificate of {who.identity} has run out: the session ends",
            hint="come in anew with another, of `meterctl ca issue`",
        ) from ended
    except HungUp:
        return EXIT_SIGNAL + signal.SIGHUP
    finally:
        signal.alarm(0)
        session.leave()


def _stay(_signal: int, _frame: FrameType | None) -> None:
    """Go on: Ctrl-C is for the command that runs, which does not inherit this, or for a line."""


def seconds_left(who: Certificate, now_s: int) -> int:
    """Return how long a session may last, in seconds; at least one, for its records.

    >>> from dataclasses import replace
    >>> from meterd.ctl.technician_certificate import Certificate
    >>> jo = Certificate(key=b"", serial=1, identity="jo", principals=("technician",), begins_s=0,
    ...     ends_s=5000, critical=(), extensions=(), ca=b"")
    >>> [seconds_left(replace(jo, ends_s=ends_s), 1000) for ends_s in (5000, 900, 2**64 - 1)]
    [4000, 1, 604800]
    """
    return max(1, min(who.ends_s - now_s, SESSION_S_MAX))


def _run_out(_signal: int, _frame: FrameType | None) -> None:
    raise RanOut


def _hang_up(_signal: int, _frame: FrameType | None) -> None:
    for number in _HANG_UPS:  # once is enough, and the end has to be recorded
        signal.signal(number, signal.SIG_IGN)
    raise HungUp


def read_entry(path: Path) -> bytes:
    """Return the file in which sshd says how a session was opened.

    Raises:
        EncodingError: It is not a file that sshd has made for this user.
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.getuid()):
            raise EncodingError("how the session was opened is not for this user to say")
        if stat.S_IMODE(found.st_mode) & 0o022:
            raise EncodingError("others could have written how the session was opened")
        return file.read(ENTRY_BYTES_MAX)


def prompt(session: Session) -> int:
    """Take lines from the terminal until it has no more; return the exit status.

    Raises:
        UsageError: There is no terminal.
    """
    if not sys.stdin.isatty():
        session.record(logging.WARNING, "technician_refused", reason="no command and no terminal")
        raise UsageError("a session without a terminal takes one command", hint=HINT)
    ration = Ration(at_once=LINES_AT_ONCE, every_ms=LINE_EVERY_MS)
    sys.stdin.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    print("`help` lists what can be asked for here; `exit` ends the session.")
    while True:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print(PROMPT, end="", flush=True)
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            print()
            continue
        finally:
            signal.signal(signal.SIGINT, _stay)
        if not line or line.strip() in ENDS:
            return 0
        if line.strip():
            while not ration.take(int(1000 * time.monotonic())):
                time.sleep(LINE_EVERY_MS / 1000)
            run("meterctl", partial(session.do, line.strip()))


def perform(arguments: tuple[str, ...], terminal: str, technician: str) -> int:
    """Do a command of `meterctl` in a process of its own; return its exit status.

    Nothing of this process's environment reaches it, nor what is typed, unless it is one that asks
    and there is a terminal: what is answered there is in no record. It is told whose session it
    runs in. Ctrl-C ends it, and not the session.
    """
    if arguments == (HELP,):
        print("\n".join(help_lines()))
        return 0
    python = Path(sys.executable)
    with subprocess.Popen(
        [python, "-I", python.with_name("meterctl"), *arguments],
        stdin=None if asks(arguments) and sys.stdin.isatty() else subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TERM": terminal, VARIABLE: technician},
        cwd="/",
    ) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    return status if status >= 0 else EXIT_SIGNAL - status
