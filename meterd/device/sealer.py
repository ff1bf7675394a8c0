"""Appends events and sealed blocks to the log, and keeps the order in which they become durable.

A block is made of a cut and of what the log holds, under the terms in force. It is checked by the
chain's own rules before it is sealed: what this meter seals, its peers will accept. Nothing counts
before the operations that `commit` gives have been performed.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from meterd.device.recovery import Checkpoint, checkpoint_operation, tail_details
from meterd.errors import BlockRejectedError, LedgerDamagedError
from meterd.ledger.block import UJ_MAX, Block, Clock, Energy
from meterd.ledger.chain import verify_block
from meterd.ledger.encoding import seal
from meterd.ledger.event import Details, Event
from meterd.ledger.findings import Start
from meterd.ledger.pruning import seal_pruned
from meterd.metering.energy import obis_code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nacl.signing import SigningKey

    from meterd.device.card import Operation
    from meterd.device.closing import Terms
    from meterd.device.log import Log
    from meterd.device.rows import Rows
    from meterd.ledger.account import Parameters
    from meterd.ledger.chain import Chain
    from meterd.ledger.pruning import Pruned
    from meterd.ledger.stored import End, Tail
    from meterd.metering.energy import Register
    from meterd.metering.interval import Cut, Wall


def _nobody(_event: Event) -> None:
    return None


class Sealer:
    """Appends to one account. Not for two tasks at once.

    Attributes:
        log: The account's streams.
        chain: The chain with all blocks sealed so far.
        told: Called with each event.
        order: Height and hash of the order that blocks name.
        boot_ms: Boot clock that events are stamped with.
        wall_ms: Wall clock that events are stamped with.
    """

    def __init__(
        self,
        log: Log,
        chain: Chain,
        keys: Mapping[bytes, SigningKey],
        rows: Rows,
        tails: list[Tail],
    ) -> None:
        """Go on behind `chain`.

        Args:
            log: Where to append.
            chain: The chain as recovery found it.
            keys: Sealing keys by their public keys: which one is good depends on the order.
            rows: Reads back rows that a block takes and that are not in memory.
            tails: What recovery found torn. The first event to be appended is preceded by events
                that tell of these: the segment that follows a tail must never be without them.
        """
        self.log, self.chain, self._keys, self._rows = log, chain, keys, rows
        self.told: Callable[[Event], None] = _nobody
        self.boot_ms = self.wall_ms = 0
        self._tails = tails
        self._counted: Counter[str] = Counter()
        self._sealed: list[tuple[int, bytes]] = []
        self._messages: list[tuple[int, bytes]] = []
        self.order = chain.head.order
        self._operations: list[Operation] = []

    # --- events -----------------------------------------------------------------------------

    def event(self, kind: str, details: Details = ()) -> None:
        """Append an event."""
        tails, self._tails = self._tails, []
        for tail in tails:
            self.event("torn_tail", tail_details(tail))
        event = Event(
            number=self.log.events + 1,
            boot_ms=self.boot_ms,
            wall_ms=max(self.wall_ms, 0),
            kind=kind,
            details=details,
        )
        self.log.add_event(event)
        self.told(event)

    @property
    def key(self) -> SigningKey:
        """The key that is good under the order which blocks name.

        Raises:
            LedgerDamagedError: This device does not hold it.
        """
        public = self.chain.key_at(self.order[0])
        if public not in self._keys:
            raise LedgerDamagedError(
                f"order {self.order[0]} names a sealing key that is not on this device",
                hint="make one here with `meterctl key --rotate`, and have that one ordered",
            )
        return self._keys[public]

    def prune(self, pruned: Pruned) -> None:
        """Append the event, sealed, that says that a samples segment goes."""
        self.event("pruned", seal_pruned(pruned, self.chain, self.key))

    def count(self, kind: str, more: int) -> None:
        """Count what is worth an event only with the next block."""
        self._counted[kind] += more

    def note_counts(self) -> None:
        """Append the counts since the last such event, if there are any."""
        if self._counted:
            details: Details = tuple(sorted(self._counted.items()))
            self._counted.clear()
            self.event("counted", details)

    # --- blocks -----------------------------------------------------------------------------

    def seal(self, cut: Cut, terms: Terms, owed: Mapping[Register, int]) -> None:
        """Append the block of one cut; `hand_out` comes once its last row is in the log.

        Args:
            cut: What to seal; its rows are in the log.
            terms: What it was measured under.
            owed: Registers that these do not feed and that have grown besides, in uJ.

        Raises:
            LedgerDamagedError: The chain's rules forbid it, or a register is full.
        """
        self.note_counts()
        chain, log = self.chain, self.log
        block = Block(
            genesis=chain.genesis,
            meter=chain.meter,
            incarnation=chain.incarnation,
            height=chain.head.height + 1,
            previous=chain.head.block_hash,
            order=self.order,
            start_s=cut.start_s,
            end_s=cut.end_s,
            clock=Clock(cut.status, cut.error_ms, terms.boot_id, cut.cut_ms, cut.measured_ms),
            parameters=terms.hash,
            records=cut.records,
            fingerprint=log.take_rows(cut.records, self._rows.stored),
            events=log.events,
            events_digest=log.events_digest,
            energy=self._energy(cut, terms, owed),
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
        message = seal(payload, self.key, chain.genesis)
        log.add_block(message)
        self._messages.append((head.height, message))
        self.chain = chain._replace(head=head)
        self._sealed.append((head.height, head.block_hash))

    def _energy(self, cut: Cut, terms: Terms, owed: Mapping[Register, int]) -> tuple[Energy, ...]:
        """Return the registers of a block: those of the cut, and all that there ever were."""
        before = {energy.obis: energy for energy in self.chain.head.energy}
        entries = {
            obis: energy._replace(first_uj=energy.last_uj) for obis, energy in before.items()
        }
        for (obis, kind), last_uj in owed.items():
            first_uj = before[obis].last_uj if obis in before else 0
            entries[obis] = Energy(obis, kind, first_uj, last_uj)
        named = zip(terms.registers, cut.first_uj, cut.last_uj, strict=True)
        for (obis, kind), first_uj, last_uj in named:
            entries[obis] = Energy(obis, kind, first_uj, last_uj)
        if any(energy.last_uj > UJ_MAX for energy in entries.values()):
            full = next(obis for obis, energy in entries.items() if energy.last_uj > UJ_MAX)
            raise LedgerDamagedError(
                f"register {obis_code(full)} is full: it has 63 bits, 2.5 TWh",
                hint="the meter must be replaced",
            )
        return tuple(entries[obis] for obis in sorted(entries))

    def hand_out(self) -> None:
        """Let all so far become durable, and then the events that say what was sealed."""
        if not self._sealed:
            return
        self._operations += self.log.take_operations()
        for height, block_hash in self._sealed:
            self.event("sealed", (("height", height), ("hash", block_hash)))
        self._sealed.clear()

    def turn(
        self,
        samples: End,
        *,
        cut_ms: int,
        run: int,
        sums: dict[bytes, int],
        wall: tuple[int, Wall] | None,
        parameters: tuple[Parameters, ...],
    ) -> None:
        """Let events and blocks begin new segments, and a checkpoint say what came before.

        The samples' segment has been finished, and every row in it is in a block.

        Args:
            samples: Where the samples end.
            cut_ms: Boot clock at which the last block's energy ends.
            run: Number of the daemon's start.
            sums: Running sums at the last block, half uJ, by OBIS code.
            wall: From which boot clock on the run lies where, if that is known.
            parameters: The record in force, and the one that the next start begins under.
        """
        self._operations += self.log.take_operations()
        checkpoint = Checkpoint(
            start=Start(
                chain=self.chain,
                ends={"samples": samples, **self.log.finish_frames()},
                events=self.log.events,
                parameters=tuple(record.encode() for record in parameters),
                cut_ms=cut_ms,
            ),
            run=run,
            sums=sums,
            wall=wall,
        )
        self._operations.append(checkpoint_operation(self.log.state, checkpoint, self.key))

    def take_sealed(self) -> list[tuple[int, bytes]]:
        """Return (height, sealed) of the blocks sealed since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def commit(self) -> list[Operation]:
        """Return what makes all so far durable."""
        operations, self._operations = self._operations, []
        operations += self.log.take_operations()
        return operations

    @property
    def pending(self) -> bool:
        """Whether a block waits to be made durable."""
        return bool(self._operations)
