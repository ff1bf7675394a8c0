"""Events, alarms and the state of pins, around gpiozero's mock pins and a real card."""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import gpiozero
import pytest
from gpiozero.pins.mock import MockFactory

from meterd.bookkeeper import Bookkeeper
from meterd.config import GpioSettings
from meterd.device import gpio as gpio_module
from meterd.device.card import Card
from meterd.errors import AbsentError
from meterd.flapping import Flapping
from meterd.guard import KEPT_FILE, Guard
from meterd.lamp import compiled
from meterd.pins import EVENT_EVERY_MS, EVENTS_AT_ONCE, Kept, decode_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meterd.device.sealer import Sealer
    from meterd.ledger.event import Details

CASE, MAGNET, LED, BUTTON, RELAY = 17, 27, 22, 23, 24
CASE_ONLY = GpioSettings(case_switch=CASE)
RELAY_ONLY = GpioSettings(relay=RELAY, relay_closed="high")
LOGGER = logging.getLogger("meterd-test-guard")
DEADLINE_S = 30.0


class Book(Bookkeeper):
    """An account that only remembers what happened."""

    def __init__(self) -> None:
        self.happened: list[tuple[str, Details]] = []
        self.alarms: dict[str, str] = {}
        self._flapping = Flapping()
        self._sealer = cast("Sealer", SimpleNamespace(boot_ms=0))
        self.alarmed = lambda *_, **__: None

    def event(self, kind: str, details: Details = ()) -> None:
        self.happened.append((kind, details))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.happened if kind not in {"alarm", "alarm_over"}]


class House:
    """A guard with a clock, a loop's turns and a card in the test's hands."""

    def __init__(self, folder: Path, settings: GpioSettings, *, wish: bool | None = None) -> None:
        self.folder, self.book, self.card = folder, Book(), Card()
        self.guard = Guard(folder, settings, self.book, LOGGER)
        self.at_ms = 10_000
        self.guard.pins.now_ms = lambda: self.at_ms
        self.guard.pins.open(relay_closed=self.guard.relay.closed)
        self.guard._move_relay()
        if wish is not None:
            self.guard.switch(closed=wish)
        self.look()
        self.look(50)
        self.turn()

    def look(self, more_ms: int = 0) -> None:
        self.at_ms += more_ms
        self.guard._changes += self.guard.pins.look()

    def set(self, drive: Callable[[], None]) -> None:
        """Move a pin, and let it come to rest."""
        drive()
        self.look()
        self.look(50)

    def turn(self) -> None:
        self.guard.turn()

    def write(self) -> None:
        """Let the card have what there is."""
        self.card.perform(self.guard.take_operations())
        self.guard.written()
        self.guard._move_relay()
        self.turn()

    @property
    def on_card(self) -> Kept:
        return decode_kept((self.folder / KEPT_FILE).read_bytes())

    def close(self) -> None:
        self.guard.pins.close()


@pytest.fixture(autouse=True)
def factory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockFactory]:
    made = MockFactory()
    monkeypatch.setattr(gpiozero.Device, "pin_factory", made)
    monkeypatch.setattr(gpio_module, "_relays", {})
    monkeypatch.setattr(atexit, "register", lambda function: function)
    monkeypatch.setenv("LG_WD", "")
    yield made
    made.reset()


def closed_case(factory: MockFactory) -> Callable[[], None]:
    """Shut the case before the meter looks; returns what opens it."""
    pin = factory.pin(CASE)
    pin.pull = "up"
    pin.drive_low()
    # A pull is set as the device opens, and gpiozero's mock then drives the pin there.
    pin._set_pull = lambda _: None
    return cast("Callable[[], None]", pin.drive_high)


# --- the case -------------------------------------------------------------------------------------


