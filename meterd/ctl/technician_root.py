"""The folder of a technician CA: what was issued and revoked, and what ssh-keygen makes of it.

    technician-ca        0600; whoever has it, and its passphrase, can come in to every device
    technician-ca.pub    goes to every device
    revoked              likewise: the revocation list, made anew with each revocation
    index                one line for each certificate and each revocation
    issued/              every certificate, as it was handed out

Serials only go up. A certificate's line is in the index before it is signed, so that none is out
of which the index does not know; if signing fails its serial is left out. A revocation is in the
index before it is in the list, and the same command again completes it. Keys, certificates and
lists are ssh-keygen's work; what it has signed is read again here before it is handed out.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.ctl.technician_certificate import decode_certificate_file, decode_public, fingerprint
from meterd.device.card import lock
from meterd.device.files import write_over
from meterd.errors import (
    AbsentError,
    BusyError,
    ConfigError,
    DeniedError,
    EncodingError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KEY, PUBLIC, REVOKED, INDEX, ISSUED = (
    "technician-ca",
    "technician-ca.pub",
    "revoked",
    "index",
    "issued",
)
PERMITS = ("permit-pty",)  # all that ssh-keygen would permit besides is cleared
HOURS_MAX = (
    7 * 24
)  # a list of revocations is as old as the last visit: certificates end by themselves
BEHIND_DAYS_MAX = 400
SKEW = timedelta(minutes=5)  # a device's clock may be so far behind that of the CA
PUBLIC_BYTES_MAX = 16_384
TIME = "%Y-%m-%dT%H:%M:%SZ"
NAME = re.compile(r"[a-z][a-z0-9@._-]{0,63}")  # of a technician, or a principal; never a serial


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate, as the index has it.

    Attributes:
        identity: Whose.
        key_id: Fingerprint of the technician's key, as `ssh-keygen -l` shows it.
    """

    serial: int
    identity: str
    principals: tuple[str, ...]
    begins: datetime
    ends: datetime
    key_id: str
    revoked: datetime | None = None

    def is_live(self, now: datetime) -> bool:
        """Return whether a device that has the latest list takes it."""
        return self.revoked is None and now < self.ends

    @property
    def line(self) -> str:
        """The line of its issue."""
        words = (str(self.serial), self.identity, ",".join(self.principals))
        return " ".join(
            ("issued", *words, f"{self.begins:{TIME}}", f"{self.ends:{TIME}}", self.key_id)
        )


def make_ca(folder: Path, comment: str, *, asks: bool) -> str:
    """Make a CA, and an empty list; return the fingerprint of its key.

    Args:
        folder: To be made; one that a failure of power left half made is completed.
        comment: Stands behind the public key, for people.
        asks: Whether ssh-keygen asks for a passphrase; else there is none.

    Raises:
        UsageError: There is a CA already.
        AbsentError: There is no ssh-keygen.
    """
    if (folder / INDEX).exists():
        raise UsageError(
            f"there is a technician CA in {folder} already", hint="give it another folder"
        )
    (folder / ISSUED).mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not (folder / PUBLIC).exists():
        (folder / KEY).unlink(missing_ok=True)
        passphrase = () if asks else ("-N", "")
        keygen("-q", "-t", "ed25519", "-C", comment, "-f", folder / KEY, *passphrase)
    _write_list(folder, ())
    _put(folder / INDEX, b"")
    return fingerprint(_public_key(folder / PUBLIC)[1])


