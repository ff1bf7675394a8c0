r"""The settings, checked once and whole: what `load` returns need not be checked again.

Every mistake is found in one go, each with its key, its line and what to do. Numbers are read as
decimals, so that 0.1 is a tenth. A table or key that is left out has the value that
`config/meterd.toml` shows, except those without which nothing can be metered.

>>> settings, mistakes = check('[meter]\nname = "Kitchen"\n[bord]\n', source="meterd.toml")
>>> settings is None
True
>>> for mistake in mistakes:
...     print(mistake)
line 2: meter.name: expected 1 to 32 of a-z, 0-9 and -, got 'Kitchen'
line 3: bord: there is no such table
board.port: is missing
clamp: no clamp is described
>>> mistakes[1].hint
'did you mean `board`?'
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.config_fit import (
    GPIO_PINS,
    INTERVAL_S_DEFAULT,
    LAYOUT_DEFAULT,
    POLLING_MS_DEFAULT,
    check_fit,
    check_network,
)
from meterd.config_lines import Place, lines_of
from meterd.config_tables import Mistake, Reader
from meterd.errors import ConfigError, DeniedError, StorageError
from meterd.metering.reading import BoardRules, Clamp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT_BYTES_MAX = 32_768  # with every comment it is 4 kB; past this it is not settings
LINE_BYTES_MAX = 1024  # tomllib takes the square of a dotted key's length, and a key is on one line
MISTAKES_NAMED = 3  # in the one line of an error; `meterctl config check` shows them all


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSettings:
    """Who the meter is.

    Attributes:
        interval_s: Length of an interval in seconds; divides a day and every offset of `zone`.
        zone: Name in the tz database; only for the genesis of a standalone meter.
        currency: ISO 4217; only for that genesis, too.
    """

    name: str
    interval_s: int = INTERVAL_S_DEFAULT
    zone: str = "UTC"
    currency: str = "EUR"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardSettings:
    """Where the board is, and what to do when it is silent.

    Attributes:
        reset_gpio: BCM number of the pin that resets the board, or None where none is wired.
        silence_s: Seconds without a line until the alarm; 0 stands for three cadences.
    """

    port: str
    polling_ms: int = POLLING_MS_DEFAULT
    reset_gpio: int | None = None
    silence_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSettings:
    """Whether wall time is believed.

    Attributes:
        trust: `kernel` (once it says synchronised) or `always` (replay, tests, demo).
    """

    trust: str = "kernel"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What may be lost and what is kept.

    Attributes:
        commit_s: Seconds of samples that a power failure may take.
        reserve_mb: Space kept free of samples, for blocks and events; MB of 10^6 bytes.
        retain_days: Days that samples of certified blocks are kept; 0 keeps all.
    """

    commit_s: int = 30
    reserve_mb: int = 64
    retain_days: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """Where programs on this machine reach the daemon.

    Attributes:
        socket: Path of the Varlink socket; empty stands for `control` in the state folder.
    """

    socket: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpioSettings:
    """What is wired to the pins besides the board; BCM numbers, None where nothing is.

    Attributes:
        case_switch: Input that says whether the case is open.
        case_open: Level of it while the case is open, `high` or `low`; it is pulled there, so that
            a cut wire is an open case.
        magnet: Input of a switch to ground that a magnet closes.
        led: Output of the status LED.
        button: Input of the technician's button, to ground.
        relay: Output of the disconnect relay.
        relay_closed: Level of it that closes the contact, `high` or `low`.
        debounce_ms: So long a level stands before it counts.
    """

    case_switch: int | None = None
    case_open: str = "high"
    magnet: int | None = None
    led: int | None = None
    button: int | None = None
    relay: int | None = None
    relay_closed: str = "low"
    debounce_ms: int = 50

    @property
    def used(self) -> bool:
        """Whether anything is wired."""
        return any(getattr(self, key) is not None for key in GPIO_PINS)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """How the peer process reaches the neighbours; the metering process knows `line` alone.

    Attributes:
        name: Of a node without a meter; a meter's node is called as the meter.
        brokers: URLs, all used at once; none where there are no neighbours.
        ca: Path of the street's root certificate; with `mqtts` only, as the next two.
        certificate: Path of this device's certificate.
        key: Path of its private key.
        tick_ms: Batches are signed at most so often; 0 signs each attestation at once.
        digest_ms: So often a node says what it holds, give or take half.
        line: Folder of `outbox` and `inbox`; empty stands for $METERD_LINE, or else `line`
            in the state folder.
        store: Path of the peer's database; empty stands for `peer.db` in the state folder.
    """

    name: str = ""
    brokers: tuple[str, ...] = ()
    ca: str = ""
    certificate: str = ""
    key: str = ""
    tick_ms: int = 500
    digest_ms: int = 5000
    line: str = ""
    store: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorSettings:
    """Who timestamps the account's head from outside; neither process of the meter asks it.

    Attributes:
        url: Of a timestamp authority (RFC 3161); empty: nobody is asked.
        ca: Path of its root certificates.
    """

    url: str = ""
    ca: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole file, checked.

    Attributes:
        rules: What turns a line of the board into a reading, built from several tables.
    """

    meter: MeterSettings
    rules: BoardRules
    board: BoardSettings
    clock: ClockSettings
    log: LogSettings
    control: ControlSettings
    network: NetworkSettings = NetworkSettings()
    gpio: GpioSettings = GpioSettings()
    anchor: AnchorSettings = AnchorSettings()


def load(path: Path) -> Settings:
    """Return the settings in the file at `path`. Warnings are `check`'s to tell.

    Raises:
        ConfigError: There is no such file, or it has mistakes: their count and the first of them.
        DeniedError: This user may not read it.
        StorageError: Reading it failed.
    """
    text = _read_text(path)
    settings, mistakes = check(text, source=path.name)
    if settings is None:
        wrong = [mistake for mistake in mistakes if not mistake.warning]
        count = "1 mistake" if len(wrong) == 1 else f"{len(wrong)} mistakes"
        named = "; ".join(str(mistake) for mistake in wrong[:MISTAKES_NAMED])
        more = "; …" if len(wrong) > MISTAKES_NAMED else ""
        see_all = f"run `meterctl config check {path}`"
        raise ConfigError(f"{count} in {path}: {named}{more}", hint=see_all)
    return settings


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(TEXT_BYTES_MAX + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(
            f"there is no settings file {path}",
            hint="write one with `meterctl init`, or name another file",
        ) from error
    except PermissionError as error:
        raise DeniedError(
            f"the settings file {path} may not be read by this user",
            hint=f"check its owner and mode with `ls -l {path}`",
        ) from error
    except OSError as error:
        raise StorageError(f"the settings file {path} cannot be read: {error.strerror}") from error
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not UTF-8 text: line {line} has the byte {data[error.start]:#04x}",
            hint="save it as UTF-8",
        ) from error


def check(text: str, *, source: str) -> tuple[Settings | None, list[Mistake]]:
    """Return the settings that `text` holds, and all that is wrong with it, by line.

    Args:
        text: TOML from outside, unchecked.
        source: The file's name, for hints.

    Returns:
        No settings where one mistake is more than a warning.
    """
    if len(text.encode(errors="replace")) > TEXT_BYTES_MAX:
        problem = f"longer than {TEXT_BYTES_MAX} bytes"
        return None, [Mistake("", 0, problem, f"is {source} a settings file?")]
    for number, line in enumerate(text.split("\n"), 1):
        if len(line.encode(errors="replace")) > LINE_BYTES_MAX:
            problem = f"the line is longer than {LINE_BYTES_MAX} bytes"
            return None, [Mistake("", number, problem, "break it; a list may go over many lines")]
    try:
        tables = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError) as error:
        return None, [_syntax_mistake(text, error)]
    reader = Reader(tables, source)
    settings = _settings(reader)
    lines = lines_of(text) if reader.found else {}
    mistakes = [_placed(place, mistake, lines) for place, mistake in reader.found]
    mistakes.sort(key=lambda mistake: (mistake.line == 0, mistake.line))
    if not all(mistake.warning for mistake in mistakes):
        settings = None
    return settings, mistakes


def settings_of(tables: dict[str, Any]) -> tuple[Settings | None, list[Mistake]]:
    """Return the settings that decoded tables hold, and all that is wrong with them.

    Args:
        tables: As `tomllib` gives them, decimals for numbers with a point; no lines are known.
    """
    reader = Reader(tables, "the settings")
    settings = _settings(reader)
    return settings, [mistake for _, mistake in reader.found]


class NodeSettings(NamedTuple):
    """What the peer process takes from the settings, of a node with a meter or without.

    Attributes:
        name: The node's name.
        network: How it reaches the others.
        clock: Whether wall time is believed.
        metered: Whether the node has a meter.
    """

    name: str
    network: NetworkSettings
    clock: ClockSettings
    metered: bool


def load_node(path: Path) -> NodeSettings:
    """Return what the file at `path` says of a node; board and clamps may be missing.

    Raises:
        ConfigError: There is no such file, or it has mistakes.
        DeniedError: This user may not read it.
        StorageError: Reading it failed.
    """
    text = _read_text(path)
    if re.search(r"^\s*\[board\]", text, re.MULTILINE):
        settings = load(path)
        return NodeSettings(settings.meter.name, settings.network, settings.clock, metered=True)
    try:
        tables = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{path}: {_syntax_mistake(text, error)}") from error
    reader = Reader(tables, path.name)
    network, clock = reader.table("network"), reader.table("clock")
    check_network(reader, network)
    if "name" not in network:
        reader.wrong(("network", "name"), "is missing", "add `name = …` to network")
    if reader.found:
        named = "; ".join(str(mistake) for _, mistake in reader.found[:MISTAKES_NAMED])
        raise ConfigError(f"{len(reader.found)} mistakes in {path}: {named}")
    return NodeSettings(
        network["name"], NetworkSettings(**network), ClockSettings(**clock), metered=False
    )


def parameters(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Return everything that bears on measurement, for the signed parameter record.

    Returns:
        Dotted key and canonical text, in a fixed order: a change of one value changes one pair.
        Numbers have no exponent and no trailing zero; alternatives of a layout are joined by `|`.
    """
    rules = settings.rules
    return (
        ("meter.interval_s", str(settings.meter.interval_s)),
        ("meter.nominal_v", _canonical(rules.nominal_v)),
        ("meter.power_factor", _canonical(rules.power_factor)),
        ("meter.fuse_a", _canonical(rules.fuse_a)),
        ("board.layout", rules.layout),
        ("board.fields", "|".join(" ".join(fields) for fields in rules.fields)),
        ("board.polling_ms", str(rules.polling_ms)),
        ("board.current_unit", rules.current_unit),
        ("board.vest", _canonical(rules.vest)),
        *(pair for k, clamp in enumerate(rules.clamps, 1) for pair in _clamp_parameters(k, clamp)),
        ("clock.trust", settings.clock.trust),
    )


