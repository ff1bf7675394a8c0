"""What happened, in order: one record of the events stream.

>>> event = Event(number=1, boot_ms=0, wall_ms=0, kind="started", details=(("run", 1),))
>>> decode_event(event.encode()) == event
True
>>> event["run"]
1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from meterd.errors import EncodingError
from meterd.ledger.account import shaped
from meterd.ledger.encoding import decode, encode

Detail: TypeAlias = "str | int | bytes"
Details: TypeAlias = "tuple[tuple[str, Detail], ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. Its digest is in the next block (row E1 of REQUIREMENTS.md).

    Attributes:
        number: 1 for the account's first, counting up.
        boot_ms: Boot clock.
        wall_ms: Wall clock as it stood, right or wrong; ms since 1970.
        kind: A word of our own: `started`, `sealed`, `clock_set` …
        details: Names and values; never a secret, never a person.
    """

    number: int
    boot_ms: int
    wall_ms: int
    kind: str
    details: Details = ()

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return encode(
            [
                self.number,
                self.boot_ms,
                self.wall_ms,
                self.kind,
                [list(detail) for detail in self.details],
            ]
        )

    def __getitem__(self, name: str) -> Detail:
        """Return the detail called `name`.

        Raises:
            KeyError: The event has none.
        """
        for key, value in self.details:
            if key == name:
                return value
        raise KeyError(name)

    def number_of(self, name: str) -> int:
        """Return the detail called `name`, a number.

        Raises:
            EncodingError: The event has no such number.
        """
        for key, value in self.details:
            if key == name and isinstance(value, int):
                return value
        raise EncodingError(f"event {self.number} ({self.kind}) has no number {name}")

    def bytes_of(self, name: str) -> bytes:
        """Return the detail called `name`, a byte string.

        Raises:
            EncodingError: The event has no such bytes.
        """
        for key, value in self.details:
            if key == name and isinstance(value, bytes):
                return value
        raise EncodingError(f"event {self.number} ({self.kind}) has no bytes {name}")


def decode_event(data: bytes) -> Event:
    """Return the event that `data` spells.

    Raises:
        EncodingError: Not an event.
    """
    value = decode(data)
    if not shaped(value, int, int, int, str, tuple) or not all(
        shaped(detail, str, (str, int, bytes)) for detail in value[4]
    ):
        raise EncodingError("not an event")
    return Event(
        number=value[0], boot_ms=value[1], wall_ms=value[2], kind=value[3], details=value[4]
    )
