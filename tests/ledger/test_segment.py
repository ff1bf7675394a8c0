from __future__ import annotations

import struct
import sys
from dataclasses import replace
from hashlib import sha256

import pytest

from meterd.errors import EncodingError
from meterd.ledger.encoding import decode, encode
from meterd.ledger.row import (
    LINK_BYTES,
    ROW_CLAMP,
    ROW_FIXED,
    Columns,
    read_rows,
    row_bytes,
    row_struct,
)
from meterd.ledger.segment import (
    FRAME_BYTES_MAX,
    FrameHeader,
    Header,
    Linker,
    SampleHeader,
    find_damaged_row,
    read_header,
    stored_header,
    walk_frames,
)
from tests.ledger.examples import changed

EVENTS = FrameHeader(
    stream="events",
    genesis=bytes(32),
    meter="kitchen-12",
    incarnation=1,
    number=2,
    previous_digest=bytes(range(32)),
    previous_bytes=900,
    secret=bytes(range(1, 33)),
)
SAMPLES = SampleHeader(
    genesis=bytes(32),
    meter="kitchen-12",
    incarnation=1,
    number=1,
    previous_digest=bytes(32),
    previous_bytes=0,
    parameters=bytes(range(32)),
    boot_id=bytes(16),
    run=1,
    base_ms=1000,
    sums=(7, 8, 9),
    before=b"",
    row_bytes=row_bytes(2),
    secret=bytes(range(2, 34)),
)
BODIES = [b"", b"started", bytes(300)]
ROWS = [
    row_struct(2).pack(elapsed_ms, flags, 0, 5, 240_000, power_mw, 900, -3, 4)
    for elapsed_ms, flags, power_mw in ((0, 1, 2_000_000), (5000, 0, -7), (4990, 2, 0))
]


def frames() -> bytes:
    linker = Linker(EVENTS.encode())
    return EVENTS.stored() + b"".join(map(linker.frame, BODIES))


def rows() -> bytes:
    linker = Linker(SAMPLES.encode())
    return SAMPLES.stored() + b"".join(map(linker.add, ROWS))


# --- headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "stream"),
    [
        (EVENTS, "events"),
        (replace(EVENTS, stream="blocks"), "blocks"),
        (SAMPLES, "samples"),
        (replace(SAMPLES, before=ROWS[0]), "samples"),
    ],
)
def test_a_header_is_read_as_it_was_written(header: Header, stream: str) -> None:
    stored = header.stored()
    assert read_header(stored + b"\xff" * 9, stream) == (header, len(stored))


@pytest.mark.parametrize("header", [EVENTS, SAMPLES], ids=["events", "samples"])
def test_a_header_is_refused_with_any_byte_changed_or_cut(header: Header) -> None:
    stored = header.stored()
    for at in range(len(stored)):
        with pytest.raises(EncodingError):
            read_header(stored[:at], header.stream)
        with pytest.raises(EncodingError):
            read_header(stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :], header.stream)


@pytest.mark.parametrize(
    ("header", "place", "new", "message"),
    [
        pytest.param(EVENTS, (0,), "meterd/blocks/v1", "not the header", id="of another stream"),
        pytest.param(EVENTS, (0,), "meterd/events/v2", "not the header", id="of a new version"),
        pytest.param(EVENTS, (4,), "2", "misshapen", id="whose number is text"),
        pytest.param(EVENTS, (5,), [bytes(32)], "misshapen", id="with half an end"),
        pytest.param(EVENTS, (6,), 0, "misshapen", id="whose secret is a number"),
        pytest.param(SAMPLES, (0,), "meterd/events/v1", "not the header", id="as events"),
        pytest.param(SAMPLES, (5,), [bytes(32), b""], "misshapen", id="of half an end"),
        pytest.param(SAMPLES, (10,), ["7"], "misshapen", id="whose sums are text"),
        pytest.param(SAMPLES, (11,), bytes(8), "row before", id="with half a row before"),
        pytest.param(SAMPLES, (12,), 24, "no row has 24 bytes", id="of rows without a clamp"),
        pytest.param(SAMPLES, (12,), 41, "no row has 41 bytes", id="of rows with an odd byte"),
        pytest.param(SAMPLES, (12,), 0, "no row has 0 bytes", id="of rows without a byte"),
    ],
)
def test_a_header_with_a_valid_check_is_refused(
    header: Header, place: tuple[int, ...], new: object, message: str
) -> None:
    with pytest.raises(EncodingError, match=message):
        read_header(
            stored_header(encode(changed(decode(header.encode()), place, new))), header.stream
        )


