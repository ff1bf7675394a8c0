"""One chain as a node holds it, and the rules that a node applies before it attests.

A node attests what it holds, has checked, and can follow from what it has attested before. What
breaks a rule is refused with a reason; what cannot be judged yet (its order is not known here, or
its end is in our future) waits; what is beyond the meter's limits is attested without a bit, and
told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nacl.signing import VerifyKey

from meterd.authority.attestation import CHECKS_ALL, PLAUSIBLE, TIMELY, Leaf
from meterd.errors import BlockRejectedError
from meterd.ledger.block import BLOCK_CONTEXT, decode_block
from meterd.ledger.chain import Chain, verify_block
from meterd.ledger.encoding import verify_seal
from meterd.ledger.order import decode_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterd.authority.effects import Now
    from meterd.authority.roster import ChainId, Enrolled, Roster
    from meterd.ledger.block import Block
    from meterd.ledger.encoding import Sealed

HASHES_KEPT = 64  # below the head, to compare with what others hold; older ones are on the card
BRANCH_ASKED_MAX = 8  # of another history at a time: the longest blocks fill an answer so
AHEAD_S_MAX = 5  # a block may end so far in our future: two synchronised clocks differ by less
UNSEALED = 8  # beside a kept block's checks: its own seal has not been verified yet
LIMIT_TENTHS = 16  # a main fuse carries 1.6 times its rating for an hour (gG characteristic)


class BlockEarlyError(BlockRejectedError):
    """The block ends in our future: judge it once its time has come."""


class ChainEndedError(BlockRejectedError):
    """An order ended the chain, or revoked its key: who sends of it may not know yet."""


class Vote(NamedTuple):
    """An authority's newest attestation on a chain.

    Attributes:
        leaf: What it attested.
        number: In which of its batches.
        epoch: In which epoch.
    """

    leaf: Leaf
    number: int
    epoch: int


class Twin(NamedTuple):
    """A block, or an order, of another history.

    Attributes:
        sealed: With its seal, which holds.
        block_hash: Its hash.
        previous: The hash that it links to.
    """

    sealed: bytes
    block_hash: bytes
    previous: bytes


class Held:
    """One chain as this node holds it.

    Attributes:
        chain_id: Whose, and which.
        chain: A meter's chain up to the head; None for the distributor's.
        height: Height of the head.
        head_hash: Its hash.
        hashes: Hashes by height, the last `HASHES_KEPT` and all that are not certified.
        epochs: (height, epoch) where blocks begin to name an order of a later epoch.
        checks: What holds for every block since this node's last leaf here.
        certified: Up to which height a quorum has attested.
        certified_epoch: In which epoch.
        votes: By key id, the newest attestation of each voter that lies on this chain.
        ahead: Those above the head: whether they lie on it is not known yet.
        foreign: Those that lie on another history.
        frozen: Why nothing is attested here any more, or an empty text.
        waiting: Sealed blocks above the head by height, which cannot be judged yet.
        waiting_ms: Since when nothing of it could, by the clock of `Now`.
        wanted: By peer, the height up to which it says it holds the chain.
        asked: (peer, when) of the question that is open, or None.
        branch: Blocks of another history by height.
        asked_branch: When each peer was asked for such last, by the clock of `Now`.
        passed: By key id, the height of a voter's last attestation below what is kept here.
        refused: Hash of the block that was refused last: it is not judged again.
        refused_ms: When the meter was told last that its chain has ended; None if it was not.
        sealed_to: Up to which height each block's own seal has been verified. Those above came in
            runs: what links to them has a good seal (see `judge_run`).
        lacking: Hashes by height of blocks that came with a bad seal: they are asked for.
        asked_seals_ms: When they were asked for last, by the clock of `Now`.
        runs: (first height, who brought it) of the runs above `sealed_to`, ascending.
        locks: What voters had attested when they closed an epoch, above what is certified: by epoch
            and key id.
        shown: (height, hash, epoch) of a block of another history that a certificate has shown, or
            None.
        adoptions: How often another history has taken the place of this one.
    """

    __slots__ = (
        "adoptions",
        "ahead",
        "asked",
        "asked_branch",
        "asked_seals_ms",
        "branch",
        "certified",
        "certified_epoch",
        "chain",
        "chain_id",
        "checks",
        "epochs",
        "foreign",
        "frozen",
        "hashes",
        "head_hash",
        "height",
        "lacking",
        "locks",
        "passed",
        "refused",
        "refused_ms",
        "runs",
        "sealed_to",
        "shown",
        "votes",
        "waiting",
        "waiting_ms",
        "wanted",
    )

    def __init__(self, chain_id: ChainId, chain: Chain | None, root: bytes) -> None:
        """Hold an empty chain, whose first block links to `root`."""
        self.chain_id, self.chain = chain_id, chain
        self.height, self.head_hash = 0, root
        self.hashes: dict[int, bytes] = {0: root}
        self.epochs: list[tuple[int, int]] = []
        self.checks = CHECKS_ALL
        self.certified = self.certified_epoch = 0
        self.votes: dict[bytes, Vote] = {}
        self.ahead: dict[bytes, Vote] = {}
        self.foreign: dict[bytes, Vote] = {}
        self.frozen = ""
        self.waiting: dict[int, bytes] = {}
        self.waiting_ms = 0
        self.wanted: dict[str, int] = {}
        self.asked: tuple[str, int] | None = None
        self.branch: dict[int, Twin] = {}
        self.asked_branch: dict[str, int] = {}
        self.passed: dict[bytes, int] = {}
        self.refused = b""
        self.refused_ms: int | None = None
        self.sealed_to = self.asked_seals_ms = self.adoptions = 0
        self.lacking: dict[int, bytes] = {}
        self.runs: list[tuple[int, str]] = []
        self.locks: dict[tuple[int, bytes], Leaf] = {}
        self.shown: tuple[int, bytes, int] | None = None

    @property
    def sealed(self) -> bool:
        """Whether each block's own seal has been verified."""
        return self.sealed_to >= self.height

    def grow(self, block_hash: bytes, epoch: int, *, sealed: bool = True) -> None:
        """Take the next block's hash; it names an order of `epoch`."""
        if sealed and self.sealed_to == self.height:
            self.sealed_to += 1
        self.height += 1
        self.head_hash = self.hashes[self.height] = block_hash
        twin = self.branch.get(self.height)
        if twin is not None and twin.block_hash == block_hash:
            del self.branch[self.height]  # it is ours now
        if epoch > (self.epochs[-1][1] if self.epochs else 1):
            self.epochs.append((self.height, epoch))
        self.hashes.pop(min(self.height - HASHES_KEPT, self.certified - 1), None)

    def certify(self, height: int, epoch: int) -> None:
        """Take up to where a quorum has attested it, in `epoch`; hashes below may go."""
        kept = self.height - HASHES_KEPT
        for at in range(min(kept, self.certified - 1), min(kept, height - 1) + 1):
            self.hashes.pop(at, None)
        self.certified, self.certified_epoch = height, epoch

    def brought_by(self, height: int) -> str:
        """Return who brought the run that the block at `height` came in; empty if none did."""
        return next((peer for first, peer in reversed(self.runs) if first <= height), "")

    def lacks(self, height: int, block_hash: bytes) -> tuple[int, int] | None:
        """Return which blocks are lacking of another history up to this block: first and last.

        None where it is held down to what is certified.
        """
        while height > self.certified:
            twin = self.branch.get(height)
            if twin is None or twin.block_hash != block_hash:
                break
            height, block_hash = height - 1, twin.previous
        else:
            return None
        if height <= self.height:  # from above: below, the two may have much in common
            return max(self.certified + 1, height - BRANCH_ASKED_MAX + 1), height
        first = self.behind_branch()
        return (first if first <= height else self.height + 1), height

    def behind_branch(self) -> int:
        """Return the first height above our head that is not held of another history."""
        first = self.height + 1
        before = self.branch.get(first)
        while before is not None:
            first += 1
            twin = self.branch.get(first)
            before = twin if twin is not None and twin.previous == before.block_hash else None
        return first

    def joint(self, leaf: Leaf) -> int:
        """Return up to where an attestation of another history is one of ours too; 0 if unknown."""
        path = self.path_to(leaf.height, leaf.block_hash)
        return path[-1] - 1 if self.joins(path) else 0

    def path_to(self, height: int, block_hash: bytes) -> list[int]:
        """Return the heights of what is held of another history up to a block, descending."""
        path = list[int]()
        while (twin := self.branch.get(height)) is not None and twin.block_hash == block_hash:
            path.append(height)
            height, block_hash = height - 1, twin.previous
        return path

    def joins(self, path: list[int]) -> bool:
        """Say whether another history branches off ours where this path of it ends."""
        return bool(path) and self.hashes.get(path[-1] - 1) == self.branch[path[-1]].previous

    def highest(self) -> dict[bytes, int]:
        """Return up to where each voter attests this chain, in whatever history, by key id."""
        highest: dict[bytes, int] = {}
        for votes in (self.votes, self.ahead, self.foreign):
            for kid, vote in votes.items():
                highest[kid] = max(vote.leaf.height, highest.get(kid, 0))
        return highest

    def attested(self) -> list[tuple[bytes, int, int]]:
        """Return up to where each voter attests this history: key id, height, epoch."""
        mine = [(kid, vote.leaf.height, vote.epoch) for kid, vote in self.votes.items()]
        if not self.branch:
            return mine
        others = [*self.foreign.items(), *self.ahead.items()]
        joints = [(kid, self.joint(vote.leaf), vote.epoch) for kid, vote in others]
        return mine + [joint for joint in joints if joint[1]]

    def lies_on(self, leaf: Leaf) -> bool:
        """Say whether an attestation is of this history, as far as it is held."""
        return leaf.height <= self.certified or self.hashes.get(leaf.height) == leaf.block_hash

    def epoch_at(self, height: int) -> int:
        """Return the first epoch in which the block at `height` may be attested."""
        if not self.epochs:
            return 1
        return max((epoch for at, epoch in self.epochs if at <= height), default=1)

    def sort_vote(self, kid: bytes, vote: Vote) -> str:
        """Take a voter's attestation; return `on`, `ahead`, `foreign`, or `old` if not to be told.

        `old` is below what is kept here: it lies on this chain or a voter lied about the past,
        which its later attestations will show.
        """
        height = vote.leaf.height
        if height > self.height:
            self.ahead[kid] = vote
            return "ahead"
        here = self.hashes.get(height)
        if here is None:
            return "old"
        if here != vote.leaf.block_hash:
            self.foreign[kid] = vote
            return "foreign"
        before = self.votes.get(kid)
        if before is None or (vote.epoch, height) >= (before.epoch, before.leaf.height):
            self.votes[kid] = vote
        return "on"

    def take_reached(self) -> list[tuple[bytes, Vote]]:
        """Take out what was above the head and is so no more, to be sorted again."""
        reached = [(kid, v) for kid, v in self.ahead.items() if v.leaf.height <= self.height]
        for kid, _ in reached:
            del self.ahead[kid]
        return reached


