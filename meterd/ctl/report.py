"""`meterctl report`: one file for the office, of what the device says of itself.

The meter makes and seals it. What `doctor` finds stands beside: the seal shows that it was said
then, not that it is so.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.ctl.doctor import CONFIG_DEFAULT, examine_device
from meterd.ctl.in_session import inside
from meterd.ctl.node import add_node
from meterd.ctl.options import add_json, add_socket, instant, socket_of
from meterd.ctl.output import put_out, refuse_terminal
from meterd.ctl.report_words import judged
from meterd.ctl.show import count, zone_of
from meterd.device.control_client import ControlClient
from meterd.errors import UsageError
from meterd.ledger.encoding import MESSAGE_BYTES_MAX
from meterd.ledger.report import Claim, encode_file, encode_side

if TYPE_CHECKING:
    import argparse

FINDINGS_MAX = 200  # doctor has some forty checks, and one for each alarm, unit and broker
LETTERS_MAX = 240  # of a text in a finding: all of them stay below a message's 64 KiB
DAYS_DEFAULT = 30
DAY_S = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl report`."""
    parser.epilog = """\
Name, genesis, head, certified height, registers, software, parameters, alarms,
and what has happened by kinds and times; no person is in it. The running meter
makes and seals it. What `doctor` finds stands beside, and is marked as said by
this tool. `meterctl verify FILE --key KEY` or `--genesis FILE` judges it.

exit status: 0 written, 69 no meter answers; --check: as `meterctl verify`

examples:
  meterctl report -o kitchen-12.report
  meterctl report --since 2026-11-01 > kitchen-12.report
  meterctl report --check kitchen-12.report --genesis genesis.cbor
"""
    add_node(parser)
    add_socket(parser)
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="where to (default: standard output)"
    )
    parser.add_argument(
        "--since", metavar="TIME", help=f"events from then on (default: {DAYS_DEFAULT} days)"
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIG_DEFAULT,
        metavar="FILE",
        help=f"settings, for doctor (default: {CONFIG_DEFAULT})",
    )
    parser.add_argument("--no-doctor", action="store_true", help="what the meter says alone")
    parser.add_argument("--check", type=Path, metavar="FILE", help="judge one and show it")
    parser.add_argument("--key", metavar="KEY", help="with --check: the meter's public key")
    parser.add_argument("--genesis", type=Path, metavar="FILE", help="with --check: the network's")
    add_json(parser, "print JSON; with --check")


def run(options: argparse.Namespace) -> int:
    """Write a report, or judge one; returns the exit code."""
    if options.check is not None:
        from meterd.ctl.verify import known_of

        options.head = None
        return judged(options.check, known_of(options), as_json=options.json)
    if options.key or options.genesis:
        raise UsageError("--key and --genesis go with --check", hint="`meterctl report --help`")
    hint = "meterctl report -o FILE"
    if inside():
        hint = "leave the session, and from your own machine: ssh … report > FILE"
    refuse_terminal(options.out, "a report", hint)
    since_s = instant(options.since, zone_of("UTC")) if options.since else _days_ago_s()
    side = b"" if options.no_doctor else _side(options)
    digest = sha256(side).hexdigest() if side else ""
    reply = ControlClient(socket_of(options)).call("Report", since_s=since_s, side=digest)
    data = encode_file(bytes.fromhex(reply["report"]), side)
    put_out(data, options.out)
    if options.out is None:
        return 0
    print(f"wrote {options.out}: {count(len(data), 'byte')}")
    print(f"  judge it with `meterctl verify {options.out} --key KEY`")
    return 0


def _days_ago_s() -> int:
    import time

    return int(time.time()) - DAYS_DEFAULT * DAY_S


def _side(options: argparse.Namespace) -> bytes:
    """Return doctor's findings as they stand beside a report."""
    options.quick, since, options.since = True, options.since, None
    found = examine_device(options)[:FINDINGS_MAX]
    options.since = since
    side = encode_side([Claim(*(text[:LETTERS_MAX] for text in finding)) for finding in found])
    while len(side) >= MESSAGE_BYTES_MAX:
        found = found[: len(found) // 2]
        side = encode_side([Claim(*(text[:LETTERS_MAX] for text in finding)) for finding in found])
    return side
