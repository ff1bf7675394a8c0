"""Puts what the meter tells of its events into the outbox, each under the meter's own seal.

Nothing goes there before its event is on the card. The letters lie there until the peer process
has kept them, the newest for good, so that one whose store was lost has it again. They are few:
where nobody takes them the oldest go, and the next one says how many. A meter without brokers has
no line, and tells nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.announcing import Announcer
from meterd.device.mailbox import OUTBOX, Mailbox
from meterd.ledger.alarm import seal_alarm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.ledger.alarm import Alarm
    from meterd.ledger.chain import Chain
    from meterd.ledger.event import Event

KIND = "alarm"
LETTERS_MAX = 16  # as many as come at once; 36 kB at most


def letter_name(number: int) -> str:
    """Return the name of the letter that tells of the event of this number."""
    return f"{KIND}-{number:020d}"


class AlarmOutbox:
    """The meter's side of the line, for alarms.

    Attributes:
        newest: The last alarm that was told, or None.
    """

    def __init__(
        self, line: Path | None, chain: Chain, key: Callable[[], SigningKey | None]
    ) -> None:
        """Begin; what an earlier start has left there stays.

        Args:
            line: Folder of outbox and inbox; None where there is no peer process.
            chain: Our own chain: which meter, which incarnation, which network.
            key: Returns the sealing key of this moment; None where this device does not hold it.
        """
        self._outbox = Mailbox(line / OUTBOX) if line else None
        self._genesis, self._key = chain.genesis, key
        self._announcer = Announcer(chain.meter, chain.incarnation)
        self.newest: Alarm | None = None
        self._sealed_by = b""  # with which key; empty where it does not lie there

    def note(self, event: Event) -> None:
        """Take an event as it is appended."""
        if self._outbox is not None:
            self._announcer.note(event)

    def beside(self, told: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return what takes an event for this and for somebody else."""

        def both(event: Event) -> None:
            self.note(event)
            told(event)

        return both

    @property
    def pending(self) -> bool:
        """Whether an event should be made durable now, and not with the next samples."""
        return self._announcer.pending

    def turn(self, boot_ms: int, durable: int) -> None:
        """Tell what may be told now.

        Args:
            boot_ms: Boot clock, as events bear it.
            durable: How many events of the account are on the card.
        """
        if self._outbox is None:
            return
        self._announcer.turn(boot_ms)
        alarms = self._announcer.take(durable)
        for alarm in alarms:
            self._put(self._outbox, alarm)
        key = None if alarms or self.newest is None else self._key()
        if key is not None and bytes(key.verify_key) != self._sealed_by:
            assert self.newest is not None  # noqa: S101 - see above
            self._put(self._outbox, self.newest)  # it failed, or an order has named another key

    def _put(self, outbox: Mailbox, alarm: Alarm) -> None:
        name = letter_name(alarm.number)
        there = sorted(n for n in outbox.names() if n.startswith(f"{KIND}-") and n != name)
        too_many = there[: max(0, len(there) + 1 - LETTERS_MAX)]
        for old in too_many:
            outbox.remove(old)
        self.newest = alarm._replace(untold=alarm.untold + len(too_many))
        key, self._sealed_by = self._key(), b""
        if key is None:
            return
        if outbox.put(name, seal_alarm(self.newest, key, self._genesis)):
            self._sealed_by = bytes(key.verify_key)
            outbox.ring()
