"""Completion is tried in the shells themselves: what they would offer, not what the script says."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from meterd.ctl import COMMANDS
from meterd.ctl.completion import SHELLS, script
from tests.conftest import CI
from tests.ctl_kit import Ctl
from tests.daemon_kit import DEADLINE_S

if TYPE_CHECKING:
    from pathlib import Path

# What bash does as Tab is pressed behind the words of $1: the line's last word is being completed.
BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
how=$(complete -p meterctl); function=${how##*-F }; function=${function%% *}
"$function" meterctl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    made = {shell: folder / f"meterctl.{shell}" for shell in SHELLS}
    for shell, path in made.items():
        path.write_text(script(shell))
    return made


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(capsys)


def need(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        leave = pytest.fail if CI else pytest.skip
        leave(f"{shell} is not installed: `make test` installs it")
    return found


def offered(script_file: Path, folder: Path, *words: str) -> set[str]:
    """Return what bash offers for the last of `words`, with `folder` as its own."""
    done = subprocess.run(
        [need("bash"), "--norc", "-c", BASH, "bash", script_file, "meterctl", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("doc",), {"doctor"}),
        (("sta",), {"status"}),
        (("status", "--js"), {"--json"}),
        (("lockdown", "p"), {"plan"}),
        (("order", "rot"), {"rotate"}),
        (("order", "rotate", "--cons"), {"--consent"}),
        (("completion", "z"), {"zsh"}),
        (("lockdown", "plan", "--without", "fire"), {"firewall"}),
        (("frobnicate", "x"), set()),
    ],
)
def test_bash_offers(
    scripts: dict[str, Path], tmp_path: Path, words: tuple[str, ...], expected: set[str]
) -> None:
    assert offered(scripts["bash"], tmp_path, *words) == expected


def test_bash_offers_every_command(scripts: dict[str, Path], tmp_path: Path) -> None:
    assert offered(scripts["bash"], tmp_path, "") >= set(COMMANDS)


def test_bash_offers_files_where_a_file_is_wanted_and_folders_for_a_folder(
    scripts: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "account").mkdir()
    (tmp_path / "answers.toml").touch()
    folders = offered(scripts["bash"], tmp_path, "status", "--state", "a")
    assert {name.rstrip("/") for name in folders} == {"account"}
    files = offered(scripts["bash"], tmp_path, "config", "check", "a")
    assert {name.rstrip("/") for name in files} == {"account", "answers.toml"}


def test_zsh_completes_at_its_prompt(scripts: dict[str, Path], tmp_path: Path) -> None:
    """The script is found as any other is, in a folder of fpath, and Tab is really pressed."""
    shell = need("zsh")
    subprocess.run([shell, "-n", scripts["zsh"]], check=True)
    shutil.copy(scripts["zsh"], tmp_path / "_meterctl")
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "TERM": "dumb"}
    fd, theirs = os.openpty()
    with subprocess.Popen(
        [shell, "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=environ, cwd=tmp_path
    ) as process:
        os.close(theirs)
        os.write(fd, f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u\n".encode())
        os.write(fd, b"echo re''ady\n")
        heard(fd, b"ready\r")
        os.write(fd, b"meterctl doc\t")
        heard(fd, b"meterctl doctor")
        os.write(fd, b"\x15meterctl status --js\t")
        heard(fd, b"--json")
        process.kill()
    os.close(fd)


def heard(fd: int, wanted: bytes) -> None:
    """Wait until a shell has written `wanted`."""
    told = b""
    ends_s = time.monotonic() + DEADLINE_S
    while wanted not in told:
        ready, _, _ = select.select([fd], [], [], max(0, ends_s - time.monotonic()))
        assert ready, told
        told += os.read(fd, 4096)


def test_fish_offers_commands_and_options(scripts: dict[str, Path], tmp_path: Path) -> None:
    ask = (
        f"source {scripts['fish']}; complete -C 'meterctl doc'; complete -C 'meterctl status --js'"
    )
    done = subprocess.run(
        [need("fish"), "--no-config", "-c", ask],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == {"doctor", "--json"}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_knows_every_command(scripts: dict[str, Path], shell: str) -> None:
    text = scripts[shell].read_text()
    assert [name for name in COMMANDS if name not in text] == []


def test_another_shell_is_a_mistake_and_without_shtab_the_extra_is_named(
    ctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ctl("completion", "ksh").status == 64
    monkeypatch.setitem(sys.modules, "shtab", None)
    said = ctl("completion", "bash")
    assert said.status == 69
    assert "meterd[cli]" in said.err
