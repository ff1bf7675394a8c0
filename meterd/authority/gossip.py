"""A node of the network without its network: events and the time in, effects out.

The whole of what a peer process decides is here. It checks blocks and orders of every chain,
attests them in batches if it votes, sees who certified what, asks for what it lacks, answers what
it is asked, keeps proof of whoever signs two histories, and begins a new epoch when a certified
order says so. It votes only once it knows what it has voted before (the boot rule).

State here is volatile: what has to outlast a crash leaves as `Persist` before anything that depends
on it is sent.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from meterd.authority.attestation import (
    ATTEST_CONTEXT,
    CHECKS_ALL,
    CLOSED,
    CLOSING,
    LEAVES_MAX,
    OPEN,
    PLAUSIBLE,
    Batch,
    Header,
    Leaf,
    make_batch,
    open_batch,
    verify_batch,
)
from meterd.authority.certificate import (
    CERTIFICATE_CONTEXT,
    SEALS_CONTEXT,
    VOTES_CONTEXT,
    Accused,
    open_certificate,
    open_enrolled,
    seals_evidence,
    verify_certificate,
    verify_evidence,
)
from meterd.authority.effects import (
    Accuse,
    Asked,
    Assembled,
    Certify,
    Connected,
    Deliver,
    DropBlocks,
    Effect,
    Event,
    Load,
    Loaded,
    Now,
    Persist,
    PutBatch,
    PutBlocks,
    PutCertificate,
    PutCertified,
    PutCounters,
    PutEpoch,
    PutEvidence,
    PutStart,
    Received,
    Record,
    Sealed,
    Send,
    SendBatches,
    SendCertificate,
    SendEvidence,
    Stopping,
    Tell,
    Tick,
)
from meterd.authority.messages import (
    ASKED_MAX,
    BLOCKS_CONTEXT,
    COUNTED_FROM_S,
    COUNTER_START_BITS,
    HEADS_MAX,
    AskBatches,
    AskBlocks,
    AskCertificate,
    AskEvidence,
    AskHead,
    AskOwnBatch,
    Body,
    Digest,
    Fetch,
    HeadHeld,
    OwnBatch,
    Question,
    Refusal,
    Said,
    blocks_message,
    open_said,
    say,
)
from meterd.authority.roster import OrderUnknownError, Roster, boot_answers, found
from meterd.authority.senders import PACED, Sender, Settings
from meterd.authority.snapshot import NEW, NOTHING, Sequence, Snapshot
from meterd.authority.witness import BlockEarlyError, ChainEndedError, Held, Vote, judge_block
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.block import BLOCK_CONTEXT, decode_block
from meterd.ledger.chain import head_behind
from meterd.ledger.encoding import MESSAGE_BYTES_MAX, decode, digest, key_id, take_apart
from meterd.ledger.order import ORDER_CONTEXT, ForkResolve, Order, Replace, decode_order, open_order

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from meterd.authority.roster import ChainId, Committee
    from meterd.ledger.account import Genesis
    from meterd.ledger.encoding import Sealed as Parts

HEADS_IN_TURN = 64  # in each digest besides those that have grown: in a street, all of them
WAITING_MAX = 32  # blocks of one chain that wait for those before them; the rest is asked for
BATCHES_WAITING_MAX = 8
STRAYS_MAX = 16  # batches of one voter beside its own sequence that are kept for evidence
BRANCH_MAX = 256  # blocks of another history that are kept until a quorum decides
BLOCKS_ASKED_MAX = 1000  # at a time; the answer is cut at what a message holds
BATCHES_ASKED_MAX = 64  # as many as a store gives at once
ANSWER_MS = 2000  # after that another peer is asked
CLAIMS_MAX = 16  # peers per chain whose word of its height is remembered
COUNTERS_MS = 10_000  # a card is written so often at most for them; a replayed hint does no harm
REFUSED_MAX = 64  # of the last refusals, to be shown
EVIDENCE_SHOWN_MAX = 64  # ids in a digest


class Gossip:
    """One node.

    Attributes:
        name: Its name.
        roster: The network as certified so far.
        chains: Every chain that is held.
        epoch: The epoch that this node is in.
        booted: Whether it knows what it has voted before, and so may vote.
        accused: Whom evidence convicts.
        counts: How many messages were dropped, refused …, by kind.
        refused: The last refusals, (name, height, reason).
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
        self.name, self._key, self._settings = name, key, settings
        self.kid = key_id(bytes(key.verify_key))
        self._nonce, self.meter = nonce, meter
        self.roster = found(genesis)
        self._pending: list[Roster] = []  # rosters behind orders that are not certified yet
        self.chains: dict[ChainId, Held] = {}
        self.epoch = snapshot.epoch
        self._starts, self._starts_timed = snapshot.starts, False
        self._counter = snapshot.starts << COUNTER_START_BITS
        self._counters = dict(snapshot.counters)
        self._counters_dirty = False
        self._counters_ms = 0
        self.sequences: dict[bytes, Sequence] = dict(snapshot.sequences)
        self._closed = set(snapshot.closed)
        self._batches_waiting: dict[bytes, dict[int, bytes]] = {}
        self._batches_wanted: dict[bytes, dict[str, int]] = {}
        self._batches_asked: dict[bytes, tuple[str, int, int]] = {}
        self._strays: dict[bytes, dict[int, Batch]] = {}
        self.evidence: dict[bytes, bytes] = {}
        self.accused: dict[tuple[str, str], Accused] = {}
        self._suspected: set[tuple[bytes, ChainId]] = set()
        self._senders: dict[str, Sender] = {}
        self.counts: dict[str, int] = {}
        self.refused: list[tuple[str, int, str]] = []
        self._dirty: dict[ChainId, None] = {}
        self._grown: dict[ChainId, None] = {}
        self._waiting: dict[ChainId, None] = {}
        self._behind: dict[ChainId, None] = {}
        self._batch_ms: int | None = None
        self._attested_ms = -settings.tick_ms
        self._digest_ms = 0
        self._head = b""
        self._digest_at = 0
        self._evidence_claimed: dict[bytes, str] = {}
        self._orders_claimed: dict[str, int] = {}
        self._order_asked: tuple[str, int] | None = None
        self._boot_asked_ms: int | None = None
        self._boot_answers: dict[str, tuple[int, bytes]] = {}
        self.heard: dict[str, int] = {}
        self._records: list[Record] = []
        self._out: list[Effect] = []
        self.booted = False
        self._restore(snapshot)
        self._now = Now(0, 0, synchronised=False)

    # --- the store ---------------------------------------------------------------------------

    def _restore(self, snapshot: Snapshot) -> None:
        roster = self.roster
        if roster.distributor:
            held = self._hold(roster.distributor)
            for height, sealed in enumerate(snapshot.orders, start=1):
                order = decode_order(take_apart(sealed).payload)
                latest = self._pending[-1] if self._pending else self.roster
                self._pending.append(latest.add(order))
                held.grow(order.hash, latest.committee.epoch)
                if height <= snapshot.orders_certified:
                    self.roster = self._pending.pop(0)
            held.certified = snapshot.orders_certified
            held.checks = snapshot.orders_checks
        for before in snapshot.chains:
            held = self._hold(before.chain)
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
        for kid, vote in snapshot.votes:
            self._hold(vote.leaf.chain).sort_vote(kid, vote)
        for evidence in snapshot.evidence:
            self._convict(evidence, verify_evidence(evidence, self.roster))
        for chain_id, held in self.chains.items():
            if held.height > held.certified:
                self._dirty[chain_id] = None

    def _hold(self, chain_id: ChainId) -> Held:
        """Return the chain, held from now on.

        Raises:
            BlockRejectedError: It is not enrolled.
        """
        held = self.chains.get(chain_id)
        if held is None:
            enrolled = self.roster.enrolled(chain_id)
            orders = chain_id == self.roster.distributor
            chain = None if orders else self.roster.open_chain(chain_id)
            held = self.chains[chain_id] = Held(chain_id, chain, enrolled.opened[1])
        return held

    # --- events ------------------------------------------------------------------------------

    def step(self, event: Event, now: Now) -> list[Effect]:
        """Take an event; return what is to be done about it, in this order."""
        self._now = now
        if now.synchronised and not self._starts_timed:
            self._time_start()
        match event:
            case Received():
                self._receive(event.sender, event.message)
            case Sealed():
                self._seal(event.message)
            case Tick():
                self._tick()
            case Loaded():
                self._loaded(event)
            case Assembled():
                self._take_evidence(event.evidence)
            case Asked():
                self._ask_head(event)
            case Stopping():
                self._send_head()
                self._keep_counters()
            case Connected():
                self._digest_ms = min(self._digest_ms, now.mono_ms + self._jitter(500))
                self._boot_asked_ms = None
        if self._settings.tick_ms == 0:
            self._attest()
        effects: list[Effect] = []
        if self._records:
            effects.append(Persist(tuple(self._records)))
            self._records.clear()
        effects += self._out
        self._out.clear()
        return effects

    @property
    def busy(self) -> bool:
        """Whether the next tick has something to do besides a batch or a digest."""
        return bool(self._waiting or self._behind or (self.votes and not self.booted))

    @property
    def batch_ms(self) -> int | None:
        """When the next batch is to be signed, by the clock of `Now`; None if nothing is new."""
        return self._batch_ms

    def _jitter(self, ms: int) -> int:
        """Return a number below `ms` that differs from node to node and from time to time."""
        drawn = sha256(self._nonce + self._counter.to_bytes(8, "big") + b"jitter").digest()
        return int.from_bytes(drawn[:4], "big") * ms >> 32

    def _count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def _tell(self, level: int, event: str, **fields: str | int) -> None:
        self._out.append(Tell(level, event, tuple(fields.items())))

    def _time_start(self) -> None:
        """Number this start anew once the time is known.

        On a card that was put back, or with a clock that went on from its last stop, it had a
        number that the neighbours have heard later ones of: they would take all for replayed.
        """
        self._starts_timed = True
        number = self._now.wall_s - COUNTED_FROM_S
        if number > self._starts:
            self._starts, self._counter = number, number << COUNTER_START_BITS
            self._records.append(PutStart(number))

    def _say(self, topic: str, body: Body) -> None:
        self._counter += 1
        said = Said(self.name, self._counter, body)
        self._out.append(Send(topic, say(said, self._key, self.roster.genesis)))

    # --- what comes ---------------------------------------------------------------------------

    def _receive(self, sender: str, message: bytes) -> None:
        if sender == self.name:
            return
        if not self._key_of(sender):
            self._count("stranger")
            return
        mono_ms = self._now.mono_ms
        known = self._senders.get(sender)
        if known is None:
            known = self._senders[sender] = Sender(self._settings, mono_ms)
        if len(message) > MESSAGE_BYTES_MAX or not known.admit(
            len(message), self._settings, mono_ms
        ):
            self._count("dropped")
            return
        try:
            self._take(sender, message)
        except OrderUnknownError:
            self._count("early")
        except ChainEndedError:
            self._count("ended")  # whoever has not heard of the order yet does no wrong
        except (BlockRejectedError, EncodingError) as error:
            self._count("refused")
            if known.fault(mono_ms):
                self._tell(1, "quarantined", sender=sender, reason=str(error))

    def _key_of(self, name: str) -> bytes:
        """Return the key of a node, or of one that voted in an epoch that is not over here."""
        if key := self.roster.peer_key(name):
            return key
        for committee in self.roster.committees[self.epoch - 1 :]:
            for voter, key in committee.voters:
                if voter == name:
                    return key
        return b""

    def _take(self, sender: str, message: bytes) -> None:
        if message.startswith(b"\xd2"):
            self._take_sealed(sender, message)
            return
        head = message[:40]
        if ATTEST_CONTEXT.encode() in head:
            self._take_batch(sender, message)
        elif BLOCKS_CONTEXT.encode() in head:
            value = decode(message)
            if type(value) is not tuple or type(value[-1]) is not tuple:
                raise EncodingError("not a message of blocks")
            for sealed in value[-1]:
                if type(sealed) is not bytes:
                    raise EncodingError("not a message of blocks")
                self._take_sealed(sender, sealed)
            if value[-1]:
                self._go_on_asking(sender, value[-1][-1])
        elif SEALS_CONTEXT.encode() in head or VOTES_CONTEXT.encode() in head:
            self._take_evidence(message)
        elif CERTIFICATE_CONTEXT.encode() in head:
            self._take_certificate(message)
        else:
            raise EncodingError("a message of no kind known here")

    def _take_sealed(self, sender: str, message: bytes) -> None:
        parts = take_apart(message)
        head = parts.payload[:24]
        if BLOCK_CONTEXT.encode() in head:
            self._take_block(sender, message, parts)
        elif ORDER_CONTEXT.encode() in head:
            self._take_order(sender, message, parts)
        else:
            said = open_said(message, self._key_of, self.roster.genesis)
            self._take_said(said, message)

    def _seal(self, message: bytes) -> None:
        """Take what this device's own meter, or its distributor, has sealed; tell everybody."""
        try:
            parts = take_apart(message)
            self._take_sealed(self.name, message)
            place = _place(parts.payload)
        except (BlockRejectedError, EncodingError) as error:
            if not isinstance(error, OrderUnknownError):
                self._tell(2, "own_refused", reason=str(error))
            return
        held = self.chains.get(place[:2])
        if held is not None and place[2] <= held.certified:
            self._out.append(Certify(held.chain_id, held.certified))  # our meter does not know it
            return
        self._out.append(Send("block", message))
        if held is not None and place[2] >= held.height:
            self._head = message

    # --- blocks and orders --------------------------------------------------------------------

    def _take_block(self, sender: str, message: bytes, parts: Parts) -> None:
        block = decode_block(parts.payload)
        if block.genesis != self.roster.genesis:
            raise BlockRejectedError("the block is another network's")
        chain_id = (block.meter, block.incarnation)
        if chain_id not in self.roster.chains and block.order[0] > self.roster.head.height:
            self._claim_order(sender, block.order[0])
            raise OrderUnknownError("its enrolment is not known here")
        held = self._hold(chain_id)
        if held.chain is None:
            raise BlockRejectedError(f"{block.meter} is no meter")
        if self._known(sender, held, block.height, message, parts):
            return
        if block.previous != held.head_hash:
            self._other_history(sender, held, message, block.height)
            return
        if held.frozen or (held.refused and digest(message) == held.refused):
            return
        try:
            chain, checks = judge_block(block, parts, held.chain, self.roster, self._now)
        except OrderUnknownError:
            self._claim_order(sender, block.order[0])
            self._wait(held, block.height, message)
            return
        except BlockEarlyError:
            self._wait(held, block.height, message)
            return
        except BlockRejectedError as error:
            held.refused = digest(message)  # with its seal: the same block may come with a good one
            self._refuse(held, block.height, digest(parts.payload), str(error))
            raise
        if checks & PLAUSIBLE == 0:
            self._tell(1, "implausible", meter=block.meter, height=block.height)
        held.chain = chain
        epoch = self.roster.epoch_at(block.order[0])
        self._grew(held, chain.head.block_hash, message, checks=checks, epoch=epoch)

    def _known(self, sender: str, held: Held, height: int, message: bytes, parts: Parts) -> bool:
        """Deal with what is not the next block; say whether it was dealt with."""
        if height == held.height + 1:
            return False
        if height > held.height:
            self._wait(held, height, message)
            self._claim(held, sender, height)
            return True
        here = held.hashes.get(height)
        block_hash = digest(parts.payload)
        if here == block_hash:
            return True
        if held.chain is None and here is not None:
            self._open_order_any(message)
        elif held.chain is not None:
            open_enrolled(message, self.roster)  # an unverified seal is never evidence
        if here is not None and height > held.certified and len(held.branch) < BRANCH_MAX:
            held.branch[height] = message
            self._adopt(held)
        if not held.frozen:
            self._out.append(Load(held.chain_id, height, height, ("compare",), message))
        return True

    def _other_history(self, sender: str, held: Held, message: bytes, height: int) -> None:
        """A block says it follows another one than we hold: where its seal holds, see that one."""
        if held.chain is None:
            self._open_order_any(message)
        else:
            open_enrolled(message, self.roster)
        if len(held.branch) < BRANCH_MAX:
            held.branch[height] = message
        first = max(1, held.certified + 1)
        if sender != self.name and first < height:
            self._ask(
                sender, AskBlocks(*held.chain_id, first, min(height, first + BLOCKS_ASKED_MAX))
            )
        self._adopt(held)

    def _open_order_any(self, message: bytes) -> Order:
        """Return the order in `message`, if any key of the distributor sealed it."""
        distributor = self.roster.distributor
        assert distributor is not None  # noqa: S101 - the caller holds its chain
        kid = take_apart(message).kid
        for _, key in self._latest().enrolled(distributor).keys:
            if key_id(key) == kid:
                return open_order(message, key, self.roster.genesis)[0]
        raise BlockRejectedError("the order is not sealed by the distributor")

    def _wait(self, held: Held, height: int, message: bytes) -> None:
        if height not in held.waiting and len(held.waiting) >= WAITING_MAX:
            last = max(held.waiting)
            if height > last:
                return
            del held.waiting[last]
        held.waiting[height] = message
        self._waiting[held.chain_id] = None

    def _latest(self) -> Roster:
        return self._pending[-1] if self._pending else self.roster

    def _take_order(self, sender: str, message: bytes, parts: Parts) -> None:
        distributor = self.roster.distributor
        if distributor is None:
            raise BlockRejectedError("this network has no distributor")
        held = self._hold(distributor)
        order = decode_order(parts.payload)
        if order.genesis != self.roster.genesis:
            raise BlockRejectedError("the order is another network's")
        if self._known(sender, held, order.height, message, parts):
            return
        if order.previous != held.head_hash:
            self._other_history(sender, held, message, order.height)
            return
        if held.frozen:
            return
        latest = self._latest()
        key = latest.enrolled(distributor).key_at(latest.head.height)
        try:
            open_order(message, key, self.roster.genesis)
            following = latest.add(order)
            if not self._bases_held(order):
                self._wait(held, order.height, message)
                return
        except BlockRejectedError as error:
            self._refuse(held, order.height, digest(parts.payload), str(error))
            raise
        self._pending.append(following)
        epoch = latest.committee.epoch
        block_hash = following.head.order_hash
        self._grew(held, block_hash, message, checks=CHECKS_ALL, epoch=epoch)

    def _bases_held(self, order: Order) -> bool:
        """Say whether the block that an order ends a chain at is held here.

        Raises:
            BlockRejectedError: A quorum has certified more of that chain, or another block there.
        """
        change = order.change
        if isinstance(change, Replace):
            height, block_hash = change.final_height, change.final_hash
        elif isinstance(change, ForkResolve):
            height, block_hash = change.base_height, change.base_hash
        else:
            return True
        held = self._hold((change.meter, change.old_incarnation))
        if held.certified > height:
            raise BlockRejectedError(
                f"block {held.certified} of {change.meter} is certified, the order ends it at "
                f"{height}"
            )
        if held.height < height:
            return False
        if held.hashes.get(height) != block_hash:
            raise BlockRejectedError(f"another block {height} of {change.meter} is held here")
        return True

    def _grew(
        self,
        held: Held,
        block_hash: bytes,
        message: bytes,
        *,
        checks: int,
        epoch: int,
    ) -> None:
        """Keep one more block, and see what follows from it."""
        held.grow(block_hash, epoch)
        self._grown[held.chain_id] = None
        held.checks &= checks
        self._records.append(
            PutBlocks(
                held.chain_id,
                ((held.height, block_hash, message),),
                self._now.wall_s,
                checks,
            )
        )
        self._mark(held.chain_id)
        if held.ahead:
            for kid, vote in held.sort_ahead():
                self._suspect(held, kid, vote)
            self._certify(held)
        waiting = held.waiting.pop(held.height + 1, None)
        if waiting is not None:
            self._again(waiting)

    def _again(self, message: bytes) -> None:
        """Judge anew what has waited."""
        try:
            self._take_sealed(self.name, message)
        except (BlockRejectedError, EncodingError):
            self._count("refused")

    def _mark(self, chain_id: ChainId) -> None:
        self._dirty[chain_id] = None
        self._attest_soon()

    def _attest_soon(self) -> None:
        if self._batch_ms is None:
            self._batch_ms = max(self._now.mono_ms, self._attested_ms + self._settings.tick_ms)

    def _refuse(self, held: Held, height: int, block_hash: bytes, reason: str) -> None:
        name, incarnation = held.chain_id
        self.refused.append((name, height, reason))
        del self.refused[:-REFUSED_MAX]
        level = 2 if "lowers register" in reason else 1
        self._tell(level, "refused", meter=name, height=height, reason=reason)
        if name != self.name and name in self.roster.nodes:
            body = Refusal(name, incarnation, height, block_hash, reason[:200])
            self._say(f"answer/{name}", body)

    # --- batches ------------------------------------------------------------------------------

    def _take_batch(self, sender: str, message: bytes) -> None:
        batch = open_batch(message, self.roster.genesis)
        committee = self.roster.committee_of(batch.header.epoch)
        if committee is None:
            self._claim_order(sender, self.roster.head.height + 1)
            raise OrderUnknownError("its epoch is not known here")
        voter = committee.voter(batch.kid)
        if voter is None:
            raise BlockRejectedError(
                f"key {batch.kid.hex()} does not vote in epoch {batch.header.epoch}"
            )
        last = self.sequences.get(batch.kid, NOTHING)
        number = batch.header.number
        if number < last.number or (number == last.number and batch.hash == last.batch_hash):
            return
        verify_batch(batch, voter[1])
        if any(leaf.chain not in self.roster.chains for leaf in batch.leaves):
            self._claim_order(sender, self.roster.head.height + 1)
            raise OrderUnknownError("it attests a chain whose enrolment is not known here")
        if number > last.number + 1:
            waiting = self._batches_waiting.setdefault(batch.kid, {})
            waiting[number] = message
            if len(waiting) > BATCHES_WAITING_MAX:
                del waiting[max(waiting)]
            self._claim_batches(batch.kid, sender, number)
            return
        if number == last.number or batch.header.previous != last.batch_hash:
            self._stray(voter[0], batch, message)
            return
        here, before = (batch.header.epoch, batch.header.closing), (last.epoch, last.closing)
        if here < before or (here == before and last.closing == CLOSED):
            raise BlockRejectedError(f"{voter[0]} attests in an epoch that it has closed")
        self._keep_batch(batch, message)
        asked = self._batches_asked.get(batch.kid)
        if asked is not None and number >= asked[2]:
            self._batches_asked[batch.kid] = (asked[0], 0, 0)  # answered: ask for what follows
            self._ask_batches()
        following = self._batches_waiting.get(batch.kid, {}).pop(number + 1, None)
        if following is not None:
            self._take_batch(sender, following)

    def _keep_batch(self, batch: Batch, message: bytes) -> None:
        header = batch.header
        self.sequences[batch.kid] = Sequence(
            header.number, batch.hash, header.epoch, header.closing
        )
        self._records.append(PutBatch(batch, message))
        for leaf in batch.leaves:
            self._take_leaf(batch.kid, Vote(leaf, header.number, header.epoch))
        if header.closing == CLOSED:
            self._closed.add((header.epoch, batch.kid))
            self._attest_soon()  # what waited for these locks
        if batch.kid == self.kid:
            self._see_booted()
        elif header.closing == CLOSED or header.epoch > self.epoch:
            self._turn_epoch()

    def _stray(self, voter: str, batch: Batch, message: bytes) -> None:
        """A voter signed two batches in one place: what they say of chains may convict it."""
        kept = self._strays.setdefault(batch.kid, {})
        if batch.header.number in kept or len(kept) >= STRAYS_MAX:
            return
        kept[batch.header.number] = batch
        self._tell(1, "batch_beside", authority=voter, number=batch.header.number)
        self._records.append(PutBatch(batch, message, beside=True))
        for leaf in batch.leaves:
            held = self.chains.get(leaf.chain)
            if held is not None:
                vote = Vote(leaf, batch.header.number, batch.header.epoch)
                here = held.hashes.get(leaf.height)
                if here is not None and here != leaf.block_hash:
                    held.foreign.setdefault(batch.kid, vote)
                    self._suspect(held, batch.kid, vote)

    def _take_leaf(self, kid: bytes, vote: Vote) -> None:
        held = self._hold(vote.leaf.chain)
        before = held.votes.get(kid)
        found_to_be = held.sort_vote(kid, vote)
        if found_to_be == "foreign":
            self._suspect(held, kid, vote)
            voter = self.voter_name(kid)
            if voter and voter != self.name:
                self._ask(
                    voter,
                    AskBlocks(
                        *held.chain_id,
                        held.certified + 1,
                        min(vote.leaf.height, held.certified + BLOCKS_ASKED_MAX),
                    ),
                )
        elif found_to_be == "ahead":
            self._claim(held, self.voter_name(kid), vote.leaf.height)
        elif found_to_be == "on":
            if kid in held.foreign:
                self._suspect(held, kid, held.foreign[kid])
            if before is None or before.leaf.height < vote.leaf.height or before.epoch < vote.epoch:
                self._certify(held)

    def voter_name(self, kid: bytes) -> str:
        """Return the name of the voter with this key id, in any epoch; empty if there is none."""
        for committee in reversed(self.roster.committees):
            if voter := committee.voter(kid):
                return voter[0]
        return ""

    def _suspect(self, held: Held, kid: bytes, foreign: Vote) -> None:
        """Where a voter has attested our history too, at or above its other one, it is proven."""
        on = held.votes.get(kid)
        if on is None or on.leaf.height < foreign.leaf.height:
            return
        if (kid, held.chain_id) in self._suspected:
            return
        self._suspected.add((kid, held.chain_id))
        self._out.append(Accuse(kid, foreign.leaf, foreign.number, on.leaf, on.number))

    # --- certificates -------------------------------------------------------------------------

    def _certify(self, held: Held) -> None:
        """See up to where quorums have attested a chain."""
        above = [vote.epoch for vote in held.votes.values() if vote.leaf.height > held.certified]
        if len(above) < self.roster.quorum_least:
            return
        best = (held.certified, held.certified_epoch)
        for epoch in set(above):
            committee = self.roster.committee_of(epoch)
            if committee is None:
                continue
            heights = sorted(
                (
                    vote.leaf.height
                    for kid, vote in held.votes.items()
                    if vote.epoch == epoch
                    and held.epoch_at(vote.leaf.height) <= epoch
                    and committee.voter(kid)
                ),
                reverse=True,
            )
            if len(heights) >= committee.quorum:
                best = max(best, (heights[committee.quorum - 1], epoch))
        if best[0] <= held.certified:
            return
        self._certified(held, *best)
        if held.chain_id[0] == self.meter and held.chain is not None:
            votes = tuple(
                (kid, vote.number, vote.leaf)
                for kid, vote in held.votes.items()
                if vote.epoch == best[1] and vote.leaf.height >= best[0]
            )
            self._out.append(Certify(held.chain_id, *best, votes))

    def _certified(self, held: Held, height: int, epoch: int) -> None:
        """A chain is certified up to `height`, which is more than before."""
        before = held.certified
        held.certified, held.certified_epoch = height, epoch
        self._records.append(PutCertified(held.chain_id, height, epoch))
        for at in [at for at in held.branch if at <= height]:
            del held.branch[at]
        if held.chain_id == self.roster.distributor:
            for at in range(before + 1, height + 1):
                self._out.append(Certify(held.chain_id, at))
            for _ in range(before, height):
                self._order_in_force()

    def _take_certificate(self, message: bytes) -> None:
        """Take what shows that the first order of ours that is not certified here is so."""
        certificate = open_certificate(message)
        if (certificate.meter, certificate.incarnation) != self.roster.distributor:
            raise BlockRejectedError("a certificate of no order")
        height = self.roster.head.height + 1
        if certificate.height != height or not self._pending:
            return  # come late
        if certificate.block_hash != self._pending[0].head.order_hash:
            return  # there are two orders: the proof of that will come
        said = verify_certificate(certificate, self.roster, self.roster.committee.epoch)
        self._records.append(PutCertificate(height, message))
        self._certified(self._hold(self.roster.distributor), height, said.epoch)

    def _order_in_force(self) -> None:
        self.roster = self._pending.pop(0)
        self._tell(0, "order_in_force", height=self.roster.head.height)
        self._turn_epoch()
        self._judge_waiting()

    def _judge_waiting(self) -> None:
        """Judge anew what could not be judged before: its time has come, or its order."""
        for chain_id in list(self._waiting):
            held = self.chains[chain_id]
            waiting = held.waiting.pop(held.height + 1, None)
            if not held.waiting:
                del self._waiting[chain_id]
            if waiting is not None:
                self._again(waiting)

    def _adopt(self, held: Held) -> None:
        """Where a quorum has certified another history than ours, take it: see `_adopted`."""
        if self._certified_elsewhere(held) and held.certified + 1 in held.branch:
            base = held.certified
            self._out.append(Load(held.chain_id, base, base, ("adopt",)))

    def _certified_elsewhere(self, held: Held) -> tuple[int, bytes] | None:
        """Return height and hash up to which a quorum attests the branch that we have seen."""
        best = None
        for epoch in {vote.epoch for vote in held.foreign.values()}:
            committee = self.roster.committee_of(epoch)
            if committee is None:
                continue
            for height, sealed in sorted(held.branch.items()):
                here = digest(take_apart(sealed).payload)
                attested = sum(
                    vote.epoch == epoch and self._leads_to(held, vote.leaf, height, here)
                    for vote in held.foreign.values()
                )
                if attested >= committee.quorum:
                    best = (height, here)
        return best

    def _leads_to(self, held: Held, leaf: Leaf, height: int, block_hash: bytes) -> bool:
        """Say whether `leaf` is the branch's block at `height` or follows from it."""
        at, here = leaf.height, leaf.block_hash
        while at > height:
            sealed = held.branch.get(at)
            if sealed is None or digest(take_apart(sealed).payload) != here:
                return False
            at, here = at - 1, _previous(take_apart(sealed).payload)
        return at == height and here == block_hash

    def _adopted(self, held: Held, base: tuple[bytes, ...]) -> None:
        """Put the certified branch in the place of our own blocks above the last certified one."""
        best = self._certified_elsewhere(held)
        if best is None or held.chain is None:
            return
        first = held.certified + 1
        chain = self.roster.open_chain(held.chain_id)
        if base:
            chain = chain._replace(head=head_behind(chain, take_apart(base[0]).payload))
        blocks = []
        for height in range(first, best[0] + 1):
            sealed = held.branch.get(height)
            if sealed is None:
                return
            parts = take_apart(sealed)
            block = decode_block(parts.payload)
            try:
                chain, _ = judge_block(block, parts, chain, self.roster, self._now)
            except BlockRejectedError:
                return
            blocks.append((height, chain.head.block_hash, sealed))
        self._records.append(DropBlocks(held.chain_id, first))
        self._records.append(PutBlocks(held.chain_id, tuple(blocks), self._now.wall_s, CHECKS_ALL))
        held.chain = chain
        for height in [height for height in held.hashes if height >= first]:
            del held.hashes[height]
        held.height = first - 1
        for height, block_hash, _ in blocks:
            held.grow(block_hash, held.epoch_at(height))
            held.branch.pop(height, None)
        votes = [*held.votes.items(), *held.foreign.items(), *held.ahead.items()]
        held.votes, held.foreign, held.ahead = {}, {}, {}
        for kid, vote in sorted(votes, key=lambda item: item[1].number):
            held.sort_vote(kid, vote)
        self._tell(1, "history_adopted", meter=held.chain_id[0], height=held.height)
        self._certify(held)

    # --- epochs -------------------------------------------------------------------------------

    @property
    def committee(self) -> Committee:
        """The voters of the epoch that this node is in."""
        committee = self.roster.committee_of(self.epoch)
        assert committee is not None  # noqa: S101 - it began this epoch by its order
        return committee

    @property
    def votes(self) -> bool:
        """Whether this node votes in its epoch."""
        return self.committee.voter(self.kid) is not None

    def _turn_epoch(self) -> None:
        """Close epochs that orders have ended, and begin the next once a quorum has closed."""
        while True:
            if self.booted:
                for committee in self._unclosed():
                    self._close(committee.epoch)
            if self.roster.committee.epoch <= self.epoch:
                return
            kids = self.committee.kids
            closed = sum((self.epoch, kid) in self._closed for kid in kids)
            if closed < self.committee.quorum and not self._others_went_on():
                return
            self.epoch += 1
            self._records.append(PutEpoch(self.epoch))
            self._tell(0, "epoch_begun", epoch=self.epoch)
            for chain_id, held in self.chains.items():
                if held.height:
                    self._mark(chain_id)

    def _others_went_on(self) -> bool:
        """Say whether an honest voter attests in a later epoch, and so has seen this one closed.

        A liar may close it towards some alone; whoever it left behind could wait for ever.
        """
        following = self.roster.committee_of(self.epoch + 1)
        assert following is not None  # noqa: S101 - the caller has seen the order
        later = sum(self.sequences.get(kid, NOTHING).epoch > self.epoch for kid in following.kids)
        return later > following.faults_max

    def _unclosed(self) -> list[Committee]:
        """Return the epochs that are over and that this node votes in and has not closed.

        It may have entered a later one by others' closing; others may still wait for its own.
        """
        return [
            committee
            for committee in self.roster.committees[:-1]
            if committee.epoch <= self.epoch
            and committee.voter(self.kid)
            and (committee.epoch, self.kid) not in self._closed
        ]

    def _close(self, epoch: int) -> None:
        """Sign all locks of an epoch once more, and nothing after that in it."""
        if epoch == self.epoch:
            self._attest()
        leaves = [
            vote.leaf
            for held in self.chains.values()
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
            votes[self.kid] for votes in (held.votes, held.ahead, held.foreign) if self.kid in votes
        ]
        return max(found_votes, key=lambda vote: vote.number, default=None)

    # --- attesting ----------------------------------------------------------------------------

    def _attest(self) -> None:
        """Sign what is new, if this node votes and may."""
        self._batch_ms = None
        if not self._dirty:
            return
        self._attested_ms = self._now.mono_ms
        if not self.booted or not self.votes or (self.epoch, self.kid) in self._closed:
            return
        if any(committee.epoch < self.epoch for committee in self._unclosed()):
            return
        leaves = []
        for chain_id in list(self._dirty):
            del self._dirty[chain_id]
            leaf = self._leaf(self.chains[chain_id])
            if leaf is not None:
                leaves.append(leaf)
        for at in range(0, len(leaves), LEAVES_MAX):
            self._sign(leaves[at : at + LEAVES_MAX], OPEN, self.epoch)

    def _leaf(self, held: Held) -> Leaf | None:
        """Return what there is to attest on a chain, or None."""
        name, incarnation = held.chain_id
        height = held.height
        while height and held.epoch_at(height) > self.epoch:
            height -= 1
        if held.frozen or not height:
            return None
        if self.kid in held.ahead or self.kid in held.foreign:
            return None  # we have attested what we do not hold: it has to be fetched first
        enrolled = self._latest().enrolled(held.chain_id)
        if enrolled.revoked or (enrolled.closed and height > enrolled.closed[0]):
            return None
        own = held.votes.get(self.kid)
        if own is not None and (own.leaf.height, own.epoch) >= (height, self.epoch):
            return None
        if not self._locks_adopted(held):
            self._dirty[held.chain_id] = None
            return None
        checks = held.checks
        if height == held.height:
            held.checks = CHECKS_ALL
        return Leaf(name, incarnation, height, held.hashes[height], checks)

    def _locks_adopted(self, held: Held) -> bool:
        """Say whether what we hold extends the locks of a quorum of the epoch before."""
        before = self.roster.committee_of(self.epoch - 1)
        if before is None:
            return True
        adopted = sum(
            (self.epoch - 1, kid) in self._closed
            and kid not in held.ahead
            and kid not in held.foreign
            for kid in before.kids
        )
        return adopted >= before.quorum

    def _sign(self, leaves: list[Leaf], closing: int, epoch: int) -> None:
        last = self.sequences.get(self.kid, NOTHING)
        header = Header(epoch, last.number + 1, last.batch_hash, max(self._now.wall_s, 0), closing)
        batch, message = make_batch(header, leaves, self._key, self.roster.genesis)
        self._keep_batch(batch, message)
        self._out.append(Send("attest", message))

    # --- the boot rule of an authority ----------------------------------------------------------

    def _duty(self) -> Committee | None:
        """Return the committee by which this node has to know its votes; None if it never voted."""
        if self.votes:
            return self.committee
        return next(reversed(self._unclosed()), None)

    def _boot(self) -> None:
        """Ask what we have voted before, until enough others have said it."""
        committee = self._duty()
        if self.booted or committee is None:
            return
        if boot_answers(len(committee.voters), votes=True) == 0:
            self.booted = True
            self._after_boot()
            return
        now_ms = self._now.mono_ms
        if self._boot_asked_ms is not None and now_ms - self._boot_asked_ms < ANSWER_MS:
            return
        self._boot_asked_ms = now_ms
        for name, _ in committee.voters:
            if name != self.name:
                self._ask(name, AskOwnBatch(self.kid, self._nonce))

    def _take_own_batch(self, sender: str, body: OwnBatch) -> None:
        if self.booted or body.kid != self.kid or body.nonce != self._nonce:
            return
        if body.order[0] > self.roster.head.height or body.epoch > self.epoch:
            self._claim_order(sender, body.order[0])
            return  # asked again once we know what it knows
        self._boot_answers[sender] = (body.number, body.batch_hash)
        self._claim_batches(self.kid, sender, body.number)
        self._see_booted()

    def _see_booted(self) -> None:
        committee = self._duty()
        if self.booted or committee is None:
            return
        answers = [said for name, said in self._boot_answers.items() if committee.has(name)]
        if len(answers) < boot_answers(len(committee.voters), votes=True):
            return
        last = self.sequences.get(self.kid, NOTHING)
        number, batch_hash = max(answers)
        if number > last.number:
            return
        if number == last.number and number and batch_hash != last.batch_hash:
            self._tell(2, "votes_elsewhere", number=number)
            return
        self.booted = True
        self._tell(0, "booted", number=last.number)
        self._after_boot()

    def _after_boot(self) -> None:
        for chain_id in self.chains:
            self._mark(chain_id)
        self._turn_epoch()

    # --- what peers say -------------------------------------------------------------------------

    def _take_said(self, said: Said, message: bytes) -> None:
        if said.counter <= self._counters.get(said.sender, 0):
            self._count("replayed")
            return
        self._counters[said.sender] = said.counter
        self._counters_dirty = True
        self.heard[said.sender] = self._now.mono_ms
        match said.body:
            case Digest():
                self._take_digest(said.sender, said.body)
            case Fetch():
                if said.body.to == self.name:
                    for question in said.body.questions:
                        self._answer(said.sender, question)
            case OwnBatch():
                self._take_own_batch(said.sender, said.body)
            case HeadHeld():
                self._take_head(said.sender, said.body, message)
            case Refusal():
                if said.body.name == self.name:
                    self._tell(
                        1,
                        "own_block_refused",
                        by=said.sender,
                        height=said.body.height,
                        reason=said.body.reason,
                    )

    def _take_head(self, sender: str, body: HeadHeld, message: bytes) -> None:
        """Hand the answer to our meter, and fetch what it tells of."""
        if body.meter != self.meter:
            return
        self._claim_order(sender, body.order[0])
        held = self.chains.get((body.meter, body.incarnation))
        if held is None and (body.meter, body.incarnation) in self.roster.chains:
            held = self._hold((body.meter, body.incarnation))
        if held is not None:
            self._claim(held, sender, body.height)
        self._out.append(Deliver("answer", message))
        self._ask_all()

    def _answer(self, sender: str, question: Question) -> None:
        order = (self.roster.head.height, self.roster.head.order_hash)
        topic = f"answer/{sender}"
        match question:
            case AskBlocks():
                chain_id = (question.name, question.incarnation)
                held = self.chains.get(chain_id)
                if held is not None and 0 < question.first <= held.height:
                    last = min(question.last, held.height, question.first + BLOCKS_ASKED_MAX)
                    self._out.append(Load(chain_id, question.first, last, ("send", sender)))
            case AskBatches():
                last_known = self.sequences.get(question.kid, NOTHING).number
                if 0 < question.first <= last_known:
                    last = min(question.last, last_known, question.first + BATCHES_ASKED_MAX)
                    self._out.append(SendBatches(sender, question.kid, question.first, last))
            case AskEvidence():
                if question.evidence in self.evidence:
                    self._out.append(SendEvidence(sender, question.evidence))
            case AskCertificate():
                if 0 < question.height <= self.roster.head.height:
                    self._out.append(SendCertificate(sender, question.height))
            case AskOwnBatch():
                last_one = self.sequences.get(question.kid, NOTHING)
                self._say(
                    topic,
                    OwnBatch(
                        self.epoch,
                        order,
                        question.kid,
                        question.nonce,
                        last_one.number,
                        last_one.batch_hash,
                    ),
                )
            case AskHead():
                self._say(topic, self._head_held(question, order))

    def _head_held(self, question: AskHead, order: tuple[int, bytes]) -> HeadHeld:
        enrolled = self.roster.newest(question.meter)
        held = self.chains.get((enrolled.name, enrolled.incarnation)) if enrolled else None
        incarnation, height, head_hash = 0, 0, bytes(32)
        if held is not None and held.height:
            incarnation, height, head_hash = held.chain_id[1], held.height, held.head_hash
        return HeadHeld(
            self.epoch, order, question.meter, question.nonce, incarnation, height, head_hash
        )

    def _ask_head(self, asked: Asked) -> None:
        """Our meter has started: ask for its head, and tell it what it may have missed."""
        distributor = self.roster.distributor
        if distributor is not None:
            for height in range(1, self._hold(distributor).certified + 1):
                self._out.append(Certify(distributor, height))
        enrolled = self.roster.newest(asked.meter)
        own = self.chains.get((enrolled.name, enrolled.incarnation)) if enrolled else None
        if own is not None and own.certified:
            self._out.append(Certify(own.chain_id, own.certified))
        if own is not None and own.height > asked.height:
            self._out.append(Load(own.chain_id, asked.height + 1, own.height, ("own",)))
        for name, _ in self.committee.voters:
            if name != self.name:
                self._ask(name, AskHead(asked.meter, asked.nonce))

    def _take_digest(self, sender: str, body: Digest) -> None:
        self._claim_order(sender, body.order[0])
        for name, incarnation, height, block_hash in body.heads:
            held = self.chains.get((name, incarnation))
            if held is None:
                if height == 0 or (name, incarnation) not in self.roster.chains:
                    continue
                held = self._hold((name, incarnation))
            if height > held.height:
                self._claim(held, sender, height)
            elif height:
                here = held.hashes.get(height)
                if here is not None and here != block_hash and not held.frozen:
                    self._ask(sender, AskBlocks(name, incarnation, height, height))
        for kid, number, batch_hash in body.batches:
            last = self.sequences.get(kid, NOTHING)
            if number > last.number:
                if self.voter_name(kid):
                    self._claim_batches(kid, sender, number)
            elif number == last.number and batch_hash != last.batch_hash:
                self._ask(sender, AskBatches(kid, number, number))
        for evidence_id in body.evidence:
            if evidence_id not in self.evidence and len(self._evidence_claimed) < HEADS_MAX:
                self._evidence_claimed[evidence_id] = sender
        self._ask_all()

    # --- asking ---------------------------------------------------------------------------------

    def _ask(self, peer: str, *questions: Question) -> None:
        self._say(f"fetch/{peer}", Fetch(peer, questions))

    def _claim(self, held: Held, peer: str, height: int) -> None:
        """Remember that a peer says it holds a chain up to `height`."""
        if not peer or peer == self.name or height <= held.height:
            return
        if peer in held.wanted or len(held.wanted) < CLAIMS_MAX:
            held.wanted[peer] = max(height, held.wanted.get(peer, 0))
            self._behind[held.chain_id] = None

    def _claim_order(self, peer: str, height: int) -> None:
        distributor = self.roster.distributor
        if distributor is not None and height > self.roster.head.height and peer != self.name:
            self._orders_claimed[peer] = height
            self._claim(self._hold(distributor), peer, height)

    def _claim_batches(self, kid: bytes, peer: str, number: int) -> None:
        if peer and peer != self.name and number > self.sequences.get(kid, NOTHING).number:
            self._batches_wanted.setdefault(kid, {})[peer] = number

    def _open(self, asked: tuple[str, int] | tuple[str, int, int] | None) -> bool:
        return asked is not None and 0 < self._now.mono_ms - asked[1] + 1 <= ANSWER_MS

    def _ask_all(self) -> None:
        """Ask for all that is known to be lacking, a few peers at a time."""
        asked: dict[str, list[Question]] = {}
        self._ask_batches()
        for chain_id in list(self._behind):
            lacking = self._lacking(self.chains[chain_id])
            if lacking is not None:
                asked.setdefault(lacking[0], []).append(lacking[1])
        self._ask_certificate()
        for evidence_id, peer in list(self._evidence_claimed.items()):
            del self._evidence_claimed[evidence_id]
            if evidence_id not in self.evidence:
                asked.setdefault(peer, []).append(AskEvidence(evidence_id))
        for peer, questions in asked.items():
            for at in range(0, len(questions), ASKED_MAX):
                self._ask(peer, *questions[at : at + ASKED_MAX])

    def _ask_batches(self) -> None:
        """Ask for the batches that are known to be lacking."""
        for kid, wanted in self._batches_wanted.items():
            last = self.sequences.get(kid, NOTHING).number
            for peer in [peer for peer, number in wanted.items() if number <= last]:
                del wanted[peer]
            asked = self._batches_asked.get(kid)
            if not wanted or self._open(asked):
                continue
            peer = self._choose(wanted, asked)
            until = min(wanted[peer], last + BATCHES_ASKED_MAX)
            self._batches_asked[kid] = (peer, self._now.mono_ms, until)
            self._ask(peer, AskBatches(kid, last + 1, until))

    def _ask_certificate(self) -> None:
        """Ask who holds more orders for certified than we what makes the next one of ours so."""
        height = self.roster.head.height + 1
        for peer in [peer for peer, claimed in self._orders_claimed.items() if claimed < height]:
            del self._orders_claimed[peer]
        if not self._orders_claimed or not self._pending or self._open(self._order_asked):
            return
        peer = self._choose(self._orders_claimed, self._order_asked)
        self._order_asked = (peer, self._now.mono_ms)
        self._ask(peer, AskCertificate(height))

    def _go_on_asking(self, sender: str, last: bytes) -> None:
        """An answer came: ask for what follows, without waiting for the next tick."""
        name, incarnation, height = _place(take_apart(last).payload)
        held = self.chains.get((name, incarnation))
        if held is None or held.asked is None or held.asked[0] != sender:
            return
        if held.height < height:
            return  # it was of no use: asked again in its time
        held.asked = None
        if (lacking := self._lacking(held)) is not None:
            self._ask(*lacking)

    def _lacking(self, held: Held) -> tuple[str, AskBlocks] | None:
        """Return whom to ask what a chain lacks, noted as asked; None if there is nothing."""
        for peer in [peer for peer, height in held.wanted.items() if height <= held.height]:
            del held.wanted[peer]
        if not held.wanted:
            self._behind.pop(held.chain_id, None)
        if not held.wanted or self._open(held.asked) or held.frozen:
            return None
        peer = self._choose(held.wanted, held.asked)
        first = held.height + 1
        last = min(held.wanted[peer], held.height + BLOCKS_ASKED_MAX)
        while first < last and first in held.waiting:
            first += 1
        held.asked = (peer, self._now.mono_ms)
        return peer, AskBlocks(*held.chain_id, first, last)

    def _choose(
        self, wanted: dict[str, int], asked: tuple[str, int] | tuple[str, int, int] | None
    ) -> str:
        """Return whom to ask: not the one who has just not answered, if there is another."""
        peers = sorted(wanted)
        if asked is not None and asked[0] in peers and len(peers) > 1:
            peers.remove(asked[0])
        return peers[self._jitter(len(peers))]

    # --- evidence -------------------------------------------------------------------------------

    def _loaded(self, loaded: Loaded) -> None:
        purpose = loaded.load.purpose
        if purpose[0] == "send" and loaded.blocks:
            self._out.append(Send(f"answer/{purpose[1]}", blocks_message(loaded.blocks)))
        elif purpose[0] == "compare" and loaded.blocks:
            one, other = loaded.blocks[0], loaded.load.extra
            if take_apart(one).payload != take_apart(other).payload:
                self._take_evidence(seals_evidence(one, other))
                self._adopt(self.chains[loaded.load.chain])
        elif purpose[0] == "own":
            for height, sealed in enumerate(loaded.blocks, start=loaded.load.first):
                self._out.append(Deliver("block", sealed, height))
        elif purpose[0] == "adopt":
            self._adopted(self.chains[loaded.load.chain], loaded.blocks)

    def _take_evidence(self, evidence: bytes) -> None:
        evidence_id = digest(evidence)
        if evidence_id in self.evidence:
            return
        accused = verify_evidence(evidence, self.roster)
        if (accused.role, accused.name) in self.accused and accused.role == "authority":
            return  # one proof is enough
        if any(
            other.chain == accused.chain and other.role == accused.role
            for other in self.accused.values()
        ):
            return
        self._convict(evidence, accused)
        self._records.append(PutEvidence(evidence_id, evidence))
        self._out.append(Send("evidence", evidence))
        self._tell(
            2,
            "two_histories",
            role=accused.role,
            name=accused.name,
            chain=f"{accused.chain[0]}/{accused.chain[1]}",
            height=accused.height,
        )

    def _convict(self, evidence: bytes, accused: Accused) -> None:
        self.evidence[digest(evidence)] = evidence
        self.accused[accused.role, f"{accused.name}/{accused.chain[1]}"] = accused
        if accused.role != "authority":
            if accused.chain[0] == self.meter:
                self._out.append(Deliver("evidence", evidence))
            held = self._hold(accused.chain)
            held.frozen = f"two blocks {accused.height} are sealed"

    # --- time -----------------------------------------------------------------------------------

    def _tick(self) -> None:
        now_ms = self._now.mono_ms
        self._boot()
        if self._batch_ms is not None and now_ms >= self._batch_ms:
            self._attest()
        self._judge_waiting()
        self._send_head()
        if now_ms >= self._digest_ms:
            period_ms = self._settings.digest_ms
            self._digest_ms = now_ms + period_ms // 2 + self._jitter(period_ms)
            self._send_digest()
        self._ask_all()
        if self._counters_dirty and now_ms - self._counters_ms >= COUNTERS_MS:
            self._keep_counters()

    def _send_head(self) -> None:
        """Publish our newest block for whoever comes later, at most once a tick."""
        if self._head:
            self._out.append(Send("head", self._head, retain=True))
            self._head = b""

    def _keep_counters(self) -> None:
        self._counters_dirty, self._counters_ms = False, self._now.mono_ms
        self._records.append(PutCounters(tuple(self._counters.items())))

    def _send_digest(self) -> None:
        fresh, self._grown = list(self._grown)[:HEADS_MAX], {}
        chains = [chain_id for chain_id, held in self.chains.items() if held.height]
        if self._digest_at >= len(chains):
            self._digest_at = 0
        turn = chains[self._digest_at : self._digest_at + HEADS_IN_TURN]
        self._digest_at += HEADS_IN_TURN
        heads = tuple(
            (*chain_id, self.chains[chain_id].height, self.chains[chain_id].head_hash)
            for chain_id in dict.fromkeys([*fresh, *turn][:HEADS_MAX])
        )
        batches = tuple(
            (kid, last.number, last.batch_hash) for kid, last in self.sequences.items()
        )[-HEADS_MAX:]
        order = (self.roster.head.height, self.roster.head.order_hash)
        self._say(
            "digest", Digest(order, heads, batches, tuple(self.evidence)[-EVIDENCE_SHOWN_MAX:])
        )


def _previous(payload: bytes) -> bytes:
    """Return what a block or an order links to."""
    if BLOCK_CONTEXT.encode() in payload[:24]:
        return decode_block(payload).previous
    return decode_order(payload).previous


def _place(payload: bytes) -> tuple[str, int, int]:
    """Return name, incarnation and height of a block or an order that has been verified."""
    if BLOCK_CONTEXT.encode() in payload[:24]:
        block = decode_block(payload)
        return block.meter, block.incarnation, block.height
    order = decode_order(payload)
    return order.distributor, order.incarnation, order.height
