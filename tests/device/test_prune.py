from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from nacl.signing import SigningKey

from meterd.device.archive import Known, read_part, segment_name, segment_numbers, verify
from meterd.device.card import Card, Operation, lock
from meterd.device.prune import plan_prune, prune_stopped
from meterd.errors import BusyError, DeniedError, LedgerDamagedError
from meterd.init import create_account, read_genesis
from meterd.ledger.chain import Chain, open_chain
from meterd.ledger.encoding import digest
from meterd.replay import Line, Replay
from tests.accounts import SALT_SEED, SEED, Account, QuietCard, config_text, settings_of

if TYPE_CHECKING:
    from pathlib import Path

BEGIN_S = 1_170_633_600  # 2007-02-05 00:00 UTC
DAY_S = 86_400
STEP_S = 300
SETTINGS = settings_of(config_text(polling_ms=STEP_S * 1000))


def feed(replay: Replay, begin_s: int, end_s: int) -> None:
    """Readings that jitter and leave odd halves, so that nothing comes out even by luck."""
    for second in range(begin_s, end_s, STEP_S):
        number = second // STEP_S
        raw = b"11 %d.%03d 0.0 0.0 1600.0 0.0 0.0 230.0" % (300 + number % 700, number % 1000)
        replay.feed(Line(1, (BEGIN_S + second) * 1000 + number % 7, None, raw))


def replay_into(state: Path) -> Replay:
    replay = Replay(state, SETTINGS, key=SigningKey(SEED), salt_seed=SALT_SEED)
    replay._card = QuietCard()
    return replay


def restart(replay: Replay) -> None:
    replay.feed(Line(1, -1, None, b""))


