"""A meter on a bench: a bookkeeper fed reading by reading, with a clock and card of one's choice.

`Rig` does what the daemon's measuring task does, with nothing waited for: it recovers, starts,
takes readings, feeds again where it is asked to, and performs what has to be durable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from meterd.bookkeeper import Bookkeeper
from meterd.config_signed import in_force
from meterd.device.archive import Known, Verdict, read_part, verify
from meterd.device.clock import Stamp
from meterd.device.recovery import recover
from meterd.init import create_account, read_genesis
from meterd.ledger.chain import open_chain
from meterd.metering.reading import Reading
from tests.accounts import SEED, Account, QuietCard, config_text, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from meterd.device.card import Card, Operation
    from meterd.ledger.block import Block
    from meterd.ledger.event import Event

BUILD_MS = 1_700_000_000_000  # 2023-11-14: no true clock says less
MIDNIGHT_S = 1_767_225_600  # 2026-01-01 00:00 UTC
INTERVAL_S = 60  # short, so that few rows fill many intervals
POLLING_MS = 5000
WATTS = (310, 305, 1875, 1880, 300, -450, -455, 298, 7, 2200, 2190, 295)


class RecordingCard(QuietCard):
    """Does what it is told, and keeps a list of it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Operation] = []

    def perform(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            super().perform([operation])
            self.done.append(operation)


class Rig:
    """One account, and the meter that keeps it.

    Attributes:
        book: The bookkeeper of the present start.
        card: Where it writes.
        boot_ms: Boot clock of the last reading.
        wall_ms: Wall clock then.
        status: What the kernel says of the wall clock.
    """

    def __init__(
        self,
        state: Path,
        text: str = config_text(interval_s=INTERVAL_S, polling_ms=POLLING_MS),
        *,
        card: Card | None = None,
        software_id: bytes = bytes(32),
    ) -> None:
        self.state, self.card = state, card or QuietCard()
        self.settings = settings_of(text)
        self.software_id = software_id
        self.key = SigningKey(SEED)
        if not (state / "genesis.cbor").exists():
            create_account(state, self.settings, SEED)
        self.genesis = read_genesis(state)
        self.starts = 0
        self.boot_ms = self.wall_ms = 0
        self.status = "S"
        self._lines = 0

    def start(
        self, wall_s: float, *, boot_ms: int = 1000, status: str = "S", text: str = ""
    ) -> Bookkeeper:
        """Recover and begin a run, in a boot of its own; `text` changes the settings."""
        if text:
            self.settings = settings_of(text)
        self.starts += 1
        self.boot_ms, self.wall_ms, self.status = boot_ms, int(wall_s * 1000), status
        chain = open_chain(self.genesis, self.settings.meter.name)
        recovered = recover(self.state, chain, card=self.card)
        records = recovered.found.parameters.values()
        newest = max(records, key=lambda record: record.sequence, default=None)
        held = in_force(self.settings, newest.settings if newest else ())
        self._rules = held.settings.rules
        self.book = Bookkeeper(
            self.state,
            rules=self._rules,
            settings=held.pairs,
            software_id=self.software_id,
            build_ms=BUILD_MS,
            interval_s=self.genesis.interval_s,
            keys={bytes(self.key.verify_key): self.key},
            recovered=recovered,
            boot_id=self.starts.to_bytes(16, "big"),
            draw_secret=lambda stream, number: f"{stream}{number}".encode().ljust(32, b"."),
            read=lambda number, begin, end: read_part(self.state, number, begin, end),
        )
        self.book.start(self.boot_ms, self.wall_ms)
        return self.book

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.boot_ms, self.wall_ms, self.status, 0)

    def wait(self, elapsed_ms: int, *, step_ms: int = 0) -> None:
        """Let time pass; the wall clock is set by `step_ms` besides."""
        self.boot_ms += elapsed_ms
        self.wall_ms += elapsed_ms + step_ms

    def row(self, watts: float, elapsed_ms: int = POLLING_MS, *, estimated: bool = False) -> None:
        """Take one reading, `elapsed_ms` after what was before."""
        self.wait(elapsed_ms)
        self._lines += 1
        roles = [clamp.role for clamp in self._rules.clamps if clamp.role != "unused"]
        powers = tuple(
            round(watts * 1000) if role == "mains" else round(abs(watts) * 100) + 7 * self._lines
            for role in roles
        )
        reading = Reading(
            at_ms=self.boot_ms,
            powers_mw=powers,
            currents_ma=tuple(abs(power) // 230 for power in powers),
            voltage_mv=230_000,
            apparent_mva=abs(powers[0]) + 3,
            estimated=estimated,
            line=b"%d" % self._lines,
        )
        self.book.take(reading, self.stamp)
        if self.book.again:
            self.commit()
            self.book.feed_again()

    def rows(self, count: int, elapsed_ms: int = POLLING_MS) -> None:
        """Take readings of a household whose load moves."""
        for number in range(count):
            self.row(WATTS[(self._lines + number // 5) % len(WATTS)], elapsed_ms)

    def commit(self) -> None:
        """Make all so far durable."""
        self.card.perform(self.book.commit())

    def stop(self) -> None:
        """End a run as SIGTERM does."""
        self.book.event("stopped")
        self.commit()
        self.card.close()

    # --- what the account says --------------------------------------------------------------

    @property
    def account(self) -> Account:
        return Account(state=self.state, registers={}, kinds={}, accepted=0, gaps=0, dropped={})

    @property
    def blocks(self) -> list[Block]:
        return self.account.blocks

    @property
    def events(self) -> list[Event]:
        return self.account.events

    def told(self, kind: str) -> list[Event]:
        """Return the account's events of a kind."""
        return [event for event in self.events if event.kind == kind]

    def verify(self) -> Verdict:
        return verify(self.state, Known(key=bytes(self.key.verify_key)))

    def assert_good(self) -> Verdict:
        """The account verifies, all of it; return the verdict."""
        verdict = self.verify()
        assert verdict.verdict == "good", verdict
        return verdict

    def imported_uj(self) -> int:
        return self.book.registers_uj()["1-0:1.8.0"][0]
