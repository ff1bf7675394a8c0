"""`meterd peer`: the process that has the network. It has no board and no seal.

A thin shell around `authority.gossip`: brokers, outbox and clock give events, the core answers with
effects, and these are performed in order: first one transaction of all that has to be kept, then
what depends on it. Events that wait are taken together, so that one sync serves them all. The first
failure ends the process; a fresh start is the one way back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from meterd.authority.certificate import spell_order
from meterd.authority.effects import (
    Accuse,
    Alarmed,
    Asked,
    Assembled,
    Certify,
    Connected,
    Deliver,
    Load,
    Loaded,
    Now,
    Persist,
    PutBlocks,
    PutPromise,
    Received,
    Sealed,
    Send,
    SendBatches,
    SendCertificate,
    SendClosings,
    SendEvidence,
    Stopping,
    Taken,
    Tell,
    Tick,
)
from meterd.authority.ending import EndUnknownError, end_of
from meterd.authority.gossip import Gossip
from meterd.authority.messages import NONCE_BYTES
from meterd.authority.senders import Settings as Pace
from meterd.claims import REPEAT_MS, spell_claims
from meterd.config import load_node
from meterd.device import proofs
from meterd.device.archive import GENESIS_FILE
from meterd.device.broker import Broker, parse_address
from meterd.device.clock import SystemClock
from meterd.device.keys import load_vote
from meterd.device.mailbox import HEIGHT_BYTES, INBOX, OUTBOX, Mailbox
from meterd.device.store import open_store
from meterd.device.systemd import Manager, journal_logger, log_event
from meterd.errors import ConfigError
from meterd.init import read_genesis
from meterd.ledger.encoding import digest, encode, key_id

if TYPE_CHECKING:
    import argparse

    from meterd.authority.effects import Effect, Event, Record
    from meterd.authority.witness import Held
    from meterd.config import NodeSettings
    from meterd.device.store import Store
    from meterd.ledger.account import Genesis

STATE_DEFAULT = Path("/var/lib/meterd")
EVENTS_WAITING_MAX = 8192  # messages that no turn has taken: past it the newest are dropped
BYTES_WAITING_MAX = 4_000_000  # ... and so many bytes of them
EVENTS_AT_ONCE = 256  # taken in one turn, with one sync
TURN_S = 0.1  # between two ticks while something waits for its time, or for an answer
IDLE_S = 1.0  # ... and while nothing does
KEPT_S_MAX = 3.0  # what nothing rests on is kept within so long
GATHER_MS_MAX = 250  # so long a message waits for others, and at most half a tick
ROWS_KEPT_MAX = 2048
OUTBOX_S = 1.0
QUESTION_BYTES = NONCE_BYTES + 2 * HEIGHT_BYTES
NO_BROKER_S = 60.0  # without any: shorter is a restart, of it or of ours
OUTBOX_FILES_MAX = 128  # blocks lie there until they are certified, 64 of them; and questions
SHOWN_S = 2.0
PEER_FILE = "peer.json"
SHOWN_MODE = 0o644  # brokers and chains are no secret on their own device; all else of the line is
STATUS_CONTEXT = "meterd/status/v1"
LEVELS = (logging.INFO, logging.WARNING, logging.ERROR)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterd peer`."""
    parser.epilog = """examples:
  meterd peer --config /etc/meterd/meterd.toml
  meterd peer --config grid-co.toml --state ./grid-co     (a node without a meter)
"""
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="settings")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(os.environ.get("STATE_DIRECTORY") or STATE_DEFAULT),
        metavar="DIR",
        help="where genesis, key and store are (default: $STATE_DIRECTORY, else /var/lib/meterd)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the node until it is stopped; returns the exit code."""
    logger = journal_logger()
    settings = load_node(arguments.config)
    state: Path = arguments.state
    if not (state / GENESIS_FILE).exists():
        raise ConfigError(
            f"there is no {GENESIS_FILE} in {state}",
            hint="copy the network's there, for this user to read: a device's meter has it in"
            f" {STATE_DEFAULT}",
        )
    genesis = read_genesis(state)
    peer = Peer(state, settings, genesis, logger)
    try:
        asyncio.run(peer.run())
    finally:
        peer.close()
    sys.stderr.flush()
    return 0


