"""What a clamp is set to be, and what one line of the board says.

>>> from decimal import Decimal
>>> Clamp(name="mains", role="mains").scale
Decimal('1')
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """One clamp, as the settings describe it.

    Attributes:
        role: `mains` (summed into import and export), `circuit` (a register of its own) or
            `unused` (its fields are not looked at).
        reversed: The clamp sits the wrong way round: power is negated.
        scale: Factor on power, apparent power and current.
        zero_below_w: Power nearer to zero than this counts as zero.
    """

    name: str
    role: str
    reversed: bool = False
    scale: Decimal = Decimal(1)
    zero_below_w: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardRules:
    """Everything that turns a line of the board into a reading.

    Attributes:
        layout: The layout's name in the settings.
        fields: Alternatives of field names that a line may have, told apart by their count.
        clamps: In the board's order: the first is channel 1. Channels past the last are unused.
        polling_ms: What the board's own polling is set to.
        current_unit: `mA` or `A`.
        vest: What the board multiplies a current by for its EP fields.
        nominal_v: Volts assumed where none are measured.
        power_factor: Assumed where no real power is measured.
        fuse_a: The main fuse; power past fuse x nominal x 1.6 is no reading.
    """

    layout: str
    fields: tuple[tuple[str, ...], ...]
    clamps: tuple[Clamp, ...]
    polling_ms: int
    current_unit: str = "mA"
    vest: Decimal = Decimal(240)
    nominal_v: Decimal = Decimal(230)
    power_factor: Decimal = Decimal(1)
    fuse_a: Decimal = Decimal(60)


class Reading(NamedTuple):
    """One line of the clamp board, calibrated. A tuple for speed: one is made for every line.

    Attributes:
        at_ms: Boot clock, milliseconds, when the line's last byte had come.
        powers_mw: Active power of each used clamp (role not `unused`) in the board's order;
            positive is drawn from the grid, negative is fed into it.
        currents_ma: RMS current of each used clamp, never negative; 0 where not measured.
        voltage_mv: RMS voltage, the first that a used clamp's fields measure; 0 where none is.
        apparent_mva: Sum over the mains clamps of S, else of Vrms x Irms; 0 where neither is known
            (`energy.registers` says whether it is known: the layout decides, not the line).
        estimated: The voltage adaptor is out while current flows: power is V x I x pf as set.
        line: The line as it came, without its end; for finding duplicates and frozen values.
    """

    at_ms: int
    powers_mw: tuple[int, ...]
    currents_ma: tuple[int, ...]
    voltage_mv: int
    apparent_mva: int
    estimated: bool
    line: bytes
