"""Reads the tables of the settings by the rules of their keys, and collects what is wrong.

>>> reader = Reader({"meter": {"nam": "kitchen"}}, "meterd.toml")
>>> reader.table("meter")
{}
>>> [(mistake.key, mistake.problem) for _, mistake in reader.found]
[('meter.nam', 'there is no such key in meter'), ('meter.name', 'is missing')]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.config_rules import REQUIRED, TABLES, WrongError, elsewhere, key_shown, nearest, shown

if TYPE_CHECKING:
    from meterd.config_lines import Place


class Mistake(NamedTuple):
    """Something in the settings that is wrong, or (a warning) that will surprise.

    Attributes:
        key: Dotted, clamps counted from 1: `clamp.2.role`; empty where the TOML itself is broken.
        line: Counted from 1; 0 where a key is missing and its table too.
        problem: What was expected and what came, a clause in lower case.
        hint: What to do, a clause.
        warning: The settings can be used all the same.
    """

    key: str
    line: int
    problem: str
    hint: str = ""
    warning: bool = False

    def __str__(self) -> str:
        """Line, key and problem, as one clause."""
        where = [f"line {self.line}"] if self.line else []
        return ": ".join([*where, *([self.key] if self.key else []), self.problem])


class Reader:
    """Reads tables by their rules, and collects the mistakes with their places.

    Attributes:
        found: In no order; the line of each is not known yet.
    """

    def __init__(self, tables: dict[str, Any], source: str) -> None:
        """Look for tables that there are not.

        Args:
            tables: As `tomllib` gives them, decimals for numbers with a point.
            source: The file's name, for hints.
        """
        self.found: list[tuple[Place, Mistake]] = []
        self._tables = tables
        self._source = source
        for name in tables:
            if name not in TABLES:
                self.wrong((name,), "there is no such table", nearest(name, TABLES))

    def wrong(self, place: Place, problem: str, hint: str = "", *, warning: bool = False) -> None:
        """Keep a mistake: its place, what was expected and what came, what to do."""
        key = ".".join(map(key_shown, place))
        self.found.append((place, Mistake(key, 0, problem, hint, warning)))

    def has(self, name: str, key: str) -> bool:
        """Return whether the table `name` has `key`, with a good value or a bad one."""
        table = self._tables.get(name)
        return isinstance(table, dict) and key in table

    def table(self, name: str) -> dict[str, Any]:
        """Return the good values of the table `name`."""
        return self._values(self._tables.get(name, {}), (name,), name)

    def clamps(self) -> list[dict[str, Any]]:
        """Return the good values of each clamp, in order."""
        clamps = self._tables.get("clamp", [])
        if not isinstance(clamps, list):
            self.wrong(("clamp",), "expected a list of tables", "write [[clamp]], in two brackets")
            return []
        if not clamps:
            hint = f"add [[clamp]] with name and role to {self._source}"
            self.wrong(("clamp",), "no clamp is described", hint)
        return [self._values(clamp, ("clamp", k), "clamp") for k, clamp in enumerate(clamps)]

    def _values(self, table: object, place: Place, name: str) -> dict[str, Any]:
        if not isinstance(table, dict):
            header = "[[clamp]]" if name == "clamp" else f"[{name}]"
            self.wrong(place, f"expected a table, got {shown(table)}", f"write it below {header}")
            return {}
        values = {}
        for key, value in table.items():
            if key not in TABLES[name]:
                self.wrong((*place, key), f"there is no such key in {name}", elsewhere(key, name))
                continue
            try:
                values[key] = TABLES[name][key](value)
            except WrongError as error:
                self.wrong((*place, key), *error.args)
        for key in REQUIRED.get(name, ()):
            if key not in table:
                self.wrong((*place, key), "is missing", f"add `{key} = …` to {name}")
        return values
