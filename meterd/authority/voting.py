"""What a node attests, what others have attested, and what a quorum of them makes certified.

A voter signs batches of heads, one after the other; each says what it holds, has checked, and can
follow from what it attested before. It may vote only once it knows what it has voted before (the
boot rule), and in a new epoch only behind the locks of a quorum of the old one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.attestation import (
    CHECKS_ALL,
    CLOSED,
    CLOSING,
    LEAVES_MAX,
    OPEN,
    Batch,
    Header,
    Leaf,
    make_batch,
    open_batch,
    verify_batch,
)
from meterd.authority.certificate import open_certificate, verify_certificate
from meterd.authority.effects import (
    Accuse,
    Certify,
    PutBatch,
    PutCertificate,
    PutCertified,
    PutEpoch,
    Send,
)
from meterd.authority.promises import Promises
from meterd.authority.recall import Recall
from meterd.authority.roster import OrderUnknownError
from meterd.authority.snapshot import NOTHING, Sequence, Snapshot
from meterd.authority.witness import Vote
from meterd.errors import BlockRejectedError
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import take_apart

if TYPE_CHECKING:
    from meterd.authority.asking import Asking
    from meterd.authority.certificate import Certificate
    from meterd.authority.messages import AskHead, OwnBatch
    from meterd.authority.node import Node
    from meterd.authority.roster import ChainId, Committee
    from meterd.authority.witness import Held

BATCHES_WAITING_MAX = 8
CREDIT_MAX = 10_000  # attestations of one voter that lie on nothing held here: 5 MB on the card
SERIES_MAX = 8  # times that a voter begins anew to close an epoch
STRAYS_MAX = 16  # batches of one voter beside its own sequence that are kept for evidence


class Voting:
    """The votes of one node, and those that it knows of.

    Attributes:
        dirty: Chains that may have something new to attest.
        batch_ms: When the next batch is to be signed, by the clock of `Now`; None if nothing is
            new.
        order_came: Whether orders have come into force, so that what waited for them is judged.
        promises: What it has promised meters that have started.
        recall: What others say that it has voted before.
    """

    def __init__(self, node: Node, asking: Asking, snapshot: Snapshot) -> None:
        """Go on from what the store holds."""
        self._node, self._asking = node, asking
        self.promises = Promises(node, snapshot.promises)
        self._batches_waiting: dict[bytes, dict[int, bytes]] = {}
        self._strays: dict[bytes, dict[int, Batch]] = {}
        self._credit: dict[bytes, int] = {}
        self._replaced = False  # told that our key is
        self._closing_at: dict[bytes, tuple[int, ChainId, int]] = {}
        self._suspected: dict[tuple[bytes, ChainId], tuple[int, int]] = {}
        self.dirty: dict[ChainId, None] = {}
        self.batch_ms: int | None = None
        self._attested_ms = -node.settings.tick_ms
        self.recall = Recall(node, asking)
        self.order_came = False
        self._signing = self._turn_wanted = False

    def mark(self, chain_id: ChainId) -> None:
        """Attest this chain in the next batch, if it has something new."""
        self.dirty[chain_id] = None
        self._attest_soon()

    def _attest_soon(self) -> None:
        if self.batch_ms is None:
            self.batch_ms = max(
                self._node.now.mono_ms, self._attested_ms + self._node.settings.tick_ms
            )

    def take_batch(self, sender: str, message: bytes) -> None:
        """Take a voter's batch, or ask for those before it.

        Raises:
            EncodingError: It is misspelt.
            BlockRejectedError: Its signer does not vote in its epoch, or did not sign it.
        """
        batch = open_batch(message, self._node.roster.genesis)
        committee = self._node.roster.committee_of(batch.header.epoch)
        if committee is None:
            self._asking.claim_order(sender, self._node.roster.head.height + 1)
            raise OrderUnknownError("its epoch is not known here")
        voter = committee.voter(batch.kid)
        if voter is None:
            raise BlockRejectedError(
                f"key {batch.kid.hex()} does not vote in epoch {batch.header.epoch}"
            )
        last = self._node.sequences.get(batch.kid, NOTHING)
        header, number = batch.header, batch.header.number
        closes = header.closing == CLOSED and not self._node.has_closed(header.epoch, batch.kid)
        if number == last.number and batch.hash == last.batch_hash:
            return
        if number < last.number and not closes:
            return
        verify_batch(batch, voter[1])
        if any(leaf.chain not in self._node.roster.chains for leaf in batch.leaves):
            self._asking.claim_order(sender, self._node.roster.head.height + 1)
            raise OrderUnknownError("it attests a chain whose enrolment is not known here")
        if closes and (number <= last.number or batch.kid in self._strays):
            self._closed_beside(batch, message)
            return
        if number > last.number + 1:
            waiting = self._batches_waiting.setdefault(batch.kid, {})
            waiting[number] = message
            if len(waiting) > BATCHES_WAITING_MAX:
                del waiting[max(waiting)]
            self._asking.claim_batches(batch.kid, sender, number)
            return
        if number == last.number or header.previous != last.batch_hash:
            self._stray(voter[0], batch, message)
            return
        here, before = (header.epoch, header.closing), (last.epoch, last.closing)
        if here < before or (here == before and last.closing == CLOSED):
            raise BlockRejectedError(f"{voter[0]} attests in an epoch that it has closed")
        if not self._may_keep(sender, voter[0], batch):
            return
        self._keep_batch(batch, message)
        asked = self._asking.batches_asked.get(batch.kid)
        if asked is not None and number >= asked[2]:
            self._asking.batches_asked[batch.kid] = (asked[0], 0, 0)  # answered: ask what follows
            if not self._asking.behind:  # blocks first, batches meanwhile at the pace of ticks
                self._asking.ask_batches()
        following = self._batches_waiting.get(batch.kid, {}).pop(number + 1, None)
        if following is not None:
            self.take_batch(sender, following)

    def _keep_batch(self, batch: Batch, message: bytes) -> None:
        header = batch.header
        self._node.sequences[batch.kid] = Sequence(
            header.number, batch.hash, header.epoch, header.closing
        )
        self._node.records.append(PutBatch(batch, message))
        for leaf in batch.leaves:
            vote = Vote(leaf, header.number, header.epoch)
            self._take_leaf(self._node.hold(leaf.chain), batch.kid, vote)
        if header.closing != OPEN:
            for leaf in batch.leaves:
                self.lock(header.epoch, batch.kid, leaf)
        if header.closing == CLOSED:
            self._node.closed.setdefault(header.epoch, set()).add(batch.kid)
            self._attest_soon()  # what waited for these locks
        if batch.kid == self._node.kid:
            self._see_booted()
        elif header.closing == CLOSED or header.epoch > self._node.epoch:
            self._turn_epoch()

    def _stray(self, voter: str, batch: Batch, message: bytes) -> None:
        """A voter signed two batches in one place: what they say of chains may convict it."""
        header = batch.header
        if header.closing == CLOSED and not self._node.has_closed(header.epoch, batch.kid):
            self._closed_beside(batch, message)
            return
        kept = self._strays.setdefault(batch.kid, {})
        if batch.header.number in kept or len(kept) >= STRAYS_MAX:
            return
        kept[batch.header.number] = batch
        self._node.tell(1, "batch_beside", authority=voter, number=batch.header.number)
        self._node.records.append(PutBatch(batch, message, beside=True))
        for leaf in batch.leaves:
            held = self._node.chains.get(leaf.chain)
            if held is not None:
                vote = Vote(leaf, batch.header.number, batch.header.epoch)
                here = held.hashes.get(leaf.height)
                if here is not None and here != leaf.block_hash:
                    held.foreign.setdefault(batch.kid, vote)
                    self.suspect(held, batch.kid, vote)

    def lock(self, epoch: int, kid: bytes, leaf: Leaf) -> None:
        """Take note of what a voter had attested when it closed an epoch."""
        held = self._node.hold(leaf.chain)
        if leaf.height > held.certified:
            held.locks[epoch, kid] = leaf

    def _closed_beside(self, batch: Batch, message: bytes) -> None:
        """A voter that has signed two sequences has closed an epoch in the one not held here.

        It is one of the faulty, and its locks bind nobody: the others' do. Whoever did not count it
        could be left behind in the epoch for ever.
        """
        if batch.kid == self._node.kid:
            return
        self._strays.setdefault(batch.kid, {})
        voter, number = self._node.voter_name(batch.kid), batch.header.number
        self._node.tell(1, "closed_beside", authority=voter, number=number)
        self._node.closed.setdefault(batch.header.epoch, set()).add(batch.kid)
        self._node.records.append(PutBatch(batch, message, beside=True))
        self._attest_soon()
        self._turn_epoch()

    def _in_turn(self, batch: Batch) -> bool:
        """Say whether a closing batch goes on with chains behind those of the ones before.

        Or begins anew, as one does whose card was put back between two of them; not for ever.
        """
        header, before = batch.header, self._closing_at.get(batch.kid)
        if not batch.leaves:
            return header.closing == CLOSED
        series = before[2] if before is not None and before[0] == header.epoch else 0
        if before is None or before[:2] >= (header.epoch, batch.leaves[0].chain):
            series += 1
        if series > SERIES_MAX:
            self._node.count("said again")
            return False
        self._closing_at[batch.kid] = (header.epoch, batch.leaves[-1].chain, series)
        return True

    def _take_leaf(self, held: Held, kid: bytes, vote: Vote) -> None:
        before, leaf = held.votes.get(kid), vote.leaf
        if self._goes_on_revoked(held, kid, vote):
            return
        found_to_be = held.sort_vote(kid, vote)
        voter = self._node.voter_name(kid)
        if found_to_be != "on" and held.branch:
            self._node.contested[held.chain_id] = None
        if found_to_be == "foreign":
            self.suspect(held, kid, vote)
            if voter and voter != self._node.name:  # a quorum may certify that other history
                self._asking.ask_branch(voter, held, leaf.height, leaf.block_hash)
        elif found_to_be == "ahead":
            self._asking.claim(held, voter, leaf.height)
        elif found_to_be == "on":
            if kid in held.foreign:
                self.suspect(held, kid, held.foreign[kid])
            if before is None or before.leaf.height < leaf.height or before.epoch < vote.epoch:
                more = leaf.height - (before.leaf.height if before else 0)
                self._credit[kid] = min(self._credit.get(kid, CREDIT_MAX) + more, CREDIT_MAX)
                held.passed.pop(kid, None)
                self.certify(held)
                if held.chain is None:
                    self._node.contest_revoked()

    def _goes_on_revoked(self, held: Held, kid: bytes, vote: Vote) -> bool:
        """Say whether a voter attests more of a chain whose key it has attested to be revoked.

        None that is honest does: so what it attested before is all, and nobody has to wait.
        """
        revoked_by = self._node.roster.enrolled(held.chain_id).revoked_by
        distributor = self._node.roster.distributor
        if not revoked_by or distributor is None:
            return False
        order = self._node.hold(distributor).votes.get(kid)
        if order is None or order.leaf.height < revoked_by or order.number >= vote.number:
            return False
        return vote.leaf.height > held.highest().get(kid, 0)

    def sort_reached(self, held: Held) -> None:
        """Take anew what others attested above our head, as far as that has grown."""
        for kid, vote in held.take_reached():
            self._take_leaf(held, kid, vote)

    def _may_keep(self, sender: str, voter: str, batch: Batch) -> bool:
        """Say whether a batch may be kept: whoever signs what nobody can follow fills no card.

        A leaf on what is held here is above that voter's last one, or of a later epoch. The others
        must not outnumber, by more than `CREDIT_MAX`, the blocks by which those have gone on: they
        are lies, or of blocks that we lack yet, and these are fetched meanwhile.

        Raises:
            BlockRejectedError: Its signer itself brings it, and has said that before.
        """
        kid, header = batch.kid, batch.header
        if header.closing != OPEN:
            return self._in_turn(batch)
        unsure = 0
        for leaf in batch.leaves:
            held = self._node.hold(leaf.chain)
            last, here = held.votes.get(kid), held.hashes.get(leaf.height)
            if here is None and held.passed.get(kid, 0) < leaf.height <= held.certified:
                held.passed[kid] = leaf.height  # so late that it cannot be compared any more
            elif here != leaf.block_hash:
                unsure += 1
            elif last and (last.epoch, last.leaf.height) >= (header.epoch, leaf.height):
                if sender == voter:
                    raise BlockRejectedError(f"{voter} attests again what it has attested before")
                self._node.count("said again")
                return False
        credit = self._credit.get(kid, CREDIT_MAX)
        if unsure > credit:
            self._node.count("uncertain")
            return False
        self._credit[kid] = credit - unsure
        return True

    def suspect(self, held: Held, kid: bytes, foreign: Vote) -> None:
        """Where a voter has attested our history too, at or above its other one, it is proven."""
        on = held.votes.get(kid)
        if on is None or on.leaf.height < foreign.leaf.height:
            return
        if any(one.kid == kid for one in self._node.accused.values()):
            return
        pair = (foreign.number, on.number)
        if self._suspected.get((kid, held.chain_id)) == pair:
            return  # the proof is being put together, or something of it was not here yet
        self._suspected[kid, held.chain_id] = pair
        self._node.out.append(Accuse(kid, foreign.leaf, foreign.number, on.leaf, on.number))

    def certify(self, held: Held) -> None:
        """See up to where quorums have attested a chain."""
        attested = held.attested()
        above = [epoch for _, height, epoch in attested if height > held.certified]
        if len(above) < self._node.roster.quorum_least:
            return
        best = (held.certified, held.certified_epoch)
        for epoch in set(above):
            committee = self._node.roster.committee_of(epoch)
            if committee is None:
                continue
            highest: dict[bytes, int] = {}
            for kid, height, of in attested:
                if of == epoch and held.epoch_at(height) <= epoch and committee.voter(kid):
                    highest[kid] = max(height, highest.get(kid, 0))
            heights = sorted(highest.values(), reverse=True)
            if len(heights) >= committee.quorum:
                best = max(best, (heights[committee.quorum - 1], epoch))
        if best[0] <= held.certified:
            return
        self._certified(held, *best)
        if held.chain_id[0] == self._node.meter and held.chain is not None:
            votes = tuple(
                (kid, vote.number, vote.leaf)
                for kid, vote in held.votes.items()
                if vote.epoch == best[1] and vote.leaf.height >= best[0]
            )
            if len({kid for kid, _, _ in votes}) >= self._node.roster.quorum_least:
                self._node.out.append(Certify(held.chain_id, *best, votes))

    def _certified(self, held: Held, height: int, epoch: int) -> None:
        """A chain is certified up to `height`, which is more than before."""
        before = held.certified
        held.certify(height, epoch)
        self._node.records.append(PutCertified(held.chain_id, height, epoch))
        for at in [at for at in held.branch if at <= height]:
            del held.branch[at]
        for by in [by for by, leaf in held.locks.items() if leaf.height <= height]:
            del held.locks[by]
        if held.chain_id == self._node.roster.distributor:
            for at in range(before + 1, height + 1):
                self._node.out.append(Certify(held.chain_id, at))
            for _ in range(before, height):
                self._order_in_force()

    def take_certificate(self, sender: str, message: bytes) -> None:
        """Take what shows that the first order of ours that is not certified here is so.

        Or a block of a chain: see `Asking.ask_disputed`.

        Raises:
            EncodingError: It is misspelt.
            BlockRejectedError: It does not hold.
        """
        certificate = open_certificate(message)
        if (certificate.meter, certificate.incarnation) != self._node.roster.distributor:
            self._take_shown(sender, certificate, message)
            return
        height = self._node.roster.head.height + 1
        if certificate.height != height or not self._node.pending:
            return  # come late
        if certificate.block_hash != self._node.pending[0].head.order_hash:
            return  # there are two orders: the proof of that will come
        said = verify_certificate(certificate, self._node.roster, self._node.roster.committee.epoch)
        distributor = self._node.roster.distributor
        self._node.records.append(PutCertificate(distributor, height, message))
        self._certified(self._node.hold(distributor), height, said.epoch)

    def _take_shown(self, sender: str, certificate: Certificate, message: bytes) -> None:
        """Take what shows that a block is certified which is held here, in one history or other."""
        held = self._node.chains.get((certificate.meter, certificate.incarnation))
        height, block_hash = certificate.height, certificate.block_hash
        if held is None or height <= held.certified or not self._asking.disputed(held.chain_id):
            return
        if held.hashes.get(height) == block_hash:
            least = held.epoch_at(height)
            said = verify_certificate(certificate, self._node.roster, least)
            self._node.records.append(PutCertificate(held.chain_id, height, message))
            self._certified(held, height, said.epoch)
            self._asking.ask_disputed(sender, held.chain_id)
            return
        twin = held.branch.get(height)
        if twin is None or twin.block_hash != block_hash:
            return  # it is asked for again once its block is here
        block = decode_block(take_apart(twin.sealed).payload)
        least = self._node.roster.epoch_at(block.order[0])
        said = verify_certificate(certificate, self._node.roster, least)
        self._node.records.append(PutCertificate(held.chain_id, height, message))
        held.shown = height, block_hash, said.epoch
        self._node.contested[held.chain_id] = None

    def adopt_shown(self, held: Held) -> None:
        """Another history has been adopted: what a certificate has shown of it is certified."""
        if held.shown is not None:
            height, block_hash, epoch = held.shown
            if height > held.certified and held.hashes.get(height) == block_hash:
                self._certified(held, height, epoch)
            held.shown = None

    def _order_in_force(self) -> None:
        self._node.roster = self._node.pending.pop(0)
        height = self._node.roster.head.height
        self._node.tell(0, "order_in_force", height=height)
        base = self._node.bases.pop(height, None)
        if base is not None and self._node.base_holds(base) is False:
            (meter, incarnation), at, _ = base
            certified = self._node.hold((meter, incarnation)).certified
            self._node.tell(2, "ended_elsewhere", meter=meter, at=at, certified=certified)
        self._node.contest_revoked()
        self._turn_epoch()
        self.order_came = True
        self._attest_soon()  # what follows may rest on it

    def _turn_epoch(self) -> None:
        """Close epochs that orders have ended, and begin the next once a quorum has closed.

        Not while batches are being signed, which can end an epoch themselves, but behind them: what
        is signed after a closing batch is refused by everybody.
        """
        self._turn_wanted = True
        if self._signing:
            return
        self._signing = True
        while self._turn_wanted:
            self._turn_wanted = False
            self._turn()
        self._signing = False

    def _turn(self) -> None:
        while True:
            if self._node.booted and not self.promises.any:
                for committee in self._unclosed():
                    self._close(committee.epoch)
            if self._node.roster.committee.epoch <= self._node.epoch:
                return
            committee = self._node.committee
            if len(self._closers(committee)) < committee.quorum and not self._others_went_on():
                return
            self._node.epoch += 1
            self._node.records.append(PutEpoch(self._node.epoch))
            self._node.tell(0, "epoch_begun", epoch=self._node.epoch)
            for chain_id, held in self._node.chains.items():
                if held.height:
                    self.mark(chain_id)

    def _others_went_on(self) -> bool:
        """Say whether an honest voter attests in a later epoch, and so has seen this one closed.

        A liar may close it towards some alone; whoever it left behind could wait for ever.
        """
        following = self._node.roster.committee_of(self._node.epoch + 1)
        assert following is not None  # noqa: S101 - the caller has seen the order
        later = sum(
            self._node.sequences.get(kid, NOTHING).epoch > self._node.epoch
            for kid in following.kids
        )
        return later > following.faults_max

    def _unclosed(self) -> list[Committee]:
        """Return the epochs that are over and that this node votes in and has not closed.

        It may have entered a later one by others' closing; others may still wait for its own.
        """
        return [
            committee
            for committee in self._node.roster.committees[:-1]
            if committee.epoch <= self._node.epoch
            and committee.voter(self._node.kid)
            and not self._node.has_closed(committee.epoch, self._node.kid)
        ]

    def _close(self, epoch: int) -> None:
        """Sign all locks of an epoch once more, and nothing after that in it."""
        if epoch == self._node.epoch:
            self._attest()
        leaves = [
            vote.leaf
            for held in self._node.chains.values()
            for vote in (self._own_vote(held),)
            if vote is not None and vote.epoch == epoch
        ]
        leaves.sort(key=lambda leaf: leaf.chain)
        parts = [leaves[at : at + LEAVES_MAX] for at in range(0, len(leaves), LEAVES_MAX)] or [[]]
        for part in parts[:-1]:
            self._sign(part, CLOSING, epoch)
        self._sign(parts[-1], CLOSED, epoch)

    def _own_vote(self, held: Held) -> Vote | None:
        """Return this node's last attestation on a chain, wherever it lies."""
        found_votes = [
            votes[self._node.kid]
            for votes in (held.votes, held.ahead, held.foreign)
            if self._node.kid in votes
        ]
        return max(found_votes, key=lambda vote: vote.number, default=None)

    def attest(self) -> None:
        """Sign what is new, if this node votes and may."""
        self._signing = True
        self._attest()
        self._signing = False
        if self._turn_wanted:
            self._turn_epoch()

    def _attest(self) -> None:
        self.batch_ms = None
        if not self.dirty:
            return
        self._attested_ms = self._node.now.mono_ms
        if (
            not self._node.booted
            or not self._node.votes
            or self._node.has_closed(self._node.epoch, self._node.kid)
        ):
            return
        if any(committee.epoch < self._node.epoch for committee in self._unclosed()):
            return
        leaves = []
        for chain_id in list(self.dirty):
            del self.dirty[chain_id]
            leaf = self._leaf(self._node.chains[chain_id])
            if leaf is not None:
                leaves.append(leaf)
        for at in range(0, len(leaves), LEAVES_MAX):
            self._sign(leaves[at : at + LEAVES_MAX], OPEN, self._node.epoch)

    def _leaf(self, held: Held) -> Leaf | None:
        """Return what there is to attest on a chain, or None."""
        name, incarnation = held.chain_id
        height = self.promises.allowed(held)
        while height and held.epoch_at(height) > self._node.epoch:
            height -= 1
        if held.chain is None:
            height = self._allowed_orders(held, height)
        if held.frozen or not height or not held.sealed or height not in held.hashes:
            return None
        if self._node.kid in held.ahead or self._node.kid in held.foreign:
            return None  # we have attested what we do not hold: it has to be fetched first
        distributor = self._node.roster.distributor
        orders = self._node.hold(distributor) if distributor is not None else None
        if orders and held is not orders and self._node.kid in orders.ahead:
            self.dirty[held.chain_id] = None  # an order, too: it may have revoked the key
            return None
        enrolled = self._node.latest().enrolled(held.chain_id)
        if enrolled.revoked or (enrolled.closed and height > enrolled.closed[0]):
            return None
        own = held.votes.get(self._node.kid)
        if own is not None and (own.leaf.height, own.epoch) >= (height, self._node.epoch):
            return None
        if not self._locks_adopted(held):
            self.dirty[held.chain_id] = None
            return None
        checks = held.checks
        if height == held.height:
            held.checks = CHECKS_ALL
        return Leaf(name, incarnation, height, held.hashes[height], checks)

    def _allowed_orders(self, held: Held, height: int) -> int:
        """Return up to which order we attest: none whose chain may not be ended there.

        Nor any behind it. It is certified without us, or it never is.
        """
        for at, base in sorted(self._node.bases.items()):
            if at <= height and not self._node.base_holds(base):
                self.dirty[held.chain_id] = None  # its block may still come
                return at - 1
        return height

    def _locks_adopted(self, held: Held) -> bool:
        """Say whether what we hold extends the locks of a quorum of each epoch before.

        Not of the last alone: its voters may have locked nothing of a chain that was certified
        before, as they never had its blocks.
        """
        return all(
            sum(
                lock is None or held.lies_on(lock)
                for kid in self._closers(committee)
                for lock in (held.locks.get((committee.epoch, kid)),)
            )
            >= committee.quorum
            for committee in self._node.roster.committees[: self._node.epoch - 1]
        )

    def _closers(self, committee: Committee) -> set[bytes]:
        """Return who of an epoch's voters is known to have closed it, by key ids."""
        return self._node.closed.get(committee.epoch, set()).intersection(committee.kids)

    def unsure_epoch(self) -> int:
        """Return the first epoch that is over and not known to be closed by a quorum; 0 if none."""
        for committee in self._node.roster.committees[:-1]:
            if len(self._closers(committee)) < committee.quorum:
                return committee.epoch
        return 0

    def _sign(self, leaves: list[Leaf], closing: int, epoch: int) -> None:
        last = self._node.sequences.get(self._node.kid, NOTHING)
        header = Header(
            epoch, last.number + 1, last.batch_hash, max(self._node.now.wall_s, 0), closing
        )
        batch, message = make_batch(header, leaves, self._node.key, self._node.roster.genesis)
        self._keep_batch(batch, message)
        self._node.out.append(Send("attest", message))

    def answer_head(self, sender: str, question: AskHead) -> None:
        """Answer a meter's own device what is held of it, if this node can promise by it.

        Who does not know its own votes, or the locks of the epochs before, has nothing to promise.
        """
        node = self._node
        if sender != question.meter or not node.booted or not node.votes or self._unclosed():
            return
        if node.epoch != node.roster.committee.epoch:
            return
        enrolled = node.roster.newest(question.meter)
        if enrolled is None or (enrolled.name, enrolled.incarnation) == node.roster.distributor:
            return  # what is not enrolled here may be enrolled and certified elsewhere
        held = node.hold((enrolled.name, enrolled.incarnation))
        if self._locks_adopted(held):
            self.promises.answer(question, held, self._own_vote(held))
            self.mark(held.chain_id)  # up to what this promise names

    def keep_promises(self) -> None:
        """Attest what was held back, where the promise has lapsed."""
        over = self.promises.lapse()
        for chain_id in [one for one in self._node.chains if one[0] in over] if over else ():
            self.mark(chain_id)
        if over and not self.promises.any:
            self._turn_epoch()

    def _duty(self) -> Committee | None:
        """Return the committee by which this node has to know its votes; None if it never voted."""
        if self._node.votes:
            return self._node.committee
        return next(reversed(self._unclosed()), None)

    def boot(self) -> None:
        """Ask what we have voted before, until enough others have said it."""
        self._see_replaced()
        self._see_booted()
        committee = self._duty()
        if not self._node.booted and committee is not None:
            self.recall.ask(committee)

    def _see_replaced(self) -> None:
        """Tell, once nothing is left to be signed under our key, that an order names another."""
        named = self._node.roster.peer_key(self._node.name)
        if self._replaced or named in {b"", bytes(self._node.key.verify_key)}:
            return
        if not self._unclosed():
            self._replaced = True
            self._node.tell(2, "voting_key_replaced")

    def take_own_batch(self, sender: str, body: OwnBatch) -> None:
        """Take an answer to what we have voted before."""
        if not self._node.booted and self.recall.take(sender, body):
            self._see_booted()

    def _see_booted(self) -> None:
        committee = self._duty()
        if self._node.booted or committee is None or not self.recall.settled(committee):
            return
        self._node.booted = True
        self._node.tell(0, "booted", number=self.recall.last.number)
        for chain_id in self._node.chains:
            self.mark(chain_id)
        self._turn_epoch()
