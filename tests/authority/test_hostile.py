"""What a liar, or whoever writes to a broker, may send: it is refused, and the node goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cbor2
import pytest

from meterd.authority.asking import ANSWER_MS, CLAIMS_MAX, cost_of
from meterd.authority.attestation import CLOSED, CLOSING, OPEN, Header, Leaf, make_batch, open_batch
from meterd.authority.boot import QUESTIONS_KEPT
from meterd.authority.effects import (
    Asked,
    Assembled,
    Deliver,
    Load,
    Received,
    Send,
    SendBatches,
    SendClosings,
    Tick,
)
from meterd.authority.messages import (
    ASKED_MAX,
    HEADS_MAX,
    AskBatches,
    AskBlocks,
    AskClosings,
    AskOwnBatch,
    Digest,
    Fetch,
    HeadHeld,
    OwnBatch,
    Said,
    blocks_message,
    open_said,
    say,
)
from meterd.authority.recall import BOOT_GRACE_MS
from meterd.authority.senders import PACED
from meterd.authority.voting import CREDIT_MAX, SERIES_MAX, STRAYS_MAX
from meterd.authority.witness import HASHES_KEPT
from meterd.device import proofs
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import key_id, seal
from tests.authority.examples import (
    GENESIS,
    GRID,
    HOUSE,
    NEXT_EPOCH,
    NODES,
    OTHER_HOUSE,
    chain,
    key,
    leaf,
    ordered,
    public,
    sealed,
)
from tests.net import FEEDER, REGULATOR, SEALED, WALL_S, Net

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterd.authority.messages import Question
    from meterd.ledger.block import Block
    from tests.net import Post

LONG = -(1 << 8 * 1900)  # Python writes no number of more than 4300 digits
ODD = (
    LONG,
    -1,
    1 << 64,
    True,
    None,
    1.5,
    {1: 2},
    cbor2.CBORTag(36, "Content-Type: text/plain\n\n"),
)
FIELDS = 15


def edited(item: Block, field: int, value: object) -> bytes:
    """Return a block's bytes with another value in one place."""
    values = list(cbor2.loads(item.encode()))
    if isinstance(values[field], list) and field != 13:
        values[field][0] = value
    else:
        values[field] = value
    return cbor2.dumps(values)


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("field", range(1, FIELDS))
def test_no_value_in_a_block_is_of_another_kind_or_range(field: int, value: object) -> None:
    with pytest.raises(EncodingError):
        decode_block(edited(chain(1)[0], field, value))


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_no_message_of_odd_values_ends_a_node(value: object) -> None:
    net = Net()
    net.settle(6)
    node = net.nodes[OTHER_HOUSE]
    one, two, three = chain(3)
    said = cbor2.dumps(["meterd/digest/v1", "x", value])
    messages = [
        cbor2.dumps(["meterd/sealed/v1", value, []]),
        cbor2.dumps(["meterd/sealed/v1", [value]]),
        cbor2.dumps(["meterd/attest/v1", value]),
        cbor2.dumps(["meterd/certificate/v1", value]),
        cbor2.dumps(["meterd/evidence-seals/v1", value]),
        seal(said, key("nobody"), GENESIS.hash),
    ]
    for field in (4, 6, 7, 8, 9, 14):
        run = (one.encode(), edited(two, field, value), three.encode())
        sealed_run = tuple(seal(payload, key(f"{HOUSE} seals"), GENESIS.hash) for payload in run)
        messages.append(blocks_message(sealed_run))
    for message in messages:
        node.gossip._senders.clear()
        node.feed(Received(HOUSE, message))
    assert node.gossip.counts["refused"] == len(messages)
    assert "misjudged" not in node.gossip.counts
    assert node.gossip.chains[HOUSE, 1].height == 1


