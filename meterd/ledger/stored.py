"""The streams of an account as they lie on the card: which segments follow, which records hold.

>>> read_frames("events", [], genesis=bytes(32), meter="m").frames
[]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import EncodingError
from meterd.ledger.segment import Frame, Header, SampleHeader, read_header, walk_frames

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


class End(NamedTuple):
    """Where a stream ends: what its next segment's header says of the segment before.

    Attributes:
        number: Number of its last segment; 0 where there is none.
        digest: Full digest at the counted length.
        counted_bytes: That length.
    """

    number: int = 0
    digest: bytes = bytes(32)
    counted_bytes: int = 0


class Tail(NamedTuple):
    """Bytes past the last durable mark of a stream that count for nothing.

    Attributes:
        stream: `samples`, `events` or `blocks`.
        segment: Number of the segment.
        offset: Byte in the segment at which they begin.
        data: What is there.
    """

    stream: str
    segment: int
    offset: int
    data: bytes


class Place(NamedTuple):
    """A place in a stream, and what is wrong there."""

    segment: int
    offset: int
    reason: str


class Bad(NamedTuple):
    """The first place of an account that does not verify.

    Attributes:
        stream: `genesis`, `blocks`, `events` or `samples`.
        height: The block concerned, or None.
        start_s: That block's start, or None where it is not known.
        segment: Number of the segment.
        offset: Byte in the segment.
        reason: What was expected there, and what was found.
    """

    stream: str
    height: int | None
    start_s: int | None
    segment: int
    offset: int
    reason: str


class StoredFrame(NamedTuple):
    """A frame, and the segment that it is in."""

    segment: int
    frame: Frame


@dataclass(slots=True)
class FrameStream:
    """The frames of a stream that hold, and where it ends.

    Attributes:
        frames: In order.
        damage: First damage before a durable mark.
        excess: What lies past counted lengths, of which an event has to tell.
        torn: What lies past the last record, and segments behind it that never had a header.
        end: Behind the last frame that holds; its number is that of the last segment, even of one
            whose header never came to the card.
    """

    end: End
    frames: list[StoredFrame] = field(default_factory=list)
    damage: Place | None = None
    excess: list[Tail] = field(default_factory=list)
    torn: list[Tail] = field(default_factory=list)


def read_frames(
    stream: str,
    segments: Sequence[tuple[int, bytes]],
    genesis: bytes,
    meter: str,
    before: End = End(),  # noqa: B008 - immutable
) -> FrameStream:
    """Return the frames of a stream as far as segments follow each other and links hold.

    A segment whose header does not hold is passed over where the next one does not name it: power
    failed while it was made, and nothing ever counted in it.

    Args:
        stream: `events` or `blocks`.
        segments: (number, bytes), ascending.
        genesis: Hash that each header must name.
        meter: Name that each header must bear.
        before: The end that the first of them must follow.
    """
    result = FrameStream(before)
    waiting: list[Tail] = []  # excess if a segment follows, else torn
    problem: Place | None = None
    for position, (number, data) in enumerate(segments):
        result.damage = _absent(result.end.number + 1, number)
        if result.damage:
            return result
        try:
            header, _ = read_header(data, stream)
        except EncodingError as error:
            waiting.append(Tail(stream, number, 0, data))
            problem = problem or Place(number, 0, str(error))
            result.end = result.end._replace(number=number)
            continue
        result.damage = misplaced(header, number, result.end, genesis, meter)
        if result.damage:
            result.damage = problem or result.damage
            return result
        result.excess += waiting
        waiting, problem = [], None
        counted = _counted_bytes(stream, header, segments[position + 1 : position + 2])
        walk = walk_frames(data, header, limit=counted)
        result.frames += [StoredFrame(number, frame) for frame in walk]
        result.end = End(number, walk.digest, walk.end)
        if walk.damage is not None and counted is not None:
            result.damage = Place(number, *walk.damage)
            return result
        if walk.end < len(data):
            waiting.append(Tail(stream, number, walk.end, data[walk.end :]))
    result.torn = waiting
    return result


def _absent(expected: int, found: int) -> Place | None:
    if found == expected:
        return None
    return Place(expected, 0, f"expected segment {expected}, found {found}")


def misplaced(header: Header, number: int, before: End, genesis: bytes, meter: str) -> Place | None:
    """Return why segment `number` cannot follow `before` in this account, or None."""
    if header.number != number:
        return Place(number, 0, f"expected segment {number}, found {header.number}")
    if header.genesis != genesis or header.meter != meter:
        return Place(number, 0, "a segment of another account")
    if header.previous_bytes > before.counted_bytes:
        end = before.counted_bytes
        reason = f"expected {header.previous_bytes} bytes, found {end}"
        return Place(max(before.number, 1), end, reason)
    if header.previous_bytes != before.counted_bytes or header.previous_digest != before.digest:
        return Place(number, 0, "does not follow the segment before it as it stands")
    return None


def _counted_bytes(
    stream: str, header: Header, following: Sequence[tuple[int, bytes]]
) -> int | None:
    """Return how much of a segment the next header counts; None if that is not one of it."""
    for _, data in following:
        try:
            return _counted_by(read_header(data, stream)[0], header.number + 1, header)
        except EncodingError:
            return None
    return None


def _counted_by(following: Header | None, number: int, header: Header) -> int | None:
    """Return how much the header that should be `number`'s counts before it; None if it is not."""
    if following is None or following.number != number or following.genesis != header.genesis:
        return None
    return following.previous_bytes


