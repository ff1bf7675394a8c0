"""The verdict on a stored account: good, bad at a first place, or unreadable.

The judge is given events and blocks whole, the heads of the sample segments, and a way to read and
audit samples; it opens nothing, and needs the genesis and nothing secret. The same judge serves a
stranger, who begins at the genesis, and a meter's recovery, which begins at its checkpoint.

Damage past the last durable mark (a block, or the counted length that the next header names) is a
tail: a crash and an edit look the same there, so it is named, and not bad.

What it cannot see, and every tool says: without a head from elsewhere, that all streams were cut
back together to an earlier sealed state; and what is not sealed yet, if its links were made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import EncodingError
from meterd.ledger.account import Parameters, decode_parameters
from meterd.ledger.audit import (
    Bad,
    SampleResult,
    SampleTask,
    SealResult,
    SealTask,
    Stretch,
    fingerprint_of,
    plan,
)
from meterd.ledger.block import Block, decode_block
from meterd.ledger.encoding import digest, take_apart
from meterd.ledger.event import Event, decode_event
from meterd.ledger.segment import LINK_BYTES, Linker, find_damaged_row
from meterd.ledger.stored import (
    End,
    FrameStream,
    SampleFile,
    SampleSegment,
    SampleStream,
    Tail,
    read_frames,
    read_samples,
)
from meterd.metering.interval import ESTIMATED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meterd.ledger.chain import Chain

SEALS_PER_TASK = 512  # a tenth of a second: progress to show, and work for every processor
TAIL_ROWS = 64  # to find fifteen time differences that are not 0


class Files(NamedTuple):
    """An account as read from the card.

    Attributes:
        blocks: (number, bytes) of each segment, ascending.
        events: The same, read after the blocks.
        samples: The samples' segments, ascending, listed after the blocks.
        claims: Last events segment and its size before the blocks were read: claims past it may
            be of blocks that were sealed since.
    """

    blocks: list[tuple[int, bytes]]
    events: list[tuple[int, bytes]]
    samples: list[SampleFile]
    claims: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """From where an account is judged: its genesis, or a checkpoint.

    Attributes:
        chain: The chain so far.
        ends: Where each stream ended then; all its rows were taken by blocks.
        events: How many events there were.
        parameters: Parameter records known by then, as stored.
        cut_ms: Boot clock at which the energy in the last block ends; 0 where none is known.
    """

    chain: Chain
    ends: dict[str, End]
    events: int = 0
    parameters: tuple[bytes, ...] = ()
    cut_ms: int = 0


class Tools(NamedTuple):
    """What the caller lends: reading samples, and running tasks, on several processors or one.

    Attributes:
        read: Bytes of a samples segment: (number, begin, end).
        seals: Runs `verify_seals` over tasks, results in order.
        samples: Runs `audit_samples` over tasks, results in order.
        progress: Told what is being done, how far, and of how many.
    """

    read: Callable[[int, int, int], bytes]
    seals: Callable[[list[SealTask]], Iterator[SealResult]]
    samples: Callable[[list[SampleTask]], Iterator[SampleResult]]
    progress: Callable[[str, int, int], None]


class OpenSegment(NamedTuple):
    """Rows that no block takes yet: a segment, and the number of the first of them."""

    segment: SampleSegment
    first_row: int


@dataclass(slots=True)
class Findings:
    """What the judge found.

    Attributes:
        chain: The chain as far as it verifies.
        blocks: Its blocks since the start.
        events: Events since the start, as far as links hold.
        parameters: Parameter records by hash.
        bad: Bad places, of which `first_bad` is the first.
        tails: Bytes that count for nothing and were found just now.
        ends: Where each stream ends.
        open: Rows not sealed yet, as far as their links hold.
        results: Audits of samples, by segment.
        pruned: Rows of each pruned segment.
    """

    chain: Chain
    blocks: list[Block] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    parameters: dict[bytes, Parameters] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    tails: list[Tail] = field(default_factory=list)
    ends: dict[str, End] = field(default_factory=dict)
    open: list[OpenSegment] = field(default_factory=list)
    results: dict[int, SampleResult] = field(default_factory=dict)
    pruned: dict[int, int] = field(default_factory=dict)

    @property
    def first_bad(self) -> Bad | None:
        """The bad place that concerns the lowest block."""
        return min(
            self.bad, key=lambda bad: 2**64 if bad.height is None else bad.height, default=None
        )

    @property
    def records(self) -> int:
        """Rows that the blocks take."""
        return sum(block.records for block in self.blocks)


def judge(files: Files, start: Start, tools: Tools) -> Findings:
    """Judge an account from `start` on."""
    chain = start.chain
    found = Findings(chain, ends=dict(start.ends))
    for record in start.parameters:
        found.parameters[digest(record)] = decode_parameters(record)
    names = {"genesis": chain.genesis, "meter": chain.meter}
    blocks = read_frames("blocks", files.blocks, before=start.ends["blocks"], **names)
    _take_blocks(found, blocks, tools)
    events = read_frames("events", files.events, before=start.ends["events"], **names)
    _take_events(found, events, start, files.claims, blocks)
    _take_samples(found, files.samples, start, tools)
    torn = {(tail.stream, tail.segment) for tail in found.tails}
    told = {
        (event["stream"], event["segment"], event["offset"], event["sha256"])
        for event in found.events
        if event.kind == "torn_tail"
    }
    for stream in (blocks, events):
        for tail in stream.tails:
            if (tail.stream, tail.segment) not in torn:
                _take_excess(found, tail, told)
    return found


def _take_excess(found: Findings, tail: Tail, told: set[tuple[object, ...]]) -> None:
    """What lies past a counted length is good where an event tells of it, and bad elsewhere."""
    name = (tail.stream, tail.segment, tail.offset, sha256(tail.data).digest())
    if name not in told:
        reason = f"{len(tail.data)} bytes that no event tells of lie past the counted length"
        found.bad.append(Bad(tail.stream, None, None, tail.segment, tail.offset, reason))


# --- blocks ----------------------------------------------------------------------------------


def _take_blocks(found: Findings, stream: FrameStream, tools: Tools) -> None:
    messages = [stored.frame.body for stored in stream.frames]
    tasks, chain = [], found.chain
    for at in range(0, len(messages), SEALS_PER_TASK):
        part = tuple(messages[at : at + SEALS_PER_TASK])
        tasks.append(SealTask(chain, part))
        chain = _assumed(chain, part[-1])
    reason = ""
    for number, result in enumerate(tools.seals(tasks)):
        if tasks[number].chain.head != found.chain.head:
            reason = "does not follow the block before it"
            break
        found.blocks += result.blocks
        found.chain, reason = result.chain, result.reason
        tools.progress("seals", number + 1, len(tasks))
        if reason:
            break
    if reason:
        stored = stream.frames[len(found.blocks)]
        _bad_block(found, stored.segment, stored.frame.offset, reason)
    elif stream.damage:
        _bad_block(found, *stream.damage)
    found.ends["blocks"] = stream.end
    if stream.torn:
        found.tails.append(stream.tails[-1])


def _assumed(chain: Chain, message: bytes) -> Chain:
    """Return the chain behind a block that another task verifies; compared when it has."""
    try:
        payload = take_apart(message).payload
        block = decode_block(payload)
    except EncodingError:
        return chain
    head = replace(
        chain.head,
        height=block.height,
        block_hash=digest(payload),
        end_s=block.end_s,
        energy=block.energy,
        parameters=block.parameters,
        order=block.order,
        events=block.events,
    )
    return replace(chain, head=head)


def _bad_block(found: Findings, segment: int, offset: int, reason: str) -> None:
    head = found.chain.head
    found.bad.append(Bad("blocks", head.height + 1, head.end_s, segment, offset, reason))


# --- events ----------------------------------------------------------------------------------


def _take_events(
    found: Findings,
    stream: FrameStream,
    start: Start,
    claims: tuple[int, int],
    blocks: FrameStream,
) -> None:
    digests = {start.events: start.ends["events"].digest}
    damage = stream.damage
    claimed: tuple[int, bytes] | None = None
    for number, stored in enumerate(stream.frames, start=start.events + 1):
        try:
            event = decode_event(stored.frame.body)
            if event.number != number:
                raise EncodingError(f"expected event {number}, got {event.number}")  # noqa: TRY301
            if event.kind == "parameters":
                record = event.bytes_of("record")
                found.parameters[digest(record)] = decode_parameters(record)
            elif event.kind == "pruned":
                found.pruned[event.number_of("segment")] = event.number_of("rows")
            elif event.kind == "sealed" and (stored.segment, stored.frame.end) <= claims:
                claimed = (event.number_of("height"), event.bytes_of("hash"))
        except EncodingError as error:
            at = stored.frame.offset
            damage = (damage and min(damage, (stored.segment, at))) or (
                stored.segment,
                at,
                str(error),
            )
            break
        digests[number] = stored.frame.digest
        found.events.append(event)
    counted = start.events + len(found.events)
    _check_digests(found, digests, counted, stream, damage)
    head = found.chain.head
    if claimed and claimed[0] > head.height and not found.bad:
        tail = found.tails[-1:] if blocks.torn else []
        segment, offset = (
            (tail[0].segment, tail[0].offset)
            if tail
            else (blocks.end.number, blocks.end.counted_bytes)
        )
        _bad_block(
            found, segment, offset, f"block {claimed[0]} was sealed, and is missing or damaged"
        )
    found.ends["events"] = stream.end
    if stream.torn:
        found.tails.append(stream.tails[-1])


def _check_digests(
    found: Findings,
    digests: dict[int, bytes],
    counted: int,
    stream: FrameStream,
    damage: tuple[int, int, str] | None,
) -> None:
    if damage is None and stream.torn:
        tail = stream.tails[-1]
        damage = (tail.segment, tail.offset, "a record is cut off or damaged")
    for block in found.blocks:
        if digests.get(block.events) == block.events_digest:
            continue
        segment, offset, reason = damage or (stream.end.number, stream.end.counted_bytes, "")
        if block.events <= counted:
            reason = "events are linked, and are not those that the block sealed"
            place = stream.frames[block.events - counted + len(found.events) - 1]
            segment, offset = place.segment, place.frame.offset
        elif not reason:
            reason = f"expected {block.events} events, found {counted}"
        found.bad.append(Bad("events", block.height, block.start_s, segment, offset, reason))
        return
    if stream.damage:
        head = found.chain.head
        found.bad.append(Bad("events", head.height + 1, head.end_s, *stream.damage))


# --- samples ---------------------------------------------------------------------------------


def _take_samples(found: Findings, files: list[SampleFile], start: Start, tools: Tools) -> None:
    end = start.ends["samples"]
    kept = [file for file in files if file.number > end.number]
    pruned = {number: rows for number, rows in sorted(found.pruned.items()) if number > end.number}
    gone = max(pruned, default=end.number)
    kept = [file for file in kept if file.number > gone]
    stream = read_samples(
        kept, genesis=found.chain.genesis, meter=found.chain.meter, first=gone + 1
    )
    rows = pruned | {number: segment.rows for number, segment in stream.segments.items()}
    stretches, short = plan(found.blocks, rows)
    if short:
        place = stream.damage or (max(rows, default=gone + 1), _size(stream), "rows are missing")
        found.bad.append(Bad("samples", short.height, short.start_s, *place))
    elif stream.damage:
        head = found.chain.head
        found.bad.append(Bad("samples", head.height + 1, head.end_s, *stream.damage))
    tasks = _sample_tasks(found, stream, stretches, start.cut_ms, tools)
    for done, (task, result) in enumerate(zip(tasks, tools.samples(tasks), strict=False), start=1):
        found.results[task.number] = result
        tools.progress("samples", done, len(tasks))
        if result.bad:
            found.bad.append(result.bad)
            break
    _check_joins(found, stream, stretches, tools)
    _check_ends(found, stream, stretches, tools)
    _take_open(found, stream, stretches, tools)


def _size(stream: SampleStream) -> int:
    last = list(stream.segments.values())[-1:]
    return last[0].counted_bytes if last else 0


def _sample_tasks(
    found: Findings,
    stream: SampleStream,
    stretches: dict[int, list[Stretch]],
    cut_ms: int,
    tools: Tools,
) -> list[SampleTask]:
    tasks = []
    for number, segment in stream.segments.items():
        here = stretches.get(number, [])
        before = stream.segments.get(number - 1)
        header = segment.header
        parameters = found.parameters.get(header.parameters)
        if parameters is None:
            if here:
                reason = "no event holds the parameter record that the header names"
                block = here[0].block
                found.bad.append(Bad("samples", block.height, block.start_s, number, 0, reason))
            continue
        tail = b""
        if header.before and before and before.header.row_bytes == header.row_bytes:
            count = min(before.rows, TAIL_ROWS)
            end = before.begin + before.rows * header.row_bytes
            tail = tools.read(number - 1, end - count * header.row_bytes, end)
        task = SampleTask(
            number=number,
            header=header,
            begin=segment.begin,
            parameters=parameters,
            stretches=tuple(here),
            cut_ms=_cut_before(stretches, number, cut_ms),
            tail=tail,
            tail_whole=not header.before,
            following=_following(stream, number, tools),
        )
        tasks.append(task)
    return tasks


def _cut_before(stretches: dict[int, list[Stretch]], number: int, cut_ms: int) -> int:
    """Return where the last block before this segment ends, by the boot clock."""
    for earlier in range(number - 1, min(stretches, default=number) - 1, -1):
        for stretch in reversed(stretches.get(earlier, [])):
            if stretch.rows or stretch.block.clock.measured_ms:
                return stretch.block.clock.boot_ms if stretch.ends else 0
    return cut_ms


def _following(stream: SampleStream, number: int, tools: Tools) -> bytes:
    following = stream.segments.get(number + 1)
    if following is None or not following.header.before or not following.rows:
        return b""
    end = following.begin + following.header.row_bytes - LINK_BYTES
    return tools.read(number + 1, following.begin, end)


def _check_joins(
    found: Findings,
    stream: SampleStream,
    stretches: dict[int, list[Stretch]],
    tools: Tools,
) -> None:
    """Check what no segment can tell by itself: sums handed on, blocks of several segments."""
    measured: dict[int, int] = {}
    estimated: set[int] = set()
    whole = {block.height for block in found.blocks}
    for number in stretches:
        result = found.results.get(number)
        for stretch in stretches[number]:
            if result is None or not result.exact:
                whole.discard(stretch.block.height)
        if result is None:
            continue
        estimated |= result.estimated
        for height, ms in result.measured_ms.items():
            measured[height] = measured.get(height, 0) + ms
        _check_sums(found, stream, stretches, number)
    for number, here in stretches.items():
        for stretch in here:
            block = stretch.block
            if block.height not in whole or not stretch.ends:
                continue
            reason = ""
            if measured.get(block.height, 0) != block.clock.measured_ms:
                reason = (
                    f"measured {block.clock.measured_ms} ms, its rows tell of "
                    f"{measured.get(block.height, 0)} ms"
                )
            elif block.flags & ESTIMATED and block.height not in estimated:
                reason = "flagged estimated, and no row is"
            elif not stretch.begins:
                reason = _check_parts(block, stream, stretches, tools)
            if reason:
                offset = stream.segments[number].begin
                found.bad.append(
                    Bad("samples", block.height, block.start_s, number, offset, reason)
                )
                return


def _check_sums(
    found: Findings,
    stream: SampleStream,
    stretches: dict[int, list[Stretch]],
    number: int,
) -> None:
    """A segment's header must state the sums that the segment before it adds up to."""
    result, following = found.results[number], stream.segments.get(number + 1)
    sealed = sum(stretch.rows for stretch in stretches[number])
    if following is None or not result.exact or sealed < stream.segments[number].rows:
        return
    parameters = found.parameters.get(following.header.parameters)
    codes = [obis for obis, _ in parameters.registers] if parameters else []
    stated = dict(zip(codes, following.header.sums, strict=False))
    if any(result.row_sums.get(code, half) != half for code, half in stated.items()):
        reason = f"the header's sums are not what segment {number} adds up to"
        later = stretches.get(number + 1, [])
        head = found.chain.head
        height, start_s = (
            (later[0].block.height, later[0].block.start_s)
            if later
            else (head.height + 1, head.end_s)
        )
        found.bad.append(Bad("samples", height, start_s, number + 1, 0, reason))


