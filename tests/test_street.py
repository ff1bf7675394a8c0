"""A real street: separate processes, a real broker with TLS and rights, and trouble."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from meterd.device.control_client import ControlClient
from meterd.device.control_parameters import INTERFACE
from meterd.device.mailbox import INBOX, Mailbox
from meterd.device.recovery import CHECKPOINT_FILE
from meterd.ledger.parameters import MISSING
from meterd.ledger.segment import STREAMS
from tests.parameters_kit import OWNER, RECORD
from tests.street_kit import BRIDGE, PORT, Street, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.street_kit import House

pytestmark = pytest.mark.timeout(600)
RSS_KB_MAX = 60_000


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    with Street(tmp_path_factory.mktemp("street")) as one:
        one.goes_on(1)
        yield one


@pytest.fixture(autouse=True)
def certified_before_and_after(street: Street) -> Iterator[None]:
    """Whatever happens, the certified blocks of every node are the sealed ones of every device."""
    street.is_certified()
    yield
    street.goes_on(1)
    street.is_certified()
    street.is_good()


def test_a_killed_meter_process_goes_on(street: Street) -> None:
    house = street.houses[0]
    house.end("meter", signal.SIGKILL)
    house.start_meter()


def test_a_killed_peer_process_goes_on(street: Street) -> None:
    house = street.houses[1]
    house.end("peer", signal.SIGKILL)
    street.goes_on(1)  # a network that is away never stops a meter (T4)
    house.start_peer()


def test_b4_a_killed_broker_loses_nothing(street: Street) -> None:
    street.end_broker(signal.SIGKILL)
    street.goes_on(1)
    street.start_broker()


def test_b4_a_broker_that_forgets_all_loses_nothing(street: Street) -> None:
    street.end_broker(signal.SIGKILL)
    shutil.rmtree(street.folder / "data")
    street.start_broker()


@pytest.mark.parametrize(
    "times", [5, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_b4_a_broker_that_is_killed_over_and_over_loses_nothing(street: Street, times: int) -> None:
    """In the midst of whatever it does; each second time its database is gone too."""
    chance = random.Random(4)
    for number in range(times):
        street.end_broker(signal.SIGKILL)
        if number % 2:
            shutil.rmtree(street.folder / "data")
        street.start_broker()
        time.sleep(chance.uniform(0, 1.5))  # to be killed before, while and after they are back
        if number % 10 == 9:  # now and then all has to come home
            street.is_certified()


def test_a_house_that_is_cut_off_is_certified_when_it_comes_back(street: Street) -> None:
    house = street.houses[2]
    street.cut(house)
    before = len(house.sealed())
    until(lambda: len(house.sealed()) > before + 1, "a house without a network stops metering")
    street.mend(house)


def test_a_third_of_all_packets_may_be_lost(street: Street) -> None:
    for house in street.houses:
        street.lose(house, 30)
    try:
        street.goes_on(2)
    finally:
        for house in street.houses:
            street.lose_nothing(house)


def test_a_deleted_store_is_filled_by_the_neighbours(street: Street) -> None:
    house = street.houses[3]
    for _ in range(2):  # neighbours remember how often it has started; its new store does not
        house.end("peer")
        house.start_peer()
    house.end("peer")
    for path in house.state.glob("peer.db*"):
        path.unlink()
    house.start_peer()


def put_back(house: House, card: Path) -> None:
    """Let the account be the one that `card` holds a copy of; the meter has stopped."""
    for stream in STREAMS:
        shutil.rmtree(house.state / stream)
        shutil.copytree(card / stream, house.state / stream)
    (house.state / CHECKPOINT_FILE).unlink(missing_ok=True)


def test_a_card_put_back_to_before_its_commissioning_is_healed_and_says_what_it_lacks(
    street: Street, tmp_path: Path
) -> None:
    """Its neighbours hold the blocks since, and these name a record that it does not have."""
    house = street.houses[2]
    desk = ControlClient(house.state / "control", interface=INTERFACE)
    named = {"record": RECORD.hex(), "owner": bytes(OWNER.verify_key).hex()}
    house.end("meter")
    for stream in STREAMS:
        shutil.copytree(house.state / stream, tmp_path / stream)
    house.start_meter()
    street.goes_on(2)
    lost = desk.call("Commission", **named)
    street.goes_on(2)
    street.is_certified()
    house.end("meter")
    put_back(house, tmp_path)
    house.start_meter()
    until(lambda: "recovered" in house.log("meter"), f"it is not healed: {house.log('meter')}")
    until(lambda: "alarm=parameters" in house.log("meter"), "it does not say what it lacks")
    street.goes_on(2)
    told = desk.call("Show")
    assert told["signed"] == {MISSING: lost["record"]}
    assert told["sequence"] > lost["sequence"]
    desk.call("Commission", **named)
    street.goes_on(2)
    assert MISSING not in desk.call("Show")["signed"]


def test_a_hostile_client_with_a_certificate_is_borne(street: Street) -> None:
    """One member's certificate in bad hands: it floods, forges, replays, and sends nonsense."""
    house = street.houses[3]
    house.end("peer")
    try:
        subprocess.run(
            (
                *("ip", "netns", "exec", house.namespace, sys.executable, "-m"),
                *("tests.hostile_client", BRIDGE, str(PORT), house.name),
                *(str(street.root), str(house.folder / "tls.pem"), str(house.folder / "tls.key")),
            ),
            check=True,
            timeout=120,
            capture_output=True,
        )
        for other in street.houses[:3]:
            process = other.processes["peer"]
            assert process.poll() is None, other.log("peer")[-2000:]
            assert rss_kb(process.pid) < RSS_KB_MAX
    finally:
        house.start_peer()


def test_a_hostile_peer_process_shifts_nothing(street: Street) -> None:
    """The process that has the network is taken over: samples and registers stay what they are."""
    house = street.houses[0]
    house.end("peer")
    inbox = Mailbox(house.state / "line" / INBOX)
    before = len(house.sealed())
    hostile = os.fork()
    if hostile == 0:
        fill(inbox)
    try:
        until(lambda: len(house.sealed()) > before, "a hostile peer process stops the sealing")
    finally:
        os.kill(hostile, signal.SIGKILL)
        os.waitpid(hostile, 0)
    meter = house.processes["meter"]
    assert meter.poll() is None, house.log("meter")[-2000:]
    assert rss_kb(meter.pid) < RSS_KB_MAX
    house.start_peer()


def fill(inbox: Mailbox) -> None:
    """Write nonsense into a meter's inbox for ever, and ring."""
    number = 0
    while True:
        number += 1
        kind = ("certificate", "order", "answer", "block", "evidence", "nonsense")[number % 6]
        inbox.put(f"{kind}-{number:012d}", os.urandom(number % 5000))
        (inbox.folder / f"odd name {number % 50}\x07").touch()
        inbox.ring()


def rss_kb(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
