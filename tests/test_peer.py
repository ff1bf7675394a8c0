from __future__ import annotations

import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.subscribe
import pytest

from meterd import peer_keeper
from meterd.__main__ import NOT_NEEDED_TO_METER, main
from meterd.authority.boot import HeadSearch
from meterd.authority.certificate import open_certificate, verify_certificate
from meterd.authority.roster import found
from meterd.device import store
from meterd.device.keys import create_vote
from meterd.device.mailbox import INBOX, OUTBOX, Mailbox
from meterd.errors import ConfigError, StorageError
from meterd.ledger.encoding import digest, encode
from meterd.peer import STATUS_CONTEXT
from meterd.peer_keeper import PeerKeeper
from tests.authority.examples import GENESIS, HOUSE, OTHER_HOUSE, block, meter, node, sealed
from tests.daemon_kit import PROGRAM, Cable, Program, line, make_house, until
from tests.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.ledger.account import Genesis
    from meterd.ledger.block import Block
    from tests.daemon_kit import House

NEVER_S = 2.0  # how long a test that is expected to fail waits for what does not come
STREET = replace(
    GENESIS, nodes=(node(HOUSE), node(OTHER_HOUSE)), meters=(meter(HOUSE), meter(OTHER_HOUSE))
)
ALONE = replace(GENESIS, nodes=(node(HOUSE),), meters=(meter(HOUSE),))

CONFIG = """
[meter]
name = "{name}"

[board]
port = "/dev/null"

[[clamp]]
name = "mains"
role = "mains"

[network]
brokers = {brokers}
tick_ms = 20
digest_ms = 300

[clock]
trust = "always"
"""


def blocks_of(genesis: Genesis, number: int) -> list[Block]:
    first = block()._replace(genesis=genesis.hash, previous=genesis.hash, order=(0, genesis.hash))
    blocks = [first]
    while len(blocks) < number:
        blocks.append(block(blocks[-1]))
    return blocks


@dataclass(frozen=True)
class Node:
    """The folder of one node's peer process; the test plays its meter.

    Attributes:
        name: Its name.
        config: Its settings.
        state: Its state folder.
        genesis: Its network.
    """

    name: str
    config: Path
    state: Path
    genesis: Genesis

    @classmethod
    def make(
        cls,
        folder: Path,
        name: str,
        *ports: int,
        genesis: Genesis = STREET,
        key: str | None = "",
    ) -> Node:
        state = folder / name
        state.mkdir()
        config = folder / f"{name}.toml"
        brokers = json.dumps([f"mqtt://127.0.0.1:{port}" for port in ports])
        config.write_text(CONFIG.format(name=name, brokers=brokers))
        (state / "genesis.cbor").write_bytes(genesis.encode())
        if key is not None:
            create_vote(state, digest((key or f"{name} votes").encode()))
        return cls(name, config, state, genesis)

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("peer", "--config", str(self.config), "--state", str(self.state))

    def start(self) -> Program:
        program = Program((*PROGRAM, *self.arguments))
        program.hear("peer_started")
        return program

    @property
    def outbox(self) -> Mailbox:
        return Mailbox(self.state / "line" / OUTBOX)

    @property
    def inbox(self) -> Mailbox:
        return Mailbox(self.state / "line" / INBOX)

    def offer(self, *blocks: Block) -> None:
        for one in blocks:
            message = sealed(one, genesis=self.genesis.hash)
            assert self.outbox.put(f"block-{one.height:012d}", message)
        self.outbox.ring()

    def certified(self, one: Block) -> bool:
        """Say whether the inbox has the certificate of a block, or of one above it."""
        for letter in self.inbox.read():
            if letter.kind == "certificate":
                certificate = open_certificate(letter.data)
                verify_certificate(certificate, found(self.genesis))
                assert letter.name == f"certificate-{certificate.height:012d}"
                if certificate.height >= one.height:
                    return True
        return False

    @property
    def shown(self) -> dict[str, object]:
        try:
            shown: dict[str, object] = json.loads((self.state / "line" / "peer.json").read_text())
        except FileNotFoundError:
            return {}
        return shown


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def houses(tmp_path: Path, broker: Mosquitto) -> list[Node]:
    return [Node.make(tmp_path, name, broker.port) for name in (HOUSE, OTHER_HOUSE)]


