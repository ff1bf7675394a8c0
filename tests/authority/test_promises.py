from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meterd.authority.attestation import CLOSED, Header, open_batch, sign_batch
from meterd.authority.boot import PROMISE_MS
from meterd.authority.effects import (
    Asked,
    Certify,
    Deliver,
    Persist,
    PutPromise,
    Received,
    Sealed,
    Send,
    Tick,
)
from meterd.authority.judging import WAITING_MS
from meterd.authority.messages import AskHead, Fetch, HeadHeld, Said, open_said, say
from meterd.authority.snapshot import NOTHING
from meterd.ledger.encoding import key_id, seal
from tests.authority.examples import (
    GENESIS,
    GRID,
    HOUSE,
    NEXT_EPOCH,
    OTHER_HOUSE,
    ROSTER,
    chain,
    key,
    leaf,
    ordered,
    public,
    sealed,
)
from tests.authority.said import NONCE
from tests.net import FEEDER, REGULATOR, SEALED, Member, Net

if TYPE_CHECKING:
    from meterd.authority.effects import Effect


def asks(member: Member, by: str = HOUSE, of: str = HOUSE) -> list[Effect]:
    """Let a device ask for the head of a meter."""
    fetch = Fetch(member.name, (AskHead(of, NONCE),))
    said = Said(by, (1 << 62) + len(member.sent), fetch)
    return member.feed(Received(by, say(said, key(f"{by} votes"), GENESIS.hash)))


def told(effects: list[Effect]) -> tuple[int, int] | None:
    """Return incarnation and height that an answer names; None where there is none."""
    for effect in effects:
        if isinstance(effect, Send) and effect.topic == f"answer/{HOUSE}":
            body = open_said(effect.message, ROSTER.peer_key, GENESIS.hash).body
            assert isinstance(body, HeadHeld)
            return body.incarnation, body.height
    return None


def attested(member: Member, since: int = 0) -> int:
    """Return the highest block of `HOUSE` that a node has sent an attestation of, or 0."""
    heights = [
        leaf.height
        for topic, message in member.sent[since:]
        if topic == "attest"
        for leaf in open_batch(message, GENESIS.hash).leaves
        if leaf.chain == (HOUSE, 1)
    ]
    return max(heights, default=0)


@pytest.fixture
def net() -> Net:
    """Everybody knows what it has voted; from then on nothing is passed on."""
    result = Net()
    result.settle(6)
    result.broker = lambda _: []
    return result


@pytest.fixture
def regulator(net: Net) -> Member:
    return net.nodes[REGULATOR]


def later(net: Net, member: Member, ms: int) -> None:
    net.mono_ms += ms
    member.feed(Tick())


# --- what is answered -----------------------------------------------------------------------------


def test_a_block_that_waits_for_those_before_it_is_told_too(regulator: Member) -> None:
    one, two, three = (sealed(each) for each in chain(3))
    assert told(asks(regulator)) == (0, 0)
    regulator.feed(Received(FEEDER, three))
    regulator.feed(Received(FEEDER, two))
    regulator.feed(Received(FEEDER, seal(chain(9)[8].encode(), key("stranger"), GENESIS.hash)))
    assert regulator.gossip.chains[HOUSE, 1].height == 0
    assert told(asks(regulator)) == (1, 3)
    regulator.feed(Received(FEEDER, one))
    assert regulator.gossip.chains[HOUSE, 1].height == 3
    assert told(asks(regulator)) == (1, 3)


def test_a_block_that_waits_in_vain_is_forgotten(net: Net, regulator: Member) -> None:
    regulator.feed(Received(FEEDER, SEALED[2]))
    later(net, regulator, WAITING_MS)
    assert told(asks(regulator)) == (1, 3)
    assert regulator.gossip.judging.waiting
    later(net, regulator, 1)
    assert told(asks(regulator)) == (0, 0)
    assert not regulator.gossip.judging.waiting


def test_what_was_attested_is_told_though_its_blocks_are_lost(regulator: Member) -> None:
    for message in SEALED[:3]:
        regulator.feed(Received(FEEDER, message))
    regulator.store._db.execute("DELETE FROM block WHERE height > 1")
    regulator.start()
    regulator.gossip.booted = True
    assert regulator.gossip.chains[HOUSE, 1].height == 1
    assert told(asks(regulator)) == (1, 3)


def test_only_the_device_of_the_meter_itself_is_answered(regulator: Member) -> None:
    """Else a stranger could keep a meter from being attested, or hold its answers back."""
    for by in (OTHER_HOUSE, FEEDER, GRID):
        assert told(asks(regulator, by)) is None
    assert not regulator.gossip.voting.promises.any


