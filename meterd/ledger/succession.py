"""Whether each parameter record follows from the one before, once a command alone changes them.

The account's own events say how parameters came about, and whoever can write the card can write an
event behind the last block, which no seal covers yet. So a start does not take the newest record
because it stands there: it takes it where the one before was not signed for, or is the same under
another software, or a signed command leads from the one to the other. The clock of an event is the
card's word, too: whether a technician's grant still held was judged when the command came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.errors import EncodingError
from meterd.ledger.encoding import take_apart
from meterd.ledger.parameters import (
    COMMISSIONED,
    FILE,
    CommandRefusedError,
    decode_command,
    decode_grant,
    split,
    verify_command,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meterd.ledger.account import Parameters
    from meterd.ledger.parameters import Pairs


class BrokenSuccessionError(CommandRefusedError):
    """A parameter record stands in the account that nothing signed leads to."""


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
        raise _broken(after, f"it comes after {before.sequence}")
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
            raise _broken(after, "its command says otherwise")
        return
    raise _broken(after, reason)


def _check_same(before: Parameters, after: Parameters, effect: Callable[[Pairs], object]) -> None:
    """See that nothing has changed but how it is spelt, and what software there is."""
    (old, signed), (new, signed_now) = split(before.settings), split(after.settings)
    if signed != signed_now:
        raise _broken(after, "it changes what was signed without a signed command")
    if effect(old) != effect(new):
        changed = sorted({key for key, _ in {*old} ^ {*new}})
        raise _broken(after, f"it changes {', '.join(changed)[:80]} without a signed command")


def _when_granted(message: bytes) -> int | None:
    try:
        grant = decode_command(take_apart(message).payload).grant
        return decode_grant(take_apart(grant).payload).not_before_s if grant else None
    except EncodingError:
        return None


def _broken(record: Parameters, reason: str) -> BrokenSuccessionError:
    return BrokenSuccessionError(f"parameter record {record.sequence} is not in force: {reason}")
