"""`meterctl prune`: remove old samples, whole segments, after an event that says so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meterd.ctl.account import StoredAccount, certified_height_of
from meterd.ctl.options import add_json, add_socket, add_state, instant, socket_of
from meterd.ctl.owner import as_owner
from meterd.ctl.show import count, local
from meterd.device.control_client import ControlClient
from meterd.device.prune import plan_prune, prune_stopped
from meterd.device.secret import find_device_key
from meterd.errors import AbsentError, BusyError

if TYPE_CHECKING:
    import argparse

    from meterd.device.prune import PrunePlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl prune`."""
    parser.epilog = """\
Blocks and events stay, and the account stays good. A segment of samples goes
where each of its rows is in a sealed block that ends before then (a meter that
is alone counts sealed as certified). Samples exist on this card only: what is
pruned cannot be audited any more, nor got back.

examples:
  meterctl prune --before 2026-01-01 --dry-run
  meterctl prune --before 2026-01-01
"""
    add_state(parser)
    add_socket(parser)
    parser.add_argument(
        "--before",
        required=True,
        metavar="DATE",
        help="a day, 2026-01-01 (from its begin by local time), or an ISO 8601 time",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go, remove nothing")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prune, by the daemon if it runs; returns the exit code."""
    account = StoredAccount(options.state)
    before_s = instant(options.before, account.zone)
    if options.dry_run:
        segments, freed_bytes = _told(
            plan_prune(account.state, account.chain, before_s, certified_height_of(account))
        )
    else:
        segments, freed_bytes = _prune(options, account, before_s)
    if options.json:
        print(json.dumps({"segments": segments, "bytes": freed_bytes}))
        return 0
    verb = "would go" if options.dry_run else "pruned"
    before = local(before_s, account.zone)
    print(f"{count(segments, 'segment')} of samples before {before} {verb}: {freed_bytes} bytes")
    return 0


def _told(plan: PrunePlan) -> tuple[int, int]:
    return len(plan.pruned), plan.freed_bytes


def _prune(options: argparse.Namespace, account: StoredAccount, before_s: int) -> tuple[int, int]:
    try:
        reply = ControlClient(socket_of(options)).call("Prune", before_s=before_s)
    except AbsentError as absent:
        device = find_device_key()
        try:
            with as_owner(account.state):
                plan = prune_stopped(
                    account.state,
                    account.chain,
                    before_s,
                    certified_height_of(account),
                    device=device,
                )
                return _told(plan)
        except BusyError as busy:
            raise BusyError(
                f"{busy}, but {absent}",
                hint="name its control socket with --socket, or stop it first",
            ) from busy
    return int(reply["segments"]), int(reply["bytes"])
