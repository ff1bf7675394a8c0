"""Row E1: every kind of event that is written has its line in the table, and its class."""

from __future__ import annotations

import ast
from itertools import product
from typing import TYPE_CHECKING

import pytest

from meterd.event_kinds import ALARMS, KINDS, METERING, SECURITY, class_of
from meterd.guard import KINDS as OF_PINS
from meterd.pins import case_event
from meterd.software import PACKAGE
from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEMANDED = {
    "login": "technician_entered",
    "failed login": "login_refused",
    "configuration": "configuration",
    "key": "key_made",
    "update": "software_updated",
    "tamper": "case_opened",
    "start": "started",
    "stop": "stopped",
    "clock": "clock_stepped",
    "storage": "torn_tail",
    "order": "order",
}


def written(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (kind or alarm, function) for each that a module names as it writes one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            name = (
                function.attr
                if isinstance(function, ast.Attribute)
                else function.id
                if isinstance(function, ast.Name)
                else ""
            )
            words = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "kind")]
            for word in words:
                for each in ast.walk(word) if isinstance(word, ast.IfExp) else [word]:
                    if isinstance(each, ast.Constant) and isinstance(each.value, str):
                        yield each.value, name
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
            first = node.value.elts[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value, "yield"


def found(*functions: str, folder: Path = PACKAGE) -> set[str]:
    paths = [path for path in sorted(folder.rglob("*.py")) if "share" not in path.parts]
    return {kind for path in paths for kind, function in written(path) if function in functions}


def test_e1_no_event_is_written_whose_kind_the_table_lacks() -> None:
    named = found("event", "_event", "Event")
    assert named >= {"started", "stopped", "sealed", "case_acknowledged", "technician_entered"}
    named |= {kind for pair in OF_PINS.values() for kind in pair if kind}
    named |= {
        kind
        for kept, is_open, first in product((None, True, False), (True, False), (True, False))
        if (kind := case_event(kept, is_open=is_open, first=first))
    }
    assert named - set(KINDS) == set()


def test_e1_what_the_port_reports_and_a_start_compares_is_in_the_table() -> None:
    device = PACKAGE / "device"
    ports = {
        kind for kind, function in written(device / "port.py") if function in {"report", "_report"}
    }
    assert ports >= {"port_lost", "port_silent"}
    since = {kind for kind, function in written(PACKAGE / "since.py") if function == "yield"}
    assert since == {"software_updated", "configuration", "key_made", "key_moved", "key_gone"}
    assert (ports | since | {"power_lost", "died", "recovered", "parameters"}) - set(KINDS) == set()


def test_e1_no_alarm_is_raised_that_has_no_class() -> None:
    alarms = found("raise_alarm")
    assert alarms >= {"storage_full", "case", "port", "clock"}
    assert alarms - set(ALARMS) == set()


def test_e1_the_search_finds_a_kind_that_nobody_knows(tmp_path: Path) -> None:
    """So that the tests above can fail."""
    (tmp_path / "new.py").write_text('book.event("unheard_of" if x else "not_either", ())\n')
    assert found("event", folder=tmp_path) == {"unheard_of", "not_either"}


@pytest.mark.parametrize(("area", "kind"), DEMANDED.items())
def test_e1_each_class_of_the_row_has_its_events(area: str, kind: str) -> None:
    assert class_of(kind, {}) == area


def test_e1_classes_are_those_of_the_row() -> None:
    assert set(DEMANDED) == set(SECURITY)
    areas = {kind.area for kind in KINDS.values()} | set(ALARMS.values())
    assert areas == {*SECURITY, METERING}


def test_an_alarm_has_the_class_of_what_it_is_about() -> None:
    assert class_of("alarm", {"alarm": "storage_full"}) == "storage"
    assert class_of("alarm_over", {"alarm": "cadence"}) == METERING
    assert class_of("alarm", {"alarm": "of_tomorrow"}) == "tamper"
    assert class_of("of_tomorrow", {}) == "tamper"


def test_readme_has_each_class_with_its_events() -> None:
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("## Events")[2].partition("\n## ")[0]
    rows = {
        cells[0]: cells[1]
        for line in table.splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")]) and len(cells) > 1
    }
    for area in SECURITY:
        for kind, about in KINDS.items():
            if about.area == area:
                assert f"`{kind}`" in rows[area], f"{kind} is missing in the row {area}"
