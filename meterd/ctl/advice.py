r"""What to do, as whoever reads it can: in a technician's session there is no root, and no shell.

What is advised is for root unless it says that it is not: a clause of class `Here` is for the hands
of whoever stands at the meter, and for commands that a session has. So an advice that nobody has
thought about is never told to somebody who cannot follow it.

>>> doable(Here("see `meterctl peers`"), session=True)
'see `meterctl peers`'
>>> doable("`meterctl prune --before DAY`", session=True)
'tell the office; root does it: `meterctl prune --before DAY`'
>>> hint("no such kind", session=True), hint("use root", session=True)
('no such kind', 'tell the office; root does it: use root')
>>> hint("look at the wire; another ratio takes --force", session=True)
'look at the wire; tell the office; root does it: another ratio takes --force'
"""

from __future__ import annotations

import re

from meterd.ctl.technician_commands import OFFERS, chosen
from meterd.errors import UsageError

FOR_ROOT = "tell the office; root does it: "
WITH_ROOT = "run it with sudo"  # where a fact is root's to see
_UNSEEN = "root alone sees it; the office can look"
_COMMAND = re.compile(r"`([^`]+)`")
_ROOT = re.compile(r"\b(sudo|root|account's owner|systemctl)\b|\[gpio")
_OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
_OPTIONS = frozenset(option for offer in OFFERS.values() for option in offer.options)


class Here(str):
    """What to do that takes hands alone, or commands that a technician's session has."""

    __slots__ = ()


def doable(todo: str, *, session: bool) -> str:
    """Return what to do as whoever reads it can do it, or tell others to.

    Args:
        todo: A clause; may be empty.
        session: Whether a technician's session shows it.
    """
    if not session or not todo or isinstance(todo, Here):
        return todo
    return _UNSEEN if todo == WITH_ROOT else FOR_ROOT + todo


def hint(text: str, *, session: bool) -> str:
    """Return an error's hint likewise; it is for root where its words say so.

    Most hints are about what was typed. A clause that names a command or an option which a session
    does not have, or asks for root, is not.
    """
    if not session:
        return text
    clauses = text.split("; ")
    for at, clause in enumerate(clauses):
        if not _possible(clause):
            return "; ".join([*clauses[:at], FOR_ROOT + "; ".join(clauses[at:])])
    return text


def _possible(clause: str) -> bool:
    return not (
        _ROOT.search(clause)
        or set(_OPTION.findall(clause)) - _OPTIONS
        or not all(map(_offered, _COMMAND.findall(clause)))
    )


def _offered(command: str) -> bool:
    try:
        chosen(command)
    except UsageError:
        return False
    return True
