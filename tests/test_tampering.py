"""What is changed in a stored account is found, at its interval; what cannot be found is shown."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from meterd.ledger.segment import STREAMS
from meterd.ledger.verdict import Known, Verdict
from tests.ledger.memory import (
    DAY_ONE,
    DAY_TWO,
    Stored,
    Street,
    adaptor_account,
    full_account,
    held_account,
    judge_as_read,
    lossy_account,
    open_account,
    phases_account,
    recalibrated_account,
    remembering,
    sealed_account,
    unplaced_account,
)
from tests.tampering_kit import NOTHING, assert_found, foreign, sealed, uncounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["foreign", "sealed", "uncounted"]


@pytest.fixture(scope="module", autouse=True)
def _remembering() -> Iterator[None]:
    with remembering():
        yield


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """An account with rows and events that no block seals yet."""
    return open_account(tmp_path_factory.mktemp("waiting") / "account")


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The same meter under the same genesis, in a life where more was used."""
    return sealed_account(tmp_path_factory.mktemp("sibling") / "account", more_w=11)


@pytest.fixture(scope="module")
def eventless(sealed: Stored) -> Verdict:
    """The verdict on the sealed account without its last event, which is of its last block."""
    number = sealed.last("events")
    return sealed.relinked("events", number, sealed.bodies("events", number)[:-1]).judge()


# --- single bytes -----------------------------------------------------------------------------


def changes(data: bytes) -> Iterator[bytes]:
    """Yield `data` with each byte changed, removed, doubled, and exchanged with the next."""
    for at, old in enumerate(data):
        before, behind = data[:at], data[at + 1 :]
        for new in {old ^ 0x01, old ^ 0x80, 0x00, 0xFF} - {old}:
            yield b"%b%c%b" % (before, new, behind)
        yield before + behind
        yield b"%b%c%c%b" % (before, old, old, behind)
        if behind and behind[0] != old:
            yield b"%b%c%c%b" % (before, behind[0], old, behind[1:])


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("stream", STREAMS)
def test_every_single_byte_of_a_sealed_account_is_found_at_its_interval(
    sealed: Stored, stream: str
) -> None:
    for number in sealed.numbers(stream):
        for data in changes(sealed.segment(stream, number)):
            assert_found(sealed, stream, sealed.with_segment(stream, number, data))


@pytest.mark.parametrize(
    "make",
    [
        open_account,
        held_account,
        unplaced_account,
        lossy_account,
        full_account,
        adaptor_account,
        phases_account,
        recalibrated_account,
    ],
    ids=lambda make: make.__name__.removesuffix("_account"),
)
def test_a_changed_byte_of_an_unusual_account_is_found_or_is_a_tail(
    make: Callable[[Path], Stored], tmp_path: Path
) -> None:
    stored = make(tmp_path / "account")
    verdict = stored.judge()
    assert (verdict.verdict, verdict.first_bad, verdict.tail) == ("good", None, None)
    for stream in STREAMS:
        for number in stored.numbers(stream):
            data = stored.segment(stream, number)
            for at in range(number, len(data), 5):
                changed = data[:at] + bytes([data[at] ^ 0x04]) + data[at + 1 :]
                assert_found(stored, stream, stored.with_segment(stream, number, changed))


def test_every_single_byte_of_the_genesis_is_found(sealed: Stored) -> None:
    for data in changes(sealed.genesis):
        verdict = replace(sealed, genesis=data).judge()
        assert verdict.first_bad is not None
        assert (verdict.verdict, verdict.first_bad.stream) == ("bad", "genesis")


def test_a_genesis_that_is_another_or_cut_is_found(sealed: Stored, foreign: Stored) -> None:
    for data in (foreign.genesis, sealed.genesis[:-1], sealed.genesis[:1], sealed.genesis + b"\0"):
        verdict = replace(sealed, genesis=data).judge()
        assert verdict.first_bad is not None
        assert verdict.first_bad.stream == "genesis"


# --- whole records, segments, streams ---------------------------------------------------------


