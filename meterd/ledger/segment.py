"""The three append-only streams as they lie on the card: segments, headers, links.

A segment is a CBOR header, 8 bytes of its SHA-256, then rows of one fixed size (samples) or
frames (events and blocks: length in 4 bytes big-endian, body). Each row and frame is followed by
its link. The link of record k is SHA-256 over the segment's seed and every stored byte up to
record k, earlier links included, cut to 8 bytes: it locates damage (Pop et al. 2019, Algorithm 1,
with the hash's own state as H(k-1)). A header names the full digest and the counted length of the
segment before, so what lies past the counted length is a torn tail and nothing else.

>>> header = FrameHeader(stream="events", genesis=bytes(32), meter="m", incarnation=1, number=1,
...                      previous_digest=bytes(32), previous_bytes=0, secret=bytes(32))
>>> data = header.stored() + Linker(header.encode()).frame(b"started")
>>> walk = walk_frames(data, header)
>>> [frame.body for frame in walk], walk.damage
([b'started'], None)
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import EncodingError
from meterd.ledger.account import shaped
from meterd.ledger.encoding import decode_first, encode
from meterd.ledger.row import LINK_BYTES, ROW_CLAMP, ROW_FIXED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STREAMS = ("samples", "events", "blocks")
HEADER_BYTES_MAX = 2048  # about 250 bytes, and 9 for each register
SECRET_BYTES = 32
SALT_BYTES = 16
LENGTH_BYTES = 4
FRAME_BYTES_MAX = 16_384  # the longest event is a parameter record, about 2 kB
SEED_TAG = b"meterd/interval/v1"


def _context(stream: str) -> str:
    return f"meterd/{stream}/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader:
    """The header of a segment of events or blocks.

    Attributes:
        number: 1 for the stream's first segment.
        previous_digest: Full digest of the segment before at its counted length; zeros at first.
        previous_bytes: That length.
        secret: 32 random bytes; keeps links of two devices apart.
    """

    stream: str
    genesis: bytes
    meter: str
    incarnation: int
    number: int
    previous_digest: bytes
    previous_bytes: int
    secret: bytes

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return encode([*_common(self), self.secret])

    def stored(self) -> bytes:
        """Return the bytes that a segment begins with."""
        return stored_header(self.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleHeader:
    """The header of a segment of samples: all that auditing the segment by itself needs.

    Attributes:
        parameters: Hash of the parameter record in force.
        boot_id: Which boot, 16 bytes.
        run: Number of the daemon's start in this account, 1 for the first.
        base_ms: Boot clock of the row before the first.
        sums: Running sums at that row, half uJ, in the order of the parameters' registers.
        before: That row without its link, if it belongs to the same run; else empty.
        row_bytes: Size of a row with its link.
        secret: HMAC key of the intervals' salts; disclosed at an audit alone.
    """

    stream: str = "samples"
    genesis: bytes
    meter: str
    incarnation: int
    number: int
    previous_digest: bytes
    previous_bytes: int
    parameters: bytes
    boot_id: bytes
    run: int
    base_ms: int
    sums: tuple[int, ...]
    before: bytes
    row_bytes: int
    secret: bytes

    def encode(self, *, secret: bool = True) -> bytes:
        """Return the canonical bytes, or those without the secret."""
        parts = [
            *_common(self),
            self.parameters,
            self.boot_id,
            self.run,
            self.base_ms,
            list(self.sums),
            self.before,
            self.row_bytes,
        ]
        return encode([*parts, self.secret] if secret else parts)

    def stored(self) -> bytes:
        """Return the bytes that a segment begins with."""
        return stored_header(self.encode())

    def seed(self, first_row: int) -> bytes:
        """Return the seed of an interval's rows from row `first_row` of this segment on.

        SHA-256 over the tag, the header without its secret (which names genesis and meter), and
        the salt, so that a constant idle load cannot be guessed from a fingerprint. A
        fingerprint is SHA-256 over seed and rows, for each segment that the interval lies in.
        """
        return sha256(SEED_TAG + _encoded_openly(self) + self.salt(first_row)).digest()

    def salt(self, first_row: int) -> bytes:
        """Return the salt of the interval that begins at row `first_row` of this segment."""
        message = first_row.to_bytes(8, "big")
        return hmac.digest(self.secret, message, "sha256")[:SALT_BYTES]


@lru_cache(maxsize=4)
def _encoded_openly(header: SampleHeader) -> bytes:
    """Return a header without its secret: wanted for each interval of a segment."""
    return header.encode(secret=False)


Header = FrameHeader | SampleHeader


def _common(header: Header) -> list[str | int | bytes | list[bytes | int]]:
    return [
        _context(header.stream),
        header.genesis,
        header.meter,
        header.incarnation,
        header.number,
        [header.previous_digest, header.previous_bytes],
    ]


def stored_header(encoded: bytes) -> bytes:
    """Return the bytes of a header as they are stored, its check behind it."""
    return encoded + sha256(encoded).digest()[:LINK_BYTES]


def read_header(data: bytes, stream: str) -> tuple[Header, int]:
    """Return the header that a segment's bytes begin with, and where its records begin.

    Raises:
        EncodingError: It is torn, damaged, or of another stream.
    """
    value, length = decode_first(bytes(data[:HEADER_BYTES_MAX]))
    end = length + LINK_BYTES
    if data[length:end] != sha256(bytes(data[:length])).digest()[:LINK_BYTES]:
        raise EncodingError("the header does not match its check")
    if not isinstance(value, tuple) or not value or value[0] != _context(stream):
        raise EncodingError(f"not the header of a segment of {stream}")
    common = (str, bytes, str, int, int, tuple)
    if stream != "samples":
        if not shaped(value, *common, bytes) or not shaped(value[5], bytes, int):
            raise EncodingError("the header is misshapen")
        return (
            FrameHeader(
                stream=stream,
                genesis=value[1],
                meter=value[2],
                incarnation=value[3],
                number=value[4],
                previous_digest=value[5][0],
                previous_bytes=value[5][1],
                secret=value[6],
            ),
            end,
        )
    if not shaped(value, *common, bytes, bytes, int, int, tuple, bytes, int, bytes) or not (
        shaped(value[5], bytes, int) and all(isinstance(half, int) for half in value[10])
    ):
        raise EncodingError("the header is misshapen")
    header = SampleHeader(
        genesis=value[1],
        meter=value[2],
        incarnation=value[3],
        number=value[4],
        previous_digest=value[5][0],
        previous_bytes=value[5][1],
        parameters=value[6],
        boot_id=value[7],
        run=value[8],
        base_ms=value[9],
        sums=value[10],
        before=value[11],
        row_bytes=value[12],
        secret=value[13],
    )
    if (
        header.row_bytes < ROW_FIXED.size + ROW_CLAMP.size + LINK_BYTES
        or (header.row_bytes - ROW_FIXED.size - LINK_BYTES) % ROW_CLAMP.size
    ):
        raise EncodingError(f"no row has {header.row_bytes} bytes")
    if len(header.before) not in {0, header.row_bytes - LINK_BYTES}:
        raise EncodingError("the row before the header's first is misshapen")
    return header, end


class Linker:
    """Links records of one segment.

    Attributes:
        digest: Full digest at the last record; what the next segment's header names.
    """

    __slots__ = ("_state", "digest")

    def __init__(self, header: bytes) -> None:
        """Begin at the segment's seed, the SHA-256 of its header."""
        self.digest = sha256(header).digest()
        self._state = sha256(self.digest)

    def add(self, body: bytes) -> bytes:
        """Return `body` with its link behind it, as it is stored."""
        state = self._state
        state.update(body)
        self.digest = full = state.copy().digest()
        link = full[:LINK_BYTES]
        state.update(link)
        return body + link

    def rows(self, bodies: Iterable[bytes]) -> bytes:
        """Return `bodies`, each with its link behind it, as they are stored."""
        state, full, link = self._state, self.digest, b""
        stored: list[bytes] = []
        for body in bodies:
            state.update(link + body)
            full = state.copy().digest()
            link = full[:LINK_BYTES]
            stored += (body, link)
        state.update(link)
        self.digest = full
        return b"".join(stored)

    def frame(self, body: bytes) -> bytes:
        """Return `body` as a linked frame.

        Raises:
            EncodingError: It is longer than a frame may be.
        """
        if len(body) > FRAME_BYTES_MAX:
            raise EncodingError(f"expected at most {FRAME_BYTES_MAX} bytes, got {len(body)}")
        return self.add(len(body).to_bytes(LENGTH_BYTES, "big") + body)


