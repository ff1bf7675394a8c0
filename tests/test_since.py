"""What a start finds to be another than the run before had, and how that one ended."""

from __future__ import annotations

import pytest

from meterd.ledger.event import Details, Event
from meterd.since import Last, Started, changes, ended, last_of, unclean

ONE, TWO = b"1" * 32, b"2" * 32
NOW = Started(software=b"s" * 32, settings=b"c" * 32, keys=(ONE, TWO), kept="vault")


def event(kind: str, *details: tuple[str, str | int | bytes], at_ms: int = 5) -> Event:
    return Event(number=1, boot_ms=at_ms, wall_ms=at_ms + 1000, kind=kind, details=details)


def started(now: Started = NOW) -> Event:
    return event("started", ("run", 1), ("software", now.software), *now.details)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        pytest.param(NOW, [], id="nothing"),
        pytest.param(
            NOW._replace(software=b"x" * 32),
            [("software_updated", (("old", b"x" * 32), ("new", b"s" * 32)))],
            id="the software",
        ),
        pytest.param(
            NOW._replace(settings=b"x" * 32),
            [("configuration", (("old", b"x" * 32), ("new", b"c" * 32)))],
            id="the settings",
        ),
        pytest.param(
            NOW._replace(keys=(ONE,)),
            [("key_made", (("key", TWO), ("kept", "vault")))],
            id="one key more",
        ),
        pytest.param(
            NOW._replace(keys=(ONE, TWO, b"3" * 32)),
            [("key_gone", (("key", b"3" * 32),))],
            id="one key less",
        ),
        pytest.param(
            NOW._replace(kept="file"),
            [
                ("key_moved", (("key", ONE), ("to", "vault"))),
                ("key_moved", (("key", TWO), ("to", "vault"))),
            ],
            id="where the keys are",
        ),
    ],
)
def test_e1_a_start_tells_what_has_changed(
    before: Started, expected: list[tuple[str, Details]]
) -> None:
    assert list(changes(started(before), NOW)) == expected


def test_e1_the_first_start_tells_its_settings_and_its_keys() -> None:
    assert list(changes(None, NOW)) == [
        ("configuration", (("new", b"c" * 32),)),
        ("key_made", (("key", ONE), ("kept", "vault"))),
        ("key_made", (("key", TWO), ("kept", "vault"))),
    ]


def test_behind_a_version_that_named_neither_only_what_is_known_is_told() -> None:
    before = event("started", ("run", 1), ("software", b"s" * 32))
    assert list(changes(before, NOW)) == [("configuration", (("new", b"c" * 32),))]


def test_where_no_digest_of_the_settings_is_known_nothing_is_told() -> None:
    assert list(changes(started(), NOW._replace(settings=b""))) == []


@pytest.mark.parametrize(
    ("kinds", "run", "expected"),
    [
        pytest.param([], 0, True, id="there was none"),
        pytest.param(["started", "stopped"], 1, True, id="it was stopped"),
        pytest.param(["started", "stopped", "refused", "alarm"], 1, True, id="and then refused"),
        pytest.param(["started", "stopped", "sealed"], 1, True, id="it sealed as it stopped"),
        pytest.param(["started", "stopped", "recovered"], 2, True, id="it began anew"),
        pytest.param(["started"], 1, False, id="it only started"),
        pytest.param(["started", "stopped", "started", "alarm"], 2, False, id="only one before"),
        pytest.param([], 3, False, id="a checkpoint is the last that is known of it"),
        pytest.param(["sealed"], 3, False, id="it sealed behind a checkpoint"),
        pytest.param(["sealed", "stopped"], 3, True, id="it was stopped behind a checkpoint"),
    ],
)
def test_e2_a_run_has_ended_by_itself_or_not(kinds: list[str], run: int, expected: bool) -> None:
    assert ended([event(kind) for kind in kinds], run=run) is expected


@pytest.mark.parametrize(
    ("at_ms", "row_ms", "offset_ms", "end_s", "expected"),
    [
        pytest.param(500, None, None, None, Last(7, 500, 1500), id="an event"),
        pytest.param(500, 400, None, None, Last(7, 500, 1500), id="an event behind the row"),
        pytest.param(500, 900, None, None, Last(7, 900, 1900), id="a row, by the event's clock"),
        pytest.param(500, 900, 7000, None, Last(7, 900, 7900), id="a row, by the run's clock"),
        pytest.param(None, 900, 7000, 3, Last(7, 900, 7900), id="a row behind a checkpoint"),
        pytest.param(None, None, 7000, 3, Last(7, 0, 3000), id="a block's end"),
        pytest.param(None, None, None, None, Last(7, 0, 0), id="nothing"),
    ],
)
def test_e2_the_last_instant_that_is_known_is_that_of(
    at_ms: int | None,
    row_ms: int | None,
    offset_ms: int | None,
    end_s: int | None,
    expected: Last,
) -> None:
    events = [] if at_ms is None else [event("alarm", at_ms=at_ms)]
    assert last_of(7, events, row_ms, offset_ms, end_s) == expected


@pytest.mark.parametrize(("same_boot", "kind"), [(True, "died"), (False, "power_lost")])
def test_e2_an_end_without_a_word_is_told_by_its_boot(same_boot: bool, kind: str) -> None:
    told = (("run", 7), ("last_boot_ms", 900), ("last_ms", 1900))
    assert unclean(Last(7, 900, 1900), same_boot=same_boot) == (kind, told)
