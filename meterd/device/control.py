"""Lets people on this machine ask the daemon, over a Varlink socket.

The interface describes itself (`varlinkctl introspect SOCKET org.meterd.Control`). Only root, the
daemon's own user and members of the socket's group get in: the kernel goes by the file's mode,
and the daemon asks the kernel again who has connected. Who may ask for what is a closed list, in
`control_roles`. Nothing here waits inside the metering loop: readings are handed over through
`Feed`, which drops the oldest for a listener that is slow, and a client that does not take its
answers is cut off.

>>> feed: Feed[int] = Feed()
>>> with feed.listener() as readings:
...     for reading in range(FEED_ITEMS_MAX + 2):
...         feed.publish(reading)
...     readings.lost, readings.waiting
(2, 64)
"""

# Annotations are read at run time here: asyncvarlink makes the interface of them.

import asyncio
import contextlib
import grp
import json
import os
import pwd
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Generic, NoReturn, Protocol, Self, TypedDict, TypeVar

from asyncvarlink import TypedVarlinkErrorReply, VarlinkErrorReply, VarlinkInterface, varlinkmethod
from asyncvarlink.serviceinterface import PermissionDenied, VarlinkServiceInterface

from meterd.device.control_access import AccessMethods, AccessSource
from meterd.device.control_connection import INTERFACE, Connection, Failed, listen
from meterd.device.control_roles import OPERATOR, RoleRegistry, role_of
from meterd.device.control_vault import VaultMethods, VaultSource
from meterd.errors import UsageError

INTERFACE_VERSION = "1"  # the software's own version is a field of Status
CONNECTIONS_MAX = 16  # people at one device; more is a program gone wrong, and is told so
OPERATOR_PLACES = 4  # of these, which nobody else can take: root gets in to see who has the rest
STREAMS_MAX = 8  # of the places that others have: the rest is for calls, which leave at once
FEED_ITEMS_MAX = 64  # readings for a slow listener: five minutes at one each 5 s
SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; Python has no name for it
GROUPS_MAX = 256  # of one user; Python reads no more, and most have ten
ACCEPT_RETRY_S = 1.0  # when the process is out of descriptors; a readable socket would spin

_Item = TypeVar("_Item")


class Register(TypedDict):
    """An energy register: microjoules, and `measured` or `estimated`."""

    uj: int
    kind: str


class Readings(TypedDict):
    """Lines of the board since the start: used, and dropped by kind."""

    accepted: int
    dropped: dict[str, int]


class Witnesses(TypedDict):
    """What the neighbours vouch for: with no voters, what is sealed counts as certified."""

    voters: int
    certified_height: int
    order: int
    waits: str


class OpenInterval(TypedDict):
    """What is linked and not yet sealed. Power is the last reading's, positive from the grid."""

    start_s: int
    records: int
    power_mw: int


class StatusReply(TypedDict):
    """How the meter is.

    Attributes:
        name: The meter's.
        software: Identifier derived from the program's content.
        state: In a few words: `metering`, `silent`, `waits for the clock` …
        port: Likewise: `open`, `lost` …
        clock: Status of the last stamp, S, I or R.
        height: Of the last block; 0 before the first.
        last_end_s: Its end; null before the first.
        open: The open interval; null where nothing is open or placed.
        registers: By OBIS code, as people write it.
        readings: Since the start.
        gaps: Holes since the start.
        storage_free_bytes: Free for samples, the reserve not counted.
        neighbours: Up to which height they certify, and why sealing waits for them, if it does.
        alarms: That stand now.
    """

    name: str
    software: str
    state: str
    port: str
    clock: str
    height: int
    last_end_s: int | None
    open: OpenInterval | None
    registers: dict[str, Register]
    readings: Readings
    gaps: int
    storage_free_bytes: int
    neighbours: Witnesses
    alarms: list[str]


