"""`meterctl key`: what somebody needs from this meter to judge its account elsewhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meterd.ctl.account import StoredAccount
from meterd.ctl.options import add_json, add_state

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl key`."""
    parser.epilog = """\
Both are public. Write them down somewhere else than on the meter: an account
can only be checked against what is known from elsewhere.

examples:
  meterctl key
  meterctl key --state ./account --json
"""
    add_state(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show the public key; returns the exit code."""
    account = StoredAccount(options.state)
    show(account, as_json=options.json)
    return 0


def show(account: StoredAccount, *, as_json: bool = False) -> None:
    """Print the public key and the genesis hash."""
    key, genesis = account.chain.sealer.hex(), account.chain.genesis.hex()
    if as_json:
        print(json.dumps({"key": key, "meter": account.meter, "genesis_hash": genesis}))
        return
    print(f"meter    {account.meter}")
    print(f"key      {key}")
    print(f"genesis  {genesis}")
