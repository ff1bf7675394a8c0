"""`meterctl head`: how far this node's own chain is sealed, and how far others vouch for it."""

from __future__ import annotations

import json
from textwrap import fill
from typing import TYPE_CHECKING, Any

from meterd.authority.certificate import open_certificate, verify_certificate
from meterd.authority.roster import WITNESSED_MAX
from meterd.ctl.account import StoredAccount
from meterd.ctl.node import add_node, open_node
from meterd.ctl.options import add_json
from meterd.ctl.show import COLUMNS, count, note
from meterd.device.archive import read_file
from meterd.errors import AbsentError, LedgerDamagedError, MeterdError
from meterd.neighbours import CERTIFICATE_FILE

if TYPE_CHECKING:
    import argparse

    from meterd.authority.certificate import Certificate, Certified
    from meterd.authority.roster import ChainId
    from meterd.ctl.node import KnownNode

INDENT = " " * 11
WITNESSED = "witnessed, not fork-proof: fewer than four vote"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl head`."""
    parser.epilog = """\
Of the account and the peer's database; nothing has to run. The last line is for
`meterctl verify --head`: write it down elsewhere. A certified block is fixed:
a quorum of the network's voters has signed that it holds it.

examples:
  meterctl head
  meterctl head --state ./account --json
"""
    add_node(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show the head; returns the exit code."""
    with open_node(options) as node:
        account = _account(node)
        told = head_of(node, account)
        if options.json:
            print(json.dumps(told))
        else:
            _show(told)
        _compare(told, account)
        if account is not None:
            account.close()
    return 0


def _account(node: KnownNode) -> StoredAccount | None:
    """Return the account beside the node's store; None for a node that meters nothing."""
    try:
        begun = any((node.state / "events").iterdir())
    except OSError:
        return None
    return StoredAccount(node.state) if begun else None


def head_of(node: KnownNode, account: StoredAccount | None) -> dict[str, Any]:
    """Return what is known of the node's own chain, for programs.

    Raises:
        AbsentError: The node has no chain.
    """
    name = account.meter if account else node.name
    chain_id = _own_chain(node, account, name)
    height, block_hash = 0, b""
    if account is not None and account.blocks:
        last = account.blocks[-1].block
        height, block_hash = last.height, last.hash
    elif chain_id == node.roster.distributor and chain_id in node.core.chains:
        held = node.core.chains[chain_id]
        height, block_hash = held.height, held.head_hash if held.height else b""
    voters = len(node.roster.committee.voters)
    certified = _certified(node, chain_id)
    best = (certified["height"], certified["hash"]) if certified else (height, block_hash.hex())
    return {
        "name": name,
        "incarnation": chain_id[1],
        "sealed": {"height": height, "hash": block_hash.hex()} if height else None,
        "certified": certified,
        "word": "standalone"
        if not voters
        else "witnessed"
        if voters <= WITNESSED_MAX
        else "certified",
        "head": f"{best[0]}:{best[1]}" if best[0] else None,
    }


def _own_chain(node: KnownNode, account: StoredAccount | None, name: str) -> ChainId:
    if account is not None:
        blocks = account.blocks
        return name, blocks[-1].block.incarnation if blocks else account.chain.incarnation
    if not name:
        raise AbsentError(
            f"nothing has run in {node.state} yet: there is no head",
            hint="start `meterd run --with-peer` there, or the services, and ask again",
        )
    enrolled = node.roster.newest(name)
    if enrolled is None:
        raise AbsentError(
            f"{name} has no chain: it neither meters nor gives orders",
            hint="`meterctl peers` shows the chains that it holds",
        )
    return name, enrolled.incarnation


def _certified(node: KnownNode, chain_id: ChainId) -> dict[str, Any] | None:
    """Return up to where the chain is certified, by the store or by what the meter kept."""
    held = node.core.chains.get(chain_id)
    found = node.certificate(chain_id, held.certified) if held else None
    kept = _kept(node, chain_id)
    if found is None or (kept and kept[0].height > found[0].height):
        found = kept
    by, strength = set[str](), None
    if found is not None:
        certificate, certified = found
        height, block_hash, epoch = certificate.height, certificate.block_hash, certified.epoch
        by |= set(certified.voters)
        strength = dict(zip(("seen", "timely", "plausible"), certified.strength, strict=True))
    elif held is not None and held.certified:  # a batch of the proof is not here any more
        height, epoch = held.certified, held.certified_epoch
        block_hash = held.hashes[height]
    else:
        return None
    if held is not None:
        by |= set(node.attested_by(held, height, epoch))
    committee = node.roster.committee_of(epoch)
    voters = len(committee.voters) if committee else 0
    return {
        "height": height,
        "hash": block_hash.hex(),
        "by": sorted(by),
        "voters": voters,
        "quorum": committee.quorum if committee else 0,
        "epoch": epoch,
        "strength": strength,
        "fork_proof": voters > WITNESSED_MAX,
    }


def _kept(node: KnownNode, chain_id: ChainId) -> tuple[Certificate, Certified] | None:
    """Return the certificate that the meter keeps beside its account, if it is there and holds."""
    path = node.state / CERTIFICATE_FILE
    if not path.exists():
        return None
    try:
        certificate = open_certificate(read_file(path))
        if (certificate.meter, certificate.incarnation) != chain_id:
            return None
        return certificate, verify_certificate(certificate, node.roster)
    except MeterdError:
        return None  # it may depend on orders that the store lacks; peers give it again


def _show(told: dict[str, Any]) -> None:
    sealed, certified = told["sealed"], told["certified"]
    print(f"chain      {told['name']} ({told['incarnation']})")
    if sealed is None:
        print("sealed     nothing yet")
    else:
        print(f"sealed     {sealed['height']}\n           {sealed['hash']}")
    if told["word"] == "standalone":
        print("           nobody votes here: what is sealed counts as certified")
    elif certified is None:
        print(f"{told['word']:9}  nothing yet, as far as this node knows")
    else:
        print(f"{told['word']:9}  {certified['height']}\n           {certified['hash']}")
        by = f"by {len(certified['by'])} of {certified['voters']}"
        names = ", ".join(certified["by"])
        print(_folded(f"{by} (a quorum is {certified['quorum']}): {names}"))
        if certified["strength"]:
            print(f"strength   {strength_words(certified['strength'])}")
        behind = (sealed["height"] if sealed else 0) - certified["height"]
        if behind > 0:
            print(f"           {count(behind, 'block')} above it not certified yet")
    if told["word"] == "witnessed":
        print(f"           {WITNESSED}")
    if told["head"]:
        print(f"head {told['head']}")


def _folded(text: str) -> str:
    return fill(text, COLUMNS, initial_indent=INDENT, subsequent_indent=INDENT)


def strength_words(strength: dict[str, int]) -> str:
    """Return how many voters stand for what."""
    return (
        f"registers seen by {strength['seen']}, time checked by {strength['timely']}, "
        f"plausible for {strength['plausible']}"
    )


def _compare(told: dict[str, Any], account: StoredAccount | None) -> None:
    """Say where the account is not the one that the neighbours know.

    Raises:
        LedgerDamagedError: It has another block than the one that is certified.
    """
    certified, sealed = told["certified"], told["sealed"]
    if account is None or certified is None:
        return
    if not sealed or sealed["height"] < certified["height"]:
        note(
            f"the neighbours hold block {certified['height']}, this card does not: was it put back"
            " to an earlier state? meterd fetches what is missing at its next start"
        )
        return
    here = next(
        (each.block for each in account.blocks if each.block.height == certified["height"]), None
    )
    if here is not None and here.hash.hex() != certified["hash"]:
        raise LedgerDamagedError(
            f"block {here.height} on this card is not the one that the neighbours certified",
            hint="keep the card as it is, and let a technician look",
        )
