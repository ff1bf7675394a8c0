"""Decides whether wall time can place a row, and where: the rules of clocks that are set.

Energy never depends on it: rows that cannot be placed are held, and fed again once they can be.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from meterd.metering.interval import STEP_MS, Wall

STEP_LONG_MS = 86_400_000  # a forward step above a day is more likely an error than a correction
STEP_STANDS_MS = 600_000  # ... until it has stood synchronised for ten minutes
UNSYNCHRONISED_MS = 3_600_000  # after an hour without, wall time is used if it can be right
WALL_MS_MIN = 946_684_800_000  # 2000-01-01: an earlier wall clock is one that nobody has set
WALLS_MAX = 64  # changes of the clock kept in mind; an interval with more has no order to keep
BEHIND = "the clock is more than an interval behind the last block: nothing is cut"


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
            self.alarm = (
                "the clock stands before the year 2000: give it a network that tells the time, or "
                "a clock chip; intervals are cut once it is set"
            )
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
