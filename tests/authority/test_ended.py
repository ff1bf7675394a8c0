"""A chain whose key is revoked comes to its end, whoever lies, is silent or comes late."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import pytest

from meterd.authority.attestation import CHECKS_ALL, PLAUSIBLE, Leaf
from meterd.authority.certificate import seals_evidence, verify_receipt
from meterd.authority.effects import Received, Send, Tick
from meterd.authority.ending import DISPUTED_MAX, End, EndUnknownError, end_of, open_to
from meterd.authority.messages import AskBlocks, blocks_message
from meterd.authority.senders import PACED
from meterd.authority.witness import Twin, Vote
from meterd.device import proofs
from meterd.ledger.encoding import key_id
from meterd.ledger.order import RosterChange
from tests.authority.examples import (
    GENESIS,
    GRID,
    HOUSE,
    OTHER_HOUSE,
    REVOKE,
    VOTERS,
    block,
    chain,
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
    give,
    in_force,
    replaced,
    resolved,
    settled,
    slip,
)
from tests.net import FEEDER, REGULATOR, Member, Net

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterd.ledger.block import Block
    from tests.net import Post


def test_one_that_lies_as_meter_and_voter_cannot_keep_its_chain_from_being_ended() -> None:
    """It shows to one alone the vote that certifies its block 4; another holds its other 4."""
    net = settled(PACED)
    knows, holds, other = FEEDER, OTHER_HOUSE, REGULATOR
    liar = Liar(net, HOUSE)
    net.broker = lambda _: []
    liar.says(SEALED[3], knows, holds)
    liar.says(sealed(TWIN), other)
    net.settle(1, 600)
    votes = [message for topic, message in net.nodes[holds].sent if topic == "attest"]
    net.nodes[knows].feed(Received(holds, votes[-1]))
    face = copy(liar)
    liar.votes([leaf(BLOCKS[3])], knows)
    face.votes([leaf(TWIN)], holds, other, GRID)
    for at in (0, 1):  # further than what it showed to the one: so that nobody asks there
        face.votes([leaf(chain(at + 1, OTHER_HOUSE)[at])], holds, other, GRID)
    assert {name: each.certified() for name, each in net.nodes.items()} == {
        name: 4 if name == knows else 3 for name in (*VOTERS, GRID) if name != HOUSE
    }
    net.queue.clear()
    net.broker = lambda posts: posts
    net.settle(6)
    chains = {name: each.gossip.chains[HOUSE, 1] for name, each in net.nodes.items()}
    assert chains[other].head_hash == TWIN.hash
    assert {held.certified for held in chains.values()} == {3, 4}
    for name, each in net.nodes.items():
        with pytest.raises(EndUnknownError, match="not revoked"):
            end_of(each.gossip, chains[name])
    give(net, REVOKE)
    net.settle(40)
    for name, each in net.nodes.items():
        assert end_of(each.gossip, chains[name]) == End(4, BLOCKS[3].hash, elsewhere=False)
    give(net, resolved(BLOCKS[3]))
    net.settle(6)
    assert in_force(net) == {2}
    assert {held.head_hash for held in chains.values()} == {BLOCKS[3].hash}


def test_who_comes_after_the_key_is_revoked_gets_what_was_certified_before() -> None:
    net = settled()
    late = net.nodes.pop(REGULATOR)
    net.seal(*SEALED[3:5])
    net.settle(6)
    give(net, REVOKE)
    net.settle(6)
    net.nodes[HOUSE].sent.clear()
    net.nodes[REGULATOR] = late
    net.settle(12)
    assert in_force(net) == {1}
    assert late.certified() == 5
    late.feed(Received(HOUSE, SEALED[5]))
    assert late.gossip.chains[HOUSE, 1].height == 5
    assert late.gossip.counts["ended"]
    give(net, replaced(BLOCKS[4]))
    net.settle(6)
    assert in_force(net) == {2}
    new = net.nodes[REGULATOR] = Member(net, REGULATOR)
    net.settle(12)
    assert new.certified() == 5


def attests(net: Net, liar: Liar, *to: str) -> None:
    """Let a liar attest the last order, as all others do."""
    head = net.nodes[GRID].gossip.latest().head
    liar.votes([Leaf(GRID, 1, head.height, head.order_hash, CHECKS_ALL)], *to)


def tick(net: Net) -> None:
    net.mono_ms += 600
    for each in net.nodes.values():
        each.feed(Tick())


def without_blocks(posts: list[Post]) -> Iterable[Post]:
    return (post for post in posts if b"meterd/block/v1" not in post[2])


def votes_and_orders(posts: list[Post]) -> Iterable[Post]:
    return (post for post in without_blocks(posts) if post[1] in {"attest", "block"})


def ends(net: Net) -> set[End]:
    return {end_of(each.gossip, each.gossip.chains[HOUSE, 1]) for each in net.nodes.values()}


@pytest.mark.parametrize("forks", [False, True], ids=["one history", "two histories"])
def test_a_vote_on_blocks_that_are_not_here_may_certify_those_before_them(*, forks: bool) -> None:
    """One alone holds block 6, attests it, certifies 4 by a liar's vote, and goes off."""
    net = settled(PACED)
    liar, others = Liar(net, HOUSE), (OTHER_HOUSE, REGULATOR, GRID)
    net.broker = lambda _: []
    for message in SEALED[3:6]:
        net.nodes[FEEDER].feed(Received(HOUSE, message))
    for name in (OTHER_HOUSE, GRID):
        net.nodes[name].feed(Received(HOUSE, SEALED[3]))
    if forks:
        net.nodes[REGULATOR].feed(Received(HOUSE, sealed(TWIN)))
    tick(net)
    if forks:
        for name in (OTHER_HOUSE, GRID):
            net.nodes[name].feed(Received(HOUSE, sealed(TWIN)))
    net.broker = votes_and_orders
    net.hop()
    face = copy(liar)
    liar.votes([leaf(BLOCKS[3])], FEEDER)
    face.votes([leaf(TWIN if forks else chain(1, OTHER_HOUSE)[0])], *others)
    assert net.nodes[FEEDER].certified() == 4
    assert {net.nodes[name].certified() for name in others} == {3}
    give(net, REVOKE)
    attests(net, face, *others)
    attests(net, liar, FEEDER)
    for _ in range(8):
        net.hop()
        tick(net)
        net.hop()
    off = net.nodes.pop(FEEDER)
    net.broker = lambda posts: posts
    net.settle(20)
    held = net.nodes[GRID].gossip.chains[HOUSE, 1]
    assert (held.height, held.head_hash) == (4, BLOCKS[3].hash)
    if forks:
        with pytest.raises(EndUnknownError, match="two histories may both"):
            ends(net)
    else:
        assert ends(net) == {End(4, BLOCKS[3].hash, elsewhere=False)}
    net.nodes[FEEDER] = off
    net.settle(40)
    assert ends(net) == {End(4, BLOCKS[3].hash, elsewhere=False)}
    assert {each.certified() for each in net.nodes.values()} == {4}


