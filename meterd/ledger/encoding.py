r"""The one spelling of every message: deterministic CBOR inside COSE_Sign1.

Payloads are deterministic CBOR (RFC 8949 section 4.2.1) by a profile of ours: arrays of unsigned
integers below 2^64, byte strings, text and arrays. Seals are COSE_Sign1 (RFC 9052) with alg -19
(Ed25519, RFC 9864) and kid protected, nothing unprotected, and the genesis hash as external_aad,
so that no seal can be carried to another network. The bytes around the payload are pinned, which
leaves no room for another algorithm, a `crit`, or a header that somebody adds. `meterd.cddl`
beside this file says the same for other implementations.

>>> decode(encode(["meterd/example/v1", 7, b"x"]))
('meterd/example/v1', 7, b'x')
>>> decode(b"\x18\x07")  # 7 in two bytes
Traceback (most recent call last):
    ...
meterd.errors.EncodingError: not the shortest spelling of its value
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import cbor2
from nacl.exceptions import BadSignatureError

from meterd.errors import BlockRejectedError, EncodingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nacl.signing import SigningKey, VerifyKey

Value: TypeAlias = "int | bytes | str | Sequence[Value]"

MESSAGE_BYTES_MAX = 65_536  # a block is about 400 bytes; the largest message is a roster
DEPTH_MAX = 8  # the deepest message nests three
UINT_MAX = 2**64 - 1
HASH_BYTES = 32
KEY_ID_BYTES = 8
SIGNATURE_BYTES = 64

_PROTECTED = b"\xa2\x01\x32\x04\x48"  # {1: -19, 4: bytes .size 8}, the kid follows
_PROTECTED_BYTES = len(_PROTECTED) + KEY_ID_BYTES
_PROTECTED_HEAD = bytes([0x40 | _PROTECTED_BYTES])
_MESSAGE_HEAD = b"\xd2\x84" + _PROTECTED_HEAD + _PROTECTED  # tag 18, array of four
_SIGNATURE_HEAD = b"\x58\x40"
_HEAD_BYTES = {b"\x58": 2, b"\x59": 3}  # of a longer byte string
_SIGNED_HEAD = b"\x84\x6aSignature1" + _PROTECTED_HEAD  # RFC 9052 section 4.4


def _check(values: Iterable[object], depth: int = DEPTH_MAX + 1) -> None:
    """Refuse what the profile has no room for; it is met with every byte that comes from outside.

    Raises:
        EncodingError: The message says what.
    """
    if depth == 0:
        raise EncodingError(f"arrays nest deeper than {DEPTH_MAX}")
    for item in values:
        kind = type(item)
        if kind is bytes or kind is str:
            continue
        if kind is int:
            if not 0 <= item <= UINT_MAX:  # type: ignore[operator]
                raise EncodingError("expected an unsigned integer below 2^64")
        elif kind is tuple or kind is list:
            _check(item, depth - 1)  # type: ignore[arg-type]
        else:
            raise EncodingError(f"expected integers, bytes, text and arrays, got {kind.__name__}")


def encode(value: Value) -> bytes:
    """Return the one spelling of `value`.

    Raises:
        EncodingError: It holds something that the profile has no room for.
    """
    _check((value,))
    return cbor2.dumps(value)


def decode(data: bytes, *, bytes_max: int = MESSAGE_BYTES_MAX) -> Any:  # noqa: ANN401 - the schema follows
    """Return the value that `data`, bytes from outside, spells: size, then decode, then re-encode.

    Raises:
        EncodingError: Too long, not CBOR, outside the profile, trailing bytes, or another
            spelling of its value (RFC 8949 section 4.2.1).
    """
    if len(data) > bytes_max:
        raise EncodingError(f"expected at most {bytes_max} bytes, got {len(data)}")
    value = read(data)
    _check((value,))
    if cbor2.dumps(value, canonical=True) != data:  # without cycles to look for it is quicker
        raise EncodingError("not the shortest spelling of its value")
    return value


def _heads(major: int) -> tuple[bytes, ...]:
    """Return the heads of a major type for arguments below 256 (RFC 8949 section 3)."""
    return tuple(bytes([major | n]) if n < 24 else bytes([major | 24, n]) for n in range(256))  # noqa: PLR2004


_UINTS, _TEXTS, ARRAYS = map(_heads, (0x00, 0x60, 0x80))
_UINT_16, _UINT_32, _UINT_64 = (Struct(f">B{kind}").pack for kind in "HIQ")


def spell_uint(number: int) -> bytes:
    """Return the spelling of an integer from 0 to `UINT_MAX`, which the caller has checked."""
    if number < 1 << 8:
        return _UINTS[number]
    if number < 1 << 16:
        return _UINT_16(0x19, number)
    if number < 1 << 32:
        return _UINT_32(0x1A, number)
    return _UINT_64(0x1B, number)


@lru_cache(maxsize=256)
def spell_text(text: str) -> bytes:
    """Return the spelling of a text of less than 256 bytes, which the caller has checked."""
    data = text.encode()
    return _TEXTS[len(data)] + data


def decode_first(data: bytes) -> tuple[Any, int]:
    """Return the value that `data` begins with, and how many bytes spell it.

    Raises:
        EncodingError: As for `decode`; what follows the value is not looked at.
    """
    value = read(data)
    _check((value,))
    spelt = cbor2.dumps(value)
    if not data.startswith(spelt):
        raise EncodingError("not the shortest spelling of its value")
    return value, len(spelt)


def read(data: bytes) -> Any:  # noqa: ANN401 - the caller checks what it is
    """Return a value that `data` spells, perhaps not in its one spelling, nor within the profile.

    For a caller who knows each value's place, checks its type and range there, exactly, and then
    spells it himself to compare.

    Raises:
        EncodingError: Not CBOR, or trailing bytes.
    """
    try:
        return cbor2.loads(
            data,
            max_depth=DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            immutable=True,
        )
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise EncodingError(f"not CBOR: {error}") from error


def digest(payload: bytes) -> bytes:
    """Return the SHA-256 of `payload`; a block's hash is over what is sealed, not over the seal."""
    return sha256(payload).digest()


