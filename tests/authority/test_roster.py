from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from meterd.authority.certificate import add_certified_order, verify_receipt
from meterd.authority.effects import Now
from meterd.authority.roster import (
    WITNESSED_MAX,
    OrderUnknownError,
    Roster,
    boot_answers,
    check_nodes,
    faults_max,
    found,
    quorum,
)
from meterd.authority.witness import judge_block
from meterd.errors import BlockRejectedError
from meterd.ledger.chain import Chain, verify_sealed
from meterd.ledger.encoding import digest, key_id, take_apart
from meterd.ledger.order import Change, Interval, Order, Revoke, RosterChange
from tests.authority.examples import (
    CHANGES,
    ELSEWHERE,
    ENROL,
    FIRST_BLOCK,
    FORK_RESOLVE,
    GENESIS,
    GRID,
    HOUSE,
    MIDNIGHT_S,
    NEXT_EPOCH,
    NEXT_NODES,
    NODES,
    REGISTERS,
    REPLACE,
    REVOKE,
    ROSTER,
    ROTATE,
    SHORTER,
    VOTERS,
    Ordered,
    block,
    certificate,
    key,
    meter,
    node,
    order,
    ordered,
    public,
    receipt,
    rotate,
    sealed,
)

if TYPE_CHECKING:
    from meterd.ledger.block import Block

LATER = Now(0, 2_000_000_000, synchronised=True)


# --- how many -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voters", "faults", "needed", "answers", "answers_without_vote"),
    [
        (0, 0, 1, 0, 0),
        (1, 0, 1, 0, 1),
        (2, 0, 2, 1, 2),
        (3, 0, 2, 2, 2),
        (4, 1, 3, 2, 3),
        (5, 1, 4, 3, 4),
        (6, 1, 4, 3, 4),
        (7, 2, 5, 4, 5),
        (10, 3, 7, 6, 7),
    ],
)
def test_so_many_may_lie_and_so_many_certify(
    voters: int, faults: int, needed: int, answers: int, answers_without_vote: int
) -> None:
    assert (faults_max(voters), quorum(voters)) == (faults, needed)
    assert boot_answers(voters, votes=True) == answers
    assert boot_answers(voters, votes=False) == answers_without_vote


@given(st.integers(1, 200))
def test_two_quorums_share_one_who_does_not_lie(voters: int) -> None:
    needed, faults = quorum(voters), faults_max(voters)
    assert 2 * needed - voters > faults  # any two have so many in common
    assert needed <= voters - faults  # and one can be had without the liars
    assert (faults == 0) == (voters <= WITNESSED_MAX)


@given(st.integers(2, 200), st.booleans())
def test_whoever_answers_at_a_start_meets_every_quorum_of_before(voters: int, votes: bool) -> None:
    """Its own vote was in that quorum, perhaps, but it does not answer itself."""
    others = voters - votes
    met = boot_answers(voters, votes=votes) + (quorum(voters) - votes) - others
    assert met >= 1
    assert boot_answers(voters, votes=votes) <= others


# --- genesis --------------------------------------------------------------------------------------


def test_a_genesis_founds_a_roster() -> None:
    assert ROSTER.committee.voters == tuple((name, public(f"{name} votes")) for name in VOTERS)
    assert (ROSTER.committee.quorum, ROSTER.committee.faults_max) == (3, 1)
    assert (ROSTER.distributor, ROSTER.head.height) == ((GRID, 1), 0)
    assert set(ROSTER.chains) == {(HOUSE, 1), ("house-2", 1), (GRID, 1)}
    assert ROSTER.committee.has("regulator")
    assert not ROSTER.committee.has(GRID)
    assert ROSTER.committee.voter(key_id(public("regulator votes"))) == (
        "regulator",
        public("regulator votes"),
    )
    assert ROSTER.committee.voter(key_id(public("regulator seals"))) is None
    assert ROSTER.peer_key(GRID) == public(f"{GRID} votes")
    assert ROSTER.peer_key("nobody") == b""
    assert ROSTER.newest("nobody") is None