# --- what it does for a meter ---------------------------------------------------------------------


def test_a_block_in_the_outbox_comes_back_certified(houses: list[Node]) -> None:
    """And later ones; and the neighbour's own process has them too."""
    first, other = houses
    blocks = blocks_of(STREET, 6)
    with first.start() as one, other.start() as two:
        first.offer(blocks[0])
        until(lambda: first.certified(blocks[0]), "the first block certified")
        first.offer(*blocks[1:])
        until(lambda: first.certified(blocks[-1]), "the last block certified")
        assert not any(letter.kind == "certificate" for letter in other.inbox.read())
        assert [one.stop(), two.stop()] == [0, 0]
    assert "two_histories" not in one.said + two.said


def test_what_was_offered_before_anybody_listened_is_certified_too(houses: list[Node]) -> None:
    first, other = houses
    blocks = blocks_of(STREET, 3)
    first.offer(*blocks)
    with first.start(), other.start():
        until(lambda: first.certified(blocks[-1]), "all blocks certified")


def test_a_question_is_asked_and_its_answer_is_the_neighbours_word(houses: list[Node]) -> None:
    first, other = houses
    blocks = blocks_of(STREET, 2)
    nonce = bytes(range(16))
    search, roster = HeadSearch(HOUSE, HOUSE), found(STREET)
    search.ask(nonce, 0)
    with first.start(), other.start():
        first.offer(*blocks)
        until(lambda: first.certified(blocks[-1]), "both blocks certified")

        def answered() -> bool:
            first.outbox.put(f"question-{nonce.hex()}", nonce + bytes(16))
            first.outbox.ring()
            for letter in first.inbox.read():
                if letter.kind == "answer":
                    search.take(letter.data, roster)
            return search.may_seal(roster, 1, 2, 0)

        until(answered, "an answer of the neighbour")
        assert not search.may_seal(roster, 1, 1, 0), "it holds both blocks"
        given = {letter.name for letter in first.inbox.read() if letter.kind == "block"}
        assert given == {"block-000000000001", "block-000000000002"}, "the card held none"


def test_a_broker_that_dies_is_outlived(houses: list[Node], broker: Mosquitto) -> None:
    first, other = houses
    blocks = blocks_of(STREET, 2)
    with first.start() as one, other.start():
        first.offer(blocks[0])
        until(lambda: first.certified(blocks[0]), "the first block certified")
        broker.kill()
        one.hear("broker_lost|broker_")
        first.offer(blocks[1])
        broker.start()
        until(lambda: first.certified(blocks[1]), "the second block certified")


def test_two_brokers_serve_where_one_is_down(tmp_path: Path, broker: Mosquitto) -> None:
    dead = Mosquitto(tmp_path)
    nodes = [
        Node.make(tmp_path, name, dead.port, broker.port, genesis=STREET)
        for name in (HOUSE, OTHER_HOUSE)
    ]
    blocks = blocks_of(STREET, 1)
    with nodes[0].start(), nodes[1].start():
        nodes[0].offer(*blocks)
        until(lambda: nodes[0].certified(blocks[0]), "certified by way of the second broker")