def test_a_mistake_of_ours_that_somebody_finds_ends_no_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()
    node = net.nodes[OTHER_HOUSE]

    def mistaken(*_: object) -> None:
        raise IndexError

    monkeypatch.setattr(node.gossip.judging, "take", mistaken)
    node.feed(Received(HOUSE, SEALED[0]))
    assert node.gossip.counts["misjudged"] == 1
    assert [told.event for told in node.told if told.level == 2] == ["misjudged"]


def test_evidence_that_does_not_stand_ends_no_node() -> None:
    node = Net().nodes[OTHER_HOUSE]
    for evidence in (b"", bytes(100_000), b"\x83\x01\x02\x03"):
        node.feed(Assembled(evidence))
    assert node.gossip.counts == {"no evidence": 3}
    with pytest.raises((BlockRejectedError, EncodingError)):
        node.gossip._take_evidence(b"")


def test_each_authority_that_lies_is_accused() -> None:
    net = Net()
    net.settle(6)
    net.broker = lambda _: []
    node, liars = net.nodes[FEEDER], (REGULATOR, OTHER_HOUSE)
    one, two = chain(2)
    for each in (one, two):
        node.feed(Received(HOUSE, sealed(each)))
    for liar in liars:
        voting, previous = key(f"{liar} votes"), bytes(32)
        for number, what in enumerate((Leaf(HOUSE, 1, 1, bytes([7] * 32), 7), leaf(two)), start=1):
            header = Header(1, number, previous, WALL_S, OPEN)
            batch, message = make_batch(header, [what], voting, GENESIS.hash)
            previous = batch.hash
            node.feed(Received(liar, message))
    assert sorted(one.name for one in node.gossip.accused.values()) == sorted(liars)
    assert len(node.gossip.evidence) == len(liars)


def test_a_liar_that_claims_a_later_batch_of_ours_delays_us_a_while_and_no_longer() -> None:
    net = Net()
    net.settle(6)
    net.seal(*SEALED)
    net.settle(4)
    node = net.nodes[FEEDER]
    last = node.gossip.sequences[node.gossip.kid]

    def lies(posts: list[Post]) -> Iterable[Post]:
        for sender, topic, message in posts:
            if (sender, topic) != (HOUSE, f"answer/{FEEDER}") or not message.startswith(b"\xd2"):
                yield sender, topic, message
                continue
            said = open_said(message, lambda name: public(f"{name} votes"), GENESIS.hash)
            if isinstance(said.body, OwnBatch):
                body = said.body._replace(number=10**6, batch_hash=bytes([1] * 32))
                lie = say(said._replace(body=body), key(f"{HOUSE} votes"), GENESIS.hash)
                yield sender, topic, lie
            else:
                yield sender, topic, message

    net.broker = lies
    node.start()
    begun_ms = net.mono_ms
    while not node.gossip.booted:
        net.settle(1, 1000)
        assert net.mono_ms - begun_ms < BOOT_GRACE_MS + 5000
    assert net.mono_ms - begun_ms >= BOOT_GRACE_MS
    assert node.gossip.sequences[node.gossip.kid].number >= last.number


def test_a_history_that_is_certified_after_its_blocks_came_is_adopted() -> None:
    net = Net()
    net.settle(6)
    net.broker = lambda _: []
    node = net.nodes[FEEDER]
    ours = chain(1)[0]
    theirs = ours._replace(flags=ours.flags ^ 2)
    node.feed(Received(HOUSE, sealed(ours)))
    node.feed(Received(HOUSE, sealed(theirs)))
    for voter in (HOUSE, OTHER_HOUSE, REGULATOR):
        header = Header(1, 1, bytes(32), WALL_S, OPEN)
        _, message = make_batch(header, [leaf(theirs)], key(f"{voter} votes"), GENESIS.hash)
        node.feed(Received(voter, message))
        assert node.gossip.chains[HOUSE, 1].certified == (voter == REGULATOR)
    held = node.gossip.chains[HOUSE, 1]
    assert (held.head_hash, held.certified) == (theirs.hash, 1)


# --- a liar that closes an epoch towards some alone -----------------------------------------------


