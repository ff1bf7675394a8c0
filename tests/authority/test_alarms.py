from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meterd.authority.alarms import AGAIN_MS, AT_ONCE, CONNECTED_MS, EVERY_MS, Alarms, verify_alarm
from meterd.authority.effects import (
    Alarmed,
    Connected,
    Persist,
    PutAlarm,
    Received,
    Send,
    Taken,
    Tick,
)
from meterd.authority.messages import blocks_message
from meterd.authority.roster import OrderUnknownError
from meterd.authority.senders import FAULTS_MAX
from meterd.authority.witness import ChainEndedError
from meterd.errors import BlockRejectedError, MeterdError
from meterd.ledger.alarm import Alarm, Standing, seal_alarm
from meterd.ledger.encoding import UINT_MAX, seal
from tests.authority.examples import (
    ELSEWHERE,
    FORK_RESOLVE,
    GENESIS,
    GRID,
    HOUSE,
    OTHER_HOUSE,
    REVOKE,
    ROSTER,
    ROTATE,
    key,
    meter,
    order,
    ordered,
    sealed,
)
from tests.ledger.alarms import ALARM, CASE, OVER, PORT, STARTED
from tests.net import REGULATOR, SEALED, Member, Net

if TYPE_CHECKING:
    from meterd.authority.effects import Effect
    from meterd.authority.roster import Roster

NEW_KEY = f"{HOUSE} seals, 2"


def message_of(alarm: Alarm, by: str = "", genesis: bytes = GENESIS.hash) -> bytes:
    return seal_alarm(alarm, key(by or f"{alarm.meter} seals"), genesis)


def numbered(number: int) -> Alarm:
    """A start, of which nothing stands."""
    return STARTED._replace(number=number)


def heard(member: Member) -> list[tuple[str, object, object]]:
    """What its journal says of its neighbours' alarms."""
    found: list[tuple[str, object, object]] = []
    for tell in member.told:
        fields = dict(tell.fields)
        if tell.event.startswith("neighbour"):
            found.append(
                (tell.event, fields.get("alarm", fields.get("kind")), fields.get("untold"))
            )
    return found


def last(member: Member) -> int:
    """The number of the last alarm that it holds of the house; 0 for none."""
    known = member.gossip.alarms.last.get(HOUSE)
    return known[0].number if known else 0


@pytest.fixture
def node() -> Member:
    return Net().nodes[OTHER_HOUSE]


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "roster", "error"),
    [
        pytest.param(message_of(ALARM), ROSTER, None, id="good"),
        pytest.param(message_of(ALARM, NEW_KEY), ordered(ROTATE).roster, None, id="a new key"),
        pytest.param(
            message_of(ALARM), ordered(ROTATE).roster, BlockRejectedError, id="a rotated key"
        ),
        pytest.param(message_of(ALARM), ordered(REVOKE).roster, ChainEndedError, id="revoked"),
        pytest.param(
            message_of(ALARM), ordered(REVOKE, FORK_RESOLVE).roster, ChainEndedError, id="ended"
        ),
        pytest.param(
            message_of(ALARM, "stranger"),
            ordered(REVOKE).roster,
            BlockRejectedError,
            id="forged, of a chain that has ended",
        ),
        pytest.param(
            message_of(ALARM._replace(incarnation=2)), ROSTER, OrderUnknownError, id="yet to come"
        ),
        pytest.param(
            message_of(ALARM._replace(meter="house-9")), ROSTER, BlockRejectedError, id="no meter"
        ),
        pytest.param(
            message_of(ALARM._replace(meter=GRID)), ROSTER, BlockRejectedError, id="distributor"
        ),
    ],
)
def test_by_what_is_known_of_the_network_an_alarm_is(
    message: bytes, roster: Roster, error: type[MeterdError] | None
) -> None:
    if error is None:
        assert verify_alarm(message, roster) == ALARM
        return
    with pytest.raises(error) as raised:
        verify_alarm(message, roster)
    assert type(raised.value) is error


