"""Keys in envelopes: a secret opens a key, which opens a key, which opens a record.

    device secret ── root key ── subject's key ── record
                        and passphrase ┘

The device secret never encrypts data: it opens the root key, which is drawn anew with each rotation
and each erasure. The root key opens the subjects' keys; that of a person takes the passphrase of
that person besides. Each record is sealed under its subject's key, and its subject, purpose and
version are part of what is sealed: none can be put in the place of another. XChaCha20-Poly1305 (the
IETF construction with a nonce of 24 bytes, draft-irtf-cfrg-xchacha-03) seals, and keyed BLAKE2b
(RFC 7693), as in libsodium's crypto_kdf, derives.

A vault is two files: the content, and the key to it, which names version and hash of the one
content that counts. So replacing the key file replaces the vault, at once and as a whole; what was
before is opened by no key of today. Nonces and new keys are passed in: nothing is drawn here.

>>> from itertools import count
>>> numbers = count()
>>> draw = lambda length: next(numbers).to_bytes(length, "big")  # secrets.token_bytes elsewhere
>>> device = device_key(bytes(32))
>>> vault = found(device, draw).with_subject("billing", draw).put("billing", "key", b"...", draw)
>>> open_vault(vault.close(draw), device).get("billing", "key")
b'...'
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_ABYTES,
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

from meterd.errors import AbsentError, EncodingError, VaultRefusedError, WrongPassphraseError
from meterd.ledger.account import shaped
from meterd.ledger.encoding import decode, digest, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterd.ledger.encoding import Value

KEY_BYTES = 32
NONCE_BYTES = 24
TAG_BYTES = crypto_aead_xchacha20poly1305_ietf_ABYTES
SALT_BYTES = 16
CONTENT_CONTEXT = "meterd/vault/v1"
KEY_CONTEXT = "meterd/vault-key/v1"
CONTENT_BYTES_MAX = 4 * 1024 * 1024  # thousands of records; a household has some ten
RECORD_BYTES_MAX = 65_536
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # of subjects and purposes: pseudonyms, no data


class Passphrase(NamedTuple):
    """How a person's passphrase becomes a key: Argon2id (RFC 9106), 32 bytes, one lane.

    Attributes:
        salt: 16 bytes, drawn for this person.
        passes: Over the memory.
        memory_kib: How much.
    """

    salt: bytes
    passes: int
    memory_kib: int


class Subject(NamedTuple):
    """Whose records are kept: a person, or a part of the device.

    Attributes:
        name: A pseudonym.
        passphrase: What opens its key besides the root key; None for a part of the device.
        sealed_key: Its key, in the passphrase's envelope where there is one, in the root key's.
    """

    name: str
    passphrase: Passphrase | None
    sealed_key: bytes


class Record(NamedTuple):
    """One thing that is kept.

    Attributes:
        subject: Whose.
        purpose: What for.
        version: 1, then one more each time it is replaced.
        sealed: In its envelope.
    """

    subject: str
    purpose: str
    version: int
    sealed: bytes


class Files(NamedTuple):
    """A vault as it lies on the card: the content, and the key to it."""

    content: bytes
    key: bytes


class Vault(NamedTuple):
    """An open vault: its root key is in memory.

    Attributes:
        device: From `device_key`.
        root: The root key.
        version: How often it has been written, the next time included.
        subjects: Ascending by name.
        records: Ascending by subject and purpose.
    """

    device: bytes
    root: bytes
    version: int
    subjects: tuple[Subject, ...]
    records: tuple[Record, ...]

    def subject(self, name: str) -> Subject:
        """Return a subject.

        Raises:
            AbsentError: There is none of this name.
        """
        for subject in self.subjects:
            if subject.name == name:
                return subject
        raise AbsentError(f"the vault holds nothing of {name}", hint="see `meterctl vault list`")

    def with_subject(
        self,
        name: str,
        draw: Callable[[int], bytes],
        passphrase: Passphrase | None = None,
        passphrase_key: bytes = b"",
    ) -> Vault:
        """Return the vault with one more subject, whose key is drawn.

        Args:
            name: As `NAME` has it.
            draw: Returns so many bytes that nobody can guess.
            passphrase: How a person's passphrase becomes a key.
            passphrase_key: What it has come to.

        Raises:
            EncodingError: The name cannot be, or is there.
        """
        _check_name(name)
        if any(each.name == name for each in self.subjects):
            raise EncodingError(f"the vault holds records of {name} already")
        return self._with_key(name, draw(KEY_BYTES), draw, passphrase, passphrase_key)

    def with_passphrase(
        self,
        name: str,
        draw: Callable[[int], bytes],
        before: bytes,
        passphrase: Passphrase,
        passphrase_key: bytes,
    ) -> Vault:
        """Return the vault where another passphrase opens a person's records.

        Args:
            name: Whose.
            draw: As for `with_subject`.
            before: What the passphrase before has come to.
            passphrase: How the new one becomes a key.
            passphrase_key: What it has come to.

        Raises:
            AbsentError: There is no such subject.
            VaultRefusedError: The passphrase before is another.
        """
        key = self._subject_key(name, before)
        return self._with_key(name, key, draw, passphrase, passphrase_key)

    def _with_key(
        self,
        name: str,
        key: bytes,
        draw: Callable[[int], bytes],
        passphrase: Passphrase | None,
        passphrase_key: bytes,
    ) -> Vault:
        if passphrase is not None:
            key = seal_key(name, passphrase, passphrase_key, key, draw)
        subject = Subject(name, passphrase, _seal(self.root, key, _of_subject(name), draw))
        others = [each for each in self.subjects if each.name != name]
        return self._replace(subjects=tuple(sorted((*others, subject))))

    def _subject_key(self, name: str, passphrase_key: bytes) -> bytes:
        subject = self.subject(name)
        try:
            key = _open(self.root, subject.sealed_key, _of_subject(name))
        except CryptoError as error:
            raise VaultRefusedError(f"the key of {name} was changed") from error
        if subject.passphrase is None:
            return key
        return open_key(name, subject.passphrase, passphrase_key, key)

    def put(
        self,
        name: str,
        purpose: str,
        data: bytes,
        draw: Callable[[int], bytes],
        passphrase_key: bytes = b"",
    ) -> Vault:
        """Return the vault with a record, in the place of the one before.

        Raises:
            AbsentError: There is no such subject.
            EncodingError: Too much data, or a purpose that cannot be.
            VaultRefusedError: The passphrase is another.
        """
        key = self._subject_key(name, passphrase_key)
        before = [each for each in self.records if each[:2] == (name, purpose)]
        version = before[0].version + 1 if before else 1
        record = seal_record(key, (name, purpose, version), data, draw)
        others = [each for each in self.records if each not in before]
        return self._replace(records=tuple(sorted((*others, record))))

    def get(self, name: str, purpose: str, passphrase_key: bytes = b"") -> bytes:
        """Return what a record holds.

        Raises:
            AbsentError: There is none.
            VaultRefusedError: The passphrase is another, or the record was changed.
        """
        key = self._subject_key(name, passphrase_key)
        for record in self.records:
            if record[:2] == (name, purpose):
                return open_record(key, record)
        raise AbsentError(f"the vault holds no {purpose} of {name}")

    def without(self, name: str, draw: Callable[[int], bytes]) -> Vault:
        """Return the vault without a subject and its records, under another root key.

        What was written before names the same keys, and the root key that opens them is gone.

        Raises:
            AbsentError: There is no such subject.
        """
        gone = self.subject(name)
        left = self._replace(
            subjects=tuple(each for each in self.subjects if each != gone),
            records=tuple(each for each in self.records if each.subject != name),
        )
        return left.rooted(draw)

    def taken_out(self, name: str) -> bytes:
        """Return a person's key as it is in the passphrase's envelope, out of the root key's.

        Raises:
            AbsentError: There is no such subject.
            VaultRefusedError: Its key was changed, or it is a part of the device.
        """
        subject = self.subject(name)
        if subject.passphrase is None:
            raise VaultRefusedError(f"{name} is a part of the device: its keys stay in here")
        try:
            return _open(self.root, subject.sealed_key, _of_subject(name))
        except CryptoError as error:
            raise VaultRefusedError(f"the key of {name} was changed") from error

    def put_in(
        self,
        name: str,
        passphrase: Passphrase,
        key: bytes,
        records: tuple[Record, ...],
        draw: Callable[[int], bytes],
    ) -> Vault:
        """Return the vault with all that belongs to a person, in the place of what did before.

        Args:
            name: Whose.
            passphrase: How the passphrase becomes a key.
            key: As `taken_out` returns it.
            records: All of them.
            draw: As for `with_subject`.
        """
        _check_name(name)
        subject = Subject(name, passphrase, _seal(self.root, key, _of_subject(name), draw))
        return self._replace(
            subjects=tuple(sorted((*(s for s in self.subjects if s.name != name), subject))),
            records=tuple(sorted((*(r for r in self.records if r.subject != name), *records))),
        )

    def rooted(self, draw: Callable[[int], bytes]) -> Vault:
        """Return the vault under another root key; passphrases and records stay as they are.

        Raises:
            VaultRefusedError: A subject's key was changed.
        """
        root, subjects = draw(KEY_BYTES), list[Subject]()
        for subject in self.subjects:
            about = _of_subject(subject.name)
            try:
                key = _open(self.root, subject.sealed_key, about)
            except CryptoError as error:
                raise VaultRefusedError(f"the key of {subject.name} was changed") from error
            subjects.append(subject._replace(sealed_key=_seal(root, key, about, draw)))
        return self._replace(root=root, subjects=tuple(subjects))

    def moved(self, device: bytes) -> Vault:
        """Return the vault under another device secret: see `device_key`."""
        return self._replace(device=device)

    def close(self, draw: Callable[[int], bytes]) -> Files:
        """Return the vault's files; the content counts once the key file is in its place.

        Raises:
            EncodingError: There is more than a vault holds.
        """
        subjects = [[each.name, _spell(each.passphrase), each.sealed_key] for each in self.subjects]
        records: list[Value] = [tuple(each) for each in self.records]
        named: list[Value] = [CONTENT_CONTEXT, device_id(self.device), self.version]
        content = encode([*named, subjects, records])
        if len(content) > CONTENT_BYTES_MAX:
            raise EncodingError(f"a vault has at most {CONTENT_BYTES_MAX} bytes")
        named[0] = KEY_CONTEXT
        named.append(digest(content))
        return Files(content, encode([*named, _seal(self.device, self.root, encode(named), draw)]))


def seal_record(
    key: bytes, about: tuple[str, str, int], data: bytes, draw: Callable[[int], bytes]
) -> Record:
    """Return a record under its subject's key.

    Args:
        key: The subject's.
        about: Subject, purpose and version.
        data: What it holds.
        draw: As for `Vault.with_subject`.

    Raises:
        EncodingError: Too much data, or a purpose that cannot be.
    """
    _check_name(about[1])
    if len(data) > RECORD_BYTES_MAX:
        raise EncodingError(f"a record has at most {RECORD_BYTES_MAX} bytes, got {len(data)}")
    return Record(*about, _seal(key, data, _of_record(*about), draw))


def open_record(key: bytes, record: Record) -> bytes:
    """Return what a record holds.

    Raises:
        VaultRefusedError: It was changed, or stands in the place of another.
    """
    try:
        return _open(key, record.sealed, _of_record(*record[:3]))
    except CryptoError as error:
        raise VaultRefusedError(
            f"record {record.purpose} of {record.subject} was changed, or is another's"
        ) from error


def seal_key(
    name: str,
    passphrase: Passphrase,
    passphrase_key: bytes,
    key: bytes,
    draw: Callable[[int], bytes],
) -> bytes:
    """Return a person's key in the envelope that the passphrase opens."""
    return _seal(passphrase_key, key, _of_passphrase(name, passphrase), draw)


