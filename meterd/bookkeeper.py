"""From a reading to a sealed block: the whole path of a watt, with no task and no waiting in it.

`Bookkeeper` joins the pure parts (sieve, placement, cutter, rules of the chain) to the log. It is
fed readings with their stamps, and answers with operations for the card. The daemon performs them
off its event loop, a replay at once: both run the same path.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from meterd.device.log import Log, OpenRows
from meterd.device.recovery import Checkpoint, Recovered, checkpoint_operation
from meterd.errors import BlockRejectedError, LedgerDamagedError
from meterd.ledger.account import DAY_S, Parameters
from meterd.ledger.block import UJ_MAX, Block, Clock, Energy
from meterd.ledger.chain import verify_block
from meterd.ledger.encoding import digest, seal
from meterd.ledger.event import Details, Event
from meterd.ledger.judge import Start
from meterd.ledger.segment import ELAPSED_MS_MAX, STREAMS, read_rows, row_struct
from meterd.metering.energy import (
    APPARENT,
    ROW_GAP,
    Register,
    Sieve,
    mapping,
    quantities,
    registers,
    registers_uj,
)
from meterd.metering.interval import (
    LOST,
    Base,
    Cut,
    Cutter,
    Decision,
    Placement,
    Wall,
    clock_details,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.device.card import Operation
    from meterd.device.clock import Stamp
    from meterd.ledger.chain import Chain
    from meterd.ledger.segment import SampleHeader
    from meterd.metering.reading import BoardRules, Reading

GENESIS_ORDER = 0


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


class Bookkeeper:
    """Keeps one account. Not for two tasks at once.

    Attributes:
        log: The account's streams.
        chain: The chain with all blocks sealed so far.
        cutter: Registers and the open interval.
        placement: Where wall time stands.
        sieve: Duplicates, gaps, cadence, frozen board.
        accepted: Readings integrated since the start.
        gaps: Holes since the start.
        alarms: Alarms that stand now, by kind.
        storing: Whether there is room for samples.
        told: Called with each event.
        alarmed: Called with kind, text and whether it stands, when an alarm changes.
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
        key: SigningKey,
        recovered: Recovered,
        boot_id: bytes,
        draw_secret: Callable[[str, int], bytes],
        read: Callable[[int, int, int], bytes],
    ) -> None:
        """Go on from what recovery found; `start` comes next.

        Args:
            state: Folder of the account.
            rules: What turns lines into readings.
            settings: All that bears on measurement, for the parameter record.
            software_id: Identifier of the relevant software.
            build_ms: Date of the software, ms since 1970.
            interval_s: The network's interval.
            key: The sealing key.
            recovered: Where the account stands.
            boot_id: Which boot this is, 16 bytes.
            draw_secret: Gives the secret of a stream's segment of a number.
            read: Reads back bytes of a samples segment: (number, begin, end).
        """
        found = recovered.found
        self.state = state
        self.rules = rules
        self.chain: Chain = found.chain
        self._key, self._read_samples, self._boot_id = key, read, boot_id
        self._interval_s = interval_s
        self._recovered = recovered
        self.run = recovered.run + 1
        self._begins: dict[int, int] = {}
        self.log = Log(
            state,
            genesis=self.chain.genesis,
            meter=self.chain.meter,
            incarnation=self.chain.incarnation,
            draw_secret=draw_secret,
            ends=found.ends,
            events=recovered.checkpoint.start.events + len(found.events),
            open_rows=[
                OpenRows(part.segment.header, part.first_row, part.segment.rows - part.first_row)
                for part in found.open
            ],
        )
        known = max(found.parameters.values(), key=lambda one: one.sequence, default=None)
        self.parameters = parameters_for(
            rules,
            settings,
            genesis=self.chain.genesis,
            meter=self.chain.meter,
            software_id=software_id,
        )
        self._parameters_before = known
        if known is not None:
            self.parameters = replace(self.parameters, sequence=known.sequence)
            if self.parameters != known:
                self.parameters = replace(self.parameters, sequence=known.sequence + 1)
        self._sealed_under = self.parameters
        self._sealed_boot_id = boot_id
        self._use(self.parameters)
        self.cutter = Cutter(interval_s=interval_s, quantities=self._quantities)
        self.placement = Placement(interval_s=interval_s, build_ms=build_ms)
        self.sieve = Sieve(rules.polling_ms)
        self.accepted = 0
        self.gaps = 0
        self.alarms: dict[str, str] = {}
        self.storing = True
        self._lossy = False
        self.again: tuple[Decision, Reading, int] | None = None
        self._operations: list[Operation] = []
        self._row_ms: int | None = None
        self._row_body = b""
        self._stamp: tuple[int, int] = (0, 0)
        self._counted: Counter[str] = Counter()
        self._dropped: dict[str, int] = {}
        self._day: int | None = None
        self.told: Callable[[Event], None] = _nobody
        self.alarmed: Callable[..., None] = _nobody

    # --- starting ---------------------------------------------------------------------------

    def start(self, boot_ms: int, wall_ms: int, details: Details = ()) -> None:
        """Record the start, close what a run before has left open, and note what has changed."""
        self._stamp = (boot_ms, wall_ms)
        recovered, found = self._recovered, self._recovered.found
        self.event("started", (("run", self.run), ("boot_id", self._boot_id), *details))
        if recovered.checkpoint_lost:
            self.event("checkpoint_lost", (("reason", recovered.checkpoint_lost[:200]),))
        for tail in found.tails:
            self.event(
                "torn_tail",
                (
                    ("stream", tail.stream),
                    ("segment", tail.segment),
                    ("offset", tail.offset),
                    ("bytes", len(tail.data)),
                    ("sha256", digest(tail.data)),
                ),
            )
        base = self._close_before()
        before = self._parameters_before
        if before != self.parameters:
            changes: list[tuple[str, str | int | bytes]] = []
            if before is not None:
                for what, old, new in self.parameters.changes_from(before):
                    changes += [(f"{what} old", old), (f"{what} new", new)]
            self.event("parameters", (("record", self.parameters.encode()), *changes))
        self._sealed_under, self._sealed_boot_id = self.parameters, self._boot_id
        self._use(self.parameters)
        self.cutter = Cutter(interval_s=self._interval_s, quantities=self._quantities, base=base)
        self._day = None if base.end_s is None else base.end_s // DAY_S

    def _close_before(self) -> Base:
        """Seal what earlier runs left open, under their own parameters; return where that ends.

        Energy of a run that never knew the time stays pending: the first placed row puts it into
        the gap block.
        """
        recovered, found = self._recovered, self._recovered.found
        sums = dict(recovered.sums)
        pending: tuple[int, int, dict[bytes, int]] | None = None
        at = recovered.at
        end_s = self.chain.head.end_s
        by_run: dict[int, list[OpenRows]] = {}
        for part in list(self.log.open_rows):
            by_run.setdefault(part.header.run, []).append(part)
        begins = {part.segment.header.number: part.segment.begin for part in found.open}
        self._begins.update(begins)
        for run, parts in by_run.items():
            header = parts[0].header
            record = found.parameters.get(header.parameters)
            if record is None:
                reason = f"no event holds the parameter record of run {run}"
                raise LedgerDamagedError(reason, hint="see `meterctl verify`")
            self._sealed_under, self._sealed_boot_id = record, header.boot_id
            self._use(record)
            codes = [obis for obis, _ in record.registers]
            base = Base(
                end_s,
                tuple(sums.get(code, 0) for code in codes),
                at[0] if at else None,
                at[1] if at else (0,) * self._quantities,
                pending=pending
                and (pending[0], pending[1], tuple(pending[2].get(code, 0) for code in codes)),
            )
            cutter = Cutter(interval_s=self._interval_s, quantities=self._quantities, base=base)
            wall = recovered.walls.get(run)
            cuts: list[Cut] = []
            for part in parts:
                for row in self._rows(part):
                    point = quantities(row.powers_mw, row.apparent_mva, self._of)
                    if wall is None:
                        cutter.hold(row.at_ms, point, row.flags)
                    else:
                        cuts += cutter.feed(row.at_ms, point, row.flags, wall)
            cuts += cutter.restart()
            for cut in cuts:
                self._seal(cut, self.log.take_rows(cut.records, self._read_rows))
            base = cutter.base
            end_s, at = base.end_s, None
            sums |= dict(zip(codes, base.sums, strict=True))
            pending = None
            if base.pending:
                pending = (
                    base.pending[0],
                    base.pending[1],
                    sums | dict(zip(codes, base.pending[2], strict=True)),
                )
        self._use(self.parameters)
        codes = [obis for obis, _ in self.parameters.registers]
        return Base(
            end_s,
            tuple(sums.get(code, 0) for code in codes),
            None,
            (0,) * self._quantities,
            pending=pending
            and (pending[0], pending[1], tuple(pending[2].get(code, 0) for code in codes)),
        )

    def _use(self, parameters: Parameters) -> None:
        codes = [obis for obis, _ in parameters.registers]
        self.registers = [Register(obis, kind) for obis, kind in parameters.registers]
        self._of = mapping(parameters.roles, apparent=APPARENT in codes)
        self._quantities = len(codes) - 1
        self._parameters_hash = digest(parameters.encode())
        self._clamps = len(parameters.roles)
        self._pack = row_struct(self._clamps).pack

    def _begin(self, header: SampleHeader) -> int:
        begin = self._begins.get(header.number)
        if begin is None:
            begin = self._begins[header.number] = len(header.stored())
        return begin

    def _read_rows(self, header: SampleHeader, first_row: int, rows: int) -> bytes:
        begin = self._begin(header) + first_row * header.row_bytes
        return self._read_samples(header.number, begin, begin + rows * header.row_bytes)

    def _rows(self, part: OpenRows):  # type: ignore[no-untyped-def]  # noqa: ANN202
        """Yield the open rows of one segment, with their boot clocks."""
        header = part.header
        base_ms = header.base_ms
        if part.first_row:
            before = self._read_rows(header, 0, part.first_row)
            for row in read_rows(before, header.row_bytes, base_ms):
                base_ms = row.at_ms
        yield from read_rows(
            self._read_rows(header, part.first_row, part.rows), header.row_bytes, base_ms
        )

    # --- readings ---------------------------------------------------------------------------

    def take(self, reading: Reading, stamp: Stamp) -> None:
        """Count a reading; where `again` is set then, `feed_again` must follow before the next."""
        flags = self.sieve.admit(reading)
        if flags is None:
            return
        self._stamp = (reading.at_ms, stamp.wall_ms)
        self.accepted += 1
        decision = self.placement.decide(
            reading.at_ms, stamp.wall_ms, stamp.status, stamp.error_ms, self.cutter.end_s
        )
        if decision.event:
            self.event(*decision.event)
        if decision.again:
            self.again = (decision, reading, flags)
            return
        self._count(reading, flags, decision.wall)

    def feed_again(self) -> None:
        """Cut the rows since the last cut anew, from the card: where they lie is known now.

        All operations given out so far must have been performed.
        """
        assert self.again is not None  # noqa: S101 - the caller has looked
        decision, reading, flags = self.again
        self.again = None
        sums, lost = list(self.cutter.sums), self.cutter.flags & LOST
        self.cutter.restore(self.cutter.base)
        walls = decision.again
        for part in [part for part in self.log.open_rows if part.header.run == self.run]:
            for row in self._rows(part):
                wall = [wall for from_ms, wall in walls if from_ms <= row.at_ms][-1]
                point = quantities(row.powers_mw, row.apparent_mva, self._of)
                for cut in self.cutter.feed(row.at_ms, point, row.flags, wall):
                    self._seal(cut, self.log.take_rows(cut.records, self._read_rows))
        if self.cutter.sums != sums:
            self.cutter.sums[:] = [max(pair) for pair in zip(self.cutter.sums, sums, strict=True)]
            lost = LOST
        self.cutter.flags |= lost
        if not self.log.whole:
            self.log.reread(self._read_rows)
        self._count(reading, flags, decision.wall)

    def _count(self, reading: Reading, flags: int, wall: Wall | None) -> None:
        """Integrate, log and cut one admitted reading."""
        cutter = self.cutter
        point = quantities(reading.powers_mw, reading.apparent_mva, self._of)
        if wall is None:
            cutter.hold(reading.at_ms, point, flags)
            cuts: list[Cut] = []
        else:
            cuts = cutter.feed(reading.at_ms, point, flags, wall)
        if flags & ROW_GAP and self._row_ms is not None:
            self.gaps += 1
            self._counted["gaps"] += 1
        if not cuts:
            self._log_row(reading, flags)
            return
        early = [(cut, self._take(cut)) for cut in cuts if not cut.takes_row]
        turn = self._day is not None and cuts[-1].end_s // DAY_S != self._day
        if turn and not cuts[-1].takes_row:
            self.log.finish_samples()
        samples_end = self.log.end("samples")
        self._log_row(reading, flags)
        late = [(cut, self._take(cut)) for cut in cuts if cut.takes_row]
        if late:
            samples_end = self.log.end("samples")
        for cut, fingerprint in [*early, *late]:
            self._seal(cut, *fingerprint)
        self._day = cuts[-1].end_s // DAY_S
        if turn:
            self._turn(samples_end, wall, taken=bool(late))

    def tick(self, now_ms: int, stamp: Stamp) -> None:
        """Close the open interval if its end has passed and no reading can bridge it any more."""
        last_ms = self._row_ms
        wall = self.placement.wall
        if last_ms is None or wall is None or self.placement.alarm:
            return
        if not self.sieve.cadence.is_gap(now_ms - last_ms):
            return
        here = Wall(stamp.wall_ms - stamp.boot_ms, wall.status, wall.error_ms)
        for cut in self.cutter.tick(now_ms, here):
            self._stamp = (stamp.boot_ms, stamp.wall_ms)
            self._seal(cut, *self._take(cut))

    def _take(self, cut: Cut) -> tuple[bytes, int]:
        """Take the cut's rows from the log: their fingerprint, and how many there are."""
        if not self._lossy:
            return self.log.take_rows(cut.records, self._read_rows), cut.records
        stored = sum(part.rows for part in self.log.open_rows)
        return self.log.take_rows(stored, self._read_rows), stored

    def _log_row(self, reading: Reading, flags: int) -> None:
        at_ms = reading.at_ms
        body_ms = at_ms if self._row_ms is None else self._row_ms
        elapsed_ms = at_ms - body_ms
        if not self.storing:
            self.cutter.flags |= LOST
            if not self._lossy:
                self._lossy = True
                self.log.finish_samples()
        log = self.log
        if self.storing and (not log.samples_open or elapsed_ms > ELAPSED_MS_MAX):
            if elapsed_ms > ELAPSED_MS_MAX:
                body_ms, elapsed_ms, self._row_body = at_ms, 0, b""
                log.finish_samples()
            log.begin_samples(
                parameters=self._parameters_hash,
                boot_id=self._boot_id,
                run=self.run,
                base_ms=body_ms,
                sums=self.cutter.row_sums,
                before=self._row_body,
                clamps=self._clamps,
            )
        clamps = [
            value
            for pair in zip(reading.powers_mw, reading.currents_ma, strict=True)
            for value in pair
        ]
        body = self._pack(
            min(elapsed_ms, ELAPSED_MS_MAX),
            flags,
            0,
            reading.apparent_mva,
            reading.voltage_mv,
            *clamps,
        )
        if self.storing:
            log.add_row(body)
        self._row_ms, self._row_body = at_ms, body

    # --- sealing ----------------------------------------------------------------------------

    def event(self, kind: str, details: Details = ()) -> None:
        """Append an event, stamped with the last reading's or the start's clocks."""
        boot_ms, wall_ms = self._stamp
        event = Event(
            number=self.log.events + 1,
            boot_ms=boot_ms,
            wall_ms=max(wall_ms, 0),
            kind=kind,
            details=details,
        )
        self.log.add_event(event)
        self.told(event)

    def stamp(self, stamp: Stamp) -> None:
        """Let events that follow bear `stamp`."""
        self._stamp = (stamp.boot_ms, stamp.wall_ms)

    def raise_alarm(self, kind: str, text: str, *, stands: bool) -> bool:
        """Let an alarm stand or fall; an event tells of each change. Returns whether it changed."""
        if (kind in self.alarms) == stands:
            return False
        self.alarmed(kind, text, stands=stands)
        if stands:
            self.alarms[kind] = text
        else:
            del self.alarms[kind]
        self.event("alarm" if stands else "alarm_over", (("alarm", kind),))
        return True

    def count_dropped(self, dropped: dict[str, int]) -> None:
        """Take over the decoder's counts; they become an event with the next block."""
        for kind, count in dropped.items():
            more = count - self._dropped.get(kind, 0)
            if more:
                self._counted[f"dropped.{kind}"] += more
                self._dropped[kind] = count
        more = self.sieve.duplicates - self._dropped.get("duplicate", 0)
        if more:
            self._counted["dropped.duplicate"] += more
            self._dropped["duplicate"] = self.sieve.duplicates

    def note_counts(self) -> None:
        """Append the counts since the last such event, if there are any."""
        if self._counted:
            details: Details = tuple(sorted(self._counted.items()))
            self._counted.clear()
            self.event("counted", details)

    def _energy(self, cut: Cut) -> tuple[Energy, ...]:
        entries = {
            energy.obis: energy._replace(first_uj=energy.last_uj)
            for energy in self.chain.head.energy
        }
        named = zip(self.registers, cut.first_uj, cut.last_uj, strict=True)
        for register, first_uj, last_uj in named:
            if last_uj > UJ_MAX:
                raise LedgerDamagedError(f"register {register.code} has overflown 63 bits")
            entries[register.obis] = Energy(register.obis, register.kind, first_uj, last_uj)
        return tuple(entries[code] for code in sorted(entries))

    def _seal(self, cut: Cut, fingerprint: bytes, records: int | None = None) -> None:
        """Seal one cut; durable once the operations have been performed."""
        self.note_counts()
        chain = self.chain
        block = Block(
            genesis=chain.genesis,
            meter=chain.meter,
            incarnation=chain.incarnation,
            height=chain.head.height + 1,
            previous=chain.head.block_hash,
            order=chain.head.order,
            start_s=cut.start_s,
            end_s=cut.end_s,
            clock=Clock(
                cut.status, cut.error_ms, self._sealed_boot_id, cut.cut_ms, cut.measured_ms
            ),
            parameters=digest(self._sealed_under.encode()),
            records=cut.records if records is None else records,
            fingerprint=fingerprint,
            events=self.log.events,
            events_digest=self.log.events_digest,
            energy=self._energy(cut),
            flags=cut.flags,
        )
        payload = block.encode()
        try:
            head = verify_block(block, payload, chain)
        except BlockRejectedError as error:
            raise LedgerDamagedError(
                f"refuses to seal a block that its peers would refuse: {error}",
                hint="keep the account as it is and report this: it is an error in meterd",
            ) from error
        self.log.add_block(seal(payload, self._key, chain.genesis))
        self.chain = replace(chain, head=head)
        self._operations += self.log.take_operations()
        self.event("sealed", (("height", head.height), ("hash", head.block_hash)))
        if cut.flags & LOST:
            self.log.finish_samples()
            self._lossy = not self.storing

    def _turn(self, samples_end: object, wall: Wall | None, *, taken: bool) -> None:
        """A day has ended: each stream begins a new segment, and a checkpoint says so."""
        del taken
        self._operations += self.log.take_operations()
        ends = {
            "samples": samples_end,
            "events": self.log.end("events"),
            "blocks": self.log.end("blocks"),
        }
        self.log.finish_frames()
        if not self.log.samples_open or self.log.samples_number == ends["samples"].number:  # type: ignore[attr-defined]
            self.log.finish_samples()
        codes = [register.obis for register in self.registers]
        checkpoint = Checkpoint(
            start=Start(
                chain=self.chain,
                ends={name: ends[name] for name in STREAMS},  # type: ignore[misc]
                events=self.log.events,
                parameters=(self.parameters.encode(),),
                cut_ms=self.cutter.base.at_ms or 0,
            ),
            run=self.run,
            sums=dict(zip(codes, self.cutter.base.sums, strict=True)),
        )
        self._operations.append(checkpoint_operation(self.state, checkpoint, self._key))
        if wall is not None:
            self.event("clock_set", clock_details(wall, self._stamp[0]))

    def seal_open(self) -> None:
        """Seal what is open, as the next start would; all must be durable. No reading may follow."""
        if self.placement.held:
            self._feed_held()
        for cut in self.cutter.restart():
            self._seal(cut, *self._take(cut))

    def _feed_held(self) -> None:
        """Place rows that wait for a clock step to prove itself as if it had not been."""
        wall = self.placement.wall
        assert wall is not None  # noqa: S101 - the caller has looked
        self.cutter.restore(self.cutter.base)
        for part in [part for part in self.log.open_rows if part.header.run == self.run]:
            for row in self._rows(part):
                point = quantities(row.powers_mw, row.apparent_mva, self._of)
                for cut in self.cutter.feed(row.at_ms, point, row.flags, wall):
                    self._seal(cut, self.log.take_rows(cut.records, self._read_rows))

    def commit(self) -> list[Operation]:
        """Return what makes all so far durable."""
        operations = self._operations + self.log.take_operations()
        self._operations = []
        return operations

    @property
    def pending(self) -> bool:
        """Whether a block waits to be made durable."""
        return bool(self._operations)

    def registers_uj(self) -> dict[str, tuple[int, int]]:
        """Return each register now, in uJ, and its kind, by code; those no longer fed too."""
        result = {
            Register(energy.obis, energy.kind).code: (energy.last_uj, energy.kind)
            for energy in self.chain.head.energy
        }
        now = zip(self.registers, registers_uj(self.cutter.sums), strict=True)
        return result | {register.code: (uj, register.kind) for register, uj in now}
