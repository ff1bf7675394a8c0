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
from meterd.ledger.encoding import (
    ARRAYS,
    HASH_BYTES,
    UINT_MAX,
    digest,
    read,
    spell_text,
    spell_uint,
)
from meterd.metering.energy import obis_code

BLOCK_CONTEXT = "meterd/block/v1"
BLOCK_BYTES_MAX = 4096  # about 330 bytes and 30 for each register, of which a board has 9
UJ_BYTES = 8
UJ_MAX = 2**63 - 1
OBIS_BYTES = 6
BOOT_ID_BYTES = 16
REGISTERS_MAX = 120  # for so many BLOCK_BYTES_MAX has room
METER_CHARS_MAX = 32  # what else a name may not be is refused where meters are known
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
        """Return the canonical bytes: what is sealed and hashed.

        Raises:
            EncodingError: A number, a length or the clock's status has no place in the format.
        """
        _check(self)
        return _spell(self)

    @property
    def hash(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return digest(self.encode())


# What has one length in every block is spelt with its head.
_HASH = b"\x58\x20"
_BEGIN = ARRAYS[15] + spell_text(BLOCK_CONTEXT) + _HASH
_ORDER = _COUNT = ARRAYS[2]
_CLOCK, _BOOT_ID = ARRAYS[5], b"\x50"
_OBIS, _UJ = ARRAYS[4] + b"\x46", b"\x48"


def _spell(block: Block) -> bytes:
    """Return the one spelling of a block that `_check` has passed.

    Not by the library: each block that comes is spelt again, to compare, and the library took a
    fifth of all the time that is spent on one.
    """
    (genesis, meter, incarnation, height, previous, (order, order_hash), start_s, end_s) = block[:8]
    (clock, parameters, records, fingerprint, events, events_digest, energy, flags) = block[8:]
    status, error_ms, boot_id, boot_ms, measured_ms = clock
    uint = spell_uint
    parts = [
        *(_BEGIN, genesis, spell_text(meter), uint(incarnation), uint(height), _HASH, previous),
        *(_ORDER, uint(order), _HASH, order_hash, uint(start_s), uint(end_s)),
        *(_CLOCK, spell_text(status), uint(error_ms), _BOOT_ID, boot_id, uint(boot_ms)),
        *(uint(measured_ms), _HASH, parameters, _COUNT, uint(records), _HASH, fingerprint),
        *(_COUNT, uint(events), _HASH, events_digest, ARRAYS[len(energy)]),
    ]
    for obis, kind, first_uj, last_uj in energy:
        first, last = first_uj.to_bytes(UJ_BYTES, "big"), last_uj.to_bytes(UJ_BYTES, "big")
        parts += (_OBIS, obis, uint(kind), _UJ, first, _UJ, last)
    parts.append(uint(flags))
    return b"".join(parts)


def _check(block: Block) -> None:
    """Check that each field has its place in the format.

    Raises:
        EncodingError: One has not; the message says which.
    """
    clock, energy = block.clock, block.energy
    numbers = (
        *(block.incarnation, block.height, block.order[0], block.start_s, block.end_s),
        *(clock.error_ms, clock.boot_ms, clock.measured_ms),
        *(block.records, block.events, block.flags),
    )
    if min(numbers) < 0 or max(numbers) > UINT_MAX:
        raise EncodingError("a number in the block is not unsigned, or not below 2^64")
    hashes = (
        *(block.genesis, block.previous, block.order[1]),
        *(block.parameters, block.fingerprint, block.events_digest),
    )
    if {*map(len, hashes)} != {HASH_BYTES} or len(clock.boot_id) != BOOT_ID_BYTES:
        raise EncodingError("a hash in the block is not 32 bytes, or its boot id not 16")
    if clock.status not in _STATUSES:
        raise EncodingError(f"expected clock status S, I or R, got {clock.status[:8]}")
    if len(block.meter) > METER_CHARS_MAX:
        raise EncodingError(f"the meter's name has more than {METER_CHARS_MAX} characters")
    if not energy:
        raise EncodingError("the block has no register")
    if len(energy) > REGISTERS_MAX:
        raise EncodingError(f"the block has more than {REGISTERS_MAX} registers")
    for obis, kind, first_uj, last_uj in energy:
        if len(obis) != OBIS_BYTES or not 0 <= kind <= UINT_MAX:
            raise EncodingError("a register of the block is misshapen")
        if not (0 <= first_uj <= UJ_MAX and 0 <= last_uj <= UJ_MAX):
            raise EncodingError(f"register {obis_code(obis)} has more than 63 bits")


_SHAPE = (str, bytes, str, int, int, bytes, tuple, int, int, tuple, bytes, tuple, tuple, tuple, int)


_INNER = (int, bytes, str, int, bytes, int, int, int, bytes, int, bytes)
_ENERGY_SHAPE = (bytes, int, bytes, bytes)


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
    value = read(data)
    if not _exactly(value, _SHAPE):
        raise EncodingError("not a block")
    context, genesis, meter, incarnation, height, previous, order, start_s, end_s = value[:9]
    clock, parameters, records, events, energy, flags = value[9:]
    if context != BLOCK_CONTEXT:
        raise EncodingError(f"expected {BLOCK_CONTEXT}, got {context[:40]}")
    lengths = (len(order), len(clock), len(records), len(events))
    if lengths != (2, 5, 2, 2) or not _exactly((*order, *clock, *records, *events), _INNER):
        raise EncodingError("order, clock, records or events of the block are misshapen")
    head = (genesis, meter, incarnation, height, previous, order, start_s, end_s)
    tail = (Clock(*clock), parameters, *records, *events, _decode_energy(energy), flags)
    block = Block(*head, *tail)
    _check(block)
    if _spell(block) != data:
        raise EncodingError("not the shortest spelling of its value")
    return block


def _decode_energy(entries: tuple[Any, ...]) -> tuple[Energy, ...]:
    result, number = [], int.from_bytes
    for entry in entries:
        if not _exactly(entry, _ENERGY_SHAPE) or not len(entry[2]) == len(entry[3]) == UJ_BYTES:
            raise EncodingError("a register of the block is misshapen")
        obis, kind, first, last = entry
        result.append(Energy(obis, kind, number(first, "big"), number(last, "big")))
    return tuple(result)