def key_id(public_key: bytes) -> bytes:
    """Return the `kid` of an Ed25519 public key: the first 8 bytes of its SHA-256."""
    return sha256(public_key).digest()[:KEY_ID_BYTES]


class Sealed(NamedTuple):
    """A COSE_Sign1 of our pinned form, taken apart and not yet verified.

    Attributes:
        payload: What is signed, exactly as it came.
        kid: Which key is said to have signed (`key_id`).
        seal: The Ed25519 signature, 64 bytes.
    """

    payload: bytes
    kid: bytes
    seal: bytes


def _string_head(length: int) -> bytes:
    if length < 24:  # noqa: PLR2004 - RFC 8949 section 3
        return bytes([0x40 | length])
    if length < 1 << 8:
        return bytes([0x58, length])
    return b"\x59" + length.to_bytes(2, "big")


def _signed(sealed_kid: bytes, payload: bytes, genesis: bytes) -> bytes:
    return b"".join(
        (
            _SIGNED_HEAD,
            _PROTECTED,
            sealed_kid,
            b"\x58\x20",
            genesis,
            _string_head(len(payload)),
            payload,
        )
    )


def seal(payload: bytes, key: SigningKey, genesis: bytes) -> bytes:
    """Return the COSE_Sign1 of `payload` under `key`, bound to the network of `genesis` (32 bytes).

    Raises:
        EncodingError: The payload is longer than a message may be.
    """
    if len(payload) >= MESSAGE_BYTES_MAX:
        raise EncodingError(f"expected less than {MESSAGE_BYTES_MAX} bytes, got {len(payload)}")
    kid = key_id(bytes(key.verify_key))
    signature = key.sign(_signed(kid, payload, genesis)).signature
    return b"".join(
        (
            _MESSAGE_HEAD,
            kid,
            b"\xa0",
            _string_head(len(payload)),
            payload,
            _SIGNATURE_HEAD,
            signature,
        )
    )


def take_apart(message: bytes) -> Sealed:
    """Return the parts of `message`, a COSE_Sign1 from outside.

    Raises:
        EncodingError: It is not of the pinned form: another algorithm, `crit`, an unprotected
            header, a longer spelling, trailing bytes.
    """
    at = len(_MESSAGE_HEAD)
    body = at + KEY_ID_BYTES + 1
    if not message.startswith(_MESSAGE_HEAD) or message[body - 1 : body] != b"\xa0":
        raise EncodingError("not a COSE_Sign1 with alg -19 and kid alone protected")
    begin = body + _HEAD_BYTES.get(message[body : body + 1], 1)
    end = len(message) - SIGNATURE_BYTES - len(_SIGNATURE_HEAD)
    length = end - begin
    if (
        not 0 <= length < MESSAGE_BYTES_MAX
        or message[body:begin] != _string_head(length)
        or message[end : end + len(_SIGNATURE_HEAD)] != _SIGNATURE_HEAD
    ):
        raise EncodingError("payload and signature do not fill the COSE_Sign1 exactly")
    seal = message[end + len(_SIGNATURE_HEAD) :]
    return Sealed(message[begin:end], message[at : body - 1], seal)


def verify_seal(sealed: Sealed, key: VerifyKey, genesis: bytes) -> None:
    """Check that `key` sealed exactly these bytes for the network of `genesis`.

    Raises:
        BlockRejectedError: The kid names another key, or the signature is not over this content.
    """
    if sealed.kid != key_id(bytes(key)):
        raise BlockRejectedError(f"sealed by key {sealed.kid.hex()}, not by this meter's")
    try:
        key.verify(_signed(sealed.kid, sealed.payload, genesis), sealed.seal)
    except BadSignatureError as error:
        raise BlockRejectedError("the seal is not this meter's over this content") from error
