"""What the pins mean for the account: events, alarms, and the state that outlasts the process.

`watch` owns the pins and only collects; `turn`, called by the measuring task, writes the account.
An event is on the card before the state that follows from it: if power fails between the two, the
next start tells of an opening once more, and never not at all. A start without gpiozero, or with a
pin that cannot be used, is an alarm, and metering goes on.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.device.card import Operation
from meterd.device.gpio import INPUTS, Gpio
from meterd.device.systemd import log_event
from meterd.errors import AbsentError, EncodingError
from meterd.lamp import ALARMS, worst
from meterd.pins import Kept, Ration, Relay, case_event, decode_kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterd.bookkeeper import Bookkeeper
    from meterd.config import GpioSettings
    from meterd.ledger.event import Details
    from meterd.pins import Change

KEPT_FILE = "pins"
REASON_LETTERS_MAX = 200  # of a reason, in an event
KINDS = {"magnet": ("magnet_gone", "magnet"), "button": ("", "button")}  # kinds: inactive, active


class Guard:
    """Guards one meter. Where nothing is configured it does nothing, and opens nothing.

    Attributes:
        pins: The pins themselves.
        kept: What is to outlast the process; on the card a moment later.
        relay: Where the disconnect relay stands.
    """

    def __init__(
        self, state: Path, settings: GpioSettings, book: Bookkeeper, logger: logging.Logger
    ) -> None:
        """Read what an earlier process kept; `watch` opens the pins."""
        self._settings, self._book, self._logger = settings, book, logger
        self._path = state / KEPT_FILE
        self._forgotten = ""
        self.kept = self._read() if settings.used else Kept()
        self.relay = Relay(self.kept.relay_closed)
        folder = Path(os.environ.get("RUNTIME_DIRECTORY") or state)
        self.pins = Gpio(settings, folder)
        self._changes: list[tuple[str, Change]] = []
        self._known = set[str]()  # inputs whose first level since the start is known
        self._rations = {name: Ration() for name in INPUTS}
        self._untold: dict[str, tuple[int, Change]] = {}  # how many, and the last
        self._absent: AbsentError | None = None
        self._writing = self.kept
        self._urgent = False
        self._relay_told = ""  # the last state of the relay that came to rest
        self._ordered = False  # and whether it has been ordered to another since

    def _read(self) -> Kept:
        try:
            return decode_kept(self._path.read_bytes())
        except FileNotFoundError:
            return Kept()
        except (EncodingError, OSError) as error:
            self._forgotten = str(error)
            return Kept()

    # --- the task that owns the pins --------------------------------------------------------

    async def watch(self, wake: Callable[[], None]) -> None:
        """Watch the pins until cancelled; returns where there are none, or none that work.

        Args:
            wake: Called when `turn` has something to do.
        """
        if not self._settings.used:
            return

        def opened() -> None:
            gpio = self.pins
            fields = {"passed_over": "; ".join(gpio.passed_over)} if gpio.passed_over else {}
            log_event(self._logger, logging.INFO, "gpio_opened", factory=gpio.factory, **fields)
            if gpio.problems:
                self._fail(AbsentError("; ".join(gpio.problems)))
            wake()

        def changed(changes: list[tuple[str, Change]]) -> None:
            self._changes += changes
            if self._move_relay() or changes:
                wake()

        try:
            await self.pins.watch(self.relay.closed, opened, changed)
        except AbsentError as error:
            self._fail(error)
            wake()

    def _fail(self, error: AbsentError) -> None:
        self._absent = error
        fields = {"reason": str(error)} | ({"hint": error.hint} if error.hint else {})
        log_event(self._logger, logging.ERROR, "gpio_absent", **fields)

    def _move_relay(self) -> bool:
        """Let the pin follow a wish that is on the card; return whether the account is to know."""
        if self.pins.relay_closed is None:
            return False
        if self.relay.state == "moving":
            self.pins.move_relay(closed=self.relay.closed)
        if self.relay.state != "keeping":
            self.relay.showed(self.pins.relay_closed)
        return self.relay.state not in {"keeping", self._relay_told}

    # --- the account; only the measuring task comes here ------------------------------------

    def turn(self, *troubles: str) -> None:
        """Write down what has happened to the pins, and let the LED say how the meter is.

        Args:
            troubles: What the LED has to say besides alarms, of `lamp.PATTERNS`.
        """
        if not self._settings.used:
            return
        book, now_ms = self._book, self.pins.now_ms()
        if self._forgotten:
            self._event("pins_forgotten", (("reason", self._forgotten[:REASON_LETTERS_MAX]),))
            self._forgotten = ""
        if self._absent is not None:
            book.raise_alarm("gpio", f"{self._absent}; {self._absent.hint}", stands=True)
        self._see_case_alarm()
        changes, self._changes = self._changes, []
        for name, change in changes:
            if name not in self._known:
                self._known.add(name)
                self._tell(name, change, first=True)
            elif name in self._untold or not self._rations[name].take(now_ms):
                self._untold[name] = (self._untold.get(name, (0, change))[0] + 1, change)
            else:
                self._tell(name, change)
        for name, (count, change) in list(self._untold.items()):
            if self._rations[name].take(now_ms):
                del self._untold[name]
                self._tell(name, change, untold=count - 1)
        for name, stuck in self.pins.stuck.items():
            book.raise_alarm(
                f"{name}_stuck",
                f"gpio.{name} does not come to rest: look at its switch and its wire",
                stands=stuck,
            )
        self._tell_relay()
        alarms = {ALARMS[kind] for kind in book.alarms if kind in ALARMS}
        self.pins.show(worst({*troubles, *alarms}))

    def _event(self, kind: str, details: Details) -> None:
        self._book.event(kind, details)
        self._urgent = True

    def _tell(self, name: str, change: Change, *, first: bool = False, untold: int = 0) -> None:
        details: Details = (
            *((("bounces", change.bounces),) if change.bounces else ()),
            *((("untold", untold),) if untold else ()),
        )
        if name == "case_switch":
            kind = case_event(self.kept.case_open, is_open=change.active, first=first)
            opened = bool(kind) and (change.active or untold > 0)
            alarm = self.kept.case_alarm or opened
            self.kept = self.kept._replace(case_open=change.active, case_alarm=alarm)
        else:
            kind = "" if first and not change.active else KINDS[name][change.active]
        if kind:
            self._event(kind, details)
        if name == "magnet":
            text = "a magnet is at the meter: take it away"
            self._book.raise_alarm("magnet", text, stands=change.active)
        self._see_case_alarm()

    def _see_case_alarm(self) -> None:
        text = "the case was opened: look at the meter, and acknowledge it"
        self._book.raise_alarm("case", text, stands=self.kept.case_alarm)

    def _tell_relay(self) -> None:
        state = self.relay.state
        if state in {"keeping", "moving"} or (state == self._relay_told and not self._ordered):
            return
        self._relay_told = state
        self._book.raise_alarm(
            "relay",
            "the relay's pin is not what it was set to: look for a short",
            stands=state == "failed",
        )
        if self._ordered and state != "failed":
            self._ordered = False
            self._event("relay_confirmed", (("to", state),))

    # --- what is asked of it ----------------------------------------------------------------

    def acknowledge(self, who: Details = ()) -> bool:
        """Let the alarm that the case was opened fall; return whether it stood.

        Args:
            who: Whoever says so, for the event.
        """
        if not self.kept.case_alarm:
            return False
        self.kept = self.kept._replace(case_alarm=False)
        self._event("case_acknowledged", who)
        self._see_case_alarm()
        return True

    def need_relay(self) -> None:
        """See that there is a relay.

        Raises:
            AbsentError: None is wired.
        """
        if self._settings.relay is None:
            raise AbsentError("no relay is wired", hint="name its pin as `relay` in [gpio]")

    def switch(self, *, closed: bool, who: Details = ()) -> bool:
        """Wish the relay closed or open; return whether that is another wish than the last.

        The pin moves once the wish is on the card.

        Args:
            closed: What is wished.
            who: Whoever wishes it, for the event.

        Raises:
            AbsentError: No relay is wired.
        """
        self.need_relay()
        if not self.relay.wish(closed):
            return False
        self.kept = self.kept._replace(relay_closed=closed)
        self._ordered = True
        self._event("relay_ordered", (("to", "closed" if closed else "open"), *who))
        return True

    # --- the card ---------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether something should be made durable now, and not with the next samples."""
        return self._urgent or self.kept != self._writing

    def take_operations(self) -> list[Operation]:
        """Return what keeps the state; to be performed behind all events so far."""
        self._urgent = False
        if self.kept == self._writing:
            return []
        self._writing = self.kept
        return [Operation("replace", self._path, self.kept.encode())]

    def written(self) -> None:
        """Note that what was handed out is on the card; the relay may follow."""
        if self._writing.relay_closed is not None:
            self.relay.durable(self._writing.relay_closed)
            self.pins.wake()