def test_what_one_attested_before_it_heard_that_the_key_is_revoked_ends_the_chain() -> None:
    """The device that goes is a voter, and silent; its last block has reached two."""
    net = settled(PACED)
    net.nodes.pop(HOUSE)
    net.broker = without_blocks
    for name in (FEEDER, GRID):
        net.nodes[name].feed(Received(HOUSE, SEALED[3]))
    tick(net)
    give(net, REVOKE)
    net.settle(4, 600)
    net.broker = lambda posts: posts
    net.settle(40)
    assert ends(net) == {End(4, BLOCKS[3].hash, elsewhere=False)}
    give(net, replaced(BLOCKS[3]))
    net.settle(12)
    assert in_force(net) == {2}


def test_another_history_is_taken_from_where_it_parts_and_not_from_what_is_certified() -> None:
    """Block 4 is common and not certified; two have the proof of two blocks 5 before."""
    net = settled(PACED)
    liar, other = Liar(net, HOUSE), BLOCKS[4]._replace(fingerprint=bytes([9] * 32))
    net.broker = lambda _: []
    for name in (FEEDER, OTHER_HOUSE):
        for message in (SEALED[3], sealed(other)):
            net.nodes[name].feed(Received(HOUSE, message))
    net.nodes[REGULATOR].feed(Received(HOUSE, seals_evidence(SEALED[4], sealed(other))))
    for name in (GRID, REGULATOR):
        for message in SEALED[3:5]:
            net.nodes[name].feed(Received(HOUSE, message))
    net.broker = lambda posts: posts
    net.settle(10)
    give(net, REVOKE)
    net.settle(3)
    attests(net, liar, *net.nodes)
    net.settle(20)
    assert ends(net) == {End(5, other.hash, elsewhere=False)}


