"""What each value in the settings must be, and how a mistake in it is told.

A rule takes whatever TOML can hold and returns the value in the type that the settings have it in.

>>> TABLES["meter"]["fuse_a"](0)
Traceback (most recent call last):
    ...
meterd.config_rules.WrongError: ('expected a number from 1 to 1000, got 0', '')
>>> TABLES["clamp"]["scale"](Decimal("1.50"))
Decimal('1.50')
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from meterd.metering.board import LAYOUTS, channels, known_field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Rule = Callable[[object], Any]

DAY_S = 86_400
OFFSET_YEARS = range(2020, 2038)  # what rules there are for a time that a new meter can see
INTERVAL_S_MIN = 60
INTERVALS_S_COMMON = (60, 300, 900, 1800, 3600, DAY_S)  # what hints offer
FIELDS_MAX = 64  # the largest board sends 16
DECIMALS_MAX = 9  # no calibration is finer, and 1e-999999999 has a gigabyte of zeros
SOCKET_BYTES_MAX = 107  # sockaddr_un(7): 108 with its end
SHOWN_LETTERS_MAX = 40  # of a wrong value, in a message
SHOWN_NUMBER_MAX = 10**18  # the digits of a larger one tell nobody anything, and str() may refuse
GUESSED_LETTERS_MAX = 64  # of a wrong word; no key is as long, and difflib takes the square of it

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")


class WrongError(Exception):
    """A value breaks its rule; the arguments are the problem and the hint of a mistake."""

    def __init__(self, problem: str, hint: str = "") -> None:
        """Keep both: clauses in lower case, the hint may be empty."""
        super().__init__(problem, hint)


def shown(value: object) -> str:
    """Return `value` as a message can show it: one short line, whatever came."""
    match value:
        case bool():
            return str(value).lower()
        case int() if abs(value) > SHOWN_NUMBER_MAX:
            return "a huge number"
        case int() | Decimal():
            text = str(value)
        case str():
            text = repr(value)
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"
    return text if len(text) <= SHOWN_LETTERS_MAX else f"{text[: SHOWN_LETTERS_MAX - 1]}…"


def key_shown(part: str | int) -> str:
    """Return one part of a dotted key; tables of a list count from 1 there."""
    if isinstance(part, int):
        return str(part + 1)
    return part if _BARE_KEY.fullmatch(part) else shown(part)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint at the one of `known` that may be meant, or no hint."""
    from difflib import get_close_matches

    near = get_close_matches(word[:GUESSED_LETTERS_MAX], sorted(known), n=1)
    return f"did you mean `{near[0]}`?" if near else ""


def elsewhere(key: str, table: str) -> str:
    """Return a hint where `key`, which `table` does not have, may belong, or no hint."""
    for other, rules in TABLES.items():
        if key in rules:
            return f"it belongs in [{other}]"
    return nearest(key, TABLES[table])


def offsets_s(zone: str) -> list[int]:
    """Return the offsets from UTC that `zone` has had lately or will have, in seconds."""
    if zone == "UTC":
        return []
    from datetime import datetime
    from zoneinfo import ZoneInfo

    info = ZoneInfo(zone)
    months = [(year, month) for year in OFFSET_YEARS for month in range(1, 13)]
    offsets = [datetime(year, month, 1, tzinfo=info).utcoffset() for year, month in months]
    return sorted({int(offset.total_seconds()) for offset in offsets if offset is not None})


