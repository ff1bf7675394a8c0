from __future__ import annotations

from dataclasses import replace

import pytest

from meterd.ledger.account import decode_genesis, standalone
from meterd.ledger.verdict import Known, Verdict
from tests.ledger.examples import GENESIS, KEY, STRANGER
from tests.ledger.memory import STRANGER_SEED, Stored, sealed_account


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return sealed_account(tmp_path_factory.mktemp("verdict") / "account")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return sealed_account(tmp_path_factory.mktemp("foreign") / "account", seed=STRANGER_SEED)


def hash_of(account: Stored, height: int) -> bytes:
    blocks = account.blocks
    return blocks[height - 1].hash if height else decode_genesis(account.genesis).hash


def test_what_is_known_from_elsewhere_and_agrees_is_said(account: Stored) -> None:
    assert account.judge().key == "self-asserted"
    for known in (
        Known(genesis=account.genesis),
        Known(key=decode_genesis(account.genesis).meters[0].sealing_key),
        Known(head=(6, hash_of(account, 6))),
        Known(head=(1, hash_of(account, 1))),
        Known(head=(0, hash_of(account, 0))),
    ):
        verdict = account.judge(known)
        assert (verdict.verdict, verdict.key) == ("good", "given")


@pytest.mark.parametrize("height", [0, 1, 4, 6])
def test_a_known_block_that_is_another_is_bad_at_its_place(account: Stored, height: int) -> None:
    bad = account.judge(Known(head=(height, bytes(32)))).first_bad
    assert bad is not None
    starts = {block.height: block.start_s for block in account.blocks}
    assert (bad.stream, bad.height, bad.start_s) == ("blocks", height, starts.get(height))
    assert "two histories" in bad.reason


def test_a_known_block_past_the_end_is_bad(account: Stored) -> None:
    bad = account.judge(Known(head=(7, bytes(32)))).first_bad
    assert bad is not None
    assert (bad.height, bad.start_s) == (7, account.blocks[-1].end_s)
    assert bad.reason == "the account ends at block 6, block 7 is known: cut back"


def test_another_key_or_genesis_than_the_known_one_is_bad(account: Stored, foreign: Stored) -> None:
    for known, reason in (
        (Known(key=bytes(STRANGER.verify_key)), "not the given key's"),
        (Known(genesis=foreign.genesis), "the account's genesis is not the given one"),
    ):
        bad = account.judge(known).first_bad
        assert bad is not None
        assert (bad.stream, bad.height) == ("genesis", None)
        assert reason in bad.reason


def test_a_genesis_that_is_lost_may_be_given(account: Stored, foreign: Stored) -> None:
    lost = replace(account, genesis=b"")
    assert lost.judge().verdict == "unreadable"
    assert lost.judge(Known(genesis=account.genesis)).verdict == "good"
    bad = lost.judge(Known(genesis=foreign.genesis)).first_bad
    assert bad is not None
    assert "not the one that the segments name" in bad.reason


@pytest.mark.parametrize("genesis", [b"", b"\0", b"no genesis", GENESIS.encode()[:-1]])
def test_without_segments_what_is_no_genesis_is_unreadable(genesis: bytes) -> None:
    verdict = Stored(genesis, {"samples": {}, "events": {}, "blocks": {}}).judge()
    assert verdict.verdict == "unreadable"
    assert verdict.reason.startswith("no genesis to judge by: ")
    assert verdict.first_bad is None


def test_an_account_in_which_nothing_has_happened_is_good() -> None:
    verdict = Stored(GENESIS.encode(), {"samples": {}, "events": {}, "blocks": {}}).judge()
    assert verdict == Verdict(verdict="good", head=verdict.head)
    assert verdict.head is not None
    assert verdict.head.height == 0


def test_in_a_street_the_account_says_which_meters_it_is(account: Stored) -> None:
    """The genesis of several meters does not tell; the first header that holds does."""
    alone = decode_genesis(account.genesis)
    other = replace(alone.meters[0], name="cellar")
    street = replace(alone, meters=(other, *alone.meters)).encode()
    empty = Stored(street, {"samples": {}, "events": {}, "blocks": {}})
    assert empty.judge().verdict == "unreadable"
    assert "has no meter" in empty.judge().reason
    verdict = replace(account, genesis=street).judge()
    assert verdict.first_bad is not None  # it was sealed for the network of one
    assert verdict.first_bad.stream == "genesis"


def test_a_standalone_genesis_names_its_key() -> None:
    genesis = standalone(
        "m",
        bytes(KEY.verify_key),
        interval_s=60,
        zone="UTC",
        currency="EUR",
        fuse_ma=1,
        nominal_mv=1,
        mains_clamps=1,
    )
    account = Stored(genesis.encode(), {"samples": {}, "events": {}, "blocks": {}})
    assert account.judge(Known(key=bytes(KEY.verify_key))).verdict == "good"
