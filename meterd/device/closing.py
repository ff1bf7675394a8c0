"""Closes what earlier runs left open, each under its own parameters, as every start does first.

What a run measured behind its last block is cut as if the run had gone on until its last row. The
rows of a run that never knew the time are integrated and stay: the first row that is placed puts
them into its gap block.
"""

from __future__ import annotations

from itertools import chain, groupby
from typing import TYPE_CHECKING, NamedTuple

from meterd.device.rows import placed
from meterd.errors import LedgerDamagedError
from meterd.ledger.encoding import digest
from meterd.metering.energy import APPARENT, Register, mapping, quantities
from meterd.metering.interval import LOST, REBASED, STEP_MS, Base, Cutter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from meterd.device.recovery import Recovered
    from meterd.device.rows import Rows
    from meterd.ledger.account import Parameters
    from meterd.ledger.row import Row
    from meterd.ledger.segment import SampleHeader
    from meterd.metering.interval import Cut, Wall


class Terms:
    """What rows and blocks are made under: a parameter record, and a boot.

    Attributes:
        parameters: The record.
        hash: What blocks and headers name it by.
        boot_id: The boot, 16 bytes.
        registers: What the record's settings feed, in the order of running sums.
        codes: Their OBIS codes.
        of: Which quantities of a row feed them.
        quantities: How many there are.
    """

    def __init__(self, parameters: Parameters, boot_id: bytes) -> None:
        """Derive from `parameters` all that every row wants."""
        self.parameters, self.boot_id = parameters, boot_id
        self.hash = digest(parameters.encode())
        self.registers = [Register(obis, kind) for obis, kind in parameters.registers]
        self.codes = [register.obis for register in self.registers]
        self.of = mapping(parameters.roles, apparent=APPARENT in self.codes)
        self.quantities = len(self.codes) - 1


class Pending(NamedTuple):
    """Rows of runs that never knew the time, which no block takes yet.

    Attributes:
        records: How many rows.
        measured_ms: How long they measured.
        sums: Running sums behind them, half uJ, by OBIS code.
        registers: Registers that they have fed.
        flags: What their block has to say of them.
    """

    records: int
    measured_ms: int
    sums: dict[bytes, int]
    registers: frozenset[Register]
    flags: int


class Closed(NamedTuple):
    """Where an account stands once everything before is closed.

    Attributes:
        end_s: End of the last block, or None.
        sums: Running sums at it, half uJ, by OBIS code.
        pending: What waits for the first row that is placed, or None.
    """

    end_s: int | None
    sums: dict[bytes, int]
    pending: Pending | None

    def base(self, terms: Terms) -> Base:
        """Return what a cutter under `terms` goes on from."""
        pending = self.pending
        return Base(
            self.end_s,
            tuple(self.sums.get(code, 0) for code in terms.codes),
            None,
            (0,) * terms.quantities,
            flags=pending.flags if pending else 0,
            pending=pending
            and (
                pending.records,
                pending.measured_ms,
                tuple(pending.sums.get(code, 0) for code in terms.codes),
            ),
        )

    def owed(self, terms: Terms) -> dict[Register, int]:
        """Return what the first block under `terms` must count of registers that these do not feed.

        In uJ: rows that wait were measured by clamps that are gone now.
        """
        if self.pending is None:
            return {}
        return {
            register: self.pending.sums[register.obis] // 2
            for register in self.pending.registers
            if register.obis not in terms.codes
        }

    @property
    def sums_now(self) -> dict[bytes, int]:
        """Running sums behind all rows, half uJ."""
        return self.sums if self.pending is None else self.pending.sums


def close_runs(
    recovered: Recovered,
    interval_s: int,
    rows: Rows,
    seal: Callable[[Cut, Terms, dict[Register, int]], None],
    changes: tuple[tuple[int, int], ...] = (),
) -> Closed:
    """Close what earlier runs left open; return where the account stands then.

    Args:
        recovered: What recovery found.
        interval_s: The network's interval.
        rows: Reads rows back.
        seal: Given each cut in order, its terms, and what its block owes besides.
        changes: Of the interval, as a cutter takes them.

    Raises:
        LedgerDamagedError: No event holds the parameters of such a run.
    """
    closed = Closed(recovered.found.chain.head.end_s, dict(recovered.sums), _carried(recovered))
    at = recovered.at
    for run, parts in groupby(recovered.found.open, lambda part: part.segment.header.run):
        segments = list(parts)
        header = segments[0].segment.header
        record = recovered.found.parameters.get(header.parameters)
        if record is None:
            raise LedgerDamagedError(
                f"no event holds the parameter record of run {run}", hint="see `meterctl verify`"
            )
        terms = Terms(record, header.boot_id)
        base, owed = closed.base(terms), closed.owed(terms)
        walls = recovered.walls.get(run, ())
        if at is not None:
            at_ms, point = at
            base = base._replace(
                at_ms=at_ms, point=point, wall=_wall_behind(recovered, interval_s, walls, at_ms)
            )
        cutter = Cutter(
            interval_s=interval_s, quantities=terms.quantities, base=base, changes=changes
        )
        stored = [
            (segment.header, first_row, segment.rows - first_row) for segment, first_row in segments
        ]
        for cut in chain(feed_rows(cutter, rows, stored, walls, terms), _end(cutter)):
            seal(cut, terms, owed)
            closed, owed = closed._replace(sums=closed.sums_now, pending=None), {}
        closed, at = _behind(closed, cutter.base, terms), None
    return closed


