from __future__ import annotations

import pytest

from meterd.device import rows as rows_module
from meterd.device.rows import Rows, placed
from meterd.ledger.row import Row, row_bytes, row_struct
from meterd.ledger.segment import Linker, SampleHeader
from meterd.metering.interval import Wall

HEADER = SampleHeader(
    genesis=bytes(32),
    meter="kitchen-12",
    incarnation=1,
    number=3,
    previous_digest=bytes(32),
    previous_bytes=0,
    parameters=bytes(32),
    boot_id=bytes(16),
    run=1,
    base_ms=700,
    sums=(0, 0),
    before=b"",
    row_bytes=row_bytes(1),
    secret=bytes(32),
)


def stored(count: int) -> bytes:
    linker, pack = Linker(HEADER.encode()), row_struct(1).pack
    rows = [linker.add(pack(number, 0, 0, 0, 0, -number, 0)) for number in range(1, count + 1)]
    return HEADER.stored() + b"".join(rows)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_rows_come_with_their_boot_clocks_however_they_are_read(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "ROWS_READ", chunk)
    data = stored(7)
    longest = 0

    def read(number: int, begin: int, end: int) -> bytes:
        nonlocal longest
        assert number == 3
        longest = max(longest, end - begin)
        return data[begin:end]

    rows = Rows(read)
    whole = [(row.at_ms, row.powers_mw) for row in rows.each(HEADER, 0, 7)]
    assert whole == [(700 + n * (n + 1) // 2, (-n,)) for n in range(1, 8)]
    for first in range(8):
        assert [(r.at_ms, r.powers_mw) for r in rows.each(HEADER, first, 7 - first)] == whole[
            first:
        ]
    assert longest <= chunk * HEADER.row_bytes
    assert rows.stored(HEADER, 2, 3) == data[-5 * HEADER.row_bytes :][: 3 * HEADER.row_bytes]


def row(at_ms: int) -> Row:
    return Row(at_ms, 0, 0, 0, (0,), (0,))


def test_each_row_is_placed_by_the_last_word_before_it() -> None:
    first, second, third = (Wall(offset_ms, "S", 0) for offset_ms in (1, 2, 3))
    rows = [row(at_ms) for at_ms in (5, 10, 19, 20, 40)]
    walls = [(10, first), (20, second), (20, third)]
    assert [wall for _, wall in placed(rows, walls)] == [first, first, first, third, third]
    assert [wall for _, wall in placed(rows, [(0, first)])] == [first] * 5
