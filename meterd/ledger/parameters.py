r"""Commands that change what a meter measures under: signed, numbered, for one meter (row S3).

A parameter record says what is in force. A command names that record and its own number, the next;
so it counts once, at one place, for one meter. Whoever gives orders signs it, or a technician whose
key that one has granted for some time. What a command has changed stands in the record that follows
from it, below keys of its own (`SIGNED`): which command, whose, and what the settings' file said.

>>> from nacl.signing import SigningKey
>>> owner, held = SigningKey(bytes(32)), Parameters(
...     genesis=bytes(32), meter="kitchen-12", sequence=4, software_id=bytes(32), roles=("mains",),
...     registers=(), settings=(("clamp.1.scale", "1"),))
>>> command = Command(bytes(32), "kitchen-12", 5, held.hash, (("clamp.1.scale", "1", "1.02"),))
>>> accepted = verify_command(sign_command(command, owner), held, bytes(owner.verify_key))
>>> accepted.settings, accepted.by
({'clamp.1.scale': '1.02'}, 'owner')
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from nacl.signing import VerifyKey

from meterd.errors import BlockRejectedError, DeniedError, EncodingError
from meterd.ledger.account import NAME, Parameters, shaped
from meterd.ledger.encoding import (
    HASH_BYTES,
    Sealed,
    decode,
    digest,
    encode,
    key_id,
    seal,
    take_apart,
    verify_seal,
)

if TYPE_CHECKING:
    from nacl.signing import SigningKey

COMMAND_CONTEXT = "meterd/command/v1"
GRANT_CONTEXT = "meterd/technician/v1"
FILE_CONTEXT = "meterd/settings/v1"
COMMAND_BYTES_MAX = 4096  # one that changes every parameter of seven clamps is about 2 kB
CHANGES_MAX = 64  # seven clamps have 35 parameters, and there are ten besides
TEXT_CHARS_MAX = 512  # the longest value is the fields of a layout's alternatives, about 300
OWNER = "owner"  # what whoever gives orders is called, in events and records

SIGNED = "signed."  # begins what a record says of how its parameters came about
COMMISSIONED = "signed.commissioned"  # SHA-256 of the commissioning's record
OWNER_KEY = "signed.owner"  # public key that commands rest on, where no distributor gives orders
COMMAND = "signed.command"  # SHA-256 of the command
BY = "signed.by"  # whose it was
FILE = "signed.file"  # digest of what the settings' file said then (`file_digest`)
MISSING = "signed.missing"  # hash of one that blocks name and a card that was put back has not

Pairs = tuple[tuple[str, str], ...]


class CommandRefusedError(DeniedError):
    """A command does not count here: nothing has changed. Have it made anew, or by another."""


class Grant(NamedTuple):
    """A technician's key, granted by whoever gives orders.

    Attributes:
        genesis: Hash of the network's genesis: the grant holds for all its meters.
        key: The technician's Ed25519 public key, 32 bytes.
        name: Whose it is: 1 to 32 of a-z, 0-9 and -.
        not_before_s: First second it holds in, Unix time.
        not_after_s: Last second.
    """

    genesis: bytes
    key: bytes
    name: str
    not_before_s: int
    not_after_s: int

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return encode([GRANT_CONTEXT, *self])


class Command(NamedTuple):
    """A change of parameters.

    Attributes:
        genesis: Hash of the network's genesis.
        meter: Whose parameters.
        sequence: Number of the parameter record that it makes: one more than that in force.
        record: Hash of the record in force.
        changes: (dotted key, old value, new value), ascending by key; empty where there is none.
        grant: The sealed grant of the technician who signs, or nothing.
    """

    genesis: bytes
    meter: str
    sequence: int
    record: bytes
    changes: tuple[tuple[str, str, str], ...]
    grant: bytes = b""

    def encode(self) -> bytes:
        """Return the canonical bytes: what is signed."""
        changes = [list(change) for change in self.changes]
        return encode([COMMAND_CONTEXT, *self[:4], changes, self.grant])


class Accepted(NamedTuple):
    """What an accepted command comes to.

    Attributes:
        command: It.
        by: Who signed it: `OWNER`, or the technician's name.
        settings: All parameters with its changes; whether they can be is not checked.
        signed: What the record that follows has to say of it, without `FILE`.
    """

    command: Command
    by: str
    settings: dict[str, str]
    signed: dict[str, str]


def decode_grant(data: bytes) -> Grant:
    """Return the grant that `data`, bytes from outside, spells.

    Raises:
        EncodingError: It is none.
    """
    value = decode(data, bytes_max=COMMAND_BYTES_MAX)
    if not shaped(value, str, bytes, bytes, str, int, int) or value[0] != GRANT_CONTEXT:
        raise EncodingError("not a technician's grant")
    grant = Grant(*value[1:])
    if len(grant.genesis) != HASH_BYTES or len(grant.key) != HASH_BYTES:
        raise EncodingError("a key or hash in the grant is not 32 bytes")
    if not NAME.fullmatch(grant.name):
        raise EncodingError("the grant names nobody: expected 1 to 32 of a-z, 0-9 and -")
    return grant


def decode_command(data: bytes) -> Command:
    """Return the command that `data`, bytes from outside, spells.

    Raises:
        EncodingError: It is none, or changes nothing, or one parameter twice.
    """
    value = decode(data, bytes_max=COMMAND_BYTES_MAX)
    if not shaped(value, str, bytes, str, int, bytes, tuple, bytes) or value[0] != COMMAND_CONTEXT:
        raise EncodingError("not a command that changes parameters")
    command = Command(*value[1:])
    if len(command.genesis) != HASH_BYTES or len(command.record) != HASH_BYTES:
        raise EncodingError("a hash in the command is not 32 bytes")
    if not 0 < len(command.changes) <= CHANGES_MAX:
        raise EncodingError(f"expected 1 to {CHANGES_MAX} changes, got {len(command.changes)}")
    before = ""
    for change in command.changes:
        if not shaped(change, str, str, str) or not all(map(_is_plain, change)):
            raise EncodingError("a change in the command is misshapen")
        key, old, new = change
        if key <= before or old == new or key.startswith(SIGNED):
            raise EncodingError("the command's changes are none, out of order, or of no parameter")
        before = key
    return command


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and len(text) <= TEXT_CHARS_MAX


def sign_grant(grant: Grant, owner: SigningKey) -> bytes:
    """Return `grant`, sealed by whoever gives orders."""
    return seal(grant.encode(), owner, grant.genesis)


def sign_command(command: Command, key: SigningKey) -> bytes:
    """Return `command`, sealed by its author's key."""
    return seal(command.encode(), key, command.genesis)


