"""Reads an account from its folder, for a stranger's audit and for the meter's own recovery.

Nothing here writes, and no lock is needed: what is appended while we read is left for later.
"""

from __future__ import annotations

import mmap
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meterd.errors import EncodingError, StorageError
from meterd.ledger.account import decode_genesis
from meterd.ledger.audit import Bad, audit_samples, verify_seals
from meterd.ledger.chain import open_chain
from meterd.ledger.encoding import digest
from meterd.ledger.judge import Files, Findings, Start, Tools, judge
from meterd.ledger.segment import HEADER_BYTES_MAX, STREAMS, read_header
from meterd.ledger.stored import End, SampleFile, Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meterd.ledger.audit import SampleResult, SampleTask
    from meterd.ledger.chain import Head

SEGMENT_SUFFIX = ".seg"
GENESIS_FILE = "genesis.cbor"


def segment_name(number: int) -> str:
    """Return the file name of a stream's segment."""
    return f"{number:08d}{SEGMENT_SUFFIX}"


def segment_numbers(folder: Path) -> list[int]:
    """Return the numbers of a stream's segments, ascending.

    Raises:
        StorageError: The folder cannot be read.
    """
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        raise StorageError(
            f"cannot read {folder}: {error.strerror}", hint="is this the folder of an account?"
        ) from error
    stems = [name.removesuffix(SEGMENT_SUFFIX) for name in names if name.endswith(SEGMENT_SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdecimal() and stem.isascii())


def read_file(path: Path) -> bytes:
    """Return the file's bytes.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror}", hint="is this the folder of an account?"
        ) from error


def read_files(state: Path, after: dict[str, int]) -> Files:
    """Return the account's segments numbered past `after`, in an order that a writer cannot upset.

    Blocks are read first: what they vouch for was durable before them.

    Raises:
        StorageError: A file cannot be read.
    """
    claims = (0, 0)
    numbers = segment_numbers(state / "events")
    if numbers:
        claims = (numbers[-1], (state / "events" / segment_name(numbers[-1])).stat().st_size)
    whole: dict[str, list[tuple[int, bytes]]] = {}
    for stream in ("blocks", "events"):
        folder = state / stream
        whole[stream] = [
            (number, read_file(folder / segment_name(number)))
            for number in segment_numbers(folder)
            if number > after[stream]
        ]
    samples = []
    for number in segment_numbers(state / "samples"):
        if number > after["samples"]:
            path = state / "samples" / segment_name(number)
            size = path.stat().st_size
            with path.open("rb") as file:
                samples.append(SampleFile(number, file.read(min(HEADER_BYTES_MAX, size)), size))
    return Files(whole["blocks"], whole["events"], samples, claims)


def read_part(state: Path, number: int, begin: int, end: int) -> bytes:
    """Return bytes of a samples segment.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        with (state / "samples" / segment_name(number)).open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)
    except OSError as error:
        raise StorageError(f"cannot read samples segment {number}: {error.strerror}") from error


