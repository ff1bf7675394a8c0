"""Reads an account from its folder, for a stranger's audit and for the meter's own recovery.

Nothing here writes, and no lock is needed: what is appended while we read is left for later.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from meterd.authority.certificate import add_spelt_order
from meterd.authority.roster import found
from meterd.config_signed import effect
from meterd.device.files import write_over
from meterd.errors import BlockRejectedError, DeniedError, EncodingError, StorageError
from meterd.ledger.audit import audit_samples
from meterd.ledger.block import decode_block
from meterd.ledger.chain import verify_seals
from meterd.ledger.encoding import take_apart
from meterd.ledger.findings import Tools
from meterd.ledger.judge import Files
from meterd.ledger.segment import HEADER_BYTES_MAX, STREAMS, read_header, walk_frames
from meterd.ledger.stored import SampleFile
from meterd.ledger.verdict import Known, Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from meterd.authority.roster import Roster
    from meterd.ledger.account import Genesis
    from meterd.ledger.audit import SampleResult, SampleTask
    from meterd.ledger.chain import Chain

__all__ = [
    "GENESIS_FILE",
    "Known",
    "VanishedError",
    "Verdict",
    "load_blocks",
    "meter_of",
    "open_tools",
    "read_file",
    "read_files",
    "read_part",
    "segment_name",
    "segment_numbers",
    "verify",
]

T = TypeVar("T")
R = TypeVar("R")
SEGMENT_SUFFIX = ".seg"
ORDERS_FILE = "orders"  # those accepted, each with its certificate
GENESIS_FILE = "genesis.cbor"
FILE_BYTES_MAX = 1 << 30  # a year of samples of one clamp, if none of it could be placed, is half
NOTHING = MappingProxyType(dict.fromkeys(STREAMS, 0))


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
    stems = {name: name.removesuffix(SEGMENT_SUFFIX) for name in names}
    return sorted(
        int(stem)
        for name, stem in stems.items()
        if stem.isdecimal() and stem.isascii() and segment_name(int(stem)) == name
    )


def read_file(path: Path) -> bytes:
    """Return the file's bytes.

    Raises:
        StorageError: It cannot be read, is no file, or is larger than any of an account's.
    """
    try:
        with _open_file(path) as file:
            return file.read()
    except PermissionError as error:
        raise DeniedError(
            f"no permission to read {path}", hint="run as the account's owner, or with sudo"
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror}", hint="is this the folder of an account?"
        ) from error


def _open_file(path: Path) -> BinaryIO:
    """Open what a stranger says is a file of an account: it may be a pipe, a device, a sparse lie.

    Raises:
        StorageError: It is no file, or is larger than any of an account's.
        OSError: It cannot be opened.
    """
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115, PTH123
    said = os.fstat(file.fileno())
    if stat.S_ISREG(said.st_mode) and said.st_size <= FILE_BYTES_MAX:
        return file
    file.close()
    what = "is too large" if stat.S_ISREG(said.st_mode) else "is no file"
    raise StorageError(f"{path} {what}", hint="is this the folder of an account?")


def read_files(state: Path, after: Mapping[str, int] = NOTHING) -> Files:
    """Return the account's segments numbered past `after`, in an order that a writer cannot upset.

    Blocks are read first: what they vouch for was durable before them. Samples are listed next, and
    events read last: they tell what the samples were measured under, and which were pruned.

    Raises:
        StorageError: A file cannot be read.
    """
    claims = (0, 0)
    numbers = segment_numbers(state / "events")
    if numbers:
        claims = (numbers[-1], _size(state / "events" / segment_name(numbers[-1])))
    blocks = _read_whole(state, "blocks", after)
    samples = [
        _read_head(state, number)
        for number in segment_numbers(state / "samples")
        if number > after["samples"]
    ]
    return Files(blocks, _read_whole(state, "events", after), samples, claims)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _read_whole(state: Path, stream: str, after: Mapping[str, int]) -> list[tuple[int, bytes]]:
    return [
        (number, read_file(state / stream / segment_name(number)))
        for number in segment_numbers(state / stream)
        if number > after[stream]
    ]


def _read_head(state: Path, number: int) -> SampleFile:
    with _open_samples(state, number) as file:
        size = os.fstat(file.fileno()).st_size
        return SampleFile(number, file.read(min(HEADER_BYTES_MAX, size)), size)


class VanishedError(StorageError):
    """A segment of samples is not there any more: read the account anew."""


def _open_samples(state: Path, number: int) -> BinaryIO:
    path = state / "samples" / segment_name(number)
    try:
        return _open_file(path)
    except FileNotFoundError as error:
        raise VanishedError(f"{path} has gone while it was read") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def read_orders(state: Path, genesis: Genesis) -> Roster:
    """Return the network as the account knows it: genesis, and the orders kept beside it.

    They prove themselves, so that the file needs no trust: one that is cut short knows less.

    Raises:
        StorageError: The file cannot be read.
        EncodingError: It is damaged; peers give its orders again if it is moved away.
    """
    path = state / ORDERS_FILE
    if not path.exists():
        return found(genesis)
    try:
        return add_orders(found(genesis), read_file(path))
    except EncodingError as error:
        raise EncodingError(f"{path} {error}") from error


def add_orders(roster: Roster, data: bytes) -> Roster:
    """Return `roster` with the orders in a file of them, as an account keeps it.

    Raises:
        EncodingError: One does not hold.
    """
    try:
        for spelt in _orders_in(data):
            roster = add_spelt_order(roster, spelt)
    except BlockRejectedError as error:
        raise EncodingError(f"holds an order that does not hold: {error}") from error
    return roster


def keep_order(state: Path, spelt: bytes) -> None:
    """Append an accepted order to what the next start reads; whole or not at all."""
    path = state / ORDERS_FILE
    kept = _orders_in(read_file(path)) if path.exists() else []
    data = b"".join(len(one).to_bytes(4, "big") + one for one in [*kept, spelt])
    try:
        write_over(path, data)
    except OSError as error:
        raise StorageError(f"cannot keep an order in {path}: {error.strerror}") from error


def _orders_in(data: bytes) -> list[bytes]:
    """Return the orders in a file of them; one that is cut off at the end counts for nothing."""
    orders, at = [], 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 4 + length > len(data):
            break
        orders.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return orders


def open_newest(roster: Roster, meter: str) -> Chain:
    """Return the empty chain of a meter's last incarnation.

    Raises:
        EncodingError: The network has no such meter.
    """
    enrolled = roster.newest(meter)
    if enrolled is None or (meter, enrolled.incarnation) == roster.distributor:
        raise EncodingError(f"network {roster.network} has no meter {meter}")
    return roster.open_chain((meter, enrolled.incarnation))


def load_blocks(state: Path, first: int, last: int) -> list[bytes]:
    """Return the account's own sealed blocks from one height to another, as far as there are any.

    Raises:
        StorageError: A segment cannot be read.
        EncodingError: A segment is damaged: it was verified at the start.
    """
    found: list[bytes] = []
    for number in reversed(segment_numbers(state / "blocks")):
        data = read_file(state / "blocks" / segment_name(number))
        header, _ = read_header(data, "blocks")
        frames = [frame.body for frame in walk_frames(data, header)]
        if not frames:
            continue
        begins = decode_block(take_apart(frames[0]).payload).height
        if begins <= last:
            found[:0] = frames[max(0, first - begins) : last - begins + 1]
        if begins <= first:
            break
    return found


def read_part(state: Path, number: int, begin: int, end: int) -> bytes:
    """Return bytes of a samples segment.

    Raises:
        StorageError: It cannot be read.
    """
    with _open_samples(state, number) as file:
        file.seek(begin)
        return file.read(end - begin)


class _Job:
    """A task bound to the folder it reads from; small enough to be sent to another process."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def __call__(self, task: SampleTask) -> SampleResult:
        with _open_samples(self._state, task.number) as file:
            return audit_samples(task, file.read())


