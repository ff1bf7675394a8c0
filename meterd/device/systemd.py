"""Talks to the service manager and to the journal, where there are any.

Both go through systemd-python (an extra). Without a manager everything here does nothing, and log
lines go to stderr.

>>> format_event("port_lost", {"port": "/dev/ttyAMA0", "reason": "hung up"})
'port_lost port=/dev/ttyAMA0 reason="hung up"'
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.errors import AbsentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOGGER_NAME = "meterd"
# Meterd's own journal comes first: what floods the other (sshd's log of strangers) neither crowds
# records out of it nor uses up what journald lets one unit say.
JOURNAL_SOCKETS = (Path("/run/systemd/journal.meterd/socket"), Path("/run/systemd/journal/socket"))
RECORD_S_MAX = 5.0  # the journal takes a line at once, unless it hangs
PING_PART = 2  # pings in one watchdog period, as sd_watchdog_enabled(3) advises: one may be late

_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f]+")
_FIELD_OTHER = re.compile(r"[^A-Z0-9_]")
_PRIORITIES = (  # sd-daemon(3)
    (logging.CRITICAL, "<2>"),
    (logging.ERROR, "<3>"),
    (logging.WARNING, "<4>"),
    (logging.INFO, "<6>"),
)


class Manager:
    """The service manager that started this process; without one, every method does nothing.

    Attributes:
        watchdog_s: Seconds between two calls of `watchdog`, half of what the manager allows; None
            where it does not watch this process.
        lost: Notices that could not be sent. None is repeated: a watchdog that misses pings acts
            by itself, and the rest is only shown.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Find the manager in `environ`.

        Raises:
            AbsentError: It waits for notices and the module to send them is missing. Going on
                would look like a start that hangs, and end in its kill.
        """
        self.watchdog_s = watchdog_interval_s(environ, os.getpid())
        self.lost = 0
        self._notify: Any = None
        if environ.get("NOTIFY_SOCKET"):
            try:
                # Never `import systemd`: the folder of units passes for a package of that name.
                self._notify = importlib.import_module("systemd.daemon").notify
            except ImportError as error:
                raise AbsentError(
                    "systemd waits for notices from this process (NOTIFY_SOCKET is set), and the"
                    " module to send them is missing",
                    hint="install python3-systemd or the extra `meterd[systemd]`, or start meterd"
                    " with NOTIFY_SOCKET unset",
                ) from error

    def ready(self) -> None:
        """Say that the start is over: the port is open and the account recovered."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))  # a newline would begin another notice

    def watchdog(self) -> None:
        """Say that the measuring loop turns; nothing else may say so."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the stop has begun."""
        self._send("STOPPING=1")

    def _send(self, notice: str) -> None:
        if self._notify is None:
            return
        try:
            self._notify(notice)
        except OSError:
            self.lost += 1


def watchdog_interval_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Return how often process `pid` has to ping, in seconds; None where nobody watches it.

    WATCHDOG_PID names another process when the variables were inherited from a parent that is
    watched (sd_watchdog_enabled(3)).
    """
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    period_us = environ.get("WATCHDOG_USEC", "")
    if not period_us.isdecimal() or not int(period_us):
        return None
    return int(period_us) / 1_000_000 / PING_PART


def journal_logger(environ: Mapping[str, str] = os.environ) -> logging.Logger:
    """Return meterd's logger, its lines going where they are read at night.

    Where stderr is the journal: to the journal with a field for each value (METERD_EVENT,
    METERD_PORT …) where systemd-python is installed, else to stderr with the priority in front.
    Otherwise plain lines on stderr. Calling it again begins afresh.
    """
    handler: logging.Handler
    if stderr_is_journal(environ):
        try:
            journal = importlib.import_module("systemd.journal")
            handler = journal.JournalHandler(SYSLOG_IDENTIFIER=LOGGER_NAME)
        except ImportError:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(_PriorityFormatter())
    else:
        handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger(LOGGER_NAME)
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger


def log_event(logger: logging.Logger, level: int, event: str, /, **fields: object) -> None:
    """Log `event` with its fields.

    Args:
        logger: From `journal_logger`.
        level: `logging.WARNING`: someone may have to act; `logging.ERROR`: someone must.
        event: What happened, `like_this`.
        fields: What about; never a key, a passphrase or a household's readings.
    """
    if logger.isEnabledFor(level):
        text = {key: str(value) for key, value in fields.items()}
        fields_sent = journal_fields(event, text)
        logger.log(level, format_event(event, text), extra=fields_sent, stacklevel=2)


def format_event(event: str, fields: Mapping[str, str]) -> str:
    """Return one line: the event, then `key=value`; a value that could be misread is quoted."""
    return " ".join((event, *(f"{key}={_quote(value)}" for key, value in fields.items())))


def journal_fields(event: str, fields: Mapping[str, str]) -> dict[str, str]:
    """Return the journal's fields: capitals, digits and underscores (systemd.journal-fields(7))."""
    named = {"METERD_" + _FIELD_OTHER.sub("_", key.upper()): fields[key] for key in fields}
    return named | {"METERD_EVENT": event}


