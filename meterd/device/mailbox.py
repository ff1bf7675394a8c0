"""The line between the two processes of a device: folders of small files, one writer each.

The writer puts a file there whole (a rename makes it appear), and rings the reader's bell, a
datagram socket beside the files. The reader trusts nothing it finds: names, kinds, sizes and how
many it looks at in one turn are bounded, whatever else lies there is taken away, and a writer that
has gone wild costs a bounded share of a turn.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import DeniedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = re.compile(r"[a-z]{1,16}-[0-9a-z]{1,40}")
FILE_BYTES_MAX = 1 << 20  # an order with the certificate of a meter that was alone for months
FILES_MAX = 512  # in a folder: a writer of ours stops there
TURN_FILES_MAX = 64  # files looked at in one turn
HEIGHT_BYTES = 8  # of the question: blocks and orders that the card holds, behind the nonce
BELL = "bell"
OUTBOX, INBOX = "outbox", "inbox"


class Letter(NamedTuple):
    """A file that was found.

    Attributes:
        name: Its name: kind, a hyphen, and what tells it from others of the kind.
        data: Its bytes.
    """

    name: str
    data: bytes

    @property
    def kind(self) -> str:
        """The word before the hyphen."""
        return self.name.partition("-")[0]


class Mailbox:
    """One folder of the line."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is made where it is missing.

        Raises:
            DeniedError: It may not be made or used.
            StorageError: It cannot be.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "not writable")  # noqa: TRY301 - as if it were made
        except PermissionError as error:
            raise DeniedError(
                f"not allowed to use {folder}", hint="give it to both processes' users"
            ) from error
        except OSError as error:
            raise StorageError(f"cannot make {folder}: {error.strerror}") from error

    # --- the writer -------------------------------------------------------------------------

    def put(self, name: str, data: bytes) -> bool:
        """Let the file `name` appear, or replace it; False where the folder is full or fails.

        What is lost here is told again later: nothing rests on one file.
        """
        fresh = self.folder / f".{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            if len(os.listdir(self.folder)) >= FILES_MAX and not (self.folder / name).exists():  # noqa: PTH208 - a count
                return False
            self.remove(fresh.name)  # whatever the other process may have put there
            with os.fdopen(os.open(fresh, flags, 0o660), "wb") as file:
                file.write(data)
            fresh.replace(self.folder / name)
        except OSError:
            self.remove(fresh.name)
            return False
        return True

    def has(self, name: str) -> bool:
        """Say whether the file `name` lies there."""
        return (self.folder / name).exists()

    def names(self) -> set[str]:
        """Return the names of the files that lie there, ours alone."""
        with suppress(OSError):
            return {name for name in os.listdir(self.folder) if NAME.fullmatch(name)}  # noqa: PTH208
        return set()

    def ring(self) -> None:
        """Wake the reader, if it listens."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
            bell.setblocking(False)
            bell.sendto(b"!", str(self.folder / BELL))

    # --- the reader -------------------------------------------------------------------------

    def listen(self) -> socket.socket:
        """Return the bell: readable once the writer has rung. `silence` it, then look.

        Raises:
            StorageError: It cannot be made.
        """
        path = self.folder / BELL
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bell.setblocking(False)
            self.remove(BELL)
            bell.bind(str(path))
        except OSError as error:
            bell.close()
            raise StorageError(f"cannot make {path}: {error.strerror or error}") from error
        return bell

    @staticmethod
    def silence(bell: socket.socket) -> None:
        """Take all rings; at most a turn's worth, so that a writer cannot keep us here."""
        with suppress(BlockingIOError):
            for _ in range(TURN_FILES_MAX):
                bell.recv(16)

    def read(self, files_max: int = TURN_FILES_MAX) -> list[Letter]:
        """Return at most `files_max` files, and take away what is no file of the line."""
        letters = []
        for name in self._some(files_max):
            if name.startswith(".") and NAME.fullmatch(name[1:]):
                continue  # being written
            letter = self._open(name)
            if letter is None:
                self.remove(name)
            else:
                letters.append(letter)
        return letters

    def _some(self, files_max: int) -> Iterator[str]:
        try:
            with os.scandir(self.folder) as entries:
                for count, entry in enumerate(entry for entry in entries if entry.name != BELL):
                    if count == files_max:
                        return
                    yield entry.name
        except OSError:
            return

    def _open(self, name: str) -> Letter | None:
        if not NAME.fullmatch(name):
            return None
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(self.folder / name, flags), "rb", buffering=0) as file:
                said = os.fstat(file.fileno())
                if not stat.S_ISREG(said.st_mode) or said.st_size > FILE_BYTES_MAX:
                    return None
                data = file.read(FILE_BYTES_MAX + 1) or b""
        except OSError:
            return None
        return Letter(name, data) if len(data) <= FILE_BYTES_MAX else None

    def remove(self, name: str) -> None:
        """Take a file away, or whatever bears its name."""
        path = self.folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError:  # a folder: nobody of ours makes one
            import shutil  # 0.4 MB, and wanted almost never

            with suppress(RecursionError):  # one that is too deep stays, and counts as one file
                shutil.rmtree(path, ignore_errors=True)
