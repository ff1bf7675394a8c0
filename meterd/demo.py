"""`meterd demo`: a household is metered, sealed and verified while one looks.

A simulated board on a real pseudo terminal plays real days where they are found, else the model
household; `meterd run` meters it as it would in a cellar, its clock running fast; at the end a
stranger, with nothing but the public key, verifies the account.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from meterd.config import load
from meterd.device.archive import Known, verify
from meterd.device.control_client import ControlClient
from meterd.errors import AbsentError, MeterdError, UsageError
from meterd.household import local_ms, read_recording
from meterd.init import create_account

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meterd.device.archive import Verdict

SPEED_DEFAULT = 600  # ten minutes a second: an interval is sealed every three seconds
POLLING_MS = 5000
INTERVAL_S = 1800
LOOK_S = 0.25
NOISE_W = "2"  # of the model alone, as a real board's last digits have it
START_S_MAX = 20.0
STOP_S_MAX = 15.0
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
DATA_FILE = "household-2007-01-08-28d.csv.gz"
UJ_PER_WH = 3_600_000_000
CONFIG = """[meter]
name = "demo-house"
interval_s = {interval_s}

[board]
port = "{port}"
layout = "rpict3v1"
polling_ms = {polling_ms}

[[clamp]]
name = "mains"
role = "mains"

