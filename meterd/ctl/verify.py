"""`meterctl verify`: judge a stored account, or a receipt, by what is known from elsewhere.

It needs no daemon, no network, no lock and nothing secret. Exit status: 0 good, 1 bad, 2
unreadable. Files are judged by `meterd.ctl.proof`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from meterd.ctl.options import hex_bytes, positive
from meterd.ctl.proof import EXIT_CODES, UnreadableError, judge_file, read_proof
from meterd.ctl.show import COLUMNS, count, local, utc, zone_of
from meterd.device.archive import GENESIS_FILE, Known, Verdict, read_file, verify
from meterd.errors import EncodingError, MeterdError, UsageError
from meterd.ledger.account import Genesis, decode_genesis
from meterd.ledger.encoding import HASH_BYTES
from meterd.progress import progress_bars

if TYPE_CHECKING:
    import argparse

    from meterd.ledger.stored import Bad, Tail

ONE_WORKER_BYTES_MAX = 50_000_000  # below, starting more processes costs more than they gain
KNOWN_FILE_BYTES_MAX = 65_536  # a genesis of a large street; past it, it is another file
KEY_FILE_BYTES_MAX = 1024
_WORDS = {"seals": "verifying seals", "samples": "verifying samples"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl verify`."""
    parser.epilog = """\
Give what you know from elsewhere than this account: without key and genesis the
answer is only that the account agrees with itself; without a head it may have
been cut back to an earlier sealed state. The last line of a good verdict is a
head to write down for the next time. Parameters that changed since the
commissioning without a signed command are bad.

A file is a receipt of a block, or evidence against who signed two histories. It
is judged by the genesis alone, which it takes.

exit status: 0 good, 1 bad, 2 unreadable, 64 usage

examples:
  meterctl verify /var/lib/meterd
  meterctl verify ./copy --key key.txt --head 17:5f0c…
  meterctl verify ./copy --genesis genesis.cbor --json
  meterctl verify block-17.receipt --genesis genesis.cbor
"""
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="folder of the account, or a copy; or a receipt"
    )
    parser.add_argument(
        "--key", metavar="HEX|FILE", help="the meter's public key, as `meterctl key` shows it"
    )
    parser.add_argument(
        "--genesis", type=Path, metavar="FILE", help="the network's genesis, from elsewhere"
    )
    parser.add_argument(
        "--head", metavar="HEIGHT:HEX", help="a block that is known to exist, and its hash"
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes (default: one, or as many as processors for a large account)",
    )
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")


def run(options: argparse.Namespace) -> int:
    """Judge the account; returns the exit code."""
    known = known_of(options)
    state: Path = options.path
    if state.is_file() and (proof := read_proof(state)) is not None:
        if options.head or options.workers:
            raise UsageError(f"{state} is {proof.called}: --head and --workers are for an account")
        if known.key and known.genesis:
            _refuse_secret(known.key, decode_genesis(known.genesis))
        return judge_file(state, proof, known, as_json=options.json)
    genesis = _genesis(state, known)
    if known.key and genesis:
        _refuse_secret(known.key, genesis)
    workers = options.workers or workers_for(state)
    try:
        with progress_bars() as tell:
            verdict = verify(
                state,
                known,
                workers=workers,
                progress=lambda what, done, of: tell(_WORDS.get(what, what), done, of),
            )
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        verdict = Verdict(
            verdict="unreadable",
            key="given" if known != Known() else "self-asserted",
            reason=reason,
        )
    if options.json:
        print(json.dumps(as_json(verdict)))
    if verdict.verdict == "unreadable":
        sys.stdout.flush()
        raise UnreadableError(
            f"{state} is unreadable as an account: {verdict.reason}", hint=_unreadable_hint(state)
        )
    if not options.json:
        print("\n".join(sentences(verdict, genesis, known)))
    return EXIT_CODES[verdict.verdict]


def known_of(options: argparse.Namespace) -> Known:
    """Return what the options say is known.

    Raises:
        UsageError: One of them cannot be read.
    """
    genesis = b""
    if options.genesis:
        genesis = _read(options.genesis, KNOWN_FILE_BYTES_MAX, "--genesis")
        try:
            decode_genesis(genesis)
        except EncodingError as error:
            raise UsageError(f"--genesis: {options.genesis} is no genesis: {error}") from error
    head = None
    if options.head:
        height, colon, text = options.head.partition(":")
        if not colon or not (height.isascii() and height.isdecimal()) or not 0 < len(height) < 20:  # noqa: PLR2004 - 64 bits
            raise UsageError(
                f"--head: expected HEIGHT:HEX, got {options.head[:40]!r}",
                hint="as the last line of a good verdict shows it",
            )
        if int(height) == 0:
            raise UsageError("--head: the first block has height 1")
        head = (int(height), hex_bytes(text, HASH_BYTES, "--head"))
    return Known(genesis=genesis, key=_key(options.key) if options.key else b"", head=head)


def _key(text: str) -> bytes:
    """Return a public key: hex digits, or a file of them, of `meterctl key` or of 32 bytes."""
    path = Path(text)
    try:
        there = path.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        try:
            return hex_bytes(text, HASH_BYTES, "--key")
        except UsageError as error:
            hint = "give 64 hex digits, or a file that holds them; `meterctl key` shows them"
            raise UsageError(f"{error}, and there is no such file", hint=hint) from error
    data = _read(path, KEY_FILE_BYTES_MAX, "--key")
    if len(data) == HASH_BYTES:
        return data
    try:
        content = data.decode("ascii").strip()
        if content.startswith("{"):
            content = str(json.loads(content)["key"])
        for line in content.splitlines():
            name, _, value = line.partition(" ")
            if name == "key":
                content = value
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--key: {path} holds no public key") from error
    return hex_bytes(content, HASH_BYTES, f"--key: {path}")


