from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.errors import ConfigError
from meterd.metering import calibration
from meterd.metering.board import (
    LAYOUTS,
    LINE_BYTES_MAX,
    BoardDecoder,
    BoardRules,
    Clamp,
    Reading,
    channels,
    clamp_estimated,
    estimated_by_layout,
    field_names_ok,
    known_field,
    measurable_channels,
    measures_apparent,
)
from tests.metering.examples import CIRCUIT, GOOD, MAINS, UNUSED, custom, opened, rules

CAPTURES = Path(__file__).parent.parent / "captures"


def read(board_rules: BoardRules, line: str) -> Reading:
    board = BoardDecoder(board_rules)
    [reading] = board.receive(line.encode() + b"\r\n", at_ms=7)
    assert (board.accepted, board.dropped) == (1, {})
    assert reading.at_ms == 7
    assert reading.line == line.encode()
    return reading


def dropped(board_rules: BoardRules, line: bytes) -> str:
    """Return the kind that a line of a running board is dropped as."""
    board = opened(board_rules)
    assert board.receive(line + b"\r\n", at_ms=0) == []
    [(kind, count)] = board.dropped.items()
    assert count == 1
    assert board.last_dropped == line[:LINE_BYTES_MAX]
    assert len(board.receive(GOOD, at_ms=0)) <= 1
    return kind


REVERSED = replace(MAINS, reversed=True)
SCALED = replace(MAINS, scale=Decimal("1.5"))
QUIET = replace(MAINS, zero_below_w=Decimal(25))
SEVEN = "11 1.0 2.0 3.0 4.0 5.0 6.0 7.0 10 20 30 40 50 60 70 230.0"


