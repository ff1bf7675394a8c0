"""How the files of a root, and of a device, are written and read.

A file is there once `put` returns, whole, and not before. What is read is not trusted, and a key
that others can read is not taken for one.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from meterd.device.card import sync_folder
from meterd.errors import DeniedError

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES_MAX = 65_536  # a request, a key or a certificate is under 1 kB


def put(path: Path, data: bytes, *, mode: int, fresh: bool = False) -> None:
    """Let `path` be `data`, whole or not at all, also after a failure of power.

    It has `mode` whatever the umask is, and with `fresh` never takes the place of a file.

    Raises:
        OSError: As the system says; `FileExistsError` if `fresh` and there is one.
    """
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if fresh:
            os.link(beside, path)
            beside.unlink()
        else:
            beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read(path: Path, *, secret: bool = False) -> bytes:
    """Return the first `FILE_BYTES_MAX` of a file.

    Raises:
        DeniedError: It is `secret`, and others may read it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if secret and stat.S_IMODE(mode) & 0o077:
            raise DeniedError(
                f"others may read the key {path}",
                hint="make a new one if others have had access; else `chmod 600` it",
            )
        return file.read(FILE_BYTES_MAX)
