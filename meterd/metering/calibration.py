"""The fields of a line to a reading: exact, rounded once to milli-units, half away from zero.

>>> from decimal import Decimal
>>> rules = BoardRules(
...     layout="custom",
...     fields=(("node", "RP1"),),
...     clamps=(Clamp(name="mains", role="mains", scale=Decimal("1.0005")),),
...     polling_ms=5000,
... )
>>> calibration = Calibration(rules, ("node", "RP1"))
>>> calibration.reading([b"11", b"1.5"], b"11 1.5", at_ms=0).powers_mw
(1501,)
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil, floor, lcm

from meterd.errors import ConfigError
from meterd.metering.layout import (
    Fields,
    field_at,
    measures_apparent,
    power_name,
    used_clamps,
    voltage_at,
)
from meterd.metering.reading import BoardRules, Clamp, Reading

U32_MAX = 2**32 - 1  # currents, voltage and apparent power are logged in 32 bits, in milli-units
TEXTS_KEPT_MAX = 1024  # per field; a household repeats its values. Full: forgotten, begun anew
PLAUSIBLE = Fraction(8, 5)  # power past 1.6 x fuse x nominal is no reading

_DECIMALS = 4  # exact values count 10^-4 units; those of a text with more decimals are Fractions
_PLAIN_DECIMAL = re.compile(rb"-?[0-9]+(\.[0-9]+)?")
_make = tuple.__new__  # a Reading without the detour over its keywords


class DroppedError(Exception):
    """A line is no measurement: count it by its kind, read the next."""

    def __init__(self, kind: str) -> None:
        """Name the `kind` that it is counted as."""
        super().__init__(kind)
        self.kind = kind


def check_decimal(text: bytes) -> None:
    """Refuse what is no plain decimal number: `nan`, `1e308`, `+1`, `.5`, `5.`.

    Raises:
        DroppedError: It is none.
    """
    if _PLAIN_DECIMAL.fullmatch(text) is None:
        raise DroppedError("not_a_number")


class _Table(dict[bytes, "tuple[int, int | Fraction]"]):
    """A field's text to integer milli-units and to its exact value, each worked out once.

    This is where a line costs time, so `__missing__` holds all of it and calls nothing of ours.
    """

    __slots__ = ("_exact", "_least", "_milli", "_most", "_rules", "_sign")

    def __init__(
        self,
        milli: Fraction,
        *,
        most: Fraction = Fraction(U32_MAX),
        least: Fraction = Fraction(),
        sign: int = 0,
        exact: Fraction = Fraction(10**_DECIMALS),
    ) -> None:
        """Say what the field's unit is worth.

        Args:
            milli: Milli-units in one unit of the field, above 0.
            most: Milli-units; what is further from zero is out of range.
            least: Milli-units; what is nearer to zero counts as zero.
            sign: 1 or -1 times the field's own; 0 where below zero is out of range.
            exact: The exact value of one unit of the field, in the units of the owner.
        """
        super().__init__()
        self._milli = milli
        self._most = most
        self._least = least
        self._sign = sign
        self._exact = exact
        self._rules: dict[int, tuple[int, int, int, int, int | Fraction]] = {}

    def __missing__(self, text: bytes) -> tuple[int, int | Fraction]:
        if len(self) >= TEXTS_KEPT_MAX:
            self.clear()
        whole, point, part = text.partition(b".")
        digits = whole + part
        if not digits.isdigit() or not whole or (point and not part):
            return self._missing_negative(text)
        size = int(digits)
        rule = self._rules.get(len(part)) or self._rule(len(part))
        doubled, divisor, size_least, size_most, exact = rule
        if size > size_most:
            raise DroppedError("range")
        value = (size * doubled + divisor) // (2 * divisor) if size >= size_least else 0
        found = self[text] = (-value if self._sign < 0 else value), size * exact
        return found

    def _missing_negative(self, text: bytes) -> tuple[int, int | Fraction]:
        check_decimal(text)
        value, exact = self[text[1:]]
        if exact and not self._sign:  # -0.0 is zero
            raise DroppedError("range")
        found = self[text] = -value, -exact
        return found

    def _rule(self, decimals: int) -> tuple[int, int, int, int, int | Fraction]:
        """Return how digits with so many decimals are read; one for each count a line can hold."""
        milli = self._milli / 10**decimals
        multiplier, divisor = milli.as_integer_ratio()
        exact = self._exact / 10**decimals
        self._rules[decimals] = rule = (
            2 * multiplier,
            divisor,
            ceil(self._least / milli),
            floor(self._most / milli),
            exact.numerator if exact.denominator == 1 else exact,
        )
        return rule


# What is done for one used clamp. A plain tuple unpacks faster than a named one, and an idle table
# (its field is at -1, not in the line) is cheaper to pass over than None. In this order: power,
# current, voltage, apparent power, each as field and table; whether apparent power is Vrms x Irms;
# the estimated power by the text of Irms, where Vrms can show that the adaptor is out.
_Step = tuple[int, _Table, int, _Table, int, _Table, int, _Table, bool, "_Table | None"]


class Calibration:
    """How the lines of one field count become readings.

    Apparent power is summed exactly and rounded once: exact voltages are in 10^-4 V / (denominator
    of the nominal voltage), exact currents in 10^-4 mA / (common denominator of the scales), and
    `_unit` of their products are 1 mVA.
    """

    __slots__ = ("_half", "_nominal", "_scale_parts", "_steps", "_unit", "_used_at", "_voltages")

    def __init__(self, rules: BoardRules, fields: Fields) -> None:
        """Prepare to read lines of `fields`.

        Raises:
            ConfigError: A used clamp has no field, or a setting has no meaning.
        """
        check_settings(rules)
        nominal, nominal_parts = rules.nominal_v.as_integer_ratio()
        clamps = used_clamps(rules)
        self._scale_parts = lcm(*(clamp.scale.as_integer_ratio()[1] for _, clamp in clamps))
        self._unit = self._scale_parts * nominal_parts * 10 ** (2 * _DECIMALS)
        self._nominal = nominal * 10**_DECIMALS
        self._half = self._nominal // 2
        self._voltages = _Table(Fraction(1000), exact=Fraction(nominal_parts * 10**_DECIMALS))
        self._steps = [self._step(rules, fields, channel, clamp) for channel, clamp in clamps]
        self._used_at = {at for step in self._steps for at in step[:8:2] if at >= 0}

    def _step(self, rules: BoardRules, fields: Fields, channel: int, clamp: Clamp) -> _Step:
        scale = Fraction(clamp.scale)
        irms_ma = scale * (1 if rules.current_unit == "mA" else 1000)
        ep_ma = scale * 1000 / Fraction(rules.vest)
        assumed_v = Fraction(rules.nominal_v) * Fraction(rules.power_factor)
        most = Fraction(rules.fuse_a) * Fraction(rules.nominal_v) * PLAUSIBLE * 1000
        least = Fraction(clamp.zero_below_w) * 1000
        estimates = _Table(assumed_v * irms_ma, most=most, least=least)
        name = power_name(fields, channel)
        if name == "RP":
            sign = -1 if clamp.reversed else 1
            powers = _Table(scale * 1000, most=most, least=least, sign=sign)
        elif name == "EP":
            powers = _Table(assumed_v * ep_ma, most=most, least=least)
        else:
            powers = estimates
        irms_at = field_at(fields, f"Irms{channel}")
        by_ep = name == "EP" and irms_at < 0
        volts_at = voltage_at(fields, channel)
        sized = clamp.role == "mains" and measures_apparent(rules)
        apparent_at = field_at(fields, f"S{channel}") if sized else -1
        return (
            field_at(fields, f"{name}{channel}"),
            powers,
            field_at(fields, f"EP{channel}") if by_ep else irms_at,
            _Table(ep_ma if by_ep else irms_ma, exact=irms_ma * self._scale_parts * 10**_DECIMALS),
            volts_at,
            self._voltages,
            apparent_at,
            _Table(1000 * scale, exact=1000 * scale * self._unit),
            sized and apparent_at < 0,
            estimates if irms_at >= 0 and volts_at >= 0 else None,
        )

    def reading(self, texts: list[bytes], line: bytes, at_ms: int) -> Reading:
        """Return what `line` says at `at_ms`; `texts` are its fields.

        Raises:
            DroppedError: A field that a used clamp needs is no plain decimal, or out of range.
        """
        powers_mw: tuple[int, ...] = ()  # grown by adding: for a clamp or two quicker than a list
        currents_ma: tuple[int, ...] = ()
        voltage_mv = None
        apparent: int | Fraction = 0
        estimated = False
        try:
            for (
                power_at,
                powers,
                current_at,
                currents,
                volts_at,
                voltages,
                apparent_at,
                apparents,
                multiplies,
                estimates,
            ) in self._steps:
                current_ma, current = currents[texts[current_at]] if current_at >= 0 else (0, 0)
                currents_ma += (current_ma,)
                if volts_at >= 0:
                    clamp_mv, volts = voltages[texts[volts_at]]
                    if voltage_mv is None:
                        voltage_mv = clamp_mv
                    if volts < self._half and current and estimates is not None:
                        self._check_numbers(texts)
                        estimated = True
                        powers_mw += (estimates[texts[current_at]][0],)
                        if multiplies or apparent_at >= 0:
                            apparent += self._nominal * current
                        continue
                    if multiplies:
                        apparent += volts * current
                powers_mw += (powers[texts[power_at]][0],)
                if apparent_at >= 0:
                    apparent += apparents[texts[apparent_at]][1]
        except DroppedError:
            self._check_numbers(texts)  # that a field is no number goes before out of range
            raise
        apparent_mva = (2 * apparent + self._unit) // (2 * self._unit)
        if apparent_mva > U32_MAX:
            raise DroppedError("range")
        return _make(
            Reading,
            (
                at_ms,
                powers_mw,
                currents_ma,
                voltage_mv or 0,
                apparent_mva,
                estimated,
                line,
            ),
        )

    def _check_numbers(self, texts: list[bytes]) -> None:
        for at in self._used_at:
            check_decimal(texts[at])


def check_settings(rules: BoardRules) -> None:
    """Refuse settings that would divide by zero or turn the energy round.

    Raises:
        ConfigError: A factor is not above 0, or the unit of current is unknown.
    """
    if rules.current_unit not in {"mA", "A"}:
        raise ConfigError(f"current_unit must be mA or A, not {rules.current_unit}")
    for what, value in (
        ("vest", rules.vest),
        ("nominal_v", rules.nominal_v),
        ("power_factor", rules.power_factor),
        *((f"scale of clamp {clamp.name}", clamp.scale) for clamp in rules.clamps),
    ):
        if not value > 0:
            raise ConfigError(f"{what} must be above 0, not {value}")
