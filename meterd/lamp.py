"""What the status LED says, in flashes that a person can count.

A pattern is words between commas: `2 short`, `long`, `pause`, `long pause`; or one word, `on` or
`off`. It is repeated for ever, so one that is to be counted ends with a pause.

>>> compiled("2 short, pause")
(Step(on_ms=150, off_ms=250), Step(on_ms=150, off_ms=1250))
>>> lit(compiled("2 short, pause"), 160)
(False, 240)
>>> worst({"clock", "case"})
'case'
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

SHORT_MS = 150  # the eye tells it from a long one, and counts six of them
LONG_MS = 600
GAP_MS = 250  # dark between two flashes
PAUSE_MS = 1000  # dark besides, where the count ends
LONG_PAUSE_MS = 3000
STEADY_MS = 1000  # a step of a light that does not change
COUNT_MAX = 6  # more nobody counts

_FLASHES = re.compile(r"(?:([0-9]+) )?(short|long)")
_LENGTHS_MS = {"short": SHORT_MS, "long": LONG_MS}
_PAUSES_MS = {"pause": PAUSE_MS, "long pause": LONG_PAUSE_MS}
_STEADY = {"on": (STEADY_MS, 0), "off": (0, STEADY_MS)}

PATTERNS = {
    "stopped": "3 long, pause",
    "storage": "2 long, pause",
    "case": "long, short, pause",
    "board": "2 short, pause",
    "power": "5 short, pause",
    "clock": "3 short, pause",
    "neighbours": "4 short, pause",
    "starting": "short",
    "well": "short, long pause",
}
"""What is shown, worst first. A dark LED is a meter without power, or a daemon that has ended.

- stopped: nothing is sealed any more, and nothing will be before somebody acts
- storage: the card is full, or nearly
- case: it is open, or was and nobody has acknowledged that; or a magnet is there; or a pin cannot
  be watched or set; or somebody has edited settings that a signed command alone changes
- board: it is silent, or cannot be read
- power: the supply's voltage is too low
- clock: it is not synchronised
- neighbours: what is due is not sealed before they answer, or they are out of reach
- starting: the port is not open yet
- well: none of these
"""

ALARMS = {
    "storage_full": "storage",
    "storage_low": "storage",
    "case": "case",
    "case_switch_stuck": "case",
    "magnet": "case",
    "magnet_stuck": "case",
    "button_stuck": "case",
    "relay": "case",
    "gpio": "case",
    "parameters": "case",
    "port": "board",
    "garbage": "board",
    "layout": "board",
    "frozen": "board",
    "adaptor_out": "board",
    "cadence": "board",
    "undervoltage": "power",
    "clock": "clock",
    "neighbours": "neighbours",
    "no_broker": "neighbours",
    "certificate_expired": "neighbours",
}
"""Which of `PATTERNS` an alarm is. `software_changed` has none: the daemon ends, and it is dark."""


class Step(NamedTuple):
    """Light, then dark."""

    on_ms: int
    off_ms: int


def compiled(pattern: str) -> tuple[Step, ...]:
    """Return the steps of a pattern.

    Raises:
        ValueError: It is not one; the message says which word.
    """
    if pattern in _STEADY:
        return (Step(*_STEADY[pattern]),)
    steps: list[Step] = []
    for word in pattern.split(", "):
        if word in _PAUSES_MS:
            before = steps.pop() if steps else Step(0, 0)
            steps.append(before._replace(off_ms=before.off_ms + _PAUSES_MS[word]))
            continue
        flashes = _FLASHES.fullmatch(word)
        count = int(flashes[1] or 1) if flashes else 0
        if flashes is None or not 1 <= count <= COUNT_MAX:
            raise ValueError(
                f"expected 1 to {COUNT_MAX} short or long, pause, or long pause, got {word!r}"
            )
        steps += [Step(_LENGTHS_MS[flashes[2]], GAP_MS)] * count
    return tuple(steps)


def lit(steps: Sequence[Step], elapsed_ms: int) -> tuple[bool, int]:
    """Return whether the LED is lit so long after the pattern began, and for how many ms on."""
    left_ms = elapsed_ms % sum(map(sum, steps))
    for on_ms, off_ms in steps:
        if left_ms < on_ms:
            return True, on_ms - left_ms
        left_ms -= on_ms
        if left_ms < off_ms:
            return False, off_ms - left_ms
        left_ms -= off_ms
    raise AssertionError  # what is left after a division is less than the divisor


def worst(troubles: Collection[str]) -> str:
    """Return the one of `PATTERNS` to show: the worst of `troubles`, `well` where there is none."""
    return next((state for state in PATTERNS if state in troubles), "well")
