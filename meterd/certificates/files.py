"""How the files of a root, and of a device, are read.

What is read is not trusted, and a key that others can read is not taken for one.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from meterd.errors import DeniedError

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES_MAX = 65_536  # a request, a key or a certificate is under 1 kB


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
