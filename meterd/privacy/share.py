"""A person's part of a vault, which travels without being opened on the way.

The process that holds the vault takes a share out of the root key's envelope and hands it on; what
is left opens by the person's passphrase alone, at whoever typed it. What comes back is checked for
what can be checked without opening it. So names and addresses are in the memory of who typed or
reads them, and nowhere between there and the card.

>>> from itertools import count
>>> from meterd.privacy.envelope import found
>>> numbers = count()
>>> draw = lambda length: next(numbers).to_bytes(length, "big")  # secrets.token_bytes elsewhere
>>> key, slow = bytes(32), Passphrase(bytes(16), 3, 65536)  # what the passphrase has come to
>>> share = new_share("s-17", slow, key, draw).put(key, "person", 1, b"...", draw)
>>> vault, _ = adopt(found(bytes(32), draw), decode_share(share.encode()), draw)
>>> take(vault, "s-17", key, ("person",)).get(key, "person")
b'...'
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.errors import AbsentError, EncodingError, VaultRefusedError
from meterd.ledger.account import shaped
from meterd.ledger.encoding import decode, encode
from meterd.privacy.envelope import (
    KEY_BYTES,
    NONCE_BYTES,
    SALT_BYTES,
    Passphrase,
    Record,
    open_key,
    open_record,
    seal_key,
    seal_record,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterd.ledger.encoding import Value
    from meterd.privacy.envelope import Vault

CONTEXT = "meterd/vault-share/v1"
SHARE_BYTES_MAX = 11_000  # in base64 it fits one call of the control socket; ten records are 3 kB
SEALED_OVERHEAD_BYTES = NONCE_BYTES + 16  # nonce before, tag behind
_WORD = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class Share(NamedTuple):
    """All that a vault holds of one person; the passphrase opens it.

    Attributes:
        name: A pseudonym.
        passphrase: How the passphrase becomes a key.
        sealed_key: The person's key in the passphrase's envelope.
        records: Ascending by purpose.
    """

    name: str
    passphrase: Passphrase
    sealed_key: bytes
    records: tuple[Record, ...]

    def get(self, passphrase_key: bytes, purpose: str) -> bytes:
        """Return what a record holds.

        Raises:
            AbsentError: There is none.
            VaultRefusedError: The record was changed.
            WrongPassphraseError: The passphrase is another.
        """
        key = self._key(passphrase_key)
        for record in self.records:
            if record.purpose == purpose:
                return open_record(key, record)
        raise AbsentError(f"the vault holds no {purpose} of {self.name}")

    def put(
        self,
        passphrase_key: bytes,
        purpose: str,
        version: int,
        data: bytes,
        draw: Callable[[int], bytes],
    ) -> Share:
        """Return the share with this record and no other; the others stay where they are.

        Args:
            passphrase_key: What the passphrase has come to.
            purpose: What the record is for.
            version: One more than that of the record before, 1 for the first.
            data: What it holds.
            draw: Returns so many bytes that nobody can guess.

        Raises:
            EncodingError: A purpose that cannot be, or more than a person's part may hold.
            WrongPassphraseError: The passphrase is another.
        """
        check_word(purpose, "purpose")
        key = self._key(passphrase_key)
        return self._replace(records=(seal_record(key, (self.name, purpose, version), data, draw),))

    def with_passphrase(
        self,
        before: bytes,
        passphrase: Passphrase,
        passphrase_key: bytes,
        draw: Callable[[int], bytes],
    ) -> Share:
        """Return the share under another passphrase, without records: they stay as they are.

        Args:
            before: What the passphrase before has come to.
            passphrase: How the new one becomes a key.
            passphrase_key: What it has come to.
            draw: Returns so many bytes that nobody can guess.

        Raises:
            WrongPassphraseError: The passphrase before is another.
        """
        sealed = seal_key(self.name, passphrase, passphrase_key, self._key(before), draw)
        return self._replace(passphrase=passphrase, sealed_key=sealed, records=())

    def rekeyed(self, passphrase_key: bytes, draw: Callable[[int], bytes]) -> Share:
        """Return the share under another key of its own, each record sealed anew.

        Raises:
            VaultRefusedError: A record was changed.
            WrongPassphraseError: The passphrase is another.
        """
        before, key = self._key(passphrase_key), draw(KEY_BYTES)
        records = tuple(
            seal_record(
                key,
                (self.name, record.purpose, record.version + 1),
                open_record(before, record),
                draw,
            )
            for record in self.records
        )
        sealed = seal_key(self.name, self.passphrase, passphrase_key, key, draw)
        return self._replace(sealed_key=sealed, records=records)

    def encode(self) -> bytes:
        """Return its one spelling.

        Raises:
            EncodingError: It holds more than a person's part may.
        """
        records: list[Value] = [list(record[1:]) for record in self.records]
        spelt = encode([CONTEXT, self.name, list(self.passphrase), self.sealed_key, records])
        if len(spelt) > SHARE_BYTES_MAX:
            raise EncodingError(
                f"all of {self.name} together has at most {SHARE_BYTES_MAX} bytes, and would have"
                f" {len(spelt)}",
                hint="this is for names, addresses and numbers: keep documents elsewhere",
            )
        return spelt

    def _key(self, passphrase_key: bytes) -> bytes:
        return open_key(self.name, self.passphrase, passphrase_key, self.sealed_key)


def check_word(word: str, what: str) -> None:
    """See that a pseudonym or a purpose can be one.

    Raises:
        EncodingError: It cannot.
    """
    if not _WORD.fullmatch(word):
        raise EncodingError(
            f"{word[:40]!r} cannot be a {what}: up to 32 of a-z, 0-9 and dash",
            hint="it is not encrypted and stands in the account: take a pseudonym, never a name",
        )


def decode_share(data: bytes) -> Share:
    """Return the share that `data`, bytes from outside, spells; nothing in it is opened.

    Raises:
        EncodingError: It is misspelt.
    """
    value: Any = decode(data, bytes_max=SHARE_BYTES_MAX)
    if not shaped(value, str, str, tuple, bytes, tuple) or value[0] != CONTEXT:
        raise EncodingError("not a person's part of a vault")
    _, name, passphrase, sealed_key, records = value
    check_word(name, "subject")
    if (
        not shaped(passphrase, bytes, int, int)
        or len(passphrase[0]) != SALT_BYTES
        or min(passphrase[1:]) < 1
        or len(sealed_key) != KEY_BYTES + SEALED_OVERHEAD_BYTES
    ):
        raise EncodingError(f"the key of {name} is misshapen")
    for record in records:
        if not shaped(record, str, int, bytes) or len(record[2]) < SEALED_OVERHEAD_BYTES:
            raise EncodingError(f"a record of {name} is misshapen")
        check_word(record[0], "purpose")
    purposes = [record[0] for record in records]
    if purposes != sorted(set(purposes)):
        raise EncodingError(f"the records of {name} are not in order")
    return Share(
        name, Passphrase(*passphrase), sealed_key, tuple(Record(name, *r) for r in records)
    )


def new_share(
    name: str, passphrase: Passphrase, passphrase_key: bytes, draw: Callable[[int], bytes]
) -> Share:
    """Return the share of somebody whom the vault does not know yet.

    Raises:
        EncodingError: The pseudonym cannot be.
    """
    check_word(name, "subject")
    return Share(name, passphrase, seal_key(name, passphrase, passphrase_key, draw(32), draw), ())


def take(vault: Vault, name: str, passphrase_key: bytes, purposes: tuple[str, ...] = ()) -> Share:
    """Return a person's share, once the passphrase is known to be right.

    Args:
        vault: Where it is.
        name: Whose.
        passphrase_key: What the passphrase has come to.
        purposes: Which records shall be in it.

    Raises:
        AbsentError: There is no such subject, or no such record.
        VaultRefusedError: Its key was changed, or it is the device's.
        WrongPassphraseError: The passphrase is another.
    """
    sealed_key = vault.taken_out(name)
    passphrase = vault.subject(name).passphrase
    assert passphrase is not None  # noqa: S101 - `taken_out` has looked
    open_key(name, passphrase, passphrase_key, sealed_key)
    there = {record.purpose: record for record in vault.records if record.subject == name}
    for purpose in purposes:
        if purpose not in there:
            raise AbsentError(
                f"the vault holds no {purpose} of {name}", hint="see `meterctl vault list`"
            )
    return Share(name, passphrase, sealed_key, tuple(there[each] for each in sorted(set(purposes))))


def adopt(vault: Vault, share: Share, draw: Callable[[int], bytes]) -> tuple[Vault, bool]:
    """Return the vault with a share's records and key, and whether that key is another.

    Whoever calls has seen to it that the passphrase before was right. Records that are not in the
    share stay. Where another passphrase or another key opens the person's part from now on, a new
    root key is drawn besides: what was written before, the new one does not open.

    Raises:
        EncodingError: The person's part would hold more than it may.
        VaultRefusedError: It is the device's, or a record is not the next of its purpose.
    """
    name = share.name
    before = {record.purpose: record for record in vault.records if record.subject == name}
    known = any(subject.name == name for subject in vault.subjects)
    other_key = known and vault.taken_out(name) != share.sealed_key
    for record in share.records:
        version = before[record.purpose].version + 1 if record.purpose in before else 1
        if record.version != version:
            raise VaultRefusedError(
                f"record {record.purpose} of {name}: expected version {version}, got"
                f" {record.version}"
            )
    after = before | {record.purpose: record for record in share.records}
    if other_key and share.records and set(after) != {one.purpose for one in share.records}:
        raise VaultRefusedError(f"another key of {name} takes all its records, or none")
    whole = share._replace(records=tuple(sorted(after.values())))
    whole.encode()
    fresh = vault.put_in(name, share.passphrase, share.sealed_key, whole.records, draw)
    return (fresh.rooted(draw) if other_key else fresh), other_key
