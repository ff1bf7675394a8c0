"""Which parameter record may follow which: a card says much, and a signature alone leads on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meterd.ledger.account import standalone
from meterd.ledger.chain import open_chain
from meterd.ledger.encoding import seal
from meterd.ledger.event import Event
from meterd.ledger.parameters import (
    COMMISSIONED,
    FILE,
    MISSING,
    OWNER_KEY,
    CommandRefusedError,
    sign_command,
    verify_command,
)
from meterd.ledger.succession import BrokenSuccessionError, Succession, check_follows, put_back
from tests.ledger.test_parameters import (
    BY_JO,
    CHANGE,
    GENESIS,
    GOOD,
    GRANT,
    HELD,
    JO,
    OWNER,
    SETTINGS,
    STRANGER,
)

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from meterd.ledger.account import Parameters
    from meterd.ledger.chain import Chain
    from meterd.ledger.event import Details
    from meterd.ledger.parameters import Pairs

KEYS = [bytes(STRANGER.verify_key), bytes(OWNER.verify_key)]  # that of before, and today's
COMMANDED = sign_command(GOOD, OWNER)


def after(message: bytes = COMMANDED, *changed: tuple[str, str]) -> Parameters:
    """Return the record that a command leads to, with some of its settings otherwise."""
    accepted = verify_command(message, HELD, KEYS[1], GRANT.not_before_s)
    settings = accepted.settings | accepted.signed | {FILE: "f11e"} | dict(changed)
    return replace(HELD, sequence=5, settings=tuple(settings.items()))


def same(**changed: str) -> Parameters:
    settings = dict(HELD.settings) | {key.replace("_", "."): text for key, text in changed.items()}
    kept = tuple((key, value) for key, value in settings.items() if value)
    return replace(HELD, sequence=5, settings=kept)


def effect(pairs: Pairs) -> dict[str, str]:
    """A software for which there is one parameter more than in `HELD`."""
    return {"board.new": "1"} | dict(pairs)


UNSIGNED = replace(HELD, settings=SETTINGS)
OTHER_SOFTWARE = bytes([1]) * 32


@pytest.mark.parametrize(
    ("before", "next_one", "message"),
    [
        pytest.param(HELD, after(), COMMANDED, id="by the owner's command"),
        pytest.param(
            HELD, after(sign_command(BY_JO, JO)), sign_command(BY_JO, JO), id="by a grant long over"
        ),
        pytest.param(HELD, replace(same(), software_id=OTHER_SOFTWARE), b"", id="other software"),
        pytest.param(
            HELD,
            replace(same(board_new="1"), software_id=OTHER_SOFTWARE),
            b"",
            id="software that knows more",
        ),
        pytest.param(HELD, HELD, b"", id="the same once more"),
        pytest.param(UNSIGNED, same(clamp_1_scale="7"), b"", id="none was signed before"),
    ],
)
def test_s3_a_record_follows(before: Parameters, next_one: Parameters, message: bytes) -> None:
    check_follows(before, next_one, message, KEYS, effect)


@pytest.mark.parametrize(
    ("next_one", "message", "reason"),
    [
        pytest.param(same(clamp_1_scale="7"), b"", "changes clamp.1.scale without", id="unsigned"),
        pytest.param(
            replace(same(clamp_1_scale="7"), software_id=OTHER_SOFTWARE),
            b"",
            "changes clamp.1.scale without",
            id="under another software",
        ),
        pytest.param(
            replace(same(board_new="2"), software_id=OTHER_SOFTWARE),
            b"",
            "changes board.new without",
            id="with more than another software has by itself",
        ),
        pytest.param(
            replace(HELD, sequence=5, settings=SETTINGS),
            b"",
            "changes what was signed without",
            id="as if none were signed",
        ),
        pytest.param(
            replace(HELD, sequence=5, settings=SETTINGS, software_id=OTHER_SOFTWARE),
            b"",
            "changes what was signed without",
            id="as if none were signed, under another software",
        ),
        pytest.param(
            replace(HELD, sequence=5, settings=(*HELD.settings, (OWNER_KEY, "5f"))),
            b"",
            "changes what was signed without",
            id="with another owner",
        ),
        pytest.param(replace(after(), sequence=9), COMMANDED, "comes after 4", id="far ahead"),
        pytest.param(replace(after(), meter="cellar-3"), COMMANDED, "is of cellar-3", id="another"),
        pytest.param(
            replace(same(), roles=("circuit",)), b"", "and no setting", id="with other roles"
        ),
        pytest.param(
            after(), sign_command(GOOD, JO), "which nobody has granted it", id="by a stranger"
        ),
        pytest.param(after(), b"?", "not a signed command", id="by no command"),
        pytest.param(after(), seal(b"\x80", OWNER, GENESIS), "not a command", id="by another seal"),
        pytest.param(
            after(COMMANDED, (CHANGE[0], "9")), COMMANDED, "says otherwise", id="to another value"
        ),
        pytest.param(
            after(COMMANDED, (COMMISSIONED, "00")), COMMANDED, "says otherwise", id="and more"
        ),
    ],
)
def test_s3_a_record_does_not_follow(next_one: Parameters, message: bytes, reason: str) -> None:
    with pytest.raises(BrokenSuccessionError, match=reason):
        check_follows(HELD, next_one, message, KEYS, effect)


def test_s3_where_nobody_may_command_nothing_follows() -> None:
    with pytest.raises(BrokenSuccessionError, match="nobody's key is known"):
        check_follows(HELD, after(), COMMANDED, [], effect)


# --- an account's events ------------------------------------------------------------------------

CHAIN = open_chain(
    standalone(
        "kitchen-12",
        bytes(32),
        interval_s=1800,
        zone="UTC",
        currency="EUR",
        fuse_ma=60_000,
        nominal_mv=230_000,
        mains_clamps=1,
    ),
    "kitchen-12",
)
ROTATED = ((0, bytes(STRANGER.verify_key)), (7, bytes(OWNER.verify_key)))  # by order 7


def event(kind: str, *details: tuple[str, str | int | bytes]) -> Event:
    return Event(number=9, boot_ms=0, wall_ms=0, kind=kind, details=details)


def recorded(record: Parameters, *details: tuple[str, str | int | bytes]) -> Event:
    return event("parameters", ("record", record.encode()), *details)


def succession(before: Parameters, chain: Chain = CHAIN) -> Succession:
    return Succession(chain, [replace(before, sequence=2), before], effect)


def owned_by(text: str) -> Parameters:
    return replace(HELD, settings=(*HELD.settings, (OWNER_KEY, text)))


def commanded(before: Parameters) -> tuple[Parameters, Details]:
    """Return the record that the owner's command leads to, and what its event says of that."""
    message = sign_command(GOOD._replace(record=before.hash), OWNER)
    accepted = verify_command(message, before, bytes(OWNER.verify_key))
    settings = accepted.settings | accepted.signed
    record = replace(before, sequence=5, settings=tuple(settings.items()))
    return record, (("command", message),)


