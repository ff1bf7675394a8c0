"""`meterctl replace`: where a chain ends, and that the office's lines are taken as they are."""

from __future__ import annotations

import shlex
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from meterd.authority.certificate import spell_order
from meterd.ctl.account import StoredAccount
from meterd.ctl.replace_rules import END, End, lines, office_commands, unsafe
from meterd.device import proofs
from meterd.device.archive import keep_order, open_newest, read_orders
from meterd.device.keys import load_seal
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import take_apart
from meterd.metering.energy import obis_code
from tests import street as streets
from tests.accounts import config_text, replay_lines
from tests.rig import MIDNIGHT_S, Rig
from tests.street import GRID, HOUSE, IMPORT, KITCHEN, OTHER_HOUSE, Street, make_street
from tests.test_ctl_order import certify, ctl, touch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ctl_kit import Ctl, Said

__all__ = ["ctl"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replacing") / "street"
    make_street(folder)
    return folder


@pytest.fixture
def street(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "street"
    shutil.copytree(made, folder)
    touch(folder)
    return folder


# --- what is known, and what follows --------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        pytest.param(END._replace(certified=(0, "")), "9 blocks are not certified", id="none is"),
        pytest.param(END._replace(certified=(8, "")), "1 block is not certified", id="one is not"),
        pytest.param(
            END._replace(verdict="bad", reason="a seal"), "account is bad: a seal", id="is bad"
        ),
        pytest.param(
            END._replace(verdict="unreadable", reason="I/O"), "is unreadable: I/O", id="is torn"
        ),
        pytest.param(END._replace(word="standalone"), "nobody else holds", id="is alone"),
        pytest.param(END._replace(distributor=""), "nobody gives orders in", id="has no office"),
    ],
)
def test_a_device_is_not_taken_away_whose_chain(end: End, reason: str) -> None:
    [found] = unsafe(end)
    assert reason in found
    assert "safe to go  no" in lines(end)
    assert max(map(len, lines(end))) <= 80
    assert unsafe(END) == []


@pytest.mark.parametrize(("running", "todo"), [(True, "leave it on until"), (False, "start it")])
def test_what_is_in_no_block_yet_is_told(*, running: bool, todo: str) -> None:
    end = END._replace(open_rows=2, unsealed={"1-0:1.8.0": 7_200_000_000}, running=running)
    shown = "\n".join(lines(end))
    assert "not sealed  2 rows, import 0.002 kWh\n" in shown
    assert f"{todo}" in shown


@pytest.mark.parametrize("end", [END, END._replace(votes=True, meter="a" * 32, network="b" * 32)])
def test_lines_are_pasted_into_a_shell_as_they_are_shown(end: End) -> None:
    shown = lines(end)
    assert max(map(len, shown)) <= 80
    pasted = "\n".join(shown).replace("\\\n", "")
    commands = [shlex.split(line) for line in pasted.splitlines() if line[5:14] == "meterctl "]
    assert commands[1:-1] == office_commands(end)
    assert commands[0][:3] == ["meterctl", "replace", "new"]
    assert commands[-1][:3] == ["meterctl", "network", "join"]


# --- on the old device, or its card ---------------------------------------------------------------


def old(ctl: Ctl, state: Path) -> Said:
    return ctl("replace", "old", "--state", state, "--json")


def test_the_old_card_says_where_its_chain_ends_and_that_it_may_go(ctl: Ctl, street: Path) -> None:
    said = old(ctl, street / KITCHEN)
    assert said.status == 0, said.err
    account = StoredAccount(street / KITCHEN)
    last = account.blocks[-1].block
    told = said.json
    assert told["sealed"] == {"height": last.height, "hash": last.hash.hex(), "end_s": last.end_s}
    assert told["certified"]["height"] == last.height
    assert told["certified"]["hash"] == last.hash.hex()
    assert len(told["certified"]["by"]) >= 3
    assert {code: one["uj"] for code, one in told["registers"].items()} == {
        obis_code(energy.obis): energy.last_uj for energy in last.energy
    }
    assert (told["verdict"], told["waiting"], told["safe"]) == ("good", 0, True)
    shown = ctl("replace", "old", "--state", street / KITCHEN)
    assert "safe to go  yes" in shown.out
    assert [line for line in shown.out.splitlines() if len(line) > 80] == []


