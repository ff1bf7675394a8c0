"""What the levels of pins mean, with no pin in it: case switch, relay, and what is kept of both.

Contacts bounce, and callbacks of a GPIO library come for every edge or for none. So a level counts
once it has stood for a while by the boot clock, and not before; whoever looks later sees the same.

>>> switch = Debouncer(50)
>>> switch.see(False, 1000), switch.look(1050)
(None, Change(active=False, at_ms=1000, bounces=0))
>>> switch.see(True, 2000), switch.see(False, 2004), switch.see(True, 2009)
(None, None, None)
>>> switch.look(2058), switch.look(2059)
(None, Change(active=True, at_ms=2009, bounces=2))
"""

from __future__ import annotations

from typing import NamedTuple

from meterd.errors import EncodingError
from meterd.ledger.account import shaped
from meterd.ledger.encoding import decode, encode

STUCK_MS = 5000  # restless for so long is no bounce: contacts come to rest within some 20 ms
EVENTS_AT_ONCE = 16  # of one input; whoever rattles it cannot fill the card with events
EVENT_EVERY_MS = 10_000  # from then on

_CONTEXT = "meterd/pins/v1"
_KEPT_BYTES_MAX = 64
_UNKNOWN, _YES = 0, 2  # and 1 for no


class Change(NamedTuple):
    """A level that counts from now on.

    Attributes:
        active: What the pin says now: the case is open, a magnet is there, the button is down.
        at_ms: Boot clock of the edge since which it stands.
        bounces: Edges that came in between and did not count.
    """

    active: bool
    at_ms: int
    bounces: int


class Debouncer:
    """One input. Changes do not depend on how often it is looked at, only how soon they are told.

    Attributes:
        active: The level that counts; None before the first has stood long enough.
        stuck: The pin has not come to rest for `STUCK_MS`, and has not since.
    """

    def __init__(self, debounce_ms: int) -> None:
        """Let a level count once it has stood for `debounce_ms`."""
        self.active: bool | None = None
        self.stuck = False
        self._debounce_ms = debounce_ms
        self._level: bool | None = None
        self._since_ms = 0
        self._restless_ms: int | None = None  # since when; None: at rest
        self._bounces = 0

    @property
    def due_ms(self) -> int | None:
        """Boot clock at which the present level counts if nothing comes between; None at rest."""
        return None if self._restless_ms is None else self._since_ms + self._debounce_ms

    def see(self, level: bool, at_ms: int) -> Change | None:  # noqa: FBT001 - a level is a bool
        """Take the pin's level at an instant: an edge, or a look; return the change before it."""
        at_ms = max(at_ms, self._since_ms)  # a look may overtake an edge on its way here
        change = self.look(at_ms)
        if level != self._level:
            self._begin(at_ms)
            self._level = level
        return change

    def lost(self, at_ms: int) -> None:
        """Note that edges before `at_ms` are not known: what stands begins to stand there."""
        if self._level is not None:
            self._begin(max(at_ms, self._since_ms))

    def _begin(self, at_ms: int) -> None:
        if self._restless_ms is None:
            self._restless_ms = at_ms
        else:
            self._bounces += 1
        self._since_ms = at_ms

    def look(self, now_ms: int) -> Change | None:
        """Return the change, if the level has stood long enough by now and is another."""
        if self._restless_ms is None:
            return None
        if now_ms - self._since_ms < self._debounce_ms:
            self.stuck = self.stuck or now_ms - self._restless_ms >= STUCK_MS
            return None
        bounces, self._bounces = self._bounces, 0
        self._restless_ms, self.stuck = None, False
        if self._level is None or self._level == self.active:
            return None
        self.active = self._level
        return Change(self._level, self._since_ms, bounces)


class Ration:
    """How many events one source may have: a few at once, then one in a while.

    >>> ration = Ration()
    >>> sum(ration.take(1000) for _ in range(100)) == EVENTS_AT_ONCE
    True
    >>> ration.take(1000 + EVENT_EVERY_MS), ration.take(1000 + EVENT_EVERY_MS)
    (True, False)
    """

    def __init__(self, *, at_once: int = EVENTS_AT_ONCE, every_ms: int = EVENT_EVERY_MS) -> None:
        """Begin with all of it."""
        self._at_once, self._every_ms = at_once, every_ms
        self._left, self._at_ms = at_once, 0

    def take(self, now_ms: int) -> bool:
        """Take one, if there is one."""
        more = (now_ms - self._at_ms) // self._every_ms
        if more > 0:
            self._left = min(self._at_once, self._left + more)
            full = self._left == self._at_once
            self._at_ms = now_ms if full else self._at_ms + more * self._every_ms
        if not self._left:
            return False
        self._left -= 1
        return True


