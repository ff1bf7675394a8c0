"""One sample as it is stored, and many of them by column.

A row is little-endian: elapsed ms, flags, apparent power, voltage; power and current of each clamp;
and the link behind it.
"""

from __future__ import annotations

import sys
from array import array
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LINK_BYTES = 8
ROW_FIXED = Struct("<IHHII")  # elapsed ms, flags, 0, apparent mVA, voltage mV
ROW_CLAMP = Struct("<iI")  # power mW, current mA
_POWER_TOP = 3  # of a clamp's bytes, the one that has its power's sign
_NOT_NEGATIVE = bytes(range(128))  # ... and what it is then
ELAPSED_MS_MAX = 2**32 - 1


def row_bytes(clamps: int) -> int:
    """Return the size of a row with its link, for so many used clamps."""
    return ROW_FIXED.size + clamps * ROW_CLAMP.size + LINK_BYTES


def row_struct(clamps: int) -> Struct:
    """Return the packing of a row without its link: one `pack` for each sample."""
    return Struct(ROW_FIXED.format + clamps * ROW_CLAMP.format[1:])


class Row(NamedTuple):
    """One stored sample.

    Attributes:
        at_ms: Boot clock.
        flags: `ROW_GAP`, `ROW_ESTIMATED`.
        apparent_mva: Apparent power of the mains, 0 where unknown.
        voltage_mv: RMS voltage, 0 where unknown.
        powers_mw: Active power of each used clamp.
        currents_ma: RMS current of each used clamp.
    """

    at_ms: int
    flags: int
    apparent_mva: int
    voltage_mv: int
    powers_mw: tuple[int, ...]
    currents_ma: tuple[int, ...]


def read_row(body: bytes, base_ms: int) -> Row:
    """Return the sample that `body`, a row without its link, stores after one at `base_ms`."""
    elapsed_ms, flags, _, apparent_mva, voltage_mv = ROW_FIXED.unpack_from(body)
    clamps = list(ROW_CLAMP.iter_unpack(body[ROW_FIXED.size :]))
    return Row(
        base_ms + elapsed_ms,
        flags,
        apparent_mva,
        voltage_mv,
        tuple(clamp[0] for clamp in clamps),
        tuple(clamp[1] for clamp in clamps),
    )


def read_rows(rows: bytes, size: int, base_ms: int) -> Iterator[Row]:
    """Yield the samples in `rows`, whole rows of `size` bytes as stored."""
    at_ms = base_ms
    for at in range(0, len(rows), size):
        row = read_row(rows[at : at + size - LINK_BYTES], at_ms)
        at_ms = row.at_ms
        yield row


class Columns(NamedTuple):
    """Rows by column: an audit works at C speed on whole columns, each taken out when asked for.

    Attributes:
        data: Whole rows as stored (little-endian) are in it.
        size: Bytes of a row.
        unsigned: Rows as 32-bit words of this machine.
        signed: The same, signed.
        origin: Byte of `data` at which these words begin.
        begin: Byte of the first row to look at.
        end: Byte behind the last.
    """

    data: bytes
    size: int
    unsigned: memoryview
    signed: memoryview
    origin: int
    begin: int
    end: int

    @classmethod
    def of(cls, data: bytes, size: int, begin: int = 0, end: int | None = None) -> Columns:
        """Look at the rows in `data` from byte `begin` to `end`; nothing is copied."""
        end = len(data) if end is None else end
        words = memoryview(data)[begin:end]
        if sys.byteorder == "big":
            swapped = array("I")
            swapped.frombytes(words)
            swapped.byteswap()
            words = memoryview(swapped).cast("B")
        return cls(data, size, words.cast("I"), words.cast("i"), begin, begin, end)

    def part(self, first: int, count: int) -> Columns:
        """Look at `count` of these rows, from row `first` on; nothing is copied."""
        begin = self.begin + first * self.size
        return self._replace(begin=begin, end=begin + count * self.size)

    def _column(self, words: memoryview, offset: int) -> list[int]:
        first, behind = self.begin - self.origin + offset, self.end - self.origin
        return words[first // 4 : behind // 4 : self.size // 4].tolist()

    def _bytes(self, offset: int) -> bytes:
        return self.data[self.begin + offset : self.end : self.size]

    @property
    def elapsed_ms(self) -> list[int]:
        """Boot clock since the row before."""
        return self._column(self.unsigned, 0)

    @property
    def elapsed_bounds_ms(self) -> tuple[int, int]:
        """What no difference in `elapsed_ms` is below, and what none is above.

        Exact only where they differ much: a steady beat shows in the second byte alone.
        """
        second = self._bytes(1)
        beat, count = second[0], len(second)
        higher = self._bytes(2).count(0) + self._bytes(3).count(0)
        if beat and second.count(beat) == count and higher == 2 * count:
            return beat << 8, beat << 8 | 255
        elapsed = self.elapsed_ms
        return min(elapsed), max(elapsed)

    @property
    def flagged(self) -> bool:
        """Whether any row has a flag."""
        low, high = self._bytes(4), self._bytes(5)
        return low.count(0) + high.count(0) != 2 * len(low)

    @property
    def flags(self) -> list[int]:
        """Row flags."""
        return self._column(self.unsigned, 4)

    @property
    def apparent_mva(self) -> list[int]:
        """Apparent power of the mains."""
        return self._column(self.unsigned, 8)

    @property
    def powers_mw(self) -> tuple[list[int], ...]:
        """Active power, a list for each used clamp."""
        offsets = range(ROW_FIXED.size, self.size - LINK_BYTES, ROW_CLAMP.size)
        return tuple(self._column(self.signed, offset) for offset in offsets)

    def sign(self, clamps: Iterable[int]) -> int:
        """Return 1 if no power of these clamps is negative, -1 if all are, else 0."""
        first = ROW_FIXED.size + _POWER_TOP
        tops = [self._bytes(first + clamp * ROW_CLAMP.size) for clamp in clamps]
        negative = [top.translate(None, _NOT_NEGATIVE) for top in tops]
        if not any(negative):
            return 1
        return -1 if sum(map(len, negative)) == sum(map(len, tops)) else 0
