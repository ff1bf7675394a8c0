"""Spreads work over processes that inherit their tasks when they begin: results alone are copied.

An audit's tasks hold every block of an account; to send them costs more than to judge them.
"""

from __future__ import annotations

import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Task = TypeVar("Task")
Result = TypeVar("Result")

_inherited: list[Any] = []  # in a worker alone: what to do, and the tasks


class Spread(Generic[Task, Result]):
    """Results of tasks in their order, made by processes that have begun by now."""

    def __init__(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        workers: int,
        at_once: int = 1,
    ) -> None:
        """Begin.

        Args:
            work: Done once for each task, in one of these processes.
            tasks: What to do.
            workers: How many processes.
            at_once: How many tasks a process takes at a time.
        """
        self._pool = ProcessPoolExecutor(
            workers, get_context("fork"), initializer=_inherit, initargs=(work, tasks)
        )
        # Ctrl-C reaches every process of the terminal; the one that waits for the others takes it.
        # Blocked here it stays blocked in them, from their first moment on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            numbers = range(len(tasks))
            self._results: Iterator[Result] = self._pool.map(_do, numbers, chunksize=at_once)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __iter__(self) -> Iterator[Result]:
        """Return itself."""
        return self

    def __next__(self) -> Result:
        """Return the next result as soon as it is there; the processes end behind the last."""
        try:
            return next(self._results)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        """Begin no more tasks, and wait for the processes to end."""
        self._pool.shutdown(cancel_futures=True)


def _inherit(work: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
    _inherited[:] = work, tasks


def _do(number: int) -> Any:  # noqa: ANN401 - what `work` returns
    work, tasks = _inherited
    return work(tasks[number])