@pytest.mark.parametrize(
    ("board_rules", "line", "powers_mw", "currents_ma", "voltage_mv", "apparent_mva"),
    [
        pytest.param(
            rules(),
            "11 374.0 0.0 0.0 1600.0 0.0 0.0 243.87",
            (374000,),
            (1600,),
            243870,
            390192,
            id="one clamp of the old RPICT3V1",
        ),
        pytest.param(
            rules("rpict3v1", MAINS, CIRCUIT, UNUSED),
            "11,374.0,20.5,nan,1600.0,90,nan,243.87",
            (374000, 20500),
            (1600, 90),
            243870,
            390192,
            id="commas, and a circuit that does not count as apparent",
        ),
        pytest.param(
            rules("rpict3v1", MAINS, MAINS, MAINS),
            "11 \t 1 2 3 , 1000.01 2000.02\t3000.03 230.05 ",
            (1000, 2000, 3000),
            (1000, 2000, 3000),
            230050,
            1380314,  # 230.05 x 6.00006 = 1380.3138...
            id="three phases, apparent power rounded once",
        ),
        pytest.param(
            rules("rpict3v1", UNUSED, MAINS),
            "11 nan 374.0 nan nan 1600.0 nan 243.87",
            (374000,),
            (1600,),
            243870,
            390192,
            id="only the second clamp is used",
        ),
        pytest.param(
            rules("rpict3v1", REVERSED),
            "11 -50.14 0.0 0.0 320 0 0 242.0",
            (50140,),
            (320,),
            242000,
            77440,
            id="a reversed clamp",
        ),
        pytest.param(
            rules("rpict3v1", REVERSED),
            "11 50.14 0.0 0.0 320 0 0 242.0",
            (-50140,),
            (320,),
            242000,
            77440,
            id="a reversed clamp that exports",
        ),
        pytest.param(
            rules("rpict3v1", SCALED),
            "11 -100.1 0 0 -0.0 0 0 230",
            (-150150,),
            (0,),
            230000,
            0,
            id="a scaled clamp that exports",
        ),
        pytest.param(
            rules("rpict3v1", QUIET),
            "11 -24.999 0 0 100 0 0 230",
            (0,),
            (100,),
            230000,
            23000,
            id="nearer to zero than the threshold",
        ),
        pytest.param(
            rules("rpict3v1", QUIET),
            "11 -25.000 0 0 100 0 0 230",
            (-25000,),
            (100,),
            230000,
            23000,
            id="at the threshold",
        ),
        pytest.param(
            rules(),
            "11 0.0005 0 0 0.4999999 0 0 230.0004999",
            (1,),
            (0,),
            230000,
            115,
            id="half a milliwatt away from zero",
        ),
        pytest.param(
            rules(),
            "11 -0.0005 0 0 0 0 0 0",
            (-1,),
            (0,),
            0,
            0,
            id="minus half a milliwatt away from zero",
        ),
        pytest.param(
            replace(rules(), current_unit="A"),
            "11 374 0 0 1.6 0 0 243.87",
            (374000,),
            (1600,),
            243870,
            390192,
            id="amperes",
        ),
        pytest.param(
            rules("rpict3v1-sketch2", MAINS, CIRCUIT),
            "11 300 400.5 1700 235.6 0.75 20 30 130 236.0 0.66 0 0 0 0 0",
            (300000, 20000),
            (1700, 130),
            235600,
            400500,
            id="sketch 2 tells apparent power and each clamp's voltage",
        ),
        pytest.param(
            rules("rpict3v1-sketch2", CIRCUIT, SCALED),
            "11 20 30 130 236.0 0.66 300 400.5 1700 235.6 0.75 0 0 0 0 0",
            (20000, 450000),
            (130, 2550),
            236000,
            600750,
            id="sketch 2 with the mains clamp second and scaled",
        ),
        pytest.param(
            rules("rpict7v1", *[MAINS] * 6, CIRCUIT),
            SEVEN,
            (1000, 2000, 3000, 4000, 5000, 6000, 7000),
            (10, 20, 30, 40, 50, 60, 70),
            230000,
            48300,
            id="seven clamps",
        ),
        pytest.param(
            rules("rpict3t1"),
            "11 240.0 0 0",
            (230000,),
            (1000,),
            0,
            0,
            id="estimated power is rebased from vest to nominal voltage",
        ),
        pytest.param(
            replace(rules("rpict3t1", REVERSED), vest=Decimal(1), power_factor=Decimal("0.9")),
            "11 2.0 0 0 19.5",
            (414000,),
            (2000,),
            0,
            0,
            id="vest 1, a power factor, a probe; without voltage there is no direction to turn",
        ),
        pytest.param(
            custom("node Irms1", SCALED),
            "11 1000",
            (345000,),
            (1500,),
            0,
            0,
            id="current alone",
        ),
        pytest.param(
            custom("node RP1 Vrms"), "11 -5 230", (-5000,), (0,), 230000, 0, id="no current field"
        ),
        pytest.param(custom("RP1"), "-5", (-5000,), (0,), 0, 0, id="power alone"),
        pytest.param(
            custom("Vrms2 Irms2 RP2 EP1 Irms1", MAINS, CIRCUIT),
            "229.5 100 20.5 24.0 105",
            (23000, 20500),
            (105, 100),
            229500,
            0,
            id="EP beside a current; the voltage is the second clamp's",
        ),
        pytest.param(
            custom("node RP1 Irms1 Irms2 Vrms Vrms1", MAINS, CIRCUIT),
            "11 10 50 100 231 229",
            (10000, 23000),
            (50, 100),
            229000,
            11450,
            id="a clamp's own voltage goes before the board's",
        ),
    ],
)
def test_a_line_reads(
    *,
    board_rules: BoardRules,
    line: str,
    powers_mw: tuple[int, ...],
    currents_ma: tuple[int, ...],
    voltage_mv: int,
    apparent_mva: int,
) -> None:
    reading = read(board_rules, line)

    assert reading.powers_mw == powers_mw
    assert reading.currents_ma == currents_ma
    assert reading.voltage_mv == voltage_mv
    assert reading.apparent_mva == apparent_mva
    assert not reading.estimated


@pytest.mark.parametrize("probes", range(9))
def test_an_rpict3t1_may_have_any_number_of_probes_up_to_eight(probes: int) -> None:
    assert read(rules("rpict3t1"), "11 240.0 0.0 0.0" + " 21.5" * probes).powers_mw == (230000,)


