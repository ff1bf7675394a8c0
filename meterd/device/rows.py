"""Reads rows of samples back from the card, a few thousand at a time.

An account of months without the time has millions of rows that wait for their intervals; they are
never all in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.ledger.row import Columns, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from meterd.ledger.row import Row
    from meterd.ledger.segment import SampleHeader
    from meterd.metering.interval import Wall

ROWS_READ = 4096  # some 130 kB of a card's file


class Rows:
    """The rows of one account, which must be durable where they are read."""

    def __init__(self, read: Callable[[int, int, int], bytes]) -> None:
        """Read with `read`, which returns bytes of a samples segment: (number, begin, end)."""
        self._read = read

    def stored(self, header: SampleHeader, first_row: int, rows: int) -> bytes:
        """Return rows as they are stored."""
        begin = len(header.stored()) + first_row * header.row_bytes
        return self._read(header.number, begin, begin + rows * header.row_bytes)

    def each(self, header: SampleHeader, first_row: int, rows: int) -> Iterator[Row]:
        """Yield rows with their boot clocks, which begin with the segment's."""
        at_ms, size, behind = header.base_ms, header.row_bytes, first_row + rows
        for at in range(0, first_row, ROWS_READ):
            before = self.stored(header, at, min(ROWS_READ, first_row - at))
            at_ms += sum(Columns.of(before, size).elapsed_ms)
        for at in range(first_row, behind, ROWS_READ):
            for row in read_rows(self.stored(header, at, min(ROWS_READ, behind - at)), size, at_ms):
                at_ms = row.at_ms
                yield row


def placed(rows: Iterable[Row], walls: Iterable[tuple[int, Wall]]) -> Iterator[tuple[Row, Wall]]:
    """Yield each row with where it lies in wall time.

    Args:
        rows: Of one run, in order.
        walls: (from which boot clock on, wall), in order; the first serves all rows before it too.
    """
    later = iter(walls)
    _, wall = next(later)
    following = next(later, None)
    for row in rows:
        while following is not None and row.at_ms >= following[0]:
            wall = following[1]
            following = next(later, None)
        yield row, wall
