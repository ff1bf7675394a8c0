"""The steps by which a meter is taken into service: what each looks at, and what it says.

Nothing here opens, asks or waits: what was found goes in, verdicts come out.

>>> zero({"mains": [0, 3_100, -2_000]}, {"mains": ("clamp.1", "0")}).todo
'set clamp.1.zero_below_w to 5: less than that is noise of the clamp'
"""

from __future__ import annotations

from math import ceil
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.ctl.advice import Here
from meterd.ctl.alarm_words import todo as todo_of
from meterd.ctl.show import count as counted
from meterd.metering.layout import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLUMNS = 80
NOISE_W_MAX = 50  # a clamp that shows more without a load does not show noise
NOISE_MARGIN = 1.5  # a minute shows not the worst of it
LOAD_W_MIN = 100  # less is no load that tells a direction
FOUND_AT = 24  # column of what was found
GOOD, BAD, SKIPPED, NOTE = "good", "bad", "skipped", "note"

STEPS = {
    "board": "the board is there, and says lines that are readings",
    "layout": "its lines have the fields of board.layout",
    "direction": "each mains clamp counts a load as import",
    "zero": "without a load nothing is counted",
    "clock": "the clock is right",
    "enrolment": "the meter is in its network",
    "peers": "its neighbours are heard",
    "vault": "its keys are in the vault",
    "case": "the case is shut, and watched",
    "alarms": "no alarm stands",
    "block": "a block is sealed, and certified where there are neighbours",
}
"""The steps in their order, each with what has to be so."""

ASKED = {
    "load": ("direction", "on", "switch a known load on, a kettle or an oven; it stays on"),
    "zero": ("zero", "off", "switch off all that the clamps are round"),
}
"""What a person has to do: of which step, the word that it is done, and what."""

_OF_STEPS = ("port", "garbage", "layout", "clock", "neighbours", "case")  # alarms told there


class Step(NamedTuple):
    """What was found at one step.

    Attributes:
        name: Of `STEPS`.
        verdict: `good`, `bad` (the meter is not taken into service), `skipped`, or `note`.
        found: What was found, a clause.
        todo: What to do about it, a clause; empty where there is nothing to do.
    """

    name: str
    verdict: str
    found: str
    todo: str = ""


def board(status: Mapping[str, Any], told: Mapping[str, Any], readings: int) -> Step:
    """Judge whether readings come, from how many came while it was watched."""
    port = told["port"]
    if readings:
        return Step("board", GOOD, f"{readings} readings from {port}")
    if status["port"] in ("closed", "lost"):
        todo = f"see that {port} is there, and that no console or other program has it"
        return Step("board", BAD, f"the port is {status['port']}", todo)
    if told["last_dropped"]:
        todo = "see the layout; or set the board to 38400 baud, and look at its cable"
        return Step("board", BAD, "lines come, and none is a reading", todo)
    todo = Here(
        "see that the board has power, that its cable sits, and that it is set to 38400 baud"
    )
    return Step("board", BAD, f"{port} is open and silent", todo)


def layout(settings: Mapping[str, str], told: Mapping[str, Any], readings: int) -> Step:
    """Judge whether the lines are of the layout; where they are not, propose one."""
    named = settings["board.layout"]
    if readings:
        return Step("layout", GOOD, f"lines are of {named}")
    fields = len(told["last_dropped"].replace(",", " ").split())
    if not fields:
        return Step("layout", BAD, "no line has come", Here("let the board speak first"))
    expected = sorted({len(one.split()) for one in settings["board.fields"].split("|")})
    said = f"the last line has {fields} fields, {named} has {' or '.join(map(str, expected))}"
    if fields in expected:
        return Step("layout", BAD, said, Here("look at the line: `meterctl parameters --json`"))
    fitting = [name for name, known in LAYOUTS.items() if any(len(one) == fields for one in known)]
    todo = (
        f"set board.layout to {' or '.join(fitting)}"
        if fitting
        else "no known layout has so many: set layout = custom, and name its fields"
    )
    return Step("layout", BAD, said, todo)


