"""How `meterctl` shows what a genesis founds: to people who compare by voice, and to programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meterd.authority.roster import WITNESSED_MAX, faults_max, quorum
from meterd.ctl.show import Column, print_table
from meterd.enrolment import key_words, spoken, thousands
from meterd.founding import WITNESSED
from meterd.ledger.encoding import HASH_BYTES

if TYPE_CHECKING:
    from meterd.ledger.account import Genesis

_KEY_LETTERS = 19  # four groups of four
_WORDS = {
    "certified": "certified, once a quorum has attested them",
    "witnessed": WITNESSED,
    "standalone": "nobody votes: what a meter has sealed counts as certified",
}


def show(genesis: Genesis) -> None:
    """Print what a genesis founds."""
    print(f"network    {genesis.name}: {genesis.interval_s} s, {genesis.zone}, {genesis.currency}")
    show_hash(genesis)
    voters = sum(node.votes for node in genesis.nodes)
    if voters:
        liars = f"up to {faults_max(voters)}" if faults_max(voters) else "none"
        print(f"voters     {voters}: {quorum(voters)} of them certify, {liars} may lie")
    print(f"blocks     {_WORDS[_word(voters)]}\n")
    print_table(
        [
            Column("node", max((len(node.name) for node in genesis.nodes), default=0)),
            Column("role", max((len(node.role) for node in genesis.nodes), default=0)),
            Column("votes"),
            Column("sealing key", _KEY_LETTERS),
            Column("voting key", _KEY_LETTERS),
        ],
        (
            (
                node.name,
                node.role,
                "yes" if node.votes else "no",
                key_words(node.sealing_key),
                key_words(node.voting_key) or "-",
            )
            for node in genesis.nodes
        ),
    )
    if genesis.meters:
        print()
        print_table(
            [
                Column("meter", max(len(meter.name) for meter in genesis.meters)),
                Column("fuse", 7, right=True),
                Column("nominal", 7, right=True),
                Column("mains clamps", right=True),
                Column("incarnation"),
            ],
            (
                (
                    meter.name,
                    f"{thousands(meter.fuse_ma)} A",
                    f"{thousands(meter.nominal_mv)} V",
                    str(meter.mains_clamps),
                    str(meter.incarnation),
                )
                for meter in genesis.meters
            ),
        )
    for name, role, key in genesis.recipients:
        print(f"\nsealed data may go to {name} ({role}), key {key.hex()}")


def show_hash(genesis: Genesis) -> None:
    """Print the genesis hash as it is read out."""
    half = HASH_BYTES // 2
    print(f"genesis    {spoken(genesis.hash[:half])}")
    print(f"           {spoken(genesis.hash[half:])}")


def _word(voters: int) -> str:
    """Return what blocks of the network are once a quorum has attested them."""
    if not voters:
        return "standalone"
    return "witnessed" if voters <= WITNESSED_MAX else "certified"


def told(genesis: Genesis) -> dict[str, Any]:
    """Return what a genesis founds, for programs."""
    voters = sum(node.votes for node in genesis.nodes)
    return {
        "network": genesis.name,
        "genesis_hash": genesis.hash.hex(),
        "interval_s": genesis.interval_s,
        "zone": genesis.zone,
        "currency": genesis.currency,
        "voters": voters,
        "faults_max": faults_max(voters),
        "quorum": quorum(voters) if voters else 0,
        "word": _word(voters),
        "nodes": [
            {
                "name": node.name,
                "role": node.role,
                "votes": bool(node.votes),
                "sealing_key": node.sealing_key.hex(),
                "voting_key": node.voting_key.hex(),
            }
            for node in genesis.nodes
        ],
        "meters": [
            {
                "name": meter.name,
                "incarnation": meter.incarnation,
                "fuse_ma": meter.fuse_ma,
                "nominal_mv": meter.nominal_mv,
                "mains_clamps": meter.mains_clamps,
            }
            for meter in genesis.meters
        ],
        "recipients": [
            {"name": name, "role": role, "key": key.hex()} for name, role, key in genesis.recipients
        ],
    }
