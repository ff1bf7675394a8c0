from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meterd.device import card, files
from meterd.device.files import beside, write_new, write_over
from tests.daemon_kit import NOBODY, need_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Write = Callable[..., None]

BOTH = pytest.mark.parametrize(
    "write", [pytest.param(write_new, id="new"), pytest.param(write_over, id="over")]
)


def no_links(_path: Path, _target: Path) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize("links", [True, False], ids=["with links", "on a stick without them"])
def test_a_file_is_new_or_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    path = tmp_path / "new"
    write_new(path, b"first")
    with pytest.raises(FileExistsError) as refused:
        write_new(path, b"second")
    assert refused.value.filename == str(path)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [True, False], ids=["with links", "on a stick without them"])
def test_a_link_to_nothing_is_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "absent")
    with pytest.raises(FileExistsError):
        write_new(path, b"data")
    assert path.is_symlink()
    assert not path.exists()


def test_a_file_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    for data in (b"first", b"second"):
        write_over(tmp_path / "a", data)
        assert (tmp_path / "a").read_bytes() == data
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_in_the_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"kept")
    (tmp_path / "link").symlink_to("target")
    write_over(tmp_path / "link", b"data")
    assert (tmp_path / "target").read_bytes() == b"kept"
    assert not (tmp_path / "link").is_symlink()


@BOTH
def test_a_link_beside_the_place_is_not_written_through(tmp_path: Path, write: Write) -> None:
    path, target = tmp_path / "a", tmp_path / "target"
    target.write_bytes(b"kept")
    beside(path).symlink_to(target)
    write(path, b"data")
    assert (path.read_bytes(), target.read_bytes()) == (b"data", b"kept")
    assert sorted(tmp_path.iterdir()) == [path, target]


@BOTH
def test_a_file_called_new_is_the_user_s_and_stays(tmp_path: Path, write: Write) -> None:
    (tmp_path / "owner.key.new").write_bytes(b"the next key")
    write(tmp_path / "owner.key", b"data")
    assert (tmp_path / "owner.key.new").read_bytes() == b"the next key"


@BOTH
@pytest.mark.parametrize(
    ("mode", "got"),
    [
        pytest.param(0o600, 0o600, id="private"),
        pytest.param(0o644, 0o644, id="for all, whatever the umask"),
        pytest.param(0o400, 0o400, id="not even its owner writes it"),
        pytest.param(None, 0o640, id="what the umask leaves"),
    ],
)
@pytest.mark.usefixtures("umask")
def test_a_file_has_its_mode(tmp_path: Path, write: Write, mode: int | None, got: int) -> None:
    write(tmp_path / "a", b"data", mode=mode)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == got


def test_nobody_else_reads_a_file_before_its_mode_and_owner_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def fchown(descriptor: int, *_: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(os, "fchown", fchown)
    write_over(tmp_path / "a", b"data", mode=0o644, owner=(NOBODY, NOBODY))
    assert modes == [0o600]


def test_a_file_is_given_to_its_owner(tmp_path: Path) -> None:
    need_root()
    write_over(tmp_path / "a", b"data", mode=0o4755, owner=(NOBODY, NOBODY))
    status = (tmp_path / "a").stat()
    assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY)
    assert stat.S_IMODE(status.st_mode) == 0o4755  # the new owner did not take the bit away


@BOTH
def test_a_file_system_that_has_one_mode_for_all_files_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    def fchmod(_descriptor: int, _mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", fchmod)
    write(tmp_path / "a", b"data", mode=0o644)
    assert (tmp_path / "a").read_bytes() == b"data"


@pytest.mark.parametrize("call", ["open", "fchown", "fchmod", "fsync", "replace"])
def test_what_was_there_stays_where_the_card_fails_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(OSError, match="Input/output error") as failed:
            write_over(path, b"after", mode=0o600, owner=(os.geteuid(), os.getegid()))
    assert failed.value.filename == str(path)
    assert [(one, one.read_bytes()) for one in tmp_path.iterdir()] == [(path, b"before")]


@pytest.mark.parametrize("call", ["open", "fchmod", "fsync", "link"])
def test_there_is_nothing_where_the_card_fails_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(OSError, match="Input/output error") as failed:
            write_new(tmp_path / "a", b"data", mode=0o600)
    assert failed.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_whose_folder_cannot_be_synced_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "sync_folder", failing)
    with pytest.raises(OSError, match="Input/output error"):
        write_new(tmp_path / "a", b"data")
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_all_of_it_is_durable_before_it_is_there_and_its_name_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    told: list[tuple[str, str | int]] = []
    sync, sync_folder = os.fsync, card.sync_folder

    def fsync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            told.append(("file", os.fstat(descriptor).st_size))
            assert not (tmp_path / "a").exists()
        sync(descriptor)

    def folder(path: Path) -> None:
        told.append(("folder", (path / "a").read_text()))
        sync_folder(path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(files, "sync_folder", folder)
    write(tmp_path / "a", b"data")
    assert told == [("file", 4), ("folder", "data")]
