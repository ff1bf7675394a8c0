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
    from collections.abc import Sequence


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
        tails: What lies past the counted lengths, that of the last segment last.
        torn: Whether the last of `tails` is of the last segment: new, and in no event yet.
        end: Behind the last frame that holds.
    """

    end: End
    frames: list[StoredFrame] = field(default_factory=list)
    damage: Place | None = None
    tails: list[Tail] = field(default_factory=list)
    torn: bool = False


def read_frames(
    stream: str,
    segments: Sequence[tuple[int, bytes]],
    *,
    genesis: bytes,
    meter: str,
    before: End = End(),  # noqa: B008 - immutable
) -> FrameStream:
    """Return the frames of a stream as far as segments follow each other and links hold.

    Args:
        stream: `events` or `blocks`.
        segments: (number, bytes), ascending.
        genesis: Hash that each header must name.
        meter: Name that each header must bear.
        before: The end that the first of them must follow.
    """
    result = FrameStream(before)
    for position, (number, data) in enumerate(segments):
        following = segments[position + 1][1] if position + 1 < len(segments) else None
        try:
            header, begin = read_header(data, stream)
        except EncodingError as error:
            if following is None:
                result.tails.append(Tail(stream, number, 0, data))
                result.torn = True
            else:
                result.damage = Place(number, 0, str(error))
            return result
        problem = misplaced(header, number, result.end, genesis, meter)
        counted = len(data) if following is None else counted_bytes(stream, following, len(data))
        if not problem and counted < begin:
            problem = "the next segment counts less of this one than its header"
        if problem:
            result.damage = Place(number, 0, problem)
            return result
        walk = walk_frames(data, header, limit=counted)
        result.frames += [StoredFrame(number, frame) for frame in walk]
        result.end = End(number, walk.digest, walk.end)
        if walk.damage is not None:
            if following is not None:
                result.damage = Place(number, walk.damage.offset, walk.damage.reason)
                return result
            result.torn = True
        if walk.end < len(data):
            result.tails.append(Tail(stream, number, walk.end, data[walk.end :]))
    return result


def misplaced(header: Header, number: int, before: End, genesis: bytes, meter: str) -> str:
    """Return why a segment cannot follow `before` in this account, or an empty text."""
    if header.number != number or number != before.number + 1:
        return f"expected segment {before.number + 1}, found {number} headed {header.number}"
    if header.genesis != genesis or header.meter != meter:
        return "a segment of another account"
    if header.previous_bytes != before.counted_bytes or header.previous_digest != before.digest:
        return f"does not follow segment {before.number} as it stands"
    return ""


def counted_bytes(stream: str, following: bytes, size: int) -> int:
    """Return how much of a segment of `size` bytes the header of the next one counts."""
    try:
        return min(read_header(following, stream)[0].previous_bytes, size)
    except EncodingError:
        return size  # the damaged header is found on its own account


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


@dataclass(slots=True)
class SampleStream:
    """The sample segments that follow each other.

    Attributes:
        segments: By number, ascending.
        damage: First damage to a header, or a segment that is missing.
        tail: A last header that is torn.
    """

    segments: dict[int, SampleSegment] = field(default_factory=dict)
    damage: Place | None = None
    tail: tuple[int, int] | None = None


def read_samples(
    files: Sequence[SampleFile], *, genesis: bytes, meter: str, first: int
) -> SampleStream:
    """Return the sample segments as their headers tell them; rows are not looked at.

    Args:
        files: Ascending by number.
        genesis: Hash that each header must name.
        meter: Name that each header must bear.
        first: Number of the first segment that was not pruned.
    """
    result = SampleStream()
    expected = first
    headers: list[SampleHeader | None] = []
    begins: list[int] = []
    for file in files:
        try:
            header, begin = read_header(file.head, "samples")
        except EncodingError as error:
            if file is not files[-1]:
                result.damage = result.damage or Place(file.number, 0, str(error))
            header, begin = None, 0
        headers.append(header if isinstance(header, SampleHeader) else None)
        begins.append(begin)
    for position, file in enumerate(files):
        header = headers[position]
        if header is None:
            if file is files[-1]:
                result.tail = (file.number, file.size)
            return result
        problem = ""
        if header.number != file.number or file.number != expected:
            problem = f"expected segment {expected}, found {file.number} headed {header.number}"
        elif header.genesis != genesis or header.meter != meter:
            problem = "a segment of another account"
        if problem:
            result.damage = Place(file.number, 0, problem)
            return result
        following = headers[position + 1] if position + 1 < len(files) else None
        counted = following.previous_bytes if following else file.size
        if counted > file.size or counted < begins[position]:
            result.damage = Place(
                file.number, file.size, f"expected {counted} bytes, found {file.size}"
            )
            counted = min(max(counted, begins[position]), file.size)
        rows = (counted - begins[position]) // header.row_bytes
        result.segments[file.number] = SampleSegment(
            header, begins[position], rows, counted, file.size
        )
        if result.damage:
            return result
        expected = file.number + 1
    return result
