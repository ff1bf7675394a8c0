"""An account that begins anew behind what its neighbours held.

A meter ran on; then its card was put back to before, and a start measured while it asked. All loads
are 1 kW, a row each 5 s: 5 kJ between two rows of a run, so that what has to come out is counted in
rows.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from nacl.signing import SigningKey

from meterd.bookkeeper import Bookkeeper
from meterd.device.archive import Known, load_blocks, verify
from meterd.device.rebase import FOLDER, WHOLE, begin_anew, finish
from meterd.device.recovery import CHECKPOINT_FILE, recover
from meterd.errors import LedgerDamagedError, StorageError
from meterd.ledger.account import decode_parameters
from meterd.ledger.chain import open_chain
from meterd.ledger.encoding import decode, take_apart
from meterd.ledger.event import Event, decode_event
from meterd.ledger.pruning import Recovered, read_recovered, seal_recovered
from meterd.ledger.segment import STREAMS
from meterd.metering.interval import LOST, REBASED
from tests.ledger.memory import Stored
from tests.rig import INTERVAL_S, MIDNIGHT_S, POLLING_MS, Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


STEP_UJ = 1_000_000 * POLLING_MS  # from one row to the next
NOON_S = MIDNIGHT_S + 43_200
BACK_S = NOON_S + 30 * INTERVAL_S + 7  # when the old card starts
OPEN_ROWS = 5
OLD_HEIGHT, HEIGHT = 4, 9
STRANGER = SigningKey(bytes(range(1, 33)))


class Waiting(Bookkeeper):
    """A bookkeeper of a meter whose neighbours have not answered."""

    def start(self, boot_ms: int, wall_ms: int, details: Any = ()) -> None:  # noqa: ANN401
        self.waiting = True
        super().start(boot_ms, wall_ms, details)


def start_waiting(rig: Rig, wall_s: float) -> None:
    """Begin a run that may not seal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.rig.Bookkeeper", Waiting)
        rig.start(wall_s)


def measure(rig: Rig, rows: int) -> None:
    for _ in range(rows):
        rig.row(1000)
    rig.commit()


def until_height(rig: Rig, height: int) -> None:
    while rig.book.chain.head.height < height:
        rig.row(1000)
    measure(rig, OPEN_ROWS)


class Street:
    """What the neighbours hold of a meter, and its card as it was before.

    Attributes:
        image: The old card.
        full: The meter that ran on.
    """

    def __init__(self, folder: Path) -> None:
        self.full = Rig(folder / "full")
        self.full.start(NOON_S + 3)
        until_height(self.full, OLD_HEIGHT)
        self.full.stop()
        self.image = shutil.copytree(folder / "full", folder / "image")
        self.full.start(NOON_S + 6 * INTERVAL_S + 3)
        until_height(self.full, HEIGHT)
        self.full.stop()
        self._folder, self._made = folder, 0

    def restored(self, rows: int = 7) -> Rig:
        """Return the old card in a meter that measures and may not seal."""
        self._made += 1
        rig = Rig(shutil.copytree(self.image, self._folder / f"restored-{self._made}"))
        start_waiting(rig, BACK_S)
        measure(rig, rows)
        return rig

    @property
    def head_uj(self) -> int:
        return self.full.book.chain.head.energy[0].last_uj


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Street:
    return Street(tmp_path_factory.mktemp("street"))


