from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.alarm_outbox import LETTERS_MAX, AlarmOutbox, letter_name
from meterd.device.mailbox import FILES_MAX, OUTBOX, Mailbox
from meterd.ledger.alarm import Alarm, open_alarm
from meterd.ledger.event import Event
from meterd.pins import EVENT_EVERY_MS
from tests.authority.examples import GENESIS, HOUSE, ROSTER, key, public

if TYPE_CHECKING:
    from pathlib import Path

    from nacl.signing import SigningKey

OLD, NEW = f"{HOUSE} seals", f"{HOUSE} seals, 2"


class Line:
    """A meter that tells of events, and its outbox as the peer process sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number, self.at_ms = folder, 0, 0
        self.key: SigningKey | None = key(OLD)
        self.outbox = Mailbox(folder / OUTBOX)
        self.start()

    def start(self) -> None:
        chain = ROSTER.open_chain((HOUSE, 1))
        self.alarms = AlarmOutbox(self.folder, chain, lambda: self.key)

    def happen(self, kind: str = "started", *, durable: bool = True) -> None:
        """Let an event happen, long after the one before."""
        self.number, self.at_ms = self.number + 1, self.at_ms + EVENT_EVERY_MS
        details = (("alarm", "case"),) if kind.startswith("alarm") else ()
        self.alarms.note(
            Event(number=self.number, boot_ms=self.at_ms, wall_ms=0, kind=kind, details=details)
        )
        if durable:
            self.turn()

    def turn(self) -> None:
        self.alarms.turn(self.at_ms, self.number)

    def told(self, by: str = OLD) -> list[Alarm]:
        """What lies in the outbox, under this key."""
        letters = sorted(self.outbox.read(128))
        alarms = [open_alarm(letter.data, public(by), GENESIS.hash) for letter in letters]
        assert [letter.name for letter in letters] == [letter_name(a.number) for a in alarms]
        return alarms


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def test_what_is_on_the_card_is_told_under_the_meters_seal(line: Line) -> None:
    line.happen("alarm", durable=False)
    assert (line.told(), line.alarms.pending) == ([], True)
    line.turn()
    (alarm,) = line.told()
    assert (alarm.meter, alarm.number, alarm.kind, alarm.word) == (HOUSE, 1, "alarm", "case")
    assert not line.alarms.pending


def test_where_nobody_takes_them_the_oldest_go_and_are_counted(line: Line) -> None:
    for _ in range(LETTERS_MAX + 5):
        line.happen()
    told = line.told()
    assert [alarm.number for alarm in told] == list(range(6, LETTERS_MAX + 6))
    assert sum(alarm.untold for alarm in told) == 5
    assert sum(path.stat().st_size for path in line.outbox.folder.iterdir()) < 36_000


def test_what_an_earlier_start_has_left_there_counts_too(line: Line) -> None:
    for _ in range(LETTERS_MAX):
        line.happen()
    line.start()
    line.happen()
    assert line.told()[0].number == 2
    assert line.told()[-1].untold == 1


def test_a_letter_that_found_no_room_is_put_there_later(line: Line) -> None:
    for number in range(FILES_MAX):
        assert line.outbox.put(f"x-{number}", b"")
    line.happen()
    for number in range(FILES_MAX):
        line.outbox.remove(f"x-{number}")
    assert line.told() == []
    line.turn()
    assert [alarm.number for alarm in line.told()] == [1]


def test_under_another_key_the_newest_is_told_again(line: Line) -> None:
    line.happen()
    line.key = key(NEW)
    line.turn()
    assert [alarm.number for alarm in line.told(NEW)] == [1]
    line.key = None  # an order names one that this device does not hold
    line.happen()
    assert [alarm.number for alarm in line.told(NEW)] == [1]
    line.key = key(NEW)
    line.turn()
    assert [alarm.number for alarm in line.told(NEW)] == [1, 2]


def test_an_event_is_told_to_others_who_listen_too(line: Line) -> None:
    heard: list[Event] = []
    event = Event(number=1, boot_ms=0, wall_ms=0, kind="started")
    line.alarms.beside(heard.append)(event)
    assert (heard, line.alarms.pending) == ([event], True)


def test_without_a_line_nothing_is_told_and_nothing_made(tmp_path: Path) -> None:
    alarms = AlarmOutbox(None, ROSTER.open_chain((HOUSE, 1)), lambda: key(OLD))
    alarms.note(Event(number=1, boot_ms=0, wall_ms=0, kind="started"))
    alarms.turn(0, 1)
    assert (alarms.pending, alarms.newest, list(tmp_path.iterdir())) == (False, None, [])
