"""What convicts whoever signed two histories, and what convicts nobody."""

from __future__ import annotations

from hashlib import sha512
from typing import TYPE_CHECKING

import cbor2
import pytest
from nacl import bindings

from meterd.authority.attestation import Leaf, open_batch, prove
from meterd.authority.certificate import (
    Accused,
    open_enrolled,
    seals_evidence,
    verify_evidence,
    votes_evidence,
)
from meterd.authority.roster import OrderUnknownError, found
from meterd.errors import BlockRejectedError
from meterd.ledger.encoding import decode, encode, key_id
from meterd.ledger.order import RosterChange
from tests.authority.examples import (
    ELSEWHERE,
    ENROL,
    FIRST_BLOCK,
    GENESIS,
    GRID,
    HOUSE,
    NEXT,
    NODES,
    OTHER_HOUSE,
    REVOKE,
    ROSTER,
    ROTATE,
    SECOND_BLOCK,
    SHORTER,
    THIRD_BLOCK,
    Ordered,
    batch_message,
    block,
    forked,
    key,
    leaf,
    order,
    ordered,
    proof,
    public,
    rotate,
    sealed,
    strange,
)
from tests.ledger.examples import changed

if TYPE_CHECKING:
    from meterd.ledger.block import Block
    from meterd.ledger.order import Order

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
