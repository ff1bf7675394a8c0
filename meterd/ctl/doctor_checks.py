"""What facts of a device mean: findings, each with a verdict, what was found, and what to do.

Nothing is looked at here. A rule is about one fact; where that could not be seen, what it finds is
`unknown` and never `ok`, and where it does not apply the rule says nothing.

>>> from meterd.ctl.doctor_facts import Facts, Unseen
>>> for finding in examine(Facts(now_s=1_800_000_000, throttled=0x10000, memory=Unseen("why not"))):
...     print(finding.verdict, finding.check, "-", finding.found)
warn supply - the voltage was too low since the last boot
unknown memory - why not
ok system - 64-bit userland
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.ctl import doctor_machine_rules, doctor_meter_rules, doctor_trust_rules
from meterd.ctl.advice import WITH_ROOT
from meterd.ctl.doctor_facts import Unseen
from meterd.ctl.doctor_findings import FAIL, UNKNOWN, VERDICTS, Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterd.ctl.doctor_facts import Facts

_RULES = (*doctor_meter_rules.RULES, *doctor_machine_rules.RULES, *doctor_trust_rules.RULES)


def examine(facts: Facts) -> list[Finding]:
    """Return what all rules find, in the order in which a technician would look."""
    found: list[Finding] = []
    for check, fact, finds in _RULES:
        value = getattr(facts, fact)
        if isinstance(value, Unseen):
            how = WITH_ROOT if value.reason == "needs root" else ""
            found.append(Finding(check, UNKNOWN, value.reason, how))
        elif value is not None:
            found += finds(value, facts)
    return found


def is_well(findings: Sequence[Finding]) -> bool:
    """Return whether nothing has failed."""
    return all(finding.verdict != FAIL for finding in findings)


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Return how many findings there are of each verdict."""
    return {
        verdict: sum(finding.verdict == verdict for finding in findings) for verdict in VERDICTS
    }
