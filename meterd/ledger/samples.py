"""The samples' side of the verdict: rows against the blocks that take them.

`audit` judges one segment by itself. Here its tasks are made, and what no segment can tell alone is
checked: that none is missing, that each header names the one before, that a block of several
segments has the rows it sealed, and how far rows hold that no block takes yet.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from meterd.ledger.audit import SampleTask, Stretch, fingerprint_of, plan
from meterd.ledger.findings import OpenSegment
from meterd.ledger.row import LINK_BYTES
from meterd.ledger.segment import Linker, find_damaged_row
from meterd.ledger.stored import End, Place, SampleFile, SampleSegment, Tail, read_samples
from meterd.metering.interval import ESTIMATED, LOST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterd.ledger.audit import SampleResult
    from meterd.ledger.block import Block
    from meterd.ledger.findings import Findings, Start, Tools

TAIL_ROWS = 64  # to find fifteen time differences that are not 0


def take_samples(
    found: Findings,
    files: Sequence[SampleFile],
    start: Start,
    tools: Tools,
    *,
    events_damaged: bool,
) -> None:
    """Judge the samples and add what is found.

    Args:
        found: Blocks and events as far as they hold.
        files: Segments on the card, ascending.
        start: From where the account is judged.
        tools: What reads and audits segments.
        events_damaged: Events are missing, and may have told of segments that were pruned.
    """
    _Samples(found, files, start, tools, events_damaged=events_damaged).take()


class _Samples:
    def __init__(
        self,
        found: Findings,
        files: Sequence[SampleFile],
        start: Start,
        tools: Tools,
        *,
        events_damaged: bool,
    ) -> None:
        self._found, self._start, self._tools = found, start, tools
        self._events_damaged = events_damaged
        self._present = {file.number for file in files}
        end = start.ends["samples"]
        self._stream = read_samples(
            files,
            genesis=found.chain.genesis,
            meter=found.chain.meter,
            before=end,
            pruned={number: rows for number, (rows, _) in found.pruned.items()},
            empty=[file.number for file in files if self._told(file.number, 0, file.size)],
        )
        here = [block for block in found.blocks if block.height > found.elsewhere]
        self._stretches, self._short = plan(here, self._stream.rows)

    def _told(self, number: int, begin: int, end: int) -> bool:
        """Say whether an event tells that these bytes count for nothing."""
        found = self._found
        if not any(tail[:3] == ("samples", number, begin) for tail in found.told):
            return False
        data = self._tools.read(number, begin, end)
        return any(
            tail[:3] == ("samples", number, begin) and tail.sha256 == sha256(data).digest()
            for tail in found.told
        )

    def take(self) -> None:
        found, stream = self._found, self._stream
        if stream.damage and self._events_damaged and stream.damage.segment not in self._present:
            return  # a damaged event may have told of pruning: no row can be laid to a block
        if self._short:
            found.add_bad("samples", self._short, self._short_place())
        elif stream.damage:
            found.add_bad("samples", None, stream.damage)
        self._check_parts()
        tasks = self._tasks()
        results = self._tools.samples(tasks)
        for done, (task, result) in enumerate(zip(tasks, results, strict=False), start=1):
            found.results[task.number] = result
            self._tools.progress("samples", done, len(tasks))
            if result.bad:
                found.add_bad("samples", *result.bad)
                break
        self._check_joins()
        self._take_open()
        self._check_ends()

    def _short_place(self) -> Place:
        """Return where the rows of the first block that lacks some end, or are damaged before."""
        stream = self._stream
        last = stream.segments.get(stream.number)
        if last:
            data = self._tools.read(stream.number, 0, last.counted_bytes)
            _, damage = find_damaged_row(data, last.header, last.counted_bytes)
            if damage:
                return Place(stream.number, *damage)
        end = last.counted_bytes if last else 0
        return stream.damage or Place(stream.number, end, "rows are missing")

    def _block_at(self, number: int, which: int) -> Block | None:
        """Return the block of a segment's first row (0) or last (-1), if blocks take its rows."""
        blocks = [stretch.block for stretch in self._here(number) if stretch.rows]
        return blocks[which] if blocks else None

    def _here(self, number: int) -> list[Stretch]:
        return self._stretches.get(number, [])

    def _taken(self, number: int) -> int:
        return sum(stretch.rows for stretch in self._here(number))

    # --- tasks -------------------------------------------------------------------------------

    def _tasks(self) -> list[SampleTask]:
        tasks = []
        cuts_ms = [self._start.cut_ms]  # behind the last row that a block takes
        boot_id = b""
        for number, here in self._stretches.items():
            segment = self._stream.segments.get(number)
            if segment:
                same = boot_id in {b"", segment.header.boot_id}
                tasks += self._task(number, segment, tuple(cuts_ms) if same else ())
            for stretch in here:
                clock = stretch.block.clock
                if stretch.rows or clock.boot_id != boot_id:
                    cuts_ms.clear()
                if stretch.ends and (stretch.rows or clock.measured_ms):
                    cuts_ms.append(clock.boot_ms)
                boot_id = clock.boot_id
        return tasks

    def _task(
        self, number: int, segment: SampleSegment, cuts_ms: tuple[int, ...]
    ) -> list[SampleTask]:
        here, header = self._stretches[number], segment.header
        parameters = self._found.parameters.get(header.parameters)
        if parameters is None:
            reason = "no event holds the parameter record that the header names"
            self._found.add_bad("samples", self._block_at(number, 0), Place(number, 0, reason))
            return []
        following, broken = self._following(number)
        task = SampleTask(
            number=number,
            header=header,
            begin=segment.begin,
            rows=segment.rows,
            parameters=parameters,
            stretches=tuple(here),
            cuts_ms=cuts_ms,
            tail=self._tail_before(number),
            following=following,
            broken=broken,
        )
        return [task]

    def _goes_on(self, number: int) -> bool:
        """Say whether a segment begins with the row after the last of the one before.

        It does not where a run begins, nor where samples were lost between the two.
        """
        lost = any(stretch.block.flags & LOST for stretch in self._here(number - 1))
        return bool(self._stream.segments[number].header.before) and not lost

    def _tail_before(self, number: int) -> bytes:
        before = self._stream.segments.get(number - 1)
        if before is None or not self._goes_on(number):
            return b""
        first_row = max(before.rows - TAIL_ROWS, 0)
        return self._tools.read(number - 1, before.offset(first_row), before.offset(before.rows))

    def _following(self, number: int) -> tuple[bytes, bool]:
        """Return the next segment's first row if it goes on with the run, and what is known of it.

        That is: whether it is known to be damaged or missing. Where a block ends between two rows
        and the second is so, its registers cannot be recomputed, and the damage is that row's.
        """
        stream, here = self._stream, self._stream.segments[number]
        following = stream.segments.get(number + 1)
        damaged = self._short is not None or stream.damage is not None
        if following is None:
            torn = stream.tail is not None or here.size > here.offset(here.rows)
            return b"", damaged or torn
        if not following.header.before:
            return b"", False
        if not following.rows or not self._first_holds(number + 1, following):
            return b"", damaged or following.rows > 0
        if not self._goes_on(number + 1):
            return b"", False
        row = self._tools.read(number + 1, following.begin, following.offset(1))
        return row[:-LINK_BYTES], False

    def _first_holds(self, number: int, segment: SampleSegment) -> bool:
        """Say whether a segment's first row is linked, and is what its block sealed."""
        first = next((stretch for stretch in self._here(number) if stretch.rows), None)
        rows = first.rows if first else 1
        data = self._tools.read(number, segment.begin, segment.offset(rows))
        if first and first.block is self._short:
            return False
        if first and first.begins and first.ends:
            return fingerprint_of([(segment.header, 0, data)]) == first.block.fingerprint
        row = data[: segment.header.row_bytes]
        return Linker(segment.header.encode()).add(row[:-LINK_BYTES]) == row

    # --- what joins segments -----------------------------------------------------------------

    def _check_joins(self) -> None:
        """Check what no segment can tell by itself: sums handed on, blocks of several segments."""
        found = self._found
        measured: dict[int, int] = {}
        estimated: set[int] = set()
        inexact: set[int] = set()
        for number in self._stretches:
            result = found.results.get(number)
            if result is None or not result.exact:
                inexact |= {stretch.block.height for stretch in self._here(number)}
            if result is None:
                continue
            estimated |= result.estimated
            for height, ms in result.measured_ms.items():
                measured[height] = measured.get(height, 0) + ms
            self._check_sums(number, result)
        for number in self._stretches:
            for stretch in self._here(number):
                block = stretch.block
                if block.height in inexact or not stretch.ends:
                    continue
                reason = ""
                if measured.get(block.height, 0) != block.clock.measured_ms:
                    reason = (
                        f"measured {block.clock.measured_ms} ms, its rows tell of "
                        f"{measured.get(block.height, 0)} ms"
                    )
                elif block.flags & ESTIMATED and block.height not in estimated:
                    reason = "flagged estimated, and no row is"
                if reason:
                    offset = self._stream.segments[number].begin
                    found.add_bad("samples", block, Place(number, offset, reason))
                    return

    def _check_sums(self, number: int, result: SampleResult) -> None:
        """A segment's header must state the sums that the segment before it adds up to."""
        found, following = self._found, self._stream.segments.get(number + 1)
        if following is None or not result.exact:
            return
        if self._taken(number) < self._stream.segments[number].rows:
            return
        parameters = found.parameters.get(following.header.parameters)
        codes = [obis for obis, _ in parameters.registers] if parameters else []
        stated = dict(zip(codes, following.header.sums, strict=False))
        if any(result.row_sums.get(code, half) != half for code, half in stated.items()):
            reason = f"the header's sums are not what segment {number} adds up to"
            found.add_bad("samples", self._block_at(number + 1, 0), Place(number + 1, 0, reason))

    def _check_parts(self) -> None:
        """Check the fingerprints of blocks whose rows lie in several segments."""
        parts: dict[int, list[tuple[int, Stretch]]] = {}
        for number, here in self._stretches.items():
            for stretch in here:
                if not (stretch.begins and stretch.ends):
                    parts.setdefault(stretch.block.height, []).append((number, stretch))
        for stretches in parts.values():
            block = stretches[0][1].block
            if block is self._short or any(
                number not in self._stream.segments for number, _ in stretches
            ):
                continue
            rows = []
            for number, stretch in stretches:
                segment = self._stream.segments[number]
                begin = segment.offset(stretch.first_row)
                end = segment.offset(stretch.first_row + stretch.rows)
                data = self._tools.read(number, begin, end)
                rows.append((segment.header, stretch.first_row, data))
            if fingerprint_of(rows) != block.fingerprint:
                self._found.add_bad("samples", block, self._damaged_part(stretches))

    def _damaged_part(self, stretches: list[tuple[int, Stretch]]) -> Place:
        for number, stretch in stretches:
            segment = self._stream.segments[number]
            end = segment.offset(stretch.first_row + stretch.rows)
            data = self._tools.read(number, 0, end)
            _, damage = find_damaged_row(data, segment.header, end)
            if damage:
                return Place(number, *damage)
        number, stretch = stretches[0]
        offset = self._stream.segments[number].offset(stretch.first_row)
        return Place(number, offset, "the rows are linked and are not those the block sealed")

    def _check_ends(self) -> None:
        """Check that each header names the one before as it stands, and nothing lies past that."""
        before: int | None = None
        for number in self._stream.rows:
            segment = self._stream.segments.get(number)
            if segment is not None and before is not None:
                self._check_end(before, number, segment)
            elif segment is not None:
                end = self._start.ends["samples"]
                self._check_follows(number, segment, end.digest)
            before = number

    def _check_follows(self, number: int, segment: SampleSegment, full: bytes) -> None:
        """Check the digest that a header states; `full` may be a link, which is its beginning."""
        if not segment.header.previous_digest.startswith(full):
            place = Place(number, 0, "does not follow the segment before it as it stands")
            self._found.add_bad("samples", self._block_at(number, 0), place)

    def _check_end(self, number: int, later: int, following: SampleSegment) -> None:
        """Check that segment `number` ends as `following` says, and that nothing lies behind it."""
        if number in self._found.pruned:
            self._check_follows(later, following, self._found.pruned[number][1])
            return
        segment = self._stream.segments[number]
        end = segment.counted_bytes
        if segment.rows:
            link = self._tools.read(number, end - LINK_BYTES, end)
        else:
            link = sha256(segment.header.encode()).digest()[:LINK_BYTES]
        self._check_follows(later, following, link)
        if end != segment.offset(segment.rows):
            reason = "the next segment counts a part of a row"
        elif segment.size > end and not self._told(number, end, segment.size):
            reason = "bytes that no event tells of lie past the counted length"
        else:
            return
        self._found.add_bad("samples", self._block_at(number, -1), Place(number, end, reason))

    # --- what no block takes -----------------------------------------------------------------

    def _take_open(self) -> None:
        """Check the links of rows that no block takes yet, and find where the stream ends."""
        found, stream = self._found, self._stream
        last = next(reversed(stream.rows), None)
        for number, segment in stream.segments.items():
            taken = self._taken(number)
            if taken == segment.rows and number != last:
                continue
            data = self._tools.read(number, 0, segment.size)
            holds, damage = find_damaged_row(data, segment.header, segment.counted_bytes)
            rows = (holds - segment.begin) // segment.header.row_bytes
            if damage and rows >= taken:
                if number == last:
                    found.tails.append(Tail("samples", number, holds, data[holds:]))
                else:
                    found.add_bad("samples", None, Place(number, holds, damage.reason))
            if rows > taken:
                found.open.append(OpenSegment(segment._replace(rows=rows), taken))
            if number == last:
                digest = _digest_at(data, segment, holds)
                found.ends["samples"] = End(stream.number, digest, holds)
        if last in found.pruned:
            found.ends["samples"] = End(stream.number, found.pruned[last][1], 0)
        elif last is None:
            found.ends["samples"] = found.ends["samples"]._replace(number=stream.number)
        if stream.tail:
            number, _, size = stream.tail
            found.tails.append(Tail("samples", number, 0, self._tools.read(number, 0, size)))


def _digest_at(data: bytes, segment: SampleSegment, end: int) -> bytes:
    """Return the full digest of a samples segment at a byte behind a row."""
    linker = Linker(segment.header.encode())
    size = segment.header.row_bytes
    for at in range(segment.begin, end, size):
        linker.add(data[at : at + size - LINK_BYTES])
    return linker.digest
