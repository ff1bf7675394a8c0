"""Events that excuse what is missing: samples that were pruned, and those of a card put back.

Each is sealed by itself: links have no key, and whoever writes the card could say so of samples
that it took away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from meterd.errors import EncodingError
from meterd.ledger.account import shaped
from meterd.ledger.encoding import SIGNATURE_BYTES, decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nacl.signing import SigningKey

    from meterd.ledger.chain import Chain
    from meterd.ledger.encoding import Value
    from meterd.ledger.event import Details, Event

PRUNED_CONTEXT = "meterd/pruned/v1"
RECOVERED_CONTEXT = "meterd/recovered/v1"


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


class Recovered(NamedTuple):
    """That an account begins anew behind blocks that neighbours gave back.

    The first event of the new streams. What the card held itself lies beside them.

    Attributes:
        height: Of the last block given back: no row and no event before is here.
        block_hash: Its hash.
        run: Number of the start that asked.
        measured_ms: How long that start had measured by then.
        carried: (OBIS code, kind, uJ) that it had measured, which the next block counts.
        parameters: Hash of the parameter record that it goes on under, the first event behind
            this one; empty in an account that began anew before meterd said so.
    """

    height: int
    block_hash: bytes
    run: int
    measured_ms: int
    carried: tuple[tuple[bytes, int, int], ...]
    parameters: bytes = b""


def _signed(context: str, fields: Sequence[Value], chain: Chain) -> bytes:
    return encode([context, chain.genesis, chain.meter, chain.incarnation, *fields])


def _verify(event: Event, signed: bytes, chain: Chain) -> None:
    seal, wrong = event.bytes_of("seal"), f"event {event.number} is not sealed by this meter"
    if len(seal) != SIGNATURE_BYTES:
        raise EncodingError(wrong)
    for key in (chain.sealer, *(key for _, key in chain.keys)):
        try:
            VerifyKey(key).verify(signed, seal)
        except BadSignatureError:
            continue
        return
    raise EncodingError(wrong)


def _fields(recovered: Recovered) -> list[Value]:
    fields: list[Value] = [*recovered[:4], [list(one) for one in recovered.carried]]
    return [*fields, recovered.parameters] if recovered.parameters else fields


def seal_recovered(recovered: Recovered, chain: Chain, key: SigningKey) -> Details:
    """Return the details of an event `recovered`, sealed by the meter's key."""
    signature = key.sign(_signed(RECOVERED_CONTEXT, _fields(recovered), chain)).signature
    return (
        ("height", recovered.height),
        ("hash", recovered.block_hash),
        ("run", recovered.run),
        ("measured_ms", recovered.measured_ms),
        ("carried", encode([list(one) for one in recovered.carried])),
        *((("parameters", recovered.parameters),) if recovered.parameters else ()),
        ("seal", signature),
    )


def read_recovered(event: Event, chain: Chain) -> Recovered:
    """Return what an event `recovered` says.

    Raises:
        EncodingError: It does not say it all, or this meter did not seal it.
    """
    carried = decode(event.bytes_of("carried"))
    if type(carried) is not tuple or not all(shaped(one, bytes, int, int) for one in carried):
        raise EncodingError(f"event {event.number} carries what is no register")
    recovered = Recovered(
        event.number_of("height"),
        event.bytes_of("hash"),
        event.number_of("run"),
        event.number_of("measured_ms"),
        carried,
        event.bytes_of("parameters") if "parameters" in dict(event.details) else b"",
    )
    _verify(event, _signed(RECOVERED_CONTEXT, _fields(recovered), chain), chain)
    return recovered


def seal_pruned(pruned: Pruned, chain: Chain, key: SigningKey) -> Details:
    """Return the details of an event `pruned`, sealed by the meter's key."""
    signature = key.sign(_signed(PRUNED_CONTEXT, pruned, chain)).signature
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
    _verify(event, _signed(PRUNED_CONTEXT, pruned, chain), chain)
    return pruned