def _batch(by: str, number: int, previous: bytes, closing: int, *leaves: Leaf) -> bytes:
    header = Header(1, number, previous, WALL_S, closing)
    return make_batch(header, leaves, key(f"{by} votes"), GENESIS.hash)[1]


def _line(by: str, length: int, *, mark: int) -> list[bytes]:
    """Return batches of a voter, each linked to the one before, of which the last closes."""
    made, previous = list[bytes](), bytes(32)
    for number in range(1, length + 1):
        here = leaf(chain(2, OTHER_HOUSE)[mark])
        last = number == length
        made.append(_batch(by, number, previous, CLOSED if last else OPEN, here))
        previous = open_batch(made[-1], GENESIS.hash).hash
    return made


@pytest.mark.parametrize("shown", [1, 2, 5], ids=["as long", "shorter", "longer"])
def test_an_epoch_that_a_liar_closed_in_another_sequence_is_closed_for_all(shown: int) -> None:
    """It had shown us other batches, so that its closing one follows none of ours."""
    net = Net()
    regulator = net.nodes[REGULATOR]
    for message in _line(FEEDER, shown + 1, mark=0)[:shown]:
        regulator.feed(Received(FEEDER, message))
    order, proof = ordered(NEXT_EPOCH).certified[0]
    for by in (HOUSE, OTHER_HOUSE):
        regulator.feed(Received(by, _batch(by, 1, bytes(32), CLOSED)))
    regulator.feed(Received(GRID, order))
    regulator.feed(Received(GRID, proof.encode()))
    assert regulator.gossip.roster.committee.epoch == 2
    assert regulator.gossip.epoch == 1
    real = _line(FEEDER, 3, mark=1)
    for message in real[shown:] if shown < len(real) else real[-1:]:
        assert regulator.gossip.epoch == 1
        regulator.feed(Received(FEEDER, message))
    assert regulator.gossip.epoch == 2
    assert [each.event for each in regulator.told].count("closed_beside") == 1
    regulator.start()
    assert regulator.gossip.epoch == 2
    assert len(regulator.gossip.closed[1]) == 3, "it outlasts a start"


def test_closings_of_an_honest_voter_wait_for_what_stands_before_them() -> None:
    """What it has locked is there: to enter an epoch without it would be to forget it."""
    net = Net()
    regulator = net.nodes[REGULATOR]
    order, proof = ordered(NEXT_EPOCH).certified[0]
    regulator.feed(Received(GRID, order))
    regulator.feed(Received(GRID, proof.encode()))
    for by in (HOUSE, OTHER_HOUSE):
        regulator.feed(Received(by, _batch(by, 1, bytes(32), CLOSED)))
    first, second = _line(FEEDER, 2, mark=0)
    regulator.feed(Received(FEEDER, second))
    assert regulator.gossip.epoch == 1
    regulator.feed(Received(FEEDER, first))
    assert regulator.gossip.epoch == 2


def test_whoever_is_left_behind_in_an_epoch_asks_who_has_closed_it() -> None:
    net = Net()
    regulator, house = net.nodes[REGULATOR], net.nodes[HOUSE]
    net.settle(6)
    net.broker = lambda _: []
    order, proof = ordered(NEXT_EPOCH).certified[0]
    for node in (regulator, house):
        node.feed(Received(GRID, order))
        node.feed(Received(GRID, proof.encode()))
    for wait_ms, asked in ((0, 0), (ANSWER_MS - 1, 0), (1, 1), (ANSWER_MS, 2)):
        net.mono_ms += wait_ms
        regulator.feed(Tick())
        questions = [
            question
            for topic, message in regulator.sent
            if topic.startswith("fetch/")
            for body in (open_said(message, lambda by: public(f"{by} votes"), GENESIS.hash).body,)
            if isinstance(body, Fetch)
            for question in body.questions
            if question == AskClosings(1)
        ]
        assert len(questions) == asked
    before = len(house.sent)
    fetch = Fetch(HOUSE, (AskClosings(1),))
    said = Said(REGULATOR, 1 << 62, fetch)
    house.feed(Received(REGULATOR, say(said, key(f"{REGULATOR} votes, 2"), GENESIS.hash)))
    (answer,) = (m for topic, m in house.sent[before:] if topic == f"answer/{REGULATOR}")
    assert open_batch(answer, GENESIS.hash).header.closing == CLOSED