def test_of_an_epoch_that_is_over_what_was_attested_then_counts_and_no_more() -> None:
    """One that votes in each epoch attests what nobody has, in the second."""
    net = settled(PACED)
    nodes = [*map(node, VOTERS[:3]), node(GRID, votes=1), node(REGULATOR, votes=0)]
    gone = net.nodes.pop(REGULATOR)
    give(net, RosterChange(2, tuple(nodes)))
    net.settle(12)
    liar = Liar(net, HOUSE)
    liar.votes([Leaf(HOUSE, 1, 1 << 40, bytes(32), CHECKS_ALL)], *net.nodes, epoch=2)
    give(net, REVOKE)
    net.settle(12)
    head = net.nodes[GRID].gossip.latest().head
    liar.votes([Leaf(GRID, 1, 2, head.order_hash, CHECKS_ALL)], *net.nodes, epoch=2)
    net.settle(6)
    assert ends(net) == {End(3, BLOCKS[2].hash, elsewhere=False)}
    held = net.nodes[GRID].gossip.chains[HOUSE, 1]
    assert open_to(net.nodes[GRID].gossip, held) == 3 + DISPUTED_MAX
    assert not gone.gossip.evidence


def test_a_certificate_that_was_shown_is_shown_on() -> None:
    net = settled()
    net.broker = lambda _: []
    knows, late = net.nodes[FEEDER], net.nodes[REGULATOR]
    late.gossip.chains[HOUSE, 1].frozen = "two blocks 9 are sealed"  # undisputed, votes come anyway
    net.seal(SEALED[3])
    for name in (FEEDER, OTHER_HOUSE, REGULATOR, GRID):
        net.nodes[name].feed(Received(HOUSE, SEALED[3]))
    for name in (HOUSE, OTHER_HOUSE):
        votes = [message for topic, message in net.nodes[name].sent if topic == "attest"]
        for message in votes:
            knows.feed(Received(name, message))
    assert (knows.certified(), late.certified()) == (4, 3)
    made = proofs.certificate(knows.store, (HOUSE, 1), 4, knows.gossip.roster)
    assert made is not None
    late.feed(Received(FEEDER, made[1].encode()))
    assert late.certified() == 4
    receipt = proofs.receipt(late.store, (HOUSE, 1), 4, late.gossip.roster)
    assert verify_receipt(receipt, GENESIS).block == BLOCKS[3]


def test_what_has_become_ours_is_no_other_history() -> None:
    net = settled()
    held = net.nodes[GRID].gossip.chains[HOUSE, 1]
    for each in (BLOCKS[3], BLOCKS[4]._replace(fingerprint=bytes([9] * 32))):
        held.branch[each.height] = Twin(sealed(each), each.hash, each.previous)
    for message in SEALED[3:5]:
        net.nodes[GRID].feed(Received(HOUSE, message))
    assert (held.height, list(held.branch)) == (5, [5])


def test_who_has_attested_an_order_that_is_not_here_attests_no_chain() -> None:
    """Its card was put back: what it has attested since may have revoked the key."""
    net = settled()
    late = net.nodes[REGULATOR]
    core = late.gossip
    core.hold((GRID, 1)).ahead[core.kid] = Vote(leaf(order(REVOKE)), 9, 1)
    net.seal(SEALED[3])
    net.settle(3)
    assert (core.chains[HOUSE, 1].height, core.chains[HOUSE, 1].certified) == (4, 4)
    assert core.chains[HOUSE, 1].votes[core.kid].leaf.height == 3
    core.hold((GRID, 1)).ahead.clear()
    core.voting.mark((HOUSE, 1))
    net.settle(3)
    assert core.chains[HOUSE, 1].votes[core.kid].leaf.height == 4


def test_a_key_that_any_order_names_which_waits_here_is_heard_of() -> None:
    net = settled()
    names = [f"{REGULATOR} votes, {number}" for number in (2, 3)]
    others = [node(name) for name in VOTERS if name != REGULATOR] + [node(GRID, votes=0)]
    net.broker = lambda _: []
    slip(
        net,
        *(
            RosterChange(epoch, (*others, node(REGULATOR, voting=name)))
            for epoch, name in enumerate(names, start=2)
        ),
    )
    core = net.nodes[FEEDER].gossip
    assert (core.roster.head.height, len(core.pending)) == (0, 2)
    for name in (f"{REGULATOR} votes", *names):
        kid = key_id(public(name))
        assert core.key_of(REGULATOR, kid) == public(name)
        assert (kid in core.keys_coming(REGULATOR)) == (name in names)


