"""Orders: signed statements of the distributor on its own chain, in force once certified.

An order is sealed like a block and linked like one. What it means for the network is applied by
`meterd.authority.roster`; here are its bytes and the rules of its chain. Kinds of money and people
(tariffs, subscriptions, data requests) will find their place in `KINDS`.

>>> order = Order(genesis=bytes(32), distributor="grid-co", incarnation=1, height=1,
...               previous=bytes(32), time_s=1_800_000_000, effective_from_s=1_800_000_000,
...               kind="interval", body=(900,))
>>> decode_order(order.encode()).change
Interval(interval_s=900)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.account import DAY_S, NAME, Node, shaped
from meterd.ledger.block import OBIS_BYTES, UJ_BYTES, UJ_MAX, Energy
from meterd.ledger.encoding import (
    HASH_BYTES,
    SIGNATURE_BYTES,
    decode,
    digest,
    encode,
    take_apart,
    verify_seal,
)

if TYPE_CHECKING:
    from nacl.signing import SigningKey

ORDER_CONTEXT = "meterd/order/v1"
ROTATION_CONTEXT = "meterd/rotation/v1"
REASON_CHARS_MAX = 200


class Enrol(NamedTuple):
    """A new meter; its first block links to this order and begins with `registers`."""

    meter: str
    incarnation: int
    sealing_key: bytes
    voting_key: bytes
    fuse_ma: int
    nominal_mv: int
    mains_clamps: int
    registers: tuple[Energy, ...]


class Replace(NamedTuple):
    """A device in the place of another: the old chain ends, a new incarnation begins."""

    meter: str
    old_incarnation: int
    final_height: int
    final_hash: bytes
    incarnation: int
    sealing_key: bytes
    voting_key: bytes
    fuse_ma: int
    nominal_mv: int
    mains_clamps: int
    registers: tuple[Energy, ...]


class Rotate(NamedTuple):
    """A meter's new sealing key, co-signed by the old one: blocks that name this order bear it."""

    meter: str
    incarnation: int
    sealing_key: bytes
    old_signature: bytes


class Revoke(NamedTuple):
    """A meter's key is no longer good: no block is attested from now on."""

    meter: str
    incarnation: int
    reason: str


class RosterChange(NamedTuple):
    """The nodes from the next epoch on."""

    epoch: int
    nodes: tuple[Node, ...]


class ForkResolve(NamedTuple):
    """A chain with two histories ends at its last certified block; a new incarnation begins."""

    meter: str
    old_incarnation: int
    base_height: int
    base_hash: bytes
    incarnation: int
    sealing_key: bytes
    registers: tuple[Energy, ...]


class Interval(NamedTuple):
    """The interval of blocks that begin at `effective_from_s` or later."""

    interval_s: int


Base: TypeAlias = tuple[tuple[str, int], int, bytes]  # (meter, incarnation), height, hash
Change: TypeAlias = Enrol | Replace | Rotate | Revoke | RosterChange | ForkResolve | Interval


