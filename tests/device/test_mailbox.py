from __future__ import annotations

import errno
import os
import select
import socket
import stat
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meterd.device import mailbox
from meterd.device.mailbox import BELL, FILE_BYTES_MAX, FILES_MAX, TURN_FILES_MAX, Letter, Mailbox
from meterd.errors import DeniedError, StorageError
from tests.daemon_kit import need_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_S = 0.5  # for what takes microseconds, where it does not hang
LETTER = Letter("block-000000000001", b"a block")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket, however deep pytest lies."""
    with tempfile.TemporaryDirectory(prefix="meterd-") as made:
        yield Path(made)


@pytest.fixture
def box(folder: Path) -> Mailbox:
    return Mailbox(folder / "box")


def names(box: Mailbox) -> set[str]:
    return {path.name for path in box.folder.iterdir()}


# --- what is written is read --------------------------------------------------------------------


def test_what_the_writer_puts_is_read_until_it_is_taken_away(box: Mailbox) -> None:
    assert box.put(*LETTER)
    assert box.read() == box.read() == [LETTER]
    assert (LETTER.kind, box.has(LETTER.name), box.names()) == ("block", True, {LETTER.name})
    box.remove(LETTER.name)
    assert (box.read(), box.has(LETTER.name), names(box)) == ([], False, set())
    box.remove(LETTER.name)  # a second time is no mistake


@pytest.mark.parametrize("length", [0, 1, FILE_BYTES_MAX])
def test_a_letter_comes_whole_that_has_so_many_bytes(box: Mailbox, length: int) -> None:
    data = os.urandom(length)
    assert box.put("block-1", data)
    assert box.read() == [Letter("block-1", data)]


def test_a_file_that_is_replaced_while_it_is_read_comes_whole(box: Mailbox) -> None:
    """One of the two, never a part, a mixture or nothing: a rename is what makes it appear."""
    ends = threading.Event()
    whole = {bytes([at]) * (1000 + 999 * at) for at in range(1, 9)}
    assert box.put("block-1", next(iter(whole)))

    def write() -> None:
        while not ends.is_set():
            for data in whole:
                box.put("block-1", data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {letter.data for _ in range(400) for letter in box.read()}
    finally:
        ends.set()
        writer.join()
    assert seen <= whole
    assert len(seen) > 1, "the writer has been seen at work"


def test_a_file_that_is_being_written_is_left_to_its_writer(box: Mailbox) -> None:
    (box.folder / ".block-1").write_bytes(b"a bl")
    assert box.read() == []
    assert box.names() == set()
    assert box.put("block-1", b"a block")
    assert box.read() == [Letter("block-1", b"a block")]


# --- what a writer gone wild leaves -------------------------------------------------------------


def _symlink(path: Path) -> None:
    victim = path.parent.parent / "victim"
    victim.write_bytes(b"a secret")
    path.symlink_to(victim)


def _folder(path: Path) -> None:
    (path / "in it" / "deeper").mkdir(parents=True)
    (path / "in it" / "file").write_bytes(b"x")


def _linked_folder(path: Path) -> None:
    kept = path.parent.parent / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"x")
    path.symlink_to(kept)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(path))


def _device(path: Path) -> None:
    need_root()
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: without an end


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_symlink, id="a link to a file"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="a link to a device"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="a link to nothing"),
        pytest.param(lambda path: path.symlink_to(path.name), id="a link to itself"),
        pytest.param(_linked_folder, id="a link to a folder"),
        pytest.param(os.mkfifo, id="a pipe that nobody writes"),
        pytest.param(_folder, id="a folder that is not empty"),
        pytest.param(_socket, id="a socket"),
        pytest.param(_device, id="a device without an end"),
        pytest.param(_sparse, id="a terabyte of nothing"),
        pytest.param(
            lambda path: path.write_bytes(bytes(FILE_BYTES_MAX + 1)), id="a byte too many"
        ),
    ],
)
@pytest.mark.parametrize("name", ["block-2", "bad name"])
def test_it_is_no_letter_and_is_taken_away(
    box: Mailbox, make: Callable[[Path], object], name: str
) -> None:
    make(box.folder / name)
    assert box.put(*LETTER)
    assert box.read() == [LETTER]
    assert names(box) == {LETTER.name}
    beside = {path.name: path for path in box.folder.parent.iterdir()}
    assert "victim" not in beside or beside["victim"].read_bytes() == b"a secret"
    assert "kept" not in beside or (beside["kept"] / "file").read_bytes() == b"x"


@pytest.mark.parametrize(
    "name",
    [
        "block",
        "block-",
        "-1",
        "Block-1",
        "block-A",
        "block-1.x",
        "block_1",
        "block-1-1",
        "block-1\n",
        "\x1b[2J-1",
        "block-\x00".replace("\x00", "\x01"),
        "block-ä",
        "block-\u0661",
        "a" * 17 + "-1",
        "block-" + "1" * 41,
        "block-" + "1" * 249,
        "..block-1",
        ".Block-1",
        ". ",
        "~",
    ],
)
def test_a_name_is_taken_away_unread(box: Mailbox, name: str) -> None:
    (box.folder / name).write_bytes(b"x")
    assert box.names() == set()
    assert box.read() == []
    assert names(box) == set()


def test_a_name_that_is_no_text_is_taken_away(box: Mailbox) -> None:
    Path(os.fsdecode(os.fsencode(box.folder) + b"/block-\xff\xfe")).write_bytes(b"x")
    assert box.read() == []
    assert names(box) == set()


@pytest.mark.parametrize("kind", ["letters", "rubbish"])
def test_thousands_of_files_cost_a_bounded_turn_each(box: Mailbox, kind: str) -> None:
    """And all are gone after some turns: what is bounded is one turn, not the cleaning."""
    count = 3000
    stem = "block-" if kind == "letters" else "RUBBISH-"
    for number in range(count):
        (box.folder / f"{stem}{number}").touch()
    turns = found = 0
    while names(box):
        before = len(names(box))
        letters = box.read()
        assert len(letters) <= 2 * TURN_FILES_MAX
        found += len(letters)
        for letter in letters:
            box.remove(letter.name)
        assert 0 < before - len(names(box)) <= 2 * TURN_FILES_MAX
        turns += 1
    assert found == (count if kind == "letters" else 0)
    assert turns >= count // (2 * TURN_FILES_MAX)


def test_a_turn_returns_no_more_files_than_it_says(box: Mailbox) -> None:
    """At most a MiB each: what a turn holds in memory is this number of MiB."""
    for number in range(3 * TURN_FILES_MAX):
        assert box.put(f"block-{number}", b"x")
    assert len(box.read()) <= TURN_FILES_MAX


def test_what_a_writer_on_a_full_card_left_keeps_nobody_from_reading(
    box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def full(path: Path, flags: int, mode: int = 0o777) -> int:
        os.close(real(path, flags, mode))
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        patch.setattr(mailbox, "FILES_MAX", 1 << 20)
        for number in range(FILES_MAX):
            assert not box.put(f"answer-{number}", b"xx")
    assert box.put(*LETTER)
    letters = [letter for _ in range(2 * FILES_MAX // TURN_FILES_MAX) for letter in box.read()]
    assert LETTER in letters


def test_a_file_that_cannot_be_read_is_taken_away(
    box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.put(*LETTER)
    box.put("block-2", b"x")
    real = os.open

    def refuse(path: str | Path, flags: int, *more: int) -> int:
        if Path(path).name == "block-2":
            raise PermissionError(errno.EACCES, "permission denied")
        return real(path, flags, *more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert box.read() == [LETTER]
    assert names(box) == {LETTER.name}


def test_a_folder_that_is_gone_holds_nothing(box: Mailbox) -> None:
    box.folder.rmdir()
    assert (box.read(), box.names(), box.has("block-1")) == ([], set(), False)
    assert not box.put(*LETTER)
    box.ring()
    box.remove("block-1")


def test_a_folder_of_many_folders_in_one_another_is_survived(box: Mailbox) -> None:
    """Two thousand deep: a name for each would be longer than a path may be."""
    deep = 2000
    here = os.open(box.folder, os.O_RDONLY)
    for _ in range(deep):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        box.put(*LETTER)
        assert box.read() == [LETTER]
    finally:
        for _ in range(deep + 1):  # lifts the second level out of the first, until none is left
            if not (box.folder / "d").exists():
                break
            if (box.folder / "d" / "d").exists():
                (box.folder / "d" / "d").rename(box.folder / "e")
            (box.folder / "d").rmdir()
            if (box.folder / "e").exists():
                (box.folder / "e").rename(box.folder / "d")


# --- what a reader gone wild leaves -------------------------------------------------------------


def test_a_writer_stops_where_the_folder_is_full_and_goes_on_with_what_lies_there(
    box: Mailbox,
) -> None:
    for number in range(FILES_MAX):
        assert box.put(f"block-{number}", b"old")
    assert not box.put("block-more", b"x")
    assert not box.has("block-more")
    assert box.put("block-0", b"new")
    assert (box.folder / "block-0").read_bytes() == b"new"
    box.remove("block-1")
    assert box.put("block-more", b"x")


def test_a_writer_whose_card_is_full_says_so_and_keeps_what_was_there(
    box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert box.put(*LETTER)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as card:
        card.setattr(os, "open", full)
        assert not box.put(LETTER.name, b"another")
    assert box.read() == [LETTER]


def test_a_folder_in_the_place_of_a_letter_is_no_end_of_the_writer(box: Mailbox) -> None:
    (box.folder / "block-1" / "x").mkdir(parents=True)
    assert not box.put("block-1", b"x")


def test_a_writer_writes_into_no_file_but_its_own(box: Mailbox) -> None:
    """The peer process may write the outbox: a link there would let it overwrite the account."""
    victim = box.folder.parent / "00000001.seg"
    victim.write_bytes(b"the ledger")
    (box.folder / ".block-1").symlink_to(victim)
    box.put("block-1", b"a block")
    assert victim.read_bytes() == b"the ledger"


def test_a_writer_waits_for_nobody(box: Mailbox) -> None:
    """The metering process hangs there, and no reading is taken any more."""
    pipe = box.folder / ".block-1"
    os.mkfifo(pipe)
    writer = threading.Thread(target=box.put, args=("block-1", b"a block"))
    writer.start()
    writer.join(DEADLINE_S)
    hangs = writer.is_alive()
    if hangs:
        os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
        writer.join()
    assert not hangs


# --- the bell -----------------------------------------------------------------------------------


def rung(bell: socket.socket) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_a_ring_wakes_the_reader_once(box: Mailbox) -> None:
    with box.listen() as bell:
        assert not rung(bell)
        for _ in range(3):
            box.ring()
        assert rung(bell)
        box.silence(bell)
        assert not rung(bell)
        box.silence(bell)  # nobody has rung


def test_a_ring_that_nobody_listens_to_is_lost(box: Mailbox) -> None:
    box.ring()
    box.listen().close()
    box.ring()
    (box.folder / BELL).unlink()
    (box.folder / BELL).write_bytes(b"no socket")
    box.ring()
    assert box.read() == []
    assert names(box) == {BELL}


def test_a_writer_that_rings_for_ever_keeps_neither_side(box: Mailbox) -> None:
    with box.listen() as bell:
        for _ in range(10_000):
            box.ring()  # the kernel's queue is full after some: it returns all the same
        box.put(*LETTER)
        box.silence(bell)
        assert box.read() == [LETTER]


def test_a_ring_of_any_length_is_a_ring(box: Mailbox) -> None:
    with box.listen() as bell, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for data in (b"", bytes(60_000)):
            stranger.sendto(data, str(box.folder / BELL))
        assert rung(bell)
        box.silence(bell)
        assert not rung(bell)


def test_a_bell_of_the_time_before_is_replaced(box: Mailbox) -> None:
    box.listen().close()
    with box.listen() as bell:
        box.ring()
        assert rung(bell)
        assert names(box) == {BELL}


def test_a_folder_in_the_place_of_the_bell_is_taken_away(box: Mailbox) -> None:
    (box.folder / BELL / "x").mkdir(parents=True)
    box.listen().close()


def test_a_bell_that_cannot_be_made_is_said(box: Mailbox) -> None:
    box.folder.rmdir()
    with pytest.raises(StorageError, match="cannot make"):
        box.listen()


# --- the folder ---------------------------------------------------------------------------------


def test_a_mailbox_makes_its_folder_and_finds_it_again(folder: Path) -> None:
    Mailbox(folder / "line" / "outbox").put(*LETTER)
    assert Mailbox(folder / "line" / "outbox").read() == [LETTER]


def test_a_folder_that_cannot_be_made_is_refused(folder: Path) -> None:
    (folder / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot make"):
        Mailbox(folder / "file" / "outbox")


@pytest.mark.parametrize("what", ["made", "used"])
def test_a_folder_that_may_not_be_is_denied(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "permission denied")

    if what == "made":
        monkeypatch.setattr(Path, "mkdir", deny)
    else:
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DeniedError, match="not allowed to use"):
        Mailbox(folder / "box")
