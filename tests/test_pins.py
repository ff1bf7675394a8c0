from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from meterd.errors import EncodingError
from meterd.ledger.encoding import encode
from meterd.pins import (
    EVENT_EVERY_MS,
    EVENTS_AT_ONCE,
    STUCK_MS,
    Change,
    Debouncer,
    Kept,
    Ration,
    Relay,
    case_event,
    decode_kept,
)

DEBOUNCE_MS = 50
SECOND_MS = 1000

# A pin over time: how long each level stands, the levels taking turns.
bounce_trains = st.lists(st.integers(0, DEBOUNCE_MS - 1), max_size=40)
stands = st.lists(st.integers(0, 4 * DEBOUNCE_MS), max_size=40)


def rested(level: bool = False) -> Debouncer:
    """A debouncer with a pin that has stood at `level` since long ago."""
    switch = Debouncer(DEBOUNCE_MS)
    switch.see(level, 0)
    assert switch.look(SECOND_MS) == Change(level, 0, 0)
    return switch


# --- bounce ---------------------------------------------------------------------------------------


@given(bounces=bounce_trains)
def test_e2_a_bounce_train_is_one_event_or_none(bounces: list[int]) -> None:
    switch, at_ms, level = rested(), 2 * SECOND_MS, True
    last_ms = at_ms
    for stood_ms in [*bounces, 0]:
        assert switch.see(level, at_ms) is None
        last_ms, at_ms, level = at_ms, at_ms + stood_ms, not level
    assert switch.look(last_ms + DEBOUNCE_MS - 1) is None
    change = switch.look(last_ms + DEBOUNCE_MS)
    assert switch.look(last_ms + SECOND_MS) is None
    if len(bounces) % 2:
        assert change is None  # it came to rest where it was
        assert switch.active is False
    else:
        assert change == Change(active=True, at_ms=last_ms, bounces=len(bounces))


def levels_of(stood: list[int], looks: list[int], *, end_ms: int) -> list[Change]:
    """What a debouncer says of a pin, looked at besides at `looks`."""
    switch = rested()
    found: list[Change | None] = []
    at_ms, level = 2 * SECOND_MS, True
    edges = []
    for stood_ms in stood:
        edges.append((at_ms, level))
        at_ms, level = at_ms + stood_ms, not level
    for now_ms, kind, edge in sorted(
        [(when_ms, 0, lvl) for when_ms, lvl in edges] + [(look_ms, 1, False) for look_ms in looks],
        key=lambda one: one[0],
    ):
        found.append(switch.look(now_ms) if kind else switch.see(edge, now_ms))
    found.append(switch.look(end_ms))
    return [change for change in found if change is not None]


@given(stood=stands, looks=st.lists(st.integers(2 * SECOND_MS, 12 * SECOND_MS), max_size=30))
def test_what_counts_does_not_depend_on_when_one_looks(stood: list[int], looks: list[int]) -> None:
    end_ms = 20 * SECOND_MS
    assert levels_of(stood, looks, end_ms=end_ms) == levels_of(stood, [], end_ms=end_ms)


@given(stood=stands)
def test_each_level_that_stands_long_enough_counts_and_no_other(stood: list[int]) -> None:
    at_ms, level, expected, active = 2 * SECOND_MS, True, [], False
    for number, stood_ms in enumerate(stood):
        last = number == len(stood) - 1
        if (last or stood_ms >= DEBOUNCE_MS) and level != active:
            expected.append((level, at_ms))
            active = level
        at_ms, level = at_ms + stood_ms, not level
    found = levels_of(stood, [], end_ms=30 * SECOND_MS)
    assert [(change.active, change.at_ms) for change in found] == expected
    assert all(one.active != other.active for one, other in pairwise(found))


