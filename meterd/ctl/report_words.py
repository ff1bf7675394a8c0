"""Judges a report's file, and shows it: what the meter sealed, apart from what others said."""

from __future__ import annotations

import json
from collections import Counter
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from meterd.ctl.alarm_words import ordered
from meterd.ctl.show import COLUMNS, count, kwh, local, register_name, register_unit, utc, zone_of
from meterd.errors import BlockRejectedError, EncodingError, MeterdError, UsageError
from meterd.ledger.account import decode_genesis
from meterd.ledger.encoding import take_apart
from meterd.ledger.report import (
    FILE_BYTES_MAX,
    decode_file,
    decode_report,
    decode_side,
    open_report,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from meterd.ledger.report import Claim, Report
    from meterd.ledger.verdict import Known

EXIT_CODES = {"good": 0, "bad": 1, "unreadable": 2}
_CLOCKS = {"S": "synchronised", "I": "informative", "R": "not set"}
_INDENT = 12


class UnreadableReportError(MeterdError):
    """What is at the path is no report."""

    exit_code = EXIT_CODES["unreadable"]


def judged(path: Path, known: Known, *, as_json: bool) -> int:
    """Judge the report at `path`, show it, and return the exit code.

    Raises:
        UsageError: Neither key nor genesis was given.
        UnreadableReportError: It is no report.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        message, side = decode_file(data)
        claimed = decode_report(take_apart(message).payload)
    except EncodingError as error:
        told: dict[str, Any] = {"verdict": "unreadable", "kind": "report", "reason": str(error)}
        if as_json:
            print(json.dumps(told), flush=True)
        raise UnreadableReportError(
            f"{path} cannot be judged: {error}", hint="ask for it anew: `meterctl report -o FILE`"
        ) from error
    if not known.key and not known.genesis:
        raise UsageError(
            f"{path} is a report, and takes --key KEY or --genesis FILE to be judged by",
            hint="the meter's public key or the network's genesis, from elsewhere than the device",
        )
    try:
        report = open_report(message, _sealer(claimed, known))
        claims = decode_side(side, report)
    except (BlockRejectedError, EncodingError) as error:
        told = {"verdict": "bad", "kind": "report", "reason": str(error)}
        print(json.dumps(told) if as_json else f"bad: {path} proves nothing:\n  {error}")
        return EXIT_CODES["bad"]
    if as_json:
        print(json.dumps(told_of(report, claims)))
    else:
        zone = decode_genesis(known.genesis).zone if known.genesis else "UTC"
        print("\n".join(sentences(report, claims, zone)))
    return EXIT_CODES["good"]


def _sealer(claimed: Report, known: Known) -> bytes:
    """Return the key that a report has to be sealed with, of the meter that it names.

    Raises:
        BlockRejectedError: The genesis is another network's, or has no such meter.
    """
    if not known.genesis:
        return known.key
    genesis = decode_genesis(known.genesis)
    if claimed.genesis != genesis.hash:
        raise BlockRejectedError("it is of another network than the given genesis")
    if known.key:
        return known.key
    for meter in genesis.meters:
        if meter.name == claimed.meter:
            return meter.sealing_key
    raise BlockRejectedError(
        f"the genesis has no meter {claimed.meter}: one that an order has enrolled takes --key"
    )


def told_of(report: Report, claims: Sequence[Claim]) -> dict[str, Any]:
    """Return a report for programs."""
    height, block_hash, end_s = report.head
    accepted, gaps, dropped = report.readings
    number, digest, since_s, left_out = report.events
    return {
        "verdict": "good",
        "kind": "report",
        "reason": None,
        "meter": report.meter,
        "incarnation": report.incarnation,
        "genesis_hash": report.genesis.hex(),
        "made": {"boot_ms": report.at[0], "wall_ms": report.at[1], "clock": report.at[2]},
        "head": {"height": height, "hash": block_hash.hex(), "end_s": end_s[0] if end_s else None},
        "certified_height": report.certified,
        "order": {"height": report.order[0], "hash": report.order[1].hex()},
        "software": report.software_id.hex(),
        "parameters": report.parameters.hex(),
        "registers": {
            code: {"uj": uj, "kind": "estimated" if kind else "measured"}
            for code, kind, uj in report.registers
        },
        "readings": {"accepted": accepted, "dropped": dict(dropped)},
        "gaps": gaps,
        "alarms": [f"{kind}: {text}" for kind, text in report.alarms],
        "events": {
            "count": number,
            "digest": digest.hex(),
            "since_s": since_s,
            "left_out": left_out,
            "happened": [one._asdict() for one in report.happened],
        },
        "claimed_by_tool": [claim._asdict() for claim in claims],
    }


def sentences(report: Report, claims: Sequence[Claim], zone_name: str) -> Iterator[str]:
    """Yield a report for people, in 80 columns."""
    zone = zone_of(zone_name)
    height, block_hash, end_s = report.head
    yield f"good: {report.meter} ({report.incarnation}) says of itself, under its seal:"
    made = f"{local(report.at[1] // 1000, zone)} ({utc(report.at[1] // 1000)})"
    yield f"  made      {made}, {_CLOCKS[report.at[2]]}"
    yield f"  genesis   {report.genesis.hex()}"
    end = f", up to {local(end_s[0], zone)}" if end_s else ""
    yield f"  sealed    {count(height, 'block')}{end}"
    yield f"  head      {height}:\n            {block_hash.hex()}"
    yield f"  certified up to block {report.certified}, by order {report.order[0]}"
    for code, kind, uj in report.registers:
        estimated = "  estimated" if kind else ""
        yield f"  {register_name(code):10}{kwh(uj):>14} {register_unit(code)}{estimated}"
    accepted, gaps, dropped = report.readings
    lost = sum(number for _, number in dropped)
    yield (f"  readings  {accepted} used, {lost} dropped, {count(gaps, 'gap')} since the start")
    yield f"  software  {report.software_id.hex()}"
    yield f"  settings  {report.parameters.hex()}"
    for alarm in ordered(f"{kind}: {text}" for kind, text in report.alarms):
        yield from _folded("  alarm", alarm)
    if not report.alarms:
        yield "  alarms    none"
    number, _, since_s, left_out = report.events
    kinds = Counter(one.kind for one in report.happened)
    told = ", ".join(f"{many} {kind}" for kind, many in sorted(kinds.items())) or "nothing"
    yield from _folded("  events", f"{number} in all; since {local(since_s, zone)}: {told}")
    if left_out:
        yield from _folded("", f"{left_out} older ones since then are left out")
    if not claims:
        return
    yield "said beside it by the tool on the device, and not known to the meter:"
    for claim in claims:
        yield from _folded(f"  {claim.verdict}", f"{claim.check}: {claim.found}")


def _folded(word: str, text: str) -> Iterator[str]:
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    first, *rest = wrap(plain, COLUMNS - _INDENT) or [""]
    yield f"{word:{_INDENT}}{first}".rstrip()
    for line in rest:
        yield f"{'':{_INDENT}}{line}"
