"""`meterd demo` as people and scripts run it: a street certifies, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from meterd.demo import houses
from meterd.demo.broker import choose_broker
from meterd.demo.faults import Fault, parse_faults
from meterd.demo.gates import Gates
from meterd.device.archive import Known, verify
from meterd.errors import AbsentError, UsageError
from tests.daemon_kit import DEADLINE_S, PROGRAM, until
from tests.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.timeout(480)  # five demos are played before the first test looks

SECONDS = 15
NODES = ["house-1", "house-2", "house-3", "house-4", "grid-co"]
HOUSES = NODES[:4]
# What is forged as the broker comes back is said to nobody, at first.
FAULTS = "kill:house-2@4,start:house-2@7,cut:house-3@8,join:house-3@9,broker:@10,forge:house-4@10"
FINDINGS_S_MAX = 60.0  # a demo's start and end on a busy machine


class Demo(NamedTuple):
    """What a demo came to.

    Attributes:
        children: Processes that it had started, when it was interrupted.
        temporary: What is left where temporary files are made.
    """

    status: int
    out: str
    said: str
    children: list[int]
    temporary: list[Path]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def play(folder: Path, options: Sequence[str], interrupts: Sequence[tuple[int, bool]] = ()) -> Demo:
    """Run a demo; once it has sealed a block, send it signals, to all its processes if so told."""
    temporary = folder / "t"
    temporary.mkdir(parents=True)
    children: list[int] = []
    with (
        (folder / "said").open("w+") as said,
        subprocess.Popen(
            [*PROGRAM, "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        ) as process,
    ):
        assert process.stdout is not None
        out = ""
        if interrupts:
            for line in process.stdout:
                out += line
                if "sealed" in line:
                    break
            children = children_of(process.pid)
        for number, everyone in interrupts:
            (os.killpg if everyone else os.kill)(process.pid, number)
        out += process.stdout.read()
        process.wait(FINDINGS_S_MAX)
        said.seek(0)
        return Demo(process.returncode, out, said.read(), children, list(temporary.iterdir()))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A broker that is there before the demo, and goes on after it."""
    with Mosquitto(tmp_path_factory.mktemp("given")) as broker:
        yield broker


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory, given: Mosquitto) -> dict[str, Demo]:
    """All that the tests look at, two at a time: a demo mostly waits, for 14 processes."""
    folder = tmp_path_factory.mktemp("d")
    url = f"mqtt://127.0.0.1:{given.port}"
    with ThreadPoolExecutor(2) as pool:
        runs = {
            "for scripts": pool.submit(play, folder / "1", ("--for", str(SECONDS), "--json")),
            "with faults": pool.submit(
                play,
                folder / "2",
                ("--for", "32", "--json", "--broker", "mosquitto", "--faults", FAULTS),
            ),
            "for people": pool.submit(
                play, folder / "3", ("--for", "14", "--keep", str(folder / "kept"))
            ),
            "by Ctrl-C twice": pool.submit(play, folder / "4", (), [(signal.SIGINT, True)] * 2),
            "by SIGTERM": pool.submit(
                play, folder / "5", ("--broker", url), [(signal.SIGTERM, False)]
            ),
        }
        return {name: run.result() for name, run in runs.items()} | {
            "kept": Demo(0, "", "", [], [folder / "kept"])
        }


def test_a_street_seals_certifies_and_sums_up_in_json(demos: dict[str, Demo]) -> None:
    demo = demos["for scripts"]
    assert (demo.status, demo.said) == (0, "")
    summary = json.loads(demo.out)
    assert [meter["name"] for meter in summary["meters"]] == HOUSES
    for meter in summary["meters"]:
        assert meter["verdict"] == "good"
        assert meter["height"] >= meter["certified_height"] >= max(1, meter["height"] - 1)
        assert meter["records"] > 0
        assert meter["wh"] == meter["import_uj"] // 3_600_000_000
        assert meter["import_uj"] + meter["export_uj"] > 0
        assert meter["frozen"] is False
    assert (summary["voters"], summary["quorum"], summary["distributor"]) == (4, 3, "grid-co")
    assert summary["faults"] == summary["evidence"] == []
    assert len(set(summary["played"])) == len(HOUSES)
    assert summary["speed"] == 600
    assert summary["seconds"] >= SECONDS
    assert set(summary["dropped"]) <= {"duplicate"}  # a recording by the minute repeats itself
    assert demo.temporary == []


def test_a_street_in_trouble_certifies_on_and_keeps_proof_of_the_forger(
    demos: dict[str, Demo],
) -> None:
    demo = demos["with faults"]
    assert (demo.status, demo.said) == (0, "")
    summary = json.loads(demo.out)
    assert {fault["kind"] for fault in summary["faults"]} == {
        *("kill", "start", "forge", "cut", "join", "broker")
    }
    [evidence] = summary["evidence"]
    assert (evidence["role"], evidence["name"]) == ("meter", "house-4")
    assert len(evidence["kept_by"]) >= summary["quorum"]
    frozen = {meter["name"] for meter in summary["meters"] if meter["frozen"]}
    assert frozen == {"house-4"}
    assert all(meter["verdict"] == "good" for meter in summary["meters"])
    assert all(meter["certified_height"] > 0 for meter in summary["meters"])
    assert demo.temporary == []


