"""`meterd`, with gpiozero's mock pins in the test's hands: `python -m tests.mock_pins run …`.

$MOCK_PINS says what is wired to the pins at the start: `17=low,27=high`, against which no pull has
a chance. From then on lines in the named pipe $MOCK_PINS_FIFO move them: `17 high`; `relay open`
asks for that as a command would. What the LED is to show is told on stderr as it changes: `led
shows board`. At the end, behind gpiozero's own, each pin that was used is told: `pin GPIO24 output
low`.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpiozero.pins.mock import MockPin

    from meterd.guard import Guard

LEVELS = {"low": False, "high": True}
pins: list[MockPin] = []
guards: list[Guard] = []


def tell() -> None:
    for pin in pins:
        level = "high" if pin._state else "low"
        sys.stderr.write(f"pin {pin.info.name} {pin.function} {level}\n")


def arrange() -> None:
    """Put what the test wants between meterd and the pins."""
    atexit.register(tell)  # before gpiozero registers its own end, so it is called after that
    from gpiozero.pins.mock import MockPin

    from meterd import meter
    from meterd.device.gpio import Gpio
    from meterd.guard import Guard

    wired = {
        f"GPIO{number}": LEVELS[level]
        for number, _, level in (
            wire.partition("=") for wire in os.environ.get("MOCK_PINS", "").split(",")
        )
        if level
    }
    begin, pull = MockPin.__init__, MockPin._set_pull

    def begin_noted(pin: MockPin, *arguments: object) -> None:
        begin(pin, *arguments)
        pins.append(pin)

    def pull_against_wire(pin: MockPin, value: str) -> None:
        pull(pin, value)
        if pin.info.name in wired:
            (pin.drive_high if wired[pin.info.name] else pin.drive_low)()

    def guard_noted(*arguments: Any) -> Guard:  # noqa: ANN401 - whatever a guard takes
        guards.append(Guard(*arguments))
        return guards[-1]

    show, shown = Gpio.show, [""]

    def show_noted(gpio: Gpio, state: str) -> None:
        show(gpio, state)
        if state != shown[0]:
            shown[0] = state
            sys.stderr.write(f"led shows {state}\n")

    Gpio.show = show_noted  # type: ignore[assignment, method-assign]
    meter.Guard = guard_noted  # type: ignore[attr-defined, assignment]
    MockPin.__init__ = begin_noted
    MockPin._set_pull = pull_against_wire


def obey() -> None:
    if "MOCK_PINS_FIFO" not in os.environ:
        return
    from gpiozero import Device

    while True:
        for line in Path(os.environ["MOCK_PINS_FIFO"]).read_text().splitlines():
            number, level = line.split()
            if number == "relay":
                wish = partial(guards[-1].switch, closed=level == "closed")
                loop = guards[-1].pins._loop
                assert loop is not None
                loop.call_soon_threadsafe(wish)
                continue
            pin = Device.pin_factory.pin(int(number))
            (pin.drive_high if LEVELS[level] else pin.drive_low)()


if __name__ == "__main__":
    arrange()
    from meterd.__main__ import main

    threading.Thread(target=obey, daemon=True).start()
    sys.exit(main())