def test_e2_an_opened_case_is_one_event_and_an_alarm_until_it_is_acknowledged(
    factory: MockFactory, tmp_path: Path
) -> None:
    open_case = closed_case(factory)
    house = House(tmp_path, CASE_ONLY)
    assert (house.book.kinds, house.book.alarms) == ([], {})
    house.set(open_case)
    house.turn()
    assert house.book.kinds == ["case_opened"]
    house.set(factory.pin(CASE).drive_low)
    house.turn()
    assert house.book.kinds == ["case_opened", "case_closed"]
    assert list(house.book.alarms) == ["case"]
    assert house.guard.acknowledge()
    assert not house.guard.acknowledge()
    assert house.book.alarms == {}
    assert house.book.kinds == ["case_opened", "case_closed", "case_acknowledged"]
    house.close()


def test_e2_a_case_opened_while_off_is_found_at_the_start(
    factory: MockFactory, tmp_path: Path
) -> None:
    open_case = closed_case(factory)
    before = House(tmp_path, CASE_ONLY)
    before.write()
    before.close()
    assert before.on_card == Kept(case_open=False)
    open_case()
    after = House(tmp_path, CASE_ONLY)
    assert after.book.kinds == ["case_opened_while_off"]
    assert list(after.book.alarms) == ["case"]
    after.close()


def test_e2_a_case_closed_while_off_is_found_and_its_alarm_stands(
    factory: MockFactory, tmp_path: Path
) -> None:
    open_case = closed_case(factory)
    before = House(tmp_path, CASE_ONLY)
    before.set(open_case)
    before.turn()
    before.write()
    before.close()
    factory.pin(CASE).drive_low()
    after = House(tmp_path, CASE_ONLY)
    assert after.book.kinds == ["case_closed_while_off"]
    assert list(after.book.alarms) == ["case"]  # nobody has looked at it yet
    after.close()


def test_an_acknowledged_alarm_stays_away_after_a_restart(
    factory: MockFactory, tmp_path: Path
) -> None:
    open_case = closed_case(factory)
    before = House(tmp_path, CASE_ONLY)
    before.set(open_case)
    before.turn()
    before.guard.acknowledge()
    before.write()
    before.close()
    after = House(tmp_path, CASE_ONLY)
    assert (after.book.kinds, after.book.alarms) == ([], {})
    after.close()


def test_an_opening_is_told_again_where_power_failed_between_its_event_and_its_state(
    factory: MockFactory, tmp_path: Path
) -> None:
    open_case = closed_case(factory)
    before = House(tmp_path, CASE_ONLY)
    before.write()
    before.set(open_case)
    before.turn()  # the event is in the account, and the state that follows is lost
    before.close()
    after = House(tmp_path, CASE_ONLY)
    assert after.book.kinds == ["case_opened_while_off"]
    after.close()


def test_what_is_kept_is_to_be_durable_at_once(factory: MockFactory, tmp_path: Path) -> None:
    open_case = closed_case(factory)
    house = House(tmp_path, CASE_ONLY)
    house.write()
    pending = [house.guard.pending]
    house.set(open_case)
    house.turn()
    pending.append(house.guard.pending)
    (operation,) = house.guard.take_operations()
    assert (operation.kind, operation.path) == ("replace", tmp_path / KEPT_FILE)
    pending.append(house.guard.pending)
    assert pending == [False, True, False]
    house.close()


def test_a_case_opened_and_closed_within_one_turn_is_two_events(
    factory: MockFactory, tmp_path: Path
) -> None:
    open_case = closed_case(factory)
    house = House(tmp_path, CASE_ONLY)
    house.write()
    house.set(open_case)
    house.set(factory.pin(CASE).drive_low)
    house.turn()
    assert house.book.kinds == ["case_opened", "case_closed"]
    assert list(house.book.alarms) == ["case"]
    assert house.guard.pending  # what is kept is another: the alarm
    house.close()


def test_whoever_rattles_the_case_does_not_fill_the_card(
    factory: MockFactory, tmp_path: Path
) -> None:
    open_case = closed_case(factory)
    house = House(tmp_path, CASE_ONLY)
    for _ in range(100):
        house.set(open_case)
        house.turn()
        house.set(factory.pin(CASE).drive_low)
        house.turn()
    told = house.book.happened
    # 100 ms each: in all 10 s, so one more than at once.
    kinds = house.book.kinds
    assert EVENTS_AT_ONCE <= len(kinds) <= EVENTS_AT_ONCE + 1
    house.at_ms += EVENT_EVERY_MS
    house.turn()
    assert len(house.book.kinds) == len(kinds) + 1
    assert house.book.kinds[-1] == "case_closed"  # as it is now
    untold = sum(int(value) for _, details in told for name, value in details if name == "untold")
    assert len(house.book.kinds) + untold == 200
    house.close()


