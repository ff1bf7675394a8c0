"""Alarms of whole meters: pins and boards of the test's, a real broker with TLS and rights."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

import meterd
from meterd.alarm_outbox import KIND, LETTERS_MAX
from meterd.authority.alarms import verify_alarm
from meterd.authority.roster import found
from meterd.config import load
from meterd.ctl.broker_settings import acl_text
from meterd.ctl.node import read_shown
from meterd.device.mailbox import OUTBOX, Mailbox
from meterd.init import enrol_keys, join_network
from meterd.ledger.account import Genesis, Meter, Node
from meterd.ledger.encoding import encode
from tests.conftest import ROOT
from tests.daemon_kit import CONFIG, PROGRAM, Cable, House, Program, line, make_house, strace, until
from tests.device.broker_kit import Authority
from tests.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.ledger.alarm import Alarm
    from meterd.ledger.event import Event

NETWORK = "demo-street"
NEVER_S = 3600  # between two commits: what is on the card earlier was hurried there
FLAPS = 7  # each is four events; more, and the pins' own ration would hold them back
SOON_S = 10.0  # an event is on the card within a second, and at the neighbour's in one more
NAMES = ("house-1", "house-2")
PINS = """
[gpio]
case_switch = 17
magnet = 27
"""
LINE = """
[network]
brokers = ["mqtts://127.0.0.1:{port}"]
ca = "{ca}"
certificate = "{certificate}"
key = "{key}"
"""


def ctl(*arguments: str | Path) -> str:
    """Run `meterctl`; return what it says."""
    program = (sys.executable, "-c", "import sys; from meterd.ctl import main; sys.exit(main())")
    return subprocess.run(
        (*program, *map(str, arguments)), capture_output=True, check=True, text=True
    ).stdout


class Home:
    """One house of the street: pins, a cable for a board, and its two processes."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.folder = name, folder / name
        self.folder.mkdir()
        self.state, self.fifo = self.folder / "account", self.folder / "wires"
        os.mkfifo(self.fifo)
        self.house = House(
            folder=self.folder,
            config=self.folder / "meterd.toml",
            state=self.state,
            port=self.folder / "board",
            program=(sys.executable, "-m", "tests.mock_pins"),
        )

    def configure(self, lines: str) -> None:
        text = CONFIG.format(
            interval_s=1800,
            port=self.house.port,
            layout="rpict3v1",
            polling_ms=500,
            trust="always",
            commit_s=NEVER_S,
            reserve_mb=1,
        )
        self.house.config.write_text(text.replace("kitchen-12", self.name) + PINS + lines)

    def meter(self) -> Program:
        program = self.house.run(
            environ={
                "GPIOZERO_PIN_FACTORY": "mock",
                "MOCK_PINS": "17=low,27=high",
                "MOCK_PINS_FIFO": str(self.fifo),
                "PYTHONPATH": str(ROOT),
            }
        )
        program.hear("gpio_opened factory=MockFactory")
        return program

    def peer(self) -> Program:
        where = ("--config", str(self.house.config), "--state", str(self.state))
        program = Program((*PROGRAM, "peer", *where))
        program.hear("broker_connected")
        return program

    def move(self, *levels: str) -> None:
        """Move pins, one after another: `17 high`."""
        self.fifo.write_text("".join(f"{level}\n" for level in levels))

    def peers(self) -> dict[str, Any]:
        """What `meterctl peers --json` says here."""
        told: dict[str, Any] = json.loads(ctl("peers", "--state", self.state, "--json"))
        return told

    def shown(self, name: str) -> dict[str, Any]:
        """What the peer process shows of the alarms of a meter."""
        with contextlib.suppress(OSError, StopIteration):
            told = json.loads((self.state / "line/peer.json").read_text())
            one: dict[str, Any] = next(one for one in told["alarms"] if one["name"] == name)
            return one
        return {}

    def standing(self, name: str) -> set[str]:
        return {one["alarm"] for one in self.shown(name).get("standing", ())}

    @property
    def letters(self) -> list[str]:
        """Names of the alarms in the outbox."""
        names = Mailbox(self.state / "line" / OUTBOX).names()
        return sorted(name for name in names if name.startswith(f"{KIND}-"))


