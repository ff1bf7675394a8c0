"""Whether each parameter record follows from the one before, once a command alone changes them.

The account's own events say how parameters came about, and whoever can write the card can write an
event behind the last block, which no seal covers yet; whoever has the meter's key can seal one. So
a judge does not take a record because it stands there: it takes it where the one before was not
signed for, or is the same under another software, or a signed command leads from the one to the
other. The clock of an event is the card's word, too: whether a technician's grant still held was
judged when the command came. Which key was the distributor's then, the orders before it say.

An account that begins anew behind blocks of its neighbours knows its parameters from an old card.
It gives them a number that no command of before fits, and says so where the blocks name others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meterd.errors import EncodingError
from meterd.ledger.account import Parameters, decode_parameters
from meterd.ledger.encoding import HASH_BYTES, take_apart
from meterd.ledger.parameters import (
    COMMISSIONED,
    FILE,
    MISSING,
    OWNER_KEY,
    SIGNED,
    CommandRefusedError,
    decode_command,
    decode_grant,
    split,
    verify_command,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from meterd.ledger.chain import Chain, Head
    from meterd.ledger.event import Event
    from meterd.ledger.parameters import Pairs

SAID_CHARS_MAX = 240  # of what is wrong: much of it is text out of a record
CHANGES_SHOWN = 2
VALUE_CHARS = 24


class BrokenSuccessionError(CommandRefusedError):
    """A parameter record stands in the account that nothing signed leads to."""


class Succession:
    """The parameter records of an account, each held against the one before.

    Attributes:
        newest: The last that has been taken; None before the first.
    """

    def __init__(
        self,
        chain: Chain,
        known: Iterable[Parameters],
        effect: Callable[[Pairs], object],
        *,
        promised: bytes = b"",
    ) -> None:
        """Begin where an account is judged from.

        Args:
            chain: Its chain until there: who gives orders, and the order that was known then.
            known: Records of before.
            effect: As `check_follows` has it.
            promised: Hash of the first record, where the meter has sealed it; else empty.
        """
        self.newest = max(known, key=lambda record: record.sequence, default=None)
        self._commanders, self._order = chain.commanders, chain.head.order[0]
        self._effect, self._promised = effect, promised

    def take(self, event: Event) -> None:
        """Take the next event of the account; its record, if it holds one, has been decoded before.

        Raises:
            BrokenSuccessionError: Nothing leads to its record.
        """
        height = dict(event.details).get("height")
        if event.kind == "order" and isinstance(height, int):
            self._order = max(self._order, height)
        if event.kind != "parameters":
            return
        before, after = self.newest, decode_parameters(event.bytes_of("record"))
        if before is None and self._promised not in (b"", after.hash):
            raise BrokenSuccessionError(
                f"parameter record {after.sequence} is not the one that the meter said it goes on "
                f"under: expected {self._promised.hex()[:16]}, got {after.hash.hex()[:16]}"
            )
        if before is not None:
            message = dict(event.details).get("command", b"")
            signed = message if isinstance(message, bytes) else b"?"
            check_follows(before, after, signed, self._owners(before), self._effect)
        self.newest = after

    def _owners(self, record: Parameters) -> list[bytes]:
        """Return the keys that a command over `record` may rest on.

        An order may be in force for a moment before its event is there: so later keys too.
        """
        if not self._commanders:
            return [key] if (key := _owner(record)) else []
        keys = [key for height, key in self._commanders if height <= self._order][-1:]
        return keys + [key for height, key in self._commanders if height > self._order]


def _owner(record: Parameters) -> bytes:
    """Return the public key that a record names as its owner's; empty where it names none."""
    try:
        key = bytes.fromhex(dict(record.settings).get(OWNER_KEY, ""))
    except ValueError:
        return b""
    return key if len(key) == HASH_BYTES else b""


