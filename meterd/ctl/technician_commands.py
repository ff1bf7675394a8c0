r"""What a technician may ask for: a closed list of commands, each with a closed list of options.

There is no path, no address and no program in it: what could name a file of the technician's own
choosing is set here, or left out. What is not in the list has no effect.

>>> chosen("meterctl events --last=5")
('events', '--last', '5')
>>> chosen("events --state /etc")
Traceback (most recent call last):
    ...
meterd.errors.UsageError: events does not take '--state' here
"""

from __future__ import annotations

import re
import shlex
from hashlib import sha256
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from meterd.ctl.options import STATE_DEFAULT
from meterd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

LINE_LETTERS_MAX = 2600  # a signed command of `calibrate` is about 500, of many changes 2,500
SHOWN_LETTERS_MAX = 200  # of a line that is refused: enough to see what was tried
VALUE_LETTERS_MAX = 80  # of a value, in the account, which takes 400 letters of a command
OPTIONS_LETTERS = 69  # of a line of the help, behind the names
HINT = "`help` lists what can be asked for here"

_NUMBER = re.compile(r"[0-9]{1,6}")
_KIND = re.compile(r"[a-z][a-z_]{0,31}")
_TIME = re.compile(r"[0-9][0-9TZ:.+-]{3,39}")
_KEY = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9-]{1,32}")
_DECIMAL = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")
_BASE64 = re.compile(r"[A-Za-z0-9_-]{100,2500}={0,2}")
_ANSWERS = re.compile(r"(load=(on|skip)|zero=(off|skip))(,(load=(on|skip)|zero=(off|skip)))?")
_HEAD = re.compile(r"[0-9]{1,12}:[0-9a-f]{64}")

_FORMS = {
    _NUMBER: ("N", "a number of at most six digits"),
    _KIND: ("KIND", "a kind as `events` shows it, such as alarm"),
    _TIME: ("TIME", "a day or a time, as 2026-11-30 or 2026-11-30T18:00"),
    _KEY: ("HEX", "64 hex digits in small letters, as `meterctl key` shows them"),
    _NAME: ("NAME", "1 to 32 of a-z, 0-9 and -"),
    _DECIMAL: ("X", "a number, as 1502.5"),
    _BASE64: ("TEXT", "the line of text that the office has signed"),
    _ANSWERS: ("load=on,zero=off", "load=on or load=skip, zero=off or zero=skip"),
    _HEAD: ("HEIGHT:HEX", "a block as the last line of `head` shows it"),
}
"""How a value is called in the help, and what is expected where it is another."""


class Offer(NamedTuple):
    """A command that a technician has.

    Attributes:
        summary: What it is for.
        options: That it takes, each with what its value may be; None for one without.
        fixed: Arguments that it always gets, of our choosing.
        changes: Whether it changes anything: then the account has it before it is done.
        interactive: Whether it asks: then it has the session's terminal, where there is one.
    """

    summary: str
    options: dict[str, re.Pattern[str] | None]
    fixed: tuple[str, ...] = ()
    changes: bool = False
    interactive: bool = False


_JSON: dict[str, re.Pattern[str] | None] = {"--json": None}
_SPAN = _JSON | {"--from": _TIME, "--to": _TIME, "--last": _NUMBER}

# Without `samples` and `usage`: what a household used, and when, no repair has to know.
OFFERS = {
    "status": Offer("how the meter is", _JSON),
    "doctor": Offer(
        "what is well with this device, and what to do if not", _JSON | {"--quick": None}
    ),
    "watch": Offer("readings as they come; Ctrl-C ends it", _JSON | {"--count": _NUMBER}),
    "registers": Offer("energy counted since the meter was commissioned", _JSON),
    "events": Offer("what has happened", _SPAN | {"--kind": _KIND, "--security": None}),
    "blocks": Offer("sealed intervals", _SPAN),
    "head": Offer("how far the chain is sealed, and certified by others", _JSON),
    "peers": Offer("neighbours, brokers, and everybody's chains", _JSON),
    "verify": Offer(
        "judge the account on the card",
        _JSON | {"--key": _KEY, "--head": _HEAD},
        (STATE_DEFAULT,),
    ),
    "case ack": Offer("let the alarm fall that the case was opened", _JSON, changes=True),
    "relay show": Offer("where the disconnect relay stands", _JSON),
    "vault list": Offer("what the vault holds, by pseudonym and purpose", _JSON),
    "parameters": Offer("what is measured under, and who may change it", _JSON),
    "calibrate": Offer(
        "hold a clamp against a reference; --text applies a signed command",
        _JSON
        | {"--clamp": _NAME, "--reference-w": _DECIMAL, "--reference-wh": _DECIMAL}
        | {"--seconds": _NUMBER, "--text": _BASE64},
        changes=True,
    ),
    "commission": Offer(
        "take a meter into service; it asks, or --answers load=on,zero=off",
        _JSON
        | {"--check": None, "--answers": _ANSWERS, "--seconds": _NUMBER}
        | {"--yes": None, "--again": None},
        changes=True,
        interactive=True,
    ),
    "replace": Offer(
        "where this device's chain ends, and what takes its place",
        _JSON,
        ("old", "--state", STATE_DEFAULT),
    ),
    "report": Offer("a sealed file for the office; send it to a file", {"--since": _TIME}),
    "version": Offer("release and software id", {}, ()),
}
HELP = "help"


