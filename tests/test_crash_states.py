"""Every state that a power failure may leave on the card, and what the next start makes of it.

A scenario is played once, and what it does to the card is written down. `Disk` is a model of what
the card may hold if power fails after any of these operations:

- a file's bytes are durable up to its last sync; of what was appended since, any part may be there,
  up to any byte, and what is there may be zeros;
- a file that was created is there for good once its folder was synced, one that was unlinked is
  gone for good then; before that, either;
- `create` and `replace` are whole or not at all, and leave a part of the file beside behind;
- what holds for one file says nothing of another: any subset of what was not synced is legal.

From each state the account must be found good, recovery must go on, and nothing may be missing that
the scenario had been told was durable.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.device.archive import segment_name, segment_numbers
from meterd.device.prune import plan_prune
from meterd.device.recovery import CHECKPOINT_FILE
from meterd.errors import LedgerDamagedError
from meterd.ledger.row import LINK_BYTES
from meterd.ledger.segment import STREAMS, read_header, walk_frames
from tests.rig import INTERVAL_S, MIDNIGHT_S, POLLING_MS, RecordingCard, Rig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meterd.device.card import Operation

SEED = 20260101
SAMPLED = 400  # states in `make test`; all of them in `make soak`
SAMPLED_TWICE = 200
SAMPLED_HOLES = 250
TORN_BYTES = 3  # torn positions of one append that are looked at, besides those of its last record
RECORD_BYTES = 40  # the end of an append at which every byte is a torn position: a row has 32

State = dict[str, bytes]


# --- the model of the card ---------------------------------------------------------------------


@dataclass
class File:
    """One file: what was written to it, and how much of that a sync has made durable."""

    data: bytes
    synced: int


@dataclass
class Disk:
    """What a card may hold after a power failure. Paths are relative to the account."""

    files: dict[str, File] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)  # created, folder not synced
    going: dict[str, File] = field(default_factory=dict)  # unlinked, folder not synced
    beside: State = field(default_factory=dict)  # parts of files that were never renamed

    def do(self, kind: str, name: str, data: bytes) -> None:
        """Let one operation happen, in the cache of the kernel."""
        if kind == "create":
            assert name not in self.files, "a segment is never written over"
            self.files[name] = File(data, len(data))
            self.fresh.add(name)
            self.beside[f"{Path(name).parent}.new"] = data[: len(data) // 2]
        elif kind == "append":
            self.files[name].data += data
        elif kind in {"sync", "settle"}:
            self.files[name].synced = len(self.files[name].data)
        elif kind == "sync_folder":
            self.fresh = {one for one in self.fresh if str(Path(one).parent) != name}
            self.going = {one: f for one, f in self.going.items() if str(Path(one).parent) != name}
        elif kind == "replace":
            self.files[name] = File(data, len(data))
            self.beside[f"{name}.new"] = data[: len(data) // 3]
        elif kind == "unlink":
            self.going[name] = self.files.pop(name)
            self.fresh.discard(name)
        else:
            assert kind == "close", kind

    def states(self, cuts: Iterable[int] | None = None) -> Iterator[State]:
        """Yield what may be on the card if power fails now.

        Args:
            cuts: Torn positions behind what is durable that are tried; all without.
        """
        choices: list[list[tuple[str, bytes] | None]] = []
        for name, file in self.files.items():
            choices.append([(name, data) for data in self._torn(file, cuts)])
            if name in self.fresh:
                choices[-1].append(None)
        choices += [[(name, file.data), None] for name, file in self.going.items()]
        for chosen in product(*choices):
            yield dict(self.beside) | dict(one for one in chosen if one is not None)

    @staticmethod
    def _torn(file: File, cuts: Iterable[int] | None) -> list[bytes]:
        loose = len(file.data) - file.synced
        if not loose:
            return [file.data]
        wanted = range(loose + 1) if cuts is None else cuts
        torn = [file.data[: file.synced + cut] for cut in wanted if cut <= loose]
        torn += [
            data + bytes(len(file.data) - len(data)) for data in torn[:-1]
        ]  # size came, data not
        return torn


def positions(length: int, chance: random.Random) -> list[int]:
    """Return torn positions of an append: some, and every byte of its last record."""
    early = range(1, max(length - RECORD_BYTES, 1))
    some = chance.sample(early, min(TORN_BYTES, len(early)))
    return sorted({0, *some, *range(max(length - RECORD_BYTES, 0), length + 1)})


# --- the scenario ------------------------------------------------------------------------------


class Mark(NamedTuple):
    """What was durable once so many operations had been performed.

    Attributes:
        operations: How many.
        blocks: Hashes of the blocks.
        rows: How many rows are stored.
        sums: Energy of each register, uJ.
    """

    operations: int
    blocks: list[bytes]
    rows: int
    sums: dict[str, int]


class Played(NamedTuple):
    """A scenario as it was played.

    Attributes:
        state: Where it was.
        trace: Its operations.
        marks: What each commit made durable.
    """

    state: Path
    trace: list[Operation]
    marks: list[Mark]

    def name(self, operation: Operation) -> str:
        return str(operation.path.relative_to(self.state))

    def disks(self) -> Iterator[tuple[int, Disk, Operation]]:
        """Yield the model after each operation: how many, the model, the last of them."""
        disk = Disk()
        for number, operation in enumerate(self.trace, start=1):
            disk.do(operation.kind, self.name(operation), operation.data)
            yield number, disk, operation

    def mark(self, operations: int) -> Mark:
        """Return what is durable after so many operations."""
        return next(
            (mark for mark in reversed(self.marks) if mark.operations <= operations),
            Mark(0, [], 0, {}),
        )

    def states(self, chance: random.Random, *, all_bytes: bool) -> list[tuple[int, State]]:
        """Return all states that a power failure may leave, with how many operations were done."""
        found: dict[tuple[object, ...], tuple[int, State]] = {}
        for number, disk, operation in self.disks():
            cuts = None if all_bytes else positions(len(operation.data), chance)
            for state in disk.states(cuts):
                key = (self.mark(number).operations, *sorted(state.items()))
                found.setdefault(key, (number, state))
        return list(found.values())


class Play:
    """Plays a scenario: small commits, each of which is a mark."""

    def __init__(self, folder: Path) -> None:
        self.card = RecordingCard()
        self.rig = Rig(folder, card=self.card)
        self.marks: list[Mark] = []
        self.rows = 0

    def start(self, wall_s: float, *, status: str = "S") -> None:
        self.rig.start(wall_s, status=status)
        self.commit()

    def go(self, count: int, elapsed_ms: int = POLLING_MS, *, commit_each: int = 4) -> None:
        for number in range(count):
            self.rig.rows(1, elapsed_ms)
            self.rows += 1
            if number % commit_each == 0 or self.rig.book.pending:
                self.commit()

    def commit(self) -> None:
        self.rig.commit()
        sums = {code: uj for code, (uj, _) in self.rig.book.registers_uj().items()}
        blocks = [block.hash for block in self.rig.blocks]
        self.marks.append(Mark(len(self.card.done), blocks, self.rows, sums))

    @property
    def played(self) -> Played:
        return Played(self.rig.state, self.card.done, self.marks)


def play_days(folder: Path) -> Played:
    """A run over midnight; one that never knows the time; one that does."""
    play = Play(folder)
    play.start(MIDNIGHT_S - 2 * INTERVAL_S - 17.3)
    play.go(17)
    play.rig.wait(61_000)
    play.rig.book.tick(play.rig.boot_ms, play.rig.stamp)
    play.commit()
    play.go(14)
    play.rig.stop()
    play.start(10, status="R")
    play.go(5)
    play.start(MIDNIGHT_S + 4 * INTERVAL_S + 8)
    play.go(15, 4900)
    play.rig.book.raise_alarm("case", "the case is open", stands=True)
    play.rig.stop()
    play.commit()
    return play.played


def play_pruning(folder: Path) -> Played:
    """A run over midnight, whose first day's samples are pruned then."""
    play = Play(folder)
    play.start(MIDNIGHT_S - 2 * INTERVAL_S - 17.3)
    play.go(43)
    book = play.rig.book
    plan = plan_prune(play.rig.state, book.chain, MIDNIGHT_S)
    assert plan.rows > 20
    for pruned in plan.pruned:
        book.prune(pruned)
    play.commit()
    play.card.perform(plan.operations)
    play.go(14)
    play.rig.stop()
    play.commit()
    return play.played


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small accounts are made in it."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield tmp_path_factory.mktemp("crash")
        return
    folder = shared / tmp_path_factory.mktemp("crash").name
    folder = folder.with_name(f"meterd-{folder.name}-{id(folder)}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def days(memory: Path) -> Played:
    return play_days(memory / "days")


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, days: Played, memory: Path) -> Played:
    return play_pruning(memory / "pruning") if request.param == "pruning" else days


