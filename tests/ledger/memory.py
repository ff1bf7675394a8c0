"""Whole accounts in memory, to be tampered with and judged thousands of times in a test.

`Stored` holds an account as it lies on the card. It is judged by the code that judges a folder;
only the bytes come from memory, and what is pure and was asked before is remembered. `Street` makes
one: a meter whose every write can be watched.
"""

from __future__ import annotations

import csv
import gzip
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import pytest
from nacl.signing import SigningKey

from meterd.device.archive import GENESIS_FILE, segment_name, segment_numbers
from meterd.init import create_account
from meterd.ledger.account import Genesis, decode_genesis, decode_parameters
from meterd.ledger.audit import SampleResult, SampleTask, audit_samples
from meterd.ledger.block import Block, decode_block
from meterd.ledger.chain import Chain, Head, open_block, open_chain, verify_seals
from meterd.ledger.encoding import take_apart
from meterd.ledger.event import Event, decode_event
from meterd.ledger.findings import Tools
from meterd.ledger.judge import Files
from meterd.ledger.pruning import Pruned, seal_pruned
from meterd.ledger.row import LINK_BYTES
from meterd.ledger.segment import (
    HEADER_BYTES_MAX,
    LENGTH_BYTES,
    STREAMS,
    FrameHeader,
    Header,
    Linker,
    SampleHeader,
    read_header,
)
from meterd.ledger.stored import End, FrameStream, SampleFile, StoredFrame, read_frames
from meterd.ledger.verdict import Known, Verdict, verdict
from meterd.replay import Line, Replay
from tests.accounts import QuietCard, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from meterd.device.card import Operation
    from meterd.ledger.event import Details

NOBODY = Known()
SEED = bytes(range(32))
STRANGER_SEED = bytes(range(1, 33))
SALT_SEED = b"salt of the tests"
NO_HEAD = Head(
    height=0, block_hash=b"", end_s=None, energy=(), parameters=b"", order=(0, b""), events=0
)
MIDNIGHT_S = 1_170_633_600  # 2007-02-05 00:00 UTC

CONFIG = """
[meter]
name = "kitchen-12"
interval_s = 1800

[board]
port = "/dev/null"
polling_ms = 600000

[[clamp]]
name = "mains"
role = "mains"

[[clamp]]
name = "oven"
role = "circuit"

[clock]
trust = "always"
"""

_seals = lru_cache(maxsize=512)(verify_seals)


@lru_cache(maxsize=256)
def _audit(task: SampleTask, data: bytes) -> SampleResult:
    return audit_samples(task, data)


@lru_cache(maxsize=256)
def _header(head: bytes, stream: str) -> tuple[Header, int]:
    return read_header(head, stream)


def _read_header(data: bytes, stream: str) -> tuple[Header, int]:
    return _header(bytes(data[:HEADER_BYTES_MAX]), stream)


@lru_cache(maxsize=4096)
def _opened(message: bytes, chain: Chain) -> tuple[Block, bytes]:
    return open_block(message, chain)


def _open_block(message: bytes, chain: Chain) -> tuple[Block, bytes]:
    return _opened(message, chain._replace(head=NO_HEAD))  # which a seal does not depend on


@lru_cache(maxsize=16)
def _frames(
    stream: str, segments: tuple[tuple[int, bytes], ...], genesis: bytes, meter: str, before: End
) -> FrameStream:
    return read_frames(stream, segments, genesis, meter, before)


def _read_frames(
    stream: str, segments: list[tuple[int, bytes]], genesis: bytes, meter: str, before: End
) -> FrameStream:
    return _frames(stream, tuple(segments), genesis, meter, before)


@contextmanager
def untraced() -> Iterator[None]:
    """Leave out what runs tens of thousands of times alike from the measuring of coverage."""
    traced = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(traced)