class RegistersReply(TypedDict):
    """As `meterctl registers --json` prints it."""

    registers: dict[str, Register]
    readings: Readings
    gaps: int
    height: int


class LiveReading(TypedDict):
    """One reading: power positive from the grid, currents of the used clamps, net registers."""

    wall_ms: int
    power_mw: int
    voltage_mv: int
    currents_ma: list[int]
    import_uj: int
    export_uj: int


class EventRecord(TypedDict):
    """One event of the account; numbers and bytes among the details are decimal and hex."""

    number: int
    boot_ms: int
    wall_ms: int
    kind: str
    details: dict[str, str]


class PruneReply(TypedDict):
    """What was pruned."""

    segments: int
    bytes: int


class ReportReply(TypedDict):
    """A report under the meter's seal, in hex."""

    report: str


class Source(AccessSource, Protocol):
    """What the daemon tells. Called on the event loop: it must not block.

    A MeterdError that it raises reaches the client as that error; anything else is logged, and
    the client is told of an internal error.
    """

    def status(self) -> StatusReply:
        """Return how the meter is."""
        ...

    def registers(self) -> RegistersReply:
        """Return the registers."""
        ...

    def live(self) -> AsyncIterator[LiveReading]:
        """Yield each reading from now on. Closed when its client goes."""
        ...

    def events(self, since: int) -> AsyncIterator[EventRecord]:
        """Yield each event numbered `since` or more, then those to come."""
        ...

    async def prune(self, before_s: int) -> PruneReply:
        """Prune samples before an instant, Unix seconds. Cancelled when the daemon stops."""
        ...

    async def report(self, since_s: int, side: bytes) -> ReportReply:
        """Return what the device says of itself, events since an instant; `side` is a digest."""
        ...


class Listener(Generic[_Item]):
    """One end of a feed: iterate over it; leave its `with` to stop listening.

    Attributes:
        lost: Items dropped because they were not taken in time.
    """

    def __init__(self, listeners: "set[Listener[_Item]]") -> None:
        """Join `listeners`."""
        self._listeners = listeners
        self._items: deque[_Item] = deque(maxlen=FEED_ITEMS_MAX)
        self._came = asyncio.Event()
        self.lost = 0
        listeners.add(self)

    @property
    def waiting(self) -> int:
        """Items not taken yet."""
        return len(self._items)

    def put(self, item: _Item) -> None:
        """Take an item in, the oldest making room."""
        self.lost += len(self._items) == FEED_ITEMS_MAX
        self._items.append(item)
        self._came.set()

    def __enter__(self) -> Self:
        """Listen."""
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        self._listeners.discard(self)

    def __aiter__(self) -> Self:
        """Iterate for ever."""
        return self

    async def __anext__(self) -> _Item:
        """Return the oldest item that waits, or the next to come."""
        while not self._items:
            self._came.clear()
            await self._came.wait()
        return self._items.popleft()


class Feed(Generic[_Item]):
    """Hands each item to whoever listens, and waits for nobody."""

    def __init__(self) -> None:
        """Begin without listeners."""
        self._listeners: set[Listener[_Item]] = set()

    def __bool__(self) -> bool:
        """Return whether anybody listens: without, an item need not be made."""
        return bool(self._listeners)

    def publish(self, item: _Item) -> None:
        """Hand `item` to each listener. Call it on the event loop's thread."""
        for listener in self._listeners:
            listener.put(item)

    def listener(self) -> Listener[_Item]:
        """Return a new listener, which misses nothing from now on."""
        return Listener(self._listeners)


class TooManyConnections(TypedVarlinkErrorReply, interface=INTERFACE):
    """Others use all the connections there are; sent instead of the first reply."""

    class Parameters:  # noqa: D106 - asyncvarlink's way to write fields
        connections_max: int


class StreamEnded(TypedVarlinkErrorReply, interface=INTERFACE):
    """The daemon has no more to stream: it is stopping."""

    class Parameters:  # noqa: D106 - asyncvarlink's way to write fields
        pass


