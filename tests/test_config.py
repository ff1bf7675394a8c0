from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd import config
from meterd.config import (
    BoardSettings,
    ClockSettings,
    ControlSettings,
    LogSettings,
    MeterSettings,
    Settings,
    check,
    load,
    load_node,
    parameters,
)
from meterd.config_lines import lines_of
from meterd.config_rules import TABLES
from meterd.config_tables import Mistake, Reader
from meterd.errors import ConfigError, DeniedError, StorageError
from meterd.metering.board import LAYOUTS
from meterd.metering.reading import BoardRules, Clamp
from tests.config_kit import LEAST, good, least, mistakes_in

SHIPPED = Path(__file__).parent.parent / "config" / "meterd.toml"
DISTRIBUTOR = SHIPPED.with_name("distributor.toml")


# What is good.


def test_the_least_settings_have_every_default() -> None:
    assert good(LEAST) == Settings(
        meter=MeterSettings(name="kitchen-12", interval_s=1800, zone="UTC", currency="EUR"),
        rules=BoardRules(
            layout="rpict3v1",
            fields=LAYOUTS["rpict3v1"],
            clamps=(
                Clamp(
                    name="mains",
                    role="mains",
                    reversed=False,
                    scale=Decimal(1),
                    zero_below_w=Decimal(0),
                ),
            ),
            polling_ms=5000,
            current_unit="mA",
            vest=Decimal(240),
            nominal_v=Decimal(230),
            power_factor=Decimal(1),
            fuse_a=Decimal(60),
        ),
        board=BoardSettings(port="/dev/ttyAMA0", polling_ms=5000, reset_gpio=None, silence_s=0),
        clock=ClockSettings(trust="kernel"),
        log=LogSettings(commit_s=30, reserve_mb=64, retain_days=0),
        control=ControlSettings(socket=""),
    )


def test_the_shipped_settings_are_the_defaults() -> None:
    assert good(SHIPPED.read_text()) == good(LEAST)


def test_the_shipped_settings_have_every_key_with_a_comment() -> None:
    found = set()
    table = ""
    for line in SHIPPED.read_text().splitlines():
        setting, _, comment = line.removeprefix("# ").partition("  # ")
        if line.startswith("["):
            table = setting.strip("[] ")
        elif " = " in setting and comment:
            found.add((table, setting.partition(" = ")[0]))
    assert found == {(table, key) for table, rules in TABLES.items() for key in rules}


def test_every_value_is_taken_over() -> None:
    settings = good("""
        clamp = [
            {name = "in", role = "mains", reversed = true, scale = 1.02, zero_below_w = 25},
            {name = "pump", role = "circuit"},
        ]
        [meter]
        name = "m"
        interval_s = 900
        nominal_v = 120.5
        power_factor = 0.9
        fuse_a = 63
        zone = "Asia/Kolkata"
        currency = "INR"
        [board]
        port = "/dev/ttyUSB0"
        layout = "custom"
        fields = ["node", "RP1", "EP2"]
        polling_ms = 50
        current_unit = "A"
        vest = 1
        reset_gpio = 4
        silence_s = 20
        [clock]
        trust = "always"
        [log]
        commit_s = 1
        reserve_mb = 0
        retain_days = 366
        [control]
        socket = "/run/meterd/control"
    """)
    assert settings == Settings(
        meter=MeterSettings(name="m", interval_s=900, zone="Asia/Kolkata", currency="INR"),
        rules=BoardRules(
            layout="custom",
            fields=(("node", "RP1", "EP2"),),
            clamps=(
                Clamp(
                    name="in",
                    role="mains",
                    reversed=True,
                    scale=Decimal("1.02"),
                    zero_below_w=Decimal(25),
                ),
                Clamp(name="pump", role="circuit"),
            ),
            polling_ms=50,
            current_unit="A",
            vest=Decimal(1),
            nominal_v=Decimal("120.5"),
            power_factor=Decimal("0.9"),
            fuse_a=Decimal(63),
        ),
        board=BoardSettings(port="/dev/ttyUSB0", polling_ms=50, reset_gpio=4, silence_s=20),
        clock=ClockSettings(trust="always"),
        log=LogSettings(commit_s=1, reserve_mb=0, retain_days=366),
        control=ControlSettings(socket="/run/meterd/control"),
    )


