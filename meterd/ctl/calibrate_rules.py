"""What a comparison with a reference meter says of a clamp, and what a request looks like.

Nothing here opens, asks or waits. All sums are exact: mW x ms = uJ.

>>> readings = [(0, 980_000), (30_000, 980_000), (60_000, 980_000)]
>>> found = compare("clamp.1.scale", "1", readings, Reference("W", Fraction(1000)))
>>> found.new, found.shown(found.error_before), found.shown(found.error_after)
('1.020408', '-2.00', '0.00')
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.errors import ConfigError, EncodingError, UsageError
from meterd.ledger.parameters import COMMAND_BYTES_MAX, Command, decode_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FACTOR_MAX = Fraction(20, 100)  # a clamp of the right ratio is some per cent off; more is another's
SCALE_DECIMALS = 6  # a millionth: finer than any clamp, and short enough to be read out
READINGS_MIN = 3
SPREAD_MAX = Fraction(10, 100)  # between the least and the most: past it the load was not steady
UJ_PER_WH = 3_600_000_000
_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")
_CLAMP_KEY = re.compile(r"clamp\.([0-9]{1,2})\.name")


class Reference(NamedTuple):
    """What the reference meter says.

    Attributes:
        unit: `W`, a steady power, or `Wh`, the energy of just the time that was watched.
        value: In that unit; never 0.
    """

    unit: str
    value: Fraction


class Comparison(NamedTuple):
    """What a clamp says against what the reference says.

    Attributes:
        key: Of the scale, as a parameter.
        old: The scale in force.
        new: The scale with which the clamp would have said what the reference did.
        unit: `W` or `Wh`.
        measured: By the clamp, in that unit.
        reference: By the reference meter.
        readings: How many were looked at.
        elapsed_ms: From the first to the last of them.
        steady: Whether the load stayed about as it was.
    """

    key: str
    old: str
    new: str
    unit: str
    measured: Fraction
    reference: Fraction
    readings: int
    elapsed_ms: int
    steady: bool

    @property
    def error_before(self) -> Fraction:
        """Relative error of the clamp as it is."""
        return self.measured / self.reference - 1

    @property
    def error_after(self) -> Fraction:
        """Relative error that is left by rounding the new scale."""
        return self.measured * Fraction(self.new) / Fraction(self.old) / self.reference - 1

    @staticmethod
    def shown(error: Fraction) -> str:
        """Return a relative error in per cent with two decimals."""
        return f"{_rounded(error * 100, 2):+.2f}" if _rounded(error * 100, 2) else "0.00"


def _rounded(value: Fraction, decimals: int) -> Decimal:
    """Return `value` rounded half away from zero."""
    scaled = abs(value) * 10**decimals
    whole = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    return Decimal(whole if value >= 0 else -whole).scaleb(-decimals)


def canonical(value: Decimal) -> str:
    """Return a number as parameter records spell it: no exponent, no trailing zero."""
    return format(value.normalize(), "f")


def number_of(text: str, what: str) -> Fraction:
    """Return the number that was typed, exactly.

    Raises:
        UsageError: It is none.
    """
    if not _NUMBER.fullmatch(text):
        raise UsageError(f"{what}: expected a number such as 1502.5, got {text[:40]!r}")
    return Fraction(text)


def compare(
    key: str,
    old: str,
    readings: Sequence[tuple[int, int]],
    reference: Reference,
    *,
    force: bool = False,
) -> Comparison:
    """Return what readings of one clamp say against a reference.

    Args:
        key: Of the clamp's scale, as a parameter.
        old: The scale in force.
        readings: (boot clock ms, mW), ascending.
        reference: What the reference meter said of the same time.
        force: Accept a factor past `FACTOR_MAX`.

    Raises:
        ConfigError: No scale can come of it, or an absurd one.
    """
    elapsed_ms = readings[-1][0] - readings[0][0] if readings else 0
    if len(readings) < READINGS_MIN or not elapsed_ms:
        raise ConfigError(
            f"{len(readings)} readings came, {READINGS_MIN} are needed",
            hint="watch for longer: --seconds N; `meterctl watch` shows whether lines come",
        )
    pairs = list(pairwise(readings))
    halves = sum((p0 + p1) * (t1 - t0) for (t0, p0), (t1, p1) in pairs)
    uj = Fraction(halves, 2)
    measured = uj / UJ_PER_WH if reference.unit == "Wh" else uj / elapsed_ms / 1000
    powers = [power for _, power in readings]
    name = key.removesuffix(".scale")
    if not measured:
        raise ConfigError(
            f"{name} shows no power at all", hint="switch a load on, and see that the clamp is shut"
        )
    if (measured < 0) != (reference.value < 0):
        raise ConfigError(
            f"{name} shows power the other way than the reference",
            hint=f"first turn it round: meterctl calibrate --set {name}.reversed=true (or false)",
        )
    factor = reference.value / measured
    if abs(factor - 1) > FACTOR_MAX and not force:
        raise ConfigError(
            f"the reference says {float(factor):.3f} times what {name} does: past "
            f"{float(FACTOR_MAX):.0%} it is rather another clamp, or another load",
            hint="see that both measure the same wire; the clamp's own ratio takes --force",
        )
    return Comparison(
        key,
        old,
        canonical(_rounded(Fraction(old) * factor, SCALE_DECIMALS)),
        reference.unit,
        measured,
        reference.value,
        len(readings),
        elapsed_ms,
        steady=max(powers) - min(powers) <= SPREAD_MAX * abs(Fraction(sum(powers), len(powers))),
    )


def clamp_number(settings: Mapping[str, str], name: str) -> int:
    """Return the number of the clamp called `name`, as parameters have it.

    Raises:
        UsageError: There is none.
    """
    names = {}
    for key, value in settings.items():
        if match := _CLAMP_KEY.fullmatch(key):
            names[value] = int(match[1])
    if name not in names:
        raise UsageError(
            f"there is no clamp {name[:40]!r}", hint=f"there are: {', '.join(sorted(names))}"
        )
    return names[name]


def changes_of(
    settings: Mapping[str, str], wanted: Mapping[str, str]
) -> tuple[tuple[str, str, str], ...]:
    """Return (key, old, new) of what `wanted` changes in `settings`, ascending.

    Raises:
        UsageError: Nothing would change.
    """
    changes = tuple(
        (key, settings.get(key, ""), wanted[key])
        for key in sorted(wanted)
        if settings.get(key, "") != wanted[key]
    )
    if not changes:
        raise UsageError("nothing would change: the parameters are so already")
    return changes


def request(told: Mapping[str, Any], changes: tuple[tuple[str, str, str], ...]) -> Command:
    """Return the command, not signed yet, that makes these changes to what the daemon shows."""
    return Command(
        bytes.fromhex(told["genesis"]),
        str(told["meter"]),
        int(told["sequence"]) + 1,
        bytes.fromhex(told["record"]),
        changes,
    )


def file_of(kind: str, command: Command, data: bytes) -> str:
    """Return a request or a signed command as a file: what it says to people, and its bytes.

    What is said beside the bytes counts for nothing: who reads the file shows what is in them.
    """
    said = {
        "meterd": kind,
        "meter": command.meter,
        "sequence": command.sequence,
        "changes": [list(change) for change in command.changes],
        "text": text_of(data),
    }
    return json.dumps(said, indent=1) + "\n"


def text_of(data: bytes) -> str:
    """Return bytes as they are typed on one line: base64 with `-` and `_` (RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(data).decode()


def bytes_of(text: str, what: str) -> bytes:
    """Return the bytes that a line, or a file of `file_of`, spells.

    Raises:
        UsageError: It does not.
    """
    text = text.strip()
    if text.startswith("{"):
        try:
            text = str(json.loads(text)["text"])
        except (ValueError, KeyError, RecursionError) as error:
            raise UsageError(f"{what} is no request and no command of meterd") from error
    try:
        return base64.b64decode(text[: 2 * COMMAND_BYTES_MAX], altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise UsageError(
            f"{what} is no request and no command of meterd: expected base64",
            hint="take it over whole, on one line",
        ) from error


def request_of(data: bytes, what: str) -> Command:
    """Return the request that bytes spell.

    Raises:
        UsageError: They spell none.
    """
    try:
        return decode_command(data)
    except EncodingError as error:
        raise UsageError(
            f"{what} is no request: {error}", hint="`meterctl calibrate … --prepare FILE` makes one"
        ) from error
