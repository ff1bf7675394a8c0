"""A private key is not taken for a public one, whoever gives it and wherever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from nacl.signing import SigningKey

from meterd.ctl.public_key import draw_private, public_key
from meterd.errors import UsageError
from tests.ctl_kit import Ctl, ctl

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ctl"]

KEY = SigningKey(b"1" * 32)
PUBLIC = bytes(KEY.verify_key)


def test_a_public_key_is_given_as_digits_or_as_a_file(tmp_path: Path) -> None:
    beside = tmp_path / "owner.key.pub"
    beside.write_text(f"{PUBLIC.hex()}\n")
    assert public_key(PUBLIC.hex(), "--owner") == PUBLIC
    assert public_key(str(beside), "--owner") == PUBLIC


def test_a_private_key_of_ours_can_never_be_taken_for_a_public_one() -> None:
    drawn = [b"\x5f" * 32, PUBLIC]  # a public key is a point: as a private one it is not kept
    assert draw_private(lambda _: drawn.pop()) == b"\x5f" * 32
    for _ in range(100):
        with pytest.raises(UsageError, match=r"--owner: this is a private key, or none") as told:
            public_key(draw_private().hex(), "--owner")
        assert "keep a private key to yourself; give the .pub" in told.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{hex}", "private key, or none at all", id="our own"),
        pytest.param("-----BEGIN OPENSSH PRIVATE KEY-----", "is a private key", id="ssh-keygen's"),
        pytest.param("-----BEGIN PRIVATE KEY-----", "this is a private key", id="openssl's"),
        pytest.param("00" * 32, "private key, or none at all", id="a point of no use"),
        pytest.param("5f0c", "expected 64 hex digits", id="half a key"),
        pytest.param("\udcff", "expected 64 hex digits", id="no text"),
    ],
)
def test_a_file_is_no_public_key_that_has(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    path.write_text(text.format(hex="5f" * 32), errors="surrogateescape")
    with pytest.raises(UsageError, match=message) as told:
        public_key(str(path), "--owner")
    assert str(told.value).startswith(f"--owner: {path}: ")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("commission --state {here} --owner {private} --yes", "--owner"),
        (
            "calibrate grant --key {private} --genesis {hash} --technician {private} --id jo",
            "--technician",
        ),
    ],
)
def test_an_option_for_a_public_key_refuses_a_private_one(
    command: str, option: str, ctl: Ctl, tmp_path: Path
) -> None:
    private = tmp_path / "owner.key"
    assert ctl("calibrate", "key", "-o", private).status == 0
    words = command.format(here=tmp_path, private=private, hash="00" * 32).split()
    said = ctl(*words)
    assert (said.status, said.out) == (64, "")
    assert said.err.startswith(f"meterctl: error: {option}: {private}: this is a private key")
    assert private.read_text().strip() not in said.err


def test_a_key_is_made_with_the_file_that_is_given_away(ctl: Ctl, tmp_path: Path) -> None:
    private, beside = tmp_path / "owner.key", tmp_path / "owner.key.pub"
    made = ctl("calibrate", "key", "-o", private)
    shown = ctl("calibrate", "key", "--show", private, "--json").json
    assert beside.read_text().strip() == shown["key"]
    assert f"public key  {shown['key']}\nkey id      {shown['id']}\n" in made.out
    assert private.stat().st_mode & 0o777 == 0o600
    assert private.read_text().strip() not in made.out
    private.unlink()
    said = ctl("calibrate", "key", "-o", private)
    assert (said.status, private.exists()) == (64, False)
    assert f"{beside} exists" in said.err