@pytest.mark.parametrize(
    ("table", "key", "values"),
    [
        ("meter", "name", ['"a"', '"0-9"', f'"{"x" * 32}"']),
        ("meter", "interval_s", ["60", "900", "1800", "3600", "86400"]),
        ("meter", "nominal_v", ["50", "500", "230.0", "2.3e2"]),
        ("meter", "power_factor", ["1", "0.000000001"]),
        ("meter", "fuse_a", ["1", "1000"]),
        ("meter", "zone", ['"UTC"', '"Europe/Paris"', '"America/St_Johns"']),
        ("board", "layout", [f'"{name}"' for name in LAYOUTS]),
        ("board", "polling_ms", ["50", "600000"]),
        ("board", "vest", ["1", "0.5", "1000000"]),
        ("board", "reset_gpio", ["0", "53"]),
        ("clamp", "scale", ["1000", "0.000000001", "1.0000000000000"]),
        ("clamp", "zero_below_w", ["0", "-0.0", "100000"]),
        ("log", "commit_s", ["1", "3600"]),
        ("control", "socket", ['""', f'"/{"s" * 106}"']),
    ],
)
def test_a_value_is_good_up_to_its_bounds(table: str, key: str, values: list[str]) -> None:
    for value in values:
        assert all(one.warning for one in mistakes_in(least(table, **{key: value})))


# What is wrong.


