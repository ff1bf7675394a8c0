from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.device import log as log_module
from meterd.device.log import Log
from meterd.ledger.audit import fingerprint_of
from meterd.ledger.event import Event
from meterd.ledger.row import LINK_BYTES, row_bytes, row_struct
from meterd.ledger.segment import STREAMS, SampleHeader, find_damaged_row, read_header, walk_frames
from meterd.ledger.stored import End

if TYPE_CHECKING:
    from meterd.device.card import Operation

STATE = Path("/account")
GENESIS = bytes(32)
PACK = row_struct(1).pack
EVENTS, SAMPLES, BLOCKS = (STATE / stream for stream in ("events", "samples", "blocks"))


class Kept:
    """A card in memory: what operations made of its files."""

    def __init__(self) -> None:
        self.files: dict[Path, bytes] = {}
        self.closed: set[Path] = set()

    def do(self, operations: list[Operation]) -> None:
        for kind, path, data in operations:
            if kind == "create":
                assert path not in self.files
                self.files[path] = data
            elif kind == "append":
                assert path not in self.closed, "nothing is appended to what was closed"
                self.files[path] += data
            elif kind == "close":
                self.closed.add(path)

    def rows(self, header: SampleHeader, first_row: int, count: int) -> bytes:
        begin = len(header.stored()) + first_row * header.row_bytes
        data = self.files[SAMPLES / f"{header.number:08d}.seg"]
        found = data[begin : begin + count * header.row_bytes]
        assert len(found) == count * header.row_bytes, "rows that are not on the card are not read"
        return found


def make_log(ends: dict[str, End] | None = None) -> Log:
    return Log(
        STATE,
        genesis=GENESIS,
        meter="kitchen-12",
        incarnation=1,
        draw_secret=lambda stream, number: sha256(f"{stream}{number}".encode()).digest(),
        ends=ends or dict.fromkeys(STREAMS, End()),
        events=0,
        open_rows=[],
    )


def begin_samples(log: Log, *, before: bytes = b"") -> None:
    log.begin_samples(
        parameters=bytes(32),
        boot_id=bytes(16),
        run=1,
        base_ms=0,
        sums=(0, 0),
        before=before,
        clamps=1,
    )


def add_row(log: Log, number: int) -> None:
    if not log.samples_open:
        begin_samples(log)
    log.add_row(PACK(5000, 0, 0, 0, 230_000, 1000 * number, 4))


def add_event(log: Log, kind: str = "alarm") -> None:
    log.add_event(Event(number=log.events + 1, boot_ms=0, wall_ms=0, kind=kind))


def shown(operations: list[Operation]) -> list[str]:
    """Return operations as `kind stream/number`."""
    return [
        f"{kind} {path.relative_to(STATE)}".removesuffix(".seg").replace("/0000000", "/")
        for kind, path, _ in operations
    ]


def test_events_come_before_samples_and_samples_before_blocks() -> None:
    log = make_log()
    log.add_block(b"block")
    add_row(log, 1)
    add_event(log)
    assert shown(log.take_operations()) == [
        "create events/1", "sync_folder events",
        "create samples/1", "sync_folder samples",
        "create blocks/1", "sync_folder blocks",
    ]  # fmt: skip
    log.add_block(b"block")
    add_event(log)
    add_row(log, 2)
    assert shown(log.take_operations()) == [
        "append events/1", "sync events/1",
        "append samples/1", "sync samples/1",
        "append blocks/1", "sync blocks/1",
    ]  # fmt: skip


def test_nothing_is_done_where_nothing_was_appended() -> None:
    log = make_log()
    assert log.take_operations() == []
    add_event(log)
    assert log.take_operations() != []
    assert log.take_operations() == []


def test_many_records_are_one_write() -> None:
    log = make_log()
    for number in range(50):
        add_row(log, number)
    ((kind, _, data), folder) = log.take_operations()
    assert (kind, folder.kind) == ("create", "sync_folder")
    header, begin = read_header(data, "samples")
    assert isinstance(header, SampleHeader)
    assert len(data) == begin + 50 * row_bytes(1)
    assert find_damaged_row(data, header, len(data)) == (len(data), None)


def test_a_segment_is_finished_before_the_next_one_is_made() -> None:
    log, card = make_log(), Kept()
    add_row(log, 1)
    card.do(log.take_operations())
    add_row(log, 2)
    end = log.finish_samples()
    assert log.finish_samples() == end, "it is finished once"
    add_row(log, 3)
    operations = log.take_operations()
    assert shown(operations) == [
        "append samples/1", "sync samples/1", "close samples/1",
        "create samples/2", "sync_folder samples",
    ]  # fmt: skip
    card.do(operations)
    header, _ = read_header(card.files[SAMPLES / "00000002.seg"], "samples")
    first = card.files[SAMPLES / "00000001.seg"]
    assert (header.previous_bytes, header.previous_digest) == (end.counted_bytes, end.digest)
    assert end.counted_bytes == len(first)
    assert end.digest[:LINK_BYTES] == first[-LINK_BYTES:]


