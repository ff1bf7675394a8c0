"""`meterctl vault` with a running meter: rows V1, V2, V5, V6 and V7 through the real commands."""

from __future__ import annotations

import json
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import paho.mqtt.client
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from meterd.config import load
from tests.daemon_kit import DEADLINE_S, Cable, until
from tests.mosquitto import Mosquitto
from tests.vault_kit import (
    CANARIES,
    CONTRACT,
    NAME,
    OTHER_PASSPHRASE,
    PASSPHRASE,
    VaultHouse,
    at_terminal,
    found_in_files,
    found_in_memory,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPEED = 600  # an interval of half an hour is sealed every three seconds


@pytest.fixture
def home(tmp_path: Path) -> VaultHouse:
    return VaultHouse(tmp_path)


def filled(home: VaultHouse) -> None:
    assert home.put("flat-3", "person", NAME).status == 0
    assert home.put("flat-3", "contract", CONTRACT).status == 0


# --- the commands -----------------------------------------------------------------------------


def test_what_is_put_in_is_shown_replaced_exported_and_evented(home: VaultHouse) -> None:
    with home.running():
        first = home.ctl("put", "flat-3", "person", "--passphrase-file", home.passphrase, said=NAME)
        assert (first.status, first.err) == (0, "")
        assert first.out.decode().splitlines()[:2] == [
            "kept     person of flat-3, version 1",
            "vault    version 2",
        ]
        assert home.put("flat-3", "contract", CONTRACT).status == 0
        assert home.show("flat-3", "person").out == NAME
        assert home.put("flat-3", "person", b"somebody else\n").status == 0
        assert home.show("flat-3", "person").out == b"somebody else\n"
        listed = home.ctl("list", "--json").json
        assert (listed["version"], listed["bound"]) == (4, False)
        assert [
            (one["subject"], one["purpose"], one["version"], one["bytes"], one["passphrase"])
            for one in listed["records"]  # type: ignore[attr-defined]
        ] == [
            ("device", "seal-1", 1, 32, False),
            ("flat-3", "contract", 1, len(CONTRACT), True),
            ("flat-3", "person", 2, 14, True),
        ]
        out = home.folder / "flat-3.json"
        exported = home.ctl("export", "flat-3", "-o", out, "--passphrase-file", home.passphrase)
        assert exported.status == 0, exported.err
        assert out.stat().st_mode & 0o777 == 0o600
        told = json.loads(out.read_text())
        assert (told["format"], told["subject"], told["vault_version"]) == (
            *("meterd/vault-export/v1", "flat-3"),
            4,
        )
        assert told["records"] == [
            {"purpose": "contract", "version": 1, "text": CONTRACT.decode()},
            {"purpose": "person", "version": 2, "text": "somebody else\n"},
        ]
        again = home.ctl("export", "flat-3", "-o", out, "--passphrase-file", home.passphrase)
        assert (again.status, "already" in again.err) == (78, True)
    events = [(kind, about["purpose"], about["vault"]) for kind, about in home.events()]
    assert events == [
        ("vault_put", "person", 2),
        ("vault_put", "contract", 3),
        ("vault_read", "person", 3),
        ("vault_put", "person", 4),
        ("vault_read", "person", 4),
        ("vault_read", "contract person", 4),
    ]
    home.house.verify_good()


def test_v7_keys_rotate_and_the_records_of_others_are_not_written_anew(home: VaultHouse) -> None:
    with home.running():
        filled(home)
        assert home.put("flat-4", "person", b"Ada\n", home.other).status == 0
        sealed = sealed_records(home)
        root = home.ctl("rotate", "--json").json
        assert (root["rotated"], root["vault"]) == ("root key", 5)
        assert sealed_records(home) == sealed
        new = ("--passphrase-file", home.passphrase, "--new-passphrase-file", home.other)
        assert home.ctl("rotate", "flat-3", "--passphrase", *new).status == 0
        assert sealed_records(home) == sealed
        assert home.show("flat-3", "person").status == 77
        assert home.show("flat-3", "person", home.other).out == NAME
        done = home.ctl("rotate", "flat-3", "--passphrase-file", home.other)
        assert done.status == 0, done.err
        now = sealed_records(home)
        assert now["flat-4", "person"] == sealed["flat-4", "person"]
        assert now["flat-3", "person"] != sealed["flat-3", "person"]
        assert home.show("flat-3", "person", home.other).out == NAME
    rotated = [about.get("subject") for kind, about in home.events() if kind == "vault_rotated"]
    assert rotated == [None, "flat-3", "flat-3"]


def sealed_records(home: VaultHouse) -> dict[tuple[str, str], bytes]:
    from meterd.device.vault import StoredVault

    with StoredVault(home.house.state, home.device) as stored:
        return {(one.subject, one.purpose): one.sealed for one in stored.vault.records}


def test_at_a_terminal_a_new_passphrase_is_asked_for_twice_and_not_echoed(
    home: VaultHouse,
) -> None:
    file = home.folder / "person.txt"
    file.write_bytes(NAME)
    where = ("--state", home.house.state)
    with home.running():
        put = ("put", "flat-3", "person", "--file", file, *where)
        typed = ((r"new passphrase of flat-3: ", f"{PASSPHRASE}\n"), (r"once more: ", "other\n"))
        status, shown = at_terminal(*put, typed=typed)
        assert (status, "not twice the same: nothing was changed" in shown) == (64, True)
        typed = (typed[0], (r"once more: ", f"{PASSPHRASE}\n"))
        status, shown = at_terminal(*put, typed=typed)
        assert (status, "kept     person of flat-3" in shown) == (0, True)
        assert PASSPHRASE not in shown
        status, shown = at_terminal(
            *("show", "flat-3", *where), typed=((r"passphrase of flat-3: ", f"{PASSPHRASE}\n"),)
        )
        assert (status, PASSPHRASE in shown) == (0, False)
        assert "17 Elm Street" in shown
        status, shown = at_terminal("erase", "flat-3", *where, typed=((r"\[y/N\]: ", "n\n"),))
        assert (status, "nothing was erased" in shown) == (64, True)
        assert home.show("flat-3", "person").out == NAME


@pytest.mark.parametrize(
    ("arguments", "said", "status", "message"),
    [
        (("put", "Ada Example", "person"), NAME, 64, "cannot be a subject"),
        (("put", "flat-3", "Elm Street"), NAME, 64, "cannot be a purpose"),
        (("put", "flat-3", "person"), b"", 64, "there is nothing to keep"),
        (("put", "flat-3", "person"), bytes(11_000), 64, "at most 11000 bytes"),
        (("put", "device", "seal-1"), NAME, 64, "is a part of the device"),
        (("erase", "device", "--yes"), b"", 64, "is a part of the device"),
        (("show", "flat-9"), b"", 69, "holds nothing of flat-9"),
        (("erase", "flat-9", "--yes"), b"", 69, "holds nothing of flat-9"),
        (("erase", "flat-9"), b"", 69, "holds nothing of flat-9"),
        (("rotate", "--passphrase"), b"", 64, "whose passphrase?"),
    ],
)
def test_what_is_asked_wrongly_is_said(
    shared: VaultHouse,
    arguments: tuple[str, ...],
    said: bytes,
    status: int,
    message: str,
) -> None:
    key = ("--passphrase-file", shared.passphrase) if arguments[0] in ("put", "show") else ()
    before = shared.files()
    told = shared.ctl(*arguments, *key, said=said)
    assert (told.status, message in told.err) == (status, True), told.err
    assert told.err.startswith("meterctl: error: ")
    assert shared.files() == before


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401 - a generator
    """A running meter for tests that change nothing."""
    home = VaultHouse(tmp_path_factory.mktemp("shared"))
    with home.running():
        yield home


def test_a_passphrase_that_others_may_read_or_that_is_short_is_refused(shared: VaultHouse) -> None:
    short = shared.file("short", "dice")
    told = shared.put("flat-7", "person", NAME, short)
    assert (told.status, "10 letters or more, got 4" in told.err) == (78, True)
    shared.other.chmod(0o644)
    told = shared.put("flat-7", "person", NAME, shared.other)
    assert (told.status, "can be read or changed by others" in told.err) == (77, True)
    both = shared.ctl("put", "flat-7", "person", "--passphrase-file", "-", said=NAME)
    assert (both.status, "cannot both come" in both.err) == (64, True)
    assert shared.put("flat-7", "person", NAME, shared.folder / "no").status == 69


def test_without_a_running_meter_a_vault_is_not_changed(home: VaultHouse) -> None:
    for action in (("put", "flat-3", "person"), ("show", "flat-3"), ("erase", "flat-3", "--yes")):
        told = home.ctl(*action, said=NAME)
        assert told.status == 69
        assert "read and changed by the running meter, and none answers" in told.err


def test_guessing_is_refused_by_name_and_waits_longer_each_time(home: VaultHouse) -> None:
    wrong = home.file("wrong", "none of the words")
    with home.running():
        filled(home)
        for _ in range(2):
            told = home.show("flat-3", "person", wrong)
            assert (told.status, told.out) == (77, b"")
            assert "that is not the passphrase of flat-3" in told.err
        told = home.put("flat-3", "person", b"x", wrong)
        assert (told.status, "the next is heard in 8 s" in told.err) == (77, True)
        told = home.show("flat-3", "person")
        assert (told.status, "too many wrong passphrases for flat-3" in told.err) == (75, True)
        assert home.put("flat-4", "person", b"Ada\n").status == 0  # of others nobody is kept
    refused = [about["subject"] for kind, about in home.events() if kind == "vault_refused"]
    assert refused == ["flat-3"] * 3


# --- the rows ---------------------------------------------------------------------------------


def test_v1_what_is_kept_of_a_person_is_nowhere_in_clear(home: VaultHouse) -> None:
    """Not in the files, not in the log, and at no time in the memory of the meter."""
    needles = (*CANARIES, PASSPHRASE.encode(), OTHER_PASSPHRASE.encode())
    with home.running() as meter:
        filled(home)
        assert home.show("flat-3", "person").out == NAME
        new = ("--passphrase-file", home.passphrase, "--new-passphrase-file", home.other)
        assert home.ctl("rotate", "flat-3", "--passphrase", *new).status == 0
        assert home.ctl("rotate", "flat-3", "--passphrase-file", home.other).status == 0
        assert home.show("flat-3", "", home.other).status == 0
        held = load(home.house.config).meter.name.encode()  # from start to end
        looked = found_in_memory(meter.process.pid, (*needles, held))
        assert looked == {held}, "the search finds what is"
        assert found_in_files(home.house.state, needles) == []
    assert found_in_files(home.house.state, (*needles, b"flat-3"))
    assert {needle for _, needle in found_in_files(home.house.state, (*needles, b"flat-3"))} == {
        b"flat-3"
    }
    assert not [needle for needle in needles if needle.decode() in meter.said]


class Listener:
    """Somebody who hears all that goes over a broker."""

    def __init__(self, port: int) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._subscribed = threading.Event()
        self._client = paho.mqtt.client.Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _client, _data, message: self.heard.append(
            (message.topic, bytes(message.payload))
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(DEADLINE_S)

    def count(self, kind: str) -> int:
        return sum(topic.split("/")[3:4] == [kind] for topic, _ in self.heard)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def test_v5_the_account_and_all_that_goes_over_the_broker_have_pseudonyms_only(
    tmp_path: Path,
) -> None:
    """A real broker, a peer process beside the meter, and somebody who hears every message."""
    with Mosquitto(tmp_path) as broker:
        listener = Listener(broker.port)
        (tmp_path / "home").mkdir()
        home = VaultHouse(tmp_path / "home", broker=broker.port)
        speed = ("--speed", str(SPEED))
        with (
            home.house.board(*speed, "--polling-ms", "5000", "--wait"),
            home.house.run("--with-peer", *speed, environ=home.environ) as meter,
        ):
            meter.hear("broker_connected")
            filled(home)
            assert home.show("flat-3", "person").out == NAME
            assert home.ctl("erase", "flat-3", "--yes").status == 0
            before = listener.count("block")
            until(lambda: listener.count("block") >= before + 2, "two blocks more")
            assert meter.stop() == 0
        listener.close()
        said = b"".join(topic.encode() + payload for topic, payload in listener.heard)
        assert b"kitchen-12" in said
        needles = (*CANARIES, PASSPHRASE.encode())
        assert not [needle for needle in needles if needle in said + meter.said.encode()]
        assert found_in_files(home.house.state, needles) == []
        assert not [needle for needle in needles if needle.decode() in broker.log]
    kinds = [kind for kind, _ in home.events()]
    assert kinds == ["vault_put", "vault_put", "vault_read", "vault_erased"]


def test_v2_who_is_erased_stays_so_and_the_account_verifies(home: VaultHouse) -> None:
    with home.running():
        filled(home)
        yesterday = home.files()
        receipt = home.ctl("erase", "flat-3", "--yes", "--json").json
        assert (receipt["erased"], receipt["vault"]) == ("flat-3", 4)
        assert receipt["purposes"] == ["contract", "person"]
        assert receipt["time"]
        today = home.files()
        assert set(today) == {"content-4", "key"}  # nothing of before lies beside it
        assert b"flat-3" not in today["content-4"]
        assert home.show("flat-3").status == 69
        content = next(data for name, data in yesterday.items() if name != "key")
        home.lay({"content-4": content, "key": today["key"]})  # yesterday's data, today's key
        told = home.show("flat-3")
        assert (told.status, "the content is older: version 3, and 4 counts" in told.err) == (
            *(77,),
            True,
        )
        home.lay(yesterday)  # and its key
        told = home.show("flat-3")
        assert (told.status, "the vault is older: 3 of 4 times written" in told.err) == (77, True)
        home.lay(today)
        assert home.show("flat-3").status == 69
    home.house.verify_good()
    events = {event.number: event for event in home.house.account.events}
    erased = events[receipt["event"]]  # type: ignore[index]
    assert (erased.kind, erased["subject"], erased["vault"]) == ("vault_erased", "flat-3", 4)
    home.lay(yesterday)
    with home.start() as program:
        assert program.end() == 77
        assert "the vault is older: 3 of 4 times written" in program.said


def flip(home: VaultHouse) -> dict[str, bytes]:
    files = home.files()
    name = next(name for name in files if name != "key")
    middle = len(files[name]) // 2
    changed = bytes([files[name][middle] ^ 1])
    return files | {name: files[name][:middle] + changed + files[name][middle + 1 :]}


def swap(home: VaultHouse) -> dict[str, bytes]:
    """Return the vault with two records' content in each other's place; nobody signed that."""
    from meterd.ledger.encoding import decode, encode

    files = home.files()
    name = next(name for name in files if name != "key")
    *before, records = decode(files[name])
    one, two, *others = records
    swapped = [[*one[:3], two[3]], [*two[:3], one[3]], *others]
    return files | {name: encode([*before, swapped])}


def foreign(home: VaultHouse) -> dict[str, bytes]:
    folder = home.folder / "elsewhere"
    folder.mkdir()
    other = VaultHouse(folder, board=b"another board's")
    return other.files()


@pytest.mark.parametrize(
    ("laid", "message"),
    [
        (flip, "the content was changed"),
        (swap, "the content was changed"),
        (foreign, "the vault was sealed on another device"),
    ],
    ids=["a flipped byte", "a swapped record", "another device's"],
)
def test_v7_a_vault_that_was_changed_is_refused_by_name(
    home: VaultHouse, laid: Callable[[VaultHouse], dict[str, bytes]], message: str
) -> None:
    with home.running() as meter:
        filled(home)
        good = home.files()
        home.lay(laid(home))
        for told in (home.show("flat-3"), home.put("flat-3", "person", b"x"), home.ctl("rotate")):
            assert (told.status, message in told.err) == (77, True), told.err
        assert meter.process.poll() is None, "it meters on"
        home.lay(good)
        assert home.show("flat-3", "person").out == NAME
        home.lay(laid(home) if laid is not foreign else foreign_files(home))
    with home.start() as program:
        assert program.end() == 77
        assert message in program.said


def foreign_files(home: VaultHouse) -> dict[str, bytes]:
    vault = home.folder / "elsewhere" / "account" / "vault"
    return {path.name: path.read_bytes() for path in vault.iterdir()}


def test_v6_another_board_does_not_open_the_card(tmp_path: Path) -> None:
    home = VaultHouse(tmp_path, board=b"this board's one-time memory")
    with home.running():
        filled(home)
        assert home.ctl("list", "--json").json["bound"] is True
    (home.credentials / "meterd.board").write_bytes(b"that board's one-time memory")
    with home.start() as program:
        assert program.end() == 77
        assert "sealed on another device" in program.said
    (home.credentials / "meterd.board").unlink()
    with home.start() as program:
        assert program.end() == 77


_KILLED = """
import os, signal, sys
from meterd.__main__ import main
from meterd.device.card import Card
kind, name, *arguments = sys.argv[1:]
real = Card._do
def do(card, operation):
    if operation.kind == kind and operation.path.name == name:
        os.kill(os.getpid(), signal.SIGKILL)
    real(card, operation)
Card._do = do
sys.exit(main(arguments))
"""


@pytest.mark.parametrize(
    ("kind", "file", "version"),
    [("replace", "content-3", 2), ("replace", "key", 2), ("unlink", "content-2", 3)],
    ids=["before the content", "before the key", "before what was before is deleted"],
)
def test_v7_a_meter_that_is_killed_amid_a_change_starts_with_one_or_the_other(
    home: VaultHouse, kind: str, file: str, version: int
) -> None:
    with home.running():
        assert home.put("flat-3", "person", NAME).status == 0
    program, home.house.program = home.house.program, (sys.executable, "-c", _KILLED, kind, file)
    with Cable(home.house.port), home.start() as meter:
        home.house.ask()
        assert home.put("flat-3", "person", b"somebody else\n").status == 69
        assert meter.end() == -signal.SIGKILL
    home.house.program = program
    with home.running():
        expected = NAME if version == 2 else b"somebody else\n"
        assert home.show("flat-3", "person").out == expected
        assert home.ctl("rotate").status == 0
        assert len(home.files()) == 2, "what was left half done is gone"
    started = [about.get("vault") for _, about in home.events("started")]
    assert (started[0], started[-1]) == (1, version)
    home.house.verify_good()


def test_v7_the_account_names_the_vault_that_a_start_asks_for(home: VaultHouse) -> None:
    """Also over a start that saw a version which no event had named: power failed between both."""
    from meterd.device.vault import StoredVault

    with home.running():
        filled(home)
    with StoredVault(home.house.state, home.device) as stored:
        assert stored.keep(stored.vault) == 4  # kept, and no event tells of it
    with home.running():
        pass
    named = [about.get("vault") for _, about in home.events("started")]
    assert named == [1, 4]
    before = home.files()
    with StoredVault(home.house.state, home.device) as stored:
        stored.keep(stored.vault)
    with home.running():
        pass
    home.lay(before)
    with home.start() as program:
        assert program.end() == 77
        assert "the vault is older: 4 of 5 times written" in program.said