@pytest.mark.parametrize(
    ("table", "key", "value", "problem"),
    [
        ("meter", "name", '""', "expected 1 to 32 of a-z, 0-9 and -, got ''"),
        ("meter", "name", f'"{"x" * 33}"', f"expected 1 to 32 of a-z, 0-9 and -, got '{'x' * 33}'"),
        ("meter", "name", '"a\\n"', r"expected 1 to 32 of a-z, 0-9 and -, got 'a\n'"),
        ("meter", "name", "12", "expected 1 to 32 of a-z, 0-9 and -, got 12"),
        ("meter", "name", "1979-05-27", "expected 1 to 32 of a-z, 0-9 and -, got a date or time"),
        ("meter", "interval_s", "59", "expected a whole number from 60 to 86400, got 59"),
        ("meter", "interval_s", "86401", "expected a whole number from 60 to 86400, got 86401"),
        ("meter", "interval_s", "1800.0", "expected a whole number from 60 to 86400, got 1800.0"),
        ("meter", "interval_s", "true", "expected a whole number from 60 to 86400, got true"),
        ("meter", "interval_s", "1700", "expected seconds that divide a day (86400), got 1700"),
        ("meter", "nominal_v", "49.9", "expected a number from 50 to 500, got 49.9"),
        ("meter", "nominal_v", "501", "expected a number from 50 to 500, got 501"),
        ("meter", "nominal_v", "nan", "expected a number from 50 to 500, got NaN"),
        ("meter", "nominal_v", "inf", "expected a number from 50 to 500, got Infinity"),
        ("meter", "nominal_v", "true", "expected a number from 50 to 500, got true"),
        ("meter", "nominal_v", '"230"', "expected a number from 50 to 500, got '230'"),
        ("meter", "nominal_v", "1e99999", "expected a number from 50 to 500, got 1E+99999"),
        ("log", "retain_days", "0x" + "f" * 900,
         "expected a whole number from 0 to 36500, got a huge number"),
        ("meter", "power_factor", "0", "expected a number above 0, at most 1, got 0"),
        ("meter", "power_factor", "1.01", "expected a number above 0, at most 1, got 1.01"),
        ("meter", "power_factor", "1e-10", "expected at most 9 decimals, got 1E-10"),
        ("meter", "power_factor", "1e-9999999", "expected at most 9 decimals, got 1E-9999999"),
        ("meter", "fuse_a", "0.9", "expected a number from 1 to 1000, got 0.9"),
        ("meter", "fuse_a", "1001", "expected a number from 1 to 1000, got 1001"),
        ("meter", "zone", '"Paris/Europe"', "no time zone 'Paris/Europe' is known here"),
        ("meter", "zone", '"../etc"', "expected a time zone such as Europe/Paris, got '../etc'"),
        ("meter", "currency", '"euro"', "expected three capitals such as EUR, got 'euro'"),
        ("board", "port", '""', "expected the path of a serial port, got ''"),
        ("board", "port", "[]", "expected the path of a serial port, got a list"),
        ("board", "port", "{}", "expected the path of a serial port, got a table"),
        ("board", "polling_ms", "49", "expected a whole number from 50 to 600000, got 49"),
        ("board", "polling_ms", "600001", "expected a whole number from 50 to 600000, got 600001"),
        ("board", "current_unit", '"ma"', "expected mA or A, got 'ma'"),
        ("board", "current_unit", "1", "expected mA or A, got 1"),
        ("board", "vest", "0", "expected a number above 0, at most 1000000, got 0"),
        ("board", "vest", "-240", "expected a number above 0, at most 1000000, got -240"),
        ("board", "reset_gpio", "54", "expected a whole number from 0 to 53, got 54"),
        ("board", "silence_s", "-1", "expected a whole number from 0 to 86400, got -1"),
        ("board", "fields", '["node", "RP1"]', "layout rpict3v1 has fields of its own"),
        ("clamp", "role", '"main"', "expected mains, circuit or unused, got 'main'"),
        ("clamp", "reversed", '"no"', "expected true or false, got 'no'"),
        ("clamp", "scale", "0", "expected a number above 0, at most 1000, got 0"),
        ("clamp", "scale", "1000.1", "expected a number above 0, at most 1000, got 1000.1"),
        ("clamp", "zero_below_w", "-1", "expected a number from 0 to 100000, got -1"),
        ("clock", "trust", '"ntp"', "expected kernel or always, got 'ntp'"),
        ("log", "commit_s", "0", "expected a whole number from 1 to 3600, got 0"),
        ("log", "commit_s", "3601", "expected a whole number from 1 to 3600, got 3601"),
        ("log", "reserve_mb", "-1", "expected a whole number from 0 to 1000000, got -1"),
        ("log", "retain_days", "36501", "expected a whole number from 0 to 36500, got 36501"),
        ("gpio", "case_switch", "54", "expected a whole number from 0 to 53, got 54"),
        ("gpio", "led", '"GPIO22"', "expected a whole number from 0 to 53, got 'GPIO22'"),
        ("gpio", "case_open", '"up"', "expected high or low, got 'up'"),
        ("gpio", "relay_closed", "true", "expected high or low, got true"),
        ("gpio", "debounce_ms", "4", "expected a whole number from 5 to 500, got 4"),
        ("gpio", "debounce_ms", "501", "expected a whole number from 5 to 500, got 501"),
        ("control", "socket", '"run"', "expected an absolute path of at most 107 bytes, got 'run'"),
        ("control", "socket", "1", "expected an absolute path of at most 107 bytes, got 1"),
        ("control", "socket", f'"/{"s" * 107}"',
         f"expected an absolute path of at most 107 bytes, got '/{'s' * 37}…"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_key_and_line(
    table: str, key: str, value: str, problem: str
) -> None:
    text = least(table, **{key: value})
    line = 1 + text.splitlines().index(f"{key} = {value}")
    shown_key = f"clamp.1.{key}" if table == "clamp" else f"{table}.{key}"
    (mistake,) = mistakes_in(text)
    assert mistake._replace(hint="") == Mistake(shown_key, line, problem)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("[]", "expected a list of 1 to 64 field names, got a list"),
        ('"RP1"', "expected a list of 1 to 64 field names, got 'RP1'"),
        ('["node", "RPM1"]', "there is no field 'RPM1'"),
        ('["node", 1]', "there is no field 1"),
        ('["RP1", "RP1"]', "the field RP1 is named twice"),
        ('["node", "Vrms"]', "no field measures power or current"),
        ('["node", "RP2"]', "no field of the layout measures channel 1"),
    ],
)
def test_the_fields_of_a_custom_layout_are_refused_where(fields: str, problem: str) -> None:
    (mistake,) = mistakes_in(least("board", layout='"custom"', fields=fields))
    assert mistake.problem == problem


def clamps(*roles: str, layout: str = "rpict3v1") -> str:
    text = f'[meter]\nname = "m"\n[board]\nport = "p"\nlayout = "{layout}"\n'
    for k, role in enumerate(roles, 1):
        text += f'[[clamp]]\nname = "c{k}"\nrole = "{role}"\n'
    return text


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        pytest.param(
            "[board]\nport = 'p'\n[[clamp]]\nname = 'a'\nrole = 'mains'\n",
            Mistake("meter.name", 0, "is missing", "add `name = …` to meter"),
            id="a required key with its table",
        ),
        pytest.param(
            LEAST.replace("port", "prot"),
            Mistake("board.port", 3, "is missing", "add `port = …` to board"),
            id="a required key in its table",
        ),
        pytest.param(
            LEAST.replace('role = "mains"', ""),
            Mistake("clamp.1.role", 5, "is missing", "add `role = …` to clamp"),
            id="a clamp's role",
        ),
        pytest.param(
            LEAST.partition("[[")[0],
            Mistake("clamp", 0, "no clamp is described", "add [[clamp]] with name and role to x"),
            id="every clamp",
        ),
        pytest.param(
            LEAST.replace("[[clamp]]", "[clamp]"),
            Mistake("clamp", 5, "expected a list of tables", "write [[clamp]], in two brackets"),
            id="the brackets of a list",
        ),
        pytest.param(
            f"clock = 3\n{LEAST}",
            Mistake("clock", 1, "expected a table, got 3", "write it below [clock]"),
            id="a table's brackets",
        ),
        pytest.param(
            least("board", layout='"custom"'),
            Mistake(
                "board.fields",
                3,
                "is missing: layout custom needs it",
                'as in fields = ["node", "RP1", "Irms1", "Vrms"]',
            ),
            id="the fields of a custom layout",
        ),
        pytest.param(
            clamps("circuit", "unused"),
            Mistake("clamp", 0, "no clamp has the role mains", "one is round the mains cable"),
            id="the mains",
        ),
    ],
)
def test_what_is_missing_is_named(text: str, mistake: Mistake) -> None:
    settings, mistakes = check(text, source="x")
    assert settings is None
    assert mistake in mistakes


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        (least("metre", name='"a"'), "metre", "did you mean `meter`?"),
        (least("board", pooling_ms="1"), "board.pooling_ms", "did you mean `polling_ms`?"),
        (least("meter", polling_ms="1"), "meter.polling_ms", "it belongs in [board]"),
        (least("meter", colour="1"), "meter.colour", ""),
        (least("meter", **{'"a b"': "1"}), "meter.'a b'", ""),
    ],
)
def test_what_is_unknown_is_named_with_what_may_be_meant(text: str, key: str, hint: str) -> None:
    (mistake,) = mistakes_in(text)
    assert (mistake.key, mistake.hint) == (key, hint)
    assert mistake.problem.startswith("there is no such ")


