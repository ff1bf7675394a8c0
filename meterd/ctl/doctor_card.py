"""Looks at the card that an account is on, for `meterctl doctor`.

A shell without rules, as `doctor_meter`. The one write, which shows whether the card still takes
any, is to a file without a name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.ctl.doctor_facts import NEEDS_ROOT, Card, Unseen
from meterd.ctl.owner import as_owner
from meterd.ledger.row import row_bytes
from meterd.ledger.segment import STREAMS

if TYPE_CHECKING:
    from meterd.config import Settings
    from meterd.ctl.doctor_machine import Machine

MILLISECONDS_A_DAY = 86_400_000
FLAGGED_AFTER_S = 2 * 86_400  # the timer that sets the flag comes once a day
_GET_FLAGS, _APPEND_ONLY = 0x8008_6601, 0x20  # linux/fs.h, for 64 bits
_NO_FLAGS = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL})


def card_of(state: Path, machine: Machine, settings: Settings | None) -> Card | Unseen | None:
    """Return what is seen of the card that an account is on; None where there is no account."""
    try:
        room, device = os.statvfs(state), state.stat().st_dev
    except FileNotFoundError:
        return None  # the account's rule says so
    except OSError as error:
        return Unseen(f"{state}: {error.strerror}")
    kind, options, source = _mount_of(machine, device)
    polling_ms = settings.board.polling_ms if settings else 5000
    used = sum(clamp.role != "unused" for clamp in settings.rules.clamps) if settings else 1
    errors = machine.text(f"sys/fs/ext4/{Path(source).name}/errors_count")
    return Card(
        free_bytes=room.f_bavail * room.f_frsize,
        total_bytes=room.f_blocks * room.f_frsize,
        inodes_free=room.f_favail if room.f_files else -1,
        kind=kind,
        options=options,
        errors=int(errors) if errors and errors.isdecimal() else -1,
        bytes_a_day=MILLISECONDS_A_DAY // polling_ms * row_bytes(used),
        reserve_bytes=settings.log.reserve_mb * 1_000_000 if settings else 0,
        sync_ms=_sync_ms(state),
        open_files=open_files(state, time.time() - FLAGGED_AFTER_S),
    )


def open_files(state: Path, before_s: float) -> int | None:
    """Return how many segments written before an instant are not append-only (ioctl_iflags(2)).

    None where the filesystem has no such flag; what this user may not read is not counted.
    """
    found = 0
    for path in (path for stream in STREAMS for path in (state / stream).glob("*")):
        try:
            # Not blocking: the meter's user may have left a pipe there, and this may be root.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                seen = os.fstat(file.fileno())
                if seen.st_mtime >= before_s or not stat.S_ISREG(seen.st_mode):
                    continue
                [flags] = struct.unpack("l", fcntl.ioctl(file.fileno(), _GET_FLAGS, bytes(8)))
        except OSError as error:
            if error.errno in _NO_FLAGS:
                return None
            continue
        found += not flags & _APPEND_ONLY
    return found


def _mount_of(machine: Machine, device: int) -> tuple[str, tuple[str, ...], str]:
    """Return a filesystem's kind, the options of its mount, and its device (proc(5), mountinfo)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    found: tuple[str, tuple[str, ...], str] = ("", (), "")
    for line in (machine.text("proc/self/mountinfo") or "").splitlines():
        mount, _, filesystem = line.partition(" - ")
        words, of = mount.split(), filesystem.split()
        if len(words) > 5 and words[2] == number and len(of) > 2:  # noqa: PLR2004 - the fields used
            # Read-only for the whole filesystem is what a failing card becomes.
            found = (of[0], (*words[5].split(","), *of[2].split(",")), of[1])
    return found


def _sync_ms(state: Path) -> int | Unseen:
    """Return how long a small write and its fsync take, in a file without a name; -1: they fail."""
    with as_owner(state):
        try:
            descriptor = os.open(state, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except PermissionError:
            return NEEDS_ROOT
        except OSError as error:
            return Unseen(f"the filesystem takes no file without a name ({error.strerror})")
        try:
            began_s = time.monotonic()
            os.write(descriptor, b"doctor")
            os.fsync(descriptor)
            return int(1000 * (time.monotonic() - began_s))
        except OSError:
            return -1
        finally:
            os.close(descriptor)


def wear_of(state: Path, machine: Machine) -> tuple[int, int] | None:
    """Return how worn the card says that it is, as `Machine.wear` does; None where it does not."""
    try:
        return machine.wear(state.stat().st_dev)
    except OSError:
        return None
