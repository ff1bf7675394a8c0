"""`meterctl network`: devices enrol, a street is founded, and they join it."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.device.keys import create_vote, load_seal, load_vote
from meterd.errors import ConfigError, DeniedError
from meterd.init import create_account, read_genesis
from meterd.ledger.account import decode_genesis
from meterd.ledger.encoding import key_id
from tests.accounts import settings_of
from tests.ctl_kit import Ctl, at_a_terminal, program
from tests.network_kit import NETWORK, PLAN

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = """\
[meter]
name = "{name}"
interval_s = 1800
fuse_a = {fuse_a}

[board]
port = "/dev/null"

[[clamp]]
name = "mains"
role = "mains"
"""


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(capsys)


# --- the commands -----------------------------------------------------------------------------


class Street(NamedTuple):
    """Folders of devices that have enrolled, and what they wrote."""

    folder: Path

    def state(self, name: str) -> Path:
        return self.folder / "states" / name

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.settings.toml"

    def enrolment(self, name: str) -> Path:
        return self.folder / f"{name}.toml"

    @property
    def genesis(self) -> Path:
        return self.folder / "genesis.cbor"

    @property
    def create(self) -> list[object]:
        told = [x for name in MEMBERS for x in ("--enrolment", self.enrolment(name))]
        flags = ["--name", NETWORK, "--interval-s", "1800", "--zone", "UTC", "--currency", "EUR"]
        return ["network", "create", *told, *flags, "-o", self.genesis, "--yes"]

    def join(self, name: str) -> list[object]:
        config = ["--config", self.config(name)] if name in METERS else []
        state = ["--state", self.state(name), "--genesis", self.genesis, "--yes"]
        return ["network", "join", *state, *config]


METERS = ("kitchen-12", "shed-3")
MEMBERS = (*METERS, "elm-power", "elm-council")
ROLES = {"elm-power": "distributor", "elm-council": "authority"}


def enrol(street: Street, name: str, network: str = NETWORK) -> list[object]:
    who: list[object] = ["--name", name, "--role", ROLES.get(name, "")]
    if name in METERS:
        who = ["--config", street.config(name)]
    out = ["-o", street.enrolment(name)]
    return ["network", "enrol", "--state", street.state(name), "--network", network, *who, *out]


@pytest.fixture
def street(ctl: Ctl, tmp_path: Path) -> Street:
    street = Street(tmp_path)
    for name in MEMBERS:
        street.config(name).write_text(SETTINGS.format(name=name, fuse_a=60))
        assert ctl(*enrol(street, name)).status == 0
    return street


@pytest.fixture
def network(ctl: Ctl, street: Street) -> Street:
    assert ctl(*street.create).status == 0
    return street


def test_enrolling_makes_two_keys_and_tells_none(ctl: Ctl, street: Street) -> None:
    state, text = street.state("kitchen-12"), street.enrolment("kitchen-12").read_text()
    for name in ("seal.key", "peer.key"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600
        assert (state / name).read_text().strip() not in text
    sealing, voting = load_seal(state).verify_key, load_vote(state, {}).verify_key
    assert bytes(sealing) != bytes(voting)
    assert f'sealing_key = "{bytes(sealing).hex()}"' in text
    assert f'voting_key = "{bytes(voting).hex()}"' in text
    said = ctl(*enrol(street, "kitchen-12"))
    assert key_id(bytes(voting)).hex(" ", 2) in said.out


def test_enrolling_twice_uses_the_same_keys(ctl: Ctl, street: Street) -> None:
    before = {path: path.read_bytes() for path in street.folder.rglob("*") if path.is_file()}
    for name in MEMBERS:
        assert ctl(*enrol(street, name)).status == 0
    assert {p: p.read_bytes() for p in street.folder.rglob("*") if p.is_file()} == before
    said = ctl(*enrol(street, "shed-3", "oak-street"))
    assert said.status == 78
    assert "is there already, and says something else" in said.err
    assert {p: p.read_bytes() for p in street.folder.rglob("*") if p.is_file()} == before


def test_an_enrolment_goes_to_stdout_where_no_file_is_named(ctl: Ctl, street: Street) -> None:
    text = street.enrolment("kitchen-12").read_text()
    arguments = enrol(street, "kitchen-12")[:-2]
    assert ctl(*arguments).out == text
    reply = ctl(*arguments, "--json").json
    assert reply["enrolment"] == text
    assert (reply["file"], reply["votes"], reply["role"]) == (None, True, "meter")
    assert "votes = false" in ctl(*arguments, "--no-votes").out


def test_a_concentrator_may_have_a_meter_or_none(ctl: Ctl, street: Street) -> None:
    arguments = ["network", "enrol", "--network", NETWORK, "--role", "concentrator"]
    state = ["--state", street.folder / "states" / "pole"]
    assert "[[meter]]" not in ctl(*arguments, *state, "--name", "pole").out
    assert "[[meter]]" in ctl(*arguments, *state, "--config", street.config("shed-3")).out


def test_a_meter_that_has_an_account_does_not_enrol_with_its_keys(ctl: Ctl, street: Street) -> None:
    state = street.folder / "own"
    settings = settings_of(street.config("shed-3").read_text())
    create_account(state, settings, bytes(range(32)))
    said = ctl(
        "network", "enrol", "--state", state, "--config", street.config("shed-3"),
        "--network", NETWORK,
    )  # fmt: skip
    assert said.status == 78
    assert "starts a new chain in a new folder" in said.err
    assert not (state / "peer.key").exists()


def test_a_network_of_four_is_founded_joined_and_shown(ctl: Ctl, street: Street) -> None:
    said = ctl(*street.create)
    assert said.status == 0
    assert "compare the genesis hash by voice" in said.out
    genesis = decode_genesis(street.genesis.read_bytes())
    groups = genesis.hash.hex(" ", 2)
    assert f"genesis    {groups[:39]}\n           {groups[40:]}\n" in said.err
    assert "voters     4: 3 of them certify, up to 1 may lie" in said.err
    assert "warning" not in said.err
    for name in MEMBERS:
        said = ctl(*street.join(name), "--json")
        assert (said.status, said.err) == (0, "")
        assert said.json["genesis_hash"] == genesis.hash.hex()
        assert read_genesis(street.state(name)) == genesis
        files = {path.name for path in street.state(name).iterdir()}
        streams = {"samples", "events", "blocks"} if name in METERS else set()
        assert files == {"seal.key", "peer.key", "genesis.cbor"} | streams
    shown = ctl("network", "show", "--state", street.state("elm-power"))
    assert shown.out == ctl("network", "show", "--genesis", street.genesis).out
    assert groups[:39] in shown.out
    told = ctl("network", "show", "--genesis", street.genesis, "--json").json
    assert (told["voters"], told["faults_max"], told["quorum"]) == (4, 1, 3)
    assert told["word"] == "certified"
    assert [node["name"] for node in told["nodes"]] == sorted(MEMBERS)


def test_what_is_shown_fits_a_terminal(ctl: Ctl, network: Street) -> None:
    shown = ctl("network", "show", "--genesis", network.genesis).out
    assert [line for line in shown.splitlines() if len(line) > 80] == []


def test_a_standalone_meter_is_a_network_where_nobody_votes(ctl: Ctl, street: Street) -> None:
    state = street.folder / "own"
    create_account(state, settings_of(street.config("shed-3").read_text()), bytes(range(32)))
    said = ctl("network", "show", "--state", state)
    assert "nobody votes: what a meter has sealed counts as certified" in said.out
    told = ctl("network", "show", "--state", state, "--json").json
    assert (told["word"], told["voters"], told["quorum"]) == ("standalone", 0, 0)


def test_all_mistakes_are_told_with_file_and_line(ctl: Ctl, street: Street) -> None:
    bad = street.enrolment("shed-3")
    bad.write_text(bad.read_text().replace("votes = true", "votes = 1"))
    worse = street.enrolment("elm-power")
    worse.write_text(worse.read_text().replace('"elm-power"', '"Elm Power"'))
    said = ctl(*street.create)
    assert said.status == 78
    assert f"{bad}: line 13: node.1.votes: expected true or false, got 1\n" in said.err
    assert f"{worse}: line 11: node.1.name: expected 1 to 32 of a-z, 0-9 and -" in said.err
    assert "meterctl: error: 2 mistakes: no network was founded\n" in said.err
    assert said.out == ""
    said = ctl(*street.create, "--json")
    assert said.status == 78
    assert [(entry["file"], entry["line"]) for entry in said.json["mistakes"]] == [
        (str(bad), 13),
        (str(worse), 11),
    ]
    assert not street.genesis.exists()


def test_fewer_than_four_voters_are_told_on_stderr(ctl: Ctl, street: Street) -> None:
    arguments = street.create
    at = arguments.index(street.enrolment("elm-council"))
    del arguments[at - 1 : at + 1]
    said = ctl(*arguments)
    assert said.status == 0
    assert "meterctl: warning: 3 of 3 nodes vote: witnessed, not fork-proof" in said.err
    told = ctl("network", "show", "--genesis", street.genesis, "--json").json
    assert told["word"] == "witnessed"


def test_what_a_flag_and_the_plan_both_say_is_refused(ctl: Ctl, street: Street) -> None:
    plan = street.folder / "network.toml"
    plan.write_text(PLAN)
    said = ctl(*street.create, plan)
    assert said.status == 78
    assert "line 4: network.zone: --zone gives it too" in said.err


def test_a_genesis_is_never_written_over(ctl: Ctl, network: Street) -> None:
    before = network.genesis.read_bytes()
    said = ctl(*network.create)
    assert said.status == 78
    assert "never written over" in said.err
    assert network.genesis.read_bytes() == before
    assert not list(network.folder.glob("*.new"))


# --- joining ----------------------------------------------------------------------------------


def test_a_device_joins_once(ctl: Ctl, network: Street) -> None:
    assert ctl(*network.join("kitchen-12")).status == 0
    said = ctl(*network.join("kitchen-12"))
    assert said.status == 78
    assert "has an account already" in said.err


def test_a_join_that_was_interrupted_is_done_again(
    ctl: Ctl, network: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", refused)
        said = ctl(*network.join("kitchen-12"))
    assert said.status == 74
    assert {path.name for path in network.state("kitchen-12").iterdir()} == {
        "seal.key", "peer.key", "samples", "events", "blocks",
    }  # fmt: skip
    assert ctl(*network.join("kitchen-12")).status == 0


def test_all_that_differs_from_the_genesis_is_told(ctl: Ctl, network: Street) -> None:
    settings = SETTINGS.format(name="kitchen-12", fuse_a=63).replace("1800", "900")
    network.config("kitchen-12").write_text(settings)
    (network.state("kitchen-12") / "peer.key").unlink()
    create_vote(network.state("kitchen-12"), bytes(32))
    said = ctl(*network.join("kitchen-12"))
    assert said.status == 78
    for told in (
        "the voting key of kitchen-12 is not the one in",
        "meter.fuse_a: 63000 mA here, 60000 mA there",
        "meter.interval_s: 900 s here, 1800 s there",
    ):
        assert told.removesuffix(" there") in said.err
    assert "nominal" not in said.err
    assert not (network.state("kitchen-12") / "genesis.cbor").exists()


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"--config": "shed-3"}, 78, "the sealing key of shed-3 is not the one in"),
        ({"--config": None}, 78, "kitchen-12 is a meter there: name its settings with --config"),
        ({"--state": "elsewhere"}, 69, "there is no sealing key"),
        ({"--genesis": "kitchen-12.toml"}, 78, "is no genesis"),
        ({"--genesis": "nowhere"}, 69, "no such file"),
        ({"--state": "elm-power"}, 78, "the sealing key of kitchen-12 is not the one in"),
    ],
)
def test_no_device_joins_with(
    ctl: Ctl, network: Street, change: dict[str, str | None], status: int, told: str
) -> None:
    values: dict[str, object] = {
        "--state": network.state(change.get("--state") or "kitchen-12"),
        "--config": network.config(change.get("--config") or "kitchen-12"),
        "--genesis": network.folder / (change.get("--genesis") or "genesis.cbor"),
    }
    for flag, value in change.items():
        if value is None:
            del values[flag]
    said = ctl("network", "join", "--yes", *(x for pair in values.items() for x in pair))
    assert said.status == status
    assert told in said.err
    assert not (network.state("kitchen-12") / "genesis.cbor").exists()


def test_a_name_that_the_network_does_not_have_is_told(ctl: Ctl, network: Street) -> None:
    network.config("shed-3").write_text(SETTINGS.format(name="attic", fuse_a=60))
    said = ctl(*network.join("shed-3"))
    assert said.status == 78
    assert "the network elm-street has no node called attic" in said.err
    assert "it has elm-council, elm-power, kitchen-12, shed-3" in said.err


# --- asking, usage, help ----------------------------------------------------------------------


def test_create_and_join_ask_at_a_terminal(street: Street) -> None:
    create = street.create[:-1]
    done = at_a_terminal(*create, typed="n\n")
    assert (done.status, street.genesis.exists()) == (64, False)
    assert "not confirmed: nothing was made" in done.shown
    done = at_a_terminal(*create, typed="y\n")
    assert done.status == 0, done.shown
    assert done.shown.index("Found it? [y/N]: ") < done.shown.index("wrote ")
    join = [argument for argument in street.join("shed-3") if argument != "--yes"]
    done = at_a_terminal(*join, typed="\n")
    assert (done.status, (street.state("shed-3") / "genesis.cbor").exists()) == (64, False)
    done = at_a_terminal(*join, typed="yes\n")
    assert done.status == 0, done.shown
    assert "Do others have this hash, and is shed-3 to join? [y/N]: " in done.shown


def test_nobody_is_asked_where_nobody_is(street: Street) -> None:
    said = program(*street.create[:-1])
    assert said.returncode == 64
    assert b"there is no terminal to ask at" in said.stderr
    assert not street.genesis.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("network",), "required: ACTION"),
        (("network", "enrol", "--network", "x"), "one of the arguments --config --name"),
        (("network", "enrol", "--network", "X", "--name", "a"), "--network: expected 1 to 32"),
        (
            ("network", "enrol", "--network", "x", "--name", "a"),
            "a meter's name is in its settings",
        ),
        (
            ("network", "enrol", "--network", "x", "--config", "f", "--role", "authority"),
            "a node with the role authority meters nothing",
        ),
        (("network", "create", "--yes"), "required: -o/--out"),
        (("network", "create", "--yes", "-o", "g", "--interval-s", "7"), "--interval-s: expected"),
        (("network", "create", "--yes", "-o", "g", "--zone", "Mars"), "--zone: no time zone"),
        (("network", "join", "--yes"), "required: --genesis"),
    ],
)
def test_a_wrong_command_is_told(ctl: Ctl, arguments: tuple[str, ...], told: str) -> None:
    said = ctl(*arguments)
    assert said.status == 64
    assert told in said.err


@pytest.mark.parametrize("action", ["enrol", "create", "show", "join"])
def test_each_action_has_examples_in_eighty_columns(
    ctl: Ctl, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = ctl("network", action, "--help")
    assert said.status == 0
    assert f"\nexamples:\n  meterctl network {action}" in said.out
    assert [line for line in said.out.splitlines() if len(line) > 80] == []


# --- keys and files ---------------------------------------------------------------------------


def test_the_voting_key_is_kept_as_the_sealing_key_is(tmp_path: Path) -> None:
    create_vote(tmp_path, bytes(32))
    path = tmp_path / "peer.key"
    assert path.read_text() == "00" * 32 + "\n"
    assert bytes(load_vote(tmp_path, {})) == bytes(32)
    with pytest.raises(ConfigError, match="there is a voting key already"):
        create_vote(tmp_path, bytes(32))
    path.chmod(0o640)
    with pytest.raises(DeniedError, match=r"the voting key .* can be read"):
        load_vote(tmp_path, {})
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "meterd.vote").write_bytes(bytes(range(32)))
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert bytes(load_vote(tmp_path, environ)) == bytes(range(32))
