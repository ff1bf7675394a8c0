"""`meterctl events`: what has happened, in order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from meterd.ctl.account import StoredAccount
from meterd.ctl.options import add_span, add_state, span_of
from meterd.ctl.show import Column, local_ms, note, print_table
from meterd.event_kinds import KINDS, class_of

if TYPE_CHECKING:
    import argparse
    from datetime import tzinfo

    from meterd.ledger.event import Event

DETAIL_LETTERS_MAX = 24  # of one value in the table; --json has it whole
DETAILS_LETTERS = 62  # that a terminal has to have room for beside the kinds, or they are folded
_INSTANTS = {"at_s": 1000, "wall_ms": 1, "last_ms": 1}  # details that are a time, in ms each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl events`."""
    parser.epilog = """\
Times are as the clock stood then, right or wrong; numbers tell the order. A
time among the details is local too; --json has it as it is in the account.

examples:
  meterctl events --last 10
  meterctl events --kind alarm --kind alarm_over
  meterctl events --security --from 2026-11-01
  meterctl events --from 2026-11-01 --json
"""
    add_state(parser)
    parser.add_argument(
        "--kind", action="append", metavar="KIND", help="of this kind only; may be repeated"
    )
    parser.add_argument(
        "--security",
        action="store_true",
        help="what bears on security only: logins, settings, keys, case, clock, card, orders",
    )
    add_span(parser)


def run(options: argparse.Namespace) -> int:
    """List the events; returns the exit code."""
    account = StoredAccount(options.state)
    span = span_of(options, account.zone)
    chosen = span.cut(
        event
        for event in account.events
        if span.holds(event.wall_ms)
        and (not options.kind or event.kind in options.kind)
        and (not options.security or class_of(event.kind, dict(event.details)))
    )
    if options.json:
        for event in chosen:
            print(json.dumps(as_json(event)))
    else:
        columns = (
            Column("number", 6, right=True),
            Column("time", 25),
            Column("event", 10),
            Column("details", DETAILS_LETTERS),
        )
        rows = (
            (
                str(event.number),
                local_ms(event.wall_ms, account.zone, "seconds"),
                event.kind,
                " ".join(detail(name, value, account.zone) for name, value in event.details),
            )
            for event in chosen
        )
        print_table(columns, rows)
        strange = [kind for kind in options.kind or () if kind not in KINDS]
        if strange:
            known = ", ".join(kind for kind in KINDS if strange[0][:4] in kind)
            note(f"no event is called {strange[0][:40]!a}" + (f"; there is {known}" * bool(known)))
    account.close()
    return 0


def detail(name: str, value: str | int | bytes, zone: tzinfo) -> str:
    """Return a detail of an event for people; a time is local, and loses its unit.

    >>> from datetime import UTC
    >>> detail("at_s", 1_170_633_600, UTC), detail("boot_ms", 40, UTC)
    ('at=2007-02-05T00:00:00+00:00', 'boot_ms=40')
    """
    if name in _INSTANTS and isinstance(value, int):
        shown = local_ms(value * _INSTANTS[name], zone, "seconds")
        return f"{name.rpartition('_')[0]}={shown}"
    return f"{name}={_shown(value)}"


def _shown(value: str | int | bytes) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    text = text if text.isprintable() else ascii(text)
    cut = DETAIL_LETTERS_MAX - 1
    return text if len(text) <= DETAIL_LETTERS_MAX else f"{text[:cut]}…"


def as_json(event: Event) -> dict[str, Any]:
    """Return all that an event says; byte strings in hex."""
    return {
        "number": event.number,
        "wall_ms": event.wall_ms,
        "boot_ms": event.boot_ms,
        "kind": event.kind,
        "details": {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in event.details
        },
    }
