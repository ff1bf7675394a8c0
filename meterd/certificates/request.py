"""A request for a certificate: made where the key is used, and read where the root is.

The key stays where it was made. A request is bytes from outside to the root, and is signed by the
key that it asks for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from meterd.certificates.files import FILE_BYTES_MAX
from meterd.certificates.keys import key_id, key_pem, load_key, new_key
from meterd.certificates.signing import named, pem
from meterd.device.files import write_new, write_over
from meterd.errors import ConfigError, EncodingError
from meterd.ledger.account import NAME

if TYPE_CHECKING:
    from pathlib import Path


def make_request(key_path: Path, csr_path: Path, name: str, *, reuse: bool = False) -> str:
    """Make a key and a request for a certificate on it, and return the key id.

    Args:
        key_path: Where the key is to be, mode 0600; it never leaves this machine.
        csr_path: Where the request is to be; it holds nothing secret.
        name: The device's name in its network, or the broker's.
        reuse: Take the key that is there, for a renewal.

    Raises:
        ConfigError: There is a key already and `reuse` is not set, or the name is none.
    """
    check_name(name)
    if reuse:
        key = load_key(key_path, b"")
    else:
        if os.path.lexists(key_path):
            raise ConfigError(
                f"there is a key already: {key_path}",
                hint="ask again for the same key with --same-key, or name another file",
            )
        key = new_key()
        write_new(key_path, key_pem(key, b""), mode=0o600)
    builder = x509.CertificateSigningRequestBuilder().subject_name(named(name))
    csr = builder.sign(key, hashes.SHA256())
    write_over(csr_path, pem(csr), mode=0o644)
    return key_id(key.public_key())


def decode_request(data: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Return name and key of a request, bytes from outside.

    Raises:
        EncodingError: It is none, is not signed by its own key, or asks for what we do not sign.
    """
    if len(data) > FILE_BYTES_MAX:
        raise EncodingError(f"a request of {FILE_BYTES_MAX} bytes at most was expected")
    try:
        csr = x509.load_pem_x509_csr(data)
        key = csr.public_key()
        good = csr.is_signature_valid
        names = [(part.oid, part.value) for part in csr.subject]
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EncodingError(
            "not a request for a certificate (PEM, PKCS #10)",
            hint="make one on the device with `meterctl broker-config ca request`",
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EncodingError("the request's key is not ECDSA P-256")
    if not good:
        raise EncodingError("the request is not signed by its own key: it was edited, or damaged")
    if len(names) != 1 or names[0][0] != x509.NameOID.COMMON_NAME:
        raise EncodingError("the request's subject is not one common name and nothing else")
    name = names[0][1]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise EncodingError(f"a name of a-z, 0-9 and -, 1 to 32, was expected, got {name[:40]!r}")
    return name, key


def check_name(name: str) -> None:
    """Refuse a name that would mean something in a topic.

    Raises:
        ConfigError: It is none of a network.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a name of a-z, 0-9 and -, 1 to 32, was expected, got {name[:40]!r}",
            hint="a topic is made of it: other signs would mean something there",
        )
