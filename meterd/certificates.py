"""The certificates of a street: a root that stays offline, and one certificate for each device.

A broker lets in whom the root has signed for, and calls it by the name in its certificate. So the
root signs for a name only, `a-z 0-9 -`: `+`, `#` and `/` mean something in a topic. Keys are made
where they are used and never leave: a device sends a request, and gets a certificate back.

The folder of the root holds

    root.key      0600; whoever has it, and its passphrase, can be every device of the street
    root.crt      what devices and broker trust
    root.crl      what the broker refuses, written anew with each revocation
    index         one line for each certificate and each revocation; lines are only ever added
    issued/       every certificate, as it was sent

A certificate is issued once its line is in the index, and not before; it is revoked likewise. If
power fails in between, the index says more than the files beside it, and never less: the same
command again completes them. Whoever can write the index can hide a revocation from the next list,
and cannot make a certificate.

Keys are ECDSA P-256. Ed25519 works with mosquitto, OpenSSL 3 and Python as well, but not with every
broker that a city may choose, nor with the secure elements that could keep a device's key.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.errors import AbsentError, BusyError, ConfigError, DeniedError, EncodingError
from meterd.ledger.account import NAME

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID
except ImportError as missing:  # an extra: only where certificates are made is this module imported
    raise AbsentError(
        "certificates need the package cryptography",
        hint="install meterd with its extra: `pip install 'meterd[ca]'`",
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT_KEY = "root.key"
ROOT_CERTIFICATE = "root.crt"
ROOT_CRL = "root.crl"
INDEX = "index"
ISSUED = "issued"
ROOT_YEARS = 20  # longer than a meter hangs on its wall: a new root means a visit to each device
YEARS_DEFAULT = 2  # a device that nobody has renewed for so long is nobody's any more
BACKDATED = timedelta(days=1)  # a Pi has no clock battery: what is new must not be "not yet valid"
FILE_BYTES_MAX = 65_536  # a request, a key or a certificate is under 1 kB
REASONS = {
    "unspecified": "unspecified",
    "lost": "key_compromise",
    "replaced": "superseded",
    "retired": "cessation_of_operation",
}
_KINDS = ("device", "broker")
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_DNS = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_DNS_LETTERS_MAX = 253  # RFC 1035, 2.3.4, without the lengths and the root


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate, as the index has it.

    Attributes:
        kind: "device" (a client of the broker) or "broker" (a server).
        serial: Hex digits.
        key_id: SHA-256 of the public key (SubjectPublicKeyInfo), hex: to compare by telephone.
        reason: One of `REASONS`, empty while it is not revoked.
    """

    kind: str
    name: str
    serial: str
    key_id: str
    begins: datetime
    ends: datetime
    revoked: datetime | None = None
    reason: str = ""

    def is_live(self, now: datetime) -> bool:
        """Return whether a broker that has the latest list accepts it."""
        return self.revoked is None and now < self.ends

    @property
    def file(self) -> str:
        """The certificate's name in `issued`."""
        return f"{self.name}-{self.serial[:8]}.crt"


# --- the root ---------------------------------------------------------------------------------


def make_root(folder: Path, network: str, *, now: datetime, passphrase: bytes = b"") -> str:
    """Make the root of a street in `folder`, and return its key id; all of it or nothing is there.

    Args:
        folder: Does not exist yet, or is empty; mode 0700 afterwards.
        network: The network's name.
        now: Begin of its 20 years.
        passphrase: Encrypts the key; empty leaves that to whoever keeps the folder.

    Raises:
        ConfigError: There is something in `folder`, or the name is none.
    """
    _check_name(network)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is not empty: a root is never made over another",
            hint="name an empty folder, or move the old root away and keep it",
        )
    key = _new_key()
    name = _named(f"meterd {network} root")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(_years_after(now, ROOT_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))  # mode 0700
    try:
        put(beside / ROOT_KEY, _key_pem(key, passphrase), mode=0o600)
        put(beside / ROOT_CERTIFICATE, _pem(certificate), mode=0o644)
        put(beside / INDEX, b"", mode=0o600)
        (beside / ISSUED).mkdir()
        put(beside / ROOT_CRL, _crl_of((), certificate, key, number=1, now=now), mode=0o644)
        beside.replace(folder)  # onto nothing or an empty folder, else the system refuses
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync_folder(folder.parent)
    return _key_id(key.public_key())


