from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meterd.device.card import Card, CardFullError, Operation, lock
from meterd.errors import BusyError, DeniedError, MeterdError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Calls:
    """Writes down what the card asks of the kernel, and lets one kind of call fail."""

    NAMES = ("open", "write", "fdatasync", "fsync", "posix_fadvise")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.failing = ""
        self.failure = 0
        self.write_bytes_max = 2**30
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self._spy(name, getattr(os, name)))

    def _spy(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: Any) -> object:  # noqa: ANN401 - of any call of the kernel
            self.made.append(name)
            if name == self.failing:
                raise OSError(self.failure, os.strerror(self.failure))
            if name == "write":
                arguments = (arguments[0], arguments[1][: self.write_bytes_max])
            return real(*arguments)

        return call

    def fail(self, name: str, failure: int) -> None:
        self.failing, self.failure = name, failure


@pytest.fixture
def card() -> Iterator[Card]:
    made = Card()
    yield made
    made.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def test_a_file_is_created_appended_to_and_unlinked(card: Card, tmp_path: Path) -> None:
    path = tmp_path / "1"
    card.perform([Operation("create", path, b"head"), Operation("sync_folder", tmp_path)])
    assert path.read_bytes() == b"head"
    card.perform([Operation("append", path, b"ab"), Operation("sync", path)])
    card.perform([Operation("append", path, b"c"), Operation("close", path)])
    assert path.read_bytes() == b"headabc"
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0, "a household's readings are not public"
    card.perform([Operation("append", path, b"d")])
    assert path.read_bytes() == b"headabcd", "a closed file is opened again, and goes on"
    card.perform([Operation("unlink", path), Operation("sync_folder", tmp_path)])
    card.perform([Operation("unlink", path)])  # gone is gone, whoever was first
    assert not path.exists()


def test_a_file_is_never_created_over_another(card: Card, tmp_path: Path) -> None:
    path = tmp_path / "1"
    path.write_bytes(b"sealed")
    with pytest.raises(StorageError, match=r"create .*/1: File exists"):
        card.perform([Operation("create", path, b"anew")])
    assert path.read_bytes() == b"sealed"


def test_a_file_comes_whole_and_synced_or_not_at_all(
    card: Card, tmp_path: Path, calls: Calls
) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    card.perform([Operation("create", folder / "1", b"head")])
    assert calls.made == ["open", "write", "fsync"]
    for failing in ("open", "write", "fsync"):
        calls.fail(failing, errno.EIO)
        with pytest.raises(StorageError):
            card.perform([Operation("create", folder / "2", b"head")])
        assert sorted(folder.iterdir()) == [folder / "1"]
    calls.fail("", 0)
    card.perform([Operation("create", folder / "2", b"other")])
    assert (folder / "2").read_bytes() == b"other", "over what the failure has left beside"


def test_a_file_is_made_outside_its_folder_which_may_be_append_only(
    card: Card, tmp_path: Path, calls: Calls
) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    calls.fail("fsync", errno.EIO)
    with pytest.raises(StorageError):
        card.perform([Operation("create", folder / "1", b"head")])
    assert list(folder.iterdir()) == []


def test_a_file_is_replaced_at_once(card: Card, tmp_path: Path, calls: Calls) -> None:
    path = tmp_path / "checkpoint"
    card.perform([Operation("replace", path, b"old")])
    assert calls.made == ["open", "write", "fsync", "open", "fsync"], "the file, then its folder"
    for failing in ("open", "write", "fsync"):
        calls.fail(failing, errno.ENOSPC)
        with pytest.raises(CardFullError):
            card.perform([Operation("replace", path, b"new")])
        assert path.read_bytes() == b"old"
    calls.fail("", 0)
    card.perform([Operation("replace", path, b"new")])
    assert path.read_bytes() == b"new"


def test_short_writes_are_gone_on_with(card: Card, tmp_path: Path, calls: Calls) -> None:
    calls.write_bytes_max = 3
    data = bytes(range(200))
    card.perform([Operation("create", tmp_path / "1", data)])
    card.perform([Operation("append", tmp_path / "1", data)])
    assert (tmp_path / "1").read_bytes() == data + data


def test_what_is_settled_is_synced_and_then_read_from_the_card(
    card: Card, tmp_path: Path, calls: Calls
) -> None:
    """What an earlier process failed to sync is still in the cache, and no sync finds it there."""
    path = tmp_path / "1"
    path.write_bytes(b"rows")
    calls.made.clear()
    card.perform([Operation("settle", path)])
    assert calls.made == ["open", "fdatasync", "posix_fadvise"]
    assert path.read_bytes() == b"rows"