def rebase(
    rig: Rig,
    street: Street,
    height: int = 0,
    *,
    old_height: int | None = None,
    named: bytes = b"",
) -> Recovered:
    """Do what the daemon does once enough neighbours have answered, and it holds their blocks."""
    book, own = rig.book, rig.book.chain.head.height
    given = load_blocks(street.full.state, own + 1, height or HEIGHT)
    chain = recover(street.full.state, open_chain(rig.genesis, "kitchen-12")).found.chain
    if height:
        blocks = street.full.blocks
        last = blocks[height - 1]
        head = chain.head._replace(
            height=height,
            block_hash=last.hash,
            end_s=last.end_s,
            energy=last.energy,
            events=last.events,
        )
        chain = chain._replace(head=head)
    measured_ms, carried = book.measured()
    block_hash = named or chain.head.block_hash
    said = Recovered(chain.head.height, block_hash, book.run, measured_ms, carried)
    rig.card.close()
    begin_anew(
        rig.state,
        chain,
        [*load_blocks(rig.state, 1, own), *given],
        said,
        key=rig.key,
        parameters=book.parameters,
        known=(),
        events=max(book.log.events, chain.head.events),
        stamp=(rig.boot_ms, rig.wall_ms),
        old_height=own if old_height is None else old_height,
        draw_secret=lambda stream, number: f"{stream} {number}".encode().ljust(32, b"-"),
    )
    return said


@pytest.fixture
def rig(street: Street) -> Iterator[Rig]:
    """The old card; a test may do with it what it likes."""
    made = street.restored()
    yield made
    made.card.close()


def good(state: Path, rig: Rig) -> int:
    """Return the height of an account that a stranger finds good."""
    verdict = verify(state, Known(key=bytes(rig.key.verify_key)))
    assert (verdict.verdict, verdict.first_bad, verdict.tail) == ("good", None, None)
    assert verdict.head
    return verdict.head.height


# --- what comes of it ---------------------------------------------------------------------------


def test_an_account_goes_on_behind_the_blocks_of_its_neighbours(rig: Rig, street: Street) -> None:
    said = rebase(rig, street)
    assert good(rig.state, rig) == HEIGHT
    assert [block.hash for block in rig.blocks] == [block.hash for block in street.full.blocks]
    first = rig.events[0]
    assert [event.kind for event in rig.events] == ["recovered", "parameters"]
    record = decode_parameters(rig.events[1].bytes_of("record"))
    assert read_recovered(first, street.full.book.chain) == said._replace(parameters=record.hash)
    assert record == replace(rig.book.parameters, sequence=rig.events[1].number - 1)
    assert first.number > street.full.blocks[-1].events
    assert sorted(path.name for path in rig.state.iterdir()) == [
        f"before-{OLD_HEIGHT}",
        *("blocks", "events", "genesis.cbor", "samples", "seal.key"),
    ]


def test_what_the_card_held_is_kept_beside_and_is_good_by_itself(rig: Rig, street: Street) -> None:
    before = {
        path.relative_to(rig.state): path.read_bytes()
        for stream in STREAMS
        for path in (rig.state / stream).iterdir()
    }
    rebase(rig, street)
    kept = rig.state / f"before-{OLD_HEIGHT}"
    assert {path: (kept / path).read_bytes() for path in before} == before
    assert good(kept, rig) == OLD_HEIGHT


@pytest.mark.parametrize("rows", [1, *(pytest.param(rows) for rows in (2, 7, 40))])
def test_nothing_is_counted_twice_and_nothing_measured_is_left_out(
    street: Street, rows: int
) -> None:
    rig = street.restored(rows)
    said = rebase(rig, street)
    carried_uj = (rows - 1) * STEP_UJ
    assert said.measured_ms == (rows - 1) * POLLING_MS
    assert said.carried[0][2] == carried_uj
    rig.start(rig.wall_ms / 1000 + 2)
    assert rig.imported_uj() == street.head_uj + carried_uj
    until_height(rig, HEIGHT + 3)
    assert rig.imported_uj() == street.head_uj + carried_uj + (rig.book.accepted - 1) * STEP_UJ
    assert good(rig.state, rig) == HEIGHT + 3
    following = rig.blocks[HEIGHT]
    assert following.energy[0].first_uj == street.head_uj
    assert following.energy[0].last_uj >= street.head_uj + carried_uj
    assert following.start_s == street.full.blocks[-1].end_s
    assert following.clock.measured_ms >= said.measured_ms
    rig.card.close()


