"""A street: four who vote and a distributor, with what they sign.

Every key signs what its owner would; a test's case differs from a good one in one thing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from nacl.signing import SigningKey

from meterd.authority.attestation import (
    CHECKS_ALL,
    Batch,
    Header,
    Leaf,
    open_batch,
    prove,
    sign_batch,
)
from meterd.authority.certificate import Certificate, Receipt, add_certified_order, certificate_of
from meterd.authority.roster import Committee, Roster, found
from meterd.ledger.account import Genesis, Meter, Node
from meterd.ledger.block import Block, Energy
from meterd.ledger.encoding import digest, seal
from meterd.ledger.order import (
    Change,
    Enrol,
    ForkResolve,
    Interval,
    Order,
    Replace,
    Revoke,
    RosterChange,
    Rotate,
    sign_rotation,
    spell,
)
from tests.ledger.examples import FIRST, IMPORT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOW_S = 1_170_700_000
MIDNIGHT_S = 1_170_720_000  # 2007-02-06 00:00 UTC


def key(what: str) -> SigningKey:
    """Return the key called `what`."""
    return SigningKey(digest(what.encode()))


def public(what: str) -> bytes:
    """Return the public half of the key called `what`."""
    return bytes(key(what).verify_key)


GRID = "grid-co"
HOUSE, OTHER_HOUSE = "house-1", "house-2"
VOTERS = ("feeder-1", "house-1", "house-2", "regulator")
_ROLES = {"feeder-1": "concentrator", "regulator": "authority", GRID: "distributor"}


def node(name: str, *, votes: int = 1, role: str = "", voting: str | None = None) -> Node:
    """Return a node with keys after its name."""
    return Node(
        name=name,
        role=role or _ROLES.get(name, "meter"),
        sealing_key=public(f"{name} seals"),
        voting_key=public(f"{name} votes" if voting is None else voting) if voting != "" else b"",
        votes=votes,
    )


def meter(name: str) -> Meter:
    """Return a meter as genesis enrols it."""
    return Meter(
        name=name,
        incarnation=1,
        sealing_key=public(f"{name} seals"),
        fuse_ma=60_000,
        nominal_mv=230_000,
        mains_clamps=1,
    )


NODES = (*map(node, VOTERS), node(GRID, votes=0))
GENESIS = Genesis(
    name="elm-street",
    interval_s=1800,
    zone="Europe/Berlin",
    currency="EUR",
    nodes=NODES,
    meters=(meter(HOUSE), meter(OTHER_HOUSE)),
)
ELSEWHERE: Genesis = replace(GENESIS, name="oak-street")  # another network of the same keys
ROSTER: Roster = found(GENESIS)


def voting_key(committee: Committee, name: str) -> SigningKey:
    """Return the key that `name` votes with in this epoch."""
    (wanted,) = (voting for voter, voting in committee.voters if voter == name)
    names = [f"{name} votes", *(f"{name} votes, {number}" for number in range(2, 5))]
    return next(key(one) for one in names if public(one) == wanted)


# --- blocks and orders --------------------------------------------------------------------------


def block(before: Block | None = None, *, name: str = HOUSE) -> Block:
    """Return the next block of a meter behind `before`, or its first."""
    if before is None:
        return FIRST._replace(
            genesis=GENESIS.hash, meter=name, previous=GENESIS.hash, order=(0, GENESIS.hash)
        )
    return before._replace(
        height=before.height + 1,
        previous=before.hash,
        start_s=before.end_s,
        end_s=before.end_s + 1800,
        energy=tuple(e._replace(first_uj=e.last_uj, last_uj=e.last_uj + 7) for e in before.energy),
    )


def chain(number: int, name: str = HOUSE) -> list[Block]:
    """Return the first blocks of a meter."""
    blocks = [block(name=name)]
    while len(blocks) < number:
        blocks.append(block(blocks[-1]))
    return blocks


def sealed(item: Block | Order, by: str = "", genesis: bytes = GENESIS.hash) -> bytes:
    """Return a block or an order under the seal of the key called `by`, its owner's unless told."""
    owner = item.distributor if isinstance(item, Order) else item.meter
    return seal(item.encode(), key(by or f"{owner} seals"), genesis)


def order(change: Change, roster: Roster = ROSTER, *, effective_from_s: int = MIDNIGHT_S) -> Order:
    """Return the next order of this network."""
    kind, body = spell(change)
    return Order(
        genesis=roster.genesis,
        distributor=GRID,
        incarnation=1,
        height=roster.head.height + 1,
        previous=roster.head.order_hash,
        time_s=NOW_S + roster.head.height,
        effective_from_s=effective_from_s,
        kind=kind,
        body=body,
    )


REGISTERS = (Energy(IMPORT, 0, 900, 900),)
ENROL = Enrol(
    meter="house-3",
    incarnation=1,
    sealing_key=public("house-3 seals"),
    voting_key=public("house-3 votes"),
    fuse_ma=35_000,
    nominal_mv=230_000,
    mains_clamps=3,
    registers=REGISTERS,
)
REPLACE = Replace(
    meter=HOUSE,
    old_incarnation=1,
    final_height=7,
    final_hash=bytes(32),
    incarnation=2,
    sealing_key=public("house-1 seals, 2"),
    voting_key=b"",
    fuse_ma=60_000,
    nominal_mv=230_000,
    mains_clamps=1,
    registers=REGISTERS,
)
REVOKE = Revoke(meter=HOUSE, incarnation=1, reason="the card was stolen")
FORK_RESOLVE = ForkResolve(
    meter=HOUSE,
    old_incarnation=1,
    base_height=7,
    base_hash=bytes(32),
    incarnation=2,
    sealing_key=public("house-1 seals, 2"),
    registers=REGISTERS,
)
SHORTER = Interval(900)


