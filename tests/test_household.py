from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from meterd.errors import UsageError
from meterd.household import (
    CIRCUITS,
    DAY_S,
    Channel,
    Moment,
    local_ms,
    read_recording,
    synthetic_household,
)

if TYPE_CHECKING:
    from pathlib import Path

WINTER_MS = local_ms("2024-01-10T00:00:00")
SUMMER_MS = local_ms("2024-07-10T00:00:00")
MINUTES = """timestamp,voltage_v,current_a,active_power_w,more
2007-01-08T00:00:00,243.74,5.8,1402,1
2007-01-08T00:01:00,,,,
2007-01-08T00:02:00,243.41,5.6,1398.5,1
"""
ENERGIES = """household,timestamp,consumption_kwh,generation_kwh
a,2013-01-01T00:00:00,0.5,0.2
a,2013-01-01T00:30:00,0.1,0.35
b,2013-01-01T00:00:00,9,
"""


def powers_w(day_ms: int, seed: int = 1) -> list[float]:
    """Return the mains power at each minute of a day."""
    household = synthetic_household(seed)
    moments = (household(day_ms + at_s * 1000) for at_s in range(0, DAY_S, 60))
    return [moment.channels[0].power_mw / 1000 for moment in moments if moment]


def test_a_model_household_lives_the_same_way_again() -> None:
    assert powers_w(WINTER_MS) == powers_w(WINTER_MS)
    assert powers_w(WINTER_MS) != powers_w(WINTER_MS, seed=2)
    assert powers_w(WINTER_MS) != powers_w(WINTER_MS + DAY_S * 1000)


def test_a_model_household_can_be_asked_in_any_order() -> None:
    household, again = synthetic_household(1), synthetic_household(1)
    times_ms = [WINTER_MS + hour * 3_600_000 for hour in range(-50, 50)]

    forth = [household(at_ms) for at_ms in times_ms]
    back = [again(at_ms) for at_ms in reversed(times_ms)]

    assert forth == back[::-1]


def test_a_model_household_draws_what_a_household_draws() -> None:
    winter = powers_w(WINTER_MS)

    assert 8 < sum(winter) / 60_000 < 60  # kWh a day, with a heat pump
    assert max(winter) > 2000  # somebody boils water
    assert (
        0 < min(powers_w(WINTER_MS)[:240]) < 300
    )  # at night the heat pump rests, the rest stands by
    assert max(winter) < 10_000


def test_a_model_household_feeds_the_grid_on_a_summer_noon() -> None:
    summer = powers_w(SUMMER_MS)

    assert min(summer[11 * 60 : 13 * 60]) < -500
    assert min(summer[: 3 * 60]) > 0


def test_the_circuits_are_parts_of_the_mains() -> None:
    household = synthetic_household(3)
    for at_s in range(0, DAY_S, 977):
        moment = household(SUMMER_MS + at_s * 1000)
        assert moment is not None
        mains, *circuits, sun = moment.channels
        assert len(moment.channels) == len(CIRCUITS)
        rest_mw = mains.power_mw + sun.power_mw - sum(circuit.power_mw for circuit in circuits)
        assert 40_000 < rest_mw < 500_000  # fridge, lights, standby
        assert 210_000 < mains.voltage_mv < 245_000
        assert mains.current_ma * mains.voltage_mv >= 999 * abs(mains.power_mw)


def written(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["minutes.csv", "minutes.csv.gz"])
def test_a_recording_holds_each_point_until_the_next(tmp_path: Path, name: str) -> None:
    recording = read_recording(written(tmp_path / name, MINUTES))
    first_ms = local_ms("2007-01-08T00:00:00")

    assert (recording.start_ms, recording.end_ms) == (first_ms, first_ms + 180_000)
    first = Moment((Channel(1_402_000, 5800, 243_740),))
    last = Moment((Channel(1_398_500, 5600, 243_410),))
    at_s = (-1, 0, 59, 60, 119, 120, 179, 180)
    assert [recording(first_ms + at * 1000) for at in at_s] == [
        None,
        first,
        first,
        None,
        None,
        last,
        last,
        None,
    ]


def test_energies_become_mean_powers(tmp_path: Path) -> None:
    recording = read_recording(written(tmp_path / "year.csv", ENERGIES), "a")

    moments = [recording(recording.start_ms + at_s * 1000) for at_s in (0, 1800, 3599, 3600)]

    assert [moment and moment.channels[0].power_mw for moment in moments] == [
        600_000,
        -500_000,
        -500_000,
        None,
    ]


def test_a_recording_of_one_point_is_a_day(tmp_path: Path) -> None:
    text = "".join(MINUTES.splitlines(keepends=True)[:2])
    recording = read_recording(written(tmp_path / "one.csv", text))
    assert recording.end_ms - recording.start_ms == DAY_S * 1000


@pytest.mark.parametrize(
    ("text", "household", "message"),
    [
        pytest.param(ENERGIES, None, "do not ascend", id="several households"),
        pytest.param(ENERGIES, "c", "no points", id="a stranger's"),
        pytest.param(ENERGIES, "b", "no points", id="one interval: of unknown length"),
        pytest.param(MINUTES, "a", "no column household", id="one without a name"),
        pytest.param("", None, "columns", id="nothing"),
        pytest.param("a,b\n1,2\n", None, "columns", id="other columns"),
        pytest.param(MINUTES.replace("1402", "much"), None, "line 2", id="a power that is none"),
        pytest.param(MINUTES.replace("T00:02", "x"), None, "line 4", id="a time that is none"),
        pytest.param(MINUTES + "2007-01-08T00:03:00\n", None, "line 5", id="a torn line"),
    ],
)
def test_what_is_no_recording_is_refused(
    tmp_path: Path, text: str, household: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_recording(written(tmp_path / "some.csv", text), household)


def test_the_real_household_is_read(data_dir: Path) -> None:
    recording = read_recording(data_dir / "household-2007-01-08-28d.csv.gz")

    assert recording.end_ms - recording.start_ms == 28 * DAY_S * 1000
    times_ms = range(recording.start_ms, recording.end_ms, 60_000)
    moments = [recording(at_ms) for at_ms in times_ms]
    assert moments.count(None) == 2  # its two gaps
    kwh = sum(moment.channels[0].power_mw for moment in moments if moment) / 60_000_000
    assert kwh == pytest.approx(1086.1, abs=0.05)


def test_a_real_prosumer_is_read(data_dir: Path) -> None:
    recording = read_recording(data_dir / "halfhour-year.csv.gz", "ausgrid12")

    times_ms = range(recording.start_ms, recording.end_ms, 1_800_000)
    moments = [recording(at_ms) for at_ms in times_ms]
    kwh = sum(moment.channels[0].power_mw for moment in moments if moment) / 2_000_000
    assert len(moments) == 17_568
    assert kwh == pytest.approx(11_876.7 - 2_592.8, abs=0.1)
