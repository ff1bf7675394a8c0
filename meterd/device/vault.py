"""Keeps this machine's keys, in their smallest honest form: 32 bytes each that root here can read.

The sealing key's seed comes as the systemd credential `meterd.seal` (then it is on the card
encrypted, or not at all), else from `seal.key` in the state directory: 64 hex digits and a newline,
mode 0600. Whoever reads either can seal as this meter; whoever replaces `seal.key` makes a stranger
of it, which the key in the genesis gives away. The voting key, which signs attestations and what
is said to peers, is kept likewise: `meterd.vote`, `peer.key`.

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
from meterd.errors import AbsentError, ConfigError, DeniedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

SEED_BYTES = 32
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
    "meterd.seal",
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


def load_seal(state: Path, environ: Mapping[str, str] = os.environ) -> SigningKey:
    """Return the key that this meter seals with.

    Args:
        state: The state directory.
        environ: Where systemd names the directory of credentials.

    Raises:
        AbsentError: There is no key yet.
        DeniedError: The key may not be read, or may be read by others than its owner.
        ConfigError: What is there is no seed.
        StorageError: The card failed.
    """
    return _load(_SEAL, state, environ)


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


def load_seals(state: Path, environ: Mapping[str, str] = os.environ) -> list[SigningKey]:
    """Return every sealing key that this device has had, the first first; as `load_seal`.

    A rotated key is not thrown away: what waits to be sealed may name the order before it.
    """
    keys = [_load(_SEAL, state, environ)]
    for number in count(2):
        kind = _next_seal(number)
        if not (state / kind.file).exists():
            return keys
        keys.append(_load(kind, state, {}))
    raise AssertionError  # the numbers do not end


def create_next_seal(state: Path, seed: bytes) -> SigningKey:
    """Return one more sealing key of this device, kept; it seals once an order names it."""
    return _create(_next_seal(len(load_seals(state)) + 1), state, seed)


def _next_seal(number: int) -> _Kind:
    return _SEAL._replace(file=f"seal-{number}.key", make="meterctl key --rotate")


def load_vote(state: Path, environ: Mapping[str, str] = os.environ) -> SigningKey:
    """Return the key that this node attests and speaks to its peers with; as `load_seal`."""
    return _load(_VOTE, state, environ)


def create_seal(state: Path, seed: bytes) -> SigningKey:
    """Return the key of `seed`, kept: it is on the card once this returns.

    Args:
        state: The state directory; has to exist.
        seed: 32 bytes that nobody else has or can guess.

    Raises:
        ConfigError: There is a key already, which is never replaced, or `seed` is not 32 bytes.
        DeniedError: The directory may not be written.
        StorageError: The card is full or failed; no key is left behind.
    """
    return _create(_SEAL, state, seed)


def create_vote(state: Path, seed: bytes) -> SigningKey:
    """Return the voting key of `seed`, kept; as `create_seal`."""
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
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"a seed of {SEED_BYTES} bytes was expected, {len(seed)} came")
    path = state / kind.file
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigError(
            f"there is a {kind.called} already: {path}",
            hint=kind.second,
        ) from error
    except PermissionError as error:
        raise DeniedError(f"not allowed to write {path}", hint=f"give this user {state}") from error
    except OSError as error:
        raise StorageError(f"cannot create {path}: {error.strerror}") from error
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            text = seed.hex().encode() + b"\n"
            if file.write(text) != len(text):
                raise OSError(None, "written in part")  # noqa: TRY301 - as other failures of the card
            os.fsync(fd)
        sync_folder(state)
    except OSError as error:
        path.unlink(missing_ok=True)
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
