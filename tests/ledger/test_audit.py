"""What a lying meter, or an error in meterd, seals validly and an audit of its rows gives away."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meterd.ledger.account import decode_parameters
from meterd.ledger.audit import plan
from meterd.ledger.encoding import digest
from tests.ledger.examples import EXPORT, FIRST, IMPORT
from tests.ledger.forge import Account
from tests.ledger.memory import Stored, Street, sealed_account

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterd.ledger.block import Block

ESTIMATED, LOST = 8, 16


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return sealed_account(tmp_path_factory.mktemp("honest") / "account")


def more_energy(account: Account, height: int, by_uj: int) -> None:
    """Let the import register end higher in one block, and begin so in those that follow."""

    def change(block: Block) -> Block:
        first, *others = block.energy
        last_uj = first.last_uj + by_uj
        first_uj = first.first_uj + (by_uj if block.height > height else 0)
        return block._replace(energy=(first._replace(first_uj=first_uj, last_uj=last_uj), *others))

    for later in range(height, 7):
        account.change_block(later, change)


def clock(account: Account, height: int, **changes: int) -> None:
    account.change_block(
        height,
        lambda block: block._replace(clock=block.clock._replace(**changes)),  # type: ignore[arg-type]
    )


def flags(account: Account, height: int, flag: int) -> None:
    account.change_block(height, lambda block: block._replace(flags=block.flags ^ flag))


def row_flags(account: Account, segment: int, row: int, flag: int) -> None:
    """Change a row's flags, a 16-bit word behind its 32 bits of time."""

    def change(body: bytes) -> bytes:
        return body[:4] + struct.pack("<H", body[4] ^ flag) + body[6:]

    account.change_row(segment, row, change)


def header_sums(account: Account, segment: int, by_half_uj: int) -> None:
    account.change_header(
        segment,
        lambda header: replace(header, sums=(header.sums[0] + by_half_uj, *header.sums[1:])),
    )


def record(account: Account, **changes: object) -> None:
    """Change the parameter record everywhere: in its event, the headers and the blocks."""

    def change(data: bytes) -> bytes:
        return replace(decode_parameters(data), **changes).encode()  # type: ignore[arg-type]

    old = account.events[0][1][1].bytes_of("record")
    new = change(old)
    account.change_event(2, lambda event: replace(event, details=(("record", new),)))
    for number in range(1, len(account.samples) + 1):
        account.change_header(number, lambda header: replace(header, parameters=digest(new)))
    for height in range(1, 7):
        account.change_block(height, lambda block: block._replace(parameters=digest(new)))


def test_what_is_put_together_again_unchanged_is_the_same_account(honest: Stored) -> None:
    built = Account.of(honest).build()
    assert built.streams == honest.streams
    assert built.judge().verdict == "good"


def other_record(account: Account) -> None:
    """Let one block name a record that an event holds, and its segment does not."""
    held = decode_parameters(account.events[0][1][1].bytes_of("record"))
    other = replace(held, sequence=2).encode()
    account.change_event(6, lambda e: replace(e, kind="parameters", details=(("record", other),)))
    account.change_block(6, lambda block: block._replace(parameters=digest(other)))


def row_power(account: Account, segment: int, row: int) -> None:
    """Let a row say that a watt more was drawn than the registers were counted from."""
    account.change_row(segment, row, lambda body: body[:16] + struct.pack("<i", 1000) + body[20:])


