"""Which software this is, by its content, and whether it is what was installed.

The identifier covers what bears on energy and on the account, and nothing else: a new colour in
`meterctl` leaves it as it is, one other byte in a rule does not (WELMEC 7.2 P2/U2; row S1 of the
requirements). Everything signed names it, through the parameter record.

>>> len(software_id())
32

The check at start finds damage and edits made in passing (WELMEC 7.2 P5/P6; row S5). It is no proof
against whoever may write the installed files, for they may write the RECORD that it goes by, and
the byte code beside the files; there a read-only system partition stands.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from meterd.errors import MeterdError

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parent
RELEVANT = (
    "__init__.py",
    "alarm_outbox.py",
    "announcing.py",
    "authority/attestation.py",
    "authority/boot.py",
    "authority/certificate.py",
    "authority/merkle.py",
    "authority/messages.py",
    "authority/roster.py",
    "bookkeeper.py",
    "config*.py",
    "errors.py",
    "hearing.py",
    "init.py",
    "meter.py",
    "neighbours.py",
    "opened.py",
    "parameters.py",
    "run.py",
    "software.py",
    "device/*.py",
    "ledger/**/*.py",
    "ledger/**/*.cddl",
    "metering/**/*.py",
    "metering/**/*.cddl",
    "privacy/envelope.py",
)
"""The legally relevant modules, from the board's bytes to a sealed block on the card, and what says
when to seal, with which key and by which orders."""

IRRELEVANT = (
    "access*.py",
    "device/anchor*.py",
    "device/append_only.py",
    "device/board_memory.py",
    "device/broker*.py",
    "device/control*.py",
    "device/failures.py",
    "device/gpio*.py",
    "device/lockdown*.py",
    "device/power.py",
    "device/proofs*.py",
    "device/store*.py",
    "device/systemd*.py",
    "claims.py",
    "flapping.py",
    "guard.py",
    "health.py",
    "lamp.py",
    "meter_answers.py",
    "meter_socket.py",
    "parameter_answers.py",
    "peer_keeper.py",
    "pins.py",
    "privacy/guesses.py",
    "privacy/share.py",
    "since.py",
    "vault_desk.py",
)
"""What is not, of the above and of all else that the metering process imports: it shows, or tells,
and changes no figure. A new module below `device` is relevant until it is named here."""

_CONTEXT = b"meterd/software/v1"
_IMPORTABLE = frozenset({".py", ".so", ".pyc"})
_HINT = "install meterd afresh, from a source that you trust"


class SoftwareChangedError(MeterdError):
    """The installed files are not those that were installed: seal nothing, install afresh."""

    exit_code = 78


class Installed(NamedTuple):
    """What the check at start found.

    Attributes:
        state: `verified`, or `editable`: run from a source tree, where there is nothing to go by.
        files: How many files were compared.
        detail: The same as a clause, for people.
    """

    state: Literal["verified", "editable"]
    files: int
    detail: str


def software_id(package: Path = PACKAGE) -> bytes:
    """Return the identifier of the legally relevant software, 32 bytes.

    SHA-256 over a context and, sorted by path, each relevant module's path below `package` and the
    SHA-256 of its content.
    """
    paths = {path for pattern in RELEVANT for path in package.glob(pattern)}
    paths -= {path for pattern in IRRELEVANT for path in package.glob(pattern)}
    named = sorted((path.relative_to(package).as_posix().encode(), path) for path in paths)
    digest = hashlib.sha256(_CONTEXT)
    for name, path in named:
        digest.update(len(name).to_bytes(2) + name + hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()


def check_installed(package: Path = PACKAGE) -> Installed:
    """Compare every installed file with the RECORD of its wheel, and look for ones added.

    Args:
        package: The folder `meterd`; what was installed lies beside it.

    Raises:
        SoftwareChangedError: A file is missing, differs, or was added; it names the first.
    """
    site = package.parent
    records = sorted(site.glob(f"{package.name}-*.dist-info/RECORD"))
    if not records:
        if site.name in {"site-packages", "dist-packages"}:
            raise SoftwareChangedError(f"{site} has no RECORD of what was installed", hint=_HINT)
        return Installed("editable", 0, "editable install: not checked against a RECORD")
    if len(records) > 1:
        folders = " and ".join(record.parent.name for record in records)
        raise SoftwareChangedError(f"installed twice: {folders}", hint=_HINT)
    recorded = set()
    files = 0
    for name, expected in _recorded(records[0]):
        recorded.add(name)
        if expected:
            _compare(site / name, name, expected)
            files += 1
    if not files:
        raise SoftwareChangedError(f"{records[0]} names no file", hint=_HINT)
    for path in sorted(package.rglob("*")):
        name = path.relative_to(site).as_posix()
        cached = path.suffix == ".pyc" and path.parent.name == "__pycache__"
        if path.suffix in _IMPORTABLE and not cached and name not in recorded:
            raise SoftwareChangedError(f"{name} was added after the installation", hint=_HINT)
    return Installed("verified", files, f"{files} installed files are as their RECORD says")


def _recorded(record: Path) -> Iterator[tuple[str, str]]:
    """Yield path and hash of each file in `record` (PyPA: recording installed projects).

    The hash is empty for what the installer made itself: the RECORD, byte code.
    """
    import csv

    with record.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        for row in rows:
            match row:
                case [path, digest, _size]:
                    yield path, digest
                case _:
                    problem = f"{record} is damaged at line {rows.line_num}"
                    raise SoftwareChangedError(problem, hint=_HINT)


def _compare(path: Path, name: str, expected: str) -> None:
    try:
        digest = hashlib.sha256(path.read_bytes()).digest()
    except FileNotFoundError as error:
        raise SoftwareChangedError(f"{name} is missing", hint=_HINT) from error
    except OSError as error:
        raise SoftwareChangedError(f"{name} cannot be read: {error.strerror}") from error
    if expected != "sha256=" + urlsafe_b64encode(digest).rstrip(b"=").decode():
        raise SoftwareChangedError(f"{name} is not as it was installed", hint=_HINT)
