"""The storage card: a few operations on append-only files, and the lock of the one writer.

What the log wants done is a list of operations, so that a test can record them, lose those that
were not synced, and start again from every state that a power failure may leave.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import BusyError, DeniedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Operation(NamedTuple):
    """One thing to do to the card.

    Attributes:
        kind: `create`, `append`, `sync`, `sync_folder`, `replace` or `unlink`.
        path: The file or folder.
        data: What to append or replace with.
    """

    kind: str
    path: Path
    data: bytes = b""


class CardFullError(StorageError):
    """There is no room left: samples stop first, sealing last."""


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
                what = f"{operation.kind} {operation.path}: {error.strerror}"
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    hint = "free space on the card, or `meterctl prune` what is certified"
                    raise CardFullError(what, hint=hint) from error
                if error.errno == errno.EROFS:
                    hint = "the card has become read-only: it is worn out or damaged; replace it"
                    raise StorageError(what, hint=hint) from error
                raise StorageError(what, hint="the card may be failing: copy it, replace it") from (
                    error
                )

    def _do(self, operation: Operation) -> None:
        kind, path, data = operation
        if kind == "append":
            self._write(self._file(path), data)
        elif kind == "sync":
            os.fdatasync(self._file(path))
        elif kind == "create":
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._open[path] = os.open(path, flags, 0o640)
        elif kind == "sync_folder":
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        elif kind == "replace":
            self._replace(path, data)
        elif kind == "close":
            descriptor = self._open.pop(path, None)
            if descriptor is not None:
                os.close(descriptor)
        elif kind == "unlink":
            os.unlink(path)
        else:
            raise ValueError(kind)

    def _file(self, path: Path) -> int:
        if path not in self._open:
            self._open[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        return self._open[path]

    @staticmethod
    def _write(descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def _replace(self, path: Path, data: bytes) -> None:
        beside = path.with_name(path.name + ".new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            self._write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(beside, path)
        self._do(Operation("sync_folder", path.parent))

    def close(self) -> None:
        """Close all files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def lock(state: Path) -> int:
    """Take the one writer's lock of the account in `state`; it is held until the process ends.

    Raises:
        BusyError: Another process writes this account.
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
    except OSError as error:
        os.close(descriptor)
        hint = "is meterd already running? see `systemctl status meterd` or `meterctl status`"
        raise BusyError(f"another process writes the account in {state}", hint=hint) from error
    return descriptor
