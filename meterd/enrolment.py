r"""What a device says of itself to whoever founds its network, and the proof that its keys say so.

A key that somebody lists without holding it would let them pass off another's node as theirs, or
their own as another's. So each of a node's two keys signs all that is listed with it.

>>> key = SigningKey(bytes(32)), SigningKey(bytes(31) + b"1")
>>> enrolment = Enrolment("elm-street", "kitchen-12", "meter", bytes(key[0].verify_key),
...                       bytes(key[1].verify_key), 1, 60_000, 230_000, 1)
>>> proofs = prove(enrolment, *key)
>>> [proven(enrolment, public, proof) for public, proof in zip(enrolment[3:5], proofs, strict=True)]
[True, True]
>>> proven(enrolment._replace(network="oak-street"), enrolment.sealing_key, proofs[0])
False
"""

from __future__ import annotations

from typing import NamedTuple

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from meterd.ledger.encoding import encode, key_id

ENROLMENT_CONTEXT = "meterd/enrolment/v1"
TEMPLATE = """\
# Enrolment of {name} in {network}, made on the device by `meterctl network enrol`. Nothing in it
# is secret. Carry it to whoever founds the network, and compare the two key ids by voice:
#   sealing key {sealing_id}
#   voting key  {voting_id}
# Both keys have signed all of it: after a change, enrol again.

[network]
name = "{network}"

[[node]]
name = "{name}"
role = "{role}"
votes = {votes}
sealing_key = "{sealing_key}"
voting_key = "{voting_key}"
proof_sealing = "{proof_sealing}"
proof_voting = "{proof_voting}"
"""
METER_TEMPLATE = """
[[meter]]
name = "{name}"
fuse_a = {fuse_a}
nominal_v = {nominal_v}
mains_clamps = {mains_clamps}
incarnation = 1
"""


class Enrolment(NamedTuple):
    """What a node is to be listed with.

    Attributes:
        network: Name of the network: its genesis, and so its hash, is not there yet.
        role: One of `ledger.account.ROLES`.
        sealing_key: Ed25519 public key of its own chain, 32 bytes.
        voting_key: Ed25519 public key of its attestations and messages, 32 bytes.
        votes: 1 if it is to attest, else 0.
        fuse_ma: Main fuse, mA for each phase; 0, like the next two, where it meters nothing.
        nominal_mv: Nominal voltage, mV.
        mains_clamps: Number of clamps whose sum is import and export.
    """

    network: str
    name: str
    role: str
    sealing_key: bytes
    voting_key: bytes
    votes: int
    fuse_ma: int = 0
    nominal_mv: int = 0
    mains_clamps: int = 0

    @property
    def signed_bytes(self) -> bytes:
        """What both keys sign."""
        return encode([ENROLMENT_CONTEXT, *self])


def prove(enrolment: Enrolment, sealing: SigningKey, voting: SigningKey) -> tuple[bytes, bytes]:
    """Return what the two keys of `enrolment` sign of it, 64 bytes each."""
    data = enrolment.signed_bytes
    return sealing.sign(data).signature, voting.sign(data).signature


def proven(enrolment: Enrolment, key: bytes, proof: bytes) -> bool:
    """Say whether the holder of `key`, 32 bytes, signed `enrolment` with `proof`, 64 bytes."""
    try:
        VerifyKey(key).verify(enrolment.signed_bytes, proof)
    except BadSignatureError:
        return False
    return True


def enrolment_text(enrolment: Enrolment, sealing: SigningKey, voting: SigningKey) -> str:
    """Return the enrolment file, the same each time: TOML, for people to review."""
    proof_sealing, proof_voting = prove(enrolment, sealing, voting)
    text = TEMPLATE.format(
        name=enrolment.name,
        network=enrolment.network,
        role=enrolment.role,
        votes="true" if enrolment.votes else "false",
        sealing_id=key_words(enrolment.sealing_key),
        voting_id=key_words(enrolment.voting_key),
        sealing_key=enrolment.sealing_key.hex(),
        voting_key=enrolment.voting_key.hex(),
        proof_sealing=proof_sealing.hex(),
        proof_voting=proof_voting.hex(),
    )
    if enrolment.mains_clamps:
        text += METER_TEMPLATE.format(
            name=enrolment.name,
            fuse_a=thousands(enrolment.fuse_ma),
            nominal_v=thousands(enrolment.nominal_mv),
            mains_clamps=enrolment.mains_clamps,
        )
    return text


def thousands(value: int) -> str:
    """Return a thousandth of `value` exactly, as short as it can be.

    >>> thousands(60_000), thousands(62_500)
    ('60', '62.5')
    """
    whole, rest = divmod(value, 1000)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".")


def spoken(data: bytes) -> str:
    """Return hex digits in groups that can be read out by phone.

    >>> spoken(bytes.fromhex("5f0c11aa22bb"))
    '5f0c 11aa 22bb'
    """
    return data.hex(" ", 2)


def key_words(public_key: bytes) -> str:
    """Return the id of a public key as it is read out; nothing where there is no key."""
    return spoken(key_id(public_key)) if public_key else ""
