from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import sys
import termios
import threading
import types
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import serial

from meterd.device import port as port_module
from meterd.device.clock import Stamp, SystemClock
from meterd.device.port import BACKOFF_S, open_port, opening_failed, read_board, reset_board
from meterd.errors import AbsentError, BusyError, DeniedError, MeterdError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

LINE = b"11 374.0 0.0 0.0 1600.0 0.0 0.0 243.87\r\n"
PATIENCE_S = 20.0  # only a failing test waits this long
TIOCGEXCL = 0x80045440


class Board:
    """The master's side of a pty, behind a symlink as udev or `meterd board` makes one."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.plug_in()

    def plug_in(self) -> None:
        self.master, slave = os.openpty()
        self.slave = os.ttyname(slave)
        os.close(slave)
        self.link.symlink_to(self.slave)

    def unplug(self) -> None:
        self.link.unlink(missing_ok=True)
        os.close(self.master)
        self.master = -1

    def say(self, data: bytes) -> None:
        assert os.write(self.master, data) == len(data)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "ttyRPICT")
    yield made
    if made.master >= 0:
        os.close(made.master)


class Watcher:
    """Whatever the reader calls, in order."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.stamps: list[Stamp] = []
        self.fields: dict[str, dict[str, str]] = {}

    def deliver(self, data: bytes, stamp: Stamp) -> None:
        self.stamps.append(stamp)
        self.seen.put_nowait(("data", data))

    def report(self, event: str, fields: dict[str, str]) -> None:
        self.fields[event] = fields
        self.seen.put_nowait((event, fields.get("reason")))

    def opened(self) -> None:
        self.seen.put_nowait(("opened", None))

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.seen.get()

    async def names(self, count: int) -> list[str]:
        return [(await self.next())[0] for _ in range(count)]

    async def data(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            name, more = await self.next()
            assert name == "data"
            data += more
        return data


@asynccontextmanager
async def reading(
    board: Board,
    *,
    silence_s: float = 600.0,
    **more: Any,  # noqa: ANN401 - read_board's own
) -> AsyncIterator[tuple[Watcher, asyncio.Task[None]]]:
    watcher = Watcher()
    task: asyncio.Task[None] = asyncio.create_task(
        read_board(
            str(board.link),
            more.pop("deliver", watcher.deliver),
            more.pop("report", watcher.report),
            clock=SystemClock("always"),
            silence_s=silence_s,
            opened=watcher.opened,
            backoff_s=more.pop("backoff_s", (0.0,)),
            **more,
        )
    )
    try:
        yield watcher, task
    finally:
        task.cancel()
        await asyncio.wait((task,))


def scenario(test: Callable[[Board], Coroutine[Any, Any, None]]) -> Callable[[Board], None]:
    def run(board: Board) -> None:
        asyncio.run(test(board))

    run.__name__ = test.__name__
    return run


@scenario
async def test_bytes_arrive_as_they_were_sent(board: Board) -> None:
    every = bytes(range(256)) + b"\r\n\x03\x04\x11\x13\x7f"  # all that a cooked line would eat
    async with reading(board) as (watcher, _):
        assert await watcher.names(2) == ["opened", "port_opened"]
        board.say(every)
        assert await watcher.data(len(every)) == every


@scenario
async def test_each_piece_is_stamped_between_its_writing_and_its_delivery(board: Board) -> None:
    clock = SystemClock("always")
    async with reading(board) as (watcher, _):
        await watcher.names(2)
        for _ in range(3):
            before = clock.stamp()
            board.say(LINE)
            assert await watcher.data(len(LINE)) == LINE
            assert before.boot_ms <= watcher.stamps[-1].boot_ms <= clock.stamp().boot_ms


@scenario
async def test_a_fast_board_loses_nothing(board: Board) -> None:
    lines = b"".join(b"11 %d.0 0.0 0.0\r\n" % number for number in range(5_000))
    async with reading(board) as (watcher, _):
        await watcher.names(2)
        writer = threading.Thread(target=_write_all, args=(board.master, lines))
        writer.start()
        assert await watcher.data(len(lines)) == lines
        writer.join(PATIENCE_S)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@scenario
async def test_a_commit_that_stalls_in_a_thread_delays_no_line(board: Board) -> None:
    card_is_back = threading.Event()
    async with reading(board) as (watcher, _):
        await watcher.names(2)
        commit = asyncio.create_task(asyncio.to_thread(card_is_back.wait, PATIENCE_S))
        board.say(LINE)
        assert await watcher.data(len(LINE)) == LINE
        assert not commit.done()
        card_is_back.set()
        assert await commit


@scenario
async def test_a_pulled_cable_is_waited_out_and_the_path_opened_anew(board: Board) -> None:
    async with reading(board) as (watcher, task):
        await watcher.names(2)
        first = board.slave
        board.unplug()
        assert await watcher.next() == ("port_lost", "hung up")
        assert await watcher.next() == ("port_waiting", f"no such port: {board.link}")
        keep, spare = os.openpty()  # so that the kernel cannot give the same number again
        board.plug_in()
        assert board.slave != first
        assert await watcher.names(2) == ["opened", "port_opened"]
        board.say(LINE)
        assert await watcher.data(len(LINE)) == LINE
        assert not task.done()
        os.close(keep)
        os.close(spare)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENODEV, errno.ENXIO])