def test_the_bounces_before_a_change_are_told_with_it(factory: MockFactory, tmp_path: Path) -> None:
    open_case = closed_case(factory)
    house = House(tmp_path, CASE_ONLY)
    for _ in range(3):
        open_case()
        factory.pin(CASE).drive_low()
    house.set(open_case)
    house.turn()
    assert house.book.happened[0] == ("case_opened", (("bounces", 6),))
    house.close()


def test_e2_a_pin_that_never_settles_is_an_alarm_until_it_does(
    factory: MockFactory, tmp_path: Path
) -> None:
    open_case = closed_case(factory)
    house = House(tmp_path, CASE_ONLY)
    for _ in range(150):
        open_case()
        house.look(20)
        factory.pin(CASE).drive_low()
        house.look(20)
    house.turn()
    assert list(house.book.alarms) == ["case_switch_stuck"]
    house.look(50)
    house.turn()
    assert house.book.alarms == {}
    house.close()


# --- magnet and button ----------------------------------------------------------------------------


def test_e2_a_magnet_is_an_event_and_an_alarm_while_it_is_there(
    factory: MockFactory, tmp_path: Path
) -> None:
    house = House(tmp_path, GpioSettings(magnet=MAGNET))
    house.set(factory.pin(MAGNET).drive_low)
    house.turn()
    assert (house.book.kinds, list(house.book.alarms)) == (["magnet"], ["magnet"])
    pending = [house.guard.pending]
    house.write()
    pending.append(house.guard.pending)
    house.set(factory.pin(MAGNET).drive_high)
    house.turn()
    pending.append(house.guard.pending)
    assert pending == [True, False, True], "it waits for the next samples"
    assert (house.book.kinds, house.book.alarms) == (["magnet", "magnet_gone"], {})
    house.close()


def test_a_button_is_an_event_when_it_is_pressed(factory: MockFactory, tmp_path: Path) -> None:
    house = House(tmp_path, GpioSettings(button=BUTTON))
    house.set(factory.pin(BUTTON).drive_low)
    house.set(factory.pin(BUTTON).drive_high)
    house.turn()
    assert house.book.kinds == ["button"]
    house.close()


# --- the relay ------------------------------------------------------------------------------------


def test_a_wish_is_on_the_card_before_the_relay_moves(factory: MockFactory, tmp_path: Path) -> None:
    house = House(tmp_path, RELAY_ONLY)
    pin = factory.pin(RELAY)
    assert house.guard.switch(closed=False)
    assert not house.guard.switch(closed=False)
    operations = house.guard.take_operations()
    house.guard._move_relay()
    assert (pin.state, house.guard.relay.state) == (True, "keeping")
    house.card.perform(operations)
    house.guard._move_relay()
    assert pin.state is True  # nobody has said yet that it is there
    house.guard.written()
    house.guard._move_relay()
    house.turn()
    assert (pin.state, house.guard.relay.state) == (False, "open")
    assert house.book.happened == [
        ("relay_ordered", (("to", "open"),)),
        ("relay_confirmed", (("to", "open"),)),
    ]
    assert house.on_card == Kept(relay_closed=False)
    house.close()


def test_a_wish_before_the_first_turn_is_confirmed_too(tmp_path: Path) -> None:
    house = House(tmp_path, RELAY_ONLY, wish=False)
    house.write()
    assert house.book.kinds == ["relay_ordered", "relay_confirmed"]
    house.close()


def test_a_wish_that_was_taken_back_is_confirmed_as_it_is(tmp_path: Path) -> None:
    house = House(tmp_path, RELAY_ONLY)
    house.guard.switch(closed=False)
    house.guard.switch(closed=True)
    house.write()
    house.write()
    assert house.book.happened[2:] == [("relay_confirmed", (("to", "closed"),))]
    house.close()


