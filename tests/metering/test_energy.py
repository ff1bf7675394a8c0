from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import floor
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.metering.energy import (
    APPARENT,
    CADENCE_WINDOW,
    ESTIMATED,
    EXPORT,
    FROZEN_LINES,
    IMPORT,
    MEASURED,
    ROW_ESTIMATED,
    ROW_GAP,
    Cadence,
    Sieve,
    between,
    integrate,
    mapping,
    obis_bytes,
    obis_code,
    quantities,
    registers,
    registers_uj,
)
from meterd.metering.layout import LAYOUTS
from meterd.metering.reading import BoardRules, Clamp, Reading

POLLING_MS = 5000


def rules(layout: str, *roles: str, fields: str = "") -> BoardRules:
    return BoardRules(
        layout=layout,
        fields=(tuple(fields.split()),) if fields else LAYOUTS[layout],
        clamps=tuple(Clamp(name=f"clamp-{k}", role=role) for k, role in enumerate(roles, 1)),
        polling_ms=POLLING_MS,
        vest=Decimal(1),
    )


def reading(at_ms: int, line: bytes, *, current_ma: int = 100, estimated: bool = False) -> Reading:
    return Reading(at_ms, (1000,), (current_ma,), 230_000, 0, estimated, line)


def admit_all(sieve: Sieve, *times_ms: int) -> list[int | None]:
    """Admit a different line at each of these times."""
    return [sieve.admit(reading(at_ms, b"%d" % number)) for number, at_ms in enumerate(times_ms)]


def seen(*elapsed_ms: int, polling_ms: int = POLLING_MS) -> Cadence:
    cadence = Cadence(polling_ms)
    for ms in elapsed_ms:
        cadence.add(ms)
    return cadence


# --- registers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "expected"),
    [
        pytest.param(
            rules("rpict3v1", "mains"),
            [("1-0:1.8.0", MEASURED), ("1-0:2.8.0", MEASURED), ("1-0:9.8.0", MEASURED)],
            id="one mains clamp with a voltage",
        ),
        pytest.param(
            rules("rpict3v1", "circuit", "mains", "circuit"),
            [
                ("1-0:1.8.0", MEASURED),
                ("1-0:2.8.0", MEASURED),
                ("1-0:9.8.0", MEASURED),
                ("1-1:1.8.0", MEASURED),
                ("1-2:1.8.0", MEASURED),
            ],
            id="circuits are counted among themselves",
        ),
        pytest.param(
            rules("rpict3t1", "mains", "unused", "circuit"),
            [("1-0:1.8.0", ESTIMATED), ("1-0:2.8.0", ESTIMATED), ("1-1:1.8.0", ESTIMATED)],
            id="no voltage: estimated, apparent power unknown",
        ),
        pytest.param(
            rules("custom", "mains", "mains", "circuit", fields="RP1 Irms2 Vrms RP3"),
            [("1-0:1.8.0", ESTIMATED), ("1-0:2.8.0", ESTIMATED), ("1-1:1.8.0", MEASURED)],
            id="one estimated clamp makes the sum estimated; apparent power lacks a current",
        ),
    ],
)
def test_the_registers_that_a_board_feeds(
    board: BoardRules, expected: list[tuple[str, int]]
) -> None:
    assert [(register.code, register.kind) for register in registers(board)] == expected


def test_a_code_has_six_bytes_and_no_billing_period() -> None:
    assert bytes((1, 0, 1, 8, 0, 255)) == IMPORT
    assert (obis_code(EXPORT), obis_code(APPARENT)) == ("1-0:2.8.0", "1-0:9.8.0")
    assert obis_code(obis_bytes(3, 1)) == "1-3:1.8.0"


@pytest.mark.parametrize(
    ("roles", "apparent", "expected"),
    [
        (("mains",), False, (-500,)),
        (("mains",), True, (-500, 77)),
        (("mains", "mains"), False, (-200,)),
        (("mains", "mains", "mains"), True, (-600, 77)),
        (("mains", "circuit", "circuit"), False, (-500, 300, 0)),
        (("circuit", "mains"), True, (300, 77, 0)),
    ],
)
def test_mains_are_summed_with_their_signs_and_a_circuit_never_counts_backwards(
    roles: tuple[str, ...], apparent: bool, expected: tuple[int, ...]
) -> None:
    powers_mw = (-500, 300, -400)[: len(roles)]
    assert quantities(powers_mw, 77, mapping(roles, apparent=apparent)) == expected


