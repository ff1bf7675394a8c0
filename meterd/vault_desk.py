"""What the meter process does with the vault when people ask: the one place that changes it.

Each request opens the vault's files, off the event loop, changes them and closes them again, one
request after the other. An event tells of each: of what was read before it is handed out, of what
was changed once that is durable. If power fails between a change and its event the vault is one
version ahead of the account, which the next start says.

Neither a passphrase nor anything personal comes in here: what passes through is sealed.

What anybody of the group may ask for has bounds: so many requests wait, so many events tell of one
person, and who guesses keeps others of the group from that person's part, and never the operator,
who has the files and would not guess here.
"""

from __future__ import annotations

import asyncio
import os
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, TypeVar

from meterd.device import vault_events
from meterd.device.card import CardFullError
from meterd.device.control_roles import role_of
from meterd.device.vault import StoredVault
from meterd.errors import (
    BusyError,
    EncodingError,
    StorageError,
    UsageError,
    VaultRefusedError,
    WrongPassphraseError,
)
from meterd.pins import EVENT_EVERY_MS, Ration
from meterd.privacy.envelope import KEY_BYTES
from meterd.privacy.guesses import Guesses
from meterd.privacy.share import SEALED_OVERHEAD_BYTES, adopt, decode_share, take

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from meterd.device.control_vault import (
        VaultChangeReply,
        VaultListReply,
        VaultPassphrase,
        VaultRecord,
        VaultShareReply,
        VaultSubject,
    )
    from meterd.ledger.event import Details
    from meterd.privacy.envelope import Passphrase, Record, Vault
    from meterd.privacy.share import Share

_T = TypeVar("_T")

REQUESTS_MAX = 16  # under way; of whoever asks and goes, the request is done all the same


def listing(vault: Vault, *, bound: bool) -> VaultListReply:
    """Return what a vault holds, as the control socket and `meterctl vault list` tell it."""
    return {
        "version": vault.version - 1,
        "bound": bound,
        "subjects": [
            _subject(
                subject.name,
                subject.passphrase,
                [record for record in vault.records if record.subject == subject.name],
            )
            for subject in vault.subjects
        ],
    }


def _subject(name: str, passphrase: Passphrase | None, records: list[Record]) -> VaultSubject:
    how: VaultPassphrase | None = None
    if passphrase is not None:
        salt, passes, memory_kib = passphrase
        how = {"salt": salt.hex(), "passes": passes, "memory_kib": memory_kib}
    return {"subject": name, "passphrase": how, "records": [_record(one) for one in records]}


def _record(record: Record) -> VaultRecord:
    size = len(record.sealed) - SEALED_OVERHEAD_BYTES
    return {"purpose": record.purpose, "version": record.version, "bytes": size}


