"""The broker inside the demo, amqtt, as a program: `python -m meterd.demo.inside PORT`.

It knows MQTT v3.1.1 alone, and lets a v5 client wait for ever; so that one is told here, as the
standard has it, and comes again with v3.1.1.

>>> protocol_level(bytes.fromhex("1021 0004 4d515454 05 c2"))
5
>>> protocol_level(b"GET / HTTP")
0
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from typing import Any

HEAD_BYTES = 10  # of any CONNECT, which has 14 at least: the level is among them
LEVEL_5 = 5
UNSUPPORTED_VERSION = b"\x20\x03\x00\x84\x00"  # CONNACK, reason code 132 (MQTT v5, 3.2.2.2)


def protocol_level(head: bytes) -> int:
    """Return the protocol level that the CONNECT with this head asks for; 0 where it is none."""
    _, name, rest = head.partition(b"\x00\x04MQTT")
    return rest[0] if name and rest else 0


async def _serve(port: int) -> None:
    """Let amqtt serve loopback, until the process is ended; it keeps nothing on disk."""
    # Any: an extra that ships no types.
    adapters: Any = importlib.import_module("amqtt.adapters")
    made: Any = importlib.import_module("amqtt.broker")
    broker = made.Broker(
        {
            "listeners": {"default": {"type": "external"}},
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )
    await broker.start()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readexactly(HEAD_BYTES)
            if protocol_level(head) < LEVEL_5:
                again = adapters.StreamReaderAdapter(_Again(head, reader))
                await broker.external_connected(
                    again, adapters.StreamWriterAdapter(writer), "default"
                )
            else:
                writer.write(UNSUPPORTED_VERSION)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever knocked has gone
        finally:
            writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", port)
    await server.serve_forever()


class _Again:
    """A reader whose first bytes were read already, and are read once more."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader) -> None:
        self._head, self._reader = head, reader

    async def readexactly(self, count: int) -> bytes:
        head, self._head = self._head[:count], self._head[count:]
        return head + await self._reader.readexactly(count - len(head))

    async def read(self, count: int = -1) -> bytes:
        head, self._head = self._head, b""
        return head or await self._reader.read(count)

    def feed_eof(self) -> None:
        self._reader.feed_eof()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(_serve(int(sys.argv[1])))