def test_a_network_may_have_no_distributor_and_then_nobody_gives_orders() -> None:
    free = found(replace(GENESIS, nodes=NODES[:-1]))
    assert free.distributor is None
    with pytest.raises(BlockRejectedError, match="nobody gives orders"):
        free.add(order(ENROL))
    with pytest.raises(BlockRejectedError, match="nobody gives orders"):
        add_certified_order(free, sealed(order(ENROL)), certificate(order(ENROL)))
    following = free._roster(RosterChange(2, NEXT_NODES[:-1]), (1, bytes(32)))
    assert following.committee.epoch == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"nodes": (*NODES, node("gas-co", votes=0, role="distributor"))},
            "has one distributor",
            id="has two distributors",
        ),
        pytest.param(
            {"meters": (*GENESIS.meters, meter(GRID))},
            "cannot be a meter too",
            id="has a distributor that meters",
        ),
        pytest.param({"nodes": (*NODES, NODES[0])}, "comes twice", id="names a node twice"),
    ],
)
def test_a_genesis_founds_nothing_that(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockRejectedError, match=message):
        found(replace(GENESIS, **changes))


FEEDER = NODES[0]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        pytest.param(replace(FEEDER, name="Feeder"), "no possible name", id="a name in capitals"),
        pytest.param(replace(FEEDER, name=""), "no possible name", id="no name"),
        pytest.param(replace(FEEDER, role="owner"), "no possible name", id="an unknown role"),
        pytest.param(replace(FEEDER, votes=2), "no possible name", id="two votes"),
        pytest.param(replace(FEEDER, sealing_key=b""), "not 32 bytes", id="no sealing key"),
        pytest.param(replace(FEEDER, voting_key=bytes(31)), "not 32 bytes", id="a short key"),
        pytest.param(replace(FEEDER, voting_key=b""), "votes without", id="a vote without a key"),
        pytest.param(
            replace(FEEDER, voting_key=FEEDER.sealing_key), "comes twice", id="one key for both"
        ),
        pytest.param(
            replace(FEEDER, sealing_key=public("regulator seals")), "twice", id="another's seal"
        ),
        pytest.param(
            replace(FEEDER, voting_key=public("regulator votes")), "twice", id="another's vote"
        ),
        pytest.param(
            replace(FEEDER, voting_key=public("regulator seals")), "twice", id="another's key"
        ),
        pytest.param(replace(FEEDER, name="regulator"), "comes twice", id="another's name"),
    ],
)
def test_nodes_cannot_be_of_whom_one_has(other: Any, message: str) -> None:  # noqa: ANN401
    check_nodes(NODES)
    with pytest.raises(BlockRejectedError, match=message):
        check_nodes((*NODES[1:], other))


def test_voters_are_ascending_and_who_does_not_vote_needs_no_key() -> None:
    silent = replace(FEEDER, votes=0, voting_key=b"")
    also = replace(NODES[1], votes=0, voting_key=b"")
    voters = check_nodes((silent, also, *NODES[:1:-1]))
    assert [name for name, _ in voters] == ["house-2", "regulator"]


# --- orders ---------------------------------------------------------------------------------------

ROTATED = ordered(ROTATE)
ENDED = ordered(REPLACE)
SHORTENED = ordered(SHORTER)
REVOKED = ordered(REVOKE)


def test_enrol_opens_a_chain_that_begins_with_the_order_and_its_registers() -> None:
    network = ordered(ENROL)
    chain = network.roster.open_chain(("house-3", 1))
    at = (1, network.orders[0].hash)
    assert (chain.head.block_hash, chain.head.order, chain.head.energy) == (at[1], at, REGISTERS)
    assert (chain.sealer, chain.head.height) == (public("house-3 seals"), 0)
    assert network.roster.peer_key("house-3") == public("house-3 votes")
    assert not network.roster.committee.has("house-3")
    first = block(name="house-3")._replace(
        previous=at[1],
        order=at,
        energy=tuple(e._replace(first_uj=e.last_uj, last_uj=e.last_uj + 9) for e in REGISTERS),
    )
    assert verify_sealed(sealed(first), chain)[1].head.block_hash == first.hash
    early = network.roster.open_chain(("house-3", 1))
    with pytest.raises(BlockRejectedError, match="before it was enrolled"):
        network.roster.terms(early, (0, GENESIS.hash))


@pytest.mark.parametrize("change", [REPLACE, FORK_RESOLVE], ids=["replace", "fork-resolve"])
def test_a_chain_ends_and_a_new_incarnation_begins_by(change: Change) -> None:
    roster = ordered(change).roster
    assert roster.enrolled((HOUSE, 1)).closed == (7, bytes(32))
    new = roster.enrolled((HOUSE, 2))
    assert roster.newest(HOUSE) == new
    assert (new.opened[0], new.registers, new.closed) == (1, REGISTERS, None)
    assert (new.fuse_ma, new.nominal_mv, new.mains_clamps) == (60_000, 230_000, 1)
    assert new.key_at(1) == public("house-1 seals, 2")
    assert roster.nodes[HOUSE] == ROSTER.nodes[HOUSE]  # a voter's wait for a roster


