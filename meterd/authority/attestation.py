"""What an authority signs: batches of heads, and each head's proof out of its batch.

An attestation means: I hold these bytes durably; the seal is valid under a key that the roster
allows at this height; the block extends the chain that I have locked; the ledger's rules hold; I
received it at T by my clock. It says nothing of physics. Attesting a head attests all before it.

A batch is a COSE_Sign1 (RFC 9052) over the root of an RFC 9162 tree of leaves, so that a leaf's
inclusion path and the batch's signature are together a COSE Receipt (RFC 9942). Epoch, number,
the batch before, the time, and whether the authority closes its epoch are in the protected header.

>>> from nacl.signing import SigningKey
>>> key = SigningKey(bytes(32))
>>> head = Leaf("kitchen-12", 1, 7, bytes(32), SEEN | TIMELY | PLAUSIBLE)
>>> message = sign_batch(Header(1, 1, bytes(32), 0, 0), [head], key, genesis=bytes(32))
>>> batch = open_batch(message, bytes(32))
>>> verify_batch(batch, bytes(key.verify_key))
>>> open_proof(prove(batch, 0), head, bytes(32)).header == batch.header
True
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import cbor2
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from meterd.authority import merkle
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.account import NAME, shaped
from meterd.ledger.encoding import (
    HASH_BYTES,
    KEY_ID_BYTES,
    SIGNATURE_BYTES,
    UINT_MAX,
    decode,
    digest,
    encode,
    key_id,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nacl.signing import SigningKey

BATCH_CONTEXT = "meterd/batch/v1"
ATTEST_CONTEXT = "meterd/attest/v1"
HEIGHT_MAX = 2**63 - 1  # what a store can count to
LEAVES_MAX = 256  # some 90 bytes each: a batch stays well below what a message may be
SEEN, TIMELY, PLAUSIBLE = 1, 2, 4  # registers seen in clear; end not in the future; within limits
CHECKS = (SEEN, TIMELY, PLAUSIBLE)
CHECKS_ALL = SEEN | TIMELY | PLAUSIBLE
PAD_LEAF = b""  # follows a lone leaf: RFC 9942 has no room for an empty path
OPEN, CLOSING, CLOSED = 0, 1, 2  # a batch; a part of the closing ones; the last of all
_ALG, _KID, _TYP, _VDS, _VDP, _OURS = 1, 4, 16, 395, 396, "meterd"
_RFC9162_SHA256 = 1
_INCLUSION = -1
# What comes of bytes that are CBOR of another shape: tags, texts and arrays where a map is due.
_UNLIKE = (
    cbor2.CBORError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_STRICT: Any = {"max_depth": 6, "allow_indefinite": False, "immutable": True}


class Leaf(NamedTuple):
    """A head that an authority attests.

    Attributes:
        meter: Whose chain.
        incarnation: Which of its chains.
        height: The head's height.
        block_hash: Its hash.
        checks: Sum of 1 registers seen, 2 time checked, 4 plausible, each for every block since
            this authority's leaf before on this chain.
    """

    meter: str
    incarnation: int
    height: int
    block_hash: bytes
    checks: int

    @property
    def chain(self) -> tuple[str, int]:
        """Which chain."""
        return self.meter, self.incarnation


class Header(NamedTuple):
    """What a batch says of itself, protected by its signature.

    Attributes:
        epoch: Which epoch it votes in.
        number: 1 for this voting key's first, counting up.
        previous: Hash of the batch before; zeros for the first.
        time_s: The authority's clock, Unix seconds.
        closing: 0, or 1 and at last 2 where it repeats all locks and ends its epoch.
    """

    epoch: int
    number: int
    previous: bytes
    time_s: int
    closing: int


class Batch(NamedTuple):
    """A signed batch, taken apart; whether its signature holds is told by `verify_batch`.

    Attributes:
        header: What it says of itself.
        kid: Which voting key is said to have signed.
        leaves: Its heads, ascending by chain.
        root: Root of their tree.
        signature: 64 bytes.
        signed: What the signature is over.
    """

    header: Header
    kid: bytes
    leaves: tuple[Leaf, ...]
    root: bytes
    signature: bytes
    signed: bytes

    @property
    def hash(self) -> bytes:
        """SHA-256 of what is signed, which binds header and leaves."""
        return digest(self.signed)


def _protected(kid: bytes, header: Header, size: int) -> bytes:
    return cbor2.dumps(
        {
            _ALG: -19,
            _KID: kid,
            _TYP: BATCH_CONTEXT,
            _VDS: _RFC9162_SHA256,
            _OURS: [*header, size],
        }
    )


def _read_protected(data: bytes) -> tuple[bytes, Header, int]:
    """Return key id, header and size of the tree; without the size a path had many spellings."""
    try:
        value: Any = cbor2.loads(data, **_STRICT)
        kid, ours = value[_KID], tuple(value[_OURS])
    except _UNLIKE as error:
        raise EncodingError("the protected header is not a batch's") from error
    if tuple(map(type, ours)) != (int, int, bytes, int, int, int):  # no truth value is a number
        raise EncodingError("the protected header is not a batch's")
    header, size = Header(*ours[:-1]), ours[-1]
    good = 0 < header.epoch <= HEIGHT_MAX and 0 < header.number <= HEIGHT_MAX
    good = good and 0 <= header.time_s <= UINT_MAX and OPEN <= header.closing <= CLOSED
    if not good or len(header.previous) != HASH_BYTES or not 0 < size <= LEAVES_MAX:
        raise EncodingError("epoch, number, link or size of the batch cannot be")
    if type(kid) is not bytes or len(kid) != KEY_ID_BYTES or _protected(kid, header, size) != data:
        raise EncodingError("the protected header is not spelt as a batch's is")
    return kid, header, size


def _signed(protected: bytes, root: bytes, genesis: bytes) -> bytes:
    return cbor2.dumps(["Signature1", protected, genesis, root])


def _spellings(leaves: Sequence[Leaf] | Sequence[tuple[Any, ...]]) -> list[bytes]:
    spelt = [cbor2.dumps(list(leaf)) for leaf in leaves]
    return spelt if len(spelt) > 1 else [*spelt, PAD_LEAF]


def sign_batch(header: Header, leaves: Sequence[Leaf], key: SigningKey, genesis: bytes) -> bytes:
    """Return the message of a batch under a voting key; see `make_batch`."""
    return make_batch(header, leaves, key, genesis)[1]


def make_batch(
    header: Header, leaves: Sequence[Leaf], key: SigningKey, genesis: bytes
) -> tuple[Batch, bytes]:
    """Return a batch under a voting key, and its message.

    Args:
        header: What it says of itself.
        leaves: Its heads, at most `LEAVES_MAX`, one for each chain; none only where it closes.
        key: The voting key.
        genesis: Hash of the network's genesis.
    """
    ordered = sorted(leaves, key=lambda leaf: leaf.chain)
    spelt = _spellings(ordered)
    kid = key_id(bytes(key.verify_key))
    protected = _protected(kid, header, len(spelt))
    top = merkle.root(spelt)
    signed = _signed(protected, top, genesis)
    signature = key.sign(signed).signature
    message = encode([ATTEST_CONTEXT, protected, signature, list(map(list, ordered))])
    return Batch(header, kid, tuple(ordered), top, signature, signed), message


def open_batch(message: bytes, genesis: bytes) -> Batch:
    """Return the batch in `message`, from outside; its signature is not verified yet.

    Raises:
        EncodingError: It is misspelt, or its leaves are out of order or twice.
    """
    value = decode(message)
    if not shaped(value, str, bytes, bytes, tuple) or value[0] != ATTEST_CONTEXT:
        raise EncodingError("not a batch of attestations")
    _, protected, signature, entries = value
    kid, header, size = _read_protected(protected)
    if len(signature) != SIGNATURE_BYTES or len(entries) > LEAVES_MAX:
        raise EncodingError("the batch has no signature, or too many leaves")
    if not entries and not header.closing:
        raise EncodingError("the batch has no leaf")
    leaves = tuple(map(read_leaf, entries))
    if any(one.chain >= two.chain for one, two in pairwise(leaves)):
        raise EncodingError("leaves of the batch are out of order, or a chain comes twice")
    spelt = _spellings(leaves)
    if len(spelt) != size:
        raise EncodingError(f"the batch has {len(spelt)} leaves, its header says {size}")
    top = merkle.root(spelt)
    return Batch(header, kid, leaves, top, signature, _signed(protected, top, genesis))


def read_leaf(value: Any) -> Leaf:  # noqa: ANN401 - any decoded value
    """Return the leaf that a decoded value is.

    Raises:
        EncodingError: It is none.
    """
    if not shaped(value, str, int, int, bytes, int):
        raise EncodingError("a leaf is misshapen")
    leaf = Leaf(*value)
    named = NAME.fullmatch(leaf.meter) and leaf.incarnation > 0 and 0 < leaf.height <= HEIGHT_MAX
    if not named or len(leaf.block_hash) != HASH_BYTES or leaf.checks > CHECKS_ALL:
        raise EncodingError("a leaf names what cannot be")
    return leaf


def verify_batch(batch: Batch, key: bytes) -> None:
    """Check that the voting key `key` signed this batch.

    Raises:
        BlockRejectedError: It did not.
    """
    _verify(batch.signed, batch.signature, batch.kid, key)


def _verify(signed: bytes, signature: bytes, kid: bytes, key: bytes) -> None:
    if kid != key_id(key):
        raise BlockRejectedError(f"the batch is signed by key {kid.hex()}, not by the voter's")
    try:
        VerifyKey(key).verify(signed, signature)
    except BadSignatureError as error:
        raise BlockRejectedError("the batch is not signed by this voter") from error


# --- proofs: COSE Receipts (RFC 9942) ---------------------------------------------------------


class Proof(NamedTuple):
    """One leaf's way into its batch, from outside; see `verify_proof`.

    Attributes:
        leaf: The head.
        header: What its batch says of itself.
        kid: Which voting key is said to have signed.
        signature: 64 bytes.
        signed: What the signature is over: the root that leaf and path lead to.
    """

    leaf: Leaf
    header: Header
    kid: bytes
    signature: bytes
    signed: bytes

    @property
    def batch_hash(self) -> bytes:
        """The batch's hash."""
        return digest(self.signed)


