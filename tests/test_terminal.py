"""What an account says is shown to people, and an account may be a stranger's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.rig import MIDNIGHT_S, Rig

if TYPE_CHECKING:
    from pathlib import Path

UPSETS = "\x1b[2J\x1b]0;owned\x07\r"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An account that is good, whose events have words that no meter writes."""
    rig = Rig(tmp_path_factory.mktemp("stranger") / "account")
    rig.start(MIDNIGHT_S)
    rig.rows(30)
    rig.book.event(f"{UPSETS}kind", ((f"{UPSETS}name", f"{UPSETS}value"),))
    rig.book.event("alarm", (("alarm", f"{UPSETS}word"),))
    rig.commit()
    rig.card.close()
    rig.assert_good()
    return rig.state


def ctl(*command: object) -> subprocess.CompletedProcess[str]:
    """Run `meterctl`; it has a minute."""
    program = "import sys; from meterd.ctl import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_no_account_holds_up_who_verifies_it(state: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(state, copy)
    (copy / "genesis.cbor").unlink()
    os.mkfifo(copy / "genesis.cbor")
    done = ctl("verify", copy)
    assert done.returncode == 2, done.stderr
    assert "genesis.cbor is no file" in done.stderr


@pytest.mark.parametrize(
    ("command", "found"),
    [
        pytest.param(("events",), ("name=", "kind"), id="events"),
        pytest.param(("events", "--json"), ("name", "kind", "value"), id="events for programs"),
        pytest.param(("status",), ("word",), id="status"),
    ],
)
def test_no_account_upsets_the_terminal_of_whoever_looks_at_it(
    state: Path, command: tuple[str, ...], found: tuple[str, ...]
) -> None:
    done = ctl(*command, "--state", state)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in found)
    shown = (done.stdout + done.stderr).replace("\n", "")
    assert shown.isprintable()
