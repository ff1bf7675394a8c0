from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from meterd.device.keys import create_next_seal, create_seal, load_seals
from meterd.device.secret import STORE, find_device_key
from meterd.device.vault import StoredVault, new_passphrase, passphrase_key
from tests.creds import as_root_with_creds
from tests.ctl_kit import Ctl

if TYPE_CHECKING:
    from pathlib import Path

SEED, OTHER = bytes(range(32)), bytes(range(32, 64))


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(capsys)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "account"
    folder.mkdir()
    create_seal(folder, SEED)
    create_next_seal(folder, OTHER)
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = as_root_with_creds(tmp_path, monkeypatch)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(find_device_key, "__kwdefaults__", {"store": made, "board": tmp_path / "-"})
    return made


def test_a_device_gets_its_secret_once_and_its_keys_move(
    ctl: Ctl, state: Path, store: Path
) -> None:
    said = ctl("vault", "init", "--state", state, "--store", store)
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines() == [
        f"device secret  made: {store}",
        "taken in       2 sealing keys",
    ]
    assert [path.name for path in state.iterdir()] == ["vault"]
    again = ctl("vault", "init", "--state", state, "--store", store, "--json")
    assert again.lines == [{"secret_made": False, "keys_taken": 0}]
    device = find_device_key({}, store=store)
    assert [bytes(key) for key in load_seals(state, device)] == [SEED, OTHER]


def test_what_the_vault_holds_is_listed_and_not_shown(ctl: Ctl, state: Path, store: Path) -> None:
    ctl("vault", "init", "--state", state, "--store", store)
    device = find_device_key({}, store=store)
    assert device is not None
    passphrase = new_passphrase()
    key = passphrase_key("correct horse", passphrase)
    with StoredVault(state, device) as stored:
        vault = stored.vault.with_subject("flat-3", os.urandom, passphrase, key)
        stored.keep(vault.put("flat-3", "person", b"A. Household, 3 Elm Street", os.urandom, key))
    said = ctl("vault", "list", "--state", state)
    assert said.status == 0
    warning, why = said.err.splitlines()
    assert warning == "meterctl: warning: the vault is not bound to the board"
    assert why.startswith("meterctl: hint: the board's one-time memory holds no key")
    assert len(why) <= 80
    assert [line.split() for line in said.out.splitlines()] == [
        ["subject", "purpose", "version", "bytes", "opened", "by"],
        ["device", "seal-1", "1", "32", "the", "device"],
        ["device", "seal-2", "1", "32", "the", "device"],
        ["flat-3", "person", "1", "26", "passphrase"],
    ]
    assert "Household" not in said.out
    (listed,) = ctl("vault", "list", "--state", state, "--json").lines
    assert listed["version"] == 2
    assert listed["records"][-1] == {
        "subject": "flat-3", "purpose": "person", "version": 1, "bytes": 26, "passphrase": True,
    }  # fmt: skip


@pytest.mark.usefixtures("store")
def test_without_a_secret_nothing_is_listed(ctl: Ctl, state: Path) -> None:
    said = ctl("vault", "list", "--state", state)
    assert said.status == 69
    assert "nothing here opens the vault" in said.err
    assert "meterctl vault init" in said.err


def test_whoever_is_not_root_asks_the_meter_and_is_told_where_it_was_sought(
    ctl: Ctl, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = ctl("vault", "list", "--state", state)
    assert said.status == 69
    assert f"no meterd answers at {state / 'control'}" in said.err


def test_who_is_not_root_makes_no_secret(
    ctl: Ctl, state: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = ctl("vault", "init", "--state", state, "--store", store)
    assert (said.status, [path.name for path in state.iterdir()].count("vault")) == (77, 0)
    assert "root's to make" in said.err


def test_a_vault_that_is_open_is_not_written(ctl: Ctl, state: Path, store: Path) -> None:
    ctl("vault", "init", "--state", state, "--store", store)
    device = find_device_key({}, store=store)
    assert device is not None
    with StoredVault(state, device):
        said = ctl("vault", "list", "--state", state)
    assert said.status == 75
    assert "another program has" in said.err


def test_the_store_is_where_systemd_looks() -> None:
    assert str(STORE) == "/etc/credstore.encrypted"


@pytest.mark.parametrize(
    "action", ["init", "list", "put", "show", "export", "rotate", "erase", "board"]
)
def test_help_of_each_action_has_examples_in_eighty_columns(
    ctl: Ctl, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = ctl("vault", action, "--help")
    assert said.status == 0
    assert [line for line in said.out.splitlines() if len(line) > 80] == []
    assert "\nexamples:\n  " in said.out
    assert f"meterctl vault {action}" in said.out


@pytest.mark.usefixtures("store")
def test_a_vault_older_than_the_account_says_is_not_listed_either(
    ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterd.ctl.vault.version_named", lambda _state: 3)
    state = tmp_path / "account"
    state.mkdir()
    create_seal(state, SEED)
    ctl("vault", "init", "--state", state, "--store", tmp_path / "store")
    said = ctl("vault", "list", "--state", state)
    assert (said.status, "the vault is older: 1 of 3 times written" in said.err) == (77, True)