def test_a_wrong_choice_is_hinted_at() -> None:
    (mistake,) = mistakes_in(least("board", layout='"rpict3v1-scetch2"'))
    assert mistake.hint == "did you mean `rpict3v1-sketch2`?"


def test_clamps_with_one_name_are_refused_at_the_second() -> None:
    text = clamps("mains", "circuit").replace("c2", "c1")
    assert mistakes_in(text) == [
        Mistake("clamp.2.name", 10, "clamp 1 has that name", "each needs its own")
    ]


@pytest.mark.parametrize(
    ("layout", "channels"),
    [("rpict3v1", 3), ("rpict3v1-sketch2", 3), ("rpict3t1", 3), ("rpict7v1", 7)],
)
def test_there_are_no_more_clamps_than_channels(layout: str, channels: int) -> None:
    roles = ["mains", *(["unused"] * (channels - 1))]
    wrong = [one for one in mistakes_in(clamps(*roles, layout=layout)) if not one.warning]
    assert wrong == []
    more = mistakes_in(clamps(*roles, "unused", layout=layout))
    (mistake,) = (one for one in more if not one.warning)
    assert mistake.key == f"clamp.{channels + 1}"
    assert mistake.problem == f"the layout has no more than {channels} channels"


def test_all_mistakes_are_named_at_once_and_by_line() -> None:
    text = """\
[meter]
name = "Kitchen"          # 2
interval_s = 7            # 3
[borad]                   # 4
[board]
layout = '''rpict3v9'''   # 6
polling_ms = [
  1, # not "2"
]
[[clamp]]
name = "a"
role = "mains"
[[clamp]]
role = "mian"             # 14
[log]
commit_s = 0              # 16
"""
    assert [(mistake.line, mistake.key) for mistake in mistakes_in(text)] == [
        (2, "meter.name"),
        (3, "meter.interval_s"),
        (4, "borad"),
        (5, "board.port"),
        (6, "board.layout"),
        (7, "board.polling_ms"),
        (13, "clamp.2.name"),
        (14, "clamp.2.role"),
        (16, "log.commit_s"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("[meter\n", 1, "not TOML: expected ']' at the end of a table declaration"),
        ("[meter]\nname = kitchen\n", 2, "not TOML: invalid value"),
        ("a = 1\na = 2\n", 2, "not TOML: cannot overwrite a value"),
        ('a = """\n\n', 3, "not TOML: unterminated string"),
        (f"a = {'9' * 900}e{'9' * 20}\n", 0, "a number is too large to be read"),
        ("a = " + "\n".join(["[" * 1000] * 20), 0, "lists or tables lie too deep in one another"),
        ("a = 1\nb = '" + "x" * 1024 + "'", 2, "the line is longer than 1024 bytes"),
        ("a = 1\n" * 6000, 0, "longer than 32768 bytes"),
    ],
    ids=range(8),
)
def test_what_is_no_toml_is_one_mistake(text: str, line: int, problem: str) -> None:
    (mistake,) = mistakes_in(text)
    assert (mistake.key, mistake.line, mistake.problem) == ("", line, problem)
    assert mistake.hint


