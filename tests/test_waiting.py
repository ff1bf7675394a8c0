"""A run that waits for the boot rule seals in the end what one seals that never had to wait.

Both live through the same days; the one that waits is asked to release what it held at some moment.
Energy, times, flags and statuses of its intervals are the other's, byte for byte.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from meterd.authority.boot import FRESH_MS
from meterd.bookkeeper import Bookkeeper
from meterd.device.recovery import recover
from meterd.errors import StorageError
from meterd.hearing import Hearing
from meterd.ledger.chain import open_chain
from meterd.metering.interval import LOST
from meterd.metering.placement import WALLS_MAX
from tests.accounts import folder
from tests.rig import INTERVAL_S, MIDNIGHT_S, POLLING_MS, WATTS, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.accounts import Interval

NOON_S = MIDNIGHT_S + 43_200
NIGHT_S = MIDNIGHT_S - 5 * INTERVAL_S
DAY_MS = 86_400_000


class Waiting(Bookkeeper):
    """A bookkeeper of a meter whose neighbours have not answered."""

    def start(self, boot_ms: int, wall_ms: int, details: Any = ()) -> None:  # noqa: ANN401
        self.waiting = True
        super().start(boot_ms, wall_ms, details)


@contextmanager
def starting_to_wait() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.rig.Bookkeeper", Waiting)
        yield


class Step(NamedTuple):
    """What happens: `rows`, `pass`, `clock`, `status`, `tick`, `kill`, `stop` or `release`;
    `hold` from here on, or `seal` what is due and hold what follows.

    Attributes:
        what: One of these.
        value: How many rows; ms that pass or that the clock is set by; the status; seconds
            until the next start.
        elapsed_ms: Between two rows.
        status: Of the next start.
    """

    what: str
    value: Any = 0
    elapsed_ms: int = POLLING_MS
    status: str = "S"


class Life:
    """One meter that lives through a script."""

    def __init__(self, state: Path, start: Step, *, waits: bool) -> None:
        self.rig, self.waits = Rig(state), waits
        self._begin(NOON_S if start.what == "noon" else NIGHT_S, start.status, boot_ms=1000)

    def _begin(self, wall_s: float, status: str, boot_ms: int = 700) -> None:
        if self.waits:
            with starting_to_wait():
                self.rig.start(wall_s, status=status, boot_ms=boot_ms)
        else:
            self.rig.start(wall_s, status=status, boot_ms=boot_ms)

    def play(self, step: Step) -> None:
        rig, before = self.rig, self.rig.book.chain.head.height
        match step.what:
            case "rows":
                rig.rows(step.value, step.elapsed_ms)
            case "pass":
                rig.wait(step.value)
            case "clock":
                rig.wait(0, step_ms=step.value)
            case "status":
                rig.status = step.value
            case "tick" | "seal" if not rig.book.waiting:
                rig.book.tick(rig.boot_ms, rig.stamp)
            case "release" if rig.book.waiting:
                rig.commit()
                rig.book.release()
                before = rig.book.chain.head.height
            case "hold" if self.waits:
                rig.book.waiting = True
            case "seal":
                rig.commit()
                rig.book.stamp(rig.stamp)
                due = rig.book.due
                rig.book.release(first_only=True)
                if not rig.book.waiting and rig.book.chain.head.height == before:
                    rig.book.tick(rig.boot_ms, rig.stamp)
                assert rig.book.chain.head.height <= before + 1
                assert due or rig.book.chain.head.height == before, "it was due"
                before, rig.book.waiting = rig.book.chain.head.height, True
            case "kill" | "stop":
                rig.commit()
                if step.what == "stop":
                    rig.stop()
                rig.card.close()
                self._begin(rig.wall_ms / 1000 + step.value, step.status)
        rig.commit()
        if rig.book.waiting:
            assert rig.book.chain.head.height == before, "a block was sealed while it waited"
            assert len(rig.blocks) == before


def lives(script: list[Step], first: Step, state: Path, *, waits: bool) -> Rig:
    life = Life(state, first, waits=waits)
    for step in script:
        life.play(step)
    life.play(Step("release"))
    life.play(Step("rows", 14))
    life.play(Step("stop", 3, status="S"))
    life.play(Step("release"))
    life.play(Step("rows", 14))
    life.rig.card.close()
    return life.rig


NOON = Step("noon")


def assert_alike(script: list[Step], state: Path, first: Step = NOON) -> tuple[Rig, Rig]:
    """One that waits and one that does not seal the same intervals, and both are good."""
    plain = lives(script, first, state / "plain", waits=False)
    waited = lives(script, first, state / "waited", waits=True)
    expected: list[Interval] = plain.account.intervals
    assert waited.account.intervals == expected
    assert waited.book.registers_uj() == plain.book.registers_uj()
    assert waited.assert_good().records == plain.assert_good().records
    assert waited.account.rows == plain.account.rows
    return plain, waited


ROWS, MORE = Step("rows", 27), Step("rows", 19, 4900)
RELEASE, HOLD, SEAL = Step("release"), Step("hold"), Step("seal")


@pytest.mark.parametrize(
    ("script", "first"),
    [
        pytest.param([RELEASE, ROWS], NOON, id="before anything was measured"),
        pytest.param([Step("rows", 1), RELEASE, ROWS], NOON, id="after the first row"),
        pytest.param([ROWS, RELEASE, MORE], NOON, id="after some intervals"),
        pytest.param([ROWS, MORE, ROWS, MORE, ROWS], NOON, id="at the end"),
        pytest.param([ROWS, MORE, RELEASE], Step("night"), id="past midnight"),
        pytest.param(
            [ROWS, Step("rows", 200, 15_000), MORE, RELEASE, ROWS],
            Step("night"),
            id="long past midnight",
        ),
        pytest.param(
            [ROWS, Step("kill", 9), MORE, RELEASE, ROWS], NOON, id="of a start after a kill"
        ),
        pytest.param(
            [RELEASE, ROWS, Step("kill", 9), MORE, RELEASE, ROWS],
            NOON,
            id="of a start after a kill of one that sealed",
        ),
        pytest.param(
            [ROWS, Step("stop", 200), MORE, RELEASE, ROWS], NOON, id="of a start after a stop"
        ),
        pytest.param(
            [ROWS, *[Step("kill", 11), MORE] * 3, RELEASE], NOON, id="after three killed starts"
        ),
        pytest.param([ROWS, Step("kill", 2 * 86_400), MORE], NOON, id="after days without power"),
        pytest.param(
            [ROWS, Step("status", "S"), MORE, RELEASE, ROWS],
            Step("noon", status="R"),
            id="where the clock is set late",
        ),
        pytest.param(
            [ROWS, RELEASE, MORE, Step("status", "S"), ROWS],
            Step("noon", status="R"),
            id="before the clock is set",
        ),
        pytest.param(
            [ROWS, Step("kill", 5, status="R"), MORE, Step("kill", 5), ROWS, RELEASE],
            Step("noon", status="R"),
            id="after two starts that never knew the time",
        ),
        pytest.param([Step("rows", 800), RELEASE, ROWS], Step("noon", status="R"), id="of an hour"),
        pytest.param(
            [ROWS, Step("clock", 30_000), MORE, RELEASE, ROWS], NOON, id="after a step forward"
        ),
        pytest.param(
            [ROWS, Step("clock", -30_000), MORE, RELEASE, ROWS], NOON, id="after a step back"
        ),
        pytest.param(
            [ROWS, Step("clock", 600_000), MORE, Step("clock", -600_000), ROWS, RELEASE, MORE],
            NOON,
            id="after a step and another back",
        ),
        pytest.param(
            [RELEASE, ROWS, Step("clock", -3_600_000), MORE, Step("clock", 3_600_000), ROWS],
            NOON,
            id="where the clock lay behind for a while",
        ),
        pytest.param(
            [ROWS, Step("clock", 2 * DAY_MS), MORE, RELEASE, Step("rows", 130)],
            NOON,
            id="while a long step proves itself",
        ),
        pytest.param(
            [ROWS, Step("clock", 2 * DAY_MS), Step("rows", 130), MORE, RELEASE, ROWS],
            NOON,
            id="after a long step proved itself",
        ),
        pytest.param(
            [ROWS, Step("clock", 2 * DAY_MS), MORE, Step("clock", -2 * DAY_MS), ROWS, RELEASE],
            NOON,
            id="after a long step was taken back",
        ),
        pytest.param(
            [ROWS, Step("clock", 40_000), MORE, Step("kill", 5), ROWS, RELEASE],
            NOON,
            id="of a start after a step and a kill",
        ),
        pytest.param(
            [ROWS, Step("pass", 400_000), MORE, RELEASE, ROWS], NOON, id="after a hole in the rows"
        ),
        pytest.param(
            [ROWS, Step("status", "R"), MORE, Step("status", "S"), ROWS, RELEASE],
            NOON,
            id="after the clock was lost and found",
        ),
        pytest.param(
            [
                *(Step("rows", 3), Step("rows", 21, 4900), Step("clock", -3000)),
                *(Step("pass", 3000), Step("rows", 1), Step("kill", 1)),
            ],
            NOON,
            id="after a step back whose first row crosses a boundary, and a kill",
        ),
        pytest.param(
            [ROWS, SEAL, MORE, SEAL, SEAL, ROWS, SEAL, RELEASE, MORE], NOON, id="bit by bit"
        ),
        pytest.param(
            [ROWS, SEAL, Step("pass", 61_000), SEAL, MORE, SEAL, RELEASE, MORE],
            NOON,
            id="bit by bit, where the board falls silent",
        ),
        pytest.param(
            [ROWS, SEAL, MORE, Step("kill", 9), MORE, SEAL, ROWS, RELEASE],
            NOON,
            id="bit by bit, where power fails",
        ),
        pytest.param(
            [RELEASE, ROWS, HOLD, MORE, SEAL, ROWS, RELEASE, MORE, HOLD, ROWS, RELEASE],
            NOON,
            id="after it was held again and again",
        ),
    ],
)
def test_what_is_released_is_what_would_have_been_sealed(
    tmp_path: Path, script: list[Step], first: Step
) -> None:
    plain, _ = assert_alike(script, tmp_path, first)
    assert len(plain.blocks) >= 3, "a script that seals little says little"


_STEPS = st.one_of(
    st.builds(
        Step,
        st.just("rows"),
        st.integers(1, 30),
        st.sampled_from((POLLING_MS, 4_900, 7_300, 14_000, 20_000)),
    ),
    st.builds(Step, st.just("pass"), st.sampled_from((3_000, 16_000, 61_000, 300_000))),
    st.builds(
        Step,
        st.just("clock"),
        st.sampled_from((-90_000, -30_000, -3_000, 3_000, 30_000, 90_000, 3_600_000)),
    ),
    st.builds(Step, st.just("status"), st.sampled_from(("S", "S", "R", "I"))),
    st.builds(
        Step,
        st.sampled_from(("kill", "stop")),
        st.sampled_from((1, 8, 59, 700)),
        st.just(POLLING_MS),
        st.sampled_from(("S", "S", "R")),
    ),
    st.sampled_from((RELEASE, HOLD, SEAL, SEAL)),
)


def heard_again(script: list[Step]) -> list[Step]:
    """Let a row come behind each silence before the clock is set, or the run ends.

    Where a silence closes an interval before the row behind it comes, both say the same of it; not
    so where no such row comes, or under another clock, which has a test of its own below.
    """
    heard, silent = [], False
    for step in script:
        if step.what in {"clock", "kill", "stop"} and silent:
            heard.append(Step("rows", 1))
        if step.what in {"rows", "pass", "clock", "kill", "stop"}:
            silent = step.what == "pass"
        heard.append(step)
    return heard


_SCRIPTS = st.lists(_STEPS, min_size=2, max_size=9).map(heard_again)
_FIRST = st.builds(
    Step,
    st.sampled_from(("noon", "night")),
    st.just(0),
    st.just(POLLING_MS),
    st.sampled_from(("S", "R")),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(script=_SCRIPTS, first=_FIRST)
@example(script=[ROWS, Step("clock", -90_000), MORE], first=NOON)
def test_whenever_it_is_released_it_has_sealed_the_same(script: list[Step], first: Step) -> None:
    with folder() as state:
        assert_alike(script, state, first)


@pytest.mark.soak
@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(script=_SCRIPTS, first=_FIRST)
def test_whenever_it_is_released_it_has_sealed_the_same_for_long(
    script: list[Step], first: Step
) -> None:
    with folder() as state:
        assert_alike(script, state, first)


def net_uj(rig: Rig) -> int:
    told = rig.book.registers_uj()
    return told["1-0:1.8.0"][0] - told["1-0:2.8.0"][0]


@pytest.mark.parametrize(
    ("behind", "ends_s"),
    [
        pytest.param(Step("clock", -90_000), [60, 106, 120], id="the clock is set"),
        pytest.param(Step("kill", 1), [60, 65, 120], id="power fails"),
    ],
)
def test_what_happens_in_a_silence_may_cut_one_that_waits_elsewhere(
    tmp_path: Path, behind: Step, ends_s: list[int]
) -> None:
    """Limits in README: a silence closes an interval when it is seen to, and of that no row tells.

    One that waits closes nothing. Rows and net energy are alike; a boundary between a row of import
    and one of export tells the two apart.
    """
    script = [Step("rows", 13), Step("pass", 61_000), SEAL, behind]
    plain = lives(script, NOON, tmp_path / "plain", waits=False)
    waited = lives(script, NOON, tmp_path / "waited", waits=True)
    assert [one.end_s - NOON_S for one in plain.account.intervals[:2]] == [60, 120]
    assert [one.end_s - NOON_S for one in waited.account.intervals[:3]] == ends_s
    assert net_uj(waited) == net_uj(plain)
    plain.assert_good()
    waited.assert_good()
    assert waited.account.rows == plain.account.rows


def test_a_clock_that_wavers_a_hundred_times_is_remembered(tmp_path: Path) -> None:
    """More often than the placement keeps in mind: an unreliable clock, and days of waiting."""
    script = [
        step
        for at in range(WALLS_MAX + 20)
        for step in (Step("status", "I" if at % 3 == 0 else "S"), Step("rows", 6))
    ]
    assert_alike([*script, RELEASE, ROWS], tmp_path)


# --- while it waits -----------------------------------------------------------------------------


def waiting_rig(state: Path, wall_s: float = NOON_S) -> Rig:
    rig = Rig(state)
    with starting_to_wait():
        rig.start(wall_s)
    return rig


def test_nothing_is_sealed_while_it_waits_and_all_is_counted(tmp_path: Path) -> None:
    rig = waiting_rig(tmp_path / "account")
    for _ in range(10):
        rig.rows(13)
        rig.book.tick(rig.boot_ms, rig.stamp)
        rig.commit()
        assert not rig.book.take_sealed()
        assert rig.blocks == []
    verdict = rig.assert_good()
    assert (verdict.blocks, verdict.open_rows) == (0, 130)
    plain = Rig(tmp_path / "plain")
    plain.start(NOON_S)
    for _ in range(10):
        plain.rows(13)
    assert rig.imported_uj() == plain.imported_uj()
    rig.card.close()


@pytest.mark.parametrize("how", ["tick", "seal_open", "stop"])
def test_it_seals_nothing_either_by(tmp_path: Path, how: str) -> None:
    rig = waiting_rig(tmp_path / "account")
    rig.rows(20)
    rig.commit()
    if how == "tick":
        rig.wait(10 * INTERVAL_S * 1000)
        rig.book.tick(rig.boot_ms, rig.stamp)
    elif how == "seal_open":
        rig.book.seal_open()
    rig.stop()
    assert rig.blocks == []
    rig.assert_good()


def test_what_a_start_closes_of_the_run_before_waits_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "account")
    rig.start(NOON_S)
    rig.rows(20)
    rig.stop()
    before = len(rig.blocks)
    with starting_to_wait():
        rig.start(NOON_S + 500)
    assert not rig.book.take_sealed()
    rig.rows(20)
    rig.commit()
    assert len(rig.blocks) == before
    rig.book.release()
    rig.commit()
    sealed = rig.book.take_sealed()
    assert [height for height, _ in sealed] == list(range(before + 1, len(rig.blocks) + 1))
    assert len(sealed) >= 3, "the run before, the gap, and what this one measured"
    rig.assert_good()


def test_where_nobody_released_the_next_start_closes_it_all(tmp_path: Path) -> None:
    """A card whose rows waited for a week is an ordinary one to whoever starts it then."""
    rig = waiting_rig(tmp_path / "account")
    rig.rows(300)
    rig.stop()
    rig.start(NOON_S + 3600)
    rig.commit()
    assert sum(block.records for block in rig.blocks) == 300
    rig.assert_good()


def test_what_it_counted_is_told_before_it_is_sealed(tmp_path: Path) -> None:
    """`measured`: what a start carries over where its account has to begin anew."""
    rig = Rig(tmp_path / "account")
    rig.start(NOON_S)
    rig.rows(20)
    rig.stop()
    sealed_uj = rig.imported_uj()
    with starting_to_wait():
        rig.start(NOON_S + 500)
    assert rig.book.measured()[0] == 0
    assert {uj for _, _, uj in rig.book.measured()[1]} == {0}
    rig.rows(50)
    measured_ms, carried = rig.book.measured()
    assert measured_ms == 49 * POLLING_MS
    assert carried[0][2] == rig.imported_uj() - sealed_uj
    assert len(carried) == len(rig.book.registers_uj())
    rig.card.close()


@pytest.mark.parametrize(
    ("before", "held", "after"),
    [(30, 0, 30), (30, 1, 30), (29, 40, 30), (36, 36, 36), (1, 100, 1), (37, 150, 40)],
)
def test_sealing_stops_in_the_midst_of_a_run_and_goes_on(
    tmp_path: Path, before: int, held: int, after: int
) -> None:
    """A neighbour showed that somebody seals with our key; then it was resolved."""
    plain, rig = Rig(tmp_path / "plain"), Rig(tmp_path / "account")
    for one in (plain, rig):
        one.start(NOON_S)
        one.rows(before)
        one.commit()
    height = rig.book.chain.head.height
    rig.book.waiting = True
    for one in (plain, rig):
        one.rows(held)
        one.commit()
    assert len(rig.blocks) == height
    rig.book.release()
    for one in (plain, rig):
        one.rows(after)
        one.commit()
        one.card.close()
    assert rig.account.intervals == plain.account.intervals
    assert rig.book.registers_uj() == plain.book.registers_uj()
    rig.assert_good()


def test_a_card_that_is_full_while_it_waits_loses_samples_and_no_energy(tmp_path: Path) -> None:
    """But for what flows between the last row before the release and the next one."""
    rig, plain = waiting_rig(tmp_path / "account"), Rig(tmp_path / "plain")
    plain.start(NOON_S)
    for one in (plain, rig):
        one.rows(30)
        one.commit()
        one.book.storing = False
        one.rows(30)
        one.commit()
        one.book.storing = True
        one.rows(30)
        one.commit()
    rig.book.release()
    for one in (plain, rig):
        one.rows(30)
        one.commit()
        one.card.close()
    one_step_uj = max(WATTS) * 1000 * POLLING_MS
    assert 0 <= plain.imported_uj() - rig.imported_uj() <= one_step_uj
    assert any(block.flags & LOST for block in rig.blocks)
    rig.assert_good()
    plain.assert_good()


class Answering:
    """Neighbours that answer a question 200 ms after it, and certify nothing."""

    stopped, recovered, free, waits, order = "", (), False, "", (0, bytes(32))
    claims = SimpleNamespace(changed=lambda _now_ms: None)

    def __init__(self, book: Bookkeeper) -> None:
        self.book, self.height, self.chain = book, book.chain.head.height, book.chain
        self.asked_ms: int | None = None
        self.sealed = False

    def read(self, _now_ms: int) -> list[bytes]:
        return []

    def may_seal(self, now_ms: int) -> bool:
        fresh = self.asked_ms is not None and 200 <= now_ms - self.asked_ms < FRESH_MS
        return fresh and not self.sealed

    def turn(self, now_ms: int, *, due: bool) -> None:
        self.sealed = self.book.chain.head.height > self.height
        if due and not self.may_seal(now_ms):
            self.asked_ms = now_ms


def hearing_of(rig: Rig) -> Hearing:
    async def flush() -> None:
        rig.commit()

    neighbours: Any = Answering(rig.book)
    clock: Any = SimpleNamespace(stamp=lambda: rig.stamp)
    return Hearing(
        neighbours,
        rig.book,
        clock,
        state=rig.state,
        logger=logging.getLogger(),
        flush=flush,
        tell=lambda _kind, _details: None,
    )


def test_a_block_that_took_longer_than_answers_stay_fresh_is_given_up(tmp_path: Path) -> None:
    rig = waiting_rig(tmp_path / "account")
    hearing, release = hearing_of(rig), rig.book.release

    def slowly(**how: Any) -> None:  # noqa: ANN401
        release(**how)
        rig.wait(FRESH_MS)

    rig.book.release = slowly  # type: ignore[method-assign]
    rig.rows(20)
    for _ in range(2):
        hearing.rung = True
        with suppress(StorageError):
            asyncio.run(hearing.turn())
            assert rig.book.chain.head.height == 0, "it was to be given up"
        rig.wait(300)
    assert rig.book.chain.head.height == 1
    assert rig.blocks == [], "nothing has left"


@pytest.mark.parametrize(("storing", "sealed"), [(True, 1), (False, 14)])
def test_a_start_on_a_full_card_counts_and_seals_on(
    tmp_path: Path, storing: bool, sealed: int
) -> None:
    """With room the second block waits for the first to be certified, which here never is.

    On a full card nobody but the running sums knows what was measured: they are not held up.
    """
    rig = waiting_rig(tmp_path / "account")
    rig.book.storing = storing
    hearing = hearing_of(rig)
    for _ in range(15 * INTERVAL_S // 5 + 1):
        rig.row(300, 4500)
        for wait_ms in (500, 0):
            hearing.rung = True
            asyncio.run(hearing.turn())
            rig.commit()
            rig.wait(wait_ms)
    assert rig.book.chain.head.height == sealed
    assert rig.imported_uj() >= 300_000_000 * (15 * INTERVAL_S - 10)
    rig.assert_good()


@pytest.mark.parametrize("interval_s", [30, 300])
@pytest.mark.parametrize("between", [False, True], ids=["before", "between two releases"])
def test_an_order_of_another_interval_waits_for_what_was_cut_before_it(
    tmp_path: Path, interval_s: int, *, between: bool
) -> None:
    rig = waiting_rig(tmp_path / "account", MIDNIGHT_S - 130)
    rig.rows(80)
    rig.commit()
    rig.card.close()
    with starting_to_wait():
        rig.start(rig.wall_ms / 1000 + 5, boot_ms=700)
    rig.rows(5)
    rig.commit()
    for order in (not between, between):
        if order:
            changes = ((MIDNIGHT_S, interval_s),)
            chain = rig.book.chain._replace(changes=((1, *changes[0]),))
            rig.book.obey(chain, (1, bytes([7] * 32)), changes)
        rig.book.release(first_only=not order or not between)
        rig.commit()
    rig.book.release()
    rig.commit()
    assert len(rig.blocks) >= 5
    rig.rows(100)
    rig.commit()
    assert rig.blocks[-1].end_s - rig.blocks[-1].start_s == interval_s


def test_power_that_fails_in_the_midst_of_a_release_loses_no_block(tmp_path: Path) -> None:
    """Whatever of it is on the card, the next start seals the rest, and nothing a second time."""
    rig = waiting_rig(tmp_path / "account")
    rig.rows(100)
    rig.commit()
    rig.book.release()
    operations = rig.book.commit()
    rig.card.close()
    whole = None
    for count in range(len(operations) + 1):
        state = shutil.copytree(rig.state, tmp_path / f"cut-{count}")
        cut = Rig(state)
        moved = [one._replace(path=state / one.path.relative_to(rig.state)) for one in operations]
        cut.card.perform(moved[:count])
        cut.card.close()
        assert cut.verify().verdict == "good"
        cut.start(NOON_S + 1000)
        cut.rows(3)
        cut.commit()
        cut.assert_good()
        cut.card.close()
        said = [
            (block.start_s, block.end_s, block.flags, block.clock.measured_ms, block.energy)
            for block in cut.blocks
        ]
        whole = whole or said
        assert said == whole


def test_recovery_finds_the_rows_that_waited(tmp_path: Path) -> None:
    rig = waiting_rig(tmp_path / "account")
    rig.rows(100)
    rig.commit()
    rig.card.close()
    found = recover(rig.state, open_chain(rig.genesis, "kitchen-12"))
    assert sum(part.segment.rows - part.first_row for part in found.found.open) == 100
