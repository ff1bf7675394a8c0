"""Whole nodes in memory, and a broker between them that does as a test says.

The core is real and so is the store; time passes when the test says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.effects import (
    Accuse,
    Assembled,
    Certify,
    Load,
    Loaded,
    Now,
    Persist,
    PutBlocks,
    Received,
    Sealed,
    Send,
    SendBatches,
    SendCertificate,
    SendClosings,
    SendEvidence,
    Tell,
    Tick,
)
from meterd.authority.gossip import Gossip
from meterd.authority.senders import Settings
from meterd.device import proofs
from meterd.device.store import Store
from meterd.ledger.encoding import decode, digest, key_id, seal, take_apart
from tests.authority.examples import GENESIS, GRID, HOUSE, OTHER_HOUSE, VOTERS, chain, key, sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meterd.authority.effects import Effect, Event
    from meterd.ledger.account import Genesis
    from meterd.ledger.order import Order

NAMES = (*VOTERS, GRID)
REGULATOR, FEEDER = "regulator", "feeder-1"
WALL_S = 2_000_000_000
EAGER = Settings(tick_ms=0, digest_ms=1000)
ROUND_MS = 2500  # a question that nobody answers is asked anew in each round
ROUNDS = 12
HOPS_MAX = 60  # questions, answers and what follows: some ten, where nobody goes round in circles


class Member:
    """One node: its core, its store, what it told, and all that it sent.

    Attributes:
        gossip: Of the present start.
        voting: Its voting key from the next start on.
        told: Events for its journal.
        sent: (topic, message), over all starts.
        kept: (chain, height) of each block that it kept, in this order.
    """

    def __init__(self, net: Net, name: str) -> None:
        self.net, self.name = net, name
        self.store = Store(":memory:", genesis=net.genesis.hash, node=name)
        self.told: list[Tell] = []
        self.sent: list[tuple[str, bytes]] = []
        self.kept: list[tuple[tuple[str, int], int]] = []
        self.voting = key(f"{name} votes")
        self.start()

    def start(self) -> None:
        """Start, from what the store holds."""
        starts = self.store.begin_start()
        voting = self.voting
        self.gossip = Gossip(
            self.net.genesis,
            self.name,
            voting,
            nonce=digest(f"{self.name} {starts}".encode())[:16],
            snapshot=self.store.snapshot(key_id(bytes(voting.verify_key)), (GRID, 1)),
            settings=self.net.settings,
            meter=self.name if self.name in {HOUSE, OTHER_HOUSE} else "",
        )

    def feed(self, event: Event) -> list[Effect]:
        effects = self.gossip.step(event, self.net.now)
        for effect in effects:
            self.perform(effect)
        return effects

    def perform(self, effect: Effect) -> None:
        match effect:
            case Persist():
                self.store.perform(effect.records)
                for record in effect.records:
                    if isinstance(record, PutBlocks):
                        self.kept += [(record.chain, height) for height, _, _ in record.blocks]
            case Send():
                self.publish(effect.topic, effect.message)
            case Load():
                self.feed(Loaded(effect, self.store.load(effect)))
            case SendBatches() | SendEvidence() | SendCertificate() | SendClosings():
                for message in proofs.answers(self.store, effect, self.gossip.roster):
                    self.publish(f"answer/{effect.to}", message)
            case Accuse():
                proof = proofs.accuse(self.store, effect)
                if proof is not None:
                    self.feed(Assembled(proof))
            case Certify():
                proofs.certify(self.store, effect, self.gossip.roster)
            case Tell():
                self.told.append(effect)
            case _:
                pass

    def publish(self, topic: str, message: bytes) -> None:
        self.sent.append((topic, message))
        self.net.queue.append((self.name, topic, message))

    @property
    def state(self) -> tuple[object, ...]:
        """What it believes: blocks, votes, certificates, evidence."""
        chains = {
            chain_id: (
                *(held.height, held.head_hash, held.certified, held.certified_epoch, held.frozen),
                *(dict(held.hashes), dict(held.votes), dict(held.foreign), dict(held.ahead)),
            )
            for chain_id, held in self.gossip.chains.items()
            if held.height or held.votes or held.ahead
        }
        gossip = self.gossip
        return (
            *(chains, dict(gossip.sequences), set(gossip.evidence), dict(gossip.accused)),
            *(gossip.epoch, gossip.booted, gossip.roster.head),
        )

    def certified(self, name: str = HOUSE) -> int:
        held = self.gossip.chains.get((name, 1))
        return held.certified if held else 0

    def alarms(self, event: str) -> list[dict[str, str | int]]:
        return [dict(t.fields) for t in self.told if (t.level, t.event) == (2, event)]

    @property
    def reasons(self) -> list[str]:
        """Why it refused something, as it can be shown and as the journal has it."""
        told = [str(dict(t.fields).get("reason", "")) for t in self.told]
        return [reason for _, _, reason in self.gossip.refused] + told


Post = tuple[str, str, bytes]


class Net:
    """All nodes, and the broker between them.

    Attributes:
        broker: What it makes of the messages of a moment: (sender, topic, message).
        tampers: What it does before it gives a message to somebody: (sender, message, to).
    """

    def __init__(self, genesis: Genesis = GENESIS, settings: Settings = EAGER) -> None:
        self.genesis, self.settings = genesis, settings
        self.mono_ms, self.synchronised = 0, True
        self.queue: list[Post] = []
        self.broker: Callable[[list[Post]], Iterable[Post]] = lambda posts: posts
        self.tampers: Callable[[str, bytes, Member], None] = lambda *_: None
        self.nodes = {name: Member(self, name) for name in NAMES}

    @property
    def now(self) -> Now:
        return Now(self.mono_ms, WALL_S, self.synchronised)

    def settle(self, rounds: int = ROUNDS, ms: int = ROUND_MS) -> None:
        """Let time pass until all have said what they have to say."""
        for _ in range(rounds):
            self.mono_ms += ms
            for node in self.nodes.values():
                node.feed(Tick())
            for _ in range(HOPS_MAX):
                self.hop()
            assert not self.queue, "they do not stop talking"

    def hop(self) -> None:
        """Let the broker pass on what was published until now."""
        posts, self.queue = self.queue, []
        for sender, topic, message in self.broker(posts):
            to = topic.partition("/")[2]
            for name, node in self.nodes.items():
                if name != sender and (not to or to == name):
                    self.tampers(sender, message, node)
                    node.feed(Received(sender, message))

    def seal(self, *messages: bytes, name: str = HOUSE) -> None:
        for message in messages:
            self.nodes[name].feed(Sealed(message))

    def order(self, *orders: Order) -> None:
        """Let the distributor give orders, and each come into force before the next."""
        for each in orders:
            message = seal(each.encode(), key(f"{GRID} seals"), self.genesis.hash)
            self.seal(message, name=GRID)
            self.settle(6)
            for node in self.nodes.values():
                assert node.gossip.roster.head.height == each.height, node.name

    @property
    def traffic(self) -> list[Post]:
        return [(n.name, *sent) for n in self.nodes.values() for sent in n.sent]

    @property
    def states(self) -> dict[str, tuple[object, ...]]:
        return {name: node.state for name, node in self.nodes.items()}

    def assert_certified(self, height: int, name: str = HOUSE) -> None:
        """All nodes hold the chain, all of it is certified, and nobody is accused of anything."""
        assert {n.name: n.certified(name) for n in self.nodes.values()} == dict.fromkeys(
            NAMES, height
        )
        assert not any(n.gossip.evidence or n.gossip.accused for n in self.nodes.values())


BLOCKS = chain(4)
SEALED = [sealed(each) for each in BLOCKS]


def said_in(message: bytes) -> tuple[str, int] | None:
    """Return sender and counter of a message that somebody says; None where it is a block."""
    if not message.startswith(b"\xd2"):
        return None
    context, *value = decode(take_apart(message).payload)
    if context in {"meterd/block/v1", "meterd/order/v1"}:
        return None
    return value[0], value[1]


def flipped(message: bytes, bit: int) -> bytes:
    data = bytearray(message)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)
