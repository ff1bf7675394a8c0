"""What whoever begins with a device does in another order than the README, and goes on from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.device.failures import FAILURES_FILE, read_failures
from meterd.init import is_free
from tests.test_ctl import Ctl

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
