from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import PrivateKey, SealedBox

from meterd.errors import AbsentError, EncodingError, VaultRefusedError
from meterd.ledger.encoding import decode, digest, encode
from meterd.privacy.envelope import (
    Files,
    Passphrase,
    Vault,
    device_id,
    device_key,
    found,
    open_record,
    open_vault,
    seal_to,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE = device_key(bytes(32))
OTHER_DEVICE = device_key(bytes(31) + b"\1")
SLOW = Passphrase(bytes(16), 3, 65_536)
KEY, WRONG = b"k" * 32, b"w" * 32  # what a passphrase comes to
NAME, ADDRESS = b"Ada Example", b"1 Elm Street"


def drawing(seed: str) -> Callable[[int], bytes]:
    numbers = count()
    return lambda length: digest(f"{seed} {next(numbers)}".encode())[:length]


draw = drawing("test")


def household() -> Vault:
    vault = found(DEVICE, draw).with_subject("device", draw).with_subject("s-1", draw, SLOW, KEY)
    vault = vault.put("device", "session-key", b"of a session", draw)
    vault = vault.put("s-1", "name", NAME, draw, KEY)
    return vault.put("s-1", "address", ADDRESS, draw, KEY)


VAULT = household()
FILES = VAULT.close(draw)


def test_what_is_put_in_comes_out_after_the_card_was_away() -> None:
    again = open_vault(FILES, DEVICE)
    assert again.get("s-1", "name", KEY) == NAME
    assert again.get("device", "session-key") == b"of a session"
    assert again.version == VAULT.version + 1
    assert [record[:3] for record in again.records] == [
        ("device", "session-key", 1),
        ("s-1", "address", 1),
        ("s-1", "name", 1),
    ]


def test_no_name_is_found_in_the_files() -> None:
    for secret in (NAME, ADDRESS, b"of a session", KEY, VAULT.root, DEVICE, bytes(32)):
        assert secret not in FILES.content + FILES.key


def test_a_record_is_replaced_and_its_version_counts() -> None:
    changed = VAULT.put("s-1", "name", b"Bob", draw, KEY)
    assert changed.get("s-1", "name", KEY) == b"Bob"
    assert [record.version for record in changed.records] == [1, 1, 2]


@pytest.mark.parametrize(
    ("vault", "reason"),
    [
        pytest.param(lambda: VAULT.get("s-1", "name"), "not the passphrase of s-1", id="without"),
        pytest.param(
            lambda: VAULT.get("s-1", "name", WRONG), "not the passphrase of s-1", id="a wrong one"
        ),
        pytest.param(
            lambda: VAULT.put("s-1", "name", b"", draw, WRONG), "not the passphrase", id="to put"
        ),
        pytest.param(
            lambda: VAULT.with_passphrase("s-1", draw, WRONG, SLOW, WRONG),
            "not the passphrase",
            id="to take another",
        ),
    ],
)
def test_a_persons_records_take_the_passphrase(vault: Callable[[], object], reason: str) -> None:
    with pytest.raises(VaultRefusedError, match=reason):
        vault()


def test_another_passphrase_opens_the_same_records() -> None:
    other = Passphrase(b"o" * 16, 4, 65_536)
    changed = VAULT.with_passphrase("s-1", draw, KEY, other, WRONG)
    assert changed.get("s-1", "name", WRONG) == NAME
    with pytest.raises(VaultRefusedError):
        changed.get("s-1", "name", KEY)


def test_a_rotation_leaves_records_and_passphrases_and_opens_nothing_of_before() -> None:
    after = open_vault(FILES, DEVICE).rooted(draw)
    assert after.records == VAULT.records
    assert after.get("s-1", "name", KEY) == NAME
    files = after.close(draw)
    assert open_vault(files, DEVICE).get("s-1", "name", KEY) == NAME
    with pytest.raises(VaultRefusedError, match=r"the content is older: version 1, and 2 counts"):
        open_vault(Files(FILES.content, files.key), DEVICE)
    forced = VAULT._replace(root=after.root)
    with pytest.raises(VaultRefusedError, match="the key of s-1 was changed"):
        forced.get("s-1", "name", KEY)


def test_v2_who_is_erased_stays_so_with_yesterdays_content_and_todays_keys() -> None:
    after = open_vault(FILES, DEVICE).without("s-1", draw)
    with pytest.raises(AbsentError, match="holds nothing of s-1"):
        after.get("s-1", "name", KEY)
    assert after.get("device", "session-key") == b"of a session"
    files = after.close(draw)
    assert [subject.name for subject in after.subjects] == ["device"]
    assert [record.subject for record in after.records] == ["device"]
    assert b"s-1" not in files.content + files.key
    with pytest.raises(VaultRefusedError, match="the content is older"):
        open_vault(Files(FILES.content, files.key), DEVICE)
    today = open_vault(files, DEVICE)
    old = open_vault(FILES, DEVICE)
    forged = today._replace(subjects=old.subjects, records=old.records)
    with pytest.raises(VaultRefusedError, match="the key of s-1 was changed"):
        forged.get("s-1", "name", KEY)


def test_v6_another_device_does_not_open_it() -> None:
    with pytest.raises(VaultRefusedError, match=device_id(DEVICE).hex()) as refused:
        open_vault(FILES, OTHER_DEVICE)
    assert device_id(OTHER_DEVICE).hex() in str(refused.value)
    assert refused.value.hint
    moved = VAULT.moved(OTHER_DEVICE).close(draw)
    assert open_vault(moved, OTHER_DEVICE).get("s-1", "name", KEY) == NAME
    bound = device_key(bytes(32), b"one-time programmed")
    with pytest.raises(VaultRefusedError, match="another device"):
        open_vault(FILES, bound)


def test_v7_what_is_older_is_refused() -> None:
    newer = open_vault(FILES, DEVICE).put("s-1", "name", b"Bob", draw, KEY)
    files = newer.close(draw)
    assert open_vault(files, DEVICE, version_min=2).get("s-1", "name", KEY) == b"Bob"
    with pytest.raises(VaultRefusedError, match="the vault is older: 1 of 2 times written"):
        open_vault(FILES, DEVICE, version_min=2)
    with pytest.raises(VaultRefusedError, match="was changed, or is not the one"):
        open_vault(Files(files.content, FILES.key), DEVICE)


def test_v7_a_content_of_another_device_is_named() -> None:
    other = found(OTHER_DEVICE, draw).close(draw)
    with pytest.raises(VaultRefusedError, match="the content is another device's"):
        open_vault(Files(other.content, FILES.key), DEVICE)
    with pytest.raises(VaultRefusedError, match="the content is that of no vault"):
        open_vault(Files(FILES.key, FILES.key), DEVICE)
    with pytest.raises(VaultRefusedError, match="the key file is no key"):
        open_vault(Files(FILES.content, FILES.content), DEVICE)


@pytest.mark.parametrize("which", ["content", "key"])
def test_v7_every_flipped_byte_is_refused(which: str) -> None:
    data = bytearray(getattr(FILES, which))
    for at in range(len(data)):
        data[at] ^= 1
        with pytest.raises(VaultRefusedError):
            open_vault(FILES._replace(**{which: bytes(data)}), DEVICE)
        data[at] ^= 1


def test_v7_a_root_key_that_is_cut_short_is_refused() -> None:
    """A file well spelled, whose sealed part has lost its end: no flipped byte makes that."""
    *about, sealed = decode(FILES.key)
    for length in range(len(sealed)):
        with pytest.raises(VaultRefusedError, match="the key file was changed"):
            open_vault(FILES._replace(key=encode([*about, sealed[:length]])), DEVICE)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_whatever_lies_in_the_files_is_refused(content: bytes, key: bytes) -> None:
    with pytest.raises(VaultRefusedError):
        open_vault(Files(content, key), DEVICE)


def test_v1_a_swapped_record_does_not_open() -> None:
    device, address, name = VAULT.records
    for one, other in ((address, name), (device, name)):
        swapped = VAULT._replace(records=(one._replace(sealed=other.sealed),))
        with pytest.raises(VaultRefusedError, match=rf"record {one.purpose} of {one.subject} was"):
            swapped.get(one.subject, one.purpose, KEY)
    again = VAULT._replace(records=(name._replace(version=2),))
    with pytest.raises(VaultRefusedError, match="record name of s-1 was changed"):
        again.get("s-1", "name", KEY)
    key = VAULT._subject_key("s-1", KEY)
    with pytest.raises(VaultRefusedError, match="record name of s-2 was changed"):
        open_record(key, name._replace(subject="s-2"))
    short = VAULT._replace(records=(name._replace(sealed=b"short"),))
    with pytest.raises(VaultRefusedError, match="record name of s-1 was changed"):
        short.get("s-1", "name", KEY)


def test_v1_each_subject_has_a_key_of_its_own() -> None:
    two = VAULT.with_subject("s-2", draw, SLOW, KEY).put("s-2", "name", b"Eve", draw, KEY)
    names = ("device", "s-1", "s-2")
    assert len({two._subject_key(name, KEY) for name in names}) == len(names)
    stolen = tuple(
        each._replace(sealed_key=two.subject("s-2").sealed_key) if each.name == "s-1" else each
        for each in two.subjects
    )
    with pytest.raises(VaultRefusedError, match="the key of s-1 was changed"):
        two._replace(subjects=stolen).get("s-1", "name", KEY)
    with pytest.raises(VaultRefusedError, match="the key of s-1 was changed"):
        two._replace(subjects=stolen).rooted(draw)


@pytest.mark.parametrize("name", ["Ada Example", "", "-x", "a" * 65, "ä"])
def test_a_name_that_may_give_somebody_away_is_refused(name: str) -> None:
    with pytest.raises(EncodingError, match="cannot be a name"):
        VAULT.with_subject(name, draw)
    with pytest.raises(EncodingError, match="cannot be a name"):
        VAULT.put("device", name, b"", draw)


def test_a_subject_is_not_made_twice_nor_a_record_too_long() -> None:
    with pytest.raises(EncodingError, match="records of s-1 already"):
        VAULT.with_subject("s-1", draw)
    with pytest.raises(EncodingError, match="at most 65536 bytes, got 65537"):
        VAULT.put("device", "session-key", bytes(65_537), draw)
    with pytest.raises(AbsentError, match="no colour of s-1"):
        VAULT.get("s-1", "colour", KEY)


def test_a_vault_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterd.privacy.envelope.CONTENT_BYTES_MAX", 200)
    with pytest.raises(EncodingError, match="at most 200 bytes"):
        VAULT.close(draw)


def test_what_is_sealed_to_somebody_an_independent_box_opens() -> None:
    theirs = PrivateKey(b"t" * 32)
    sealed = seal_to(bytes(theirs.public_key), b"of a session", b"e" * 32)
    assert SealedBox(theirs).decrypt(sealed) == b"of a session"
