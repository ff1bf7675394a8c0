"""Decides which samples may go, and has an event say so before they do.

Whole segments go, the oldest first, up to a place where a block ends: so every block has all of its
rows on the card, or none. Each row that goes is in a sealed block that ends before a given instant
(a standalone meter counts sealed as certified) and is still what that block sealed: damage is never
tidied away. The rows of one sealed block at least stay, because metering goes on from them.

An event names segment, rows and full digest. It has to be durable before the file goes; the other
way round the account would be bad. If power fails between the two, the next pruning, or the root
timer that obeys these events alone, finishes it.
"""

from __future__ import annotations

import os
import time
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from meterd.device.archive import read_file, read_part, segment_name, segment_numbers
from meterd.device.card import Card, Operation, lock
from meterd.device.keys import load_seals
from meterd.device.log import Log
from meterd.device.recovery import recover, tail_details
from meterd.errors import DeniedError, EncodingError, LedgerDamagedError, StorageError
from meterd.ledger.audit import fingerprint_of
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import UINT_MAX, digest, take_apart
from meterd.ledger.event import Event, decode_event
from meterd.ledger.pruning import Pruned, read_pruned, read_recovered, seal_pruned
from meterd.ledger.row import LINK_BYTES
from meterd.ledger.segment import HEADER_BYTES_MAX, SECRET_BYTES
from meterd.ledger.stored import End, SampleFile, SampleStream, read_frames, read_samples

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from meterd.device.recovery import Recovered
    from meterd.ledger.block import Block
    from meterd.ledger.chain import Chain
    from meterd.ledger.event import Details
    from meterd.ledger.stored import SampleSegment

_HINT = "nothing was pruned; see what `meterctl verify` says, and keep a copy"


class PrunePlan(NamedTuple):
    """What pruning comes to.

    Attributes:
        pruned: What an event each must say, and be durable first.
        operations: What then removes the files.
        freed_bytes: How much room that makes.
    """

    pruned: tuple[Pruned, ...]
    operations: tuple[Operation, ...]
    freed_bytes: int

    @property
    def rows(self) -> int:
        """How many samples go."""
        return sum(pruned.rows for pruned in self.pruned)


class TornRows(NamedTuple):
    """Bytes of a samples segment that an event says count for nothing."""

    segment: int
    offset: int
    sha256: bytes


def plan_prune(state: Path, chain: Chain, before_s: int, height_max: int = UINT_MAX) -> PrunePlan:
    """Return what pruning the samples of blocks that end by `before_s` comes to.

    It reads all blocks and events and the samples concerned, a segment at a time: call it off the
    event loop.

    Args:
        state: Folder of the account.
        chain: Whose account it is; how far the chain has come is read from the card.
        before_s: Unix seconds; a block that ends then is among them.
        height_max: Of the last block that neighbours have certified, where there are any.

    Raises:
        LedgerDamagedError: Something is not as it was written. Nothing may be pruned.
        StorageError: The card cannot be read.
    """
    pruned, torn = _read_events(state, chain)
    files = [_sample_file(state, number) for number in segment_numbers(state / "samples")]
    samples = stored_samples(state, chain, files, pruned, torn)
    if samples.damage:
        place = samples.damage
        raise LedgerDamagedError(f"samples segment {place.segment}: {place.reason}", hint=_HINT)
    last = _last_prunable(state, chain, before_s, height_max, samples)
    numbers = list(samples.segments)
    events: list[Pruned] = []
    for number, following in pairwise(numbers):
        if number > last:
            break
        full = samples.segments[following].header.previous_digest
        _check_end(state, samples.segments[number], full, torn)
        rows = samples.segments[number].rows
        events.append(Pruned(number, rows, full))
    going = [
        file for file in files if file.number in pruned or file.number in numbers[: len(events)]
    ]
    folder = state / "samples"
    operations = [Operation("unlink", folder / segment_name(file.number)) for file in going]
    if operations:
        operations.append(Operation("sync_folder", folder))
    return PrunePlan(tuple(events), tuple(operations), sum(file.size for file in going))