def test_blocks_that_another_history_has_driven_out_are_given_to_who_asks() -> None:
    net = settled()
    core = net.nodes[FEEDER].gossip
    held = core.chains[HOUSE, 1]
    net.broker = lambda _: []
    for message in SEALED[3:6]:
        net.nodes[FEEDER].feed(Received(HOUSE, message))
    net.nodes[FEEDER].feed(Received(HOUSE, sealed(TWIN)))
    held.shown = (4, TWIN.hash, 1)
    core.contested[HOUSE, 1] = None
    net.nodes[FEEDER].feed(Tick())
    assert (held.height, held.head_hash, sorted(held.branch)) == (4, TWIN.hash, [5, 6])
    core.asking.answer(REGULATOR, AskBlocks(HOUSE, 1, 5, 6))
    sent = [effect for effect in net.nodes[FEEDER].feed(Tick()) if isinstance(effect, Send)]
    assert [each for each in sent if all(one in each.message for one in SEALED[4:6])]


def test_a_block_that_is_in_nobodys_own_history_any_more_is_asked_for_all_the_same() -> None:
    net = settled(PACED)
    liar, late = Liar(net, HOUSE), net.nodes[REGULATOR]
    net.broker = lambda _: []
    for each in net.nodes.values():
        each.feed(Received(HOUSE, SEALED[3]))
    net.nodes[FEEDER].feed(Received(HOUSE, sealed(TWIN)))
    net.broker = lambda posts: posts
    net.settle(3)
    assert not late.gossip.chains[HOUSE, 1].branch
    liar.votes([leaf(TWIN)], REGULATOR)
    net.settle(20)
    assert [twin.block_hash for twin in late.gossip.chains[HOUSE, 1].branch.values()] == [TWIN.hash]


def known(*history: Block, upto: int) -> list[bytes]:
    """Return a history's blocks from where it parts, sealed, gone on with up to a height."""
    blocks = list(history)
    while blocks[-1].height < upto:
        blocks.append(block(blocks[-1]))
    return [sealed(each) for each in blocks]


def taken(net: Net, name: str, messages: Iterable[bytes]) -> None:
    for message in messages:
        net.nodes[name].feed(Received(HOUSE, message))


def test_a_vote_on_what_nobody_has_does_not_keep_others_from_being_asked_for() -> None:
    """All hold 4a to 8a, 4a is certified; one attested 7b before, and has those blocks alone."""
    net = settled(PACED)
    liar, others = Liar(net, HOUSE), (OTHER_HOUSE, REGULATOR, GRID)
    ours, other = known(*BLOCKS[3:], upto=8), known(TWIN, upto=7)
    net.broker = lambda _: []
    taken(net, FEEDER, other)
    for name in others:
        taken(net, name, ours[:1])
    tick(net)
    posts = [post for post in net.queue if post[1] == "attest"]
    net.queue.clear()
    liar.votes([leaf(BLOCKS[3])], *net.nodes)
    for sender, _, message in posts:
        for name in net.nodes.keys() - {sender} if sender != FEEDER else ():
            net.nodes[name].feed(Received(sender, message))
    for name in others:
        taken(net, name, [other[0], *ours[1:]])
    taken(net, FEEDER, ours[:1])
    net.nodes[FEEDER].feed(Tick())
    taken(net, FEEDER, ours[1:])
    liar.votes([Leaf(HOUSE, 1, 5, bytes(32), CHECKS_ALL)], *net.nodes)
    for sender, _, message in posts:
        for name in others if sender == FEEDER else ():
            net.nodes[name].feed(Received(sender, message))
    net.queue.clear()
    net.broker = lambda posts: posts
    net.settle(12)
    give(net, REVOKE)
    net.settle(6)
    attests(net, liar, *net.nodes)
    net.settle(40)
    assert ends(net) == {End(4, BLOCKS[3].hash, elsewhere=False)}