@pytest.mark.parametrize("value", [[], 7, "meterd/events/v1"], ids=["empty", "number", "text"])
def test_what_is_no_array_of_a_header_is_refused(value: list[int] | int | str) -> None:
    with pytest.raises(EncodingError, match="not the header of a segment of events"):
        read_header(stored_header(encode(value)), "events")


def test_a_seed_depends_on_all_but_names_the_secret_only_through_the_salt() -> None:
    seed = SAMPLES.seed(0)
    others = [
        replace(SAMPLES, secret=bytes(32)).seed(0),
        replace(SAMPLES, base_ms=1001).seed(0),
        replace(SAMPLES, genesis=bytes(range(32))).seed(0),
        SAMPLES.seed(1),
    ]
    assert len({seed, *others}) == 5
    assert SAMPLES.secret not in SAMPLES.encode(secret=False)
    assert (
        seed
        == sha256(b"meterd/interval/v1" + SAMPLES.encode(secret=False) + SAMPLES.salt(0)).digest()
    )


# --- frames -----------------------------------------------------------------------------------


def test_frames_are_read_as_they_were_written() -> None:
    data = frames()
    walk = walk_frames(data, EVENTS)
    found = list(walk)
    assert [frame.body for frame in found] == BODIES
    assert (walk.end, walk.damage, walk.digest) == (len(data), None, found[-1].digest)
    assert [frame.offset for frame in found[1:]] == [frame.end for frame in found[:-1]]


def test_a_link_is_over_the_seed_and_all_stored_bytes_before_it() -> None:
    data = frames()
    begin = len(EVENTS.stored())
    last = data[begin : len(data) - LINK_BYTES]
    seed = sha256(EVENTS.encode()).digest()
    assert data[-LINK_BYTES:] == sha256(seed + last).digest()[:LINK_BYTES]


def test_frames_torn_at_any_byte_are_read_as_far_as_they_are_whole() -> None:
    data = frames()
    ends = [frame.end for frame in walk_frames(data, EVENTS)]
    begin = len(EVENTS.stored())
    for size in range(begin, len(data)):
        for torn in (walk_frames(data[:size], EVENTS), walk_frames(data, EVENTS, limit=size)):
            whole = [end for end in ends if end <= size]
            assert len(list(torn)) == len(whole)
            assert torn.end == max(whole, default=begin)
            assert (torn.damage is None) == (torn.end == size)
            if torn.damage:
                assert torn.damage == (torn.end, "a record is cut off or its length is damaged")


def test_a_frame_longer_than_a_frame_may_be_is_damage_and_is_never_written() -> None:
    linker = Linker(EVENTS.encode())
    with pytest.raises(EncodingError, match="expected at most 16384 bytes, got 16385"):
        linker.frame(bytes(FRAME_BYTES_MAX + 1))
    data = EVENTS.stored() + (FRAME_BYTES_MAX + 1).to_bytes(4, "big") + bytes(FRAME_BYTES_MAX + 9)
    walk = walk_frames(data, EVENTS)
    assert (list(walk), walk.damage) == (
        [],
        (len(EVENTS.stored()), "a record is cut off or its length is damaged"),
    )


# --- rows -------------------------------------------------------------------------------------