def _quiet(_what: str, _done: int, _of: int) -> None:
    return None


@contextmanager
def open_tools(
    state: Path, *, workers: int = 1, progress: Callable[[str, int, int], None] = _quiet
) -> Iterator[Tools]:
    """Lend a judge this account's samples and `workers` processes to work with."""

    def read(number: int, begin: int, end: int) -> bytes:
        return read_part(state, number, begin, end)

    audit = _Job(state)
    if workers == 1:
        yield Tools(
            read,
            lambda tasks: map(verify_seals, tasks),
            lambda tasks: map(audit, tasks),
            progress,
            effect,
        )
        return
    from meterd.device.workers import Spread

    with ExitStack() as begun:

        def spread(work: Callable[[T], R], tasks: Sequence[T], at_once: int) -> Iterator[R]:
            begun.close()  # a judge who has seen enough leaves results, and those who make them
            results = Spread(work, tasks, workers=workers, at_once=at_once)
            begun.callback(results.close)
            return results

        yield Tools(
            read,
            lambda tasks: spread(verify_seals, tasks, 1),
            lambda tasks: spread(audit, tasks, 4),
            progress,
            effect,
        )


def meter_of(state: Path) -> str:
    """Return the name of the meter whose account this is, as the first header that holds says.

    Raises:
        StorageError: The folder cannot be read.
        EncodingError: No segment has a header that holds.
    """
    for stream in ("events", "blocks", "samples"):
        for number in segment_numbers(state / stream):
            data = read_file(state / stream / segment_name(number))
            try:
                return read_header(data, stream)[0].meter
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
    try:
        path = state / GENESIS_FILE
        genesis = read_file(path) if path.exists() or not known.genesis else b""

        def opener(founded: Genesis, meter: str) -> Chain:
            return open_newest(read_orders(state, founded), meter)

        with open_tools(state, workers=workers, progress=progress) as tools:
            try:
                return verdict(genesis, read_files(state), tools, known, opener)
            except VanishedError:  # pruned while we looked; an event tells of it by now
                return verdict(genesis, read_files(state), tools, known, opener)
    except (StorageError, DeniedError) as error:
        return Verdict(verdict="unreadable", key=known.key_said, reason=str(error))
