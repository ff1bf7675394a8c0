"""What the tests of the bookkeeper ask of its account, and the settings that they keep it by."""

from __future__ import annotations

import shutil
from itertools import takewhile

from meterd.device.archive import segment_name, segment_numbers
from meterd.device.recovery import CHECKPOINT_FILE
from meterd.ledger.segment import SampleHeader, read_header
from tests.accounts import config_text, flag_names
from tests.rig import INTERVAL_S, MIDNIGHT_S, POLLING_MS, Rig

DAY_S = 86_400
TEXT = config_text(interval_s=INTERVAL_S, polling_ms=POLLING_MS)
CIRCUITS = ("oven", "heat-pump")


def with_circuits(count: int, *, polling_ms: int = POLLING_MS) -> str:
    """Return the settings with so many circuit clamps besides the mains."""
    clamps = [f'[[clamp]]\nname = "{name}"\nrole = "circuit"\n\n' for name in CIRCUITS[:count]]
    text = config_text(interval_s=INTERVAL_S, polling_ms=polling_ms)
    return text.replace("[clock]", "".join(clamps) + "[clock]")


def spans(rig: Rig) -> list[tuple[int, int, tuple[str, ...]]]:
    """Return begin, end (seconds from the first midnight) and flags of each block."""
    return [
        (block.start_s - MIDNIGHT_S, block.end_s - MIDNIGHT_S, flag_names(block.flags))
        for block in rig.blocks
    ]


def perform_but_blocks(rig: Rig) -> None:
    """Commit, and let power fail before the first block."""
    blocks = rig.state / "blocks"
    rig.card.perform(
        takewhile(lambda one: blocks not in {one.path, one.path.parent}, rig.book.commit())
    )
    rig.card.close()


def headers(rig: Rig) -> list[SampleHeader]:
    """Return the headers of all samples segments."""
    found = []
    for number in segment_numbers(rig.state / "samples"):
        data = (rig.state / "samples" / segment_name(number)).read_bytes()
        header, _ = read_header(data, "samples")
        assert isinstance(header, SampleHeader)
        found.append(header)
    return found


def assert_checkpoint_agrees(rig: Rig) -> None:
    """With its checkpoint and without it, a start comes to the same."""
    rig.card.close()
    copy = rig.state.with_name("without")
    shutil.copytree(rig.state, copy)
    (copy / CHECKPOINT_FILE).unlink()
    without = Rig(copy, software_id=rig.software_id)
    without.settings = rig.settings
    wall_s = rig.wall_ms / 1000 + 1
    assert rig.start(wall_s).registers_uj() == without.start(wall_s).registers_uj()
    assert rig.book.cutter.base == without.book.cutter.base
    assert rig.book.chain.head.energy == without.book.chain.head.energy
    assert rig.book.chain.head.end_s == without.book.chain.head.end_s
    shutil.rmtree(copy)
