"""`meterctl replace`: another device takes a meter's place, and its chain goes on in a new one.

Three places have a part in it: the old device or its card (or, where that is dead, a neighbour),
the new device, and the office. Each is told here what it has to do, with all that it has to type.
Nothing is changed but that the new device makes its keys: the order is the distributor's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.authority.roster import WITNESSED_MAX
from meterd.cli import told_line
from meterd.ctl import network
from meterd.ctl import replace_rules as rules
from meterd.ctl.account import StoredAccount
from meterd.ctl.head import head_of
from meterd.ctl.node import add_node, open_node
from meterd.ctl.options import add_action, add_json, add_socket, add_state, positive, socket_of
from meterd.ctl.registers import registers_of
from meterd.ctl.verify import workers_for
from meterd.device.archive import Known, verify
from meterd.device.control_client import ControlClient
from meterd.errors import AbsentError, ConfigError, LedgerDamagedError, MeterdError, UsageError
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import take_apart
from meterd.metering.energy import obis_code

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterd.authority.roster import Roster
    from meterd.ctl.node import KnownNode
    from meterd.ledger.block import Block
    from meterd.ledger.verdict import Verdict

CONFIG_DEFAULT = Path("/etc/meterd/meterd.toml")
ANSWER_S_MAX = 3.0  # of a daemon that is asked whether it runs
SAFE, NOT_SAFE = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl replace`."""
    parser.epilog = """\
First where the old chain ends: on the old device, or on any machine that its
card is in. Where the card is dead a neighbour knows, or the office. Then the
new device's keys; then the office orders it, by the lines that are shown.

examples:
  meterctl replace old
  meterctl replace old --state /media/card/var/lib/meterd --json
  meterctl replace lost --meter house-4
  meterctl replace new --meter house-4 --network elm-street -o house-4-2.toml
"""
    actions = parser.add_subparsers(dest="replace_command", required=True, metavar="ACTION")
    _add_old(actions)
    _add_lost(actions)
    _add_new(actions)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    return _ACTIONS[options.replace_command](options)


# --- the old device, or its card ----------------------------------------------------------------


