"""From a line to the group-committed log, against a loop that only splits, hashes and writes."""

from __future__ import annotations

import os
import random
import re
import tempfile
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from meterd.bookkeeper import Bookkeeper
from meterd.config import check, parameters
from meterd.device.archive import read_part
from meterd.device.card import Card
from meterd.device.clock import Stamp
from meterd.device.recovery import recover
from meterd.household import read_recording
from meterd.init import create_account
from meterd.ledger.chain import open_chain
from meterd.ledger.row import LINK_BYTES, row_bytes, row_struct
from meterd.ledger.segment import read_header
from meterd.metering.board import BoardDecoder
from meterd.metering.energy import ROW_GAP
from meterd.software import software_id
from tests.bench.measure import median_cpu_s, tell
from tests.conftest import DATA_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDING = "household-2007-01-08-28d.csv.gz"
LINES = 60_000
COMMIT_ROWS = 15  # 30 s of a line each 2 s
STEP_MS = 2000
START_MS = 1_767_225_600_000
CONFIG = """[meter]
name = "bench-1"
[board]
port = "/dev/null"
polling_ms = 2000
layout = {layout}
[[clamp]]
name = "mains"
role = "mains"
[clock]
trust = "always"
"""
NUMBER = rb"-?[0-9]+(?:\.[0-9]{1,3})?"
GAP = rb"[ ,\t]+"
STRICT = re.compile(GAP.join([rb"[0-9]+", *[rb"(%b)" % NUMBER] * 7]) + rb"\r?\n")


def loads_w() -> Iterator[float]:
    """Yield what a household draws, each 2 s: as recorded, or as loads do where nothing was."""
    path = DATA_DIR / RECORDING
    if path.exists():
        recording = read_recording(path)
        for at_ms in range(recording.start_ms, recording.end_ms, STEP_MS):
            moment = recording(at_ms)
            if moment is not None:
                yield moment.channels[0].power_mw / 1000
        return
    draw = random.Random(2)
    watts = 400.0
    while True:
        if draw.random() < 0.02:
            watts = draw.choice((180.0, 400.0, 900.0, 2400.0))
        yield watts


def household_lines(count: int, seed: int = 1) -> list[bytes]:
    """Return lines of a household as a board says them: what it draws, and a small wobble."""
    draw, lines = random.Random(seed), []
    for watts in islice(loads_w(), count):
        power = watts + draw.randrange(-20, 21) / 10
        volts = 230 + draw.randrange(-30, 31) / 10
        milliamps = abs(power) / volts * 1000
        lines.append(b"11 %.1f 0.0 0.0 %.1f 0.0 0.0 %.2f\r\n" % (power, milliamps, volts))
    return lines


def fixed(number: bytes) -> int:
    """Return thousandths of a number of up to three decimals."""
    whole, _, part = number.partition(b".")
    return int(whole + part.ljust(3, b"0"))


def bare(lines: list[bytes], folder: Path) -> Path:
    """Split strictly, take the used fields as fixed point, hash and write the same rows.

    It reads the lines that a board may send in one layout, with up to three decimals, for a single
    clamp and no setting: as little as gives these rows. Returns the file.
    """
    path = folder / "bare"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    pack, split = row_struct(1).pack, STRICT.fullmatch
    state, pending = sha256(b"seed"), []
    elapsed_ms, flags = 0, ROW_GAP
    for number, line in enumerate(lines, start=1):
        match = split(line)
        if match is None:
            raise ValueError(line)
        power, _, _, milliamps, _, _, volts = match.groups()
        mw, ua, mv = fixed(power), fixed(milliamps), fixed(volts)
        apparent_mva = (ua * mv + 500_000) // 1_000_000
        body = pack(elapsed_ms, flags, 0, apparent_mva, mv, mw, (ua + 500) // 1000)
        elapsed_ms, flags = STEP_MS, 0
        state.update(body)
        link = state.copy().digest()[:LINK_BYTES]
        state.update(link)
        pending.append(body + link)
        if number % COMMIT_ROWS == 0:
            os.write(descriptor, b"".join(pending))
            os.fdatasync(descriptor)
            pending.clear()
    os.close(descriptor)
    return path


def make_book(state: Path, layout: str = '"rpict3v1"') -> tuple[Bookkeeper, BoardDecoder]:
    """Return a bookkeeper on a fresh account, and its decoder."""
    settings, mistakes = check(CONFIG.format(layout=layout), source="bench")
    if settings is None:
        raise ValueError(mistakes)
    key = SigningKey(bytes(32))
    genesis = create_account(state, settings, bytes(32))
    book = Bookkeeper(
        state,
        rules=settings.rules,
        settings=parameters(settings),
        software_id=software_id(),
        build_ms=0,
        interval_s=genesis.interval_s,
        keys={bytes(key.verify_key): key},
        recovered=recover(state, open_chain(genesis, settings.meter.name)),
        boot_id=bytes(16),
        draw_secret=lambda stream, number: sha256(f"{stream}{number}".encode()).digest(),
        read=lambda number, begin, end: read_part(state, number, begin, end),
    )
    book.start(0, START_MS)
    return book, BoardDecoder(settings.rules)


def bodies(rows: bytes) -> list[bytes]:
    """Return rows without their links."""
    size = row_bytes(1)
    return [rows[at : at + size - LINK_BYTES] for at in range(0, len(rows), size)]


def stored_rows(state: Path) -> bytes:
    """Return all rows of an account, as its segments hold them."""
    segments = sorted((state / "samples").iterdir())
    contents = [path.read_bytes() for path in segments]
    return b"".join(data[read_header(data, "samples")[1] :] for data in contents)


def check_same_rows(lines: list[bytes], folder: Path) -> None:
    """See that both write the same rows.

    Raises:
        ValueError: They do not: the figure would say nothing.
    """
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        state = Path(inner) / "account"
        meter(lines, state)
        if bodies(stored_rows(state)) != bodies(bare(lines, Path(inner)).read_bytes()):
            raise ValueError("the bare loop writes other rows")


def whole(lines: list[bytes], folder: Path) -> None:
    """Meter the same lines into an account that nobody keeps."""
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        meter(lines, Path(inner) / "account")


@lru_cache(maxsize=1)
def stamps(count: int) -> list[Stamp]:
    """Return the stamps that the port would have put on so many lines."""
    times = range(STEP_MS, (count + 1) * STEP_MS, STEP_MS)
    return [Stamp(at_ms, START_MS + at_ms, "S", 0) for at_ms in times]


def meter(lines: list[bytes], state: Path) -> None:
    """Meter the same lines: decode, integrate, link, cut, seal, commit."""
    book, decoder = make_book(state)
    card = Card()
    for number, (line, stamp) in enumerate(zip(lines, stamps(len(lines)), strict=True), start=1):
        for reading in decoder.receive(line, stamp.boot_ms):
            book.take(reading, stamp)
        if number % COMMIT_ROWS == 0 or book.pending:
            card.perform(book.commit())
    card.perform(book.commit())
    card.close()
    if book.accepted != len(lines):
        raise ValueError(book.accepted)


def main() -> None:
    """Tell the ratio."""
    lines = household_lines(LINES)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        check_same_rows(lines[:6000], place)
        alone, ours = median_cpu_s([lambda: bare(lines, place), lambda: whole(lines, place)])
    tell("bare loop: strict split, hash, write", f"{LINES / alone:,.0f} lines/s")
    tell("line → board → energy → link → log, sealed", f"{LINES / ours:,.0f} lines/s")
    ratio = alone / ours
    tell("share of the bare loop's speed", f"{ratio:.2f}", "≥ 0.50", met=ratio >= 0.5)
