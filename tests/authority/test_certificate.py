from __future__ import annotations

from dataclasses import replace
from hashlib import sha512
from typing import TYPE_CHECKING, Any

import cbor2
import pytest
from nacl import bindings

from meterd.authority.attestation import (
    CHECKS_ALL,
    PLAUSIBLE,
    SEEN,
    TIMELY,
    Header,
    Leaf,
    open_batch,
    prove,
    sign_batch,
)
from meterd.authority.certificate import (
    ABOVE_MAX,
    Accused,
    Certificate,
    Receipt,
    add_certified_order,
    add_spelt_order,
    certificate_of,
    open_certificate,
    open_enrolled,
    open_receipt,
    read_certificate,
    seals_evidence,
    spell_order,
    summary,
    verify_certificate,
    verify_evidence,
    verify_receipt,
    votes_evidence,
)
from meterd.authority.roster import OrderUnknownError, Roster, found
from meterd.errors import BlockRejectedError, EncodingError, MeterdError
from meterd.ledger.encoding import decode, encode, key_id, seal
from meterd.ledger.order import RosterChange
from tests.authority.examples import (
    ELSEWHERE,
    ENROL,
    FIRST_BLOCK,
    FORK_RESOLVE,
    GENESIS,
    GRID,
    HOUSE,
    NEXT_EPOCH,
    NODES,
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
    chain,
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
from tests.ledger.examples import changed

if TYPE_CHECKING:
    from meterd.ledger.block import Block
    from meterd.ledger.order import Order

PLACE = leaf(FIRST_BLOCK)[:4]
GOOD = certificate(FIRST_BLOCK)
THREE = VOTERS[:3]
NEXT = ordered(NEXT_EPOCH)
FLAGS = FIRST_BLOCK.flags | 8  # another block of the same place: estimated


def forked(item: Block) -> Block:
    """Return another block for the place of `item`."""
    return item._replace(flags=FLAGS)


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


def strange(item: Block, by: str, epoch: int = 1) -> tuple[bytes, Leaf]:
    """Return a proof by the key called `by`, whoever has it."""
    here = leaf(item)
    message = sign_batch(Header(epoch, 1, bytes(32), 0, 0), [here], key(by), GENESIS.hash)
    return prove(open_batch(message, GENESIS.hash), 0), here


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


# --- receipts -------------------------------------------------------------------------------------

LATER_NETWORK = ordered(SHORTER, NEXT_EPOCH, rotate("house-1 seals", "house-1 seals, 2"))
LATER_BLOCK = FIRST_BLOCK._replace(order=(3, LATER_NETWORK.orders[2].hash))
SMALL = receipt()
LARGE = receipt(LATER_BLOCK, network=LATER_NETWORK, by="house-1 seals, 2")


@pytest.mark.parametrize(
    ("whole", "item", "epoch"), [(SMALL, FIRST_BLOCK, 1), (LARGE, LATER_BLOCK, 2)]
)
def test_a_receipt_shows_its_block_to_whoever_has_the_genesis(
    whole: Receipt, item: Block, epoch: int
) -> None:
    read = open_receipt(whole.encode())
    assert read == whole
    shown = verify_receipt(read, GENESIS)
    assert (shown.block, shown.block_hash) == (item, item.hash)
    assert (shown.certified.epoch, shown.certified.voters) == (epoch, THREE)
    assert shown.roster.head.height == len(whole.orders)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        pytest.param(
            SMALL._replace(sealed=sealed(SECOND_BLOCK)), "of another block", id="is of another"
        ),
        pytest.param(
            SMALL._replace(sealed=sealed(FIRST_BLOCK, "stranger")),
            "sealed by",
            id="is a stranger's",
        ),
        pytest.param(
            SMALL._replace(sealed=sealed(FIRST_BLOCK, genesis=ELSEWHERE.hash)),
            "this content",
            id="is for another network",
        ),
        pytest.param(
            receipt(FIRST_BLOCK._replace(genesis=bytes(32))), "another network's", id="is foreign"
        ),
        pytest.param(SMALL._replace(sealed=b""), "not a sealed block", id="has no block"),
        pytest.param(
            SMALL._replace(sealed=seal(b"\x80", key("house-1 seals"), GENESIS.hash)),
            "not a sealed block: not a block",
            id="seals no block",
        ),
        pytest.param(
            receipt(block(name="house-9"), by="stranger"),
            "not enrolled",
            id="is of nobody enrolled",
        ),
        pytest.param(LARGE._replace(orders=LARGE.orders[:2]), "names order 3", id="lacks an order"),
        pytest.param(LARGE._replace(orders=LARGE.orders[1:]), "expected order 1", id="lacks one"),
        pytest.param(
            LARGE._replace(orders=LARGE.orders[::-1]), "sealed by|expected order", id="is reversed"
        ),
        pytest.param(
            LARGE._replace(certificate=certificate(LATER_BLOCK, epoch=1)),
            "in an epoch that was over",
            id="was attested by an epoch before",
        ),
        pytest.param(
            LARGE._replace(
                orders=(
                    (LARGE.orders[0][0], certificate(LATER_NETWORK.orders[0], by=THREE[:2])),
                    *LARGE.orders[1:],
                )
            ),
            "2 attested",
            id="has an order that is not certified",
        ),
        pytest.param(
            receipt(LATER_BLOCK, network=LATER_NETWORK), "sealed by key", id="is of an expired key"
        ),
    ],
)
def test_a_receipt_does_not_hold_that(other: Receipt, message: str) -> None:
    with pytest.raises(BlockRejectedError, match=message):
        verify_receipt(other, GENESIS)


