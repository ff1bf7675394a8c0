"""What whoever begins with a device does in another order than the README, and goes on from."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from meterd.ctl.lockdown import new_units
from meterd.device.failures import FAILURES_FILE, read_failures
from meterd.device.lockdown_device import Gone, Item, Link
from meterd.errors import ConfigError
from meterd.init import is_free
from meterd.peer import run
from tests.ctl_kit import Ctl
from tests.street import make_street

if TYPE_CHECKING:
    from pathlib import Path

NEW = ("--yes", "--name", "shed")


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(capsys)


def test_a_start_before_there_was_an_account_does_not_keep_one_from_being_made(
    ctl: Ctl, tmp_path: Path
) -> None:
    """The unit makes the folder, and the start that fails its note, which the account tells of."""
    state, config = tmp_path / "state", tmp_path / "meterd.toml"
    (state / "lost+found").mkdir(parents=True)
    (state / FAILURES_FILE).write_text("1795305600 78 there is no settings file\n")
    said = ctl("init", "--state", state, "--config", config, *NEW)
    assert said.status == 0, said.err
    assert [one.code for one in read_failures(state)] == [78]


@pytest.mark.parametrize("name", ["seal.key", "genesis.cbor", "vault", "blocks", ".hidden"])
def test_no_account_is_made_over(name: str, ctl: Ctl, tmp_path: Path) -> None:
    state, config = tmp_path / "state", tmp_path / "meterd.toml"
    state.mkdir()
    (state / name).touch()
    said = ctl("init", "--state", state, "--config", config, *NEW)
    assert (said.status, config.exists()) == (78, False)
    assert "never made over another" in said.err


def test_a_folder_that_cannot_be_used_is_said_before_anything_is_asked(
    ctl: Ctl, tmp_path: Path
) -> None:
    (tmp_path / "something").touch()
    said = ctl("init", "--state", tmp_path, "--config", tmp_path / "new.toml", "--zone", "?", *NEW)
    assert said.status == 78
    assert "never made over another" in said.err


def test_a_folder_that_is_not_there_is_free(tmp_path: Path) -> None:
    assert is_free(tmp_path / "none")


def test_a_peer_process_without_the_genesis_says_where_to_take_it_from(tmp_path: Path) -> None:
    """Not `meterctl init`: that makes the account of a meter, which this process has none of."""
    config = tmp_path / "meterd.toml"
    config.write_text('[network]\nname = "grid-co"\nbrokers = ["mqtt://127.0.0.1:1"]\n')
    with pytest.raises(ConfigError, match=r"there is no genesis\.cbor in ") as raised:
        run(argparse.Namespace(config=config, state=tmp_path))
    assert "copy the network's there" in raised.value.hint
    assert "/var/lib/meterd" in raised.value.hint


def test_what_the_lockdown_enables_is_started_by_one_line_timers_too() -> None:
    wants = "/etc/systemd/system/{}.wants/{}"
    items = [
        Item(
            "units",
            wants.format(target, unit),
            Gone(),
            Link(f"/etc/systemd/system/{unit}"),
            "",
            "",
            "",
        )
        for target, unit in (
            ("timers.target", "meterd-check.timer"),
            ("multi-user.target", "meterd.service"),
            ("multi-user.target", "meterd-peer.service"),
            ("sysinit.target", "nftables.service"),
            ("local-fs.target", "run-meterd.line.mount"),
        )
    ]
    assert new_units(items) == ["meterd", "meterd-peer", "meterd-check.timer"]


def test_whoever_prunes_without_a_day_is_told_how_to_name_one(ctl: Ctl) -> None:
    """Alarms say `meterctl prune`: typed as it is, it goes on from there."""
    said = ctl("prune", "--state", "/absent")
    assert said.status == 64
    assert "say which samples go" in said.err
    assert "`meterctl prune --before 2026-01-01 --dry-run`" in said.err


@pytest.mark.parametrize(
    "command",
    [
        ("network", "enrol", "--network", "elm-street"),
        ("network", "join", "--genesis", "genesis.cbor", "--yes"),
        ("replace", "new", "--meter", "shed", "--network", "elm-street"),
    ],
)
def test_whoever_enrols_without_settings_is_told_what_makes_them_and_no_account(
    command: tuple[str, ...], ctl: Ctl, tmp_path: Path, made_genesis: Path
) -> None:
    state, config = tmp_path / "state", tmp_path / "meterd.toml"
    words = [str(made_genesis) if word == "genesis.cbor" else word for word in command]
    where = ("--state", state, "--config", config)
    said = ctl(*words, *where)
    assert (said.status, said.out) == (78, "")
    assert f"there are no settings {config}: the meter's name, fuse and clamps" in said.err
    [hint] = (line for line in said.err.splitlines() if "hint: " in line)
    _, hinted, _ = hint.split("`")
    assert hinted == f"meterctl init --settings-alone --config {config}"
    assert ctl(*hinted.split()[1:], *NEW).status == 0
    assert not state.exists()
    enrol = ("network", "enrol", "--network", "elm-street")
    assert ctl(*enrol, *where).status == 0
    again = ctl(*hinted.split()[1:], *NEW)
    assert (again.status, "settings are not written over" in again.err) == (78, True)


@pytest.fixture(scope="module")
def made_genesis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    make_street(folder)
    return next(folder.rglob("genesis.cbor"))
