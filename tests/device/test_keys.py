from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from meterd.device.keys import (
    create_next_seal,
    create_seal,
    create_vote,
    load_seal,
    load_seals,
    load_vote,
    take_in,
)
from meterd.errors import (
    AbsentError,
    ConfigError,
    DeniedError,
    MeterdError,
    StorageError,
    VaultRefusedError,
)
from meterd.privacy.envelope import device_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SEED = bytes(range(32))
OTHER = bytes(range(32, 64))


def place(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_key_that_was_made_is_the_key_that_is_loaded(tmp_path: Path) -> None:
    made = create_seal(tmp_path, SEED)
    assert bytes(made) == bytes(load_seal(tmp_path)) == SEED
    path = tmp_path / "seal.key"
    assert path.read_bytes() == SEED.hex().encode() + b"\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_made_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_seal(tmp_path, SEED)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "seal.key").stat().st_mode) == 0o600


def test_file_and_directory_are_synced_before_the_key_is_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    create_seal(tmp_path, SEED)
    assert synced == [False, True]


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    create_seal(tmp_path, SEED)
    with pytest.raises(ConfigError, match="already") as caught:
        create_seal(tmp_path, OTHER)
    assert "empty state directory" in caught.value.hint
    assert bytes(load_seal(tmp_path)) == SEED


@pytest.mark.parametrize("seed", [b"", SEED[:31], SEED + b"\0"])
def test_a_seed_has_32_bytes(tmp_path: Path, seed: bytes) -> None:
    with pytest.raises(ConfigError, match="32 bytes was expected"):
        create_seal(tmp_path, seed)
    assert not (tmp_path / "seal.key").exists()


def _refused_fsync(_fd: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_card_that_fails_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _refused_fsync)
    with pytest.raises(StorageError, match="Input/output error"):
        create_seal(tmp_path, SEED)
    assert not (tmp_path / "seal.key").exists()


def test_a_directory_that_is_not_there_holds_no_key(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        create_seal(tmp_path / "nowhere", SEED)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(OTHER, OTHER, id="raw bytes"),
        pytest.param(OTHER.hex().encode(), OTHER, id="hex"),
        pytest.param(OTHER.hex().upper().encode() + b"\n", OTHER, id="hex with a newline"),
        pytest.param(b"\n" * 32, b"\n" * 32, id="raw bytes that look like text"),
    ],
)
def test_the_credential_goes_before_the_file(
    tmp_path: Path, content: bytes, expected: bytes
) -> None:
    create_vote(tmp_path, SEED)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert bytes(load_vote(tmp_path, environ)) == SEED
    place(credentials / "meterd.vote", content, 0o440)  # as systemd shows it to a service's user
    assert bytes(load_vote(tmp_path, environ)) == expected


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o610])
def test_a_key_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = place(tmp_path / "seal.key", SEED.hex().encode() + b"\n", mode)
    with pytest.raises(DeniedError, match=f"{mode:04o}") as caught:
        load_seal(tmp_path)
    assert f"chmod 600 {path}" in caught.value.hint
    path.chmod(0o400)
    assert bytes(load_seal(tmp_path)) == SEED


CANARY = "c0ffee"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(SEED, id="raw bytes"),
        pytest.param(SEED.hex()[:-1].encode() + b"\n", id="a digit short"),
        pytest.param(SEED.hex().encode() + b"0\n", id="a digit long"),
        pytest.param(SEED.hex().encode() + b"\n\n", id="two newlines"),
        pytest.param(b" " + SEED.hex().encode(), id="a space"),
        pytest.param((CANARY * 10 + "xyz!").encode(), id="letters past f"),
        pytest.param((CANARY * 10 + "٣٣").encode(), id="digits of another script"),
        pytest.param(CANARY.encode() * 100_000, id="far too much"),
    ],
)
def test_no_key_is_read_from(tmp_path: Path, content: bytes) -> None:
    place(tmp_path / "seal.key", content)
    with pytest.raises(ConfigError, match="64 hex digits were expected") as caught:
        load_seal(tmp_path)
    assert CANARY not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        pytest.param(lambda _path: None, AbsentError, "no sealing key", id="missing"),
        pytest.param(lambda path: path.mkdir(), ConfigError, "no file", id="a directory"),
        pytest.param(os.mkfifo, ConfigError, "no file", id="a pipe"),
        pytest.param(lambda path: path.symlink_to(path), StorageError, "symbolic", id="a loop"),
    ],
)
def test_a_key_cannot_be_loaded_that_is(
    tmp_path: Path, make: Callable[[Path], None], kind: type[MeterdError], message: str
) -> None:
    make(tmp_path / "seal.key")
    with pytest.raises(kind, match=message):
        load_seal(tmp_path)


