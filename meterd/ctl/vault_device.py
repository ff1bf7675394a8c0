"""`meterctl vault rotate --device`: another secret of the device, where no record is written anew.

As root, while the meter is stopped: the secret is a credential, which a unit reads as it starts. It
also binds a vault to its board that was made before the board had a key.
"""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING

from meterd.ctl.owner import as_owner
from meterd.device.card import lock
from meterd.device.secret import Secrets
from meterd.device.vault import StoredVault
from meterd.device.vault_events import version_named
from meterd.errors import VaultRefusedError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def rotate_device(options: argparse.Namespace) -> int:
    """Replace the device secret; returns the exit code."""
    held = Secrets()
    version = rotate(options.state, held)
    if options.json:
        print(json.dumps({"rotated": "device secret", "vault": version}))
        return 0
    print("rotated  the device secret")
    print(f"vault    version {version}, which the account names once the meter starts")
    return 0


def rotate(state: Path, held: Secrets) -> int:
    """Let another secret open the vault in a state folder; return the vault's version.

    Raises:
        BusyError: The meter runs.
        VaultRefusedError: Neither the present secret nor the next opens the vault.
    """
    begun = held.begun
    with as_owner(state):
        running = lock(state)
        named = version_named(state)
        version = None if begun is None else _version(state, begun, named)
    try:
        if version is None:
            fresh = held.draw()
            with as_owner(state):
                version = _move(state, held.present, fresh, named)
        held.replace()
    finally:
        os.close(running)
    return version


def _version(state: Path, device: bytes, version_min: int) -> int | None:
    """Return the version of the vault where `device` opens it."""
    try:
        with StoredVault(state, device, version_min=version_min) as stored:
            return stored.vault.version - 1
    except VaultRefusedError:
        return None


def _move(state: Path, present: list[bytes], fresh: bytes, version_min: int) -> int:
    for device in present[:-1]:
        if _version(state, device, version_min) is not None:
            present = [device]
    with StoredVault(state, present[-1], version_min=version_min) as stored:
        return stored.keep(stored.vault.rooted(secrets.token_bytes).moved(fresh))
