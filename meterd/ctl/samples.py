"""`meterctl samples`: stored readings, as they are on the card."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from meterd.ctl.account import StoredAccount
from meterd.ctl.options import add_span, add_state, span_of
from meterd.ctl.show import Column, local_ms, print_table, thousandths
from meterd.metering.energy import ROW_ESTIMATED, ROW_GAP

if TYPE_CHECKING:
    import argparse
    from datetime import tzinfo

    from meterd.ctl.account import Sample

_FLAGS = {ROW_GAP: "gap", ROW_ESTIMATED: "estimated"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl samples`."""
    parser.epilog = """\
Power is positive where it is drawn from the grid. A row without a time is of a
run whose clock was never set; a row without a block is linked and not sealed
yet. `gap`: no energy is counted since the row before.

examples:
  meterctl samples --last 5
  meterctl samples --from 2026-11-30T18:00 --to 2026-11-30T18:30 --json
"""
    add_state(parser)
    add_span(parser)


def run(options: argparse.Namespace) -> int:
    """List the samples; returns the exit code."""
    account = StoredAccount(options.state)
    found = account.samples(span_of(options, account.zone))
    if options.json:
        for sample in found:
            print(json.dumps(as_json(sample)))
    else:
        columns = (
            Column("time", 29),
            Column("block", 6, right=True),
            Column("V", 7, right=True),
            Column("clamps: W, A", 24),
            Column("flags"),
        )
        print_table(columns, (_cells(sample, account.zone) for sample in found))
    account.close()
    return 0


def _cells(sample: Sample, zone: tzinfo) -> tuple[str, ...]:
    row = sample.row
    pairs = zip(sample.clamps, row.powers_mw, row.currents_ma, strict=False)
    clamps = [
        f"{name} {thousandths(power, 1)} {thousandths(current, 2)}"
        for name, power, current in pairs
    ]
    return (
        "" if sample.wall_ms is None else local_ms(sample.wall_ms, zone),
        "" if sample.height is None else str(sample.height),
        thousandths(row.voltage_mv, 2) if row.voltage_mv else "",
        ", ".join(clamps),
        " ".join(_names(row.flags)),
    )


def _names(flags: int) -> list[str]:
    return [name for bit, name in _FLAGS.items() if flags & bit]


def as_json(sample: Sample) -> dict[str, Any]:
    """Return all that a row says."""
    row = sample.row
    clamps = zip(sample.clamps, row.powers_mw, row.currents_ma, strict=False)
    return {
        "segment": sample.segment,
        "row": sample.number,
        "run": sample.run,
        "height": sample.height,
        "wall_ms": sample.wall_ms,
        "boot_ms": row.at_ms,
        "voltage_mv": row.voltage_mv or None,
        "apparent_mva": row.apparent_mva or None,
        "clamps": [
            {"name": name, "power_mw": power_mw, "current_ma": current_ma}
            for name, power_mw, current_ma in clamps
        ],
        "flags": _names(row.flags),
    }