# --- on the device ----------------------------------------------------------------------------


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
    _check_name(name)
    if reuse:
        key = _load_key(key_path, b"")
    else:
        if os.path.lexists(key_path):
            raise ConfigError(
                f"there is a key already: {key_path}",
                hint="ask again for the same key with --same-key, or name another file",
            )
        key = _new_key()
        put(key_path, _key_pem(key, b""), mode=0o600, fresh=True)
    builder = x509.CertificateSigningRequestBuilder().subject_name(_named(name))
    csr = builder.sign(key, hashes.SHA256())
    put(csr_path, _pem(csr), mode=0o644)
    return _key_id(key.public_key())


# --- issuing and revoking ---------------------------------------------------------------------


def issue(
    folder: Path,
    csr: bytes,
    *,
    now: datetime,
    hosts: Sequence[str] = (),
    passphrase: bytes = b"",
    years: int = YEARS_DEFAULT,
    renew: bool = False,
) -> tuple[Issued, bytes]:
    """Return a new certificate: what the index says of it, and its PEM.

    Of the request only name and key count; what else it asks for, the root does not sign.

    Args:
        folder: The root's.
        csr: A request, PEM, from outside.
        now: Begin of its validity.
        hosts: What devices call a broker by, names and addresses. With them it is a broker's
            certificate and no client's, without them a device's and no broker's.
        passphrase: Of the root key.
        years: Its validity; never beyond the root's own.
        renew: Revoke the name's live certificate, as replaced, with the same step.

    Raises:
        EncodingError: Not a request, not signed by its own key, or with a name that is none.
        ConfigError: The name has a live certificate and `renew` is not set; one of `hosts` is
            neither name nor address; the root has ended; the index is damaged.
        DeniedError: The passphrase is wrong, or others can read the root key.
        BusyError: Somebody else issues at this moment.
    """
    name, public_key = _decode_request(csr)
    alternatives = [_alternative(host) for host in hosts]
    with _root(folder, passphrase) as root:
        old = [one for one in root.issued if one.name == name and one.is_live(now)]
        if old and not renew:
            raise ConfigError(
                f"{name} has a live certificate: {old[0].serial}, until {old[0].ends:%Y-%m-%d}",
                hint="revoke it first, or add --replace to do both",
            )
        ends = min(_years_after(now, years), root.certificate.not_valid_after_utc)
        if ends <= now:
            raise ConfigError(
                f"the root in {folder} ended on {ends:%Y-%m-%d}",
                hint="make a new one with `meterctl broker-config ca init`, and visit each device",
            )
        certificate = root.sign(name, public_key, alternatives, begins=now - BACKDATED, ends=ends)
        new = Issued(
            kind="broker" if hosts else "device",
            name=name,
            serial=f"{certificate.serial_number:x}",
            key_id=_key_id(public_key),
            begins=_whole(now),
            ends=certificate.not_valid_after_utc,
        )
        root.append(
            f"{now:{_TIME}} issued {new.kind} {name} {new.serial} {new.ends:{_TIME}} {new.key_id}"
        )
        put(folder / ISSUED / new.file, _pem(certificate), mode=0o644)
        for one in old:
            root.append(f"{now:{_TIME}} revoked {one.serial} replaced")
        if old:
            root.write_crl(now)
    return new, _pem(certificate)


