"""`meterd run` as a whole program: a board on a pty, an account that a stranger verifies."""

from __future__ import annotations

import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from meterd import board_lines
from meterd.flapping import EVENTS_AT_ONCE
from meterd.household import local_ms, read_recording, synthetic_household
from tests.accounts import replay_lines
from tests.daemon_kit import (
    DAY_MS,
    EPOCH_MS,
    ROW_GAP,
    Cable,
    House,
    Stored,
    line,
    make_house,
    until,
)
from tests.reference import reckon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meterd.device.control_client import ControlClient
    from meterd.household import Load

RECORDING = "household-2007-01-08-28d.csv.gz"
MODEL_START = "2026-06-21T09:00:00"  # with the sun on its roof
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
SPEED = 3000  # a line every 5 ms, a block every 0.3 s, a day in 29 s
POLLING_MS = 15_000
EVENING = ("--start", "2026-11-02T18:00:00")  # no sun: what is drawn is counted as import
BOARD = (*EVENING, "--speed", str(SPEED), "--polling-ms", str(POLLING_MS), "--wait")
UNPLUGGED_MS = 2_400_000
RSS_KB_MAX = 29_000
GAP = 1  # flag of a block


# --- the path of a watt ---------------------------------------------------------------------------


class Played(NamedTuple):
    """A household that is metered.

    Attributes:
        load: What its clamp sees.
        start_ms: From when on.
        options: For `meterd board`, so that it plays the same.
    """

    load: Load
    start_ms: int
    options: tuple[str, ...]


def meter_household(folder: Path, played: Played, *, hours: int, speed: int) -> None:
    """Meter some hours of a household, and reckon all that comes of it again."""
    folder.mkdir()
    house = make_house(folder, polling_ms=MINUTE_MS)
    spoken = board_lines.lines(
        played.load,
        board_lines.Board(polling_ms=MINUTE_MS),
        start_ms=played.start_ms,
        until_ms=played.start_ms + hours * HOUR_MS,  # a recording may have holes, and ends there
    )
    lines = [words.data.decode().strip() for words in spoken]
    assert len(lines) >= hours * 59
    board_options = (
        *("--polling-ms", str(MINUTE_MS), "--speed", str(speed)),
        *("--count", str(hours * 60), "--wait"),
    )
    with (
        house.board(*board_options, *played.options) as board,
        house.run_scaled(speed, played.start_ms) as meter,
    ):
        said = board.hear(r"(\d+) lines said, (\d+) of them to nobody", deadline_s=600)
        assert said.groups() == (str(len(lines)), "0")
        house.wait_accepted(len(lines))
        told = house.ask().call("Registers")
        assert meter.rss_kb <= RSS_KB_MAX
        assert meter.stop() == 0
    assert told["readings"] == {"accepted": len(lines), "dropped": {}}
    rows = house.account.rows
    assert [row.powers_mw[0] for row in rows] == [milli(text.split()[1]) for text in lines]
    capture = [
        f"{(played.start_ms + row.at_ms) / 1000:.3f}\t{row.at_ms}\t{text}"
        for row, text in zip(rows, lines, strict=True)
    ]
    registers = {code: register["uj"] for code, register in told["registers"].items()}
    reckoned = reckon(capture, house.config.read_text())
    assert registers == reckoned.registers
    assert told["gaps"] == reckoned.gaps
    *sealed, last = reckoned.blocks  # the last is the open one's part
    intervals = house.account.intervals
    assert intervals[: len(sealed)] == [astuple(block) for block in sealed]
    assert len(intervals) <= len(reckoned.blocks)
    for closed in intervals[len(sealed) :]:  # by the silence behind the last line
        assert (closed.start_s, closed.registers) == (last.start_s, last.registers)
    assert len(sealed) >= 2 * hours - 1
    replayed = replay_lines(capture, house.config.read_text(), folder / "replayed")
    assert replayed.registers == registers
    assert replayed.intervals[: len(sealed)] == intervals[: len(sealed)]
    verdict = house.verify_good()
    assert verdict.records + verdict.open_rows == len(lines)


