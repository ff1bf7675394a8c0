"""What facts of a device mean: findings, each with a verdict, what was found, and what to do.

Nothing is looked at here. A rule is about one fact; where that could not be seen, what it finds is
`unknown` and never `ok`, and where it does not apply the rule says nothing.

>>> from meterd.ctl.doctor_facts import Facts, Unseen
>>> for finding in examine(Facts(now_s=1_800_000_000, throttled=0x10000, memory=Unseen("why not"))):
...     print(finding.verdict, finding.check, "-", finding.found)
warn supply - the voltage was too low since the last boot
unknown memory - why not
ok system - 64-bit userland
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.ctl.advice import WITH_ROOT, Here
from meterd.ctl.alarm_words import kind_of, ordered, todo
from meterd.ctl.doctor_facts import Unseen, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meterd.ctl.doctor_facts import (
        Broker,
        Card,
        Clock,
        Facts,
        Happened,
        Heard,
        Locked,
        Memory,
        Port,
        Secret,
        Status,
        Technician,
        Unit,
        Vault,
    )

OK, WARN, FAIL, UNKNOWN = "ok", "warn", "fail", "unknown"
VERDICTS = (FAIL, WARN, UNKNOWN, OK)  # as they matter

DAY_S = 86_400
DAYS_LEFT_MIN = 30  # as the daemon's own alarm
INODES_MIN = 1000  # a segment a stream and day: a year
SYNC_MS_MAX = 2000  # a good card takes 5 to 50 ms; past this it is worn, or very busy
RESTARTS_MAX = 3  # since systemd has loaded the unit: a lost cable does not restart it
WEAR_TENTHS_MAX = 8  # 70 to 80 % of its rated life used
CERTIFICATE_DAYS_MIN = 30  # as long as a visit may be away
REVOKED_DAYS_MAX = 90  # technicians' certificates live a week at most: older lists do little harm
LAG_BLOCKS_MAX = 4  # two hours at half-hour intervals: the neighbours' answers take seconds
CELSIUS_WARN, CELSIUS_MAX = 75, 80  # a Pi slows itself down from 80 on
MEMORY_MIN = 64_000_000  # both processes take some 60 MB; below this the kernel has to choose
KERNEL_MIN = (6, 1)  # Debian 12's: what the units ask of it is there
GPIO_ONE_WIRE = 4

# Bits of the firmware's answer to get_throttled (Raspberry Pi documentation, vcgencmd).
_NOW = {0: "the voltage is too low", 1: "the clock rate is capped", 2: "it is throttled"}
_SINCE = {16: "the voltage was too low", 17: "the clock rate was capped", 18: "it was throttled"}
_SUPPLY = Here("take the computer's own power supply and a short cable")

_GARBAGE_MIN = 300  # bytes, as the daemon's own rule: some six lines
_TEXT_TENTHS = 8  # of the bytes are printable in a line that came at the right speed
_BLUETOOTH_OFF = ("disable-bt", "miniuart-bt")
_TRIED = "see `journalctl --namespace=meterd -u {}`"


class Finding(NamedTuple):
    """What one check came to.

    Attributes:
        check: Its name, a word or two.
        verdict: `ok`, `warn`, `fail` or `unknown`.
        found: What was found, a clause.
        todo: What to do, a clause; empty where there is nothing to do.
    """

    check: str
    verdict: str
    found: str
    todo: str = ""


_RULES: list[tuple[str, str, Callable[[Any, Facts], Iterator[Finding]]]] = []


def _rule(check: str, fact: str) -> Callable[[Any], Any]:
    """Make a function a rule about the fact of a name; it is called where that was seen."""

    def keep(rule: Callable[[Any, Facts], Iterator[Finding]]) -> object:
        _RULES.append((check, fact, rule))
        return rule

    return keep


def examine(facts: Facts) -> list[Finding]:
    """Return what all rules find, in the order in which a technician would look."""
    found: list[Finding] = []
    for check, fact, rule in _RULES:
        value = getattr(facts, fact)
        if isinstance(value, Unseen):
            how = WITH_ROOT if value.reason == "needs root" else ""
            found.append(Finding(check, UNKNOWN, value.reason, how))
        elif value is not None:
            found += rule(value, facts)
    return found


def is_well(findings: Sequence[Finding]) -> bool:
    """Return whether nothing has failed."""
    return all(finding.verdict != FAIL for finding in findings)


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Return how many findings there are of each verdict."""
    return {
        verdict: sum(finding.verdict == verdict for finding in findings) for verdict in VERDICTS
    }


def _as(check: str, verdict: Verdict, bad: str = FAIL) -> Finding:
    if verdict.good:
        return Finding(check, OK, verdict.told)
    return Finding(check, bad, verdict.told, verdict.hint)


