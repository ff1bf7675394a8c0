"""Arbitrary captures for Hypothesis: whatever a board, a cable, a clock and a socket may do."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

START_MS = 1_170_633_600_000  # 2007-02-05 00:00 UTC, a boundary of every interval
LINES_MAX = 60
BAD_LINES = (
    "# RPICT3 v1.1",
    "next interval 5",
    "err 3",
    "11 1.0 2.0",
    "noise\\x80\\xff",
    "7 " * 200,
)

Layout = tuple[str, ...]
_BASIC = ("node", "RP1", "RP2", "RP3", "Irms1", "Irms2", "Irms3", "Vrms")
LAYOUTS: dict[str, Layout] = {
    "rpict3v1": _BASIC,
    "rpict3v1-sketch2": (
        "node",
        *(f"{what}{k}" for k in (1, 2, 3) for what in ("RP", "S", "Irms", "Vrms", "PF")),
    ),
    "rpict3t1": ("node", "EP1", "EP2", "EP3", "T1"),
    "custom": ("F", "Irms2", "RP1", "EP2", "Vrms1", "Irms1", "S1", "RP3", "node"),
}


class Capture(NamedTuple):
    """The lines of a capture file, and settings that fit them."""

    lines: list[str]
    config: str

    def with_interval(self, interval_s: int) -> Capture:
        """Return the same capture, to be cut elsewhere."""
        head, _, rest = self.config.partition("interval_s = ")
        return Capture(self.lines, f"{head}interval_s = {interval_s}\n" + rest.partition("\n")[2])


def decimals(low: int, high: int, places: int) -> st.SearchStrategy[str]:
    """Return texts of decimals between whole numbers, with so many places or none."""
    fine = st.integers(low * 10**places, high * 10**places)
    shown = fine.map(lambda value: f"{value / 10**places:.{places}f}")
    return st.one_of(st.integers(low, high).map(str), shown, st.sampled_from(["0.0", "-0.0"]))


def _field(name: str, current_unit: str) -> st.SearchStrategy[str]:
    if name.startswith("RP"):
        return st.one_of(decimals(-6000, 6000, 2), st.sampled_from(["22079.9999", "-10.00005"]))
    if name.startswith("Irms"):
        return decimals(0, 30_000, 1) if current_unit == "mA" else decimals(0, 30, 3)
    if name.startswith("Vrms"):
        return st.one_of(decimals(210, 250, 2), st.sampled_from(["0.9", "115.0", "114.9"]))
    if name[0] in "SE":
        return decimals(0, 6000, 2)
    return st.just("11" if name == "node" else "0.5")


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, str, str, int]:
    """Return settings, and of these the layout, the unit of current and the polling time."""
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    unit = draw(st.sampled_from(["mA", "A"]))
    polling_ms = draw(st.sampled_from([200, 1000, 5000, 20_000]))
    lines = [
        "[meter]",
        'name = "kitchen-12"',
        f"interval_s = {draw(st.sampled_from([60, 300, 1800]))}",
        f"nominal_v = {draw(st.sampled_from(['230', '229.7']))}",
        f"power_factor = {draw(st.sampled_from(['1.0', '0.87']))}",
        "[board]",
        'port = "/dev/null"',
        f'layout = "{layout}"',
        f"polling_ms = {polling_ms}",
        f'current_unit = "{unit}"',
        f"vest = {draw(st.sampled_from(['240', '1', '0.7']))}",
        *([f"fields = {list(LAYOUTS[layout])}"] if layout == "custom" else []),
        '[clock]\ntrust = "always"',
    ]
    channels = draw(st.integers(1, 3))
    roles = [draw(st.sampled_from(["mains", "circuit", "unused"])) for _ in range(channels)]
    roles[draw(st.integers(0, channels - 1))] = "mains"
    for channel, role in enumerate(roles, start=1):
        lines += [
            "[[clamp]]",
            f'name = "clamp-{channel}"',
            f'role = "{role}"',
            f"reversed = {draw(st.sampled_from(['true', 'false']))}",
            f"scale = {draw(st.sampled_from(['1.0', '1.0005', '0.333']))}",
            f"zero_below_w = {draw(st.sampled_from(['0', '25.5']))}",
        ]
    return "\n".join([*lines, ""]), layout, unit, polling_ms


class _Clock:
    """Both clocks of a capture that is being made up."""

    def __init__(self, wall_ms: int, *, with_boot: bool) -> None:
        self.boot_ms, self.wall_ms, self.with_boot = 40_000, wall_ms, with_boot

    def go(self, elapsed_ms: int) -> None:
        self.boot_ms += elapsed_ms
        self.wall_ms += elapsed_ms

    def stamped(self, raw: str) -> str:
        stamp = f"{self.wall_ms // 1000}.{self.wall_ms % 1000:03d}"
        return f"{stamp}\t{self.boot_ms}\t{raw}" if self.with_boot else f"{stamp}\t{raw}"


@st.composite
def captures(  # noqa: PLR0915 - one list of what may happen to a meter
    draw: st.DrawFn, *, clock_faults: bool = True, restarts: bool = True
) -> Capture:
    """Return a capture with holes, duplicates, bad lines, steps of the clock, restarts."""
    config, layout, unit, polling_ms = draw(configs())
    line = st.tuples(*(_field(name, unit) for name in LAYOUTS[layout])).map(" ".join)
    again = draw(st.lists(line, min_size=1, max_size=4))  # a household repeats its values
    first_ms = START_MS + draw(st.integers(-1, 1)) * draw(st.integers(0, 3_600_000))
    with_boot = clock_faults and draw(st.booleans())
    unset = with_boot and draw(st.booleans())
    clock = _Clock(5_000 if unset else first_ms, with_boot=with_boot)
    happenings = ["reading"] * 12 + ["same", "same", "boundary", "hole", "burst", "bad", "quicker"]
    happenings += ["restart"] if restarts else []
    happenings += ["step", "back", "long step", "set"] if clock_faults else []
    lines: list[str] = []
    beat_ms = polling_ms
    for _ in range(draw(st.integers(1, LINES_MAX))):
        happening = draw(st.sampled_from(happenings))
        raw = draw(st.one_of(st.sampled_from(again), line))
        if happening == "same":
            clock.go(beat_ms * draw(st.sampled_from([0, 1, 2, 3, 8])) // 8)
            raw = lines[-1].rpartition("\t")[2] if lines else raw
        elif happening == "boundary":
            clock.go(60_000 - clock.wall_ms % 60_000)
        elif happening == "hole":
            clock.go(draw(st.integers(1, 30)) * beat_ms * draw(st.sampled_from([1, 10, 1000])))
        elif happening == "quicker":
            beat_ms = polling_ms * draw(st.sampled_from([1, 2, 4, 6])) // 2
            clock.go(beat_ms)
        elif happening == "bad":
            clock.go(beat_ms)
            words = raw.split()
            words[draw(st.integers(1, len(words) - 1))] = draw(st.sampled_from(["nan", "99999.0"]))
            raw = draw(st.sampled_from([" ".join(words), *BAD_LINES]))
        elif happening == "restart":
            lines.append("!restart")
            clock.go(draw(st.sampled_from([1, 700, 60_000, 400_000, 7_200_000])))
            clock.boot_ms = draw(st.sampled_from([0, 40_000]))
        elif happening == "step":
            clock.go(beat_ms)
            clock.wall_ms += draw(st.integers(3_000, 7_200_000))
        elif happening == "back":
            back_ms = max(0, clock.wall_ms - draw(st.integers(3_000, 7_200_000)))
            clock.go(beat_ms)
            clock.wall_ms = back_ms
        elif happening == "long step":
            clock.go(beat_ms)
            clock.wall_ms += draw(st.sampled_from([1, -1])) * 4_000_000_000
            clock.wall_ms = max(0, clock.wall_ms)
            beat_ms = draw(st.sampled_from([beat_ms, 60_000]))  # so that it can stand ten minutes
        elif happening == "set":
            clock.go(beat_ms)
            clock.wall_ms = first_ms if clock.wall_ms < START_MS // 2 else clock.wall_ms
        elif happening == "reading":
            clock.go(max(0, beat_ms + draw(st.sampled_from([0, 0, -1, 7, -beat_ms // 10]))))
        lines.append(clock.stamped(raw))
    return Capture(lines, config)
