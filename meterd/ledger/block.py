"""One sealed interval of one meter: its fields, its bytes, and the rules inside it.

>>> block = Block(
...     genesis=bytes(32), meter="kitchen-12", incarnation=1, height=1, previous=bytes(32),
...     order=(0, bytes(32)), start_s=0, end_s=1800,
...     clock=Clock(status="S", error_ms=0, boot_id=bytes(16), boot_ms=1_800_000,
...                 measured_ms=1_800_000),
...     parameters=bytes(32), records=900, fingerprint=bytes(32), events=2, events_digest=bytes(32),
...     energy=(Energy(bytes((1, 0, 1, 8, 0, 255)), 0, 0, 5),), flags=0)
>>> decode_block(block.encode()) == block
True
"""

from __future__ import annotations

from typing import Any, NamedTuple

from meterd.errors import EncodingError
from meterd.ledger.encoding import HASH_BYTES, UINT_MAX, digest, encode, spelt
from meterd.metering.energy import obis_code

BLOCK_CONTEXT = "meterd/block/v1"
BLOCK_BYTES_MAX = 4096  # about 330 bytes and 30 for each register, of which a board has 9
UJ_BYTES = 8
UJ_MAX = 2**63 - 1
OBIS_BYTES = 6
BOOT_ID_BYTES = 16
_STATUSES = ("S", "I", "R")


class Energy(NamedTuple):
    """One register over a block.

    Attributes:
        obis: The code's six bytes (IEC 62056-6-1).
        kind: 0 measured, 1 estimated.
        first_uj: The register at the block's start; equals the previous block's last.
        last_uj: The register at its end.
    """

    obis: bytes
    kind: int
    first_uj: int
    last_uj: int


class Clock(NamedTuple):
    """What the meter knew of the time.

    Attributes:
        status: The worst in the block: S synchronised, I informative, R relative (OCMF's letters).
        error_ms: The worst error that the kernel estimated.
        boot_id: Which boot, 16 bytes.
        boot_ms: Boot clock at which the block's energy ends; 0 where nothing was measured.
        measured_ms: How long power was really measured.
    """

    status: str
    error_ms: int
    boot_id: bytes
    boot_ms: int
    measured_ms: int


