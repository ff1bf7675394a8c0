"""A meter-year: every fingerprint, every seal, every register from its samples."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from nacl.signing import SigningKey, VerifyKey

from meterd.device.archive import read_files
from meterd.device.card import Card
from meterd.device.clock import Stamp
from meterd.ledger.encoding import take_apart
from meterd.ledger.segment import STREAMS
from meterd.ledger.stored import read_frames
from meterd.metering.reading import Reading
from tests.bench import daemon
from tests.bench.measure import REPEATS, cpu_s, tell
from tests.bench.pipeline import START_MS, STEP_MS, make_book

if TYPE_CHECKING:
    from collections.abc import Iterator

DAYS = 365
DAY_MS = 86_400_000
RSS_MB_MAX = 150
PROGRAM = """
import sys
from pathlib import Path
from meterd.device.archive import Known, verify
if __name__ == "__main__":
    verdict = verify(Path(sys.argv[1]), Known(), workers=int(sys.argv[2]))
    assert verdict.verdict == "good", verdict
    print(verdict.blocks, verdict.records)
"""


def readings(days: int) -> Iterator[Reading]:
    """Yield a reading each 2 s: a load that moves, and feeds into the grid at noon."""
    powers = [400_000 + 1_000 * (n % 97) for n in range(9_000)]
    noon = [power - 1_500_000 for power in powers]
    lines = [b"%d" % n for n in range(9_000)]
    a_day = DAY_MS // STEP_MS
    for number in range(days * a_day):
        second = number % a_day
        place = number % 9_000
        power = (noon if a_day // 3 < second < a_day // 2 else powers)[place]
        yield Reading((number + 1) * STEP_MS, (power,), (0,), 0, 0, False, lines[place])


def make_year(state: Path, days: int) -> None:
    """Write the account of `days` days: through the path of the daemon, but for the decoder."""
    book, _ = make_book(state, layout='"custom"\nfields = ["node", "RP1"]')
    card = Card()
    for number, reading in enumerate(readings(days)):
        book.take(reading, Stamp(reading.at_ms, START_MS + reading.at_ms, "S", 0))
        if number % 8192 == 0 or book.pending:
            card.perform(op for op in book.commit() if op.kind != "sync")
    book.seal_open()
    card.perform(book.commit())
    card.close()


def bare(state: Path) -> None:
    """Stream SHA-256 over the samples and verify the signatures: what no audit can do without."""
    for path in sorted((state / "samples").iterdir()):
        with path.open("rb") as file:
            state_ = sha256()
            while chunk := file.read(1 << 18):
                state_.update(chunk)
            state_.digest()
    files = read_files(state, dict.fromkeys(STREAMS, 0))
    key = SigningKey(bytes(32)).verify_key
    genesis = sha256((state / "genesis.cbor").read_bytes()).digest()
    stream = read_frames("blocks", files.blocks, genesis=genesis, meter="bench-1")
    signed = [take_apart(stored.frame.body) for stored in stream.frames]
    verify_all(key, [(sealed.payload, sealed.seal) for sealed in signed])


def verify_all(key: VerifyKey, signed: list[tuple[bytes, bytes]]) -> None:
    """Pay for one signature verification each, over a message of the right size."""
    message, seal = SigningKey(bytes(32)).sign(signed[0][0]).message, None
    seal = SigningKey(bytes(32)).sign(message).signature
    for _ in signed:
        key.verify(message, seal)


def run_audit(state: Path, workers: int) -> tuple[float, float]:
    """Return wall seconds and peak MB of an audit in a process of its own."""
    begun = time.monotonic()
    program = state.parent / "audit.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(state), str(workers)]
    done = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(done.pid, 0)
    done.returncode = os.waitstatus_to_exitcode(status)
    if done.returncode:
        raise ValueError(done.returncode)
    return time.monotonic() - begun, usage.ru_maxrss / 1024


def main(days: int = DAYS) -> None:
    """Tell the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "account"
        made = cpu_s(lambda: make_year(state, days))
        rows = days * DAY_MS // STEP_MS
        tell(f"made {rows / 1e6:.1f} M rows, {days * 48} blocks", f"{made:.0f} s CPU")
        repeats = REPEATS if days < DAYS else 3
        alone, ours, two, peak = [], [], [], 0.0
        for _ in range(repeats):
            begun = time.monotonic()
            bare(state)
            alone.append(time.monotonic() - begun)
            took, mb = run_audit(state, 1)
            ours.append(took)
            peak = max(peak, mb)
            two.append(run_audit(state, 2)[0])
        daemon.on_account(state)
        middle = repeats // 2
        base, one, both = sorted(alone)[middle], sorted(ours)[middle], sorted(two)[middle]
    tell("bare: SHA-256 over the samples, signatures", f"{base:.2f} s")
    tell("audit of the account, one process", f"{one:.2f} s")
    tell("audit / bare", f"{one / base:.2f}", "≤ 4", met=one <= 4 * base)
    tell("two workers, times as fast", f"{one / both:.2f}", "≥ 1.6", met=one >= 1.6 * both)
    tell("peak memory, one process", f"{peak:.0f} MB", f"≤ {RSS_MB_MAX} MB", met=peak <= RSS_MB_MAX)
