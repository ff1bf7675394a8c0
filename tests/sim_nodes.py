"""Who lives in the simulated street: meters, their peer processes, and authorities that lie.

A node is the real core (`Gossip`) on the real store in memory, with a shell that may lose power
between any two effects. A meter seals real blocks of the seconds it has measured, and follows the
real boot rule. A liar is two such nodes under one key, without shame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from meterd.authority.boot import HeadSearch
from meterd.authority.certificate import add_certified_order, read_certificate
from meterd.authority.effects import (
    Accuse,
    Asked,
    Assembled,
    Certify,
    Deliver,
    DropBlocks,
    Load,
    Loaded,
    Now,
    Persist,
    PutBatch,
    PutCertified,
    PutEvidence,
    Sealed,
    Send,
    SendBatches,
    SendCertificate,
    SendClosings,
    SendEvidence,
    Tell,
)
from meterd.authority.gossip import Gossip
from meterd.authority.messages import BLOCKS_CONTEXT, HeadHeld, OwnBatch, open_said, say
from meterd.authority.senders import Settings
from meterd.device import proofs
from meterd.device.store import Store
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.block import Block, Clock, Energy, decode_block
from meterd.ledger.chain import head_behind, verify_block
from meterd.ledger.encoding import decode, digest, encode, key_id, seal, take_apart

if TYPE_CHECKING:
    from meterd.authority.certificate import Certificate
    from meterd.authority.effects import Effect, Event, Record
    from meterd.authority.roster import Roster
    from meterd.ledger.chain import Chain
    from tests.simulator import World

IMPORT = bytes((1, 0, 1, 8, 0, 255))
START_S = 1_800_000_000
GAP = 1
BLOCKS_AT_ONCE = 4  # a meter that waited seals what it held, so many a second


def key_of(name: str, what: str) -> SigningKey:
    """Return a key that belongs to a name alone."""
    return SigningKey(digest(f"{what} of {name}".encode()))


def true_uj(name: str, second: int) -> int:
    """Return the energy that flows past a meter in a second, whoever looks."""
    return int.from_bytes(digest(f"{name} {second}".encode())[:3], "big") % 3_000_000


class Chained:
    """A chain that somebody seals, with the key of its meter."""

    def __init__(self, world: World, name: str) -> None:
        """Begin the chain."""
        self.world, self.name = world, name
        self.key = key_of(name, "seal")
        self.roster: Roster = world.oracle.proven
        self.chain = self.roster.open_chain((name, 1))
        self.sealed: list[bytes] = []

    def next_block(self, chain: Chain, start_s: int, end_s: int, uj: int, *, gap: bool) -> Block:
        """Return the next block of `chain`, of `uj` measured from one second to another."""
        head = chain.head
        before_uj = head.energy[0].last_uj if head.energy else 0
        measured_ms = 0 if gap else (end_s - start_s) * 1000
        return Block(
            genesis=chain.genesis,
            meter=self.name,
            incarnation=1,
            height=head.height + 1,
            previous=head.block_hash,
            order=(self.roster.head.height, self.roster.head.order_hash),
            start_s=start_s,
            end_s=end_s,
            clock=Clock("S", 0, bytes(16), 1000, measured_ms),
            parameters=bytes(32),
            records=0 if gap else 1,
            fingerprint=digest(self.world.nonce()),
            events=head.height,
            events_digest=bytes(32),
            energy=(Energy(IMPORT, 0, before_uj, before_uj + uj),),
            flags=GAP if gap else 0,
        )

    def seal_block(self, chain: Chain, block: Block) -> tuple[Chain, bytes]:
        """Return the chain with `block`, and the sealed block."""
        payload = block.encode()
        terms = self.roster.terms(chain, block.order)
        self.world.oracle.sealed(payload)
        head = verify_block(block, payload, terms)
        return terms._replace(head=head), seal(payload, self.key, chain.genesis)


class LightMeter(Chained):
    """A meter whose peer process only posts what is in its outbox, until it is certified."""

    def turn(self) -> None:
        """Seal the second that has passed, if it is time; post what is not certified yet."""
        world = self.world
        now_s = START_S + world.now_ms // 1000
        if not world.ended:
            start_s = self.chain.head.end_s
            start_s = now_s - 1 if start_s is None else start_s
            gap = now_s - start_s > 1
            uj = 0 if gap else true_uj(self.name, start_s)
            block = self.next_block(self.chain, start_s, now_s, uj, gap=gap)
            self.chain, sealed = self.seal_block(self.chain, block)
            self.sealed.append(sealed)
        first = world.oracle.highest.get(self.name, 0)
        for sealed in self.sealed[first : first + 8]:
            for name in world.nodes:
                world.post(self.name, name, sealed)


class SimMeter(Chained):
    """A meter: what it has sealed and measured is on its card; it follows the boot rule.

    Attributes:
        samples: Energy by second, as far as it is on the card.
        certified: Up to where it has certificates of its own blocks.
    """

    def __init__(self, world: World, name: str, *, forks: bool) -> None:
        """Begin with an empty card."""
        super().__init__(world, name)
        self.forks, self.forking = forks, world.plan.forking
        self.samples: dict[int, int] = {}
        self.search: HeadSearch | None = None
        self.certified = 0
        self.twin: Chain | None = None  # of a forker: its other history

    def boot(self, node: SimNode) -> None:
        """Begin anew from what is on the card."""
        self.chain = self.roster.open_chain((self.name, 1))
        for sealed in self.sealed:
            payload = take_apart(sealed).payload
            self.chain = self.chain._replace(head=head_behind(self.chain, payload))
        self.search = HeadSearch(self.name, self.name)
        self.ask(node)

    def measure(self) -> None:
        """Keep the second that has passed."""
        second = START_S + self.world.now_ms // 1000 - 1
        self.samples[second] = true_uj(self.name, second)

    @property
    def may_seal(self) -> bool:
        """Whether the boot rule allows it now."""
        search, height = self.search, self.chain.head.height
        enrolled = self.roster.enrolled((self.name, 1))
        if search is None or enrolled.revoked or enrolled.closed:
            return False
        if self.forks and search.first is not None:
            return True  # it cares for its own history only
        return search.may_seal(self.roster, 1, height, self.world.now_ms)

    def deliver(self, kind: str, message: bytes) -> None:
        """Take what the peer process brings, trusting nothing."""
        try:
            if kind == "answer" and self.search is not None:
                self.search.take(message, self.roster)
            elif kind == "block":
                self._take_own(message)
            elif kind == "order":
                sealed, certificate = decode(message)
                certified = read_certificate(certificate)
                self.roster = add_certified_order(self.roster, sealed, certified)
        except (BlockRejectedError, EncodingError):
            return

    def _take_own(self, message: bytes) -> None:
        parts = take_apart(message)
        block = decode_block(parts.payload)
        if block.height <= self.chain.head.height:
            return
        terms = self.roster.terms(self.chain, block.order)
        head = verify_block(block, parts.payload, terms)
        self.sealed.append(message)
        self.chain = terms._replace(head=head)

    def ask(self, node: SimNode) -> bool:
        """Take what the peer process has for us; ask for our head until we may seal."""
        node.bring_orders()
        node.read_outbox()
        search = self.search
        if search is not None and not self.may_seal and search.first is None:
            search.ask(self.world.nonce(), self.world.now_ms)
            heights = (self.chain.head.height, self.roster.head.height)
            node.feed(Asked(self.name, search.nonce, *heights))
        return self.may_seal

    def take_certificate(self, certificate: Certificate) -> None:
        """Take note that a block is certified, if it is one that the card holds."""
        height = certificate.height
        if height > len(self.sealed):
            return
        if digest(take_apart(self.sealed[height - 1]).payload) != certificate.block_hash:
            return
        self.certified = max(self.certified, height)
        if self.search is not None:
            self.search.certified(height)

    def seal(self, node: SimNode) -> None:
        """Seal what has passed: a block for each second, one gap block for an absence."""
        if not self.ask(node):
            return
        now_s = START_S + self.world.now_ms // 1000
        for _ in range(BLOCKS_AT_ONCE):
            end_s = self.chain.head.end_s
            if node.gossip is None or (end_s is not None and end_s >= now_s):
                return
            if not self.may_seal:
                return  # the first block is not certified
            self._seal_from(node, now_s - 1 if end_s is None else end_s, now_s)

    def _seal_from(self, node: SimNode, start_s: int, now_s: int) -> None:
        end_s, uj = start_s + 1, self.samples.get(start_s)
        while uj is None and end_s < now_s and end_s not in self.samples:
            end_s += 1
        if not self.forks:
            self.world.oracle.may_seal(self.name, self.chain.head.height + 1)
        block = self.next_block(self.chain, start_s, end_s, uj or 0, gap=uj is None)
        chain = self.chain
        self.chain, sealed = self.seal_block(chain, block)
        self.sealed.append(sealed)
        if self.search is not None:
            self.search.sealed(block.height)
        if self.forks:
            self._fork(node, chain, block, sealed)
        else:
            node.feed(Sealed(sealed))

    def _fork(self, node: SimNode, chain: Chain, block: Block, sealed: bytes) -> None:
        """Seal another history beside this one: now and then, and some time on."""
        world, draw = self.world, self.world.random
        other = self.twin
        if other is None and draw.random() < self.forking:
            other = chain
        if other is None:
            node.feed(Sealed(sealed))
            return
        start_s = other.head.end_s
        start_s = block.start_s if start_s is None else start_s
        if start_s >= block.end_s:
            return
        gap = block.end_s - start_s > 1
        twin = self.next_block(other, start_s, block.end_s, 0 if gap else 7, gap=gap)
        self.twin, twin_sealed = self.seal_block(other, twin)
        world.forked.add(self.name)
        side = {name: world.side(name) for name in world.nodes}
        if draw.random() < 0.3:
            side = {name: draw.randint(0, 1) for name in world.nodes}
        for name in world.nodes:
            for _ in range(2):  # as anxious as a liar: the network may lose one
                world.post(self.name, name, twin_sealed if side[name] else sealed)
        if draw.random() < 0.5:
            node.feed(Sealed(twin_sealed if side[self.name] else sealed))
        if draw.random() < 0.3:
            self.twin = None  # it goes on with one history


class SimNode:
    """One device's peer process: the core, the store, and the crashes between two effects."""

    def __init__(
        self, world: World, name: str, meter: SimMeter | None, *, face: int = 0, lies: bool = False
    ) -> None:
        """Begin with an empty store; see `start`."""
        self.world, self.name, self.meter, self.face, self.lies = world, name, meter, face, lies
        self.key = key_of(name, "vote")
        self.kid = key_id(bytes(self.key.verify_key))
        self.store = Store(":memory:", genesis=world.genesis.hash, node=name)
        self.gossip: Gossip | None = None
        self.offset_s = 0
        self.synchronised = True
        self.crash_at: int | None = None
        self.power = True  # whether a crash takes the meter with it
        self.restored = False
        self.images: list[tuple[bytes, list[bytes], dict[int, int], Roster]] = []

    @property
    def honest(self) -> bool:
        """Whether it neither lies nor got an older card."""
        return not self.lies and not self.restored

    def now(self) -> Now:
        """Return its clock."""
        wall_s = START_S + self.world.now_ms // 1000 + self.offset_s
        return Now(self.world.now_ms, wall_s, self.synchronised)

    def start(self) -> None:
        """Begin from what is on the card."""
        if self.gossip is not None:
            return
        now = self.now()
        self.store.begin_start(now.wall_s if now.synchronised else 0)
        snapshot = self.store.snapshot(self.kid, self.world.oracle.proven.distributor)
        self.gossip = Gossip(
            self.world.genesis,
            self.name,
            self.key,
            nonce=self.world.nonce(),
            snapshot=snapshot,
            settings=Settings(tick_ms=self.world.tick_ms, digest_ms=1000),
            meter=self.name if self.meter else "",
        )
        self.world.haunt(self)
        if self.meter is None:
            return
        if self.power:
            self.meter.boot(self)
        self.read_outbox()

    def read_outbox(self) -> None:
        """Take our meter's blocks that are not held yet, a few at a time."""
        if self.gossip is None or self.meter is None:
            return
        held = self.gossip.chains.get((self.name, 1))
        height = held.height if held else 0
        for sealed in self.meter.sealed[height : height + 8]:
            self.feed(Sealed(sealed))
        if held and self.meter.certified < held.certified <= len(self.meter.sealed):
            self.feed(Sealed(self.meter.sealed[held.certified - 1]))  # it does not know it

    def feed(self, event: Event) -> None:
        """Take an event, and do what follows from it."""
        if self.gossip is None:
            return
        if self.lies:
            self._forget_shame()
        self.perform(self.gossip.step(event, self.now()))

    def _forget_shame(self) -> None:
        """Let a liar sign on: it asks nobody, freezes nothing, knows no lock of its other face."""
        assert self.gossip is not None
        self.gossip.booted = True
        for held in self.gossip.chains.values():
            held.frozen = ""
            held.foreign.pop(self.gossip.kid, None)
            held.ahead.pop(self.gossip.kid, None)
            if self.world.plan.shy and self.face == 0 and held.chain is None:
                held.frozen = "a liar's choice"

    def perform(self, effects: list[Effect]) -> None:
        """Do what the core says, in its order, unless power fails."""
        for effect in effects:
            if self.crash_at is not None:
                self.crash_at -= 1
                if self.crash_at < 0:
                    self.crash()
                    return
            self._do(effect)
            if self.gossip is None:
                return

    def crash(self, ms: int = 0) -> None:
        """Power fails: what was not persisted is gone, and comes back after a while."""
        self.crash_at, self.gossip = None, None
        self.world.counts["crashes"] += 1
        if self.meter is not None and self.power:
            for second in sorted(self.meter.samples)[-self.world.random.randint(0, 2) :][:2]:
                del self.meter.samples[second]  # not committed yet
        self.world.later(ms or self.world.random.randint(100, 2000), self.start)

    def take_new_key(self) -> None:
        """Somebody comes and puts in the voting key that an order names."""
        self.key = key_of(self.name, "vote, 2")
        self.kid = key_id(bytes(self.key.verify_key))
        if self.gossip is not None:
            self.power = False
            self.crash()

    def _do(self, effect: Effect) -> None:
        world = self.world
        match effect:
            case Persist():
                self._before(effect.records)
                self.store.perform(effect.records)
                self._after(effect.records)
            case Send():
                if effect.topic == "attest":
                    world.oracle.signed(self.name, effect.message)
                world.publish(self, effect.topic, self._said(effect.message))
            case Load():
                self.feed(Loaded(effect, self.store.load(effect)))
            case SendBatches() | SendEvidence() | SendCertificate() | SendClosings():
                assert self.gossip is not None
                for message in proofs.answers(self.store, effect, self.gossip.roster):
                    world.publish(self, f"answer/{effect.to}", message)
            case Accuse():
                proof = proofs.accuse(self.store, effect)
                if proof is not None:
                    self.feed(Assembled(proof))
            case Certify():
                self._certify(effect)
            case Deliver():
                if self.meter is not None:
                    self.meter.deliver(effect.kind, effect.message)
            case Tell():
                world.counts[effect.event] += 1
                if effect.event == "voting_key_replaced":
                    world.later(500, self.take_new_key)

    def _said(self, message: bytes) -> bytes:
        """Return what is sent in the place of `message`: a liar denies what it holds."""
        if not self.lies or self.world.random.random() < 0.3:
            return message
        if BLOCKS_CONTEXT.encode() in message[:24]:
            return self._unsealed(message)
        if not message.startswith(b"\xd2"):
            return message
        genesis = self.world.genesis.hash
        try:
            said = open_said(message, lambda _: bytes(self.key.verify_key), genesis)
        except (BlockRejectedError, EncodingError):
            return message
        body = said.body
        if isinstance(body, HeadHeld):
            body = body._replace(incarnation=0, height=0, block_hash=bytes(32))
        elif isinstance(body, OwnBatch):
            body = body._replace(number=0, batch_hash=bytes(32))
        return say(said._replace(body=body), self.key, genesis)

    def _unsealed(self, message: bytes) -> bytes:
        """Return a message of blocks with seals that do not hold, but for the last block's."""
        context, blocks = decode(message)
        draw = self.world.random
        spoilt = [
            sealed[:-1] + bytes([sealed[-1] ^ 1]) if draw.random() < 0.5 else sealed
            for sealed in blocks[:-1]
        ]
        return encode([context, [*spoilt, blocks[-1]]])

    def _before(self, records: tuple[Record, ...]) -> None:
        for record in records:
            if isinstance(record, DropBlocks) and self.honest:
                for height, sealed in self.store.blocks(record.chain, record.first, 1 << 40):
                    block_hash = digest(take_apart(sealed).payload)
                    self.world.oracle.dropped(self.name, (*record.chain, height), block_hash)

    def _after(self, records: tuple[Record, ...]) -> None:
        oracle = self.world.oracle
        for record in records:
            if isinstance(record, PutBatch) and record.batch.kid == self.kid:
                oracle.signed(self.name, record.message)
            elif self.lies:
                continue
            elif isinstance(record, PutEvidence):
                oracle.evidence(record.evidence)
            elif isinstance(record, PutCertified):
                here = self.hash_of(record.chain, record.height)
                oracle.taken_for_certified(self.name, (*record.chain, record.height), here)

    def height_of(self, chain: tuple[str, int]) -> int:
        """Return up to where it holds a chain."""
        held = self.gossip.chains.get(chain) if self.gossip is not None else None
        return held.height if held is not None else 0

    def certified(self, meter: str) -> int:
        """Return up to where it takes a meter's first chain for certified."""
        held = self.gossip.chains.get((meter, 1)) if self.gossip is not None else None
        return held.certified if held is not None else 0

    def hash_of(self, chain: tuple[str, int], height: int) -> bytes:
        """Return the hash of a block on the card; empty where there is none."""
        rows = self.store._rows(
            "SELECT hash FROM block WHERE chain = ? AND height = ?",
            self.store._chains.get(chain, 0),
            height,
        )
        return rows[0][0] if rows else b""

    def _certify(self, effect: Certify) -> None:
        assert self.gossip is not None
        made = proofs.certify(self.store, effect, self.gossip.roster)
        if made is None or self.lies:
            return
        self.world.oracle.certificate(made[1])
        self.world.counts["certificates"] += 1
        if self.meter is not None and effect.chain[0] == self.name:
            self.meter.take_certificate(made[1])

    def bring_orders(self) -> None:
        """Hand our meter the certified orders that it lacks."""
        if self.gossip is None or self.meter is None:
            return
        roster, distributor = self.gossip.roster, self.gossip.roster.distributor
        for height in range(self.meter.roster.head.height + 1, roster.head.height + 1):
            assert distributor is not None
            made = proofs.certificate(self.store, distributor, height, roster)
            if made is not None:
                self.meter.deliver("order", encode([made[0], made[1].spell()]))

    # --- cards --------------------------------------------------------------------------------

    def image(self) -> None:
        """Copy the card."""
        sealed = list(self.meter.sealed) if self.meter else []
        samples = dict(self.meter.samples) if self.meter else {}
        roster = self.meter.roster if self.meter else self.world.oracle.proven
        self.images.append((self.store._db.serialize(), sealed, samples, roster))

    def restore(self) -> None:
        """Put an older card in."""
        if not self.images:
            return
        data, sealed, samples, roster = self.world.random.choice(self.images)
        self.gossip, self.power, self.restored = None, True, True
        store = self.store
        store._db.deserialize(data)
        store._chains = {
            (name, incarnation): number
            for number, name, incarnation in store._rows("SELECT id, name, incarnation FROM chain")
        }
        if self.meter is not None:
            self.meter.sealed, self.meter.samples = list(sealed), dict(samples)
            self.meter.roster = roster
        self.world.oracle.faulty.add(self.name)
        self.world.counts["restored"] += 1
        self.world.later(500, self.start)
