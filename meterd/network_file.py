r"""`network.toml` and the enrolment files: who is to found a network, read but not yet believed.

Both have the same tables: [network], [[node]], [[meter]], [[recipient]]; an enrolment file has only
the network's name in the first. Every mistake is kept with its file and line.

>>> read = NetworkFile("elm.toml", '[network]\nname = "Elm"\n[[node]]\nname = "k-12"\nvote = true')
>>> for mistake in read.mistakes():
...     print(mistake)
elm.toml: line 2: network.name: expected 1 to 32 of a-z, 0-9 and -, got 'Elm'
elm.toml: line 3: node.1.role: is missing
elm.toml: line 3: node.1.votes: is missing
elm.toml: line 3: node.1.sealing_key: is missing
elm.toml: line 3: node.1.voting_key: is missing
elm.toml: line 3: node.1.proof_sealing: is missing
elm.toml: line 3: node.1.proof_voting: is missing
elm.toml: line 5: node.1.vote: there is no such key in node
"""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.config import LINE_BYTES_MAX
from meterd.config_lines import Place, lines_of
from meterd.config_rules import TABLES as SETTINGS
from meterd.config_rules import WrongError, key_shown, nearest, shown
from meterd.config_tables import Mistake
from meterd.ledger.account import ROLES
from meterd.ledger.encoding import HASH_BYTES, SIGNATURE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT_BYTES_MAX = 1_048_576  # a genesis has room for some 480 nodes, each 700 bytes here
CLAMPS_MAX = 64  # as many as a line of a board can hold
NAMED_MAX = 100  # mistakes of one file: past that it is another kind of file
_HEX = re.compile(r"[0-9a-fA-F]*")


def _hex(
    length: int, hint: str = "it is in the enrolment file that the device made"
) -> Callable[[object], bytes]:
    def rule(value: object) -> bytes:
        digits = 2 * length
        if not isinstance(value, str) or len(value) != digits or not _HEX.fullmatch(value):
            raise WrongError(f"expected {digits} hex digits, got {shown(value)}", hint)
        return bytes.fromhex(value)

    return rule


def _role(value: object) -> str:
    if not isinstance(value, str) or value not in ROLES:
        hint = nearest(value, ROLES) if isinstance(value, str) else ""
        raise WrongError(f"expected one of {', '.join(ROLES)}, got {shown(value)}", hint)
    return value


def _votes(value: object) -> int:
    if not isinstance(value, bool):
        raise WrongError(f"expected true or false, got {shown(value)}")
    return int(value)