def test_whoever_takes_another_history_keeps_all_of_the_one_before() -> None:
    net = settled(PACED)
    liar = Liar(net, HOUSE)
    net.broker = lambda _: []
    node = net.nodes[FEEDER]
    taken(net, FEEDER, known(TWIN, upto=203))
    tick(net)
    for name in (OTHER_HOUSE, REGULATOR):
        taken(net, name, SEALED[3:4])
    tick(net)
    liar.votes([leaf(BLOCKS[3])], FEEDER)
    for name in (OTHER_HOUSE, REGULATOR):
        for topic, message in net.nodes[name].sent:
            if topic == "attest":
                node.feed(Received(name, message))
    taken(net, FEEDER, SEALED[3:4])
    node.feed(Tick())
    held = node.gossip.chains[HOUSE, 1]
    assert (held.height, held.certified, held.head_hash) == (4, 4, BLOCKS[3].hash)
    assert set(held.branch) == set(range(5, 204))


def test_above_the_end_that_an_order_names_nothing_is_taken_whoever_attests_it() -> None:
    """A quorum attested 5b unknown to the desk, which ended the chain at 4b by its own word."""
    net = settled(PACED)
    liar, others = Liar(net, HOUSE), (OTHER_HOUSE, REGULATOR, GRID)
    after = block(TWIN)
    net.broker = lambda _: []
    taken(net, FEEDER, SEALED[3:4])
    for name in others:
        taken(net, name, (sealed(TWIN), sealed(after)))
    tick(net)
    net.queue.clear()
    face, late = copy(liar), net.nodes[FEEDER]
    liar.votes([leaf(after)], FEEDER)
    face.votes([leaf(chain(1, OTHER_HOUSE)[0])], *others)
    net.nodes.pop(FEEDER)
    net.broker = lambda posts: posts
    for change in (REVOKE, resolved(TWIN)):
        give(net, change)
        net.settle(3)
        attests(net, face, *net.nodes)
        net.settle(6)
    assert in_force(net) == {2}
    net.nodes[FEEDER] = late
    net.broker = without_blocks
    net.settle(10)
    net.broker = lambda posts: posts
    late.feed(Received(REGULATOR, blocks_message((sealed(TWIN), sealed(after)))))
    net.settle(10)
    held = late.gossip.chains[HOUSE, 1]
    assert (held.height, held.head_hash) == (4, TWIN.hash)


def test_one_certificate_of_our_head_certifies_a_disputed_chain_as_a_whole() -> None:
    net = settled(PACED)
    liar = Liar(net, HOUSE)
    blocks = chain(60)
    net.broker = lambda _: []
    for each in net.nodes.values():
        for block_ in blocks[3:]:
            each.feed(Received(HOUSE, sealed(block_)))
    tick(net)
    knows, late = net.nodes[FEEDER], net.nodes[REGULATOR]
    liar.votes([leaf(blocks[-1])], FEEDER)
    for name in (OTHER_HOUSE, REGULATOR):
        for topic, message in net.nodes[name].sent:
            if topic == "attest":
                knows.feed(Received(name, message))
    assert (knows.certified(), late.certified()) == (60, 3)
    for each in net.nodes.values():
        each.feed(Received(HOUSE, sealed(TWIN)))
    net.queue.clear()
    net.broker = lambda posts: [post for post in posts if b"meterd/attest" not in post[2][:40]]
    net.settle(12)
    assert late.certified() == 60
    assert len(late.store._rows("SELECT 1 FROM certificate")) <= 3


def test_a_history_that_is_taken_over_is_judged_as_any_other() -> None:
    """More energy than the fuses let through: attested, but not as plausible."""
    net = settled(PACED)
    liar, others = Liar(net, HOUSE), (FEEDER, OTHER_HOUSE)
    much = tuple(each._replace(last_uj=each.last_uj + 10**18) for each in BLOCKS[3].energy)
    wild = BLOCKS[3]._replace(energy=much)
    net.broker = lambda _: []
    for name in others:
        taken(net, name, [sealed(wild)])
    late = net.nodes[REGULATOR]
    taken(net, REGULATOR, SEALED[3:4])
    assert late.gossip.chains[HOUSE, 1].checks & PLAUSIBLE
    tick(net)
    liar.votes([leaf(wild)], REGULATOR)
    for name in others:
        for topic, message in net.nodes[name].sent:
            if topic == "attest":
                late.feed(Received(name, message))
    taken(net, REGULATOR, [sealed(wild)])
    held = late.gossip.chains[HOUSE, 1]
    assert (held.height, held.head_hash, held.certified) == (4, wild.hash, 4)
    assert not held.checks & PLAUSIBLE
    ((checks,),) = late.store._rows("SELECT checks FROM block WHERE hash = ?", wild.hash)
    assert not checks & PLAUSIBLE
