"""Merkle trees of RFC 9162 (section 2.1): a batch's root, and the path of a leaf to it.

>>> leaves = [b"one", b"two", b"three"]
>>> root(leaves) == climb(b"three", 2, 3, path(leaves, 2))
True
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from meterd.errors import EncodingError

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH_MAX = 32  # a tree of 2^32 leaves; a batch has fewer than 2^10


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256(0x00 || leaf)."""
    return sha256(b"\x00" + leaf).digest()


def _join(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Return the hashes level by level; a node without a sibling is carried up as it is.

    That is the tree of RFC 9162, whose left subtrees are the largest powers of two.
    """
    levels = [[leaf_hash(leaf) for leaf in leaves]]
    while len(levels[-1]) > 1:
        below = levels[-1]
        above = [_join(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
        if len(below) % 2:
            above.append(below[-1])
        levels.append(above)
    return levels


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root hash over `leaves`, of which there is at least one."""
    return _levels(leaves)[-1][0]


def path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the inclusion path of the leaf at `index`, from the leaf's sibling upwards."""
    return paths(leaves, (index,))[0]


def paths(leaves: Sequence[bytes], indexes: Sequence[int]) -> list[list[bytes]]:
    """Return the inclusion paths of several leaves of one tree."""
    levels = _levels(leaves)[:-1]
    result = []
    for index in indexes:
        steps, at = list[bytes](), index
        for level in levels:
            if at ^ 1 < len(level):
                steps.append(level[at ^ 1])
            at //= 2
        result.append(steps)
    return result


def climb(leaf: bytes, index: int, size: int, steps: Sequence[bytes]) -> bytes:
    """Return the root that `leaf` and its path lead to (RFC 9162, section 2.1.3.2).

    Raises:
        EncodingError: A tree of `size` leaves has no such path at `index`.
    """
    if not 0 <= index < size or len(steps) > PATH_MAX:
        raise EncodingError(f"a tree of {size} leaves has none at {index}")
    at, last, here = index, size - 1, leaf_hash(leaf)
    for step in steps:
        if last == 0:
            raise EncodingError("the path is longer than the tree is high")
        if at % 2 or at == last:
            here = _join(step, here)
            while at % 2 == 0 and at:
                at //= 2
                last //= 2
        else:
            here = _join(here, step)
        at //= 2
        last //= 2
    if last:
        raise EncodingError("the path ends below the root")
    return here
