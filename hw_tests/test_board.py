"""The board on its port: what it says, how often, and what the load looks like to it."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from hw_tests.rig import PATIENCE_S
from meterd.config import load
from meterd.metering.board import BoardDecoder

if TYPE_CHECKING:
    from hw_tests.rig import Rig

LINES = 8
TOLERANCE = 0.05  # of the load's power: a clamp is good for 3 %, a plug-in meter for 1 %
NOISE_W_MAX = 30.0  # of a clamp of 100 A with nothing in it: 25 W on the oldest boards
CADENCE_TOLERANCE = 0.25  # past it the meter has an alarm
UN_MIN, UN_MAX = 0.7, 1.3  # of the nominal voltage
ENERGY_S = 60
HOLE_LINES = 15  # a gap takes more than three
ENERGY_TOLERANCE = 0.25  # of a few lines, whose distance jitters; the hole is longer than they are


def test_the_board_speaks_at_its_baud_and_in_its_layout(rig: Rig) -> None:
    heard, _ = rig.listen(LINES)
    decoder = BoardDecoder(load(rig.house.config).rules, joins=True)
    decoder.receive(heard, 0)
    dropped = {kind: n for kind, n in decoder.dropped.items() if (kind, n) != ("partial", 1)}
    assert decoder.accepted >= LINES - 2, f"38400 baud? layout? it said {heard[-200:]!r}"
    assert sum(dropped.values()) <= 1, f"{dropped}, the last {decoder.last_dropped!r}"


def test_the_cadence_is_the_one_of_the_settings(rig: Rig) -> None:
    _, ends_s = rig.listen(LINES)
    assert len(ends_s) >= LINES, "too few lines: is the board's `polling` longer than --polling-ms?"
    cadence_ms = (ends_s[-1] - ends_s[1]) / (len(ends_s) - 2) * 1000
    assert abs(cadence_ms / rig.bench.polling_ms - 1) <= CADENCE_TOLERANCE, (
        f"the board speaks every {cadence_ms:.0f} ms"
    )


def test_the_known_load_is_measured_and_drawn(rig: Rig) -> None:
    with rig.metering() as meter:
        readings = rig.live(0)
        assert meter.stop() == 0
    power_w = median(reading["power_mw"] for reading in readings) / 1000
    assert power_w > 0, f"{power_w:.0f} W: turn the clamp round, or set `reversed = true`"
    assert abs(power_w / rig.bench.load_w - 1) <= TOLERANCE, f"{power_w:.1f} W"
    volts = median(reading["voltage_mv"] for reading in readings) / 1000
    if volts:  # this layout measures it
        nominal_v = float(load(rig.house.config).rules.nominal_v)
        assert UN_MIN * nominal_v <= volts <= UN_MAX * nominal_v, f"{volts:.1f} V: the adaptor?"


def test_with_the_load_off_there_is_nothing_but_noise(rig: Rig) -> None:
    rig.need_hand("switch the load off")
    rig.switch_load(on=False)
    with rig.metering() as meter:
        power_w = median(reading["power_mw"] for reading in rig.live(0)) / 1000
        assert meter.stop() == 0
    rig.switch_load(on=True)
    assert abs(power_w) <= NOISE_W_MAX, f"{power_w:.1f} W: what else is on this cable?"


def test_energy_over_a_minute_is_power_times_time(rig: Rig) -> None:
    with rig.metering() as meter:
        readings = rig.live(ENERGY_S)
        assert meter.stop() == 0
    first, last = readings[0], readings[-1]
    energy_uj = last["import_uj"] - first["import_uj"]
    lasted_ms = last["wall_ms"] - first["wall_ms"]
    stated_uj = rig.bench.load_w * 1000 * lasted_ms
    assert abs(energy_uj / stated_uj - 1) <= TOLERANCE, f"{energy_uj / lasted_ms / 1000:.1f} W"
    assert last["export_uj"] == first["export_uj"]


def test_a_cable_that_is_pulled_is_an_alarm_and_a_gap_without_energy(rig: Rig) -> None:
    rig.need_hand("pull the cable")
    with rig.metering() as meter:
        rig.pull_cable()
        meter.hear("alarm=port", deadline_s=rig.real_s(60) + PATIENCE_S)
        rig.pass_cadences(HOLE_LINES)
        rig.plug_cable()
        meter.hear("alarm_over alarm=port", deadline_s=rig.real_s(60) + PATIENCE_S)
        rig.live(0)
        told = rig.told("Registers")
        assert meter.stop() == 0
    assert told["gaps"] >= 1
    lines = told["readings"]["accepted"] - 1 - told["gaps"]  # nothing is known before each first
    measured_uj = lines * rig.bench.polling_ms * rig.bench.load_w * 1000
    counted_uj = told["registers"]["1-0:1.8.0"]["uj"]
    assert abs(counted_uj / measured_uj - 1) <= ENERGY_TOLERANCE, "the hole was counted"
    rig.house.verify_good()
