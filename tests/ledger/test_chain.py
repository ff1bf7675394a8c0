from __future__ import annotations

import pytest

from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.block import Block, Energy
from meterd.ledger.chain import SealTask, open_chain, verify_block, verify_sealed, verify_seals
from meterd.ledger.encoding import digest, seal
from tests.ledger.examples import (
    EMPTY,
    EXPORT,
    FIRST,
    GENESIS,
    IMPORT,
    KEY,
    OVEN,
    SECOND,
    STRANGER,
    chain_with,
    sealed,
)

END_S = FIRST.end_s
GAP, PARTIAL, STEPPED = 1, 2, 4


def test_blocks_that_follow_are_added() -> None:
    chain = chain_with(FIRST, SECOND)
    assert (chain.head.height, chain.head.block_hash) == (2, SECOND.hash)
    assert (chain.head.end_s, chain.head.energy) == (SECOND.end_s, SECOND.energy)


def test_a_chain_begins_at_its_genesis_and_for_its_own_meters_only() -> None:
    assert EMPTY.head.block_hash == GENESIS.hash
    with pytest.raises(EncodingError, match="has no meter cellar"):
        open_chain(GENESIS, "cellar")


def energy(*, first: int = 720, last: int = 900, code: bytes = IMPORT, kind: int = 0) -> Block:
    """Return the second block with one register changed."""
    others = [entry for entry in SECOND.energy if entry.obis != IMPORT]
    return SECOND._replace(energy=(Energy(code, kind, first, last), *others))


def clock(**changes: int | str) -> Block:
    return SECOND._replace(clock=SECOND.clock._replace(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        pytest.param(SECOND._replace(height=1), "expected height 2, got 1", id="repeats a height"),
        pytest.param(SECOND._replace(height=3), "expected height 2, got 3", id="skips ahead"),
        pytest.param(SECOND._replace(meter="cellar"), "expected meter", id="is another meter's"),
        pytest.param(SECOND._replace(genesis=bytes(32)), "genesis", id="names another network"),
        pytest.param(SECOND._replace(incarnation=2), "incarnation", id="is of another chain"),
        pytest.param(SECOND._replace(previous=GENESIS.hash), "does not link", id="skips a block"),
        pytest.param(
            SECOND._replace(order=(0, bytes(32))), "behind order 0", id="changes the order it knows"
        ),
        pytest.param(SECOND._replace(events=2), "counts 2 events, expected 3", id="loses events"),
        pytest.param(SECOND._replace(end_s=END_S), "not after", id="has no length"),
        pytest.param(SECOND._replace(end_s=END_S - 1), "not after", id="ends before it begins"),
        pytest.param(SECOND._replace(start_s=END_S - 1), "expected", id="begins too early"),
        pytest.param(SECOND._replace(start_s=END_S + 1), "expected", id="begins too late"),
        pytest.param(SECOND._replace(flags=64), "unknown flags 64", id="has an unknown flag"),
        pytest.param(
            SECOND._replace(end_s=END_S + 1799),
            "inside an interval and is not flagged partial",
            id="ends early and does not say so",
        ),
        pytest.param(
            SECOND._replace(end_s=END_S + 3600), "spans intervals", id="is two intervals long"
        ),
        pytest.param(
            SECOND._replace(end_s=END_S + 1801, flags=GAP | PARTIAL),
            "spans intervals",
            id="is a gap that ends inside an interval",
        ),
        pytest.param(
            clock(measured_ms=0)._replace(records=0),
            "measured nothing and is not flagged gap",
            id="measured nothing and does not say so",
        ),
        pytest.param(
            clock(measured_ms=1_805_001),
            "measured 1805001 ms in",
            id="measured more than there was",
        ),
        pytest.param(energy(first=719), "begins register 1-0:1.8.0 at 719", id="repeats energy"),
        pytest.param(energy(first=721), "begins register 1-0:1.8.0 at 721", id="loses energy"),
        pytest.param(energy(last=719), "lowers register 1-0:1.8.0", id="lowers a register"),
        pytest.param(energy(kind=1), "relabels register", id="relabels a register"),
        pytest.param(energy(kind=2), "relabels register", id="has an unknown kind"),
        pytest.param(
            SECOND._replace(energy=SECOND.energy[:2]),
            "leaves out register 1-1:1.8.0",
            id="leaves out a register",
        ),
        pytest.param(
            SECOND._replace(energy=SECOND.energy[::-1]), "out of order", id="has them in disorder"
        ),
        pytest.param(
            SECOND._replace(energy=(SECOND.energy[0], *SECOND.energy)),
            "out of order or twice",
            id="has a register twice",
        ),
        pytest.param(
            SECOND._replace(energy=(*SECOND.energy, Energy(bytes((1, 2, 1, 8, 0, 255)), 0, 5, 9))),
            "begins register 1-2:1.8.0 at 5 uJ, expected 0",
            id="has a new register that does not begin at 0",
        ),
    ],
)
def test_a_block_with_a_valid_seal_is_rejected_that(block: Block, message: str) -> None:
    with pytest.raises(BlockRejectedError, match=message):
        verify_sealed(sealed(block), chain_with(FIRST))


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(SECOND, id="an interval"),
        pytest.param(
            clock(measured_ms=1000)._replace(end_s=END_S + 1, flags=PARTIAL), id="a part of one"
        ),
        pytest.param(
            clock(measured_ms=0)._replace(records=0, end_s=END_S + 90 * 86_400, flags=GAP),
            id="a gap of 90 days",
        ),
        pytest.param(
            clock(measured_ms=0)._replace(records=0, flags=GAP), id="a gap of one interval"
        ),
        pytest.param(clock(measured_ms=1_805_000), id="measured as long as boundaries may move"),
        pytest.param(
            clock(measured_ms=5_400_000)._replace(flags=STEPPED), id="measured through a step back"
        ),
        pytest.param(clock(measured_ms=5_400_000, status="R"), id="measured before time was known"),
        pytest.param(SECOND._replace(order=(1, bytes(32))), id="a new order"),
        pytest.param(
            energy(kind=1)._replace(parameters=bytes(32)),
            id="a register and its record relabelled",
        ),
        pytest.param(
            SECOND._replace(energy=(*SECOND.energy, Energy(bytes((1, 2, 1, 8, 0, 255)), 1, 0, 9))),
            id="a new register",
        ),
        pytest.param(SECOND._replace(flags=63), id="all flags"),
    ],
)
def test_a_block_may_follow_that_is(block: Block) -> None:
    _, chain = verify_sealed(sealed(block), chain_with(FIRST))
    assert chain.head.block_hash == block.hash


