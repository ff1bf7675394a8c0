"""`meterctl` on an account: what it says, what it makes, and how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from nacl.signing import SigningKey

from meterd.config import load
from meterd.ctl import COMMANDS
from meterd.ctl.options import Span, instant
from meterd.ctl.owner import as_owner
from meterd.ctl.show import bar, kwh, zone_of
from meterd.ctl.verify import ONE_WORKER_BYTES_MAX, workers_for
from meterd.device.archive import segment_name
from meterd.device.keys import load_seal
from meterd.errors import UsageError
from meterd.init import create_account, read_genesis
from meterd.ledger.encoding import take_apart, verify_seal
from tests.accounts import SEED, settings_of
from tests.ctl_kit import (
    BEGIN_S,
    CONFIG,
    PARIS,
    Ctl,
    Made,
    at_a_terminal,
    copy,
    ctl,
    edit,
    made,
    program,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["copy", "ctl", "made"]


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


def test_a_verdict_at_a_terminal_shows_how_far_it_is(made: Made) -> None:
    done = at_a_terminal("verify", made.state, stdout_too=False)
    assert done.status == 0
    assert "verifying seals [" in done.shown


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
