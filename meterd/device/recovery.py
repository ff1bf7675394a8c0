"""Finds where an account stands, so that metering can go on from there.

Recovery is the ordinary reader: the judge that answers a stranger verifies what has come since the
last checkpoint, and the daemon's own word counts for no more than anybody's. A checkpoint is sealed
with the meter's key; without one, or with one that is damaged or that the streams do not bear out,
the whole account is verified. What a checkpoint knows to be sealed must still be there.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from nacl.signing import VerifyKey

from meterd.device.archive import open_tools, read_file, read_files, segment_name, segment_numbers
from meterd.device.card import Operation
from meterd.errors import BlockRejectedError, EncodingError, LedgerDamagedError, StorageError
from meterd.ledger.account import shaped
from meterd.ledger.block import Energy
from meterd.ledger.encoding import decode, digest, encode, key_id, seal, take_apart, verify_seal
from meterd.ledger.findings import Findings, Start
from meterd.ledger.judge import judge
from meterd.ledger.row import LINK_BYTES
from meterd.ledger.segment import STREAMS, read_header
from meterd.ledger.stored import End
from meterd.metering.interval import STATUSES, Wall
from meterd.metering.placement import CLOCK_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.device.card import Card
    from meterd.ledger.chain import Chain, Head
    from meterd.ledger.event import Details, Event
    from meterd.ledger.stored import Tail

CHECKPOINT_FILE = "checkpoint"
CHECKPOINT_CONTEXT = "meterd/checkpoint/v1"
PLACING_EVENTS = (*CLOCK_EVENTS, "clock_status")  # each tells where a run lies in wall time
FROM_MS = "from_ms"  # detail of one that says from which earlier boot clock on


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where an account stood when all its rows were in blocks and all streams began new segments.

    Attributes:
        start: From where a judge goes on.
        run: Number of the daemon's start.
        sums: Running sums, half uJ, by OBIS code.
        wall: From which boot clock on that run lies where, if that was known.
    """

    start: Start
    run: int
    sums: dict[bytes, int]
    wall: tuple[int, Wall] | None = None


