"""`meterctl prune`: remove old samples, whole segments, after an event that says so."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.config import load
from meterd.ctl.account import StoredAccount, certified_height_of
from meterd.ctl.options import add_json, add_socket, add_state, instant, socket_of
from meterd.ctl.owner import as_owner
from meterd.ctl.show import count, local, note
from meterd.device.control_client import ControlClient
from meterd.device.prune import plan_prune, prune_stopped
from meterd.device.secret import find_device_key
from meterd.errors import AbsentError, BusyError, DeniedError, MeterdError, UsageError

if TYPE_CHECKING:
    import argparse

    from meterd.device.prune import PrunePlan

DAY_S = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl prune`."""
    parser.epilog = """\
Blocks and events stay, and the account stays good. A segment of samples goes
where each of its rows is in a sealed block that ends before then (a meter that
is alone counts sealed as certified). Samples exist on this card only: what is
pruned cannot be audited any more, nor got back.

`--finish` is what meterd-prune.service runs: it prunes what is older than
`retain_days` of the settings, if that is set, removes the files that events of
the account tell of as pruned, though they are append-only, and makes all other
segments append-only (`chattr +a`).

examples:
  meterctl prune --before 2026-01-01 --dry-run
  meterctl prune --before 2026-01-01
  meterctl prune --finish --config /etc/meterd/meterd.toml
"""
    add_state(parser)
    add_socket(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--before",
        metavar="DATE",
        help="a day, 2026-01-01 (from its begin by local time), or an ISO 8601 time",
    )
    what.add_argument(
        "--finish", action="store_true", help="remove what events tell of; protect all else"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="with --finish: settings with `retain_days`"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go, remove nothing")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prune, by the daemon if it runs; returns the exit code."""
    if options.before is None and not options.finish:
        raise UsageError(
            "say which samples go: those before a day",
            hint="`meterctl prune --before 2026-01-01 --dry-run` says what would go, and how much",
        )
    account = StoredAccount(options.state)
    if options.finish:
        return _finish(options, account)
    if options.config:
        raise UsageError("--config goes with --finish: it says how long samples are kept")
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


def _finish(options: argparse.Namespace, account: StoredAccount) -> int:
    """Prune by the settings' days, then finish what events tell of; returns the exit code."""
    from meterd.device.append_only import finish

    if options.dry_run:
        raise UsageError("--finish removes what events tell of already: there is nothing to plan")
    failed: MeterdError | None = None
    days = load(options.config).log.retain_days if options.config else 0
    if days:
        try:
            _prune(options, account, int(time.time()) - days * DAY_S)
        except DeniedError as denied:  # the files are append-only: they are removed below
            note(str(denied))
        except MeterdError as error:  # what is told already goes all the same, and this is told
            failed = error
    done = finish(account.state, account.chain)
    if not done.supported:
        note("this card has no append-only files: nothing keeps whoever runs as meterd from them")
    if options.json:
        told = {"segments": len(done.removed), "bytes": done.freed_bytes}
        print(json.dumps(told | {"protected": done.protected, "supported": done.supported}))
    else:
        print(
            f"{count(len(done.removed), 'pruned segment')} removed: {done.freed_bytes} bytes;"
            f" {count(done.protected, 'file')} made append-only"
        )
    if failed is not None:
        raise failed
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
