"""What a network must withstand, one test or a few for each row of the requirements.

They run whole nodes (the real core on the real store) in memory, with a broker that does as the
test says. Real processes and a real broker have their say in `test_street.py`; what single modules
promise is tested beside them.

T1: the broker is not trusted. What it alters is taken by nobody, what it withholds is asked for.
T2: captured traffic is worth nothing after a restart of whoever sent it, or of who receives it.
T4: a meter seals on without a network. Its backlog comes in order, once, within the rate caps.
T5: a stranger, a key that was rotated out or revoked, and a voter of a closed epoch are refused.
T6: two histories, and a register that falls, are kept or named, and alarm every honest node.
T7: keys are made on the device, rotated and revoked; the whole history stays verifiable.
S2: metering has no network, and nothing that the process with the network says shifts a register.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import grimp
import pytest

from meterd.authority.attestation import CHECKS_ALL, OPEN, Header, Leaf, sign_batch
from meterd.authority.certificate import seals_evidence, spell_order, verify_receipt
from meterd.authority.effects import (
    Accuse,
    Assembled,
    Certify,
    Connected,
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
    SendEvidence,
    Stopping,
    Tell,
    Tick,
)
from meterd.authority.gossip import Gossip
from meterd.authority.messages import AskBlocks, Fetch, HeadHeld, Said, open_said, say
from meterd.authority.roster import found
from meterd.authority.senders import FAULTS_MAX, PACED, Sender, Settings
from meterd.config import load_node
from meterd.config_rules import TABLES
from meterd.ctl.account import StoredAccount
from meterd.device.mailbox import INBOX, Mailbox
from meterd.device.store import Store
from meterd.device.vault import create_next_seal, create_seal, load_seals
from meterd.errors import BlockRejectedError
from meterd.ledger.chain import verify_sealed
from meterd.ledger.encoding import decode, digest, key_id, seal, take_apart
from meterd.ledger.order import RosterChange, Rotate, sign_rotation
from meterd.neighbours import Neighbours
from tests import street
from tests.authority.examples import (
    ENROL,
    GENESIS,
    GRID,
    HOUSE,
    NODES,
    OTHER_HOUSE,
    REVOKE,
    VOTERS,
    block,
    certificate,
    chain,
    key,
    leaf,
    order,
    ordered,
    public,
    rotate,
    sealed,
)
from tests.conftest import ROOT
from tests.rig import MIDNIGHT_S, Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.authority.effects import Effect, Event
    from meterd.ledger.account import Genesis
    from meterd.ledger.block import Block
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
        self.start()

    def start(self) -> None:
        """Start, from what the store holds."""
        starts = self.store.begin_start()
        voting = key(f"{self.name} votes")
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
            case SendBatches() | SendEvidence() | SendCertificate():
                for message in self.store.answers(effect, self.gossip.roster):
                    self.publish(f"answer/{effect.to}", message)
            case Accuse():
                proof = self.store.accuse(effect)
                if proof is not None:
                    self.feed(Assembled(proof))
            case Certify():
                self.store.certify(effect, self.gossip.roster)
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


# --- T1 -------------------------------------------------------------------------------------------


def flipped(message: bytes, bit: int) -> bytes:
    data = bytearray(message)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_t1_no_message_with_a_bit_flipped_is_believed_by_anybody(seed: int) -> None:
    """The altered one comes before the true one, so nothing but its signature can betray it."""
    net, draw = Net(), random.Random(seed)
    tried = 0

    def tamper(sender: str, message: bytes, node: Member) -> None:
        nonlocal tried
        before = node.state
        altered = flipped(message, draw.randrange(len(message) * 8))
        node.gossip._senders.clear()  # quarantine would hide whether it would be believed
        node.feed(Received(sender, altered))
        assert node.state == before, (sender, message.hex(), altered.hex())
        node.gossip._senders.clear()
        tried += 1

    net.tampers = tamper
    net.settle(6)
    net.seal(*SEALED)
    net.order(order(ENROL))
    net.settle()
    assert tried > 300
    net.tampers = lambda *_: None
    net.settle()
    net.assert_certified(4)
    assert all(n.gossip.counts["refused"] > 10 for n in net.nodes.values())


def test_t1_a_block_is_taken_though_its_seal_came_altered_before() -> None:
    """Whoever can send a block with a broken seal must not make the true one be refused."""
    net = Net()
    net.settle(6)
    for name in (FEEDER, OTHER_HOUSE, REGULATOR, GRID):
        net.nodes[name].feed(Received(HOUSE, flipped(SEALED[0], len(SEALED[0]) * 8 - 1)))
    net.seal(*SEALED)
    net.settle()
    net.assert_certified(4)


def test_t1_who_brings_a_message_makes_no_difference() -> None:
    """Each comes to everybody, in everybody's name, a stranger's too, before it comes rightly."""
    net = Net()

    def everywhere(posts: list[Post]) -> Iterable[Post]:
        for sender, topic, message in posts:
            for other in (*NAMES, "stranger"):
                yield other, topic.partition("/")[0], message
            yield sender, topic, message

    net.broker = everywhere
    net.settle(6)
    net.seal(*SEALED)
    net.settle(6)
    net.assert_certified(4)
    for node in net.nodes.values():
        assert node.gossip.counts["stranger"]
        assert not node.gossip.counts.get("refused")
        answers = [topic for topic, message in node.sent if topic.startswith("answer/")]
        asked = [
            question
            for other in net.nodes.values()
            for topic, message in other.sent
            if topic == f"fetch/{node.name}"
            for question in fetch_of(message).questions
        ]
        assert len(answers) <= len(asked)  # nobody answers what another was asked, nor twice


def fetch_of(message: bytes) -> Fetch:
    body = open_said(message, lambda name: public(f"{name} votes"), GENESIS.hash).body
    assert isinstance(body, Fetch)
    return body


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_t1_what_is_dropped_is_asked_for_and_what_is_repeated_or_late_does_no_harm(
    seed: int,
) -> None:
    net, draw = Net(), random.Random(seed)
    past: list[Post] = []

    def hostile(posts: list[Post]) -> list[Post]:
        past.extend(posts)
        passed = [post for post in posts if draw.random() > 0.5]
        passed += draw.choices(past, k=min(3, len(past))) if posts else []
        draw.shuffle(passed)
        return passed

    net.broker = hostile
    net.settle(6)
    net.seal(*SEALED)
    net.settle(ROUNDS * 3)
    net.broker = lambda posts: posts
    net.settle(4)
    net.assert_certified(4)
    asked = [
        question
        for _, topic, message in net.traffic
        if topic.startswith("fetch/")
        for question in fetch_of(message).questions
        if isinstance(question, AskBlocks)
    ]
    assert asked
    for node in net.nodes.values():
        assert node.gossip.counts["replayed"]
        assert node.kept == [((HOUSE, 1), height) for height in range(1, 5)]


# --- T2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [True, False], ids=["stopped", "power failed"])
@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_t2_captured_traffic_is_worth_nothing_after_a_restart(in_order: bool, who: str) -> None:
    net = Net()
    net.settle(6)
    net.seal(*SEALED)
    net.order(order(ENROL))
    net.settle()
    captured = net.traffic
    receivers = {FEEDER, GRID} if who == "receiver" else {OTHER_HOUSE, REGULATOR}
    restarted = receivers if who == "receiver" else set(NAMES) - receivers
    for name in restarted:
        if in_order:
            net.nodes[name].feed(Stopping())
        net.nodes[name].start()
    net.queue.clear()
    for name in receivers:
        node = net.nodes[name]
        before, counts = node.state, dict(node.gossip.counts)
        others = [post for post in captured if post[0] != name]
        for sender, _, message in others:
            node.gossip._senders.clear()  # no cap helps here
            effects = node.feed(Received(sender, message))
            if in_order or who == "sender":
                assert all(isinstance(effect, Load) for effect in effects), effects
        assert node.state == before
        if in_order or who == "sender":  # else what was said in the last seconds may be heard again
            said = sum(said_in(message) is not None for _, _, message in others)
            assert node.gossip.counts["replayed"] - counts.get("replayed", 0) == said > 20
    net.settle()
    net.seal(sealed(block(BLOCKS[-1])))
    net.settle()
    net.assert_certified(5)


def test_t2_a_senders_counters_go_up_whatever_happens_to_it() -> None:
    net = Net()
    for at in range(4):
        net.settle(3)
        net.seal(SEALED[at])
        net.settle(3)
        for node in net.nodes.values():
            if at % 2:
                node.feed(Stopping())
            node.start()
    for node in net.nodes.values():
        said = [found for _, message in node.sent if (found := said_in(message))]
        counters = [counter for _, counter in said]
        assert {name for name, _ in said} == {node.name}
        assert counters == sorted(set(counters))
        first = counters[0] >> 32
        assert {counter >> 32 for counter in counters} == {first + at for at in range(4)}


def test_t2_a_node_on_an_older_card_is_heard_again_once_it_knows_the_time() -> None:
    net = Net()
    house, other = net.nodes[HOUSE], net.nodes[OTHER_HOUSE]
    net.settle(6)  # its messages count from the time of its start
    house.store._db.execute("UPDATE meta SET value = 0 WHERE key = 'starts'")
    net.synchronised = False
    house.start()
    heard_ms = other.gossip.heard[HOUSE]
    net.settle(6)
    assert other.gossip.counts["replayed"] >= 6
    assert other.gossip.heard[HOUSE] == heard_ms
    net.synchronised = True
    net.settle(6)
    assert other.gossip.heard[HOUSE] > heard_ms
    house.start()  # and at the next start, whose clock may be wrong again
    net.synchronised = False
    replayed = other.gossip.counts["replayed"]
    net.settle(6)
    assert other.gossip.counts["replayed"] == replayed


# --- T4 -------------------------------------------------------------------------------------------

DAYS, BLOCKS_A_DAY, INTERVAL_MS = 30, 48, 1_800_000
TIGHT = Settings(tick_ms=500, digest_ms=5000, bytes_s_max=100_000, messages_s_max=20)
STEP_MS = 100


def test_t4_thirty_days_without_a_network_come_back_once_in_order_and_within_the_caps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net(settings=TIGHT)
    house = net.nodes[HOUSE]
    net.settle(6)
    backlog = chain(DAYS * BLOCKS_A_DAY)
    del net.nodes[HOUSE]
    for at, each in enumerate(backlog, start=1):
        net.mono_ms += INTERVAL_MS
        house.feed(Sealed(sealed(each)))
        house.feed(Tick())
        net.queue = []
        if at % BLOCKS_A_DAY == 0:
            net.settle(1, 0)
    held = house.gossip.chains[HOUSE, 1]
    assert (held.height, held.certified) == (len(backlog), 0)  # it sealed on

    net.nodes[HOUSE] = house
    net.broker = lambda posts: posts
    taken: dict[Sender, list[tuple[int, int]]] = {}

    def admit(sender: Sender, length: int, settings: Settings, mono_ms: int) -> bool:
        if not admits(sender, length, settings, mono_ms):
            return False
        taken.setdefault(sender, []).append((mono_ms, length))
        return True

    admits = Sender.admit
    monkeypatch.setattr(Sender, "admit", admit)
    for node in net.nodes.values():
        node.feed(Connected())
    begin_ms = net.mono_ms
    while any(node.certified() < len(backlog) for node in net.nodes.values()):
        net.mono_ms += STEP_MS
        for node in net.nodes.values():
            node.feed(Tick())
        net.hop()
        assert net.mono_ms - begin_ms < 120_000, [n.certified() for n in net.nodes.values()]
    net.assert_certified(len(backlog))
    every = [((HOUSE, 1), height) for height in range(1, len(backlog) + 1)]
    for node in net.nodes.values():
        assert node.kept == every
    assert sum(node.gossip.counts.get("dropped", 0) for node in net.nodes.values())
    for all_of in taken.values():  # two seconds' worth may come at once
        for at, (begin, _) in enumerate(all_of):
            for until in (begin + 1000, net.mono_ms):
                lengths = [length for ms, length in all_of[at:] if ms <= until]
                seconds = 2 + (until - begin) / 1000
                assert len(lengths) <= seconds * TIGHT.messages_s_max
                assert sum(lengths) <= seconds * TIGHT.bytes_s_max


def test_t4_no_more_is_answered_a_second_than_is_stated() -> None:
    net = Net(settings=TIGHT)
    net.settle(6)
    net.seal(*SEALED)
    net.settle()
    node, asks = net.nodes[OTHER_HOUSE], key(f"{FEEDER} votes")
    for second in range(5):
        net.mono_ms += 60_000 if second == 0 else 1000
        before = len(node.sent)
        for at in range(500):
            fetch = Fetch(OTHER_HOUSE, (AskBlocks(HOUSE, 1, 1, 4),))
            said = Said(FEEDER, (1 << 62) + second * 500 + at, fetch)
            node.feed(Received(FEEDER, say(said, asks, GENESIS.hash)))
        answered = len(node.sent) - before
        assert answered == (2 if second == 0 else 1) * TIGHT.messages_s_max
    assert node.gossip.counts["dropped"] == 5 * 500 - 6 * TIGHT.messages_s_max


def test_t4_what_one_refuses_and_another_holds_is_not_asked_for_without_end() -> None:
    """An honest node holds a block of a chain that was revoked before the others heard of it."""
    net = Net()
    net.settle(6)
    net.seal(*SEALED)
    net.settle(4)
    net.nodes[REGULATOR].feed(Received(HOUSE, sealed(block(BLOCKS[-1]))))
    net.queue.clear()
    revoke = sealed(order(REVOKE))
    net.broker = lambda posts: [post for post in posts if post[0] != REGULATOR]
    net.seal(revoke, name=GRID)
    net.settle(6)
    net.broker = lambda posts: posts
    before = len(net.traffic)
    net.settle(6)
    assert len(net.traffic) - before < 6 * 5 * len(NAMES)  # some words of each in each round


def test_t4_nodes_that_reach_a_broker_at_once_do_not_speak_at_once() -> None:
    net = Net(settings=PACED)
    net.settle(6)
    net.seal(*SEALED)
    net.settle()
    spoke: dict[str, list[int]] = {name: [] for name in NAMES}
    for node in net.nodes.values():
        node.feed(Connected())
    begin_ms = net.mono_ms
    while net.mono_ms < begin_ms + 60_000:
        net.mono_ms += 5
        for name, node in net.nodes.items():
            before = len(node.sent)
            node.feed(Tick())
            spoke[name] += [net.mono_ms for topic, _ in node.sent[before:] if topic == "digest"]
        net.hop()
    assert len({times[0] for times in spoke.values()}) == len(NAMES)
    assert max(times[0] for times in spoke.values()) - begin_ms <= 505
    moments = [at for times in spoke.values() for at in times]
    assert len(set(moments)) >= len(moments) - 2  # two may meet by chance, and part again
    for times in spoke.values():
        pauses = {after - before for before, after in pairwise(times)}
        assert len(pauses) > len(times) // 2
        assert min(pauses) >= 2500
        assert max(pauses) <= 7505


# --- T5 -------------------------------------------------------------------------------------------

ROTATED = rotate(f"{HOUSE} seals", f"{HOUSE} seals, 2")
GONE = REVOKE._replace(meter=OTHER_HOUSE)
WITHOUT_REGULATOR = RosterChange(
    2, tuple(replace(n, votes=0) if n.name == REGULATOR else n for n in NODES)
)
NETWORK = ordered(ROTATED, GONE, WITHOUT_REGULATOR)
NAMED = (3, NETWORK.orders[2].hash)
NEXT = block(BLOCKS[-1])._replace(order=NAMED)
OTHER = chain(2, OTHER_HOUSE)
HEADS = [Leaf(HOUSE, 1, 5, NEXT.hash, CHECKS_ALL)]


def forged(item: Block, by: str) -> bytes:
    return sealed(item._replace(fingerprint=digest(by.encode())), by)


def batch_by(net: Net, what: str, epoch: int) -> bytes:
    """Return the next batch in the sequence of a key."""
    voter = key(what)
    last = net.nodes[FEEDER].gossip.sequences.get(key_id(bytes(voter.verify_key)))
    number, before = (last.number, last.batch_hash) if last else (0, bytes(32))
    header = Header(epoch, number + 1, before, WALL_S, OPEN)
    return sign_batch(header, HEADS, voter, GENESIS.hash)


@pytest.fixture(scope="module")
def changed_net() -> Net:
    """A street after a rotation, a revocation and a new epoch; no test of T5 changes it."""
    net = Net()
    net.settle(6)
    net.seal(*SEALED)
    net.seal(sealed(OTHER[0]), name=OTHER_HOUSE)
    net.settle(4)
    net.order(*NETWORK.orders)
    net.settle()
    net.assert_certified(4)
    assert {node.gossip.epoch for node in net.nodes.values()} == {2}
    return net


@pytest.mark.parametrize(
    ("make", "sender", "reason"),
    [
        pytest.param(
            lambda _: forged(NEXT, "stranger"), HOUSE, "sealed by key", id="a stranger's block"
        ),
        pytest.param(
            lambda _: sealed(block(name="house-9")),
            FEEDER,
            "is not enrolled",
            id="no meter's block",
        ),
        pytest.param(
            lambda _: forged(NEXT, f"{HOUSE} votes"), HOUSE, "sealed by key", id="a vote as a seal"
        ),
        pytest.param(
            lambda _: forged(NEXT, f"{HOUSE} seals"), HOUSE, "sealed by key", id="a rotated-out key"
        ),
        pytest.param(
            lambda _: sealed(OTHER[1]._replace(order=NAMED)),
            OTHER_HOUSE,
            "was revoked: the card was stolen",
            id="a revoked key",
        ),
        pytest.param(
            lambda _: sealed(OTHER[1]),
            OTHER_HOUSE,
            "was revoked: the card was stolen",
            id="a revoked key that names the order before",
        ),
        pytest.param(
            lambda net: batch_by(net, "stranger", 2),
            FEEDER,
            "does not vote in epoch 2",
            id="a stranger's batch",
        ),
        pytest.param(
            lambda net: batch_by(net, f"{FEEDER} seals", 2),
            FEEDER,
            "does not vote in epoch 2",
            id="a seal as a vote",
        ),
        pytest.param(
            lambda net: batch_by(net, f"{REGULATOR} votes", 2),
            REGULATOR,
            "does not vote in epoch 2",
            id="a voter of before in this epoch",
        ),
        pytest.param(
            lambda net: batch_by(net, f"{REGULATOR} votes", 1),
            REGULATOR,
            "in an epoch that it has closed",
            id="a voter in a closed epoch",
        ),
    ],
)
def test_t5_nobody_takes(
    changed_net: Net, make: Callable[[Net], bytes], sender: str, reason: str
) -> None:
    message = make(changed_net)
    before = changed_net.states
    for name, node in changed_net.nodes.items():
        if name == sender:
            continue
        node.told.clear()
        node.gossip.refused.clear()
        node.gossip._senders.clear()
        counted = sum(node.gossip.counts.values())
        for _ in range(FAULTS_MAX):  # the journal has the reason once the sender is shut out
            node.feed(Received(sender, message))
        assert sum(node.gossip.counts.values()) > counted
        assert any(reason in told for told in node.reasons), (name, node.reasons)
        node.gossip._senders.clear()
        node.gossip.chains[OTHER_HOUSE, 1].refused = b""
    changed_net.queue.clear()
    assert changed_net.states == before


def test_t5_who_is_enrolled_goes_on(changed_net: Net) -> None:
    """The same block, under the key of its time, is taken: nothing else of it was wrong."""
    roster = changed_net.nodes[FEEDER].gossip.roster
    opened = roster.open_chain((HOUSE, 1))
    for message in SEALED:
        _, opened = verify_sealed(message, opened)
    assert verify_sealed(sealed(NEXT, f"{HOUSE} seals, 2"), opened)[1].head.height == 5


# --- T6 -------------------------------------------------------------------------------------------


def test_t6_a_meter_that_seals_two_blocks_is_convicted_everywhere_and_its_chain_stands() -> None:
    net = Net()
    net.settle(6)
    net.seal(SEALED[0])
    net.settle(4)
    net.assert_certified(1)
    fork = BLOCKS[1]._replace(fingerprint=bytes(32))
    honest = [net.nodes[name] for name in NAMES if name != HOUSE]
    del net.nodes[HOUSE]
    for node in honest:
        one = node.name in {FEEDER, REGULATOR}
        node.feed(Received(HOUSE, SEALED[1] if one else sealed(fork)))
    net.settle()
    expected = {digest(seals_evidence(SEALED[1], sealed(fork)))}
    for node in honest:
        node.feed(Received(HOUSE, SEALED[2]))
    net.settle()
    for node in honest:
        assert set(node.gossip.evidence) == expected
        assert node.store.evidence(*expected)
        assert node.certified() == 1
        assert node.gossip.chains[HOUSE, 1].frozen == "two blocks 2 are sealed"
        (alarm,) = node.alarms("two_histories")
        assert (alarm["role"], alarm["name"], alarm["height"]) == ("meter", HOUSE, 2)
        node.start()  # and it knows after a restart
        assert set(node.gossip.evidence) == expected
        assert node.gossip.chains[HOUSE, 1].frozen


def test_t6_an_authority_that_attests_two_blocks_is_convicted_everywhere() -> None:
    """It says one thing of the chain in one batch, and another of the same height in the next."""
    net = Net()
    del net.nodes[REGULATOR]  # its hand is ours
    net.settle(6)
    net.seal(*SEALED[:2])
    net.settle(4)
    liar = key(f"{REGULATOR} votes")
    before = bytes(32)
    lie = leaf(BLOCKS[1])._replace(block_hash=bytes(range(32)))
    for number, attested in enumerate((leaf(BLOCKS[1]), lie), start=1):
        header = Header(1, number, before, WALL_S, OPEN)
        message = sign_batch(header, [attested], liar, GENESIS.hash)
        for node in net.nodes.values():
            node.feed(Received(REGULATOR, message))
        before = net.nodes[FEEDER].gossip.sequences[key_id(bytes(liar.verify_key))].batch_hash
    net.settle()
    for node in net.nodes.values():
        (evidence,) = node.gossip.evidence
        assert node.store.evidence(evidence)
        (alarm,) = node.alarms("two_histories")
        assert (alarm["role"], alarm["name"]) == ("authority", REGULATOR)
        assert (alarm["chain"], alarm["height"]) == (f"{HOUSE}/1", 2)
        assert node.certified() == 2  # the honest go on
    net.seal(SEALED[2])
    net.settle(4)
    assert {node.certified() for node in net.nodes.values()} == {3}


def test_t6_a_register_that_falls_alarms_everybody_with_the_meters_name() -> None:
    net = Net()
    net.settle(6)
    net.seal(*SEALED[:2])
    net.settle(4)
    before = net.states
    falls = BLOCKS[2]._replace(
        energy=tuple(e._replace(last_uj=e.first_uj - 1) for e in BLOCKS[2].energy)
    )
    net.seal(sealed(falls))
    for node in net.nodes.values():
        node.feed(Received(HOUSE, sealed(falls)))
    for node in net.nodes.values():
        (alarm,) = node.alarms("refused")
        assert (alarm["meter"], alarm["height"]) == (HOUSE, 3)
        assert "lowers register" in str(alarm["reason"])
    assert net.states == before
    net.settle(4)
    net.assert_certified(2)


# --- T7 -------------------------------------------------------------------------------------------


def device_keys(state: Path) -> list[SigningKey]:
    """Return the four keys that a device makes, each in a file that nobody else reads."""
    create_seal(state, digest(b"drawn on the device, 1"))
    for number in (2, 3, 4):
        create_next_seal(state, digest(b"drawn on the device, %d" % number))
    files = sorted(state.iterdir())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    keys = load_seals(state)
    assert len(files) == len({bytes(one) for one in keys}) == 4
    return keys


def with_first_key(public_key: bytes) -> Genesis:
    """Return the genesis of a street whose first house seals with this key."""
    nodes, meters = (
        tuple(replace(one, sealing_key=public_key) if one.name == HOUSE else one for one in listed)
        for listed in (NODES, GENESIS.meters)
    )
    return replace(GENESIS, nodes=nodes, meters=meters)  # type: ignore[arg-type]


def test_t7_keys_of_a_device_are_rotated_and_revoked_and_its_history_stays_good(
    tmp_path: Path,
) -> None:
    keys = device_keys(tmp_path)
    genesis = with_first_key(bytes(keys[0].verify_key))
    net = Net(genesis)
    net.settle(6)
    history: list[Block] = []

    def following(named: tuple[int, bytes]) -> Block:
        if history:
            return block(history[-1])._replace(order=named)
        return block()._replace(genesis=genesis.hash, previous=genesis.hash, order=named)

    def publish(item: Block, by: SigningKey) -> None:
        message = seal(item.encode(), by, genesis.hash)
        net.seal(message)
        net.settle(3)

    node = net.nodes[FEEDER]
    for number, own in enumerate(keys):
        if number:
            old, new = keys[number - 1], bytes(own.verify_key)
            consent = sign_rotation(old, genesis.hash, HOUSE, 1, new)
            before = (node.gossip.roster.head.height, node.gossip.roster.head.order_hash)
            net.order(order(Rotate(HOUSE, 1, new, consent), node.gossip.roster))
            overlap = following(before)  # sealed before the meter had heard of the order
            publish(overlap, old)
            history.append(overlap)
            net.assert_certified(len(history))
            late = following((number, node.gossip.roster.head.order_hash))
            late = late._replace(fingerprint=bytes(32))
            publish(late, old)  # its own peer process says no
            node.feed(Received(HOUSE, seal(late.encode(), old, genesis.hash)))
            assert node.certified() == len(history)  # once it is named, the old key is no more
            assert "sealed by key" in node.gossip.refused[-1][2]
        at = following((number, node.gossip.roster.head.order_hash))
        publish(at, own)
        history.append(at)
        net.assert_certified(len(history))

    net.order(order(REVOKE, node.gossip.roster))
    for number in (3, 4):
        late = following((number, node.gossip.roster.hashes[number]))
        publish(late, keys[3])
        node.gossip.refused.clear()
        node.feed(Received(HOUSE, seal(late.encode(), keys[3], genesis.hash)))
        ((_, _, reason),) = node.gossip.refused
        assert reason.endswith("was revoked: the card was stolen")
    net.assert_certified(len(history))
    assert_history(net, history)
    said = b"".join(message for _, _, message in net.traffic)
    for own in keys:
        assert bytes(own) not in said
        assert bytes(own).hex().encode() not in said


def assert_history(net: Net, history: list[Block]) -> None:
    """Every node can prove each block to whoever knows the genesis alone; to no other network."""
    for node in net.nodes.values():
        for height, item in enumerate(history, start=1):
            receipt = node.store.receipt((HOUSE, 1), height, node.gossip.roster)
            assert verify_receipt(receipt, net.genesis).block_hash == item.hash
            with pytest.raises(BlockRejectedError):
                verify_receipt(receipt, GENESIS)


# --- S2 -------------------------------------------------------------------------------------------

METERING = ("meterd.run", "meterd.meter", "meterd.neighbours", "meterd.bookkeeper")
NETWORK_MODULES = {
    *("meterd.peer", "meterd.device.broker", "meterd.device.store", "meterd.authority.gossip"),
    *("paho", "amqtt", "ssl", "http", "urllib", "sqlite3"),
}


def test_s2_nothing_that_metering_imports_now_or_later_has_a_network() -> None:
    """By the source, imports inside functions too. The peer process is started, not imported."""
    graph = grimp.build_graph("meterd", include_external_packages=True, cache_dir=None)
    assert graph.modules >= {"meterd.peer", "meterd.device.broker", "paho", "ssl"}
    for module in METERING:
        reached = graph.find_upstream_modules(module)
        assert len(reached) > 30
        assert not reached & NETWORK_MODULES, module
    assert "paho" in graph.find_upstream_modules("meterd.peer")  # the check can fail


def test_s2_a_metering_process_has_no_such_module() -> None:
    """Of what asyncio brings itself, `ssl` is one: nobody else asks for it."""
    script = (
        "import asyncio, sys; before = set(sys.modules); "
        f"import {', '.join(METERING)}; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert loaded >= set(METERING)
    harmless = {"urllib", "urllib.parse"}  # of pathlib
    assert not (loaded - harmless) & {*NETWORK_MODULES, "urllib.request", "http.client", "_ssl"}


def fill(inbox: Mailbox, draw: random.Random, kept: list[bytes]) -> None:
    """Write into a meter's inbox what a peer process in bad hands could think of."""
    genesis = street.genesis_of()
    fork = street.chain(genesis, street.HOUSE, 2)
    two = [seal(b.encode(), street.key(f"{street.HOUSE} seals"), genesis.hash) for b in fork]
    other = fork[0]._replace(fingerprint=bytes(range(32)))
    two.append(seal(other.encode(), street.key(f"{street.HOUSE} seals"), genesis.hash))
    own = street.chain(genesis, street.KITCHEN, 1)[0]
    stranger = seal(own._replace(height=len(kept) + 1).encode(), key("stranger"), genesis.hash)
    head = HeadHeld(1, (0, genesis.hash), street.KITCHEN, bytes(16), 1, 99, bytes(32))
    liar = street.key(f"{street.REGULATOR} votes")
    letters = [
        ("certificate", certificate(block()).encode()),
        ("order", spell_order(sealed(order(ENROL)), certificate(order(ENROL)))),
        ("answer", say(Said(street.REGULATOR, 1 << 40, head), liar, genesis.hash)),
        ("block", stranger),
        ("block", two[0]),
        ("evidence", seals_evidence(two[0], two[2])),  # it holds, and convicts another
        ("evidence", seals_evidence(two[0], two[0])),
        *(("block", old) for old in kept[-2:]),
        *(("evidence", seals_evidence(old, stranger)) for old in kept[-1:]),
    ]
    for kind in ("certificate", "order", "answer", "block", "evidence", "nonsense"):
        letters.append((kind, draw.randbytes(draw.randrange(3000))))
        _, real = draw.choice(letters[:7])
        letters.append((kind, flipped(real, draw.randrange(len(real) * 8))))
        letters.append((kind, real[: draw.randrange(len(real))]))
    draw.shuffle(letters)
    for number, (kind, data) in enumerate(letters):
        inbox.put(f"{kind}-{number:012d}", data)
    (inbox.folder / f"odd name {draw.randrange(9)}\x07").touch()
    (inbox.folder / f"folder-{draw.randrange(9)}").mkdir(exist_ok=True)
    link = inbox.folder / f"block-{draw.randrange(9)}99"
    if not link.is_symlink():
        link.symlink_to("/dev/zero")


