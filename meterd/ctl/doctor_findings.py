"""What a check of `meterctl doctor` comes to, and how a rule is told from a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meterd.ctl.doctor_facts import Facts, Verdict

OK, WARN, FAIL, UNKNOWN = "ok", "warn", "fail", "unknown"
VERDICTS = (FAIL, WARN, UNKNOWN, OK)  # as they matter


class Finding(NamedTuple):
    """What one check came to.

    Attributes:
        check: Its name, a word or two.
        verdict: `ok`, `warn`, `fail` or `unknown`.
        found: What was found, a clause.
        todo: What to do, a clause; empty where there is nothing to do.
    """

    check: str
    verdict: str
    found: str
    todo: str = ""


class Rule(NamedTuple):
    """What one fact means.

    Attributes:
        check: What its finding is called where the fact could not be seen.
        fact: The field of `Facts`.
        finds: Yields findings; called where the fact was seen.
    """

    check: str
    fact: str
    finds: Callable[[Any, Facts], Iterator[Finding]]


def ruling(rules: list[Rule]) -> Callable[[str, str], Callable[[Any], Any]]:
    """Return a decorator, of a check and a fact, that puts a function behind these rules."""

    def rule(check: str, fact: str) -> Callable[[Any], Any]:
        def keep(finds: Callable[[Any, Facts], Iterator[Finding]]) -> object:
            rules.append(Rule(check, fact, finds))
            return finds

        return keep

    return rule


def verdict_of(check: str, verdict: Verdict, bad: str = FAIL) -> Finding:
    """Return what somebody else's verdict comes to; one that is not good is as bad as is said."""
    if verdict.good:
        return Finding(check, OK, verdict.told)
    return Finding(check, bad, verdict.told, verdict.hint)