def _add_old(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "where the old device's chain ends, and whether it may go"
    parser = add_action(actions, "old", summary)
    parser.epilog = """\
Judges the whole account, then says how far it is sealed and certified, what
waits, and what the new device and the office do next. Nothing is changed.

exit status: 0 it may go, 1 not yet, or the account is bad

examples:
  meterctl replace old
  meterctl replace old --state /media/card/var/lib/meterd --json
"""
    add_node(parser)
    add_socket(parser)
    add_json(parser)


def _old(options: argparse.Namespace) -> int:
    verdict = verify(options.state, Known(), workers=workers_for(options.state))
    with open_node(options) as node:
        account = StoredAccount(options.state)
        end = end_of_account(node, account, verdict, running=_runs(options))
    return _show(options, end)


def _runs(options: argparse.Namespace) -> bool:
    try:
        ControlClient(socket_of(options), timeout_s=ANSWER_S_MAX).call("Status")
    except MeterdError:
        return False
    return True


def end_of_account(
    node: KnownNode, account: StoredAccount, verdict: Verdict, *, running: bool
) -> rules.End:
    """Return where the chain of an account ends.

    Args:
        node: What is known beside it.
        account: The account.
        verdict: What a whole audit has said of it.
        running: Whether its daemon answers.
    """
    head = head_of(node, account)
    reason = verdict.first_bad.reason if verdict.first_bad else verdict.reason
    judged, blocks = verdict.verdict, account.blocks
    certified = _place(head["certified"])
    here = {each.block.height: each.block.hash.hex() for each in blocks}
    if certified[0] > len(blocks):
        judged = "bad"
        reason = f"others hold block {certified[0]}, and this card ends before: it was put back"
    elif certified[0] and here.get(certified[0]) != certified[1]:
        judged, reason = "bad", f"its block {certified[0]} is not the one that others certified"
    counted: dict[str, int] = {}
    if judged == "good":
        try:
            told = registers_of(account)["registers"]
            counted = {code: register["uj"] for code, register in told.items()}
        except LedgerDamagedError as error:
            judged, reason = "bad", str(error)
    last = blocks[-1].block if blocks else None
    registers = registers_at(last)
    return rules.End(
        meter=head["name"],
        incarnation=head["incarnation"],
        network=account.genesis.name,
        verdict=judged,
        reason=reason,
        last=(last.height, last.hash.hex()) if last else (0, ""),
        end_s=last.end_s if last else None,
        registers=registers,
        certified=certified,
        word=head["word"],
        by=head["certified"]["by"] if head["certified"] else (),
        unsealed={
            code: uj - registers.get(code, (0, ""))[0]
            for code, uj in counted.items()
            if uj > registers.get(code, (0, ""))[0]
        },
        open_rows=verdict.open_rows,
        running=running,
        **_network(account.roster, head["name"]),
    )


def registers_at(block: Block | None) -> dict[str, tuple[int, str]]:
    """Return the registers at a block's end by their codes: µJ, and how they came about."""
    return {
        obis_code(energy.obis): (energy.last_uj, "estimated" if energy.kind else "measured")
        for energy in (block.energy if block else ())
    }


def word_of(voters: int) -> str:
    """Return what a block is whose height so many voters have attested.

    >>> word_of(0), word_of(3), word_of(4)
    ('standalone', 'witnessed', 'certified')
    """
    if not voters:
        return "standalone"
    return "witnessed" if voters <= WITNESSED_MAX else "certified"


def _place(certified: dict[str, Any] | None) -> tuple[int, str]:
    return (certified["height"], certified["hash"]) if certified else (0, "")


def _network(roster: Roster, meter: str) -> dict[str, Any]:
    node = roster.nodes.get(meter)
    return {
        "distributor": roster.distributor[0] if roster.distributor else "",
        "votes": bool(node is not None and node.votes),
    }


def _show(options: argparse.Namespace, end: rules.End) -> int:
    reasons = rules.unsafe(end)
    print(json.dumps(rules.told(end)) if options.json else "\n".join(rules.lines(end)))
    if reasons:
        sys.stdout.flush()
        first = f"not to be taken away yet: {reasons[0]}"
        sys.stderr.write(told_line("meterctl: error: ", first))
        sys.stderr.write(told_line("meterctl: hint: ", rules.hint(end)))
    return NOT_SAFE if reasons else SAFE


# --- a neighbour, or the office, where the card is dead -----------------------------------------


def _add_lost(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "at a neighbour or in the office: where a dead device's chain ends"
    parser = add_action(actions, "lost", summary)
    parser.epilog = """\
By what this node holds of the other's chain. What the dead card has sealed and
nobody has got is lost, and so is what it had not sealed.

exit status: 0 known and certified, 1 not all of it, 69 nothing is known here

examples:
  meterctl replace lost --meter house-4
  meterctl replace lost --meter house-4 --state ./office --json
"""
    add_node(parser)
    parser.add_argument("--meter", required=True, metavar="NAME", help="whose device is dead")
    parser.add_argument(
        "--incarnation", type=positive, metavar="N", help="which of its chains (default: the last)"
    )
    add_json(parser)


def _lost(options: argparse.Namespace) -> int:
    with open_node(options) as node:
        end = end_of_held(node, options.meter, options.incarnation)
    return _show(options, end)


def end_of_held(node: KnownNode, meter: str, incarnation: int | None) -> rules.End:
    """Return where another's chain ends, as far as a node holds it.

    Raises:
        UsageError: There is no such chain.
        AbsentError: The node has no database, or no block of the chain.
    """
    roster, store = node.roster, node.need_store()
    enrolled = roster.newest(meter)
    if enrolled is not None and incarnation:
        enrolled = roster.chains.get((meter, incarnation))
    if enrolled is None or not enrolled.mains_clamps:
        raise UsageError(
            f"no meter of {roster.network} is {meter} ({incarnation or 1})",
            hint="`meterctl peers` shows those that are known",
        )
    chain_id = (enrolled.name, enrolled.incarnation)
    held = node.core.chains.get(chain_id)
    if held is None or not held.height:
        raise AbsentError(
            f"no block of {meter} ({enrolled.incarnation}) is held here",
            hint="ask at another node of the network, or let the peer process fetch them",
        )
    last = None
    for _, sealed in store.blocks(chain_id, held.height, held.height):
        last = decode_block(take_apart(sealed).payload)
    certified = held.certified
    found = node.certificate(chain_id, certified)
    by = set(found[1].voters) if found else set[str]()
    if certified:
        by |= set(node.attested_by(held, certified, held.certified_epoch))
    voters = len(roster.committee.voters)
    return rules.End(
        meter=enrolled.name,
        incarnation=enrolled.incarnation,
        network=roster.network,
        verdict="held",
        reason="",
        last=(last.height, last.hash.hex()) if last else (0, ""),
        end_s=last.end_s if last else None,
        registers=registers_at(last),
        certified=(certified, held.hashes[certified].hex()) if certified else (0, ""),
        word=word_of(voters),
        by=sorted(by),
        **_network(roster, enrolled.name),
    )


# --- the new device -----------------------------------------------------------------------------


def _add_new(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "on the new device: its keys, and the file for the office"
    parser = add_action(actions, "new", summary)
    parser.epilog = """\
As `meterctl network enrol`, for settings that bear the old meter's name. Keys
that are there are used again, never replaced; nothing in the file is secret.

examples:
  meterctl replace new --meter house-4 --network elm-street
  meterctl replace new --meter house-4 --network elm-street \\
      --config ./meterd.toml --state ./new -o house-4-2.toml
"""
    add_state(parser)
    parser.add_argument("--meter", required=True, metavar="NAME", help="whose place it takes")
    parser.add_argument("--network", required=True, metavar="NAME", help="the network's name")
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIG_DEFAULT,
        metavar="FILE",
        help=f"settings of the new device (default: {CONFIG_DEFAULT})",
    )
    parser.add_argument("--no-votes", action="store_true", help="the old one had no vote")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="where to (default: standard output)"
    )
    add_json(parser)


def _new(options: argparse.Namespace) -> int:
    name = network.settings_of(options.config).meter.name
    if name != options.meter:
        raise ConfigError(
            f"the settings {options.config} are of {name}, and not of {options.meter}",
            hint="the new device bears the old one's name: set it in [meter]",
        )
    if (options.state / "genesis.cbor").exists():
        raise ConfigError(
            f"there is an account in {options.state}: another device begins with an empty folder",
            hint="run this on the new device, or name another folder by --state",
        )
    enrol = {**vars(options), "network_command": "enrol", "name": None, "role": "meter"}
    return network.run(argparse.Namespace(**enrol))


_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "old": _old,
    "lost": _lost,
    "new": _new,
}