def _check_ends(
    found: Findings, stream: SampleStream, stretches: dict[int, list[Stretch]], tools: Tools
) -> None:
    """Each header must name the segment before it as it stands, and nothing may lie past that."""
    told = {
        (event["segment"], event["offset"], event["sha256"])
        for event in found.events
        if event.kind == "torn_tail" and event["stream"] == "samples"
    }
    for number, segment in stream.segments.items():
        following = stream.segments.get(number + 1)
        if following is None:
            continue
        header, end = following.header, segment.counted_bytes
        reason = ""
        if segment.rows:
            link = tools.read(number, end - LINK_BYTES, end)
        else:
            link = sha256(segment.header.encode()).digest()[:LINK_BYTES]
        if header.previous_digest[:LINK_BYTES] != link:
            reason = f"the next segment does not follow segment {number} as it stands"
        elif end != segment.begin + segment.rows * segment.header.row_bytes:
            reason = "the next segment counts a part of a row"
        elif segment.size > end:
            excess = sha256(tools.read(number, end, segment.size)).digest()
            if (number, end, excess) not in told:
                reason = "bytes that no event tells of lie past the counted length"
        if reason:
            here = stretches.get(number, [])
            block = here[-1].block if here else None
            height, start_s = (block.height, block.start_s) if block else (None, None)
            found.bad.append(Bad("samples", height, start_s, number, end, reason))
            return