def test_a_receipt_is_worth_nothing_in_another_network() -> None:
    for whole in (SMALL, LARGE):
        with pytest.raises(BlockRejectedError):
            verify_receipt(whole, ELSEWHERE)


def test_a_receipt_of_before_a_revocation_holds_with_it_too() -> None:
    network = ordered(REVOKE)
    assert verify_receipt(receipt(network=network), GENESIS).block == FIRST_BLOCK


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(FORK_RESOLVE, id="fork-resolve, which voids what lies above its base"),
        pytest.param(REPLACE._replace(final_height=1), id="replace"),
    ],
)
def test_a_receipt_does_not_hold_above_the_end_that_its_own_orders_give(change: Any) -> None:  # noqa: ANN401
    base = "base" if change is FORK_RESOLVE else "final"
    ends = {f"{base}_height": 1, f"{base}_hash": FIRST_BLOCK.hash}
    network = ordered(change._replace(**ends))
    assert verify_receipt(receipt(FIRST_BLOCK, network=network), GENESIS).block == FIRST_BLOCK
    with pytest.raises(BlockRejectedError):
        verify_receipt(receipt(SECOND_BLOCK, network=network), GENESIS)


@pytest.mark.parametrize(
    ("place", "new"),
    [
        pytest.param((0,), "meterd/receipt/v2", id="of a new version"),
        pytest.param((1,), "x", id="of a text for a block"),
        pytest.param((2,), [], id="without a certificate"),
        pytest.param((3,), b"", id="of bytes for orders"),
        pytest.param((3, 0), [], id="with an empty order"),
        pytest.param((3, 0, 1), [], id="with an order without certificate"),
    ],
)
def test_bytes_are_no_receipt(place: tuple[int, ...], new: object) -> None:
    value = decode(LARGE.encode())
    with pytest.raises(EncodingError):
        open_receipt(encode(changed(value, place, new)))


def holds(data: bytes) -> bool:
    """Say whether a receipt holds; what is refused is refused with an error of ours."""
    try:
        verify_receipt(open_receipt(data), GENESIS)
    except MeterdError:
        return False
    return True


def test_no_byte_of_a_receipt_can_be_changed_or_lost() -> None:
    data = SMALL.encode()
    assert holds(data)
    for at, byte in enumerate(data):
        for other in {byte ^ 1 << bit for bit in range(8)}:
            assert not holds(data[:at] + bytes([other]) + data[at + 1 :]), (at, other)
        assert not holds(data[:at] + data[at + 1 :])
        assert not holds(data[:at])
        assert not holds(data[:at] + b"\0" + data[at:])


# --- evidence -------------------------------------------------------------------------------------

FORK = forked(FIRST_BLOCK)
FORKED_ORDERS = (order(ENROL), order(SHORTER))


def test_two_seals_of_one_place_convict_a_meter() -> None:
    one, other = sealed(FIRST_BLOCK), sealed(FORK)
    accused = Accused(HOUSE, "meter", (HOUSE, 1), 1)
    assert verify_evidence(seals_evidence(one, other), ROSTER) == accused
    assert seals_evidence(one, other) == seals_evidence(other, one)


def test_two_seals_of_one_place_convict_the_distributor() -> None:
    evidence = seals_evidence(*map(sealed, FORKED_ORDERS))
    assert verify_evidence(evidence, ROSTER) == Accused(GRID, "distributor", (GRID, 1), 1)


