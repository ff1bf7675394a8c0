from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import re
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meterd.device.broker import Broker, BrokerAddress, parse_address
from meterd.device.broker_client import PACKET_BYTES_MAX, PAYLOAD_BYTES_MAX
from meterd.device.broker_link import WAITING_BYTES_MAX, WAITING_MAX
from meterd.errors import ConfigError
from tests.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
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


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as made:
        yield made


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


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


@pytest.fixture
def tls_mosquitto(tmp_path: Path, authority: Authority) -> Iterator[Mosquitto]:
    server = authority.issue("broker")
    lines = (
        f"cafile {authority.ca}",
        f"certfile {server.certificate}",
        f"keyfile {server.key}",
        "require_certificate true",
        "tls_version tlsv1.3",
    )
    with Mosquitto(tmp_path, config_lines=lines) as made:
        yield made


def tls_address(port: int, ca: Path, identity: Identity | None = None) -> BrokerAddress:
    return BrokerAddress(
        host="127.0.0.1",
        port=port,
        tls=True,
        ca=ca,
        certificate=identity.certificate if identity else None,
        key=identity.key if identity else None,
    )


# What it is told


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        pytest.param("mqtt://broker.example", "broker.example", 1883, id="plain"),
        pytest.param("mqtt://10.0.0.7:11883", "10.0.0.7", 11883, id="with a port"),
        pytest.param("mqtt://[fe80::1]:1884", "fe80::1", 1884, id="of IPv6"),
    ],
)
def test_an_address_is_read_that_is(url: str, host: str, port: int) -> None:
    address = parse_address(url)
    assert (address.host, address.port, address.tls) == (host, port, False)


def test_an_address_of_tls_has_its_own_port(tmp_path: Path) -> None:
    address = parse_address("mqtts://broker.example", ca=tmp_path / "ca")
    assert (address.port, address.tls, str(address)) == (8883, True, "broker.example:8883")


@pytest.mark.parametrize(
    ("url", "files", "message"),
    [
        pytest.param("http://broker", {}, "not the address", id="is of another protocol"),
        pytest.param("broker:1883", {}, "not the address", id="has no protocol"),
        pytest.param("mqtt://", {}, "not the address", id="has no host"),
        pytest.param("mqtt://a..b", {}, "not the address", id="has an empty label"),
        pytest.param("mqtt://[::1", {}, "not the address", id="lacks a bracket"),
        pytest.param("mqtt://b:0", {}, "not the address", id="has port 0"),
        pytest.param("mqtt://b:65536", {}, "not the address", id="has a port past the last"),
        pytest.param("mqtt://me:pw@b", {}, "not the address", id="holds a password"),
        pytest.param("mqtt://b/topic", {}, "not the address", id="goes on behind the port"),
        pytest.param("mqtts://b", {}, "no ca", id="is of TLS without a CA"),
        pytest.param("mqtt://b", {"ca": "x"}, "uses no cert", id="is plain with a CA"),
        pytest.param("mqtts://b", {"ca": "x", "key": "y"}, "without the other", id="has half"),
    ],
)
def test_an_address_is_refused_that(
    tmp_path: Path, url: str, files: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse_address(url, **{name: tmp_path / file for name, file in files.items()})
    assert refused.value.hint


@pytest.mark.parametrize("broken", ["ca", "certificate", "key"])
def test_a_certificate_that_is_missing_or_damaged_is_a_mistake_of_the_settings(
    tmp_path: Path, authority: Authority, broken: str
) -> None:
    whole = tls_address(8883, authority.ca, authority.issue("ann"))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"-----BEGIN NOTHING-----\n")
    for path in (tmp_path / "absent", damaged):
        changed: dict[str, Any] = {broken: path}
        with pytest.raises(ConfigError, match=re.escape(path.name)) as refused:
            Peer(replace(whole, **changed))
        assert refused.value.hint


def test_an_encrypted_key_is_refused_and_not_asked_about(authority: Authority) -> None:
    identity = authority.issue("ann")
    key = serialization.load_pem_private_key(identity.key.read_bytes(), None)
    identity.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match=r"ann\.key"):
        Peer(tls_address(8883, authority.ca, identity))


