"""Blocks that come together: taken by their links and the last seal, the others verified in turn.

Until each seal up to the head has been verified, the chain is held and nothing rests on it: it is
not attested, not served, not shown as proof. A block that came with a bad seal is asked for, of
others than brought it; its payload is right, for the next block links to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.asking import ANSWER_MS
from meterd.authority.attestation import PLAUSIBLE
from meterd.authority.certificate import open_enrolled
from meterd.authority.effects import Load, PutBlocks, PutSeal, PutSealed
from meterd.authority.ending import open_to
from meterd.authority.messages import AskBlocks
from meterd.authority.witness import UNSEALED, judge_run, place_of
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.block import BLOCK_CONTEXT
from meterd.ledger.encoding import digest, take_apart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterd.authority.asking import Asking
    from meterd.authority.node import Node
    from meterd.authority.roster import ChainId
    from meterd.authority.voting import Voting
    from meterd.authority.witness import Held

RUN_MIN = 3  # blocks that come together and are judged as one


class Runs:
    """The chains of one node of which not each seal has been verified.

    Attributes:
        unsealed: Which.
        blamed: Who brought bad seals, since this was looked at.
    """

    def __init__(self, node: Node, asking: Asking, voting: Voting) -> None:
        """Know of none."""
        self._node, self._asking, self._voting = node, asking, voting
        self.unsealed: dict[ChainId, None] = {}
        self.blamed: list[str] = []

    def take(self, sender: str, messages: Sequence[bytes]) -> Held | None:
        """Take blocks that came in one message, if they are the next of one chain; return it.

        Where nothing was taken, whatever the reason, one by one they show which.
        """
        if len(messages) < RUN_MIN:
            return None
        try:
            return self._take(sender, messages)
        except (BlockRejectedError, EncodingError):
            return None

    def _take(self, sender: str, messages: Sequence[bytes]) -> Held | None:
        run = [take_apart(message) for message in messages]
        if BLOCK_CONTEXT.encode() not in run[0].payload[:24]:
            return None
        name, incarnation, height = place_of(run[0].payload)
        roster = self._node.roster
        if (name, incarnation) not in roster.chains:
            return None
        held = self._node.hold((name, incarnation))
        if held.chain is None or held.lacking or height != held.height + 1:
            return None
        upto = open_to(self._node, held)
        chain, added, checks = judge_run(run, held.chain, roster, self._node.now, upto=upto)
        if checks & PLAUSIBLE == 0:
            self._node.tell(1, "implausible", meter=name, height=chain.head.height)
        held.chain, held.checks = chain, held.checks & checks
        held.runs.append((height, sender))
        rows = []
        for (block_hash, order), message in zip(added, messages, strict=True):
            held.grow(block_hash, roster.epoch_at(order), sealed=False)
            rows.append((held.height, block_hash, message))
        self._node.records.append(
            PutBlocks(held.chain_id, tuple(rows), self._node.now.wall_s, checks | UNSEALED)
        )
        self.unsealed[held.chain_id] = None
        return held

    def verify(self) -> None:
        """Have the next seals verified of one of the chains, or ask for those that are lacking."""
        chain_id = next(iter(self.unsealed), None)
        if chain_id is None:
            return
        del self.unsealed[chain_id]
        held = self._node.chains[chain_id]
        if held.sealed:
            self._voting.mark(chain_id)
            return
        self.unsealed[chain_id] = None  # the others first
        if not held.lacking:
            purpose = ("seals", str(held.adoptions))
            load = Load(chain_id, held.sealed_to + 1, held.height, purpose)
            self._node.out.append(load)
        elif held.asked_seals_ms + ANSWER_MS <= self._node.now.mono_ms:
            held.asked_seals_ms = self._node.now.mono_ms
            question = AskBlocks(*chain_id, min(held.lacking), max(held.lacking))
            self._asking.ask_any(question, but=held.brought_by(min(held.lacking)))

    def loaded(self, load: Load, messages: Sequence[bytes]) -> None:
        """Verify the seals of blocks that came in runs, as the store holds them."""
        held = self._node.chains[load.chain]
        if load.first != held.sealed_to + 1 or load.purpose[1] != str(held.adoptions):
            return  # another history has been adopted since
        last = held.sealed_to
        for last, message in enumerate(messages, start=load.first):
            try:
                open_enrolled(message, self._node.roster)
            except BlockRejectedError:
                held.lacking[last] = digest(take_apart(message).payload)
        if held.lacking:
            self._node.count("bad seal")
            self.blamed += {held.brought_by(height) for height in held.lacking}
            held.asked_seals_ms = self._node.now.mono_ms - ANSWER_MS  # it may be asked at once
            last = min(held.lacking) - 1
        self._verified(held, last)

    def take_seal(self, held: Held, height: int, message: bytes) -> None:
        """Take a block that is held with a bad seal, if this one's is good.

        Raises:
            BlockRejectedError: It is not.
        """
        open_enrolled(message, self._node.roster)
        del held.lacking[height]
        self._node.records.append(PutSeal(held.chain_id, height, message))
        if not held.lacking:
            self._verified(held, height)

    def _verified(self, held: Held, last: int) -> None:
        """Each seal up to `last` has been."""
        if last > held.sealed_to:
            held.sealed_to = last
            if held.sealed:
                held.runs.clear()
            self._node.records.append(PutSealed(held.chain_id, last))
        if held.sealed:
            self._voting.mark(held.chain_id)
