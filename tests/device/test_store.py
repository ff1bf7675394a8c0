from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from meterd.authority.attestation import CHECKS_ALL, Header, Leaf, open_batch, sign_batch
from meterd.authority.certificate import open_receipt, verify_receipt
from meterd.authority.effects import (
    Certify,
    DropBlocks,
    Load,
    Now,
    Persist,
    PutBatch,
    PutBlocks,
    PutCertified,
    PutCounters,
    PutEpoch,
    PutEvidence,
    Received,
    Tick,
)
from meterd.authority.gossip import Gossip
from meterd.authority.messages import Digest, Said, blocks_message, say
from meterd.authority.senders import Settings
from meterd.device import proofs
from meterd.device import store as module
from meterd.device.store import (
    BATCHES_AT_ONCE,
    BLOCKS_BYTES_MAX,
    Store,
    StoreDamagedError,
    open_store,
)
from meterd.errors import AbsentError, ConfigError, DeniedError, MeterdError, StorageError
from meterd.ledger.encoding import MESSAGE_BYTES_MAX, key_id
from tests.authority.examples import GENESIS, HOUSE, ROSTER, VOTERS, chain, key, sealed
from tests.sim_plan import Plan, Step
from tests.simulator import World

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path

    from meterd.authority.effects import Record
    from tests.sim_nodes import SimNode

NODE = "feeder-1"
CHAIN = (HOUSE, 1)
BLOCKS = chain(200)
SEALED = [sealed(block) for block in BLOCKS]
KIDS = {name: key_id(bytes(key(f"{name} votes").verify_key)) for name in VOTERS}
KID = KIDS[NODE]