def sealed_in(state: Path) -> list[bytes]:
    return [each.message for each in StoredAccount(state).blocks]


def lives(state: Path, *, hostile: bool) -> Rig:
    """Return a meter in a street of four that lived half an hour, with its side of the line."""
    state.mkdir()
    genesis = street.genesis_of()
    (state / "genesis.cbor").write_bytes(genesis.encode())
    for stream in ("samples", "events", "blocks"):
        (state / stream).mkdir()
    rig = Rig(state)
    rig.start(MIDNIGHT_S)
    line = Neighbours(
        found(genesis),
        rig.book.chain,
        state=state,
        line=state / "line",
        load=lambda first, last: sealed_in(state)[first - 1 : last],
    )
    inbox, draw = Mailbox(state / "line" / INBOX), random.Random(7)
    head = HeadHeld(1, (0, genesis.hash), street.KITCHEN, line._search.nonce, 1, 0, genesis.hash)
    for number, name in enumerate((street.HOUSE, street.OTHER_HOUSE, street.REGULATOR)):
        said = Said(name, 1 << 32, head)
        message = say(said, street.key(f"{name} votes"), genesis.hash)
        inbox.put(f"answer-{number:012d}", message)
    assert line.read(rig.boot_ms) == []
    assert line.waits == ""
    kept: list[bytes] = []
    for _ in range(30):
        if hostile:
            fill(inbox, draw, kept)
        rig.rows(12)
        rig.commit()
        for spelt in line.read(rig.boot_ms):
            rig.book.event("order", (("spelt", spelt),))
            rig.book.obey(line.chain, line.order, line.changes)
        line.turn(rig.boot_ms)
        rig.book.raise_alarm("neighbours", line.waits, stands=bool(line.waits))
        if line.waits:
            rig.book.waiting = line.waits
        before, kept = len(kept), sealed_in(state)
        line.sealed(rig.book.chain, list(enumerate(kept, start=1))[before:])
    rig.stop()
    if hostile:
        assert set(line.refused) >= {"certificate", "order", "answer", "block", "evidence"}
        assert line.roster == found(genesis)
        assert not line.recovered
    return rig


