"""What the READMEs say of commands, units, roles and settings is what there is.

Each line of a block that begins with one of our programs is parsed as that program would, and
nothing is run.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import tomllib

import pytest

from meterd.__main__ import COMMANDS as OF_METERD
from meterd.cli import Parser
from meterd.ctl import COMMANDS as OF_METERCTL
from meterd.device.control_roles import ROLES, TECHNICIAN
from meterd.device.lockdown import AREAS
from tests.conftest import ROOT

READMES = (
    *("README.md", "systemd/README.md", "config/README.md", "hw_tests/README.md"),
    *("meterd/authority/README.md", "meterd/ledger/README.md", "tests/vectors/README.md"),
)
PROGRAMS = {"meterctl": OF_METERCTL, "meterd": OF_METERD}
COMMAND = re.compile(r"(?:sudo )?(?:/\S*/)?(meterctl|meterd) (?=[a-z-]+( |$))")
LINES_MIN = 30  # of the 40 there are; fewer, and the blocks are not found any more


def blocks(text: str) -> list[str]:
    """Return what stands between fences, line by line."""
    return [line for block in text.split("\n```")[1::2] for line in block.splitlines()[1:]]


def commands(text: str) -> list[list[str]]:
    """Return our commands in the blocks of a text, without what stands for more of the same."""
    return [
        [begun[1], *shlex.split(re.sub(r"[\[\]…]", " ", part[begun.end() :]))]
        for line in blocks(text)
        for part in re.split(r"; |&& ", line.partition(" #")[0])
        if (begun := COMMAND.match(part))
    ]


TOLD = [(name, words) for name in READMES for words in commands((ROOT / name).read_text())]


def parse(words: list[str]) -> None:
    program, chosen = words[0], words[1]
    parser = Parser(prog=program)
    subcommands = parser.add_subparsers(dest="command", required=True)
    module, summary = PROGRAMS[program][chosen]
    importlib.import_module(module).add_arguments(subcommands.add_parser(chosen, help=summary))
    parser.parse_args(words[1:])


def table(name: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table below a heading, by their first cell."""
    text = "\n" + (ROOT / name).read_text()
    part = text.partition(f"\n{heading}\n")[2].partition("\n#")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return {cells[0].strip("`"): cells for cells in rows}


@pytest.mark.parametrize(
    ("readme", "words"), [pytest.param(*each, id=" ".join(each[1])[:60]) for each in TOLD]
)
def test_a_command_in_a_readme_is_one_that_there_is(readme: str, words: list[str]) -> None:
    try:
        parse(words)
    except SystemExit as end:
        pytest.fail(f"{readme}: `{' '.join(words)}` is refused ({end.code})")


@pytest.mark.parametrize("name", READMES)
def test_a_command_that_a_sentence_names_is_one_that_there_is(name: str) -> None:
    for program, chosen in re.findall(
        r"`(?:sudo )?(meterctl|meterd) ([a-z-]+)", (ROOT / name).read_text()
    ):
        assert chosen in PROGRAMS[program], f"{name}: {program} {chosen}"


def test_the_commands_are_found() -> None:
    assert len(TOLD) >= LINES_MIN
    assert commands("x\n```\nsudo meterctl vault rotate [flat-3 [--passphrase]]  # a\n```\n") == [
        ["meterctl", "vault", "rotate", "flat-3", "--passphrase"]
    ]


def test_a_command_that_there_is_not_would_be_seen() -> None:
    with pytest.raises(SystemExit):
        parse(["meterctl", "prune", "--yesterday"])


def test_readmes_name_files_that_there_are() -> None:
    for name in READMES:
        for named in re.findall(r"`((?:\.\./)*[\w/.]+/README\.md)`", (ROOT / name).read_text()):
            folder = ROOT if not named.startswith("..") else (ROOT / name).parent
            assert (folder / named).is_file(), f"{name}: {named}"


def test_every_unit_is_told_of_with_its_exposure() -> None:
    rows = table("systemd/README.md", "# What a device starts")
    assert {name for name in rows if name.endswith(".service")} == {
        path.name for path in (ROOT / "systemd").glob("*.service")
    }
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    for name, cells in rows.items():
        if name.endswith(".service"):
            done = subprocess.run(
                [analyze, "security", "--offline=true", "--no-pager", ROOT / "systemd" / name],
                capture_output=True,
                text=True,
                check=True,
            )
            level = re.search(r"Overall exposure level .*: ([0-9.]+) ", done.stdout)
            assert level, done.stdout[-500:]
            assert cells[-1].strip("| ") == level[1], name


def test_every_method_of_the_control_socket_is_told_of_with_who_has_it() -> None:
    told: dict[str, bool] = {}
    for line in (ROOT / "systemd/README.md").read_text().splitlines():
        cells = line.strip("| ").split(" | ")
        if line.startswith("|") and len(cells) >= 2 and cells[-2] in {"both", "operator"}:
            told |= dict.fromkeys(re.findall(r"`(\w+)`", cells[-1]), cells[-2] == "both")
    assert told == {method: TECHNICIAN in roles for method, roles in ROLES.items()}


def test_every_table_of_the_settings_is_told_of() -> None:
    settings = tomllib.loads((ROOT / "config/meterd.toml").read_text())
    named = {name.strip("[]") for name in table("config/README.md", "## Settings")}
    assert set(settings) <= named


def test_every_area_of_the_lockdown_is_told_of() -> None:
    rows = table("config/README.md", "## A device that is closed")
    assert {area for name in rows for area in re.findall(r"\w+", name)} >= set(AREAS)
