"""Power over the boot clock to exact registers.

Power is integrated by the trapezoid between consecutive good readings, in half microjoules: one
mW for one ms is 1 uJ, so the mean of two integers never leaves the integers. A register is the
floor of its running sum; the odd half is carried. Overflow: a register has 63 bits, 2.5 TWh.

>>> sums = [0, 0]
>>> integrate(sums, (2_000_000,), (2_000_001,), 40)
>>> registers_uj(sums)
(80000020, 0)
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from meterd.metering.board import clamp_estimated, measures_apparent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterd.metering.reading import BoardRules, Reading

CADENCE_WINDOW = 15  # readings; odd, so that a filled window has a middle
CADENCE_KNOWN = 3  # below this many the board's setting stands in for the measured cadence
GAP_CADENCES = 3  # a longer silence is a hole, and no energy is invented for it
DUPLICATE_PART = 4  # an identical line within a quarter of the cadence is the same line
FROZEN_LINES = 60  # identical lines in a row, with current flowing: a stuck board
CADENCE_OFF_PERCENT = 25  # from the setting: an alarm
MEASURED, ESTIMATED = 0, 1

ROW_GAP, ROW_ESTIMATED = 1, 2  # flags of a stored row


class Register(NamedTuple):
    """A count of energy since the meter was commissioned.

    Attributes:
        obis: The code's six bytes, A-B:C.D.E*F (IEC 62056-6-1).
        kind: `MEASURED` or `ESTIMATED` (fixed by the layout: V x I x pf of the settings).
    """

    obis: bytes
    kind: int

    @property
    def code(self) -> str:
        """The code as people write it, `1-0:1.8.0`."""
        return obis_code(self.obis)


def obis_code(obis: bytes) -> str:
    """Return six OBIS bytes as people write them, without the billing period."""
    return f"{obis[0]}-{obis[1]}:{obis[2]}.{obis[3]}.{obis[4]}"


def obis_bytes(channel: int, quantity: int) -> bytes:
    """Return the OBIS code of a total energy register, `1-channel:quantity.8.0*255`."""
    return bytes((1, channel, quantity, 8, 0, 255))


IMPORT, EXPORT, APPARENT = obis_bytes(0, 1), obis_bytes(0, 2), obis_bytes(0, 9)


def registers(rules: BoardRules) -> tuple[Register, ...]:
    """Return the registers that a board feeds, in the order of `integrate`'s sums.

    Import, export, apparent where every mains clamp's is known, then one for each circuit clamp.
    """
    used = [clamp for clamp in rules.clamps if clamp.role != "unused"]
    kinds = [ESTIMATED if guessed else MEASURED for guessed in clamp_estimated(rules)]
    mains = max(kind for clamp, kind in zip(used, kinds, strict=True) if clamp.role == "mains")
    result = [Register(IMPORT, mains), Register(EXPORT, mains)]
    if measures_apparent(rules):
        result.append(Register(APPARENT, MEASURED))
    circuits = [kind for clamp, kind in zip(used, kinds, strict=True) if clamp.role == "circuit"]
    return (
        *result,
        *(Register(obis_bytes(number, 1), kind) for number, kind in enumerate(circuits, start=1)),
    )


class Mapping(NamedTuple):
    """Which quantities of a row feed which register: import and export from the first, signed.

    Attributes:
        mains: Indices of the mains clamps among the used ones.
        circuits: Indices of the circuit clamps among the used ones.
        apparent: Whether apparent power has a register.
    """

    mains: tuple[int, ...]
    circuits: tuple[int, ...]
    apparent: bool


def mapping(roles: Sequence[str], *, apparent: bool) -> Mapping:
    """Return the mapping for used clamps of these roles."""
    return Mapping(
        tuple(index for index, role in enumerate(roles) if role == "mains"),
        tuple(index for index, role in enumerate(roles) if role == "circuit"),
        apparent,
    )


def quantities(powers_mw: Sequence[int], apparent_mva: int, of: Mapping) -> tuple[int, ...]:
    """Return what is integrated: net mains power (mW, signed), apparent (mVA), circuits (mW)."""
    mains, circuits, apparent = of
    net = powers_mw[mains[0]]
    if len(mains) > 1:
        net = sum(powers_mw[index] for index in mains)
    if not circuits:
        return (net, apparent_mva) if apparent else (net,)
    drawn = tuple(max(0, powers_mw[index]) for index in circuits)
    return (net, apparent_mva, *drawn) if apparent else (net, *drawn)


def integrate(sums: list[int], p0: Sequence[int], p1: Sequence[int], elapsed_ms: int) -> None:
    """Add the energy between two readings to `sums`, in half microjoules.

    Args:
        sums: Import, export, then one for each further quantity; changed in place, never lowered.
        p0: Quantities at the earlier reading, net mains power first.
        p1: The same at the later one.
        elapsed_ms: Boot clock between them, never negative.
    """
    net = (p0[0] + p1[0]) * elapsed_ms
    if net >= 0:
        sums[0] += net
    else:
        sums[1] -= net
    count = len(p0)
    if count > 1:
        sums[2] += (p0[1] + p1[1]) * elapsed_ms
        for index in range(2, count):
            sums[index + 1] += (p0[index] + p1[index]) * elapsed_ms


def between(p0: Sequence[int], p1: Sequence[int], part_ms: int, whole_ms: int) -> tuple[int, ...]:
    """Return the reading inserted at a boundary, `part_ms` of `whole_ms` after the earlier one."""
    return tuple(
        early + (late - early) * part_ms // whole_ms for early, late in zip(p0, p1, strict=True)
    )


def registers_uj(sums: Sequence[int]) -> tuple[int, ...]:
    """Return the registers in uJ: the floor of each sum."""
    return tuple(half // 2 for half in sums)


class Cadence:
    """The board's own beat: the median of the last time differences, measured.

    Lines read in one go carry one stamp; a difference of 0 is no beat and is left out.
    """

    __slots__ = ("_ordered", "_setting_2", "_window", "twice_ms")

    def __init__(self, polling_ms: int) -> None:
        """Begin with the board's setting, which stands in until three differences are known."""
        self._setting_2 = 2 * polling_ms
        self._window: deque[int] = deque()
        self._ordered: list[int] = []
        self.twice_ms = self._setting_2  # twice, because the median of an even count has a half

    @property
    def known(self) -> bool:
        """Whether enough lines have come to measure it."""
        return len(self._window) >= CADENCE_KNOWN

    def is_gap(self, elapsed_ms: int) -> bool:
        """Say whether a silence of `elapsed_ms` is a hole."""
        return 2 * elapsed_ms > GAP_CADENCES * self.twice_ms

    def is_repeat(self, elapsed_ms: int) -> bool:
        """Say whether an identical line after `elapsed_ms` is the same line twice."""
        return 2 * DUPLICATE_PART * elapsed_ms <= self.twice_ms

    def is_off(self) -> bool:
        """Say whether the measured beat is too far from the board's setting."""
        return self.known and (
            100 * abs(self.twice_ms - self._setting_2) > CADENCE_OFF_PERCENT * self._setting_2
        )

    def add(self, elapsed_ms: int) -> None:
        """Take in the difference between two good lines, gaps included."""
        if elapsed_ms == 0:
            return
        window, ordered = self._window, self._ordered
        if len(window) == CADENCE_WINDOW:
            oldest = window.popleft()
            window.append(elapsed_ms)
            if oldest == elapsed_ms:
                return
            del ordered[bisect_left(ordered, oldest)]
            insort(ordered, elapsed_ms)
            self.twice_ms = 2 * ordered[CADENCE_WINDOW // 2]
            return
        window.append(elapsed_ms)
        insort(ordered, elapsed_ms)
        count = len(ordered)
        if count >= CADENCE_KNOWN:
            self.twice_ms = ordered[(count - 1) // 2] + ordered[count // 2]


class Sieve:
    """Decides of each good line whether it is a duplicate, follows a gap, or repeats a stuck board.

    Attributes:
        duplicates: Lines dropped as duplicates since the start.
        cadence: The measured beat.
        frozen: The board repeats itself with current flowing.
    """

    __slots__ = ("_last_at_ms", "_last_line", "_same", "cadence", "duplicates", "frozen")

    def __init__(self, polling_ms: int) -> None:
        """Begin a run; nothing is known of the line before it."""
        self.cadence = Cadence(polling_ms)
        self.duplicates = 0
        self.frozen = False
        self._last_at_ms: int | None = None
        self._last_line = b""
        self._same = 0

    def admit(self, reading: Reading) -> int | None:
        """Return the flags of the reading's row, or None if it is a duplicate.

        `ROW_GAP` says that no energy is counted since the row before (always so for a run's
        first), `ROW_ESTIMATED` that the voltage adaptor is out.
        """
        at_ms, _, currents_ma, _, _, estimated, line = reading
        flags = ROW_ESTIMATED if estimated else 0
        last = self._last_at_ms
        if last is None:
            flags |= ROW_GAP
            self._same = 1
        else:
            elapsed = at_ms - last
            cadence = self.cadence
            if line == self._last_line:
                if cadence.is_repeat(elapsed):
                    self.duplicates += 1
                    return None
                self._same += 1
                self.frozen = self._same >= FROZEN_LINES and any(currents_ma)
            else:
                self._same = 1
                self.frozen = False
            if 2 * elapsed > GAP_CADENCES * cadence.twice_ms:
                flags |= ROW_GAP
            cadence.add(elapsed)
        self._last_at_ms = at_ms
        self._last_line = line
        return flags
