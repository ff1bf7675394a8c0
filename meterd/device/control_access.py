"""What the control socket takes from whoever watches a door: logins, refusals, the case, the relay.

Each of these answers once its event is on the card. What a caller says of a certificate is its own
word, trusted as far as the socket's group is; which role it has, the kernel says.
"""

# Annotations are read at run time here: asyncvarlink makes the interface of them.

from typing import NamedTuple, Protocol, TypedDict

from asyncvarlink import varlinkmethod


class Told(TypedDict):
    """What became of a notice: whether it is an event of its own, or counted with the next."""

    recorded: bool


class Acknowledged(TypedDict):
    """Whether the alarm stood that is acknowledged now."""

    stood: bool


class RelayReply(TypedDict):
    """The disconnect relay.

    Attributes:
        wished: What it was last set to: `closed` or `open`.
        state: Where it stands: `keeping` and `moving` on the way, then `closed`, `open`, `failed`.
    """

    wished: str
    state: str


class Technician(NamedTuple):
    """Who asks.

    Attributes:
        role: By the kernel.
        certificate: Id of the certificate that opened the session, a pseudonym; empty without one.
        serial: Its serial number.
    """

    role: str
    certificate: str
    serial: int


class Refused(NamedTuple):
    """Who was not let in.

    Attributes:
        key: Tells this connection from every other, so that it counts once.
        account: `technician`, `root` or `other`.
        reason: A word of `[a-z_]`.
        source: Address.
        at_s: When, Unix seconds.
    """

    key: str
    account: str
    reason: str
    source: str
    at_s: int


class AccessSource(Protocol):
    """Who takes it. A MeterdError that it raises reaches the client as that error."""

    async def login(self, who: Technician, key: str, source: str) -> Told:
        """Record that a session has begun."""
        ...

    async def left(self, who: Technician, source: str) -> Told:
        """Record that it has ended."""
        ...

    async def command(self, who: Technician, command: str) -> Told:
        """Record a command that changes something, before it does."""
        ...

    async def login_refused(self, refused: Refused) -> Told:
        """Record, or count, that somebody was not let in; a key that is known does nothing."""
        ...

    async def case_acknowledge(self, who: Technician) -> Acknowledged:
        """Let the alarm that the case was opened fall."""
        ...

    def relay(self) -> RelayReply:
        """Return where the relay stands."""
        ...

    async def relay_set(self, who: Technician, *, closed: bool) -> RelayReply:
        """Wish the relay closed or open."""
        ...


class AccessMethods:
    """The methods themselves, for the interface to inherit."""

    _source: AccessSource
    _role: str

    @varlinkmethod
    async def Login(self, *, certificate: str, serial: int, key: str, source: str) -> Told:  # noqa: N802 - Varlink's spelling
        """A technician's session has begun: certificate, fingerprint of its key, address."""
        return await self._source.login(self._who(certificate, serial), key, source)

    @varlinkmethod
    async def Left(self, *, certificate: str, serial: int, source: str) -> Told:  # noqa: N802
        """A technician's session has ended."""
        return await self._source.left(self._who(certificate, serial), source)

    @varlinkmethod
    async def Command(self, *, certificate: str, serial: int, command: str) -> Told:  # noqa: N802
        """A technician is about to do something that changes the meter."""
        return await self._source.command(self._who(certificate, serial), command)

    @varlinkmethod
    async def LoginRefused(  # noqa: N802
        self, *, key: str, account: str, reason: str, source: str, at_s: int
    ) -> Told:
        """Somebody was not let in: `technician`, `root`, `other`; a word why; an address; when."""
        return await self._source.login_refused(Refused(key, account, reason, source, at_s))

    @varlinkmethod
    async def CaseAcknowledge(self, *, certificate: str = "", serial: int = 0) -> Acknowledged:  # noqa: N802
        """Let the alarm that the case was opened fall."""
        return await self._source.case_acknowledge(self._who(certificate, serial))

    @varlinkmethod
    def Relay(self) -> RelayReply:  # noqa: N802
        """Where the disconnect relay stands."""
        return self._source.relay()

    @varlinkmethod
    async def RelaySet(  # noqa: N802
        self, *, closed: bool, certificate: str = "", serial: int = 0
    ) -> RelayReply:
        """Set the disconnect relay. For root and the daemon's own user."""
        return await self._source.relay_set(self._who(certificate, serial), closed=closed)

    def _who(self, certificate: str, serial: int) -> Technician:
        return Technician(self._role, certificate, serial)
