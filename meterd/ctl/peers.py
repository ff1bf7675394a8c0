"""`meterctl peers`: the neighbours, the brokers, and what is held of everybody's chain.

A running peer process says it (`peer.json`); else its database does, which knows neither brokers
nor who was heard.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from meterd.authority.roster import WITNESSED_MAX
from meterd.ctl.evidence import accusation
from meterd.ctl.node import add_node, line_of, open_node, read_shown
from meterd.ctl.options import add_json
from meterd.ctl.show import Column, note, print_folded, print_table, utc
from meterd.errors import AbsentError

if TYPE_CHECKING:
    import argparse

    from meterd.ctl.node import KnownNode

REFUSED_SHOWN = 5  # the journal has the rest
MINUTE_S, HOUR_S = 60, 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl peers`."""
    parser.epilog = """\
What is wrong comes first: who signed two histories, chains that are frozen, and
the alarms that stand at the meters, this one's too, as each has sealed them.
A chain's head is seen by those voters who attested just that block; a quorum
that attested it or a later one certifies it.

examples:
  meterctl peers
  meterctl peers --state ./account --json
"""
    add_node(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show the neighbours; returns the exit code."""
    shown = read_shown(line_of(options))
    if shown is not None and not shown.stale:
        told = {"source": "peer", "age_s": shown.age_s} | shown.told
    else:
        with open_node(options) as node:
            if node.store is None and node.roster.committee.voters:
                hint = "`systemctl start meterd-peer`, or `meterd peer`; --store names its database"
                raise AbsentError(_why(node), hint=hint)
            node.need_store()
            note(f"{_why(node)}: this is what its database says")
            told = {"source": "store", "age_s": shown.age_s if shown else None} | of_store(node)
    if options.json:
        print(json.dumps(told))
    else:
        _show(told)
    return 0


def _why(node: KnownNode) -> str:
    shown = node.shown
    if shown is None:
        return f"the peer process does not run (there is no {node.line / 'peer.json'})"
    if shown.age_s < 0:
        return "the peer process does not run, or the clock was set back just now"
    return f"the peer process does not run (it was last heard of {ago(shown.age_s)})"


def of_store(node: KnownNode) -> dict[str, Any]:
    """Return what `peer.json` would say, as far as the store knows it."""
    core = node.core
    committee = core.committee
    return {
        "name": node.name,
        "network": node.genesis.name,
        "epoch": core.epoch,
        "voters": len(committee.voters),
        "quorum": committee.quorum,
        "faults_max": committee.faults_max,
        "votes": committee.has(node.name),
        "booted": False,
        "order": core.roster.head.height,
        "brokers": [],
        "peers": [
            {
                "name": name,
                "role": each.role,
                "votes": committee.has(name),
                "heard_s": None,
            }
            for name, each in sorted(core.roster.nodes.items())
            if name != node.name
        ],
        "chains": [
            {
                "name": chain_id[0],
                "incarnation": chain_id[1],
                "height": held.height,
                "hash": held.head_hash.hex(),
                "certified_height": held.certified,
                "attested_by": sorted(
                    core.voter_name(kid)
                    for kid, vote in held.votes.items()
                    if vote.leaf.height == held.height
                ),
                "frozen": held.frozen,
                "end_height": None,  # the process alone knows
                "end_unknown": "",
            }
            for chain_id, held in sorted(core.chains.items())
        ],
        "accused": [
            {"name": one.name, "role": one.role, "height": one.height}
            for one in core.accused.values()
        ],
        "refused": [],
        "alarms": core.alarms.shown(),
        "counts": {},
    }


def ago(seconds: int | None) -> str:
    """Return how long ago that is, in words."""
    if seconds is None:
        return "never"
    if seconds < 2 * MINUTE_S:
        return f"{seconds} s ago"
    if seconds < 2 * HOUR_S:
        return f"{seconds // MINUTE_S} min ago"
    return f"{seconds // HOUR_S} h ago"


def _show(told: dict[str, Any]) -> None:
    for one in told["accused"]:
        print_folded(f"accused: {accusation(one['name'], one['role'], one['height'])}")
    for chain in told["chains"]:
        if chain["frozen"]:
            print_folded(
                f"frozen: {_chain(chain)} at its certified block {chain['certified_height']}:"
                f" {chain['frozen']}"
            )
    for meter in told["alarms"]:
        for one in meter["standing"]:
            print_folded(
                f"alarm: {meter['name']}: {one['alarm']}, since"
                f" {utc(one['since_ms'] // 1000)} by its clock (event {one['number']})"
            )
    voters = told["voters"]
    word = "certified" if voters > WITNESSED_MAX else "witnessed, not fork-proof"
    print_folded(
        f"{told['name']} in {told['network']}: {voters} vote, {told['quorum']} certify,"
        f" {told['faults_max']} may lie"
    )
    print(f"blocks are {word}; epoch {told['epoch']}, order {told['order']}")
    if told["source"] == "peer" and told["votes"] and not told["booted"]:
        print("it attests nothing yet: it asks its neighbours what it has said before")
    if told["brokers"]:
        print()
        print_table(
            (
                Column("connected", 9),
                Column("mqtt", 4),
                Column("dropped", 7, True),
                Column("broker"),
            ),
            (
                (
                    "yes" if broker["connected"] else "no",
                    broker["protocol"],
                    str(broker["dropped"]),
                    broker["url"],
                )
                for broker in told["brokers"]
            ),
        )
    print()
    width = max((len(peer["name"]) for peer in told["peers"]), default=0)
    print_table(
        (Column("peer", width), Column("role", 12), Column("votes", 5), Column("last heard")),
        (
            (
                peer["name"],
                peer["role"],
                "yes" if peer["votes"] else "no",
                ago(peer["heard_s"]) if told["source"] == "peer" else "not known",
            )
            for peer in told["peers"]
        ),
    )
    _show_chains(told)
    for refused in told["refused"][-REFUSED_SHOWN:]:
        told_so = f"block {refused['height']} of {refused['name']}: {refused['reason']}"
        print_folded(f"refused: {told_so}")
    counts = [f"{kind} {number}" for kind, number in sorted(told["counts"].items()) if number]
    if counts:
        print_folded(f"messages that came to nothing: {', '.join(counts)}")


def _show_chains(told: dict[str, Any]) -> None:
    chains = told["chains"]
    if not chains:
        return
    print()
    voters = {peer["name"] for peer in told["peers"] if peer["votes"]}
    voters |= {told["name"]} if told["votes"] else set()
    width = max(len(_chain(chain)) for chain in chains)
    print_table(
        (
            Column("chain", width),
            Column("height", 8, True),
            Column("seen by", 8),
            Column("certified"),
        ),
        (
            (
                _chain(chain),
                str(chain["height"]),
                f"{len(voters.intersection(chain['attested_by']))} of {told['voters']}"
                if chain["height"]
                else "-",
                f"{chain['certified_height']}{', frozen' if chain['frozen'] else ''}",
            )
            for chain in sorted(chains, key=lambda chain: not chain["frozen"])
        ),
    )


def _chain(chain: dict[str, Any]) -> str:
    return f"{chain['name']} ({chain['incarnation']})"
