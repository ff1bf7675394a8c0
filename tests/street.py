"""A street on disk, as `meterctl` finds it: four who vote and a distributor, each with its state.

The nodes are the real core on real databases, and what one sends the others get at once. One meter
has a whole account; the others' blocks are made by hand. No broker, no process.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from nacl.signing import SigningKey

from meterd.authority.effects import (
    Accuse,
    Assembled,
    Certify,
    Load,
    Loaded,
    Now,
    Persist,
    Received,
    Sealed,
    Send,
    SendBatches,
    SendCertificate,
    SendClosings,
    SendEvidence,
    Tick,
)
from meterd.authority.gossip import Gossip
from meterd.authority.senders import Settings
from meterd.ctl.account import StoredAccount
from meterd.device import proofs
from meterd.device.keys import create_seal, create_vote
from meterd.device.mailbox import INBOX, OUTBOX, Mailbox
from meterd.device.store import Store
from meterd.init import read_genesis
from meterd.ledger.account import Genesis, Meter, Node
from meterd.ledger.block import Block, Clock, Energy
from meterd.ledger.encoding import digest, key_id, seal
from meterd.peer import PEER_FILE, Peer
from tests.accounts import SEED
from tests.rig import MIDNIGHT_S, Rig

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.authority.effects import Effect, Event

KITCHEN, HOUSE, OTHER_HOUSE = "kitchen-12", "house-1", "house-2"
REGULATOR, GRID = "regulator", "grid-co"
ROLES = {KITCHEN: "meter", HOUSE: "meter", OTHER_HOUSE: "meter", REGULATOR: "authority"}
IMPORT = bytes((1, 0, 1, 8, 0, 255))
NAME = "elm-street"
INTERVAL_S = 60
BLOCKS = 4  # that the hand-made meters seal
ROUNDS = 12  # of ticks: questions, answers, attestations, certificates


def key(what: str) -> SigningKey:
    """Return the key called `what`."""
    return SigningKey(SEED if what == f"{KITCHEN} seals" else digest(what.encode()))


def public(what: str) -> bytes:
    return bytes(key(what).verify_key)


def node(name: str, role: str, votes: int) -> Node:
    return Node(
        name=name,
        role=role,
        sealing_key=public(f"{name} seals"),
        voting_key=public(f"{name} votes"),
        votes=votes,
    )


def genesis_of(voters: int = 4) -> Genesis:
    """Return the genesis of a street where so many vote; the rest is there all the same."""
    nodes = [node(name, role, int(at < voters)) for at, (name, role) in enumerate(ROLES.items())]
    meters = [
        Meter(
            name=name,
            incarnation=1,
            sealing_key=public(f"{name} seals"),
            fuse_ma=60_000,
            nominal_mv=230_000,
            mains_clamps=1,
        )
        for name, role in ROLES.items()
        if role == "meter"
    ]
    return Genesis(
        name=NAME,
        interval_s=INTERVAL_S,
        zone="Europe/Paris",
        currency="EUR",
        nodes=(*nodes, node(GRID, "distributor", 0)),
        meters=tuple(meters),
    )


class StreetNode:
    """One device: its folder, its core, its store."""

    def __init__(self, street: Street, name: str) -> None:
        self.street, self.name = street, name
        self.state = street.folder / name
        self.state.mkdir(exist_ok=True)
        (self.state / "genesis.cbor").write_bytes(street.genesis.encode())
        if not (self.state / "seal.key").exists():
            create_seal(self.state, bytes(key(f"{name} seals")))
            create_vote(self.state, bytes(key(f"{name} votes")))
        self.outbox = Mailbox(self.state / "line" / OUTBOX)
        self.inbox = Mailbox(self.state / "line" / INBOX)
        self.store = Store(str(self.state / "peer.db"), genesis=street.genesis.hash, node=name)
        self.store.begin_start()
        voting = key(f"{name} votes")
        self.gossip = Gossip(
            street.genesis,
            name,
            voting,
            nonce=digest(name.encode())[:16],
            snapshot=self.store.snapshot(key_id(bytes(voting.verify_key)), (GRID, 1)),
            settings=Settings(tick_ms=0, digest_ms=1000),
            meter=name if ROLES.get(name) == "meter" else "",
        )

    def feed(self, event: Event) -> None:
        self.perform(self.gossip.step(event, self.street.now))

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist():
                    self.store.perform(effect.records)
                case Send():
                    self.street.publish(self.name, effect.topic, effect.message)
                case Load():
                    self.feed(Loaded(effect, self.store.load(effect)))
                case SendBatches() | SendEvidence() | SendCertificate() | SendClosings():
                    for message in proofs.answers(self.store, effect, self.gossip.roster):
                        self.street.publish(self.name, f"answer/{effect.to}", message)
                case Accuse():
                    proof = proofs.accuse(self.store, effect)
                    if proof is not None:
                        self.feed(Assembled(proof))
                case Certify():
                    self._certify(effect)
                case _:
                    pass

    def _certify(self, effect: Certify) -> None:
        """Keep what the meter process keeps."""
        roster = self.gossip.roster
        made = proofs.certify(self.store, effect, roster)
        if made is not None and effect.chain != roster.distributor:
            (self.state / "certificate").write_bytes(made[1].encode())

    def read_outbox(self) -> None:
        """Take what lies in the outbox, as the peer process does."""
        for letter in sorted(self.outbox.read()):
            if letter.kind == "block":
                self.feed(Sealed(letter.data))

    def show(self) -> Path:
        """Write what the peer process shows, by its own code."""
        heard_ms = time.monotonic_ns() // 1_000_000
        self.gossip.heard = dict.fromkeys(self.street.nodes.keys() - {self.name}, heard_ms)
        broker = SimpleNamespace(connected=True, protocol="5", dropped=0)
        path = self.state / "line" / PEER_FILE
        shell: Any = SimpleNamespace(
            gossip=self.gossip,
            _name=self.name,
            _genesis=self.street.genesis,
            _urls=("mqtts://broker.example:8883",),
            _brokers=[broker],
            _shown=path,
            _dropped=0,
            _logger=logging.getLogger("street"),
        )
        Peer._show(cast("Peer", shell))
        return path


class Street:
    """All of them.

    Attributes:
        folder: Where each node has its state folder, under its name.
        nodes: By name.
        sealed: Sealed blocks of the meters, by name.
    """

    def __init__(self, folder: Path, *, voters: int = 4) -> None:
        """Found the street, or go on with what is in `folder`."""
        self.folder, self.genesis = folder, genesis_of(voters)
        self.mono_ms = 0
        self.queue: list[tuple[str, str, bytes]] = []
        self.sealed: dict[str, list[bytes]] = {}
        self.nodes = {name: StreetNode(self, name) for name in (*ROLES, GRID)}

    @property
    def now(self) -> Now:
        return Now(self.mono_ms, MIDNIGHT_S + 86_400, synchronised=True)

    def state(self, name: str) -> Path:
        return self.nodes[name].state

    def publish(self, sender: str, topic: str, message: bytes) -> None:
        self.queue.append((sender, topic, message))

    def settle(self, rounds: int = ROUNDS) -> None:
        """Let time pass until all have said what they have to say."""
        for _ in range(rounds):
            self.mono_ms += 2500
            for each in self.nodes.values():
                each.feed(Tick())
            while self.queue:
                sender, topic, message = self.queue.pop(0)
                to = topic.partition("/")[2]
                for name, each in self.nodes.items():
                    if name != sender and (not to or to == name):
                        each.feed(Received(sender, message))

    def meter(self) -> None:
        """Let the kitchen's meter keep a real account, and the others seal a few blocks."""
        state = self.state(KITCHEN)
        for stream in ("samples", "events", "blocks"):
            (state / stream).mkdir(exist_ok=True)
        rig = Rig(state)
        rig.start(MIDNIGHT_S)
        rig.rows(50)
        rig.stop()
        account = StoredAccount(state)
        self.seal(KITCHEN, [each.message for each in account.blocks])
        for name in (HOUSE, OTHER_HOUSE):
            self.seal(name, [self.sign(block) for block in chain(self.genesis, name, BLOCKS)])

    def seal(self, name: str, messages: list[bytes]) -> None:
        self.sealed.setdefault(name, []).extend(messages)
        for message in messages:
            self.nodes[name].feed(Sealed(message))

    def sign(self, block: Block) -> bytes:
        return seal(block.encode(), key(f"{block.meter} seals"), self.genesis.hash)

    def show(self) -> None:
        for each in self.nodes.values():
            each.show()

    def close(self) -> None:
        for each in self.nodes.values():
            each.store.close()


