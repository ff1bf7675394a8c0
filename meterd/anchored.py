"""Whether an account is still the one that was timestamped outside; nothing is opened here.

A timestamp covers the hash of one block, and by the links of the chain all blocks before it. So an
account that was exchanged as a whole, by whoever holds its key and all its neighbours' votes, is
found out by the first timestamp that it does not have a block for.

>>> held = [Held(1, 1, b"a", b"g", 1800), Held(1, 2, b"b", b"a", 3600)]
>>> for judged in judge([Stamp(1, 2, b"b", 3605), Stamp(1, 3, b"c", 5405)], held):
...     print(judged.stamp.height, judged.reason or "good")
2 good
3 the account ends before it, at block 2: it was cut back since
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

AHEAD_S_MAX = 300  # a block that ends later than it was stamped: by so much may two clocks differ


class Stamp(NamedTuple):
    """What a timestamp says that was verified: this block was there at that time.

    Attributes:
        incarnation: Which chain of the meter.
        height: Of the block.
        block_hash: Its hash.
        at_s: When, by the authority's clock; Unix seconds.
    """

    incarnation: int
    height: int
    block_hash: bytes
    at_s: int


class Held(NamedTuple):
    """A block of the account, as far as a timestamp bears on it; `end_s` in Unix seconds."""

    incarnation: int
    height: int
    block_hash: bytes
    previous: bytes
    end_s: int


class Judged(NamedTuple):
    """A timestamp, and what is wrong between it and the account; empty where nothing is."""

    stamp: Stamp
    reason: str


def judge(stamps: Iterable[Stamp], held: Sequence[Held]) -> list[Judged]:
    """Return what each timestamp says of the account, the oldest first.

    Args:
        stamps: Each verified against its authority.
        held: All blocks of the account, in their order.
    """
    by_place = {(block.incarnation, block.height): block for block in held}
    broken = next(
        (
            later
            for earlier, later in pairwise(held)
            if earlier.incarnation == later.incarnation and later.previous != earlier.block_hash
        ),
        None,
    )
    return [
        Judged(stamp, _reason(stamp, by_place, held, broken))
        for stamp in sorted(stamps, key=lambda stamp: (stamp.at_s, stamp.height))
    ]


def _reason(
    stamp: Stamp,
    by_place: dict[tuple[int, int], Held],
    held: Sequence[Held],
    broken: Held | None,
) -> str:
    block = by_place.get((stamp.incarnation, stamp.height))
    if block is None:
        last = held[-1].height if held else 0
        if held and (held[-1].incarnation, last) > (stamp.incarnation, stamp.height):
            return "the account has no such block: its past was exchanged since"
        return f"the account ends before it, at block {last}: it was cut back since"
    if block.block_hash != stamp.block_hash:
        return "the account has another block there: its past was exchanged since"
    if block.end_s > stamp.at_s + AHEAD_S_MAX:
        return (
            f"the block ends {block.end_s - stamp.at_s} s after it was stamped:"
            " the device's clock was ahead"
        )
    if broken is not None and (broken.incarnation, broken.height) <= (
        stamp.incarnation,
        stamp.height,
    ):
        return f"block {broken.height} does not link to the one before: see `meterctl verify`"
    return ""
