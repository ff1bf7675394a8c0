"""What neighbours' word does to the account; when it may seal is in `test_waiting`."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from meterd.hearing import HEAR_MS, Hearing
from meterd.neighbours import TakenOrder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPELT = b"an order and its certificate"
OLD, NEW = b"o" * 32, b"n" * 32


class Said:
    """Neighbours with one thing to say."""

    def __init__(self) -> None:
        self.orders: list[TakenOrder] = []
        self.claimed: frozenset[str] | None = None
        self.order, self.changes, self.inbox = (0, bytes(32)), (), None
        self.stopped, self.waits = "", ""
        self.free = self.lets = False
        self.recovered: list[bytes] = []
        self.chain = SimpleNamespace(key_at=lambda height: NEW if height else OLD)
        self.claims = SimpleNamespace(changed=lambda _now_ms: self.claimed)
        self.turns: list[tuple[int, bool]] = []

    def read(self, _now_ms: int) -> list[TakenOrder]:
        taken, self.orders = self.orders, []
        self.order = (taken[-1].height, taken[-1].order_hash) if taken else self.order
        return taken

    def turn(self, now_ms: int, *, due: bool) -> None:
        self.turns.append((now_ms, due))

    def may_seal(self, _now_ms: int) -> bool:
        return self.lets


class Account:
    """A bookkeeper that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.alarms: set[str] = set()
        self.obeyed: tuple[int, bytes] | None = None
        self.waiting, self.losing, self.due = True, False, False
        self.chain = SimpleNamespace(head=SimpleNamespace(height=3))
        self.released: list[bool] = []

    def event(self, kind: str, _details: object) -> None:
        self.events.append(kind)

    def obey(self, _chain: object, order: tuple[int, bytes], _changes: object) -> None:
        self.obeyed = order

    def raise_alarm(self, kind: str, _text: str, *, stands: bool) -> None:
        (self.alarms.add if stands else self.alarms.discard)(kind)

    def release(self, *, first_only: bool) -> None:
        self.released.append(first_only)
        self.waiting = first_only
        self.chain.head.height += 1


class Home:
    """A hearing, with what it hears and what it acts on."""

    def __init__(self, state: Path) -> None:
        self.state, self.now_ms = state, 0
        self.said, self.account = Said(), Account()
        self.flushed = 0
        neighbours: Any = self.said
        book: Any = self.account
        clock: Any = SimpleNamespace(stamp=lambda: SimpleNamespace(boot_ms=self.now_ms))
        self.hearing = Hearing(
            neighbours,
            book,
            clock,
            state=state,
            logger=logging.getLogger("meterd-test-hearing"),
            flush=self.flush,
            tell=book.event,
        )

    async def flush(self) -> None:
        self.flushed += 1

    def turn(self) -> bool:
        self.hearing.rung = True
        return asyncio.run(self.hearing.turn())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_an_order_is_told_kept_for_the_next_start_and_obeyed(home: Home) -> None:
    home.said.orders = [TakenOrder(1, bytes([7] * 32), SPELT)]
    assert not home.turn()
    assert home.account.events == ["order", "key_rotated"]
    assert (home.state / "orders").read_bytes().endswith(SPELT)
    assert home.account.obeyed == (1, bytes([7] * 32))


def test_what_the_peer_process_says_of_itself_is_an_event_and_an_alarm(home: Home) -> None:
    home.said.claimed = frozenset({"no_broker"})
    home.turn()
    assert home.account.events == ["peer_says"]
    assert home.account.alarms == {"no_broker"}
    home.said.claimed = frozenset()
    home.turn()
    assert home.account.alarms == set()


def _recovered(home: Home) -> None:
    home.said.recovered, home.said.lets = [b"block"], True


def _recovered_unanswered(home: Home) -> None:
    home.said.recovered = [b"block"]


def _free(home: Home) -> None:
    home.said.free = home.said.lets = True


def _due(home: Home) -> None:
    home.account.due = home.said.lets = True


def _not_due(home: Home) -> None:
    home.said.lets = True


def _unanswered(home: Home) -> None:
    home.account.due = True


def _not_waiting(home: Home) -> None:
    _free(home)
    home.account.waiting = False


@pytest.mark.parametrize(
    ("so", "anew", "released"),
    [
        pytest.param(_recovered, True, [], id="blocks that were given back come first"),
        pytest.param(_recovered_unanswered, False, [], id="and not before all have answered"),
        pytest.param(_free, False, [False], id="all that has waited once nobody is waited for"),
        pytest.param(_due, False, [True], id="the first block alone on answers"),
        pytest.param(_not_due, False, [], id="nothing that is not due"),
        pytest.param(_unanswered, False, [], id="nothing without answers"),
        pytest.param(_not_waiting, False, [], id="nothing where nothing waits"),
    ],
)
def test_what_is_sealed(
    home: Home, so: Callable[[Home], None], anew: bool, released: list[bool]
) -> None:
    so(home)
    assert home.turn() == anew
    assert home.account.released == released
    assert home.flushed == len(released), "all before it is durable"


@pytest.mark.parametrize(
    ("stopped", "free", "losing", "waiting"),
    [
        pytest.param("", True, False, False, id="goes on where nobody is waited for"),
        pytest.param("", False, False, True, id="waits for others"),
        pytest.param("", False, True, False, id="goes on where a full card loses what waits"),
        pytest.param("an order has ended it", True, True, True, id="stops by an order"),
    ],
)
def test_sealing(home: Home, stopped: str, free: bool, losing: bool, waiting: bool) -> None:
    home.account.waiting = False
    home.account.losing = losing
    home.said.stopped, home.said.free = stopped, free
    home.turn()
    assert home.account.waiting == waiting


def test_where_nobody_rings_it_looks_once_a_second(home: Home) -> None:
    home.turn()
    for _ in range(4):
        home.now_ms += HEAR_MS // 4
        asyncio.run(home.hearing.turn())
    assert [now_ms for now_ms, _ in home.said.turns] == [0, HEAR_MS]
