"""An account as `meterctl` reads it: what its streams say, as far as their links hold.

Reading is not judging: seals and fingerprints are `meterctl verify`'s matter. What does not hold is
left out, and `close` says so once the rest has been shown. No lock is taken and nothing is written,
so a running daemon does not notice.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from meterd.ctl.show import zone_of
from meterd.device.archive import open_newest, read_files, read_orders, read_part
from meterd.device.keys import load_seal
from meterd.device.prune import stored_samples, torn_rows
from meterd.device.recovery import FROM_MS, PLACING_EVENTS
from meterd.errors import ConfigError, EncodingError, LedgerDamagedError, MeterdError
from meterd.init import read_genesis
from meterd.ledger.account import Parameters, decode_parameters
from meterd.ledger.audit import plan
from meterd.ledger.block import Block, decode_block
from meterd.ledger.chain import head_behind
from meterd.ledger.encoding import digest, take_apart
from meterd.ledger.event import Event, decode_event
from meterd.ledger.row import Row, read_rows
from meterd.ledger.segment import STREAMS, read_header
from meterd.ledger.stored import SampleStream, read_frames
from meterd.neighbours import certified_height

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import tzinfo
    from pathlib import Path

    from meterd.authority.roster import Roster
    from meterd.ctl.options import Span
    from meterd.ledger.account import Genesis, Meter
    from meterd.ledger.audit import Stretch
    from meterd.ledger.chain import Chain
    from meterd.ledger.judge import Files

ROWS_READ = 4096  # at a time: a day's segment at one row each 2 s is 1.7 MB
STEP_S_MAX = 86_400  # how far a row's wall time can lie outside of its block


class SealedBlock(NamedTuple):
    """A block, and the message that seals it."""

    block: Block
    message: bytes


class Sample(NamedTuple):
    """A stored reading.

    Attributes:
        segment: Number of its segment.
        number: Of the row in the segment, from 0.
        run: Which start of the daemon.
        wall_ms: Wall time, by where the run's clock stood; None where that was never known.
        height: The block that takes it; None while none does.
        clamps: Names of the clamps, as the row has them.
        row: What is stored.
    """

    segment: int
    number: int
    run: int
    wall_ms: int | None
    height: int | None
    clamps: tuple[str, ...]
    row: Row


@dataclass(slots=True)
class _Walls:
    """Wall minus boot clock over one run: from each of `from_ms` on, one of `offsets_ms`."""

    from_ms: list[int] = field(default_factory=list)
    offsets_ms: list[int] = field(default_factory=list)

    def wall_ms(self, at_ms: int) -> int | None:
        """Return the wall time of a boot clock; before the first was known, by the first."""
        if not self.offsets_ms:
            return None
        return at_ms + self.offsets_ms[max(0, bisect_right(self.from_ms, at_ms) - 1)]


class StoredAccount:
    """The account in a folder. Streams are read when they are first asked for.

    Attributes:
        state: The folder.
        genesis: Of its network, as stored.
        meter: The meter's name.
        roster: The network as of the orders that the account has accepted.
        chain: The account's empty chain.
    """

    def __init__(self, state: Path) -> None:
        """Open the account in `state`.

        Raises:
            ConfigError: There is none, or its genesis is damaged.
            StorageError: It cannot be read.
        """
        self.state = state
        self.genesis: Genesis = read_genesis(state)
        meters = self.genesis.meters
        try:
            self.meter = meters[0].name if len(meters) == 1 else _named(self.files, state, meters)
            self.roster: Roster = read_orders(state, self.genesis)
            self.chain: Chain = open_newest(self.roster, self.meter)
        except EncodingError as error:
            raise ConfigError(
                f"the account in {state} does not say which meter's it is: {error}",
                hint=f"see `meterctl verify {state}`",
            ) from error
        self._damage: list[str] = []

    @cached_property
    def zone(self) -> tzinfo:
        """Zone of the network's days."""
        return zone_of(self.genesis.zone)

    @cached_property
    def files(self) -> Files:
        """The account's segments, read in an order that a writer cannot upset."""
        return read_files(self.state, dict.fromkeys(STREAMS, 0))

    @cached_property
    def blocks(self) -> list[SealedBlock]:
        """The blocks whose links hold."""
        found: list[SealedBlock] = []
        for segment, offset, body in self._frames("blocks"):
            try:
                found.append(SealedBlock(decode_block(take_apart(body).payload), body))
            except EncodingError as error:
                self._damaged("blocks", segment, offset, str(error))
                break
        return found

    @cached_property
    def events(self) -> list[Event]:
        """The events whose links hold."""
        found: list[Event] = []
        for segment, offset, body in self._frames("events"):
            try:
                found.append(decode_event(body))
            except EncodingError as error:
                self._damaged("events", segment, offset, str(error))
                break
        return found

    def _frames(self, name: str) -> Iterator[tuple[int, int, bytes]]:
        segments = self.files.blocks if name == "blocks" else self.files.events
        stream = read_frames(name, segments, genesis=self.chain.genesis, meter=self.meter)
        if stream.damage:
            self._damaged(name, *stream.damage)
        for stored in stream.frames:
            yield stored.segment, stored.frame.offset, stored.frame.body

    @cached_property
    def pruned(self) -> dict[int, int]:
        """Rows of each pruned segment of samples."""
        with self._reading():
            return {
                event.number_of("segment"): event.number_of("rows")
                for event in self.events
                if event.kind == "pruned"
            }

    @cached_property
    def elsewhere(self) -> int:
        """Up to which height blocks came back from neighbours: their rows are not here."""
        begun = self.events[0] if self.events else None
        if begun is None or begun.kind != "recovered":
            return 0
        try:
            return begun.number_of("height")
        except EncodingError:
            return 0  # `verify` says what is wrong with it

    @cached_property
    def segments(self) -> SampleStream:
        """The segments of samples that are on the card, by their headers."""
        with self._reading():
            torn = {
                torn_rows(event)
                for event in self.events
                if event.kind == "torn_tail" and ("stream", "samples") in event.details
            }
        stream = stored_samples(self.state, self.chain, self.files.samples, self.pruned, torn)
        if stream.damage:
            self._damaged("samples", *stream.damage)
        return stream

    @cached_property
    def parameters(self) -> dict[bytes, Parameters]:
        """Parameter records by hash."""
        with self._reading():
            records = [
                event.bytes_of("record") for event in self.events if event.kind == "parameters"
            ]
            return {digest(record): decode_parameters(record) for record in records}

    @cached_property
    def _walls(self) -> dict[int, _Walls]:
        """Where the clock stood, by run."""
        walls: dict[int, _Walls] = {}
        run = 0
        with self._reading():
            for event in self.events:
                if event.kind == "started":
                    run = event.number_of("run")
                elif event.kind in PLACING_EVENTS:
                    boot_ms = event.number_of("boot_ms")
                    told = any(name == FROM_MS for name, _ in event.details)
                    here = walls.setdefault(run, _Walls())
                    here.from_ms.append(event.number_of(FROM_MS) if told else boot_ms)
                    here.offsets_ms.append(event.number_of("wall_ms") - boot_ms)
        return walls

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except EncodingError as error:
            raise LedgerDamagedError(
                str(error), hint=f"see `meterctl verify {self.state}`"
            ) from error

    def samples(self, span: Span) -> Iterator[Sample]:
        """Yield the stored readings in `span`; segments that cannot hold any are not read."""
        segments, rows = self.segments.segments, self.segments.rows
        blocks = [one.block for one in self.blocks if one.block.height > self.elsewhere]
        stretches, _ = plan(blocks, rows)
        chosen: list[int] = []
        wanted = 0
        for number in reversed(segments):
            if span.last and not span.chosen and wanted >= span.last:
                break
            here = [stretch for stretch in stretches[number] if stretch.rows]
            whole = here and sum(stretch.rows for stretch in here) >= rows[number]
            early = whole and here[-1].block.end_s + STEP_S_MAX <= span.begin_s
            late = here and here[0].block.start_s - STEP_S_MAX >= span.end_s
            if not early and not late:
                chosen.append(number)
                wanted += rows[number]
        stored = (
            sample
            for number in reversed(chosen)
            for sample in self._rows(number, stretches[number])
            if span.holds(sample.wall_ms)
        )
        yield from span.cut(stored)

    def _rows(self, number: int, stretches: list[Stretch]) -> Iterator[Sample]:
        heights = [stretch.block.height for stretch in stretches for _ in range(stretch.rows)]
        segment = self.segments.segments[number]
        header = segment.header
        parameters = self.parameters.get(header.parameters)
        names = clamp_names(parameters) if parameters else ()
        walls = self._walls.get(header.run, _Walls())
        base_ms, size, at = header.base_ms, header.row_bytes, 0
        while at < segment.rows:
            count = min(ROWS_READ, segment.rows - at)
            data = read_part(self.state, number, segment.offset(at), segment.offset(at + count))
            for row in read_rows(data, size, base_ms):
                base_ms = row.at_ms
                height = heights[at] if at < len(heights) else None
                wall_ms = walls.wall_ms(row.at_ms)
                yield Sample(number, at, header.run, wall_ms, height, names, row)
                at += 1

    def _damaged(self, stream: str, segment: int, offset: int, reason: str) -> None:
        self._damage.append(f"{stream} segment {segment}, byte {offset}: {reason}")

    def close(self) -> None:
        """Say what could not be shown.

        Raises:
            LedgerDamagedError: A stream that was read does not hold to its end.
        """
        if self._damage:
            raise LedgerDamagedError(
                f"the account is damaged; shown is what comes before {self._damage[0]}",
                hint=f"see `meterctl verify {self.state}`, and keep a copy",
            )


