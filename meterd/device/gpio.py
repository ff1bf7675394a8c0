"""The pins, through gpiozero: case switch, magnet, button, LED and relay; only those configured.

gpiozero is imported only where a pin is configured, and picks the library below it by itself; which
one is reported. A pin that is not there, or no gpiozero at all, is one error that names all of it,
and nobody's reason to stop metering.

Edges come from threads of that library, and not from every library or kernel (RPi.GPIO has none
from Linux 6.6 on). So they only wake: each level is also read every `LOOK_S`, which is the truth.

The relay's pin is never given back. gpiozero turns every pin into an input as it closes, its own
close at the process's end included, and a relay would switch. What the kernel does with the pin of
a process that has ended is the kernel's to say: Raspberry Pi's leaves an output as it is, another
needs `pinctrl_bcm2835.persist_gpio_outputs=y`.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import os
import time
import warnings
from collections import deque
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from meterd.errors import AbsentError, MeterdError
from meterd.lamp import PATTERNS, compiled, lit
from meterd.pins import Change, Debouncer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import NoReturn

    from meterd.config import GpioSettings

LOOK_S = 0.25  # a quarter of what an opened case may take to be told of; a look costs some 20 us
EDGES_WAITING_MAX = 256  # 5 s of a bouncing contact; a pin that floods is looked at instead
HINT_NO_GPIOZERO = (
    "install the extra `meterd[gpio]` or python3-gpiozero, or take the pins out of [gpio]"
)
HINT_NO_PIN = (
    "on a Pi install python3-lgpio, and let this user open /dev/gpiochip0 (on a Pi 5 maybe"
    " gpiochip4); look who holds a pin with `gpioinfo`"
)
INPUTS = ("case_switch", "magnet", "button")
LGPIO = "gpiozero.pins.lgpio"  # where gpiozero has the class of pins by lgpio


def boot_ms() -> int:
    """Return CLOCK_BOOTTIME in milliseconds; any thread may ask."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Line(Protocol):
    """One output that outlasts whoever set it."""

    def write(self, level: bool) -> None:  # noqa: FBT001 - a level is a bool
        """Set the level."""
        ...

    def read(self) -> bool:
        """Return the level that the pin has."""
        ...


class LgpioLine:
    """A relay's pin by lgpio itself, which gpiozero would otherwise use.

    gpiozero's own pin begins as an input, becomes a low output, and only then gets its level; at a
    restart a closed contact behind `relay_closed = "high"` would see that.
    """

    def __init__(self, chip: int, gpio: int, *, level: bool) -> None:
        """Make the pin an output that has `level` from the first moment on."""
        self._lgpio: Any = importlib.import_module("lgpio")
        self._gpio = gpio
        self._handle = self._lgpio.gpiochip_open(chip)
        self._lgpio.gpio_claim_output(self._handle, gpio, int(level))

    def write(self, level: bool) -> None:  # noqa: FBT001
        """Set the level."""
        self._lgpio.gpio_write(self._handle, self._gpio, int(level))

    def read(self) -> bool:
        """Return the level that the pin has."""
        return bool(self._lgpio.gpio_read(self._handle, self._gpio))


class GpiozeroLine:
    """A relay's pin by gpiozero: it begins as an input, for some microseconds."""

    def __init__(self, gpiozero: Any, gpio: int, *, level: bool) -> None:  # noqa: ANN401 - untyped
        """Make the pin an output, and keep gpiozero from ever closing it."""

        class Kept(gpiozero.OutputDevice):  # type: ignore[misc]
            def close(self) -> None:
                """Leave the pin as it is."""

        self._device = Kept(gpio, initial_value=level)

        def leave() -> None:
            gpiozero.Device.pin_factory = None

        # gpiozero closes its factory, and with it all pins, as the interpreter ends. This is called
        # before that, as it was registered later; and then gpiozero has no factory to close.
        atexit.register(leave)

    def write(self, level: bool) -> None:  # noqa: FBT001
        """Set the level."""
        self._device.value = level

    def read(self) -> bool:
        """Return the level that the pin has."""
        return bool(self._device.value)


_relays: dict[
    int, Line
] = {}  # by pin; a second meter in this process takes over what the first had


class Input(NamedTuple):
    """An open input.

    Attributes:
        device: gpiozero's.
        inverted: It is active where gpiozero's device is not.
    """

    device: Any
    inverted: bool