class Order(NamedTuple):
    """One order, before its seal.

    Attributes:
        genesis: Hash of the network's genesis.
        distributor: Whose chain.
        incarnation: Which chain of the distributor.
        height: 1 for the first.
        previous: Hash of the order before; of genesis for the first.
        time_s: When it was signed, Unix seconds; never before the order before.
        effective_from_s: From when money and intervals follow it, Unix seconds.
        kind: One of `KINDS`.
        body: As the kind's fields are spelt.
    """

    genesis: bytes
    distributor: str
    incarnation: int
    height: int
    previous: bytes
    time_s: int
    effective_from_s: int
    kind: str
    body: tuple[Any, ...]

    def encode(self) -> bytes:
        """Return the canonical bytes: what is sealed and hashed."""
        return encode([ORDER_CONTEXT, *self[:-1], list(self.body)])

    @property
    def hash(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return digest(self.encode())

    @property
    def change(self) -> Change:
        """What it orders.

        Raises:
            EncodingError: The body is not of its kind.
        """
        change: Change = KINDS[self.kind](self.body)
        return change

    @property
    def base(self) -> Base | None:
        """The block that it ends a chain at, where it ends one.

        Raises:
            EncodingError: The body is not of its kind.
        """
        match self.change:
            case Replace() as change:
                chain_id = change.meter, change.old_incarnation
                return chain_id, change.final_height, change.final_hash
            case ForkResolve() as change:
                chain_id = change.meter, change.old_incarnation
                return chain_id, change.base_height, change.base_hash
            case _:
                return None


def spell(change: Change) -> tuple[str, tuple[Any, ...]]:
    """Return kind and body of an order of `change`."""
    kind = next(kind for kind, named in NAMES.items() if isinstance(change, named))
    body: list[Any] = []
    values: tuple[Any, ...] = tuple(change)
    for name, value in zip(change._fields, values, strict=True):
        if name == "registers":
            body.append(tuple(_spell_energy(energy) for energy in value))
        elif name == "nodes":
            body.append(tuple(spell_node(node) for node in value))
        else:
            body.append(value)
    return kind, tuple(body)


def _spell_energy(energy: Energy) -> tuple[bytes, int, bytes]:
    return energy.obis, energy.kind, energy.last_uj.to_bytes(UJ_BYTES, "big")


def spell_node(node: Node) -> tuple[str, str, bytes, bytes, int]:
    """Return a node as genesis and orders spell it."""
    return node.name, node.role, node.sealing_key, node.voting_key, node.votes


def decode_order(data: bytes) -> Order:
    """Return the order that `data`, bytes from outside, spells.

    Raises:
        EncodingError: Not an order, of an unknown kind, or its body is not of its kind.
    """
    value = decode(data)
    if not shaped(value, str, bytes, str, int, int, bytes, int, int, str, tuple):
        raise EncodingError("not an order")
    if value[0] != ORDER_CONTEXT:
        raise EncodingError(f"expected {ORDER_CONTEXT}, got {value[0][:40]}")
    order = Order(*value[1:])
    if len(order.genesis) != HASH_BYTES or len(order.previous) != HASH_BYTES:
        raise EncodingError("a hash in the order is not 32 bytes")
    if order.kind not in KINDS:
        raise EncodingError(f"no order is of kind {order.kind[:40]}")
    order.change  # noqa: B018 - it raises where the body is not of its kind
    return order


def _decode_energy(entries: Any) -> tuple[Energy, ...]:  # noqa: ANN401 - any decoded value
    result: list[Energy] = []
    for entry in entries:
        good = shaped(entry, bytes, int, bytes) and len(entry[0]) == OBIS_BYTES and entry[1] <= 1
        if not good or len(entry[2]) != UJ_BYTES:
            raise EncodingError("a starting register of the order is misshapen")
        uj = int.from_bytes(entry[2], "big")
        if uj > UJ_MAX or (result and entry[0] <= result[-1].obis):
            raise EncodingError("starting registers of the order are too large or out of order")
        result.append(Energy(entry[0], entry[1], uj, uj))
    return tuple(result)


def _keys(*keys: bytes, empty: bytes = b"") -> None:
    if any(len(key) != HASH_BYTES for key in keys) or len(empty) not in (0, HASH_BYTES):
        raise EncodingError("a key or hash in the order is not 32 bytes")


def _named(name: str, incarnation: int) -> None:
    if not NAME.fullmatch(name) or incarnation < 1:
        raise EncodingError("the order names a meter that cannot be")


def _misshapen(kind: str) -> EncodingError:
    return EncodingError(f"the body is not that of an order of kind {kind}")


def _enrol(body: tuple[Any, ...]) -> Enrol:
    if not shaped(body, str, int, bytes, bytes, int, int, int, tuple):
        raise _misshapen("enrol")
    _named(body[0], body[1])
    _keys(body[2], empty=body[3])
    return Enrol._make((*body[:-1], _decode_energy(body[-1])))


def _replace(body: tuple[Any, ...]) -> Replace:
    if not shaped(body, str, int, int, bytes, int, bytes, bytes, int, int, int, tuple):
        raise _misshapen("replace")
    _named(body[0], body[4])
    _keys(body[3], body[5], empty=body[6])
    return Replace._make((*body[:-1], _decode_energy(body[-1])))


def _rotate(body: tuple[Any, ...]) -> Rotate:
    if not shaped(body, str, int, bytes, bytes) or len(body[3]) != SIGNATURE_BYTES:
        raise _misshapen("rotate")
    _named(body[0], body[1])
    _keys(body[2])
    return Rotate(*body)


def _revoke(body: tuple[Any, ...]) -> Revoke:
    if not shaped(body, str, int, str) or len(body[2]) > REASON_CHARS_MAX:
        raise _misshapen("revoke")
    if not body[2].isprintable():
        raise _misshapen("revoke")
    _named(body[0], body[1])
    return Revoke(*body)


def _roster(body: tuple[Any, ...]) -> RosterChange:
    if not shaped(body, int, tuple) or not all(
        shaped(node, str, str, bytes, bytes, int) for node in body[1]
    ):
        raise _misshapen("roster")
    nodes = tuple(
        Node(name=n[0], role=n[1], sealing_key=n[2], voting_key=n[3], votes=n[4]) for n in body[1]
    )
    return RosterChange(body[0], nodes)


def _fork_resolve(body: tuple[Any, ...]) -> ForkResolve:
    if not shaped(body, str, int, int, bytes, int, bytes, tuple):
        raise _misshapen("fork-resolve")
    _named(body[0], body[4])
    _keys(body[3], body[5])
    return ForkResolve._make((*body[:-1], _decode_energy(body[-1])))


def _interval(body: tuple[Any, ...]) -> Interval:
    if not shaped(body, int) or not 0 < body[0] <= DAY_S or DAY_S % body[0]:
        raise _misshapen("interval")
    return Interval(*body)


KINDS: dict[str, Any] = {
    "enrol": _enrol,
    "replace": _replace,
    "rotate": _rotate,
    "revoke": _revoke,
    "roster": _roster,
    "fork-resolve": _fork_resolve,
    "interval": _interval,
}
NAMES: dict[str, type] = {
    "enrol": Enrol,
    "replace": Replace,
    "rotate": Rotate,
    "revoke": Revoke,
    "roster": RosterChange,
    "fork-resolve": ForkResolve,
    "interval": Interval,
}


class OrderHead(NamedTuple):
    """The last order of a chain, as far as the next one depends on it."""

    height: int
    order_hash: bytes
    time_s: int


def open_order(message: bytes, sealer: bytes, genesis: bytes) -> tuple[Order, bytes]:
    """Return the order in `message` and its payload, its seal verified, its place not yet.

    Raises:
        BlockRejectedError: It is misspelt, or not sealed by the distributor for this network.
    """
    try:
        sealed = take_apart(message)
        verify_seal(sealed, VerifyKey(sealer), genesis)
        order = decode_order(sealed.payload)
    except EncodingError as error:
        raise BlockRejectedError(f"not a sealed order: {error}") from error
    if order.genesis != genesis:
        raise BlockRejectedError("the order is another network's")
    return order, sealed.payload


def verify_order(order: Order, distributor: tuple[str, int], head: OrderHead) -> OrderHead:
    """Return the head of the distributor's chain once `order` is added to it.

    Raises:
        BlockRejectedError: It does not follow `head`.
    """
    if (order.distributor, order.incarnation) != distributor:
        raise BlockRejectedError(f"order {order.height} is not on {distributor[0]}'s chain")
    if order.height != head.height + 1:
        raise BlockRejectedError(f"expected order {head.height + 1}, got {order.height}")
    if order.previous != head.order_hash:
        raise BlockRejectedError(f"order {order.height} does not link to the order before it")
    if order.time_s < head.time_s:
        raise BlockRejectedError(f"order {order.height} is dated before the order before it")
    return OrderHead(order.height, order.hash, order.time_s)


def _rotation(genesis: bytes, meter: str, incarnation: int, sealing_key: bytes) -> bytes:
    return encode([ROTATION_CONTEXT, genesis, meter, incarnation, sealing_key])


def sign_rotation(
    old: SigningKey, genesis: bytes, meter: str, incarnation: int, sealing_key: bytes
) -> bytes:
    """Return the old key's consent to `sealing_key` in its place, 64 bytes."""
    return old.sign(_rotation(genesis, meter, incarnation, sealing_key)).signature


def verify_rotation(rotate: Rotate, old_key: bytes, genesis: bytes) -> None:
    """Check that the old key consents.

    Raises:
        BlockRejectedError: It does not.
    """
    said = _rotation(genesis, rotate.meter, rotate.incarnation, rotate.sealing_key)
    try:
        VerifyKey(old_key).verify(said, rotate.old_signature)
    except BadSignatureError as error:
        raise BlockRejectedError(
            f"the rotation of {rotate.meter}'s key is not signed by the key before"
        ) from error