def opened(path: Path) -> Store:
    return Store(str(path), genesis=GENESIS.hash, node=NODE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peer.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    made = opened(path)
    yield made
    made.close()


def put_blocks(first: int, last: int, checks: int = CHECKS_ALL) -> PutBlocks:
    return PutBlocks(
        CHAIN,
        tuple((at, BLOCKS[at - 1].hash, SEALED[at - 1]) for at in range(first, last + 1)),
        1_000,
        checks,
    )


def put_batch(by: str, number: int, height: int, *, salt: int = 0, closing: int = 0) -> PutBatch:
    """Return a batch of one leaf; `salt` makes another of the same number."""
    leaf = Leaf(*CHAIN, height, BLOCKS[height - 1].hash, CHECKS_ALL)
    header = Header(1, number, bytes([salt] * 32), 1_000 + salt, closing)
    message = sign_batch(header, [leaf], key(f"{by} votes"), GENESIS.hash)
    return PutBatch(open_batch(message, GENESIS.hash), message)


def content(store: Store) -> dict[str, list[Any]]:
    """Return all that is in a store."""
    tables = ("meta", "chain", "block", "batch", "leaf", "vote", "evidence", "counter")
    return {table: sorted(store._rows(f"SELECT * FROM {table}"), key=repr) for table in tables}


ALL: tuple[Record, ...] = (
    put_blocks(1, 5),
    put_batch(NODE, 1, 3),
    PutCertified(CHAIN, 3, 1),
    PutEvidence(bytes(32), b"evidence"),
    PutCounters((("house-2", 7), ("regulator", 1 << 40))),
    PutEpoch(2),
    DropBlocks(CHAIN, 5),
)

# --- all or nothing -----------------------------------------------------------------------------


class FaultError(Exception):
    """Something goes wrong in the midst of a transaction."""


def test_what_was_performed_is_there_after_a_restart(store: Store, path: Path) -> None:
    store.perform(ALL)
    kept = content(store)
    assert [len(kept[table]) for table in ("block", "batch", "leaf", "vote", "evidence")] == [
        4,
        *(1, 1, 1, 1),
    ]
    store.close()
    again = opened(path)
    assert content(again) == kept
    again.close()


@pytest.mark.parametrize("at", range(len(ALL)))
def test_of_a_transaction_that_fails_nothing_is_kept(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    store.perform((put_blocks(1, 2),))
    before, real, done = content(store), Store._put, []

    def put(self: Store, record: Record) -> None:
        real(self, record)
        done.append(record)
        if len(done) == at + 1:
            raise FaultError

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_put", put)
        with pytest.raises(FaultError):
            store.perform(ALL)
    assert content(store) == before
    another = opened(path)
    assert content(another) == before
    another.close()
    store.perform(ALL)
    assert content(store) != before


def test_a_chain_whose_first_transaction_failed_is_begun_again(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after a failure: but a caller that went on would write to no chain."""

    def fail(_self: Store, _batch: object, _message: bytes, **_: object) -> None:
        raise FaultError

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_put_batch", fail)
        with pytest.raises(FaultError):
            store.perform((put_blocks(1, 2), put_batch(NODE, 1, 1)))
    store.perform((put_blocks(1, 2),))
    store.close()
    again = opened(path)
    assert again.load(Load(CHAIN, 1, 2)) == tuple(SEALED[:2])
    again.close()


def test_a_process_that_ends_in_the_midst_leaves_what_was_before(store: Store, path: Path) -> None:
    """As the file and its log lie on the card at that moment, copied without a word of goodbye."""
    store.perform((put_blocks(1, 2),))
    before = content(store)
    store._db.execute("BEGIN IMMEDIATE")
    store._put(put_blocks(3, 5))
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", path.with_name(f"copy.db{suffix}"))
    store._db.execute("ROLLBACK")
    copy = opened(path.with_name("copy.db"))
    assert content(copy) == before
    copy.close()


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 500, 4096])
def test_a_log_that_is_torn_loses_its_end_and_no_more(store: Store, path: Path, cut: int) -> None:
    store.perform((put_blocks(1, 2),))
    before = content(store)
    size = path.with_name("peer.db-wal").stat().st_size
    store.perform((put_blocks(3, 5),))
    shutil.copyfile(path, path.with_name("copy.db"))
    wal = path.with_name("peer.db-wal").read_bytes()[: size + cut]
    path.with_name("copy.db-wal").write_bytes(wal)
    copy = opened(path.with_name("copy.db"))
    assert content(copy) == before
    copy.close()


def test_a_store_that_somebody_else_writes_is_said(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_S", 0.01)
    other = opened(path)
    store._db.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked"):
        other.perform(ALL)
    store._db.execute("ROLLBACK")
    other.perform(ALL)
    other.close()


def test_a_full_card_is_said_and_keeps_what_was_there(store: Store) -> None:
    store.perform((put_blocks(1, 2),))
    before = content(store)
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="full"):
        store.perform((put_blocks(3, 200),))
    assert content(store) == before


def test_every_start_is_counted(store: Store, path: Path) -> None:
    """A sender's counter begins with it: it may never say the same number twice."""
    assert [store.begin_start() for _ in range(3)] == [1, 2, 3]
    store.close()
    again = opened(path)
    assert again.begin_start() == 4
    assert again.snapshot(KID, None).starts == 4
    again.close()


# --- numbers that a liar may send -----------------------------------------------------------------

SIGNED_MAX = 2**63 - 1


@pytest.mark.parametrize("counter", [SIGNED_MAX, 2**63, 2**64 - 1])
def test_a_message_of_any_counter_is_survived(store: Store, counter: int) -> None:
    """One who has a key says it, and every neighbour's peer process takes it."""
    core = Gossip(GENESIS, NODE, key(f"{NODE} votes"), nonce=bytes(16))
    said = Said("regulator", counter, Digest((0, GENESIS.hash), (), ()))
    message = say(said, key("regulator votes"), GENESIS.hash)
    feed(core, store, Received("regulator", message))
    feed(core, store, Tick(), 1000)


@pytest.mark.parametrize(
    "height",
    [SIGNED_MAX, pytest.param(2**63), pytest.param(2**64 - 1)],
)
def test_a_batch_of_any_height_is_survived(store: Store, height: int) -> None:
    core = Gossip(GENESIS, NODE, key(f"{NODE} votes"), nonce=bytes(16))
    leaf = Leaf(*CHAIN, height, bytes(32), CHECKS_ALL)
    header = Header(1, 1, bytes(32), 1_000, 0)
    message = sign_batch(header, [leaf], key("regulator votes"), GENESIS.hash)
    feed(core, store, Received("regulator", message))
    feed(core, store, Tick(), 1000)


def feed(core: Gossip, store: Store, event: Any, mono_ms: int = 0) -> None:  # noqa: ANN401
    for effect in core.step(event, Now(mono_ms, 1_170_800_000, synchronised=True)):
        if isinstance(effect, Persist):
            store.perform(effect.records)


# --- whose it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("genesis", "node"), [(bytes(32), NODE), (GENESIS.hash, "regulator"), (bytes(32), "x")]
)
def test_a_store_is_refused_that_is_of_another_network_or_node(
    store: Store, path: Path, genesis: bytes, node: str
) -> None:
    store.perform(ALL)
    before = content(store)
    with pytest.raises(ConfigError, match="another network"):
        open_store(path, genesis=genesis, node=node, use=id)
    assert path.exists(), "it is not damaged: nothing is put aside"
    assert content(store) == before


def test_a_store_of_a_later_meterd_is_refused(store: Store, path: Path) -> None:
    store._db.execute("PRAGMA user_version = 9")
    store.close()
    with pytest.raises(ConfigError, match="schema 9"):
        open_store(path, genesis=GENESIS.hash, node=NODE, use=id)


def test_a_store_in_no_folder_is_denied(tmp_path: Path) -> None:
    with pytest.raises(DeniedError, match="unable to open"):
        open_store(tmp_path / "none" / "peer.db", genesis=GENESIS.hash, node=NODE, use=id)


# --- damage ---------------------------------------------------------------------------------------


def filled(path: Path) -> bytes:
    """Return the bytes of a store with something of everything in it, in one file."""
    store = opened(path)
    store.begin_start()
    store.perform(
        (
            put_blocks(1, 200),
            *(put_batch(by, number, number * 9) for by in VOTERS for number in range(1, 20)),
            PutCertified(CHAIN, 170, 1),
            PutCounters(tuple((by, 1 << 33) for by in VOTERS)),
        )
    )
    store.close()
    return path.read_bytes()


def use(store: Store) -> Gossip:
    """Do with a store what a start and a peer's questions do."""
    store.begin_start()
    core = Gossip(
        GENESIS,
        NODE,
        key(f"{NODE} votes"),
        nonce=bytes(16),
        snapshot=store.snapshot(KID, ("grid-co", 1)),
    )
    store.load(Load(CHAIN, 1, 100))
    store.batches(KID, 1, 20)
    proofs.certificate(store, CHAIN, 100, core.roster)
    return core


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda _: b"garbage" * 300, id="is garbage"),
        pytest.param(lambda data: b"x" + data[1:], id="has another first byte"),
        pytest.param(lambda data: bytes(100) + data[100:], id="has a header of zeros"),
        pytest.param(lambda data: data[:100] + bytes(len(data) - 100), id="has a header alone"),
        pytest.param(lambda data: data[:4096], id="has a page alone"),
        pytest.param(lambda data: data[:50], id="is cut in its header"),
        pytest.param(lambda _: b"not a database, " * 4096, id="is a text"),
    ],
)
def test_a_file_is_put_aside_that(path: Path, damage: Any) -> None:  # noqa: ANN401
    damaged = damage(filled(path))
    path.write_bytes(damaged)
    for suffix in ("-wal", "-shm"):
        path.with_name(f"peer.db{suffix}").write_bytes(b"of the damaged one")
    store, _, reason = open_store(path, genesis=GENESIS.hash, node=NODE, use=id)
    assert "put aside as peer.damaged-1" in reason
    assert path.with_suffix(".damaged-1").read_bytes() == damaged
    assert not use(store).sequences
    store.perform(ALL)
    store.close()
    path.write_bytes(damaged)
    store, _, reason = open_store(path, genesis=GENESIS.hash, node=NODE, use=id)
    assert "put aside as peer.damaged-2" in reason
    store.close()