# With a real broker


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_message_goes_to_the_neighbour(mosquitto: Mosquitto, protocol: str) -> None:
    async def scene() -> None:
        ann, bob = Peer(mosquitto.port), Peer(mosquitto.port, "bob")
        if protocol == "3.1.1":
            ann.broker._protocols = bob.broker._protocols = ("3.1.1",)
        async with running(ann, bob):
            for peer in (ann, bob):
                told = await peer.until_told("broker_connected")
                assert told == {"host": f"127.0.0.1:{mosquitto.port}", "protocol": protocol}
                assert peer.broker.protocol == protocol
                await peer.until_delivered(*peer.broker._birth)
            payload = bytes(range(256)) * 4
            assert ann.broker.publish("m/street/ann/block", payload)
            await bob.until_delivered("m/street/ann/block", payload)
        assert not ann.broker.connected
        assert ann.broker.dropped == bob.broker.dropped == 0

    play(scene)


def test_many_messages_arrive_all_and_in_order(mosquitto: Mosquitto) -> None:
    async def scene() -> None:
        ann, bob = (
            Peer(mosquitto.port),
            Peer(mosquitto.port, "bob", subscriptions=["m/+/ann/block"]),
        )
        async with running(ann, bob):
            await ann.until_told("broker_connected")
            await bob.until_told("broker_connected")
            await ann.until_delivered("m/street/bob/status", b"here")  # so bob has subscribed
            payloads = [b"%d" % number * 100 for number in range(WAITING_MAX - 1)]
            assert all(ann.broker.publish("m/street/ann/block", payload) for payload in payloads)
            assert [(await bob.delivered.get())[1] for _ in payloads] == payloads

    play(scene)


def test_nagles_algorithm_is_off(mosquitto: Mosquitto) -> None:
    async def scene() -> None:
        ann = Peer(mosquitto.port)
        async with running(ann):
            await ann.until_told("broker_connected")
            assert ann.line().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    play(scene)


def test_a_broker_that_is_absent_at_boot_is_told_once_and_found_when_it_starts(
    tmp_path: Path,
) -> None:
    mosquitto = Mosquitto(tmp_path)

    async def scene() -> None:
        ann = Peer(mosquitto.port)
        async with running(ann):
            await ann.attempts(4)
            assert not ann.broker.publish("m/street/ann/block", b"")
            assert ann.broker.dropped == 1
            mosquitto.start()
            await ann.until_told("broker_connected")
            await ann.until_delivered("m/street/ann/status", b"here")
            assert ann.told.empty()

    async def only_once() -> None:
        ann = Peer(mosquitto.port)
        async with running(ann):
            await ann.attempts(6)
        [(event, fields)] = ann.all_told()
        assert (event, fields["reason"]) == ("broker_lost", "no connection: Connection refused")

    play(only_once)
    try:
        play(scene)
    finally:
        mosquitto.stop()


def test_a_broker_that_is_killed_and_comes_back_is_used_again(mosquitto: Mosquitto) -> None:
    async def scene() -> None:
        ann, bob = Peer(mosquitto.port), Peer(mosquitto.port, "bob")
        async with running(ann, bob):
            for _ in range(2):
                for peer in (ann, bob):
                    await peer.until_told("broker_connected")
                    await peer.until_delivered(*peer.broker._birth)
                assert ann.broker.publish("m/street/ann/block", b"1")
                await bob.until_delivered("m/street/ann/block", b"1")
                mosquitto.kill()
                for peer in (ann, bob):
                    assert (await peer.until_told("broker_lost"))["reason"]
                    assert not peer.broker.connected
                    assert not peer.broker.publish("m/street/ann/block", b"2")
                mosquitto.start()

    play(scene)


def test_a_peer_that_vanishes_has_its_will_published(mosquitto: Mosquitto) -> None:
    async def scene() -> None:
        ann, bob = Peer(mosquitto.port), Peer(mosquitto.port, "bob")
        async with running(ann, bob):
            await ann.until_told("broker_connected")
            await bob.until_delivered("m/street/ann/status", b"here")
            ann.line().shutdown(socket.SHUT_RDWR)  # what a SIGKILL does
            await bob.until_delivered("m/street/ann/status", b"vanished")
            await bob.until_delivered("m/street/ann/status", b"here")

    play(scene)


