"""Recomputes what blocks say from stored rows: every fingerprint, every register, every hole.

Each segment of samples is audited by itself: its header, which is part of every fingerprint in it,
states where integration stood before its first row. So segments can be audited on several
processors, and an account whose older samples were pruned still can be. What joins the segments is
then checked by itself (`samples`).

A row is believed to be what the board said; that its flags follow the rule of gaps, and that the
registers are the sum of the rows, is recomputed.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from operator import add, mul
from typing import TYPE_CHECKING, NamedTuple

from meterd.ledger.row import LINK_BYTES, Columns, read_row, row_bytes
from meterd.ledger.segment import find_damaged_row
from meterd.ledger.stored import Place
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

if sys.version_info >= (3, 12):  # pragma: no cover
    from math import sumprod
else:  # pragma: no cover

    def sumprod(left: Iterable[int], right: Iterable[int]) -> int:
        """Return the sum of products of `left` and `right`, of equal length."""
        return sum(map(mul, left, right))


if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterd.ledger.account import Parameters
    from meterd.ledger.block import Block
    from meterd.ledger.segment import SampleHeader


POLLING_DIGITS = 9  # ten days; nobody's number of thousands of digits is worked out


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
        rows: How many it has.
        parameters: The parameter record that the header names.
        stretches: Its rows by block, in order, from row 0 on.
        cuts_ms: Boot clocks at which blocks of this boot end, behind the last row before these.
        tail: Stored rows before the first one, of the same run, as many as the cadence wants.
        following: The first row of the next segment, if it goes on with the same run.
        broken: What follows the last row is known to be damaged or missing.
    """

    number: int
    header: SampleHeader
    begin: int
    rows: int
    parameters: Parameters
    stretches: tuple[Stretch, ...]
    cuts_ms: tuple[int, ...]
    tail: bytes
    following: bytes
    broken: bool


class BadRows(NamedTuple):
    """Rows that do not verify: the block that takes them, or None, and the place."""

    block: Block | None
    place: Place


class SampleResult(NamedTuple):
    """What `audit_samples` found.

    Attributes:
        bad: The first bad place and the block that it concerns, or None.
        measured_ms: How long was measured, by height of the blocks that lie here.
        estimated: Heights with an estimated row.
        row_sums: Running sums at the last row that a block takes (half uJ, by OBIS code).
        cut_sums: Running sums at the last cut.
        point_ms: Boot clock of the last point in `cut_sums`.
        point: Quantities there.
        exact: Whether these could be recomputed to the end.
    """

    bad: BadRows | None
    measured_ms: dict[int, int]
    estimated: frozenset[int]
    row_sums: dict[bytes, int]
    cut_sums: dict[bytes, int]
    point_ms: int
    point: tuple[int, ...]
    exact: bool


def audit_samples(task: SampleTask, data: bytes) -> SampleResult:
    """Audit one segment, whose bytes are `data`."""
    reason = _misfit(task)
    if reason:
        block = task.stretches[0].block if task.stretches else None
        bad = BadRows(block, Place(task.number, 0, reason))
        return SampleResult(bad, {}, frozenset(), {}, {}, 0, (), exact=False)
    return _Audit(task, data).run()


def _misfit(task: SampleTask) -> str:
    """Return why header and parameter record do not fit each other, or an empty text."""
    parameters, header = task.parameters, task.header
    codes = [obis for obis, _ in parameters.registers]
    of = mapping(parameters.roles, apparent=APPARENT in codes)
    polling_ms = dict(parameters.settings).get("board.polling_ms", "")
    if not of.mains or len(codes) != 2 + of.apparent + len(of.circuits):
        return "the parameter record's registers are not those of its clamps"
    if not (polling_ms.isascii() and polling_ms.isdecimal() and len(polling_ms) <= POLLING_DIGITS):
        return "the parameter record states no polling interval"
    if len(header.sums) != len(codes) or header.row_bytes != row_bytes(len(parameters.roles)):
        return "the header does not fit its parameter record"
    return ""


