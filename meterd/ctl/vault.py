"""`meterctl vault`: the device's secret, and what its vault holds, by pseudonym and purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.ctl.options import add_json, add_state
from meterd.ctl.owner import as_owner
from meterd.ctl.show import Column, count, print_table
from meterd.device.keys import take_in
from meterd.device.secret import STORE, find_device_key, make_secret
from meterd.device.vault import StoredVault
from meterd.errors import AbsentError

if TYPE_CHECKING:
    import argparse

_ENVELOPE_BYTES = 40  # nonce and tag around each record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl vault`."""
    parser.epilog = """\
The vault is a folder in the account's. What opens it is a secret of this
device, which the services get as a credential; it is not in the account.

examples:
  meterctl vault init
  meterctl vault list --json
"""
    actions = parser.add_subparsers(dest="vault_command", required=True, metavar="ACTION")
    _add_init(actions)
    _add_list(actions)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    return _init(options) if options.vault_command == "init" else _list(options)


# --- init -------------------------------------------------------------------------------------


def _add_init(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "make this device's secret, and take its sealing keys into the vault"
    parser = actions.add_parser("init", help=summary, description=f"init: {summary}.")
    parser.epilog = """\
Once, as root, while the meter is stopped. A secret that is there stays; keys
that lie in files are moved. Done again it does nothing.

exit status: 0 done, 69 systemd-creds is absent, 75 the meter has the vault
  open, 77 not root

examples:
  sudo meterctl vault init
"""
    add_state(parser)
    parser.add_argument(
        "--store",
        type=Path,
        default=STORE,
        metavar="DIR",
        help=f"where credentials are kept (default: {STORE})",
    )
    add_json(parser)


def _init(options: argparse.Namespace) -> int:
    device = find_device_key({}, store=options.store)
    made = device is None
    if device is None:
        make_secret(options.store)
        device = find_device_key({}, store=options.store)
        assert device is not None  # noqa: S101 - it has just been made
    with as_owner(options.state):
        taken = take_in(options.state, device)
    if options.json:
        print(json.dumps({"secret_made": made, "keys_taken": taken}))
        return 0
    print("device secret  " + (f"made: {options.store}" if made else "was there"))
    print(f"taken in       {count(taken, 'sealing key')}")
    return 0


# --- list -------------------------------------------------------------------------------------


def _add_list(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "list what the vault holds; nothing is opened"
    parser = actions.add_parser("list", help=summary, description=f"list: {summary}.")
    parser.epilog = """\
examples:
  sudo meterctl vault list
"""
    add_state(parser)
    add_json(parser)


def _list(options: argparse.Namespace) -> int:
    device = find_device_key()
    if device is None:
        raise AbsentError(
            "nothing here opens the vault: no device secret, or you are not root",
            hint="sudo, and on a new device `meterctl vault init` first",
        )
    with as_owner(options.state), StoredVault(options.state, device) as stored:
        vault = stored.vault
    persons = {subject.name for subject in vault.subjects if subject.passphrase is not None}
    entries = [
        {
            "subject": record.subject,
            "purpose": record.purpose,
            "version": record.version,
            "bytes": len(record.sealed) - _ENVELOPE_BYTES,
            "passphrase": record.subject in persons,
        }
        for record in vault.records
    ]
    if options.json:
        print(json.dumps({"version": vault.version - 1, "records": entries}))
        return 0
    columns = (
        Column("subject", 12),
        Column("purpose", 12),
        Column("version", 7, right=True),
        Column("bytes", 6, right=True),
        Column("opened by", 10),
    )
    rows = (
        (
            str(entry["subject"]),
            str(entry["purpose"]),
            str(entry["version"]),
            str(entry["bytes"]),
            "passphrase" if entry["passphrase"] else "the device",
        )
        for entry in entries
    )
    print_table(columns, rows)
    return 0
