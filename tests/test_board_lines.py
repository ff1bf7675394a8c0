from __future__ import annotations

from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.board_lines import FAULTS, Board, Fault, Spoken, format_line, lines, parse_fault
from meterd.household import Channel, Moment
from meterd.metering.board import LAYOUTS, BoardDecoder, BoardRules, Clamp

if TYPE_CHECKING:
    from collections.abc import Sequence

MAINS = Channel(power_mw=-1_234_500, current_ma=5600, voltage_mv=230_120)
HEAT = Channel(power_mw=400_000, current_ma=1800, voltage_mv=229_000)


def steady(at_ms: int) -> Moment:
    """Draw as many watts as seconds have passed, so that each line tells when it was said."""
    return Moment((Channel(at_ms, 1000, 230_000),))


def said(
    *faults: str, until_s: int = 60, board: Board | None = None, start_ms: int = 0
) -> list[Spoken]:
    return list(
        lines(
            steady,
            board or Board(),
            start_ms=start_ms,
            until_ms=start_ms + until_s * 1000,
            faults=[parse_fault(fault) for fault in faults],
        )
    )


def decoded(
    spoken: Sequence[Spoken], layout: str = "rpict3v1", *, clamps: int = 1, vest: int = 240
) -> tuple[list[tuple[int, ...]], dict[str, int]]:
    """Return the powers that the decoder reads, and what it drops."""
    board = BoardDecoder(
        BoardRules(
            layout=layout,
            fields=LAYOUTS[layout],
            clamps=(Clamp(name="some", role="mains"),) * clamps,
            polling_ms=5000,
            vest=Decimal(vest),
        )
    )
    board.receive(b"\n", at_ms=0)
    readings = [reading for some in spoken for reading in board.receive(some.data, some.at_ms)]
    return [reading.powers_mw for reading in readings], board.dropped


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        ("rpict3v1", b"11 -1234.5 400.0 0.0 5600.0 1800.0 0.0 230.12\r\n"),
        (
            "rpict3v1-sketch2",
            b"11 -1234.5 1288.7 5600.0 230.12 -0.958 400.0 412.2 1800.0 229.00 0.970"
            + b" 0.0" * 3
            + b" 0.00 0.000\r\n",
        ),
        ("rpict3t1", b"11 1344.0 432.0 0.0\r\n"),
        (
            "rpict7v1",
            b"11 -1234.5 400.0 0.0 0.0 0.0 0.0 0.0 5600.0 1800.0 0.0 0.0 0.0 0.0 0.0 230.12\r\n",
        ),
    ],
)
def test_a_line_of_each_layout(layout: str, line: bytes) -> None:
    assert format_line(layout, 11, [MAINS, HEAT]) == line
    assert format_line(layout, 11, [MAINS, HEAT], commas=True) == line.replace(b" ", b",")


def test_a_newer_board_tells_amperes() -> None:
    line = format_line("rpict3v1", 7, [MAINS], current_unit="A", vest=1)
    assert line == b"7 -1234.5 0.0 0.0 5.600 0.000 0.000 230.12\r\n"


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    power_dw=st.integers(-200_000, 200_000),
    current_ma=st.integers(0, 100_000),
    voltage_cv=st.integers(20_000, 26_000),
)
def test_a_line_says_what_the_decoder_reads(
    layout: str, power_dw: int, current_ma: int, voltage_cv: int
) -> None:
    channel = Channel(power_dw * 100, current_ma if power_dw else 0, voltage_cv * 10)
    expected = channel.current_ma * 230 if layout == "rpict3t1" else channel.power_mw
    line = format_line(layout, 11, [channel] * 3, vest=1000)

    powers, dropped = decoded([Spoken(0, line, plugged=True)], layout, clamps=3, vest=1000)

    if abs(expected) <= 60 * 230 * 1600:
        assert powers == [(expected,) * 3]
    else:
        assert dropped == {"range": 1}


def test_a_line_is_said_at_each_polling() -> None:
    spoken = said(until_s=20, start_ms=1_000_000)

    assert [some.at_ms for some in spoken] == [0, 5000, 10_000, 15_000]
    assert decoded(spoken) == ([(1_000_000,), (1_005_000,), (1_010_000,), (1_015_000,)], {})
    assert all(some.plugged for some in spoken)


def test_without_an_end_it_speaks_on() -> None:
    spoken = lines(steady, Board(polling_ms=3200), start_ms=0)
    assert [some.at_ms for some in islice(spoken, 100)] == list(range(0, 320_000, 3200))


