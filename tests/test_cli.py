from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from meterd.cli import Parser, run, version
from meterd.errors import BusyError, ConfigError
from meterd.software import software_id

if TYPE_CHECKING:
    from collections.abc import Callable


def raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


def test_the_status_of_main_is_the_program_s() -> None:
    assert run("meterctl", lambda: 2) == 2


@pytest.mark.parametrize(
    ("error", "status", "stderr"),
    [
        pytest.param(
            ConfigError("no settings", hint="run `meterctl init`"),
            78,
            "meterctl: error: no settings\nmeterctl: hint: run `meterctl init`\n",
            id="an error with a hint",
        ),
        pytest.param(BusyError("taken"), 75, "meterctl: error: taken\n", id="one without"),
        pytest.param(KeyboardInterrupt(), 130, "", id="Ctrl-C"),
        pytest.param(
            PermissionError(errno.EACCES, "Permission denied", "/dev/ttyAMA0"),
            77,
            "meterctl: error: /dev/ttyAMA0: permission denied\n"
            "meterctl: hint: run it as the user meterd or as root, or mend the mode\n",
            id="no permission",
        ),
        pytest.param(
            OSError(errno.ENOSPC, "No space left on device"),
            74,
            "meterctl: error: no space left on device\n"
            "meterctl: hint: free some space on it, or prune samples with `meterctl prune`\n",
            id="a full card",
        ),
        pytest.param(
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"),
            69,
            "meterctl: error: a/b: no such file or directory\n"
            "meterctl: hint: see that it is there and that its name is right\n",
            id="a missing file",
        ),
        pytest.param(
            OSError(errno.EBUSY, "Device or resource busy", "/dev/ttyAMA0"),
            75,
            "meterctl: error: /dev/ttyAMA0: device or resource busy\n"
            "meterctl: hint: look for another meterd: `pgrep -a meterd`\n",
            id="a busy port",
        ),
        pytest.param(
            ConfigError("a\x1b[2Jb\r\x9bc", hint="d\x07\ne"),
            78,
            "meterctl: error: a?[2Jb??c\nmeterctl: hint: d?\ne\n",
            id="a stranger's words that would upset a terminal",
        ),
        pytest.param(OSError("odd"), 74, "meterctl: error: odd\n", id="whatever else fails"),
        pytest.param(
            ExceptionGroup("g", [ExceptionGroup("h", [BusyError("x")]), BusyError("x")]),
            75,
            "meterctl: error: x\n",
            id="tasks that failed alike",
        ),
        pytest.param(
            ExceptionGroup("g", [ConfigError("x"), BusyError("y")]),
            78,
            "meterctl: error: x\nmeterctl: error: y\n",
            id="tasks that failed otherwise: the first decides",
        ),
    ],
)
def test_an_expected_error_is_told_in_a_sentence(
    error: BaseException, status: int, stderr: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("meterctl", raising(error)) == status
    assert capsys.readouterr().err == stderr


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), ExceptionGroup("g", [ConfigError("x"), ZeroDivisionError()])]
)
def test_an_unexpected_error_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        run("meterctl", raising(error))


SCRIPT = """
import sys
from meterd.cli import Parser, run
def main():
    parser = Parser(prog="meterctl", epilog="examples:\\n  meterctl verify DIR")
    parser.add_version()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("talk").add_argument("--times", type=int, default=100_000)
    for _ in range(parser.parse_args().times):
        print("a line of some length")
    return 0
sys.exit(run("meterctl", main))
"""


def program(*arguments: str, stdout: int | None = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], text=True, stdout=stdout, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "the following arguments are required: command"),
        (("tell",), "invalid choice: 'tell'"),
        (("talk", "--tim", "3"), "unrecognized arguments: --tim 3"),
        (("talk", "--times", "x"), "argument --times: invalid int value: 'x'"),
    ],
    ids=["no command", "another command", "an abbreviation", "a bad value"],
)
def test_a_usage_error_ends_with_64(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser(prog="meterctl")
    talk = parser.add_subparsers(dest="command", required=True).add_parser("talk")
    talk.add_argument("--times", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    assert ended.value.code == 64
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("meterctl: error: ")
    assert told in error
    assert hint in {
        "meterctl: hint: run `meterctl --help`",
        "meterctl: hint: run `meterctl talk --help`",
    }


def test_examples_below_the_help_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="meterctl", epilog="examples:\n  meterctl verify DIR")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.endswith("examples:\n  meterctl verify DIR\n")


def test_the_version_names_the_software_by_its_content(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = Parser(prog="meterctl")
    parser.add_version()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"meterctl {version()}\n"
    assert f"(software {software_id().hex()[:12]})" in version()


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    with program("talk") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "a line of some length\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_output_that_cannot_be_written_is_an_error_told_once() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with program("talk", "--times", "3", stdout=full) as process:
            _, stderr = process.communicate()
    finally:
        os.close(full)
    assert process.returncode == 74
    assert stderr.splitlines()[0] == "meterctl: error: no space left on device"
    assert "Exception ignored" not in stderr
