from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from nacl.signing import SigningKey

from meterd.errors import EncodingError
from meterd.ledger.account import Parameters
from meterd.ledger.encoding import encode, seal
from meterd.ledger.parameters import (
    BY,
    CHANGES_MAX,
    COMMAND,
    COMMAND_BYTES_MAX,
    COMMAND_CONTEXT,
    COMMISSIONED,
    GRANT_CONTEXT,
    Accepted,
    Command,
    CommandRefusedError,
    Grant,
    decode_command,
    decode_grant,
    file_digest,
    sign_command,
    sign_grant,
    split,
    verify_command,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

OWNER, JO, STRANGER = (SigningKey(name.ljust(32, b".")) for name in (b"owner", b"jo", b"stranger"))
GENESIS, OTHER = bytes(range(32)), bytes(32)
NOW_S = 1_795_000_000
SETTINGS = (("clamp.1.name", "mains"), ("clamp.1.scale", "1"), ("clamp.1.zero_below_w", "0"))
HELD = Parameters(
    genesis=GENESIS,
    meter="kitchen-12",
    sequence=4,
    software_id=bytes(32),
    roles=("mains",),
    registers=((bytes(6), 0),),
    settings=(*SETTINGS, (COMMISSIONED, "5f0c")),
)
CHANGE = ("clamp.1.scale", "1", "1.02")
GOOD = Command(GENESIS, "kitchen-12", 5, HELD.hash, (CHANGE,))
GRANT = Grant(GENESIS, bytes(JO.verify_key), "jo", NOW_S - 100, NOW_S + 100)
GRANTED = sign_grant(GRANT, OWNER)
BY_JO = GOOD._replace(grant=GRANTED)


def verify(
    message: bytes, *, owner: bytes = bytes(OWNER.verify_key), at_s: int | None = NOW_S
) -> Accepted:
    return verify_command(message, HELD, owner, at_s)


def test_s3_the_owners_command_counts_whatever_the_clock_says() -> None:
    message = sign_command(GOOD, OWNER)
    accepted = verify(message, at_s=None)
    assert accepted.command == GOOD
    assert accepted.by == "owner"
    assert accepted.settings == dict(SETTINGS) | {"clamp.1.scale": "1.02"}
    assert accepted.signed[COMMISSIONED] == "5f0c"
    assert accepted.signed[BY] == "owner"
    assert len(accepted.signed[COMMAND]) == 64


def test_s3_a_granted_technicians_command_counts_from_the_first_second_to_the_last() -> None:
    message = sign_command(BY_JO, JO)
    for at_s in (GRANT.not_before_s, NOW_S, GRANT.not_after_s):
        assert verify(message, at_s=at_s).by == "jo"
    for outside_s in (GRANT.not_before_s - 1, GRANT.not_after_s + 1, None):
        with pytest.raises(CommandRefusedError):
            verify(message, at_s=outside_s)


def test_a_parameter_may_come_and_go() -> None:
    changes = (("clamp.1.zero_below_w", "0", ""), ("clamp.2.name", "", "heat-pump"))
    settings = verify(sign_command(GOOD._replace(changes=changes), OWNER)).settings
    assert "clamp.1.zero_below_w" not in settings
    assert settings["clamp.2.name"] == "heat-pump"


def cut(message: bytes) -> bytes:
    return message[:-1] + bytes([message[-1] ^ 1])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(GOOD.encode(), "not a signed command: not a COSE_Sign1", id="unsigned"),
        pytest.param(b"", "not a signed command", id="nothing"),
        pytest.param(seal(b"\x80", OWNER, GENESIS), "not a command", id="something else"),
        pytest.param(cut(sign_command(GOOD, OWNER)), "is not signed by key", id="seal edited"),
        pytest.param(seal(GOOD.encode(), OWNER, OTHER), "is not signed by", id="sealed elsewhere"),
        pytest.param(sign_command(GOOD, STRANGER), "which nobody has granted it", id="a stranger"),
        pytest.param(sign_command(GOOD, JO), "which nobody has granted it", id="without grant"),
        pytest.param(sign_command(BY_JO, STRANGER), "of jo is not signed by", id="stolen grant"),
        pytest.param(
            sign_command(GOOD._replace(grant=sign_grant(GRANT, STRANGER)), JO),
            "the technician's grant is not signed by key",
            id="forged grant",
        ),
        pytest.param(
            sign_command(GOOD._replace(grant=cut(GRANTED)), JO),
            "the technician's grant is not signed by key",
            id="edited grant",
        ),
        pytest.param(
            sign_command(GOOD._replace(grant=b"?"), JO), "cannot be read", id="no grant at all"
        ),
        pytest.param(
            sign_command(
                GOOD._replace(grant=seal(GRANT._replace(genesis=OTHER).encode(), OWNER, GENESIS)),
                JO,
            ),
            "jo's grant is for another network",
            id="another network's grant",
        ),
        pytest.param(
            sign_command(GOOD._replace(genesis=OTHER), OWNER), "for another network", id="network"
        ),
        pytest.param(
            sign_command(GOOD._replace(meter="cellar-3"), OWNER),
            "for cellar-3, this is kitchen-12",
            id="another meter's",
        ),
        pytest.param(
            sign_command(GOOD._replace(sequence=4), OWNER),
            "expected command 5, got 4: it was used already",
            id="replayed",
        ),
        pytest.param(
            sign_command(GOOD._replace(sequence=6), OWNER),
            "expected command 5, got 6: it comes too early",
            id="reordered",
        ),
        pytest.param(
            sign_command(GOOD._replace(record=OTHER), OWNER),
            "made for parameter record 0000000000000000",
            id="another record's",
        ),
        pytest.param(
            sign_command(GOOD._replace(changes=(("clamp.1.scale", "2", "3"),)), OWNER),
            "takes clamp.1.scale to be 2, it is 1",
            id="another old value",
        ),
        pytest.param(
            sign_command(GOOD._replace(changes=(("clamp.2.scale", "2", "3"),)), OWNER),
            "takes clamp.2.scale to be 2, it is absent",
            id="of what is not there",
        ),
    ],
)
def test_s3_a_command_is_refused_that_is(message: bytes, reason: str) -> None:
    with pytest.raises(CommandRefusedError, match=reason):
        verify(message)


