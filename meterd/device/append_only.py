"""Keeps the streams' files append-only on the card, and takes away what the account says is pruned.

The kernel then refuses whoever has the meter's rights, and not root's, to shorten or remove what
is written (`chattr +a`, ext4 and its like). Only who has CAP_LINUX_IMMUTABLE clears that flag: a
timer, for a segment of samples that a sealed event of the account names, and for no other file:
what lies at that name is looked at first, since whoever has the meter's rights may rename folders.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from meterd.device.archive import segment_name, segment_numbers
from meterd.device.card import sync_folder
from meterd.device.prune import told_segments
from meterd.errors import DeniedError, EncodingError, LedgerDamagedError, StorageError
from meterd.ledger.row import LINK_BYTES
from meterd.ledger.segment import HEADER_BYTES_MAX, STREAMS, SampleHeader, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meterd.ledger.chain import Chain
    from meterd.ledger.pruning import Pruned

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
        return _set(descriptor, path, wanted=wanted)


def _set(descriptor: int, path: Path, *, wanted: bool) -> bool:
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
        # Not blocking: a pipe in the place of a segment would hold the timer up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        hint = "run as the account's owner, or with sudo"
        raise DeniedError(f"no permission to read {path}", hint=hint) from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StorageError(f"{path} is no file")
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
        LedgerDamagedError: The events do not hold: nothing was removed. Or something else than what
            was pruned lies there, append-only: it stays.
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
        freed_bytes += _remove(path, told[number], chain)
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


def _remove(path: Path, pruned: Pruned, chain: Chain) -> int:
    with _opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if (_flags(descriptor) or 0) & _APPEND:
            if not _is_that(descriptor, pruned, chain):
                raise LedgerDamagedError(
                    f"{path} is not the segment that was pruned: it stays",
                    hint="somebody has renamed files: `meterctl verify`, and keep a copy",
                )
            _set(descriptor, path, wanted=False)
    try:
        path.unlink()
    except PermissionError as error:
        raise DeniedError(
            f"no permission to remove {path}", hint="run as the account's owner, or with sudo"
        ) from error
    except OSError as error:
        raise StorageError(f"remove {path}: {error.strerror}") from error
    return size


def _is_that(descriptor: int, pruned: Pruned, chain: Chain) -> bool:
    """Return whether a file is the segment that an event names, down to its last row's link."""
    try:
        header, begin = read_header(os.pread(descriptor, HEADER_BYTES_MAX, 0), "samples")
    except EncodingError:
        return False
    assert isinstance(header, SampleHeader)  # noqa: S101 - of that stream
    end = begin + pruned.rows * header.row_bytes
    return (header.genesis, header.meter, header.number, pruned.digest[:LINK_BYTES]) == (
        chain.genesis,
        chain.meter,
        pruned.segment,
        os.pread(descriptor, LINK_BYTES, end - LINK_BYTES),
    )
