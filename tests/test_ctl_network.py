from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meterd.authority.attestation import Header, Leaf, open_batch, prove, sign_batch
from meterd.authority.certificate import (
    open_receipt,
    seals_evidence,
    verify_receipt,
    votes_evidence,
)
from meterd.authority.effects import Received
from meterd.ctl import main
from meterd.ctl.node import _ROWS, _SHAPE
from meterd.ctl.peers import ago
from meterd.ledger.account import decode_genesis
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import encode, seal, take_apart
from tests import street as streets
from tests.accounts import config_text, replay_lines
from tests.ctl_kit import Ctl, at_a_terminal, edit
from tests.rig import MIDNIGHT_S, Rig
from tests.street import GRID, HOUSE, KITCHEN, OTHER_HOUSE, REGULATOR, Street, make_street

if TYPE_CHECKING:
    from meterd.ledger.account import Genesis

VOTERS = [HOUSE, OTHER_HOUSE, KITCHEN, REGULATOR]


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    monkeypatch.delenv("METERD_LINE", raising=False)
    monkeypatch.setattr("meterd.ctl.node.LINE_SYSTEM", Path("/absent"))
    return Ctl(capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street") / "four"
    make_street(folder)
    return folder


@pytest.fixture(scope="module")
def made_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street") / "three"
    make_street(folder, voters=3)
    return folder


@pytest.fixture(scope="module")
def made_forked(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The street, in which house-2 has sealed two blocks 5."""
    folder = tmp_path_factory.mktemp("street") / "forked"
    shutil.copytree(made, folder)
    street = Street(folder)
    with closing(street):
        street.settle()
        last = streets.chain(street.genesis, OTHER_HOUSE, 5)[-1]
        other = last._replace(records=last.records + 1)
        for name in VOTERS:
            block = last if name in (HOUSE, KITCHEN) else other
            street.nodes[name].feed(Received(OTHER_HOUSE, street.sign(block)))
        street.settle()
        street.show()
    return folder


@pytest.fixture
def street(made: Path, tmp_path: Path) -> Path:
    """A street of one's own; its peers have just written what they show."""
    folder = tmp_path / "street"
    shutil.copytree(made, folder)
    now = time.time()
    for shown in folder.glob("*/line/peer.json"):
        os.utime(shown, (now, now))
    return folder


@pytest.fixture
def forked(made_forked: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "forked"
    shutil.copytree(made_forked, folder)
    now = time.time()
    for shown in folder.glob("*/line/peer.json"):
        os.utime(shown, (now, now))
    return folder


def assert_narrow(out: str) -> None:
    assert [line for line in out.splitlines() if len(line) > 80] == []


# --- head -------------------------------------------------------------------------------------


def test_the_head_is_sealed_and_certified(ctl: Ctl, street: Path) -> None:
    said = ctl("head", "--state", street / KITCHEN, "--json")
    assert (said.status, said.err) == (0, "")
    told = said.json
    assert told["sealed"]["height"] == told["certified"]["height"] == 4
    assert told["sealed"]["hash"] == told["certified"]["hash"]
    assert (told["word"], told["certified"]["fork_proof"]) == ("certified", True)
    assert (told["certified"]["quorum"], told["certified"]["voters"]) == (3, 4)
    assert told["certified"]["by"] == sorted(VOTERS)
    assert told["certified"]["strength"] == {"seen": 3, "timely": 3, "plausible": 3}
    text = ctl("head", "--state", street / KITCHEN).out
    assert "by 4 of 4 (a quorum is 3): house-1, house-2, kitchen-12, regulator" in text
    assert_narrow(text)


def test_the_last_line_of_a_head_serves_verify(ctl: Ctl, street: Path) -> None:
    last = ctl("head", "--state", street / KITCHEN).out.splitlines()[-1]
    known = ("--genesis", street / GRID / "genesis.cbor", "--head", last.removeprefix("head "))
    assert ctl("verify", street / KITCHEN, *known).status == 0


def test_without_a_store_the_certificate_beside_the_account_tells(ctl: Ctl, street: Path) -> None:
    (street / KITCHEN / "peer.db").unlink()
    told = ctl("head", "--state", street / KITCHEN, "--json").json
    assert told["certified"]["height"] == 4
    assert len(told["certified"]["by"]) == 3
    (street / KITCHEN / "certificate").unlink()
    said = ctl("head", "--state", street / KITCHEN)
    assert said.status == 0
    assert "nothing yet, as far as this node knows" in said.out


def test_without_a_certificate_file_the_store_tells(ctl: Ctl, street: Path) -> None:
    (street / KITCHEN / "certificate").unlink()
    assert ctl("head", "--state", street / KITCHEN, "--json").json["certified"]["height"] == 4


def test_a_certificate_that_does_not_hold_counts_for_nothing(ctl: Ctl, street: Path) -> None:
    (street / KITCHEN / "peer.db").unlink()
    edit(street / KITCHEN / "certificate", -1)
    assert ctl("head", "--state", street / KITCHEN, "--json").json["certified"] is None


def test_three_voters_witness(ctl: Ctl, made_three: Path) -> None:
    said = ctl("head", "--state", made_three / KITCHEN)
    assert said.status == 0
    assert "witnessed  4" in said.out
    assert "witnessed, not fork-proof" in said.out
    told = ctl("head", "--state", made_three / KITCHEN, "--json").json
    assert (told["word"], told["certified"]["fork_proof"]) == ("witnessed", False)


def test_a_network_of_one_is_certified_by_nobody(ctl: Ctl, tmp_path: Path) -> None:
    line = f"{MIDNIGHT_S}\t11 900.0 0.0 0.0 4100.0 0.0 0.0 231.4\n"
    replay_lines([line], config_text(), tmp_path / "one")
    said = ctl("head", "--state", tmp_path / "one")
    assert said.status == 0
    assert "nobody votes here: what is sealed counts as certified" in said.out
    assert ctl("head", "--state", tmp_path / "one", "--json").json["word"] == "standalone"
    said = ctl("peers", "--state", tmp_path / "one")
    assert said.status == 69
    assert "a meter that is a network of one has no neighbours" in said.err
    said = ctl("receipt", "--height", 1, "--state", tmp_path / "one", "-o", tmp_path / "r")
    assert said.status == 69
    assert "nobody votes" in said.err


def test_a_card_put_back_is_behind_its_neighbours(ctl: Ctl, street: Path) -> None:
    blocks = street / KITCHEN / "blocks"
    (last,) = blocks.iterdir()
    data = last.read_bytes()
    at = max(at for at in range(len(data)) if data[at:].startswith(b"meterd/block/v1"))
    last.write_bytes(data[: at - 100])
    said = ctl("head", "--state", street / KITCHEN)
    assert "the neighbours hold block 4, this card does not" in said.err


def test_a_card_with_another_block_than_certified_is_told(ctl: Ctl, street: Path) -> None:
    """The neighbours know a history of this meter that its card does not hold."""
    shutil.rmtree(street / KITCHEN / "blocks")
    shutil.rmtree(street / KITCHEN / "events")
    shutil.rmtree(street / KITCHEN / "samples")
    for stream in ("samples", "events", "blocks"):
        (street / KITCHEN / stream).mkdir()
    rig = Rig(street / KITCHEN)
    rig.start(MIDNIGHT_S)
    rig.rows(60, 4000)
    rig.rows(20)
    rig.stop()
    said = ctl("head", "--state", street / KITCHEN)
    assert said.status == 74
    assert "is not the one that the neighbours certified" in said.err


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        (GRID, 0, "sealed     nothing yet"),
        (REGULATOR, 69, "regulator has no chain"),
        (HOUSE, 0, "certified  4"),
    ],
)
def test_a_node_without_an_account_has_a_head_if_it_has_a_chain(
    ctl: Ctl, street: Path, name: str, status: int, told: str
) -> None:
    said = ctl("head", "--state", street / name)
    assert said.status == status
    assert told in said.out + said.err


# --- peers ------------------------------------------------------------------------------------


def test_what_a_peer_process_shows_has_the_shape_that_is_read(street: Path) -> None:
    shown = json.loads((street / KITCHEN / "line" / "peer.json").read_text())
    assert shown.keys() == _SHAPE.keys()
    for table in ("brokers", "peers", "chains"):
        assert shown[table], table
        assert all(entry.keys() == _ROWS[table].keys() for entry in shown[table])


def test_peers_shows_neighbours_brokers_and_chains(ctl: Ctl, street: Path) -> None:
    said = ctl("peers", "--state", street / KITCHEN)
    assert (said.status, said.err) == (0, "")
    assert "kitchen-12 in elm-street: 4 vote, 3 certify, 1 may lie" in said.out
    assert "yes        5           0  mqtts://broker.example:8883" in said.out
    assert "grid-co    distributor   no" in said.out
    assert "house-1 (1)            4  4 of 4    4" in said.out
    assert_narrow(said.out)
    told = ctl("peers", "--state", street / KITCHEN, "--json").json
    assert told["source"] == "peer"
    assert [chain["name"] for chain in told["chains"]][1:] == [HOUSE, OTHER_HOUSE, KITCHEN]


@pytest.mark.parametrize("gone", ["old", "absent", "damaged", "of another shape", "from tomorrow"])
def test_a_peer_that_does_not_run_is_told_and_the_store_is_shown(
    ctl: Ctl, street: Path, gone: str
) -> None:
    shown = street / KITCHEN / "line" / "peer.json"
    told = json.loads(shown.read_text())
    if gone == "absent":
        shown.unlink()
    elif gone == "damaged":
        shown.write_text("{")
    elif gone == "of another shape":
        shown.write_text(json.dumps(told | {"chains": [{"name": 7}]}))
    else:
        at = time.time() + (-11 if gone == "old" else 86_400)
        os.utime(shown, (at, at))
    said = ctl("peers", "--state", street / KITCHEN, "--json")
    assert said.status == 0
    assert "the peer process does not run" in said.err
    assert "this is what its database says" in said.err
    fresh = said.json
    assert fresh["source"] == "store"
    for name in ("name", "network", "voters", "quorum", "epoch", "chains", "accused"):
        assert fresh[name] == told[name], name
    text = ctl("peers", "--state", street / KITCHEN).out
    assert "not known" in text
    assert_narrow(text)


def test_what_is_shown_cannot_write_on_the_terminal(ctl: Ctl, street: Path) -> None:
    shown = street / KITCHEN / "line" / "peer.json"
    told = json.loads(shown.read_text())
    told["peers"][0]["role"] = "me\x1b[2Jter"
    shown.write_text(json.dumps(told))
    out = ctl("peers", "--state", street / KITCHEN).out
    assert "me?[2Jter" in out
    assert "\x1b" not in out


def test_frozen_chains_and_the_accused_come_first(ctl: Ctl, forked: Path) -> None:
    for json_gone in (False, True):
        if json_gone:
            (forked / HOUSE / "line" / "peer.json").unlink()
        lines = ctl("peers", "--state", forked / HOUSE).out.splitlines()
        assert lines[0] == "accused: house-2 sealed two blocks 5"
        assert lines[1].startswith("frozen: house-2 (1) at its certified block ")
        assert lines[1].endswith(": two blocks 5 are sealed")
        first = lines[next(at for at, line in enumerate(lines) if line.startswith("chain")) + 1]
        assert first.startswith("house-2 (1)")
        assert first.endswith(", frozen")


def test_peers_with_the_longest_names_and_much_to_tell_has_eighty_columns(
    ctl: Ctl, street: Path
) -> None:
    path = street / KITCHEN / "line" / "peer.json"
    told, name = json.loads(path.read_text()), "n" * 32
    alarm = {"alarm": "case_switch_stuck", "since_ms": 1_800_000_000_000, "number": 123_456}
    meter = {"incarnation": 1, "number": 1, "wall_ms": 1, "kind": "alarm", "alarm": "", "untold": 0}
    told |= {
        "name": name,
        "network": "w" * 32,
        "accused": [{"name": name, "role": "authority", "height": 123_456}],
        "refused": [{"name": name, "height": 123_456, "reason": "word " * 30}],
        "alarms": [{**meter, "name": name, "standing": [alarm]}],
        "counts": dict.fromkeys(("own_alarm_old", "not_for_this_network", "not_a_message"), 10**9),
    }
    told["chains"][0] |= {"name": name, "height": 10**6, "frozen": "word " * 30}
    told["peers"][0] |= {"name": name}
    path.write_text(json.dumps(told))
    lines = ctl("peers", "--state", street / KITCHEN).out.splitlines()
    for word in ("accused: ", "frozen: ", "alarm: ", "refused: ", "messages that came"):
        assert [line for line in lines if line.startswith(word)], word
    assert [line for line in lines if len(line) > 80] == []


def test_peers_without_the_peer_process_says_that_it_does_not_run(ctl: Ctl, street: Path) -> None:
    (street / KITCHEN / "peer.db").unlink()
    old = time.time() - 300
    os.utime(street / KITCHEN / "line" / "peer.json", (old, old))
    said = ctl("peers", "--state", street / KITCHEN)
    assert (said.status, said.out) == (69, "")
    assert "error: the peer process does not run (it was last heard of 5 min ago)" in said.err
    assert "hint: `systemctl start meterd-peer`" in said.err


def test_the_line_may_be_elsewhere(
    ctl: Ctl, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = tmp_path / "run"
    (street / KITCHEN / "line").rename(line)
    (street / KITCHEN / "peer.db").rename(tmp_path / "other.db")
    where = ("--line", line, "--store", tmp_path / "other.db")
    assert ctl("peers", "--state", street / KITCHEN, *where).err == ""
    monkeypatch.setenv("METERD_LINE", str(line))
    assert ctl("peers", "--state", street / KITCHEN).err == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "never"), (119, "119 s ago"), (120, "2 min ago"), (7200, "2 h ago")],
)
def test_times_past_are_in_words(seconds: int | None, shown: str) -> None:
    assert ago(seconds) == shown


