"""A real street: boards on ptys, two processes for each meter, a real broker with TLS and rights.

Each device has a network namespace of its own, on a bridge with the broker's: so one can be cut
off, lose a third of its packets, or be handed to somebody hostile, and nothing leaves the machine.
It takes root, as CI has it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import pytest

from meterd.certificates.request import make_request
from meterd.certificates.root import issue, make_root
from meterd.config import load
from meterd.ctl.broker_settings import acl_text
from meterd.device.archive import Known, load_blocks, verify
from meterd.device.store import Store
from meterd.household import local_ms
from meterd.init import enrol_keys, join_network
from meterd.ledger.account import Genesis, Meter, Node
from meterd.ledger.encoding import digest, take_apart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE_S = 150.0  # only a failing test waits this long
SPEED = 600  # an interval of half an hour is sealed every three seconds
BEGIN = "2026-11-02T06:00:00"
BRIDGE = "10.77.0.1"
PORT = 8883
CONFIG = """[meter]
name = "{name}"

[board]
port = "{folder}/board"
layout = "rpict3v1"
polling_ms = 5000

[[clamp]]
name = "mains"
role = "mains"

[clock]
trust = "always"

[log]
reserve_mb = 1

[network]
digest_ms = 1000
"""
BY_TLS = """brokers = ["mqtts://{broker}:{port}"]
ca = "{ca}"
certificate = "{folder}/tls.pem"
key = "{folder}/tls.key"
"""
PLAIN = """brokers = ["mqtt://{broker}:{port}"]
"""
NATS = """host: {broker}
port: 4222
server_name: one
jetstream {{ store_dir: "{folder}/data" }}
mqtt {{ host: {broker}, port: {port} }}
"""
BROKER = """user root
listener {port} {broker}
tls_version tlsv1.3
cafile {ca}
certfile {folder}/broker.pem
keyfile {folder}/broker.key
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {folder}/acl
set_tcp_nodelay true
persistence true
persistence_location {folder}/data/
autosave_interval 1
"""


def run(*command: str) -> None:
    """Run a command that has to succeed."""
    subprocess.run(command, check=True, capture_output=True)


def until(what: Callable[[], bool], reason: str, *, patience_s: float = PATIENCE_S) -> None:
    """Wait until something is so."""
    deadline_s = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < deadline_s, reason
        time.sleep(0.1)


class House:
    """One device: a board, the two processes, and a namespace of its own."""

    def __init__(self, street: Street, number: int) -> None:
        self.street, self.number = street, number
        self.name = f"house-{number}"
        self.folder = street.folder / self.name
        self.state = self.folder / "state"
        self.namespace = f"{street.tag}h{number}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.begun_s = 0.0

    @property
    def config(self) -> Path:
        return self.folder / "meterd.toml"

    def start_program(self, what: str, *arguments: str, inside: bool = True) -> None:
        enter = ("ip", "netns", "exec", self.namespace) if inside else ()
        with (self.folder / f"{what}.log").open("ab") as log:
            self.processes[what] = subprocess.Popen(
                (*enter, sys.executable, "-m", "meterd", *arguments), stdout=log, stderr=log
            )

    def start_board(self) -> None:
        self.begun_s = time.monotonic()
        self.start_program(
            "board",
            *("board", "--link", str(self.folder / "board"), "--layout", "rpict3v1"),
            *(
                "--polling-ms",
                "5000",
                "--speed",
                str(self.street.speed),
                "--seed",
                str(self.number + 1),
            ),
            *("--start", BEGIN, "--noise-w", "2"),
            inside=False,
        )
        until((self.folder / "board").exists, "the board does not start")

    def start_peer(self) -> None:
        self.start_program("peer", "peer", *self._where())

    def start_meter(self) -> None:
        passed_ms = int((time.monotonic() - self.begun_s) * 1000) * self.street.speed
        self.start_program(
            "meter",
            *("run", *self._where(), "--speed", str(self.street.speed)),
            *("--epoch-ms", str(local_ms(BEGIN) + passed_ms)),
        )

    def _where(self) -> tuple[str, ...]:
        return "--config", str(self.config), "--state", str(self.state)

    def end(self, what: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self.processes.pop(what, None)
        if process is None:
            return
        if process.poll() is None:
            # `ip netns exec` becomes the program itself: the signal reaches it.
            process.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()
            process.wait()

    def shown(self) -> dict[str, Any]:
        """What the peer process shows of itself."""
        with suppress(OSError, json.JSONDecodeError):
            shown: dict[str, Any] = json.loads((self.state / "line/peer.json").read_text())
            return shown
        return {"chains": [], "accused": [], "counts": {}}

    def sealed(self) -> list[bytes]:
        """The blocks on the card."""
        return load_blocks(self.state, 1, 1 << 40)

    def certified(self, street: Street) -> dict[str, dict[int, bytes]]:
        """Hashes of the certified blocks in the node's store, by meter and height."""
        store = Store(str(self.state / "peer.db"), genesis=street.genesis.hash, node=self.name)
        try:
            found = store.snapshot(bytes(8), None)
            return {
                held.chain[0]: {
                    height: digest(take_apart(sealed).payload)
                    for height, sealed in store.blocks(held.chain, 1, held.certified)
                }
                for held in found.chains
            }
        finally:
            store.close()

    def log(self, what: str) -> str:
        path = self.folder / f"{what}.log"
        return path.read_text(errors="replace") if path.exists() else ""


