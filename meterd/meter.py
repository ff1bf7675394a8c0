"""The meter process. It has the board and the seal, and no network.

One task owns each outside thing: the port, the card, the control socket. The measuring task alone
has the account; bounded hand-overs join them. A card that stalls for seconds delays neither a stamp
nor an integration. The first failure ends the process, and a fresh start is the one way back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meterd.access import Access
from meterd.alarm_outbox import AlarmOutbox
from meterd.bookkeeper import Bookkeeper
from meterd.device.archive import load_blocks, read_part
from meterd.device.card import Card
from meterd.device.clock import BUILD_S, Clock, Stamp, SystemClock
from meterd.device.failures import Failures
from meterd.device.port import read_board
from meterd.device.power import UNDERVOLTAGE, Power
from meterd.device.rebase import begin_anew
from meterd.device.systemd import Manager, log_event
from meterd.errors import StorageError
from meterd.flapping import Rationed
from meterd.guard import Guard
from meterd.health import one_line
from meterd.hearing import Hearing
from meterd.ledger.pruning import Recovered
from meterd.metering.board import BoardDecoder
from meterd.neighbours import Neighbours, line_folder
from meterd.opened import open_account
from meterd.parameters import Desk
from meterd.software import Installed, SoftwareChangedError, software_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import NoReturn

    from nacl.signing import SigningKey

    from meterd.config import Settings
    from meterd.device.card import Operation
    from meterd.ledger.account import Genesis
    from meterd.ledger.event import Details
    from meterd.metering.reading import Reading

CHUNKS_WAITING_MAX = 4096  # reads while the account is fed anew: a minute of the fastest board
WRITE_STALL_S_MAX = 120.0  # a card that takes no write for so long is broken
TURN_S = 1.0  # the measuring loop turns at least so often: ticks, watchdog
MB = 1_000_000
SECRET_BYTES = 32
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ROW_BYTES = 32  # a row of one clamp
STORAGE_DAYS_MIN = 30  # less room than this is an alarm
REPLY_S = 0.2  # whoever changed the parameters is told before the meter starts anew
UNREAD_BYTES_MAX = 300  # some 6 lines without a good one among them: no line noise


class Chunk(NamedTuple):
    """What one read of the port returned."""

    data: bytes
    stamp: Stamp


class Meter:
    """The daemon's tasks around one bookkeeper.

    Attributes:
        book: The account; only the measuring task touches it.
        port_state: `closed`, `open`, `lost` or `silent`.
        last: The last reading and its stamp, or None.
        last_reading: The last reading, clamp by clamp, or None.
        begins_anew: The account has begun anew behind its neighbours' blocks: start once more.
        changed: Its parameters have been changed: likewise.
        durable_height: Height of the last block that is on the card: no other is told of.
        guard: Case switch, relay and what else is wired to pins.
        access: Who came, and who was not let in.
        alarms: What neighbours are told of events.
        desk: Judges what is to change the parameters.
        opened_as: The account as this start has found it.
    """

    def __init__(
        self,
        state: Path,
        settings: Settings,
        genesis: Genesis,
        *,
        clock: Clock,
        manager: Manager,
        logger: logging.Logger,
        device: bytes | None = None,
        speed: int = 1,
        inside: int = 0,
    ) -> None:
        """Recover the account in `state`; `run` comes next.

        `device` opens the vault that the sealing keys are in, if they are. Of sessions `inside` go
        on from the run before, in the same process.

        Raises:
            ConfigError: Key, settings and genesis do not fit each other.
            LedgerDamagedError: The account does not verify.
            VaultRefusedError: The vault is another device's, was changed, or is older than the
                account says.
        """
        self._state, self._manager, self._logger, self._speed = state, manager, logger, speed
        self._card = Card()
        self.opened_as = opened = open_account(state, settings, genesis, device, self._card)
        self.settings, keys, roster = opened.settings, opened.keys, opened.roster
        if self.settings.clock != settings.clock and isinstance(clock, SystemClock):
            clock = SystemClock(self.settings.clock.trust)
        self._clock = clock
        self.book = Bookkeeper(
            state,
            rules=self.settings.rules,
            settings=opened.pairs,
            software_id=software_id(),
            build_ms=BUILD_S * 1000,
            interval_s=genesis.interval_s,
            keys=keys,
            recovered=opened.recovered,
            boot_id=clock.boot_id,
            draw_secret=lambda _stream, _number: os.urandom(SECRET_BYTES),
            read=lambda number, begin, end: read_part(state, number, begin, end),
            changes=tuple(change[1:] for change in roster.intervals[1:]),
        )
        self.book.alarmed = self._alarmed
        self.desk = Desk(self.book, self.settings, settings, keys)
        self.guard = Guard(state, settings.gpio, self.book, logger)
        self.access = Access(self.book, clock, logger, inside=inside)
        self._power, self._failures = Power(), Failures(state)
        self.neighbours = Neighbours(
            roster,
            self.book.chain,
            state=state,
            line=line_folder(state, settings) if settings.network.brokers else None,
            load=lambda first, last: load_blocks(state, first, last),
        )
        self.alarms = AlarmOutbox(
            line_folder(state, settings) if settings.network.brokers else None,
            self.book.chain,
            lambda: keys.get(self.neighbours.chain.key_at(self.neighbours.order[0])),
        )
        self.book.told = self.alarms.note
        self.book.waiting = not self.neighbours.may_seal(0)
        self._hearing = Hearing(
            self.neighbours,
            self.book,
            clock,
            state=state,
            logger=logger,
            flush=self.flush,
            tell=self._tell,
            speed=speed,
        )
        self._hearing.obey()
        self._decoder = BoardDecoder(self.settings.rules, joins=True)
        self.port_state = "closed"
        self.last: tuple[list[int], int, Stamp] | None = None
        self.last_reading: Reading | None = None
        self.published: Callable[[object], None] | None = None
        self.free_bytes = self._free()
        self._chunks: deque[Chunk] = deque()
        self._wake = asyncio.Event()
        self._writes: asyncio.Queue[list[Operation]] = asyncio.Queue(1)
        self._written = asyncio.Event()
        self._written.set()
        self._handed_over = self.book.chain
        self._events_handed_over = self._events_durable = 0
        self._sealed: list[tuple[int, bytes]] = []
        self._stopping = self._told_to_stop = self.begins_anew = self.changed = False
        self._reports: list[tuple[str, dict[str, str]]] = []
        self._port_events = Rationed()
        self._committed_ms = 0
        self._said = ""
        self._unread_bytes = 0
        self._reading: asyncio.Task[NoReturn] | None = None
        self.durable_height = self.book.chain.head.height

    # --- starting and stopping --------------------------------------------------------------

    def refuse(self, changed: SoftwareChangedError) -> None:
        """Record that this software does not start; it seals nothing, an old stretch neither.

        It signs the alarm that says so, all the same: one vouches for no energy and speaks against
        its own meter alone, and whoever changed the software had the key within reach before.
        """
        stamp = self._clock.stamp()
        self.book.stamp(stamp)
        self.book.event("refused", (("reason", str(changed)[:200]),))
        self.book.raise_alarm("software_changed", str(changed), stands=True)
        self._card.perform(self.book.commit())
        self.alarms.turn(stamp.boot_ms, self.book.log.events)

    def begin(self, installed: Installed, settings_digest: bytes = b"") -> None:
        """Record the start; nothing is written before the port has been opened.

        Args:
            installed: What the check of the installed files found.
            settings_digest: SHA-256 of the settings' file.
        """
        stamp, book = self._clock.stamp(), self.book
        opened, software = self.opened_as, book.parameters.software_id
        book.start(
            stamp.boot_ms,
            stamp.wall_ms,
            opened.started(software, settings_digest, installed.detail[:200]),
        )
        boot_id = self._clock.boot_id
        for found in opened.found(software, settings_digest, run=book.run, boot_id=boot_id):
            self._tell(*found)
        book.raise_alarm("parameters", opened.differs, stands=bool(opened.differs))
        for failure in self._failures.kept:
            self._tell("failed", tuple(failure._asdict().items()))
        self._failures.told()
        self._committed_ms = stamp.boot_ms
        self._check_room()

    async def run(self) -> None:
        """Meter until SIGTERM or SIGINT; then make all durable.

        From the first of these signals on both are ignored: what is asked for is being done.
        """
        loop = asyncio.get_running_loop()

        def stop(_number: int, _frame: FrameType | None) -> None:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            self._stopping = self._told_to_stop = True
            loop.call_soon_threadsafe(self._wake.set)

        # Not the loop's own handlers: it would put back the default as it closes, and a second
        # SIGTERM would then kill a process that has just made all durable.
        for number in STOP_SIGNALS:
            signal.signal(number, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._reading = tasks.create_task(self._read(), name="read the port")
                self._hearing.listen(self._wake.set)
                others = [
                    self._reading,
                    tasks.create_task(self._keep(), name="keep the log"),
                    tasks.create_task(self._control(), name="answer"),
                    tasks.create_task(self.guard.watch(self._wake.set), name="watch the pins"),
                ]
                measure = tasks.create_task(self._measure(), name="measure")
                await measure
                for task in others:
                    task.cancel()
        finally:
            if self.starts_anew:  # at once: a signal that comes between waits till then
                signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            else:
                for number in STOP_SIGNALS:
                    signal.signal(number, signal.SIG_IGN)
                self._manager.stopping()
            self._card.close()

    def start_anew(self) -> None:
        """End this run and begin another in the same process, as the parameters have changed."""
        self.changed = True

        def stop() -> None:
            self._stopping = True
            self._wake.set()

        asyncio.get_running_loop().call_later(REPLY_S, stop)

    async def _read(self) -> NoReturn:
        board = self.settings.board
        silence_s = float(board.silence_s or 3 * board.polling_ms / 1000) / self._speed
        await read_board(
            board.port,
            self._deliver,
            self._port_reports,
            clock=self._clock,
            silence_s=max(silence_s, 1.0),
            reset_gpio=board.reset_gpio,
            opened=self._opened,
        )

    def _deliver(self, data: bytes, stamp: Stamp) -> None:
        if len(self._chunks) == CHUNKS_WAITING_MAX:
            raise StorageError(
                f"the card was too slow: {CHUNKS_WAITING_MAX} reads of the port wait for it",
                hint="the card may be failing: copy it, replace it",
            )
        self._chunks.append(Chunk(data, stamp))
        self._wake.set()

    def _opened(self) -> None:
        self._decoder.reopen()
        if self.port_state == "closed":
            self._manager.ready()
        self.port_state = "open"

    def _port_reports(self, event: str, fields: dict[str, str]) -> None:
        level = logging.INFO if event in ("port_opened", "port_speaks") else logging.WARNING
        log_event(self._logger, level, event, **fields)
        states = {"port_lost": "lost", "port_silent": "silent", "port_speaks": "open"}
        self.port_state = states.get(event, self.port_state)
        self._reports.append((event, fields))

    # --- measuring --------------------------------------------------------------------------

    async def _measure(self) -> None:
        turn_s = min(TURN_S, self._manager.watchdog_s or TURN_S)
        while not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(turn_s):
                    await self._wake.wait()
            self._wake.clear()
            self._manager.watchdog()
            await self._take_waiting()
            self._turn()
            if await self._hearing.turn():
                self._stopping = self.begins_anew = True
        await self._read_up()
        stamp = self._clock.stamp()
        book = self.book
        book.stamp(stamp)
        self._note_reports()
        book.count_dropped(self._decoder.dropped)
        book.note_counts()
        self.access.end()
        book.event("stopped")
        await self.flush()
        if book.losing:
            book.seal_open()
            await self.flush()
        if self.begins_anew:
            await asyncio.to_thread(self._begin_anew, stamp)
        log_event(self._logger, logging.INFO, "stopped", height=book.chain.head.height)

    def _begin_anew(self, stamp: Stamp) -> None:
        """Go on behind the blocks that neighbours gave back: this card was put back to before."""
        book, given = self.book, self.neighbours.recovered
        chain, own = self.neighbours.chain, book.chain.head.height
        measured_ms, carried = book.measured()
        recovered = Recovered(
            chain.head.height, chain.head.block_hash, book.run, measured_ms, carried
        )
        begin_anew(
            self._state,
            chain,
            [*load_blocks(self._state, 1, own), *given],
            recovered,
            key=self.opened_as.keys[chain.key_at(self.neighbours.order[0])],
            parameters=book.parameters_next or book.parameters,
            known=(book.parameters.hash, book.chain.head.parameters),
            events=max(book.log.events, chain.head.events),
            stamp=(stamp.boot_ms, max(stamp.wall_ms, 0)),
            old_height=own,
            draw_secret=lambda _stream, _number: os.urandom(SECRET_BYTES),
        )
        log_event(self._logger, logging.WARNING, "recovered", height=chain.head.height, had=own)

    async def _read_up(self) -> None:
        """Take what the board had said before the stop: in our queue, and in the kernel's."""
        assert self._reading is not None  # noqa: S101 - `run` has started it before this task
        self._reading.cancel()  # it reads the port empty before it closes it
        await asyncio.wait((self._reading,))
        await self._take_waiting()

    async def _take_waiting(self) -> None:
        while self._chunks:
            await self._take(self._chunks.popleft())

    async def _take(self, chunk: Chunk) -> None:
        book = self.book
        readings = self._decoder.receive(chunk.data, chunk.stamp.boot_ms)
        self._unread_bytes = 0 if readings else self._unread_bytes + len(chunk.data)
        for reading in readings:
            book.take(reading, chunk.stamp)
            if book.again:
                await self.flush()
                book.feed_again()
            mains = [
                power
                for power, role in zip(reading.powers_mw, book.parameters.roles, strict=True)
                if role == "mains"
            ]
            self.last_reading = reading
            self.last = ([sum(mains), reading.voltage_mv, *reading.currents_ma], 0, chunk.stamp)
            self._see(estimated=reading.estimated)
            if self.published is not None:
                self.published(None)

    def _see(self, *, estimated: bool) -> None:
        """Let alarms stand or fall by the last reading."""
        book, sieve = self.book, self.book.sieve
        book.raise_alarm(
            "adaptor_out", "the voltage adaptor is out: energy is estimated", stands=estimated
        )
        book.raise_alarm("frozen", "the board repeats one line", stands=sieve.frozen)
        book.raise_alarm(
            "cadence",
            f"lines come every {sieve.cadence.twice_ms / 2000:.1f} s, board.polling_ms says "
            f"{self.settings.board.polling_ms / 1000:.1f} s: set it to what the board does",
            stands=sieve.cadence.is_off(),
        )
        book.raise_alarm("clock", book.placement.alarm, stands=bool(book.placement.alarm))

    def _turn(self) -> None:
        """Do what is due whether or not the board speaks."""
        book, stamp = self.book, self._clock.stamp()
        book.stamp(stamp)
        self._note_reports()
        silent = self.port_state in ("lost", "silent")
        book.raise_alarm("port", f"the board is {self.port_state}", stands=silent)
        self._see_unread()
        low = self._power.low(stamp.boot_ms)
        book.raise_alarm("undervoltage", UNDERVOLTAGE, stands=low)
        book.count_dropped(self._decoder.dropped)
        book.tick(stamp.boot_ms, stamp)
        self.access.turn()
        self.guard.turn(*self._troubles(stamp))
        self._say_how_it_is()
        self.alarms.turn(stamp.boot_ms, self._events_durable)
        due = stamp.boot_ms - self._committed_ms >= self.settings.log.commit_s * 1000
        if (
            (due or book.pending or self.guard.pending or self.alarms.pending)
            and self._written.is_set()
            and self.port_state != "closed"
        ):
            self._committed_ms = stamp.boot_ms
            self._hand_over()

    def _say_how_it_is(self) -> None:
        if self.port_state == "closed":
            return  # the manager shows that it starts
        line = one_line(
            self.book.alarms,
            height=self.durable_height,
            certified_height=self.certified_height,
            state=self.state,
            waits=self.neighbours.waits,
        )
        if line != self._said:
            self._said = line
            self._manager.status(line)

    def _troubles(self, stamp: Stamp) -> Iterator[str]:
        """Yield what the status LED has to say and no alarm does, as `lamp.PATTERNS` calls it."""
        if self.neighbours.stopped:
            yield "stopped"
        if stamp.status == "R":
            yield "clock"
        if self.port_state == "closed":
            yield "starting"

    # --- what the measuring task hands over -------------------------------------------------

    def _note_reports(self) -> None:
        """Write down what the port has done; of one that comes and goes, how often besides."""
        now_ms = self._clock.stamp().boot_ms
        for event, fields in self._reports:
            told = self._port_events.take(tuple(fields.items()), now_ms)
            if told is not None:
                self.book.event(event, told)
        self._reports.clear()

    def _see_unread(self) -> None:
        """Alarm where the board speaks and nothing of it can be read.

        By bytes and not by lines: at a wrong baud rate a line end may never come.
        """
        dropped = self._decoder.dropped
        unread = self._unread_bytes > UNREAD_BYTES_MAX
        other = unread and dropped.get("field_count", 0) > sum(dropped.values()) // 2
        self.book.raise_alarm(
            "garbage",
            "nothing but garbage comes: set the board to 38400 baud",
            stands=unread and not other,
        )
        self.book.raise_alarm(
            "layout",
            "no line has as many fields as board.layout says: set it to the board's own",
            stands=other,
        )

    def _hand_over(self) -> None:
        operations = self.book.commit() + self.guard.take_operations()
        operations += self._failures.take_operations()
        if operations:
            self._handed_over = self.book.chain
            self._events_handed_over = self.book.log.events
            self._sealed += self.book.take_sealed()
            self._written.clear()
            self._writes.put_nowait(operations)

    async def flush(self) -> None:
        """Make all so far durable."""
        await self._idle()
        self._hand_over()
        await self._idle()

    async def _idle(self) -> None:
        """Wait until nothing is being written, not even by another task that waited as we do."""
        while not self._written.is_set():
            await self._written.wait()

    def _tell(self, kind: str, details: Details) -> None:
        """Append an event, and have the journal say it, a field for each detail."""
        self.book.event(kind, details)
        shown = {name: v.hex() if isinstance(v, bytes) else v for name, v in details}
        level = (
            logging.INFO if self.opened_as.before is None else logging.WARNING
        )  # the first start's own
        log_event(self._logger, level, kind, **shown)

    def _alarmed(self, kind: str, text: str, *, stands: bool) -> None:
        if stands:
            log_event(self._logger, logging.WARNING, "alarm", alarm=kind, text=text)
        else:
            log_event(self._logger, logging.INFO, "alarm_over", alarm=kind)

    # --- the card ---------------------------------------------------------------------------

    async def _keep(self) -> NoReturn:
        while True:
            operations = await self._writes.get()
            try:
                async with asyncio.timeout(WRITE_STALL_S_MAX):
                    self.free_bytes = await asyncio.to_thread(self._write, operations)
            except TimeoutError as error:
                raise StorageError(
                    f"the card has taken no write for {WRITE_STALL_S_MAX:.0f} s",
                    hint="it is failing: copy the account, replace the card",
                ) from error
            head, self._events_durable = self._handed_over.head, self._events_handed_over
            self.alarms.turn(self._clock.stamp().boot_ms, self._events_durable)
            sealed, self._sealed = self._sealed, []
            if sealed:
                self.neighbours.sealed(self._handed_over, sealed)
            self.guard.written()
            self._written.set()
            self._check_room()
            self._wake.set()  # what was sealed meanwhile need not wait for the next line
            if head.height > self.durable_height:
                self.durable_height = head.height
                log_event(
                    self._logger,
                    logging.INFO,
                    "sealed",
                    height=head.height,
                    end_s=head.end_s,
                    hash=head.block_hash.hex()[:16],
                )

    def _write(self, operations: list[Operation]) -> int:
        self._card.perform(operations)
        return self._free()

    def _free(self) -> int:
        room = os.statvfs(self._state)
        return room.f_bavail * room.f_frsize

    def _check_room(self) -> None:
        """Samples stop at the reserve, so that blocks and events go on; well before, warn."""
        reserve = self.settings.log.reserve_mb * MB
        book = self.book
        book.storing = self.free_bytes > reserve
        book.raise_alarm(
            "storage_full",
            "the card is full: samples are lost, registers and blocks go on; run `meterctl prune`",
            stands=not book.storing,
        )
        a_day = 86_400_000 // self.settings.board.polling_ms * ROW_BYTES
        days = max(0, self.free_bytes - reserve) // a_day
        book.raise_alarm(
            "storage_low",
            f"room for samples of {days} days: run `meterctl prune`, or take a larger card",
            stands=book.storing and days < STORAGE_DAYS_MIN,
        )

    # --- the control socket -----------------------------------------------------------------

    async def _control(self) -> None:
        from meterd.meter_socket import serve

        folder = os.environ.get("RUNTIME_DIRECTORY") or str(self._state)
        await serve(self, Path(self.settings.control.socket or f"{folder}/control"))

    async def record(self, kind: str, details: Details) -> tuple[int, int]:
        """Make an event durable; return its number and its time, ms since 1970."""
        stamp = self._clock.stamp()
        self.book.stamp(stamp)
        self.book.event(kind, details)
        number = self.book.log.events
        await self.flush()
        return number, stamp.wall_ms

    def stamp(self) -> Stamp:
        """Return the present instant."""
        return self._clock.stamp()

    @property
    def starts_anew(self) -> bool:
        """Whether another run has to follow in this process: not where it was told to stop."""
        return (self.begins_anew or self.changed) and not self._told_to_stop

    @property
    def state_folder(self) -> Path:
        """The account's folder."""
        return self._state

    @property
    def last_dropped(self) -> bytes:
        """The board's last line that was no reading, as it came."""
        return self._decoder.last_dropped

    @property
    def sealing_key(self) -> SigningKey:
        """The key that is good under the last order in force; never to be shown."""
        return self.opened_as.keys[self.neighbours.chain.key_at(self.neighbours.order[0])]

    @property
    def clock_status(self) -> str:
        """Status of the clock now, S, I or R."""
        return self._clock.stamp().status

    @property
    def state(self) -> str:
        """What the metering does, in a few words."""
        if self.book.placement.wall is None and self.book.accepted:
            return "metering, waits for the clock"
        return "metering" if self.port_state == "open" else self.port_state

    @property
    def certified_height(self) -> int:
        """Up to which height others vouch for the account; alone, what is sealed is certified."""
        neighbours = self.neighbours
        return self.durable_height if neighbours.alone else neighbours.witnessed.height

    @property
    def accepted(self) -> int:
        """Readings integrated since the start."""
        return self.book.accepted

    @property
    def dropped(self) -> dict[str, int]:
        """Lines dropped since the start, by kind."""
        duplicates = self.book.sieve.duplicates
        return self._decoder.dropped | ({"duplicate": duplicates} if duplicates else {})
