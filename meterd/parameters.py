"""The parameters of a running meter: what they are, and what changes them (row S3).

A command that holds is in the events, whole, with the record that follows from it, and durable
before anybody is told so. The meter then starts anew, in the same process: what was open is closed
under the old record, the rest is measured under the new one. Recovery is the ordinary path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nacl.bindings import crypto_core_ed25519_is_valid_point

from meterd.bookkeeper import parameters_for
from meterd.config import parameters
from meterd.config_signed import checked, with_parameters
from meterd.errors import BusyError, ConfigError, UsageError
from meterd.ledger.encoding import HASH_BYTES, key_id
from meterd.ledger.parameters import (
    COMMISSIONED,
    FILE,
    MISSING,
    OWNER_KEY,
    CommandRefusedError,
    file_digest,
    split,
    verify_command,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterd.authority.roster import Roster
    from meterd.bookkeeper import Bookkeeper
    from meterd.config import Settings
    from meterd.device.clock import Stamp
    from meterd.ledger.account import Parameters
    from meterd.ledger.event import Details

THE_NETWORKS = ("meter.interval_s",)  # changed by an order alone: blocks of all follow it


class Changed(NamedTuple):
    """What a change came to.

    Attributes:
        by: Whose it was.
        record: The parameter record from now on.
    """

    by: str
    record: Parameters


class Desk:
    """Judges what is to change the parameters of one meter; the account's owner alone asks it."""

    def __init__(
        self, book: Bookkeeper, settings: Settings, file: Settings, sealers: Iterable[bytes] = ()
    ) -> None:
        """Judge for the account of `book`.

        Args:
            book: The account.
            settings: As they are in force.
            file: As the settings' file has them.
            sealers: Public keys that the meter itself has.
        """
        self._book, self._settings = book, settings
        self._file = file_digest(parameters(file))
        self._sealers = frozenset(sealers)

    @property
    def record(self) -> Parameters:
        """The parameter record in force."""
        return self._book.parameters

    @property
    def signed(self) -> dict[str, str]:
        """What that record says of how it came about, and whether one before it is missing.

        Empty where the settings' file decides.
        """
        return dict(split(self.record.settings)[1])

    def owner(self, roster: Roster) -> bytes:
        """Return the public key that commands rest on: the distributor's, else the owner's.

        Empty where neither is known.
        """
        if roster.distributor is not None:
            return roster.chains[roster.distributor].keys[-1][1]
        return bytes.fromhex(self.signed.get(OWNER_KEY, ""))

    def obey(self, message: bytes, roster: Roster, stamp: Stamp) -> Changed:
        """Append what a signed command changes; it counts from the next start on.

        Raises:
            CommandRefusedError: It does not hold, or asks for what cannot be.
            BusyError: A change is being made.
        """
        self._refuse_two()
        at_s = None if stamp.status == "R" else stamp.wall_ms // 1000
        accepted = verify_command(message, self.record, self.owner(roster), at_s)
        for key in THE_NETWORKS:
            if any(change[0] == key for change in accepted.command.changes):
                raise CommandRefusedError(
                    f"{key} is the network's", hint="it is changed by `meterctl order interval`"
                )
        try:
            pairs = checked(self._settings, accepted.settings)
        except ConfigError as error:
            raise CommandRefusedError(
                f"the command asks for what cannot be: {error}", hint=error.hint
            ) from error
        record = self._append(
            dict(pairs), accepted.signed, (("command", message), ("by", accepted.by))
        )
        return Changed(accepted.by, record)

    def commission(self, record: bytes, owner: bytes, roster: Roster) -> Changed:
        """Append that this meter is commissioned: from then on its parameters are signed.

        Args:
            record: SHA-256 of the commissioning's record.
            owner: Public key of who may change parameters; empty where a distributor may.
            roster: The network.

        Raises:
            UsageError: `record` is no hash.
            ConfigError: It is commissioned, or nobody, or somebody else, or the meter by itself
                could change anything.
            BusyError: A change is being made.
        """
        self._refuse_two()
        if len(record) != HASH_BYTES:
            raise UsageError(f"record: expected {HASH_BYTES} bytes, got {len(record)}")
        if COMMISSIONED in self.signed:
            raise ConfigError(
                f"the meter is commissioned, with record {self.signed[COMMISSIONED][:16]}",
                hint="its parameters change by command: `meterctl calibrate`",
            )
        if roster.distributor is not None and owner:
            raise ConfigError(
                f"{roster.distributor[0]} gives orders in {roster.network}, and no other owner",
                hint="leave the owner's key out",
            )
        if roster.distributor is None and len(owner) != HASH_BYTES:
            raise ConfigError(
                "nobody gives orders to this meter: its owner's public key is missing",
                hint="make one with `meterctl calibrate key`, and keep it elsewhere",
            )
        if owner and not crypto_core_ed25519_is_valid_point(owner):
            # Named once and for good: nobody could ever change a parameter again.
            raise ConfigError(
                f"{owner.hex()[:16]}… is no public key: nobody could sign for it",
                hint="`meterctl calibrate key` shows the public key: take that, whole",
            )
        if owner in self._sealers:
            raise ConfigError(
                f"{owner.hex()[:16]}… is this meter's own key, and not its owner's",
                hint="make one with `meterctl calibrate key`, and keep it elsewhere",
            )
        signed = self.signed | {COMMISSIONED: record.hex()}
        signed.pop(MISSING, None)
        signed |= {OWNER_KEY: owner.hex()} if owner else {}
        named: Details = (("owner", key_id(owner)),) if owner else ()
        self._book.event("commissioned", (("record", record), *named))
        pairs = dict(split(self.record.settings)[0])
        return Changed("commissioning", self._append(pairs, signed, ()))

    def _refuse_two(self) -> None:
        if self._book.parameters_next is not None:
            raise BusyError("a change of parameters is being made", hint="try again in a moment")

    def _append(
        self, values: Mapping[str, str], signed: Mapping[str, str], details: Details
    ) -> Parameters:
        now = self.record
        settings = with_parameters(self._settings, values)
        said = dict(signed) | {FILE: self._file}
        record = parameters_for(
            settings.rules,
            (*parameters(settings), *sorted(said.items())),
            genesis=now.genesis,
            meter=now.meter,
            software_id=now.software_id,
            sequence=now.sequence + 1,
        )
        self._book.change(record, details)
        return record
