"""`meterctl registers`: energy since the meter was commissioned, from its account.

The registers are those of the last block and of what is not sealed yet, integrated as the next
start of the daemon would; readings and holes are counted over the account's whole life.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, TypedDict

from meterd.ctl.account import StoredAccount, clamp_names
from meterd.ctl.options import add_json, add_state
from meterd.ctl.show import (
    Column,
    count,
    kwh,
    local,
    print_folded,
    print_table,
    register_name,
    register_unit,
)
from meterd.device.archive import read_part
from meterd.device.closing import close_runs
from meterd.device.recovery import recover
from meterd.device.rows import Rows
from meterd.metering.energy import obis_code

if TYPE_CHECKING:
    import argparse

    from meterd.device.closing import Terms
    from meterd.device.recovery import Recovered
    from meterd.metering.energy import Register
    from meterd.metering.interval import Cut

_DROPPED = "dropped."


class RegisterReply(TypedDict):
    """A register: microjoules, and `measured` or `estimated`."""

    uj: int
    kind: str


class ReadingsReply(TypedDict):
    """Lines of the board: stored, and dropped by kind."""

    accepted: int
    dropped: dict[str, int]


class Reply(TypedDict):
    """What `--json` prints; `meterd replay --json` prints the same."""

    registers: dict[str, RegisterReply]
    readings: ReadingsReply
    gaps: int
    height: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl registers`."""
    parser.epilog = """\
Read from the account: no daemon is needed. What is not sealed yet is in it.

examples:
  meterctl registers
  meterctl registers --state ./account --json
"""
    add_state(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show the registers; returns the exit code."""
    account = StoredAccount(options.state)
    reply = registers_of(account)
    if options.json:
        print(json.dumps(reply))
    else:
        show(reply, account)
    account.close()
    return 0


def registers_of(account: StoredAccount) -> Reply:
    """Return what the account has counted so far.

    Raises:
        LedgerDamagedError: What came since its last checkpoint does not verify.
    """
    recovered = recover(account.state, account.chain)
    rows = Rows(lambda number, begin, end: read_part(account.state, number, begin, end))
    changes = tuple(change[1:] for change in account.roster.intervals[1:])
    closed = close_runs(recovered, account.genesis.interval_s, rows, _nothing, changes)
    head, records = recovered.found.chain.head, recovered.found.parameters.values()
    kinds = {energy.obis: energy.kind for energy in head.energy}
    if closed.pending:
        kinds |= dict(closed.pending.registers)
    for record in sorted(records, key=lambda record: record.sequence)[-1:]:
        kinds |= dict(record.registers)
    sealed = {energy.obis: 2 * energy.last_uj for energy in head.energy}
    sums = sealed | closed.sums_now
    counted: Counter[str] = Counter()
    for event in account.events:
        if event.kind == "counted":
            for name, _ in event.details:
                counted[name] += event.number_of(name)
    stored = sum(account.segments.rows.values())
    torn = _torn_rows(account, recovered)
    return {
        "registers": {
            obis_code(obis): {
                "uj": sums.get(obis, 0) // 2,
                "kind": "estimated" if kind else "measured",
            }
            for obis, kind in sorted(kinds.items())
        },
        "readings": {
            "accepted": stored - torn,
            "dropped": {
                name.removeprefix(_DROPPED): number
                for name, number in sorted(counted.items())
                if name.startswith(_DROPPED)
            },
        },
        "gaps": counted["gaps"],
        "height": head.height,
    }


def _nothing(_cut: Cut, _terms: Terms, _owed: dict[Register, int]) -> None:
    """Seal nothing: the next start of the daemon will."""


def _torn_rows(account: StoredAccount, recovered: Recovered) -> int:
    """Return how many whole rows of the last segment lie behind the first that does not hold."""
    end = recovered.found.ends["samples"]
    segment = account.segments.segments.get(end.number)
    if segment is None or not any(tail.segment == end.number for tail in recovered.found.tails):
        return 0
    return segment.rows - (end.counted_bytes - segment.begin) // segment.header.row_bytes


def show(reply: Reply, account: StoredAccount) -> None:
    """Print the registers for people."""
    newest = max(account.parameters.values(), key=lambda record: record.sequence, default=None)
    roles = newest.roles if newest else ()
    names = clamp_names(newest) if newest else ()
    circuits = [name for name, role in zip(names, roles, strict=False) if role == "circuit"]
    rows = []
    for code, register in reply["registers"].items():
        name = register_name(code)
        number = name.removeprefix("circuit ")
        if name != number and int(number) <= len(circuits):
            name = circuits[int(number) - 1]
        rows.append((code, name, kwh(register["uj"]), register_unit(code), register["kind"]))
    columns = (
        Column("register", 10),
        Column("what", 10),
        Column("energy", 14, right=True),
        Column("unit", 4),
        Column("kind"),
    )
    print_table(columns, rows)
    blocks = account.blocks
    until = f", sealed up to {local(blocks[-1].block.end_s, account.zone)}" if blocks else ""
    print()
    print_folded(f"{account.meter}: {count(reply['height'], 'block')}{until}")
    print_folded(readings_line(reply["readings"], reply["gaps"]))


def readings_line(readings: ReadingsReply, gaps: int) -> str:
    """Return in a sentence what became of the board's lines."""
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(readings["dropped"].items()))
    dropped = sum(readings["dropped"].values())
    why = f" ({kinds})" if kinds else ""
    return f"{count(readings['accepted'], 'reading')}, {dropped} dropped{why}, {count(gaps, 'gap')}"
