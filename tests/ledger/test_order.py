from __future__ import annotations

from typing import Any

import pytest

from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.encoding import decode, encode, seal
from meterd.ledger.order import (
    KINDS,
    NAMES,
    REASON_CHARS_MAX,
    Order,
    OrderHead,
    decode_order,
    open_order,
    sign_rotation,
    spell,
    verify_order,
    verify_rotation,
)
from tests.authority.examples import (
    CHANGES,
    ENROL,
    GENESIS,
    GRID,
    REGISTERS,
    REPLACE,
    REVOKE,
    ROTATE,
    SHORTER,
    key,
    order,
    public,
    rotate,
    sealed,
)
from tests.ledger.examples import EXPORT, IMPORT, changed

BODIES = {kind: order(change) for kind, change in CHANGES.items()}
UJ = (720).to_bytes(8, "big")
BODY = 9  # where an order's body is
NONE_YET = OrderHead(0, GENESIS.hash, 0)


@pytest.mark.parametrize("kind", CHANGES)
def test_an_order_of_each_kind_is_read_as_it_was_written(kind: str) -> None:
    written = BODIES[kind]
    read = decode_order(written.encode())
    assert (read, read.kind, read.hash) == (written, kind, written.hash)
    assert read.change == CHANGES[kind]
    assert spell(read.change) == (kind, written.body)


def test_there_is_an_example_of_every_kind() -> None:
    assert set(CHANGES) == set(KINDS) == set(NAMES)


