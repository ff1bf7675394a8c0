"""The pins through gpiozero's own mock, and lgpio through a fake of its few functions."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import textwrap
import threading
import types
from subprocess import run
from typing import TYPE_CHECKING, Any

import gpiozero
import pytest
from gpiozero.pins.mock import MockFactory, MockPin

from meterd.config import GpioSettings
from meterd.device import gpio as gpio_module
from meterd.device.gpio import EDGES_WAITING_MAX, Gpio, LgpioLine
from meterd.errors import AbsentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meterd.pins import Change

CASE, MAGNET, LED, BUTTON, RELAY = 17, 27, 22, 23, 24
ALL = GpioSettings(case_switch=CASE, magnet=MAGNET, led=LED, button=BUTTON, relay=RELAY)
DEADLINE_S = 30.0


class Hands:
    """A boot clock in the test's hands."""

    def __init__(self) -> None:
        self.at_ms = 10_000

    def __call__(self) -> int:
        return self.at_ms


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockFactory]:
    """Mock pins that nobody has used yet; a relay is forgotten with them."""
    made = MockFactory()
    monkeypatch.setattr(gpiozero.Device, "pin_factory", made)
    monkeypatch.setattr(gpio_module, "_relays", {})
    monkeypatch.setattr(atexit, "register", lambda function: function)
    monkeypatch.setenv("LG_WD", "")
    yield made
    made.reset()


def opened(settings: GpioSettings, folder: Path, *, relay_closed: bool = True) -> Gpio:
    gpio = Gpio(settings, folder, Hands())
    gpio.open(relay_closed=relay_closed)
    assert gpio.problems == []
    return gpio


def advanced(gpio: Gpio, more_ms: int) -> list[tuple[str, bool]]:
    """What is found once so much time has passed."""
    hands = gpio.now_ms
    assert isinstance(hands, Hands)
    hands.at_ms += more_ms
    return [(name, change.active) for name, change in gpio.look()]


def at_rest(gpio: Gpio) -> dict[str, bool]:
    """The first levels since the start."""
    assert advanced(gpio, 0) == []
    return dict(advanced(gpio, 50))


# --- inputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case_open", "at_start", "moved"),
    [
        pytest.param("high", True, "drive_low", id="to ground"),
        pytest.param("low", True, "drive_high", id="to 3.3 V"),
    ],
)
def test_a_case_switch_that_is_not_shut_is_an_open_case(
    factory: MockFactory, tmp_path: Path, case_open: str, at_start: bool, moved: str
) -> None:
    gpio = opened(GpioSettings(case_switch=CASE, case_open=case_open), tmp_path)
    assert at_rest(gpio) == {"case_switch": at_start}  # as with a cut wire
    getattr(factory.pin(CASE), moved)()
    assert advanced(gpio, 50) == [("case_switch", False)]
    gpio.close()


def test_magnet_and_button_are_switches_to_ground(factory: MockFactory, tmp_path: Path) -> None:
    gpio = opened(ALL, tmp_path)
    assert at_rest(gpio) == {"case_switch": True, "magnet": False, "button": False}
    factory.pin(MAGNET).drive_low()
    factory.pin(BUTTON).drive_low()
    assert advanced(gpio, 50) == [("magnet", True), ("button", True)]
    gpio.close()


def test_e2_a_bouncing_contact_is_one_change(factory: MockFactory, tmp_path: Path) -> None:
    gpio = opened(GpioSettings(case_switch=CASE), tmp_path)
    factory.pin(CASE).drive_low()
    at_rest(gpio)
    for _ in range(20):
        factory.pin(CASE).drive_high()
        assert advanced(gpio, 2) == []
        factory.pin(CASE).drive_low()
        assert advanced(gpio, 2) == []
    factory.pin(CASE).drive_high()
    assert advanced(gpio, 49) == []
    assert advanced(gpio, 1) == [("case_switch", True)]
    gpio.close()


def test_an_opening_between_two_looks_is_found_by_its_edges(
    factory: MockFactory, tmp_path: Path
) -> None:
    gpio = opened(GpioSettings(case_switch=CASE), tmp_path)
    hands = gpio.now_ms
    assert isinstance(hands, Hands)
    factory.pin(CASE).drive_low()
    at_rest(gpio)
    factory.pin(CASE).drive_high()
    hands.at_ms += 60
    factory.pin(CASE).drive_low()
    assert advanced(gpio, 60) == [("case_switch", True), ("case_switch", False)]
    gpio.close()


