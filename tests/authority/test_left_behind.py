"""What a liar tries to leave honest nodes behind for good: they come after, by what others hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.authority import judging
from meterd.authority.attestation import CLOSED, Leaf
from meterd.authority.certificate import seals_evidence
from meterd.authority.effects import Received
from meterd.authority.senders import PACED, Settings
from meterd.ledger.encoding import seal
from meterd.ledger.order import Interval, Replace, RosterChange
from tests import net as net_kit
from tests.authority.examples import (
    GENESIS,
    GRID,
    HOUSE,
    OTHER_HOUSE,
    REVOKE,
    VOTERS,
    block,
    chain,
    key,
    leaf,
    node,
    order,
    public,
    sealed,
)
from tests.authority.liar_kit import (
    BLOCKS,
    SEALED,
    TWIN,
    Liar,
    end,
    give,
    in_force,
    replaced,
    resolved,
    settled,
    slip,
)
from tests.net import EAGER, FEEDER, REGULATOR, Net

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.net import Post


def test_of_a_frozen_chain_too_what_others_certify_is_fetched() -> None:
    """Proof of two blocks 4 comes to one before the block 4 that the others have certified."""
    net = settled()
    liar = Liar(net, HOUSE)
    late = net.nodes[REGULATOR]
    late.feed(Received(HOUSE, seals_evidence(SEALED[3], sealed(TWIN))))
    slow, net.queue = net.queue, []
    others = (FEEDER, OTHER_HOUSE, GRID)
    liar.says(SEALED[3], *others)
    posts, net.queue = net.queue, []
    for sender, topic, message in posts:
        for name in others:
            if name != sender and topic == "attest":
                net.nodes[name].feed(Received(sender, message))
    liar.votes([leaf(BLOCKS[3])], *others)
    assert {net.nodes[name].certified() for name in others} == {4}
    assert late.certified() == 3
    net.queue = slow + net.queue
    net.settle(6)
    held = late.gossip.chains[HOUSE, 1]
    assert (held.height, held.certified, bool(held.frozen)) == (4, 4, True)
    end(net, resolved(BLOCKS[3]))
    net.settle(6)
    assert in_force(net) == {2}


def test_a_history_that_lost_is_left_where_others_attest_the_other_before_its_blocks_come() -> None:
    net = settled()
    late = net.nodes[REGULATOR]

    def without_blocks(posts: list[Post]) -> Iterable[Post]:
        for sender, topic, message in posts:
            if topic == "block":
                for name, each in net.nodes.items():
                    if name not in {sender, REGULATOR}:
                        each.feed(Received(sender, message))
            elif topic != f"answer/{REGULATOR}" or b"meterd/block/v1" not in message:
                yield sender, topic, message

    net.broker = without_blocks
    net.seal(*SEALED[3:5])
    for _ in range(10):
        net.hop()
    assert late.certified() == 3
    for message in (sealed(TWIN), sealed(block(TWIN))):
        late.feed(Received(HOUSE, message))
    del net.nodes[HOUSE]
    net.broker = lambda posts: posts
    net.settle(6)
    held = late.gossip.chains[HOUSE, 1]
    assert (held.head_hash, held.certified) == (BLOCKS[4].hash, 5)
    end(net, resolved(BLOCKS[4]))
    net.settle(6)
    assert in_force(net) == {2}


def test_who_knows_more_of_a_chain_than_an_order_ends_follows_it_once_it_is_certified() -> None:
    """One alone has all votes on block 4 when the order to end the chain at 3 overtakes them."""
    net = settled()
    knows = net.nodes[FEEDER]
    votes: list[Post] = []

    def slow_votes(posts: list[Post]) -> Iterable[Post]:
        for post in posts:
            if post[1] == "attest" and post[0] != FEEDER:
                votes.append(post)
                knows.feed(Received(post[0], post[2]))
            else:
                yield post

    net.broker = slow_votes
    net.seal(SEALED[3])
    for _ in range(3):
        net.hop()
    assert {name: each.certified() for name, each in net.nodes.items()}[FEEDER] == 4
    assert {each.certified() for name, each in net.nodes.items() if name != FEEDER} == {3}
    net.broker = lambda posts: posts
    slip(net, replaced(BLOCKS[2]))
    for _ in range(6):
        net.hop()
    net.queue += votes
    net.settle(6)
    assert in_force(net) == {1}
    assert [each["certified"] for each in knows.alarms("ended_elsewhere")] == [4]
    give(net, Interval(900))
    net.settle(6)
    assert in_force(net) == {2}
    knows.start()
    net.settle(6)
    assert in_force(net) == {2}
    assert not any(each.gossip.counts for each in net.nodes.values()), "nobody was refused"


@pytest.mark.parametrize("pace", [EAGER, PACED])
def test_an_order_may_end_a_chain_that_the_order_before_it_begins(pace: Settings) -> None:
    net = settled(pace)
    roster = net.nodes.pop(GRID).gossip.roster
    first = order(replaced(BLOCKS[2]), roster)
    begun = roster.add(first)
    opened = begun.enrolled((HOUSE, 2))
    sealing = public(f"{HOUSE} seals, 3")
    again = Replace(
        HOUSE, 2, 0, opened.opened[1], 3, sealing, b"", 60_000, 230_000, 1, opened.registers
    )
    for made in (first, order(again, begun)):
        message = seal(made.encode(), key(f"{GRID} seals"), GENESIS.hash)
        for each in net.nodes.values():
            each.feed(Received(GRID, message))
    net.settle(6)
    assert in_force(net) == {2}


@pytest.mark.parametrize("pace", [EAGER, PACED])
def test_an_order_waits_for_its_base_and_no_longer(pace: Settings) -> None:
    """One holds the other block 4, and gets the certified one behind the order."""
    net = settled(pace)
    liar = Liar(net, HOUSE)
    late = net.nodes.pop(REGULATOR)
    liar.says(SEALED[3], *net.nodes)
    liar.votes([leaf(BLOCKS[3])], *net.nodes)
    net.settle(3)
    late.feed(Received(HOUSE, sealed(TWIN)))
    net.queue.clear()
    net.nodes[REGULATOR] = late

    def without_blocks(posts: list[Post]) -> Iterable[Post]:
        for sender, topic, message in posts:
            if topic != f"answer/{REGULATOR}" or b"meterd/block/v1" not in message:
                yield sender, topic, message

    net.broker = without_blocks
    slip(net, resolved(BLOCKS[3]))
    net.settle(4)
    assert (late.gossip.chains[GRID, 1].height, in_force(net)) == (1, {0})
    net.broker = lambda posts: posts
    net.settle(6)
    assert in_force(net) == {1}


def test_the_distributors_own_node_gives_no_order_that_ends_a_chain_where_it_may_not_end() -> None:
    net = settled()
    give(net, replaced(BLOCKS[2]))  # whose key is good yet
    net.settle(2)
    assert net.nodes[GRID].gossip.chains[GRID, 1].height == 0
    give(net, REVOKE)
    net.settle(6)
    for base in (BLOCKS[1], TWIN._replace(height=3)):
        give(net, replaced(base))
        net.settle(2)
        assert net.nodes[GRID].gossip.chains[GRID, 1].height == 1
    refused = [told for told in net.nodes[GRID].told if told.event == "own_refused"]
    reasons = [dict(told.fields)["reason"] for told in refused]
    assert reasons == [
        "the key of house-1 (1) is not revoked",
        "block 3 of house-1 is certified, the order ends it at 2",
        "another block 3 of house-1 is held here",
    ]
    give(net, replaced(BLOCKS[2]))
    net.settle(4)
    assert in_force(net) == {2}


def test_a_history_is_adopted_whose_votes_are_all_above_our_head() -> None:
    net = settled(PACED)
    late = net.nodes.pop(REGULATOR)
    net.seal(*SEALED[3:6])
    net.settle(6)
    del net.nodes[HOUSE]
    late.feed(Received(HOUSE, sealed(TWIN)))
    net.nodes[REGULATOR] = late
    net.settle(12)
    assert late.certified() == 6


def test_what_two_histories_have_in_common_is_certified_by_votes_for_either() -> None:
    """Two attest block 4, two its twin; below both all four vouch for block 3."""
    net = Net()
    net.settle(6)
    net.broker = lambda _: []
    watcher = net.nodes[GRID]
    for message in (*SEALED[:4], sealed(TWIN)):
        watcher.feed(Received(HOUSE, message))
    for name, here in zip(VOTERS, (BLOCKS[3], BLOCKS[3], TWIN, TWIN), strict=True):
        assert watcher.certified() == (3 if name == VOTERS[3] else 0)
        Liar(net, name).votes([leaf(here)], GRID)
    held = watcher.gossip.chains[HOUSE, 1]
    assert (held.height, held.certified) == (4, 3)


@pytest.mark.parametrize("length", [60, 150, 300])
def test_a_history_is_adopted_however_long(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_kit, "HOPS_MAX", length)  # it is fetched a few blocks at a time
    blocks = chain(3 + length)
    net = settled()
    liar = Liar(net, HOUSE)
    late = net.nodes.pop(REGULATOR)
    for each in blocks[3:]:
        liar.says(sealed(each), *net.nodes)
        net.mono_ms += 100
    liar.votes([leaf(blocks[-1])], *net.nodes)
    net.settle(3)
    here = TWIN
    for _ in range(length):
        late.feed(Received(HOUSE, sealed(here)))
        here = block(here)
        net.mono_ms += 100
    net.queue.clear()
    net.nodes[REGULATOR] = late
    net.settle(12)
    held = late.gossip.chains[HOUSE, 1]
    assert (held.certified, held.head_hash) == (3 + length, blocks[-1].hash)


def test_a_third_history_leaves_room_for_the_one_that_is_certified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judging, "BRANCH_MAX", 20)
    net = settled()
    liar = Liar(net, HOUSE)
    late = net.nodes.pop(REGULATOR)
    liar.says(SEALED[3], *net.nodes)
    liar.votes([leaf(BLOCKS[3])], *net.nodes)
    net.settle(3)
    for here in (TWIN, TWIN._replace(fingerprint=bytes([8] * 32))):
        for _ in range(25):
            late.feed(Received(HOUSE, sealed(here)))
            here = block(here)  # noqa: PLW2901 - the next of it
    assert len(late.gossip.chains[HOUSE, 1].branch) == 20
    net.queue.clear()
    net.nodes[REGULATOR] = late
    net.settle(6)
    assert late.certified() == 4


def turn_without(net: Net, liar: Liar, change: RosterChange, *, lies: bool) -> None:
    """Let the epoch turn for all who are there, one of whom closes it with locks on nothing."""
    made = order(change)
    give(net, change)
    for _ in range(10):
        net.hop()
    liar.votes([leaf(made)], *net.nodes)
    locks = [Leaf(name, 1, 1 << 40, bytes([7] * 32), 7) for name in (GRID, HOUSE, OTHER_HOUSE)]
    liar.votes(locks if lies else [leaf(BLOCKS[2])], *net.nodes, closing=CLOSED)
    net.settle(2)


@pytest.mark.parametrize("lies", [True, False])
def test_a_voter_whose_key_an_order_changes_is_heard_until_it_has_closed(*, lies: bool) -> None:
    net = settled()
    liar = Liar(net, FEEDER)
    cut_off = net.nodes.pop(REGULATOR)
    nodes = [node(name) for name in VOTERS if name != REGULATOR]
    change = RosterChange(
        2, (*nodes, node(REGULATOR, voting="regulator votes, 2"), node(GRID, votes=0))
    )
    turn_without(net, liar, change, lies=lies)
    net.nodes[REGULATOR] = cut_off
    net.settle(6)
    told = cut_off.alarms("voting_key_replaced")
    assert (cut_off.gossip.roster.head.height, len(told)) == (1, 1)
    cut_off.voting = key("regulator votes, 2")
    cut_off.start()
    net.settle(30)
    net.seal(*SEALED[3:6])
    net.settle(6)
    assert {each.certified() for each in net.nodes.values()} == {6}


@pytest.mark.parametrize("lies", [True, False])
def test_a_voter_that_an_order_removes_is_heard_until_it_has_closed(*, lies: bool) -> None:
    """It is cut off meanwhile; of who closed, one is a liar, whose locks extend nothing."""
    net = settled()
    liar = Liar(net, FEEDER)
    cut_off = net.nodes.pop(REGULATOR)
    nodes = [node(name) for name in VOTERS if name != REGULATOR]
    change = RosterChange(2, (*nodes, node(GRID, votes=1)))
    turn_without(net, liar, change, lies=lies)
    assert {each.gossip.epoch for each in net.nodes.values()} == {2}
    net.nodes[REGULATOR] = cut_off
    net.settle()
    net.seal(*SEALED[3:6])
    net.settle()
    del net.nodes[REGULATOR]
    assert cut_off.gossip.roster.head.height == 1
    assert {each.certified() for each in net.nodes.values()} == {6}
    give(net, Interval(900))
    net.settle()
    assert in_force(net) == {2}