class Street:
    """Two houses and a broker that lets each write below its own name alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.homes = [Home(folder, name) for name in NAMES]
        nodes, meters = [], []
        for home in self.homes:
            seal, vote = enrol_keys(home.state, lambda: os.urandom(32))
            keys = {"sealing_key": bytes(seal.verify_key)}
            voting = bytes(vote.verify_key)
            nodes.append(Node(name=home.name, role="meter", voting_key=voting, votes=1, **keys))
            meters.append(
                Meter(
                    name=home.name,
                    incarnation=1,
                    fuse_ma=60_000,
                    nominal_mv=230_000,
                    mains_clamps=1,
                    **keys,
                )
            )
        self.genesis = Genesis(
            name=NETWORK,
            interval_s=1800,
            zone="UTC",
            currency="EUR",
            nodes=tuple(nodes),
            meters=tuple(meters),
        )
        self.authority = Authority(folder, "root")
        self.ca = self.authority.ca
        server = self.authority.issue("broker")
        acl = folder / "acl"
        acl.write_text(acl_text(NETWORK, [*NAMES, "utility"]))
        acl.chmod(0o600)
        self.broker = Mosquitto(
            folder,
            config_lines=(
                f"cafile {self.ca}",
                f"certfile {server.certificate}",
                f"keyfile {server.key}",
                "require_certificate true",
                "use_identity_as_username true",
                f"acl_file {acl}",
            ),
        )
        for home in self.homes:
            own = self.authority.issue(home.name)
            home.configure(
                LINE.format(
                    port=self.broker.port,
                    ca=self.ca,
                    certificate=own.certificate,
                    key=own.key,
                )
            )
            join_network(home.state, self.genesis, load(home.house.config))

    def alarm(self, message: mqtt.MQTTMessage) -> Alarm:
        """What a stranger who has the genesis alone makes of a message."""
        return verify_alarm(bytes(message.payload), found(self.genesis))

    def subscriber(self, *topics: str) -> Subscriber:
        return Subscriber(self, *topics)


class Subscriber:
    """A backend: it has a certificate and the genesis, and is no node."""

    def __init__(self, street: Street, *topics: str, name: str = "utility") -> None:
        own = street.authority.issue(name)
        self.heard: list[mqtt.MQTTMessage] = []
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"{name} listens", protocol=mqtt.MQTTv5
        )
        self.client.tls_set(str(street.ca), str(own.certificate), str(own.key))
        self.client.on_message = lambda _client, _data, message: self.heard.append(message)

        def subscribe(*_: object) -> None:
            for topic in topics:
                self.client.subscribe(topic, 1)

        self.client.on_connect = subscribe
        self.client.connect("127.0.0.1", street.broker.port)
        self.client.loop_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def publish(self, topic: str, message: bytes) -> str:
        """Publish; return what the broker says of it."""
        said: list[str] = []
        self.client.on_publish = lambda *told: said.append(str(told[3]))
        self.client.publish(topic, message, 1)
        until(lambda: bool(said), "the broker answers")
        return said[0]


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    made = Street(tmp_path)
    with made.broker:
        yield made


def raised(home: Home, word: str) -> list[Event]:
    """The events on the card that raised an alarm."""
    return [e for e in home.house.account.events if e.kind == "alarm" and e["alarm"] == word]


def test_e1_alarms_reach_a_neighbour_within_seconds_and_fall_there_too(street: Street) -> None:
    one, two = street.homes
    with Cable(one.house.port), one.meter() as meter, one.peer(), two.peer() as neighbour:
        one.move("17 high", "27 low")
        neighbour.hear("neighbour_alarm meter=house-1 alarm=case ", deadline_s=SOON_S)
        neighbour.hear("neighbour_alarm meter=house-1 alarm=magnet ", deadline_s=SOON_S)
        until(lambda: two.standing("house-1") >= {"case", "magnet"}, "both stand")
        one.move("27 high")
        neighbour.hear("neighbour_alarm_over meter=house-1 alarm=magnet", deadline_s=SOON_S)
        until(lambda: "magnet" not in two.standing("house-1"), "one is over")
        (told,) = [each for each in two.peers()["alarms"] if each["name"] == "house-1"]
        standing = {each["alarm"]: each for each in told["standing"]}
        assert ("case" in standing, "magnet" in standing) == (True, False)
        assert meter.stop() == 0
        until(lambda: two.shown("house-1")["kind"] == "stopped", "the stop is told")
    (event,) = raised(one, "case")
    assert (standing["case"]["number"], standing["case"]["since_ms"]) == (
        event.number,
        event.wall_ms,
    )
    assert neighbour.said.count("neighbour_alarm meter=house-1 alarm=case ") == 1
    one.house.verify_good()


def test_e1_alarms_of_an_unplugged_board_are_shown_to_people(street: Street) -> None:
    one, two = street.homes
    cable = Cable(one.house.port)
    with one.meter(), one.peer(), two.peer() as neighbour:
        cable.close()
        neighbour.hear("neighbour_alarm meter=house-1 alarm=port ", deadline_s=SOON_S)
        until(lambda: "port" in two.standing("house-1"), "it is shown")
        said = ctl("peers", "--state", two.state)
        assert re.search(
            r"^alarm: house-1: port, since \S+Z by its clock \(event \d+\)$", said, re.MULTILINE
        )
        with Cable(one.house.port):
            neighbour.hear("neighbour_alarm_over meter=house-1 alarm=port", deadline_s=60)


def test_e1_alarms_wait_for_a_peer_process_that_is_away_each_once(street: Street) -> None:
    """It flaps meanwhile: the newest state arrives, and how many were left out."""
    one, two = street.homes
    with Cable(one.house.port), one.meter() as meter, two.peer() as neighbour:
        for _ in range(FLAPS):
            one.move("27 low")
            meter.hear("alarm alarm=magnet ")
            one.move("27 high")
            meter.hear("alarm_over alarm=magnet")
        one.move("17 high")
        meter.hear("alarm alarm=case ")
        until(lambda: len(one.letters) == LETTERS_MAX, "letters lie there")
        with one.peer():
            until(lambda: len(one.letters) == 1, "the newest lies on alone")
            until(lambda: bool(two.shown("house-1")), "something is heard", deadline_s=SOON_S)
            # What the ration held back is told as it may be: one in ten seconds.
            until(lambda: "case" in two.standing("house-1"), "the newest state")
            until(lambda: len(one.letters) == 1, "the newest lies on alone")
    assert "magnet" not in two.standing("house-1")
    assert int(neighbour.hear(r"untold=(\d+)")[1]) > 0
    assert neighbour.said.count("neighbour_alarm meter=house-1 alarm=case ") == 1
    numbers = re.findall(r"alarm=magnet number=(\d+)", neighbour.said)
    assert len(set(numbers)) == len(numbers) <= LETTERS_MAX


def test_e1_alarms_are_shown_once_over_restarts_of_either_side(street: Street) -> None:
    one, two = street.homes
    with Cable(one.house.port), one.meter():
        one.move("17 high")
        with one.peer(), two.peer() as neighbour:
            neighbour.hear("neighbour_alarm meter=house-1 alarm=case ", deadline_s=SOON_S)
            assert neighbour.stop() == 0
        with one.peer(), two.peer() as neighbour:
            until(lambda: "case" in two.standing("house-1"), "it is shown again")
            one.move("27 low")
            neighbour.hear("neighbour_alarm meter=house-1 alarm=magnet ", deadline_s=SOON_S)
            assert "alarm=case" not in neighbour.said
            assert neighbour.stop() == 0
        (two.state / "line/peer.json").unlink()
        told = two.peers()  # by its database, which knows the same
        (shown,) = [each for each in told["alarms"] if each["name"] == "house-1"]
        assert {"case", "magnet"} <= {each["alarm"] for each in shown["standing"]}
        for path in one.state.glob("peer.db*"):
            path.unlink()
        street.broker.kill()
        street.broker.start()  # it has forgotten what it retained
        with one.peer(), street.subscriber(f"m/{NETWORK}/house-1/alarm") as utility:
            until(lambda: bool(utility.heard), "it is published anew")
            alarm = street.alarm(utility.heard[-1])
    assert {"case", "magnet"} <= {each.word for each in alarm.standing}


def test_e1_alarms_are_on_the_card_before_they_are_told(street: Street) -> None:
    """Write, sync, and only then a letter in the outbox (as row L1 has it of blocks)."""
    one, _ = street.homes
    trace = one.folder / "trace"
    options = ("-xx", "-s", "4096", "-e", "trace=write,fdatasync,fsync,rename")
    one.house.program = PROGRAM
    wrap = strace(*options, out=trace)
    with Cable(one.house.port) as cable, one.house.run(wrap=wrap) as meter:
        meter.hear("alarm alarm=port ")
        until(lambda: len(one.letters) > 1, "the alarm is told")
        cable.say(line(100))
        meter.hear("alarm_over alarm=port")
        assert meter.stop() == 0
    events, told = Synced(str(one.state / "events")), 0
    for traced in trace.read_text().splitlines():
        letter = events.take(traced)
        if letter.startswith(f"{KIND}-"):
            told += 1
            event = b"\x85" + encode(int(letter.rpartition("-")[2]))  # an array that begins so
            assert event in events.synced, letter
    assert told >= 3


class Synced:
    """What a process has made durable of files below a path, by its calls."""

    def __init__(self, path: str) -> None:
        self.path, self.synced = path, b""
        self._written: dict[str, bytes] = {}

    def take(self, traced: str) -> str:
        """Take a line of strace; return the name that a file has got by it, or nothing."""
        call, _, what = traced.partition(" ")[2].strip().partition("(")
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in re.findall(r'"([^"]*)"', what)]
        (path,) = re.findall(r"^\d+<([^>]*)>", what) or [""]
        path = re.sub(r"\\x(..)", lambda code: chr(int(code[1], 16)), path)
        if call == "rename":
            return Path(os.fsdecode(texts[1])).name
        if call == "write" and path.startswith(self.path):
            self._written[path] = self._written.get(path, b"") + texts[0]
        elif call in {"fdatasync", "fsync"}:
            self.synced += self._written.pop(path, b"")
        return ""


def test_e1_alarms_are_retained_for_a_backend_that_comes_later(street: Street) -> None:
    """It is no node: it has a certificate of the broker's, and the genesis."""
    one, _ = street.homes
    with Cable(one.house.port), one.meter() as meter, one.peer() as peer:
        one.move("17 high")
        meter.hear("alarm alarm=case ")
        with street.subscriber(f"m/{NETWORK}/+/alarm") as utility:
            until(lambda: "case" in words(street, utility), "the case is told")
            assert meter.stop() == 0
            last = one.house.account.events[-1].number
            until(lambda: street.alarm(utility.heard[-1]).number == last, "its end is told")
        assert peer.stop() == 0
    with street.subscriber(f"m/{NETWORK}/+/alarm") as utility:
        until(lambda: bool(utility.heard), "it was retained")
    (message,) = utility.heard
    assert message.retain
    alarm = street.alarm(message)
    assert (alarm.kind, alarm.number) == ("stopped", one.house.account.events[-1].number)
    assert "case" in {each.word for each in alarm.standing}