class Gpio:
    """The configured pins. `watch` is the task that owns them; the rest is called on its loop.

    Attributes:
        factory: gpiozero's class of what is below it; empty before it is open.
        passed_over: What it tried before, and edges that it cannot give, with the reasons.
        problems: What of the settings could not be opened, each a clause.
        stuck: Inputs that do not come to rest.
    """

    def __init__(
        self, settings: GpioSettings, folder: Path, now_ms: Callable[[], int] = boot_ms
    ) -> None:
        """Open nothing yet.

        Args:
            settings: Which pins there are.
            folder: Where lgpio may put the pipe that it needs.
            now_ms: The boot clock.
        """
        self._settings, self._folder, self.now_ms = settings, folder, now_ms
        self.factory = ""
        self.passed_over: list[str] = []
        self.problems: list[str] = []
        self._inputs: dict[str, Input] = {}
        wired = {name: getattr(settings, name) for name in INPUTS}
        self._debouncers = {
            name: Debouncer(settings.debounce_ms)
            for name, gpio in wired.items()
            if gpio is not None
        }
        self._led: Any = None
        self._relay: Line | None = None
        self._edges: deque[tuple[str, bool, int]] = deque()
        self._edges_lost = False
        self._woken: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pattern, self._pattern_ms = compiled(PATTERNS["starting"]), 0

    @property
    def stuck(self) -> dict[str, bool]:
        """Say of each input whether it does not come to rest."""
        return {name: debouncer.stuck for name, debouncer in self._debouncers.items()}

    # --- opening and closing ----------------------------------------------------------------

    def open(self, *, relay_closed: bool) -> None:
        """Open what is configured; the first import takes a second on a Pi, so not on the loop.

        Args:
            relay_closed: What the relay's pin has to be from its first moment on.

        Raises:
            AbsentError: gpiozero is missing, or has nothing below it that works here.
        """
        settings = self._settings
        # It writes a pipe into its working directory, which is read-only for a service.
        os.environ.setdefault("LG_WD", str(self._folder))
        try:
            gpiozero: Any = importlib.import_module("gpiozero")
        except ImportError as error:
            raise AbsentError(
                "the pins in [gpio] need gpiozero, which is not installed", hint=HINT_NO_GPIOZERO
            ) from error
        with _absent("no pin can be used"), warnings.catch_warnings(record=True) as passed_over:
            warnings.simplefilter("always")
            gpiozero.Device.ensure_pin_factory()
        self.passed_over = [str(warning.message) for warning in passed_over]
        self.factory = type(gpiozero.Device.pin_factory).__name__
        if settings.relay is not None:  # first: all else can wait
            with self._or_problem("relay", settings.relay):
                self._relay = _relay_line(
                    gpiozero, settings.relay, level=self._relay_level(closed=relay_closed)
                )
        # Each is pulled to the level that it has while its switch is open.
        for name, gpio, pull_up in (
            ("case_switch", settings.case_switch, settings.case_open == "high"),
            ("magnet", settings.magnet, True),
            ("button", settings.button, True),
        ):
            if gpio is not None:
                with self._or_problem(name, gpio):
                    self._open_input(gpiozero, name, gpio, pull_up=pull_up)
        if settings.led is not None:
            with self._or_problem("led", settings.led):
                self._led = gpiozero.OutputDevice(settings.led)

    @contextmanager
    def _or_problem(self, name: str, gpio: int) -> Iterator[None]:
        try:
            with _absent(f"gpio.{name} on GPIO {gpio}"):
                yield
        except AbsentError as error:
            self.problems.append(str(error))

    def _open_input(self, gpiozero: Any, name: str, gpio: int, *, pull_up: bool) -> None:  # noqa: ANN401
        inverted = name == "case_switch"  # the switch is shut while the case is
        device: Any = None
        try:
            device = gpiozero.DigitalInputDevice(gpio, pull_up=pull_up)
            device.when_activated = partial(self._edge, name, not inverted)
            device.when_deactivated = partial(self._edge, name, inverted)
        except Exception as error:  # noqa: BLE001 - each library below gpiozero has its own
            self.passed_over.append(f"edges of {name}: {error}")
        if device is None:  # the pin alone may work: it is looked at, and that is enough
            device = gpiozero.InputDevice(gpio, pull_up=pull_up)
        self._inputs[name] = Input(device, inverted)

    def _edge(self, name: str, active: bool) -> None:  # noqa: FBT001 - a level is a bool
        """Take an edge, in whatever thread it comes."""
        if len(self._edges) >= EDGES_WAITING_MAX:
            self._edges_lost = True
            return
        self._edges.append((name, active, self.now_ms()))
        loop, woken = self._loop, self._woken
        if loop is not None and woken is not None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(woken.set)

    def close(self) -> None:
        """Close all but the relay, whose pin stays as it is."""
        devices = [entry.device for entry in self._inputs.values()]
        self._inputs.clear()
        led, self._led = self._led, None
        for device in (*devices, *([] if led is None else [led])):
            with suppress(AbsentError), _absent("a chip that is gone may fail this too"):
                device.close()

    # --- what is done with them -------------------------------------------------------------

    def look(self) -> list[tuple[str, Change]]:
        """Return what has changed, in order: from edges that came, and from what is there now.

        Raises:
            AbsentError: A pin cannot be read any more.
        """
        found: list[tuple[str, Change]] = []

        def note(name: str, change: Change | None) -> None:
            if change is not None:
                found.append((name, change))

        while self._edges:
            name, active, at_ms = self._edges.popleft()
            note(name, self._debouncers[name].see(active, at_ms))
        now_ms = self.now_ms()
        if self._edges_lost:
            self._edges_lost = False
            for debouncer in self._debouncers.values():
                debouncer.lost(now_ms)
        for name, (device, inverted) in self._inputs.items():
            with _absent(f"gpio.{name} cannot be read"):
                active = bool(device.value) != inverted
            debouncer = self._debouncers[name]
            note(name, debouncer.see(active, now_ms))
            note(name, debouncer.look(now_ms))
        return found

    def _relay_level(self, *, closed: bool) -> bool:
        return closed == (self._settings.relay_closed == "high")

    def move_relay(self, *, closed: bool) -> None:
        """Set the relay's pin, where there is a relay.

        Raises:
            AbsentError: It cannot be set.
        """
        if self._relay is not None:
            with _absent("the relay cannot be set"):
                self._relay.write(self._relay_level(closed=closed))

    @property
    def relay_closed(self) -> bool | None:
        """Whether the relay's pin is read as closed; None where there is no relay.

        Raises:
            AbsentError: It cannot be read any more.
        """
        if self._relay is None:
            return None
        with _absent("the relay cannot be read"):
            return self._relay.read() == self._relay_level(closed=True)

    def wake(self) -> None:
        """Let the watching task look now."""
        if self._woken is not None:
            self._woken.set()

    def show(self, state: str) -> None:
        """Let the LED flash the pattern of `state` from now on."""
        pattern = compiled(PATTERNS[state])
        if pattern != self._pattern:
            self._pattern, self._pattern_ms = pattern, self.now_ms()
            self.wake()

    def _shine(self) -> int:
        """Let the LED be what it has to be now; return for how many milliseconds."""
        on, left_ms = lit(self._pattern, self.now_ms() - self._pattern_ms)
        if self._led is not None:
            with _absent("the LED cannot be set"):
                self._led.value = on
            return left_ms
        return int(LOOK_S * 1000)

    async def watch(
        self,
        relay_closed: bool,  # noqa: FBT001
        opened: Callable[[], None],
        changed: Callable[[list[tuple[str, Change]]], None],
    ) -> NoReturn:
        """Watch the pins for ever; closes them when it ends, all but the relay.

        Args:
            relay_closed: What the relay has to be from the first moment on.
            opened: Called once, when the pins are open.
            changed: Called after each look, with what has changed since the last.

        Raises:
            AbsentError: As `open` and `look` do.
        """
        self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()
        opening = asyncio.create_task(asyncio.to_thread(self.open, relay_closed=relay_closed))
        try:
            await asyncio.shield(opening)
            self._pattern_ms = self.now_ms()
            opened()
            while True:
                self._woken.clear()
                changed(self.look())
                wait_ms = min(LOOK_S * 1000, self._shine(), self._until_due_ms())
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_ms / 1000):
                        await self._woken.wait()
        finally:
            self._loop = self._woken = None
            await asyncio.wait((opening,))  # what it opens after all is closed too
            self.close()
            opening.exception()  # it was raised above, unless the stop came first

    def _until_due_ms(self) -> int:
        now_ms = self.now_ms()
        due = [one.due_ms - now_ms for one in self._debouncers.values() if one.due_ms is not None]
        return max(0, min(due, default=int(LOOK_S * 1000)))


def _relay_line(gpiozero: Any, gpio: int, *, level: bool) -> Line:  # noqa: ANN401 - untyped
    line = _relays.get(gpio)
    if line is not None:
        line.write(level)
        return line
    factory = gpiozero.Device.pin_factory
    if type(factory).__module__ == LGPIO:
        line = LgpioLine(factory.chip, gpio, level=level)
    else:
        line = GpiozeroLine(gpiozero, gpio, level=level)
    _relays[gpio] = line
    return line


@contextmanager
def _absent(what: str) -> Iterator[None]:
    """Make an `AbsentError` of whatever the libraries raise: each has errors of its own."""
    try:
        yield
    except MeterdError:
        raise
    except Exception as error:
        raise AbsentError(f"{what}: {error}", hint=HINT_NO_PIN) from error
