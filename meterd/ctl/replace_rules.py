r"""What is known of a chain that is to end, whether its device may go, and what the office types.

Nothing here opens, asks or waits. The office's lines name no last block: `meterctl order replace`
finds it by what all neighbours say, and an order that ends a chain before a block that some know to
be certified is never in force. What is known here is there to be compared with what it shows.

>>> commands = office_lines(END)
>>> print("\n".join(commands))
meterctl order revoke --meter house-4 --incarnation 1 --reason replaced
meterctl order list
meterctl order replace house-4-2.toml
>>> unsafe(END), unsafe(END._replace(certified=(8, "")))
([], ['1 block is not certified yet: nobody else is sure to hold it'])
>>> unsafe(END._replace(by=["house-4"]))
['it alone vouches for its blocks: copy the account before the card goes']
"""

from __future__ import annotations

import re
import shlex
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.ctl.show import COLUMNS, count, kwh, register_name, register_unit, utc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REASON = "replaced"  # one word: its line may be broken anywhere between words
FOUND_AT = 12  # column of what was found


class End(NamedTuple):
    """Where a chain ends, as far as somebody knows.

    Attributes:
        meter: Whose.
        incarnation: Which of its chains.
        network: Name of its network.
        distributor: Who gives orders in it; empty where nobody does.
        votes: Whether the node has a vote.
        verdict: Of its account: `good`, `bad`, `unreadable`; `held` where a neighbour's blocks,
            which were judged as they came, are all there is.
        reason: Why it is not good, or an empty text.
        last: Height and hash (hex) of the last block; (0, "") where there is none.
        end_s: When that ends, Unix seconds; None where there is none.
        registers: At its end, by code: (µJ, `measured` or `estimated`).
        certified: Height and hash of the last that a quorum vouches for; (0, "") where none is.
        word: `certified`, `witnessed` (fewer than four vote), or `standalone` (nobody does).
        by: Who vouches for it.
        unsealed: µJ by code that the card has counted since the last block.
        open_rows: Rows since then.
        running: Whether its daemon answers.
    """

    meter: str
    incarnation: int
    network: str
    distributor: str
    votes: bool
    verdict: str
    reason: str
    last: tuple[int, str]
    end_s: int | None
    registers: Mapping[str, tuple[int, str]]
    certified: tuple[int, str]
    word: str
    by: Sequence[str] = ()
    unsealed: Mapping[str, int] = {}
    open_rows: int = 0
    running: bool = False

    @property
    def waiting(self) -> int:
        """Number of blocks that are not certified yet."""
        return 0 if self.word == "standalone" else max(self.last[0] - self.certified[0], 0)

    @property
    def file(self) -> str:
        """Name of the new device's enrolment file."""
        return f"{self.meter}-{self.incarnation + 1}.toml"


END = End(
    *("house-4", 1, "elm-street", "grid-co", False, "good", "", (9, "5f"), 1_170_633_600),
    *({"1-0:1.8.0": (3_600_000_000, "measured")}, (9, "5f"), "certified"),
)


def unsafe(end: End) -> list[str]:
    """Return why the old device may not be taken away and done with yet; empty if it may."""
    found = []
    if end.verdict in {"bad", "unreadable"}:
        found.append(f"its account is {end.verdict}: {end.reason}; keep the card for the office")
    if end.word == "standalone":
        found.append("nobody else holds its blocks: copy the account before the card goes")
    elif list(end.by) == [end.meter]:
        found.append("it alone vouches for its blocks: copy the account before the card goes")
    elif end.waiting:
        verb = "is" if end.waiting == 1 else "are"
        found.append(
            f"{count(end.waiting, 'block')} {verb} not certified yet: nobody else is sure to hold"
            f" {'it' if end.waiting == 1 else 'them'}"
        )
    if not end.distributor:
        found.append(
            f"nobody gives orders in {end.network}: no other device can go on with this chain"
        )
    return found


def office_commands(end: End) -> list[list[str]]:
    """Return what the office types once the old device is off, word by word; none without one."""
    if not end.distributor:
        return []
    chain = ["--meter", end.meter, "--incarnation", str(end.incarnation)]
    commands = [
        ["meterctl", "order", "revoke", *chain, "--reason", REASON],
        ["meterctl", "order", "list"],
        ["meterctl", "order", "replace", end.file],
    ]
    if end.votes:
        commands.append(["meterctl", "order", "roster", "--add", end.file])
    return commands


def office_lines(end: End) -> list[str]:
    """Return the same, to be pasted into a shell."""
    return [shlex.join(command) for command in office_commands(end)]


def device_lines(end: End) -> list[str]:
    """Return what is typed on the new device: before the office's lines, and after."""
    votes = "" if end.votes else " --no-votes"
    return [
        f"meterctl replace new --meter {end.meter} --network {end.network}{votes} -o {end.file}",
        "meterctl network join --genesis genesis.cbor --orders orders --config meterd.toml",
    ]


def hint(end: End) -> str:
    """Return what to do about what `unsafe` says first."""
    if end.verdict in {"bad", "unreadable"}:
        return "the office goes by what neighbours hold: `meterctl replace lost` there"
    if end.word == "standalone" or not end.distributor:
        return "copy the account, then begin another on the new device: `meterctl init`"
    if list(end.by) == [end.meter]:
        return "the office copies the account first, as root; what comes next is as shown"
    return "see who is heard: `meterctl peers`; blocks go out by themselves, then ask again"


