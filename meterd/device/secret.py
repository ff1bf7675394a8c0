"""Finds what opens this device's vault: a secret of its own, bound to its board where that can be.

Two credentials of systemd (systemd.exec(5)). `meterd.device`, 32 bytes, lies on the card encrypted
with the host's key (systemd-creds(1)), which lies there too: by itself it keeps the vault from who
reads the state folder or a backup of it, not from who has the whole card. `meterd.board` is what
the board's one-time programmable memory holds, read by root at each boot and never written to the
card: with it a copied card opens nowhere else. A board that has none leaves no such credential.

Root has both outside of a unit as well, by asking systemd-creds.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.device.card import sync_folder
from meterd.errors import AbsentError, ConfigError, DeniedError, StorageError
from meterd.privacy.envelope import KEY_BYTES, device_key

if TYPE_CHECKING:
    from collections.abc import Mapping

DEVICE, BOARD = "meterd.device", "meterd.board"
STORE = Path("/etc/credstore.encrypted")
BOARD_FILE = Path("/run/credstore/meterd.board")  # as meterd-board.service leaves it
BOARD_BYTES_MAX = 64  # a Pi 5 has 16 rows of 32 bits for it, a Pi 4 has 8
CREDS_S_MAX = 30


def find_device_key(
    environ: Mapping[str, str] = os.environ, *, store: Path = STORE, board: Path = BOARD_FILE
) -> bytes | None:
    """Return what opens this device's vault; None where this machine has no device secret.

    Args:
        environ: Where systemd names the directory of credentials.
        store: Where root finds the secret outside of a unit.
        board: Where root finds what the board holds.

    Raises:
        AbsentError: systemd-creds is not installed.
        ConfigError: What is there is no device secret.
        DeniedError: It may not be read.
        StorageError: It cannot be read.
    """
    if (folder := environ.get("CREDENTIALS_DIRECTORY")) is not None:
        secret = _read(Path(folder, DEVICE))
        bound = _read(Path(folder, BOARD))
    elif os.geteuid() == 0 and (kept := store / DEVICE).exists():
        secret = _creds("decrypt", str(kept), "-")
        bound = _read(board)
    else:
        return None
    if secret is None:
        return None
    if len(secret) != KEY_BYTES:
        raise ConfigError(
            f"the credential {DEVICE} has {len(secret)} bytes, a device secret has {KEY_BYTES}",
            hint="put back the one that this device was made with; another opens no vault of it",
        )
    if bound is not None and len(bound) > BOARD_BYTES_MAX:
        raise ConfigError(f"the credential {BOARD} has {len(bound)} bytes: that is no board's")
    return device_key(secret, bound or b"")


def is_bound(environ: Mapping[str, str] = os.environ, *, board: Path = BOARD_FILE) -> bool:
    """Return whether what opens this device's vault is bound to its board.

    Raises:
        DeniedError: What the board holds may not be read.
        StorageError: It cannot be read.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    return bool(_read(board if folder is None else Path(folder, BOARD)))


def make_secret(store: Path = STORE) -> None:
    """Draw this device's secret and keep it encrypted; it is durable once this returns.

    Raises:
        AbsentError: systemd-creds is not installed.
        ConfigError: There is one: it is never replaced.
        DeniedError: Not root.
        StorageError: It cannot be kept.
    """
    path = store / DEVICE
    if os.geteuid() != 0:
        raise DeniedError("a device secret is root's to make", hint="run it with sudo")
    if path.exists():
        raise ConfigError(
            f"this device has a secret: {path}",
            hint="with another nothing in its vault could be opened",
        )
    _draw(store, path)


def _draw(store: Path, path: Path) -> bytes:
    """Draw a secret and keep it at a path; return it once it is durable."""
    fresh = store / f"{DEVICE}.new"
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        secret = os.urandom(KEY_BYTES)
        _creds("encrypt", "-", str(fresh), said=secret)
        fresh.chmod(0o600)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(store)
    except OSError as error:
        raise StorageError(f"cannot keep {path}: {error.strerror}") from error
    return secret


class Secrets:
    """The secret of a device and the next one, while it is being replaced. For root.

    First the next secret is on the card, then the vault is sealed by it, then it takes the place of
    the one before. Whenever power fails, one of them opens the vault: `meterctl vault rotate
    --device` once more finds which, and goes on from there.
    """

    def __init__(self, store: Path = STORE, *, board: Path = BOARD_FILE) -> None:
        """Read what is there.

        Raises:
            AbsentError: There is no device secret, or no systemd-creds.
            DeniedError: Not root.
            StorageError: It cannot be read.
        """
        if os.geteuid() != 0:
            raise DeniedError("a device secret is root's to replace", hint="run it with sudo")
        self._store, self._path, self._next = store, store / DEVICE, store / f"{DEVICE}.next"
        if not self._path.exists():
            raise AbsentError(
                f"there is no device secret: {self._path}", hint="`sudo meterctl vault init`"
            )
        self._secret = _creds("decrypt", str(self._path), "-")
        self._bound = _read(board) or b""

    @property
    def present(self) -> list[bytes]:
        """What may open the vault by the present secret: as it is bound now, and not bound."""
        keys = [device_key(self._secret, self._bound), device_key(self._secret)]
        return keys if self._bound else keys[:1]

    @property
    def begun(self) -> bytes | None:
        """What opens the vault if the next secret has sealed it; None where none was drawn."""
        if not self._next.exists():
            return None
        return device_key(_creds("decrypt", str(self._next), "-"), self._bound)

    def draw(self) -> bytes:
        """Draw the next secret; return what will open the vault, once it is durable."""
        return device_key(_draw(self._store, self._next), self._bound)

    def replace(self) -> None:
        """Let the next secret be the one."""
        try:
            self._next.replace(self._path)
            sync_folder(self._store)
        except OSError as error:
            raise StorageError(f"cannot replace {self._path}: {error.strerror}") from error


def _creds(action: str, *paths: str, said: bytes = b"") -> bytes:
    options = ("--with-key=host",) if action == "encrypt" else ()
    command = ("systemd-creds", action, f"--name={DEVICE}", *options, *paths)
    try:
        done = subprocess.run(
            command, input=said, capture_output=True, check=False, timeout=CREDS_S_MAX
        )
    except FileNotFoundError as error:
        raise AbsentError(
            "systemd-creds is not installed", hint="it comes with systemd 250 and newer"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise AbsentError(
            f"systemd-creds has not ended after {CREDS_S_MAX} s, and was stopped",
            hint="see what holds the machine up (`top`), then try again",
        ) from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise StorageError(f"systemd-creds could not {action} {DEVICE}: {''.join(reason)}")
    return done.stdout


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise DeniedError(f"not allowed to read {path}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
