"""What a meter does upon its neighbours' word: orders come into force, sealing waits and goes on.

`Neighbours` judges what has come; here it takes effect on the account. Metering waits for none of
it: what stops is sealing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from meterd.authority.boot import FRESH_MS
from meterd.claims import CLAIMS
from meterd.device.archive import keep_order
from meterd.device.systemd import log_event
from meterd.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from meterd.bookkeeper import Bookkeeper
    from meterd.device.clock import Clock
    from meterd.ledger.event import Details
    from meterd.neighbours import Neighbours

HEAR_MS = 1000  # what is due by time is seen to so often, where nobody rings


class Hearing:
    """The part of the measuring task that goes by what neighbours say.

    Attributes:
        rung: The peer process has rung since the last turn.
    """

    def __init__(
        self,
        neighbours: Neighbours,
        book: Bookkeeper,
        clock: Clock,
        *,
        state: Path,
        logger: logging.Logger,
        flush: Callable[[], Awaitable[None]],
        tell: Callable[[str, Details], None],
        speed: int = 1,
    ) -> None:
        """Hear nothing yet; the first turn looks.

        Args:
            neighbours: Judges what has come.
            book: The account; only the measuring task touches it.
            clock: Says when neighbours are waited for no longer.
            state: The account's folder, which keeps orders.
            logger: Gets what was sealed late.
            flush: Makes all so far durable.
            tell: Appends an event, and has the journal say it.
            speed: How much faster than real time neighbours are waited for, in a demonstration.
        """
        self._neighbours, self._book, self._clock = neighbours, book, clock
        self._state, self._speed, self._logger = state, speed, logger
        self._flush, self._tell = flush, tell
        self.rung, self._heard_ms = True, 0

    def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever the peer process rings, if there is one."""
        inbox = self._neighbours.inbox
        if inbox is None:
            return
        bell = inbox.listen()

        def rung() -> None:
            inbox.silence(bell)
            self.rung = True
            wake()

        asyncio.get_running_loop().add_reader(bell, rung)

    def obey(self) -> None:
        """Let the account go by the orders in force."""
        neighbours = self._neighbours
        self._book.obey(neighbours.chain, neighbours.order, neighbours.changes)

    async def turn(self) -> bool:
        """Take what the peer process brought; where it lets us seal, seal what has waited.

        Returns:
            Whether the account has to begin anew, behind blocks that neighbours gave back.

        Raises:
            StorageError: The card took so long that a block has to be given up.
        """
        neighbours, book = self._neighbours, self._book
        now_ms = self._mono_ms()
        if not self.rung and now_ms - self._heard_ms < HEAR_MS:
            return False
        self.rung, self._heard_ms = False, now_ms
        self._take_orders(now_ms)
        neighbours.turn(now_ms, due=book.due or bool(neighbours.recovered))
        self._tell_claims(now_ms)
        waits = neighbours.waits
        book.raise_alarm("neighbours", waits, stands=bool(waits))
        if neighbours.stopped or not (neighbours.free or book.losing):
            book.waiting = True  # sealing stops; metering does not
        if not book.waiting or not neighbours.may_seal(now_ms):
            return False
        if neighbours.recovered:
            return True
        if book.due or neighbours.free:
            await self._flush()
            self._release()
        return False

    def _mono_ms(self) -> int:
        """Return the time by which neighbours are waited for; theirs passes as fast."""
        return self._clock.stamp().boot_ms // self._speed

    def _take_orders(self, now_ms: int) -> None:
        neighbours = self._neighbours
        sealer = neighbours.chain.key_at(neighbours.order[0])
        for order in neighbours.read(now_ms):
            self._book.event(
                "order",
                (("height", order.height), ("hash", order.order_hash), ("spelt", order.spelt)),
            )
            keep_order(self._state, order.spelt)
            self.obey()
        if (key := neighbours.chain.key_at(neighbours.order[0])) != sealer:
            self._tell("key_rotated", (("old", sealer), ("new", key)))

    def _tell_claims(self, now_ms: int) -> None:
        """Show what the peer process says of itself: it is its word alone."""
        claims = self._neighbours.claims.changed(now_ms)
        if claims is None:
            return
        self._book.event("peer_says", (("claims", " ".join(sorted(claims))),))
        for claim, text in CLAIMS.items():
            self._book.raise_alarm(claim, text, stands=claim in claims)

    def _release(self) -> None:
        """Seal what has waited, if it still may be; all so far is durable."""
        neighbours, book, height = self._neighbours, self._book, self._book.chain.head.height
        if not neighbours.may_seal(self._mono_ms()):
            return
        # Of what has waited the first block alone rests on answers, which soon are not fresh.
        book.release(first_only=not neighbours.free)
        if not book.waiting and book.chain.head.height == height:
            stamp = self._clock.stamp()
            book.tick(stamp.boot_ms, stamp)
        if book.chain.head.height > height and not neighbours.may_seal(self._mono_ms()):
            raise StorageError(
                f"the card took more than {FRESH_MS // 1000} s to read the rows of a block: what "
                "neighbours had answered is out of date, and the block is given up",
                hint="nothing is lost, the next start seals it; the card may be failing",
            )
        # On a full card nothing but the running sums knows what has been measured: they go on.
        book.waiting = book.waiting or not (neighbours.free or book.losing)
        if neighbours.free or book.chain.head.height > height:
            log_event(self._logger, logging.INFO, "released", height=book.chain.head.height)
