from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd import event_kinds
from meterd.lamp import (
    ALARMS,
    COUNT_MAX,
    GAP_MS,
    LONG_MS,
    LONG_PAUSE_MS,
    PATTERNS,
    PAUSE_MS,
    SHORT_MS,
    STEADY_MS,
    Step,
    compiled,
    lit,
    worst,
)

SHORT, LONG = Step(SHORT_MS, GAP_MS), Step(LONG_MS, GAP_MS)
patterns = st.lists(
    st.sampled_from(["short", "2 short", "long", "6 long", "pause", "long pause"]), min_size=1
).map(", ".join)


@pytest.mark.parametrize(
    ("pattern", "steps"),
    [
        ("short", (SHORT,)),
        ("1 long", (LONG,)),
        ("3 short", (SHORT, SHORT, SHORT)),
        ("2 long, short", (LONG, LONG, SHORT)),
        ("short, pause", (SHORT._replace(off_ms=GAP_MS + PAUSE_MS),)),
        ("short, long pause, long", (SHORT._replace(off_ms=GAP_MS + LONG_PAUSE_MS), LONG)),
        ("pause, short", (Step(0, PAUSE_MS), SHORT)),
        ("on", (Step(STEADY_MS, 0),)),
        ("off", (Step(0, STEADY_MS),)),
    ],
)
def test_a_pattern_means(pattern: str, steps: tuple[Step, ...]) -> None:
    assert compiled(pattern) == steps


@pytest.mark.parametrize(
    "pattern",
    ["", "short,", "0 short", f"{COUNT_MAX + 1} short", "2 pause", "blink", "on, short", "SHORT"],
)
def test_no_pattern_is(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 6 short or long"):
        compiled(pattern)


@given(pattern=patterns, elapsed_ms=st.integers(0, 10**12))
def test_a_pattern_is_repeated_for_ever(pattern: str, elapsed_ms: int) -> None:
    steps = compiled(pattern)
    period_ms = sum(map(sum, steps))
    assert lit(steps, elapsed_ms) == lit(steps, elapsed_ms + period_ms)


@given(pattern=patterns)
def test_what_is_lit_is_what_the_steps_say(pattern: str) -> None:
    steps = compiled(pattern)
    at_ms, seen = 0, []
    while at_ms < sum(map(sum, steps)):
        on, left_ms = lit(steps, at_ms)
        assert left_ms > 0
        assert lit(steps, at_ms + left_ms - 1) == (on, 1)
        seen.append((on, left_ms))
        at_ms += left_ms
    told = [(on, ms) for step in steps for on, ms in ((True, step[0]), (False, step[1])) if ms]
    assert seen == told


def test_every_state_has_a_pattern_of_its_own_that_ends_within_six_seconds() -> None:
    steps = [compiled(pattern) for pattern in PATTERNS.values()]
    assert len(set(steps)) == len(PATTERNS)
    assert all(sum(map(sum, one)) <= 6000 for one in steps)


def test_every_state_that_is_counted_ends_with_a_pause() -> None:
    counted = {state for state, pattern in PATTERNS.items() if pattern != "short"}
    assert all(PATTERNS[state].endswith("pause") for state in counted)


@pytest.mark.parametrize(
    ("troubles", "state"),
    [
        (set(), "well"),
        ({"starting"}, "starting"),
        ({"neighbours", "starting"}, "neighbours"),
        ({"clock", "neighbours"}, "clock"),
        ({"board", "clock"}, "board"),
        ({"case", "board"}, "case"),
        ({"storage", "case"}, "storage"),
        ({"stopped", "storage"}, "stopped"),
        ({"something else"}, "well"),
    ],
)
def test_the_worst_is_shown(troubles: set[str], state: str) -> None:
    assert worst(troubles) == state


def test_no_alarm_stands_while_the_light_says_well() -> None:
    """`status` and `doctor` call each of them not well. One ends the daemon: it is dark."""
    assert set(event_kinds.ALARMS) - set(ALARMS) == {"software_changed"}


def test_every_alarm_that_is_shown_has_a_pattern() -> None:
    assert set(ALARMS.values()) <= PATTERNS.keys()
