"""What the peer process says of itself: a few words, rationed, forgotten unless repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.claims import (
    CHANGE_EVERY_MS,
    CHANGES_AT_ONCE,
    CLAIMS,
    CLAIMS_BYTES_MAX,
    REPEAT_MS,
    SILENT_MS,
    Claims,
    read_claims,
    spell_claims,
)
from meterd.errors import EncodingError
from tests.neighbours_kit import Home

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.neighbours import Neighbours

NONE: frozenset[str] = frozenset()
BROKER = frozenset({"no_broker"})
BOTH = frozenset(CLAIMS)


@given(words=st.frozensets(st.sampled_from(sorted(CLAIMS))))
def test_claims_are_read_as_they_were_spelt(words: frozenset[str]) -> None:
    assert read_claims(spell_claims(words)) == words
    assert len(spell_claims(BOTH)) <= CLAIMS_BYTES_MAX


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"no_broker", id="no end"),
        pytest.param(b"no_broker certificate_expired\n", id="another order"),
        pytest.param(b"no_broker no_broker\n", id="twice"),
        pytest.param(b" no_broker\n", id="a space"),
        pytest.param(b"well\n", id="a word that is none"),
        pytest.param(b"no_broker \x1b[2J\n", id="an escape"),
        pytest.param("no_bröker\n".encode(), id="not ASCII"),
        pytest.param(b"no_broker " * 100 + b"\n", id="long"),
    ],
)
def test_no_other_spelling_is_read(data: bytes) -> None:
    with pytest.raises(EncodingError, match="claims"):
        read_claims(data)


def test_a_change_is_told_once() -> None:
    claims = Claims()
    assert claims.changed(0) is None
    claims.hear(BROKER, 0)
    assert claims.changed(0) == BROKER
    claims.hear(BROKER, REPEAT_MS)
    assert claims.changed(REPEAT_MS) is None
    claims.hear(NONE, REPEAT_MS + 1)
    assert claims.changed(REPEAT_MS + 1) == NONE


def test_claims_fall_where_the_peer_process_is_silent() -> None:
    claims = Claims()
    claims.hear(BOTH, 0)
    assert claims.changed(0) == BOTH
    assert claims.changed(SILENT_MS - 1) is None
    assert claims.changed(SILENT_MS) == NONE


def test_a_process_that_changes_its_mind_for_ever_has_an_event_in_ten_minutes() -> None:
    claims, told = Claims(), 0
    hours_ms = 24 * 3_600_000
    for now_ms in range(0, hours_ms, 1000):
        claims.hear(BROKER if now_ms % 2000 else NONE, now_ms)
        told += claims.changed(now_ms) is not None
    assert told <= CHANGES_AT_ONCE + hours_ms // CHANGE_EVERY_MS


def test_they_come_through_the_inbox_and_change_nothing_else(tmp_path: Path) -> None:
    home = Home(tmp_path / "state")
    before = facts(home.neighbours)
    assert home.bring("claims", spell_claims(BOTH), name="peer") == []
    assert home.neighbours.claims.changed(home.now_ms) == BOTH
    home.bring("claims", b"stop metering\n")
    assert home.refused == {"claims": 1}
    assert facts(home.neighbours) == before


def facts(neighbours: Neighbours) -> tuple[object, ...]:
    return neighbours.chain, neighbours.order, neighbours.stopped, neighbours.witnessed