def chosen(line: str) -> tuple[str, ...]:
    """Return the arguments of `meterctl` that a line asks for; `("help",)` for help.

    Args:
        line: As it was typed, or sent; the word `meterctl` may stand before it.

    Raises:
        UsageError: It asks for anything else.
    """
    if len(line) > LINE_LETTERS_MAX or not line.isascii() or not line.isprintable():
        raise UsageError(
            f"expected one line of at most {LINE_LETTERS_MAX} plain letters", hint=HINT
        )
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"a quote is left open: {shown(line)}", hint=HINT) from error
    if words[:1] == ["meterctl"]:
        words = words[1:]
    if words == [HELP]:
        return (HELP,)
    name = name_of(words)
    offer, named = OFFERS.get(name), name.split()
    if offer is None or words[: len(named)] != named:
        raise UsageError(f"there is no command {shown(name)} here", hint=HINT)
    return (
        *(["--version"] if name == "version" else named),
        *offer.fixed,
        *_options(name, offer, words[len(named) :]),
    )


def name_of(words: Sequence[str]) -> str:
    """Return the command that words begin with: of two words, where there is such a one.

    >>> name_of(("case", "ack", "--json")), name_of(("status", "--json")), name_of(())
    ('case ack', 'status', '')
    """
    two = " ".join(words[:2])
    return two if two in OFFERS else " ".join(words[:1])


def changes(arguments: Sequence[str]) -> bool:
    """Return whether what `chosen` returned changes anything."""
    offer = OFFERS.get(name_of(arguments))
    return offer is not None and offer.changes


def recorded(arguments: Sequence[str]) -> str:
    """Return what `chosen` returned as the account has it, which is for ever, and has bounds.

    A signed command that is taken is in the account whole, in an event of its own.

    >>> recorded(("calibrate", "--text", "0o" * 100))[:39]
    'calibrate --text 0o0o0o0o0o0o0o0o...(20'
    """
    return " ".join(
        word
        if len(word) <= VALUE_LETTERS_MAX
        else f"{word[:16]}...({len(word)} letters, SHA-256 {sha256(word.encode()).hexdigest()})"
        for word in arguments
    )


def asks(arguments: Sequence[str]) -> bool:
    """Return whether what `chosen` returned may ask something at the terminal."""
    offer = OFFERS.get(name_of(arguments))
    return offer is not None and offer.interactive


def _options(name: str, offer: Offer, words: list[str]) -> list[str]:
    """Return the options in `words`, each apart from its value and each in the list."""
    taken: list[str] = []
    rest = iter(words)
    for word in rest:
        option, has_value, value = word.partition("=")
        if option not in offer.options:
            raise UsageError(f"{name} does not take {shown(option)} here", hint=HINT)
        pattern = offer.options[option]
        if pattern is None:
            if has_value:
                raise UsageError(f"{option} takes no value", hint=HINT)
            taken.append(option)
            continue
        value = value if has_value else next(rest, "")
        if not pattern.fullmatch(value):
            expected = f"expected is {_FORMS[pattern][1]}"
            raise UsageError(f"{option} does not take {shown(value)}", hint=expected)
        taken += [option, value]
    return taken


def shown(text: str) -> str:
    r"""Return what was typed for people to see and for the journal: cut, and nothing in it unseen.

    >>> shown("a\nb"), shown("x" * 999)[-6:]
    ("'a\\nb'", "xxxx'…")
    """
    if len(text) <= SHOWN_LETTERS_MAX:
        return ascii(text)
    return ascii(text[:SHOWN_LETTERS_MAX]) + "…"


def help_lines() -> list[str]:
    """Return what can be asked for, a line each."""
    lines = []
    for name, offer in OFFERS.items():
        options = " ".join(
            f"[{option}]" if pattern is None else f"[{option} {_FORMS[pattern][0]}]"
            for option, pattern in offer.options.items()
        )
        lines.append(f"{name:10} {offer.summary}")
        # An option and its value stay together.
        bound = re.sub(r" (?!\[)", "\N{NO-BREAK SPACE}", options)
        parts = wrap(bound, OPTIONS_LETTERS)
        lines += [f"{'':10} {part}".replace("\N{NO-BREAK SPACE}", " ") for part in parts]
    return [*lines, f"{HELP:10} this list", f"{'exit':10} end the session"]