def _carried(recovered: Recovered) -> Pending | None:
    """Return what a run had measured before the account began anew behind its neighbours' blocks.

    None where a block has counted it since.
    """
    begun, head = recovered.found.recovered, recovered.found.chain.head
    if begun is None or head.height > begun.height:
        return None
    sums, registers = dict(recovered.sums), set()
    for obis, kind, uj in begun.carried:
        sums[obis] = sums.get(obis, 0) + 2 * uj
        registers.add(Register(obis, kind))
    return Pending(0, begun.measured_ms, sums, frozenset(registers), LOST | REBASED)


def feed_rows(
    cutter: Cutter,
    rows: Rows,
    parts: Iterable[tuple[SampleHeader, int, int]],
    walls: Iterable[tuple[int, Wall]],
    terms: Terms,
) -> Iterator[Cut]:
    """Feed stored rows of one run to its cutter, and yield the cuts.

    Where a segment states other sums than these rows add up to, its run had held the rows before it
    and not cut them: nobody can recompute the stretch there, and it is flagged.

    Args:
        cutter: What it has been fed before precedes these rows.
        rows: Reads rows back.
        parts: (header, first row, how many) of each segment, in order.
        walls: Where the run lies, as `placed` takes it; none to hold the rows.
        terms: What they were measured under.
    """
    places = tuple(walls)
    first = True

    def stored() -> Iterator[Row]:
        nonlocal first
        for header, first_row, count in parts:
            if not first and header.sums != tuple(cutter.sums):
                cutter.flags |= LOST
            first = False
            yield from rows.each(header, first_row, count)

    if not places:
        for row in stored():
            point = quantities(row.powers_mw, row.apparent_mva, terms.of)
            cutter.hold(row.at_ms, point, row.flags)
        return
    for row, wall in placed(stored(), places):
        point = quantities(row.powers_mw, row.apparent_mva, terms.of)
        yield from cutter.feed(row.at_ms, point, row.flags, wall)


def _wall_at(walls: tuple[tuple[int, Wall], ...], at_ms: int) -> Wall | None:
    known = [wall for from_ms, wall in walls if from_ms <= at_ms] or [wall for _, wall in walls[:1]]
    return known[-1] if known else None


def _wall_behind(
    recovered: Recovered, interval_s: int, walls: tuple[tuple[int, Wall], ...], at_ms: int
) -> Wall | None:
    """Return the wall in force behind the last block, of a run that went on; None behind a step.

    A block that a step forward has closed (or a hole) ends inside an interval, covers what the step
    left out, or ends elsewhere in wall time than where its energy does, at `at_ms`. The step is
    told there. A step back closes nothing: where its first row crosses a boundary, that lies under
    the new wall.
    """
    before = _wall_at(walls, at_ms)
    blocks = recovered.found.blocks[-1:]
    jumped = any(not block.records and not block.clock.measured_ms for block in blocks)
    end_s = recovered.found.chain.head.end_s or 0
    if before is None or jumped or end_s % interval_s != 0:
        return None
    next_ = [wall for from_ms, wall in walls if from_ms > at_ms][:1]
    for wall in (before, *(wall for wall in next_ if wall.offset_ms < before.offset_ms)):
        if abs(at_ms + wall.offset_ms - end_s * 1000) <= STEP_MS:
            return wall
    return None


def _end(cutter: Cutter) -> Iterator[Cut]:
    yield from cutter.restart()


def _behind(closed: Closed, base: Base, terms: Terms) -> Closed:
    """Return where an account stands behind one more run, whose cutter ended at `base`."""
    sums = closed.sums | dict(zip(terms.codes, base.sums, strict=True))
    if base.pending is None:
        return Closed(base.end_s, sums, None)
    records, measured_ms, behind = base.pending
    before = closed.pending.registers if closed.pending else frozenset()
    waiting = closed.sums_now | dict(zip(terms.codes, behind, strict=True))
    fed = before.union(terms.registers)
    pending = Pending(records, measured_ms, waiting, fed, base.flags)
    return Closed(base.end_s, sums, pending)
