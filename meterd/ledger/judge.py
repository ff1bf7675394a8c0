"""The verdict on a stored account: what holds, and the first place that does not.

The judge is given events and blocks whole, the heads of the sample segments, and a way to read and
audit samples; it opens nothing, and needs the genesis and nothing secret. The same judge serves a
stranger, who begins at the genesis, and a meter's recovery, which begins at its checkpoint.

A damaged byte is laid to one block, so that the bad place names an interval: a byte of the blocks
stream to its block, an event to the first block that counts it, a row to the block that takes it, a
header to its segment's first record, and what was added behind a segment to its last.

Damage past the last durable mark (a block, or the counted length that the next header names) is a
tail: a crash and an edit look the same there, so it is named, and not bad. After each block an
event says that it was sealed: so a missing last block is bad, and a missing last event a tail.

What it cannot see, and every tool says: without a head from elsewhere, that all streams were cut
back together to an earlier sealed state; and what is not sealed yet, if its links were made anew or
its last records were cut off whole.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import EncodingError
from meterd.ledger.account import decode_parameters
from meterd.ledger.chain import SealTask, head_behind
from meterd.ledger.encoding import digest, take_apart
from meterd.ledger.event import Event, decode_event
from meterd.ledger.findings import Findings, Start, Tools, TornTail
from meterd.ledger.pruning import read_pruned, read_recovered
from meterd.ledger.samples import take_samples
from meterd.ledger.stored import FrameStream, Place, SampleFile, read_frames
from meterd.ledger.succession import BrokenSuccessionError, Succession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.ledger.chain import Chain, SealResult

SEALS_PER_TASK = 512  # a tenth of a second: progress to show, and work for every processor


class Files(NamedTuple):
    """An account as read from the card.

    Attributes:
        blocks: (number, bytes) of each segment, ascending.
        samples: The samples' segments, ascending, listed after the blocks.
        events: As the blocks, read after the samples were listed.
        claims: Last events segment and its size before the blocks were read: claims past it may
            be of blocks that were sealed since.
    """

    blocks: list[tuple[int, bytes]]
    events: list[tuple[int, bytes]]
    samples: list[SampleFile]
    claims: tuple[int, int]


def judge(files: Files, start: Start, tools: Tools) -> Findings:
    """Judge an account from `start` on."""
    chain = start.chain
    found = Findings(chain, ends=dict(start.ends))
    for record in start.parameters:
        found.parameters[digest(record)] = decode_parameters(record)
    blocks = read_frames("blocks", files.blocks, chain.genesis, chain.meter, start.ends["blocks"])
    results = tools.seals(
        _seal_tasks(chain, blocks)
    )  # other processes, if there are any, work on these from now on
    events = read_frames("events", files.events, chain.genesis, chain.meter, start.ends["events"])
    damage = _take_events(found, events, start.events)
    _take_blocks(found, blocks, results, tools)
    _check_recovered(found, blocks)
    found.tails += blocks.torn + events.torn
    _check_digests(found, events, start, damage)
    events_damaged = any(bad.stream == "events" for bad in found.bad)
    _check_claims(found, events, files.claims, blocks)
    _check_parameters(found, events, blocks, start, tools)
    _check_excess(found, blocks, events, start.events)
    take_samples(found, files.samples, start, tools, events_damaged=events_damaged)
    return found


def _seal_tasks(chain: Chain, stream: FrameStream) -> list[SealTask]:
    messages = [stored.frame.body for stored in stream.frames]
    tasks: list[SealTask] = []
    for at in range(0, len(messages), SEALS_PER_TASK):
        if tasks:
            chain = _assumed(tasks[-1].chain, messages[at - 1])
        tasks.append(SealTask(chain, tuple(messages[at : at + SEALS_PER_TASK])))
    return tasks


def _take_blocks(
    found: Findings, stream: FrameStream, results: Iterator[SealResult], tools: Tools
) -> None:
    reason = ""
    of = -(-len(stream.frames) // SEALS_PER_TASK)
    for done, result in enumerate(results, start=1):
        found.blocks += result.blocks
        found.chain, reason = result.chain, result.reason
        tools.progress("seals", done, of)
        if reason:
            break
    if reason:
        stored = stream.frames[len(found.blocks)]
        found.add_bad("blocks", None, Place(stored.segment, stored.frame.offset, reason))
    elif stream.damage:
        found.add_bad("blocks", None, stream.damage)
    found.ends["blocks"] = stream.end


def _assumed(chain: Chain, message: bytes) -> Chain:
    """Return the chain behind a block that another task verifies; unused where that fails."""
    try:
        return chain._replace(head=head_behind(chain, take_apart(message).payload))
    except EncodingError:
        return chain


def _take_events(found: Findings, stream: FrameStream, before: int) -> Place | None:
    """Take the events as far as they hold; return the first damage before a durable mark."""
    found.ends["events"] = stream.end
    number = before
    for stored in stream.frames:
        try:
            event = decode_event(stored.frame.body)
            first = event.kind == "recovered" and number == 0
            if event.kind == "recovered" and not first:
                raise EncodingError("an account begins anew with its first event, or not")  # noqa: TRY301
            if event.number != number + 1 and not (first and event.number):
                raise EncodingError(f"expected event {number + 1}, got {event.number}")  # noqa: TRY301
            _note(found, event)
            number = event.number
        except EncodingError as error:
            return Place(stored.segment, stored.frame.offset, str(error))
        found.events.append(event)
    return stream.damage


def _note(found: Findings, event: Event) -> None:
    if event.kind == "parameters":
        record = event.bytes_of("record")
        found.parameters[digest(record)] = decode_parameters(record)
    elif event.kind == "pruned":
        pruned = read_pruned(event, found.chain)
        found.pruned[pruned.segment] = (pruned.rows, pruned.digest)
    elif event.kind == "recovered":
        found.recovered = read_recovered(event, found.chain)
    elif event.kind == "torn_tail":
        details = dict(event.details)
        found.told.add(TornTail(*(details.get(name) for name in TornTail._fields)))
    elif event.kind == "sealed":
        event.number_of("height")
        event.bytes_of("hash")


def _check_digests(
    found: Findings, stream: FrameStream, start: Start, damage: Place | None
) -> None:
    before_first = found.events_before(start)
    counted = before_first + len(found.events)
    for block in found.blocks:
        if block.height <= found.elsewhere:
            continue
        index = block.events - before_first - 1
        if block.events > counted:
            end = stream.end
            reason = f"expected {block.events} events, found {counted}"
            place = damage or Place(end.number, end.counted_bytes, reason)
            if damage is None and stream.torn:
                torn = stream.torn[0]
                place = Place(torn.segment, torn.offset, "a record is cut off or damaged")
            found.add_bad("events", block, place)
            return
        before = start.ends["events"]
        segment, offset, here = before.number, before.counted_bytes, before.digest
        if index >= 0:
            stored = stream.frames[index]
            segment, offset, here = stored.segment, stored.frame.offset, stored.frame.digest
        if here != block.events_digest:
            reason = "events are linked, and are not those that the block sealed"
            found.add_bad("events", block, Place(segment, offset, reason))
            return
    if damage:
        found.add_bad("events", None, damage)


def _check_recovered(found: Findings, stream: FrameStream) -> None:
    """Hold the blocks against the event that says which ones neighbours gave back."""
    begun, head = found.recovered, found.chain.head
    if begun is None:
        return
    end = stream.end
    if head.height < begun.height:
        reason = f"block {begun.height} was given back by neighbours, and is missing or damaged"
        found.add_bad("blocks", None, Place(end.number, end.counted_bytes, reason))
        return
    first = head.height - len(found.blocks) + 1
    hashes = [block.previous for block in found.blocks[1:]] + [head.block_hash]
    if begun.height >= first and hashes[begun.height - first] != begun.block_hash:
        other = stream.frames[begun.height - first]
        place = Place(other.segment, other.frame.offset, "an event says that another was given")
        found.add_bad("blocks", found.blocks[begun.height - first], place)


def _check_claims(
    found: Findings, stream: FrameStream, claims: tuple[int, int], blocks: FrameStream
) -> None:
    """Hold the blocks against the events that say that they were sealed."""
    head, first = found.chain.head, found.chain.head.height - len(found.blocks) + 1
    hashes = [block.previous for block in found.blocks[1:]] + [head.block_hash]
    claimed = max(first - 1, found.elsewhere)
    sure = not any(bad.stream == "events" for bad in found.bad)
    for event, stored in zip(found.events, stream.frames, strict=False):
        if event.kind != "sealed":
            continue
        height = event.number_of("height")
        claimed = max(claimed, height)
        if height > head.height:
            if (stored.segment, stored.frame.end) <= claims and not found.bad:
                reason = f"block {height} was sealed, and is missing or damaged"
                at = blocks.torn[0][1:3] if blocks.torn else blocks.end[::2]
                found.add_bad("blocks", None, Place(*at, reason))
        elif sure and height >= first and event.bytes_of("hash") != hashes[height - first]:
            other = blocks.frames[height - first]
            place = Place(
                other.segment, other.frame.offset, "an event says that another was sealed"
            )
            found.add_bad("blocks", found.blocks[height - first], place)
    found.unclaimed = claimed < head.height


def _check_parameters(
    found: Findings, events: FrameStream, blocks: FrameStream, start: Start, tools: Tools
) -> None:
    """See that each parameter record follows from the one before, and that no block goes back."""
    known = (decode_parameters(record) for record in start.parameters)
    promised = found.recovered.parameters if found.recovered else b""
    succession = Succession(start.chain, known, tools.effect, promised=promised)
    for event, stored in zip(found.events, events.frames, strict=False):
        try:
            succession.take(event)
        except BrokenSuccessionError as error:
            block = next((b for b in found.blocks if b.events >= event.number), None)
            place = Place(stored.segment, stored.frame.offset, f"event {event.number}: {error}")
            found.add_bad("events", block, place)
            break
    newest = found.parameters.get(start.chain.head.parameters)
    for block, stored in zip(found.blocks, blocks.frames, strict=False):
        record = found.parameters.get(block.parameters)
        if record is None:
            continue  # one of before neighbours gave the block back; of rows, the samples tell
        if newest is not None and record.sequence < newest.sequence:
            reason = (
                f"it was measured under parameter record {record.sequence}, expected "
                f"{newest.sequence}, which was in force before, or a later one"
            )
            place = Place(stored.segment, stored.frame.offset, reason)
            found.add_bad("blocks", block, place)
            return
        newest = record


def _check_excess(found: Findings, blocks: FrameStream, events: FrameStream, before: int) -> None:
    """What lies past a counted length is good where an event tells of it, and bad elsewhere."""
    for stream in (blocks, events):
        for tail in stream.excess:
            told = TornTail(tail.stream, tail.segment, tail.offset, sha256(tail.data).digest())
            if told in found.told:
                continue
            count = sum(stored.segment <= tail.segment for stored in stream.frames)
            if stream is blocks:
                block = found.blocks[count - 1] if 0 < count <= len(found.blocks) else None
            else:
                block = next((b for b in found.blocks if b.events >= before + count), None)
            reason = f"{len(tail.data)} bytes that no event tells of lie past the counted length"
            found.add_bad(tail.stream, block, Place(tail.segment, tail.offset, reason))