@pytest.mark.parametrize("closed", [True, False])
def test_a_relay_is_as_it_was_after_a_restart(
    factory: MockFactory, tmp_path: Path, closed: bool
) -> None:
    before = House(tmp_path, RELAY_ONLY)
    before.guard.switch(closed=not closed)
    before.write()
    before.guard.switch(closed=closed)
    before.write()
    before.close()
    pin = factory.pin(RELAY)
    pin.clear_states()
    after = House(tmp_path, RELAY_ONLY)
    assert (pin.function, [state.state for state in pin.states]) == ("output", [closed])
    assert after.guard.relay.state == ("closed" if closed else "open")
    assert after.book.happened == []
    after.close()


def test_a_pin_that_does_not_follow_is_an_alarm(
    factory: MockFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, RELAY_ONLY)
    monkeypatch.setattr(factory.pin(RELAY), "_set_state", lambda _: None)
    house.guard.switch(closed=False)
    house.write()
    assert list(house.book.alarms) == ["relay"]
    assert house.book.kinds == ["relay_ordered"]
    house.close()


def test_there_is_nothing_to_switch_without_a_relay(tmp_path: Path) -> None:
    guard = Guard(tmp_path, CASE_ONLY, Book(), LOGGER)
    with pytest.raises(AbsentError, match="no relay is wired") as caught:
        guard.switch(closed=False)
    assert "[gpio]" in caught.value.hint


# --- the LED --------------------------------------------------------------------------------------


def test_the_led_shows_the_worst_alarm(tmp_path: Path) -> None:
    house = House(tmp_path, GpioSettings(led=LED))
    shown = []
    for alarm in ("neighbours", "port", "storage_low"):
        house.book.raise_alarm(alarm, "", stands=True)
        house.turn()
        shown.append(house.guard.pins._pattern)
    house.guard.turn("stopped")
    shown.append(house.guard.pins._pattern)
    patterns = ("4 short, pause", "2 short, pause", "2 long, pause", "3 long, pause")
    assert shown == [compiled(pattern) for pattern in patterns]
    house.close()


# --- what is missing or damaged -------------------------------------------------------------------


def watched(guard: Guard) -> None:
    async def watch() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await guard.watch(lambda: None)

    asyncio.run(watch())


def test_without_gpiozero_there_is_an_alarm_and_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "gpiozero", None)
    book = Book()
    guard = Guard(tmp_path, GpioSettings(case_switch=CASE, led=LED), book, LOGGER)
    watched(guard)  # returns: metering goes on without it
    guard.turn()
    guard.turn()
    assert list(book.alarms) == ["gpio"]
    assert "meterd[gpio]" in book.alarms["gpio"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("gpio_absent reason=")


def test_the_pin_factory_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(tmp_path, GpioSettings(led=LED), Book(), LOGGER)
    caplog.set_level(logging.INFO)

    async def watch() -> None:
        opened = asyncio.Event()
        watching = asyncio.create_task(guard.watch(opened.set))
        await opened.wait()
        watching.cancel()
        await asyncio.wait((watching,))

    asyncio.run(watch())
    assert [record.getMessage() for record in caplog.records] == ["gpio_opened factory=MockFactory"]


def test_where_no_pin_is_configured_nothing_is_opened_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gpiozero", None)
    (tmp_path / KEPT_FILE).write_bytes(b"damaged")
    book = Book()
    guard = Guard(tmp_path, GpioSettings(), book, LOGGER)
    watched(guard)
    guard.turn()
    assert (book.happened, book.alarms) == ([], {})
    assert not guard.pending
    assert guard.take_operations() == []


def test_a_damaged_state_is_an_event_and_what_is_found_counts(
    factory: MockFactory, tmp_path: Path
) -> None:
    closed_case(factory)()
    (tmp_path / KEPT_FILE).write_bytes(b"damaged")
    house = House(tmp_path, CASE_ONLY)
    assert house.book.kinds == ["pins_forgotten", "case_opened"]
    house.write()
    assert house.on_card == Kept(case_open=True, case_alarm=True)
    house.close()