# What can be used, and will surprise.


@pytest.mark.parametrize(
    ("text", "key"),
    [
        pytest.param(least("meter", interval_s="1200"), "meter.interval_s", id="odd to the hour"),
        pytest.param(
            least("board", polling_ms="600000").replace("[board]", "interval_s = 900\n[board]"),
            "board.polling_ms",
            id="too few readings",
        ),
        pytest.param(
            clamps("mains", layout="rpict3t1") + "reversed = true\n",
            "clamp.1.reversed",
            id="a direction that nobody measures",
        ),
        pytest.param(
            least("board", layout='"custom"', fields='["Irms1", "Vrms"]') + "reversed = true\n",
            "clamp.1.reversed",
            id="a current alone",
        ),
        pytest.param(clamps("mains", layout="rpict3t1"), "clamp.1.role", id="no direction"),
        pytest.param(least("board", port='"/dev/serial0"'), "board.port", id="a port that differs"),
    ],
)
def test_a_warning_is_for(text: str, key: str) -> None:
    settings, mistakes = check(text, source="meterd.toml")
    assert settings is not None
    assert [(mistake.key, mistake.warning) for mistake in mistakes] == [(key, True)]
    assert all(mistake.hint for mistake in mistakes)


@pytest.mark.parametrize(
    ("zone", "interval_s", "fits"),
    [
        ("Asia/Kolkata", 1800, True),  # +5:30
        ("Asia/Kolkata", 3600, False),
        ("Asia/Kathmandu", 900, True),  # +5:45
        ("Asia/Kathmandu", 1800, False),
        ("Australia/Lord_Howe", 1800, True),  # +10:30, and half an hour more in summer
        ("Australia/Lord_Howe", 3600, False),
        ("America/New_York", 3600, True),
        ("America/New_York", 86_400, False),
    ],
)
def test_the_interval_divides_every_offset_of_the_zone(
    zone: str, interval_s: int, fits: bool
) -> None:
    mistakes = mistakes_in(least("meter", zone=f'"{zone}"', interval_s=str(interval_s)))
    assert [mistake.key for mistake in mistakes] == ([] if fits else ["meter.interval_s"])