@pytest.mark.parametrize(
    ("failing", "failure", "kind", "message", "hint"),
    [
        pytest.param("write", errno.ENOSPC, CardFullError, "append", "meterctl prune", id="full"),
        pytest.param("write", errno.EDQUOT, CardFullError, "append", "free space", id="quota"),
        pytest.param(
            "fdatasync", errno.ENOSPC, CardFullError, "sync", "free space", id="full at last"
        ),
        pytest.param("write", errno.EROFS, StorageError, "append", "read-only", id="read-only"),
        pytest.param("open", errno.EROFS, StorageError, "append", "read-only", id="opened so"),
        pytest.param("open", errno.EACCES, StorageError, "append", "ls -l", id="not ours"),
        pytest.param("write", errno.EPERM, StorageError, "append", "lsattr", id="immutable"),
        pytest.param("fdatasync", errno.EIO, StorageError, "sync", "copy it", id="failing"),
        pytest.param("write", errno.EIO, StorageError, "append", "replace it", id="failing write"),
    ],
)
def test_what_the_card_refuses_is_named_and_nothing_is_done_after(  # noqa: PLR0917 - pytest passes them by name
    card: Card,
    tmp_path: Path,
    calls: Calls,
    failing: str,
    failure: int,
    kind: type[MeterdError],
    message: str,
    hint: str,
) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.touch()
    second.touch()
    calls.fail(failing, failure)
    with pytest.raises(kind, match=message) as refused:
        card.perform(
            [
                Operation("append", first, b"a"),
                Operation("sync", first),
                Operation("append", second, b"b"),
                Operation("sync", second),
            ]
        )
    assert type(refused.value) is kind
    assert str(first) in str(refused.value)
    assert os.strerror(failure) in str(refused.value)
    assert hint in refused.value.hint
    assert second.read_bytes() == b""
    assert refused.value.exit_code == 74


def test_a_failed_sync_is_not_tried_again(card: Card, tmp_path: Path, calls: Calls) -> None:
    """The kernel drops what it could not write, and the next sync succeeds over the hole (L3)."""
    path = tmp_path / "1"
    card.perform([Operation("create", path, b"head")])
    calls.fail("fdatasync", errno.EIO)
    with pytest.raises(StorageError):
        card.perform([Operation("append", path, b"a"), Operation("sync", path)])
    assert calls.made.count("fdatasync") == 1


def test_a_file_that_is_gone_is_not_made_anew(card: Card, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        card.perform([Operation("append", tmp_path / "1", b"a")])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_operation_is_an_error_of_ours(card: Card, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="truncate"):
        card.perform([Operation("truncate", tmp_path / "1")])


def _open_in(folder: Path) -> int:
    """How many descriptors of this process are files of this folder, or the folder."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found += descriptor.readlink().is_relative_to(folder)
    return found


def test_all_files_are_closed(tmp_path: Path) -> None:
    card = Card()
    for number in range(3):
        card.perform([Operation("create", tmp_path / str(number), b"")])
    card.perform([Operation("settle", tmp_path / "0"), Operation("sync_folder", tmp_path)])
    card.perform([Operation("replace", tmp_path / "checkpoint", b"")])
    card.perform([Operation("close", tmp_path / "0"), Operation("close", tmp_path / "never")])
    assert _open_in(tmp_path) == 2
    card.close()
    assert _open_in(tmp_path) == 0


# --- the lock ----------------------------------------------------------------------------------


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    held = lock(tmp_path)
    with pytest.raises(BusyError, match="another process writes") as refused:
        lock(tmp_path)
    assert refused.value.exit_code == 75
    assert "already running" in refused.value.hint
    os.close(held)
    os.close(lock(tmp_path))


def test_an_account_that_is_not_there_is_not_locked(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no account") as refused:
        lock(tmp_path / "none")
    assert "meterctl init" in refused.value.hint


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        pytest.param(errno.EACCES, DeniedError, "no permission", id="not ours"),
        pytest.param(errno.EROFS, StorageError, "Read-only file system", id="read-only"),
        pytest.param(errno.EIO, StorageError, "Input/output error", id="failing"),
    ],
)
def test_an_account_that_cannot_be_written_is_not_locked(
    tmp_path: Path, calls: Calls, failure: int, kind: type[MeterdError], message: str
) -> None:
    calls.fail("open", failure)
    with pytest.raises(kind, match=message):
        lock(tmp_path)


def test_a_file_system_without_locks_is_no_second_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _what: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("meterd.device.card.fcntl.flock", refuse)
    with pytest.raises(StorageError, match="cannot lock"):
        lock(tmp_path)
