"""The folder of a street's root: made once, then issued from and revoked from.

Whatever changes it holds the index alone, adds its line, and writes the files beside it after.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509

from meterd.certificates.files import read
from meterd.certificates.index import (
    INDEX,
    TIME,
    Issued,
    add_line,
    counted_lines,
    decode_index,
    open_index,
    whole_second,
)
from meterd.certificates.keys import key_id, key_pem, load_key, new_key
from meterd.certificates.request import check_name, decode_request
from meterd.certificates.signing import (
    BACKDATED,
    alternative,
    certificate_of,
    pem,
    revocation_list,
    root_certificate,
    years_after,
)
from meterd.device.card import sync_folder
from meterd.device.files import write_over
from meterd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric import ec

ROOT_KEY = "root.key"
ROOT_CERTIFICATE = "root.crt"
ROOT_CRL = "root.crl"
ISSUED = "issued"
YEARS_DEFAULT = 2  # a device that nobody has renewed for so long is nobody's any more


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
    check_name(network)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is not empty: a root is never made over another",
            hint="name an empty folder, or move the old root away and keep it",
        )
    key = new_key()
    certificate = root_certificate(network, key, now=now)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))  # mode 0700
    try:
        write_over(beside / ROOT_KEY, key_pem(key, passphrase), mode=0o600)
        write_over(beside / ROOT_CERTIFICATE, pem(certificate), mode=0o644)
        write_over(beside / INDEX, b"", mode=0o600)
        (beside / ISSUED).mkdir()
        write_over(
            beside / ROOT_CRL, revocation_list((), certificate, key, number=1, now=now), mode=0o644
        )
        beside.replace(folder)  # onto nothing or an empty folder, else the system refuses
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return key_id(key.public_key())


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
    name, public_key = decode_request(csr)
    alternatives = [alternative(host) for host in hosts]
    with _root(folder, passphrase) as root:
        old = [one for one in root.issued if one.name == name and one.is_live(now)]
        if old and not renew:
            raise ConfigError(
                f"{name} has a live certificate: {old[0].serial}, until {old[0].ends:%Y-%m-%d}",
                hint="revoke it first, or add --replace to do both",
            )
        ends = min(years_after(now, years), root.certificate.not_valid_after_utc)
        if ends <= now:
            raise ConfigError(
                f"the root in {folder} ended on {ends:%Y-%m-%d}",
                hint="make a new one with `meterctl broker-config ca init`, and visit each device",
            )
        certificate = certificate_of(
            name,
            public_key,
            alternatives,
            root.certificate,
            root.key,
            begins=now - BACKDATED,
            ends=ends,
        )
        new = Issued(
            kind="broker" if hosts else "device",
            name=name,
            serial=f"{certificate.serial_number:x}",
            key_id=key_id(public_key),
            begins=whole_second(now),
            ends=certificate.not_valid_after_utc,
        )
        root.append(
            f"{now:{TIME}} issued {new.kind} {name} {new.serial} {new.ends:{TIME}} {new.key_id}"
        )
        write_over(folder / ISSUED / new.file, pem(certificate), mode=0o644)
        for one in old:
            root.append(f"{now:{TIME}} revoked {one.serial} replaced")
        if old:
            root.write_crl(now)
    return new, pem(certificate)


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
            root.append(f"{now:{TIME}} revoked {one.serial} {reason}")
        root.write_crl(now)  # even if all were revoked before: the last time may have ended early
        return tuple(replace(one, revoked=whole_second(now), reason=reason) for one in live)


def crl(folder: Path, *, now: datetime, passphrase: bytes = b"") -> bytes:
    """Write the list of revoked certificates from the index, and return it as PEM."""
    with _root(folder, passphrase) as root:
        return root.write_crl(now)


def issued(folder: Path) -> tuple[Issued, ...]:
    """Return every certificate ever issued, in the order of the index; needs no key."""
    with open_index(folder, writes=False) as file:
        return decode_index(counted_lines(file), folder / INDEX)


@contextmanager
def _root(folder: Path, passphrase: bytes) -> Iterator[_Root]:
    with open_index(folder, writes=True) as file:
        key = load_key(folder / ROOT_KEY, passphrase)
        certificate = x509.load_pem_x509_certificate(read(folder / ROOT_CERTIFICATE))
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
        return decode_index(counted_lines(self._file), self._folder / INDEX)

    def append(self, line: str) -> None:
        add_line(self._file, line, self._folder / INDEX)

    def write_crl(self, now: datetime) -> bytes:
        """Write the list anew. Its number grows with the index, which never shrinks."""
        number = 1 + len(counted_lines(self._file))
        data = revocation_list(self.issued, self.certificate, self.key, number=number, now=now)
        write_over(self._folder / ROOT_CRL, data, mode=0o644)
        return data
