from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from meterd.device import archive
from meterd.device.archive import (
    FILE_BYTES_MAX,
    Known,
    VanishedError,
    meter_of,
    read_file,
    read_files,
    read_part,
    segment_name,
    segment_numbers,
    verify,
)
from meterd.errors import DeniedError, EncodingError, StorageError
from meterd.ledger.verdict import verdict
from tests.ledger.memory import Stored, sealed_account

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    sealed_account(tmp_path / "account")
    return tmp_path / "account"


def test_a_folder_is_judged_as_its_bytes_are(state: Path) -> None:
    assert verify(state, Known()) == Stored.read(state).judge()
    assert verify(state, Known(), workers=2) == Stored.read(state).judge()


def test_a_given_genesis_serves_where_the_accounts_own_is_gone(state: Path) -> None:
    genesis = (state / "genesis.cbor").read_bytes()
    (state / "genesis.cbor").unlink()
    assert verify(state, Known()).verdict == "unreadable"
    assert verify(state, Known(genesis=genesis)).verdict == "good"


@pytest.mark.parametrize("name", ["samples", "events", "blocks"])
def test_an_account_without_a_folder_is_unreadable(state: Path, name: str) -> None:
    (state / name).rename(state / "elsewhere")
    answer = verify(state, Known(head=(1, bytes(32))))
    assert (answer.verdict, answer.key, answer.first_bad) == ("unreadable", "given", None)
    assert f"cannot read {state / name}" in answer.reason


def test_only_segments_are_read_as_segments(state: Path) -> None:
    for name in ("1.seg", "00000001.seg~", "0000000٣.seg", "00000009.SEG", "lost+found"):
        (state / "events" / name).write_bytes(b"not an event")
    assert segment_numbers(state / "events") == [1, 2, 3]
    assert verify(state, Known()).verdict == "good"


def test_a_segment_that_cannot_be_read_is_told(state: Path) -> None:
    (state / "samples" / segment_name(1)).unlink()
    with pytest.raises(VanishedError, match=r"00000001\.seg has gone while it was read"):
        read_part(state, 1, 0, 10)
    (state / "samples" / segment_name(1)).mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        read_part(state, 1, 0, 10)
    (state / "blocks" / segment_name(1)).unlink()
    (state / "blocks" / segment_name(1)).mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        read_files(state)


def test_samples_that_are_pruned_while_an_account_is_read_do_not_trouble(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is durable before the file goes: read anew, the account says so itself."""
    stored = Stored.read(state)
    full = stored.header("samples", 2)[0].previous_digest
    pruned = stored.with_pruned(1, 4, full).with_segment("samples", 1, None)
    asked: list[int] = []

    def interrupted(*arguments: object) -> object:
        asked.append(1)
        if len(asked) == 1:
            pruned.write(state)
        return verdict(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(archive, "verdict", interrupted)
    answer = verify(state, Known())
    assert (answer.verdict, answer.pruned, len(asked)) == ("good", 1, 2)


def test_an_account_says_whose_it_is(state: Path) -> None:
    assert meter_of(state) == "kitchen-12"
    for number in segment_numbers(state / "events"):
        (state / "events" / segment_name(number)).write_bytes(b"damaged")
    assert meter_of(state) == "kitchen-12"
    for name in ("samples", "blocks"):
        for number in segment_numbers(state / name):
            (state / name / segment_name(number)).unlink()
    with pytest.raises(EncodingError, match="no segment has a header that can be read"):
        meter_of(state)


@pytest.mark.parametrize("name", ["genesis.cbor", "blocks/00000001.seg", "samples/00000001.seg"])
def test_what_is_no_file_is_not_waited_for(state: Path, name: str) -> None:
    (state / name).unlink()
    os.mkfifo(state / name)
    found = verify(state, Known())
    assert found.verdict == "unreadable"
    assert found.reason.endswith(f"{name} is no file")


def test_a_file_larger_than_any_is_not_read(state: Path) -> None:
    last = max((state / "events").iterdir())
    os.truncate(last, FILE_BYTES_MAX + 1)  # sparse: it takes no room
    found = verify(state, Known())
    assert (found.verdict, found.reason) == ("unreadable", f"{last} is too large")


def test_an_account_that_may_not_be_read_is_unreadable(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DeniedError, match="no permission to read"):
        read_file(state / "genesis.cbor")
    assert verify(state, Known()).verdict == "unreadable"
