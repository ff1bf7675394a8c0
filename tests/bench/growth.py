"""What a block costs as a street grows: chains and authorities, in one process.

Each node is the real core on the real store in a file; the broker between them is perfect and takes
no time. Every node has a clock of its own, on which its work passes as it took here, so that nodes
work side by side although one process plays them all in turn: latency is read off these clocks.
Commits do not wait for the disk here: the wait is `street`'s figure, and would drown all others.
"""

from __future__ import annotations

import heapq
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meterd.authority.effects import (
    Load,
    Loaded,
    Now,
    Persist,
    PutCertified,
    Received,
    Sealed,
    Send,
    SendBatches,
    Tick,
)
from meterd.authority.gossip import Gossip
from meterd.authority.senders import Settings
from meterd.device.store import Store
from meterd.ledger.encoding import key_id
from meterd.peer import EVENTS_AT_ONCE, TURN_S
from tests.bench.street import TICK_MS, found, key_of, past_s, seal_chain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.authority.effects import Effect, Event, Record
    from meterd.ledger.account import Genesis
    from tests.bench.street import Linked

CHAINS = (10, 100, 1000, 10_000)
VOTERS = (4, 7, 13, 31)
CHAINS_OF_VOTERS = 100
SENDER_CHAINS_MAX = 500  # a node takes 5000 messages a second of one sender
ARRIVE_S = 500  # blocks a second: meters close an interval together, their lines jitter
ALONE = 15  # blocks that nothing else is about
QUIET_S = 10
PATIENCE_S = 300.0
TOPIC_BYTES = len("m/street/house-0/block")


class Member:
    """One node: core, store, what has come for it, and until when it is busy."""

    def __init__(self, world: Wire, name: str, folder: Path, *, starts: int = 1) -> None:
        """Begin from what its store holds, or with an empty one."""
        key = key_of(name, "vote")
        self.name, self.world = name, world
        self.path = folder / f"{name}.db"
        self.store = Store(str(self.path), genesis=world.genesis_hash, node=name)
        self.store._db.execute("PRAGMA synchronous = OFF")
        for _ in range(starts):
            self.store.begin_start()
        self.gossip = Gossip(
            world.genesis,
            name,
            key,
            nonce=bytes(16),
            snapshot=self.store.snapshot(key_id(bytes(key.verify_key)), None),
            settings=Settings(tick_ms=TICK_MS),
            meter=name,
        )
        self.came: deque[tuple[float, Event]] = deque()
        self.free_s = 0.0
        self.cpu_s = 0.0
        self.certified: dict[tuple[str, int], float] = {}

    def pace(self, tick_ms: int) -> None:
        """Collect attestations for so long."""
        self.gossip.settings = Settings(tick_ms=tick_ms)

    def turn(self) -> None:
        """Take what has come, as the shell does: many events, one commit; then send."""
        begun_s = max(self.free_s, self.came[0][0])
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        now = Now(int(begun_s * 1000) + 1000, self.world.wall_s, synchronised=True)
        effects: list[Effect] = []
        for _ in range(EVENTS_AT_ONCE):
            if not self.came or self.came[0][0] > begun_s:
                break
            effects += self.gossip.step(self.came.popleft()[1], now)
        sent = self._perform(effects)
        self.cpu_s += time.process_time() - cpu_s
        self.free_s = begun_s + time.perf_counter() - wall_s
        for effect in effects:
            if isinstance(effect, Persist):
                for record in effect.records:
                    if isinstance(record, PutCertified):
                        self.certified[record.chain[0], record.height] = self.free_s
        for topic, message in sent:
            self.world.carry(self, topic, message)

    def _perform(self, effects: list[Effect]) -> Iterator[tuple[str, bytes]]:
        records: list[Record] = []
        for effect in effects:
            if isinstance(effect, Persist):
                records += effect.records
        if records:
            self.store.perform(records)
        sent: list[tuple[str, bytes]] = []
        for effect in effects:
            if isinstance(effect, Send):
                sent.append((effect.topic, effect.message))
            elif isinstance(effect, Load):
                self.came.appendleft((0.0, Loaded(effect, self.store.load(effect))))
            elif isinstance(effect, SendBatches):
                batches = self.store.batches(effect.kid, effect.first, effect.last)
                sent.extend((f"answer/{effect.to}", message) for message in batches)
        return iter(sent)