class VaultDesk:
    """Answers for one vault (`control_vault.VaultSource`).

    Attributes:
        version: The highest that is known to be durable.
    """

    def __init__(
        self,
        state: Path,
        device: bytes,
        *,
        bound: bool,
        version: int,
        record: Callable[[str, Details], Awaitable[tuple[int, int]]],
        now_ms: Callable[[], int],
    ) -> None:
        """Prepare.

        Args:
            state: The state folder.
            device: From `envelope.device_key`.
            bound: Whether the board has a part in `device`.
            version: What the vault had when the meter started.
            record: Makes an event durable, and returns its number and its time, ms since 1970.
            now_ms: Time that is never set back.
        """
        self._state, self._device, self._bound = state, device, bound
        self.version = version
        self._record, self._now_ms = record, now_ms
        self._guesses: dict[str, Guesses] = {}  # by role
        self._reads: dict[str, Ration] = {}  # by person, as the next
        self._refusals: dict[str, Ration] = {}
        self._untold: dict[str, int] = {}
        self._one = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()
        self._broken: asyncio.Queue[StorageError] = asyncio.Queue()

    async def watch(self) -> None:
        """Wait until the card failed under a change.

        Raises:
            StorageError: It did; which version counts, the next start shows.
        """
        raise await self._broken.get()

    # --- what is asked ------------------------------------------------------------------------

    async def listed(self) -> VaultListReply:
        """Return what the vault holds.

        Raises:
            VaultRefusedError: The vault is another device's, older, or was changed.
        """
        return await self._whole(self._list())

    async def taken(self, subject: str, key: str, purposes: list[str], uid: int) -> VaultShareReply:
        """Return a person's share with the records of these purposes; an event has told of them.

        Raises:
            AbsentError: There is no such subject, or no such record.
            BusyError: Too many wrong passphrases came: wait.
            UsageError: `key` is no key.
            VaultRefusedError: The passphrase is another, or the vault was changed.
        """
        return await self._whole(self._take(subject, _key(key), tuple(purposes), uid))

    async def kept(self, share: str, key: str, version: int, uid: int) -> VaultChangeReply:
        """Keep a person's share in the place of the one before; an event tells of it.

        Args:
            share: As `Share.encode` spells it, in base64.
            key: What the passphrase before comes to, in hex; empty for somebody new.
            version: Of the vault that the share before was taken from.
            uid: Who asks.

        Raises:
            BusyError: The vault was changed since, or too many wrong passphrases came.
            UsageError: `key` is no key, or the share is misspelt or too large.
            VaultRefusedError: The passphrase before is another, or the vault was changed.
        """
        try:
            decoded = decode_share(b64decode(share, validate=True))
        except (EncodingError, ValueError) as error:
            raise UsageError(f"this is no person's part of a vault: {error}") from error
        return await self._whole(self._keep(decoded, _key(key) if key else b"", version, uid))

    async def rotated(self, uid: int) -> VaultChangeReply:
        """Put the vault under another root key; an event tells of it."""
        return await self._whole(self._rotate(uid))

    async def erased(self, subject: str, uid: int) -> VaultChangeReply:
        """Destroy a person's key and records; an event tells of it.

        Raises:
            AbsentError: There is no such subject.
            VaultRefusedError: It is a part of the device.
        """
        return await self._whole(self._erase(subject, uid))

    # --- how it is done -----------------------------------------------------------------------

    async def _whole(self, work: Coroutine[object, object, _T]) -> _T:
        """Do `work` to its end, the event included, though whoever asked may go.

        Raises:
            BusyError: Too much is under way.
        """
        if len(self._running) >= REQUESTS_MAX:
            work.close()
            raise BusyError("too many ask for the vault at once", hint="try again in a moment")
        task = asyncio.get_running_loop().create_task(self._alone(work), name="vault")
        self._running.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked was told, if there is somebody still

    async def _alone(self, work: Coroutine[object, object, _T]) -> _T:
        async with self._one:
            return await work

    async def _list(self) -> VaultListReply:
        return await self._read(lambda vault: listing(vault, bound=self._bound))

    async def _take(
        self, subject: str, key: bytes, purposes: tuple[str, ...], uid: int
    ) -> VaultShareReply:
        share, version = await self._opened(subject, key, uid, purposes)
        if purposes:
            if not self._reads.setdefault(subject, Ration()).take(self._now_ms()):
                raise BusyError(
                    f"{subject} was read too often to write each down",
                    hint=f"one is taken each {EVENT_EVERY_MS // 1000} s: wait, try again",
                )
            read = " ".join(record.purpose for record in share.records)
            about = (("subject", subject), ("purpose", read))
            await self._tell(vault_events.READ, about, version, uid)
        return {"share": b64encode(share.encode()).decode(), "version": version}

    async def _keep(self, share: Share, key: bytes, version: int, uid: int) -> VaultChangeReply:
        known, now = await self._read(lambda vault: (_knows(vault, share.name), vault.version - 1))
        if now != version:
            raise BusyError("the vault was changed meanwhile", hint="do it again")
        if known and not key:
            raise UsageError(f"{share.name} is known: the passphrase before is needed")
        if known:
            await self._opened(share.name, key, uid)

        def change(vault: Vault) -> tuple[Vault, bool]:
            return adopt(vault, share, os.urandom)

        written, other_key = await self._write(change)
        purposes = [record.purpose for record in share.records]
        kind = vault_events.ROTATED if other_key else vault_events.PUT
        about = (("subject", share.name), ("purpose", " ".join(purposes)))
        return await self._changed(kind, about[: 1 if other_key else 2], written, uid, purposes)

    async def _rotate(self, uid: int) -> VaultChangeReply:
        written, _ = await self._write(lambda vault: (vault.rooted(os.urandom), True))
        return await self._changed(vault_events.ROTATED, (), written, uid, [])

    async def _erase(self, subject: str, uid: int) -> VaultChangeReply:
        def change(vault: Vault) -> tuple[Vault, list[str]]:
            if vault.subject(subject).passphrase is None:
                raise VaultRefusedError(f"{subject} is a part of the device: it is not erased")
            purposes = [one.purpose for one in vault.records if one.subject == subject]
            return vault.without(subject, os.urandom), purposes

        written, purposes = await self._write(change)
        for guesses in self._guesses.values():
            guesses.right(subject)
        for kept in (self._reads, self._refusals, self._untold):
            kept.pop(subject, None)
        about = (("subject", subject),)
        return await self._changed(vault_events.ERASED, about, written, uid, purposes)

    async def _opened(
        self, subject: str, key: bytes, uid: int, purposes: tuple[str, ...] = ()
    ) -> tuple[Share, int]:
        """Return a person's share by its passphrase, and the vault's version."""
        guesses = self._guesses.setdefault(role_of(uid, own_uid=os.geteuid()), Guesses())
        wait_ms = guesses.wait_ms(subject, self._now_ms())
        if wait_ms:
            raise BusyError(
                f"too many wrong passphrases for {subject}",
                hint=f"the next is heard in {-(-wait_ms // 1000)} s",
            )
        try:
            found = await self._read(
                lambda vault: (take(vault, subject, key, purposes), vault.version - 1)
            )
        except WrongPassphraseError as error:
            wait_ms = guesses.wrong(subject, self._now_ms())
            await self._tell_refused(subject, uid)
            hint = f"the next is heard in {wait_ms // 1000} s" if wait_ms else "try again"
            raise WrongPassphraseError(str(error), hint=hint) from error
        guesses.right(subject)
        return found

    async def _tell_refused(self, subject: str, uid: int) -> None:
        """Have an event tell of a wrong passphrase, or the next one how many it left out.

        Who has one passphrase could else bring about as many as they like: the right one in between
        ends the wait.
        """
        untold = self._untold.get(subject, 0)
        if not self._refusals.setdefault(subject, Ration()).take(self._now_ms()):
            self._untold[subject] = untold + 1
            return
        self._untold.pop(subject, None)
        more: Details = (("untold", untold),) if untold else ()
        about = (("subject", subject), *more)
        await self._tell(vault_events.REFUSED, about, self.version, uid)

    async def _changed(
        self, kind: str, about: Details, version: int, uid: int, purposes: list[str]
    ) -> VaultChangeReply:
        number, wall_ms = await self._tell(kind, about, version, uid)
        return {"version": version, "event": number, "wall_ms": wall_ms, "purposes": purposes}

    async def _tell(self, kind: str, about: Details, version: int, uid: int) -> tuple[int, int]:
        """Make an event durable that names a version, which is durable."""
        return await self._record(kind, (*about, (vault_events.DETAIL, version), ("uid", uid)))

    # --- the files ----------------------------------------------------------------------------

    async def _read(self, look: Callable[[Vault], _T]) -> _T:
        """Return what `look` finds in the vault, which is not changed."""

        def read() -> tuple[_T, int]:
            with self._open() as stored:
                return look(stored.vault), stored.vault.version - 1

        found, version = await asyncio.to_thread(read)
        self.version = max(self.version, version)
        return found

    async def _write(self, change: Callable[[Vault], tuple[Vault, _T]]) -> tuple[int, _T]:
        """Keep what `change` makes of the vault; return its version, durable, and what it says."""

        def write() -> tuple[int, _T]:
            with self._open() as stored:
                fresh, said = change(stored.vault)
                try:
                    return stored.keep(fresh), said
                except StorageError as error:
                    # A card that is full refuses before the key file is replaced: nothing is lost.
                    if not isinstance(error, CardFullError):
                        broken.append(error)
                    raise

        broken: list[StorageError] = []
        try:
            self.version, said = await asyncio.to_thread(write)
        except EncodingError as error:
            raise UsageError(str(error), hint=error.hint) from error
        finally:
            for failure in broken:
                self._broken.put_nowait(failure)
        return self.version, said

    def _open(self) -> StoredVault:
        return StoredVault(self._state, self._device, version_min=self.version)


def _knows(vault: Vault, name: str) -> bool:
    return any(subject.name == name for subject in vault.subjects)


def _key(spelt: str) -> bytes:
    try:
        key = bytes.fromhex(spelt)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(f"what a passphrase comes to is {2 * KEY_BYTES} hex digits")
    return key