def _whole(least: int, most: int, hint: str = "") -> Callable[[object], int]:
    def rule(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            span = f"{least}" if least == most else f"a whole number from {least} to {most}"
            raise WrongError(f"expected {span}, got {shown(value)}", hint)
        return value

    return rule


def _milli(key: str) -> Callable[[object], int]:
    """The rule of a number in the settings; here in thousandths, as a genesis has it."""

    def rule(value: object) -> int:
        thousandths = SETTINGS["meter"][key](value) * 1000
        if thousandths != int(thousandths):
            raise WrongError(f"expected at most 3 decimals, got {shown(value)}")
        return int(thousandths)

    return rule


_name = SETTINGS["meter"]["name"]

TABLES: dict[str, dict[str, Callable[[object], Any]]] = {
    "network": {
        "name": _name,
        "interval_s": SETTINGS["meter"]["interval_s"],
        "zone": SETTINGS["meter"]["zone"],
        "currency": SETTINGS["meter"]["currency"],
    },
    "node": {
        "name": _name,
        "role": _role,
        "votes": _votes,
        "sealing_key": _hex(HASH_BYTES),
        "voting_key": _hex(HASH_BYTES),
        "proof_sealing": _hex(SIGNATURE_BYTES),
        "proof_voting": _hex(SIGNATURE_BYTES),
    },
    "meter": {
        "name": _name,
        "fuse_a": _milli("fuse_a"),
        "nominal_v": _milli("nominal_v"),
        "mains_clamps": _whole(1, CLAMPS_MAX),
        "incarnation": _whole(1, 1, "the first chain of each is founded; orders open later ones"),
    },
    "recipient": {"name": _name, "role": _name, "key": _hex(HASH_BYTES, "an X25519 public key")},
}
"""The rule of every key, by table and key. All but `network` are lists of tables."""

OPTIONAL = frozenset({("meter", "incarnation")})


class FileMistake(NamedTuple):
    """A mistake and the file that it is in; no file where it is in all of them together."""

    file: str
    mistake: Mistake

    def __str__(self) -> str:
        """File, line, key and problem, as one clause."""
        return f"{self.file}: {self.mistake}" if self.file else str(self.mistake)


class Entry(NamedTuple):
    """One [[table]]: its good values, and where it is, to tell what is found wrong later."""

    values: dict[str, Any]
    file: NetworkFile
    place: Place

    def wrong(self, key: str, problem: str, hint: str = "") -> None:
        """Note a mistake in `key`, or in all of it where `key` is empty."""
        self.file.wrong((*self.place, key) if key else self.place, problem, hint)

    @property
    def where(self) -> str:
        """File and line, as another entry's mistake refers to it."""
        line = self.file.line(self.place)
        return f"{self.file.source}, line {line}" if line else self.file.source


class NetworkFile:
    """One file, read.

    Attributes:
        source: What the file is called in mistakes.
        network: Good values of [network].
        nodes: The [[node]] tables.
        meters: The [[meter]] tables.
        recipients: The [[recipient]] tables.
        was_read: Whether it is TOML at all; else there is nothing in the others.
    """

    def __init__(self, source: str, text: str) -> None:
        """Read `text`, from outside and unchecked; `mistakes` tells what is wrong with it."""
        self.source = source
        self._found: list[tuple[Place, Mistake]] = []
        self._lines: dict[Place, int] = {}
        tables = self._tables(text)
        self.was_read = not self._found
        for name in tables:
            if name not in TABLES:
                self.wrong((name,), "there is no such table", nearest(name, TABLES))
        network = tables.get("network", {})
        self.network = self._values(network, ("network",), "network")
        self.nodes, self.meters, self.recipients = (
            self._entries(tables, name) for name in ("node", "meter", "recipient")
        )

    def wrong(self, place: Place, problem: str, hint: str = "", *, warning: bool = False) -> None:
        """Note a mistake at `place`."""
        key = ".".join(map(key_shown, place))
        self._found.append((place, Mistake(key, 0, problem, hint, warning)))

    def line(self, place: Place) -> int:
        """Return the line of `place`, or of what is around it; 0 where there is none."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 0)

    def mistakes(self) -> list[FileMistake]:
        """Return all that is wrong with the file, by line."""
        found = [
            mistake if mistake.line else mistake._replace(line=self.line(place))
            for place, mistake in self._found
        ]
        found.sort(key=lambda mistake: (mistake.line == 0, mistake.line))
        return [FileMistake(self.source, mistake) for mistake in found[:NAMED_MAX]]

    def _tables(self, text: str) -> dict[str, Any]:
        if len(text.encode(errors="replace")) > TEXT_BYTES_MAX:
            self._syntax(0, f"longer than {TEXT_BYTES_MAX} bytes", "is it a network's file?")
            return {}
        for number, line in enumerate(text.split("\n"), 1):
            if len(line.encode(errors="replace")) > LINE_BYTES_MAX:
                self._syntax(number, f"the line is longer than {LINE_BYTES_MAX} bytes")
                return {}
        try:
            tables = tomllib.loads(text, parse_float=Decimal)
        except (ValueError, ArithmeticError, RecursionError) as error:
            problem, _, where = str(error).partition(" (at ")
            at = re.match(r"line (\d+)", where)
            hint = "text needs quotes, a table [brackets], and no key may stand twice in a table"
            self._syntax(int(at[1]) if at else 0, f"not TOML: {problem}", hint)
            return {}
        self._lines = lines_of(text)
        return tables

    def _syntax(self, line: int, problem: str, hint: str = "") -> None:
        self._found.append(((), Mistake("", line, problem, hint)))

    def _entries(self, tables: dict[str, Any], name: str) -> list[Entry]:
        entries = tables.get(name, [])
        if not isinstance(entries, list):
            self.wrong((name,), "expected a list of tables", f"write [[{name}]], in two brackets")
            return []
        return [
            Entry(self._values(entry, (name, k), name), self, (name, k))
            for k, entry in enumerate(entries)
        ]

    def _values(self, table: object, place: Place, name: str) -> dict[str, Any]:
        if not isinstance(table, dict):
            header = f"[{name}]" if name == "network" else f"[[{name}]]"
            self.wrong(place, f"expected a table, got {shown(table)}", f"write it below {header}")
            return {}
        values = {}
        for key, value in table.items():
            if key not in TABLES[name]:
                hint = nearest(key, TABLES[name])
                self.wrong((*place, key), f"there is no such key in {name}", hint)
                continue
            try:
                values[key] = TABLES[name][key](value)
            except WrongError as error:
                self.wrong((*place, key), *error.args)
        if name != "network":
            for key in TABLES[name]:
                if key not in table and (name, key) not in OPTIONAL:
                    self.wrong((*place, key), "is missing", f"add `{key} = …` to [[{name}]]")
        return values
