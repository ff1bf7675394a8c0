"""Where a chain ends whose key was revoked: above that block nothing ever comes to be certified.

A voter that holds the order which revokes a key attests nothing more of that chain. So once a
quorum is known to have attested that order, their votes are all that there will ever be of theirs.
What may be certified, here or where nobody sees it, needs the votes of those that are not heard
besides, and of those that lie: who is proved to have signed two histories is one of them. All
honest nodes that have heard the same come to the same block.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import BlockRejectedError

if TYPE_CHECKING:
    from meterd.authority.node import Node
    from meterd.authority.roster import Committee
    from meterd.authority.witness import Held


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


def end_of(node: Node, held: Held) -> End:
    """Return where a chain ends.

    Raises:
        EndUnknownError: Its key is not revoked, too few of the voters are known to have attested
            that order, or what they have attested is not all here.
    """
    revoked_by = node.roster.enrolled(held.chain_id).revoked_by
    if not revoked_by:
        raise EndUnknownError("its key is not revoked: it may go on")
    ours, other = held.certified, 0
    for committee in node.roster.committees:
        heard, needed = _heard(node, committee, revoked_by)
        if needed <= 0:
            raise EndUnknownError(
                f"{len(heard)} voters of epoch {committee.epoch} are known to attest nothing more"
                " of it: others may have certified more than is seen here"
            )
        ours = max(ours, _ours(held, heard, needed))
        other = max(other, _other(held, heard, needed))
    if other <= held.certified:
        return End(ours, held.hashes[ours], elsewhere=False)
    if ours > held.certified and not _extends(held, ours, other):
        raise EndUnknownError(
            f"blocks {ours} and {other} of two histories may be certified, by voters not heard"
        )
    return End(other, held.branch[other].block_hash, elsewhere=True)


def vouched(node: Node, held: Held) -> int:
    """Return up to where blocks of a chain are taken, if its key has been revoked since.

    What was attested before may have been certified: who comes late has to hold it too. More of the
    voters attest it than may lie; or so many that its end may be there; or an order names it.
    """
    revoked_by = node.roster.enrolled(held.chain_id).revoked_by
    if not revoked_by:
        return 0
    highest = held.highest()
    best = max((height for at, height, _ in node.bases.values() if at == held.chain_id), default=0)
    for committee in node.roster.committees:
        heard, needed = _heard(node, committee, revoked_by)
        for voters, least in ((heard, needed), (committee.kids, committee.faults_max + 1)):
            heights = sorted((highest.get(kid, 0) for kid in voters), reverse=True)
            if 0 < least <= len(heights):
                best = max(best, heights[least - 1])
    return best


def _heard(node: Node, committee: Committee, revoked_by: int) -> tuple[set[bytes], int]:
    """Return who has attested for the last time, and how many of them make a quorum possible."""
    distributor = node.roster.distributor
    assert distributor is not None  # noqa: S101 - it gave the order
    orders, closed = node.hold(distributor).votes, node.closed.get(committee.epoch, set())
    lie = {kid for kid in committee.kids if ("authority", node.voter_name(kid)) in node.accused}
    heard = {
        kid
        for kid in committee.kids
        if kid in closed or (kid in orders and orders[kid].leaf.height >= revoked_by)
    } - lie
    unheard = len(committee.kids) - len(heard) - len(lie)
    return heard, committee.quorum - unheard - max(committee.faults_max, len(lie))


def _ours(held: Held, heard: set[bytes], needed: int) -> int:
    """Return up to where enough voters attest what is held here."""
    highest: dict[bytes, int] = {}
    for kid, height, _ in held.attested():
        if kid in heard:
            highest[kid] = max(height, highest.get(kid, 0))
    heights = sorted(highest.values(), reverse=True)
    return heights[needed - 1] if len(heights) >= needed else 0


def _other(held: Held, heard: set[bytes], needed: int) -> int:
    """Return up to where enough voters attest the other history.

    Raises:
        EndUnknownError: They attest what is not held here.
    """
    votes, unknown = Counter[int](), set[bytes]()
    for kid in heard:
        at_all = set[int]()
        for vote in (held.foreign.get(kid), held.ahead.get(kid)):
            if vote is None or vote.leaf.height <= held.certified:
                continue
            path = held.path_to(vote.leaf.height, vote.leaf.block_hash)
            if held.joins(path):
                at_all.update(path)
            elif not path or path[-1] > held.certified + 1:  # else against what is certified
                unknown.add(kid)
        votes.update(at_all)
    if len(unknown) >= needed:
        top = max(
            vote.leaf.height
            for kid in unknown
            for vote in (held.foreign.get(kid), held.ahead.get(kid))
            if vote is not None
        )
        raise EndUnknownError(f"blocks up to {top} that voters attest are not held here")
    return max((height for height, count in votes.items() if count >= needed), default=0)


def _extends(held: Held, ours: int, other: int) -> bool:
    """Say whether block `other` of the other history follows block `ours` of ours."""
    at = other
    while at > ours and at in held.branch:
        if at - 1 == ours:
            return held.branch[at].previous == held.hashes.get(ours)
        at -= 1
    return False