def records_tampered_with(
    stored: Stored, stream: str, other: Stored
) -> Iterator[tuple[str, Stored]]:
    """Yield what can be done to whole records: (what, the account after it)."""
    records = list(stored.records(stream))
    theirs = list(other.records(stream))
    for place, (number, begin, end) in enumerate(records):
        data = stored.segment(stream, number)
        record = data[begin:end]
        what = f"{stream} segment {number}, record at {begin}"

        def changed(new: bytes, number: int = number) -> Stored:
            return stored.with_segment(stream, number, new)

        yield f"{what}: deleted", changed(data[:begin] + data[end:])
        yield f"{what}: doubled", changed(data[:end] + record + data[end:])
        if records[place + 1 : place + 2] and records[place + 1][0] == number:
            _, _, next_end = records[place + 1]
            swapped = data[:begin] + data[end:next_end] + record + data[next_end:]
            yield f"{what}: swapped with the next", changed(swapped)
        for what_else, source in (("another account", theirs[place]), ("elsewhere", records[0])):
            their_number, their_begin, their_end = source
            account = other if source is theirs[place] else stored
            spliced = account.segment(stream, their_number)[their_begin:their_end]
            if spliced != record:
                yield (
                    f"{what}: spliced from {what_else}",
                    changed(data[:begin] + spliced + data[end:]),
                )
                yield f"{what}: {what_else} put in", changed(data[:begin] + spliced + data[begin:])


@pytest.mark.parametrize("stream", STREAMS)
def test_records_deleted_doubled_swapped_and_spliced_are_found(
    sealed: Stored, sibling: Stored, foreign: Stored, eventless: Verdict, stream: str
) -> None:
    for other in (sibling, foreign):
        for what, tampered in records_tampered_with(sealed, stream, other):
            if tampered.judge() == eventless:
                assert "deleted" in what  # the last event: see the test of its own
                continue
            assert_found(sealed, stream, tampered, exact=other is foreign)


def test_the_last_event_cut_off_clean_is_named_as_a_tail(
    sealed: Stored, eventless: Verdict
) -> None:
    number = sealed.last("events")
    assert eventless.verdict == "good"
    assert eventless.tail == ("events", number, list(sealed.records("events"))[-1][1], b"")


@pytest.mark.parametrize("stream", STREAMS)
def test_whole_segments_deleted_exchanged_and_spliced_are_found(
    sealed: Stored, sibling: Stored, foreign: Stored, stream: str
) -> None:
    for number in sealed.numbers(stream):
        assert_found(sealed, stream, sealed.with_segment(stream, number, None))
        assert_found(sealed, stream, sealed.with_segment(stream, number, b""))
        for other in (sibling, foreign):
            spliced = other.segment(stream, number)
            assert spliced != sealed.segment(stream, number)
            tampered = sealed.with_segment(stream, number, spliced)
            assert_found(sealed, stream, tampered, exact=other is foreign)
        for another in sealed.numbers(stream):
            if another != number:  # of another day
                spliced = sealed.segment(stream, another)
                assert_found(sealed, stream, sealed.with_segment(stream, number, spliced))


@pytest.mark.parametrize("stream", STREAMS)
def test_segments_that_change_places_or_numbers_are_found(sealed: Stored, stream: str) -> None:
    segments = sealed.streams[stream]
    numbers = sealed.numbers(stream)
    for early, late in pairwise(numbers):
        exchanged = {**segments, early: segments[late], late: segments[early]}
        assert_found(sealed, stream, sealed.with_stream(stream, exchanged))
    later = {number + 1: data for number, data in segments.items()}
    assert_found(sealed, stream, sealed.with_stream(stream, later))


@pytest.mark.parametrize("stream", STREAMS)
def test_a_segment_doubled_behind_the_last_is_bad(sealed: Stored, stream: str) -> None:
    head = sealed.judge().head
    assert head is not None
    for number in sealed.numbers(stream):
        doubled = sealed.segment(stream, number)
        verdict = sealed.with_segment(stream, sealed.last(stream) + 1, doubled).judge()
        assert verdict.first_bad is not None
        assert (verdict.first_bad.stream, verdict.first_bad.height) == (stream, head.height + 1)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_that_is_gone_is_found_at_the_first_block(sealed: Stored, stream: str) -> None:
    verdict = sealed.with_stream(stream, {}).judge()
    assert verdict.first_bad is not None
    assert (verdict.first_bad.stream, verdict.first_bad.height) == (stream, 1)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_of_another_account_is_found_at_the_first_block(
    sealed: Stored, foreign: Stored, stream: str
) -> None:
    verdict = sealed.with_stream(stream, foreign.streams[stream]).judge()
    assert verdict.first_bad is not None
    assert (verdict.first_bad.stream, verdict.first_bad.height) == (stream, 1)


# --- cuts and garbage -------------------------------------------------------------------------