# What is in the parameter record.


def test_the_parameters_are_ordered_and_canonical() -> None:
    text = least("meter", nominal_v="2.30e2", power_factor="0.950") + "zero_below_w = 2.50\n"
    assert parameters(good(text)) == (
        ("meter.interval_s", "1800"),
        ("meter.nominal_v", "230"),
        ("meter.power_factor", "0.95"),
        ("meter.fuse_a", "60"),
        ("board.layout", "rpict3v1"),
        ("board.fields", "node RP1 RP2 RP3 Irms1 Irms2 Irms3 Vrms"),
        ("board.polling_ms", "5000"),
        ("board.current_unit", "mA"),
        ("board.vest", "240"),
        ("clamp.1.name", "mains"),
        ("clamp.1.role", "mains"),
        ("clamp.1.reversed", "false"),
        ("clamp.1.scale", "1"),
        ("clamp.1.zero_below_w", "2.5"),
        ("clock.trust", "kernel"),
    )


def test_the_parameters_are_the_same_however_a_number_is_written() -> None:
    texts = ["scale = 1", "scale = 1.000", "scale = 10e-1", "zero_below_w = -0.0", ""]
    assert len({parameters(good(f"{LEAST}{text}\n")) for text in texts}) == 1


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("meter", "interval_s", "900"),
        ("meter", "nominal_v", "231"),
        ("meter", "power_factor", "0.9"),
        ("meter", "fuse_a", "61"),
        ("board", "layout", '"rpict7v1"'),
        ("board", "polling_ms", "5001"),
        ("board", "current_unit", '"A"'),
        ("board", "vest", "1"),
        ("clamp", "name", '"other"'),
        ("clamp", "reversed", "true"),
        ("clamp", "scale", "1.000000001"),
        ("clamp", "zero_below_w", "0.1"),
        ("clock", "trust", '"always"'),
    ],
)
def test_the_parameters_change_with(table: str, key: str, value: str) -> None:
    assert parameters(good(least(table, **{key: value}))) != parameters(good(LEAST))


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("meter", "zone", '"Europe/Paris"'),
        ("board", "port", '"/dev/ttyUSB0"'),
        ("board", "silence_s", "60"),
        ("log", "commit_s", "60"),
        ("control", "socket", '"/run/c"'),
    ],
)
def test_the_parameters_stay_with(table: str, key: str, value: str) -> None:
    assert parameters(good(least(table, **{key: value}))) == parameters(good(LEAST))


# The file.


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "meterd.toml"
    path.write_text(LEAST)
    assert load(path) == good(LEAST)


def test_a_file_with_warnings_only_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "meterd.toml"
    path.write_text(least("meter", interval_s="1200"))
    assert load(path).meter.interval_s == 1200


def test_a_file_with_mistakes_is_refused_with_their_count(tmp_path: Path) -> None:
    path = tmp_path / "meterd.toml"
    path.write_text("[meter]\ninterval_s = 1200\nname = 1\n[log]\ncommit_s = 0\nx = 1\n")
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert str(refused.value) == (
        f"5 mistakes in {path}: "
        "line 3: meter.name: expected 1 to 32 of a-z, 0-9 and -, got 1; "
        "line 5: log.commit_s: expected a whole number from 1 to 3600, got 0; "
        "line 6: log.x: there is no such key in log; …"
    )
    assert refused.value.hint == f"run `meterctl config check {path}`"
    assert refused.value.exit_code == 78


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no settings file") as refused:
        load(tmp_path / "meterd.toml")
    assert refused.value.hint


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no settings file"):
        load(tmp_path)


