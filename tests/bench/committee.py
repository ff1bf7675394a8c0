"""Certified blocks a second through one committee of four on two cores, every process counted.

A few hundred meters' blocks come from two nodes that do not vote, in the bench's own process: each
on `block` and, at most once a second for a meter, retained, on `head`, as a meter's node publishes
them. What is published runs ahead of the slowest node by what a broker's queue holds.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import statistics
import time
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from meterd.device.broker import Broker, parse_address
from tests.bench.measure import cpu_s, tell
from tests.bench.street import TICK_MS, Street, found, has_broker, key_of, past_s, seal_chain

if TYPE_CHECKING:
    from nacl.signing import SigningKey

VOTERS, CORES, FLATS, GATEWAYS = 4, 2, 300, 2
BLOCKS = 12_000  # of one run
RUNS = 3
AHEAD = 3000  # blocks; the broker is let keep more for a client than it does unasked
LOOK_S = 0.02
HEADS_S = 1.0
BLOCKS_S_MIN = 1000
SIGNATURES = 2000
PATIENCE_S = 60.0
HELD = "SELECT sum((SELECT max(height) FROM block WHERE block.chain = chain.id)) FROM chain"
CERTIFIED = "SELECT sum(certified) FROM chain"


class Run(NamedTuple):
    """What one run took.

    Attributes:
        seconds: From the first block published to the last one certified at all voters.
        voters_s: CPU of the four together.
        broker_s: CPU of the broker.
        bench_s: CPU of this process, which publishes and looks.
        batches: How many the four have signed.
    """

    seconds: float
    voters_s: float
    broker_s: float
    bench_s: float
    batches: int

    @property
    def all_s(self) -> float:
        """CPU of every process."""
        return self.voters_s + self.broker_s + self.bench_s


def gateway(street: Street, name: str) -> Broker:
    """Return the connection of a node that publishes, and takes nothing."""
    return Broker(
        parse_address(f"mqtt://127.0.0.1:{street.broker.port}"),
        client_id=name,
        subscriptions=(),
        will=(f"m/{street.genesis.name}/{name}/status", b""),
        birth=(f"m/{street.genesis.name}/{name}/status", b""),
        deliver=lambda _topic, _payload: None,
        tell=lambda _event, _fields: None,
        draw=random.random,
    )


class Load:
    """Blocks that wait to be published, and where the voters stand."""

    def __init__(self, street: Street, blocks: list[bytes]) -> None:
        """Look into each voter's store as it grows."""
        self.street, self.blocks, self.at = street, blocks, 0
        self._heads_s = dict[int, float]()
        self.stores = [
            sqlite3.connect(f"file:{house.state / 'peer.db'}?mode=ro", uri=True)
            for house in street.houses
        ]

    def least(self, query: str) -> int:
        """Return where the slowest stands."""
        return min(int(store.execute(query).fetchone()[0] or 0) for store in self.stores)

    def batches(self) -> int:
        """Return how many batches the first voter holds: all that were signed."""
        return int(self.stores[0].execute("SELECT count(*) FROM batch").fetchone()[0])

    async def run(self, brokers: list[Broker], *, heads: bool) -> Run:
        """Publish so many blocks more, and wait for them to be certified everywhere."""
        end = self.at + BLOCKS
        begun_s, before, mine = time.monotonic(), self.street.cpu_s(), time.process_time()
        batches = self.batches()
        while self.least(CERTIFIED) < end:
            if time.monotonic() - begun_s > PATIENCE_S:
                raise TimeoutError([self.least(CERTIFIED), self.least(HELD), self.at])
            room = self.least(HELD) + AHEAD
            while self.at < min(end, room):
                name = f"gateway-{self.at % FLATS % GATEWAYS}"
                broker = brokers[self.at % FLATS % GATEWAYS]
                top = f"m/{self.street.genesis.name}/{name}"
                if not broker.publish(f"{top}/block", self.blocks[self.at]):
                    break  # the broker is behind
                now_s, flat = time.monotonic(), self.at % FLATS
                if heads and now_s - self._heads_s.get(flat, 0) >= HEADS_S:
                    self._heads_s[flat] = now_s
                    broker.publish(f"{top}/head", self.blocks[self.at], retain=True)
                self.at += 1
            await asyncio.sleep(LOOK_S)
        seconds, after = time.monotonic() - begun_s, self.street.cpu_s()
        return Run(
            seconds,
            after[0] - before[0],
            after[1] - before[1],
            time.process_time() - mine,
            self.batches() - batches,
        )

    async def runs(self) -> tuple[list[Run], Run]:
        """Return the runs with heads, and one without."""
        names = [f"gateway-{at}" for at in range(GATEWAYS)]
        brokers = [gateway(self.street, name) for name in names]
        tasks = [asyncio.create_task(broker.run()) for broker in brokers]
        while not all(broker.connected for broker in brokers):  # noqa: ASYNC110 - it tells no event
            await asyncio.sleep(0.01)
        with_heads = [await self.run(brokers, heads=True) for _ in range(RUNS)]
        without = await self.run(brokers, heads=False)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return with_heads, without


