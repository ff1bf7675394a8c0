"""Keeps what a node knows of the network: chains, batches, votes, evidence, in one SQLite file.

`perform` returns once all of it is on the card, or raises and none of it counts (one transaction,
write-ahead log, synchronous FULL). So what is sent afterwards has been kept.

The file is not trusted with more than the past: whoever puts back an older copy makes this node
ask its peers what it has voted since, before it votes again (the boot rule). All in it can be had
from peers once more. A file that is damaged is put aside, and a new one begun.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from meterd.authority.attestation import CHECKS_ALL, Leaf, open_batch
from meterd.authority.effects import (
    DropBlocks,
    PutAlarm,
    PutBatch,
    PutBlocks,
    PutCertificate,
    PutCertified,
    PutCounters,
    PutEpoch,
    PutEvidence,
    PutPromise,
    PutSeal,
    PutSealed,
    PutStart,
)
from meterd.authority.messages import COUNTED_FROM_S
from meterd.authority.snapshot import HeldBefore, Sequence, Snapshot
from meterd.authority.witness import HASHES_KEPT, Vote
from meterd.errors import BlockRejectedError, ConfigError, DeniedError, EncodingError, StorageError
from meterd.ledger.encoding import take_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Sequence_

    from meterd.authority.attestation import Batch
    from meterd.authority.effects import Load, Record
    from meterd.authority.roster import ChainId

SCHEMA = 4
BLOCKS_BYTES_MAX = 48_000  # of one answer, with room for what spells it
BATCHES_AT_ONCE = 64
BUSY_S = 5.0  # `meterctl` may be reading
CACHE_KB = 1000
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE chain (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, incarnation INTEGER NOT NULL,
    certified INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0,
    UNIQUE (name, incarnation));
CREATE TABLE block (
    chain INTEGER NOT NULL, height INTEGER NOT NULL, hash BLOB NOT NULL, sealed BLOB NOT NULL,
    received_s INTEGER NOT NULL, checks INTEGER NOT NULL,
    PRIMARY KEY (chain, height)) WITHOUT ROWID;
CREATE INDEX unsealed ON block (chain, height) WHERE checks >= 8;
CREATE TABLE batch (
    kid BLOB NOT NULL, number INTEGER NOT NULL, hash BLOB NOT NULL, epoch INTEGER NOT NULL,
    closing INTEGER NOT NULL, message BLOB NOT NULL, beside INTEGER NOT NULL,
    PRIMARY KEY (kid, number, hash)) WITHOUT ROWID;
CREATE INDEX closing ON batch (epoch, kid) WHERE closing > 0;
CREATE TABLE leaf (
    chain INTEGER NOT NULL, height INTEGER NOT NULL, kid BLOB NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (chain, height, kid, number)) WITHOUT ROWID;
CREATE TABLE vote (
    chain INTEGER NOT NULL, kid BLOB NOT NULL, number INTEGER NOT NULL, epoch INTEGER NOT NULL,
    height INTEGER NOT NULL, hash BLOB NOT NULL, checks INTEGER NOT NULL,
    PRIMARY KEY (chain, kid)) WITHOUT ROWID;
CREATE TABLE evidence (id BLOB PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE certificate (
    chain INTEGER NOT NULL, height INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (chain, height)) WITHOUT ROWID;
CREATE TABLE counter (name TEXT PRIMARY KEY, counter INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE promise (
    meter TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, height INTEGER NOT NULL) WITHOUT ROWID;
"""
_ADDED = "CREATE TABLE IF NOT EXISTS alarm (meter TEXT PRIMARY KEY, message BLOB) WITHOUT ROWID"
"""Later than the schema's number: an older meterd leaves it alone, and a newer one makes it."""


class StoreDamagedError(StorageError):
    """The database cannot be read: put it aside, begin a new one, and follow the boot rule."""


@contextmanager
def _refusing(path: str) -> Iterator[None]:
    """Turn what SQLite says into what the caller decides by."""
    try:
        yield
    except sqlite3.OperationalError as error:
        said = str(error)
        if "readonly" in said or "unable to open" in said:
            raise DeniedError(
                f"cannot open the store {path}: {said}", hint="give its folder to this user"
            ) from error
        raise StorageError(
            f"the store {path}: {said}", hint="the card may be full or failing"
        ) from error
    except sqlite3.DatabaseError as error:
        raise StoreDamagedError(
            f"the store {path} is damaged: {error}", hint="it is put aside at the next start"
        ) from error


