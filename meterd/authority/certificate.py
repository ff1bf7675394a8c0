"""Proofs that travel: certificates, receipts, and what proves that somebody lied.

A certificate holds for a block if a quorum of one epoch attested it or a descendant. A receipt is
a block with its certificate and with the orders that both depend on: whoever has the genesis needs
nothing else. Evidence names one who signed two histories, and stands by itself as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nacl.signing import VerifyKey

from meterd.authority.attestation import CHECKS, Leaf, open_proof, prove, read_leaf, verify_proof
from meterd.authority.roster import OrderUnknownError, found
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.account import shaped
from meterd.ledger.block import Block, decode_block
from meterd.ledger.encoding import (
    HASH_BYTES,
    decode,
    digest,
    encode,
    key_id,
    take_apart,
    verify_seal,
)
from meterd.ledger.order import Order, decode_order, open_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterd.authority.attestation import Batch, Proof
    from meterd.authority.roster import ChainId, Roster
    from meterd.ledger.account import Genesis

CERTIFICATE_CONTEXT = "meterd/certificate/v1"
RECEIPT_CONTEXT = "meterd/receipt/v1"
SEALS_CONTEXT = "meterd/evidence-seals/v1"
VOTES_CONTEXT = "meterd/evidence-votes/v1"
RECEIPT_BYTES_MAX = 1 << 24  # orders of many years, each with its certificate
EVIDENCE_BYTES_MAX = 1 << 20
ABOVE_MAX = 20_000  # a meter that was alone for a year is certified by its head


class Certificate(NamedTuple):
    """That a block is fixed and witnessed.

    Attributes:
        meter: Whose chain.
        incarnation: Which of its chains.
        height: The block's height.
        block_hash: Its hash.
        above: Payloads of the blocks above it, up to the highest attested head.
        proofs: (COSE Receipt, leaf) of a quorum.
    """

    meter: str
    incarnation: int
    height: int
    block_hash: bytes
    above: tuple[bytes, ...]
    proofs: tuple[tuple[bytes, Leaf], ...]

    def spell(self) -> list[Any]:
        """Return what is encoded, as a message or within one."""
        return [
            CERTIFICATE_CONTEXT,
            self.meter,
            self.incarnation,
            self.height,
            self.block_hash,
            list(self.above),
            [[receipt, list(leaf)] for receipt, leaf in self.proofs],
        ]

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return encode(self.spell())


class Certified(NamedTuple):
    """What a certificate that holds says.

    Attributes:
        epoch: In which epoch.
        voters: Who attested, by name.
        strength: How many of them saw the registers, checked the time, found it plausible.
        witnessed: True where one liar among the voters could have certified a second history.
    """

    epoch: int
    voters: tuple[str, ...]
    strength: tuple[int, int, int]
    witnessed: bool


def certificate_of(
    place: tuple[str, int, int, bytes],
    votes: Sequence[tuple[Batch, Leaf]],
    payloads: Sequence[bytes],
    needed: int,
) -> Certificate:
    """Return the certificate of a block.

    Args:
        place: Name, incarnation, height and hash of the block.
        votes: Batches of different voters of one epoch, and the leaf in each that attests it.
        payloads: Those of the blocks above it, ascending, as far as any leaf reaches.
        needed: How many votes are a quorum: the lowest leaves are taken.
    """
    chosen = sorted(votes, key=lambda vote: (vote[1].height, vote[0].kid))[:needed]
    above = max(leaf.height for _, leaf in chosen) - place[2]
    proofs = tuple((prove(batch, batch.leaves.index(leaf)), leaf) for batch, leaf in chosen)
    return Certificate(*place, tuple(payloads[:above]), proofs)


def read_certificate(value: Any) -> Certificate:  # noqa: ANN401 - any decoded value
    """Return the certificate that a decoded value is.

    Raises:
        EncodingError: It is none.
    """
    if not shaped(value, str, str, int, int, bytes, tuple, tuple):
        raise EncodingError("not a certificate")
    if value[0] != CERTIFICATE_CONTEXT or len(value[4]) != HASH_BYTES:
        raise EncodingError("not a certificate")
    if not all(type(payload) is bytes for payload in value[5]):
        raise EncodingError("what lies above the certified block is no payload")
    if not all(shaped(proof, bytes, tuple) for proof in value[6]):
        raise EncodingError("a proof of the certificate is misshapen")
    proofs = tuple((receipt, read_leaf(leaf)) for receipt, leaf in value[6])
    return Certificate(value[1], value[2], value[3], value[4], value[5], proofs)


def open_certificate(data: bytes) -> Certificate:
    """Return the certificate that `data`, bytes from outside, spells.

    Raises:
        EncodingError: It is none.
    """
    return read_certificate(decode(data, bytes_max=RECEIPT_BYTES_MAX))


def _link(payload: bytes) -> tuple[ChainIdHeight, bytes, int]:
    """Return place, previous hash and named order of a block or an order."""
    try:
        block: Block | Order = decode_block(payload)
    except EncodingError:
        block = decode_order(payload)
    if isinstance(block, Order):
        return (block.distributor, block.incarnation, block.height), block.previous, 0
    return (block.meter, block.incarnation, block.height), block.previous, block.order[0]


ChainIdHeight = tuple[str, int, int]


def verify_certificate(certificate: Certificate, roster: Roster, epoch_min: int = 1) -> Certified:
    """Return what `certificate` says, if it holds under `roster`.

    Args:
        certificate: From outside.
        roster: What is known of the network; at least the orders that it depends on.
        epoch_min: Epoch of the order that the certified block names: votes of an epoch before do
            not count.

    Raises:
        BlockRejectedError: It does not hold.
    """
    try:
        return _verify_certificate(certificate, roster, epoch_min)
    except EncodingError as error:
        raise BlockRejectedError(f"not a certificate: {error}") from error


def _verify_certificate(certificate: Certificate, roster: Roster, epoch_min: int) -> Certified:
    name, incarnation, height, block_hash = certificate[:4]
    if len(certificate.above) > ABOVE_MAX:
        raise BlockRejectedError(f"more than {ABOVE_MAX} blocks lie above the certified one")
    heads = {height: (block_hash, epoch_min)}
    here, floor = block_hash, epoch_min
    for at, payload in enumerate(certificate.above, start=height + 1):
        place, previous, order = _link(payload)
        if place != (name, incarnation, at) or previous != here:
            raise BlockRejectedError(f"the blocks above {height} do not link to it")
        here = digest(payload)
        floor = max(floor, roster.epoch_at(order))
        heads[at] = (here, floor)
    voters: dict[str, int] = {}
    epochs = set[int]()
    for receipt, leaf in certificate.proofs:
        known = heads.get(leaf.height)
        if leaf.chain != (name, incarnation) or known is None or known[0] != leaf.block_hash:
            raise BlockRejectedError("a proof is of another block")
        proof = open_proof(receipt, leaf, roster.genesis)
        voter = _voter(proof, roster)
        if proof.header.epoch < known[1]:
            raise BlockRejectedError(f"{voter} attested in an epoch that was over")
        if voter in voters:
            raise BlockRejectedError(f"{voter} is counted twice")
        voters[voter] = leaf.checks
        epochs.add(proof.header.epoch)
    if len(epochs) != 1:
        raise BlockRejectedError("the proofs are of several epochs, or there are none")
    (epoch,) = epochs
    committee = roster.committee_of(epoch)
    needed = committee.quorum if committee else 0
    if committee is None or len(voters) < needed:
        raise BlockRejectedError(f"{len(voters)} attested, {needed} are a quorum")
    strength = tuple(sum(bool(checks & bit) for checks in voters.values()) for bit in CHECKS)
    return Certified(
        epoch,
        tuple(sorted(voters)),
        (strength[0], strength[1], strength[2]),
        committee.faults_max == 0,
    )


def _voter(proof: Proof, roster: Roster) -> str:
    """Return the name of the voter whose signature `proof` bears.

    Raises:
        BlockRejectedError: Nobody who votes in its epoch signed it.
    """
    committee = roster.committee_of(proof.header.epoch)
    if committee is None:
        raise OrderUnknownError(f"epoch {proof.header.epoch} is not known here")
    voter = committee.voter(proof.kid)
    if voter is None:
        raise BlockRejectedError(
            f"key {proof.kid.hex()} does not vote in epoch {proof.header.epoch}"
        )
    verify_proof(proof, voter[1])
    return voter[0]


# --- receipts ---------------------------------------------------------------------------------


class Receipt(NamedTuple):
    """A block that can be checked by whoever has the genesis.

    Attributes:
        sealed: The block with its seal.
        certificate: Its certificate.
        orders: (order with its seal, its certificate) from the first on, up to the last that
            block and certificate depend on.
    """

    sealed: bytes
    certificate: Certificate
    orders: tuple[tuple[bytes, Certificate], ...]

    def encode(self) -> bytes:
        """Return the file's bytes."""
        return encode(
            [
                RECEIPT_CONTEXT,
                self.sealed,
                self.certificate.spell(),
                [[order, certificate.spell()] for order, certificate in self.orders],
            ]
        )