# --- the store --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "told"),
    [
        (b"not a database, and longer than a header of one" * 40, 74, "is damaged"),
        (b"", 78, "is no peer's database"),
    ],
)
def test_a_store_that_cannot_be_read_is_told(
    ctl: Ctl, street: Path, data: bytes, status: int, told: str
) -> None:
    (street / KITCHEN / "peer.db").write_bytes(data)
    said = ctl("evidence", "--state", street / KITCHEN)
    assert said.status == status
    assert told in said.err


def test_a_store_of_another_network_is_refused(ctl: Ctl, street: Path, made_three: Path) -> None:
    shutil.copy(made_three / KITCHEN / "peer.db", street / KITCHEN / "peer.db")
    assert ctl("head", "--state", street / KITCHEN).status == 78


def test_nothing_is_made_where_there_is_no_store(ctl: Ctl, street: Path) -> None:
    path = street / KITCHEN / "peer.db"
    path.unlink()
    assert ctl("evidence", "--state", street / KITCHEN).status == 69
    assert not path.exists()


def test_a_store_is_left_as_it_is(ctl: Ctl, street: Path) -> None:
    def dump() -> list[str]:
        with closing(sqlite3.connect(street / KITCHEN / "peer.db")) as database:
            return list(database.iterdump())

    before = dump()
    for command in ("head", "peers", "evidence"):
        assert ctl(command, "--state", street / KITCHEN).status == 0
    assert dump() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes nobody here")