class _Job:
    """A task bound to the folder it reads from; small enough to be sent to another process."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def __call__(self, task: SampleTask) -> SampleResult:
        path = self._state / "samples" / segment_name(task.number)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return audit_samples(task, data)  # type: ignore[arg-type]  # slices of it are bytes


def _quiet(_what: str, _done: int, _of: int) -> None:
    return None


@contextmanager
def open_tools(
    state: Path, *, workers: int = 1, progress: Callable[[str, int, int], None] = _quiet
) -> Iterator[Tools]:
    """Lend a judge this account's samples and `workers` processes to work with."""

    def read(number: int, begin: int, end: int) -> bytes:
        return read_part(state, number, begin, end)

    if workers == 1:
        yield Tools(
            read,
            lambda tasks: map(verify_seals, tasks),
            lambda tasks: map(_Job(state), tasks),
            progress,
        )
        return
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as pool:
        yield Tools(
            read,
            lambda tasks: pool.map(verify_seals, tasks),
            lambda tasks: pool.map(_Job(state), tasks, chunksize=4),
            progress,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What whoever verifies knows from elsewhere than the account itself.

    Attributes:
        genesis: The network's genesis, or empty.
        key: The sealing key, 32 bytes, or empty.
        head: Height and hash of a block that the account must hold, or None.
    """

    genesis: bytes = b""
    key: bytes = b""
    head: tuple[int, bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an audit found.

    Attributes:
        verdict: `good`, `bad` or `unreadable`.
        blocks: Blocks that verify.
        records: Rows that those blocks take.
        first_bad: The first bad place, or None.
        tail: Bytes past the last durable mark that count for nothing, or None.
        key: `given` if genesis or key came from elsewhere, else `self-asserted`.
        head: The last block that verifies, or None.
        open_rows: Rows that are linked and not sealed yet.
        pruned: Segments of samples that were rightly pruned.
        reason: Why it is unreadable, or an empty text.
    """

    verdict: str
    blocks: int = 0
    records: int = 0
    first_bad: Bad | None = None
    tail: Tail | None = None
    key: str = "self-asserted"
    head: Head | None = None
    open_rows: int = 0
    pruned: int = 0
    reason: str = ""


def meter_of(state: Path) -> str:
    """Return the name of the meter whose account this is, as its first events segment says.

    Raises:
        StorageError: The folder cannot be read.
        EncodingError: There is no such segment, or its header is damaged.
    """
    for stream in ("events", "blocks", "samples"):
        for number in segment_numbers(state / stream):
            try:
                return read_header(read_file(state / stream / segment_name(number)), stream)[
                    0
                ].meter
            except EncodingError:
                continue
    raise EncodingError("no segment has a header that can be read")


def verify(
    state: Path,
    known: Known,
    *,
    workers: int = 1,
    progress: Callable[[str, int, int], None] = _quiet,
) -> Verdict:
    """Audit the whole account in `state`, from its genesis on."""
    key_said = "given" if known.genesis or known.key else "self-asserted"
    try:
        stored = read_file(state / GENESIS_FILE) if not known.genesis else known.genesis
        genesis = decode_genesis(stored)
        meters = genesis.meters
        name = meters[0].name if len(meters) == 1 else meter_of(state)
        chain = open_chain(genesis, name)
        files = read_files(state, dict.fromkeys(STREAMS, 0))
    except (StorageError, EncodingError) as error:
        return Verdict(verdict="unreadable", key=key_said, reason=str(error))
    wrong = _contradicts(state, known, digest(stored), chain.sealer)
    if wrong:
        return Verdict(verdict="bad", key=key_said, first_bad=wrong)
    start = Start(chain=chain, ends={stream: End() for stream in STREAMS})
    try:
        with open_tools(state, workers=workers, progress=progress) as tools:
            found = judge(files, start, tools)
    except StorageError as error:
        return Verdict(verdict="unreadable", key=key_said, reason=str(error))
    bad = found.first_bad or _check_head(found, known)
    return Verdict(
        verdict="bad" if bad else "good",
        blocks=len(found.blocks),
        records=found.records,
        first_bad=bad,
        tail=found.tails[0] if found.tails else None,
        key=key_said,
        head=found.chain.head,
        open_rows=sum(part.segment.rows - part.first_row for part in found.open),
        pruned=len(found.pruned),
    )


def _contradicts(state: Path, known: Known, genesis_hash: bytes, sealer: bytes) -> Bad | None:
    if known.key and known.key != sealer:
        reason = f"the account is {sealer.hex()}'s by its genesis, not the given key's"
        return Bad("genesis", None, None, 0, 0, reason)
    path = state / GENESIS_FILE
    if known.genesis and path.exists() and digest(path.read_bytes()) != genesis_hash:
        return Bad("genesis", None, None, 0, 0, "the account's genesis is not the given one")
    return None


def _check_head(found: Findings, known: Known) -> Bad | None:
    if known.head is None:
        return None
    height, block_hash = known.head
    end = found.ends["blocks"]
    if height > len(found.blocks):
        reason = f"the account ends at block {len(found.blocks)}, block {height} is known: cut back"
        place = (found.chain.head.end_s, end.number, end.counted_bytes)
        return Bad("blocks", height, *place, reason)
    block = found.blocks[height - 1] if height else None
    if block is not None and block.hash != block_hash:
        reason = f"block {height} is not the one that is known: two histories"
        return Bad("blocks", height, block.start_s, end.number, 0, reason)
    return None
