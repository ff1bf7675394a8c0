"""What one street plays, and within which bounds: drawn from a seed, or written by hand."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.authority import asking, boot, judging, promises, voting, witness
from meterd.device import store
from tests.sim_oracle import faults

if TYPE_CHECKING:
    from collections.abc import Iterator

DISTRIBUTOR = "grid-co"

# Bounds so small that a short run meets them; nothing but effort may depend on their size.
SMALL: tuple[tuple[Any, str, int], ...] = (
    (witness, "HASHES_KEPT", 6),
    (witness, "BRANCH_ASKED_MAX", 2),
    (store, "HASHES_KEPT", 6),
    (store, "BLOCKS_BYTES_MAX", 1500),
    (store, "BATCHES_AT_ONCE", 20),
    (judging, "WAITING_MAX", 2),
    (asking, "BLOCKS_ASKED_MAX", 5),
    (asking, "BATCHES_ASKED_MAX", 20),
    (voting, "LEAVES_MAX", 4),
    (asking, "ASKED_MAX", 2),
    (asking, "CLAIMS_MAX", 2),
)
BRIEF: tuple[tuple[Any, str, int], ...] = (  # else so few blocks fit into so few seconds
    (boot, "FRESH_MS", 1600),
    (promises, "PROMISE_MS", 2000),
)


@contextmanager
def bounded(*, small: bool, brief: bool) -> Iterator[None]:
    """Play within other bounds than the code has."""
    before = [(module, name, getattr(module, name)) for module, name, _ in SMALL + BRIEF]
    for module, name, value in (SMALL if small else ()) + (BRIEF if brief else ()):
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


class Step(NamedTuple):
    """One thing that a hand-written plan does.

    Attributes:
        at_ms: When.
        what: Name of a method of `World` that plays it.
        values: Its arguments.
    """

    at_ms: int
    what: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run plays.

    Attributes:
        seed: Where every choice comes from.
        voters: How many authorities.
        meters: How many of them, the first, have a meter too.
        light: How many meters have no node of their own.
        spares: How many nodes do not vote yet.
        seconds: Simulated seconds before the healing.
        drop: Share of messages that are lost.
        late: Share of messages that come seconds later.
        liars: Indexes of two-faced authorities.
        forkers: Indexes of meters that seal two histories.
        forking: How readily.
        crashes: How many crashes at a random effect.
        restored: Indexes of nodes whose card is put back to an older state.
        partitions: How many times the street is cut in two.
        broker_deaths: How many times nothing gets through at all.
        jumps: How many times a node's clock goes wrong.
        changes: How the roster changes: voters that go, and spares that come, each time.
        order_forks: Whether the distributor orders two things at one height.
        replays: How many times the broker plays again what it remembers.
        haunts: Share of starts at which the broker plays old answers, and nothing else.
        forgeries: How many forged seals, and evidence against the honest.
        shy: Whether the first face of a liar attests no order.
        turns: How many times liars turn to other halves of the street.
        sister: Whether messages of a network with the same keys are played here.
        small: Whether bounds are so small that they matter.
        brief: Whether promises to meters that have started lapse soon.
        slow: What reaches the first restored node, or else the first, takes so many ms.
        removals: Whether voters that go have no node any more, unless they have a meter.
        rekeys: How many voters that stay have another key then.
        resolves: How many times the distributor looks for a chain with two histories, and ends it:
            it revokes its key, and the next time ends it, if its node can say where.
        replaces: How many times it does so with the chain of the first meter, whatever it is.
        silent: Whether the liars say nothing any more, from some moment on.
        script: What happens besides, and when.
    """

    seed: int
    voters: int = 4
    meters: int = 2
    light: int = 0
    spares: int = 0
    seconds: int = 12
    drop: float = 0.1
    late: float = 0.0
    liars: tuple[int, ...] = ()
    forkers: tuple[int, ...] = ()
    forking: float = 0.3
    crashes: int = 2
    restored: tuple[int, ...] = ()
    partitions: int = 1
    broker_deaths: int = 1
    jumps: int = 1
    changes: tuple[tuple[int, int], ...] = ()
    order_forks: bool = False
    replays: int = 0
    haunts: float = 0.0
    forgeries: int = 0
    shy: bool = False
    turns: int = 0
    sister: bool = False
    small: bool = False
    brief: bool = False
    slow: int = 0
    removals: bool = False
    rekeys: int = 0
    resolves: int = 0
    replaces: int = 0
    silent: bool = False
    script: tuple[Step, ...] = ()


def plan_of(seed: int) -> Plan:
    """Return the plan that a seed draws; in one of twelve more may lie than the design allows."""
    draw = random.Random(f"plan {seed}")
    voters = draw.choice((1, 2, 3, 4, 4, 4, 5, 5, 7, 10))
    faulty = faults(voters)
    if draw.random() < 1 / 12:
        faulty = draw.randint(faulty, voters - 1)
    liars = draw.randint(0, faulty)
    restored = draw.randint(0, faulty - liars)
    meters = draw.randint(1, min(voters, 4))
    forks = draw.random() < 0.5
    changes: tuple[tuple[int, int], ...] = ()
    if voters >= 3 and draw.random() < 0.35:
        changes = draw.choice((((1, 0),), ((0, 1),), ((1, 1),), ((2, 2),), ((1, 1), (1, 1))))
    return Plan(
        seed=seed,
        voters=voters,
        meters=meters,
        light=draw.choice((0,) * 10 + (3, 12)) if voters <= 5 else 0,
        spares=3 if changes else 0,
        seconds=draw.randint(6, 14),
        drop=draw.choice((0.0, 0.1, 0.3)),
        late=draw.choice((0.0, 0.0, 0.05)),
        liars=tuple(range(voters - liars, voters)),
        forkers=tuple(draw.sample(range(meters), draw.randint(1, meters))) if forks else (),
        forking=draw.choice((0.1, 0.4)),
        crashes=draw.randint(0, 5),
        restored=tuple(draw.sample(range(voters - liars), restored)),
        partitions=draw.randint(0, 3),
        broker_deaths=draw.randint(0, 1),
        jumps=draw.randint(0, 2),
        changes=changes,
        order_forks=bool(changes) and draw.random() < 0.15,
        replays=draw.choice((0, 0, 3)),
        haunts=draw.choice((0.0, 0.0, 0.7)),
        forgeries=draw.choice((0, 0, 4)),
        shy=draw.random() < 0.5,
        turns=draw.choice((0, 0, 2)) if liars else 0,
        sister=draw.random() < 0.08,
        small=draw.random() < 0.25,
        brief=draw.random() < 0.7,
        slow=draw.choice((0, 0, 0, 0, 700, 1400)),
        removals=bool(changes) and draw.random() < 0.5,
        resolves=draw.choice((0, 6)) if forks else 0,
        rekeys=draw.choice((0, 0, 1, 2)) if changes else 0,
        replaces=draw.choice((0, 0, 0, 6)),
        silent=bool(liars) and draw.random() < 0.25,
    )
