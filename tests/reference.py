"""What a meter must make of a capture, reckoned again: in fractions, from the documents alone.

It shares no code with meterd. It reads a whole capture, works out with hindsight where each reading
lies in wall time, and only then cuts; energy is a `Fraction` of a microjoule until a register is
read. Where the documents leave a number open, it stands below, with its reason.

>>> found = reckon(
...     ["0\\t10000\\t11 2000 0 0 8700 0 0 230", "5\\t15000\\t11 2001 0 0 8700 0 0 230"],
...     '[meter]\\n[board]\\n[[clamp]]\\nname = "mains"\\nrole = "mains"\\n',
... )
>>> found.registers["1-0:1.8.0"], found.blocks
(10002500000, [])
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from statistics import median
from typing import Any

STEP_MS = 2000  # a smaller difference is the rounding of whole seconds, or a clock that is slewed
HELD_MS = 24 * 3600 * 1000  # "a forward step above 24 h places nothing"
STANDS_MS = 10 * 60 * 1000  # "until it has stood synchronised for 10 minutes"
WITHOUT_TIME_MS = 3600 * 1000  # "after 3600 s without, wall time is used"
YEAR_2000_MS = 946_684_800_000  # a capture's clock before it is one that nobody has set
SILENCE_MS_MAX = 2**32 - 1  # a row holds no longer one; the board's beat is learnt anew after it
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")

_THREE = (1, 2, 3)
_SEVEN = tuple(range(1, 8))
LAYOUTS: dict[str, list[list[str]]] = {
    "rpict3v1": [["node", *(f"RP{k}" for k in _THREE), *(f"Irms{k}" for k in _THREE), "Vrms"]],
    "rpict3v1-sketch2": [
        ["node", *(f"{what}{k}" for k in _THREE for what in ("RP", "S", "Irms", "Vrms", "PF"))]
    ],
    "rpict3t1": [
        ["node", "EP1", "EP2", "EP3", *(f"T{k}" for k in range(1, probes + 1))]
        for probes in range(9)
    ],
    "rpict7v1": [["node", *(f"RP{k}" for k in _SEVEN), *(f"Irms{k}" for k in _SEVEN), "Vrms"]],
}


@dataclass(frozen=True, kw_only=True)
class Clamp:
    channel: int
    role: str
    reversed: bool
    scale: Fraction
    zero_below_w: Fraction


@dataclass(frozen=True, kw_only=True)
class Rules:
    interval_s: int
    nominal_v: Fraction
    power_factor: Fraction
    limit_w: Fraction
    alternatives: list[list[str]]
    polling_ms: int
    amps: Fraction
    vest: Fraction
    clamps: list[Clamp]


@dataclass(frozen=True, kw_only=True)
class Good:
    """A good reading: what is integrated, in milli-units."""

    boot_ms: int
    wall_ms: int
    line: bytes
    amounts: tuple[int, ...]
    estimated: bool
    hole: bool = True
    offset_ms: int = 0
    status: str = "S"


@dataclass(frozen=True, kw_only=True)
class Block:
    start_s: int
    end_s: int
    flags: tuple[str, ...]
    measured_ms: int
    status: str
    registers: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Reckoning:
    registers: dict[str, int]
    accepted: int
    dropped: dict[str, int]
    gaps: int
    blocks: list[Block]


def reckon(lines: list[str], config: str) -> Reckoning:
    """Return what the capture `lines` come to under the settings `config`."""
    rules = read_rules(config)
    account = Account(rules.interval_s, register_codes(rules))
    dropped: Counter[str] = Counter()
    accepted = gaps = 0
    for boot in boots(lines, rules.polling_ms):
        good = sift(read_lines(boot, rules, dropped), rules.polling_ms, dropped)
        accepted += len(good)
        gaps += sum(reading.hole for reading in good[1:])
        placed = place(good, account.end_s, rules.interval_s)
        if placed is None:
            account.keep_homeless(good)
        else:
            account.cut(placed)
    return Reckoning(
        registers={code: floor(uj) for code, uj in account.energy_uj.items()},
        accepted=accepted,
        dropped=dict(dropped),
        gaps=gaps,
        blocks=account.blocks,
    )


# --- settings ----------------------------------------------------------------------------------


def read_rules(config: str) -> Rules:
    tables: dict[str, Any] = tomllib.loads(config, parse_float=Fraction)
    meter, board = tables["meter"], tables["board"]
    nominal_v = Fraction(meter.get("nominal_v", 230))
    layout = board.get("layout", "rpict3v1")
    return Rules(
        interval_s=meter.get("interval_s", 1800),
        nominal_v=nominal_v,
        power_factor=Fraction(meter.get("power_factor", 1)),
        limit_w=Fraction(meter.get("fuse_a", 60)) * nominal_v * Fraction(16, 10),
        alternatives=[board["fields"]] if layout == "custom" else LAYOUTS[layout],
        polling_ms=board.get("polling_ms", 5000),
        amps=Fraction(1, 1000) if board.get("current_unit", "mA") == "mA" else Fraction(1),
        vest=Fraction(board.get("vest", 240)),
        clamps=[
            Clamp(
                channel=channel,
                role=clamp["role"],
                reversed=clamp.get("reversed", False),
                scale=Fraction(clamp.get("scale", 1)),
                zero_below_w=Fraction(clamp.get("zero_below_w", 0)),
            )
            for channel, clamp in enumerate(tables["clamp"], start=1)
            if clamp["role"] != "unused"
        ],
    )


def register_codes(rules: Rules) -> list[str]:
    codes = ["1-0:1.8.0", "1-0:2.8.0"]
    if apparent_known(rules):
        codes.append("1-0:9.8.0")
    circuits = sum(clamp.role == "circuit" for clamp in rules.clamps)
    return codes + [f"1-{k}:1.8.0" for k in range(1, circuits + 1)]


def apparent_known(rules: Rules) -> bool:
    return all(
        f"S{clamp.channel}" in fields
        or (f"Irms{clamp.channel}" in fields and {"Vrms", f"Vrms{clamp.channel}"} & set(fields))
        for fields in rules.alternatives
        for clamp in rules.clamps
        if clamp.role == "mains"
    )


# --- a capture's lines -------------------------------------------------------------------------


def boots(lines: list[str], polling_ms: int) -> list[list[tuple[int, int, bytes]]]:
    """Return for each boot its lines: boot clock and wall clock in ms, the board's bytes."""
    found: list[list[tuple[int, int, bytes]]] = [[]]
    for line in lines:
        if line == "!restart":
            found.append([])
            continue
        first, *middle, text = line.split("\t")
        wall_ms = floor(Fraction(first) * 1000 + Fraction(1, 2))
        raw = re.sub(r"\\x([0-9a-fA-F]{2})", lambda byte: chr(int(byte[1], 16)), text)
        boot = found[-1]
        if middle:
            boot_ms = int(middle[0])
        elif not boot:
            boot_ms = 0
        else:
            before_boot_ms, before_wall_ms, _ = boot[-1]
            elapsed_ms = wall_ms - before_wall_ms
            boot_ms = before_boot_ms + (elapsed_ms if elapsed_ms >= 0 else polling_ms)
        boot.append((boot_ms, wall_ms, raw.encode("latin-1")))
    return found


