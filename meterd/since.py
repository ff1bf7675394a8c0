"""What has changed since the run before: how that ended, and software, settings and keys.

Each start names in its event what it started with, so a start is compared with the one before by
the account alone, and tells of each change once.

>>> kinds = [kind for kind, _ in changes(None, Started(bytes(32), b"s" * 32, (b"k" * 32,), "file"))]
>>> kinds
['configuration', 'key_made']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterd.ledger.event import Details, Event

KEY_BYTES = 32


class Started(NamedTuple):
    """What a run starts with.

    Attributes:
        software: Identifier of the software, 32 bytes.
        settings: SHA-256 of the settings' file, as `sha256sum` prints it; empty where not known.
        keys: Public halves of the sealing keys that are held, the first first.
        kept: Where these are: `vault` or `file`.
    """

    software: bytes
    settings: bytes
    keys: tuple[bytes, ...]
    kept: str

    @property
    def details(self) -> Details:
        """Return what the event of the start says of it besides the software."""
        return (("settings", self.settings), ("keys", b"".join(self.keys)), ("kept", self.kept))


class Last(NamedTuple):
    """The last that is known of a run.

    Attributes:
        run: Its number.
        boot_ms: Boot clock of its last row or event.
        wall_ms: Wall clock then, as it stood.
    """

    run: int
    boot_ms: int
    wall_ms: int


def ended(events: Sequence[Event], *, run: int) -> bool:
    """Return whether a run has ended by a stop of its own.

    Args:
        events: Those since the last checkpoint, which is written while a run goes on.
        run: Number of the account's last run; 0 before the first.
    """
    going = run > 0
    for event in events:
        if event.kind in {"started", "stopped", "recovered"}:
            going = event.kind == "started"
    return not going


def last_of(
    run: int, events: Sequence[Event], row_ms: int | None, offset_ms: int | None, end_s: int | None
) -> Last:
    """Return the last that is known of a run that has not ended by itself.

    Args:
        run: Its number.
        events: Those since the last checkpoint.
        row_ms: Boot clock of its last row that no block takes; None without one.
        offset_ms: What wall time was ahead of its boot clock; None where that was never known.
        end_s: End of the last block; None before the first.
    """
    boot_ms, wall_ms = 0, (end_s or 0) * 1000
    if events:
        boot_ms, wall_ms = events[-1].boot_ms, events[-1].wall_ms
    if row_ms is not None and (not events or row_ms > boot_ms):
        known_ms = offset_ms if offset_ms is not None else wall_ms - boot_ms
        boot_ms, wall_ms = row_ms, row_ms + known_ms
    return Last(run, boot_ms, max(wall_ms, 0))


def changes(before: Event | None, now: Started) -> Iterator[tuple[str, Details]]:
    """Yield the kind and the details of an event for each change.

    Args:
        before: How the run before started; None for the account's first run.
        now: How this one does.
    """
    said = dict(before.details) if before else {}
    software, settings = said.get("software", b""), said.get("settings", b"")
    if before and software != now.software:
        yield "software_updated", (("old", software), ("new", now.software))
    if now.settings not in (b"", settings):
        old: Details = (("old", settings),) if settings else ()
        yield "configuration", (*old, ("new", now.settings))
    keys = said.get("keys", b"")
    if before and not keys:  # a version that did not say which keys it held
        return
    held = _cut(keys) if isinstance(keys, bytes) else ()
    for key in now.keys:
        if key not in held:
            yield "key_made", (("key", key), ("kept", now.kept))
        elif said.get("kept") != now.kept:
            yield "key_moved", (("key", key), ("to", now.kept))
    for key in held:
        if key not in now.keys:
            yield "key_gone", (("key", key),)


def unclean(last: Last, *, same_boot: bool) -> tuple[str, Details]:
    """Return the kind and the details of the event that a run has ended without a word.

    Args:
        last: The last that is known of it.
        same_boot: The machine has run on since: the process died, and not for want of power.
    """
    kind = "died" if same_boot else "power_lost"
    return kind, (("run", last.run), ("last_boot_ms", last.boot_ms), ("last_ms", last.wall_ms))


def _cut(keys: bytes) -> tuple[bytes, ...]:
    return tuple(keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES))
