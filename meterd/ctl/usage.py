"""`meterctl usage`: energy by days and hours of the network's zone, as bars."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from meterd.ctl.account import StoredAccount
from meterd.ctl.options import add_json, add_state, positive
from meterd.ctl.show import bar, kwh, local
from meterd.errors import LedgerDamagedError, UsageError
from meterd.metering.energy import EXPORT, IMPORT

if TYPE_CHECKING:
    import argparse
    from datetime import date, tzinfo

    from meterd.ledger.block import Block

DAYS_DEFAULT = 7
BAR_LETTERS = 50
HOUR_S = 3600


@dataclass(slots=True)
class Usage:
    """Energy in a stretch of local time.

    Attributes:
        start_s: Unix seconds.
        import_uj: Drawn from the grid.
        export_uj: Fed into it.
        measured_ms: How long power was really measured.
    """

    start_s: int
    end_s: int
    import_uj: int = 0
    export_uj: int = 0
    measured_ms: int = 0

    @property
    def whole(self) -> bool:
        """Whether all of it was measured, but for a thousandth."""
        return self.measured_ms >= (self.end_s - self.start_s) * 999

    def add(self, block: Block) -> None:
        """Count a block."""
        for entry in block.energy:
            if entry.obis == IMPORT:
                self.import_uj += entry.last_uj - entry.first_uj
            elif entry.obis == EXPORT:
                self.export_uj += entry.last_uj - entry.first_uj
        self.measured_ms += block.clock.measured_ms


@dataclass(slots=True)
class Day:
    """A local day.

    Attributes:
        hours: Its hours by their begin, 23 to 25 of them; only those with a block.
    """

    date: date
    total: Usage
    hours: dict[int, Usage] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl usage`."""
    parser.epilog = """\
Sealed intervals only, in days of the network's time zone. A day or hour with an
asterisk was measured in part.

examples:
  meterctl usage
  meterctl usage --days 31
  meterctl usage --day 2026-11-30 --json
"""
    add_state(parser)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--days", type=positive, default=DAYS_DEFAULT, metavar="N", help="so many days (default 7)"
    )
    chosen.add_argument("--day", metavar="DATE", help="this day and its hours")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show the usage; returns the exit code."""
    account = StoredAccount(options.state)
    zone = account.zone
    blocks = [sealed.block for sealed in account.blocks]
    if options.day:
        days = _days(blocks, zone, _date(options.day), 1)
    else:
        days = _days(blocks, zone, _last_day(blocks[-1], zone), options.days) if blocks else []
    hourly = account.genesis.interval_s <= HOUR_S
    if options.json:
        print(json.dumps(as_json(account.genesis.zone, days, hourly=hourly)))
    elif not days:
        print("nothing is sealed yet")
    else:
        print("\n".join(lines(account, days, hourly=hourly)))
    account.close()
    return 0


def _last_day(block: Block, zone: tzinfo) -> date:
    try:
        return datetime.fromtimestamp(block.end_s - 1, zone).date()
    except (ValueError, OverflowError, OSError) as error:
        raise LedgerDamagedError(
            f"block {block.height} ends at {block.end_s}, which is in no calendar",
            hint="see `meterctl verify`",
        ) from error


def _date(text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()  # noqa: DTZ007 - a day, in any zone
    except ValueError as error:
        raise UsageError(f"--day: expected a date as in 2026-11-30, got {text[:40]!r}") from error


def _midnight(day: date, zone: tzinfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def _days(blocks: list[Block], zone: tzinfo, last: date, count: int) -> list[Day]:
    """Return `count` days up to `last`, from the first that has a block on.

    A block counts whole where it ends: one that spans days has measured nothing, or nobody knows
    when.
    """
    found: list[Day] = []
    position = len(blocks) - 1
    for back in range(count):
        try:
            day = last - timedelta(days=back)
            start_s, end_s = _midnight(day, zone), _midnight(day + timedelta(days=1), zone)
        except OverflowError:
            break
        entry = Day(day, Usage(start_s, end_s))
        while position >= 0 and blocks[position].end_s > end_s:
            position -= 1
        while position >= 0 and blocks[position].end_s > start_s:
            block = blocks[position]
            entry.total.add(block)
            hour_s = start_s + (block.end_s - 1 - start_s) // HOUR_S * HOUR_S
            entry.hours.setdefault(hour_s, Usage(hour_s, hour_s + HOUR_S)).add(block)
            position -= 1
        found.append(entry)
        if position < 0:
            break
    return found[::-1]


def as_json(zone: str, days: list[Day], *, hourly: bool) -> dict[str, Any]:
    """Return the usage with exact energies."""

    def shown(usage: Usage) -> dict[str, int]:
        return {
            "start_s": usage.start_s,
            "end_s": usage.end_s,
            "import_uj": usage.import_uj,
            "export_uj": usage.export_uj,
            "measured_ms": usage.measured_ms,
        }

    return {
        "zone": zone,
        "days": [
            {"date": day.date.isoformat()}
            | shown(day.total)
            | {"hours": [shown(day.hours[hour]) for hour in sorted(day.hours)] if hourly else []}
            for day in days
        ],
    }


def lines(account: StoredAccount, days: list[Day], *, hourly: bool) -> list[str]:
    """Return the days as bars, then the hours of the last."""
    zone = account.zone
    exports = any(day.total.export_uj for day in days)
    found = [
        f"{account.meter}, {account.genesis.zone}: import{', export' if exports else ''} in kWh"
    ]
    named = [(f"{day.date:%a} {day.date.isoformat()}", day.total) for day in days]
    found += _bars(named, exports=exports)
    total = sum(day.total.import_uj for day in days)
    fed = f" {kwh(sum(day.total.export_uj for day in days)):>9}" if exports else ""
    found.append(f"{'total':14}  {kwh(total):>9}{fed}")
    hours = days[-1].hours
    if hourly and hours:
        found += ["", f"{days[-1].date.isoformat()} by hours"]
        named = []
        for hour in sorted(hours):
            began = datetime.fromtimestamp(hour, zone)
            named.append((f"{began:%H:%M}{_offset(began, days[-1], zone)}", hours[hour]))
        found += _bars(named, exports=exports)
    found.append("")
    if not all(usage.whole for _, usage in named) or not all(day.total.whole for day in days):
        found.append("* measured in part")
    found.append(f"sealed up to {local(account.blocks[-1].block.end_s, zone)}")
    return found


def _offset(began: datetime, day: Day, zone: tzinfo) -> str:
    """Return the offset from UTC on a day that has two."""
    first = datetime.fromtimestamp(day.total.start_s, zone).utcoffset()
    last = datetime.fromtimestamp(day.total.end_s - 1, zone).utcoffset()
    return f" {began:%z}" if first != last else ""


def _bars(named: list[tuple[str, Usage]], *, exports: bool) -> list[str]:
    most = max(usage.import_uj for _, usage in named)
    letters = BAR_LETTERS - (10 if exports else 0)
    return [
        f"{name:14}{' ' if usage.whole else '*'} {kwh(usage.import_uj):>9}"
        f"{f' {kwh(usage.export_uj):>9}' if exports else ''}"
        f" {bar(usage.import_uj, most, letters)}".rstrip()
        for name, usage in named
    ]