def test_two_seals_convict_under_two_keys_of_one_meter() -> None:
    network = ordered(ROTATE)
    later = FORK._replace(order=(1, network.orders[0].hash))
    evidence = seals_evidence(sealed(FIRST_BLOCK), sealed(later, "house-1 seals, 2"))
    assert verify_evidence(evidence, network.roster).name == HOUSE
    with pytest.raises(BlockRejectedError):
        verify_evidence(evidence, ROSTER)  # that order is not known here yet


def test_two_orders_of_one_height_convict_under_a_key_that_was_rotated_out() -> None:
    change = rotate(f"{GRID} seals", f"{GRID} seals, 2", name=GRID)
    network = ordered(change)
    evidence = seals_evidence(sealed(network.orders[0]), sealed(order(SHORTER)))
    assert verify_evidence(evidence, network.roster).role == "distributor"


def test_a_revoked_meter_is_convicted_too() -> None:
    evidence = seals_evidence(sealed(FIRST_BLOCK), sealed(FORK))
    assert verify_evidence(evidence, ordered(REVOKE).roster).name == HOUSE


def spelt_seals(one: bytes, other: bytes) -> bytes:
    return encode(["meterd/evidence-seals/v1", one, other])


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        pytest.param(
            seals_evidence(sealed(FIRST_BLOCK), sealed(FIRST_BLOCK)), "or one", id="one block"
        ),
        pytest.param(
            spelt_seals(*sorted((sealed(FIRST_BLOCK), sealed(FORK)))[::-1]),
            "out of order",
            id="in disorder",
        ),
        pytest.param(
            seals_evidence(sealed(FIRST_BLOCK), sealed(SECOND_BLOCK)),
            "different places",
            id="two heights",
        ),
        pytest.param(
            seals_evidence(sealed(FIRST_BLOCK), sealed(block(name=OTHER_HOUSE))),
            "different places",
            id="two meters",
        ),
        pytest.param(
            seals_evidence(sealed(FIRST_BLOCK), sealed(FORK, "stranger")),
            "no evidence|sealed by key",
            id="a stranger's second seal",
        ),
        pytest.param(
            seals_evidence(sealed(FIRST_BLOCK), sealed(FORK, genesis=ELSEWHERE.hash)),
            "no evidence|this content",
            id="a seal for another network",
        ),
        pytest.param(
            seals_evidence(sealed(FORKED_ORDERS[0]), sealed(FORKED_ORDERS[1], "stranger")),
            "not a sealed block|sealed by key",
            id="a stranger's second order",
        ),
        pytest.param(
            seals_evidence(
                sealed(FORKED_ORDERS[0]),
                sealed(FORKED_ORDERS[1]._replace(distributor="gas-co"), f"{GRID} seals"),
            ),
            "not a sealed block|gives no orders",
            id="an order of nobody's",
        ),
        pytest.param(
            seals_evidence(
                sealed(FORKED_ORDERS[0]),
                sealed(FORKED_ORDERS[1], genesis=ELSEWHERE.hash),
            ),
            "this content",
            id="an order for another network",
        ),
        pytest.param(
            seals_evidence(
                sealed(FORKED_ORDERS[0]),
                sealed(FORKED_ORDERS[1]._replace(genesis=bytes(32))),
            ),
            "another network's",
            id="an order that names another network",
        ),
        pytest.param(spelt_seals(b"", b"x"), "no evidence: not a COSE_Sign1", id="no seals"),
    ],
)
def test_nobody_sealed_two_histories_by(evidence: bytes, message: str) -> None:
    with pytest.raises(BlockRejectedError, match=message):
        verify_evidence(evidence, ROSTER)


def connecting(*items: Block) -> list[bytes]:
    return [item.encode() for item in items]


LIAR = "regulator"
FORK_SECOND = block(FORK)
FORK_THIRD = block(FORK_SECOND)


@pytest.mark.parametrize(
    ("low", "high", "between"),
    [
        pytest.param(FIRST_BLOCK, FORK, [], id="of one height"),
        pytest.param(FIRST_BLOCK, FORK_SECOND, connecting(FORK_SECOND), id="one above"),
        pytest.param(FIRST_BLOCK, FORK_THIRD, connecting(FORK_SECOND, FORK_THIRD), id="two above"),
        pytest.param(SECOND_BLOCK, FORK_THIRD, connecting(FORK_THIRD), id="both above the fork"),
        pytest.param(*FORKED_ORDERS, [], id="of orders"),
    ],
)
def test_two_votes_for_two_histories_convict_an_authority(
    low: Block | Order, high: Block | Order, between: list[bytes]
) -> None:
    evidence = votes_evidence(proof(low, LIAR), proof(high, LIAR), between)
    chain_id = leaf(low).chain
    kid = key_id(public(f"{LIAR} votes"))
    expected = Accused(LIAR, "authority", chain_id, low.height, kid)
    assert verify_evidence(evidence, ROSTER) == expected