@pytest.mark.parametrize(
    ("kind", "place", "new", "message"),
    [
        pytest.param("interval", (0,), "meterd/order/v2", "expected meterd/order/v1", id="new"),
        pytest.param("interval", (1,), bytes(31), "a hash in the order", id="short genesis"),
        pytest.param("interval", (2,), b"grid-co", "not an order", id="distributor as bytes"),
        pytest.param("interval", (5,), bytes(33), "a hash in the order", id="long previous"),
        pytest.param("interval", (8,), "tariff", "no order is of kind tariff", id="unknown kind"),
        pytest.param("interval", (9,), 900, "not an order", id="body that is no array"),
        pytest.param("interval", (9,), [], "kind interval", id="interval without one"),
        pytest.param("interval", (9, 0), 0, "kind interval", id="interval of 0 s"),
        pytest.param("interval", (9, 0), 7, "kind interval", id="interval that divides no day"),
        pytest.param("interval", (9, 0), 172_800, "kind interval", id="interval of two days"),
        pytest.param("interval", (9, 0), "900", "kind interval", id="interval as text"),
        pytest.param("enrol", (9, 1), "1", "kind enrol", id="enrol with a textual incarnation"),
        pytest.param("enrol", (9, 0), "House", "cannot be", id="enrol of a name in capitals"),
        pytest.param("enrol", (9, 0), "", "cannot be", id="enrol of nobody"),
        pytest.param("enrol", (9, 1), 0, "cannot be", id="enrol of incarnation 0"),
        pytest.param("enrol", (9, 2), b"", "a key or hash", id="enrol without a sealing key"),
        pytest.param("enrol", (9, 3), bytes(31), "a key or hash", id="enrol with a short vote"),
        pytest.param("enrol", (9, 7, 0), [IMPORT, 0], "misshapen", id="register without energy"),
        pytest.param("enrol", (9, 7, 0, 0), b"short", "misshapen", id="register of 5 bytes"),
        pytest.param("enrol", (9, 7, 0, 1), 2, "misshapen", id="register of an unknown kind"),
        pytest.param("enrol", (9, 7, 0, 2), bytes(7), "misshapen", id="register of 56 bits"),
        pytest.param("enrol", (9, 7, 0, 2), b"\x80" + bytes(7), "too large", id="63 bits passed"),
        pytest.param(
            "enrol", (9, 7), [[EXPORT, 0, UJ], [IMPORT, 0, UJ]], "out of order", id="disorder"
        ),
        pytest.param(
            "enrol", (9, 7), [[IMPORT, 0, UJ], [IMPORT, 0, UJ]], "out of order", id="twice"
        ),
        pytest.param("replace", (9,), [], "kind replace", id="replace without a body"),
        pytest.param("replace", (9, 0), "House", "cannot be", id="replace of no possible name"),
        pytest.param("replace", (9, 4), 0, "cannot be", id="replace by incarnation 0"),
        pytest.param("replace", (9, 3), b"", "a key or hash", id="replace without a final hash"),
        pytest.param("replace", (9, 5), b"", "a key or hash", id="replace without a key"),
        pytest.param("replace", (9, 6), b"x", "a key or hash", id="replace with a short vote"),
        pytest.param("replace", (9, 10, 0, 1), 2, "misshapen", id="replace with a register"),
        pytest.param("rotate", (9,), [], "kind rotate", id="rotate without a body"),
        pytest.param("rotate", (9, 3), bytes(63), "kind rotate", id="rotate half signed"),
        pytest.param("rotate", (9, 1), 0, "cannot be", id="rotate of incarnation 0"),
        pytest.param("rotate", (9, 2), bytes(31), "a key or hash", id="rotate to a short key"),
        pytest.param("revoke", (9,), [], "kind revoke", id="revoke without a body"),
        pytest.param("revoke", (9, 0), "House", "cannot be", id="revoke of no possible name"),
        pytest.param(
            "revoke", (9, 2), "x" * (REASON_CHARS_MAX + 1), "kind revoke", id="revoke at length"
        ),
        pytest.param("roster", (9,), [], "kind roster", id="roster without a body"),
        pytest.param("roster", (9, 1, 0), ["house-1"], "kind roster", id="roster of names"),
        pytest.param("fork-resolve", (9,), [], "kind fork-resolve", id="fork without a body"),
        pytest.param("fork-resolve", (9, 4), 0, "cannot be", id="fork to incarnation 0"),
        pytest.param("fork-resolve", (9, 3), b"", "a key or hash", id="fork without a base"),
        pytest.param("fork-resolve", (9, 5), b"", "a key or hash", id="fork without a key"),
        pytest.param("fork-resolve", (9, 6, 0, 1), 2, "misshapen", id="fork with a register"),
    ],
)
def test_no_order_is_read_from(kind: str, place: tuple[int, ...], new: Any, message: str) -> None:  # noqa: ANN401
    spelt = decode(BODIES[kind].encode())
    with pytest.raises(EncodingError, match=message):
        decode_order(encode(changed(spelt, place, new)))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x80", id="an empty array"),
        pytest.param(GENESIS.encode(), id="a genesis"),
        pytest.param(BODIES["enrol"].encode() + b"\0", id="a trailing byte"),
    ],
)
def test_bytes_are_no_order_that_are(data: bytes) -> None:
    with pytest.raises(EncodingError):
        decode_order(data)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(ENROL._replace(voting_key=b"", registers=()), id="a meter that never votes"),
        pytest.param(REPLACE._replace(voting_key=public("new")), id="a device that talks"),
        pytest.param(REVOKE._replace(reason="é" * REASON_CHARS_MAX), id="the longest reason"),
        pytest.param(SHORTER._replace(interval_s=86_400), id="an interval of a day"),
        pytest.param(SHORTER._replace(interval_s=1), id="an interval of a second"),
        pytest.param(
            ENROL._replace(registers=(REGISTERS[0]._replace(kind=1, first_uj=0, last_uj=0),)),
            id="an estimated register at 0",
        ),
    ],
)
def test_an_order_may_be_of(change: Any) -> None:  # noqa: ANN401
    read = decode_order(order(change).encode()).change
    assert spell(read) == spell(change)


@pytest.mark.parametrize("reason", ["stolen\nby nobody", "\x1b[2J"])
def test_a_reason_is_of_printable_characters(reason: str) -> None:
    """It is shown wherever a block of the meter is refused: in journals and in terminals."""
    with pytest.raises(EncodingError):
        decode_order(order(REVOKE._replace(reason=reason)).encode())