# --- integration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p0", "p1", "elapsed_ms", "sums"),
    [
        pytest.param((2000,), (3000,), 10, [50_000, 0], id="import"),
        pytest.param((-2000,), (-3001,), 10, [0, 50_010], id="export"),
        pytest.param((-2000,), (3000,), 10, [10_000, 0], id="the net energy decides: import"),
        pytest.param((2000,), (-3000,), 10, [0, 10_000], id="the net energy decides: export"),
        pytest.param((-5,), (5,), 10, [0, 0], id="nothing in all"),
        pytest.param((7,), (8,), 0, [0, 0], id="no time"),
        pytest.param((-1, 5, 6), (0, 6, 6), 3, [0, 3, 33, 36], id="others have their own"),
    ],
)
def test_a_trapezoid_in_half_microjoules(
    p0: tuple[int, ...], p1: tuple[int, ...], elapsed_ms: int, sums: list[int]
) -> None:
    found = [0] * len(sums)
    integrate(found, p0, p1, elapsed_ms)
    assert found == sums


def test_the_odd_half_is_carried() -> None:
    sums = [0, 0]
    for _ in range(2):
        integrate(sums, (1,), (2,), 1)
        integrate(sums, (-1,), (-2,), 1)
    assert (sums, registers_uj(sums)) == ([6, 6], (3, 3))
    integrate(sums, (0,), (1,), 1)
    assert registers_uj(sums) == (3, 3)


MILLI = st.integers(-(2**31), 2**31 - 1)
POINTS = st.lists(
    st.tuples(MILLI, st.integers(0, 2**32), st.integers(0, 2**31), st.integers(0, 2**32)),
    min_size=2,
    max_size=30,
)


@given(POINTS)
def test_no_sequence_lowers_a_register(points: list[tuple[int, int, int, int]]) -> None:
    sums = [0, 0, 0, 0]
    before = registers_uj(sums)
    for (*early, _), (*late, elapsed_ms) in pairwise(points):
        integrate(sums, early, late, elapsed_ms)
        now = registers_uj(sums)
        assert all(new >= old for old, new in zip(before, now, strict=True))
        before = now


@given(POINTS)
def test_a_register_is_the_floor_of_the_exact_sum(points: list[tuple[int, int, int, int]]) -> None:
    sums = [0, 0, 0, 0]
    exact_uj = Fraction(0)
    for (*early, _), (*late, elapsed_ms) in pairwise(points):
        integrate(sums, early, late, elapsed_ms)
        exact_uj += Fraction(early[1] + late[1], 2) * elapsed_ms
    assert registers_uj(sums)[2] == floor(exact_uj)


@pytest.mark.parametrize(
    ("early", "late", "part_ms", "whole_ms", "expected"),
    [
        (0, 10, 1, 3, 3),
        (0, 10, 2, 3, 6),
        (10, 0, 1, 3, 6),  # 10 - 10/3 is 6.67: the floor, towards less
        (0, -10, 1, 3, -4),
        (-10, 0, 1, 3, -7),
        (5, 9, 0, 7, 5),
        (5, 9, 7, 7, 9),
    ],
)
def test_the_reading_at_a_boundary_is_floored(
    early: int, late: int, part_ms: int, whole_ms: int, expected: int
) -> None:
    assert between((early, 0), (late, 0), part_ms, whole_ms) == (expected, 0)


# --- cadence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elapsed_ms", "cadence_ms"),
    [
        pytest.param((), 5000, id="none: the setting"),
        pytest.param((3204,), 5000, id="one: the setting"),
        pytest.param((3204, 3204), 5000, id="two: the setting"),
        pytest.param((3204, 3205, 3206), 3205, id="three: their median"),
        pytest.param((3204, 3207, 3205, 9000), 3206, id="four: the mean of the middle two"),
        pytest.param((1, 2, 2, 3), 2, id="an even count of equal middles"),
        pytest.param((1, 2, 3, 4), 2.5, id="a half"),
        pytest.param((5000, 0, 0, 0, 0, 5000, 5002), 5000, id="one stamp is no beat"),
        pytest.param((9,) * 8 + (1,) * 7, 9, id="fifteen"),
        pytest.param((9,) * 8 + (1,) * 8, 1, id="the sixteenth pushes out the first"),
        pytest.param((4,) * 20, 4, id="pushing out an equal one"),
    ],
)
def test_the_cadence_is_the_median_of_the_last_fifteen(
    elapsed_ms: tuple[int, ...], cadence_ms: float
) -> None:
    assert seen(*elapsed_ms).twice_ms == 2 * cadence_ms


@given(st.lists(st.integers(1, 50), max_size=60))
def test_the_cadence_is_what_statistics_calls_the_median(elapsed_ms: list[int]) -> None:
    expected = median(elapsed_ms[-CADENCE_WINDOW:]) if len(elapsed_ms) >= 3 else POLLING_MS
    assert seen(*elapsed_ms).twice_ms == 2 * expected


