"""The table of requirements names what there is, and README's is the one that is generated."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Literal

import pytest

from meterd.ctl.requirements import DATA, Row, read_rows, result_of, show
from tests import requirements
from tests.requirements import (
    BEGIN,
    CLAIM_LETTERS_MAX,
    END,
    OWNED,
    README,
    ROOT,
    SOURCE,
    Results,
    as_data,
    ids_of,
    kept_results,
    named_tests,
    readme_table,
    rows,
    rows_named,
    with_table,
)

if TYPE_CHECKING:
    from pathlib import Path

ANEW = "run `python -m tests.requirements`, and commit what it writes"


def test_the_data_file_is_what_would_be_generated() -> None:
    assert DATA.read_text() == as_data(rows(kept_results())), ANEW


def test_readme_s_table_is_what_would_be_generated() -> None:
    text = README.read_text()
    assert text == with_table(text, readme_table(read_rows())), ANEW


def test_every_test_that_is_named_after_a_row_is_in_the_table() -> None:
    listed = {(row.id, test) for row in read_rows() for test in row.tests}
    named = {
        (row, f"{path}::{name}")
        for path, names in named_tests().items()
        for name in names
        for row in rows_named(name)
    }
    assert named - listed == set(), ANEW


def test_every_row_that_is_owed_has_a_test_or_a_reason() -> None:
    found = {row.id: row for row in read_rows()}
    assert set(found) >= OWNED
    assert [id_ for id_ in sorted(OWNED) if not (found[id_].tests or found[id_].reason)] == []
    assert [row.id for row in found.values() if not (row.tests or row.reason)] == []


def test_claims_are_a_line_and_rows_stand_once() -> None:
    found = tomllib.loads(SOURCE.read_text())["row"]
    assert [row["claim"] for row in found if len(row["claim"]) > CLAIM_LETTERS_MAX] == []
    ids = [row["id"] for row in found]
    assert len(ids) == len(set(ids))


def test_no_row_fails() -> None:
    assert [row.id for row in read_rows() if result_of(row) == "FAILS"] == []


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("test_e1_a_login_is_one_event", ["E1"]),
        ("test_e3_e4_after_a_restart_all_holds", ["E3", "E4"]),
        ("test_a_reading_is_exact", []),
        ("test_1_thing", []),
        ("test_e12_is_no_row", []),
    ],
)
def test_a_name_says_its_rows(name: str, named: list[str]) -> None:
    assert rows_named(name) == named


def test_a_test_that_is_not_there_is_named() -> None:
    there: dict[str, tuple[str, ...]] = {"tests/test_a.py": ("test_b",)}
    assert ids_of("tests/test_a.py", there) == ["tests/test_a.py::test_b"]
    with pytest.raises(ValueError, match=r"there is no test tests/test_a.py::test_c"):
        ids_of("tests/test_a.py::test_c", there)


def test_a_test_named_after_no_row_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = named_tests() | {"tests/test_z.py": ("test_z9_is_no_row",)}
    monkeypatch.setattr(requirements, "named_tests", lambda: there)
    with pytest.raises(ValueError, match=r"test_z9_is_no_row is named after row Z9"):
        rows({})


def test_a_readme_without_the_marks_is_refused() -> None:
    assert with_table(f"a{BEGIN}old{END}b", f"{BEGIN}new{END}") == f"a{BEGIN}new{END}b"
    with pytest.raises(ValueError, match="no place for the table"):
        with_table("a", "b")


def test_the_worst_case_of_a_test_is_its_result(tmp_path: Path) -> None:
    """A run of pytest by itself, with the hooks that note how tests end."""
    (tmp_path / "conftest.py").write_text(
        "from tests.requirements import pytest_runtest_logreport, pytest_sessionfinish\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_e1_one_of_two(n): assert n == 2\n"
        "def test_e1_good(): pass\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError\n"
        "def test_e1_cannot_begin(broken): pass\n"
        "@pytest.mark.skip\n"
        "def test_e1_skipped(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\ntestpaths = .\naddopts = -m 'not soak'\nmarkers = soak\n"
    )
    cache = tmp_path / ".pytest_cache/v/meterd/results"

    def run(*options: str) -> dict[str, str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", *options]
        environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, check=False)
        assert done.returncode in {0, 1}, done.stdout
        return {test: how["outcome"] for test, how in json.loads(cache.read_text()).items()}

    everything = {
        "test_it.py::test_e1_cannot_begin": "failed",
        "test_it.py::test_e1_good": "passed",
        "test_it.py::test_e1_one_of_two": "failed",
        "test_it.py::test_e1_skipped": "skipped",
    }
    assert run("--numprocesses", "2") == everything
    (tmp_path / "test_it.py").rename(tmp_path / "test_that.py")
    other = {test.replace("_it.", "_that."): how for test, how in everything.items()}
    assert run("test_that.py", "-k", "good") == everything | {
        "test_that.py::test_e1_good": "passed"
    }
    assert run("-m", "soak or not soak") == everything | other  # a run of the long ones adds
    assert run() == other


def test_a_case_that_passes_later_does_not_hide_one_that_failed() -> None:
    results = Results()
    outcomes: tuple[Literal["passed", "failed"], ...] = ("passed", "failed", "passed")
    for case, outcome in enumerate(outcomes):
        at = ("t.py", 1, "x")
        results.take(pytest.TestReport(f"t.py::test_x[{case}]", at, {}, outcome, None, "call"))
    assert results.outcomes == {"t.py::test_x": "failed"}


def test_the_table_is_shown_in_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(as_json=False) == 0
    told = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d+ requirements: \d+ hold, 0 fail, the rest is not shown", told[0])
    assert [line for line in told if len(line) > 80] == []
    assert show(as_json=True) == 0
    (first, *_) = json.loads(capsys.readouterr().out)
    assert set(first) == {*Row._fields, "result"}