class Damage(NamedTuple):
    """The first place of a segment that does not verify.

    Attributes:
        offset: Byte in the segment.
        reason: What is wrong there.
    """

    offset: int
    reason: str


class Frame(NamedTuple):
    """One record of the events or blocks stream.

    Attributes:
        offset: Byte in the segment where it begins.
        end: Byte behind its link.
        digest: Full digest of the segment up to and with it.
    """

    offset: int
    end: int
    body: bytes
    digest: bytes


class walk_frames:  # noqa: N801 - an iterator that is called like a function, with its findings
    """Iterate over the frames of a segment as far as their links hold.

    Attributes:
        end: Byte behind the last frame that holds.
        digest: Full digest there.
        damage: Why the walk ended, or None at the segment's end.
    """

    def __init__(self, data: bytes, header: Header, *, limit: int | None = None) -> None:
        """Walk `data` up to `limit` bytes."""
        encoded = header.encode()
        self._linker = Linker(encoded)
        self._data = data if limit is None else data[:limit]
        self.end = len(encoded) + LINK_BYTES
        self.digest = self._linker.digest
        self.damage: Damage | None = None

    def __iter__(self) -> Iterator[Frame]:
        """Yield each frame that holds."""
        data, linker = self._data, self._linker
        size = len(data)
        while self.end < size:
            at = self.end
            body_at = at + LENGTH_BYTES
            length = int.from_bytes(data[at:body_at], "big")
            link_at = body_at + length
            if body_at > size or length > FRAME_BYTES_MAX or link_at + LINK_BYTES > size:
                self.damage = Damage(at, "a record is cut off or its length is damaged")
                return
            linked = linker.add(bytes(data[at:link_at]))
            if linked[-LINK_BYTES:] != data[link_at : link_at + LINK_BYTES]:
                self.damage = Damage(at, "a record does not match its link")
                return
            self.end, self.digest = link_at + LINK_BYTES, linker.digest
            yield Frame(at, self.end, bytes(data[body_at:link_at]), self.digest)


def find_damaged_row(data: bytes, header: SampleHeader, limit: int) -> tuple[int, Damage | None]:
    """Check every link of a samples segment up to byte `limit`.

    Returns:
        The byte behind the last row that holds, and the damage there or None.
    """
    encoded = header.encode()
    linker = Linker(encoded)
    at = len(encoded) + LINK_BYTES
    size = header.row_bytes
    while at + size <= limit:
        linked = linker.add(bytes(data[at : at + size - LINK_BYTES]))
        if linked[-LINK_BYTES:] != data[at + size - LINK_BYTES : at + size]:
            return at, Damage(at, "a row does not match its link")
        at += size
    return at, Damage(at, "a row is cut off") if at < limit else None