def test_claims_of_those_that_never_answer_leave_room_for_who_does() -> None:
    net = Net()
    net.settle(2)
    asking, held = net.nodes[REGULATOR].gossip.asking, net.nodes[REGULATOR].gossip.hold((HOUSE, 1))
    for at in range(CLAIMS_MAX):
        asking.claim(held, f"silent-{at}", 9)
    held.asked = ("silent-3", 0)
    asking.claim(held, FEEDER, 9)
    assert len(held.wanted) == CLAIMS_MAX
    assert FEEDER in held.wanted
    assert "silent-3" not in held.wanted


@pytest.mark.parametrize("epoch", [0, 2, 2**63, 2**64 - 1])
def test_a_question_for_an_epoch_that_is_none_ends_no_node(epoch: int) -> None:
    net = Net()
    net.settle(6)
    house, before = net.nodes[HOUSE], len(net.nodes[HOUSE].sent)
    said = Said(REGULATOR, 1 << 62, Fetch(HOUSE, (AskClosings(epoch),)))
    house.feed(Received(REGULATOR, say(said, key(f"{REGULATOR} votes"), GENESIS.hash)))
    assert house.sent[before:] == []


def test_a_liar_that_closes_an_epoch_often_fills_no_card_and_hides_no_other_closing() -> None:
    net = Net()
    node = net.nodes[REGULATOR]
    for by in (HOUSE, OTHER_HOUSE):
        node.feed(Received(by, _batch(by, 1, bytes(32), CLOSED)))
    for at in range(200):
        lie = Leaf(HOUSE, 1, at + 1, bytes(32), 7)
        node.feed(Received(FEEDER, _batch(FEEDER, 1, bytes(32), CLOSED, lie)))
    ((rows,),) = node.store._rows("SELECT count(*) FROM batch WHERE beside")
    assert rows <= STRAYS_MAX
    closings = proofs.answers(node.store, SendClosings(HOUSE, 1), node.gossip.roster)
    voters = [open_batch(message, GENESIS.hash).kid for message in closings]
    assert len(voters) == len(set(voters)) == 3


def test_a_vote_of_a_later_epoch_takes_no_lock_of_an_earlier_one_back() -> None:
    """One of just enough that have closed it signs a block that nobody will ever see."""
    changed = tuple(
        replace(each, voting_key=public(f"{HOUSE} votes, 2")) if each.name == HOUSE else each
        for each in NODES
    )
    net = Net()
    node = net.nodes[REGULATOR]
    order, proof = ordered(NEXT_EPOCH._replace(nodes=changed)).certified[0]
    node.feed(Received(GRID, order))
    node.feed(Received(GRID, proof.encode()))
    lines = {by: _batch(by, 1, bytes(32), CLOSED) for by in (HOUSE, OTHER_HOUSE, FEEDER)}
    for by, message in lines.items():
        node.feed(Received(by, message))
    assert node.gossip.epoch == 2
    held = node.gossip.hold((HOUSE, 1))
    assert node.gossip.voting._locks_adopted(held)
    last = open_batch(lines[FEEDER], GENESIS.hash).hash
    header = Header(2, 2, last, WALL_S, OPEN)
    lie = Leaf(HOUSE, 1, 10**6, bytes(32), 7)
    node.feed(Received(FEEDER, make_batch(header, [lie], key(f"{FEEDER} votes"), GENESIS.hash)[1]))
    assert held.ahead
    assert node.gossip.voting._locks_adopted(held)


# --- a liar that wants much, or fills what it can -------------------------------------------------


def _asks(number: int, *questions: Question) -> bytes:
    said = Said(HOUSE, (1 << 62) + number, Fetch(REGULATOR, questions))
    return say(said, key(f"{HOUSE} votes"), GENESIS.hash)


