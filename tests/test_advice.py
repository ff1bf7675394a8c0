"""What a technician's session advises can be done there, or is said to be the office's to do."""

from __future__ import annotations

import ast
import re
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from meterd.ctl import advice, main
from meterd.ctl.advice import FOR_ROOT, WITH_ROOT, Here, doable
from meterd.ctl.alarm_words import WORST_FIRST, todo
from meterd.ctl.doctor_checks import examine
from meterd.ctl.in_session import VARIABLE, spell
from meterd.ctl.technician_commands import chosen
from meterd.errors import UsageError
from tests.conftest import ROOT
from tests.test_doctor_checks import test_a_finding_where, well_but

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = re.compile(r"`([^`]+)`")
NOT_IN_A_SESSION = re.compile(r"\b(sudo|root|reboot|install|config\.txt|board\.|network\.)|\[gpio")


def said_to_be_here() -> Iterator[str]:
    """Yield all that the sources call possible in a session."""
    for path in sorted((ROOT / "meterd/ctl").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Here":
                yield ast.unparse(node.args[0])


def offered(text: str) -> bool:
    """Return whether a session has all commands that a text names."""
    try:
        return all(chosen(command) for command in COMMAND.findall(text))
    except UsageError:
        return False


def advised() -> Iterator[str]:
    """Yield what doctor's rules and all alarms advise."""
    marks = [mark for mark in test_a_finding_where.pytestmark if mark.name == "parametrize"]
    for mark in marks:
        for case in mark.args[1]:
            yield from (each.todo for each in examine(well_but(**case.values[0])) if each.todo)
    for kind in (*WORST_FIRST, "one_of_tomorrow"):
        yield todo(f"{kind}: something")


def test_what_is_said_to_be_possible_in_a_session_names_its_commands_alone() -> None:
    found = list(said_to_be_here())
    assert len(found) > 10
    assert [text for text in found if not offered(text) or NOT_IN_A_SESSION.search(text)] == []


def test_all_that_doctor_and_alarms_advise_can_be_followed_where_it_is_read() -> None:
    found = set(advised())
    assert len(found) > 50
    in_session = [doable(text, session=True) for text in found]
    assert {text for text in in_session if text.startswith("run it with")} == set()
    for text in in_session:
        assert text.startswith((FOR_ROOT, "root alone sees it; ")) or offered(text), text
    assert any(offered(text) and COMMAND.search(text) for text in in_session)


@pytest.mark.parametrize(
    "text", ["`meterctl prune --before DAY`", WITH_ROOT, Here("see `meterctl peers`"), ""]
)
def test_outside_a_session_advice_is_as_it_was_given(text: str) -> None:
    assert doable(text, session=False) == text
    assert advice.hint(text, session=False) == text


@pytest.mark.parametrize(
    ("text", "for_root"),
    [
        pytest.param("use root", True, id="asks for root"),
        pytest.param("it takes --force", True, id="names an option that is not here"),
        pytest.param("or name it with --clamp NAME", False, id="names an option that is here"),
        pytest.param("run as the account's owner, or with sudo", True, id="asks for sudo"),
        pytest.param("see `meterctl lockdown check`", True, id="names another command"),
        pytest.param("start it: `meterd run --config FILE`", True, id="names another program"),
        pytest.param("name its folder with --state", True, id="takes a path"),
        pytest.param("see `meterctl peers`", False, id="names a command that is here"),
        pytest.param("there are: mains, solar", False, id="is about what was typed"),
        pytest.param("", False, id="is none"),
    ],
)
def test_a_hint_is_for_the_office_that(text: str, for_root: bool) -> None:
    assert advice.hint(text, session=True) == (FOR_ROOT if for_root else "") + text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(("doctor", "--quick"), "do: tell the office; root does it: ", id="doctor"),
        pytest.param(("status",), "hint: tell the office; root does it: ", id="an error's hint"),
        pytest.param(("watch", "--count", "x"), "hint: `help` lists what", id="an option's"),
    ],
)
def test_a_session_is_told_what_can_be_done_there(
    words: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("METERD_STATE", str(tmp_path / "none"))
    monkeypatch.setenv(VARIABLE, spell("jo", 17))
    with suppress(SystemExit):
        main(list(words))
    said = "".join(capsys.readouterr())
    assert told in re.sub(r"\s+", " ", said)
    assert "sudo" not in said
    monkeypatch.delenv(VARIABLE)
    with suppress(SystemExit):
        main(list(words))
    assert told not in re.sub(r"\s+", " ", "".join(capsys.readouterr()))


def test_a_report_is_fetched_from_outside_a_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, spell("jo", 17))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["report"]) == 64
    said = capsys.readouterr().err
    assert "from your own machine: ssh … report > FILE" in said
    assert "-o FILE" not in said