@pytest.mark.parametrize("late", [pytest.param(True, id="late"), pytest.param(False, id="at once")])
def test_the_next_block_says_that_samples_were_lost_and_it_was_rebased(
    rig: Rig, street: Street, *, late: bool
) -> None:
    rebase(rig, street)
    rig.start(rig.wall_ms / 1000 + 2, status="R" if late else "S")
    if late:
        measure(rig, 3)
        rig.status = "S"
    until_height(rig, HEIGHT + 2)
    flags = [block.flags & (LOST | REBASED) for block in rig.blocks[HEIGHT:]]
    assert flags == [LOST | REBASED, 0]
    rig.assert_good()


def test_a_start_that_measured_nothing_carries_nothing(street: Street) -> None:
    rig = street.restored(0)
    said = rebase(rig, street)
    assert said.measured_ms == 0
    assert {uj for _, _, uj in said.carried} == {0}
    rig.start(rig.wall_ms / 1000 + 2)
    until_height(rig, HEIGHT + 2)
    assert rig.imported_uj() == street.head_uj + (rig.book.accepted - 1) * STEP_UJ
    rig.assert_good()
    rig.card.close()


def test_what_is_carried_is_counted_once_over_further_starts(rig: Rig, street: Street) -> None:
    """Starts that seal nothing, and one that is killed as it seals, go on alike."""
    said = rebase(rig, street)
    expected_uj = street.head_uj + said.carried[0][2]
    for rows in (0, 3, 4):
        start_waiting(rig, rig.wall_ms / 1000 + 4)
        measure(rig, rows)
        expected_uj += max(0, rows - 1) * STEP_UJ
        assert rig.imported_uj() == expected_uj
        rig.card.close()
    for rows in (20, 5):
        rig.start(rig.wall_ms / 1000 + 4)
        assert rig.imported_uj() == expected_uj
        measure(rig, rows)
        expected_uj += (rows - 1) * STEP_UJ
        assert rig.imported_uj() == expected_uj
        rig.assert_good()
        rig.card.close()


def test_a_meter_whose_clock_is_late_then_goes_on_too(rig: Rig, street: Street) -> None:
    said = rebase(rig, street)
    rig.start(10, status="R")
    measure(rig, 5)
    rig.card.close()
    rig.start(BACK_S + 600)
    until_height(rig, HEIGHT + 2)
    rows = 4 + rig.book.accepted - 1
    assert rig.imported_uj() == street.head_uj + said.carried[0][2] + rows * STEP_UJ
    rig.assert_good()


def test_a_checkpoint_after_it_holds(rig: Rig, street: Street) -> None:
    """The event is behind the checkpoint then, and nobody reads it any more."""
    said = rebase(rig, street)
    rig.start(MIDNIGHT_S + 86_400 - 50)
    measure(rig, 30)
    assert (rig.state / CHECKPOINT_FILE).exists()
    expected_uj = street.head_uj + said.carried[0][2] + 29 * STEP_UJ
    rig.card.close()
    found = recover(rig.state, open_chain(rig.genesis, "kitchen-12"))
    assert (found.checkpoint_lost, found.found.recovered) == ("", None)
    assert found.checkpoint.start.chain.head.height > HEIGHT
    rig.start(rig.wall_ms / 1000 + 3)
    assert rig.imported_uj() == expected_uj
    measure(rig, 30)
    rig.assert_good()
    (rig.state / CHECKPOINT_FILE).unlink()
    rig.start(rig.wall_ms / 1000 + 3)
    assert rig.imported_uj() == expected_uj + 29 * STEP_UJ
    rig.assert_good()


