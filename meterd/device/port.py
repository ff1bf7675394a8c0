"""The serial port of the clamp board: bytes in, each piece stamped as it arrives.

The first opening has to succeed; each way it can fail is an error of its own, with what to do.
From then on no loss of the port is fatal: it is reported, and the path is opened again for as
long as it takes. What the bytes mean, a wrong baud rate included, is the decoder's business.

>>> error = opening_failed("/dev/ttyUSB3", errno.ENOENT, present=["/dev/ttyAMA0"])
>>> print(f"{error}; {error.hint}")
no such port: /dev/ttyUSB3; set `port` in [board] to one that is there: /dev/ttyAMA0
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import importlib
import os
import termios
import tty
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import serial

from meterd.errors import AbsentError, BusyError, DeniedError, MeterdError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meterd.device.clock import Clock, Stamp

BAUD = 38_400  # what every RPICT board speaks, as 8N1
READ_BYTES_MAX = 4096  # the kernel's own buffer of a terminal: one read empties it
LEFT_BYTES_MAX = 1 << 17  # read at the end; the kernel keeps half of that before it blocks a pty
RESET_S = 0.5  # the board's reset line has to be low for this long
# A cable put back is in use at once; one that stays out costs a failed open every half minute.
BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# Where boards are found. Not serial0: on a Pi 5 that is the debug header.
CANDIDATES = ("ttyAMA[0-9]", "ttyUSB*", "ttyACM*", "ttyS0")
SILENCE_HINT = "check that the cable sits, the board has power, and it is set to 38400 baud"
PTY_MAJORS = range(136, 144)  # the slaves' side (admin-guide/devices.txt of the kernel)

_ABSENT = frozenset((errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR, errno.ELOOP))
_NO_PORT = frozenset((errno.ENOTTY, errno.EISDIR, errno.EINVAL, errno.EIO))
_DENIED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
_BUSY = frozenset((errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK))


async def read_board(
    port: str,
    deliver: Callable[[bytes, Stamp], None],
    report: Callable[[str, dict[str, str]], None],
    *,
    clock: Clock,
    silence_s: float,
    opened: Callable[[], None],
    reset_gpio: int | None = None,
    backoff_s: Sequence[float] = BACKOFF_S,
) -> NoReturn:
    """Read the board for ever.

    The callbacks are called on the event loop and must not block; what one raises ends the
    reading and is raised here. When cancelled it first delivers all that has already come.

    Args:
        port: Path of the serial port; a symlink is followed anew at each opening.
        deliver: Takes what one read returned, never empty, and the instant right after that read.
        report: Takes an event's name and fields: `port_opened`, `port_lost`, `port_waiting` (it
            does not open again, for a reason not told yet), `port_silent` (once for each
            silence), `port_speaks`.
        clock: Stamps the data.
        silence_s: Real seconds without a byte after which the board counts as silent. That is
            reported and waited out: the board may be unplugged, or starting.
        opened: Called after each opening, before any data of it: what came before is torn off.
        reset_gpio: BCM number of the GPIO on the board's reset line. The board is reset when the
            reading begins, and once at each silence.
        backoff_s: Seconds to wait before each attempt to open a lost port; the last one repeats.

    Raises:
        AbsentError: At the first opening: no such port, or the package for `reset_gpio` is
            missing.
        DeniedError: At the first opening: permissions of the port.
        BusyError: At the first opening: another program holds the port.
        StorageError: At the first opening: the port fails in another way.
    """
    line = open_port(port)
    reader = _Reader(deliver, report, clock, silence_s)
    try:
        if reset_gpio is not None:
            await reset_board(reset_gpio)
        while True:
            opened()
            report("port_opened", {"port": port})
            reason = await reader.read_until_lost(line.fileno(), port, reset_gpio)
            _close(line)
            report("port_lost", {"port": port, "reason": reason, "hint": "check the cable"})
            line = await _open_again(port, report, backoff_s)
    finally:
        _close(line)


def open_port(port: str) -> serial.Serial:
    """Return the port, raw at 38400 8N1, non-blocking, locked against other programs.

    flock (which pyserial takes) keeps out programs that ask for it; TIOCEXCL keeps out all but
    root's. What the port had received before is dropped.

    Raises:
        AbsentError: There is no such port, or it is no serial port.
        DeniedError: Permissions of the port.
        BusyError: Another program holds it.
        StorageError: It fails in another way.
    """
    try:
        line = serial.Serial(port, BAUD, timeout=0, exclusive=True)
    except (OSError, termios.error) as error:
        raise opening_failed(port, _number(error), _present()) from error
    try:
        # pyserial leaves BRKINT as a login on this line may have set it, and asks for VMIN 0: an
        # empty read would then mean "nothing yet" as well as "hung up".
        tty.setraw(line.fileno(), termios.TCSANOW)
        if os.major(os.fstat(line.fileno()).st_rdev) not in PTY_MAJORS:
            # A pty keeps the mark after a killed holder, and would then lock out its next start.
            fcntl.ioctl(line.fileno(), termios.TIOCEXCL)
    except (OSError, termios.error) as error:
        line.close()
        raise opening_failed(port, _number(error), _present()) from error
    return line


def opening_failed(port: str, number: int, present: Sequence[str]) -> MeterdError:
    """Return the error to raise for a port that did not open.

    Args:
        port: The port's path.
        number: The system's errno; 0 where it is not known.
        present: Ports that there are.
    """
    reason = os.strerror(number) if number else "unknown reason"
    if number in _ABSENT or number in _NO_PORT:
        elsewhere = [other for other in present if other != port]
        return AbsentError(
            f"no such port: {port}"
            if number in _ABSENT
            else f"no serial port behind {port} ({reason.lower()})",
            hint=f"set `port` in [board] to one that is there: {' '.join(elsewhere)}"
            if elsewhere
            else "plug the board in; for one on the GPIO header enable the UART in"
            " /boot/firmware/config.txt (dtoverlay=disable-bt on a Pi 3 or 4,"
            " dtoverlay=uart0-pi5 on a Pi 5) and reboot",
        )
    if number in _DENIED:
        return DeniedError(
            f"not allowed to open {port} ({reason.lower()})",
            hint=f"add this user to the group of {port} (`sudo usermod -aG dialout USER`) and log"
            ' in again, or give it the port by a udev rule (OWNER="USER")',
        )
    if number in _BUSY:
        return BusyError(
            f"another program holds {port}",
            hint=f"find it with `sudo fuser -v {port}`; a login console on the port goes with"
            " `sudo raspi-config nonint do_serial_cons 1`",
        )
    return StorageError(
        f"{port} does not open ({reason.lower()})", hint="look for the port in `dmesg`"
    )


async def reset_board(gpio: int) -> None:
    """Hold the board's reset line low for half a second, then let go of it.

    Letting go turns the GPIO into an input; the board pulls its own line up.

    Raises:
        AbsentError: gpiozero, or a library below it that reaches this machine's GPIO, is missing.
    """
    try:
        gpiozero = importlib.import_module("gpiozero")
    except ImportError as error:
        raise AbsentError(
            f"`reset_gpio` = {gpio} needs gpiozero, which is not installed",
            hint="install the extra `meterd[gpio]` or python3-gpiozero, or take `reset_gpio` out",
        ) from error
    try:
        line = gpiozero.OutputDevice(gpio, initial_value=False)
    except gpiozero.GPIOZeroError as error:
        raise AbsentError(
            f"GPIO {gpio} cannot be used to reset the board ({error})",
            hint="on a Pi install python3-lgpio; elsewhere take `reset_gpio` out of [board]",
        ) from error
    try:
        await asyncio.sleep(RESET_S)
    finally:
        line.close()


class _Reader:
    """Reads an open port on the event loop, and knows across openings whether it is silent."""

    def __init__(
        self,
        deliver: Callable[[bytes, Stamp], None],
        report: Callable[[str, dict[str, str]], None],
        clock: Clock,
        silence_s: float,
    ) -> None:
        self._deliver = deliver
        self._report = report
        self._clock = clock
        self._silence_s = silence_s
        self._silent = False
        self._heard_s = 0.0

    async def read_until_lost(self, fd: int, port: str, reset_gpio: int | None) -> str:
        """Return why the port was lost, once it is."""
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[str] = loop.create_future()
        self._heard_s = loop.time()
        loop.add_reader(fd, self._read, fd, port, lost)
        try:
            while not lost.done():
                wait_s = self._silence_s
                if not self._silent:
                    wait_s += self._heard_s - loop.time()
                if wait_s > 0:
                    await asyncio.wait((lost,), timeout=wait_s)
                    continue
                self._silent = True
                self._report("port_silent", {"port": port, "hint": SILENCE_HINT})
                if reset_gpio is not None:
                    await reset_board(reset_gpio)
            return lost.result()
        except asyncio.CancelledError:
            for _ in range(LEFT_BYTES_MAX // READ_BYTES_MAX):  # a board that floods us has no end
                if not self._read(fd, port, lost):
                    break
            raise
        finally:
            loop.remove_reader(fd)

    def _read(self, fd: int, port: str, lost: asyncio.Future[str]) -> bool:
        """Deliver what one read returns; return whether it returned anything."""
        if lost.done():
            return False
        try:
            try:
                data = os.read(fd, READ_BYTES_MAX)
            except BlockingIOError:
                return False
            except OSError as error:
                lost.set_result((error.strerror or str(error)).lower())
                return False
            stamp = self._clock.stamp()
            if not data:
                lost.set_result("hung up")
                return False
            self._heard_s = asyncio.get_running_loop().time()
            if self._silent:
                self._silent = False
                self._report("port_speaks", {"port": port})
            self._deliver(data, stamp)
        except Exception as error:  # noqa: BLE001 - the loop would only log it; the task raises it
            lost.set_exception(error)
            return False
        return True


async def _open_again(
    port: str, report: Callable[[str, dict[str, str]], None], backoff_s: Sequence[float]
) -> serial.Serial:
    told = ""
    for wait_s in chain(backoff_s, repeat(backoff_s[-1])):
        await asyncio.sleep(wait_s)
        try:
            return open_port(port)
        except MeterdError as error:
            if str(error) != told:
                told = str(error)
                report("port_waiting", {"port": port, "reason": told, "hint": error.hint})
    raise AssertionError  # the last wait repeats for ever


def _close(line: serial.Serial) -> None:
    with suppress(OSError):  # a device that is gone may fail this too; the descriptor is freed
        line.close()


def _number(error: BaseException) -> int:
    """Return the errno of what pyserial raised; where it hid it, of what it had caught."""
    if isinstance(error, termios.error):
        return int(error.args[0])
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return _number(error.__context__) if error.__context__ else 0


def _present() -> list[str]:
    return [str(path) for pattern in CANDIDATES for path in sorted(Path("/dev").glob(pattern))]