def _check_parts(
    block: Block, stream: SampleStream, stretches: dict[int, list[Stretch]], tools: Tools
) -> str:
    """Check the fingerprint of a block whose rows lie in several segments."""
    parts = []
    for number, here in stretches.items():
        for stretch in here:
            if stretch.block.height == block.height and stretch.rows:
                segment = stream.segments[number]
                size = segment.header.row_bytes
                begin = segment.begin + stretch.first_row * size
                rows = tools.read(number, begin, begin + stretch.rows * size)
                parts.append((segment.header, stretch.first_row, rows))
    if fingerprint_of(parts) == block.fingerprint:
        return ""
    return "the rows in several segments are not those that the block sealed"


def _take_open(
    found: Findings,
    stream: SampleStream,
    stretches: dict[int, list[Stretch]],
    tools: Tools,
) -> None:
    """Check the links of rows that no block takes yet, and find where the stream ends."""
    numbers = list(stream.segments)
    for number, segment in stream.segments.items():
        sealed = sum(stretch.rows for stretch in stretches.get(number, []))
        last = number == numbers[-1]
        if sealed == segment.rows and not last:
            continue
        data = tools.read(number, 0, segment.size)
        holds, damage = find_damaged_row(data, segment.header, segment.counted_bytes)
        rows = (holds - segment.begin) // segment.header.row_bytes
        if damage and last and rows >= sealed:
            found.tails.append(Tail("samples", number, holds, data[holds:]))
        elif damage and rows >= sealed:
            head = found.chain.head
            found.bad.append(
                Bad("samples", head.height + 1, head.end_s, number, holds, damage.reason)
            )
        if rows > sealed:
            found.open.append(OpenSegment(segment._replace(rows=rows), sealed))
        if last:
            found.ends["samples"] = End(number, _digest_at(data, segment, holds), holds)
    if stream.tail:
        found.tails.append(
            Tail("samples", stream.tail[0], 0, tools.read(stream.tail[0], 0, stream.tail[1]))
        )


def _digest_at(data: bytes, segment: SampleSegment, end: int) -> bytes:
    """Return the full digest of a samples segment at a byte behind a row."""
    linker = Linker(segment.header.encode())
    size = segment.header.row_bytes
    for at in range(segment.begin, end, size):
        linker.add(data[at : at + size - LINK_BYTES])
    return linker.digest
