"""What only a verifier in parts meets: several tasks, a checkpoint, several processes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meterd.device.archive import open_tools, read_files
from meterd.device.recovery import CHECKPOINT_FILE, open_checkpoint
from meterd.ledger.account import decode_genesis
from meterd.ledger.chain import Chain, open_chain
from meterd.ledger.findings import Findings, Start
from meterd.ledger.judge import judge
from meterd.ledger.segment import STREAMS
from meterd.ledger.stored import End
from tests.ledger.memory import Stored, Street, lossy_account, sealed_account, unplaced_account

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def empty_chain(state: Path) -> Chain:
    return open_chain(decode_genesis(Stored.read(state).genesis), "kitchen-12")


def from_checkpoint(state: Path) -> tuple[Start, Findings]:
    checkpoint = open_checkpoint((state / CHECKPOINT_FILE).read_bytes(), empty_chain(state))
    after = {stream: end.number for stream, end in checkpoint.start.ends.items()}
    with open_tools(state) as tools:
        return checkpoint.start, judge(read_files(state, after), checkpoint.start, tools)


def test_blocks_verified_in_many_tasks_are_found_where_they_break(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stored = sealed_account(tmp_path / "account")
    monkeypatch.setattr("meterd.ledger.judge.SEALS_PER_TASK", 1)
    assert stored.judge().verdict == "good"
    records = list(stored.records("blocks"))
    for height, (number, begin, end) in enumerate(records, start=1):
        body = stored.bodies("blocks", number)
        place = [r for r in records if r[0] == number].index((number, begin, end))
        for changed in (b"\x80", body[place][:-1] + bytes([body[place][-1] ^ 1]), body[place - 1]):
            bodies = [*body[:place], changed, *body[place + 1 :]]
            bad = stored.relinked("blocks", number, bodies).judge().first_bad
            assert bad is not None
            assert (bad.stream, bad.height, bad.offset) == ("blocks", height, begin)


def test_several_processes_find_what_one_does(tmp_path: Path) -> None:
    state = tmp_path / "account"
    stored = sealed_account(state)
    said: list[tuple[str, int, int]] = []
    start = Start(chain=empty_chain(state), ends={stream: End() for stream in STREAMS})
    with open_tools(state, workers=2, progress=lambda *now: said.append(now)) as tools:
        found = judge(read_files(state), start, tools)
    assert (found.bad, found.chain.head) == ([], stored.judge().head)
    assert said[0] == ("seals", 1, 1)
    assert said[-1] == ("samples", 3, 3)


@pytest.mark.parametrize("offset", [0, 3], ids=["ends at a row", "ends between two rows"])
def test_a_judge_goes_on_from_a_checkpoint(tmp_path: Path, offset: int) -> None:
    """It verifies what came since, and nothing before is read again."""
    state = tmp_path / "account"
    street = Street(state).feed((-50, 100, 5), (-35, 110, 5))
    street.feed((-20 + offset, 100, 5), (-10 + offset, 90, 5), (offset, 80, 5))
    street.feed((10 + offset, 70, 5), (20 + offset, 50, 5), (30 + offset, 40, 5))
    stored = street.commit().stored
    start, found = from_checkpoint(state)
    assert start.chain.head.height == 2
    assert (found.bad, found.tails) == ([], [])
    assert found.chain.head == stored.judge().head
    assert [block.height for block in found.blocks] == [3]
    for stream in ("samples", "events", "blocks"):
        number = start.ends[stream].number
        stored = stored.with_segment(stream, number, None)
    stored.write(state)
    assert from_checkpoint(state)[1].bad == []


def test_a_checkpoint_does_not_vouch_for_what_follows_it(tmp_path: Path) -> None:
    state = tmp_path / "account"
    stored = sealed_account(state)
    start, found = from_checkpoint(state)
    assert (start.chain.head.height, found.bad) == (2, [])
    for stream in ("samples", "events", "blocks"):
        number = start.ends[stream].number + 1
        for cut in (None, stored.segment(stream, number)[:-1]):
            stored.with_segment(stream, number, cut).write(state)
            bad = from_checkpoint(state)[1].first_bad
            assert bad is not None
            assert bad.stream == stream


def test_an_event_may_tell_of_pruning_before_the_checkpoint(tmp_path: Path) -> None:
    state = tmp_path / "account"
    sealed = sealed_account(state)
    header, _ = sealed.header("samples", 2)
    pruned = sealed.with_pruned(1, 4, header.previous_digest).with_segment("samples", 1, None)
    pruned.write(state)
    assert from_checkpoint(state)[1].bad == []
    assert pruned.judge().verdict == "good"


def test_all_samples_but_the_last_segments_end_may_be_pruned(tmp_path: Path) -> None:
    """Where the last was pruned too, the stream goes on behind what the event says of it."""
    stored = sealed_account(tmp_path / "account")
    last = stored.last("samples")
    for number in stored.numbers("samples"):
        rows = len(stored.bodies("samples", number))
        full = bytes(32)
        if number != last:
            full = stored.header("samples", number + 1)[0].previous_digest
        stored = stored.with_pruned(number, rows, full)
    for number in stored.numbers("samples"):
        stored = stored.with_segment("samples", number, None)
    assert stored.judge().verdict == "good"


def test_a_header_that_counts_a_part_of_a_row_is_found(tmp_path: Path) -> None:
    """In what is not sealed yet, a header and its links can be made anew."""
    street = Street(tmp_path / "account").feed((10, 100, 5), (20, 100, 5), (30, 100, 5)).restart()
    stored = street.feed((40, 100, 5), (50, 100, 5)).commit().stored
    number = stored.last("samples")
    header, _ = stored.header("samples", number)
    bodies = stored.bodies("samples", number)
    forged = replace(header, previous_bytes=header.previous_bytes - 3)
    stored = stored.with_segment("samples", number, forged.stored())
    bad = stored.relinked("samples", number, bodies).judge().first_bad
    assert bad is not None
    assert (bad.stream, bad.segment) == ("samples", number - 1)


@pytest.mark.parametrize("make", [unplaced_account, lossy_account])
def test_rows_in_several_segments_with_links_made_anew_are_found(
    tmp_path: Path, make: Callable[[Path], Stored]
) -> None:
    stored = make(tmp_path / "account")
    bodies = stored.bodies("samples", 1)
    for place in range(len(bodies)):
        changed = bodies[place][:-1] + bytes([bodies[place][-1] ^ 1])
        forged = [*bodies[:place], changed, *bodies[place + 1 :]]
        bad = stored.relinked("samples", 1, forged).judge().first_bad
        assert bad is not None
        assert (bad.stream, bad.height) == ("samples", 1)


def test_rows_of_an_unknown_parameter_record_are_bad(tmp_path: Path) -> None:
    """Events are durable before the samples that they tell of."""
    stored = Street(tmp_path / "account").feed((10, 100, 5), (20, 100, 5)).commit().stored
    assert (stored.judge().verdict, stored.judge().open_rows) == ("good", 2)
    bad = stored.with_stream("events", {}).judge().first_bad
    assert bad is not None
    assert (bad.stream, bad.height, bad.segment) == ("samples", 1, 1)
    assert bad.reason == "no event holds the parameter record that the header names"
