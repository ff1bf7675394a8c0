from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.encoding import (
    DEPTH_MAX,
    MESSAGE_BYTES_MAX,
    Value,
    decode,
    decode_first,
    encode,
    key_id,
    seal,
    take_apart,
    verify_seal,
)

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = SigningKey(bytes(range(32)))
STRANGER = SigningKey(bytes(range(1, 33)))
GENESIS = sha256(b"a network").digest()
PAYLOAD = encode(["meterd/example/v1", 7, b"x"])

values = st.recursive(
    st.integers(0, 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


@given(values)
def test_every_value_has_one_spelling_that_the_gate_lets_through(value: Value) -> None:
    assert decode(encode(value)) == value
    assert decode_first(encode(value) + b"\xff\x00") == (value, len(encode(value)))


@given(st.binary(max_size=40))
def test_whatever_the_gate_lets_through_is_its_own_spelling(data: bytes) -> None:
    try:
        value = decode(data)
    except EncodingError:
        return
    assert encode(value) == data


NOT_ENCODED = [
    pytest.param(-1, "unsigned integer", id="negative"),
    pytest.param(2**64, "unsigned integer", id="more than 64 bits"),
    pytest.param(1.5, "got float", id="float"),
    pytest.param({"a": 1}, "got dict", id="map"),
    pytest.param(None, "got NoneType", id="null"),
    pytest.param(True, "got bool", id="truth"),
    pytest.param([{1}], "got set", id="set in an array"),
    pytest.param([[[[[[[[[1]]]]]]]]], "nest deeper than 8", id="nine arrays deep"),
]


@pytest.mark.parametrize(("value", "message"), NOT_ENCODED)
def test_a_value_has_no_spelling_that_is(value: Value, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        encode(value)


REFUSED = [
    pytest.param("", "not CBOR", id="nothing at all"),
    pytest.param("83 01 02", "not CBOR", id="a cut array"),
    pytest.param("43 61 62", "not CBOR", id="a cut byte string"),
    pytest.param("81 01 00", "shortest spelling", id="a trailing byte"),
    pytest.param("01 01", "shortest spelling", id="a second value"),
    pytest.param("18 07", "shortest spelling", id="7 in two bytes"),
    pytest.param("19 00 ff", "shortest spelling", id="255 in three bytes"),
    pytest.param("1b 00 00 00 00 ff ff ff ff", "shortest spelling", id="32 bits in nine bytes"),
    pytest.param("58 01 00", "shortest spelling", id="a length of 1 in two bytes"),
    pytest.param("98 01 00", "shortest spelling", id="an array's length in two bytes"),
    pytest.param("78 01 61", "shortest spelling", id="a text's length in two bytes"),
    pytest.param("20", "unsigned integer", id="a negative integer"),
    pytest.param("81 38 63", "unsigned integer", id="a negative integer in an array"),
    pytest.param("f9 3c 00", "got float", id="a half float"),
    pytest.param("fb 3f f0 00 00 00 00 00 00", "got float", id="a float"),
    pytest.param("f9 7e 00", "got float", id="a nan"),
    pytest.param("f5", "got bool", id="true"),
    pytest.param("f6", "got NoneType", id="null"),
    pytest.param("f7", "expected integers", id="undefined"),
    pytest.param("e0", "expected integers", id="a simple value"),
    pytest.param("a0", "expected integers", id="an empty map"),
    pytest.param("a1 01 02", "expected integers", id="a map"),
    pytest.param("a2 01 02 01 03", "not CBOR", id="a map with a key twice"),
    pytest.param("c0 61 31", "not CBOR|expected integers", id="a date"),
    pytest.param("c1 01", "expected integers", id="a time"),
    pytest.param("c2 41 05", "shortest spelling", id="an integer as a tagged string"),
    pytest.param("c2 49 01 00 00 00 00 00 00 00 00", "unsigned integer", id="a big integer"),
    pytest.param("d8 64 01", "expected integers", id="an unknown tag"),
    pytest.param("d9 d9 f7 01", "expected integers|shortest", id="the tag that says CBOR"),
    pytest.param("d8 1c 80", "expected integers|shortest", id="a shared reference"),
    pytest.param("9f 01 ff", "not CBOR", id="an array without a length"),
    pytest.param("5f 41 00 ff", "not CBOR", id="a byte string without a length"),
    pytest.param("7f 61 61 ff", "not CBOR", id="a text without a length"),
    pytest.param("bf ff", "not CBOR", id="a map without a length"),
    pytest.param("ff", "not CBOR", id="a lone break"),
    pytest.param("1c", "not CBOR", id="a reserved length"),
    pytest.param("9b 7f ff ff ff ff ff ff ff", "not CBOR", id="an array of 2^63"),
    pytest.param("5b 7f ff ff ff ff ff ff ff", "not CBOR", id="a byte string of 2^63"),
    pytest.param("61 ff", "not CBOR", id="a text that is not UTF-8"),
    pytest.param("81" * (DEPTH_MAX + 1) + "01", "not CBOR|nest deeper", id="nine arrays deep"),
    pytest.param("81" * 5000 + "01", "not CBOR", id="five thousand arrays deep"),
]


@pytest.mark.parametrize(("spelt", "message"), REFUSED)
def test_the_gate_refuses(spelt: str, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        decode(bytes.fromhex(spelt))


MORE_FOLLOWS = {"a trailing byte", "a second value"}


@pytest.mark.parametrize(
    ("spelt", "message"), [case for case in REFUSED if case.id not in MORE_FOLLOWS]
)
def test_the_gate_refuses_where_more_may_follow(spelt: str, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        decode_first(bytes.fromhex(spelt))


def test_the_gate_refuses_what_is_too_long_before_it_looks() -> None:
    longest = encode(bytes(MESSAGE_BYTES_MAX - 5))
    assert len(longest) == MESSAGE_BYTES_MAX - 2
    assert decode(longest) == bytes(MESSAGE_BYTES_MAX - 5)
    with pytest.raises(EncodingError, match="expected at most 65536 bytes, got 65537"):
        decode(b"\xff" * (MESSAGE_BYTES_MAX + 1))
    with pytest.raises(EncodingError, match="expected at most 3 bytes, got 4"):
        decode(b"\x83\x01\x02\x03", bytes_max=3)


# --- seals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 23, 24, 255, 256, 65_535])
def test_a_seal_of_any_length_is_taken_apart_and_verifies(length: int) -> None:
    payload = bytes(length)
    sealed = take_apart(seal(payload, KEY, GENESIS))
    assert (sealed.payload, sealed.kid) == (payload, key_id(bytes(KEY.verify_key)))
    verify_seal(sealed, KEY.verify_key, GENESIS)


def test_a_seal_is_what_the_standard_says() -> None:
    """RFC 9052: tag 18, protected {1: -19, 4: kid}, nothing unprotected, Sig_structure signed."""
    tag = cbor2.loads(seal(PAYLOAD, KEY, GENESIS))
    assert tag.tag == 18
    protected, unprotected, payload, signature = tag.value
    assert cbor2.loads(protected) == {1: -19, 4: sha256(bytes(KEY.verify_key)).digest()[:8]}
    assert (dict(unprotected), payload) == ({}, PAYLOAD)
    signed = cbor2.dumps(["Signature1", protected, GENESIS, PAYLOAD])
    assert KEY.verify_key.verify(signed, signature) == signed


def test_a_payload_too_long_for_a_message_is_not_sealed() -> None:
    with pytest.raises(EncodingError, match="expected less than 65536 bytes, got 65536"):
        seal(bytes(MESSAGE_BYTES_MAX), KEY, GENESIS)


def cose(
    *,
    protected: object = None,
    unprotected: object = None,
    payload: bytes = PAYLOAD,
    tag: int | None = 18,
    context: str = "Signature1",
    extra: bytes = b"",
    spell: Callable[[bytes], bytes] = lambda data: data,
) -> bytes:
    """Return a COSE_Sign1 that differs from ours in one thing, its signature valid over that."""
    kid = key_id(bytes(KEY.verify_key))
    head = cbor2.dumps({1: -19, 4: kid} if protected is None else protected)
    if isinstance(protected, bytes):
        head = protected
    signed = cbor2.dumps([context, head, GENESIS, payload])
    signature = KEY.sign(signed).signature
    parts = [head, {} if unprotected is None else unprotected, payload, signature]
    message = cbor2.dumps(parts if tag is None else cbor2.CBORTag(tag, parts))
    return spell(message) + extra


KID = key_id(bytes(KEY.verify_key))
PINNED = "not a COSE_Sign1 with alg -19"
FILLED = "do not fill the COSE_Sign1 exactly"


def test_the_messages_made_here_differ_from_ours_in_nothing_else() -> None:
    assert cose() == seal(PAYLOAD, KEY, GENESIS)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(cose(protected={1: -8, 4: KID}), PINNED, id="has alg EdDSA"),
        pytest.param(cose(protected={1: -7, 4: KID}), PINNED, id="has alg ES256"),
        pytest.param(cose(protected={4: KID}), PINNED, id="has no alg"),
        pytest.param(cose(protected={1: -19}), PINNED, id="has no kid"),
        pytest.param(cose(protected={}), PINNED, id="has nothing protected"),
        pytest.param(cose(protected=b""), PINNED, id="has an empty protected string"),
        pytest.param(cose(protected={1: -19, 4: KID[:7]}), PINNED, id="has a short kid"),
        pytest.param(cose(protected={1: -19, 4: KID + b"\0"}), PINNED, id="has a long kid"),
        pytest.param(cose(protected={1: -19, 2: [99], 4: KID}), PINNED, id="has crit"),
        pytest.param(cose(protected={4: KID, 1: -19}), PINNED, id="has kid before alg"),
        pytest.param(cose(protected={1: -19, 3: 0, 4: KID}), PINNED, id="has a content type"),
        pytest.param(cose(unprotected={4: KID}), PINNED, id="has an unprotected header"),
        pytest.param(cose(tag=None), PINNED, id="has no tag"),
        pytest.param(cose(tag=98), PINNED, id="has the tag of COSE_Sign"),
        pytest.param(cose(tag=17), PINNED, id="has the tag of COSE_Mac0"),
        pytest.param(
            cose(spell=lambda m: b"\xd8\x12" + m[1:]), PINNED, id="has its tag in two bytes"
        ),
        pytest.param(
            cose(spell=lambda m: m[:1] + b"\x98\x04" + m[2:]),
            PINNED,
            id="has its array's length in two bytes",
        ),
        pytest.param(
            cose(spell=lambda m: m[:1] + b"\x9f" + m[2:] + b"\xff"),
            PINNED,
            id="is an array without a length",
        ),
        pytest.param(
            cose(spell=lambda m: m.replace(b"\x56" + PAYLOAD, b"\x58\x16" + PAYLOAD)),
            FILLED,
            id="has its payload's length in two bytes",
        ),
        pytest.param(
            cose(spell=lambda m: m.replace(b"\x56" + PAYLOAD, b"\x59\x00\x16" + PAYLOAD)),
            FILLED,
            id="has its payload's length in three bytes",
        ),
        pytest.param(
            cose(spell=lambda m: m.replace(b"\x58\x40", b"\x59\x00\x40")),
            FILLED,
            id="has its signature's length in three bytes",
        ),
        pytest.param(cose(extra=b"\0"), FILLED, id="has a trailing byte"),
        pytest.param(cose()[:-1], FILLED, id="is cut by a byte"),
        pytest.param(cose()[:17], FILLED, id="is cut behind its header"),
        pytest.param(cose()[:9], PINNED, id="is cut in its header"),
        pytest.param(b"", PINNED, id="is empty"),
        pytest.param(
            cose(spell=lambda m: m.replace(b"\x58\x40", b"\x58\x41")), FILLED, id="signs 65 bytes"
        ),
    ],
)
def test_a_seal_is_not_taken_apart_that(message: bytes, reason: str) -> None:
    assert message != cose()
    with pytest.raises(EncodingError, match=reason):
        take_apart(message)


@pytest.mark.parametrize(
    ("message", "key", "genesis", "reason"),
    [
        pytest.param(cose(), STRANGER, GENESIS, "sealed by key", id="names another key"),
        pytest.param(
            cose(protected={1: -19, 4: key_id(bytes(STRANGER.verify_key))}),
            STRANGER,
            GENESIS,
            "is not this meter's over this content",
            id="is another key's under this one's name",
        ),
        pytest.param(
            cose(), KEY, bytes(32), "over this content", id="is of another network (external_aad)"
        ),
        pytest.param(
            cose(context="Signature"), KEY, GENESIS, "over this content", id="is of another context"
        ),
        pytest.param(
            cose(spell=lambda m: m.replace(b"meterd/example", b"meterd/Example")),
            KEY,
            GENESIS,
            "over this content",
            id="was edited after",
        ),
        pytest.param(
            cose(spell=lambda m: m[:-64] + bytes(64)),
            KEY,
            GENESIS,
            "over this content",
            id="is a signature of zeros",
        ),
    ],
)
def test_a_seal_is_refused_that(
    message: bytes, key: SigningKey, genesis: bytes, reason: str
) -> None:
    with pytest.raises(BlockRejectedError, match=reason):
        verify_seal(take_apart(message), key.verify_key, genesis)
