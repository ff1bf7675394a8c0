"""What a voter answers a meter that has started, and what it thereby promises.

The answer says: this is the highest block of yours that I hold, and for `PROMISE_MS` I attest
nothing above it. Any quorum has one of those in it who answered, and are honest; so what the meter
seals meanwhile stands below no certificate. A promise is durable before the answer leaves; after a
start each that is kept holds for as long again. An epoch is closed once those made in it have
lapsed: the next committee knows nothing of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meterd.authority.boot import PROMISE_MS
from meterd.authority.certificate import open_enrolled
from meterd.authority.effects import PutPromise
from meterd.authority.messages import HeadHeld
from meterd.errors import BlockRejectedError
from meterd.ledger.encoding import digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterd.authority.messages import AskHead
    from meterd.authority.node import Node
    from meterd.authority.witness import Held, Vote


class Given(NamedTuple):
    """A promise.

    Attributes:
        until_ms: When it lapses, by the clock of `Now`; None while that is not known.
        incarnation: Of which chain; 0 where none was held.
        height: Above which nothing is attested.
    """

    until_ms: int | None
    incarnation: int
    height: int

    def timed(self, until_ms: int) -> Given:
        """Return it with its time, `until_ms` where none is known."""
        return self if self.until_ms is not None else self._replace(until_ms=until_ms)


class Promises:
    """The promises of one node that have not lapsed."""

    def __init__(self, node: Node, kept: Iterable[tuple[str, int, int]]) -> None:
        """Go on with those that the store holds: (meter, incarnation, height).

        Since when they hold nobody knows: they do from the first `lapse` on.
        """
        self._node = node
        self._kept = {meter: (incarnation, height) for meter, incarnation, height in kept}
        self._given: dict[str, list[Given]] = {
            meter: [Given(None, *place)] for meter, place in self._kept.items()
        }

    @property
    def any(self) -> bool:
        """Whether one has not lapsed."""
        return bool(self._given)

    def lapse(self) -> list[str]:
        """Forget those whose time is over; return their meters."""
        now_ms, over = self._node.now.mono_ms, []
        for meter, given in list(self._given.items()):
            timed = [each.timed(now_ms + PROMISE_MS) for each in given]
            still = [each for each in timed if each.until_ms is None or each.until_ms > now_ms]
            if len(still) < len(given):
                over.append(meter)
            if still:
                self._given[meter] = still
            else:
                del self._given[meter]
        return over

    def allowed(self, held: Held) -> int:
        """Return up to which height of a chain none forbids to attest."""
        meter, incarnation = held.chain_id
        height = held.height
        for given in self._given.get(meter, ()):
            if given.incarnation < incarnation:
                return 0
            if given.incarnation == incarnation:
                height = min(height, given.height)
        return height

    def answer(self, question: AskHead, held: Held, own: Vote | None) -> None:
        """Answer a meter, and promise: beside what was promised before, until that lapses.

        Args:
            question: What its device asks.
            held: Its newest chain as it is held here.
            own: This node's last attestation there, if there is one.
        """
        place = _foremost(self._node, held)
        if own is not None and own.leaf.height > place[1]:
            place = (own.leaf.incarnation, own.leaf.height, own.leaf.block_hash)
        meter = question.meter
        given = self._given.setdefault(meter, [])
        kept = self._kept.get(meter)
        if kept is None or not given or place[:2] < kept:  # else the lower one is there
            self._kept[meter] = place[:2]
            if kept != place[:2]:
                self._node.records.append(PutPromise(meter, *place[:2]))
        until_ms = self._node.now.mono_ms + PROMISE_MS
        given[:] = [each for each in given if each[1:] != place[:2] or each.until_ms is None]
        given.append(Given(until_ms, *place[:2]))
        order = (self._node.roster.head.height, self._node.roster.head.order_hash)
        body = HeadHeld(self._node.epoch, order, meter, question.nonce, *place)
        self._node.say(f"answer/{meter}", body)


def _foremost(node: Node, held: Held) -> tuple[int, int, bytes]:
    """Return the highest of a meter's blocks that is here, even if it only waits here.

    One that waits for those before it may be attested as soon as they come: a meter that was not
    told of it would seal another in its place meanwhile.
    """
    for _, message in sorted(held.waiting.items(), reverse=True):
        try:
            block, payload = open_enrolled(message, node.roster)
        except BlockRejectedError:  # anybody may have sent it
            continue
        return block.incarnation, block.height, digest(payload)
    if not held.height:
        return 0, 0, bytes(32)
    return held.chain_id[1], held.height, held.head_hash
