from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from tests.device.broker_kit import (
    ACCEPTED_V5,
    V5,
    Authority,
    FakeBroker,
    Peer,
    play,
    running,
    server_tls,
    tls_address,
)
from tests.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


def test_b1_a_message_goes_over_tls_with_a_certificate(
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


def test_b1_a_broker_of_another_ca_is_refused(tls_mosquitto: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "other")
    address = tls_address(tls_mosquitto.port, other.ca, other.issue("ann"))

    async def scene() -> None:
        ann = Peer(address)
        async with running(ann):
            refused = await ann.until_told("broker_refused")
        assert "the broker's certificate does not verify" in refused["reason"]

    play(scene)


def test_b1_a_broker_with_a_certificate_for_another_host_is_refused(authority: Authority) -> None:
    tls = server_tls(authority.issue("broker", host="127.0.0.2"))

    async def scene() -> None:
        async with FakeBroker({V5: ACCEPTED_V5}, tls=tls) as port:
            ann = Peer(tls_address(port, authority.ca))
            async with running(ann):
                refused = await ann.until_told("broker_refused")
        assert "IP address mismatch" in refused["reason"]

    play(scene)


def test_b1_a_broker_that_speaks_tls_1_2_at_most_is_refused(authority: Authority) -> None:
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
