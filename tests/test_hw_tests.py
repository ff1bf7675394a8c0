"""The bench's own tests can fail: each fault of the simulated board is found by the test for it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("fault", "test", "message"),
    [
        ("wrong-baud", "the_board_speaks", "38400 baud?"),
        ("fast", "the_cadence_is", "the board speaks every"),
        ("reversed", "the_known_load_is", "turn the clamp round"),
        ("adaptor-out", "the_known_load_is", "the adaptor?"),
        ("frozen", "with_the_load_off", "what else is on this cable?"),
    ],
)
def test_a_board_is_found_out_whose_fault_is(fault: str, test: str, message: str) -> None:
    done = bench("--port", "sim", "--sim-fault", fault, "-k", test)
    assert done.returncode == 1, done.stdout
    assert message in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "--port /dev/ttyAMA0"), (("--port", "/dev/ttyAMA0"), "--load-w 1000")],
)
def test_what_is_missing_is_said_before_anything_is_tried(
    options: tuple[str, ...], message: str
) -> None:
    done = bench(*options)
    assert done.returncode == 4
    assert message in done.stderr


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    port = str(tmp_path / "absent")
    done = bench(
        "--port", port, "--load-w", "1000", "-k", "opened_case or the_led or relay or pulled"
    )
    assert done.returncode == 0, done.stdout
    for part in ("--case-switch", "--led", "--relay", "somebody has to pull the cable"):
        assert part in done.stdout


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the bench's tests; what is skipped is told with its reason."""
    command = [sys.executable, "-m", "pytest", "hw_tests", "-p", "no:cacheprovider", "-rs"]
    return subprocess.run(
        [*command, *options], cwd=ROOT, check=False, capture_output=True, text=True
    )