def told(end: End) -> dict[str, Any]:
    """Return all of it for programs."""
    reasons = unsafe(end)
    enrol, join = device_lines(end)
    return {
        "meter": end.meter,
        "incarnation": end.incarnation,
        "network": end.network,
        "distributor": end.distributor or None,
        "verdict": end.verdict,
        "sealed": _block(end.last) and {**_named(end.last), "end_s": end.end_s},
        "registers": {
            code: {"uj": uj, "kind": kind} for code, (uj, kind) in sorted(end.registers.items())
        },
        "certified": _block(end.certified) and {**_named(end.certified), "by": list(end.by)},
        "word": end.word,
        "waiting": end.waiting,
        "open_rows": end.open_rows,
        "unsealed_uj": dict(sorted(end.unsealed.items())),
        "running": end.running,
        "safe": not reasons,
        "reasons": reasons,
        "enrol": enrol,
        "office": office_lines(end),
        "join": join,
    }


def _block(place: tuple[int, str]) -> dict[str, Any] | None:
    return _named(place) if place[0] else None


def _named(place: tuple[int, str]) -> dict[str, Any]:
    return {"height": place[0], "hash": place[1]}


def lines(end: End) -> list[str]:
    """Return all of it for people, in 80 columns."""
    orders = f"orders by {end.distributor}" if end.distributor else "nobody gives orders"
    shown = _line("chain", f"{end.meter} ({end.incarnation}) in {end.network}, {orders}")
    verdict = "not seen; this is what a neighbour holds" if end.verdict == "held" else end.verdict
    shown += _line("account", f"{verdict}{f': {end.reason}' if end.reason else ''}")
    shown += _line("last block", str(end.last[0]) if end.last[0] else "none")
    if end.last[0]:
        shown += _line("", end.last[1])
    if end.end_s is not None:
        shown += _line("", f"ends {utc(end.end_s)}")
    for code, (uj, kind) in sorted(end.registers.items()):
        shown += _line("register", f"{_energy(code, uj)}, {kind}")
    shown += _certified(end)
    if end.open_rows:
        energy = ", ".join(_energy(code, uj) for code, uj in sorted(end.unsealed.items()) if uj)
        shown += _line("not sealed", f"{count(end.open_rows, 'row')}, {energy or 'no energy'}")
        todo = "leave it on until its interval ends" if end.running else "start it once more"
        shown += _line("", f"{todo}, and that is sealed too; else it is in no account")
    reasons = unsafe(end)
    shown += _line("safe to go", "no" if reasons else "yes: others vouch for all that is sealed")
    for reason in reasons:
        shown += _line("", reason)
    return [*shown, *_next(end)]


def _certified(end: End) -> list[str]:
    if end.word == "standalone":
        return _line("certified", "by nobody: nobody votes here")
    if not end.certified[0]:
        return _line(end.word, "nothing yet, as far as is known here")
    by = f", by {', '.join(end.by)}" if end.by else ""
    shown = _line(end.word, f"{end.certified[0]}{by}")
    if end.waiting:
        shown += _line("", end.certified[1])
        shown += _line("", f"waiting above it: {count(end.waiting, 'block')}")
    return shown


def _next(end: End) -> list[str]:
    if not end.distributor:
        return []
    enrol, join = device_lines(end)
    height = end.last[0] if not end.waiting else end.certified[0]
    at_the_office = (
        "in the office, once the old device is off for good; `replace` once `list` shows the first"
        f" in force. It shows the last block before it signs: {height} with the hash above, or a"
        " later one. The new chain begins with its registers"
    )
    steps: tuple[tuple[str, list[str]], ...] = (
        (
            "on the new device, whose settings have the same name; the file goes to the office",
            [enrol],
        ),
        (at_the_office, office_lines(end)),
        (
            "on the new device, with genesis and orders of a neighbour's account; then start it",
            [join],
        ),
        ("commission it; and keep the old card: samples and vault are on it alone", []),
    )
    shown = [""]
    for number, (text, commands) in enumerate(steps, start=1):
        shown += wrap(text, COLUMNS, initial_indent=f"{number}. ", subsequent_indent="   ")
        for command in commands:
            shown += _command(command)
    return shown


def _command(text: str) -> list[str]:
    """Return a command over as many lines as it takes, each but the last to be gone on with.

    It is broken before an option: names have no spaces, so that a value stays with its own.
    """
    bound = re.sub(r"(-o|--[a-z-]+) (?=[^-])", "\\1\N{NO-BREAK SPACE}", text)
    parts = wrap(bound, COLUMNS - 10, break_long_words=False, break_on_hyphens=False)
    ends = [" \\"] * (len(parts) - 1) + [""]
    indents = ["     "] + ["         "] * (len(parts) - 1)
    return [
        (indent + part + end).replace("\N{NO-BREAK SPACE}", " ")
        for indent, part, end in zip(indents, parts, ends, strict=True)
    ]


def _energy(code: str, uj: int) -> str:
    return f"{register_name(code)} {kwh(uj)} {register_unit(code)}"


def _line(name: str, text: str) -> list[str]:
    """Return what was found, behind its name on the first line."""
    parts = wrap(text, COLUMNS - FOUND_AT) or [""]
    return [f"{name if not at else '':{FOUND_AT}}{part}".rstrip() for at, part in enumerate(parts)]