@pytest.mark.parametrize(
    ("board_rules", "line", "powers_mw", "apparent_mva", "estimated"),
    [
        pytest.param(
            rules(), "11 0.0 0 0 2310.8 0 0 0.9", (531484,), 531484, True, id="the adaptor is out"
        ),
        pytest.param(
            rules(), "11 0.0 0 0 0.4 0 0 0.9", (92,), 92, True, id="any current counts as flowing"
        ),
        pytest.param(rules(), "11 -0.0 0 0 -0.0 0 0 0.9", (0,), 0, False, id="no current flows"),
        pytest.param(
            rules(), "11 9 0 0 1000 0 0 115.0", (9000,), 115000, False, id="half of nominal is no"
        ),
        pytest.param(
            rules(), "11 9 0 0 1000 0 0 114.99999", (230000,), 230000, True, id="below half is"
        ),
        pytest.param(
            rules("rpict3v1", replace(REVERSED, zero_below_w=Decimal(25))),
            "11 -9 0 0 100 0 0 0",
            (0,),
            23000,
            True,
            id="the threshold holds for an estimate; a reversed clamp imports",
        ),
        pytest.param(
            replace(rules("rpict3v1", SCALED, CIRCUIT), power_factor=Decimal("0.5")),
            "11 0 0 0 1000 10 0 0",
            (172500, 1150),
            345000,
            True,
            id="each clamp that needs the adaptor",
        ),
        pytest.param(
            rules("rpict3v1-sketch2", MAINS, CIRCUIT),
            "11 0 0 1000 0 0 5 6 20 231 0.8 0 0 0 0 0",
            (230000, 5000),
            230000,
            True,
            id="S of a board without an adaptor is not believed",
        ),
        pytest.param(
            rules("rpict3v1", MAINS),
            "11 999999 0 0 1000 0 0 0",
            (230000,),
            230000,
            True,
            id="nor is its power",
        ),
        pytest.param(
            custom("RP1 Vrms"), "5 0", (5000,), 0, False, id="no current field: not to be seen"
        ),
    ],
)
def test_without_a_voltage_adaptor_energy_is_not_free(
    board_rules: BoardRules,
    line: str,
    powers_mw: tuple[int, ...],
    apparent_mva: int,
    estimated: bool,
) -> None:
    reading = read(board_rules, line)

    assert (reading.powers_mw, reading.apparent_mva) == (powers_mw, apparent_mva)
    assert reading.estimated is estimated


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        pytest.param(b"# RPICT8 5 boards stack v1.1", "banner", id="a banner"),
        pytest.param(b"# RPICT3 \xa0\x00", "banner", id="a banner with binary in it"),
        pytest.param(b"RPICT3 v1.4 ready", "banner", id="a text"),
        pytest.param(b"11 interval 5000", "banner", id="an interval"),
        pytest.param(b"Interval: 5000", "banner", id="an interval in a text"),
        pytest.param(b"12a 374.0 0.0 0.0 1600.0 0.0 0.0 243.87", "banner", id="a wordy node"),
        pytest.param(b"err 1", "board_error", id="an error of the board"),
        pytest.param(b"11 err 3", "board_error", id="an error after the node"),
        pytest.param(b"11 1 2 3 4 5 6 ERR", "board_error", id="an error in a line that fits"),
        pytest.param(b"11 1 2 3 4 5 6 \xff", "garbage", id="a byte that is no text"),
        pytest.param(b"11 1 2 3 4 5 6\r7 8", "garbage", id="a carriage return inside"),
        pytest.param(b"\x00", "garbage", id="a null byte"),
        pytest.param(b"\xf8\x80err\x78", "garbage", id="the wrong baud rate"),
        pytest.param(b"11 374.0 0.0 0.0 1600.0 0.0 0.0", "field_count", id="a field less"),
        pytest.param(b"11 1 2 3 4 5 6 7 8", "field_count", id="a field more"),
        pytest.param(b"~~~ }", "field_count", id="signs without a word"),
        pytest.param(b"nan", "field_count", id="one field that is a number's name"),
        pytest.param(b"11 nan 0 0 1600.0 0 0 243.87", "not_a_number", id="nan"),
        pytest.param(b"11 inf 0 0 1600.0 0 0 243.87", "not_a_number", id="inf"),
        pytest.param(b"11 1e308 0 0 1600.0 0 0 243.87", "not_a_number", id="an exponent"),
        pytest.param(b"11 +1 0 0 1600.0 0 0 243.87", "not_a_number", id="a plus sign"),
        pytest.param(b"11 --1 0 0 1600.0 0 0 243.87", "not_a_number", id="two minus signs"),
        pytest.param(b"11 - 0 0 1600.0 0 0 243.87", "not_a_number", id="a sign alone"),
        pytest.param(b"11 1-2 0 0 1600.0 0 0 243.87", "not_a_number", id="a sign inside"),
        pytest.param(b"11 1.2.3 0 0 1600.0 0 0 243.87", "not_a_number", id="two points"),
        pytest.param(b"11 .5 0 0 1600.0 0 0 243.87", "not_a_number", id="no whole part"),
        pytest.param(b"11 5. 0 0 1600.0 0 0 243.87", "not_a_number", id="a point and no more"),
        pytest.param(b"11 -.5 0 0 1600.0 0 0 243.87", "not_a_number", id="no whole part, below 0"),
        pytest.param(b"11 1_0 0 0 1600.0 0 0 243.87", "not_a_number", id="an underscore"),
        pytest.param(b"11 1 0 0 nan 0 0 243.87", "not_a_number", id="a current that is none"),
        pytest.param(b"11 1 0 0 1600.0 0 0 nan", "not_a_number", id="a voltage that is none"),
        pytest.param(b"11 nan 0 0 1600.0 0 0 0.9", "not_a_number", id="nan without an adaptor"),
        pytest.param(b"11 99999 0 0 1600.0 0 0 nan", "not_a_number", id="nan before the range"),
        pytest.param(b"11 22080.001 0 0 1 0 0 230", "range", id="above 1.6 x fuse x nominal"),
        pytest.param(b"11 -22080.001 0 0 1 0 0 230", "range", id="below it"),
        pytest.param(b"11 1 0 0 96000.1 0 0 0", "range", id="an estimate above it"),
        pytest.param(b"11 1 0 0 -0.1 0 0 230", "range", id="a current below zero"),
        pytest.param(b"11 1 0 0 1 0 0 -0.1", "range", id="a voltage below zero"),
        pytest.param(b"11 1 0 0 4294967296 0 0 230", "range", id="a current past 32 bits"),
        pytest.param(b"11 1 0 0 1 0 0 4294967.296", "range", id="a voltage past 32 bits"),
        pytest.param(b"11 1 0 0 4294967 0 0 1001", "range", id="apparent power past 32 bits"),
        pytest.param(b"1" * 257, "oversized", id="too long for a line"),
        pytest.param(b"#" * 257, "oversized", id="too long for a banner"),
        pytest.param(b"1" * 10_000, "oversized", id="much too long"),
        pytest.param(b"1" * 256, "field_count", id="not too long"),
    ],
)
def test_a_line_is_dropped_as(line: bytes, kind: str) -> None:
    assert dropped(rules(), line) == kind


