from __future__ import annotations

import logging
import os
import socket
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

from meterd.device.systemd import (
    Manager,
    format_event,
    journal_fields,
    journal_logger,
    log_event,
    stderr_is_journal,
    watchdog_interval_s,
)
from meterd.errors import AbsentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class FakeSystemd:
    """The two modules of systemd-python as far as they are used, with a real socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.fails = False
        daemon = types.ModuleType("systemd.daemon")
        journal = types.ModuleType("systemd.journal")
        outer = self

        def notify(status: str) -> bool:
            if outer.fails:
                raise ConnectionRefusedError
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.sendto(status.encode(), os.environ["NOTIFY_SOCKET"])
            return True

        class JournalHandler(logging.Handler):
            def __init__(self, **fields: str) -> None:
                super().__init__()
                assert fields == {"SYSLOG_IDENTIFIER": "meterd"}

            def emit(self, record: logging.LogRecord) -> None:
                fields = {key: value for key, value in vars(record).items() if key.isupper()}
                outer.sent.append((self.format(record), fields))

        daemon.notify = notify  # type: ignore[attr-defined]
        journal.JournalHandler = JournalHandler  # type: ignore[attr-defined]
        package = types.ModuleType("systemd")
        package.daemon = daemon  # type: ignore[attr-defined]
        package.journal = journal  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "systemd", package)
        monkeypatch.setitem(sys.modules, "systemd.daemon", daemon)
        monkeypatch.setitem(sys.modules, "systemd.journal", journal)


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    return FakeSystemd(monkeypatch)


@pytest.fixture
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of units, and no module in it."""
    monkeypatch.setitem(sys.modules, "systemd", types.ModuleType("systemd"))
    monkeypatch.setitem(sys.modules, "systemd.daemon", None)
    monkeypatch.setitem(sys.modules, "systemd.journal", None)


@pytest.fixture
def notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


@pytest.mark.usefixtures("systemd")
def test_the_manager_hears(notices: socket.socket) -> None:
    manager = Manager()
    manager.ready()
    manager.status("metering 1.2 kW\nREADY=0")
    manager.watchdog()
    manager.stopping()
    assert [notices.recv(1000) for _ in range(4)] == [
        b"READY=1",
        b"STATUS=metering 1.2 kW READY=0",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]
    assert manager.lost == 0


def test_a_manager_that_does_not_listen_stops_no_metering(
    systemd: FakeSystemd, notices: socket.socket
) -> None:
    manager = Manager()
    systemd.fails = True
    manager.watchdog()
    assert manager.lost == 1
    with pytest.raises(BlockingIOError):
        notices.recv(1000)


@pytest.mark.usefixtures("no_systemd")
def test_without_a_manager_nothing_is_needed_and_nothing_done() -> None:
    manager = Manager({})
    manager.ready()
    manager.watchdog()
    assert (manager.watchdog_s, manager.lost) == (None, 0)


@pytest.mark.usefixtures("no_systemd")
def test_a_manager_that_would_wait_in_vain_is_named_at_start() -> None:
    with pytest.raises(AbsentError, match="NOTIFY_SOCKET is set") as caught:
        Manager({"NOTIFY_SOCKET": "/run/systemd/notify"})
    assert "meterd[systemd]" in caught.value.hint


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, None, id="nobody watches"),
        pytest.param({"WATCHDOG_USEC": "30000000"}, 15.0, id="half a period"),
        pytest.param({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0, id="this process"),
        pytest.param({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None, id="another"),
        pytest.param({"WATCHDOG_USEC": "0"}, None, id="switched off"),
        pytest.param({"WATCHDOG_USEC": "soon"}, None, id="no number"),
    ],
)
def test_the_watchdog_wants_a_ping_each(environ: dict[str, str], expected: float | None) -> None:
    assert watchdog_interval_s(environ, 7) == expected


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        pytest.param({}, "stopped", id="nothing"),
        pytest.param({"n": "3", "port": "/dev/ttyAMA0"}, "stopped n=3 port=/dev/ttyAMA0", id="two"),
        pytest.param({"reason": "hung up"}, 'stopped reason="hung up"', id="a space"),
        pytest.param({"reason": ""}, 'stopped reason=""', id="empty"),
        pytest.param({"line": 'a="b"'}, r'stopped line="a=\"b\""', id="quotes"),
        pytest.param({"line": "x\nlied n=1"}, r'stopped line="x\nlied n=1"', id="a newline"),
        pytest.param({"line": "\x1b[31m"}, r'stopped line="\u001b[31m"', id="an escape"),
        pytest.param({"line": "\x9b31m"}, r'stopped line="\u009b31m"', id="another escape"),
        pytest.param({"name": "küche"}, "stopped name=küche", id="a letter"),
        pytest.param({"load": "7%d"}, "stopped load=7%d", id="a percent sign"),
    ],
)
def test_a_line_of_the_journal(fields: dict[str, str], line: str) -> None:
    assert format_event("stopped", fields) == line


def test_the_journals_fields_have_names_that_it_accepts() -> None:
    assert journal_fields("port_lost", {"port": "a", "read-bytes.max": "7"}) == {
        "METERD_EVENT": "port_lost",
        "METERD_PORT": "a",
        "METERD_READ_BYTES_MAX": "7",
    }


def _stream(fd: int = 2) -> str:
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


def test_stderr_is_the_journal_only_if_it_is_that_stream() -> None:
    assert stderr_is_journal({"JOURNAL_STREAM": _stream()})
    assert not stderr_is_journal({"JOURNAL_STREAM": "8:1"})
    assert not stderr_is_journal({})


@pytest.fixture
def restored() -> Iterator[None]:
    logger = logging.getLogger("meterd")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    for handler in before[0]:
        logger.addHandler(handler)
    logger.setLevel(before[1])
    logger.propagate = before[2]


@pytest.mark.usefixtures("restored")
def test_an_event_reaches_the_journal_with_its_fields(systemd: FakeSystemd) -> None:
    logger = journal_logger({"JOURNAL_STREAM": _stream()})
    log_event(logger, logging.WARNING, "port_lost", port="/dev/ttyAMA0", level=3, event="e")
    assert systemd.sent == [
        (
            "port_lost port=/dev/ttyAMA0 level=3 event=e",
            {"METERD_EVENT": "port_lost", "METERD_PORT": "/dev/ttyAMA0", "METERD_LEVEL": "3"},
        )
    ]


@pytest.mark.usefixtures("restored", "no_systemd")
def test_without_the_module_the_priority_stands_before_each_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = journal_logger({"JOURNAL_STREAM": _stream()})
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log_event(logger, level, "said", level=level)
    log_event(logger, logging.ERROR, "said", load="7%d")
    logger.error("two\nlines %d", 7)
    assert capsys.readouterr().err.splitlines() == [
        "<6>said level=20",
        "<4>said level=30",
        "<3>said level=40",
        "<2>said level=50",
        "<3>said load=7%d",
        "<3>two",
        "<3>lines 7",
    ]


@pytest.mark.usefixtures("restored")
def test_on_a_terminal_lines_are_plain_and_said_once(
    systemd: FakeSystemd, capsys: pytest.CaptureFixture[str]
) -> None:
    journal_logger({})
    log_event(journal_logger({"JOURNAL_STREAM": "8:1"}), logging.INFO, "started", name="a b")
    assert capsys.readouterr().err == 'started name="a b"\n'
    assert systemd.sent == []
