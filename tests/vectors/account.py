"""A small account built by hand, not by the meter: what the vectors begin from.

Nothing in it depends on how meterd goes about metering, so that a change there does not change the
vectors. One evening:

    21:00 a run begins; a row every 10 minutes, the one at 21:30:00 closes block 1
    21:40 the run ends; block 2, partial
    22:10 a second run begins; block 3 is the gap until 22:00
    22:35 this row closes block 4, which ended between two rows
    22:45 a row that no block takes yet
"""

from __future__ import annotations

from typing import NamedTuple

from nacl.signing import SigningKey

from meterd.ledger.account import Genesis, Parameters, standalone
from meterd.ledger.block import Block, Clock, Energy
from meterd.ledger.encoding import digest
from meterd.ledger.event import Details, Event
from meterd.ledger.row import row_bytes, row_struct
from meterd.ledger.segment import FrameHeader, SampleHeader
from meterd.metering.energy import between, integrate
from tests.ledger.forge import Account

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")  # RFC 8032
KEY = SigningKey(SEED)
STRANGER = SigningKey(digest(b"a stranger"))
METER = "kitchen-12"
NINE_S = 1_735_246_800  # 2024-12-26 21:00 UTC
IMPORT, EXPORT = bytes((1, 0, 1, 8, 0, 255)), bytes((1, 0, 2, 8, 0, 255))
GAP, PARTIAL = 1, 2
MINUTE_MS = 60_000

GENESIS: Genesis = standalone(
    METER,
    bytes(KEY.verify_key),
    interval_s=1800,
    zone="Europe/Berlin",
    currency="EUR",
    fuse_ma=60_000,
    nominal_mv=230_000,
    mains_clamps=1,
)
PARAMETERS = Parameters(
    genesis=GENESIS.hash,
    meter=METER,
    sequence=1,
    software_id=digest(b"no software"),
    roles=("mains",),
    registers=((IMPORT, 0), (EXPORT, 0)),
    settings=(("board.polling_ms", "600000"),),
)


def secret(stream: str, number: int) -> bytes:
    return digest(f"secret of {stream} {number}".encode())


class Run(NamedTuple):
    """A run: when it began, and its rows as (minute of the run, mW)."""

    begin_s: int
    rows: tuple[tuple[int, int], ...]


FIRST = Run(NINE_S, ((0, 300_000), (10, 310_000), (20, -400_001), (30, 100_000), (40, 120_000)))
SECOND = Run(NINE_S + 70 * 60, ((0, 80_000), (10, 90_000), (25, 70_000), (35, 60_000)))


