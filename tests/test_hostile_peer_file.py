"""What the peer process leaves for others to show: it has the network, and may be another's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from meterd.ctl.doctor_card import open_files
from meterd.ctl.doctor_meter import _bare
from meterd.ctl.node import read_shown
from meterd.peer import PEER_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    "lay",
    [
        pytest.param(os.mkfifo, id="a pipe that nobody writes into"),
        pytest.param(lambda path: path.mkdir(), id="a folder"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="a link to what has no end"),
        pytest.param(lambda path: path.write_text("[" * 100_000), id="a nesting past all measure"),
        pytest.param(lambda path: path.write_text("9" * 10_000), id="a number past all measure"),
    ],
)
@pytest.mark.timeout(10)
def test_nothing_is_shown_and_nobody_waits_where_there_is(
    tmp_path: Path, lay: Callable[[Path], None]
) -> None:
    lay(tmp_path / PEER_FILE)
    assert read_shown(tmp_path) is None


@pytest.mark.parametrize("url", ["mqtt://broker:99999", "mqtt://[::1", "mqtt://x:y", ""])
def test_a_brokers_address_that_is_none_is_shown_all_the_same(url: str) -> None:
    assert _bare(url)
    assert _bare("mqtts://broker.example") == "mqtts://broker.example:8883"


@pytest.mark.timeout(10)
def test_doctor_does_not_wait_for_a_pipe_among_the_segments(tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    os.mkfifo(tmp_path / "blocks" / "00000001.seg")
    assert open_files(tmp_path, 2**40) == 0
