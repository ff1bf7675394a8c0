"""What a node knows of its network, as `meterctl` reads it: its peer's store, and what that tells.

The peer process need not run: the store is read by the same core that the process runs, and what
follows from it is the same. What only a running process knows (brokers, who was heard) is in
`peer.json` beside the line, which nothing rests on. Nothing is written; a store that is missing is
not made.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nacl.signing import SigningKey

from meterd.authority.certificate import verify_certificate
from meterd.authority.gossip import Gossip
from meterd.authority.snapshot import NEW
from meterd.ctl.options import add_state
from meterd.ctl.owner import as_owner
from meterd.device import proofs
from meterd.device.store import Store
from meterd.errors import (
    AbsentError,
    BlockRejectedError,
    ConfigError,
    DeniedError,
    EncodingError,
    StorageError,
)
from meterd.init import read_genesis
from meterd.ledger.encoding import take_apart
from meterd.ledger.order import decode_order

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from meterd.authority.certificate import Certificate, Certified
    from meterd.authority.roster import ChainId, Roster
    from meterd.authority.snapshot import Snapshot
    from meterd.authority.witness import Held
    from meterd.ledger.account import Genesis

PEER_FILE = "peer.json"
LINE_SYSTEM = Path("/run/meterd.line")  # where the units have it
SHOWN_BYTES_MAX = 1 << 22  # a city of 10 000 chains; past it, it is not what a peer wrote
STALE_S = 10  # a running peer writes each 2 s
_UNUSED_KEY = bytes(32)  # the core is never stepped here, so it signs nothing


def add_node(parser: argparse.ArgumentParser) -> None:
    """Add `--state`, `--line` and `--store`: where a node keeps what it knows."""
    add_state(parser)
    parser.add_argument(
        "--line",
        type=Path,
        metavar="DIR",
        help="folder of peer.json and outbox, where the settings name one"
        f" (default: $METERD_LINE, DIR/line or {LINE_SYSTEM})",
    )
    parser.add_argument(
        "--store",
        type=Path,
        metavar="FILE",
        help="the peer's database, where the settings name one (default: DIR/peer.db)",
    )


def line_of(options: argparse.Namespace) -> Path:
    """Return the folder of the line."""
    if options.line is not None:
        return Path(options.line)
    if named := os.environ.get("METERD_LINE"):
        return Path(named)
    own: Path = options.state / "line"
    return LINE_SYSTEM if not own.exists() and (LINE_SYSTEM / PEER_FILE).exists() else own


class Shown(NamedTuple):
    """What the peer process has written last.

    Attributes:
        told: Its content; its shape is a peer's, its truth is not checked.
        age_s: How old it is; negative where the clock has been set back since.
    """

    told: dict[str, Any]
    age_s: int

    @property
    def stale(self) -> bool:
        """Whether no running process can have written it."""
        return not -STALE_S <= self.age_s <= STALE_S


class KnownNode:
    """What a node knows of its network.

    Attributes:
        state: The folder of its state.
        line: The folder of outbox and inbox.
        genesis: As stored.
        name: The node's name; empty where nothing here says it.
        store: The peer's database, or None where there is none yet.
        snapshot: What is in it.
        core: The peer's core as it would begin now; never stepped.
        shown: What the peer process has written last, or None.
    """

    def __init__(self, state: Path, line: Path, path: Path) -> None:
        """Read the node in `state`, whose peer's database is `path`.

        Raises:
            ConfigError: There is no account, or genesis and store do not fit each other.
            DeniedError: The store may not be used.
            StorageError: The store cannot be read.
        """
        self.state, self.line, self.store_path = state, line, path
        self.genesis: Genesis = read_genesis(state)
        self.shown = read_shown(line)
        self.name = str(self.shown.told["name"]) if self.shown else ""
        self.store: Store | None = None
        self.snapshot: Snapshot = NEW
        if path.exists():
            self.name = _node_of(path)
            self.store = Store(str(path), genesis=self.genesis.hash, node=self.name)
            distributor = next(
                ((node.name, 1) for node in self.genesis.nodes if node.role == "distributor"), None
            )
            self.snapshot = self.store.snapshot(b"", distributor)
        try:
            self.core = Gossip(
                self.genesis,
                self.name,
                SigningKey(_UNUSED_KEY),
                nonce=b"",
                snapshot=self.snapshot,
            )
        except (BlockRejectedError, EncodingError) as error:
            raise StorageError(
                f"the store {path} does not hold: {error}",
                hint="move it away: a new one is filled by the peers",
            ) from error

    def close(self) -> None:
        """Close the store."""
        if self.store is not None:
            self.store.close()

    @property
    def roster(self) -> Roster:
        """The network as certified so far."""
        return self.core.roster

    def need_store(self) -> Store:
        """Return the store.

        Raises:
            AbsentError: There is none.
        """
        if self.store is None:
            hint = "`meterd peer` makes it as it runs; where the settings name another: --store"
            if not self.roster.committee.voters:
                hint = "a meter that is a network of one has no neighbours"
            raise AbsentError(
                f"there is no database of the peer process: {self.store_path}", hint=hint
            )
        return self.store

    def certificate(self, chain_id: ChainId, height: int) -> tuple[Certificate, Certified] | None:
        """Return the certificate of a block or an order, verified; None if it is not all here.

        Raises:
            StorageError: What the store holds does not verify.
        """
        if self.store is None or height < 1:
            return None
        made = proofs.certificate(self.store, chain_id, height, self.roster)
        if made is None:
            return None
        try:
            return made[1], verify_certificate(made[1], self.roster)
        except BlockRejectedError as error:
            raise StorageError(
                f"the certificate of block {height} of {chain_id[0]} does not hold: {error}",
                hint="move the store away: a new one is filled by the peers",
            ) from error

    def attested_by(self, held: Held, height: int, epoch: int) -> list[str]:
        """Return who attests this height or more of a chain, of the voters of an epoch."""
        committee = self.roster.committee_of(epoch)
        found = []
        for kid, vote in held.votes.items():
            voter = committee.voter(kid) if committee else None
            if voter and vote.epoch == epoch and vote.leaf.height >= height:
                found.append(voter[0])
        return sorted(found)

    def orders(self) -> list[bytes]:
        """Return the orders that the store holds, with their seals, ascending."""
        return list(self.snapshot.orders)

    def latest(self) -> Roster:
        """Return the network as it will be once all orders in the store are certified."""
        roster = self.roster
        for sealed in self.snapshot.orders[roster.head.height :]:
            roster = roster.add(decode_order(take_apart(sealed).payload))
        return roster


@contextmanager
def open_node(options: argparse.Namespace) -> Iterator[KnownNode]:
    """Yield the node that `add_node`'s options name, and have its owner's rights meanwhile."""
    state: Path = options.state
    with as_owner(state):
        node = KnownNode(state, line_of(options), options.store or state / "peer.db")
        try:
            yield node
        finally:
            node.close()


def _node_of(path: Path) -> str:
    """Return whose database it is."""
    try:
        with closing(sqlite3.connect(path)) as database:
            row = database.execute("SELECT value FROM meta WHERE key = 'node'").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise ConfigError(f"{path} is no peer's database", hint="see --store") from error
        raise DeniedError(
            f"cannot read the store {path}: {error}",
            hint="run this as the user of the peer process, or as root",
        ) from error
    except sqlite3.DatabaseError as error:
        raise StorageError(
            f"the store {path} is damaged: {error}",
            hint="the peer process puts it aside at its next start, and its peers fill a new one",
        ) from error
    if not row or not isinstance(row[0], str):
        raise ConfigError(f"{path} does not say whose it is", hint="see --store")
    return row[0]


def read_shown(line: Path) -> Shown | None:
    """Return what the peer process wrote last, if it is there and has its shape.

    That process has the network: what it leaves there may be a pipe without an end, or a link.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(line / PEER_FILE, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            data = file.read(SHOWN_BYTES_MAX + 1)
            written_s = os.fstat(file.fileno()).st_mtime
        told = json.loads(data)
        shaped = isinstance(told, dict) and _SHAPE.keys() <= told.keys()
        if len(data) > SHOWN_BYTES_MAX or not shaped:
            return None
        if not all(isinstance(told[key], kind) for key, kind in _SHAPE.items()):
            return None
        for table, row in _ROWS.items():
            for entry in told[table]:
                if not all(isinstance(entry[key], kind) for key, kind in row.items()):
                    return None
        standing = [one for meter in told["alarms"] for one in meter["standing"]]
        if not all(isinstance(one[key], kind) for one in standing for key, kind in _STANDING):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Shown(_plain(told), int(time.time() - written_s))


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return `value` with texts that a terminal cannot be upset by."""
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else "?" for letter in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value


_NUMBER = (int, type(None))
_STANDING = (("alarm", str), ("number", int), ("since_ms", int))
_SHAPE: dict[str, Any] = {
    "name": str,
    "network": str,
    "epoch": int,
    "voters": int,
    "quorum": int,
    "faults_max": int,
    "votes": bool,
    "booted": bool,
    "order": int,
    "brokers": list,
    "peers": list,
    "chains": list,
    "accused": list,
    "refused": list,
    "alarms": list,
    "counts": dict,
}
_ROWS: dict[str, dict[str, Any]] = {
    "brokers": {"url": str, "connected": bool, "protocol": str, "dropped": int},
    "peers": {"name": str, "role": str, "votes": bool, "heard_s": _NUMBER},
    "chains": {
        "name": str,
        "incarnation": int,
        "height": int,
        "hash": str,
        "certified_height": int,
        "attested_by": list,
        "frozen": str,
        "end_height": _NUMBER,
        "end_unknown": str,
    },
    "accused": {"name": str, "role": str, "height": int},
    "refused": {"name": str, "height": int, "reason": str},
    "alarms": {
        "name": str,
        "incarnation": int,
        "number": int,
        "wall_ms": int,
        "kind": str,
        "alarm": str,
        "untold": int,
        "standing": list,
    },
}