def blocks_in_turn(genesis_hash: bytes, number: int) -> list[bytes]:
    """Return sealed blocks of all flats: the first of each, then the second of each, and so on."""
    chains = [seal_chain(genesis_hash, f"flat-{at}", past_s(30)) for at in range(FLATS)]
    rounds = (next(chain).sealed for _ in range(number // FLATS + 1) for chain in chains)
    return list(islice(rounds, number))


def signature_us(block: bytes) -> tuple[float, float]:
    """Return what one verification and one signature over a block's bytes cost here."""
    key: SigningKey = key_of("house-0", "vote")
    message = block[:-64]
    signature, verifier = key.sign(message).signature, key.verify_key

    def verify() -> None:
        for _ in range(SIGNATURES):
            verifier.verify(message, signature)

    def sign() -> None:
        for _ in range(SIGNATURES):
            key.sign(message)

    return (
        1e6 * statistics.median(cpu_s(verify) for _ in range(RUNS)) / SIGNATURES,
        1e6 * statistics.median(cpu_s(sign) for _ in range(RUNS)) / SIGNATURES,
    )


def main() -> None:
    """Tell the rate, and what bounds it."""
    if not has_broker():
        return
    tell("this machine: cores, load before", f"{os.cpu_count()}, {os.getloadavg()[0]:.1f}")
    genesis = found(VOTERS, flats=FLATS, gateways=GATEWAYS)
    blocks = blocks_in_turn(genesis.hash, BLOCKS * (RUNS + 1))
    verify_us, sign_us = signature_us(blocks[0])
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:CORES])
    try:
        with Street(genesis, tick_ms=TICK_MS) as street:
            load = Load(street, blocks)
            with closing(load.stores[0]):
                runs, without = asyncio.run(load.runs())
    finally:
        os.sched_setaffinity(0, cores)
    middle = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    rate = BLOCKS / middle.seconds
    # Each voter verifies a block's seal; of a batch one signs, and the others verify.
    ours_us = VOTERS * verify_us
    ours_us += middle.batches / BLOCKS * (sign_us + (VOTERS - 1) * verify_us)
    block_us = 1e6 * middle.all_s / BLOCKS
    tell(
        f"committee of {VOTERS} on {CORES} cores, {FLATS} chains: certified",
        f"{rate:,.0f} blocks/s",
        f"≥ {BLOCKS_S_MIN:,}",
        met=rate >= BLOCKS_S_MIN,
    )
    tell("published (2020): proof of authority; instant seal", "4; 116 blocks/s")
    tell("cores' time that a block takes, all processes", f"{block_us:,.0f} us")
    tell("of it: a voter", f"{1e6 * middle.voters_s / BLOCKS / VOTERS:,.0f} us")
    tell("of it: the broker", f"{1e6 * middle.broker_s / BLOCKS:,.0f} us")
    tell("of it: the bench, which publishes", f"{1e6 * middle.bench_s / BLOCKS:,.0f} us")
    tell("blocks a second, if the cores did nothing else", f"{CORES * 1e6 / block_us:,.0f}")
    tell("a verification, a signature", f"{verify_us:.0f}, {sign_us:.0f} us")
    tell("verifications of a block, with its share of batches", f"{ours_us / verify_us:.2f}")
    tell("share of Ed25519 in all CPU", f"{ours_us / block_us:.2f}")
    tell("bound: Ed25519 alone on these cores", f"{CORES * 1e6 / ours_us:,.0f} blocks/s")
    tell("the same without the copy on `head`", f"{BLOCKS / without.seconds:,.0f} blocks/s")
    tell("without: cores' time that a block takes", f"{1e6 * without.all_s / BLOCKS:,.0f} us")
