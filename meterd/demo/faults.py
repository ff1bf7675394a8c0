"""Trouble by script: `kill:house-2@10,start:house-2@16`, or a file of such lines.

>>> [str(fault) for fault in parse_faults("broker:@35,kill:house-2@10", {"house-2"})]
['kill:house-2@10', 'broker:@35']
>>> try:
...     parse_faults("kil:house-2@10", {"house-2"})
... except UsageError as error:
...     print(error)
--faults: kil:house-2@10: expected kill, start, cut, join, forge or broker, got 'kil'
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meterd.demo.street import DISTRIBUTOR, Street
from meterd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

KINDS: dict[str, tuple[Callable[[Street, str], str], str]] = {
    "kill": (Street.kill, "its two processes die at once, as in a power cut"),
    "start": (Street.revive, "they are started again"),
    "cut": (Street.cut, "its peer process loses the broker"),
    "join": (Street.join, "it can be reached again"),
    "forge": (Street.forge, "a thief of its seal publishes a second block of one height"),
    "broker": (Street.restart_broker, "the broker is killed and started again"),
}
"""What each does to the street and to a node's name, and the same in words."""

FILE_BYTES_MAX = 65_536
HINT = "such as --faults kill:house-2@10,start:house-2@16,broker:@35 (seconds), or a file of them"
_NO_NODE = ("broker",)
_HOUSES_ONLY = ("forge",)


class Fault(NamedTuple):
    """One piece of trouble.

    Attributes:
        at_s: Seconds after the street was up.
        kind: One of `KINDS`.
        node: Whose; empty where it is nobody's.
    """

    at_s: float
    kind: str
    node: str

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.kind}:{self.node}@{self.at_s:g}"

    def play(self, street: Street) -> str:
        """Do it; return what was done, for the screen.

        Raises:
            NotYetError: It cannot be done at this moment.
        """
        return KINDS[self.kind][0](street, self.node)


def parse_faults(text: str, nodes: Collection[str]) -> list[Fault]:
    """Return the faults that `text`, or the file that it names, spells, by time.

    Raises:
        UsageError: It spells something else; the message names the first mistake.
    """
    if "@" not in text:
        text = _read(text)
    words = [
        word.strip() for line in text.splitlines() for word in line.partition("#")[0].split(",")
    ]
    faults = [_parse(word, nodes) for word in words if word]
    if not faults:
        raise UsageError("--faults: there are none", hint=HINT)
    return sorted(faults, key=lambda fault: fault.at_s)


def _read(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode(errors="replace")
    except OSError as error:
        raise UsageError(
            f"--faults: {name!r} is no list of faults, and no file: {error.strerror}", hint=HINT
        ) from error


def _parse(word: str, nodes: Collection[str]) -> Fault:
    what, _, when = word.rpartition("@")
    kind, _, node = what.partition(":")

    def wrong(problem: str) -> UsageError:
        return UsageError(f"--faults: {word}: {problem}", hint=HINT)

    if kind not in KINDS:
        *most, last = KINDS
        raise wrong(f"expected {', '.join(most)} or {last}, got {kind!r}")
    try:
        at_s = float(when)
    except ValueError:
        at_s = -1.0
    if not 0 <= at_s < float("inf"):
        raise wrong(f"expected seconds after @, got {when!r}")
    if kind in _NO_NODE:
        if node:
            raise wrong(f"{kind} takes no name, got {node!r}")
    elif node not in nodes:
        raise wrong(f"expected one of {', '.join(sorted(nodes))}, got {node!r}")
    elif kind in _HOUSES_ONLY and node == DISTRIBUTOR:
        raise wrong(f"{node} meters nothing")
    return Fault(at_s, kind, node)