def stored_samples(
    state: Path,
    chain: Chain,
    files: Sequence[SampleFile],
    pruned: Mapping[int, int],
    torn: Collection[TornRows],
) -> SampleStream:
    """Return the sample segments on the card by their headers and by what events tell of them.

    Args:
        state: Folder of the account.
        chain: Whose account it is.
        files: All segments, ascending.
        pruned: Rows of each pruned segment.
        torn: Torn tails that events tell of.
    """
    candidates = {tail.segment for tail in torn if tail.offset == 0}
    empty = [
        file.number
        for file in files
        if file.number in candidates
        and TornRows(file.number, 0, digest(read_part(state, file.number, 0, file.size))) in torn
    ]
    return read_samples(
        files,
        genesis=chain.genesis,
        meter=chain.meter,
        before=End(),
        pruned=pruned,
        empty=empty,
    )


def torn_rows(event: Event) -> TornRows:
    """Return what an event `torn_tail` of the samples tells.

    Raises:
        EncodingError: It does not say where.
    """
    return TornRows(event.number_of("segment"), event.number_of("offset"), event.bytes_of("sha256"))


def prune_stopped(
    state: Path,
    chain: Chain,
    before_s: int,
    height_max: int = UINT_MAX,
    *,
    device: bytes | None = None,
) -> PrunePlan:
    """Prune the account of a daemon that does not run, and return what that came to.

    `device` opens the vault that the sealing keys are in, if they are.

    Raises:
        BusyError: Another process writes the account.
        DeniedError: The account, or its segments, are not this user's to change.
        LedgerDamagedError: The account does not verify.
        StorageError: The card failed.
    """
    held = lock(state)
    card = Card()
    try:
        recovered = recover(state, chain, card=card)
        plan = plan_prune(state, chain, before_s, height_max)
        if plan.pruned:
            key = load_seals(state, device)[-1]  # any of this meter's
            sealed = [seal_pruned(pruned, chain, key) for pruned in plan.pruned]
            card.perform(_append(state, chain, recovered, sealed))
        remove(plan.operations)
    finally:
        card.close()
        os.close(held)
    return plan


def _append(
    state: Path, chain: Chain, recovered: Recovered, pruned: list[Details]
) -> list[Operation]:
    """Return what appends the events of a pruning behind all that recovery found."""
    found = recovered.found
    log = Log(
        state,
        genesis=chain.genesis,
        meter=chain.meter,
        incarnation=chain.incarnation,
        draw_secret=lambda _stream, _number: os.urandom(SECRET_BYTES),
        ends=found.ends,
        events=found.events_before(recovered.checkpoint.start) + len(found.events),
        open_rows=[],
    )
    boot_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    wall_ms = time.time_ns() // 1_000_000
    torn = [tail_details(tail) for tail in found.tails]
    for kind, details in [("torn_tail", d) for d in torn] + [("pruned", d) for d in pruned]:
        log.add_event(
            Event(
                number=log.events + 1, boot_ms=boot_ms, wall_ms=wall_ms, kind=kind, details=details
            )
        )
    return log.take_operations()


def remove(operations: tuple[Operation, ...]) -> None:
    """Remove the files that a plan names, once its events are durable.

    Raises:
        DeniedError: They are not this user's to remove, or append-only.
        StorageError: The card failed. The account is good with these files and without.
    """
    try:
        Card().perform(operations)
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError):
            raise DeniedError(
                f"the pruning is in the account, but files stay: {error}",
                hint="where they are append-only, `systemctl start meterd-prune` removes them now,"
                " else its timer within a day; where they are not, run this as root",
            ) from error
        raise


def told_segments(state: Path, chain: Chain) -> dict[int, Pruned]:
    """Return the samples segments that sealed events of the account tell of as pruned, by number.

    Raises:
        LedgerDamagedError: The events do not hold.
        StorageError: The card cannot be read.
    """
    try:
        events = (
            decode_event(body) for body in _bodies(state, "events", chain) if b"pruned" in body
        )
        said = [read_pruned(event, chain) for event in events if event.kind == "pruned"]
    except EncodingError as error:
        raise LedgerDamagedError(f"an event cannot be read: {error}", hint=_HINT) from error
    return {pruned.segment: pruned for pruned in said}


def _sample_file(state: Path, number: int) -> SampleFile:
    size = (state / "samples" / segment_name(number)).stat().st_size
    return SampleFile(number, read_part(state, number, 0, min(size, HEADER_BYTES_MAX)), size)


