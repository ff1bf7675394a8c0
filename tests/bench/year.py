"""`meterd peer` in a street of four, and with a year of a hundred chains: RSS, start, size.

The year's database is filled in the order of time, as it grows in a street: each half-hour a block
of each chain, then a batch of each voter, who has them all within one tick. Only heads are true;
everything below has its true size.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.authority.attestation import CHECKS_ALL, OPEN, Header, Leaf, sign_batch
from meterd.authority.effects import PutBlocks
from meterd.device.store import Store
from meterd.ledger.encoding import key_id
from tests.bench.daemon import account_of
from tests.bench.measure import tell
from tests.bench.street import TICK_MS, Street, found, has_broker, key_of, past_s, seal_chain

if TYPE_CHECKING:
    from meterd.ledger.account import Genesis

CHAINS, BLOCKS, VOTERS = 100, 365 * 48, 4
AT_ONCE = 480  # half-hours in one transaction
IDLE_S = 12.0
IDLE_MB_MAX, YEAR_MB_MAX = 40, 48


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process, now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def fill(path: Path, genesis: Genesis, heights: int) -> int:
    """Fill a node's store with so many blocks of each chain; return its bytes."""
    store = Store(str(path), genesis=genesis.hash, node="house-0")
    names = [meter.name for meter in genesis.meters[-CHAINS:]]
    heads = [next(seal_chain(genesis.hash, name, past_s(1), heights)) for name in names]
    for name, head in zip(names, heads, strict=True):
        store.perform([PutBlocks((name, 1), ((head.height, head.hash, head.sealed),), 0, 7)])
    numbers = [store._chains[name, 1] for name in names]
    store.close()
    keys = [key_of(f"house-{at}", "vote") for at in range(VOTERS)]
    leaves = [Leaf(name, 1, heights, bytes(32), CHECKS_ALL) for name in names]
    header = Header(1, heights, bytes(32), past_s(0), OPEN)
    batch = bytes(len(sign_batch(header, leaves, keys[0], genesis.hash)))
    kids = [key_id(bytes(key.verify_key)) for key in keys]
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for pragma in ("synchronous = OFF", "cache_size = -200000", "wal_autocheckpoint = 20000"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("DELETE FROM block")
        for first in range(1, heights + 1, AT_ONCE):
            turn = range(first, min(first + AT_ONCE, heights + 1))
            hashes = {height: sha256(height.to_bytes(8, "big")).digest() for height in turn}
            db.execute("BEGIN")
            db.executemany(
                "INSERT INTO block VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (number, height, hashes[height], head.sealed, past_s(0), CHECKS_ALL)
                    for height in turn
                    for number, head in zip(numbers, heads, strict=True)
                ),
            )
            db.executemany(
                "INSERT INTO batch VALUES (?, ?, ?, 1, 0, ?, 0)",
                ((kid, height, hashes[height], batch) for height in turn for kid in kids),
            )
            db.executemany(
                "INSERT INTO leaf VALUES (?, ?, ?, ?)",
                (
                    (number, height, kid, height)
                    for height in turn
                    for kid in kids
                    for number in numbers
                ),
            )
            db.execute("COMMIT")
        db.executemany(
            "INSERT INTO vote VALUES (?, ?, ?, 1, ?, ?, ?)",
            (
                (number, kid, heights, heights, head.hash, CHECKS_ALL)
                for number, head in zip(numbers, heads, strict=True)
                for kid in kids
            ),
        )
        db.executemany(
            "UPDATE block SET hash = ? WHERE chain = ? AND height = ?",
            [(head.hash, number, heights) for number, head in zip(numbers, heads, strict=True)],
        )
        db.execute("UPDATE chain SET certified = ?, epoch = 1", (heights,))
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


def idle() -> None:
    """Tell what a street of four takes where nothing happens."""
    with Street(found(VOTERS), tick_ms=TICK_MS) as street:
        for house in street.houses:
            house.certify()
        begun_s, before = time.monotonic(), street.cpu_s()
        time.sleep(IDLE_S)
        after, seconds = street.cpu_s(), time.monotonic() - begun_s
        peak = max(account_of(house.pid)[2] for house in street.houses)
    cpu = 100 * (after[0] - before[0]) / seconds / VOTERS
    tell(
        f"peer, idle in a street of {VOTERS}: peak RSS",
        f"{peak:.1f} MB",
        f"≤ {IDLE_MB_MAX} MB",
        met=peak <= IDLE_MB_MAX,
    )
    tell("the same: CPU of a node", f"{cpu:.2f} %")


def start(heights: int, what: str) -> None:
    """Tell how a node starts on a store of so many blocks of each chain, with nobody about."""
    genesis = found(VOTERS, flats=CHAINS)
    street = Street(genesis, tick_ms=TICK_MS)
    house = street.houses[0]
    try:
        street.broker.start()
        begun_s = time.monotonic()
        size = fill(house.state / "peer.db", genesis, heights)
        filled_s = time.monotonic() - begun_s
        begun_s = time.monotonic()
        house.start()
        house.wait("peer_started")
        started_s = time.monotonic() - begun_s
        house.wait("broker_connected")
        time.sleep(6)
        now, peak = rss_mb(house.pid), account_of(house.pid)[2]
    finally:
        street.houses = [house]
        street.__exit__()
    tell(f"{what}: {CHAINS * heights:,} blocks of {CHAINS} chains written", f"{filled_s:.0f} s")
    tell(f"{what}: started after exec", f"{started_s:.2f} s")
    tell(f"{what}: RSS", f"{now:.1f} MB", f"≤ {YEAR_MB_MAX} MB", met=now <= YEAR_MB_MAX)
    tell(f"{what}: peak RSS, at the start", f"{peak:.1f} MB")
    if heights < BLOCKS:
        return
    each = size / heights / CHAINS
    tell(f"{what}: the store, {VOTERS} voters", f"{size / 1e6:,.0f} MB")
    tell(f"{what}: a block with its share of batches", f"{each:,.0f} B")
    tell(f"{what}: a meter-year", f"{each * 365 * 48 / 1e6:,.1f} MB")


def main() -> None:
    """Tell all of it."""
    if not has_broker():
        return
    idle()
    start(1, "a block each")
    start(BLOCKS, "a year")
