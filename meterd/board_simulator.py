"""A clamp board that is not there: `meterd board` plays a household on a pseudo terminal.

What it says is worked out in `board_lines`; this only keeps the time and moves the bytes. As a real
board does, it talks to nobody when nobody listens; a reader that is slow is waited for, so that no
byte is lost on the way.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import select
import signal
import struct
import sys
import termios
import time
import tty
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.board_lines import Board, Fault, Spoken, format_line, lines, parse_fault
from meterd.errors import UsageError
from meterd.household import DAY_S, Load, Moment, local_ms, read_recording, synthetic_household
from meterd.metering.layout import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["add_arguments", "format_line", "lines", "run"]

DRAIN_S_MAX = 5.0  # how long the last lines wait for a reader that does not read on
LISTENER_POLL_S = 0.02  # a terminal tells that somebody opened it only to who looks
LISTENER_SETTLES_S = 0.2  # who has just opened a port throws away what is in it already

EPILOG = """\
faults: KIND@SECONDS[+LASTING], in the household's time since the start; may be repeated
  of one line   nan, err, banner (a reset: text and binary), garbage, partial, duplicate
  for a while   silence 60, wrong-baud 60, unplug 10, frozen 600, adaptor-out 600 seconds
  to the end    reversed (the mains clamp), fast (half the polling)
  with +LASTING a fault of one line hits every line so long

