"""From a reading to a sealed block: the whole path of a watt, with no task and no waiting in it.

`Bookkeeper` joins the pure parts (sieve, placement, cutter) to the log and the seal. It is fed
readings with their stamps, and answers with operations for the card. The daemon performs them off
its event loop, a replay at once: both run the same path.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from meterd.device.closing import Terms, close_runs, feed_rows
from meterd.device.log import Log, OpenRows
from meterd.device.recovery import FROM_MS
from meterd.device.rows import Rows
from meterd.device.sealer import Sealer
from meterd.errors import StorageError
from meterd.flapping import Flapping
from meterd.ledger.account import DAY_S, Parameters
from meterd.ledger.row import ELAPSED_MS_MAX, row_struct
from meterd.metering.energy import (
    ROW_GAP,
    Cadence,
    Register,
    Sieve,
    quantities,
    registers,
    registers_uj,
)
from meterd.metering.interval import GAP, LOST, Cut, Cutter, Wall
from meterd.metering.placement import Decision, Placement, clock_details

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.device.card import Operation
    from meterd.device.clock import Stamp
    from meterd.device.recovery import Recovered
    from meterd.ledger.chain import Chain
    from meterd.ledger.event import Details, Event
    from meterd.ledger.pruning import Pruned
    from meterd.ledger.stored import End
    from meterd.metering.reading import BoardRules, Reading


def _nobody(*_: object, **__: object) -> None:
    return None


def parameters_for(
    rules: BoardRules,
    settings: tuple[tuple[str, str], ...],
    *,
    genesis: bytes,
    meter: str,
    software_id: bytes,
    sequence: int = 1,
) -> Parameters:
    """Return the parameter record of these settings and this software."""
    return Parameters(
        genesis=genesis,
        meter=meter,
        sequence=sequence,
        software_id=software_id,
        roles=tuple(clamp.role for clamp in rules.clamps if clamp.role != "unused"),
        registers=tuple((register.obis, register.kind) for register in registers(rules)),
        settings=settings,
    )


def _recorded(parameters: Parameters, before: Parameters | None) -> Details:
    """Return a record as an event keeps it, with the old value and the new of all that differs."""
    changes = parameters.changes_from(before) if before is not None else ()
    named = [((f"{what} old", old), (f"{what} new", new)) for what, old, new in changes]
    return (("record", parameters.encode()), *chain.from_iterable(named))


class Bookkeeper:
    """Keeps one account. Not for two tasks at once.

    Attributes:
        log: The account's streams; for looking at.
        parameters: The parameter record in force.
        run: Number of this start.
        cutter: Registers and the open interval.
        placement: Where wall time stands.
        sieve: Duplicates, gaps, cadence, frozen board.
        accepted: Readings integrated since the start.
        gaps: Holes since the start.
        alarms: Alarms that stand now, by kind.
        storing: Whether there is room for samples. Where there is none, energy is counted on, and
            samples are kept again from the next interval on.
        alarmed: Called with kind, text and whether it stands, when an alarm changes.
        waiting: Whether nothing may be sealed for now: what is due is held until `release`.
        again: Rows must be fed anew, once all appended so far is durable: call `feed_again`.
    """

    def __init__(
        self,
        state: Path,
        *,
        rules: BoardRules,
        settings: tuple[tuple[str, str], ...],
        software_id: bytes,
        build_ms: int,
        interval_s: int,
        keys: Mapping[bytes, SigningKey],
        recovered: Recovered,
        boot_id: bytes,
        draw_secret: Callable[[str, int], bytes],
        read: Callable[[int, int, int], bytes],
        changes: tuple[tuple[int, int], ...] = (),
    ) -> None:
        """Go on from what recovery found; `start` comes next.

        Args:
            state: Folder of the account.
            rules: What turns lines into readings.
            settings: All that bears on measurement, for the parameter record.
            software_id: Identifier of the relevant software.
            build_ms: Date of the software, ms since 1970.
            interval_s: The network's interval.
            changes: Of it, by orders: (midnight, interval_s from then on), ascending.
            keys: Sealing keys by their public keys.
            recovered: Where the account stands.
            boot_id: Which boot this is, 16 bytes.
            draw_secret: Gives the secret of a stream's segment of a number.
            read: Reads back bytes of a samples segment: (number, begin, end).
        """
        found = recovered.found
        account = found.chain
        self._interval_s, self._polling_ms = interval_s, rules.polling_ms
        self._changes = changes
        self._obeyed: tuple[Chain, tuple[int, bytes], tuple[tuple[int, int], ...]] | None = None
        self._recovered: Recovered | None = recovered
        self.run = recovered.run + 1
        self.log = Log(
            state,
            genesis=account.genesis,
            meter=account.meter,
            incarnation=account.incarnation,
            draw_secret=draw_secret,
            ends=found.ends,
            events=found.events_before(recovered.checkpoint.start) + len(found.events),
            open_rows=[
                OpenRows(part.segment.header, part.first_row, part.segment.rows - part.first_row)
                for part in found.open
            ],
        )
        self._rows = Rows(read)
        self._sealer = Sealer(self.log, found.chain, keys, self._rows, found.tails)
        before = max(found.parameters.values(), key=lambda one: one.sequence, default=None)
        self.parameters = parameters_for(
            rules,
            settings,
            genesis=account.genesis,
            meter=account.meter,
            software_id=software_id,
            sequence=before.sequence if before else 1,
        )
        if before is not None and self.parameters != before:
            self.parameters = replace(self.parameters, sequence=before.sequence + 1)
        self._parameters_before = before
        self._parameters_next: Parameters | None = None
        self._terms = Terms(self.parameters, boot_id)
        self._of = self._terms.of
        self._owed: dict[Register, int] = {}
        self._sums_before: dict[bytes, int] = {}
        self._first_ms: int | None = None
        self._pack = row_struct(len(self.parameters.roles)).pack
        self.cutter = Cutter(
            interval_s=interval_s, quantities=self._terms.quantities, changes=changes
        )
        self.placement = Placement(interval_s=interval_s, build_ms=build_ms)
        self.sieve = Sieve(rules.polling_ms)
        self.accepted = 0
        self.gaps = 0
        self.alarms: dict[str, str] = {}
        self._flapping = Flapping()
        self.storing = True
        self.waiting = False
        self._cuts_waiting: list[tuple[Cut, Terms, Mapping[Register, int]]] = []
        self._bridged = True
        self._losing = False  # rows of the open stretch are not stored, from some row on
        self.again: tuple[Decision, Reading, int] | None = None
        self._row_ms: int | None = None
        self._row_body = b""
        self._clock_status = ""
        self._decision: Decision | None = None  # the last, where it asked for nothing
        self._dropped: dict[str, int] = {}
        self._day: int | None = None
        self.alarmed: Callable[..., None] = _nobody

    @property
    def losing(self) -> bool:
        """Whether what is open has samples that no card keeps: only a seal saves its energy."""
        return self._losing

    # --- starting ---------------------------------------------------------------------------

    def start(self, boot_ms: int, wall_ms: int, details: Details = ()) -> None:
        """Record the start, close what a run before has left open, and note what has changed."""
        recovered, sealer = self._recovered, self._sealer
        assert recovered is not None  # noqa: S101 - there is one start
        self._recovered = None  # a whole account's events, where there was no checkpoint
        sealer.boot_ms, sealer.wall_ms = boot_ms, wall_ms
        boot_id = self._terms.boot_id
        self.event("started", (("run", self.run), ("boot_id", boot_id), *details))
        if recovered.checkpoint_lost:
            self.event("checkpoint_lost", (("reason", recovered.checkpoint_lost[:200]),))
        head = self.chain.head
        if recovered.found.unclaimed:
            self.event("sealed", (("height", head.height), ("hash", head.block_hash)))
        closed = close_runs(
            recovered, self._interval_s, self._rows, self._seal_or_wait, self._changes
        )
        sealer.hand_out()
        before = self._parameters_before
        if before != self.parameters:
            self.event("parameters", _recorded(self.parameters, before))
        begun = recovered.found.recovered
        fresh = begun is not None and head.height == begun.height
        self._sums_before = recovered.sums if fresh else closed.sums_now
        self._owed = closed.owed(self._terms)
        self.cutter = Cutter(
            interval_s=self._interval_s,
            quantities=self._terms.quantities,
            base=closed.base(self._terms),
            changes=self._changes,
        )
        self._day = None if closed.end_s is None else closed.end_s // DAY_S

    def _seal_or_wait(self, cut: Cut, terms: Terms, owed: Mapping[Register, int]) -> None:
        if self.waiting:
            self._cuts_waiting.append((cut, terms, owed))
        else:
            self._sealer.seal(cut, terms, owed)

    def release(self, *, first_only: bool = False) -> None:
        """Seal what has waited for the boot rule; all given out so far must have been performed.

        Args:
            first_only: Seal the first block of it, at once, however much has waited; the rest
                waits on.
        """
        self.waiting, height = False, self.chain.head.height
        cuts, self._cuts_waiting = self._cuts_waiting, []
        for number, (cut, terms, owed) in enumerate(cuts):
            if first_only and number:
                self._cuts_waiting = cuts[1:]
                break
            self._sealer.seal(cut, terms, owed)
        self._sealer.hand_out()
        if first_only and cuts:
            self.waiting = True
            return
        if self.placement.wall is not None and not self.placement.held and self._row_ms is not None:
            self._feed_stored(tuple(self.placement.walls), first_only=first_only)
            self._bridged = not self._losing  # else the last stored row is not the last counted
            self._sealer.hand_out()
            if not self.log.whole:
                self.log.reread(self._rows.stored)
        self._decision = None
        sealed = self.chain.head.height > height
        if not self._cuts_waiting and (sealed or self.cutter.start_s is None):
            self._obey()
        self.waiting = bool(self._cuts_waiting)

    @property
    def due(self) -> bool:
        """Whether `release` would seal something: a boundary lies behind the last row, or before.

        A row past it, or such a silence as makes it a hole, is what cuts.
        """
        if self._cuts_waiting:
            return True
        wall, last_ms = self.placement.wall, self._row_ms
        if wall is None or self.placement.held or self.placement.alarm or last_ms is None:
            return False
        cutter, now_ms = self.cutter, self._sealer.boot_ms
        if cutter.base.pending:
            return True
        if self.sieve.cadence.is_gap(now_ms - last_ms):
            last_ms = now_ms
        last_s = (last_ms + wall.offset_ms) // 1000
        begin_s = cutter.end_s
        if begin_s is None:
            begin_s = ((self._first_ms or 0) + wall.offset_ms) // 1000
        interval_s = cutter.interval_s(max(last_s, 0))
        return last_s // interval_s * interval_s > begin_s

    def measured(self) -> tuple[int, tuple[tuple[bytes, int, int], ...]]:
        """Return how long this run has measured, and what: (OBIS code, kind, uJ)."""
        registers = zip(self._terms.registers, self.cutter.sums, strict=True)
        carried = tuple(
            (obis, kind, (half - self._sums_before.get(obis, 0)) // 2)
            for (obis, kind), half in registers
        )
        return (self._row_ms or 0) - (self._first_ms or 0), carried

    # --- readings ---------------------------------------------------------------------------

    def outlasted(self, at_ms: int) -> bool:
        """Say whether a reading at `at_ms` needs a new run.

        A row says the time since the one before in 32 bits. After a longer silence a new segment
        begins, whose header states the sums; where rows wait for their place, those may change yet.
        """
        last_ms = self._row_ms
        late = last_ms is not None and at_ms - last_ms > ELAPSED_MS_MAX
        return late and (self.placement.wall is None or self.placement.held or self.waiting)

    def take(self, reading: Reading, stamp: Stamp) -> None:
        """Count a reading; where `again` is set then, `feed_again` must follow before the next.

        Raises:
            StorageError: The reading needs a new run: see `outlasted`.
        """
        flags = self.sieve.admit(reading)
        if flags is None:
            return
        at_ms, sealer = reading.at_ms, self._sealer
        if flags and self.outlasted(at_ms):  # such a silence is a hole
            raise StorageError(
                "no reading for 49 days, and the clock was not set: metering begins anew",
                hint="nothing is lost; start it again",
            )
        _, wall_ms, status, error_ms = stamp
        sealer.boot_ms, sealer.wall_ms = at_ms, wall_ms
        self.accepted += 1
        decision = self.placement.decide(at_ms, wall_ms, status, error_ms, self.cutter.end_s)
        wall = None if self.waiting else decision.wall
        if decision is self._decision:  # nearly every row: nothing has changed
            if flags or wall is None:
                self._count(reading, flags, wall)
                return
            point = quantities(reading.powers_mw, reading.apparent_mva, self._of)
            if cuts := self.cutter.feed(at_ms, point, 0, wall):
                self._cut(cuts, reading, 0, wall, bridged=True)
            else:
                self._log_row(reading, 0)
            return
        self._decision = decision if not decision.event and not decision.again else None
        if decision.event:
            kind, details = decision.event
            if decision.again and kind != "clock_went_back":
                details = (*details, (FROM_MS, decision.again[-1][0]))
            self.event(kind, details)
        elif decision.wall is not None and decision.wall.status != self._clock_status:
            self.event("clock_status", clock_details(decision.wall, at_ms))
        if decision.wall is not None:
            self._clock_status = decision.wall.status
        if decision.again and not self.waiting:
            self.again = (decision, reading, flags)
            return
        bridged, self._bridged = self._bridged, True
        self._count(reading, flags, wall, bridged=bridged)

    def feed_again(self) -> None:
        """Cut the rows since the last cut anew, from the card: where they lie is known now.

        All operations given out so far must have been performed.
        """
        assert self.again is not None  # noqa: S101 - the caller has looked
        decision, reading, flags = self.again
        self.again = None
        self._feed_stored(decision.again)
        self._sealer.hand_out()
        if not self.log.whole:
            self.log.reread(self._rows.stored)
        self._count(reading, flags, decision.wall, bridged=not self._losing)

    def _feed_stored(self, walls: Iterable[tuple[int, Wall]], *, first_only: bool = False) -> None:
        """Feed the stored rows of this run since the last cut to the cutter, and seal its cuts.

        With `first_only` the first of them; the others wait.
        """
        cutter = self.cutter
        sums = list(cutter.sums)
        cutter.restore(cutter.base)
        parts = [
            (part.header, part.first_row, part.rows)
            for part in self.log.open_rows
            if part.header.run == self.run
        ]
        height = self.chain.head.height
        for cut in feed_rows(cutter, self._rows, parts, walls, self._terms):
            if first_only and self.chain.head.height > height:
                self._cuts_waiting.append((cut, self._terms, {}))
                continue
            self._seal(cut)
        if self._losing:  # the rows behind these were not stored, and are in the sums alone
            cutter.sums[:] = [max(pair) for pair in zip(cutter.sums, sums, strict=True)]
            cutter.flags |= LOST

    def _count(
        self, reading: Reading, flags: int, wall: Wall | None, *, bridged: bool = True
    ) -> None:
        """Integrate, log and cut one admitted reading.

        Args:
            reading: The reading.
            flags: Its row's flags.
            wall: Where to place it; None to hold it.
            bridged: False where its cutter does not know the row before, and counts no energy
                from there to here.
        """
        point = quantities(reading.powers_mw, reading.apparent_mva, self._of)
        fed = flags if bridged else flags | ROW_GAP
        if flags & ROW_GAP and self._row_ms is not None:
            self.gaps += 1
            self._sealer.count("gaps", 1)
        if wall is None:
            self.cutter.hold(reading.at_ms, point, fed)
        elif cuts := self.cutter.feed(reading.at_ms, point, fed, wall):
            self._cut(cuts, reading, flags, wall, bridged=bridged)
            return
        self._log_row(reading, flags)

    def _cut(
        self, cuts: list[Cut], reading: Reading, flags: int, wall: Wall, *, bridged: bool
    ) -> None:
        """Seal cuts, and log the reading that made them.

        It becomes durable before the blocks, since an audit finds the power at a boundary by it.
        Where samples are lost nobody can audit that, and it comes after: its segment states sums
        that the block must have stated before.
        """
        takes, hole = cuts[-1].takes_row, bool(flags & ROW_GAP)
        day = cuts[-1].end_s // DAY_S
        # Behind a checkpoint, recovery finds one boundary before the first row, not several.
        plain = bridged and (takes or hole or len(cuts) == 1)
        turns = plain and self._day is not None and day != self._day
        if self._losing or (not self.storing and (takes or not hole)):
            for cut in cuts:
                self._seal_lost(cut)
            self._sealer.hand_out()
            end = self.log.finish_samples()
            self._losing = not takes and not (bridged and self.storing)
            self._log_row(reading, flags, taken=takes)
        else:
            for cut in cuts:
                if cut.takes_row:
                    self._log_row(reading, flags)
                self._seal(cut)
            end = self.log.finish_samples() if turns else self.log.end("samples")
            if not takes:
                self._log_row(reading, flags)
            self._sealer.hand_out()
        if turns:
            self._turn(end, wall)
        self._obey()
        if turns or self._day is None:
            self._day = day

    def tick(self, now_ms: int, stamp: Stamp) -> None:
        """Close the open interval if its end has passed and no reading can bridge it any more.

        And let alarms fall that flapped, and are over.
        """
        self._let_fall()
        last_ms = self._row_ms
        wall = self.placement.wall
        if last_ms is None or wall is None or self.placement.alarm or self.waiting:
            return
        if not self.sieve.cadence.is_gap(now_ms - last_ms):
            return
        here = Wall(stamp.wall_ms - stamp.boot_ms, wall.status, wall.error_ms)
        cuts = self.cutter.tick(now_ms, here)
        if cuts:
            self.stamp(stamp)
            for cut in cuts:
                (self._seal_lost if self._losing else self._seal)(cut)
            self._sealer.hand_out()
            self._losing = False  # what comes is behind a hole, and in a stretch of its own

    def _log_row(self, reading: Reading, flags: int, *, taken: bool = False) -> None:
        """Log a row, unless there is no room, or a block has `taken` it among those it lost."""
        at_ms, powers_mw, currents_ma, voltage_mv, apparent_mva, _, _ = reading
        base_ms = at_ms if self._row_ms is None else self._row_ms
        elapsed_ms = at_ms - base_ms
        if elapsed_ms > ELAPSED_MS_MAX:  # 49 days of silence: as if the run began here
            base_ms, elapsed_ms, self._row_body = at_ms, 0, b""
            self.log.finish_samples()
            self.sieve.cadence = Cadence(self._polling_ms)
        if len(powers_mw) == 1:  # of one clamp, as most are: it saves two tuples
            power_mw, current_ma = powers_mw[0], currents_ma[0]
            body = self._pack(elapsed_ms, flags, 0, apparent_mva, voltage_mv, power_mw, current_ma)
        else:
            clamps = chain.from_iterable(zip(powers_mw, currents_ma, strict=True))
            body = self._pack(elapsed_ms, flags, 0, apparent_mva, voltage_mv, *clamps)
        if not taken:
            if self._losing or not self.storing:
                self._losing = True
                self.cutter.flags |= LOST
                self.log.finish_samples()
            else:
                if not self.log.samples_open:
                    self._begin_samples(base_ms)
                self.log.add_row(body)
        if self._first_ms is None:
            self._first_ms = at_ms
        self._row_ms, self._row_body = at_ms, body

    def _begin_samples(self, base_ms: int) -> None:
        self.log.begin_samples(
            parameters=self._terms.hash,
            boot_id=self._terms.boot_id,
            run=self.run,
            base_ms=base_ms,
            sums=self.cutter.row_sums,
            before=self._row_body,
            clamps=len(self.parameters.roles),
        )

    # --- sealing ----------------------------------------------------------------------------

    def _seal(self, cut: Cut) -> None:
        owed, self._owed = self._owed, {}
        self._sealer.seal(cut, self._terms, owed)

    def _seal_lost(self, cut: Cut) -> None:
        """Seal a cut that lost samples, with those rows that were stored."""
        records, flags = self.log.open_records, cut.flags | LOST
        if not records and not cut.measured_ms:
            flags |= GAP
        self._seal(cut._replace(flags=flags, records=records))

    def _turn(self, samples: End, wall: Wall) -> None:
        """A day has ended: each stream begins a new segment, and a checkpoint says so."""
        base = self.cutter.base
        self._sealer.turn(
            samples,
            cut_ms=base.at_ms or 0,
            run=self.run,
            sums=dict(zip(self._terms.codes, base.sums, strict=True)),
            wall=(self._sealer.boot_ms, wall),
            parameters=(self.parameters, *filter(None, (self._parameters_next,))),
        )

    def seal_open(self) -> None:
        """Seal what is open as the next start would; all must be durable. No reading may follow."""
        if self.waiting:
            return
        if self.placement.held:
            self._feed_stored(self.placement.walls)
        for cut in self.cutter.restart():
            (self._seal_lost if self._losing else self._seal)(cut)
        self._sealer.hand_out()

    def commit(self) -> list[Operation]:
        """Return what makes all so far durable."""
        placed = self.placement.wall is not None and not self.placement.held and not self.waiting
        if placed and self.log.samples_full:  # held rows will be cut, and their sums may change
            self.log.finish_samples()
        return self._sealer.commit()

    def take_sealed(self) -> list[tuple[int, bytes]]:
        """Return (height, sealed) of blocks since the last call; durable once handed over."""
        return self._sealer.take_sealed()

    def obey(
        self, chain: Chain, order: tuple[int, bytes], changes: tuple[tuple[int, int], ...]
    ) -> None:
        """Let blocks name an order, once the one that is open has been sealed.

        Args:
            chain: Our chain under the terms of that order: its keys and intervals.
            order: Height and hash.
            changes: Of the interval, as a cutter takes them.
        """
        self._obeyed = (chain, order, changes)
        if self.cutter.start_s is None and not self._cuts_waiting:
            self._obey()

    def _obey(self) -> None:
        if self._obeyed is None:
            return
        chain, self._sealer.order, changes = self._obeyed
        self._sealer.chain = chain._replace(head=self.chain.head)
        if changes != self._changes:
            self._changes = changes
            self.cutter.plan(changes)
        self._obeyed = None

    @property
    def pending(self) -> bool:
        """Whether a block waits to be made durable."""
        return self._sealer.pending

    @property
    def chain(self) -> Chain:
        """The chain with all blocks sealed so far."""
        return self._sealer.chain

    def registers_uj(self) -> dict[str, tuple[int, int]]:
        """Return each register now, in uJ, and its kind, by code; those no longer fed too."""
        result = {
            Register(energy.obis, energy.kind).code: (energy.last_uj, energy.kind)
            for energy in self.chain.head.energy
        }
        owed = {register.code: (uj, register.kind) for register, uj in self._owed.items()}
        now = zip(self._terms.registers, registers_uj(self.cutter.sums), strict=True)
        return result | owed | {register.code: (uj, register.kind) for register, uj in now}

    # --- events and alarms ------------------------------------------------------------------

    def stamp(self, stamp: Stamp) -> None:
        """Let events that follow bear `stamp`; readings bring their own."""
        self._sealer.boot_ms, self._sealer.wall_ms = stamp.boot_ms, stamp.wall_ms

    def event(self, kind: str, details: Details = ()) -> None:
        """Append an event."""
        self._sealer.event(kind, details)

    @property
    def told(self) -> Callable[[Event], None]:
        """Called with each event."""
        return self._sealer.told

    @told.setter
    def told(self, told: Callable[[Event], None]) -> None:
        self._sealer.told = told

    @property
    def parameters_next(self) -> Parameters | None:
        """The record that the next start begins under, where `change` has given one."""
        return self._parameters_next

    def change(self, parameters: Parameters, details: Details = ()) -> None:
        """Append the parameter record that the next start begins under.

        This run ends under the one in force. A checkpoint that comes between holds both.
        """
        self._parameters_next = parameters
        self.event("parameters", (*_recorded(parameters, self.parameters), *details))

    def prune(self, pruned: Pruned) -> None:
        """Append the event that says that a segment goes; durable before the file does."""
        self._sealer.prune(pruned)

    def raise_alarm(self, kind: str, text: str, *, stands: bool) -> bool:
        """Let an alarm stand or fall; an event tells of each change. Returns whether it changed.

        One that comes and goes stands on, until a `tick` finds that it may fall.
        """
        if stands:
            self._flapping.stands(kind)
        if (kind in self.alarms) == stands:
            return False
        if not stands and not self._flapping.may_fall(kind, text, self._sealer.boot_ms):
            return False
        self._change_alarm(kind, text, stands=stands)
        return True

    def _let_fall(self) -> None:
        for kind, text in self._flapping.over:
            if self._flapping.may_fall(kind, text, self._sealer.boot_ms):
                self._change_alarm(kind, text, stands=False)

    def _change_alarm(self, kind: str, text: str, *, stands: bool) -> None:
        self.alarmed(kind, text, stands=stands)
        if stands:
            self.alarms[kind] = text
        else:
            del self.alarms[kind]
        self.event("alarm" if stands else "alarm_over", (("alarm", kind),))

    def count_dropped(self, dropped: dict[str, int]) -> None:
        """Take over the decoder's counts; they become an event with the next block."""
        for kind, count in (*dropped.items(), ("duplicate", self.sieve.duplicates)):
            more = count - self._dropped.get(kind, 0)
            if more:
                self._sealer.count(f"dropped.{kind}", more)
                self._dropped[kind] = count

    def note_counts(self) -> None:
        """Append the counts since the last such event, if there are any."""
        self._sealer.note_counts()
