r"""What an SSH certificate of a technician says, and which one has opened a session.

sshd has verified the certificate before anybody gets here; what is left is to read from it. That is
done here, byte by byte, and not by `ssh-keygen -L`: its answer is text, in which an id can stand
that looks like other lines of it. The format is that of OpenSSH's PROTOCOL.certkeys; whatever is
not the one spelling of a certificate of the technician CA is refused.

>>> key = encode_key("ssh-ed25519", bytes(32))
>>> fingerprint(key)
'SHA256:kmYcvdi2GkPeWxB6XLjrZB8JHsy2Hm8luHMFp9GMvqk'
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from dataclasses import dataclass
from hashlib import sha256

from meterd.errors import EncodingError

PLAIN_TYPES = {  # of a certificate, and of the key in it: in a file, or in a token
    "ssh-ed25519-cert-v01@openssh.com": "ssh-ed25519",
    "sk-ssh-ed25519-cert-v01@openssh.com": "sk-ssh-ed25519@openssh.com",
}
CERTIFICATE_TYPES = {plain: certificate for certificate, plain in PLAIN_TYPES.items()}
CERTIFICATE_BYTES_MAX = 8192  # one is about 400; as much as OpenSSH lets options take
ID_LETTERS_MAX = 128
PRINCIPALS_MAX = 64
KEY_BYTES = 32
USER = 1  # certificates of hosts have 2

_PRINTABLE = re.compile(r"[\x21-\x7e]+")  # a name in a record has no blanks, and nothing unseen


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A technician's certificate. Its signature is sshd's matter, and was verified.

    Attributes:
        key: The technician's public key, as it is spelt without a certificate.
        serial: Of the certificate, above 0.
        identity: Who it was issued to.
        principals: What it opens, at least one.
        begins_s: Unix seconds, the first at which it is valid; 0 for always.
        ends_s: Unix seconds, the first at which it is not.
        critical: Names of the options that a server has to understand.
        extensions: Names of what it permits.
        ca: Public key of the CA.
    """

    key: bytes
    serial: int
    identity: str
    principals: tuple[str, ...]
    begins_s: int
    ends_s: int
    critical: tuple[str, ...]
    extensions: tuple[str, ...]
    ca: bytes