def milli(text: str) -> int:
    whole, _, tenths = text.partition(".")
    value = int(whole.lstrip("-")) * 1000 + int(tenths) * 100
    return -value if text.startswith("-") else value


def households(data_dir: Path) -> list[Played]:
    recording = read_recording(data_dir / RECORDING)
    return [
        Played(recording, recording.start_ms, ("--csv", str(data_dir / RECORDING))),
        Played(synthetic_household(1), local_ms(MODEL_START), ("--start", MODEL_START)),
    ]


@pytest.mark.parametrize(
    ("hours", "speed"),
    [(5, 3600), pytest.param(28 * 24, 7200, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_a_real_and_a_model_household_are_metered_exactly_and_sealed(
    tmp_path: Path, data_dir: Path, hours: int, speed: int
) -> None:
    """To the microjoule: every register, every interval, by a reference that shares no code."""
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(meter_household, tmp_path / str(number), played, hours=hours, speed=speed)
            for number, played in enumerate(households(data_dir))
        ]
        for run in runs:
            run.result()


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_stop_loses_nothing_that_was_delivered(tmp_path: Path, number: int) -> None:
    house = make_house(tmp_path, network="")
    with Cable(house.port) as cable, house.run() as meter:
        meter.hear("port_opened")
        house.ask()
        meter.process.send_signal(signal.SIGSTOP)  # so that lines wait in the kernel at the stop
        for count in range(300):
            cable.say(line(count))
        meter.process.send_signal(number)
        meter.process.send_signal(signal.SIGCONT)
        assert meter.end() == 0
    assert meter.lines[-1].startswith("stopped ")
    assert [row.powers_mw[0] for row in house.account.rows] == [n * 1000 for n in range(300)]
    assert house.account.kinds_of_events[-1] == "stopped"
    assert not (house.state / "control").exists()
    house.verify_good()


def test_signals_after_the_first_are_harmless(tmp_path: Path) -> None:
    house = make_house(tmp_path, network="")
    with Cable(house.port) as cable, house.run() as meter:
        meter.hear("port_opened")
        for count in range(50):
            cable.say(line(count))
        house.wait_accepted(50)
        meter.process.send_signal(signal.SIGTERM)
        while meter.process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGINT):
                meter.process.send_signal(number)
        assert meter.end() == 0
    assert len(house.account.rows) == 50
    assert meter.said.count("stopped ") == 1
    house.verify_good()


def test_a_run_goes_on_where_the_one_before_was_stopped(tmp_path: Path) -> None:
    """A restart by SIGTERM is a restart like any other: CONTRACTS.md, *Intervals, by example*."""
    house = make_house(tmp_path, interval_s=900, polling_ms=POLLING_MS)
    with house.board(*BOARD):
        with house.run_scaled(SPEED) as meter:
            meter.hear("^sealed ")
            assert meter.stop() == 0
        stored, before = Stored(house.state), house.account.blocks
        with house.run_scaled(SPEED, EPOCH_MS + 6 * HOUR_MS) as again:
            again.hear("^sealed ")
            again.hear("^sealed ")
            assert again.stop() == 0
    after = house.account.intervals[len(before) :]
    partial, gap, *_ = after
    assert set(partial.flags) - {"gap"} == {"partial"}  # a busy machine makes holes of its own
    assert partial.start_s == before[-1].end_s
    assert gap.flags == ("gap",)
    assert gap.measured_ms == 0
    away_s = gap.end_s - (EPOCH_MS + 6 * HOUR_MS) // 1000
    assert away_s >= 0, "to the interval of the first reading, which a busy machine has late"
    assert away_s % 900 == 0
    assert abs(gap.registers[0][1] - stored.import_uj) <= stored.boundary_uj * (len(before) + 1)
    house.verify_good()


# --- the cable ------------------------------------------------------------------------------------


def test_a_cable_pulled_is_an_alarm_and_a_gap_and_metering_goes_on(tmp_path: Path) -> None:
    house = make_house(tmp_path, interval_s=900, polling_ms=POLLING_MS)
    with (
        house.board(*BOARD, "--fault", f"unplug@1800+{UNPLUGGED_MS // 1000}"),
        house.run_scaled(SPEED) as meter,
    ):
        meter.hear("port_lost .*check the cable")
        meter.hear("alarm=port")
        client = house.ask()
        assert client.call("Status")["port"] == "lost"
        lost_uj = client.call("Registers")["registers"]["1-0:1.8.0"]["uj"]
        meter.hear("port_opened")
        meter.hear("alarm_over alarm=port")
        for _ in range(3):
            meter.hear("^sealed ")
        told = client.call("Registers")
        assert meter.stop() == 0
    stored = Stored(house.state)
    blocks = house.account.blocks
    rows = house.account.rows
    hole_ms, after = max((late.at_ms - early.at_ms, late) for early, late in pairwise(rows))
    assert hole_ms >= UNPLUGGED_MS - POLLING_MS
    assert after.flags & ROW_GAP
    assert told["gaps"] >= 1
    assert lost_uj > 0
    floors_uj = stored.boundary_uj * (len(blocks) + 1)
    assert blocks[-1].energy[0].last_uj <= stored.import_uj + floors_uj
    assert told["registers"]["1-0:1.8.0"]["uj"] <= stored.import_uj + floors_uj
    holed = [block for block in blocks if block.flags & GAP]
    assert holed
    missing_ms = sum(
        (block.end_s - block.start_s) * 1000 - block.clock.measured_ms for block in holed
    )
    assert missing_ms >= UNPLUGGED_MS - POLLING_MS
    kinds = house.account.kinds_of_events
    assert kinds.count("port_lost") == 1
    assert kinds.count("port_opened") == 2
    house.verify_good()


# --- the service manager --------------------------------------------------------------------------

STAND_IN = '''
"""Stands in for systemd.daemon: writes each notice down, and who sent it; can hang the sender."""
import asyncio, json, os, time
folder = os.environ["STAND_IN"]
def notify(text):
    task = None
    try:
        task = asyncio.current_task()
    except RuntimeError:
        pass
    note = {"text": text, "task": task and task.get_name(), "at_s": time.monotonic()}
    with open(os.path.join(folder, "notices"), "a") as file:
        file.write(json.dumps(note) + "\\n")
    if text == "WATCHDOG=1" and os.path.exists(os.path.join(folder, "hang")):
        meter = task.get_coro().cr_frame.f_locals["self"]
        async def never(chunk):
            await asyncio.get_running_loop().create_future()
        meter._take = never
'''
WATCHDOG_S = 2.0


class Manager:
    """A service manager that watches: the stand-in for its module, and the notices it got."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "systemd").mkdir(parents=True)
        (folder / "systemd" / "__init__.py").write_text("")
        (folder / "systemd" / "daemon.py").write_text(STAND_IN)
        self.environ = {
            "PYTHONPATH": str(folder),
            "STAND_IN": str(folder),
            "NOTIFY_SOCKET": "/nonexistent",
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1_000_000)),
        }

    @property
    def notices(self) -> list[dict[str, Any]]:
        path = self._folder / "notices"
        return [json.loads(note) for note in path.read_text().splitlines()] if path.exists() else []

    @property
    def pings(self) -> list[dict[str, Any]]:
        return [notice for notice in self.notices if notice["text"] == "WATCHDOG=1"]

    def hang_measuring(self) -> None:
        (self._folder / "hang").touch()


def test_a_silent_board_is_an_alarm_and_no_reason_for_the_watchdog(tmp_path: Path) -> None:
    house = make_house(tmp_path, interval_s=900, polling_ms=POLLING_MS)
    manager = Manager(tmp_path / "manager")
    with (
        house.board(*BOARD, "--fault", "silence@900+9000"),
        house.run_scaled(SPEED, environ=manager.environ) as meter,
    ):
        meter.hear("port_silent .*38400 baud")
        silent_s = time.monotonic()
        meter.hear("alarm=port")
        assert house.ask().call("Status")["port"] == "silent"
        meter.hear("port_speaks")
        spoke_s = time.monotonic()
        meter.hear("alarm_over alarm=port")
        meter.hear("^sealed ")
        assert meter.stop() == 0
    texts = [notice["text"] for notice in manager.notices]
    assert texts[0] == "READY=1"
    assert texts[-1] == "STOPPING=1"
    lines = [text for text in texts if text.startswith("STATUS=")]
    silent = re.compile(r"STATUS=not well: (cadence, )?port; silent; ")  # if the machine is busy
    assert any(silent.match(line) for line in lines)
    assert re.match(r"STATUS=(well:|not well: cadence;) metering; ", lines[-1])
    assert all(line != later for line, later in pairwise(lines)), "said again only as it changes"
    times_s = [ping["at_s"] for ping in manager.pings]
    longest_s = max(later - earlier for earlier, later in pairwise(times_s))
    assert longest_s < WATCHDOG_S
    assert sum(silent_s < at_s < spoke_s for at_s in times_s) >= (spoke_s - silent_s) // WATCHDOG_S
    assert any(block.flags & GAP for block in house.account.blocks)
    house.verify_good()


def test_a_cable_that_is_loose_does_not_fill_the_card(tmp_path: Path) -> None:
    house = make_house(tmp_path, polling_ms=POLLING_MS)
    cable = Cable(house.port)
    with house.run() as meter:
        meter.hear("port_opened")
        for _ in range(EVENTS_AT_ONCE // 2 + 3):
            cable.close()
            cable = Cable(house.port)
            meter.hear("port_opened")
        assert meter.stop() == 0
    cable.close()
    kinds = [event.kind for event in house.account.events]
    assert kinds.count("port_opened") + kinds.count("port_lost") == EVENTS_AT_ONCE
    house.verify_good()


def hangs(client: ControlClient) -> bool:
    """Return whether readings stand still while the daemon answers, for as long as a ping takes."""
    ends_s = time.monotonic() + WATCHDOG_S
    counts = set()
    while time.monotonic() < ends_s:
        counts.add(client.call("Registers")["readings"]["accepted"])
    return len(counts) == 1


def test_only_the_measuring_loop_pings_the_watchdog(tmp_path: Path) -> None:
    house = make_house(tmp_path, interval_s=900, polling_ms=POLLING_MS)
    manager = Manager(tmp_path / "manager")
    with house.board(*BOARD), house.run_scaled(SPEED, environ=manager.environ) as meter:
        until(lambda: len(manager.pings) > 3, "some pings")
        client = house.ask()
        manager.hang_measuring()
        until(lambda: hangs(client), "measuring hangs")
        accepted = client.call("Registers")["readings"]["accepted"]
        pings = len(manager.pings)
        ends_s = time.monotonic() + 2 * WATCHDOG_S
        while time.monotonic() < ends_s:  # the loop turns, and answers; measuring hangs
            assert client.call("Registers")["readings"]["accepted"] == accepted
        assert len(manager.pings) == pings
        meter.process.kill()
    assert {ping["task"] for ping in manager.pings} == {"measure"}
    house.verify_good()


def test_a_manager_that_waits_in_vain_is_told_why(tmp_path: Path) -> None:
    house = make_house(tmp_path, network="")
    blind = tmp_path / "blind" / "systemd"
    blind.mkdir(parents=True)
    (blind / "__init__.py").write_text("raise ImportError('not here')")
    environ = {"PYTHONPATH": str(blind.parent), "NOTIFY_SOCKET": "/nonexistent"}
    with Cable(house.port), house.run(environ=environ) as meter:
        assert meter.end() == 69
    assert "python3-systemd" in meter.said
    assert "Traceback" not in meter.said


# --- the control socket ---------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path) -> Iterator[House]:
    """A daemon that has sealed something, two hours before a midnight."""
    house = make_house(tmp_path, interval_s=900, polling_ms=POLLING_MS, commit_s=300)
    with house.board(*BOARD), house.run_scaled(SPEED, EPOCH_MS + DAY_MS - 2 * HOUR_MS) as meter:
        meter.hear("^sealed ")
        yield house
        assert meter.stop() == 0
    house.verify_good()


def test_status_and_registers_tell_how_the_meter_is(running: House) -> None:
    client = running.ask()
    status, registers = client.call("Status"), client.call("Registers")
    assert status["name"] == "kitchen-12"
    assert status["state"] == "metering"
    assert status["port"] == "open"
    assert status["clock"] == "S"
    assert status["height"] >= 1
    kinds = {alarm.partition(":")[0] for alarm in status["alarms"]}
    assert kinds <= {"cadence"}, "no fault, unless a busy machine keeps the board waiting"
    until(lambda: client.call("Status")["open"]["records"] > 0, "rows behind a boundary")
    assert registers["readings"]["accepted"] >= status["readings"]["accepted"] > 0
    assert set(registers["registers"]) == {"1-0:1.8.0", "1-0:2.8.0", "1-0:9.8.0"}
    told = registers["registers"]["1-0:1.8.0"]
    assert told["uj"] >= status["registers"]["1-0:1.8.0"]["uj"] > 0
    assert told["kind"] == "measured"
    assert len(running.account.blocks) >= registers["height"], "told of before it was durable"


def test_live_readings_come_as_they_are_integrated(running: House) -> None:
    readings = list(islice(running.ask().stream("Live"), 20))
    times_ms = [reading["wall_ms"] for reading in readings]
    assert times_ms == sorted(times_ms)
    energies = [reading["import_uj"] for reading in readings]
    assert energies == sorted(energies)
    exports = [reading["export_uj"] for reading in readings]
    assert exports == sorted(exports)
    assert energies[-1] + exports[-1] > energies[0] + exports[0]
    assert all(reading["voltage_mv"] > 200_000 for reading in readings)


def test_events_come_from_the_first_on_and_go_on_as_they_happen(running: House) -> None:
    sealed = []
    numbers = []
    for event in running.ask().stream("Events", since=1):
        numbers.append(event["number"])
        if event["kind"] == "sealed":
            sealed.append(int(event["details"]["height"]))
        if len(sealed) == 4:
            break
    assert numbers == list(range(1, len(numbers) + 1))
    assert sealed == [1, 2, 3, 4]


def test_samples_are_pruned_by_a_running_daemon_and_the_account_stays_good(running: House) -> None:
    client = running.ask()
    midnight_s = (EPOCH_MS + DAY_MS) // 1000
    until(lambda: client.call("Status")["last_end_s"] > midnight_s, "a block past midnight")
    before = sorted(path.name for path in (running.state / "samples").iterdir())
    reply = client.call("Prune", before_s=midnight_s)
    after = sorted(path.name for path in (running.state / "samples").iterdir())
    assert reply["segments"] == len(set(before) - set(after)) >= 1
    assert reply["bytes"] > 0
    assert "pruned" in running.account.kinds_of_events
    assert running.verify_good().pruned == reply["segments"]
    assert client.call("Prune", before_s=midnight_s)["segments"] == 0


# --- lean -----------------------------------------------------------------------------------------


def test_the_daemon_is_lean(tmp_path: Path) -> None:
    """In memory; its time to the port is `make bench`'s to measure."""
    house = make_house(tmp_path, network="", polling_ms=1000)
    with Cable(house.port) as cable, house.run() as meter:
        meter.hear("port_opened")
        for count in range(100):
            cable.say(line(count))
        house.wait_accepted(100)
        assert meter.rss_kb <= RSS_KB_MAX
        assert meter.stop() == 0
