"""What is on the bench: a real Pi and a person, or their stand-ins; the tests are the same.

`PiRig` asks the person to switch, pull and look; `SimRig` does it itself, 20 times as fast. A part
that is not on the bench leaves its tests out, and says which part; the stand-ins have every part.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from meterd.device.port import open_port
from tests.conftest import ROOT
from tests.daemon_kit import EPOCH_MS, Program, make_house, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INTERVAL_S = 60  # the shortest there is
SIM_SPEED = 20
SIM_POLLING_MS = 1000
SIM_NOISE_W = "2"
OPENING_S_MAX = 3.0  # a board that was reset by the opening of its port speaks again by then
PATIENCE_S = 20.0  # over what the board's cadence asks, for a start on a slow card
END = b"END"
WIRED = (sys.executable, "-m", "hw_tests.wired_meter")


@dataclass(kw_only=True)
class Bench:
    """What the person says is there.

    Attributes:
        port: Path of the serial port.
        load_w: What the known load draws.
        layout: Of the board's lines.
        polling_ms: Its cadence.
        pins: By key of [gpio]: BCM number.
        interactive: Whether somebody is there to switch, pull and look.
    """

    port: Path
    load_w: float
    layout: str = "rpict3v1"
    polling_ms: int = 5000
    pins: dict[str, int] = field(default_factory=dict)
    interactive: bool = False


class Rig(ABC):
    """One meter on the bench."""

    speed = 1
    trust = "kernel"
    environ: dict[str, str] = {}  # noqa: RUF012 - of the class: none

    def __init__(self, bench: Bench, folder: Path) -> None:
        """Make settings and an account for it."""
        self.bench = bench
        self.house = make_house(
            folder,
            interval_s=INTERVAL_S,
            polling_ms=bench.polling_ms,
            commit_s=1,
            layout=bench.layout,
            trust=self.trust,
        )
        self.house.program = WIRED
        text = self.house.config.read_text().replace(str(self.house.port), str(bench.port))
        pins = "".join(f"{key} = {pin}\n" for key, pin in bench.pins.items())
        self.house.config.write_text(f"{text}\n[gpio]\n{pins}")
        self.house.port = bench.port
        self.pipe = folder / "pipe"
        os.mkfifo(self.pipe)
        self.notices = folder / "notices"

    # --- the parts ------------------------------------------------------------------------------

    @abstractmethod
    def need_hand(self, what: str) -> None:
        """Leave the test out where nobody is there to do `what`."""

    @abstractmethod
    def switch_load(self, *, on: bool) -> None:
        """Switch the known load."""

    @abstractmethod
    def pull_cable(self) -> None:
        """Part the board from the port."""

    @abstractmethod
    def plug_cable(self) -> None:
        """Join them again."""

    @abstractmethod
    def move_case(self, *, opened: bool) -> float:
        """Open or close the case; return since when that may be so, of the monotonic clock."""

    @abstractmethod
    def sees_flashes(self, meter: Program) -> None:
        """See that the LED flashes: a person says so, or the pin does."""

    @abstractmethod
    def hears(self, what: str) -> None:
        """Hear what only a person can hear; where nobody is there, the pin's word counts."""

    @abstractmethod
    def root(self) -> Path:
        """Return the folder that /proc and /sys of this Pi are in."""

    def need_pin(self, key: str) -> None:
        """Leave the test out where nothing is wired to a pin."""
        if key not in self.bench.pins:
            pytest.skip(f"no {key} on this bench: --{key.replace('_', '-')} says that there is one")

    def order_relay(self, state: str) -> None:
        """Ask the meter to open or close its relay, as a command would."""
        self.pipe.write_text(f"relay {state}\n")

    # --- the meter ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def metering(self, **environ: str) -> Iterator[Program]:
        """Run the meter, from its first reading on."""
        with self.start(environ) as meter:
            meter.hear("port_opened", deadline_s=PATIENCE_S)
            until(
                lambda: self.told("Registers")["readings"]["accepted"] > 0,
                f"a reading of {self.bench.port}",
                deadline_s=self.real_s(3 * self.bench.polling_ms / 1000) + PATIENCE_S,
            )
            yield meter

    def start(self, environ: dict[str, str]) -> Program:
        """Start the meter."""
        more = {"PYTHONPATH": str(ROOT), "MOCK_PINS_FIFO": str(self.pipe)}
        return self.house.run(environ=more | self.environ | environ)

    def told(self, method: str) -> dict[str, Any]:
        """Return what the meter answers."""
        reply: dict[str, Any] = self.house.ask().call(method)
        return reply

    def live(self, seconds: float) -> list[dict[str, Any]]:
        """Return the readings of so many of the meter's seconds, five at least."""
        found: list[dict[str, Any]] = []
        readings = self.house.ask().stream("Live")
        with contextlib.closing(readings):  # type: ignore[type-var]
            for reading in readings:
                found.append(reading)
                lasted_ms = reading["wall_ms"] - found[0]["wall_ms"]
                if lasted_ms >= seconds * 1000 and len(found) >= 5:
                    break
        return found

    def real_s(self, seconds: float) -> float:
        """Return how long so many of the meter's seconds are to whoever waits."""
        return seconds / self.speed

    def pass_cadences(self, count: int) -> None:
        """Let time pass in which the board would say so many lines."""
        time.sleep(self.real_s(count * self.bench.polling_ms / 1000))

    def listen(self, lines: int) -> tuple[bytes, list[float]]:
        """Return what the port says until so many lines have come, and when each ended.

        Times are seconds of the board's own, from the first on.
        """
        port = open_port(str(self.bench.port))
        heard, ends_s = b"", list[float]()
        deadline_s = time.monotonic() + self.real_s(lines * self.bench.polling_ms / 500)
        try:
            port.timeout = 0.002
            while len(ends_s) < lines and time.monotonic() < deadline_s + OPENING_S_MAX:
                data = port.read(256)
                heard += data
                ends_s += [time.monotonic() * self.speed] * data.count(b"\n")
        finally:
            port.close()
        return heard, ends_s

    @contextlib.contextmanager
    def manager(self, watchdog_s: float) -> Iterator[Manager]:
        """Be the service manager, who reads at once: a meter must never wait for it."""
        self.notices.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
            inbox.bind(str(self.notices))
            told = {"NOTIFY_SOCKET": str(self.notices), "WATCHDOG_USEC": f"{watchdog_s * 1e6:.0f}"}
            manager = Manager(told, self.notices)
            reader = threading.Thread(target=manager.read, args=(inbox,))
            reader.start()
            try:
                yield manager
            finally:
                manager.say(END)
                reader.join()


