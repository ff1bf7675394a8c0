from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd.errors import AbsentError, EncodingError, VaultRefusedError, WrongPassphraseError
from meterd.ledger.encoding import decode, encode
from meterd.privacy.envelope import Passphrase, Vault, device_key, found, open_vault
from meterd.privacy.guesses import FREE, WAIT_MS_MAX, Guesses
from meterd.privacy.share import (
    SHARE_BYTES_MAX,
    Share,
    adopt,
    check_word,
    decode_share,
    new_share,
    take,
)
from tests.privacy.test_envelope import DEVICE, KEY, NAME, SLOW, VAULT, WRONG, drawing

draw = drawing("shares")
OTHER = Passphrase(b"o" * 16, 4, 65_536)


def with_ada() -> Vault:
    share = new_share("s-1", SLOW, KEY, draw).put(KEY, "person", 1, NAME, draw)
    return adopt(found(DEVICE, draw), share, draw)[0]


ADA = with_ada()


def test_a_share_goes_across_and_comes_back_and_no_clear_text_with_it() -> None:
    spelt = take(ADA, "s-1", KEY, ("person",)).encode()
    assert NAME not in spelt
    assert KEY not in spelt
    share = decode_share(spelt)
    assert share.get(KEY, "person") == NAME
    fresh, other_key = adopt(ADA, share.put(KEY, "person", 2, b"Bob", draw), draw)
    assert not other_key
    assert take(fresh, "s-1", KEY, ("person",)).get(KEY, "person") == b"Bob"
    assert fresh.get("s-1", "person", KEY) == b"Bob", "the envelope opens what a share has sealed"
    assert fresh.root == ADA.root


def test_what_is_not_in_a_share_stays() -> None:
    two, _ = adopt(ADA, take(ADA, "s-1", KEY).put(KEY, "contract", 1, b"4711", draw), draw)
    whole = take(two, "s-1", KEY, ("person", "contract"))
    assert [record.purpose for record in whole.records] == ["contract", "person"]
    assert whole.get(KEY, "person") == NAME


def test_v7_another_passphrase_or_key_takes_another_root_key_and_leaves_the_records() -> None:
    share = take(ADA, "s-1", KEY)
    fresh, other_key = adopt(ADA, share.with_passphrase(KEY, OTHER, WRONG, draw), draw)
    assert other_key
    assert fresh.root != ADA.root
    assert fresh.records == ADA.records
    assert take(fresh, "s-1", WRONG, ("person",)).get(WRONG, "person") == NAME
    with pytest.raises(WrongPassphraseError):
        take(fresh, "s-1", KEY)
    rekeyed = take(ADA, "s-1", KEY, ("person",)).rekeyed(KEY, draw)
    fresh, other_key = adopt(ADA, rekeyed, draw)
    assert other_key
    assert take(fresh, "s-1", KEY, ("person",)).get(KEY, "person") == NAME
    old = take(ADA, "s-1", KEY)._replace(records=rekeyed.records)
    with pytest.raises(VaultRefusedError, match="record person of s-1 was changed"):
        old.get(KEY, "person")


def test_v1_each_person_has_a_key_of_its_own() -> None:
    eve = new_share("s-2", SLOW, KEY, draw).put(KEY, "person", 1, b"Eve", draw)
    two, _ = adopt(ADA, eve, draw)
    crossed = take(two, "s-1", KEY)._replace(sealed_key=eve.sealed_key)
    with pytest.raises(WrongPassphraseError):
        crossed.put(KEY, "person", 2, b"", draw)
    stolen = take(two, "s-1", KEY)._replace(records=eve.records)
    with pytest.raises(VaultRefusedError, match="was changed, or is another's"):
        stolen.get(KEY, "person")


def refused(share: Share, message: str) -> None:
    with pytest.raises(VaultRefusedError, match=message):
        adopt(ADA, share, draw)


def test_a_share_that_does_not_follow_is_refused() -> None:
    share = take(ADA, "s-1", KEY)
    refused(share.put(KEY, "person", 1, b"", draw), "expected version 2, got 1")
    refused(share.put(KEY, "person", 3, b"", draw), "expected version 2, got 3")
    refused(share.put(KEY, "contract", 2, b"", draw), "expected version 1, got 2")
    two, _ = adopt(ADA, share.put(KEY, "contract", 1, b"4711", draw), draw)
    part = take(two, "s-1", KEY, ("person",)).rekeyed(KEY, draw)
    with pytest.raises(VaultRefusedError, match="takes all its records, or none"):
        adopt(two, part, draw)
    device = new_share("device", SLOW, KEY, draw)
    with pytest.raises(VaultRefusedError, match="device is a part of the device"):
        adopt(VAULT, device, draw)
    with pytest.raises(VaultRefusedError, match="device is a part of the device"):
        take(VAULT, "device", KEY)


