"""What a node knows of the time before: what its store holds, as values.

>>> NEW.sequences
()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meterd.authority.attestation import CHECKS_ALL, OPEN

if TYPE_CHECKING:
    from meterd.authority.attestation import Leaf
    from meterd.authority.roster import ChainId
    from meterd.authority.witness import Vote


class HeldBefore(NamedTuple):
    """A chain as the store holds it.

    Attributes:
        chain: Which.
        hashes: Hash by height of the last blocks.
        payloads: Payloads from the certified block on, or from the first: ascending.
        certified: Up to which height.
        certified_epoch: In which epoch.
        checks: What holds for every block above this node's last leaf here.
        sealed_to: Up to which height each block's own seal has been verified.
    """

    chain: ChainId
    hashes: dict[int, bytes]
    payloads: tuple[bytes, ...]
    certified: int
    certified_epoch: int
    checks: int
    sealed_to: int


class Sequence(NamedTuple):
    """How far a voter's batches are known.

    Attributes:
        number: The last one's number.
        batch_hash: Its hash.
        epoch: Its epoch.
        closing: Whether it closes that.
    """

    number: int
    batch_hash: bytes
    epoch: int
    closing: int


NOTHING = Sequence(0, bytes(32), 0, OPEN)


class Snapshot(NamedTuple):
    """What a store holds of the time before; an empty one for a new node.

    Attributes:
        starts: How often this node has started, this time included.
        chains: The meters' chains.
        orders: The distributor's orders with their seals, ascending.
        orders_certified: Up to which height.
        orders_checks: As for chains.
        votes: (key id, vote), the newest of each voter on each chain, in the order of batches.
        sequences: By key id.
        closed: (epoch, key id) of those who have closed an epoch.
        evidence: All evidence.
        counters: Last counter by sender.
        epoch: The epoch begun last.
        promises: (meter, incarnation, height), the last of each meter.
        locks: (epoch, key id, leaf) of what voters had attested when they closed an epoch, above
            what is certified.
        alarms: The last one of each meter, sealed.
    """

    starts: int = 1
    chains: tuple[HeldBefore, ...] = ()
    orders: tuple[bytes, ...] = ()
    orders_certified: int = 0
    orders_checks: int = CHECKS_ALL
    votes: tuple[tuple[bytes, Vote], ...] = ()
    sequences: tuple[tuple[bytes, Sequence], ...] = ()
    closed: frozenset[tuple[int, bytes]] = frozenset()
    evidence: tuple[bytes, ...] = ()
    counters: tuple[tuple[str, int], ...] = ()
    epoch: int = 1
    promises: tuple[tuple[str, int, int], ...] = ()
    locks: tuple[tuple[int, bytes, Leaf], ...] = ()
    alarms: tuple[bytes, ...] = ()


NEW = Snapshot()