def open_receipt(data: bytes) -> Receipt:
    """Return the receipt that `data`, bytes from outside, spells.

    Raises:
        EncodingError: It is none.
    """
    value = decode(data, bytes_max=RECEIPT_BYTES_MAX)
    if not shaped(value, str, bytes, tuple, tuple) or value[0] != RECEIPT_CONTEXT:
        raise EncodingError("not a receipt")
    if not all(shaped(order, bytes, tuple) for order in value[3]):
        raise EncodingError("an order of the receipt is misshapen")
    orders = tuple((sealed, read_certificate(spelt)) for sealed, spelt in value[3])
    return Receipt(value[1], read_certificate(value[2]), orders)


class Vouched(NamedTuple):
    """What a receipt that holds shows.

    Attributes:
        block: The block, whose seal holds under the key that its network gives the meter.
        block_hash: Its hash.
        certified: Who witnessed it.
        roster: The network as of the orders in the receipt.
    """

    block: Block
    block_hash: bytes
    certified: Certified
    roster: Roster


def verify_receipt(receipt: Receipt, genesis: Genesis) -> Vouched:
    """Return what `receipt` shows to whoever trusts `genesis`.

    Raises:
        BlockRejectedError: It does not hold.
    """
    roster = found(genesis)
    for sealed, certificate in receipt.orders:
        roster = add_certified_order(roster, sealed, certificate)
    block, payload = open_enrolled(receipt.sealed, roster)
    place = (block.meter, block.incarnation, block.height, digest(payload))
    if receipt.certificate[:4] != place:
        raise BlockRejectedError("the certificate is of another block")
    closed = roster.enrolled((block.meter, block.incarnation)).closed
    if closed is not None and block.height > closed[0]:
        raise BlockRejectedError(f"an order ended this chain at block {closed[0]}")
    certified = verify_certificate(receipt.certificate, roster, roster.epoch_at(block.order[0]))
    return Vouched(block, place[3], certified, roster)


