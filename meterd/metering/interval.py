"""Wall-clock intervals cut from energy that the boot clock integrates.

Two clocks: CLOCK_BOOTTIME integrates and is never set back; wall time only says where a boundary
lies. `Placement` decides whether wall time can be used; `Cutter` integrates every row and, where
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

from collections import deque
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
STEP_LONG_MS = 86_400_000  # a forward step above a day is more likely an error than a correction
STEP_STANDS_MS = 600_000  # ... until it has stood synchronised for ten minutes
UNSYNCHRONISED_MS = 3_600_000  # after an hour without, wall time is used if it can be right
WALL_MS_MIN = 946_684_800_000  # 2000-01-01: an earlier wall clock is one that nobody has set
WALLS_MAX = 64  # changes of the clock kept in mind; an interval with more has no order to keep
BEHIND = "the clock is more than an interval behind the last block: nothing is cut"


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

    def __init__(self, *, interval_s: int, quantities: int, base: Base | None = None) -> None:
        """Go on from `base`; without one, begin an account of so many quantities."""
        self._interval_s = interval_s
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

    def _open_at(self, start_s: int | None) -> None:
        """Let the open stretch begin at `start_s`; its interval ends at the next boundary."""
        self.start_s: int | None = start_s
        self._next_s = ((start_s or 0) // self._interval_s + 1) * self._interval_s
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
        boundary_s = wall_ms // 1000 // self._interval_s * self._interval_s
        pending = self._unplaced and self.records
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
        if pending:
            self._close_unplaced(boundary_s, wall_ms, cuts)
        elif boundary_s > self.end_s:
            self.flags = self.flags & STEPPED | GAP
            self._worsen(wall)
            cuts.append(self._close(boundary_s, 0))
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


class Decision(NamedTuple):
    """What `Placement` says of one stamp.

    Attributes:
        wall: Where to place this row; None to hold it.
        again: Rows since the last cut must be fed anew: (from_ms, wall) pairs in order, each in
            force from that boot clock on.
        event: (kind, details) to record, or None.
    """

    wall: Wall | None
    again: tuple[tuple[int, Wall], ...] = ()
    event: tuple[str, tuple[tuple[str, str | int], ...]] | None = None


CLOCK_EVENTS = ("clock_set", "clock_stepped", "clock_went_back")  # each tells where a run lies


def clock_details(wall: Wall, boot_ms: int) -> tuple[tuple[str, str | int], ...]:
    """Return the details of an event that tells where the boot clock lies in wall time."""
    return (
        ("boot_ms", boot_ms),
        ("wall_ms", boot_ms + wall.offset_ms),
        ("status", wall.status),
        ("error_ms", wall.error_ms),
    )


class Placement:
    """Decides whether wall time can place a row. One for each run.

    Attributes:
        wall: What is in force; None until wall time could be used.
        walls: What has been in force, in order: (from which boot clock on, wall), the first for
            all rows before it too. No more than `WALLS_MAX`, the last.
        alarm: Why nothing is cut, or an empty text.
    """

    def __init__(self, *, interval_s: int, build_ms: int) -> None:
        """Begin a run; `build_ms` is the date of the software, which wall time cannot precede."""
        self._interval_ms = interval_s * 1000
        self._build_ms = build_ms
        self.wall: Wall | None = None
        self.walls: deque[tuple[int, Wall]] = deque(maxlen=WALLS_MAX)
        self.alarm = ""
        self._held: Wall | None = None
        self._held_from_ms = 0
        self._stands_from_ms: int | None = None
        self._rows = 0
        self._same: Decision | None = None  # the last answer, while nothing changes

    @property
    def held(self) -> bool:
        """Whether rows wait for a long step of the clock to prove itself."""
        return self._held is not None

    def decide(
        self, boot_ms: int, wall_ms: int, status: str, error_ms: int, last_end_s: int | None
    ) -> Decision:
        """Return what to do with a row stamped so.

        Args:
            boot_ms: Boot clock of the row.
            wall_ms: Wall clock of the row.
            status: S or I where the clock can be used, R where it cannot yet.
            error_ms: The kernel's estimate of its error.
            last_end_s: End of the account's last block, or None.
        """
        offset_ms = wall_ms - boot_ms
        self._rows += 1
        same = self._same
        if same is not None and same.wall == (offset_ms, status, error_ms):
            return same
        if self.wall is None:
            return self._first(boot_ms, Wall(offset_ms, status, error_ms), last_end_s)
        wall = Wall(offset_ms, "S" if status == "S" else "I", error_ms)
        ahead_ms = offset_ms - self.wall.offset_ms
        if self._held is None:
            if ahead_ms > STEP_LONG_MS:
                self._same = None
                self._held, self._held_from_ms = wall, boot_ms
                self._stands_from_ms = boot_ms if status == "S" else None
                self.alarm = "wall time is a day or more ahead: waiting to see whether it stays"
                return Decision(None, event=("clock_held", (("ahead_ms", ahead_ms),)))
            return self._follow(boot_ms, wall, ahead_ms, last_end_s)
        return self._held_on(boot_ms, wall, status, ahead_ms)

    def _first(self, boot_ms: int, wall: Wall, last_end_s: int | None) -> Decision:
        wall_ms = boot_ms + wall.offset_ms
        if wall.status == "R":
            late = boot_ms >= UNSYNCHRONISED_MS
            if not late or wall_ms < self._build_ms or wall_ms <= (last_end_s or 0) * 1000:
                self.alarm = "the clock is not set: metering, and cutting intervals once it is"
                return Decision(None)
            wall = wall._replace(status="I")
        elif wall_ms < WALL_MS_MIN:
            self.alarm = "the clock stands before the year 2000: cutting intervals once it is set"
            return Decision(None)
        if last_end_s is not None and wall_ms < last_end_s * 1000 - self._interval_ms:
            self.alarm = BEHIND
            return Decision(None)
        self.alarm = ""
        self.wall = wall
        again = ((0, wall._replace(status="I")),) if self._rows > 1 else ()
        self.walls.extend((*again, (boot_ms, wall)))
        return Decision(wall, again, self._event("clock_set", wall, boot_ms))

    def _follow(self, boot_ms: int, wall: Wall, ahead_ms: int, last_end_s: int | None) -> Decision:
        assert self.wall is not None  # noqa: S101 - called where placed
        last_ms = (last_end_s or 0) * 1000
        behind = boot_ms + wall.offset_ms < last_ms - self._interval_ms
        self.alarm = BEHIND if behind else ""
        stepped = abs(ahead_ms) > STEP_MS
        if stepped or wall.status != self.walls[-1][1].status:
            self.walls.append((boot_ms, wall))
        if not stepped:
            decision = Decision(wall)
            self._same = None if behind else decision
            return decision
        self.wall = wall
        self._same = None
        return Decision(wall, event=self._event("clock_stepped", wall, boot_ms, ahead_ms))

    def _held_on(self, boot_ms: int, wall: Wall, status: str, ahead_ms: int) -> Decision:
        assert self.wall is not None  # noqa: S101 - called where held
        assert self._held is not None  # noqa: S101
        if ahead_ms <= STEP_LONG_MS:
            again = tuple(self.walls)
            self._held, self.alarm = None, ""
            if abs(ahead_ms) > STEP_MS:
                self.wall = wall
                self.walls.append((boot_ms, wall))
            event = self._event("clock_went_back", wall, boot_ms, ahead_ms)
            return Decision(wall, again, event)
        if abs(wall.offset_ms - self._held.offset_ms) > STEP_MS:
            self._held = wall
            self._stands_from_ms = None
        if status != "S":
            self._stands_from_ms = None
            self._held = self._held._replace(status="I")
        elif self._stands_from_ms is None:
            self._stands_from_ms = boot_ms
        elif boot_ms - self._stands_from_ms >= STEP_STANDS_MS:
            self.walls.append((self._held_from_ms, self._held))
            self._held, self.alarm = None, ""
            self.wall = wall
            event = self._event("clock_stepped", wall, boot_ms, ahead_ms)
            return Decision(wall, tuple(self.walls), event)
        return Decision(None)

    @staticmethod
    def _event(
        kind: str, wall: Wall, boot_ms: int, by_ms: int = 0
    ) -> tuple[str, tuple[tuple[str, str | int], ...]]:
        """Return an event that places a run: recovery reads it."""
        step = (("by_ms", str(by_ms)),) if by_ms else ()
        return kind, (*clock_details(wall, boot_ms), *step)
