from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from nacl.signing import SigningKey

from meterd.device.archive import segment_name, segment_numbers
from meterd.device.recovery import (
    CHECKPOINT_FILE,
    Checkpoint,
    open_checkpoint,
    recover,
    seal_checkpoint,
)
from meterd.errors import BlockRejectedError, EncodingError, LedgerDamagedError
from meterd.ledger.block import Energy
from meterd.ledger.chain import Head, open_chain
from meterd.ledger.encoding import encode, seal
from meterd.ledger.findings import Start
from meterd.ledger.segment import STREAMS
from meterd.ledger.stored import End
from meterd.metering.interval import Wall
from tests.accounts import config_text
from tests.rig import INTERVAL_S, MIDNIGHT_S, POLLING_MS, RecordingCard, Rig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meterd.ledger.chain import Chain

LATER_S = MIDNIGHT_S + 10 * INTERVAL_S


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A meter that was stopped behind midnight, in the middle of an interval."""
    rig = Rig(tmp_path / "account")
    rig.start(MIDNIGHT_S - INTERVAL_S - 20)
    rig.rows(25)
    rig.stop()
    assert (rig.state / CHECKPOINT_FILE).exists()
    return rig


def chain_of(rig: Rig) -> Chain:
    return open_chain(rig.genesis, rig.settings.meter.name)


def last_segment(rig: Rig, stream: str) -> Path:
    return rig.state / stream / segment_name(segment_numbers(rig.state / stream)[-1])


def goes_on(rig: Rig) -> None:
    """A start, some readings, and an account that is good."""
    before = rig.book.registers_uj() if hasattr(rig, "book") else {}
    rig.start(LATER_S)
    now = rig.book.registers_uj()
    assert {code: max(uj, now[code]) for code, uj in before.items()} == {
        code: now[code] for code in before
    }
    rig.rows(15)
    rig.commit()
    rig.assert_good()


# --- what a checkpoint is ----------------------------------------------------------------------


def checkpoint_of(chain: Chain, **changes: object) -> Checkpoint:
    head = Head(
        height=3,
        block_hash=b"\1" * 32,
        end_s=600,
        energy=(Energy(bytes((1, 0, 1, 8, 0, 255)), 0, 5, 7),),
        parameters=b"\2" * 32,
        order=(0, chain.genesis),
        events=4,
    )
    start = Start(
        chain=chain._replace(head=head),
        ends={name: End(number, bytes([number]) * 32, 9) for number, name in enumerate(STREAMS, 1)},
        events=4,
        parameters=(b"record",),
        cut_ms=17,
    )
    checkpoint = Checkpoint(
        start=start,
        run=2,
        sums={bytes((1, 0, 1, 8, 0, 255)): 15},
        wall=(1000, Wall(1_767_225_600_000, "I", 12)),
    )
    return replace(checkpoint, **changes)  # type: ignore[arg-type]


def test_a_checkpoint_says_the_same_again(rig: Rig) -> None:
    chain = chain_of(rig)
    for checkpoint in (checkpoint_of(chain), checkpoint_of(chain, wall=None, sums={})):
        assert open_checkpoint(seal_checkpoint(checkpoint, rig.key), chain) == checkpoint


def test_a_checkpoint_counts_only_with_this_meters_seal(rig: Rig) -> None:
    chain = chain_of(rig)
    foreign = seal_checkpoint(checkpoint_of(chain), SigningKey(bytes(32)))
    with pytest.raises(BlockRejectedError):
        open_checkpoint(foreign, chain)


def test_a_checkpoint_of_another_account_does_not_count(rig: Rig) -> None:
    chain = chain_of(rig)
    data = seal_checkpoint(checkpoint_of(chain._replace(incarnation=2)), rig.key)
    with pytest.raises(EncodingError, match="another account"):
        open_checkpoint(data, chain)


def test_a_block_is_no_checkpoint(rig: Rig) -> None:
    chain = chain_of(rig)
    data = seal(encode(["meterd/block/v1", chain.genesis]), rig.key, chain.genesis)
    with pytest.raises(EncodingError, match="not a checkpoint"):
        open_checkpoint(data, chain)


# --- checkpoints that are not as they were -----------------------------------------------------


def test_what_came_before_a_checkpoint_is_not_verified_again(rig: Rig) -> None:
    """So a start costs no more in the tenth year; a timer verifies the rest. Stated, and shown."""
    path = rig.state / "blocks" / segment_name(1)
    recovered = recover(rig.state, chain_of(rig))
    assert recovered.checkpoint.start.chain.head.height == 2
    assert [block.height for block in recovered.found.blocks] == []
    assert len(recovered.found.open) == 1
    assert path.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda data: data[:0], id="empty"),
        pytest.param(lambda data: data[:-1], id="cut"),
        pytest.param(lambda data: data + b"\0", id="too long"),
        pytest.param(lambda data: bytes(len(data)), id="zeros"),
        pytest.param(lambda data: data[:60] + b"\xff" + data[61:], id="damaged"),
        pytest.param(lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], id="seal damaged"),
    ],
)
def test_without_a_checkpoint_that_holds_the_whole_account_is_verified(
    rig: Rig, spoil: Callable[[bytes], bytes]
) -> None:
    path = rig.state / CHECKPOINT_FILE
    path.write_bytes(spoil(path.read_bytes()))
    recovered = recover(rig.state, chain_of(rig))
    assert [block.height for block in recovered.found.blocks] == [1, 2]
    assert recovered.checkpoint_lost
    goes_on(rig)
    (lost,) = rig.told("checkpoint_lost")
    assert lost["reason"] == recovered.checkpoint_lost[:200]


def test_a_missing_checkpoint_is_no_event(rig: Rig) -> None:
    """There is none before the first day ends."""
    (rig.state / CHECKPOINT_FILE).unlink()
    assert len(recover(rig.state, chain_of(rig)).found.blocks) == 2
    goes_on(rig)
    assert rig.told("checkpoint_lost") == []


def test_recovery_with_and_without_a_checkpoint_comes_to_the_same(rig: Rig) -> None:
    with_one = recover(rig.state, chain_of(rig))
    (rig.state / CHECKPOINT_FILE).unlink()
    without = recover(rig.state, chain_of(rig))
    assert without.found.chain == with_one.found.chain
    assert without.found.ends == with_one.found.ends
    assert without.found.open == with_one.found.open
    for name in ("run", "sums", "at"):
        assert getattr(without, name) == getattr(with_one, name)
    assert without.walls[1][-1][1] == with_one.walls[1][-1][1]


def test_yesterdays_checkpoint_is_as_good_as_todays(rig: Rig, tmp_path: Path) -> None:
    kept = tmp_path / "yesterday"
    shutil.copy(rig.state / CHECKPOINT_FILE, kept)
    rig.start(MIDNIGHT_S + 86_400 - 30)
    rig.rows(20)
    rig.stop()
    today = (rig.state / CHECKPOINT_FILE).read_bytes()
    assert today != kept.read_bytes()
    shutil.copy(kept, rig.state / CHECKPOINT_FILE)
    rig.start(MIDNIGHT_S + 86_400 + 1000)
    rig.rows(15)
    rig.commit()
    rig.assert_good()
    assert rig.told("checkpoint_lost") == []


def test_streams_from_yesterday_are_noticed_by_todays_checkpoint(rig: Rig, tmp_path: Path) -> None:
    """Cut back together, an account is good by itself; but its own checkpoint knows of more."""
    shutil.copytree(rig.state, tmp_path / "yesterday")
    rig.start(MIDNIGHT_S + 86_400 - 30)
    rig.rows(20)
    rig.stop()
    for stream in STREAMS:
        shutil.rmtree(rig.state / stream)
        shutil.copytree(tmp_path / "yesterday" / stream, rig.state / stream)
    rig.assert_good()
    with pytest.raises(LedgerDamagedError, match="it was cut back") as refused:
        rig.start(MIDNIGHT_S + 2 * 86_400)
    assert "meterctl verify" in refused.value.hint


def test_a_checkpoint_of_another_history_is_noticed(rig: Rig, tmp_path: Path) -> None:
    """The same meter, key and height: two histories, of which one was sealed in secret."""
    other = Rig(tmp_path / "other")
    other.start(MIDNIGHT_S - INTERVAL_S - 20)
    other.rows(25, POLLING_MS - 100)
    other.stop()
    shutil.copy(other.state / CHECKPOINT_FILE, rig.state / CHECKPOINT_FILE)
    with pytest.raises(LedgerDamagedError, match="it was cut back"):
        rig.start(LATER_S)


def test_a_checkpoint_may_stand_on_samples_that_were_pruned(rig: Rig) -> None:
    (rig.state / "samples" / segment_name(1)).unlink()
    recovered = recover(rig.state, chain_of(rig))
    assert not recovered.checkpoint_lost


# --- tails -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    ("spoil", "lost"),
    [
        pytest.param(lambda data: data + b"\1\2\3", False, id="part of a record"),
        pytest.param(lambda data: data + bytes(40), False, id="zeros"),
        pytest.param(lambda data: data + b"\xff" * 5000, False, id="noise"),
        pytest.param(lambda data: data[:-1], True, id="last byte missing"),
        pytest.param(lambda data: data[:-9], True, id="link missing"),
        pytest.param(lambda data: data[:-1] + b"\0", True, id="last byte zero"),
    ],
)
def test_a_torn_tail_is_left_where_it_is_and_told(
    tmp_path: Path, stream: str, spoil: Callable[[bytes], bytes], *, lost: bool
) -> None:
    rig = Rig(tmp_path / "account")
    rig.start(MIDNIGHT_S - 3 * INTERVAL_S)
    rig.rows(14)
    rig.commit()
    claimed = last_segment(rig, "events").read_bytes()
    assert rig.events[-1].kind == "sealed"
    if (
        stream == "blocks" and lost
    ):  # what is sealed is not torn once an event says that it is there
        data = claimed.rpartition(b"sealed")[0]
        last_segment(rig, "events").write_bytes(data[: len(data) - 4 * 3])
        last_segment(rig, "samples").write_bytes(last_segment(rig, "samples").read_bytes())
    path = last_segment(rig, stream)
    torn = spoil(path.read_bytes())
    path.write_bytes(torn)
    rig.assert_good()
    del rig.book  # what was torn off is lost: its registers are no measure
    goes_on(rig)
    assert path.read_bytes() == torn, "what is on the card is never written again"
    assert stream in {event["stream"] for event in rig.told("torn_tail")}
    goes_on(rig)
    rig.start(LATER_S + 1000)
    rig.commit()
    told = rig.told("torn_tail")
    assert len({(e["stream"], e["segment"]) for e in told}) == len(told), "told once"


def test_a_block_that_an_event_tells_of_must_be_there(rig: Rig) -> None:
    """After the block is durable its event is written: a crash cannot lose the one and not both."""
    rig.start(LATER_S)
    rig.rows(15)
    rig.stop()
    path = last_segment(rig, "blocks")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LedgerDamagedError, match="was sealed, and is missing"):
        rig.start(LATER_S + 1000)


def test_a_segment_whose_header_never_came_is_passed_over(rig: Rig) -> None:
    """Not by a crash, since segments come whole: by a card that lies about what it has flushed."""
    for stream in STREAMS:
        number = segment_numbers(rig.state / stream)[-1] + 1
        (rig.state / stream / segment_name(number)).write_bytes(
            b"" if stream == "blocks" else b"\0"
        )
    goes_on(rig)
    goes_on(rig)


# --- what recovery makes durable ---------------------------------------------------------------


def test_a_writer_settles_what_it_finds_before_it_reads_it(rig: Rig) -> None:
    card = RecordingCard()
    recover(rig.state, chain_of(rig), card=card)
    done = [(kind, path.relative_to(rig.state).as_posix()) for kind, path, _ in card.done]
    assert done == [
        ("settle", "samples/00000002.seg"),
        ("sync_folder", "samples"),
        ("settle", "events/00000002.seg"),
        ("sync_folder", "events"),
        ("settle", "blocks/00000001.seg"),
        ("sync_folder", "blocks"),
        ("sync_folder", "."),
    ]


def test_a_reader_writes_nothing(rig: Rig) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(rig.state.rglob("*"))}
    recover(rig.state, chain_of(rig))
    assert before == {path: path.stat().st_mtime_ns for path in sorted(rig.state.rglob("*"))}


# --- what recovery knows -----------------------------------------------------------------------


def test_runs_are_counted_over_starts_and_days(rig: Rig) -> None:
    assert recover(rig.state, chain_of(rig)).run == 1
    for run in (2, 3, 4):
        rig.start(MIDNIGHT_S + run * 86_400)
        assert rig.book.run == run
        rig.rows(14)
        rig.stop()
    assert recover(rig.state, chain_of(rig)).run == 4


def test_an_account_without_a_row_is_recovered(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "account")
    recovered = recover(rig.state, chain_of(rig))
    assert (recovered.run, recovered.sums, recovered.at, recovered.walls) == (0, {}, None, {})
    rig.start(MIDNIGHT_S)
    rig.stop()
    rig.start(MIDNIGHT_S)
    rig.stop()
    rig.assert_good()
    assert [event["run"] for event in rig.told("started")] == [1, 2]
    assert len(rig.told("parameters")) == 1


def test_a_run_lies_where_its_clock_said_at_each_row(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "account")
    rig.start(MIDNIGHT_S + 5)
    rig.rows(2)
    rig.wait(0, step_ms=-20_000)
    rig.rows(1)
    rig.status = "I"
    rig.rows(1)
    rig.commit()
    (walls,) = recover(rig.state, chain_of(rig)).walls.values()
    offset_ms = MIDNIGHT_S * 1000 + 4000
    assert walls == (
        (6000, Wall(offset_ms, "S", 0)),
        (16_000, Wall(offset_ms - 20_000, "S", 0)),
        (21_000, Wall(offset_ms - 20_000, "I", 0)),
    )


def test_a_run_that_was_placed_late_lies_there_from_its_begin(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "account", config_text(interval_s=1800, polling_ms=POLLING_MS))
    rig.start(60, status="R")
    rig.rows(4)
    rig.wait(0, step_ms=MIDNIGHT_S * 1000)
    rig.status = "S"
    rig.rows(1)
    rig.commit()
    (walls,) = recover(rig.state, chain_of(rig)).walls.values()
    offset_ms = MIDNIGHT_S * 1000 + 59_000
    assert walls == ((0, Wall(offset_ms, "I", 0)), (26_000, Wall(offset_ms, "S", 0)))


def test_an_event_that_places_a_run_must_say_where(rig: Rig) -> None:
    rig.start(LATER_S)
    rig.book.event("clock_set", (("boot_ms", 1), ("wall_ms", 2), ("error_ms", 0), ("status", "X")))
    rig.stop()
    with pytest.raises(LedgerDamagedError, match="has no clock status"):
        rig.start(LATER_S + 100)
