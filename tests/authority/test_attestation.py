from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meterd.authority import merkle
from meterd.authority.attestation import (
    CHECKS_ALL,
    CLOSED,
    CLOSING,
    LEAVES_MAX,
    PAD_LEAF,
    Header,
    Leaf,
    open_batch,
    open_proof,
    prove,
    read_leaf,
    sign_batch,
    verify_batch,
    verify_proof,
)
from meterd.errors import BlockRejectedError, EncodingError, MeterdError
from meterd.ledger.encoding import decode, digest, encode, key_id
from tests.authority.examples import ELSEWHERE, GENESIS, NOW_S, key, public
from tests.ledger.examples import changed

KEY, PUBLIC = key("feeder-1 votes"), public("feeder-1 votes")
HEADER = Header(epoch=1, number=1, previous=bytes(32), time_s=NOW_S, closing=0)
LEAVES = [Leaf(f"house-{number}", 1, 7, digest(bytes([number])), CHECKS_ALL) for number in range(5)]
MESSAGE = sign_batch(HEADER, LEAVES, KEY, GENESIS.hash)
BATCH = open_batch(MESSAGE, GENESIS.hash)
RECEIPT = prove(BATCH, 2)
LEAF = LEAVES[2]
leaves = st.builds(
    Leaf,
    st.text("abc-1", min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 7),
)


@given(st.lists(leaves, min_size=1, max_size=20, unique_by=lambda leaf: leaf.chain), st.data())
def test_every_leaf_of_a_batch_proves_itself_and_no_other(
    several: list[Leaf], data: st.DataObject
) -> None:
    batch = open_batch(sign_batch(HEADER, several, KEY, GENESIS.hash), GENESIS.hash)
    verify_batch(batch, PUBLIC)
    assert batch.leaves == tuple(sorted(several, key=lambda leaf: leaf.chain))
    index = data.draw(st.integers(0, len(several) - 1))
    leaf = batch.leaves[index]
    proof = open_proof(prove(batch, index), leaf, GENESIS.hash)
    verify_proof(proof, PUBLIC)
    assert (proof.leaf, proof.header, proof.kid) == (leaf, HEADER, key_id(PUBLIC))
    assert (proof.batch_hash, proof.signed) == (batch.hash, batch.signed)
    other = data.draw(leaves.filter(lambda one: one != leaf))
    with pytest.raises(BlockRejectedError, match="not signed by this voter"):
        verify_proof(open_proof(prove(batch, index), other, GENESIS.hash), PUBLIC)


def test_a_batch_is_one_byte_sequence_whatever_the_order_of_its_leaves() -> None:
    assert sign_batch(HEADER, LEAVES[::-1], KEY, GENESIS.hash) == MESSAGE


def test_a_lone_leaf_is_followed_by_a_pad_leaf() -> None:
    batch = open_batch(sign_batch(HEADER, LEAVES[:1], KEY, GENESIS.hash), GENESIS.hash)
    assert batch.root == merkle.root([encode(list(LEAVES[0])), PAD_LEAF])
    verify_proof(open_proof(prove(batch, 0), LEAVES[0], GENESIS.hash), PUBLIC)


@pytest.mark.parametrize("closing", [CLOSING, CLOSED])
def test_who_ends_an_epoch_without_a_lock_signs_a_batch_without_a_leaf(closing: int) -> None:
    message = sign_batch(HEADER._replace(closing=closing), [], KEY, GENESIS.hash)
    batch = open_batch(message, GENESIS.hash)
    verify_batch(batch, PUBLIC)
    assert (batch.leaves, batch.header.closing) == ((), closing)


# --- batches from outside -------------------------------------------------------------------------


def protected(**changes: Any) -> bytes:  # noqa: ANN401
    """Return a batch's protected header with items changed, or gone where None."""
    ours: dict[Any, Any] = {
        1: -19,
        4: key_id(PUBLIC),
        16: "meterd/batch/v1",
        395: 1,
        "meterd": [*HEADER, len(LEAVES)],
    }
    named = {"alg": 1, "kid": 4, "typ": 16, "vds": 395, "meterd": "meterd", "crit": 2}
    for name, value in changes.items():
        ours[named[name]] = value
    return cbor2.dumps({label: value for label, value in ours.items() if value is not None})


