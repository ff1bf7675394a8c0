from __future__ import annotations

import array
import asyncio
import errno
import grp
import json
import os
import pwd
import socket
import stat
import types
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest
from asyncvarlink import VarlinkClientProtocol, VarlinkMethodCall, connect_unix_varlink

from meterd.device import control_connection
from meterd.device.control import (
    CONNECTIONS_MAX,
    FEED_ITEMS_MAX,
    GROUPS_MAX,
    ControlServer,
    EventRecord,
    Feed,
    LiveReading,
    PruneReply,
    RegistersReply,
    ReportReply,
    StatusReply,
    groups_of,
    members_of,
)
from meterd.device.control_client import ControlClient
from meterd.device.control_connection import CALL_BYTES_MAX, CALLS_WAITING_MAX, Connection
from meterd.errors import (
    AbsentError,
    BusyError,
    ConfigError,
    DeniedError,
    MeterdError,
    StorageError,
    UsageError,
)
from tests.doors import Doors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from asyncvarlink import FileDescriptorArray


PATIENCE_S = 20.0  # only a failing test waits this long

REGISTERS: RegistersReply = {
    "registers": {
        "1-0:1.8.0": {"uj": 2**62 + 1, "kind": "measured"},
        "1-0:2.8.0": {"uj": 0, "kind": "measured"},
    },
    "readings": {"accepted": 3, "dropped": {"banner": 1}},
    "gaps": 0,
    "height": 1,
}
STATUS: StatusReply = {
    "name": "kitchen-12",
    "software": "5f3c",
    "state": "metering",
    "port": "open",
    "clock": "S",
    "height": 1,
    "last_end_s": 1_795_300_200,
    "open": {"start_s": 1_795_300_200, "records": 7, "power_mw": -250_000},
    "registers": REGISTERS["registers"],
    "readings": REGISTERS["readings"],
    "gaps": 0,
    "storage_free_bytes": 64_000_000,
    "neighbours": {"voters": 0, "certified_height": 7, "order": 0, "waits": ""},
    "alarms": ["cadence"],
}
UNPLACED: StatusReply = {**STATUS, "height": 0, "last_end_s": None, "open": None, "alarms": []}


def reading(power_mw: int, clamps: int = 1) -> LiveReading:
    return {
        "wall_ms": 1_795_300_200_000,
        "power_mw": power_mw,
        "voltage_mv": 243_870,
        "currents_ma": [1600] * clamps,
        "import_uj": 5,
        "export_uj": 0,
    }


def event(number: int) -> EventRecord:
    return {
        "number": number,
        "boot_ms": 5,
        "wall_ms": 6,
        "kind": "port_lost",
        "details": {"port": "/dev/ttyAMA0"},
    }


