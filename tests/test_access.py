"""Who came and who did not: what becomes an event, what is counted, what is refused."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import pytest

from meterd.access import LETTERS_MAX, Access
from meterd.bookkeeper import Bookkeeper
from meterd.device.clock import Stamp
from meterd.device.control_access import Refused, Technician
from meterd.errors import BusyError, UsageError
from meterd.pins import EVENT_EVERY_MS, EVENTS_AT_ONCE

if TYPE_CHECKING:
    from meterd.ledger.event import Details

JO = Technician("technician", "jo", 17)
ROOT = Technician("operator", "", 0)
SOURCE = "192.0.2.7"
SOMEBODY = Refused("1", "other", "key", SOURCE, 5)


class Desk(Bookkeeper):
    """An account that only remembers what happened, and a clock in the test's hands."""

    boot_id = bytes(16)

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.happened: list[tuple[str, Details]] = []
        self.access = Access(self, self, logging.getLogger("meterd-test-access"))

    def stamp(self, stamp: Stamp | None = None) -> Stamp:  # type: ignore[override]
        """Be both: what is stamped, and the clock that says when."""
        return stamp or Stamp(self.now_ms, 0, "S", 0)

    def event(self, kind: str, details: Details = ()) -> None:
        self.happened.append((kind, details))

    def refuse(self, count: int, source: str = SOURCE) -> list[bool]:
        begin = self.counted + self.access.untold
        keys = map(str, range(begin, begin + count))
        return [self.access.refused(SOMEBODY._replace(key=key, source=source)) for key in keys]

    @property
    def counted(self) -> int:
        """How many refused logins the events tell of, one way or the other."""
        details = [dict(details) for kind, details in self.happened if kind == "login_refused"]
        return len(details) + sum(cast("int", each.get("untold", 0)) for each in details)


def test_e1_a_login_and_its_end_are_events_that_say_who() -> None:
    desk = Desk()
    desk.access.login(JO, "SHA256:x", SOURCE)
    assert desk.access.left(JO, SOURCE)
    who = (("certificate", "jo"), ("serial", 17))
    assert desk.happened == [
        ("technician_entered", (*who, ("key", "SHA256:x"), ("source", SOURCE))),
        ("technician_left", (*who, ("source", SOURCE))),
    ]


def test_e1_an_end_without_a_begin_is_no_event() -> None:
    desk = Desk()
    assert not desk.access.left(JO, SOURCE)
    desk.access.login(JO, "SHA256:x", SOURCE)
    assert [desk.access.left(JO, SOURCE) for _ in range(3)] == [True, False, False]


def test_a5_a_command_that_changes_something_is_an_event_that_says_who() -> None:
    desk = Desk()
    desk.access.command(JO, "case ack")
    desk.access.command(ROOT, "case ack")
    assert desk.happened == [
        ("technician_command", (("certificate", "jo"), ("serial", 17), ("command", "case ack"))),
        ("technician_command", (("by", "operator"), ("command", "case ack"))),
    ]


def test_e1_whoever_is_refused_is_rationed_and_none_is_lost() -> None:
    desk = Desk()
    assert desk.refuse(100) == [True] * EVENTS_AT_ONCE + [False] * (100 - EVENTS_AT_ONCE)
    desk.access.turn()
    assert len(desk.happened) == EVENTS_AT_ONCE
    desk.now_ms += EVENT_EVERY_MS
    desk.access.turn()
    assert len(desk.happened) == EVENTS_AT_ONCE + 1
    assert desk.counted == 100
    assert dict(desk.happened[-1][1])["untold"] == 100 - EVENTS_AT_ONCE - 1
    desk.access.turn()
    assert desk.counted == 100
    desk.refuse(3, "192.0.2.8")
    desk.access.end()
    assert desk.counted == 103
    assert dict(desk.happened[-1][1])["source"] == "192.0.2.8"
    desk.access.end()
    assert desk.counted == 103


def test_e1_a_refusal_that_comes_behind_the_last_word_of_a_meter_is_left_to_the_next() -> None:
    desk = Desk()
    desk.refuse(EVENTS_AT_ONCE)
    desk.access.end()
    with pytest.raises(BusyError, match="the meter stops"):
        desk.refuse(1, "192.0.2.8")
    assert (desk.counted, desk.access.untold) == (EVENTS_AT_ONCE, 0)


def test_e1_a_refusal_that_is_told_again_is_the_same() -> None:
    desk = Desk()
    assert [desk.access.refused(SOMEBODY) for _ in range(3)] == [True] * 3
    assert desk.counted == 1


def test_e1_a_login_past_its_ration_is_refused_and_not_forgotten() -> None:
    desk = Desk()
    for _ in range(EVENTS_AT_ONCE):
        desk.access.login(JO, "SHA256:x", SOURCE)
    with pytest.raises(BusyError, match="too many logins") as refused:
        desk.access.login(JO, "SHA256:x", SOURCE)
    assert "try again" in refused.value.hint
    desk.now_ms += EVENT_EVERY_MS
    desk.access.login(JO, "SHA256:x", SOURCE)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a\nb", id="of two lines"),
        pytest.param("\x1b[2J", id="that clears a screen"),
        pytest.param("jö", id="of other letters"),
        pytest.param("x" * (LETTERS_MAX + 1), id="without an end"),
    ],
)
def test_nothing_is_written_down_for_a_text(text: str) -> None:
    desk = Desk()
    for attempt in (
        lambda: desk.access.login(JO, text, SOURCE),
        lambda: desk.access.login(JO, "SHA256:x", text),
        lambda: desk.access.login(JO._replace(certificate=text), "SHA256:x", SOURCE),
        lambda: desk.access.command(JO, text),
        lambda: desk.access.refused(SOMEBODY._replace(source=text)),
        lambda: desk.access.refused(SOMEBODY._replace(reason=text)),
    ):
        with pytest.raises(UsageError):
            attempt()
    assert desk.happened == []


@pytest.mark.parametrize("serial", [-1, 2**64])
def test_no_certificate_has_the_serial(serial: int) -> None:
    desk = Desk()
    with pytest.raises(UsageError, match="serial number"):
        desk.access.login(JO._replace(serial=serial), "SHA256:x", SOURCE)
    assert desk.happened == []


def test_a_name_that_a_stranger_typed_is_not_written_down() -> None:
    desk = Desk()
    with pytest.raises(UsageError, match="no refusal"):
        desk.access.refused(SOMEBODY._replace(account="maria.schmidt"))
    assert desk.happened == []


@pytest.mark.parametrize("at_s", [-1, 2**63])
def test_no_refusal_was_at(at_s: int) -> None:
    desk = Desk()
    with pytest.raises(UsageError, match="Unix seconds"):
        desk.access.refused(SOMEBODY._replace(at_s=at_s))
    assert desk.happened == []
