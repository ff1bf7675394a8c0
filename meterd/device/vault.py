"""Keeps the vault on the card: personal data and session keys, each in its envelope.

Two files count, both in `vault` in the state folder, which nobody but its owner reads: `key`, and
the one `content-N` that it names. A change writes the next content, then replaces `key`: before
that moment the vault is as it was, from then on as it shall be, and the content before is deleted.
Whatever else lies there was left by a failure of power, and is taken away with the next change.

Whoever can write these files can put back what was there yesterday, both of them: the caller who
knows better says which version was written last. Who can read them learns pseudonyms and sizes.
With the device secret besides, all that belongs to the device, and nothing of a person's without
the passphrase. What a card has deleted may lie in its spare cells: erasing ends what the files can
give, and not what a laboratory may find.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from typing import TYPE_CHECKING, Self

from nacl import pwhash

from meterd.device.card import BESIDE, Card, Operation, sync_folder
from meterd.errors import AbsentError, BusyError, DeniedError, StorageError, VaultRefusedError
from meterd.privacy.envelope import (
    CONTENT_BYTES_MAX,
    KEY_BYTES,
    SALT_BYTES,
    Files,
    Passphrase,
    Vault,
    found,
    named_version,
    open_vault,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

VAULT = "vault"
KEY = "key"
CONTENT = "content-{}"
_CONTENT = re.compile(r"content-[1-9][0-9]*(\.new)?")  # one that is not whole yet, too
KEY_FILE_BYTES_MAX = 4096  # some 150 are right
PASSES, MEMORY_KIB = 3, 64 * 1024  # RFC 9106 section 4, its second choice: some 0.6 s on a Pi 4
PASSES_MAX, MEMORY_KIB_MAX = 64, 256 * 1024  # a file from elsewhere must not stop the machine


class StoredVault:
    """The vault of one device, open and locked against other programs.

    Attributes:
        vault: As it is now.
    """

    def __init__(self, state: Path, device: bytes, *, version_min: int = 0) -> None:
        """Open the vault in a state folder, or begin one.

        Args:
            state: The state folder.
            device: From `envelope.device_key`.
            version_min: What is known from elsewhere to have been written.

        Raises:
            BusyError: Another program has it open.
            DeniedError: It may not be read, or may be read by others than its owner.
            StorageError: The card failed.
            VaultRefusedError: It is another device's, older, or was changed.
        """
        self._folder = state / VAULT
        self._card = Card()
        self._lock = _locked(self._folder)
        try:
            os.fsync(self._lock)  # a process that was killed may have renamed, and not synced it
            self.vault = _opened(_read(self._folder), device, version_min)
        except BaseException:
            _unlock(self._lock)
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the files."""
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._card.close()
        _unlock(self._lock)

    def keep(self, vault: Vault) -> int:
        """Keep a vault in the place of the one before; return its version, once it is durable.

        Raises:
            EncodingError: There is more than a vault holds.
            StorageError: The card is full or failed; the one before counts, or this one, and the
                next start shows which.
        """
        before = [path for path in self._folder.iterdir() if _CONTENT.fullmatch(path.name)]
        self._card.perform(changes(self._folder, vault, before))
        self.vault = vault._replace(version=vault.version + 1)
        return vault.version


def changes(folder: Path, vault: Vault, before: list[Path]) -> list[Operation]:
    """Return what puts a vault in the place of the one before, step by step.

    Args:
        folder: Where its files lie.
        vault: What shall be there.
        before: The contents that are there.
    """
    files, content = vault.close(os.urandom), folder / CONTENT.format(vault.version)
    return [
        Operation("replace", content, files.content),
        Operation("replace", folder / KEY, files.key),  # from here on it counts
        *(
            Operation("unlink", path)
            for path in sorted(before)
            if path.name.removesuffix(BESIDE) != content.name
        ),
        Operation("sync_folder", folder),
    ]


def checked_version(state: Path, device: bytes | None, version_min: int) -> int:
    """Return how often the vault has been written; 0 where there is none, or nothing opens it.

    That version is durable.

    Args:
        state: The state folder.
        device: From `envelope.device_key`; None on a machine without a device secret.
        version_min: What is known from elsewhere to have been written.

    Raises:
        As `StoredVault`.
    """
    if device is None or not (version_min or (state / VAULT).is_dir()):
        return 0
    with StoredVault(state, device, version_min=version_min) as stored:
        return stored.vault.version - 1


def passphrase_key(text: str, passphrase: Passphrase) -> bytes:
    """Return what a person's passphrase comes to: some tenths of a second, and 64 MB.

    Raises:
        VaultRefusedError: It would take more than this device has.
    """
    if passphrase.passes > PASSES_MAX or passphrase.memory_kib > MEMORY_KIB_MAX:
        raise VaultRefusedError("the passphrase takes more time or memory than is allowed")
    return pwhash.argon2id.kdf(
        KEY_BYTES,
        text.encode(),
        passphrase.salt,
        opslimit=passphrase.passes,
        memlimit=passphrase.memory_kib * 1024,
    )


def new_passphrase() -> Passphrase:
    """Return how the passphrase of one more person becomes a key."""
    return Passphrase(os.urandom(SALT_BYTES), PASSES, MEMORY_KIB)


def _opened(files: Files | None, device: bytes, version_min: int) -> Vault:
    if files is not None:
        return open_vault(files, device, version_min)
    if version_min:
        raise VaultRefusedError(f"the vault is gone: it was written {version_min} times")
    return found(device, os.urandom)


def _check_mode(folder: Path, descriptor: int) -> None:
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & 0o077:
        raise DeniedError(
            f"the vault {folder} can be read or changed by others (mode {mode:04o})",
            hint=f"`chmod 700 {folder}`",
        )


def _locked(folder: Path) -> int:
    """Make the folder, if it is not there, and return a descriptor that locks it."""
    try:
        try:
            folder.mkdir(mode=0o700)
            sync_folder(folder.parent)
        except FileExistsError:
            pass
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise AbsentError(
            f"there is no {folder.parent}", hint="make the account first: `meterctl init`"
        ) from error
    except PermissionError as error:
        raise DeniedError(
            f"not allowed to open {folder}", hint="run as the account's owner, or with sudo"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot open {folder}: {error.strerror}") from error
    try:
        _check_mode(folder, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError(f"another program has {folder} open", hint="try again") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unlock(descriptor: int) -> None:
    """Let go of the lock, though a process that is being started may have a copy until it runs."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _read(folder: Path) -> Files | None:
    """Return the files that count; None where there are none yet.

    Raises:
        VaultRefusedError: The content is lacking, or one of them is too long.
        StorageError: The card failed.
    """
    key = _bytes(folder / KEY, KEY_FILE_BYTES_MAX)
    contents = [path for path in folder.iterdir() if _CONTENT.fullmatch(path.name)]
    if key is None:
        if len(contents) > 1:
            raise VaultRefusedError(f"the key to the vault is gone: {folder / KEY}")
        return None
    version = named_version(key)
    content = _bytes(folder / CONTENT.format(version), CONTENT_BYTES_MAX)
    if content is None:
        there = ", ".join(sorted(path.name for path in contents)) or "none"
        raise VaultRefusedError(
            f"the content that the key names is gone: {CONTENT.format(version)}, there is {there}",
            hint="put the whole folder back as it was last",
        )
    return Files(content, key)


def _bytes(path: Path, bytes_max: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > bytes_max:
        raise VaultRefusedError(f"{path} has more than {bytes_max} bytes")
    return data
