"""Judges a file that proves something by itself: a receipt, or evidence. The genesis is enough.

Exit statuses are those of `meterctl verify`: 0 good, 1 bad, 2 unreadable, which it is too where a
proof depends on orders that neither it nor the genesis holds.
"""

from __future__ import annotations

import json
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.authority.attestation import open_proof, read_leaf
from meterd.authority.certificate import (
    EVIDENCE_BYTES_MAX,
    RECEIPT_BYTES_MAX,
    RECEIPT_CONTEXT,
    SEALS_CONTEXT,
    VOTES_CONTEXT,
    open_receipt,
    verify_evidence,
    verify_receipt,
)
from meterd.authority.roster import found, quorum
from meterd.ctl import evidence as evidence_words
from meterd.ctl.head import WITNESSED, strength_words
from meterd.ctl.report_words import judged
from meterd.ctl.show import COLUMNS, kwh, local, register_name, register_unit, utc, zone_of
from meterd.errors import BlockRejectedError, EncodingError, MeterdError, UsageError
from meterd.ledger.account import decode_genesis
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import decode, take_apart
from meterd.ledger.report import FILE_CONTEXT as REPORT_CONTEXT
from meterd.metering.energy import obis_code
from meterd.metering.interval import FLAG_NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.authority.certificate import Vouched
    from meterd.ledger.account import Genesis
    from meterd.ledger.verdict import Known

EXIT_CODES = {"good": 0, "bad": 1, "unreadable": 2}
INDENT = " " * 4
_EVIDENCE = (SEALS_CONTEXT, VOTES_CONTEXT)


class UnreadableError(MeterdError):
    """There is nothing at the path that could be judged."""

    exit_code = EXIT_CODES["unreadable"]


class Proof(NamedTuple):
    """A file that says it is a receipt or evidence; nothing in it is verified.

    Attributes:
        kind: `receipt`, `report` or `evidence`.
        data: Its bytes.
    """

    kind: str
    data: bytes

    @property
    def called(self) -> str:
        """What it is called in a sentence."""
        return {"receipt": "a receipt", "report": "a report"}.get(self.kind, "evidence")


def read_proof(path: Path) -> Proof | None:
    """Return the file, or None where it does not even say it is a receipt or evidence."""
    try:
        with path.open("rb") as file:
            data = file.read(RECEIPT_BYTES_MAX + 1)
        value = decode(data, bytes_max=RECEIPT_BYTES_MAX)
    except (OSError, EncodingError):
        return None
    context = value[0] if type(value) is tuple and value else None
    if context == RECEIPT_CONTEXT:
        return Proof("receipt", data)
    if context == REPORT_CONTEXT:
        return Proof("report", data)
    return Proof("evidence", data) if context in _EVIDENCE else None


def judge_file(path: Path, proof: Proof, known: Known, *, as_json: bool) -> int:
    """Judge `proof`, tell the verdict, and return the exit code.

    Raises:
        UsageError: No genesis was given, or it is one that founds nothing.
        UnreadableError: It is misshapen, or depends on what is not known here.
    """
    if proof.kind == "report":
        return judged(path, known, as_json=as_json)
    if not known.genesis:
        raise UsageError(
            f"{path} is {proof.called}, and takes --genesis FILE to be judged by",
            hint="the network's genesis, from elsewhere than the file; every member has it",
        )
    genesis = decode_genesis(known.genesis)
    try:
        found(genesis)
    except BlockRejectedError as error:
        raise UsageError(f"--genesis: it founds no network: {error}") from error
    judge = _receipt if proof.kind == "receipt" else _evidence
    if proof.kind != "receipt" and known.key:
        raise UsageError("--key is for a meter's account or receipt, not for evidence")
    try:
        told, lines = judge(proof.data, genesis, known.key)
    except (BlockRejectedError, EncodingError) as error:
        # what cannot be taken apart is no receipt; what can, and does not hold, is a bad one
        verdict = "unreadable" if isinstance(error, EncodingError) else "bad"
        told = {"verdict": verdict, "kind": proof.kind, "reason": str(error)}
        lines = [f"bad: {path} proves nothing:", f"  {error}"]
        if verdict == "unreadable":
            if as_json:
                print(json.dumps(told), flush=True)
            raise UnreadableError(
                f"{path} cannot be judged: {error}",
                hint="ask for it anew: `meterctl receipt`, `meterctl evidence`",
            ) from error
    print(json.dumps(told) if as_json else "\n".join(lines))
    return EXIT_CODES[told["verdict"]]


# --- receipts ---------------------------------------------------------------------------------


def _receipt(data: bytes, genesis: Genesis, key: bytes) -> tuple[dict[str, Any], list[str]]:
    receipt = open_receipt(data)
    try:
        vouched = verify_receipt(receipt, genesis)
    except EncodingError as error:
        raise BlockRejectedError(str(error)) from error
    told = _told(vouched, len(receipt.orders))
    if key and key.hex() != told["key"]:
        raise BlockRejectedError(f"it is sealed with {told['key']}, not with the given key")
    return told, _sentences(vouched, told, genesis)


