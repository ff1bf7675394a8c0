"""One example of each message between peers, from which a test's case differs in one thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.messages import (
    AskBatches,
    AskBlocks,
    AskCertificate,
    AskClosings,
    AskEvidence,
    AskHead,
    AskOwnBatch,
    Body,
    Digest,
    Fetch,
    HeadHeld,
    OwnBatch,
    Refusal,
    Said,
    say,
)
from meterd.ledger.encoding import key_id
from tests.authority.examples import FIRST_BLOCK, GENESIS, HOUSE, key, public

if TYPE_CHECKING:
    from collections.abc import Mapping

SENDER = "feeder-1"
COUNTER = 3 << 32 | 1  # its third start, the first thing it said since
NONCE = bytes(range(16))
KID = key_id(public("feeder-1 votes"))
ORDER = (0, GENESIS.hash)
BODIES: Mapping[str, Body] = {
    "digest": Digest(
        order=ORDER,
        heads=((HOUSE, 1, 1, FIRST_BLOCK.hash),),
        batches=((KID, 4, bytes(range(32))),),
        evidence=(bytes(range(1, 33)),),
    ),
    "fetch": Fetch(
        to=HOUSE,
        questions=(
            AskBlocks(HOUSE, 1, 1, 7),
            AskBatches(KID, 2, 4),
            AskEvidence(bytes(range(1, 33))),
            AskOwnBatch(KID, NONCE),
            AskHead(HOUSE, NONCE),
            AskCertificate("grid-co", 1, 2),
            AskClosings(1),
        ),
    ),
    "own-batch": OwnBatch(1, ORDER, KID, NONCE, 4, bytes(range(32))),
    "head": HeadHeld(1, ORDER, HOUSE, NONCE, 1, 1, FIRST_BLOCK.hash),
    "refusal": Refusal(HOUSE, 1, 1, FIRST_BLOCK.hash, "expected height 2, got 1"),
}


def message_of(
    kind: str, *, by: str = "", sender: str = SENDER, genesis: bytes = GENESIS.hash
) -> bytes:
    """Return the message of the example of this kind, under the sender's key unless told."""
    said = Said(sender, COUNTER, BODIES[kind])
    return say(said, key(by or f"{sender} votes"), genesis)