class Store:
    """One node's database. Not for two tasks at once, nor two threads."""

    def __init__(self, path: str, *, genesis: bytes, node: str) -> None:
        """Open the database, or make it; ":memory:" for one that is lost.

        Raises:
            ConfigError: It is another network's or another node's.
            DeniedError: It may not be written.
            StorageError: The card is full or failed.
            StoreDamagedError: It cannot be read.
        """
        self._path, self.genesis = path, genesis
        with _refusing(path):
            self._db = sqlite3.connect(
                path, isolation_level=None, timeout=BUSY_S, check_same_thread=False
            )
        try:
            with _refusing(path):
                self._begin(node)
            self._chains = self._known_chains()
        except BaseException:
            self.close()
            raise

    def _begin(self, node: str) -> None:
        run = self._db.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA cache_size = -{CACHE_KB}")
        (version,) = run("PRAGMA user_version").fetchone()
        if version == 0:
            run("BEGIN IMMEDIATE")
            for statement in _TABLES.split(";"):
                if statement.strip():
                    run(statement)
            put = "INSERT INTO meta VALUES (?, ?)"
            run(put, ("genesis", self.genesis))
            run(put, ("node", node))
            run(put, ("starts", 0))
            run(put, ("epoch", 1))
            run(f"PRAGMA user_version = {SCHEMA}")
            run("COMMIT")
        elif version != SCHEMA:
            raise ConfigError(
                f"the store {self._path} has schema {version}, this meterd knows {SCHEMA}",
                hint="install the meterd that wrote it, or move it away: peers have it all",
            )
        run(_ADDED)
        meta = dict(run("SELECT key, value FROM meta").fetchall())
        if (meta.get("genesis"), meta.get("node")) != (self.genesis, node):
            raise ConfigError(
                f"the store {self._path} is of node {meta.get('node')} in another network, or of "
                "another node",
                hint="move it away: a new one is filled by the peers",
            )

    def _known_chains(self) -> dict[ChainId, int]:
        return {
            (name, incarnation): number
            for number, name, incarnation in self._rows("SELECT id, name, incarnation FROM chain")
        }

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _rows(self, query: str, *values: object) -> list[Any]:
        with _refusing(self._path):
            return self._db.execute(query, values).fetchall()

    # --- writing ----------------------------------------------------------------------------

    def begin_start(self, wall_s: int = 0) -> int:
        """Number this start, durably, above all before; return the number.

        By the seconds since 2020, where the clock is right: a store that was lost begins with no
        number, and its node's messages must not count as replayed.
        """
        now = max(0, wall_s - COUNTED_FROM_S)
        with _refusing(self._path):
            self._db.execute(
                "UPDATE meta SET value = max(value + 1, ?) WHERE key = 'starts'", (now,)
            )
            (starts,) = self._db.execute("SELECT value FROM meta WHERE key = 'starts'").fetchone()
        return int(starts)

    def perform(self, records: Sequence_[Record]) -> None:
        """Make all of `records` durable, or none.

        Raises:
            StorageError: The card is full or failed; nothing of it counts.
        """
        run = self._db.execute
        with _refusing(self._path):
            run("BEGIN IMMEDIATE")
            try:
                for record in records:
                    self._put(record)
                run("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    run("ROLLBACK")
                self._chains = self._known_chains()
                raise

    def _put(self, record: Record) -> None:
        run, many = self._db.execute, self._db.executemany
        match record:
            case PutBlocks():
                chain = self._chain(record.chain)
                many(
                    "INSERT OR IGNORE INTO block VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (chain, height, block_hash, sealed, record.received_s, record.checks)
                        for height, block_hash, sealed in record.blocks
                    ],
                )
            case DropBlocks():
                chain = self._chain(record.chain)
                run("DELETE FROM block WHERE chain = ? AND height >= ?", (chain, record.first))
            case PutSealed():
                run(
                    "UPDATE block SET checks = checks & 7 "
                    "WHERE chain = ? AND height <= ? AND checks >= 8",
                    (self._chain(record.chain), record.height),
                )
            case PutSeal():
                run(
                    "UPDATE block SET sealed = ?, checks = checks & 7 "
                    "WHERE chain = ? AND height = ?",
                    (record.sealed, self._chain(record.chain), record.height),
                )
            case PutBatch():
                self._put_batch(record.batch, record.message, beside=record.beside)
            case PutCertified():
                run(
                    "UPDATE chain SET certified = ?, epoch = ? WHERE id = ?",
                    (record.height, record.epoch, self._chain(record.chain)),
                )
            case PutEvidence():
                run(
                    "INSERT OR IGNORE INTO evidence VALUES (?, ?)",
                    (record.evidence_id, record.evidence),
                )
            case PutCertificate():
                run(
                    "INSERT OR IGNORE INTO certificate VALUES (?, ?, ?)",
                    (self._chain(record.chain), record.height, record.certificate),
                )
            case PutCounters():
                many("INSERT OR REPLACE INTO counter VALUES (?, ?)", record.counters)
            case PutStart():
                run("UPDATE meta SET value = ? WHERE key = 'starts'", (record.number,))
            case PutEpoch():
                run("UPDATE meta SET value = ? WHERE key = 'epoch'", (record.epoch,))
            case PutPromise():
                run("INSERT OR REPLACE INTO promise VALUES (?, ?, ?)", record)
            case PutAlarm():
                run("INSERT OR REPLACE INTO alarm VALUES (?, ?)", record)

    def _put_batch(self, batch: Batch, message: bytes, *, beside: bool) -> None:
        run, many = self._db.execute, self._db.executemany
        header, kid = batch.header, batch.kid
        run(
            "INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET beside = min(beside, excluded.beside)",
            (kid, header.number, batch.hash, header.epoch, header.closing, message, beside),
        )
        if beside:
            return
        leaves = [(self._chain(leaf.chain), leaf) for leaf in batch.leaves]
        many(
            "INSERT OR IGNORE INTO leaf VALUES (?, ?, ?, ?)",
            [(chain, leaf.height, kid, header.number) for chain, leaf in leaves],
        )
        many(
            "INSERT OR REPLACE INTO vote VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (chain, kid, header.number, header.epoch, leaf.height, leaf.block_hash, leaf.checks)
                for chain, leaf in leaves
            ],
        )

    def _chain(self, chain_id: ChainId) -> int:
        number = self._chains.get(chain_id)
        if number is None:
            cursor = self._db.execute(
                "INSERT INTO chain (name, incarnation) VALUES (?, ?) ON CONFLICT DO UPDATE SET "
                "name = name RETURNING id",
                chain_id,
            )
            (number,) = cursor.fetchone()
            self._chains[chain_id] = number
        return number

    # --- reading ----------------------------------------------------------------------------

    def load(self, load: Load) -> tuple[bytes, ...]:
        """Return sealed blocks of a chain, ascending, as many as a message holds.

        All of those that another history drives out: they are kept nowhere else.
        """
        bytes_max = 1 << 40 if load.purpose[:1] == ("adopt",) else BLOCKS_BYTES_MAX
        found = self.blocks(load.chain, load.first, load.last, bytes_max=bytes_max)
        return tuple(sealed for _, sealed in found)

    def blocks(
        self, chain_id: ChainId, first: int, last: int, *, bytes_max: int = 1 << 40
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (height, sealed) of blocks, ascending, up to `bytes_max`, but the first anyway."""
        with _refusing(self._path):
            found = self._db.execute(
                "SELECT height, sealed FROM block WHERE chain = ? AND height BETWEEN ? AND ? "
                "ORDER BY height",
                (self._chains.get(chain_id, 0), first, last),
            )
            room = bytes_max
            for height, sealed in found:
                room -= len(sealed) + 3
                if room < 0 and height > first:
                    return
                yield height, sealed

    def batches(self, kid: bytes, first: int, last: int) -> list[bytes]:
        """Return messages of a voter's batches, ascending, those beside its sequence too."""
        with _refusing(self._path):
            return [
                message
                for (message,) in self._db.execute(
                    "SELECT message FROM batch WHERE kid = ? AND number BETWEEN ? AND ? "
                    "ORDER BY number LIMIT ?",
                    (kid, first, last, BATCHES_AT_ONCE),
                )
            ]

    def evidence(self, evidence_id: bytes) -> bytes | None:
        """Return evidence by its id, or None."""
        rows = self._rows("SELECT data FROM evidence WHERE id = ?", evidence_id)
        return rows[0][0] if rows else None

    def closings(self, epoch: int) -> list[bytes]:
        """Return a message of each voter that closed an epoch; of one that did so twice, either."""
        rows = self._rows(
            "SELECT message FROM batch WHERE epoch = ? AND closing = 2 GROUP BY kid", epoch
        )
        return [message for (message,) in rows]

    def votes_above(self, chain_id: ChainId, height: int) -> Iterator[tuple[bytes, int, bytes]]:
        """Yield (kid, epoch, message) of batches with a leaf of a chain at `height` or above it.

        By the leaf's height, ascending; not those beside a voter's sequence.
        """
        with _refusing(self._path), closing(self._db.cursor()) as cursor:
            yield from cursor.execute(
                "SELECT leaf.kid, batch.epoch, batch.message FROM leaf JOIN batch "
                "ON batch.kid = leaf.kid AND batch.number = leaf.number "
                "WHERE leaf.chain = ? AND leaf.height >= ? AND NOT batch.beside "
                "ORDER BY leaf.height",
                (self._chains.get(chain_id, 0), height),
            )

    def hash_at(self, chain_id: ChainId, height: int) -> bytes:
        """Return the hash of a block, or no bytes."""
        rows = self._rows(
            "SELECT hash FROM block WHERE chain = ? AND height = ?",
            self._chains.get(chain_id, 0),
            height,
        )
        return rows[0][0] if rows else b""

    def unsealed(self, chain_id: ChainId, height: int) -> bool:
        """Say whether a block's own seal has not been verified: it proves nothing yet."""
        rows = self._rows(
            "SELECT 1 FROM block WHERE chain = ? AND height = ? AND checks >= 8",
            self._chains.get(chain_id, 0),
            height,
        )
        return bool(rows)

    def shown(self, chain: ChainId, height: int) -> bytes | None:
        """Return the certificate that a peer has shown of an order or block, or the next above."""
        rows = self._rows(
            "SELECT data FROM certificate WHERE chain = ? AND height >= ? ORDER BY height LIMIT 1",
            self._chains.get(chain, 0),
            height,
        )
        return rows[0][0] if rows else None

    def snapshot(self, kid: bytes, distributor: ChainId | None) -> Snapshot:
        """Return what this node goes on from; `kid` is its own voting key's id."""
        with _refusing(self._path):
            self._db.execute("BEGIN")  # of one moment: `meterctl` reads while the node writes
            try:
                return self._snapshot(kid, distributor)
            finally:
                self._db.execute("ROLLBACK")

    def _snapshot(self, kid: bytes, distributor: ChainId | None) -> Snapshot:
        run = self._db.execute
        meta = dict(run("SELECT key, value FROM meta").fetchall())
        self._chains = self._known_chains()
        names = {number: chain_id for chain_id, number in self._chains.items()}
        chains, orders_certified, orders_checks = [], 0, CHECKS_ALL
        orders: tuple[bytes, ...] = ()
        for number, certified, epoch in run("SELECT id, certified, epoch FROM chain").fetchall():
            chain_id = names[number]
            if chain_id == distributor:
                orders = tuple(sealed for _, sealed in self.blocks(chain_id, 1, 1 << 62))
                orders_certified = certified
                continue
            own = run(
                "SELECT height FROM vote WHERE chain = ? AND kid = ?", (number, kid)
            ).fetchone()
            chains.append(self._held(chain_id, certified, epoch, own[0] if own else 0))
        votes = tuple(
            (kid, Vote(Leaf(*names[chain], height, block_hash, checks), number, epoch))
            for chain, kid, number, epoch, height, block_hash, checks in run(
                "SELECT chain, kid, number, epoch, height, hash, checks FROM vote ORDER BY number"
            )
        )
        sequences = []
        for (voter,) in run("SELECT DISTINCT kid FROM batch WHERE NOT beside").fetchall():
            sequences.append((voter, self._sequence(voter)))
        closed = frozenset(
            (epoch, voter) for epoch, voter in run("SELECT epoch, kid FROM batch WHERE closing = 2")
        )
        return Snapshot(
            starts=meta["starts"],
            chains=tuple(chains),
            orders=orders,
            orders_certified=orders_certified,
            orders_checks=orders_checks,
            votes=votes,
            sequences=tuple(sequences),
            closed=closed,
            evidence=tuple(data for (data,) in run("SELECT data FROM evidence")),
            counters=tuple(run("SELECT name, counter FROM counter").fetchall()),
            epoch=meta["epoch"],
            locks=self._locks(),
            promises=tuple(run("SELECT meter, incarnation, height FROM promise").fetchall()),
            alarms=tuple(message for (message,) in run("SELECT message FROM alarm")),
        )

    def _locks(self) -> tuple[tuple[int, bytes, Leaf], ...]:
        """Return what voters have locked as they closed epochs, where it is not certified."""
        certified = {
            (name, incarnation): height
            for name, incarnation, height in self._db.execute(
                "SELECT name, incarnation, certified FROM chain"
            )
        }
        return tuple(
            (epoch, kid, leaf)
            for epoch, kid, message in self._db.execute(
                "SELECT epoch, kid, message FROM batch WHERE closing > 0 AND NOT beside"
            )
            for leaf in open_batch(message, self.genesis).leaves
            if leaf.height > certified.get(leaf.chain, 0)
        )

    def _sequence(self, kid: bytes) -> Sequence:
        """Return the end of a voter's own sequence."""
        rows = self._db.execute(
            "SELECT number, hash, epoch, closing FROM batch WHERE kid = ? AND NOT beside "
            "ORDER BY number DESC LIMIT 1",
            (kid,),
        ).fetchone()
        return Sequence(*rows)

    def _held(self, chain_id: ChainId, certified: int, epoch: int, own: int) -> HeldBefore:
        run, number = self._db.execute, self._chains[chain_id]
        (head,) = run("SELECT max(height) FROM block WHERE chain = ?", (number,)).fetchone()
        head = head or 0
        hashes = dict(
            run(
                "SELECT height, hash FROM block WHERE chain = ? AND height > ?",
                (number, max(0, head - HASHES_KEPT)),
            ).fetchall()
        )
        (unsealed,) = run(
            "SELECT min(height) FROM block WHERE chain = ? AND checks >= 8", (number,)
        ).fetchone()
        checks = CHECKS_ALL
        for (passed,) in run(
            "SELECT DISTINCT checks FROM block WHERE chain = ? AND height > ?", (number, own)
        ):
            checks &= passed
        payloads = tuple(
            take_apart(sealed).payload
            for _, sealed in self.blocks(chain_id, max(1, certified), head)
        )
        sealed_to = head if unsealed is None else unsealed - 1
        return HeldBefore(chain_id, hashes, payloads, certified, epoch, checks, sealed_to)


T = TypeVar("T")
UNREADABLE = (
    StoreDamagedError,
    EncodingError,
    BlockRejectedError,
    UnicodeDecodeError,
    TypeError,
    ValueError,
    KeyError,
)


def open_store(
    path: Path, *, genesis: bytes, node: str, use: Callable[[Store], T]
) -> tuple[Store, T, str]:
    """Return the store at `path`, what `use` made of it, and why a damaged one was put aside.

    Raises:
        ConfigError: It is another network's or another node's.
        DeniedError: It may not be written.
        StorageError: The card is full or failed.
    """

    def begun() -> tuple[Store, T]:
        store = Store(str(path), genesis=genesis, node=node)
        try:
            return store, use(store)
        except BaseException:
            store.close()
            raise

    try:
        return *begun(), ""
    except UNREADABLE as error:
        names = (path.with_suffix(f".damaged-{number}") for number in range(1, 1000))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        return *begun(), f"{error}; put aside as {aside.name}"
