"""Begins an account anew behind the blocks that neighbours gave back, after a card was put back.

The new streams are made whole in a folder of their own, with all blocks and an event that says
where they begin; then each takes the place of the old one, which is kept beside it under
`before-HEIGHT`, and still verifies by itself. A power failure between two renames is made good at
the next start: the folder is there until all has been moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.device.archive import GENESIS_FILE
from meterd.device.card import Card, sync_folder
from meterd.device.files import write_over
from meterd.device.log import Log
from meterd.device.recovery import CHECKPOINT_FILE
from meterd.errors import StorageError
from meterd.ledger.event import Event
from meterd.ledger.pruning import seal_recovered
from meterd.ledger.segment import STREAMS
from meterd.ledger.stored import End
from meterd.ledger.succession import put_back

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.ledger.account import Parameters
    from meterd.ledger.chain import Chain
    from meterd.ledger.pruning import Recovered

FOLDER = ".recovering"
WHOLE = "whole"  # names the folder that the old streams go to; there once all is durable


def begin_anew(
    state: Path,
    chain: Chain,
    blocks: Sequence[bytes],
    recovered: Recovered,
    *,
    key: SigningKey,
    parameters: Parameters,
    known: Collection[bytes],
    events: int,
    stamp: tuple[int, int],
    old_height: int,
    draw_secret: Callable[[str, int], bytes],
) -> None:
    """Put streams that begin behind `blocks` in the place of the account's own.

    Args:
        state: The account's folder; its writer has stopped.
        chain: The chain behind the last of `blocks`.
        blocks: All sealed blocks from the first on.
        recovered: What the first event says, but for the parameters.
        key: The sealing key.
        parameters: The record that the card has.
        known: Hashes of those in force before it, as far as the blocks may name them.
        events: Number of the last event that the old streams or the blocks know.
        stamp: Boot clock and wall clock, ms.
        old_height: Height of the last block that the old streams hold.
        draw_secret: Gives the secret of a stream's segment of a number.

    Raises:
        StorageError: The card is full or failed: the old streams are as they were.
    """
    import shutil  # 0.4 MB that the daemon has no other use for

    fresh = state / FOLDER
    record = put_back(parameters, known, chain.head, events)
    recovered = recovered._replace(parameters=record.hash)
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        for stream in STREAMS:
            (fresh / stream).mkdir(parents=True)
        log = Log(
            fresh,
            genesis=chain.genesis,
            meter=chain.meter,
            incarnation=chain.incarnation,
            draw_secret=draw_secret,
            ends={stream: End() for stream in STREAMS},
            events=events,
            open_rows=[],
        )
        boot_ms, wall_ms = stamp
        told = (
            ("recovered", seal_recovered(recovered, chain, key)),
            ("parameters", (("record", record.encode()),)),
        )
        for number, (kind, details) in enumerate(told, start=events + 1):
            log.add_event(
                Event(number=number, boot_ms=boot_ms, wall_ms=wall_ms, kind=kind, details=details)
            )
        for sealed in blocks:
            log.add_block(sealed)
        card = Card()
        card.perform(log.take_operations())
        card.close()
        write_over(fresh / WHOLE, _free_name(state, old_height).encode())
        sync_folder(state)
    except OSError as error:
        raise StorageError(f"cannot begin {state} anew: {error.strerror}") from error
    finish(state)


def _free_name(state: Path, height: int) -> str:
    """Return where the old streams go: a card can be put back to one height more than once."""
    names = (f"before-{height}", *(f"before-{height}-{number}" for number in range(2, 1000)))
    return next(name for name in names if not (state / name).exists())


def finish(state: Path) -> bool:
    """Move what `begin_anew` made into its place, if there is something; say whether there was.

    Raises:
        StorageError: The card failed; the next start goes on.
    """
    fresh = state / FOLDER
    if not fresh.exists():
        return False
    import shutil

    try:
        whole = fresh / WHOLE
        if not whole.exists() or not whole.stat().st_size:
            shutil.rmtree(fresh, ignore_errors=True)  # power failed before it was whole
            return False
        old = state / whole.read_text()
        old.mkdir(exist_ok=True)
        shutil.copyfile(state / GENESIS_FILE, old / GENESIS_FILE)
        for stream in STREAMS:
            if not (fresh / stream).exists():
                continue
            if not (old / stream).exists():
                (state / stream).rename(old / stream)
            (fresh / stream).rename(state / stream)
        if (state / CHECKPOINT_FILE).exists():
            (state / CHECKPOINT_FILE).rename(old / CHECKPOINT_FILE)
        sync_folder(old)
        sync_folder(state)
        shutil.rmtree(fresh)
        sync_folder(state)
    except OSError as error:
        raise StorageError(f"cannot begin {state} anew: {error.strerror}") from error
    return True
