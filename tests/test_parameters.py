"""Row S3 with a whole daemon on a pty: who may change what is measured under, and who may not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from nacl.signing import SigningKey

from meterd.authority.roster import found
from meterd.device.card import Card
from meterd.device.log import Log
from meterd.device.recovery import recover
from meterd.errors import AccountRefusedError, ConfigError, DeniedError, MeterdError, UsageError
from meterd.init import read_genesis
from meterd.ledger.account import decode_parameters
from meterd.ledger.chain import open_chain
from meterd.ledger.event import Event
from meterd.ledger.parameters import Command, sign_command, verify_command
from meterd.parameters import Desk
from tests import street
from tests.accounts import SEED, flag_names
from tests.daemon_kit import Cable, line, make_house, strace
from tests.parameters_kit import (
    JO,
    OWNER,
    RECORD,
    STRANGER,
    command,
    commission,
    desk,
    grant,
    shown,
    signed,
    wait_sequence,
)
from tests.rig import MIDNIGHT_S, Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.daemon_kit import House, Program

POLLING_MS = 100
LATER_S = 86_400


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path, polling_ms=POLLING_MS, commit_s=1, interval_s=1800)


@pytest.fixture
def cable(house: House) -> Iterator[Cable]:
    with Cable(house.port) as cable:
        yield cable


def say(house: House, cable: Cable, power_w: float, count: int = 3) -> None:
    """Let the board say some lines, and wait until the meter has counted them."""
    before = house.ask().call("Registers")["readings"]["accepted"]
    for number in range(count):
        cable.say(line(power_w, 1600.0 + number))  # no two alike
        time.sleep(POLLING_MS / 1000)
    house.wait_accepted(before + count)


@contextmanager
def metering(house: House, cable: Cable, count: int = 3) -> Iterator[Program]:
    """Run the meter, and let it count some lines."""
    with house.run() as meter:
        meter.hear("port_opened")
        say(house, cable, 1000, count)
        yield meter


def alarms(house: House) -> list[str]:
    """Return the alarms that stand, but what the board's silence between two lines raises."""
    standing: list[str] = house.ask().call("Status")["alarms"]
    return [alarm for alarm in standing if not alarm.startswith(("port:", "cadence:"))]


def events(house: House, kind: str) -> list[Event]:
    return [event for event in house.account.events if event.kind == kind]


def test_s3_a_signed_command_cuts_the_interval_and_counts_from_then_on(
    house: House, cable: Cable
) -> None:
    with metering(house, cable) as meter:
        commission(house)
        say(house, cable, 1000)
        told = shown(house)
        reply = desk(house).call("Change", command=signed(command(told, {"clamp.1.scale": "1.02"})))
        assert (reply["by"], reply["sequence"]) == ("owner", told["sequence"] + 1)
        accepted = events(house, "parameters")[-1]  # durable before the answer came
        now = wait_sequence(house, reply["sequence"])
        assert now["settings"] == told["settings"] | {"clamp.1.scale": "1.02"}
        assert now["record"] == reply["record"]
        say(house, cable, 1000)
        assert alarms(house) == []
        assert meter.stop() == 0
    record = accepted.bytes_of("record")
    assert sha256(record).hexdigest() == reply["record"]
    assert (accepted["clamp.1.scale old"], accepted["clamp.1.scale new"]) == ("1", "1.02")
    assert accepted["by"] == "owner"
    before = decode_parameters(events(house, "parameters")[-2].bytes_of("record"))
    again = verify_command(accepted.bytes_of("command"), before, bytes(OWNER.verify_key))
    assert again.command.sequence == decode_parameters(record).sequence == now["sequence"]
    powers = [row.powers_mw[0] for row in house.account.rows]
    assert powers == [1_000_000] * 6 + [1_020_000] * 3
    with metering(house, cable, count=1) as meter:  # which closes what the last run has left open
        assert shown(house)["sequence"] == now["sequence"]
        meter.stop()
    blocks = house.account.blocks
    under = [block.parameters for block in blocks if block.records]
    named = [sha256(event.bytes_of("record")).digest() for event in events(house, "parameters")]
    assert under[:3] == named
    assert all("partial" in flag_names(block.flags) for block in blocks[:2])
    assert all(one.end_s == other.start_s for one, other in pairwise(blocks))
    house.verify_good()