class Block(NamedTuple):
    """A closed interval, before its seal. A tuple for speed: an audit handles a year of them.

    Attributes:
        genesis: Hash of the network's genesis.
        incarnation: Which chain of this meter.
        height: 1 for the first.
        previous: Hash of the block before; for the first, of genesis.
        order: Height and hash of the last order that the meter knew; (0, genesis hash) without one.
        start_s: Unix seconds; the previous block's end.
        end_s: Unix seconds.
        parameters: Hash of the parameter record that it was measured under.
        records: Rows of the samples stream that it takes.
        fingerprint: SHA-256 over the interval's seed and those rows (Pop et al. 2019, Algorithm 1).
        events: Number of events in the events stream when it was sealed.
        events_digest: Digest of the events stream up to there.
        energy: Its registers, ascending by code.
        flags: Sum of 1 gap, 2 partial, 4 clock stepped, 8 estimated, 16 samples lost, 32 rebased.
    """

    genesis: bytes
    meter: str
    incarnation: int
    height: int
    previous: bytes
    order: tuple[int, bytes]
    start_s: int
    end_s: int
    clock: Clock
    parameters: bytes
    records: int
    fingerprint: bytes
    events: int
    events_digest: bytes
    energy: tuple[Energy, ...]
    flags: int

    def encode(self) -> bytes:
        """Return the canonical bytes: what is sealed and hashed."""
        return encode(
            [
                BLOCK_CONTEXT,
                self.genesis,
                self.meter,
                self.incarnation,
                self.height,
                self.previous,
                list(self.order),
                self.start_s,
                self.end_s,
                list(self.clock),
                self.parameters,
                [self.records, self.fingerprint],
                [self.events, self.events_digest],
                [
                    [
                        e.obis,
                        e.kind,
                        e.first_uj.to_bytes(UJ_BYTES, "big"),
                        e.last_uj.to_bytes(UJ_BYTES, "big"),
                    ]
                    for e in self.energy
                ],
                self.flags,
            ]
        )

    @property
    def hash(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return digest(self.encode())


_SHAPE = (str, bytes, str, int, int, bytes, tuple, int, int, tuple, bytes, tuple, tuple, tuple, int)


_CLOCK, _COUNTED, _ENERGY = (str, int, bytes, int, int), (int, bytes), (bytes, int, bytes, bytes)


def _exactly(value: Any, kinds: tuple[type, ...]) -> bool:  # noqa: ANN401 - any decoded value
    """Say whether `value` is an array of these kinds, and of nothing like them: no truth value."""
    return type(value) is tuple and tuple(map(type, value)) == kinds


def decode_block(data: bytes) -> Block:
    """Return the block that `data`, bytes from outside, spells.

    Raises:
        EncodingError: Not a block of this version, or not in its one spelling.
    """
    if len(data) > BLOCK_BYTES_MAX:
        raise EncodingError(f"expected at most {BLOCK_BYTES_MAX} bytes, got {len(data)}")
    value = spelt(data)
    if not _exactly(value, _SHAPE):
        raise EncodingError("not a block")
    context, genesis, meter, incarnation, height, previous, order, start_s, end_s = value[:9]
    clock, parameters, records, events, energy, flags = value[9:]
    if context != BLOCK_CONTEXT:
        raise EncodingError(f"expected {BLOCK_CONTEXT}, got {context[:40]}")
    if not (
        _exactly(order, _COUNTED)
        and _exactly(clock, _CLOCK)
        and _exactly(records, _COUNTED)
        and _exactly(events, _COUNTED)
    ):
        raise EncodingError("order, clock, records or events of the block are misshapen")
    numbers = (incarnation, height, start_s, end_s, order[0], *clock[3:], records[0], events[0])
    numbers += (clock[1], flags)
    if min(numbers) < 0 or max(numbers) > UINT_MAX:
        raise EncodingError("a number in the block is not unsigned, or not below 2^64")
    hashes = (genesis, previous, order[1], parameters, records[1], events[1])
    if {*map(len, hashes)} != {HASH_BYTES} or len(clock[2]) != BOOT_ID_BYTES:
        raise EncodingError("a hash in the block is not 32 bytes, or its boot id not 16")
    if clock[0] not in _STATUSES:
        raise EncodingError(f"expected clock status S, I or R, got {clock[0][:8]}")
    return Block(
        genesis=genesis,
        meter=meter,
        incarnation=incarnation,
        height=height,
        previous=previous,
        order=order,
        start_s=start_s,
        end_s=end_s,
        clock=Clock(*clock),
        parameters=parameters,
        records=records[0],
        fingerprint=records[1],
        events=events[0],
        events_digest=events[1],
        energy=_decode_energy(energy),
        flags=flags,
    )


def _decode_energy(entries: tuple[Any, ...]) -> tuple[Energy, ...]:
    result = []
    for entry in entries:
        if (
            not _exactly(entry, _ENERGY)
            or not 0 <= entry[1] <= UINT_MAX
            or len(entry[0]) != OBIS_BYTES
            or len(entry[2]) != UJ_BYTES
            or len(entry[3]) != UJ_BYTES
        ):
            raise EncodingError("a register of the block is misshapen")
        first_uj, last_uj = int.from_bytes(entry[2], "big"), int.from_bytes(entry[3], "big")
        if max(first_uj, last_uj) > UJ_MAX:
            raise EncodingError(f"register {obis_code(entry[0])} has more than 63 bits")
        result.append(Energy(entry[0], entry[1], first_uj, last_uj))
    if not result:
        raise EncodingError("the block has no register")
    return tuple(result)
