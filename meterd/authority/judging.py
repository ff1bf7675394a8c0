"""What a node does with blocks and orders that come: hold, refuse, keep waiting, or change sides.

`witness` has the rules for one block. Here is where it goes on: a chain of which another history
turns up, blocks that come before those that they follow, and a history that a quorum certified
while this node held another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.attestation import CHECKS_ALL, PLAUSIBLE
from meterd.authority.certificate import open_enrolled
from meterd.authority.effects import DropBlocks, Load, PutBlocks
from meterd.authority.ending import EndUnknownError, end_of, open_to
from meterd.authority.messages import Refusal
from meterd.authority.roster import OrderUnknownError
from meterd.authority.runs import Runs
from meterd.authority.witness import (
    BlockEarlyError,
    ChainEndedError,
    Twin,
    judge_block,
    previous_of,
)
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.block import BLOCK_CONTEXT, decode_block
from meterd.ledger.chain import head_behind
from meterd.ledger.encoding import digest, key_id, take_apart
from meterd.ledger.order import ORDER_CONTEXT, Order, decode_order, open_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterd.authority.asking import Asking
    from meterd.authority.node import Node
    from meterd.authority.roster import ChainId
    from meterd.authority.voting import Voting
    from meterd.authority.witness import Held
    from meterd.ledger.encoding import Sealed as Parts

WAITING_MAX = 32  # blocks of one chain that wait for those before them; the rest is asked for
WAITING_MS = 30_000  # so long they do, if none of these comes: whoever had one was asked meanwhile
BRANCH_MAX = 1024  # blocks of another history that are kept until a quorum decides: 21 days
REFUSED_MAX = 64  # of the last refusals, to be shown
REFUSED_MS = 60_000  # so often a meter is told that its chain has ended, and people are


class Judging:
    """What one node makes of blocks and orders.

    Attributes:
        waiting: Chains of which blocks wait: for those before, for an order, or for their time.
        runs: Blocks that come together.
    """

    def __init__(self, node: Node, asking: Asking, voting: Voting) -> None:
        """Hold nothing yet."""
        self._node, self._asking, self._voting = node, asking, voting
        self.waiting: dict[ChainId, None] = {}
        self.runs = Runs(node, asking, voting)

    def take(self, sender: str, message: bytes, parts: Parts) -> bool:
        """Take a block or an order; say whether it is one.

        Raises:
            EncodingError: It is misspelt.
            BlockRejectedError: It breaks a rule.
        """
        head = parts.payload[:24]
        if BLOCK_CONTEXT.encode() in head:
            self._take_block(sender, message, parts)
        elif ORDER_CONTEXT.encode() in head:
            self._take_order(sender, message, parts)
        else:
            return False
        return True

    def _take_block(self, sender: str, message: bytes, parts: Parts) -> None:
        block = decode_block(parts.payload)
        if block.genesis != self._node.roster.genesis:
            raise BlockRejectedError("the block is another network's")
        chain_id = (block.meter, block.incarnation)
        if (
            chain_id not in self._node.roster.chains
            and block.order[0] > self._node.roster.head.height
        ):
            self._asking.claim_order(sender, block.order[0])
            raise OrderUnknownError("its enrolment is not known here")
        held = self._node.hold(chain_id)
        if held.chain is None:
            raise BlockRejectedError(f"{block.meter} is no meter")
        if self._known(sender, held, block.height, message, parts):
            return
        if block.previous != held.head_hash:
            self._other_history(sender, held, message, block.height)
            return
        upto = open_to(self._node, held)
        again = held.refused and digest(message) == held.refused
        if again and upto is not None and block.height <= upto:
            again = False  # it was refused before as much was known
        if held.lacking or again:
            return
        roster, now = self._node.roster, self._node.now
        try:
            chain, checks = judge_block(block, parts, held.chain, roster, now, upto=upto)
        except OrderUnknownError:
            self._asking.claim_order(sender, block.order[0])
            self._wait(held, block.height, message)
            return
        except BlockEarlyError:
            self._wait(held, block.height, message)
            return
        except ChainEndedError as error:
            open_enrolled(message, roster)  # whose seal does not hold is blamed
            held.refused = digest(message)
            told_ms, now_ms = held.refused_ms, now.mono_ms
            quiet = told_ms is not None and now_ms - told_ms < REFUSED_MS
            if not quiet:
                held.refused_ms = now_ms
            self._refuse(held, block.height, digest(parts.payload), str(error), quiet=quiet)
            raise
        except BlockRejectedError as error:
            held.refused = digest(message)  # with its seal: the same block may come with a good one
            self._refuse(held, block.height, digest(parts.payload), str(error))
            raise
        if checks & PLAUSIBLE == 0:
            self._node.tell(1, "implausible", meter=block.meter, height=block.height)
        held.chain = chain
        epoch = self._node.roster.epoch_at(block.order[0])
        self._grew(held, chain.head.block_hash, message, checks=checks, epoch=epoch)

    def take_run(self, sender: str, messages: Sequence[bytes]) -> bool:
        """Take blocks that came in one message together; say whether they could be."""
        held = self.runs.take(sender, messages)
        if held is not None:
            self._go_on(held)
        return held is not None

    def _known(self, sender: str, held: Held, height: int, message: bytes, parts: Parts) -> bool:
        """Deal with what is not the next block; say whether it was dealt with."""
        if height == held.height + 1:
            return False
        if height > held.height:
            before = held.branch.get(height - 1)
            if before is not None and before.block_hash == previous_of(parts.payload):
                self._other_history(sender, held, message, height)
            else:
                self._wait(held, height, message)
                self._asking.claim(held, sender, height)
            return True
        here = held.hashes.get(height)
        block_hash = digest(parts.payload)
        if held.lacking.get(height) == block_hash:
            self.runs.take_seal(held, height, message)
            return True
        if here == block_hash:
            return True
        if held.chain is None and here is not None:
            self._open_order_any(message)
        elif held.chain is not None:
            open_enrolled(message, self._node.roster)  # an unverified seal is never evidence
        if not held.frozen and height <= held.sealed_to:
            self._node.out.append(Load(held.chain_id, height, height, ("compare",), message))
        if here is not None and height > held.certified:
            if height not in held.branch:
                held.asked_branch.pop(sender, None)  # it answers: it may be asked on
            self._branch_off(held, height, message)
        return True

    def _other_history(self, sender: str, held: Held, message: bytes, height: int) -> None:
        """A block says it follows another one than we hold: where its seal holds, see that one."""
        if held.chain is None:
            self._open_order_any(message)
        else:
            open_enrolled(message, self._node.roster)
        self._branch_off(held, height, message)
        if sender != self._node.name:
            block_hash = digest(take_apart(message).payload)
            self._asking.ask_branch(sender, held, height, block_hash)

    def _branch_off(self, held: Held, height: int, message: bytes) -> None:
        """Keep a block of another history, whose seal holds, until a quorum decides."""
        block_hash, here = digest(take_apart(message).payload), held.branch.get(height)
        if here is not None and here.block_hash == block_hash:
            return
        twin = self._keep_twin(held, height, message)
        if twin is None:
            return
        self._node.contested[held.chain_id] = None
        following = held.waiting.get(height + 1)
        if following is not None and height >= held.height:
            payload = take_apart(following).payload
            if previous_of(payload) == twin.block_hash:
                del held.waiting[height + 1]
                self._again(following)

    @staticmethod
    def _keep_twin(held: Held, height: int, message: bytes) -> Twin | None:
        payload = take_apart(message).payload
        twin = Twin(message, digest(payload), previous_of(payload))
        if height not in held.branch and len(held.branch) >= BRANCH_MAX:
            last = max(held.branch)
            if last < height:
                return None
            del held.branch[last]  # the lower ones decide
        held.branch[height] = twin
        return twin

    def _open_order_any(self, message: bytes) -> Order:
        """Return the order in `message`, if any key of the distributor sealed it."""
        distributor = self._node.roster.distributor
        assert distributor is not None  # noqa: S101 - the caller holds its chain
        kid = take_apart(message).kid
        for _, key in self._node.latest().enrolled(distributor).keys:
            if key_id(key) == kid:
                return open_order(message, key, self._node.roster.genesis)[0]
        raise BlockRejectedError("the order is not sealed by the distributor")

    def _wait(self, held: Held, height: int, message: bytes) -> None:
        if height not in held.waiting and len(held.waiting) >= WAITING_MAX:
            last = max(held.waiting)
            if height > last:
                return
            del held.waiting[last]
        if not held.waiting:
            held.waiting_ms = self._node.now.mono_ms
        held.waiting[height] = message
        self.waiting[held.chain_id] = None

    def _take_order(self, sender: str, message: bytes, parts: Parts) -> None:
        distributor = self._node.roster.distributor
        if distributor is None:
            raise BlockRejectedError("this network has no distributor")
        held = self._node.hold(distributor)
        order = decode_order(parts.payload)
        if order.genesis != self._node.roster.genesis:
            raise BlockRejectedError("the order is another network's")
        if self._known(sender, held, order.height, message, parts):
            return
        if order.previous != held.head_hash:
            self._other_history(sender, held, message, order.height)
            return
        latest = self._node.latest()
        key = latest.enrolled(distributor).key_at(latest.head.height)
        try:
            open_order(message, key, self._node.roster.genesis)
            self._node.await_certificate(order)
        except BlockRejectedError as error:
            self._refuse(held, order.height, digest(parts.payload), str(error))
            raise
        epoch, block_hash = latest.committee.epoch, self._node.latest().head.order_hash
        self._grew(held, block_hash, message, checks=CHECKS_ALL, epoch=epoch)

    def check_own(self, parts: Parts) -> None:
        """Check that an order of this device's own ends a chain where that may be ended.

        Others take it whatever they hold, but attest it only where its base holds; nothing can be
        ordered behind one that is never certified. So the chain's key has to be revoked before, by
        an order that is in force: else more may be certified meanwhile.

        Raises:
            BlockRejectedError: It is not revoked, a quorum has certified more of that chain, or
                another block is held there.
        """
        if ORDER_CONTEXT.encode() not in parts.payload[:24]:
            return
        order = decode_order(parts.payload)
        base, distributor = order.base, self._node.roster.distributor
        if base is None or distributor is None:
            return
        if order.height <= self._node.hold(distributor).height:
            return  # it has been given
        chain_id, height, _ = base
        roster = self._node.roster
        if chain_id not in roster.chains or not roster.enrolled(chain_id).revoked:
            raise BlockRejectedError(f"the key of {chain_id[0]} ({chain_id[1]}) is not revoked")
        if self._node.base_holds(base) is False:
            name, certified = chain_id[0], self._node.hold(chain_id).certified
            if certified > height:
                raise BlockRejectedError(
                    f"block {certified} of {name} is certified, the order ends it at {height}"
                )
            raise BlockRejectedError(f"another block {height} of {name} is held here")

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
        held.checks &= checks
        self._node.records.append(
            PutBlocks(
                held.chain_id,
                ((held.height, block_hash, message),),
                self._node.now.wall_s,
                checks,
            )
        )
        self._go_on(held)

    def _go_on(self, held: Held) -> None:
        """See what follows from what a chain has grown by."""
        self._node.grown[held.chain_id] = None
        held.waiting_ms = self._node.now.mono_ms
        if held.sealed:
            self._voting.mark(held.chain_id)
        if held.ahead:
            self._voting.sort_reached(held)
        waiting = held.waiting.pop(held.height + 1, None)
        if waiting is not None:
            self._again(waiting)

    def _again(self, message: bytes) -> None:
        """Judge anew what has waited."""
        try:
            self.take(self._node.name, message, take_apart(message))
        except (BlockRejectedError, EncodingError):
            self._node.count("refused")

    def _refuse(
        self, held: Held, height: int, block_hash: bytes, reason: str, *, quiet: bool = False
    ) -> None:
        name, incarnation = held.chain_id
        self._node.refused.append((name, height, reason))
        del self._node.refused[:-REFUSED_MAX]
        if quiet:
            return
        level = 2 if "lowers register" in reason else 1
        self._node.tell(level, "refused", meter=name, height=height, reason=reason)
        if name != self._node.name and name in self._node.roster.nodes:
            body = Refusal(name, incarnation, height, block_hash, reason[:200])
            self._node.say(f"answer/{name}", body)

    def judge_waiting(self) -> None:
        """Judge anew what could not be judged before: its time has come, or its order."""
        for chain_id in list(self.waiting):
            held = self._node.chains[chain_id]
            waiting = held.waiting.pop(held.height + 1, None)
            if waiting is None and self._node.now.mono_ms - held.waiting_ms > WAITING_MS:
                held.waiting.clear()  # nobody has those before them
            if not held.waiting:
                del self.waiting[chain_id]
            if waiting is not None:
                self._again(waiting)

    def adopt(self, held: Held) -> None:
        """Where another history than ours is decided for, take it: see `adopted`."""
        self._voting.certify(held)  # what the two have in common
        path = self._decided_elsewhere(held)
        if path:
            base = path[-1] - 1
            purpose, last = ("adopt", str(base)), min(held.height, base + BRANCH_MAX)
            self._node.out.append(Load(held.chain_id, max(base, 1), last, purpose))

    def _decided_elsewhere(self, held: Held) -> list[int]:
        """Return which blocks of the branch that we have seen are decided for, descending.

        A quorum has attested it, as its votes or a certificate show; an order has ended the chain
        there; or the chain's key is revoked, and nothing else can be certified any more.
        """
        if not held.branch:
            return []
        attested: dict[tuple[int, int], set[bytes]] = {}
        for kid, vote in (*held.foreign.items(), *held.ahead.items()):  # it may be in both
            for at in held.path_to(vote.leaf.height, vote.leaf.block_hash):
                attested.setdefault((at, vote.epoch), set()).add(kid)
        best = 0
        for (height, epoch), votes in attested.items():
            committee = self._node.roster.committee_of(epoch)
            if committee is not None and len(votes) >= committee.quorum:
                best = max(best, height)
        enrolled = self._node.roster.enrolled(held.chain_id)
        decided = enrolled.closed or held.shown
        if enrolled.closed:  # nothing is taken above, whoever attests it
            best = 0
        if decided and held.joins(held.path_to(*decided[:2])):
            best = max(best, decided[0])
        if not best and enrolled.revoked and not enrolled.closed:
            try:
                end = end_of(self._node, held)
            except EndUnknownError:
                return []
            best = end.height if end.elsewhere else 0
        path = held.path_to(best, held.branch[best].block_hash) if best else []
        return path if held.joins(path) else []

    def adopted(self, load: Load, ours: tuple[bytes, ...]) -> None:
        """Put the branch in the place of our own blocks, which become a branch themselves.

        Args:
            load: What was loaded for `adopt`.
            ours: The block that the branch follows, if it is not the first, and those behind it.
        """
        held, at = self._node.chains[load.chain], int(load.purpose[1])
        path = self._decided_elsewhere(held)
        if not path or held.chain is None or (at and not ours):
            return
        best, first, roster = path[0], path[-1], self._node.roster
        if first != at + 1:
            self._node.contested[held.chain_id] = None  # more is known since: once more
            return
        chain = roster.open_chain(held.chain_id)
        if at:
            chain = chain._replace(head=head_behind(chain, take_apart(ours[0]).payload))
        blocks, epochs, checks = [], [], CHECKS_ALL
        for height in range(first, best + 1):
            twin = held.branch.get(height)
            if twin is None:
                return
            parts = take_apart(twin.sealed)
            block = decode_block(parts.payload)
            try:
                chain, passed = judge_block(block, parts, chain, roster, self._node.now, upto=best)
            except BlockRejectedError:
                return
            checks &= passed
            blocks.append((height, chain.head.block_hash, twin.sealed))
            epochs.append(roster.epoch_at(block.order[0]))
        self._node.records.append(DropBlocks(held.chain_id, first))
        self._node.records.append(
            PutBlocks(held.chain_id, tuple(blocks), self._node.now.wall_s, checks)
        )
        held.checks &= checks
        gone = [
            (height, sealed)
            for height, sealed in enumerate(ours, start=load.first)
            if first <= height <= held.sealed_to  # whose seal holds
        ]
        held.chain = chain
        for height in [height for height in held.hashes if height >= first]:
            del held.hashes[height]
        held.height = first - 1
        held.epochs = [each for each in held.epochs if each[0] < first]
        held.sealed_to = min(held.sealed_to, held.height)
        held.runs = [run for run in held.runs if run[0] <= held.height]
        held.lacking.clear()
        held.adoptions += 1
        for (height, block_hash, _), epoch in zip(blocks, epochs, strict=True):
            held.branch.pop(height)
            held.grow(block_hash, epoch)
        for height, sealed in gone:
            self._keep_twin(held, height, sealed)
        votes = [*held.votes.items(), *held.foreign.items(), *held.ahead.items()]
        held.votes, held.foreign, held.ahead = {}, {}, {}
        for kid, vote in sorted(votes, key=lambda item: item[1].number):
            held.sort_vote(kid, vote)
        self._node.tell(1, "history_adopted", meter=held.chain_id[0], height=held.height)
        self._voting.certify(held)
        self._voting.adopt_shown(held)
        self._voting.mark(held.chain_id)  # an order may have waited for it