def test_a_flood_of_edges_is_bounded_and_counts_for_nothing(
    factory: MockFactory, tmp_path: Path
) -> None:
    gpio = opened(GpioSettings(case_switch=CASE), tmp_path)
    pin = factory.pin(CASE)
    pin.drive_low()
    at_rest(gpio)
    pin.drive_high()
    assert advanced(gpio, 0) == []
    for _ in range(EDGES_WAITING_MAX):
        pin.drive_low()
        pin.drive_high()
    assert len(gpio._edges) == EDGES_WAITING_MAX
    # What stands now may have begun this moment: the edges that would tell were dropped.
    assert advanced(gpio, 60) == []
    assert advanced(gpio, 50) == [("case_switch", True)]
    gpio.close()


def test_e2_a_pin_that_never_settles_is_stuck(factory: MockFactory, tmp_path: Path) -> None:
    gpio = opened(GpioSettings(case_switch=CASE), tmp_path)
    at_rest(gpio)
    for number in range(300):
        (factory.pin(CASE).drive_low, factory.pin(CASE).drive_high)[number % 2]()
        assert advanced(gpio, 20) == []
    assert gpio.stuck == {"case_switch": True}
    advanced(gpio, 50)
    assert gpio.stuck == {"case_switch": False}
    gpio.close()


class EdgelessPin(MockPin):  # type: ignore[misc]
    """A pin as RPi.GPIO has it on Linux 6.6: it can be read, and its edges cannot be had."""

    def _enable_event_detect(self) -> None:
        raise RuntimeError("Failed to add edge detection")


def test_e2_a_pin_without_edges_is_looked_at(factory: MockFactory, tmp_path: Path) -> None:
    factory.pin_class = EdgelessPin
    gpio = opened(GpioSettings(case_switch=CASE), tmp_path)
    assert gpio.passed_over == ["edges of case_switch: Failed to add edge detection"]
    at_rest(gpio)
    factory.pin(CASE).drive_low()
    assert advanced(gpio, 0) == []
    assert advanced(gpio, 50) == [("case_switch", False)]
    gpio.close()


# --- watching, with a loop ------------------------------------------------------------------------


