"""The whole path of a watt, driven reading by reading: what a capture cannot say."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from meterd.device.recovery import CHECKPOINT_FILE
from meterd.errors import LedgerDamagedError, StorageError
from meterd.flapping import FALL_EVERY_MS, FALLS_AT_ONCE
from meterd.ledger.account import decode_parameters
from meterd.ledger.block import UJ_MAX
from meterd.ledger.row import ELAPSED_MS_MAX
from tests.accounts import folder, replay_lines
from tests.bookkeeper_kit import DAY_S, TEXT, headers, spans, with_circuits
from tests.rig import MIDNIGHT_S, POLLING_MS, WATTS, Rig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "account")


# --- starting and stopping ---------------------------------------------------------------------


def test_a_restart_within_an_interval_makes_two_blocks_of_it(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    rig.stop()
    rig.start(MIDNIGHT_S + 30.4)
    rig.rows(7)
    rig.commit()
    assert spans(rig) == [(0, 15, ("partial",)), (15, 60, ("gap",))]
    first, second = rig.blocks
    assert (first.clock.measured_ms, second.clock.measured_ms) == (10_000, 24_600)
    rig.assert_good()


def test_many_restarts_lose_no_sealed_energy_and_count_no_hole_twice(rig: Rig) -> None:
    sums = []
    for number in range(20):
        rig.start(MIDNIGHT_S + 7 * number)
        sums.append(rig.imported_uj())
        rig.rows(1)
        rig.commit()
    assert sums == sorted(sums)
    rig.assert_good()


def test_starts_without_a_reading_make_no_blocks(rig: Rig) -> None:
    for number in range(5):
        rig.start(MIDNIGHT_S + 100 * number)
        rig.stop()
    assert rig.blocks == []
    rig.assert_good()


def test_what_a_start_seals_was_measured_under_its_own_parameters(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    rig.stop()
    old = rig.book.parameters
    rig.start(MIDNIGHT_S + 30, text=TEXT.replace("polling_ms", "# longer\npolling_ms", 1))
    assert rig.book.parameters == old, "a comment changes nothing"
    rig.stop()
    rig.start(MIDNIGHT_S + 40, text=TEXT.replace('name = "mains"', 'name = "mains"\nscale = 2'))
    rig.rows(9)
    rig.stop()
    new = rig.book.parameters
    assert new.sequence == 2
    by_hash = {event.bytes_of("record"): event for event in rig.told("parameters")}
    assert [decode_parameters(record) for record in by_hash] == [old, new]
    changed = dict(rig.told("parameters")[1].details)
    values = {name: value for name, value in changed.items() if name.startswith("clamp")}
    assert set(values.values()) == {"1", "2"}
    assert all(name.endswith((" old", " new")) for name in values)
    seen = [block.parameters for block in rig.blocks]
    assert seen[0] != seen[-1]
    assert len(set(seen)) == 2
    rig.assert_good()


def test_another_software_is_another_parameter_record(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "account")
    for number, software in enumerate((b"\1" * 32, b"\1" * 32, b"\2" * 32)):
        rig.software_id = software
        rig.start(MIDNIGHT_S + 100 * number)
        rig.rows(14)
        rig.stop()
    first, second = rig.told("parameters")
    assert decode_parameters(first.bytes_of("record")).sequence == 1
    assert second["software old"] == ("01" * 32)
    assert second["software new"] == ("02" * 32)
    rig.assert_good()


def test_registers_of_clamps_that_are_gone_stay_as_they_are(rig: Rig) -> None:
    seen: dict[str, int] = {}
    for number, count in enumerate((0, 2, 1, 0, 2)):
        rig.start(MIDNIGHT_S + 300 * number, text=with_circuits(count))
        rig.rows(30)
        rig.stop()
        now = {code: uj for code, (uj, _) in rig.book.registers_uj().items()}
        assert now.keys() >= seen.keys(), "a register vanished"
        for code, uj in seen.items():
            fed = code[2] == "0" or int(code[2]) <= count
            assert now[code] > uj if fed else now[code] == uj
        seen = now
    assert len(seen) == 5
    rig.start(MIDNIGHT_S + 3000)
    rig.commit()
    assert {code: uj for code, (uj, _) in rig.book.registers_uj().items()} == seen
    rig.assert_good()


def test_a_register_that_changes_its_kind_says_so_from_the_next_parameters_on(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(14)
    rig.stop()
    estimated = TEXT.replace('port = "/dev/null"', 'port = "/dev/null"\nlayout = "rpict3t1"')
    rig.start(MIDNIGHT_S + 100, text=estimated)
    rig.rows(14)
    rig.stop()
    kinds = [block.energy[0].kind for block in rig.blocks]
    assert kinds == sorted(kinds)
    assert set(kinds) == {0, 1}
    rig.assert_good()


def test_there_is_one_start(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    with pytest.raises(AssertionError):
        rig.book.start(0, 0)


# --- holes, silence ----------------------------------------------------------------------------


def test_a_silence_longer_than_a_row_can_say_begins_a_segment_of_its_own(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(20, 59_000)
    rig.row(300, ELAPSED_MS_MAX + 1)
    rig.rows(20, 59_000)
    rig.stop()
    first, second = headers(rig)[0], headers(rig)[-1]
    assert second.run == first.run
    assert (second.base_ms, second.before) == (1000 + 20 * 59_000 + ELAPSED_MS_MAX + 1, b"")
    rig.assert_good()
    rig.start(MIDNIGHT_S + 100 * DAY_S)
    rig.rows(3)
    rig.commit()
    rig.assert_good()


def test_the_longest_silence_that_a_row_can_say(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    rig.row(300, ELAPSED_MS_MAX)
    rig.rows(3)
    rig.stop()
    assert [row.at_ms for row in rig.account.rows][3] == 16_000 + ELAPSED_MS_MAX
    rig.assert_good()


def test_such_a_silence_without_the_time_needs_a_new_run(rig: Rig) -> None:
    """The segment behind it would state sums that change once its rows are placed."""
    rig.start(60, status="R")
    rig.rows(30)
    with pytest.raises(StorageError, match="metering begins anew"):
        rig.row(300, ELAPSED_MS_MAX + 1)
    rig.stop()
    rig.start(60 + ELAPSED_MS_MAX // 1000, status="R")
    rig.rows(14)
    rig.wait(0, step_ms=MIDNIGHT_S * 1000)
    rig.status = "S"
    rig.rows(14)
    rig.stop()
    rig.assert_good()
    rig.start(MIDNIGHT_S + 100 * DAY_S)
    rig.rows(3)
    rig.commit()
    rig.assert_good()


def test_a_replay_of_such_a_silence_begins_a_run(tmp_path: Path) -> None:
    """Powers whose boundary readings are floored: the sums do change once rows are placed."""
    lines = [f"{n * 5}\t{n * 5000}\t11 {310 + n * n % 7}.7 0 0 0 0 0 230" for n in range(30)]
    late_ms = 30 * 5000 + ELAPSED_MS_MAX
    lines += [f"{9 + n * 5}\t{late_ms + n * 5000}\t11 {n % 9}.3 0 0 0 0 0 230" for n in range(30)]
    late_ms += 150_000
    lines += [
        f"{MIDNIGHT_S + n * 5}\t{late_ms + n * 5000}\t11 {n % 9}.3 0 0 0 0 0 230" for n in range(30)
    ]
    account = replay_lines(lines, TEXT, tmp_path / "account")
    assert account.verify().verdict == "good"
    assert account.accepted == 90


def test_a_tick_closes_an_interval_that_nothing_comes_for(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.book.tick(rig.boot_ms, rig.stamp)  # nothing has come yet
    rig.rows(5)
    for elapsed_ms in (10_000, 15_000):
        rig.wait(elapsed_ms)
        rig.book.tick(rig.boot_ms, rig.stamp)
        assert not rig.book.pending, "its end has not passed"
    rig.wait(10_001)
    rig.book.tick(rig.boot_ms, rig.stamp)
    assert rig.book.pending
    rig.commit()
    assert spans(rig) == [(0, 60, ("gap", "partial"))]
    sealed = rig.told("sealed")[-1]
    assert (sealed.boot_ms, sealed.wall_ms) == (rig.boot_ms, rig.wall_ms)
    rig.rows(13)
    rig.commit()
    rig.assert_good()


# --- events, alarms, counts --------------------------------------------------------------------


def test_an_alarm_is_told_when_it_changes_and_not_while_it_stands(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    heard: list[tuple[str, str, bool]] = []
    rig.book.alarmed = lambda kind, text, *, stands: heard.append((kind, text, stands))
    changes = [
        rig.book.raise_alarm("case", "open", stands=stands)
        for stands in (False, True, True, False, False, True)
    ]
    assert changes == [False, True, False, True, False, True]
    assert heard == [("case", "open", True), ("case", "open", False), ("case", "open", True)]
    assert rig.book.alarms == {"case": "open"}
    rig.stop()
    kinds = [event.kind for event in rig.events if event.kind.startswith("alarm")]
    assert kinds == ["alarm", "alarm_over", "alarm"]
    assert {event["alarm"] for event in rig.told("alarm")} == {"case"}


def test_an_alarm_that_flaps_stands_and_cannot_fill_the_card(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    heard: list[str] = []
    rig.book.told = lambda event: heard.append(event.kind)

    def flap(kind: str) -> list[str]:
        heard.clear()
        for _ in range(1000):
            rig.book.raise_alarm(kind, "out", stands=True)
            rig.book.raise_alarm(kind, "out", stands=False)
        return list(heard)

    flaps = ["alarm", "alarm_over"] * FALLS_AT_ONCE
    assert flap("adaptor_out") == [*flaps, "alarm"]
    assert flap("garbage") == [*flaps, "alarm"]
    assert flap("adaptor_out") == []
    rig.book.raise_alarm("garbage", "out", stands=True)
    rig.wait(FALL_EVERY_MS)
    rig.book.stamp(rig.stamp)
    rig.book.tick(rig.boot_ms, rig.stamp)
    assert heard == ["alarm_over"]
    assert rig.book.alarms == {"garbage": "out"}
    rig.stop()
    rig.assert_good()


def test_events_are_told_as_they_come_and_numbered(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    told: list[str] = []
    rig.book.told = lambda event: told.append(event.kind)
    assert rig.book.told is not None
    rig.rows(13)
    rig.stop()
    assert told == ["clock_set", "sealed", "stopped"]
    assert [event.number for event in rig.events] == list(range(1, len(rig.events) + 1))


def test_events_bear_the_clocks_of_their_reading_or_of_who_says_so(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(2)
    rig.book.event("one")
    rig.wait(700)
    rig.book.stamp(rig.stamp)
    rig.book.event("two")
    rig.stop()
    (one,), (two,) = rig.told("one"), rig.told("two")
    assert (one.boot_ms, one.wall_ms) == (11_000, MIDNIGHT_S * 1000 + 10_000)
    assert (two.boot_ms, two.wall_ms) == (11_700, MIDNIGHT_S * 1000 + 10_700)


def test_dropped_lines_are_counted_with_the_next_block(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(2)
    rig.book.count_dropped({"banner": 2})
    rig.book.count_dropped({"banner": 2})
    rig.row(300, 20_000)
    rig.book.count_dropped({"banner": 3, "partial": 1})
    assert rig.told("counted") == []
    rig.rows(8)
    rig.commit()
    (counted,) = rig.told("counted")
    assert dict(counted.details) == {"dropped.banner": 3, "dropped.partial": 1, "gaps": 1}
    assert counted.number < rig.told("sealed")[0].number, "the block vouches for it"
    assert rig.blocks[0].events >= counted.number
    rig.book.note_counts()
    rig.book.count_dropped({"banner": 4, "partial": 1})
    rig.book.note_counts()
    rig.stop()
    assert dict(rig.told("counted")[-1].details) == {"dropped.banner": 1}


def test_duplicates_are_counted_and_not_metered(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    before, rig._lines = rig.book.accepted, rig._lines - 1
    rig.row(WATTS[2], 400)
    assert rig.book.accepted == before
    rig.book.count_dropped({})
    rig.book.note_counts()
    rig.stop()
    assert dict(rig.told("counted")[0].details) == {"dropped.duplicate": 1}


def test_a_full_register_is_not_sealed(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(3)
    rig.book.cutter.sums[0] = 2 * UJ_MAX + 2
    with pytest.raises(LedgerDamagedError, match=r"register 1-0:1\.8\.0 is full"):
        rig.rows(12)


def test_what_its_peers_would_refuse_is_not_sealed(rig: Rig) -> None:
    rig.start(MIDNIGHT_S)
    rig.rows(13)
    rig.book.cutter._first = (0, 0, 0)
    with pytest.raises(LedgerDamagedError, match="refuses to seal") as refused:
        rig.rows(12)
    assert "an error in meterd" in refused.value.hint
    assert len(rig.blocks) == 0


# --- whatever may come -------------------------------------------------------------------------


class Life:
    """What may happen to a meter, drawn at random; its account is judged at every start."""

    def __init__(self, state: Path, seed: int, *, polling_ms: int) -> None:
        self.chance = random.Random(seed)
        self.polling_ms = polling_ms
        self.wall_s = MIDNIGHT_S - self.chance.randrange(400) + self.chance.choice([0, 0.5, 0.001])
        self.rig = Rig(state, with_circuits(self.chance.randrange(3), polling_ms=polling_ms))
        self.durable: dict[str, int] = {}
        self.unset = False
        self.start()

    def start(self) -> None:
        chance = self.chance
        status = chance.choice("SSSIR")
        self.unset = status == "R" and chance.random() < 0.5
        count = chance.randrange(3) if chance.random() < 0.4 else None
        self.rig.start(
            10 if self.unset else self.wall_s,
            boot_ms=chance.choice([0, 777, 5_000_000]),
            status=status,
            text="" if count is None else with_circuits(count, polling_ms=self.polling_ms),
        )
        now = self.rig.book.registers_uj()
        fell = [code for code, uj in self.durable.items() if now.get(code, (0, 0))[0] < uj]
        assert not fell, "a register fell"

    def commit(self) -> None:
        self.rig.commit()
        for energy in self.rig.book.chain.head.energy:
            code = f"1-{energy.obis[1]}:{energy.obis[2]}.8.0"
            self.durable[code] = energy.last_uj

    def pass_time(self, elapsed_ms: int) -> None:
        self.wall_s += elapsed_ms / 1000

    def meter(self) -> None:
        count, part = self.chance.randrange(1, 14), self.chance.choice([1000, 1000, 980, 1001, 500])
        elapsed_ms = self.polling_ms * part // 1000
        self.rig.rows(count, elapsed_ms)
        self.pass_time(count * elapsed_ms)

    def meter_once(self) -> None:
        gap_ms = 3 * self.polling_ms
        elapsed_ms = self.chance.choice([1, gap_ms - 1, gap_ms, gap_ms + 1, 61_000, 300_000])
        elapsed_ms = self.chance.choice([elapsed_ms] * 8 + [DAY_S * 250])
        self.rig.row(self.chance.choice(WATTS), elapsed_ms, estimated=self.chance.random() < 0.1)
        self.pass_time(elapsed_ms)

    def be_silent(self) -> None:
        elapsed_ms = self.chance.choice([16_000, 61_000, 200_000])
        self.rig.wait(elapsed_ms)
        self.pass_time(elapsed_ms)
        self.rig.book.tick(self.rig.boot_ms, self.rig.stamp)

    def set_clock(self) -> None:
        far_ms = 3 * DAY_S * 1000
        step_ms = self.chance.choice(
            [30_000, -30_000, 3_600_000, -3_600_000, far_ms, -far_ms, 1500]
        )
        self.rig.wait(0, step_ms=step_ms)
        self.wall_s += step_ms / 1000

    def synchronise(self) -> None:
        if self.unset and self.chance.random() < 0.5:
            self.rig.wall_ms, self.unset = int(self.wall_s * 1000), False
        if not self.unset:
            self.rig.status = self.chance.choice("SI")

    def fill(self) -> None:
        self.rig.book.storing = not self.rig.book.storing

    def tell(self) -> None:
        self.rig.book.raise_alarm("case", "open", stands="case" not in self.rig.book.alarms)
        self.rig.book.note_counts()

    def restart(self) -> None:
        if self.chance.random() < 0.5:
            self.rig.stop()
            self.commit()
        self.rig.card.close()
        self.wall_s += self.chance.choice([0.5, 3, 20, 61, 300, 90_000])
        self.rig.assert_good()
        self.start()

    def live(self, turns: int) -> None:
        happenings = (
            [self.meter] * 11 + [self.meter_once] * 2 + [self.be_silent, self.set_clock, self.tell]
            + [self.synchronise, self.fill, self.restart]
        )  # fmt: skip
        for _ in range(turns):
            self.chance.choice(happenings)()
            if self.chance.random() < 0.3 or self.rig.book.pending:
                self.commit()
        self.rig.stop()
        self.rig.assert_good()
        (self.rig.state / CHECKPOINT_FILE).unlink(missing_ok=True)
        self.start()
        self.rig.rows(15)
        self.rig.commit()
        self.rig.assert_good()


def live(seed: int) -> None:
    with folder() as state:
        Life(state, seed, polling_ms=60_000 if seed % 4 == 3 else POLLING_MS).live(60)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_the_account_is_good_and_no_register_falls(seed: int) -> None:
    live(seed)


@pytest.mark.soak
def test_whatever_happens_at_length() -> None:
    for seed in range(100, 4000):
        live(seed)
