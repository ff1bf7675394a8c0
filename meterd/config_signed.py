"""What the settings' file still decides once a meter's parameters are signed (row S3).

Until then the file decides all. From then on the parameters are those of the newest parameter
record, which a signed command alone changes; of the file, the rest counts: port, brokers, pins. A
file that was edited since is an alarm, and has no effect: a meter that stopped would lose energy
over a wrong digit, and one that followed would let whoever writes a file change the bill.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.config import parameters, settings_of
from meterd.errors import ConfigError
from meterd.ledger.parameters import COMMISSIONED, FILE, MISSING, file_digest, split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterd.config import Settings
    from meterd.ledger.parameters import Pairs

DIFFERENCES_SHOWN = 3
_NUMBERS = {"nominal_v", "power_factor", "fuse_a", "vest", "scale", "zero_below_w"}
_WHOLE = {"interval_s", "polling_ms"}


class InForce(NamedTuple):
    """What a meter goes by.

    Attributes:
        settings: Those of the file, with the parameters that are in force.
        pairs: What the parameter record says.
        differs: What of the file has no effect, a clause; empty where all of it has.
    """

    settings: Settings
    pairs: Pairs
    differs: str


def in_force(settings: Settings, record: Pairs) -> InForce:
    """Return what a meter goes by whose newest parameter record says `record`.

    Raises:
        ConfigError: This software cannot meter by what is signed.
    """
    held, signed = split(record)
    own = parameters(settings)
    if all(key == MISSING for key, _ in signed):
        return InForce(settings, (*own, *signed), "")
    signed_for = with_parameters(settings, dict(held))
    pairs = parameters(signed_for)
    if own == pairs or file_digest(own) == dict(signed).get(FILE):
        return InForce(signed_for, (*pairs, *signed), "")
    here, there = dict(own), dict(pairs)
    differing = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
    said = [
        f"{key} is {here.get(key, 'absent')} there, {there.get(key, 'absent')} in force"
        for key in differing[:DIFFERENCES_SHOWN]
    ]
    more = "; …" if len(differing) > DIFFERENCES_SHOWN else ""
    return InForce(
        signed_for,
        (*pairs, *signed),
        f"the settings' file was changed and has no effect: {'; '.join(said)}{more}; "
        "put it back, or have a command signed (`meterctl calibrate`)",
    )


def missing(record: Pairs) -> str:
    """Return what a record says that the card, once put back, does not know; empty if nothing."""
    signed = dict(split(record)[1])
    if MISSING not in signed:
        return ""
    todo = "a command (`meterctl calibrate`)" if COMMISSIONED in signed else "`meterctl commission`"
    return (
        f"the card was put back to before a change: neighbours hold blocks measured under record "
        f"{signed[MISSING][:16]}, which it does not have; compare, and end this by {todo}"
    )


def with_parameters(settings: Settings, values: Mapping[str, str]) -> Settings:
    """Return `settings` with the parameters of a record, each checked by its rule.

    Raises:
        ConfigError: A key or a value cannot be; all that is wrong.
    """
    found = _read(values, settings.meter.name, settings.meter.zone, settings.board.port)
    return replace(
        settings,
        meter=replace(settings.meter, interval_s=found.meter.interval_s),
        rules=found.rules,
        board=replace(settings.board, polling_ms=found.board.polling_ms),
        clock=found.clock,
    )


def effect(pairs: Pairs) -> Pairs:
    """Return what the parameters of a record come to here, however they are spelt.

    Those of a software that knew others are as they are spelt.
    """
    try:
        return parameters(_read(dict(pairs), "meter", "UTC", "none"))
    except ConfigError:
        return pairs


def _read(values: Mapping[str, str], name: str, zone: str, port: str) -> Settings:
    tables: dict[str, Any] = {
        "meter": {"name": name, "zone": zone},
        "board": {"port": port},
        "clamp": [],
    }
    clamps: list[dict[str, Any]] = tables["clamp"]
    unknown = []
    for key, text in values.items():
        match key.split("."):
            case ["board", "fields"]:
                if values.get("board.layout") == "custom":
                    tables["board"]["fields"] = text.split(" ")
            case ["meter" | "board" | "clock" as table, name]:
                tables.setdefault(table, {})[name] = _value(name, text)
            case ["clamp", number, name] if number == str(len(clamps) + 1):
                clamps.append({name: _value(name, text)})
            case ["clamp", number, name] if clamps and number == str(len(clamps)):
                clamps[-1][name] = _value(name, text)
            case _:
                unknown.append(f"there is no parameter {key[:40]}")
    found, mistakes = settings_of(tables)
    wrong = [*unknown, *(str(mistake) for mistake in mistakes if not mistake.warning)]
    if found is None or wrong:
        raise ConfigError("; ".join(wrong[:DIFFERENCES_SHOWN]))
    return found


def _value(name: str, text: str) -> object:
    """Return a canonical text as TOML would have it; what it cannot be stays text, for the rule."""
    if name == "reversed":
        return {"true": True, "false": False}.get(text, text)
    if name in _NUMBERS and text.replace(".", "", 1).isdecimal() and text.isascii():
        return Decimal(text)
    if name in _WHOLE and text.isdecimal() and text.isascii():
        return int(text[:18])
    return text


def checked(settings: Settings, values: Mapping[str, str]) -> Pairs:
    """Return the parameters `values` in their order, each spelt as a record spells it.

    Raises:
        ConfigError: One cannot be, is spelt otherwise, or does not fit the others.
    """
    pairs = parameters(with_parameters(settings, values))
    spelt = dict(pairs)
    for key in sorted({*spelt, *values}):
        if spelt.get(key) != values.get(key):
            raise ConfigError(
                f"{key}: expected {spelt.get(key, 'nothing')}, got {values.get(key, 'nothing')}",
                hint="numbers have no trailing zeros; the fields follow from the layout",
            )
    return pairs
