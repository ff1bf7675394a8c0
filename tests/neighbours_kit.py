"""A meter, its line to its peer process, and what that process does to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meterd.authority.messages import NONCE_BYTES, HeadHeld, Said, say
from meterd.device.mailbox import INBOX, OUTBOX, Letter, Mailbox
from meterd.ledger.chain import verify_sealed
from meterd.neighbours import OUT_BLOCKS_MAX, Neighbours
from tests.authority.examples import GENESIS, HOUSE, ROSTER, VOTERS, certificate, chain, key, sealed

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.authority.roster import Roster
    from meterd.ledger.block import Block

BLOCKS = chain(OUT_BLOCKS_MAX * 2 + 10)
SEALED = [sealed(block) for block in BLOCKS]
OTHERS = tuple(name for name in VOTERS if name != HOUSE)
ELSE = BLOCKS[4]._replace(fingerprint=bytes([7] * 32))  # another fifth block


class Home:
    """A meter's side of the line, and what its peer process does to it.

    Attributes:
        card: Its own sealed blocks.
        neighbours: The code under test.
        outbox: As the peer process sees it.
    """

    def __init__(
        self, state: Path, *, held: int = 3, roster: Roster = ROSTER, line: bool = True
    ) -> None:
        state.mkdir(exist_ok=True)
        self.state, self.now_ms, self.due = state, 0, False
        self.card = SEALED[:held]
        here = roster.open_chain((HOUSE, 1))
        for message in self.card:
            _, here = verify_sealed(message, here)
        self.neighbours = Neighbours(
            roster,
            here,
            state=state,
            line=state / "line" if line else None,
            load=lambda first, last: self.card[first - 1 : last],
        )
        self.inbox, self.outbox = (Mailbox(state / "line" / name) for name in (INBOX, OUTBOX))
        self._count = 0

    def bring(self, kind: str, data: bytes, name: str = "") -> list[bytes]:
        """Let the peer process bring a letter; return the orders that came into force."""
        self._count += 1
        assert self.inbox.put(f"{kind}-{name or self._count}", data)
        return [order.spelt for order in self.neighbours.read(self.now_ms)]

    def question(self) -> Letter | None:
        """The question in the outbox, if there is one."""
        questions = [letter for letter in self.outbox.read(128) if letter.kind == "question"]
        assert len(questions) <= 1
        for each in questions:
            assert each.name == f"question-{each.data[:NONCE_BYTES].hex()}"
        return questions[0] if questions else None

    def turn(self, ms: int = 0, *, due: bool | None = None) -> str:
        """Let time pass; return why nothing is sealed."""
        self.now_ms += ms
        self.due = self.due if due is None else due
        self.neighbours.turn(self.now_ms, due=self.due)
        return self.neighbours.waits

    def may_seal(self) -> bool:
        return self.neighbours.may_seal(self.now_ms)

    @property
    def nonce(self) -> bytes:
        """What the last question bears."""
        if not self.neighbours._search.nonce:
            self.turn()
        return self.neighbours._search.nonce

    def answer(self, by: str, *, signed: str = "", **changes: Any) -> bytes:  # noqa: ANN401
        """Return what `by` says of our head; as we hold it, unless told."""
        head = self.neighbours.chain.head
        body = HeadHeld(1, (0, GENESIS.hash), HOUSE, self.nonce, 1, head.height, head.block_hash)
        said = Said(by, 1 << 32, body._replace(**changes))
        return say(said, key(signed or f"{by} votes"), self.neighbours.roster.genesis)

    def release(self) -> None:
        """Answer the boot rule."""
        for by in OTHERS:
            self.bring("answer", self.answer(by))
        assert self.may_seal()
        assert not self.neighbours.waits

    @property
    def refused(self) -> dict[str, int]:
        return self.neighbours.refused

    @property
    def offered(self) -> list[int]:
        """Heights of the blocks in the outbox, whose bytes are the card's."""
        letters = [letter for letter in self.outbox.read(128) if letter.kind == "block"]
        for letter in letters:
            assert letter.data == self.card[int(letter.name[6:]) - 1]
        return sorted(int(letter.name[6:]) for letter in letters)

    def seal(self, height: int) -> None:
        """Let the meter seal up to a height."""
        here, messages = self.neighbours.chain, []
        for at in range(here.head.height + 1, height + 1):
            _, here = verify_sealed(SEALED[at - 1], here)
            messages.append((at, SEALED[at - 1]))
        self.card = SEALED[:height]
        self.neighbours.sealed(here, messages)


def proof_of(block: Block, **how: Any) -> bytes:  # noqa: ANN401
    return certificate(block, **how).encode()
