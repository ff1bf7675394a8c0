"""How the run before began, and where it ended, by the account alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.device.history import last_known, last_row_ms, last_started
from meterd.device.recovery import recover
from meterd.init import read_genesis
from meterd.ledger.chain import open_chain
from tests.rig import MIDNIGHT_S, Rig

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.device.recovery import Recovered

DAY_S = 86_400


def recovered(rig: Rig) -> Recovered:
    return recover(rig.state, open_chain(read_genesis(rig.state), rig.settings.meter.name))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "account")


def test_before_the_first_start_there_is_none(rig: Rig) -> None:
    assert last_started(rig.state) is None
    assert last_known(rig.state, recovered(rig)) is None


def test_the_last_start_is_found(rig: Rig) -> None:
    for run in (1, 2):
        rig.start(MIDNIGHT_S + 600 * run)
        rig.rows(3)
        rig.stop()
        found = last_started(rig.state)
        assert found is not None
        assert found["run"] == run
    assert last_known(rig.state, recovered(rig)) is None


def test_the_last_start_is_found_behind_days_that_have_segments_of_their_own(rig: Rig) -> None:
    rig.start(MIDNIGHT_S + DAY_S - 200)
    for _ in range(3):
        rig.rows(60)
        rig.wait((DAY_S - 400) * 1000)
        rig.commit()
    assert len(list((rig.state / "events").iterdir())) > 2
    found = last_started(rig.state)
    assert found is not None
    assert found["run"] == 1


def test_e2_after_a_cut_the_last_row_is_the_last_instant(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(20)
    rig.commit()
    last_ms, wall_ms = rig.boot_ms, rig.wall_ms
    rig.rows(3)  # what was not committed is lost with the power
    rig.card.close()
    found = recovered(rig)
    assert last_row_ms(rig.state, found) == last_ms
    assert last_known(rig.state, found) == (1, last_ms, wall_ms)


def test_e2_after_a_cut_behind_a_block_the_last_event_is_the_last_instant(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.commit()
    rig.card.close()
    assert last_known(rig.state, recovered(rig)) == (1, 1000, MIDNIGHT_S * 1000)
