from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from nacl.signing import SigningKey

from meterd.config import load
from meterd.ctl import COMMANDS, main
from meterd.ctl.account import StoredAccount
from meterd.ctl.options import Span, instant, socket_of
from meterd.ctl.owner import as_owner
from meterd.ctl.registers import registers_of
from meterd.ctl.show import Column, bar, kwh, local, print_table, zone_of
from meterd.ctl.verify import ONE_WORKER_BYTES_MAX, workers_for
from meterd.device.archive import segment_name
from meterd.device.control import ControlServer
from meterd.device.keys import load_seal
from meterd.errors import UsageError
from meterd.init import create_account, read_genesis
from meterd.ledger.encoding import take_apart, verify_seal
from meterd.replay import Line, Replay
from tests.accounts import SALT_SEED, SEED, QuietCard, config_text, replay_lines, settings_of
from tests.doors import Doors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from meterd.device.control import (
        LiveReading,
        PruneReply,
        RegistersReply,
        ReportReply,
        StatusReply,
    )

BEGIN_S = 1_183_500_000 - 1_183_500_000 % 86_400  # 2007-07-03 00:00 UTC
HOUR_S = 3600
DAYS = 3
PARIS = "Europe/Paris"
CONFIG = config_text(polling_ms=300_000).replace(
    "interval_s = 1800", f'interval_s = 1800\nzone = "{PARIS}"'
)


class Said(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the program prints
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Ctl:
    """Runs `meterctl` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Said:
        self._capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        said = self._capsys.readouterr()
        return Said(status, said.out, said.err)


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(capsys)


def program(*arguments: object, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Run `meterctl` as a program, nobody at the terminal."""
    return subprocess.run(
        [sys.executable, "-c", "import sys; from meterd.ctl import main; sys.exit(main())"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=dict(os.environ) | environ,
        check=False,
        timeout=60,
    )


def capture() -> Iterator[str]:
    """Three days, the sun by day, a restart, a hole, a banner and a line twice."""
    for number in range(DAYS * 288):
        second = BEGIN_S + number * 300
        watts = 900 + number % 100 if (number // 12) % 24 not in range(9, 16) else -700 - number % 9
        if 300 < number < 310:
            continue
        yield f"{second}\t11 {watts}.25 0.0 0.0 4100.0 0.0 0.0 231.4\n"
        if number == 40:
            yield f"{second}\t# RPICT3 \\xa0\\x00\n"
            yield f"{second + 1}\t11 {watts}.25 0.0 0.0 4100.0 0.0 0.0 231.4\n"
        if number == 500:
            yield "!restart\n"


class Made(NamedTuple):
    state: Path
    reply: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    state = tmp_path_factory.mktemp("ctl") / "account"
    account = replay_lines(capture(), CONFIG, state)
    reply = {
        "registers": {
            code: {"uj": uj, "kind": "estimated" if account.kinds[code] else "measured"}
            for code, uj in sorted(account.registers.items())
        },
        "readings": {"accepted": account.accepted, "dropped": account.dropped},
        "gaps": account.gaps,
        "height": len(account.blocks),
    }
    return Made(state, reply)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.state, tmp_path / "copy"))


def edit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# --- energy, times, spans ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uj", "shown"),
    [
        (0, "0.000"),
        (3_599_999_999, "0.000"),
        (3_600_000_000, "0.001"),
        (2**63 - 1, "2562047.788"),
        (3_600_000_000 * 1_234_567, "1234.567"),
    ],
)
def test_energy_is_shown_in_whole_watt_hours(uj: int, shown: str) -> None:
    assert kwh(uj) == shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2007-07-03", BEGIN_S - 7200),
        ("2007-07-03T02:00", BEGIN_S),
        ("2007-07-03T00:00:00Z", BEGIN_S),
        ("2007-07-03T05:30+05:30", BEGIN_S),
        (str(BEGIN_S), BEGIN_S),
    ],
)
def test_an_instant_is_local_unless_it_says_otherwise(text: str, seconds: int) -> None:
    assert instant(text, zone_of(PARIS)) == seconds


