"""What `meterctl verify` says of parameters that changed, with real accounts: by whose word.

The accounts are kept by the bookkeeper itself, under commands that its own desk took. What is
planted is planted as whoever has the card can do it, or as whoever has the meter's key can.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.authority.roster import found
from meterd.ctl import main
from meterd.ctl.show import COLUMNS
from meterd.device.recovery import recover
from meterd.errors import LedgerDamagedError
from meterd.ledger.chain import open_chain
from meterd.ledger.parameters import COMMISSIONED, Command, Grant, sign_command, sign_grant
from meterd.parameters import Desk
from tests.ledger.forge import Account as Forged
from tests.ledger.memory import Stored
from tests.parameters_kit import JO, OWNER, RECORD, STRANGER
from tests.rig import INTERVAL_S, MIDNIGHT_S, POLLING_MS, Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nacl.signing import SigningKey

    from meterd.ledger.account import Parameters
    from meterd.ledger.event import Details

ROWS = 3 * INTERVAL_S * 1000 // POLLING_MS  # two intervals are closed at least
SCALE = "clamp.1.scale"


def desk(rig: Rig) -> Desk:
    return Desk(rig.book, rig.settings, rig.settings)


def again(rig: Rig) -> None:
    """Let the next run begin, as a change of parameters does; measure on."""
    rig.stop()
    rig.start(rig.wall_ms / 1000 + 2)
    measure(rig)


def measure(rig: Rig) -> None:
    rig.rows(ROWS)
    rig.commit()


def commission(rig: Rig) -> None:
    desk(rig).commission(RECORD, bytes(OWNER.verify_key), found(rig.genesis))
    again(rig)


def command(held: Parameters, scale: str, key: SigningKey = OWNER, *, grant: bytes = b"") -> bytes:
    """Return a command that sets the first clamp's scale."""
    change = (SCALE, dict(held.settings)[SCALE], scale)
    return sign_command(
        Command(held.genesis, held.meter, held.sequence + 1, held.hash, (change,), grant), key
    )


def obey(rig: Rig, message: bytes) -> bytes:
    desk(rig).obey(message, found(rig.genesis), rig.stamp)
    again(rig)
    return message


def with_scale(record: Parameters, scale: str, sequence: int | None = None) -> Parameters:
    """Return the record that follows, where the scale is another; or that has another number."""
    settings = tuple((key, scale if key == SCALE else value) for key, value in record.settings)
    return replace(record, sequence=sequence or record.sequence + 1, settings=settings)


def fewer(record: Parameters, key: str, software_id: bytes) -> Parameters:
    """Return the record of a software that does not know a parameter: each has a default."""
    settings = tuple(pair for pair in record.settings if pair[0] != key)
    assert settings != record.settings
    number = record.sequence + 1
    return replace(record, sequence=number, settings=settings, software_id=software_id)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A meter that was commissioned, then recalibrated by its owner."""
    rig = Rig(tmp_path / "account")
    rig.start(MIDNIGHT_S + 3600)
    measure(rig)
    commission(rig)
    yield rig
    rig.card.close()


# --- good -------------------------------------------------------------------------------------


def test_an_account_is_good_whose_parameters_changed_by_command(rig: Rig) -> None:
    """By the owner's, a technician's, two between two blocks, and with other software between."""
    obey(rig, command(rig.book.parameters, "1.02"))
    granted = sign_grant(
        Grant(rig.genesis.hash, bytes(JO.verify_key), "jo", 0, rig.wall_ms // 1000 + 60), OWNER
    )
    rig.wait(0)
    obey(rig, command(rig.book.parameters, "1.03", JO, grant=granted))
    rig.software_id = bytes([1]) * 32
    again(rig)
    spelt_by_another = fewer(rig.book.parameters, "clamp.1.zero_below_w", bytes([2]) * 32)
    rig.book.event("parameters", (("record", spelt_by_another.encode()),))
    again(rig)
    for scale in ("1.04", "1.05"):  # nothing is measured between the two
        desk(rig).obey(command(rig.book.parameters, scale), found(rig.genesis), rig.stamp)
        rig.stop()
        rig.start(rig.wall_ms / 1000 + 2)
    measure(rig)
    rig.assert_good()
    assert dict(rig.book.parameters.settings)[SCALE] == "1.05"
    assert (
        len(rig.told("parameters")) == 9
    )  # the first start's, commissioned, four changes, three software


def test_before_the_commissioning_parameters_change_as_the_file_does(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "account")
    rig.start(MIDNIGHT_S)
    measure(rig)
    rig.book.change(with_scale(rig.book.parameters, "7"))
    rig.stop()
    rig.assert_good()


# --- planted ----------------------------------------------------------------------------------


class Planted(NamedTuple):
    """A parameter record that nothing leads to, and the command that its event says it rests on."""

    record: Parameters
    command: bytes = b""


def unsigned(held: Parameters, _used: bytes) -> Planted:
    return Planted(with_scale(held, "7"))


def replayed(held: Parameters, used: bytes) -> Planted:
    return Planted(with_scale(held, "1.02"), used)


def numbered_anew(held: Parameters, used: bytes) -> Planted:
    return Planted(with_scale(held, "1.02", held.sequence - 1), used)


def strangers(held: Parameters, _used: bytes) -> Planted:
    return Planted(with_scale(held, "7"), command(held, "7", STRANGER))


def otherwise(held: Parameters, _used: bytes) -> Planted:
    return Planted(with_scale(held, "9"), command(held, "7"))


def uncommissioned(held: Parameters, _used: bytes) -> Planted:
    kept = tuple(pair for pair in held.settings if pair[0] != COMMISSIONED)
    return Planted(replace(held, sequence=held.sequence + 1, settings=kept))


def anothers(held: Parameters, _used: bytes) -> Planted:
    return Planted(replace(held, sequence=held.sequence + 1, meter="cellar-3"))


def roles(held: Parameters, _used: bytes) -> Planted:
    other = tuple("circuit" for _ in held.roles)
    return Planted(replace(held, sequence=held.sequence + 1, roles=other))


PLANTED = pytest.mark.parametrize(
    ("plant", "reason"),
    [
        pytest.param(
            unsigned,
            "changes clamp.1.scale without a signed command (clamp.1.scale from 1.03 to 7); "
            "expected command 5 over record ",
            id="unsigned",
        ),
        pytest.param(replayed, "expected command 5, got 3: it was used already", id="replayed"),
        pytest.param(numbered_anew, "record 3 is not in force: it comes after 4", id="set back"),
        pytest.param(strangers, "which nobody has granted it", id="a stranger's"),
        pytest.param(
            otherwise, "its command says otherwise (clamp.1.scale from 1.03", id="another"
        ),
        pytest.param(uncommissioned, "changes what was signed without", id="not commissioned"),
        pytest.param(anothers, "it is of cellar-3", id="another meter's"),
        pytest.param(roles, "changes roles or registers, and no setting", id="other roles"),
    ],
)


def planted(rig: Rig, plant: Callable[[Parameters, bytes], Planted]) -> int:
    """Put a record behind two that commands led to; return its event's number."""
    used = obey(rig, command(rig.book.parameters, "1.02"))
    obey(rig, command(rig.book.parameters, "1.03"))
    rig.assert_good()
    what = plant(rig.book.parameters, used)
    details: Details = (("record", what.record.encode()),)
    rig.book.event("parameters", (*details, ("command", what.command)) if used else details)
    rig.commit()
    return rig.book.log.events


