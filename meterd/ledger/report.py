r"""What a device says of itself to an office: one message, sealed by the meter.

The meter makes the whole content itself, of what it knows; nothing is signed that somebody hands
it, but for one digest that is named as what it is. `side` is the digest of what others say beside
it, such as what a technician's tool has found on the device: bound to this report, and not known
to the meter. No person is in it: of events their kinds and times alone, since details may name
whoever has logged in.

>>> decode_report(b"\x81\x70meterd/report/v2")
Traceback (most recent call last):
    ...
meterd.errors.EncodingError: not a report
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nacl.signing import VerifyKey

from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.account import shaped
from meterd.ledger.encoding import (
    HASH_BYTES,
    MESSAGE_BYTES_MAX,
    Value,
    decode,
    digest,
    encode,
    seal,
    take_apart,
    verify_seal,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nacl.signing import SigningKey

CONTEXT = "meterd/report/v1"
FILE_CONTEXT = "meterd/report-file/v1"
SIDE_CONTEXT = "meterd/doctor/v1"
FILE_BYTES_MAX = 2 * MESSAGE_BYTES_MAX + 64  # the report, and what stands beside it
EVENTS_MAX = 1000  # the newest; each takes some 35 bytes of the 64 KiB
ALARMS_MAX = 64  # there are some twenty kinds
TEXT_LETTERS_MAX = 300  # of an alarm: about twice the longest


class Happened(NamedTuple):
    """An event without its details."""

    number: int
    wall_ms: int
    kind: str


class Report(NamedTuple):
    """What a device says of itself.

    Attributes:
        genesis: Hash of its network's genesis.
        meter: Its name.
        incarnation: Which of its chains.
        at: (boot clock in ms, wall clock in ms, the clock's status) as it was made.
        head: (height, hash, end in Unix seconds) of the last durable block; the end is an empty
            tuple before the first.
        certified: Up to which height neighbours vouch.
        order: (height, hash) of the distributor's last order that it knows.
        software_id: Identifier of the relevant software that runs.
        parameters: Hash of the parameter record in force.
        registers: (OBIS code as people write it, kind, uJ), ascending by code; the open interval
            is in them.
        readings: (accepted, gaps, (kind, dropped) …) since its start.
        alarms: (kind, text) of those that stand.
        events: (number of all events, digest of their stream, since when in Unix seconds, how many
            since then are left out).
        happened: Events since then, the oldest first.
        side: SHA-256 of what others say beside it; empty where nobody does.
    """

    genesis: bytes
    meter: str
    incarnation: int
    at: tuple[int, int, str]
    head: tuple[int, bytes, tuple[int, ...]]
    certified: int
    order: tuple[int, bytes]
    software_id: bytes
    parameters: bytes
    registers: tuple[tuple[str, int, int], ...]
    readings: tuple[int, int, tuple[tuple[str, int], ...]]
    alarms: tuple[tuple[str, str], ...]
    events: tuple[int, bytes, int, int]
    happened: tuple[Happened, ...]
    side: bytes

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        happened: Value = [tuple(one) for one in self.happened]
        return encode([CONTEXT, *self[:-2], happened, self.side])


def decode_report(data: bytes) -> Report:
    """Return the report that `data`, bytes from outside, spells.

    Raises:
        EncodingError: Not a report.
    """
    value = decode(data)
    shape = (str, bytes, str, int, tuple, tuple, int, tuple, bytes, bytes, tuple, tuple, tuple)
    if not shaped(value, *shape, tuple, tuple, bytes) or value[0] != CONTEXT:
        raise EncodingError("not a report")
    report = Report(*value[1:])
    head, readings = report.head, report.readings
    if not (
        len(report.genesis) == HASH_BYTES
        and shaped(report.at, int, int, str)
        and report.at[2] in {"S", "I", "R"}
        and shaped(head, int, bytes, tuple)
        and (shaped(head[2], int) or head[2] == ())
        and shaped(report.order, int, bytes)
        and all(shaped(one, str, int, int) for one in report.registers)
        and shaped(readings, int, int, tuple)
        and all(shaped(one, str, int) for one in readings[2])
        and all(shaped(one, str, str) for one in report.alarms)
        and shaped(report.events, int, bytes, int, int)
        and all(shaped(one, int, int, str) for one in report.happened)
        and len(report.side) in {0, HASH_BYTES}
    ):
        raise EncodingError("not a report: a part of it is misshapen")
    return report._replace(happened=tuple(Happened(*one) for one in report.happened))


def seal_report(report: Report, key: SigningKey) -> bytes:
    """Return the report under the meter's seal.

    Raises:
        EncodingError: It is longer than a message may be.
    """
    return seal(report.encode(), key, report.genesis)


def open_report(message: bytes, sealer: bytes) -> Report:
    """Return the report in `message`, once its seal has been verified.

    Args:
        message: A COSE_Sign1 from outside.
        sealer: The meter's public key. Whose network it is says the report: compare it.

    Raises:
        EncodingError: It is no sealed report.
        BlockRejectedError: It is not sealed with this key.
    """
    sealed = take_apart(message)
    report = decode_report(sealed.payload)
    verify_seal(sealed, VerifyKey(sealer), report.genesis)
    return report


# --- the file -------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """One thing that the tool beside the meter says it has found."""

    check: str
    verdict: str
    found: str
    todo: str


def encode_side(claims: Sequence[Claim]) -> bytes:
    """Return what stands beside a report, as its digest is taken."""
    rows: Value = [list(claim) for claim in claims]
    return encode([SIDE_CONTEXT, rows])


def encode_file(message: bytes, side: bytes) -> bytes:
    """Return a report's file: what the meter sealed, and what was said beside it (or nothing)."""
    return encode([FILE_CONTEXT, message, side])


def decode_file(data: bytes) -> tuple[bytes, bytes]:
    """Return the sealed report in a file, and what stands beside it; neither is verified.

    Raises:
        EncodingError: It is no such file.
    """
    value = decode(data, bytes_max=FILE_BYTES_MAX)
    if not shaped(value, str, bytes, bytes) or value[0] != FILE_CONTEXT:
        raise EncodingError("not a report's file")
    return value[1], value[2]


def decode_side(side: bytes, report: Report) -> tuple[Claim, ...]:
    """Return what was said beside a report, once it is known to be what was said then.

    Raises:
        BlockRejectedError: The report names another digest: it was changed, added or taken away.
        EncodingError: It is misshapen.
    """
    if (digest(side) if side else b"") != report.side:
        raise BlockRejectedError("what stands beside the report is not what stood there")
    if not side:
        return ()
    value = decode(side)
    if not shaped(value, str, tuple) or value[0] != SIDE_CONTEXT:
        raise EncodingError("what stands beside the report is no findings")
    if not all(shaped(one, str, str, str, str) for one in value[1]):
        raise EncodingError("what stands beside the report has a misshapen finding")
    return tuple(Claim(*one) for one in value[1])