BOTH = pytest.mark.parametrize("played", ["days", "pruning"], indirect=True)


def test_the_scenario_has_all_that_may_be_torn(days: Played) -> None:
    """A scenario that says little would let every test below pass."""
    kinds = Counter(operation.kind for operation in days.trace)
    assert kinds["replace"] == 1, "the checkpoint of midnight"
    assert kinds["create"] >= 9
    assert kinds["append"] == kinds["sync"] >= 30
    assert len(days.marks[-1].blocks) >= 6
    assert max(len(disk.fresh) for _, disk, _ in days.disks()) == 1


# --- what each state must come to --------------------------------------------------------------


def lay(played: Played, state: State, folder: Path) -> Path:
    """Put a state on a card."""
    if folder.exists():
        shutil.rmtree(folder)
    for stream in STREAMS:
        (folder / stream).mkdir(parents=True)
    for name in ("genesis.cbor", "seal.key"):
        (folder / name).write_bytes((played.state / name).read_bytes())
    for name, data in state.items():
        (folder / name).write_bytes(data)
    return folder


def assert_goes_on(folder: Path, mark: Mark, card: RecordingCard | None = None) -> Rig:
    """An account that power has failed on is good, has all that was durable, and goes on."""
    rig = Rig(folder, card=card)
    found = rig.assert_good()
    rig.start(MIDNIGHT_S + 9 * INTERVAL_S + 2.5)
    assert [block.hash for block in rig.blocks][: len(mark.blocks)] == mark.blocks
    now = {code: uj for code, (uj, _) in rig.book.registers_uj().items()}
    lower = {
        code: (now.get(code, 0), uj) for code, uj in mark.sums.items() if now.get(code, 0) < uj
    }
    assert not lower, "a register fell"
    assert rig.book.chain.head.height >= len(mark.blocks)
    rig.rows(3)
    rig.commit()
    rig.rows(14)
    rig.commit()
    verdict = rig.assert_good()
    assert verdict.records + verdict.open_rows >= mark.rows + 17, "rows are gone"
    assert verdict.tail is None, "what was torn is told, and what follows is whole"
    if found.tail is not None and found.tail.data:
        told = {(event["stream"], event["segment"]) for event in rig.told("torn_tail")}
        assert (found.tail.stream, found.tail.segment) in told
    for code, uj in now.items():
        assert rig.book.registers_uj()[code][0] >= uj
    rig.card.close()
    return rig


