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
from typing import TYPE_CHECKING, NamedTuple

from meterd.device.archive import read_file, read_part, segment_name, segment_numbers
from meterd.device.card import Card, Operation, lock
from meterd.device.log import Log
from meterd.device.recovery import recover
from meterd.errors import DeniedError, EncodingError, LedgerDamagedError, StorageError
from meterd.ledger.audit import fingerprint_of
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import digest, take_apart
from meterd.ledger.event import Event, decode_event
from meterd.ledger.segment import HEADER_BYTES_MAX, LINK_BYTES, SECRET_BYTES
from meterd.ledger.stored import End, SampleFile, SampleStream, read_frames, read_samples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meterd.device.recovery import Recovered
    from meterd.ledger.block import Block
    from meterd.ledger.chain import Chain
    from meterd.ledger.event import Details
    from meterd.ledger.stored import Tail

_HINT = "nothing was pruned; see what `meterctl verify` says, and keep a copy"


class PrunePlan(NamedTuple):
    """What pruning comes to.

    Attributes:
        events: Details of the event `pruned` of each segment, to be made durable first.
        operations: What then removes the files.
        freed_bytes: How much room that makes.
    """

    events: tuple[Details, ...]
    operations: tuple[Operation, ...]
    freed_bytes: int

    @property
    def rows(self) -> int:
        """How many samples go."""
        return sum(int(dict(details)["rows"]) for details in self.events)


def plan_prune(state: Path, chain: Chain, before_s: int) -> PrunePlan:
    """Return what pruning the samples of blocks that end by `before_s` comes to.

    It reads all blocks and events and the samples concerned, a segment at a time: call it off the
    event loop.

    Args:
        state: Folder of the account.
        chain: Whose account it is; how far the chain has come is read from the card.
        before_s: Unix seconds; a block that ends then is among them.

    Raises:
        LedgerDamagedError: Something is not as it was written. Nothing may be pruned.
        StorageError: The card cannot be read.
    """
    pruned, torn = _read_events(state, chain)
    gone = max(pruned, default=0)
    files = [_sample_file(state, number) for number in segment_numbers(state / "samples")]
    left_over = [file for file in files if file.number <= gone]
    kept = [file for file in files if file.number > gone]
    samples = read_samples(kept, genesis=chain.genesis, meter=chain.meter, first=gone + 1)
    if samples.damage:
        place = samples.damage
        raise LedgerDamagedError(f"samples segment {place.segment}: {place.reason}", hint=_HINT)
    last = _last_prunable(state, chain, before_s, pruned, samples)
    events: list[Details] = []
    going = [*left_over]
    for file in kept:
        if file.number > last:
            break
        full = _check_end(state, samples, file.number, torn)
        rows = samples.segments[file.number].rows
        events.append((("segment", file.number), ("rows", rows), ("digest", full)))
        going.append(file)
    folder = state / "samples"
    operations = [Operation("unlink", folder / segment_name(file.number)) for file in going]
    if operations:
        operations.append(Operation("sync_folder", folder))
    return PrunePlan(tuple(events), tuple(operations), sum(file.size for file in going))


def prune_stopped(state: Path, chain: Chain, before_s: int) -> PrunePlan:
    """Prune the account of a daemon that does not run, and return what that came to.

    Raises:
        BusyError: Another process writes the account.
        DeniedError: The account, or its segments, are not this user's to change.
        LedgerDamagedError: The account does not verify.
        StorageError: The card failed.
    """
    held = lock(state)
    card = Card()
    try:
        recovered = recover(state, chain)
        plan = plan_prune(state, chain, before_s)
        if plan.events:
            card.perform(_append(state, chain, recovered, plan.events))
        _remove(card, plan.operations)
    finally:
        card.close()
        os.close(held)
    return plan


def _append(
    state: Path, chain: Chain, recovered: Recovered, pruned: tuple[Details, ...]
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
        events=recovered.checkpoint.start.events + len(found.events),
        open_rows=[],
    )
    boot_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    wall_ms = time.time_ns() // 1_000_000
    torn = [_tail_details(tail) for tail in found.tails if tail.stream == "events"]
    for kind, details in [("torn_tail", d) for d in torn] + [("pruned", d) for d in pruned]:
        log.add_event(
            Event(
                number=log.events + 1, boot_ms=boot_ms, wall_ms=wall_ms, kind=kind, details=details
            )
        )
    return log.take_operations()


