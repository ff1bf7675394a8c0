"""Progress on stderr, where somebody looks on; silent in a pipe or a log."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REDRAW_S = 0.1  # faster than anybody reads, slow enough to cost nothing
BAR_LETTERS_MAX = 40
FORECAST_S_MIN = 1.0  # before, a forecast jumps about
_CLEAR = "\r\x1b[K"


@contextmanager
def progress_bar(what: str, of: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with how much of `of` is done."""
    with progress_bars() as tell:
        yield lambda done: tell(what, done, of)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function to call with what is being done, how much, and of how much."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield _nothing
        return
    bar = _Bar()
    try:
        yield bar.tell
    finally:
        bar.clear()


def _nothing(_what: str, _done: int, _of: int) -> None:
    return None


class _Bar:
    """One line that is drawn over; gone when all is done."""

    def __init__(self) -> None:
        self._what = ""
        self._began_s = self._drawn_s = 0.0

    def tell(self, what: str, done: int, of: int) -> None:
        now_s = time.monotonic()
        if what != self._what:
            self._what, self._began_s, self._drawn_s = what, now_s, 0.0
        if of <= 0 or now_s - self._drawn_s < REDRAW_S:
            return
        self._drawn_s = now_s
        columns = shutil.get_terminal_size().columns
        sys.stderr.write(_CLEAR + drawn(what, done, of, now_s - self._began_s, columns))
        sys.stderr.flush()

    def clear(self) -> None:
        if self._what:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()


def drawn(what: str, done: int, of: int, elapsed_s: float, columns: int) -> str:
    """Return the line of a bar, shorter than `columns`.

    >>> drawn("seals", 3, 12, 0.5, 40)
    'seals [####------------] 25 %'
    >>> drawn("seals", 3, 12, 2.0, 40)
    'seals [####------------] 25 %, 6 s left'
    """
    done = min(max(done, 0), of)
    letters = max(0, min(BAR_LETTERS_MAX, columns - len(what) - 19))
    full = letters * done // of
    line = f"{what} [{'#' * full}{'-' * (letters - full)}] {100 * done // of} %"
    if done and elapsed_s >= FORECAST_S_MIN:
        line += f", {elapsed_s * (of - done) / done:.0f} s left"
    return line[: columns - 1]
