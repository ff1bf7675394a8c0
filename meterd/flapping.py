"""What comes and goes does not fill the card: an alarm stands on, a port's events are counted.

Each change is an event of the account, which is for ever, and whoever rattles at a board or at its
cable can bring about some hundred a second.

>>> flapping = Flapping()
>>> sum(flapping.may_fall("port", "silent", now_ms=0) for _ in range(99)) == FALLS_AT_ONCE
True
>>> flapping.over, flapping.may_fall("port", "silent", now_ms=FALL_EVERY_MS), flapping.over
([('port', 'silent')], True, [])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.pins import Ration

if TYPE_CHECKING:
    from meterd.ledger.event import Details

FALLS_AT_ONCE = 16  # of one alarm; what a person does at a meter has less
FALL_EVERY_MS = 600_000  # from then on: 53,000 a year at the worst, some 5 MB
EVENTS_AT_ONCE = 32  # of a port: each time that it is lost makes two


class Flapping:
    """How often each alarm has fallen; there are some twenty of them."""

    def __init__(self) -> None:
        """Begin with all of each one's ration."""
        self._falls: dict[str, Ration] = {}
        self._over: dict[str, str] = {}

    @property
    def over(self) -> list[tuple[str, str]]:
        """Kind and text of those that are over, and have not been let fall."""
        return list(self._over.items())

    def stands(self, kind: str) -> None:
        """Note that an alarm is not over, or not any more."""
        self._over.pop(kind, None)

    def may_fall(self, kind: str, text: str, now_ms: int) -> bool:
        """Return whether an alarm that is over may fall now; otherwise ask again for each `over`.

        Args:
            kind: Of a closed set.
            text: What it says.
            now_ms: Time that is never set back.
        """
        ration = self._falls.setdefault(kind, Ration(at_once=FALLS_AT_ONCE, every_ms=FALL_EVERY_MS))
        if not ration.take(now_ms):
            self._over[kind] = text
            return False
        self._over.pop(kind, None)
        return True


class Rationed:
    """Events of one source: of those past its ration the next one says how many there were.

    >>> events = Rationed()
    >>> sum(events.take((), now_ms=0) is not None for _ in range(99)) == EVENTS_AT_ONCE
    True
    >>> events.take((("port", "/dev/ttyUSB0"),), now_ms=FALL_EVERY_MS)
    (('port', '/dev/ttyUSB0'), ('untold', 67))
    """

    def __init__(self) -> None:
        """Begin with all of the ration."""
        self._ration = Ration(at_once=EVENTS_AT_ONCE, every_ms=FALL_EVERY_MS)
        self._untold = 0

    def take(self, details: Details, now_ms: int) -> Details | None:
        """Return what an event says; None where it is counted alone."""
        if not self._ration.take(now_ms):
            self._untold += 1
            return None
        untold, self._untold = self._untold, 0
        return (*details, ("untold", untold)) if untold else details
