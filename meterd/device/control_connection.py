"""One client of the control socket, and the socket itself: whatever comes, memory is bounded.

asyncvarlink speaks the protocol; it trusts its clients. What a hostile one could do with it is
closed off here: calls without an end, calls ahead of their answers, answers left unread,
descriptors sent along, streams whose reader has gone.
"""

# Annotations are read at run time here: asyncvarlink makes the interface of them.

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from asyncvarlink import (
    AnnotatedResult,
    FileDescriptorArray,
    TypedVarlinkErrorReply,
    VarlinkErrorReply,
    VarlinkInterfaceRegistry,
    VarlinkMethodCall,
    VarlinkMethodReply,
    VarlinkMethodSignature,
    VarlinkServerProtocol,
    VarlinkTransport,
)
from asyncvarlink.conversion import ConversionError
from asyncvarlink.serviceinterface import InvalidParameter
from asyncvarlink.types import JSONObject

from meterd.errors import (
    AbsentError,
    BusyError,
    ConfigError,
    DeniedError,
    MeterdError,
    StorageError,
)

INTERFACE = "org.meterd.Control"
SOCKET_MODE = 0o660  # owner and group
SOCKET_PATH_BYTES_MAX = 107  # sun_path, unix(7), less the zero at its end
BACKLOG_MAX = 16  # connected and not taken yet; past it connect(2) waits
CALL_BYTES_MAX = 16_384  # the longest call is below 200 bytes
CALLS_WAITING_MAX = 64  # sent ahead without reading the answers
REPLIES_WAITING_MAX = 64  # refusals included; past this nobody reads them
IDLE_S_MAX = 30.0  # a client that asks nothing for so long leaves its place to another
STALL_S_MAX = 10.0  # a client that takes nothing for so long is gone or hung


class Failed(TypedVarlinkErrorReply, interface=INTERFACE):
    """The daemon refused: why, what to try, and the exit code for a program (sysexits)."""

    class Parameters:  # noqa: D106 - asyncvarlink's way to write fields
        message: str
        hint: str
        exit_code: int


class _Transport(VarlinkTransport):
    """Takes no descriptors: the kernel closes what is sent along."""

    MAX_RECV_FDS = 0