def test_a_peer_that_is_cancelled_takes_its_leave_with_its_last_words(mosquitto: Mosquitto) -> None:
    async def scene() -> None:
        ann, bob = Peer(mosquitto.port), Peer(mosquitto.port, "bob")
        async with running(bob):
            await bob.until_told("broker_connected")
            async with running(ann):
                await bob.until_delivered("m/street/ann/status", b"here")
                for number in range(50):  # more than may be in flight
                    ann.broker.publish("m/street/ann/block", b"%d" % number)
                ann.broker.publish("m/street/ann/status", b"leaving", retain=True)
            bob.broker.publish("m/street/bob/block", b"afterwards")
            came = await bob.until_delivered("m/street/bob/block", b"afterwards")
            assert ("m/street/ann/status", b"leaving") in came
            assert ("m/street/ann/status", b"vanished") not in came
        assert "Received DISCONNECT from ann" in mosquitto.log
        assert ann.broker.dropped == 0

    play(scene)


def test_a_birth_is_retained_for_who_comes_later(mosquitto: Mosquitto) -> None:
    async def scene() -> None:
        ann, bob = Peer(mosquitto.port), Peer(mosquitto.port, "bob")
        async with running(ann):
            await ann.until_delivered("m/street/ann/status", b"here")
            async with running(bob):
                await bob.until_delivered("m/street/ann/status", b"here")

    play(scene)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_payload_that_is_too_large_is_dropped_and_counted(
    mosquitto: Mosquitto, protocol: str
) -> None:
    async def scene() -> None:
        ann, bob = Peer(mosquitto.port), Peer(mosquitto.port, "bob")
        if protocol == "3.1.1":
            bob.broker._protocols = ("3.1.1",)
        async with running(ann, bob):
            await ann.until_told("broker_connected")
            await bob.until_delivered("m/street/bob/status", b"here")
            most = bytes(PAYLOAD_BYTES_MAX)
            assert ann.broker.publish("m/street/ann/block", most + b"!")
            assert ann.broker.publish("m/street/ann/block", bytes(500_000))
            assert ann.broker.publish("m/street/ann/block", most)
            came = await bob.until_delivered("m/street/ann/block", most)
            assert max(len(payload) for _, payload in came) == PAYLOAD_BYTES_MAX
            # Of v5 we have asked not to be sent the larger one at all.
            assert bob.broker.oversize == (1 if protocol == "5" else 2)
            assert bob.broker.connected

    play(scene)


def test_a_delivery_that_fails_ends_the_run(mosquitto: Mosquitto) -> None:
    def deliver(topic: str, payload: bytes) -> None:
        raise ZeroDivisionError(topic, payload)

    async def scene() -> None:
        ann = Peer(mosquitto.port, deliver=deliver)
        with pytest.raises(ZeroDivisionError):
            await ann.broker.run()
        assert not ann.broker.connected

    play(scene)


# TLS


def test_a_message_goes_over_tls_with_a_certificate(
    tls_mosquitto: Mosquitto, authority: Authority
) -> None:
    address = tls_address(tls_mosquitto.port, authority.ca, authority.issue("ann"))

    async def scene() -> None:
        ann = Peer(address)
        async with running(ann):
            assert (await ann.until_told("broker_connected"))["protocol"] == "5"
            payloads = [bytes([number]) * 50_000 for number in range(100)]  # of many TLS records
            for payload in payloads:
                assert ann.broker.publish("m/street/ann/block", payload)
            for payload in payloads:
                await ann.until_delivered("m/street/ann/block", payload)
            line = ann.line()
            assert isinstance(line, ssl.SSLSocket)
            assert line.version() == "TLSv1.3"
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    play(scene)