def revoke(
    folder: Path,
    which: str,
    *,
    now: datetime,
    passphrase: bytes = b"",
    reason: str = "unspecified",
) -> tuple[Issued, ...]:
    """Revoke and return the live certificate of a name, or the one of a serial; write the list.

    The broker refuses it once it has the list; what is connected by then stays so until it reloads.

    Raises:
        ConfigError: Nothing of that name or serial was ever issued, or the index is damaged.
        DeniedError: As `issue`; nothing is revoked then.
        BusyError: As `issue`.
    """
    with _root(folder, passphrase) as root:
        found = [one for one in root.issued if which in (one.name, one.serial)]
        if not found:
            raise ConfigError(
                f"no certificate was issued for {which[:64]!r}",
                hint=f"see `meterctl broker-config ca list --ca {folder}`",
            )
        live = [one for one in found if one.revoked is None]
        for one in live:
            root.append(f"{now:{_TIME}} revoked {one.serial} {reason}")
        root.write_crl(now)  # even if all were revoked before: the last time may have ended early
        return tuple(replace(one, revoked=_whole(now), reason=reason) for one in live)


def crl(folder: Path, *, now: datetime, passphrase: bytes = b"") -> bytes:
    """Write the list of revoked certificates from the index, and return it as PEM."""
    with _root(folder, passphrase) as root:
        return root.write_crl(now)


def issued(folder: Path) -> tuple[Issued, ...]:
    """Return every certificate ever issued, in the order of the index; needs no key."""
    with _index(folder, writes=False) as file:
        return _decode_index(_lines(file), folder / INDEX)


def _decode_request(data: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
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


@contextmanager
def _root(folder: Path, passphrase: bytes) -> Iterator[_Root]:
    with _index(folder, writes=True) as file:
        key = _load_key(folder / ROOT_KEY, passphrase)
        certificate = x509.load_pem_x509_certificate(_read(folder / ROOT_CERTIFICATE))
        if certificate.public_key() != key.public_key():
            raise ConfigError(f"{ROOT_KEY} and {ROOT_CERTIFICATE} in {folder} are not one root's")
        yield _Root(folder, file, key, certificate)


class _Root:
    """The root key, its certificate and its index, held by one process at a time."""

    def __init__(
        self,
        folder: Path,
        file: int,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
    ) -> None:
        self.key = key
        self.certificate = certificate
        self._folder = folder
        self._file = file

    @property
    def issued(self) -> tuple[Issued, ...]:
        return _decode_index(_lines(self._file), self._folder / INDEX)

    def sign(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        alternatives: Sequence[x509.GeneralName],
        *,
        begins: datetime,
        ends: datetime,
    ) -> x509.Certificate:
        """Return a certificate: a broker's if there are `alternatives`, else a device's."""
        purpose = ExtendedKeyUsageOID.SERVER_AUTH
        if not alternatives:
            purpose = ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(begins, self.certificate.not_valid_before_utc))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_authority(self.certificate), critical=False)
        )
        if alternatives:
            names = x509.SubjectAlternativeName(alternatives)
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def append(self, line: str) -> None:
        """Add a line; it counts once this returns."""
        counted = sum(len(whole) + 1 for whole in _lines(self._file))
        os.ftruncate(self._file, counted)  # what a failure of power tore never counted
        data = line.encode() + b"\n"
        if os.write(self._file, data) != len(data):
            raise OSError(None, "written in part", str(self._folder / INDEX))
        os.fsync(self._file)

    def write_crl(self, now: datetime) -> bytes:
        """Write the list anew. Its number grows with the index, which never shrinks."""
        number = 1 + len(_lines(self._file))
        data = _crl_of(self.issued, self.certificate, self.key, number=number, now=now)
        put(self._folder / ROOT_CRL, data, mode=0o644)
        return data


def _crl_of(
    certificates: Sequence[Issued],
    root: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    *,
    number: int,
    now: datetime,
) -> bytes:

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
    return _pem(builder.sign(key, hashes.SHA256()))


# --- the index --------------------------------------------------------------------------------