def judge_block(
    block: Block, sealed: Sealed, chain: Chain, roster: Roster, now: Now, *, upto: int | None = None
) -> tuple[Chain, int]:
    """Return `chain` with `block` added, and which checks it passes.

    Args:
        block: The block in `sealed`.
        sealed: As it came, its seal not verified.
        chain: What it must extend.
        roster: The network as certified so far.
        now: This node's clock.
        upto: Up to where it is taken though its key has been revoked since: see `ending`.

    Raises:
        OrderUnknownError: It names an order that is not known here: fetch it first.
        BlockEarlyError: It ends in our future: judge it later.
        BlockRejectedError: It breaks a rule; the message says which.
    """
    terms = roster.terms(chain, block.order)
    enrolled = roster.enrolled((chain.meter, chain.incarnation))
    _check_open(block, enrolled, upto)
    verify_seal(sealed, VerifyKey(terms.key_at(block.order[0])), chain.genesis)
    return _follow(block, sealed.payload, terms, enrolled, now)


def judge_run(
    run: Sequence[Sealed], chain: Chain, roster: Roster, now: Now, *, upto: int | None = None
) -> tuple[Chain, list[tuple[bytes, int]], int]:
    """Return `chain` with a run of blocks added, each one's hash and order, and their checks.

    The last seal alone is verified: the last block links to the one before, and so on, so that who
    sealed it vouches for every payload. The other seals may be anything, and are no evidence.

    Args:
        run: Sealed blocks, ascending, at least one.
        chain: What the first of them must extend.
        roster: The network as certified so far.
        now: This node's clock.
        upto: As for `judge_block`.

    Raises:
        EncodingError: A payload is no block.
        BlockRejectedError: As for `judge_block`.
    """
    enrolled = roster.enrolled((chain.meter, chain.incarnation))
    added, checks, named = list[tuple[bytes, int]](), CHECKS_ALL, (-1, b"")
    for sealed in run:
        block = decode_block(sealed.payload)
        if block.order != named:
            chain, named = roster.terms(chain, block.order), block.order
        _check_open(block, enrolled, upto)
        chain, passed = _follow(block, sealed.payload, chain, enrolled, now)
        checks &= passed
        added.append((chain.head.block_hash, block.order[0]))
    verify_seal(run[-1], VerifyKey(chain.key_at(named[0])), chain.genesis)
    return chain, added, checks


