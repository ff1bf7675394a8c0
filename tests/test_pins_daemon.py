"""`meterd run` with pins: gpiozero's mock in the daemon, moved by the test from another thread."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from meterd.guard import KEPT_FILE
from meterd.pins import Kept, decode_kept
from tests.conftest import ROOT
from tests.daemon_kit import Cable, House, Program, line, make_house, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GPIO = """
[gpio]
case_switch = 17
magnet = 27
led = 22
relay = 24
relay_closed = "high"
"""
WITHOUT_GPIOZERO = (
    "import sys; sys.modules['gpiozero'] = None; from meterd.__main__ import main; sys.exit(main())"
)
SECOND_MS = 1000
NEVER_S = 3600  # between two commits: what is on the card earlier was hurried there


class Wires:
    """What is wired to the pins of one house's daemons."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.fifo = house.folder / "wires"
        os.mkfifo(self.fifo)
        house.program = (sys.executable, "-m", "tests.mock_pins")

    @contextlib.contextmanager
    def running(self, wired: str) -> Iterator[Program]:
        """Run the daemon with these levels at its start, once its pins are open."""
        environ = {
            "GPIOZERO_PIN_FACTORY": "mock",
            "MOCK_PINS": wired,
            "MOCK_PINS_FIFO": str(self.fifo),
            "PYTHONPATH": str(ROOT),
        }
        with self.house.run(environ=environ) as meter:
            meter.hear("gpio_opened factory=MockFactory")
            yield meter

    def move(self, *levels: str) -> None:
        """Move pins, one after another: `17 high`."""
        self.fifo.write_text("".join(f"{level}\n" for level in levels))

    def happened(self) -> list[str]:
        """Which events of pins are on the card."""
        return [kind for kind in self.house.account.kinds_of_events if kind.startswith(PIN_KINDS)]


PIN_KINDS = ("case_", "magnet", "pins_", "relay_")


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Wires]:
    house = make_house(tmp_path, commit_s=NEVER_S)
    house.config.write_text(house.config.read_text() + GPIO)
    with Cable(house.port):
        yield Wires(house)


def boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def test_e2_a_case_opened_while_running_is_on_the_card_at_once(wires: Wires) -> None:
    with wires.running("17=low,27=high") as meter:
        until((wires.house.state / KEPT_FILE).exists, "the case is known to be closed")
        edge_ms = boot_ms()
        # It bounces, as contacts do; the mock does nothing about that.
        wires.move("17 high", "17 low", "17 high", "17 low", "17 high")
        meter.hear("alarm alarm=case ")
        until(lambda: wires.happened() == ["case_opened"], "the event is on the card")
        until(lambda: kept(wires).case_alarm, "the alarm is on the card")
        meter.stop(signal.SIGKILL)
    (event,) = (one for one in wires.house.account.events if one.kind == "case_opened")
    assert 0 <= event.boot_ms - edge_ms <= SECOND_MS
    assert kept(wires) == Kept(case_open=True, case_alarm=True)
    with wires.running("17=high,27=high") as meter:
        meter.hear("alarm alarm=case ")  # nobody has acknowledged it
        assert meter.stop() == 0
    assert wires.happened() == ["case_opened"]


def kept(wires: Wires) -> Kept:
    return decode_kept((wires.house.state / KEPT_FILE).read_bytes())


def test_e2_a_case_opened_while_off_is_found_at_the_start(wires: Wires) -> None:
    with wires.running("17=low,27=high") as meter:
        until((wires.house.state / KEPT_FILE).exists, "the case is known to be closed")
        assert meter.stop() == 0
    assert wires.happened() == []
    with wires.running("17=high,27=high") as meter:
        meter.hear("alarm alarm=case ")
        until(lambda: wires.happened() == ["case_opened_while_off"], "the event is on the card")
        assert meter.stop() == 0
    wires.house.verify_good()


def test_e2_a_magnet_is_told_while_it_is_there(wires: Wires) -> None:
    with wires.running("17=low,27=high") as meter:
        wires.move("27 low")
        meter.hear("alarm alarm=magnet ")
        wires.move("27 high")
        meter.hear("alarm_over alarm=magnet")
        assert meter.stop() == 0
    assert wires.happened() == ["magnet", "magnet_gone"]


@pytest.mark.parametrize(
    ("kept", "level"),
    [
        pytest.param(None, "high", id="closed before any wish"),
        pytest.param(True, "high", id="closed"),
        pytest.param(False, "low", id="open"),
    ],
)
def test_a_relay_is_as_it_was_and_outlasts_the_daemon(
    wires: Wires, kept: bool | None, level: str
) -> None:
    (wires.house.state / KEPT_FILE).write_bytes(Kept(False, relay_closed=kept).encode())
    for _ in range(2):
        with wires.running("17=low,27=high") as meter:
            wires.house.ask()
            assert meter.stop() == 0
            assert f"pin GPIO24 output {level}" in meter.lines
            assert "pin GPIO22 input" in meter.said  # the LED is dark
    assert wires.happened() == []


def test_a_relay_that_is_ordered_open_moves_and_stays_so(wires: Wires) -> None:
    with wires.running("17=low,27=high") as meter:
        wires.move("relay open")
        until(lambda: "relay_confirmed" in wires.happened(), "the relay has moved")
        meter.stop(signal.SIGKILL)
    assert kept(wires).relay_closed is False
    assert wires.happened() == ["relay_ordered", "relay_confirmed"]
    with wires.running("17=low,27=high") as meter:
        wires.house.ask()
        assert meter.stop() == 0
        assert "pin GPIO24 output low" in meter.lines
    assert wires.happened() == ["relay_ordered", "relay_confirmed"]


def test_without_gpiozero_metering_goes_on(tmp_path: Path) -> None:
    house = make_house(tmp_path)
    house.config.write_text(house.config.read_text() + GPIO)
    house.program = (sys.executable, "-c", WITHOUT_GPIOZERO)
    with Cable(house.port) as cable, house.run() as meter:
        meter.hear("gpio_absent reason=.*not installed.* hint=.*meterd.gpio")
        meter.hear("alarm alarm=gpio ")
        house.ask()
        cable.say(line(100.0))
        cable.say(line(200.0))
        house.wait_accepted(2)
        assert meter.stop() == 0
    assert "gpio_absent" not in meter.said.partition("gpio_absent")[2]  # told once
    house.verify_good()
