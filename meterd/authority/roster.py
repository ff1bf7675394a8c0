"""Who may seal, who may vote, and under which terms: genesis and the certified orders after it.

A roster is a value: each certified order gives the next one, and what it says of an earlier order's
time stays known, since a block is judged by the order that it names.

>>> [(n, faults_max(n), quorum(n)) for n in (1, 2, 3, 4, 5, 7, 10)]
[(1, 0, 1), (2, 0, 2), (3, 0, 2), (4, 1, 3), (5, 1, 4), (7, 2, 5), (10, 3, 7)]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.account import DAY_S, NAME, ROLES, Node
from meterd.ledger.chain import Chain, Head
from meterd.ledger.encoding import HASH_BYTES, key_id
from meterd.ledger.order import (
    Change,
    Enrol,
    ForkResolve,
    Interval,
    Order,
    OrderHead,
    Replace,
    Revoke,
    RosterChange,
    Rotate,
    verify_order,
    verify_rotation,
)

if TYPE_CHECKING:
    from meterd.ledger.account import Genesis
    from meterd.ledger.block import Energy

ChainId = tuple[str, int]  # a meter, or the distributor, and its incarnation
WITNESSED_MAX = 3  # up to so many voters one cheat can certify a fork


def faults_max(voters: int) -> int:
    """Return how many of `voters` may lie: floor((n - 1) / 3)."""
    return max(voters - 1, 0) // 3


def quorum(voters: int) -> int:
    """Return how many attestations certify: floor((n + f) / 2) + 1; two such share an honest voter.

    A majority is not enough: of five, two majorities can have a single voter in common.
    """
    return (voters + faults_max(voters)) // 2 + 1


def boot_answers(voters: int, *, votes: bool) -> int:
    """Return how many others must tell a node its own head before it goes on after a start.

    Any quorum that ever counted its vote, and any that certified its block, has an honest member
    among them.
    """
    needed = quorum(voters)
    if not votes:
        return needed if voters else 0
    return 0 if voters == 1 else max(needed - 1, voters - needed + 1)


@dataclass(frozen=True)
class Committee:
    """The voters of one epoch.

    Attributes:
        epoch: 1 at genesis.
        voters: (name, voting key), ascending by name.
        from_order: Height of the order that named them; 0 for genesis.
    """

    epoch: int
    voters: tuple[tuple[str, bytes], ...]
    from_order: int

    @cached_property
    def quorum(self) -> int:
        """How many attestations certify."""
        return quorum(len(self.voters))

    @cached_property
    def faults_max(self) -> int:
        """How many of them may lie."""
        return faults_max(len(self.voters))

    def voter(self, kid: bytes) -> tuple[str, bytes] | None:
        """Return name and key of the voter with this key id, or None."""
        return self._by_kid.get(kid)

    @cached_property
    def _by_kid(self) -> dict[bytes, tuple[str, bytes]]:
        return {key_id(voter[1]): voter for voter in self.voters}

    @cached_property
    def kids(self) -> tuple[bytes, ...]:
        """The key ids of the voters."""
        return tuple(self._by_kid)

    def has(self, name: str) -> bool:
        """Say whether `name` votes."""
        return any(voter == name for voter, _ in self.voters)


class Enrolled(NamedTuple):
    """One chain that the network knows: a meter's, or the distributor's.

    Attributes:
        name: Whose.
        incarnation: Which of its chains.
        keys: (order height, sealing key): which key is good for blocks that name that order or a
            later one, until the next.
        fuse_ma: Main fuse, mA for each phase.
        nominal_mv: Nominal voltage, mV.
        mains_clamps: Number of clamps whose sum is import and export.
        opened: Height and hash of the order that opened the chain; (0, genesis) for the first.
        registers: What its registers begin with.
        closed: Height and hash of its final block, once an order has ended it, or None.
        revoked: Why its key is no longer good, or an empty text.
        revoked_by: Height of the first order that revoked it; 0 for none.
    """

    name: str
    incarnation: int
    keys: tuple[tuple[int, bytes], ...]
    fuse_ma: int
    nominal_mv: int
    mains_clamps: int
    opened: tuple[int, bytes]
    registers: tuple[Energy, ...] = ()
    closed: tuple[int, bytes] | None = None
    revoked: str = ""
    revoked_by: int = 0

    def key_at(self, order_height: int) -> bytes:
        """Return the sealing key of blocks that name the order of this height."""
        return [key for height, key in self.keys if height <= order_height][-1]


class OrderUnknownError(BlockRejectedError):
    """A block names an order that is not known here yet: fetch it, then judge the block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """What genesis and the certified orders up to `head` say.

    Attributes:
        network: Name of the network.
        genesis: Its genesis hash.
        nodes: The nodes by name.
        committees: The voters of each epoch, the last in force or about to be.
        chains: Every chain by name and incarnation.
        distributor: Whose chain the orders are; None where nobody gives orders.
        head: The last order.
        hashes: Hash of each order by height, genesis at 0.
        intervals: (order height, effective from, interval_s), ascending.
    """

    network: str
    genesis: bytes
    nodes: dict[str, Node]
    committees: tuple[Committee, ...]
    chains: dict[ChainId, Enrolled]
    distributor: ChainId | None
    head: OrderHead
    hashes: tuple[bytes, ...]
    intervals: tuple[tuple[int, int, int], ...]

    @property
    def committee(self) -> Committee:
        """The voters of the last epoch."""
        return self.committees[-1]

    @property
    def quorum_least(self) -> int:
        """The least quorum of any epoch: with fewer votes nothing is certified."""
        return min(committee.quorum for committee in self.committees)

    def committee_of(self, epoch: int) -> Committee | None:
        """Return the voters of an epoch, or None where it is not known."""
        return self.committees[epoch - 1] if 0 < epoch <= len(self.committees) else None

    def epoch_at(self, order_height: int) -> int:
        """Return the epoch that blocks which name this order can be attested in, or a later one."""
        return max(c.epoch for c in self.committees if c.from_order <= order_height)

    def quorums(self, chain_id: ChainId, height: int) -> dict[int, int]:
        """Return, by epoch, how many votes certify a block or an order.

        An order is certified in the epoch that it was given in: whoever is shown it knows no other.
        """
        if chain_id == self.distributor:
            committees = [c for c in self.committees if c.from_order < height][-1:]
        else:
            committees = list(self.committees)
        return {committee.epoch: committee.quorum for committee in committees}

    def peer_key(self, name: str) -> bytes:
        """Return the key that `name` signs its messages with; empty where it has none."""
        node = self.nodes.get(name)
        return node.voting_key if node else b""

    def newest(self, name: str) -> Enrolled | None:
        """Return the last chain of `name`, or None."""
        found = [chain for chain in self.chains.values() if chain.name == name]
        return max(found, key=lambda chain: chain.incarnation, default=None)

    def open_chain(self, chain_id: ChainId) -> Chain:
        """Return the empty chain of a meter.

        Raises:
            BlockRejectedError: It is not enrolled.
        """
        enrolled = self.enrolled(chain_id)
        height, order_hash = enrolled.opened
        return Chain(
            genesis=self.genesis,
            meter=enrolled.name,
            incarnation=enrolled.incarnation,
            interval_s=self.intervals[0][2],
            sealer=enrolled.keys[0][1],
            keys=enrolled.keys[1:],
            changes=self.intervals[1:],
            commanders=self.chains[self.distributor].keys if self.distributor else (),
            head=Head(
                height=0,
                block_hash=order_hash,
                end_s=None,
                energy=enrolled.registers,
                parameters=b"",
                order=(height, order_hash),
                events=0,
            ),
        )

    def enrolled(self, chain_id: ChainId) -> Enrolled:
        """Return what is known of a chain.

        Raises:
            BlockRejectedError: It is not enrolled.
        """
        enrolled = self.chains.get(chain_id)
        if enrolled is None:
            raise BlockRejectedError(f"{chain_id[0]} ({chain_id[1]}) is not enrolled")
        return enrolled

    def terms(self, chain: Chain, order: tuple[int, bytes]) -> Chain:
        """Return `chain` with keys and intervals as a block that names `order` is judged by.

        Raises:
            OrderUnknownError: The order is not known here yet.
            BlockRejectedError: It is not the one of that height, or the chain is not enrolled.
        """
        height, order_hash = order
        if height >= len(self.hashes):
            raise OrderUnknownError(f"names order {height}, which is not known here")
        if self.hashes[height] != order_hash:
            raise BlockRejectedError(f"names another order {height} than is certified")
        enrolled = self.enrolled((chain.meter, chain.incarnation))
        if height < enrolled.opened[0]:
            raise BlockRejectedError(f"names order {height}, before it was enrolled")
        return chain._replace(keys=enrolled.keys[1:], changes=self.intervals[1:])

    # --- orders -----------------------------------------------------------------------------

    def add(self, order: Order) -> Roster:
        """Return the roster once `order`, whose seal has been verified, is certified.

        Raises:
            BlockRejectedError: It does not follow, or what it orders cannot be.
        """
        if self.distributor is None:
            raise BlockRejectedError("this network has no distributor: nobody gives orders")
        head = verify_order(order, self.distributor, self.head)
        try:
            change = order.change
        except EncodingError as error:
            raise BlockRejectedError(str(error)) from error
        changed = self._change(change, order, (head.height, head.order_hash))
        return replace(changed, head=head, hashes=(*self.hashes, head.order_hash))

    def _change(self, change: Change, order: Order, at: tuple[int, bytes]) -> Roster:
        match change:
            case Enrol():
                return _enrol(self, change, at)
            case Replace():
                ended = self._end(
                    (change.meter, change.old_incarnation), change.final_height, change.final_hash
                )
                return _enrol(ended, _as_enrol(change), at)
            case ForkResolve():
                old = (change.meter, change.old_incarnation)
                ended = self._end(old, change.base_height, change.base_hash)
                before = self.enrolled(old)
                enrol = Enrol(
                    change.meter,
                    change.incarnation,
                    change.sealing_key,
                    self.peer_key(change.meter),
                    before.fuse_ma,
                    before.nominal_mv,
                    before.mains_clamps,
                    change.registers,
                )
                return _enrol(ended, enrol, at)
            case Rotate():
                return self._rotate(change, at)
            case Revoke():
                chain_id = (change.meter, change.incarnation)
                enrolled = self.enrolled(chain_id)
                if chain_id == self.distributor:
                    raise BlockRejectedError("the distributor cannot revoke itself")
                reason = change.reason or "revoked"
                by = enrolled.revoked_by or at[0]
                return self.with_chain(enrolled._replace(revoked=reason, revoked_by=by))
            case RosterChange():
                return self._roster(change, at)
            case Interval():
                if order.effective_from_s % DAY_S:
                    raise BlockRejectedError("an interval changes at a midnight (UTC)")
                if order.effective_from_s < max(from_s for _, from_s, _ in self.intervals):
                    raise BlockRejectedError("an interval changes before the last change of it")
                entry = (at[0], order.effective_from_s, change.interval_s)
                return replace(self, intervals=(*self.intervals, entry))

    def with_chain(self, enrolled: Enrolled) -> Roster:
        """Return the roster with this chain as it is now."""
        chain_id = (enrolled.name, enrolled.incarnation)
        return replace(self, chains={**self.chains, chain_id: enrolled})

    def _end(self, chain_id: ChainId, height: int, block_hash: bytes) -> Roster:
        enrolled = self.enrolled(chain_id)
        if enrolled.closed is not None or chain_id == self.distributor:
            raise BlockRejectedError(f"{chain_id[0]} ({chain_id[1]}) has ended, or cannot")
        return self.with_chain(enrolled._replace(closed=(height, block_hash)))

    def check_key(self, sealing_key: bytes) -> None:
        """Check that a new sealing key is nobody's yet.

        Raises:
            BlockRejectedError: It seals, or has sealed, a chain.
        """
        for enrolled in self.chains.values():
            if any(key == sealing_key for _, key in enrolled.keys):
                raise BlockRejectedError(f"the key is {enrolled.name}'s already")

    def check_node_keys(self, name: str, sealing_key: bytes, voting_key: bytes) -> None:
        """Check that no other node has one of these keys, and that they are two.

        Raises:
            BlockRejectedError: One has.
        """
        others = {
            key
            for node in self.nodes.values()
            for key in (node.sealing_key, node.voting_key)
            if key and (node.name != name or key == node.voting_key != voting_key)
        }
        if sealing_key == voting_key or others & {sealing_key, voting_key}:
            raise BlockRejectedError(f"a key of {name} is another node's, or both are one")

    def _rotate(self, change: Rotate, at: tuple[int, bytes]) -> Roster:
        enrolled = self.enrolled((change.meter, change.incarnation))
        if enrolled.closed or enrolled.revoked:
            raise BlockRejectedError(f"{change.meter} ({change.incarnation}) has ended")
        self.check_key(change.sealing_key)
        verify_rotation(change, enrolled.keys[-1][1], self.genesis)
        return self.with_chain(
            enrolled._replace(keys=(*enrolled.keys, (at[0], change.sealing_key)))
        )

    def _roster(self, change: RosterChange, at: tuple[int, bytes]) -> Roster:
        if change.epoch != self.committee.epoch + 1:
            raise BlockRejectedError(
                f"expected epoch {self.committee.epoch + 1}, got {change.epoch}"
            )
        nodes = {node.name: node for node in change.nodes}
        voters = check_nodes(change.nodes)
        if not voters:
            raise BlockRejectedError("a roster without voters certifies nothing any more")
        if self.distributor and nodes.get(self.distributor[0]) is None:
            raise BlockRejectedError(f"the roster leaves out the distributor {self.distributor[0]}")
        for (name, _), enrolled in self.chains.items():
            if enrolled.closed is None and not enrolled.revoked and name not in nodes:
                raise BlockRejectedError(f"the roster leaves out {name}, which meters")
        committee = Committee(change.epoch, voters, at[0])
        return replace(self, nodes=nodes, committees=(*self.committees, committee))