class Wire:
    """A broker that loses nothing and takes no time; it counts what passes."""

    def __init__(self, genesis: Genesis, folder: Path, names: list[str]) -> None:
        """Start these nodes."""
        self.genesis, self.genesis_hash = genesis, genesis.hash
        self.wall_s = int(time.time())
        self.bytes = 0
        self.now_s = 0.0
        self.members = [Member(self, name, folder) for name in names]
        self._due: list[tuple[float, int, Member, Event]] = []
        self._posted = 0

    def carry(self, sender: Member, topic: str, message: bytes) -> None:
        """Bring what a member says to whom it is for."""
        to = topic.partition("/")[2]
        receivers = [m for m in self.members if m is not sender and (not to or m.name == to)]
        self.bytes += (1 + len(receivers)) * (len(message) + TOPIC_BYTES)
        for member in receivers:
            self.post(sender.free_s, member, Received(sender.name, message))

    def post(self, at_s: float, member: Member, event: Event) -> None:
        """Let an event come to a member."""
        self._posted += 1
        heapq.heappush(self._due, (at_s, self._posted, member, event))

    def publish(self, at_s: float, sender: str, message: bytes) -> None:
        """Let a node that is not here publish its meter's block, as a node does: twice."""
        for _ in ("block", "head"):
            self.bytes += (1 + len(self.members)) * (len(message) + TOPIC_BYTES)
            for member in self.members:
                self.post(at_s, member, Received(sender, message))

    def tick(self, begin_s: float, end_s: float) -> None:
        """Let time pass at every member."""
        for step in range(round((end_s - begin_s) / TURN_S)):
            for member in self.members:
                self.post(begin_s + step * TURN_S, member, Tick())

    def run(self) -> None:
        """Let all happen that is under way, whoever can begin first first."""
        while self._due or any(member.came for member in self.members):
            ready = [max(m.free_s, m.came[0][0]) for m in self.members if m.came]
            first_s = min(ready, default=float("inf"))
            if self._due and self._due[0][0] <= first_s:
                at_s, _, member, event = heapq.heappop(self._due)
                member.came.append((at_s, event))
                continue
            member = min(
                (m for m in self.members if m.came), key=lambda m: max(m.free_s, m.came[0][0])
            )
            member.turn()
            self.now_s = max(self.now_s, member.free_s)

    def cpu_s(self) -> float:
        """Return the CPU of all members together."""
        return sum(member.cpu_s for member in self.members)

    def close(self) -> None:
        """Close the stores."""
        for member in self.members:
            member.store.close()


class Cost(NamedTuple):
    """What a block cost.

    Attributes:
        cpu_us: CPU of one node.
        wire_bytes: To the broker and from it, all nodes together.
        latency_ms: Median, from the meter's node on.
    """

    cpu_us: float
    wire_bytes: float
    latency_ms: float


def interval(wire: Wire, blocks: dict[str, Linked]) -> Cost:
    """Let all meters seal, as they do when an interval ends; nodes collect for the usual tick."""
    voters = {member.name: member for member in wire.members}
    for member in wire.members:
        member.pace(TICK_MS)
    begun_s = wire.now_s
    cpu_s, sent = wire.cpu_s(), wire.bytes
    came: dict[str, float] = {}
    for at, (name, block) in enumerate(blocks.items()):
        came[name] = begun_s + at / ARRIVE_S
        if name in voters:
            wire.post(came[name], voters[name], Sealed(block.sealed))
        else:
            sender = f"gateway-{int(name.partition('-')[2]) // SENDER_CHAINS_MAX}"
            wire.publish(came[name], sender, block.sealed)
    first = wire.members[0]
    end_s = begun_s + len(blocks) / ARRIVE_S
    wire.tick(begun_s, end_s)
    wire.run()
    while missing := [n for n, b in blocks.items() if (n, b.height) not in first.certified]:
        if wire.now_s > end_s + PATIENCE_S:
            raise TimeoutError(missing[:3])
        wire.tick(wire.now_s, wire.now_s + 1)
        wire.run()
    taken = [first.certified[n, b.height] - came[n] for n, b in blocks.items()]
    return Cost(
        1e6 * (wire.cpu_s() - cpu_s) / len(blocks) / len(voters),
        (wire.bytes - sent) / len(blocks),
        1000 * statistics.median(taken),
    )


