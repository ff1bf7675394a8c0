from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest

from meterd.device.broker_client import PACKET_BYTES_MAX, PAYLOAD_BYTES_MAX
from meterd.device.broker_link import WAITING_BYTES_MAX, WAITING_MAX
from tests.device.broker_kit import (
    ACCEPTED_V5,
    ACCEPTED_V311,
    V5,
    V311,
    Authority,
    FakeBroker,
    Peer,
    play,
    read_packet,
    running,
    tls_address,
)


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