def test_a_chain_whose_meter_does_not_vote_brings_its_voting_key() -> None:
    again = REPLACE._replace(meter="house-3", sealing_key=public("new"), voting_key=public("says"))
    roster = ordered(ENROL, again).roster
    assert roster.peer_key("house-3") == public("says")
    assert roster.nodes["house-3"].sealing_key == public("new")


def test_a_roster_order_begins_an_epoch_and_the_epoch_before_stays_known() -> None:
    network = ordered(NEXT_EPOCH)
    roster = network.roster
    assert (roster.committee.epoch, roster.committee.from_order) == (2, 1)
    assert roster.committee_of(1) == ROSTER.committee
    assert (roster.committee_of(0), roster.committee_of(3)) == (None, None)
    assert (roster.epoch_at(0), roster.epoch_at(1), roster.epoch_at(9)) == (1, 2, 2)
    assert roster.peer_key(HOUSE) == public("house-1 votes, 2")
    assert network.and_then(ENROL).roster.head.height == 2


def test_an_interval_is_that_of_the_named_order_and_of_the_time() -> None:
    network = SHORTENED.and_then(Interval(60))
    roster = network.roster
    starts = (0, MIDNIGHT_S - 1, MIDNIGHT_S)
    early = ROSTER.open_chain((HOUSE, 1))
    assert early.interval_at(2, MIDNIGHT_S) == 1800  # before these orders were known
    for chain in (roster.open_chain((HOUSE, 1)), roster.terms(early, (0, GENESIS.hash))):
        assert [chain.interval_at(0, at) for at in starts] == [1800, 1800, 1800]
        assert [chain.interval_at(1, at) for at in starts] == [1800, 1800, 900]
        assert [chain.interval_at(2, at) for at in starts] == [1800, 1800, 60]


def test_a_block_is_as_long_as_the_order_that_it_names_has_it() -> None:
    roster = SHORTENED.roster
    chain = roster.open_chain((HOUSE, 1))
    named = (1, SHORTENED.orders[0].hash)
    first = FIRST_BLOCK._replace(start_s=MIDNIGHT_S, end_s=MIDNIGHT_S + 900)
    clock = first.clock._replace(measured_ms=900_000)
    short = first._replace(order=named, clock=clock)
    assert judged(short, "house-1 seals", chain, roster).head.height == 1
    with pytest.raises(BlockRejectedError, match="not flagged partial"):
        judged(short._replace(order=(0, GENESIS.hash)), "house-1 seals", chain, roster)
    long = short._replace(end_s=MIDNIGHT_S + 1800)
    with pytest.raises(BlockRejectedError, match="spans intervals"):
        judged(long, "house-1 seals", chain, roster)


def test_the_distributor_rotates_its_own_key_too() -> None:
    change = rotate(f"{GRID} seals", f"{GRID} seals, 2", name=GRID)
    network = ordered(change).and_then(ENROL, by=f"{GRID} seals, 2")
    assert network.roster.head.height == 2
    with pytest.raises(BlockRejectedError, match="sealed by key"):
        ordered(change).and_then(ENROL, by=f"{GRID} seals")


def test_a_replaced_meter_can_be_revoked_and_a_revoked_one_replaced() -> None:
    gone = ordered(REPLACE, REVOKE).roster
    assert gone.enrolled((HOUSE, 1)).revoked == REVOKE.reason
    assert gone.enrolled((HOUSE, 2)).revoked == ""
    assert ordered(REVOKE, REPLACE).roster.enrolled((HOUSE, 2)).revoked == ""
    assert ordered(REVOKE._replace(reason="")).roster.enrolled((HOUSE, 1)).revoked == "revoked"


def test_who_does_not_meter_any_more_may_leave_the_roster() -> None:
    without = RosterChange(2, tuple(n for n in NEXT_NODES if n.name != HOUSE))
    assert not ordered(REVOKE, without).roster.committee.has(HOUSE)
    with pytest.raises(BlockRejectedError, match="leaves out house-1, which meters"):
        ordered(without)
    with pytest.raises(BlockRejectedError, match="leaves out house-1, which meters"):
        ordered(REPLACE, without)  # its second incarnation does


TAKEN = public("house-2 seals")