def put_back(record: Parameters, known: Collection[bytes], head: Head, events: int) -> Parameters:
    """Return the record that a meter goes on under behind blocks that neighbours gave back.

    Its number is higher than that of any record there was: each was an event of its own. So no
    command of before counts, and none that was used up since the card was copied.

    Args:
        record: The one that the card has.
        known: Hashes of others that the card has, as far as the blocks may name them.
        head: The last block given back.
        events: Number of the last event that card or blocks know.
    """
    settings, signed = split(record.settings)
    said = dict(signed)
    if head.parameters not in (record.hash, *known):
        said[MISSING] = head.parameters.hex()
    return replace(
        record,
        sequence=max(record.sequence, events) + 1,
        settings=(*settings, *sorted(said.items())),
    )


def check_follows(
    before: Parameters,
    after: Parameters,
    message: bytes,
    owners: Iterable[bytes],
    effect: Callable[[Pairs], object],
) -> None:
    """See that one record follows from another.

    Args:
        before: The record in force until then.
        after: The next that the account has.
        message: The sealed command that the event of the next one holds; empty where it has none.
        owners: Public keys that commands may rest on, or have rested on.
        effect: Returns what parameters come to, however they are spelt: another software may know
            more of them, each at its default.

    Raises:
        BrokenSuccessionError: Nothing leads there.
    """
    if before == after or COMMISSIONED not in dict(before.settings):
        return
    if after.sequence != before.sequence + 1:
        raise _broken(before, after, f"it comes after {before.sequence}")
    if (after.genesis, after.meter) != (before.genesis, before.meter):
        raise _broken(before, after, f"it is of {after.meter}, in another account")
    if not message:
        _check_same(before, after, effect)
        return
    reason = "nobody's key is known"
    for owner in owners:
        try:
            accepted = verify_command(message, before, owner, _when_granted(message))
        except CommandRefusedError as error:
            reason = str(error)
            continue
        settings, signed = map(dict, split(after.settings))
        signed.pop(FILE, None)
        signed_for = {key: value for key, value in accepted.signed.items() if key != FILE}
        if (settings, signed) != (accepted.settings, signed_for):
            raise _broken(before, after, f"its command says otherwise{_told(before, after)}")
        return
    raise _broken(before, after, f"{reason}{_told(before, after)}")


def _check_same(before: Parameters, after: Parameters, effect: Callable[[Pairs], object]) -> None:
    """See that nothing has changed but how it is spelt, and what software there is."""
    (old, signed), (new, signed_now) = split(before.settings), split(after.settings)
    if signed != signed_now:
        told = _told(before, after)
        raise _broken(before, after, f"it changes what was signed without a signed command{told}")
    if effect(old) != effect(new):
        changed = ", ".join(sorted({key for key, _ in {*old} ^ {*new}}))[:80]
        told = _told(before, after)
        raise _broken(before, after, f"it changes {changed} without a signed command{told}")
    same = (before.roles, before.registers) == (after.roles, after.registers)
    if not same and before.software_id == after.software_id:
        raise _broken(before, after, "it changes roles or registers, and no setting")


def _when_granted(message: bytes) -> int | None:
    try:
        grant = decode_command(take_apart(message).payload).grant
        return decode_grant(take_apart(grant).payload).not_before_s if grant else None
    except EncodingError:
        return None


def _told(before: Parameters, after: Parameters) -> str:
    """Return old and new value of what differs, the first few; what was signed comes last."""
    changes = sorted(
        (change for change in after.changes_from(before) if change[0] != "software"),
        key=lambda change: change[0].startswith(SIGNED),
    )
    told = [
        f"{key} from {old[:VALUE_CHARS] or 'nothing'} to {new[:VALUE_CHARS] or 'nothing'}"
        for key, old, new in changes[:CHANGES_SHOWN]
    ]
    return f" ({', '.join(told)}{', …' if len(changes) > CHANGES_SHOWN else ''})" if told else ""


def _broken(before: Parameters, after: Parameters, reason: str) -> BrokenSuccessionError:
    said = "".join(char if char.isprintable() else "?" for char in reason[:SAID_CHARS_MAX])
    return BrokenSuccessionError(
        f"parameter record {after.sequence} is not in force: {said}; expected command "
        f"{before.sequence + 1} over record {before.hash.hex()[:16]}"
    )
