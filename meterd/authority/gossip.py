"""A node of the network without its network: events and the time in, effects out.

The whole of what a peer process decides is here. It checks blocks and orders of every chain,
attests them in batches if it votes, sees who certified what, asks for what it lacks, answers what
it is asked, keeps proof of whoever signs two histories, and begins a new epoch when a certified
order says so. It votes only once it knows what it has voted before (the boot rule).

State here is volatile: what has to outlast a crash leaves as `Persist` before anything that depends
on it is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.alarms import Alarms
from meterd.authority.asking import Asking, cost_of
from meterd.authority.attestation import ATTEST_CONTEXT
from meterd.authority.certificate import (
    CERTIFICATE_CONTEXT,
    SEALS_CONTEXT,
    VOTES_CONTEXT,
    Accused,
    seals_evidence,
    verify_evidence,
)
from meterd.authority.effects import (
    Alarmed,
    Asked,
    Assembled,
    Certify,
    Connected,
    Deliver,
    Effect,
    Event,
    Loaded,
    Now,
    Persist,
    PutCounters,
    PutEvidence,
    Received,
    Sealed,
    Send,
    Stopping,
    Tick,
)
from meterd.authority.judging import Judging
from meterd.authority.messages import (
    BLOCKS_CONTEXT,
    AskHead,
    Digest,
    Fetch,
    HeadHeld,
    OwnBatch,
    Refusal,
    Said,
    blocks_message,
    open_said,
)
from meterd.authority.node import Node
from meterd.authority.roster import OrderUnknownError
from meterd.authority.senders import PACED, Sender, Settings
from meterd.authority.snapshot import NEW, Snapshot
from meterd.authority.voting import Voting
from meterd.authority.witness import ChainEndedError, place_of
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.alarm import ALARM_CONTEXT
from meterd.ledger.block import decode_block
from meterd.ledger.chain import head_behind
from meterd.ledger.encoding import MESSAGE_BYTES_MAX, decode, digest, take_apart
from meterd.ledger.order import decode_order

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from meterd.ledger.account import Genesis

REDUNDANT_MAX = 1024  # ids that are not asked for again
REFUSAL_MS = 60_000  # a peer's refusals of our blocks are told so often
COUNTERS_MS = 10_000  # a card is written so often at most for them; a replayed hint does no harm


class Gossip(Node):
    """One node, and its parts.

    Attributes:
        asking: What it asks, and answers.
        voting: What it attests, and what a quorum did.
        judging: What it makes of blocks and orders.
        alarms: What meters tell of themselves.
    """

    def __init__(
        self,
        genesis: Genesis,
        name: str,
        key: SigningKey,
        *,
        nonce: bytes,
        snapshot: Snapshot = NEW,
        settings: Settings = PACED,
        meter: str = "",
    ) -> None:
        """Go on from what the store holds.

        Args:
            genesis: The network's first word.
            name: This node's name.
            key: Its voting key, which signs its messages too.
            nonce: 16 bytes that nobody can guess, of this start.
            snapshot: What the store holds.
            settings: How it paces itself.
            meter: The meter of this device, or empty.

        Raises:
            BlockRejectedError: The store and the genesis do not fit each other.
        """
        super().__init__(
            genesis, name, key, nonce=nonce, snapshot=snapshot, settings=settings, meter=meter
        )
        self.asking = Asking(self)
        self.voting = Voting(self, self.asking, snapshot)
        self.judging = Judging(self, self.asking, self.voting)
        self.alarms = Alarms(self, snapshot.alarms)
        self._counters = dict(snapshot.counters)
        self._counters_dirty = False
        self._counters_ms = 0
        self._senders: dict[str, Sender] = {}
        self._refusals_ms: dict[str, int] = {}
        self._digest_ms = 0
        self._head = b""
        self._restore(snapshot)
        self.alarms.restore()

    def _restore(self, snapshot: Snapshot) -> None:
        roster = self.roster
        if roster.distributor:
            held = self.hold(roster.distributor)
            for height, sealed in enumerate(snapshot.orders, start=1):
                order = decode_order(take_apart(sealed).payload)
                epoch = self.latest().committee.epoch
                self.await_certificate(order)
                held.grow(order.hash, epoch)
                if height <= snapshot.orders_certified:
                    self.roster = self.pending.pop(0)
                    self.bases.pop(height, None)
            held.certified = snapshot.orders_certified
            held.checks = snapshot.orders_checks
        for before in snapshot.chains:
            held = self.hold(before.chain)
            assert held.chain is not None  # noqa: S101 - a meter's
            held.hashes |= before.hashes
            held.certified, held.certified_epoch = before.certified, before.certified_epoch
            for payload in before.payloads:
                block = decode_block(payload)
                block_hash = digest(payload)
                held.height, held.head_hash = block.height, block_hash
                held.hashes[block.height] = block_hash
                epoch = self.roster.epoch_at(block.order[0])
                if epoch > (held.epochs[-1][1] if held.epochs else 1):
                    held.epochs.append((block.height, epoch))
                held.chain = held.chain._replace(head=head_behind(held.chain, payload))
            held.checks = before.checks
            held.sealed_to = before.sealed_to
            if not held.sealed:
                self.judging.runs.unsealed[before.chain] = None
        for kid, vote in snapshot.votes:
            self.hold(vote.leaf.chain).sort_vote(kid, vote)
        for epoch, kid, leaf in snapshot.locks:
            self.voting.lock(epoch, kid, leaf)
        for evidence in snapshot.evidence:
            self._convict(evidence, verify_evidence(evidence, self.roster))
        for chain_id, held in self.chains.items():
            if held.height > held.certified:
                self.voting.dirty[chain_id] = None
            for kid, vote in held.ahead.items():
                self.asking.claim(held, self.voter_name(kid), vote.leaf.height)

    def step(self, event: Event, now: Now) -> list[Effect]:
        """Take an event; return what is to be done about it, in this order."""
        self.now = now
        self.time_start()
        match event:
            case Received():
                self._receive(event.sender, event.message)
            case Sealed():
                self._seal(event.message)
            case Alarmed():
                self.alarms.offer(event)
            case Tick():
                self._tick()
            case Loaded():
                self._loaded(event)
            case Assembled():
                self._take_own_evidence(event.evidence)
            case Asked():
                self.asking.ask_head(event)
            case Stopping():
                self._send_head()
                self._keep_counters()
            case Connected():
                self._digest_ms = min(self._digest_ms, now.mono_ms + self.jitter(500))
                self.voting.recall.ask_at_once()
                self.alarms.connected()
        for sender in self.judging.runs.blamed:
            self._blame(sender, "blocks with bad seals")
        self.judging.runs.blamed.clear()
        contested = list(self.contested)
        self.contested.clear()
        for chain_id in contested:
            self.judging.adopt(self.chains[chain_id])
        while self.voting.order_came:
            self.voting.order_came = False
            self.judging.judge_waiting()
        if self.settings.tick_ms == 0:
            self.voting.attest()
        effects: list[Effect] = []
        if self.records:
            effects.append(Persist(tuple(self.records)))
            self.records.clear()
        effects += self.out
        self.out.clear()
        return effects

    @property
    def busy(self) -> bool:
        """Whether the next tick has something to do besides a batch or a digest."""
        judging, promised = self.judging, self.voting.promises.any
        waits = judging.waiting or judging.runs.unsealed or self.asking.behind
        return bool(waits or promised or (self.votes and not self.booted))

    @property
    def batch_ms(self) -> int | None:
        """When the next batch is to be signed, by the clock of `Now`; None if nothing is new."""
        return self.voting.batch_ms

    def _receive(self, sender: str, message: bytes) -> None:
        if sender == self.name:
            return
        if not self.key_of(sender):
            self.count("stranger")
            return
        if len(message) > MESSAGE_BYTES_MAX or not self._sender(sender).admit(
            len(message), self.settings, self.now.mono_ms
        ):
            self.count("dropped")
            return
        try:
            self._take(sender, message)
        except OrderUnknownError:
            self.count("early")
        except ChainEndedError:
            self.count("ended")  # whoever has not heard of the order yet does no wrong
        except (BlockRejectedError, EncodingError) as error:
            self.count("refused")
            self._blame(sender, str(error))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # A mistake of ours that somebody has found; it must not end the node.
            self.count("misjudged")
            self.tell(2, "misjudged", sender=sender, error=type(error).__name__)
            self._blame(sender, type(error).__name__)

    def _sender(self, name: str) -> Sender:
        known = self._senders.get(name)
        if known is None:
            known = self._senders[name] = Sender(self.settings, self.now.mono_ms)
        return known

    def _blame(self, sender: str, reason: str) -> None:
        known = self._senders.get(sender)
        if known is not None and known.fault(self.now.mono_ms):
            self.tell(1, "quarantined", sender=sender, reason=reason)

    def _take(self, sender: str, message: bytes) -> None:
        if message.startswith(b"\xd2"):
            self._take_sealed(sender, message)
            return
        head = message[:40]
        if ATTEST_CONTEXT.encode() in head:
            self.voting.take_batch(sender, message)
        elif BLOCKS_CONTEXT.encode() in head:
            value = decode(message)
            if type(value) is not tuple or type(value[-1]) is not tuple:
                raise EncodingError("not a message of blocks")
            if not all(type(sealed) is bytes for sealed in value[-1]):
                raise EncodingError("not a message of blocks")
            if value[-1] and not self.judging.take_run(sender, value[-1]):
                for sealed in value[-1]:
                    self._take_sealed(sender, sealed)
            if value[-1]:
                self.asking.go_on_asking(sender, value[-1][-1])
        elif SEALS_CONTEXT.encode() in head or VOTES_CONTEXT.encode() in head:
            self._take_evidence(message)
        elif CERTIFICATE_CONTEXT.encode() in head:
            self.voting.take_certificate(sender, message)
        else:
            raise EncodingError("a message of no kind known here")

    def _take_sealed(self, sender: str, message: bytes) -> None:
        parts = take_apart(message)
        if ALARM_CONTEXT.encode() in parts.payload[:24]:
            self.alarms.take(sender, message, parts)
        elif not self.judging.take(sender, message, parts):
            kid = parts.kid
            said = open_said(message, lambda name: self.key_of(name, kid), self.roster.genesis)
            if kid in self.keys_coming(said.sender):
                # Its order is not in force here: a reason to ask for what certifies it, no more.
                if isinstance(said.body, Digest):
                    self.asking.claim_order(said.sender, said.body.order[0])
                    self.asking.ask_all()
                return
            self._take_said(said, message)

    def _seal(self, message: bytes) -> None:
        """Take what this device's own meter, or its distributor, has sealed; tell everybody."""
        try:
            parts = take_apart(message)
            self.judging.check_own(parts)
            self._take_sealed(self.name, message)
            place = place_of(parts.payload)
        except (BlockRejectedError, EncodingError) as error:
            if not isinstance(error, OrderUnknownError):
                self.tell(2, "own_refused", reason=str(error))
            return
        if place[0] == self.meter:
            self.asking.seen_sealed(place[2])
        held = self.chains.get(place[:2])
        if held is not None and place[2] <= held.certified:
            self.out.append(Certify(held.chain_id, held.certified))  # our meter does not know it
            return
        self.out.append(Send("block", message))
        if held is not None and place[2] >= held.height:
            self._head = message

    def _take_said(self, said: Said, message: bytes) -> None:
        if said.counter <= self._counters.get(said.sender, 0):
            self.count("replayed")
            return
        self._counters[said.sender] = said.counter
        self._counters_dirty = True
        self.heard[said.sender] = self.now.mono_ms
        match said.body:
            case Digest():
                self.asking.take_digest(said.sender, said.body)
            case Fetch():
                if said.body.to == self.name:
                    self._answer(said.sender, said.body)
            case OwnBatch():
                self.voting.take_own_batch(said.sender, said.body)
            case HeadHeld():
                self.asking.take_head(said.sender, said.body, message)
            case Refusal():
                self._take_refusal(said.sender, said.body)

    def _take_refusal(self, sender: str, body: Refusal) -> None:
        """Tell people that a peer refuses a block of this device's; not of each, if it goes on."""
        if body.name != self.name:
            return
        self.count("own_refused")
        told_ms = self._refusals_ms.get(sender)
        if told_ms is None or self.now.mono_ms - told_ms >= REFUSAL_MS:
            self._refusals_ms[sender] = self.now.mono_ms
            reason, height = body.reason, body.height
            self.tell(1, "own_block_refused", by=sender, height=height, reason=reason)

    def _answer(self, sender: str, fetch: Fetch) -> None:
        budget = self._sender(sender)
        for question in fetch.questions:
            if not budget.ask(cost_of(question), self.settings, self.now.mono_ms):
                self.count("unanswered")  # whoever needs it asks anew, or another
            elif isinstance(question, AskHead):
                self.voting.answer_head(sender, question)
            else:
                self.asking.answer(sender, question)

    def _loaded(self, loaded: Loaded) -> None:
        purpose = loaded.load.purpose
        if purpose[0] == "send" and loaded.blocks:
            message = blocks_message(loaded.blocks)
            if len(message) > MESSAGE_BYTES_MAX:
                message = loaded.blocks[0]  # an order that fills a message by itself
            self.out.append(Send(f"answer/{purpose[1]}", message))
        elif purpose[0] == "compare" and loaded.blocks:
            one, other = loaded.blocks[0], loaded.load.extra
            if take_apart(one).payload != take_apart(other).payload:
                self._take_own_evidence(seals_evidence(one, other))
        elif purpose[0] == "own":
            for height, sealed in enumerate(loaded.blocks, start=loaded.load.first):
                self.out.append(Deliver("block", sealed, height))
        elif purpose[0] == "seals":
            self.judging.runs.loaded(loaded.load, loaded.blocks)
        elif purpose[0] == "adopt":
            self.judging.adopted(loaded.load, loaded.blocks)

    def _take_own_evidence(self, evidence: bytes) -> None:
        """Take evidence that was put together here, if it stands: it may be too long to."""
        try:
            self._take_evidence(evidence)
        except (BlockRejectedError, EncodingError):
            self.count("no evidence")

    def _take_evidence(self, evidence: bytes) -> None:
        evidence_id = digest(evidence)
        if evidence_id in self.evidence:
            return
        accused = verify_evidence(evidence, self.roster)
        if _who(accused) in self.accused:  # one proof is enough
            self.redundant[evidence_id] = None
            while len(self.redundant) > REDUNDANT_MAX:
                del self.redundant[next(iter(self.redundant))]
            return
        self._convict(evidence, accused)
        self.records.append(PutEvidence(evidence_id, evidence))
        if len(evidence) <= MESSAGE_BYTES_MAX:
            self.out.append(Send("evidence", evidence))
        self.tell(
            2,
            "two_histories",
            role=accused.role,
            name=accused.name,
            chain=f"{accused.chain[0]}/{accused.chain[1]}",
            height=accused.height,
        )

    def _convict(self, evidence: bytes, accused: Accused) -> None:
        self.evidence[digest(evidence)] = evidence
        self.accused[_who(accused)] = accused
        self.contest_revoked()
        if accused.role != "authority":
            if accused.chain[0] == self.meter:
                self.out.append(Deliver("evidence", evidence))
            held = self.hold(accused.chain)
            held.frozen = f"two blocks {accused.height} are sealed"

    def _tick(self) -> None:
        now_ms = self.now.mono_ms
        self.voting.boot()
        self.voting.keep_promises()
        if self.voting.batch_ms is not None and now_ms >= self.voting.batch_ms:
            self.voting.attest()
        self.judging.judge_waiting()
        self.judging.runs.verify()
        self._send_head()
        self.alarms.turn()
        if now_ms >= self._digest_ms:
            period_ms = self.settings.digest_ms
            self._digest_ms = now_ms + period_ms // 2 + self.jitter(period_ms)
            self.asking.send_digest()
            self.asking.ask_disputes()
        self.asking.ask_all()
        self.asking.ask_closings(self.voting.unsure_epoch())
        self.asking.give_back()
        if self._counters_dirty and now_ms - self._counters_ms >= COUNTERS_MS:
            self._keep_counters()

    def _send_head(self) -> None:
        """Publish our newest block for whoever comes later, at most once a tick."""
        if self._head:
            self.out.append(Send("head", self._head, retain=True))
            self._head = b""

    def _keep_counters(self) -> None:
        self._counters_dirty, self._counters_ms = False, self.now.mono_ms
        self.records.append(PutCounters(tuple(self._counters.items())))


def _who(accused: Accused) -> tuple[str, str]:
    """Return by what an accused is known: an authority by its key, who seals by its chain."""
    if accused.role == "authority":
        return accused.role, f"{accused.name}/{accused.kid.hex()}"
    return accused.role, f"{accused.name}/{accused.chain[1]}"
