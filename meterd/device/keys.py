"""Keeps this machine's keys: 32 bytes each, made here, which never leave it.

A device that has a secret of its own (see `secret`) keeps its sealing keys in the vault that this
opens. Any other machine, such as a desk or a bench, has the smallest honest form: `seal.key` in the
state directory, 64 hex digits and a newline, mode 0600. Whoever reads either can seal as this
meter; whoever replaces it makes a stranger of it, which the key in the genesis gives away. The
voting key, which signs attestations and what is said to peers, comes as the systemd credential
`meterd.vote`, else from `peer.key`.

A SigningKey must never be formatted: its `str` is the seed.
"""

from __future__ import annotations

import os
import stat
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nacl.signing import SigningKey

from meterd.device.card import sync_folder
from meterd.device.files import write_new
from meterd.device.vault import VAULT, StoredVault
from meterd.errors import AbsentError, ConfigError, DeniedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterd.privacy.envelope import Vault

SEED_BYTES = 32
SUBJECT = "device"  # whose records in the vault a device's own keys are
FILE_BYTES_MAX = 128  # 65 are right; more is another file under this name


class _Kind(NamedTuple):
    """What a key is called, where it is kept, and what to do when it is not as it should be."""

    called: str
    credential: str
    file: str
    make: str
    second: str
    restore: str


_SEAL = _Kind(
    "sealing key",
    "",
    "seal.key",
    make="meterctl init",
    second="a second key makes a second meter: take an empty state directory for it",
    restore="restore it from its backup; a new key makes a new meter",
)
_VOTE = _Kind(
    "voting key",
    "meterd.vote",
    "peer.key",
    make="meterctl network enrol",
    second="the network knows this node by it: take an empty state directory for another node",
    restore="restore it from its backup; a new key has to be put into the network's roster",
)


def load_seal(state: Path, device: bytes | None = None) -> SigningKey:
    """Return the key that this meter seals with; as `load_seals`."""
    return load_seals(state, device)[0]


