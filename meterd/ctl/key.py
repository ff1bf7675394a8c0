"""`meterctl key`: what somebody needs from this meter to judge its account elsewhere."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from meterd.ctl.account import StoredAccount
from meterd.ctl.options import add_json, add_state
from meterd.device.keys import SEED_BYTES, create_next_seal, load_seals
from meterd.device.secret import find_device_key
from meterd.errors import ConfigError
from meterd.ledger.order import sign_rotation

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl key`."""
    parser.epilog = """\
Both are public. Write them down somewhere else than on the meter: an account
can only be checked against what is known from elsewhere.

With --rotate the meter makes itself one more sealing key, which never leaves
it, and its present key consents to it: `meterctl order rotate` takes both. The
new key seals once that order is certified; the old one stays, and so does all
that it has sealed.

examples:
  meterctl key
  meterctl key --state ./account --json
  meterctl key --rotate
"""
    add_state(parser)
    add_json(parser)
    parser.add_argument("--rotate", action="store_true", help="make the next sealing key")


def run(options: argparse.Namespace) -> int:
    """Show the public key; returns the exit code."""
    account = StoredAccount(options.state)
    if options.rotate:
        return _rotate(account, as_json=options.json)
    show(account, as_json=options.json)
    return 0


def _rotate(account: StoredAccount, *, as_json: bool) -> int:
    """Make the next sealing key, and let the present one consent to it; returns the exit code."""
    chain, order = account.chain, account.roster.head.height
    device = find_device_key()
    held = {bytes(key.verify_key): key for key in load_seals(account.state, device)}
    present = chain.key_at(order)
    if present not in held:
        raise ConfigError(
            f"the key that order {order} names is not on this device: it cannot consent",
            hint="the distributor can revoke it and enrol this meter anew",
        )
    if list(held)[-1] != present:
        fresh = held[list(held)[-1]]  # made before, and not in force yet
    else:
        fresh = create_next_seal(account.state, os.urandom(SEED_BYTES), device)
    new_key = bytes(fresh.verify_key)
    consent = sign_rotation(
        held[present], chain.genesis, account.meter, chain.incarnation, new_key
    ).hex()
    if as_json:
        shown = {"meter": account.meter, "new_key": new_key.hex(), "consent": consent}
        print(json.dumps(shown))
        return 0
    print(f"new key  {new_key.hex()}")
    print(f"consent  {consent}")
    print("the distributor signs the order with:")
    print(f"  meterctl order rotate --meter {account.meter} --new-key … --consent …")
    return 0


def show(account: StoredAccount, *, as_json: bool = False) -> None:
    """Print the public key and the genesis hash."""
    key = account.chain.key_at(account.roster.head.height).hex()
    genesis = account.chain.genesis.hex()
    if as_json:
        print(json.dumps({"key": key, "meter": account.meter, "genesis_hash": genesis}))
        return
    print(f"meter    {account.meter}")
    print(f"key      {key}")
    print(f"genesis  {genesis}")