def test_who_does_not_know_what_it_has_voted_does_not_answer() -> None:
    regulator = Net().nodes[REGULATOR]
    assert not regulator.gossip.booted
    assert told(asks(regulator)) is None


def test_who_does_not_vote_does_not_answer(net: Net) -> None:
    assert told(asks(net.nodes[GRID])) is None


# --- what is promised -----------------------------------------------------------------------------


def test_nothing_above_the_answer_is_attested_until_the_promise_lapses(
    net: Net, regulator: Member
) -> None:
    regulator.feed(Received(FEEDER, SEALED[0]))
    assert attested(regulator) == 1
    assert told(asks(regulator)) == (1, 1)
    for message in SEALED[1:3]:
        regulator.feed(Received(FEEDER, message))
    assert regulator.gossip.busy
    later(net, regulator, PROMISE_MS - 1)
    assert attested(regulator) == 1
    later(net, regulator, 1)
    assert attested(regulator) == 3
    assert not regulator.gossip.busy


def test_another_answer_takes_no_promise_back(net: Net, regulator: Member) -> None:
    """A meter may count the first answer still when the second has been given."""
    assert told(asks(regulator)) == (0, 0)
    later(net, regulator, PROMISE_MS - 1)
    regulator.feed(Received(FEEDER, SEALED[0]))
    assert told(asks(regulator)) == (1, 1)
    assert attested(regulator) == 0
    later(net, regulator, 1)
    assert attested(regulator) == 1, "the first has lapsed; what the last names may be attested"
    regulator.feed(Received(FEEDER, SEALED[1]))
    later(net, regulator, PROMISE_MS - 2)
    assert attested(regulator) == 1
    later(net, regulator, 1)
    assert attested(regulator) == 2


