"""The storage card: a few operations on append-only files, and the lock of the one writer.

What the log wants done is a list of operations, so that a test can record them, lose those that
were not synced, and start again from every state that a power failure may leave.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import BusyError, DeniedError, MeterdError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


BESIDE = ".new"  # of a file that is not whole yet; one that power failed on is written over


class Operation(NamedTuple):
    """One thing to do to the card.

    Attributes:
        kind: `create` (whole or not at all: no power failure leaves a part of `data`), `append`,
            `sync`, `sync_folder` (files come and go for good), `settle` (`sync`, and let what is
            read next come from the card), `replace` (whole or not at all), `unlink`, `close`.
        path: The file or folder.
        data: What to create the file with, to append, or to replace it with.
    """

    kind: str
    path: Path
    data: bytes = b""


class CardFullError(StorageError):
    """There is no room left: samples stop first, sealing last."""


class AccountBusyError(BusyError):
    """Another process writes this account: it is well, and this one is too many."""


class Card:
    """Does operations in order; the first that fails ends the process (row L3)."""

    def __init__(self) -> None:
        """Begin with no file open."""
        self._open: dict[Path, int] = {}

    def perform(self, operations: Iterable[Operation]) -> None:
        """Do `operations` in order; each is done, or this raises and none after it is.

        A failed sync is never tried again: the kernel may have dropped the pages it could not
        write, and the next sync would succeed over the hole (row L3).

        Raises:
            CardFullError: No space, or a quota.
            StorageError: Anything else that the card refuses.
        """
        for operation in operations:
            try:
                self._do(operation)
            except OSError as error:
                raise _refused(operation, error) from error

    def _do(self, operation: Operation) -> None:
        kind, path, data = operation
        if kind == "append":
            self._write(self._file(path), data)
        elif kind == "sync":
            os.fdatasync(self._file(path))
        elif kind == "create":
            self._create(path, data)
        elif kind == "settle":
            self._settle(path)
        elif kind == "sync_folder":
            sync_folder(path)
        elif kind == "replace":
            os.close(self._put(path, path.with_name(path.name + BESIDE), data))
            self._do(Operation("sync_folder", path.parent))
        elif kind == "close":
            descriptor = self._open.pop(path, None)
            if descriptor is not None:
                os.close(descriptor)
        elif kind == "unlink":
            path.unlink(missing_ok=True)
        else:
            raise ValueError(kind)

    def _file(self, path: Path) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._open[path] = descriptor
        return descriptor

    @staticmethod
    def _write(descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def _create(self, path: Path, data: bytes) -> None:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        # Beside the folder and not in it: out of a folder that is append-only nothing is renamed.
        beside = path.parent.with_name(path.parent.name + BESIDE)
        self._open[path] = self._put(path, beside, data)

    def _put(self, path: Path, beside: Path, data: bytes) -> int:
        """Let `path` be `data`, at once, through the file `beside`; return a descriptor of it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(beside, flags, 0o640)
        try:
            self._write(descriptor, data)
            os.fsync(descriptor)
            beside.replace(path)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    @staticmethod
    def _settle(path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
            # What an earlier process could not sync stays in the cache, and counts as clean.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close all files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _refused(operation: Operation, error: OSError) -> MeterdError:
    what = f"{operation.kind} {operation.path}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free space on the card, or `meterctl prune` what is certified"
        return CardFullError(what, hint=hint)
    if error.errno == errno.EROFS:
        hint = "the card has become read-only: it is worn out or damaged; replace it"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "the account belongs to another user, or a file is immutable: see `ls -l`, `lsattr`"
    else:
        hint = "the card may be failing: copy it, replace it"
    return StorageError(what, hint=hint)


def check_writable(state: Path) -> None:
    """See at the start, and not at the first commit, whether the streams are ours to write.

    Raises:
        DeniedError: One is not.
    """
    for name in ("samples", "events", "blocks"):
        folder = state / name
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise DeniedError(
                f"no permission to write {folder}", hint="run as the account's owner, or with sudo"
            )


def lock(state: Path) -> int:
    """Take the one writer's lock of the account in `state`; it is held until the process ends.

    Raises:
        AccountBusyError: Another process writes this account.
        DeniedError: The folder is not ours to write.
        StorageError: It cannot be written at all.
    """
    path = state / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except PermissionError as error:
        raise DeniedError(
            f"no permission to write {state}", hint="run as the account's owner, or with sudo"
        ) from error
    except FileNotFoundError as error:
        hint = "make the account first: `meterctl init --state DIR --config FILE`"
        raise StorageError(f"no account in {state}", hint=hint) from error
    except OSError as error:
        hint = "is the card mounted read-only? see `dmesg`"
        raise StorageError(f"cannot write {state}: {error.strerror}", hint=hint) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        hint = "is meterd already running? see `meterctl status`"
        raise AccountBusyError(
            f"another process writes the account in {state}", hint=hint
        ) from error
    except OSError as error:
        os.close(descriptor)
        hint = "put the account on a file system that has locks"
        raise StorageError(f"cannot lock {state}: {error.strerror}", hint=hint) from error
    return descriptor


def sync_folder(path: Path) -> None:
    """Let the names in a folder outlast a failure of power."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
