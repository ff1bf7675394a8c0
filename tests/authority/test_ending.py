"""Where a chain ends whose key is revoked: told by the votes of those that attest no more of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.authority.attestation import CHECKS_ALL, Leaf
from meterd.authority.certificate import Accused
from meterd.authority.effects import Received
from meterd.authority.ending import End, EndUnknownError, end_of
from meterd.authority.witness import Twin, Vote
from meterd.ledger.encoding import key_id
from tests.authority.examples import GRID, HOUSE, REVOKE, VOTERS, chain, leaf, order, public, sealed
from tests.net import FEEDER, REGULATOR, Net

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterd.ledger.block import Block

A, L, B, C = VOTERS
assert (A, L, C) == (FEEDER, HOUSE, REGULATOR)
BLOCKS = chain(6)
TWINS = [block._replace(fingerprint=bytes([9] * 32)) for block in BLOCKS]
FOUR, FIVE = BLOCKS[3].hash, BLOCKS[4].hash
OTHER_FOUR = TWINS[3]
OTHER_FIVE = BLOCKS[4]._replace(previous=OTHER_FOUR.hash)


class Case(NamedTuple):
    """What the distributor's node has heard.

    Attributes:
        votes: Each voter's last attestation: of ours, or of the other history.
        heard: Who has attested the order that revokes the key.
        end: Where the chain ends, or what is said.
        branch: What is held of the other history.
        lied: Whom evidence convicts.
    """

    votes: Mapping[str, Block]
    heard: str
    end: End | str
    branch: tuple[Block, ...] = ()
    lied: tuple[str, ...] = ()


ours, other = BLOCKS, {4: OTHER_FOUR, 5: OTHER_FIVE}


def at(height: int) -> End:
    return End(height, BLOCKS[height - 1].hash, elsewhere=False)


CASES = [
    pytest.param(Case({}, "ABC", at(3)), id="nothing above what is certified"),
    pytest.param(Case({}, "AB", "2 voters of epoch 1"), id="half of them are not heard"),
    pytest.param(Case({A: ours[3]}, "ABCL", at(3)), id="one vote, and all are heard"),
    pytest.param(Case({A: ours[3]}, "ABC", at(4)), id="one vote, one not heard and one may lie"),
    pytest.param(Case({L: ours[3]}, "ABC", at(3)), id="the vote of one not heard is counted so"),
    pytest.param(
        Case({A: ours[4], B: ours[3]}, "ABCL", at(4)), id="two votes, of different heights"
    ),
    pytest.param(Case({A: ours[4], B: ours[4]}, "ABCL", at(5)), id="two votes, one may lie"),
    pytest.param(
        Case({A: ours[3]}, "ABC", at(3), lied=(L,)), id="who is not heard is the one that lies"
    ),
    pytest.param(
        Case({A: ours[3], B: ours[3]}, "ABC", at(4), lied=(L,)), id="it lied, two votes besides"
    ),
    pytest.param(
        Case({A: ours[3], B: ours[3]}, "ABC", at(4), lied=(L, A)), id="more have lied than may"
    ),
    pytest.param(
        Case({A: other[4], B: other[4], C: ours[3]}, "ABCL",
             End(4, OTHER_FOUR.hash, elsewhere=True), (OTHER_FOUR,)),
        id="the other history",
    ),
    pytest.param(
        Case({A: other[4], B: other[5], C: ours[3]}, "ABCL",
             End(4, OTHER_FOUR.hash, elsewhere=True), (OTHER_FOUR, OTHER_FIVE)),
        id="the other history, as far as two attest it",
    ),
    pytest.param(
        Case({A: other[4], B: other[4], C: ours[3]}, "ABCL", "blocks up to 4 that voters"),
        id="the other history, whose block is lacking",
    ),
    pytest.param(
        Case({A: other[4], C: ours[3]}, "ABC", "blocks 4 and 4 of two histories", (OTHER_FOUR,)),
        id="either, as one is not heard",
    ),
    pytest.param(
        Case({A: other[4], L: other[4], B: TWINS[5], C: TWINS[5]}, "ABCL",
             "6 of two histories", (OTHER_FOUR, TWINS[5])),
        id="either of two that part at different heights",
    ),
    pytest.param(
        Case({A: other[4], C: ours[3]}, "ABCL", at(3), (OTHER_FOUR,)),
        id="neither, as all are heard",
    ),
]  # fmt: skip


def told(net: Net, case: Case) -> End:
    core = net.nodes[GRID].gossip
    held, letters = core.chains[HOUSE, 1], {"A": A, "B": B, "C": C, "L": L}
    for block in case.branch:
        held.branch[block.height] = Twin(sealed(block), block.hash, block.previous)
    orders = core.chains[GRID, 1]
    orders.votes.clear()
    for letter in case.heard:
        kid = key_id(public(f"{letters[letter]} votes"))
        orders.votes[kid] = Vote(Leaf(GRID, 1, 1, bytes(32), CHECKS_ALL), 9, 1)
    for name, block in case.votes.items():
        held.sort_vote(key_id(public(f"{name} votes")), Vote(leaf(block), 9, 1))
    for name in case.lied:
        kid = key_id(public(f"{name} votes"))
        core.accused["authority", name] = Accused(name, "authority", (HOUSE, 1), 4, kid)
    return end_of(core, held)


@pytest.fixture
def net() -> Net:
    """Return a street where blocks up to 3 are certified, 5 are held, and the key is revoked."""
    net = Net()
    net.settle(6)
    net.seal(*map(sealed, BLOCKS[:3]))
    net.settle(3)
    net.broker = lambda _: []
    for message in map(sealed, BLOCKS[3:5]):
        net.nodes[GRID].feed(Received(HOUSE, message))
    net.broker = lambda posts: posts
    core = net.nodes[GRID].gossip
    core.roster = core.roster.add(order(REVOKE, core.roster))
    return net


@pytest.mark.parametrize("case", CASES)
def test_a_chain_ends_at_the_last_block_that_may_be_certified(net: Net, case: Case) -> None:
    if isinstance(case.end, str):
        with pytest.raises(EndUnknownError, match=case.end):
            told(net, case)
    else:
        assert told(net, case) == case.end