@PLANTED
def test_a_record_behind_the_last_block_that_nothing_leads_to_is_bad_and_named(
    rig: Rig,
    plant: Callable[[Parameters, bytes], Planted],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = planted(rig, plant)
    verdict = rig.verify()
    bad = verdict.first_bad
    assert verdict.verdict == "bad"
    assert bad is not None
    assert (bad.stream, bad.height) == ("events", len(rig.blocks) + 1)
    assert f"event {number}: parameter record" in bad.reason
    assert reason in bad.reason
    assert main(["verify", str(rig.state), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first_bad"] == bad._asdict()
    assert main(["verify", str(rig.state)]) == 1
    said = capsys.readouterr().out
    assert reason in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= COLUMNS
    with pytest.raises(LedgerDamagedError, match="is not in force"):  # the next start, too
        recover(rig.state, open_chain(rig.genesis, rig.settings.meter.name))


@PLANTED
def test_a_record_that_a_block_has_sealed_is_bad_too_and_laid_to_that_block(
    rig: Rig, plant: Callable[[Parameters, bytes], Planted], reason: str
) -> None:
    """As a meter whose software was exchanged would, or whoever has its key."""
    number = planted(rig, plant)
    height = len(rig.blocks)
    measure(rig)
    assert rig.blocks[height].events >= number
    bad = rig.verify().first_bad
    assert bad is not None
    assert (bad.stream, bad.height) == ("events", height + 1)
    assert reason in bad.reason


def test_what_a_record_spells_moves_no_cursor(rig: Rig) -> None:
    wild = "\x1b[2J\r" + "w" * 999
    rig.book.event("parameters", (("record", with_scale(rig.book.parameters, wild).encode()),))
    rig.commit()
    bad = rig.verify().first_bad
    assert bad is not None
    assert bad.reason.isprintable()
    assert len(bad.reason) < 400


def test_a_block_that_goes_back_to_an_earlier_record_is_bad(rig: Rig) -> None:
    """All of it is sealed, and a command leads to each record: one is in force twice."""
    first = rig.book.parameters
    obey(rig, command(first, "1.02"))
    again(rig)
    rig.stop()
    account = Forged.of(Stored.read(rig.state))
    last, _ = account.samples[-1]
    of_run = [block.height for block in rig.blocks if block.clock.boot_id == last.boot_id]
    account.change_header(last.number, lambda header: replace(header, parameters=first.hash))
    for height in of_run:
        account.change_block(height, lambda block: block._replace(parameters=first.hash))
    bad = account.build().judge().first_bad
    assert bad is not None
    assert bad.reason.startswith("it was measured under parameter record 2, expected 3")
    assert (bad.stream, bad.height) == ("blocks", of_run[0])
