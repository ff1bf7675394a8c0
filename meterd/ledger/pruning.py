"""The event that says that samples were pruned.

It is sealed by itself: links have no key, and whoever writes the card could say so of samples that
it took away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from meterd.errors import EncodingError
from meterd.ledger.encoding import SIGNATURE_BYTES, encode

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from meterd.ledger.chain import Chain
    from meterd.ledger.event import Details, Event

PRUNED_CONTEXT = "meterd/pruned/v1"


class Pruned(NamedTuple):
    """A samples segment that is gone.

    Attributes:
        segment: Its number.
        rows: How many it had.
        digest: Its full digest, as the next segment's header names it.
    """

    segment: int
    rows: int
    digest: bytes


def _message(pruned: Pruned, chain: Chain) -> bytes:
    return encode([PRUNED_CONTEXT, chain.genesis, chain.meter, chain.incarnation, *pruned])


def seal_pruned(pruned: Pruned, chain: Chain, key: SigningKey) -> Details:
    """Return the details of an event `pruned`, sealed by the meter's key."""
    signature = key.sign(_message(pruned, chain)).signature
    return (
        ("segment", pruned.segment),
        ("rows", pruned.rows),
        ("digest", pruned.digest),
        ("seal", signature),
    )


def read_pruned(event: Event, chain: Chain) -> Pruned:
    """Return what an event `pruned` says.

    Raises:
        EncodingError: It does not say it all, or this meter did not seal it.
    """
    pruned = Pruned(event.number_of("segment"), event.number_of("rows"), event.bytes_of("digest"))
    seal, wrong = event.bytes_of("seal"), f"event {event.number} is not sealed by this meter"
    if len(seal) != SIGNATURE_BYTES:
        raise EncodingError(wrong)
    try:
        VerifyKey(chain.sealer).verify(_message(pruned, chain), seal)
    except BadSignatureError as error:
        raise EncodingError(wrong) from error
    return pruned
