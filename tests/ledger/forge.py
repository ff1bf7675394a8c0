"""A meter that lies: an account taken apart, changed, and put together under valid seals.

Whoever has the sealing key can do this, and so could an error in meterd. It breaks the one rule
that a test is about and keeps every other: headers name what lies before them, fingerprints and
digests are of what is stored, each block links to the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from meterd.ledger.audit import fingerprint_of
from meterd.ledger.encoding import digest, seal
from meterd.ledger.segment import FrameHeader, Linker, SampleHeader
from tests.ledger.memory import SEED, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meterd.ledger.block import Block
    from meterd.ledger.event import Event


@dataclass
class Account:
    """An account's parts, to be changed in place; segments are numbered from 1.

    `fingerprints` are those that are not to be recomputed, by height.
    """

    genesis: bytes
    samples: list[tuple[SampleHeader, list[bytes]]]
    events: list[tuple[FrameHeader, list[Event]]]
    blocks: list[tuple[FrameHeader, list[Block]]]
    fingerprints: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Stored) -> Account:
        all_events, all_blocks = iter(stored.events), iter(stored.blocks)
        account = cls(stored.genesis, [], [], [])
        for number in stored.numbers("samples"):
            header, _ = stored.header("samples", number)
            assert isinstance(header, SampleHeader)
            account.samples.append((header, stored.bodies("samples", number)))
        for number in stored.numbers("events"):
            header, _ = stored.header("events", number)
            assert isinstance(header, FrameHeader)
            count = len(stored.bodies("events", number))
            account.events.append((header, [next(all_events) for _ in range(count)]))
        for number in stored.numbers("blocks"):
            header, _ = stored.header("blocks", number)
            assert isinstance(header, FrameHeader)
            count = len(stored.bodies("blocks", number))
            account.blocks.append((header, [next(all_blocks) for _ in range(count)]))
        return account

    def change_block(self, height: int, change: Callable[[Block], Block]) -> Account:
        for _, blocks in self.blocks:
            blocks[:] = [change(b) if b.height == height else b for b in blocks]
        return self

    def change_event(self, number: int, change: Callable[[Event], Event]) -> Account:
        for _, events in self.events:
            events[:] = [change(e) if e.number == number else e for e in events]
        return self

    def change_header(self, number: int, change: Callable[[SampleHeader], SampleHeader]) -> Account:
        header, rows = self.samples[number - 1]
        self.samples[number - 1] = (change(header), rows)
        return self

    def change_row(self, segment: int, row: int, change: Callable[[bytes], bytes]) -> Account:
        rows = self.samples[segment - 1][1]
        rows[row] = change(rows[row])
        return self

    def build(self, seed: bytes = SEED) -> Stored:
        samples, stored_rows = _link_samples(self.samples)
        rows = iter(stored_rows)
        for _, blocks in self.blocks:
            for block in blocks:
                fingerprint = _fingerprint([next(rows) for _ in range(block.records)])
                self.fingerprints.setdefault(block.height, fingerprint)
        return self._link_frames(SigningKey(seed), samples)

    def _link_frames(self, key: SigningKey, samples: dict[int, bytes]) -> Stored:
        genesis = digest(self.genesis)
        events = _Events(self.events)
        previous, hashes = genesis, dict[int, bytes]()
        segments: dict[int, bytes] = {}
        before = (bytes(32), 0)
        for number, (old, blocks) in enumerate(self.blocks, start=1):
            header = replace(old, previous_digest=before[0], previous_bytes=before[1])
            linker, data = Linker(header.encode()), header.stored()
            for block in blocks:
                sealed = block._replace(
                    genesis=genesis,
                    previous=previous,
                    fingerprint=self.fingerprints[block.height],
                    events_digest=events.digest_at(block.events, hashes),
                )
                previous = hashes[block.height] = sealed.hash
                data += linker.frame(seal(sealed.encode(), key, genesis))
            segments[number], before = data, (linker.digest, len(data))
        streams = {"samples": samples, "events": events.finished(hashes), "blocks": segments}
        return Stored(self.genesis, streams)


class _Events:
    """Links events one after the other; those that say `sealed` name the block as it is now."""

    def __init__(self, segments: list[tuple[FrameHeader, list[Event]]]) -> None:
        self._parts = _parts(segments)
        self._segments: dict[int, bytes] = {}
        self._linker = Linker(b"")
        self._count = 0

    def digest_at(self, count: int, hashes: dict[int, bytes]) -> bytes:
        while self._count < count:
            self._add(next(self._parts), hashes)
        return self._linker.digest

    def finished(self, hashes: dict[int, bytes]) -> dict[int, bytes]:
        for part in self._parts:
            self._add(part, hashes)
        return self._segments

    def _add(self, part: FrameHeader | Event, hashes: dict[int, bytes]) -> None:
        number = len(self._segments)
        if isinstance(part, FrameHeader):
            before = self._segments.get(number, b"")
            header = replace(
                part,
                previous_digest=self._linker.digest if number else bytes(32),
                previous_bytes=len(before),
            )
            self._linker = Linker(header.encode())
            self._segments[number + 1] = header.stored()
            return
        event = part
        if event.kind == "sealed" and event["hash"] != bytes(32):  # a lie that is meant stays
            height = event.number_of("height")
            event = replace(event, details=(("height", height), ("hash", hashes[height])))
        self._segments[number] += self._linker.frame(event.encode())
        self._count += 1


def _parts(segments: list[tuple[FrameHeader, list[Event]]]) -> Iterator[FrameHeader | Event]:
    for header, events in segments:
        yield header
        yield from events


def _link_samples(
    segments: list[tuple[SampleHeader, list[bytes]]],
) -> tuple[dict[int, bytes], list[tuple[SampleHeader, int, bytes]]]:
    """Return the segments, and each row as stored with its header and number."""
    result: dict[int, bytes] = {}
    rows: list[tuple[SampleHeader, int, bytes]] = []
    before = (bytes(32), 0)
    for number, (old, bodies) in enumerate(segments, start=1):
        header = replace(old, previous_digest=before[0], previous_bytes=before[1])
        linker, data = Linker(header.encode()), header.stored()
        for row, body in enumerate(bodies):
            stored = linker.add(body)
            rows.append((header, row, stored))
            data += stored
        result[number], before = data, (linker.digest, len(data))
    return result, rows


def _fingerprint(rows: list[tuple[SampleHeader, int, bytes]]) -> bytes:
    parts: list[tuple[SampleHeader, int, bytes]] = []
    for header, number, stored in rows:
        if parts and parts[-1][0] is header:
            parts[-1] = (header, parts[-1][1], parts[-1][2] + stored)
        else:
            parts.append((header, number, stored))
    return fingerprint_of(parts) if parts else sha256().digest()
