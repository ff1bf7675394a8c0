"""Keys of ECDSA P-256: made, opened, written as PEM, and the id that people compare."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meterd.certificates.files import read
from meterd.errors import ConfigError, DeniedError

if TYPE_CHECKING:
    from pathlib import Path


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key."""
    return ec.generate_private_key(ec.SECP256R1())


def load_key(path: Path, passphrase: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the key in a file.

    Raises:
        ConfigError: It is none, or of another kind.
        DeniedError: Others may read it, or the passphrase does not open it.
    """
    data = read(path, secret=True)
    encrypted = b"ENCRYPTED" in data
    if encrypted and not passphrase:
        raise DeniedError(
            f"{path} is encrypted", hint="name a file with its passphrase: --passphrase-file FILE"
        )
    try:
        key = serialization.load_pem_private_key(data, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise DeniedError(f"the passphrase does not open {path}") from error
        raise ConfigError(f"{path} is no key", hint="restore it from its copy") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"{path} is no key of ECDSA P-256")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> bytes:
    """Return a key as PEM, encrypted unless the passphrase is empty."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key (SubjectPublicKeyInfo), hex."""
    data = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return sha256(data).hexdigest()
