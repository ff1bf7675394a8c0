"""The boot rule of a meter: before it seals after a start, others tell it what it has sealed.

An honest card that is put back to yesterday looks like a fork. So the meter draws a nonce, has the
voters asked for the highest block of its own that they hold, and goes on from there. An answer
counts once the meter itself holds as much: a height above its own counts only with the sealed
blocks, so that a liar can delay and not mislead.

An answer is also a promise: who gave it attests nothing above it for `PROMISE_MS` (`promises`). An
old block that one neighbour alone has kept may still spread afterwards, and be certified before the
meter's next interval ends. So the answers are asked for anew when something is to be sealed, count
for `FRESH_MS` from the question on, and what follows the first block waits until that is certified:
from then on no quorum can certify another history. (On a full card it does not wait: see `Meter`.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.messages import HeadHeld, open_said
from meterd.authority.roster import boot_answers
from meterd.errors import BlockRejectedError

if TYPE_CHECKING:
    from meterd.authority.roster import Roster

PROMISE_MS = 5000  # a voter attests nothing above its answer for so long after giving it
FRESH_MS = 4000  # ... and a meter seals by it so long after asking: clocks differ, cards stall
QUESTIONS_KEPT = 8  # of one start: an answer to an older one comes too late anyway


class HeadSearch:
    """One start's questions, what has been answered, and whether the meter may seal by it.

    Attributes:
        nonce: 16 bytes, fresh for the last question; empty before the first.
        first: Height of the first block sealed since the start; None before.
        free: Whether the rule has been met for good, until the next start.
    """

    def __init__(self, meter: str, node: str) -> None:
        """Search for the head of `meter`, whose device is the node `node`."""
        self._meter, self._node = meter, node
        self.nonce = b""
        self.first: int | None = None
        self.free = False
        self._asked: dict[bytes, int] = {}
        self._answers: dict[str, tuple[int, HeadHeld]] = {}

    def ask(self, nonce: bytes, now_ms: int) -> None:
        """Begin a question: answers that bear `nonce` are fresh from `now_ms` on."""
        self.nonce = nonce
        self._asked[nonce] = now_ms
        while len(self._asked) > QUESTIONS_KEPT:
            del self._asked[next(iter(self._asked))]

    def take(self, message: bytes, roster: Roster) -> None:
        """Take an answer, from outside.

        Raises:
            EncodingError: It is misspelt.
            BlockRejectedError: Nobody who votes signed it, or it answers another question.
        """
        said = open_said(message, roster.peer_key, roster.genesis)
        body = said.body
        if not isinstance(body, HeadHeld) or body.meter != self._meter:
            raise BlockRejectedError("not an answer to a question of this meter")
        asked_ms = self._asked.get(body.nonce)
        if asked_ms is None:
            raise BlockRejectedError("not an answer to a question of this start")
        if not roster.committee.has(said.sender) or said.sender == self._node:
            raise BlockRejectedError(f"{said.sender} does not vote here, or is this device itself")
        before = self._answers.get(said.sender)
        if before is None or before[0] <= asked_ms:
            self._answers[said.sender] = (asked_ms, body)

    def needed(self, roster: Roster) -> int:
        """Return how many answers must count."""
        committee = roster.committee
        return boot_answers(len(committee.voters), votes=committee.has(self._node))

    def _fresh(self, now_ms: int) -> dict[str, HeadHeld]:
        return {
            voter: answer
            for voter, (asked_ms, answer) in self._answers.items()
            if now_ms - asked_ms < FRESH_MS
        }

    def counting(self, roster: Roster, incarnation: int, height: int, now_ms: int) -> int:
        """Return how many answers count now for a meter that holds its chain up to `height`."""
        return sum(
            answer.order[0] <= roster.head.height
            and answer.epoch == roster.committee.epoch
            and (answer.incarnation, answer.height) <= (incarnation, height)
            for voter, answer in self._fresh(now_ms).items()
            if roster.committee.has(voter)
        )

    def higher(self, incarnation: int, height: int, now_ms: int) -> set[str]:
        """Return whose answers tell of more than the meter holds: true, or a liar's."""
        return {
            voter
            for voter, answer in self._fresh(now_ms).items()
            if (answer.incarnation, answer.height) > (incarnation, height)
        }

    def may_seal(self, roster: Roster, incarnation: int, height: int, now_ms: int) -> bool:
        """Say whether a meter that holds its chain up to `height` may seal what follows, now."""
        needed = self.needed(roster)
        if needed == 0:
            self.free = True
        if self.free or self.first is not None:
            return self.free
        return self.counting(roster, incarnation, height, now_ms) >= needed

    def sealed(self, height: int) -> None:
        """Take note that the block `height` has been sealed: it may be the first."""
        if self.first is None:
            self.first = height

    def certified(self, height: int) -> None:
        """Take note that the block `height` is certified: with the first the rule is met."""
        self.free = self.free or (self.first is not None and height >= self.first)
