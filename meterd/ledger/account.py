"""What an account rests on: the genesis of its network, and the parameters it measures under.

A standalone meter is a network of one: nobody votes, and what it has sealed counts as certified.

>>> network = standalone("kitchen-12", bytes(32), interval_s=1800, zone="UTC", currency="EUR",
...                      fuse_ma=60_000, nominal_mv=230_000, mains_clamps=1)
>>> decode_genesis(network.encode()) == network
True
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from meterd.errors import EncodingError
from meterd.ledger.encoding import HASH_BYTES, decode, digest, encode

GENESIS_CONTEXT = "meterd/genesis/v1"
PARAMETERS_CONTEXT = "meterd/parameters/v1"
NAME = re.compile(r"[a-z0-9-]{1,32}")
DAY_S = 86_400
ROLES = ("meter", "concentrator", "distributor", "authority")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the network.

    Attributes:
        role: One of `ROLES`.
        sealing_key: Ed25519 public key of its own chain, 32 bytes.
        voting_key: Ed25519 public key of its attestations, 32 bytes; empty where it never votes.
        votes: 1 if it attests, else 0.
    """

    name: str
    role: str
    sealing_key: bytes
    voting_key: bytes
    votes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """A meter at its enrolment.

    Attributes:
        incarnation: Which chain of this meter; 1 is its first.
        sealing_key: Ed25519 public key, 32 bytes.
        fuse_ma: The main fuse, mA for each phase.
        nominal_mv: Nominal voltage, mV.
        mains_clamps: Number of clamps whose sum is import and export.
    """

    name: str
    incarnation: int
    sealing_key: bytes
    fuse_ma: int
    nominal_mv: int
    mains_clamps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """The first word of a network; its hash is in every signature.

    Attributes:
        interval_s: Length of an interval; divides a day.
        zone: IANA time zone of the network's days.
        currency: ISO 4217 code.
        recipients: (name, role, X25519 public key) of whoever sealed data may be sealed to.
    """

    name: str
    interval_s: int
    zone: str
    currency: str
    nodes: tuple[Node, ...]
    meters: tuple[Meter, ...]
    recipients: tuple[tuple[str, str, bytes], ...] = ()

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return encode(
            [
                GENESIS_CONTEXT,
                self.name,
                self.interval_s,
                self.zone,
                self.currency,
                [[n.name, n.role, n.sealing_key, n.voting_key, n.votes] for n in self.nodes],
                [
                    [m.name, m.incarnation, m.sealing_key, m.fuse_ma, m.nominal_mv, m.mains_clamps]
                    for m in self.meters
                ],
                [list(recipient) for recipient in self.recipients],
            ]
        )

    @property
    def hash(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return digest(self.encode())

    def meter(self, name: str) -> Meter:
        """Return the meter called `name`.

        Raises:
            EncodingError: No meter of this network has that name.
        """
        for meter in self.meters:
            if meter.name == name:
                return meter
        raise EncodingError(f"network {self.name} has no meter {name}")


def standalone(
    name: str,
    sealing_key: bytes,
    *,
    interval_s: int,
    zone: str,
    currency: str,
    fuse_ma: int,
    nominal_mv: int,
    mains_clamps: int,
    network: str = "",
) -> Genesis:
    """Return the genesis of a network of one, called `network` or after the meter itself."""
    meter = Meter(
        name=name,
        incarnation=1,
        sealing_key=sealing_key,
        fuse_ma=fuse_ma,
        nominal_mv=nominal_mv,
        mains_clamps=mains_clamps,
    )
    node = Node(name=name, role="meter", sealing_key=sealing_key, voting_key=b"", votes=0)
    return Genesis(
        name=network or name,
        interval_s=interval_s,
        zone=zone,
        currency=currency,
        nodes=(node,),
        meters=(meter,),
    )


def shaped(value: Any, *kinds: type | tuple[type, ...]) -> bool:  # noqa: ANN401 - any decoded value
    """Say whether `value` is an array of exactly these kinds."""
    return type(value) is tuple and len(value) == len(kinds) and all(map(isinstance, value, kinds))


def decode_genesis(data: bytes) -> Genesis:
    """Return the genesis that `data`, bytes from outside, spells.

    Raises:
        EncodingError: Not a genesis, or one whose parts cannot be.
    """
    value = decode(data)
    if not shaped(value, str, str, int, str, str, tuple, tuple, tuple):
        raise EncodingError("not a genesis")
    context, name, interval_s, zone, currency, nodes, meters, recipients = value
    if context != GENESIS_CONTEXT:
        raise EncodingError(f"expected {GENESIS_CONTEXT}, got {context[:40]}")
    if interval_s == 0 or DAY_S % interval_s:
        raise EncodingError(f"an interval of {interval_s} s does not divide a day")
    if not (
        all(shaped(n, str, str, bytes, bytes, int) for n in nodes)
        and all(shaped(m, str, int, bytes, int, int, int) for m in meters)
        and all(shaped(r, str, str, bytes) for r in recipients)
    ):
        raise EncodingError("nodes, meters or recipients of the genesis are misshapen")
    genesis = Genesis(
        name=name,
        interval_s=interval_s,
        zone=zone,
        currency=currency,
        nodes=tuple(
            Node(name=n[0], role=n[1], sealing_key=n[2], voting_key=n[3], votes=n[4]) for n in nodes
        ),
        meters=tuple(
            Meter(
                name=m[0],
                incarnation=m[1],
                sealing_key=m[2],
                fuse_ma=m[3],
                nominal_mv=m[4],
                mains_clamps=m[5],
            )
            for m in meters
        ),
        recipients=recipients,
    )
    _check_members(genesis)
    return genesis


def _check_members(genesis: Genesis) -> None:
    names = [genesis.name, *(n.name for n in genesis.nodes), *(m.name for m in genesis.meters)]
    if not all(NAME.fullmatch(name) for name in names):
        raise EncodingError("a name in the genesis is not of a-z, 0-9 and -, 1 to 32 of them")
    keys = [n.sealing_key for n in genesis.nodes] + [m.sealing_key for m in genesis.meters]
    if any(len(key) != HASH_BYTES for key in keys):
        raise EncodingError("a sealing key in the genesis is not 32 bytes")
    for node in genesis.nodes:
        if node.role not in ROLES or node.votes > 1:
            raise EncodingError(f"node {node.name} has no known role or vote")
        if node.votes and len(node.voting_key) != HASH_BYTES:
            raise EncodingError(f"node {node.name} votes without a voting key")
    if any(meter.incarnation < 1 for meter in genesis.meters):
        raise EncodingError("an incarnation in the genesis is not 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What a block was measured under; its hash is in the block (WELMEC 7.2 P7, row M6).

    Attributes:
        genesis: Hash of the network's genesis.
        sequence: 1 for the first parameter record of this account, counting up.
        software_id: Identifier derived from the content of the relevant software.
        roles: Role of each used clamp, in the order of a stored row's columns.
        registers: (OBIS code, kind) of each register that these settings feed.
        settings: (dotted key, value) of everything that bears on measurement.
    """

    genesis: bytes
    meter: str
    sequence: int
    software_id: bytes
    roles: tuple[str, ...]
    registers: tuple[tuple[bytes, int], ...]
    settings: tuple[tuple[str, str], ...]

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return encode(
            [
                PARAMETERS_CONTEXT,
                self.genesis,
                self.meter,
                self.sequence,
                self.software_id,
                list(self.roles),
                [list(register) for register in self.registers],
                [list(setting) for setting in self.settings],
            ]
        )

    @property
    def hash(self) -> bytes:
        """SHA-256 of the canonical bytes."""
        return digest(self.encode())

    def changes_from(self, old: Parameters) -> tuple[tuple[str, str, str], ...]:
        """Return (what, old value, new value) for all that differs from `old`."""
        before, after = dict(old.settings), dict(self.settings)
        before["software"], after["software"] = old.software_id.hex(), self.software_id.hex()
        return tuple(
            (key, before.get(key, ""), after.get(key, ""))
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key)
        )


def decode_parameters(data: bytes) -> Parameters:
    """Return the parameter record that `data` spells.

    Raises:
        EncodingError: Not a parameter record.
    """
    value = decode(data)
    if not shaped(value, str, bytes, str, int, bytes, tuple, tuple, tuple):
        raise EncodingError("not a parameter record")
    context, genesis, meter, sequence, software_id, roles, registers, settings = value
    if context != PARAMETERS_CONTEXT:
        raise EncodingError(f"expected {PARAMETERS_CONTEXT}, got {context[:40]}")
    if not (
        all(isinstance(role, str) for role in roles)
        and all(shaped(register, bytes, int) for register in registers)
        and all(shaped(setting, str, str) for setting in settings)
    ):
        raise EncodingError("roles, registers or settings of the parameter record are misshapen")
    return Parameters(
        genesis=genesis,
        meter=meter,
        sequence=sequence,
        software_id=software_id,
        roles=roles,
        registers=registers,
        settings=settings,
    )