def test_a_stranger_sees_what_a_running_peer_shows_and_no_more(ctl: Ctl, street: Path) -> None:
    for folder in (street.parent, street, street / KITCHEN, street / KITCHEN / "line"):
        folder.chmod(0o755)
    folders = [folder for folder in street.parents if folder.stat().st_mode & 0o005 != 0o005]
    kept = [(folder, folder.stat().st_mode) for folder in folders]
    for folder in folders:
        folder.chmod(0o755)
    where = ("--state", street / KITCHEN, "--json")
    said = [ctl("peers", *where), ctl("evidence", *where)]  # as root: what is imported is there
    os.seteuid(65_534)
    try:
        said = [ctl("peers", *where), ctl("evidence", *where)]
    finally:
        os.seteuid(0)
        for folder, mode in kept:
            folder.chmod(mode)
    assert [each.status for each in said] == [0, 77]
    assert "run this as the user of the peer process" in said[1].err


# --- receipts ---------------------------------------------------------------------------------


@pytest.fixture
def receipt(ctl: Ctl, street: Path, tmp_path: Path) -> Path:
    path = tmp_path / "block-2.receipt"
    said = ctl("receipt", "--height", 2, "--state", street / KITCHEN, "-o", path)
    assert said.status == 0
    assert "block 2 of kitchen-12 (1)" in said.out
    return path