def issue(
    folder: Path,
    public: bytes,
    identity: str,
    principals: Sequence[str],
    *,
    now: datetime,
    hours: int,
    behind_days: int = 0,
) -> tuple[Issued, bytes]:
    """Sign a technician's public key; return what the index has of it, and the certificate.

    Args:
        folder: Of the CA.
        public: The file of the public key.
        identity: Whose it is.
        principals: What it opens.
        now: When it is issued; valid a little earlier, and `hours` from then.
        hours: Up to `HOURS_MAX`.
        behind_days: So far behind may the clock of a device be that takes it.

    Raises:
        UsageError: A name, or a number, is out of its range.
        EncodingError: `public` is no public key of a type in use.
        ConfigError: The index is damaged, or ssh-keygen signs something else than it was told.
    """
    for what in (identity, *principals):
        if not NAME.fullmatch(what):
            raise UsageError(
                f"expected a letter, then up to 63 of a-z, 0-9 and @ . _ -, got {what[:70]!a}"
            )
    if not principals or len(set(principals)) != len(principals):
        raise UsageError("expected principals, each once")
    if not 0 < hours <= HOURS_MAX:
        raise UsageError(
            f"a certificate is valid for 1 to {HOURS_MAX} hours, not {hours}",
            hint="issue another one for the next visit",
        )
    if not 0 <= behind_days <= BEHIND_DAYS_MAX:
        raise UsageError(f"a clock may be 0 to {BEHIND_DAYS_MAX} days behind, not {behind_days}")
    kind, blob = decode_public(public)
    with _held(folder) as lines:
        found = decode_index(lines, folder / INDEX)
        moment = now.replace(microsecond=0)
        new = Issued(
            serial=max((one.serial for one in found), default=0) + 1,
            identity=identity,
            principals=tuple(principals),
            begins=moment - SKEW - timedelta(days=behind_days),
            ends=moment + timedelta(hours=hours),
            key_id=fingerprint(blob),
        )
        _add(folder, lines, new.line)
        signed = _sign(folder, f"{kind} {base64.b64encode(blob).decode()} {identity}\n", new)
        _put(folder / ISSUED / f"{new.serial}-{identity}-cert.pub", signed)
    return new, signed


def revoke(folder: Path, which: str, *, now: datetime) -> tuple[Issued, ...]:
    """Revoke by serial, or all of one technician; return those that were not revoked before.

    Raises:
        UsageError: None such was issued.
    """
    with _held(folder) as lines:
        found = decode_index(lines, folder / INDEX)
        meant = [one for one in found if which in (str(one.serial), one.identity)]
        if not meant:
            raise UsageError(
                f"no certificate of this CA has the serial or the id {which[:70]!a}",
                hint=f"see `meterctl ca list --ca {folder}`",
            )
        moment = now.replace(microsecond=0)
        gone = tuple(replace(one, revoked=moment) for one in meant if one.revoked is None)
        if gone:
            _add(folder, lines, *(f"revoked {one.serial} {moment:{TIME}}" for one in gone))
        serials = {one.serial for one in gone} | {one.serial for one in found if one.revoked}
        _write_list(folder, sorted(serials))
    return gone


def issued(folder: Path) -> tuple[Issued, ...]:
    """Return what was issued, by serial.

    Raises:
        AbsentError: There is no CA in the folder.
    """
    return decode_index(_lines(folder), folder / INDEX)


def decode_index(lines: Sequence[str], path: Path) -> tuple[Issued, ...]:
    """Return what the lines of an index say, in their order.

    Raises:
        ConfigError: One of them is damaged: it could be a revocation.
    """
    found: dict[int, Issued] = {}
    for number, line in enumerate(lines, start=1):
        try:
            verb, serial, *words = line.split(" ")
            if verb == "revoked":
                [at] = words
                found[int(serial)] = replace(found[int(serial)], revoked=_instant(at))
                continue
            identity, principals, begins, ends, key_id = words
            new = Issued(
                serial=int(serial),
                identity=identity,
                principals=tuple(principals.split(",")),
                begins=_instant(begins),
                ends=_instant(ends),
                key_id=key_id,
            )
            _must(new.line == line and new.serial > max(found, default=0))
            found[new.serial] = new
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"line {number} of {path} is damaged",
                hint="restore the folder from its copy: the index says what is revoked",
            ) from error
    return tuple(found.values())