def direction(
    seen: Mapping[str, Sequence[int]] | None, clamps: Mapping[str, tuple[str, str]]
) -> Step:
    """Judge whether mains clamps count a load as import.

    Args:
        seen: Readings of each mains clamp under the load, mW; None where that was skipped.
        clamps: Dotted key of each clamp and whether it is reversed, `true` or `false`.
    """
    if seen is None:
        return Step("direction", SKIPPED, "no load was switched on")
    means = {name: sum(powers) // max(len(powers), 1) for name, powers in seen.items()}
    said = ", ".join(f"{name} {mean // 1000} W" for name, mean in means.items())
    for name, mean in means.items():
        key, reversed_ = clamps[name]
        if abs(mean) < LOAD_W_MIN * 1000:
            todo = Here(
                f"see that {name} is shut and round one wire alone, and that the load is on it"
            )
            return Step("direction", BAD, f"{said}: no load is seen by {name}", todo)
        if mean < 0:
            other = "false" if reversed_ == "true" else "true"
            todo = Here(f"turn {name} round on its wire, or have {key}.reversed set to {other}")
            return Step("direction", BAD, f"{said}: {name} counts it as export", todo)
    return Step("direction", GOOD, said)


def zero(seen: Mapping[str, Sequence[int]] | None, clamps: Mapping[str, tuple[str, str]]) -> Step:
    """Judge whether anything is counted without a load.

    Args:
        seen: Readings of each used clamp without a load, mW; None where that was skipped.
        clamps: Dotted key of each clamp, and its zero_below_w.
    """
    if seen is None:
        return Step("zero", SKIPPED, "the loads were left on")
    most = {name: max(map(abs, powers), default=0) for name, powers in seen.items()}
    said = ", ".join(f"{name} {mw / 1000:.1f} W" for name, mw in most.items())
    for name, mw in most.items():
        if mw > NOISE_W_MAX * 1000:
            return Step(
                "zero", BAD, f"{said}: a load is on {name}", Here("switch it off, and try again")
            )
    for name, mw in most.items():
        if mw:
            watts = ceil(mw / 1000 * NOISE_MARGIN)
            key = f"{clamps[name][0]}.zero_below_w"
            todo = f"set {key} to {watts}: less than that is noise of the clamp"
            return Step("zero", BAD, f"{said}: {name} counts without a load", todo)
    return Step("zero", GOOD, said)


def clock(status: Mapping[str, Any]) -> Step:
    """Judge the clock by the status of its last stamp."""
    match status["clock"]:
        case "S":
            return Step("clock", GOOD, "synchronised")
        case "I":
            todo = "see that a time server is reached: `timedatectl`"
            return Step("clock", NOTE, "set by a clock chip, not synchronised", todo)
        case _:
            todo = "see that a time server is reached: `timedatectl`; nothing is sealed before"
            return Step("clock", BAD, "not set", todo)


def enrolment(
    status: Mapping[str, Any], told: Mapping[str, Any], owner: str, *, operator: bool = True
) -> Step:
    """Judge whether it is known who gives orders to this meter.

    Args:
        status: The daemon's.
        told: What it says of its parameters.
        owner: Public key that is named, hex; empty where none is.
        operator: Whether whoever asks may name one.
    """
    voters = status["neighbours"]["voters"]
    who = counted(voters, "voter") if voters else "a network of its own"
    said = f"{told['meter']} in {told['network']}, {who}"
    if told["distributor"]:
        return Step("enrolment", GOOD, f"{said}, orders by {told['distributor']}")
    if owner:
        return Step("enrolment", GOOD, f"{said}, an owner's key")
    todo = "make its owner's key with `meterctl calibrate key`, and give the public one by --owner"
    if not operator:
        todo = "commission it with --owner, which is not a technician's to name"
    return Step("enrolment", BAD, f"{said}: nobody could change a parameter", todo)


def peers(status: Mapping[str, Any], heard: Mapping[str, bool] | None) -> Step:
    """Judge whether neighbours are heard.

    Args:
        status: The daemon's.
        heard: Whether each other voter is; None where no peer process tells.
    """
    neighbours = status["neighbours"]
    if not neighbours["voters"]:
        return Step("peers", SKIPPED, "there are none")
    if heard is None:
        todo = "start `meterd peer`, or `meterd run --with-peer`"
        return Step("peers", BAD, "the peer process does not run", todo)
    if not heard:
        return Step("peers", SKIPPED, "there are no others")
    count = sum(heard.values())
    said = f"{count} of {len(heard)} are heard"
    if neighbours["waits"]:
        waits = f"{said}; sealing waits: {neighbours['waits']}"
        return Step("peers", BAD, waits, Here("see `meterctl peers`"))
    if not count:
        return Step("peers", BAD, said, Here("see the brokers, and who is heard: `meterctl peers`"))
    missing = ", ".join(sorted(name for name, is_heard in heard.items() if not is_heard))
    return (
        Step("peers", NOTE, said, Here(f"not heard: {missing}"))
        if missing
        else Step("peers", GOOD, said)
    )


def vault(*, secret: bool, used: bool) -> Step:
    """Judge where the keys are: whether there is a device secret, and a vault that it opens."""
    if secret and used:
        return Step("vault", GOOD, "a device secret opens it")
    todo = "stop the meter, and as root: `meterctl vault init`"
    if used:
        return Step("vault", NOTE, "not looked at: root alone sees the device secret")
    return Step("vault", NOTE, "the sealing key is in a file of the account", todo)


def case(told: Mapping[str, Any], alarms: Sequence[str]) -> Step:
    """Judge the case by its switch."""
    if not told["case_switch"]:
        todo = "wire one, and name its pin as case_switch in [gpio]"
        return Step("case", NOTE, "no switch is wired", todo)
    if any(alarm.startswith("case") for alarm in alarms):
        return Step("case", BAD, "it was opened", Here("shut it, then `meterctl case ack`"))
    return Step("case", GOOD, "shut")


def no_alarms(alarms: Sequence[str]) -> Step:
    """Judge by the alarms that no other step tells of."""
    others = [alarm for alarm in alarms if alarm.partition(":")[0] not in _OF_STEPS]
    if others:
        more = f"; {len(others) - 1} more" if others[1:] else ""
        return Step("alarms", BAD, f"{others[0]}{more}", todo_of(others[0]))
    return Step("alarms", GOOD, "none")


def block(status: Mapping[str, Any]) -> Step:
    """Judge whether the first block is sealed, and certified where anybody certifies."""
    neighbours, height = status["neighbours"], status["height"]
    todo = Here("it comes at the end of the interval; then run this again, the rest is kept")
    if not height:
        return Step("block", BAD, "none is sealed yet", todo)
    if neighbours["voters"] and not neighbours["certified_height"]:
        return Step("block", BAD, f"{height} sealed, none certified", Here("see `meterctl peers`"))
    word = "certified" if neighbours["voters"] else "sealed"
    return Step("block", GOOD, f"block {neighbours['certified_height'] or height} is {word}")


def ready(steps: Sequence[Step]) -> bool:
    """Say whether the meter can be taken into service."""
    return all(step.verdict != BAD for step in steps)


def lines(steps: Sequence[Step]) -> list[str]:
    """Return steps for people, each with what to do, in 80 columns."""
    shown = []
    for number, step in enumerate(steps, start=1):
        head = f"{number:2} {step.name:10} {step.verdict:8} ".ljust(FOUND_AT)
        for text in filter(None, (step.found, f"-> {step.todo}" if step.todo else "")):
            for part in wrap(text, COLUMNS - FOUND_AT):
                shown.append(head + part)
                head = " " * FOUND_AT
    return shown


def record(
    told: Mapping[str, Any],
    status: Mapping[str, Any],
    steps: Sequence[Step],
    *,
    at: str,
    by: str,
    registers: Sequence[tuple[str, str]],
) -> str:
    """Return the record of a commissioning: plain text in 80 columns, to be printed and signed.

    Args:
        told: What the daemon says of its parameters.
        status: How it is.
        steps: What was found.
        at: When, ISO 8601.
        by: Who did it, as was typed; may be empty.
        registers: (name, reading) as they stand.
    """
    found = [
        "COMMISSIONING OF AN ELECTRICITY METER",
        "=" * COLUMNS,
        f"meter       {told['meter']}",
        f"network     {told['network']}",
        f"genesis     {told['genesis']}",
        f"software    {status['software']}",
        f"parameters  {told['record']}",
        f"record      {told['sequence']}",
        f"time        {at}",
        *(f"{name:11} {reading}" for name, reading in registers),
        "",
        "steps",
        "-" * COLUMNS,
        *lines(steps),
        "",
        "parameters",
        "-" * COLUMNS,
    ]
    for key, value in told["settings"].items():
        parts = wrap(value, COLUMNS - FOUND_AT) or [""]
        found.append(f"{key:{FOUND_AT - 1}} {parts[0]}")
        found += [" " * FOUND_AT + part for part in parts[1:]]
    found += ["", f"by {by or '_' * 30}", "", f"signature {'_' * 40}"]
    return "\n".join(found) + "\n"