@pytest.mark.parametrize(
    ("network", "change", "message"),
    [
        # enrol
        pytest.param(
            ROSTER, ENROL._replace(meter=HOUSE), "has not ended", id="enrols a meter anew"
        ),
        pytest.param(
            ROSTER, ENROL._replace(meter=GRID), "has not ended", id="enrols the distributor"
        ),
        pytest.param(
            ROSTER, ENROL._replace(incarnation=2), "cannot begin with", id="begins at incarnation 2"
        ),
        pytest.param(
            ROSTER, ENROL._replace(sealing_key=TAKEN), "house-2's already", id="enrols a used key"
        ),
        pytest.param(
            ROTATED.roster,
            ENROL._replace(sealing_key=public("house-1 seals")),
            "house-1's already",
            id="enrols a key that was rotated out",
        ),
        # replace
        pytest.param(
            ROSTER, REPLACE._replace(meter="house-9"), "is not enrolled", id="replaces nobody"
        ),
        pytest.param(
            ROSTER, REPLACE._replace(old_incarnation=2), "not enrolled", id="replaces no chain"
        ),
        pytest.param(
            ROSTER, REPLACE._replace(meter=GRID), "has ended, or cannot", id="replaces itself"
        ),
        pytest.param(
            ENDED.roster,
            REPLACE._replace(incarnation=3, sealing_key=public("new")),
            "has ended, or cannot",
            id="replaces what was replaced",
        ),
        pytest.param(
            ROSTER, REPLACE._replace(incarnation=1), "cannot begin with", id="replaces by itself"
        ),
        pytest.param(
            ROSTER, REPLACE._replace(incarnation=3), "cannot begin with", id="skips an incarnation"
        ),
        pytest.param(
            ROSTER, REPLACE._replace(sealing_key=TAKEN), "house-2's already", id="gives a used key"
        ),
        # fork-resolve
        pytest.param(
            ROSTER, FORK_RESOLVE._replace(meter="house-9"), "not enrolled", id="resolves nobody"
        ),
        pytest.param(
            ROSTER, FORK_RESOLVE._replace(meter=GRID), "ended, or cannot", id="resolves itself"
        ),
        pytest.param(
            ROSTER, FORK_RESOLVE._replace(incarnation=1), "cannot begin", id="resolves to the fork"
        ),
        pytest.param(
            ROSTER, FORK_RESOLVE._replace(sealing_key=TAKEN), "already", id="resolves to a used key"
        ),
        pytest.param(
            ROSTER,
            FORK_RESOLVE._replace(sealing_key=public("house-1 seals")),
            "house-1's already",
            id="resolves to the key that forked",
        ),
        # rotate
        pytest.param(
            ROSTER, ROTATE._replace(meter="house-9"), "is not enrolled", id="rotates nobody's key"
        ),
        pytest.param(
            ROSTER,
            rotate("house-1 seals", "house-1 seals"),
            "house-1's already",
            id="rotates to the same key",
        ),
        pytest.param(
            ROSTER,
            rotate("house-1 seals", "house-2 seals"),
            "house-2's already",
            id="rotates to another's key",
        ),
        pytest.param(
            ROSTER,
            rotate("stranger", "house-1 seals, 2"),
            "not signed by the key before",
            id="rotates without consent",
        ),
        pytest.param(
            ROTATED.roster,
            rotate("house-1 seals", "house-1 seals, 3"),
            "not signed by the key before",
            id="rotates with the consent of a key before the last",
        ),
        pytest.param(
            ROSTER,
            rotate("house-1 seals", "house-1 seals, 2", genesis=ELSEWHERE.hash),
            "not signed by the key before",
            id="rotates with a consent for another network",
        ),
        pytest.param(ENDED.roster, ROTATE, r"house-1 \(1\) has ended", id="rotates what ended"),
        pytest.param(REVOKED.roster, ROTATE, r"house-1 \(1\) has ended", id="rotates a revoked"),
        # revoke
        pytest.param(
            ROSTER, REVOKE._replace(meter="house-9"), "is not enrolled", id="revokes nobody's key"
        ),
        pytest.param(
            ROSTER, Revoke(GRID, 1, "tired"), "cannot revoke itself", id="revokes the distributor"
        ),
        # roster
        pytest.param(
            ROSTER, NEXT_EPOCH._replace(epoch=1), "expected epoch 2, got 1", id="repeats an epoch"
        ),
        pytest.param(
            ROSTER, NEXT_EPOCH._replace(epoch=3), "expected epoch 2, got 3", id="skips an epoch"
        ),
        pytest.param(
            ROSTER,
            RosterChange(2, tuple(replace(n, votes=0) for n in NEXT_NODES)),
            "without voters",
            id="takes every vote",
        ),
        pytest.param(
            ROSTER, RosterChange(2, NEXT_NODES[:-1]), "leaves out the distributor", id="forgets it"
        ),
        pytest.param(
            ROSTER,
            RosterChange(2, NEXT_NODES[:1] + NEXT_NODES[2:]),
            "leaves out house-1, which meters",
            id="forgets a meter",
        ),
        pytest.param(
            ROSTER,
            RosterChange(2, (*NEXT_NODES, replace(FEEDER, name="feeder-2", role="owner"))),
            "no possible name, role or vote",
            id="gives an unknown role",
        ),
        # interval
        pytest.param(
            SHORTENED.roster,
            (SHORTER, MIDNIGHT_S - 86_400),
            "before the last change",
            id="changes the interval in the past",
        ),
        pytest.param(ROSTER, (SHORTER, MIDNIGHT_S + 900), "at a midnight", id="changes it by day"),
    ],
)
def test_an_order_is_refused_that(network: Roster, change: Any, message: str) -> None:  # noqa: ANN401
    change, from_s = change if type(change) is tuple else (change, MIDNIGHT_S)
    following = order(change, network, effective_from_s=from_s)
    with pytest.raises(BlockRejectedError, match=message):
        network.add(following)
    with pytest.raises(BlockRejectedError, match=message):
        add_certified_order(network, sealed(following), certificate(following, roster=network))