def read_seal(path: Path) -> SigningKey:
    """Return the sealing key in a file elsewhere, or in a pipe, which has no mode that says much.

    Raises:
        DeniedError: It may be read by others than its owner.
        ConfigError: What is there is no seed.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        data = file.read(FILE_BYTES_MAX + 1)
    if stat.S_ISREG(mode):
        _check_mode(_SEAL, stat.S_IMODE(mode), path)
    return SigningKey(_decode(_SEAL, data, path))


def load_seals(state: Path, device: bytes | None = None) -> list[SigningKey]:
    """Return every sealing key that this device has had, the first first.

    A rotated key is not thrown away: what waits to be sealed may name the order before it.

    Args:
        state: The state directory.
        device: What opens its vault, from `find_device_key`; None for a machine without one.

    Raises:
        AbsentError: There is no key yet.
        BusyError: Another program has the vault open.
        DeniedError: A key may not be read, or may be read by others than its owner.
        ConfigError: What is there is no seed.
        StorageError: The card failed.
        VaultRefusedError: The vault is another device's, older, or was changed.
    """
    if device is not None and (kept := _in_vault(state, device)):
        return kept
    try:
        keys = [_load(_SEAL, state, {})]
    except AbsentError as error:
        if device is not None or not (state / VAULT).exists():
            raise
        raise AbsentError(
            f"the credential meterd.device is not there: the vault in {state} stays shut",
            hint="start meterd by its unit, or as root; if this device has none any more, put back "
            "/etc/credstore.encrypted/meterd.device from its backup",
        ) from error
    for number in count(2):
        kind = _next_seal(number)
        if not (state / kind.file).exists():
            return keys
        keys.append(_load(kind, state, {}))
    raise AssertionError  # the numbers do not end


def seals_kept(state: Path, device: bytes | None = None) -> str:
    """Return where `load_seals` has the keys from: `vault` or `file`."""
    taken_in = device is not None and not (state / _SEAL.file).exists()
    return "vault" if taken_in else "file"


def create_next_seal(state: Path, seed: bytes, device: bytes | None = None) -> SigningKey:
    """Return one more sealing key of this device, kept; it seals once an order names it."""
    number = len(load_seals(state, device)) + 1
    if device is not None and _in_vault(state, device):
        return _put(state, device, number, seed)
    return _create(_next_seal(number), state, seed)


def take_in(state: Path, device: bytes) -> int:
    """Move the sealing keys of a state directory into its vault; return how many.

    They are in the vault, durable, before a file goes: what a failure of power leaves is taken in
    by the next call.

    Raises:
        As `load_seals`.
    """
    files = [state / _SEAL.file]
    while files[-1].exists():
        files.append(state / _next_seal(len(files) + 1).file)
    del files[-1]
    if not files:
        return 0
    keys = load_seals(state)
    with StoredVault(state, device) as stored:
        vault, before = stored.vault, _seeds(stored.vault)
        if before and before[: len(keys)] != [bytes(key) for key in keys]:
            raise ConfigError(
                f"the vault of {state} has other sealing keys than {files[0].name}",
                hint="one of both is another meter's: move that away",
            )
        if not before:
            vault = vault.with_subject(SUBJECT, os.urandom)
            for number, key in enumerate(keys, start=1):
                vault = vault.put(SUBJECT, f"seal-{number}", bytes(key), os.urandom)
            stored.keep(vault)
    for path in reversed(files):  # the first last: without it none of the others is looked for
        path.unlink()
    sync_folder(state)
    return len(keys)


def _in_vault(state: Path, device: bytes) -> list[SigningKey]:
    """Return the sealing keys in the vault, the first first; none where there is no vault yet."""
    if not (state / VAULT).is_dir():
        return []
    with StoredVault(state, device) as stored:
        return [SigningKey(seed) for seed in _seeds(stored.vault)]


def _seeds(vault: Vault) -> list[bytes]:
    names = {record.purpose for record in vault.records if record.subject == SUBJECT}
    seeds = list[bytes]()
    while (name := f"seal-{len(seeds) + 1}") in names:
        seeds.append(vault.get(SUBJECT, name))
    return seeds


def _put(state: Path, device: bytes, number: int, seed: bytes) -> SigningKey:
    key = SigningKey(_checked(seed))
    with StoredVault(state, device) as stored:
        vault = stored.vault
        if all(subject.name != SUBJECT for subject in vault.subjects):
            vault = vault.with_subject(SUBJECT, os.urandom)
        stored.keep(vault.put(SUBJECT, f"seal-{number}", seed, os.urandom))
    return key


def _checked(seed: bytes) -> bytes:
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"a seed of {SEED_BYTES} bytes was expected, {len(seed)} came")
    return seed


def _next_seal(number: int) -> _Kind:
    return _SEAL._replace(file=f"seal-{number}.key", make="meterctl key --rotate")


def load_vote(state: Path, environ: Mapping[str, str] = os.environ) -> SigningKey:
    """Return the key that this node attests and speaks to its peers with.

    Args:
        state: The state directory.
        environ: Where systemd names the directory of credentials.

    Raises:
        AbsentError: There is no key yet.
        DeniedError: The key may not be read, or may be read by others than its owner.
        ConfigError: What is there is no seed.
        StorageError: The card failed.
    """
    return _load(_VOTE, state, environ)


def create_seal(state: Path, seed: bytes, device: bytes | None = None) -> SigningKey:
    """Return the key of `seed`, kept: it is on the card once this returns.

    Args:
        state: The state directory; has to exist.
        seed: 32 bytes that nobody else has or can guess.
        device: What opens its vault; None for a machine without one, which keeps a file.

    Raises:
        ConfigError: There is a key already, which is never replaced, or `seed` is not 32 bytes.
        DeniedError: The directory may not be written.
        StorageError: The card is full or failed; no key is left behind.
    """
    if device is None:
        return _create(_SEAL, state, seed)
    if _in_vault(state, device) or (state / _SEAL.file).exists():
        raise ConfigError(f"there is a {_SEAL.called} already in {state}", hint=_SEAL.second)
    return _put(state, device, 1, seed)


def create_vote(state: Path, seed: bytes) -> SigningKey:
    """Return the voting key of `seed`, kept in a file; as `create_seal`."""
    return _create(_VOTE, state, seed)


def _load(kind: _Kind, state: Path, environ: Mapping[str, str]) -> SigningKey:
    if directory := environ.get("CREDENTIALS_DIRECTORY"):
        path = Path(directory, kind.credential)
        if path.exists():
            data, _ = _read(kind, path)  # systemd shows its access list as a group's bit: no mode
            return SigningKey(data if len(data) == SEED_BYTES else _decode(kind, data, path))
    path = state / kind.file
    data, mode = _read(kind, path)
    _check_mode(kind, mode, path)
    return SigningKey(_decode(kind, data, path))


def _check_mode(kind: _Kind, mode: int, path: Path) -> None:
    if mode & 0o077:
        raise DeniedError(
            f"the {kind.called} {path} can be read or changed by others (mode {mode:04o})",
            hint=f"`chmod 600 {path}`, and if others use this machine take a new key",
        )


def _create(kind: _Kind, state: Path, seed: bytes) -> SigningKey:
    _checked(seed)
    path = state / kind.file
    try:
        write_new(path, seed.hex().encode() + b"\n", mode=0o600)
    except FileExistsError as error:
        raise ConfigError(
            f"there is a {kind.called} already: {path}",
            hint=kind.second,
        ) from error
    except PermissionError as error:
        raise DeniedError(f"not allowed to write {path}", hint=f"give this user {state}") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    return SigningKey(seed)


def _read(kind: _Kind, path: Path) -> tuple[bytes, int]:
    """Return a small regular file's content and its permission bits."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hang us
        with os.fdopen(fd, "rb", buffering=0) as file:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path} is no file: move it away")
            return file.read(FILE_BYTES_MAX + 1), stat.S_IMODE(mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AbsentError(
            f"there is no {kind.called}: {path}",
            hint=f"make one with `{kind.make} --state {path.parent}`",
        ) from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is no file: move it away") from error
    except PermissionError as error:
        raise DeniedError(
            f"not allowed to read the {kind.called} {path}",
            hint="run this as the user that owns the state directory, or as root",
        ) from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _decode(kind: _Kind, data: bytes, path: Path) -> bytes:
    """Return the seed that `data` spells; the message never repeats what is there."""
    text = data.removesuffix(b"\n")
    if len(text) == 2 * SEED_BYTES and all(digit in b"0123456789abcdefABCDEF" for digit in text):
        return bytes.fromhex(text.decode())
    raise ConfigError(
        f"{path} is no {kind.called}: 64 hex digits were expected, {len(data)} bytes of"
        " something else came",
        hint=kind.restore,
    )
