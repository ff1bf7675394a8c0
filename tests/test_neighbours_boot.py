"""The boot rule as a meter keeps it: what it asks, what it seals by, what it takes back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from meterd.authority.boot import FRESH_MS
from meterd.authority.messages import NONCE_BYTES, Said, say
from meterd.authority.roster import found
from meterd.ledger.encoding import encode
from meterd.neighbours import ASK_MS, GRACE_MS, LATE_MS
from tests.authority.examples import (
    ENROL,
    GENESIS,
    GRID,
    HOUSE,
    NODES,
    OTHER_HOUSE,
    VOTERS,
    chain,
    key,
    ordered,
    sealed,
)
from tests.authority.said import BODIES
from tests.neighbours_kit import BLOCKS, OTHERS, SEALED, Home, proof_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


@pytest.mark.parametrize(
    ("voters", "needed"),
    [
        pytest.param((), 0, id="nobody votes"),
        pytest.param((HOUSE,), 0, id="it alone votes"),
        pytest.param((HOUSE, OTHER_HOUSE), 1, id="it and one vote"),
        pytest.param((HOUSE, OTHER_HOUSE, GRID), 2, id="it and two vote"),
        pytest.param(VOTERS, 2, id="it and three vote"),
        pytest.param((*VOTERS, GRID), 3, id="it and four vote"),
        pytest.param((GRID,), 1, id="one other votes"),
        pytest.param((GRID, OTHER_HOUSE), 2, id="two others vote"),
        pytest.param((*OTHERS,), 2, id="three others vote"),
        pytest.param((*OTHERS, GRID), 3, id="four others vote"),
    ],
)
def test_so_many_must_have_answered_where(
    tmp_path: Path, voters: tuple[str, ...], needed: int
) -> None:
    nodes = tuple(replace(node, votes=int(node.name in voters)) for node in NODES)
    home = Home(tmp_path, held=0, roster=found(replace(GENESIS, nodes=nodes)))
    others = [name for name in voters if name != HOUSE]
    for count in range(needed):
        said = f"{count} of {needed} neighbours have said what they hold of this meter"
        assert home.neighbours.waits == said
        home.bring("answer", home.answer(others[count]))
    assert home.neighbours.waits == ""
    assert home.refused == {}
    assert home.neighbours.alone == (not voters)


def test_a_question_lies_there_anew_until_it_is_answered_and_says_what_the_card_holds(
    home: Home,
) -> None:
    nonces = set[bytes]()
    for _ in range(4):
        home.turn()
        question = home.question()
        assert question is not None
        assert question.data[NONCE_BYTES:] == (3).to_bytes(8, "big") + bytes(8)
        nonces.add(question.data[:NONCE_BYTES])
        home.outbox.remove(question.name)  # the peer process takes it
        home.turn(ASK_MS - 1)
        assert home.question() is None
        home.turn(1)
    assert len(nonces) == 4, "each has a nonce of its own: it says when it was asked"
    home.release()
    home.turn()
    assert home.question() is None


def test_questions_of_starts_that_nobody_answered_do_not_pile_up(tmp_path: Path) -> None:
    """The peer process is down, and the meter starts again and again."""
    for _ in range(5):
        home = Home(tmp_path / "state")
        home.turn()
        assert home.question() is not None  # there is one


def test_what_is_due_is_asked_for_again_where_the_answers_are_too_old(home: Home) -> None:
    home.release()
    home.turn(3_600_000)
    assert home.question() is None, "nothing is due"
    assert not home.may_seal()
    assert home.turn(due=True) == "", "it is asked for, and that is nothing to tell"
    assert home.question() is not None
    home.release()
    home.turn(FRESH_MS - 1)
    assert home.may_seal()
    assert home.question() is None
    home.turn(1)
    assert not home.may_seal()
    assert home.question() is not None


def test_neighbours_that_do_not_answer_any_more_are_told_in_a_while(home: Home) -> None:
    home.release()
    home.turn(3_600_000, due=True)
    assert home.turn(LATE_MS - 1) == ""
    assert home.turn(1) == "0 of 2 neighbours have said what they hold of this meter"
    home.release()
    assert home.turn() == ""


def test_what_follows_the_first_block_waits_until_that_is_certified(home: Home) -> None:
    home.release()
    home.seal(5)
    assert not home.may_seal()
    assert home.turn() == ""
    home.turn(ASK_MS)
    assert home.question() is None, "an answer would change nothing"
    home.bring("certificate", proof_of(BLOCKS[2]))
    assert not home.may_seal(), "that is of the time before"
    assert home.turn(LATE_MS) == (
        "block 4, the first since the start, is not certified: what follows is sealed once it is"
    )
    home.bring("certificate", proof_of(BLOCKS[3]))
    assert home.may_seal()
    assert home.turn(10 * LATE_MS, due=True) == ""
    assert (home.may_seal(), home.question()) == (True, None), "until the next start"


def test_where_nobody_votes_or_it_alone_there_is_nothing_to_ask(tmp_path: Path) -> None:
    for at, voters in enumerate(((), (HOUSE,))):
        nodes = tuple(replace(node, votes=int(node.name in voters)) for node in NODES)
        home = Home(tmp_path / str(at), held=0, roster=found(replace(GENESIS, nodes=nodes)))
        assert home.turn(due=True) == ""
        assert home.may_seal()
        assert home.turn(3_600_000) == ""
        assert (home.may_seal(), home.question()) == (True, None)


def test_each_start_asks_with_another_nonce(tmp_path: Path) -> None:
    nonces = {Home(tmp_path / str(at)).nonce for at in range(5)}
    assert len(nonces) == 5


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda home: home.answer("regulator", nonce=bytes(16)), id="earlier start's"),
        pytest.param(lambda home: home.answer("regulator", meter=OTHER_HOUSE), id="other meter's"),
        pytest.param(lambda home: home.answer(HOUSE), id="of this device itself"),
        pytest.param(lambda home: home.answer(GRID), id="of one who does not vote"),
        pytest.param(lambda home: home.answer("house-9"), id="of nobody known"),
        pytest.param(lambda home: home.answer("regulator", signed="stranger"), id="a stranger's"),
        pytest.param(
            lambda home: home.answer("regulator", signed="regulator seals"), id="another key's"
        ),
        pytest.param(lambda home: home.answer("regulator")[:-1], id="cut off"),
        pytest.param(lambda home: home.answer("regulator") + b"\0", id="with a byte too many"),
        pytest.param(
            lambda _: say(
                Said("regulator", 1, BODIES["digest"]), key("regulator votes"), GENESIS.hash
            ),
            id="of another kind",
        ),
    ],
)
def test_an_answer_is_refused_that_is(home: Home, make: Callable[[Home], bytes]) -> None:
    home.bring("answer", home.answer("feeder-1"))
    home.bring("answer", make(home))
    assert home.refused == {"answer": 1}
    assert home.neighbours.waits.startswith("1 of 2")


def test_one_neighbour_that_answers_ten_times_is_one(home: Home) -> None:
    for _ in range(10):
        home.bring("answer", home.answer("regulator"))
    assert home.neighbours.waits.startswith("1 of 2")


def test_a_liar_can_delay_and_no_more(home: Home) -> None:
    home.turn(due=True)
    waits = "a neighbour says that it holds a later block of this meter: it is waited for"
    for ms in (0, GRACE_MS // 2, GRACE_MS // 2 - 1, 1, ASK_MS):
        home.turn(ms)
        home.bring("answer", home.answer("feeder-1", height=2**64 - 1, block_hash=bytes(32)))
        home.bring("answer", home.answer("regulator"))
        assert home.neighbours.waits.startswith("1 of 2") == (home.now_ms < GRACE_MS)
        home.bring("answer", home.answer(OTHER_HOUSE))
        assert home.may_seal() == (home.now_ms >= GRACE_MS)
        assert home.neighbours.waits == (waits if home.now_ms < GRACE_MS else "")


def test_a_liar_uses_up_its_own_grace_and_no_others(home: Home) -> None:
    """It said at the start that it holds more; whoever says so later may be right."""
    later: dict[str, Any] = {"height": 5, "block_hash": BLOCKS[4].hash}
    home.turn(due=True)
    home.bring("answer", home.answer("feeder-1", **later))
    home.bring("answer", home.answer("regulator"))
    home.bring("answer", home.answer(OTHER_HOUSE))
    assert not home.may_seal()
    home.turn(3_600_000)
    home.bring("answer", home.answer("feeder-1", **later))
    home.bring("answer", home.answer("regulator"))
    home.bring("answer", home.answer(OTHER_HOUSE))
    assert home.may_seal()
    home.turn(ASK_MS)
    home.turn(FRESH_MS)
    home.bring("answer", home.answer("regulator", **later))
    home.bring("answer", home.answer("feeder-1"))
    home.bring("answer", home.answer(OTHER_HOUSE))
    assert not home.may_seal()
    for height in (4, 5):
        home.bring("block", SEALED[height - 1])
    assert home.may_seal()


def test_what_neighbours_hold_more_counts_only_with_its_blocks(home: Home) -> None:
    """A card that was put back: the answers name a block that it does not have."""
    for by in OTHERS[:2]:
        home.bring("answer", home.answer(by, height=5, block_hash=BLOCKS[4].hash))
    assert home.neighbours.waits.startswith("0 of 2")
    home.bring("block", SEALED[3])
    assert home.neighbours.waits.startswith("0 of 2")
    home.bring("block", SEALED[4])
    assert home.neighbours.waits == ""
    assert home.neighbours.recovered == SEALED[3:5]
    assert home.neighbours.chain.head.block_hash == BLOCKS[4].hash
    assert home.refused == {}


def test_blocks_given_back_in_one_turn_are_taken_in_their_order(home: Home) -> None:
    for height in (6, 4, 5):
        home.inbox.put(f"block-{height:012d}", SEALED[height - 1])
    home.neighbours.read(0)
    assert home.neighbours.recovered == SEALED[3:6]


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(SEALED[4], id="skips one"),
        pytest.param(sealed(BLOCKS[3], "stranger"), id="a stranger sealed"),
        pytest.param(sealed(BLOCKS[3], "house-2 seals"), id="another meter sealed"),
        pytest.param(sealed(chain(4, OTHER_HOUSE)[3], "house-2 seals"), id="is another meter's"),
        pytest.param(sealed(BLOCKS[3], genesis=bytes(32)), id="is sealed for another network"),
        pytest.param(
            sealed(BLOCKS[3]._replace(genesis=bytes(32))), id="says it is another network's"
        ),
        pytest.param(sealed(BLOCKS[3]._replace(incarnation=2)), id="is another incarnation's"),
        pytest.param(
            sealed(BLOCKS[3]._replace(order=(1, bytes(32)))), id="names an order not known here"
        ),
        pytest.param(sealed(BLOCKS[3]._replace(previous=bytes(32))), id="follows another history"),
        pytest.param(SEALED[3][:-1], id="is cut off"),
        pytest.param(b"", id="is empty"),
    ],
)
def test_a_block_is_not_taken_back_that(home: Home, message: bytes) -> None:
    home.bring("block", message)
    assert home.refused == {"block": 1}
    assert home.neighbours.recovered == []
    assert home.neighbours.chain.head.height == 3


def test_blocks_that_the_card_holds_are_no_news(home: Home) -> None:
    for message in home.card:
        home.bring("block", message)
    assert (home.neighbours.recovered, home.refused) == ([], {})


def test_an_order_that_an_answer_knows_must_come_first(home: Home) -> None:
    after = ordered(ENROL)
    order = (1, after.roster.head.order_hash)
    for by in OTHERS[:2]:
        home.bring("answer", home.answer(by, order=order))
    assert home.neighbours.waits.startswith("0 of 2")
    message, proof = after.certified[0]
    assert home.bring("order", encode([message, proof.spell()]))
    assert home.neighbours.waits == ""
    assert home.neighbours.order == order


def test_answers_of_an_epoch_to_come_wait_for_its_order(home: Home) -> None:
    for by in OTHERS[:2]:
        home.bring("answer", home.answer(by, epoch=2))
    assert home.neighbours.waits.startswith("0 of 2")