def alone(wire: Wire, chain: Iterator[Linked]) -> Cost:
    """Let one meter seal where nothing else happens, and nobody waits for others to come."""
    for member in wire.members:
        member.pace(0)
    first = wire.members[0]
    cpu_s, sent, taken = wire.cpu_s(), wire.bytes, []
    for _ in range(ALONE):
        block, begun_s = next(chain), wire.now_s
        wire.post(begun_s, first, Sealed(block.sealed))
        wire.run()
        taken.append(first.certified["house-0", block.height] - begun_s)
    return Cost(
        1e6 * (wire.cpu_s() - cpu_s) / ALONE / len(wire.members),
        (wire.bytes - sent) / ALONE,
        1000 * statistics.median(taken),
    )


def quiet(wire: Wire) -> tuple[float, float]:
    """Let nothing happen; return CPU per cent of a node, and bytes a second on the wire."""
    cpu_s, sent = wire.cpu_s(), wire.bytes
    wire.tick(wire.now_s, wire.now_s + QUIET_S)
    wire.run()
    share = (wire.cpu_s() - cpu_s) / QUIET_S / len(wire.members)
    return 100 * share, (wire.bytes - sent) / QUIET_S


def grow(voters: int, chains: int) -> str:
    """Return one row of the table."""
    flats = max(0, chains - voters)
    genesis = found(voters, flats=flats, gateways=1 + flats // SENDER_CHAINS_MAX)
    start_s, genesis_hash = past_s(30), genesis.hash
    sealing = {m.name: seal_chain(genesis_hash, m.name, start_s) for m in genesis.meters[:chains]}
    with tempfile.TemporaryDirectory() as folder:
        wire = Wire(genesis, Path(folder), [f"house-{at}" for at in range(voters)])
        wire.tick(0.0, 3.0)  # the boot rule
        wire.run()
        rounds = 1 if chains * voters > 1000 else 3
        costs = [
            interval(wire, {name: next(chain) for name, chain in sealing.items()})
            for _ in range(rounds)
        ]
        together = sorted(costs, key=lambda cost: cost.cpu_us)[rounds // 2]
        idle, idle_bytes = quiet(wire)
        one = alone(wire, sealing["house-0"])
        wire.close()
    return (
        f"{chains:>7,} {voters:>6} | {together.cpu_us:>7,.0f} us {together.wire_bytes:>8,.0f} B "
        f"{together.latency_ms:>6,.0f} ms | {one.cpu_us:>7,.0f} us {one.wire_bytes:>8,.0f} B "
        f"{one.latency_ms:>6.1f} ms | {idle:>6.2f} % {idle_bytes:>8,.0f} B/s"
    )


def main() -> None:
    """Tell the table."""
    print(f"all meters seal, tick {TICK_MS} | one seals, tick 0 | nobody seals; CPU is a node's,")
    print("bytes are all nodes', to the broker and from it; latency is a median, commits unsynced")
    print(f"{'chains':>7} {'voters':>6} | {'an interval: per block':>29} |", end=" ")
    print(f"{'alone: per block':>29} | idle")
    for chains in CHAINS:
        print(grow(VOTERS[0], chains), flush=True)
    for voters in VOTERS[1:]:
        print(grow(voters, CHAINS_OF_VOTERS), flush=True)
