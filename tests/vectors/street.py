"""The vectors of a street: orders, batches, certificates, receipts, evidence, what peers say.

The street is that of `tests/authority/examples.py`; a key called `x` has SHA-256(x) as its seed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import cbor2

from meterd.authority import merkle
from meterd.authority.attestation import (
    CLOSED,
    PAD_LEAF,
    Header,
    Leaf,
    open_batch,
    prove,
    sign_batch,
)
from meterd.authority.certificate import certificate_of, seals_evidence, votes_evidence
from meterd.authority.roster import found
from meterd.ledger.alarm import seal_alarm
from meterd.ledger.encoding import decode, encode, seal, take_apart
from meterd.ledger.order import RosterChange
from tests.authority.examples import (
    CHANGES,
    ELSEWHERE,
    ENROL,
    FIRST_BLOCK,
    FORK_RESOLVE,
    GENESIS,
    GRID,
    HOUSE,
    MIDNIGHT_S,
    NEXT_EPOCH,
    NEXT_NODES,
    NODES,
    NOW_S,
    OTHER_HOUSE,
    REPLACE,
    REVOKE,
    ROSTER,
    ROTATE,
    SECOND_BLOCK,
    SHORTER,
    THIRD_BLOCK,
    VOTERS,
    Ordered,
    batch_message,
    block,
    certificate,
    key,
    leaf,
    order,
    ordered,
    proof,
    public,
    receipt,
    rotate,
    sealed,
    vote,
)
from tests.authority.said import BODIES, SENDER, message_of
from tests.ledger.alarms import ALARM, STARTED
from tests.ledger.examples import changed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterd.authority.certificate import Certificate, Receipt
    from meterd.ledger.account import Genesis
    from meterd.ledger.block import Block
    from meterd.ledger.order import Change, Order

Case = dict[str, Any]
Certified = tuple[bytes, "Certificate"]
LIAR = "regulator"
THREE = VOTERS[:3]
FORK = FIRST_BLOCK._replace(flags=8)
FORK_SECOND = block(FORK)


def spelt(certified: Sequence[Certified]) -> list[list[str]]:
    """Return orders, each with its seal and its certificate, in hex."""
    return [[one.hex(), by.encode().hex()] for one, by in certified]


# --- messages without seals -----------------------------------------------------------------------


def order_messages() -> Iterator[Case]:
    """What a decoder of orders says of bytes."""
    written = {kind: order(change).encode() for kind, change in CHANGES.items()}
    for kind, data in written.items():
        yield {"name": f"{kind} order", "kind": "order", "bytes": data.hex(), "verdict": "good"}
    bad: list[tuple[str, str, tuple[int, ...], object]] = [
        ("an order of a new version", "enrol", (0,), "meterd/order/v2"),
        ("an order of an unknown kind", "enrol", (8,), "tariff"),
        ("an order of another kind than its body", "enrol", (8,), "revoke"),
        ("an order with a short hash", "enrol", (5,), bytes(31)),
        ("enrol of a name in capitals", "enrol", (9, 0), "House-3"),
        ("enrol of incarnation 0", "enrol", (9, 1), 0),
        ("enrol without a sealing key", "enrol", (9, 2), b""),
        ("enrol with a short voting key", "enrol", (9, 3), bytes(31)),
        ("enrol with a register of 64 bits", "enrol", (9, 7, 0, 2), b"\x80" + bytes(7)),
        ("enrol with a register as a number", "enrol", (9, 7, 0, 2), 900),
        ("replace without a final hash", "replace", (9, 3), b""),
        ("rotate half signed", "rotate", (9, 3), bytes(63)),
        ("revoke with a reason of 201 characters", "revoke", (9, 2), "x" * 201),
        ("roster of names alone", "roster", (9, 1, 0), ["house-1"]),
        ("fork-resolve without a key", "fork-resolve", (9, 5), b""),
        ("interval of 0 s", "interval", (9, 0), 0),
        ("interval that does not divide a day", "interval", (9, 0), 7),
    ]
    for name, kind, place, new in bad:
        data = encode(changed(decode(written[kind]), place, new))
        yield {"name": name, "kind": "order", "bytes": data.hex(), "verdict": "bad"}


# --- the distributor's chain ----------------------------------------------------------------------


def order_chains() -> Iterator[Case]:
    """How many orders of a network are in force, given its genesis."""

    def then(
        network: Ordered, change: Change, *, by: str = f"{GRID} seals", **fields: object
    ) -> list[Certified]:
        following = order(change, network.roster)._replace(**fields)  # type: ignore[arg-type]
        certified = certificate(following, roster=network.roster)
        return [*network.certified, (sealed(following, by), certified)]

    none, one = Ordered(), ordered(ROTATE)
    grid = rotate(f"{GRID} seals", f"{GRID} seals, 2", name=GRID)
    three = ordered(ROTATE, *(_rotation(number) for number in (2, 3)))
    used = ENROL._replace(sealing_key=public("house-2 seals"))
    first = order(ENROL)
    votes = [vote(order(SHORTER, ROSTER.add(first)), by) for by in THREE]
    above = certificate_of(leaf(first)[:4], votes, [order(SHORTER, ROSTER.add(first)).encode()], 3)
    old = certificate(order(ENROL, ordered(NEXT_EPOCH).roster), epoch=1)
    few = tuple(replace(node, votes=0) for node in NEXT_NODES)
    cases: list[tuple[str, Sequence[Certified], int]] = [
        ("none", (), 0),
        *((kind, ordered(change).certified, 1) for kind, change in CHANGES.items()),
        ("three rotations and a revocation", three.and_then(REVOKE).certified, 4),
        ("another key of the distributor", then(ordered(grid), ENROL, by=f"{GRID} seals, 2"), 2),
        ("a new epoch and an order in it", ordered(NEXT_EPOCH, ENROL).certified, 2),
        ("an order certified by the next one", [(sealed(first), above)], 1),
        ("a stranger's seal", then(none, ENROL, by="stranger"), 0),
        ("a seal for another network", [(sealed(first, genesis=bytes(32)), above)], 0),
        ("another genesis", then(none, ENROL, genesis=bytes(32)), 0),
        ("the distributor's key of before", then(ordered(grid), ENROL), 1),
        ("another distributor", then(none, ENROL, by=f"{GRID} seals", distributor="gas-co"), 0),
        ("a height skipped", then(one, ENROL, height=3), 1),
        ("a height repeated", [*one.certified, *one.certified], 1),
        ("a link missing", then(one, ENROL, previous=GENESIS.hash), 1),
        ("dated before the order before", then(one, ENROL, time_s=NOW_S - 1), 1),
        ("a certificate of two", [(sealed(first), certificate(first, by=THREE[:2]))], 0),
        ("a certificate of another order", [(sealed(first), certificate(order(SHORTER)))], 0),
        (
            "a certificate of an epoch that is over",
            [
                *ordered(NEXT_EPOCH).certified,
                (sealed(order(ENROL, ordered(NEXT_EPOCH).roster)), old),
            ],
            1,
        ),
        ("enrol of a meter that is enrolled", then(none, ENROL._replace(meter=HOUSE)), 0),
        ("enrol of a used key", then(none, used), 0),
        ("enrol of incarnation 2", then(none, ENROL._replace(incarnation=2)), 0),
        ("replace of nobody", then(none, REPLACE._replace(meter="house-9")), 0),
        ("replace of what was replaced", then(ordered(REPLACE), REPLACE), 1),
        ("replace by the same incarnation", then(none, REPLACE._replace(incarnation=1)), 0),
        ("fork-resolve of the distributor", then(none, FORK_RESOLVE._replace(meter=GRID)), 0),
        ("rotate without consent", then(none, rotate("stranger", "house-1 seals, 2")), 0),
        ("rotate to the same key", then(none, rotate("house-1 seals", "house-1 seals")), 0),
        ("rotate of a revoked key", then(ordered(REVOKE), ROTATE), 1),
        ("revoke of the distributor", then(none, REVOKE._replace(meter=GRID)), 0),
        ("an epoch skipped", then(none, NEXT_EPOCH._replace(epoch=3)), 0),
        ("a roster without voters", then(none, NEXT_EPOCH._replace(nodes=few)), 0),
        ("a roster without a meter", then(none, NEXT_EPOCH._replace(nodes=_without(HOUSE))), 0),
        (
            "a roster without its distributor",
            then(none, NEXT_EPOCH._replace(nodes=_without(GRID))),
            0,
        ),
        ("an interval from noon on", then(none, SHORTER, effective_from_s=MIDNIGHT_S + 43_200), 0),
    ]
    for name, certified, holds in cases:
        yield {
            "name": name,
            "genesis": GENESIS.encode().hex(),
            "orders": spelt(certified),
            "holds": holds,
            "verdict": "good" if holds == len(certified) else "bad",
        }


def _rotation(number: int) -> Change:
    return rotate(f"house-1 seals, {number}", f"house-1 seals, {number + 1}")


def _without(name: str) -> tuple[Any, ...]:
    return tuple(node for node in NEXT_NODES if node.name != name)


# --- batches and COSE receipts --------------------------------------------------------------------

SEVERAL = sorted([leaf(FIRST_BLOCK), leaf(block(name=OTHER_HOUSE)), leaf(order(ENROL))])
HEADER = Header(epoch=1, number=4, previous=bytes(range(32)), time_s=NOW_S, closing=0)


def signed(by: str, *, protected: bytes = b"", leaves: Sequence[Leaf] = SEVERAL) -> bytes:
    """Return a batch of these leaves as they come, signed over any protected header."""
    entries: list[Any] = [list(each) for each in leaves]
    spelt_leaves = [*map(encode, entries)]
    root = merkle.root(spelt_leaves if len(leaves) > 1 else [*spelt_leaves, PAD_LEAF])
    protected = protected or decode(sign_batch(HEADER, leaves, key(by), GENESIS.hash))[1]
    said = cbor2.dumps(["Signature1", protected, GENESIS.hash, root])
    return encode(["meterd/attest/v1", protected, key(by).sign(said).signature, entries])


def protected_with(**changes: object) -> bytes:
    """Return the protected header of the batch with something changed."""
    _, header, _, _ = decode(sign_batch(HEADER, SEVERAL, key(f"{LIAR} votes"), GENESIS.hash))
    labels = {"alg": 1, "crit": 2, "kid": 4, "typ": 16, "vds": 395, "meterd": "meterd"}
    value = cbor2.loads(header)
    return cbor2.dumps({**value, **{labels[name]: new for name, new in changes.items()}})


def batches() -> Iterator[Case]:
    """What a verifier of batches says, given voting key and genesis hash."""
    by, here = f"{LIAR} votes", GENESIS.hash
    good = signed(by)
    closing = sign_batch(HEADER._replace(closing=CLOSED), [], key(by), here)
    longer = HEADER._replace(previous=bytes(31))
    cases = [
        ("of three heads", good, "good"),
        ("of one head", sign_batch(HEADER, SEVERAL[:1], key(by), here), "good"),
        ("the last of an epoch, of none", closing, "good"),
        ("a stranger's", signed("stranger"), "bad"),
        ("under another kid", signed(by, protected=protected_with(kid=bytes(8))), "bad"),
        ("for another network", sign_batch(HEADER, SEVERAL, key(by), ELSEWHERE.hash), "bad"),
        ("alg -8", signed(by, protected=protected_with(alg=-8)), "bad"),
        ("crit", signed(by, protected=protected_with(crit=[395])), "bad"),
        ("another type", signed(by, protected=protected_with(typ="meterd/block/v1")), "bad"),
        ("another tree", signed(by, protected=protected_with(vds=2)), "bad"),
        (
            "epoch 0",
            signed(by, protected=protected_with(meterd=[0, *HEADER[1:], len(SEVERAL)])),
            "bad",
        ),
        (
            "a short link",
            signed(by, protected=protected_with(meterd=[*longer, len(SEVERAL)])),
            "bad",
        ),
        ("of no head and not the last", sign_batch(HEADER, [], key(by), here), "bad"),
        ("in disorder", signed(by, leaves=SEVERAL[::-1]), "bad"),
        ("a head twice", signed(by, leaves=[SEVERAL[0]] * 2), "bad"),
        ("a head left out", _without_first(good), "bad"),
        ("checks edited", encode(changed(decode(good), (3, 0, 4), 0)), "bad"),
        ("an unknown check", signed(by, leaves=[SEVERAL[0]._replace(checks=8)]), "bad"),
        ("height 0", signed(by, leaves=[SEVERAL[0]._replace(height=0)]), "bad"),
        ("a trailing byte", good + b"\0", "bad"),
        ("an edited signature", encode(changed(decode(good), (2,), bytes(64))), "bad"),
    ]
    for name, data, verdict in cases:
        yield {
            "name": name,
            "bytes": data.hex(),
            "key": public(by).hex(),
            "genesis_hash": here.hex(),
            "verdict": verdict,
        }


def _without_first(message: bytes) -> bytes:
    return encode([*(value := decode(message))[:3], value[3][1:]])


def proofs() -> Iterator[Case]:
    """What a verifier of COSE Receipts says, given leaf, voting key and genesis hash."""
    by, here = f"{LIAR} votes", GENESIS.hash
    whole = open_batch(signed(by), here)
    lone = open_batch(sign_batch(HEADER, SEVERAL[:1], key(by), here), here)
    one = prove(whole, 0)
    header, unprotected, _, signature = cbor2.loads(one).value
    size, index, steps = cbor2.loads(unprotected[396][-1][0])

    def receipt_of(inclusion: list[Any], payload: object = None, tag: int = 18) -> bytes:
        paths = {396: {-1: [cbor2.dumps(inclusion)]}}
        return cbor2.dumps(cbor2.CBORTag(tag, [header, paths, payload, signature]))

    elsewhere = sign_batch(HEADER, SEVERAL, key(by), ELSEWHERE.hash)
    cases = [
        *((f"of leaf {at}", prove(whole, at), each, "good") for at, each in enumerate(SEVERAL)),
        ("of a lone leaf", prove(lone, 0), SEVERAL[0], "good"),
        ("for another leaf", one, SEVERAL[1], "bad"),
        ("for a leaf with fewer checks", one, SEVERAL[0]._replace(checks=0), "bad"),
        ("at another place", receipt_of([size, 1, steps]), SEVERAL[0], "bad"),
        ("behind the last leaf", receipt_of([size, size, steps]), SEVERAL[0], "bad"),
        ("with a step left out", receipt_of([size, index, steps[:1]]), SEVERAL[0], "bad"),
        ("with a step more", receipt_of([size, index, [*steps, bytes(32)]]), SEVERAL[0], "bad"),
        ("with an empty path", receipt_of([1, 0, []]), SEVERAL[0], "bad"),
        ("that carries the root", receipt_of([size, index, steps], whole.root), SEVERAL[0], "bad"),
        ("with another tag", receipt_of([size, index, steps], None, 98), SEVERAL[0], "bad"),
        ("with a trailing byte", one + b"\0", SEVERAL[0], "bad"),
        ("with an edited signature", one[:-1] + bytes([one[-1] ^ 1]), SEVERAL[0], "bad"),
        ("of another network", prove(open_batch(elsewhere, ELSEWHERE.hash), 0), SEVERAL[0], "bad"),
    ]
    for name, data, each, verdict in cases:
        yield {
            "name": name,
            "bytes": data.hex(),
            "leaf": encode(list(each)).hex(),
            "key": public(by).hex(),
            "genesis_hash": here.hex(),
            "verdict": verdict,
        }


# --- certificates and receipts --------------------------------------------------------------------


class Holding(NamedTuple):
    """A certificate or a receipt, and what it must be found to say; no voters where it is bad."""

    name: str
    data: bytes
    network: Ordered = Ordered()
    voters: tuple[str, ...] = ()
    strength: tuple[int, int, int] = (3, 3, 3)
    epoch_min: int = 1

    def found(self) -> Case:
        return {
            "verdict": "good" if self.voters else "bad",
            "voters": list(self.voters),
            "strength": list(self.strength) if self.voters else [],
        }


def certificates() -> Iterator[Case]:
    """What a verifier of certificates says, given the genesis, the orders, and the lowest epoch."""
    good = certificate(FIRST_BLOCK)
    above = certificate(FIRST_BLOCK, above=[SECOND_BLOCK, THIRD_BLOCK])
    payloads = [item.encode() for item in (SECOND_BLOCK, THIRD_BLOCK)]
    mixed = [
        vote(FIRST_BLOCK, VOTERS[0], checks=1),
        vote(SECOND_BLOCK, VOTERS[1], checks=3),
        vote(THIRD_BLOCK, VOTERS[2], others=[leaf(order(ENROL))]),
    ]
    steps = certificate_of(leaf(FIRST_BLOCK)[:4], mixed, payloads, 3)
    network = ordered(NEXT_EPOCH)
    here = public(f"{HOUSE} votes")  # of epoch 1
    assert dict(ROSTER.committee.voters)[HOUSE] == here
    later = FIRST_BLOCK._replace(order=(1, network.orders[0].hash))
    epochs = (
        *certificate(FIRST_BLOCK, by=THREE[:2]).proofs,
        proof(FIRST_BLOCK, LIAR, roster=network.roster),
    )
    cases = [
        Holding("by three", good.encode(), voters=THREE),
        Holding(
            "by all", certificate(FIRST_BLOCK, by=VOTERS).encode(), Ordered(), VOTERS, (4, 4, 4)
        ),
        Holding("by way of a descendant", above.encode(), voters=THREE),
        Holding("by three heads", steps.encode(), voters=THREE, strength=(3, 2, 1)),
        Holding("of an order", certificate(order(ENROL)).encode(), voters=THREE),
        Holding(
            "in a later epoch",
            certificate(later, roster=network.roster).encode(),
            network,
            THREE,
            epoch_min=2,
        ),
        Holding("by two", certificate(FIRST_BLOCK, by=THREE[:2]).encode()),
        Holding("by nobody", good._replace(proofs=()).encode()),
        Holding("by one twice", good._replace(proofs=(*good.proofs[:2], good.proofs[0])).encode()),
        Holding("by two epochs", good._replace(proofs=epochs).encode(), network),
        Holding(
            "in an epoch that was over",
            certificate(later, epoch=1).encode(),
            network,
            epoch_min=2,
        ),
        Holding("in an epoch not known here", certificate(later, roster=network.roster).encode()),
        Holding("with a fork's vote", _with_vote(good, proof(FORK, THREE[2])).encode()),
        Holding("with a stranger's vote", _with_vote(good, _strange(FIRST_BLOCK)).encode()),
        Holding("of another height", good._replace(height=2).encode()),
        Holding("of another meter", good._replace(meter=OTHER_HOUSE).encode()),
        Holding("a block above it left out", above._replace(above=above.above[1:]).encode()),
        Holding(
            "a fork above it",
            above._replace(
                above=(SECOND_BLOCK._replace(flags=8).encode(), above.above[1])
            ).encode(),
        ),
        Holding("no block above it", above._replace(above=(b"\x80", above.above[1])).encode()),
        Holding("a new version", encode(changed(good.spell(), (0,), "meterd/certificate/v2"))),
        Holding("a trailing byte", good.encode() + b"\0"),
    ]
    for case in cases:
        yield {
            "name": case.name,
            "bytes": case.data.hex(),
            "genesis": GENESIS.encode().hex(),
            "orders": spelt(case.network.certified),
            "epoch_min": case.epoch_min,
            **case.found(),
        }


def _with_vote(good: Certificate, other: tuple[bytes, Leaf]) -> Certificate:
    return good._replace(proofs=(*certificate(FIRST_BLOCK, by=THREE[:2]).proofs, other))


def _strange(item: Block) -> tuple[bytes, Leaf]:
    here = leaf(item)
    message = sign_batch(HEADER, [here], key("stranger"), GENESIS.hash)
    return prove(open_batch(message, GENESIS.hash), 0), here


def receipts() -> Iterator[Case]:
    """What a verifier of receipts says, given the genesis."""
    network = ordered(SHORTER, NEXT_EPOCH, ROTATE)
    later = FIRST_BLOCK._replace(order=(3, network.orders[2].hash))
    small, large = receipt(), receipt(later, network=network, by="house-1 seals, 2")
    alone = tuple(replace(node, votes=int(node.name == HOUSE)) for node in NODES)
    one = replace(GENESIS, nodes=alone)
    own = FIRST_BLOCK._replace(genesis=one.hash, previous=one.hash, order=(0, one.hash))
    witnessed = certificate(own, by=[HOUSE], roster=found(one))
    cases: list[tuple[str, Receipt, tuple[str, ...], Genesis]] = [
        ("without an order", small, THREE, GENESIS),
        ("with orders, an epoch and a key", large, THREE, GENESIS),
        (
            "in a network with one voter",
            small._replace(sealed=sealed(own, genesis=one.hash), certificate=witnessed),
            (HOUSE,),
            one,
        ),
        ("of a revoked meter's time before", receipt(network=ordered(REVOKE)), THREE, GENESIS),
        ("in another network", small, (), ELSEWHERE),
        ("of another block", small._replace(sealed=sealed(SECOND_BLOCK)), (), GENESIS),
        ("a stranger's", receipt(by="stranger"), (), GENESIS),
        ("of nobody enrolled", receipt(block(name="house-9")), (), GENESIS),
        ("under a key that was rotated out", receipt(later, network=network), (), GENESIS),
        ("with an order left out", large._replace(orders=large.orders[:2]), (), GENESIS),
        ("without the first order", large._replace(orders=large.orders[1:]), (), GENESIS),
        (
            "attested in an epoch that was over",
            large._replace(certificate=certificate(later, epoch=1)),
            (),
            GENESIS,
        ),
        (
            "certified by two",
            small._replace(certificate=certificate(FIRST_BLOCK, by=THREE[:2])),
            (),
            GENESIS,
        ),
        (
            "with an order certified by two",
            large._replace(
                orders=(
                    (large.orders[0][0], certificate(network.orders[0], by=THREE[:2])),
                    *large.orders[1:],
                )
            ),
            (),
            GENESIS,
        ),
    ]
    for name, whole, voters, genesis in cases:
        strength = (len(voters),) * 3
        case = Holding(name, whole.encode(), voters=voters, strength=strength)
        yield {
            "name": name,
            "bytes": case.data.hex(),
            "genesis": genesis.encode().hex(),
            **case.found(),
            "witnessed": genesis is one,
        }


# --- evidence -------------------------------------------------------------------------------------


def evidence() -> Iterator[Case]:
    """Whom a verifier of evidence convicts, given the genesis and the orders."""

    def seals(one: Block | Order, other: Block | Order, by: str = "") -> bytes:
        return seals_evidence(sealed(one), sealed(other, by))

    def votes(one: Block | Order, other: Block | Order, *between: Block, by: str = LIAR) -> bytes:
        payloads = [item.encode() for item in between]
        return votes_evidence(proof(one, LIAR), proof(other, by), payloads)

    network, rotated = ordered(RosterChange(2, NODES)), ordered(ROTATE)
    rekeyed = ordered(NEXT_EPOCH)
    later = FORK._replace(order=(1, rotated.orders[0].hash))
    meter, vote_of_one = [HOUSE, "meter", HOUSE, 1, 1], [LIAR, "authority", HOUSE, 1, 1]
    epochs = votes_evidence(
        proof(FIRST_BLOCK, LIAR, epoch=1), proof(FORK, LIAR, roster=network.roster), []
    )
    two_keys = votes_evidence(
        proof(FIRST_BLOCK, LIAR, epoch=1), proof(FORK, LIAR, roster=rekeyed.roster), []
    )
    foreign = sign_batch(HEADER, [leaf(FORK)], key(f"{LIAR} votes"), ELSEWHERE.hash)
    elsewhere = prove(open_batch(foreign, ELSEWHERE.hash), 0)
    cases: list[tuple[str, bytes, Ordered, list[Any]]] = [
        ("two seals of a meter", seals(FIRST_BLOCK, FORK), Ordered(), meter),
        ("two seals under two keys", seals(FIRST_BLOCK, later, "house-1 seals, 2"), rotated, meter),
        (
            "two seals of the distributor",
            seals(order(ENROL), order(SHORTER)),
            Ordered(),
            [GRID, "distributor", GRID, 1, 1],
        ),
        ("one seal", encode(["meterd/evidence-seals/v1", *[sealed(FORK)] * 2]), Ordered(), []),
        ("two seals of two heights", seals(FIRST_BLOCK, SECOND_BLOCK), Ordered(), []),
        ("two seals of two meters", seals(FIRST_BLOCK, block(name=OTHER_HOUSE)), Ordered(), []),
        ("a stranger's second seal", seals(FIRST_BLOCK, FORK, "stranger"), Ordered(), []),
        (
            "seals in disorder",
            encode(["meterd/evidence-seals/v1", *decode(seals(FIRST_BLOCK, FORK))[:0:-1]]),
            Ordered(),
            [],
        ),
        (
            "a second seal for another network",
            seals_evidence(sealed(FIRST_BLOCK), sealed(FORK, genesis=ELSEWHERE.hash)),
            Ordered(),
            [],
        ),
        ("two votes of one height", votes(FIRST_BLOCK, FORK), Ordered(), vote_of_one),
        (
            "two votes, a block between",
            votes(FIRST_BLOCK, FORK_SECOND, FORK_SECOND),
            Ordered(),
            vote_of_one,
        ),
        ("two votes in two epochs", epochs, network, vote_of_one),
        ("two votes under two keys", two_keys, rekeyed, []),
        (
            "two votes for orders",
            votes(order(ENROL), order(SHORTER)),
            Ordered(),
            [LIAR, "authority", GRID, 1, 1],
        ),
        (
            "a head and its descendant",
            votes(FIRST_BLOCK, SECOND_BLOCK, SECOND_BLOCK),
            Ordered(),
            [],
        ),
        ("one vote", votes(FIRST_BLOCK, FIRST_BLOCK), Ordered(), []),
        ("votes of two authorities", votes(FIRST_BLOCK, FORK, by=HOUSE), Ordered(), []),
        ("votes for two chains", votes(FIRST_BLOCK, block(name=OTHER_HOUSE)), Ordered(), []),
        ("a block between left out", votes(FIRST_BLOCK, FORK_SECOND), Ordered(), []),
        (
            "a block between that does not link",
            votes(FIRST_BLOCK, FORK_SECOND, SECOND_BLOCK),
            Ordered(),
            [],
        ),
        ("the higher vote first", votes(FORK_SECOND, FIRST_BLOCK, FORK_SECOND), Ordered(), []),
        (
            "a vote in another network",
            votes_evidence(proof(FIRST_BLOCK, LIAR), (elsewhere, leaf(FORK)), []),
            Ordered(),
            [],
        ),
        (
            "a vote in an epoch not known here",
            epochs,
            Ordered(),
            [],
        ),
        ("of no kind", encode(["meterd/evidence/v1", b"", b"x"]), Ordered(), []),
    ]
    for name, data, known, accused in cases:
        yield {
            "name": name,
            "bytes": data.hex(),
            "genesis": GENESIS.encode().hex(),
            "orders": spelt(known.certified),
            "accused": accused,
            "verdict": "good" if accused else "bad",
        }


# --- between peers --------------------------------------------------------------------------------


def said() -> Iterator[Case]:
    """What a reader of peers' messages says, given the sender's voting key and the genesis hash."""
    by = f"{SENDER} votes"
    digest = message_of("digest")
    cases = [(kind, kind, message_of(kind), "good") for kind in BODIES]
    faults: list[tuple[str, str, tuple[int, ...], object]] = [
        ("a new version", "digest", (0,), "meterd/digest/v2"),
        ("a counter that is text", "digest", (2,), "1"),
        ("a short hash of an order", "digest", (3, 1), bytes(31)),
        ("257 heads", "digest", (4,), [["house-1", 1, 1, bytes(32)]] * 257),
        ("a head of a misnamed meter", "digest", (4, 0, 0), "House"),
        ("a short key id", "digest", (5, 0, 0), bytes(7)),
        ("65 questions", "fetch", (4,), [["evidence", bytes(32)]] * 65),
        ("an unknown question", "fetch", (4, 0, 0), "samples"),
        ("a question without its end", "fetch", (4, 0), ["blocks", HOUSE, 1, 1]),
        ("a nonce of 15 bytes", "own-batch", (6,), bytes(15)),
        ("a nonce of 17 bytes", "head", (6,), bytes(17)),
        ("a short hash of a head", "head", (9,), bytes(31)),
        ("a reason in two lines", "refusal", (7,), "one\ntwo"),
        ("a reason of 201 characters", "refusal", (7,), "x" * 201),
    ]
    for name, kind, place, new in faults:
        payload = encode(changed(decode(take_apart(message_of(kind)).payload), place, new))
        cases.append((name, kind, seal(payload, key(by), GENESIS.hash), "bad"))
    cases += [
        ("a stranger's", "digest", message_of("digest", by="stranger"), "bad"),
        ("under the sealing key", "digest", message_of("digest", by=f"{SENDER} seals"), "bad"),
        ("for another network", "digest", message_of("digest", genesis=ELSEWHERE.hash), "bad"),
        ("an edited head", "digest", digest.replace(b"house-1", b"house-2"), "bad"),
        ("a trailing byte", "digest", digest + b"\0", "bad"),
        ("a batch where a digest is due", "digest", batch_message(SEVERAL, LIAR), "bad"),
    ]
    for name, kind, data, verdict in cases:
        yield {
            "name": name,
            "kind": kind,
            "bytes": data.hex(),
            "key": public(by).hex(),
            "genesis_hash": GENESIS.hash.hex(),
            "verdict": verdict,
        }


def alarms() -> Iterator[Case]:
    """What a reader of alarms says, given the genesis and the orders."""
    message, none = seal_alarm(ALARM, key(f"{HOUSE} seals"), GENESIS.hash), Ordered()
    rotated, revoked = ordered(ROTATE), ordered(REVOKE)
    fresh = seal_alarm(ALARM, key(f"{HOUSE} seals, 2"), GENESIS.hash)
    cases = [
        ("an alarm", message, none, "good"),
        ("a start", seal_alarm(STARTED, key(f"{HOUSE} seals"), GENESIS.hash), none, "good"),
        ("under the key that an order names", fresh, rotated, "good"),
        ("under the key before", message, rotated, "bad"),
        ("under a key that no order names", fresh, none, "bad"),
        ("under a revoked key", message, revoked, "bad"),
        (
            "under the voting key",
            seal_alarm(ALARM, key("house-1 votes"), GENESIS.hash),
            none,
            "bad",
        ),
        (
            "another meter's seal",
            seal_alarm(ALARM, key("house-2 seals"), GENESIS.hash),
            none,
            "bad",
        ),
        ("for another network", seal_alarm(ALARM, key("house-1 seals"), bytes(32)), none, "bad"),
        ("an edited number", message.replace(b"\x18\x29\x1b", b"\x18\x2a\x1b"), none, "bad"),
        ("a trailing byte", message + b"\0", none, "bad"),
        ("a block where an alarm is due", sealed(FIRST_BLOCK), none, "bad"),
    ]
    assert cases[9][1] != message
    faults: list[tuple[str, tuple[int, ...], object]] = [
        ("a new version", (0,), "meterd/alarm/v2"),
        ("of the distributor", (1,), GRID),
        ("of an incarnation that no order opened", (2,), 2),
        ("of no event", (3,), 0),
        ("a kind in capitals", (5,), "ALARM"),
        ("a word that names a person", (6,), "ann smith"),
        ("a word for a kind without", (5,), "started"),
        ("raised, and not standing", (8,), [["case", 40, 0]]),
        ("standing since a later event", (8, 0, 1), 42),
        ("standing twice", (8, 0, 0), "port"),
        (
            "33 that stand",
            (8,),
            [[f"a{chr(97 + n // 26)}{chr(97 + n % 26)}", 1, 0] for n in range(33)],
        ),
    ]
    for name, place, new in faults:
        payload = encode(changed(decode(ALARM.encode()), place, new))
        by = f"{GRID} seals" if new == GRID else f"{HOUSE} seals"
        cases.append((name, seal(payload, key(by), GENESIS.hash), none, "bad"))
    for name, data, network, verdict in cases:
        yield {
            "name": name,
            "bytes": data.hex(),
            "genesis": GENESIS.encode().hex(),
            "orders": spelt(network.certified),
            "verdict": verdict,
        }
