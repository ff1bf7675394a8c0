"""The meter's side of the line: what it tells its peer process, and what it believes of it.

Nothing that comes in is believed by word: orders come with their certificates, certificates with
their signatures, answers with this start's nonce, blocks with our own seal, and all are verified
here, by the pure code, against the roster that genesis and accepted orders give. A peer process
that was taken over can withhold; it cannot forge.

In the outbox lie the oldest sealed blocks that are not certified as far as the meter knows, a
bounded number of them; each leaves when a certificate of it or of a later one has come.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meterd.authority.boot import HeadSearch
from meterd.authority.certificate import (
    Certificate,
    add_spelt_order,
    open_certificate,
    verify_certificate,
    verify_evidence,
)
from meterd.authority.messages import NONCE_BYTES
from meterd.claims import Claims, read_claims
from meterd.device.archive import load_blocks
from meterd.device.mailbox import FILE_BYTES_MAX, HEIGHT_BYTES, INBOX, OUTBOX, Mailbox
from meterd.errors import BlockRejectedError, EncodingError, MeterdError
from meterd.ledger.block import decode_block
from meterd.ledger.chain import verify_sealed
from meterd.ledger.encoding import UINT_MAX, digest, take_apart

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterd.authority.certificate import Certified
    from meterd.authority.roster import Roster
    from meterd.config import Settings
    from meterd.ledger.chain import Chain

OUT_BLOCKS_MAX = 64  # in the outbox at once; the next follow as these are certified
GRACE_MS = 30_000  # one says it holds more than a quorum does: it may be a liar, and may be right
ASK_MS = 1500  # the boot question lies there anew so often, until it is answered
LATE_MS = 30_000  # what the boot rule waits for so long, once it had been answered, is told
CERTIFICATE_FILE = "certificate"  # the last one, so that a restart need not offer all blocks again
CERTIFICATE_KEPT_MS = 60_000  # it is written so often at most: it can be had again


class Witnessed(NamedTuple):
    """Up to where the neighbours vouch for this meter.

    Attributes:
        height: Of the last certified block; 0 before the first.
        voters: How many attested it.
        quorum: How many had to.
        fork_proof: False where one liar among the voters could have certified another history.
    """

    height: int = 0
    voters: int = 0
    quorum: int = 0
    fork_proof: bool = False


class TakenOrder(NamedTuple):
    """An order that has come into force.

    Attributes:
        height: Of it on the distributor's chain.
        order_hash: Of it.
        spelt: The order with its seal and its certificate, as `add_spelt_order` takes it.
    """

    height: int
    order_hash: bytes
    spelt: bytes


class Neighbours:
    """What the metering process knows of its network.

    Attributes:
        roster: Genesis and the orders accepted so far.
        witnessed: Up to where blocks are certified.
        stopped: Why this meter must not seal any more, or an empty text.
        refused: Letters that did not hold, by kind.
        recovered: Sealed blocks of our own that peers hold and the card does not, ascending.
        claims: What the peer process says of itself; nothing but what is shown rests on it.
    """

    def __init__(
        self,
        roster: Roster,
        chain: Chain,
        *,
        state: Path,
        line: Path | None,
        load: Callable[[int, int], list[bytes]],
    ) -> None:
        """Begin.

        Args:
            roster: The network, as of the orders accepted so far.
            chain: Our own chain as recovery found it.
            state: The account's folder.
            line: Folder of outbox and inbox; None where there is no peer process.
            load: Reads our own sealed blocks from the card: (first, last).
        """
        self.roster = roster
        self._state, self._load = state, load
        self._chain = chain
        self._outbox = Mailbox(line / OUTBOX) if line else None
        self._inbox = Mailbox(line / INBOX) if line else None
        self.witnessed = Witnessed()
        self.stopped = ""
        self.refused: dict[str, int] = {}
        self.recovered: list[bytes] = []
        self.claims = Claims()
        self._sealed: OrderedDict[int, bytes] = OrderedDict()
        self._orders_taken: list[TakenOrder] = []
        self._asked_ms: int | None = None
        self._kept_ms: int | None = None
        self._now_ms = 0
        self._search = HeadSearch(chain.meter, chain.meter)
        self._asks = False  # a question of ours lies there, or did
        self._answered = False  # once in this start
        self._higher_ms = 0
        self._waited_for: set[str] = set()
        self._waits_ms: int | None = None
        self._see_ended()
        self._restore()

    @property
    def chain(self) -> Chain:
        """Our own chain, with what neighbours gave back."""
        return self._chain

    @property
    def order(self) -> tuple[int, bytes]:
        """Height and hash of the last order in force."""
        return self.roster.head.height, self.roster.head.order_hash

    @property
    def changes(self) -> tuple[tuple[int, int], ...]:
        """Changes of the interval by the orders in force: (from when on, interval_s)."""
        return tuple((from_s, interval_s) for _, from_s, interval_s in self.roster.intervals[1:])

    @property
    def alone(self) -> bool:
        """Whether nobody votes in this network: what is sealed counts as certified."""
        return not self.roster.committee.voters

    @property
    def inbox(self) -> Mailbox | None:
        """The folder that the peer process writes."""
        return self._inbox

    @property
    def free(self) -> bool:
        """Whether the boot rule is met for good, until the next start."""
        return self._search.free and not self.stopped

    def may_seal(self, now_ms: int) -> bool:
        """Say whether what is due may be sealed at this moment (see `boot`).

        Where a neighbour says that it holds a later block of this meter, that is waited for a
        while, so that the meter goes on behind it and not beside it.
        """
        if self.stopped:
            return False
        head, incarnation = self._chain.head, self._chain.incarnation
        if not self._search.may_seal(self.roster, incarnation, head.height, now_ms):
            return False
        if self._search.free:
            return True
        higher = self._search.higher(incarnation, head.height, now_ms)
        if higher - self._waited_for:
            self._waited_for |= higher
            self._higher_ms = now_ms
        if higher and now_ms - self._higher_ms < GRACE_MS:
            return False
        self._answered = True
        return True

    @property
    def waits(self) -> str:
        """Why nothing may be sealed, where that is worth telling; empty otherwise.

        Not that answers are asked for anew: they come at once, where neighbours are there.
        """
        if self.stopped or self.may_seal(self._now_ms):
            return self.stopped
        late = self._waits_ms is not None and self._now_ms - self._waits_ms >= LATE_MS
        if self._answered and not late:
            return ""
        if self._search.first is not None:
            return (
                f"block {self._search.first}, the first since the start, is not certified: what "
                "follows is sealed once it is"
            )
        head, incarnation = self._chain.head, self._chain.incarnation
        if self._outbox is None:
            return "nobody can be asked what this meter has sealed: network.brokers is empty"
        needed = self._search.needed(self.roster)
        count = self._search.counting(self.roster, incarnation, head.height, self._now_ms)
        if count >= needed:
            return "a neighbour says that it holds a later block of this meter: it is waited for"
        return f"{count} of {needed} neighbours have said what they hold of this meter"

    # --- outward ----------------------------------------------------------------------------

    def sealed(self, chain: Chain, messages: list[tuple[int, bytes]]) -> None:
        """Take note of blocks that are durable now: (height, sealed); tell the peer process."""
        self._chain = chain
        if messages:
            self._search.sealed(messages[0][0])
        for height, message in messages:
            self._sealed[height] = message
            while len(self._sealed) > OUT_BLOCKS_MAX:
                self._sealed.popitem(last=False)
        self._fill()

    def turn(self, now_ms: int, *, due: bool = False) -> None:
        """Ask what is not answered, or not any more, and refill the outbox.

        Args:
            now_ms: A clock that never goes back.
            due: Whether there is something to seal.
        """
        self._now_ms = now_ms
        if self._outbox is None:
            return
        settled = self.may_seal(now_ms) or self._search.first is not None
        wanted = not settled and (due or not self._answered)
        if not wanted and self._asks:
            self._withdraw(self._outbox)
        if wanted and (self._asked_ms is None or now_ms - self._asked_ms >= ASK_MS):
            self._ask(self._outbox, now_ms)
        if self.free or not (due or self._search.first is not None):
            self._waits_ms = None
        elif self._waits_ms is None:
            self._waits_ms = now_ms
        self._fill()

    def _ask(self, outbox: Mailbox, now_ms: int) -> None:
        self._withdraw(outbox)
        nonce = os.urandom(NONCE_BYTES)
        self._asked_ms, self._asks = now_ms, True
        self._search.ask(nonce, now_ms)
        heights = (self._chain.head.height, self.roster.head.height)
        held = b"".join(height.to_bytes(HEIGHT_BYTES, "big") for height in heights)
        outbox.put(f"question-{nonce.hex()}", nonce + held)
        outbox.ring()

    def _withdraw(self, outbox: Mailbox) -> None:
        """Take back what was asked before, in an earlier start too that nobody has answered."""
        self._asks = False
        for name in outbox.names():
            if name.startswith("question-"):
                outbox.remove(name)

    def _fill(self) -> None:
        """Let the oldest blocks that are not certified lie in the outbox, no others."""
        if self._outbox is None or self.alone:
            return
        first = self.witnessed.height + 1
        last = min(self._chain.head.height, first + OUT_BLOCKS_MAX - 1)
        wanted = {f"block-{height:012d}": height for height in range(first, last + 1)}
        there = self._outbox.names()
        for name in there - wanted.keys():
            if name.startswith("block-"):
                self._outbox.remove(name)
        missing = sorted(height for name, height in wanted.items() if name not in there)
        if not missing:
            return
        known = self._sealed
        if any(height not in known for height in missing):
            loaded = self._load(missing[0], missing[-1])
            known = OrderedDict(zip(range(missing[0], missing[-1] + 1), loaded, strict=False))
        for height in missing:
            if height in known:
                self._outbox.put(f"block-{height:012d}", known[height])
        self._outbox.ring()

    # --- inward -----------------------------------------------------------------------------

    def read(self, now_ms: int) -> list[TakenOrder]:
        """Take what lies in the inbox; return the orders that are in force now, to be events."""
        if self._inbox is None:
            return []
        for letter in sorted(self._inbox.read()):  # orders and blocks are named by their heights
            self._inbox.remove(letter.name)
            try:
                self._take(letter.kind, letter.data, now_ms)
            except (MeterdError, ArithmeticError, LookupError, TypeError, ValueError):
                # Of the latter four each is a mistake of ours that somebody has found: what the
                # peer process hands over must not end the metering.
                self.refused[letter.kind] = self.refused.get(letter.kind, 0) + 1
        taken, self._orders_taken = self._orders_taken, []
        return taken

    def _take(self, kind: str, data: bytes, now_ms: int) -> None:
        if kind == "certificate":
            self._take_certificate(open_certificate(data), data, now_ms)
        elif kind == "answer":
            self._search.take(data, self.roster)
        elif kind == "order":
            self.roster = add_spelt_order(self.roster, data)
            self._chain = self.roster.terms(self._chain, self._chain.head.order)
            self._see_ended()
            self._orders_taken.append(TakenOrder(*self.order, data))
        elif kind == "block":
            self._take_own(data)
        elif kind == "evidence":
            self._take_evidence(data)
        elif kind == "claims":
            self.claims.hear(read_claims(data), now_ms)
        else:
            raise EncodingError(f"nothing is called {kind}")

    def _take_certificate(self, certificate: Certificate, data: bytes, now_ms: int) -> None:
        certified = self._verify(certificate)
        self._search.certified(certificate.height)
        if certificate.height <= self.witnessed.height:
            return
        self._witness(certificate, certified)
        if self._kept_ms is None or now_ms - self._kept_ms >= CERTIFICATE_KEPT_MS:
            self._kept_ms = now_ms
            self._keep(data)
        self._fill()

    def _verify(self, certificate: Certificate) -> Certified:
        head = self._chain.head
        if (certificate.meter, certificate.incarnation) != (
            self._chain.meter,
            self._chain.incarnation,
        ):
            raise BlockRejectedError("the certificate is of another chain")
        if certificate.height > head.height:
            raise BlockRejectedError("the certificate is of a block that this card does not hold")
        sealed = self._sealed.get(certificate.height)
        if sealed is None:
            sealed = next(iter(self._load(certificate.height, certificate.height)), None)
        if sealed is None or digest(take_apart(sealed).payload) != certificate.block_hash:
            raise BlockRejectedError("the certificate is of another block than this card holds")
        order, _ = decode_block(take_apart(sealed).payload).order
        return verify_certificate(certificate, self.roster, self.roster.epoch_at(order))

    def _witness(self, certificate: Certificate, certified: Certified) -> None:
        committee = self.roster.committee_of(certified.epoch)
        self.witnessed = Witnessed(
            certificate.height,
            len(certified.voters),
            committee.quorum if committee else 0,
            not certified.witnessed,
        )

    def _take_own(self, data: bytes) -> None:
        """A block of ours that peers hold: is it behind what the card holds?"""
        block = decode_block(take_apart(data).payload)
        if block.height <= self._chain.head.height:
            return
        terms = self.roster.terms(self._chain, block.order)
        _, chain = verify_sealed(data, terms)
        self.recovered.append(data)
        self._chain = chain

    def _see_ended(self) -> None:
        enrolled = self.roster.newest(self._chain.meter)
        if enrolled is None or enrolled.incarnation != self._chain.incarnation or enrolled.closed:
            self.stopped = "an order has ended this chain: nothing more is sealed on it"
        elif enrolled.revoked:
            self.stopped = f"an order has revoked this meter's key: {enrolled.revoked}"

    def _take_evidence(self, data: bytes) -> None:
        """Somebody seals with our key: what this meter would seal nobody could tell from that."""
        accused = verify_evidence(data, self.roster)
        own = accused.chain == (self._chain.meter, self._chain.incarnation)
        if own and accused.role == "meter":
            self.stopped = (
                f"two blocks {accused.height} are sealed with this meter's key: sealing has "
                "stopped; the distributor has to resolve it"
            )

    # --- the last certificate -----------------------------------------------------------------

    def _keep(self, data: bytes) -> None:
        fresh = self._state / f".{CERTIFICATE_FILE}"
        try:
            fresh.write_bytes(data)
            fresh.replace(self._state / CERTIFICATE_FILE)
        except OSError:
            self.refused["kept"] = self.refused.get("kept", 0) + 1

    def _restore(self) -> None:
        path = self._state / CERTIFICATE_FILE
        try:
            with path.open("rb") as file:
                certificate = open_certificate(file.read(FILE_BYTES_MAX))
            self._witness(certificate, self._verify(certificate))
        except FileNotFoundError:
            return
        except (OSError, MeterdError):
            self.refused["kept"] = self.refused.get("kept", 0) + 1


def certified_height(state: Path, roster: Roster, chain: Chain) -> int:
    """Return up to which block the account's kept certificate vouches; all, where nobody votes.

    Args:
        state: The account's folder.
        roster: The network as the account knows it.
        chain: The account's chain up to its head.
    """
    kept = Neighbours(
        roster,
        chain,
        state=state,
        line=None,
        load=lambda first, last: load_blocks(state, first, last),
    )
    return UINT_MAX if kept.alone else kept.witnessed.height


def line_folder(state: Path, settings: Settings) -> Path:
    """Return the folder of outbox and inbox."""
    named = settings.network.line or os.environ.get("METERD_LINE", "")
    return Path(named) if named else state / "line"