def said(**changes: Any) -> bytes:  # noqa: ANN401
    """Return a protected header that says something else."""
    return protected(meterd=[*HEADER._replace(**changes), len(LEAVES)])


PROTECTED_BAD = [
    pytest.param(b"", "is not a batch's", id="nothing"),
    pytest.param(b"\xa0", "is not a batch's", id="an empty map"),
    pytest.param(protected(kid=None), "is not a batch's", id="no kid"),
    pytest.param(protected(meterd=None), "is not a batch's", id="no word of the batch"),
    pytest.param(protected(meterd=7), "is not a batch's", id="a number for a header"),
    pytest.param(protected(meterd=[1, 1]), "is not a batch's", id="half a header"),
    pytest.param(said(time_s=1.5), "is not a batch's", id="a time with a fraction"),
    pytest.param(said(epoch=0), "cannot be", id="epoch 0"),
    pytest.param(said(epoch=2**64), "cannot be", id="an epoch of 65 bits"),
    pytest.param(said(number=0), "cannot be", id="number 0"),
    pytest.param(said(number=2**64), "cannot be", id="a number of 65 bits"),
    pytest.param(said(time_s=-1), "cannot be", id="a time before 1970"),
    pytest.param(said(time_s=2**64), "cannot be", id="a time of 65 bits"),
    pytest.param(said(closing=3), "cannot be", id="an unknown closing"),
    pytest.param(protected(meterd=[*HEADER, 0]), "cannot be", id="a tree of no leaf"),
    pytest.param(protected(meterd=[*HEADER, 2**32]), "cannot be", id="a tree without bound"),
    pytest.param(said(closing=-1), "cannot be", id="a negative closing"),
    pytest.param(said(previous=bytes(31)), "cannot be", id="a short link"),
    pytest.param(protected(alg=-8), "is not spelt", id="another algorithm"),
    pytest.param(protected(typ="meterd/block/v1"), "is not spelt", id="another type"),
    pytest.param(protected(vds=2), "is not spelt", id="another tree"),
    pytest.param(protected(crit=["meterd"]), "is not spelt", id="crit"),
    pytest.param(protected(kid="feeder-1"), "is not spelt", id="a kid as text"),
    pytest.param(protected(kid=bytes(7)), "is not spelt", id="a short kid"),
    pytest.param(protected() + b"\0", "is not", id="a trailing byte"),
    pytest.param(protected()[:-1], "is not a batch's", id="a byte less"),
]


def with_protected(header: bytes) -> bytes:
    """Return the batch under another protected header, signed as it then is."""
    signed = cbor2.dumps(["Signature1", header, GENESIS.hash, BATCH.root])
    spelt: list[Any] = [list(leaf) for leaf in LEAVES]
    return encode(["meterd/attest/v1", header, KEY.sign(signed).signature, spelt])


def test_the_batch_that_follows_changes_one_thing_of_ours() -> None:
    assert with_protected(protected()) == MESSAGE


