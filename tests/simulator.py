"""A street in memory: meters, authorities, a hostile broker, liars, and one seed.

Each node is the real core on the real store (`tests.sim_nodes`). The network, the clocks, the cards
and the liars are ours, every choice comes from one seed, and an oracle that sees all of it
(`tests.sim_oracle`) tells at every step whether what DESIGN.md claims holds. A seed that fails can
be played again:

    python -m tests.simulator SEED          or FIRST-LAST
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections import Counter, deque
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from nacl.signing import VerifyKey

from meterd.authority.attestation import prove
from meterd.authority.certificate import seals_evidence, votes_evidence
from meterd.authority.effects import Received, Sealed, Tick
from meterd.authority.ending import EndUnknownError, end_of
from meterd.ledger.account import Genesis, Meter, Node
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import digest, seal, take_apart
from meterd.ledger.order import Change, ForkResolve, Interval, Order, Revoke, RosterChange, spell
from tests.sim_end import HEAL_MS, all_certified, judge
from tests.sim_nodes import START_S, LightMeter, SimMeter, SimNode, key_of
from tests.sim_oracle import Oracle
from tests.sim_plan import DISTRIBUTOR, Plan, bounded, plan_of

if TYPE_CHECKING:
    from collections.abc import Callable

TICK_MS = 100
NEVER_MS = 10**9
REMEMBERED_MAX = 3000  # messages that the broker can play again


def _remember_signatures() -> None:
    """Verify each signature once for the whole street: it changes no answer, and saves minutes."""
    real = VerifyKey.verify
    if getattr(real, "remembers", False):
        return

    @lru_cache(maxsize=1 << 16)
    def known(key: bytes, message: bytes, signature: bytes) -> bytes:
        return real(VerifyKey(key), message, signature)

    def verify(self: VerifyKey, smessage: bytes, signature: bytes | None = None, **_: Any) -> bytes:  # noqa: ANN401 - as the library has it
        assert signature is not None
        return known(bytes(self), smessage, signature)

    verify.remembers = True  # type: ignore[attr-defined]
    VerifyKey.verify = verify  # type: ignore[method-assign, assignment]


class Message(NamedTuple):
    """What the broker has seen."""

    sender: str
    topic: str
    data: bytes


class World:
    """The street.

    Attributes:
        plan: What is played in it.
        nodes: Every node by name; of a liar the first face.
        oracle: Who knows what must hold.
        counts: What happened how often.
        forked: Meters, or the distributor, that did seal two histories.
        ended: Whether the meters have stopped, so that the last block can be certified.
    """

    def __init__(self, plan: Plan, *, name: str = "street") -> None:
        """Set the street up, with nobody started."""
        _remember_signatures()
        self.plan, self.tick_ms, self.now_ms = plan, 200, 0
        self.random = random.Random(f"{name} {plan.seed}")
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self.names = [f"house-{at}" for at in range(plan.voters)]
        self._far, self._far_ms = self.names[plan.restored[0] if plan.restored else 0], 0
        self.spares = [f"spare-{at}" for at in range(plan.spares)]
        self.genesis = self._found(name)
        self.nodes: dict[str, SimNode] = {}
        self.faces: dict[str, list[SimNode]] = {}
        self.meters: dict[str, SimMeter] = {}
        self.counts: Counter[str] = Counter()
        self.forked = set[str]()
        self.ended = self.healed = self.dead = False
        self.halves: tuple[set[str], set[str]] | None = None
        self.orders: list[bytes] = []
        self.remembered: deque[Message] = deque(maxlen=REMEMBERED_MAX)
        self.foreign: list[Message] = []
        self._haunted: dict[str, int] = {}
        self._sides: dict[str, int] = {}
        self.oracle = Oracle(
            self.genesis,
            liars={self.names[at] for at in plan.liars},
            sealers={self.names[at] for at in plan.forkers},
            holders=self._holders,
        )
        for at, node_name in enumerate(self.names):
            meter = None
            if at < plan.meters:
                meter = SimMeter(self, node_name, forks=at in plan.forkers)
                self.meters[node_name] = meter
            lies = at in plan.liars
            node = self.nodes[node_name] = SimNode(self, node_name, meter, lies=lies)
            if lies:
                other = SimNode(self, node_name, None, face=1, lies=True)
                self.faces[node_name] = [node, other]
        for node_name in [*self.spares, DISTRIBUTOR]:
            self.nodes[node_name] = SimNode(self, node_name, None)
        self.light = [LightMeter(self, f"flat-{at}") for at in range(plan.light)]

    def _found(self, name: str) -> Genesis:
        flats = [f"flat-{at}" for at in range(self.plan.light)]
        nodes = [_node(house, votes=1) for house in self.names]
        nodes += [_node(other, votes=0) for other in (*self.spares, *flats)]
        nodes.append(_node(DISTRIBUTOR, votes=0, role="distributor"))
        meters = tuple(
            Meter(
                name=meter,
                incarnation=1,
                sealing_key=bytes(key_of(meter, "seal").verify_key),
                fuse_ma=60_000,
                nominal_mv=230_000,
                mains_clamps=1,
            )
            for meter in (*self.names[: self.plan.meters], *flats)
        )
        return Genesis(
            name=name, interval_s=1, zone="UTC", currency="EUR", nodes=tuple(nodes), meters=meters
        )

    def nonce(self) -> bytes:
        """Draw 16 bytes."""
        return self.random.randbytes(16)

    def later(self, ms: int, action: Callable[[], None]) -> None:
        """Do something after `ms`."""
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_ms + ms, self._sequence, action))

    def _holders(self, chain: tuple[str, int], height: int, block_hash: bytes) -> int:
        return sum(
            node.honest and node.hash_of(chain, height) == block_hash
            for node in self.nodes.values()
        )

    # --- the broker ---------------------------------------------------------------------------

    def publish(self, node: SimNode, topic: str, message: bytes) -> None:
        """Carry what a node says to whom it is for."""
        self.remembered.append(Message(node.name, topic, message))
        self._spread(node.name, topic, message, face=node.face)

    def _spread(self, sender: str, topic: str, message: bytes, face: int | None = None) -> None:
        to = topic.partition("/")[2]
        for name in self.nodes:
            if name != sender and (not to or to == name):
                self.post(sender, name, message, face=face)

    def post(self, sender: str, to: str, message: bytes, face: int | None = None) -> None:
        """Carry a message, or lose it; `face` is the sender's if it has two."""
        draw = self.random
        if self.dead or (not self.healed and draw.random() < self.plan.drop):
            self.counts["lost"] += 1
            return
        halves = self.halves if sender in self.nodes else None
        if halves and not any({sender, to} <= half for half in halves):
            self.counts["cut"] += 1
            return
        if self.now_ms < self._haunted.get(to, 0) and sender not in self.faces:
            return
        target = self._face(sender, to, face)
        if target is None:
            return
        for _ in range(2 if draw.random() < 0.1 else 1):
            ms = draw.randint(1, 150)
            if not self.healed and draw.random() < self.plan.late:
                ms = draw.randint(500, 4000)
            if self.plan.slow and to == self._far and not self.healed:
                self._far_ms = max(self._far_ms, self.now_ms + self.plan.slow) + 1  # in order
                ms = self._far_ms - self.now_ms
            self.later(ms, lambda: target.feed(Received(sender, message)))

    def side(self, name: str) -> int:
        """Return which face of every liar a node sees."""
        if name not in self._sides:
            self._sides[name] = self.random.randint(0, 1)
        return self._sides[name]

    def _face(self, sender: str, to: str, face: int | None) -> SimNode | None:
        """Return who gets it: a liar has a face for either half of the street."""
        if sender in self.faces and face is not None:
            if to in self.faces:
                return self.faces[to][face]
            if self.side(to) != face:
                return None
        if to in self.faces:
            return self.faces[to][self.side(sender)]
        return self.nodes[to]

    # --- what goes wrong ----------------------------------------------------------------------

    def crash(self, name: str, effects: int = -1) -> None:
        """Let power, or the peer process alone, fail after so many more effects."""
        node = self.nodes[name]
        if node.gossip is not None and not self.healed:
            node.power = self.random.random() < 0.7
            node.crash_at = self.random.randint(0, 12) if effects < 0 else effects

    def stop_peer(self, name: str, ms: int = 0) -> None:
        """Let the peer process alone fail at once, for so long; its meter goes on."""
        node = self.nodes[name]
        if node.gossip is not None:
            node.power = False
            node.crash(ms)

    def silence(self) -> None:
        """Let the liars go for good."""
        for faces in self.faces.values():
            for one in faces:
                if one.gossip is not None:
                    one.power = False
                    one.crash(NEVER_MS)

    def image(self, name: str) -> None:
        """Copy a card."""
        self.nodes[name].image()

    def restore(self, name: str) -> None:
        """Put an older card in."""
        if not self.healed:
            self.nodes[name].restore()

    def cut(self, ms: int = 0, half: tuple[str, ...] = ()) -> None:
        """Cut the street in two for a while: at random, or between the faces of the liars."""
        names = list(self.nodes)
        if not half and self.faces and self.random.random() < 0.5:
            half = tuple(name for name in names if self.side(name) == 0)
        elif not half:
            self.random.shuffle(names)
            half = tuple(names[: self.random.randint(1, len(names))])
        liars = set(self.faces) if self.random.random() < 0.7 else set[str]()  # they are everywhere
        one = set(half) | liars
        self.halves = (one, set(self.nodes) - set(half) | liars)
        self.later(ms or self.random.randint(500, 4000), self.mend)

    def mend(self) -> None:
        """End a cut."""
        self.halves = None

    def kill_broker(self) -> None:
        """Let nothing through for a while."""
        self.dead = True
        self.later(self.random.randint(500, 3000), self._revive)

    def _revive(self) -> None:
        self.dead = False

    def jump(self, name: str) -> None:
        """Let a node's clock go wrong; whether it knows is drawn."""
        if not self.healed:
            node = self.nodes[name]
            node.synchronised = self.random.random() < 0.3
            if name in {self.names[at] for at in self.plan.restored}:
                node.synchronised = False  # else its messages count as replayed until that hour
            node.offset_s = self.random.choice((-3600, 3600, 86_400))

    def turn(self) -> None:
        """Let each liar show its other face to some."""
        for name in self.nodes:
            if self.random.random() < 0.3:
                self._sides[name] = 1 - self.side(name)

    def show(self, names: tuple[str, ...]) -> None:
        """Let liars show their first face to these, and the other to the rest."""
        self._sides = {name: int(name not in names) for name in self.nodes}

    def deafen(self, names: tuple[str, ...], ms: int) -> None:
        """Let nothing but what liars say reach some nodes for a while."""
        for name in names:
            self._haunted[name] = self.now_ms + ms

    def let_fork(self, name: str) -> None:
        """Let a meter seal two histories from now on."""
        self.meters[name].forking = 1.0

    def replay(self) -> None:
        """Play again some of what was said."""
        old = list(self.remembered)
        for message in self.random.sample(old, min(30, len(old))):
            self._spread(message.sender, message.topic, message.data)

    def replay_foreign(self) -> None:
        """Play what the sister network said of itself."""
        for message in self.foreign:
            if message.topic in ("attest", "block", "evidence") or self.random.random() < 0.05:
                self._spread(message.sender, message.topic, message.data)

    def haunt(self, node: SimNode) -> None:
        """At a start: keep the honest from a node, and play it the answers of earlier starts."""
        if self.healed or self.random.random() >= self.plan.haunts:
            return
        self._haunted[node.name] = self.now_ms + self.random.randint(1000, 4000)
        old = [message for message in self.remembered if message.topic == f"answer/{node.name}"]
        for at, message in enumerate(old[-400:]):
            sender, data = message.sender, message.data
            for ms in (30 + at, 600 + at):
                self.later(ms, lambda s=sender, d=data: node.feed(Received(s, d)))  # type: ignore[misc]

    def forge(self) -> None:
        """Send blocks that their meter did not seal, and evidence against who did nothing."""
        draw = self.random
        sender = draw.choice(list(self.faces) or list(self.nodes))
        honest = [meter for meter in self.meters.values() if not meter.forks and meter.sealed]
        if honest:
            real = draw.choice(draw.choice(honest).sealed)
            parts = take_apart(real)
            block = decode_block(parts.payload)._replace(fingerprint=digest(self.nonce()))
            forged = seal(block.encode(), key_of("nobody", "seal"), self.genesis.hash)
            at = forged.index(take_apart(forged).kid)
            forged = forged[:at] + parts.kid + forged[at + len(parts.kid) :]
            self._spread(sender, "block", forged)
            self._spread(sender, "evidence", seals_evidence(real, forged))
            self._spread(sender, "evidence", seals_evidence(real, real))
        self._slander(sender)

    def _slander(self, sender: str) -> None:
        """Say that an authority which attested a block and then a later one signed two."""
        for (_, chain), votes in list(self.oracle.votes.items()):
            ordered = sorted(votes, key=lambda vote: vote[1].height)
            for one, other in list(pairwise(ordered))[-1:]:
                links, here = [], other[1].block_hash
                for _ in range(other[1].height - one[1].height):
                    link = self.oracle.links.get(here)
                    if link is None:
                        break
                    links.append(link.payload)
                    here = link.previous
                proofs = [
                    (prove(batch, batch.leaves.index(leaf)), leaf) for batch, leaf in (one, other)
                ]
                evidence = votes_evidence(proofs[0], proofs[1], links[::-1])
                if chain[0] in self.meters and self.random.random() < 0.5:
                    self._spread(sender, "evidence", evidence)

    # --- orders -------------------------------------------------------------------------------

    def change_roster(
        self, go: tuple[str, ...], come: tuple[str, ...], rekeyed: tuple[str, ...] = ()
    ) -> None:
        """Let the distributor take the vote from some, give it to others, name other keys."""
        committee = self.oracle.proven.committee
        nodes = [
            replace(
                node,
                votes=1 if node.name in come else 0 if node.name in go else node.votes,
                voting_key=bytes(key_of(node.name, "vote, 2").verify_key)
                if node.name in rekeyed
                else node.voting_key,
            )
            for node in self.oracle.proven.nodes.values()
            if not self.plan.removals or node.name not in go or node.name in self.meters
        ]
        self.order(RosterChange(committee.epoch + 1, tuple(nodes)))

    def _change_some(self, go: int, come: int) -> None:
        draw, committee = self.random, self.oracle.proven.committee
        voters = [name for name, _ in committee.voters]
        others = [name for name in (*self.names, *self.spares) if name not in voters]
        going = draw.sample(voters, min(go, len(voters) - 1))
        coming = draw.sample(others, min(come, len(others)))
        staying = [name for name in voters if name not in going]
        rekeyed = draw.sample(staying, min(self.plan.rekeys, len(staying)))
        self.change_roster(tuple(going), tuple(coming), tuple(rekeyed))

    def resolve(self) -> None:
        """Let the distributor end the chains with two histories."""
        core = self.nodes[DISTRIBUTOR].gossip
        for name in self.meters:
            held = core.chains.get((name, 1)) if core is not None else None
            if held is not None and held.frozen and self._end(name):
                return

    def replace_meter(self) -> None:
        """Let the distributor end the chain of the first meter."""
        self._end(next(iter(self.meters)))

    def _end(self, name: str) -> bool:
        """Revoke a meter's key, or end its chain where it can be said where; say whether it is."""
        core = self.nodes[DISTRIBUTOR].gossip
        held = core.chains.get((name, 1)) if core is not None else None
        enrolled = self.oracle.proven.enrolled((name, 1))
        if core is None or held is None or enrolled.closed is not None:
            return False
        if not enrolled.revoked:
            self.order(Revoke(name, 1, "its device goes"))
            return True
        try:
            height, base, elsewhere = end_of(core, held)
        except EndUnknownError:
            return False
        if elsewhere:  # its node is about to take that history
            return False
        registers = enrolled.registers
        if height:
            energy = decode_block(self.oracle.links[base].payload).energy
            registers = tuple(each._replace(first_uj=each.last_uj) for each in energy)
        public = bytes(key_of(name, "seal, 2").verify_key)
        self.order(ForkResolve(name, 1, height, base, 2, public, registers))
        return True

    def order(self, change: Change) -> None:
        """Let the distributor order `change`, once all before it is in force."""
        if len(self.orders) > self.oracle.proven.head.height:
            return
        sealed = self._sign_order(change)
        self.orders.append(sealed)
        if self.plan.order_forks:
            self.oracle.sealers.add(DISTRIBUTOR)
            self.forked.add(DISTRIBUTOR)
            twin = self._sign_order(Interval(1))
            for name in self.nodes:
                self.post(DISTRIBUTOR, name, twin if self.side(name) else sealed)
        self._say_order(sealed)

    def _sign_order(self, change: Change) -> bytes:
        kind, body = spell(change)
        head = self.oracle.proven.head
        order = Order(
            genesis=self.genesis.hash,
            distributor=DISTRIBUTOR,
            incarnation=1,
            height=head.height + 1,
            previous=head.order_hash,
            time_s=START_S + self.now_ms // 1000,
            effective_from_s=0,
            kind=kind,
            body=body,
        )
        payload = order.encode()
        self.oracle.sealed(payload)
        return seal(payload, key_of(DISTRIBUTOR, "seal"), self.genesis.hash)

    def _say_order(self, sealed: bytes) -> None:
        node = self.nodes[DISTRIBUTOR]
        if node.gossip is None:
            self.later(500, lambda: self._say_order(sealed))
        node.feed(Sealed(sealed))

    # --- the play -----------------------------------------------------------------------------

    def run(self) -> None:
        """Play the plan.

        Raises:
            Refuted: A claim does not hold.
        """
        plan = self.plan
        if plan.sister:
            sister = World(
                Plan(plan.seed, plan.voters, plan.meters, seconds=3, drop=0.0, partitions=0,
                     crashes=0, broker_deaths=0, jumps=0),
                name="sister",
            )  # fmt: skip
            sister.start()
            sister.play(3000)
            self.foreign = list(sister.remembered)
        with bounded(small=plan.small, brief=plan.brief):
            self.start()
            self._arrange()
            length_ms = plan.seconds * 1000
            self.play(length_ms)
            self._heal()
            self.play(length_ms + 3000)
            self.ended = True
            self.play(length_ms + 3000 + HEAL_MS, until=lambda: all_certified(self))
            judge(self)

    def start(self) -> None:
        """Start everybody."""
        for name, node in self.nodes.items():
            for one in self.faces.get(name, [node]):
                one.start()
                self._tick(one)
        for meter in self.meters.values():
            self._each_second(meter)
        for at, light in enumerate(self.light):
            self.later(1000 + 37 * at % 1000, lambda light=light: self._turn_light(light))  # type: ignore[misc]

    def _arrange(self) -> None:
        """Draw when what goes wrong."""
        plan, draw = self.plan, self.random
        length_ms = plan.seconds * 1000
        honest = [name for name, node in self.nodes.items() if node.honest]
        for _ in range(plan.crashes if honest else 0):
            name = draw.choice(honest)
            self.later(draw.randint(500, length_ms), lambda name=name: self.crash(name))  # type: ignore[misc]
        for at in plan.restored:
            self._arrange_restore(self.names[at], length_ms)
        for times, what in (
            (plan.partitions, self.cut),
            (plan.broker_deaths, self.kill_broker),
            (plan.replays, self.replay),
            (plan.forgeries, self.forge),
            (plan.turns, self.turn),
            (int(plan.sister) * 2, self.replay_foreign),
            (plan.resolves, self.resolve),
            (plan.replaces, self.replace_meter),
            (int(plan.silent), self.silence),
        ):
            for _ in range(times):
                self.later(draw.randint(500, length_ms), what)
        for _ in range(plan.jumps):
            name = draw.choice(list(self.nodes))
            self.later(draw.randint(0, length_ms), lambda name=name: self.jump(name))  # type: ignore[misc]
        for at, (go, come) in enumerate(plan.changes, start=1):
            at_ms = length_ms * at // (len(plan.changes) + 1)
            self.later(at_ms, lambda go=go, come=come: self._change_some(go, come))  # type: ignore[misc]
            if draw.random() < 0.6:  # what is awkward comes together
                self.later(at_ms + draw.randint(0, 600), self.cut)
                name = draw.choice(honest or list(self.nodes))
                self.later(at_ms + draw.randint(0, 600), lambda name=name: self.crash(name))  # type: ignore[misc]
        for step in plan.script:
            play = getattr(self, step.what)
            self.later(step.at_ms, lambda play=play, step=step: play(*step.values))  # type: ignore[misc]

    def _arrange_restore(self, name: str, length_ms: int) -> None:
        draw, node = self.random, self.nodes[name]
        early = draw.randint(500, length_ms // 2)
        late = draw.randint(early + 500, length_ms)
        self.later(early, node.image)
        if draw.random() < 0.6:  # a start in between, whose answers can be played again
            self.later(draw.randint(early, (early + late) // 2), lambda: self.crash(name))
        self.later(late, lambda: self.restore(name))

    def play(self, end_ms: int, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass up to `end_ms`, or until `until` says so."""
        turn = 0
        while self._queue and self._queue[0][0] <= end_ms:
            turn += 1
            if turn % 64 == 0 and until():
                return
            self.now_ms, _, action = heapq.heappop(self._queue)
            action()

    def _tick(self, node: SimNode) -> None:
        node.feed(Tick())
        self.later(TICK_MS, lambda: self._tick(node))

    def _each_second(self, meter: SimMeter) -> None:
        node = self.nodes[meter.name]
        if self.ended:
            meter.ask(node)
        elif self.now_ms and (node.gossip is not None or not node.power):
            meter.measure()
            meter.seal(node)
        self.later(1000, lambda: self._each_second(meter))

    def _turn_light(self, light: LightMeter) -> None:
        light.turn()
        self.later(1000 if len(self.light) <= 20 else 3000, lambda: self._turn_light(light))

    def _heal(self) -> None:
        self.healed, self.halves, self.dead = True, None, False
        self._haunted.clear()
        for node in self.nodes.values():
            node.crash_at = None
            node.offset_s, node.synchronised = 0, True


def _node(name: str, *, votes: int, role: str = "meter") -> Node:
    return Node(
        name=name,
        role=role,
        sealing_key=bytes(key_of(name, "seal").verify_key),
        voting_key=bytes(key_of(name, "vote").verify_key),
        votes=votes,
    )


def play(plan: Plan) -> World:
    """Play a plan, and return the street as it is then.

    Raises:
        Refuted: A claim does not hold.
    """
    world = World(plan)
    world.run()
    return world


def seeds_of(text: str) -> range:
    """Return the seeds that `SEED` or `FIRST-LAST` names."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> int:
    """Play the seeds that are named: of one its plan and counts, of a range how far it is."""
    parser = argparse.ArgumentParser(description="Plays streets by their seeds.")
    parser.add_argument("seeds", nargs="+", type=seeds_of, metavar="SEED|FIRST-LAST")
    for seeds in parser.parse_args().seeds:
        for seed in seeds:
            plan = plan_of(seed)
            if len(seeds) == 1:
                print(plan)
                print(dict(play(plan).counts))
                continue
            if (seed - seeds.start) % 100 == 0:
                print(f"from {seed} on", flush=True)
            try:
                play(plan)
            except Exception:
                print(f"refuted by {seed}", file=sys.stderr)
                raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
