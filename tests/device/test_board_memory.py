from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.device.board_memory import hand_over, read_board
from meterd.device.secret import BOARD_BYTES_MAX
from meterd.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(1, 33))


def memory(folder: Path, **devices: bytes) -> Path:
    for name, data in devices.items():
        (folder / name).mkdir()
        (folder / name / "nvmem").write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("devices", "held"),
    [
        pytest.param({}, b"", id="no such memory"),
        pytest.param({"nvmem_priv0": bytes(32)}, b"", id="not programmed"),
        pytest.param({"nvmem_cust0": KEY, "nvmem_otp0": KEY * 8}, b"", id="rows of another use"),
        pytest.param({"nvmem_priv0": KEY}, KEY, id="a Pi 4's"),
        pytest.param({"nvmem_priv0": KEY + bytes(32)}, KEY + bytes(32), id="a Pi 5's"),
        pytest.param({"nvmem_priv0": bytes(31) + b"\1"}, bytes(31) + b"\1", id="one bit"),
    ],
)
def test_v6_what_the_board_holds_is_read(
    tmp_path: Path, devices: dict[str, bytes], held: bytes
) -> None:
    assert read_board(memory(tmp_path, **devices)) == held


def test_memory_that_is_no_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="more than 64 bytes"):
        read_board(memory(tmp_path, nvmem_priv0=bytes(BOARD_BYTES_MAX + 1)))
    (tmp_path / "nvmem_priv0" / "nvmem").unlink()
    (tmp_path / "nvmem_priv0" / "nvmem").mkdir()
    with pytest.raises(StorageError, match="cannot read"):
        read_board(tmp_path)


def test_it_is_handed_over_to_nobody_else_and_taken_back(tmp_path: Path) -> None:
    board = tmp_path / "credstore" / "meterd.board"
    hand_over(b"", board)
    assert not board.parent.exists()
    for data in (KEY, KEY[::-1]):
        hand_over(data, board)
        assert board.read_bytes() == data
        assert board.stat().st_mode & 0o777 == 0o400
        assert board.parent.stat().st_mode & 0o777 == 0o700
    hand_over(b"", board)
    assert list(board.parent.iterdir()) == []