class Meter(Doors):
    """A source with the real interface; what it raises can be set."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: Feed[LiveReading] = Feed()
        self.current = STATUS
        self.error: Exception | None = None
        self.listening = asyncio.Event()
        self.gone = asyncio.Event()
        self.pruned: list[int] = []

    def status(self) -> StatusReply:
        if self.error is not None:
            raise self.error
        return self.current

    def registers(self) -> RegistersReply:
        return REGISTERS

    async def live(self) -> AsyncIterator[LiveReading]:
        with self.readings.listener() as listener:
            self.listening.set()
            try:
                async for each in listener:
                    yield each
            finally:
                self.gone.set()

    async def events(self, since: int) -> AsyncIterator[EventRecord]:
        for number in range(max(since, 1), 4):
            yield event(number)
        if self.error is not None:
            raise self.error

    async def prune(self, before_s: int) -> PruneReply:
        self.pruned.append(before_s)
        return {"segments": 2, "bytes": 80}

    async def report(self, since_s: int, side: bytes) -> ReportReply:
        return {"report": f"{since_s:02x}{side.hex()}"}


class Served:
    """A server that runs, its source, and clients for it."""

    def __init__(self, path: Path, server: ControlServer, meter: Meter) -> None:
        self.path = path
        self.server = server
        self.meter = meter

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        return await asyncio.to_thread(ControlClient(self.path).call, method, **parameters)

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)


@asynccontextmanager
async def served(
    path: Path, allowed_uids: Callable[[int], bool] | None = None
) -> AsyncIterator[Served]:
    meter = Meter()
    server = ControlServer(path, meter, allowed_uids)
    task: asyncio.Task[None] = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait(
                (task, asyncio.create_task(server.listening.wait())),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                await task
            yield Served(path, server, meter)
    finally:
        task.cancel()
        await asyncio.wait((task,))


def scenario(test: Callable[[Served], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    async def run(path: Path) -> None:
        async with served(path) as running:
            await test(running)

    def sync_test(tmp_path: Path) -> None:
        asyncio.run(run(tmp_path / "control"))

    sync_test.__name__ = test.__name__
    return sync_test


@scenario
async def test_status_and_registers_are_the_meters(running: Served) -> None:
    assert await running.call("Status") == STATUS
    assert await running.call("Registers") == REGISTERS
    running.meter.current = UNPLACED
    assert await running.call("Status") == UNPLACED


@scenario
async def test_any_varlink_client_can_ask_and_introspect(running: Served) -> None:
    transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, running.path)
    service = "org.varlink.service"
    info = await protocol.call(VarlinkMethodCall(f"{service}.GetInfo", {}))
    assert info is not None
    assert info[0].parameters["interfaces"] == ["org.meterd.Control", service]
    described = await protocol.call(
        VarlinkMethodCall(f"{service}.GetInterfaceDescription", {"interface": "org.meterd.Control"})
    )
    assert described is not None
    text = str(described[0].parameters["description"])
    for name in ("Status", "Registers", "Live", "Events", "Prune"):
        assert f"method {name}(" in text
    assert "error Failed (message: string, hint: string, exit_code: int)" in text
    answer = await protocol.call(VarlinkMethodCall("org.meterd.Control.Status", {}))
    assert answer is not None
    assert answer[0].parameters == STATUS
    transport.close()
    await transport.closed_future


@scenario
async def test_live_readings_are_streamed_as_they_come(running: Served) -> None:
    stream = ControlClient(running.path).stream("Live")
    first = asyncio.create_task(asyncio.to_thread(next, stream))
    await running.meter.listening.wait()
    for power_mw in (1_000, -2_000):
        running.meter.readings.publish(reading(power_mw))
    assert await first == reading(1_000)
    assert await asyncio.to_thread(next, stream) == reading(-2_000)
    with closing(stream):  # type: ignore[type-var]  # a generator, typed as the iterator it is
        pass
    await running.meter.gone.wait()
    assert not running.meter.readings


@scenario
async def test_a_stream_ends_with_its_client_though_nothing_is_sent(running: Served) -> None:
    _, writer = await running.raw()
    writer.write(call("Live", more=True))
    await running.meter.listening.wait()
    writer.close()
    await running.meter.gone.wait()
    assert (running.server.dropped, len(running.server._connections)) == (0, 0)


@scenario
async def test_events_begin_where_one_asks(running: Served) -> None:
    client = ControlClient(running.path)
    assert await asyncio.to_thread(list, client.stream("Events", since=2)) == [event(2), event(3)]
    assert await asyncio.to_thread(list, client.stream("Events")) == [event(1), event(2), event(3)]


@scenario
async def test_a_stream_that_fails_says_why(running: Served) -> None:
    running.meter.error = StorageError("the card failed")
    events = ControlClient(running.path).stream("Events", since=3)
    assert await asyncio.to_thread(next, events) == event(3)
    with pytest.raises(StorageError, match="the card failed"):
        await asyncio.to_thread(next, events)


@scenario
async def test_our_own_user_may_prune(running: Served) -> None:
    assert await running.call("Prune", before_s=1_795_300_200) == {"segments": 2, "bytes": 80}
    assert running.meter.pruned == [1_795_300_200]


@pytest.mark.parametrize(
    "kind", [AbsentError, BusyError, ConfigError, DeniedError, StorageError, UsageError]
)
def test_what_the_meter_raises_is_raised_at_the_client(
    tmp_path: Path, kind: type[MeterdError]
) -> None:
    async def ask() -> None:
        async with served(tmp_path / "control") as running:
            running.meter.error = kind("it broke", hint="mend it")
            with pytest.raises(kind, match=r"^it broke$") as caught:
                await running.call("Status")
            assert (type(caught.value), caught.value.hint) == (kind, "mend it")

    asyncio.run(ask())


@scenario
async def test_a_fault_of_ours_is_logged_and_hidden(running: Served) -> None:
    running.meter.error = ZeroDivisionError("a secret of the source")
    with pytest.raises(MeterdError, match="InternalServerError") as caught:
        await running.call("Status")
    assert "secret" not in str(caught.value)
    running.meter.error = None
    assert await running.call("Status") == STATUS


@pytest.mark.parametrize(
    ("method", "parameters", "kind", "message"),
    [
        ("Reset", {}, AbsentError, "does not know Reset"),
        ("Events", {}, MeterdError, "ExpectedMore"),
        ("Prune", {}, UsageError, "before_s"),
        ("Prune", {"before_s": "yesterday"}, UsageError, "before_s"),
    ],
)
def test_a_wrong_call_is_told(
    tmp_path: Path,
    method: str,
    parameters: dict[str, object],
    kind: type[MeterdError],
    message: str,
) -> None:
    async def ask() -> None:
        async with served(tmp_path / "control") as running:
            with pytest.raises(kind, match=message):
                await running.call(method, **parameters)
            assert running.meter.pruned == []

    asyncio.run(ask())


def call(method: str, **more: object) -> bytes:
    return json.dumps({"method": f"org.meterd.Control.{method}", **more}).encode() + b"\0"


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(b"x" * (CALL_BYTES_MAX + 4096), id="a call without an end"),
        pytest.param(b"hello\0", id="no JSON"),
        pytest.param(b"[]\0", id="no object"),
        pytest.param(b"\xff\xfe\0", id="no text"),
        pytest.param(b"[" * 4000 + b"\0", id="brackets without bound"),
        pytest.param(b'{"method": ' + b"1" * 8000 + b"}\0", id="a number without bound"),
        pytest.param(call("Status") * (CALLS_WAITING_MAX * 3), id="calls far ahead"),
        pytest.param(call("Live", more=True) + call("Status"), id="a call within a stream"),
    ],
)
def test_a_client_is_cut_off_that_sends(tmp_path: Path, hostile: bytes) -> None:
    async def attack() -> None:
        async with served(tmp_path / "control") as running:
            reader, writer = await running.raw()
            writer.write(hostile)
            try:
                await reader.read()
            except ConnectionResetError:  # what it had sent was left unread
                assert running.server.dropped
            writer.close()
            assert running.server.dropped == 1
            assert not running.server._connections
            assert await running.call("Status") == STATUS

    asyncio.run(attack())


@scenario
async def test_calls_sent_ahead_are_answered_in_order(running: Served) -> None:
    reader, writer = await running.raw()
    writer.write(call("Status") + call("Status", oneway=True) + call("Nonsense"))
    writer.write(call("Registers"))
    answers = [json.loads((await reader.readuntil(b"\0"))[:-1]) for _ in range(3)]
    assert [answers[0]["parameters"], answers[2]["parameters"]] == [STATUS, REGISTERS]
    assert answers[1]["error"] == "org.varlink.service.MethodNotFound"
    writer.write(call("Status"))
    writer.write_eof()  # as `nc -N` does after its last call
    assert json.loads((await reader.read())[:-1])["parameters"] == STATUS
    writer.close()


def test_a_client_that_takes_nothing_is_cut_off_and_delays_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_connection, "STALL_S_MAX", 0.05)

    async def stall() -> None:
        async with served(tmp_path / "control") as running:
            slow = socket.socket(socket.AF_UNIX)
            slow.connect(str(running.path))
            slow.send(call("Live", more=True))
            await running.meter.listening.wait()
            published = 0
            while not running.server.dropped:
                running.meter.readings.publish(reading(published, clamps=200))
                published += 1
                await asyncio.sleep(0)  # the metering loop goes on to its next line
            await running.meter.gone.wait()
            assert not running.meter.readings
            assert await running.call("Status") == STATUS
            slow.close()

    asyncio.run(stall())


def test_a_client_that_asks_nothing_leaves_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_connection, "IDLE_S_MAX", 0.05)

    async def idle() -> None:
        async with served(tmp_path / "control") as running:
            silent, first = await running.raw()
            asked, writer = await running.raw()
            writer.write(call("Status"))
            await asked.readuntil(b"\0")
            live, streaming = await running.raw()
            streaming.write(call("Live", more=True))
            assert await silent.read() == b""
            assert await asked.read() == b""
            assert running.server.dropped == 2
            running.meter.readings.publish(reading(7))
            assert b'"power_mw":7' in (await live.readuntil(b"\0")).replace(b" ", b"")
            for one in (first, writer, streaming):
                one.close()

    asyncio.run(idle())


def test_refusals_that_nobody_reads_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_connection, "STALL_S_MAX", 600.0)

    async def flood() -> None:
        async with served(tmp_path / "control") as running:
            hostile = socket.socket(socket.AF_UNIX)
            hostile.connect(str(running.path))
            hostile.setblocking(False)
            while not running.server.dropped:
                try:
                    hostile.send(call("Nonsense", parameters={"padding": "x" * 2000}))
                except OSError:  # full for now, or cut off
                    await asyncio.sleep(0)
            assert await running.call("Status") == STATUS
            hostile.close()

    asyncio.run(flood())


def test_descriptors_sent_along_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []
    receive = Connection.message_received

    def watch(self: Connection, data: bytes, fds: FileDescriptorArray | None) -> None:
        taken.append(fds)
        receive(self, data, fds)

    monkeypatch.setattr(Connection, "message_received", watch)

    async def send() -> None:
        async with served(tmp_path / "control") as running:
            ours, theirs = os.pipe()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(running.path))
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs]))
                client.sendmsg([call("Status")], [rights])
                os.close(theirs)
                answer = await asyncio.to_thread(client.recv, 65_536)
                assert json.loads(answer[:-1])["parameters"] == STATUS
                assert await asyncio.to_thread(os.read, ours, 1) == b""  # nobody holds the other
            os.close(ours)

    asyncio.run(send())
    assert taken == [None]


def test_a_stranger_is_refused_and_counted(tmp_path: Path) -> None:
    asked: list[int] = []

    def nobody(uid: int) -> bool:
        asked.append(uid)
        return False

    async def knock() -> None:
        async with served(tmp_path / "control", nobody) as running:
            with pytest.raises(DeniedError, match="does not let this user"):
                await running.call("Status")
            assert running.server.refused == 1

    asyncio.run(knock())
    assert asked == [os.geteuid()]


@scenario
async def test_one_connection_too_many_is_told_so(running: Served) -> None:
    clients = [await running.raw() for _ in range(CONNECTIONS_MAX)]
    for reader, writer in clients:
        writer.write(call("Status"))
        await reader.readuntil(b"\0")
    with pytest.raises(BusyError, match="all connections"):
        await running.call("Status")
    assert running.server.refused == 1
    reader, writer = clients.pop()
    writer.close()
    while len(running.server._connections) == CONNECTIONS_MAX:  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(0)
    assert await running.call("Status") == STATUS
    for _, writer in clients:
        writer.close()


@pytest.mark.parametrize(
    ("uid", "allowed"),
    [
        pytest.param(0, True, id="root"),
        pytest.param(os.geteuid(), True, id="the daemon's own"),
        pytest.param(2001, True, id="of the group by default"),
        pytest.param(2002, True, id="of the group besides"),
        pytest.param(2003, False, id="of another group"),
        pytest.param(2004, False, id="nobody knows"),
    ],
)
def test_a_user_may_connect_that_is(
    monkeypatch: pytest.MonkeyPatch, uid: int, allowed: bool
) -> None:
    users = {2001: ("by-default", 500), 2002: ("besides", 7), 2003: ("stranger", 7)}

    def user(uid: int) -> types.SimpleNamespace:
        name, gid = users[uid]
        return types.SimpleNamespace(pw_name=name, pw_gid=gid)

    monkeypatch.setattr(pwd, "getpwuid", user)
    monkeypatch.setattr(
        grp, "getgrgid", lambda gid: types.SimpleNamespace(gr_mem=["besides"] if gid == 500 else [])
    )
    assert members_of(500)(uid) is allowed


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root: CI runs this as root")
@pytest.mark.parametrize("groups", [[], [4242], list(range(5000, 5000 + GROUPS_MAX))])
def test_whoever_connects_is_known_by_further_groups(groups: list[int]) -> None:
    """Under PrivateUsers= nobody can be looked up by the number that the kernel shows."""
    before = os.getgroups()
    os.setgroups(groups)
    try:
        near, far = socket.socketpair(socket.AF_UNIX)
    finally:
        os.setgroups(before)
    with near, far:
        assert groups_of(near) == frozenset(groups)


def test_whoever_is_in_more_groups_than_can_be_read_is_looked_up() -> None:
    class Crowded(socket.socket):
        def getsockopt(self, *_: object) -> bytes:  # type: ignore[override]
            raise OSError(errno.ERANGE, "Numerical result out of range")

    with Crowded(socket.AF_UNIX) as near:
        assert groups_of(near) == frozenset()


def test_the_socket_is_the_owners_and_the_groups_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "control"

    async def serve() -> None:
        async with served(path) as running:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            reader, writer = await running.raw()
            writer.write(call("Live", more=True))
            await running.meter.listening.wait()
        assert await reader.read() == b""  # a stop cuts streams off
        assert running.meter.gone.is_set()
        writer.close()

    asyncio.run(serve())
    assert not path.exists()


def test_what_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))

    async def serve() -> None:
        async with served(path) as running:
            assert await running.call("Status") == STATUS

    asyncio.run(serve())


def test_a_second_daemon_leaves_the_first_one_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "control"

    async def serve() -> None:
        async with served(path) as running:
            with pytest.raises(BusyError, match="another meterd answers"):
                await ControlServer(path, Meter()).serve()
            assert await running.call("Status") == STATUS

    asyncio.run(serve())


def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "control"

    async def serve() -> None:
        async with served(path):
            path.rename(tmp_path / "old")
            path.write_text("a successor's")

    asyncio.run(serve())
    assert path.read_text() == "a successor's"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("occupied", ConfigError, "is no socket"),
        ("nowhere/control", AbsentError, "no directory"),
        ("x" * 108, ConfigError, "107 bytes at most"),
    ],
)
def test_a_socket_cannot_be_made_at(
    tmp_path: Path, name: str, kind: type[MeterdError], message: str
) -> None:
    (tmp_path / "occupied").write_text("a file of somebody's")
    with pytest.raises(kind, match=message):
        asyncio.run(ControlServer(tmp_path / name, Meter()).serve())
    assert (tmp_path / "occupied").read_text() == "a file of somebody's"


def test_a_directory_of_somebody_else_is_denied(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    root = not os.geteuid()
    if root:
        os.seteuid(65_534)
    try:
        with pytest.raises((DeniedError, AbsentError)):
            asyncio.run(ControlServer(tmp_path / "control", Meter()).serve())
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o700)


class Impostor:
    """Listens where meterd should, and answers with given bytes."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def answer_one(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            connection.recv(65_536)
            connection.settimeout(PATIENCE_S)
            try:
                connection.sendall(self._answer)
            except OSError:
                assert len(self._answer) > 1 << 20, "only an endless answer is not taken"


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        pytest.param(b"", AbsentError, "closed the connection", id="nothing"),
        pytest.param(b'{"parameters"', AbsentError, "closed the connection", id="half"),
        pytest.param(b"HTTP/1.1 400\0", MeterdError, "not Varlink", id="another protocol"),
        pytest.param(b"[]\0", MeterdError, "not Varlink", id="no object"),
        pytest.param(b"[" * 100_000 + b"\0", MeterdError, "not Varlink", id="brackets"),
        pytest.param(b"x" * (3 << 20), MeterdError, "more than 1048576", id="without an end"),
        pytest.param(b'{"error": "a.b.C"}\0', MeterdError, "a.b.C", id="an unknown error"),
    ],
)
def test_a_client_bears_an_answer_that_is(
    tmp_path: Path, answer: bytes, kind: type[MeterdError], message: str
) -> None:
    impostor = Impostor(tmp_path / "control", answer)

    async def ask() -> None:
        answering = asyncio.create_task(asyncio.to_thread(impostor.answer_one))
        with pytest.raises(kind, match=message):
            await asyncio.to_thread(ControlClient(tmp_path / "control").call, "Status")
        await answering

    asyncio.run(ask())


def test_a_client_does_not_wait_for_ever(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "control"))
        mute.listen()
        client = ControlClient(tmp_path / "control", timeout_s=0.01)
        with pytest.raises(AbsentError, match=r"within 0.01 s"):
            client.call("Status")


def test_each_listener_gets_each_item_and_a_slow_one_loses_the_oldest() -> None:
    feed: Feed[int] = Feed()

    async def listen() -> None:
        with feed.listener() as slow, feed.listener() as quick:
            for number in range(FEED_ITEMS_MAX + 3):
                feed.publish(number)
                assert await anext(quick) == number
            assert (slow.lost, slow.waiting, quick.lost) == (3, FEED_ITEMS_MAX, 0)
            assert await anext(slow) == 3
            assert feed
        assert not feed
        feed.publish(-1)
        assert slow.waiting == FEED_ITEMS_MAX - 1

    asyncio.run(listen())