def open_key(name: str, passphrase: Passphrase, passphrase_key: bytes, sealed: bytes) -> bytes:
    """Return a person's key.

    Raises:
        WrongPassphraseError: The passphrase is another.
    """
    try:
        return _open(passphrase_key, sealed, _of_passphrase(name, passphrase))
    except CryptoError as error:
        raise WrongPassphraseError(f"that is not the passphrase of {name}") from error


def found(device: bytes, draw: Callable[[int], bytes]) -> Vault:
    """Return an empty vault of a device."""
    return Vault(device, draw(KEY_BYTES), 1, (), ())


def device_key(secret: bytes, bound: bytes = b"") -> bytes:
    """Return the key that opens a device's vault.

    Args:
        secret: The device secret, 32 bytes.
        bound: What this board alone has, such as its one-time programmable memory; or nothing.
    """
    return _derive(_derive(secret, "meterd/device/v1"), "meterd/bound/v1", bound)


def device_id(device: bytes) -> bytes:
    """Return what tells one device's vault from another's, 8 bytes; it gives nothing away."""
    return _derive(device, "meterd/device-id/v1")[:8]


def open_vault(files: Files, device: bytes, version_min: int = 0) -> Vault:
    """Return the vault in these files, which come from a card that others may have written.

    Args:
        files: As they are.
        device: From `device_key`.
        version_min: What is known from elsewhere to have been written.

    Raises:
        VaultRefusedError: They are another device's, older, changed, or not of one vault.
    """
    try:
        key = decode(files.key)
        content = decode(files.content, bytes_max=CONTENT_BYTES_MAX)
    except EncodingError as error:
        raise VaultRefusedError(f"the vault is damaged: {error}") from error
    if not shaped(key, str, bytes, int, bytes, bytes) or key[0] != KEY_CONTEXT:
        raise VaultRefusedError("the key file is no key to a vault")
    if key[1] != device_id(device):
        raise VaultRefusedError(
            f"the vault was sealed on another device ({key[1].hex()}, this is"
            f" {device_id(device).hex()})",
            hint="move the card back; if the board was given a key since, stop the meter and"
            " `meterctl vault rotate --device`",
        )
    try:
        root = _open(device, key[4], encode(key[:4]))
    except CryptoError as error:
        raise VaultRefusedError("the key file was changed") from error
    if key[2] < version_min:
        raise VaultRefusedError(f"the vault is older: {key[2]} of {version_min} times written")
    if digest(files.content) != key[3]:
        raise VaultRefusedError(_not_the_one(content, key[1], key[2]))
    subjects = tuple(Subject(one[0], _read_passphrase(one[1]), one[2]) for one in content[3])
    return Vault(device, root, content[2] + 1, subjects, tuple(Record(*one) for one in content[4]))


