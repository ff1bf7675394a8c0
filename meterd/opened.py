"""An account as a start finds it: whose it is, whether all fits, what it goes by, how it ended.

Nothing is written here but what recovery mends. What does not fit ends the start with a message
that says what to put right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meterd.config_signed import in_force, missing
from meterd.device.archive import open_newest, read_orders
from meterd.device.history import last_known, last_started
from meterd.device.keys import load_seals, seals_kept
from meterd.device.recovery import recover
from meterd.device.vault import checked_version
from meterd.device.vault_events import DETAIL, version_named
from meterd.errors import ConfigError, EncodingError
from meterd.since import Started, changes, unclean

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.authority.roster import Roster
    from meterd.config import Settings
    from meterd.device.card import Card
    from meterd.device.recovery import Recovered
    from meterd.ledger.account import Genesis
    from meterd.ledger.event import Details, Event
    from meterd.since import Last


class Opened(NamedTuple):
    """One account, recovered.

    Attributes:
        device: Key that opens the vault; None on a machine without a device secret.
        roster: Of the newest order that the account has.
        keys: Sealing keys that are held, by their public halves.
        kept: Where these are: `vault` or `file`.
        vault_version: How often the vault has been written.
        recovered: What the card had.
        before: The event of the last start; None before the first.
        last: How the run before ended, where it did so without a word; else None.
        settings: What is gone by: the parameters as they were signed, all else as in the file.
        pairs: The parameters among them, for the record.
        differs: What of the file has no effect, or of the parameters is not known here, and what
            to do; empty where all is well.
    """

    device: bytes | None
    roster: Roster
    keys: dict[bytes, SigningKey]
    kept: str
    vault_version: int
    recovered: Recovered
    before: Event | None
    last: Last | None
    settings: Settings
    pairs: tuple[tuple[str, str], ...]
    differs: str

    def started(self, software: bytes, settings_digest: bytes, detail: str) -> Details:
        """Return what the event of this start says.

        Args:
            software: Identifier of the software, 32 bytes.
            settings_digest: SHA-256 of the settings' file.
            detail: What the check of the installed files found.
        """
        vault = ((DETAIL, self.vault_version),) if self.vault_version else ()
        now = self._now(software, settings_digest)
        return (("software", software), ("installed", detail), *vault, *now.details)

    def found(
        self, software: bytes, settings_digest: bytes, *, run: int, boot_id: bytes
    ) -> Iterator[tuple[str, Details]]:
        """Yield kind and details of each event that tells what is not as the run before left it.

        Args:
            software: As in `started`.
            settings_digest: As in `started`.
            run: Number of this run.
            boot_id: Which boot this is.
        """
        before = self.before
        if self.last is not None:
            yield unclean(self.last, same_boot=before is not None and before["boot_id"] == boot_id)
        if before is not None or run == 1:  # else it began anew: its old streams are apart
            yield from changes(before, self._now(software, settings_digest))

    def _now(self, software: bytes, settings_digest: bytes) -> Started:
        return Started(software, settings_digest, tuple(self.keys), self.kept)


def open_account(
    state: Path, settings: Settings, genesis: Genesis, device: bytes | None, card: Card
) -> Opened:
    """Recover the account in `state`, and see that keys, settings and network fit it.

    Args:
        state: The state folder.
        settings: As the file has them.
        genesis: Of the network.
        device: Opens the vault that the sealing keys are in, if they are.
        card: Mends what recovery finds to mend.

    Raises:
        ConfigError: Key, settings and genesis do not fit each other.
        LedgerDamagedError: The account does not verify.
        VaultRefusedError: The vault is another device's, was changed, or is older than the account
            says.
    """
    roster = read_orders(state, genesis)
    try:
        chain = open_newest(roster, settings.meter.name)
    except EncodingError as error:
        names = ", ".join(meter.name for meter in genesis.meters)
        raise ConfigError(
            str(error), hint=f"set meter.name to what the genesis calls it: {names}"
        ) from error
    vault_version = checked_version(state, device, 0 if device is None else version_named(state))
    keys = {bytes(key.verify_key): key for key in load_seals(state, device)}
    if chain.key_at(roster.head.height) not in keys:
        raise ConfigError(
            f"the sealing key in {state} is not the one that the genesis names for "
            f"{settings.meter.name}",
            hint="put back this meter's own key, or enrol it anew; it seals with no other",
        )
    if settings.meter.interval_s != genesis.interval_s:
        raise ConfigError(
            f"meter.interval_s is {settings.meter.interval_s}, the network's is "
            f"{genesis.interval_s}",
            hint="the interval is the network's: set meter.interval_s to it",
        )
    recovered = recover(state, chain, card=card)
    records = recovered.found.parameters.values()
    newest = max(records, key=lambda record: record.sequence, default=None)
    pairs = newest.settings if newest else ()
    held = in_force(settings, pairs)
    return Opened(
        device=device,
        roster=roster,
        keys=keys,
        kept=seals_kept(state, device),
        vault_version=vault_version,
        recovered=recovered,
        before=last_started(state),
        last=last_known(state, recovered),
        settings=held.settings,
        pairs=held.pairs,
        differs="; ".join(filter(None, (missing(pairs), held.differs))),
    )