@pytest.mark.parametrize(
    ("board_rules", "line", "kind"),
    [
        pytest.param(rules("rpict3t1"), b"11 -0.1 0 0", "range", id="EP below zero"),
        pytest.param(rules("rpict3t1", QUIET), b"11 -0.1 0 0", "range", id="EP just below zero"),
        pytest.param(rules("rpict3t1"), b"11 0 0", "field_count", id="two EP"),
        pytest.param(rules("rpict3t1"), b"11 0 0 0" + b" 1" * 9, "field_count", id="nine probes"),
        pytest.param(
            rules("rpict3v1-sketch2"), b"11 0 -1 0 230" + b" 0" * 11, "range", id="S below zero"
        ),
        pytest.param(
            rules("rpict3v1-sketch2"), b"11 0 nan 9 0" + b" 0" * 11, "not_a_number", id="S is nan"
        ),
        pytest.param(custom("RP1 Irms1"), b"nan 0", "not_a_number", id="nan in the first field"),
        pytest.param(custom("RP1 Irms1"), b"1.5e3 0", "not_a_number", id="an exponent there"),
        pytest.param(custom("RP1 Irms1"), b"-inf 0", "not_a_number", id="an infinity there"),
    ],
)
def test_a_line_of_another_layout_is_dropped_as(
    board_rules: BoardRules, line: bytes, kind: str
) -> None:
    assert dropped(board_rules, line) == kind


