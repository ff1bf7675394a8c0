"""The boot rule of a meter: before it seals after a start, others tell it what it has sealed.

An honest card that is put back to yesterday looks like a fork. So the meter draws a nonce, has the
voters asked for the highest block of its own that they hold, and goes on from there. An answer
counts once the meter itself holds as much: a height above its own counts only with the sealed
blocks, so that a liar can delay and not mislead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.messages import HeadHeld, open_said
from meterd.authority.roster import boot_answers
from meterd.errors import BlockRejectedError

if TYPE_CHECKING:
    from meterd.authority.roster import Roster


class HeadSearch:
    """One start's question, and what has been answered.

    Attributes:
        nonce: 16 bytes, fresh for this start.
        answers: By voter, the last answer that bears the nonce.
        orders_wanted: Height of an order that an answer knows and we do not; 0 if none.
    """

    def __init__(self, meter: str, node: str, nonce: bytes) -> None:
        """Ask for the head of `meter`, whose device is the node `node`."""
        self._meter, self._node = meter, node
        self.nonce = nonce
        self.answers: dict[str, HeadHeld] = {}
        self.orders_wanted = 0

    def take(self, message: bytes, roster: Roster) -> None:
        """Take an answer, from outside.

        Raises:
            EncodingError: It is misspelt.
            BlockRejectedError: Nobody who votes signed it, or it answers another question.
        """
        said = open_said(message, roster.peer_key, roster.genesis)
        body = said.body
        if not isinstance(body, HeadHeld) or (body.meter, body.nonce) != (self._meter, self.nonce):
            raise BlockRejectedError("not an answer to this start's question")
        if not roster.committee.has(said.sender) or said.sender == self._node:
            raise BlockRejectedError(f"{said.sender} does not vote here, or is this device itself")
        self.answers[said.sender] = body
        self.orders_wanted = max(self.orders_wanted, body.order[0])

    def needed(self, roster: Roster) -> int:
        """Return how many answers must count."""
        committee = roster.committee
        return boot_answers(len(committee.voters), votes=committee.has(self._node))

    def counting(self, roster: Roster, incarnation: int, height: int) -> int:
        """Return how many answers count for a meter that holds its chain up to `height`."""
        return sum(
            answer.order[0] <= roster.head.height
            and answer.epoch <= roster.committee.epoch
            and (answer.incarnation, answer.height) <= (incarnation, height)
            for voter, answer in self.answers.items()
            if roster.committee.has(voter)
        )

    def higher(self, incarnation: int, height: int) -> bool:
        """Say whether any answer tells of more than the meter holds: true, or a liar's."""
        return any(
            (answer.incarnation, answer.height) > (incarnation, height)
            for answer in self.answers.values()
        )

    def satisfied(self, roster: Roster, incarnation: int, height: int) -> bool:
        """Say whether a meter that holds its chain up to `height` may seal the next block."""
        return self.counting(roster, incarnation, height) >= self.needed(roster)
