"""Wall-clock intervals cut from energy that the boot clock integrates.

Two clocks: CLOCK_BOOTTIME integrates and is never set back; wall time only says where a boundary
lies. `placement` decides whether wall time can be used; `Cutter` integrates every row and, where
placed, cuts it. Rows that came before wall time was known are fed again, from the account, once it
is: recovery after a crash, synchronisation after boot and a long clock step are the same path.

>>> cutter = Cutter(interval_s=1800, quantities=1)
>>> wall = Wall(offset_ms=0, status="S", error_ms=0)
>>> cutter.feed(1_799_000, (2_000_000,), 1, wall)
[]
>>> [(cut.end_s, cut.last_uj) for cut in cutter.feed(1_801_000, (2_000_000,), 0, wall)]
[(1800, (2000000000, 0))]
"""

from __future__ import annotations

from typing import NamedTuple

from meterd.metering.energy import ROW_ESTIMATED, ROW_GAP, between, integrate, registers_uj

GAP, PARTIAL, STEPPED, ESTIMATED, LOST, REBASED = 1, 2, 4, 8, 16, 32
FLAG_NAMES = {
    GAP: "gap",
    PARTIAL: "partial",
    STEPPED: "clock stepped",
    ESTIMATED: "estimated",
    LOST: "samples lost",
    REBASED: "rebased",
}
STATUSES = "SIR"  # OCMF's letters, from good to bad: synchronised, informative, relative

STEP_MS = 2_000  # less is the rounding of whole-second stamps, and a boundary moves by no more


class Wall(NamedTuple):
    """Where the boot clock lies in wall time.

    Attributes:
        offset_ms: Wall time (ms since 1970) minus boot clock.
        status: One of `STATUSES`.
        error_ms: How far wall time may be off, as the kernel estimates.
    """

    offset_ms: int
    status: str
    error_ms: int


class Cut(NamedTuple):
    """An interval, or a part of one, that is closed.

    Attributes:
        start_s: Unix seconds; the end of the cut before.
        end_s: Unix seconds, after `start_s`.
        cut_ms: Boot clock at which the energy of this cut ends.
        measured_ms: How long power was really measured.
        status: The worst clock status in it.
        error_ms: The worst clock error in it.
        first_uj: Registers at its start, in uJ, in the order of `registers`.
        last_uj: Registers at its end.
        flags: Sum of GAP, PARTIAL, STEPPED, ESTIMATED, LOST, REBASED.
        records: Rows that it takes, of those not yet taken by a cut before.
        takes_row: Whether the row just fed is among them.
    """

    start_s: int
    end_s: int
    cut_ms: int
    measured_ms: int
    status: str
    error_ms: int
    first_uj: tuple[int, ...]
    last_uj: tuple[int, ...]
    flags: int
    records: int
    takes_row: bool


class Base(NamedTuple):
    """All that a cutter needs to go on from its last cut: what recovery rebuilds it from.

    Attributes:
        end_s: End of the last cut; None before an account's first.
        sums: Running sums at that cut, half uJ.
        at_ms: Boot clock of the last point that counts in them; None after a restart.
        point: Quantities at that point.
        flags: Flags that the stretch after it begins with.
        pending: Of runs since that never knew the time: their rows, measured ms, sums behind them.
        wall: Where that point lies in wall time, if it is known: a step is told by it.
    """

    end_s: int | None
    sums: tuple[int, ...]
    at_ms: int | None
    point: tuple[int, ...]
    flags: int = 0
    pending: tuple[int, int, tuple[int, ...]] | None = None
    wall: Wall | None = None