def test_an_empty_file_is_a_new_store(path: Path) -> None:
    path.touch()
    store, _, reason = open_store(path, genesis=GENESIS.hash, node=NODE, use=id)
    assert (reason, set(use(store).chains)) == ("", {("grid-co", 1)})
    store.close()


def surprises(path: Path, data: bytes, *, flips: int) -> set[str]:
    """Return what a start says of files with flipped bytes, other than what it may say."""
    draw, found = random.Random(flips), set[str]()
    for _ in range(40):
        damaged = bytearray(data)
        for _ in range(flips):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        for suffix in ("-wal", "-shm"):
            path.with_name(f"peer.db{suffix}").unlink(missing_ok=True)
        path.write_bytes(damaged)
        store = None
        try:
            store, _, _ = open_store(path, genesis=GENESIS.hash, node=NODE, use=use)
        except (StorageError, ConfigError, AbsentError):
            pass
        except Exception as error:  # noqa: BLE001 - any is one too many
            found.add(f"{type(error).__name__}: {error}")
        finally:
            if store is not None:
                store.close()
    return found


@pytest.mark.parametrize("flips", [30, 300])
def test_a_file_with_flipped_bytes_is_damaged_or_good(path: Path, flips: int) -> None:
    """The store has no digest of its own: a flipped byte within a block is no mistake to SQLite."""
    assert surprises(path, filled(path), flips=flips) == set()


