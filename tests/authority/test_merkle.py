from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.authority.merkle import PATH_MAX, climb, leaf_hash, path, paths, root
from meterd.errors import EncodingError

if TYPE_CHECKING:
    from collections.abc import Sequence

trees = st.lists(st.binary(max_size=8), min_size=1, max_size=70)


def split(size: int) -> int:
    """Return the largest power of two smaller than `size` (RFC 9162, section 2.1.1)."""
    return 1 << (size - 1).bit_length() - 1


def mth(leaves: Sequence[bytes]) -> bytes:
    """Return the Merkle Tree Hash as section 2.1.1 of RFC 9162 defines it."""
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def inclusion(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """Return PATH(m, D_n) as section 2.1.3.1 of RFC 9162 defines it."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*inclusion(index, leaves[:k]), mth(leaves[k:])]
    return [*inclusion(index - k, leaves[k:]), mth(leaves[:k])]


@given(trees, st.data())
def test_root_and_path_are_those_of_the_rfc(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    steps = path(leaves, index)
    assert (root(leaves), steps) == (mth(leaves), inclusion(index, leaves))
    assert climb(leaves[index], index, len(leaves), steps) == root(leaves)


@given(trees)
def test_many_paths_are_each_ones(leaves: list[bytes]) -> None:
    every = range(len(leaves))
    assert paths(leaves, every) == [path(leaves, index) for index in every]


@given(st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=40, unique=True), st.data())
def test_a_leaf_leads_to_the_root_from_its_own_place_alone(
    leaves: list[bytes], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    other = data.draw(st.integers(0, len(leaves) - 1).filter(lambda at: at != index) | st.just(-1))
    assert not leads(leaves, leaves[index], other, path(leaves, index))
    assert not leads(leaves, b"", index, path(leaves, index))


@given(trees, st.data())
def test_a_changed_path_leads_elsewhere(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    steps = path(leaves, index)
    assert not leads(leaves, leaves[index], index, [*steps, bytes(32)])
    if steps:
        assert not leads(leaves, leaves[index], index, steps[:-1])
        at = data.draw(st.integers(0, len(steps) - 1))
        steps[at] = bytes([steps[at][0] ^ 1]) + steps[at][1:]
        assert not leads(leaves, leaves[index], index, steps)


def leads(leaves: list[bytes], leaf: bytes, index: int, steps: list[bytes]) -> bool:
    """Say whether `steps` lead from a leaf of a tree of this size to its root."""
    try:
        return climb(leaf, index, len(leaves), steps) == root(leaves)
    except EncodingError:
        return False


LEAVES = [b"one", b"two", b"three"]


@pytest.mark.parametrize(
    ("index", "size", "steps", "message"),
    [
        pytest.param(3, 3, path(LEAVES, 2), "has none at 3", id="behind the last leaf"),
        pytest.param(-1, 3, path(LEAVES, 2), "has none at -1", id="before the first"),
        pytest.param(0, 0, [], "has none at 0", id="in a tree without leaves"),
        pytest.param(0, 3, [bytes(32)] * (PATH_MAX + 1), "has none at 0", id="far too long"),
        pytest.param(0, 1, [bytes(32)], "longer than the tree", id="longer than the tree is high"),
        pytest.param(0, 3, path(LEAVES, 0)[:1], "ends below the root", id="too short"),
        pytest.param(0, 1 << 40, [bytes(32)] * 32, "ends below", id="short in a tree too large"),
    ],
)
def test_a_path_is_refused_that_is(index: int, size: int, steps: list[bytes], message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        climb(LEAVES[index] if 0 <= index < 3 else b"", index, size, steps)


def test_a_leaf_is_no_node_and_a_tree_of_one_is_its_leaf() -> None:
    joined = leaf_hash(b"one") + leaf_hash(b"two")
    assert leaf_hash(joined) != root([b"one", b"two"])
    assert root([b"one"]) == climb(b"one", 0, 1, []) == leaf_hash(b"one")


def test_the_roots_are_those_that_other_logs_publish() -> None:
    """Leaves and roots of the Certificate Transparency reference tests."""
    leaves = [
        bytes.fromhex(leaf)
        for leaf in (
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        )
    ]
    roots = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for size, hashed in roots.items():
        assert root(leaves[:size]).hex() == hashed