def test_a_file_that_is_no_text_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "meterd.toml"
    path.write_bytes(b"[meter]\nname = \xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text: line 2 has the byte 0xff"):
        load(path)


@pytest.mark.parametrize(
    ("failure", "error"),
    [(PermissionError(13, "no"), DeniedError), (OSError(5, "no"), StorageError)],
)
def test_a_file_that_cannot_be_read_is_refused(
    failure: OSError, error: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise failure

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(error):
        load(tmp_path / "meterd.toml")


# Whatever comes.

WORDS = st.sampled_from(
    [*TABLES, *(key for rules in TABLES.values() for key in rules), "[", "]", "[[", "]]", "=", ".",
     ",", "{", "}", "\n", "\n", '"', "'", '"""', "'''", "\\", "#", " ", "true", "1e9", "-0.0",
     "nan", "0x1f", "1979-05-27", '"mains"', '"custom"', '["RP1"]', '"a"', "\ud800",
     "é", "\r\n", "\0"]
)  # fmt: skip


@given(st.lists(WORDS | st.text(max_size=4), max_size=60).map("".join))
def test_no_text_is_more_than_a_list_of_mistakes(text: str) -> None:
    for mistake in mistakes_in(text):
        assert mistake.problem
        assert "\n" not in str(mistake)
        assert 0 <= mistake.line <= text.count("\n") + 1


VALUES: st.SearchStrategy[object] = (
    st.none().map(lambda _: {})
    | st.booleans()
    | st.integers()
    | st.decimals()
    | st.text()
    | st.lists(st.text() | st.integers())
)


@given(
    st.dictionaries(
        st.sampled_from([*TABLES, "other"]),
        st.dictionaries(
            st.sampled_from([*(key for rules in TABLES.values() for key in rules), "x"]), VALUES
        )
        | VALUES,
    )
)
def test_every_rule_takes_whatever_toml_can_hold(tables: dict[str, object]) -> None:
    reader = Reader(tables, "x")
    config._settings(reader)
    assert reader.found


KEYS = st.sampled_from(["a", "b", '"c d"', "'='", '"#"', '"[x]"'])
VALUE_TEXTS = st.sampled_from(
    ["1", '"="', "'#'", '"""\n[a]\nb = 1\n"""', "'''\n'\n\"\"\"'''", "[\n1, # ]\n2]", "{a = 1}",
     '"\\""', '""""q""""', '"" # "'])  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["", "# [x]\n", "\n", " \t"]), KEYS, VALUE_TEXTS)))
def test_the_line_of_a_key_is_where_it_begins(
    statements: list[tuple[str, str, str]],
) -> None:
    text = ""
    expected = {}
    for before, key, value in statements:
        (name,) = tomllib.loads(f"{key} = 1")
        if (name,) not in expected:
            text += before
            expected[name,] = text.count("\n") + 1
            text += f"{key} = {value}\n"
    tomllib.loads(text)
    assert lines_of(text) == expected


def test_a_node_without_a_meter_is_set_up_by_the_file_that_is_shipped() -> None:
    node = load_node(DISTRIBUTOR)
    assert (node.name, node.metered, node.clock.trust) == ("grid-co", False, "kernel")
    assert node.network.brokers == ("mqtts://broker.example:8883",)
    defaults = type(node.network)()
    for field in ("tick_ms", "digest_ms", "line", "store"):
        assert getattr(node.network, field) == getattr(defaults, field)
    tables: dict[str, Any] = tomllib.loads(DISTRIBUTOR.read_text())
    assert {name: set(table) for name, table in tables.items()} == {
        name: set(TABLES[name]) for name in ("network", "clock")
    }
    for line in DISTRIBUTOR.read_text().splitlines():
        assert " = " not in line or " # " in line or line.startswith("#"), line
