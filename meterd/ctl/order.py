"""`meterctl order`: the distributor's orders: signed here, sent by its peer process, then in force.

Each is checked as the peers will check it, shown, and asked for, before it is signed; what is kept
so that no second one of its height ever is, says `meterd.ctl.order_desk`.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.ctl.account import StoredAccount
from meterd.ctl.node import add_node, open_node
from meterd.ctl.options import add_action, add_json, add_state
from meterd.ctl.order_changes import CHANGES, add_kinds
from meterd.ctl.order_desk import ORDER_BYTES_MAX, Desk
from meterd.ctl.order_options import add_unheard
from meterd.ctl.order_words import advice, change_words, fields, told
from meterd.ctl.output import put_out
from meterd.ctl.public_key import public_key
from meterd.ctl.show import Column, note, print_table, utc
from meterd.device.keys import load_seal, read_seal
from meterd.device.secret import find_device_key
from meterd.errors import AbsentError, ConfigError, EncodingError, UsageError
from meterd.ledger.encoding import take_apart
from meterd.ledger.order import Change, Interval, RosterChange, decode_order, sign_rotation

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from meterd.ctl.node import KnownNode
    from meterd.ctl.order_desk import Laid
    from meterd.ledger.order import Order


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl order`."""
    parser.epilog = """\
For the distributor, on the machine whose peer process sends them. An order is
in force once a quorum of the network has certified it. It cannot be taken back.

examples:
  meterctl order enrol house-9.toml
  meterctl order revoke --meter house-4 --reason "the card was stolen"
  meterctl order list
  meterctl order roster --help
"""
    actions = parser.add_subparsers(dest="order_command", required=True, metavar="KIND")
    add_kinds(actions)
    _add_consent(actions)
    _add_send(actions)
    _add_list(actions)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    act = _ACTIONS.get(options.order_command)
    return act(options) if act else _sign(options, CHANGES[options.order_command])


# --- signing ----------------------------------------------------------------------------------


def _sign(
    options: argparse.Namespace,
    change_of: Callable[[Desk, argparse.Namespace], tuple[Change, int | None]],
) -> int:
    if not options.yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise UsageError(
            "there is no terminal to ask at", hint="add --yes once you know what it will sign"
        )
    if options.out is not None and options.out.exists():
        raise ConfigError(f"{options.out} is there already", hint="name another file")
    key = read_seal(options.key) if options.key else load_seal(options.state, find_device_key())
    with open_node(options) as node:
        desk = Desk(node)
        if options.out is None and not options.unheard:
            desk.check_heard()
        if bytes(key.verify_key) != desk.key:
            raise ConfigError(
                f"the key is not {desk.chain_id[0]}'s: no peer would accept what it signs",
                hint="orders are signed by the distributor alone; see --key and --state",
            )
        order = desk.next_order(*change_of(desk, options))
        desk.tidy()
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        _show(order, desk)
    if not options.yes:
        _confirm(f"Sign order {order.height}? It cannot be taken back. [y/N]: ")
    sealed = desk.sign(order, key)
    if options.out is None:
        desk.post(order.height, sealed)
    else:
        put_out(sealed, options.out)
    if options.json:
        file = str(options.out) if options.out else None
        print(json.dumps(told(order) | {"state": "signed" if file else "waiting", "file": file}))
    elif options.out is None:
        print(f"signed; it waits in the outbox for {node.name}'s peer process")
        print("  `meterctl order list` shows who has certified it")
    else:
        print(f"signed; wrote {options.out}")
        print(f"  meterctl order send {options.out.name}    (where the peer process runs)")
    return 0


def _show(order: Order, desk: Desk) -> None:
    print(f"order {order.height} of {order.distributor} in {desk.node.genesis.name}:")
    for line in change_words(order.change, desk.roster):
        print(f"  {line}")
    if hint := advice(order.change, desk.roster):
        print(f"  {hint}")
    waiting = order.height - 1 - desk.certified
    if waiting:
        print(f"  it follows order {order.height - 1}, and {waiting} before it wait still")
    print()
    for name, value in fields(order):
        print(f"  {name:12}  {value}")


def _confirm(question: str) -> None:
    sys.stderr.write(f"\n{question}")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("not confirmed: nothing was signed")


# --- consent, send, list ----------------------------------------------------------------------


