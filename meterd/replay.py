"""`meterd replay`: a capture file through the whole path of a meter, as fast as it goes.

Deterministic given the key and the salts' seed: the same capture gives the same account, byte for
byte, with the same software.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import sys
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nacl.signing import SigningKey

from meterd.bookkeeper import Bookkeeper
from meterd.config import Settings, load, parameters
from meterd.device.archive import read_part
from meterd.device.card import Card, lock
from meterd.device.clock import Stamp
from meterd.device.recovery import recover
from meterd.errors import AbsentError, UsageError
from meterd.init import create_account, read_genesis
from meterd.ledger.chain import open_chain
from meterd.metering.board import BoardDecoder
from meterd.metering.placement import WALL_MS_MIN
from meterd.progress import progress_bar
from meterd.software import software_id

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")
SECONDS = re.compile(rb"[0-9]{1,12}(?:\.[0-9]{1,12})?")  # no exponent: 1E9999999 is no time
BOOT_MS = re.compile(rb"[0-9]{1,15}")
COMMIT_READINGS = 8192  # a replay is not afraid of power failures: few, large writes
RESTART = b"!restart"


class Line(NamedTuple):
    """One line of a capture.

    Attributes:
        number: Line in the file, from 1.
        wall_ms: Wall clock; -1 for a restart.
        boot_ms: Boot clock, or None where the capture has none.
        raw: The board's bytes, unescaped.
    """

    number: int
    wall_ms: int
    boot_ms: int | None
    raw: bytes


def read_capture(lines: Iterable[bytes], source: str) -> Iterator[Line]:
    """Yield the lines of a capture (`unix_s<TAB>[boot_ms<TAB>]raw`, `!restart`).

    Raises:
        UsageError: A line is not of that form; it is named.
    """
    for number, line in enumerate(lines, start=1):
        text = line.rstrip(b"\r\n")
        if not text:
            continue
        if text == RESTART:
            yield Line(number, -1, None, b"")
            continue
        parts = text.split(b"\t", 2)
        hint = "a line is unix_s<TAB>[boot_ms<TAB>]raw, or !restart"
        if len(parts) == 1:
            raise UsageError(f"{source}: line {number} has no tab", hint=hint)
        boot_ms = None
        if len(parts) == 3 and BOOT_MS.fullmatch(parts[1]):  # noqa: PLR2004 - the form above
            boot_ms = int(parts[1])
            raw = parts[2]
        else:
            raw = b"\t".join(parts[1:])
        if not SECONDS.fullmatch(parts[0]):
            shown = parts[0][:40]
            raise UsageError(
                f"{source}: line {number}: expected unix seconds, got {shown!r}", hint=hint
            )
        seconds = Decimal(parts[0].decode("ascii"))
        wall_ms = int((seconds * 1000).to_integral_value(ROUND_HALF_UP))
        raw = ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), raw)
        yield Line(number, wall_ms, boot_ms, raw)


class Replay:
    """Feeds captured lines to a bookkeeper, boot by boot.

    Attributes:
        accepted: Readings integrated so far.
        dropped: Lines dropped so far, by kind.
        gaps: Holes so far.
        book: The account of the present boot.
    """

    def __init__(
        self, state: Path, settings: Settings, *, key: SigningKey, salt_seed: bytes
    ) -> None:
        """Go on with the account in `state`, which `create_account` has made."""
        self._state, self._settings, self._key, self._salt_seed = state, settings, key, salt_seed
        self._genesis = read_genesis(state)
        self._software_id = software_id()
        self._card = Card()
        self._boots = 0
        self._decoder = BoardDecoder(settings.rules)
        self.book: Bookkeeper | None = None
        self._ended = True
        self._last_wall_ms = 0
        self._boot_ms = 0
        self._since_commit = 0
        self.accepted = 0
        self.gaps = 0
        self.dropped: Counter[str] = Counter()

    def _secret(self, stream: str, number: int) -> bytes:
        message = f"meterd/replay/{stream}/{number}".encode()
        return hmac.digest(self._salt_seed, message, "sha256")

    def _begin(self, line: Line) -> Bookkeeper:
        chain = open_chain(self._genesis, self._settings.meter.name)
        self._boots += 1
        number = self._boots.to_bytes(4, "big")
        boot_id = sha256(self._salt_seed + b"boot" + number).digest()[:16]
        book = Bookkeeper(
            self._state,
            rules=self._settings.rules,
            settings=parameters(self._settings),
            software_id=self._software_id,
            build_ms=WALL_MS_MIN,
            interval_s=self._genesis.interval_s,
            keys={bytes(self._key.verify_key): self._key},
            recovered=recover(self._state, chain, card=self._card),
            boot_id=boot_id,
            draw_secret=self._secret,
            read=lambda number, begin, end: read_part(self._state, number, begin, end),
        )
        self._boot_ms = line.boot_ms or 0
        self._last_wall_ms = line.wall_ms
        self._decoder = BoardDecoder(self._settings.rules)
        book.start(self._boot_ms, line.wall_ms)
        return book

    def feed(self, line: Line) -> None:
        """Take one line of the capture."""
        if line.wall_ms < 0:
            self._end_boot()
            return
        book = self.book
        if book is None or self._ended:
            book = self.book = self._begin(line)
            self._ended = False
        elif line.boot_ms is None:
            elapsed_ms = line.wall_ms - self._last_wall_ms
            self._boot_ms += elapsed_ms if elapsed_ms >= 0 else self._settings.rules.polling_ms
        elif line.boot_ms < self._boot_ms:
            raise UsageError(
                f"line {line.number}: the boot clock goes back from {self._boot_ms} to "
                f"{line.boot_ms}",
                hint="a boot ends with a line !restart",
            )
        else:
            self._boot_ms = line.boot_ms
        if book.outlasted(self._boot_ms):
            self._end_boot()
            book = self.book = self._begin(line)
            self._ended = False
        self._last_wall_ms = line.wall_ms
        status = "S" if line.wall_ms >= WALL_MS_MIN else "R"
        stamp = Stamp(self._boot_ms, line.wall_ms, status, 0)
        for reading in self._decoder.receive(line.raw + b"\n", self._boot_ms):
            book.take(reading, stamp)
            if book.again:
                self._commit(book)
                book.feed_again()
            self._since_commit += 1
        if book.pending or self._since_commit >= COMMIT_READINGS:
            book.count_dropped(self._decoder.dropped)
            self._commit(book)

    def _commit(self, book: Bookkeeper) -> None:
        self._card.perform(book.commit())
        self._since_commit = 0

    def _end_boot(self) -> None:
        """End a boot as SIGTERM does: all is durable, the open stretch waits for the next start."""
        if self.book is None or self._ended:
            return
        book = self.book
        book.count_dropped(self._decoder.dropped)
        book.note_counts()
        book.event("stopped")
        self._commit(book)
        self._ended = True
        self.accepted += book.accepted
        self.gaps += book.gaps
        self.dropped.update(self._decoder.dropped)
        if book.sieve.duplicates:
            self.dropped["duplicate"] += book.sieve.duplicates

    def finish(self) -> None:
        """Seal all, the last interval as it stands."""
        self._end_boot()
        if self.book is not None:
            self.book.seal_open()
            self._card.perform(self.book.commit())
        self._card.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterd replay`."""
    parser.epilog = """examples:
  meterd replay --capture day.tsv --state /tmp/account --config meterd.toml
  zcat day.tsv.gz | meterd replay --capture - --state /tmp/account --config meterd.toml --json
"""
    parser.add_argument("--capture", required=True, metavar="FILE", help="capture, or - for stdin")
    parser.add_argument(
        "--state", required=True, type=Path, metavar="DIR", help="account to make; new or empty"
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="settings")
    parser.add_argument(
        "--key", metavar="SEED", help="seed of the sealing key, 64 hex digits (else drawn)"
    )
    parser.add_argument(
        "--salt-seed", metavar="HEX", help="what the salts are derived from (else drawn)"
    )
    parser.add_argument("--json", action="store_true", help="print the registers as JSON")