def sample(found: list[tuple[int, State]], count: int) -> list[tuple[int, State]]:
    chosen = random.Random(SEED).sample(found, min(count, len(found)))
    assert len(chosen) > count // 2, "the model has lost most of its states"
    return chosen


@BOTH
def test_every_sampled_state_of_the_card_goes_on(played: Played, memory: Path) -> None:
    found = played.states(random.Random(SEED), all_bytes=False)
    for number, state in sample(found, SAMPLED):
        assert_goes_on(lay(played, state, memory / "one"), played.mark(number))


@pytest.mark.soak
@BOTH
def test_every_state_of_the_card_goes_on(played: Played, memory: Path) -> None:
    for number, state in played.states(random.Random(SEED), all_bytes=True):
        assert_goes_on(lay(played, state, memory / "all"), played.mark(number))


def test_a_start_that_itself_is_cut_off_is_gone_over_again(days: Played, memory: Path) -> None:
    """Power fails, and again while the next start closes what was open and meters on."""
    chance = random.Random(SEED)
    found = days.states(chance, all_bytes=False)
    for number, state in sample(found, SAMPLED_TWICE):
        assert_survives_twice(days, number, state, memory, chance)


def assert_survives_twice(
    days: Played, number: int, state: State, memory: Path, chance: random.Random
) -> None:
    folder = lay(days, state, memory / "first")
    card = RecordingCard()
    rig = assert_goes_on(folder, days.mark(number), card)
    begun = Disk({name: File(data, len(data)) for name, data in state.items()})
    for operation in card.done[: chance.randrange(len(card.done) + 1)]:
        begun.do(operation.kind, str(operation.path.relative_to(rig.state)), operation.data)
    again = list(begun.states(positions(len(card.done[-1].data), chance)))
    assert_goes_on(lay(days, chance.choice(again), memory / "second"), days.mark(number))


def test_a_killed_process_leaves_nothing_to_be_lost_later(days: Played, memory: Path) -> None:
    """Killed, restarted, and only then does power fail: what was built on is durable by then."""
    chance = random.Random(SEED)
    moments = chance.sample(range(1, len(days.trace)), 60)
    for moment in sorted(moments):
        disk = Disk()
        for operation in days.trace[:moment]:
            disk.do(operation.kind, days.name(operation), operation.data)
        cached = {name: file.data for name, file in disk.files.items()}
        card = RecordingCard()
        rig = Rig(lay(days, cached, memory / "killed"), card=card)
        rig.start(MIDNIGHT_S + 9 * INTERVAL_S)
        rig.commit()
        rig.rows(2)
        rig.commit()
        mark = days.mark(moment)._replace(blocks=[block.hash for block in rig.blocks])
        for operation in card.done:
            disk.do(operation.kind, str(operation.path.relative_to(rig.state)), operation.data)
        for state in disk.states([0]):
            assert_goes_on(lay(days, state, memory / "then"), mark)