class _Control(AccessMethods, VaultMethods, VarlinkInterface, name=INTERFACE):
    """Ask a meter how it is. Energies are in microjoules (1 Wh is 3600000000), exact."""

    errors = (Failed, TooManyConnections, StreamEnded, PermissionDenied)

    def __init__(self, source: Source, uid: int, vault: VaultSource | None = None) -> None:
        self._source: Source = source
        self._role = role_of(uid, own_uid=os.geteuid())
        self.uid, self.vault = uid, vault

    @varlinkmethod
    def Status(self) -> StatusReply:  # noqa: N802 - Varlink's spelling
        """How the meter is: state, registers, open interval, alarms."""
        return self._source.status()

    @varlinkmethod
    def Registers(self) -> RegistersReply:  # noqa: N802 - Varlink's spelling
        """The registers by OBIS code, and what was dropped on the way."""
        return self._source.registers()

    @varlinkmethod(delay_generator=False)
    async def Live(self) -> AsyncIterator[LiveReading]:  # noqa: N802 - Varlink's spelling
        """Each reading from now on. A client that is slow misses the oldest."""
        async for reading in self._source.live():
            yield reading
        raise StreamEnded

    @varlinkmethod(delay_generator=False)
    async def Events(self, *, since: int = 0) -> AsyncIterator[EventRecord]:  # noqa: N802
        """Each event numbered `since` or more, then those to come; a number missing was missed."""
        async for event in self._source.events(since):
            yield event
        raise StreamEnded

    @varlinkmethod
    async def Prune(self, *, before_s: int) -> PruneReply:  # noqa: N802 - Varlink's spelling
        """Prune samples before an instant. For root and the daemon's own user."""
        return await self._source.prune(before_s)

    @varlinkmethod
    async def Report(self, *, since_s: int, side: str = "") -> ReportReply:  # noqa: N802
        """What the device says of itself, sealed; `side` is the digest of what others say, hex."""
        try:
            digest = bytes.fromhex(side)
        except ValueError as error:
            raise UsageError("side: expected hex digits") from error
        if len(digest) not in {0, 32}:
            raise UsageError(f"side: expected a digest of 32 bytes, got {len(digest)}")
        return await self._source.report(max(since_s, 0), digest)