@pytest.mark.parametrize(
    "question",
    [
        pytest.param(AskBlocks(OTHER_HOUSE, 1, 1, 1000), id="blocks"),
        pytest.param(AskBatches(key_id(public(f"{FEEDER} votes")), 1, 1000), id="batches"),
        pytest.param(AskOwnBatch(bytes(8), bytes(16)), id="signatures"),
    ],
)
def test_whoever_asks_for_all_at_once_gets_no_more_than_its_share(question: Question) -> None:
    net = Net()
    net.settle(6)
    net.seal(*(sealed(each) for each in chain(40, OTHER_HOUSE)), name=OTHER_HOUSE)
    net.settle(4)
    net.broker = lambda _: []
    node, pace = net.nodes[REGULATOR], net.settings
    asked = answered = 0
    for second in (0, 1):
        net.mono_ms += 1000 * second
        for _ in range(100):
            message = _asks(asked, *[question] * ASKED_MAX)
            asked += ASKED_MAX
            for each in node.gossip.step(Received(HOUSE, message), net.now):
                answered += isinstance(each, Load | SendBatches)
                answered += isinstance(each, Send) and each.topic.startswith("answer/")
        share = pace.answers_s_max * (2 + second)
        assert share - 2 * cost_of(question) < answered * cost_of(question) <= share
    assert node.gossip.counts["unanswered"] == asked - answered


def test_attestations_of_what_nobody_holds_fill_no_card() -> None:
    net = Net(settings=PACED)
    node = net.nodes[REGULATOR]
    previous = bytes(32)
    node.gossip.voting._credit[key_id(public(f"{FEEDER} votes"))] = 100
    for number in range(1, 200):
        leaves = [
            Leaf(name, 1, number, bytes([number] * 32), 7) for name in (GRID, HOUSE, OTHER_HOUSE)
        ]
        message = _batch(FEEDER, number, previous, OPEN, *leaves)
        previous = open_batch(message, GENESIS.hash).hash
        node.feed(Received(FEEDER, message))
    ((rows,),) = node.store._rows("SELECT count(*) FROM leaf")
    assert rows == 99
    assert node.gossip.counts["uncertain"] > 0


def test_who_is_ahead_of_us_has_its_credit_back_once_its_blocks_are_here() -> None:
    net = Net()
    node, kid = net.nodes[REGULATOR], key_id(public(f"{FEEDER} votes"))
    previous, blocks = bytes(32), chain(9)
    for number, each in enumerate(blocks, start=1):
        message = _batch(FEEDER, number, previous, OPEN, leaf(each))
        previous = open_batch(message, GENESIS.hash).hash
        node.feed(Received(FEEDER, message))
    assert node.gossip.voting._credit[kid] == CREDIT_MAX - len(blocks)
    for each in blocks:
        node.feed(Received(HOUSE, sealed(each)))
    assert node.gossip.voting._credit[kid] == CREDIT_MAX


def test_who_says_again_what_it_has_attested_is_refused() -> None:
    net = Net()
    node, here = net.nodes[REGULATOR], chain(1)[0]
    node.feed(Received(HOUSE, sealed(here)))
    first = _batch(FEEDER, 1, bytes(32), OPEN, leaf(here))
    again = _batch(FEEDER, 2, open_batch(first, GENESIS.hash).hash, OPEN, leaf(here))
    node.feed(Received(FEEDER, first))
    node.feed(Received(HOUSE, again))
    assert node.gossip.counts == {"said again": 1}, "who passes it on is not to blame"
    node.feed(Received(FEEDER, again))
    assert node.gossip.counts == {"said again": 1, "refused": 1}
    ((rows,),) = node.store._rows("SELECT count(*) FROM batch WHERE number = 2")
    assert rows == 0


