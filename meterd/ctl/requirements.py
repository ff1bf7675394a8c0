"""What is required of a meter, and which tests of this release have shown it.

The data file beside this is made where meterd is made, by its tests; nothing is tested here.

>>> row = Row("L3", "a failed sync ends the writer", {"tests/a.py::test_b": "passed"}, "")
>>> result_of(row)
'holds'
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

from meterd.ctl.show import COLUMNS, count

DATA = Path(__file__).with_suffix(".json")
_ID_LETTERS = 4
_RESULT_LETTERS = 20  # `holds, 10 of 12 run`, and a blank


class Row(NamedTuple):
    """One requirement.

    Attributes:
        id: As `E1`.
        claim: What is claimed, in a line.
        tests: Those that show it, each with how it ended the last time it ran: `passed`, `failed`,
            `skipped`, `not run`.
        reason: Why nothing shows it here, or what of it is not shown; mostly empty.
    """

    id: str
    claim: str
    tests: dict[str, str]
    reason: str


def read_rows() -> list[Row]:
    """Return the rows of this release."""
    return [Row(**row) for row in json.loads(DATA.read_text(encoding="utf-8"))]


def result_of(row: Row) -> str:
    """Return a row's result in a word or two.

    >>> result_of(Row("A4", "", {"a": "passed", "b": "not run", "c": "passed"}, ""))
    'holds, 2 of 3 run'
    >>> result_of(Row("A4", "", {"a": "passed", "b": "failed"}, ""))
    'FAILS'
    >>> result_of(Row("U1", "", {}, "there is no image")), result_of(Row("U1", "", {"a": "x"}, ""))
    ('not shown', 'not run')
    """
    ended = Counter(row.tests.values())
    if not row.tests:
        return "not shown"
    if ended["failed"]:
        return "FAILS"
    if not ended["passed"]:
        return "not run"
    all_of = len(row.tests)
    return "holds" if ended["passed"] == all_of else f"holds, {ended['passed']} of {all_of} run"


def show(*, as_json: bool) -> int:
    """Print the table; return the exit code: 1 where a row's test has failed."""
    rows = read_rows()
    results = [result_of(row) for row in rows]
    failed = results.count("FAILS")
    if as_json:
        told = [
            row._asdict() | {"result": result} for row, result in zip(rows, results, strict=True)
        ]
        print(json.dumps(told))
        return 1 if failed else 0
    hold = sum(result.startswith("holds") for result in results)
    print(f"{count(len(rows), 'requirement')}: {hold} hold, {failed} fail, the rest is not shown")
    for row, result in zip(rows, results, strict=True):
        begin = f"{row.id:{_ID_LETTERS}}{result:{_RESULT_LETTERS}}"
        first, *rest = wrap(row.claim, COLUMNS - len(begin))
        print(f"{begin}{first}")
        for line in (*rest, *wrap(row.reason, COLUMNS - len(begin) - 2)):
            print(f"{' ' * len(begin)}{line}")
    return 1 if failed else 0
