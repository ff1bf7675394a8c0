"""What the card itself refuses: a real flag of a real file system, which root alone may try."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from meterd.ctl import main
from meterd.device import append_only
from meterd.device.append_only import finish, is_append_only, set_append_only
from meterd.device.archive import segment_name
from meterd.device.card import Card
from meterd.device.prune import prune_stopped, told_segments
from meterd.errors import DeniedError, LedgerDamagedError, StorageError
from meterd.ledger.segment import STREAMS
from tests.accounts import config_text
from tests.daemon_kit import need_root
from tests.device.test_prune import BEGIN_S, DAY_S, Stored, feed, made, replay_into, stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["made", "stored"]


@pytest.fixture(autouse=True)
def let_go(tmp_path: Path) -> Iterator[None]:
    """Root, on a card with such flags; afterwards the files can be taken away again."""
    need_root()
    yield
    for path in tmp_path.rglob("*"):
        if path.is_file():
            set_append_only(path, wanted=False)


def paths(stored: Stored) -> list[Path]:
    return [path for stream in STREAMS for path in sorted((stored.state / stream).iterdir())]


def test_all_segments_are_append_only_once_it_has_run(stored: Stored) -> None:
    done = finish(stored.state, stored.chain)
    assert (done.removed, done.supported) == ((), True)
    assert done.protected == len(paths(stored))
    assert finish(stored.state, stored.chain).protected == 0
    for path in paths(stored):
        assert is_append_only(path)
        for change in (path.unlink, lambda path=path: path.write_bytes(b"")):
            with pytest.raises(PermissionError):
                change()
    assert stored.verdict == "good"


def test_metering_goes_on_with_files_that_are_append_only(stored: Stored) -> None:
    finish(stored.state, stored.chain)
    replay = replay_into(stored.state)
    replay._card = Card()
    feed(replay, 4 * DAY_S, 5 * DAY_S)
    assert stored.verdict == "good"


def test_what_an_event_tells_of_goes_and_nothing_else_does(stored: Stored) -> None:
    finish(stored.state, stored.chain)
    with pytest.raises(DeniedError, match="files stay") as raised:
        prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    assert "systemctl start meterd-prune" in raised.value.hint
    assert stored.files == [1, 2, 3, 4, 5]
    size = (stored.state / "samples" / segment_name(1)).stat().st_size
    done = finish(stored.state, stored.chain)
    assert (done.removed, done.freed_bytes) == ((1,), size)
    assert stored.files == [2, 3, 4, 5]
    assert all(is_append_only(path) for path in paths(stored))
    assert stored.verdict == "good"
    assert finish(stored.state, stored.chain).removed == ()


def test_the_events_are_durable_before_a_file_goes(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(stored.state, stored.chain)
    with pytest.raises(DeniedError):
        prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    done: list[str] = []
    settle, remove = append_only._settle_events, append_only._remove

    def settle_noted(state: Path) -> None:
        done.append("settle")
        settle(state)

    def remove_noted(path: Path, *rest: Any) -> int:  # noqa: ANN401 - passed on
        done.append("remove")
        return remove(path, *rest)

    monkeypatch.setattr(append_only, "_settle_events", settle_noted)
    monkeypatch.setattr(append_only, "_remove", remove_noted)
    finish(stored.state, stored.chain)
    assert done == ["settle", "remove"]

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(DeniedError):
        prune_stopped(stored.state, stored.chain, BEGIN_S + 2 * DAY_S)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="sync"):
        finish(stored.state, stored.chain)
    assert stored.files == [2, 3, 4, 5]


def test_events_that_do_not_hold_remove_nothing(stored: Stored) -> None:
    prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    last = max((stored.state / "events").iterdir())
    data = bytearray(last.read_bytes())
    data[-40] ^= 1  # within the last event, which is the pruning's, before its link
    (stored.state / "samples" / segment_name(1)).write_bytes(b"put back")
    last.write_bytes(bytes(data))
    forged = last.with_name(segment_name(int(last.stem) + 1))
    forged.write_bytes(bytes(data))
    with pytest.raises(LedgerDamagedError):
        finish(stored.state, stored.chain)
    assert stored.files == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("stream", ["blocks", "events"])
@pytest.mark.parametrize("by_link", [False, True])
def test_whoever_exchanges_folders_has_nothing_else_removed(
    stored: Stored, stream: str, by_link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meter's own user may rename the folders, though not the files that are protected."""
    finish(stored.state, stored.chain)
    with pytest.raises(DeniedError, match="files stay"):
        prune_stopped(stored.state, stored.chain, BEGIN_S + DAY_S)
    told = told_segments(stored.state, stored.chain)
    monkeypatch.setattr(append_only, "told_segments", lambda *_: told)  # exchanged after a look
    before = {path.name: path.read_bytes() for path in (stored.state / stream).iterdir()}
    (stored.state / "samples").rename(stored.state / "apart")
    if by_link:
        (stored.state / "samples").symlink_to(stored.state / stream)
    else:
        (stored.state / stream).rename(stored.state / "samples")
        (stored.state / stream).mkdir()
    with pytest.raises(LedgerDamagedError, match="is not the segment that was pruned: it stays"):
        finish(stored.state, stored.chain)
    there = stored.state / "samples"
    assert {path.name: path.read_bytes() for path in there.iterdir()} == before
    assert is_append_only(there / segment_name(1))