@contextmanager
def _index(folder: Path, *, writes: bool) -> Iterator[int]:
    path = folder / INDEX
    try:
        descriptor = os.open(path, (os.O_RDWR | os.O_APPEND if writes else os.O_RDONLY))
    except FileNotFoundError as error:
        raise AbsentError(
            f"there is no root in {folder}",
            hint=f"make one with `meterctl broker-config ca init --ca {folder} --network NAME`",
        ) from error
    try:
        if writes:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(f"somebody else works with {folder} at this moment") from error
        yield descriptor
    finally:
        os.close(descriptor)


def _lines(descriptor: int) -> list[bytes]:
    """Return the lines that count: a last one without its end was torn by a failure of power."""
    *lines, _torn = os.pread(descriptor, os.fstat(descriptor).st_size, 0).split(b"\n")
    return lines


def _decode_index(lines: Sequence[bytes], path: Path) -> tuple[Issued, ...]:
    found: dict[str, Issued] = {}
    for number, line in enumerate(lines, start=1):
        try:
            words = line.decode("ascii").split()
            at = _instant(words[0])
            if words[1] == "issued":
                _, _, kind, name, serial, ends, key_id = words
                _must(kind in _KINDS and bool(NAME.fullmatch(name)) and serial not in found)
                int(serial, 16)
                found[serial] = Issued(
                    kind=kind,
                    name=name,
                    serial=serial,
                    key_id=key_id,
                    begins=at,
                    ends=_instant(ends),
                )
            else:
                _, verb, serial, reason = words
                _must(verb == "revoked" and reason in REASONS)
                if found[serial].revoked is None:
                    found[serial] = replace(found[serial], revoked=at, reason=reason)
        except (ValueError, IndexError, KeyError) as error:
            raise ConfigError(
                f"line {number} of {path} is damaged",
                hint="restore the folder from its copy: the index says what is revoked",
            ) from error
    return tuple(found.values())


def _must(holds: bool) -> None:  # noqa: FBT001 - a condition
    if not holds:
        raise ValueError


# --- files ------------------------------------------------------------------------------------


def put(path: Path, data: bytes, *, mode: int, fresh: bool = False) -> None:
    """Let `path` be `data`, whole or not at all, also after a failure of power.

    It has `mode` whatever the umask is, and with `fresh` never takes the place of a file.

    Raises:
        OSError: As the system says; `FileExistsError` if `fresh` and there is one.
    """
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if fresh:
            os.link(beside, path)
            beside.unlink()
        else:
            beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, *, secret: bool = False) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if secret and stat.S_IMODE(mode) & 0o077:
            raise DeniedError(
                f"others may read the key {path}",
                hint="make a new one if others have had access; else `chmod 600` it",
            )
        return file.read(FILE_BYTES_MAX)


# --- what X.509 calls it ----------------------------------------------------------------------


def _new_key() -> ec.EllipticCurvePrivateKey:

    return ec.generate_private_key(ec.SECP256R1())


def _load_key(path: Path, passphrase: bytes) -> ec.EllipticCurvePrivateKey:

    data = _read(path, secret=True)
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


def _key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> bytes:

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def _pem(
    thing: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList,
) -> bytes:

    return thing.public_bytes(serialization.Encoding.PEM)


def _key_id(key: ec.EllipticCurvePublicKey) -> str:

    data = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return sha256(data).hexdigest()


def _named(name: str) -> x509.Name:
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


def _alternative(host: str) -> x509.GeneralName:

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _DNS.fullmatch(host) or len(host) > _DNS_LETTERS_MAX:
            raise ConfigError(f"neither a host name nor an address: {host[:64]!r}") from None
        return x509.DNSName(host.lower())


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a name of a-z, 0-9 and -, 1 to 32, was expected, got {name[:40]!r}",
            hint="a topic is made of it: other signs would mean something there",
        )


def _years_after(now: datetime, years: int) -> datetime:
    return now + timedelta(days=365 * years + years // 4)


def _whole(now: datetime) -> datetime:
    return _instant(f"{now:{_TIME}}")


def _instant(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