class _Reader:
    """Takes a message apart from its front."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def number(self, length: int) -> int:
        return int.from_bytes(self._take(length))

    def string(self) -> bytes:
        return self._take(self.number(4))

    def text(self, letters_max: int) -> str:
        found = self.string()
        if len(found) > letters_max or not _PRINTABLE.fullmatch(found.decode("latin-1")):
            raise EncodingError(
                f"expected 1 to {letters_max} printable letters, got {found[:40]!r}"
            )
        return found.decode("ascii")

    def end(self) -> None:
        if self._rest:
            raise EncodingError(f"{len(self._rest)} bytes too many")

    @property
    def is_empty(self) -> bool:
        return not self._rest

    def _take(self, length: int) -> bytes:
        if length > len(self._rest):
            raise EncodingError(f"expected {length} more bytes, got {len(self._rest)}")
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken


def encode_string(data: bytes) -> bytes:
    """Return a string as SSH spells it (RFC 4251): its length in 4 bytes, then itself."""
    return struct.pack(">I", len(data)) + data


def encode_key(kind: str, *parts: bytes) -> bytes:
    """Return a public key as SSH spells it: its type, then its parts."""
    return b"".join(encode_string(part) for part in (kind.encode(), *parts))


def fingerprint(key: bytes) -> str:
    """Return what `ssh-keygen -l` shows of a public key."""
    return "SHA256:" + base64.b64encode(sha256(key).digest()).decode().rstrip("=")


def decode_public(data: bytes) -> tuple[str, bytes]:
    """Return the type and the blob of a public key in a file of one line, as ssh-keygen writes it.

    Raises:
        EncodingError: It is no such file, or of a type that technicians do not have.
    """
    if b"PRIVATE KEY" in data:
        raise EncodingError(
            "this is a private key, which never leaves its owner",
            hint="ask for the file beside it that ends in .pub",
        )
    kind, blob = _typed(data.strip().split(b" ", 2)[:2])
    if kind not in CERTIFICATE_TYPES:
        raise EncodingError(
            f"expected a key of type {' or '.join(CERTIFICATE_TYPES)}, got {kind[:40]!r}",
            hint="the technician makes one with `ssh-keygen -t ed25519`",
        )
    reader = _Reader(blob)
    _ = reader.string(), _public(reader, kind)
    reader.end()
    return kind, blob


def decode_certificate(kind: str, blob: bytes) -> Certificate:
    """Return what a certificate says.

    Args:
        kind: Its type, as it stands before it.
        blob: Up to `CERTIFICATE_BYTES_MAX` bytes; that sshd has verified it is not checked again.

    Raises:
        EncodingError: It is no user's certificate of a type in use, has no serial or id or
            principal, or anything is left over.
    """
    if kind not in PLAIN_TYPES:
        raise EncodingError(f"expected a technician's certificate, got {kind[:40]!r}")
    if len(blob) > CERTIFICATE_BYTES_MAX:
        raise EncodingError(f"a certificate of {len(blob)} bytes")
    reader = _Reader(blob)
    if reader.string() != kind.encode():
        raise EncodingError("the certificate is of another type than it says")
    reader.string()  # a nonce
    key = encode_key(PLAIN_TYPES[kind], *_public(reader, PLAIN_TYPES[kind]))
    serial = reader.number(8)
    if reader.number(4) != USER:
        raise EncodingError("expected a certificate of a user, got one of a host")
    identity = reader.text(ID_LETTERS_MAX)
    principals = _principals(reader.string())
    begins_s, ends_s = reader.number(8), reader.number(8)
    critical, extensions = _names(reader.string()), _names(reader.string())
    if reader.string():
        raise EncodingError("the reserved field is not empty")
    ca = reader.string()
    reader.string()  # the signature
    reader.end()
    if not serial:
        raise EncodingError("the certificate has no serial: nobody could tell it from another")
    return Certificate(
        key=key,
        serial=serial,
        identity=identity,
        principals=principals,
        begins_s=begins_s,
        ends_s=ends_s,
        critical=critical,
        extensions=extensions,
        ca=ca,
    )


def decode_certificate_file(data: bytes) -> Certificate:
    """Return what the certificate in a file of one line says.

    Raises:
        EncodingError: As `decode_certificate` does.
    """
    return decode_certificate(*_typed(data.strip().split(b" ", 2)[:2]))


def decode_entry(data: bytes) -> Certificate:
    """Return the certificate that has opened a session.

    Args:
        data: The file that sshd names in $SSH_USER_AUTH: a line for each method that was passed.

    Raises:
        EncodingError: It is not one line, of one certificate.
    """
    line, ended, rest = data.partition(b"\n")
    words = line.split(b" ")
    if not ended or rest or len(words) != 3 or words[0] != b"publickey":  # noqa: PLR2004
        raise EncodingError("the session was not opened by one certificate alone")
    return decode_certificate(*_typed(words[1:]))


def _typed(words: list[bytes]) -> tuple[str, bytes]:
    """Return a type and the bytes behind it, out of `TYPE BASE64`."""
    try:
        kind, spelt = words
        blob = base64.b64decode(spelt, validate=True)
        if base64.b64encode(blob) != spelt:
            raise EncodingError("the key has another spelling than its own")
        return kind.decode("ascii"), blob
    except (ValueError, binascii.Error) as error:
        raise EncodingError(
            "expected one line: a type, and the key in base64",
            hint="give the file as ssh-keygen wrote it",
        ) from error


def _public(reader: _Reader, kind: str) -> tuple[bytes, ...]:
    """Return the parts of a public key: 32 bytes, and of a token what it was made for."""
    key = reader.string()
    if len(key) != KEY_BYTES:
        raise EncodingError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
    return (key, reader.string()) if kind.startswith("sk-") else (key,)


def _principals(data: bytes) -> tuple[str, ...]:
    reader = _Reader(data)
    found: list[str] = []
    while not reader.is_empty and len(found) <= PRINCIPALS_MAX:
        found.append(reader.text(ID_LETTERS_MAX))
    if not 0 < len(found) <= PRINCIPALS_MAX:
        raise EncodingError(f"expected 1 to {PRINCIPALS_MAX} principals, got {len(found)}")
    return tuple(found)


def _names(data: bytes) -> tuple[str, ...]:
    """Return the names of options, which come in their order, each once."""
    reader = _Reader(data)
    found: list[str] = []
    while not reader.is_empty:
        found.append(reader.text(ID_LETTERS_MAX))
        reader.string()
    if found != sorted(set(found)):
        raise EncodingError("options of the certificate are repeated, or out of order")
    return tuple(found)
