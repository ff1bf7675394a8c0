"""Whole accounts for tests: a capture put through the meter in this process, and what it left.

`replay_lines` runs what `meterd replay` runs. `rig.Rig` drives a bookkeeper reading by reading,
where a capture cannot say what a test needs: a clock's status, a crash, a tick of silence.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nacl.signing import SigningKey

from meterd.config import Settings, check
from meterd.device.archive import Known, Verdict, read_files, segment_name, segment_numbers, verify
from meterd.device.card import Card
from meterd.init import create_account, read_genesis
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import take_apart
from meterd.ledger.event import decode_event
from meterd.ledger.row import read_rows
from meterd.ledger.segment import STREAMS, read_header
from meterd.ledger.stored import read_frames
from meterd.metering.interval import FLAG_NAMES
from meterd.replay import Replay, read_capture

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meterd.device.card import Operation
    from meterd.ledger.block import Block
    from meterd.ledger.event import Event
    from meterd.ledger.row import Row

SEED = bytes(range(32))
SALT_SEED = b"salt of the tests"
BUILD_MS = 1_700_000_000_000  # 2023-11-14: no true clock says less

CONFIG = """
[meter]
name = "kitchen-12"
interval_s = {interval_s}

[board]
port = "/dev/null"
polling_ms = {polling_ms}

[[clamp]]
name = "mains"
role = "mains"

[clock]
trust = "always"
"""


def config_text(*, interval_s: int = 1800, polling_ms: int = 5000) -> str:
    return CONFIG.format(interval_s=interval_s, polling_ms=polling_ms)


def settings_of(text: str) -> Settings:
    settings, mistakes = check(text, source="meterd.toml")
    assert settings is not None, mistakes
    return settings


class QuietCard(Card):
    """Writes, and does not wait for the disk: no test here fails by power."""

    def _do(self, operation: Operation) -> None:
        if operation.kind not in {"sync", "sync_folder"}:
            super()._do(operation)


class Interval(NamedTuple):
    """A sealed block, as far as a reference of energy and time can know it.

    `registers` are (code, first, last) in uJ; `flags` are their names, sorted.
    """

    start_s: int
    end_s: int
    flags: tuple[str, ...]
    measured_ms: int
    status: str
    registers: tuple[tuple[str, int, int], ...]


def flag_names(flags: int) -> tuple[str, ...]:
    return tuple(sorted(name for bit, name in FLAG_NAMES.items() if flags & bit))


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a meter left on the card, and what it said of it."""

    state: Path
    registers: dict[str, int]
    kinds: dict[str, int]
    accepted: int
    gaps: int
    dropped: dict[str, int]

    @property
    def blocks(self) -> list[Block]:
        return [decode_block(take_apart(body).payload) for body in _frames(self.state, "blocks")]

    @property
    def events(self) -> list[Event]:
        return [decode_event(body) for body in _frames(self.state, "events")]

    @property
    def kinds_of_events(self) -> list[str]:
        return [event.kind for event in self.events]

    @property
    def intervals(self) -> list[Interval]:
        return [
            Interval(
                block.start_s,
                block.end_s,
                flag_names(block.flags),
                block.clock.measured_ms,
                block.clock.status,
                tuple(
                    (f"1-{e.obis[1]}:{e.obis[2]}.8.0", e.first_uj, e.last_uj) for e in block.energy
                ),
            )
            for block in self.blocks
        ]

    @property
    def rows(self) -> list[Row]:
        found: list[Row] = []
        for number in segment_numbers(self.state / "samples"):
            data = (self.state / "samples" / segment_name(number)).read_bytes()
            header, begin = read_header(data, "samples")
            found += read_rows(data[begin:], header.row_bytes, header.base_ms)  # type: ignore[union-attr]
        return found

    def verify(self) -> Verdict:
        return verify(self.state, Known(key=bytes(SigningKey(SEED).verify_key)))


def _frames(state: Path, stream: str) -> list[bytes]:
    genesis = read_genesis(state)
    files = read_files(state, dict.fromkeys(STREAMS, 0))
    segments = files.blocks if stream == "blocks" else files.events
    name = genesis.meters[0].name
    found = read_frames(stream, segments, genesis=genesis.hash, meter=name)
    assert found.damage is None
    return [stored.frame.body for stored in found.frames]


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder for each example: Hypothesis runs many in one test."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made) / "account"


def replay_lines(lines: Iterable[str], text: str, state: Path) -> Account:
    """Replay the lines of a capture into the new account `state`."""
    settings = settings_of(text)
    create_account(state, settings, SEED)
    replay = Replay(state, settings, key=SigningKey(SEED), salt_seed=SALT_SEED)
    replay._card = QuietCard()
    for line in read_capture((line.encode() for line in lines), "capture"):
        replay.feed(line)
    replay.finish()
    said = replay.book.registers_uj() if replay.book else {}
    return Account(
        state=state,
        registers={code: uj for code, (uj, _) in said.items()},
        kinds={code: kind for code, (_, kind) in said.items()},
        accepted=replay.accepted,
        gaps=replay.gaps,
        dropped=dict(replay.dropped),
    )