examples:
  meterd board --link /tmp/board
      the model household in real time, from now on
  meterd board --csv household.csv.gz --link /tmp/board --speed 600 --once
      a recording, an hour of it in 6 s; columns timestamp,voltage_v,current_a,active_power_w
  meterd board --csv year.csv.gz --household ausgrid12 --link /tmp/board --start 2011-12-24T00:00:00
      one of several; columns household,timestamp,consumption_kwh,generation_kwh
  meterd board --link /tmp/board --speed 60 --fault adaptor-out@3600+600 --fault unplug@7200
      an adaptor that falls out after an hour, a cable that is pulled after another
  meterd board --link /tmp/board --flood --count 100000
      as fast as the reader reads
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `meterd board` can be told, with examples below the help."""
    parser.description = "Play a household as a simulated RPICT3 clamp board on a pseudo terminal."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    played = parser.add_argument_group("what is played")
    played.add_argument(
        "--csv", type=Path, metavar="FILE", help="a recording, plain or .gz (default: the model)"
    )
    played.add_argument("--household", metavar="NAME", help="which one, in a CSV of several")
    played.add_argument(
        "--start",
        metavar="WHEN",
        help="local time YYYY-MM-DDTHH:MM:SS, or seconds past the recording's start, or past now",
    )
    played.add_argument("--days", type=_positive, metavar="N", help="end after N days of its time")
    played.add_argument("--count", type=_count, metavar="N", help="end after N lines")
    repeat = played.add_mutually_exclusive_group()
    repeat.add_argument("--once", action="store_true", help="end with the recording (the default)")
    repeat.add_argument("--loop", action="store_true", help="begin the recording again")
    played.add_argument(
        "--fault", type=_fault, action="append", default=[], metavar="KIND@SECONDS", help="below"
    )
    played.add_argument("--seed", type=int, default=1, help="of the model, noise and faults (1)")
    board = parser.add_argument_group("how the board is set")
    board.add_argument("--layout", choices=sorted(LAYOUTS), default="rpict3v1", help="(rpict3v1)")
    board.add_argument("--polling-ms", type=_count, default=5000, metavar="MS", help="(5000)")
    board.add_argument("--current-unit", choices=("mA", "A"), default="mA", help="(mA)")
    board.add_argument("--vest", type=_positive, default=240.0, help="of its EP fields (240)")
    board.add_argument("--noise-w", type=_positive, default=0.0, metavar="W", help="deviation (0)")
    board.add_argument("--node", type=int, default=11, help="its number (11)")
    board.add_argument("--commas", action="store_true", help="between the fields, not spaces")
    out = parser.add_argument_group("where it speaks")
    where = out.add_mutually_exclusive_group()
    where.add_argument("--link", type=Path, metavar="PATH", help="make a terminal, linked here")
    where.add_argument("--port", type=Path, metavar="PATH", help="a serial port that is there")
    pace = out.add_mutually_exclusive_group()
    pace.add_argument("--speed", type=_positive, default=1.0, metavar="N", help="times as fast (1)")
    pace.add_argument("--flood", action="store_true", help="as fast as the reader reads")
    out.add_argument("--wait", action="store_true", help="begin when somebody has opened it")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return value


def _fault(text: str) -> Fault:
    try:
        return parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def run(arguments: argparse.Namespace) -> int:
    """Play until the end, or until SIGTERM or SIGINT; return the exit status.

    Args:
        arguments: As `add_arguments` describes them.

    Raises:
        UsageError: They do not fit together, or the CSV file is no recording.
        OSError: A file, the terminal or the port cannot be opened.
    """
    load, start_ms, until_ms = _played(arguments)
    spoken = lines(
        load,
        Board(
            layout=arguments.layout,
            node=arguments.node,
            polling_ms=arguments.polling_ms,
            current_unit=arguments.current_unit,
            vest=arguments.vest,
            commas=arguments.commas,
            noise_w=arguments.noise_w,
            seed=arguments.seed,
        ),
        start_ms=start_ms,
        until_ms=until_ms,
        faults=arguments.fault,
    )
    said = [0, 0]  # to nobody, to somebody
    with _stop_signals() as stop_fd:
        wire = _Wire(arguments.port, arguments.link, stop_fd)
        try:
            wire.plug()
            start = datetime.fromtimestamp(start_ms / 1000, UTC).isoformat()[:19]
            pace = "as fast as it is read" if arguments.flood else f"{arguments.speed:g} x as fast"
            _say(
                f"plays {arguments.csv or 'the model household'} from {start}, a line of "
                f"{arguments.layout} every {arguments.polling_ms / 1000:g} s, {pace}, "
                f"at {arguments.link or wire.name}"
            )
            _play(spoken, wire, arguments, said)
            wire.drain()
        except _StoppedError:
            pass
        finally:
            wire.unplug()
    _say(f"{sum(said)} lines said, {said[0]} of them to nobody")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"meterd: board: {text}\n")
    sys.stderr.flush()


def _played(arguments: argparse.Namespace) -> tuple[Load, int, int | None]:
    """Return what is played, from when, and until when."""
    load: Load
    if arguments.csv is None:
        for name in ("household", "loop"):
            if getattr(arguments, name):
                raise UsageError(f"--{name} needs a recording", hint="name one with --csv")
        load = synthetic_household(arguments.seed)
        first_ms, end_ms = int(time.time()) * 1000, None
    else:
        recording = read_recording(arguments.csv, arguments.household)
        first_ms, end_ms = recording.start_ms, recording.end_ms
        load = recording
        if arguments.loop:
            span_ms, end_ms = recording.end_ms - first_ms, None

            def load(at_ms: int) -> Moment | None:
                return recording(first_ms + (at_ms - first_ms) % span_ms)

    start_ms = first_ms if arguments.start is None else _start_ms(arguments.start, first_ms)
    if arguments.csv is not None and not first_ms <= start_ms < (end_ms or start_ms + 1):
        raise UsageError(f"--start {arguments.start} is not within {arguments.csv}")
    if arguments.days is not None:
        days_end_ms = start_ms + round(arguments.days * DAY_S * 1000)
        end_ms = days_end_ms if end_ms is None else min(end_ms, days_end_ms)
    return load, start_ms, end_ms


def _start_ms(text: str, first_ms: int) -> int:
    with suppress(ValueError):
        return first_ms + round(float(text) * 1000)
    try:
        return local_ms(text)
    except ValueError as error:
        raise UsageError(
            f"--start {text} is no time", hint="write 2007-01-08T00:00:00, or a number of seconds"
        ) from error


def _play(
    spoken: Iterator[Spoken], wire: _Wire, arguments: argparse.Namespace, said: list[int]
) -> None:
    """Say each at its time; `said` counts, so that it is known when a signal ends this."""
    if arguments.wait or arguments.flood:
        wire.wait_for_listener()
    begun_s = time.monotonic()
    for at_ms, data, plugged in spoken:
        if not arguments.flood:
            due_s = begun_s + at_ms / 1000 / arguments.speed
            _wait(wire.stop_fd, due_s - time.monotonic())
        if not plugged:
            wire.unplug()
            continue
        wire.plug()
        heard = wire.send(data)
        said[heard] += 1
        if sum(said) == arguments.count:
            return
        if arguments.flood:
            if not heard:
                wire.wait_for_listener()
            _wait(wire.stop_fd, 0)


class _StoppedError(Exception):
    """A signal asks to end."""


class _Wire:
    """The board's end of the cable: the other end of a pseudo terminal, or a port that is there.

    Nothing is kept for a reader that is not there; one that is there is waited for.

    Attributes:
        name: Path of the terminal or port.
        stop_fd: Can be read when a signal asks to end.
    """

    def __init__(self, port: Path | None, link: Path | None, stop_fd: int) -> None:
        """Plug in at `port`, or make a terminal with `link` to it."""
        self._port = port
        self._link = link
        self.stop_fd = stop_fd
        self._fd = -1
        self._hangup = select.poll()
        self.name = ""

    def plug(self) -> None:
        """Make the terminal or open the port, unless that is done.

        Raises:
            UsageError: There is something else where the link should be.
            OSError: It cannot be made or opened.
        """
        if self._fd >= 0:
            return
        if self._port is not None:
            self._open_port(self._port)
        else:
            self._open_terminal()
        self._hangup = select.poll()
        self._hangup.register(self._fd, 0)  # nothing but POLLHUP, which is always told
        if self._link is not None:
            self._make_link(self._link)

    def _open_port(self, port: Path) -> None:
        self._fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.name = str(port)
        if os.isatty(self._fd):
            tty.setraw(self._fd)
            attributes = termios.tcgetattr(self._fd)
            attributes[4] = attributes[5] = termios.B38400
            termios.tcsetattr(self._fd, termios.TCSANOW, attributes)

    def _open_terminal(self) -> None:
        self._fd, reader_fd = os.openpty()
        try:
            tty.setraw(reader_fd)  # stays while our end is open, whoever opens and closes the other
            self.name = os.ttyname(reader_fd)
            os.set_blocking(self._fd, False)
        finally:
            os.close(reader_fd)

    def _make_link(self, link: Path) -> None:
        if os.path.lexists(link) and not link.is_symlink():
            self.unplug()
            raise UsageError(f"{link} is there already and is no link", hint="name another --link")
        fresh = link.with_name(f"{link.name}.{os.getpid()}")
        fresh.symlink_to(self.name)
        fresh.replace(link)

    def unplug(self) -> None:
        """Close it, and take away the link if it is still ours."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        link = self._link
        if link is not None and link.is_symlink() and link.readlink() == Path(self.name):
            link.unlink()

    def send(self, data: bytes) -> bool:
        """Send `data`, waiting while the reader is slow; return whether anybody listens."""
        with suppress(OSError):  # what the reader says, a board does not hear
            os.read(self._fd, 4096)
        while data:
            if self._is_alone():
                return False
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                self._wait_for_room()
            except OSError as error:
                if error.errno != errno.EIO:  # the reader went just now
                    raise
                return False
        return True

    def _is_alone(self) -> bool:
        """Return whether nobody has opened the terminal; it would keep what is written now."""
        return bool(self._hangup.poll(0))

    def _wait_for_room(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.register(self.stop_fd, select.POLLIN)
        if any(fd == self.stop_fd for fd, _ in poll.poll()):
            raise _StoppedError

    def wait_for_listener(self) -> None:
        """Wait until somebody has opened the terminal and set it."""
        while self._is_alone():
            _wait(self.stop_fd, LISTENER_POLL_S)
        _wait(self.stop_fd, LISTENER_SETTLES_S)

    def drain(self) -> None:
        """Wait until the reader has taken all: with our end closed the rest would be gone."""
        if self._port is not None or not self.name:
            return
        ends_s = time.monotonic() + DRAIN_S_MAX
        unread_before = -1
        empty_in_a_row = 0
        while empty_in_a_row < 3 and time.monotonic() < ends_s:  # noqa: PLR2004 (it moves in steps)
            unread = self._unread_bytes()
            if unread != unread_before:
                ends_s = time.monotonic() + DRAIN_S_MAX
            unread_before = unread
            empty_in_a_row = 0 if unread else empty_in_a_row + 1
            _wait(self.stop_fd, LISTENER_POLL_S)

    def _unread_bytes(self) -> int:
        if self._is_alone():
            return 0
        reader_fd = os.open(self.name, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            [unread] = struct.unpack("i", fcntl.ioctl(reader_fd, termios.FIONREAD, bytes(4)))
        finally:
            os.close(reader_fd)
        return int(unread)


def _wait(stop_fd: int, seconds: float) -> None:
    """Wait, unless a signal asks to end.

    Raises:
        _StoppedError: It does.
    """
    if select.select([stop_fd], [], [], max(seconds, 0))[0]:
        raise _StoppedError


@contextmanager
def _stop_signals() -> Iterator[int]:
    """Turn SIGTERM and SIGINT into a descriptor that can be read."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
    }
    wakeup_before = signal.set_wakeup_fd(write_fd)
    try:
        yield read_fd
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)
