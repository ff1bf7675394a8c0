"""`meterctl` for tests: in this process, as a program, at a terminal; and an account to ask."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from meterd.ctl import main
from tests.accounts import config_text, replay_lines

if TYPE_CHECKING:
    from collections.abc import Iterator


BEGIN_S = 1_183_500_000 - 1_183_500_000 % 86_400  # 2007-07-03 00:00 UTC
HOUR_S = 3600
DAYS = 3
PARIS = "Europe/Paris"
CONFIG = config_text(polling_ms=300_000).replace(
    "interval_s = 1800", f'interval_s = 1800\nzone = "{PARIS}"'
)


class Said(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the program prints
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Ctl:
    """Runs `meterctl` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Said:
        self._capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        said = self._capsys.readouterr()
        return Said(status, said.out, said.err)


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    return Ctl(capsys)


def program(*arguments: object, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Run `meterctl` as a program, nobody at the terminal."""
    return subprocess.run(
        [sys.executable, "-c", "import sys; from meterd.ctl import main; sys.exit(main())"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=dict(os.environ) | environ,
        check=False,
        timeout=60,
    )


def capture() -> Iterator[str]:
    """Three days, the sun by day, a restart, a hole, a banner and a line twice."""
    for number in range(DAYS * 288):
        second = BEGIN_S + number * 300
        watts = 900 + number % 100 if (number // 12) % 24 not in range(9, 16) else -700 - number % 9
        if 300 < number < 310:
            continue
        yield f"{second}\t11 {watts}.25 0.0 0.0 4100.0 0.0 0.0 231.4\n"
        if number == 40:
            yield f"{second}\t# RPICT3 \\xa0\\x00\n"
            yield f"{second + 1}\t11 {watts}.25 0.0 0.0 4100.0 0.0 0.0 231.4\n"
        if number == 500:
            yield "!restart\n"


class Made(NamedTuple):
    state: Path
    reply: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    state = tmp_path_factory.mktemp("ctl") / "account"
    account = replay_lines(capture(), CONFIG, state)
    reply = {
        "registers": {
            code: {"uj": uj, "kind": "estimated" if account.kinds[code] else "measured"}
            for code, uj in sorted(account.registers.items())
        },
        "readings": {"accepted": account.accepted, "dropped": account.dropped},
        "gaps": account.gaps,
        "height": len(account.blocks),
    }
    return Made(state, reply)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.state, tmp_path / "copy"))


def edit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


class Terminal(NamedTuple):
    status: int
    shown: str


def at_a_terminal(*arguments: object, typed: str = "", stdout_too: bool = True) -> Terminal:
    """Run `meterctl` on a pty and return what it shows there."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from meterd.ctl import main; sys.exit(main())"]
        + [str(argument) for argument in arguments],
        stdin=terminal,
        stdout=terminal if stdout_too else subprocess.DEVNULL,
        stderr=terminal,
        env=dict(os.environ) | {"COLUMNS": "80", "TERM": "xterm"},
        close_fds=True,
    )
    os.close(terminal)
    os.write(controller, typed.encode())
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the program has closed its end
        while data := os.read(controller, 4096):
            shown += data
    os.close(controller)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return Terminal(process.wait(30), text.replace("\r\n", "\n"))
