"""Makes an account: its folders, its genesis, its key. A standalone meter is a network of one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from meterd.device.archive import GENESIS_FILE, read_file
from meterd.device.vault import create_seal
from meterd.errors import ConfigError, DeniedError, EncodingError, StorageError
from meterd.ledger.account import Genesis, decode_genesis, standalone
from meterd.ledger.segment import STREAMS

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.config import Settings


def create_account(state: Path, settings: Settings, seed: bytes, *, network: str = "") -> Genesis:
    """Make the account of a standalone meter in `state`, and return its genesis.

    Args:
        state: A folder that does not exist yet, or is empty.
        settings: Name, interval, zone, currency, fuse and clamps go into the genesis.
        seed: The sealing key's seed, 32 bytes.
        network: Its network's name; the meter's own if empty.

    Raises:
        ConfigError: There is something in `state`.
        DeniedError: It may not be written.
        StorageError: It cannot be written.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        if any(state.iterdir()):
            raise ConfigError(
                f"{state} is not empty: an account is never made over another",
                hint="name an empty folder, or move the old one away and keep it",
            )
        key = create_seal(state, seed)
        rules = settings.rules
        genesis = standalone(
            settings.meter.name,
            bytes(key.verify_key),
            interval_s=settings.meter.interval_s,
            zone=settings.meter.zone,
            currency=settings.meter.currency,
            fuse_ma=int(rules.fuse_a * 1000),
            nominal_mv=int(rules.nominal_v * 1000),
            mains_clamps=sum(clamp.role == "mains" for clamp in rules.clamps),
            network=network,
        )
        for stream in STREAMS:
            (state / stream).mkdir()
        path = state / GENESIS_FILE
        with path.open("xb") as file:
            file.write(genesis.encode())
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except PermissionError as error:
        raise DeniedError(
            f"not allowed to write {state}", hint="run as the account's owner, or with sudo"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot make an account in {state}: {error.strerror}") from error
    return genesis


def read_genesis(state: Path) -> Genesis:
    """Return the genesis of the account in `state`.

    Raises:
        ConfigError: There is no account, or its genesis is damaged.
        StorageError: It cannot be read.
    """
    path = state / GENESIS_FILE
    if not path.exists():
        raise ConfigError(
            f"there is no account in {state}",
            hint=f"make one with `meterctl init --state {state} --config FILE`",
        )
    try:
        return decode_genesis(read_file(path))
    except EncodingError as error:
        raise ConfigError(
            f"the genesis {path} is damaged: {error}",
            hint="put back the genesis that the network's other members have",
        ) from error