def test_a_silence_longer_than_three_cadences_is_a_hole() -> None:
    cadence = seen(100, 101, 100, 101)  # 100.5: three times that is 301.5
    assert (cadence.is_gap(301), cadence.is_gap(302)) == (False, True)
    assert (Cadence(5000).is_gap(15_000), Cadence(5000).is_gap(15_001)) == (False, True)


def test_a_repeat_is_within_a_quarter_of_the_cadence() -> None:
    assert (Cadence(5000).is_repeat(1250), Cadence(5000).is_repeat(1251)) == (True, False)
    halved = seen(10, 11, 10, 11)  # 10.5: a quarter is 2.6
    assert (halved.is_repeat(2), halved.is_repeat(3)) == (True, False)


@pytest.mark.parametrize(
    ("beat_ms", "off"), [(3749, True), (3750, False), (6250, False), (6251, True)]
)
def test_a_cadence_a_quarter_off_the_setting_is_an_alarm(beat_ms: int, off: bool) -> None:
    assert seen(*[beat_ms] * 3).is_off() is off


def test_no_alarm_before_the_cadence_is_measured() -> None:
    assert not seen(1, 1).known
    assert not seen(1, 1).is_off()


# --- sieve -------------------------------------------------------------------------------------


def test_the_first_line_of_a_run_bridges_nothing() -> None:
    assert admit_all(Sieve(POLLING_MS), 40, 5040) == [ROW_GAP, 0]


def test_a_hole_is_told_by_the_cadence_before_it() -> None:
    times_ms = [0, 5000, 10_000, 15_000, 30_000, 45_001]
    assert admit_all(Sieve(POLLING_MS), *times_ms) == [ROW_GAP, 0, 0, 0, 0, ROW_GAP]


def test_a_board_slower_than_its_setting_is_learnt_within_three_lines() -> None:
    times_ms = [0, 60_000, 120_000, 180_000, 240_000, 420_001]
    assert admit_all(Sieve(POLLING_MS), *times_ms) == [ROW_GAP] * 4 + [0, ROW_GAP]


@pytest.mark.parametrize(
    ("after_ms", "admitted"), [(0, False), (1250, False), (1251, True), (5000, True)]
)
def test_an_identical_line_within_a_quarter_of_the_cadence_is_a_duplicate(
    after_ms: int, admitted: bool
) -> None:
    sieve = Sieve(POLLING_MS)
    sieve.admit(reading(0, b"same"))
    assert (sieve.admit(reading(after_ms, b"same")) is not None) is admitted
    assert sieve.duplicates == (0 if admitted else 1)


def test_another_line_at_the_same_time_is_no_duplicate() -> None:
    sieve = Sieve(POLLING_MS)
    assert admit_all(sieve, 0, 0, 0) == [ROW_GAP, 0, 0]
    assert sieve.duplicates == 0


def test_a_duplicate_leaves_no_trace_in_the_cadence() -> None:
    sieve = Sieve(POLLING_MS)
    for at_ms in (0, 4000, 8000, 12_000):
        sieve.admit(reading(at_ms, b"%d" % at_ms))
        sieve.admit(reading(at_ms + 900, b"%d" % at_ms))
    assert (sieve.duplicates, sieve.cadence.twice_ms) == (4, 8000)


def test_the_adaptor_s_absence_is_in_the_row() -> None:
    sieve = Sieve(POLLING_MS)
    assert sieve.admit(reading(0, b"a", estimated=True)) == ROW_GAP | ROW_ESTIMATED
    assert sieve.admit(reading(5000, b"b", estimated=True)) == ROW_ESTIMATED
    assert sieve.admit(reading(10_000, b"c")) == 0


def frozen_after(*currents_ma: int) -> bool:
    sieve = Sieve(POLLING_MS)
    for number, current_ma in enumerate(currents_ma):
        assert sieve.admit(reading(number * POLLING_MS, b"same", current_ma=current_ma)) is not None
    return sieve.frozen


def test_sixty_identical_lines_with_current_are_a_frozen_board_and_still_admitted() -> None:
    assert not frozen_after(*[100] * (FROZEN_LINES - 1))
    assert frozen_after(*[100] * FROZEN_LINES)
    assert frozen_after(*[100] * (FROZEN_LINES + 1))


def test_nothing_that_flows_cannot_freeze() -> None:
    assert not frozen_after(*[0] * (FROZEN_LINES + 1))


def test_a_board_that_moves_again_is_not_frozen() -> None:
    sieve = Sieve(POLLING_MS)
    for number in range(FROZEN_LINES):
        sieve.admit(reading(number * POLLING_MS, b"same"))
    assert sieve.frozen
    sieve.admit(reading(FROZEN_LINES * POLLING_MS, b"other"))
    assert not sieve.frozen