def _add_consent(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(
        actions,
        "consent",
        "on a meter: its key agrees to another in its place",
        """\
Run it on the device, with the key that it seals with. What it prints is public.

examples:
  meterctl order consent --state /var/lib/meterd --new-key 5f0c…
""",
    )
    add_state(parser)
    parser.add_argument(
        "--new-key", required=True, metavar="HEX", help="the new public key, 64 hex digits"
    )
    add_json(parser)


def _consent(options: argparse.Namespace) -> int:
    account = StoredAccount(options.state)
    new_key = public_key(options.new_key, "--new-key")
    key = load_seal(options.state, find_device_key())
    if new_key in (bytes(key.verify_key), bytes(key)):
        raise UsageError("--new-key: that is the key of this meter, or worse, its secret half")
    blocks = account.blocks
    incarnation = blocks[-1].block.incarnation if blocks else account.chain.incarnation
    signature = sign_rotation(key, account.genesis.hash, account.meter, incarnation, new_key)
    account.close()
    if options.json:
        entry = {"meter": account.meter, "incarnation": incarnation, "new_key": new_key.hex()}
        print(json.dumps(entry | {"consent": signature.hex()}))
        return 0
    note(f"{account.meter} ({incarnation}) consents to seal with {new_key.hex()} from an order on")
    print(signature.hex())
    return 0


def _add_send(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(
        actions,
        "send",
        "put signed orders into the peer process's outbox",
        """\
Without FILE, all that were signed here and are not certified yet.

examples:
  meterctl order send order-3.cose
  meterctl order send
""",
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="what -o wrote")
    add_node(parser)
    add_unheard(parser)
    add_json(parser)


def _send(options: argparse.Namespace) -> int:
    data: bytes | None = None
    if options.file is not None:
        with options.file.open("rb") as file:
            data = file.read(ORDER_BYTES_MAX)
    with open_node(options) as node:
        desk = Desk(node)
        if not options.unheard:
            desk.check_heard()
        desk.tidy()
        waiting = [each for each in desk.orders if each.order.height > desk.certified]
        sending = [(each.order.height, each.sealed) for each in waiting]
        if data is not None:
            sending = [*sending, *_more(desk, options.file, data)]
    for height, sealed in sending:
        desk.post(height, sealed)
    if options.json:
        print(json.dumps({"sent": [height for height, _ in sending]}))
    elif sending:
        print(f"in the outbox: order {', '.join(str(height) for height, _ in sending)}")
    else:
        print("nothing to send: all orders are certified")
    return 0


def _more(desk: Desk, path: Path, data: bytes) -> list[tuple[int, bytes]]:
    """Return the order in a file, unless it is one of those known."""
    try:
        order = decode_order(take_apart(data).payload)
    except EncodingError as error:
        raise ConfigError(f"{path} is no signed order: {error}", hint="-o writes them") from error
    known = next((each for each in desk.orders if each.order.height == order.height), None)
    if known is not None:
        if known.order != order:
            raise ConfigError(
                f"another order {order.height} is signed already: this one must never be sent",
                hint=f"destroy {path}: two orders of one height end the distributor's chain",
            )
        return []
    if order.height != desk.roster.head.height + 1:
        raise AbsentError(
            f"{path} is order {order.height}, the next is {desk.roster.head.height + 1}",
            hint="send those before it first",
        )
    desk.adopt(data)
    return [(order.height, data)]


def _add_list(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(
        actions,
        "list",
        "all orders, and how far they are",
        """\
waiting: not certified yet; certified: by a quorum, and in force, unless it says
from when on.

examples:
  meterctl order list
  meterctl order list --json
""",
    )
    add_node(parser)
    add_json(parser)


def _list(options: argparse.Namespace) -> int:
    with open_node(options) as node:
        desk = Desk(node)
        with suppress(OSError):  # whoever may only look, may look
            desk.tidy()
        entries = [_entry(desk, each) for each in desk.orders]
    if options.json:
        print(json.dumps(entries))
        return 0
    if not entries:
        print(f"{desk.chain_id[0]} has given no order yet")
        return 0
    print_table(
        (Column("order", 5, True), Column("kind", 12), Column("state", 22), Column("what it does")),
        (
            (str(entry["height"]), entry["kind"], _state(entry), "; ".join(entry["words"]))
            for entry in entries
        ),
    )
    return 0


def _entry(desk: Desk, laid: Laid) -> dict[str, Any]:
    node, order = desk.node, laid.order
    held = node.core.chains.get(desk.chain_id)
    committee = laid.before.committee
    certified = order.height <= desk.certified
    seen = set[str]()
    if certified and (found := node.certificate(desk.chain_id, order.height)):
        committee = node.roster.committee_of(found[1].epoch) or committee
        seen |= set(found[1].voters)
    if held is not None:
        seen |= set(node.attested_by(held, order.height, committee.epoch))
    return told(order) | {
        "state": "certified" if certified else "waiting",
        "in_force": certified and not _later(node, order),
        "seen_by": sorted(seen),
        "voters": len(committee.voters),
        "quorum": committee.quorum,
        "sent": laid.posted or laid.held,
        "words": change_words(order.change, laid.before),
    }


def _later(node: KnownNode, order: Order) -> bool:
    """Say whether a certified order is not in force yet."""
    change = order.change
    if isinstance(change, RosterChange):
        return node.core.epoch < change.epoch
    return isinstance(change, Interval) and order.effective_from_s > time.time()


def _state(entry: dict[str, Any]) -> str:
    seen = f"{len(entry['seen_by'])} of {entry['voters']}"
    if entry["in_force"]:
        return f"in force, by {seen}"
    if entry["state"] == "waiting":
        return f"waiting, seen {seen}" if entry["sent"] else "signed, not sent"
    when = "next epoch" if entry["kind"] == "roster" else utc(entry["effective_from_s"])[:10]
    return f"{when}, by {seen}"


_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "consent": _consent,
    "send": _send,
    "list": _list,
}