def test_a_certificate_that_was_lost_comes_again(tmp_path: Path, broker: Mosquitto) -> None:
    """The process was killed before the letter lay there: the meter offers the block still.

    Where 64 blocks lie in the outbox, no other follows them, and nothing is certified any more.
    """
    alone = Node.make(tmp_path, HOUSE, broker.port, genesis=ALONE)
    blocks = blocks_of(ALONE, 1)
    with alone.start() as program:
        alone.offer(*blocks)
        until(lambda: alone.certified(blocks[0]), "certified")
        program.process.kill()
    for letter in alone.inbox.read():
        alone.inbox.remove(letter.name)
    with alone.start():
        alone.outbox.ring()
        until(lambda: alone.certified(blocks[0]), "told again")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("block-000000000001", b"garbage"),
        ("question-1", b"too short"),
        ("rubbish-1", b"x"),
        ("no name", b"x"),
        ("block-000000000001", b"\xd2" + bytes(100_000)),
    ],
)
def test_garbage_in_the_outbox_is_survived(
    tmp_path: Path, broker: Mosquitto, name: str, data: bytes
) -> None:
    alone = Node.make(tmp_path, HOUSE, broker.port, genesis=ALONE)
    (alone.outbox.folder / name).write_bytes(data)
    blocks = blocks_of(ALONE, 1)
    with alone.start() as program:
        alone.offer(*blocks)
        until(lambda: alone.certified(blocks[0]), "certified")
        assert program.stop() == 0


# --- how it starts and ends -----------------------------------------------------------------------


def status_of(broker: Mosquitto, name: str) -> bytes:
    """Return the retained status of a node."""
    topic = f"m/{STREET.name}/{name}/status"
    simple: Any = paho.mqtt.subscribe.simple
    return bytes(simple(topic, hostname="127.0.0.1", port=broker.port).payload)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM),
        pytest.param(signal.SIGINT),
        signal.SIGKILL,
    ],
)
def test_it_is_said_to_be_online_until_it_ends(
    houses: list[Node], broker: Mosquitto, number: signal.Signals
) -> None:
    """Retained: whoever comes later hears it. A process that is killed cannot say so itself."""
    with houses[0].start() as program:
        program.hear("broker_connected")
        online, offline = (encode([STATUS_CONTEXT, HOUSE, state]) for state in (1, 0))
        until(lambda: status_of(broker, HOUSE) == online, "its birth is published")
        expected = -number if number == signal.SIGKILL else 0
        assert program.stop(number) == expected
        until(lambda: status_of(broker, HOUSE) == offline, "its end is published")


def test_what_it_knows_is_shown(houses: list[Node]) -> None:
    first, other = houses
    with first.start(), other.start():
        until(
            lambda: [one["heard_s"] is not None for one in first.shown.get("peers", ())] == [True],  # type: ignore[attr-defined]
            "the neighbour was heard",
        )
    assert (first.shown["name"], first.shown["voters"], first.shown["quorum"]) == (HOUSE, 2, 2)


