"""What shows a block to whoever has the genesis alone, and what shows nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meterd.authority.certificate import Receipt, open_receipt, verify_receipt
from meterd.errors import BlockRejectedError, EncodingError, MeterdError
from meterd.ledger.encoding import decode, encode, seal
from tests.authority.examples import (
    ELSEWHERE,
    FIRST_BLOCK,
    FORK_RESOLVE,
    GENESIS,
    NEXT_EPOCH,
    REPLACE,
    REVOKE,
    SECOND_BLOCK,
    SHORTER,
    THREE,
    block,
    certificate,
    key,
    ordered,
    receipt,
    rotate,
    sealed,
)
from tests.ledger.examples import changed

if TYPE_CHECKING:
    from meterd.ledger.block import Block

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