@pytest.mark.parametrize("whose", ["nobody's", "a stranger's"])
def test_a_broker_that_wants_another_certificate_is_not_taken_for_an_old_one(
    tls_mosquitto: Mosquitto, authority: Authority, tmp_path: Path, whose: str
) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", "other").issue("ann")
    identity = stranger if whose == "a stranger's" else None
    address = tls_address(tls_mosquitto.port, authority.ca, identity)

    async def scene() -> None:
        ann = Peer(address)
        async with running(ann):
            await ann.attempts(5)
        told = ann.all_told()
        assert told
        for event, fields in told:
            assert event == "broker_refused"
            assert "client certificate" in fields["reason"]
            assert "`certificate`" in fields["hint"]
        assert ann.broker._protocols == ("5", "3.1.1")
        assert ann.broker.protocol == ""

    play(scene)


def test_a_broker_of_another_ca_is_refused(tls_mosquitto: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "other")
    address = tls_address(tls_mosquitto.port, other.ca, other.issue("ann"))

    async def scene() -> None:
        ann = Peer(address)
        async with running(ann):
            refused = await ann.until_told("broker_refused")
        assert "the broker's certificate does not verify" in refused["reason"]

    play(scene)


def server_tls(identity: Identity) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(identity.certificate, identity.key)
    return tls


def test_a_broker_with_a_certificate_for_another_host_is_refused(authority: Authority) -> None:
    tls = server_tls(authority.issue("broker", host="127.0.0.2"))

    async def scene() -> None:
        async with FakeBroker({V5: ACCEPTED_V5}, tls=tls) as port:
            ann = Peer(tls_address(port, authority.ca))
            async with running(ann):
                refused = await ann.until_told("broker_refused")
        assert "IP address mismatch" in refused["reason"]

    play(scene)


def test_a_broker_that_speaks_tls_1_2_at_most_is_refused(authority: Authority) -> None:
    tls = server_tls(authority.issue("broker"))
    tls.maximum_version = ssl.TLSVersion.TLSv1_2

    async def scene() -> None:
        fake = FakeBroker({V5: ACCEPTED_V5}, tls=tls)
        async with fake as port:
            ann = Peer(tls_address(port, authority.ca))
            async with running(ann):
                refused = await ann.until_told("broker_refused")
        assert refused["reason"].startswith("no TLS 1.3 with the broker: ")
        assert fake.levels == []

    play(scene)


def test_messages_in_tls_records_of_their_own_are_gathered_too(authority: Authority) -> None:
    packet = b"\x30\x05\x00\x01a\x00!"
    count = 60  # one by one they would take a minute

    async def scene() -> None:
        fake = FakeBroker(
            {V5: ACCEPTED_V5},
            later=packet * count,
            pieces=len(packet),
            tls=server_tls(authority.issue("broker")),
        )
        async with fake as port:
            ann = Peer(tls_address(port, authority.ca), gather_s=1.0)
            async with running(ann):
                assert [await ann.delivered.get() for _ in range(count)] == [("a", b"!")] * count

    play(scene)


# With a broker that is old, broken or hostile


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(b"\x20\x03\x00\x84\x00", id="by CONNACK 132"),
        pytest.param(b"\x20\x02\x00\x01", id="in v3.1.1, with code 1"),
        pytest.param(b"\xe0\x02\x82\x00", id="by DISCONNECT 130"),
        pytest.param(b"", id="by closing"),
    ],
)
def test_a_broker_that_refuses_v5_is_spoken_to_in_v311_from_then_on(refusal: bytes) -> None:
    async def scene() -> None:
        fake = FakeBroker({V5: refusal, V311: ACCEPTED_V311})
        async with fake as port:
            ann = Peer(port)
            async with running(ann):
                assert await ann.told.get() == (
                    "broker_connected",
                    {"host": f"127.0.0.1:{port}", "protocol": "3.1.1"},
                )
                ann.line().shutdown(socket.SHUT_RDWR)
                await ann.until_told("broker_lost")
                await ann.until_told("broker_connected")
        assert fake.levels == [V5, V311, V311]

    play(scene)


