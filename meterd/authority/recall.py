"""The boot rule of a voter: what it has voted before, as others tell it.

An honest card that is put back to yesterday has forgotten votes, and would sign others in their
place. So after a start a voter asks for its own latest batch and for every earlier one that it
lacks, and attests nothing before it has them. The question bears the nonce of this start: an answer
to an earlier one tells of less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.asking import ANSWER_MS
from meterd.authority.messages import AskOwnBatch
from meterd.authority.roster import boot_answers
from meterd.authority.snapshot import NOTHING

if TYPE_CHECKING:
    from meterd.authority.asking import Asking
    from meterd.authority.messages import OwnBatch
    from meterd.authority.node import Node
    from meterd.authority.roster import Committee
    from meterd.authority.snapshot import Sequence

BOOT_GRACE_MS = 10_000  # for a batch of ours that fewer know of than must answer


class Recall:
    """One start's question, and the answers to it."""

    def __init__(self, node: Node, asking: Asking) -> None:
        """Know nothing but what the store holds."""
        self._node, self._asking = node, asking
        self._asked_ms: int | None = None
        self._known_ms: int | None = None
        self._answers: dict[str, tuple[int, bytes]] = {}

    @property
    def last(self) -> Sequence:
        """The last batch of ours that is held here."""
        return self._node.sequences.get(self._node.kid, NOTHING)

    def ask(self, committee: Committee) -> None:
        """Ask those who vote with us, unless that question is open."""
        now_ms = self._node.now.mono_ms
        if self._asked_ms is not None and now_ms - self._asked_ms < ANSWER_MS:
            return
        self._asked_ms = now_ms
        for name, _ in committee.voters:
            if name != self._node.name:
                self._asking.ask(name, AskOwnBatch(self._node.kid, self._node.nonce))

    def ask_at_once(self) -> None:
        """Forget that the question is open: it was lost with the connection."""
        self._asked_ms = None

    def take(self, sender: str, body: OwnBatch) -> bool:
        """Take an answer; say whether it may count."""
        if body.kid != self._node.kid or body.nonce != self._node.nonce:
            return False
        if body.order[0] > self._node.roster.head.height or body.epoch > self._node.epoch:
            self._asking.claim_order(sender, body.order[0])
            return False  # asked again once we know what it knows
        self._answers[sender] = (body.number, body.batch_hash)
        self._asking.claim_batches(self._node.kid, sender, body.number)
        return True

    def settled(self, committee: Committee) -> bool:
        """Say whether enough voters know of no batch of ours that is not held here.

        Where more of them say otherwise, that is waited for: it is a lie, or it is being fetched.
        """
        answers = [said for name, said in self._answers.items() if committee.has(name)]
        last, now_ms = self.last, self._node.now.mono_ms
        here = (last.number, last.batch_hash)
        known = sum(said[0] < last.number or said == here for said in answers)
        if known < boot_answers(len(committee.voters), votes=True):
            self._known_ms = None
            return False
        if self._known_ms is None:
            self._known_ms = now_ms
        return known == len(answers) or now_ms - self._known_ms >= BOOT_GRACE_MS