def _status(name: str, *, online: bool) -> bytes:
    return encode([STATUS_CONTEXT, name, int(online)])


def _end(gossip: Gossip, held: Held) -> dict[str, int | str | None]:
    """Return where a revoked chain ends, or why that is not known yet; no store can tell."""
    enrolled = gossip.roster.enrolled(held.chain_id)
    if not enrolled.revoked or enrolled.closed:
        return {"end_height": None, "end_unknown": ""}
    try:
        end = end_of(gossip, held)
    except EndUnknownError as error:
        return {"end_height": None, "end_unknown": str(error)}
    if end.elsewhere:
        return {"end_height": None, "end_unknown": "another history of it is about to be taken"}
    return {"end_height": end.height, "end_unknown": ""}


def _rows(record: Record) -> int:
    return len(record.blocks) if isinstance(record, PutBlocks) else 1


def _rests_on_store(effect: Effect) -> bool:
    """Say whether an effect must not be done before all is durable, or reads what is kept."""
    if isinstance(effect, Send):
        return effect.topic in {"attest", "evidence"}
    if isinstance(effect, Persist):
        return any(isinstance(record, PutPromise) for record in effect.records)
    return isinstance(
        effect,
        (Load, SendBatches, SendEvidence, SendCertificate, SendClosings, Accuse, Certify, Taken),
    )


