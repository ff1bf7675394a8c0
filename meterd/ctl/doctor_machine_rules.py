"""What the computer and its card show: rules of `meterctl doctor`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from meterd.ctl.advice import WITH_ROOT, Here
from meterd.ctl.doctor_facts import Unseen
from meterd.ctl.doctor_findings import FAIL, OK, UNKNOWN, WARN, Finding, Rule, ruling, verdict_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.ctl.doctor_facts import Card, Clock, Facts, Memory, Verdict

DAYS_LEFT_MIN = 30  # as the daemon's own alarm
INODES_MIN = 1000  # a segment a stream and day: a year
SYNC_MS_MAX = 2000  # a good card takes 5 to 50 ms; past this it is worn, or very busy
WEAR_TENTHS_MAX = 8  # 70 to 80 % of its rated life used
CELSIUS_WARN, CELSIUS_MAX = 75, 80  # a Pi slows itself down from 80 on
MEMORY_MIN = 64_000_000  # both processes take some 60 MB; below this the kernel has to choose
KERNEL_MIN = (6, 1)  # Debian 12's: what the units ask of it is there

# Bits of the firmware's answer to get_throttled (Raspberry Pi documentation, vcgencmd).
_NOW = {0: "the voltage is too low", 1: "the clock rate is capped", 2: "it is throttled"}
_SINCE = {16: "the voltage was too low", 17: "the clock rate was capped", 18: "it was throttled"}
_SUPPLY = Here("take the computer's own power supply and a short cable")

RULES: list[Rule] = []  # in the order in which a technician would look
_rule = ruling(RULES)


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
    yield verdict_of("journal", verdict, WARN)


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
