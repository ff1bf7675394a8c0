"""The rules of one meter's chain: what may follow what.

`verify_block` is applied by the meter to its own block before it seals it, by its recovery to
what it finds on the card, and by everybody else to what they are given. It says nothing of
physics: a block that passes was sealed by this meter, here, in this order, and no register fell.

>>> from meterd.ledger.account import standalone
>>> network = standalone("kitchen-12", bytes(32), interval_s=1800, zone="UTC", currency="EUR",
...                      fuse_ma=60_000, nominal_mv=230_000, mains_clamps=1)
>>> open_chain(network, "kitchen-12").head.height
0
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from nacl.signing import VerifyKey

from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.block import Block, Energy, decode_block
from meterd.ledger.encoding import digest, take_apart, verify_seal
from meterd.metering.energy import obis_code
from meterd.metering.interval import GAP, PARTIAL, STEP_MS, STEPPED

if TYPE_CHECKING:
    from meterd.ledger.account import Genesis

FLAGS_MAX = 63
MEASURED_SLACK_MS = 2 * STEP_MS + 1000  # a boundary moves by a step too small to note, twice


class Head(NamedTuple):
    """The last block of a chain, as far as the next one depends on it.

    Attributes:
        height: 0 before the first block.
        block_hash: Hash of that block; of genesis before the first.
        end_s: Its end, Unix seconds; None before the first.
        energy: Its registers, whose last is the next block's first.
        parameters: Hash of its parameter record, empty before the first.
        order: The order it names.
        events: Number of events it counts.
    """

    height: int
    block_hash: bytes
    end_s: int | None
    energy: tuple[Energy, ...]
    parameters: bytes
    order: tuple[int, bytes]
    events: int


class Chain(NamedTuple):
    """A chain as far as it has been verified: its network's terms, its sealer and its head.

    Attributes:
        genesis: Hash of the network's genesis.
        meter: Whose.
        incarnation: Which of its chains.
        interval_s: Length of an interval at the genesis.
        sealer: The meter's first key.
        head: The last block.
        keys: (order height, sealing key): good for blocks that name that order or a later one,
            where there is more than the first.
        changes: (order height, from when on, interval_s), likewise.
        commanders: (order height, public key) of who gives orders, ascending: from that order on
            commands over parameters rest on that key; none where the meter's owner commands.
    """

    genesis: bytes
    meter: str
    incarnation: int
    interval_s: int
    sealer: bytes
    head: Head
    keys: tuple[tuple[int, bytes], ...] = ()
    changes: tuple[tuple[int, int, int], ...] = ()
    commanders: tuple[tuple[int, bytes], ...] = ()

    def key_at(self, order_height: int) -> bytes:
        """Return the key that seals blocks which name the order of this height."""
        return ([self.sealer] + [key for at, key in self.keys if at <= order_height])[-1]

    def interval_at(self, order_height: int, start_s: int) -> int:
        """Return the interval of a block that names this order and begins at `start_s`."""
        fitting = [
            interval_s
            for at, from_s, interval_s in self.changes
            if at <= order_height and from_s <= start_s
        ]
        return fitting[-1] if fitting else self.interval_s


def open_chain(genesis: Genesis, meter: str) -> Chain:
    """Return the empty chain of `meter` as its network's genesis enrols it.

    Raises:
        EncodingError: The network has no such meter.
    """
    enrolled = genesis.meter(meter)
    return Chain(
        genesis=genesis.hash,
        meter=meter,
        incarnation=enrolled.incarnation,
        interval_s=genesis.interval_s,
        sealer=enrolled.sealing_key,
        head=Head(
            height=0,
            block_hash=genesis.hash,
            end_s=None,
            energy=(),
            parameters=b"",
            order=(0, genesis.hash),
            events=0,
        ),
        commanders=tuple((0, n.sealing_key) for n in genesis.nodes if n.role == "distributor"),
    )


def verify_sealed(message: bytes, chain: Chain) -> tuple[Block, Chain]:
    """Return the block that `message` seals, and the chain with it added.

    Raises:
        BlockRejectedError: It is misspelt, not sealed by this meter, or does not follow.
    """
    block, payload = open_block(message, chain)
    return block, chain._replace(head=verify_block(block, payload, chain))


def open_block(message: bytes, chain: Chain) -> tuple[Block, bytes]:
    """Return the block in `message` and its payload, its seal verified, its place not yet.

    Raises:
        BlockRejectedError: It is misspelt, or not sealed by this meter for this network.
    """
    try:
        sealed = take_apart(message)
        if not chain.keys:
            verify_seal(sealed, _key(chain.sealer), chain.genesis)
            return decode_block(sealed.payload), sealed.payload
        block = decode_block(sealed.payload)
        verify_seal(sealed, _key(chain.key_at(block.order[0])), chain.genesis)
    except EncodingError as error:
        raise BlockRejectedError(f"not a sealed block: {error}") from error
    return block, sealed.payload


@lru_cache(maxsize=16)
def _key(sealer: bytes) -> VerifyKey:
    return VerifyKey(sealer)


def verify_block(block: Block, payload: bytes, chain: Chain) -> Head:
    """Return the head of `chain` once `block`, whose bytes are `payload`, is added to it.

    Raises:
        BlockRejectedError: The block does not follow the head; the message says which rule.
    """
    head = chain.head
    place = (block.height, block.meter, block.genesis, block.incarnation)
    if place != (head.height + 1, chain.meter, chain.genesis, chain.incarnation):
        raise BlockRejectedError(_displaced(place, chain))
    if block.previous != head.block_hash:
        raise BlockRejectedError(f"block {block.height} does not link to the block before it")
    if block.order[0] < head.order[0] or (
        block.order[0] == head.order[0] and block.order[1] != head.order[1]
    ):
        raise BlockRejectedError(f"block {block.height} goes back behind order {head.order[0]}")
    if block.events < head.events:
        raise BlockRejectedError(
            f"block {block.height} counts {block.events} events, expected {head.events}"
        )
    _verify_time(block, chain)
    _verify_energy(block, head)
    return Head(
        height=block.height,
        block_hash=digest(payload),
        end_s=block.end_s,
        energy=block.energy,
        parameters=block.parameters,
        order=block.order,
        events=block.events,
    )


def _displaced(got: tuple[object, ...], chain: Chain) -> str:
    """Say what of a block's place is not what follows in `chain`."""
    expected = (chain.head.height + 1, chain.meter, chain.genesis, chain.incarnation)
    names = ("height", "meter", "genesis", "incarnation")
    return next(
        f"expected {what} {_said(one)}, got {_said(other)}"
        for what, one, other in zip(names, expected, got, strict=True)
        if one != other
    )


