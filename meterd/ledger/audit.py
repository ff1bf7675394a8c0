"""Recomputes what blocks say from stored rows: every fingerprint, every register, every hole.

Each segment of samples is audited by itself: its header, which is part of every fingerprint in it,
states where integration stood before its first row. So segments can be audited on several
processors, and an account whose older samples were pruned still can be. What joins the segments
(`join`) is then checked by itself.

A row is believed to be what the board said; that its flags follow the rule of gaps, and that the
registers are the sum of the rows, is recomputed.
"""

from __future__ import annotations

from hashlib import sha256
from operator import add, mul
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import BlockRejectedError
from meterd.ledger.chain import Chain, verify_sealed
from meterd.ledger.segment import LINK_BYTES, columns, find_damaged_row, read_row
from meterd.metering.energy import (
    APPARENT,
    CADENCE_WINDOW,
    ROW_ESTIMATED,
    ROW_GAP,
    Cadence,
    between,
    integrate,
    mapping,
    obis_code,
    quantities,
)
from meterd.metering.interval import ESTIMATED, LOST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterd.ledger.account import Parameters
    from meterd.ledger.block import Block
    from meterd.ledger.segment import SampleHeader


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


class SealTask(NamedTuple):
    """A run of blocks to verify: signatures, and each against the one before.

    Attributes:
        chain: The chain before the first of them.
        messages: Sealed blocks as stored.
    """

    chain: Chain
    messages: tuple[bytes, ...]


class SealResult(NamedTuple):
    """What `verify_seals` found.

    Attributes:
        chain: The chain behind the last block that holds.
        blocks: Those blocks.
        reason: Why the next one does not follow, or an empty text.
    """

    chain: Chain
    blocks: tuple[Block, ...]
    reason: str


def verify_seals(task: SealTask) -> SealResult:
    """Verify a run of blocks as far as it holds."""
    chain, blocks = task.chain, []
    for message in task.messages:
        try:
            block, chain = verify_sealed(message, chain)
        except BlockRejectedError as error:
            return SealResult(chain, tuple(blocks), str(error))
        blocks.append(block)
    return SealResult(chain, tuple(blocks), "")


class Stretch(NamedTuple):
    """Rows of one segment that one block takes.

    Attributes:
        block: The block, verified in its chain.
        first_row: Number of the first row in the segment.
        rows: How many; 0 for a block without any of its own.
        begins: Whether the block's first row is here (or it has none).
        ends: Whether its last row is here.
    """

    block: Block
    first_row: int
    rows: int
    begins: bool
    ends: bool


class SampleTask(NamedTuple):
    """A segment of samples to audit against the blocks that take its rows.

    Attributes:
        number: The segment's number.
        header: Its header.
        begin: Byte at which its rows begin.
        parameters: The parameter record that the header names.
        stretches: Its rows by block, in order, from row 0 on.
        cut_ms: Boot clock at which the block before them ends; 0 for none of this boot.
        tail: Stored rows before the first one, of the same run, as many as the cadence wants.
        tail_whole: Whether the run is known from its start, or for a whole window of cadences.
        following: The first row of the next segment, if it goes on with the same run.
    """

    number: int
    header: SampleHeader
    begin: int
    parameters: Parameters
    stretches: tuple[Stretch, ...]
    cut_ms: int
    tail: bytes
    tail_whole: bool
    following: bytes


class SampleResult(NamedTuple):
    """What `audit_samples` found.

    Attributes:
        bad: The first bad place, or None.
        measured_ms: How long was measured, by height of the blocks that lie here.
        estimated: Heights with an estimated row.
        row_sums: Running sums at the last row that a block takes (half uJ, by OBIS code).
        cut_sums: Running sums at the last cut.
        point_ms: Boot clock of the last point in `cut_sums`.
        point: Quantities there.
        exact: Whether these could be recomputed to the end.
    """

    bad: Bad | None
    measured_ms: dict[int, int]
    estimated: frozenset[int]
    row_sums: dict[bytes, int]
    cut_sums: dict[bytes, int]
    point_ms: int
    point: tuple[int, ...]
    exact: bool


def audit_samples(task: SampleTask, data: bytes) -> SampleResult:
    """Audit one segment, whose bytes are `data`."""
    return _Audit(task, data).run()


def fingerprint_of(parts: Sequence[tuple[SampleHeader, int, bytes]]) -> bytes:
    """Return the fingerprint over parts: (header, number of the first row, rows as stored)."""
    state = sha256()
    for header, first_row, rows in parts:
        state.update(header.seed(first_row))
        state.update(rows)
    return state.digest()


