"""Accounts to tamper with, and where the damage must be found.

The rule of the byte: where the first byte that differs lies says which block the damage belongs to
(`Stored.owners`). A changed byte of the blocks stream belongs to its block, an event to the first
block that counts it, a row to the block that takes it, a header to the first record behind it, and
what is added behind a segment to its last record. What no block seals is a tail in the last
segment, and bad where the next header has counted it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.ledger.memory import STRANGER_SEED, Owner, Stored, sealed_account, untraced

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTHING = Owner(0, None)


@pytest.fixture
def uncounted() -> Iterator[None]:
    with untraced():
        yield


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Six intervals, two runs, a gap block, a midnight, a circuit: all of it sealed."""
    return sealed_account(tmp_path_factory.mktemp("sealed") / "account")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The same readings in the account of another key."""
    return sealed_account(tmp_path_factory.mktemp("foreign") / "account", seed=STRANGER_SEED)


class Belongs(NamedTuple):
    """Where damage must be found.

    `owner` is its block; `tail` says that nothing durable lies behind it; `segment` and `offset`
    are the record's, or None where it has none of its own.
    """

    stream: str
    owner: Owner
    tail: bool
    segment: int
    offset: int | None


def first_difference(clean: bytes, tampered: bytes) -> int:
    """Return the first byte that differs; the shorter one's length where it begins the other."""
    at, size = 0, min(len(clean), len(tampered))
    while at < size:  # by halves: a comparison of slices runs in C
        step = min(64, size - at)
        if clean[at : at + step] != tampered[at : at + step]:
            return next(i for i in range(at, at + step) if clean[i] != tampered[i])
        at += step
    return size


def belongs(clean: Stored, stream: str, tampered: Stored) -> Belongs:
    """Return where damage to one stream belongs, by the first byte that differs."""
    owners = clean.owners(stream)
    last = clean.last(stream)
    number = next(
        number
        for number in sorted({*clean.streams[stream], *tampered.streams[stream]})
        if clean.streams[stream].get(number) != tampered.streams[stream].get(number)
    )
    if number > last:
        return Belongs(stream, NOTHING, tail=True, segment=number, offset=0)
    if number not in tampered.streams[stream]:
        _, _, owner = owners[number][0]
        return Belongs(stream, owner, owner == NOTHING and number == last, number, None)
    at = first_difference(clean.segment(stream, number), tampered.segment(stream, number))
    begin, end, owner = next((s for s in owners[number] if at < s[1]), owners[number][-1])
    behind = at >= end
    tail = number == last and (behind or owner == NOTHING)
    return Belongs(stream, owner, tail, number, None if behind else begin)


def assert_found(clean: Stored, stream: str, tampered: Stored, *, exact: bool = True) -> None:
    """Assert that tampering with one stream is found at its interval.

    If `exact`, it is laid to the stream and to the record. Records that the same key sealed or the
    same header linked, in another life, hold in themselves: what contradicts them is named then.
    """
    where = belongs(clean, stream, tampered)
    verdict = tampered.judge()
    if where.tail:
        assert verdict.verdict == "good", (where, verdict.first_bad)
        assert verdict.tail is not None, where
        assert (verdict.tail.stream, verdict.tail.segment) == (stream, where.segment)
        return
    height, start_s = where.owner
    if where.owner == NOTHING:
        head = clean.judge().head
        assert head is not None
        height, start_s = head.height + 1, head.end_s
    bad = verdict.first_bad
    assert bad is not None, where
    assert verdict.verdict == "bad"
    assert bad.height == height, (where, bad)
    assert bad.stream == stream or not exact, (where, bad)
    # Where another first block was put, sealed by the same key, its start can be told.
    assert bad.start_s == start_s or (stream, height) == ("blocks", 1), (where, bad)
    if exact and where.offset is not None:
        assert (bad.segment, bad.offset) == (where.segment, where.offset), bad
