"""`meterctl calibrate` against a meter that runs: measured, signed, applied, refused."""

from __future__ import annotations

import json
import threading
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from meterd.ctl.calibrate_rules import (
    Reference,
    bytes_of,
    changes_of,
    clamp_number,
    compare,
    number_of,
    request_of,
)
from meterd.ctl.technician_commands import LINE_LETTERS_MAX, chosen
from meterd.errors import ConfigError, UsageError
from tests.ctl_kit import Ctl, Said, ctl
from tests.daemon_kit import Cable, line, make_house
from tests.parameters_kit import RECORD, desk, shown, wait_sequence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.daemon_kit import House

__all__ = ["ctl"]
STEADY = [(0, 980_000), (5000, 980_000), (10_000, 980_000)]
KEY = "clamp.1.scale"
W = "W"


# --- the sums -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "reference", "new", "before", "after"),
    [
        pytest.param("1", "1000", "1.020408", "-2.00", "0.00", id="a clamp that shows too little"),
        pytest.param("1.25", "980", "1.25", "0.00", "0.00", id="a clamp that is right"),
        pytest.param("0.5", "900", "0.459184", "+8.89", "0.00", id="one that shows too much"),
        pytest.param("0.000001", "1000", "0.000001", "-2.00", "-2.00", id="nothing left to round"),
    ],
)
def test_the_new_scale_is_the_old_one_times_what_the_reference_says(
    old: str, reference: str, new: str, before: str, after: str
) -> None:
    found = compare(KEY, old, STEADY, Reference(W, Fraction(reference)))
    assert found.new == new
    assert found.steady
    assert [found.shown(found.error_before), found.shown(found.error_after)] == [before, after]


def test_energy_is_that_of_the_time_watched_exactly() -> None:
    """1 kW for 10 s, then falling to 0.5 kW in 2 s: 10,000 + 1,500 Ws."""
    readings = [(0, 1_000_000), (10_000, 1_000_000), (12_000, 500_000)]
    found = compare(KEY, "1", readings, Reference("Wh", Fraction(11_500, 3600)))
    assert found.measured == Fraction(11_500, 3600)
    assert found.new == "1"
    assert not found.steady


@pytest.mark.parametrize(
    ("readings", "reference", "problem"),
    [
        pytest.param([], "1", "0 readings came", id="silent"),
        pytest.param(STEADY[:2], "980", "2 readings came", id="too short"),
        pytest.param([(0, 0)] * 3, "980", "3 readings came", id="no time"),
        pytest.param([(n, 0) for n in range(3)], "980", "no power at all", id="no load"),
        pytest.param(STEADY, "-980", "the other way", id="reversed"),
        pytest.param(STEADY, "1177", "1.201 times", id="another clamp's, above"),
        pytest.param(STEADY, "783", "0.799 times", id="another clamp's, below"),
    ],
)
def test_no_scale_comes_of(readings: list[tuple[int, int]], reference: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        compare(KEY, "1", readings, Reference(W, Fraction(reference)))


def test_force_takes_the_ratio_of_another_clamp() -> None:
    assert compare(KEY, "1", STEADY, Reference(W, Fraction(1960)), force=True).new == "2"
    assert compare(KEY, "1", STEADY, Reference(W, Fraction(1176))).new == "1.2"  # 20 % exactly


@pytest.mark.parametrize("text", ["", "nan", "1e3", "1,5", "+1", ".5", "1" * 10, "1_0"])
def test_no_number_is(text: str) -> None:
    with pytest.raises(UsageError):
        number_of(text, "--reference-w")


def test_what_cannot_be_asked_for_is_said() -> None:
    settings = {"clamp.1.name": "mains", "clamp.2.name": "oven", KEY: "1"}
    assert clamp_number(settings, "oven") == 2
    with pytest.raises(UsageError, match="no clamp 'attic'") as error:
        clamp_number(settings, "attic")
    assert error.value.hint == "there are: mains, oven"
    with pytest.raises(UsageError, match="nothing would change"):
        changes_of(settings, {KEY: "1"})
    for text in ("?", "{", "{}", "A"):
        with pytest.raises(UsageError):
            bytes_of(text, "--text")
    with pytest.raises(UsageError, match="is no request"):
        request_of(b"\x80", "--text")


# --- against a meter ----------------------------------------------------------------------------


class Speaking:
    """A board that says one power, five lines a second, until it is closed."""

    def __init__(self, cable: Cable, power_w: float) -> None:
        self._cable, self._power_w = cable, power_w
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._speak)
        self._thread.start()

    def _speak(self) -> None:
        number = 0
        while not self._stop.wait(0.2):
            number += 1  # no two lines alike
            self._cable.say(line(self._power_w, 1600.0 + number % 7))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class Bench:
    """A meter that runs on a load of 980 W, and `meterctl` for it."""

    def __init__(self, house: House, ctl: Ctl) -> None:
        self.house, self._ctl = house, ctl

    def __call__(self, *arguments: object) -> Said:
        return self._ctl("calibrate", *arguments)

    def live(self, *arguments: object) -> Said:
        state = ("--state", self.house.state)
        if arguments[0] == "apply":
            return self("apply", *state, *arguments[1:])
        return self(*state, *arguments)

    def key(self, name: str) -> tuple[Path, str]:
        path = self.house.folder / f"{name}.key"
        said = self("key", "-o", path, "--json")
        assert said.status == 0
        assert path.stat().st_mode & 0o777 == 0o600
        return path, said.json["key"]

    def commission(self) -> Path:
        """Let a new owner's key count; return where the private one is."""
        path, public = self.key("owner")
        desk(self.house).call("Commission", record=RECORD.hex(), owner=public)
        wait_sequence(self.house, 2)
        return path


