"""What is done to the account of the vectors, and what has to be said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.ledger.encoding import digest
from tests.vectors.account import KEY, SEED, STRANGER, account

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.ledger.event import Details
    from tests.ledger.memory import Stored

CLEAN: Stored = account().build(SEED)
RECORDS = {stream: list(CLEAN.records(stream)) for stream in CLEAN.streams}


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def segment(stream: str, number: int, data: bytes | None) -> Stored:
    return CLEAN.with_segment(stream, number, data)


class Tampering(NamedTuple):
    """What was done to an account, and what must be said of it.

    `bad` is the stream and the block of the first bad place (None for none); `tail` the stream of
    bytes that count for nothing, where they begin, and how many there are.
    """

    name: str
    account: Stored
    bad: tuple[str, int | None] | None = None
    tail: tuple[str, int, int] | None = None
    known: dict[str, Any] | None = None
    verdict: str = ""


def tamperings() -> Iterator[Tampering]:
    """Changes to the clean account that break one thing each."""
    yield from _known()
    yield from _records()
    yield from _segments()
    yield from _ends()
    yield from _told()
    yield from _streams()


def _known() -> Iterator[Tampering]:
    """What is known from elsewhere."""
    head = CLEAN.blocks[-1]
    yield Tampering("the head is known", CLEAN, known={"head": [4, head.hash.hex()]})
    yield Tampering("the key is known", CLEAN, known={"key": bytes(KEY.verify_key).hex()})
    yield Tampering(
        "another key is known",
        CLEAN,
        ("genesis", None),
        known={"key": bytes(STRANGER.verify_key).hex()},
    )
    yield Tampering(
        "a later head is known", CLEAN, ("blocks", 5), known={"head": [5, bytes(32).hex()]}
    )
    yield Tampering(
        "another block 2 is known", CLEAN, ("blocks", 2), known={"head": [2, bytes(32).hex()]}
    )


def _records() -> Iterator[Tampering]:
    """Each record that a block seals, changed or taken away."""
    owners = {"blocks": [1, 2, 3, 4], "events": [1, 1, 1, 2, 2, 2, 3, 3, 4], "samples": [1] * 4}
    owners["samples"] += [2, 4, 4]
    for stream, heights in owners.items():
        for place, height in enumerate(heights):
            number, begin, end = RECORDS[stream][place]
            data = CLEAN.segment(stream, number)
            what = f"{stream}: record {place + 1}"
            bad = (stream, height)
            changed_byte = flipped(data, begin + 6)
            yield Tampering(f"{what} changed", segment(stream, number, changed_byte), bad)
            changed_link = flipped(data, end - 1)
            yield Tampering(f"{what}, its link changed", segment(stream, number, changed_link), bad)
            deleted = data[:begin] + data[end:]
            yield Tampering(f"{what} deleted", segment(stream, number, deleted), bad)


def _segments() -> Iterator[Tampering]:
    """Headers, whole segments, and what lies behind them."""
    headers = {"blocks": (1, 2), "events": (1, 3), "samples": (1, 4)}
    for stream, first_heights in headers.items():
        for number, height in enumerate(first_heights, start=1):
            data = CLEAN.segment(stream, number)
            header = flipped(data, 40)
            what = f"{stream}: segment {number}"
            yield Tampering(
                f"{what}, its header changed", segment(stream, number, header), (stream, height)
            )
            yield Tampering(f"{what} missing", segment(stream, number, None), (stream, height))
    for stream, height in (("blocks", 1), ("events", 2), ("samples", 2)):
        longer_by_8 = CLEAN.segment(stream, 1) + bytes(8)
        yield Tampering(
            f"{stream}: bytes behind the first segment",
            segment(stream, 1, longer_by_8),
            (stream, height),
        )
    for stream in CLEAN.streams:
        data = CLEAN.segment(stream, 2)
        yield Tampering(
            f"{stream}: bytes behind the last segment",
            segment(stream, 2, data + bytes(8)),
            tail=(stream, len(data), 8),
        )
        yield Tampering(
            f"{stream}: a torn segment behind the last",
            segment(stream, 3, data[:20]),
            tail=(stream, 0, 20),
        )
        yield Tampering(f"{stream}: the last segment twice", segment(stream, 3, data), (stream, 5))


def _ends() -> Iterator[Tampering]:
    """What is cut off, and links made anew."""
    events, samples = CLEAN.segment("events", 2), CLEAN.segment("samples", 2)
    (_, event_at, event_end), (_, row_at, row_end) = RECORDS["events"][-1], RECORDS["samples"][-1]
    yield Tampering(
        "the event of the last block cut off",
        segment("events", 2, events[:event_at]),
        tail=("events", event_at, 0),
    )
    yield Tampering(
        "the event of the last block torn",
        segment("events", 2, events[: event_end - 3]),
        tail=("events", event_at, event_end - 3 - event_at),
    )
    yield Tampering("the last open row cut off", segment("samples", 2, samples[:row_at]))
    yield Tampering(
        "the last open row torn",
        segment("samples", 2, samples[: row_end - 3]),
        tail=("samples", row_at, row_end - 3 - row_at),
    )
    yield Tampering(
        "the row behind the last block's end cut off",
        segment("samples", 2, samples[: 2 * row_at - row_end]),
        ("samples", 4),
    )
    yield Tampering(
        "links made anew in what is not sealed",
        CLEAN.relinked("samples", 2, [*(bodies := CLEAN.bodies("samples", 2))[:-1], bodies[0]]),
    )
    yield Tampering(
        "links made anew in what is sealed",
        CLEAN.relinked("samples", 1, CLEAN.bodies("samples", 1)[::-1]),
        ("samples", 1),
    )
    yield Tampering(
        "a last block that nobody sealed",
        CLEAN.relinked("blocks", 2, [*CLEAN.bodies("blocks", 2), b"linked"]),
        ("blocks", 5),
    )
    yield Tampering(
        "blocks and events cut back to block 3",
        CLEAN.with_segment(
            "blocks", 2, CLEAN.segment("blocks", 2)[: RECORDS["blocks"][3][1]]
        ).with_segment("events", 2, events[:event_at]),
    )
    yield Tampering(
        "the last block cut off",
        segment("blocks", 2, CLEAN.segment("blocks", 2)[: RECORDS["blocks"][3][1]]),
        ("blocks", 4),
    )


def _told() -> Iterator[Tampering]:
    """What an event tells of is good."""
    full = CLEAN.header("samples", 2)[0].previous_digest
    details = CLEAN.pruned_details(1, 5, full, SEED)
    gone = CLEAN.with_segment("samples", 1, None)
    yield Tampering("samples that an event says were pruned", gone.with_event("pruned", details))
    yield Tampering("samples that an event will have pruned", CLEAN.with_event("pruned", details))
    wrong = CLEAN.pruned_details(1, 5, bytes(32), SEED)
    unsealed: Details = (("segment", 1), ("rows", 5), ("digest", full))
    yield Tampering(
        "samples that an event of nobody's says were pruned",
        gone.with_event("pruned", unsealed),
        ("events", 5),  # what no block seals yet
    )
    yield Tampering(
        "samples pruned to another end", gone.with_event("pruned", wrong), ("samples", 4)
    )
    excess = bytes(8)
    end = RECORDS["samples"][4][2]
    torn: Details = (
        ("stream", "samples"),
        ("segment", 1),
        ("offset", end),
        ("bytes", len(excess)),
        ("sha256", digest(excess)),
    )
    longer_by_8 = CLEAN.with_segment("samples", 1, CLEAN.segment("samples", 1) + excess)
    yield Tampering("a torn tail that an event tells of", longer_by_8.with_event("torn_tail", torn))


def _streams() -> Iterator[Tampering]:
    """Whole streams, and the genesis."""
    for stream in CLEAN.streams:
        bad = (stream, 1)
        yield Tampering(f"{stream}: all segments missing", CLEAN.with_stream(stream, {}), bad)
    yield Tampering(
        "the genesis changed", replace(CLEAN, genesis=flipped(CLEAN.genesis, 60)), ("genesis", None)
    )
    yield Tampering(
        "the genesis cut", replace(CLEAN, genesis=CLEAN.genesis[:-1]), ("genesis", None)
    )
    yield Tampering("the genesis missing", replace(CLEAN, genesis=b""), verdict="unreadable")
