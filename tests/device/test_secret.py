from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from meterd.device.secret import BOARD, DEVICE, find_device_key, make_secret
from meterd.errors import AbsentError, ConfigError, DeniedError, MeterdError, StorageError
from meterd.privacy.envelope import device_key
from tests.creds import as_root_with_creds

if TYPE_CHECKING:
    from pathlib import Path

SECRET, BOUND = bytes(range(32)), bytes(range(64))


@pytest.fixture
def creds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return as_root_with_creds(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="no secret"),
        pytest.param({BOARD: BOUND}, None, id="what the board holds alone"),
        pytest.param({DEVICE: SECRET}, device_key(SECRET), id="a secret"),
        pytest.param({DEVICE: SECRET, BOARD: b""}, device_key(SECRET), id="a board without"),
        pytest.param({DEVICE: SECRET, BOARD: BOUND}, device_key(SECRET, BOUND), id="both"),
    ],
)
def test_under_a_unit_it_comes_by_credentials(
    tmp_path: Path, files: dict[str, bytes], expected: bytes | None
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert find_device_key({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == expected


@pytest.mark.parametrize(
    ("files", "kind", "message"),
    [
        ({DEVICE: SECRET[1:]}, ConfigError, "31 bytes, a device secret has 32"),
        ({DEVICE: SECRET, BOARD: bytes(65)}, ConfigError, "65 bytes"),
    ],
)
def test_no_secret_is(
    tmp_path: Path, files: dict[str, bytes], kind: type[MeterdError], message: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(kind, match=message):
        find_device_key({"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_a_secret_is_made_once_and_root_finds_it(creds: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    assert find_device_key({}, store=creds, board=board) is None
    make_secret(creds)
    assert stat.S_IMODE((creds / DEVICE).stat().st_mode) == 0o600
    assert [path.name for path in creds.iterdir()] == [DEVICE]
    found = find_device_key({}, store=creds, board=board)
    assert found is not None
    board.write_bytes(BOUND)
    assert find_device_key({}, store=creds, board=board) not in {None, found}
    with pytest.raises(ConfigError, match="has a secret"):
        make_secret(creds)


def test_two_devices_have_two_secrets(creds: Path, tmp_path: Path) -> None:
    keys = set()
    for name in ("one", "other"):
        make_secret(creds / name)
        keys.add(find_device_key({}, store=creds / name, board=tmp_path / "none"))
    assert len(keys) == 2


def test_a_secret_under_another_name_is_refused(creds: Path) -> None:
    make_secret(creds)
    (creds / DEVICE).write_bytes(b"meterd.vote\n" + SECRET)
    with pytest.raises(StorageError, match=r"could not decrypt meterd\.device: another name"):
        find_device_key({}, store=creds)


@pytest.mark.usefixtures("creds")
def test_a_systemd_creds_that_hangs_is_stopped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "hangs/systemd-creds"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("meterd.device.secret.CREDS_S_MAX", 0.1)
    with pytest.raises(AbsentError, match="systemd-creds has not ended after"):
        make_secret(tmp_path / "store")


@pytest.mark.usefixtures("creds")
def test_without_systemd_creds_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(AbsentError, match="systemd-creds is not installed"):
        make_secret(tmp_path / "store")


def test_who_is_not_root_neither_makes_nor_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / DEVICE).write_bytes(SECRET)
    assert find_device_key({}, store=tmp_path) is None
    with pytest.raises(DeniedError, match="root's to make"):
        make_secret(tmp_path)