@pytest.mark.parametrize("text", ["", "yesterday", "2007-13-01", "2007-02-30", "1" * 40])
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        instant(text, UTC)


def test_a_row_without_a_time_is_in_no_span_that_was_chosen() -> None:
    assert Span(0, 10, 0, chosen=False).holds(None)
    assert not Span(0, 10, 0, chosen=True).holds(None)


def test_a_bar_is_drawn_with_what_the_terminal_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bar(1, 2, 10) == "█████"
    with open(os.devnull, "w", encoding="ascii") as ascii_only:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", ascii_only)
        assert bar(1, 2, 10) == "#####"
        assert bar(1, 1000, 10) == "#"


# --- verify -----------------------------------------------------------------------------------


def test_a_good_account_is_good(ctl: Ctl, made: Made) -> None:
    said = ctl("verify", made.state, "--json")
    assert said.status == 0
    assert said.json == {
        "verdict": "good",
        "blocks": made.reply["height"],
        "records": made.reply["readings"]["accepted"],
        "first_bad": None,
        "tail": None,
        "key": "self-asserted",
    }


def test_a_good_verdict_says_what_it_cannot_exclude(ctl: Ctl, made: Made) -> None:
    out = ctl("verify", made.state).out
    assert out.startswith(f"good: {made.reply['height']} blocks, ")
    assert "self-asserted: neither key nor genesis was given" in out
    assert "not excluded: that all of it was cut back to an earlier sealed state" in out


def test_the_head_that_a_verdict_shows_serves_the_next_one(ctl: Ctl, made: Made) -> None:
    key = ctl("key", "--state", made.state, "--json").json["key"]
    last = ctl("verify", made.state, "--key", key).out.splitlines()[-1]
    said = ctl("verify", made.state, "--key", key, "--head", last.removeprefix("head "))
    assert said.status == 0
    assert "self-asserted" not in said.out
    assert f"cut back to a state after block {made.reply['height']}" in said.out


def test_a_bad_account_is_bad_at_its_interval(ctl: Ctl, copy: Path) -> None:
    edit(copy / "samples" / segment_name(2), 3000)
    said = ctl("verify", copy, "--json")
    assert said.status == 1
    bad = said.json["first_bad"]
    assert list(bad) == ["stream", "height", "start_s", "segment", "offset", "reason"]
    assert (bad["stream"], bad["segment"]) == ("samples", 2)
    assert bad["offset"] <= 3000 < bad["offset"] + 48
    said = ctl("verify", copy)
    assert said.status == 1
    begins = datetime.fromtimestamp(bad["start_s"], zone_of(PARIS)).isoformat()
    assert said.out.startswith(f"bad: the interval from {begins} (")
    assert f"block {bad['height']}, samples segment 2, byte {bad['offset']}:" in said.out
    assert bad["reason"] in said.out


def test_a_tail_is_named_and_good(ctl: Ctl, copy: Path) -> None:
    last = max((copy / "samples").iterdir())
    size = last.stat().st_size
    with last.open("ab") as file:
        file.write(b"torn")
    said = ctl("verify", copy, "--json")
    assert said.status == 0
    assert said.json["tail"] == {"stream": "samples", "offset": size, "bytes": 4}
    assert f"tail: 4 bytes from byte {size} of samples" in ctl("verify", copy).out


@pytest.mark.parametrize(
    ("gone", "reason"),
    [("", "No such file"), ("genesis.cbor", "genesis"), ("blocks", "blocks")],
)
def test_what_is_no_account_is_unreadable(ctl: Ctl, copy: Path, gone: str, reason: str) -> None:
    path = copy / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    said = ctl("verify", copy, "--json")
    assert said.status == 2
    assert said.json["verdict"] == "unreadable"
    assert reason in said.err
    assert "meterctl: hint: " in said.err


def test_a_file_is_no_account(ctl: Ctl, copy: Path) -> None:
    said = ctl("verify", copy / "genesis.cbor")
    assert said.status == 2
    assert "name the folder that holds genesis.cbor" in said.err


