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

from meterd.authority.attestation import CHECKS_ALL, Leaf, open_batch, prove
from meterd.authority.certificate import (
    Certificate,
    Receipt,
    certificate_of,
    open_certificate,
    votes_evidence,
)
from meterd.authority.effects import (
    DropBlocks,
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
    SendBatches,
    SendCertificate,
    SendClosings,
    SendEvidence,
)
from meterd.authority.messages import COUNTED_FROM_S
from meterd.authority.snapshot import HeldBefore, Sequence, Snapshot
from meterd.authority.witness import HASHES_KEPT, Vote
from meterd.errors import (
    AbsentError,
    BlockRejectedError,
    ConfigError,
    DeniedError,
    EncodingError,
    StorageError,
)
from meterd.ledger.encoding import take_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Sequence_

    from meterd.authority.attestation import Batch
    from meterd.authority.effects import Accuse, Certify, Load, Record
    from meterd.authority.roster import ChainId, Roster

SCHEMA = 3
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
CREATE TABLE certificate (height INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE counter (name TEXT PRIMARY KEY, counter INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE promise (
    meter TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, height INTEGER NOT NULL) WITHOUT ROWID;
"""


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
        self._path, self._genesis = path, genesis
        with _refusing(path):
            self._db = sqlite3.connect(
                path, isolation_level=None, timeout=BUSY_S, check_same_thread=False
            )
            self._begin(node)
        self._chains = self._known_chains()

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
            run(put, ("genesis", self._genesis))
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
        meta = dict(run("SELECT key, value FROM meta").fetchall())
        if (meta.get("genesis"), meta.get("node")) != (self._genesis, node):
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
                    "INSERT OR IGNORE INTO certificate VALUES (?, ?)",
                    (record.height, record.certificate),
                )
            case PutCounters():
                many("INSERT OR REPLACE INTO counter VALUES (?, ?)", record.counters)
            case PutStart():
                run("UPDATE meta SET value = ? WHERE key = 'starts'", (record.number,))
            case PutEpoch():
                run("UPDATE meta SET value = ? WHERE key = 'epoch'", (record.epoch,))
            case PutPromise():
                run("INSERT OR REPLACE INTO promise VALUES (?, ?, ?)", record)

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
        """Return sealed blocks of a chain, ascending, as many as a message holds."""
        return tuple(
            sealed
            for _, sealed in self.blocks(
                load.chain, load.first, load.last, bytes_max=BLOCKS_BYTES_MAX
            )
        )

    def blocks(
        self, chain_id: ChainId, first: int, last: int, *, bytes_max: int = 1 << 40
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (height, sealed) of blocks, ascending, up to `bytes_max`, but the first anyway."""
        with _refusing(self._path), closing(self._db.cursor()) as cursor:
            cursor.execute(
                "SELECT height, sealed FROM block WHERE chain = ? AND height BETWEEN ? AND ? "
                "ORDER BY height",
                (self._chains.get(chain_id, 0), first, last),
            )
            room = bytes_max
            for height, sealed in cursor:
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

    def answers(
        self,
        effect: SendBatches | SendEvidence | SendCertificate | SendClosings,
        roster: Roster,
    ) -> list[bytes]:
        """Return the messages that a peer has asked for; none where they are not here."""
        match effect:
            case SendBatches():
                return self.batches(effect.kid, effect.first, effect.last)
            case SendEvidence():
                evidence = self.evidence(effect.evidence_id)
                return [] if evidence is None else [evidence]
            case SendCertificate():
                assert roster.distributor is not None  # noqa: S101 - whose orders these are
                made = self.certificate(roster.distributor, effect.height, roster)
                return [] if made is None else [made[1].encode()]
            case SendClosings():
                rows = self._rows(  # of one that closed it twice, either
                    "SELECT message FROM batch WHERE epoch = ? AND closing = 2 GROUP BY kid",
                    effect.epoch,
                )
                return [message for (message,) in rows]

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
            for leaf in open_batch(message, self._genesis).leaves
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

    # --- proofs -----------------------------------------------------------------------------

    def _batch(self, kid: bytes, number: int, leaf: Leaf, *, epoch: int = 0) -> Batch | None:
        """Return a voter's batch that has this leaf, in `epoch` or in any; it may lie beside."""
        for (message,) in self._db.execute(
            "SELECT message FROM batch WHERE kid = ? AND number = ?", (kid, number)
        ):
            batch = open_batch(message, self._genesis)
            if leaf in batch.leaves and epoch in {0, batch.header.epoch}:
                return batch
        return None

    def accuse(self, accuse: Accuse) -> bytes | None:
        """Return the evidence that a voter attested two histories; None if it is not all here."""
        with _refusing(self._path):
            low = self._batch(accuse.kid, accuse.low_number, accuse.low)
            high = self._batch(accuse.kid, accuse.high_number, accuse.high)
        if low is None or high is None:
            return None
        between = [
            take_apart(sealed).payload
            for _, sealed in self.blocks(
                accuse.high.chain, accuse.low.height + 1, accuse.high.height
            )
        ]
        return votes_evidence(
            (prove(low, low.leaves.index(accuse.low)), accuse.low),
            (prove(high, high.leaves.index(accuse.high)), accuse.high),
            between,
        )

    def certify(self, certify: Certify, roster: Roster) -> tuple[bytes, Certificate] | None:
        """Return a block with its seal, and its certificate; None if it is not all here."""
        chain_id, height = certify.chain, certify.height
        if not certify.votes:
            return self.certificate(chain_id, height, roster)
        votes = []
        with _refusing(self._path):
            for kid, number, leaf in certify.votes:
                batch = self._batch(kid, number, leaf, epoch=certify.epoch)
                if batch is not None and leaf.block_hash == self._hash_at(chain_id, leaf.height):
                    votes.append((batch, leaf))
        needed = roster.quorums(chain_id, height)[certify.epoch]
        return self._certificate(chain_id, height, votes, needed)

    def _certificate(
        self, chain_id: ChainId, height: int, votes: list[tuple[Batch, Leaf]], needed: int
    ) -> tuple[bytes, Certificate] | None:
        if len(votes) < needed:
            return None
        top = sorted(leaf.height for _, leaf in votes)[needed - 1]
        sealed = [message for _, message in self.blocks(chain_id, height, top)]
        if len(sealed) != top - height + 1 or self._unsealed(chain_id, height):
            return None
        payloads = [take_apart(message).payload for message in sealed]
        with _refusing(self._path):
            place = (*chain_id, height, self._hash_at(chain_id, height))
        return sealed[0], certificate_of(place, votes, payloads[1:], needed)

    def certificate(
        self, chain_id: ChainId, height: int, roster: Roster
    ) -> tuple[bytes, Certificate] | None:
        """Return a block with its seal and certificate, out of the batches nearest above it.

        Args:
            chain_id: Which chain.
            height: The block's height.
            roster: The network as this node knows it.
        """
        quorums = roster.quorums(chain_id, height)
        by_epoch: dict[int, list[tuple[Batch, Leaf]]] = {}
        seen = set[tuple[int, bytes]]()
        with _refusing(self._path):
            found = self._db.execute(
                "SELECT leaf.kid, leaf.height, batch.epoch, batch.message FROM leaf JOIN batch "
                "ON batch.kid = leaf.kid AND batch.number = leaf.number "
                "WHERE leaf.chain = ? AND leaf.height >= ? AND NOT batch.beside "
                "ORDER BY leaf.height",
                (self._chains.get(chain_id, 0), height),
            )
            for kid, _, epoch, message in found:
                if (epoch, kid) in seen or epoch not in quorums:
                    continue
                batch = open_batch(message, self._genesis)
                leaf = next(leaf for leaf in batch.leaves if leaf.chain == chain_id)
                if leaf.block_hash != self._hash_at(chain_id, leaf.height):
                    continue  # of another history
                seen.add((epoch, kid))
                votes = by_epoch.setdefault(epoch, [])
                votes.append((batch, leaf))
                if len(votes) == quorums[epoch]:
                    made = self._certificate(chain_id, height, votes, quorums[epoch])
                    if made is not None:
                        return made
        return self._kept_certificate(chain_id, height) if chain_id == roster.distributor else None

    def _kept_certificate(
        self, distributor: ChainId, height: int
    ) -> tuple[bytes, Certificate] | None:
        """Return an order with the certificate that a peer has shown."""
        rows = self._rows("SELECT data FROM certificate WHERE height = ?", height)
        sealed = [sealed for _, sealed in self.blocks(distributor, height, height)]
        return (sealed[0], open_certificate(rows[0][0])) if rows and sealed else None

    def _unsealed(self, chain_id: ChainId, height: int) -> bool:
        """Say whether a block's own seal has not been verified: it proves nothing yet."""
        rows = self._rows(
            "SELECT 1 FROM block WHERE chain = ? AND height = ? AND checks >= 8",
            self._chains.get(chain_id, 0),
            height,
        )
        return bool(rows)

    def _hash_at(self, chain_id: ChainId, height: int) -> bytes:
        row = self._db.execute(
            "SELECT hash FROM block WHERE chain = ? AND height = ?",
            (self._chains.get(chain_id, 0), height),
        ).fetchone()
        return row[0] if row else b""

    def receipt(self, chain_id: ChainId, height: int, roster: Roster) -> Receipt:
        """Return a block's receipt.

        Raises:
            AbsentError: It is not certified, or not all of its proof is here.
        """
        made = self.certificate(chain_id, height, roster)
        if made is None:
            raise AbsentError(
                f"block {height} of {chain_id[0]} is not certified as far as this node knows",
                hint="see `meterctl head`; ask again once it is",
            )
        orders = []
        for at in range(1, roster.head.height + 1):
            assert roster.distributor is not None  # noqa: S101 - whose orders these are
            order = self.certificate(roster.distributor, at, roster)
            if order is None:
                raise AbsentError(f"the certificate of order {at} is not here")
            orders.append(order)
        return Receipt(made[0], made[1], tuple(orders))


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
    try:
        store = Store(str(path), genesis=genesis, node=node)
        return store, use(store), ""
    except UNREADABLE as error:
        names = (path.with_suffix(f".damaged-{number}") for number in range(1, 1000))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        store = Store(str(path), genesis=genesis, node=node)
        return store, use(store), f"{error}; put aside as {aside.name}"
