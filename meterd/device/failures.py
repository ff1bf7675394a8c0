r"""Keeps what ended a process, or kept it from starting, until the account can tell of it.

A start that fails cannot write the account: it may not have it, not be allowed to, or find it
damaged. So the reason is kept in a file beside it, and the next start that meters makes an event of
it. It is a note and nothing rests on it: a few reasons, each once however often it came, so that a
meter that is restarted every two seconds against an absent port writes the card once; not synced,
and given up where the card does not take it.

>>> parse("1795305600 69 no such port: /dev/ttyAMA0\n? what is this\n")
[Failure(at_s=1795305600, code=69, reason='no such port: /dev/ttyAMA0')]
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from meterd.device.card import AccountBusyError, Operation
from meterd.errors import MeterdError, leaves
from meterd.software import SoftwareChangedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAILURES_FILE = "failures"
FAILURES_MAX = 8  # different ones since the last good start; those that follow are not kept
REASON_LETTERS_MAX = 200
FILE_BYTES_MAX = 8192
_KEPT_ELSEWHERE = (AccountBusyError, SoftwareChangedError)
"""Another process has the account, and is well; or the account has an event of it already."""


class Failure(NamedTuple):
    """Why a process ended.

    Attributes:
        at_s: When that was first so, by the wall clock, seconds since 1970.
        code: Its exit status.
        reason: What it said, on one line.
    """

    at_s: int
    code: int
    reason: str


def spell(failures: list[Failure]) -> str:
    """Return failures as they are kept, one on each line."""
    return "".join(f"{one.at_s} {one.code} {one.reason}\n" for one in failures)


def parse(text: str) -> list[Failure]:
    """Return the failures of a file; what is none, or too much, is left out."""
    failures = []
    for line in text.splitlines():
        at_s, _, rest = line.partition(" ")
        code, _, reason = rest.partition(" ")
        if at_s.isdecimal() and code.isdecimal() and reason and at_s.isascii() and code.isascii():
            failures.append(Failure(int(at_s[:12]), int(code[:3]), reason[:REASON_LETTERS_MAX]))
    return failures[:FAILURES_MAX]


def read_failures(state: Path) -> list[Failure]:
    """Return what is kept beside the account in `state`."""
    try:
        with (state / FAILURES_FILE).open("rb") as file:
            return parse(file.read(FILE_BYTES_MAX).decode("utf-8", "replace"))
    except OSError:
        return []


def note_failure(state: Path, error: MeterdError, at_s: int) -> None:
    """Keep why this process ends, unless that is kept already, there is no room or no account."""
    reason = " ".join(str(error).split())[:REASON_LETTERS_MAX]
    kept = read_failures(state)
    if not reason or len(kept) >= FAILURES_MAX or any(one.reason == reason for one in kept):
        return
    path = state / FAILURES_FILE
    fresh = path.with_name(f"{FAILURES_FILE}.new")
    with suppress(OSError):  # a card that fails is why it ends: that is told all the same
        try:
            fresh.write_text(spell([*kept, Failure(max(at_s, 0), error.exit_code, reason)]))
            fresh.replace(path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise


@contextmanager
def noted(state: Path) -> Iterator[None]:
    """Note what ends the block, and let it."""
    try:
        yield
    except (MeterdError, BaseExceptionGroup) as error:
        for leaf in leaves(error):
            if isinstance(leaf, MeterdError) and not isinstance(leaf, _KEPT_ELSEWHERE):
                note_failure(state, leaf, int(time.time()))
        raise


class Failures:
    """What was kept, on its way into the account."""

    def __init__(self, state: Path) -> None:
        """Read it."""
        self._path = state / FAILURES_FILE
        self.kept = read_failures(state)
        self._told = False

    def told(self) -> None:
        """Note that the account has an event of each, not durable yet."""
        self._told = True

    def take_operations(self) -> list[Operation]:
        """Return what takes the file away; to be performed behind all events so far."""
        if not self._told or not self.kept:
            return []
        self.kept = []
        return [Operation("unlink", self._path)]
