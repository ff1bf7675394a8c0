from __future__ import annotations

import io
import sys
import time

import pytest

from meterd.progress import drawn, progress_bar, progress_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [1, 20, 80, 300])
@pytest.mark.parametrize("done", [-1, 0, 1, 999, 1000, 5000])
def test_a_bar_never_fills_the_line(columns: int, done: int) -> None:
    line = drawn("verifying samples", done, 1000, 90.0, columns)
    assert len(line) < columns


def test_nothing_is_drawn_where_nobody_looks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("replaying", 10) as advance:
        advance(5)
    assert stream.getvalue() == ""


def test_the_bar_is_gone_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bars() as tell:
        tell("seals", 1, 4)
        tell("samples", 2, 4)
    shown = stream.getvalue()
    assert "seals [" in shown
    assert "samples [" in shown
    assert shown.endswith("\r\x1b[K")


def test_it_is_drawn_no_more_often_than_anybody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    now_s = 100.0
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with progress_bars() as tell:
        for done in range(1000):
            tell("seals", done, 1000)
    assert stream.getvalue().count("seals") == 1


def test_of_nothing_there_is_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bars() as tell:
        tell("seals", 0, 0)
    assert "%" not in stream.getvalue()
