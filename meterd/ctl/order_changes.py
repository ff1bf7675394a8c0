"""What each kind of order takes on the command line, and the change that it makes of it.

Enrolment files are believed where both keys have signed them, and what ends a chain is taken from
the blocks that this node holds.
"""

from __future__ import annotations

import re
import time
from datetime import UTC
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.config_rules import offsets_s
from meterd.ctl.node import add_node
from meterd.ctl.options import add_json, hex_bytes, instant, positive
from meterd.ctl.show import utc
from meterd.enrolment import Enrolment, proven
from meterd.errors import ConfigError, UsageError
from meterd.ledger.account import DAY_S, Node
from meterd.ledger.block import UJ_MAX, Energy
from meterd.ledger.encoding import HASH_BYTES, SIGNATURE_BYTES
from meterd.ledger.order import (
    REASON_CHARS_MAX,
    Change,
    Enrol,
    ForkResolve,
    Interval,
    Replace,
    Revoke,
    RosterChange,
    Rotate,
)
from meterd.network_file import TABLES, TEXT_BYTES_MAX, NetworkFile

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from meterd.authority.roster import Enrolled, Roster
    from meterd.ctl.order_desk import Desk
    from meterd.network_file import Entry

UJ_PER_KWH = 3_600_000_000_000
_CODES = {"import": "1-0:1.8.0", "export": "1-0:2.8.0", "apparent": "1-0:9.8.0"}
_CODE = re.compile(r"1-(\d{1,3}):(\d{1,3})\.8\.0")
_PROOFS = ("proof_sealing", "proof_voting")


