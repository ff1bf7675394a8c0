"""Files that are there whole or not at all, and for good once they are.

Each is written beside its place and synced, and then put there at once: whenever power fails, what
was there before is there, or all of what was to be. Nothing is written through a link, neither one
that lies in the place nor one that somebody has laid beside it.

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     write_new(Path(folder, "key"), b"one", mode=0o600)
...     write_over(Path(folder, "key"), b"another", mode=0o600)
...     Path(folder, "key").read_bytes()
b'another'
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from meterd.device.card import BESIDE, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OPENED = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ANY_MODE, _PRIVATE = 0o666, 0o600
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})


def beside(path: Path) -> Path:
    """Return where `path` is written first; hidden, so that it is never a file of the user's."""
    return path.with_name(f".{path.name}{BESIDE}")


def write_new(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Let there be a file `path` of `data`, at once and for good, where none was.

    Args:
        path: Where; its folder has to exist.
        data: All of it.
        mode: Whatever the umask is; None: what the umask leaves, as for any program's file.

    Raises:
        FileExistsError: There is something already, a link at least; it stays as it is.
        OSError: It cannot be written; there is nothing then.
    """
    with _durable(path, data, mode) as written:
        try:
            path.hardlink_to(written)  # refuses what is there, which `rename` would replace
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(path):  # a USB stick's file system has no links
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
            written.rename(path)
    try:
        sync_folder(path.parent)
    except OSError:
        path.unlink(missing_ok=True)  # else the next try finds a file that nobody vouched for
        raise


def write_over(
    path: Path, data: bytes, *, mode: int | None = None, owner: tuple[int, int] | None = None
) -> None:
    """Let the file `path` be of `data`, at once and for good, whatever it was.

    Args:
        path: As for `write_new`; no folder is there.
        data: All of it.
        mode: As for `write_new`.
        owner: Whose it is, user and group; None: whose this process is.

    Raises:
        OSError: It cannot be written: what was there is there still; or all is there, and only its
            folder could not be synced.
    """
    with _durable(path, data, mode, owner) as written:
        written.replace(path)
    sync_folder(path.parent)


@contextmanager
def _durable(
    path: Path, data: bytes, mode: int | None, owner: tuple[int, int] | None = None
) -> Iterator[Path]:
    """Have a durable file of `data` beside `path`, to be put there; none stays beside it."""
    written = beside(path)
    try:
        written.unlink(missing_ok=True)  # what power failed on, or a link
        descriptor = os.open(written, _OPENED, _ANY_MODE if mode is None else _PRIVATE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if owner is not None:
                os.fchown(descriptor, *owner)
            if mode is not None:
                with suppress(PermissionError):  # a boot partition (FAT) has one mode for all files
                    os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        yield written
    except OSError as error:
        error.filename = str(path)  # what was asked for, not what it is called meanwhile
        raise
    finally:
        with suppress(OSError):  # the first failure is the one that is told
            written.unlink()