class Peer:
    """One node's shell.

    Attributes:
        gossip: Its core.
    """

    def __init__(
        self, state: Path, settings: NodeSettings, genesis: Genesis, logger: logging.Logger
    ) -> None:
        """Open store and brokers' settings; `run` comes next.

        Raises:
            ConfigError: Genesis, key and settings do not fit each other.
            StorageError: The store cannot be used.
        """
        network, name = settings.network, settings.name
        if not network.brokers:
            raise ConfigError(
                "network.brokers is empty: there is nobody to talk to",
                hint='set it, such as ["mqtts://broker.example:8883"]',
            )
        key = load_vote(state)
        self._name, self._logger, self._genesis = name, logger, genesis
        self._manager = Manager()
        self._clock = SystemClock(settings.clock.trust)
        path = Path(network.store) if network.store else state / "peer.db"
        distributor = next(
            ((node.name, 1) for node in genesis.nodes if node.role == "distributor"), None
        )

        def go_on(store: Store) -> Gossip:
            stamp = self._clock.stamp()
            store.begin_start(stamp.wall_ms // 1000 if stamp.status == "S" else 0)
            return Gossip(
                genesis,
                name,
                key,
                nonce=os.urandom(NONCE_BYTES),
                snapshot=store.snapshot(key_id(bytes(key.verify_key)), distributor),
                settings=Pace(tick_ms=network.tick_ms, digest_ms=network.digest_ms),
                meter=name if settings.metered else "",
            )

        self._store, self.gossip, damaged = open_store(
            path, genesis=genesis.hash, node=name, use=go_on
        )
        known = self.gossip.voting_keys(name)
        if known and bytes(key.verify_key) not in known:
            log_event(
                logger,
                logging.ERROR,
                "voting_key_unknown",
                name=name,
                reason="neither genesis nor an order in force here names it for this node",
                hint="put back this node's own key, unless an order that names this one is to come",
            )
        if damaged:
            log_event(logger, logging.ERROR, "store_damaged", reason=damaged)
        named = network.line or os.environ.get("METERD_LINE", "")
        line = Path(named) if named else state / "line"
        self._outbox, self._inbox = Mailbox(line / OUTBOX), Mailbox(line / INBOX)
        self._shown = line / PEER_FILE
        self._events: deque[Event] = deque()
        self._bytes = self._dropped = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self._offered: dict[str, bytes] = {}
        self._kept: list[Record] = []
        self._kept_rows = 0
        self._kept_late = False
        self._kept_timer: asyncio.TimerHandle | None = None
        self._timer_ms: int | None = None
        self._topics = f"m/{genesis.name}"
        self._urls = network.brokers
        self._brokers = [self._broker(url, settings) for url in network.brokers]
        self._expired = set[str]()  # brokers whose certificate, or ours for them, has expired
        self._reached_s = time.monotonic()
        self._claimed: tuple[frozenset[str], float] = (frozenset(), 0.0)

    def _broker(self, url: str, settings: NodeSettings) -> Broker:
        network = settings.network
        paths = [Path(p) if p else None for p in (network.ca, network.certificate, network.key)]
        tls = url.startswith("mqtts:")
        address = parse_address(
            url,
            ca=paths[0] if tls else None,
            certificate=paths[1] if tls else None,
            key=paths[2] if tls else None,
        )
        topics = [f"{self._topics}/+/{kind}" for kind in ("block", "attest", "digest", "alarm")]
        topics += [f"{self._topics}/+/evidence", f"{self._topics}/+/fetch/{self._name}"]
        topics.append(f"{self._topics}/+/answer/{self._name}")
        self._status = f"{self._topics}/{self._name}/status"
        return Broker(
            address,
            client_id=f"{self._genesis.name}.{self._name}",
            subscriptions=topics,
            will=(self._status, _status(self._name, online=False)),
            birth=(self._status, _status(self._name, online=True)),
            deliver=self._deliver,
            tell=self._broker_tells,
            draw=random.random,
            gather_s=min(network.tick_ms / 2, GATHER_MS_MAX) / 1000,
        )

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    # --- events -----------------------------------------------------------------------------

    def _put(self, event: Event) -> None:
        length = len(event.message) if isinstance(event, Received) else 0
        full = len(self._events) >= EVENTS_WAITING_MAX or self._bytes + length > BYTES_WAITING_MAX
        if full and length:
            self._dropped += 1
            return
        self._bytes += length
        self._events.append(event)
        self._wake.set()

    def _deliver(self, topic: str, payload: bytes) -> None:
        parts = topic.split("/")
        if len(parts) >= 4:  # noqa: PLR2004 - m/<network>/<from>/<kind>
            self._put(Received(parts[2], payload))

    def _broker_tells(self, event: str, fields: dict[str, str]) -> None:
        level = logging.INFO if event == "broker_connected" else logging.WARNING
        log_event(self._logger, level, event, **fields)
        if event == "broker_connected":
            self._expired.discard(fields["host"])
            self._put(Connected())
        elif "expired" in fields.get("reason", ""):
            self._expired.add(fields["host"])

    def _now(self) -> Now:
        stamp = self._clock.stamp()
        return Now(time.monotonic_ns() // 1_000_000, stamp.wall_ms // 1000, stamp.status == "S")

    # --- tasks ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Talk with the neighbours until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._stop)
        log_event(
            self._logger,
            logging.INFO,
            "peer_started",
            name=self._name,
            network=self._genesis.name,
            voters=len(self.gossip.committee.voters),
            quorum=self.gossip.committee.quorum,
        )
        bell = self._outbox.listen()
        loop.add_reader(bell, self._rung, bell)
        async with asyncio.TaskGroup() as tasks:
            others = [
                tasks.create_task(broker.run(), name=f"broker {number}")
                for number, broker in enumerate(self._brokers)
            ]
            others.append(tasks.create_task(self._beat(), name="beat"))
            self._manager.ready()
            await self._work()
            await self._perform(self.gossip.step(Stopping(), self._now()))
            await self._keep()
            for broker in self._brokers:  # a good end has no will that would say so
                broker.publish(self._status, _status(self._name, online=False), retain=True)
            for task in others:
                task.cancel()
        loop.remove_reader(bell)
        bell.close()

    def _stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def _rung(self, bell: object) -> None:
        import socket

        assert isinstance(bell, socket.socket)  # noqa: S101 - `run` registers it
        self._outbox.silence(bell)
        self._read_outbox()

    async def _beat(self) -> NoReturn:
        next_outbox = next_shown = 0.0
        while True:
            now = time.monotonic()
            if now >= next_outbox:
                next_outbox = now + OUTBOX_S
                self._read_outbox()
            if now >= next_shown:
                next_shown = now + SHOWN_S
                self._show()
                self._claim(now)
            self._put(Tick())
            self._manager.watchdog()
            await asyncio.sleep(self._pause_s())

    def _claim(self, now_s: float) -> None:
        """Say to our meter what it cannot see: that there is no broker, or why."""
        if any(broker.connected for broker in self._brokers):
            self._reached_s = now_s
        claims = {"no_broker"} if now_s - self._reached_s >= NO_BROKER_S else set[str]()
        claims |= {"certificate_expired"} if self._expired else set()
        before, said_s = self._claimed
        if claims == before and (not claims or now_s - said_s < REPEAT_MS / 1000):
            return
        self._claimed = frozenset(claims), now_s
        self._inbox.put("claims-peer", spell_claims(claims))
        self._inbox.ring()

    def _pause_s(self) -> float:
        """Return how long to sleep until the next tick; batches have a timer of their own."""
        return TURN_S if self.gossip.busy else IDLE_S

    def _read_outbox(self) -> None:
        """Take what the meter process offers; each once, since it lies there until certified."""
        there = set[str]()
        for letter in sorted(self._outbox.read(OUTBOX_FILES_MAX)):
            there.add(letter.name)
            mark = digest(letter.data)
            known = self._offered.get(letter.name) == mark and letter.kind != "question"
            if known and not self._wants(letter.name):
                continue
            self._offered[letter.name] = mark
            if letter.kind == "block":
                self._put(Sealed(letter.data))
            elif letter.kind == "alarm":
                self._put(Alarmed(letter.name, letter.data))
            elif letter.kind == "question":
                self._outbox.remove(letter.name)
                if len(letter.data) != QUESTION_BYTES:
                    continue
                nonce, held = letter.data[:NONCE_BYTES], letter.data[NONCE_BYTES:]
                height, order = held[:HEIGHT_BYTES], held[HEIGHT_BYTES:]
                heights = int.from_bytes(height, "big"), int.from_bytes(order, "big")
                self._put(Asked(self._name, nonce, *heights))
        self._offered = {name: mark for name, mark in self._offered.items() if name in there}

    def _wants(self, name: str) -> bool:
        """Say whether what was offered before is to be taken again.

        A block that was dropped, as those before it had to come first; or the last certified one,
        where our meter has not had the certificate. An alarm that came before an order.
        """
        if self.gossip.alarms.wants(name):
            return True
        height = name.partition("-")[2]
        enrolled = self.gossip.roster.newest(self._name)
        held = self.gossip.chains.get((self._name, enrolled.incarnation)) if enrolled else None
        if not height.isdecimal() or held is None:
            return False
        return held.height < int(height) or held.certified == int(height)

    async def _work(self) -> None:
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
            while self._events and not self._stopping:
                effects: list[Effect] = []
                now = self._now()
                for _ in range(min(len(self._events), EVENTS_AT_ONCE)):
                    event = self._events.popleft()
                    if isinstance(event, Received):
                        self._bytes -= len(event.message)
                    effects += self.gossip.step(event, now)
                await self._perform(effects)
                self._set_timer()
                await asyncio.sleep(0)

    def _set_timer(self) -> None:
        """Wake for the next batch; the beat may be asleep for longer."""
        due_ms = self.gossip.batch_ms
        if due_ms is not None and due_ms != self._timer_ms:
            self._timer_ms = due_ms
            left_s = due_ms / 1000 - time.monotonic_ns() / 1_000_000_000
            asyncio.get_running_loop().call_later(max(left_s, 0), self._put, Tick())

    # --- effects ----------------------------------------------------------------------------

    async def _perform(self, effects: list[Effect]) -> None:
        """Keep what has to be kept, in one transaction; then do the rest, in order.

        What others signed, and nothing of ours rests on yet, waits a moment for the next
        transaction: lost with the process, it is as if it had not come, and comes again.
        """
        for effect in effects:
            if isinstance(effect, Persist):
                if not self._kept:
                    self._keep_soon()
                self._kept += effect.records
                self._kept_rows += sum(map(_rows, effect.records))
        if self._kept and (
            any(map(_rests_on_store, effects))
            or self._kept_rows >= ROWS_KEPT_MAX
            or self._kept_late
        ):
            await self._keep()
        for effect in effects:
            match effect:
                case Persist():
                    pass
                case Send():
                    self._publish(effect.topic, effect.message, retain=effect.retain)
                case Load():
                    self._events.append(Loaded(effect, self._store.load(effect)))
                case SendBatches() | SendEvidence() | SendCertificate() | SendClosings():
                    for message in proofs.answers(self._store, effect, self.gossip.roster):
                        self._publish(f"answer/{effect.to}", message)
                case Accuse():
                    proof = proofs.accuse(self._store, effect)
                    if proof is not None:
                        self._events.append(Assembled(proof))
                case Certify():
                    self._certify(effect)
                case Deliver():
                    of = f"{effect.height:012d}" if effect.height else ""
                    name = f"{effect.kind}-{of or digest(effect.message).hex()[:32]}"
                    self._inbox.put(name, effect.message)
                    self._inbox.ring()
                case Taken():
                    self._outbox.remove(effect.name)
                case Tell():
                    self._tell(effect)

    def _keep_soon(self) -> None:
        """Have what is kept from now on made durable within a while, whatever comes."""

        def late() -> None:
            self._kept_late = True
            self._put(Tick())

        self._kept_timer = asyncio.get_running_loop().call_later(KEPT_S_MAX, late)

    async def _keep(self) -> None:
        """Make durable what is kept; the loop reads on meanwhile: cards stall for seconds."""
        records, self._kept, self._kept_rows, self._kept_late = self._kept, [], 0, False
        if self._kept_timer is not None:
            self._kept_timer.cancel()
        if records:
            await asyncio.to_thread(self._store.perform, records)

    def _publish(self, topic: str, message: bytes, *, retain: bool = False) -> None:
        for broker in self._brokers:
            broker.publish(f"{self._topics}/{self._name}/{topic}", message, retain=retain)

    def _certify(self, effect: Certify) -> None:
        roster = self.gossip.roster
        made = proofs.certify(self._store, effect, roster)
        if made is None:
            return
        sealed, certificate = made
        if effect.chain == roster.distributor:
            name = f"order-{effect.height:012d}"
            self._inbox.put(name, spell_order(sealed, certificate))
        else:
            self._inbox.put(f"certificate-{effect.height:012d}", certificate.encode())
        self._inbox.ring()

    def _tell(self, tell: Tell) -> None:
        log_event(self._logger, LEVELS[tell.level], tell.event, **dict(tell.fields))

    # --- what is shown ------------------------------------------------------------------------

    def _show(self) -> None:
        """Write what `meterctl peers` shows; on a tmpfs, and lost with the process."""
        gossip = self.gossip
        now_ms = time.monotonic_ns() // 1_000_000
        committee = gossip.committee
        shown = {
            "name": self._name,
            "network": self._genesis.name,
            "epoch": gossip.epoch,
            "voters": len(committee.voters),
            "quorum": committee.quorum,
            "faults_max": committee.faults_max,
            "votes": gossip.votes,
            "booted": gossip.booted,
            "order": gossip.roster.head.height,
            "brokers": [
                {
                    "url": url,
                    "connected": broker.connected,
                    "protocol": broker.protocol,
                    "dropped": broker.dropped,
                }
                for url, broker in zip(self._urls, self._brokers, strict=True)
            ],
            "peers": [
                {
                    "name": name,
                    "role": node.role,
                    "votes": committee.has(name),
                    "heard_s": (now_ms - gossip.heard[name]) // 1000
                    if name in gossip.heard
                    else None,
                }
                for name, node in sorted(gossip.roster.nodes.items())
                if name != self._name
            ],
            "chains": [
                {
                    "name": chain_id[0],
                    "incarnation": chain_id[1],
                    "height": held.height,
                    "hash": held.head_hash.hex(),
                    "certified_height": held.certified,
                    "attested_by": sorted(
                        gossip.voter_name(kid)
                        for kid, vote in held.votes.items()
                        if vote.leaf.height == held.height and committee.voter(kid)
                    ),
                    "frozen": held.frozen,
                    **_end(gossip, held),
                }
                for chain_id, held in sorted(gossip.chains.items())
            ],
            "accused": [
                {"name": one.name, "role": one.role, "height": one.height}
                for one in gossip.accused.values()
            ],
            "refused": [
                {"name": name, "height": height, "reason": reason}
                for name, height, reason in gossip.refused
            ],
            "alarms": gossip.alarms.shown(),
            "counts": gossip.counts | {"waiting_dropped": self._dropped},
        }
        fresh = self._shown.with_name(f".{PEER_FILE}")
        try:
            fresh.write_text(json.dumps(shown))
            fresh.chmod(SHOWN_MODE)
            fresh.replace(self._shown)
        except OSError as error:
            log_event(self._logger, logging.WARNING, "not_shown", reason=str(error))