class Meter:
    """Integrates rows, and closes blocks where it is told."""

    def __init__(self) -> None:
        self.sums = [0, 0]
        self.blocks: list[Block] = []
        self._first = (0, 0)
        self._measured_ms = 0
        self._records = 0

    def rows(self, run: Run, first: int, last: int) -> list[bytes]:
        """Integrate rows `first` to `last` of a run; return them as they are stored."""
        bodies = []
        for index in range(first, last):
            minute, power_mw = run.rows[index]
            before, before_mw = run.rows[max(index - 1, 0)]
            elapsed_ms = (minute - before) * MINUTE_MS
            self.integrate(before_mw, power_mw, elapsed_ms)
            flags = 0 if index else GAP
            milliamps = abs(power_mw) // 230
            bodies.append(row_struct(1).pack(elapsed_ms, flags, 0, 0, 230_000, power_mw, milliamps))
            self._records += 1
        return bodies

    def integrate(self, early_mw: int, late_mw: int, elapsed_ms: int) -> None:
        integrate(self.sums, (early_mw,), (late_mw,), elapsed_ms)
        self._measured_ms += elapsed_ms

    def close(self, end_s: int, run: int, boot_ms: int, flags: int, events: int) -> None:
        """Close a block; digests, links and fingerprints are put in when all is put together."""
        energy = tuple(
            Energy(code, 0, first // 2, last // 2)
            for code, first, last in zip(
                (IMPORT, EXPORT), self._first, tuple(self.sums), strict=True
            )
        )
        self.blocks.append(
            Block(
                genesis=GENESIS.hash,
                meter=METER,
                incarnation=1,
                height=len(self.blocks) + 1,
                previous=bytes(32),
                order=(0, GENESIS.hash),
                start_s=self.blocks[-1].end_s if self.blocks else NINE_S,
                end_s=end_s,
                clock=Clock("S", 0, boot_id(run), boot_ms, self._measured_ms),
                parameters=digest(PARAMETERS.encode()),
                records=self._records,
                fingerprint=bytes(32),
                events=events,
                events_digest=bytes(32),
                energy=energy,
                flags=flags,
            )
        )
        self._first = (self.sums[0], self.sums[1])
        self._measured_ms = self._records = 0


def boot_id(run: int) -> bytes:
    return digest(f"boot {run}".encode())[:16]


def samples_header(number: int, sums: list[int]) -> SampleHeader:
    return SampleHeader(
        genesis=GENESIS.hash,
        meter=METER,
        incarnation=1,
        number=number,
        previous_digest=bytes(32),
        previous_bytes=0,
        parameters=digest(PARAMETERS.encode()),
        boot_id=boot_id(number),
        run=number,
        base_ms=0,
        sums=tuple(sums),
        before=b"",
        row_bytes=row_bytes(1),
        secret=secret("samples", number),
    )


def frame_header(stream: str, number: int) -> FrameHeader:
    return FrameHeader(
        stream=stream,
        genesis=GENESIS.hash,
        meter=METER,
        incarnation=1,
        number=number,
        previous_digest=bytes(32),
        previous_bytes=0,
        secret=secret(stream, number),
    )


def events_of(run: Run, first: int, told: tuple[tuple[int, str, Details], ...]) -> list[Event]:
    """Return events of a run, numbered from `first`: (minute of the run, kind, details)."""
    return [
        Event(
            number=first + index,
            boot_ms=minute * MINUTE_MS,
            wall_ms=run.begin_s * 1000 + minute * MINUTE_MS,
            kind=kind,
            details=details,
        )
        for index, (minute, kind, details) in enumerate(told)
    ]


def sealed(height: int) -> Details:
    return (("height", height), ("hash", b""))  # the hash is put in when all is put together


def account() -> Account:
    """Return the account's parts."""
    meter = Meter()
    first_sums = list(meter.sums)
    first_rows = meter.rows(FIRST, 0, 4)
    meter.close(NINE_S + 1800, 1, 30 * MINUTE_MS, 0, 3)
    first_rows += meter.rows(FIRST, 4, 5)
    meter.close(NINE_S + 2400, 1, 40 * MINUTE_MS, PARTIAL, 6)
    meter.close(NINE_S + 3600, 2, 0, GAP, 8)
    second_sums = list(meter.sums)
    second_rows = meter.rows(SECOND, 0, 2)
    (early,) = between((90_000,), (70_000,), 10, 15)
    meter.integrate(90_000, early, 10 * MINUTE_MS)
    meter.close(NINE_S + 5400, 2, 20 * MINUTE_MS, GAP, 9)
    second_rows += meter.rows(SECOND, 2, 4)
    begun = (("record", PARAMETERS.encode()),)
    return Account(
        genesis=GENESIS.encode(),
        samples=[
            (samples_header(1, first_sums), first_rows),
            (samples_header(2, second_sums), second_rows),
        ],
        events=[
            (
                frame_header("events", 1),
                events_of(
                    FIRST,
                    1,
                    (
                        (0, "started", (("run", 1), ("boot_id", boot_id(1)))),
                        (0, "parameters", begun),
                        (0, "clock_set", (("status", "S"), ("error_ms", 0))),
                        (30, "sealed", sealed(1)),
                        (40, "counted", (("dropped.banner", 1),)),
                        (40, "stopped", ()),
                    ),
                ),
            ),
            (
                frame_header("events", 2),
                events_of(
                    SECOND,
                    7,
                    (
                        (0, "sealed", sealed(2)),
                        (0, "started", (("run", 2), ("boot_id", boot_id(2)))),
                        (0, "sealed", sealed(3)),
                        (25, "sealed", sealed(4)),
                    ),
                ),
            ),
        ],
        blocks=[
            (frame_header("blocks", 1), [meter.blocks[0]]),
            (frame_header("blocks", 2), meter.blocks[1:]),
        ],
    )
