"""`meterctl vault`: the device's secret, and what its vault holds, by pseudonym and purpose.

What is read or changed of a person's is in `vault_person`: that is the running meter's to do.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from meterd.ctl.options import add_action, add_json, add_socket, add_state, socket_of
from meterd.ctl.owner import as_owner
from meterd.ctl.show import Column, count, print_table
from meterd.ctl.vault_device import UNBOUND, UNBOUND_WHY, add_board, board
from meterd.ctl.vault_person import add_actions
from meterd.ctl.vault_person import run as run_person
from meterd.device.board_memory import hand_over, read_board
from meterd.device.control_client import ControlClient
from meterd.device.keys import take_in
from meterd.device.secret import STORE, find_device_key, is_bound, make_secret
from meterd.device.vault import StoredVault
from meterd.device.vault_events import version_named
from meterd.errors import AbsentError
from meterd.vault_desk import listing

if TYPE_CHECKING:
    import argparse

    from meterd.device.control_vault import VaultListReply


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl vault`."""
    parser.epilog = """\
The vault is a folder in the account's. What opens it is a secret of this
device, which the services get as a credential; it is not in the account. A
person's records take that person's passphrase besides. The running meter reads
and changes them, with an event of each; `init` and `list` work without it.

examples:
  meterctl vault init
  meterctl vault list --json
  meterctl vault put flat-3 person --file person.txt
  meterctl vault erase flat-3
"""
    actions = parser.add_subparsers(dest="vault_command", required=True, metavar="ACTION")
    _add_init(actions)
    _add_list(actions)
    add_actions(actions)
    add_board(actions)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    if options.vault_command == "init":
        return _init(options)
    if options.vault_command == "board":
        return board(options)
    return _list(options) if options.vault_command == "list" else run_person(options)


# --- init -------------------------------------------------------------------------------------


def _add_init(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "make this device's secret, and take its sealing keys into the vault"
    parser = add_action(actions, "init", summary)
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
    held = read_board()
    if held:
        hand_over(held)  # before the unit that does so at boot has run for the first time
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
    parser = add_action(actions, "list", summary)
    parser.epilog = """\
By the running meter; where none runs, by itself, as root.

examples:
  meterctl vault list
"""
    add_state(parser)
    add_socket(parser)
    add_json(parser)


def _list(options: argparse.Namespace) -> int:
    listed = _listed(options)
    entries = [
        {
            "subject": subject["subject"],
            "purpose": record["purpose"],
            "version": record["version"],
            "bytes": record["bytes"],
            "passphrase": subject["passphrase"] is not None,
        }
        for subject in listed["subjects"]
        for record in subject["records"]
    ]
    if options.json:
        shown = {"version": listed["version"], "bound": listed["bound"], "records": entries}
        print(json.dumps(shown))
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
    if not listed["bound"]:
        sys.stderr.write(f"meterctl: warning: {UNBOUND}\nmeterctl: hint: {UNBOUND_WHY}\n")
    return 0


def _listed(options: argparse.Namespace) -> VaultListReply:
    """Return what the vault holds: by the running meter, or from the card."""
    path = socket_of(options)
    if path.exists() or os.geteuid() != 0:
        try:
            reply = ControlClient(path).call("VaultList")
        except AbsentError:
            if os.geteuid() != 0:
                raise
        else:
            return cast("VaultListReply", reply)
    device = find_device_key()
    if device is None:
        raise AbsentError(
            "nothing here opens the vault: no device secret, or you are not root",
            hint="sudo, and on a new device `meterctl vault init` first",
        )
    bound = is_bound()
    with as_owner(options.state):
        named = version_named(options.state)
        with StoredVault(options.state, device, version_min=named) as stored:
            return listing(stored.vault, bound=bound)