class Manager:
    """Stands in for systemd.

    Attributes:
        environ: What a meter is told of it.
        heard: The notices so far, in the order in which they were sent.
    """

    def __init__(self, environ: dict[str, str], path: Path) -> None:
        """Prepare one whose inbox is at `path`."""
        self.environ, self._path = environ, path
        self.heard: list[bytes] = []

    def read(self, inbox: socket.socket) -> None:
        """Read notices until its own last."""
        while (notice := inbox.recv(4096)) != END:
            self.heard.append(notice)

    def say(self, word: bytes) -> None:
        """Send it a notice, behind all that was sent before."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(word, str(self._path))

    @property
    def pings(self) -> int:
        """How often the watchdog was told so far that the meter lives."""
        return self.heard.count(b"WATCHDOG=1")


class PiRig(Rig):
    """A real board, a real load, and a person, if there is one."""

    def __init__(self, bench: Bench, folder: Path, ask: Callable[[str], str]) -> None:
        """Prepare; `ask` shows a line and returns the answer."""
        super().__init__(bench, folder)
        self._ask = ask

    def need_hand(self, what: str) -> None:
        if not self.bench.interactive:
            pytest.skip(f"somebody has to {what}: --interactive says that you are there")

    def _please(self, what: str) -> float:
        self.need_hand(what)
        self._ask(f"\nplease {what}, and press Enter as you do: ")
        return time.monotonic()

    def switch_load(self, *, on: bool) -> None:
        if not on or self.bench.interactive:
            self._please(f"switch the load {'on' if on else 'off'} and wait for it to settle")

    def pull_cable(self) -> None:
        self._please("pull the board's cable (a board on the header: its power)")

    def plug_cable(self) -> None:
        self._please("plug the cable in again")

    def move_case(self, *, opened: bool) -> float:
        return self._please("open the case" if opened else "close the case")

    def sees_flashes(self, meter: Program) -> None:
        self.need_hand("look at the LED")
        self.hears("the LED flashes")

    def hears(self, what: str) -> None:
        if self.bench.interactive:
            answer = self._ask(f"\ndo you see or hear that {what}? [y/n] ")
            assert answer.strip().lower().startswith("y"), f"nobody noticed that {what}"

    def root(self) -> Path:
        return Path("/")


class SimRig(Rig):
    """Stand-ins: the simulated board on a pseudo terminal, mock pins, a Pi's files in a folder."""

    speed = SIM_SPEED
    trust = "always"

    def __init__(self, bench: Bench, folder: Path, fault: str = "") -> None:
        """Prepare; `fault` is one that the simulated board has from its first line on."""
        super().__init__(bench, folder)
        self._load = folder / "load-w"
        self._fault = ("--fault", f"{fault}@0+1000000") if fault else ()
        self._board: Program | None = None
        self._begun_s = time.monotonic()
        self._case = "low"
        self.environ = {"GPIOZERO_PIN_FACTORY": "mock"}
        self._files = _pi_files(folder / "root")

    def __enter__(self) -> Self:
        self.switch_load(on=True)
        self.plug_cable()
        return self

    def __exit__(self, *_: object) -> None:
        self.pull_cable()

    def need_hand(self, what: str) -> None:
        pass

    def switch_load(self, *, on: bool) -> None:
        if self._board is not None:
            self.pass_cadences(2)  # what was switched before has been measured
        beside = self._load.with_suffix(".new")
        beside.write_text(str(self.bench.load_w if on else 0))
        beside.replace(self._load)
        if self._board is not None:
            self.pass_cadences(2)  # one line was on its way

    def plug_cable(self) -> None:
        command = [sys.executable, "-m", "hw_tests.sim_board", "--link", str(self.bench.port)]
        command += ["--layout", self.bench.layout, "--polling-ms", str(self.bench.polling_ms)]
        command += ["--speed", str(self.speed), "--noise-w", SIM_NOISE_W, *self._fault]
        environ = {"SIM_LOAD_W": str(self._load), "PYTHONPATH": str(ROOT)}
        self._board = Program(command, environ=environ)
        self._board.hear("plays")

    def pull_cable(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None
            self.bench.port.unlink(missing_ok=True)

    def start(self, environ: dict[str, str]) -> Program:
        passed_ms = int((time.monotonic() - self._begun_s) * 1000) * self.speed
        self.environ["MOCK_PINS"] = f"{self.bench.pins['case_switch']}={self._case}"
        more = {"PYTHONPATH": str(ROOT), "MOCK_PINS_FIFO": str(self.pipe)}
        return self.house.run_scaled(
            self.speed, EPOCH_MS + passed_ms, environ=more | self.environ | environ
        )

    def move_case(self, *, opened: bool) -> float:
        self._case = "high" if opened else "low"
        begun_s = time.monotonic()
        self.pipe.write_text(f"{self.bench.pins['case_switch']} {self._case}\n")
        return begun_s

    def sees_flashes(self, meter: Program) -> None:
        for level in ("high", "low", "high"):
            meter.hear(f"wire GPIO{self.bench.pins['led']} {level}")

    def hears(self, what: str) -> None:
        pass

    def root(self) -> Path:
        return self._files


def _pi_files(root: Path) -> Path:
    """Write what a Pi that is well says of itself."""
    for name, text in (
        ("proc/cmdline", "console=null root=/dev/mmcblk0p2 rootwait\n"),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "0\n"),
        ("sys/class/watchdog/watchdog0/state", "active\n"),
        ("sys/class/watchdog/watchdog0/timeout", "15\n"),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