def test_a_receipt_proves_its_block_to_a_stranger(ctl: Ctl, street: Path, receipt: Path) -> None:
    genesis = street / GRID / "genesis.cbor"
    said = ctl("verify", receipt, "--genesis", genesis)
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "good: block 2 of kitchen-12 (1) in elm-street is certified"
    assert "  from   2026-01-01T01:01:00+01:00 (2026-01-01T00:01:00Z)" in lines
    assert "  certified by 3 of 4 voters (a quorum is 3), epoch 1:" in lines
    assert "    registers seen by 3, time checked by 3, plausible for 3" in lines
    assert_narrow(said.out)
    told = ctl("verify", receipt, "--genesis", genesis, "--json").json
    opened = open_receipt(receipt.read_bytes())
    block = decode_block(take_apart(opened.sealed).payload)
    assert (told["verdict"], told["kind"], told["height"]) == ("good", "receipt", 2)
    assert told["block_hash"] == block.hash.hex()
    assert told["key"] == ctl("key", "--state", street / KITCHEN, "--json").json["key"]
    register = told["registers"]["1-0:1.8.0"]
    assert register["uj"] == register["last_uj"] - register["first_uj"] > 0
    assert told["fork_proof"] is True


def test_any_node_has_the_receipts_of_all(
    street: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    where = ["--state", str(street / REGULATOR)]
    assert main(["receipt", "--height", "3", "--meter", HOUSE, *where]) == 0
    genesis = decode_genesis((street / GRID / "genesis.cbor").read_bytes())
    receipt = open_receipt(capsysbinary.readouterr().out)
    assert verify_receipt(receipt, genesis).block.meter == HOUSE


def test_a_receipt_of_three_voters_is_witnessed(ctl: Ctl, made_three: Path, tmp_path: Path) -> None:
    path = tmp_path / "r"
    said = ctl("receipt", "--height", 1, "--state", made_three / KITCHEN, "-o", path)
    assert "witnessed by 2" in said.out
    said = ctl("verify", path, "--genesis", made_three / GRID / "genesis.cbor")
    assert said.status == 0
    assert "is witnessed" in said.out
    assert "one liar among the voters can certify another history" in said.out


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("--height", "5"), 69, "block 5 of kitchen-12 (1) is not held here: the last is block 4"),
        (("--height", "1", "--meter", "house-9"), 69, "house-9 meters nothing in elm-street"),
        (("--height", "1", "--meter", GRID), 69, "grid-co meters nothing"),
        (("--height", "1", "--incarnation", "2"), 69, "kitchen-12 (2) is not held here"),
        (("--height", "0"), 64, "above 0"),
        (("--height", "1", "-o", "{genesis}"), 78, "is there already"),
    ],
)
def test_no_receipt_is_written(
    ctl: Ctl, street: Path, arguments: tuple[str, ...], status: int, told: str
) -> None:
    genesis = street / GRID / "genesis.cbor"
    data = genesis.read_bytes()
    given = [argument.format(genesis=genesis) for argument in arguments]
    if "-o" not in given:
        given += ["-o", str(street / "new")]
    said = ctl("receipt", "--state", street / KITCHEN, *given)
    assert said.status == status
    assert told in said.err
    assert genesis.read_bytes() == data