def read_lines(
    boot: list[tuple[int, int, bytes]], rules: Rules, dropped: Counter[str]
) -> list[Good]:
    found = []
    for number, (boot_ms, wall_ms, line) in enumerate(boot):
        said = read_line(line, rules)
        if not isinstance(said, str):
            amounts, estimated = said
            found.append(
                Good(
                    boot_ms=boot_ms,
                    wall_ms=wall_ms,
                    line=line,
                    amounts=amounts,
                    estimated=estimated,
                )
            )
        elif number == 0 and said in {"field_count", "garbage"}:
            dropped["partial"] += 1  # the first line may have begun before the port was opened
        else:
            dropped[said] += 1
    return found


def read_line(line: bytes, rules: Rules) -> tuple[tuple[int, ...], bool] | str:
    """Return what is integrated and whether it is estimated, or why the line is dropped."""
    if len(line) > 256:
        return "oversized"
    text = line.decode("latin-1")
    if text.startswith("#") or re.search(r"\binterval\b", text):
        return "banner"
    if any(not " " <= character <= "~" for character in text.replace("\t", " ")):
        return "garbage"
    if re.search(r"\berr\b", text):
        return "board_error"
    words = re.split(r"[ ,\t]+", text.strip(" ,\t"))
    for names in rules.alternatives:
        if len(names) == len(words):
            return measure(dict(zip(names, words, strict=True)), rules)
    return "field_count"


