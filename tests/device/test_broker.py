from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from meterd.device.broker_client import PAYLOAD_BYTES_MAX
from meterd.device.broker_link import WAITING_MAX
from tests.device.broker_kit import Peer, play, running
from tests.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as made:
        yield made


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
