"""Where a chain ends whose key was revoked: above that block nothing ever comes to be certified.

A voter that holds the order which revokes a key attests nothing more of that chain. So once a
quorum is known to have attested that order, their votes are all that there will ever be of theirs.
What may be certified, here or where nobody sees it, needs the votes of those that are not heard
besides, of those whose votes are on blocks that are not here, and of those that lie: whose key is
proved to have signed two histories is one of them. All honest nodes that have heard the same come
to the same block.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import BlockRejectedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterd.authority.attestation import Leaf
    from meterd.authority.node import Node
    from meterd.authority.roster import Committee
    from meterd.authority.witness import Held

DISPUTED_MAX = 1024  # blocks that fewer vouch for than may lie: 21 days, as of another history


class EndUnknownError(BlockRejectedError):
    """Too few voters have been heard to say where the chain ends, or blocks of it are lacking."""


class End(NamedTuple):
    """The last block of a chain that may be certified.

    Attributes:
        height: Its height; 0 where there is none.
        block_hash: Its hash.
        elsewhere: Whether it is of the other history than the one that is held here.
    """

    height: int
    block_hash: bytes
    elsewhere: bool


class Heard(NamedTuple):
    """What the voters of an epoch attest of a chain, for the last time.

    Attributes:
        final: What each has attested above what is certified, by key id; of two leaves, one is of
            another history.
        unheard: How many may attest more.
        lie: How many are known to lie.
    """

    final: dict[bytes, list[Leaf]]
    unheard: int
    lie: int


def end_of(node: Node, held: Held) -> End:
    """Return where a chain ends.

    Raises:
        EndUnknownError: Its key is not revoked, too few of the voters are known to have attested
            that order, or what they have attested is not all here.
    """
    revoked_by = node.roster.enrolled(held.chain_id).revoked_by
    if not revoked_by:
        raise EndUnknownError("its key is not revoked: it may go on")
    ours, elsewhere = held.certified, set[int]()
    for committee in node.roster.committees:
        heard = _heard(node, held, committee, revoked_by)
        heights, others, lacking = list[int](), Counter[int](), list[int]()
        for leaves in heard.final.values():
            height, path, unknown = _place(held, leaves)
            heights.append(height)
            others.update(path)
            lacking += [unknown] if unknown else []
        needed = committee.quorum - heard.unheard - max(committee.faults_max, heard.lie)
        if needed <= 0:
            raise EndUnknownError(
                f"{len(heard.final)} voters of epoch {committee.epoch} are known to attest nothing"
                " more of it: others may have certified more than is seen here"
            )
        if needed <= len(lacking):
            raise EndUnknownError(f"blocks up to {max(lacking)} that voters attest are not here")
        needed -= len(lacking)
        heights.sort(reverse=True)
        ours = max((ours, *heights[needed - 1 : needed]))
        elsewhere.update(height for height, count in others.items() if count >= needed)
    other = max(elsewhere, default=0)
    if other <= held.certified:
        return End(ours, held.hashes[ours], elsewhere=False)
    path = held.path_to(other, held.branch[other].block_hash)
    if ours > path[-1] - 1 or not elsewhere.issubset(path):
        raise EndUnknownError(
            f"blocks {ours} and {other} of two histories may both be certified, for all that is"
            " known here"
        )
    return End(other, held.branch[other].block_hash, elsewhere=True)


def open_to(node: Node, held: Held) -> int | None:
    """Return up to where blocks of a chain are taken; None where that has no end.

    What was attested before its key was revoked may have been certified: who comes late has to hold
    it too. More of the voters attest it than may lie, or one does, or an order names it.
    """
    enrolled = node.roster.enrolled(held.chain_id)
    if enrolled.closed is not None:
        return enrolled.closed[0]
    if not enrolled.revoked:
        return None
    best, some = held.certified, 0
    for chain_id, height, _ in node.bases.values():
        best = max(best, height if chain_id == held.chain_id else 0)
    for committee in node.roster.committees:
        heights = _heights(node, held, committee)
        some = max((some, *heights[:1]))
        best = max((best, *heights[committee.faults_max : committee.faults_max + 1]))
    return max(best, min(some, held.certified + DISPUTED_MAX))


def _heights(node: Node, held: Held, committee: Committee) -> list[int]:
    """Return up to where the voters of an epoch attest a chain, whatever history, descending."""
    leaves = (_final(node, held, committee, kid) for kid in committee.kids)
    return sorted((max(leaf.height for leaf in each) for each in leaves if each), reverse=True)


def _final(node: Node, held: Held, committee: Committee, kid: bytes) -> list[Leaf]:
    """Return what a voter has attested last in an epoch, above what is certified."""
    if node.has_closed(committee.epoch, kid):
        lock = held.locks.get((committee.epoch, kid))
        return [lock] if lock is not None else []
    votes = (votes.get(kid) for votes in (held.votes, held.foreign, held.ahead))
    return [
        vote.leaf
        for vote in votes
        if vote and vote.epoch == committee.epoch and vote.leaf.height > held.certified
    ]


def _heard(node: Node, held: Held, committee: Committee, revoked_by: int) -> Heard:
    distributor = node.roster.distributor
    assert distributor is not None  # noqa: S101 - it gave the order
    orders, lie = node.hold(distributor).votes, 0
    final: dict[bytes, list[Leaf]] = {}
    guilty = {one.kid for one in node.accused.values()}
    for kid in committee.kids:
        order = orders.get(kid)
        if kid in guilty:
            lie += 1
        elif node.has_closed(committee.epoch, kid) or (order and order.leaf.height >= revoked_by):
            final[kid] = _final(node, held, committee, kid)
    return Heard(final, len(committee.kids) - len(final) - lie, lie)


def _place(held: Held, leaves: Iterable[Leaf]) -> tuple[int, list[int], int]:
    """Return up to where leaves of one voter lie on our history, and where on the other one.

    And the height of one of which it is not known, as blocks are lacking; or 0.
    """
    ours, path, unknown = 0, list[int](), 0
    for leaf in leaves:
        if held.hashes.get(leaf.height) == leaf.block_hash:
            ours = max(ours, leaf.height)
            continue
        way = held.path_to(leaf.height, leaf.block_hash)
        if held.joins(way):
            ours, path = max(ours, way[-1] - 1), way
        elif not way or way[-1] > held.certified + 1:  # else it is against what is certified
            unknown = max(unknown, leaf.height)
    return ours, path, unknown
