"""What stands in a line of the clamp board, and what follows from it for a clamp.

>>> channels(LAYOUTS["rpict3v1"][0])
3
>>> known_field("Irms7"), known_field("Amps")
(True, False)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meterd.errors import ConfigError

if TYPE_CHECKING:
    from meterd.metering.reading import BoardRules, Clamp

Fields = tuple[str, ...]

LAYOUTS: Final[dict[str, tuple[Fields, ...]]] = {
    "rpict3v1": (("node", "RP1", "RP2", "RP3", "Irms1", "Irms2", "Irms3", "Vrms"),),
    "rpict3v1-sketch2": (
        ("node", *(f"{name}{k}" for k in (1, 2, 3) for name in ("RP", "S", "Irms", "Vrms", "PF"))),
    ),
    "rpict3t1": tuple(
        ("node", "EP1", "EP2", "EP3", *(f"T{k}" for k in range(1, probes + 1)))
        for probes in range(9)
    ),
    "rpict7v1": (
        ("node", *(f"{name}{k}" for name in ("RP", "Irms") for k in range(1, 8)), "Vrms"),
    ),
}
"""Alternatives of field names by the layout's name, told apart by their count (RPICT3.md).

The layout `custom` is not here: its one alternative is in the settings.
"""

_FIELD_NAME = re.compile(r"node|F|Vrms|(RP|S|Irms|Vrms|EP|PF|T|F|Q)[1-9][0-9]?")
_POWER_NAMES = ("RP", "EP", "Irms")  # what a clamp's power comes from, best first


def known_field(name: str) -> bool:
    """Return whether `name` can stand in the settings' list of fields of a `custom` layout."""
    return _FIELD_NAME.fullmatch(name) is not None


def field_names_ok(fields: Fields) -> bool:
    """Return whether a `custom` layout can have these fields: known names, none of them twice."""
    return len(set(fields)) == len(fields) and all(map(known_field, fields))


def measurable_channels(fields: Fields) -> frozenset[int]:
    """Return the channels, from 1, whose power follows from these fields (RPk, EPk or Irmsk)."""
    return frozenset(
        int(name.removeprefix(prefix))
        for name in fields
        for prefix in _POWER_NAMES
        if name.startswith(prefix)
    )


def channels(fields: Fields) -> int:
    """Return the highest channel whose power follows from these fields; 0 if there is none."""
    return max(measurable_channels(fields), default=0)


def used_clamps(rules: BoardRules) -> list[tuple[int, Clamp]]:
    """Return the clamps that are not `unused`, with their channels, in the board's order."""
    return [
        (channel, clamp)
        for channel, clamp in enumerate(rules.clamps, start=1)
        if clamp.role != "unused"
    ]


def clamp_estimated(rules: BoardRules) -> tuple[bool, ...]:
    """Return for each used clamp whether its power is V x I x pf of the settings, not measured."""
    return tuple(
        any(power_name(fields, channel) != "RP" for fields in rules.fields)
        for channel, _ in used_clamps(rules)
    )


def estimated_by_layout(rules: BoardRules) -> bool:
    """Return whether the power of a mains clamp is estimated by the layout (register kind 1)."""
    return any(
        estimated and clamp.role == "mains"
        for estimated, (_, clamp) in zip(clamp_estimated(rules), used_clamps(rules), strict=True)
    )


def measures_apparent(rules: BoardRules) -> bool:
    """Return whether the layout has every mains clamp's S, or its Irms and the voltage."""
    mains = [channel for channel, clamp in used_clamps(rules) if clamp.role == "mains"]
    return bool(mains) and all(
        f"S{channel}" in fields or (f"Irms{channel}" in fields and voltage_at(fields, channel) >= 0)
        for fields in rules.fields
        for channel in mains
    )


def power_name(fields: Fields, channel: int) -> str:
    """Return what a clamp's power comes from: `RP`, measured; `EP` or `Irms`, estimated.

    Raises:
        ConfigError: There is no such field.
    """
    for name in _POWER_NAMES:
        if f"{name}{channel}" in fields:
            return name
    raise ConfigError(
        f"no field measures clamp {channel}",
        hint=f"name one of RP{channel}, EP{channel}, Irms{channel}, or set the clamp to unused",
    )


def voltage_at(fields: Fields, channel: int) -> int:
    """Return where a clamp's voltage stands, its own or the board's one; -1 if it does not."""
    at = field_at(fields, f"Vrms{channel}")
    return field_at(fields, "Vrms") if at < 0 else at


def field_at(fields: Fields, name: str) -> int:
    """Return where `name` stands in a line, -1 if it does not."""
    return fields.index(name) if name in fields else -1
