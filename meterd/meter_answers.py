"""What the meter process tells on its control socket."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

from meterd.access_answers import AccessAnswers
from meterd.device.archive import read_file, segment_name, segment_numbers
from meterd.device.control import (
    EventRecord,
    Feed,
    LiveReading,
    PruneReply,
    Register,
    RegistersReply,
    ReportReply,
    StatusReply,
)
from meterd.ledger.encoding import digest
from meterd.ledger.event import Event, decode_event
from meterd.ledger.segment import FRAME_BYTES_MAX, HEADER_BYTES_MAX, read_header, walk_frames

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from meterd.meter import Meter


def record_of(event: Event) -> EventRecord:
    """Return an event as the socket tells it: numbers in decimal, bytes in hex."""
    return {
        "number": event.number,
        "boot_ms": event.boot_ms,
        "wall_ms": event.wall_ms,
        "kind": event.kind,
        "details": {
            key: value.hex() if isinstance(value, bytes) else str(value)
            for key, value in event.details
        },
    }


def _segments_from(folder: Path, since: int) -> list[int]:
    """Return the numbers of the segments that may have events numbered `since` or more."""
    found: list[int] = []
    for number in reversed(segment_numbers(folder)):
        found.insert(0, number)
        with (folder / segment_name(number)).open("rb") as file:
            first = _events_of(file.read(HEADER_BYTES_MAX + FRAME_BYTES_MAX), 1)
        if first and first[0].number <= since:
            break
    return found


def _events_in(path: Path) -> list[Event]:
    return _events_of(read_file(path), None)


def _events_of(data: bytes, count: int | None) -> list[Event]:
    header, _ = read_header(data, "events")
    return [decode_event(frame.body) for frame in islice(walk_frames(data, header), count)]


class Answers(AccessAnswers):
    """Answers for one meter (`control.Source`)."""

    def __init__(self, meter: Meter) -> None:
        """Answer for `meter`."""
        self._meter = meter
        self._live: Feed[LiveReading] = Feed()
        self._events: Feed[EventRecord] = Feed()
        self._reading = asyncio.Lock()
        self._pruning = asyncio.Lock()

    def publish(self, _: object) -> None:
        """Hand the last reading to whoever listens."""
        last = self._meter.last
        if not self._live or last is None:
            return
        (power_mw, voltage_mv, *currents_ma), _, stamp = last
        registers = self._meter.book.registers_uj()
        self._live.publish(
            {
                "wall_ms": stamp.wall_ms,
                "power_mw": power_mw,
                "voltage_mv": voltage_mv,
                "currents_ma": currents_ma,
                "import_uj": registers["1-0:1.8.0"][0],
                "export_uj": registers["1-0:2.8.0"][0],
            }
        )

    def tell(self, event: Event) -> None:
        """Hand an event to whoever listens."""
        if self._events:
            self._events.publish(record_of(event))

    def _registers(self) -> dict[str, Register]:
        return {
            code: {"uj": uj, "kind": "estimated" if kind else "measured"}
            for code, (uj, kind) in sorted(self._meter.book.registers_uj().items())
        }

    def status(self) -> StatusReply:
        """Return how the meter is."""
        meter, book = self._meter, self._meter.book
        head = book.chain.head
        start_s = book.cutter.start_s
        power_mw = meter.last[0][0] if meter.last else 0
        reserve = meter.settings.log.reserve_mb * 1_000_000
        return {
            "name": meter.settings.meter.name,
            "software": book.parameters.software_id.hex(),
            "state": meter.state,
            "port": meter.port_state,
            "clock": meter.clock_status,
            "height": meter.durable_height,
            "last_end_s": head.end_s,
            "open": None
            if start_s is None
            else {"start_s": start_s, "records": book.cutter.records, "power_mw": power_mw},
            "registers": self._registers(),
            "readings": {"accepted": meter.accepted, "dropped": meter.dropped},
            "gaps": book.gaps,
            "storage_free_bytes": max(0, meter.free_bytes - reserve),
            "neighbours": {
                "voters": len(meter.neighbours.roster.committee.voters),
                "certified_height": meter.certified_height,
                "order": meter.neighbours.order[0],
                "waits": meter.neighbours.waits,
            },
            "alarms": [f"{kind}: {text}" for kind, text in sorted(book.alarms.items())],
        }

    def registers(self) -> RegistersReply:
        """Return the registers."""
        meter = self._meter
        return {
            "registers": self._registers(),
            "readings": {"accepted": meter.accepted, "dropped": meter.dropped},
            "gaps": meter.book.gaps,
            "height": meter.durable_height,
        }

    async def live(self) -> AsyncIterator[LiveReading]:
        """Yield each reading from now on."""
        with self._live.listener() as readings:
            async for reading in readings:
                yield reading

    async def events(self, since: int) -> AsyncIterator[EventRecord]:
        """Yield each event numbered `since` or more: from the card, then as they come."""
        with self._events.listener() as coming:
            if self._meter.port_state != "closed":  # before, a start that fails leaves no trace
                await self._meter.flush()  # so that nothing is neither on the card nor to come
            last = since - 1
            async for event in self._stored_events(since):
                last = event.number
                yield record_of(event)
            async for record in coming:
                if record["number"] > last:
                    last = record["number"]
                    yield record

    async def _stored_events(self, since: int) -> AsyncIterator[Event]:
        """Yield what is on the card, a segment at a time, beside the measuring and not before it.

        One client's segment is read at a time: what all of them ask for together is bounded.
        """
        folder = self._meter.state_folder / "events"
        for number in await asyncio.to_thread(_segments_from, folder, since):
            async with self._reading:
                events = await asyncio.to_thread(_events_in, folder / segment_name(number))
            for event in events:
                if event.number >= since:
                    yield event

    async def prune(self, before_s: int) -> PruneReply:
        """Prune samples of sealed blocks that end before an instant."""
        from meterd.device.prune import plan_prune, remove

        meter = self._meter
        async with self._pruning:
            chain = meter.book.chain
            neighbours = meter.neighbours
            last = chain.head.height if neighbours.alone else neighbours.witnessed.height
            plan = await asyncio.to_thread(plan_prune, meter.state_folder, chain, before_s, last)
            for pruned in plan.pruned:
                meter.book.prune(pruned)
            await meter.flush()
            await asyncio.to_thread(remove, plan.operations)
        return {"segments": len(plan.pruned), "bytes": plan.freed_bytes}

    async def report(self, since_s: int, side: bytes) -> ReportReply:
        """Return what this device says of itself now, under its seal; all in it is durable."""
        from meterd.device.report import recent_events
        from meterd.ledger.report import ALARMS_MAX, TEXT_LETTERS_MAX, Report, seal_report

        meter, book = self._meter, self._meter.book
        async with self._reading:
            await meter.flush()
            head, stamp = book.chain.head, meter.stamp()
            certified = meter.neighbours.witnessed.height
            known = Report(
                genesis=book.chain.genesis,
                meter=book.chain.meter,
                incarnation=book.chain.incarnation,
                at=(stamp.boot_ms, max(stamp.wall_ms, 0), stamp.status),
                head=(
                    head.height,
                    head.block_hash,
                    () if head.end_s is None else (head.end_s,),
                ),
                certified=head.height if meter.neighbours.alone else certified,
                order=meter.neighbours.order,
                software_id=book.parameters.software_id,
                parameters=digest(book.parameters.encode()),
                registers=tuple(
                    (code, kind, uj) for code, (uj, kind) in sorted(book.registers_uj().items())
                ),
                readings=(meter.accepted, book.gaps, tuple(sorted(meter.dropped.items()))),
                alarms=tuple(
                    (kind, text[:TEXT_LETTERS_MAX])
                    for kind, text in sorted(book.alarms.items())[:ALARMS_MAX]
                ),
                events=(book.log.events, book.log.events_digest, since_s, 0),
                happened=(),
                side=side,
            )
            count = book.log.events
            happened, left_out = await asyncio.to_thread(
                recent_events, meter.state_folder, since_s, count
            )
        events = (*known.events[:3], left_out)
        report = known._replace(events=events, happened=happened)
        return {"report": seal_report(report, meter.sealing_key).hex()}