def plan(
    blocks: Sequence[Block], rows: dict[int, int]
) -> tuple[dict[int, list[Stretch]], Block | None]:
    """Say which rows each block takes.

    Args:
        blocks: All blocks of the account in order.
        rows: Counted rows of each segment by number, ascending; pruned segments too.

    Returns:
        Stretches by segment, and the first block whose rows are not all there, or None.
    """
    stretches: dict[int, list[Stretch]] = {number: [] for number in rows}
    numbers = list(rows)
    at, row = 0, 0
    for block in blocks:
        if block.records == 0:
            here = numbers[at] if row or at == 0 else numbers[at - 1]
            if numbers:
                stretches[here].append(Stretch(block, row, 0, begins=True, ends=True))
            continue
        left, begins = block.records, True
        while left:
            while at < len(numbers) and row >= rows[numbers[at]]:
                at, row = at + 1, 0
            if at == len(numbers):
                return stretches, block
            count = min(left, rows[numbers[at]] - row)
            left -= count
            stretches[numbers[at]].append(Stretch(block, row, count, begins, not left))
            begins, row = False, row + count
    return stretches, None


class _Audit:
    def __init__(self, task: SampleTask, data: bytes) -> None:
        self._task, self._data = task, data
        parameters, header = task.parameters, task.header
        self._codes = [obis for obis, _ in parameters.registers]
        self._of = mapping(parameters.roles, apparent=APPARENT in self._codes)
        self._size = header.row_bytes
        self._sums = list(header.sums)
        self._row_sums = list(header.sums)
        self._at_ms = self._point_ms = header.base_ms
        self._early = self._point = (0,) * (len(self._codes) - 1)
        if header.before:
            before = read_row(header.before, 0)
            self._early = self._point = quantities(before.powers_mw, before.apparent_mva, self._of)
        self._recent = self._window()
        self._measured: dict[int, int] = {}
        self._estimated: set[int] = set()
        self._part_ms = 0
        self._exact = True
        self._begins_run = not header.before

    def _window(self) -> list[int]:
        if not self._task.tail:
            return []
        elapsed = columns(self._task.tail, self._size).elapsed_ms[1:]
        return [ms for ms in elapsed if ms][-CADENCE_WINDOW:]

    def run(self) -> SampleResult:
        task = self._task
        bad = self._fit()
        if not bad and task.header.before and task.cut_ms > self._at_ms:
            self._cross(task.cut_ms, self._body(0))
        for index, stretch in enumerate(() if bad else task.stretches):
            bad = self._stretch(stretch, index)
            if bad:
                break
        return SampleResult(
            bad,
            self._measured,
            frozenset(self._estimated),
            dict(zip(self._codes, self._row_sums, strict=False)),
            dict(zip(self._codes, self._sums, strict=False)),
            self._point_ms,
            self._point,
            self._exact,
        )

    def _fit(self) -> Bad | None:
        header, stretches = self._task.header, self._task.stretches
        clamps = (self._size - LINK_BYTES - 16) // 8
        if len(header.sums) != len(self._codes) or clamps != len(self._task.parameters.roles):
            return self._bad(
                stretches[0].block if stretches else None,
                0,
                "the header does not fit its parameter record",
            )
        return None

    def _bad(self, block: Block | None, offset: int, reason: str) -> Bad:
        height, start_s = (block.height, block.start_s) if block else (None, None)
        return Bad("samples", height, start_s, self._task.number, offset, reason)

    def _offset(self, row: int) -> int:
        return self._task.begin + row * self._size

    def _body(self, row: int) -> bytes:
        """Return the row, without its link, or that of the next segment, or nothing."""
        at = self._offset(row)
        body = self._data[at : at + self._size - LINK_BYTES]
        return body if len(body) == self._size - LINK_BYTES else b""

    def _stretch(self, stretch: Stretch, index: int) -> Bad | None:
        block = stretch.block
        begin, end = self._offset(stretch.first_row), self._offset(stretch.first_row + stretch.rows)
        rows = self._data[begin:end]
        if stretch.begins and stretch.ends and stretch.rows:
            parts = [(self._task.header, stretch.first_row, rows)]
            if fingerprint_of(parts) != block.fingerprint:
                return self._locate(block, begin, end)
        elif stretch.begins and not stretch.rows and block.fingerprint != sha256().digest():
            return self._bad(block, begin, "the block has no rows and a fingerprint of some")
        if block.flags & LOST or not self._exact:
            self._exact = False
            return None
        if block.parameters != self._task.header.parameters and stretch.rows and stretch.ends:
            if block.clock.status != "R":
                return self._bad(block, begin, "the block names another parameter record")
        self._part_ms = 0
        if stretch.begins:
            bad = self._compare(block, begin, first=True)
            if bad:
                return bad
        if stretch.rows:
            bad = self._rows(block, rows, begin)
            if bad:
                return bad
        if stretch.ends:
            self._close(block, stretch.first_row + stretch.rows)
            bad = self._compare(block, begin, first=False)
            if bad:
                return bad
        self._measured[block.height] = self._measured.get(block.height, 0) + self._part_ms
        return None

    def _locate(self, block: Block, begin: int, end: int) -> Bad:
        _, damage = find_damaged_row(self._data, self._task.header, end)
        if damage:
            return self._bad(block, damage.offset, damage.reason)
        return self._bad(block, begin, "the rows are linked and are not those the block sealed")

    def _compare(self, block: Block, offset: int, *, first: bool) -> Bad | None:
        energy = {entry.obis: entry for entry in block.energy}
        for code, half in zip(self._codes, self._sums, strict=True):
            entry = energy.get(code)
            said = None if entry is None else entry.first_uj if first else entry.last_uj
            if said != half // 2:
                where = "begins" if first else "ends"
                return self._bad(
                    block,
                    offset,
                    f"register {obis_code(code)} {where} at {said} uJ, its rows add up to "
                    f"{half // 2} uJ",
                )
        return None

    def _rows(self, block: Block, rows: bytes, offset: int) -> Bad | None:
        """Integrate the rows of one block, whole columns at a time."""
        table = columns(rows, self._size)
        flags = table.flags
        special = any(flags)
        if special and any(flag & ROW_ESTIMATED for flag in flags):
            self._estimated.add(block.height)
            if not block.flags & ESTIMATED:
                return self._bad(block, offset, "a row is estimated and the block does not say so")
        elapsed = list(table.elapsed_ms)
        wrong = self._check_gaps(elapsed, flags)
        if wrong is not None:
            return self._bad(
                block,
                offset + wrong * self._size,
                "the row's gap flag is not what the board's cadence makes it",
            )
        self._row_sums = self._integrate(table.powers_mw, table.apparent_mva, elapsed, flags)
        return None

    def _integrate(
        self,
        powers_mw: tuple[Sequence[int], ...],
        apparent_mva: Sequence[int],
        elapsed: list[int],
        flags: Sequence[int],
    ) -> list[int]:
        of = self._of
        net: Sequence[int] = powers_mw[of.mains[0]]
        for index in of.mains[1:]:
            net = list(map(add, net, powers_mw[index]))
        series: list[Sequence[int]] = [net]
        if of.apparent:
            series.append(apparent_mva)
        series += [[max(0, power) for power in powers_mw[index]] for index in of.circuits]
        at_ms = self._at_ms + sum(elapsed)
        weights = elapsed.copy()
        weights[0] += self._at_ms - self._point_ms
        for index, flag in enumerate(flags):
            if flag & ROW_GAP:
                weights[index] = 0
        for index, values in enumerate(series):
            points = [self._point[index], *values]
            doubled = map(add, points, values)
            if index:
                self._sums[index + 1] += sum(map(mul, doubled, weights))
            elif min(points) >= 0:
                self._sums[0] += sum(map(mul, doubled, weights))
            else:
                for half in map(mul, doubled, weights):
                    self._sums[0 if half >= 0 else 1] += abs(half)
        self._part_ms += sum(weights)
        self._at_ms = self._point_ms = at_ms
        self._early = self._point = tuple(values[-1] for values in series)
        return list(self._sums)

    def _check_gaps(self, elapsed: list[int], flags: Sequence[int]) -> int | None:
        """Return the index of the first row whose gap flag breaks the rule, or None."""
        recent = self._recent
        beats = [ms for ms in elapsed if ms]
        known = [*recent, *beats]
        self._recent = known[-CADENCE_WINDOW:]
        if (
            len(recent) == CADENCE_WINDOW
            and not any(flag & ROW_GAP for flag in flags)
            and max(elapsed) <= 3 * min(known)
        ):
            return None  # no difference can be three times a median of these
        polling_ms = int(dict(self._task.parameters.settings)["board.polling_ms"])
        cadence = Cadence(polling_ms)
        for beat in recent:
            cadence.add(beat)
        sure = self._task.tail_whole or len(recent) == CADENCE_WINDOW
        for index, ms in enumerate(elapsed):
            if self._begins_run:
                self._begins_run = False
                if not flags[index] & ROW_GAP:
                    return index
                continue
            if sure and cadence.is_gap(ms) != bool(flags[index] & ROW_GAP):
                return index
            cadence.add(ms)
        return None

    def _close(self, block: Block, next_row: int) -> None:
        cut_ms = block.clock.boot_ms
        if cut_ms > self._point_ms:
            body = self._body(next_row) or self._task.following
            if body:
                self._cross(cut_ms, body)

    def _cross(self, cut_ms: int, body: bytes) -> None:
        """Integrate up to a cut between the last row and the one in `body`, unless it is a hole."""
        row = read_row(body, self._at_ms)
        if row.flags & ROW_GAP or not self._point_ms < cut_ms <= row.at_ms:
            return
        late = quantities(row.powers_mw, row.apparent_mva, self._of)
        point = between(self._early, late, cut_ms - self._at_ms, row.at_ms - self._at_ms)
        integrate(self._sums, self._point, point, cut_ms - self._point_ms)
        self._part_ms += cut_ms - self._point_ms
        self._point_ms, self._point = cut_ms, point