# --- holes -------------------------------------------------------------------------------------


def sealed_bytes(folder: Path, mark: Mark) -> list[tuple[str, int]]:
    """Return (file, byte) of all that lies before the last durable mark and behind a checkpoint."""
    rig = Rig(folder)
    head = rig.account.blocks[-1]
    assert head.hash in mark.blocks
    found: list[tuple[str, int]] = []
    left = sum(block.records for block in rig.account.blocks)
    for number in segment_numbers(folder / "samples"):
        data = (folder / "samples" / segment_name(number)).read_bytes()
        header, begin = read_header(data, "samples")
        row_bytes: int = header.row_bytes  # type: ignore[union-attr]
        rows = min(left, (len(data) - begin) // row_bytes)
        left -= rows
        if rows:
            end = begin + rows * row_bytes
            found += [(f"samples/{segment_name(number)}", byte) for byte in range(end)]
    left = head.events
    for number in segment_numbers(folder / "events"):
        data = (folder / "events" / segment_name(number)).read_bytes()
        header, end = read_header(data, "events")
        for frame in walk_frames(data, header):
            end = frame.end if left else end
            left -= bool(left)
        found += [(f"events/{segment_name(number)}", byte) for byte in range(end)]
    last = segment_numbers(folder / "blocks")[-1]
    for number in segment_numbers(folder / "blocks"):
        data = (folder / "blocks" / segment_name(number)).read_bytes()
        end = len(data) - LINK_BYTES if number == last else len(data)
        found += [(f"blocks/{segment_name(number)}", byte) for byte in range(end)]
    return found


@pytest.mark.parametrize("damage", ["flipped", "zeroed"])
def test_a_hole_before_the_last_durable_mark_is_refused(
    days: Played, memory: Path, damage: str
) -> None:
    """In all that came since the checkpoint; without one, in the whole account (row L6)."""
    chance = random.Random(SEED)
    state = {name: file.data for name, file in list(days.disks())[-1][1].files.items()}
    folder = lay(days, state, memory / "hole")
    places = chance.sample(sealed_bytes(folder, days.marks[-1]), SAMPLED_HOLES)
    for name, byte in places:
        folder = lay(days, state, memory / "hole")
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        data = bytearray((folder / name).read_bytes())
        if damage == "zeroed" and data[byte] == 0:
            continue
        data[byte] = 0 if damage == "zeroed" else data[byte] ^ 0x10
        (folder / name).write_bytes(data)
        with pytest.raises(LedgerDamagedError, match=r"does not verify|no event holds"):
            Rig(folder).start(MIDNIGHT_S + 9 * INTERVAL_S)


def test_what_a_checkpoint_stands_on_is_looked_at(days: Played, memory: Path) -> None:
    """A byte that a checkpoint vouches for: the whole account is verified then, and it is found."""
    state = {name: file.data for name, file in list(days.disks())[-1][1].files.items()}
    for stream in STREAMS:
        folder = lay(days, state, memory / "stand")
        path = folder / stream / segment_name(1)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(LedgerDamagedError, match="does not verify"):
            Rig(folder).start(MIDNIGHT_S + 9 * INTERVAL_S)


# --- the model itself --------------------------------------------------------------------------


def test_the_model_loses_what_was_not_synced_and_nothing_else() -> None:
    disk = Disk()
    disk.do("create", "events/1", b"ab")
    assert {frozenset(state) for state in disk.states()} == {
        frozenset({"events.new", "events/1"}),
        frozenset({"events.new"}),
    }
    disk.do("sync_folder", "events", b"")
    disk.do("append", "events/1", b"cd")
    kept = {state["events/1"] for state in disk.states()}
    assert kept == {b"ab", b"abc", b"abcd", b"ab\0\0", b"abc\0"}
    disk.do("sync", "events/1", b"")
    assert [state["events/1"] for state in disk.states()] == [b"abcd"]
    disk.do("unlink", "events/1", b"")
    assert [state.get("events/1") for state in disk.states()] == [b"abcd", None]
    disk.do("sync_folder", "events", b"")
    assert [state.get("events/1") for state in disk.states()] == [None]


def test_the_model_tears_two_files_apart() -> None:
    disk = Disk({"a": File(b"1", 0), "b": File(b"2", 0)})
    assert len(list(disk.states())) == 9, "each: not there, there, its size alone"