# --- the daemon and what it says ----------------------------------------------------------------


@_rule("daemon", "daemon")
def _daemon(told: Status | Verdict, _: Facts) -> Iterator[Finding]:
    if isinstance(told, Verdict):
        yield _as("daemon", told)
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
    yield _as("settings", verdict)


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


# --- the computer -------------------------------------------------------------------------------


@_rule("supply", "throttled")
def _throttled(bits: int, facts: Facts) -> Iterator[Finding]:
    now = [text for bit, text in _NOW.items() if bits >> bit & 1]
    since = [text for bit, text in _SINCE.items() if bits >> bit & 1]
    if now:
        yield Finding("supply", FAIL, " and ".join(now), _SUPPLY)
    elif since:
        yield Finding("supply", WARN, f"{' and '.join(since)} since the last boot", _SUPPLY)
    elif not facts.low_voltage:
        yield Finding("supply", OK, "neither low voltage nor throttling since the last boot")


@_rule("supply", "low_voltage")
def _low_voltage(low: bool, _: Facts) -> Iterator[Finding]:  # noqa: FBT001 - a fact
    if low:
        yield Finding("supply", FAIL, "the kernel's alarm of low voltage stands", _SUPPLY)


@_rule("temperature", "celsius")
def _celsius(celsius: int, _: Facts) -> Iterator[Finding]:
    told = f"{celsius} °C"
    if celsius >= CELSIUS_MAX:
        yield Finding("temperature", FAIL, told, Here("give it air: it slows itself down"))
    elif celsius >= CELSIUS_WARN:
        hint = Here(f"give it air: from {CELSIUS_MAX} °C on it slows")
        yield Finding("temperature", WARN, told, hint)
    else:
        yield Finding("temperature", OK, told)


@_rule("memory", "memory")
def _memory(memory: Memory, _: Facts) -> Iterator[Finding]:
    told = f"{memory.available_bytes // 1_000_000} of {memory.total_bytes // 1_000_000} MB are free"
    if memory.available_bytes < MEMORY_MIN:
        yield Finding("memory", WARN, told, "look who has it: `systemd-cgtop -m`")
    else:
        yield Finding("memory", OK, told)
    if memory.bounded is False:
        hint = "add cgroup_enable=memory to cmdline.txt, as `meterctl lockdown apply` does; reboot"
        yield Finding("memory bounds", WARN, "no MemoryMax= of a unit has any effect", hint)


@_rule("system", "bits")
def _bits(bits: int, facts: Facts) -> Iterator[Finding]:
    if bits != 64:  # noqa: PLR2004 - bits of the userland
        hint = "install the 64-bit Raspberry Pi OS: libraries that are needed exist for no other"
        yield Finding("system", FAIL, f"{bits}-bit userland", hint)
    else:
        yield Finding("system", OK, "64-bit userland")
    if not facts.kernel:
        return
    numbers = tuple(int(number) for number in re.findall(r"[0-9]+", facts.kernel)[:2])
    least = ".".join(map(str, KERNEL_MIN))
    if numbers < KERNEL_MIN:
        hint = "update the system: `sudo apt full-upgrade`, and reboot"
        yield Finding("kernel", WARN, f"{facts.kernel} is older than {least}", hint)
    else:
        yield Finding("kernel", OK, facts.kernel)


@_rule("watchdog", "watchdog")
def _watchdog(found: tuple[bool, int], _: Facts) -> Iterator[Finding]:
    there, served_s = found
    if not there:
        hint = "write dtparam=watchdog=on to config.txt (`meterctl lockdown apply`) and reboot"
        yield Finding("watchdog", WARN, "the hardware has none", hint)
    elif not served_s:
        hint = "set RuntimeWatchdogSec= (`meterctl lockdown apply`): a hung kernel is then reset"
        yield Finding("watchdog", WARN, "systemd does not serve the hardware's", hint)
    else:
        yield Finding("watchdog", OK, f"resets a hung system after {served_s} s")


@_rule("journal", "journal")
def _journal(verdict: Verdict, _: Facts) -> Iterator[Finding]:
    yield _as("journal", verdict, WARN)


@_rule("clock", "clock")
def _clock(clock: Clock, _: Facts) -> Iterator[Finding]:
    if clock.wall_s < clock.build_s:
        yield Finding(
            "clock",
            FAIL,
            "says a time before this software was made",
            "see `timedatectl timesync-status`: a time server has to be reached",
        )
    elif clock.trusted:
        yield Finding(
            "clock",
            WARN,
            'is believed whatever the kernel says (clock.trust = "always")',
            'set it to "kernel" on a device that people are billed by',
        )
    elif clock.status == "S":
        yield Finding("clock", OK, f"synchronised{'; a clock chip besides' if clock.rtc else ''}")
    elif clock.status == "I":
        yield Finding(
            "clock",
            WARN,
            "set by its chip, not synchronised",
            "see `timedatectl timesync-status`: a time server has to be reached",
        )
    else:
        yield Finding(
            "clock",
            FAIL,
            f"not synchronised{'' if clock.rtc else ', and no clock chip'}: nothing is sealed",
            "see `timedatectl timesync-status`: a time server has to be reached",
        )


