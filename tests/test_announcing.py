from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import meterd
from meterd import event_kinds
from meterd.announcing import ALARMS, KEPT_HERE, KINDS, OTHER, WAITING_MAX, Announcer
from meterd.claims import CLAIMS
from meterd.device.gpio import INPUTS
from meterd.event_kinds import SECURITY
from meterd.ledger.alarm import STANDING_MAX, WORD, decode_alarm
from meterd.ledger.event import Details, Event
from meterd.pins import EVENT_EVERY_MS, EVENTS_AT_ONCE

ALL = 1 << 40


def event(number: int, kind: str, *, at_ms: int = 0, **details: str) -> Event:
    spelt: Details = tuple(details.items())
    return Event(number=number, boot_ms=at_ms, wall_ms=number, kind=kind, details=spelt)


def noted(*events: Event) -> Announcer:
    announcer = Announcer("kitchen-12", 1)
    for one in events:
        announcer.note(one)
    return announcer


def test_each_event_is_told_once_with_what_stood_then() -> None:
    announcer = noted(
        event(1, "started"),
        event(2, "case_opened"),
        event(3, "alarm", alarm="case"),
        event(4, "alarm", alarm="port"),
        event(5, "alarm_over", alarm="case"),
    )
    told = [(a.number, a.kind, a.word, [s.word for s in a.standing]) for a in announcer.take(ALL)]
    assert told == [
        (1, "started", "", []),
        (2, "case_opened", "", []),
        (3, "alarm", "case", ["case"]),
        (4, "alarm", "port", ["case", "port"]),
        (5, "alarm_over", "case", ["port"]),
    ]
    assert announcer.take(ALL) == []


def test_nothing_is_told_before_it_is_on_the_card() -> None:
    announcer = noted(event(7, "started"), event(9, "alarm", alarm="case"))
    assert (announcer.take(6), announcer.pending) == ([], True)
    assert [alarm.number for alarm in announcer.take(8)] == [7]
    assert [alarm.number for alarm in announcer.take(9)] == [9]
    assert not announcer.pending


@pytest.mark.parametrize("kind", ["sealed", "counted", "port_lost", "order", "pruned"])
def test_no_neighbour_is_told_of(kind: str) -> None:
    assert not noted(event(1, kind)).pending


def test_no_detail_leaves_the_meter() -> None:
    (alarm,) = noted(event(1, "technician_entered", certificate="ann.smith", alarm="case")).take(1)
    assert (alarm.word, alarm.standing) == ("", ())
    (alarm,) = noted(event(1, "alarm", alarm="Ann Smith")).take(1)
    assert (alarm.word, [one.word for one in alarm.standing]) == (OTHER, [OTHER])


def test_a_flapping_alarm_is_rationed_and_its_last_state_comes_through() -> None:
    flaps = [
        event(n, "alarm" if n % 2 else "alarm_over", at_ms=n, alarm="port") for n in range(1, 100)
    ]
    announcer = noted(*flaps)
    first = announcer.take(ALL)
    assert [alarm.untold for alarm in first] == [0] * EVENTS_AT_ONCE
    announcer.turn(EVENT_EVERY_MS - 1)
    assert not announcer.pending
    announcer.turn(EVENT_EVERY_MS + 1)
    (alarm,) = announcer.take(ALL)
    assert (alarm.number, alarm.untold) == (99, 99 - EVENTS_AT_ONCE - 1)
    assert [one.number for one in alarm.standing] == [99]
    announcer.turn(100 * EVENT_EVERY_MS)
    assert not announcer.pending  # nothing is left to say


def test_a_card_that_stalls_makes_no_pile() -> None:
    announcer = Announcer("kitchen-12", 1)
    for number in range(1, 1000):
        announcer.note(event(number, "case_opened", at_ms=number * EVENT_EVERY_MS))
    told = announcer.take(ALL)
    assert len(told) == WAITING_MAX
    announcer.turn(1000 * EVENT_EVERY_MS)
    (alarm,) = announcer.take(ALL)
    assert (alarm.number, alarm.untold) == (999, 999 - WAITING_MAX - 1)


kinds = st.sampled_from(["started", "alarm", "alarm_over", "sealed"])


@given(st.lists(st.tuples(kinds, st.sampled_from(["case", "port"]), st.integers(0, 20_000))))
def test_what_is_told_can_be_spelt_counts_all_and_ends_in_the_last_state(
    happened: list[tuple[str, str, int]],
) -> None:
    announcer, at_ms, standing, told_of = Announcer("kitchen-12", 1), 0, dict[str, int](), 0
    for number, (kind, word, passed_ms) in enumerate(happened, start=1):
        at_ms += passed_ms
        if kind == "alarm_over" and word not in standing:
            continue  # what does not stand cannot fall
        announcer.note(event(number, kind, at_ms=at_ms, alarm=word))
        told_of += kind in KINDS
        if kind == "alarm":
            standing[word] = number
        elif kind == "alarm_over":
            del standing[word]
    announcer.turn(at_ms + EVENT_EVERY_MS)
    told = announcer.take(ALL)
    assert sum(1 + alarm.untold for alarm in told) == told_of
    numbers = [alarm.number for alarm in told]
    assert numbers == sorted(set(numbers))
    for alarm in told:
        assert decode_alarm(alarm.encode()) == alarm
    if told:
        assert {one.word: one.number for one in told[-1].standing} == standing


def alarms_in_source() -> set[str]:
    """The first argument of each `raise_alarm` in meterd."""
    found = set[str]()
    for path in Path(meterd.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("raise_alarm"):
                (word, *_) = call.args
                if isinstance(word, ast.Constant):
                    found.add(str(word.value))
                elif ast.unparse(word) == "claim":
                    found |= CLAIMS.keys()
                else:
                    assert ast.unparse(word) == "f'{name}_stuck'", (path, ast.unparse(word))
                    found |= {f"{name}_stuck" for name in INPUTS}
    return found


def test_every_alarm_of_this_meter_has_a_name_for_others() -> None:
    assert alarms_in_source() - ALARMS == set()
    assert {"case", "software_changed", "magnet_stuck", "no_broker"} <= alarms_in_source()
    assert alarms_in_source() == set(event_kinds.ALARMS)


def test_e1_each_security_event_is_told_or_kept_here_for_a_reason() -> None:
    security = {kind for kind, about in event_kinds.KINDS.items() if about.area in SECURITY}
    assert security | {"alarm", "alarm_over"} == KINDS | KEPT_HERE
    assert not KINDS & KEPT_HERE


def test_all_alarms_at_once_find_room() -> None:
    assert len(ALARMS | {OTHER}) <= STANDING_MAX
    assert all(WORD.fullmatch(word) for word in ALARMS | KINDS | {OTHER})
