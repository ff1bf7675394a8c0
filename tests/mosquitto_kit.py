"""A street with certificates, the broker whose settings `broker-config` writes, and its clients."""

from __future__ import annotations

import contextlib
import io
import os
import pwd
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from meterd.certificates.request import make_request
from meterd.certificates.root import issue, make_root
from meterd.ctl import main
from meterd.device.files import write_over
from meterd.ledger.account import Genesis, Meter, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOSQUITTO = shutil.which(
    "mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
)
EXAMPLES = Path(__file__).parents[1] / "config"
NETWORK = "elm-street"
NAMES = ("barn-1", "elm-authority", "elm-concentrator", "elm-distributor", "kitchen-12", "shed-3")
DEADLINE_S = 20.0  # for what takes milliseconds where nothing else runs

needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


def street_genesis() -> Genesis:
    roles = ("meter", "authority", "concentrator", "distributor", "meter", "meter")
    return Genesis(
        name=NETWORK,
        interval_s=1800,
        zone="Europe/Paris",
        currency="EUR",
        nodes=tuple(
            Node(
                name=name,
                role=role,
                sealing_key=bytes([number]) * 32,
                voting_key=b"" if role == "meter" else bytes([100 + number]) * 32,
                votes=int(role != "meter"),
            )
            for number, (name, role) in enumerate(zip(NAMES, roles, strict=True), start=1)
        ),
        meters=(
            Meter(
                name="kitchen-12",
                incarnation=1,
                sealing_key=bytes([5]) * 32,
                fuse_ma=60_000,
                nominal_mv=230_000,
                mains_clamps=1,
            ),
        ),
    )


class Said(NamedTuple):
    status: int
    out: str
    err: str


def ctl(*arguments: object) -> Said:
    """Run `meterctl broker-config` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["broker-config", *map(str, arguments)])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Said(status, out.getvalue(), err.getvalue())


class Broker:
    """A mosquitto with the settings of a folder, on loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.said: list[str] = []
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        self.said.clear()
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self.folder / "mosquitto.conf")],
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,))
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._changed:
                self.said.append(line)
                self._changed.notify_all()
        with self._changed:
            self.said.append("(ended)\n")
            self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        with self._changed:
            heard = self._changed.wait_for(
                lambda: any(text in line or line == "(ended)\n" for line in self.said), DEADLINE_S
            )
            assert heard, self.said
            assert any(text in line for line in self.said), self.said

    def stop(self) -> int:
        """Stop it as a service manager does, if it has not ended by itself."""
        if self._process is None:
            return 0
        self._process.terminate()
        status = self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._process = None
        return status

    def fails_to_start(self) -> list[str]:
        self.start()
        self.wait_for("(ended)")
        assert self.stop() != 0
        return self.said

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        self.wait_for("Reloading config")


