"""What a short message may make others do and send: no more than it is worth, and not for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.authority.asking import BESIDE_MS, cost_of
from meterd.authority.attestation import CHECKS_ALL, Leaf
from meterd.authority.certificate import SEALS_CONTEXT, VOTES_CONTEXT
from meterd.authority.effects import Received, Send, Tell, Tick
from meterd.authority.judging import REFUSED_MS
from meterd.authority.messages import (
    ASKED_MAX,
    HEADS_MAX,
    AskBlocks,
    AskEvidence,
    Digest,
    Fetch,
    Refusal,
    Said,
    blocks_message,
    say,
)
from meterd.authority.senders import FAULTS_MAX, PACED
from meterd.device import proofs
from meterd.ledger.block import BLOCK_BYTES_MAX
from meterd.ledger.encoding import MESSAGE_BYTES_MAX, seal
from tests.authority.examples import (
    GENESIS,
    GRID,
    HOUSE,
    OTHER_HOUSE,
    REVOKE,
    certificate,
    chain,
    key,
    leaf,
    sealed,
)
from tests.authority.liar_kit import BLOCKS, SEALED, TWIN, Liar, give, replaced, settled
from tests.net import FEEDER, REGULATOR

if TYPE_CHECKING:
    from meterd.authority.messages import Body
    from tests.net import Member, Net


def alone(net: Net) -> None:
    """From here on nothing that is sent arrives."""
    net.broker = lambda _: []


def says(name: str, counter: int, body: Body) -> bytes:
    """Return what a node says, with a counter above those that it has used."""
    return say(Said(name, (1 << 62) + counter, body), key(f"{name} votes"), GENESIS.hash)


def digest_of(counter: int, *batches: tuple[bytes, int, bytes]) -> bytes:
    return says(HOUSE, counter, Digest((0, GENESIS.hash), (), batches, ()))


def sent(node: Member, name: str, message: bytes) -> list[Send]:
    return [one for one in node.feed(Received(name, message)) if isinstance(one, Send)]


def test_a_digest_makes_one_question_of_all_that_differs() -> None:
    net = settled(PACED)
    alone(net)
    node = net.nodes[REGULATOR]
    core = node.gossip
    mine, other = core.kid, next(kid for kid in core.sequences if kid != core.kid)
    last = {kid: core.sequences[kid].number for kid in (mine, other)}
    same = (mine, last[mine], bytes([1] * 32))
    assert len(sent(node, HOUSE, digest_of(1, *([same] * HEADS_MAX)))) == 1
    assert not sent(node, HOUSE, digest_of(2, same))
    net.mono_ms += BESIDE_MS
    assert len(sent(node, HOUSE, digest_of(3, same))) == 1
    many = [(kid, last[kid], bytes([at] * 32)) for at in range(2, 120) for kid in (mine, other)]
    (question,) = sent(node, HOUSE, digest_of(4, *many))
    assert len(question.message) < 50 * ASKED_MAX
    assert not sent(node, HOUSE, digest_of(5, (bytes(8), 0, bytes([1] * 32))))


def test_other_proof_against_whoever_is_convicted_is_asked_for_once() -> None:
    net = settled(PACED)
    net.nodes.pop(HOUSE)
    alone(net)
    for at, node in enumerate(net.nodes.values(), start=1):  # each is shown another twin
        node.feed(Received(HOUSE, SEALED[3]))
        node.feed(Received(HOUSE, sealed(BLOCKS[3]._replace(fingerprint=bytes([at] * 32)))))
    net.queue.clear()
    net.broker = lambda posts: posts
    assert len({one for node in net.nodes.values() for one in node.gossip.evidence}) == 4
    net.settle(20)
    for node in net.nodes.values():
        assert len(node.gossip.evidence) == 1
        node.sent.clear()
    net.settle(12)
    answers = [
        message
        for node in net.nodes.values()
        for topic, message in node.sent
        if topic.startswith("answer/") and SEALS_CONTEXT.encode() in message[:40]
    ]
    assert not answers


def test_blocks_above_an_end_are_answered_once_a_minute_and_blamed_without_a_seal() -> None:
    net = settled(PACED)
    give(net, REVOKE)
    net.settle(6)
    give(net, replaced(BLOCKS[2]))
    net.settle(6)
    alone(net)
    node = net.nodes[REGULATOR]

    def refused(by: str) -> int:
        """How many of some blocks sealed by a key make it speak."""
        spoken = 0
        for at in range(FAULTS_MAX - 1):
            each = BLOCKS[3]._replace(fingerprint=bytes([at] * 32))
            message = seal(each.encode(), key(by), GENESIS.hash)
            spoken += any(
                isinstance(one, Send | Tell) for one in node.feed(Received(FEEDER, message))
            )
        return spoken

    assert (refused("nobody"), node.gossip.counts["refused"]) == (0, FAULTS_MAX - 1)
    assert (refused(f"{HOUSE} seals"), node.gossip.counts["ended"]) == (1, FAULTS_MAX - 1)
    net.mono_ms += REFUSED_MS
    assert refused(f"{HOUSE} seals") == 1
    assert "quarantined" not in [told.event for told in node.told]


def test_refusals_that_do_not_end_are_not_each_written_down() -> None:
    net = settled(PACED)
    alone(net)
    node = net.nodes[HOUSE]
    node.told.clear()
    for at in range(20):
        body = Refusal(HOUSE, 1, 3, BLOCKS[2].hash, "I do not like it")
        node.feed(Received(FEEDER, says(FEEDER, at, body)))
    assert [told.event for told in node.told] == ["own_block_refused"]
    assert node.gossip.counts["own_refused"] == 20


def long_frozen(net: Net, length: int) -> list[bytes]:
    """Let all hold a chain so long that is frozen at 3; return its blocks."""
    blocks = [sealed(each) for each in chain(length)]
    alone(net)
    for node in net.nodes.values():
        node.feed(Received(HOUSE, blocks[3]))
        node.feed(Received(HOUSE, sealed(TWIN)))
    net.mono_ms += 1000
    for at in range(4, length, 100):
        for node in net.nodes.values():
            node.feed(Received(HOUSE, blocks_message(tuple(blocks[at : at + 100]))))
    for _ in range(5):
        net.mono_ms += 1000
        for node in net.nodes.values():
            node.feed(Tick())
    net.queue.clear()
    return blocks


def test_a_proof_that_no_message_holds_convicts_here_and_is_not_sent() -> None:
    net = settled(PACED)
    liar = Liar(net, HOUSE)
    long_frozen(net, 300)
    node = net.nodes[FEEDER]
    liar.votes([Leaf(HOUSE, 1, 4, bytes([5] * 32), CHECKS_ALL)], FEEDER)
    node.sent.clear()
    liar.votes([leaf(chain(300)[-1])], FEEDER)
    proofs_held = {len(data): one for one, data in node.gossip.evidence.items()}
    assert ("authority", HOUSE) in {(one.role, one.name) for one in node.gossip.accused.values()}
    assert max(proofs_held) > MESSAGE_BYTES_MAX
    assert not [topic for topic, _ in node.sent if topic == "evidence"]
    fetch = Fetch(FEEDER, (AskEvidence(proofs_held[max(proofs_held)]),) * 64)
    assert not sent(node, OTHER_HOUSE, says(OTHER_HOUSE, 1, fetch))
    node.sent.clear()
    for at in range(6, 16):  # convicted: no proof is put together again
        liar.votes([Leaf(HOUSE, 1, 4, bytes([at] * 32), CHECKS_ALL)], FEEDER)
    assert len(node.gossip.evidence) == 2
    for name in (OTHER_HOUSE, REGULATOR, GRID):
        assert not [
            message for _, message in net.nodes[name].sent if VOTES_CONTEXT.encode() in message[:40]
        ]


def test_a_proof_longer_than_evidence_may_be_is_not_put_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proofs, "EVIDENCE_BYTES_MAX", 20_000)
    net = settled(PACED)
    liar = Liar(net, HOUSE)
    long_frozen(net, 100)
    liar.votes([Leaf(HOUSE, 1, 4, bytes([5] * 32), CHECKS_ALL)], FEEDER)
    liar.votes([leaf(chain(100)[-1])], FEEDER)
    accused = net.nodes[FEEDER].gossip.accused.values()
    assert {one.role for one in accused} == {"meter"}


def test_certificates_of_a_chain_that_nobody_disputes_are_not_kept() -> None:
    net = settled(PACED)
    alone(net)
    late, blocks = net.nodes[REGULATOR], chain(20)
    for each in blocks[3:]:
        late.feed(Received(HOUSE, sealed(each)))
    shown = certificate(blocks[10], by=(FEEDER, HOUSE, OTHER_HOUSE), above=blocks[11:]).encode()
    late.feed(Received(FEEDER, shown))
    assert late.store.shown((HOUSE, 1), 4) is None
    late.gossip.chains[HOUSE, 1].frozen = "two blocks 4 are sealed"
    late.feed(Received(FEEDER, shown))
    assert late.store.shown((HOUSE, 1), 4) == shown
    assert late.certified() == 11


def test_a_twin_that_is_held_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    net = settled(PACED)
    alone(net)
    node = net.nodes[REGULATOR]
    node.feed(Received(HOUSE, SEALED[3]))
    node.feed(Received(HOUSE, sealed(TWIN)))
    looked: list[object] = []
    monkeypatch.setattr(node.gossip.judging, "adopt", looked.append)
    for _ in range(5):
        node.feed(Received(OTHER_HOUSE, sealed(TWIN)))
    assert not looked
    node.feed(Received(OTHER_HOUSE, sealed(TWIN._replace(fingerprint=bytes([8] * 32)))))
    assert len(looked) == 1


@pytest.mark.parametrize(
    ("question", "cost"),
    [
        (AskBlocks(HOUSE, 1, 1, 1), 2 * BLOCK_BYTES_MAX),
        (AskBlocks(HOUSE, 1, 9, 1), 2 * BLOCK_BYTES_MAX),
        (AskEvidence(bytes(32)), MESSAGE_BYTES_MAX),
    ],
)
def test_a_question_costs_as_much_as_its_answer_may_be(
    question: AskBlocks | AskEvidence, cost: int
) -> None:
    assert cost_of(question) == cost
