from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterd import neighbours
from meterd.authority.attestation import prove
from meterd.authority.certificate import (
    VOTES_CONTEXT,
    certificate_of,
    seals_evidence,
    votes_evidence,
)
from meterd.authority.roster import found
from meterd.device.mailbox import FILE_BYTES_MAX
from meterd.ledger.chain import verify_sealed
from meterd.ledger.encoding import encode
from meterd.neighbours import CERTIFICATE_FILE, CERTIFICATE_KEPT_MS, OUT_BLOCKS_MAX, Witnessed
from tests.accounts import folder
from tests.authority.examples import (
    GENESIS,
    HOUSE,
    NEXT_EPOCH,
    NODES,
    OTHER_HOUSE,
    REVOKE,
    SHORTER,
    VOTERS,
    batch,
    block,
    certificate,
    chain,
    leaf,
    ordered,
    sealed,
    vote,
)
from tests.neighbours_kit import BLOCKS, ELSE, SEALED, Home, proof_of

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.authority.certificate import Certificate


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


# --- certificates -------------------------------------------------------------------------------


def test_a_certificate_says_up_to_where_neighbours_vouch(home: Home) -> None:
    home.bring("certificate", proof_of(BLOCKS[1]))
    assert home.neighbours.witnessed == Witnessed(2, 3, 3, fork_proof=True)
    home.bring("certificate", proof_of(BLOCKS[0], by=VOTERS))
    assert home.neighbours.witnessed.height == 2, "an older one takes nothing back"
    home.bring("certificate", proof_of(BLOCKS[2], by=VOTERS))
    assert home.neighbours.witnessed == Witnessed(3, 4, 3, fork_proof=True)
    assert home.refused == {}


def test_a_certificate_by_blocks_above_counts_for_its_own(home: Home) -> None:
    home.bring("certificate", proof_of(BLOCKS[0], above=BLOCKS[1:40]))
    assert home.neighbours.witnessed.height == 1


def _by_nobody() -> Certificate:
    good = certificate(BLOCKS[1])
    receipt, here = good.proofs[0]
    return good._replace(proofs=((receipt[:-1] + bytes([receipt[-1] ^ 1]), here), *good.proofs[1:]))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(proof_of(BLOCKS[3]), id="is of a block to come"),
        pytest.param(proof_of(BLOCKS[1]._replace(flags=2)), id="is of another second block"),
        pytest.param(proof_of(chain(2, OTHER_HOUSE)[1]), id="is of another meter"),
        pytest.param(proof_of(BLOCKS[1]._replace(incarnation=2)), id="is of another incarnation"),
        pytest.param(proof_of(BLOCKS[1], by=VOTERS[:2]), id="has too few votes"),
        pytest.param(certificate(BLOCKS[1])._replace(proofs=()).encode(), id="has no vote"),
        pytest.param(
            proof_of(BLOCKS[1], roster=ordered(NEXT_EPOCH).roster, epoch=2),
            id="is of an epoch to come",
        ),
        pytest.param(_by_nobody().encode(), id="has a vote that nobody signed"),
        pytest.param(
            certificate(BLOCKS[1])._replace(proofs=certificate(BLOCKS[1]).proofs[:1] * 3).encode(),
            id="counts one three times",
        ),
        pytest.param(certificate(BLOCKS[1])._replace(height=0).encode(), id="is of no height"),
        pytest.param(
            certificate(BLOCKS[1])._replace(height=1).encode(), id="has its height edited"
        ),
        pytest.param(
            certificate(BLOCKS[1])._replace(block_hash=BLOCKS[0].hash, height=1).encode(),
            id="has its block edited",
        ),
        pytest.param(proof_of(BLOCKS[1])[:-1], id="is cut off"),
        pytest.param(SEALED[1], id="is a block"),
    ],
)
def test_a_certificate_is_refused_that(home: Home, data: bytes) -> None:
    home.bring("certificate", data)
    assert home.refused == {"certificate": 1}
    assert home.neighbours.witnessed == Witnessed()
    assert not (home.state / CERTIFICATE_FILE).exists()