def test_a_pipe_in_the_place_of_a_segment_holds_nothing_up(stored: Stored) -> None:
    os.mkfifo(stored.state / "blocks" / segment_name(99))
    with pytest.raises(StorageError, match="is no file"):
        finish(stored.state, stored.chain)


def test_who_may_not_is_told(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    path = paths(stored)[0]

    def refused(_: int, number: int, __: bytes) -> bytes:
        if number == append_only._SET_FLAGS:
            raise PermissionError(1, "Operation not permitted")
        return bytes(8)

    monkeypatch.setattr(fcntl, "ioctl", refused)
    with pytest.raises(DeniedError, match="append-only"):
        set_append_only(path, wanted=True)


def test_a_card_without_such_flags_is_told_of(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object) -> bytes:
        raise OSError(25, "Inappropriate ioctl for device")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", absent)
        done = finish(stored.state, stored.chain)
    assert (done.protected, done.supported) == (0, False)


# --- the command ----------------------------------------------------------------------------------


def finish_by_command(stored: Stored, *options: object) -> int:
    return main(["prune", "--finish", "--state", str(stored.state), *map(str, options)])


def test_the_command_prunes_by_the_settings_and_finishes_it(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The account is of 2007: all but the last segment is older than any days that are kept."""
    config = tmp_path / "meterd.toml"
    config.write_text(config_text())
    assert finish_by_command(stored, "--config", config, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["segments"], told["supported"]) == (0, True)
    assert told["protected"] == len(paths(stored))
    config.write_text(config_text() + "\n[log]\nretain_days = 30\n")
    assert finish_by_command(stored, "--config", config) == 0
    said = capsys.readouterr()
    assert "4 pruned segments removed: " in said.out
    assert "files stay" in said.err  # for this moment: the flag was in the way
    assert stored.files == [5]
    assert stored.verdict == "good"
    assert all(is_append_only(path) for path in paths(stored))


def test_what_cannot_be_pruned_by_the_settings_is_told_and_the_rest_is_done(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its key is not to be had: nothing more is pruned, and what is there is protected."""
    config = tmp_path / "meterd.toml"
    config.write_text(config_text() + "\n[log]\nretain_days = 30\n")
    (stored.state / "seal.key").rename(tmp_path / "seal.key")
    assert finish_by_command(stored, "--config", config) != 0
    said = capsys.readouterr()
    assert "0 pruned segments removed" in said.out
    assert "meterctl: error: " in said.err
    assert stored.files == [1, 2, 3, 4, 5]
    assert all(is_append_only(path) for path in paths(stored))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--finish", "--dry-run"), "nothing to plan"),
        (("--before", "2026-01-01", "--config", "x.toml"), "--config goes with --finish"),
    ],
)
def test_the_command_refuses(
    stored: Stored,
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["prune", "--state", str(stored.state), *options]) == 64
    assert message in capsys.readouterr().err
    assert stored.files == [1, 2, 3, 4, 5]
