"""Whole programs for tests: a daemon, a board, and what they say; each wait is bounded.

Nothing is waited for by time alone: a log line, a file, an answer of the control socket or the end
of a process is, and `DEADLINE_S` only bounds it.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import tty
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from meterd.config import load
from meterd.device.archive import Known, Verdict, segment_name, segment_numbers, verify
from meterd.device.control_client import ControlClient
from meterd.device.failures import FAILURES_FILE
from meterd.errors import AbsentError, EncodingError
from meterd.init import create_account, read_genesis
from meterd.ledger.row import read_rows
from meterd.ledger.segment import read_header
from tests.accounts import SEED, Account
from tests.conftest import CI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meterd.ledger.segment import SampleHeader

DEADLINE_S = 30.0  # for what takes milliseconds; a busy machine is no failure
LOOK_S = 0.01  # between two looks at something that tells nobody when it changes
PROGRAM = (sys.executable, "-m", "meterd")
EPOCH_MS = 1_795_305_600_000  # 2026-11-22 00:00 UTC, a midnight
DAY_MS = 86_400_000
ROW_GAP = 1  # flag of a row before which no energy is counted
NOBODY = 65_534  # uid and gid of a user that owns nothing

CONFIG = """
[meter]
name = "kitchen-12"
interval_s = {interval_s}

[board]
port = "{port}"
layout = "{layout}"
polling_ms = {polling_ms}

[[clamp]]
name = "mains"
role = "mains"

[clock]
trust = "{trust}"

[log]
commit_s = {commit_s}
reserve_mb = {reserve_mb}
"""


def until(condition: Callable[[], bool], what: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Look until `condition` holds; fail, naming `what`, where it does not within the deadline."""
    ends_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends_s, f"not within {deadline_s:g} s: {what}"
        select.select([], [], [], LOOK_S)


