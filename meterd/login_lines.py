r"""What sshd's journal says of those who were not let in; nothing is opened here.

A connection is followed from its first line to its end, and counts once, however many keys it has
tried; one that was let in after all does not count. Whatever a stranger can choose (names of users,
ids of certificates) may spell other lines: the address is that of the connection's first line,
which has nothing of a stranger's in it, and a name is only compared.

>>> doors = Doors()
>>> lines = ("Connection from 192.0.2.7 port 4022 on 192.0.2.1 port 22 rdomain \"\"",
...     "error: Certificate invalid: expired",
...     "Failed publickey for technician from 192.0.2.7 port 4022 ssh2: ED25519-CERT SHA256:x",
...     "Connection closed by authenticating user technician 192.0.2.7 port 4022 [preauth]")
>>> found = [doors.receive(Line(str(at), "b", 41, text, at)) for at, text in enumerate(lines)]
>>> [len(refusals) for refusals in found], found[-1][0][1:]
([0, 0, 0, 1], ('technician', 'expired', '192.0.2.7', 3))
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import NamedTuple

CONNECTIONS_MAX = 256  # not logged in at one time; sshd lets in 30
TOLD_MAX = 256  # keys that are remembered: those behind the place to read on from
TEXT_LETTERS_MAX = 4096  # of one line; sshd cuts its own before that
TECHNICIAN, ROOT, OTHER = "technician", "root", "other"
PENALTY, CROWD = "penalty", "crowd"

_ADDRESS = r"[0-9A-Fa-f:.%a-z]{2,64}"
_BEGINS = re.compile(rf"Connection from ({_ADDRESS}) port (\d{{1,5}}) on {_ADDRESS} port \d+\b.*")
_DROPPED = re.compile(
    rf"drop connection #\d+ from \[({_ADDRESS})\]:(\d{{1,5}}) on \[{_ADDRESS}\]:\d+ (.*)"
)
_LATE = re.compile(r"Timeout before authentication for .*\bpid = (\d+)")
# What sshd says on the way, in the words of releases 9.2 and 10: the first that fits is the reason.
_CAUSES = (
    # Lines with a stranger's words in them come first, so that these are not taken for another.
    (re.compile(r"Invalid user "), "account"),
    (re.compile(r"User .* not allowed because "), "account"),
    (re.compile(r"ROOT LOGIN REFUSED "), "account"),
    (re.compile(r"Failed (password|keyboard-interactive)"), "password"),
    (re.compile(r"Failed (publickey|hostbased)"), "key"),
    (re.compile(r"error: .*\brevoked\b"), "revoked"),
    (re.compile(r"error: Certificate invalid: expired"), "expired"),
    (re.compile(r"error: Certificate invalid: not yet valid"), "not_yet_valid"),
    (re.compile(r".*valid certificate but not from a permitted source"), "source"),
    (re.compile(r"(error: )?[Cc]ertificate .*\bprincipal\b"), "principal"),
    (re.compile(r"error: Certificate invalid: "), "certificate"),
)
_LET_IN = re.compile(r"Accepted \S+ for ")
_ENDS = re.compile(
    r"(Connection (closed|reset) by |Disconnected from |Disconnecting |Received disconnect from "
    r"|Timeout before authentication |fatal: |ssh_dispatch_run_fatal: )"
)
_WITH_USER = re.compile(r"(authenticating|invalid) user (.*)")


class Line(NamedTuple):
    """One line of the journal.

    Attributes:
        cursor: Where it is.
        boot: Id of the boot.
        pid: Process of sshd that has said it: one for each connection, and the one that listens.
        text: What it says.
        at_s: When, Unix seconds.
    """

    cursor: str
    boot: str
    pid: int
    text: str
    at_s: int


class Refusal(NamedTuple):
    """Somebody was not let in.

    Attributes:
        key: Tells this connection from every other.
        account: `technician`, `root` or `other`.
        reason: A word.
        source: Address.
        at_s: When the connection ended, Unix seconds.
    """

    key: str
    account: str
    reason: str
    source: str
    at_s: int


@dataclass(slots=True)
class _Connection:
    """One that has not ended: what came before it, and what is known of it."""

    before: str
    boot: str
    source: str
    port: str
    reason: str = ""
    account: str = OTHER


def decode_line(data: bytes) -> Line | None:
    """Return a line of `journalctl --output=json`; None for what sshd has not said as root."""
    try:
        entry = json.loads(data)
        name, text = str(entry.get("SYSLOG_IDENTIFIER")), entry.get("MESSAGE")
        if isinstance(text, list):  # bytes that are no text, one number each
            text = bytes(text).decode(errors="replace")
        if not name.startswith("sshd") or not isinstance(text, str) or entry.get("_UID") != "0":
            return None
        return Line(
            str(entry["__CURSOR"]),
            str(entry["_BOOT_ID"]),
            int(entry["_PID"]),
            text[:TEXT_LETTERS_MAX],
            int(entry["__REALTIME_TIMESTAMP"]) // 1_000_000,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


class Doors:
    """Follows the connections of one sshd. Whatever comes, it holds a bounded amount of memory.

    Attributes:
        told: Keys of refusals that were given out, the newest last.
    """

    def __init__(self, cursor: str = "", told: tuple[str, ...] = ()) -> None:
        """Go on behind `cursor`, having told of the connections that `told` names."""
        self._last = cursor
        self._open: OrderedDict[int, _Connection] = OrderedDict()
        self.told: deque[str] = deque(told, maxlen=TOLD_MAX)

    @property
    def cursor(self) -> str:
        """Behind which line to go on: nothing that is not over lies before it."""
        return next((one.before for one in self._open.values()), self._last)

    def receive(self, line: Line) -> list[Refusal]:
        """Take a line; return who is known by it not to have been let in."""
        before, self._last = self._last, line.cursor
        text = line.text.removesuffix(" [preauth]")
        if begins := _BEGINS.fullmatch(text):
            return self._begin(line, before, begins[1], begins[2])
        if dropped := _DROPPED.fullmatch(text):
            source, port, why = dropped.groups()
            reason = PENALTY if "penalty" in why else CROWD
            connection = _Connection(before, line.boot, source, port, reason)
            return self._told(line.pid, connection, line.at_s)
        late = _LATE.fullmatch(text)  # release 10: the process that listens says it of another
        pid = int(late[1]) if late else line.pid
        connection_open = self._open.get(pid)
        if connection_open is None:
            return []
        return self._go_on(line, pid, connection_open, text)

    def _begin(self, line: Line, before: str, source: str, port: str) -> list[Refusal]:
        found = self._end(line.pid, line.at_s)  # its end was not told, and the number is used again
        if len(self._open) == CONNECTIONS_MAX:
            found += self._end(next(iter(self._open)), line.at_s)
        self._open[line.pid] = _Connection(before, line.boot, source, port)
        return found

    def _go_on(self, line: Line, pid: int, connection: _Connection, text: str) -> list[Refusal]:
        if _LET_IN.match(text):
            del self._open[pid]
            return []
        connection.account = _account(text, connection) or connection.account
        if not connection.reason or connection.reason == "key":
            found = (reason for pattern, reason in _CAUSES if pattern.match(text))
            connection.reason = next(found, connection.reason)
        if not _ENDS.match(text):
            return []
        if text.startswith("Timeout"):
            connection.reason = connection.reason or "timeout"
        elif _WITH_USER.search(text):
            connection.reason = connection.reason or "key"  # none was shown that could count
        return self._end(pid, line.at_s)

    def _end(self, pid: int, at_s: int) -> list[Refusal]:
        connection = self._open.pop(pid, None)
        if connection is None or not connection.reason:  # nobody: a look at the port, and no more
            return []
        return self._told(pid, connection, at_s)

    def _told(self, pid: int, connection: _Connection, at_s: int) -> list[Refusal]:
        key = f"{connection.boot}-{pid}-{connection.source}-{connection.port}"
        if key in self.told:
            return []
        self.told.append(key)
        return [Refusal(key, connection.account, connection.reason, connection.source, at_s)]


def _account(text: str, connection: _Connection) -> str:
    """Return which account a line is about; empty where it says nothing of one.

    The name is what stands between two texts that are known; the worst that one can spell is
    another of the three words.
    """
    end = re.escape(f"{connection.source} port {connection.port}")
    for pattern in (
        rf"Failed \S+ for (invalid user )?(.*?) from {end} ssh2\b.*",
        rf"(.*? (?:authenticating|invalid) user )(.*) {end}\b.*",
        rf"(Invalid user )(.*) from {end}",
        rf"(User )(.*) from {re.escape(connection.source)} not allowed because .*",
    ):
        if found := re.fullmatch(pattern, text):
            return found[2] if found[2] in {TECHNICIAN, ROOT} else OTHER
    return ""
