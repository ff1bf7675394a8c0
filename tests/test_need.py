"""The script that sees to Debian packages, with a folder of made-up commands as its whole PATH."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NEED = Path(__file__).parent.parent / ".ci" / "need"
LINE = "sudo sh -c 'apt-get update && apt-get install --yes --no-install-recommends strace'"
APT_GET = """\
echo "apt-get $*" >>"${0%/*}/calls"
case "$*" in *install*strace*) echo 'exit 0' >"${0%/*}/strace"; chmod +x "${0%/*}/strace" ;; esac
"""


class Machine:
    """A machine with these commands and no others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sh", "env", "chmod"):
            (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        self.command("python3", f'exec "{sys.executable}" "$@"')

    def command(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def need(self, *pairs: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", NEED, *pairs],
            env={"PATH": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_is_there_is_not_installed(machine: Machine) -> None:
    machine.command("apt-get", APT_GET)
    machine.command("strace", "exit 0")
    done = machine.need("strace:strace", "import-ensurepip:python3-venv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls() == []


@pytest.mark.parametrize(
    "rights",
    [
        pytest.param({"id": "echo 0"}, id="root"),
        pytest.param({"id": "echo 1000", "sudo": 'shift; exec "$@"'}, id="sudo"),
    ],
)
def test_what_is_missing_is_installed_by(machine: Machine, rights: dict[str, str]) -> None:
    machine.command("apt-get", APT_GET)
    machine.command("true", "exit 0")
    for name, text in rights.items():
        machine.command(name, text)
    done = machine.need("strace:strace")
    assert done.returncode == 0
    assert "missing strace; running: apt-get update && apt-get install" in done.stderr
    assert machine.calls() == [
        "apt-get -qq update",
        "apt-get install --yes --no-install-recommends strace -qq",
    ]


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param({"id": "echo 1000", "apt-get": APT_GET}, id="without sudo"),
        pytest.param(
            {"id": "echo 1000", "apt-get": APT_GET, "sudo": "exit 1"}, id="whose sudo asks"
        ),
        pytest.param({"id": "echo 0"}, id="without apt-get"),
        pytest.param({"id": "echo 0", "apt-get": "exit 100"}, id="whose packages are out of reach"),
        pytest.param({"id": "echo 0", "apt-get": "exit 0"}, id="whose package lacks the command"),
    ],
)
def test_the_line_to_run_is_printed_last_on_a_machine(
    machine: Machine, commands: dict[str, str]
) -> None:
    for name, text in commands.items():
        machine.command(name, text)
    done = machine.need("strace:strace")
    assert done.returncode == 69
    assert done.stderr.splitlines()[-1] == LINE


def test_a_module_of_python_is_asked_for_too(machine: Machine) -> None:
    machine.command("id", "echo 1000")
    done = machine.need("import-no_such_module:python3-venv")
    assert done.returncode == 69
    assert done.stderr.endswith("--no-install-recommends python3-venv'\n")


def test_what_lies_where_only_roots_path_looks_is_there_for_everybody() -> None:
    """Debian gives a user no `/usr/sbin`, and that is where it puts brokers."""
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run(
        [make, "--directory", str(NEED.parent.parent), "tools"],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "missing" not in done.stderr