def test_votes_of_an_epoch_that_was_over_certify_no_block_behind_it(tmp_path: Path) -> None:
    """The second block names the order that ended their epoch: a receipt by them is refused too."""
    network = ordered(NEXT_EPOCH)
    ((message, proof),) = network.certified
    late = block(BLOCKS[0])._replace(order=(1, network.orders[0].hash))
    home = Home(tmp_path / "state", held=1)
    assert home.bring("order", encode([message, proof.spell()]))
    _, here = verify_sealed(sealed(late), network.roster.terms(home.neighbours.chain, late.order))
    home.card = [*home.card, sealed(late)]
    home.neighbours.sealed(here, [(2, sealed(late))])
    votes = [(batch([leaf(late)], by, epoch=1), leaf(late)) for by in VOTERS[:3]]
    place = (HOUSE, 1, 2, late.hash)
    home.bring("certificate", certificate_of(place, votes, [], 3).encode())
    assert home.refused == {"certificate": 1}
    assert home.neighbours.witnessed == Witnessed()


def test_below_four_voters_a_certificate_is_a_witness(tmp_path: Path) -> None:
    nodes = tuple(replace(node, votes=int(node.name in VOTERS[:3])) for node in NODES)
    genesis = replace(GENESIS, nodes=nodes)
    roster = found(genesis)
    home = Home(tmp_path, held=0, roster=roster)
    first = BLOCKS[0]._replace(genesis=genesis.hash, previous=genesis.hash, order=(0, genesis.hash))
    message = sealed(first, genesis=genesis.hash)
    home.card = [message]
    _, here = verify_sealed(message, home.neighbours.chain)
    home.neighbours.sealed(here, [(1, message)])
    home.bring("certificate", certificate(first, by=VOTERS[:2], roster=roster).encode())
    assert home.neighbours.witnessed == Witnessed(1, 2, 2, fork_proof=False)


# --- the outbox ---------------------------------------------------------------------------------


def test_the_oldest_blocks_that_are_not_certified_lie_in_the_outbox(tmp_path: Path) -> None:
    home = Home(tmp_path, held=len(SEALED))
    home.neighbours.turn(0)
    for certified in (0, 1, 10, 40, OUT_BLOCKS_MAX, 100, len(SEALED) - 1, len(SEALED)):
        if certified:
            home.bring("certificate", proof_of(BLOCKS[certified - 1]), str(certified))
        last = min(len(SEALED), certified + OUT_BLOCKS_MAX)
        assert home.offered == list(range(certified + 1, last + 1))
    assert home.refused == {}


def test_a_block_is_offered_once_it_is_sealed(home: Home) -> None:
    home.neighbours.turn(0)
    for height in (4, 5, 9, 40):
        home.seal(height)
        assert home.offered == list(range(1, height + 1))
    home.bring("certificate", proof_of(BLOCKS[38]))
    assert home.offered == [40]


def test_a_meter_that_is_alone_for_long_offers_the_oldest_first(home: Home) -> None:
    home.seal(len(SEALED))
    assert home.offered == list(range(1, OUT_BLOCKS_MAX + 1))


def test_what_was_taken_out_of_the_outbox_is_put_there_again(home: Home) -> None:
    home.seal(5)
    for letter in home.outbox.read():
        home.outbox.remove(letter.name)
    home.outbox.put("block-000000000077", b"not ours")
    home.neighbours.turn(1)
    assert home.offered == [1, 2, 3, 4, 5]


def test_where_nobody_votes_nothing_is_offered(tmp_path: Path) -> None:
    nodes = tuple(replace(node, votes=0) for node in NODES)
    home = Home(tmp_path, held=0, roster=found(replace(GENESIS, nodes=nodes)))
    assert home.neighbours.waits == ""
    home.neighbours.turn(0)
    assert (home.neighbours.alone, home.offered, home.outbox.read()) == (True, [], [])


def test_without_a_peer_process_there_is_no_line(tmp_path: Path) -> None:
    home = Home(tmp_path, line=False)
    home.inbox.put("evidence-1", b"x")
    home.neighbours.turn(0)
    assert (home.neighbours.inbox, home.neighbours.read(0), home.outbox.read()) == (None, [], [])
    home.seal(5)
    assert home.outbox.read() == []


