"""What is kept between two runs of a commissioning: where, and whose file counts."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from meterd.ctl.commission_progress import (
    forget_progress,
    keep_progress,
    progress_path,
    read_progress,
)
from tests.daemon_kit import NOBODY, need_root

if TYPE_CHECKING:
    from pathlib import Path

ABOUT = ("aa" * 32, "bb" * 32)
NO_STEPS: tuple[object, ...] = (7, {"zero": 7}, {"zero": {}})
STEPS = {"zero": {"found": "mains 0.0 W", "todo": ""}}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "account").mkdir()
    return tmp_path / "account"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary files of somebody who may not write beside the account."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr("os.access", lambda *_: False)
    return tmp_path / "tmp"


def test_it_lies_with_the_account_of_whoever_may_write_there(state: Path) -> None:
    assert read_progress(state, ABOUT) == {}
    keep_progress(state, ABOUT, STEPS)
    assert [path.name for path in state.iterdir()] == ["commissioning.json"]
    assert read_progress(state, ABOUT) == STEPS
    keep_progress(state, ABOUT, {})
    assert read_progress(state, ABOUT) == {}
    forget_progress(state)
    forget_progress(state)
    assert list(state.iterdir()) == []


def test_a_technician_s_lies_with_the_temporary_files(state: Path, elsewhere: Path) -> None:
    keep_progress(state, ABOUT, STEPS)
    [path] = elsewhere.iterdir()
    assert path == progress_path(state)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(state.iterdir()) == []
    assert read_progress(state, ABOUT) == STEPS
    forget_progress(state)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("about", [("aa" * 32, "cc" * 32), ("cc" * 32, "bb" * 32)])
def test_of_another_meter_or_other_parameters_nothing_counts(
    state: Path, about: tuple[str, str]
) -> None:
    keep_progress(state, about, STEPS)
    assert read_progress(state, ABOUT) == {}


@pytest.mark.parametrize(
    "text",
    [
        *("", "no JSON", "[]", "{}"),
        *(
            json.dumps({"genesis": ABOUT[0], "record": ABOUT[1], "steps": steps})
            for steps in NO_STEPS
        ),
    ],
)
def test_what_is_no_progress_is_none(state: Path, text: str) -> None:
    progress_path(state).write_text(text)
    assert read_progress(state, ABOUT) == {}


def test_what_somebody_else_has_put_there_does_not_count(state: Path, elsewhere: Path) -> None:
    need_root()
    keep_progress(state, ABOUT, STEPS)
    [path] = elsewhere.iterdir()
    os.chown(path, NOBODY, NOBODY)
    assert read_progress(state, ABOUT) == {}


def test_a_link_is_neither_read_nor_followed(state: Path, elsewhere: Path) -> None:
    keep_progress(state, ABOUT, STEPS)
    target = progress_path(state).rename(elsewhere / "target")
    progress_path(state).symlink_to(target)
    assert read_progress(state, ABOUT) == {}
    before = target.read_bytes()
    keep_progress(state, ABOUT, {})
    assert target.read_bytes() == before
    assert not progress_path(state).is_symlink()