@pytest.mark.parametrize(
    ("sender", "message", "counts"),
    [
        pytest.param(HOUSE, message_of(ALARM), {}, id="good"),
        pytest.param(HOUSE, message_of(ALARM, "stranger"), {"refused": 1}, id="forged"),
        pytest.param(HOUSE, message_of(ALARM, f"{HOUSE} votes"), {"refused": 1}, id="voting key"),
        pytest.param(
            HOUSE, message_of(ALARM, f"{OTHER_HOUSE} seals"), {"refused": 1}, id="impersonated"
        ),
        pytest.param(
            HOUSE, message_of(ALARM, genesis=ELSEWHERE.hash), {"refused": 1}, id="foreign"
        ),
        pytest.param(REGULATOR, message_of(ALARM), {"refused": 1}, id="passed on by another"),
        pytest.param("house-9", message_of(ALARM), {"stranger": 1}, id="from nobody known"),
        pytest.param(HOUSE, message_of(ALARM)[:-1], {"refused": 1}, id="cut"),
        pytest.param(
            HOUSE,
            seal(ALARM.encode() + bytes(3000), key(f"{HOUSE} seals"), GENESIS.hash),
            {"refused": 1},
            id="too long",
        ),
        pytest.param(
            HOUSE, message_of(ALARM._replace(incarnation=2)), {"early": 1}, id="before its order"
        ),
        pytest.param(
            REGULATOR,
            blocks_message((message_of(ALARM),)),
            {"refused": 1},
            id="in a message of blocks",
        ),
    ],
)
def test_an_alarm_that_comes_is_judged(
    node: Member, sender: str, message: bytes, counts: dict[str, int]
) -> None:
    node.feed(Received(sender, message))
    assert node.gossip.counts == counts
    assert last(node) == (0 if counts else ALARM.number)
    assert bool(heard(node)) == (not counts)