class RecordHandler(logging.Handler):
    """Hands lines to the journal, and raises where it cannot: for what may not happen unrecorded.

    It speaks the journal's own protocol. The library's call would do, but for one thing: where no
    journal listens it says nothing of it. A line that is handed over outlasts this process; that
    of a machine is as durable as its journal.
    """

    def __init__(self, identifier: str, paths: Sequence[Path] = JOURNAL_SOCKETS) -> None:
        """Prepare to hand lines to the first journal of `paths`, in the name of `identifier`."""
        super().__init__()
        self._identifier, self._paths = identifier, paths

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line over.

        Raises:
            AbsentError: The journal does not take it.
        """
        fields = {
            "MESSAGE": record.getMessage(),
            "PRIORITY": next((p[1:-1] for level, p in _PRIORITIES if record.levelno >= level), "7"),
            "SYSLOG_IDENTIFIER": self._identifier,
        }
        fields |= {key: value for key, value in vars(record).items() if key.startswith("METERD_")}
        path = next((path for path in self._paths if path.exists()), self._paths[-1])
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
                journal.settimeout(RECORD_S_MAX)
                journal.connect(os.fspath(path))
                journal.send(journal_datagram(fields))
        except OSError as error:
            raise AbsentError(
                f"the journal at {path} does not take records: {error.strerror or error}",
                hint="what is not recorded is not done: see `systemctl status systemd-journald`",
            ) from error


def journal_datagram(fields: Mapping[str, str]) -> bytes:
    r"""Return fields as the journal takes them, each with its length: no value can begin another.

    >>> journal_datagram({"A": "b"})
    b'A\n\x01\x00\x00\x00\x00\x00\x00\x00b\n'
    """
    return b"".join(
        name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        for name, value in (
            (name, text.encode(errors="backslashreplace")) for name, text in fields.items()
        )
    )


def record_logger(identifier: str, paths: Sequence[Path] = JOURNAL_SOCKETS) -> logging.Logger:
    """Return a logger whose lines the journal has once `log_event` returns; it raises otherwise."""
    logger = logging.Logger(f"{LOGGER_NAME}.record", logging.INFO)  # noqa: LOG001 - nobody else's
    logger.addHandler(RecordHandler(identifier, paths))
    return logger


def stderr_is_journal(environ: Mapping[str, str]) -> bool:
    """Return whether stderr leads to the journal.

    JOURNAL_STREAM alone does not say so: a terminal started by a user service hands it on, and
    its stderr is the terminal. Device and inode have to match (systemd.exec(5)).
    """
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _quote(value: str) -> str:
    if not value.isprintable():  # JSON lets through what a terminal takes for an escape: U+009B
        return json.dumps(value)
    return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)


class _PriorityFormatter(logging.Formatter):
    """Puts the priority before each line, a traceback's included, as sd-daemon(3) has it."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = next((mark for level, mark in _PRIORITIES if record.levelno >= level), "<7>")
        return "\n".join(prefix + line for line in super().format(record).splitlines())