def _tail_details(tail: Tail) -> Details:
    return (
        ("stream", tail.stream),
        ("segment", tail.segment),
        ("offset", tail.offset),
        ("bytes", len(tail.data)),
        ("sha256", digest(tail.data)),
    )


def _remove(card: Card, operations: tuple[Operation, ...]) -> None:
    try:
        card.perform(operations)
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError):
            raise DeniedError(
                f"the pruning is in the account, but files stay: {error}",
                hint="where they are append-only (`lsattr`), a timer of root removes them;"
                " else run this as root",
            ) from error
        raise


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


def _read_events(state: Path, chain: Chain) -> tuple[dict[int, int], set[tuple[object, ...]]]:
    """Return the rows of each pruned segment, and the torn tails of samples that events tell of."""
    pruned: dict[int, int] = {}
    torn: set[tuple[object, ...]] = set()
    try:
        for body in _bodies(state, "events", chain):
            if b"pruned" not in body and b"torn_tail" not in body:
                continue
            event = decode_event(body)
            if event.kind == "pruned":
                pruned[event.number_of("segment")] = event.number_of("rows")
            elif event.kind == "torn_tail" and event["stream"] == "samples":
                torn.add((event["segment"], event["offset"], event["sha256"]))
    except EncodingError as error:
        raise LedgerDamagedError(f"an event cannot be read: {error}", hint=_HINT) from error
    return pruned, torn


def _last_prunable(
    state: Path, chain: Chain, before_s: int, pruned: dict[int, int], samples: SampleStream
) -> int:
    """Return the last segment that may go; 0 where none may.

    A segment may go once a block ends with it and a later block has rows that stay.
    """
    rows = dict(sorted(pruned.items()))
    rows |= {number: segment.rows for number, segment in samples.segments.items()}
    numbers = list(rows)
    at, row, last, ended = 0, 0, 0, 0
    try:
        for body in _bodies(state, "blocks", chain):
            block = decode_block(take_apart(body).payload)
            if not block.records:
                continue
            last = ended
            if block.end_s > before_s:
                break
            parts: list[tuple[int, int, int]] = []
            left = block.records
            while left:
                while at < len(numbers) and row >= rows[numbers[at]]:
                    at, row = at + 1, 0
                if at == len(numbers):
                    raise LedgerDamagedError(f"block {block.height} misses rows", hint=_HINT)
                count = min(left, rows[numbers[at]] - row)
                parts.append((numbers[at], row, count))
                left, row = left - count, row + count
            _check_rows(state, samples, block, parts)
            if row == rows[numbers[at]]:
                ended = numbers[at]
    except EncodingError as error:
        raise LedgerDamagedError(f"a block cannot be read: {error}", hint=_HINT) from error
    return last


def _check_rows(
    state: Path, samples: SampleStream, block: Block, parts: list[tuple[int, int, int]]
) -> None:
    """Check that rows that are on the card are those that the block sealed."""
    stored = []
    for number, first_row, count in parts:
        segment = samples.segments.get(number)
        if segment is None:
            return
        size = segment.header.row_bytes
        begin = segment.begin + first_row * size
        data = read_part(state, number, begin, begin + count * size)
        stored.append((segment.header, first_row, data))
    if fingerprint_of(stored) != block.fingerprint:
        raise LedgerDamagedError(
            f"samples segment {parts[0][0]} does not hold what block {block.height} sealed",
            hint=_HINT,
        )


def _check_end(
    state: Path, samples: SampleStream, number: int, torn: set[tuple[object, ...]]
) -> bytes:
    """Return the full digest of a segment, as the next one states it; check that it ends so."""
    segment, following = samples.segments[number], samples.segments[number + 1]
    end, full = segment.counted_bytes, following.header.previous_digest
    link = read_part(state, number, end - LINK_BYTES, end)
    if not segment.rows:
        link = digest(segment.header.encode())[:LINK_BYTES]
    problem = ""
    if link != full[:LINK_BYTES]:
        problem = "is not followed by the next as it stands"
    elif segment.size > end:
        excess = digest(read_part(state, number, end, segment.size))
        if (number, end, excess) not in torn:
            problem = f"has bytes past {end} that no event tells of"
    if problem:
        raise LedgerDamagedError(f"samples segment {number} {problem}", hint=_HINT)
    return full