def _enrol(roster: Roster, change: Enrol, at: tuple[int, bytes]) -> Roster:
    before = roster.newest(change.meter)
    if before is not None and (before.closed is None or (before.name, 1) == roster.distributor):
        raise BlockRejectedError(f"{change.meter} has a chain that has not ended")
    if change.incarnation != (before.incarnation + 1 if before else 1):
        raise BlockRejectedError(
            f"{change.meter} cannot begin with incarnation {change.incarnation}"
        )
    roster.check_key(change.sealing_key)
    roster.check_node_keys(change.meter, change.sealing_key, change.voting_key)
    enrolled = Enrolled(
        change.meter,
        change.incarnation,
        ((at[0], change.sealing_key),),
        change.fuse_ma,
        change.nominal_mv,
        change.mains_clamps,
        at,
        change.registers,
    )
    node = roster.nodes.get(change.meter)
    if node is None or not node.votes:  # a voter's keys change with the roster alone
        node = Node(
            name=change.meter,
            role="meter",
            sealing_key=change.sealing_key,
            voting_key=change.voting_key,
            votes=0,
        )
    return replace(roster.with_chain(enrolled), nodes={**roster.nodes, change.meter: node})


def _as_enrol(change: Replace) -> Enrol:
    return Enrol(*(getattr(change, name) for name in Enrol._fields))