def test_a_card_that_cannot_give_a_block_offers_the_others(home: Home) -> None:
    home.card = SEALED[:2]
    home.neighbours.turn(0)
    assert home.offered == [1, 2]


# --- orders -------------------------------------------------------------------------------------

AFTER = ordered(SHORTER, NEXT_EPOCH)
ORDERS = [encode([message, proof.spell()]) for message, proof in AFTER.certified]


def test_orders_come_into_force_in_their_order(home: Home) -> None:
    home.inbox.put("order-000000000002", ORDERS[1])
    home.inbox.put("order-000000000001", ORDERS[0])
    first, second = home.neighbours.read(0)
    assert [first.spelt, second.spelt] == ORDERS
    assert (first.height, first.order_hash) == (1, ordered(SHORTER).roster.head.order_hash)
    assert (second.height, second.order_hash) == (2, AFTER.roster.head.order_hash)
    assert home.neighbours.order == (2, AFTER.roster.head.order_hash)
    assert home.neighbours.roster.committee.epoch == 2
    assert home.neighbours.read(1) == [], "each is told once"


def test_an_order_that_comes_early_is_refused_and_comes_again(home: Home) -> None:
    assert home.bring("order", ORDERS[1]) == []
    assert (home.refused, home.neighbours.order[0]) == ({"order": 1}, 0)
    assert [*home.bring("order", ORDERS[0]), *home.bring("order", ORDERS[1])] == ORDERS


def test_an_order_that_comes_again_changes_nothing(home: Home) -> None:
    home.bring("order", ORDERS[0])
    roster = home.neighbours.roster
    assert home.bring("order", ORDERS[0]) == []
    assert home.neighbours.roster == roster
    assert home.refused == {"order": 1}


def _order(message: bytes = b"", proof: Certificate | None = None) -> bytes:
    good = AFTER.certified[0]
    return encode([message or good[0], (proof or good[1]).spell()])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_order(sealed(AFTER.orders[0], "stranger")), id="a stranger sealed"),
        pytest.param(_order(sealed(AFTER.orders[0], "house-1 seals")), id="a meter sealed"),
        pytest.param(_order(proof=certificate(AFTER.orders[0], by=VOTERS[:2])), id="two certify"),
        pytest.param(_order(proof=certificate(BLOCKS[0])), id="has a block's certificate"),
        pytest.param(_order(proof=AFTER.certified[1][1]), id="has another order's certificate"),
        pytest.param(_order(SEALED[0]), id="is a block"),
        pytest.param(encode([AFTER.certified[0][0]]), id="has no certificate"),
        pytest.param(encode([b"", []]), id="is empty"),
        pytest.param(ORDERS[0] + b"\0", id="has a byte too many"),
    ],
)
def test_an_order_is_refused_that(home: Home, data: bytes) -> None:
    assert home.bring("order", data) == []
    assert (home.refused, home.neighbours.order[0]) == ({"order": 1}, 0)


def test_a_revoked_key_seals_no_more(home: Home) -> None:
    message, proof = ordered(REVOKE).certified[0]
    home.release()
    home.bring("order", encode([message, proof.spell()]))
    assert "the card was stolen" in home.neighbours.waits
    assert "the card was stolen" in Home(home.state, roster=home.neighbours.roster).neighbours.waits


# --- evidence -----------------------------------------------------------------------------------


def test_whoever_else_seals_with_our_key_stops_our_sealing(home: Home) -> None:
    home.release()
    home.bring("evidence", seals_evidence(SEALED[4], sealed(ELSE)))
    assert home.neighbours.waits.startswith("two blocks 5 are sealed with this meter's key")
    assert home.refused == {}
    home.bring("certificate", proof_of(BLOCKS[1]))
    assert home.neighbours.witnessed.height == 2, "what is sealed is certified all the same"
    assert home.neighbours.waits


def _two_votes() -> bytes:
    votes = [vote(block, "regulator") for block in (BLOCKS[4], ELSE)]
    (one, a), (other, b) = ((prove(batch, batch.leaves.index(at)), at) for batch, at in votes)
    return votes_evidence((one, a), (other, b), [])


