from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import termios
import time
import tty
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from meterd import board_simulator
from meterd.board_lines import format_line
from meterd.errors import UsageError
from meterd.household import synthetic_household

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE_S = 30.0  # for what takes milliseconds; a busy machine is no failure
MINUTES = """timestamp,voltage_v,current_a,active_power_w
2007-01-08T00:00:00,230.0,1.0,100
2007-01-08T00:01:00,230.0,2.0,200
2007-01-08T00:02:00,230.0,3.0,300
"""
PROGRAM = """
import sys
from meterd import board_simulator, cli
parser = cli.Parser(prog="meterd board")
board_simulator.add_arguments(parser)
sys.exit(cli.run("meterd", lambda: board_simulator.run(parser.parse_args())))
"""


def parsed(*arguments: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    board_simulator.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def played(tmp_path: Path, *arguments: str) -> list[bytes]:
    """Return the lines that a recording of three minutes becomes on a port that is a file."""
    recording = tmp_path / "minutes.csv"
    recording.write_text(MINUTES)
    port = tmp_path / "port"
    port.write_bytes(b"")
    options = parsed("--flood", "--csv", recording, "--port", port, *arguments)
    assert board_simulator.run(options) == 0
    return port.read_bytes().splitlines()


class Reader:
    """Who has the terminal open, and waits for bytes no longer than the deadline."""

    def __init__(self, path: Path | str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self.fd)

    def read_lines(self, count: int) -> list[bytes]:
        """Return the next `count` lines, and all others that came with them."""
        data = b""
        ends_s = time.monotonic() + DEADLINE_S
        while data.count(b"\n") < count:
            data += self.read()
            assert time.monotonic() < ends_s, f"only {len(data)} bytes came"
        return data.splitlines()

    def read(self) -> bytes:
        ready, _, _ = select.select([self.fd], [], [], DEADLINE_S)
        assert ready, "no byte came"
        return os.read(self.fd, 65_536)

    def ends(self) -> bool:
        """Return whether the other end is closed within the deadline."""
        poll = select.poll()
        poll.register(self.fd, select.POLLHUP)
        return bool(poll.poll(DEADLINE_S * 1000))

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def stop() -> Iterator[tuple[int, int]]:
    """A descriptor that a signal would make readable, and the one to do so."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def wire(tmp_path: Path, stop: tuple[int, int]) -> Iterator[board_simulator._Wire]:
    wire = board_simulator._Wire(None, tmp_path / "board", stop[0])
    wire.plug()
    yield wire
    wire.unplug()


# What is played


def test_a_recording_is_played_from_its_start_to_its_end(tmp_path: Path) -> None:
    lines = played(tmp_path, "--polling-ms", "30000")

    assert lines == [
        b"11 %d.0 0.0 0.0 %d.0 0.0 0.0 230.00" % (power, 10 * power)
        for power in (100, 100, 200, 200, 300, 300)
    ]


@pytest.mark.parametrize(
    ("arguments", "powers"),
    [
        (["--start", "60"], [200, 300]),
        (["--start", "2007-01-08T00:02:00"], [300]),
        (["--count", "2"], [100, 200]),
        (["--days", "0.0007"], [100, 200]),
        (["--loop", "--count", "5"], [100, 200, 300, 100, 200]),
        (["--loop", "--days", "0.003"], [100, 200, 300, 100, 200]),
        (["--once", "--fault", "reversed@60"], [100, -200, -300]),
        (["--fault", "silence@60+60", "--fault", "reversed@120"], [100, -300]),
        (["--fault", "unplug@60+60"], [100, 300]),
    ],
)
def test_part_of_a_recording_is_played(
    tmp_path: Path, arguments: list[str], powers: list[int]
) -> None:
    lines = played(tmp_path, "--polling-ms", "60000", *arguments)
    assert [float(line.split()[1]) for line in lines] == powers


def test_the_board_is_set_by_options(tmp_path: Path) -> None:
    options = ["--layout", "rpict3t1", "--vest", "1", "--node", "7", "--commas", "--count", "1"]
    assert played(tmp_path, *options) == [b"7,1.0,0.0,0.0"]
    options = ["--current-unit", "A", "--noise-w", "5", "--seed", "4", "--count", "1"]
    [line] = played(tmp_path, *options)
    assert line.split()[4] == b"1.000"
    assert line.split()[1] != b"100.0"


def test_the_model_is_played_from_a_given_time(tmp_path: Path) -> None:
    port = tmp_path / "port"
    port.write_bytes(b"")
    begin = "2024-01-10T08:00:00"
    options = parsed("--port", port, "--flood", "--start", begin, "--days", "0.0001", "--seed", "5")

    assert board_simulator.run(options) == 0

    begin_ms = int(datetime(2024, 1, 10, 8, tzinfo=UTC).timestamp()) * 1000
    moments = [synthetic_household(5)(begin_ms + at_ms) for at_ms in (0, 5000)]
    assert port.read_bytes() == b"".join(
        format_line("rpict3v1", 11, moment.channels) for moment in moments if moment
    )


def test_the_model_is_played_from_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "port").write_bytes(b"")
    before = datetime.now(UTC).replace(microsecond=0)

    board_simulator.run(parsed("--port", tmp_path / "port", "--count", "1", "--layout", "rpict7v1"))

    begins, ends = capsys.readouterr().err.splitlines()
    start = datetime.fromisoformat(begins.partition(" from ")[2].partition(",")[0] + "+00:00")
    assert before <= start <= datetime.now(UTC)
    assert "a line of rpict7v1 every 5 s, 1 x as fast, at " in begins
    assert ends == "meterd: board: 1 lines said, 0 of them to nobody"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--household", "a"], "--household needs a recording"),
        (["--loop"], "--loop needs a recording"),
        (["--start", "soon"], "--start soon is no time"),
        (["--start", "180", "--csv", "minutes.csv"], "--start 180 is not within"),
        (["--start", "2006-01-01", "--csv", "minutes.csv"], "is not within"),
        (["--csv", "minutes.csv", "--household", "a"], "no column household"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minutes.csv").write_text(MINUTES)
    with pytest.raises(UsageError, match=message):
        board_simulator.run(parsed(*arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fault", "fire@3"], "fire@3: no fault is called fire"),
        (["--speed", "0"], "must be above 0, not 0"),
        (["--speed", "nan"], "must be above 0, not nan"),
        (["--count", "0"], "must be 1 or more, not 0"),
        (["--layout", "rpict9"], "invalid choice"),
        (["--speed", "2", "--flood"], "not allowed with"),
        (["--link", "a", "--port", "b"], "not allowed with"),
    ],
)
def test_what_is_no_option_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert message in capsys.readouterr().err


# The wire


def test_a_link_leads_to_the_terminal_until_it_is_unplugged(
    tmp_path: Path, wire: board_simulator._Wire
) -> None:
    link = tmp_path / "board"
    assert str(link.readlink()) == wire.name
    assert link.is_char_device()

    wire.unplug()
    wire.unplug()

    assert list(tmp_path.iterdir()) == []


def test_a_link_that_another_board_took_over_stays(
    tmp_path: Path, wire: board_simulator._Wire, stop: tuple[int, int]
) -> None:
    other = board_simulator._Wire(None, tmp_path / "board", stop[0])
    other.plug()

    wire.unplug()

    assert str((tmp_path / "board").readlink()) == other.name
    other.unplug()


def test_a_file_is_not_replaced_by_the_link(tmp_path: Path, stop: tuple[int, int]) -> None:
    (tmp_path / "file").write_text("precious")
    wire = board_simulator._Wire(None, tmp_path / "file", stop[0])

    with pytest.raises(UsageError, match="is there already and is no link"):
        wire.plug()

    assert (tmp_path / "file").read_text() == "precious"


def test_what_nobody_hears_is_gone(tmp_path: Path, wire: board_simulator._Wire) -> None:
    for _ in range(10_000):
        assert not wire.send(b"11 1.0 2.0 3.0\r\n")

    reader = Reader(tmp_path / "board")
    assert wire.send(b"heard\r\n")
    assert reader.read_lines(1) == [b"heard"]
    reader.close()
    assert not wire.send(b"not heard\r\n")


def test_every_byte_arrives_as_it_is_and_what_the_reader_says_is_not_heard(
    tmp_path: Path, wire: board_simulator._Wire
) -> None:
    reader = Reader(tmp_path / "board")
    every = bytes(range(256))

    for _ in range(100):
        os.write(reader.fd, b"a board does not listen\n" * 100)
        assert wire.send(every)
        data = b""
        while len(data) < len(every):
            data += reader.read()
        assert data == every

    reader.close()


def test_a_port_that_is_there_is_set_raw_and_to_the_board_s_speed(
    tmp_path: Path, stop: tuple[int, int]
) -> None:
    other_fd, port_fd = os.openpty()
    (tmp_path / "port").symlink_to(os.ttyname(port_fd))
    wire = board_simulator._Wire(tmp_path / "port", None, stop[0])

    wire.plug()
    assert wire.send(b"\n\x03\xff")

    assert select.select([other_fd], [], [], DEADLINE_S)[0]
    assert os.read(other_fd, 100) == b"\n\x03\xff"
    assert termios.tcgetattr(port_fd)[4:6] == [termios.B38400] * 2
    wire.unplug()
    os.close(other_fd)
    os.close(port_fd)


def test_a_slow_reader_is_waited_for_until_a_signal_comes(
    tmp_path: Path, wire: board_simulator._Wire, stop: tuple[int, int]
) -> None:
    reader = Reader(tmp_path / "board")
    os.write(stop[1], b"\0")

    with pytest.raises(board_simulator._StoppedError):
        wire.send(b"x" * 10_000_000)

    reader.close()


def test_a_reader_that_goes_while_it_is_waited_for_hears_nothing(
    tmp_path: Path, wire: board_simulator._Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tmp_path / "board")
    wait_for_room = wire._wait_for_room

    def go_first() -> None:
        monkeypatch.undo()
        reader.close()
        wait_for_room()

    monkeypatch.setattr(wire, "_wait_for_room", go_first)

    assert not wire.send(b"x" * 10_000_000)


# The program


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `meterd board` with a link in the test's folder; returns once it is there."""
    started = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, "--link", tmp_path / "board", *arguments]
        board = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(board)
        assert board.stderr is not None
        assert " plays " in board.stderr.readline()
        return board

    yield start
    for board in started:
        board.kill()
        board.wait()
        assert board.stderr is not None
        board.stderr.close()


