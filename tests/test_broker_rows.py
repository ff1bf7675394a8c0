"""Rows B1 to B3 of the broker, where `test_broker_config.py` does not show them: names, floods.

The broker is the real one, with the settings that `meterctl broker-config write` gives it.
"""

from __future__ import annotations

import os
import queue
import re
import socket
import threading
import time
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from meterd.certificates.request import make_request
from meterd.config import check
from meterd.errors import ConfigError, EncodingError
from meterd.ledger.account import decode_genesis
from meterd.ledger.order import decode_order
from tests.accounts import config_text
from tests.authority.examples import ENROL, order
from tests.mosquitto_kit import Member, ctl, join, made, running, street, street_genesis
from tests.network_kit import FOUR, KITCHEN, founded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.mosquitto_kit import Street

__all__ = ["join", "made", "running", "street"]

DEADLINE_S = 20.0
ASKED = 40  # messages whose way is timed
FLOOD_BYTES = 30_000
SLOWER_MAX = 50  # times: measured 2 to 20; a broker that serves the flood first takes for ever
KEEPALIVE_S = 60
MANY = 2000  # of FLOOD_BYTES: 60 MB
RSS_KB_MAX = 30_000
QUIET_S_MIN = 0.0005  # of an idle machine: below, a ratio to it would say nothing


# --- names ------------------------------------------------------------------------------------

BAD_NAMES = ("kitchen+12", "+", "#", "kitchen#", "a/b", "/", "kitchen 12", "Kitchen", "$sys", "")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_b2_at_enrolment_a_name_is_refused_that_a_topic_would_read_otherwise(
    name: str, tmp_path: Path
) -> None:
    """The meter's settings, the founder's table, a genesis, an order, a certificate: each alone."""
    settings, _ = check(config_text().replace("kitchen-12", name), source="meterd.toml")
    assert settings is None
    genesis, mistakes = founded(KITCHEN.replace('"kitchen-12"', f'"{name}"'), *FOUR[1:])
    assert genesis is None
    assert any("name" in mistake for mistake in mistakes)
    known = street_genesis()
    forged = replace(known, nodes=(replace(known.nodes[0], name=name), *known.nodes[1:]))
    with pytest.raises(EncodingError):
        decode_genesis(forged.encode())
    with pytest.raises(EncodingError):
        decode_order(order(ENROL._replace(meter=name)).encode())
    with pytest.raises(ConfigError):
        make_request(tmp_path / "key", tmp_path / "csr", name)
    said = ctl("write", "--network", "elm-street", "--member", name, "-o", tmp_path / "broker")
    assert said.status != 0
    assert not (tmp_path / "broker" / "acl").exists()


# --- floods -----------------------------------------------------------------------------------


class Flood:
    """A member that publishes below its own name, as large and as fast as it is read."""

    def __init__(self, member: Member) -> None:
        self._member, self._stop, self.sent = member, threading.Event(), 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        ends_s = time.monotonic() + DEADLINE_S
        while self.sent < ASKED:
            assert time.monotonic() < ends_s, "the flood does not begin"
            time.sleep(0.001)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        client = self._member._client
        while not self._stop.is_set():
            told = client.publish("m/elm-street/barn-1/block", bytes(FLOOD_BYTES), qos=0)
            told.wait_for_publish(DEADLINE_S)  # it is in the kernel's hands, and no heap grows here
            self.sent += 1


@pytest.fixture
def enter(join: Callable[..., Member]) -> Callable[[str], Member]:
    """Members whose packets leave at once: else Nagle's 40 ms would be all that is measured."""

    def entered(who: str) -> Member:
        member = join(who)
        line = member._client.socket()
        assert line is not None
        with socket.socket(fileno=os.dup(line.fileno())) as same:
            same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return member

    return entered


def ways_s(sender: Member, receiver: Member) -> list[float]:
    """Return how long each of some messages takes; none is lost, and they keep their order."""
    took_s = []
    for number in range(ASKED):
        data = str(number).encode()
        begun_s = time.monotonic()
        assert sender.publish("m/elm-street/kitchen-12/head", data) == "Success"
        assert receiver.hears() == ("m/elm-street/kitchen-12/head", data)
        took_s.append(time.monotonic() - begun_s)
    return took_s


def test_b3_a_flood_of_one_member_leaves_the_others_served(enter: Callable[[str], Member]) -> None:
    kitchen, shed, barn = enter("kitchen-12"), enter("shed-3"), enter("barn-1")
    assert shed.subscribe("m/elm-street/kitchen-12/#") == "Granted QoS 1"
    quiet_s = max(median(ways_s(kitchen, shed)), QUIET_S_MIN)
    with Flood(barn) as flood:
        before = flood.sent
        flooded_s = median(ways_s(kitchen, shed))
        assert flood.sent > before, "the flood stood still meanwhile"
    assert flooded_s <= SLOWER_MAX * quiet_s


def test_b3_who_reads_all_and_slowly_loses_what_is_too_much_and_holds_up_nobody(
    running: Street, enter: Callable[[str], Member]
) -> None:
    """A subscriber of everything that reads nothing: its queue is bounded, the broker goes on."""
    kitchen, shed, barn = enter("kitchen-12"), enter("shed-3"), enter("barn-1")
    assert barn.subscribe("#") == "Granted QoS 1"
    assert shed.subscribe("m/elm-street/kitchen-12/head") == "Granted QoS 1"
    reads_on = threading.Event()

    def read_no_more(*_: object) -> None:
        reads_on.wait(DEADLINE_S)

    barn._client.on_message = read_no_more
    for _ in range(MANY):
        kitchen.publish("m/elm-street/kitchen-12/block", bytes(FLOOD_BYTES))
    assert len(ways_s(kitchen, shed)) == ASKED
    assert rss_kb(running) < RSS_KB_MAX
    barn._client.on_message = None
    reads_on.set()


def rss_kb(street: Street) -> int:
    assert street.broker._process is not None
    with open(f"/proc/{street.broker._process.pid}/status", encoding="ascii") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def test_b3_connections_of_strangers_cost_members_that_are_in_nothing(
    running: Street, enter: Callable[[str], Member]
) -> None:
    kitchen, shed = enter("kitchen-12"), enter("shed-3")
    assert shed.subscribe("m/elm-street/kitchen-12/#") == "Granted QoS 1"
    lines: list[socket.socket] = []
    try:
        settings = (running.broker.folder / "mosquitto.conf").read_text()
        [connections_max] = re.findall(r"^max_connections (\d+)$", settings, re.MULTILINE)
        address = ("127.0.0.1", running.broker.port)
        lines += (
            socket.create_connection(address, DEADLINE_S) for _ in range(2 * int(connections_max))
        )
        assert len(ways_s(kitchen, shed)) == ASKED
        closed = sum(is_closed(line) for line in lines)
        assert closed > 0, "there is no limit of connections"
    finally:
        for line in lines:
            line.close()


def is_closed(line: socket.socket) -> bool:
    line.settimeout(0.05)
    try:
        return line.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_b3_who_asks_to_be_silent_for_hours_is_told_a_minute(running: Street) -> None:
    """MQTT 5: the broker says in its answer how often it wants to hear from a client."""
    answers: queue.Queue[int] = queue.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.tls_set_context(running.context("kitchen-12"))
    client.on_connect = lambda *told: answers.put(told[4].ServerKeepAlive)
    client.connect("127.0.0.1", running.broker.port, keepalive=7200)
    client.loop_start()
    try:
        assert answers.get(timeout=DEADLINE_S) == KEEPALIVE_S
    finally:
        client.disconnect()
        client.loop_stop()