@pytest.mark.parametrize(
    ("then", "held", "counts"),
    [
        pytest.param(message_of(ALARM), 41, {}, id="said again"),
        pytest.param(message_of(OVER), 42, {}, id="newer"),
        pytest.param(message_of(numbered(40)), 41, {"replayed": 1}, id="older"),
        pytest.param(message_of(numbered(41)), 41, {"replayed": 1}, id="another of this number"),
        pytest.param(message_of(numbered(UINT_MAX)), UINT_MAX, {}, id="the last there can be"),
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_behind_an_alarm_comes_one_that_is(
    node: Member, then: bytes, held: int, counts: dict[str, int], restarted: bool
) -> None:
    node.feed(Received(HOUSE, message_of(ALARM)))
    if restarted:
        node.start()
    node.told.clear()
    node.feed(Received(HOUSE, then))
    assert (last(node), node.gossip.counts) == (held, counts)
    assert bool(heard(node)) == (held > 41)


def test_whoever_forges_alarms_goes_into_quarantine_with_its_branch(node: Member) -> None:
    for number in range(FAULTS_MAX):
        node.feed(Received(HOUSE, message_of(numbered(number + 1), "stranger")))
    assert "quarantined" in {tell.event for tell in node.told}
    node.feed(Received(HOUSE, message_of(ALARM)))
    assert (last(node), node.gossip.counts["dropped"]) == (0, 1)
    node.feed(Received(REGULATOR, SEALED[0]))  # others are heard
    assert node.gossip.chains[HOUSE, 1].height == 1


def test_a_flood_of_a_neighbours_own_alarms_is_capped_and_its_state_comes_through(
    node: Member,
) -> None:
    kept = 0
    for number in range(1, 1001):
        effects = node.feed(Received(HOUSE, message_of(numbered(number))))
        kept += any(isinstance(effect, Persist) for effect in effects)
    assert (kept, len(heard(node)), last(node)) == (AT_ONCE, AT_ONCE, AT_ONCE)
    assert node.gossip.counts == {"alarms_dropped": 1000 - AT_ONCE}
    node.net.mono_ms += EVERY_MS
    node.feed(Received(HOUSE, message_of(numbered(1000))))  # it is said again
    assert last(node) == 1000


def test_each_alarm_is_told_once_and_once_that_it_is_over(node: Member) -> None:
    raised = ALARM._replace(number=40, word="case", standing=(CASE,))
    again = Standing("case", 44, 0)
    for alarm in (
        numbered(39),
        raised,
        ALARM,
        OVER,
        STARTED._replace(number=43, untold=5),
        ALARM._replace(number=44, word="case", standing=(again,)),  # it was over, unheard of
    ):
        for _ in range(3):
            node.feed(Received(HOUSE, message_of(alarm)))
    assert heard(node) == [
        ("neighbour_event", "started", None),
        ("neighbour_alarm", "case", None),
        ("neighbour_alarm", "port", None),
        ("neighbour_alarm_over", "port", None),
        ("neighbour_alarm_over", "case", 5),
        ("neighbour_event", "started", 5),
        ("neighbour_alarm", "case", None),
    ]


# --- keys and chains ------------------------------------------------------------------------------


def test_a_meter_with_a_new_key_says_the_same_again_and_nobody_is_told_twice() -> None:
    net = Net()
    net.settle(6)
    node = net.nodes[OTHER_HOUSE]
    node.feed(Received(HOUSE, message_of(ALARM)))
    told = heard(node)
    net.order(order(ROTATE))
    node.feed(Received(HOUSE, message_of(ALARM, NEW_KEY)))
    assert heard(node) == told
    node.start()
    assert last(node) == ALARM.number  # what is kept is under the key that counts
    node.feed(Received(HOUSE, message_of(OVER)))
    assert (last(node), node.gossip.counts["refused"]) == (ALARM.number, 1)


def test_a_key_of_an_order_that_is_not_in_force_here_yet_is_no_fault(node: Member) -> None:
    node.gossip.await_certificate(order(ROTATE))
    node.feed(Received(HOUSE, message_of(ALARM, NEW_KEY)))
    assert node.gossip.counts == {"early": 1}
    node.feed(Received(HOUSE, message_of(ALARM, "stranger")))
    assert node.gossip.counts == {"early": 1, "refused": 1}


def test_of_a_meter_that_is_revoked_no_alarm_is_shown() -> None:
    net = Net()
    net.settle(6)
    node = net.nodes[OTHER_HOUSE]
    node.feed(Received(HOUSE, message_of(ALARM)))
    (shown,) = node.gossip.alarms.shown()
    assert shown == {
        "name": HOUSE,
        "incarnation": 1,
        "number": 41,
        "wall_ms": ALARM.wall_ms,
        "kind": "alarm",
        "alarm": "port",
        "untold": 0,
        "standing": [
            {"alarm": one.word, "number": one.number, "since_ms": one.since_ms}
            for one in (CASE, PORT)
        ],
    }
    net.order(order(REVOKE))
    assert node.gossip.alarms.shown() == []
    node.feed(Received(HOUSE, message_of(OVER)))
    assert (node.gossip.counts["ended"], last(node)) == (1, ALARM.number)
    node.start()
    assert last(node) == 0


def test_a_new_incarnation_begins_its_numbers_anew(node: Member) -> None:
    roster = ordered(REVOKE, FORK_RESOLVE).roster
    alarms = Alarms(node.gossip, [message_of(ALARM)])
    alarms.restore()
    node.gossip.roster = roster
    assert alarms.shown() == []
    fresh = numbered(1)._replace(incarnation=2)
    node.gossip.alarms = alarms
    node.feed(Received(HOUSE, message_of(fresh, NEW_KEY)))
    assert (last(node), len(alarms.shown())) == (1, 1)


# --- this device's meter --------------------------------------------------------------------------


def said(effects: list[Effect]) -> tuple[list[bytes], list[str], int]:
    """Return what is published, which letters are done with, and how many alarms are kept."""
    kept = [e.records for e in effects if isinstance(e, Persist)]
    return (
        [
            e.message
            for e in effects
            if isinstance(e, Send) and (e.topic, e.retain) == ("alarm", True)
        ],
        [e.name for e in effects if isinstance(e, Taken)],
        sum(isinstance(record, PutAlarm) for records in kept for record in records),
    )


@pytest.fixture
def home() -> Member:
    return Net().nodes[HOUSE]


def test_what_our_meter_tells_is_kept_then_published_and_the_newest_letter_lies_on(
    home: Member,
) -> None:
    one, two = message_of(ALARM), message_of(OVER)
    assert said(home.feed(Alarmed("alarm-1", one))) == ([one], [], 1)
    effects = home.feed(Alarmed("alarm-2", two))
    assert said(effects) == ([two], ["alarm-1"], 1)
    assert isinstance(effects[0], Persist)
    home.start()
    assert said(home.feed(Alarmed("alarm-2", two))) == ([], [], 0)
    home.feed(Connected())
    home.net.mono_ms += CONNECTED_MS
    assert said(home.feed(Tick()))[0] == [two]
    assert not heard(home)  # its own journal has said so


@pytest.mark.parametrize(
    ("message", "told"),
    [
        pytest.param(b"garbage", "own_alarm_refused", id="garbage"),
        pytest.param(message_of(ALARM, "stranger"), "own_alarm_refused", id="forged"),
        pytest.param(
            message_of(ALARM._replace(meter=OTHER_HOUSE)), "own_alarm_refused", id="another's"
        ),
        pytest.param(sealed(order(ROTATE)), "own_alarm_refused", id="an order"),
        pytest.param(message_of(numbered(7)), "", id="older than the last"),
    ],
)
def test_a_letter_is_not_published_that_is(home: Member, message: bytes, told: str) -> None:
    home.feed(Alarmed("alarm-1", message_of(numbered(8))))
    assert said(home.feed(Alarmed("alarm-0", message))) == ([], ["alarm-0"], 0)
    assert [tell.event for tell in home.told if tell.level == 2] == ([told] if told else [])


def test_a_letter_that_comes_before_its_order_lies_on_and_is_taken_behind_it(home: Member) -> None:
    message = message_of(ALARM, NEW_KEY)
    home.gossip.await_certificate(order(ROTATE))
    assert said(home.feed(Alarmed("alarm-1", message))) == ([], [], 0)
    assert [home.gossip.alarms.wants(name) for name in ("alarm-1", "alarm-2")] == [True, False]
    home.gossip.roster = ordered(ROTATE).roster
    assert said(home.feed(Alarmed("alarm-1", message))) == ([message], [], 1)
    assert not home.gossip.alarms.wants("alarm-1")


def test_what_our_meter_tells_once_an_order_has_ended_it_goes_nowhere(home: Member) -> None:
    home.gossip.roster = ordered(REVOKE).roster
    assert said(home.feed(Alarmed("alarm-1", message_of(ALARM)))) == ([], ["alarm-1"], 0)
    assert home.told == []


def test_a_letter_of_a_meter_that_is_not_enrolled_yet_lies_on() -> None:
    net = Net(replace(GENESIS, meters=(meter(OTHER_HOUSE),)))
    home, message = net.nodes[HOUSE], message_of(ALARM, genesis=net.genesis.hash)
    assert said(home.feed(Alarmed("alarm-1", message))) == ([], [], 0)
    assert home.gossip.alarms.wants("alarm-1")


def test_the_last_is_said_again_with_each_connection_and_now_and_then(home: Member) -> None:
    message = message_of(ALARM)
    assert said(home.feed(Alarmed("alarm-1", message)))[0] == [message]

    def passes(ms: int) -> int:
        home.net.mono_ms += ms
        return len(said(home.feed(Tick()))[0])

    assert passes(AGAIN_MS // 2 - 1) == 0
    assert passes(AGAIN_MS) == 1
    home.feed(Connected())
    assert passes(CONNECTED_MS) == 1
    assert passes(CONNECTED_MS) == 0
    total = sum(passes(1000) for _ in range(3600))
    assert 3600 // 900 <= total <= 3600 // 300


def test_a_node_without_a_meter_and_one_that_has_told_nothing_say_nothing(home: Member) -> None:
    feeder = home.net.nodes["feeder-1"]
    for node in (home, feeder):
        node.feed(Connected())
        node.net.mono_ms += 2 * AGAIN_MS
        assert said(node.feed(Tick()))[0] == []
    assert said(feeder.feed(Alarmed("alarm-1", message_of(ALARM)))) == ([], ["alarm-1"], 0)
