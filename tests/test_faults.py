"""Faults of the whole program: killed at any moment, a card that fails, fills or stalls.

What must hold is in DESIGN.md (*On the card*), in CONTRACTS.md (exit codes) and in the rows L1-L3,
L7 and M5 of REQUIREMENTS.md.
"""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.errors import AbsentError
from tests.daemon_kit import (
    DAY_MS,
    EPOCH_MS,
    House,
    Program,
    Stored,
    make_house,
    small_card,
    strace,
)
from tests.fast_house_kit import (
    BOARD,
    COMMIT_S,
    POLLING_MS,
    SPEED,
    fill,
    import_uj,
    make_fast_house,
    only_error,
)

if TYPE_CHECKING:
    from meterd.device.control_client import ControlClient

LOST = 16  # flag of a block: samples lost


def blocks_told(meter: Program) -> dict[int, str]:
    """Return the beginning of the hash of each block that the daemon said it had sealed."""
    told = {}
    for said in meter.lines:
        if said.startswith("sealed "):
            fields = dict(field.split("=") for field in said.split()[1:])
            told[int(fields["height"])] = fields["hash"]
    return told


def assert_kept(house: House, told: dict[int, str]) -> None:
    blocks = {block.height: block.hash.hex() for block in house.account.blocks}
    for height, digest in told.items():
        assert blocks.get(height, "").startswith(digest), f"block {height} is gone, or another"


# --- killed (row M5) ------------------------------------------------------------------------------

LIFE_S_MAX = 0.5
STARTING_S_MAX = 0.6
STARTING_PART = 0.3  # of the kills hit a daemon that is starting
BEFORE_MIDNIGHT_MS = 600_000  # 0.2 s: many are killed as the day turns
LOSS_MS = (COMMIT_S * 1000) + 2 * POLLING_MS
WRITE_MS = 100 * SPEED  # for writing it, on a card that others use too
STALL_MS = 1000 * SPEED  # a busy machine may keep a daemon from its card so long, now and then


class Listener:
    """Hears each reading that the daemon has integrated, durable or not, until the daemon goes."""

    def __init__(self, client: ControlClient) -> None:
        self.first_ms = self.last_ms = 0
        self._client = client
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with suppress(AbsentError):
            for reading in self._client.stream("Live"):
                self.last_ms = reading["wall_ms"]
                self.first_ms = self.first_ms or self.last_ms

    def join(self) -> None:
        self._thread.join()


class Killed(NamedTuple):
    """What many kills came to: blocks told before one, and ms lost at each that was listened to."""

    blocks: int
    losses_ms: list[int]


def kill_often(folder: Path, kills: int, seed: int) -> Killed:
    """Kill a daemon at `kills` random moments, and check what each leaves."""
    folder.mkdir()
    chance = random.Random(seed)
    house = make_fast_house(folder)
    told: dict[int, str] = {}
    losses_ms: list[int] = []
    durable_uj = rows = runs = 0
    with house.board(*BOARD):
        for number in range(1, kills + 1):
            epoch_ms = EPOCH_MS + number * DAY_MS - BEFORE_MIDNIGHT_MS
            listener = None
            with house.run_scaled(SPEED, epoch_ms) as meter:
                if chance.random() < STARTING_PART:
                    meter.kill_after(chance.uniform(0, STARTING_S_MAX))
                else:
                    meter.hear("port_opened")
                    client = house.ask()
                    assert import_uj(client) >= durable_uj, f"went back at start {number}"
                    listener = Listener(client)
                    meter.kill_after(chance.uniform(0, LIFE_S_MAX))
            told |= blocks_told(meter)
            assert_kept(house, told)
            stored = Stored(house.state)
            assert stored.rows >= rows, f"rows are gone after kill {number}"
            blocks = house.account.blocks
            sealed_uj = blocks[-1].energy[0].last_uj if blocks else 0
            floors_uj = stored.boundary_uj * (len(blocks) + 1)
            durable_uj = max(sealed_uj, stored.import_uj - floors_uj)
            if listener is not None:
                listener.join()
                stored_ms = [at for run, at in stored.last_ms.items() if run > runs]
                last_ms = max(stored_ms, default=listener.first_ms - epoch_ms)
                losses_ms.append(max(0, listener.last_ms - epoch_ms - last_ms))
            rows, runs = stored.rows, max(stored.last_ms, default=0)
            if number % 10 == 0:
                house.verify_good()
        with house.run_scaled(SPEED, EPOCH_MS + (kills + 1) * DAY_MS) as meter:
            house.wait_accepted(300)
            status = house.ask().call("Registers")
            assert meter.stop() == 0
    house.verify_good()
    assert_kept(house, told)
    stored = Stored(house.state)
    floors_uj = stored.boundary_uj * (len(house.account.blocks) + 1) + stored.turning_uj
    now_uj = status["registers"]["1-0:1.8.0"]["uj"]
    assert durable_uj <= now_uj, "it stands still while the house exports, and never goes back"
    assert now_uj <= stored.import_uj + floors_uj, "energy that no row on the card has"
    assert house.account.blocks[-1].energy[0].last_uj <= stored.import_uj + floors_uj
    return Killed(len(told), losses_ms)