@contextmanager
def nobody(tmp_path: Path) -> Iterator[None]:
    """Drop root's rights for a while, where there are any, and the directory's in any case."""
    tmp_path.chmod(0)
    root = not os.geteuid()
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o700)


def test_somebody_else_can_neither_read_nor_make_the_key(tmp_path: Path) -> None:
    create_seal(tmp_path, SEED)
    with nobody(tmp_path), pytest.raises(DeniedError, match="not allowed to read"):
        load_seal(tmp_path)
    with nobody(tmp_path), pytest.raises(DeniedError, match="not allowed to write"):
        create_seal(tmp_path, OTHER)


# --- in the vault ---------------------------------------------------------------------------------

DEVICE = device_key(SEED)
THIRD = bytes(range(64, 96))


def seeds(state: Path, device: bytes | None = DEVICE) -> list[bytes]:
    return [bytes(key) for key in load_seals(state, device)]


def files(state: Path) -> set[str]:
    return {path.name for path in state.iterdir()}


def test_a_device_with_a_secret_keeps_its_keys_in_the_vault(tmp_path: Path) -> None:
    assert bytes(create_seal(tmp_path, SEED, DEVICE)) == SEED
    assert bytes(create_next_seal(tmp_path, OTHER, DEVICE)) == OTHER
    assert bytes(load_seal(tmp_path, DEVICE)) == SEED
    assert seeds(tmp_path) == [SEED, OTHER]
    assert files(tmp_path) == {"vault"}
    for path in tmp_path.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(
            form in data for seed in (SEED, OTHER) for form in (seed, seed.hex().encode())
        )
    with pytest.raises(AbsentError, match="is not there: the vault"):
        load_seals(tmp_path)
    with pytest.raises(VaultRefusedError, match="another device"):
        load_seals(tmp_path, device_key(OTHER))


@pytest.mark.parametrize("first", [DEVICE, None], ids=["in the vault", "in a file"])
def test_a_key_in_the_vault_is_never_replaced(tmp_path: Path, first: bytes | None) -> None:
    create_seal(tmp_path, SEED, first)
    with pytest.raises(ConfigError, match="already"):
        create_seal(tmp_path, OTHER, DEVICE)
    assert seeds(tmp_path) == [SEED]


def test_keys_in_files_serve_until_they_are_taken_in(tmp_path: Path) -> None:
    create_seal(tmp_path, SEED)
    create_next_seal(tmp_path, OTHER, DEVICE)  # beside the first: a file
    assert seeds(tmp_path) == seeds(tmp_path, None) == [SEED, OTHER]
    assert take_in(tmp_path, DEVICE) == 2
    assert seeds(tmp_path) == [SEED, OTHER]
    assert files(tmp_path) == {"vault"}
    assert take_in(tmp_path, DEVICE) == 0
    create_next_seal(tmp_path, THIRD, DEVICE)
    assert seeds(tmp_path) == [SEED, OTHER, THIRD]


def test_the_key_of_another_is_not_taken_in(tmp_path: Path) -> None:
    create_seal(tmp_path, SEED, DEVICE)
    place(tmp_path / "seal.key", OTHER.hex().encode())
    with pytest.raises(ConfigError, match="other sealing keys"):
        take_in(tmp_path, DEVICE)
    assert seeds(tmp_path) == [SEED]
    assert (tmp_path / "seal.key").exists()


@pytest.mark.parametrize("number", range(12))
def test_power_that_fails_while_keys_are_taken_in_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """At each call of the kernel that changes something."""
    create_seal(tmp_path, SEED)
    create_next_seal(tmp_path, OTHER)
    left = number

    def failing(name: str) -> None:
        before = getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.EIO, "the power fails")
            return before(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "fdatasync", "replace", "rename", "unlink"):
        failing(name)
    failed = False
    try:
        take_in(tmp_path, DEVICE)
    except (MeterdError, OSError):
        failed = True
    monkeypatch.undo()
    assert seeds(tmp_path) == [SEED, OTHER]
    assert take_in(tmp_path, DEVICE) == 0 or failed
    assert seeds(tmp_path) == [SEED, OTHER]
    assert files(tmp_path) == {"vault"}
