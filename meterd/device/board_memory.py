"""Reads what a Raspberry Pi's one-time programmable memory holds for its owner, and no card does.

Raspberry Pi's kernels (raspberrypi-otp, 6.6 and newer) show the device's private key as
`nvmem_priv0`, to root alone: 32 bytes on a Pi 4, 64 on a Pi 5, all zero until its owner programs it
once with `rpi-otp-private-key` of rpi-eeprom. It is nothing for meterd to write: bits that are set
there stay set.

What is read goes to `/run/credstore`, in memory, from where systemd hands it to the meter's unit as
the credential `meterd.board`.
"""

from __future__ import annotations

from pathlib import Path

from meterd.device.files import write_over
from meterd.device.secret import BOARD_BYTES_MAX, BOARD_FILE
from meterd.errors import DeniedError, StorageError

MEMORY = Path("/sys/bus/nvmem/devices")
_DEVICES = "nvmem_priv*"


def read_board(memory: Path = MEMORY) -> bytes:
    """Return what the board holds; nothing where it holds no key, or the kernel shows none.

    Raises:
        DeniedError: Not root.
        StorageError: It cannot be read, or is no such memory.
    """
    for device in sorted(memory.glob(_DEVICES)):
        path = device / "nvmem"
        try:
            with path.open("rb") as file:
                data = file.read(BOARD_BYTES_MAX + 1)
        except PermissionError as error:
            raise DeniedError(f"not allowed to read {path}", hint="run it with sudo") from error
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        if len(data) > BOARD_BYTES_MAX:
            raise StorageError(f"{path} has more than {BOARD_BYTES_MAX} bytes: that is no key")
        if any(data):
            return data
    return b""


def hand_over(data: bytes, board: Path = BOARD_FILE) -> None:
    """Let systemd find what the board holds, or nothing, in the place of what it found before.

    Raises:
        DeniedError: Not root.
        StorageError: It cannot be kept.
    """
    try:
        if not data:
            board.unlink(missing_ok=True)
            return
        board.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_over(board, data, mode=0o400)
    except PermissionError as error:
        raise DeniedError(f"not allowed to write {board}", hint="run it with sudo") from error
    except OSError as error:
        raise StorageError(f"cannot write {board}: {error.strerror}") from error
