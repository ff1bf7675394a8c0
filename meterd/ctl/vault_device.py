"""`meterctl vault board` and `rotate --device`: what opens a device's vault, and only there.

`rotate --device` draws another secret of the device, and no record is written anew. As root, while
the meter is stopped: the secret is a credential, which a unit reads as it starts. It also binds a
vault to its board that was made before the board had a key.
"""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

from meterd.ctl.options import add_action, add_json
from meterd.ctl.owner import as_owner
from meterd.device.board_memory import hand_over, read_board
from meterd.device.card import lock
from meterd.device.secret import BOARD_FILE, Secrets
from meterd.device.vault import StoredVault
from meterd.device.vault_events import version_named
from meterd.errors import VaultRefusedError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


UNBOUND = "the vault is not bound to the board"
UNBOUND_WHY = "the board's one-time memory holds no key, or does not show it"


def add_board(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Describe `meterctl vault board`."""
    summary = "read what binds the vault to this board, for the meter's unit"
    parser = add_action(actions, "board", summary)
    parser.epilog = f"""\
meterd-board.service does this as root at each boot, before the meter starts.
A Raspberry Pi shows root the private key in its one-time programmable memory
as nvmem_priv0; `rpi-otp-private-key -w` of rpi-eeprom programs it, once. What
is read stays in memory: {BOARD_FILE}.

examples:
  sudo meterctl vault board
"""
    add_json(parser)


def board(options: argparse.Namespace) -> int:
    """Hand over what the board holds; returns the exit code."""
    held = read_board()
    hand_over(held)
    if options.json:
        print(json.dumps({"bound": bool(held)}))
    elif held:
        print(f"the board holds a key of {len(held)} bytes: it is handed to the meter")
    else:
        print(f"{UNBOUND}\n{UNBOUND_WHY}")
    return 0


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