def test_the_next_segment_names_the_one_before_in_each_stream() -> None:
    log, card = make_log(), Kept()
    add_event(log)
    log.add_block(b"1")
    card.do(log.take_operations())
    ends = log.finish_frames()
    assert {name: log.end(name) for name in ends} == ends
    add_event(log)
    log.add_block(b"2")
    card.do(log.take_operations())
    for folder, name in ((EVENTS, "events"), (BLOCKS, "blocks")):
        data = card.files[folder / "00000002.seg"]
        header, _ = read_header(data, name)
        assert header.previous_digest == ends[name].digest
        assert header.previous_bytes == len(card.files[folder / "00000001.seg"])
        assert len(list(walk_frames(data, header))) == 1
    assert card.closed == {EVENTS / "00000001.seg", BLOCKS / "00000001.seg"}


def test_a_log_goes_on_behind_what_recovery_found_in_segments_of_its_own() -> None:
    end = End(7, b"\7" * 32, 1234)
    log = make_log(dict.fromkeys(STREAMS, end))
    assert log.events_digest == end.digest
    add_event(log)
    add_row(log, 1)
    log.add_block(b"1")
    for kind, path, data in log.take_operations():
        if kind == "create":
            header, _ = read_header(data, path.parent.name)
            assert (header.number, header.previous_digest, header.previous_bytes) == (8, *end[1:])
            assert path.name == "00000008.seg"


def test_no_two_segments_have_a_secret_in_common() -> None:
    log = make_log()
    secrets = set()
    for _ in range(2):
        add_event(log)
        log.add_block(b"1")
        add_row(log, 1)
        for kind, path, data in log.take_operations():
            if kind == "create":
                secrets.add(read_header(data, path.parent.name)[0].secret)
        log.finish_frames()
        log.finish_samples()
    assert len(secrets) == 6


def test_a_segment_of_samples_is_full_at_some_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "SAMPLES_BYTES_MAX", 500)
    log = make_log()
    for number in range(4):
        add_row(log, number)
        assert not log.samples_full
    while not log.samples_full:
        add_row(log, 9)
    assert log.end("samples").counted_bytes < 500 + row_bytes(1)
    log.finish_samples()
    add_row(log, 10)
    assert not log.samples_full


def test_events_are_numbered_and_digested_as_they_come() -> None:
    log, card = make_log(), Kept()
    seen = []
    for _ in range(3):
        add_event(log)
        seen.append(log.events_digest)
    card.do(log.take_operations())
    data = card.files[EVENTS / "00000001.seg"]
    walk = walk_frames(data, read_header(data, "events")[0])
    assert [frame.digest for frame in walk] == seen
    assert log.events == 3


# --- fingerprints ------------------------------------------------------------------------------


def test_rows_in_memory_are_taken_without_reading_them() -> None:
    log, card = make_log(), Kept()
    for number in range(3):
        add_row(log, number)
    header = log.open_rows[-1].header
    assert (log.whole, log.open_records) == (True, 3)
    taken = log.take_rows(3, card.rows)
    add_row(log, 3)
    again = log.take_rows(1, card.rows)
    card.do(log.take_operations())
    assert taken == fingerprint_of([(header, 0, card.rows(header, 0, 3))])
    assert again == fingerprint_of([(header, 3, card.rows(header, 3, 1))])
    assert log.take_rows(0, card.rows) == sha256().digest()


def test_rows_that_are_not_there_are_not_taken() -> None:
    log, card = make_log(), Kept()
    add_row(log, 1)
    with pytest.raises(ValueError, match="expected 2 open rows, found 1"):
        log.take_rows(2, card.rows)
    assert log.open_records == 1


@given(
    plan=st.lists(
        st.tuples(
            st.integers(0, 5),  # rows
            st.booleans(),  # a segment ends
            st.integers(0, 12),  # rows to take, at most as many as are open
            st.booleans(),  # as feeding again does: whole afterwards
        ),
        max_size=12,
    )
)
def test_fingerprints_cover_the_rows_in_order_however_they_are_taken(
    plan: list[tuple[int, bool, int, bool]],
) -> None:
    log, card = make_log(), Kept()
    rows: list[tuple[SampleHeader, int]] = []
    taken = number = 0
    for count, ends, take, whole in plan:
        for _ in range(count):
            number += 1
            add_row(log, number)
            part = log.open_rows[-1]
            rows.append((part.header, part.first_row + part.rows - 1))
        if ends:
            log.finish_samples()
        card.do(log.take_operations())
        records = min(take, log.open_records)
        fingerprint = log.take_rows(records, card.rows)
        parts: list[tuple[SampleHeader, int, bytes]] = []
        for header, row in rows[taken : taken + records]:
            stored = card.rows(header, row, 1)
            if parts and parts[-1][0] is header:
                parts[-1] = (header, parts[-1][1], parts[-1][2] + stored)
            else:
                parts.append((header, row, stored))
        assert fingerprint == fingerprint_of(parts)
        taken += records
        assert log.open_records == len(rows) - taken
        if whole and not log.whole:
            log.reread(card.rows)
        assert log.whole or log.open_records