def case_event(kept: bool | None, *, is_open: bool, first: bool) -> str:  # noqa: FBT001
    """Return the kind of event that the case's level is, or an empty text.

    A case that was opened and closed again while the meter was off is not found.

    Args:
        kept: Whether it was open by what is kept; None where nothing is.
        is_open: Whether it is now.
        first: Whether this is the first level since the start.
    """
    if not first:
        return "case_opened" if is_open else "case_closed"
    if kept is None:
        return "case_opened" if is_open else ""
    if kept == is_open:
        return ""
    return "case_opened_while_off" if is_open else "case_closed_while_off"


class Kept(NamedTuple):
    """What outlasts the process: a few bytes on the card, replaced as a whole.

    They are not trusted for anything that is billed: whoever writes the card can make the meter
    forget that the case was closed. The events that told of it are in the account.

    Attributes:
        case_open: The last level that an event told of; None before the first.
        case_alarm: It was opened, and nobody has acknowledged that.
        relay_closed: What is wished of the relay; None before the first wish.
    """

    case_open: bool | None = None
    case_alarm: bool = False
    relay_closed: bool | None = None

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        flags = (self.case_open, self.case_alarm, self.relay_closed)
        return encode([_CONTEXT, *(_UNKNOWN if flag is None else 1 + flag for flag in flags)])


def decode_kept(data: bytes) -> Kept:
    """Return what `data`, bytes from the card, spells.

    Raises:
        EncodingError: It is not what `Kept.encode` writes.
    """
    value = decode(data, bytes_max=_KEPT_BYTES_MAX)
    if (
        not shaped(value, str, int, int, int)
        or value[0] != _CONTEXT
        or max(value[1:]) > _YES
        or value[2] == _UNKNOWN
    ):
        raise EncodingError("not a state of pins")
    case_open, case_alarm, relay_closed = (
        None if flag == _UNKNOWN else flag == _YES for flag in value[1:]
    )
    return Kept(case_open, bool(case_alarm), relay_closed)


class Relay:
    """The disconnect relay: a wish is on the card before the pin moves, and the pin is read back.

    So whatever moment power fails at, the next start finds the last wish that anything was done
    for. Read back is the pin, not the contact behind it.

    >>> relay = Relay(kept=None)
    >>> relay.closed, relay.state       # nobody ever wished anything: the household has power
    (True, 'moving')
    >>> relay.showed(True), relay.state
    (None, 'closed')
    >>> relay.wish(False), relay.closed, relay.state
    (True, True, 'keeping')
    >>> relay.durable(False), relay.closed, relay.state
    (None, False, 'moving')
    >>> relay.showed(False), relay.state
    (None, 'open')

    Attributes:
        wished: Whether it shall be closed; newest wish.
        closed: What the pin may be set to: the newest wish that is on the card.
    """

    def __init__(self, kept: bool | None) -> None:  # noqa: FBT001 - None: nothing is kept
        """Go on with what is kept."""
        self.wished = self.closed = kept is None or kept
        self._shown: bool | None = None

    def wish(self, closed: bool) -> bool:  # noqa: FBT001 - the two states of a contact
        """Wish a state; return whether it is another, and has to be kept."""
        changed, self.wished = closed != self.wished, closed
        return changed

    def durable(self, closed: bool) -> None:  # noqa: FBT001
        """Note that a wish is on the card: the pin may follow it, unless another came since."""
        if closed == self.wished and closed != self.closed:
            self.closed, self._shown = closed, None

    def showed(self, closed: bool) -> None:  # noqa: FBT001
        """Note what the pin was read as after it was set to `closed`, or later."""
        self._shown = closed

    @property
    def state(self) -> str:
        """Where it stands: `keeping` or `moving`, then `closed` or `open`; `failed` else."""
        if self.wished != self.closed:
            return "keeping"
        if self._shown is None:
            return "moving"
        if self._shown != self.closed:
            return "failed"
        return "closed" if self.closed else "open"