def test_a_block_that_nobody_attested_has_no_receipt(ctl: Ctl, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "street"
    shutil.copytree(made, folder)
    street = Street(folder)
    with closing(street):
        fifth = streets.chain(street.genesis, HOUSE, 5)[-1]
        street.seal(HOUSE, [street.sign(fifth)])
    said = ctl("receipt", "--height", 5, "--state", folder / HOUSE, "-o", tmp_path / "r")
    assert said.status == 69
    assert "block 5 of house-1 is not certified yet: that is so up to block 4" in said.err


def test_a_terminal_gets_no_receipt(street: Path) -> None:
    done = at_a_terminal("receipt", "--state", street / KITCHEN, "--height", 1)
    assert done.status == 64
    assert "stdout is a terminal" in done.shown


def test_a_receipt_takes_a_genesis(ctl: Ctl, receipt: Path) -> None:
    said = ctl("verify", receipt)
    assert said.status == 64
    assert "takes --genesis FILE" in said.err


@pytest.mark.parametrize(
    "arguments", [("--head", "2:" + "00" * 32), ("--workers", "2")], ids=["head", "workers"]
)
def test_a_receipt_takes_no_options_of_an_account(
    ctl: Ctl, street: Path, receipt: Path, arguments: tuple[str, ...]
) -> None:
    genesis = street / GRID / "genesis.cbor"
    said = ctl("verify", receipt, "--genesis", genesis, *arguments)
    assert said.status == 64


def test_a_receipt_under_another_genesis_is_bad(ctl: Ctl, made_three: Path, receipt: Path) -> None:
    said = ctl("verify", receipt, "--genesis", made_three / GRID / "genesis.cbor", "--json")
    assert said.status == 1
    assert said.json["verdict"] == "bad"
    assert "another network" in said.json["reason"]


def test_a_receipt_is_held_against_a_known_key(ctl: Ctl, street: Path, receipt: Path) -> None:
    genesis = street / GRID / "genesis.cbor"
    key = streets.public(f"{KITCHEN} seals").hex()
    assert ctl("verify", receipt, "--genesis", genesis, "--key", key).status == 0
    said = ctl("verify", receipt, "--genesis", genesis, "--key", "00" * 32)
    assert said.status == 1
    assert said.out.startswith("bad: ")
    assert "not with the given key" in said.out


def test_every_flipped_byte_is_bad_or_unreadable(ctl: Ctl, street: Path, receipt: Path) -> None:
    genesis = street / GRID / "genesis.cbor"
    data = receipt.read_bytes()
    statuses = set()
    for at in range(0, len(data), 13):
        receipt.write_bytes(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
        said = ctl("verify", receipt, "--genesis", genesis, "--json")
        assert said.status in (1, 2), at
        assert "Traceback" not in said.err
        statuses.add(said.status)
    assert statuses == {1, 2}


@pytest.mark.parametrize(
    "data",
    [b"", b"not cbor", encode(["meterd/receipt/v1", b"", [], []]), encode(["meterd/receipt/v1"])],
)
def test_what_is_no_receipt_is_unreadable(
    ctl: Ctl, street: Path, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "r"
    path.write_bytes(data)
    said = ctl("verify", path, "--genesis", street / GRID / "genesis.cbor", "--json")
    assert said.status == 2
    assert said.json["verdict"] == "unreadable"


# --- evidence ---------------------------------------------------------------------------------


def test_nobody_is_accused_in_an_honest_street(ctl: Ctl, street: Path) -> None:
    said = ctl("evidence", "--state", street / KITCHEN)
    assert (said.status, said.out) == (0, "nobody is accused: no two histories have been seen\n")
    assert ctl("evidence", "--state", street / KITCHEN, "--json").json == []


def test_evidence_is_shown_in_words_and_travels(ctl: Ctl, forked: Path, tmp_path: Path) -> None:
    said = ctl("evidence", "--state", forked / KITCHEN)
    assert said.status == 0
    assert "house-2 sealed two blocks 5 (chain 1)" in said.out
    out = tmp_path / "out"
    told = ctl("evidence", "--state", forked / KITCHEN, "-o", out, "--json").json
    (entry,) = told
    assert (entry["name"], entry["role"], entry["height"]) == (OTHER_HOUSE, "meter", 5)
    assert [str(path) for path in out.iterdir()] == [entry["file"]]
    again = ctl("evidence", "--state", forked / KITCHEN, "-o", out)
    assert again.status == 0
    assert "is there already" in again.err
    genesis = forked / GRID / "genesis.cbor"
    said = ctl("verify", entry["file"], "--genesis", genesis)
    assert said.status == 0
    assert said.out.startswith("good: house-2 sealed two blocks 5 (chain 1)")
    said = ctl("verify", entry["file"], "--genesis", genesis, "--json")
    assert (said.json["verdict"], said.json["kind"]) == ("good", "evidence")
    assert ctl("verify", entry["file"], "--genesis", genesis, "--key", "00" * 32).status == 64


def test_kept_evidence_that_convicts_nobody_is_told(ctl: Ctl, forked: Path) -> None:
    path = forked / KITCHEN / "peer.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE evidence SET data = ?", (encode(["meterd/evidence-votes/v1"]),))
        database.commit()
    said = ctl("evidence", "--state", forked / KITCHEN)
    assert said.status == 74
    assert "does not hold" in said.err


def leaf(height: int, block_hash: bytes) -> Leaf:
    return Leaf(HOUSE, 1, height, block_hash, 7)


def voted(genesis: bytes, what: Leaf, number: int, epoch: int = 1) -> tuple[bytes, Leaf]:
    header = Header(epoch, number, bytes(32), 0, 0)
    message = sign_batch(header, [what], streets.key(f"{REGULATOR} votes"), genesis)
    return prove(open_batch(message, genesis), 0), what


@pytest.mark.parametrize(
    ("epoch", "verdict"),
    [
        (1, "0 good: regulator, an authority, attested two histories of house-1 (1), from block 3"),
        (2, "2 it depends on orders that the genesis does not hold"),
    ],
)
def test_evidence_against_an_authority(
    ctl: Ctl, street: Path, tmp_path: Path, epoch: int, verdict: str
) -> None:
    path = street / GRID / "genesis.cbor"
    genesis = decode_genesis(path.read_bytes()).hash
    one = voted(genesis, leaf(3, bytes(32)), 1, epoch)
    other = voted(genesis, leaf(3, b"\1" * 32), 2, epoch)
    (tmp_path / "e").write_bytes(votes_evidence(one, other, []))
    said = ctl("verify", tmp_path / "e", "--genesis", path)
    status, told = verdict.split(" ", 1)
    assert said.status == int(status)
    assert told in said.out + said.err


def block_with(genesis: Genesis, **changes: Any) -> bytes:  # noqa: ANN401
    block = streets.chain(genesis, HOUSE, 2)[-1]._replace(**changes)
    return seal(block.encode(), streets.key(f"{HOUSE} seals"), genesis.hash)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"height": 3}, "1 the two are of different places"),
        ({"order": (1, bytes(32)), "records": 1}, "2 it depends on orders"),
    ],
)
def test_evidence_that_convicts_nobody(
    ctl: Ctl, street: Path, tmp_path: Path, changes: dict[str, Any], verdict: str
) -> None:
    path = street / GRID / "genesis.cbor"
    genesis = decode_genesis(path.read_bytes())
    other = block_with(genesis, **changes)
    (tmp_path / "e").write_bytes(seals_evidence(block_with(genesis), other))
    said = ctl("verify", tmp_path / "e", "--genesis", path)
    status, told = verdict.split(" ", 1)
    assert said.status == int(status)
    assert told in said.out + said.err