def test_a_key_may_be_a_file_of_any_common_form(ctl: Ctl, made: Made, tmp_path: Path) -> None:
    key = SigningKey(SEED).verify_key
    forms: dict[str, bytes] = {
        "hex": bytes(key).hex().encode() + b"\n",
        "raw": bytes(key),
        "json": ctl("key", "--state", made.state, "--json").out.encode(),
        "text": ctl("key", "--state", made.state).out.encode(),
    }
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        said = ctl("verify", made.state, "--key", tmp_path / name, "--json")
        assert (said.status, said.json["key"]) == (0, "given"), name


def test_another_key_makes_it_bad(ctl: Ctl, made: Made) -> None:
    said = ctl("verify", made.state, "--key", "00" * 32, "--json")
    assert said.status == 1
    assert said.json["first_bad"]["stream"] == "genesis"
    assert ctl("verify", made.state, "--key", "00" * 32).out.startswith("bad: the genesis")


def test_the_secret_key_in_the_place_of_the_public_one_is_told(ctl: Ctl, made: Made) -> None:
    said = ctl("verify", made.state, "--key", made.state / "seal.key")
    assert said.status == 64
    assert "secret sealing key" in said.err
    assert SEED.hex() not in said.err


def test_a_genesis_from_elsewhere_is_what_it_is_judged_by(
    ctl: Ctl, made: Made, tmp_path: Path
) -> None:
    ours = made.state / "genesis.cbor"
    assert ctl("verify", made.state, "--genesis", ours).status == 0
    other = tmp_path / "other"
    create_account(other, settings_of(CONFIG), bytes(32))
    said = ctl("verify", made.state, "--genesis", other / "genesis.cbor", "--json")
    assert said.status == 1


def test_two_workers_say_the_same(made: Made) -> None:
    one = program("verify", made.state, "--workers", 1, "--json")
    two = program("verify", made.state, "--workers", 2, "--json")
    assert one.returncode == 0
    assert one.stdout == two.stdout


INTERRUPTED = """
import os, signal, sys
from meterd.ctl import main
from meterd.device import archive
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts `make test &` without it
def verify_seals(task):
    os.killpg(0, signal.SIGINT)
    return judged(task)
judged, archive.verify_seals = archive.verify_seals, verify_seals
sys.exit(main())
"""


def test_ctrl_c_ends_all_workers_without_a_word(made: Made) -> None:
    said = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "verify", str(made.state), "--workers", "2"],
        capture_output=True,
        start_new_session=True,
        check=False,
        timeout=60,
    )
    assert (said.returncode, said.stdout, said.stderr) == (130, b"", b"")