def _read(path: Path, bytes_max: int, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise UsageError(f"{option}: cannot read {path}: {error.strerror}") from error
    if len(data) > bytes_max:
        raise UsageError(f"{option}: {path} is longer than {bytes_max} bytes")
    return data


def _genesis(state: Path, known: Known) -> Genesis | None:
    """Return the genesis that is judged by, for words and times; None where it cannot be read."""
    try:
        return decode_genesis(known.genesis or read_file(state / GENESIS_FILE))
    except MeterdError:
        return None


def _refuse_secret(key: bytes, genesis: Genesis) -> None:
    """Tell somebody who gives the secret key in the place of the public one."""
    from nacl.signing import SigningKey

    public = bytes(SigningKey(key).verify_key)
    if any(meter.sealing_key == public for meter in genesis.meters):
        raise UsageError(
            "--key: this is the meter's secret sealing key, not its public one",
            hint="`meterctl key` shows the public one; who has the secret can seal as this meter",
        )


def workers_for(state: Path) -> int:
    """Return how many processes pay off for the account in `state`."""
    try:
        with os.scandir(state / "samples") as entries:
            size = sum(entry.stat().st_size for entry in entries)
    except OSError:
        return 1
    return 1 if size < ONE_WORKER_BYTES_MAX else os.cpu_count() or 1


def _unreadable_hint(state: Path) -> str:
    if not state.exists():
        return "name the folder of an account, or of a copy"
    if not state.is_dir():
        return (
            "name the folder that holds genesis.cbor, samples, events and blocks, or a receipt or"
            " evidence"
        )
    return "is this the folder of an account? may this user read all of it?"


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as outside scripts read it."""
    bad, tail = verdict.first_bad, verdict.tail
    return {
        "verdict": verdict.verdict,
        "blocks": verdict.blocks,
        "records": verdict.records,
        "first_bad": bad and bad._asdict(),
        "tail": tail and {"stream": tail.stream, "offset": tail.offset, "bytes": len(tail.data)},
        "key": verdict.key,
    }


def sentences(verdict: Verdict, genesis: Genesis | None, known: Known) -> list[str]:
    """Return the verdict for people, a line each."""
    zone = zone_of(genesis.zone if genesis else "UTC")
    head, bad = verdict.head, verdict.first_bad
    extent = f"{count(verdict.blocks, 'block')}, {count(verdict.records, 'record')}"
    lines = []
    if bad:
        reason = wrap(bad.reason, COLUMNS - 2, break_long_words=False, break_on_hyphens=False)
        lines += [f"bad: {where(bad, genesis)}:", *(f"  {line}" for line in reason)]
        if verdict.blocks:
            lines.append(f"  good seals: {extent}")
    else:
        lines.append(f"good: {extent}")
        if head and head.end_s is not None:
            lines.append(f"  sealed up to {local(head.end_s, zone)} ({utc(head.end_s)})")
        if verdict.pruned:
            lines.append(f"  {count(verdict.pruned, 'segment')} of samples rightly pruned")
    if verdict.open_rows and not bad:
        verb = "is" if verdict.open_rows == 1 else "are"
        lines.append(
            f"  {count(verdict.open_rows, 'row')} of the open interval {verb} linked and not sealed"
        )
    if verdict.tail:
        lines += _tail(verdict.tail)
    lines += _caveats(verdict, known)
    if not bad and head and head.height:
        lines.append(f"head {head.height}:{head.block_hash.hex()}")
    return lines


def _tail(tail: Tail) -> list[str]:
    place = f"{tail.stream} segment {tail.segment}"
    if not tail.data:
        return [
            f"  tail: {place} ends before the event that tells of the last block;",
            "    a power failure and a cut there look the same",
        ]
    return [
        f"  tail: {count(len(tail.data), 'byte')} from byte {tail.offset} of {place}",
        "    count for nothing; a power failure and an edit there look the same",
    ]


def _caveats(verdict: Verdict, known: Known) -> list[str]:
    lines = []
    if verdict.key == "self-asserted":
        lines += [
            "  self-asserted: neither key nor genesis was given, so this compares the account",
            "    with itself; whose it is takes --key or --genesis from elsewhere",
        ]
    if verdict.verdict == "good":
        if known.head is None:
            lines += [
                "  not excluded: that all of it was cut back to an earlier sealed state; a known",
                "    --head tells",
            ]
        else:
            lines.append(
                f"  not excluded: that it was cut back to a state after block {known.head[0]}"
            )
        if verdict.open_rows:
            lines.append("  not excluded: that what is not sealed yet was edited with its links")
    return lines


def where(bad: Bad, genesis: Genesis | None) -> str:
    """Return in words where the first bad place is: interval, local and UTC, then the bytes."""
    if bad.stream == "genesis":
        return "the genesis"
    place = f"{bad.stream} segment {bad.segment}, byte {bad.offset}"
    if bad.height is None:
        return place
    if bad.start_s is None:
        return f"block {bad.height}, {place}"
    zone = zone_of(genesis.zone if genesis else "UTC")
    begins = f"the interval from {local(bad.start_s, zone)} ({utc(bad.start_s)})"
    return f"{begins},\n  block {bad.height}, {place}"