@given(
    debounce_ms=st.integers(5, 500),
    look_ms=st.integers(1, 250),
    edge_ms=st.integers(0, 10 * SECOND_MS),
)
def test_e2_an_edge_is_told_within_a_second_without_any_callback(
    debounce_ms: int, look_ms: int, edge_ms: int
) -> None:
    switch = Debouncer(debounce_ms)
    switch.see(False, -SECOND_MS)
    for now_ms in range(0, edge_ms + 2 * SECOND_MS, look_ms):
        level = now_ms >= edge_ms
        if (switch.see(level, now_ms) or switch.look(now_ms)) and level:
            assert now_ms - edge_ms <= SECOND_MS
            return
    pytest.fail("the edge was never told")


def test_a_level_is_due_when_it_will_have_stood_long_enough() -> None:
    switch = rested()
    due_ms = [switch.due_ms]
    switch.see(True, 2000)
    due_ms.append(switch.due_ms)
    switch.look(2000 + DEBOUNCE_MS)
    due_ms.append(switch.due_ms)
    assert due_ms == [None, 2000 + DEBOUNCE_MS, None]


def test_a_look_that_overtakes_an_edge_does_no_harm() -> None:
    switch = rested()
    assert switch.see(True, 2001) is None
    assert switch.see(True, 2000) is None
    assert switch.look(2051) == Change(active=True, at_ms=2001, bounces=0)


def test_a_level_does_not_count_by_time_in_which_edges_were_lost() -> None:
    switch = rested()
    switch.see(True, 2000)
    switch.lost(2040)
    assert switch.look(2060) is None
    assert switch.look(2090) == Change(active=True, at_ms=2040, bounces=1)


def test_edges_cannot_be_lost_before_the_first_level_is_known() -> None:
    switch = Debouncer(DEBOUNCE_MS)
    switch.lost(0)
    assert switch.look(SECOND_MS) is None
    assert switch.due_ms is None


# --- a pin that does not come to rest ---------------------------------------------------------


def test_e2_a_pin_that_never_settles_is_stuck_until_it_does() -> None:
    switch, now_ms, level = rested(), 2 * SECOND_MS, False
    begun_ms = now_ms
    while now_ms - begun_ms < 2 * STUCK_MS:
        level = not level
        assert switch.see(level, now_ms) is None
        assert switch.stuck == (now_ms - begun_ms >= STUCK_MS)
        now_ms += DEBOUNCE_MS // 2
    switch.look(now_ms + DEBOUNCE_MS)
    assert not switch.stuck


@given(bounces=bounce_trains)
def test_a_bounce_is_not_stuck(bounces: list[int]) -> None:
    switch, at_ms, level = rested(), 2 * SECOND_MS, True
    for stood_ms in bounces:
        switch.see(level, at_ms)
        assume(at_ms - 2 * SECOND_MS < STUCK_MS)
        assert not switch.stuck
        at_ms, level = at_ms + stood_ms, not level


# --- what is found at the start ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "is_open", "first", "kind"),
    [
        pytest.param(False, True, True, "case_opened_while_off", id="e2 was opened while off"),
        pytest.param(True, False, True, "case_closed_while_off", id="was closed while off"),
        pytest.param(False, False, True, "", id="is as it was, closed"),
        pytest.param(True, True, True, "", id="is as it was, open"),
        pytest.param(None, True, True, "case_opened", id="is open and was never seen"),
        pytest.param(None, False, True, "", id="is closed and was never seen"),
        pytest.param(False, True, False, "case_opened", id="is opened"),
        pytest.param(True, False, False, "case_closed", id="is closed"),
    ],
)
def test_e2_a_case_that(kept: bool | None, is_open: bool, first: bool, kind: str) -> None:
    assert case_event(kept, is_open=is_open, first=first) == kind


# --- how many events --------------------------------------------------------------------------