def test_a_small_account_starts_no_processes(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    with (tmp_path / "samples" / segment_name(1)).open("wb") as file:
        file.truncate(ONE_WORKER_BYTES_MAX - 1)
        assert workers_for(tmp_path) == 1
        file.truncate(ONE_WORKER_BYTES_MAX)
    assert workers_for(tmp_path) == os.cpu_count()
    assert workers_for(tmp_path / "absent") == 1


def test_verify_needs_no_rich(made: Made) -> None:
    script = (
        "import sys\nsys.modules['rich'] = None\nsys.modules['asyncvarlink'] = None\n"
        "from meterd.ctl import main\nsys.exit(main())"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, "verify", str(made.state), "--json"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (said.returncode, said.stderr) == (0, b"")


def test_nothing_is_written_by_a_command_that_reads(ctl: Ctl, copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    for command in ("registers", "blocks", "samples", "events", "usage", "status", "key"):
        assert ctl(command, "--state", copy, "--json").status == 0, command
    assert ctl("verify", copy).status == 0
    assert ctl("prune", "--state", copy, "--before", "2030-01-01", "--dry-run").status == 0
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


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


# --- key, export, config ----------------------------------------------------------------------


def test_the_key_is_shown_for_scripts_and_for_people(ctl: Ctl, made: Made) -> None:
    genesis = read_genesis(made.state)
    key = bytes(SigningKey(SEED).verify_key).hex()
    assert ctl("key", "--state", made.state, "--json").json == {
        "key": key,
        "meter": "kitchen-12",
        "genesis_hash": genesis.hash.hex(),
    }
    assert key in ctl("key", "--state", made.state).out


def test_an_exported_block_carries_its_own_seal(made: Made) -> None:
    said = program("export", "--height", 3, "--cose", METERD_STATE=str(made.state))
    assert (said.returncode, said.stderr) == (0, b"")
    sealed = take_apart(said.stdout)
    verify_seal(sealed, SigningKey(SEED).verify_key, read_genesis(made.state).hash)


def test_a_block_that_is_not_there_cannot_be_exported(ctl: Ctl, made: Made) -> None:
    said = ctl("export", "--state", made.state, "--height", "9999", "--cose")
    assert said.status == 69
    assert f"the last is block {made.reply['height']}" in said.err


BROKEN = '[meter]\nname = "Kitchen"\n\n[board]\nport = ""\n\n[[clamp]]\nname = "a"\nrole = "main"\n'


def test_config_check_names_every_mistake(ctl: Ctl, tmp_path: Path) -> None:
    path = tmp_path / "meterd.toml"
    path.write_text(BROKEN)
    said = ctl("config", "check", path)
    assert said.status == 78
    for told in ("line 2: meter.name: ", "line 5: board.port: ", "line 9: clamp.1.role: "):
        assert told in said.out
    assert said.out.endswith("3 mistakes\n")
    found = ctl("config", "check", path, "--json").json["mistakes"]
    assert [(mistake["key"], mistake["line"]) for mistake in found] == [
        ("meter.name", 2),
        ("board.port", 5),
        ("clamp.1.role", 9),
    ]
    assert found[2]["hint"] == "did you mean `mains`?"


def test_a_warning_is_no_mistake(ctl: Ctl, tmp_path: Path) -> None:
    path = tmp_path / "meterd.toml"
    path.write_text(CONFIG.replace("interval_s = 1800", "interval_s = 1200"))
    said = ctl("config", "check", path)
    assert said.status == 0
    assert said.out.startswith("warning: line ")
    assert said.out.endswith("1 warning\n")
    path.write_text(CONFIG)
    assert ctl("config", "check", path).out == f"{path}: no mistake\n"


# --- init -------------------------------------------------------------------------------------


def test_init_makes_settings_key_and_genesis(ctl: Ctl, tmp_path: Path) -> None:
    state, config = tmp_path / "state", tmp_path / "etc" / "meterd.toml"
    said = ctl(
        *("init", "--state", state, "--config", config, "--yes", "--json"),
        *("--name", "shed-1", "--port", "/dev/ttyUSB0", "--layout", "rpict3t1"),
        *("--fuse-a", "32", "--interval-s", "900", "--zone", "Asia/Kolkata", "--currency", "INR"),
        *("--mains-clamps", "3", "--polling-ms", "2000", "--nominal-v", "240"),
        *("--current-unit", "A", "--network", "demo-street"),
    )
    assert said.status == 0, said.err
    settings, genesis = load(config), read_genesis(state)
    assert (settings.meter.name, settings.board.port) == ("shed-1", "/dev/ttyUSB0")
    assert [clamp.role for clamp in settings.rules.clamps] == ["mains"] * 3
    assert (genesis.name, genesis.zone, genesis.currency) == ("demo-street", "Asia/Kolkata", "INR")
    assert (genesis.interval_s, genesis.meters[0].fuse_ma) == (900, 32_000)
    assert said.json["key"] == bytes(load_seal(state).verify_key).hex()
    assert said.json["genesis_hash"] == genesis.hash.hex()
    assert (state / "seal.key").stat().st_mode & 0o777 == 0o600
    assert ctl("config", "check", config).status == 0
    assert ctl("verify", state).status == 0


def test_init_goes_by_settings_that_exist(ctl: Ctl, tmp_path: Path) -> None:
    config = tmp_path / "meterd.toml"
    config.write_text(CONFIG)
    said = ctl("init", "--state", tmp_path / "state", "--config", config, "--yes")
    assert said.status == 0
    assert read_genesis(tmp_path / "state").zone == PARIS
    assert config.read_text() == CONFIG
    keys = {ctl("key", "--state", tmp_path / "state", "--json").json["key"]}
    ctl("init", "--state", tmp_path / "other", "--config", config, "--yes")
    keys.add(ctl("key", "--state", tmp_path / "other", "--json").json["key"])
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        pytest.param((), 64, "there is no terminal to ask at", id="nobody to ask"),
        pytest.param(("--yes", "--name", "Shed"), 64, "--name: expected 1 to 32", id="a bad name"),
        pytest.param(("--yes", "--zone", "Mars"), 64, "--zone: no time zone", id="a bad zone"),
        pytest.param(("--yes", "--fuse-a", "1\nx=2"), 64, "--fuse-a: expected", id="no number"),
        pytest.param(("--yes", "--interval-s", "1e3"), 64, "--interval-s: expected", id="no int"),
        pytest.param(("--yes", "--network", "X"), 64, "--network: expected", id="a bad network"),
        pytest.param(
            ("--yes", "--layout", "rpict3v1", "--mains-clamps", "4"), 64, "mains-clamps", id="4"
        ),
    ],
)
def test_init_makes_nothing_of(
    ctl: Ctl, tmp_path: Path, arguments: tuple[str, ...], status: int, told: str
) -> None:
    state, config = tmp_path / "state", tmp_path / "meterd.toml"
    said = ctl("init", "--state", state, "--config", config, *arguments)
    assert said.status == status
    assert told in said.err
    assert list(tmp_path.iterdir()) == []


def test_init_makes_no_account_over_another(ctl: Ctl, copy: Path, tmp_path: Path) -> None:
    config = tmp_path / "meterd.toml"
    said = ctl("init", "--state", copy, "--config", config, "--yes")
    assert said.status == 78
    assert "never made over another" in said.err
    assert not config.exists()
    assert ctl("verify", copy).status == 0


def test_init_refuses_flags_that_would_not_count(ctl: Ctl, tmp_path: Path) -> None:
    config = tmp_path / "meterd.toml"
    config.write_text(CONFIG)
    said = ctl(
        "init", "--state", tmp_path / "s", "--config", config, "--yes", "--name", "a", "--fuse-a", 9
    )
    assert said.status == 64
    assert "--name, --fuse-a would not count" in said.err
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write as somebody else")
def test_what_root_writes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 65_534, 65_534)
    for above in tmp_path.parents[:3]:
        above.chmod(above.stat().st_mode | 0o011)
    with as_owner(tmp_path):
        (tmp_path / "theirs").write_text("x")
    (tmp_path / "root's").write_text("x")
    assert (tmp_path / "theirs").stat().st_uid == 65_534
    assert (tmp_path / "root's").stat().st_uid == 0