BROKERS_MAX = 8  # each is a connection and a copy of every message
_BROKER = re.compile(r"mqtts?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


def _text(expected: str, fits: Callable[[str], object]) -> Rule:
    def rule(value: object) -> str:
        if not isinstance(value, str) or not fits(value):
            raise WrongError(f"expected {expected}, got {shown(value)}")
        return value

    return rule


def _one_of(*choices: str) -> Rule:
    def rule(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            expected = ", ".join(choices[:-1]) + " or " + choices[-1]
            hint = nearest(value, choices) if isinstance(value, str) else ""
            raise WrongError(f"expected {expected}, got {shown(value)}", hint)
        return value

    return rule


def _whole(least: int, most: int) -> Rule:
    def rule(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise WrongError(f"expected a whole number from {least} to {most}, got {shown(value)}")
        return value

    return rule


def _number(least: int, most: int, *, above: bool = False) -> Rule:
    """From `least` (if `above`: from more than that) to `most`."""
    span = f"above {least}, at most {most}" if above else f"from {least} to {most}"

    def rule(value: object) -> Decimal:
        number = Decimal("NaN") if isinstance(value, bool) else value
        if isinstance(number, int):
            number = Decimal(number)
        if (
            not isinstance(number, Decimal)
            or not number.is_finite()
            or not least <= number <= most
            or (above and number == least)
        ):
            raise WrongError(f"expected a number {span}, got {shown(value)}")
        if number != round(number, DECIMALS_MAX):
            raise WrongError(f"expected at most {DECIMALS_MAX} decimals, got {shown(value)}")
        return number + 0  # -0.0 becomes 0

    return rule


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise WrongError(f"expected true or false, got {shown(value)}")
    return value


def _interval(value: object) -> int:
    seconds: int = _whole(INTERVAL_S_MIN, DAY_S)(value)
    if DAY_S % seconds:
        common = min(INTERVALS_S_COMMON, key=lambda choice: abs(choice - seconds))
        raise WrongError(
            f"expected seconds that divide a day ({DAY_S}), got {seconds}", f"{common} does"
        )
    return seconds


def _zone(value: object) -> str:
    name: str = _zone_text(value)
    if name != "UTC":
        import zoneinfo

        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            known = zoneinfo.available_timezones()
            hint = nearest(name, known) if known else "install the package tzdata"
            raise WrongError(f"no time zone {shown(name)} is known here", hint) from error
    return name


def _brokers(value: object) -> tuple[str, ...]:
    urls: list[object] = value if isinstance(value, list) else []
    if len(urls) > BROKERS_MAX or not isinstance(value, list):
        raise WrongError(f"expected a list of at most {BROKERS_MAX} brokers, got {shown(value)}")
    for url in urls:
        if not isinstance(url, str) or not _BROKER.fullmatch(url):
            raise WrongError(
                f"expected a broker such as mqtts://broker.example:8883, got {shown(url)}"
            )
    return tuple(str(url) for url in urls)


def _fields(value: object) -> tuple[str, ...]:
    names: list[object] = value if isinstance(value, list) else []
    if not 0 < len(names) <= FIELDS_MAX:
        raise WrongError(
            f"expected a list of 1 to {FIELDS_MAX} field names, got {shown(value)}",
            'as in ["node", "RP1", "Irms1", "Vrms"]',
        )
    fields: list[str] = []
    for name in names:
        if not isinstance(name, str) or not known_field(name):
            raise WrongError(
                f"there is no field {shown(name)}",
                "known are node, Vrms, F, and with a number RP, S, Irms, Vrms, EP, PF, T, F, Q",
            )
        if name in fields:
            raise WrongError(f"the field {name} is named twice")
        fields.append(name)
    if not channels(tuple(fields)):
        raise WrongError("no field measures power or current", "name one of RP1, EP1 or Irms1")
    return tuple(fields)


_name = _text("1 to 32 of a-z, 0-9 and -", re.compile(r"[a-z0-9-]{1,32}").fullmatch)
_zone_text = _text(
    "a time zone such as Europe/Paris",
    re.compile(r"(?=.{1,64}$)[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*").fullmatch,
)

_pin = _whole(0, 53)  # BCM: a Pi's header has 0 to 27, a compute module all
_level = _one_of("high", "low")
_path = _text("a path of at most 255 characters", re.compile(r"[^\x00-\x1f]{0,255}").fullmatch)

TABLES: dict[str, dict[str, Rule]] = {
    "meter": {
        "name": _name,
        "interval_s": _interval,
        "nominal_v": _number(50, 500),
        "power_factor": _number(0, 1, above=True),
        "fuse_a": _number(1, 1000),
        "zone": _zone,
        "currency": _text("three capitals such as EUR", re.compile(r"[A-Z]{3}").fullmatch),
    },
    "board": {
        "port": _text("the path of a serial port", re.compile(r"[^\x00-\x1f]{1,255}").fullmatch),
        "layout": _one_of(*LAYOUTS, "custom"),
        "fields": _fields,
        "polling_ms": _whole(50, 600_000),
        "current_unit": _one_of("mA", "A"),
        "vest": _number(0, 1_000_000, above=True),
        "reset_gpio": _pin,
        "silence_s": _whole(0, DAY_S),
    },
    "clamp": {
        "name": _name,
        "role": _one_of("mains", "circuit", "unused"),
        "reversed": _yes_or_no,
        "scale": _number(0, 1000, above=True),
        "zero_below_w": _number(0, 100_000),
    },
    "clock": {"trust": _one_of("kernel", "always")},
    "log": {
        "commit_s": _whole(1, 3600),
        "reserve_mb": _whole(0, 1_000_000),
        "retain_days": _whole(0, 36_500),
    },
    "gpio": {
        "case_switch": _pin,
        "case_open": _level,
        "magnet": _pin,
        "led": _pin,
        "button": _pin,
        "relay": _pin,
        "relay_closed": _level,
        "debounce_ms": _whole(5, 500),  # an opening is told of within a second
    },
    "network": {
        "name": _name,
        "brokers": _brokers,
        "ca": _path,
        "certificate": _path,
        "key": _path,
        "tick_ms": _whole(0, 60_000),
        "digest_ms": _whole(100, 3_600_000),
        "line": _path,
        "store": _path,
    },
    "anchor": {
        "url": _text(
            "a URL such as https://tsa.example/tsr",
            re.compile(
                r"(https?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
                r"(?:/[A-Za-z0-9._~/%?=&-]{0,200})?)?"
            ).fullmatch,
        ),
        "ca": _path,
    },
    "control": {
        "socket": _text(
            f"an absolute path of at most {SOCKET_BYTES_MAX} bytes",
            lambda path: (
                not path
                or (path[0] == "/" and "\0" not in path and len(path.encode()) <= SOCKET_BYTES_MAX)
            ),
        ),
    },
}
"""The rule of every key, by table and key; nothing else may be set. `clamp` is a list of tables."""

REQUIRED = {"meter": ("name",), "board": ("port",), "clamp": ("name", "role")}
"""Keys that a table cannot be without, and for which there is no sensible default."""