def words(street: Street, utility: Subscriber) -> set[str]:
    alarms = [street.alarm(message) for message in utility.heard]
    return {each.word for each in alarms[-1].standing} if alarms else set()


@pytest.mark.parametrize(
    ("topic", "refused"),
    [
        pytest.param("m/demo-street/house-1/alarm", True, id="another's branch"),
        pytest.param("m/demo-street/alarm", True, id="nobody's branch"),
        pytest.param("m/demo-street/utility/alarm", False, id="its own branch"),
    ],
)
def test_e1_alarms_are_published_below_ones_own_name_alone(
    street: Street, topic: str, refused: bool
) -> None:
    with street.subscriber() as member:
        until(member.client.is_connected, "it is connected")
        assert (member.publish(topic, b"an alarm") == "Not authorized") == refused


def test_s5_a_start_that_changed_software_refuses_is_told_the_neighbours(
    street: Street, tmp_path: Path
) -> None:
    """And seals nothing: the peer process, which runs on, publishes the alarm."""
    one, two = street.homes
    site = installed(tmp_path)
    one.house.program = (sys.executable, "-P", "-m", "meterd")
    with Cable(one.house.port), one.peer(), two.peer() as neighbour:
        with one.house.run(environ={"PYTHONPATH": str(site)}) as meter:
            meter.hear("installed=verified")
            meter.hear("port_opened")
            assert meter.stop() == 0
        with (site / "meterd" / "replay.py").open("a") as file:
            file.write("# changed\n")
        sealed = one.house.account.blocks
        with one.house.run(environ={"PYTHONPATH": str(site)}) as meter:
            assert meter.end() == os.EX_CONFIG
        neighbour.hear("neighbour_alarm meter=house-1 alarm=software_changed ", deadline_s=SOON_S)
        until(lambda: two.standing("house-1") == {"software_changed"}, "it is shown")
    assert one.house.account.blocks == sealed
    assert [event.kind for event in one.house.account.events[-2:]] == ["refused", "alarm"]