def test_damage_that_is_found_late_is_said_as_damage(path: Path) -> None:
    """In the midst of work: the process ends by it, and the next start puts the file aside."""
    data = bytearray(filled(path))
    half = len(data) // 2
    data[half:] = bytes(half)
    path.write_bytes(data)
    store, _, reason = open_store(path, genesis=GENESIS.hash, node=NODE, use=id)
    assert not reason
    with pytest.raises(StoreDamagedError):
        use(store)
    store.close()


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last"), [(1, 1), (1, 200), (50, 60), (200, 200), (199, 10**9), (201, 300), (9, 3)]
)
def test_an_answer_is_as_many_blocks_as_a_message_holds(
    store: Store, first: int, last: int
) -> None:
    store.perform((put_blocks(1, 200),))
    loaded = store.load(Load(CHAIN, first, last))
    wanted = SEALED[first - 1 : last]
    assert list(loaded) == wanted[: len(loaded)]
    assert bool(loaded) == bool(wanted)
    assert len(blocks_message(loaded)) < min(BLOCKS_BYTES_MAX + 100, MESSAGE_BYTES_MAX)
    if len(loaded) < len(wanted):
        assert len(blocks_message((*loaded, wanted[len(loaded)]))) > BLOCKS_BYTES_MAX


def test_of_blocks_of_which_none_fits_an_answer_is_the_first(store: Store) -> None:
    store.perform((put_blocks(1, 3),))
    assert list(store.blocks(CHAIN, 2, 3, bytes_max=10)) == [(2, SEALED[1])]


def test_of_a_chain_that_is_not_held_nothing_is_loaded(store: Store) -> None:
    assert store.load(Load(("house-9", 1), 1, 10)) == ()
    assert store.batches(KID, 1, 10) == []
    assert store.evidence(bytes(32)) is None
    assert proofs.certificate(store, ("house-9", 1), 1, ROSTER) is None
    assert proofs.certify(store, Certify(CHAIN, 1), ROSTER) is None
    with pytest.raises(AbsentError, match="not certified"):
        proofs.receipt(store, ("house-9", 1), 1, ROSTER)