def test_an_order_once_known_is_not_forgotten() -> None:
    knows = SECOND._replace(order=(5, bytes(32)))
    chain = chain_with(FIRST, knows)
    third = SECOND._replace(
        height=3,
        previous=knows.hash,
        start_s=SECOND.end_s,
        end_s=SECOND.end_s + 1800,
        energy=tuple(entry._replace(first_uj=entry.last_uj) for entry in SECOND.energy),
    )
    for order, follows in (((4, bytes(32)), False), ((5, bytes(32)), True), ((6, b"6" * 32), True)):
        block = third._replace(order=order)
        if follows:
            assert verify_block(block, block.encode(), chain).order == order
        else:
            with pytest.raises(BlockRejectedError, match="goes back behind order 5"):
                verify_block(block, block.encode(), chain)


def test_a_first_block_begins_at_a_boundary_and_its_registers_at_0() -> None:
    inside = FIRST._replace(start_s=FIRST.start_s + 60)
    with pytest.raises(BlockRejectedError, match="is the first and begins inside an interval"):
        verify_sealed(sealed(inside), EMPTY)
    begun = FIRST._replace(energy=(Energy(IMPORT, 0, 1, 720),))
    with pytest.raises(BlockRejectedError, match="at 1 uJ, expected 0"):
        verify_sealed(sealed(begun), EMPTY)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(sealed(SECOND, STRANGER), "sealed by key", id="is a stranger's"),
        pytest.param(sealed(SECOND, genesis=bytes(32)), "this content", id="is for another net"),
        pytest.param(SECOND.encode(), "not a sealed block", id="has no seal"),
        pytest.param(sealed(SECOND) + b"\0", "not a sealed block", id="has a byte more"),
        pytest.param(sealed(SECOND)[:-1], "not a sealed block", id="has a byte less"),
        pytest.param(
            seal(b"\x80", KEY, GENESIS.hash), "not a sealed block: not a block", id="seals no block"
        ),
        pytest.param(
            sealed(SECOND).replace(b"meterd/block/v1", b"meterd/block/v2"),
            "over this content",
            id="was edited after",
        ),
    ],
)
def test_a_seal_is_rejected_that(message: bytes, reason: str) -> None:
    with pytest.raises(BlockRejectedError, match=reason):
        verify_sealed(message, chain_with(FIRST))


def test_a_run_of_blocks_is_verified_as_far_as_it_holds() -> None:
    whole = verify_seals(SealTask(EMPTY, (sealed(FIRST), sealed(SECOND))))
    assert (whole.blocks, whole.chain, whole.reason) == (
        (FIRST, SECOND),
        chain_with(FIRST, SECOND),
        "",
    )
    broken = verify_seals(SealTask(EMPTY, (sealed(FIRST), sealed(FIRST), sealed(SECOND))))
    assert (broken.blocks, broken.chain) == ((FIRST,), chain_with(FIRST))
    assert broken.reason == "expected height 2, got 1"


def test_the_hash_of_a_head_is_of_the_payload_as_it_came() -> None:
    head = verify_block(FIRST, FIRST.encode(), EMPTY)
    assert head.block_hash == digest(FIRST.encode())
    assert {entry.obis for entry in head.energy} == {IMPORT, EXPORT, OVEN}