def prove(batch: Batch, index: int) -> bytes:
    """Return the COSE Receipt of the leaf at `index`."""
    spelt = _spellings(batch.leaves)
    steps = merkle.path(spelt, index)
    inclusion = cbor2.dumps([len(spelt), index, steps])
    protected = _protected(batch.kid, batch.header, len(spelt))
    return _receipt(protected, inclusion, batch.signature)


def _receipt(protected: bytes, inclusion: bytes, signature: bytes) -> bytes:
    unprotected = {_VDP: {_INCLUSION: [inclusion]}}
    return cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected, None, signature]))


def open_proof(receipt: bytes, leaf: Leaf, genesis: bytes) -> Proof:
    """Return what a COSE Receipt says of `leaf`; its signature is not verified yet.

    Raises:
        EncodingError: It is misspelt, or no path leads from this leaf.
    """
    try:
        tagged: Any = cbor2.loads(receipt, **_STRICT)
        protected, unprotected, payload, signature = tagged.value
        (inclusion,) = unprotected[_VDP][_INCLUSION]
        size, index, steps = cbor2.loads(inclusion, **_STRICT)
        if payload is not None or _receipt(protected, inclusion, signature) != receipt:
            raise EncodingError("the receipt is not spelt as ours are")
        if cbor2.dumps([size, index, steps]) != inclusion:
            raise EncodingError("the receipt's path is not spelt as ours are")
    except _UNLIKE as error:
        raise EncodingError("not a COSE receipt of a batch") from error
    kinds = (type(size), type(index), type(steps), type(signature))
    if kinds != (int, int, tuple, bytes) or len(signature) != SIGNATURE_BYTES:
        raise EncodingError("not a COSE receipt of a batch")
    if not steps or not all(type(step) is bytes and len(step) == HASH_BYTES for step in steps):
        raise EncodingError("the receipt's path is empty, or its steps are not hashes")
    if not 0 <= index < size <= LEAVES_MAX:  # else such numbers stood in the errors
        raise EncodingError("the receipt's path is of a tree that no batch is")
    kid, header, said = _read_protected(protected)
    if said != size:
        raise EncodingError(f"the path is of a tree of {size} leaves, the batch has {said}")
    top = merkle.climb(encode(list(leaf)), index, size, steps)
    return Proof(leaf, header, kid, signature, _signed(protected, top, genesis))


def verify_proof(proof: Proof, key: bytes) -> None:
    """Check that the voting key `key` signed the batch that the proof leads to.

    Raises:
        BlockRejectedError: It did not.
    """
    _verify(proof.signed, proof.signature, proof.kid, key)