def test_batches_come_in_bounded_answers(store: Store) -> None:
    every = [put_batch(NODE, number, 1) for number in range(1, BATCHES_AT_ONCE + 30)]
    store.perform(every)
    messages = [record.message for record in every]
    assert store.batches(KID, 1, 10**9) == messages[:BATCHES_AT_ONCE]
    assert store.batches(KID, BATCHES_AT_ONCE + 1, 10**9) == messages[BATCHES_AT_ONCE:]


# --- what counts ----------------------------------------------------------------------------------


def two_of_a_number() -> tuple[PutBatch, PutBatch]:
    """Return two batches of number 2, the one with the lower hash first."""
    pair = [put_batch(NODE, 2, 3, salt=1), put_batch(NODE, 2, 4, salt=2)]
    low, high = sorted(pair, key=lambda put: put.batch.hash)
    return low, high


@pytest.mark.parametrize("swapped", [False, True])
def test_a_batch_beside_the_sequence_does_not_count(store: Store, swapped: bool) -> None:
    """It is kept for evidence; the voter's sequence goes on behind the one that came first."""
    first, beside = two_of_a_number()[:: -1 if swapped else 1]
    store.perform((put_blocks(1, 9), put_batch(NODE, 1, 1), first))
    before = store.snapshot(KID, None)
    store.perform((beside._replace(beside=True),))
    after = store.snapshot(KID, None)
    assert store.batches(KID, 2, 2) == [first.message, beside.message][:: -1 if swapped else 1]
    assert after.votes == before.votes
    assert dict(after.sequences)[KID].batch_hash == first.batch.hash
    assert after == before


def test_a_batch_that_comes_twice_is_kept_once(store: Store) -> None:
    one = put_batch(NODE, 1, 3)
    store.perform((put_blocks(1, 9), one))
    before = content(store)
    store.perform((one,))
    assert content(store) == before


def test_blocks_that_were_dropped_are_replaced(store: Store) -> None:
    store.perform((put_blocks(1, 5), DropBlocks(CHAIN, 3)))
    assert store.load(Load(CHAIN, 1, 9)) == tuple(SEALED[:2])
    store.perform((put_blocks(3, 4),))
    assert store.load(Load(CHAIN, 1, 9)) == tuple(SEALED[:4])


# --- what a node goes on from ---------------------------------------------------------------------

STREETS = {
    "calm": Plan(
        brief=True, seed=1, seconds=8, drop=0.0, crashes=0, partitions=0, broker_deaths=0, jumps=0
    ),
    "lossy": Plan(brief=True, seed=2, seconds=14, drop=0.3, crashes=3, late=0.05),
    "forking": Plan(brief=True, seed=3, seconds=8, meters=3, forkers=(1,), forking=0.5, crashes=1),
    "lying": Plan(brief=True, seed=4, seconds=8, liars=(3,), forkers=(1,), turns=2, crashes=1),
    "changing": Plan(
        brief=True,
        seed=5,
        seconds=9,
        voters=5,
        spares=2,
        drop=0.05,
        script=(
            Step(2000, "change_roster", (("house-4",), ("spare-0",))),
            Step(5000, "change_roster", (("house-3",), ("spare-1",))),
        ),
    ),
}


@pytest.fixture(scope="module", params=sorted(STREETS))
def world(request: pytest.FixtureRequest) -> World:
    """A street after hundreds of events; whoever has crashed is up again."""
    made = World(STREETS[request.param])
    made.start()
    made._arrange()
    length_ms = made.plan.seconds * 1000
    made.play(length_ms)
    made._heal()
    made.play(length_ms + 6000)
    return made


def nodes_of(world: World) -> list[tuple[SimNode, Gossip]]:
    return [
        (node, node.gossip)
        for node in world.nodes.values()
        if node.honest and node.gossip is not None
    ]


def rebuilt(world: World, node: SimNode) -> Gossip:
    snapshot = node.store.snapshot(node.kid, world.oracle.proven.distributor)
    return Gossip(
        world.genesis, node.name, node.key, nonce=bytes(16), snapshot=snapshot, settings=Settings()
    )


