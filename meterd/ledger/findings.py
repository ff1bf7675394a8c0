"""What a judge begins with, is lent, and finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from meterd.ledger.stored import Bad, End, Place, SampleSegment, Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meterd.ledger.account import Parameters
    from meterd.ledger.audit import SampleResult, SampleTask
    from meterd.ledger.block import Block
    from meterd.ledger.chain import Chain, SealResult, SealTask
    from meterd.ledger.event import Event
    from meterd.ledger.parameters import Pairs
    from meterd.ledger.pruning import Recovered


class OpenSegment(NamedTuple):
    """Rows that no block takes yet: a segment, and the number of the first of them."""

    segment: SampleSegment
    first_row: int


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
        effect: Returns what parameters come to, however they are spelt (`succession`).
    """

    read: Callable[[int, int, int], bytes]
    seals: Callable[[list[SealTask]], Iterator[SealResult]]
    samples: Callable[[list[SampleTask]], Iterator[SampleResult]]
    progress: Callable[[str, int, int], None]
    effect: Callable[[Pairs], object] = dict


class TornTail(NamedTuple):
    """What a `torn_tail` event tells: that these bytes count for nothing."""

    stream: object
    segment: object
    offset: object
    sha256: object


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
        unclaimed: The last block is there, and the event that says so is not.
        ends: Where each stream ends.
        open: Rows not sealed yet, as far as their links hold.
        results: Audits of samples, by segment.
        pruned: Rows and full digest of each pruned segment.
        told: Torn tails of which events tell.
        recovered: What the account begins behind, where neighbours gave its blocks back.
    """

    chain: Chain
    blocks: list[Block] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    parameters: dict[bytes, Parameters] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    tails: list[Tail] = field(default_factory=list)
    unclaimed: bool = False
    ends: dict[str, End] = field(default_factory=dict)
    open: list[OpenSegment] = field(default_factory=list)
    results: dict[int, SampleResult] = field(default_factory=dict)
    pruned: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    told: set[TornTail] = field(default_factory=set)
    recovered: Recovered | None = None

    @property
    def first_bad(self) -> Bad | None:
        """The bad place that concerns the lowest block."""
        return min(self.bad, key=lambda bad: bad.height or 0, default=None)

    @property
    def records(self) -> int:
        """Rows that the blocks take."""
        return sum(block.records for block in self.blocks)

    @property
    def elsewhere(self) -> int:
        """Up to which height blocks have their rows and events elsewhere."""
        return self.recovered.height if self.recovered else 0

    def events_before(self, start: Start) -> int:
        """Return the number of the event before the first of these."""
        return self.events[0].number - 1 if self.events else start.events

    def add_bad(self, stream: str, block: Block | None, place: Place) -> None:
        """Note a bad place that concerns `block`, or what no block seals yet."""
        head = self.chain.head
        height, start_s = (block.height, block.start_s) if block else (head.height + 1, head.end_s)
        self.bad.append(Bad(stream, height, start_s, *place))