@pytest.mark.parametrize(
    ("following", "message"),
    [
        pytest.param(order(ENROL)._replace(height=2), "expected order 1", id="skips ahead"),
        pytest.param(order(ENROL)._replace(previous=bytes(32)), "does not link", id="links amiss"),
        pytest.param(order(ENROL)._replace(distributor="gas-co"), "not on grid-co's", id="is gas"),
        pytest.param(order(ENROL)._replace(body=(1,)), "kind enrol", id="is not of its kind"),
    ],
)
def test_an_order_is_not_added_that(following: Order, message: str) -> None:
    with pytest.raises(BlockRejectedError, match=message):
        ROSTER.add(following)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_roster_is_a_value_and_an_order_gives_the_next_one(kind: str) -> None:
    before = found(GENESIS)
    after = before.add(order(CHANGES[kind], before))
    assert before == found(GENESIS)
    assert (after.head.height, len(after.hashes), after.hashes[0]) == (1, 2, GENESIS.hash)
    with pytest.raises(BlockRejectedError, match="expected order 2, got 1"):
        after.add(order(CHANGES[kind], before))


# --- by which order a block is judged -----------------------------------------------------------


def test_a_block_is_judged_by_the_order_that_it_names() -> None:
    roster, chain = ROTATED.roster, ROTATED.roster.open_chain((HOUSE, 1))
    named = (1, ROTATED.orders[0].hash)
    assert roster.terms(chain, (0, GENESIS.hash)).key_at(0) == public("house-1 seals")
    assert roster.terms(chain, named).key_at(1) == public("house-1 seals, 2")
    assert roster.enrolled((HOUSE, 1)).key_at(1) == public("house-1 seals, 2")
    with pytest.raises(OrderUnknownError, match="names order 2"):
        roster.terms(chain, (2, bytes(32)))
    with pytest.raises(BlockRejectedError, match="names another order 1"):
        roster.terms(chain, (1, bytes(32)))
    with pytest.raises(BlockRejectedError, match=r"cellar \(1\) is not enrolled"):
        roster.terms(chain._replace(meter="cellar"), named)
    with pytest.raises(BlockRejectedError, match=r"house-1 \(2\) is not enrolled"):
        roster.open_chain((HOUSE, 2))


def judged(item: Block, by: str, chain: Chain, roster: Roster) -> Chain:
    """Return the chain with a block, as a voter finds before it attests."""
    message = sealed(item, by)
    return judge_block(item, take_apart(message), chain, roster, LATER)[0]


def rotations(times: int) -> Ordered:
    """Return the network after `times` rotations of one meter's key."""
    keys = ["house-1 seals", *(f"house-1 seals, {number}" for number in range(2, 2 + times))]
    network = Ordered()
    for old, new in pairwise(keys):
        network = network.and_then(rotate(old, new))
    return network