def measure(line: dict[str, str], rules: Rules) -> tuple[tuple[int, ...], bool] | str:
    used = [(clamp, fields_of(clamp, line, rules)) for clamp in rules.clamps]
    if not all(NUMBER.fullmatch(word) for _, here in used for word in here.values()):
        return "not_a_number"
    net, apparent, circuits, estimated = 0, Fraction(0), [], False
    for clamp, here in used:
        value = {what: Fraction(word) * clamp.scale for what, word in here.items()}
        volts = Fraction(here["volts"]) if "volts" in here else None
        amperes = value["current"] * rules.amps if "current" in here else None
        if amperes is None and "estimate" in here:
            amperes = value["estimate"] / rules.vest
        out = volts is not None and bool(amperes) and volts < rules.nominal_v / 2
        if "power" in here and not out:
            watts = -value["power"] if clamp.reversed else value["power"]
        elif "estimate" in here and not out:
            watts = value["estimate"] / rules.vest * rules.nominal_v * rules.power_factor
        else:
            assert amperes is not None
            watts = rules.nominal_v * amperes * rules.power_factor
        logged = [amperes, volts, value.get("apparent")]
        if abs(watts) > rules.limit_w or not all(fits(one) for one in logged if one is not None):
            return "range"
        milliwatts = 0 if abs(watts) < clamp.zero_below_w else half_away(watts * 1000)
        estimated = estimated or out
        if clamp.role == "circuit":
            circuits.append(max(milliwatts, 0))
            continue
        net += milliwatts
        if out:
            assert amperes is not None
            apparent += rules.nominal_v * amperes
        elif "apparent" in here:
            apparent += value["apparent"]
        elif volts is not None and amperes is not None:
            apparent += volts * amperes
    if not apparent_known(rules):
        return (net, *circuits), estimated
    if not fits(apparent):
        return "range"
    return (net, half_away(apparent * 1000), *circuits), estimated


def fits(amount: Fraction) -> bool:
    """Say whether a current, voltage or apparent power can be logged: 32 bits, in milli-units."""
    return amount >= 0 and half_away(amount * 1000) < 2**32


def fields_of(clamp: Clamp, line: dict[str, str], rules: Rules) -> dict[str, str]:
    """Return the words of a line that a clamp uses, by what they say; no other drops the line."""
    k = clamp.channel
    names = {
        "power": f"RP{k}",
        "estimate": f"EP{k}",
        "current": f"Irms{k}",
        "volts": f"Vrms{k}" if f"Vrms{k}" in line else "Vrms",
        "apparent": f"S{k}",
    }
    if names["power"] in line:
        del names["estimate"]
    if clamp.role != "mains" or not apparent_known(rules):
        del names["apparent"]
    return {what: line[name] for what, name in names.items() if name in line}


def half_away(value: Fraction) -> int:
    """Return the nearest integer, that farther from zero where two are as near."""
    size = floor(abs(value) + Fraction(1, 2))
    return size if value >= 0 else -size


def sift(readings: list[Good], polling_ms: int, dropped: Counter[str]) -> list[Good]:
    """Return the readings that are no duplicates, and which of them follow a hole."""
    kept = readings[:1]
    beats: list[int] = []
    for reading in readings[1:]:
        cadence_ms = Fraction(median(beats[-15:]) if len(beats) >= 3 else polling_ms)
        elapsed_ms = reading.boot_ms - kept[-1].boot_ms
        if reading.line == kept[-1].line and elapsed_ms <= cadence_ms / 4:
            dropped["duplicate"] += 1
            continue
        kept.append(replace(reading, hole=elapsed_ms > 3 * cadence_ms))
        if elapsed_ms > SILENCE_MS_MAX:
            beats.clear()
        elif elapsed_ms:  # two lines that came in one read bear one stamp: that is no beat
            beats.append(elapsed_ms)
    return kept


# --- where readings lie in wall time -----------------------------------------------------------


