"""What the daemon says of itself, and what its board and port show: rules of `meterctl doctor`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from meterd.ctl.advice import WITH_ROOT, Here
from meterd.ctl.alarm_words import kind_of, ordered, todo
from meterd.ctl.doctor_facts import Unseen, Verdict
from meterd.ctl.doctor_findings import FAIL, OK, UNKNOWN, WARN, Finding, Rule, ruling, verdict_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.ctl.doctor_facts import Facts, Heard, Port, Status, Unit

RESTARTS_MAX = 3  # since systemd has loaded the unit: a lost cable does not restart it
LAG_BLOCKS_MAX = 4  # two hours at half-hour intervals: the neighbours' answers take seconds
GPIO_ONE_WIRE = 4
_GARBAGE_MIN = 300  # bytes, as the daemon's own rule: some six lines
_TEXT_TENTHS = 8  # of the bytes are printable in a line that came at the right speed
_BLUETOOTH_OFF = ("disable-bt", "miniuart-bt")
_TRIED = "see `journalctl --namespace=meterd -u {}`"

RULES: list[Rule] = []  # in the order in which a technician would look
_rule = ruling(RULES)


# --- the daemon and what it says ----------------------------------------------------------------


@_rule("daemon", "daemon")
def _daemon(told: Status | Verdict, _: Facts) -> Iterator[Finding]:
    if isinstance(told, Verdict):
        yield verdict_of("daemon", told)
        return
    height = told["height"]
    yield Finding("daemon", OK, f"answers: {told['state']}, block {height} is the last")
    for alarm in ordered(told["alarms"]):
        text = alarm.partition(": ")[2]
        yield Finding(f"alarm {kind_of(alarm)}", FAIL, text, todo(alarm))
    if not told["alarms"]:
        yield Finding("alarms", OK, "none stands")
    neighbours = told["neighbours"]
    if not neighbours["voters"]:
        return
    certified = neighbours["certified_height"]
    lag = height - certified
    if lag > LAG_BLOCKS_MAX:
        yield Finding(
            "neighbours",
            WARN,
            f"the last {lag} blocks are not certified",
            Here("see `meterctl peers`: who is heard, which broker is connected"),
        )
    else:
        said = f"certify up to block {certified}" if certified else "have certified nothing yet"
        yield Finding("neighbours", OK, said)


@_rule("units", "units")
def _units(units: tuple[Unit, ...], _: Facts) -> Iterator[Finding]:
    for unit in units:
        check = f"unit {unit.name.removesuffix('.service')}"
        if not unit.enabled and not unit.needed:
            continue
        if not unit.enabled:
            yield Finding(check, WARN, "is not installed", "`meterctl lockdown apply` installs it")
        elif unit.active != "active":
            yield Finding(
                check,
                FAIL if unit.needed else WARN,
                f"is {unit.active}",
                f"`systemctl start {unit.name}`; {_TRIED.format(unit.name)}",
            )
        elif unit.enabled not in {"enabled", "static", "generated", "alias"}:
            yield Finding(
                check,
                FAIL if unit.needed else WARN,
                f"runs, and is {unit.enabled}: it will not start by itself",
                f"`systemctl enable {unit.name}`",
            )
        elif unit.restarts > RESTARTS_MAX:
            yield Finding(
                check,
                WARN,
                f"runs, and was started anew {unit.restarts} times",
                _TRIED.format(unit.name),
            )
        else:
            yield Finding(check, OK, "runs, and starts by itself")


@_rule("settings", "settings")
def _settings(verdict: Verdict, _: Facts) -> Iterator[Finding]:
    yield verdict_of("settings", verdict)


# --- the board and its port ---------------------------------------------------------------------


@_rule("port", "port")
def _port(port: Port, facts: Facts) -> Iterator[Finding]:
    path = port.path
    if not port.there:
        others = " ".join(port.others)
        yield Finding(
            "port",
            FAIL,
            f"there is no {path}",
            f"set board.port to one that is there: {others}"
            if others
            else "plug the board in, or enable the UART in config.txt and reboot",
        )
        return
    trouble = False
    if port.holders:
        trouble = True
        yield Finding(
            "port",
            FAIL,
            f"{path} is held by {', '.join(port.holders)}",
            f"end it, or give it another port: `sudo fuser -v {path}`",
        )
    for getty in port.gettys:
        trouble = True
        yield Finding(
            "port",
            FAIL,
            f"{getty} waits for a login on {path}",
            "`meterctl lockdown apply`, or `sudo raspi-config nonint do_serial_cons 1`",
        )
    for word in port.console:
        trouble = True
        yield Finding(
            "port",
            FAIL,
            f"the kernel writes to it: {word} in cmdline.txt",
            "take that word out, or `meterctl lockdown apply`, and reboot",
        )
    meters = isinstance(facts.daemon, dict)
    if not port.usable and not meters:
        yield Finding(
            "port",
            UNKNOWN,
            f"this user may not open {path} ({port.mode}); the meter's own has to",
            WITH_ROOT,
        )
    elif not trouble:
        rest = "" if port.holders_whole else "; not all processes could be looked at"
        yield Finding("port", OK, f"{path} ({port.mode}){rest}")


@_rule("board", "heard")
def _heard(heard: Heard, _: Facts) -> Iterator[Finding]:
    data, after = heard.data, f"in {heard.for_s:.0f} s"
    lines = data.replace(b"\r", b"\n").split(b"\n")[1:-1]
    widths = sorted({len(line.split()) for line in lines if _is_text(line) and line.split()})
    if heard.readings:
        yield Finding("board", OK, f"{heard.readings} readings {after}")
    elif not data:
        yield Finding(
            "board",
            FAIL,
            f"not a byte {after}",
            Here("see that cable and power of the board sit, and that it is not on another port"),
        )
    elif not _is_text(data):
        yield Finding(
            "board",
            FAIL,
            f"{len(data)} bytes of garbage {after}",
            "set the board to 38400 baud (its `uart` setting)",
        )
    elif widths and not set(widths) & set(heard.fields):
        told = " or ".join(map(str, widths))
        wanted = " or ".join(map(str, heard.fields))
        yield Finding(
            "board",
            FAIL,
            f"lines have {told} fields, board.layout says {wanted}",
            "set board.layout to the board's own",
        )
    else:
        yield Finding(
            "board",
            WARN if len(data) < _GARBAGE_MIN else FAIL,
            f"{len(data)} bytes and no whole reading {after}",
            "try again; if it stays so, look at the board's lines: `sudo cat` of the port",
        )


def _is_text(data: bytes) -> bool:
    printable = sum(32 <= byte < 127 or byte in b"\r\n\t" for byte in data)  # noqa: PLR2004 - ASCII
    return 10 * printable >= _TEXT_TENTHS * len(data)


@_rule("bluetooth", "config_txt")
def _bluetooth(text: str, facts: Facts) -> Iterator[Finding]:
    pi = re.search(r"Raspberry Pi (?:Compute Module )?([0-9]+|Zero 2)", facts.model)
    number = int(pi[1]) if pi and pi[1].isdecimal() else 0
    port = facts.port.path if facts.port and not isinstance(facts.port, Unseen) else ""
    overlays = set(config_values(text, "dtoverlay", facts.model))
    parameters = set(config_values(text, "dtparam", facts.model))
    if port not in {"/dev/ttyAMA0", "/dev/serial0", "/dev/ttyS0"} or not number:
        pass
    elif number in {3, 4} and not any(
        overlay.partition(",")[0] in _BLUETOOTH_OFF for overlay in overlays
    ):
        yield Finding(
            "bluetooth",
            FAIL,
            f"Bluetooth has the good UART of this Pi {number}",
            "write dtoverlay=disable-bt to config.txt (`meterctl lockdown apply`) and reboot",
        )
    elif number >= 5 and not (  # noqa: PLR2004 - a Pi 5
        {"uart0", "uart0=on"} & parameters or any(o.startswith("uart0") for o in overlays)
    ):
        yield Finding(
            "bluetooth",
            FAIL,
            f"the header's UART of this Pi {number} is off",
            "write dtparam=uart0=on to config.txt (`meterctl lockdown apply`) and reboot",
        )
    else:
        yield Finding("bluetooth", OK, "is not on the board's UART")
    one_wire = [overlay for overlay in overlays if overlay.startswith("w1-gpio")]
    if facts.reset_gpio is not None and one_wire:
        pins = [
            int(found[1]) if (found := re.search(r"gpiopin=([0-9]+)", overlay)) else GPIO_ONE_WIRE
            for overlay in one_wire
        ]
        if facts.reset_gpio in pins:
            yield Finding(
                "reset pin",
                FAIL,
                f"GPIO {facts.reset_gpio} resets the board, and is the 1-Wire bus",
                "take dtoverlay=w1-gpio out of config.txt and reboot, or give 1-Wire another pin"
                " (gpiopin=)",
            )
            return
    if facts.reset_gpio is not None:
        yield Finding("reset pin", OK, f"GPIO {facts.reset_gpio} is the board's alone")


def config_values(text: str, key: str, model: str) -> list[str]:
    r"""Return what config.txt sets a key to, on a model: its conditional sections are followed.

    >>> config_values("[pi4]\ndtoverlay=a\n[pi3]\ndtoverlay=b\n[all]\ndtoverlay=c # d",
    ...     "dtoverlay", "Raspberry Pi 4 Model B Rev 1.4")
    ['a', 'c']
    """
    found, counted = [], True
    for line in text.splitlines():
        words = line.partition("#")[0].strip()
        if words.startswith("[") and words.endswith("]"):
            counted = _section_counts(words[1:-1].strip().lower(), model)
        elif counted:
            name, is_set, value = words.partition("=")
            if is_set and name.strip() == key:
                found.append(value.strip())
    return found


def _section_counts(section: str, model: str) -> bool:
    if section == "all":
        return True
    if not section.startswith(("pi", "cm")):
        return section != "none"  # by serial number, display …: it may count
    number = re.fullmatch(r"(?:pi|cm)([0-9]+)s?(?:\+|00)?", section)
    return bool(number) and re.search(rf"(Pi|Module) {number[1]}\b", model) is not None  # type: ignore[index]