class Connection(VarlinkServerProtocol):
    """One client. Whatever it sends or leaves unread, it holds a bounded amount of memory.

    Calls are answered one after the other, each once the answer before has been taken. A
    streaming call goes on while the socket is read, so that its end is noticed though nothing is
    sent; it is therefore the last call until it ends.

    Attributes:
        dropped: It was cut off, and not by its client.
        listens: It was given a stream, which goes on.
    """

    def __init__(
        self,
        connected: socket.socket,
        registry: VarlinkInterfaceRegistry,
        loop: asyncio.AbstractEventLoop,
        forget: Callable[["Connection"], None],
    ) -> None:
        """Serve `registry` on a connected socket; call `forget` when it has ended."""
        super().__init__()
        self.dropped = False
        self._socket = connected
        self._registry = registry
        self._loop = loop
        self._forget = forget
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams = self.listens = False
        self._partial_bytes = 0
        self._calls_waiting = 0
        self._unsent = 0
        self._stall: asyncio.TimerHandle | None = None
        self._idle = loop.call_later(IDLE_S_MAX, self.drop)
        self._link = _Transport(loop, connected, connected, self)

    def drop(self) -> None:
        """Cut the client off, now."""
        if self.dropped:
            return
        self.dropped = True
        self._stop()
        with contextlib.suppress(OSError):  # it may have gone already
            self._socket.shutdown(socket.SHUT_RD)  # the transport reads on while there is anything
        self._link.abort()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed and nothing runs for it any more."""
        await self._link.closed_future
        if self._tasks:
            await asyncio.wait(self._tasks)

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Take what came, or cut off a client that sends too much."""
        if self.dropped:
            return
        _, ended, rest = data.rpartition(b"\0")
        self._partial_bytes = len(rest) + (0 if ended else self._partial_bytes)
        self._calls_waiting += data.count(b"\0")
        if self._partial_bytes > CALL_BYTES_MAX or self._calls_waiting > CALLS_WAITING_MAX:
            self.drop()
            return
        try:
            super().message_received(data, fds)
        except (ValueError, RecursionError):  # not UTF-8, a number or a nesting past all measure
            self.drop()

    def request_received(
        self, obj: JSONObject, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        """Begin a call, unless a stream goes on."""
        self._calls_waiting -= 1
        if self._streams:
            self.drop()
        return None if self.dropped else super().request_received(obj, fds)

    def error_received(
        self,
        err: Exception,  # noqa: ARG002 - what exactly was no JSON does not matter
        data: bytes,  # noqa: ARG002
        fds: FileDescriptorArray | None,  # noqa: ARG002
    ) -> None:
        """Cut off a client that does not speak Varlink."""
        self.drop()

    def call_received(
        self,
        call: VarlinkMethodCall,
        fds: FileDescriptorArray | None,  # noqa: ARG002 - none can come
    ) -> asyncio.Future[None] | None:
        """Begin to answer a call; what is returned holds back the next one until it is done."""
        task = self._loop.create_task(self._answer(call), name=f"answer {call.method}")
        self._tasks.add(task)
        self._idle.cancel()
        task.add_done_callback(self._answered)
        if call.more:
            self._streams = True
            task.add_done_callback(self._stream_ended)
            return None
        answered: asyncio.Future[None] = self._loop.create_future()
        task.add_done_callback(lambda task: _settle(answered, task))
        return answered

    def send_message(
        self,
        obj: JSONObject,
        fds: list[int] | None = None,
        autoclose: bool = True,  # noqa: FBT001, FBT002 - as it is declared
    ) -> asyncio.Future[None]:
        """Send, and watch that it is taken."""
        sent = super().send_message(obj, fds, autoclose)
        if not sent.done():
            self._unsent += 1
            sent.add_done_callback(self._message_sent)
            if self._stall is None:
                self._stall = self._loop.call_later(STALL_S_MAX, self.drop)
            if self._unsent > REPLIES_WAITING_MAX:
                self.drop()
        return sent

    def connection_lost(self, exc: Exception | None) -> None:
        """End what runs for the client."""
        super().connection_lost(exc)
        self._stop()
        self._forget(self)

    async def _answer(self, call: VarlinkMethodCall) -> None:
        try:
            method, signature = self._registry.lookup_method(call)
            try:
                parameters = signature.parameter_type.fromjson(call.parameters)
            except ConversionError as error:
                name = str(next(iter(error.location), ""))
                raise InvalidParameter(parameter=name) from error
            answer = method(**parameters)
            if signature.more:
                async with contextlib.aclosing(answer):
                    async for result in answer:
                        if not await self._send(signature, result):
                            return
            else:
                result = await answer if signature.asynchronous else answer
                if not call.oneway:
                    await self._send(signature, result)
        except MeterdError as error:
            raise Failed(message=str(error), hint=error.hint, exit_code=error.exit_code) from error

    async def _send(self, signature: VarlinkMethodSignature, result: AnnotatedResult) -> bool:
        """Send a reply; return whether the client has taken it."""
        parameters = signature.return_type.tojson(result.parameters)
        sent = self.send_reply(VarlinkMethodReply(parameters, continues=result.continues))
        await asyncio.wait((sent,))
        return sent.exception() is None

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks and not self.dropped:
            self._idle.cancel()
            self._idle = self._loop.call_later(IDLE_S_MAX, self.drop)

    def _stream_ended(self, task: asyncio.Task[None]) -> None:
        self._streams = self.listens = False
        error = None if task.cancelled() else task.exception()
        if isinstance(error, VarlinkErrorReply):
            self.send_error(error)
        elif error is not None:
            self.handle_call_exception(error, oneway=False)

    def _message_sent(self, _sent: asyncio.Future[None]) -> None:
        self._unsent -= 1
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._unsent and not self.dropped:
            self._stall = self._loop.call_later(STALL_S_MAX, self.drop)

    def _stop(self) -> None:
        self._idle.cancel()
        for task in self._tasks:
            task.cancel()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def _settle(answered: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    """Pass on how a task ended; the library above cannot bear a cancelled one."""
    error = None if task.cancelled() else task.exception()
    if error is None:
        answered.set_result(None)
    else:
        answered.set_exception(error)


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, in the place of one that a killed daemon left.

    Raises:
        BusyError: Somebody answers there.
        ConfigError: Something that is no socket is there, or the path is too long.
        AbsentError: Its directory does not exist.
        DeniedError: Its directory may not be written.
        StorageError: It cannot be made for another reason.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(f"a socket's path has {SOCKET_PATH_BYTES_MAX} bytes at most: {path}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        _remove_stale(path)
        listener.bind(os.fspath(path))
        path.chmod(SOCKET_MODE)  # nobody can connect before it listens
        listener.listen(BACKLOG_MAX)
    except FileNotFoundError as error:
        listener.close()
        raise AbsentError(
            f"no directory for the control socket: {path.parent}", hint=f"`mkdir {path.parent}`"
        ) from error
    except PermissionError as error:
        listener.close()
        raise DeniedError(
            f"not allowed to make the control socket {path}",
            hint=f"give this user the directory {path.parent}",
        ) from error
    except OSError as error:
        listener.close()
        raise StorageError(f"cannot make the control socket {path}: {error.strerror}") from error
    except MeterdError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove what a killed daemon left, and only that."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is no socket: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # somebody listens, with more calling than it has taken yet
    raise BusyError(f"another meterd answers at {path}", hint="stop it first: `pgrep -a meterd`")
