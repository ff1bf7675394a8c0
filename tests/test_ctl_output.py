from __future__ import annotations

import io
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from meterd.ctl.output import put_out, refuse_terminal
from meterd.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bytes_come_to_a_file_or_a_pipe_and_to_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_terminal(None, "a receipt", "meterctl receipt -o FILE")
    monkeypatch.setattr(sys, "stdout", Terminal())
    refuse_terminal(tmp_path / "a", "a receipt", "meterctl receipt -o FILE")
    with pytest.raises(UsageError, match="a receipt is bytes, and stdout is a term") as refused:
        refuse_terminal(None, "a receipt", "meterctl receipt -o FILE")
    assert refused.value.hint == "meterctl receipt -o FILE"


@pytest.mark.parametrize(
    ("data", "written"),
    [
        pytest.param(b"\xff\0\r\n", b"\xff\0\r\n", id="bytes"),
        pytest.param("für jo\n", b"f\xc3\xbcr jo\n", id="text"),
    ],
)
def test_what_is_made_is_written_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | str, written: bytes
) -> None:
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="ascii"))
    print("before it")
    put_out(data, None)
    print("after it")
    sys.stdout.flush()
    assert pipe.getvalue() == b"before it\n" + written + b"after it\n"
    put_out(data, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == written
    assert pipe.getvalue().endswith(b"after it\n")


def test_a_file_of_an_earlier_run_stays(tmp_path: Path) -> None:
    put_out("first", tmp_path / "a")
    with pytest.raises(ConfigError, match="a is there already") as refused:
        put_out("second", tmp_path / "a")
    assert refused.value.hint == "name another file, or move that one away"
    assert (tmp_path / "a").read_text() == "first"


def test_a_secret_is_for_its_owner(tmp_path: Path) -> None:
    put_out("secret", tmp_path / "a", mode=0o600)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