def keygen(*arguments: str | os.PathLike[str]) -> None:
    """Run ssh-keygen, which asks at the terminal for what it needs.

    Raises:
        AbsentError: There is none.
        DeniedError: It did not do it.
    """
    program = shutil.which("ssh-keygen")
    if program is None:
        raise AbsentError("there is no ssh-keygen", hint="`sudo apt-get install openssh-client`")
    done = subprocess.run(
        [program, *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},  # and no agent, nor a program that asks
    )
    if done.returncode:
        said = " ".join(done.stdout.decode(errors="replace").split()) or "it said nothing"
        raise DeniedError(
            f"ssh-keygen did not do it: {said}",
            hint="is the passphrase right, and the folder yours to write?",
        )


def _sign(folder: Path, public: str, new: Issued) -> bytes:
    """Return the certificate that ssh-keygen makes of a public key, if it is the one asked for.

    Raises:
        ConfigError: It is another.
    """
    with tempfile.TemporaryDirectory(dir=folder) as made:
        path = Path(made) / "key.pub"
        path.write_text(public)
        spans = f"{new.begins:%Y%m%d%H%M%S}Z:{new.ends:%Y%m%d%H%M%S}Z"
        keygen(
            *("-q", "-s", folder / KEY, "-I", new.identity, "-n", ",".join(new.principals)),
            *("-z", str(new.serial), "-V", spans, "-O", "clear"),
            *(word for permit in PERMITS for word in ("-O", permit)),
            path,
        )
        signed = (Path(made) / "key-cert.pub").read_bytes()
    got = decode_certificate_file(signed)
    _, ca = _public_key(folder / PUBLIC)
    asked = (new.serial, new.identity, new.principals, (), PERMITS, new.key_id, ca)
    span = (int(new.begins.timestamp()), int(new.ends.timestamp()))
    holds = (got.serial, got.identity, got.principals, got.critical, got.extensions)
    if (*holds, fingerprint(got.key), got.ca) != asked or (got.begins_s, got.ends_s) != span:
        raise ConfigError(
            f"ssh-keygen signed another certificate than it was told: {got}",
            hint="is technician-ca.pub that of technician-ca? nothing was handed out",
        )
    return signed


def _write_list(folder: Path, serials: Sequence[int]) -> None:
    """Write the list of what is revoked; its version is how many there are, and only goes up."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        wanted, path = Path(made) / "serials", Path(made) / REVOKED
        wanted.write_text("".join(f"serial: {serial}\n" for serial in serials))
        version = str(len(serials))
        keygen("-q", "-k", "-f", path, "-s", folder / PUBLIC, "-z", version, wanted)
        _put(folder / REVOKED, path.read_bytes())


def _public_key(path: Path) -> tuple[str, bytes]:
    try:
        return decode_public(path.read_bytes())
    except EncodingError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error


@contextmanager
def _held(folder: Path) -> Iterator[list[str]]:
    """Hold the CA alone; yields the lines of its index.

    Raises:
        AbsentError: There is none in the folder.
        BusyError: Somebody else holds it.
    """
    _lines(folder)
    try:
        descriptor = lock(folder)
    except BusyError as error:
        raise BusyError(f"somebody else works with {folder} at this moment") from error
    try:
        yield _lines(folder)
    finally:
        os.close(descriptor)


def _lines(folder: Path) -> list[str]:
    try:
        data = (folder / INDEX).read_bytes()
    except FileNotFoundError as error:
        raise AbsentError(
            f"there is no technician CA in {folder}",
            hint=f"make one with `meterctl ca init --ca {folder}`",
        ) from error
    return data.decode("ascii", errors="replace").splitlines()


def _add(folder: Path, lines: list[str], *more: str) -> None:
    """Add lines to the index; they count once this returns."""
    lines += more
    _put(folder / INDEX, "".join(f"{line}\n" for line in lines).encode())


def _put(path: Path, data: bytes) -> None:
    write_over(path, data, mode=0o640)


def _must(holds: bool) -> None:  # noqa: FBT001 - a condition
    if not holds:
        raise ValueError


def _instant(text: str) -> datetime:
    return datetime.strptime(text, TIME).replace(tzinfo=UTC)