async def found_while(gpio: Gpio, count: int, act: Callable[[], None]) -> list[tuple[str, Change]]:
    """What `watch` tells after `act`, called once the first levels are known."""
    found: list[tuple[str, Change]] = []
    more = asyncio.Event()

    def changed(changes: list[tuple[str, Change]]) -> None:
        found.extend(changes)
        if changes:
            more.set()

    async def wait_for(number: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < number:
                more.clear()
                await more.wait()

    watching = asyncio.create_task(gpio.watch(True, lambda: None, changed))
    try:
        await wait_for(len(gpio._debouncers))
        first = len(found)
        act()
        await wait_for(first + count)
        return found[first:]
    finally:
        watching.cancel()
        await asyncio.wait((watching,))


def test_e2_an_edge_from_another_thread_is_told_within_a_second(
    factory: MockFactory, tmp_path: Path
) -> None:
    gpio = Gpio(GpioSettings(case_switch=CASE), tmp_path)
    told: list[int] = []

    def shut() -> None:
        pin = factory.pin(CASE)
        thread = threading.Thread(target=pin.drive_low)
        thread.start()
        thread.join()
        told.append(gpio.now_ms())

    ((name, change),) = asyncio.run(found_while(gpio, 1, shut))
    assert (name, change.active) == ("case_switch", False)
    assert abs(change.at_ms - told[0]) < 1000
    assert gpio.now_ms() - change.at_ms < 1000


def test_an_edge_wakes_the_watch_before_its_next_look(
    factory: MockFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpio_module, "LOOK_S", 3600.0)
    gpio = Gpio(GpioSettings(case_switch=CASE, debounce_ms=5), tmp_path)
    ((_, change),) = asyncio.run(found_while(gpio, 1, lambda: factory.pin(CASE).drive_low()))
    assert not change.active


def test_an_edge_after_the_end_of_the_loop_is_nothing(factory: MockFactory, tmp_path: Path) -> None:
    gpio = Gpio(GpioSettings(case_switch=CASE), tmp_path)
    asyncio.run(found_while(gpio, 1, lambda: factory.pin(CASE).drive_low()))
    gpio._edge("case_switch", False)
    factory.pin(CASE).drive_high()
    assert len(gpio._edges) == 1  # the one by hand: gpiozero's device is closed


@pytest.mark.usefixtures("factory")
def test_a_watch_that_is_cancelled_while_it_opens_closes_what_it_opened(tmp_path: Path) -> None:
    gpio = Gpio(ALL, tmp_path)

    async def cancel_at_once() -> None:
        watching = asyncio.create_task(gpio.watch(True, lambda: None, lambda _: None))
        await asyncio.sleep(0)
        watching.cancel()
        await asyncio.wait((watching,))
        assert watching.cancelled()

    asyncio.run(cancel_at_once())
    again = opened(ALL, tmp_path)  # nothing is in use any more
    again.close()


# --- the LED --------------------------------------------------------------------------------------


def test_the_led_flashes_what_it_has_to_say(factory: MockFactory, tmp_path: Path) -> None:
    gpio = opened(GpioSettings(led=LED), tmp_path)
    hands = gpio.now_ms
    assert isinstance(hands, Hands)
    gpio.show("board")
    seen = []
    for _ in range(5):
        left_ms = gpio._shine()
        seen.append((factory.pin(LED).state, left_ms))
        hands.at_ms += left_ms
    assert seen == [(True, 150), (False, 250), (True, 150), (False, 1250), (True, 150)]
    gpio.close()
    assert factory.pin(LED).function == "input"


@pytest.mark.usefixtures("factory")
def test_a_pattern_that_is_shown_again_goes_on(tmp_path: Path) -> None:
    gpio = opened(GpioSettings(led=LED), tmp_path)
    gpio.show("board")
    advanced(gpio, 160)
    gpio.show("board")
    assert gpio._shine() == 240
    gpio.show("case")
    assert gpio._shine() == 600
    gpio.close()


# --- the relay ------------------------------------------------------------------------------------


@pytest.mark.parametrize("relay_closed", ["high", "low"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_relay_is_opened_as_it_is_kept_and_read_back(
    factory: MockFactory, tmp_path: Path, relay_closed: str, closed: bool
) -> None:
    settings = GpioSettings(relay=RELAY, relay_closed=relay_closed)
    gpio = opened(settings, tmp_path, relay_closed=closed)
    assert gpio.relay_closed is closed
    assert factory.pin(RELAY).state == (closed == (relay_closed == "high"))
    gpio.move_relay(closed=not closed)
    assert gpio.relay_closed is not closed


@pytest.mark.parametrize("closed", [True, False])
def test_a_relay_stays_as_it_is_when_all_is_closed_and_opened_again(
    factory: MockFactory, tmp_path: Path, closed: bool
) -> None:
    settings = GpioSettings(relay=RELAY, relay_closed="high", led=LED)
    opened(settings, tmp_path, relay_closed=closed).close()
    pin = factory.pin(RELAY)
    assert (pin.function, pin.state) == ("output", closed)
    pin.clear_states()
    opened(settings, tmp_path, relay_closed=closed).close()
    assert [state.state for state in pin.states] == [closed]  # not for a moment was it another
    assert pin.function == "output"


ENDING = """
    import atexit, os, pathlib, sys

    @atexit.register  # before gpiozero's own: so it is called after it
    def last():
        print(pin.function, pin.state, flush=True)

    import gpiozero
    from gpiozero.pins.mock import MockPin
    from meterd.config import GpioSettings
    from meterd.device.gpio import Gpio

    settings = GpioSettings(relay=24, relay_closed="high", led=22, case_switch=17)
    gpio = Gpio(settings, pathlib.Path("."))
    gpio.open(relay_closed=True)
    pin = gpiozero.Device.pin_factory.pin({pin})

    def become(its, function, *, write=os.write, number={pin}, before=MockPin._set_function):
        if its.info.name == f"GPIO{{number}}":
            write(1, b"becomes " + function.encode() + b", ")
        before(its, function)

    MockPin._set_function = become  # called at the very end too, when objects are given up
    {end}
"""


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("gpio.close()", id="all is closed"),
        pytest.param("", id="nothing is closed"),
        pytest.param("raise SystemExit(0)", id="it exits"),
        pytest.param("del gpio; import gc; gc.collect()", id="nobody knows it any more"),
    ],
)
def test_a_relay_stays_as_it_is_when_the_process_ends_and(tmp_path: Path, end: str) -> None:
    assert ended(tmp_path, RELAY, end) == "output True"


def test_gpiozero_lets_go_of_every_other_pin_at_the_end(tmp_path: Path) -> None:
    assert ended(tmp_path, LED, "gpio.close()") == "becomes input, input False"


def ended(folder: Path, pin: int, end: str) -> str:
    """What a pin is after gpiozero's own end of a process."""
    program = textwrap.dedent(ENDING).format(pin=pin, end=end)
    done = run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={"GPIOZERO_PIN_FACTORY": "mock", "PYTHONPATH": ":".join(sys.path)},
        timeout=DEADLINE_S,
    )
    assert done.stderr == ""
    return done.stdout.strip()


