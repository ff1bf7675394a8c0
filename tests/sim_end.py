"""What must hold of the simulated street once it has healed.

Each honest node certifies each honest block, what is certified is what flowed, each order that was
given is in force, no chain has ended below what is certified, and strangers can be shown it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.authority.certificate import open_receipt, verify_receipt
from meterd.device import proofs
from meterd.errors import AbsentError, BlockRejectedError
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import digest, take_apart
from tests.sim_nodes import GAP, true_uj
from tests.sim_oracle import Refuted
from tests.sim_plan import DISTRIBUTOR

if TYPE_CHECKING:
    from tests.simulator import World

HEAL_MS = 120_000  # after healing all is certified within so long: a quarantine, and a minute


def _honest_chains(world: World) -> list[tuple[str, list[bytes]]]:
    meters = [
        (meter.name, meter.sealed)
        for meter in world.meters.values()
        if not meter.forks
        and not world.oracle.proven.enrolled((meter.name, 1)).revoked
        and not world.nodes[meter.name].lies
        and meter.name not in world.oracle.convicted  # its card was put back, it sealed anew
    ]
    return meters + [(light.name, light.sealed) for light in world.light]


def all_certified(world: World) -> bool:
    proven = world.oracle.proven
    there = [one for name, one in world.nodes.items() if one.honest and name in proven.nodes]
    gone = [one for name, one in world.nodes.items() if one.honest and name not in proven.nodes]
    for node in gone:  # whom an order removed has to hear of it
        if node.gossip is None or node.name in node.gossip.roster.nodes:
            return False
    if not world.plan.liars and not world.plan.restored and not world.plan.changes:
        for name in world.meters:
            heights = {one.certified(name) for one in there if one.gossip is not None}
            if len(heights) > 1:
                return False
    # Each order that its giver did not lose in a crash.
    given = max(one.height_of((DISTRIBUTOR, 1)) for one in there)
    for node in there:
        height = node.gossip.roster.head.height if node.gossip is not None else -1
        if height < (proven.head.height if world.plan.order_forks else given):
            return False
    for name, sealed in _honest_chains(world):
        for node in there:
            if node.gossip is None:
                return False
            held = node.gossip.chains.get((name, 1))
            if sealed and (held is None or held.certified < len(sealed) or not held.sealed):
                return False
        if name in world.meters and not world.meters[name].may_seal:
            return False
    return True


def judge(world: World) -> None:
    for node in world.nodes.values():
        if node.honest and node.gossip is not None and node.gossip.counts.get("misjudged"):
            raise Refuted(f"{node.name} met a mistake of its own")
    world.counts["blocks"] = sum(len(sealed) for _, sealed in _honest_chains(world))
    if not world.oracle.within:
        world.counts["beyond"] += 1
        return
    if not all_certified(world) and not world.plan.order_forks:
        raise Refuted(f"not all is certified {HEAL_MS} ms after healing: {_state(world)}")
    for name, sealed in _honest_chains(world):
        _judge_energy(world, name, sealed)
    _judge_ends(world)


def _judge_ends(world: World) -> None:
    """Check that no order has ended a chain below what is certified, or in another history."""
    for (name, incarnation), enrolled in world.oracle.proven.chains.items():
        if enrolled.closed is None:
            continue
        world.counts["ended"] += 1
        height, base = enrolled.closed
        for place, hashes in world.oracle.certified.items():
            ended = place[:2] == (name, incarnation)
            if ended and (place[2] > height or (place[2] == height and base not in hashes)):
                raise Refuted(f"block {place[2]} of {name} is certified, it ends at {height}")


def judge_receipts(world: World) -> None:
    """Check that honest nodes can show to a stranger what they hold as certified.

    Raises:
        Refuted: One cannot.
    """
    if not world.oracle.within:
        return
    draw = world.random
    honest = [node for node in world.nodes.values() if node.honest and node.gossip is not None]
    for node in draw.sample(honest, min(2, len(honest))):
        core = node.gossip
        assert core is not None
        for (name, incarnation), held in core.chains.items():
            if name not in world.meters or not held.certified:
                continue
            height = draw.randint(1, held.certified)
            try:
                receipt = proofs.receipt(node.store, (name, incarnation), height, core.roster)
                opened = open_receipt(receipt.encode())
                verify_receipt(opened, world.genesis)
            except (AbsentError, BlockRejectedError) as error:
                raise Refuted(f"{node.name}: receipt of {name}/{height}: {error}") from error


def _state(world: World) -> str:
    heights = {name: len(sealed) for name, sealed in _honest_chains(world)}
    waiting = [meter.name for meter in world.meters.values() if not meter.may_seal]
    lines = [f"sealed {heights}, liars {sorted(world.oracle.liars)}, may not seal {waiting}"]
    for node in world.nodes.values():
        if node.gossip is None:
            lines.append(f"{node.name} is down")
            continue
        chains = {
            chain[0]: (held.height, held.certified, held.frozen)
            for chain, held in node.gossip.chains.items()
        }
        core = node.gossip
        lines.append(
            f"{node.name} honest={node.honest} booted={core.booted} epoch={core.epoch} {chains}"
        )
    return "\n".join(lines)


def _judge_energy(world: World, name: str, sealed: list[bytes]) -> None:
    """Check that what is certified is what flowed, but for what is declared as not measured."""
    before_uj, before_s = 0, 0
    for height, message in enumerate(sealed, start=1):
        payload = take_apart(message).payload
        block = decode_block(payload)
        here = f"block {height} of {name}"
        if digest(payload) not in world.oracle.certified.get((name, 1, height), ()):
            if world.plan.order_forks:
                continue
            raise Refuted(f"{here} is not the certified one")
        flowed = sum(true_uj(name, second) for second in range(block.start_s, block.end_s))
        counted = block.energy[0].last_uj - block.energy[0].first_uj
        if block.energy[0].first_uj != before_uj or (height > 1 and block.start_s != before_s):
            raise Refuted(f"{here} does not go on where the one before ended")
        if counted != (0 if block.flags & GAP else flowed):
            raise Refuted(f"{here} counts {counted} uJ, {flowed} flowed")
        before_uj, before_s = block.energy[0].last_uj, block.end_s