def test_two_votes_in_two_epochs_convict_as_well() -> None:
    roster = ordered(RosterChange(2, NODES)).roster
    evidence = votes_evidence(
        proof(FIRST_BLOCK, LIAR, epoch=1), proof(FORK, LIAR, roster=roster), []
    )
    assert verify_evidence(evidence, roster).name == LIAR
    with pytest.raises(OrderUnknownError, match="epoch 2 is not known here"):
        verify_evidence(evidence, ROSTER)


def test_two_votes_under_two_keys_convict_nobody() -> None:
    """The second device may not know what the first has signed: that was lost with it."""
    roster = NEXT.roster
    evidence = votes_evidence(
        proof(FIRST_BLOCK, LIAR, epoch=1), proof(FORK, LIAR, roster=roster), []
    )
    with pytest.raises(BlockRejectedError, match="under two keys"):
        verify_evidence(evidence, roster)


FOREIGN = prove(
    open_batch(
        batch_message([leaf(FORK)], LIAR, genesis=ELSEWHERE.hash),
        ELSEWHERE.hash,
    ),
    0,
)


@pytest.mark.parametrize(
    ("low", "high", "between", "message"),
    [
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            proof(FIRST_BLOCK, LIAR, checks=0),
            [],
            "nobody lied",
            id="one head, other checks",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            proof(THIRD_BLOCK, LIAR),
            connecting(SECOND_BLOCK, THIRD_BLOCK),
            "nobody lied",
            id="a head and its descendant",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            proof(FORK, HOUSE),
            [],
            "of two authorities",
            id="two authorities' words",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            proof(block(name=OTHER_HOUSE), LIAR),
            [],
            "of two chains",
            id="two chains",
        ),
        pytest.param(
            proof(FORK_SECOND, LIAR),
            proof(FIRST_BLOCK, LIAR),
            connecting(FORK_SECOND),
            "the higher one comes first",
            id="the higher one first",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            proof(FORK_THIRD, LIAR),
            connecting(FORK_THIRD),
            "not all there",
            id="a block left out",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            proof(FORK, LIAR),
            connecting(FORK),
            "not all there",
            id="a block too many",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            proof(FORK_THIRD, LIAR),
            connecting(SECOND_BLOCK, FORK_THIRD),
            "do not link",
            id="blocks that do not link",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            proof(FORK_SECOND._replace(height=3), LIAR),
            [FORK_SECOND.encode(), FORK_SECOND._replace(height=3).encode()],
            "do not link",
            id="a block that skips",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            (
                prove(
                    open_batch(
                        batch_message([leaf(FORK_SECOND)._replace(meter=OTHER_HOUSE)], LIAR),
                        GENESIS.hash,
                    ),
                    0,
                ),
                leaf(FORK_SECOND)._replace(meter=OTHER_HOUSE),
            ),
            connecting(FORK_SECOND),
            "of two chains",
            id="a leaf of another chain than its block",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            (FOREIGN, leaf(FORK)),
            [],
            "not signed by this voter",
            id="a vote in another network",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR), strange(FORK, "stranger"), [], "not vote", id="a stranger's"
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR),
            (proof(FORK, LIAR)[0], leaf(SECOND_BLOCK)),
            connecting(SECOND_BLOCK),
            "not signed by this voter",
            id="a vote for another leaf",
        ),
        pytest.param(
            proof(FIRST_BLOCK, LIAR), (b"", leaf(FORK)), [], "not a COSE receipt", id="no receipt"
        ),
    ],
)
def test_nobody_voted_for_two_histories_by(
    low: tuple[bytes, Leaf], high: tuple[bytes, Leaf], between: list[bytes], message: str
) -> None:
    with pytest.raises(BlockRejectedError, match=message):
        verify_evidence(votes_evidence(low, high, between), ROSTER)


