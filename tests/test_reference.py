"""Replay against the independent reference: registers, intervals, flags, counts, to the uJ."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from dataclasses import astuple
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from meterd.metering.energy import ROW_GAP
from tests.accounts import config_text, folder, replay_lines
from tests.reference import reckon
from tests.strategies import Capture, captures

if TYPE_CHECKING:
    from pathlib import Path

    from tests.accounts import Account


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


@settings(max_examples=40, deadline=None)
@given(captures())
def test_intervals_sum_to_the_whole(capture: Capture) -> None:
    with folder() as state:
        account = replay_lines(capture.lines, capture.config, state)
        sums: Counter[str] = Counter()
        before = None
        for interval in account.intervals:
            if before is not None:
                assert interval.start_s == before.end_s
                lasts = {code: last for code, _, last in before.registers}
                assert {code: first for code, first, _ in interval.registers} == lasts
            before = interval
            for code, first, last in interval.registers:
                assert first <= last
                sums[code] += last - first
        if sum(block.records for block in account.blocks) == len(account.rows):
            assert {code: sums[code] for code in account.registers} == account.registers


def floors_uj(account: Account) -> int:
    """Return by how much cutting may have lowered import - export.

    A reading inserted between two others is floored by less than 1 mW, over the time between the
    two at most: 1 mW ms is 1 uJ. Each end of a block has one such pair at most. The registers
    themselves are floored by less than 1 uJ each.
    """
    bridged_ms = sorted(
        late.at_ms - early.at_ms
        for early, late in pairwise(account.rows)
        if not late.flags & ROW_GAP
    )
    return sum(bridged_ms[-len(account.blocks) :]) + 2


@settings(max_examples=25, deadline=None)
@given(captures(clock_faults=False))
def test_cutting_elsewhere_moves_energy_by_the_floors_alone(capture: Capture) -> None:
    nets, bounds = [], []
    for interval_s in (60, 900, 1800, 3600):
        with folder() as state:
            account = replay_lines(capture.lines, capture.with_interval(interval_s).config, state)
            nets.append(account.registers["1-0:1.8.0"] - account.registers["1-0:2.8.0"])
            bounds.append(floors_uj(account) if account.blocks else 0)
    assert max(nets) - min(nets) <= max(bounds)


def household(data_dir: Path, days: int) -> list[str]:
    """Return a capture of the first days of a real household, a line a minute."""
    lines: list[str] = []
    with gzip.open(data_dir / "household-2007-01-08-28d.csv.gz", "rt") as file:
        for row in islice(csv.DictReader(file), days * 1440):
            if row["active_power_w"]:
                at = datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC)
                current_ma = Decimal(row["current_a"]) * 1000
                power, volts = row["active_power_w"], row["voltage_v"]
                lines.append(f"{at.timestamp():.0f}\t11 {power} 0 0 {current_ma} 0 0 {volts}")
    return lines


@pytest.mark.parametrize(
    ("days", "interval_s", "polling_ms"), [(8, 1800, 60_000), (3, 900, 5000), (3, 3600, 60_000)]
)
def test_a_real_household_equals_the_reference(
    data_dir: Path, tmp_path: Path, days: int, interval_s: int, polling_ms: int
) -> None:
    lines = household(data_dir, days)
    config = config_text(interval_s=interval_s, polling_ms=polling_ms)
    account = replay_lines(lines, config, tmp_path / "account")
    expected = reckon(lines, config)
    assert account.registers == expected.registers
    assert (account.accepted, account.gaps) == (expected.accepted, expected.gaps)
    assert [tuple(one) for one in account.intervals] == [astuple(b) for b in expected.blocks]
    assert account.verify().verdict == "good"
