"""A `Broker` as a test holds it, a broker that answers as a test wants, and a CA."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meterd.device.broker import Broker, BrokerAddress, parse_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


PATIENCE_S = 20.0  # only a failing test waits this long
ACCEPTED_V5 = b"\x20\x03\x00\x00\x00"
ACCEPTED_V311 = b"\x20\x02\x00\x00"
SUBSCRIBE, PUBACK = 0x80, 0x40
V5, V311 = 5, 4  # the level in CONNECT


class Peer:
    """A `Broker` with what it told and delivered, and short waits."""

    def __init__(self, at: int | BrokerAddress, name: str = "ann", **changed: object) -> None:
        self._draws: asyncio.Queue[None] = asyncio.Queue()
        self.delivered: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.told: asyncio.Queue[tuple[str, dict[str, str]]] = asyncio.Queue()
        settings: dict[str, Any] = {
            "address": parse_address(f"mqtt://127.0.0.1:{at}") if isinstance(at, int) else at,
            "client_id": name,
            "subscriptions": ["m/street/#"],
            "will": (f"m/street/{name}/status", b"vanished"),
            "birth": (f"m/street/{name}/status", b"here"),
            "deliver": lambda topic, payload: self.delivered.put_nowait((topic, payload)),
            "tell": lambda event, fields: self.told.put_nowait((event, fields)),
            "draw": self._draw,
            "backoff_s_min": 0.02,
            "backoff_s_max": 0.1,
        }
        self.broker = Broker(**settings | changed)

    def _draw(self) -> float:
        self._draws.put_nowait(None)
        return 0.0

    async def attempts(self, count: int) -> None:
        """Wait until so many attempts have ended."""
        for _ in range(count):
            await self._draws.get()

    def all_told(self) -> list[tuple[str, dict[str, str]]]:
        return [self.told.get_nowait() for _ in range(self.told.qsize())]

    async def until_told(self, event: str) -> dict[str, str]:
        while True:
            told, fields = await self.told.get()
            if told == event:
                return fields

    async def until_delivered(self, topic: str, payload: bytes) -> list[tuple[str, bytes]]:
        """Wait for that message; return all that came up to it."""
        came = []
        while (topic, payload) not in came:
            came.append(await self.delivered.get())
        return came

    def line(self) -> socket.socket:
        link = self.broker._link
        assert link is not None
        line = link._client.socket()
        assert isinstance(line, socket.socket)
        return line


@asynccontextmanager
async def running(*peers: Peer) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(peer.broker.run()) for peer in peers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await scene()

    asyncio.run(bounded())


class FakeBroker:
    """What answers a CONNECT as a test wants, and counts the connections by their level."""

    def __init__(
        self,
        answers: dict[int, bytes],
        *,
        later: bytes = b"",
        tls: ssl.SSLContext | None = None,
        pieces: int = 1 << 20,
    ) -> None:
        self.answers = answers
        self.acknowledged: asyncio.Queue[int] = asyncio.Queue()
        self._pieces = pieces
        self.levels: list[int] = []
        self._tls = tls
        self._later = later

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            _, body = await read_packet(reader)
            self.levels.append(body[6])
            answer = self.answers.get(body[6])
            if answer is not None:
                writer.write(answer)
                await writer.drain()
            while answer != b"":
                kind, body = await read_packet(reader)
                if kind & 0xF0 == SUBSCRIBE:
                    for at in range(0, len(self._later), self._pieces):
                        writer.write(self._later[at : at + self._pieces])
                        await writer.drain()
                        await asyncio.sleep(0)
                elif kind == PUBACK:
                    self.acknowledged.put_nowait(int.from_bytes(body[:2], "big"))
        writer.close()


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return kind, await reader.readexactly(length)


@dataclass(frozen=True)
class Identity:
    certificate: Path
    key: Path


class Authority:
    """A CA with its files in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca = self._issue(name, self._key, ca=True).certificate

    def issue(self, name: str, *, host: str = "127.0.0.1") -> Identity:
        return self._issue(name, ec.generate_private_key(ec.SECP256R1()), host=host)

    def _issue(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool = False, host: str = "::1"
    ) -> Identity:
        now = dt.datetime.now(dt.UTC)
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(alternative, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        identity = Identity(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        identity.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return identity


def tls_address(port: int, ca: Path, identity: Identity | None = None) -> BrokerAddress:
    return BrokerAddress(
        host="127.0.0.1",
        port=port,
        tls=True,
        ca=ca,
        certificate=identity.certificate if identity else None,
        key=identity.key if identity else None,
    )


def server_tls(identity: Identity) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(identity.certificate, identity.key)
    return tls