def _bodies(state: Path, stream: str, chain: Chain) -> Iterator[bytes]:
    """Yield the frames of a stream, holding one segment at a time."""
    end = End()
    folder = state / stream
    for number in segment_numbers(folder):
        data = read_file(folder / segment_name(number))
        frames = read_frames(
            stream, [(number, data)], genesis=chain.genesis, meter=chain.meter, before=end
        )
        if frames.damage:
            place = frames.damage
            raise LedgerDamagedError(f"{stream} segment {number}: {place.reason}", hint=_HINT)
        yield from (stored.frame.body for stored in frames.frames)
        end = frames.end


def _read_events(state: Path, chain: Chain) -> tuple[dict[int, int], set[TornRows]]:
    """Return the rows of each pruned segment, and the torn tails of samples that events tell of."""
    pruned: dict[int, int] = {}
    torn: set[TornRows] = set()
    try:
        for body in _bodies(state, "events", chain):
            if b"pruned" not in body and b"torn_tail" not in body:
                continue
            event = decode_event(body)
            if event.kind == "pruned":
                said = read_pruned(event, chain)
                pruned[said.segment] = said.rows
            elif event.kind == "torn_tail" and ("stream", "samples") in event.details:
                torn.add(torn_rows(event))
    except EncodingError as error:
        raise LedgerDamagedError(f"an event cannot be read: {error}", hint=_HINT) from error
    return pruned, torn


def _last_prunable(
    state: Path, chain: Chain, before_s: int, height_max: int, samples: SampleStream
) -> int:
    """Return the last segment that may go; 0 where none may.

    A segment may go once a block ends with it and a later block has rows that stay.
    """
    rows = samples.rows
    numbers = list(rows)
    at, row, last, ended = 0, 0, 0, 0
    try:
        elsewhere = _elsewhere(state, chain)
        for body in _bodies(state, "blocks", chain):
            block = decode_block(take_apart(body).payload)
            if not block.records or block.height <= elsewhere:
                continue
            last = ended
            if block.end_s > before_s or block.height > height_max:
                break
            parts: list[tuple[int, int, int]] = []
            left = block.records
            while left:
                while at < len(numbers) and row >= rows[numbers[at]]:
                    at, row = at + 1, 0
                if at == len(numbers):
                    return last  # sealed since the segments were listed, or rows are missing
                count = min(left, rows[numbers[at]] - row)
                parts.append((numbers[at], row, count))
                left, row = left - count, row + count
            _check_rows(state, samples, block, parts)
            if row == rows[numbers[at]]:
                ended = numbers[at]
    except EncodingError as error:
        raise LedgerDamagedError(f"a block cannot be read: {error}", hint=_HINT) from error
    return last


def _elsewhere(state: Path, chain: Chain) -> int:
    """Return up to which height blocks came back from neighbours: their rows are not here."""
    first = next(_bodies(state, "events", chain), b"")
    event = decode_event(first) if first else None
    if event is None or event.kind != "recovered":
        return 0
    return read_recovered(event, chain).height


def _check_rows(
    state: Path, samples: SampleStream, block: Block, parts: list[tuple[int, int, int]]
) -> None:
    """Check that rows that are on the card are those that the block sealed."""
    stored = []
    for number, first_row, count in parts:
        segment = samples.segments.get(number)
        if segment is None:
            return
        begin, end = segment.offset(first_row), segment.offset(first_row + count)
        stored.append((segment.header, first_row, read_part(state, number, begin, end)))
    if fingerprint_of(stored) != block.fingerprint:
        raise LedgerDamagedError(
            f"samples segment {parts[0][0]} does not hold what block {block.height} sealed",
            hint=_HINT,
        )


def _check_end(
    state: Path, segment: SampleSegment, full: bytes, torn: Collection[TornRows]
) -> None:
    """Check that a segment ends as `full`, the digest that the next one states, says."""
    number, end = segment.header.number, segment.counted_bytes
    link = read_part(state, number, end - LINK_BYTES, end)
    if not segment.rows:
        link = digest(segment.header.encode())[:LINK_BYTES]
    problem = ""
    if link != full[:LINK_BYTES]:
        problem = "is not followed by the next as it stands"
    elif segment.size > end:
        excess = digest(read_part(state, number, end, segment.size))
        if TornRows(number, end, excess) not in torn:
            problem = f"has bytes past {end} that no event tells of"
    if problem:
        raise LedgerDamagedError(f"samples segment {number} {problem}", hint=_HINT)
