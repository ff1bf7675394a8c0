from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.device.archive import segment_name, segment_numbers
from meterd.device.vault_events import DETAIL, ERASED, PUT, READ, version_named
from tests.rig import MIDNIGHT_S, Rig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    return rig


def test_an_account_without_a_vault_names_no_version(rig: Rig) -> None:
    rig.stop()
    assert version_named(rig.state) == 0
    assert version_named(rig.state / "nothing") == 0


def test_the_last_event_of_the_vault_names_its_version(rig: Rig) -> None:
    for version, kind in ((1, PUT), (2, PUT), (5, ERASED)):
        rig.book.event(kind, (("subject", "flat-3"), (DETAIL, version)))
    rig.book.event("parameters", ((DETAIL, 99), ("nothing", "of the vault's")))
    rig.stop()
    assert version_named(rig.state) == 5


def test_an_event_that_somebody_has_added_makes_no_vault_of_before_the_newest(rig: Rig) -> None:
    rig.book.event(PUT, (("subject", "flat-3"), (DETAIL, 7)))
    rig.stop()
    rig.start(MIDNIGHT_S + 3600)
    rig.book.event(READ, (("subject", "flat-3"), ("purpose", "person"), (DETAIL, 3)))
    rig.stop()
    rig.assert_good()
    assert len(segment_numbers(rig.state / "events")) == 2
    assert version_named(rig.state) == 7


def test_what_an_account_named_before_it_began_anew_counts(rig: Rig) -> None:
    rig.book.event(PUT, (("subject", "flat-3"), (DETAIL, 7)))
    rig.stop()
    (rig.state / "before-3").mkdir()
    (rig.state / "events").rename(rig.state / "before-3" / "events")
    (rig.state / "events").mkdir()
    assert version_named(rig.state) == 7


def test_damage_is_left_to_who_verifies(rig: Rig) -> None:
    rig.book.event(PUT, (("subject", "flat-3"), (DETAIL, 7)))
    rig.stop()
    folder = rig.state / "events"
    path = folder / segment_name(segment_numbers(folder)[-1])
    path.write_bytes(path.read_bytes() + b"torn")
    assert version_named(rig.state) == 7
    path.write_bytes(b"nothing of the kind")
    assert version_named(rig.state) == 0
