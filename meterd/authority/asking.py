"""What a node asks of others, what it answers them, and what it tells all of them of itself.

Nobody's word counts here for more than a reason to ask: what comes is judged elsewhere. One peer
is asked at a time for one thing, another after `ANSWER_MS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.boot import QUESTIONS_KEPT
from meterd.authority.effects import (
    Asked,
    Certify,
    Deliver,
    Load,
    Send,
    SendBatches,
    SendCertificate,
    SendClosings,
    SendEvidence,
)
from meterd.authority.ending import open_to
from meterd.authority.messages import (
    ASKED_MAX,
    HEADS_MAX,
    AskBatches,
    AskBlocks,
    AskCertificate,
    AskClosings,
    AskEvidence,
    AskHead,
    AskOwnBatch,
    Digest,
    Fetch,
    HeadHeld,
    OwnBatch,
    Question,
    blocks_message,
)
from meterd.authority.roster import ChainId
from meterd.authority.snapshot import NOTHING
from meterd.authority.witness import BRANCH_ASKED_MAX, place_of
from meterd.ledger.block import BLOCK_BYTES_MAX
from meterd.ledger.encoding import MESSAGE_BYTES_MAX, digest, take_apart

if TYPE_CHECKING:
    from meterd.authority.node import Node
    from meterd.authority.witness import Held

HEADS_IN_TURN = 64  # in each digest besides those that have grown: in a street, all of them
BLOCKS_ASKED_MAX = 1000  # at a time; the answer is cut at what a message holds
BATCHES_ASKED_MAX = 64  # as many as a store gives at once
DISPUTES_ASKED_MAX = 16  # chains at a time
ANSWER_MS = 2000  # after that another peer is asked
CLAIMS_MAX = 16  # peers per chain whose word of its height is remembered
EVIDENCE_SHOWN_MAX = 64  # ids in a digest
BLOCK_COST = 500  # bytes, about
BLOCK_COST_MIN = 2 * BLOCK_BYTES_MAX  # one that is as long as can be, and its twin
ANSWER_COST_MAX = 48_000  # of blocks, in one message
BATCH_COST = 4_000  # each is a message, and there is room for a thousand on their way
CERTIFICATE_COST = 1_000_000  # all votes above a block are looked through: some 30 ms, of a year
OTHER_COST = 20_000  # a signature
BESIDE_MS = 30_000  # so often a voter's other batch of one number is asked for
BESIDE_MAX = 256  # questions for such that are remembered


def cost_of(question: Question) -> int:
    """Return how many bytes the answer makes at most, or as how many its work is worth."""
    if isinstance(question, AskBlocks):
        blocks = question.last - question.first + 1
        return min(max(BLOCK_COST * blocks, BLOCK_COST_MIN), ANSWER_COST_MAX)
    if isinstance(question, AskBatches):
        batches = min(max(question.last - question.first + 1, 1), BATCHES_ASKED_MAX)
        return BATCH_COST * batches
    if isinstance(question, AskCertificate):
        return CERTIFICATE_COST
    return MESSAGE_BYTES_MAX if isinstance(question, AskEvidence) else OTHER_COST


class Asking:
    """What one node asks and answers.

    Attributes:
        behind: Chains that somebody says to hold more of.
        batches_wanted: By key id and peer, up to which of a voter's batches that peer has it.
        batches_asked: By key id: (peer, when, up to which) of the question that is open.
        evidence_claimed: Evidence that is lacking, and who has it.
    """

    def __init__(self, node: Node) -> None:
        """Ask nothing yet."""
        self._node = node
        self.behind: dict[ChainId, None] = {}
        self.batches_wanted: dict[bytes, dict[str, int]] = {}
        self.batches_asked: dict[bytes, tuple[str, int, int]] = {}
        self.evidence_claimed: dict[bytes, str] = {}
        self._orders_claimed: dict[str, int] = {}
        self._order_asked: tuple[str, int] | None = None
        self._closings_ms: int | None = None
        self._digest_at = 0
        self._meter_height: int | None = None
        self._heads_asked: dict[bytes, set[str]] = {}
        self._beside_asked: dict[tuple[bytes, bytes], int] = {}

    def take_head(self, sender: str, body: HeadHeld, message: bytes) -> None:
        """Hand the answer to our meter, and fetch what it tells of.

        One of each voter: else a liar's would fill the meter's inbox, and leave the others outside.
        """
        answered = self._heads_asked.get(body.nonce)
        if body.meter != self._node.meter or answered is None or sender in answered:
            return
        self.claim_order(sender, body.order[0])
        if not self._node.roster.committee.has(sender):
            return
        answered.add(sender)
        held = self._node.chains.get((body.meter, body.incarnation))
        if held is None and (body.meter, body.incarnation) in self._node.roster.chains:
            held = self._node.hold((body.meter, body.incarnation))
        if held is not None:
            self.claim(held, sender, body.height)
        self._node.out.append(Deliver("answer", message))
        self.ask_all()

    def answer(self, sender: str, question: Question) -> None:
        """Answer what is held here; to what is not, say nothing."""
        order = (self._node.roster.head.height, self._node.roster.head.order_hash)
        topic = f"answer/{sender}"
        match question:
            case AskBlocks():
                chain_id = (question.name, question.incarnation)
                held = self._node.chains.get(chain_id)
                if held is not None and 0 < question.first <= held.sealed_to:
                    last = min(question.last, held.sealed_to, question.first + BLOCKS_ASKED_MAX)
                    self._node.out.append(Load(chain_id, question.first, last, ("send", sender)))
                if held is not None and held.branch:
                    self._answer_branch(topic, held, question)
            case AskBatches():
                last_known = self._node.sequences.get(question.kid, NOTHING).number
                if 0 < question.first <= last_known:
                    last = min(question.last, last_known, question.first + BATCHES_ASKED_MAX)
                    self._node.out.append(SendBatches(sender, question.kid, question.first, last))
            case AskEvidence():
                if question.evidence in self._shown_evidence():
                    self._node.out.append(SendEvidence(sender, question.evidence))
            case AskCertificate():
                chain_id, height = (question.name, question.incarnation), question.height
                held = self._node.chains.get(chain_id)
                if held is not None and height and held.certified:
                    height = min(height, held.certified)
                    self._node.out.append(SendCertificate(sender, chain_id, height, held.certified))
            case AskClosings():
                if 0 < question.epoch <= len(self._node.roster.committees):
                    self._node.out.append(SendClosings(sender, question.epoch))
            case AskOwnBatch():
                last_one = self._node.sequences.get(question.kid, NOTHING)
                self._node.say(
                    topic,
                    OwnBatch(
                        self._node.epoch,
                        order,
                        question.kid,
                        question.nonce,
                        last_one.number,
                        last_one.batch_hash,
                    ),
                )

    def _answer_branch(self, topic: str, held: Held, question: AskBlocks) -> None:
        """Answer with what is held of another history besides: who asks may lack that one."""
        heights = range(question.first, question.last + 1)[:BRANCH_ASKED_MAX]
        sealed = tuple(held.branch[height].sealed for height in heights if height in held.branch)
        if sealed:
            self._node.out.append(Send(topic, blocks_message(sealed)))

    def ask_head(self, asked: Asked) -> None:
        """Our meter has started: ask for its head, and tell it what it may have missed."""
        distributor = self._node.roster.distributor
        if distributor is not None:
            for height in range(asked.order + 1, self._node.hold(distributor).certified + 1):
                self._node.out.append(Certify(distributor, height))
        enrolled = self._node.roster.newest(asked.meter)
        own = self._node.chains.get((enrolled.name, enrolled.incarnation)) if enrolled else None
        if own is not None and own.certified:
            self._node.out.append(Certify(own.chain_id, own.certified))
        self._meter_height = asked.height
        self._heads_asked[asked.nonce] = set()
        while len(self._heads_asked) > QUESTIONS_KEPT:
            del self._heads_asked[next(iter(self._heads_asked))]
        self.give_back()
        for name, _ in self._node.committee.voters:
            if name != self._node.name:
                self.ask(name, AskHead(asked.meter, asked.nonce))

    def give_back(self) -> None:
        """Give our meter the blocks of its own that are held here and that it lacks."""
        enrolled = self._node.roster.newest(self._node.meter)
        own = self._node.chains.get((enrolled.name, enrolled.incarnation)) if enrolled else None
        if own is not None and self._meter_height is not None and own.height > self._meter_height:
            first, self._meter_height = self._meter_height + 1, own.height
            self._node.out.append(Load(own.chain_id, first, own.height, ("own",)))

    def seen_sealed(self, height: int) -> None:
        """Our meter holds its chain up to `height`: it has sealed it."""
        self._meter_height = max(height, self._meter_height or 0)

    def take_digest(self, sender: str, body: Digest) -> None:
        """Ask for what a peer says that it holds and is not held here."""
        self.claim_order(sender, body.order[0])
        seen = set[ChainId]()
        for name, incarnation, height, block_hash in body.heads:
            if (name, incarnation) in seen:
                continue
            seen.add((name, incarnation))
            held = self._node.chains.get((name, incarnation))
            if held is None:
                if height == 0 or (name, incarnation) not in self._node.roster.chains:
                    continue
                held = self._node.hold((name, incarnation))
            if height > held.height:
                self.claim(held, sender, height)
            elif height:
                here = held.hashes.get(height)
                if here is not None and here != block_hash:
                    self.ask_branch(sender, held, height, block_hash)
        for kid, number, _ in body.batches:
            last = self._node.sequences.get(kid, NOTHING)
            if number > last.number and self._node.voter_name(kid):
                self.claim_batches(kid, sender, number)
        self._ask_beside(sender, body)
        for evidence_id in body.evidence:
            known = evidence_id in self._node.evidence or evidence_id in self._node.redundant
            if not known and len(self.evidence_claimed) < HEADS_MAX:
                self.evidence_claimed[evidence_id] = sender
        self.ask_all()

    def _ask_beside(self, sender: str, body: Digest) -> None:
        """Ask for batches of which a peer holds another one of the same number than we."""
        questions, now_ms = list[Question](), self._node.now.mono_ms
        for kid, number, batch_hash in body.batches:
            last, place = self._node.sequences.get(kid, NOTHING), (kid, batch_hash)
            if not 0 < number == last.number or batch_hash == last.batch_hash:
                continue
            if now_ms - self._beside_asked.get(place, -BESIDE_MS) >= BESIDE_MS:
                self._beside_asked.pop(place, None)
                self._beside_asked[place] = now_ms
                questions.append(AskBatches(kid, number, number))
        while len(self._beside_asked) > BESIDE_MAX:
            del self._beside_asked[next(iter(self._beside_asked))]
        if questions:
            self.ask(sender, *questions[:ASKED_MAX])

    def ask(self, peer: str, *questions: Question) -> None:
        """Ask a peer."""
        self._node.say(f"fetch/{peer}", Fetch(peer, questions))

    def ask_branch(self, peer: str, held: Held, height: int, block_hash: bytes) -> None:
        """Ask a peer for its own history of a chain, up to a block of it, where it is lacking.

        A quorum may certify that one, of a frozen chain too: who never held it would be left
        behind there. Whatever is heard of it is a reason to look whether a quorum has.
        """
        if height <= held.certified:
            return
        self._node.contested[held.chain_id] = None
        lacking, now_ms = held.lacks(height, block_hash), self._node.now.mono_ms
        asked_ms = held.asked_branch.get(peer)
        if lacking is None or (asked_ms is not None and now_ms - asked_ms < ANSWER_MS):
            return
        held.asked_branch[peer] = now_ms
        first, last = lacking
        last = min(last, first + BLOCKS_ASKED_MAX - 1)
        self.ask(peer, AskBlocks(*held.chain_id, first, last))

    def ask_any(self, question: Question, *, but: str = "") -> None:
        """Ask one of the nodes that have been heard, another than `but` if there is one."""
        peers = sorted(name for name in self._node.heard if name in self._node.roster.nodes)
        peers = [name for name in peers if name != but] or peers
        if peers:
            self.ask(peers[self._node.jitter(len(peers))], question)

    def claim(self, held: Held, peer: str, height: int) -> None:
        """Remember that a peer says it holds a chain up to `height`."""
        if not peer or peer == self._node.name or height <= held.height:
            return
        limit = open_to(self._node, held)
        if limit is not None and min(height, limit) <= held.height:
            return  # what is above would be refused
        height = height if limit is None else min(height, limit)
        if peer not in held.wanted and len(held.wanted) >= CLAIMS_MAX:
            # Who was asked last may be one that never answers, such as a meter without a node.
            held.wanted.pop(held.asked[0] if held.asked else next(iter(held.wanted)), None)
        if peer in held.wanted or len(held.wanted) < CLAIMS_MAX:
            held.wanted[peer] = max(height, held.wanted.get(peer, 0))
            self.behind[held.chain_id] = None

    def claim_order(self, peer: str, height: int) -> None:
        """Remember that a peer knows orders up to this height."""
        distributor = self._node.roster.distributor
        if (
            distributor is not None
            and height > self._node.roster.head.height
            and peer != self._node.name
        ):
            self._orders_claimed[peer] = height
            self.claim(self._node.hold(distributor), peer, height)

    def claim_batches(self, kid: bytes, peer: str, number: int) -> None:
        """Remember that a peer has a voter's batches up to this number."""
        if (
            peer
            and peer != self._node.name
            and number > self._node.sequences.get(kid, NOTHING).number
        ):
            self.batches_wanted.setdefault(kid, {})[peer] = number

    def _open(self, asked: tuple[str, int] | tuple[str, int, int] | None) -> bool:
        return asked is not None and 0 < self._node.now.mono_ms - asked[1] + 1 <= ANSWER_MS

    def ask_all(self) -> None:
        """Ask for all that is known to be lacking, a few peers at a time."""
        asked: dict[str, list[Question]] = {}
        self.ask_batches()
        for chain_id in list(self.behind):
            lacking = self._lacking(self._node.chains[chain_id])
            if lacking is not None:
                asked.setdefault(lacking[0], []).append(lacking[1])
        self._ask_certificate()
        for evidence_id, peer in list(self.evidence_claimed.items()):
            del self.evidence_claimed[evidence_id]
            if evidence_id not in self._node.evidence:
                asked.setdefault(peer, []).append(AskEvidence(evidence_id))
        for peer, questions in asked.items():
            for at in range(0, len(questions), ASKED_MAX):
                self.ask(peer, *questions[at : at + ASKED_MAX])

    def ask_batches(self) -> None:
        """Ask for the batches that are known to be lacking."""
        for kid, wanted in self.batches_wanted.items():
            last = self._node.sequences.get(kid, NOTHING).number
            for peer in [peer for peer, number in wanted.items() if number <= last]:
                del wanted[peer]
            asked = self.batches_asked.get(kid)
            if not wanted or self._open(asked):
                continue
            peer = self._choose(wanted, asked)
            until = min(wanted[peer], last + BATCHES_ASKED_MAX)
            self.batches_asked[kid] = (peer, self._node.now.mono_ms, until)
            self.ask(peer, AskBatches(kid, last + 1, until))

    def _ask_certificate(self) -> None:
        """Ask who holds more orders for certified than we what makes the next one of ours so."""
        height = self._node.roster.head.height + 1
        for peer in [peer for peer, claimed in self._orders_claimed.items() if claimed < height]:
            del self._orders_claimed[peer]
        if not self._orders_claimed or not self._node.pending or self._open(self._order_asked):
            return
        distributor = self._node.roster.distributor
        assert distributor is not None  # noqa: S101 - it gave the orders
        peer = self._choose(self._orders_claimed, self._order_asked)
        self._order_asked = (peer, self._node.now.mono_ms)
        self.ask(peer, AskCertificate(*distributor, height))

    def ask_disputes(self) -> None:
        """Ask somebody what is certified of chains of which nothing more will be attested.

        The votes may have been shown to some alone; or they are on blocks of another history that
        nobody has for his own any more.
        """
        disputed = [chain_id for chain_id in self._node.roster.chains if self.disputed(chain_id)]
        peers = sorted(name for name in self._node.heard if name in self._node.roster.nodes)
        if disputed and peers:
            peer, first = peers[self._node.jitter(len(peers))], self._node.jitter(len(disputed))
            for chain_id in (disputed[first:] + disputed[:first])[:DISPUTES_ASKED_MAX]:
                self.ask_disputed(peer, chain_id)
                held = self._node.chains[chain_id]
                votes = list(held.foreign.values())  # a liar's may be on what is nowhere
                at = self._node.jitter(len(votes)) if votes else 0
                for vote in votes[at:] + votes[:at]:
                    self.ask_branch(peer, held, vote.leaf.height, vote.leaf.block_hash)

    def ask_disputed(self, peer: str, chain_id: ChainId) -> None:
        """Ask a peer for what certifies our head of a chain, or the next block, if it is disputed.

        The head's certifies all of it at once; but the head may be of one history, and what is
        certified of another.
        """
        if self.disputed(chain_id):
            held = self._node.chains[chain_id]
            height = held.certified + 1
            if held.height > height and self._node.jitter(2):
                height = held.height
            self.ask(peer, AskCertificate(*chain_id, height))

    def disputed(self, chain_id: ChainId) -> bool:
        """Say whether nothing more is attested of a chain, or another history of it is held."""
        held, enrolled = self._node.chains.get(chain_id), self._node.roster.enrolled(chain_id)
        if held is None or held.chain is None or enrolled.closed:
            return False
        more = held.height > held.certified and bool(held.frozen or enrolled.revoked)
        return more or bool(held.branch)

    def ask_closings(self, epoch: int) -> None:
        """Ask who has closed an epoch that is over, where that is not known for a while; 0: none.

        Without it we would stay in the epoch, or attest nothing in those that follow.
        """
        now_ms = self._node.now.mono_ms
        if not epoch:
            self._closings_ms = None
        elif self._closings_ms is None:
            self._closings_ms = now_ms
        elif now_ms - self._closings_ms >= ANSWER_MS:
            self._closings_ms = now_ms
            self.ask_any(AskClosings(epoch))

    def go_on_asking(self, sender: str, last: bytes) -> None:
        """An answer came: ask for what follows, without waiting for the next tick."""
        payload = take_apart(last).payload
        name, incarnation, height = place_of(payload)
        held = self._node.chains.get((name, incarnation))
        if held is not None and height in held.branch:
            self.ask_branch(sender, held, height, digest(payload))
        if held is None or held.asked is None or held.asked[0] != sender:
            return
        if held.height < height:
            return  # it was of no use: asked again in its time
        held.asked = None
        if (lacking := self._lacking(held)) is not None:
            self.ask(*lacking)

    def _lacking(self, held: Held) -> tuple[str, AskBlocks] | None:
        """Return whom to ask what a chain lacks, noted as asked; None if there is nothing."""
        for peer in [peer for peer, height in held.wanted.items() if height <= held.height]:
            del held.wanted[peer]
        if not held.wanted:
            self.behind.pop(held.chain_id, None)
        if not held.wanted or self._open(held.asked) or held.lacking:
            return None
        peer = self._choose(held.wanted, held.asked)
        first = held.height + 1
        behind = held.behind_branch()
        if first < behind <= held.wanted[peer] and self._node.jitter(2):
            first = behind  # what the peer holds may be that history, or go on behind ours
        last = min(held.wanted[peer], first + BLOCKS_ASKED_MAX - 1)
        while first < last and first in held.waiting:
            first += 1
        held.asked = (peer, self._node.now.mono_ms)
        return peer, AskBlocks(*held.chain_id, first, last)

    def _choose(
        self, wanted: dict[str, int], asked: tuple[str, int] | tuple[str, int, int] | None
    ) -> str:
        """Return whom to ask: not the one who has just not answered, if there is another."""
        peers = sorted(wanted)
        if asked is not None and asked[0] in peers and len(peers) > 1:
            peers.remove(asked[0])
        return peers[self._node.jitter(len(peers))]

    def send_digest(self) -> None:
        """Tell all what is held here, chains in turn."""
        fresh, self._node.grown = list(self._node.grown)[:HEADS_MAX], {}
        held = self._node.chains
        fresh = [chain_id for chain_id in fresh if held[chain_id].sealed]
        chains = [chain_id for chain_id, one in held.items() if one.height and one.sealed]
        if self._digest_at >= len(chains):
            self._digest_at = 0
        turn = chains[self._digest_at : self._digest_at + HEADS_IN_TURN]
        self._digest_at += HEADS_IN_TURN
        heads = tuple(
            (*chain_id, self._node.chains[chain_id].height, self._node.chains[chain_id].head_hash)
            for chain_id in dict.fromkeys([*fresh, *turn][:HEADS_MAX])
        )
        batches = tuple(
            (kid, last.number, last.batch_hash) for kid, last in self._node.sequences.items()
        )[-HEADS_MAX:]
        order = (self._node.roster.head.height, self._node.roster.head.order_hash)
        self._node.say(
            "digest",
            Digest(order, heads, batches, self._shown_evidence()[-EVIDENCE_SHOWN_MAX:]),
        )

    def _shown_evidence(self) -> tuple[bytes, ...]:
        """Return ids of the evidence that a message has room for; others put theirs together."""
        return tuple(
            evidence_id
            for evidence_id, evidence in self._node.evidence.items()
            if len(evidence) <= MESSAGE_BYTES_MAX
        )