def test_where_the_power_is_off_the_board_is_too() -> None:
    def load(at_ms: int) -> Moment | None:
        return None if 5000 < at_ms <= 15_000 else steady(at_ms)

    spoken = lines(load, Board(), start_ms=0, until_ms=30_000)

    assert [some.at_ms for some in spoken] == [0, 5000, 20_000, 25_000]


def test_noise_is_of_its_seed() -> None:
    plain, noisy, again, other = (
        decoded(said(board=Board(noise_w=noise_w, seed=seed)))[0]
        for noise_w, seed in ((0, 1), (20, 1), (20, 1), (20, 2))
    )

    assert noisy == again
    assert plain != noisy != other
    assert 0 < max(abs(a[0] - b[0]) for a, b in zip(plain, noisy, strict=True)) < 100_000


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("nan@20", "not_a_number"),
        ("err@20", "board_error"),
        ("garbage@20", "garbage"),
        ("partial@20", "field_count"),
    ],
)
def test_a_fault_of_one_line(fault: str, kind: str) -> None:
    powers, dropped = decoded(said(fault))

    assert dropped == {kind: 1}
    assert powers == [(watts * 1000,) for watts in range(0, 60, 5) if watts != 20]


def test_a_fault_of_one_line_can_last() -> None:
    powers, dropped = decoded(said("nan@20+15"))

    assert dropped == {"not_a_number": 3}
    assert len(powers) == 9


def test_a_fault_between_two_lines_hits_the_next() -> None:
    assert decoded(said("nan@17"))[0] == decoded(said("nan@20"))[0]


def test_a_fault_while_nothing_is_said_hits_the_next_line() -> None:
    powers, dropped = decoded(said("silence@10+20", "err@15"))

    assert dropped == {"board_error": 1}
    assert powers == [(watts * 1000,) for watts in (0, 5, 35, 40, 45, 50, 55)]


def test_a_reset_is_a_banner_of_text_and_of_binary() -> None:
    powers, dropped = decoded(said("banner@20"))

    assert dropped == {"banner": 2}
    assert len(powers) == 12


def test_a_duplicate_is_said_at_once() -> None:
    spoken = said("duplicate@20")

    assert len(spoken) == 12
    assert decoded(spoken)[0][3:7] == [(15_000,), (20_000,), (20_000,), (25_000,)]


def test_silence_lasts_a_minute_unless_told() -> None:
    assert [some.at_ms for some in said("silence@10", until_s=80)] == [0, 5000, 70_000, 75_000]
    assert [some.at_ms for some in said("silence@10+5", until_s=20)] == [0, 5000, 15_000]


def test_a_frozen_board_repeats_what_it_said_last() -> None:
    powers, _ = decoded(said("frozen@20+25"))
    assert powers[3:10] == [(15_000,)] * 6 + [(45_000,)]


def test_a_board_that_is_frozen_from_the_start_repeats_its_first_line() -> None:
    assert set(decoded(said("frozen@0"))[0]) == {(0,)}


def test_without_an_adaptor_no_power_is_measured() -> None:
    line = said("adaptor-out@20+5")[4].data
    assert line == b"11 0.0 0.0 0.0 1000.0 0.0 0.0 0.90\r\n"


def test_a_reversed_clamp_stays_so() -> None:
    powers, _ = decoded(said("reversed@20"))
    assert powers[3:6] == [(15_000,), (-20_000,), (-25_000,)]
    assert powers[-1] == (-55_000,)


def test_a_pulled_cable_is_told_once_and_put_back() -> None:
    spoken = said("unplug@20", until_s=40)

    assert [(some.at_ms, some.plugged) for some in spoken[3:6]] == [
        (15_000, True),
        (20_000, False),
        (30_000, True),
    ]
    assert spoken[4].data == b""


def test_at_the_wrong_baud_rate_nothing_is_read() -> None:
    powers, dropped = decoded(said("wrong-baud@20+20"))

    assert (20_000,) not in powers
    assert (55_000,) in powers
    assert dropped == {"garbage": 1}  # without line ends, and with the head of the next line


def test_a_fast_board_speaks_twice_as_often() -> None:
    assert [some.at_ms for some in said("fast@5", until_s=15)] == [0, 5000, 7500, 10_000, 12_500]


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_has_its_usual_length(kind: str) -> None:
    lasting = FAULTS[kind]
    until_ms = None if lasting is None else 2500 + round(lasting * 1000)

    assert parse_fault(f"{kind}@2.5") == Fault(kind, 2500, until_ms)
    assert said(f"{kind}@2.5") != said()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "nan@",
        "nan@x",
        "nan@-1",
        "nan@1+-1",
        "nan@1+",
        "fire@1",
        "@1",
        "nan@nan",
        "nan@inf",
        "nan@1+inf",
    ],
)
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no fault|seconds"):
        parse_fault(text)
