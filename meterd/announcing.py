"""Which of a meter's events others are told of, in which words, and how many at most.

Words alone go out, and of closed sets: a detail of an event may name a certificate or a reading,
and has no way from here to a neighbour. A flapping alarm is rationed. What is left out is counted,
and told of with the next one that is not; so the newest state of every alarm comes through.

>>> from meterd.ledger.event import Event
>>> from meterd.pins import EVENT_EVERY_MS, EVENTS_AT_ONCE
>>> announcer = Announcer("kitchen-12", 1)
>>> for number in range(1, 100):
...     kind = "alarm" if number % 2 else "alarm_over"
...     announcer.note(Event(number=number, boot_ms=0, wall_ms=0, kind=kind,
...                          details=(("alarm", "port"),)))
>>> [alarm.number for alarm in announcer.take(99)] == list(range(1, EVENTS_AT_ONCE + 1))
True
>>> announcer.turn(EVENT_EVERY_MS)
>>> [(alarm.number, alarm.untold, len(alarm.standing)) for alarm in announcer.take(99)]
[(99, 82, 1)]
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from meterd.ledger.alarm import OVER, RAISED, Alarm, Standing
from meterd.pins import Ration

if TYPE_CHECKING:
    from meterd.ledger.event import Event

KINDS = frozenset(
    {
        *(RAISED, OVER),
        *("started", "stopped", "power_lost", "died", "refused", "software_updated"),
        *("configuration", "parameters", "commissioned", "failed"),
        *("key_made", "key_moved", "key_gone", "key_rotated"),
        *("technician_entered", "technician_left", "technician_command", "login_refused"),
        *("case_opened", "case_closed", "case_opened_while_off", "case_closed_while_off"),
        *("case_acknowledged", "magnet", "magnet_gone", "pins_forgotten"),
        *("relay_ordered", "relay_confirmed"),
        *("clock_set", "clock_stepped", "clock_went_back"),
        *("torn_tail", "checkpoint_lost"),
        *("failed", "commissioned"),
    }
)
"""What row E1 counts as a security event, but for `KEPT_HERE`."""

KEPT_HERE = frozenset(
    {
        *("order", "recovered"),  # everybody has them
        *("clock_held", "clock_status", "pruned"),  # day by day
        # the household's own affair
        *("vault_put", "vault_read", "vault_refused", "vault_rotated", "vault_erased"),
    }
)
"""What is told to nobody else."""

ALARMS = frozenset(
    {
        *("adaptor_out", "cadence", "clock", "frozen", "garbage", "layout", "neighbours", "port"),
        *("case", "magnet", "gpio", "relay"),
        *("case_switch_stuck", "magnet_stuck", "button_stuck"),
        *("software_changed", "parameters", "storage_full", "storage_low", "undervoltage"),
        *("no_broker", "certificate_expired"),  # told once there is a broker again
    }
)
"""The alarms that this meter may name."""

OTHER = "other"  # an alarm that nobody has put above is told of, and not named
WAITING_MAX = 64  # a card that stalls for two minutes; past it they count as left out


class Announcer:
    """What one meter has to tell since its start.

    Attributes:
        standing: The alarms that stand, by their words, as of the last event.
    """

    def __init__(self, meter: str, incarnation: int) -> None:
        """Know of nothing that stands: what still does is raised anew by this start."""
        self._meter, self._incarnation = meter, incarnation
        self.standing: dict[str, Standing] = {}
        self._ration = Ration()
        self._waiting: deque[Alarm] = deque()
        self._last: Event | None = None  # of those that no message tells, since the last that does
        self._untold = 0

    @property
    def pending(self) -> bool:
        """Whether something waits to be told, once it is on the card."""
        return bool(self._waiting)

    def note(self, event: Event) -> None:
        """Take an event, in their order, as it is appended and before it is on the card."""
        if event.kind not in KINDS:
            return
        word = _word(event)
        if event.kind == RAISED:
            self.standing[word] = Standing(word, event.number, event.wall_ms)
        elif event.kind == OVER:
            self.standing.pop(word, None)
        if len(self._waiting) < WAITING_MAX and self._ration.take(event.boot_ms):
            self._tell(event)
        else:
            self._last, self._untold = event, self._untold + 1

    def turn(self, boot_ms: int) -> None:
        """Tell the last of those that were left out, if one may be told again."""
        last = self._last
        if last is not None and self._ration.take(boot_ms):
            self._untold -= 1
            self._tell(last)

    def _tell(self, event: Event) -> None:
        untold, self._untold, self._last = self._untold, 0, None
        self._waiting.append(
            Alarm(
                meter=self._meter,
                incarnation=self._incarnation,
                number=event.number,
                wall_ms=event.wall_ms,
                kind=event.kind,
                word=_word(event) if event.kind in {RAISED, OVER} else "",
                untold=untold,
                standing=tuple(sorted(self.standing.values())),
            )
        )

    def take(self, durable: int) -> list[Alarm]:
        """Return what may be told now, each once.

        Args:
            durable: How many events of the account are on the card: what is not there might be
                lost with the power, and then another would get its number.
        """
        ready = []
        while self._waiting and self._waiting[0].number <= durable:
            ready.append(self._waiting.popleft())
        return ready


def _word(event: Event) -> str:
    """Return which alarm an event is about."""
    word = next((value for name, value in event.details if name == "alarm"), "")
    return word if isinstance(word, str) and word in ALARMS else OTHER
