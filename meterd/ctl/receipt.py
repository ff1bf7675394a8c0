"""`meterctl receipt`: a block with all that whoever has the genesis needs to check it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from meterd.authority.certificate import summary, verify_receipt
from meterd.ctl.node import add_node, open_node
from meterd.ctl.options import positive
from meterd.ctl.output import put_out, refuse_terminal
from meterd.device import proofs
from meterd.errors import AbsentError, BlockRejectedError, StorageError

if TYPE_CHECKING:
    import argparse

    from meterd.authority.certificate import Vouched
    from meterd.ctl.node import KnownNode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl receipt`."""
    parser.epilog = """\
A receipt holds the sealed block, a quorum's attestations of it, and the orders
that both depend on. `meterctl verify FILE --genesis GENESIS` checks it without
this meter, its network or its account. Any node has the receipts of all meters
whose blocks it holds.

exit status: 0 written, 69 not certified (yet), or not held here

examples:
  meterctl receipt --height 17 -o block-17.receipt
  meterctl receipt --height 17 --meter house-4 > block-17.receipt
"""
    add_node(parser)
    parser.add_argument("--height", required=True, type=positive, metavar="N", help="which block")
    parser.add_argument("--meter", metavar="NAME", help="whose (default: this node's meter)")
    parser.add_argument(
        "--incarnation", type=positive, metavar="N", help="which of its chains (default: the last)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="where to (default: standard output)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the receipt; returns the exit code."""
    refuse_terminal(
        options.out,
        "a receipt",
        f"meterctl receipt --height {options.height} -o block-{options.height}.receipt",
    )
    with open_node(options) as node:
        data, vouched = receipt_of(node, options.meter, options.incarnation, options.height)
    put_out(data, options.out)
    if options.out is None:
        return 0
    block = vouched.block
    print(
        f"wrote {options.out}: block {block.height} of {block.meter} ({block.incarnation}),"
        f"\n  {summary(vouched.certified)}"
    )
    print(f"  check it with `meterctl verify {options.out} --genesis GENESIS`")
    return 0


def receipt_of(
    node: KnownNode, meter: str | None, incarnation: int | None, height: int
) -> tuple[bytes, Vouched]:
    """Return a block's receipt, and what it shows; it has been verified.

    Raises:
        AbsentError: There is no such meter or block here, or the block is not certified.
        StorageError: What the store holds does not verify.
    """
    if not node.roster.committee.voters:
        raise AbsentError(
            f"nobody votes in {node.genesis.name}: no block of it has a receipt",
            hint="`meterctl export --cose` writes a sealed block",
        )
    store = node.need_store()
    name = meter or node.name
    distributor = node.roster.distributor
    meters = sorted({one for one, _ in node.roster.chains if (one, 1) != distributor})
    enrolled = node.roster.newest(name)
    if enrolled is None or name not in meters:
        raise AbsentError(
            f"{name} meters nothing in {node.genesis.name}",
            hint=f"--meter takes one of {', '.join(meters[:20]) or 'no one yet'}",
        )
    chain_id = (name, incarnation or enrolled.incarnation)
    held = node.core.chains.get(chain_id)
    if chain_id not in node.roster.chains or held is None or held.height < height:
        top = held.height if held else 0
        raise AbsentError(
            f"block {height} of {name} ({chain_id[1]}) is not held here"
            + (f": the last is block {top}" if top else ""),
            hint="an interval is sealed at its end; `meterctl peers` shows what is held",
        )
    if held.certified < height:
        raise AbsentError(
            f"block {height} of {name} is not certified yet: that is so up to block"
            f" {held.certified}",
            hint="a quorum has to attest it first; `meterctl peers` shows who has",
        )
    receipt = proofs.receipt(store, chain_id, height, node.roster)
    try:
        return receipt.encode(), verify_receipt(receipt, node.genesis)
    except BlockRejectedError as error:
        raise StorageError(
            f"the receipt of block {height} of {name} would not hold: {error}",
            hint="move the store away: a new one is filled by the peers",
        ) from error
