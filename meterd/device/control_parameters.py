"""The parameters of a meter, over the control socket: an interface beside `org.meterd.Control`.

What changes them is signed, and judged by its content: whoever may connect may hand it in.
"""

# Annotations are read at run time here: asyncvarlink makes the interface of them.

from collections.abc import AsyncIterator
from typing import Protocol, TypedDict

from asyncvarlink import VarlinkInterface, varlinkmethod
from asyncvarlink.serviceinterface import PermissionDenied

from meterd.device.control import StreamEnded, TooManyConnections

INTERFACE = "org.meterd.Parameters"


class ParametersReply(TypedDict):
    """What a meter measures under.

    Attributes:
        network: The network's name.
        genesis: Hash of its genesis, hex.
        meter: The meter's name.
        sequence: Number of the record in force; a command's is one more.
        record: Its hash, hex.
        settings: Every parameter, by its dotted key.
        signed: How they came about; empty where the settings' file decides.
        owner: Public key that commands rest on, hex; empty where there is none yet.
        distributor: Whose that key is; empty where it is the meter's own owner's.
        clamps: Names of the used clamps, in the order of what `Clamps` tells.
        port: Path of the board's port.
        last_dropped: The last line of the board that was no reading; empty if there was none.
        case_switch: Whether one is wired.
    """

    network: str
    genesis: str
    meter: str
    sequence: int
    record: str
    settings: dict[str, str]
    signed: dict[str, str]
    owner: str
    distributor: str
    clamps: list[str]
    port: str
    last_dropped: str
    case_switch: bool


class ChangedReply(TypedDict):
    """What a change came to: whose it was, and the record in force from now on."""

    by: str
    sequence: int
    record: str


class ClampsReading(TypedDict):
    """One reading: power of each used clamp, positive from the grid; time since boot."""

    at_ms: int
    powers_mw: list[int]
    currents_ma: list[int]
    voltage_mv: int
    line: str


class ParameterSource(Protocol):
    """What the daemon does and tells; errors reach the client as `control.Source` says."""

    def parameters(self) -> ParametersReply:
        """Return what the meter measures under."""
        ...

    def clamps(self) -> AsyncIterator[ClampsReading]:
        """Yield each reading from now on. Closed when its client goes."""
        ...

    async def change(self, command: str) -> ChangedReply:
        """Do what a signed command, in hex, says."""
        ...

    async def commission(self, record: str, owner: str, role: str) -> ChangedReply:
        """Let the meter be commissioned by a role of `control_roles`; the others in hex."""
        ...


class ParametersInterface(VarlinkInterface, name=INTERFACE):
    """What the meter measures under, and the signed commands that change it."""

    errors = (StreamEnded, TooManyConnections, PermissionDenied)

    def __init__(self, source: ParameterSource, role: str) -> None:
        """Answer from `source` to whoever has `role`."""
        self._source, self._role = source, role

    @varlinkmethod
    def Show(self) -> ParametersReply:  # noqa: N802 - Varlink's spelling
        """What the meter measures under, and who may change it."""
        return self._source.parameters()

    @varlinkmethod(delay_generator=False)
    async def Clamps(self) -> AsyncIterator[ClampsReading]:  # noqa: N802 - Varlink's spelling
        """Each reading from now on, clamp by clamp. A client that is slow misses the oldest."""
        async for reading in self._source.clamps():
            yield reading
        raise StreamEnded

    @varlinkmethod
    async def Change(self, *, command: str) -> ChangedReply:  # noqa: N802 - Varlink's spelling
        """Do what a signed command, in hex, says. The meter then starts anew."""
        return await self._source.change(command)

    @varlinkmethod
    async def Commission(self, *, record: str, owner: str) -> ChangedReply:  # noqa: N802
        """Let the meter be commissioned, once; an owner is named by root and the daemon's user."""
        return await self._source.commission(record, owner, self._role)