def test_our_meter_gets_one_answer_of_each_voter_and_none_that_it_did_not_ask_for() -> None:
    net = Net()
    node, nonce = net.nodes[HOUSE], bytes(range(16))
    node.feed(Asked(HOUSE, nonce, 0, 0))

    def delivered(by: str, counter: int, asked: bytes = nonce) -> int:
        body = HeadHeld(1, (0, GENESIS.hash), HOUSE, asked, 1, 0, bytes(32))
        message = say(Said(by, counter, body), key(f"{by} votes"), GENESIS.hash)
        effects = node.gossip.step(Received(by, message), net.now)
        return sum(isinstance(each, Deliver) for each in effects)

    assert delivered(FEEDER, 1, bytes(16)) == 0
    assert delivered(GRID, 1) == 0, "it does not vote"
    assert delivered(FEEDER, 2) == 1
    assert delivered(FEEDER, 3) == 0
    assert delivered(REGULATOR, 1) == 1
    for number in range(QUESTIONS_KEPT):
        node.feed(Asked(HOUSE, bytes([number] * 16), 0, 0))
    assert delivered(OTHER_HOUSE, 1) == 0, "that question is long over"


def test_attestations_that_come_after_their_blocks_are_long_certified_cost_nothing() -> None:
    """Its messages were lost for long, while all else went on: they come in order, and count."""
    net = Net()
    node, kid = net.nodes[OTHER_HOUSE], key_id(public(f"{REGULATOR} votes"))
    node.gossip.voting._credit[kid] = 10
    blocks, last = chain(HASHES_KEPT * 2), {by: (0, bytes(32)) for by in (FEEDER, HOUSE, REGULATOR)}

    def batch_of(by: str, here: Block) -> bytes:
        number, previous = last[by]
        message = _batch(by, number + 1, previous, OPEN, leaf(here))
        last[by] = number + 1, open_batch(message, GENESIS.hash).hash
        return message

    late = []
    for each in blocks:
        node.feed(Received(HOUSE, sealed(each)))
        late.append(batch_of(REGULATOR, each))
    node.feed(Tick())
    for by in (FEEDER, HOUSE):
        node.feed(Received(by, batch_of(by, blocks[-1])))
    node.feed(Received(REGULATOR, late[0]))
    node.gossip.chains[HOUSE, 1].certified = len(blocks)
    for message in late[1:]:
        node.feed(Received(REGULATOR, message))
    assert node.gossip.sequences[kid].number == len(blocks)
    assert "uncertain" not in node.gossip.counts


def test_closing_batches_name_each_chain_a_few_times_at_most() -> None:
    """Once is enough; whose card was put back between two of them begins anew."""
    net = Net()
    node, kid = net.nodes[REGULATOR], key_id(public(f"{FEEDER} votes"))
    previous, kept = bytes(32), 0
    for number in range(1, 3 * SERIES_MAX):
        lie = Leaf((GRID, HOUSE)[number % 2], 1, 1 << 40, bytes(32), 7)
        message = _batch(FEEDER, number, previous, CLOSING, lie)
        previous = open_batch(message, GENESIS.hash).hash
        node.feed(Received(FEEDER, message))
        kept = node.gossip.sequences[kid].number
    assert kept == 2 * SERIES_MAX - 1
    assert node.gossip.counts["said again"] == 1


def test_a_digest_that_names_one_chain_often_is_one_question() -> None:
    net = Net()
    net.settle(6)
    node = net.nodes[REGULATOR]
    node.feed(Received(HOUSE, sealed(chain(1)[0])))
    heads = tuple((HOUSE, 1, 1, bytes([at] * 32)) for at in range(HEADS_MAX))
    for counter in (1, 2):
        before = len(node.sent)
        digest = Said(HOUSE, (1 << 62) + counter, Digest((0, GENESIS.hash), heads, (), ()))
        node.feed(Received(HOUSE, say(digest, key(f"{HOUSE} votes"), GENESIS.hash)))
        asked = [topic for topic, _ in node.sent[before:] if topic.startswith("fetch/")]
        assert len(asked) == (1 if counter == 1 else 0)