def test_s3_nobody_commands_a_meter_that_has_no_owner() -> None:
    with pytest.raises(CommandRefusedError, match="not commissioned"):
        verify(sign_command(GOOD, OWNER), owner=b"")


def test_s3_a_command_is_used_once() -> None:
    """What it makes is the record in force: it, and what was made beside it, come too late."""
    message, beside = (
        sign_command(GOOD._replace(changes=(("clamp.1.scale", "1", scale),)), OWNER)
        for scale in ("1.02", "1.03")
    )
    accepted = verify(message)
    after = Parameters(
        genesis=GENESIS,
        meter="kitchen-12",
        sequence=5,
        software_id=bytes(32),
        roles=("mains",),
        registers=HELD.registers,
        settings=(*accepted.settings.items(), *accepted.signed.items()),
    )
    for late in (message, beside):
        with pytest.raises(CommandRefusedError, match="was used already"):
            verify_command(late, after, bytes(OWNER.verify_key), NOW_S)


def spelt(*parts: object) -> bytes:
    return encode([COMMAND_CONTEXT, *parts])  # type: ignore[list-item]


def changed(*changes: Sequence[str]) -> bytes:
    return spelt(GENESIS, "m", 1, GENESIS, [list(change) for change in changes], b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(spelt(), "not a command", id="nothing in it"),
        pytest.param(spelt(GENESIS, "m", 1, GENESIS, [], b"", 1), "not a command", id="too much"),
        pytest.param(changed(), "expected 1 to 64 changes, got 0", id="no change"),
        pytest.param(
            changed(*((f"k{n:03}", "1", "2") for n in range(CHANGES_MAX + 1))),
            "got 65",
            id="too many changes",
        ),
        pytest.param(changed(("a", "1")), "misshapen", id="two parts"),
        pytest.param(changed(("a", "1", "\n")), "misshapen", id="not printable"),
        pytest.param(changed(("a", "1", "é")), "misshapen", id="not ASCII"),
        pytest.param(changed(("a", "1", "x" * 513)), "misshapen", id="too long"),
        pytest.param(changed(("a", "1", "1")), "are none", id="changes nothing"),
        pytest.param(changed(("b", "1", "2"), ("a", "1", "2")), "out of order", id="order"),
        pytest.param(changed(("a", "1", "2"), ("a", "2", "3")), "out of order", id="twice"),
        pytest.param(changed(("", "1", "2")), "out of order", id="no name"),
        pytest.param(changed(("signed.by", "", "me")), "of no parameter", id="who signed"),
        pytest.param(spelt(b"", "m", 1, GENESIS, [list(CHANGE)], b""), "32 bytes", id="genesis"),
        pytest.param(spelt(GENESIS, "m", 1, b"", [list(CHANGE)], b""), "32 bytes", id="record"),
        pytest.param(bytes(COMMAND_BYTES_MAX + 1), "at most 4096 bytes", id="too long"),
    ],
)
def test_a_command_cannot_be_read_that_has(data: bytes, reason: str) -> None:
    with pytest.raises(EncodingError, match=reason):
        decode_command(data)


@pytest.mark.parametrize(
    ("grant", "reason"),
    [
        pytest.param(GRANT._replace(key=b"short").encode(), "not 32 bytes", id="key"),
        pytest.param(GRANT._replace(genesis=b"").encode(), "not 32 bytes", id="genesis"),
        pytest.param(GRANT._replace(name="J. Doe").encode(), "names nobody", id="name"),
        pytest.param(encode([GRANT_CONTEXT]), "not a technician's grant", id="nothing in it"),
        pytest.param(GOOD.encode(), "not a technician's grant", id="a command"),
    ],
)
def test_a_grant_cannot_be_read_that_has_another(grant: bytes, reason: str) -> None:
    with pytest.raises(EncodingError, match=reason):
        decode_grant(grant)


def test_what_was_written_is_read_again() -> None:
    assert decode_grant(GRANT.encode()) == GRANT
    assert decode_command(BY_JO.encode()) == BY_JO


def test_a_record_says_apart_what_is_measured_under_and_how_it_came() -> None:
    assert split(HELD.settings) == (SETTINGS, ((COMMISSIONED, "5f0c"),))
    assert file_digest(SETTINGS) != file_digest(SETTINGS[:2])
