"""What is changed in an account whose samples are gone, rightly or not, is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterd.ledger.segment import STREAMS
from tests.ledger.memory import DAY_ONE, DAY_TWO, STRANGER_SEED, Stored, Street, remembering
from tests.tampering_kit import sealed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["sealed"]


@pytest.fixture(scope="module", autouse=True)
def _remembering() -> Iterator[None]:
    with remembering():
        yield


def pruned_account(state: Path) -> Stored:
    """Return an account whose first two segments of samples an event says were pruned."""
    street = Street(state).feed(*DAY_ONE).restart().feed(*DAY_TWO)
    for number in (1, 2):
        stored = street.stored
        following, _ = stored.header("samples", number + 1)
        rows = len(stored.bodies("samples", number))
        details = stored.pruned_details(number, rows, following.previous_digest)
        street.event("pruned", details).commit()
    return street.feed((118, 80, 4)).finish().stored


def test_samples_that_were_rightly_pruned_are_good(tmp_path: Path) -> None:
    stored = pruned_account(tmp_path / "account")
    for gone in ((), (1,), (1, 2)):
        account = stored
        for number in gone:
            account = account.with_segment("samples", number, None)
        verdict = account.judge()
        assert (verdict.verdict, verdict.first_bad, verdict.pruned) == ("good", None, 2)


def test_samples_that_are_gone_without_an_event_are_bad(sealed: Stored) -> None:
    gone = sealed.with_segment("samples", 1, None)
    verdict = gone.judge()
    assert verdict.first_bad is not None
    assert (verdict.first_bad.height, verdict.first_bad.segment) == (1, 1)
    told_of_one = gone.with_segment("samples", 2, None)
    told_of_one = told_of_one.with_pruned(1, 4, previous_digest(sealed, 2))
    verdict = told_of_one.judge()
    assert verdict.first_bad is not None
    assert (verdict.first_bad.height, verdict.first_bad.segment) == (3, 2)


def previous_digest(stored: Stored, number: int) -> bytes:
    header, _ = stored.header("samples", number)
    return header.previous_digest


@pytest.mark.parametrize("rows", [3, 5])
def test_an_event_that_counts_pruned_rows_wrongly_is_found(sealed: Stored, rows: int) -> None:
    digest = previous_digest(sealed, 2)
    verdict = sealed.with_segment("samples", 1, None).with_pruned(1, rows, digest).judge()
    assert verdict.verdict == "bad"


def test_a_pruning_that_the_meter_did_not_seal_is_found(sealed: Stored) -> None:
    """Links have no key: whoever writes the card may say that samples went."""
    full = previous_digest(sealed, 2)
    gone = sealed.with_segment("samples", 1, None)
    assert gone.with_pruned(1, 4, full).judge().verdict == "good"
    details = sealed.pruned_details(1, 4, full)
    forged = [
        sealed.pruned_details(1, 4, full, STRANGER_SEED),
        details[:3],
        (*details[:3], ("seal", b"")),
        (("segment", 2), *details[1:]),
        (details[0], ("rows", 3), *details[2:]),
    ]
    for said in forged:
        bad = gone.with_event("pruned", said).judge().first_bad
        assert bad is not None
        assert bad.stream in {"events", "samples"}


def test_an_event_that_names_another_end_of_what_was_pruned_is_found(sealed: Stored) -> None:
    verdict = sealed.with_segment("samples", 1, None).with_pruned(1, 4, bytes(32)).judge()
    assert verdict.first_bad is not None
    assert (verdict.first_bad.segment, verdict.first_bad.height) == (2, 3)
    assert "does not follow the segment before" in verdict.first_bad.reason


def test_a_pruned_account_is_judged_as_strictly_as_any(tmp_path: Path) -> None:
    stored = pruned_account(tmp_path / "account")
    for number in (1, 2):
        stored = stored.with_segment("samples", number, None)
    for stream in STREAMS:
        for number in stored.numbers(stream):
            data = stored.segment(stream, number)
            for at in range(0, len(data), 3):
                changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                verdict = stored.with_segment(stream, number, changed).judge()
                named = verdict.first_bad or verdict.tail
                assert named is not None
                assert named.stream == stream