def fingerprint_of(parts: Sequence[tuple[SampleHeader, int, bytes | memoryview]]) -> bytes:
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
        Stretches by segment, and the first block whose rows are not all there, or None. Blocks that
        lost all their samples before the first of these segments began are the one before's.
    """
    stretches: dict[int, list[Stretch]] = {number: [] for number in rows}
    numbers = list(rows)
    at, row = 0, 0
    for block in blocks:
        if block.records == 0:
            if numbers:
                here = numbers[at] if row or at == 0 else numbers[at - 1]
                first_row = row if row or at == 0 else rows[here]
                stretches[here].append(Stretch(block, first_row, 0, begins=True, ends=True))
                if block.flags & LOST and at == row == 0:
                    # Sealed before the first row was stored: its header's sums are those behind it.
                    early = stretches.pop(numbers[0] - 1, []) + stretches[here]
                    stretches = {numbers[0] - 1: early} | stretches | {here: []}
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
        self._table = Columns.of(data, self._size, task.begin, self._offset(task.rows))
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
        self._unlike: Stretch | None = None
        self._begins_run = not header.before

    def _window(self) -> list[int]:
        if not self._task.tail:
            return []
        elapsed = Columns.of(self._task.tail, self._size).elapsed_ms[1:]
        return [ms for ms in elapsed if ms][-CADENCE_WINDOW:]

    def run(self) -> SampleResult:
        task = self._task
        bad = self._check_fingerprints()
        for cut_ms in task.cuts_ms if task.header.before else ():
            if cut_ms > self._at_ms:
                self._cross(cut_ms, self._row(0))
        for stretch in task.stretches:
            if stretch is self._unlike:
                break
            wrong = self._stretch(stretch)
            if wrong:
                bad = wrong
                break
        return SampleResult(
            bad,
            self._measured,
            frozenset(self._estimated),
            dict(zip(self._codes, self._row_sums, strict=True)),
            dict(zip(self._codes, self._sums, strict=True)),
            self._point_ms,
            self._point,
            self._exact,
        )

    def _check_fingerprints(self) -> BadRows | None:
        """Find the first block whose rows are not what it sealed; later ones are not looked at."""
        data = memoryview(self._data)
        for stretch in self._task.stretches:
            begin = self._offset(stretch.first_row)
            end = self._offset(stretch.first_row + stretch.rows)
            if stretch.begins and stretch.ends:
                rows = data[begin:end]
                parts = [(self._task.header, stretch.first_row, rows)] if stretch.rows else []
                if fingerprint_of(parts) != stretch.block.fingerprint:
                    self._unlike = stretch
                    return self._locate(stretch.block, begin, end)
        return None

    def _bad(self, block: Block, offset: int, reason: str) -> BadRows:
        return BadRows(block, Place(self._task.number, offset, reason))

    def _offset(self, row: int) -> int:
        return self._task.begin + row * self._size

    def _row(self, number: int) -> bytes:
        """Return a row without its link: of this segment, of the next, or nothing past the end."""
        if number >= self._task.rows:
            return self._task.following
        at = self._offset(number)
        return self._data[at : at + self._size - LINK_BYTES]

    def _stretch(self, stretch: Stretch) -> BadRows | None:
        block = stretch.block
        behind = stretch.first_row + stretch.rows
        begin = self._offset(stretch.first_row)
        if block.flags & LOST or not self._exact:
            self._exact = False
            return None
        named = block.parameters == self._task.header.parameters
        if not named and stretch.rows and stretch.ends and block.clock.status != "R":
            return self._bad(block, begin, "the block names another parameter record")
        self._part_ms = 0
        bad = self._compare(block, begin, first=True) if stretch.begins else None
        if not bad and stretch.rows:
            bad = self._integrate_rows(stretch, begin)
        if not bad and stretch.ends:
            between_rows = block.clock.boot_ms > self._point_ms
            if between_rows:
                self._cross(block.clock.boot_ms, self._row(behind))
            bad = self._compare(block, begin, first=False)
            if bad and between_rows and self._is_broken(behind):
                self._exact = False
                return None
        self._measured[block.height] = self._measured.get(block.height, 0) + self._part_ms
        return bad

    def _is_broken(self, row: int) -> bool:
        """Say whether the row behind a block, which its end was computed from, is damaged."""
        if row >= self._task.rows:
            return self._task.broken
        last = self._task.stretches[-1]
        if self._task.broken and not last.ends and row >= last.first_row:
            return True
        if self._unlike and row >= self._unlike.first_row:
            return True
        end = self._offset(row + 1)
        return find_damaged_row(self._data, self._task.header, end)[1] is not None

    def _locate(self, block: Block, begin: int, end: int) -> BadRows:
        _, damage = find_damaged_row(self._data, self._task.header, end)
        if damage:
            return self._bad(block, damage.offset, damage.reason)
        return self._bad(block, begin, "the rows are linked and are not those the block sealed")

    def _compare(self, block: Block, offset: int, *, first: bool) -> BadRows | None:
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

    def _integrate_rows(self, stretch: Stretch, offset: int) -> BadRows | None:
        """Integrate the rows of one block, whole columns at a time."""
        block, table = stretch.block, self._table.part(stretch.first_row, stretch.rows)
        flags = table.flags if table.flagged else ()
        if any(flag & ROW_ESTIMATED for flag in flags):
            self._estimated.add(block.height)
            if not block.flags & ESTIMATED:
                return self._bad(block, offset, "a row is estimated and the block does not say so")
        elapsed = table.elapsed_ms
        wrong = self._check_gaps(table, elapsed, flags)
        if wrong is not None:
            return self._bad(
                block,
                offset + wrong * self._size,
                "the row's gap flag is not what the board's cadence makes it",
            )
        self._row_sums = self._integrate(table, elapsed, flags)
        return None

    def _integrate(self, table: Columns, elapsed: list[int], flags: Sequence[int]) -> list[int]:
        """Add the rows' energy to the sums; `flags` may be empty where no row has one."""
        of, powers_mw = self._of, table.powers_mw
        net = powers_mw[of.mains[0]]
        for index in of.mains[1:]:
            net = list(map(add, net, powers_mw[index]))
        series = [net]
        if of.apparent:
            series.append(table.apparent_mva)
        series += [[max(0, power) for power in powers_mw[index]] for index in of.circuits]
        whole_ms = sum(elapsed)
        weights = elapsed
        if self._at_ms != self._point_ms or flags:
            weights = elapsed.copy()
            weights[0] += self._at_ms - self._point_ms
            for index, flag in enumerate(flags):
                if flag & ROW_GAP:
                    weights[index] = 0
        before = self._point[0]
        sign = table.sign(of.mains)
        if sign * before < 0:
            sign = 0
        for index, values in enumerate(series):
            doubled = map(add, [self._point[index], *values], values)
            if index:
                self._sums[index + 1] += sumprod(doubled, weights)
            elif sign:
                self._sums[sign < 0] += sign * sumprod(doubled, weights)
            else:
                for half in map(mul, doubled, weights):
                    self._sums[0 if half >= 0 else 1] += abs(half)
        self._part_ms += whole_ms if weights is elapsed else sum(weights)
        self._at_ms = self._point_ms = self._at_ms + whole_ms
        self._early = self._point = tuple(values[-1] for values in series)
        return list(self._sums)

    def _check_gaps(self, table: Columns, elapsed: list[int], flags: Sequence[int]) -> int | None:
        """Return the index of the first row whose gap flag breaks the rule, or None."""
        recent = self._recent
        least_ms, most_ms = table.elapsed_bounds_ms
        beats = elapsed
        if not least_ms:
            beats = [ms for ms in elapsed if ms]
            least_ms = min(beats, default=0)
        self._recent = [*recent, *beats[-CADENCE_WINDOW:]][-CADENCE_WINDOW:]
        plain = len(recent) == CADENCE_WINDOW and not flags
        if plain and most_ms <= 3 * min(*recent, least_ms or recent[0]):
            return None  # no difference can be three times a median of these
        flags = flags or (0,) * len(elapsed)
        polling_ms = int(dict(self._task.parameters.settings)["board.polling_ms"])
        cadence = Cadence(polling_ms)
        for beat in recent:
            cadence.add(beat)
        sure = not self._task.header.before or len(recent) == CADENCE_WINDOW
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

    def _cross(self, cut_ms: int, body: bytes) -> None:
        """Integrate up to a cut between the last row and the one in `body`, unless it is a hole."""
        if not body:
            return
        row = read_row(body, self._at_ms)
        if row.flags & ROW_GAP or not self._point_ms < cut_ms <= row.at_ms:
            return
        late = quantities(row.powers_mw, row.apparent_mva, self._of)
        point = between(self._early, late, cut_ms - self._at_ms, row.at_ms - self._at_ms)
        integrate(self._sums, self._point, point, cut_ms - self._point_ms)
        self._part_ms += cut_ms - self._point_ms
        self._point_ms, self._point = cut_ms, point
