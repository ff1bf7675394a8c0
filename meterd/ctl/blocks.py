"""`meterctl blocks`: the sealed intervals of an account."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from meterd.ctl.account import StoredAccount
from meterd.ctl.options import add_span, add_state, span_of
from meterd.ctl.show import Column, kwh, local, print_table
from meterd.metering.energy import EXPORT, IMPORT, obis_code
from meterd.metering.interval import FLAG_NAMES, LOST, STEPPED

if TYPE_CHECKING:
    import argparse

    from meterd.ledger.block import Block

_SHORT = {STEPPED: "stepped", LOST: "lost"}  # a line has 80 letters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl blocks`."""
    parser.epilog = """\
Energy is what was counted in the block, in kWh; clock: S synchronised,
I informative, R relative. Blocks are shown as stored: `meterctl verify` judges
them.

examples:
  meterctl blocks --last 10
  meterctl blocks --from 2026-11-01 --to 2026-12-01 --json
"""
    add_state(parser)
    add_span(parser)


def run(options: argparse.Namespace) -> int:
    """List the blocks; returns the exit code."""
    account = StoredAccount(options.state)
    span = span_of(options, account.zone)
    chosen = (
        sealed.block
        for sealed in account.blocks
        if sealed.block.end_s > span.begin_s and sealed.block.start_s < span.end_s
    )
    if options.json:
        for block in span.cut(chosen):
            print(json.dumps(as_json(block)))
    else:
        columns = (
            Column("height", 6, right=True),
            Column("start", 25),
            Column("s", 5, right=True),
            Column("import", 7, right=True),
            Column("export", 7, right=True),
            Column("clock", 1),
            Column("flags"),
        )
        rows = (
            (
                str(block.height),
                local(block.start_s, account.zone),
                str(block.end_s - block.start_s),
                kwh(_counted(block, IMPORT)),
                kwh(_counted(block, EXPORT)),
                block.clock.status,
                " ".join(_SHORT.get(bit, FLAG_NAMES[bit]) for bit in _bits(block)),
            )
            for block in span.cut(chosen)
        )
        print_table(columns, rows)
    account.close()
    return 0


def _bits(block: Block) -> list[int]:
    return [bit for bit in FLAG_NAMES if block.flags & bit]


def _counted(block: Block, obis: bytes) -> int:
    return sum(entry.last_uj - entry.first_uj for entry in block.energy if entry.obis == obis)


def as_json(block: Block) -> dict[str, Any]:
    """Return all that a block says; hashes in hex, energy in uJ."""
    return {
        "height": block.height,
        "hash": block.hash.hex(),
        "previous": block.previous.hex(),
        "meter": block.meter,
        "incarnation": block.incarnation,
        "order": {"height": block.order[0], "hash": block.order[1].hex()},
        "start_s": block.start_s,
        "end_s": block.end_s,
        "clock": {
            "status": block.clock.status,
            "error_ms": block.clock.error_ms,
            "boot_id": block.clock.boot_id.hex(),
            "boot_ms": block.clock.boot_ms,
        },
        "measured_ms": block.clock.measured_ms,
        "parameters": block.parameters.hex(),
        "records": block.records,
        "fingerprint": block.fingerprint.hex(),
        "events": block.events,
        "events_digest": block.events_digest.hex(),
        "registers": {
            obis_code(entry.obis): {
                "first_uj": entry.first_uj,
                "last_uj": entry.last_uj,
                "kind": "estimated" if entry.kind else "measured",
            }
            for entry in block.energy
        },
        "flags": [FLAG_NAMES[bit] for bit in _bits(block)],
    }