def check_nodes(nodes: tuple[Node, ...]) -> tuple[tuple[str, bytes], ...]:
    """Return the voters among `nodes`, ascending by name.

    Raises:
        BlockRejectedError: A name, a role or a key cannot be, or comes twice.
    """
    names, keys = set[str](), set[bytes]()
    for node in nodes:
        if not NAME.fullmatch(node.name) or node.role not in ROLES or node.votes > 1:
            raise BlockRejectedError(f"node {node.name[:40]} has no possible name, role or vote")
        if len(node.sealing_key) != HASH_BYTES or len(node.voting_key) not in (0, HASH_BYTES):
            raise BlockRejectedError(f"a key of node {node.name} is not 32 bytes")
        if node.votes and not node.voting_key:
            raise BlockRejectedError(f"node {node.name} votes without a voting key")
        mine = {node.sealing_key, node.voting_key} - {b""}
        if node.name in names or keys & mine or node.sealing_key == node.voting_key:
            raise BlockRejectedError(f"node {node.name}: its name or a key of it comes twice")
        names.add(node.name)
        keys |= mine
    return tuple(sorted((node.name, node.voting_key) for node in nodes if node.votes))


def found(genesis: Genesis) -> Roster:
    """Return the roster that a genesis founds.

    Raises:
        BlockRejectedError: Its nodes cannot be, or it has several distributors.
    """
    voters = check_nodes(genesis.nodes)
    distributors = [node for node in genesis.nodes if node.role == "distributor"]
    if len(distributors) > 1:
        raise BlockRejectedError("a network has one distributor")
    opened = (0, genesis.hash)
    chains = {
        (meter.name, meter.incarnation): Enrolled(
            meter.name,
            meter.incarnation,
            ((0, meter.sealing_key),),
            meter.fuse_ma,
            meter.nominal_mv,
            meter.mains_clamps,
            opened,
        )
        for meter in genesis.meters
    }
    distributor = None
    for node in distributors:
        distributor = (node.name, 1)
        if distributor in chains:
            raise BlockRejectedError(f"the distributor {node.name} cannot be a meter too")
        chains[distributor] = Enrolled(node.name, 1, ((0, node.sealing_key),), 0, 0, 0, opened)
    return Roster(
        network=genesis.name,
        genesis=genesis.hash,
        nodes={node.name: node for node in genesis.nodes},
        committees=(Committee(1, voters, 0),),
        chains=chains,
        distributor=distributor,
        head=OrderHead(0, genesis.hash, 0),
        hashes=(genesis.hash,),
        intervals=((0, 0, genesis.interval_s),),
    )