@given(gaps_ms=st.lists(st.integers(0, 3 * EVENT_EVERY_MS), max_size=200))
def test_an_input_has_no_more_events_than_its_ration(gaps_ms: list[int]) -> None:
    ration, now_ms, taken = Ration(), 1_000_000, 0
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        taken += ration.take(now_ms)
        assert taken <= EVENTS_AT_ONCE + (now_ms - 1_000_000) // EVENT_EVERY_MS


def test_a_ration_comes_back_and_is_never_more_than_all_of_it() -> None:
    ration = Ration()
    assert [ration.take(0) for _ in range(EVENTS_AT_ONCE + 1)].count(False) == 1
    assert not ration.take(EVENT_EVERY_MS - 1)
    assert ration.take(EVENT_EVERY_MS)
    later_ms = 1000 * EVENT_EVERY_MS
    assert [ration.take(later_ms) for _ in range(2 * EVENTS_AT_ONCE)].count(True) == EVENTS_AT_ONCE


# --- what is kept -----------------------------------------------------------------------------

any_flag = st.sampled_from([None, False, True])


@given(st.builds(Kept, any_flag, st.booleans(), any_flag))
def test_what_is_kept_comes_back(kept: Kept) -> None:
    assert decode_kept(kept.encode()) == kept


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="is empty"),
        pytest.param(Kept().encode()[:-1], id="is cut off"),
        pytest.param(Kept().encode() + b"\0", id="has more behind it"),
        pytest.param(bytes(65), id="is too long"),
        pytest.param(encode(["meterd/pins/v2", 0, 1, 0]), id="is of another version"),
        pytest.param(encode(["meterd/pins/v1", 0, 1]), id="lacks a flag"),
        pytest.param(encode(["meterd/pins/v1", 3, 1, 0]), id="has a flag that is neither"),
        pytest.param(encode(["meterd/pins/v1", 0, 0, 0]), id="does not know of its alarm"),
    ],
)
def test_nothing_is_taken_from_a_state_that(data: bytes) -> None:
    with pytest.raises(EncodingError):
        decode_kept(data)


# --- the relay --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "closed"), [(None, True), (True, True), (False, False)], ids=["unset", "on", "off"]
)
def test_a_relay_begins_with_what_is_kept(kept: bool | None, closed: bool) -> None:
    relay = Relay(kept)
    assert (relay.closed, relay.state) == (closed, "moving")
    relay.showed(closed)
    assert relay.state == ("closed" if closed else "open")


def test_a_pin_that_is_not_what_it_was_set_to_has_failed() -> None:
    relay = Relay(kept=True)
    relay.showed(False)
    assert relay.state == "failed"
    relay.showed(True)
    assert relay.state == "closed"


def test_the_same_wish_again_is_nothing_to_keep() -> None:
    relay = Relay(kept=True)
    assert not relay.wish(True)
    assert relay.wish(False)
    assert not relay.wish(False)


@given(steps=st.lists(st.sampled_from(["close", "open", "write", "move"]), max_size=30))
def test_the_pin_only_ever_follows_wishes_that_are_on_the_card(steps: list[str]) -> None:
    """The card takes one write at a time, each the newest wish when it was handed over."""
    relay = Relay(kept=None)
    on_card = {True}  # every wish that ever was, and that no wish was
    writing: bool | None = None
    pin = True
    for step in steps:
        if step in {"close", "open"}:
            relay.wish(step == "close")
        elif step == "write":
            if writing is not None:
                on_card.add(writing)
                relay.durable(writing)
            writing = relay.wished
        else:
            pin = relay.closed
            relay.showed(pin)
        assert relay.closed in on_card
    for _ in range(2):
        relay.durable(relay.wished)
    assert relay.closed == relay.wished


def test_a_wish_that_was_taken_back_before_the_pin_moved_moves_nothing() -> None:
    relay = Relay(kept=True)
    relay.showed(True)
    relay.wish(False)
    relay.wish(True)
    relay.durable(False)  # it was being written meanwhile
    assert (relay.closed, relay.state) == (True, "closed")