@pytest.fixture
def bench(tmp_path: Path, ctl: Ctl) -> Iterator[Bench]:
    house = make_house(tmp_path, polling_ms=200, commit_s=1, interval_s=60)
    with Cable(house.port) as cable, house.run() as meter:
        meter.hear("port_opened")
        speaking = Speaking(cable, 980)
        try:
            house.wait_accepted(3)
            yield Bench(house, ctl)
            assert meter.process.poll() is None
        finally:
            speaking.close()
            meter.stop()
    house.verify_good()


MEASURE = ("--clamp", "mains", "--reference-w", "1000", "--seconds", "1")


def test_before_the_commissioning_it_says_what_to_write_into_the_settings(bench: Bench) -> None:
    said = bench.live(*MEASURE)
    assert (said.status, said.err) == (0, "watching mains for 1 s; keep the load steady\n")
    assert "scale    1 -> 1.020408" in said.out
    assert "error    -2.00 % -> 0.00 %" in said.out
    assert "[[clamp]] number 1: scale = 1.020408" in said.out
    assert shown(bench.house)["sequence"] == 1


def test_an_owner_measures_signs_and_sends_in_one_go(bench: Bench) -> None:
    owner = bench.commission()
    said = bench.live(*MEASURE, "--sign-with", owner, "--json")
    assert said.status == 0, said.err
    reply = said.json
    assert reply["measured"] == 980
    assert reply["error_percent"] == {"before": -2.0, "after": 0.0}
    assert reply["changes"] == [["clamp.1.scale", "1", "1.020408"]]
    assert (reply["by"], reply["sequence"]) == ("owner", 3)
    assert shown(bench.house)["settings"]["clamp.1.scale"] == "1.020408"
    again = bench.live("--clamp", "mains", "--reference-w", "1000", "--seconds", "1", "--json")
    assert again.json["changes"] == []  # 999.9998 W: the scale is right as it is


def test_a_request_is_signed_in_the_office_by_a_granted_key_and_applied(bench: Bench) -> None:
    owner = bench.commission()
    jo, public = bench.key("jo")
    folder, told = bench.house.folder, shown(bench.house)
    grant = ("grant", "--key", owner, "--genesis", told["genesis"], "--technician", public)
    assert bench(*grant, "--id", "jo", "-o", folder / "jo.grant").status == 0
    prepared = folder / "request.json"
    said = bench.live("--set", "clamp.1.reversed=true", "--prepare", prepared)
    assert said.status == 0, said.err
    assert shown(bench.house) == told  # nothing has changed yet
    command = folder / "command.json"
    refused = bench("sign", prepared, "--key", owner, "--grant", folder / "jo.grant")
    assert (refused.status, refused.out) == (78, "")
    signed = bench("sign", prepared, "--key", jo, "--grant", folder / "jo.grant", "-o", command)
    assert signed.status == 0, signed.err
    assert "clamp.1.reversed: false -> true" in signed.err
    unsigned = bench.live("apply", prepared)
    assert (unsigned.status, "not a signed command" in unsigned.err) == (77, True)
    applied = bench.live("apply", command)
    assert applied.status == 0, applied.err
    assert applied.out.endswith("by jo\n")
    assert shown(bench.house)["settings"]["clamp.1.reversed"] == "true"
    replayed = bench.live("apply", command)
    assert (replayed.status, "it was used already" in replayed.err) == (77, True)


