"""Which alarm is the worst, and what to do about each.

The daemon tells its alarms as `kind: text`. The text says what is so, and in most cases what to do;
where it does not, `todo` does.

>>> worst(["cadence: lines come every 9.0 s", "storage_full: the card is full"])
'storage_full: the card is full'
>>> todo("port: the board is silent").partition(",")[0]
'see that cable and power of the board sit'
>>> todo("one_of_tomorrow: something new")
'see `meterctl events --last 20`'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.ctl.advice import Here

if TYPE_CHECKING:
    from collections.abc import Iterable

WORST_FIRST = (
    "software_changed",
    "parameters",
    "storage_full",
    "port",
    "garbage",
    "layout",
    "frozen",
    "case",
    "magnet",
    "clock",
    "undervoltage",
    "neighbours",
    "certificate_expired",
    "no_broker",
    "adaptor_out",
    "relay",
    "storage_low",
    "gpio",
    "case_switch_stuck",
    "magnet_stuck",
    "button_stuck",
    "cadence",
)
"""By what is lost meanwhile: the account, samples, the measurement, trust in it, the rest. One that
is not named here is shown before these: whoever added it had a reason."""

_REMEDIES = {
    "software_changed": "install meterd afresh, from a source that you trust",
    "port": Here("see that cable and power of the board sit, and that it is set to 38400 baud"),
    "garbage": "set the board to 38400 baud (its `uart` setting), and look for a console on its"
    " port",
    "layout": "count the fields of a line with `meterctl watch`, and set board.layout",
    "frozen": Here("take the board's power away and give it back; replace it if it goes on"),
    "case": Here("look at the case, then `meterctl case ack`"),
    "magnet": Here("look what is at the meter"),
    "clock": "see `timedatectl timesync-status`: a time server has to be reached",
    "undervoltage": Here("take the computer's own power supply and a short cable"),
    "parameters": "compare the settings with the record in force: `meterctl config check`, events",
    "certificate_expired": "renew it: `meterctl broker-config ca request`; and look at the clock",
    "no_broker": "look at network.brokers, at the network and at the broker",
    "neighbours": Here("see `meterctl peers`: who is heard, which broker is connected"),
    "adaptor_out": Here("plug the voltage adaptor in: until then energy is an estimate"),
    "relay": Here("look at the relay and its wiring"),
    "storage_full": "`meterctl prune --before DAY`, or a larger card",
    "storage_low": "`meterctl prune --before DAY`, or a larger card",
    "gpio": "see [gpio] in the settings, and that nobody else holds the pin",
    "case_switch_stuck": Here("look at the case switch and its cable"),
    "magnet_stuck": Here("look at the magnet switch and its cable"),
    "button_stuck": Here("look at the button and its cable"),
    "cadence": "set board.polling_ms to what the board does",
}


def kind_of(alarm: str) -> str:
    """Return the kind of an alarm."""
    return alarm.partition(":")[0]


def ordered(alarms: Iterable[str]) -> list[str]:
    """Return alarms, the worst first."""
    rank = {kind: place for place, kind in enumerate(WORST_FIRST)}
    return sorted(alarms, key=lambda alarm: (rank.get(kind_of(alarm), -1), alarm))


def worst(alarms: Iterable[str]) -> str:
    """Return the worst of `alarms`, of which there is one at least."""
    return ordered(alarms)[0]


def todo(alarm: str) -> str:
    """Return what to do about an alarm, a clause."""
    return _REMEDIES.get(kind_of(alarm), Here("see `meterctl events --last 20`"))