def _check_open(block: Block, enrolled: Enrolled, upto: int | None) -> None:
    if enrolled.closed is not None:
        if block.height > enrolled.closed[0]:
            raise ChainEndedError(f"an order ended this chain at block {enrolled.closed[0]}")
    elif enrolled.revoked and block.height > (upto or 0):
        raise ChainEndedError(f"the key of {block.meter} was revoked: {enrolled.revoked}")


def _follow(
    block: Block, payload: bytes, terms: Chain, enrolled: Enrolled, now: Now
) -> tuple[Chain, int]:
    """Return `terms` with `block` added, and which checks it passes; its seal is not looked at."""
    head = verify_block(block, payload, terms)
    closed = enrolled.closed
    if closed is not None and block.height == closed[0] and head.block_hash != closed[1]:
        raise ChainEndedError(f"an order ended this chain at another block {block.height}")
    checks = CHECKS_ALL
    if not now.synchronised:
        checks &= ~TIMELY
    elif block.end_s > now.wall_s + AHEAD_S_MAX:
        raise BlockEarlyError(f"block {block.height} ends {block.end_s - now.wall_s} s from now")
    if energy_uj(block) > limit_uj(block, enrolled):
        checks &= ~PLAUSIBLE
    return terms._replace(head=head), checks


def energy_uj(block: Block) -> int:
    """Return the energy that the main connection has carried in a block, both ways, in uJ."""
    carried_uj = 0
    for obis, _, first_uj, last_uj in block.energy:
        if obis[1] == 0 and obis[2] in (1, 2):
            carried_uj += last_uj - first_uj
    return carried_uj


def limit_uj(block: Block, enrolled: Enrolled) -> int:
    """Return the energy that its main fuses let through while the block was measured, in uJ."""
    power_mw = enrolled.mains_clamps * enrolled.fuse_ma * enrolled.nominal_mv // 1000
    return power_mw * LIMIT_TENTHS // 10 * max(block.clock.measured_ms, 1)


def previous_of(payload: bytes) -> bytes:
    """Return what a block or an order links to."""
    if BLOCK_CONTEXT.encode() in payload[:24]:
        return decode_block(payload).previous
    return decode_order(payload).previous


def place_of(payload: bytes) -> tuple[str, int, int]:
    """Return name, incarnation and height of a block or an order that has been verified."""
    if BLOCK_CONTEXT.encode() in payload[:24]:
        block = decode_block(payload)
        return block.meter, block.incarnation, block.height
    order = decode_order(payload)
    return order.distributor, order.incarnation, order.height
