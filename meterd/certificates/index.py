"""The index of a root: one line for each certificate and each revocation, and what they say.

One process at a time adds to it. A last line without its end was torn by a failure of power and
does not count; the next one takes its place. Any other that cannot be read stops all issuing, for
it could be a revocation.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from meterd.errors import AbsentError, BusyError, ConfigError
from meterd.ledger.account import NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

INDEX = "index"
REASONS = {
    "unspecified": "unspecified",
    "lost": "key_compromise",
    "replaced": "superseded",
    "retired": "cessation_of_operation",
}
TIME = "%Y-%m-%dT%H:%M:%SZ"
_KINDS = ("device", "broker")


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


@contextmanager
def open_index(folder: Path, *, writes: bool) -> Iterator[int]:
    """Hold the index open; alone, if it `writes`.

    Raises:
        AbsentError: There is none: `folder` is no root's.
        BusyError: Somebody else writes at this moment.
    """
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


def counted_lines(descriptor: int) -> list[bytes]:
    """Return the lines that count: a last one without its end was torn by a failure of power."""
    *lines, _torn = os.pread(descriptor, os.fstat(descriptor).st_size, 0).split(b"\n")
    return lines


def add_line(descriptor: int, line: str, path: Path) -> None:
    """Add a line; it counts once this returns."""
    counted = sum(len(whole) + 1 for whole in counted_lines(descriptor))
    os.ftruncate(descriptor, counted)  # what a failure of power tore never counted
    data = line.encode() + b"\n"
    if os.write(descriptor, data) != len(data):
        raise OSError(None, "written in part", str(path))
    os.fsync(descriptor)


def decode_index(lines: Sequence[bytes], path: Path) -> tuple[Issued, ...]:
    """Return what the lines of an index say, in their order.

    Raises:
        ConfigError: One of them is damaged.
    """
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


def whole_second(now: datetime) -> datetime:
    """Return `now` as the index will have it."""
    return _instant(f"{now:{TIME}}")


def _instant(text: str) -> datetime:
    return datetime.strptime(text, TIME).replace(tzinfo=UTC)