def test_a_demo_for_people_shows_what_happens_and_the_verdict(demos: dict[str, Demo]) -> None:
    demo = demos["for people"]
    assert (demo.status, demo.said) == (0, "")
    for house in HOUSES:
        pattern = rf"^ +[\d.]+ s  {house}: block (\d+) sealed, to "
        heights = [int(height) for height in re.findall(pattern, demo.out, re.MULTILINE)]
        assert heights
        assert heights == sorted(set(heights))
        assert re.search(rf"{house}: block \d+ certified by 3 of 4", demo.out)
    assert "grid-co plays the distributor" in demo.out
    assert re.search(r"^played a street, 600 times as fast, for \d+ s$", demo.out, re.MULTILINE)
    assert "verified every seal, sample and register: good" in demo.out
    assert demo.temporary == []


def test_a_demo_keeps_the_accounts_where_asked(demos: dict[str, Demo]) -> None:
    [kept] = demos["kept"].temporary
    genesis = (kept / "genesis.cbor").read_bytes()
    for house in HOUSES:
        verdict = verify(kept / house, Known(genesis=genesis))
        assert (verdict.verdict, verdict.key) == ("good", "given")
        assert f"{house}: sealed {verdict.blocks} blocks" in demos["for people"].out
    assert f"meterctl verify {kept / 'house-1'} --genesis" in demos["for people"].out


@pytest.mark.parametrize("how", ["by Ctrl-C twice", "by SIGTERM"])
def test_a_demo_interrupted_still_verifies_and_leaves_nothing_behind(
    demos: dict[str, Demo], how: str
) -> None:
    demo = demos[how]
    assert (demo.status, demo.said) == (0, "")
    assert "verified every seal, sample and register: good" in demo.out
    own_broker = how != "by SIGTERM"
    assert len(demo.children) == 13 + own_broker  # four boards, four meters, five peers
    for child in demo.children:
        assert not Path(f"/proc/{child}").exists(), "a process is left"
    assert demo.temporary == []


def test_a_broker_that_was_there_is_left_without_a_trace(
    demos: dict[str, Demo], given: Mosquitto
) -> None:
    assert f"the broker at 127.0.0.1:{given.port}" in demos["by SIGTERM"].out
    kept: list[str] = []
    asked = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda _client, _data, message: kept.append(message.topic)
    client.on_subscribe = lambda *_: asked.set()
    client.connect("127.0.0.1", given.port)
    client.loop_start()
    client.subscribe("#", 1)
    assert asked.wait(DEADLINE_S)
    time.sleep(0.2)  # retained messages follow the acknowledgement at once
    client.disconnect()
    client.loop_stop()
    assert kept == []


def test_a_terminal_shows_a_table_that_lives_and_takes_keys(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("t")  # a short one: sockets lie below it
    controller, terminal = os.openpty()
    shown = bytearray()

    def look() -> None:
        while True:
            try:
                shown.extend(os.read(controller, 65_536))
            except OSError:  # the other end is closed
                return

    looking = threading.Thread(target=look)
    looking.start()
    with subprocess.Popen(
        [*PROGRAM, "demo"],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(folder), "TERM": "xterm", "COLUMNS": "80"},
    ) as process:
        os.close(terminal)
        assert process.stderr is not None
        try:
            until(lambda: b"certified by 3 of 4" in shown, "the table is drawn", deadline_s=120)
            os.write(controller, b"k")
            until(lambda: b"no power" in shown, "house-2 is killed", deadline_s=120)
            os.write(controller, b"q")
            assert process.stderr.read() == b""
            assert process.wait(FINDINGS_S_MAX) == 0
        finally:
            process.kill()
    looking.join(DEADLINE_S)
    os.close(controller)
    text = shown.decode()
    for part in ("import kWh", "seen", "plays the distributor", "keys: k", ": good"):
        assert part in text
    assert text.count("W now") > 2, "it was drawn but once"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        (("--speed", "0"), 64, "--speed: expected 1 or more"),
        (("--speed", "1000000000", "--for", "9"), 64, "would reach our future"),
        (("--csv", "absent.csv"), 69, "cannot read absent.csv"),
        (("--for", "soon"), 64, "--for: expected seconds, more than 0, got 'soon'"),
        (("--for", "0"), 64, "--for: expected seconds, more than 0, got '0'"),
        (("--for", "9", "--faults", "broker:@9"), 64, "broker:@9: the demo ends before, after 9 s"),
        (("--broker", "mqtt://h", "--faults", "broker:@9"), 64, "not the demo's to kill"),
        (("--faults", "kill:house-9@9"), 64, "--faults: kill:house-9@9: expected one of grid-co"),
        (("--broker", "mqtts://h"), 64, "--broker: mqtts://h has no ca"),
        (("--broker", "http://h"), 64, "--broker: not the address of a broker: http://h"),
        (("--broker", "mqtt://127.0.0.1:9"), 69, "no broker answers at 127.0.0.1:9"),
        (("--keep", "d" * 81), 64, "the path has more than 80 characters"),
    ],
)
def test_a_demo_asked_wrongly_says_what_is_wrong(
    options: tuple[str, ...], status: int, error: str, tmp_path: Path
) -> None:
    demo = subprocess.run(
        [*PROGRAM, "demo", *options], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert demo.returncode == status
    assert error in demo.stderr
    assert "Traceback" not in demo.stderr


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("house-2@9", "expected kill, start, cut, join, forge or broker, got 'house-2'"),
        ("kill@9", "kill@9: expected one of grid-co, house-1"),
        ("kill:house-2@soon", "expected seconds after @, got 'soon'"),
        ("kill:house-2@-1", "expected seconds after @, got '-1'"),
        ("kill:house-2@inf", "expected seconds after @, got 'inf'"),
        ("kill:house-2@1,,cut@", "cut@: expected seconds after @, got ''"),
        ("broker:house-2@9", "broker takes no name, got 'house-2'"),
        ("forge:grid-co@9", "grid-co meters nothing"),
        ("# nothing @ all", "there are none"),
        ("kill", "'kill' is no list of faults, and no file: No such file"),
    ],
)
def test_a_fault_is_refused_that_is_misspelt(text: str, error: str) -> None:
    with pytest.raises(UsageError, match=re.escape(error)):
        parse_faults(text, NODES)