def chain(genesis: Genesis, name: str, number: int, *, uj: int = 7_200_000_000) -> list[Block]:
    """Return the first blocks of a meter, of `uj` each."""
    blocks: list[Block] = []
    while len(blocks) < number:
        begin_s = MIDNIGHT_S + INTERVAL_S * len(blocks)
        blocks.append(
            Block(
                genesis=genesis.hash,
                meter=name,
                incarnation=1,
                height=len(blocks) + 1,
                previous=blocks[-1].hash if blocks else genesis.hash,
                order=(0, genesis.hash),
                start_s=begin_s,
                end_s=begin_s + INTERVAL_S,
                clock=Clock(
                    status="S", error_ms=3, boot_id=bytes(16), boot_ms=1000, measured_ms=60_000
                ),
                parameters=bytes(32),
                records=12,
                fingerprint=bytes(32),
                events=3,
                events_digest=bytes(32),
                energy=(Energy(IMPORT, 0, uj * len(blocks), uj * (len(blocks) + 1)),),
                flags=0,
            )
        )
    return blocks


def make_street(folder: Path, *, voters: int = 4) -> Genesis:
    """Leave a street in `folder` whose blocks are all certified; return its genesis."""
    folder.mkdir(parents=True, exist_ok=True)
    street = Street(folder, voters=voters)
    with closing(street):
        street.settle()
        street.meter()
        street.settle()
        street.show()
    return read_genesis(folder / GRID)