class ControlServer:
    """The socket, and who is connected to it.

    Attributes:
        listening: Set while clients can connect.
        refused: Connections closed at once: a stranger's, or one too many.
        dropped: Connections cut off: too slow, or not speaking Varlink.
    """

    def __init__(
        self,
        path: Path,
        source: Source,
        allowed_uids: Callable[[int], bool] | None = None,
        *,
        vault: VaultSource | None = None,
        beside: Callable[[str], VarlinkInterface] | None = None,
    ) -> None:
        """Prepare to serve `source` at `path`.

        Args:
            path: Of the socket; its directory has to exist.
            source: What is told.
            allowed_uids: Whether a user may connect; by default root, our own, and members of
                the socket's group.
            vault: What keeps the vault; None where there is none.
            beside: Makes a further interface for a role; its methods have their line in
                `control_roles`, too.
        """
        self._path = path
        self._beside = beside
        self._source = source
        self._vault = vault
        self._allowed_uids = allowed_uids
        self._connections: set[Connection] = set()
        self._others: set[Connection] = set()  # of these, the ones that are not the operator's
        self.listening = asyncio.Event()
        self.refused = 0
        self.dropped = 0

    async def serve(self) -> NoReturn:
        """Serve for ever; when cancelled, cut the clients off and remove the socket.

        Raises:
            BusyError: Another daemon answers at the path.
            ConfigError: Something that is no socket is at the path, or the path is too long.
            AbsentError: The path's directory does not exist.
            DeniedError: The path's directory may not be written.
            StorageError: The socket cannot be made for another reason.
        """
        listener = listen(self._path)
        made = self._path.stat()
        allowed = self._allowed_uids or members_of(made.st_gid)
        group = made.st_gid if self._allowed_uids is None else None
        loop = asyncio.get_running_loop()
        try:
            self.listening.set()
            while True:
                try:
                    connected = await _accept(listener, loop)
                except OSError:  # out of descriptors, or it went before it was taken
                    await asyncio.sleep(ACCEPT_RETRY_S)
                else:
                    self._take(connected, allowed, group, loop)
        finally:
            self.listening.clear()
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), made):  # and not a successor's
                    self._path.unlink()
            connections = list(self._connections)
            for connection in connections:
                connection.drop()
            for connection in connections:
                await connection.wait_closed()

    def _take(
        self,
        connected: socket.socket,
        allowed: Callable[[int], bool],
        group: int | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        _, uid, _ = struct.unpack(
            "3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        role = role_of(uid, own_uid=os.geteuid())
        places = CONNECTIONS_MAX - (0 if role == OPERATOR else OPERATOR_PLACES)
        refusal: VarlinkErrorReply | None = None
        if not (allowed(uid) or group in groups_of(connected)):
            refusal = PermissionDenied()
        elif len(self._connections) >= places:
            refusal = TooManyConnections(connections_max=places)
        if refusal is not None:
            self.refused += 1
            with connected, contextlib.suppress(OSError):  # it may have gone; it is closed anyway
                connected.send(json.dumps(refusal.tojson()).encode() + b"\0")
            return
        registry = RoleRegistry(role, lambda: self._let_listen(connection))
        registry.register_interface(
            VarlinkServiceInterface("meterd", "meterd", INTERFACE_VERSION, "", registry)
        )
        registry.register_interface(_Control(self._source, uid, self._vault))
        if self._beside is not None:
            registry.register_interface(self._beside(role))
        connection = Connection(connected, registry, loop, self._forget)
        self._connections.add(connection)
        if role != OPERATOR:
            self._others.add(connection)

    def _let_listen(self, connection: Connection) -> None:
        """Let a stream begin, where it leaves places to others: it lasts as long as it likes.

        Raises:
            VarlinkErrorReply: It does not.
        """
        if sum(other.listens for other in self._others) >= STREAMS_MAX:
            raise TooManyConnections(connections_max=STREAMS_MAX)
        connection.listens = True

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._others.discard(connection)
        self.dropped += connection.dropped


async def _accept(listener: socket.socket, loop: asyncio.AbstractEventLoop) -> socket.socket:
    """Return the next client's socket, not blocking.

    Not `loop.sock_accept`: where that is cancelled as a client comes it keeps the client's socket
    to itself, open, and the client waits for an answer.
    """
    while True:
        try:
            connected, _ = listener.accept()
        except BlockingIOError:
            ready = asyncio.Event()
            loop.add_reader(listener, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(listener)
        else:
            connected.setblocking(False)
            return connected


def groups_of(connected: socket.socket) -> frozenset[int]:
    """Return the further groups of whoever has connected, as the kernel knows them.

    Under the unit's PrivateUsers= other users than root and our own have no number here, so that
    they cannot be looked up; the group that the socket has is known.
    """
    try:
        found = connected.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * GROUPS_MAX)
    except OSError:  # more than that, or a kernel without it: the user database has its say
        return frozenset()
    return frozenset(gid for (gid,) in struct.iter_unpack("I", found))


def members_of(gid: int) -> Callable[[int], bool]:
    """Return a check for root, our own user, and the members of a group by the user database."""

    def allowed(uid: int) -> bool:
        if uid in (0, os.geteuid()):
            return True
        try:
            user = pwd.getpwuid(uid)
            return user.pw_gid == gid or user.pw_name in grp.getgrgid(gid).gr_mem
        except KeyError:
            return False

    return allowed
