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
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from meterd.authority.attestation import CHECKS_ALL, OPEN, Header, Leaf, sign_batch
from meterd.authority.certificate import seals_evidence, verify_receipt
from meterd.authority.effects import Connected, Load, Received, Sealed, Stopping, Tick
from meterd.authority.messages import AskBlocks, Fetch, Said, open_said, say
from meterd.authority.senders import FAULTS_MAX, PACED, Sender, Settings
from meterd.device import proofs
from meterd.device.keys import create_next_seal, create_seal, load_seals
from meterd.errors import BlockRejectedError
from meterd.ledger.chain import verify_sealed
from meterd.ledger.encoding import digest, key_id, seal
from meterd.ledger.order import RosterChange, Rotate, sign_rotation
from tests.authority.examples import (
    ENROL,
    GENESIS,
    GRID,
    HOUSE,
    NODES,
    OTHER_HOUSE,
    REVOKE,
    block,
    chain,
    key,
    leaf,
    order,
    ordered,
    public,
    rotate,
    sealed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.ledger.account import Genesis
    from meterd.ledger.block import Block

from tests.net import (
    BLOCKS,
    FEEDER,
    NAMES,
    REGULATOR,
    ROUNDS,
    SEALED,
    WALL_S,
    Member,
    Net,
    Post,
    flipped,
    said_in,
)

# --- T1 -------------------------------------------------------------------------------------------


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
            receipt = proofs.receipt(node.store, (HOUSE, 1), height, node.gossip.roster)
            assert verify_receipt(receipt, net.genesis).block_hash == item.hash
            with pytest.raises(BlockRejectedError):
                verify_receipt(receipt, GENESIS)
