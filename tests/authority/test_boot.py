from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from meterd.authority.boot import FRESH_MS, PROMISE_MS, QUESTIONS_KEPT, HeadSearch
from meterd.authority.messages import HeadHeld, Said, say
from meterd.authority.roster import found
from meterd.errors import BlockRejectedError, EncodingError
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
    key,
    ordered,
)
from tests.authority.said import NONCE, message_of

if TYPE_CHECKING:
    from meterd.authority.roster import Roster

HELD = HeadHeld(1, (0, GENESIS.hash), HOUSE, NONCE, 1, 7, bytes(32))
OTHERS = tuple(name for name in VOTERS if name != HOUSE)


NOW_MS = 50_000


def search() -> HeadSearch:
    """Return a search whose question was asked at `NOW_MS`."""
    result = HeadSearch(HOUSE, HOUSE)
    result.ask(NONCE, NOW_MS)
    return result


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
        assert begun.may_seal(ROSTER, 1, 7, NOW_MS) == (number >= 2)
        begun.take(answer(name), ROSTER)
    assert begun.counting(ROSTER, 1, 7, NOW_MS) == 3


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
    assert HeadSearch(meter, meter).needed(roster) == needed
    assert HeadSearch(meter, meter).may_seal(roster, 1, 0, NOW_MS) == (needed == 0)


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
    assert begun.counting(ROSTER, 9, 99, NOW_MS) == 0
    assert not begun.higher(0, 0, NOW_MS)


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
        pytest.param({"epoch": 0}, 1, 7, False, id="is of an epoch that is over"),
        pytest.param({"height": 2**64 - 1}, 1, 7, False, id="lies about the height"),
    ],
)
def test_an_answer_counts_once_the_meter_holds_as_much(
    changes: dict[str, Any], incarnation: int, height: int, counts: bool
) -> None:
    begun = asked(answer(**changes))
    assert begun.counting(ROSTER, incarnation, height, NOW_MS) == counts


def test_an_answer_counts_once_its_order_is_known_here() -> None:
    begun = asked(answer(order=(1, bytes(32))))
    assert begun.counting(ordered(ENROL).roster, 1, 7, NOW_MS) == 1


def test_a_voter_counts_once_and_its_last_answer() -> None:
    begun = asked(answer(height=9), answer(height=7), answer(height=7))
    assert begun.counting(ROSTER, 1, 7, NOW_MS) == 1
    begun.take(answer(height=9), ROSTER)
    assert begun.counting(ROSTER, 1, 7, NOW_MS) == 0


def test_who_does_not_vote_any_more_does_not_count_any_more() -> None:
    fewer = tuple(
        replace(node, votes=int(node.name not in ("regulator", "grid-co")))
        for node in NEXT_EPOCH.nodes
    )
    roster = ordered(NEXT_EPOCH._replace(nodes=fewer)).roster
    begun = asked(answer("regulator"), answer(OTHER_HOUSE))
    assert begun.counting(ROSTER, 1, 7, NOW_MS) == 2
    assert begun.counting(roster, 1, 7, NOW_MS) == 0, "they were of the epoch before"
    again = search()
    again.take(answer(OTHER_HOUSE, epoch=2, key_name=f"{OTHER_HOUSE} votes, 2"), roster)
    assert again.counting(roster, 1, 7, NOW_MS) == 1
    with pytest.raises(BlockRejectedError, match="sealed by key"):
        begun.take(answer("feeder-1"), roster)  # under a key that went with the epoch before


def test_a_liar_can_delay_and_not_mislead() -> None:
    """One says too much, the two others say what is: that is enough."""
    begun = asked(
        answer("regulator", height=2**64 - 1, order=(2**64 - 1, bytes(32)), epoch=9),
        answer("feeder-1"),
        answer(OTHER_HOUSE),
    )
    assert begun.may_seal(ROSTER, 1, 7, NOW_MS)
    assert not begun.may_seal(ROSTER, 1, 6, NOW_MS)


def test_answers_count_only_so_long_after_the_question() -> None:
    begun = asked(answer("regulator"), answer("feeder-1"), answer(OTHER_HOUSE, height=9))
    for now_ms, fresh in (
        (NOW_MS, True),
        (NOW_MS + FRESH_MS - 1, True),
        (NOW_MS + FRESH_MS, False),
    ):
        assert begun.may_seal(ROSTER, 1, 7, now_ms) == fresh
        assert bool(begun.higher(1, 7, now_ms)) == fresh


def test_a_promise_outlasts_the_answer_that_it_was_given_by() -> None:
    assert FRESH_MS < PROMISE_MS


def test_an_answer_is_as_fresh_as_its_own_question_and_not_as_the_last_one() -> None:
    begun, other = search(), bytes([9] * 16)
    begun.ask(other, NOW_MS + FRESH_MS)
    begun.take(answer("regulator"), ROSTER)
    begun.take(answer("feeder-1"), ROSTER)
    assert not begun.may_seal(ROSTER, 1, 7, NOW_MS + FRESH_MS)
    begun.take(answer("regulator", nonce=other), ROSTER)
    begun.take(answer("regulator"), ROSTER)  # a broker may deliver twice, and late
    begun.take(answer("feeder-1", nonce=other), ROSTER)
    assert begun.may_seal(ROSTER, 1, 7, NOW_MS + FRESH_MS)


def test_only_the_last_questions_of_a_start_are_known() -> None:
    begun = search()
    for at in range(QUESTIONS_KEPT):
        begun.take(answer(), ROSTER)
        begun.ask(bytes([at] * 16), NOW_MS)
    with pytest.raises(BlockRejectedError, match="not an answer to a question of this start"):
        begun.take(answer(), ROSTER)


def test_what_follows_the_first_block_waits_until_that_is_certified() -> None:
    begun = asked(answer("regulator"), answer("feeder-1"))
    begun.certified(7)  # of the time before: it says nothing of this start
    begun.sealed(8)
    begun.sealed(9)
    for height in (0, 7):
        begun.certified(height)
        assert not begun.may_seal(ROSTER, 1, 9, NOW_MS)
        assert not begun.free
    begun.certified(8)
    assert begun.free
    assert begun.may_seal(ROSTER, 1, 9, NOW_MS + 86_400_000)
