"""Which parameter record may follow which: a card says much, and a signature alone leads on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meterd.ledger.encoding import seal
from meterd.ledger.parameters import COMMISSIONED, FILE, OWNER_KEY, sign_command, verify_command
from meterd.ledger.succession import BrokenSuccessionError, check_follows
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
    from meterd.ledger.account import Parameters
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
