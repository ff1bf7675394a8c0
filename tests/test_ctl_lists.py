"""What an account has counted, as `meterctl` lists it: registers, blocks, samples, events."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from nacl.signing import SigningKey

from meterd.ctl.account import StoredAccount
from meterd.ctl.options import instant
from meterd.ctl.registers import registers_of
from meterd.ctl.show import Column, kwh, local, print_table, zone_of
from meterd.device.archive import segment_name
from meterd.init import create_account
from meterd.replay import Line, Replay
from tests.accounts import SALT_SEED, SEED, QuietCard, replay_lines, settings_of
from tests.ctl_kit import BEGIN_S, CONFIG, HOUR_S, PARIS, Ctl, Made, copy, ctl, edit, made

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["copy", "ctl", "made"]


# --- registers and lists ----------------------------------------------------------------------


def test_registers_agree_with_what_the_replay_said(ctl: Ctl, made: Made) -> None:
    said = ctl("registers", "--state", made.state, "--json")
    assert said.status == 0
    assert said.json == made.reply
    assert made.reply["readings"]["dropped"] == {"banner": 1, "duplicate": 1}
    assert made.reply["gaps"] == 1


@pytest.mark.parametrize("readings", [1, 2, 7, 300, 500])
def test_registers_of_what_is_not_sealed_yet_are_the_daemon_s(
    tmp_path: Path, readings: int
) -> None:
    """Rows with odd halves, over a boundary and a restart; as they are on the card."""
    settings = settings_of(CONFIG)
    create_account(tmp_path / "a", settings, SEED)
    replay = Replay(tmp_path / "a", settings, key=SigningKey(SEED), salt_seed=SALT_SEED)
    replay._card = QuietCard()
    for number in range(readings):
        if number == 250:
            replay.feed(Line(1, -1, None, b""))
        wall_ms = BEGIN_S * 1000 + number * 300_001
        raw = b"11 %d.001 0.0 0.0 4100.0 0.0 0.0 231.4" % (500 + number)
        replay.feed(Line(1, wall_ms, None, raw))
    replay._end_boot()
    assert replay.book is not None
    said = registers_of(StoredAccount(tmp_path / "a"))
    assert {code: entry["uj"] for code, entry in said["registers"].items()} == {
        code: uj for code, (uj, _) in replay.book.registers_uj().items()
    }
    assert said["readings"]["accepted"] == readings
    assert said["height"] == replay.book.chain.head.height


def test_registers_stay_when_samples_are_pruned(ctl: Ctl, copy: Path, made: Made) -> None:
    said = ctl("prune", "--state", copy, "--before", "2007-07-04T02:00", "--json")
    assert said.status == 0
    assert said.json["segments"] == 1
    assert said.json["bytes"] > 0
    assert ctl("registers", "--state", copy, "--json").json == made.reply
    assert ctl("verify", copy).status == 0
    assert "1 segment of samples rightly pruned" in ctl("verify", copy).out


def test_registers_are_shown_in_kwh(ctl: Ctl, made: Made) -> None:
    out = ctl("registers", "--state", made.state).out
    uj = made.reply["registers"]["1-0:1.8.0"]["uj"]
    assert re.search(rf"1-0:1\.8\.0 +import +{re.escape(kwh(uj))}  kWh   measured", out)
    assert "kVAh" in out
    assert "2 dropped (1 banner, 1 duplicate), 1 gap" in out


def test_registers_of_an_account_without_a_start(ctl: Ctl, tmp_path: Path) -> None:
    create_account(tmp_path / "new", settings_of(CONFIG), SEED)
    said = ctl("registers", "--state", tmp_path / "new", "--json")
    assert said.json == {
        "registers": {},
        "readings": {"accepted": 0, "dropped": {}},
        "gaps": 0,
        "height": 0,
    }


def test_blocks_are_listed_with_all_they_say(ctl: Ctl, made: Made) -> None:
    blocks = ctl("blocks", "--state", made.state, "--json").lines
    assert [block["height"] for block in blocks] == list(range(1, made.reply["height"] + 1))
    assert all(
        early["hash"] == late["previous"] and early["end_s"] == late["start_s"]
        for early, late in pairwise(blocks)
    )
    last = blocks[-1]["registers"]
    assert {code: entry["last_uj"] for code, entry in last.items()} == {
        code: entry["uj"] for code, entry in made.reply["registers"].items()
    }


def test_lists_are_cut_by_time_and_number(ctl: Ctl, made: Made) -> None:
    options = ("--state", made.state, "--json", "--from", "2007-07-04", "--to", "2007-07-05")
    begin_s, end_s = BEGIN_S + 22 * HOUR_S, BEGIN_S + 46 * HOUR_S
    blocks = ctl("blocks", *options).lines
    assert (blocks[0]["start_s"], blocks[-1]["end_s"]) == (begin_s, end_s)
    samples = ctl("samples", *options).lines
    assert samples[0]["wall_ms"] == begin_s * 1000
    assert samples[-1]["wall_ms"] == end_s * 1000 - 300_000
    assert [s["wall_ms"] for s in ctl("samples", *options, "--last", "2").lines] == [
        sample["wall_ms"] for sample in samples[-2:]
    ]
    events = ctl("events", *options).lines
    assert all(begin_s * 1000 <= event["wall_ms"] < end_s * 1000 for event in events)
    assert len(ctl("events", "--state", made.state, "--json", "--last", "3").lines) == 3


def test_samples_are_the_board_s_lines(ctl: Ctl, made: Made) -> None:
    samples = ctl("samples", "--state", made.state, "--json").lines
    assert len(samples) == made.reply["readings"]["accepted"]
    assert samples[0] == {
        "segment": 1,
        "row": 0,
        "run": 1,
        "height": 1,
        "wall_ms": BEGIN_S * 1000,
        "boot_ms": 0,
        "voltage_mv": 231_400,
        "apparent_mva": 948_740,
        "clamps": [{"name": "mains", "power_mw": 900_250, "current_ma": 4100}],
        "flags": ["gap"],
    }
    assert samples[-1]["run"] == 2
    assert ctl("samples", "--state", made.state, "--json", "--last", "1").lines == samples[-1:]


def test_events_can_be_chosen_by_kind(ctl: Ctl, made: Made) -> None:
    events = ctl("events", "--state", made.state, "--json", "--kind", "started").lines
    assert [event["details"]["run"] for event in events] == [1, 2]


def test_a_time_among_the_details_of_an_event_is_local_and_in_json_as_it_is(
    ctl: Ctl, made: Made
) -> None:
    events = ("events", "--state", made.state, "--kind", "clock_set")
    shown, (event, *_) = ctl(*events).out, ctl(*events, "--json").lines
    wall_ms = event["details"]["wall_ms"]
    assert f"wall={local(wall_ms // 1000, zone_of(PARIS))}" in shown
    assert "wall_ms" not in shown
    assert "error_ms=" in shown


def test_behind_a_cell_that_is_too_wide_details_stay_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns = (Column("time", 25), Column("event", 10), Column("details"))
    rows = [
        (
            "t",
            "technician_entered",
            "certificate=jo serial=1 key=SHA256:f4jClm0zhz4odVpU source=::1",
        ),
        ("t", "technician_left", "certificate=jo"),
        ("t", "stopped", ""),
    ]
    print_table(columns, rows)
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["t", "technician_entered"],
        ["certificate=jo", "serial=1"],
        ["key=SHA256:f4jClm0zhz4odVpU", "source=::1"],
        ["t", "technician_left", "certificate=jo"],
        ["t", "stopped"],
    ]


def test_a_kind_of_event_that_there_is_not_is_told(ctl: Ctl, made: Made) -> None:
    said = ctl("events", "--state", made.state, "--kind", "clock_reset")
    assert (said.status, len(said.out.splitlines())) == (0, 1)
    assert "no event is called 'clock_reset'; there is clock_set, clock_stepped" in said.err
    assert ctl("events", "--state", made.state, "--kind", "magnet").err == ""


@pytest.mark.parametrize("command", ["blocks", "samples", "events"])
def test_a_damaged_account_is_shown_up_to_the_damage_and_told(
    ctl: Ctl, copy: Path, command: str
) -> None:
    stream = "blocks" if command == "samples" else command
    whole = len(ctl(command, "--state", copy, "--json").lines)
    edit(copy / stream / segment_name(2), 3000)
    said = ctl(command, "--state", copy, "--json")
    assert said.status == 74
    assert 0 < len(said.lines) <= whole
    assert f"{stream} segment 2, byte" in said.err


@pytest.mark.parametrize("command", ["registers", "blocks", "samples", "events", "usage", "status"])
def test_text_has_eighty_columns(ctl: Ctl, made: Made, command: str) -> None:
    out = ctl(command, "--state", made.state).out
    assert out
    assert [line for line in out.splitlines() if len(line) > 80] == []


# --- usage ------------------------------------------------------------------------------------


def test_usage_adds_up_to_the_registers(ctl: Ctl, made: Made) -> None:
    usage = ctl("usage", "--state", made.state, "--days", "9", "--json").json
    assert usage["zone"] == PARIS
    assert [day["date"] for day in usage["days"]] == [f"2007-07-0{day}" for day in (3, 4, 5, 6)]
    for name, code in (("import_uj", "1-0:1.8.0"), ("export_uj", "1-0:2.8.0")):
        whole = made.reply["registers"][code]["uj"]
        assert sum(day[name] for day in usage["days"]) == whole
        assert sum(hour[name] for day in usage["days"] for hour in day["hours"]) == whole


@pytest.mark.parametrize(
    ("date", "hours"), [("2007-03-25", 23), ("2007-10-28", 25), ("2007-07-03", 24)]
)
def test_a_day_has_the_hours_that_its_zone_gives_it(
    ctl: Ctl, tmp_path: Path, date: str, hours: int
) -> None:
    begin_s = instant(date, zone_of(PARIS)) - HOUR_S
    lines = [
        f"{begin_s + number * 300}\t11 600.0 0.0 0.0 4100.0 0.0 0.0 231.4\n"
        for number in range(12 * 28)
    ]
    replay_lines(lines, CONFIG, tmp_path / "a")
    (day,) = ctl("usage", "--state", tmp_path / "a", "--day", date, "--json").json["days"]
    assert len(day["hours"]) == hours
    assert day["import_uj"] == hours * HOUR_S * 600_000_000 // 1000 * 1000
    assert day["measured_ms"] == hours * HOUR_S * 1000
    text = ctl("usage", "--state", tmp_path / "a", "--day", date).out
    assert ("02:00 +0200" in text) == (hours == 25)


def test_usage_draws_bars_and_marks_what_was_measured_in_part(ctl: Ctl, made: Made) -> None:
    out = ctl("usage", "--state", made.state, "--days", "2").out
    assert "█" in out
    assert re.search(r"Fri 2007-07-06\*", out)
    assert "* measured in part" in out


def test_usage_of_nothing(ctl: Ctl, tmp_path: Path) -> None:
    create_account(tmp_path / "new", settings_of(CONFIG), SEED)
    assert ctl("usage", "--state", tmp_path / "new").out == "nothing is sealed yet\n"
    assert ctl("usage", "--state", tmp_path / "new", "--json").json["days"] == []
