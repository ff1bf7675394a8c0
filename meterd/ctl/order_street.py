"""Orders on the whole street: its roster, and the length of its intervals.

Here is what each takes on the command line, and the change that it makes of it.
"""

from __future__ import annotations

import time
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.config_rules import offsets_s
from meterd.ctl.options import add_action, instant, positive
from meterd.ctl.order_enrolments import PROOFS, proven_entry, read_enrolment, read_tables
from meterd.ctl.order_options import add_signing
from meterd.ctl.show import utc
from meterd.errors import ConfigError, UsageError
from meterd.ledger.account import DAY_S, Node
from meterd.ledger.order import Change, Interval, RosterChange
from meterd.network_file import TABLES

if TYPE_CHECKING:
    import argparse

    from meterd.authority.roster import Roster
    from meterd.ctl.order_desk import Desk
    from meterd.enrolment import Enrolment


def add_roster(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Describe `meterctl order roster`."""
    parser = add_action(
        actions,
        "roster",
        "who is a node, and who votes, from the next epoch on",
        """\
FILE lists all nodes: [[node]] with name, role, votes, sealing_key, voting_key,
and the two proofs of its enrolment where its keys are new. Else the present
nodes are taken, and changed as the options say.

examples:
  meterctl order roster --vote house-9 --no-vote house-2
  meterctl order roster --add regulator.toml --remove feeder-1
  meterctl order roster nodes.toml
""",
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a list of all nodes")
    for name, metavar, text in (
        ("--vote", "NAME", "it votes"),
        ("--no-vote", "NAME", "it does not vote"),
        ("--remove", "NAME", "it leaves"),
        ("--add", "FILE", "an enrolment file: a new node, or new keys of one"),
    ):
        parser.add_argument(
            name, action="append", default=[], metavar=metavar, help=f"{text}; may be repeated"
        )
    add_signing(parser)


def roster_change(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    """Return the change of who is a node, and who votes."""
    roster = desk.roster
    named = [*options.vote, *options.no_vote, *options.remove]
    if options.file is not None:
        if named or options.add:
            raise UsageError("a list of all nodes goes without --vote, --no-vote, --remove, --add")
        nodes = _listed(options.file, roster)
    else:
        nodes = dict(roster.nodes)
        for file in options.add:
            node = _node(read_enrolment(Path(file), roster))
            nodes[node.name] = node
        for name in named:
            if name not in nodes or named.count(name) > 1:
                hint = f"known are {', '.join(sorted(nodes)[:20])}"
                raise UsageError(f"no node is {name}, or it is named twice", hint=hint)
        for name in options.remove:
            del nodes[name]
        for votes, names in enumerate((options.no_vote, options.vote)):
            for name in names:
                nodes[name] = _voting(nodes[name], votes)
    if nodes == roster.nodes:
        raise UsageError(
            "that is the roster as it is: there is nothing to order",
            hint="see `meterctl order roster --help`",
        )
    ordered = tuple(nodes[name] for name in sorted(nodes))
    return RosterChange(roster.committee.epoch + 1, ordered), None


def _node(enrolment: Enrolment) -> Node:
    return Node(
        name=enrolment.name,
        role=enrolment.role,
        sealing_key=enrolment.sealing_key,
        voting_key=enrolment.voting_key,
        votes=enrolment.votes,
    )


def _voting(node: Node, votes: int) -> Node:
    return Node(
        name=node.name,
        role=node.role,
        sealing_key=node.sealing_key,
        voting_key=node.voting_key,
        votes=votes,
    )


def _listed(path: Path, roster: Roster) -> dict[str, Node]:
    read = read_tables(path, listing=True)
    if not read.nodes:
        raise ConfigError(f"{path} lists no node", hint="see `meterctl order roster --help`")
    nodes: dict[str, Node] = {}
    for entry in read.nodes:
        values = {key: entry.values[key] for key in TABLES["node"] if key not in PROOFS}
        node = Node(**values)
        before = roster.nodes.get(node.name)
        keys = before and (before.sealing_key, before.voting_key)
        if keys != (node.sealing_key, node.voting_key):
            proven_entry(entry, read.meters, roster)
        if node.name in nodes:
            raise ConfigError(f"{entry.where}: the node {node.name} is listed twice")
        nodes[node.name] = node
    return nodes


def add_interval(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Describe `meterctl order interval`."""
    parser = add_action(
        actions,
        "interval",
        "another length of the intervals",
        """\
It changes at a midnight (UTC), so that all intervals before are whole.

examples:
  meterctl order interval --seconds 900 --from 2026-12-01
""",
    )
    parser.add_argument("--seconds", required=True, type=positive, metavar="N", help="their length")
    parser.add_argument(
        "--from", dest="begin", required=True, metavar="DAY", help="a midnight in UTC: 2026-12-01"
    )
    add_signing(parser)


def interval_change(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    """Return the change of the intervals' length, and from when it holds."""
    begin_s = instant(options.begin, UTC)
    if begin_s % DAY_S:
        raise UsageError(f"--from: {utc(begin_s)} is no midnight in UTC", hint="give a day alone")
    if DAY_S % options.seconds:
        raise UsageError(f"--seconds: {options.seconds} s do not divide a day")
    odd_s = _odd_offsets_s(desk.node.genesis.zone, options.seconds)
    if odd_s:
        raise UsageError(
            f"--seconds: {options.seconds} does not divide the offset of {desk.node.genesis.zone}"
            f" from UTC, {odd_s[0]} s",
            hint="900 divides every zone's",
        )
    if begin_s <= max(int(time.time()), desk.roster.head.time_s):
        raise UsageError(
            f"--from: {utc(begin_s)} is over: blocks from then on may be sealed already"
        )
    return Interval(options.seconds), begin_s


def _odd_offsets_s(zone: str, interval_s: int) -> list[int]:
    try:
        return [offset_s for offset_s in offsets_s(zone) if offset_s % interval_s]
    except (KeyError, ValueError, OSError):
        return []  # no such zone on this machine: its offset cannot be known here
