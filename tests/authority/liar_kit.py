"""A liar whose hand is ours, and a distributor that ends a chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.attestation import OPEN, Header, Leaf, make_batch
from meterd.authority.effects import Received, Sealed
from meterd.authority.snapshot import NOTHING
from meterd.ledger.encoding import seal
from meterd.ledger.order import ForkResolve, Replace
from tests.authority.examples import GENESIS, GRID, HOUSE, REVOKE, chain, key, order, public, sealed
from tests.net import EAGER, WALL_S, Net

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterd.authority.senders import Settings
    from meterd.ledger.block import Block
    from meterd.ledger.order import Change

BLOCKS = chain(6)
SEALED = [sealed(each) for each in BLOCKS]
TWIN = BLOCKS[3]._replace(fingerprint=bytes([9] * 32))


class Liar:
    """A voter whose hand is ours."""

    def __init__(self, net: Net, name: str) -> None:
        core = net.nodes.pop(name).gossip
        self._net, self._name = net, name
        last = core.sequences.get(core.kid, NOTHING)
        self._number, self._previous = last.number, last.batch_hash

    def votes(self, leaves: Iterable[Leaf], *to: str, closing: int = OPEN, epoch: int = 1) -> None:
        self._number += 1
        header = Header(epoch, self._number, self._previous, WALL_S, closing)
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


def end(net: Net, change: Change) -> None:
    """Let the distributor end the house's chain, as it has to: the key is revoked before."""
    give(net, REVOKE)
    net.settle(6)
    give(net, change)


def slip(net: Net, *changes: Change) -> None:
    """Let the distributor's key give orders by a program that asks for nothing before."""
    roster = net.nodes[GRID].gossip.roster
    for change in changes:
        made = order(change, roster)
        roster = roster.add(made)
        message = seal(made.encode(), key(f"{GRID} seals"), GENESIS.hash)
        for name, each in net.nodes.items():
            if name != GRID:
                each.feed(Received(GRID, message))


def in_force(net: Net) -> set[int]:
    return {each.gossip.roster.head.height for each in net.nodes.values()}


def settled(pace: Settings = EAGER) -> Net:
    net = Net(settings=pace)
    net.settle(6)
    net.seal(*SEALED[:3])
    net.settle(3)
    return net


def replaced(base: Block) -> Replace:
    energy = tuple(each._replace(first_uj=each.last_uj) for each in base.energy)
    sealing = public(f"{HOUSE} seals, 2")
    return Replace(HOUSE, 1, base.height, base.hash, 2, sealing, b"", 60_000, 230_000, 1, energy)