@contextmanager
def remembering() -> Iterator[None]:
    """Let decoders answer from memory where they have seen the same bytes: they are pure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meterd.ledger.judge.decode_event", lru_cache(4096)(decode_event))
        patch.setattr("meterd.ledger.judge.decode_parameters", lru_cache(8)(decode_parameters))
        patch.setattr("meterd.ledger.verdict.decode_genesis", lru_cache(8)(decode_genesis))
        patch.setattr("meterd.ledger.verdict.read_header", _read_header)
        patch.setattr("meterd.ledger.stored.read_header", _read_header)
        patch.setattr("meterd.ledger.judge.read_frames", _read_frames)
        patch.setattr("meterd.ledger.chain.open_block", _open_block)
        for message in (Genesis, FrameHeader, SampleHeader, Block):
            patch.setattr(message, "encode", lru_cache(256)(message.encode))
        yield


class Owner(NamedTuple):
    """The block that a byte belongs to, as a verdict names it; height 0 where none seals it."""

    height: int
    start_s: int | None


Owners: TypeAlias = "dict[int, list[tuple[int, int, Owner]]]"


@dataclass(frozen=True)
class Stored:
    """An account's files: the genesis, and each stream's segments by number."""

    genesis: bytes
    streams: Mapping[str, Mapping[int, bytes]]
    _owners: dict[str, Owners] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def read(cls, state: Path) -> Stored:
        return cls(
            (state / GENESIS_FILE).read_bytes(),
            {
                stream: {
                    number: (state / stream / segment_name(number)).read_bytes()
                    for number in segment_numbers(state / stream)
                }
                for stream in STREAMS
            },
        )

    def write(self, state: Path) -> None:
        """Write the account over the one in `state`, or anew."""
        state.mkdir(exist_ok=True)
        (state / GENESIS_FILE).write_bytes(self.genesis)
        for stream, segments in self.streams.items():
            (state / stream).mkdir(exist_ok=True)
            for path in (state / stream).iterdir():
                path.unlink()
            for number, data in segments.items():
                (state / stream / segment_name(number)).write_bytes(data)

    def segment(self, stream: str, number: int) -> bytes:
        return self.streams[stream][number]

    def numbers(self, stream: str) -> list[int]:
        return sorted(self.streams[stream])

    def last(self, stream: str) -> int:
        return max(self.streams[stream])

    def with_segment(self, stream: str, number: int, data: bytes | None) -> Stored:
        """Return the account with one segment's bytes replaced, added, or taken away (None)."""
        segments = dict(self.streams[stream])
        segments.pop(number, None)
        if data is not None:
            segments[number] = data
        return self.with_stream(stream, segments)

    def with_stream(self, stream: str, segments: Mapping[int, bytes]) -> Stored:
        ordered = dict(sorted(segments.items()))
        return replace(self, streams=MappingProxyType({**self.streams, stream: ordered}))

    def judge(self, known: Known = NOBODY) -> Verdict:
        return judge_as_read(self, self, self, known)

    # --- what is in it ----------------------------------------------------------------------

    def header(self, stream: str, number: int) -> tuple[Header, int]:
        return read_header(self.segment(stream, number), stream)

    def frames(self, stream: str) -> list[StoredFrame]:
        genesis = decode_genesis(self.genesis)
        found = read_frames(
            stream,
            list(self.streams[stream].items()),
            genesis=genesis.hash,
            meter=genesis.meters[0].name,
        )
        assert found.damage is None
        return found.frames

    @property
    def blocks(self) -> list[Block]:
        return [
            decode_block(take_apart(stored.frame.body).payload) for stored in self.frames("blocks")
        ]

    @property
    def events(self) -> list[Event]:
        return [decode_event(stored.frame.body) for stored in self.frames("events")]

    def owners(self, stream: str) -> Owners:
        """Say to which block each stretch (begin, end) of each segment belongs.

        A block's own frame; an event, to the first block that counts it; a row, to the block that
        takes it; a header, to the first record behind it. The start of the first block is in its
        own frame and nowhere else: where that is damaged it is not known.
        """
        if stream not in self._owners:
            self._owners[stream] = self._find_owners(stream)
        return self._owners[stream]

    def _find_owners(self, stream: str) -> Owners:
        blocks = self.blocks
        taken = [block.height - 1 for block in blocks for _ in range(block.records)]
        result: Owners = {}
        for count, (number, begin, end) in enumerate(self.records(stream)):
            if stream == "blocks":
                index = count
            elif stream == "events":
                index = sum(block.events <= count for block in blocks)
            else:
                index = taken[count] if count < len(taken) else len(blocks)
            owner = Owner(0, None)
            if index < len(blocks):
                first = stream == "blocks" and index == 0
                owner = Owner(index + 1, None if first else blocks[index].start_s)
            stretches = result.setdefault(number, [])
            if not stretches:
                stretches.append((0, begin, owner))
            stretches.append((begin, end, owner))
        return result

    def records(self, stream: str) -> Iterator[tuple[int, int, int]]:
        """Yield (segment, begin, end) of each record in order."""
        if stream != "samples":
            for stored in self.frames(stream):
                yield stored.segment, stored.frame.offset, stored.frame.end
            return
        for number, data in self.streams["samples"].items():
            header, begin = self.header("samples", number)
            assert isinstance(header, SampleHeader)
            for at in range(begin, len(data) - header.row_bytes + 1, header.row_bytes):
                yield number, at, at + header.row_bytes

    def relinked(self, stream: str, number: int, bodies: list[bytes]) -> Stored:
        """Return the account with a segment's records replaced and their links made anew.

        Whoever has the card can do this; no key is needed.
        """
        header, begin = self.header(stream, number)
        linker = Linker(header.encode())
        add = linker.add if stream == "samples" else linker.frame
        data = self.segment(stream, number)[:begin] + b"".join(add(body) for body in bodies)
        return self.with_segment(stream, number, data)

    def bodies(self, stream: str, number: int) -> list[bytes]:
        """Return a segment's records without lengths and links."""
        head = 0 if stream == "samples" else LENGTH_BYTES
        data = self.segment(stream, number)
        return [
            data[begin + head : end - LINK_BYTES]
            for segment, begin, end in self.records(stream)
            if segment == number
        ]

    def pruned_details(self, segment: int, rows: int, full: bytes, seed: bytes = SEED) -> Details:
        """Return what an event must say of a samples segment that goes."""
        genesis = decode_genesis(self.genesis)
        chain = open_chain(genesis, genesis.meters[0].name)
        return seal_pruned(Pruned(segment, rows, full), chain, SigningKey(seed))

    def with_pruned(self, segment: int, rows: int, full: bytes, seed: bytes = SEED) -> Stored:
        """Return the account with the event behind its last that says that a segment went."""
        return self.with_event("pruned", self.pruned_details(segment, rows, full, seed))

    def with_event(self, kind: str, details: Details) -> Stored:
        """Return the account with an event behind its last."""
        number = self.last("events")
        last = self.events[-1]
        event = Event(
            number=last.number + 1,
            boot_ms=last.boot_ms,
            wall_ms=last.wall_ms,
            kind=kind,
            details=details,
        )
        return self.relinked("events", number, [*self.bodies("events", number), event.encode()])