[log]
reserve_mb = 1
"""


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterd demo`."""
    parser.epilog = """examples:
  meterd demo                       until Ctrl-C
  meterd demo --for 30 --json       half a minute, then a summary for scripts
  meterd demo --csv my-house.csv    columns timestamp,voltage_v,current_a,active_power_w
"""
    parser.add_argument(
        "--for", dest="seconds", type=_seconds, metavar="SECONDS", help="end after so long"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON at the end")
    parser.add_argument(
        "--speed", type=int, default=SPEED_DEFAULT, metavar="N", help="times as fast (600)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the recording to play")
    parser.add_argument("--seed", type=int, default=1, help="of the model household (1)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the account here")


def find_recording() -> Path | None:
    """Return the real household's recording, if it lies where the project keeps it."""
    folders = [Path(__file__).resolve().parents[2] / "shared" / "data"]
    if "METERD_DATA" in os.environ:
        folders.insert(0, Path(os.environ["METERD_DATA"]))
    return next((folder / DATA_FILE for folder in folders if (folder / DATA_FILE).exists()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What the demo plays.

    Attributes:
        label: For the screen.
        epoch_ms: Household time at which it begins, ms since 1970.
        options: For `meterd board`.
    """

    label: str
    epoch_ms: int
    options: tuple[str, ...]


def choose_house(csv: Path | None, seed: int) -> House:
    """Return what to play: the CSV asked for, the real one if found, else the model.

    Raises:
        AbsentError: The CSV asked for cannot be read.
    """
    recording = csv or find_recording()
    if recording is None:
        start = "2026-11-02T06:00:00"
        return House(
            label=f"the model household, seed {seed}",
            epoch_ms=local_ms(start),
            options=("--seed", str(seed), "--start", start, "--noise-w", NOISE_W),
        )
    try:
        start_ms = read_recording(recording).start_ms
    except OSError as error:
        raise AbsentError(f"cannot read {recording}: {error.strerror}") from error
    return House(
        label=f"a real household ({recording.name})",
        epoch_ms=start_ms,
        options=("--csv", str(recording), "--loop"),
    )


@dataclass(slots=True)
class Street:
    """The processes and folders of a running demo."""

    state: Path
    board: subprocess.Popen[bytes]
    meter: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise AbsentError if a process has ended by itself."""
        for name, process in (("board", self.board), ("meter", self.meter)):
            if process.poll() is not None:
                said = self.log.read_text(errors="replace").strip().splitlines()[-3:]
                raise AbsentError(
                    f"the {name} ended with {process.returncode}: {' / '.join(said)}",
                    hint="run `meterd demo --keep DIR` and look at DIR/log",
                )


@contextlib.contextmanager
def start_street(folder: Path, house: House, speed: int) -> Iterator[Street]:
    """Start board and meter in `folder`; stop them in the end."""
    link, state, config = folder / "board", folder / "account", folder / "meterd.toml"
    config.write_text(CONFIG.format(port=link, polling_ms=POLLING_MS, interval_s=INTERVAL_S))
    create_account(state, load(config), os.urandom(32), network="demo")
    log = folder / "log"
    program = (sys.executable, "-m", "meterd")
    with log.open("ab") as said:
        board = subprocess.Popen(
            (
                *program,
                "board",
                *("--link", str(link), "--layout", "rpict3v1", "--wait"),
                *("--polling-ms", str(POLLING_MS), "--speed", str(speed)),
                *house.options,
            ),
            stdout=said,
            stderr=said,
        )
        try:
            _wait(link.exists, board, log)
            meter = subprocess.Popen(
                (
                    *program,
                    "run",
                    *("--config", str(config), "--state", str(state)),
                    *("--speed", str(speed), "--epoch-ms", str(house.epoch_ms)),
                ),
                stdout=said,
                stderr=said,
            )
            try:
                _wait(lambda: _answers(state), meter, log)
                yield Street(state, board, meter, log)
            finally:
                with _uninterrupted():
                    _stop(meter)
        finally:
            with _uninterrupted():
                _stop(board)


def _wait(there: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while not there():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise AbsentError(f"the demo did not start: {' / '.join(said)}")
        time.sleep(0.02)


def _answers(state: Path) -> bool:
    """Return whether the meter answers; its socket is there a moment before it listens."""
    try:
        ControlClient(state / "control").call("Registers")
    except AbsentError:
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore a second Ctrl-C: what it asks for is being done, and nothing may be left behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def kwh(uj: int) -> str:
    """Return energy in kWh with three decimals, rounded down."""
    wh = uj // UJ_PER_WH
    return f"{wh // 1000}.{wh % 1000:03d}"


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; returns the exit code."""
    if arguments.speed < 1:
        raise UsageError(f"--speed: expected 1 or more, got {arguments.speed}")
    house = choose_house(arguments.csv, arguments.seed)
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    with contextlib.ExitStack() as stack:
        folder = arguments.keep
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meterd-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        status: dict[str, Any] = {}
        with start_street(folder, house, arguments.speed) as street:
            public_key = load_public_key(street.state)
            with contextlib.suppress(KeyboardInterrupt):
                status = _look(street, house, arguments)
        verdict = verify(street.state, Known(key=public_key))
        _report(house, arguments, verdict, status, time.monotonic() - begun)
        if arguments.keep and not arguments.json:
            print(f"kept: {street.state}; look with: meterctl blocks --state {street.state}")
    return 0 if verdict.verdict == "good" else 1


def _interrupt(_number: int, _frame: object) -> None:
    """End the show, once: what a second signal asks for is being done."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def load_public_key(state: Path) -> bytes:
    """Return the public key that the demo hands to the stranger."""
    from meterd.init import read_genesis

    return read_genesis(state).meters[0].sealing_key


def _look(street: Street, house: House, arguments: argparse.Namespace) -> dict[str, Any]:
    """Show the meter until the time is over; returns its last status."""
    client = ControlClient(street.state / "control")
    deadline = time.monotonic() + arguments.seconds if arguments.seconds else None
    screen = _Nothing()
    if not arguments.json:
        screen = _Live(house, arguments) if sys.stdout.isatty() else _Lines()
    status: dict[str, Any] = {}
    with screen:
        while deadline is None or time.monotonic() < deadline:
            street.check()
            try:
                status = client.call("Status")
            except MeterdError:
                street.check()
                raise
            screen.show(status)
            time.sleep(LOOK_S)
    return status


class _Nothing:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, status: dict[str, Any]) -> None:
        """Show nothing: a script reads the summary."""


class _Lines(_Nothing):
    """A line for each sealed block, for a pipe or a log."""

    def __init__(self) -> None:
        self._height = 0

    def show(self, status: dict[str, Any]) -> None:
        if status["height"] > self._height:
            self._height = status["height"]
            registers = status["registers"]
            imported = kwh(registers["1-0:1.8.0"]["uj"])
            end = when(status["last_end_s"])
            print(f"block {self._height:>4} sealed, to {end}: import {imported} kWh", flush=True)


def when(unix_s: int | None) -> str:
    """Return household time for people."""
    if unix_s is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(unix_s))


class _Live(_Nothing):
    """A table that is drawn anew."""

    def __init__(self, house: House, arguments: argparse.Namespace) -> None:
        from rich.live import Live

        self._house, self._speed = house, arguments.speed
        self._live = Live(refresh_per_second=4)
        self._blocks: list[tuple[int, int, int]] = []

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, status: dict[str, Any]) -> None:
        from rich.table import Table

        registers = status["registers"]
        imported = registers["1-0:1.8.0"]["uj"]
        if status["height"] and (not self._blocks or self._blocks[-1][0] < status["height"]):
            self._blocks.append((status["height"], status["last_end_s"], imported))
        open_interval = status["open"] or {"start_s": None, "records": 0, "power_mw": 0}
        facts = Table.grid(padding=(0, 2))
        facts.add_row("household", self._house.label)
        facts.add_row("clock", f"{self._speed} times as fast as ours")
        facts.add_row("power now", f"{open_interval['power_mw'] // 1000:>6} W")
        facts.add_row("import", f"{kwh(imported)} kWh")
        facts.add_row("export", f"{kwh(registers['1-0:2.8.0']['uj'])} kWh")
        facts.add_row("readings", str(status["readings"]["accepted"]))
        since = when(open_interval["start_s"])
        facts.add_row("open interval", f"since {since}, {open_interval['records']} samples linked")
        facts.add_row("alarms", "; ".join(status["alarms"]) or "none")
        table = Table(title="a meter, its board and its account", title_justify="left")
        table.add_column("sealed block", justify="right")
        table.add_column("to (household's time)")
        table.add_column("import register, kWh", justify="right")
        for height, end_s, uj in self._blocks[-8:]:
            table.add_row(str(height), when(end_s), kwh(uj))
        outer = Table.grid()
        outer.add_row(facts)
        outer.add_row(table)
        self._live.update(outer)


def _report(
    house: House,
    arguments: argparse.Namespace,
    verdict: Verdict,
    status: dict[str, Any],
    seconds: float,
) -> None:
    head = verdict.head
    energy = {e.obis[2]: e.last_uj for e in head.energy} if head else {}
    imported = energy.get(1, 0)
    if arguments.json:
        meter = {
            "name": "demo-house",
            "height": verdict.blocks,
            "certified_height": verdict.blocks,  # a network of one: what is sealed counts
            "wh": imported // UJ_PER_WH,
            "import_uj": imported,
            "export_uj": energy.get(2, 0),
            "records": verdict.records,
            "verdict": verdict.verdict,
        }
        summary = {
            "meters": [meter],
            "played": house.label,
            "speed": arguments.speed,
            "seconds": round(seconds, 1),
            "dropped": status.get("readings", {}).get("dropped", {}),
        }
        print(json.dumps(summary))
        return
    print(f"\nplayed {house.label}, {arguments.speed} times as fast, for {seconds:.0f} s")
    print(
        f"sealed {verdict.blocks} blocks with {verdict.records} samples: "
        f"import {kwh(imported)} kWh, export {kwh(energy.get(2, 0))} kWh"
    )
    if verdict.verdict == "good":
        print("a stranger with the public key alone verified every seal, sample and register: good")
    else:
        print(f"verification: {verdict.verdict}: {verdict.first_bad or verdict.reason}")
    print("not sealed yet, and so not vouched for: the interval that was open at the end")