@pytest.mark.parametrize("power", ["22080", "-22080", "22080.000", "0.00000000000000000001"])
def test_a_power_is_believed_up_to_the_limit(power: str) -> None:
    assert abs(read(rules(), f"11 {power} 0 0 1 0 0 230").powers_mw[0]) in {0, 22_080_000}


def test_values_are_remembered_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "TEXTS_KEPT_MAX", 8)
    board = BoardDecoder(rules())

    readings = [
        board.receive(b"11 -%d.5 0 0 %d 0 0 %d.25\r\n" % (n, n, n + 200), at_ms=n)[0]
        for n in [*range(40), *range(40)]
    ]

    assert [reading.powers_mw[0] for reading in readings] == [
        -1000 * n - 500 for n in [*range(40), *range(40)]
    ]


# What a real board said


def capture(name: str) -> bytes:
    """Return the bytes of a capture (CONTRACTS: seconds, tab, raw with escapes)."""
    lines = (CAPTURES / name).read_text(encoding="ascii").splitlines()
    raws = [line.rpartition("\t")[2].encode() + b"\r\n" for line in lines]
    return b"".join(
        re.sub(rb"\\x([0-9a-f]{2})", lambda hexed: bytes.fromhex(hexed[1].decode()), raw)
        for raw in raws
    )


@pytest.mark.parametrize(
    ("name", "board_rules", "powers_mw", "drops"),
    [
        pytest.param(
            "contracts.txt",
            rules(),
            [(374000,), (356000,), (346000,)],
            {"banner": 1},
            id="the worked example",
        ),
        pytest.param(
            "rpict7v1-no-adaptor.txt",
            rules("rpict7v1", *[UNUSED] * 5, MAINS, CIRCUIT),
            [(758149, 531484)],
            {},
            id="milliamperes, minus zero, no adaptor",
        ),
        pytest.param(
            "reversed-amperes.txt",
            replace(
                custom("node RP1 RP2 RP3 Irms1 Irms2 Irms3 Irms4 Vrms PF1 PF2", REVERSED),
                current_unit="A",
            ),
            [(50140,)],
            {},
            id="volts, amperes, a reversed clamp",
        ),
        pytest.param(
            "reset.txt",
            rules(),
            [(374000,), (356000,), (356000,), (346000,), (344000,)],
            {
                "partial": 1,
                "banner": 4,
                "not_a_number": 1,
                "board_error": 2,
                "field_count": 1,
                "garbage": 1,
            },
            id="a board that starts again",
        ),
    ],
)
def test_a_capture_reads(
    name: str, board_rules: BoardRules, powers_mw: list[tuple[int, ...]], drops: dict[str, int]
) -> None:
    board = BoardDecoder(board_rules)

    readings = board.receive(capture(name), at_ms=0)

    assert [reading.powers_mw for reading in readings] == powers_mw
    assert board.dropped == drops
    assert board.accepted == len(powers_mw)


DECIMALS = st.decimals(-25000, 25000, places=1) | st.builds(
    lambda digits, places: Decimal(digits).scaleb(-places),
    st.integers(-(10**9), 10**9),
    st.integers(0, 9),
)
SIZES = DECIMALS.map(abs) | st.sampled_from([Decimal("-0.0"), Decimal("0.9"), Decimal(115)])
FACTORS = st.sampled_from([Decimal(1), Decimal("1.0005"), Decimal("0.333"), Decimal("2.5e-7")])
CLAMPS = st.builds(
    Clamp,
    name=st.just("some"),
    role=st.sampled_from(["mains", "circuit", "unused"]),
    reversed=st.booleans(),
    scale=FACTORS,
    zero_below_w=st.sampled_from([Decimal(0), Decimal("25.0005")]),
)


def rounded(milli: Fraction) -> int:
    """Round half away from zero."""
    whole = int(abs(milli) + Fraction(1, 2))
    return whole if milli > 0 else -whole


