"""What must hold in the simulated street at every step, told by one who sees all of it.

The oracle knows every block that was ever sealed and every batch that was ever signed, and counts
quorums by a formula of its own: it asks no node what is certified, and tells each node when it is
wrong. Honest is whoever neither lies nor got an older card; `within` says whether the others are
few enough for the claims of DESIGN.md to hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meterd.authority import certificate as certificates
from meterd.authority.attestation import Batch, Leaf, open_batch
from meterd.authority.roster import Roster, found
from meterd.errors import BlockRejectedError
from meterd.ledger.block import BLOCK_CONTEXT, decode_block
from meterd.ledger.encoding import digest
from meterd.ledger.order import RosterChange, decode_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterd.authority.roster import ChainId
    from meterd.ledger.account import Genesis

Place = tuple[str, int, int]


class Refuted(AssertionError):  # noqa: N818 - it says what it is
    """A claim of DESIGN.md does not hold in this run."""


def faults(voters: int) -> int:
    """Return how many of `voters` may lie."""
    return max(voters - 1, 0) // 3


def needed(voters: int) -> int:
    """Return how many attestations certify."""
    return (voters + faults(voters)) // 2 + 1


class Link(NamedTuple):
    """A block or an order that somebody sealed.

    Attributes:
        place: Name, incarnation and height.
        previous: Hash of what it links to.
        epoch: The first epoch in which it may be attested.
        payload: Its bytes.
    """

    place: Place
    previous: bytes
    epoch: int
    payload: bytes


class Oracle:
    """Who signed what, and what follows from it.

    Attributes:
        proven: Genesis and the orders that were certified, as anybody could prove it.
        certified: Hashes by place: one, unless more lie than may.
        highest: Up to where a chain is certified, by name.
        faulty: Liars, and whose card was put back.
        votes: Batches and leaves of each voting key on each chain.
        convicted: Whom evidence names.
    """

    def __init__(
        self,
        genesis: Genesis,
        *,
        liars: set[str],
        sealers: set[str],
        holders: Callable[[ChainId, int, bytes], int],
    ) -> None:
        """Know nothing but who lies.

        Args:
            genesis: The network's.
            liars: Authorities that lie.
            sealers: Meters, or the distributor, that seal two histories.
            holders: Tells how many honest nodes hold a block durably.
        """
        self.proven: Roster = found(genesis)
        self.liars, self.sealers, self._holders = liars, sealers, holders
        self.faulty = set(liars)
        self.links: dict[bytes, Link] = {}
        self.votes: dict[tuple[bytes, ChainId], list[tuple[Batch, Leaf]]] = {}
        self.certified: dict[Place, set[bytes]] = {}
        self.highest: dict[str, int] = {}
        self._support: dict[tuple[int, bytes], set[str]] = {}
        self._seen = set[bytes]()
        self._numbers: dict[tuple[str, bytes, int], bytes] = {}
        self._last: dict[tuple[bytes, ChainId], Leaf] = {}
        self._verified = set[bytes]()
        self.convicted = set[str]()

    @property
    def within(self) -> bool:
        """Whether liars and restored cards are few enough, in every epoch."""
        return all(
            sum(name in self.faulty for name, _ in committee.voters)
            <= faults(len(committee.voters))
            for committee in self.proven.committees
        )

    # --- what was sealed ----------------------------------------------------------------------

    def sealed(self, payload: bytes) -> None:
        """Note a block or an order."""
        if BLOCK_CONTEXT.encode() in payload[:24]:
            block = decode_block(payload)
            place = (block.meter, block.incarnation, block.height)
            epoch = self.proven.epoch_at(block.order[0])
            self.links[digest(payload)] = Link(place, block.previous, epoch, payload)
            return
        order = decode_order(payload)
        epoch = 1
        before = self.links.get(order.previous)
        if before is not None:
            turns = isinstance(decode_order(before.payload).change, RosterChange)
            epoch = before.epoch + turns
        place = (order.distributor, order.incarnation, order.height)
        self.links[digest(payload)] = Link(place, order.previous, epoch, payload)

    def on_one_line(self, one: Leaf, other: Leaf) -> bool:
        """Say whether one of two heads is the other's ancestor."""
        low, high = sorted((one, other), key=lambda leaf: leaf.height)
        here = high.block_hash
        for _ in range(high.height - low.height):
            here = self.links[here].previous
        return here == low.block_hash

    # --- what was signed ----------------------------------------------------------------------

    def signed(self, name: str, message: bytes) -> None:
        """Note a batch that node `name` has signed and kept, or sent."""
        mark = digest(message)
        if mark in self._seen:
            return
        self._seen.add(mark)
        batch = open_batch(message, self.proven.genesis)
        committee = self.proven.committee_of(batch.header.epoch)
        voter = committee.voter(batch.kid) if committee else None
        honest = name not in self.faulty
        if committee is None or voter is None:
            if honest and not self._torn:
                raise Refuted(f"{name} attests in epoch {batch.header.epoch}, where it has no vote")
            return
        if honest:
            self._check_honest(name, batch)
        for leaf in batch.leaves:
            self.votes.setdefault((batch.kid, leaf.chain), []).append((batch, leaf))
            self._count(voter[0], leaf, batch.header.epoch, len(committee.voters))

    def _check_honest(self, name: str, batch: Batch) -> None:
        number = (name, batch.kid, batch.header.number)
        if self._numbers.setdefault(number, batch.hash) != batch.hash:
            raise Refuted(f"{name} is honest, and signs two batches {batch.header.number}")
        for leaf in batch.leaves:
            if leaf.block_hash not in self.links:
                raise Refuted(f"{name} is honest, and attests what nobody sealed")
            last = self._last.get((batch.kid, leaf.chain))
            if last is not None and not self.on_one_line(last, leaf):
                raise Refuted(f"{name} is honest, and attests two histories of {leaf.meter}")
            if last is None or leaf.height >= last.height:
                self._last[batch.kid, leaf.chain] = leaf

    def _count(self, voter: str, leaf: Leaf, epoch: int, voters: int) -> None:
        """Count an attestation for a head and all before it."""
        here, fresh = leaf.block_hash, list[bytes]()
        link = self.links.get(here)
        if link is None or link.epoch > epoch or link.place != leaf[:3]:
            return
        while link is not None:
            support = self._support.setdefault((epoch, here), set())
            if voter in support:
                break
            support.add(voter)
            if len(support) >= needed(voters) and link.epoch <= epoch:
                fresh.append(here)
            here = link.previous
            link = self.links.get(here)
        for block_hash in reversed(fresh):
            self._certify(block_hash, epoch, voters)

    def _certify(self, block_hash: bytes, epoch: int, voters: int) -> None:
        link = self.links[block_hash]
        name, incarnation, height = link.place
        known = self.certified.setdefault(link.place, set())
        if block_hash in known:
            return
        known.add(block_hash)
        if len(known) > 1:
            if self.within:
                raise Refuted(f"two certificates for block {height} of {name}, epoch {epoch}")
            return
        self.highest[name] = max(height, self.highest.get(name, 0))
        if self.within:
            holding = self._holders((name, incarnation), height, block_hash)
            if holding <= faults(voters):
                raise Refuted(f"block {height} of {name} is certified and on {holding} nodes")
        if (name, incarnation) == self.proven.distributor:
            self.proven = self.proven.add(decode_order(link.payload))

    # --- what nodes make of it ----------------------------------------------------------------

    @property
    def _torn(self) -> bool:
        """Whether two orders of one height are certified, which only too many faults can do.

        Whoever follows the other order has other voters.
        """
        return not self.within and any(
            len(hashes) > 1
            for (name, incarnation, _), hashes in self.certified.items()
            if (name, incarnation) == self.proven.distributor
        )

    def taken_for_certified(self, name: str, place: Place, block_hash: bytes) -> None:
        """Check what node `name` takes for certified."""
        if self._torn:
            return
        if block_hash not in self.certified.get(place, ()):
            raise Refuted(f"{name} takes block {place[2]} of {place[0]} for certified, it is not")

    def dropped(self, name: str, place: Place, block_hash: bytes) -> None:
        """Check what the honest node `name` gives up for another history."""
        if self.within and block_hash in self.certified.get(place, ()):
            raise Refuted(f"{name} drops block {place[2]} of {place[0]}, which is certified")

    def may_seal(self, name: str, height: int) -> None:
        """Check that a meter that does not lie may seal a block of this height."""
        highest = self.highest.get(name, 0)
        if height <= highest and self.within:
            raise Refuted(f"{name} seals block {height}, {highest} is certified")

    def certificate(self, certificate: certificates.Certificate) -> None:
        """Check a certificate as a stranger would."""
        if self._torn:
            return
        opened = certificates.open_certificate(certificate.encode())
        try:
            certificates.verify_certificate(
                opened, self.proven, self.links[certificate.block_hash].epoch
            )
        except BlockRejectedError as error:
            raise Refuted(f"a certificate does not stand by itself: {error}") from error
        self.taken_for_certified("a certificate", opened[:3], opened.block_hash)

    def evidence(self, evidence: bytes) -> None:
        """Check evidence as a stranger would, and whom it names."""
        mark = digest(evidence)
        if mark in self._verified:
            return
        try:
            accused = certificates.verify_evidence(evidence, self.proven)
        except BlockRejectedError as error:
            if self._torn:
                return
            raise Refuted(f"evidence does not stand by itself: {error}") from error
        self._verified.add(mark)
        name = accused.name
        # Who got an older card may seal anew what nobody had certified, and is a liar by the proof.
        lied = self.faulty if accused.role == "authority" else self.sealers | self.faulty
        self.convicted.add(name)
        if name not in lied:
            raise Refuted(f"{accused.role} {name} is honest, and accused")