def refused(house: House, message: str) -> str:
    """Return why the meter refuses a command, and see that nothing has come of it."""
    before, told = events(house, "parameters"), shown(house)
    with pytest.raises(DeniedError) as error:
        desk(house).call("Change", command=message)
    assert shown(house) == told
    assert events(house, "parameters") == before
    return str(error.value)


def test_s3_what_is_unsigned_replayed_reordered_or_anothers_is_refused_by_name(
    house: House, cable: Cable
) -> None:
    with metering(house, cable) as meter:
        told = shown(house)
        change = command(told, {"clamp.1.scale": "1.02"})
        assert "not commissioned" in refused(house, signed(change))
        told = commission(house)
        say(house, cable, 1000)
        genesis, now_s = bytes.fromhex(told["genesis"]), int(time.time())
        first = command(told, {"clamp.1.scale": "1.02"})
        expired = grant(genesis, last_s=now_s - LATER_S)
        early = grant(genesis, first_s=now_s + LATER_S)
        forged = grant(genesis, owner=STRANGER)
        flipped = bytearray.fromhex(signed(first))
        flipped[-1] ^= 1
        for message, reason in (
            (first.encode().hex(), "not a signed command"),
            (bytes(flipped).hex(), "is not signed by key"),
            (signed(first, STRANGER), "which nobody has granted"),
            (signed(first, JO), "which nobody has granted"),
            (signed(first._replace(grant=expired), JO), "jo's grant holds no more"),
            (signed(first._replace(grant=early), JO), "jo's grant does not hold yet"),
            (signed(first._replace(grant=forged), JO), "grant is not signed by key"),
            (signed(first._replace(grant=grant(genesis)), STRANGER), "jo is not signed by key"),
            (signed(first._replace(meter="cellar-3")), "for cellar-3, this is kitchen-12"),
            (signed(first._replace(genesis=bytes(32))), "for another network"),
            (signed(first._replace(sequence=9)), "got 9: it comes too early"),
            (signed(first._replace(sequence=1)), "got 1: it was used already"),
            (signed(first._replace(record=bytes(32))), "made for parameter record 0000"),
            (signed(command(told, {"clamp.1.scale": "0"})), "asks for what cannot be"),
            (signed(command(told, {"clamp.1.scale": "1.020"})), "expected 1.02, got 1.020"),
            (signed(command(told, {"clamp.1.colour": "red"})), "no such key"),
            (signed(command(told, {"meter.interval_s": "900"})), "is the network's"),
        ):
            assert reason in refused(house, message)
        with pytest.raises(UsageError):
            desk(house).call("Change", command="xyz")
        with pytest.raises(ConfigError, match="is commissioned"):
            desk(house).call("Commission", record=RECORD.hex(), owner="")
        by_jo = signed(first._replace(grant=grant(genesis)), JO)
        assert desk(house).call("Change", command=by_jo)["by"] == "jo"
        wait_sequence(house, told["sequence"] + 1)
        say(house, cable, 1000)
        assert "was used already" in refused(house, by_jo)  # replayed
        assert "was used already" in refused(house, signed(first))  # reordered
        assert meter.stop() == 0
    assert [event["by"] for event in events(house, "parameters")[2:]] == ["jo"]
    house.verify_good()


def test_s3_a_change_of_the_file_alone_has_no_effect_and_is_an_alarm(
    house: House, cable: Cable
) -> None:
    text = house.config.read_text()
    edited = text.replace('role = "mains"', 'role = "mains"\nscale = 0.5')
    with metering(house, cable) as meter:  # not commissioned: the file decides
        commission(house)
        meter.stop()
    house.config.write_text(edited)
    with house.run() as meter:
        meter.hear("alarm=parameters .*clamp.1.scale is 0.5 there, 1 in force")
        say(house, cable, 1000)
        assert shown(house)["settings"]["clamp.1.scale"] == "1"
        (alarm,) = alarms(house)
        assert alarm.startswith("parameters: the settings' file was changed and has no effect")
        told = shown(house)
        reply = desk(house).call("Change", command=signed(command(told, {"clamp.1.scale": "0.5"})))
        wait_sequence(house, reply["sequence"])
        assert alarms(house) == []  # the file says what is signed
        say(house, cable, 1000)
        meter.stop()
    house.config.write_text(text)
    with house.run() as meter:
        meter.hear("alarm=parameters .*clamp.1.scale is 1 there, 0.5 in force")
        meter.stop()
    assert [row.powers_mw[0] for row in house.account.rows][-3:] == [500_000] * 3
    assert len(events(house, "parameters")) == 3
    house.verify_good()