class Street:
    """Houses, a broker, and the wire between them."""

    def __init__(
        self, folder: Path, houses: int = 4, *, broker: str = "mosquitto", speed: int = SPEED
    ) -> None:
        """Prepare it; `broker` is `mosquitto`, with TLS and rights, or `nats-server`."""
        self.folder, self.program, self.speed = folder, broker, speed
        self.tag = f"m{os.getpid() % 100_000}"
        self.houses = [House(self, number) for number in range(houses)]
        self.broker: subprocess.Popen[bytes] | None = None
        self.genesis: Genesis

    def __enter__(self) -> Self:
        if os.geteuid():
            leave = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            leave("network namespaces take root: CI runs this as root")
        try:
            self._wire()
            self._certify()
            self._found()
            self.start_broker()
            for house in self.houses:
                house.start_board()
            for house in self.houses:
                house.start_peer()
                house.start_meter()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for house in self.houses:
            for what in ("meter", "peer", "board"):
                house.end(what)
        self.end_broker()
        for house in self.houses:
            subprocess.run(
                ("ip", "netns", "del", house.namespace), check=False, capture_output=True
            )
        subprocess.run(("ip", "netns", "del", f"{self.tag}b"), check=False, capture_output=True)

    # --- the wire ---------------------------------------------------------------------------

    def _wire(self) -> None:
        """A bridge in the broker's namespace, and a cable to each house's."""
        broker = f"{self.tag}b"
        run("ip", "netns", "add", broker)
        run("ip", "-n", broker, "link", "set", "lo", "up")
        run("ip", "-n", broker, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", broker, "addr", "add", f"{BRIDGE}/24", "dev", "bridge")
        run("ip", "-n", broker, "link", "set", "bridge", "up")
        for house in self.houses:
            here, there = house.namespace, f"c{house.number}"
            run("ip", "netns", "add", here)
            run("ip", "-n", here, "link", "add", "wire", "type", "veth", "peer", "name", there)
            run("ip", "-n", here, "link", "set", there, "netns", broker)
            run("ip", "-n", broker, "link", "set", there, "master", "bridge", "up")
            run("ip", "-n", here, "addr", "add", f"10.77.0.{10 + house.number}/24", "dev", "wire")
            run("ip", "-n", here, "link", "set", "lo", "up")
            run("ip", "-n", here, "link", "set", "wire", "up")

    def cut(self, house: House) -> None:
        """Pull the cable."""
        run("ip", "-n", f"{self.tag}b", "link", "set", f"c{house.number}", "down")

    def mend(self, house: House) -> None:
        """Put the cable back."""
        run("ip", "-n", f"{self.tag}b", "link", "set", f"c{house.number}", "up")

    def lose(self, house: House, percent: int) -> None:
        """Let so many of a house's packets be lost, at random."""
        self._nft(house, "add table inet loss")
        self._nft(house, "add chain inet loss input { type filter hook input priority 0; }")
        self._nft(house, f"add rule inet loss input numgen random mod 100 < {percent} drop")

    def lose_nothing(self, house: House) -> None:
        """Let all packets through again."""
        self._nft(house, "delete table inet loss")

    @staticmethod
    def _nft(house: House, rule: str) -> None:
        run("ip", "netns", "exec", house.namespace, "nft", rule)

    # --- certificates, genesis, broker ------------------------------------------------------

    def _certify(self) -> None:
        now = datetime.now(UTC)
        self.ca = self.folder / "ca"
        make_root(self.ca, "demo-street", now=now)
        make_request(self.folder / "broker.key", self.folder / "broker.csr", "broker")
        request = (self.folder / "broker.csr").read_bytes()
        _, certificate = issue(self.ca, request, now=now, hosts=(BRIDGE,))
        (self.folder / "broker.pem").write_bytes(certificate)
        for house in self.houses:
            house.folder.mkdir()
            self.give_certificate(house.folder, house.name)

    def give_certificate(self, folder: Path, name: str) -> None:
        """Make key and certificate of a device in `folder`."""
        make_request(folder / "tls.key", folder / "tls.csr", name)
        request = (folder / "tls.csr").read_bytes()
        _, certificate = issue(self.ca, request, now=datetime.now(UTC), renew=True)
        (folder / "tls.pem").write_bytes(certificate)

    @property
    def root(self) -> Path:
        """The street's root certificate."""
        return self.ca / "root.crt"

    def _found(self) -> None:
        nodes, meters = [], []
        for house in self.houses:
            seal, vote = enrol_keys(house.state, lambda: os.urandom(32))
            nodes.append(
                Node(
                    name=house.name,
                    role="meter",
                    sealing_key=bytes(seal.verify_key),
                    voting_key=bytes(vote.verify_key),
                    votes=1,
                )
            )
            meters.append(
                Meter(
                    name=house.name,
                    incarnation=1,
                    sealing_key=bytes(seal.verify_key),
                    fuse_ma=60_000,
                    nominal_mv=230_000,
                    mains_clamps=1,
                )
            )
        self.genesis = Genesis(
            name="demo-street",
            interval_s=1800,
            zone="UTC",
            currency="EUR",
            nodes=tuple(nodes),
            meters=tuple(meters),
        )
        for house in self.houses:
            house.config.write_text(
                (CONFIG + (BY_TLS if self.program == "mosquitto" else PLAIN)).format(
                    name=house.name, folder=house.folder, broker=BRIDGE, port=PORT, ca=self.root
                )
            )
            join_network(house.state, self.genesis, load(house.config))

    def start_broker(self) -> None:
        """Start the broker; what it kept is there unless it was deleted."""
        (self.folder / "data").mkdir(exist_ok=True)
        config = self.folder / "broker.conf"
        text = BROKER if self.program == "mosquitto" else NATS
        config.write_text(text.format(port=PORT, broker=BRIDGE, ca=self.root, folder=self.folder))
        names = [house.name for house in self.houses]
        (self.folder / "acl").write_text(acl_text("demo-street", names))
        (self.folder / "acl").chmod(0o600)
        with (self.folder / "broker.log").open("ab") as log:
            self.broker = subprocess.Popen(
                ("ip", "netns", "exec", f"{self.tag}b", self.program, "-c", str(config)),
                stdout=log,
                stderr=log,
            )

    def end_broker(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the broker, or kill it."""
        if self.broker is not None and self.broker.poll() is None:
            self.broker.send_signal(how)
            self.broker.wait(20)

    # --- what has to hold -------------------------------------------------------------------

    def heights(self) -> dict[str, int]:
        """How many blocks are sealed, by house."""
        return {house.name: len(house.sealed()) for house in self.houses}

    def goes_on(self, blocks: int = 2) -> None:
        """Wait until every meter has sealed some more."""
        before = self.heights()
        until(
            lambda: all(self.heights()[name] >= height + blocks for name, height in before.items()),
            f"sealing stands still at {before}: {self._logs('meter')}",
        )

    def is_certified(self) -> None:
        """Wait until what is sealed now is certified everywhere; hold the sets together."""
        sealed = {
            house.name: {
                height: digest(take_apart(message).payload)
                for height, message in enumerate(house.sealed(), start=1)
            }
            for house in self.houses
        }

        def all_certified() -> bool:
            for house in self.houses:
                certified = house.certified(self)
                for name, blocks in sealed.items():
                    if len(certified.get(name, {})) < len(blocks):
                        return False
            return True

        until(all_certified, f"not all is certified: {[h.shown() for h in self.houses]}")
        for house in self.houses:
            certified = house.certified(self)
            for name, blocks in sealed.items():
                for height, block_hash in blocks.items():
                    assert certified[name][height] == block_hash, (house.name, name, height)

    def is_good(self) -> None:
        """A stranger with the genesis alone finds every account good."""
        for house in self.houses:
            verdict = verify(house.state, Known(genesis=self.genesis.encode()))
            assert verdict.verdict == "good", (house.name, verdict)

    def _logs(self, what: str) -> str:
        return "\n".join(house.log(what)[-600:] for house in self.houses)