@pytest.mark.parametrize(
    ("lie", "height", "reason"),
    [
        pytest.param(
            lambda account: more_energy(account, 2, 2),
            2,
            "register 1-0:1.8.0 ends at",
            id="a register counts more than its rows",
        ),
        pytest.param(
            lambda account: more_energy(account, 6, 1),
            6,
            "register 1-0:1.8.0 ends at",
            id="the last block counts more than its rows",
        ),
        pytest.param(
            lambda account: header_sums(account, 1, 2),
            1,
            "register 1-0:1.8.0 begins at 0 uJ, its rows add up to 1 uJ",
            id="the first segment does not begin at 0",
        ),
        pytest.param(
            lambda account: header_sums(account, 3, 1),
            5,
            "the header's sums are not what segment 2 adds up to",
            id="half a microjoule is lost between segments",
        ),
        pytest.param(
            lambda account: clock(account, 2, measured_ms=1_799_999),
            2,
            "measured 1799999 ms, its rows tell of 1800000 ms",
            id="less was measured than rows tell",
        ),
        pytest.param(
            lambda account: clock(account, 4, measured_ms=1),
            4,
            "measured 1 ms, its rows tell of 0 ms",
            id="a gap block measured",
        ),
        pytest.param(
            lambda account: clock(account, 2, boot_ms=2_900_000),
            2,
            "ends at",
            id="a block ends between two rows elsewhere",
        ),
        pytest.param(
            lambda account: flags(account, 5, ESTIMATED),
            5,
            "flagged estimated, and no row is",
            id="a block says estimated, and no row does",
        ),
        pytest.param(
            lambda account: row_flags(account, 3, 1, 2),
            5,
            "a row is estimated and the block does not say so",
            id="a row says estimated, and the block does not",
        ),
        pytest.param(
            lambda account: row_flags(account, 3, 1, 1),
            5,
            "gap flag is not what the board's cadence makes it",
            id="a hole that is none",
        ),
        pytest.param(
            lambda account: row_flags(account, 3, 0, 1),
            5,
            "gap flag is not what the board's cadence makes it",
            id="a run that begins without a hole",
        ),
        pytest.param(
            lambda account: row_power(account, 2, 1),
            3,
            "ends at",
            id="a row says less than was counted",
        ),
        pytest.param(
            other_record, 6, "names another parameter record", id="a block names another record"
        ),
        pytest.param(
            lambda account: record(account, settings=()),
            1,
            "states no polling interval",
            id="the record states no polling interval",
        ),
        pytest.param(
            lambda account: record(account, settings=(("board.polling_ms", "9" * 5000),)),
            1,
            "states no polling interval",
            id="the record's polling interval has no end",
        ),
        pytest.param(
            lambda account: record(account, settings=(("board.polling_ms", "often"),)),
            1,
            "states no polling interval",
            id="the record's polling interval is no number",
        ),
        pytest.param(
            lambda account: record(account, roles=("circuit", "circuit")),
            1,
            "registers are not those of its clamps",
            id="the record has no mains clamp",
        ),
        pytest.param(
            lambda account: record(account, registers=((IMPORT, 0), (EXPORT, 0))),
            1,
            "registers are not those of its clamps",
            id="the record leaves out a register",
        ),
        pytest.param(
            lambda account: record(account, roles=("mains", "mains", "circuit")),
            1,
            "the header does not fit its parameter record",
            id="the rows have fewer clamps than the record",
        ),
    ],
)
def test_a_lie_under_a_valid_seal_is_found(
    honest: Stored, lie: Callable[[Account], None], height: int, reason: str
) -> None:
    account = Account.of(honest)
    lie(account)
    bad = account.build().judge().first_bad
    assert bad is not None
    assert (bad.stream, bad.height) == ("samples", height), bad
    assert reason in bad.reason


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Return an account of a board that keeps its beat of five minutes, one hole excepted."""
    street = Street(tmp_path_factory.mktemp("steady") / "account")
    street.feed(*((minute, 100, 5) for minute in range(2, 150, 5)))
    return street.feed(*((minute, 90, 5) for minute in range(172, 210, 5))).finish().stored


@pytest.mark.parametrize(
    ("row", "elapsed_min", "flag"),
    [
        pytest.param(20, 5, 1, id="a hole that is none"),
        pytest.param(20, 16, 0, id="a hole that is not told"),
        pytest.param(30, 15, 1, id="three beats told as a hole"),
    ],
)
def test_a_hole_is_what_the_beat_of_the_board_makes_it(
    steady: Stored, row: int, elapsed_min: int, flag: int
) -> None:
    assert steady.judge().verdict == "good"
    account = Account.of(steady)
    account.change_row(
        1, row, lambda body: struct.pack("<IH", elapsed_min * 60_000, flag) + body[6:]
    )
    bad = account.build().judge().first_bad
    assert bad is not None
    assert bad.reason == "the row's gap flag is not what the board's cadence makes it"
    records = list(steady.records("samples"))
    assert bad.offset == records[row][1]


@pytest.mark.parametrize("height", [4, 5])
def test_a_fingerprint_of_other_rows_is_found(honest: Stored, height: int) -> None:
    """Block 4 has none, and must say so."""
    account = Account.of(honest)
    account.fingerprints[height] = bytes(32)
    bad = account.build().judge().first_bad
    assert bad is not None
    assert (bad.stream, bad.height) == ("samples", height)
    assert bad.reason == "the rows are linked and are not those the block sealed"


def test_where_samples_were_lost_registers_are_believed(honest: Stored) -> None:
    """Nothing is left to recompute them from; the flag says so, for all to see."""
    account = Account.of(honest)
    more_energy(account, 6, 1000)
    flags(account, 6, LOST)
    assert account.build().judge().verdict == "good"


def test_an_event_that_names_another_block_is_found(honest: Stored) -> None:
    account = Account.of(honest)
    lie = (("height", 1), ("hash", bytes(32)))
    account.change_event(4, lambda event: replace(event, details=lie))
    bad = account.build().judge().first_bad
    assert bad is not None
    assert (bad.stream, bad.height) == ("blocks", 1)
    assert bad.reason == "an event says that another was sealed"


def test_a_plan_lays_each_row_to_one_block() -> None:
    blocks = [FIRST._replace(height=n, records=rows) for n, rows in enumerate((3, 0, 4, 0), 1)]
    stretches, short = plan(blocks, {1: 2, 2: 3, 3: 2})
    assert short is None
    laid = [
        (number, s.block.height, s.first_row, s.rows, s.begins, s.ends)
        for number, here in stretches.items()
        for s in here
    ]
    assert laid == [
        (1, 1, 0, 2, True, False),
        (2, 1, 0, 1, False, True),
        (2, 2, 1, 0, True, True),
        (2, 3, 1, 2, True, False),
        (3, 3, 0, 2, False, True),
        (3, 4, 2, 0, True, True),
    ]
    assert plan(blocks, {1: 2, 2: 3})[1] == blocks[2]
    assert plan(blocks[1:2], {}) == ({}, None)
    assert plan(blocks[1:2], {1: 0})[0][1][0].rows == 0