def test_a_file_that_a_command_has_overtaken_is_no_alarm_until_it_is_edited(
    house: House, cable: Cable
) -> None:
    with metering(house, cable) as meter:
        told = commission(house)
        desk(house).call("Change", command=signed(command(told, {"clamp.1.reversed": "true"})))
        wait_sequence(house, told["sequence"] + 1)
        meter.stop()
    for comment, alarms in (("# as it was\n", 0), ("", 0)):
        house.config.write_text(comment + house.config.read_text())
        with house.run() as meter:
            meter.hear("port_opened")
            say(house, cable, -1000)
            assert len(house.ask().call("Status")["alarms"]) == alarms
            meter.stop()
    assert house.account.rows[-1].powers_mw == (1_000_000,)


def test_a_stop_that_comes_with_a_change_ends_the_meter(house: House, cable: Cable) -> None:
    """The change is durable, and the next start begins under it; nothing ignores the signal."""
    scale = ""
    for number in range(10):
        with metering(house, cable, count=1) as meter:
            told = shown(house) if number else commission(house)
            assert not number or told["settings"]["clamp.1.scale"] == scale
            scale = f"1.{number + 1:02}".rstrip("0")
            change = command(told, {"clamp.1.scale": scale})
            desk(house).call("Change", command=signed(change))
            time.sleep(0.16 + 0.025 * number)  # before it starts anew, while, and after
            assert meter.stop() == 0
    house.verify_good()


def test_a_stop_that_comes_before_a_change_is_durable_ends_the_meter(
    house: House, cable: Cable, tmp_path: Path
) -> None:
    """The answer that follows the stop may not undo it, however slow the card is."""
    slow = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=600ms")
    with metering(house, cable, count=1) as meter:
        told = commission(house)
        meter.stop()
    with house.run(wrap=strace(*slow, out=tmp_path / "trace")) as meter:
        meter.hear("port_opened")
        house.ask().call("Command", certificate="", serial=0, command="first")  # makes a segment
        change = signed(command(told, {"clamp.1.scale": "1.5"}))
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(desk(house).call, "Change", command=change)
            time.sleep(0.3)  # it is accepted, and being written
            assert meter.stop() == 0
            assert isinstance(asked.exception(), MeterdError) or asked.result()["by"] == "owner"
    assert "(DELAYED)" in (tmp_path / "trace").read_text()
    assert len(events(house, "parameters")) == 3  # of the first start, commissioned, changed
    house.verify_good()


def forge(house: House, **changed: str) -> None:
    """Write behind the account, as whoever has the card can, another parameter record."""
    chain = open_chain(read_genesis(house.state), "kitchen-12")
    recovered = recover(house.state, chain)
    found = recovered.found
    newest = max(found.parameters.values(), key=lambda record: record.sequence)
    settings = dict(newest.settings) | {
        key.replace("_", "."): text for key, text in changed.items()
    }
    pairs = tuple((key, text) for key, text in settings.items() if text)
    record = replace(newest, sequence=newest.sequence + 1, settings=pairs)
    count = found.events_before(recovered.checkpoint.start) + len(found.events)
    log = Log(
        house.state,
        genesis=chain.genesis,
        meter=chain.meter,
        incarnation=chain.incarnation,
        draw_secret=lambda _stream, _number: bytes(32),
        ends=found.ends,
        events=count,
        open_rows=[],
    )
    details = (("record", record.encode()),)
    log.add_event(Event(number=count + 1, boot_ms=1, wall_ms=1, kind="parameters", details=details))
    Card().perform(log.take_operations())


@pytest.mark.parametrize("forged", [{"clamp_1_scale": "0.5"}, {"signed_commissioned": ""}])
def test_s3_a_record_that_was_written_on_the_card_is_not_gone_by(
    house: House, cable: Cable, forged: dict[str, str]
) -> None:
    with metering(house, cable) as meter:
        commission(house)
        say(house, cable, 1000)
        meter.stop()
    with house.run() as meter:
        meter.hear("port_opened")
        meter.stop()
    house.verify_good()
    forge(house, **forged)
    bad = house.verify().first_bad
    assert bad is not None
    assert "without a signed command" in bad.reason
    with house.run() as meter:
        assert meter.end() == AccountRefusedError.exit_code
        assert "without a signed command" in meter.said