# --- at a terminal ----------------------------------------------------------------------------


class Terminal(NamedTuple):
    status: int
    shown: str


def at_a_terminal(*arguments: object, typed: str = "", stdout_too: bool = True) -> Terminal:
    """Run `meterctl` on a pty and return what it shows there."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from meterd.ctl import main; sys.exit(main())"]
        + [str(argument) for argument in arguments],
        stdin=terminal,
        stdout=terminal if stdout_too else subprocess.DEVNULL,
        stderr=terminal,
        env=dict(os.environ) | {"COLUMNS": "80", "TERM": "xterm"},
        close_fds=True,
    )
    os.close(terminal)
    os.write(controller, typed.encode())
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the program has closed its end
        while data := os.read(controller, 4096):
            shown += data
    os.close(controller)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return Terminal(process.wait(30), text.replace("\r\n", "\n"))


def test_init_asks_at_a_terminal_and_shows_what_it_will_make(tmp_path: Path) -> None:
    state, config = tmp_path / "state", tmp_path / "meterd.toml"
    typed = "Shed!\nshed-1\n\nrpict3t1\n40\nAsia/Kolkata\ny\n"
    done = at_a_terminal("init", "--state", state, "--config", config, typed=typed)
    assert done.status == 0, done.shown
    assert "expected 1 to 32 of a-z, 0-9 and -, got 'Shed!'" in done.shown
    assert "a meter    shed-1: intervals of 1800 s in Asia/Kolkata" in done.shown
    assert load(config).rules.layout == "rpict3t1"
    assert read_genesis(state).meters[0].fuse_ma == 40_000


def test_init_takes_a_no(tmp_path: Path) -> None:
    state, config = tmp_path / "state", tmp_path / "meterd.toml"
    done = at_a_terminal("init", "--state", state, "--config", config, typed="\n\n\n\n\nn\n")
    assert done.status == 64
    assert "nothing was made" in done.shown
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_no_raw_bytes(made: Made) -> None:
    done = at_a_terminal("export", "--state", made.state, "--height", 1, "--cose")
    assert done.status == 64
    assert "stdout is a terminal" in done.shown


def test_a_terminal_gets_a_table_of_the_last_few(made: Made) -> None:
    done = at_a_terminal("blocks", "--state", made.state)
    assert done.status == 0
    lines = done.shown.splitlines()
    assert lines[0].split()[:2] == ["height", "start"]
    assert [line.split()[0] for line in lines[1:]] == [
        str(height) for height in range(made.reply["height"] - 19, made.reply["height"] + 1)
    ]
    assert all(len(line) <= 80 for line in lines)


def test_what_is_wrong_is_folded_between_words_at_a_terminal_and_one_line_elsewhere(
    ctl: Ctl, tmp_path: Path
) -> None:
    words = ("verify", tmp_path, "--key", tmp_path / "no such key, under a name that is long")
    [error, _] = ctl(*words).err.splitlines()
    assert len(error) > 80
    lines = at_a_terminal(*words).shown.splitlines()
    assert [line for line in lines if len(line) > 80 and " " in line.strip()[:60]] == []
    assert " ".join(line.strip() for line in lines).startswith(error)


def test_a_kind_of_event_that_there_is_not_is_told(ctl: Ctl, made: Made) -> None:
    said = ctl("events", "--state", made.state, "--kind", "clock_reset")
    assert (said.status, len(said.out.splitlines())) == (0, 1)
    assert "no event is called 'clock_reset'; there is clock_set, clock_stepped" in said.err
    assert ctl("events", "--state", made.state, "--kind", "magnet").err == ""


def test_a_verdict_at_a_terminal_shows_how_far_it_is(made: Made) -> None:
    done = at_a_terminal("verify", made.state, stdout_too=False)
    assert done.status == 0
    assert "verifying seals [" in done.shown


# --- the daemon -------------------------------------------------------------------------------

STATUS: StatusReply = {
    "name": "kitchen-12",
    "software": "ab" * 32,
    "state": "metering",
    "port": "open",
    "clock": "S",
    "height": 7,
    "last_end_s": BEGIN_S,
    "open": {"start_s": BEGIN_S, "records": 12, "power_mw": -1_500_250},
    "registers": {"1-0:1.8.0": {"uj": 3_600_000_000_000, "kind": "measured"}},
    "readings": {"accepted": 99, "dropped": {"banner": 1}},
    "gaps": 0,
    "storage_free_bytes": 12_000_000,
    "neighbours": {"voters": 0, "certified_height": 7, "order": 0, "waits": ""},
    "alarms": ["frozen: the board repeats one line"],
}
LIVE: LiveReading = {
    "wall_ms": BEGIN_S * 1000,
    "power_mw": -1_500_250,
    "voltage_mv": 231_400,
    "currents_ma": [6500],
    "import_uj": 3_600_000_000_000,
    "export_uj": 0,
}


class Daemon(Doors):
    """What the control socket of a running daemon would tell."""

    def __init__(self) -> None:
        super().__init__()
        self.pruned: list[int] = []

    def status(self) -> StatusReply:
        return STATUS

    def registers(self) -> RegistersReply:
        return {
            "registers": STATUS["registers"],
            "readings": STATUS["readings"],
            "gaps": STATUS["gaps"],
            "height": STATUS["height"],
        }

    async def live(self) -> AsyncIterator[LiveReading]:
        for _ in range(3):
            yield LIVE

    async def events(self, since: int) -> AsyncIterator[Any]:
        if since:
            yield since

    async def prune(self, before_s: int) -> PruneReply:
        self.pruned.append(before_s)
        return {"segments": 4, "bytes": 1234}

    async def report(self, since_s: int, side: bytes) -> ReportReply:
        return {"report": f"{since_s:02x}{side.hex()}"}


@pytest.fixture
def daemon(copy: Path) -> Iterator[Daemon]:
    source = Daemon()
    loop = asyncio.new_event_loop()
    server = ControlServer(copy / "control", source)
    task: asyncio.Task[None] = loop.create_task(server.serve())
    loop.run_until_complete(asyncio.wait_for(server.listening.wait(), 10))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield source
    loop.call_soon_threadsafe(task.cancel)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.mark.parametrize(
    ("named", "state", "there", "expected"),
    [
        (None, "account", ("unit",), "account/control"),
        (None, "default", ("default/control",), "default/control"),
        (None, "default", ("unit", "default/control"), "unit"),
        (None, "default", ("unit",), "unit"),
        (None, "default", (), "unit"),
        ("other", "default", ("unit",), "other"),
    ],
)
def test_the_daemon_is_asked_where_it_listens(  # noqa: PLR0917 - one row of a table
    named: str | None,
    state: str,
    there: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "default").mkdir()
    for name in there:
        (tmp_path / name).touch()
    monkeypatch.setattr("meterd.ctl.options.CONTROL_SYSTEM", tmp_path / "unit")
    monkeypatch.setattr("meterd.ctl.options.STATE_DEFAULT", str(tmp_path / "default"))
    options = argparse.Namespace(socket=named and tmp_path / named, state=tmp_path / state)
    assert socket_of(options) == tmp_path / expected


@pytest.mark.usefixtures("daemon")
def test_status_is_the_daemon_s(ctl: Ctl, copy: Path) -> None:
    said = ctl("status", "--state", copy)
    assert (said.status, said.err) == (0, "")
    for told in (
        "kitchen-12: metering (software abababababab)",
        "import              1.000 kWh   measured",
        "12 rows since 2007-07-03T02:00:00+02:00, -1500.2 W now",
        "99 readings, 1 dropped (1 banner), 0 gaps since the start",
        "alarm      frozen: the board repeats one line",
    ):
        assert told in said.out
    assert ctl("status", "--state", copy, "--json").json == {"source": "daemon"} | STATUS


def test_status_without_a_daemon_is_the_account_s_and_says_so(ctl: Ctl, made: Made) -> None:
    said = ctl("status", "--state", made.state)
    assert said.status == 0
    assert "no meterd answers" in said.err
    assert "this is what the account says" in said.err
    assert [line for line in said.err.splitlines() if len(line) > 80] == []
    assert "kitchen-12: stopped" in said.out
    reply = ctl("status", "--state", made.state, "--json").json
    assert reply["source"] == "account"
    assert {name: reply[name] for name in made.reply} == made.reply
    assert set(reply) == {"source", *STATUS}


@pytest.mark.usefixtures("daemon")
def test_watch_shows_readings_as_they_come(ctl: Ctl, copy: Path) -> None:
    said = ctl("watch", "--state", copy)
    assert said.status == 0
    line = "2007-07-03T02:00:00+02:00   -1500.2  231.4    6.50        1.000        0.000"
    assert said.out.splitlines()[1:] == [line] * 3
    assert ctl("watch", "--state", copy, "--count", "2", "--json").lines == [LIVE] * 2


def test_a_running_daemon_prunes_itself(ctl: Ctl, copy: Path, daemon: Daemon) -> None:
    said = ctl("prune", "--state", copy, "--before", "2007-07-04")
    assert said.status == 0
    assert daemon.pruned == [BEGIN_S + 22 * HOUR_S]
    assert said.out == (
        "4 segments of samples before 2007-07-04T00:00:00+02:00 pruned: 1234 bytes\n"
    )


def test_a_daemon_that_is_not_found_is_not_written_beside(ctl: Ctl, copy: Path) -> None:
    script = "import sys\nfrom pathlib import Path\nfrom meterd.device.card import lock\n"
    script += f"lock(Path({str(copy)!r}))\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        said = ctl("prune", "--state", copy, "--before", "2007-07-04")
    assert said.status == 75
    assert "another process writes the account" in said.err
    assert "--socket" in said.err


# --- the table of exit statuses ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ((), 64, "required: COMMAND"),
        (("frobnicate",), 64, "invalid choice"),
        (("verify",), 64, "required: PATH"),
        (("verify", "{state}", "--key", "xyz"), 64, "--key: expected 64 hex digits"),
        (("verify", "{state}", "--head", "5"), 64, "--head: expected HEIGHT:HEX"),
        (("verify", "{state}", "--head", "0:" + "00" * 32), 64, "first block has height 1"),
        (("verify", "{state}", "--head", "1:00"), 64, "expected 64 hex digits, got '00'"),
        (("verify", "{state}", "--genesis", "/absent"), 64, "cannot read /absent"),
        (("verify", "{state}", "--genesis", "{state}/seal.key"), 64, "is no genesis"),
        (("verify", "{state}", "--workers", "0"), 64, "above 0"),
        (("verify", "{state}", "--head", "9999:" + "00" * 32), 1, ""),
        (("verify", "/absent"), 2, "/absent is unreadable as an account"),
        (("registers", "--state", "/absent"), 78, "there is no account in /absent"),
        (("status", "--state", "/absent"), 78, "there is no account in /absent"),
        (("blocks", "--state", "{state}", "--from", "noon"), 64, "expected a date"),
        (("blocks", "--state", "{state}", "--last", "-1"), 64, "expected"),
        (("usage", "--state", "{state}", "--day", "noon"), 64, "--day: expected a date"),
        (("export", "--state", "{state}", "--height", "1"), 64, "--cose is required"),
        (("export", "--state", "{state}", "--height", "9999", "--cose"), 69, "no block 9999"),
        (("watch", "--state", "{state}"), 69, "no meterd answers at"),
        (("prune", "--state", "{state}"), 64, "say which samples go"),
        (("prune", "--state", "{state}", "--before", "noon"), 64, "expected a date"),
        (("config",), 64, "required: COMMAND"),
        (("config", "check", "/absent"), 78, "there is no settings file /absent"),
        (("config", "check", "{state}/genesis.cbor"), 78, "is not UTF-8 text"),
        (("init", "--yes"), 64, "required: --config"),
    ],
)
def test_each_failure_has_its_status_and_says_what_to_do(
    ctl: Ctl, made: Made, arguments: tuple[str, ...], status: int, told: str
) -> None:
    said = ctl(*(argument.format(state=made.state) for argument in arguments))
    assert said.status == status
    if told:
        assert said.err.startswith("meterctl: error: ")
        assert told in said.err
    assert "Traceback" not in said.err


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes nobody here")
def test_an_account_that_may_not_be_read_is_a_permission(ctl: Ctl, copy: Path) -> None:
    copy.chmod(0o700)
    os.seteuid(65_534)
    try:
        said = ctl("registers", "--state", copy)
    finally:
        os.seteuid(0)
    assert said.status == 77


def test_a_reader_that_has_seen_enough_is_no_error(made: Made) -> None:
    command = "import sys; from meterd.ctl import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", command, "samples", "--json", "--state", str(made.state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("command", [*COMMANDS, "config check", ""])
def test_help_has_examples_in_eighty_columns(
    ctl: Ctl, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = ctl(*command.split(), "--help")
    assert said.status == 0
    assert [line for line in said.out.splitlines() if len(line) > 80] == []
    if command != "config":
        assert "\nexamples:\n  meterctl" in said.out
