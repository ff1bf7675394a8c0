"""`meterctl doctor`: what is well with this device and what is not, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from meterd.ctl.advice import doable
from meterd.ctl.doctor_checks import counts, examine, is_well
from meterd.ctl.doctor_findings import FAIL, OK, UNKNOWN, VERDICTS, WARN
from meterd.ctl.in_session import inside
from meterd.ctl.node import LINE_SYSTEM, add_node, line_of
from meterd.ctl.options import add_json, add_socket, instant, socket_of
from meterd.ctl.show import COLUMNS, count, zone_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from meterd.ctl.doctor_findings import Finding

CONFIG_DEFAULT = Path("/etc/meterd/meterd.toml")
_CHECK_LETTERS = 22  # what names take, and a blank; a longer one begins its text further right
_MARKS = {OK: "ok", WARN: "warn", FAIL: "FAIL", UNKNOWN: "?"}
_MARK_LETTERS = 5
_WORDS = {FAIL: "failed", WARN: "to look at", UNKNOWN: "not known", OK: "well"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl doctor`."""
    parser.epilog = """\
Looks at the daemon, units, board, port, supply, clock, card, account, keys,
software, lockdown, brokers, certificates, pins, and changes nothing. Where no
daemon meters, it listens to the board for some seconds. Without root it shows
what it can see, and says what it cannot.

exit status: 0 nothing has failed (there may be things to look at, or not
known), 1 something has

examples:
  meterctl doctor --quick --json
  sudo meterctl doctor
  meterctl doctor --requirements
"""
    add_node(parser)
    add_socket(parser)
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIG_DEFAULT,
        metavar="FILE",
        help=f"settings (default: {CONFIG_DEFAULT})",
    )
    parser.add_argument(
        "--since", metavar="TIME", help="tell events since then, not the last visit"
    )
    parser.add_argument(
        "--quick", action="store_true", help="without the lockdown, and without listening"
    )
    parser.add_argument(
        "--requirements",
        action="store_true",
        help="show instead which requirements hold, and which tests show it",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Examine the device; returns the exit code."""
    if options.requirements:
        from meterd.ctl.requirements import show

        return show(as_json=options.json)
    session = inside()
    findings = [
        each._replace(todo=doable(each.todo, session=session)) for each in examine_device(options)
    ]
    if options.json:
        print(json.dumps(as_json(findings)))
    else:
        print("\n".join(lines(findings)))
    return 0 if is_well(findings) else 1


def examine_device(options: argparse.Namespace) -> list[Finding]:
    """Return what is found on this device; `options` are those of `meterctl doctor`."""
    from meterd.ctl.doctor_machine import Machine
    from meterd.ctl.doctor_meter import Where, collect

    where = Where(
        state=options.state,
        config=options.config,
        control=socket_of(options),
        line=_line(options),
        machine=Machine(),
        quick=options.quick,
        since_s=instant(options.since, zone_of("UTC")) if options.since else None,
    )
    return examine(collect(where))


def _line(options: argparse.Namespace) -> Path:
    try:
        return line_of(options)
    except PermissionError:  # the account's folder is closed to this user; the units' line is not
        return LINE_SYSTEM


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """Return findings for programs."""
    return {
        "well": is_well(findings),
        "counts": counts(findings),
        "findings": [finding._asdict() for finding in findings],
    }


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield findings for people: the answer, then each, in 80 columns."""
    yield headline(findings)
    for finding in findings:
        name = f"{finding.check} "
        begin = f"{_MARKS[finding.verdict]:{_MARK_LETTERS}}{name:{_CHECK_LETTERS}}"
        yield from _folded(begin, finding.found)
        if finding.todo:
            yield from _folded(" " * (_MARK_LETTERS + _CHECK_LETTERS), f"do: {finding.todo}")


def headline(findings: Sequence[Finding]) -> str:
    """Return the answer in one line.

    >>> from meterd.ctl.doctor_findings import Finding
    >>> headline([Finding("port", "fail", "there is none"), Finding("clock", "ok", "synchronised")])
    'not well: 1 check failed, 1 well'
    >>> headline([Finding("clock", "ok", "synchronised")])
    'well: 1 check well'
    """
    numbers = counts(findings)
    told = [f"{numbers[verdict]} {_WORDS[verdict]}" for verdict in VERDICTS if numbers[verdict]]
    if told:
        first, _, word = told[0].partition(" ")
        told[0] = f"{count(int(first), 'check')} {word}"
    return f"{'well' if is_well(findings) else 'not well'}: {', '.join(told) or 'nothing to see'}"


def _folded(begin: str, text: str) -> Iterator[str]:
    """Yield a text behind what it begins with; a unit's name in a command is never broken."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    below = " " * (_MARK_LETTERS + _CHECK_LETTERS)
    told = wrap(
        printable,
        COLUMNS,
        initial_indent=begin,
        subsequent_indent=below,
        break_on_hyphens=False,
    )
    yield from told or [begin.rstrip()]
