"""Which version of the vault the account names: from there it is known that one was put back.

Each start and each change of the vault is an event that says how often the vault had been written
by then, once that version was durable and never before. So no failure of power makes a good vault
look old; between a change and its event the vault is one ahead, which the next start names. Whoever
puts back the vault's files finds the events newer; whoever puts back the whole card, does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.device.archive import read_file, segment_name, segment_numbers
from meterd.errors import EncodingError
from meterd.ledger.event import decode_event
from meterd.ledger.segment import read_header, walk_frames

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meterd.ledger.event import Event

DETAIL = "vault"  # of an event: how often the vault had been written
READ, PUT, ROTATED, ERASED = "vault_read", "vault_put", "vault_rotated", "vault_erased"
REFUSED = "vault_refused"
_KINDS = frozenset({"started", READ, PUT, ROTATED, ERASED, REFUSED})


def version_named(state: Path) -> int:
    """Return the highest version of the vault that the account in `state` names; 0 for none.

    All events are looked at, in the streams of before too, where the account began anew: behind the
    last block no seal covers them yet, and whoever writes the card could add one that names the
    version of an older vault. Damage is left to whoever verifies the account.

    Raises:
        StorageError: The card failed.
    """
    folders = [state, *sorted(state.glob("before-*"))]
    return max(_named_in(folder / "events") for folder in folders)


def _named_in(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return max(
        (
            version
            for number in segment_numbers(folder)
            for event in _events(folder / segment_name(number))
            if event.kind in _KINDS and isinstance(version := dict(event.details).get(DETAIL), int)
        ),
        default=0,
    )


def _events(path: Path) -> Iterator[Event]:
    data, word = read_file(path), DETAIL.encode()
    if word not in data:  # a year of events is read, and hardly any of it decoded
        return
    try:
        header, _ = read_header(data, "events")
        for frame in walk_frames(data, header):
            if word in frame.body:
                yield decode_event(frame.body)
    except EncodingError:  # recovery, which comes next, says where and why
        return
