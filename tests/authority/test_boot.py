from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from meterd.authority.boot import HeadSearch
from meterd.authority.effects import Received, Tick
from meterd.authority.judging import WAITING_MS
from meterd.authority.messages import AskHead, Fetch, HeadHeld, Said, open_said, say
from meterd.authority.roster import found
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.encoding import seal
from tests.authority.examples import (
    ELSEWHERE,
    ENROL,
    GENESIS,
    HOUSE,
    NEXT_EPOCH,
    NODES,
    OTHER_HOUSE,
    ROSTER,
    VOTERS,
    chain,
    key,
    ordered,
    sealed,
)
from tests.authority.said import NONCE, message_of
from tests.net import FEEDER, REGULATOR, Member, Net

if TYPE_CHECKING:
    from meterd.authority.roster import Roster

HELD = HeadHeld(1, (0, GENESIS.hash), HOUSE, NONCE, 1, 7, bytes(32))
OTHERS = tuple(name for name in VOTERS if name != HOUSE)


def search() -> HeadSearch:
    return HeadSearch(HOUSE, HOUSE, NONCE)


def answer(
    by: str = "regulator",
    *,
    key_name: str = "",
    genesis: bytes = GENESIS.hash,
    **changes: Any,  # noqa: ANN401
) -> bytes:
    """Return an answer with something changed."""
    said = Said(by, 1 << 32, HELD._replace(**changes))
    return say(said, key(key_name or f"{by} votes"), genesis)


def asked(*answers: bytes, roster: Roster = ROSTER) -> HeadSearch:
    """Return the search once it has these answers."""
    result = search()
    for message in answers:
        result.take(message, roster)
    return result


def test_a_meter_goes_on_once_enough_others_told_it_its_head() -> None:
    begun = search()
    assert begun.needed(ROSTER) == 2
    for number, name in enumerate(OTHERS):
        assert begun.satisfied(ROSTER, 1, 7) == (number >= 2)
        begun.take(answer(name), ROSTER)
    assert begun.counting(ROSTER, 1, 7) == 3


@pytest.mark.parametrize(
    ("voters", "meter", "needed"),
    [
        (("house-1",), HOUSE, 0),
        (("house-1", "house-2"), HOUSE, 1),
        (("house-1", "house-2", "feeder-1"), HOUSE, 2),
        (("house-2",), HOUSE, 1),
        ((), HOUSE, 0),
    ],
)
def test_so_many_must_answer(voters: tuple[str, ...], meter: str, needed: int) -> None:
    nodes = tuple(replace(n, votes=int(n.name in voters)) for n in NODES)
    roster = found(replace(GENESIS, nodes=nodes))
    assert HeadSearch(meter, meter, NONCE).needed(roster) == needed
    assert HeadSearch(meter, meter, NONCE).satisfied(roster, 1, 0) == (needed == 0)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(answer(meter=OTHER_HOUSE), "not an answer", id="is of another meter"),
        pytest.param(answer(nonce=bytes(16)), "not an answer", id="is of an earlier start"),
        pytest.param(message_of("own-batch"), "not an answer", id="answers something else"),
        pytest.param(answer("grid-co"), "does not vote here", id="is of a node without a vote"),
        pytest.param(answer(HOUSE), "is this device itself", id="is of this device"),
        pytest.param(answer("house-9"), "has no key", id="is of nobody"),
        pytest.param(answer(key_name="stranger"), "sealed by key", id="is a stranger's"),
        pytest.param(answer(key_name="house-2 votes"), "sealed by", id="is signed by another"),
        pytest.param(answer(genesis=ELSEWHERE.hash), "seal is not", id="is for another network"),
    ],
)
def test_an_answer_is_refused_that(message: bytes, reason: str) -> None:
    begun = search()
    with pytest.raises(BlockRejectedError, match=reason):
        begun.take(message, ROSTER)
    assert (begun.answers, begun.orders_wanted) == ({}, 0)


def test_what_is_misspelt_is_no_answer() -> None:
    with pytest.raises(EncodingError):
        search().take(answer()[:-1], ROSTER)


