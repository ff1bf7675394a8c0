"""One function for each parser of outside bytes: it returns, or it has found a bug.

A target lets through only the errors that the parser's docstring names, and asserts what its
caller relies on.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from meterd.config import check
from meterd.errors import BlockRejectedError, EncodingError, UsageError, VaultRefusedError
from meterd.ledger.account import decode_genesis, decode_parameters, standalone
from meterd.ledger.alarm import decode_alarm
from meterd.ledger.block import decode_block
from meterd.ledger.chain import open_chain, verify_sealed
from meterd.ledger.encoding import decode, encode, take_apart
from meterd.ledger.event import decode_event
from meterd.ledger.segment import HEADER_BYTES_MAX, STREAMS, read_header, walk_frames
from meterd.ledger.stored import read_frames
from meterd.metering.board import LAYOUTS, LINE_BYTES_MAX, BoardDecoder
from meterd.metering.energy import registers, registers_uj
from meterd.metering.reading import BoardRules, Clamp
from meterd.privacy.envelope import Files, Passphrase, device_key, found, open_vault
from meterd.privacy.share import adopt, decode_share, new_share
from meterd.replay import read_capture

if TYPE_CHECKING:
    from collections.abc import Callable

GENESIS = standalone(
    "fuzz-1",
    bytes(32),
    interval_s=1800,
    zone="UTC",
    currency="EUR",
    fuse_ma=60_000,
    nominal_mv=230_000,
    mains_clamps=1,
)
RULES = {
    name: BoardRules(
        layout=name,
        fields=fields,
        clamps=(
            Clamp(name="mains", role="mains"),
            Clamp(name="spare", role="unused"),
            Clamp(name="oven", role="circuit", reversed=True),
        ),
        polling_ms=2000,
    )
    for name, fields in LAYOUTS.items()
}
DEVICE = device_key(bytes(32))
SHARE = new_share("flat-3", Passphrase(bytes(16), 3, 65_536), bytes(32), bytes)
KEPT = adopt(found(DEVICE, bytes), SHARE, bytes)[0].close(bytes)
PLAUSIBLE_MW = 60 * 230 * 1600  # fuse x nominal x 1.6


def board(data: bytes) -> None:
    """Whatever comes out of the port, readings are plausible and memory is bounded."""
    for name, rules in RULES.items():
        decoder = BoardDecoder(rules)
        cut = data[0] % 61 + 1 if data else 1
        readings = []
        for at in range(0, len(data), cut):
            readings += decoder.receive(data[at : at + cut], at)
        whole = BoardDecoder(rules).receive(data, 0)
        assert [r[1:] for r in readings] == [r[1:] for r in whole], name
        for reading in readings:
            assert all(abs(power) <= PLAUSIBLE_MW for power in reading.powers_mw)
            assert all(0 <= current < 2**32 for current in reading.currents_ma)
            assert len(reading.line) <= LINE_BYTES_MAX
        assert decoder.accepted == len(readings)
        assert len(registers_uj([0] * len(registers(rules)))) == len(registers(rules))


def strict(data: bytes) -> None:
    """What the gate lets through has one spelling; no message kind crashes on any bytes."""
    with suppress(EncodingError):
        assert encode(decode(data)) == data
    for parse in (decode_genesis, decode_parameters, decode_block, decode_event, take_apart):
        with suppress(EncodingError):
            parse(data)
    with suppress(EncodingError):
        assert decode_alarm(data).encode() == data
    with suppress(BlockRejectedError):
        verify_sealed(data, open_chain(GENESIS, "fuzz-1"))


def log(data: bytes) -> None:
    """A stored segment is read as far as it holds."""
    for stream in STREAMS:
        with suppress(EncodingError):
            header, begin = read_header(data, stream)
            assert begin <= HEADER_BYTES_MAX
            if stream != "samples":
                walk = walk_frames(data, header)
                ends = [frame.end for frame in walk]
                assert ends == sorted(ends)
                assert walk.end <= len(data)
    half = len(data) // 2
    for stream in ("events", "blocks"):
        read_frames(
            stream, [(1, data[:half]), (2, data[half:])], genesis=GENESIS.hash, meter="fuzz-1"
        )


def config(data: bytes) -> None:
    """Settings are whole, or every mistake has a sentence."""
    text = data.decode(errors="replace")
    settings, mistakes = check(text, source="fuzz.toml")
    assert settings is not None or mistakes
    assert all(str(mistake) for mistake in mistakes)


def capture(data: bytes) -> None:
    """A capture's line is taken or refused by name."""
    with suppress(UsageError):
        for line in read_capture(data.splitlines(keepends=True), "fuzz"):
            assert line.wall_ms >= -1


def vault(data: bytes) -> None:
    """What nobody has sealed opens no vault; a person's part has one spelling."""
    half = len(data) // 2
    for files in (
        Files(data[:half], data[half:]),
        Files(data, KEPT.key),
        Files(KEPT.content, data),
    ):
        if files != KEPT:
            with suppress(VaultRefusedError):
                open_vault(files, DEVICE)
                raise AssertionError(files)
    with suppress(EncodingError):
        assert decode_share(data).encode() == data


TARGETS: dict[str, Callable[[bytes], None]] = {
    "board": board,
    "strict": strict,
    "log": log,
    "config": config,
    "capture": capture,
    "vault": vault,
}
