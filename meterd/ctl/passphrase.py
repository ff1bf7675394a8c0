"""Reads a person's passphrase: at the terminal without echo, from a file, from standard input.

It stays in this program, and what it comes to is all that leaves it.
"""

from __future__ import annotations

import os
import stat
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.errors import AbsentError, ConfigError, DeniedError, UsageError

if TYPE_CHECKING:
    import argparse

LETTERS_MIN = 10  # four dice words are 20; the daemon's waits do not help who has card and board
BYTES_MAX = 1024
STDIN = Path("-")


def add_passphrase_file(
    parser: argparse.ArgumentParser, option: str = "--passphrase-file", what: str = "passphrase"
) -> None:
    """Add an option that names where a passphrase is, in the place of the terminal."""
    parser.add_argument(
        option,
        type=Path,
        metavar="FILE",
        help=f"the {what} is the first line of FILE, - for standard input (default: asked for)",
    )


def read_passphrase(file: Path | None, subject: str, *, new: bool = False) -> str:
    """Return a person's passphrase; one that is new is asked for twice.

    Args:
        file: Where it is; None to ask at the terminal.
        subject: Whose.
        new: Whether it shall open something from now on.

    Raises:
        AbsentError: There is no such file.
        ConfigError: It is empty, too short or too long.
        DeniedError: The file may not be read, or may be read by others.
        UsageError: There is no terminal, or both times differ.
    """
    text = _asked(subject, new=new) if file is None else _read(file)
    text = unicodedata.normalize("NFC", text)  # one spelling, whichever keyboard (RFC 8265)
    if not text or len(text.encode()) > BYTES_MAX:
        raise ConfigError(f"a passphrase has 1 to {BYTES_MAX} bytes, got {len(text.encode())}")
    if new and len(text) < LETTERS_MIN:
        raise ConfigError(
            f"a new passphrase has {LETTERS_MIN} letters or more, got {len(text)}",
            hint="four or five words drawn by dice are easy to write down and hard to guess",
        )
    return text


def _asked(subject: str, *, new: bool) -> str:
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(
            "there is no terminal to ask for a passphrase at", hint="use --passphrase-file FILE"
        )
    from getpass import getpass

    first = getpass(f"{'new ' if new else ''}passphrase of {subject}: ")
    if new and getpass("once more: ") != first:
        raise UsageError("not twice the same: nothing was changed")
    return first


def _read(file: Path) -> str:
    if file == STDIN:
        data = b"" if sys.stdin is None else sys.stdin.buffer.readline(BYTES_MAX + 2)
    else:
        data = _first_line(file)
    try:
        return data.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the passphrase in {file} is not UTF-8") from error


def _first_line(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise DeniedError(
                    f"{file} can be read or changed by others (mode {stat.S_IMODE(mode):04o})",
                    hint=f"`chmod 600 {file}`, and take another passphrase if others use this",
                )
            return opened.readline(BYTES_MAX + 2)
    except FileNotFoundError as error:
        raise AbsentError(f"there is no {file}") from error