def test_a_second_change_waits_for_the_first(house: House, cable: Cable) -> None:
    with metering(house, cable) as meter:
        told = commission(house)
        one, other = (signed(command(told, {"clamp.1.scale": scale})) for scale in ("1.01", "1.02"))
        desk(house).call("Change", command=one)
        with pytest.raises(MeterdError, match=r"is being made|was used already"):
            desk(house).call("Change", command=other)
        now = wait_sequence(house, told["sequence"] + 1)
        assert now["settings"]["clamp.1.scale"] == "1.01"
        meter.stop()


def test_a_kill_after_the_answer_loses_no_change(house: House, cable: Cable) -> None:
    with metering(house, cable) as meter:
        told = commission(house)
        desk(house).call("Change", command=signed(command(told, {"clamp.1.scale": "1.5"})))
        meter.process.kill()
        meter.end()
    with house.run() as meter:
        meter.hear("port_opened")
        assert shown(house)["settings"]["clamp.1.scale"] == "1.5"
        meter.stop()
    house.verify_good()


def test_a_change_outlasts_a_midnight_before_the_new_start(tmp_path: Path) -> None:
    """The checkpoint of the day's end holds the record in force, and the one that comes."""
    rig = Rig(tmp_path / "account")
    rig.start(MIDNIGHT_S - 100)
    rig.rows(5)
    rig.commit()
    now = rig.book.parameters
    rig.book.change(replace(now, sequence=now.sequence + 1, settings=(("clamp.1.scale", "2"),)))
    rig.rows(40)
    rig.commit()
    rig.stop()
    chain = open_chain(rig.genesis, rig.settings.meter.name)
    recovered = recover(rig.state, chain)
    assert recovered.checkpoint.start.chain.head.height > 0
    known = sorted(recovered.found.parameters.values(), key=lambda record: record.sequence)
    assert [record.sequence for record in known] == [1, 2]
    assert known[-1].settings == (("clamp.1.scale", "2"),)


OWN = bytes(SigningKey(SEED).verify_key).hex()


@pytest.mark.parametrize(
    ("record", "owner", "refusal"),
    [
        pytest.param("", "5f" * 32, (UsageError, "expected 32 bytes, got 0"), id="no record"),
        pytest.param("5f" * 32, "", (ConfigError, "owner's public key is missing"), id="no owner"),
        pytest.param("5f" * 32, "5f", (ConfigError, "owner's public key"), id="half an owner"),
        pytest.param("5f" * 32, "5f" * 32, (ConfigError, "no public key"), id="what is no key"),
        pytest.param("5f" * 32, "00" * 32, (ConfigError, "no public key"), id="a key of nobody"),
        pytest.param("5f" * 32, OWN, (ConfigError, "meter's own key"), id="the meter's own key"),
        pytest.param("5", "5f" * 32, (UsageError, "hex digits, in pairs"), id="half a digit"),
    ],
)
def test_a_commissioning_is_refused_with(
    house: House, cable: Cable, record: str, owner: str, refusal: tuple[type[MeterdError], str]
) -> None:
    kind, problem = refusal
    with metering(house, cable, count=1) as meter:
        with pytest.raises(kind, match=problem):
            desk(house).call("Commission", record=record, owner=owner)
        assert shown(house)["signed"] == {}
        meter.stop()
    assert events(house, "commissioned") == []


def test_in_a_street_the_distributors_key_changes_parameters_and_no_other(tmp_path: Path) -> None:
    """The desk by itself, with the roster of a street; it is asked under no daemon."""
    rig = Rig(tmp_path / "account")
    rig.start(MIDNIGHT_S)
    roster = found(street.genesis_of())
    asked = Desk(rig.book, rig.settings, rig.settings)
    assert roster.distributor is not None
    distributor = street.key(f"{roster.distributor[0]} seals")
    assert asked.owner(roster) == bytes(distributor.verify_key)
    with pytest.raises(ConfigError, match="gives orders in"):
        asked.commission(RECORD, bytes(OWNER.verify_key), roster)
    held = asked.record
    change = Command(held.genesis, held.meter, 2, held.hash, (("clamp.1.scale", "1", "1.02"),))
    with pytest.raises(DeniedError, match="which nobody has granted"):
        asked.obey(sign_command(change, OWNER), roster, rig.stamp)
    changed = asked.obey(sign_command(change, distributor), roster, rig.stamp)
    assert (changed.by, changed.record.sequence) == ("owner", 2)
    assert asked.owner(found(rig.genesis)) == b""