class SampleFile(NamedTuple):
    """A samples segment on the card: its number, its first bytes, its size."""

    number: int
    head: bytes
    size: int


class SampleSegment(NamedTuple):
    """A segment of samples as far as it counts.

    Attributes:
        header: Its header.
        begin: Byte at which its rows begin.
        rows: Number of whole rows in its counted length.
        counted_bytes: That length.
        size: The file's size.
    """

    header: SampleHeader
    begin: int
    rows: int
    counted_bytes: int
    size: int

    def offset(self, row: int) -> int:
        """Return the byte at which a row begins."""
        return self.begin + row * self.header.row_bytes


@dataclass(slots=True)
class SampleStream:
    """The sample segments that follow each other.

    Attributes:
        segments: By number, ascending.
        rows: Rows of each, and of those that were pruned, ascending.
        damage: First damage to a header, or a segment that is missing.
        tail: A last segment whose header does not hold.
        number: Number of the last segment, of whatever kind.
    """

    number: int
    segments: dict[int, SampleSegment] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)
    damage: Place | None = None
    tail: SampleFile | None = None


def read_samples(
    files: Sequence[SampleFile],
    *,
    genesis: bytes,
    meter: str,
    before: End,
    pruned: Mapping[int, int],
    empty: Collection[int],
) -> SampleStream:
    """Return the sample segments as their headers tell them; rows are not looked at.

    Args:
        files: Ascending by number, those past `before`.
        genesis: Hash that each header must name.
        meter: Name that each header must bear.
        before: The end that the first of them must follow.
        pruned: Rows of each segment that an event says was pruned, by number.
        empty: Numbers of segments that an event says never had a header.
    """
    result = SampleStream(before.number)
    at = {file.number: file for file in files}
    heads = {file.number: _sample_header(file) for file in files if file.number not in empty}
    for number in sorted({*at, *pruned}):
        if number <= before.number:
            continue
        result.damage = _absent(result.number + 1, number)
        if result.damage:
            return result
        result.number = number
        if number in pruned:
            result.rows[number] = pruned[number]
            continue
        if number in empty:
            continue
        file = at[number]
        header, begin, problem = heads[number]
        if header is None:
            if file is files[-1]:
                result.tail = file
            else:
                result.damage = Place(number, 0, problem)
            return result
        if header.number != number:
            problem = f"expected segment {number}, found {header.number}"
        elif header.genesis != genesis or header.meter != meter:
            problem = "a segment of another account"
        if problem:
            result.damage = Place(number, 0, problem)
            return result
        later = number + 1
        while later in empty:
            later += 1
        named = _counted_by(heads[later][0], later, header) if later in heads else None
        counted = file.size if named is None else named
        if not begin <= counted <= file.size:
            reason = f"expected {counted} bytes, found {file.size}"
            result.damage = Place(number, file.size, reason)
            counted = max(begin, file.size)
        rows = (counted - begin) // header.row_bytes
        result.segments[number] = SampleSegment(header, begin, rows, counted, file.size)
        result.rows[number] = rows
        if result.damage:
            return result
    return result


def _sample_header(file: SampleFile) -> tuple[SampleHeader | None, int, str]:
    try:
        header, begin = read_header(file.head, "samples")
    except EncodingError as error:
        return None, 0, str(error)
    assert isinstance(header, SampleHeader)  # noqa: S101 - what a header of samples is read as
    return header, begin, ""
