"""A house that is metered at many times its speed, for whole programs in trouble."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.daemon_kit import make_house

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.device.control_client import ControlClient
    from tests.daemon_kit import House, Program

SPEED = 3000  # a line every 5 ms, a block every 0.3 s, a day in 29 s
POLLING_MS = 15_000
INTERVAL_S = 900
COMMIT_S = 150
EVENING = ("--start", "2026-11-02T18:00:00")  # no sun: what is drawn is counted as import
BOARD = (*EVENING, "--speed", str(SPEED), "--polling-ms", str(POLLING_MS), "--wait")


def make_fast_house(folder: Path, *, state: Path | None = None) -> House:
    return make_house(
        folder, interval_s=INTERVAL_S, polling_ms=POLLING_MS, commit_s=COMMIT_S, state=state
    )


def import_uj(client: ControlClient) -> int:
    return int(client.call("Registers")["registers"]["1-0:1.8.0"]["uj"])


def only_error(meter: Program) -> tuple[str, str]:
    """Return the one error that the program told, and its hint; no traceback."""
    assert "Traceback" not in meter.said
    errors = [said for said in meter.lines if said.startswith("meterd: error: ")]
    hints = [said for said in meter.lines if said.startswith("meterd: hint: ")]
    assert len(errors) == len(hints) == 1, meter.said
    assert meter.lines[-2:] == [*errors, *hints], "something was said after the error"
    return errors[0].removeprefix("meterd: error: "), hints[0].removeprefix("meterd: hint: ")


def fill(path: Path, *, leave_bytes: int) -> None:
    """Grow a file until so many bytes are left on its file system."""
    with path.open("ab", buffering=0) as file:
        room = os.statvfs(path)
        free_bytes = room.f_bavail * room.f_frsize
        with suppress(OSError):  # all of it is asked for
            file.write(bytes(max(0, free_bytes - leave_bytes)))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
