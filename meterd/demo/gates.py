"""A gate for each node, between its peer process and the broker, that can be shut and opened.

Each is a TCP forwarder on loopback. Shut, it cuts what passes and hangs up on whoever knocks; the
node's meter and the rest of the street know nothing of it.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

CHUNK_BYTES = 65_536
ANSWER_S_MAX = 10.0  # of the loop in the other thread; it only ever moves bytes

T = TypeVar("T")


class Gate:
    """One node's way to the broker.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        shut: Nothing passes.
    """

    def __init__(self, broker: tuple[str, int]) -> None:
        """Prepare a gate to the broker at (host, port)."""
        self.port = 0
        self.shut = False
        self._broker = broker
        self._through = set[asyncio.Task[None]]()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen, at a port that was free."""
        self._server = await asyncio.start_server(self._enter, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def set(self, *, shut: bool) -> None:
        """Shut or open it; what is on its way through a gate that is shut is cut."""
        self.shut = shut
        if shut:
            for task in self._through:
                task.cancel()

    async def close(self) -> None:
        """Take it away."""
        await self.set(shut=True)
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*self._through, return_exceptions=True)

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio's own: it runs this as one
        self._through.add(task)
        others: asyncio.StreamWriter | None = None
        try:
            if self.shut:
                return
            inner, others = await asyncio.open_connection(*self._broker)
            ways = {
                asyncio.ensure_future(_carry(reader, others)),
                asyncio.ensure_future(_carry(inner, writer)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
        except (OSError, asyncio.CancelledError):
            pass  # the broker is away, or we were shut: the peer sees a closed connection
        finally:
            self._through.discard(task)
            for end in (writer, others):
                if end is not None:
                    end.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


class Gates:
    """All gates of a street, in a thread of their own: the demo itself waits and draws."""

    def __init__(self) -> None:
        """Start the thread."""
        self._gates: dict[str, Gate] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gates", daemon=True)
        self._thread.start()

    def add(self, name: str, broker: tuple[str, int]) -> int:
        """Let `name` have a gate to the broker at (host, port); return the gate's port."""
        gate = self._gates[name] = Gate(broker)
        self._run(gate.open())
        return gate.port

    def shut(self, name: str) -> None:
        """Cut `name` off."""
        self._run(self._gates[name].set(shut=True))

    def open(self, name: str) -> None:
        """Let `name` through again."""
        self._run(self._gates[name].set(shut=False))

    def is_shut(self, name: str) -> bool:
        """Return whether `name` is cut off."""
        return self._gates[name].shut

    def close(self) -> None:
        """Take all away, and end the thread."""
        for gate in self._gates.values():
            self._run(gate.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_S_MAX)
        self._loop.close()

    def _run(self, doing: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(ANSWER_S_MAX)
