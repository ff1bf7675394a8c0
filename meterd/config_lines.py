r"""Where the keys of a TOML text stand: `tomllib` gives no positions.

>>> lines_of('[meter]\nname = "a"\n\n[[clamp]]\n[[clamp]]\nrole = "mains"\n')
{('meter',): 1, ('meter', 'name'): 2, ('clamp', 0): 4, ('clamp', 1): 5, ('clamp', 1, 'role'): 6}
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

Place = tuple[str | int, ...]
"""Names of tables and keys from the outside in; tables of a list by number, from 0."""

PLACE_NAMES_MAX = 3  # `clamp`, its number, `name`: nothing in the settings lies deeper

_PIECE = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|[^\"'#\[\]{}=\n]+"
    r"|.",
    re.DOTALL,
)


def lines_of(text: str) -> dict[Place, int]:
    """Return the line, from 1, of every key and table header in `text`.

    What stands in an inline table or a list, or deeper than the settings go, is not in it: it has
    the line of what is around it.

    Args:
        text: What `tomllib` has read without complaint.
    """
    lines: dict[Place, int] = {}
    counts: dict[Place, int] = {}  # last number of each list of [[tables]]
    table: Place = ()
    statement, line, line_started, depth, in_value = "", 1, 1, 0, False
    for piece in _PIECE.findall(f"{text}\n"):
        if piece == "\n" and depth == 0:
            if statement:
                table = _place((), statement, counts)
                lines.setdefault(table, line_started)
            statement, in_value = "", False
        elif piece == "=" and not in_value:
            in_value = True
            place = _place(table, f"{statement}=0", counts)
            for length in range(len(table) + 1, len(place) + 1):
                lines.setdefault(place[:length], line_started)
            statement = ""
        elif in_value:
            depth += (piece in "[{") - (piece in "]}")
        elif not piece.startswith("#") and (statement or piece.strip()):
            line_started = line_started if statement else line
            statement += piece
        line += piece.count("\n")
    return lines


def _place(table: Place, statement: str, counts: dict[Place, int]) -> Place:
    """Return the place of the one header or key in `statement`, which stands below `table`.

    A [[header]] opens the next table of its list: `counts` follows.
    """
    place = table
    value: Any = tomllib.loads(statement.strip())
    while isinstance(value, dict) and value and len(place) < PLACE_NAMES_MAX:
        ((name, value),) = value.items()
        place = (*place, name)
        if isinstance(value, list):
            counts[place] = counts.get(place, -1) + 1
            value = value[0]
        if place in counts:
            place = (*place, counts[place])
    return place