def test_a_port_is_lost_by(board: Board, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real_read = os.read

    def broken_read(_fd: int, _size: int) -> bytes:
        monkeypatch.setattr(os, "read", real_read)
        raise OSError(number, os.strerror(number))

    async def lose() -> None:
        async with reading(board) as (watcher, _):
            await watcher.names(2)
            monkeypatch.setattr(os, "read", broken_read)
            board.say(LINE)
            assert await watcher.next() == ("port_lost", os.strerror(number).lower())
            assert await watcher.names(2) == ["opened", "port_opened"]

    asyncio.run(lose())


def test_a_port_that_cannot_even_be_closed_is_opened_anew(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = serial.Serial.close

    def failing_close(line: serial.Serial) -> None:
        close(line)
        monkeypatch.setattr(serial.Serial, "close", close)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def lose() -> None:
        async with reading(board) as (watcher, _):
            await watcher.names(2)
            monkeypatch.setattr(serial.Serial, "close", failing_close)
            board.unplug()
            assert await watcher.names(2) == ["port_lost", "port_waiting"]
            board.plug_in()
            assert await watcher.names(2) == ["opened", "port_opened"]

    asyncio.run(lose())


def test_a_lost_port_tells_each_reason_for_waiting_once(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = asyncio.Semaphore(0)

    def counted(port: str) -> Any:  # noqa: ANN401 - pyserial's port
        attempts.release()
        return open_port(port)

    async def lose(watcher: Watcher) -> None:
        await watcher.names(2)
        monkeypatch.setattr(port_module, "open_port", counted)
        board.unplug()
        assert await watcher.names(2) == ["port_lost", "port_waiting"]
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(5):
                await attempts.acquire()
        assert watcher.seen.empty()
        board.link.write_text("no port")
        name, reason = await watcher.next()
        assert name == "port_waiting"
        assert reason.startswith("no serial port behind")
        board.link.unlink()
        assert await watcher.next() == ("port_waiting", f"no such port: {board.link}")
        board.plug_in()
        assert await watcher.names(2) == ["opened", "port_opened"]

    async def run() -> None:
        async with reading(board, backoff_s=(0.0, 0.001)) as (watcher, _):
            await lose(watcher)

    asyncio.run(run())


def test_the_wait_doubles_from_half_a_second_to_half_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)
        if len(waits) == 9:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def wait() -> None:
        with pytest.raises(asyncio.CancelledError):
            await port_module._open_again("/nonexistent", lambda _event, _fields: None, BACKOFF_S)

    asyncio.run(wait())
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_silence_is_told_once_and_its_end_too(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = asyncio.Semaphore(0)
    real_wait = asyncio.wait

    async def counting_wait(*tasks: Any, **more: Any) -> Any:  # noqa: ANN401 - asyncio's own
        result = await real_wait(*tasks, **more)
        waited.release()
        return result

    async def be_silent() -> None:
        async with reading(board, silence_s=0.01) as (watcher, task):
            await watcher.names(2)
            for _ in range(2):
                assert (await watcher.next())[0] == "port_silent"
                monkeypatch.setattr(asyncio, "wait", counting_wait)
                async with asyncio.timeout(PATIENCE_S):
                    for _ in range(5):  # silences as long as the first
                        await waited.acquire()
                monkeypatch.setattr(asyncio, "wait", real_wait)
                assert watcher.seen.empty()
                board.say(LINE)
                assert (await watcher.next())[0] == "port_speaks"
                assert await watcher.data(len(LINE)) == LINE
            assert "38400" in watcher.fields["port_silent"]["hint"]
            assert not task.done()

    asyncio.run(be_silent())


@scenario
async def test_a_silence_that_a_new_cable_ends_is_told_to_have_ended(board: Board) -> None:
    async with reading(board, silence_s=0.02) as (watcher, _):
        assert await watcher.names(3) == ["opened", "port_opened", "port_silent"]
        board.unplug()
        assert await watcher.names(2) == ["port_lost", "port_waiting"]
        board.plug_in()
        assert await watcher.names(2) == ["opened", "port_opened"]
        board.say(LINE)
        assert await watcher.names(2) == ["port_speaks", "data"]


@scenario
async def test_what_a_callback_raises_ends_the_reading(board: Board) -> None:
    def refuse(_data: bytes, _stamp: Stamp) -> None:
        raise StorageError("the card is full")

    async with reading(board, deliver=refuse) as (watcher, task):
        await watcher.names(2)
        board.say(LINE)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(StorageError, match="the card is full"):
                await task


@pytest.mark.parametrize(
    ("number", "kind", "code", "message", "hint"),
    [
        (errno.ENOENT, AbsentError, 69, "no such port: /dev/ttyX", "/dev/ttyAMA0 /dev/ttyUSB1"),
        (errno.ENODEV, AbsentError, 69, "no such port", "/dev/ttyAMA0"),
        (errno.ENXIO, AbsentError, 69, "no such port", "/dev/ttyAMA0"),
        (errno.EIO, AbsentError, 69, "no serial port behind /dev/ttyX", "/dev/ttyAMA0"),
        (errno.ENOTTY, AbsentError, 69, "no serial port behind /dev/ttyX", "/dev/ttyAMA0"),
        (errno.EACCES, DeniedError, 77, "not allowed to open /dev/ttyX", "usermod -aG dialout"),
        (errno.EPERM, DeniedError, 77, "not allowed to open /dev/ttyX", "udev"),
        (errno.EBUSY, BusyError, 75, "another program holds /dev/ttyX", "fuser -v /dev/ttyX"),
        (errno.EAGAIN, BusyError, 75, "another program holds /dev/ttyX", "fuser -v /dev/ttyX"),
        (errno.ENOMEM, StorageError, 74, "does not open (cannot allocate memory)", "dmesg"),
        (0, StorageError, 74, "/dev/ttyX does not open (unknown reason)", "dmesg"),
    ],
)
def test_a_port_that_does_not_open_is(
    number: int, kind: type[MeterdError], code: int, message: str, hint: str
) -> None:
    error = opening_failed("/dev/ttyX", number, ["/dev/ttyAMA0", "/dev/ttyUSB1"])
    assert type(error) is kind
    assert error.exit_code == code
    assert message in str(error)
    assert hint in error.hint


def test_without_any_port_the_hint_is_how_to_get_one() -> None:
    hint = opening_failed("/dev/ttyAMA0", errno.ENOENT, []).hint
    assert "/boot/firmware/config.txt" in hint
    assert opening_failed("/dev/ttyS0", errno.EIO, ["/dev/ttyS0"]).hint == hint


def test_a_missing_port_ends_the_first_opening(tmp_path: Path) -> None:
    async def read() -> None:
        await read_board(
            str(tmp_path / "ttyUSB9"),
            lambda _data, _stamp: None,
            lambda _event, _fields: None,
            clock=SystemClock("always"),
            silence_s=1.0,
            opened=lambda: None,
        )

    with pytest.raises(AbsentError, match=r"no such port: .*ttyUSB9"):
        asyncio.run(read())


def test_a_file_is_no_port(tmp_path: Path) -> None:
    (tmp_path / "capture").write_bytes(LINE)
    with pytest.raises(AbsentError, match=r"no serial port behind .*\(inappropriate ioctl"):
        open_port(str(tmp_path / "capture"))


def test_a_port_that_is_open_elsewhere_is_busy(board: Board) -> None:
    line = open_port(str(board.link))
    try:
        with pytest.raises(BusyError, match="another program holds"):
            open_port(str(board.link))
    finally:
        line.close()
    open_port(str(board.link)).close()


@pytest.mark.parametrize(("majors", "marked"), [(range(0), 1), (range(136, 144), 0)])
def test_a_real_port_is_marked_exclusive_and_a_pty_is_not(
    board: Board, monkeypatch: pytest.MonkeyPatch, majors: range, marked: int
) -> None:
    monkeypatch.setattr(port_module, "PTY_MAJORS", majors)
    line = open_port(str(board.link))
    try:
        answer = fcntl.ioctl(line.fileno(), TIOCGEXCL, b"\0\0\0\0")
    finally:
        line.close()
    assert struct.unpack("i", answer) == (marked,)


def test_the_port_is_raw_at_38400_whatever_a_login_left(board: Board) -> None:
    slave = os.open(board.slave, os.O_RDWR | os.O_NOCTTY)
    settings = termios.tcgetattr(slave)
    settings[0] |= termios.BRKINT | termios.ISTRIP | termios.IXON | termios.ICRNL
    settings[4] = settings[5] = termios.B9600
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    line = open_port(str(board.link))
    iflag, oflag, cflag, lflag, ispeed, ospeed, _ = termios.tcgetattr(slave)
    with pytest.raises(BlockingIOError):  # and not b"", which means hung up
        os.read(line.fileno(), 1)
    line.close()
    os.close(slave)
    assert not iflag & (termios.BRKINT | termios.ISTRIP | termios.IXON | termios.ICRNL)
    assert not oflag & termios.OPOST
    assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert cflag & termios.CSIZE == termios.CS8
    assert not cflag & (termios.PARENB | termios.CSTOPB)
    assert (ispeed, ospeed) == (termios.B38400, termios.B38400)


@contextmanager
def nobody() -> Iterator[None]:
    """Drop root's rights for a while, where there are any."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_port_of_somebody_else_is_denied(board: Board) -> None:
    Path(board.slave).chmod(0)
    with nobody(), pytest.raises(DeniedError, match="not allowed to open"):
        open_port(board.slave)


class FakeGpio(types.ModuleType):
    """As much of gpiozero as a reset needs."""

    class GPIOZeroError(Exception):
        pass

    def __init__(self, *, usable: bool = True) -> None:
        super().__init__("gpiozero")
        self.done: list[str] = []
        outer = self

        class OutputDevice:
            def __init__(self, pin: int, *, initial_value: bool) -> None:
                if not usable:
                    raise FakeGpio.GPIOZeroError("no pin factory")
                outer.done.append(f"{pin} {'high' if initial_value else 'low'}")

            def close(self) -> None:
                outer.done.append("input")

        self.OutputDevice = OutputDevice


def test_the_board_is_reset_at_the_start_and_at_each_silence(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpio = FakeGpio()
    monkeypatch.setitem(sys.modules, "gpiozero", gpio)
    monkeypatch.setattr(port_module, "RESET_S", 0.001)

    async def reset() -> None:
        async with reading(board, silence_s=0.02, reset_gpio=4) as (watcher, _):
            assert await watcher.names(2) == ["opened", "port_opened"]
            assert gpio.done == ["4 low", "input"]
            assert await watcher.names(1) == ["port_silent"]
            board.say(LINE)
            assert await watcher.names(3) == ["port_speaks", "data", "port_silent"]
            assert gpio.done[:4] == ["4 low", "input"] * 2

    asyncio.run(reset())


def test_the_reset_line_is_let_go_even_when_the_meter_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpio = FakeGpio()
    monkeypatch.setitem(sys.modules, "gpiozero", gpio)

    async def stop() -> None:
        task = asyncio.create_task(reset_board(17))
        await asyncio.wait((task,), timeout=0)
        task.cancel()
        await asyncio.wait((task,))

    asyncio.run(stop())
    assert gpio.done == ["17 low", "input"]


@pytest.mark.parametrize(
    ("module", "message", "hint"),
    [
        pytest.param(None, "needs gpiozero", "meterd[gpio]", id="gpiozero"),
        pytest.param(FakeGpio(usable=False), "no pin factory", "python3-lgpio", id="a driver"),
    ],
)
def test_a_reset_says_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch, module: FakeGpio | None, message: str, hint: str
) -> None:
    monkeypatch.setitem(sys.modules, "gpiozero", module)
    with pytest.raises(AbsentError, match=message) as caught:
        asyncio.run(reset_board(4))
    assert hint in caught.value.hint