def seconds_up(wall_ms: int) -> int:
    """Return the wall-clock second that `wall_ms` has reached or lies in, rounded up."""
    return -(-wall_ms // 1000)


class Cutter:
    """Integrates rows and closes intervals. One for each account; `restart` between boots.

    Attributes:
        sums: Running sums in half uJ, import and export first, never lowered.
        row_sums: The same as they stood at the last row before the one just fed.
        base: The state at the last cut.
        flags: Flags of the open stretch.
        records: Rows in the open stretch.
        start_s: Start of the open stretch; None where none is open in this run.
        end_s: End of the last cut, Unix seconds; None before an account's first.
    """

    def __init__(
        self,
        *,
        interval_s: int,
        quantities: int,
        base: Base | None = None,
        changes: tuple[tuple[int, int], ...] = (),
    ) -> None:
        """Go on from `base`; without one, begin an account of so many quantities.

        Args:
            interval_s: Length of an interval; divides a day.
            quantities: How many quantities a row has.
            base: Where the last cut was.
            changes: (midnight, Unix seconds; interval_s from then on), ascending.
        """
        self.calendar = ((0, interval_s), *changes)
        base = base or Base(None, (0,) * (quantities + 1), None, (0,) * quantities)
        self.sums = list(base.sums)
        self.restore(base)
        self.row_sums = tuple(self.sums)

    def restore(self, base: Base) -> None:
        """Go back to `base`, as if nothing had been fed since."""
        self.base = base
        self.end_s = base.end_s
        self.sums[:] = base.sums
        self._at_ms = base.at_ms
        self._point = base.point
        self._open_at(None if base.at_ms is None else base.end_s)
        self._unplaced = False
        self._wall = base.wall
        self._anchor_ms = base.wall.offset_ms if base.wall else 0
        self._clear()
        self.flags = base.flags
        if base.pending:
            self.records, self.measured_ms, sums = base.pending
            self.sums[:] = sums
            self._unplaced = True

    def _clear(self) -> None:
        self._first = tuple(self.sums)
        self.records = 0
        self.measured_ms = 0
        self.flags = 0
        self._status = "S"
        self._error_ms = 0
        self._plain: Wall | None = None  # nothing is new behind a row under the same wall

    def hold(self, at_ms: int, point: tuple[int, ...], flags: int) -> None:
        """Count a row's energy while wall time cannot be used; nothing is cut."""
        self.row_sums = tuple(self.sums)
        if not flags & ROW_GAP and self._at_ms is not None:
            integrate(self.sums, self._point, point, at_ms - self._at_ms)
            self.measured_ms += at_ms - self._at_ms
        if flags & ROW_ESTIMATED:
            self.flags |= ESTIMATED
        self._unplaced = True
        self._at_ms, self._point = at_ms, point
        self._plain = None
        self.records += 1

    def feed(self, at_ms: int, point: tuple[int, ...], flags: int, wall: Wall) -> list[Cut]:
        """Count a row and return the cuts that it makes, earliest first.

        Args:
            at_ms: Boot clock of the row, not before the one fed last.
            point: Its quantities: net mains power, then what has a register of its own.
            flags: Its row flags.
            wall: Where the boot clock lies in wall time at this row.
        """
        self.row_sums = tuple(self.sums)
        wall_ms = at_ms + wall.offset_ms
        if wall is self._plain and not flags and wall_ms < self._next_ms:  # nearly every row
            assert self._at_ms is not None  # noqa: S101 - a row has come before
            elapsed_ms = at_ms - self._at_ms
            integrate(self.sums, self._point, point, elapsed_ms)
            self.measured_ms += elapsed_ms
            self._at_ms, self._point = at_ms, point
            self.records += 1
            return []
        cuts: list[Cut] = []
        bridged = not flags & ROW_GAP and self._at_ms is not None
        resumed = self.start_s is None
        if resumed:
            self._resume(wall_ms, wall, cuts)
        elif self._wall is None:  # recovery says so of a cut that a step has made
            self._anchor_ms = wall.offset_ms
            if wall_ms > self.start_ms:
                self.flags |= GAP
        elif abs(wall.offset_ms - self._anchor_ms) > STEP_MS:
            self._step(wall_ms, wall, cuts)
        self._wall = wall
        if wall_ms > self._next_ms:
            if bridged:
                self._cross(at_ms, point, wall, cuts)
            else:
                if self.records:
                    self.flags |= GAP
                    cuts.append(self._close(self._next_s, self._next_s * 1000 - wall.offset_ms))
                self._resume(wall_ms, wall, cuts)
        elif not bridged and not resumed and (self.records or wall_ms > self.start_ms):
            self.flags |= GAP
        if bridged:
            assert self._at_ms is not None  # noqa: S101 - what `bridged` says
            integrate(self.sums, self._point, point, at_ms - self._at_ms)
            self.measured_ms += at_ms - self._at_ms
        self._at_ms, self._point = at_ms, point
        self.records += 1
        if flags & ROW_ESTIMATED:
            self.flags |= ESTIMATED
        if wall.status != self._status or wall.error_ms > self._error_ms:
            self._worsen(wall)
        self._plain = wall
        if wall_ms == self._next_ms:
            cuts.append(self._close(self._next_s, at_ms)._replace(takes_row=True))
        return cuts

    def tick(self, now_ms: int, wall: Wall) -> list[Cut]:
        """Close the open interval if its end has passed; call it once a silence is a hole."""
        if (
            self.start_s is None
            or not self.records
            or self._unplaced
            or now_ms + wall.offset_ms <= self._next_s * 1000
            or abs(wall.offset_ms - self._anchor_ms) > STEP_MS
        ):
            return []
        self.row_sums = tuple(self.sums)
        self.flags |= GAP
        return [self._close(self._next_s, self._next_s * 1000 - wall.offset_ms)]

    def restart(self) -> list[Cut]:
        """End the run: close what is open at its last row's second, rounded up.

        Energy of a run that was never placed stays, for the gap block of the next.
        """
        cuts: list[Cut] = []
        if self.records and self.start_s is not None and self._wall and self._at_ms is not None:
            end_s = max(seconds_up(self._at_ms + self._wall.offset_ms), self.start_s + 1)
            self.flags |= PARTIAL
            cuts.append(self._close(min(end_s, self._next_s), self._at_ms))
        self._at_ms = None
        self._open_at(None)
        self._wall = self._plain = None
        pending = (self.records, self.measured_ms, tuple(self.sums)) if self.records else None
        flags = self.flags if pending else 0
        self.base = self.base._replace(at_ms=None, flags=flags, pending=pending, wall=None)
        return cuts

    @property
    def start_ms(self) -> int:
        """Start of the open stretch in wall-clock ms."""
        return (self.start_s or 0) * 1000

    def interval_s(self, at_s: int) -> int:
        """Return the length of the interval that `at_s` lies in."""
        return [interval_s for from_s, interval_s in self.calendar if from_s <= at_s][-1]

    def plan(self, changes: tuple[tuple[int, int], ...]) -> None:
        """Let other changes of the interval be in force; where a block has just been cut."""
        self.calendar = (self.calendar[0], *changes)
        self._open_at(self.start_s)

    def _open_at(self, start_s: int | None) -> None:
        """Let the open stretch begin at `start_s`; its interval ends at the next boundary."""
        self.start_s: int | None = start_s
        interval_s = self.interval_s(start_s or 0)
        self._next_s = ((start_s or 0) // interval_s + 1) * interval_s
        self._next_ms = self._next_s * 1000

    def _worsen(self, wall: Wall) -> None:
        if STATUSES.index(wall.status) > STATUSES.index(self._status):
            self._status = wall.status
        self._error_ms = max(self._error_ms, wall.error_ms)

    def _close(self, end_s: int, cut_ms: int) -> Cut:
        assert self.start_s is not None  # noqa: S101 - callers have opened it
        length_ms = (end_s - self.start_s) * 1000
        if self.measured_ms > length_ms + 2 * STEP_MS and self._status != "R":
            self.flags |= STEPPED  # a step that was noted before the power failed, or never
        cut = Cut(
            start_s=self.start_s,
            end_s=end_s,
            cut_ms=max(cut_ms, 0),
            measured_ms=self.measured_ms,
            status=self._status,
            error_ms=self._error_ms,
            first_uj=registers_uj(self._first),
            last_uj=registers_uj(self.sums),
            flags=self.flags,
            records=self.records,
            takes_row=False,
        )
        self.end_s = end_s
        self._open_at(end_s)
        self._clear()
        if self._wall is not None:
            self._anchor_ms = self._wall.offset_ms
        self.base = Base(end_s, tuple(self.sums), self._at_ms, self._point, wall=self._wall)
        return cut

    def _cross(self, at_ms: int, point: tuple[int, ...], wall: Wall, cuts: list[Cut]) -> None:
        """Insert a reading at each boundary between the last row and this one."""
        assert self._at_ms is not None  # noqa: S101 - called where rows are bridged
        early_ms, early = self._at_ms, self._point
        while at_ms + wall.offset_ms > self._next_s * 1000:
            boundary_ms = max(self._next_s * 1000 - wall.offset_ms, self._at_ms)
            at_boundary = (
                between(early, point, boundary_ms - early_ms, at_ms - early_ms)
                if at_ms > early_ms
                else early
            )
            integrate(self.sums, self._point, at_boundary, boundary_ms - self._at_ms)
            self.measured_ms += boundary_ms - self._at_ms
            self._at_ms, self._point = boundary_ms, at_boundary
            self._worsen(wall)
            cuts.append(self._close(self._next_s, boundary_ms))

    def _resume(self, wall_ms: int, wall: Wall, cuts: list[Cut]) -> None:
        """Open a stretch after an absence, with one gap block for whole intervals missed."""
        interval_s = self.interval_s(max(wall_ms // 1000, 0))
        boundary_s = wall_ms // 1000 // interval_s * interval_s
        pending = self._unplaced and bool(self.records or self.base.pending)
        self._anchor_ms = wall.offset_ms
        began = self.end_s is None
        if self.end_s is None:
            self.end_s = boundary_s
        self._open_at(self.end_s)
        self._unplaced = False
        if began and not pending:
            if wall_ms > self.start_ms:
                self.flags |= PARTIAL
            return
        changes = [at_s for at_s, _ in self.calendar if self.end_s < at_s < boundary_s]
        for end_s in (*changes, boundary_s):  # no block crosses a change of the interval
            if pending:
                self._close_unplaced(end_s, wall_ms, cuts)
                pending = False
            elif end_s > self.end_s:
                self.flags = self.flags & STEPPED | GAP
                self._worsen(wall)
                cuts.append(self._close(end_s, 0))
        if wall_ms > self.start_ms:
            self.flags |= GAP
        elif wall_ms < self.start_ms - STEP_MS:
            self.flags |= STEPPED

    def _close_unplaced(self, boundary_s: int, wall_ms: int, cuts: list[Cut]) -> None:
        """Put the energy of runs that never knew the time into the gap block, or a partial one."""
        assert self.start_s is not None  # noqa: S101 - `_resume` has set it
        end_s = boundary_s
        self.flags |= GAP
        if boundary_s <= self.start_s:
            end_s = min(max(wall_ms // 1000, self.start_s + 1), self._next_s)
            self.flags |= PARTIAL
        self._status = "R"
        cuts.append(self._close(end_s, 0))

    def _step(self, wall_ms: int, wall: Wall, cuts: list[Cut]) -> None:
        """Wall time was set: back, the open stretch stays open; forward, it closes."""
        assert self._wall is not None  # noqa: S101 - a step is told by the wall before
        assert self._at_ms is not None  # noqa: S101 - ... which is that of a row
        assert self.start_s is not None  # noqa: S101
        self.flags |= STEPPED
        forward = wall.offset_ms > self._anchor_ms
        end_s = min(seconds_up(self._at_ms + self._wall.offset_ms), self._next_s)
        self._wall, self._anchor_ms = wall, wall.offset_ms
        if not forward:
            return
        if self.records and end_s > self.start_s:
            if end_s < self._next_s:
                self.flags |= PARTIAL
            cuts.append(self._close(end_s, self._at_ms))
        elif self.records and wall_ms > self._next_s * 1000:
            cuts.append(self._close(self._next_s, self._at_ms))
        elif self.records:
            return
        self._resume(wall_ms, wall, cuts)
        self.base = self.base._replace(flags=self.flags)