def place(boot: list[Good], last_end_s: int | None, interval_s: int) -> list[Good] | None:
    """Return a boot's readings with the offset of wall time in force at each; None if never."""

    def offset_ms(reading: Good) -> int:
        return reading.wall_ms - reading.boot_ms

    def usable(reading: Good) -> bool:
        if last_end_s is not None and reading.wall_ms < (last_end_s - interval_s) * 1000:
            return False
        # A capture's clock is trusted from 2000 on, so the rule of the 3600 s never comes into it.
        return reading.wall_ms >= YEAR_2000_MS

    first = next((at for at, reading in enumerate(boot) if usable(reading)), None)
    if first is None:
        return None
    force_ms = offset_ms(boot[first])
    placed = [replace(reading, offset_ms=force_ms, status="I") for reading in boot[:first]]
    at = first
    while at < len(boot):
        here = offset_ms(boot[at])
        if here - force_ms > HELD_MS:
            through, believed_ms = stand(boot, at, force_ms)
            placed += [replace(reading, offset_ms=believed_ms) for reading in boot[at:through]]
            force_ms, at = believed_ms, through
            continue
        if abs(here - force_ms) > STEP_MS:
            force_ms = here
        known = "S" if boot[at].wall_ms >= YEAR_2000_MS else "I"
        placed.append(replace(boot[at], offset_ms=here, status=known))
        at += 1
    return placed


def stand(boot: list[Good], at: int, force_ms: int) -> tuple[int, int]:
    """Return how far a long step holds readings up, and the offset that these are placed by."""
    since = at
    for through in range(at, len(boot)):
        ahead_ms = boot[through].wall_ms - boot[through].boot_ms
        if ahead_ms - force_ms <= HELD_MS:
            return through, force_ms  # it went back: as if nothing had happened
        stood_ms = boot[since].wall_ms - boot[since].boot_ms
        if abs(ahead_ms - stood_ms) > STEP_MS:
            since = through
        elif boot[through].boot_ms - boot[since].boot_ms >= STANDS_MS:
            return through + 1, stood_ms
    return len(boot), force_ms


# --- energy and intervals ----------------------------------------------------------------------