@pytest.mark.parametrize(
    ("changes", "incarnation", "height", "counts"),
    [
        pytest.param({}, 1, 7, True, id="names what is held"),
        pytest.param({}, 1, 8, True, id="names less than is held"),
        pytest.param({}, 1, 6, False, id="names more than is held"),
        pytest.param({}, 2, 1, True, id="names a chain before"),
        pytest.param({"incarnation": 2, "height": 1}, 1, 7, False, id="names a later chain"),
        pytest.param({"incarnation": 0, "height": 0}, 1, 0, True, id="knows of none"),
        pytest.param({"order": (1, bytes(32))}, 1, 7, False, id="knows an order more"),
        pytest.param({"epoch": 2}, 1, 7, False, id="is of an epoch to come"),
        pytest.param({"height": 2**64 - 1}, 1, 7, False, id="lies about the height"),
    ],
)
def test_an_answer_counts_once_the_meter_holds_as_much(
    changes: dict[str, Any], incarnation: int, height: int, counts: bool
) -> None:
    begun = asked(answer(**changes))
    assert begun.counting(ROSTER, incarnation, height) == counts
    assert begun.orders_wanted == changes.get("order", (0,))[0]


def test_an_answer_counts_once_its_order_is_known_here() -> None:
    begun = asked(answer(order=(1, bytes(32))))
    assert begun.counting(ordered(ENROL).roster, 1, 7) == 1


def test_a_voter_counts_once_and_its_last_answer() -> None:
    begun = asked(answer(height=9), answer(height=7), answer(height=7))
    assert begun.counting(ROSTER, 1, 7) == 1
    begun.take(answer(height=9), ROSTER)
    assert begun.counting(ROSTER, 1, 7) == 0


def test_who_does_not_vote_any_more_does_not_count_any_more() -> None:
    fewer = tuple(
        replace(node, votes=int(node.name not in ("regulator", "grid-co")))
        for node in NEXT_EPOCH.nodes
    )
    roster = ordered(NEXT_EPOCH._replace(nodes=fewer)).roster
    begun = asked(answer("regulator"), answer(OTHER_HOUSE))
    assert begun.counting(ROSTER, 1, 7) == 2
    assert begun.counting(roster, 1, 7) == 1
    with pytest.raises(BlockRejectedError, match="sealed by key"):
        begun.take(answer("feeder-1"), roster)  # under a key that went with the epoch before


def test_a_liar_can_delay_and_not_mislead() -> None:
    """One says too much, the two others say what is: that is enough."""
    begun = asked(
        answer("regulator", height=2**64 - 1, order=(2**64 - 1, bytes(32)), epoch=9),
        answer("feeder-1"),
        answer(OTHER_HOUSE),
    )
    assert begun.satisfied(ROSTER, 1, 7)
    assert not begun.satisfied(ROSTER, 1, 6)


# --- what a node answers --------------------------------------------------------------------------


def head_told(member: Member) -> tuple[int, int]:
    """Return incarnation and height that a node answers to the meter of `HOUSE`."""
    before = len(member.sent)
    fetch = Fetch(member.name, (AskHead(HOUSE, NONCE),))
    said = Said(HOUSE, (1 << 62) + before, fetch)
    member.feed(Received(HOUSE, say(said, key(f"{HOUSE} votes"), GENESIS.hash)))
    (answer,) = (message for topic, message in member.sent[before:] if topic == f"answer/{HOUSE}")
    body = open_said(answer, ROSTER.peer_key, GENESIS.hash).body
    assert isinstance(body, HeadHeld)
    return body.incarnation, body.height


def test_a_block_that_waits_for_those_before_it_is_told_too() -> None:
    net = Net()
    net.broker = lambda _: []
    regulator = net.nodes[REGULATOR]
    one, two, three = (sealed(each) for each in chain(3))
    assert head_told(regulator) == (0, 0)
    regulator.feed(Received(FEEDER, three))
    regulator.feed(Received(FEEDER, two))
    regulator.feed(Received(FEEDER, seal(chain(9)[8].encode(), key("stranger"), GENESIS.hash)))
    assert regulator.gossip.chains[HOUSE, 1].height == 0
    assert head_told(regulator) == (1, 3)
    regulator.feed(Received(FEEDER, one))
    assert regulator.gossip.chains[HOUSE, 1].height == 3
    assert head_told(regulator) == (1, 3)


def test_a_block_that_waits_in_vain_is_forgotten() -> None:
    net = Net()
    net.broker = lambda _: []
    regulator = net.nodes[REGULATOR]
    net.settle(6)
    regulator.feed(Received(FEEDER, sealed(chain(3)[2])))
    net.mono_ms += WAITING_MS
    regulator.feed(Tick())
    assert head_told(regulator) == (1, 3)
    assert regulator.gossip.judging.waiting
    net.mono_ms += 1
    regulator.feed(Tick())
    assert head_told(regulator) == (0, 0)
    assert not regulator.gossip.judging.waiting
