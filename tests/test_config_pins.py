"""The pins that the settings name: what each may be, and what no two may share."""

from __future__ import annotations

import pytest

from meterd.config import GpioSettings, parameters
from tests.config_kit import LEAST, good, least, mistakes_in


def test_every_pin_is_taken_over() -> None:
    settings = good(
        least(
            "gpio",
            case_switch="17",
            case_open='"low"',
            magnet="27",
            led="22",
            button="23",
            relay="24",
            relay_closed='"low"',
            debounce_ms="20",
        )
    )
    assert settings.gpio == GpioSettings(
        case_switch=17,
        case_open="low",
        magnet=27,
        led=22,
        button=23,
        relay=24,
        relay_closed="low",
        debounce_ms=20,
    )
    assert settings.gpio.used


def test_pins_bear_on_no_measurement_and_none_is_used_unless_named() -> None:
    wired = good(least("gpio", led="22"))
    assert parameters(wired) == parameters(good(LEAST))
    assert not good(LEAST).gpio.used
    assert not good(least("gpio", debounce_ms="20")).gpio.used


PINS_WRONG = [
    pytest.param(
        "[gpio]\ncase_switch = 17\nled = 22\nrelay = 17\n",
        ("gpio.relay", 11, "GPIO 17 is gpio.case_switch too", False),
        id="doubled",
    ),
    pytest.param(
        "[gpio]\nled = 14\n",
        ("gpio.led", 9, "GPIO 14 is the serial port's, which the board speaks on", False),
        id="the port's, out",
    ),
    pytest.param(
        "[gpio]\nbutton = 15\n",
        ("gpio.button", 9, "GPIO 15 is the serial port's, which the board speaks on", False),
        id="the port's, in",
    ),
    pytest.param(
        "[gpio]\nmagnet = 4\n",
        ("gpio.magnet", 9, "GPIO 4 is the 1-Wire bus where dtoverlay=w1-gpio is set", True),
        id="maybe of 1-Wire",
    ),
    pytest.param(
        '[gpio]\ncase_switch = 3\ncase_open = "low"\n',
        (
            "gpio.case_open",
            10,
            "GPIO 3 has a resistor to 3.3 V on the Pi: it cannot rest low",
            False,
        ),
        id="pulled the other way",
    ),
    pytest.param(
        '[gpio]\nled = 22\ncase_open = "low"\n',
        ("gpio.case_open", 10, "says nothing without gpio.case_switch", True),
        id="about a switch that is not there",
    ),
    pytest.param(
        '[gpio]\nled = 22\nrelay_closed = "low"\n',
        ("gpio.relay_closed", 10, "says nothing without gpio.relay", True),
        id="about a relay that is not there",
    ),
    pytest.param(
        "[gpio]\nrelay = 5\n",
        (
            "gpio.relay",
            9,
            "GPIO 5 is pulled high while the Pi boots: the contact is open until then",
            True,
        ),
        id="of a relay that drops while the Pi boots",
    ),
    pytest.param(
        '[gpio]\nrelay = 24\nrelay_closed = "high"\n',
        (
            "gpio.relay",
            9,
            "GPIO 24 is pulled low while the Pi boots: the contact is open until then",
            True,
        ),
        id="of a relay that needs a level to be closed",
    ),
]


@pytest.mark.parametrize(("text", "expected"), PINS_WRONG)
def test_a_pin_is_named_that_is(text: str, expected: tuple[str, int, str, bool]) -> None:
    (mistake,) = mistakes_in(LEAST + text)
    assert (mistake.key, mistake.line, mistake.problem, mistake.warning) == expected
    assert mistake.hint


def test_a_pin_that_resets_the_board_is_nobody_elses() -> None:
    text = least("board", reset_gpio="17") + "[gpio]\nled = 17\n"
    (mistake,) = mistakes_in(text)
    assert mistake.problem == "GPIO 17 is board.reset_gpio too"


@pytest.mark.parametrize("closed", ["high", "low"])
def test_what_a_compute_modules_pin_is_pulled_to_is_not_known(closed: str) -> None:
    assert mistakes_in(least("gpio", relay="40", relay_closed=f'"{closed}"')) == []
