"""What time it is, twice: since boot, which integrates, and on the wall, which only places.

A stamp carries both with the kernel's word on whether the wall time is to be believed. Statuses
are OCMF's letters: S synchronised, I informative, R relative (cannot be used to place).

>>> clock = ScaledClock(600, epoch_ms=1_767_225_600_000, now_ns=iter([0, 50_000_000]).__next__)
>>> clock.stamp()
Stamp(boot_ms=30000, wall_ms=1767225630000, status='S', error_ms=0)
"""

from __future__ import annotations

import ctypes
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from meterd.errors import DeniedError

if TYPE_CHECKING:
    from collections.abc import Callable

BUILD_S = 1_793_491_200  # 2026-11-01 00:00 UTC: this code is younger, so no true clock says less
ERROR_MS_MAX = 16_000  # the kernel's NTP_PHASE_LIMIT: past it the clock no longer is synchronised
STALE_NS = 1_000_000_000  # the kernel itself ages its error once a second, so ask no more often
STEP_NS = 10_000_000  # the wall moved against the boot clock: an old status may not vouch for it

_STA_UNSYNC = 0x0040  # linux/timex.h
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RTCS = Path("/sys/class/rtc")


class Stamp(NamedTuple):
    """One instant on both clocks. A tuple for speed: one is made for every line of the board.

    Attributes:
        boot_ms: CLOCK_BOOTTIME, milliseconds; never set back, goes on while suspended.
        wall_ms: Milliseconds since 1970 in UTC, whatever it is worth.
        status: What it is worth: `S`, `I` or `R`.
        error_ms: The kernel's bound on the error of `wall_ms`, rounded up; 0 where the settings
            say to trust it, `ERROR_MS_MAX` (meaning: at least) where nobody vouches for it.
    """

    boot_ms: int
    wall_ms: int
    status: str
    error_ms: int


class Clock(Protocol):
    """Where stamps come from."""

    @property
    def boot_id(self) -> bytes:
        """16 bytes that no other boot has: boot times compare only under one id."""
        ...

    def stamp(self) -> Stamp:
        """Return the present instant."""
        ...


def judge_kernel(
    status_bits: int, maxerror_us: int, *, wall_ms: int, rtc_set: bool
) -> tuple[str, int]:
    """Return the status and error (ms) that the kernel's answer to adjtimex(2) is worth.

    STA_UNSYNC decides alone: the kernel sets it at boot, at every step made by hand, and when
    nothing has disciplined the clock for so long that `maxerror_us` reached 16 s. (timedatectl
    looks at the error only; a daemon that keeps the bit set on purpose then counts as
    synchronised. A meter takes the narrower reading.)

    Args:
        status_bits: `status` of struct timex.
        maxerror_us: `maxerror` of struct timex, microseconds.
        wall_ms: The wall time in question; before `BUILD_S` no clock chip is believed, since an
            empty battery starts it at 1970 or 2000.
        rtc_set: A clock chip set the wall clock at boot.
    """
    if not status_bits & _STA_UNSYNC:
        return "S", min(max(-(-maxerror_us // 1000), 0), ERROR_MS_MAX)
    if rtc_set and wall_ms >= BUILD_S * 1000:
        return "I", ERROR_MS_MAX
    return "R", ERROR_MS_MAX


def rtc_set_clock(rtcs: Path = _RTCS) -> bool:
    """Return whether a clock chip set the system's time at boot, as a Pi 5's own does.

    The kernel says so in `hctosys` of one of the devices in `rtcs` (Documentation/ABI/testing/
    sysfs-class-rtc); without a chip there is no such file.
    """
    return any(path.read_text().strip() == "1" for path in rtcs.glob("rtc*/hctosys"))


def read_boot_id(path: Path = _BOOT_ID) -> bytes:
    """Return the 16 bytes that the kernel drew for this boot."""
    return bytes.fromhex(path.read_text().strip().replace("-", ""))


class SystemClock:
    """The kernel's clocks.

    A stamp costs about 1 us; once a second, and at once when the wall clock steps, it also asks
    the kernel whether the clock is synchronised.
    """

    def __init__(self, trust: str) -> None:
        """Take `always` to call the wall clock synchronised whatever the kernel says.

        Raises:
            DeniedError: A sandbox forbids the question. Without an answer nothing would ever be
                placed, so this is said at start and not after days of samples.
        """
        self.boot_id = read_boot_id()
        self._status, self._error_ms = "S", 0
        self._asks = trust != "always"
        self._stale_at_ns = 0
        self._offset_ns = 0
        if self._asks:
            self._rtc_set = rtc_set_clock()
            self._timex = _Timex()
            self._adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
            self.stamp()

    def stamp(self) -> Stamp:
        """Return the present instant.

        Raises:
            DeniedError: The kernel no longer answers.
        """
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall_ns = time.time_ns()
        if self._asks and (
            boot_ns >= self._stale_at_ns
            or not -STEP_NS < wall_ns - boot_ns - self._offset_ns < STEP_NS
        ):
            self._ask(wall_ns // 1_000_000)
            self._stale_at_ns = boot_ns + STALE_NS
            self._offset_ns = wall_ns - boot_ns
        return Stamp(boot_ns // 1_000_000, wall_ns // 1_000_000, self._status, self._error_ms)

    def _ask(self, wall_ms: int) -> None:
        self._timex.modes = 0  # read only; the C library hands the structure back changed
        if self._adjtimex(ctypes.byref(self._timex)) < 0:
            reason = os.strerror(ctypes.get_errno())
            raise DeniedError(
                f"the kernel does not say whether the clock is synchronised (adjtimex: {reason})",
                hint="allow the calls adjtimex and clock_adjtime in the unit's SystemCallFilter,"
                " and leave ProtectClock off, which forbids them",
            )
        self._status, self._error_ms = judge_kernel(
            self._timex.status, self._timex.maxerror_us, wall_ms=wall_ms, rtc_set=self._rtc_set
        )


class ScaledClock:
    """A clock for demo networks: both times start at a chosen instant and run faster.

    Every one that is made is a boot of its own, so no account can mix its times with another's.
    """

    def __init__(
        self, speed: int, epoch_ms: int, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """Start the wall at `epoch_ms` and the boot clock at 0, `speed` seconds a second."""
        self._speed = speed
        self._epoch_ms = epoch_ms
        self._now_ns = now_ns
        self._start_ns = now_ns()
        origin = f"meterd/scaled-clock {speed} {epoch_ms} {self._start_ns}".encode()
        self.boot_id = sha256(origin + read_boot_id()).digest()[:16]

    def stamp(self) -> Stamp:
        """Return the present instant of the scaled world."""
        boot_ms = (self._now_ns() - self._start_ns) * self._speed // 1_000_000
        return Stamp(boot_ms, self._epoch_ms + boot_ms, "S", 0)


class _Timex(ctypes.Structure):
    """The head of struct timex (adjtimex(2)), with room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("maxerror_us", ctypes.c_long),
        ("esterror_us", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),  # 208 bytes in all on 64-bit Linux; more does no harm
    )