# --- the card -----------------------------------------------------------------------------------


@_rule("card", "card")
def _card(card: Card, _: Facts) -> Iterator[Finding]:
    failing = "it may be failing: copy the account, replace the card"
    if "ro" in card.options:
        yield Finding("card", FAIL, f"is mounted read-only ({card.kind})", failing)
    if card.kind in {"tmpfs", "ramfs", "overlay"}:
        yield Finding(
            "card",
            FAIL if card.kind != "overlay" else WARN,
            f"the account is on {card.kind}: it does not outlast a failure of power",
            "put the account on the card: StateDirectory, or --state",
        )
    if card.kind in {"vfat", "exfat", "msdos"}:
        yield Finding("card", FAIL, f"the account is on {card.kind}", "put it on ext4")
    if card.errors > 0:
        yield Finding(
            "card", WARN, f"its filesystem has noted {card.errors} errors", f"fsck; {failing}"
        )
    free = max(0, card.free_bytes - card.reserve_bytes)
    days = free // card.bytes_a_day if card.bytes_a_day else 0
    told = f"{card.free_bytes // 1_000_000} MB free, samples of {days} days"
    if not free:
        yield Finding("card", FAIL, "is full: samples are lost", "`meterctl prune --before DAY`")
    elif days < DAYS_LEFT_MIN:
        yield Finding("card", WARN, told, "`meterctl prune --before DAY`, or a larger card")
    elif 0 <= card.inodes_free < INODES_MIN:
        hint = "look what else writes many files: `df -i`"
        yield Finding("card", WARN, f"room for {card.inodes_free} more files only", hint)
    else:
        yield Finding("card", OK, told)
    if card.open_files is None:
        hint = "put the account on ext4: there whoever runs as meterd cannot shorten the past"
        yield Finding("card", WARN, f"{card.kind} keeps no append-only files", hint)
    elif card.open_files:
        yield Finding(
            "card",
            WARN,
            f"{card.open_files} segments of past days are not append-only",
            "see that the daily timer runs: `systemctl list-timers 'meterd-*'`",
        )
    if isinstance(card.sync_ms, Unseen):
        yield Finding("sync", UNKNOWN, card.sync_ms.reason, WITH_ROOT)
    elif card.sync_ms < 0:
        yield Finding("sync", FAIL, "a small write could not be made durable", failing)
    elif card.sync_ms > SYNC_MS_MAX:
        yield Finding("sync", WARN, f"a small write took {card.sync_ms} ms to be durable", failing)
    else:
        yield Finding("sync", OK, f"a small write is durable after {card.sync_ms} ms")


@_rule("wear", "wear")
def _wear(found: tuple[int, int], _: Facts) -> Iterator[Finding]:
    tenths, end = found
    used = f"{max(0, tenths - 1) * 10} to {tenths * 10} % of its rated life used"
    if tenths > 10 or end > 2:  # noqa: PLR2004 - JESD84-B51: exceeded; 3 is urgent
        yield Finding("wear", FAIL, "the card is at its rated end", "replace the card")
    elif tenths >= WEAR_TENTHS_MAX or end == 2:  # noqa: PLR2004 - JESD84-B51: 80 % consumed
        yield Finding("wear", WARN, used, "replace the card at the next visit")
    else:
        yield Finding("wear", OK, used)


# --- the account and its keys -------------------------------------------------------------------


@_rule("account", "account")
def _account(verdict: Verdict, _: Facts) -> Iterator[Finding]:
    yield _as("account", verdict)


def _opened(secret: Secret) -> int:
    """Return the bits of a mode that open a secret to others than its owner."""
    if secret.encrypted:
        return 0o022
    return 0o037 if secret.credential else 0o077


@_rule("secrets", "secrets")
def _secrets(secrets: tuple[Secret, ...], _: Facts) -> Iterator[Finding]:
    for secret in secrets:
        if not secret.there:
            if secret.needed:
                yield Finding(
                    secret.name, FAIL, f"there is no {secret.path}", f"`{secret.make}` makes it"
                )
        elif secret.mode & _opened(secret):
            done = "changed" if secret.encrypted else "read or changed"
            yield Finding(
                secret.name,
                FAIL,
                f"{secret.path} can be {done} by others (mode {secret.mode:04o})",
                f"`chmod 600 {secret.path}`, and take a new key if others use this machine",
            )
        else:
            yield Finding(secret.name, OK, f"{secret.path} (mode {secret.mode:04o})")