@dataclass
class Account:
    interval_s: int
    codes: list[str]
    blocks: list[Block] = field(default_factory=list)
    energy_uj: dict[str, Fraction] = field(default_factory=dict)
    start_s: int | None = None
    end_s: int | None = None
    rows: int = 0
    measured_ms: int = 0
    flags: set[str] = field(default_factory=set)
    statuses: set[str] = field(default_factory=set)
    first_uj: dict[str, int] = field(default_factory=dict)
    homeless: bool = False

    def __post_init__(self) -> None:
        self.energy_uj = dict.fromkeys(self.codes, Fraction(0))
        self.open_block()

    def open_block(self) -> None:
        self.rows, self.measured_ms, self.flags, self.statuses = 0, 0, set(), set()
        self.first_uj = {code: floor(uj) for code, uj in self.energy_uj.items()}

    def close_block(self, end_s: int) -> None:
        assert self.start_s is not None
        if (
            self.measured_ms > (end_s - self.start_s) * 1000 + 2 * STEP_MS
            and "R" not in self.statuses
        ):
            self.flags.add("clock stepped")  # only by a step can it have measured longer than it is
        worst = next((letter for letter in "RI" if letter in self.statuses), "S")
        self.blocks.append(
            Block(
                start_s=self.start_s,
                end_s=end_s,
                flags=tuple(sorted(self.flags)),
                measured_ms=self.measured_ms,
                status=worst,
                registers=tuple(
                    sorted(
                        (code, self.first_uj[code], floor(uj))
                        for code, uj in self.energy_uj.items()
                    )
                ),
            )
        )
        self.start_s = self.end_s = end_s
        self.open_block()

    @property
    def start_ms(self) -> int:
        assert self.start_s is not None
        return self.start_s * 1000

    @property
    def boundary_s(self) -> int:
        assert self.start_s is not None
        return (self.start_s // self.interval_s + 1) * self.interval_s

    def add(self, early: tuple[int, ...], late: tuple[int, ...], elapsed_ms: int) -> None:
        """Add a trapezoid: the net energy of the mains goes to import or export by its sign."""
        net, *others = [Fraction((a + b) * elapsed_ms, 2) for a, b in zip(early, late, strict=True)]
        self.energy_uj["1-0:1.8.0" if net >= 0 else "1-0:2.8.0"] += abs(net)
        for code, uj in zip(self.codes[2:], others, strict=True):
            self.energy_uj[code] += uj
        self.measured_ms += elapsed_ms

    def keep_homeless(self, boot: list[Good]) -> None:
        """Count a boot that never knew the time: its energy waits for a block to go into."""
        for before, reading in pairwise(boot):
            if not reading.hole:
                self.add(before.amounts, reading.amounts, reading.boot_ms - before.boot_ms)
        for reading in boot:
            self.take(reading)
        self.homeless = self.homeless or bool(boot)

    def cut(self, boot: list[Good]) -> None:
        """Count a boot, and close at its end what is open then."""
        before: Good | None = None
        for reading in boot:
            wall_ms = reading.boot_ms + reading.offset_ms
            if before is None:
                self.arrive(wall_ms, reading.status)
            elif abs(reading.offset_ms - before.offset_ms) > STEP_MS:
                self.step(before, reading)
            if before is not None and not reading.hole:
                self.bridge(before, reading)
            elif wall_ms > self.boundary_s * 1000:
                if self.rows:
                    self.flags.add("gap")
                    self.close_block(self.boundary_s)
                self.arrive(wall_ms, reading.status)
            elif before is not None and (self.rows or wall_ms > self.start_ms):
                self.flags.add("gap")
            self.take(reading)
            self.statuses.add(reading.status)
            if wall_ms == self.boundary_s * 1000:
                self.close_block(self.boundary_s)
            before = reading
        if before is not None and self.rows:
            self.flags.add("partial")
            self.close_block(self.stop_s(before))
        self.open_block()

    def take(self, reading: Good) -> None:
        self.rows += 1
        if reading.estimated:
            self.flags.add("estimated")

    def stop_s(self, last: Good) -> int:
        """Return where a stretch ends that is cut after `last`: its second, rounded up."""
        assert self.start_s is not None
        second = ceil(Fraction(last.boot_ms + last.offset_ms, 1000))
        return min(max(second, self.start_s + 1), self.boundary_s)

    def bridge(self, before: Good, reading: Good) -> None:
        """Add the energy between two readings, one more inserted at each boundary between."""
        at_ms, amounts = before.boot_ms, before.amounts
        whole_ms = reading.boot_ms - before.boot_ms
        while reading.boot_ms + reading.offset_ms > self.boundary_s * 1000:
            boundary_ms = max(self.boundary_s * 1000 - reading.offset_ms, at_ms)
            share = Fraction(boundary_ms - before.boot_ms, whole_ms or 1)
            inserted = tuple(
                p0 + floor((p1 - p0) * share)
                for p0, p1 in zip(before.amounts, reading.amounts, strict=True)
            )
            self.add(amounts, inserted, boundary_ms - at_ms)
            self.statuses.add(reading.status)
            self.close_block(self.boundary_s)
            at_ms, amounts = boundary_ms, inserted
        self.add(amounts, reading.amounts, reading.boot_ms - at_ms)

    def step(self, before: Good, reading: Good) -> None:
        """Wall time was set between two readings: back, the stretch stays open; on, it closes."""
        assert self.start_s is not None
        self.flags.add("clock stepped")
        if reading.offset_ms < before.offset_ms:
            return
        wall_ms = reading.boot_ms + reading.offset_ms
        if not self.rows:
            self.arrive(wall_ms, reading.status)
        elif before.boot_ms + before.offset_ms > self.start_ms:
            if self.stop_s(before) < self.boundary_s:
                self.flags.add("partial")
            self.close_block(self.stop_s(before))
            self.arrive(wall_ms, reading.status)
        elif wall_ms > self.boundary_s * 1000:
            self.close_block(self.boundary_s)
            self.arrive(wall_ms, reading.status)

    def arrive(self, wall_ms: int, status: str) -> None:
        """Open a stretch after an absence: one gap block to the last boundary passed."""
        passed_s = wall_ms // 1000 // self.interval_s * self.interval_s
        if self.end_s is None:
            self.end_s = passed_s
            if not self.homeless:
                self.start_s = passed_s
                if wall_ms > passed_s * 1000:
                    self.flags.add("partial")
                return
        self.start_s = self.end_s
        if self.homeless:
            self.house(wall_ms)
        elif passed_s > self.start_s:
            self.flags.add("gap")
            self.statuses.add(status)
            self.close_block(passed_s)
        if wall_ms > self.start_ms:
            self.flags.add("gap")
        elif wall_ms < self.start_ms - STEP_MS:
            self.flags.add("clock stepped")

    def house(self, wall_ms: int) -> None:
        """Put energy of boots that never knew the time into the gap block, or a part of one."""
        assert self.start_s is not None
        passed_s = wall_ms // 1000 // self.interval_s * self.interval_s
        self.flags.add("gap")
        self.statuses.add("R")
        self.homeless = False
        if passed_s > self.start_s:
            self.close_block(passed_s)
            return
        self.flags.add("partial")
        self.close_block(min(max(wall_ms // 1000, self.start_s + 1), self.boundary_s))
