"""What is wired to the pins: the case switch, the LED, the relay."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from meterd.guard import KEPT_FILE
from meterd.pins import decode_kept
from tests.daemon_kit import until

if TYPE_CHECKING:
    from hw_tests.rig import Rig

EVENT_S_MAX = 1.0
HAND_S = 2.0  # between a hand on the case and one on the Enter key


def events_of(rig: Rig, *begins: str) -> list[str]:
    return [kind for kind in rig.house.account.kinds_of_events if kind.startswith(begins)]


def test_an_opened_case_is_an_event_within_a_second(rig: Rig) -> None:
    rig.need_pin("case_switch")
    rig.need_hand("open the case")
    with rig.metering() as meter:
        until((rig.house.state / KEPT_FILE).exists, "the case is known to be closed")
        moved_s = rig.move_case(opened=True)
        meter.hear("alarm alarm=case ")
        took_s = time.monotonic() - moved_s
        until(lambda: "case_opened" in events_of(rig, "case_"), "the event is on the card")
        rig.move_case(opened=False)
        until(lambda: "case_closed" in events_of(rig, "case_"), "and that it was closed")
        assert meter.stop() == 0
    assert took_s <= EVENT_S_MAX + (HAND_S if rig.bench.interactive else 0)


def test_the_led_is_shown(rig: Rig) -> None:
    rig.need_pin("led")
    rig.need_hand("look at the LED")
    with rig.metering() as meter:
        rig.sees_flashes(meter)
        assert meter.stop() == 0


def test_the_relay_moves_and_keeps_its_state_over_a_restart(rig: Rig) -> None:
    rig.need_pin("relay")
    with rig.metering() as meter:
        for number, order in enumerate(("open", "closed", "open"), 1):
            move_relay(rig, order, number)
        rig.hears("the relay clicked three times")
        meter.stop(signal.SIGKILL)
    kept = decode_kept((rig.house.state / KEPT_FILE).read_bytes())
    assert kept.relay_closed is False
    with rig.metering() as meter:
        rig.live(0)
        rig.hears("the relay stayed as it was, without a click")
        assert events_of(rig, "relay_").count("relay_confirmed") == 3
        move_relay(rig, "closed", 4)  # a household gets its power back
        assert meter.stop() == 0


def move_relay(rig: Rig, order: str, number: int) -> None:
    """Ask for a state of the relay; wait until the pin, read back, has it."""
    rig.order_relay(order)
    until(
        lambda: events_of(rig, "relay_").count("relay_confirmed") == number,
        f"the relay is {order}",
    )