def _hex(text: str, what: str, length: int | None) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError as error:
        raise UsageError(f"{what}: expected hex digits, got {text[:20]!r}") from error
    if length is not None and len(data) != length:
        raise UsageError(f"{what}: expected {2 * length} hex digits, got {len(text)}")
    return data


def run(arguments: argparse.Namespace) -> int:
    """Replay a capture; returns the exit code."""
    settings = load(arguments.config)
    seed = _hex(arguments.key, "--key", 32) if arguments.key else os.urandom(32)
    salt_seed = _hex(arguments.salt_seed, "--salt-seed", None) if arguments.salt_seed else b""
    _check_capture(arguments.capture)
    genesis = create_account(arguments.state, settings, seed)
    held = lock(arguments.state)
    replay = Replay(
        arguments.state, settings, key=SigningKey(seed), salt_seed=salt_seed or os.urandom(32)
    )
    try:
        _feed(replay, arguments.capture)
    finally:
        replay.finish()
        os.close(held)
    _report(replay, settings, genesis.hash, as_json=arguments.json)
    return 0


def _check_capture(capture: str) -> None:
    """See that there is one before an account is made for it."""
    if capture == "-":
        return
    try:
        with open(capture, "rb") as file:  # noqa: PTH123 - a name as it was given
            file.peek(1)
    except OSError as error:
        raise AbsentError(
            f"cannot read the capture {capture}: {error.strerror}",
            hint="name a file of lines unix_s<TAB>[boot_ms<TAB>]raw",
        ) from error


def _feed(replay: Replay, capture: str) -> None:
    if capture == "-":
        for line in read_capture(sys.stdin.buffer, "stdin"):
            replay.feed(line)
        return
    path = Path(capture)
    with path.open("rb") as file, progress_bar("replaying", path.stat().st_size) as advance:
        for line in read_capture(file, capture):
            replay.feed(line)
            if line.number % 4096 == 0:
                advance(file.tell())


def _report(replay: Replay, settings: Settings, genesis: bytes, *, as_json: bool) -> None:
    book = replay.book
    reply = {
        "registers": {
            code: {"uj": uj, "kind": "estimated" if kind else "measured"}
            for code, (uj, kind) in sorted(book.registers_uj().items() if book else ())
        },
        "readings": {"accepted": replay.accepted, "dropped": dict(sorted(replay.dropped.items()))},
        "gaps": replay.gaps,
        "height": book.chain.head.height if book else 0,
    }
    if as_json:
        print(json.dumps(reply))
        return
    name = settings.meter.name
    print(f"{name}: {replay.accepted} readings, {reply['height']} blocks sealed")
    print(f"genesis {genesis.hex()}")