def test_a_broker_that_refuses_us_is_told_once_with_its_reason() -> None:
    async def scene() -> None:
        fake = FakeBroker({V5: b"\x20\x03\x00\x87\x00", V311: ACCEPTED_V311})
        async with fake as port:
            ann = Peer(port)
            async with running(ann):
                await ann.attempts(4)
        [(event, fields)] = ann.all_told()
        assert (event, fields["reason"]) == (
            "broker_refused",
            "the broker refused: Not authorized",
        )
        assert set(fake.levels) == {V5}

    play(scene)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="HTTP"),
        pytest.param(b"\x20\xff\xff\xff\xff\xff", id="an endless length"),
        pytest.param(b"\x20\x03\x00\x00\x7f", id="properties that are not there"),
        pytest.param(bytes(range(0xF0, 0x100)) * 8, id="an unknown packet"),
    ],
)
def test_a_broker_that_sends_garbage_is_told_and_left(answer: bytes) -> None:
    async def scene() -> None:
        async with FakeBroker({V5: answer, V311: answer}) as port:
            ann = Peer(port, connect_s_max=1.0)
            async with running(ann):
                refused = await ann.until_told("broker_refused")
        assert refused["hint"]
        assert ann.broker._protocols == ("5", "3.1.1")

    play(scene)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(b"\x30\xff\xff\xff\x7f", "a packet of more than", id="a packet of 256 MB"),
        pytest.param(b"\x34\x07\x00\x01a\x00\x01\x00!", "QoS 2", id="QoS 2"),
        pytest.param(b"\x00\x00", "not MQTT", id="a packet of no kind"),
        pytest.param(b"\x90\xa0\x9c\x01", "a packet of more than 4096", id="a long SUBACK"),
        pytest.param(b"\x32\x01\x00", "not MQTT", id="half a message"),
        pytest.param(b"\x30\x05\x00\x09a\x00!", "not MQTT", id="a topic longer than its message"),
        pytest.param(b"\x30\x05\x00\x01a\x09!", "not MQTT", id="properties longer than it"),
        pytest.param(b"\x30\x08\x00\x01a\xff\xff\xff\xff\x00", "misspelt", id="endless properties"),
        pytest.param(b"\x30\x05\x00\x01a\xff\xff", "misspelt", id="half a length of properties"),
        pytest.param(b"\xe0\x01\x8b", "Server shutting down", id="its farewell"),
    ],
)
def test_a_broker_is_left_that_sends_once_connected(sent: bytes, reason: str) -> None:
    async def scene() -> None:
        async with FakeBroker({V5: ACCEPTED_V5}, later=sent) as port:
            ann = Peer(port)
            async with running(ann):
                await ann.until_told("broker_connected")
                assert reason in (await ann.until_told("broker_lost"))["reason"]
                await ann.until_told("broker_connected")

    assert PACKET_BYTES_MAX < 268_435_455
    play(scene)


def test_a_subscription_that_is_refused_is_told() -> None:
    async def scene() -> None:
        async with FakeBroker({V5: ACCEPTED_V5}, later=b"\x90\x04\x00\x01\x00\x87") as port:
            ann = Peer(port)
            async with running(ann):
                await ann.until_told("broker_connected")
                refused = await ann.until_told("broker_refused")
                assert refused["reason"] == "the broker refused a subscription: Not authorized"
                assert ann.broker.connected

    play(scene)


def test_a_topic_that_is_not_utf_8_is_dropped_and_counted() -> None:
    bad, good = b"\x30\x05\x00\x01\xff\x00!", b"\x30\x05\x00\x01a\x00!"

    async def scene() -> None:
        async with FakeBroker({V5: ACCEPTED_V5}, later=bad + good) as port:
            ann = Peer(port)
            async with running(ann):
                assert await ann.delivered.get() == ("a", b"!")
                assert ann.broker.oversize == 1

    play(scene)