def installed(folder: Path) -> Path:
    """Install a copy of meterd, with a RECORD as an installer writes it; return its folder."""
    site = folder / "site"
    package = Path(meterd.__file__).parent
    shutil.copytree(package, site / "meterd", ignore=shutil.ignore_patterns("__pycache__"))
    record = site / "meterd-0.dist-info" / "RECORD"
    record.parent.mkdir()
    lines = []
    for path in sorted((site / "meterd").rglob("*")):
        if path.is_file():
            digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
            size = path.stat().st_size
            name = path.relative_to(site)
            lines.append(f"{name},sha256={digest.decode().rstrip('=')},{size}")
    record.write_text("\n".join(lines) + "\n")
    return site


def test_e1_alarms_are_nothing_to_a_meter_without_brokers(tmp_path: Path) -> None:
    house = make_house(tmp_path)
    with Cable(house.port), house.run() as meter:
        meter.hear("port_opened")
        assert meter.stop() == 0
    assert not (house.state / "line").exists()


@pytest.mark.parametrize(
    "standing",
    [
        pytest.param([{"alarm": "case", "number": 7}], id="since no time"),
        pytest.param([{"alarm": "case", "number": "7", "since_ms": 0}], id="an event in text"),
        pytest.param([7], id="a number"),
    ],
)
def test_what_is_no_alarm_is_not_shown_as_one(tmp_path: Path, standing: list[object]) -> None:
    """The file is a peer process's, which may have been taken over: the database is shown."""
    alarm = {"name": "house-1", "incarnation": 1, "number": 7, "wall_ms": 0}
    alarm |= {"kind": "alarm", "alarm": "case", "untold": 0}
    good = [{"alarm": "case", "number": 7, "since_ms": 0}]
    told: dict[str, object] = {"name": "house-2", "network": NETWORK, "votes": True, "booted": True}
    told |= dict.fromkeys(("epoch", "voters", "quorum", "faults_max", "order"), 1)
    told |= {"brokers": [], "peers": [], "chains": [], "accused": [], "refused": [], "counts": {}}
    for stands, shown in ((good, True), (standing, False)):
        told["alarms"] = [alarm | {"standing": stands}]
        (tmp_path / "peer.json").write_text(json.dumps(told))
        assert (read_shown(tmp_path) is not None) == shown