def reference(board_rules: BoardRules, values: dict[str, Decimal]) -> tuple[object, ...] | None:
    """Return what a line must read as, in fractions and straight from the rules; None: range."""
    nominal = Fraction(board_rules.nominal_v)
    assumed = nominal * Fraction(board_rules.power_factor)
    per_unit = 1000 if board_rules.current_unit == "A" else 1
    mains = [k for k, clamp in enumerate(board_rules.clamps, 1) if clamp.role == "mains"]
    powers, currents, voltages, apparent, estimated = [], [], [], Fraction(0), False
    knows_apparent = bool(mains) and all(
        f"S{k}" in values or (f"Irms{k}" in values and ("Vrms" in values or f"Vrms{k}" in values))
        for k in mains
    )
    for k, clamp in enumerate(board_rules.clamps, 1):
        if clamp.role == "unused":
            continue
        volts_text = values.get(f"Vrms{k}", values.get("Vrms"))
        volts = None if volts_text is None else Fraction(volts_text)
        size = Fraction(values.get(f"S{k}", 0)) * Fraction(clamp.scale) * 1000
        amps = Fraction(values.get(f"Irms{k}", 0)) * per_unit * Fraction(clamp.scale) / 1000
        if f"EP{k}" in values:
            amps = Fraction(values[f"EP{k}"]) * Fraction(clamp.scale) / Fraction(board_rules.vest)
            power = assumed * amps * 1000
        elif f"RP{k}" in values:
            power = Fraction(values[f"RP{k}"]) * Fraction(clamp.scale) * 1000
            power = -power if clamp.reversed else power
        else:
            power = assumed * amps * 1000
        if volts is not None and volts < nominal / 2 and f"Irms{k}" in values and amps > 0:
            power, volts, estimated = assumed * amps * 1000, nominal, True
            size = nominal * amps * 1000
        elif f"S{k}" not in values and volts is not None:
            size = volts * amps * 1000
        if abs(power) > Fraction(board_rules.fuse_a) * nominal * Fraction(16, 10) * 1000:
            return None
        if abs(power) < Fraction(clamp.zero_below_w) * 1000:
            power = Fraction(0)
        if volts_text is not None:
            voltages.append(rounded(Fraction(volts_text) * 1000))
        if knows_apparent and clamp.role == "mains":
            apparent += size
        powers.append(rounded(power))
        currents.append(rounded(amps * 1000))
    if max([*currents, *voltages, rounded(apparent)]) >= 2**32:
        return None
    return tuple(powers), tuple(currents), [*voltages, 0][0], rounded(apparent), estimated


@given(
    fields=st.sampled_from(
        [
            *(LAYOUTS[name][0] for name in LAYOUTS),
            ("node", "RP3", "Irms3", "Vrms", "Irms1", "Vrms2", "RP2", "S2", "PF1"),
            ("RP1", "RP2", "RP3", "S1", "S2", "S3", "F"),
        ]
    ),
    clamps=st.lists(CLAMPS, min_size=1, max_size=3),
    current_unit=st.sampled_from(["mA", "A"]),
    vest=st.sampled_from([Decimal(240), Decimal(1), Decimal("7.7")]),
    nominal_v=st.sampled_from([Decimal(230), Decimal("120.1")]),
    power_factor=st.sampled_from([Decimal(1), Decimal("0.9")]),
    data=st.data(),
)
def test_every_value_is_the_exact_one_rounded_once(
    *,
    fields: tuple[str, ...],
    clamps: list[Clamp],
    current_unit: str,
    vest: Decimal,
    nominal_v: Decimal,
    power_factor: Decimal,
    data: st.DataObject,
) -> None:
    board_rules = BoardRules(
        layout="custom",
        fields=(fields,),
        clamps=tuple(clamps),
        polling_ms=5000,
        current_unit=current_unit,
        vest=vest,
        nominal_v=nominal_v,
        power_factor=power_factor,
    )
    values = {
        name: data.draw(DECIMALS if name.startswith("RP") else SIZES, label=name) for name in fields
    }
    expected = reference(board_rules, values)
    board = opened(board_rules)

    line = " ".join(format(value, "f") for value in values.values())
    readings = board.receive(line.encode() + b"\n", at_ms=0)

    if expected is None:
        assert readings == []
        assert board.dropped == {"range": 1}
    else:
        assert [reading[1:6] for reading in readings] == [expected]


