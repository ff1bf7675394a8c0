"""What a quorum certifies, and what of a certificate is none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meterd.authority.attestation import CHECKS_ALL, PLAUSIBLE, SEEN, TIMELY, Leaf
from meterd.authority.certificate import (
    ABOVE_MAX,
    Certificate,
    add_certified_order,
    add_spelt_order,
    certificate_of,
    open_certificate,
    read_certificate,
    spell_order,
    summary,
    verify_certificate,
)
from meterd.authority.roster import Roster, found
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.encoding import decode, encode
from tests.authority.examples import (
    ELSEWHERE,
    ENROL,
    FIRST_BLOCK,
    GENESIS,
    GRID,
    NEXT,
    NODES,
    OTHER_HOUSE,
    ROSTER,
    SECOND_BLOCK,
    SHORTER,
    THIRD_BLOCK,
    THREE,
    VOTERS,
    block,
    certificate,
    chain,
    forked,
    leaf,
    order,
    ordered,
    sealed,
    strange,
    vote,
)
from tests.ledger.examples import changed

if TYPE_CHECKING:
    from meterd.ledger.block import Block
    from meterd.ledger.order import Order

PLACE = leaf(FIRST_BLOCK)[:4]
GOOD = certificate(FIRST_BLOCK)


# --- certificates ---------------------------------------------------------------------------------


def test_a_quorum_certifies_a_block() -> None:
    certified = verify_certificate(GOOD, ROSTER)
    assert (certified.epoch, certified.voters) == (1, THREE)
    assert (certified.strength, certified.witnessed) == ((3, 3, 3), False)
    assert open_certificate(GOOD.encode()) == GOOD
    assert summary(certified) == "certified by 3: feeder-1, house-1, house-2"


def test_all_may_attest_and_in_any_order() -> None:
    certified = verify_certificate(certificate(FIRST_BLOCK, by=VOTERS[::-1]), ROSTER)
    assert certified.voters == VOTERS


@pytest.mark.parametrize("voters", [1, 2, 3])
def test_below_four_voters_certified_means_witnessed(voters: int) -> None:
    silent = tuple(replace(n, votes=int(n.name in VOTERS[:voters])) for n in NODES)
    genesis = replace(GENESIS, nodes=silent)
    roster = found(genesis)
    item = FIRST_BLOCK._replace(genesis=genesis.hash, previous=genesis.hash)
    by = VOTERS[: roster.committee.quorum]
    certified = verify_certificate(certificate(item, by=by, roster=roster), roster)
    assert certified.witnessed
    assert summary(certified).startswith(f"witnessed by {len(by)}: feeder-1")
    with pytest.raises(BlockRejectedError, match=r"a quorum|there are none"):
        verify_certificate(certificate(item, by=by, roster=roster)._replace(proofs=()), roster)


def test_a_network_in_which_nobody_votes_certifies_nothing() -> None:
    alone = found(replace(GENESIS, nodes=tuple(replace(n, votes=0) for n in NODES)))
    with pytest.raises(BlockRejectedError, match="there are none"):
        verify_certificate(GOOD._replace(proofs=()), alone)


def test_whoever_attests_a_descendant_attests_a_block() -> None:
    above = (SECOND_BLOCK, THIRD_BLOCK)
    votes = [
        vote(FIRST_BLOCK, VOTERS[0]),
        vote(SECOND_BLOCK, VOTERS[1], checks=TIMELY),
        vote(THIRD_BLOCK, VOTERS[2], checks=SEEN | PLAUSIBLE, others=[leaf(order(ENROL))]),
    ]
    made = certificate_of(PLACE, votes, [item.encode() for item in above], 3)
    assert len(made.above) == 2
    certified = verify_certificate(open_certificate(made.encode()), ROSTER)
    assert (certified.voters, certified.strength) == (THREE, (2, 2, 2))


def test_a_certificate_takes_the_lowest_quorum_and_no_block_more_than_it_reaches() -> None:
    votes = [
        vote(THIRD_BLOCK, VOTERS[3]),
        vote(SECOND_BLOCK, VOTERS[2]),
        vote(FIRST_BLOCK, VOTERS[0]),
        vote(SECOND_BLOCK, VOTERS[1]),
    ]
    made = certificate_of(PLACE, votes, [SECOND_BLOCK.encode(), THIRD_BLOCK.encode()], 3)
    assert made.above == (SECOND_BLOCK.encode(),)
    assert verify_certificate(made, ROSTER).voters == THREE


@pytest.mark.parametrize(
    ("checks", "strength"),
    [
        ((CHECKS_ALL, CHECKS_ALL, CHECKS_ALL), (3, 3, 3)),
        ((SEEN, TIMELY, PLAUSIBLE), (1, 1, 1)),
        ((0, 0, 0), (0, 0, 0)),
        ((SEEN | TIMELY, SEEN, 0), (2, 1, 0)),
    ],
)
def test_strength_is_counted_per_check(
    checks: tuple[int, ...], strength: tuple[int, int, int]
) -> None:
    votes = [vote(FIRST_BLOCK, by, checks=c) for by, c in zip(THREE, checks, strict=True)]
    made = certificate_of(PLACE, votes, [], 3)
    assert verify_certificate(made, ROSTER).strength == strength


def test_orders_are_certified_as_blocks_are() -> None:
    first = order(ENROL)
    second = order(SHORTER, ROSTER.add(first))
    above = certificate(first, above=[second])
    assert verify_certificate(above, ROSTER).voters == THREE
    assert add_certified_order(ROSTER, sealed(first), above).head.order_hash == first.hash


def voted(
    *by: str, item: Block = FIRST_BLOCK, epoch: int = 0, roster: Roster = ROSTER
) -> tuple[tuple[bytes, Leaf], ...]:
    """Return the proofs of those who attested `item`."""
    return certificate(item, by=by, epoch=epoch, roster=roster).proofs


ABOVE = certificate(FIRST_BLOCK, above=[SECOND_BLOCK, THIRD_BLOCK])


@pytest.mark.parametrize(
    ("network", "other", "message"),
    [
        pytest.param(
            ROSTER, GOOD._replace(proofs=GOOD.proofs[:2]), "2 attested, 3 are", id="has too few"
        ),
        pytest.param(ROSTER, GOOD._replace(proofs=()), "there are none", id="has no proof"),
        pytest.param(
            ROSTER,
            GOOD._replace(proofs=(*GOOD.proofs[:2], GOOD.proofs[0])),
            "is counted twice",
            id="has a proof twice",
        ),
        pytest.param(
            ROSTER,
            ABOVE._replace(proofs=(*voted(*THREE[:2]), *voted(THREE[0], item=SECOND_BLOCK))),
            "is counted twice",
            id="has a voter's two proofs",
        ),
        pytest.param(
            ROSTER,
            GOOD._replace(proofs=(*voted(*THREE[:2]), strange(FIRST_BLOCK, "stranger"))),
            "does not vote in epoch 1",
            id="has a stranger's proof",
        ),
        pytest.param(
            ROSTER,
            GOOD._replace(proofs=(*voted(*THREE[:2]), strange(FIRST_BLOCK, f"{GRID} votes"))),
            "does not vote in epoch 1",
            id="has a proof of a node without a vote",
        ),
        pytest.param(
            ROSTER,
            GOOD._replace(proofs=(*voted(*THREE[:2]), strange(FIRST_BLOCK, "house-2 seals"))),
            "does not vote in epoch 1",
            id="has a proof under a sealing key",
        ),
        pytest.param(
            ROSTER,
            GOOD._replace(proofs=(*voted(*THREE[:2]), strange(FIRST_BLOCK, "house-2 votes", 2))),
            "epoch 2 is not known here",
            id="has a proof of an epoch to come",
        ),
        pytest.param(
            NEXT.roster,
            GOOD._replace(proofs=(*voted(*THREE[:2]), strange(FIRST_BLOCK, "house-2 votes, 2", 1))),
            "does not vote in epoch 1",
            id="has a proof under a later key",
        ),
        pytest.param(
            NEXT.roster,
            GOOD._replace(proofs=(*voted(*THREE[:2]), strange(FIRST_BLOCK, "house-2 votes", 2))),
            "does not vote in epoch 2",
            id="has a proof under an expired key",
        ),
        pytest.param(
            NEXT.roster,
            GOOD._replace(
                proofs=(*voted(*THREE[:2]), *voted("house-2", roster=NEXT.roster, epoch=2))
            ),
            "of several epochs",
            id="mixes epochs",
        ),
        pytest.param(
            ROSTER,
            GOOD._replace(proofs=(*voted(*THREE[:2]), *voted("house-2", item=forked(FIRST_BLOCK)))),
            "of another block",
            id="has a proof of a fork",
        ),
        pytest.param(
            ROSTER,
            GOOD._replace(proofs=(*voted(*THREE[:2]), *voted("house-2", item=SECOND_BLOCK))),
            "of another block",
            id="leaves out the block attested",
        ),
        pytest.param(
            ROSTER,
            GOOD._replace(
                proofs=(*voted(*THREE[:2]), *voted("house-2", item=block(name=OTHER_HOUSE)))
            ),
            "of another block",
            id="has a proof of another chain",
        ),
        pytest.param(
            ROSTER, GOOD._replace(meter=OTHER_HOUSE), "of another block", id="names another meter"
        ),
        pytest.param(
            ROSTER, GOOD._replace(incarnation=2), "of another block", id="names another chain"
        ),
        pytest.param(ROSTER, GOOD._replace(height=2), "of another block", id="names a height"),
        pytest.param(
            ROSTER, GOOD._replace(block_hash=bytes(32)), "of another block", id="names a hash"
        ),
        pytest.param(
            ROSTER,
            ABOVE._replace(above=(SECOND_BLOCK.encode(), *ABOVE.above)),
            "do not link",
            id="has a block above it twice",
        ),
        pytest.param(
            ROSTER, ABOVE._replace(above=ABOVE.above[1:]), "do not link", id="leaves one out"
        ),
        pytest.param(
            ROSTER,
            ABOVE._replace(above=(forked(SECOND_BLOCK).encode(), *ABOVE.above[1:])),
            "do not link",
            id="has a fork above it",
        ),
        pytest.param(
            ROSTER,
            ABOVE._replace(above=(SECOND_BLOCK._replace(meter=OTHER_HOUSE).encode(),)),
            "do not link",
            id="has another's block above it",
        ),
        pytest.param(
            ROSTER,
            ABOVE._replace(above=(b"x",)),
            "not a certificate: not",
            id="has no block above it",
        ),
        pytest.param(
            ROSTER,
            GOOD._replace(above=(b"",) * (ABOVE_MAX + 1)),
            "more than 20000 blocks",
            id="has too many above it",
        ),
        pytest.param(
            ROSTER,
            GOOD._replace(proofs=((b"", leaf(FIRST_BLOCK)),)),
            "not a certificate: not a COSE receipt",
            id="has no receipt",
        ),
        pytest.param(
            ROSTER,
            GOOD._replace(
                proofs=(
                    *voted(*THREE[:2]),
                    (voted("house-2")[0][0], leaf(FIRST_BLOCK)._replace(checks=0)),
                )
            ),
            "not signed by this voter",
            id="has an edited leaf",
        ),
    ],
)
def test_a_certificate_does_not_hold_that(
    network: Roster, other: Certificate, message: str
) -> None:
    with pytest.raises(BlockRejectedError, match=message):
        verify_certificate(other, network)


def test_votes_of_an_epoch_before_do_not_count_for_what_names_a_later_roster() -> None:
    """Row T5: an authority whose epoch is over seals nothing any more."""
    roster = NEXT.roster
    named = FIRST_BLOCK._replace(order=(1, NEXT.orders[0].hash))
    old, new = certificate(named, epoch=1), certificate(named, roster=roster)
    assert verify_certificate(new, roster, roster.epoch_at(1)).epoch == 2
    with pytest.raises(BlockRejectedError, match="attested in an epoch that was over"):
        verify_certificate(old, roster, roster.epoch_at(1))
    above = certificate(FIRST_BLOCK, above=[_behind(FIRST_BLOCK, named)], epoch=1)
    with pytest.raises(BlockRejectedError, match="attested in an epoch that was over"):
        verify_certificate(above, roster, roster.epoch_at(0))
    late = certificate(FIRST_BLOCK, roster=roster)  # an old block may be attested late
    assert verify_certificate(late, roster, roster.epoch_at(0)).epoch == 2


def _behind(before: Block, named: Block) -> Block:
    return block(before)._replace(order=named.order)


@pytest.mark.parametrize("kind", ["an order", "a block"])
def test_votes_of_an_epoch_before_do_not_count_by_way_of_a_descendant_of(kind: str) -> None:
    roster = NEXT.roster
    if kind == "an order":
        item: Block | Order = order(ENROL, roster)
        above: Block | Order = order(SHORTER, roster.add(order(ENROL, roster)))
    else:
        item = FIRST_BLOCK._replace(order=(1, NEXT.orders[0].hash))
        above = block(item)._replace(order=(0, GENESIS.hash))
    old = certificate(item, above=[above], epoch=1)
    with pytest.raises(BlockRejectedError, match="attested in an epoch that was over"):
        verify_certificate(old, roster, 2)


def test_a_certificate_by_the_head_of_a_long_time_alone_can_be_read() -> None:
    items = chain(200)
    made = certificate(items[0], above=items[1:])
    assert verify_certificate(made, ROSTER).voters == THREE
    assert open_certificate(made.encode()) == made


@pytest.mark.parametrize(
    ("place", "new"),
    [
        pytest.param((0,), "meterd/certificate/v2", id="of a new version"),
        pytest.param((1,), b"house-1", id="of a name in bytes"),
        pytest.param((4,), bytes(31), id="of a short hash"),
        pytest.param((5,), b"", id="with bytes above it"),
        pytest.param((5, 0), 7, id="with a number above it"),
        pytest.param((6, 0), [], id="with an empty proof"),
        pytest.param((6, 0, 1), [], id="with an empty leaf"),
        pytest.param((6, 0, 1, 4), 8, id="with an unknown check"),
        pytest.param((6, 0, 0), "x", id="with a receipt of text"),
    ],
)
def test_bytes_are_no_certificate(place: tuple[int, ...], new: object) -> None:
    data = encode(changed(decode(ABOVE.encode()), place, new))
    with pytest.raises(EncodingError):
        open_certificate(data)


def test_a_certificate_within_a_message_is_read_the_same_way() -> None:
    assert read_certificate(decode(GOOD.encode())) == GOOD
    with pytest.raises(EncodingError, match="not a certificate"):
        open_certificate(b"\x80")


@pytest.mark.parametrize(
    ("network", "sealed_order", "spelt", "message"),
    [
        pytest.param(
            ROSTER, sealed(order(ENROL)), certificate(order(SHORTER)), "is not of order 1", id="of"
        ),
        pytest.param(
            ROSTER,
            sealed(order(ENROL)),
            certificate(order(ENROL), by=THREE[:2]),
            "2 attested, 3 are",
            id="by",
        ),
        pytest.param(
            ROSTER, sealed(order(ENROL), "stranger"), certificate(order(ENROL)), "key", id="key"
        ),
        pytest.param(
            NEXT.roster,
            sealed(order(ENROL, NEXT.roster)),
            certificate(order(ENROL, NEXT.roster), epoch=1),
            "in an epoch that was over",
            id="epoch",
        ),
        pytest.param(
            NEXT.roster,
            NEXT.certified[0][0],
            NEXT.certified[0][1],
            "expected order 2, got 1",
            id="again",
        ),
    ],
)
def test_no_order_is_added_for_want_of(
    network: Roster, sealed_order: bytes, spelt: Certificate, message: str
) -> None:
    with pytest.raises(BlockRejectedError, match=message):
        add_certified_order(network, sealed_order, spelt)


def test_a_certified_order_travels_as_one_message() -> None:
    network = ordered(ENROL)
    data = spell_order(*network.certified[0])
    assert add_spelt_order(ROSTER, data) == network.roster
    for other in (b"", b"\x80", encode([network.certified[0][0], []]), data + b"\0"):
        with pytest.raises(EncodingError):
            add_spelt_order(ROSTER, other)
    with pytest.raises(BlockRejectedError):
        add_spelt_order(found(ELSEWHERE), data)
