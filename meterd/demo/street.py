"""A street on this machine: its network is founded, its processes run, and some of them fail.

Four houses each have a simulated board on a pseudo terminal, a metering process and a peer process,
as they would in a cellar; a fifth node is the distributor's, without a meter and without a vote.
Every process is a group of its own, so that a Ctrl-C reaches the demo alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.authority.roster import found
from meterd.demo.gates import Gates
from meterd.demo.node import POLLING_MS, Node, found_street
from meterd.device.archive import load_blocks
from meterd.device.control_client import ControlClient
from meterd.device.keys import load_seal
from meterd.errors import AbsentError, MeterdError, UsageError
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import digest, seal, take_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from meterd.demo.broker import Broker
    from meterd.demo.houses import House

DISTRIBUTOR = "grid-co"
START_S_MAX = 30.0
STOP_S_MAX = 15.0
ANSWER_S_MAX = 2.0
FRESH_S_MAX = 6.0  # a peer says what it holds every 2 s
FOLDER_CHARS_MAX = 80  # a socket's path has at most 107, and ours go 25 below the folder
GENESIS_FILE = "genesis.cbor"
_PROGRAM = (sys.executable, "-m", "meterd")

RETAINED = ("head", "status", "alarm")  # of what nodes publish


class NotYetError(MeterdError):
    """What was asked for cannot be done at this moment: try again a little later."""


def is_connected(said: dict[str, Any] | None) -> bool:
    """Return whether a peer process that says this of itself has a broker."""
    return said is not None and any(broker["connected"] for broker in said["brokers"])


class Chain(NamedTuple):
    """What the street holds of one meter's chain, over all peers that answer.

    Attributes:
        height: The newest block that any peer holds.
        seen_by: Voters that attest it, as far as any peer knows.
        certified_height: The newest block that a quorum attests.
        frozen_by: Peers that have frozen it.
    """

    height: int = 0
    seen_by: frozenset[str] = frozenset()
    certified_height: int = 0
    frozen_by: frozenset[str] = frozenset()


class Street:
    """The whole street.

    Attributes:
        genesis: Its network's.
        nodes: By name; the houses first.
        broker: Through which they talk.
        voters: How many nodes vote.
        quorum: How many of them certify.
    """

    def __init__(
        self,
        folder: Path,
        houses: Iterable[House],
        *,
        speed: int,
        broker: Broker,
        held: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Found the network in `folder`; `start` comes next, `stop` last in any case.

        Args:
            folder: For all that it keeps.
            houses: What they play.
            speed: How fast their days pass.
            broker: Not started yet.
            held: Holds interrupts back while a process is started and taken note of.

        Raises:
            UsageError: The folder's path is too long for sockets below it.
            MeterdError: An account cannot be made there.
        """
        if len(str(folder)) > FOLDER_CHARS_MAX:
            raise UsageError(
                f"{folder}: the path has more than {FOLDER_CHARS_MAX} characters",
                hint="name a folder nearer to the root with --keep, or set TMPDIR",
            )
        self.broker, self._speed, self._held = broker, speed, held
        self._processes: list[subprocess.Popen[bytes]] = []
        self._begun = time.monotonic()
        self._statuses: dict[str, dict[str, Any]] = {}
        self._forged: dict[str, tuple[str, bytes, bool]] = {}  # that nobody has heard yet
        self.gates = Gates()
        self.nodes = {
            house.name: Node(name=house.name, house=house, state=folder / house.name)
            for house in houses
        }
        self.nodes[DISTRIBUTOR] = Node(name=DISTRIBUTOR, house=None, state=folder / DISTRIBUTOR)
        for node in self.nodes.values():
            node.gate = self.gates.add(node.name, (broker.host, broker.port))
        # A name of its own: a broker that is shared may still have what another demo published.
        self.genesis = found_street(self.nodes.values(), f"demo-{os.urandom(4).hex()}")
        (folder / GENESIS_FILE).write_bytes(self.genesis.encode())
        committee = found(self.genesis).committee
        self.voters, self.quorum = len(committee.voters), committee.quorum

    @property
    def houses(self) -> list[Node]:
        """The nodes that meter."""
        return [node for node in self.nodes.values() if node.house is not None]

    # --- processes --------------------------------------------------------------------------

    def start(self) -> None:
        """Start broker, boards, peers and meters; return once all of them answer.

        Raises:
            AbsentError: One of them does not.
        """
        with self._held():
            self.broker.start()
        for node in self.houses:
            self._start_board(node)
        self.broker.wait()
        for node in self.houses:
            self._await(node, node.port.exists, node.board)
        self._begun = time.monotonic()
        for node in self.nodes.values():
            self._start_programs(node)
        for node in self.houses:
            self._await(node, lambda node=node: self._answers(node), node.meter)  # type: ignore[misc]
        for node in self.nodes.values():
            self._await(node, lambda node=node: bool(self._peer_says(node)), node.peer)  # type: ignore[misc]

    def _start_board(self, node: Node) -> None:
        assert node.house is not None  # noqa: S101 - `houses` gives no other
        node.board = self._run(
            node,
            "board",
            *("--link", str(node.port), "--layout", "rpict3v1", "--wait"),
            *("--polling-ms", str(POLLING_MS), "--speed", str(self._speed)),
            *node.house.options,
        )

    def _start_programs(self, node: Node) -> None:
        own = ("--config", str(node.config), "--state", str(node.state))
        node.peer = self._run(node, "peer", *own)
        if node.house is not None:
            passed_ms = round((time.monotonic() - self._begun) * 1000 * self._speed)
            epoch_ms = node.house.epoch_ms + passed_ms
            scaled = ("--speed", str(self._speed), "--epoch-ms", str(epoch_ms))
            node.meter = self._run(node, "run", *own, *scaled)
        node.killed = False

    def _run(self, node: Node, *arguments: str) -> subprocess.Popen[bytes]:
        with node.log.open("ab") as said, self._held():
            process = subprocess.Popen(
                (*_PROGRAM, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                process_group=0,
            )
            self._processes.append(process)
        return process

    def _await(
        self, node: Node, there: Callable[[], bool], process: subprocess.Popen[bytes] | None
    ) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not there():
            ended = process is not None and process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise AbsentError(f"{node.name} did not start: {_last_said(node.log)}")
            time.sleep(0.02)

    def _answers(self, node: Node) -> bool:
        """Return whether the meter answers; its socket is there a moment before it listens."""
        try:
            self._statuses[node.name] = ControlClient(node.state / "control").call("Status")
        except AbsentError:
            return False
        return True

    def check(self) -> None:
        """Raise AbsentError if a process has ended that nobody ended."""
        _check("the broker", self.broker.process, self.broker.log)
        for node in self.nodes.values():
            _check(f"the board of {node.name}", node.board, node.log)
            if not node.killed:
                _check(f"the meter of {node.name}", node.meter, node.log)
                _check(f"the peer of {node.name}", node.peer, node.log)

    def stop_meters(self) -> None:
        """Let the meters end; the peers go on with what is sealed."""
        _stop([node.meter for node in self.nodes.values()])

    def stop(self) -> None:
        """Let everything end that still runs."""
        self.stop_meters()
        _stop([node.peer for node in self.nodes.values()])
        if not self.broker.own:
            self._forget()
        _stop([*self._processes, self.broker.process])
        self.gates.close()

    def _forget(self) -> None:
        """Take back what a broker that goes on would keep of us for ever."""
        topics = [f"m/{self.genesis.name}/{name}" for name in self.nodes]
        try:
            self.broker.publish(
                (f"{topic}/{kind}", b"", True) for topic in topics for kind in RETAINED
            )
        except OSError:
            return  # it has gone itself

    # --- what there is to see -----------------------------------------------------------------

    def status(self, node: Node) -> dict[str, Any]:
        """Return what a meter said last of itself."""
        if node.meter is not None and node.meter.poll() is None:
            client = ControlClient(node.state / "control", timeout_s=ANSWER_S_MAX)
            try:
                self._statuses[node.name] = client.call("Status")
            except MeterdError:
                self.check()
        return self._statuses[node.name]

    def peers(self) -> dict[str, dict[str, Any]]:
        """Return by node what each peer process holds, of those that run."""
        return {node.name: said for node in self.nodes.values() if (said := self._peer_says(node))}

    @staticmethod
    def _peer_says(node: Node) -> dict[str, Any]:
        if node.peer is None or node.peer.poll() is not None:
            return {}
        path = node.state / "line" / "peer.json"
        try:
            if time.time() - path.stat().st_mtime > FRESH_S_MAX:
                return {}
            said = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return {}
        return dict(said)

    @staticmethod
    def chain(name: str, peers: dict[str, dict[str, Any]]) -> Chain:
        """Return what `peers` together hold of the chain of the meter `name`."""
        views = [
            (peer, chain)
            for peer, said in peers.items()
            for chain in said["chains"]
            if chain["name"] == name
        ]
        if not views:
            return Chain()
        height = max(chain["height"] for _, chain in views)
        return Chain(
            height,
            frozenset(
                voter
                for _, chain in views
                if chain["height"] == height
                for voter in chain["attested_by"]
            ),
            max(chain["certified_height"] for _, chain in views),
            frozenset(peer for peer, chain in views if chain["frozen"]),
        )

    # --- trouble ------------------------------------------------------------------------------

    def kill(self, name: str) -> str:
        """End a node's processes as a power cut would; return what was done."""
        node = self.nodes[name]
        if node.killed:
            return f"{name} is dead already"
        node.killed = True
        for process in (node.meter, node.peer):
            if process is not None:
                process.kill()
        for process in (node.meter, node.peer):
            if process is not None:
                process.wait()
        return f"{name} lost its power: its processes were killed"

    def revive(self, name: str) -> str:
        """Start a killed node again; return what was done."""
        node = self.nodes[name]
        if not node.killed:
            return f"{name} runs already"
        self._start_programs(node)
        return f"{name} has power again, and asks its neighbours what they hold of it"

    def cut(self, name: str) -> str:
        """Take a node's peer process off the broker; return what was done."""
        if self.gates.is_shut(name):
            return f"{name} is cut off already"
        self.gates.shut(name)
        return f"{name} was cut off from the broker: it goes on metering"

    def join(self, name: str) -> str:
        """Let a node's peer process reach the broker again; return what was done."""
        if not self.gates.is_shut(name):
            return f"{name} is not cut off"
        self.gates.open(name)
        return f"{name} can reach the broker again, once its peer tries"

    def forge(self, name: str) -> str:
        """Publish another block under a house's seal, as a thief of its key would.

        Raises:
            NotYetError: Nothing is certified yet, or the broker is away.
        """
        node = self.nodes[name]
        height = self.chain(name, self.peers()).certified_height
        blocks = load_blocks(node.state, height, height) if height else []
        if not blocks:
            raise NotYetError(f"{name} has no certified block yet")
        block = decode_block(take_apart(blocks[0]).payload)
        half = tuple(
            energy._replace(last_uj=(energy.first_uj + energy.last_uj) // 2)
            for energy in block.energy
        )
        forged = block._replace(energy=half, fingerprint=digest(block.fingerprint))
        message = seal(forged.encode(), load_seal(node.state), self.genesis.hash)
        published = (f"m/{self.genesis.name}/{name}/block", message, False)
        try:
            self.broker.publish([published])
        except OSError as error:
            raise NotYetError(f"the broker cannot be reached: {error}") from error
        self._forged.setdefault(name, published)
        return f"a thief with {name}'s seal published another block {height}, of half the energy"

    def insist(self) -> None:
        """Publish again what was forged and what no node has frozen a chain for.

        Behind a broker's restart a block goes out to nobody, until the nodes are back.
        """
        if not self._forged:
            return
        peers = self.peers()
        for name, published in list(self._forged.items()):
            if self.chain(name, peers).frozen_by:
                del self._forged[name]
            else:
                with suppress(OSError):  # it is away, and will be asked at the next look
                    self.broker.publish([published])

    def restart_broker(self, _name: str = "") -> str:
        """End the broker as a power cut would, and start it again; return what was done."""
        with self._held():
            self.broker.kill()
            self.broker.start()
        return "the broker was killed and started again: what it kept is gone"


def _check(what: str, process: subprocess.Popen[bytes] | None, log: Path) -> None:
    if process is not None and process.poll() is not None:
        raise AbsentError(
            f"{what} ended with {process.returncode}: {_last_said(log)}",
            hint="run `meterd demo --keep DIR` and look at the logs in DIR",
        )


def _stop(processes: Iterable[subprocess.Popen[bytes] | None]) -> None:
    """End processes all at once, those that do not listen by force."""
    running = [process for process in processes if process is not None and process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_S_MAX
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_said(log: Path) -> str:
    if not log.exists():
        return "it said nothing"
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