class Program:
    """A process, and each line that it says on stderr."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        environ: dict[str, str] | None = None,
        stdout: int | None = subprocess.DEVNULL,
    ) -> None:
        self.process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=os.environ | (environ or {}),
        )
        self.lines: list[str] = []
        self._looked = 0
        self._more = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def hear(self, pattern: str, *, deadline_s: float = DEADLINE_S) -> re.Match[str]:
        """Return the next line, after those heard so far, in which `pattern` is found."""
        found = self.listen_for(pattern, deadline_s=deadline_s)
        assert found, f"it did not say {pattern!r}, but:\n{self.said}"
        return found

    def listen_for(self, pattern: str, *, deadline_s: float) -> re.Match[str] | None:
        """Return what `hear` does, or None where the deadline or the end came first."""
        ends_s = time.monotonic() + deadline_s
        with self._more:
            while True:
                while self._looked < len(self.lines):
                    found = re.search(pattern, self.lines[self._looked])
                    self._looked += 1
                    if found:
                        return found
                left_s = ends_s - time.monotonic()
                if self._ended or left_s <= 0:
                    return None
                self._more.wait(left_s)

    def end(self, *, deadline_s: float = DEADLINE_S) -> int:
        """Wait until it ends by itself; return its exit status."""
        try:
            status = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {deadline_s:g} s, having said:\n{self.said}")
        self._thread.join(DEADLINE_S)
        return status

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, SIGTERM unless told; return the exit status."""
        self.process.send_signal(number)
        return self.end()

    def kill_after(self, delay_s: float) -> None:
        """Kill it as it has run so long; fail where it has ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(delay_s)
            pytest.fail(f"it ended with {status}, having said:\n{self.said}")
        self.process.kill()
        self.end()

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._thread.join(DEADLINE_S)
        if self.process.stderr is not None:
            self.process.stderr.close()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what the kernel says of it ---------------------------------------------------------

    @property
    def rss_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@dataclass(kw_only=True)
class House:
    """A folder with settings, an account and a port for one meter.

    Attributes:
        folder: Everything below is in it.
        config: The settings' file.
        state: The account.
        port: Where the board is to be.
        program: What is run as `meterd`.
    """

    folder: Path
    config: Path
    state: Path
    port: Path
    program: Sequence[str | Path] = PROGRAM

    def run(
        self,
        *options: str,
        wrap: Sequence[str | Path] = (),
        environ: dict[str, str] | None = None,
    ) -> Program:
        """Start `meterd run` for it, below `wrap` if given."""
        command: list[str | Path] = [*wrap, *self.program, "run"]
        command += ["--config", self.config, "--state", self.state, *options]
        return Program(command, environ=environ)

    def run_scaled(
        self,
        speed: int,
        epoch_ms: int = EPOCH_MS,
        *,
        wrap: Sequence[str | Path] = (),
        environ: dict[str, str] | None = None,
    ) -> Program:
        """Start it with a clock that runs `speed` times as fast."""
        options = ("--speed", str(speed), "--epoch-ms", str(epoch_ms))
        return self.run(*options, wrap=wrap, environ=environ)

    def board(self, *options: str | Path) -> Program:
        """Start `meterd board` at its port; it is there when this returns."""
        board = Program((*PROGRAM, "board", "--link", self.port, *options))
        board.hear("plays")
        return board

    def ask(self) -> ControlClient:
        """Return a client once the daemon answers."""
        client = ControlClient(self.state / "control")
        ends_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                client.call("Registers")
            except AbsentError:
                assert time.monotonic() < ends_s, "no answer on the control socket"
                select.select([], [], [], LOOK_S)
            else:
                return client

    def wait_accepted(self, count: int, *, deadline_s: float = DEADLINE_S) -> None:
        """Wait until the daemon has integrated `count` readings."""
        client, ends_s = self.ask(), time.monotonic() + deadline_s
        while (told := client.call("Registers")["readings"])["accepted"] < count:
            assert time.monotonic() < ends_s, f"not {count} readings in {deadline_s:g} s: {told}"
            select.select([], [], [], LOOK_S)

    @property
    def account(self) -> Account:
        """The account, for its blocks, events, intervals and rows."""
        return Account(state=self.state, registers={}, kinds={}, accepted=0, gaps=0, dropped={})

    @property
    def public_key(self) -> bytes:
        return read_genesis(self.state).meters[0].sealing_key

    def verify(self) -> Verdict:
        return verify(self.state, Known(key=self.public_key))

    def verify_good(self) -> Verdict:
        """Return the verdict of a stranger with the public key, which is good."""
        verdict = self.verify()
        assert (verdict.verdict, verdict.first_bad, verdict.reason) == ("good", None, "")
        assert verdict.key == "given"
        return verdict

    @property
    def content(self) -> dict[str, str]:
        """A digest of each file of the account but the lock, which is empty, and what is noted."""
        return {
            str(path.relative_to(self.state)): sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.state.rglob("*"))
            if path.is_file() and path.name not in {"lock", FAILURES_FILE}
        }


def make_house(
    folder: Path,
    *,
    network: str = "demo",
    interval_s: int = 1800,
    polling_ms: int = 5000,
    commit_s: int = 30,
    reserve_mb: int = 1,
    layout: str = "rpict3v1",
    trust: str = "always",
    state: Path | None = None,
) -> House:
    """Make settings and a new account in `folder`."""
    house = House(
        folder=folder,
        config=folder / "meterd.toml",
        state=state or folder / "account",
        port=folder / "board",
    )
    house.config.write_text(
        CONFIG.format(
            interval_s=interval_s,
            port=house.port,
            layout=layout,
            polling_ms=polling_ms,
            trust=trust,
            commit_s=commit_s,
            reserve_mb=reserve_mb,
        )
    )
    create_account(house.state, load(house.config), SEED, network=network)
    return house


class Cable:
    """The board's end of a pseudo terminal in the test's own hands."""

    def __init__(self, link: Path) -> None:
        self.fd, reader_fd = os.openpty()
        tty.setraw(reader_fd)
        self.name = os.ttyname(reader_fd)
        os.close(reader_fd)
        link.unlink(missing_ok=True)
        link.symlink_to(self.name)
        self._link = link
        self.said = 0

    def say(self, data: bytes) -> None:
        """Write all of `data`; it is in the kernel's hands when this returns."""
        ends_s = time.monotonic() + DEADLINE_S
        while data:
            _, ready, _ = select.select([], [self.fd], [], max(0, ends_s - time.monotonic()))
            assert ready, "nobody reads the port"
            data = data[os.write(self.fd, data) :]

    def close(self) -> None:
        os.close(self.fd)
        self._link.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def line(power_w: float, current_ma: float = 1600.0, voltage_v: float = 230.0) -> bytes:
    """Return a line of rpict3v1 with power on the first clamp."""
    return f"11 {power_w:.1f} 0.0 0.0 {current_ma:.1f} 0.0 0.0 {voltage_v:.2f}\r\n".encode()