# The layouts


@pytest.mark.parametrize(
    ("layout", "counts", "clamps"),
    [
        ("rpict3v1", [8], 3),
        ("rpict3v1-sketch2", [16], 3),
        ("rpict3t1", [4, 5, 6, 7, 8, 9, 10, 11, 12], 3),
        ("rpict7v1", [16], 7),
    ],
)
def test_a_layout_has(layout: str, counts: list[int], clamps: int) -> None:
    assert [len(fields) for fields in LAYOUTS[layout]] == counts
    assert {channels(fields) for fields in LAYOUTS[layout]} == {clamps}
    assert all(field_names_ok(fields) for fields in LAYOUTS[layout])


@pytest.mark.parametrize(
    "name", ["node", "RP1", "S1", "Irms1", "Vrms", "Vrms1", "EP1", "PF1", "T1", "F", "Q1", "RP12"]
)
def test_a_field_may_be_called(name: str) -> None:
    assert known_field(name)


@pytest.mark.parametrize("name", ["", "RP", "RP0", "RP01", "RP100", "rp1", "P1", "node1", "RP1 "])
def test_a_field_may_not_be_called(name: str) -> None:
    assert not known_field(name)
    assert not field_names_ok(("node", name))


def test_a_field_is_named_once() -> None:
    assert field_names_ok(("node", "RP1", "Vrms"))
    assert not field_names_ok(("node", "RP1", "RP1"))


def test_a_channel_needs_a_field_that_gives_power() -> None:
    assert measurable_channels(
        ("node", "RP1", "Irms3", "EP12", "S2", "T4", "F5", "Q6", "Vrms7")
    ) == {
        1,
        3,
        12,
    }
    assert channels(("node", "Vrms")) == 0


@pytest.mark.parametrize(
    ("board_rules", "estimated", "by_layout", "apparent"),
    [
        (rules("rpict3v1", MAINS, CIRCUIT), (False, False), False, True),
        (rules("rpict3v1", UNUSED, MAINS), (False,), False, True),
        (rules("rpict3v1", CIRCUIT), (False,), False, False),
        (rules("rpict3v1-sketch2"), (False,), False, True),
        (rules("rpict7v1", *[MAINS] * 7), (False,) * 7, False, True),
        (rules("rpict3t1", MAINS, CIRCUIT), (True, True), True, False),
        (custom("node RP1 Irms2", MAINS, CIRCUIT), (False, True), False, False),
        (custom("node RP1 EP2", CIRCUIT, MAINS), (False, True), True, False),
        (custom("RP1 S1 RP2", MAINS, MAINS), (False, False), False, False),
        (custom("RP1 S1 RP2 Irms2 Vrms2", MAINS, MAINS), (False, False), False, True),
        (custom("Irms1 Vrms"), (True,), True, True),
    ],
)
def test_a_layout_tells(
    board_rules: BoardRules, estimated: tuple[bool, ...], by_layout: bool, apparent: bool
) -> None:
    assert clamp_estimated(board_rules) == estimated
    assert estimated_by_layout(board_rules) is by_layout
    assert measures_apparent(board_rules) is apparent


@pytest.mark.parametrize(
    ("board_rules", "message"),
    [
        (rules("rpict3v1", *[MAINS] * 4), "no field measures clamp 4"),
        (custom("node RP2"), "no field measures clamp 1"),
        (replace(rules(), current_unit="kA"), "must be mA or A, not kA"),
        (replace(rules(), vest=Decimal(0)), "vest must be above 0"),
        (replace(rules(), nominal_v=Decimal(-230)), "nominal_v must be above 0"),
        (replace(rules(), power_factor=Decimal(0)), "power_factor must be above 0"),
        (rules("rpict3v1", replace(MAINS, scale=Decimal(-1))), "scale of clamp mains must be"),
    ],
)
def test_settings_are_refused_that_measure_nothing(board_rules: BoardRules, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BoardDecoder(board_rules)
