"""Which test shows which requirement: `python -m tests.requirements` writes it down.

`requirements.toml` beside this file has the claims, and tests that show a row under another name; a
test named after a row is found by its name. Results are those of each test's last run, which the
hooks below note in pytest's cache: a run of all tests begins them anew. From all that come
`meterd/ctl/requirements.json`, which `meterctl doctor --requirements` shows, and the table in
README.md.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meterd.ctl.requirements import DATA, Row, result_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parent.parent
SOURCE = Path(__file__).with_suffix(".toml")
README = ROOT / "README.md"
BEGIN, END = "<!-- requirements: begin -->", "<!-- requirements: end -->"
CLAIM_LETTERS_MAX = 70
FILES_NAMED = 2  # in a row of README's table; the data file has them all
OWNED = frozenset(
    (
        *("S1", "S2", "S3", "S4", "S5", "E1", "E2", "E3", "E4", "E5", "H1", "H2", "H3", "H4"),
        *("A1", "A2", "A3", "A4", "A5", "B1", "B2", "B3", "B4", "V1", "V2", "V5", "V6", "V7"),
    )
)
"""What is to be shown by now: each has a test, or a reason why it has none."""

_NAMED = re.compile(r"test((?:_[a-z][0-9])+)_")
_RESULTS = "meterd/results"  # in pytest's cache: by test, its outcome and the day
ALL_BUT_LONG = "not soak"  # what pyproject.toml asks for; the long tests add their results
_OUTCOMES = ("failed", "skipped", "passed")  # the worst of a test's cases counts


# --- tests, by their names ------------------------------------------------------------------------


@cache
def named_tests() -> dict[str, tuple[str, ...]]:
    """Return the names of the tests in each file below `tests`."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_bytes())
        found[path.relative_to(ROOT).as_posix()] = tuple(
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name.startswith("test_")
        )
    return found


def rows_named(name: str) -> list[str]:
    """Return the rows that a test is named after: `test_e3_e4_after_a_restart` is two rows'."""
    found = _NAMED.match(name)
    return found[1].upper().strip("_").split("_") if found else []


def ids_of(named: str, there: dict[str, tuple[str, ...]]) -> list[str]:
    """Return the tests that an entry of the source names: one, or all of a file.

    Raises:
        ValueError: There is no such test.
    """
    path, _, name = named.partition("::")
    if path in there and (not name or name in there[path]):
        return [f"{path}::{each}" for each in there[path] if name in {"", each}]
    raise ValueError(f"there is no test {named}")


# --- the table ------------------------------------------------------------------------------------


def rows(results: dict[str, dict[str, str]]) -> list[Row]:
    """Return all rows with their tests, and each test's result as far as it is known.

    Raises:
        ValueError: The source names a test that is not there, or a test a row that is not.
    """
    there = named_tests()
    shown: dict[str, set[str]] = {}
    for path, names in there.items():
        for name in names:
            for row in rows_named(name):
                shown.setdefault(row, set()).add(f"{path}::{name}")
    found = []
    for entry in tomllib.loads(SOURCE.read_text())["row"]:
        ids = shown.pop(entry["id"], set())
        for named in entry.get("tests", ()):
            ids |= set(ids_of(named, there))
        tests = {each: results.get(each, {}).get("outcome", "not run") for each in sorted(ids)}
        found.append(Row(entry["id"], entry["claim"], tests, entry.get("reason", "")))
    if shown:
        row, ids = next(iter(shown.items()))
        raise ValueError(f"{min(ids)} is named after row {row}, which there is not")
    return found


def readme_table(found: Sequence[Row]) -> str:
    """Return the table as README has it, between its marks."""
    lines = ["| row | claim | shown by | |", "| --- | --- | --- | --- |"]
    for row in found:
        files = sorted({each.partition("::")[0].removeprefix("tests/") for each in row.tests})
        more = ", …" if len(files) > FILES_NAMED else ""
        number = f"{len(row.tests)} in " if row.tests else ""
        named = ", ".join(f"`{each}`" for each in files[:FILES_NAMED]) + more
        told = f"{number}{named}" + (f"; {row.reason}" if row.reason and row.tests else "")
        lines.append(f"| {row.id} | {row.claim} | {told or row.reason} | {result_of(row)} |")
    return "\n".join((BEGIN, *lines, END))


def with_table(text: str, table: str) -> str:
    """Return README's text with `table` in the place of the one that it has.

    Raises:
        ValueError: It does not have the two marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no place for the table: {BEGIN} and {END}")
    return before + table + after


def as_data(found: Iterable[Row]) -> str:
    """Return the data file's text."""
    return json.dumps([row._asdict() for row in found], indent=1, ensure_ascii=False) + "\n"


def kept_results() -> dict[str, dict[str, str]]:
    """Return the results that the data file has: what did not run since then stays."""
    try:
        kept = json.loads(DATA.read_text())
    except FileNotFoundError:
        return {}
    return {
        test: {"outcome": outcome}
        for row in kept
        for test, outcome in row["tests"].items()
        if outcome != "not run"
    }


def main() -> int:
    """Write the data file and README's table; return the exit code."""
    cached = ROOT / ".pytest_cache/v" / _RESULTS
    new: dict[str, dict[str, str]] = json.loads(cached.read_text()) if cached.exists() else {}
    try:
        found = rows(kept_results() | new)
        text = with_table(README.read_text(), readme_table(found))
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    DATA.write_text(as_data(found))
    README.write_text(text)
    shown = sum(bool(row.tests) for row in found)
    print(f"{len(found)} rows, {shown} of them shown by tests: {DATA.name}, {README.name}")
    return 0


# --- what pytest notes ----------------------------------------------------------------------------


class Results:
    """Notes how each test ended, whichever process ran it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.outcomes: dict[str, str] = {}

    def take(self, report: pytest.TestReport) -> None:
        """Take one phase of one case."""
        if report.when != "call" and report.outcome == "passed":
            return
        test = report.nodeid.partition("[")[0]
        before = self.outcomes.get(test, "passed")
        self.outcomes[test] = min(before, report.outcome, key=_OUTCOMES.index)


_results = Results()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a test ended."""
    _results.take(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep what was noted; a run of all tests forgets what was known before."""
    config = session.config
    kept: Any = getattr(config, "cache", None)
    if hasattr(config, "workerinput") or kept is None or not _results.outcomes:
        return
    chosen = config.option.keyword or config.option.markexpr != ALL_BUT_LONG
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen
    today = datetime.now(UTC).date().isoformat()
    new = {test: {"outcome": how, "on": today} for test, how in sorted(_results.outcomes.items())}
    kept.set(_RESULTS, new if whole else (kept.get(_RESULTS, {}) | new))


if __name__ == "__main__":
    sys.exit(main())
