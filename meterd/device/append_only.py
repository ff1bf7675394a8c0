"""Keeps the streams' files append-only on the card, and takes away what the account says is pruned.

The kernel then refuses whoever has the meter's rights, and not root's, to shorten or remove what
is written (`chattr +a`, ext4 and its like). Only who has CAP_LINUX_IMMUTABLE clears that flag: a
timer, for a segment of samples that a sealed event of the account names, and for no other file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from meterd.device.archive import segment_name, segment_numbers
from meterd.device.card import sync_folder
from meterd.device.prune import told_segments
from meterd.errors import DeniedError, StorageError
from meterd.ledger.segment import STREAMS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meterd.ledger.chain import Chain

_GET_FLAGS, _SET_FLAGS = 0x8008_6601, 0x4008_6602  # linux/fs.h, FS_IOC_GETFLAGS, 64 bits
_APPEND = 0x20  # FS_APPEND_FL
_ABSENT = (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # a card without such flags


class Finished(NamedTuple):
    """What was done.

    Attributes:
        removed: Numbers of the samples segments that are gone now.
        freed_bytes: How much room that made.
        protected: How many files became append-only.
        supported: Whether this card has such a flag at all.
    """

    removed: tuple[int, ...]
    freed_bytes: int
    protected: int
    supported: bool


def is_append_only(path: Path) -> bool | None:
    """Return whether a file is append-only; None where the card has no such flag."""
    with _opened(path) as descriptor:
        flags = _flags(descriptor)
    return None if flags is None else bool(flags & _APPEND)


def set_append_only(path: Path, *, wanted: bool) -> bool:
    """Set or clear the flag; return whether the card has one.

    Raises:
        DeniedError: This process may not.
        StorageError: The card failed.
    """
    with _opened(path) as descriptor:
        flags = _flags(descriptor)
        if flags is None:
            return False
        new = flags | _APPEND if wanted else flags & ~_APPEND
        if new != flags:
            try:
                fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", new))
            except PermissionError as error:
                raise DeniedError(
                    f"no permission to make {path} append-only, or to undo it",
                    hint="meterd-prune.service has it (CAP_LINUX_IMMUTABLE); so has root",
                ) from error
            except OSError as error:
                raise StorageError(f"{path}: {error.strerror}") from error
    return True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError as error:
        hint = "run as the account's owner, or with sudo"
        raise DeniedError(f"no permission to read {path}", hint=hint) from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _flags(descriptor: int) -> int | None:
    try:
        [flags] = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)))
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise StorageError(f"reading the flags of a file: {error.strerror}") from error
    return int(flags)


def finish(state: Path, chain: Chain) -> Finished:
    """Remove the samples that events tell of as pruned; let all other segments be append-only.

    The daemon may run. What it prunes meanwhile is finished the next time.

    Args:
        state: Folder of the account.
        chain: Whose account it is.

    Raises:
        LedgerDamagedError: The events do not hold: nothing was removed.
        DeniedError: The files are not this user's to remove, or to make append-only.
        StorageError: The card failed. The account is good as it is.
    """
    told = told_segments(state, chain)
    going = [number for number in segment_numbers(state / "samples") if number in told]
    if going:
        _settle_events(state)
    freed_bytes = 0
    for number in going:
        path = state / "samples" / segment_name(number)
        freed_bytes += _remove(path)
    if going:
        sync_folder(state / "samples")
    protected, supported = 0, True
    for stream in STREAMS:
        for number in segment_numbers(state / stream):
            path = state / stream / segment_name(number)
            if is_append_only(path) is False:
                protected += set_append_only(path, wanted=True)
            supported = supported and is_append_only(path) is not None
    return Finished(tuple(going), freed_bytes, protected, supported)


def _settle_events(state: Path) -> None:
    """Let the events that were read outlast a failure of power: without them a file may not go."""
    folder = state / "events"
    for number in segment_numbers(folder):
        with _opened(folder / segment_name(number)) as descriptor:
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise StorageError(f"sync {folder}: {error.strerror}") from error
    sync_folder(folder)


def _remove(path: Path) -> int:
    set_append_only(path, wanted=False)
    try:
        size = path.stat().st_size
        path.unlink()
    except PermissionError as error:
        raise DeniedError(
            f"no permission to remove {path}", hint="run as the account's owner, or with sudo"
        ) from error
    except OSError as error:
        raise StorageError(f"remove {path}: {error.strerror}") from error
    return size