def known(core: Gossip, liars: Container[bytes]) -> dict[str, Any]:
    """Return what a node must know again after a restart; of liars, only where their line ends."""
    chains = {}
    for chain_id, held in core.chains.items():
        votes: dict[bytes, Any] = {}
        for kept in (held.votes, held.ahead, held.foreign):
            for kid, vote in kept.items():
                if kid in liars:
                    continue  # which of two batches of a number was seen first is not kept
                votes[kid] = max(vote, votes.get(kid, vote), key=lambda one: one.number)
        if held.height or votes:
            chains[chain_id] = {
                "height": held.height,
                "hash": held.head_hash,
                "certified": held.certified,
                "frozen": held.frozen,
                "votes": votes,
                "own": core.voting._own_vote(held),
                "epoch": held.epoch_at(held.height),
            }
    return {
        "chains": chains,
        "order": core.roster.head,
        "committees": core.roster.committees,
        "epoch": core.epoch,
        "sequences": core.sequences,
        "closed": core.closed,
        "evidence": set(core.evidence),
        "accused": set(core.accused),
    }


def test_a_node_goes_on_from_its_store_as_from_its_memory(world: World) -> None:
    found = nodes_of(world)
    assert len(found) >= 3
    assert sum(len(core.sequences) for _, core in found) > 3
    for node, core in found:
        liars = core.voting._strays
        assert known(rebuilt(world, node), liars) == known(core, liars), node.name


def test_the_streets_are_not_all_alike(world: World) -> None:
    """What a snapshot has to keep is there in one of them at least."""
    cores = [core for _, core in nodes_of(world)]
    assert any(held.certified for core in cores for held in core.chains.values())
    if world.plan.spares:
        assert all(core.epoch >= 2 for core in cores)
    if world.plan.forkers:
        assert any(core.evidence for core in cores)


def test_counters_are_kept_and_never_ahead_of_what_was_heard(world: World) -> None:
    for node, core in nodes_of(world):
        node.feed(Tick())
        kept = dict(node.store.snapshot(node.kid, None).counters)
        assert kept
        assert all(counter <= core._counters[name] for name, counter in kept.items())
        assert set(kept) <= set(core.roster.nodes)


def test_there_is_a_receipt_of_every_certified_block(
    world: World,
) -> None:
    for node, core in nodes_of(world)[:2]:
        quorums = {one.epoch: one.quorum for one in core.roster.committees}
        for chain_id, held in core.chains.items():
            if chain_id == core.roster.distributor:
                continue
            for height in range(1, held.certified + 1):
                receipt = proofs.receipt(node.store, chain_id, height, core.roster)
                vouched = verify_receipt(open_receipt(receipt.encode()), world.genesis)
                assert (vouched.block.meter, vouched.block.height) == (chain_id[0], height)
                assert len(vouched.certified.voters) >= quorums[vouched.certified.epoch]
            with pytest.raises(MeterdError):
                proofs.receipt(node.store, chain_id, held.height + 1, core.roster)


def test_a_store_has_one_block_of_each_height(world: World) -> None:
    for node, core in nodes_of(world):
        for chain_id, held in core.chains.items():
            stored = list(node.store.blocks(chain_id, 1, 1 << 62))
            assert [height for height, _ in stored] == list(range(1, held.height + 1))


def test_a_snapshot_is_of_one_moment(store: Store, path: Path) -> None:
    """Another process reads it while the node writes: no vote of a chain that is not among them."""
    other = Store(str(path), genesis=GENESIS.hash, node=NODE)
    known = other._known_chains

    def written_meanwhile() -> dict[tuple[str, int], int]:
        chains = known()
        store.perform((put_batch(NODE, 1, 3),))
        return chains

    other._known_chains = written_meanwhile  # type: ignore[method-assign]
    assert other.snapshot(KID, None).votes == ()
    other._known_chains = known  # type: ignore[method-assign]
    assert len(other.snapshot(KID, None).votes) == 1
    other.close()
