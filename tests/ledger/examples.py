"""One example of each message, from which a test's case differs in one thing."""

from __future__ import annotations

from typing import Any

from nacl.signing import SigningKey

from meterd.ledger.account import Genesis, Parameters, standalone
from meterd.ledger.block import Block, Clock, Energy
from meterd.ledger.chain import Chain, open_chain, verify_sealed
from meterd.ledger.encoding import digest, seal

KEY = SigningKey(bytes(range(32)))
STRANGER = SigningKey(bytes(range(1, 33)))
IMPORT = bytes((1, 0, 1, 8, 0, 255))
EXPORT = bytes((1, 0, 2, 8, 0, 255))
OVEN = bytes((1, 1, 1, 8, 0, 255))

GENESIS: Genesis = standalone(
    "kitchen-12",
    bytes(KEY.verify_key),
    interval_s=1800,
    zone="Europe/Berlin",
    currency="EUR",
    fuse_ma=60_000,
    nominal_mv=230_000,
    mains_clamps=1,
)
PARAMETERS = Parameters(
    genesis=GENESIS.hash,
    meter="kitchen-12",
    sequence=1,
    software_id=bytes(range(32)),
    roles=("mains", "circuit"),
    registers=((IMPORT, 0), (EXPORT, 0), (OVEN, 0)),
    settings=(("board.polling_ms", "5000"), ("meter.fuse_a", "60")),
)
FIRST = Block(
    genesis=GENESIS.hash,
    meter="kitchen-12",
    incarnation=1,
    height=1,
    previous=GENESIS.hash,
    order=(0, GENESIS.hash),
    start_s=1_170_633_600,
    end_s=1_170_635_400,
    clock=Clock(
        status="S", error_ms=3, boot_id=bytes(16), boot_ms=1_800_000, measured_ms=1_800_000
    ),
    parameters=digest(PARAMETERS.encode()),
    records=360,
    fingerprint=bytes(range(32)),
    events=3,
    events_digest=bytes(range(1, 33)),
    energy=(Energy(IMPORT, 0, 0, 720), Energy(EXPORT, 0, 0, 5), Energy(OVEN, 0, 0, 70)),
    flags=0,
)
SECOND = FIRST._replace(
    height=2,
    previous=FIRST.hash,
    start_s=FIRST.end_s,
    end_s=FIRST.end_s + 1800,
    clock=FIRST.clock._replace(boot_ms=3_600_000),
    events=4,
    energy=(Energy(IMPORT, 0, 720, 900), Energy(EXPORT, 0, 5, 5), Energy(OVEN, 0, 70, 70)),
)
EMPTY: Chain = open_chain(GENESIS, "kitchen-12")


def sealed(block: Block, key: SigningKey = KEY, genesis: bytes = GENESIS.hash) -> bytes:
    """Return `block` under a valid seal of `key`."""
    return seal(block.encode(), key, genesis)


def chain_with(*blocks: Block) -> Chain:
    """Return the chain of these blocks, each verified."""
    chain = EMPTY
    for block in blocks:
        _, chain = verify_sealed(sealed(block), chain)
    return chain


def changed(value: Any, place: tuple[int, ...], new: Any) -> Any:  # noqa: ANN401 - any message
    """Return a decoded message with the item at `place` (indices from outside in) replaced."""
    items = list(value)
    items[place[0]] = changed(items[place[0]], place[1:], new) if place[1:] else new
    return items