def test_records_follow_by_the_key_that_the_first_of_them_names() -> None:
    before = owned_by(bytes(OWNER.verify_key).hex())
    record, details = commanded(before)
    taken = succession(before)
    taken.take(event("sealed"))
    taken.take(recorded(record, *details))
    assert taken.newest == record
    with pytest.raises(BrokenSuccessionError, match="comes after 5"):
        taken.take(recorded(before))


@pytest.mark.parametrize("owner", ["", "no key", "5f0c"])
def test_a_record_that_names_no_key_is_followed_by_none(owner: str) -> None:
    before = owned_by(owner)
    record, details = commanded(before)
    with pytest.raises(BrokenSuccessionError, match="nobody's key is known"):
        succession(before).take(recorded(record, *details))


def test_a_command_is_bytes() -> None:
    before = owned_by(bytes(OWNER.verify_key).hex())
    record, _ = commanded(before)
    with pytest.raises(BrokenSuccessionError, match="not a signed command"):
        succession(before).take(recorded(record, ("command", "by word of mouth")))


@pytest.mark.parametrize(
    ("known", "order", "key", "good"),
    [
        pytest.param(0, 6, STRANGER, True, id="the first key, until the order"),
        pytest.param(0, 7, STRANGER, False, id="the first key, after it"),
        pytest.param(8, 6, STRANGER, False, id="the first key, after it and the checkpoint"),
        pytest.param(0, 7, OWNER, True, id="the second, after it"),
        pytest.param(0, 6, OWNER, True, id="the second, before its event is there"),
        pytest.param(0, 7, JO, False, id="neither"),
    ],
)
def test_a_command_rests_on_the_distributors_key_of_its_time(
    known: int, order: int, key: SigningKey, *, good: bool
) -> None:
    head = CHAIN.head._replace(order=(known, bytes(32)))
    taken = succession(HELD, CHAIN._replace(commanders=ROTATED, head=head))
    taken.take(event("order", ("height", order)))
    taken.take(event("order", ("height", "high")))  # whoever has the card may write anything
    message = sign_command(GOOD, key)
    accepted = verify_command(message, HELD, bytes(key.verify_key))
    record = replace(HELD, sequence=5, settings=(*(accepted.settings | accepted.signed).items(),))
    if good:
        taken.take(recorded(record, ("command", message)))
        assert taken.newest == record
    else:
        with pytest.raises(BrokenSuccessionError, match="which nobody has granted it"):
            taken.take(recorded(record, ("command", message)))


# --- after a card was put back ------------------------------------------------------------------


def test_an_account_that_began_anew_goes_on_under_the_record_that_it_sealed() -> None:
    first = Succession(CHAIN, [], effect, promised=HELD.hash)
    first.take(recorded(HELD))
    assert first.newest == HELD
    other = Succession(CHAIN, [], effect, promised=HELD.hash)
    with pytest.raises(BrokenSuccessionError, match="not the one that the meter said"):
        other.take(recorded(same(clamp_1_scale="7")))


@pytest.mark.parametrize("events", [3, 900])
def test_a_card_that_was_put_back_takes_no_command_of_before(events: int) -> None:
    named = CHAIN.head._replace(parameters=HELD.hash)
    record = put_back(HELD, [HELD.hash], named, events)
    assert record.sequence == max(HELD.sequence, events) + 1
    assert record.settings == HELD.settings
    with pytest.raises(CommandRefusedError, match="was used already"):
        verify_command(COMMANDED, record, KEYS[1])


def test_a_record_that_blocks_name_and_the_card_has_not_is_said_until_the_next_command() -> None:
    named = CHAIN.head._replace(parameters=bytes(range(32)))
    record = put_back(HELD, [HELD.hash], named, 900)
    assert dict(record.settings) == dict(HELD.settings) | {MISSING: bytes(range(32)).hex()}
    fresh = GOOD._replace(sequence=record.sequence + 1, record=record.hash)
    message = sign_command(fresh, OWNER)
    accepted = verify_command(message, record, KEYS[1])
    assert MISSING not in accepted.signed
    after = accepted.settings | accepted.signed
    following = replace(record, sequence=fresh.sequence, settings=tuple(after.items()))
    check_follows(record, following, message, KEYS, effect)
