"""Finds where an account stands, so that metering can go on from there.

Recovery is the ordinary reader: the judge that answers a stranger verifies what has come since the
last checkpoint, and the daemon's own word counts for no more than anybody's. A checkpoint is sealed
with the meter's key; without one, or with a damaged one, the whole account is verified.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nacl.signing import VerifyKey

from meterd.device.archive import open_tools, read_file, read_files
from meterd.device.card import Operation
from meterd.errors import BlockRejectedError, EncodingError, LedgerDamagedError, StorageError
from meterd.ledger.account import shaped
from meterd.ledger.block import Energy
from meterd.ledger.chain import Chain
from meterd.ledger.encoding import decode, encode, seal, take_apart, verify_seal
from meterd.ledger.judge import Findings, Start, judge
from meterd.ledger.segment import STREAMS
from meterd.ledger.stored import End
from meterd.metering.interval import CLOCK_EVENTS, Wall

if TYPE_CHECKING:
    from pathlib import Path

    from nacl.signing import SigningKey


CHECKPOINT_FILE = "checkpoint"
CHECKPOINT_CONTEXT = "meterd/checkpoint/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where an account stood when all its rows were in blocks and all streams began new segments.

    Attributes:
        start: From where a judge goes on.
        run: Number of the daemon's start.
        sums: Running sums, half uJ, by OBIS code.
    """

    start: Start
    run: int
    sums: dict[bytes, int]


def seal_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> bytes:
    """Return the checkpoint's file."""
    start, chain = checkpoint.start, checkpoint.start.chain
    head = chain.head
    payload = encode(
        [
            CHECKPOINT_CONTEXT,
            chain.genesis,
            chain.meter,
            chain.incarnation,
            head.height,
            head.block_hash,
            [] if head.end_s is None else [head.end_s],
            [[e.obis, e.kind, e.first_uj, e.last_uj] for e in head.energy],
            head.parameters,
            list(head.order),
            head.events,
            [list(start.ends[name]) for name in STREAMS],
            start.events,
            list(start.parameters),
            checkpoint.run,
            [[code, half] for code, half in sorted(checkpoint.sums.items())],
            start.cut_ms,
        ]
    )
    return seal(payload, key, chain.genesis)


def open_checkpoint(data: bytes, chain: Chain) -> Checkpoint:
    """Return the checkpoint in `data` for the account that begins with `chain`.

    Raises:
        EncodingError: It is misspelt, or another account's.
        BlockRejectedError: It is not sealed by this meter.
    """
    sealed = take_apart(data)
    verify_seal(sealed, VerifyKey(chain.sealer), chain.genesis)
    value: Any = decode(sealed.payload)
    shape = (str, bytes, str, int, int, bytes, tuple, tuple, bytes, tuple, int, tuple, int, tuple)
    if not shaped(value, *shape, int, tuple, int) or value[0] != CHECKPOINT_CONTEXT:
        raise EncodingError("not a checkpoint")
    if value[1:4] != (chain.genesis, chain.meter, chain.incarnation):
        raise EncodingError("the checkpoint is another account's")
    head = replace(
        chain.head,
        height=value[4],
        block_hash=value[5],
        end_s=value[6][0] if value[6] else None,
        energy=tuple(Energy(*entry) for entry in value[7]),
        parameters=value[8],
        order=value[9],
        events=value[10],
    )
    start = Start(
        chain=replace(chain, head=head),
        ends={name: End(*end) for name, end in zip(STREAMS, value[11], strict=True)},
        events=value[12],
        parameters=value[13],
        cut_ms=value[16],
    )
    return Checkpoint(start=start, run=value[14], sums=dict(value[15]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Where an account stands.

    Attributes:
        found: What the judge found since the checkpoint.
        checkpoint: From where it went on.
        run: Number of the daemon's last start; 0 before the first.
        sums: Running sums at the last block, half uJ, by OBIS code.
        at: Boot clock and quantities of the last point in them, where a row may follow, or None.
        walls: Where the clocks of the runs since the checkpoint stood, by run, if ever known.
        checkpoint_lost: Why the checkpoint could not be used, or an empty text.
    """

    found: Findings
    checkpoint: Checkpoint
    run: int
    sums: dict[bytes, int]
    at: tuple[int, tuple[int, ...]] | None
    walls: dict[int, Wall]
    checkpoint_lost: str


def recover(state: Path, chain: Chain) -> Recovered:
    """Verify the account in `state` since its checkpoint; `chain` is its empty chain.

    Raises:
        LedgerDamagedError: It does not verify: a technician must look.
        StorageError: It cannot be read.
    """
    start = Start(chain=chain, ends={name: End() for name in STREAMS})
    checkpoint, lost = Checkpoint(start=start, run=0, sums={}), ""
    path = state / CHECKPOINT_FILE
    if path.exists():
        try:
            checkpoint = open_checkpoint(read_file(path), chain)
        except (EncodingError, BlockRejectedError, StorageError, ValueError, TypeError) as error:
            lost = str(error)
    after = {name: end.number for name, end in checkpoint.start.ends.items()}
    with open_tools(state) as tools:
        found = judge(read_files(state, after), checkpoint.start, tools)
    bad = found.first_bad
    if bad:
        where = f"{bad.stream} segment {bad.segment}, byte {bad.offset}"
        height = "" if bad.height is None else f", block {bad.height}"
        raise LedgerDamagedError(
            f"the account in {state} does not verify: {where}{height}: {bad.reason}",
            hint=f"copy {state} away unchanged, then see `meterctl verify {state}`",
        )
    run, walls = _read_events(found, checkpoint.run)
    sums, at = _sums(found, checkpoint)
    return Recovered(
        found=found,
        checkpoint=checkpoint,
        run=run,
        sums=sums,
        at=at,
        walls=walls,
        checkpoint_lost=lost,
    )


def _read_events(found: Findings, run: int) -> tuple[int, dict[int, Wall]]:
    walls: dict[int, Wall] = {}
    for event in found.events:
        if event.kind == "started":
            run = event.number_of("run")
        elif event.kind in CLOCK_EVENTS:
            offset_ms = event.number_of("wall_ms") - event.number_of("boot_ms")
            walls[run] = Wall(offset_ms, str(event["status"]), event.number_of("error_ms"))
    return run, walls


def _sums(
    found: Findings, checkpoint: Checkpoint
) -> tuple[dict[bytes, int], tuple[int, tuple[int, ...]] | None]:
    head = found.chain.head
    sums = {energy.obis: 2 * energy.last_uj for energy in head.energy} | checkpoint.sums
    for number in sorted(found.results):
        result = found.results[number]
        if result.measured_ms and result.exact:
            sums |= result.cut_sums
    at = None
    for part in found.open[:1]:
        header = part.segment.header
        begun = found.results.get(header.number)
        if begun and begun.exact and (part.first_row or header.before):
            sums |= begun.cut_sums
            at = (begun.point_ms, begun.point)
    last = {energy.obis: energy.last_uj for energy in head.energy}
    for code, uj in last.items():
        if sums.get(code, 0) // 2 != uj:  # samples were lost, and the odd half with them
            sums[code] = 2 * uj
    return sums, at


def checkpoint_operation(state: Path, checkpoint: Checkpoint, key: SigningKey) -> Operation:
    """Return the operation that replaces the checkpoint."""
    return Operation("replace", state / CHECKPOINT_FILE, seal_checkpoint(checkpoint, key))