@pytest.mark.parametrize(
    ("evidence", "refused"),
    [
        pytest.param(
            seals_evidence(
                sealed(chain(1, OTHER_HOUSE)[0]),
                sealed(chain(1, OTHER_HOUSE)[0]._replace(fingerprint=bytes(32))),
            ),
            {},
            id="another meter",
        ),
        pytest.param(
            _two_votes(),
            {},
            id="an authority that attested two of our blocks",
        ),
        pytest.param(seals_evidence(SEALED[4], SEALED[4]), {"evidence": 1}, id="nobody"),
        pytest.param(
            seals_evidence(SEALED[4], SEALED[5]),
            {"evidence": 1},
            id="us, of two blocks that follow",
        ),
        pytest.param(
            seals_evidence(SEALED[4], sealed(ELSE, "stranger")), {"evidence": 1}, id="us, forged"
        ),
        pytest.param(
            seals_evidence(SEALED[4], sealed(ELSE, genesis=bytes(32))),
            {"evidence": 1},
            id="us, of another network",
        ),
    ],
)
def test_evidence_stops_nothing_that_convicts(
    home: Home, evidence: bytes, refused: dict[str, int]
) -> None:
    home.release()
    home.bring("evidence", evidence)
    assert (home.neighbours.waits, home.refused) == ("", refused)


# --- whatever comes -----------------------------------------------------------------------------

KINDS = ("certificate", "answer", "order", "block", "evidence", "rubbish")
GARBAGE = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"\0" * FILE_BYTES_MAX, id="a MiB of zeros"),
    pytest.param(b"\xff" * 1000, id="ones"),
    pytest.param(b"\xd2", id="the beginning of a message"),
    pytest.param(b"\x81" * 60_000 + b"\0", id="lists in lists"),
    pytest.param(b"\x9b" + b"\xff" * 8, id="a list without an end"),
    pytest.param(b"\x5b\x7f" + b"\xff" * 7, id="bytes without an end"),
    pytest.param(b"\xa1\x00\x00", id="a map"),
    pytest.param(encode(["meterd/block/v1"]), id="a context and nothing"),
    pytest.param(encode(["x", [[]], 2**64 - 1, b""]), id="something else"),
    pytest.param(b"\x62\xc3\x28", id="text that is none"),
    pytest.param(SEALED[0][:200], id="half a block"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_is_counted_and_taken_away(home: Home, kind: str, data: bytes) -> None:
    before = home.neighbours.waits
    assert home.bring(kind, data) == []
    assert home.refused == {kind: 1}
    assert home.inbox.read() == []
    assert (home.neighbours.waits, home.neighbours.witnessed) == (before, Witnessed())


@pytest.mark.parametrize("kind", ["certificate", "evidence"])
def test_a_number_that_nobody_can_print_ends_no_meter(home: Home, kind: str) -> None:
    """A path of 10^5000 leaves: an error that says the number would be another error."""
    here = leaf(BLOCKS[1])
    good = prove(batch([here], VOTERS[0]), 0)
    protected, _, _, signature = cbor2.loads(good).value
    path = cbor2.dumps([10**5000, 0, [bytes(32)]])
    unprotected = {396: {-1: [path]}}  # RFC 9942: the inclusion proofs
    vote = (cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected, None, signature])), here)
    data = {
        "certificate": certificate(BLOCKS[1])._replace(proofs=(vote,)).encode(),
        "evidence": encode([VOTES_CONTEXT, [vote[0], list(here)], [vote[0], list(here)], []]),
    }
    home.bring(kind, data[kind])
    assert home.refused == {kind: 1}


