"""What `meterctl` asks a running daemon, and what it says where none answers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from meterd.ctl.options import socket_of
from meterd.device.control import ControlServer
from tests.ctl_kit import BEGIN_S, HOUR_S, Ctl, Made, copy, ctl, made
from tests.doors import Doors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from meterd.device.control import (
        LiveReading,
        PruneReply,
        RegistersReply,
        ReportReply,
        StatusReply,
    )

__all__ = ["copy", "ctl", "made"]


STATUS: StatusReply = {
    "name": "kitchen-12",
    "software": "ab" * 32,
    "state": "metering",
    "port": "open",
    "clock": "S",
    "height": 7,
    "last_end_s": BEGIN_S,
    "open": {"start_s": BEGIN_S, "records": 12, "power_mw": -1_500_250},
    "registers": {"1-0:1.8.0": {"uj": 3_600_000_000_000, "kind": "measured"}},
    "readings": {"accepted": 99, "dropped": {"banner": 1}},
    "gaps": 0,
    "storage_free_bytes": 12_000_000,
    "neighbours": {"voters": 0, "certified_height": 7, "order": 0, "waits": ""},
    "alarms": ["frozen: the board repeats one line"],
}
LIVE: LiveReading = {
    "wall_ms": BEGIN_S * 1000,
    "power_mw": -1_500_250,
    "voltage_mv": 231_400,
    "currents_ma": [6500],
    "import_uj": 3_600_000_000_000,
    "export_uj": 0,
}


class Daemon(Doors):
    """What the control socket of a running daemon would tell."""

    def __init__(self) -> None:
        super().__init__()
        self.pruned: list[int] = []

    def status(self) -> StatusReply:
        return STATUS

    def registers(self) -> RegistersReply:
        return {
            "registers": STATUS["registers"],
            "readings": STATUS["readings"],
            "gaps": STATUS["gaps"],
            "height": STATUS["height"],
        }

    async def live(self) -> AsyncIterator[LiveReading]:
        for _ in range(3):
            yield LIVE

    async def events(self, since: int) -> AsyncIterator[Any]:
        if since:
            yield since

    async def prune(self, before_s: int) -> PruneReply:
        self.pruned.append(before_s)
        return {"segments": 4, "bytes": 1234}

    async def report(self, since_s: int, side: bytes) -> ReportReply:
        return {"report": f"{since_s:02x}{side.hex()}"}


@pytest.fixture
def daemon(copy: Path) -> Iterator[Daemon]:
    source = Daemon()
    loop = asyncio.new_event_loop()
    server = ControlServer(copy / "control", source)
    task: asyncio.Task[None] = loop.create_task(server.serve())
    loop.run_until_complete(asyncio.wait_for(server.listening.wait(), 10))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield source
    loop.call_soon_threadsafe(task.cancel)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.mark.parametrize(
    ("named", "state", "there", "expected"),
    [
        (None, "account", ("unit",), "account/control"),
        (None, "default", ("default/control",), "default/control"),
        (None, "default", ("unit", "default/control"), "unit"),
        (None, "default", ("unit",), "unit"),
        (None, "default", (), "unit"),
        ("other", "default", ("unit",), "other"),
    ],
)
def test_the_daemon_is_asked_where_it_listens(  # noqa: PLR0917 - one row of a table
    named: str | None,
    state: str,
    there: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "default").mkdir()
    for name in there:
        (tmp_path / name).touch()
    monkeypatch.setattr("meterd.ctl.options.CONTROL_SYSTEM", tmp_path / "unit")
    monkeypatch.setattr("meterd.ctl.options.STATE_DEFAULT", str(tmp_path / "default"))
    options = argparse.Namespace(socket=named and tmp_path / named, state=tmp_path / state)
    assert socket_of(options) == tmp_path / expected


@pytest.mark.usefixtures("daemon")
def test_status_is_the_daemon_s(ctl: Ctl, copy: Path) -> None:
    said = ctl("status", "--state", copy)
    assert (said.status, said.err) == (0, "")
    for told in (
        "kitchen-12: metering (software abababababab)",
        "import              1.000 kWh   measured",
        "12 rows since 2007-07-03T02:00:00+02:00, -1500.2 W now",
        "99 readings, 1 dropped (1 banner), 0 gaps since the start",
        "alarm      frozen: the board repeats one line",
    ):
        assert told in said.out
    assert ctl("status", "--state", copy, "--json").json == {"source": "daemon"} | STATUS


def test_status_without_a_daemon_is_the_account_s_and_says_so(ctl: Ctl, made: Made) -> None:
    said = ctl("status", "--state", made.state)
    assert said.status == 0
    assert "no meterd answers" in said.err
    assert "this is what the account says" in said.err
    assert [line for line in said.err.splitlines() if len(line) > 80] == []
    assert "kitchen-12: stopped" in said.out
    reply = ctl("status", "--state", made.state, "--json").json
    assert reply["source"] == "account"
    assert {name: reply[name] for name in made.reply} == made.reply
    assert set(reply) == {"source", *STATUS}


@pytest.mark.usefixtures("daemon")
def test_watch_shows_readings_as_they_come(ctl: Ctl, copy: Path) -> None:
    said = ctl("watch", "--state", copy)
    assert said.status == 0
    line = "2007-07-03T02:00:00+02:00   -1500.2  231.4    6.50        1.000        0.000"
    assert said.out.splitlines()[1:] == [line] * 3
    assert ctl("watch", "--state", copy, "--count", "2", "--json").lines == [LIVE] * 2


def test_a_running_daemon_prunes_itself(ctl: Ctl, copy: Path, daemon: Daemon) -> None:
    said = ctl("prune", "--state", copy, "--before", "2007-07-04")
    assert said.status == 0
    assert daemon.pruned == [BEGIN_S + 22 * HOUR_S]
    assert said.out == (
        "4 segments of samples before 2007-07-04T00:00:00+02:00 pruned: 1234 bytes\n"
    )


def test_a_daemon_that_is_not_found_is_not_written_beside(ctl: Ctl, copy: Path) -> None:
    script = "import sys\nfrom pathlib import Path\nfrom meterd.device.card import lock\n"
    script += f"lock(Path({str(copy)!r}))\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        said = ctl("prune", "--state", copy, "--before", "2007-07-04")
    assert said.status == 75
    assert "another process writes the account" in said.err
    assert "--socket" in said.err