def add_certified_order(roster: Roster, sealed: bytes, certificate: Certificate) -> Roster:
    """Return `roster` with one more order, sealed and certified.

    Raises:
        BlockRejectedError: Seal, place or certificate do not hold.
    """
    if roster.distributor is None:
        raise BlockRejectedError("this network has no distributor: nobody gives orders")
    key = roster.enrolled(roster.distributor).key_at(roster.head.height)
    order, payload = open_order(sealed, key, roster.genesis)
    following = roster.add(order)
    place = (*roster.distributor, order.height, digest(payload))
    if certificate[:4] != place:
        raise BlockRejectedError(f"the certificate is not of order {order.height}")
    verify_certificate(certificate, roster, roster.committee.epoch)
    return following


def spell_order(sealed: bytes, certificate: Certificate) -> bytes:
    """Return a certified order as one message: what `add_spelt_order` takes."""
    return encode([sealed, certificate.spell()])


def add_spelt_order(roster: Roster, spelt: bytes) -> Roster:
    """Return `roster` with a certified order, spelt as [order with its seal, certificate].

    Raises:
        EncodingError: It is misspelt.
        BlockRejectedError: Seal, place or certificate do not hold.
    """
    value = decode(spelt, bytes_max=RECEIPT_BYTES_MAX)
    if not shaped(value, bytes, tuple):
        raise EncodingError("not an order with its certificate")
    return add_certified_order(roster, value[0], read_certificate(value[1]))


def open_enrolled(sealed: bytes, roster: Roster) -> tuple[Block, bytes]:
    """Return the block in `sealed` and its payload, its seal verified under the enrolled key.

    Raises:
        BlockRejectedError: It is misspelt, nobody enrolled sealed it, or it names an unknown order.
    """
    try:
        parts = take_apart(sealed)
        block = decode_block(parts.payload)
    except EncodingError as error:
        raise BlockRejectedError(f"not a sealed block: {error}") from error
    if block.genesis != roster.genesis:
        raise BlockRejectedError("the block is another network's")
    chain = roster.open_chain((block.meter, block.incarnation))
    terms = roster.terms(chain, block.order)
    verify_seal(parts, VerifyKey(terms.key_at(block.order[0])), roster.genesis)
    return block, parts.payload


# --- evidence ---------------------------------------------------------------------------------


class Accused(NamedTuple):
    """Who signed two histories.

    Attributes:
        name: The meter, the distributor or the authority.
        role: `meter`, `distributor` or `authority`.
        chain: On which chain.
        height: At which height, the lower one of two votes.
        kid: Id of the key that signed both votes; empty for two blocks.
    """

    name: str
    role: str
    chain: ChainId
    height: int
    kid: bytes = b""


