"""`meterd demo` as people and scripts run it: it says good, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.device.archive import Known, verify
from tests.daemon_kit import DEADLINE_S, PROGRAM, until

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = 6
INTERRUPTED = ("by Ctrl-C", "by Ctrl-C twice", "by SIGTERM")


class Demo(NamedTuple):
    """What a demo came to.

    Attributes:
        children: Processes that it had started, when it was interrupted.
        temporary: What is left where temporary files are made.
    """

    status: int
    out: str
    said: str
    children: list[int]
    temporary: list[Path]


def play(folder: Path, options: Sequence[str], interrupts: Sequence[tuple[int, bool]] = ()) -> Demo:
    """Run a demo; once it has sealed a block, send it signals, to all its processes if so told."""
    temporary = folder / "temporary"
    temporary.mkdir(parents=True)
    children: list[int] = []
    with (
        (folder / "said").open("w+") as said,
        subprocess.Popen(
            [*PROGRAM, "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        ) as process,
    ):
        assert process.stdout is not None
        out = ""
        if interrupts:
            out = process.stdout.readline()
            found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            children = [int(pid) for pid in found.split()]
        for number, everyone in interrupts:
            (os.killpg if everyone else os.kill)(process.pid, number)
        out += process.stdout.read()
        process.wait(DEADLINE_S)
        said.seek(0)
        return Demo(process.returncode, out, said.read(), children, list(temporary.iterdir()))


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Demo]:
    """All that the tests look at, at one time: a demo mostly waits."""
    folder = tmp_path_factory.mktemp("demos")
    lasting = ("--for", str(SECONDS))
    fast = ("--speed", "3000")
    with ThreadPoolExecutor() as pool:
        runs = {
            "for scripts": pool.submit(play, folder / "1", (*lasting, "--json")),
            "for people": pool.submit(
                play, folder / "2", (*lasting, *fast, "--keep", str(folder / "kept"))
            ),
            "by Ctrl-C": pool.submit(play, folder / "3", fast, [(signal.SIGINT, True)]),
            "by Ctrl-C twice": pool.submit(play, folder / "4", fast, [(signal.SIGINT, True)] * 2),
            "by SIGTERM": pool.submit(play, folder / "5", fast, [(signal.SIGTERM, False)]),
        }
        return {name: run.result() for name, run in runs.items()} | {
            "kept": Demo(0, "", "", [], [folder / "kept"])
        }


def test_a_demo_for_scripts_sums_up_in_json(demos: dict[str, Demo]) -> None:
    demo = demos["for scripts"]
    assert (demo.status, demo.said) == (0, "")
    summary = json.loads(demo.out)
    [meter] = summary["meters"]
    assert meter["verdict"] == "good"
    assert meter["height"] == meter["certified_height"] >= 1
    assert meter["records"] > 0
    assert meter["wh"] == meter["import_uj"] // 3_600_000_000 > 0
    assert set(summary["dropped"]) <= {"duplicate"}  # a recording by the minute repeats itself
    assert demo.temporary == []


def test_a_demo_for_people_shows_blocks_and_the_verdict(demos: dict[str, Demo]) -> None:
    demo = demos["for people"]
    assert (demo.status, demo.said) == (0, "")
    heights = [
        int(height) for height in re.findall(r"^block +(\d+) sealed", demo.out, re.MULTILINE)
    ]
    assert heights == sorted(set(heights))
    assert len(heights) > 3
    assert re.search(r"^played .*, 3000 times as fast, for \d+ s$", demo.out, re.MULTILINE)
    assert "verified every seal, sample and register: good" in demo.out
    assert demo.temporary == []


def test_a_demo_keeps_the_account_where_asked(demos: dict[str, Demo]) -> None:
    [kept] = demos["kept"].temporary
    verdict = verify(kept / "account", Known())
    assert verdict.verdict == "good"
    assert f"sealed {verdict.blocks} blocks" in demos["for people"].out


@pytest.mark.parametrize("how", INTERRUPTED)
def test_a_demo_interrupted_still_verifies_and_leaves_nothing_behind(
    demos: dict[str, Demo], how: str
) -> None:
    demo = demos[how]
    assert (demo.status, demo.said) == (0, "")
    assert "verified every seal, sample and register: good" in demo.out
    assert len(demo.children) == 2
    for child in demo.children:
        assert not Path(f"/proc/{child}").exists(), "a process is left"
    assert demo.temporary == []


def test_a_terminal_shows_a_table_that_lives(tmp_path: Path) -> None:
    controller, terminal = os.openpty()
    shown = bytearray()

    def look() -> None:
        while True:
            try:
                shown.extend(os.read(controller, 65_536))
            except OSError:  # the other end is closed
                return

    looking = threading.Thread(target=look)
    looking.start()
    with subprocess.Popen(
        [*PROGRAM, "demo", "--speed", "3000", "--for", "2"],
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path), "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(terminal)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(DEADLINE_S) == 0
    looking.join(DEADLINE_S)
    os.close(controller)
    text = shown.decode()
    for part in ("household", "power now", "sealed block", "import register, kWh", ": good"):
        assert part in text
    assert text.count("power now") > 2, "it was drawn but once"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        (("--speed", "0"), 64, "--speed: expected 1 or more"),
        (("--csv", "absent.csv"), 69, "cannot read absent.csv"),
        (("--for", "soon"), 64, "--for: expected seconds, more than 0, got 'soon'"),
        (("--for", "0"), 64, "--for: expected seconds, more than 0, got '0'"),
    ],
)
def test_a_demo_asked_wrongly_says_what_is_wrong(
    options: tuple[str, ...], status: int, error: str
) -> None:
    demo = subprocess.run([*PROGRAM, "demo", *options], capture_output=True, text=True, check=False)
    assert demo.returncode == status
    assert error in demo.stderr
    assert "Traceback" not in demo.stderr


def test_a_demo_whose_meter_dies_says_so_and_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "demo", "--speed", "3000", "--keep", str(tmp_path / "kept")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        _, meter = (int(pid) for pid in children)
        os.kill(meter, signal.SIGKILL)
        said = process.stderr.read()
        assert process.wait(DEADLINE_S) == 69
    assert "the meter ended with -9" in said
    assert "--keep" in said
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "all have ended")
