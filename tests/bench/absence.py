"""A node that was off for 90 days catches up, against a loop that takes apart, hashes and inserts.

The giver's store holds what the others did meanwhile: the blocks of every chain, and the batches of
three voters. Only the CPU of the one that catches up counts; on its own clock, with a broker that
takes no time, it is told too how long it asked. Blocks come in runs, of which the last seal is
verified at once; the others are meanwhile and afterwards, before any of them is attested.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.authority.attestation import CHECKS_ALL, OPEN, Header, Leaf, open_batch, sign_batch
from meterd.authority.effects import PutBatch, PutBlocks, PutCertified
from meterd.device.store import Store
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import digest, take_apart
from tests.bench.growth import Wire
from tests.bench.measure import cpu_s, tell
from tests.bench.street import found, key_of, past_s, seal_chain

if TYPE_CHECKING:
    from meterd.authority.effects import Record
    from meterd.ledger.account import Genesis
    from tests.bench.street import Linked

DAYS, BLOCKS_A_DAY = 90, 48
CHAINS, VOTERS = 8, 4
RUNS = 3
BLOCKS_S_MIN = 20_000
ROWS_AT_ONCE = 1000
STEP_S = 1.0
PATIENCE_S = 7200.0


def absent(genesis: Genesis, blocks: int) -> dict[str, list[Linked]]:
    """Return what each meter sealed meanwhile."""
    start_s = past_s(DAYS + 1)
    return {
        meter.name: list(islice(seal_chain(genesis.hash, meter.name, start_s), blocks))
        for meter in genesis.meters[-CHAINS:]
    }


def records(genesis: Genesis, chains: dict[str, list[Linked]]) -> list[Record]:
    """Return what a node of the street has kept of it: blocks, and the others' batches."""
    kept: list[Record] = [
        PutBlocks(
            (name, 1),
            tuple((block.height, block.hash, block.sealed) for block in blocks),
            0,
            CHECKS_ALL,
        )
        for name, blocks in chains.items()
    ]
    for voter in range(VOTERS - 1):
        key, previous = key_of(f"house-{voter}", "vote"), bytes(32)
        for number, heads in enumerate(zip(*chains.values(), strict=True), start=1):
            leaves = [
                Leaf(name, 1, block.height, block.hash, CHECKS_ALL)
                for name, block in zip(chains, heads, strict=True)
            ]
            header = Header(1, number, previous, number, OPEN)
            message = sign_batch(header, leaves, key, genesis.hash)
            batch = open_batch(message, genesis.hash)
            previous = batch.hash
            kept.append(PutBatch(batch, message))
    kept += [PutCertified((name, 1), len(blocks), 1) for name, blocks in chains.items()]
    return kept


def bare(blocks: list[bytes], folder: Path) -> None:
    """Take apart, decode, hash and insert: what nobody who keeps these blocks can do without."""
    db = sqlite3.connect(folder / "bare.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(
        "CREATE TABLE IF NOT EXISTS block (chain TEXT, height INTEGER, hash BLOB, sealed BLOB, "
        "PRIMARY KEY (chain, height)) WITHOUT ROWID"
    )
    for at in range(0, len(blocks), ROWS_AT_ONCE):
        rows = []
        for sealed in blocks[at : at + ROWS_AT_ONCE]:
            payload = take_apart(sealed).payload
            block = decode_block(payload)
            rows.append((block.meter, block.height, digest(payload), sealed))
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO block VALUES (?, ?, ?, ?)", rows)
        db.execute("COMMIT")
    db.close()
    (folder / "bare.db").unlink()


def catch_up(genesis: Genesis, giver: Path, height: int, folder: Path) -> tuple[float, ...]:
    """Return CPU seconds for the blocks and with all batches, and its clock at either's end.

    At last when each seal has been verified, and CPU seconds until then.
    """
    wire = Wire(genesis, folder, [f"house-{VOTERS - 1}"])
    (late,) = wire.members
    for path in (giver, Path(f"{giver}-wal")):
        (folder / path.name).write_bytes(path.read_bytes())
    present = Wire(genesis, folder, ["house-0"]).members[0]
    present.world = wire
    wire.members.append(present)
    begun_s = wire.now_s = present.free_s
    blocks_s = blocks_clock_s = 0.0
    last = height  # each voter has a batch for each interval
    while True:
        wire.tick(wire.now_s, wire.now_s + STEP_S)
        wire.run()
        held = [chain.height for chain in late.gossip.chains.values() if chain.height]
        if not blocks_s and len(held) == CHAINS and min(held) == height:
            blocks_s, blocks_clock_s = late.cpu_s, wire.now_s - begun_s
        known = [sequence.number for sequence in late.gossip.sequences.values()]
        if blocks_s and sum(number >= last for number in known) >= VOTERS - 1:
            break
        if wire.now_s > PATIENCE_S:
            raise TimeoutError([held, known])
    certified = sum(chain.certified == height for chain in late.gossip.chains.values())
    if certified != CHAINS:
        raise ValueError(certified)
    certified_s, certified_clock_s = late.cpu_s, wire.now_s - begun_s
    while not all(chain.sealed for chain in late.gossip.chains.values()):
        wire.tick(wire.now_s, wire.now_s + STEP_S)
        wire.run()
    clock_s = wire.now_s - begun_s
    wire.close()
    return blocks_s, certified_s, blocks_clock_s, certified_clock_s, late.cpu_s, clock_s


def main(days: int = DAYS) -> None:
    """Tell the rate."""
    genesis = found(VOTERS, flats=CHAINS)
    height = days * BLOCKS_A_DAY
    chains = absent(genesis, height)
    number = height * CHAINS
    sealed = [block.sealed for blocks in chains.values() for block in blocks]
    alone, taken = [], []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "house-0.db"
        giver = Store(str(place), genesis=genesis.hash, node="house-0")
        giver.perform(records(genesis, chains))
        for at in range(RUNS):
            folder = Path(name) / str(at)
            folder.mkdir()
            alone.append(cpu_s(partial(bare, sealed, folder)))
            taken.append(catch_up(genesis, place, height, folder))
        giver.close()
    base = number / statistics.median(alone)
    blocks_s, all_s, clock_s, end_s, sealed_s, sealed_clock_s = (
        statistics.median(column) for column in zip(*taken, strict=True)
    )
    ours = number / blocks_s
    tell("bare loop: take apart, decode, hash, insert", f"{base:,.0f} blocks/s")
    tell(
        f"catches up {days} days of {CHAINS} chains, CPU",
        f"{ours:,.0f} blocks/s",
        f"≥ {BLOCKS_S_MIN:,}",
        met=ours >= BLOCKS_S_MIN,
    )
    tell("share of the bare loop's speed", f"{ours / base:.2f}")
    tell("the same with all batches of three voters", f"{number / all_s:,.0f} blocks/s")
    tell("on its clock: all blocks held after", f"{clock_s:,.0f} s")
    tell("on its clock: all batches held, all certified after", f"{end_s:,.0f} s")
    tell("the same with each seal verified", f"{number / sealed_s:,.0f} blocks/s")
    tell("on its clock: each seal verified after", f"{sealed_clock_s:,.0f} s")