def seal_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> bytes:
    """Return the checkpoint's file."""
    start, chain = checkpoint.start, checkpoint.start.chain
    head = chain.head
    placed: list[int | str] = []
    if checkpoint.wall is not None:
        boot_ms, wall = checkpoint.wall
        placed = [boot_ms, boot_ms + wall.offset_ms, wall.status, wall.error_ms]
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
            placed,
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
    keys = [chain.sealer, *(key for _, key in chain.keys)]
    named = next((key for key in keys if key_id(key) == sealed.kid), chain.sealer)
    verify_seal(sealed, VerifyKey(named), chain.genesis)
    value: Any = decode(sealed.payload)
    shape = (str, bytes, str, int, int, bytes, tuple, tuple, bytes, tuple, int, tuple, int, tuple)
    if not shaped(value, *shape, int, tuple, int, tuple) or value[0] != CHECKPOINT_CONTEXT:
        raise EncodingError("not a checkpoint")
    if value[1:4] != (chain.genesis, chain.meter, chain.incarnation):
        raise EncodingError("the checkpoint is another account's")
    head = chain.head._replace(
        height=value[4],
        block_hash=value[5],
        end_s=value[6][0] if value[6] else None,
        energy=tuple(Energy(*entry) for entry in value[7]),
        parameters=value[8],
        order=value[9],
        events=value[10],
    )
    start = Start(
        chain=chain._replace(head=head),
        ends={name: End(*end) for name, end in zip(STREAMS, value[11], strict=True)},
        events=value[12],
        parameters=value[13],
        cut_ms=value[16],
    )
    wall = None
    if value[17]:
        boot_ms, wall_ms, status, error_ms = value[17]
        wall = (boot_ms, Wall(wall_ms - boot_ms, status, error_ms))
    return Checkpoint(start=start, run=value[14], sums=dict(value[15]), wall=wall)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Where an account stands.

    Attributes:
        found: What the judge found since the checkpoint.
        checkpoint: From where it went on.
        run: Number of the daemon's last start; 0 before the first.
        sums: Running sums at the last block, half uJ, by OBIS code.
        at: Boot clock and quantities of the last point in them, where a row may follow, or None.
        walls: Where the clocks of the runs since the checkpoint stood, by run, where that was ever
            known: (from which boot clock on, wall), in order.
        checkpoint_lost: Why the checkpoint could not be used, or an empty text.
    """

    found: Findings
    checkpoint: Checkpoint
    run: int
    sums: dict[bytes, int]
    at: tuple[int, tuple[int, ...]] | None
    walls: dict[int, tuple[tuple[int, Wall], ...]]
    checkpoint_lost: str


def recover(state: Path, chain: Chain, *, card: Card | None = None) -> Recovered:
    """Verify the account in `state` since its checkpoint; `chain` is its empty chain.

    Args:
        state: Folder of the account.
        chain: Its empty chain.
        card: Given by who goes on writing. What is found is made durable before it is read: a
            process that was killed may have left records in the cache alone, and what is built on
            them must not outlast them.

    Raises:
        LedgerDamagedError: It does not verify: a technician must look.
        StorageError: It cannot be read.
    """
    if card is not None:
        card.perform(_settle(state))
    start = Start(chain=chain, ends={name: End() for name in STREAMS})
    checkpoint, lost, head = Checkpoint(start=start, run=0, sums={}), "", None
    path = state / CHECKPOINT_FILE
    if path.exists():
        try:
            known = open_checkpoint(read_file(path), chain)
            head = known.start.chain.head
            lost = _not_borne_out(state, known.start.ends)
            checkpoint = checkpoint if lost else known
        except (EncodingError, BlockRejectedError, StorageError, ValueError, TypeError) as error:
            lost = str(error)
    after = {name: end.number for name, end in checkpoint.start.ends.items()}
    with open_tools(state) as tools:
        found = judge(read_files(state, after), checkpoint.start, tools)
    _refuse_bad(state, found)
    if lost and head is not None:
        _refuse_cut_back(state, found, head)
    try:
        run, walls = _read_events(found, checkpoint)
    except EncodingError as error:
        raise LedgerDamagedError(
            f"the account in {state} does not verify: {error}", hint=_hint(state)
        ) from error
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


def _settle(state: Path) -> list[Operation]:
    """Return what makes durable whatever an earlier process may not have synced."""
    operations = []
    for stream in STREAMS:
        folder = state / stream
        last = segment_numbers(folder)[-1:]  # whatever came before was synced before this was made
        operations += [Operation("settle", folder / segment_name(number)) for number in last]
        operations.append(Operation("sync_folder", folder))
    operations.append(Operation("sync_folder", state))
    return operations


def _not_borne_out(state: Path, ends: dict[str, End]) -> str:
    """Return what of a checkpoint the streams do not bear out, or an empty text."""
    for stream, end in ends.items():
        path = state / stream / segment_name(end.number)
        if end.number == 0 or (stream == "samples" and not path.exists()):
            continue  # samples may have been pruned: an event tells of it
        data = read_file(path)
        _, begin = read_header(data, stream)
        here = sha256(data[: begin - LINK_BYTES]).digest()
        if end.counted_bytes > begin:
            here = sha256(here + data[begin : end.counted_bytes - LINK_BYTES]).digest()
        if len(data) < end.counted_bytes or here != end.digest:
            return f"{stream} segment {end.number} is not as it was"
    return ""


def _hint(state: Path) -> str:
    return f"copy {state} away unchanged, then see `meterctl verify {state}`"


def _refuse_bad(state: Path, found: Findings) -> None:
    bad = found.first_bad
    if bad:
        where = f"{bad.stream} segment {bad.segment}, byte {bad.offset}"
        height = "" if bad.height is None else f", block {bad.height}"
        raise LedgerDamagedError(
            f"the account in {state} does not verify: {where}{height}: {bad.reason}",
            hint=_hint(state),
        )


def _refuse_cut_back(state: Path, found: Findings, head: Head) -> None:
    """Refuse an account without the block that a checkpoint of ours says was sealed."""
    hashes = {block.height: block.hash for block in found.blocks[head.height - 1 : head.height]}
    if head.height and hashes.get(head.height) != head.block_hash:
        raise LedgerDamagedError(
            f"the account in {state} ends at block {found.chain.head.height}, and its checkpoint "
            f"knows block {head.height} {head.block_hash.hex()[:16]}: it was cut back",
            hint=_hint(state),
        )


def tail_details(tail: Tail) -> Details:
    """Return the details of the event that tells of a torn tail."""
    return (
        ("stream", tail.stream),
        ("segment", tail.segment),
        ("offset", tail.offset),
        ("bytes", len(tail.data)),
        ("sha256", digest(tail.data)),
    )


def _read_events(
    found: Findings, checkpoint: Checkpoint
) -> tuple[int, dict[int, tuple[tuple[int, Wall], ...]]]:
    run = checkpoint.run
    walls: dict[int, list[tuple[int, Wall]]] = {}
    if checkpoint.wall is not None:
        walls[run] = [checkpoint.wall]
    for event in found.events:
        if event.kind in {"started", "recovered"}:
            run = event.number_of("run")
        elif event.kind in PLACING_EVENTS:
            walls.setdefault(run, []).extend(_walls(event))
    return run, {run: tuple(known) for run, known in walls.items()}


def _walls(event: Event) -> Iterator[tuple[int, Wall]]:
    """Yield from where on a run lies where, as an event tells."""
    boot_ms = event.number_of("boot_ms")
    offset_ms = event.number_of("wall_ms") - boot_ms
    details = dict(event.details)
    status = details.get("status")
    if not isinstance(status, str) or status not in STATUSES:
        raise EncodingError(f"event {event.number} ({event.kind}) has no clock status")
    wall = Wall(offset_ms, status, event.number_of("error_ms"))
    if FROM_MS in details:
        from_ms = event.number_of(FROM_MS)
        yield from_ms, wall._replace(status="I") if event.kind == "clock_set" else wall
    yield boot_ms, wall


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
        if begun and begun.exact:
            sums |= begun.cut_sums
            if part.first_row or header.before:
                at = (begun.point_ms, begun.point)
    last = {energy.obis: energy.last_uj for energy in head.energy}
    for code, uj in last.items():
        if sums.get(code, 0) // 2 != uj:  # samples were lost, and the odd half with them
            sums[code] = 2 * uj
    return sums, at


def checkpoint_operation(state: Path, checkpoint: Checkpoint, key: SigningKey) -> Operation:
    """Return the operation that replaces the checkpoint."""
    return Operation("replace", state / CHECKPOINT_FILE, seal_checkpoint(checkpoint, key))