def cuts(stored: Stored, stream: str) -> Iterator[tuple[int, int]]:
    """Yield (segment, bytes left): each record boundary, and each byte of the last two records."""
    records = list(stored.records(stream))
    for number, begin, _ in records:
        yield number, begin
    number, begin, _ = records[-2]
    for left in range(begin, len(stored.segment(stream, number))):
        yield number, left


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_cut_anywhere_is_found(sealed: Stored, eventless: Verdict, stream: str) -> None:
    for number, left in cuts(sealed, stream):
        cut = sealed.with_segment(stream, number, sealed.segment(stream, number)[:left])
        if cut.judge() == eventless:
            assert stream == "events"
            continue
        assert_found(sealed, stream, cut)
        for behind in [other for other in sealed.numbers(stream) if other > number]:
            cut = cut.with_segment(stream, behind, None)
        assert_found(sealed, stream, cut)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "garbage", [b"\0", b"\xff" * 7, bytes(300), bytes(range(256))], ids=["0", "7", "300", "256"]
)
def test_garbage_behind_a_segment_is_found(sealed: Stored, stream: str, garbage: bytes) -> None:
    for number in sealed.numbers(stream):
        data = sealed.segment(stream, number) + garbage
        assert_found(sealed, stream, sealed.with_segment(stream, number, data))
    assert_found(sealed, stream, sealed.with_segment(stream, sealed.last(stream) + 1, garbage))


@pytest.mark.parametrize("stream", ["blocks", "events"])
def test_a_record_that_is_linked_and_is_none_is_bad(sealed: Stored, stream: str) -> None:
    number = sealed.last(stream)
    bodies = [*sealed.bodies(stream, number), b"linked, and nothing"]
    verdict = sealed.relinked(stream, number, bodies).judge()
    assert verdict.first_bad is not None
    assert (verdict.first_bad.stream, verdict.first_bad.height) == (stream, len(sealed.blocks) + 1)


# --- links made anew --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS)
def test_what_is_sealed_is_found_even_with_its_links_made_anew(sealed: Stored, stream: str) -> None:
    """No key is needed to link: what a block seals is found by the block alone."""
    owners = sealed.owners(stream)
    for number in sealed.numbers(stream):
        bodies = sealed.bodies(stream, number)
        for place, body in enumerate(bodies):
            owner = owners[number][place + 1][2]
            if owner == NOTHING:
                continue  # the last event, which no block counts: see the limits below
            changed = [[body[:-1] + bytes([body[-1] ^ 1])], []]
            if (number, place + 1) != (sealed.last("samples"), len(bodies)):
                changed.append([body, body])  # a row more, behind all that is sealed, is a limit
            for new in changed:
                relinked = [*bodies[:place], *new, *bodies[place + 1 :]]
                bad = sealed.relinked(stream, number, relinked).judge().first_bad
                assert bad is not None
                assert bad.stream == stream
                assert bad.height in {owner.height, owner.height + 1}


# --- what cannot be found, and every tool says ------------------------------------------------


def test_limit_cut_back_together_to_a_sealed_state_needs_a_known_head(tmp_path: Path) -> None:
    states: list[Stored] = []
    street = Street(tmp_path / "account", seen=states.append)
    street.feed(*DAY_ONE).restart().feed(*DAY_TWO).finish()
    final = street.stored
    head = final.judge().head
    assert head is not None
    earlier = {state.judge().blocks: state for state in states if state.judge().tail is None}
    assert earlier.keys() == {0, 1, 2, 3, 4, 5, 6}
    rows_kept = 0
    for blocks, state in earlier.items():
        for stream, segments in state.streams.items():
            for number, data in segments.items():
                assert final.segment(stream, number).startswith(data)
        assert state.judge().verdict == "good"
        known = state.judge(Known(head=(head.height, head.block_hash)))
        if blocks == head.height:
            assert known.verdict == "good"
            continue
        assert known.first_bad is not None
        assert (known.first_bad.stream, known.first_bad.height) == ("blocks", head.height)
        assert "cut back" in known.first_bad.reason
        kept = state.with_stream("samples", final.streams["samples"])
        if kept.judge().verdict == "good":  # cutting back the samples is not even needed
            rows_kept += 1
    assert rows_kept > 0


def test_limit_links_made_anew_in_what_is_not_sealed_are_not_found(waiting: Stored) -> None:
    for stream in ("samples", "events"):
        number = waiting.last(stream)
        bodies = waiting.bodies(stream, number)
        forged = waiting.relinked(stream, number, [*bodies[:-1], bodies[0]])
        if stream == "events":
            forged = waiting.relinked(stream, number, bodies[:-1]).with_event("forged", ())
        assert forged.segment(stream, number) != waiting.segment(stream, number)
        verdict = forged.judge()
        assert (verdict.verdict, verdict.tail) == ("good", None)