def failing(one: Node, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run it in this process, where it does not come to its network; return status and words."""
    code = main(list(one.arguments))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param({"ports": ()}, "network.brokers is empty", id="without brokers"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: dict[str, object], message: str
) -> None:
    ports = (1,) if "ports" not in make else ()
    one = Node.make(tmp_path, HOUSE, *ports, key=str(make.get("key", "")))
    code, said = failing(one, capsys)
    assert (code, message in said) == (78, True), said
    assert code == ConfigError.exit_code
    assert "hint:" in said


def test_a_voting_key_that_nobody_names_is_told_and_may_be_named_by_an_order_to_come(
    tmp_path: Path,
) -> None:
    one = Node.make(tmp_path, HOUSE, 1, key="a new device's")
    with Program((*PROGRAM, *one.arguments)) as program:
        program.hear("voting_key_unknown .*unless an order that names this one is to come")
        program.hear("peer_started")


def test_without_a_key_it_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = failing(Node.make(tmp_path, HOUSE, 1, key=None), capsys)
    assert (code, "there is no voting key" in said) == (69, True)
    assert "meterctl network enrol" in said


def test_a_store_of_another_node_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Node.make(tmp_path, HOUSE, 1)
    store.Store(str(one.state / "peer.db"), genesis=STREET.hash, node=OTHER_HOUSE).close()
    code, said = failing(one, capsys)
    assert (code, "another node" in said) == (78, True)


def test_a_store_that_somebody_holds_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_S", 0.01)
    one = Node.make(tmp_path, HOUSE, 1)
    path = one.state / "peer.db"
    store.Store(str(path), genesis=STREET.hash, node=HOUSE).close()
    holder = sqlite3.connect(path, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        code, said = failing(one, capsys)
    finally:
        holder.close()
    assert (code, "locked" in said) == (StorageError.exit_code, True)


def test_a_damaged_store_is_put_aside_and_said(tmp_path: Path, broker: Mosquitto) -> None:
    alone = Node.make(tmp_path, HOUSE, broker.port, genesis=ALONE)
    (alone.state / "peer.db").write_bytes(b"garbage" * 1000)
    blocks = blocks_of(ALONE, 1)
    with Program((*PROGRAM, *alone.arguments)) as program:
        program.hear("store_damaged.*put aside as peer.damaged-1")
        program.hear("peer_started")
        alone.offer(*blocks)
        until(lambda: alone.certified(blocks[0]), "certified")
    assert (alone.state / "peer.damaged-1").read_bytes() == b"garbage" * 1000


# --- beside the meter -----------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path, broker: Mosquitto) -> House:
    """A meter that votes alone, so that nothing waits for neighbours."""
    made = make_house(tmp_path, polling_ms=500)
    vote = create_vote(made.state, digest(b"vote"))
    (own,) = made_genesis(made).meters
    voter = replace(
        node("kitchen-12"),
        sealing_key=own.sealing_key,
        voting_key=bytes(vote.verify_key),
    )
    genesis = replace(made_genesis(made), nodes=(voter,))
    (made.state / "genesis.cbor").write_bytes(genesis.encode())
    with made.config.open("a") as file:
        file.write(f'\n[network]\nbrokers = ["mqtt://127.0.0.1:{broker.port}"]\n')
    return made


def made_genesis(made: House) -> Genesis:
    from meterd.init import read_genesis

    return read_genesis(made.state)


def child_of(program: Program) -> int:
    """Return the process that it has started, or 0."""
    pid = program.process.pid
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return children[0] if children else 0


def runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def network_sockets(pid: int) -> set[str]:
    """Return the sockets of a process that are of the Internet's kinds."""
    proc = Path(f"/proc/{pid}")
    links = set[str]()
    for entry in (proc / "fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            links.add(str(entry.readlink()))
    own = {found_[1] for link in links if (found_ := re.fullmatch(r"socket:\[(\d+)\]", link))}
    known = {
        row.split()[9]
        for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")
        if (proc / "net" / kind).exists()
        for row in (proc / "net" / kind).read_text().splitlines()[1:]
    }
    return own & known


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_meter_starts_its_peer_process_and_ends_it(
    house: House, number: signal.Signals
) -> None:
    """And has no network itself: no socket of it, and nothing that could speak TLS or MQTT."""
    with Cable(house.port) as cable, house.run("--with-peer") as program:
        program.hear("broker_connected")
        cable.say(line(100))
        house.wait_accepted(1)
        child, pid = child_of(program), program.process.pid
        assert network_sockets(child), "the peer process is on the network"
        assert network_sockets(pid) == set()
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert not re.findall(r"libssl|libcrypto|_ssl\.|_sqlite3", maps)
        assert program.stop(number) == 0
        assert not runs(child)
    assert "Traceback" not in program.said


def test_a_peer_process_that_fails_takes_nothing_from_the_meter(house: House) -> None:
    """It has no key, and ends again and again: metering goes on."""
    (house.state / "peer.key").unlink()
    with Cable(house.port) as cable, house.run("--with-peer") as program:
        program.hear("peer_ended")
        cable.say(line(100))
        house.wait_accepted(1)
        assert program.stop() == 0


def test_a_peer_process_that_is_killed_is_started_again(house: House) -> None:
    with Cable(house.port), house.run("--with-peer") as program:
        program.hear("peer_started")
        until(lambda: child_of(program) != 0, "the process is there")
        os.kill(child_of(program), signal.SIGKILL)
        program.hear("peer_ended")
        program.hear("peer_started")
        child = child_of(program)
        assert program.stop() == 0
        assert not runs(child)


def test_the_metering_process_imports_nothing_of_the_network() -> None:
    """As `meterd run` does it: without TLS, and none of what the peer process is made of."""
    code = (
        "import sys, meterd.__main__ as program\n"
        "program._leave_out(program.NOT_NEEDED_TO_METER)\n"
        "import meterd.run, meterd.meter, meterd.device.control, meterd.meter_answers\n"
        "print('\\n'.join(name for name, module in sys.modules.items() if module))\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, check=True, timeout=60
    )
    imported = set(done.stdout.split())
    assert {"meterd.meter", "meterd.neighbours", "meterd.authority.boot"} <= imported
    unwanted = {
        "paho",
        "paho.mqtt.client",
        "sqlite3",
        "meterd.peer",
        "meterd.device.broker",
        "meterd.device.store",
        "meterd.authority.gossip",
        *NOT_NEEDED_TO_METER,
    }
    assert imported & unwanted == set()


# --- who keeps it running -------------------------------------------------------------------------

LOGGER = logging.getLogger("meterd.test_peer")
WAIT_FOR_EVER = "import signal; signal.pause()"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_keeper, "WAIT_S_MIN", 0.001)
    monkeypatch.setattr(peer_keeper, "WAIT_S_MAX", 0.01)


def keeper_of(code: str, *arguments: str | Path) -> PeerKeeper:
    return PeerKeeper((sys.executable, "-S", "-c", code, *map(str, arguments)), LOGGER)


@pytest.mark.usefixtures("impatient")
def test_what_ends_is_started_again_until_it_is_told_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "starts"
    code = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(3)"
    keeper = keeper_of(code, log)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        keeper.start()
        until(lambda: log.exists() and len(log.read_text()) >= 4, "four starts")
        keeper.stop()
    count = len(log.read_text())
    assert not keeper._thread.is_alive()
    assert "peer_ended" in caplog.text
    assert len(log.read_text()) == count


def test_it_is_started_later_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    keeper = keeper_of("")

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 9:
            keeper._stopping.set()
        return False

    monkeypatch.setattr(keeper._stopping, "wait", wait)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Ended())
    keeper._keep()
    assert waits == sorted(waits)
    assert waits[-1] == peer_keeper.WAIT_S_MAX
    assert all(seconds >= peer_keeper.WAIT_S_MIN for seconds in waits)