@dataclass
class Stored:
    state: Path
    chain: Chain

    @property
    def files(self) -> list[int]:
        return segment_numbers(self.state / "samples")

    @property
    def verdict(self) -> str:
        return verify(self.state, Known()).verdict

    def edit(self, number: int, at: int) -> None:
        path = self.state / "samples" / segment_name(number)
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four days with a restart in the third, inside an interval; the last interval is open.

    Segments of samples: 1 and 2 a day each, 3 and 4 the third day, 5 the fourth.
    """
    state = tmp_path_factory.mktemp("made") / "account"
    create_account(state, SETTINGS, SEED)
    replay = replay_into(state)
    feed(replay, 0, 2 * DAY_S + 30_000)
    restart(replay)
    feed(replay, 2 * DAY_S + 31_000 + 200, 4 * DAY_S - 4000)
    restart(replay)
    return state


@pytest.fixture
def stored(made: Path, tmp_path: Path) -> Stored:
    state = tmp_path / "account"
    shutil.copytree(made, state)
    genesis = read_genesis(state)
    return Stored(state, open_chain(genesis, genesis.meters[0].name))


def test_the_account_is_cut_as_these_tests_expect(stored: Stored) -> None:
    assert stored.files == [1, 2, 3, 4, 5]
    assert stored.verdict == "good"


@pytest.mark.parametrize(
    ("before_s", "kept"),
    [
        pytest.param(0, [1, 2, 3, 4, 5], id="nothing ends before the first day's end"),
        pytest.param(DAY_S - 1, [1, 2, 3, 4, 5], id="a second is missing"),
        pytest.param(DAY_S, [2, 3, 4, 5], id="a block that ends then is among them"),
        pytest.param(2 * DAY_S + 1800, [3, 4, 5], id="a segment goes whole or not at all"),
        pytest.param(2 * DAY_S + 40_000, [4, 5], id="up to a restart"),
        pytest.param(9 * DAY_S, [5], id="metering goes on from the last, so it stays"),
    ],
)
def test_whole_segments_go_whose_blocks_all_end_before(
    stored: Stored, before_s: int, kept: list[int]
) -> None:
    plan = prune_stopped(stored.state, stored.chain, BEGIN_S + before_s)
    assert stored.files == kept
    assert len(plan.pruned) == 5 - len(kept)
    assert stored.verdict == "good"


def test_an_event_names_segment_rows_and_full_digest(stored: Stored) -> None:
    path = stored.state / "samples" / segment_name(1)
    size, first = path.stat().st_size, read_part(stored.state, 2, 0, 2048)
    plan = prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    event = Account(
        state=stored.state, registers={}, kinds={}, accepted=0, gaps=0, dropped={}
    ).events[-1]
    assert event.kind == "pruned"
    assert event.number_of("segment") == 1
    assert event.number_of("rows") == plan.rows == DAY_S // STEP_S
    assert event.bytes_of("digest") in first  # of the header of the segment that follows
    assert plan.freed_bytes == size


@pytest.mark.parametrize("days", [1, 2, 9])
def test_metering_goes_on_as_if_nothing_had_been_pruned(
    stored: Stored, tmp_path: Path, days: int
) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(stored.state, twin)
    prune_stopped(stored.state, stored.chain, BEGIN_S + days * DAY_S)
    said = []
    for state in (stored.state, twin):
        replay = replay_into(state)
        replay._boots = 2
        feed(replay, 4 * DAY_S - 3000, 5 * DAY_S)
        replay.finish()
        assert replay.book is not None
        said.append(replay.book.registers_uj())
        assert verify(state, Known()).verdict == "good"
    assert said[0] == said[1]


def test_without_its_checkpoint_a_pruned_account_goes_on_alike(
    stored: Stored, tmp_path: Path
) -> None:
    """A new run has rows and no block yet: the segment that its sums come from has to stay."""
    replay = replay_into(stored.state)
    replay._boots = 2
    feed(replay, 4 * DAY_S - 3000, 4 * DAY_S - 2000)
    restart(replay)
    (stored.state / "checkpoint").unlink()
    twin = tmp_path / "twin"
    shutil.copytree(stored.state, twin)
    prune_stopped(stored.state, stored.chain, BEGIN_S + 9 * DAY_S)
    assert stored.files == [5, 6]
    said = []
    for state in (stored.state, twin):
        replay = replay_into(state)
        replay._boots = 3
        feed(replay, 4 * DAY_S - 1000, 4 * DAY_S + 9000)
        replay.finish()
        assert replay.book is not None
        said.append(replay.book.registers_uj())
        assert verify(state, Known()).verdict == "good"
    assert said[0] == said[1]


def test_pruning_twice_is_pruning_once(stored: Stored) -> None:
    prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    plan = prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    assert plan == ((), (), 0)
    prune_stopped(stored.state, stored.chain, BEGIN_S + 2 * DAY_S)
    assert stored.files == [3, 4, 5]
    assert stored.verdict == "good"


class PowerFails(Exception):  # noqa: N818 - what happens, not an error
    """In the middle of it all."""


def test_a_power_failure_before_the_files_go_is_made_good_by_the_next_pruning(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = Card._do

    def failing(card: Card, operation: Operation) -> None:
        if operation.kind == "unlink":
            raise PowerFails
        do(card, operation)

    with monkeypatch.context() as patch:
        patch.setattr(Card, "_do", failing)
        with pytest.raises(PowerFails):
            prune_stopped(stored.state, stored.chain, BEGIN_S + 2 * DAY_S)
    assert stored.files == [1, 2, 3, 4, 5]
    assert stored.verdict == "good"
    plan = prune_stopped(stored.state, stored.chain, BEGIN_S)
    assert plan.pruned == ()
    assert stored.files == [3, 4, 5]
    assert stored.verdict == "good"


def test_a_power_failure_at_any_operation_leaves_a_good_account(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Operation] = []
    do = Card._do

    def recording(card: Card, operation: Operation) -> None:
        done.append(operation)
        do(card, operation)

    whole = tmp_path / "whole"
    shutil.copytree(stored.state, whole)
    monkeypatch.setattr(Card, "_do", recording)
    prune_stopped(stored.state, stored.chain, BEGIN_S + 2 * DAY_S)
    monkeypatch.undo()
    operations = list(done)
    kinds = [operation.kind for operation in operations]
    written = max(at for at, kind in enumerate(kinds) if kind in ("create", "append"))
    durable = min(at for at, kind in enumerate(kinds) if at > written and kind.startswith("sync"))
    assert kinds.index("unlink") > durable
    for count in range(len(operations)):
        state = tmp_path / f"after {count}"
        shutil.copytree(whole, state)
        card = Card()
        for operation in operations[:count]:
            path = state / operation.path.relative_to(stored.state)
            card._do(operation._replace(path=path))
        card.close()
        assert verify(state, Known()).verdict == "good"
        prune_stopped(state, stored.chain, BEGIN_S + 2 * DAY_S)
        assert segment_numbers(state / "samples") == [3, 4, 5]
        assert verify(state, Known()).verdict == "good"


@pytest.mark.parametrize(
    ("number", "at", "told"),
    [
        pytest.param(1, 5000, "segment 1 does not hold what block", id="a row"),
        pytest.param(1, 20, "segment 1: ", id="a header"),
        pytest.param(2, -1, "segment 2 does not hold what block", id="the last byte of a segment"),
    ],
)
def test_damage_is_never_tidied_away(stored: Stored, number: int, at: int, told: str) -> None:
    stored.edit(number, at)
    with pytest.raises(LedgerDamagedError, match=told):
        plan_prune(stored.state, stored.chain, BEGIN_S + 2 * DAY_S)


def test_what_nobody_tells_of_behind_a_segment_is_not_tidied_away(stored: Stored) -> None:
    with (stored.state / "samples" / segment_name(1)).open("ab") as file:
        file.write(b"excess")
    with pytest.raises(LedgerDamagedError, match="no event tells of"):
        plan_prune(stored.state, stored.chain, BEGIN_S + DAY_S)


def test_a_segment_that_somebody_removed_is_no_reason_to_prune_more(stored: Stored) -> None:
    (stored.state / "samples" / segment_name(2)).unlink()
    with pytest.raises(LedgerDamagedError, match=r"samples segment [12]: expected"):
        plan_prune(stored.state, stored.chain, BEGIN_S + 2 * DAY_S)
    assert stored.files == [1, 3, 4, 5]


def test_a_torn_event_is_told_of_before_more_events_follow(stored: Stored) -> None:
    last = segment_numbers(stored.state / "events")[-1]
    with (stored.state / "events" / segment_name(last)).open("ab") as file:
        file.write(b"\0\0\0\x40torn")
    prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    assert stored.files == [2, 3, 4, 5]
    assert stored.verdict == "good"


def test_a_damaged_account_is_left_alone(stored: Stored) -> None:
    stored.edit(5, 2000)
    before = {path: path.read_bytes() for path in stored.state.rglob("*.seg")}
    with pytest.raises(LedgerDamagedError):
        prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    assert {path: path.read_bytes() for path in stored.state.rglob("*.seg")} == before


def test_a_running_writer_is_not_written_beside(stored: Stored) -> None:
    held = open(lock(stored.state))  # noqa: PTH123, SIM115 - closes the descriptor
    with held, pytest.raises(BusyError):
        prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    assert stored.files == [1, 2, 3, 4, 5]


def test_append_only_files_stay_and_the_user_is_told(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = Card._do

    def append_only(card: Card, operation: Operation) -> None:
        if operation.kind == "unlink":
            raise PermissionError(1, "Operation not permitted", str(operation.path))
        do(card, operation)

    monkeypatch.setattr(Card, "_do", append_only)
    with pytest.raises(DeniedError, match="the pruning is in the account, but files stay"):
        prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    monkeypatch.undo()
    assert stored.verdict == "good"


def test_a_plan_reads_and_writes_nothing(stored: Stored) -> None:
    before = {path: digest(path.read_bytes()) for path in stored.state.rglob("*") if path.is_file()}
    plan_prune(stored.state, stored.chain, BEGIN_S + 2 * DAY_S)
    after = {path: digest(path.read_bytes()) for path in stored.state.rglob("*") if path.is_file()}
    assert after == before