def kill_two(folder: Path, kills: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        halves = [pool.submit(kill_often, folder / str(seed), kills // 2, seed) for seed in (1, 2)]
        found = [half.result() for half in halves]
    assert sum(half.blocks for half in found) > kills // 2, "hardly a block came before a kill"
    losses_ms = sorted(loss for half in found for loss in half.losses_ms)
    assert losses_ms[len(losses_ms) * 8 // 10] <= LOSS_MS + WRITE_MS
    assert losses_ms[-1] <= LOSS_MS + STALL_MS


@pytest.mark.timeout(600)
def test_a_daemon_killed_at_any_moment_keeps_all_that_was_durable(tmp_path: Path) -> None:
    kill_two(tmp_path, 50)


@pytest.mark.soak
def test_a_daemon_killed_a_thousand_times_keeps_all_that_was_durable(tmp_path: Path) -> None:
    kill_two(tmp_path, 1000)


# --- the card fails (rows L1-L3) ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        ("fdatasync:error=EIO:when=1", "may be failing"),
        ("fdatasync:error=EIO:when=2", "may be failing"),
        ("fdatasync:error=EIO:when=15", "may be failing"),
        ("fsync:error=EIO:when=1", "may be failing"),
        ("fsync:error=EIO:when=4", "may be failing"),
        ("fdatasync:error=EROFS:when=6", "become read-only"),
        ("fdatasync:error=ENOSPC:when=6", "free space on the card"),
    ],
)
def test_a_failed_sync_ends_the_process_and_nothing_is_acknowledged_after(
    tmp_path: Path, fault: str, hint: str
) -> None:
    house = make_fast_house(tmp_path)
    call, error, _ = fault.split(":")
    trace = tmp_path / "trace"
    with house.board(*BOARD):
        wrap = strace("-e", f"trace={call}", "-e", f"inject={fault}", out=trace)
        with house.run_scaled(SPEED, wrap=wrap) as meter:
            assert meter.end() == 74
        told, told_hint = only_error(meter)
        number = getattr(errno, error.removeprefix("error="))
        assert told.endswith(f": {os.strerror(number)}")
        assert hint in told_hint
        *_, last = trace.read_text().splitlines()
        assert last.endswith("(INJECTED)"), "it was tried again"
        assert_kept(house, blocks_told(meter))
        house.verify_good()
        rows = Stored(house.state).rows
        with house.run_scaled(SPEED, EPOCH_MS + DAY_MS) as again:
            again.hear("sealed")
            assert again.stop() == 0
    house.verify_good()
    assert_kept(house, blocks_told(meter) | blocks_told(again))
    assert Stored(house.state).rows > rows


TRACED = re.compile(
    r"^\d+ +(?:<\.\.\. )?(?P<call>\w+)(?: resumed>.*|\((?P<what>.*))$",
)


class Card:
    """What a trace says of a card: which files have bytes that no sync has covered."""

    def __init__(self, state: Path) -> None:
        self.unsynced: set[str] = set()
        self._state = str(state) + "/"
        self._begun: dict[str, str] = {}

    def dirty(self, *streams: str) -> set[str]:
        return {path for path in self.unsynced if path.split("/")[0].split(".")[0] in streams}

    def take(self, line: str) -> tuple[str, str]:
        """Take a line of the trace; return call and file where a write begins, else blanks."""
        task, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.startswith("<... "):
            self._end(rest.split()[1], self._begun.pop(task))
            return "", ""
        call, _, arguments = rest.partition("(")
        if "<unfinished ...>" in arguments:
            self._begun[task] = arguments
        if call in {"write", "pwrite64"}:
            path = self._path(arguments)
            if path:
                self.unsynced.add(path)
            return call, path or arguments
        if "<unfinished ...>" not in arguments:
            self._end(call, arguments)
        return "", ""

    def _path(self, arguments: str) -> str:
        found = re.match(r"\d+<(.*?)>", arguments)
        path = found[1] if found else ""
        return path.removeprefix(self._state) if path.startswith(self._state) else ""

    def _end(self, call: str, arguments: str) -> None:
        if call in {"fdatasync", "fsync"}:
            self.unsynced.discard(self._path(arguments))
        elif call in {"rename", "openat"} and "O_RDONLY" not in arguments:
            created = re.findall(r'"([^"]*)"', arguments)[-1]
            if created.startswith(self._state) and (call == "rename" or "O_EXCL" in arguments):
                path = Path(created.removeprefix(self._state))
                self.unsynced.add(str(path.parent))
                if call == "rename":
                    before = re.findall(r'"([^"]*)"', arguments)[0].removeprefix(self._state)
                    assert before not in self.unsynced, f"{created} is not whole as it appears"


def test_what_a_block_vouches_for_is_durable_before_it_and_it_before_it_is_told(
    tmp_path: Path,
) -> None:
    """Rows L1 and L2: write, sync, then the next; folders too."""
    house = make_fast_house(tmp_path)
    trace = tmp_path / "trace"
    with house.board(*BOARD):
        calls = "trace=write,pwrite64,fdatasync,fsync,openat,rename"
        with house.run_scaled(SPEED, wrap=strace("-e", calls, out=trace)) as meter:
            for _ in range(4):
                meter.hear("^sealed ")
            assert meter.stop() == 0
    card = Card(house.state)
    blocks = told = 0
    for traced in trace.read_text().splitlines():
        was = set(card.unsynced)
        call, what = card.take(traced)
        if call and what.startswith("blocks"):
            blocks += 1
            assert not {path for path in was if path.startswith(("samples", "events"))}, traced
        elif call and '"sealed height=' in what:
            told += 1
            assert blocks >= told, traced
            assert not card.dirty("blocks", "samples", "events"), traced
    assert told >= 4
    assert not card.dirty("blocks", "samples", "events")


# --- the card fills (row L7), or cannot be written ------------------------------------------------


def test_a_card_that_fills_loses_samples_first_and_sealed_history_never(tmp_path: Path) -> None:
    with small_card(tmp_path / "card", 2048) as card:
        house = make_fast_house(tmp_path, state=card / "account")
        ballast = card / "ballast"
        fill(ballast, leave_bytes=1_030_000)
        with house.board(*BOARD):
            with house.run_scaled(SPEED) as meter:
                meter.hear("alarm=storage_low")
                meter.hear('alarm=storage_full .*"the card is full: samples are lost')
                for _ in range(3):
                    meter.hear("^sealed ")
                stored = Stored(house.state)
                fill(ballast, leave_bytes=0)
                assert meter.end() == 74
            error, hint = only_error(meter)
            assert "No space left on device" in error
            assert "free space on the card" in hint
            house.verify_good()
            assert_kept(house, blocks_told(meter))
            blocks = house.account.blocks
            assert blocks[-1].flags & LOST
            assert Stored(house.state).rows == stored.rows, "samples came after they had stopped"
            floors_uj = stored.boundary_uj * (len(blocks) + 1)
            assert blocks[-1].energy[0].last_uj > stored.import_uj + floors_uj, "energy is lost"
            with house.run_scaled(SPEED, EPOCH_MS + DAY_MS) as still_full:
                assert still_full.end() == 74
            assert "No space left on device" in only_error(still_full)[0]
            house.verify_good()
            ballast.unlink()
            with house.run_scaled(SPEED, EPOCH_MS + 2 * DAY_MS) as again:
                for _ in range(5):  # what was open, the absence, and intervals of its own
                    again.hear("^sealed ")
                assert again.stop() == 0
        house.verify_good()
        assert_kept(house, blocks_told(meter) | blocks_told(again))
        assert "storage_full" not in again.said
        later = house.account.blocks
        assert later[-1].energy[0].last_uj > blocks[-1].energy[0].last_uj
        assert Stored(house.state).rows > stored.rows
        assert not later[-1].flags & LOST


def test_a_card_that_is_read_only_at_the_start_is_said_to_be(tmp_path: Path) -> None:
    with small_card(tmp_path / "card", 2048) as card:
        house = make_fast_house(tmp_path, state=card / "account")
        before = house.content
        subprocess.run(["mount", "-o", "remount,ro", card], check=True)
        with house.board(*BOARD), house.run_scaled(SPEED) as meter:
            assert meter.end() == 74
        error, hint = only_error(meter)
        assert "Read-only file system" in error
        assert "mounted read-only" in hint
        assert house.content == before


# --- the card stalls ------------------------------------------------------------------------------

STALL_S = 3
STAMP_MS = 300
STAMP_MS_MAX = 1500  # for what the neighbours of a shared machine do meanwhile
STARTING_ROWS = 5  # while the daemon still loads what it answers with
SPACING_MS = 100


def test_lines_are_stamped_in_time_while_a_commit_stalls(tmp_path: Path) -> None:
    house = make_house(tmp_path, network="", polling_ms=SPACING_MS, commit_s=1)
    trace = tmp_path / "trace"
    stall = f"inject=fdatasync:delay_enter={STALL_S}s:when=1"
    with (
        house.board("--polling-ms", str(SPACING_MS), "--wait", "--noise-w", "50"),
        house.run(wrap=strace("-e", "trace=fdatasync", "-e", stall, out=trace)) as meter,
    ):
        meter.hear("port_opened")
        house.wait_accepted(50)
        assert meter.stop() == 0
    assert "(DELAYED)" in trace.read_text()  # once in each thread that commits
    late_ms = [row.at_ms - number * SPACING_MS for number, row in enumerate(house.account.rows)]
    earliest_ms = min(late_ms)
    assert len(late_ms) >= 50
    late_ms = sorted(late - earliest_ms for late in late_ms[STARTING_ROWS:])
    assert late_ms[len(late_ms) * 9 // 10] <= STAMP_MS
    assert late_ms[-1] <= STAMP_MS_MAX
    house.verify_good()


def test_no_block_is_told_of_before_it_is_on_the_card(tmp_path: Path) -> None:
    house = make_fast_house(tmp_path)
    stall = strace(
        *("-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=100ms"),
        out=tmp_path / "trace",
    )
    with house.board(*BOARD), house.run_scaled(SPEED, wrap=stall) as meter:
        client = house.ask()
        height = 0
        while height < 2:
            height = client.call("Registers")["height"]
            assert height <= client.call("Status")["height"] <= len(house.account.blocks)
        assert meter.stop() == 0
    house.verify_good()