@pytest.mark.parametrize(("header", "message"), PROTECTED_BAD)
def test_a_batch_is_refused_with_a_protected_header_of(header: bytes, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        open_batch(with_protected(header), GENESIS.hash)


@pytest.mark.parametrize(("header", "message"), PROTECTED_BAD)
def test_a_proof_is_refused_with_a_protected_header_of(header: bytes, message: str) -> None:
    _, unprotected, payload, signature = cbor2.loads(RECEIPT).value
    tagged = cbor2.CBORTag(18, [header, unprotected, payload, signature])
    with pytest.raises(EncodingError, match=message):
        open_proof(cbor2.dumps(tagged), LEAF, GENESIS.hash)


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        pytest.param((0,), "meterd/attest/v2", "not a batch", id="is of a new version"),
        pytest.param((3,), b"", "not a batch", id="has bytes for leaves"),
        pytest.param((2,), bytes(63), "no signature", id="has a short signature"),
        pytest.param((3,), [], "has no leaf", id="has no leaf and does not close"),
        pytest.param((3,), [list(LEAF)] * (LEAVES_MAX + 1), "too many", id="has too many leaves"),
        pytest.param((3,), [list(LEAF)] * 2, "comes twice", id="has a leaf twice"),
        pytest.param((3,), list(map(list, LEAVES[::-1])), "out of order", id="is in disorder"),
        pytest.param(
            (3,),
            [list(LEAF), list(LEAF._replace(height=8))],
            "a chain comes twice",
            id="attests two heads of a chain",
        ),
        pytest.param((3, 0), [], "a leaf is misshapen", id="has an empty leaf"),
        pytest.param((3, 0, 0), "House", "what cannot be", id="attests no possible name"),
        pytest.param((3, 0, 1), 0, "what cannot be", id="attests incarnation 0"),
        pytest.param((3, 0, 2), 0, "what cannot be", id="attests height 0"),
        pytest.param((3, 0, 3), bytes(31), "what cannot be", id="attests a short hash"),
        pytest.param((3, 0, 4), 8, "what cannot be", id="has an unknown check"),
    ],
)
def test_a_batch_is_refused_that(place: tuple[int, ...], new: object, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        open_batch(encode(changed(decode(MESSAGE), place, new)), GENESIS.hash)


def test_a_leaf_is_no_other_value() -> None:
    assert read_leaf(tuple(LEAF)) == LEAF
    with pytest.raises(EncodingError, match="misshapen"):
        read_leaf(list(LEAF))


@pytest.mark.parametrize(
    ("message", "genesis", "voter", "reason"),
    [
        pytest.param(MESSAGE, ELSEWHERE.hash, PUBLIC, "not signed by", id="in another network"),
        pytest.param(MESSAGE, GENESIS.hash, public("regulator votes"), "by key", id="as another's"),
        pytest.param(
            encode(changed(decode(MESSAGE), (3, 0, 4), 0)),
            GENESIS.hash,
            PUBLIC,
            "not signed by",
            id="with checks taken away",
        ),
        pytest.param(
            encode(changed(decode(MESSAGE), (1,), said(epoch=2))),
            GENESIS.hash,
            PUBLIC,
            "not signed by",
            id="in another epoch",
        ),
        pytest.param(
            with_protected(protected(kid=key_id(public("stranger")))),
            GENESIS.hash,
            PUBLIC,
            "by key",
            id="under another kid",
        ),
        pytest.param(
            MESSAGE.replace(decode(MESSAGE)[2], bytes(64)),
            GENESIS.hash,
            PUBLIC,
            "not signed by",
            id="without a signature",
        ),
    ],
)
def test_a_batch_does_not_verify(message: bytes, genesis: bytes, voter: bytes, reason: str) -> None:
    with pytest.raises(BlockRejectedError, match=reason):
        verify_batch(open_batch(message, genesis), voter)


def test_a_batch_is_refused_that_has_other_leaves_than_it_says() -> None:
    fewer = encode(changed(decode(MESSAGE), (3,), list(map(list, LEAVES[:-1]))))
    with pytest.raises(EncodingError, match="the batch has 4 leaves, its header says 5"):
        open_batch(fewer, GENESIS.hash)


# --- receipts from outside ------------------------------------------------------------------------

SIZE, INDEX, STEPS = cbor2.loads(
    cbor2.loads(RECEIPT).value[1][396][-1][0],
)


def receipt(
    *,
    tag: int = 18,
    unprotected: Any = None,  # noqa: ANN401
    inclusion: Any = (SIZE, INDEX, STEPS),  # noqa: ANN401
    payload: Any = None,  # noqa: ANN401
    signature: Any = BATCH.signature,  # noqa: ANN401
) -> bytes:
    """Return the COSE Receipt with one part changed."""
    spelt = inclusion if isinstance(inclusion, bytes) else cbor2.dumps(inclusion)
    paths = {396: {-1: [spelt]}} if unprotected is None else unprotected
    return cbor2.dumps(cbor2.CBORTag(tag, [protected(), paths, payload, signature]))


def test_the_receipt_that_follows_changes_one_thing_of_ours() -> None:
    assert receipt() == RECEIPT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "not a COSE receipt", id="is nothing"),
        pytest.param(b"\x07", "not a COSE receipt", id="is a number"),
        pytest.param(cbor2.dumps({}), "not a COSE receipt", id="is a map"),
        pytest.param(receipt(tag=98), "is not spelt", id="has another tag"),
        pytest.param(b"\xd8\x12" + RECEIPT[1:], "is not spelt", id="has a tag in two bytes"),
        pytest.param(RECEIPT + b"\0", "not", id="has a trailing byte"),
        pytest.param(RECEIPT[:-1], "not a COSE receipt", id="has a byte less"),
        pytest.param(receipt(payload=BATCH.root), "is not spelt", id="carries the root"),
        pytest.param(receipt(unprotected={}), "not a COSE receipt", id="has no path"),
        pytest.param(receipt(unprotected={396: {-1: []}}), "not a COSE", id="has no inclusion"),
        pytest.param(receipt(unprotected={396: {-2: [b""]}}), "not a COSE", id="is of consistency"),
        pytest.param(
            receipt(unprotected={396: {-1: [b"", b""]}}), "not a COSE", id="has two inclusions"
        ),
        pytest.param(
            receipt(
                unprotected={4: b"", 396: {-1: [cbor2.dumps([SIZE, INDEX, STEPS])]}},
            ),
            "is not spelt",
            id="has another unprotected header",
        ),
        pytest.param(receipt(inclusion=b"\xff"), "not a COSE", id="has an inclusion of no CBOR"),
        pytest.param(receipt(inclusion=[5, 2]), "not a COSE", id="has an inclusion without path"),
        pytest.param(
            receipt(inclusion=b"\x83\x18\x05" + cbor2.dumps([INDEX, STEPS])[1:]),
            "path is not spelt",
            id="spells its size in two bytes",
        ),
        pytest.param(receipt(inclusion=[5.0, 2, STEPS]), "not a COSE", id="has a size of 5.0"),
        pytest.param(receipt(inclusion=[5, True, STEPS]), "not a COSE", id="is at True"),
        pytest.param(receipt(inclusion=[5, 2, b""]), "not a COSE", id="has bytes for a path"),
        pytest.param(receipt(signature=bytes(63)), "not a COSE", id="has a short signature"),
        pytest.param(receipt(signature="x" * 64), "not a COSE", id="has a signature of text"),
        pytest.param(receipt(inclusion=[1, 0, []]), "path is empty", id="has an empty path"),
        pytest.param(
            receipt(inclusion=[5, 2, [*STEPS[:-1], bytes(31)]]), "not hashes", id="has a short step"
        ),
        pytest.param(
            receipt(inclusion=[5, 2, [*STEPS[:-1], 7]]), "not hashes", id="has a number for a step"
        ),
        pytest.param(receipt(inclusion=[5, 5, STEPS]), "no batch is", id="is behind the leaves"),
        pytest.param(receipt(inclusion=[5, -1, STEPS]), "no batch is", id="is before them"),
        pytest.param(receipt(inclusion=[2**70, 2, STEPS]), "no batch is", id="is of 2^70 leaves"),
        pytest.param(  # a number that Python does not print
            receipt(inclusion=[10**5000, 2, STEPS]), "no batch is", id="is of 10^5000 leaves"
        ),
        pytest.param(
            receipt(inclusion=[2, 1, STEPS]), "the batch has 5", id="is of too few leaves"
        ),
    ],
)
def test_a_receipt_is_refused_that(data: bytes, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        open_proof(data, LEAF, GENESIS.hash)


@pytest.mark.parametrize(
    ("data", "leaf", "genesis", "voter"),
    [
        pytest.param(RECEIPT, LEAF, ELSEWHERE.hash, PUBLIC, id="in another network"),
        pytest.param(RECEIPT, LEAF, GENESIS.hash, public("regulator votes"), id="as another's"),
        pytest.param(RECEIPT, LEAVES[1], GENESIS.hash, PUBLIC, id="for another leaf"),
        pytest.param(RECEIPT, LEAF._replace(checks=0), GENESIS.hash, PUBLIC, id="for fewer checks"),
        pytest.param(receipt(inclusion=[5, 1, STEPS]), LEAF, GENESIS.hash, PUBLIC, id="elsewhere"),
        pytest.param(receipt(signature=bytes(64)), LEAF, GENESIS.hash, PUBLIC, id="unsigned"),
    ],
)
def test_a_receipt_does_not_verify(data: bytes, leaf: Leaf, genesis: bytes, voter: bytes) -> None:
    with pytest.raises(BlockRejectedError, match="signed by"):
        verify_proof(open_proof(data, leaf, genesis), voter)


def refused(data: bytes) -> bool:
    """Say whether a receipt of the last leaf is refused, and with an error of ours."""
    try:
        verify_proof(open_proof(data, LEAVES[-1], GENESIS.hash), PUBLIC)
    except MeterdError:
        return True
    return False


# What has another shape than ours altogether: an index or an attribute that is not there.
SHAPES = [
    pytest.param(b"\x80", id="an empty array"),
    pytest.param(b"\x60", id="an empty text"),
    pytest.param(b"\x40", id="empty bytes"),
    pytest.param(cbor2.dumps([1, 2]), id="a short array"),
]


@pytest.mark.parametrize("data", SHAPES)
def test_a_protected_header_is_refused_that_is(data: bytes) -> None:
    with pytest.raises(EncodingError):
        open_batch(with_protected(data), GENESIS.hash)


@pytest.mark.parametrize("data", SHAPES)
def test_an_unprotected_header_is_refused_that_is(data: bytes) -> None:
    with pytest.raises(EncodingError):
        open_proof(receipt(unprotected=cbor2.loads(data)), LEAF, GENESIS.hash)


def test_a_receipt_with_a_mail_for_a_path_is_refused() -> None:
    mail = cbor2.CBORTag(36, "Subject: none")
    with pytest.raises(EncodingError):
        open_proof(receipt(unprotected={396: {-1: [mail]}}), LEAF, GENESIS.hash)
    with pytest.raises(EncodingError):
        open_proof(receipt(inclusion=[5, 2, mail]), LEAF, GENESIS.hash)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(said(epoch=True), id="epoch"),
        pytest.param(said(number=True), id="number"),
        pytest.param(said(closing=False), id="closing"),
    ],
)
def test_a_truth_value_is_no_number_of_a_batch(header: bytes) -> None:
    with pytest.raises(EncodingError):
        open_batch(with_protected(header), GENESIS.hash)


def test_a_receipt_has_one_spelling_that_verifies() -> None:
    batch = open_batch(sign_batch(HEADER, LEAVES[:3], KEY, GENESIS.hash), GENESIS.hash)
    steps = merkle.path([encode(list(leaf)) for leaf in LEAVES[:3]], 0)
    larger = receipt(inclusion=[4, 0, steps], signature=batch.signature)
    with pytest.raises(MeterdError):
        verify_proof(open_proof(larger, LEAVES[0], GENESIS.hash), PUBLIC)


def test_no_bit_of_a_receipt_can_be_changed() -> None:
    last = prove(BATCH, len(LEAVES) - 1)
    assert not refused(last)
    for at in range(len(last)):
        for bit in range(8):
            assert refused(last[:at] + bytes([last[at] ^ 1 << bit]) + last[at + 1 :]), (at, bit)
        assert refused(last[:at])
        assert refused(last[:at] + last[at + 1 :])


@given(st.binary(max_size=60))
@example(b"\x40\x60\xf6\x40")
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    assert refused(b"\xd2\x84" + data)