@pytest.mark.parametrize(
    ("version", "accepted"), [(V5, ACCEPTED_V5), (V311, ACCEPTED_V311)], ids=["5", "3.1.1"]
)
@pytest.mark.parametrize("gather_s", [0.0, 0.01])
def test_messages_are_delivered_in_whatever_pieces_they_come(
    version: int, accepted: bytes, gather_s: float
) -> None:
    noted = b"\x26\x00\x01k\x00\x96" + bytes(150)  # a user property
    properties = b"\x9c\x01" + noted if version == V5 else b""
    rest = bytes([0x80 | (6 + len(properties)) % 128, (6 + len(properties)) // 128])
    sent = b"".join(
        b"\x32" + rest + b"\x00\x01a" + number.to_bytes(2, "big") + properties + payload
        for number, payload in ((1, b"!"), (2, b"?"), (256, b"."))
    )

    async def scene() -> None:
        for pieces in (1, 7, 1000):
            fake = FakeBroker({version: accepted}, later=sent, pieces=pieces)
            async with fake as port:
                ann = Peer(port, gather_s=gather_s)
                if version == V311:
                    ann.broker._protocols = ("3.1.1",)
                async with running(ann):
                    came = [await ann.delivered.get() for _ in range(3)]
                    assert came == [("a", b"!"), ("a", b"?"), ("a", b".")]
                    assert [await fake.acknowledged.get() for _ in range(3)] == [1, 2, 256]

    play(scene)


def test_a_broker_that_accepts_and_says_nothing_is_told_once() -> None:
    async def scene() -> None:
        fake = FakeBroker({})
        async with fake as port:
            ann = Peer(port, connect_s_max=0.5)
            async with running(ann):
                await ann.attempts(3)
        [(event, fields)] = ann.all_told()
        assert (event, fields["reason"]) == (
            "broker_refused",
            "no answer to CONNECT within 0.5 s",
        )
        assert set(fake.levels) == {V5, V311}  # some old ones are silent at what they cannot read

    play(scene)


def test_a_broker_that_acknowledges_nothing_fills_no_memory() -> None:
    async def scene() -> None:
        async with FakeBroker({V5: ACCEPTED_V5}) as port:
            ann = Peer(port)
            async with running(ann):
                await ann.until_told("broker_connected")  # the birth waits, as the first
                taken = [ann.broker.publish("m/street/ann/block", b"1") for _ in range(1200)]
                assert taken == [True] * (WAITING_MAX - 1) + [False] * (1200 - WAITING_MAX + 1)
                assert ann.broker.dropped == 1200 - WAITING_MAX + 1
                ann.line().shutdown(socket.SHUT_RDWR)
                await ann.until_told("broker_lost")
                await ann.until_told("broker_connected")
                assert ann.broker.dropped == 1200 + 1  # what waited is forgotten
                assert ann.broker.publish("m/street/ann/block", b"1")

    play(scene)


def test_a_broker_that_acknowledges_nothing_holds_no_more_than_so_many_bytes() -> None:
    async def scene() -> None:
        async with FakeBroker({V5: ACCEPTED_V5}) as port:
            ann = Peer(port)
            async with running(ann):
                await ann.until_told("broker_connected")
                most = bytes(PAYLOAD_BYTES_MAX)
                taken = sum(ann.broker.publish("m/street/ann/block", most) for _ in range(200))
                assert taken == WAITING_BYTES_MAX // (PAYLOAD_BYTES_MAX + 18)

    play(scene)


def test_a_broker_that_only_sends_is_left() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(ACCEPTED_V5)
        with suppress(OSError):
            while True:  # and reads none of the acknowledgements
                writer.write(b"\x32\x07\x00\x01a\x00\x01\x00!" * 1000)
                await writer.drain()
        writer.close()

    async def scene() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server = await asyncio.start_server(serve, sock=listening, limit=1024)
        ann = Peer(server.sockets[0].getsockname()[1])
        async with running(ann):
            await ann.until_told("broker_connected")
            ann.line().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            lost = await ann.until_told("broker_lost")
        server.close()
        assert lost["reason"] == "the broker does not read what it is sent"

    play(scene)


def test_a_peer_that_is_cancelled_while_connecting_ends_at_once(authority: Authority) -> None:
    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.setblocking(False)
            ann = Peer(tls_address(silent.getsockname()[1], authority.ca))
            async with running(ann):
                line, _ = await asyncio.get_running_loop().sock_accept(silent)
            assert ann.all_told() == []
            line.close()  # which ends the handshake that a thread was left with

    play(scene)