def seals_evidence(one: bytes, other: bytes) -> bytes:
    """Return the proof that one sealer sealed two blocks of one height."""
    return encode([SEALS_CONTEXT, *sorted((one, other))])


def votes_evidence(
    one: tuple[bytes, Leaf], other: tuple[bytes, Leaf], between: Sequence[bytes]
) -> bytes:
    """Return the proof that one authority attested two histories of one chain.

    Args:
        one: Proof and leaf of the lower head.
        other: Those of the other head.
        between: Payloads of the other head's block and of those before it, down to one above the
            lower head's height; ascending, none where both are of one height.
    """
    spelt: list[Any] = [[receipt, list(leaf)] for receipt, leaf in (one, other)]
    return encode([VOTES_CONTEXT, *spelt, list(between)])


def verify_evidence(data: bytes, roster: Roster) -> Accused:
    """Return whom `data`, bytes from outside, convicts.

    Raises:
        BlockRejectedError: Nobody.
    """
    try:
        value = decode(data, bytes_max=EVIDENCE_BYTES_MAX)
        if shaped(value, str, bytes, bytes) and value[0] == SEALS_CONTEXT:
            return _two_seals(value[1], value[2], roster)
        if shaped(value, str, tuple, tuple, tuple) and value[0] == VOTES_CONTEXT:
            return _two_votes(value[1], value[2], value[3], roster)
    except EncodingError as error:
        raise BlockRejectedError(f"no evidence: {error}") from error
    raise BlockRejectedError("no evidence of any kind known here")


def _two_seals(one: bytes, other: bytes, roster: Roster) -> Accused:
    if one >= other:
        raise BlockRejectedError("the two are out of order, or one")
    places = [_sealed_place(sealed, roster) for sealed in (one, other)]
    if places[0][0] != places[1][0]:
        raise BlockRejectedError("the two are of different places")
    if places[0][1] == places[1][1]:
        raise BlockRejectedError("the two are one block")
    name, incarnation, height = places[0][0]
    role = "distributor" if (name, incarnation) == roster.distributor else "meter"
    return Accused(name, role, (name, incarnation), height)


def _sealed_place(sealed: bytes, roster: Roster) -> tuple[ChainIdHeight, bytes]:
    parts = take_apart(sealed)
    try:
        order = decode_order(parts.payload)
    except EncodingError:
        block, payload = open_enrolled(sealed, roster)
        return (block.meter, block.incarnation, block.height), digest(payload)
    chain_id = (order.distributor, order.incarnation)
    if chain_id != roster.distributor:
        raise BlockRejectedError(f"{order.distributor[:40]} gives no orders here")
    keys = [key for _, key in roster.enrolled(chain_id).keys]
    key = next((key for key in keys if key_id(key) == parts.kid), keys[-1])
    order, payload = open_order(sealed, key, roster.genesis)
    return (*chain_id, order.height), digest(payload)


def _two_votes(
    one: tuple[Any, ...], other: tuple[Any, ...], between: tuple[Any, ...], roster: Roster
) -> Accused:
    proofs = []
    for value in (one, other):
        if not shaped(value, bytes, tuple):
            raise EncodingError("a vote is misshapen")
        proofs.append(open_proof(value[0], read_leaf(value[1]), roster.genesis))
    low, high = proofs
    voters = [_voter(proof, roster) for proof in proofs]
    if voters[0] != voters[1]:
        raise BlockRejectedError("the votes are of two authorities")
    if low.kid != high.kid:  # another device, that may not know what the one before has signed
        raise BlockRejectedError("the votes are under two keys")
    if low.leaf.chain != high.leaf.chain or low.leaf.height > high.leaf.height:
        raise BlockRejectedError("the votes are of two chains, or the higher one comes first")
    here = high.leaf.block_hash
    if len(between) != high.leaf.height - low.leaf.height:
        raise BlockRejectedError("the blocks between the two votes are not all there")
    for at, payload in zip(
        range(high.leaf.height, low.leaf.height, -1), reversed(between), strict=True
    ):
        if type(payload) is not bytes or digest(payload) != here:
            raise BlockRejectedError("the blocks between the two votes do not link")
        place, here, _ = _link(payload)
        if place != (*high.leaf.chain, at):
            raise BlockRejectedError("the blocks between the two votes are another chain's")
    if here == low.leaf.block_hash:
        raise BlockRejectedError("the one head is the other's ancestor: nobody lied")
    return Accused(voters[0], "authority", low.leaf.chain, low.leaf.height, low.kid)


def summary(certified: Certified) -> str:
    """Return a clause for people: certified, or witnessed by how many."""
    word = "witnessed" if certified.witnessed else "certified"
    return f"{word} by {len(certified.voters)}: {', '.join(certified.voters)}"