def test_a_share_is_for_who_is_there_and_has_the_passphrase() -> None:
    with pytest.raises(AbsentError, match="holds nothing of s-9"):
        take(ADA, "s-9", KEY)
    with pytest.raises(AbsentError, match="no colour of s-1"):
        take(ADA, "s-1", KEY, ("colour",))
    with pytest.raises(WrongPassphraseError, match="not the passphrase of s-1"):
        take(ADA, "s-1", WRONG, ("person",))
    with pytest.raises(AbsentError, match="no person of s-1"):
        take(ADA, "s-1", KEY).get(KEY, "person")
    forged = ADA._replace(root=bytes(32))
    with pytest.raises(VaultRefusedError, match="the key of s-1 was changed"):
        take(forged, "s-1", KEY)


def test_all_of_a_person_has_a_bound() -> None:
    big = take(ADA, "s-1", KEY).put(KEY, "big", 1, bytes(SHARE_BYTES_MAX - 300), draw)
    full, _ = adopt(ADA, big, draw)
    more = take(full, "s-1", KEY).put(KEY, "more", 1, bytes(300), draw)
    with pytest.raises(EncodingError, match=f"at most {SHARE_BYTES_MAX} bytes"):
        adopt(full, more, draw)
    take(full, "s-1", KEY, ("big", "person")).rekeyed(KEY, draw).encode()


@pytest.mark.parametrize("word", ["Ada", "", "-x", "a" * 33, "ä", "a.b", "a_b"])
def test_a_word_that_may_give_somebody_away_is_refused(word: str) -> None:
    with pytest.raises(EncodingError, match="cannot be a subject"):
        check_word(word, "subject")


SPELT = decode(take(ADA, "s-1", KEY, ("person",)).encode())


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, "meterd/vault/v1", "not a person's part"),
        (1, "Ada", "cannot be a subject"),
        (2, [bytes(15), 3, 65_536], "is misshapen"),
        (2, [bytes(16), 0, 65_536], "is misshapen"),
        (2, [bytes(16), 3], "is misshapen"),
        (3, bytes(71), "is misshapen"),
        (4, [["person", 1]], "record of s-1 is misshapen"),
        (4, [["person", 1, bytes(39)]], "record of s-1 is misshapen"),
        (4, [["Ada", 1, bytes(40)]], "cannot be a purpose"),
        (4, [["b", 1, bytes(40)], ["a", 1, bytes(40)]], "not in order"),
        (4, [["a", 1, bytes(40)], ["a", 2, bytes(40)]], "not in order"),
    ],
)
def test_a_share_that_is_misspelt_is_refused(place: int, wrong: object, message: str) -> None:
    value = [*SPELT[:place], wrong, *SPELT[place + 1 :]]
    with pytest.raises(EncodingError, match=message):
        decode_share(encode(value))


@given(st.binary(max_size=200))
def test_whatever_comes_as_a_share_is_refused(data: bytes) -> None:
    with pytest.raises(EncodingError):
        decode_share(data)


def test_v7_a_vault_with_a_share_in_it_comes_back_from_the_card() -> None:
    again = open_vault(ADA.close(draw), DEVICE)
    assert take(again, "s-1", KEY, ("person",)).get(KEY, "person") == NAME
    with pytest.raises(VaultRefusedError, match="another device"):
        open_vault(ADA.close(draw), device_key(b"x" * 32))


def test_who_guesses_waits_twice_as_long_each_time_and_who_knows_begins_anew() -> None:
    guesses = Guesses()
    waits = [guesses.wrong("s-1", 0) for _ in range(FREE + 12)]
    assert waits[:FREE] == [0] * FREE
    assert waits[FREE : FREE + 3] == [8_000, 16_000, 32_000]
    assert waits[-1] == WAIT_MS_MAX
    assert guesses.wait_ms("s-1", WAIT_MS_MAX - 1) == 1
    assert guesses.wait_ms("s-1", WAIT_MS_MAX) == 0
    assert guesses.wait_ms("s-2", 0) == 0
    guesses.right("s-1")
    guesses.right("s-3")
    assert guesses.wait_ms("s-1", 0) == 0
    assert guesses.wrong("s-1", 0) == 0
