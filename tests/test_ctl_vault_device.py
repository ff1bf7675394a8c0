"""`meterctl vault rotate --device`: another secret of the device, whenever power fails."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

import pytest

from meterd.ctl import vault_device
from meterd.ctl.vault_device import rotate
from meterd.device.card import lock
from meterd.device.keys import create_seal, load_seals, take_in
from meterd.device.secret import Secrets, find_device_key, make_secret
from meterd.device.vault import StoredVault
from meterd.errors import AbsentError, BusyError, DeniedError, VaultRefusedError
from meterd.privacy.share import adopt, new_share, take
from tests.creds import as_root_with_creds
from tests.device.test_vault import KEY, NAME, QUICK, draw

if TYPE_CHECKING:
    from pathlib import Path

SEED = bytes(range(32))
BOUND = b"this board's one-time memory"


class Device:
    """A device with a secret, a sealing key and a person's name in its vault."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.state, self.store, self.board = folder / "account", store, folder / "board"
        self.state.mkdir()
        make_secret(store)
        create_seal(self.state, SEED)
        take_in(self.state, self.key)
        share = new_share("s-1", QUICK, KEY, draw).put(KEY, "person", 1, NAME, draw)
        with StoredVault(self.state, self.key) as stored:
            stored.keep(adopt(stored.vault, share, draw)[0])

    @property
    def key(self) -> bytes:
        """What the unit would open the vault with."""
        key = find_device_key({}, store=self.store, board=self.board)
        assert key is not None
        return key

    def secrets(self) -> Secrets:
        return Secrets(self.store, board=self.board)

    def is_whole(self) -> None:
        assert [bytes(key) for key in load_seals(self.state, self.key)] == [SEED]
        with StoredVault(self.state, self.key) as stored:
            assert take(stored.vault, "s-1", KEY, ("person",)).get(KEY, "person") == NAME
        assert [path.name for path in self.store.iterdir()] == ["meterd.device"]


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(tmp_path, as_root_with_creds(tmp_path, monkeypatch))


def test_v7_another_device_secret_opens_all_and_the_one_before_nothing(device: Device) -> None:
    before = device.key
    with StoredVault(device.state, before) as stored:
        records = stored.vault.records
    assert rotate(device.state, device.secrets()) == 3
    device.is_whole()
    with pytest.raises(VaultRefusedError, match="sealed on another device"):
        StoredVault(device.state, before)
    with StoredVault(device.state, device.key) as stored:
        assert stored.vault.records == records


@pytest.mark.parametrize("fails_at", ["draw", "keep", "replace"])
@pytest.mark.parametrize("done", [False, True], ids=["before it", "after it"])
def test_v7_power_may_fail_at_each_step_and_once_more_it_ends_well(
    device: Device, monkeypatch: pytest.MonkeyPatch, fails_at: str, done: bool
) -> None:
    class PowerFailedError(Exception):
        pass

    owner: type = StoredVault if fails_at == "keep" else Secrets
    real = getattr(owner, fails_at)

    def fails(*arguments: object) -> None:
        if done:
            real(*arguments)
        raise PowerFailedError

    with monkeypatch.context() as patch:
        patch.setattr(owner, fails_at, fails)
        with pytest.raises(PowerFailedError):
            rotate(device.state, device.secrets())
    rotate(device.state, device.secrets())
    device.is_whole()


def test_v6_a_vault_is_bound_to_a_board_that_is_given_a_key_later(device: Device) -> None:
    device.board.write_bytes(BOUND)
    with pytest.raises(VaultRefusedError, match="sealed on another device") as refused:
        StoredVault(device.state, device.key)
    assert "vault rotate --device" in refused.value.hint
    rotate(device.state, device.secrets())
    device.is_whole()
    rotate(device.state, device.secrets())
    device.is_whole()
    device.board.unlink()
    with pytest.raises(VaultRefusedError):
        StoredVault(device.state, device.key)
    with pytest.raises(VaultRefusedError):
        rotate(device.state, device.secrets())


def test_a_meter_that_runs_keeps_its_secret(device: Device) -> None:
    held = lock(device.state)
    try:
        with pytest.raises(BusyError, match="another process writes"):
            rotate(device.state, device.secrets())
    finally:
        os.close(held)
    device.is_whole()


def test_it_is_for_root_and_where_there_is_a_secret(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AbsentError, match="no device secret"):
        Secrets(tmp_path / "elsewhere")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DeniedError, match="root's to replace"):
        device.secrets()


def test_what_the_board_holds_is_handed_over_and_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = list[bytes]()
    monkeypatch.setattr(vault_device, "hand_over", handed.append)
    for held, said in ((b"", "holds no key"), (BOUND, f"a key of {len(BOUND)} bytes")):
        monkeypatch.setattr(vault_device, "read_board", lambda held=held: held)
        assert vault_device.board(argparse.Namespace(json=False)) == 0
        shown = capsys.readouterr().out
        assert said in shown
        assert BOUND.decode() not in shown
        assert vault_device.board(argparse.Namespace(json=True)) == 0
        assert capsys.readouterr().out == f'{{"bound": {str(bool(held)).lower()}}}\n'
    assert handed == [b"", b"", BOUND, BOUND]
