"""What a command has made: into a new file, or to standard output.

A file of an earlier run may be all that somebody has: none takes its place.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from meterd.device.files import write_new
from meterd.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def refuse_terminal(out: Path | None, what: str, hint: str) -> None:
    """Check, before there is any work, that bytes will not come to a terminal.

    Args:
        out: The file; None for standard output.
        what: The thing that is bytes, with its article.
        hint: The command that writes it elsewhere.

    Raises:
        UsageError: They would.
    """
    if out is None and sys.stdout.isatty():
        raise UsageError(f"{what} is bytes, and stdout is a terminal", hint=hint)


def put_out(data: bytes | str, out: Path | None, *, mode: int | None = None) -> None:
    """Write `data` into the new file `out`, or to standard output where that is None.

    Args:
        data: All of it; a text is written in UTF-8.
        out: Where to.
        mode: As for `write_new`; of a secret.

    Raises:
        ConfigError: There is something already; it stays as it is.
        OSError: It cannot be written; there is no file then.
    """
    encoded = data.encode() if isinstance(data, str) else data
    if out is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(encoded)
        return
    try:
        write_new(out, encoded, mode=mode)
    except FileExistsError as error:
        raise ConfigError(
            f"{out} is there already", hint="name another file, or move that one away"
        ) from error