def test_s2_a_hostile_peer_process_shifts_no_bit_of_what_is_sealed(tmp_path: Path) -> None:
    """Its inbox is full of nonsense, of what was forged, and of what holds but is another's."""
    quiet = lives(tmp_path / "quiet", hostile=False)
    borne = lives(tmp_path / "borne", hostile=True)
    assert len(quiet.blocks) >= 25
    assert borne.book.registers_uj() == quiet.book.registers_uj()
    for stream in ("samples", "events", "blocks"):
        one, other = (
            {path.name: path.read_bytes() for path in (rig.state / stream).iterdir()}
            for rig in (quiet, borne)
        )
        assert one == other, stream


# --- the settings of a node that does not meter ---------------------------------------------------

DISTRIBUTOR = ROOT / "config" / "distributor.toml"


def test_a_node_without_a_meter_is_set_up_by_the_file_that_is_shipped() -> None:
    node = load_node(DISTRIBUTOR)
    assert (node.name, node.metered, node.clock.trust) == (GRID, False, "kernel")
    assert node.network.brokers == ("mqtts://broker.example:8883",)
    defaults = type(node.network)()
    for field in ("tick_ms", "digest_ms", "line", "store"):
        assert getattr(node.network, field) == getattr(defaults, field)
    tables: dict[str, Any] = tomllib.loads(DISTRIBUTOR.read_text())
    assert {name: set(table) for name, table in tables.items()} == {
        name: set(TABLES[name]) for name in ("network", "clock")
    }
    for line in DISTRIBUTOR.read_text().splitlines():
        assert " = " not in line or " # " in line or line.startswith("#"), line
