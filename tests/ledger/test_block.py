from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.errors import EncodingError
from meterd.ledger.block import (
    BLOCK_BYTES_MAX,
    METER_CHARS_MAX,
    OBIS_BYTES,
    REGISTERS_MAX,
    UJ_MAX,
    Block,
    Clock,
    Energy,
    decode_block,
)
from meterd.ledger.encoding import UINT_MAX, decode, digest, encode
from tests.ledger.examples import FIRST, IMPORT, SECOND, changed


@pytest.mark.parametrize("block", [FIRST, SECOND], ids=["first", "second"])
def test_a_block_is_read_as_it_was_written(block: Block) -> None:
    assert decode_block(block.encode()) == block
    assert block.hash == digest(block.encode())


numbers = st.integers(0, 63).flatmap(lambda bits: st.integers(0, 2**bits)) | st.sampled_from(
    [n for bits in (8, 16, 32) for n in (2**bits - 1, 2**bits)] + [23, 24, UINT_MAX]
)
hashes = st.binary(min_size=32, max_size=32)
counted = st.integers(0, UJ_MAX)
registers = st.builds(
    Energy, st.binary(min_size=OBIS_BYTES, max_size=OBIS_BYTES), numbers, counted, counted
)
clocks = st.builds(
    Clock,
    st.sampled_from("SIR"),
    numbers,
    st.binary(min_size=16, max_size=16),
    numbers,
    numbers,
)
blocks = st.builds(
    Block,
    *(hashes, st.text("abc-é", max_size=METER_CHARS_MAX), numbers, numbers, hashes),
    *(st.tuples(numbers, hashes), numbers, numbers, clocks, hashes, numbers, hashes),
    *(numbers, hashes, st.lists(registers, min_size=1, max_size=30).map(tuple), numbers),
)


@given(blocks)
def test_a_block_is_spelt_as_the_library_spells_it(block: Block) -> None:
    data = block.encode()
    assert cbor2.dumps(decode(data), canonical=True) == data
    assert decode_block(data) == block


def _heads(data: bytes) -> list[int]:
    """Return where each item of the value that `data` spells begins."""
    found, at = [], 0
    while at < len(data):
        found.append(at)
        major, low = data[at] >> 5, data[at] & 31
        width = (0, 1, 2, 4, 8)[max(0, low - 23)]
        value = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else low
        at += 1 + width + (value if major in (2, 3) else 0)
    return found


@pytest.mark.parametrize("at", range(len(_heads(FIRST.encode()))))
def test_a_block_in_another_spelling_is_refused(at: int) -> None:
    """Longer heads, tags that vanish, and a reference to what stands before: none is ours."""
    data = FIRST.encode()
    place = _heads(data)[at]
    major, low = data[place] & 0xE0, data[place] & 31
    width = (0, 1, 2, 4, 8)[max(0, low - 23)]
    value = int.from_bytes(data[place + 1 : place + 1 + width], "big") if width else low
    rest = data[place + 1 + width :]
    others = [
        data[:place] + bytes([major | low_]) + value.to_bytes(length, "big") + rest
        for low_, length in ((24, 1), (25, 2), (26, 4), (27, 8))
        if length > width
    ]
    others += [data[:place] + tag + data[place:] for tag in (b"\xd9\xd9\xf7", b"\xd8\x1c")]
    if major == 0:
        length = max(1, -(-value.bit_length() // 8))
        bignum = b"\xc2" + bytes([0x40 | length]) + value.to_bytes(length, "big")
        others.append(data[:place] + bignum + rest)
    for other in others:
        with pytest.raises(EncodingError):
            decode_block(other)


def test_a_block_that_refers_to_its_own_parts_is_refused() -> None:
    """A shared value is shorter than what it stands for: a length alone would not tell."""
    data = FIRST.encode()
    hash_at = data.index(b"\x58\x20")
    whole = data[hash_at : hash_at + 34]
    assert data.count(whole) >= 2
    shared = data.replace(whole, b"\xd8\x1c" + whole, 1)
    again = shared.index(whole, shared.index(whole) + 1)
    other = shared[:again] + b"\xd8\x1d\x00" + shared[again + len(whole) :]
    with pytest.raises(EncodingError, match="not the shortest spelling"):
        decode_block(other)


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
        pytest.param((2,), "k" * 33, "more than 32 characters", id="whose meter's name is long"),
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
    many = tuple(
        Energy(bytes((1, n, 1, 8, 0, 255)), 0, 0, UJ_MAX) for n in range(REGISTERS_MAX + 1)
    )
    spelt = FIRST._replace(energy=many[1:], meter="m" * METER_CHARS_MAX).encode()
    assert decode_block(spelt).energy == many[1:]
    with pytest.raises(EncodingError, match="more than 120 registers"):
        FIRST._replace(energy=many).encode()
    with pytest.raises(EncodingError, match="expected at most 4096 bytes"):
        decode_block(spelt + bytes(BLOCK_BYTES_MAX + 1 - len(spelt)))
