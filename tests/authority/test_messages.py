from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.authority.messages import (
    ASKED_MAX,
    BLOCKS_CONTEXT,
    COUNTER_MAX,
    HEADS_MAX,
    REASON_CHARS_MAX,
    AskBatches,
    AskBlocks,
    AskCertificate,
    AskClosings,
    AskEvidence,
    AskHead,
    AskOwnBatch,
    Body,
    Digest,
    Fetch,
    HeadHeld,
    OwnBatch,
    Refusal,
    Said,
    blocks_message,
    open_said,
    say,
)
from meterd.errors import BlockRejectedError, EncodingError, MeterdError
from meterd.ledger.encoding import decode, encode, seal, take_apart
from meterd.ledger.segment import STREAMS
from tests.authority.examples import (
    ELSEWHERE,
    FIRST_BLOCK,
    GENESIS,
    HOUSE,
    NEXT_EPOCH,
    OTHER_HOUSE,
    ROSTER,
    SECOND_BLOCK,
    key,
    ordered,
    sealed,
)
from tests.authority.said import BODIES, KID, SENDER, message_of
from tests.ledger.examples import changed


@pytest.mark.parametrize("kind", BODIES)
def test_what_is_said_is_what_is_heard(kind: str) -> None:
    said = Said(SENDER, 1 << 32 | 7, BODIES[kind])
    message = say(said, key(f"{SENDER} votes"), GENESIS.hash)
    assert open_said(message, ROSTER.peer_key, GENESIS.hash) == said


counts = st.integers(0, 2**64 - 1)
hashes, kids, nonces = (st.binary(min_size=n, max_size=n) for n in (32, 8, 16))
names = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
orders = st.tuples(counts, hashes)
questions = (
    st.builds(AskBlocks, names, counts, counts, counts)
    | st.builds(AskBatches, kids, counts, counts)
    | st.builds(AskEvidence, hashes)
    | st.builds(AskOwnBatch, kids, nonces)
    | st.builds(AskHead, names, nonces)
    | st.builds(AskCertificate, names, counts, counts)
    | st.builds(AskClosings, counts)
)
bodies = (
    st.builds(
        Digest,
        orders,
        st.lists(st.tuples(names, counts, counts, hashes), max_size=4).map(tuple),
        st.lists(st.tuples(kids, counts, hashes), max_size=4).map(tuple),
        st.lists(hashes, max_size=4).map(tuple),
    )
    | st.builds(Fetch, names, st.lists(questions, max_size=6).map(tuple))
    | st.builds(OwnBatch, counts, orders, kids, nonces, counts, hashes)
    | st.builds(HeadHeld, counts, orders, names, nonces, counts, counts, hashes)
    | st.builds(Refusal, names, counts, counts, hashes, st.text("abc é", max_size=200))
)


@given(st.integers(0, COUNTER_MAX), bodies)
def test_whatever_can_be_said_is_heard(counter: int, body: Body) -> None:
    said = Said(SENDER, counter, body)
    message = say(said, key(f"{SENDER} votes"), GENESIS.hash)
    assert open_said(message, ROSTER.peer_key, GENESIS.hash) == said


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(message_of("digest", by="stranger"), "sealed by key", id="a stranger"),
        pytest.param(message_of("digest", by=f"{SENDER} seals"), "sealed by", id="its sealing key"),
        pytest.param(message_of("digest", by="house-2 votes"), "sealed by", id="another's key"),
        pytest.param(message_of("digest", genesis=ELSEWHERE.hash), "is not", id="another network"),
        pytest.param(message_of("digest", sender="house-9"), "has no key", id="nobody known"),
        pytest.param(
            message_of("digest").replace(SENDER.encode(), b"feeder-2"),
            "has no key",
            id="an edited name",
        ),
        pytest.param(
            message_of("head").replace(HOUSE.encode(), OTHER_HOUSE.encode()),
            "not this meter's over this content",
            id="an edited body",
        ),
    ],
)
def test_a_message_is_refused_that_was_signed_by(message: bytes, reason: str) -> None:
    with pytest.raises(BlockRejectedError, match=reason):
        open_said(message, ROSTER.peer_key, GENESIS.hash)