def test_a_mistake_of_ours_that_the_peer_process_finds_ends_no_meter(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(_: bytes) -> None:
        raise IndexError

    monkeypatch.setattr(neighbours, "open_certificate", mistaken)
    home.bring("certificate", proof_of(BLOCKS[1]))
    assert home.refused == {"certificate": 1}


WHOLE = {
    "certificate": proof_of(BLOCKS[1]),
    "order": ORDERS[0],
    "block": SEALED[3],
    "evidence": seals_evidence(SEALED[4], sealed(ELSE)),
}


@given(
    st.sampled_from(sorted(WHOLE)),
    st.sampled_from(sorted(WHOLE)),
    st.integers(0, 5000),
    st.binary(max_size=6),
)
def test_a_letter_that_is_damaged_somewhere_is_refused(
    kind: str, said: str, at: int, instead: bytes
) -> None:
    """Whatever it is called, and whatever bytes stand in the place of others."""
    data = WHOLE[kind]
    at %= len(data)
    damaged = data[:at] + instead + data[at + len(instead) :]
    if damaged == data and said == kind:
        return
    with folder() as state:
        home = Home(state)
        home.bring(said, damaged)
        assert home.refused == {said: 1}
        assert (home.neighbours.stopped, home.neighbours.recovered) == ("", [])
        assert (home.neighbours.order[0], home.neighbours.witnessed.height) == (0, 0)


def test_a_flood_takes_turns(home: Home) -> None:
    """What was refused does not come again, and what is good comes through."""
    for number in range(300):
        home.inbox.put(f"rubbish-{number}", os.urandom(50))
    home.inbox.put("certificate-000000000002", proof_of(BLOCKS[1]))
    turns = 0
    while home.inbox.names():
        home.neighbours.read(turns)
        turns += 1
    assert home.refused == {"rubbish": 300}
    assert (home.neighbours.witnessed.height, turns) == (2, 5)


# --- what is kept -------------------------------------------------------------------------------


def test_the_last_certificate_outlasts_a_restart(tmp_path: Path) -> None:
    home = Home(tmp_path, held=90)
    home.bring("certificate", proof_of(BLOCKS[79]))
    again = Home(tmp_path, held=90)
    assert again.neighbours.witnessed == home.neighbours.witnessed
    again.neighbours.turn(0)
    assert again.offered == list(range(81, 91))


def test_it_is_kept_now_and_then_and_not_each_time(tmp_path: Path) -> None:
    home = Home(tmp_path, held=9)
    kept = []
    for height, now_ms in enumerate((0, 1, CERTIFICATE_KEPT_MS - 1, CERTIFICATE_KEPT_MS), start=2):
        home.now_ms = now_ms
        home.bring("certificate", proof_of(BLOCKS[height - 1]))
        kept.append(Home(tmp_path, held=9).neighbours.witnessed.height)
    assert kept == [2, 2, 2, 5]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(proof_of(BLOCKS[1])[:-7], id="cut off"),
        pytest.param(proof_of(BLOCKS[1], by=VOTERS[:2]), id="of too few"),
        pytest.param(proof_of(BLOCKS[8]), id="of a block that a card put back does not hold"),
        pytest.param(proof_of(BLOCKS[1]._replace(flags=2)), id="of another block"),
        pytest.param(proof_of(chain(1, OTHER_HOUSE)[0]), id="of another meter"),
        pytest.param(b"\0" * (FILE_BYTES_MAX + 9), id="too large"),
        pytest.param(None, id="a folder"),
    ],
)
def test_a_kept_certificate_is_ignored_that_is(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / CERTIFICATE_FILE
    if data is None:
        path.mkdir()
    else:
        path.write_bytes(data)
    home = Home(tmp_path)
    assert (home.neighbours.witnessed, home.refused) == (Witnessed(), {"kept": 1})
    home.bring("certificate", proof_of(BLOCKS[1]))
    assert home.neighbours.witnessed.height == 2


def test_a_certificate_that_no_file_keeps_counts_all_the_same(home: Home) -> None:
    (home.state / f".{CERTIFICATE_FILE}").mkdir()
    home.bring("certificate", proof_of(BLOCKS[1]))
    assert (home.neighbours.witnessed.height, home.refused) == (2, {"kept": 1})


def test_votes_beyond_a_quorum_are_named(home: Home) -> None:
    votes = [vote(BLOCKS[2], name) for name in VOTERS]
    every = certificate_of(leaf(BLOCKS[2])[:4], votes, [], 4)
    home.bring("certificate", every.encode())
    assert home.neighbours.witnessed == Witnessed(3, 4, 3, fork_proof=True)


def test_a_meter_among_voters_that_can_ask_nobody_says_which_setting_is_empty(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "home", line=False)
    home.neighbours.turn(0)
    assert "network.brokers is empty" in home.neighbours.waits