def test_a_technicians_session_takes_request_and_command_as_text(bench: Bench) -> None:
    owner = bench.commission()
    shown_to_people = bench.live("--set", "clamp.1.scale=1.01")
    assert "nothing is changed yet: the office signs that line" in shown_to_people.err
    asked = bench.live("--set", "clamp.1.scale=1.01", "--json").json
    assert f"request  {asked['request']}\n" in shown_to_people.out
    signed = bench("sign", "--text", asked["request"], "--key", owner)
    text = json.loads(signed.out)["text"]
    line_ = f"calibrate --text {text}"
    assert len(line_) < LINE_LETTERS_MAX
    name, *arguments = chosen(line_)
    assert name == "calibrate"
    assert bench.live(*arguments).status == 0
    assert shown(bench.house)["settings"]["clamp.1.scale"] == "1.01"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--seconds", "1"), 64, "what the reference meter says is missing"),
        (("--clamp", "attic", "--reference-w", "1"), 64, "there is no clamp 'attic'"),
        (("--reference-w", "0", "--seconds", "1"), 64, "the reference shows nothing"),
        (("--reference-w", "1", "--reference-wh", "1"), 64, "two ways"),
        (("--reference-w", "one", "--seconds", "1"), 64, "expected a number"),
        (("--reference-w", "500", "--seconds", "1"), 78, "0.510 times"),
        (("--reference-w", "-980", "--seconds", "1"), 78, "the other way"),
        (("--seconds", "4000"), 64, "at most 3600"),
        (("--set", "clamp.1.scale"), 64, "expected KEY=VALUE"),
        (("--set", "clamp.1.scale=1"), 64, "nothing would change"),
        (("apply",), 64, "expected a signed command"),
        (("apply", "/nonexistent"), 69, "there is no file"),
        (("apply", "--text", "?"), 64, "expected base64"),
        (("sign", "--text", "AAAA"), 64, "is no request"),
        (("sign", "/nonexistent"), 69, "there is no file"),
        (("grant", "--id", "J", "--key", "k", "--genesis", "0", "--technician", "0"), 64, "--id"),
    ],
)
def test_what_is_put_wrongly_is_said_and_changes_nothing(
    bench: Bench, arguments: tuple[str, ...], status: int, message: str
) -> None:
    said = (bench if arguments[0] in ("sign", "grant") else bench.live)(*arguments)
    assert (said.status, said.out) == (status, "")
    assert message in said.err
    assert shown(bench.house)["sequence"] == 1


def test_a_key_takes_no_file_s_place(tmp_path: Path, ctl: Ctl) -> None:
    path = tmp_path / "owner.key"
    path.write_text("of last year")
    said = ctl("calibrate", "key", "-o", path)
    assert (said.status, said.out) == (78, "")
    assert "owner.key is there already" in said.err
    assert path.read_text() == "of last year"


def test_parameters_are_shown_with_whoever_may_change_them(bench: Bench, ctl: Ctl) -> None:
    said = ctl("parameters", "--state", bench.house.state)
    assert "record      1" in said.out
    assert "by the settings' file" in said.out
    bench.commission()
    said = ctl("parameters", "--state", bench.house.state)
    assert "by commissioning" in said.out
    path = bench.house.folder / "owner.key"
    key = ctl("calibrate", "key", "--show", path)
    assert "changed by  the owner\n" in said.out
    told = ctl("parameters", "--state", bench.house.state, "--json").json
    assert told.items() >= shown(bench.house).items()
    made = ctl("calibrate", "key", "--show", path, "--json").json
    assert (told["owner"], told["owner_id"]) == (made["key"], made["id"])
    assert f"key         {made['key']}\nkey id      {made['id']}\n" in said.out
    for value in (made["key"], made["id"]):
        assert value in key.out
    assert [each for each in said.out.splitlines() if len(each) > 80] == []


@pytest.mark.parametrize("action", [(), ("sign",), ("apply",), ("key",), ("grant",)])
def test_the_help_has_examples_in_eighty_columns(action: tuple[str, ...], ctl: Ctl) -> None:
    said = ctl("calibrate", *action, "--help")
    assert "examples:\n  meterctl calibrate" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
