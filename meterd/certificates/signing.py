"""What is signed: the root's own certificate, those of the street, and the list of the revoked.

Each has the extensions that RFC 5280 wants of it, and no others. Who may be signed for, and until
when, is decided in `meterd.certificates.root`.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from meterd.certificates.index import REASONS
from meterd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric import ec

    from meterd.certificates.index import Issued

ROOT_YEARS = 20  # longer than a meter hangs on its wall: a new root means a visit to each device
BACKDATED = timedelta(days=1)  # a Pi has no clock battery: what is new must not be "not yet valid"
_DNS = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_DNS_LETTERS_MAX = 253  # RFC 1035, 2.3.4, without the lengths and the root


def root_certificate(
    network: str, key: ec.EllipticCurvePrivateKey, *, now: datetime
) -> x509.Certificate:
    """Return the certificate of a new root, signed by itself."""
    name = named(f"meterd {network} root")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(years_after(now, ROOT_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def certificate_of(
    name: str,
    public_key: ec.EllipticCurvePublicKey,
    alternatives: Sequence[x509.GeneralName],
    root: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    *,
    begins: datetime,
    ends: datetime,
) -> x509.Certificate:
    """Return a certificate: a broker's if there are `alternatives`, else a device's.

    Args:
        name: Whose.
        public_key: Its key.
        alternatives: What devices call a broker by.
        root: Who signs.
        key: The root's.
        begins: Moved to the root's own begin if that is later.
        ends: No later than the root's own end.
    """
    purpose = ExtendedKeyUsageOID.SERVER_AUTH
    if not alternatives:
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(root.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(begins, root.not_valid_before_utc))
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_authority(root), critical=False)
    )
    if alternatives:
        names = x509.SubjectAlternativeName(alternatives)
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256())


def revocation_list(
    certificates: Sequence[Issued],
    root: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    *,
    number: int,
    now: datetime,
) -> bytes:
    """Return the list of those `certificates` that are revoked, as PEM."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(max(now - BACKDATED, root.not_valid_before_utc))
        # The root's own end: past this date a broker refuses everybody, and a date would protect
        # from nothing, since the list is a file that only its operator puts there.
        .next_update(root.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_authority(root), critical=False)
    )
    for one in certificates:
        if one.revoked is None:
            continue
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(int(one.serial, 16))
            .revocation_date(one.revoked)
        )
        if one.reason != "unspecified":  # RFC 5280, 5.3.1: then the reason is left out
            reason = x509.ReasonFlags[REASONS[one.reason]]
            entry = entry.add_extension(x509.CRLReason(reason), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return pem(builder.sign(key, hashes.SHA256()))


def pem(
    thing: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList,
) -> bytes:
    """Return what was signed as PEM."""
    return thing.public_bytes(serialization.Encoding.PEM)


def named(name: str) -> x509.Name:
    """Return a name as X.509 has it: one common name, and nothing else."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(root: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def alternative(host: str) -> x509.GeneralName:
    """Return what devices call a broker by: an address, or a host name.

    Raises:
        ConfigError: It is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _DNS.fullmatch(host) or len(host) > _DNS_LETTERS_MAX:
            raise ConfigError(f"neither a host name nor an address: {host[:64]!r}") from None
        return x509.DNSName(host.lower())


def years_after(now: datetime, years: int) -> datetime:
    """Return the same day so many years on, within a day."""
    return now + timedelta(days=365 * years + years // 4)