def verify_command(
    message: bytes, held: Parameters, owner: bytes, at_s: int | None = None
) -> Accepted:
    """Return what a command comes to, where it counts.

    Args:
        message: The sealed command, from outside.
        held: The parameter record in force.
        owner: Public key of whoever gives orders; empty where nobody does.
        at_s: Unix seconds now; None where the time is not known, and no grant counts.

    Raises:
        CommandRefusedError: It does not; the message says why.
    """
    try:
        sealed = take_apart(message)
        command = decode_command(sealed.payload)
    except EncodingError as error:
        hint = "take the whole line as it was signed, and nothing else"
        raise CommandRefusedError(f"not a signed command: {error}", hint=hint) from error
    if command.genesis != held.genesis:
        raise CommandRefusedError(f"the command is for another network, {_hex(command.genesis)}")
    if command.meter != held.meter:
        raise CommandRefusedError(f"the command is for {command.meter[:32]}, this is {held.meter}")
    by = _author(sealed, command, owner, at_s)
    if command.sequence != held.sequence + 1:
        already = "was used already" if command.sequence <= held.sequence else "comes too early"
        raise CommandRefusedError(
            f"expected command {held.sequence + 1}, got {command.sequence}: it {already}",
            hint="make it anew with what is in force: `meterctl parameters`",
        )
    settings = {key: value for key, value in held.settings if not key.startswith(SIGNED)}
    for key, old, new in command.changes:
        if settings.get(key, "") != old:
            raise CommandRefusedError(
                f"the command takes {key} to be {old or 'absent'}, it is "
                f"{settings.get(key) or 'absent'}"
            )
        settings[key] = new
    if command.record != held.hash:
        raise CommandRefusedError(
            f"the command was made for parameter record {_hex(command.record)}, "
            f"in force is {_hex(held.hash)}",
            hint="make it anew with what is in force: `meterctl parameters`",
        )
    signed = {
        key: value for key, value in held.settings if key.startswith(SIGNED) and key != MISSING
    }
    signed |= {COMMAND: digest(message).hex(), BY: by}
    return Accepted(command, by, {key: value for key, value in settings.items() if value}, signed)


def _hex(data: bytes) -> str:
    return data.hex()[:16]


def _author(sealed: Sealed, command: Command, owner: bytes, at_s: int | None) -> str:
    """Return who has signed a command, where that one may."""
    genesis = command.genesis
    if not owner:
        raise CommandRefusedError(
            "nobody may change the parameters of this meter: it is not commissioned",
            hint="edit the settings' file until `meterctl commission` has named the owner's key",
        )
    if sealed.kid == key_id(owner):
        _verify(sealed, owner, genesis, "the command")
        return OWNER
    if not command.grant:
        raise CommandRefusedError(
            f"the command is signed by key {sealed.kid.hex()}, which nobody has granted it",
            hint="have the owner, or the distributor, grant that key: `meterctl calibrate grant`",
        )
    try:
        granted = take_apart(command.grant)
        grant = decode_grant(granted.payload)
    except EncodingError as error:
        raise CommandRefusedError(f"the technician's grant cannot be read: {error}") from error
    _verify(granted, owner, genesis, "the technician's grant")
    if grant.genesis != genesis:
        raise CommandRefusedError(f"{grant.name}'s grant is for another network")
    _verify(sealed, grant.key, genesis, f"the command of {grant.name}")
    if at_s is None:
        raise CommandRefusedError(
            f"the clock is not set: whether {grant.name}'s grant still holds cannot be known",
            hint="wait until it is, or have the owner sign the command",
        )
    if not grant.not_before_s <= at_s <= grant.not_after_s:
        over = "holds no more" if at_s > grant.not_after_s else "does not hold yet"
        raise CommandRefusedError(
            f"{grant.name}'s grant {over}", hint="have the owner grant the key anew"
        )
    return grant.name


def _verify(sealed: Sealed, key: bytes, genesis: bytes, what: str) -> None:
    try:
        verify_seal(sealed, VerifyKey(key), genesis)
    except BlockRejectedError as error:
        raise CommandRefusedError(
            f"{what} is not signed by key {key_id(key).hex()} over this content"
        ) from error


def split(settings: Pairs) -> tuple[Pairs, Pairs]:
    """Return the parameters of a record, and what it says of how they came about."""
    parameters = tuple(pair for pair in settings if not pair[0].startswith(SIGNED))
    return parameters, tuple(pair for pair in settings if pair[0].startswith(SIGNED))


def file_digest(parameters: Pairs) -> str:
    """Return what stands for the parameters of a settings' file, in a record: 64 hex digits."""
    return sha256(encode([FILE_CONTEXT, [list(pair) for pair in parameters]])).hexdigest()
