"""Makes an account: its folders, its genesis, its keys. A standalone meter is a network of one.

A member of a street has its keys first (`enrol_keys`), then the genesis that names them
(`join_network`). The genesis comes last and whole, so that there is an account once it is there:
whatever is interrupted before can be done again.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from meterd.authority.roster import found
from meterd.device.archive import GENESIS_FILE, ORDERS_FILE, add_orders, read_file
from meterd.device.failures import FAILURES_FILE
from meterd.device.files import write_new
from meterd.device.keys import create_seal, create_vote, load_seal, load_vote
from meterd.errors import (
    AbsentError,
    BlockRejectedError,
    ConfigError,
    DeniedError,
    EncodingError,
    StorageError,
)
from meterd.ledger.account import Genesis, decode_genesis, standalone
from meterd.ledger.segment import STREAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.authority.roster import Enrolled, Roster
    from meterd.config import Settings
    from meterd.ledger.account import Node

NAMED_MAX = 8  # nodes in a hint
_NO_ACCOUNT = frozenset({FAILURES_FILE, "lost+found"})


def is_free(state: Path) -> bool:
    """Return whether an account may be made in `state`: nothing is there that matters.

    A start before there was an account leaves a note of why it failed, and a file system of its
    own has `lost+found`: neither is an account, and whoever began in the wrong order goes on.

    Raises:
        OSError: It cannot be looked at.
    """
    return not state.is_dir() or {path.name for path in state.iterdir()} <= _NO_ACCOUNT


def create_account(
    state: Path,
    settings: Settings,
    seed: bytes,
    *,
    network: str = "",
    device: bytes | None = None,
) -> Genesis:
    """Make the account of a standalone meter in `state`, and return its genesis.

    Args:
        state: A folder that does not exist yet, or is free.
        settings: Name, interval, zone, currency, fuse and clamps go into the genesis.
        seed: The sealing key's seed, 32 bytes.
        network: Its network's name; the meter's own if empty.
        device: What opens this device's vault; None for a machine without one.

    Raises:
        ConfigError: There is something in `state`.
        DeniedError: It may not be written.
        StorageError: It cannot be written.
    """
    with _making(state):
        state.mkdir(parents=True, exist_ok=True)
        if not is_free(state):
            raise ConfigError(
                f"{state} is not empty: an account is never made over another",
                hint="name an empty folder, or move the old one away and keep it",
            )
        key = create_seal(state, seed, device)
        genesis = standalone(
            settings.meter.name,
            bytes(key.verify_key),
            interval_s=settings.meter.interval_s,
            zone=settings.meter.zone,
            currency=settings.meter.currency,
            fuse_ma=fuse_ma(settings),
            nominal_mv=nominal_mv(settings),
            mains_clamps=mains_clamps(settings),
            network=network,
        )
        _make(state, genesis, meters=True)
    return genesis


def enrol_keys(
    state: Path, draw_seed: Callable[[], bytes], device: bytes | None = None
) -> tuple[SigningKey, SigningKey]:
    """Return the sealing key and the voting key in `state`; those that are missing are made.

    Args:
        state: A folder without an account; made if missing.
        draw_seed: Returns 32 bytes that nobody else has or can guess.
        device: What opens this device's vault; None for a machine without one.

    Raises:
        ConfigError: There is an account already, or what is there is no key.
        DeniedError: It may not be written, or others may read a key.
        StorageError: It cannot be written.
    """
    with _making(state):
        state.mkdir(parents=True, exist_ok=True)
        refuse_account(state)
    try:
        sealing = load_seal(state, device)
    except AbsentError:
        sealing = create_seal(state, draw_seed(), device)
    try:
        voting = load_vote(state)
    except AbsentError:
        voting = create_vote(state, draw_seed())
    return sealing, voting


def refuse_account(state: Path) -> None:
    """Check that there is no account in `state`; keys, and empty folders, may be there.

    Raises:
        ConfigError: There is one.
    """
    streams = [state / stream for stream in STREAMS]
    if (state / GENESIS_FILE).exists() or any(f.is_dir() and any(f.iterdir()) for f in streams):
        raise ConfigError(
            f"{state} has an account already: one is never made over another",
            hint="a meter that has an account of its own starts a new chain in a new folder",
        )


def check_member(
    state: Path,
    genesis: Genesis,
    settings: Settings | None,
    orders: bytes = b"",
    device: bytes | None = None,
) -> Node:
    """Return the node of the network that this device is, by its own keys and settings.

    Args:
        state: Holds the keys.
        genesis: Decoded, from whoever founded the network.
        settings: Of the meter; None where this device meters nothing.
        orders: Those in force since, with their certificates, as an account keeps them.
        device: What opens this device's vault; None for a machine without one.

    Raises:
        ConfigError: It names others, or other keys, or other settings: all that differs.
        AbsentError: A key is missing.
    """
    try:
        roster = found(genesis)
    except BlockRejectedError as error:
        raise ConfigError(
            f"the genesis of {genesis.name} founds no network: {error}",
            hint="have it made with `meterctl network create`",
        ) from error
    try:
        roster = add_orders(roster, orders)
    except EncodingError as error:
        raise ConfigError(
            f"the file of orders {error}",
            hint=f"take the file `orders` of another meter's account in {genesis.name}",
        ) from error
    try:
        sealing = bytes(load_seal(state, device).verify_key)
        voting = bytes(load_vote(state).verify_key)
    except AbsentError as error:
        raise AbsentError(
            str(error), hint="name the folder that `meterctl network enrol` made the keys in"
        ) from error
    name = settings.meter.name if settings else ""
    node = next(
        (
            n
            for n in roster.nodes.values()
            if (n.name == name if settings else n.sealing_key == sealing)
        ),
        None,
    )
    if node is None:
        who = f"no node called {name}" if settings else f"no node with the sealing key in {state}"
        raise ConfigError(
            f"the network {genesis.name} has {who}",
            hint=f"it has {_some(roster)}; was this device's enrolment in it, from this folder? if "
            "an order has enrolled it since, add --orders",
        )
    wrong = []
    enrolled = roster.newest(node.name)
    if (enrolled.keys[-1][1] if enrolled else node.sealing_key) != sealing:
        wrong.append(f"the sealing key of {node.name} is not the one in {state}")
    if node.voting_key != voting:
        wrong.append(f"the voting key of {node.name} is not the one in {state}")
    orders_alone = enrolled is not None and (node.name, enrolled.incarnation) == roster.distributor
    meter = None if orders_alone else enrolled
    wrong += _meter_differs(genesis, node.name, meter, settings)
    if wrong:
        raise ConfigError(
            f"the genesis of {genesis.name} does not fit this device: {'; '.join(wrong)}",
            hint="mend the settings, or enrol again and have the network founded with that",
        )
    return node


def _some(roster: Roster) -> str:
    names = sorted(roster.nodes)
    return ", ".join(names[:NAMED_MAX]) + (", …" if len(names) > NAMED_MAX else "")


def _meter_differs(
    genesis: Genesis, name: str, meter: Enrolled | None, settings: Settings | None
) -> Iterator[str]:
    if meter is None or settings is None:
        if meter:
            yield f"{name} is a meter there: name its settings with --config"
        if settings:
            yield f"{name} is no meter there: leave out --config"
        return
    for key, there, here, unit in (
        ("meter.fuse_a", meter.fuse_ma, fuse_ma(settings), "mA"),
        ("meter.nominal_v", meter.nominal_mv, nominal_mv(settings), "mV"),
        ("clamps of the role mains", meter.mains_clamps, mains_clamps(settings), ""),
        ("meter.interval_s", genesis.interval_s, settings.meter.interval_s, "s"),
    ):
        if there != here:
            yield f"{key}: {here} {unit}".rstrip() + " here, " + f"{there} {unit}".rstrip()


def join_network(
    state: Path,
    genesis: Genesis,
    settings: Settings | None,
    orders: bytes = b"",
    device: bytes | None = None,
) -> Node:
    """Make this device's account in the network of `genesis`; return the node that it is there.

    Args:
        state: Holds the keys that `enrol_keys` made, and no account.
        genesis: Decoded, from whoever founded the network.
        settings: Of the meter; None where this device meters nothing: it gets the genesis alone.
        orders: As for `check_member`.
        device: As for `check_member`.

    Raises:
        ConfigError: There is an account in `state`, or the genesis does not fit this device.
        AbsentError: A key is missing.
        DeniedError: `state` may not be read or written.
        StorageError: It cannot be written.
    """
    with _making(state):
        refuse_account(state)
        node = check_member(state, genesis, settings, orders, device)
        if orders and settings is not None:
            (state / ORDERS_FILE).unlink(missing_ok=True)  # of an attempt that was cut off
            write_new(state / ORDERS_FILE, orders)
        _make(state, genesis, meters=settings is not None)
    return node


def fuse_ma(settings: Settings) -> int:
    """Return the main fuse as a genesis has it, mA."""
    return int(settings.rules.fuse_a * 1000)


def nominal_mv(settings: Settings) -> int:
    """Return the nominal voltage as a genesis has it, mV."""
    return int(settings.rules.nominal_v * 1000)


def mains_clamps(settings: Settings) -> int:
    """Return how many clamps' sum is import and export."""
    return sum(clamp.role == "mains" for clamp in settings.rules.clamps)


@contextmanager
def _making(state: Path) -> Iterator[None]:
    """Tell what the system refuses as errors of an account in `state`."""
    try:
        yield
    except PermissionError as error:
        raise DeniedError(
            f"not allowed to write {state}", hint="run as the account's owner, or with sudo"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot make an account in {state}: {error.strerror}") from error


def _make(state: Path, genesis: Genesis, *, meters: bool) -> None:
    """Make the folders of a meter's streams, then the genesis: with it there is an account."""
    for stream in STREAMS if meters else ():
        (state / stream).mkdir(exist_ok=True)
    write_new(state / GENESIS_FILE, genesis.encode())


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