class FakeLgpio(types.ModuleType):
    """As much of lgpio as a relay needs, and what it was asked, in order."""

    def __init__(self) -> None:
        super().__init__("lgpio")
        self.done: list[tuple[str | int, ...]] = []
        self.levels: dict[int, int] = {}

    def gpiochip_open(self, chip: int) -> int:
        self.done.append(("open", chip))
        return 100 + chip

    def gpio_claim_output(self, handle: int, gpio: int, level: int = 0) -> int:
        self.done.append(("output", handle, gpio, level))
        self.levels[gpio] = level
        return 0

    def gpio_write(self, handle: int, gpio: int, level: int) -> int:
        self.done.append(("write", handle, gpio, level))
        self.levels[gpio] = level
        return 0

    def gpio_read(self, handle: int, gpio: int) -> int:
        return self.levels[gpio]


@pytest.mark.parametrize("level", [True, False])
def test_by_lgpio_a_relay_has_its_level_from_the_first_moment_on(
    monkeypatch: pytest.MonkeyPatch, level: bool
) -> None:
    lgpio = FakeLgpio()
    monkeypatch.setitem(sys.modules, "lgpio", lgpio)
    line = LgpioLine(4, RELAY, level=level)
    assert lgpio.done == [("open", 4), ("output", 104, RELAY, int(level))]
    assert line.read() is level
    line.write(not level)
    assert lgpio.done[2:] == [("write", 104, RELAY, int(not level))]
    assert line.read() is not level


@pytest.mark.usefixtures("factory")
def test_where_gpiozero_uses_lgpio_the_relay_is_none_of_its_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lgpio = FakeLgpio()
    monkeypatch.setitem(sys.modules, "lgpio", lgpio)

    class LGPIOFactory(MockFactory):  # type: ignore[misc]
        chip = 0

    LGPIOFactory.__module__ = gpio_module.LGPIO
    monkeypatch.setattr(gpiozero.Device, "pin_factory", LGPIOFactory())
    gpio = opened(GpioSettings(relay=RELAY, relay_closed="high"), tmp_path, relay_closed=True)
    assert gpio.factory == "LGPIOFactory"
    assert lgpio.done == [("open", 0), ("output", 100, RELAY, 1)]
    assert gpio.relay_closed is True
    gpio.close()
    assert len(lgpio.done) == 2


# --- what is missing ------------------------------------------------------------------------------


def test_without_gpiozero_one_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gpiozero", None)
    with pytest.raises(AbsentError, match="need gpiozero, which is not installed") as caught:
        Gpio(ALL, tmp_path).open(relay_closed=True)
    assert "meterd[gpio]" in caught.value.hint


def test_without_a_library_below_gpiozero_one_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpiozero.Device, "pin_factory", None)
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "none-such")
    with pytest.raises(AbsentError, match=r"no pin can be used: .*none-such") as caught:
        Gpio(ALL, tmp_path).open(relay_closed=True)
    assert "python3-lgpio" in caught.value.hint


@pytest.mark.usefixtures("factory")
def test_a_pin_that_cannot_be_had_is_named_and_the_others_work(tmp_path: Path) -> None:
    holder = gpiozero.OutputDevice(LED)
    gpio = Gpio(GpioSettings(led=LED, case_switch=CASE, magnet=53), tmp_path, Hands())
    gpio.open(relay_closed=True)
    assert [problem.split(":")[0] for problem in gpio.problems] == [
        "gpio.magnet on GPIO 53",
        f"gpio.led on GPIO {LED}",
    ]
    assert at_rest(gpio) == {"case_switch": True}
    assert gpio.relay_closed is None
    gpio.move_relay(closed=False)
    gpio.close()
    holder.close()


@pytest.mark.usefixtures("factory")
def test_a_pin_that_fails_later_is_an_error_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpio = opened(GpioSettings(case_switch=CASE), tmp_path)

    def fail(_: Any) -> bool:  # noqa: ANN401 - gpiozero is untyped
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(MockPin, "_get_state", fail)
    with pytest.raises(AbsentError, match=r"gpio\.case_switch cannot be read"):
        gpio.look()
    gpio.close()


@pytest.mark.usefixtures("factory")
def test_lgpio_is_told_where_its_pipe_may_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LG_WD")
    opened(GpioSettings(led=LED), tmp_path).close()
    assert os.environ["LG_WD"] == str(tmp_path)


def test_gpiozero_is_not_imported_by_the_meter() -> None:
    program = "import sys, meterd.run; sys.exit('gpiozero' in sys.modules)"
    run([sys.executable, "-c", program], check=True, timeout=DEADLINE_S)
