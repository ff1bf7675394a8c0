"""What ended a process is kept beside the account: once for each reason, and never in its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.device.card import AccountBusyError, Card
from meterd.device.failures import (
    FAILURES_FILE,
    FAILURES_MAX,
    REASON_LETTERS_MAX,
    Failure,
    Failures,
    note_failure,
    noted,
    parse,
    read_failures,
    spell,
)
from meterd.errors import AbsentError, BusyError, ConfigError, MeterdError, StorageError
from meterd.software import SoftwareChangedError

if TYPE_CHECKING:
    from pathlib import Path

NOW_S = 1_795_305_600
ABSENT = AbsentError("no such port: /dev/ttyAMA0")


def test_each_reason_is_kept_once_with_its_first_time(tmp_path: Path) -> None:
    for second in range(100):
        note_failure(tmp_path, ABSENT, NOW_S + second)
    kept = (tmp_path / FAILURES_FILE).stat()
    note_failure(tmp_path, ABSENT, NOW_S + 100)
    assert (tmp_path / FAILURES_FILE).stat().st_mtime_ns == kept.st_mtime_ns, "it was written again"
    note_failure(tmp_path, StorageError("sync\x1b[2J\nstarted run=7"), NOW_S + 101)
    assert read_failures(tmp_path) == [
        Failure(NOW_S, 69, "no such port: /dev/ttyAMA0"),
        Failure(NOW_S + 101, 74, "sync\x1b[2J started run=7"),
    ]


def test_they_are_bounded(tmp_path: Path) -> None:
    for number in range(100):
        note_failure(tmp_path, MeterdError(f"{number} " + "x" * 5000), NOW_S)
    kept = read_failures(tmp_path)
    assert len(kept) == FAILURES_MAX
    assert all(len(one.reason) == REASON_LETTERS_MAX for one in kept)
    assert parse(spell(kept)) == kept


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("no such port\n", id="no time"),
        pytest.param("1795305600 69\n", id="no reason"),
        pytest.param("-5 69 no such port\n", id="before 1970"),
        pytest.param("\u0661 69 no such port\n", id="other digits"),
        pytest.param("\x00" * 9000, id="torn"),
    ],
)
def test_a_file_that_is_damaged_has_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FAILURES_FILE).write_text(text)
    assert read_failures(tmp_path) == []
    note_failure(tmp_path, ABSENT, NOW_S)
    assert len(read_failures(tmp_path)) == 1


def test_where_there_is_no_account_nothing_is_kept(tmp_path: Path) -> None:
    note_failure(tmp_path / "absent", ABSENT, NOW_S)
    assert list(tmp_path.iterdir()) == []


def test_a_group_of_failures_is_noted_and_raised(tmp_path: Path) -> None:
    group = ExceptionGroup("tasks", [ABSENT, ExceptionGroup("more", [StorageError("torn")])])
    with pytest.raises(ExceptionGroup), noted(tmp_path):
        raise group
    assert [one.code for one in read_failures(tmp_path)] == [69, 74]


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        pytest.param(AccountBusyError("another process writes"), 0, id="another is well"),
        pytest.param(SoftwareChangedError("a byte"), 0, id="the account has it already"),
        pytest.param(BusyError("another program holds the port"), 1, id="the port is busy"),
        pytest.param(ConfigError("2 mistakes"), 1, id="settings"),
    ],
)
def test_what_another_place_tells_is_not_kept(
    tmp_path: Path, error: MeterdError, kept: int
) -> None:
    with pytest.raises(MeterdError), noted(tmp_path):
        raise error
    assert len(read_failures(tmp_path)) == kept


def test_the_file_goes_once_the_account_has_told_and_not_before(tmp_path: Path) -> None:
    note_failure(tmp_path, ABSENT, NOW_S)
    failures = Failures(tmp_path)
    assert failures.take_operations() == []
    failures.told()
    Card().perform(failures.take_operations())
    assert failures.take_operations() == []
    assert not (tmp_path / FAILURES_FILE).exists()
