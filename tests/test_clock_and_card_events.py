"""Row E1: what happens to clock and card is one event each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.event_kinds import class_of
from tests.rig import MIDNIGHT_S, Rig

if TYPE_CHECKING:
    from pathlib import Path

HOUR_MS = 3_600_000


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path / "account")
    rig.start(MIDNIGHT_S)
    rig.rows(5)
    return rig


def of_class(rig: Rig, area: str) -> list[str]:
    return [event.kind for event in rig.events if class_of(event.kind, dict(event.details)) == area]


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS], ids=["ahead", "back"])
def test_e1_a_clock_that_is_set_and_one_that_steps_are_one_event_each(
    rig: Rig, step_ms: int
) -> None:
    rig.wait(0, step_ms=step_ms)
    rig.rows(5)
    rig.stop()
    assert of_class(rig, "clock")[:2] == ["clock_set", "clock_stepped"]
    assert [kind for kind in of_class(rig, "clock") if kind.startswith("clock_")] == [
        "clock_set",
        "clock_stepped",
    ]
    [stepped] = rig.told("clock_stepped")
    assert stepped["by_ms"] == str(step_ms)
    rig.assert_good()


def test_e1_what_power_cut_off_is_one_event(rig: Rig) -> None:
    rig.commit()
    rig.card.close()
    [segment] = (rig.state / "events").iterdir()
    with segment.open("ab") as file:
        file.write(b"\x00\x00")
    for _ in range(2):
        rig.start(MIDNIGHT_S + 600)
        rig.rows(5)
        rig.stop()
    assert of_class(rig, "storage") == ["torn_tail"]
    assert rig.told("torn_tail")[0]["stream"] == "events"
    rig.assert_good()
