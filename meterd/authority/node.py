"""What the parts of a node share: who it is, what it knows, and what leaves it.

A part is a class of its own: `asking` what others hold, `voting` on it, `judging` what comes. They
are handed this, and change it; what they want done they leave in `records` and `out`.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from meterd.authority.effects import Effect, Now, PutStart, Record, Send, Tell
from meterd.authority.messages import COUNTED_FROM_S, COUNTER_START_BITS, Body, Said, say
from meterd.authority.roster import found
from meterd.authority.witness import Held
from meterd.ledger.encoding import key_id

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from meterd.authority.certificate import Accused
    from meterd.authority.roster import ChainId, Committee, Roster
    from meterd.authority.senders import Settings
    from meterd.authority.snapshot import Sequence, Snapshot
    from meterd.ledger.account import Genesis
    from meterd.ledger.order import Base, Order


class Node:
    """One node's state.

    Attributes:
        name: Its name.
        key: Its voting key, which signs its messages too.
        kid: That key's id.
        nonce: 16 bytes that nobody can guess, of this start.
        settings: How it paces itself.
        meter: The meter of this device, or empty.
        roster: The network as certified so far.
        pending: Rosters behind orders that are held and not certified yet.
        bases: By the height of such an order, the block that it ends a chain at: chain, height,
            hash.
        contested: Chains of which another history may have been certified: to be looked at.
        chains: Every chain that is held.
        grown: Those that have grown since the last digest.
        epoch: The epoch that this node is in.
        sequences: By key id, where the sequence of a voter's batches ends here.
        closed: By epoch, the key ids of voters that are known to have closed it.
        booted: Whether it knows what it has voted before, and so may vote.
        evidence: Evidence that holds, by id.
        redundant: Ids of evidence that holds against somebody who is convicted by other.
        accused: Whom it convicts.
        counts: How many messages were dropped, refused …, by kind.
        refused: The last refusals, (name, height, reason).
        heard: When each node was heard last, by the clock of `Now`.
        now: The time of this step.
        records: What is to be made durable before anything of `out` is done.
        out: What is to be done.
    """

    def __init__(
        self,
        genesis: Genesis,
        name: str,
        key: SigningKey,
        *,
        nonce: bytes,
        snapshot: Snapshot,
        settings: Settings,
        meter: str,
    ) -> None:
        """Know the genesis, and nothing that has been certified since."""
        self.name, self.key, self.settings = name, key, settings
        self.kid = key_id(bytes(key.verify_key))
        self.nonce, self.meter = nonce, meter
        self.roster = found(genesis)
        self.pending: list[Roster] = []
        self.bases: dict[int, Base] = {}
        self.contested: dict[ChainId, None] = {}
        self.chains: dict[ChainId, Held] = {}
        self.grown: dict[ChainId, None] = {}
        self.epoch = snapshot.epoch
        self.sequences: dict[bytes, Sequence] = dict(snapshot.sequences)
        self.closed: dict[int, set[bytes]] = {}
        for epoch, kid in snapshot.closed:
            self.closed.setdefault(epoch, set()).add(kid)
        self.booted = False
        self.evidence: dict[bytes, bytes] = {}
        self.redundant: dict[bytes, None] = {}
        self.accused: dict[tuple[str, str], Accused] = {}
        self.counts: dict[str, int] = {}
        self.refused: list[tuple[str, int, str]] = []
        self.heard: dict[str, int] = {}
        self.now = Now(0, 0, synchronised=False)
        self.records: list[Record] = []
        self.out: list[Effect] = []
        self._starts, self._starts_timed = snapshot.starts, False
        self._counter = snapshot.starts << COUNTER_START_BITS

    def hold(self, chain_id: ChainId) -> Held:
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

    def jitter(self, ms: int) -> int:
        """Return a number below `ms` that differs from node to node and from time to time."""
        drawn = sha256(self.nonce + self._counter.to_bytes(8, "big") + b"jitter").digest()
        return int.from_bytes(drawn[:4], "big") * ms >> 32

    def count(self, kind: str) -> None:
        """Count a message that came to nothing."""
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def tell(self, level: int, event: str, **fields: str | int) -> None:
        """Say what happened: to the journal, and to whoever asks."""
        self.out.append(Tell(level, event, tuple(fields.items())))

    def time_start(self) -> None:
        """Number this start anew once the time is known.

        On a card that was put back, or with a clock that went on from its last stop, it had a
        number that the neighbours have heard later ones of: they would take all for replayed.
        """
        if self._starts_timed or not self.now.synchronised:
            return
        self._starts_timed = True
        number = self.now.wall_s - COUNTED_FROM_S
        if number > self._starts:
            self._starts, self._counter = number, number << COUNTER_START_BITS
            self.records.append(PutStart(number))

    def say(self, topic: str, body: Body) -> None:
        """Say something to others, under this node's key."""
        self._counter += 1
        said = Said(self.name, self._counter, body)
        self.out.append(Send(topic, say(said, self.key, self.roster.genesis)))

    def key_of(self, name: str, kid: bytes = b"") -> bytes:
        """Return the key of a node, or of one that votes in an epoch that not all have closed yet.

        An order may have removed it since, or given it another key, and others may have gone on:
        its locks still bind, it has to learn of the order, and to tell others what they have voted.

        Args:
            name: Whose.
            kid: Which, where it has several.
        """
        last = self.roster.peer_key(name)
        if last and kid in {b"", key_id(last)}:
            return last
        for committee in reversed(self.roster.committees):
            for voter, key in committee.voters:
                here = key_id(key)
                meant = voter == name and kid in {b"", here}
                if meant and not self.closed.get(committee.epoch, set()).issuperset(committee.kids):
                    return key
        return self.keys_coming(name).get(kid, last)

    def keys_coming(self, name: str) -> dict[bytes, bytes]:
        """Return, by id, the keys that orders give a node which are not in force here.

        Others may have gone on, and it with them.
        """
        named = {roster.peer_key(name) for roster in self.pending} - {b""}
        return {key_id(key): key for key in named - self.voting_keys(name)} if named else {}

    def voting_keys(self, name: str) -> set[bytes]:
        """Return the voting keys that genesis and orders have named for a node."""
        voters = (voter for committee in self.roster.committees for voter in committee.voters)
        return {key for key in (self.roster.peer_key(name),) if key} | {
            key for voter, key in voters if voter == name
        }

    def has_closed(self, epoch: int, kid: bytes) -> bool:
        """Say whether a voter is known to have closed an epoch."""
        return kid in self.closed.get(epoch, ())

    def await_certificate(self, order: Order) -> None:
        """Hold the next order, which is not certified yet.

        Raises:
            BlockRejectedError: It breaks a rule.
        """
        self.pending.append(self.latest().add(order))
        if order.base is not None:
            self.bases[order.height] = order.base

    def base_holds(self, base: Base) -> bool | None:
        """Say whether a chain may be ended at this block, as far as this node knows.

        None where it does not hold that block yet, or the order that enrols the chain is not in
        force. False where a quorum has certified more of that chain, or another block is held
        there; unless the chain's key is revoked and both are: no quorum decides between them then.
        """
        chain_id, height, block_hash = base
        if chain_id not in self.roster.chains:
            return None
        held = self.hold(chain_id)
        if held.certified > height:
            return False
        if self.roster.enrolled(chain_id).revoked and held.joins(held.path_to(height, block_hash)):
            return True
        return held.hashes.get(height) == block_hash if held.height >= height else None

    def contest_revoked(self) -> None:
        """Look again at chains of two histories whose key is revoked: see `ending`."""
        for chain_id, enrolled in self.roster.chains.items():
            if enrolled.revoked and chain_id in self.chains and self.chains[chain_id].branch:
                self.contested[chain_id] = None

    def latest(self) -> Roster:
        """Return the network as the last order that is held makes it, certified or not."""
        return self.pending[-1] if self.pending else self.roster

    def voter_name(self, kid: bytes) -> str:
        """Return the name of the voter with this key id, in any epoch; empty if there is none."""
        for committee in reversed(self.roster.committees):
            if voter := committee.voter(kid):
                return voter[0]
        return ""

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
