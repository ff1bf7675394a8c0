"""Whether a meter is well, in one line, for `systemctl status`.

>>> one_line({}, height=3, certified_height=3, state="metering", waits="")
'well: metering; 3 blocks sealed, all certified'
>>> one_line({"case": "opened"}, height=3, certified_height=1, state="metering", waits="")
'not well: case; metering; 3 blocks sealed, certified to 1'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def one_line(
    alarms: Iterable[str], *, height: int, certified_height: int, state: str, waits: str
) -> str:
    """Return the line: it changes when what it says does, and with nothing else.

    Args:
        alarms: Kinds of those that stand.
        height: Of the last block on the card.
        certified_height: Up to which height others vouch for it.
        state: Of the metering, in a few words.
        waits: Why sealing waits for neighbours; empty where it does not.
    """
    standing = ", ".join(sorted(alarms))
    if not height:
        sealed = "nothing sealed yet"
    elif certified_height >= height:
        sealed = f"{height} blocks sealed, all certified" if height > 1 else "1 block, certified"
    else:
        sealed = f"{height} blocks sealed, certified to {certified_height}"
    waiting = f"; waits: {waits}" if waits else ""
    return f"{f'not well: {standing};' if standing else 'well:'} {state}; {sealed}{waiting}"