def test_three_rotations_and_a_revocation_leave_the_whole_history_good() -> None:
    """Row T7: keys are rotated with overlap and revoked; old records stay verifiable."""
    network = rotations(3)
    named = [(height, network.roster.hashes[height]) for height in range(4)]
    keys = ["house-1 seals", *(f"house-1 seals, {number}" for number in (2, 3, 4))]
    chain = network.roster.open_chain((HOUSE, 1))
    before: Block | None = None
    history: list[tuple[Block, str]] = []
    for at, by in zip(named, keys, strict=True):
        for _ in range(2):  # the first that names the order, and one more
            following = block(before)._replace(order=at)
            chain = judged(following, by, chain, network.roster)
            history.append((following, by))
            before = following
    revoked = network.and_then(REVOKE)
    again = revoked.roster.open_chain((HOUSE, 1))
    for item, by in history:
        _, again = verify_sealed(sealed(item, by), again)
        shown = verify_receipt(receipt(item, network=revoked, by=by), GENESIS)
        assert shown.block_hash == item.hash
    assert again.head == chain.head
    assert before
    for order_named in (named[3], (4, revoked.roster.hashes[4])):
        late = block(before)._replace(order=order_named)
        assert judged(late._replace(order=named[3]), keys[3], chain, network.roster)
        with pytest.raises(BlockRejectedError, match="was revoked: the card was stolen"):
            judged(late, keys[3], chain, revoked.roster)
    with pytest.raises(BlockRejectedError, match="has ended"):
        revoked.and_then(rotate("house-1 seals, 4", "house-1 seals, 5"))


@pytest.mark.parametrize(
    ("network", "by", "message"),
    [
        pytest.param(Ordered(), "stranger", "sealed by key", id="a stranger's"),
        pytest.param(Ordered(), "house-2 seals", "sealed by key", id="another meter's"),
        pytest.param(Ordered(), "house-1 votes", "sealed by key", id="its own, to vote with"),
        pytest.param(Ordered(), "house-1 seals, 2", "sealed by key", id="a later one"),
        pytest.param(ROTATED, "house-1 seals", "sealed by key", id="an expired one"),
        pytest.param(REVOKED, "house-1 seals", "was revoked", id="a revoked one"),
    ],
)
def test_a_block_that_looks_valid_is_refused_whose_key_is(
    network: Ordered, by: str, message: str
) -> None:
    """Row T5: only who is enrolled seals, and with no key but its own of that time."""
    roster = network.roster
    item = FIRST_BLOCK._replace(order=(roster.head.height, roster.head.order_hash))
    with pytest.raises(BlockRejectedError, match=message):
        judged(item, by, roster.open_chain((HOUSE, 1)), roster)


def test_a_rotated_key_still_seals_what_names_the_order_before() -> None:
    chain = ROTATED.roster.open_chain((HOUSE, 1))
    assert judged(FIRST_BLOCK, "house-1 seals", chain, ROTATED.roster).head.height == 1
    with pytest.raises(BlockRejectedError, match="sealed by key"):
        judged(FIRST_BLOCK, "house-1 seals, 2", chain, ROTATED.roster)


@pytest.mark.parametrize("kind", CHANGES)
def test_an_order_is_worth_nothing_in_another_network(kind: str) -> None:
    elsewhere = found(ELSEWHERE)
    here = order(CHANGES[kind])
    there = here._replace(genesis=ELSEWHERE.hash, previous=ELSEWHERE.hash)
    for item, message in (
        (sealed(here), "seal is not"),
        (sealed(here, genesis=ELSEWHERE.hash), "another network's"),
        (sealed(there), "seal is not"),
    ):
        with pytest.raises(BlockRejectedError, match=message):
            add_certified_order(elsewhere, item, certificate(here))


def test_the_keys_of_the_examples_are_all_different() -> None:
    keys = [node.sealing_key for node in NODES] + [node.voting_key for node in NODES]
    assert len({*keys, TAKEN, bytes(key("stranger").verify_key)}) == len(keys) + 1
    assert key("stranger") == SigningKey(digest(b"stranger"))


# --- what is known not to hold --------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(ENROL._replace(voting_key=ENROL.sealing_key), id="its sealing key"),
        pytest.param(ENROL._replace(voting_key=public("regulator votes")), id="a voter's"),
        pytest.param(ENROL._replace(sealing_key=public("regulator votes")), id="a vote to seal"),
        pytest.param(ENROL._replace(sealing_key=public("regulator seals")), id="a node's seal"),
    ],
)
def test_sealing_and_voting_keys_are_nobody_elses_after_an_enrol_order(change: Change) -> None:
    with pytest.raises(BlockRejectedError):
        ordered(change)