def test_a_vote_whose_connecting_block_is_another_chains_is_no_evidence() -> None:
    """A liar may attest, at one place, the hash of a block of another place."""
    astray = leaf(FORK_SECOND)._replace(block_hash=FORK_THIRD.hash)
    batch = open_batch(batch_message([astray], LIAR), GENESIS.hash)
    evidence = votes_evidence(
        proof(FIRST_BLOCK, LIAR), (prove(batch, 0), astray), connecting(FORK_THIRD)
    )
    with pytest.raises(BlockRejectedError, match="are another chain's"):
        verify_evidence(evidence, ROSTER)


VOTES = votes_evidence(proof(FIRST_BLOCK, LIAR), proof(FORK_SECOND, LIAR), connecting(FORK_SECOND))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "no evidence", id="nothing"),
        pytest.param(b"\x80", "of any kind known", id="an empty array"),
        pytest.param(GENESIS.encode(), "of any kind known", id="a genesis"),
        pytest.param(
            encode(changed(decode(VOTES), (0,), "meterd/evidence-votes/v2")),
            "of any kind known",
            id="votes of a new version",
        ),
        pytest.param(
            encode(["meterd/evidence-seals/v2", b"", b"x"]), "any kind", id="seals of a new version"
        ),
        pytest.param(
            encode(changed(decode(VOTES), (1,), [])), "a vote is misshapen", id="half a vote"
        ),
        pytest.param(
            encode(changed(decode(VOTES), (1, 1), [])), "a leaf is misshapen", id="half a leaf"
        ),
        pytest.param(
            encode(changed(decode(VOTES), (3, 0), 7)), "do not link", id="a number between"
        ),
    ],
)
def test_bytes_are_no_evidence(data: bytes, message: str) -> None:
    with pytest.raises(BlockRejectedError, match=message):
        verify_evidence(data, ROSTER)


def test_evidence_of_one_network_convicts_nobody_in_another() -> None:
    elsewhere = found(ELSEWHERE)
    seals = [sealed(FIRST_BLOCK), sealed(FORK)]
    orders = [sealed(item) for item in FORKED_ORDERS]
    for evidence in (VOTES, seals_evidence(*seals), seals_evidence(*orders)):
        assert verify_evidence(evidence, ROSTER)
        with pytest.raises(BlockRejectedError):
            verify_evidence(evidence, elsewhere)


def test_evidence_that_names_an_unknown_order_is_told_from_what_is_no_evidence() -> None:
    network = ordered(ROTATE)
    later = FORK._replace(order=(1, network.orders[0].hash))
    evidence = seals_evidence(sealed(FIRST_BLOCK), sealed(later, "house-1 seals, 2"))
    with pytest.raises(OrderUnknownError):
        verify_evidence(evidence, ROSTER)


def signed_otherwise(item: Block, by: str) -> bytes:
    """Return a block under a valid seal that `seal` would not make: another nonce (RFC 8032)."""
    message = sealed(item, by)
    protected, _, payload, _ = cbor2.loads(message).value
    said = cbor2.dumps(["Signature1", protected, GENESIS.hash, payload])
    hashed = bytearray(sha512(bytes(key(by))).digest()[:32])
    hashed[0] &= 248
    hashed[31] = hashed[31] & 127 | 64
    secret = bindings.crypto_core_ed25519_scalar_reduce(bytes(hashed) + bytes(32))
    nonce = bindings.crypto_core_ed25519_scalar_reduce(sha512(b"another nonce").digest())
    point = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce)
    challenge = bindings.crypto_core_ed25519_scalar_reduce(
        sha512(point + public(by) + said).digest()
    )
    product = bindings.crypto_core_ed25519_scalar_mul(challenge, secret)
    return message[:-64] + point + bindings.crypto_core_ed25519_scalar_add(nonce, product)


def test_a_block_sealed_twice_is_one_block() -> None:
    one, other = sealed(FIRST_BLOCK), signed_otherwise(FIRST_BLOCK, f"{HOUSE} seals")
    assert open_enrolled(other, ROSTER) == open_enrolled(one, ROSTER)
    with pytest.raises(BlockRejectedError, match="the two are one block"):
        verify_evidence(seals_evidence(one, other), ROSTER)


def test_a_block_opens_under_the_key_of_its_time() -> None:
    assert open_enrolled(sealed(FIRST_BLOCK), ROSTER) == (FIRST_BLOCK, FIRST_BLOCK.encode())
    with pytest.raises(OrderUnknownError):
        open_enrolled(sealed(FIRST_BLOCK._replace(order=(1, bytes(32)))), ROSTER)
    assert public(f"{HOUSE} seals") == ROSTER.enrolled((HOUSE, 1)).key_at(0)
    assert Ordered().roster == ROSTER
