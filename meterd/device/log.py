"""Writes the three streams of an account: what is appended here is never written again.

A record is in the log once the operations that `take_operations` gave have been performed, and not
before. If power fails in between, the next start finds a torn last record, leaves it outside the
counted length, and loses only what nobody was told of: up to `commit_s` of samples, never a block.
A segment comes to the card whole, with its header and what was first appended to it.

The files are not trusted. Whoever can write them can stop the meter, or put back an older copy,
which the head that others hold gives away; they cannot make it vouch for energy it did not measure.

Nothing here touches the card: it answers with operations, which `Card.perform` does, off the event
loop in the daemon, at once in a replay.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from meterd.device.archive import segment_name
from meterd.device.card import Operation
from meterd.device.rows import ROWS_READ
from meterd.ledger.row import row_bytes
from meterd.ledger.segment import FrameHeader, Linker, SampleHeader
from meterd.ledger.stored import End

if TYPE_CHECKING:
    from collections.abc import Callable
    from hashlib import _Hash as HASH
    from pathlib import Path

    from meterd.ledger.event import Event


SAMPLES_BYTES_MAX = (
    4_000_000  # of a segment, which recovery reads whole: a week of one clamp at 5 s
)


class Stream:
    """One stream being appended to; its next segment is created with its first records.

    Attributes:
        folder: Where its segments are.
        number: Of the segment being written, or of the last.
        path: That segment.
        digest: Its digest at the last record; after `settle` only.
        counted_bytes: Its length with all that was appended.
    """

    def __init__(self, folder: Path, end: End) -> None:
        """Go on behind `end`, in a segment of our own."""
        self.folder = folder
        self.number = end.number
        self.digest = end.digest
        self.counted_bytes = end.counted_bytes
        self.path = folder / segment_name(end.number)
        self._linker: Linker | None = None
        self._pending: list[bytes] = []
        self._created = False
        self._operations: list[Operation] = []

    @property
    def open(self) -> bool:
        """Whether a segment of this run is being written."""
        return self._linker is not None

    def begin(self, header: FrameHeader | SampleHeader) -> None:
        """Begin the segment that `header` describes; the one before is finished."""
        self._flush_old()
        self._linker = Linker(header.encode())
        self.number = header.number
        self.path = self.folder / segment_name(header.number)
        stored = header.stored()
        self._created = False
        self._pending = [stored]
        self.counted_bytes = len(stored)
        self.digest = self._linker.digest

    def finish(self) -> End:
        """End the segment, so that the next record begins another; return where it ends."""
        self._flush_old()
        self._linker = None
        return End(self.number, self.digest, self.counted_bytes)

    def _flush_old(self) -> None:
        if self._linker is not None:
            self.settle()
            self._write()
            self._operations.append(Operation("close", self.path))

    def _write(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        self._pending = []
        if self._created:
            self._operations += [Operation("append", self.path, data), Operation("sync", self.path)]
        else:
            self._created = True
            self._operations += [
                Operation("create", self.path, data),
                Operation("sync_folder", self.folder),
            ]

    def add_rows(self, bodies: list[bytes]) -> bytes:
        """Append rows; returns them as they will be stored."""
        assert self._linker is not None  # noqa: S101 - `begin` comes first
        stored = self._linker.rows(bodies)
        self._pending.append(stored)
        self.counted_bytes += len(stored)
        return stored

    def add_frame(self, body: bytes) -> None:
        """Append a frame."""
        assert self._linker is not None  # noqa: S101 - `begin` comes first
        stored = self._linker.frame(body)
        self._pending.append(stored)
        self.counted_bytes += len(stored)

    def take_operations(self) -> list[Operation]:
        """Return what must be done so that all appended so far is durable."""
        if self._pending:
            self._write()
        operations = self._operations
        if operations:
            self._operations = []
        return operations

    def settle(self) -> None:
        """Bring `digest` up to the last record; headers of later segments name it."""
        if self._linker is not None:
            self.digest = self._linker.digest


@dataclass(slots=True, eq=False)
class OpenRows:
    """Rows of one segment that no block takes yet.

    Attributes:
        header: The segment's header.
        first_row: Number of the first of them in the segment.
        rows: How many there are.
    """

    header: SampleHeader
    first_row: int
    rows: int


class Log:
    """The account's three streams.

    Attributes:
        events: Number of events appended so far.
        samples_open: Whether a segment of samples is being written.
        open_rows: Rows that no block takes yet, by segment, oldest first.
    """

    def __init__(
        self,
        state: Path,
        *,
        genesis: bytes,
        meter: str,
        incarnation: int,
        draw_secret: Callable[[str, int], bytes],
        ends: dict[str, End],
        events: int,
        open_rows: list[OpenRows],
    ) -> None:
        """Go on behind what recovery found.

        Args:
            state: Folder of the account.
            genesis: Hash of the network's genesis.
            meter: The meter's name.
            incarnation: Which chain of it.
            draw_secret: Gives the secret of a stream's segment of a number: random in a meter.
            ends: Where each stream ends.
            events: How many events there are.
            open_rows: Rows that no block takes yet.
        """
        self.state = state
        self._genesis, self._meter, self._incarnation = genesis, meter, incarnation
        self._draw_secret = draw_secret
        self._streams = {name: Stream(state / name, end) for name, end in ends.items()}
        self._samples = self._streams["samples"]
        self.events = events
        self.samples_open = False
        self.open_rows = open_rows
        self._bodies: list[bytes] = []  # rows that are not linked yet
        self._hash = None if any(part.rows for part in open_rows) else sha256()

    def stream(self, name: str) -> Stream:
        """Return the stream called `samples`, `events` or `blocks`."""
        return self._streams[name]

    def _frame_header(self, name: str) -> FrameHeader:
        stream = self._streams[name]
        stream.settle()
        number = stream.number + 1
        return FrameHeader(
            stream=name,
            genesis=self._genesis,
            meter=self._meter,
            incarnation=self._incarnation,
            number=number,
            previous_digest=stream.digest,
            previous_bytes=stream.counted_bytes,
            secret=self._draw_secret(name, number),
        )

    def begin_samples(
        self,
        *,
        parameters: bytes,
        boot_id: bytes,
        run: int,
        base_ms: int,
        sums: tuple[int, ...],
        before: bytes,
        clamps: int,
    ) -> None:
        """Begin a segment of samples; the arguments are `SampleHeader`'s."""
        self._link()
        stream = self._samples
        stream.settle()
        number = stream.number + 1
        header = SampleHeader(
            genesis=self._genesis,
            meter=self._meter,
            incarnation=self._incarnation,
            number=number,
            previous_digest=stream.digest,
            previous_bytes=stream.counted_bytes,
            parameters=parameters,
            boot_id=boot_id,
            run=run,
            base_ms=base_ms,
            sums=sums,
            before=before,
            row_bytes=row_bytes(clamps),
            secret=self._draw_secret("samples", number),
        )
        stream.begin(header)
        self.samples_open = True
        self.open_rows = [part for part in self.open_rows if part.rows]
        self.open_rows.append(OpenRows(header, 0, 0))

    @property
    def samples_full(self) -> bool:
        """Whether the segment of samples has become too long to go on with."""
        self._link()
        return self._samples.counted_bytes >= SAMPLES_BYTES_MAX

    def add_row(self, body: bytes) -> None:
        """Append one sample, a row without its link."""
        self._bodies.append(body)
        self.open_rows[-1].rows += 1

    def _link(self) -> None:
        """Link the rows that have come since the last time: many at once costs a third."""
        bodies = self._bodies
        if not bodies:
            return
        self._bodies = []
        stored = self._samples.add_rows(bodies)
        part, state = self.open_rows[-1], self._hash
        if state is not None:
            if part.rows == len(bodies):
                state.update(part.header.seed(part.first_row))
            state.update(stored)

    def add_event(self, event: Event) -> None:
        """Append one event."""
        stream = self._streams["events"]
        if not stream.open:
            stream.begin(self._frame_header("events"))
        stream.add_frame(event.encode())
        stream.settle()
        self.events += 1

    def add_block(self, message: bytes) -> None:
        """Append one sealed block."""
        stream = self._streams["blocks"]
        if not stream.open:
            stream.begin(self._frame_header("blocks"))
        stream.add_frame(message)

    @property
    def events_digest(self) -> bytes:
        """Digest of the events stream, as a block names it."""
        return self._streams["events"].digest

    def end(self, name: str) -> End:
        """Return where a stream ends now."""
        self._link()
        stream = self._streams[name]
        stream.settle()
        return End(stream.number, stream.digest, stream.counted_bytes)

    def finish_frames(self) -> dict[str, End]:
        """Let the next event and the next block begin new segments; return where these end."""
        return {name: self._streams[name].finish() for name in ("events", "blocks")}

    def finish_samples(self) -> End:
        """Let the next row begin a new segment; return where this one ends."""
        self._link()
        self.samples_open = False
        return self._samples.finish()

    def take_operations(self) -> list[Operation]:
        """Return what makes everything appended so far durable: events, then samples, then blocks.

        In this order, a row is never durable without the event that places its run, and a block
        never without what it vouches for.
        """
        self._link()
        streams = self._streams
        return [
            *streams["events"].take_operations(),
            *self._samples.take_operations(),
            *streams["blocks"].take_operations(),
        ]

    @property
    def open_records(self) -> int:
        """How many rows no block takes yet."""
        return sum(part.rows for part in self.open_rows)

    @property
    def whole(self) -> bool:
        """Whether `take_rows` can take all open rows without reading them back from the card."""
        return self._hash is not None

    def take_rows(self, records: int, read: Callable[[SampleHeader, int, int], bytes]) -> bytes:
        """Take the next `records` open rows into a block; return their fingerprint.

        Args:
            records: How many.
            read: Reads rows back from the card (header, first row, count): where fewer than all are
                taken or `whole` is false, and all must be durable then.

        Raises:
            ValueError: Fewer are open.
        """
        self._link()
        left = self.open_records - records
        if left < 0:
            raise ValueError(f"expected {records} open rows, found {self.open_records}")
        if left == 0 and self._hash is not None:
            fingerprint = self._hash.digest()
        else:
            state = sha256()
            for part in self.open_rows:
                count = min(records, part.rows)
                _update(state, part, count, read)
                part.first_row += count
                part.rows -= count
                records -= count
            fingerprint = state.digest()
        if left == 0:
            for part in self.open_rows:
                part.first_row += part.rows
                part.rows = 0
        self._hash = None if left else sha256()
        current = self.open_rows[-1:] if self.samples_open else []
        self.open_rows = [part for part in self.open_rows if part.rows or part in current]
        return fingerprint

    def reread(self, read: Callable[[SampleHeader, int, int], bytes]) -> None:
        """Bring the running fingerprint up to the open rows, all of which must be durable."""
        self._link()
        self._hash = sha256()
        for part in self.open_rows:
            _update(self._hash, part, part.rows, read)


def _update(
    state: HASH, part: OpenRows, count: int, read: Callable[[SampleHeader, int, int], bytes]
) -> None:
    """Let a fingerprint's state go over the first `count` open rows of a segment."""
    if count:
        state.update(part.header.seed(part.first_row))
    for at in range(0, count, ROWS_READ):
        state.update(read(part.header, part.first_row + at, min(ROWS_READ, count - at)))
