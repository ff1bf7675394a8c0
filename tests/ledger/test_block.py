from __future__ import annotations

import pytest

from meterd.errors import EncodingError
from meterd.ledger.block import BLOCK_BYTES_MAX, UJ_MAX, Block, Energy, decode_block
from meterd.ledger.encoding import decode, digest, encode
from tests.ledger.examples import FIRST, IMPORT, SECOND, changed


@pytest.mark.parametrize("block", [FIRST, SECOND], ids=["first", "second"])
def test_a_block_is_read_as_it_was_written(block: Block) -> None:
    assert decode_block(block.encode()) == block
    assert block.hash == digest(block.encode())


def test_a_register_keeps_its_size_whatever_it_counts() -> None:
    """An encrypted register must not tell its magnitude by its length."""
    sizes = {
        len(FIRST._replace(energy=(Energy(IMPORT, 0, 0, last_uj),)).encode())
        for last_uj in (0, 1, 2**32, UJ_MAX)
    }
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        pytest.param((0,), "meterd/block/v2", "expected meterd/block/v1", id="of a new version"),
        pytest.param((0,), "meterd/genesis/v1", "expected meterd/block/v1", id="of another kind"),
        pytest.param((0,), 1, "not a block", id="without a context"),
        pytest.param((1,), bytes(31), "not 32 bytes", id="with a short genesis"),
        pytest.param((2,), b"kitchen-12", "not a block", id="whose meter is bytes"),
        pytest.param((4,), "1", "not a block", id="whose height is text"),
        pytest.param((5,), b"", "not 32 bytes", id="without the block before"),
        pytest.param((6,), [0], "misshapen", id="with half an order"),
        pytest.param((6, 1), bytes(33), "not 32 bytes", id="with an order's long hash"),
        pytest.param((9,), ["S", 3, bytes(16), 0], "misshapen", id="with a short clock"),
        pytest.param((9, 0), "X", "expected clock status", id="with an unknown clock status"),
        pytest.param((9, 0), "", "expected clock status", id="without a clock status"),
        pytest.param((9, 2), bytes(15), "boot id not 16", id="with a short boot id"),
        pytest.param((10,), bytes(8), "not 32 bytes", id="with short parameters"),
        pytest.param((11,), [360], "misshapen", id="without a fingerprint"),
        pytest.param((11, 1), bytes(8), "not 32 bytes", id="with a link for a fingerprint"),
        pytest.param((12,), 3, "not a block", id="whose events are a number"),
        pytest.param((12, 1), bytes(31), "not 32 bytes", id="with a short digest of events"),
        pytest.param((12, 0), b"3", "misshapen", id="whose count of events is bytes"),
        pytest.param((13,), [], "has no register", id="without a register"),
        pytest.param((13, 0, 0), IMPORT[:5], "misshapen", id="with a short code"),
        pytest.param((13, 0, 1), "0", "misshapen", id="whose register's kind is text"),
        pytest.param((13, 0, 2), bytes(7), "misshapen", id="with a first of 7 bytes"),
        pytest.param((13, 0, 3), bytes(9), "misshapen", id="with a last of 9 bytes"),
        pytest.param((13, 0, 3), 720, "misshapen", id="whose last is a number"),
        pytest.param((13, 0, 2), b"\x80" + bytes(7), "63 bits", id="with a first of 64 bits"),
        pytest.param((13, 0, 3), b"\xff" * 8, "63 bits", id="with a last of 64 bits"),
        pytest.param((14,), "0", "not a block", id="whose flags are text"),
    ],
)
def test_a_block_is_refused(place: tuple[int, ...], new: object, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        decode_block(encode(changed(decode(FIRST.encode()), place, new)))


def test_a_block_of_one_item_more_or_less_is_refused() -> None:
    items = list(decode(FIRST.encode()))
    for other in ([*items, 0], items[:-1]):
        with pytest.raises(EncodingError, match="not a block"):
            decode_block(encode(other))


def test_a_block_that_is_too_long_is_refused() -> None:
    many = tuple(Energy(bytes((1, n, 1, 8, 0, 255)), 0, 0, 0) for n in range(200))
    spelt = FIRST._replace(energy=many).encode()
    assert len(spelt) > BLOCK_BYTES_MAX
    with pytest.raises(EncodingError, match="expected at most 4096 bytes"):
        decode_block(spelt)
