"""Joins what a store holds into what a stranger can verify: certificates, receipts, evidence."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from meterd.authority.attestation import open_batch, prove
from meterd.authority.certificate import (
    EVIDENCE_BYTES_MAX,
    Certificate,
    Receipt,
    certificate_of,
    open_certificate,
    votes_evidence,
)
from meterd.authority.effects import SendBatches, SendCertificate, SendClosings, SendEvidence
from meterd.errors import AbsentError
from meterd.ledger.encoding import MESSAGE_BYTES_MAX, take_apart

if TYPE_CHECKING:
    from meterd.authority.attestation import Batch, Leaf
    from meterd.authority.effects import Accuse, Certify
    from meterd.authority.roster import ChainId, Roster
    from meterd.device.store import Store

SPAN_MAX = 256  # blocks that link one to what was attested: with more, no message holds it
STRANGE_MAX = 16  # attestations of other histories: after so many of one voter it is not looked on


def answers(
    store: Store,
    effect: SendBatches | SendEvidence | SendCertificate | SendClosings,
    roster: Roster,
) -> list[bytes]:
    """Return the messages that a peer has asked for; none where they are not here."""
    match effect:
        case SendBatches():
            return store.batches(effect.kid, effect.first, effect.last)
        case SendEvidence():
            evidence = store.evidence(effect.evidence_id)
            return [] if evidence is None else [evidence]
        case SendCertificate():
            for height in (effect.height, effect.certified):
                made = certificate(store, effect.chain, height, roster, span_max=SPAN_MAX)
                if made is not None and len(message := made[1].encode()) <= MESSAGE_BYTES_MAX:
                    return [message]
            return []
        case SendClosings():
            return store.closings(effect.epoch)


def accuse(store: Store, accuse: Accuse) -> bytes | None:
    """Return the evidence that a voter attested two histories; None if it is not all here."""
    low = _batch(store, accuse.kid, accuse.low_number, accuse.low)
    high = _batch(store, accuse.kid, accuse.high_number, accuse.high)
    if low is None or high is None:
        return None
    first, last = accuse.low.height + 1, accuse.high.height
    found = store.blocks(accuse.high.chain, first, last, bytes_max=EVIDENCE_BYTES_MAX)
    between = [take_apart(sealed).payload for _, sealed in found]
    if len(between) != last - first + 1:
        return None  # longer than evidence may be
    return votes_evidence(
        (prove(low, low.leaves.index(accuse.low)), accuse.low),
        (prove(high, high.leaves.index(accuse.high)), accuse.high),
        between,
    )


def _batch(store: Store, kid: bytes, number: int, leaf: Leaf, *, epoch: int = 0) -> Batch | None:
    """Return a voter's batch that has this leaf, in `epoch` or in any; it may lie beside."""
    for message in store.batches(kid, number, number):
        batch = open_batch(message, store.genesis)
        if leaf in batch.leaves and epoch in {0, batch.header.epoch}:
            return batch
    return None


def certify(store: Store, certify: Certify, roster: Roster) -> tuple[bytes, Certificate] | None:
    """Return a block with its seal, and its certificate; None if it is not all here."""
    chain_id, height = certify.chain, certify.height
    if not certify.votes:
        return certificate(store, chain_id, height, roster)
    votes = []
    for kid, number, leaf in certify.votes:
        batch = _batch(store, kid, number, leaf, epoch=certify.epoch)
        if batch is not None and leaf.block_hash == store.hash_at(chain_id, leaf.height):
            votes.append((batch, leaf))
    needed = roster.quorums(chain_id, height)[certify.epoch]
    return _certificate(store, chain_id, height, votes, needed)


def _certificate(
    store: Store,
    chain_id: ChainId,
    height: int,
    votes: list[tuple[Batch, Leaf]],
    needed: int,
    *,
    span_max: int | None = None,
) -> tuple[bytes, Certificate] | None:
    if len(votes) < needed:
        return None
    top = sorted(leaf.height for _, leaf in votes)[needed - 1]
    if span_max is not None and top - height > span_max:
        return None
    sealed = [message for _, message in store.blocks(chain_id, height, top)]
    if len(sealed) != top - height + 1 or store.unsealed(chain_id, height):
        return None
    payloads = [take_apart(message).payload for message in sealed]
    place = (*chain_id, height, store.hash_at(chain_id, height))
    return sealed[0], certificate_of(place, votes, payloads[1:], needed)


def certificate(
    store: Store, chain_id: ChainId, height: int, roster: Roster, *, span_max: int | None = None
) -> tuple[bytes, Certificate] | None:
    """Return a block with its seal and certificate, out of the batches nearest above it.

    Args:
        store: What this node holds.
        chain_id: Which chain.
        height: The block's height.
        roster: The network as this node knows it.
        span_max: How many blocks may lie between it and what was attested; None for any number.
    """
    quorums = roster.quorums(chain_id, height)
    by_epoch: dict[int, list[tuple[Batch, Leaf]]] = {}
    seen = set[tuple[int, bytes]]()
    strange = Counter[bytes]()
    for kid, epoch, message in store.votes_above(chain_id, height):
        if (epoch, kid) in seen or epoch not in quorums or strange[kid] >= STRANGE_MAX:
            continue
        batch = open_batch(message, store.genesis)
        leaf = next(leaf for leaf in batch.leaves if leaf.chain == chain_id)
        if leaf.block_hash != store.hash_at(chain_id, leaf.height):
            strange[kid] += 1  # of another history
            continue
        seen.add((epoch, kid))
        votes = by_epoch.setdefault(epoch, [])
        votes.append((batch, leaf))
        if len(votes) == quorums[epoch]:
            made = _certificate(store, chain_id, height, votes, quorums[epoch], span_max=span_max)
            if made is not None:
                return made
    orders = chain_id == roster.distributor
    return _shown(store, chain_id, height, span_max=0 if orders else SPAN_MAX)


def _shown(
    store: Store, chain_id: ChainId, height: int, *, span_max: int
) -> tuple[bytes, Certificate] | None:
    """Return an order or a block with the certificate that a peer has shown of it, or above it."""
    data = store.shown(chain_id, height)
    if data is None:
        return None
    shown = open_certificate(data)
    if shown.height - height > span_max:
        return None
    sealed = [message for _, message in store.blocks(chain_id, height, shown.height)]
    here = store.hash_at(chain_id, height)
    if len(sealed) != shown.height - height + 1 or store.unsealed(chain_id, height):
        return None
    if shown.block_hash != store.hash_at(chain_id, shown.height):
        return None
    between = tuple(take_apart(message).payload for message in sealed[1:])
    made = shown._replace(height=height, block_hash=here, above=between + shown.above)
    return sealed[0], made


def receipt(store: Store, chain_id: ChainId, height: int, roster: Roster) -> Receipt:
    """Return a block's receipt.

    Raises:
        AbsentError: It is not certified, or not all of its proof is here.
    """
    made = certificate(store, chain_id, height, roster)
    if made is None:
        raise AbsentError(
            f"block {height} of {chain_id[0]} is not certified as far as this node knows",
            hint="see `meterctl head`; ask again once it is",
        )
    orders = []
    for at in range(1, roster.head.height + 1):
        assert roster.distributor is not None  # noqa: S101 - whose orders these are
        order = certificate(store, roster.distributor, at, roster)
        if order is None:
            raise AbsentError(f"the certificate of order {at} is not here")
        orders.append(order)
    return Receipt(made[0], made[1], tuple(orders))
