"""How `meterctl` shows things: energy and time exactly, tables in 80 columns.

>>> kwh(1_234_567_999_999_999)
'342.935'
>>> local(1_170_633_600, zone_of("Asia/Kolkata"))
'2007-02-05T05:30:00+05:30'
>>> thousandths(-1_402_050), thousandths(7, 1)
('-1402.050', '0.0')
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from itertools import chain
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from meterd.cli import seen, told_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import tzinfo

UJ_PER_WH = 3_600_000_000
COLUMNS = 80
FOLDED_MIN = 12  # letters; narrower is unreadable
GAP = "  "  # between columns
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REGISTER_NAMES = {"1-0:1.8.0": "import", "1-0:2.8.0": "export", "1-0:9.8.0": "apparent"}


def kwh(uj: int) -> str:
    """Return an energy in kWh with three decimals; what is short of a full Wh is left out."""
    wh = uj // UJ_PER_WH
    return f"{wh // 1000}.{wh % 1000:03d}"


def thousandths(value: int, decimals: int = 3) -> str:
    """Return a thousandth of `value` exactly, cut to 1 to 3 decimals: mW as W, mV as V."""
    whole, rest = divmod(abs(value), 1000)
    digits = f"{rest:03d}"[:decimals]
    negative = value < 0 and (whole or digits.strip("0"))
    return f"{'-' if negative else ''}{whole}.{digits}"


def register_name(code: str) -> str:
    """Return what a register counts, in a word or two."""
    if code in _REGISTER_NAMES:
        return _REGISTER_NAMES[code]
    circuit = code.removeprefix("1-").removesuffix(":1.8.0")
    return f"circuit {circuit}" if circuit.isdecimal() else code


def register_unit(code: str) -> str:
    """Return the unit in which people read a register."""
    return "kVAh" if code == "1-0:9.8.0" else "kWh"


def zone_of(name: str) -> tzinfo:
    """Return a time zone by its name, or UTC with a word on stderr where it is not known here."""
    if name == "UTC":
        return UTC
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        note(f"the time zone {name[:40]!a} is not known here (package tzdata): times are in UTC")
        return UTC


def local(seconds: int, zone: tzinfo, timespec: str = "seconds") -> str:
    """Return Unix seconds as ISO 8601 in `zone`; what no calendar has stays a number."""
    return local_ms(seconds * 1000, zone, timespec)


def local_ms(wall_ms: int, zone: tzinfo, timespec: str = "milliseconds") -> str:
    """Return Unix milliseconds as ISO 8601 in `zone`."""
    try:
        instant = _EPOCH + timedelta(milliseconds=wall_ms)
        return instant.astimezone(zone).isoformat(timespec=timespec)
    except (OverflowError, ValueError):
        return f"{wall_ms} ms after 1970"


def utc(seconds: int) -> str:
    """Return Unix seconds as ISO 8601 in UTC."""
    return local(seconds, UTC).replace("+00:00", "Z")


def count(number: int, what: str) -> str:
    """Return a number with its noun: `1 block`, `2 blocks`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def note(text: str) -> None:
    """Say something on stderr that is no error."""
    if sys.stderr is not None:
        sys.stdout.flush()
        sys.stderr.write(told_line("meterctl: note: ", text))


def print_folded(text: str) -> None:
    """Print a sentence in lines of 80 columns; names are never broken."""
    lines = wrap(
        text, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    print("\n".join(lines))


class Column(NamedTuple):
    """A column of a table; `width` is what its cells usually need."""

    title: str
    width: int = 0
    right: bool = False


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: with rich on a terminal, else as aligned text, each row as it comes.

    The last column is folded where it does not fit; behind a cell that is wider than its column it
    begins on a line of its own, unless the rest of that line has room for it. What upsets a
    terminal is not printed: an account may be a stranger's.
    """
    rows = ([seen(cell) for cell in cells] for cells in rows)
    if sys.stdout.isatty() and _print_rich(columns, rows):
        return
    widths = [max(column.width, len(column.title)) for column in columns]
    indent = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
    for cells in chain(([column.title for column in columns],), rows):
        shown = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells[:-1], widths, columns, strict=False)
        )
        begin = GAP.join(shown) + GAP
        last = wrap(cells[-1], max(COLUMNS - indent, FOLDED_MIN)) or [""]
        if len(begin) > indent and len(begin) + len(cells[-1]) > COLUMNS:
            last.insert(0, "")
        elif len(begin) > indent:
            last = [cells[-1]]
        print((begin + last[0]).rstrip())
        for folded in last[1:]:
            print(" " * indent + folded)


def _print_rich(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            min_width=column.width,
            overflow="fold",
        )
    console = Console()
    if sum(max(column.width, len(column.title)) + len(GAP) for column in columns) > console.width:
        return False  # it would leave columns out
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    return True


def bar(value: int, most: int, letters: int) -> str:
    """Return a bar of at most `letters` for `value` of `most`, to an eighth where the font has it.

    >>> bar(3, 4, 8), bar(1, 1000, 8), bar(0, 4, 8)
    ('██████', '▏', '')
    """
    if value <= 0 or most <= 0:
        return ""
    eighths = max(1, 8 * letters * value // most)
    if not _draws():
        return "#" * max(1, eighths // 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].rstrip()


def _draws() -> bool:
    """Return whether stdout can say more than ASCII."""
    try:
        "█▏".encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