def head_behind(chain: Chain, payload: bytes) -> Head:
    """Return the head of `chain` once the block in `payload`, verified before, is its last.

    Raises:
        EncodingError: It is no block.
    """
    block = decode_block(payload)
    return chain.head._replace(
        height=block.height,
        block_hash=digest(payload),
        end_s=block.end_s,
        energy=block.energy,
        parameters=block.parameters,
        order=block.order,
        events=block.events,
    )


def _said(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _verify_time(block: Block, chain: Chain) -> None:
    interval_s = chain.interval_s
    if chain.changes:
        interval_s = chain.interval_at(block.order[0], block.start_s)
    if block.end_s <= block.start_s:
        raise BlockRejectedError(
            f"block {block.height} ends at {block.end_s}, not after {block.start_s}"
        )
    before_s = chain.head.end_s
    if before_s is None:
        if block.start_s % interval_s:
            raise BlockRejectedError(
                f"block {block.height} is the first and begins inside an interval"
            )
    elif block.start_s != before_s:
        raise BlockRejectedError(
            f"block {block.height} begins at {block.start_s}, expected {before_s}"
        )
    if not 0 <= block.flags <= FLAGS_MAX:
        raise BlockRejectedError(f"block {block.height} has unknown flags {block.flags}")
    boundary_s = (block.start_s // interval_s + 1) * interval_s
    aligned = block.end_s % interval_s == 0
    if not aligned and not block.flags & PARTIAL:
        raise BlockRejectedError(
            f"block {block.height} ends inside an interval and is not flagged partial"
        )
    if block.end_s > boundary_s and not (aligned and block.flags & GAP):
        raise BlockRejectedError(f"block {block.height} spans intervals and is no gap block")
    if block.records == 0 and block.clock.measured_ms == 0 and not block.flags & GAP:
        raise BlockRejectedError(f"block {block.height} measured nothing and is not flagged gap")
    length_ms = (block.end_s - block.start_s) * 1000
    told = block.flags & STEPPED or block.clock.status == "R"
    if block.clock.measured_ms > length_ms + MEASURED_SLACK_MS and not told:
        raise BlockRejectedError(
            f"block {block.height} measured {block.clock.measured_ms} ms in an interval of "
            f"{length_ms} ms"
        )


def _verify_energy(block: Block, head: Head) -> None:
    before = {energy.obis: energy for energy in head.energy}
    code = b""
    for energy in block.energy:
        if energy.obis <= code:
            raise BlockRejectedError(f"block {block.height} has registers out of order or twice")
        code = energy.obis
        old = before.pop(code, None)
        expected_uj = old.last_uj if old else 0
        if energy.first_uj != expected_uj:
            reason = f"begins {{}} at {energy.first_uj} uJ, expected {expected_uj}"
        elif energy.last_uj < energy.first_uj:
            reason = "lowers {}"
        elif energy.kind > 1 or (
            old and old.kind != energy.kind and block.parameters == head.parameters
        ):
            reason = f"relabels {{}} as kind {energy.kind}"
        else:
            continue
        said = reason.format(f"register {obis_code(code)}")
        raise BlockRejectedError(f"block {block.height} {said}")
    if before:
        left = obis_code(min(before))
        raise BlockRejectedError(f"block {block.height} leaves out register {left}")


class SealTask(NamedTuple):
    """A run of blocks to verify: signatures, and each against the one before.

    Attributes:
        chain: The chain before the first of them.
        messages: Sealed blocks as stored.
    """

    chain: Chain
    messages: tuple[bytes, ...]


class SealResult(NamedTuple):
    """What `verify_seals` found.

    Attributes:
        chain: The chain behind the last block that holds.
        blocks: Those blocks.
        reason: Why the next one does not follow, or an empty text.
    """

    chain: Chain
    blocks: tuple[Block, ...]
    reason: str


def verify_seals(task: SealTask) -> SealResult:
    """Verify a run of blocks as far as it holds."""
    chain, blocks = task.chain, list[Block]()
    for message in task.messages:
        try:
            block, chain = verify_sealed(message, chain)
        except BlockRejectedError as error:
            return SealResult(chain, tuple(blocks), str(error))
        blocks.append(block)
    return SealResult(chain, tuple(blocks), "")
