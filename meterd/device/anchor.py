"""Timestamps from outside: asked for over HTTP, verified, and kept as files beside the account.

A timestamp (RFC 3161) is made over the payload of a block, so that its imprint is the block's hash
and any tool can verify it: `openssl ts -verify -digest HASH -in FILE -CAfile CA`. Nothing but that
hash leaves the device.

Files are not trusted: each is verified anew, by the authority's root certificates, whenever it is
looked at.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
import urllib.error
import urllib.request
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meterd.anchored import Held, Stamp
from meterd.device.archive import read_file, segment_name, segment_numbers
from meterd.device.card import Card, Operation
from meterd.errors import AbsentError, EncodingError, LedgerDamagedError, MeterdError
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import take_apart
from meterd.ledger.segment import read_header, walk_frames

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENSSL = "/usr/bin/openssl"
TOKEN_BYTES_MAX = 65_536  # with the authority's chain it is 2 to 8 kB
ANSWER_S_MAX = 30.0  # an authority answers within a second; the timer comes again tomorrow
OPENSSL_S_MAX = 30.0  # it takes some 20 ms; past this the machine or its entropy hangs
ANCHORS_MAX = 36_500  # a hundred years of days
_NAME = re.compile(r"([0-9]{4})-([0-9]{10})\.tsr")


class TimestampRefusedError(MeterdError):
    """A timestamp does not verify, or is of something else: do not count on it."""

    exit_code = 1


class Imprint(NamedTuple):
    """What an authority's answer says, before it is verified.

    Attributes:
        digest: The hash that it is about.
        at_s: When that was there, Unix seconds.
    """

    digest: bytes
    at_s: int


def read_imprint(text: str) -> Imprint:
    r"""Return what `openssl ts -reply -text` shows of an answer.

    Of the status before the timestamp nothing is signed, and what an answer says there goes into
    the text as it is, line ends and all: so the imprint is taken from behind it alone.

    >>> read_imprint("Status: Granted.\n\nTST info:\nHash Algorithm: sha256\nMessage data:\n"
    ...     "    0000 - 61 62 63-64   abcd\nSerial number: 0x02\n"
    ...     "Time stamp: Nov 22 00:00:07.5 2026 GMT\n")
    Imprint(digest=b'abcd', at_s=1795305607)

    Raises:
        TimestampRefusedError: It is a refusal, or not of a SHA-256 hash.
    """
    status = re.search(r"^Status: (.*)$", text, re.MULTILINE)
    if status is None or status[1] != "Granted.":
        words = re.search(r"^Status description: (.*)$", text, re.MULTILINE)
        told = (words[1] if words and words[1] != "unspecified" else status and status[1]) or "?"
        raise TimestampRefusedError(f"the authority refuses: {told[:80]}")
    signed = "\n" + text.rpartition("\nTST info:\n")[2]
    if "\nHash Algorithm: sha256\n" not in signed:
        raise TimestampRefusedError("the timestamp is not of a SHA-256 hash")
    rows = re.findall(r"^ +[0-9a-f]{4} - ((?:[0-9a-f]{2}[ -]){1,16})", signed, re.MULTILINE)
    when = re.search(r"^Time stamp: (\w+ +\d+ [\d:]+)(?:\.\d+)? (\d+) GMT$", signed, re.MULTILINE)
    if when is None:
        raise TimestampRefusedError("the timestamp says no time")
    try:
        moment = datetime.strptime(f"{when[1]} {when[2]}", "%b %d %H:%M:%S %Y")  # noqa: DTZ007 - below
    except ValueError as error:  # a leap second, the year 0
        raise TimestampRefusedError(f"the timestamp's time is in no calendar: {when[1]}") from error
    digest = bytes.fromhex("".join(rows).replace("-", " "))
    return Imprint(digest, int(moment.replace(tzinfo=UTC).timestamp()))


class Authority:
    """A timestamp authority, by its root certificates."""

    def __init__(self, ca: Path) -> None:
        """Look whether all that verifying takes is there.

        Raises:
            AbsentError: The program `openssl`, or the file of certificates, is not.
        """
        if not Path(OPENSSL).is_file():
            raise AbsentError(
                f"timestamps need {OPENSSL}", hint="install it with `apt-get install openssl`"
            )
        if not os.access(ca, os.R_OK) or not ca.is_file():
            raise AbsentError(
                f"the authority's certificates cannot be read: {ca}",
                hint="`ca` in [anchor] of the settings, or --ca, names them",
            )
        self._ca = ca

    def stamp(self, url: str, payload: bytes) -> tuple[bytes, Imprint]:
        """Have the hash of `payload` timestamped; return the answer, verified, and what it says.

        Raises:
            AbsentError: The authority does not answer, or openssl does not end.
            TimestampRefusedError: It refuses, or what it says does not verify.
        """
        with tempfile.TemporaryDirectory() as folder:
            query = Path(folder) / "query"
            digest = hashlib.sha256(payload).hexdigest()
            _openssl("-query", "-sha256", "-digest", digest, "-cert", "-out", query)
            answer = _exchange(url, query.read_bytes())
            return answer, self._verify(answer, Path(folder), ("-queryfile", query))

    def verify(self, answer: bytes) -> Imprint:
        """Return what an authority's answer says, verified.

        Raises:
            AbsentError: openssl does not end.
            TimestampRefusedError: It is no answer, a refusal, of another authority, or damaged.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self._verify(answer, Path(folder))

    def _verify(self, answer: bytes, folder: Path, asked: tuple[str | Path, ...] = ()) -> Imprint:
        path = folder / "answer"
        path.write_bytes(answer)
        imprint = read_imprint(_openssl("-reply", "-in", path, "-text"))
        asked = asked or ("-digest", imprint.digest.hex())
        # Certificates count as of then: the authority's own is replaced every few years.
        when = ("-attime", str(imprint.at_s))
        _openssl("-verify", *asked, "-in", path, "-CAfile", self._ca, *when)
        return imprint