def add_kinds(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Add the kinds of orders to `meterctl order`."""
    _add_enrol(actions)
    _add_replace(actions)
    _add_rotate(actions)
    _add_revoke(actions)
    _add_roster(actions)
    _add_fork_resolve(actions)
    _add_interval(actions)


def add_action(actions: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse hides the type
    """Return the parser of one action of `meterctl order`."""
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, description=f"{name}: {summary}."
    )
    parser.epilog = examples
    return parser


def _add_signing(parser: argparse.ArgumentParser) -> None:
    add_node(parser)
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="the distributor's sealing key, 64 hex digits (default: that of DIR)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="write the signed order here, and send nothing (`meterctl order send FILE`)",
    )
    add_unheard(parser)
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    add_json(parser)


def add_unheard(parser: argparse.ArgumentParser) -> None:
    """Add `--unheard`."""
    parser.add_argument(
        "--unheard",
        action="store_true",
        help="even where the peer process has not heard a quorum lately; not after a restored"
        " backup",
    )


# --- what is ordered --------------------------------------------------------------------------


def _chain(desk: Desk, name: str, incarnation: int | None) -> Enrolled:
    """Return a meter's chain, the last unless told.

    Raises:
        UsageError: There is none.
    """
    found = desk.roster.newest(name)
    if found is not None and incarnation:
        found = desk.roster.chains.get((name, incarnation))
    if found is None or (name, 1) == desk.chain_id:
        known = sorted({one for one, _ in desk.roster.chains if (one, 1) != desk.chain_id})
        raise UsageError(
            f"no meter of {desk.roster.network} is {name} ({incarnation or 1})",
            hint=f"known are {', '.join(known[:20]) or 'none'}",
        )
    return found


def _read(path: Path, *, listing: bool = False) -> NetworkFile:
    """Return a file of [[node]] and [[meter]] tables, without mistakes.

    Args:
        path: The file.
        listing: Whether it is a list of nodes, which need no proofs.

    Raises:
        ConfigError: It has a mistake; the first is told.
    """
    with path.open("rb") as file:
        data = file.read(TEXT_BYTES_MAX + 1)
    try:
        read = NetworkFile(str(path), data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", hint="is it an enrolment file?") from error
    mistakes = [
        found
        for found in read.mistakes()
        if not (
            listing
            and found.mistake.key.endswith(_PROOFS)
            and found.mistake.problem == "is missing"
        )
    ]
    for found in mistakes[:1]:
        raise ConfigError(str(found), hint=found.mistake.hint)
    return read


def _enrolment(path: Path, roster: Roster) -> Enrolment:
    """Return the enrolment in a file, proven by both of its keys.

    Raises:
        ConfigError: It is not one enrolment, another network's, or its keys did not sign it.
    """
    read = _read(path)
    if len(read.nodes) != 1 or len(read.meters) > 1:
        raise ConfigError(
            f"{path}: expected the one node of an enrolment file, got {len(read.nodes)}",
            hint="give the file that `meterctl network enrol` wrote on the device",
        )
    network = read.network.get("name")
    if network != roster.network:
        raise ConfigError(
            f"{path}: expected an enrolment in {roster.network}, got {network}",
            hint=f"enrol again on the device, with --network {roster.network}",
        )
    return _proven(read.nodes[0], read.meters, roster)


def _proven(node: Entry, meters: list[Entry], roster: Roster) -> Enrolment:
    values = node.values
    rated = next((meter.values for meter in meters if meter.values["name"] == values["name"]), {})
    enrolment = Enrolment(
        roster.network,
        values["name"],
        values["role"],
        values["sealing_key"],
        values["voting_key"],
        values["votes"],
        rated.get("fuse_a", 0),
        rated.get("nominal_v", 0),
        rated.get("mains_clamps", 0),
    )
    for use in ("sealing", "voting"):
        proof = values.get(f"proof_{use}", b"")
        key = values[f"{use}_key"]
        if len(proof) != SIGNATURE_BYTES or not proven(enrolment, key, proof):
            raise ConfigError(
                f"{node.where}: the {use} key of {values['name']} did not sign what is listed",
                hint="take the enrolment file as the device made it, or enrol again",
            )
    return enrolment


def _metering(path: Path, roster: Roster) -> Enrolment:
    """Return the enrolment of a device that meters."""
    enrolment = _enrolment(path, roster)
    if not enrolment.mains_clamps:
        raise ConfigError(
            f"{path}: {enrolment.name} meters nothing: there is no [[meter]] of it",
            hint="a node without a meter joins by `meterctl order roster --add FILE`",
        )
    return enrolment


def _registers(given: list[str]) -> tuple[Energy, ...]:
    """Return starting registers as they are typed: `import=1234.567`, `1-2:1.8.0=17,estimated`.

    Raises:
        UsageError: One cannot be read.
    """
    found: dict[bytes, Energy] = {}
    for text in given:
        code, _, rest = text.partition("=")
        energy, _, kind = rest.partition(",")
        match = _CODE.fullmatch(_CODES.get(code, code))
        try:
            uj = Decimal(energy) * UJ_PER_KWH
        except InvalidOperation:
            uj = Decimal(-1)
        good = match and uj.is_finite() and 0 <= uj <= UJ_MAX and uj == uj.to_integral_value()
        if not match or not good or kind not in ("", "measured", "estimated"):
            raise UsageError(
                f"--register: expected CODE=KWH, got {text[:60]!r}",
                hint="as in import=1234.567, or 1-2:1.8.0=17.25,estimated",
            )
        channel, what = int(match[1]), int(match[2])
        if max(channel, what) > 255:  # noqa: PLR2004 - a byte each
            raise UsageError(f"--register: {code} is no register")
        obis = bytes((1, channel, what, 8, 0, 255))
        if obis in found:
            raise UsageError(f"--register: {code} is given twice")
        found[obis] = Energy(obis, int(kind == "estimated"), int(uj), int(uj))
    return tuple(found[obis] for obis in sorted(found))


def _add_registers(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="CODE=KWH",
        help=f"what the new chain begins with; may be repeated (default: {default})",
    )


def _end(
    desk: Desk, chain: Enrolled, given: list[str], final: int | None
) -> tuple[int, bytes, tuple[Energy, ...]]:
    """Return height and hash of the block that a chain ends with, and its last registers.

    Raises:
        ConfigError: It is not certain, or not held here.
    """
    chain_id = (chain.name, chain.incarnation)
    held = desk.node.core.chains.get(chain_id)
    certified, top = (held.certified, held.height) if held else (0, 0)
    if final is None and top > certified and not (held and held.frozen):
        raise ConfigError(
            f"blocks of {chain.name} are held up to {top}, and certified up to {certified}",
            hint=f"wait until all are certified, or end it earlier with --final {certified}",
        )
    height = certified if final is None else final
    if height == 0:
        return 0, chain.opened[1], _registers(given) or chain.registers
    block = desk.block(chain_id, height)
    if block is None:
        raise ConfigError(
            f"block {height} of {chain.name} ({chain.incarnation}) is not held here: the last is"
            f" {top}",
            hint="let the peer process fetch it from its neighbours, then try again",
        )
    last = tuple(energy._replace(first_uj=energy.last_uj) for energy in block.energy)
    return height, block.hash, _registers(given) or last


def _add_enrol(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(
        actions,
        "enrol",
        "list a new meter",
        """\
FILE is what `meterctl network enrol` wrote on the device; compare its key ids
by voice. A meter that comes with an account of its own goes on from its
registers.

examples:
  meterctl order enrol house-9.toml
  meterctl order enrol house-9.toml \\
      --register import=1234.567 --register export=0
""",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the enrolment file")
    _add_registers(parser, "0")
    _add_signing(parser)


def _enrol(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    device = _metering(options.file, desk.roster)
    before = desk.roster.newest(device.name)
    change = Enrol(
        device.name,
        before.incarnation + 1 if before else 1,
        device.sealing_key,
        device.voting_key,
        device.fuse_ma,
        device.nominal_mv,
        device.mains_clamps,
        _registers(options.register),
    )
    return change, None


def _add_replace(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(
        actions,
        "replace",
        "put another device in the place of a meter's",
        """\
The old device has to be off: an order that ends its chain below a block that is
certified meanwhile is refused by all, and no order can follow it.

examples:
  meterctl order replace house-4-new.toml
  meterctl order replace house-4-new.toml --final 17
""",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the new device's enrolment file")
    parser.add_argument(
        "--final", type=positive, metavar="N", help="last block (default: the last certified)"
    )
    _add_registers(parser, "where the old chain ends")
    _add_signing(parser)


def _replace(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    device = _metering(options.file, desk.roster)
    old = _chain(desk, device.name, None)
    height, block_hash, registers = _end(desk, old, options.register, options.final)
    change = Replace(
        device.name,
        old.incarnation,
        height,
        block_hash,
        old.incarnation + 1,
        device.sealing_key,
        device.voting_key,
        device.fuse_ma,
        device.nominal_mv,
        device.mains_clamps,
        registers,
    )
    return change, None


def _add_meter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--meter", required=True, metavar="NAME", help="which meter")
    parser.add_argument(
        "--incarnation", type=positive, metavar="N", help="which of its chains (default: the last)"
    )


def _add_rotate(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(
        actions,
        "rotate",
        "let a meter seal with another key",
        """\
The key before has to consent: `meterctl order consent` on the device prints it.

examples:
  meterctl order rotate --meter house-4 --new-key 5f0c… --consent 1a2b…
""",
    )
    _add_meter(parser)
    parser.add_argument(
        "--new-key", required=True, metavar="HEX", help="the new public key, 64 hex digits"
    )
    parser.add_argument(
        "--consent", required=True, metavar="HEX", help="the old key's signature, 128 hex digits"
    )
    _add_signing(parser)


def _rotate(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    chain = _chain(desk, options.meter, options.incarnation)
    key = hex_bytes(options.new_key, HASH_BYTES, "--new-key")
    consent = hex_bytes(options.consent, SIGNATURE_BYTES, "--consent")
    return Rotate(chain.name, chain.incarnation, key, consent), None


def _add_revoke(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(
        actions,
        "revoke",
        "a meter's key is good no more",
        """\
Nothing of its chain is attested from then on. Another device takes its place by
`meterctl order replace`.

examples:
  meterctl order revoke --meter house-4 --reason "the card was stolen"
""",
    )
    _add_meter(parser)
    parser.add_argument("--reason", required=True, metavar="TEXT", help="for everybody to read")
    _add_signing(parser)


def _revoke(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    chain = _chain(desk, options.meter, options.incarnation)
    if len(options.reason) > REASON_CHARS_MAX or not options.reason.isprintable():
        raise UsageError(f"--reason: expected at most {REASON_CHARS_MAX} letters in one line")
    if chain.revoked:
        raise ConfigError(f"{chain.name} ({chain.incarnation}) is revoked already: {chain.revoked}")
    return Revoke(chain.name, chain.incarnation, options.reason), None


def _add_roster(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
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
    _add_signing(parser)


def _roster(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    roster = desk.roster
    named = [*options.vote, *options.no_vote, *options.remove]
    if options.file is not None:
        if named or options.add:
            raise UsageError("a list of all nodes goes without --vote, --no-vote, --remove, --add")
        nodes = _listed(options.file, roster)
    else:
        nodes = dict(roster.nodes)
        for file in options.add:
            node = _node(_enrolment(Path(file), roster))
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
    read = _read(path, listing=True)
    if not read.nodes:
        raise ConfigError(f"{path} lists no node", hint="see `meterctl order roster --help`")
    nodes: dict[str, Node] = {}
    for entry in read.nodes:
        values = {key: entry.values[key] for key in TABLES["node"] if key not in _PROOFS}
        node = Node(**values)
        before = roster.nodes.get(node.name)
        keys = before and (before.sealing_key, before.voting_key)
        if keys != (node.sealing_key, node.voting_key):
            _proven(entry, read.meters, roster)
        if node.name in nodes:
            raise ConfigError(f"{entry.where}: the node {node.name} is listed twice")
        nodes[node.name] = node
    return nodes


def _add_fork_resolve(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(
        actions,
        "fork-resolve",
        "end a chain of two histories, and begin it anew",
        """\
The chain ends at its last certified block. The device makes new keys and enrols
with them: it, or the card, may be in other hands.

examples:
  meterctl order fork-resolve house-4-again.toml
""",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the device's new enrolment file")
    _add_registers(parser, "where the old chain ends")
    _add_signing(parser)


def _fork_resolve(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    device = _metering(options.file, desk.roster)
    old = _chain(desk, device.name, None)
    held = desk.node.core.chains.get((old.name, old.incarnation))
    if held is None or not held.frozen:
        raise ConfigError(
            f"{old.name} ({old.incarnation}) is not frozen: no two histories of it are proved here",
            hint="`meterctl order replace` ends a chain that is whole; see `meterctl evidence`",
        )
    height, block_hash, registers = _end(desk, old, options.register, None)
    change = ForkResolve(
        old.name,
        old.incarnation,
        height,
        block_hash,
        old.incarnation + 1,
        device.sealing_key,
        registers,
    )
    return change, None


def _add_interval(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
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
    _add_signing(parser)


def _interval(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
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


CHANGES: dict[str, Callable[[Desk, argparse.Namespace], tuple[Change, int | None]]] = {
    "enrol": _enrol,
    "replace": _replace,
    "rotate": _rotate,
    "revoke": _revoke,
    "roster": _roster,
    "fork-resolve": _fork_resolve,
    "interval": _interval,
}
"""What the order of each kind changes, and from when money and intervals follow it."""
