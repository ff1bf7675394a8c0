"""What people may ask of the vault over the control socket: what goes across is never in clear.

A share (`privacy.share`) goes in base64, and what a passphrase has come to in hex. Anybody who may
connect lists pseudonyms, and gets a share by its passphrase; changes are the operator's
(`control_roles`).
"""

# Annotations are read at run time here: asyncvarlink makes the interface of them.

from typing import Protocol, TypedDict

from asyncvarlink import varlinkmethod

from meterd.errors import AbsentError


class VaultPassphrase(TypedDict):
    """How a person's passphrase becomes a key: Argon2id, 32 bytes, one lane; the salt in hex."""

    salt: str
    passes: int
    memory_kib: int


class VaultRecord(TypedDict):
    """One record, by what it is for. Bytes are those of what it holds."""

    purpose: str
    version: int
    bytes: int


class VaultSubject(TypedDict):
    """Whose records there are: a pseudonym; without passphrase, a part of the device."""

    subject: str
    passphrase: VaultPassphrase | None
    records: list[VaultRecord]


class VaultListReply(TypedDict):
    """What the vault holds.

    Attributes:
        version: How often it has been written.
        bound: Whether what opens it is bound to this board.
        subjects: Ascending.
    """

    version: int
    bound: bool
    subjects: list[VaultSubject]


class VaultShareReply(TypedDict):
    """A person's share, and the version of the vault it was taken from."""

    share: str
    version: int


class VaultChangeReply(TypedDict):
    """What is durable now.

    Attributes:
        version: How often the vault has been written.
        event: Number of the event that tells of it.
        wall_ms: Its time, by the meter's clock.
        purposes: Whose records were replaced, or erased.
    """

    version: int
    event: int
    wall_ms: int
    purposes: list[str]


class VaultSource(Protocol):
    """What keeps the vault. Called on the event loop: it must not block."""

    async def listed(self) -> VaultListReply:
        """Return what the vault holds."""
        ...

    async def taken(self, subject: str, key: str, purposes: list[str], uid: int) -> VaultShareReply:
        """Return a person's share, where `key` is what the passphrase comes to."""
        ...

    async def kept(self, share: str, key: str, version: int, uid: int) -> VaultChangeReply:
        """Keep a person's share."""
        ...

    async def rotated(self, uid: int) -> VaultChangeReply:
        """Draw another root key."""
        ...

    async def erased(self, subject: str, uid: int) -> VaultChangeReply:
        """Destroy a person's key and records."""
        ...


class VaultMethods:
    """The part of the control interface that is the vault's.

    Attributes:
        vault: What keeps the vault; None where the device has no secret.
        uid: Who asks.
    """

    vault: VaultSource | None
    uid: int

    @varlinkmethod
    async def VaultList(self) -> VaultListReply:  # noqa: N802 - Varlink's spelling
        """What the vault holds, by pseudonym and purpose."""
        return await self._kept_by().listed()

    @varlinkmethod
    async def VaultTake(  # noqa: N802 - Varlink's spelling
        self, *, subject: str, key: str, purposes: list[str]
    ) -> VaultShareReply:
        """A person's records of these purposes, still sealed, for who has the passphrase."""
        return await self._kept_by().taken(subject, key, purposes, self.uid)

    @varlinkmethod
    async def VaultKeep(  # noqa: N802 - Varlink's spelling
        self, *, share: str, key: str, version: int
    ) -> VaultChangeReply:
        """Keep a person's records as they are in a share, which was taken from `version`."""
        return await self._kept_by().kept(share, key, version, self.uid)

    @varlinkmethod
    async def VaultRotate(self) -> VaultChangeReply:  # noqa: N802 - Varlink's spelling
        """Draw another root key; no record is written anew."""
        return await self._kept_by().rotated(self.uid)

    @varlinkmethod
    async def VaultErase(self, *, subject: str) -> VaultChangeReply:  # noqa: N802 - Varlink's
        """Destroy a person's key and records, for good."""
        return await self._kept_by().erased(subject, self.uid)

    def _kept_by(self) -> VaultSource:
        if self.vault is None:
            raise AbsentError(
                "this device has no secret of its own, so it has no vault",
                hint="stop the meter, `sudo meterctl vault init`, start it",
            )
        return self.vault
