"""What an order does, in words and as its fields: whoever signs one should have read both.

>>> change_words(Interval(900), None)
['intervals are 900 s long from then on']
"""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

from meterd.authority.roster import WITNESSED_MAX, faults_max, quorum
from meterd.ctl.show import kwh, register_name, register_unit, utc
from meterd.enrolment import thousands
from meterd.ledger.order import (
    Change,
    Enrol,
    ForkResolve,
    Interval,
    Order,
    Replace,
    Revoke,
    RosterChange,
    Rotate,
)
from meterd.metering.energy import obis_code

if TYPE_CHECKING:
    from meterd.authority.roster import Roster
    from meterd.ledger.account import Node
    from meterd.ledger.block import Energy

VALUE_LETTERS = 64  # a hash or a key; with its name it fits 80 columns
_CALLED = {"incarnation": "chain", "old_incarnation": "old chain", "old_signature": "consent"}


def change_words(change: Change, before: Roster | None) -> list[str]:
    """Return what `change` does, a line each; `before` is the network as it is until then."""
    match change:
        case Enrol():
            return [
                f"enrol {change.meter} ({change.incarnation}): {_rated(change)}",
                _begins(change.registers),
            ]
        case Replace():
            return [
                f"{change.meter} ({change.old_incarnation}) ends with block {change.final_height}",
                f"another device is {change.meter} ({change.incarnation}): {_rated(change)}",
                _begins(change.registers),
            ]
        case Rotate():
            return [
                f"{change.meter} ({change.incarnation}) seals with another key from then on",
                "the key before has consented",
            ]
        case Revoke():
            reason = change.reason or "no reason given"
            return [
                f"the key of {change.meter} ({change.incarnation}) is good no more: {reason}",
                "nobody attests a block of it from then on",
            ]
        case ForkResolve():
            return [
                f"{change.meter} ({change.old_incarnation}) has two histories",
                f"it ends with block {change.base_height}, the last that may be certified",
                f"it goes on as {change.meter} ({change.incarnation}), with another key",
                _begins(change.registers),
            ]
        case RosterChange():
            return _roster_words(change, before)
        case Interval():
            return [f"intervals are {change.interval_s} s long from then on"]


def _rated(change: Enrol | Replace) -> str:
    clamps = "1 mains clamp" if change.mains_clamps == 1 else f"{change.mains_clamps} mains clamps"
    return f"{thousands(change.fuse_ma)} A, {thousands(change.nominal_mv)} V, {clamps}"


def _begins(registers: tuple[Energy, ...]) -> str:
    if not registers:
        return "its registers begin at 0"
    shown = []
    for energy in registers:
        code = obis_code(energy.obis)
        shown.append(f"{register_name(code)} {kwh(energy.last_uj)} {register_unit(code)}")
    return f"its registers begin at {', '.join(shown)}"


def advice(change: Change, before: Roster) -> str:
    """Return what `change` leaves as it is, and should be thought of; or an empty text."""
    if not isinstance(change, Enrol | Replace):
        return ""
    name = change.meter
    node = before.nodes.get(name)
    if node is not None and node.votes:
        return f"{name} votes with the key it had: `meterctl order roster --add` changes that"
    return f"{name} does not vote: `meterctl order roster --vote {name}` would change that"


def _roster_words(change: RosterChange, before: Roster | None) -> list[str]:
    old: dict[str, Node] = dict(before.nodes) if before else {}
    new = {node.name: node for node in change.nodes}
    lines = [f"{name} leaves" for name in sorted(old.keys() - new.keys())]
    for name, node in sorted(new.items()):
        was = old.get(name)
        if was is None:
            lines.append(f"{name} joins as {node.role}, and {_votes(node)}")
            continue
        if (was.sealing_key, was.voting_key) != (node.sealing_key, node.voting_key):
            lines.append(f"{name} has other keys")
        if was.role != node.role:
            lines.append(f"{name}, a {was.role}, is a {node.role}")
        if was.votes != node.votes:
            lines.append(f"{name} {_votes(node)} from then on")
    voters = sum(node.votes for node in change.nodes)
    lines.append(
        f"epoch {change.epoch}: {voters} vote, {quorum(voters)} certify,"
        f" {faults_max(voters)} may lie"
    )
    if voters <= WITNESSED_MAX:
        lines.append("fewer than four vote: blocks are witnessed, not fork-proof")
    return lines


def _votes(node: Node) -> str:
    return "votes" if node.votes else "does not vote"


def fields(order: Order) -> list[tuple[str, str]]:
    """Return an order's fields as they are signed, (name, value); values of at most 64 letters."""
    found = [
        ("genesis", order.genesis.hex()),
        ("order", f"{order.distributor} ({order.incarnation}) {order.height}"),
        ("previous", order.previous.hex()),
        ("time", utc(order.time_s)),
        ("effective", utc(order.effective_from_s)),
        ("kind", order.kind),
    ]
    change: Any = order.change
    for name, value in zip(change._fields, change, strict=True):
        if name == "nodes":
            for node in value:
                found += [
                    ("node", f"{node.name}, {node.role}, {_votes(node)}"),
                    ("  seals", node.sealing_key.hex()),
                    ("  votes" if node.votes else "  says", node.voting_key.hex() or "no key"),
                ]
        elif name == "registers":
            found += [(obis_code(one.obis), f"{one.last_uj} uJ") for one in value]
        else:
            shown = value.hex() if isinstance(value, bytes) else str(value)
            called = _CALLED.get(name, name.replace("_", " "))
            for part in wrap(shown, VALUE_LETTERS) or ["-"]:
                found.append((called, part))
                called = ""
    return found


def told(order: Order) -> dict[str, Any]:
    """Return an order for programs."""
    change: Any = order.change
    body: dict[str, Any] = {}
    for name, value in zip(change._fields, change, strict=True):
        if name == "nodes":
            body[name] = [
                {
                    "name": node.name,
                    "role": node.role,
                    "votes": bool(node.votes),
                    "sealing_key": node.sealing_key.hex(),
                    "voting_key": node.voting_key.hex(),
                }
                for node in value
            ]
        elif name == "registers":
            body[name] = {obis_code(one.obis): {"uj": one.last_uj} for one in value}
        else:
            body[name] = value.hex() if isinstance(value, bytes) else value
    return {
        "height": order.height,
        "kind": order.kind,
        "hash": order.hash.hex(),
        "time_s": order.time_s,
        "effective_from_s": order.effective_from_s,
        "body": body,
    }