def test_rows_are_read_as_they_were_written() -> None:
    stored = rows()[len(SAMPLES.stored()) :]
    found = list(read_rows(stored, SAMPLES.row_bytes, SAMPLES.base_ms))
    assert [row.at_ms for row in found] == [1000, 6000, 10_990]
    assert [row.flags for row in found] == [1, 0, 2]
    assert [row.powers_mw for row in found] == [(2_000_000, -3), (-7, -3), (0, -3)]
    assert found[0].currents_ma == (900, 4)
    assert (found[0].apparent_mva, found[0].voltage_mv) == (5, 240_000)
    assert row_bytes(2) == ROW_FIXED.size + 2 * ROW_CLAMP.size + LINK_BYTES


@pytest.mark.parametrize("order", ["little", "big"])
def test_columns_are_the_same_on_any_machine(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    stored = rows()[len(SAMPLES.stored()) :]
    if order != sys.byteorder:  # what such a machine's words would be, seen by this one
        count = len(stored) // 4
        stored = struct.pack(f">{count}I", *struct.unpack(f"<{count}I", stored))
    monkeypatch.setattr(sys, "byteorder", order)
    table = Columns.of(stored, SAMPLES.row_bytes)
    assert list(table.elapsed_ms) == [0, 5000, 4990]
    assert list(table.flags) == [1, 0, 2]
    assert list(table.apparent_mva) == [5, 5, 5]
    assert [list(powers_mw) for powers_mw in table.powers_mw] == [[2_000_000, -7, 0], [-3, -3, -3]]


def test_a_part_of_columns_is_some_of_their_rows() -> None:
    table = Columns.of(rows()[len(SAMPLES.stored()) :], SAMPLES.row_bytes)
    part = table.part(1, 1)
    assert (part.elapsed_ms, part.flags, part.flagged) == ([5000], [0], False)
    assert part.powers_mw == ([-7], [-3])
    assert table.part(1, 2).part(1, 1).flags == [2]
    assert table.flagged


@pytest.mark.parametrize(
    ("powers", "expected"),
    [
        ([(0, 0), (5, 2**31 - 1)], 1),
        ([(-1, 0)], 0),
        ([(-1, -(2**31)), (-2, -1)], -1),
        ([(-1, -1), (-1, 0)], 0),
        ([(-1, -1), (1, 1)], 0),
    ],
)
def test_columns_know_their_sign(powers: list[tuple[int, int]], expected: int) -> None:
    pack = row_struct(2).pack
    stored = b"".join(
        pack(5000, 0, 0, 0, 0, one, 2**31, other, 2**31) + bytes(LINK_BYTES)
        for one, other in powers
    )
    assert Columns.of(stored, row_bytes(2)).sign((0, 1)) == expected


@pytest.mark.parametrize(
    ("elapsed_ms", "expected"),
    [
        ([2000, 1990, 2013], (1792, 2047)),
        ([2000, 2060], (2000, 2060)),
        ([2000, 2000 + 65_536], (2000, 67_536)),
        ([2000, 2000 + 2**24], (2000, 2000 + 2**24)),
        ([2000, 0], (0, 2000)),
        ([200, 100], (100, 200)),
    ],
)
def test_columns_know_bounds_of_their_beat(
    elapsed_ms: list[int], expected: tuple[int, int]
) -> None:
    pack = row_struct(1).pack
    stored = b"".join(pack(ms, 0, 0, 0, 0, 0, 0) + bytes(LINK_BYTES) for ms in elapsed_ms)
    assert Columns.of(stored, row_bytes(1)).elapsed_bounds_ms == expected


def test_rows_torn_or_damaged_at_any_byte_are_found() -> None:
    data = rows()
    begin, size = len(SAMPLES.stored()), SAMPLES.row_bytes
    assert find_damaged_row(data, SAMPLES, len(data)) == (len(data), None)
    for at in range(begin, len(data)):
        row = begin + (at - begin) // size * size
        torn = (row, "a row is cut off") if at != row else None
        assert find_damaged_row(data[:at], SAMPLES, at) == (row, torn)
        damaged = data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :]
        assert find_damaged_row(damaged, SAMPLES, len(data)) == (
            row,
            (row, "a row does not match its link"),
        )
