"""What of a watt is on the card: in which order, and what goes first where it is full."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bookkeeper_kit import DAY_S, headers, spans
from tests.rig import MIDNIGHT_S, RecordingCard, Rig

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.bookkeeper import Bookkeeper


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "account")


# --- how it becomes durable --------------------------------------------------------------------


def test_a_block_is_durable_behind_its_rows_and_its_event_behind_it(tmp_path: Path) -> None:
    card = RecordingCard()
    rig = Rig(tmp_path / "account", card=card)
    rig.start(MIDNIGHT_S + 2)
    rig.rows(3)
    rig.commit()
    card.done.clear()
    rig.book.raise_alarm("case", "open", stands=True)
    rig.rows(9)
    rig.commit()
    done = [(one.kind, one.path.relative_to(rig.state).parts[0]) for one in card.done]
    assert done == [
        ("append", "events"), ("sync", "events"),
        ("append", "samples"), ("sync", "samples"),
        ("create", "blocks"), ("sync_folder", "blocks"),
        ("append", "events"), ("sync", "events"),
    ]  # fmt: skip
    assert b"sealed" in card.done[-2].data
    assert len(card.done[2].data) == 9 * headers(rig)[0].row_bytes, "the reading past the end too"


def test_a_checkpoint_comes_behind_all_that_it_stands_on(tmp_path: Path) -> None:
    card = RecordingCard()
    rig = Rig(tmp_path / "account", card=card)
    rig.start(MIDNIGHT_S - 122)
    rig.rows(25)
    rig.commit()
    kinds = [one.kind for one in card.done]
    at = kinds.index("replace")
    assert kinds.count("replace") == 1
    unsynced = {one.path for one in card.done[:at] if one.kind == "append"}
    for one in card.done[:at]:
        if one.kind == "sync":
            unsynced.discard(one.path)
    assert unsynced == set()


def test_the_same_readings_make_the_same_account(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        rig = Rig(tmp_path / name)
        rig.start(MIDNIGHT_S - 100)
        rig.rows(60)
        rig.stop()
        made.append({p.relative_to(rig.state): p.read_bytes() for p in rig.state.rglob("*.seg")})
    assert made[0] == made[1]


def test_small_and_large_commits_make_the_same_account(tmp_path: Path) -> None:
    made = []
    for each in (1, 1000):
        rig = Rig(tmp_path / str(each))
        rig.start(MIDNIGHT_S - 100)
        for number in range(60):
            rig.rows(1)
            if number % each == 0:
                rig.commit()
        rig.stop()
        made.append({p.relative_to(rig.state): p.read_bytes() for p in rig.state.rglob("*.seg")})
    assert made[0] == made[1]


def test_sealing_what_is_open_is_what_the_next_start_would_do(tmp_path: Path) -> None:
    made = []
    for at_once in (True, False):
        rig = Rig(tmp_path / str(at_once))
        rig.start(MIDNIGHT_S - 100)
        rig.rows(40)
        rig.wait(0, step_ms=400 * DAY_S * 1000)
        rig.rows(7)
        rig.commit()
        if at_once:
            rig.book.seal_open()
        else:
            rig.start(MIDNIGHT_S + 4000)
        rig.commit()
        rig.assert_good()
        made.append(spans(rig))
        assert rig.book.log.open_records == 0
    assert made[0] == made[1]


def test_a_book_forgets_what_recovery_found(rig: Rig) -> None:
    """The events of a whole account, where its checkpoint was lost."""
    book: Bookkeeper = rig.start(MIDNIGHT_S)
    assert book._recovered is None


# --- a full card -------------------------------------------------------------------------------


def test_a_full_card_loses_samples_and_no_energy(rig: Rig, tmp_path: Path) -> None:
    other = Rig(tmp_path / "other")
    for one in (rig, other):
        one.start(MIDNIGHT_S)
        one.rows(20)
        one.book.storing = one is other
        one.rows(40)
        one.commit()
        one.book.storing = True
        one.rows(40)
        one.commit()
    assert rig.book.registers_uj() == other.book.registers_uj()
    assert [b.energy for b in rig.blocks] == [b.energy for b in other.blocks]
    flags = [span[2] for span in spans(rig)]
    assert flags == [("partial",), *[("samples lost",)] * 4, *[()] * 3]
    assert rig.assert_good().records < other.assert_good().records


def test_blocks_behind_a_full_card_can_be_audited_again(rig: Rig) -> None:
    """A wrong register in a later block is found: its rows are there again."""
    rig.start(MIDNIGHT_S)
    rig.rows(20)
    rig.book.storing = False
    rig.rows(8)
    rig.book.storing = True
    rig.rows(30)
    rig.book.cutter.sums[0] += 2
    rig.rows(12)
    rig.commit()
    bad = rig.verify().first_bad
    assert bad is not None
    assert bad.height == 5
    assert "add up to" in bad.reason


@pytest.mark.parametrize("offset_ms", [0, 3000])
@pytest.mark.parametrize("stops", range(10, 15))
@pytest.mark.parametrize("lasts", [1, 2, 3, 13])
def test_a_card_is_full_around_a_boundary(rig: Rig, stops: int, lasts: int, offset_ms: int) -> None:
    """The first or last lost reading is the one before, at, or behind the boundary."""
    rig.start(MIDNIGHT_S - 120 + offset_ms / 1000)
    rig.rows(stops)
    rig.book.storing = False
    rig.rows(lasts)
    rig.book.storing = True
    rig.rows(30)
    rig.commit()
    rig.assert_good()
    rig.start(MIDNIGHT_S + 300)
    rig.rows(3)
    rig.commit()
    rig.assert_good()


def test_a_card_that_is_full_from_the_start(rig: Rig) -> None:
    rig.start(MIDNIGHT_S - 30)
    rig.book.storing = False
    rig.rows(20)
    rig.commit()
    assert headers(rig) == []
    rig.book.storing = True
    rig.rows(30)
    rig.commit()
    rig.assert_good()
    uj = rig.imported_uj()
    rig.start(MIDNIGHT_S + 300)
    assert rig.imported_uj() == uj


def test_a_crash_on_a_full_card_keeps_what_was_sealed_and_what_was_stored(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(14)
    rig.commit()
    kept_uj = rig.imported_uj()
    rig.book.storing = False
    rig.rows(4)
    rig.commit()
    rig.start(MIDNIGHT_S + 100)
    assert rig.imported_uj() == kept_uj
    rig.rows(14)
    rig.commit()
    rig.assert_good()


def test_a_single_reading_lost_before_a_clock_step_leaves_a_block_of_nothing(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.book.storing = False
    rig.rows(1)
    rig.wait(0, step_ms=30_000)
    rig.rows(1)
    rig.stop()
    assert spans(rig) == [(0, 5, ("clock stepped", "gap", "partial", "samples lost"))]
    rig.assert_good()


def test_a_full_card_without_the_time(rig: Rig) -> None:
    rig.start(60, status="R")
    rig.rows(20)
    rig.book.storing = False
    rig.rows(20)
    uj = rig.imported_uj()
    rig.wait(0, step_ms=MIDNIGHT_S * 1000)
    rig.status = "S"
    rig.rows(1)
    assert rig.imported_uj() >= uj, "the energy of what was lost is counted"
    rig.book.storing = True
    rig.rows(30)
    rig.commit()
    assert "samples lost" in {name for span in spans(rig) for name in span[2]}
    assert spans(rig)[-1][2] == ()
    rig.assert_good()