# --- its seal and its place -----------------------------------------------------------------------

FIRST = BODIES["interval"]


def test_an_order_opens_under_the_distributors_seal() -> None:
    assert open_order(sealed(FIRST), public("grid-co seals"), GENESIS.hash) == (
        FIRST,
        FIRST.encode(),
    )


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(sealed(FIRST, "stranger"), "sealed by key", id="is a stranger's"),
        pytest.param(sealed(FIRST, genesis=bytes(32)), "this content", id="is for another net"),
        pytest.param(
            sealed(FIRST._replace(genesis=bytes(32))), "another network's", id="names another net"
        ),
        pytest.param(FIRST.encode(), "not a sealed order", id="has no seal"),
        pytest.param(sealed(FIRST)[:-1], "not a sealed order", id="has a byte less"),
        pytest.param(
            seal(b"\x80", key("grid-co seals"), GENESIS.hash),
            "not a sealed order: not an order",
            id="seals no order",
        ),
        pytest.param(
            sealed(FIRST).replace(b"grid-co", b"grid-to"), "this content", id="was edited after"
        ),
    ],
)
def test_a_seal_is_refused_that(message: bytes, reason: str) -> None:
    with pytest.raises(BlockRejectedError, match=reason):
        open_order(message, public("grid-co seals"), GENESIS.hash)


def test_orders_that_follow_are_added() -> None:
    head = verify_order(FIRST, (GRID, 1), NONE_YET)
    assert head == OrderHead(1, FIRST.hash, FIRST.time_s)
    second = FIRST._replace(height=2, previous=FIRST.hash)
    assert verify_order(second, (GRID, 1), head) == OrderHead(2, second.hash, FIRST.time_s)


SECOND: Order = FIRST._replace(height=2, previous=FIRST.hash)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        pytest.param(SECOND._replace(height=1), "expected order 2, got 1", id="repeats a height"),
        pytest.param(SECOND._replace(height=3), "expected order 2, got 3", id="skips ahead"),
        pytest.param(SECOND._replace(distributor="gas-co"), "is not on grid-co's", id="is others'"),
        pytest.param(SECOND._replace(incarnation=2), "is not on grid-co's", id="is of a new chain"),
        pytest.param(SECOND._replace(previous=GENESIS.hash), "does not link", id="skips an order"),
        pytest.param(
            SECOND._replace(time_s=FIRST.time_s - 1), "is dated before", id="goes back in time"
        ),
    ],
)
def test_an_order_does_not_follow_that(second: Order, message: str) -> None:
    head = verify_order(FIRST, (GRID, 1), NONE_YET)
    with pytest.raises(BlockRejectedError, match=message):
        verify_order(second, (GRID, 1), head)


# --- rotation -------------------------------------------------------------------------------------


def test_a_rotation_needs_the_old_keys_consent() -> None:
    verify_rotation(ROTATE, public("house-1 seals"), GENESIS.hash)


@pytest.mark.parametrize(
    "consent",
    [
        pytest.param(ROTATE._replace(meter="house-2"), id="another meter"),
        pytest.param(ROTATE._replace(incarnation=2), id="another incarnation"),
        pytest.param(ROTATE._replace(sealing_key=public("stranger")), id="another key"),
        pytest.param(rotate("stranger", "house-1 seals, 2"), id="a stranger"),
        pytest.param(rotate("house-1 seals, 2", "house-1 seals, 2"), id="the new key itself"),
        pytest.param(
            rotate("house-1 seals", "house-1 seals, 2", genesis=bytes(32)), id="another network"
        ),
    ],
)
def test_the_old_key_did_not_consent_to(consent: Any) -> None:  # noqa: ANN401
    with pytest.raises(BlockRejectedError, match="is not signed by the key before"):
        verify_rotation(consent, public("house-1 seals"), GENESIS.hash)


def test_a_consent_is_64_bytes() -> None:
    consent = sign_rotation(key("house-1 seals"), GENESIS.hash, "house-1", 1, public("x"))
    assert len(consent) == 64
