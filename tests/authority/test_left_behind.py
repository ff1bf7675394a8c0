"""What a liar tries to leave honest nodes behind for good: they come after, by what others hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.authority.attestation import CLOSED, OPEN, Header, Leaf, make_batch
from meterd.authority.certificate import seals_evidence
from meterd.authority.effects import Received, Sealed
from meterd.ledger.encoding import seal
from meterd.ledger.order import ForkResolve, Interval, RosterChange
from tests.authority.examples import (
    GENESIS,
    GRID,
    HOUSE,
    OTHER_HOUSE,
    VOTERS,
    block,
    chain,
    key,
    leaf,
    node,
    order,
    public,
    sealed,
)
from tests.net import FEEDER, REGULATOR, WALL_S, Net

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterd.ledger.block import Block
    from meterd.ledger.order import Change
    from tests.net import Post

BLOCKS = chain(6)
SEALED = [sealed(each) for each in BLOCKS]
TWIN = BLOCKS[3]._replace(fingerprint=bytes([9] * 32))


class Liar:
    """A voter whose hand is ours."""

    def __init__(self, net: Net, name: str) -> None:
        core = net.nodes.pop(name).gossip
        self._net, self._name = net, name
        last = core.sequences[core.kid]
        self._number, self._previous = last.number, last.batch_hash

    def votes(self, leaves: Iterable[Leaf], *to: str, closing: int = OPEN) -> None:
        self._number += 1
        header = Header(1, self._number, self._previous, WALL_S, closing)
        voting = key(f"{self._name} votes")
        batch, message = make_batch(header, list(leaves), voting, GENESIS.hash)
        self._previous = batch.hash
        self.says(message, *to)

    def says(self, message: bytes, *to: str) -> None:
        for name in to:
            self._net.nodes[name].feed(Received(self._name, message))


def resolved(base: Block) -> ForkResolve:
    energy = tuple(each._replace(first_uj=each.last_uj) for each in base.energy)
    keys = public(f"{HOUSE} seals, 2")
    return ForkResolve(HOUSE, 1, base.height, base.hash, 2, keys, energy)


def give(net: Net, change: Change) -> None:
    """Let the distributor give an order, as the network now is."""
    made = order(change, net.nodes[GRID].gossip.roster)
    message = seal(made.encode(), key(f"{GRID} seals"), GENESIS.hash)
    net.nodes[GRID].feed(Sealed(message))


def in_force(net: Net) -> set[int]:
    return {each.gossip.roster.head.height for each in net.nodes.values()}


def settled() -> Net:
    net = Net()
    net.settle(6)
    net.seal(*SEALED[:3])
    net.settle(3)
    return net


def test_of_a_frozen_chain_too_what_others_certify_is_fetched() -> None:
    """Proof of two blocks 4 comes to one before the block 4 that the others have certified."""
    net = settled()
    liar = Liar(net, HOUSE)
    late = net.nodes[REGULATOR]
    late.feed(Received(HOUSE, seals_evidence(SEALED[3], sealed(TWIN))))
    slow, net.queue = net.queue, []
    others = (FEEDER, OTHER_HOUSE, GRID)
    liar.says(SEALED[3], *others)
    posts, net.queue = net.queue, []
    for sender, topic, message in posts:
        for name in others:
            if name != sender and topic == "attest":
                net.nodes[name].feed(Received(sender, message))
    liar.votes([leaf(BLOCKS[3])], *others)
    assert {net.nodes[name].certified() for name in others} == {4}
    assert late.certified() == 3
    net.queue = slow + net.queue
    net.settle(6)
    held = late.gossip.chains[HOUSE, 1]
    assert (held.height, held.certified, bool(held.frozen)) == (4, 4, True)
    give(net, resolved(BLOCKS[3]))
    net.settle(6)
    assert in_force(net) == {1}


def test_a_history_that_lost_is_left_where_others_attest_the_other_before_its_blocks_come() -> None:
    net = settled()
    late = net.nodes[REGULATOR]

    def without_blocks(posts: list[Post]) -> Iterable[Post]:
        for sender, topic, message in posts:
            if topic == "block":
                for name, each in net.nodes.items():
                    if name not in {sender, REGULATOR}:
                        each.feed(Received(sender, message))
            elif topic != f"answer/{REGULATOR}" or b"meterd/block/v1" not in message:
                yield sender, topic, message

    net.broker = without_blocks
    net.seal(*SEALED[3:5])
    for _ in range(10):
        net.hop()
    assert late.certified() == 3
    for message in (sealed(TWIN), sealed(block(TWIN))):
        late.feed(Received(HOUSE, message))
    del net.nodes[HOUSE]
    net.broker = lambda posts: posts
    net.settle(6)
    held = late.gossip.chains[HOUSE, 1]
    assert (held.head_hash, held.certified) == (BLOCKS[4].hash, 5)
    give(net, resolved(BLOCKS[4]))
    net.settle(6)
    assert in_force(net) == {1}


@pytest.mark.parametrize("lies", [True, False])
def test_a_voter_that_an_order_removes_is_heard_until_it_has_closed(*, lies: bool) -> None:
    """It is cut off meanwhile; of who closed, one is a liar, whose locks extend nothing."""
    net = settled()
    liar = Liar(net, FEEDER)
    cut_off = net.nodes.pop(REGULATOR)
    nodes = [node(name) for name in VOTERS if name != REGULATOR]
    change = RosterChange(2, (*nodes, node(GRID, votes=1)))
    made = order(change)
    give(net, change)
    for _ in range(10):
        net.hop()
    liar.votes([leaf(made)], *net.nodes)
    locks = [Leaf(name, 1, 1 << 40, bytes([7] * 32), 7) for name in (GRID, HOUSE, OTHER_HOUSE)]
    liar.votes(locks if lies else [leaf(BLOCKS[2])], *net.nodes, closing=CLOSED)
    net.settle(2)
    assert {each.gossip.epoch for each in net.nodes.values()} == {2}
    net.nodes[REGULATOR] = cut_off
    net.settle()
    net.seal(*SEALED[3:6])
    net.settle()
    del net.nodes[REGULATOR]
    assert cut_off.gossip.roster.head.height == 1
    assert {each.certified() for each in net.nodes.values()} == {6}
    give(net, Interval(900))
    net.settle()
    assert in_force(net) == {2}