@_rule("vault", "vault")
def _vault(vault: Vault, _: Facts) -> Iterator[Finding]:
    if isinstance(vault.opens, Unseen):
        yield Finding("vault", UNKNOWN, vault.opens.reason, WITH_ROOT)
    else:
        yield _as("vault", vault.opens)
    if vault.board_bytes:
        yield Finding("vault board", OK, "a copied card does not open on another board")
    elif vault.board_bytes == 0:
        yield Finding(
            "vault board",
            WARN,
            "the board has no key of its own: who has the whole card has the vault",
            "write one to its one-time programmable memory; it can be done once",
        )
    elif vault.model:
        yield Finding("vault board", UNKNOWN, "nobody has asked the board for its own key")


@_rule("software", "software")
def _software(verdict: Verdict, facts: Facts) -> Iterator[Finding]:
    yield _as("software", verdict)
    if facts.running is not None and facts.running[0] != facts.running[1]:
        yield Finding(
            "software",
            FAIL,
            f"the daemon runs {facts.running[1][:12]}, installed is {facts.running[0][:12]}",
            "`systemctl restart meterd meterd-peer`",
        )


# --- who else may do what -----------------------------------------------------------------------


@_rule("lockdown", "locked")
def _locked(locked: Locked, _: Facts) -> Iterator[Finding]:
    if not locked.applied:
        yield Finding(
            "lockdown", WARN, "this device is not closed", "`meterctl lockdown plan` shows what"
        )
    elif locked.wrong:
        named = ", ".join(locked.wrong[:2]) + (", …" if len(locked.wrong) > 2 else "")  # noqa: PLR2004
        yield Finding(
            "lockdown",
            FAIL,
            f"{len(locked.wrong)} of {locked.items} items do not hold: {named}",
            "see `meterctl lockdown check`, then `meterctl lockdown apply`",
        )
    else:
        yield Finding("lockdown", OK, f"all {locked.items} items hold")


@_rule("technicians", "technician")
def _technician(technician: Technician, facts: Facts) -> Iterator[Finding]:
    if not technician.ca or not technician.principals:
        missing = "no CA" if not technician.ca else "no list of principals"
        hint = "bring technician-ca.pub, principals and revoked: see `meterctl ca --help`"
        yield Finding("technicians", FAIL, f"{missing} is on the device: nobody can enter", hint)
        return
    if technician.revoked_s is None:
        hint = "bring `revoked` of the CA's folder to /etc/meterd/ssh"
        yield Finding("technicians", FAIL, "no revocation list: nobody can enter", hint)
        return
    days = max(0, facts.now_s - technician.revoked_s) // DAY_S
    told = f"their CA is known; the revocation list is {days} days old"
    if days > REVOKED_DAYS_MAX:
        hint = "bring the present one: `meterctl ca list`, then `revoked` to /etc/meterd/ssh"
        yield Finding("technicians", WARN, told, hint)
    else:
        yield Finding("technicians", OK, told)


@_rule("brokers", "brokers")
def _brokers(brokers: tuple[Broker, ...], _: Facts) -> Iterator[Finding]:
    reached = sum(broker.reached for broker in brokers)
    for broker in brokers:
        if broker.reached:
            yield Finding("broker", OK, f"{broker.url}, says {broker.by}")
        else:
            yield Finding(
                "broker",
                WARN if reached else FAIL,
                f"{broker.url} is not reached: {broker.reason or 'not connected'}",
                "see name, port and network of it, and `journalctl --namespace=meterd -u"
                " meterd-peer`",
            )


@_rule("certificate", "certificate_s")
def _certificate(ends_s: int, facts: Facts) -> Iterator[Finding]:
    days = (ends_s - facts.now_s) // DAY_S
    hint = "`meterctl broker-config ca request`, have it signed, and put it in its place"
    if days < 0:
        yield Finding("certificate", FAIL, f"ended {-days} days ago: no broker lets it in", hint)
    elif days < CERTIFICATE_DAYS_MIN:
        yield Finding("certificate", WARN, f"ends in {days} days", hint)
    else:
        yield Finding("certificate", OK, f"good for {days} days")


@_rule("pins", "pins")
def _pins(verdict: Verdict, _: Facts) -> Iterator[Finding]:
    yield _as("pins", verdict)


@_rule("events", "happened")
def _happened(happened: Happened, _: Facts) -> Iterator[Finding]:
    since = "since the last visit" if happened.since_s is not None else "on the card"
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(happened.kinds.items()))
    yield Finding("events", OK, f"{told or 'none'} {since}")
