"""Options that many commands have, and what is typed for an instant or a key.

>>> from datetime import UTC
>>> [instant(text, UTC) for text in ("2007-02-05", "2007-02-05T01:00:00+01:00", "1170633600")]
[1170633600, 1170633600, 1170633600]
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import tzinfo
    from typing import TypeVar

    _Item = TypeVar("_Item")

STATE_DEFAULT = "/var/lib/meterd"
CONTROL_SYSTEM = Path("/run/meterd/control")  # where the unit has it
LAST_ON_A_TERMINAL = 20  # what fits a screen with the prompt
_FOREVER_S = 2**62
_DATE_DIGITS = 8  # 20070205; more digits alone are Unix seconds


def add_action(
    actions: Any,  # noqa: ANN401 - argparse hides the type
    name: str,
    summary: str,
    epilog: str = "",
) -> argparse.ArgumentParser:
    """Return the parser of a command under a command, such as `list` of `meterctl order`."""
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, description=f"{name}: {summary}."
    )
    parser.epilog = epilog
    return parser


def add_state(parser: argparse.ArgumentParser) -> None:
    """Add `--state`, the folder of the account."""
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(os.environ.get("METERD_STATE") or STATE_DEFAULT),
        metavar="DIR",
        help=f"folder of the account (default: $METERD_STATE, else {STATE_DEFAULT})",
    )


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Add `--socket`, where the daemon answers."""
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="control socket of the daemon, where the settings name one (default: DIR/control,"
        f" or {CONTROL_SYSTEM} where DIR is {STATE_DEFAULT})",
    )


def socket_of(options: argparse.Namespace) -> Path:
    """Return the path of the control socket."""
    if options.socket:
        return Path(options.socket)
    state: Path = options.state
    by_hand = state / "control"
    if state == Path(STATE_DEFAULT) and (CONTROL_SYSTEM.exists() or not os.path.lexists(by_hand)):
        return CONTROL_SYSTEM  # where none answers, it is the unit's that is looked for
    return by_hand


def add_json(parser: argparse.ArgumentParser, what: str = "print JSON") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=what)


def add_span(parser: argparse.ArgumentParser) -> None:
    """Add `--from`, `--to`, `--last` and `--json` of the commands that list things."""
    parser.add_argument(
        "--from", dest="begin", metavar="TIME", help="not before: 2026-11-30, or an ISO 8601 time"
    )
    parser.add_argument("--to", dest="end", metavar="TIME", help="before this: likewise")
    parser.add_argument(
        "--last",
        type=whole,
        metavar="N",
        help=f"the last N only; 0 for all (default: all, on a terminal {LAST_ON_A_TERMINAL})",
    )
    add_json(parser, "print JSON, one object a line")


def whole(text: str) -> int:
    """Return the whole number, 0 or more, that `text` says; for argparse."""
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(_FOREVER_S)):
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text[:40]!r}")
    return int(text)


def positive(text: str) -> int:
    """Return the whole number above 0 that `text` says; for argparse."""
    number = whole(text)
    if not number:
        raise argparse.ArgumentTypeError("expected a whole number above 0, got '0'")
    return number


class Span(NamedTuple):
    """What is to be listed.

    Attributes:
        begin_s: Unix seconds, the first instant.
        end_s: Unix seconds, the first instant after.
        last: How many at most, counted from the end; 0 for all.
        chosen: Whether an instant was given: what bears none is left out then.
    """

    begin_s: int
    end_s: int
    last: int
    chosen: bool

    def holds(self, wall_ms: int | None) -> bool:
        """Return whether an instant is in the span."""
        if wall_ms is None:
            return not self.chosen
        return self.begin_s * 1000 <= wall_ms < self.end_s * 1000

    def cut(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the last `last` of `items`."""
        if not self.last:
            yield from items
            return
        from collections import deque

        yield from deque(items, maxlen=self.last)


def span_of(options: argparse.Namespace, zone: tzinfo) -> Span:
    """Return what the options of `add_span` ask for.

    Raises:
        UsageError: An instant cannot be read.
    """
    begin_s = instant(options.begin, zone) if options.begin else -_FOREVER_S
    end_s = instant(options.end, zone) if options.end else _FOREVER_S
    chosen = bool(options.begin or options.end)
    last = options.last
    if last is None:
        last = 0 if chosen or options.json or not sys.stdout.isatty() else LAST_ON_A_TERMINAL
    return Span(begin_s, end_s, last, chosen)


def instant(text: str, zone: tzinfo) -> int:
    """Return the Unix second that `text` names: a day's begin or a time, in `zone` unless it says.

    Raises:
        UsageError: It is neither.
    """
    try:
        if text.isascii() and text.isdecimal() and len(text) > _DATE_DIGITS:
            seconds = int(text)
            datetime.fromtimestamp(seconds, zone)
            return seconds
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        return int(moment.timestamp())
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"expected a date or an ISO 8601 time, got {text[:40]!r}",
            hint="as in 2026-11-30, 2026-11-30T18:00, 2026-11-30T17:00Z, or Unix seconds",
        ) from error


def hex_bytes(text: str, length: int, what: str) -> bytes:
    """Return the bytes that hex digits spell.

    Raises:
        UsageError: They are not so many, or no hex digits.
    """
    text = text.strip()
    digits = frozenset("0123456789abcdefABCDEF")
    if len(text) != 2 * length or not digits.issuperset(text):
        shown = text[:20] + ("…" if len(text) > 20 else "")  # noqa: PLR2004 - enough to tell
        raise UsageError(f"{what}: expected {2 * length} hex digits, got {shown!r}")
    return bytes.fromhex(text)