class Street(NamedTuple):
    """Members with certificates, and the folder of a broker, readable to whom it runs as."""

    folder: Path
    broker: Broker

    def context(self, who: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.load_verify_locations(self.folder / "root" / "root.crt")
        if who:
            made.load_cert_chain(self.folder / f"{who}.crt", self.folder / f"{who}.key")
        return made

    def hand_over_list(self) -> None:
        """Bring the root's list to the broker."""
        shutil.copy(self.folder / "root" / "root.crl", self.broker.folder / "root.crl")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def give(folder: Path) -> None:
    """Give a folder to the broker's user: it drops root's rights before it reads anything."""
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("mosquitto")
        except KeyError:
            user = pwd.getpwnam("nobody")
        for path in (folder, *folder.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)


def certify(
    folder: Path, name: str, *, root: str = "root", now: datetime, hosts: tuple[str, ...] = ()
) -> None:
    make_request(folder / f"{name}.key", folder / f"{name}.csr", name)
    csr = (folder / f"{name}.csr").read_bytes()
    _, pem = issue(folder / root, csr, now=now, hosts=hosts)
    write_over(folder / f"{name}.crt", pem, mode=0o644)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """Certificates of a street, made once."""
    # Not below pytest's own folder: that is closed to the user that the broker becomes.
    with tempfile.TemporaryDirectory(prefix="meterd-broker-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        now = datetime.now(UTC)
        make_root(folder / "root", NETWORK, now=now)
        make_root(folder / "other", NETWORK, now=now)
        for who in ("kitchen-12", "shed-3", "barn-1", "nobody-9"):
            certify(folder, who, now=now)
        certify(folder, "stranger", root="other", now=now)
        certify(folder, "broker", now=now, hosts=("127.0.0.1", "localhost"))
        (folder / "genesis").write_bytes(street_genesis().encode())
        yield folder


@pytest.fixture
def street(made: Path) -> Iterator[Street]:
    if MOSQUITTO is None:
        pytest.fail("mosquitto is not installed: `make test` installs it")
    with tempfile.TemporaryDirectory(prefix="broker-", dir=made) as name:
        folder = Path(name)
        port = free_port()
        said = ctl(
            *("write", "--genesis", made / "genesis", "-o", folder, "--data", folder),
            *("--listen", f"127.0.0.1:{port}"),
        )
        assert said.status == 0, said.err
        shutil.copytree(made / "root", folder / "authority")  # each test revokes in its own
        for source in ("root/root.crt", "root/root.crl", "broker.crt", "broker.key"):
            shutil.copy(made / source, folder / Path(source).name)
        folder.chmod(0o755)
        give(folder)
        broker = Broker(folder, port)
        try:
            yield Street(made, broker)
        finally:
            broker.stop()


@pytest.fixture
def running(street: Street) -> Street:
    street.broker.start()
    street.broker.wait_for("running")
    return street


class Member:
    """An MQTT 5 client whose every answer can be waited for."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext | None,
        *,
        client_id: str = "",
        user: str = "",
        will: str = "",
        clean: bool = True,
    ) -> None:
        self.heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.ended = threading.Event()
        self._answers: queue.Queue[str] = queue.Queue()
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        if context is not None:
            client.tls_set_context(context)
        if user:
            client.username_pw_set(user)
        if will:
            client.will_set(will, b"gone", qos=1)
        client.on_connect = lambda *told: self._answers.put(str(told[3]))
        client.on_publish = lambda *told: self._answers.put(str(told[3]))
        client.on_subscribe = lambda *told: self._answers.put(str(told[3][0]))
        client.on_message = lambda *told: self.heard.put((told[2].topic, told[2].payload))
        client.on_disconnect = lambda *_: self.ended.set()
        keeps = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        keeps.SessionExpiryInterval = 3600
        client.connect("127.0.0.1", port, clean_start=clean, properties=keeps)
        client.loop_start()
        self.welcome = self._answer()

    def _answer(self) -> str:
        return self._answers.get(timeout=DEADLINE_S)

    def publish(self, topic: str, data: bytes = b"x", *, retain: bool = False) -> str:
        self._client.publish(topic, data, qos=1, retain=retain)
        answer = self._answer()
        return "Success" if answer == "No matching subscribers" else answer

    def throw(self, topic: str, data: bytes) -> None:
        """Publish, and wait for no answer."""
        self._client.publish(topic, data, qos=1)

    def vanish(self) -> None:
        """Break the line without a word, as a failure of power does."""
        line = self._client.socket()
        assert line is not None
        with socket.socket(fileno=os.dup(line.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)

    def subscribe(self, topic: str) -> str:
        self._client.subscribe(topic, qos=1)
        return self._answer()

    def hears(self) -> tuple[str, bytes]:
        return self.heard.get(timeout=DEADLINE_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def join(running: Street) -> Iterator[Callable[..., Member]]:
    members: list[Member] = []

    def joined(who: str, **options: Any) -> Member:  # noqa: ANN401 - as `Member` takes them
        members.append(Member(running.broker.port, running.context(who), **options))
        return members[-1]

    yield joined
    for member in members:
        member.close()
