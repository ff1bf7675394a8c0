"""A card that was put back to before a change of parameters, and healed by its neighbours.

The daemon's own code begins the account anew; the neighbours are what another run of the same meter
left on another card.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from shutil import copytree
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple, cast

import pytest

from meterd.authority.roster import found
from meterd.config_signed import missing
from meterd.device.archive import load_blocks
from meterd.device.card import Card
from meterd.device.recovery import recover
from meterd.errors import LedgerDamagedError
from meterd.ledger.account import decode_parameters
from meterd.ledger.chain import open_chain
from meterd.ledger.parameters import COMMISSIONED, MISSING, CommandRefusedError
from meterd.meter import Meter
from meterd.opened import open_account
from tests.device.test_rebase import start_waiting
from tests.ledger.memory import Stored
from tests.rig import MIDNIGHT_S, Rig
from tests.test_parameter_succession import (
    again,
    command,
    commission,
    desk,
    measure,
    obey,
    with_scale,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meterd.ledger.account import Parameters


class PutBack(NamedTuple):
    """A meter that goes on behind its neighbours' blocks with the card of before a change.

    Attributes:
        rig: It; its run has not begun.
        used: The command that had changed the parameters since.
        newest: The record that this had led to.
    """

    rig: Rig
    used: bytes
    newest: Parameters


@pytest.fixture(params=[True, False], ids=["commissioned", "commissioned since"])
def put_back_card(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[PutBack]:
    full = Rig(tmp_path / "full")
    full.start(MIDNIGHT_S + 3600)
    measure(full)
    if request.param:
        commission(full)
    full.stop()
    image = copytree(full.state, tmp_path / "image")
    full.start(full.wall_ms / 1000 + 2)
    measure(full)
    if not request.param:
        commission(full)
    used = obey(full, command(full.book.parameters, "1.02"))
    full.stop()
    rig = Rig(image)
    start_waiting(rig, full.wall_ms / 1000 + 60)
    rig.rows(5)
    rig.stop()
    begin(rig, full)
    yield PutBack(rig, used, full.book.parameters)
    rig.card.close()


def begin(rig: Rig, full: Rig) -> None:
    """Let the daemon's own code begin anew behind the blocks of `full`, given back."""
    own = rig.book.chain.head.height
    chain = recover(full.state, open_chain(rig.genesis, rig.settings.meter.name)).found.chain
    given = load_blocks(full.state, own + 1, chain.head.height)
    meter = SimpleNamespace(
        book=rig.book,
        neighbours=SimpleNamespace(chain=chain, recovered=given, order=chain.head.order),
        opened_as=SimpleNamespace(keys={bytes(rig.key.verify_key): rig.key}),
        _state=rig.state,
        _logger=logging.getLogger("meterd"),
    )
    Meter._begin_anew(cast("Meter", meter), rig.stamp)


def test_a_card_put_back_says_which_record_it_lacks_until_somebody_signs(
    put_back_card: PutBack,
) -> None:
    rig = put_back_card.rig
    rig.start(rig.wall_ms / 1000 + 2)
    measure(rig)
    again(rig)
    signed = desk(rig).signed
    assert signed[MISSING] == put_back_card.newest.hash.hex()
    assert f"under record {signed[MISSING][:16]}" in missing(rig.book.parameters.settings)
    rig.assert_good()
    rig.stop()
    opened = open_account(rig.state, rig.settings, rig.genesis, None, Card())
    assert "the card was put back to before a change" in opened.differs  # what the alarm says
    rig.start(rig.wall_ms / 1000 + 2)
    if COMMISSIONED in signed:
        obey(rig, command(rig.book.parameters, "1.04"))
    else:
        commission(rig)
    assert MISSING not in desk(rig).signed
    assert missing(rig.book.parameters.settings) == ""
    rig.assert_good()


def test_a_card_put_back_takes_no_command_that_was_made_before(put_back_card: PutBack) -> None:
    rig = put_back_card.rig
    rig.start(rig.wall_ms / 1000 + 2)
    measure(rig)
    if COMMISSIONED not in desk(rig).signed:
        commission(rig)
    assert rig.book.parameters.sequence > put_back_card.newest.sequence
    with pytest.raises(CommandRefusedError, match="was used already"):
        desk(rig).obey(put_back_card.used, found(rig.genesis), rig.stamp)
    rig.assert_good()


def test_the_record_of_an_account_that_begins_anew_cannot_be_exchanged(
    put_back_card: PutBack,
) -> None:
    """Whoever has the card stops the meter before its next block, and writes another record."""
    rig = put_back_card.rig
    stored = Stored.read(rig.state)
    first, second = rig.events
    other = with_scale(decode_parameters(second.bytes_of("record")), "7")
    forged = replace(second, details=(("record", other.encode()),))
    stored.relinked("events", 1, [first.encode(), forged.encode()]).write(rig.state)
    bad = rig.verify().first_bad
    assert bad is not None
    assert "is not the one that the meter said it goes on under" in bad.reason
    with pytest.raises(LedgerDamagedError, match="is not the one that the meter said"):
        rig.start(rig.wall_ms / 1000 + 2)