def test_a_checkpoint_of_the_old_streams_goes_with_them(rig: Rig, street: Street) -> None:
    (rig.state / CHECKPOINT_FILE).write_bytes(b"of before")
    rebase(rig, street)
    assert not (rig.state / CHECKPOINT_FILE).exists()
    assert (rig.state / f"before-{OLD_HEIGHT}" / CHECKPOINT_FILE).read_bytes() == b"of before"


def test_what_is_carried_outlasts_a_second_time(street: Street) -> None:
    """Two answers told of block 7; after the start anew a third one tells of block 9."""
    rig = street.restored()
    first = rebase(rig, street, HEIGHT - 2)
    start_waiting(rig, rig.wall_ms / 1000 + 3)
    measure(rig, 4)
    rebase(rig, street)
    rig.start(rig.wall_ms / 1000 + 3)
    rig.card.close()
    assert rig.imported_uj() == street.head_uj + first.carried[0][2] + 3 * STEP_UJ


# --- power fails --------------------------------------------------------------------------------


class PowerError(BaseException):
    """Power failed: no handler runs."""


STEPS = ("rename", "replace", "mkdir", "unlink", "rmdir", "write", "fsync", "fdatasync")


class Fuse:
    """Counts what is done to the card, and lets it fail at a step."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
        self.steps = 0
        self.names: list[str] = []
        self._at, self._error = at, error
        for name in STEPS:
            patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        patch.setattr(shutil, "copyfile", self._wrapped("copyfile", shutil.copyfile))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the library has it
            if self.steps == self._at:
                if isinstance(self._error, OSError):
                    self._at = -1
                raise self._error
            self.steps += 1
            self.names.append(name)
            return None if "sync" in name else real(*args, **kwargs)

        return step


def blown(work: Callable[[], object], at: int, error: BaseException | None = None) -> Fuse | None:
    """Do `work` until power fails at step `at`; return None where it does, and the steps if not."""
    with pytest.MonkeyPatch.context() as patch:
        fuse = Fuse(patch, at, error or PowerError())
        try:
            work()
        except (PowerError, StorageError):
            return None
        return fuse


@pytest.fixture(scope="module")
def steps(street: Street) -> list[str]:
    """What a start anew does to the card, in order."""
    rig = street.restored()
    fuse = blown(lambda: rebase(rig, street), -1)
    assert fuse
    return fuse.names


def test_the_steps_are_those_that_matter(steps: list[str]) -> None:
    count = Counter(steps)
    assert count["rename"] == 2 * len(STREAMS), "the old one away, the new one in"
    assert count["replace"] == 2 + 1, "events and blocks (there are no samples yet); and whole"
    assert count["copyfile"] == 1
    assert len(steps) > 25


@pytest.mark.parametrize("part", range(4))
def test_a_power_failure_at_any_step_leaves_one_account_or_the_other(
    street: Street, steps: list[str], part: int
) -> None:
    """And the next start makes it good; the new one is there from some step on."""
    heights = []
    for at in range(part, len(steps), 4):
        rig = street.restored()
        assert blown(lambda rig=rig: rebase(rig, street), at) is None  # type: ignore[misc]
        assert (rig.state / "genesis.cbor").exists()
        began = finish(rig.state)
        height = good(rig.state, rig)
        assert height == (HEIGHT if began else height)
        assert not (rig.state / FOLDER).exists()
        if height == OLD_HEIGHT:
            assert not (rig.state / f"before-{OLD_HEIGHT}").exists()
        else:
            assert good(rig.state / f"before-{OLD_HEIGHT}", rig) == OLD_HEIGHT
        heights.append(height)
        assert_goes_on(rig, street, new=height == HEIGHT)
        shutil.rmtree(rig.state)
    assert heights == sorted(heights)
    assert set(heights) == {OLD_HEIGHT, HEIGHT}


def assert_goes_on(rig: Rig, street: Street, *, new: bool) -> None:
    expected_uj = 6 * STEP_UJ
    if new:
        expected_uj += street.head_uj
    else:
        expected_uj += (OPEN_ROWS * STEP_UJ) + street.full.blocks[OLD_HEIGHT - 1].energy[0].last_uj
    start_waiting(rig, rig.wall_ms / 1000 + 5)
    assert abs(rig.imported_uj() - expected_uj) <= STEP_UJ
    measure(rig, 3)
    rig.card.close()


def test_a_second_power_failure_in_the_midst_of_making_good_is_made_good(
    street: Street, steps: list[str]
) -> None:
    whole = len(steps) - steps[::-1].index("copyfile") - 1
    for first in range(whole, len(steps), 3):
        for second in range(0, len(steps) - whole, 2):
            rig = street.restored(1)
            blown(lambda rig=rig: rebase(rig, street), first)  # type: ignore[misc]
            blown(lambda rig=rig: finish(rig.state), second)  # type: ignore[misc]
            finish(rig.state)
            assert not finish(rig.state)
            assert good(rig.state, rig) == HEIGHT
            assert good(rig.state / f"before-{OLD_HEIGHT}", rig) == OLD_HEIGHT
            shutil.rmtree(rig.state)


def test_a_card_that_refuses_a_step_leaves_what_was_there(street: Street, steps: list[str]) -> None:
    """An error and no power failure: it is said, and the next start goes on from either."""
    full = OSError(errno.ENOSPC, "no space left on device")
    for at in range(2, len(steps), 3):
        rig = street.restored(1)
        blown(lambda rig=rig: rebase(rig, street), at, full)  # type: ignore[misc]
        finish(rig.state)
        assert good(rig.state, rig) in (OLD_HEIGHT, HEIGHT)
        assert not (rig.state / FOLDER).exists()
        shutil.rmtree(rig.state)


def test_a_full_card_is_said(rig: Rig, street: Street) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Fuse(patch, 5, OSError(errno.ENOSPC, "no space left on device"))
        with pytest.raises(StorageError, match="no space left"):
            rebase(rig, street)
    assert good(rig.state, rig) == OLD_HEIGHT


def test_where_nothing_was_begun_there_is_nothing_to_finish(rig: Rig) -> None:
    assert not finish(rig.state)
    (rig.state / FOLDER / "blocks").mkdir(parents=True)
    assert not finish(rig.state)
    assert not (rig.state / FOLDER).exists()
    assert good(rig.state, rig) == OLD_HEIGHT


def test_a_name_that_power_failed_on_is_no_name(rig: Rig) -> None:
    """The file is made, then written, then synced: its size may come before what is in it."""
    for stream in STREAMS:
        (rig.state / FOLDER / stream).mkdir(parents=True)
    (rig.state / FOLDER / WHOLE).touch()
    rig.card.close()
    assert not finish(rig.state)
    assert good(rig.state, rig) == OLD_HEIGHT


def test_a_card_that_is_put_back_twice_to_the_same_block_goes_on(street: Street) -> None:
    """Its three streams are copied back; what was kept beside the first time still lies there."""
    rig = street.restored()
    rebase(rig, street)
    for stream in STREAMS:
        shutil.rmtree(rig.state / stream)
        shutil.copytree(street.image / stream, rig.state / stream)
    start_waiting(rig, BACK_S + 500)
    measure(rig, 3)
    rebase(rig, street)
    assert good(rig.state, rig) == HEIGHT


# --- an owner who forges ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def anew(street: Street) -> Stored:
    """An account that has begun anew and sealed two blocks since."""
    rig = street.restored()
    rebase(rig, street)
    rig.start(rig.wall_ms / 1000 + 2)
    until_height(rig, HEIGHT + 2)
    rig.stop()
    stored = Stored.read(rig.state)
    assert stored.judge().verdict == "good"
    return stored


@pytest.fixture(scope="module")
def fresh(street: Street) -> Stored:
    """An account that has just begun anew, and sealed nothing since."""
    rig = street.restored()
    rebase(rig, street)
    return Stored.read(rig.state)


EITHER = pytest.mark.parametrize("which", [pytest.param("anew"), "fresh"])


def events_of(stored: Stored, change: Callable[[list[Event]], list[Event]]) -> Stored:
    """Return the account with the events of its first segment changed, and all links made anew."""
    bodies = [decode_event(body) for body in stored.bodies("events", 1)]
    return stored.relinked("events", 1, [event.encode() for event in change(bodies)])


def said_by(event: Event) -> Recovered:
    details: dict[str, Any] = dict(event.details)
    return Recovered(
        details["height"],
        details["hash"],
        details["run"],
        details["measured_ms"],
        decode(details["carried"]),
        details.get("parameters", b""),
    )


def with_details(event: Event, **changed: Any) -> Event:  # noqa: ANN401
    details = tuple((name, changed.get(name, value)) for name, value in event.details)
    return replace(event, details=details)


def resealed(street: Street, event: Event, *, by: SigningKey | None = None, **at: Any) -> Event:  # noqa: ANN401
    chain = street.full.book.chain._replace(**at)
    return replace(event, details=seal_recovered(said_by(event), chain, by or street.full.key))


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda e, s: resealed(s, e, by=STRANGER), id="a stranger sealed"),
        pytest.param(lambda e, s: resealed(s, e, genesis=bytes(32)), id="is another network's"),
        pytest.param(lambda e, s: resealed(s, e, meter="house-9"), id="is another meter's"),
        pytest.param(lambda e, s: resealed(s, e, incarnation=2), id="is another incarnation's"),
        pytest.param(lambda e, _: with_details(e, height=HEIGHT + 1), id="has another height"),
        pytest.param(lambda e, _: with_details(e, hash=bytes(32)), id="has another hash"),
        pytest.param(lambda e, _: with_details(e, run=99), id="has another run"),
        pytest.param(lambda e, _: with_details(e, measured_ms=0), id="measured another time"),
        pytest.param(lambda e, _: with_details(e, carried=b"\x80"), id="carries nothing"),
        pytest.param(lambda e, _: with_details(e, carried=b"\x81\x00"), id="carries no register"),
        pytest.param(lambda e, _: with_details(e, seal=b""), id="has no seal"),
        pytest.param(lambda e, _: with_details(e, seal=bytes(64)), id="has a seal of zeros"),
        pytest.param(lambda e, _: replace(e, details=e.details[1:]), id="leaves out the height"),
        pytest.param(lambda e, _: replace(e, kind="started"), id="is called otherwise"),
        pytest.param(lambda e, _: replace(e, number=0), id="has no number"),
    ],
)
@EITHER
def test_an_account_is_bad_whose_first_event(
    request: pytest.FixtureRequest,
    street: Street,
    which: str,
    forge: Callable[[Event, Street], Event],
) -> None:
    stored: Stored = request.getfixturevalue(which)
    forged = events_of(stored, lambda events: [forge(events[0], street), *events[1:]])
    assert forged.judge().verdict == "bad"


def test_a_seal_of_the_meter_itself_makes_the_forgery_above_good(
    fresh: Stored, street: Street
) -> None:
    """What the table changes is what makes it bad."""
    again = events_of(fresh, lambda events: [resealed(street, events[0]), *events[1:]])
    assert again.judge().verdict == "good"


@EITHER
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda events: events[1:], id="without it"),
        pytest.param(
            lambda events: [
                replace(events[1], number=events[0].number),
                replace(events[0], number=events[1].number),
                *events[2:],
            ],
            id="with another before it",
        ),
        pytest.param(
            lambda events: [replace(event, number=event.number + 3) for event in events[1:]],
            id="with others in its place, numbered on",
        ),
        pytest.param(
            lambda events: [events[0], *(replace(e, number=e.number + 1) for e in events[1:])],
            id="with a number left out behind it",
        ),
    ],
)
def test_an_account_that_begins_anew_is_bad(
    request: pytest.FixtureRequest, which: str, change: Callable[[list[Event]], list[Event]]
) -> None:
    stored: Stored = request.getfixturevalue(which)
    assert events_of(stored, change).judge().verdict == "bad"


@pytest.mark.parametrize("which", ["anew", "old"])
def test_an_account_is_bad_with_the_event_behind_others(
    street: Street, anew: Stored, which: str
) -> None:
    """Of the old card it would excuse every sample that was edited there."""
    stored = Stored.read(street.image) if which == "old" else anew
    assert stored.judge().verdict == "good"
    genuine = anew.events[0].details
    assert stored.with_event("recovered", genuine).judge().verdict == "bad"


def test_the_event_of_the_new_streams_excuses_no_edit_of_the_old_ones(
    street: Street, anew: Stored
) -> None:
    old = Stored.read(street.image)
    bodies = old.bodies("samples", 1)
    bodies[10] = bodies[10][:-3] + b"\x01\x02\x03"
    edited = old.relinked("samples", 1, bodies)
    assert edited.judge().verdict == "bad"
    assert edited.with_event("recovered", anew.events[0].details).judge().verdict == "bad"


def without_last_blocks(stored: Stored, count: int) -> Stored:
    return stored.relinked("blocks", 1, stored.bodies("blocks", 1)[:-count])


def test_blocks_that_neighbours_gave_back_cannot_be_cut_off_again(fresh: Stored) -> None:
    """The meter would seal their heights a second time, were it not for the boot rule."""
    assert without_last_blocks(fresh, 2).judge().verdict == "bad"


def test_an_account_is_bad_whose_meter_names_another_block_given_back(street: Street) -> None:
    rig = street.restored()
    measure(rig, 4)
    rebase(rig, street, named=bytes(32))
    found = verify(rig.state, Known(genesis=rig.genesis.encode()))
    assert found.verdict == "bad"
    assert found.first_bad
    assert found.first_bad.reason == "an event says that another was given"


def test_the_blocks_given_back_are_judged_as_any_others(fresh: Stored) -> None:
    for at in range(HEIGHT):
        bodies = fresh.bodies("blocks", 1)
        payload = take_apart(bodies[at]).payload
        where = bodies[at].index(payload) + len(payload) // 2
        bodies[at] = bodies[at][:where] + bytes([bodies[at][where] ^ 1]) + bodies[at][where + 1 :]
        verdict = fresh.relinked("blocks", 1, bodies).judge()
        assert verdict.verdict == "bad"
        assert verdict.first_bad
        assert verdict.first_bad.height == at + 1


def test_samples_behind_the_blocks_given_back_are_judged_as_any_others(anew: Stored) -> None:
    bodies = anew.bodies("samples", 1)
    bodies[1] = bodies[1][:-2] + b"\x01\x02"
    verdict = anew.relinked("samples", 1, bodies).judge()
    assert verdict.first_bad
    assert (verdict.verdict, verdict.first_bad.stream) == ("bad", "samples")
    assert verdict.first_bad.height is not None
    assert verdict.first_bad.height > HEIGHT


def test_a_meter_refuses_an_account_that_was_forged(street: Street, fresh: Stored) -> None:
    rig = street.restored()
    forged = events_of(
        fresh, lambda events: [with_details(events[0], height=HEIGHT + 1), *events[1:]]
    )
    forged.write(rig.state)
    with pytest.raises(LedgerDamagedError, match="does not verify"):
        rig.start(BACK_S + 1000)
    rig.card.close()


def test_every_block_bears_the_events_number_on(anew: Stored) -> None:
    """Numbers jump at the first event, and at no other."""
    numbers = [event.number for event in anew.events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    counts = [block.events for block in anew.blocks]
    assert counts == sorted(counts)
    assert counts[HEIGHT - 1] < numbers[0] <= counts[HEIGHT]