def named_version(key: bytes) -> int:
    """Return which content a key file names, by version; whether it is right `open_vault` says.

    Raises:
        VaultRefusedError: It is no key file.
    """
    try:
        value = decode(key)
    except EncodingError as error:
        raise VaultRefusedError(f"the key to the vault is damaged: {error}") from error
    if not shaped(value, str, bytes, int, bytes, bytes) or value[0] != KEY_CONTEXT:
        raise VaultRefusedError("the key file is no key to a vault")
    return int(value[2])


def _not_the_one(content: Any, device: bytes, version: int) -> str:  # noqa: ANN401 - any value
    """Say what is wrong with content that the key file does not name."""
    if not shaped(content, str, bytes, int, tuple, tuple) or content[0] != CONTENT_CONTEXT:
        return "the content is that of no vault"
    if content[1] != device:
        return f"the content is another device's ({content[1].hex()})"
    if content[2] < version:
        return f"the content is older: version {content[2]}, and {version} counts"
    return f"the content was changed, or is not the one that was written (version {content[2]})"


def seal_to(recipient: bytes, data: bytes, ephemeral: bytes) -> bytes:
    """Return `data` that only the holder of an X25519 key can open (libsodium's sealed box).

    Args:
        recipient: Its public key, 32 bytes.
        data: What it shall have.
        ephemeral: 32 bytes that nobody can guess, never used again.
    """
    mine, theirs = PrivateKey(ephemeral), PublicKey(recipient)
    mark = bytes(mine.public_key)
    nonce = blake2b(mark + recipient, digest_size=NONCE_BYTES).digest()
    return mark + Box(mine, theirs).encrypt(data, nonce).ciphertext


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise EncodingError(
            f"{name[:64]!r} cannot be a name: up to 64 of a-z, 0-9, dot, dash and underscore",
            hint="names are not encrypted: take a pseudonym",
        )


