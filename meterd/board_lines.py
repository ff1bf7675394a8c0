r"""What a clamp board says, worked out from what its clamps see, faults included.

>>> clamp = Channel(power_mw=374_000, current_ma=1600, voltage_mv=243_870)
>>> format_line("rpict3v1", 11, [clamp])
b'11 374.0 0.0 0.0 1600.0 0.0 0.0 243.87\r\n'
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from meterd.household import Channel, Load
from meterd.metering.layout import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NOBODY = Channel(power_mw=0, current_ma=0, voltage_mv=0)  # a clamp round nothing
NO_ADAPTOR_MV = 900  # what a board without a voltage adaptor was seen to say (RPICT3.md)
BANNER = b"# RPICT8 5 boards stack v1.1\r\n"
STRUCTURE = b"\x43\x2d\x7c\x19\xa0\x0b\x00\x03\x0a\x88\x13\xec\x51\xa6\x42\x00\xc0\x1e\x44\xf0\x00"
BAUD_NOISE = bytes.fromhex("000618 1e6066 787e80 86989e e0e6f8 fe")  # 38400 read at 9600

FAULTS: dict[str, float | None] = {
    "silence": 60.0,
    "nan": 0.0,
    "err": 0.0,
    "banner": 0.0,
    "garbage": 0.0,
    "partial": 0.0,
    "duplicate": 0.0,
    "frozen": 600.0,
    "adaptor-out": 600.0,
    "reversed": None,
    "unplug": 10.0,
    "wrong-baud": 60.0,
    "fast": None,
}
"""Seconds of the household's time that each lasts unless told; 0: one line; None: to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """How the simulated board is set.

    Attributes:
        layout: One of `LAYOUTS`; where that has alternatives, the first.
        noise_w: Standard deviation of what is added to each power.
        seed: Of the noise and of what faults say.
    """

    layout: str = "rpict3v1"
    node: int = 11
    polling_ms: int = 5000
    current_unit: str = "mA"
    vest: float = 240.0
    commas: bool = False
    noise_w: float = 0.0
    seed: int = 1


class Fault(NamedTuple):
    """What goes wrong, and when, in milliseconds of the household's time since the start.

    `until_ms` is `at_ms` for a fault of one line, and None for one that stays.
    """

    kind: str
    at_ms: int
    until_ms: int | None


class Spoken(NamedTuple):
    """What the board says at one instant.

    Attributes:
        at_ms: Household's time since the start.
        data: Its bytes.
        plugged: The cable is in; if not, `data` is empty.
    """

    at_ms: int
    data: bytes
    plugged: bool


def parse_fault(text: str) -> Fault:
    """Return the fault that `KIND@SECONDS` or `KIND@SECONDS+LASTING` means.

    >>> parse_fault("silence@90+30")
    Fault(kind='silence', at_ms=90000, until_ms=120000)

    Raises:
        ValueError: It means none.
    """
    kind, _, times = text.partition("@")
    if kind not in FAULTS:
        raise ValueError(f"no fault is called {kind}; there are {', '.join(FAULTS)}")
    at, plus, lasting = times.partition("+")
    at_ms = _milliseconds(at)
    if plus:
        return Fault(kind, at_ms, at_ms + _milliseconds(lasting))
    lasting_s = FAULTS[kind]
    return Fault(kind, at_ms, None if lasting_s is None else at_ms + round(lasting_s * 1000))


def _milliseconds(text: str) -> int:
    try:
        milliseconds = round(float(text) * 1000)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text or 'nothing'} is no number of seconds") from error
    if milliseconds < 0:
        raise ValueError(f"{text} is before the start, in seconds")
    return milliseconds


def format_line(
    layout: str,
    node: int,
    channels: Sequence[Channel],
    *,
    current_unit: str = "mA",
    vest: float = 240.0,
    commas: bool = False,
) -> bytes:
    """Return what a board says, with its line end.

    Args:
        layout: One of `LAYOUTS`; where that has alternatives, the first.
        node: The board's number.
        channels: What its clamps see; those that are missing see nothing, the rest is not told.
        current_unit: `mA` as older firmware has it, or `A`.
        vest: What estimated powers (EP) are a current's multiple of.
        commas: Between the fields, instead of spaces.
    """
    separator = "," if commas else " "
    ask = (*channels, *[NOBODY] * 7)
    texts = [field(ask, node, vest) for field in _fields(layout, current_unit)]
    return (separator.join(texts) + "\r\n").encode("ascii")


@cache
def _fields(
    layout: str, current_unit: str
) -> tuple[Callable[[Sequence[Channel], int, float], str], ...]:
    """Return for each field how it is told, with as many decimals as boards use."""
    amperes = current_unit == "A"
    told: dict[str, Callable[[Channel, float], str]] = {
        "RP": lambda clamp, _: f"{clamp.power_mw / 1000:.1f}",
        "S": lambda clamp, _: f"{clamp.voltage_mv * clamp.current_ma / 1e6:.1f}",
        "Irms": lambda clamp, _: (
            f"{clamp.current_ma / 1000:.3f}" if amperes else f"{clamp.current_ma:.1f}"
        ),
        "Vrms": lambda clamp, _: f"{clamp.voltage_mv / 1000:.2f}",
        "PF": lambda clamp, _: f"{_power_factor(clamp):.3f}",
        "EP": lambda clamp, vest: f"{clamp.current_ma * vest / 1000:.1f}",
    }

    def field(name: str) -> Callable[[Sequence[Channel], int, float], str]:
        if name == "node":
            return lambda _, node, __: str(node)
        quantity = name.rstrip("0123456789")
        at = int(name.removeprefix(quantity) or 1) - 1
        tell = told[quantity]
        return lambda channels, _, vest: tell(channels[at], vest)

    return tuple(field(name) for name in LAYOUTS[layout][0])


def _power_factor(clamp: Channel) -> float:
    apparent = clamp.voltage_mv * clamp.current_ma
    return max(-1.0, min(1.0, clamp.power_mw * 1000 / apparent)) if apparent else 0.0


def lines(
    load: Load,
    board: Board,
    *,
    start_ms: int,
    until_ms: int | None = None,
    faults: Sequence[Fault] = (),
) -> Iterator[Spoken]:
    """Yield what the board says, one polling after the other, without an end unless told.

    Args:
        load: What its clamps see.
        board: How it is set.
        start_ms: Household's time of the first line.
        until_ms: Household's time at which it falls silent for good.
        faults: What goes wrong.
    """
    chance = Random(board.seed)  # noqa: S311 (noise, not a secret)
    once = [fault for fault in faults if fault.until_ms == fault.at_ms]
    lasting = [fault for fault in faults if fault.until_ms != fault.at_ms]
    last = b""
    plugged = True
    at_ms = 0
    while until_ms is None or start_ms + at_ms < until_ms:
        kinds = {
            fault.kind
            for fault in lasting
            if fault.at_ms <= at_ms and (fault.until_ms is None or at_ms < fault.until_ms)
        }
        moment = load(start_ms + at_ms)
        if plugged and "unplug" in kinds:
            yield Spoken(at_ms, b"", plugged=False)
        plugged = "unplug" not in kinds
        if moment is not None and plugged and "silence" not in kinds:
            due = [fault for fault in once if fault.at_ms <= at_ms]
            once = [fault for fault in once if fault.at_ms > at_ms]
            kinds.update(fault.kind for fault in due)
            if not ("frozen" in kinds and last):
                channels = [
                    _disturbed(channel, board, kinds, chance) for channel in moment.channels
                ]
                if "reversed" in kinds:
                    channels[0] = channels[0]._replace(power_mw=-channels[0].power_mw)
                last = format_line(
                    board.layout,
                    board.node,
                    channels,
                    current_unit=board.current_unit,
                    vest=board.vest,
                    commas=board.commas,
                )
            yield Spoken(at_ms, _damaged(last, kinds, chance), plugged=True)
        at_ms += board.polling_ms // 2 if "fast" in kinds else board.polling_ms


def _disturbed(channel: Channel, board: Board, kinds: set[str], chance: Random) -> Channel:
    if "adaptor-out" in kinds:
        return Channel(0, channel.current_ma, NO_ADAPTOR_MV)
    if board.noise_w:
        noise_mw = round(chance.gauss(0, board.noise_w * 1000))
        return channel._replace(power_mw=channel.power_mw + noise_mw)
    return channel


def _damaged(line: bytes, kinds: set[str], chance: Random) -> bytes:
    """Return what becomes of a line on its way."""
    if "nan" in kinds:
        node, *values = line.split()
        line = b" ".join([node, *[b"nan"] * len(values)]) + b"\r\n"
    if "err" in kinds:
        line = b"err %d\r\n" % chance.randint(1, 6)
    if "partial" in kinds:
        line = line[len(line) // 2 :]
    if "garbage" in kinds:
        line = chance.randbytes(len(line) - 2).replace(b"\n", b"\xff") + b"\r\n"
    if "banner" in kinds:
        line = BANNER + STRUCTURE + b"\r\n" + line
    if "duplicate" in kinds:
        line += line
    if "wrong-baud" in kinds:
        line = bytes(chance.choices(BAUD_NOISE, k=len(line) // 4))
    return line