def rotate(old: str, new: str, *, name: str = HOUSE, genesis: bytes = GENESIS.hash) -> Rotate:
    """Return the change from the key called `old` to the one called `new`, with its consent."""
    consent = sign_rotation(key(old), genesis, name, 1, public(new))
    return Rotate(name, 1, public(new), consent)


ROTATE = rotate("house-1 seals", "house-1 seals, 2")
NEXT_NODES = (
    *(node(name, voting=f"{name} votes, 2") for name in VOTERS),
    node(GRID, votes=0),
)
NEXT_EPOCH = RosterChange(2, NEXT_NODES)  # the same four, each with a new voting key
CHANGES: Mapping[str, Change] = {
    "enrol": ENROL,
    "replace": REPLACE,
    "rotate": ROTATE,
    "revoke": REVOKE,
    "roster": NEXT_EPOCH,
    "fork-resolve": FORK_RESOLVE,
    "interval": SHORTER,
}


# --- attestations and certificates --------------------------------------------------------------


def leaf(item: Block | Order, checks: int = CHECKS_ALL) -> Leaf:
    """Return the leaf of a block or an order."""
    if isinstance(item, Order):
        return Leaf(item.distributor, item.incarnation, item.height, item.hash, checks)
    return Leaf(item.meter, item.incarnation, item.height, item.hash, checks)


def batch(
    leaves: Sequence[Leaf],
    by: str,
    *,
    roster: Roster = ROSTER,
    epoch: int = 0,
    number: int = 1,
    genesis: bytes = b"",
) -> Batch:
    """Return a batch of one who votes in this epoch, the last unless told."""
    return open_batch(
        batch_message(leaves, by, roster=roster, epoch=epoch, number=number, genesis=genesis),
        genesis or roster.genesis,
    )


def batch_message(
    leaves: Sequence[Leaf],
    by: str,
    *,
    roster: Roster = ROSTER,
    epoch: int = 0,
    number: int = 1,
    genesis: bytes = b"",
) -> bytes:
    """Return the message of a batch of one who votes in this epoch, the last unless told."""
    epoch = epoch or roster.committee.epoch
    committee = roster.committee_of(epoch)
    assert committee
    header = Header(epoch, number, bytes(32), NOW_S, 0)
    return sign_batch(header, leaves, voting_key(committee, by), genesis or roster.genesis)


def vote(
    item: Block | Order,
    by: str,
    *,
    roster: Roster = ROSTER,
    epoch: int = 0,
    checks: int = CHECKS_ALL,
    others: Sequence[Leaf] = (),
) -> tuple[Batch, Leaf]:
    """Return a batch that attests `item`, among others, and the leaf that does."""
    here = leaf(item, checks)
    return batch([here, *others], by, roster=roster, epoch=epoch), here


def proof(
    item: Block | Order,
    by: str,
    *,
    roster: Roster = ROSTER,
    epoch: int = 0,
    checks: int = CHECKS_ALL,
) -> tuple[bytes, Leaf]:
    """Return COSE Receipt and leaf of somebody's attestation of `item`."""
    attested, here = vote(item, by, roster=roster, epoch=epoch, checks=checks)
    return prove(attested, attested.leaves.index(here)), here


def certificate(
    item: Block | Order,
    *,
    by: Sequence[str] = VOTERS[:3],
    roster: Roster = ROSTER,
    epoch: int = 0,
    above: Sequence[Block | Order] = (),
) -> Certificate:
    """Return the certificate of `item`; all vote for the last block above it, if there are any."""
    head = above[-1] if above else item
    votes = [vote(head, name, roster=roster, epoch=epoch) for name in by]
    payloads = [each.encode() for each in above]
    place = leaf(item)[:4]
    return certificate_of(place, votes, payloads, needed=len(by))


class Ordered(NamedTuple):
    """A network after some orders.

    Attributes:
        roster: What is known then.
        orders: Each order.
        certified: Each with its seal, and its certificate.
    """

    roster: Roster = ROSTER
    orders: tuple[Order, ...] = ()
    certified: tuple[tuple[bytes, Certificate], ...] = ()

    def and_then(self, change: Change, *, by: str = f"{GRID} seals") -> Ordered:
        """Return the network after one more."""
        following = order(change, self.roster)
        entry = (sealed(following, by), certificate(following, roster=self.roster))
        roster = add_certified_order(self.roster, *entry)
        return Ordered(roster, (*self.orders, following), (*self.certified, entry))


def ordered(*changes: Change) -> Ordered:
    """Return the network after these orders, each sealed and certified."""
    network = Ordered()
    for change in changes:
        network = network.and_then(change)
    return network


FIRST_BLOCK, SECOND_BLOCK, THIRD_BLOCK = chain(3)


def receipt(item: Block = FIRST_BLOCK, *, network: Ordered | None = None, by: str = "") -> Receipt:
    """Return the receipt of a block, certified by itself."""
    network = network or Ordered()
    return Receipt(sealed(item, by), certificate(item, roster=network.roster), network.certified)


THREE = VOTERS[:3]
NEXT = ordered(NEXT_EPOCH)
FLAGS = FIRST_BLOCK.flags | 8  # another block of the same place: estimated


def forked(item: Block) -> Block:
    """Return another block for the place of `item`."""
    return item._replace(flags=FLAGS)


def strange(item: Block, by: str, epoch: int = 1) -> tuple[bytes, Leaf]:
    """Return a proof by the key called `by`, whoever has it."""
    here = leaf(item)
    message = sign_batch(Header(epoch, 1, bytes(32), 0, 0), [here], key(by), GENESIS.hash)
    return prove(open_batch(message, GENESIS.hash), 0), here