def judge_as_read(
    blocks: Stored, samples: Stored, events: Stored, known: Known = NOBODY
) -> Verdict:
    """Judge an account whose streams are read one after the other, as a reader of files does.

    What was appended to the samples since they were listed is there when they are read.
    """
    claims = blocks.streams["events"]
    files = Files(
        blocks=list(blocks.streams["blocks"].items()),
        events=list(events.streams["events"].items()),
        samples=[
            SampleFile(number, data[:HEADER_BYTES_MAX], len(data))
            for number, data in samples.streams["samples"].items()
        ],
        claims=max(((number, len(data)) for number, data in claims.items()), default=(0, 0)),
    )
    latest = events.streams["samples"]
    tools = Tools(
        lambda number, begin, end: latest[number][begin:end],
        lambda tasks: map(_seals, tasks),
        lambda tasks: (_audit(task, latest[task.number]) for task in tasks),
        lambda _what, _done, _of: None,
    )
    return verdict(events.genesis, files, tools, known)


class WatchedCard(QuietCard):
    """Tells after each operation, and in the midst of each write, how the account lies now.

    In the midst: after the first byte, in the middle, and before the last one.
    """

    def __init__(self, stored: Stored, seen: Callable[[Stored], None]) -> None:
        super().__init__()
        self.stored = stored
        self._seen = seen

    def _do(self, operation: Operation) -> None:
        super()._do(operation)
        path = operation.path
        if operation.kind not in {"create", "append"}:
            return
        stream, number = path.parent.name, int(path.stem)
        before, data = self.stored, operation.data
        old = before.streams[stream].get(number, b"")
        for part in sorted({1, len(data) // 2, len(data) - 1}) if data else ():
            self._seen(before.with_segment(stream, number, old + data[:part]))
        self.stored = before.with_segment(stream, number, old + data)
        self._seen(self.stored)


class Street:
    """A meter in a folder of its own, fed by the minute from midnight."""

    def __init__(
        self,
        state: Path,
        *,
        seed: bytes = SEED,
        salt_seed: bytes = SALT_SEED,
        config: str = CONFIG,
        seen: Callable[[Stored], None] | None = None,
    ) -> None:
        settings = settings_of(config)
        if not (state / GENESIS_FILE).exists():
            create_account(state, settings, seed)
        self.state = state
        self._replay = Replay(state, settings, key=SigningKey(seed), salt_seed=salt_seed)
        self._replay._card = WatchedCard(Stored.read(state), seen) if seen else QuietCard()
        self._line = 0

    def feed(self, *rows: tuple[int, int, int]) -> Street:
        """Feed rows of (minute from midnight, watts of the mains, watts of the oven)."""
        for minute, mains_w, oven_w in rows:
            self.line(minute, f"11 {mains_w} {oven_w} 0.0 0.0 0.0 0.0 240.0")
        return self

    def line(self, minute: int, raw: str) -> Street:
        """Feed a line of the board."""
        self._replay.feed(self._line_at(minute, raw.encode()))
        return self

    def _line_at(self, minute: int, raw: bytes) -> Line:
        self._line += 1
        return Line(self._line, (MIDNIGHT_S + 60 * minute) * 1000, None, raw)

    def start(self, minute: int) -> Street:
        """Begin a run before its first line."""
        self._replay.book = self._replay._begin(self._line_at(minute, b""))
        self._replay._ended = False
        return self

    def event(self, kind: str, details: Details) -> Street:
        assert self._replay.book is not None
        self._replay.book.event(kind, details)
        return self

    def commit(self) -> Street:
        assert self._replay.book is not None
        self._replay._commit(self._replay.book)
        return self

    def storing(self, *, room: bool) -> Street:
        """Say whether the card has room for samples."""
        assert self._replay.book is not None
        self._replay.book.storing = room
        return self

    def restart(self) -> Street:
        self._replay.feed(Line(self._line, -1, None, b""))
        return self

    def finish(self) -> Street:
        """Seal all, the last interval as it stands."""
        self._replay.finish()
        return self

    @property
    def stored(self) -> Stored:
        return Stored.read(self.state)


# Six intervals, two runs with a gap block between them, and a midnight: two blocks end between two
# rows, one at a row; power goes both ways.
DAY_ONE = ((-50, 300, 10), (-35, 420, 0), (-20, -80, 12), (-5, -90, 55), (10, 200, 7), (25, 210, 0))
DAY_TWO = ((70, 205, 33), (85, 500, 30), (90, 510, 20), (100, 90, 1))


def sealed_account(state: Path, *, seed: bytes = SEED, more_w: int = 0) -> Stored:
    """Return the small account, all of it sealed; `more_w` makes another household of it."""
    street = Street(state, seed=seed)
    street.feed(*((at, mains_w + more_w, oven_w) for at, mains_w, oven_w in DAY_ONE)).restart()
    street.feed(*((at, mains_w + more_w, oven_w) for at, mains_w, oven_w in DAY_TWO))
    return street.finish().stored


def open_account(state: Path) -> Stored:
    """Return an account with rows and events that no block seals yet.

    Three rows wait in the last segment of samples; of the events, one waits in a segment that
    another follows, and one in the last.
    """
    street = Street(state).feed(*DAY_ONE[:4], (0, 100, 3)).restart()
    street.feed((15, 120, 9), (30, 100, 8)).event("noted", (("what", "unsealed"),)).restart()
    street.feed((40, 100, 8), (50, 70, 8), (55, 30, 4))
    return street.commit().stored


def unplaced_account(state: Path) -> Stored:
    """Return an account whose first two runs never knew the time: one block takes their rows."""
    epoch = -MIDNIGHT_S // 60
    street = Street(state).feed((epoch, 100, 5), (epoch + 10, 110, 5), (epoch + 20, 90, 5))
    street.restart().feed((epoch + 1, 50, 5), (epoch + 11, 60, 5)).restart()
    return street.feed((65, 40, 5), (75, 45, 5), (85, 45, 5), (95, 40, 5)).finish().stored


def held_account(state: Path) -> Stored:
    """Return an account of two runs that never knew the time: none of their rows is sealed yet."""
    epoch = -MIDNIGHT_S // 60
    street = Street(state).feed((epoch, 100, 5), (epoch + 10, 110, 5), (epoch + 20, 90, 5))
    return street.restart().feed((epoch + 1, 50, 5), (epoch + 11, 60, 5)).commit().stored


def lossy_account(state: Path) -> Stored:
    """Return an account whose card was full for an hour, while energy was counted on."""
    street = Street(state).feed((5, 100, 5), (15, 110, 5), (25, 90, 5)).storing(room=False)
    street.feed((35, 100, 5), (45, 90, 5), (55, 80, 5), (65, 70, 5)).storing(room=True)
    return street.feed((75, 60, 5), (85, 50, 5), (95, 40, 5), (105, 30, 5)).finish().stored


def full_account(state: Path) -> Stored:
    """Return an account that was begun on a full card: its first block lost all of its samples."""
    street = Street(state).start(3).storing(room=False).feed((5, 100, 5), (15, 110, 5))
    street.feed((25, 90, 5), (35, 80, 5)).storing(room=True)
    return street.feed((45, 80, 5), (55, 70, 5), (65, 60, 5), (75, 60, 5)).finish().stored


def adaptor_account(state: Path) -> Stored:
    """Return an account whose voltage adaptor fell out for a while: power was estimated."""
    street = Street(state).feed((5, 100, 5), (15, 110, 5), (25, 90, 5))
    street.line(35, "11 0.0 0.0 0.0 1300.0 20.0 0.0 0.0").feed((45, 80, 5), (75, 70, 5))
    return street.finish().stored


def phases_account(state: Path) -> Stored:
    """Return the account of a board without voltage: two phases, apparent power unknown."""
    config = CONFIG.replace("polling_ms = 600000", 'polling_ms = 600000\nlayout = "rpict3t1"')
    config = config.replace('role = "circuit"', 'role = "mains"')
    street = Street(state, config=config)
    for minute, watts in ((5, 100), (15, 120), (25, 130), (35, 90)):
        street.line(minute, f"11 {watts}.5 {2 * watts} 0.0")
    return street.finish().stored


def recalibrated_account(state: Path) -> Stored:
    """Return an account that was begun under other settings: two parameter records."""
    before = CONFIG.replace('name = "oven"', 'name = "oven"\nscale = 1.02')
    Street(state, config=before).feed((5, 100, 5), (15, 110, 5), (25, 90, 5)).restart().finish()
    return Street(state).feed((35, 100, 5), (45, 90, 5), (55, 80, 5)).finish().stored


HOUSEHOLD_CONFIG = """
[meter]
name = "paris-1"

[board]
port = "/dev/null"
polling_ms = 60000

[[clamp]]
name = "mains"
role = "mains"

[clock]
trust = "always"
"""


def household_lines(data_dir: Path) -> Iterator[str]:
    """Yield the 28 days of a real household as lines of a capture."""
    with gzip.open(data_dir / "household-2007-01-08-28d.csv.gz", "rt") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if row["active_power_w"]:
                at = datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC)
                power_w, volts = row["active_power_w"], row["voltage_v"]
                milliamps = int(float(row["current_a"]) * 1000) + number % 3
                yield (f"{at.timestamp():.0f}\t11 {power_w} 0.0 0.0 {milliamps} 0.0 0.0 {volts}")
