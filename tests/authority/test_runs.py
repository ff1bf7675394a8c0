"""Blocks that come in one message: taken by the last seal, the other seals verified in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.authority.attestation import CHECKS_ALL
from meterd.authority.effects import Certify, Now, Received, Tick
from meterd.authority.messages import AskBlocks, Fetch, Said, blocks_message, open_said, say
from meterd.authority.witness import HASHES_KEPT, UNSEALED, Held, judge_block, judge_run
from meterd.device import proofs
from meterd.errors import BlockRejectedError
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import seal, take_apart
from tests.authority.examples import GENESIS, HOUSE, OTHER_HOUSE, ROSTER, block, chain, key, sealed
from tests.net import FEEDER, REGULATOR, WALL_S, Member, Net

if TYPE_CHECKING:
    from collections.abc import Sequence

LENGTH = 8
CHAIN = (HOUSE, 1)
SEALED = tuple(sealed(each) for each in chain(LENGTH))
NOW = Now(0, WALL_S, synchronised=True)
RUN_MS = 2500


def spoilt(message: bytes) -> bytes:
    """Return the same block with a seal that does not hold."""
    return message[:-1] + bytes([message[-1] ^ 1])


def only(name: str) -> tuple[Net, Member]:
    """Return a node that hears nobody but the test, and knows what it has voted before."""
    net = Net()
    net.settle(6)
    net.queue.clear()
    net.broker = lambda _: []
    return net, net.nodes[name]


def attested(member: Member) -> list[tuple[str, int]]:
    held = member.gossip.chains.get(CHAIN)
    vote = held.votes.get(member.gossip.kid) if held else None
    return [(vote.leaf.meter, vote.leaf.height)] if vote else []


def asked_of(member: Member) -> list[AskBlocks]:
    asked = []
    for topic, message in member.sent:
        if topic.startswith("fetch/"):
            body = open_said(message, ROSTER.peer_key, GENESIS.hash).body
            assert isinstance(body, Fetch)
            asked += [question for question in body.questions if isinstance(question, AskBlocks)]
    return asked


def served(member: Member, first: int, last: int) -> list[bytes]:
    """Return the blocks that a node sends who asks for these."""
    before = len(member.sent)
    fetch = Fetch(member.name, (AskBlocks(*CHAIN, first, last),))
    said = Said(FEEDER, (1 << 62) + before, fetch)
    member.feed(Received(FEEDER, say(said, key(f"{FEEDER} votes"), GENESIS.hash)))
    return [message for topic, message in member.sent[before:] if topic == f"answer/{FEEDER}"]


# --- what a run is --------------------------------------------------------------------------------


@given(st.integers(1, LENGTH), st.data())
def test_a_run_is_judged_as_its_blocks_are_one_by_one(last: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, last))
    one_by_one = ROSTER.open_chain(CHAIN)
    for message in SEALED[: first - 1]:
        parts = take_apart(message)
        one_by_one, _ = judge_block(decode_block(parts.payload), parts, one_by_one, ROSTER, NOW)
    before = one_by_one
    for message in SEALED[first - 1 : last]:
        parts = take_apart(message)
        one_by_one, _ = judge_block(decode_block(parts.payload), parts, one_by_one, ROSTER, NOW)
    run = [take_apart(message) for message in SEALED[first - 1 : last]]
    together, added, checks = judge_run(run, before, ROSTER, NOW)
    assert together.head == one_by_one.head
    assert [block_hash for block_hash, _ in added] == [
        each.hash for each in chain(LENGTH)[first - 1 : last]
    ]
    assert checks == CHECKS_ALL


@pytest.mark.parametrize(
    "run",
    [
        pytest.param((*SEALED[:4], spoilt(SEALED[4])), id="its last seal is bad"),
        pytest.param((SEALED[0], *SEALED[2:5]), id="a block is lacking"),
        pytest.param(SEALED[1:5], id="it does not follow"),
        pytest.param(
            (*SEALED[:2], sealed(chain(LENGTH)[2]._replace(flags=99)), *SEALED[3:5]),
            id="a block breaks a rule",
        ),
        pytest.param((*SEALED[:4], sealed(chain(5, OTHER_HOUSE)[4])), id="another meter's block"),
    ],
)
def test_no_run_is_taken_where(run: Sequence[bytes]) -> None:
    parts = [take_apart(message) for message in run]
    with pytest.raises(BlockRejectedError):
        judge_run(parts, ROSTER.open_chain(CHAIN), ROSTER, NOW)


# --- at a node ------------------------------------------------------------------------------------


def test_a_run_is_held_at_once_and_attested_once_each_seal_is_verified() -> None:
    net, regulator = only(REGULATOR)
    regulator.feed(Received(FEEDER, blocks_message(SEALED)))
    held = regulator.gossip.chains[CHAIN]
    assert (held.height, held.sealed_to) == (LENGTH, 0)
    assert attested(regulator) == []
    assert served(regulator, 1, LENGTH) == []
    assert regulator.gossip.busy
    net.mono_ms += RUN_MS
    regulator.feed(Tick())
    assert held.sealed
    regulator.feed(Tick())
    assert attested(regulator) == [(HOUSE, LENGTH)]
    assert served(regulator, 1, LENGTH) == [blocks_message(SEALED)]
    assert not regulator.gossip.judging.runs.unsealed


def test_a_bad_seal_in_a_run_is_asked_for_until_a_good_one_comes() -> None:
    net, regulator = only(REGULATOR)
    run = [*SEALED]
    run[2] = spoilt(run[2])
    regulator.feed(Received(FEEDER, blocks_message(tuple(run))))
    held = regulator.gossip.chains[CHAIN]
    for _ in range(4):
        net.mono_ms += RUN_MS
        regulator.feed(Tick())
    assert (held.height, held.sealed_to) == (LENGTH, 2)
    regulator.gossip.voting.mark(CHAIN)  # as when an epoch begins
    regulator.feed(Tick())
    assert attested(regulator) == []
    assert served(regulator, 1, LENGTH) == [blocks_message(SEALED[:2])]
    asked = [question for question in asked_of(regulator) if question.first == 3]
    assert len(asked) == 3
    assert set(asked) == {AskBlocks(*CHAIN, 3, 3)}
    regulator.feed(Received(FEEDER, blocks_message((spoilt(SEALED[2]),))))  # that one again
    assert held.sealed_to == 2
    regulator.feed(Received(FEEDER, blocks_message((SEALED[2],))))
    regulator.feed(Tick())
    regulator.feed(Tick())
    assert attested(regulator) == [(HOUSE, LENGTH)]
    assert served(regulator, 1, LENGTH) == [blocks_message(SEALED)]


def test_whoever_brought_a_bad_seal_is_blamed_and_not_who_brought_what_follows() -> None:
    net, regulator = only(REGULATOR)
    liar = blocks_message((*map(spoilt, SEALED[:2]), SEALED[2]))
    regulator.feed(Received(FEEDER, liar))
    regulator.feed(Received(OTHER_HOUSE, blocks_message(SEALED[3:6])))
    assert regulator.gossip.chains[CHAIN].height == 6
    net.mono_ms += RUN_MS
    regulator.feed(Tick())
    senders = regulator.gossip._senders
    assert (senders[FEEDER].faults, senders[OTHER_HOUSE].faults) == (1, 0)


def test_a_chain_does_not_grow_behind_a_block_whose_seal_is_lacking() -> None:
    """Its meter may have kept that seal to itself for ever: nothing of it could be certified."""
    net, regulator = only(REGULATOR)
    regulator.feed(Received(FEEDER, blocks_message((*SEALED[:1], spoilt(SEALED[1]), SEALED[2]))))
    net.mono_ms += RUN_MS
    regulator.feed(Tick())
    held = regulator.gossip.chains[CHAIN]
    assert held.lacking
    regulator.feed(Received(FEEDER, blocks_message(SEALED[3:6])))
    regulator.feed(Received(FEEDER, SEALED[3]))
    assert held.height == 3
    regulator.feed(Received(FEEDER, SEALED[1]))
    regulator.feed(Received(FEEDER, blocks_message(SEALED[3:6])))
    assert held.height == 6


@pytest.mark.parametrize("bad", [0, 2, 5])
def test_of_a_run_with_a_block_in_another_spelling_those_before_it_are_taken(bad: int) -> None:
    payload = chain(LENGTH)[bad].encode()
    longer = payload[:-1] + bytes([0x18, payload[-1]])  # the last number in two bytes
    run = [*SEALED]
    run[bad] = seal(longer, key(f"{HOUSE} seals"), GENESIS.hash)
    _, regulator = only(REGULATOR)
    regulator.feed(Received(FEEDER, blocks_message(tuple(run))))
    assert regulator.gossip.chains[CHAIN].height == bad if bad else not regulator.kept
    assert regulator.gossip.counts == {"refused": 1}


def test_after_a_restart_the_seals_that_were_not_verified_still_are_not() -> None:
    net, regulator = only(REGULATOR)
    run = (*SEALED[:5], spoilt(SEALED[5]), *SEALED[6:])
    regulator.feed(Received(FEEDER, blocks_message(run)))
    net.mono_ms += RUN_MS
    regulator.feed(Tick())
    assert regulator.gossip.chains[CHAIN].sealed_to == 5
    regulator.start()
    held = regulator.gossip.chains[CHAIN]
    assert (held.height, held.sealed_to) == (LENGTH, 5)
    assert served(regulator, 1, LENGTH) == [blocks_message(SEALED[:5])]
    rows = regulator.store._rows("SELECT height, checks FROM block ORDER BY height")
    assert rows == [
        (height, CHECKS_ALL if height <= 5 else CHECKS_ALL | UNSEALED)
        for height in range(1, LENGTH + 1)
    ]


def test_a_block_with_a_seal_that_was_not_verified_convicts_nobody() -> None:
    net, regulator = only(REGULATOR)
    run = [*SEALED]
    run[2] = spoilt(run[2])
    regulator.feed(Received(FEEDER, blocks_message(tuple(run))))
    twin = sealed(block(chain(2)[1])._replace(flags=chain(3)[2].flags ^ 2))
    regulator.feed(Received(FEEDER, twin))
    net.mono_ms += RUN_MS
    regulator.feed(Tick())
    assert regulator.gossip.evidence == {}
    regulator.feed(Received(FEEDER, blocks_message((SEALED[2],))))
    regulator.feed(Tick())
    regulator.feed(Received(FEEDER, twin))  # now both seals hold
    assert [accused.name for accused in regulator.gossip.accused.values()] == [HOUSE]


def test_no_certificate_is_made_of_a_block_whose_seal_was_not_verified() -> None:
    net = Net()
    net.settle(6)
    net.seal(*SEALED)
    net.settle(6)
    net.assert_certified(LENGTH)
    regulator = net.nodes[REGULATOR]
    roster = regulator.gossip.roster
    assert proofs.certify(regulator.store, Certify(CHAIN, 3), roster)
    regulator.store._db.execute(
        f"UPDATE block SET checks = {CHECKS_ALL | UNSEALED} WHERE height = 3"
    )
    assert proofs.certify(regulator.store, Certify(CHAIN, 3), roster) is None
    assert proofs.certify(regulator.store, Certify(CHAIN, 4), roster)


def test_hashes_of_what_a_quorum_has_attested_are_let_go_at_once() -> None:
    """All are kept while nothing is certified, as after an absence."""
    held = Held((HOUSE, 1), None, bytes(32))
    for height in range(1, 301):
        held.grow(bytes([height % 256] * 32), 1)
    assert len(held.hashes) == 301
    held.certify(100, 1)
    assert min(held.hashes) == 100
    held.certify(300, 1)
    assert min(held.hashes) == 300 - HASHES_KEPT + 1
    held.grow(bytes(32), 1)
    assert (min(held.hashes), len(held.hashes)) == (301 - HASHES_KEPT + 1, HASHES_KEPT)