def _told(vouched: Vouched, orders: int) -> dict[str, Any]:
    """Return what a receipt shows, for programs."""
    block, certified, roster = vouched.block, vouched.certified, vouched.roster
    committee = roster.committee_of(certified.epoch)
    voters = len(committee.voters) if committee else 0
    seen, timely, plausible = certified.strength
    return {
        "verdict": "good",
        "kind": "receipt",
        "reason": None,
        "network": roster.network,
        "meter": block.meter,
        "incarnation": block.incarnation,
        "height": block.height,
        "block_hash": vouched.block_hash.hex(),
        "start_s": block.start_s,
        "end_s": block.end_s,
        "clock": block.clock.status,
        "flags": [name for bit, name in FLAG_NAMES.items() if block.flags & bit],
        "registers": {
            obis_code(energy.obis): {
                "first_uj": energy.first_uj,
                "last_uj": energy.last_uj,
                "uj": energy.last_uj - energy.first_uj,
                "kind": "estimated" if energy.kind else "measured",
            }
            for energy in block.energy
        },
        "key": roster.enrolled((block.meter, block.incarnation)).key_at(block.order[0]).hex(),
        "certified_by": list(certified.voters),
        "voters": voters,
        "quorum": quorum(voters),
        "epoch": certified.epoch,
        "strength": {"seen": seen, "timely": timely, "plausible": plausible},
        "fork_proof": not certified.witnessed,
        "orders": orders,
    }


def _sentences(vouched: Vouched, told: dict[str, Any], genesis: Genesis) -> list[str]:
    block, zone = vouched.block, zone_of(genesis.zone)
    word = "certified" if told["fork_proof"] else "witnessed"
    whose = f"{block.meter} ({block.incarnation}) in {told['network']}"
    lines = [
        f"good: block {block.height} of {whose} is {word}",
        f"  from   {local(block.start_s, zone)} ({utc(block.start_s)})",
        f"  to     {local(block.end_s, zone)} ({utc(block.end_s)})",
    ]
    clock = {"I": "informative", "R": "relative"}.get(block.clock.status)
    if clock:
        lines.append(f"  clock  {clock}: not synchronised throughout")
    if told["flags"]:
        lines.append(f"  flags  {', '.join(told['flags'])}")
    lines.append(f"  {'register':10}  {'first':>14}  {'last':>14}  {'difference':>14}")
    for code, register in told["registers"].items():
        shown = "  ".join(f"{kwh(register[key]):>14}" for key in ("first_uj", "last_uj", "uj"))
        kind = "" if register["kind"] == "measured" else " est."
        lines.append(f"  {register_name(code):10}  {shown}  {register_unit(code)}{kind}")
    by = f"{len(told['certified_by'])} of {told['voters']} voters"
    lines += [
        f"  sealed with {told['key']}",
        f"  {word} by {by} (a quorum is {told['quorum']}), epoch {told['epoch']}:",
        *wrap(
            ", ".join(told["certified_by"]),
            COLUMNS,
            initial_indent=INDENT,
            subsequent_indent=INDENT,
        ),
        f"    {strength_words(told['strength'])}",
    ]
    if not told["fork_proof"]:
        lines += [f"    {WITNESSED}", "    one liar among the voters can certify another history"]
    lines.append(f"head {block.height}:{told['block_hash']}")
    return lines


# --- evidence ---------------------------------------------------------------------------------


def _evidence(data: bytes, genesis: Genesis, _key: bytes) -> tuple[dict[str, Any], list[str]]:
    try:
        accused = verify_evidence(data, found(genesis))
    except BlockRejectedError as error:
        if _needs_orders(data, genesis):
            raise EncodingError(
                f"it depends on orders that the genesis does not hold ({error}); a node that has"
                " them shows it with `meterctl evidence`"
            ) from error
        raise
    told = {"verdict": "good", "kind": "evidence", "reason": None} | evidence_words.told(accused)
    return told, [f"good: {evidence_words.words(accused)}", "  both are signed with its own key"]


def _needs_orders(data: bytes, genesis: Genesis) -> bool:
    """Say whether evidence names an order, or a later epoch than the first."""
    try:
        context, *parts = decode(data, bytes_max=EVIDENCE_BYTES_MAX)
        if context == SEALS_CONTEXT:
            return any(decode_block(take_apart(sealed).payload).order[0] for sealed in parts)
        votes = [open_proof(vote[0], read_leaf(vote[1]), genesis.hash) for vote in parts[:2]]
    except (EncodingError, TypeError, ValueError, IndexError):
        return False
    return any(vote.header.epoch > 1 for vote in votes)