class Ended:
    """A process that has ended."""

    def wait(self) -> int:
        return 1


def test_one_that_runs_is_stopped_and_waited_for() -> None:
    keeper = keeper_of(WAIT_FOR_EVER)
    keeper.start()
    until(lambda: keeper._process is not None, "it runs")
    keeper.stop()
    assert keeper._process
    assert keeper._process.poll() is not None
    assert not keeper._thread.is_alive()


def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_keeper, "STOP_S_MAX", 0.2)
    code = (
        "import signal, sys\nsignal.signal(15, signal.SIG_IGN)\n"
        "open(sys.argv[1], 'w').close()\nwhile True: signal.pause()"
    )
    keeper = keeper_of(code, tmp_path / "deaf")
    keeper.start()
    until((tmp_path / "deaf").exists, "it ignores SIGTERM")
    keeper.stop()
    assert keeper._process
    assert keeper._process.wait(10) == -signal.SIGKILL


def test_one_that_is_stopped_before_it_was_started_is_never_started() -> None:
    keeper = keeper_of(WAIT_FOR_EVER)
    keeper._stopping.set()
    keeper.start()
    keeper.stop()
    assert keeper._process is None


def test_it_runs_in_a_session_of_its_own() -> None:
    """Ctrl-C in a terminal reaches the meter alone, which ends them both."""
    keeper = keeper_of(WAIT_FOR_EVER)
    keeper.start()
    until(lambda: keeper._process is not None, "it runs")
    assert keeper._process
    assert os.getsid(keeper._process.pid) != os.getsid(0)
    keeper.stop()


@pytest.mark.usefixtures("impatient")
def test_what_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no memory for another process just now."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    tries: list[int] = []

    def fail(*_: object, **__: object) -> None:
        tries.append(1)
        raise BlockingIOError(11, "resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", fail)
        keeper = keeper_of(WAIT_FOR_EVER)
        keeper.start()
        try:
            until(lambda: len(tries) > 1, "a second try")
        finally:
            keeper.stop()