def _named(files: Files, state: Path, meters: Iterable[Meter]) -> str:
    """Return the meter's name, from the first readable header of the events, or by its key."""
    for _, data in files.events:
        try:
            return read_header(data, "events")[0].meter
        except EncodingError:
            continue
    try:
        public = bytes(load_seal(state).verify_key)
    except MeterdError as error:
        raise EncodingError("no header of the events can be read") from error
    for meter in meters:
        if meter.sealing_key == public:
            return meter.name
    raise EncodingError("no header of the events can be read, and no meter has this key")


def certified_height_of(account: StoredAccount) -> int:
    """Return up to which height neighbours vouch, as far as the account knows; all if none vote."""
    blocks = account.blocks
    if not blocks:
        return 0
    head = head_behind(account.chain, take_apart(blocks[-1].message).payload)
    return certified_height(account.state, account.roster, account.chain._replace(head=head))


def clamp_names(parameters: Parameters) -> tuple[str, ...]:
    """Return the names of the used clamps, in the order of a row's columns."""
    settings = dict(parameters.settings)
    names = []
    number = 1
    while f"clamp.{number}.name" in settings:
        if settings[f"clamp.{number}.role"] != "unused":
            names.append(settings[f"clamp.{number}.name"])
        number += 1
    return tuple(names)