def _spell(passphrase: Passphrase | None) -> tuple[bytes | int, ...]:
    return () if passphrase is None else tuple(passphrase)


def _read_passphrase(spelt: tuple[Any, ...]) -> Passphrase | None:
    return Passphrase(*spelt) if spelt else None


def _of_subject(name: str) -> bytes:
    return encode(["meterd/vault-subject/v1", name])


def _of_passphrase(name: str, passphrase: Passphrase) -> bytes:
    return encode(["meterd/vault-passphrase/v1", name, *passphrase])


def _of_record(name: str, purpose: str, version: int) -> bytes:
    return encode(["meterd/vault-record/v1", name, purpose, version])


def _derive(key: bytes, context: str, data: bytes = b"") -> bytes:
    return blake2b(encode([context, data]), key=key, digest_size=KEY_BYTES).digest()


def _seal(key: bytes, data: bytes, about: bytes, draw: Callable[[int], bytes]) -> bytes:
    nonce = draw(NONCE_BYTES)
    return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(data, about, nonce, key)


def _open(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Return what is sealed.

    Raises:
        CryptoError: Another key sealed it, or it is about something else, or it was changed.
    """
    nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    if len(rest) < TAG_BYTES:  # libsodium's binding answers with a ValueError
        raise CryptoError("too short")
    return crypto_aead_xchacha20poly1305_ietf_decrypt(rest, about, nonce, key)
