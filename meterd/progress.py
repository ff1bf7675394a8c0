"""Progress on stderr, where somebody looks on; silent in a pipe or a log."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def progress_bar(what: str, of: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with how much of `of` is done."""
    if of <= 0 or not sys.stderr.isatty():
        yield _nothing
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield _nothing
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=of)
        yield lambda done: progress.update(task, completed=done)


def _nothing(_done: int) -> None:
    return None