@pytest.mark.parametrize("kind", BODIES)
def test_a_message_is_worth_nothing_in_another_network(kind: str) -> None:
    with pytest.raises(BlockRejectedError):
        open_said(message_of(kind), ROSTER.peer_key, ELSEWHERE.hash)


def test_a_key_that_was_rotated_out_with_its_epoch_says_nothing_any_more() -> None:
    roster = ordered(NEXT_EPOCH).roster
    with pytest.raises(BlockRejectedError, match="sealed by key"):
        open_said(message_of("digest"), roster.peer_key, GENESIS.hash)
    fresh = message_of("digest", by=f"{SENDER} votes, 2")
    assert open_said(fresh, roster.peer_key, GENESIS.hash).sender == SENDER


def test_a_counter_that_no_store_can_keep_is_refused() -> None:
    said = Said(SENDER, COUNTER_MAX + 1, BODIES["digest"])
    with pytest.raises(EncodingError, match="counter"):
        open_said(say(said, key(f"{SENDER} votes"), GENESIS.hash), ROSTER.peer_key, GENESIS.hash)


ONE_HEAD = [HOUSE, 1, 7, bytes(32)]
ONE_BATCH = [KID, 7, bytes(32)]


@pytest.mark.parametrize(
    ("kind", "place", "new"),
    [
        pytest.param("digest", (0,), "meterd/digest/v2", id="digest of a new version"),
        pytest.param("digest", (1,), b"feeder-1", id="digest of a sender in bytes"),
        pytest.param("digest", (2,), "1", id="digest with a counter of text"),
        pytest.param("digest", (3,), [], id="digest with no order"),
        pytest.param("digest", (3, 0), "1", id="digest with an order of text"),
        pytest.param("digest", (3, 1), bytes(31), id="digest with an order of 31 bytes"),
        pytest.param("digest", (4,), b"", id="digest with bytes for heads"),
        pytest.param("digest", (4,), [ONE_HEAD] * (HEADS_MAX + 1), id="digest of too many heads"),
        pytest.param("digest", (4, 0), [], id="digest with an empty head"),
        pytest.param("digest", (4, 0, 0), "House", id="digest of no possible name"),
        pytest.param("digest", (4, 0, 3), bytes(31), id="digest with a short head"),
        pytest.param("digest", (5,), [ONE_BATCH] * (HEADS_MAX + 1), id="digest of many batches"),
        pytest.param("digest", (5, 0), [], id="digest with an empty batch"),
        pytest.param("digest", (5, 0, 0), bytes(7), id="digest with a short key id"),
        pytest.param("digest", (5, 0, 2), bytes(31), id="digest with a short batch"),
        pytest.param("digest", (6,), [bytes(32)] * (HEADS_MAX + 1), id="digest of much evidence"),
        pytest.param("digest", (6, 0), 7, id="digest with a number for evidence"),
        pytest.param("digest", (6, 0), bytes(31), id="digest with short evidence"),
        pytest.param("fetch", (3,), b"house-1", id="fetch from bytes"),
        pytest.param("fetch", (4,), [["evidence", bytes(32)]] * (ASKED_MAX + 1), id="fetch of all"),
        pytest.param("fetch", (4, 0), b"", id="fetch with bytes for a question"),
        pytest.param("fetch", (4, 0), [], id="fetch with an empty question"),
        pytest.param("fetch", (4, 0, 0), "samples", id="fetch with an unknown question"),
        pytest.param("fetch", (4, 0, 0), ["blocks"], id="fetch with a question in a question"),
        pytest.param("fetch", (4, 0), ["blocks", HOUSE, 1, 1], id="fetch of blocks without end"),
        pytest.param("fetch", (4, 1, 1), bytes(7), id="fetch of batches of a short key id"),
        pytest.param("fetch", (4, 2, 1), bytes(31), id="fetch of short evidence"),
        pytest.param("fetch", (4, 3, 1), bytes(7), id="fetch of its own batch by a short key id"),
        pytest.param("fetch", (4, 3, 2), bytes(15), id="fetch of its own batch, short nonce"),
        pytest.param("fetch", (4, 4, 2), bytes(17), id="fetch of a head with a long nonce"),
        pytest.param("own-batch", (3,), "1", id="own batch of an epoch of text"),
        pytest.param("own-batch", (4,), [1], id="own batch with half an order"),
        pytest.param("own-batch", (5,), bytes(9), id="own batch of a long key id"),
        pytest.param("own-batch", (6,), bytes(15), id="own batch with a short nonce"),
        pytest.param("own-batch", (8,), bytes(31), id="own batch of a short hash"),
        pytest.param("head", (4, 1), bytes(31), id="head with a short order"),
        pytest.param("head", (5,), b"", id="head of a meter in bytes"),
        pytest.param("head", (6,), bytes(15), id="head with a short nonce"),
        pytest.param("head", (9,), bytes(31), id="head of a short hash"),
        pytest.param("refusal", (6,), bytes(31), id="refusal of a short hash"),
        pytest.param("refusal", (7,), b"why", id="refusal for bytes"),
        pytest.param("refusal", (7,), "x" * (REASON_CHARS_MAX + 1), id="refusal at length"),
        pytest.param("refusal", (7,), "one\ntwo", id="refusal in two lines"),
        pytest.param("refusal", (7,), "\x1b[2J", id="refusal that clears a terminal"),
    ],
)
def test_a_message_is_misspelt_that_is_a(kind: str, place: tuple[int, ...], new: Any) -> None:  # noqa: ANN401
    value = changed(decode(take_apart(message_of(kind)).payload), place, new)
    message = seal(encode(value), key(f"{SENDER} votes"), GENESIS.hash)
    with pytest.raises(EncodingError):
        open_said(message, ROSTER.peer_key, GENESIS.hash)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(encode(7), id="a number"),
        pytest.param(encode([]), id="an empty array"),
        pytest.param(encode(["meterd/digest/v1", SENDER, 1]), id="a message without a body"),
        pytest.param(FIRST_BLOCK.encode(), id="a block"),
        pytest.param(blocks_message((sealed(FIRST_BLOCK),)), id="blocks"),
    ],
)
def test_no_message_of_a_peer_is(payload: bytes) -> None:
    with pytest.raises(EncodingError):
        open_said(seal(payload, key(f"{SENDER} votes"), GENESIS.hash), ROSTER.peer_key, b"")


@given(st.binary(max_size=60))
def test_what_is_no_message_is_refused(data: bytes) -> None:
    for message in (data, seal(data, key(f"{SENDER} votes"), GENESIS.hash)):
        with pytest.raises(MeterdError):
            open_said(message, ROSTER.peer_key, GENESIS.hash)


@pytest.mark.parametrize("kind", BODIES)
def test_no_byte_of_a_message_can_be_changed(kind: str) -> None:
    message = message_of(kind)
    for at, byte in enumerate(message):
        with pytest.raises(MeterdError):
            open_said(
                message[:at] + bytes([byte ^ 1 << at % 8]) + message[at + 1 :],
                ROSTER.peer_key,
                GENESIS.hash,
            )


def test_blocks_travel_as_they_were_sealed() -> None:
    sent = tuple(map(sealed, (FIRST_BLOCK, SECOND_BLOCK)))
    assert decode(blocks_message(sent)) == (BLOCKS_CONTEXT, sent)


def test_no_two_kinds_of_message_begin_alike() -> None:
    (context, *_) = decode(blocks_message(()))
    assert context not in {f"meterd/{stream}/v1" for stream in STREAMS}
