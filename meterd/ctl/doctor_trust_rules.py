"""What vouches for the account, and who else may do what: rules of `meterctl doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.ctl.advice import WITH_ROOT
from meterd.ctl.doctor_facts import Unseen
from meterd.ctl.doctor_findings import FAIL, OK, UNKNOWN, WARN, Finding, Rule, ruling, verdict_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.ctl.doctor_facts import (
        Broker,
        Facts,
        Happened,
        Locked,
        Secret,
        Technician,
        Vault,
        Verdict,
    )

DAY_S = 86_400
CERTIFICATE_DAYS_MIN = 30  # as long as a visit may be away
REVOKED_DAYS_MAX = 90  # technicians' certificates live a week at most: older lists do little harm

RULES: list[Rule] = []  # in the order in which a technician would look
_rule = ruling(RULES)


# --- the account and its keys -------------------------------------------------------------------


@_rule("account", "account")
def _account(verdict: Verdict, _: Facts) -> Iterator[Finding]:
    yield verdict_of("account", verdict)


def _opened(secret: Secret) -> int:
    """Return the bits of a mode that open a secret to others than its owner."""
    if secret.encrypted:
        return 0o022
    return 0o037 if secret.credential else 0o077


@_rule("secrets", "secrets")
def _secrets(secrets: tuple[Secret, ...], _: Facts) -> Iterator[Finding]:
    for secret in secrets:
        if not secret.there:
            if secret.needed:
                yield Finding(
                    secret.name, FAIL, f"there is no {secret.path}", f"`{secret.make}` makes it"
                )
        elif secret.mode & _opened(secret):
            done = "changed" if secret.encrypted else "read or changed"
            yield Finding(
                secret.name,
                FAIL,
                f"{secret.path} can be {done} by others (mode {secret.mode:04o})",
                f"`chmod 600 {secret.path}`, and take a new key if others use this machine",
            )
        else:
            yield Finding(secret.name, OK, f"{secret.path} (mode {secret.mode:04o})")


@_rule("vault", "vault")
def _vault(vault: Vault, _: Facts) -> Iterator[Finding]:
    if isinstance(vault.opens, Unseen):
        yield Finding("vault", UNKNOWN, vault.opens.reason, WITH_ROOT)
    else:
        yield verdict_of("vault", vault.opens)
    if vault.board_bytes:
        yield Finding("vault board", OK, "a copied card does not open on another board")
    elif vault.board_bytes == 0:
        yield Finding(
            "vault board",
            WARN,
            "the board has no key of its own: who has the whole card has the vault",
            "write one to its one-time programmable memory; it can be done once",
        )
    elif vault.model:
        yield Finding("vault board", UNKNOWN, "nobody has asked the board for its own key")


@_rule("software", "software")
def _software(verdict: Verdict, facts: Facts) -> Iterator[Finding]:
    yield verdict_of("software", verdict)
    if facts.running is not None and facts.running[0] != facts.running[1]:
        yield Finding(
            "software",
            FAIL,
            f"the daemon runs {facts.running[1][:12]}, installed is {facts.running[0][:12]}",
            "`systemctl restart meterd meterd-peer`",
        )


# --- who else may do what -----------------------------------------------------------------------


@_rule("lockdown", "locked")
def _locked(locked: Locked, _: Facts) -> Iterator[Finding]:
    if not locked.applied:
        yield Finding(
            "lockdown", WARN, "this device is not closed", "`meterctl lockdown plan` shows what"
        )
    elif locked.wrong:
        named = ", ".join(locked.wrong[:2]) + (", …" if len(locked.wrong) > 2 else "")  # noqa: PLR2004
        yield Finding(
            "lockdown",
            FAIL,
            f"{len(locked.wrong)} of {locked.items} items do not hold: {named}",
            "see `meterctl lockdown check`, then `meterctl lockdown apply`",
        )
    else:
        yield Finding("lockdown", OK, f"all {locked.items} items hold")


@_rule("technicians", "technician")
def _technician(technician: Technician, facts: Facts) -> Iterator[Finding]:
    if not technician.ca or not technician.principals:
        missing = "no CA" if not technician.ca else "no list of principals"
        hint = "bring technician-ca.pub, principals and revoked: see `meterctl ca --help`"
        yield Finding("technicians", FAIL, f"{missing} is on the device: nobody can enter", hint)
        return
    if technician.revoked_s is None:
        hint = "bring `revoked` of the CA's folder to /etc/meterd/ssh"
        yield Finding("technicians", FAIL, "no revocation list: nobody can enter", hint)
        return
    days = max(0, facts.now_s - technician.revoked_s) // DAY_S
    told = f"their CA is known; the revocation list is {days} days old"
    if days > REVOKED_DAYS_MAX:
        hint = "bring the present one: `meterctl ca list`, then `revoked` to /etc/meterd/ssh"
        yield Finding("technicians", WARN, told, hint)
    else:
        yield Finding("technicians", OK, told)


@_rule("brokers", "brokers")
def _brokers(brokers: tuple[Broker, ...], _: Facts) -> Iterator[Finding]:
    reached = sum(broker.reached for broker in brokers)
    for broker in brokers:
        if broker.reached:
            yield Finding("broker", OK, f"{broker.url}, says {broker.by}")
        else:
            yield Finding(
                "broker",
                WARN if reached else FAIL,
                f"{broker.url} is not reached: {broker.reason or 'not connected'}",
                "see name, port and network of it, and `journalctl --namespace=meterd -u"
                " meterd-peer`",
            )


@_rule("certificate", "certificate_s")
def _certificate(ends_s: int, facts: Facts) -> Iterator[Finding]:
    days = (ends_s - facts.now_s) // DAY_S
    hint = "`meterctl broker-config ca request`, have it signed, and put it in its place"
    if days < 0:
        yield Finding("certificate", FAIL, f"ended {-days} days ago: no broker lets it in", hint)
    elif days < CERTIFICATE_DAYS_MIN:
        yield Finding("certificate", WARN, f"ends in {days} days", hint)
    else:
        yield Finding("certificate", OK, f"good for {days} days")


@_rule("pins", "pins")
def _pins(verdict: Verdict, _: Facts) -> Iterator[Finding]:
    yield verdict_of("pins", verdict)


@_rule("events", "happened")
def _happened(happened: Happened, _: Facts) -> Iterator[Finding]:
    since = "since the last visit" if happened.since_s is not None else "on the card"
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(happened.kinds.items()))
    yield Finding("events", OK, f"{told or 'none'} {since}")
