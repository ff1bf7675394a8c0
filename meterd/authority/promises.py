"""What a voter answers a meter that has started, and what it thereby promises.

The answer says: this is the highest block of yours that I hold, and for `PROMISE_MS` I attest
nothing above it. Any quorum has one of those in it who answered, and are honest; so what the meter
seals meanwhile stands below no certificate. A promise is durable before the answer leaves; after a
start each that is kept holds for as long again. An epoch is closed once those made in it have
lapsed: the next committee knows nothing of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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


class Promises:
    """The promises of one node that have not lapsed."""

    def __init__(self, node: Node, kept: Iterable[tuple[str, int, int]]) -> None:
        """Go on with those that the store holds: (meter, incarnation, height).

        Since when they hold nobody knows: they do from the first `lapse` on.
        """
        self._node = node
        self._kept = {meter: (incarnation, height) for meter, incarnation, height in kept}
        self._until_ms: dict[str, int | None] = dict.fromkeys(self._kept)

    @property
    def any(self) -> bool:
        """Whether one has not lapsed."""
        return bool(self._until_ms)

    def lapse(self) -> list[str]:
        """Forget those whose time is over; return their meters."""
        now_ms, over = self._node.now.mono_ms, []
        for meter, until_ms in list(self._until_ms.items()):
            if until_ms is None:
                self._until_ms[meter] = now_ms + PROMISE_MS
            elif until_ms <= now_ms:
                del self._until_ms[meter]
                over.append(meter)
        return over

    def allowed(self, held: Held) -> int:
        """Return up to which height of a chain none forbids to attest."""
        meter, incarnation = held.chain_id
        if meter not in self._until_ms:
            return held.height
        promised = self._kept[meter]
        if promised[0] == incarnation:
            return min(held.height, promised[1])
        return held.height if promised[0] > incarnation else 0

    def answer(self, question: AskHead, held: Held | None, own: Vote | None) -> None:
        """Answer a meter, and promise.

        Args:
            question: What its device asks.
            held: Its newest chain as it is held here, if it is.
            own: This node's last attestation there, if there is one.
        """
        place = _foremost(self._node, held) if held is not None else (0, 0, bytes(32))
        if own is not None and own.leaf.height > place[1]:
            place = (own.leaf.incarnation, own.leaf.height, own.leaf.block_hash)
        meter = question.meter
        if self._kept.get(meter) != place[:2]:
            self._kept[meter] = place[:2]
            self._node.records.append(PutPromise(meter, *place[:2]))
        self._until_ms[meter] = self._node.now.mono_ms + PROMISE_MS
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
