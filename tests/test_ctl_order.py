from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meterd.authority.certificate import spell_order
from meterd.authority.effects import Received
from meterd.ctl.order_changes import CHANGES
from meterd.ctl.order_desk import LETTER
from meterd.device import proofs
from meterd.device.archive import keep_order, open_newest, read_orders
from meterd.device.keys import load_seal
from meterd.device.mailbox import NAME
from meterd.enrolment import Enrolment, enrolment_text
from meterd.ledger.encoding import seal, take_apart
from meterd.ledger.order import decode_order, open_order
from tests import street as streets
from tests.accounts import config_text, replay_lines
from tests.ctl_kit import Ctl, at_a_terminal
from tests.street import GRID, HOUSE, KITCHEN, OTHER_HOUSE, REGULATOR, Street, make_street

if TYPE_CHECKING:
    from collections.abc import Sequence

REASON = "the card was stolen"
REVOKE = ("revoke", "--meter", OTHER_HOUSE, "--reason", REASON)
TWICE = ("--register", "1-0:1.8.0=2")
FAR = "2099-01-01"


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    monkeypatch.delenv("METERD_LINE", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr("meterd.ctl.node.LINE_SYSTEM", Path("/absent"))
    return Ctl(capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street") / "four"
    make_street(folder)
    return folder


def touch(folder: Path) -> None:
    """Let the peers' last words be of just now."""
    now = time.time()
    for shown in folder.glob("*/line/peer.json"):
        os.utime(shown, (now, now))


@pytest.fixture
def street(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "street"
    shutil.copytree(made, folder)
    touch(folder)
    return folder


@pytest.fixture
def grid(street: Path) -> Path:
    return street / GRID


def certify(folder: Path) -> None:
    """Let the distributor's peer process read its outbox, and the street attest what it finds."""
    street = Street(folder)
    with closing(street):
        street.settle()
        street.nodes[GRID].read_outbox()
        street.settle()
        street.nodes[GRID].show()


def letters(grid: Path) -> list[str]:
    return sorted(path.name for path in (grid / "line" / "outbox").iterdir() if path.name != "bell")


def enrolment(
    folder: Path,
    name: str,
    *,
    network: str = streets.NAME,
    role: str = "meter",
    again: str = "",
    votes: int = 0,
) -> Path:
    """Write what `meterctl network enrol` writes on a device."""
    sealing, voting = streets.key(f"{name} seals{again}"), streets.key(f"{name} votes{again}")
    rated = (35_000, 230_000, 3) if role == "meter" else (0, 0, 0)
    keys = (bytes(sealing.verify_key), bytes(voting.verify_key))
    told = Enrolment(network, name, role, *keys, votes, *rated)
    path = folder / f"{name}{again or ''}.toml"
    path.write_text(enrolment_text(told, sealing, voting))
    return path


def assert_narrow(out: str) -> None:
    assert [line for line in out.splitlines() if len(line) > 80] == []


# --- from signing to in force -----------------------------------------------------------------


def test_an_order_is_shown_signed_sent_certified_and_put_away(ctl: Ctl, grid: Path) -> None:
    said = ctl("order", *REVOKE, "--state", grid, "--yes")
    assert (said.status, said.err) == (0, "")
    assert f"  the key of house-2 (1) is good no more: {REASON}" in said.out
    assert "  kind          revoke" in said.out
    assert_narrow(said.out)
    assert letters(grid) == [LETTER.format(1)]
    assert NAME.fullmatch(LETTER.format(1))
    (entry,) = ctl("order", "list", "--state", grid, "--json").json
    assert (entry["state"], entry["sent"], entry["in_force"]) == ("waiting", True, False)
    certify(grid.parent)
    (entry,) = ctl("order", "list", "--state", grid, "--json").json
    assert (entry["state"], entry["in_force"]) == ("certified", True)
    assert entry["seen_by"] == sorted([HOUSE, KITCHEN, OTHER_HOUSE, REGULATOR])
    assert letters(grid) == []
    assert [path.name for path in (grid / "signed").iterdir()] == ["order-000000000001"]
    shown = ctl("order", "list", "--state", grid).out
    assert "1  revoke        in force, by 4 of 4" in shown
    assert_narrow(shown)


def test_the_peers_know_what_is_in_force(ctl: Ctl, grid: Path) -> None:
    ctl("order", *REVOKE, "--state", grid, "--yes")
    certify(grid.parent)
    for name in (KITCHEN, REGULATOR, GRID):
        (entry,) = ctl("order", "list", "--state", grid.parent / name, "--json").json
        assert entry["in_force"], name


def test_orders_may_follow_one_that_waits(ctl: Ctl, grid: Path) -> None:
    ctl("order", *REVOKE, "--state", grid, "--yes")
    said = ctl("order", "interval", "--seconds", 300, "--from", FAR, "--state", grid, "--yes")
    assert said.status == 0
    assert "it follows order 1, and 1 before it wait still" in said.out
    assert letters(grid) == [LETTER.format(1), LETTER.format(2)]
    certify(grid.parent)
    entries = ctl("order", "list", "--state", grid, "--json").json
    assert [entry["state"] for entry in entries] == ["certified", "certified"]
    assert [entry["in_force"] for entry in entries] == [True, False]
    assert "2099-01-01, by 4 of 4" in ctl("order", "list", "--state", grid).out


def test_no_order_yet(ctl: Ctl, grid: Path) -> None:
    assert ctl("order", "list", "--state", grid).out == "grid-co has given no order yet\n"
    assert ctl("order", "list", "--state", grid, "--json").json == []
    assert ctl("order", "send", "--state", grid).out == (
        "nothing to send: all orders are certified\n"
    )


def test_json_is_alone_on_stdout(ctl: Ctl, grid: Path) -> None:
    said = ctl("order", *REVOKE, "--state", grid, "--yes", "--json")
    assert said.json["body"] == {"meter": OTHER_HOUSE, "incarnation": 1, "reason": REASON}
    assert said.json["state"] == "waiting"
    assert "is good no more" in said.err


# --- one height, one order --------------------------------------------------------------------


def test_what_was_signed_to_a_file_is_never_signed_over(
    ctl: Ctl, grid: Path, tmp_path: Path
) -> None:
    out = tmp_path / "order-1.cose"
    said = ctl("order", *REVOKE, "--state", grid, "--yes", "-o", out)
    assert said.status == 0
    assert "meterctl order send order-1.cose" in said.out
    assert letters(grid) == []
    assert "signed, not sent" in ctl("order", "list", "--state", grid).out
    said = ctl("order", "revoke", "--meter", HOUSE, "--reason", "x", "--state", grid, "--yes")
    assert "order 2 of grid-co" in said.out
    sealed = out.read_bytes()
    order = open_order(sealed, streets.public(f"{GRID} seals"), take_order(sealed).genesis)[0]
    assert order.height == 1
    assert ctl("order", "send", out, "--state", grid).out == "in the outbox: order 1, 2\n"
    assert letters(grid) == [LETTER.format(1), LETTER.format(2)]
    certify(grid.parent)
    entries = ctl("order", "list", "--state", grid, "--json").json
    assert [entry["state"] for entry in entries] == ["certified", "certified"]


def take_order(sealed: bytes) -> Any:  # noqa: ANN401 - an order
    return decode_order(take_apart(sealed).payload)


def test_an_order_that_was_signed_elsewhere_is_kept_before_it_is_sent(
    ctl: Ctl, grid: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(grid, elsewhere)
    out = tmp_path / "order-1.cose"
    assert ctl("order", *REVOKE, "--state", elsewhere, "--yes", "-o", out).status == 0
    said = ctl("order", "send", out, "--state", grid, "--json")
    assert said.json == {"sent": [1]}
    (kept,) = (grid / "signed").iterdir()
    assert kept.read_bytes() == out.read_bytes()
    assert ctl("order", "send", out, "--state", grid).out == "in the outbox: order 1\n"


def test_a_second_order_of_a_height_is_never_sent(ctl: Ctl, grid: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(grid, elsewhere)
    out = tmp_path / "order-1.cose"
    ctl("order", *REVOKE, "--state", elsewhere, "--yes", "-o", out)
    again = ("revoke", "--meter", HOUSE, "--reason", "x")
    assert ctl("order", *again, "--state", grid, "--yes").status == 0
    said = ctl("order", "send", out, "--state", grid)
    assert said.status == 78
    assert "another order 1 is signed already: this one must never be sent" in said.err
    shutil.copy(out, grid / "line" / "outbox" / LETTER.format(1))
    said = ctl("order", *REVOKE, "--state", grid, "--yes")
    assert said.status == 74
    assert "two orders 1 are signed" in said.err


def test_a_lost_outbox_is_filled_again(ctl: Ctl, grid: Path) -> None:
    ctl("order", *REVOKE, "--state", grid, "--yes")
    shutil.rmtree(grid / "line")
    said = ctl("order", "send", "--state", grid)
    assert said.status == 69
    assert "has heard 0 of 4 voters lately, and 3 are a quorum" in said.err
    assert "signed, not sent" in ctl("order", "list", "--state", grid).out
    assert not (grid / "line").exists()
    assert ctl("order", "send", "--state", grid, "--unheard").status == 0
    assert letters(grid) == [LETTER.format(1)]


@pytest.mark.parametrize("data", [b"no order", b"", bytes(70_000)], ids=["text", "empty", "long"])
def test_what_is_no_order_is_not_sent(ctl: Ctl, grid: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "o").write_bytes(data)
    said = ctl("order", "send", tmp_path / "o", "--state", grid)
    assert said.status == 78
    assert "is no signed order" in said.err
    assert letters(grid) == []


def test_an_order_under_another_key_is_not_sent(ctl: Ctl, grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    ctl("order", *REVOKE, "--state", grid, "--yes", "-o", out)
    order = take_order(out.read_bytes())
    shutil.rmtree(grid / "signed")
    out.write_bytes(seal(order.encode(), streets.key("a stranger"), order.genesis))
    said = ctl("order", "send", out, "--state", grid)
    assert said.status == 74
    assert "does not hold" in said.err
    assert letters(grid) == []


def test_a_later_order_waits_for_those_before(ctl: Ctl, grid: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(grid, elsewhere)
    ctl("order", *REVOKE, "--state", elsewhere, "--yes")
    out = tmp_path / "o"
    again = ("revoke", "--meter", HOUSE, "--reason", "x")
    ctl("order", *again, "--state", elsewhere, "--yes", "-o", out)
    said = ctl("order", "send", out, "--state", grid)
    assert said.status == 69
    assert "the next is 1" in said.err


@pytest.mark.parametrize("heard_s", [None, 61])
def test_nothing_is_sent_before_a_quorum_is_heard(
    ctl: Ctl, grid: Path, tmp_path: Path, heard_s: int | None
) -> None:
    shown = grid / "line" / "peer.json"
    told = json.loads(shown.read_text())
    for peer in told["peers"][:2]:
        peer["heard_s"] = heard_s
    shown.write_text(json.dumps(told))
    said = ctl("order", *REVOKE, "--state", grid, "--yes")
    assert said.status == 69
    assert "has heard 2 of 4 voters lately" in said.err
    assert not (grid / "signed").exists()
    out = tmp_path / "o"
    assert ctl("order", *REVOKE, "--state", grid, "--yes", "-o", out).status == 0


def test_a_store_that_was_put_aside_does_not_make_an_order_forgotten(ctl: Ctl, grid: Path) -> None:
    for meter in (HOUSE, OTHER_HOUSE):
        again = ("revoke", "--meter", meter, "--reason", "x")
        assert ctl("order", *again, "--state", grid, "--yes").status == 0
    certify(grid.parent)
    assert ctl("order", "list", "--state", grid).status == 0
    assert [path.name for path in (grid / "signed").iterdir()] == ["order-000000000002"]
    for path in grid.glob("peer.db*"):
        path.unlink()
    said = ctl("order", *REVOKE, "--state", grid, "--yes")
    assert said.status == 74
    assert "order 2 is signed, and order 1 is not here" in said.err


# --- who may sign -----------------------------------------------------------------------------


def test_nobody_but_the_distributor_signs(ctl: Ctl, grid: Path) -> None:
    said = ctl("order", *REVOKE, "--state", grid.parent / KITCHEN, "--yes")
    assert said.status == 78
    assert "the key is not grid-co's" in said.err
    assert not (grid.parent / KITCHEN / "signed").exists()


def test_the_key_may_be_in_a_file_elsewhere(ctl: Ctl, grid: Path, tmp_path: Path) -> None:
    (grid / "seal.key").rename(tmp_path / "key")
    said = ctl("order", *REVOKE, "--state", grid, "--yes")
    assert said.status == 69
    assert "there is no sealing key" in said.err
    said = ctl("order", *REVOKE, "--state", grid, "--yes", "--key", tmp_path / "key")
    assert said.status == 0
    text = (tmp_path / "key").read_text()
    (tmp_path / "key").write_text(text[:-9])
    said = ctl("order", *REVOKE, "--state", grid, "--yes", "--key", tmp_path / "key")
    assert said.status == 78
    assert text[:20] not in said.err + said.out


def test_a_key_that_others_may_read_signs_nothing(ctl: Ctl, grid: Path) -> None:
    (grid / "seal.key").chmod(0o640)
    said = ctl("order", *REVOKE, "--state", grid, "--yes", "--key", grid / "seal.key")
    assert said.status == 77
    assert "can be read or changed by others (mode 0640)" in said.err
    assert not (grid / "signed").exists()


def test_it_asks_at_a_terminal_and_takes_a_no(grid: Path) -> None:
    for typed, status in (("n\n", 64), ("y\n", 0)):
        done = at_a_terminal("order", *REVOKE, "--state", grid, typed=typed)
        assert done.status == status
        assert "Sign order 1? It cannot be taken back. [y/N]:" in done.shown
        assert len(letters(grid)) == (typed == "y\n")


def test_without_a_terminal_it_takes_a_yes(
    ctl: Ctl, grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        said = ctl("order", *REVOKE, "--state", grid)
    assert said.status == 64
    assert "add --yes once you know what it will sign" in said.err


# --- kinds ------------------------------------------------------------------------------------


def test_a_meter_is_enrolled_and_given_a_vote(ctl: Ctl, grid: Path, tmp_path: Path) -> None:
    file = enrolment(tmp_path, "house-9")
    begin = ("--register", "import=1234.567", "--register", "1-2:1.8.0=1.5,estimated")
    said = ctl("order", "enrol", file, *begin, "--state", grid, "--yes")
    assert said.status == 0
    assert "enrol house-9 (1): 35 A, 230 V, 3 mains clamps" in said.out
    assert "its registers begin at import 1234.567 kWh, circuit 2 1.500 kWh" in said.out
    assert "house-9 does not vote" in said.out
    said = ctl("order", "roster", "--vote", "house-9", "--state", grid, "--yes")
    assert said.status == 0
    assert "house-9 votes from then on" in said.out
    assert "epoch 2: 5 vote, 4 certify, 1 may lie" in said.out
    certify(grid.parent)
    entries = ctl("order", "list", "--state", grid, "--json").json
    assert [entry["state"] for entry in entries] == ["certified", "certified"]
    assert entries[1]["in_force"]


def test_a_device_that_an_order_enrolled_joins_with_the_orders(
    ctl: Ctl, grid: Path, tmp_path: Path
) -> None:
    config, state, file = tmp_path / "new.toml", tmp_path / "new", tmp_path / "new-9.toml"
    text = config_text(interval_s=streets.INTERVAL_S)
    config.write_text(text.replace(f'name = "{KITCHEN}"', 'name = "new-9"'))
    new = ("--config", config, "--state", state)
    assert ctl("network", "enrol", *new, "--network", streets.NAME, "-o", file).status == 0
    assert ctl("order", "enrol", file, "--state", grid, "--yes").status == 0
    certify(grid.parent)
    with closing(Street(grid.parent)) as street:
        node = street.nodes[HOUSE]
        order = proofs.certificate(node.store, (GRID, 1), 1, node.gossip.roster)
    assert order is not None
    keep_order(tmp_path, spell_order(*order))
    join = ("network", "join", *new, "--genesis", grid / "genesis.cbor", "--yes")
    alone = ctl(*join)
    assert alone.status == 78
    assert "no node called new-9" in alone.err
    assert "--orders" in alone.err
    (tmp_path / "cut").write_bytes((tmp_path / "orders").read_bytes()[:-1])
    assert ctl(*join, "--orders", tmp_path / "cut").status == 78
    spoilt = bytearray((tmp_path / "orders").read_bytes())
    spoilt[-1] ^= 1
    (tmp_path / "spoilt").write_bytes(spoilt)
    refused = ctl(*join, "--orders", tmp_path / "spoilt")
    assert refused.status == 78
    assert "the file of orders holds an order that does not hold" in refused.err
    assert not (state / "genesis.cbor").exists()
    joined = ctl(*join, "--orders", tmp_path / "orders")
    assert joined.status == 0
    assert "meterd run --with-peer" in joined.out
    chain = open_newest(read_orders(state, street.genesis), "new-9")
    assert chain.key_at(1) == bytes(load_seal(state).verify_key)
    head = ctl("head", "--state", state)
    assert head.status == 69
    assert "nothing has run" in head.err


def because(meter: str) -> tuple[str, ...]:
    return "--meter", meter, "--reason", "it goes"


def revoke(ctl: Ctl, grid: Path, meter: str) -> None:
    assert ctl("order", "revoke", *because(meter), "--state", grid, "--yes").status == 0
    certify(grid.parent)


def test_a_device_is_replaced_at_its_last_certified_block(
    ctl: Ctl, grid: Path, tmp_path: Path
) -> None:
    file = enrolment(tmp_path, HOUSE, again=", 2")
    said = ctl("order", "replace", file, "--state", grid, "--yes")
    assert said.status == 78
    assert "the key of house-1 (1) is not revoked" in said.err
    assert "meterctl order revoke --meter house-1" in said.err
    revoke(ctl, grid, HOUSE)
    said = ctl("order", "replace", file, "--state", grid, "--yes", "--json")
    assert said.status == 0
    body = said.json["body"]
    assert (body["old_incarnation"], body["final_height"], body["incarnation"]) == (1, 4, 2)
    assert body["registers"] == {"1-0:1.8.0": {"uj": 4 * 7_200_000_000}}
    assert "house-1 votes with the key it had" in said.err
    certify(grid.parent)
    _, entry = ctl("order", "list", "--state", grid, "--json").json
    assert entry["in_force"]


def test_a_chain_does_not_end_before_what_is_certified(
    ctl: Ctl, grid: Path, tmp_path: Path
) -> None:
    file = enrolment(tmp_path, HOUSE, again=", 2")
    said = ctl("order", "replace", file, "--final", 4, "--state", grid, "--yes")
    assert said.status == 78
    assert "the key of house-1 (1) is not revoked" in said.err
    assert not (grid / "signed").exists()
    revoke(ctl, grid, HOUSE)
    said = ctl("order", "replace", file, "--final", 3, "--state", grid, "--yes")
    assert said.status == 78
    assert "block 4 of house-1 is certified, it cannot end at 3" in said.err
    said = ctl("order", "replace", file, "--final", 5, "--state", grid, "--yes")
    assert said.status == 78
    assert "block 5 of house-1 (1) is not held here: the last is 4" in said.err
    assert [path.name for path in (grid / "signed").iterdir()] == ["order-000000000001"]


def test_a_chain_ends_where_nobody_can_know_more_of_it(
    ctl: Ctl, grid: Path, tmp_path: Path
) -> None:
    file = enrolment(tmp_path, HOUSE, again=", 2")
    assert ctl("order", "revoke", *because(HOUSE), "--state", grid, "--yes").status == 0
    said = ctl("order", "replace", file, "--state", grid, "--yes")
    assert said.status == 78
    assert "is not revoked" in said.err, "nobody has certified that order"
    street = Street(grid.parent)
    with closing(street):
        fifth, sixth = streets.chain(street.genesis, HOUSE, 6)[-2:]
        street.nodes[GRID].feed(Received(HOUSE, street.sign(fifth)))
        street.settle()
    certify(grid.parent)
    street = Street(grid.parent)
    with closing(street):
        street.nodes[GRID].feed(Received(HOUSE, street.sign(sixth)))
        street.settle()
    said = ctl("order", "replace", file, "--state", grid, "--yes", "--json")
    assert said.status == 0, said.err
    assert said.json["body"]["final_height"] == 5


def test_a_key_is_rotated_by_consent(ctl: Ctl, grid: Path) -> None:
    new = streets.public("another key").hex()
    said = ctl("order", "consent", "--state", grid.parent / KITCHEN, "--new-key", new)
    assert said.status == 0
    rotate = ("rotate", "--meter", KITCHEN, "--new-key", new, "--consent", said.out.strip())
    assert ctl("order", *rotate, "--state", grid, "--yes").status == 0
    certify(grid.parent)
    (entry,) = ctl("order", "list", "--state", grid, "--json").json
    assert entry["in_force"]
    told = ctl("order", "consent", "--state", grid.parent / KITCHEN, "--new-key", new, "--json")
    assert told.json["consent"] == said.out.strip()
    assert (told.json["meter"], told.json["incarnation"]) == (KITCHEN, 1)


def test_a_rotation_without_consent_is_not_signed(ctl: Ctl, grid: Path) -> None:
    new = streets.public("another key").hex()
    rotate = ("rotate", "--meter", KITCHEN, "--new-key", new, "--consent", "00" * 64)
    said = ctl("order", *rotate, "--state", grid, "--yes")
    assert said.status == 78
    assert "is not signed by the key before" in said.err


def test_the_secret_key_is_no_new_key(ctl: Ctl, grid: Path) -> None:
    secret = bytes(streets.key(f"{KITCHEN} seals")).hex()
    said = ctl("order", "consent", "--state", grid.parent / KITCHEN, "--new-key", secret)
    assert said.status == 64
    rotate = ("rotate", "--meter", KITCHEN, "--new-key", "5f" * 32, "--consent", "00" * 64)
    said = ctl("order", *rotate, "--state", grid, "--yes")
    assert (said.status, "--new-key: this is a private key" in said.err) == (64, True)


def test_a_forked_chain_is_begun_anew(ctl: Ctl, grid: Path, tmp_path: Path) -> None:
    file = enrolment(tmp_path, OTHER_HOUSE, again=", 2")
    said = ctl("order", "fork-resolve", file, "--state", grid, "--yes")
    assert said.status == 78
    assert "is not frozen" in said.err
    street = Street(grid.parent)
    with closing(street):
        street.settle()
        last = streets.chain(street.genesis, OTHER_HOUSE, 5)[-1]
        for block in (last, last._replace(records=1)):
            for name in (HOUSE, GRID):
                street.nodes[name].feed(Received(OTHER_HOUSE, street.sign(block)))
        street.settle()
    said = ctl("order", "fork-resolve", file, "--state", grid, "--yes")
    assert said.status == 78
    assert "is not revoked" in said.err
    revoke(ctl, grid, OTHER_HOUSE)
    said = ctl("order", "fork-resolve", file, "--state", grid, "--yes")
    assert said.status == 0, said.err
    assert "house-2 (1) has two histories" in said.out
    certify(grid.parent)
    _, entry = ctl("order", "list", "--state", grid, "--json").json
    assert entry["in_force"]


def test_a_roster_may_be_a_list(ctl: Ctl, grid: Path, tmp_path: Path) -> None:
    text = ""
    for name, role in (*streets.ROLES.items(), (GRID, "distributor")):
        node = streets.node(name, role, int(name != GRID))
        text += f'[[node]]\nname = "{name}"\nrole = "{role}"\n'
        text += f"votes = {'true' if node.votes else 'false'}\n"
        text += f'sealing_key = "{node.sealing_key.hex()}"\n'
        text += f'voting_key = "{node.voting_key.hex()}"\n'
    (tmp_path / "same.toml").write_text(text)
    said = ctl("order", "roster", tmp_path / "same.toml", "--state", grid, "--yes")
    assert said.status == 64
    assert "there is nothing to order" in said.err
    joining = enrolment(tmp_path, "feeder-1", role="concentrator", votes=1).read_text()
    added = joining[joining.index("[[node]]") :]
    (tmp_path / "more.toml").write_text(text + added)
    said = ctl("order", "roster", tmp_path / "more.toml", "--state", grid, "--yes")
    assert said.status == 0, said.err
    assert "feeder-1 joins as concentrator, and votes" in said.out
    said = ctl("order", "list", "--state", grid, "--json").json[0]
    assert len(said["body"]["nodes"]) == 6


def test_a_node_without_proof_joins_no_roster(ctl: Ctl, grid: Path, tmp_path: Path) -> None:
    text = enrolment(tmp_path, "feeder-1", role="concentrator").read_text()
    wrong = text.replace('role = "concentrator"', 'role = "authority"')
    assert wrong != text
    (tmp_path / "wrong.toml").write_text(wrong)
    said = ctl("order", "roster", "--add", tmp_path / "wrong.toml", "--state", grid, "--yes")
    assert said.status == 78
    assert "did not sign what is listed" in said.err


def test_a_voter_gets_other_keys_and_another_leaves(ctl: Ctl, grid: Path, tmp_path: Path) -> None:
    file = enrolment(tmp_path, REGULATOR, role="authority", again=", 2", votes=1)
    change = ("roster", "--add", file, "--no-vote", OTHER_HOUSE)
    said = ctl("order", *change, "--state", grid, "--yes")
    assert said.status == 0
    assert "regulator has other keys" in said.out
    assert "house-2 does not vote from then on" in said.out
    assert "fewer than four vote: blocks are witnessed, not fork-proof" in said.out


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (
            ("revoke", "--meter", "house-9", "--reason", "x"),
            64,
            "no meter of elm-street is house-9",
        ),
        (("revoke", "--meter", GRID, "--reason", "x"), 64, "no meter of elm-street is grid-co"),
        (("revoke", "--meter", HOUSE, "--reason", "x" * 201), 64, "--reason"),
        (("revoke", "--meter", HOUSE, "--reason", "a\nb"), 64, "--reason"),
        (("revoke", "--meter", HOUSE), 64, "required: --reason"),
        (("interval", "--seconds", "7", "--from", FAR), 64, "do not divide a day"),
        (("interval", "--seconds", "7200", "--from", FAR), 64, "Europe/Paris"),
        (("interval", "--seconds", "900", "--from", f"{FAR}T01:00"), 64, "is no midnight"),
        (("interval", "--seconds", "900", "--from", "2026-01-01"), 64, "is over"),
        (("roster", "--vote", "house-9"), 64, "no node is house-9"),
        (("roster", "--vote", HOUSE, "--remove", HOUSE), 64, "named twice"),
        (("roster", "--remove", HOUSE), 78, "the roster leaves out house-1, which meters"),
        (("roster", "--remove", GRID), 78, "the roster leaves out the distributor"),
        (("roster",), 64, "there is nothing to order"),
        (("roster", "{file}", "--vote", HOUSE), 64, "a list of all nodes goes without"),
        (("enrol", "{file}", "--register", "import=x"), 64, "expected CODE=KWH"),
        (("enrol", "{file}", "--register", "import=-1"), 64, "expected CODE=KWH"),
        (("enrol", "{file}", "--register", "import=NaN"), 64, "expected CODE=KWH"),
        (("enrol", "{file}", "--register", "heat=1"), 64, "expected CODE=KWH"),
        (("enrol", "{file}", "--register", "import=1", *TWICE), 64, "given twice"),
        (("enrol", "{genesis}"), 78, "genesis.cbor"),
        (("enrol", "/absent"), 69, "/absent"),
        (("rotate", "--meter", HOUSE, "--new-key", "5f", "--consent", "00"), 64, "--new-key"),
        (("enrol", "{file}", "-o", "{genesis}"), 78, "is there already"),
        (("frobnicate",), 64, "invalid choice"),
        ((), 64, "required: KIND"),
    ],
)
def test_nothing_is_signed_where_it_cannot_be(  # noqa: PLR0917 - a table's columns
    ctl: Ctl, grid: Path, tmp_path: Path, arguments: Sequence[str], status: int, told: str
) -> None:
    file, genesis = enrolment(tmp_path, "house-9"), grid / "genesis.cbor"
    given = [argument.format(file=file, genesis=genesis) for argument in arguments]
    said = ctl("order", *given, *(("--state", grid, "--yes") if given else ()))
    assert said.status == status, said
    assert told in said.err
    assert "Traceback" not in said.err
    assert letters(grid) == []
    assert not (grid / "signed").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"network": "oak-street"}, "expected an enrolment in elm-street, got oak-street"),
        ({"role": "concentrator"}, "house-9 meters nothing"),
    ],
)
def test_an_enrolment_that_does_not_fit_is_refused(
    ctl: Ctl, grid: Path, tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    file = enrolment(tmp_path, "house-9", **changed)
    said = ctl("order", "enrol", file, "--state", grid, "--yes")
    assert said.status == 78
    assert told in said.err


def test_a_meter_that_meters_already_is_not_enrolled(ctl: Ctl, grid: Path, tmp_path: Path) -> None:
    file = enrolment(tmp_path, HOUSE, again=", 2")
    said = ctl("order", "enrol", file, "--state", grid, "--yes")
    assert said.status == 78
    assert "the network would refuse this order: house-1 has a chain that has not ended" in said.err


def test_a_network_without_a_distributor_takes_no_orders(ctl: Ctl, tmp_path: Path) -> None:
    replay_lines(["0\t11 1 0 0 0 0 0 231\n"], config_text(), tmp_path / "one")
    said = ctl("order", *REVOKE, "--state", tmp_path / "one", "--yes")
    assert said.status == 69
    assert "has no distributor" in said.err


@pytest.mark.parametrize(
    "kind",
    [*CHANGES, "consent", "send", "list"],
)
def test_each_kind_has_help_in_eighty_columns(
    ctl: Ctl, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = ctl("order", kind, "--help")
    assert said.status == 0
    assert_narrow(said.out)
    assert "\nexamples:\n  meterctl order" in said.out