def _openssl(*arguments: str | Path) -> str:
    """Run `openssl ts` and return what it shows.

    Raises:
        AbsentError: It does not end.
        TimestampRefusedError: It ends with another status than 0.
    """
    try:
        done = subprocess.run(
            [OPENSSL, "ts", *map(str, arguments)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=OPENSSL_S_MAX,
            env={"LC_ALL": "C", "OPENSSL_CONF": os.devnull},
        )
    except subprocess.TimeoutExpired as error:
        raise AbsentError(
            f"{OPENSSL} has not ended after {OPENSSL_S_MAX:.0f} s, and was stopped",
            hint="nothing was kept: see what holds the machine up (`top`), then try again",
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reasons = [line.split(":")[5] for line in said if line.count(":") > 5]  # noqa: PLR2004
        raise TimestampRefusedError(
            f"the timestamp does not verify: {'; '.join(reasons) or 'no reason given'}"[:300],
            hint="is it another authority's? is `ca` in [anchor] its root?",
        )
    return done.stdout.decode(errors="replace")


def _exchange(url: str, request: bytes) -> bytes:
    """Post a request to an authority, and return what it answers.

    Raises:
        AbsentError: It does not answer, or not what it should.
    """
    asked = urllib.request.Request(  # noqa: S310 - the settings' rule lets only http(s) in
        url, data=request, headers={"Content-Type": "application/timestamp-query"}
    )
    hint = "is it up, and does the firewall let meterd-anchor out to it?"
    try:
        with urllib.request.urlopen(asked, timeout=ANSWER_S_MAX) as reply:  # noqa: S310 - likewise
            kind = reply.headers.get_content_type()
            answer: bytes = reply.read(TOKEN_BYTES_MAX + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise AbsentError(f"{url} answers with {error.code} {error.reason}", hint=hint) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise AbsentError(f"{url} does not answer: {reason}", hint=hint) from error
    if kind != "application/timestamp-reply" or len(answer) > TOKEN_BYTES_MAX:
        raise AbsentError(
            f"{url} answers with {len(answer)} bytes of {kind}, which is no timestamp",
            hint="`url` in [anchor] has to name the authority's own address for RFC 3161",
        )
    return answer


class Token:
    """A file with an authority's answer; its name says of which block."""

    def __init__(self, path: Path, incarnation: int, height: int) -> None:
        """Remember where it is."""
        self.path, self.incarnation, self.height = path, incarnation, height

    def stamp(self, authority: Authority) -> Stamp:
        """Return what it says, verified.

        Raises:
            AbsentError: openssl does not end.
            TimestampRefusedError: It does not verify.
            StorageError: It cannot be read.
        """
        block_hash, at_s = authority.verify(read_file(self.path))
        return Stamp(self.incarnation, self.height, block_hash, at_s)


def token_name(incarnation: int, height: int) -> str:
    """Return the name of a timestamp's file: sorted by name is sorted by block."""
    return f"{incarnation:04}-{height:010}.tsr"


def tokens(folder: Path) -> list[Token]:
    """Return the timestamps in a folder, by block."""
    return [
        Token(path, int(named[1]), int(named[2]))
        for path in sorted(folder.glob("*.tsr"))[:ANCHORS_MAX]
        if (named := _NAME.fullmatch(path.name))
    ]


def keep_token(folder: Path, incarnation: int, height: int, answer: bytes) -> Path:
    """Keep an authority's answer, whole or not at all; return where.

    Raises:
        StorageError: The card failed.
    """
    path = folder / token_name(incarnation, height)
    Card().perform([Operation("replace", path, answer)])
    return path


def read_blocks(state: Path) -> Iterator[Held]:
    """Yield the blocks of an account, in order; takes `blocks/` alone.

    Raises:
        LedgerDamagedError: A block cannot be read.
        StorageError: The card cannot be read.
    """
    folder = state / "blocks"
    for number in segment_numbers(folder):
        for held, _ in _blocks_in(folder, number):
            yield held


def read_head(state: Path) -> tuple[Held, bytes] | None:
    """Return the last block of an account with its payload; None where nothing is sealed yet.

    Raises:
        LedgerDamagedError: A block cannot be read.
        StorageError: The card cannot be read.
    """
    folder = state / "blocks"
    for number in reversed(segment_numbers(folder)):
        if found := list(_blocks_in(folder, number)):
            return found[-1]
    return None


def _blocks_in(folder: Path, number: int) -> Iterator[tuple[Held, bytes]]:
    data = read_file(folder / segment_name(number))
    try:
        header, _ = read_header(data, "blocks")
    except EncodingError:
        return  # power failed while it was made: nothing ever counted in it
    try:
        for frame in walk_frames(data, header):
            message = take_apart(frame.body)
            block = decode_block(message.payload)
            place = block.incarnation, block.height, block.hash, block.previous, block.end_s
            yield Held(*place), message.payload
    except EncodingError as error:
        raise LedgerDamagedError(
            f"blocks segment {number} cannot be read: {error}", hint="see `meterctl verify`"
        ) from error
