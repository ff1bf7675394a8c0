"""Replay against the independent reference: registers, intervals, flags, counts, to the uJ."""

from __future__ import annotations

import csv
import gzip
from dataclasses import astuple
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from tests.accounts import config_text, folder, replay_lines
from tests.reference import reckon
from tests.strategies import Capture, captures

if TYPE_CHECKING:
    from pathlib import Path


def agree(capture: Capture) -> None:
    with folder() as state:
        account = replay_lines(capture.lines, capture.config, state)
        expected = reckon(capture.lines, capture.config)
        assert account.registers == expected.registers
        assert (account.accepted, account.gaps) == (expected.accepted, expected.gaps)
        assert account.dropped == expected.dropped
        assert [tuple(one) for one in account.intervals] == [astuple(b) for b in expected.blocks]
        verdict = account.verify()
        assert verdict.verdict == "good", verdict.first_bad


@settings(max_examples=60, deadline=None)
@given(captures(clock_faults=False))
def test_registers_and_intervals_equal_the_reference(capture: Capture) -> None:
    agree(capture)


@settings(max_examples=60, deadline=None)
@given(captures())
def test_whatever_the_clock_does_too(capture: Capture) -> None:
    agree(capture)


@settings(max_examples=25, deadline=None)
@given(captures(clock_faults=False, restarts=False))
def test_cutting_elsewhere_moves_energy_by_the_floors_alone(capture: Capture) -> None:
    net = []
    intervals = 0
    for interval_s in (60, 1800):
        with folder() as state:
            account = replay_lines(capture.lines, capture.with_interval(interval_s).config, state)
            intervals += len(account.intervals)
        registers = account.registers
        net.append(registers["1-0:1.8.0"] - registers["1-0:2.8.0"])
        intervals += len(account.intervals) if state.exists() else len(capture.lines) * 2000
    longest_ms = (
        3 * 600_000
    )  # a boundary's reading is floored by less than 1 mW, over one gap at most
    assert abs(net[0] - net[1]) <= longest_ms * max(1, intervals)


@pytest.mark.parametrize("days", [2])
def test_a_real_household_equals_the_reference(data_dir: Path, tmp_path: Path, days: int) -> None:
    lines: list[str] = []
    with gzip.open(data_dir / "household-2007-01-08-28d.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if len(lines) == days * 1440:
                break
            if row["active_power_w"]:
                at_s = int(datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC).timestamp())
                amps = float(row["current_a"]) * 1000
                power, volts = row["active_power_w"], row["voltage_v"]
                lines.append(f"{at_s}\t11 {power} 0 0 {amps:.1f} 0 0 {volts}")
    config = config_text(polling_ms=60_000)
    account = replay_lines(lines, config, tmp_path / "account")
    expected = reckon(lines, config)
    assert account.registers == expected.registers
    assert [tuple(one) for one in account.intervals] == [astuple(b) for b in expected.blocks]
    for early, late in pairwise(account.intervals):
        assert late.start_s == early.end_s
        firsts = [(code, first) for code, first, _ in late.registers]
        assert firsts == [(code, last) for code, _, last in early.registers]
    assert account.verify().verdict == "good"