def _clamp_parameters(k: int, clamp: Clamp) -> Iterator[tuple[str, str]]:
    yield f"clamp.{k}.name", clamp.name
    yield f"clamp.{k}.role", clamp.role
    yield f"clamp.{k}.reversed", str(clamp.reversed).lower()
    yield f"clamp.{k}.scale", _canonical(clamp.scale)
    yield f"clamp.{k}.zero_below_w", _canonical(clamp.zero_below_w)


def _canonical(value: Decimal) -> str:
    """Return `value` without exponent and trailing zeros; the ranges keep it below 28 digits."""
    return format(value.normalize(), "f")


_METER_RULES: tuple[str, ...] = ("nominal_v", "power_factor", "fuse_a")
_BOARD_RULES: tuple[str, ...] = ("current_unit", "vest")


def _settings(reader: Reader) -> Settings | None:
    """Return the settings where nothing is wrong."""
    meter, board, clamps = reader.table("meter"), reader.table("board"), reader.clamps()
    clock, log, control = reader.table("clock"), reader.table("log"), reader.table("control")
    network, gpio = reader.table("network"), reader.table("gpio")
    anchor = reader.table("anchor")
    alternatives = check_fit(
        reader, meter=meter, board=board, clamps=clamps, network=network, gpio=gpio, anchor=anchor
    )
    if not all(mistake.warning for _, mistake in reader.found):
        return None
    rules = {key: meter.pop(key) for key in _METER_RULES if key in meter}
    rules |= {key: board.pop(key) for key in _BOARD_RULES if key in board}
    layout = board.pop("layout", LAYOUT_DEFAULT)
    board.pop("fields", None)
    board_settings = BoardSettings(**board)
    return Settings(
        meter=MeterSettings(**meter),
        rules=BoardRules(
            layout=layout,
            fields=alternatives,
            clamps=tuple(Clamp(**clamp) for clamp in clamps),
            polling_ms=board_settings.polling_ms,
            **rules,
        ),
        board=board_settings,
        clock=ClockSettings(**clock),
        log=LogSettings(**log),
        control=ControlSettings(**control),
        network=NetworkSettings(**network),
        gpio=GpioSettings(**gpio),
        anchor=AnchorSettings(**anchor),
    )


def _syntax_mistake(text: str, error: Exception) -> Mistake:
    """Return what the parser did not like, with the line that it named, if it named one."""
    if isinstance(error, RecursionError):
        return Mistake("", 0, "lists or tables lie too deep in one another", "take them apart")
    if isinstance(error, ArithmeticError):
        return Mistake("", 0, "a number is too large to be read", "write it with fewer digits")
    problem, _, where = str(error).partition(" (at ")
    at = re.match(r"line (\d+)", where)
    line = int(at[1]) if at else text.count("\n") + 1 if where.startswith("end") else 0
    hint = "text needs quotes, a table [brackets], and no key may stand twice in a table"
    return Mistake("", line, f"not TOML: {problem[:1].lower()}{problem[1:]}", hint)


def _placed(place: Place, mistake: Mistake, lines: dict[Place, int]) -> Mistake:
    """Return `mistake` with the line of its place, or of what is around it."""
    while place and place not in lines:
        place = place[:-1]
    return mistake._replace(line=lines.get(place, 0))