def test_faults_are_read_from_a_file_and_played_by_time(tmp_path: Path) -> None:
    path = tmp_path / "faults"
    path.write_text("# trouble\nbroker:@35, cut:house-3@2.5  # and more\n\nkill:grid-co@7\n")
    assert parse_faults(str(path), NODES) == [
        Fault(2.5, "cut", "house-3"),
        Fault(7.0, "kill", "grid-co"),
        Fault(35.0, "broker", ""),
    ]


def test_without_recordings_each_house_is_a_model_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(houses, "find_recording", lambda _file: None)
    chosen = houses.choose_houses(None, seed=7)
    assert [house.label[-1] for house in chosen] == ["7", "8", "9", "0"]
    assert len({house.epoch_ms for house in chosen}) == len(HOUSES)


def test_a_csv_is_played_by_the_first_house(tmp_path: Path) -> None:
    csv = tmp_path / "mine.csv"
    csv.write_text("timestamp,voltage_v,current_a,active_power_w\n2020-01-01T00:00:00,230,1,230\n")
    first, *others = houses.choose_houses(csv, seed=1)
    assert (first.label, first.epoch_ms) == ("a real household (mine.csv)", 1_577_836_800_000)
    assert all("mine.csv" not in " ".join(house.options) for house in others)


@pytest.mark.parametrize(
    ("asked", "error"),
    [(None, "neither amqtt nor mosquitto is installed"), ("amqtt", "amqtt is not installed")],
)
def test_without_any_broker_the_line_to_run_is_named(
    asked: str | None, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(shutil, "which", lambda _name, **_: None)
    with pytest.raises(AbsentError, match=error) as refused:
        choose_broker(asked, tmp_path)
    assert "pip install 'meterd[demo]'" in refused.value.hint


def test_a_gate_that_is_shut_cuts_and_refuses_until_it_is_opened() -> None:
    def echo() -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            with line:
                while data := line.recv(100):
                    line.sendall(data)

    def passes() -> bool:
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as line:
            try:
                line.sendall(b"x")
                return line.recv(1) == b"x"
            except ConnectionError:
                return False

    with socket.create_server(("127.0.0.1", 0)) as server:
        echoing = threading.Thread(target=echo)
        echoing.start()
        gates = Gates()
        port = gates.add("house-1", server.getsockname()[:2])
        assert passes()
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as line:
            line.sendall(b"x")
            assert line.recv(1) == b"x"
            gates.shut("house-1")
            assert line.recv(1) == b""
        assert gates.is_shut("house-1")
        assert not passes()
        gates.open("house-1")
        assert passes()
        gates.close()
        server.shutdown(socket.SHUT_RDWR)
    echoing.join(DEADLINE_S)


def test_a_demo_whose_meter_dies_says_so_and_ends(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kept = tmp_path_factory.mktemp("t") / "kept"
    with subprocess.Popen(
        [*PROGRAM, "demo", "--keep", str(kept)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "sealed" in line:
                break
        children = children_of(process.pid)
        meters = [
            pid for pid in children if b"run\0--config" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(meters[0], signal.SIGKILL)
        process.stdout.read()
        said = process.stderr.read()
        assert process.wait(DEADLINE_S) == 69
    assert "the meter of house-1 ended with -9" in said
    assert "--keep" in said
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "all have ended")