def test_what_nobody_has_certified_waits_and_the_card_stays(ctl: Ctl, tmp_path: Path) -> None:
    folder = tmp_path / "street"
    folder.mkdir()
    with closing(Street(folder)) as street:
        street.settle()
        street.meter()  # sealed, and nobody has heard of it yet
        street.show()
    said = old(ctl, folder / KITCHEN)
    assert said.status == 1
    height = said.json["sealed"]["height"]
    assert (said.json["waiting"], said.json["certified"]) == (height, None)
    assert "not to be taken away yet" in said.err
    assert "not certified" in said.json["reasons"][0]


def test_a_card_that_was_put_back_is_not_taken_for_the_end(ctl: Ctl, street: Path) -> None:
    state = street / KITCHEN
    with closing(Street(street)) as running:
        held = list(running.nodes[HOUSE].store.blocks((KITCHEN, 1), 1, 99))
    assert len(held) == len(StoredAccount(state).blocks)
    for stream in ("samples", "events", "blocks"):
        shutil.rmtree(state / stream)
        (state / stream).mkdir()
    begun = Rig(state)
    begun.start(MIDNIGHT_S)
    begun.stop()
    said = old(ctl, state)
    assert said.status == 1
    assert said.json["verdict"] == "bad"
    assert "this card ends before: it was put back" in said.json["reasons"][0]


def test_an_edited_card_is_bad_and_the_neighbours_are_named(ctl: Ctl, street: Path) -> None:
    state = street / KITCHEN
    path = min((state / "blocks").iterdir())
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    said = old(ctl, state)
    assert (said.status, said.json["verdict"]) == (1, "bad")
    assert "`meterctl replace lost` there" in said.err


def test_a_meter_alone_has_no_office(ctl: Ctl, tmp_path: Path) -> None:
    replay_lines(["0\t11 1 0 0 0 0 0 231\n"], config_text(), tmp_path / "one")
    said = old(ctl, tmp_path / "one")
    assert said.status == 1
    assert said.json["office"] == []
    assert "nobody gives orders" in " ".join(said.json["reasons"])


# --- where the card is dead -----------------------------------------------------------------------


@pytest.mark.parametrize("at", [GRID, OTHER_HOUSE], ids=["in the office", "at a neighbour"])
def test_neighbours_know_where_a_dead_device_ends(ctl: Ctl, street: Path, at: str) -> None:
    with closing(Street(street)) as running:
        *_, (_, sealed) = running.nodes[GRID].store.blocks((HOUSE, 1), 1, 99)
    last = decode_block(take_apart(sealed).payload)
    said = ctl("replace", "lost", "--meter", HOUSE, "--state", street / at, "--json")
    assert said.status == 0, said.err
    told = said.json
    assert (told["sealed"]["height"], told["sealed"]["hash"]) == (4, last.hash.hex())
    assert told["certified"]["height"] == 4
    assert told["registers"][obis_code(IMPORT)]["uj"] == 4 * 7_200_000_000


@pytest.mark.parametrize("name", ["house-9", GRID])
def test_of_a_chain_that_is_no_meters_nothing_is_said(ctl: Ctl, street: Path, name: str) -> None:
    said = ctl("replace", "lost", "--meter", name, "--state", street / GRID)
    assert (said.status, said.out) == (64, "")
    assert f"no meter of elm-street is {name} (1)" in said.err


def test_a_neighbour_that_holds_nothing_of_it_says_so(ctl: Ctl, tmp_path: Path) -> None:
    folder = tmp_path / "street"
    folder.mkdir()
    with closing(Street(folder)) as street:
        street.settle()
    said = ctl("replace", "lost", "--meter", HOUSE, "--state", folder / GRID)
    assert (said.status, said.out) == (69, "")
    assert "no block of house-1 (1) is held here" in said.err


