"""Lines of the board in a stream of bytes: cut anywhere, begun too early, broken into."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meterd.metering.board import LINE_BYTES_MAX, BoardDecoder, BoardRules
from tests.metering.examples import CIRCUIT, GOOD, KEY, MAINS, opened, rules


@pytest.mark.parametrize(
    "line",
    [
        b"0.0 243.87",
        b".0 0.0 0.0 1600.0 0.0 0.0 243.87",
        b"\xf0\x80",
        b"243.87",
    ],
)
def test_the_first_line_after_opening_is_partial_when_its_beginning_is_missing(line: bytes) -> None:
    board = BoardDecoder(rules())
    for number in (1, 2):
        board.receive(line + b"\r\n", at_ms=0)
        assert board.dropped.pop("partial") == 1
        board.receive(line + b"\r\n", at_ms=0)
        assert "partial" not in board.dropped
        assert sum(board.dropped.values()) == number
        board.reopen()


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"# RPICT3", "banner"),
        (b"err 2", "board_error"),
        (b"11 nan 0 0 0 0 0 230", "not_a_number"),
        (b"1" * 300, "oversized"),
    ],
)
def test_the_first_line_after_opening_keeps_its_kind_when_it_is_whole(
    line: bytes, kind: str
) -> None:
    board = BoardDecoder(rules())

    board.receive(line + b"\n", at_ms=0)

    assert board.dropped == {kind: 1}


def test_a_first_line_that_reads_well_is_taken() -> None:
    assert len(BoardDecoder(rules()).receive(GOOD, at_ms=0)) == 1


@pytest.mark.parametrize(
    ("board_rules", "line"),
    [
        pytest.param(rules("rpict3t1"), b"11 0.0 0.0 0.0 24.5", id="as long as another"),
        pytest.param(rules("custom", fields="RP1 Irms1"), b"2000.0 8.7", id="no node in front"),
    ],
)
def test_a_first_line_whose_beginning_nobody_can_tell_is_dropped(
    board_rules: BoardRules, line: bytes
) -> None:
    board = BoardDecoder(board_rules, joins=True)
    for _ in range(2):
        assert board.receive(line + b"\r\n", at_ms=0) == []
        assert board.dropped.pop("partial") == 1
        assert len(board.receive(line + b"\r\n", at_ms=5000)) == 1
        board.reopen()
    assert len(BoardDecoder(board_rules).receive(line + b"\r\n", at_ms=0)) == 1, "a capture's"
    assert len(BoardDecoder(rules(), joins=True).receive(GOOD, at_ms=0)) == 1


def test_a_line_that_was_cut_by_the_reopening_is_partial() -> None:
    board = opened(rules())
    board.receive(GOOD[:20], at_ms=0)

    board.reopen()

    assert board.receive(GOOD[20:], at_ms=1) == []
    assert board.dropped == {"partial": 2}  # one end each
    board.reopen()
    assert len(board.receive(GOOD, at_ms=2)) == 1
    assert board.dropped == {"partial": 2}


def test_a_long_line_that_was_cut_by_the_reopening_is_counted_once() -> None:
    board = opened(rules())
    board.receive(b"1" * 1000, at_ms=0)

    board.reopen()

    assert len(board.receive(GOOD, at_ms=2)) == 1
    assert board.dropped == {"oversized": 1}


def test_a_structure_that_was_cut_by_the_reopening_swallows_nothing() -> None:
    board = opened(rules())
    board.receive(KEY + b"\xa2", at_ms=0)

    board.reopen()

    assert len(board.receive(GOOD, at_ms=2)) == 1
    assert board.dropped == {"banner": 1}


def test_lines_may_end_in_a_line_feed_alone_and_empty_ones_say_nothing() -> None:
    board = BoardDecoder(rules())

    readings = board.receive(b"\n\r\n \t\r\n" + GOOD.replace(b"\r", b"") + b"\n" + GOOD, at_ms=0)

    assert [reading.line for reading in readings] == [GOOD.strip()] * 2
    assert board.accepted == 2
    assert board.dropped == {}


@pytest.mark.parametrize(
    ("structure", "structure_bytes"), [(0xA0, 21), (0xA1, 49), (0xA2, 52)], ids=hex
)
@pytest.mark.parametrize("filling", [b"\x00", b"\n", b"\xff", b"1", b"C", KEY])
def test_a_binary_structure_is_one_banner_whatever_is_in_it(
    structure: int, structure_bytes: int, filling: bytes
) -> None:
    board = opened(rules())
    body = (filling * 60)[: structure_bytes - 5]

    readings = board.receive(GOOD + KEY + bytes([structure]) + body + GOOD, at_ms=0)

    assert len(readings) == 2
    assert board.dropped == {"banner": 1}


def test_a_binary_structure_ends_the_line_that_it_breaks_into() -> None:
    board = opened(rules())

    readings = board.receive(GOOD[:20] + KEY + b"\xa0" + bytes(16) + GOOD, at_ms=0)

    assert len(readings) == 1
    assert board.dropped == {"partial": 1, "banner": 1}


def test_of_an_unknown_structure_only_the_beginning_is_known() -> None:
    board = opened(rules())

    readings = board.receive(KEY + b"\xb5\x01\x02\x03\r\n" + GOOD, at_ms=0)

    assert len(readings) == 1
    assert board.dropped == {"banner": 1, "garbage": 1}


def test_a_line_that_never_ends_takes_no_more_room() -> None:
    board = opened(rules())

    for _ in range(1000):
        board.receive(b"12345 " * 10, at_ms=0)
        assert len(board._pending) <= 2 * LINE_BYTES_MAX

    assert board.dropped == {"oversized": 1}
    assert board.receive(b"\r\n" + GOOD, at_ms=0)[0].powers_mw == (374000,)
    assert board.dropped == {"oversized": 1}


def test_a_line_that_never_ends_is_ended_by_a_structure() -> None:
    board = opened(rules())
    board.receive(b"1" * 1000 + KEY[:2], at_ms=0)

    readings = board.receive(KEY[2:] + b"\xa0" + bytes(16) + GOOD, at_ms=0)

    assert len(readings) == 1
    assert board.dropped == {"oversized": 1, "banner": 1}


# Whatever comes

PIECES = st.one_of(
    st.sampled_from(
        [
            GOOD,
            b"11 374.0 0.0 0.0 1600.0",
            b"\r\n",
            b"\n",
            b"\r",
            KEY,
            KEY[:1],
            KEY[:3],
            KEY + b"\xa0",
            KEY + b"\xa1" + b"\n" * 44,
            KEY + b"\xb0",
            b"# RPICT3 \xa0\x00",
            b"err 3",
            b"nan",
            b"1" * 255,
            b"1" * 256,
            b"1" * 257,
            b"7 " * 200,
        ]
    ),
    st.binary(max_size=30),
)


@given(pieces=st.lists(PIECES, max_size=12), cuts=st.lists(st.integers(0, 3000), max_size=12))
@example(pieces=[b"1" * 256, KEY[:3], KEY[3:]], cuts=[259])
@example(pieces=[b"1" * 256, b"\r\n"], cuts=[257])
@example(pieces=[GOOD[:-2], KEY, b"\xa0", GOOD], cuts=[40, 42, 44])
def test_readings_do_not_depend_on_how_the_bytes_are_cut(
    pieces: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(pieces)
    ends = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    whole, cut_up, bytewise = (BoardDecoder(rules("rpict3v1", MAINS, CIRCUIT)) for _ in range(3))

    expected = whole.receive(stream, at_ms=0)
    received = [
        reading
        for start, end in pairwise(ends)
        for reading in cut_up.receive(stream[start:end], at_ms=0)
    ]
    one_by_one = [
        reading
        for at in range(len(stream))
        for reading in bytewise.receive(stream[at : at + 1], at_ms=0)
    ]

    assert received == one_by_one == expected
    for board in (cut_up, bytewise):
        assert board.dropped == whole.dropped
        assert board.last_dropped == whole.last_dropped
        assert board.accepted == whole.accepted == len(expected)


@given(data=st.binary(max_size=600))
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    board = BoardDecoder(rules())

    readings = board.receive(data, at_ms=0)
    board.receive(KEY[:3] + b"\n" * 60 + GOOD, at_ms=0)

    assert all(len(reading.line) <= LINE_BYTES_MAX for reading in readings)
    assert board.accepted >= 1
    assert len(board.last_dropped) <= LINE_BYTES_MAX