def told(board: subprocess.Popen[str]) -> str:
    """Return what the board says last, once it has ended well."""
    _, said = board.communicate(timeout=DEADLINE_S)
    assert board.returncode == 0
    return said


def test_no_line_of_a_flood_is_lost(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    board = start("--flood", "--count", "20000", "--start", "2024-01-10T08:00:00")
    reader = Reader(tmp_path / "board")

    lines = reader.read_lines(20_000)

    household = synthetic_household(1)
    begin_ms = int(datetime(2024, 1, 10, 8, tzinfo=UTC).timestamp()) * 1000
    for number, line in enumerate(lines):
        moment = household(begin_ms + number * 5000)
        assert moment is not None
        assert line + b"\r\n" == format_line("rpict3v1", 11, moment.channels)
    assert told(board) == "meterd: board: 20000 lines said, 0 of them to nobody\n"
    assert reader.ends()
    reader.close()


def test_a_pulled_cable_comes_back_under_the_same_link(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    board = start("--wait", "--speed", "20", "--fault", "unplug@10+10", "--count", "4")
    reader = Reader(tmp_path / "board")

    assert len(reader.read_lines(2)) == 2
    assert reader.ends()
    reader.close()
    ends_s = time.monotonic() + DEADLINE_S
    while not (tmp_path / "board").exists():
        assert time.monotonic() < ends_s

    assert "4 lines said" in told(board)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("arguments", [[], ["--speed", "1000"], ["--wait"], ["--flood"]])
def test_a_signal_ends_it_at_once_and_takes_the_link_away(
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[str]],
    arguments: list[str],
    number: signal.Signals,
) -> None:
    board = start(*arguments)

    board.send_signal(number)

    assert "lines said" in told(board)
    assert list(tmp_path.iterdir()) == []