# --- the new device, and the whole of it ----------------------------------------------------------


def test_the_new_device_bears_the_old_ones_name(ctl: Ctl, street: Path, tmp_path: Path) -> None:
    config = tmp_path / "meterd.toml"
    config.write_text(config_text(interval_s=streets.INTERVAL_S))
    new = ("replace", "new", "--network", streets.NAME, "--config", config)
    said = ctl(*new, "--meter", "kitchen-13", "--state", tmp_path / "new")
    assert said.status == 78
    assert "are of kitchen-12, and not of kitchen-13" in said.err
    assert not (tmp_path / "new").exists()
    said = ctl(*new, "--meter", KITCHEN, "--state", street / KITCHEN)
    assert said.status == 78
    assert "another device begins with an empty folder" in said.err
    said = ctl(*new, "--meter", KITCHEN, "--state", tmp_path / "new")
    assert said.status == 0
    public = bytes(load_seal(tmp_path / "new").verify_key).hex()
    assert f'sealing_key = "{public}"' in said.out


@pytest.mark.parametrize(
    "by_card", [pytest.param(True, id="by its card"), pytest.param(False, id="in the office")]
)
def test_the_office_takes_each_line_as_it_is_and_the_chain_goes_on(
    ctl: Ctl, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_card: bool
) -> None:
    meter = KITCHEN if by_card else HOUSE
    where: tuple[object, ...] = ("old", "--state", street / KITCHEN)
    if not by_card:
        where = ("lost", "--state", street / GRID, "--meter", HOUSE)
    told = ctl("replace", *where, "--json").json
    config = tmp_path / "meterd.toml"
    text = config_text(interval_s=streets.INTERVAL_S)
    config.write_text(text.replace(f'name = "{KITCHEN}"', f'name = "{meter}"'))
    monkeypatch.chdir(tmp_path)
    new = ("--config", config, "--state", tmp_path / "new")
    enrol = shlex.split(told["enrol"])
    assert ctl(*enrol[1:], *new).status == 0
    shown: dict[str, Any] = {}
    commands = [shlex.split(line)[1:] for line in told["office"]]
    for command in commands:
        more = () if command[1] == "list" else ("--yes",)
        said = ctl(*command, "--state", street / GRID, *more, "--json")
        assert said.status == 0, f"{command}: {said.err}"
        shown[command[1]] = said.json
        certify(street)
        touch(street)
    body = shown["replace"]["body"]
    assert (body["meter"], body["final_height"]) == (meter, told["sealed"]["height"])
    assert body["final_hash"] == told["sealed"]["hash"]
    assert {code: one["uj"] for code, one in body["registers"].items()} == {
        code: one["uj"] for code, one in told["registers"].items()
    }
    entries = ctl("order", "list", "--state", street / GRID, "--json").json
    assert [entry["kind"] for entry in entries] == ["revoke", "replace", "roster"]
    assert {entry["state"] for entry in entries} == {"certified"}
    with closing(Street(street)) as running:
        node = running.nodes[OTHER_HOUSE]
        for height in range(1, 4):
            order = proofs.certificate(node.store, (GRID, 1), height, node.gossip.roster)
            assert order is not None
            keep_order(tmp_path, spell_order(*order))
        genesis = running.genesis
    shutil.copy(street / GRID / "genesis.cbor", tmp_path)
    joined = ctl(*shlex.split(told["join"])[1:], "--state", tmp_path / "new", "--yes")
    assert joined.status == 0, joined.err
    chain = open_newest(read_orders(tmp_path / "new", genesis), meter)
    assert chain.incarnation == 2


def test_each_action_has_help_in_eighty_columns(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for action in ("old", "lost", "new"):
        said = ctl("replace", action, "--help")
        assert said.status == 0
        assert "\nexamples:\n  meterctl replace" in said.out
        assert [line for line in said.out.splitlines() if len(line) > 80] == []