def test_endless_questions_delay_and_no_more(net: Net, regulator: Member) -> None:
    for at in range(4 * PROMISE_MS // 500):
        if at % 4 == 0 and at // 4 < len(SEALED):
            regulator.feed(Received(FEEDER, SEALED[at // 4]))
        asks(regulator)
        later(net, regulator, 500)
    assert attested(regulator) == len(SEALED)


def test_the_lowest_promise_outlasts_a_crash(net: Net, regulator: Member) -> None:
    asks(regulator)
    regulator.feed(Received(FEEDER, SEALED[0]))
    assert told(asks(regulator)) == (1, 1)
    regulator.start()
    regulator.gossip.booted = True
    later(net, regulator, 1)
    later(net, regulator, PROMISE_MS - 1)
    assert attested(regulator) == 0
    later(net, regulator, 1)
    assert attested(regulator) == 1


def test_a_promise_to_one_meter_holds_back_no_other(net: Net, regulator: Member) -> None:
    asks(regulator)
    other = sealed(chain(1, OTHER_HOUSE)[0], f"{OTHER_HOUSE} seals")
    regulator.feed(Received(FEEDER, other))
    assert regulator.gossip.chains[OTHER_HOUSE, 1].votes
    regulator.feed(Received(FEEDER, SEALED[0]))
    net.mono_ms += PROMISE_MS
    asks(regulator, OTHER_HOUSE, OTHER_HOUSE)  # one that is given does not hide that one has lapsed
    regulator.feed(Tick())
    assert attested(regulator) == 1


def test_a_promise_is_durable_before_the_answer_leaves_and_once(regulator: Member) -> None:
    effects = asks(regulator)
    kept = [
        isinstance(each, Persist) and PutPromise(HOUSE, 0, 0) in each.records for each in effects
    ]
    assert kept.index(True) < [isinstance(each, Send) for each in effects].index(True)
    assert told(effects) == (0, 0)
    again = asks(regulator)
    assert not any(
        isinstance(record, PutPromise)
        for each in again
        if isinstance(each, Persist)
        for record in each.records
    )


def test_a_promise_outlasts_a_crash(net: Net, regulator: Member) -> None:
    asks(regulator)
    regulator.start()
    regulator.gossip.booted = True
    regulator.feed(Received(FEEDER, SEALED[0]))
    later(
        net, regulator, 60_000
    )  # it took so long to start: how long ago it was given is not known
    later(net, regulator, PROMISE_MS - 1)
    assert attested(regulator) == 0
    later(net, regulator, 1)
    assert attested(regulator) == 1


# --- an epoch's end -------------------------------------------------------------------------------


def closed(member: Member) -> bool:
    return any(
        topic == "attest" and open_batch(message, GENESIS.hash).header.closing == CLOSED
        for topic, message in member.sent
    )


def test_an_epoch_is_closed_once_its_promises_have_lapsed_and_no_new_ones_are_made(
    net: Net, regulator: Member
) -> None:
    asks(regulator)
    after = ordered(NEXT_EPOCH)
    message, proof = after.certified[0]
    regulator.feed(Received(GRID, message))
    regulator.feed(Received(GRID, proof.encode()))
    assert regulator.gossip.roster.committee.epoch == 2
    assert told(asks(regulator)) is None
    later(net, regulator, PROMISE_MS - 1)
    assert not closed(regulator)
    later(net, regulator, 1)
    assert closed(regulator)


# --- what our own meter is given back ------------------------------------------------------------


def given(effects: list[Effect]) -> list[int]:
    return [each.height for each in effects if isinstance(each, Deliver) and each.kind == "block"]


def test_a_meter_is_given_its_own_blocks_whenever_they_turn_up(net: Net) -> None:
    """At its start nobody who had them could be reached."""
    house = net.nodes[HOUSE]
    delivered: list[int] = []
    perform = house.perform

    def watched(effect: Effect) -> None:
        delivered.extend(given([effect]))
        perform(effect)

    house.perform = watched  # type: ignore[method-assign]
    house.feed(Asked(HOUSE, NONCE, 1))
    house.feed(Received(FEEDER, SEALED[0]))
    house.feed(Tick())
    assert delivered == []
    for message in SEALED[1:3]:
        house.feed(Received(FEEDER, message))
    house.feed(Tick())
    assert delivered == [2, 3]
    house.feed(Sealed(SEALED[3]))
    house.feed(Tick())
    assert delivered == [2, 3], "what it has sealed itself it has"
    house.feed(Asked(HOUSE, NONCE, 2))
    assert delivered == [2, 3, 3, 4]


def test_locks_of_each_epoch_bind_and_not_those_of_the_last_alone(net: Net) -> None:
    """The second committee never had the blocks that the first has certified, and closed."""
    member = net.nodes[REGULATOR]
    later_nodes = tuple(
        replace(each, voting_key=public(f"{each.name} votes, 3")) for each in NEXT_EPOCH.nodes
    )
    after = ordered(NEXT_EPOCH, NEXT_EPOCH._replace(epoch=3, nodes=later_nodes))
    for order, proof in after.certified:
        member.feed(Received(GRID, order))
        member.feed(Received(GRID, proof.encode()))
    assert member.gossip.roster.committee.epoch == 3
    lock = leaf(chain(2)[1])
    for epoch, suffix, leaves in ((1, "", [lock]), (2, ", 2", [])):
        for by in (HOUSE, OTHER_HOUSE, FEEDER):
            kid = key_id(public(f"{by} votes{suffix}"))
            last = member.gossip.sequences.get(kid, NOTHING)
            header = Header(epoch, last.number + 1, last.batch_hash, 0, CLOSED)
            signer = key(f"{by} votes{suffix}")
            member.feed(Received(by, sign_batch(header, leaves, signer, GENESIS.hash)))
    assert member.gossip.epoch == 3
    assert not member.gossip.voting.unsure_epoch()
    held = member.gossip.hold((HOUSE, 1))
    assert not member.gossip.voting._locks_adopted(held)
    for message in SEALED[:2]:
        member.feed(Received(FEEDER, message))
    assert member.gossip.voting._locks_adopted(held)
    other = member.gossip.hold((OTHER_HOUSE, 1))
    assert member.gossip.voting._locks_adopted(other), "nobody has locked anything of it"


def test_whoever_does_not_know_the_locks_before_it_does_not_answer(regulator: Member) -> None:
    """It may have entered its epoch on the word of others, and know of no closing one."""
    voting = regulator.gossip.voting
    assert told(asks(regulator)) == (0, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voting, "_locks_adopted", lambda held: held.chain_id != (HOUSE, 1))
        assert told(asks(regulator)) is None


def test_a_meter_is_told_the_orders_that_it_lacks(net: Net) -> None:
    house = net.nodes[HOUSE]
    order, proof = ordered(NEXT_EPOCH).certified[0]
    house.feed(Received(GRID, order))
    house.feed(Received(GRID, proof.encode()))
    for known, told_of in ((0, [1]), (1, [])):
        effects = house.feed(Asked(HOUSE, NONCE, 0, known))
        assert [each.height for each in effects if isinstance(each, Certify)] == told_of