def test_limit_whole_unsealed_rows_cut_off_the_end_are_not_found(waiting: Stored) -> None:
    number = waiting.last("samples")
    rows = [record for record in waiting.records("samples") if record[0] == number]
    for left, (_, begin, _) in enumerate(rows):
        cut = waiting.with_segment("samples", number, waiting.segment("samples", number)[:begin])
        verdict = cut.judge()
        assert (verdict.verdict, verdict.tail, verdict.open_rows) == ("good", None, left)
    verdict = waiting.with_segment("samples", number, None).judge()
    assert (verdict.verdict, verdict.tail, verdict.open_rows) == ("good", None, 0)


def test_the_first_unsealed_row_is_missed_where_a_block_ends_before_it(tmp_path: Path) -> None:
    """A block that ends between two rows cannot be recomputed without the second."""
    street = Street(tmp_path / "account").feed((1, 100, 5), (12, 200, 5), (23, 300, 5), (34, 10, 5))
    clean = street.commit().stored
    assert (clean.judge().verdict, clean.judge().open_rows) == ("good", 1)
    data = clean.segment("samples", 1)
    *_, (_, begin, end) = clean.records("samples")
    verdict = clean.with_segment("samples", 1, data[:begin]).judge()
    assert verdict.first_bad is not None
    assert (verdict.first_bad.stream, verdict.first_bad.height) == ("samples", 1)
    for left in range(begin + 1, end):
        torn = clean.with_segment("samples", 1, data[:left])
        verdict = torn.judge()
        assert verdict.verdict == "good"
        assert verdict.tail == ("samples", 1, begin, data[begin:left])
    for at in range(begin, end):
        changed = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        assert_found(clean, "samples", clean.with_segment("samples", 1, changed))


# --- what must never fail ---------------------------------------------------------------------


def test_clean_accounts_are_good(
    sealed: Stored, waiting: Stored, sibling: Stored, foreign: Stored
) -> None:
    for stored in (sealed, waiting, sibling, foreign):
        verdict = stored.judge()
        assert (verdict.verdict, verdict.first_bad, verdict.tail) == ("good", None, None)
    assert waiting.judge().open_rows == 3


def test_a_live_account_is_never_bad(tmp_path: Path) -> None:
    """Judged after each operation of the writer, and in the midst of each write."""
    seen: list[Stored] = []

    def judged(stored: Stored) -> None:
        verdict = stored.judge()
        assert verdict.verdict == "good", verdict.first_bad
        seen.append(stored)

    street = Street(tmp_path / "account", seen=judged)
    for row in DAY_ONE:
        street.feed(row).commit()
    street.restart()
    for row in DAY_TWO:
        street.feed(row).commit()
    street.finish()
    assert len(seen) > 100


def test_an_account_that_is_read_while_it_is_written_is_never_bad(tmp_path: Path) -> None:
    """Blocks are read first, samples listed next, and events read last, each at its own time."""
    seen: list[Stored] = []
    street = Street(tmp_path / "account", seen=seen.append)
    for row in DAY_ONE:
        street.feed(row).commit()
    street.restart().feed(*DAY_TWO).finish()
    draw = random.Random(1)
    for _ in range(400):
        first, then, last = sorted(draw.choices(range(len(seen)), k=3))
        verdict = judge_as_read(seen[first], seen[then], seen[last])
        assert verdict.verdict == "good", ((first, then, last), verdict.first_bad)


@pytest.mark.usefixtures("uncounted")
def test_power_failing_anywhere_leaves_an_account_that_goes_on_and_is_good(tmp_path: Path) -> None:
    """The next run tells of the torn tail, and a segment whose header never came is passed over."""
    states: list[Stored] = []
    street = Street(tmp_path / "account", seen=states.append)
    for row in DAY_ONE:
        street.feed(row).commit()
    street.restart().feed(*DAY_TWO).finish()
    for place, state in enumerate(states):
        folder = tmp_path / f"state{place}"
        state.write(folder)
        (folder / "seal.key").write_bytes((tmp_path / "account" / "seal.key").read_bytes())
        again = Street(folder, salt_seed=b"another").feed((130, 50, 5), (140, 60, 5)).finish()
        verdict = again.stored.judge()
        assert (verdict.verdict, verdict.first_bad, verdict.tail) == ("good", None, None)
        tail = state.judge().tail
        told = any(event.kind == "torn_tail" for event in again.stored.events)
        assert told == (tail is not None and (tail.data != b"" or tail.offset == 0))