# --- what is on the card, reckoned without the meter ----------------------------------------------


class Stored:
    """Energy of all rows on the card by the stated rule: the trapezoid between consecutive rows.

    Without the readings inserted at boundaries: each may move the meter's sum, by less than one mW
    over half the time between two rows.

    Attributes:
        import_uj: Energy drawn, exact but for those.
        export_uj: Energy fed in, likewise.
        boundary_uj: By how much one boundary may move it.
        turning_uj: How much more of both there may be where boundaries fall between a row that
            draws and one that feeds in: each part of such a pair counts on its own side.
        rows: How many there are.
        last_ms: Boot clock of each run's last, by run.
        powers_mw: Power of each, first clamp.
    """

    def __init__(self, state: Path) -> None:
        halves = [0, 0]
        longest_ms = turning = 0
        self.rows = 0
        self.last_ms: dict[int, int] = {}
        self.powers_mw: list[int] = []
        before = (0, 0)
        for header, rows in _segments(state):
            for at_ms, flags, power_mw in rows:
                if not flags & ROW_GAP:
                    doubled = (before[1] + power_mw) * (at_ms - before[0])
                    halves[doubled < 0] += abs(doubled)
                    if before[1] * power_mw < 0:
                        turning += max(before[1], power_mw) * (at_ms - before[0])
                    longest_ms = max(longest_ms, at_ms - before[0])
                before = (at_ms, power_mw)
                self.powers_mw.append(power_mw)
                self.last_ms[header.run] = at_ms
        self.rows = len(self.powers_mw)
        self.import_uj, self.export_uj = (half // 2 for half in halves)
        self.boundary_uj = longest_ms // 2 + 1
        self.turning_uj = turning // 2


def _segments(state: Path) -> Iterator[tuple[SampleHeader, list[tuple[int, int, int]]]]:
    folder = state / "samples"
    for number in segment_numbers(folder):
        data = (folder / segment_name(number)).read_bytes()
        try:
            header, begin = read_header(data, "samples")
        except EncodingError:
            continue  # made, and killed before its header was written
        whole = (len(data) - begin) // header.row_bytes * header.row_bytes  # type: ignore[union-attr]
        rows = read_rows(data[begin : begin + whole], header.row_bytes, header.base_ms)  # type: ignore[union-attr]
        yield header, [(row.at_ms, row.flags, row.powers_mw[0]) for row in rows]  # type: ignore[misc]


# --- what only root may do ------------------------------------------------------------------------


def need_root() -> None:
    """Leave a test out for a user who is not root; CI is, and fails where it is not."""
    if os.geteuid() != 0:
        (pytest.fail if CI else pytest.skip)("mounts and other users need root")


@contextlib.contextmanager
def small_card(folder: Path, size_kb: int, options: str = "rw") -> Iterator[Path]:
    """A file system in memory, of its own size."""
    need_root()
    folder.mkdir()
    settings = f"size={size_kb}k,{options}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", settings, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def strace(*options: str, out: Path) -> list[str]:
    """Return what has to stand before a command to trace it into `out`, or to inject faults.

    `-D`: the tracer is the grandchild, so that the process is the command's own.
    """
    return [
        "strace",
        "-D",
        "-f",
        "-y",
        "-qq",
        "-s",
        "64",
        "--seccomp-bpf",
        "-o",
        str(out),
        *options,
    ]
