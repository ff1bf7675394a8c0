"""The fault table of README.md, each fault provoked on whole programs.

A house has metered and sealed; then it has a fault; then it is well again. Meanwhile there is one
message that says what to do, an event in the account (of this start, or of the next where this one
cannot begin), and what the LED shows. What was on the card before is on the card after it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meterd.certificates.request import make_request
from meterd.certificates.root import issue, make_root
from meterd.claims import CLAIMS
from meterd.config import load
from meterd.device.failures import FAILURES_FILE
from meterd.device.keys import take_in
from meterd.init import enrol_keys, join_network
from meterd.lamp import ALARMS, PATTERNS
from meterd.ledger.account import Genesis, Meter, Node
from meterd.privacy.envelope import device_key
from tests.accounts import SEED
from tests.conftest import ROOT
from tests.daemon_kit import (
    DAY_MS,
    EPOCH_MS,
    NOBODY,
    Cable,
    House,
    Program,
    Stored,
    make_house,
    need_root,
    small_card,
    strace,
    until,
)
from tests.fast_house_kit import BOARD, COMMIT_S, INTERVAL_S, POLLING_MS, SPEED, edit, fill
from tests.mosquitto import Mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meterd.ledger.event import Event

GPIO = """
[gpio]
led = 22
case_switch = 17
"""
NETWORK = """
[network]
brokers = ["{url}"]
{files}
"""
FILES = """ca = "{folder}/root/root.crt"
certificate = "{folder}/tls.pem"
key = "{folder}/tls.key"
"""
PINS = {"GPIOZERO_PIN_FACTORY": "mock", "MOCK_PINS": "17=low", "PYTHONPATH": str(ROOT)}
WITHOUT_GPIOZERO = (
    "import sys; sys.modules['gpiozero'] = None; from meterd.__main__ import main; sys.exit(main())"
)
IMPATIENT_PEER = (
    "import sys; from meterd import peer; peer.NO_BROKER_S = 1.0; "
    "from meterd.__main__ import main; sys.exit(main())"
)
CARD_KB = 10_240
OTHER_LINES = (  # what tells of no fault, or of a busy machine that makes the board late
    *("sealed", "led", "pin", "released"),
    *("alarm alarm=cadence", "alarm alarm=frozen", "alarm_over"),
)
YEAR = timedelta(days=365)
DEVICE_SECRET = bytes(range(32))


@dataclass
class Case:
    """A house, and how its daemon is started; a fault changes some of it.

    Attributes:
        house: It.
        stack: What a fault has done is undone by it.
        board: Options of the board.
        plugged: Whether there is a board at all.
        environ: Of the daemon.
        wrap: What stands before the daemon's command.
        epoch_ms: Where its clock begins.
        peer: How the peer process is started, if it is.
    """

    house: House
    stack: ExitStack
    board: tuple[str, ...] = ()
    plugged: bool = True
    environ: dict[str, str] = field(default_factory=lambda: dict(PINS))
    wrap: tuple[str | Path, ...] = ()
    epoch_ms: int = EPOCH_MS + DAY_MS
    peer: bool = False


class Fault(NamedTuple):
    """A row of the table.

    Attributes:
        provoke: Does it to a house that is well and does not run.
        message: What is said, once; it says what to do.
        event: Kind and detail of what the account has of it; an empty kind where it cannot.
        led: Which of `lamp.PATTERNS`, or `dark`.
        code: What a daemon ends with that cannot go on; None for one that does.
        prepare: Does to a house, before it meters, what the fault needs.
    """

    provoke: Callable[[Case], None]
    message: str
    event: tuple[str, str]
    led: str
    code: int | None = None
    prepare: Callable[[Case], None] | None = None


# --- faults ---------------------------------------------------------------------------------------


def unplug_the_board(case: Case) -> None:
    """And take its link away: the pseudo terminal behind it may be somebody else's by now."""
    case.plugged = False
    case.house.port.unlink(missing_ok=True)


def unplug_it_while_metering(case: Case) -> None:
    case.board = ("--fault", "unplug@1800+1000000")


def silence_it(case: Case) -> None:
    case.board = ("--fault", "silence@1800+1000000")


def set_another_baud_rate(case: Case) -> None:
    case.board = ("--fault", "wrong-baud@0+1000000")


def plug_in_what_says_nothing(case: Case) -> Path:
    case.plugged = False
    return Path(case.stack.enter_context(Cable(case.house.port)).name)


def hold_the_port(case: Case) -> None:
    plug_in_what_says_nothing(case)
    held = os.open(case.house.port, os.O_RDWR | os.O_NOCTTY)
    case.stack.callback(os.close, held)
    fcntl.flock(held, fcntl.LOCK_EX)


def forbid_the_port(case: Case) -> None:
    """Run it as nobody, who owns the account, and may not have the port."""
    state = case.house.state
    own(state, NOBODY)
    case.stack.callback(own, state, 0)
    plug_in_what_says_nothing(case).chmod(0o000)
    case.wrap = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def own(folder: Path, user: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)


def starve_the_board(case: Case) -> None:
    """Plant the kernel's flag, as a Raspberry Pi has it."""
    sensor = case.house.folder / "sys/class/hwmon/hwmon0"
    sensor.mkdir(parents=True)
    (sensor / "name").write_text("rpi_volt\n")
    (sensor / "in0_lcrit_alarm").write_text("1\n")
    case.environ["METERD_SYS"] = str(case.house.folder / "sys")


def forget_the_time(case: Case) -> None:
    case.epoch_ms = 0


def mount_a_card(case: Case) -> None:
    """Move the account to a card of its own, which has room for months."""
    card = case.stack.enter_context(small_card(case.house.folder / "card", CARD_KB))
    case.house.state = shutil.copytree(case.house.state, card / "account")


def fill_the_card(case: Case) -> None:
    ballast = case.house.state.parent / "ballast"
    fill(ballast, leave_bytes=1_000_000)
    case.stack.callback(ballast.unlink)


def fill_it_to_the_last_byte(case: Case) -> None:
    ballast = case.house.state.parent / "ballast"
    fill(ballast, leave_bytes=0)
    case.stack.callback(ballast.unlink)


def mount_it_read_only(case: Case) -> None:
    card = case.house.state.parent
    subprocess.run(["mount", "-o", "remount,ro", card], check=True)
    writable = ("mount", "-o", "remount,rw", str(card))
    case.stack.callback(lambda: subprocess.run(writable, check=True))


def let_it_become_read_only(case: Case) -> None:
    out = case.house.folder / "trace"
    inject = "inject=fdatasync:error=EROFS:when=6"
    case.wrap = tuple(strace("-e", "trace=fdatasync", "-e", inject, out=out))


def join_a_network(case: Case, url: str, files: str = "") -> None:
    """Found a network of one, with a peer process."""
    house = case.house
    with house.config.open("a") as file:
        file.write(NETWORK.format(url=url, files=files))
    shutil.rmtree(house.state)
    seeds = iter((SEED, bytes(reversed(SEED))))
    seal, vote = enrol_keys(house.state, lambda: next(seeds))
    keys = bytes(seal.verify_key), bytes(vote.verify_key)
    node = Node(name="kitchen-12", role="meter", sealing_key=keys[0], voting_key=keys[1], votes=1)
    meter = Meter(
        name="kitchen-12",
        incarnation=1,
        sealing_key=keys[0],
        fuse_ma=60_000,
        nominal_mv=230_000,
        mains_clamps=1,
    )
    genesis = Genesis(
        name="demo-one",
        interval_s=INTERVAL_S,
        zone="UTC",
        currency="EUR",
        nodes=(node,),
        meters=(meter,),
    )
    join_network(house.state, genesis, load(house.config))


def have_a_broker(case: Case) -> None:
    broker = case.stack.enter_context(Mosquitto(case.house.folder))
    join_a_network(case, f"mqtt://127.0.0.1:{broker.port}")
    case.stack.callback(broker.stop)
    case.house.broker = broker  # type: ignore[attr-defined]


def stop_the_broker(case: Case) -> None:
    case.house.broker.stop()  # type: ignore[attr-defined]
    case.peer = True


def have_a_broker_with_tls(case: Case, *, expired: str) -> None:
    """Make a street's CA of old, and let one of its certificates have ended since."""
    folder = case.house.folder
    now = datetime.now(UTC)
    make_root(folder / "root", "demo-one", now=now - 6 * YEAR)
    for name, stem, hosts in (("broker", "broker", ("127.0.0.1",)), ("kitchen-12", "tls", ())):
        make_request(folder / f"{stem}.key", folder / f"{stem}.csr", name)
        begin = now - 5 * YEAR if stem == expired else now
        request = (folder / f"{stem}.csr").read_bytes()
        _, certificate = issue(folder / "root", request, now=begin, hosts=hosts)
        (folder / f"{stem}.pem").write_bytes(certificate)
    lines = (
        f"cafile {folder}/root/root.crt",
        f"certfile {folder}/broker.pem",
        f"keyfile {folder}/broker.key",
        "require_certificate true",
        "tls_version tlsv1.3",
    )
    broker = case.stack.enter_context(Mosquitto(folder, config_lines=lines))
    join_a_network(case, f"mqtts://127.0.0.1:{broker.port}", FILES.format(folder=folder))


def have_a_broker_that_expired(case: Case) -> None:
    have_a_broker_with_tls(case, expired="broker")


def have_expired(case: Case) -> None:
    have_a_broker_with_tls(case, expired="tls")


def start_the_peer(case: Case) -> None:
    case.peer = True


def remove_gpiozero(case: Case) -> None:
    case.house.program = (sys.executable, "-c", WITHOUT_GPIOZERO)


def have_a_vault(case: Case) -> None:
    """Let its sealing key be in a vault, and the secret that opens it be a credential."""
    credentials = case.house.folder / "credentials"
    credentials.mkdir()
    (credentials / "meterd.device").write_bytes(DEVICE_SECRET)
    assert take_in(case.house.state, device_key(DEVICE_SECRET, b"")) == 1
    case.environ["CREDENTIALS_DIRECTORY"] = str(credentials)


def lose_the_credential(case: Case) -> None:
    case.environ["CREDENTIALS_DIRECTORY"] = str(case.house.folder)


def mistake_a_setting(case: Case) -> None:
    edit(case.house.config, 'role = "mains"', 'role = "mane"')
    case.stack.callback(edit, case.house.config, 'role = "mane"', 'role = "mains"')


def damage_the_account(case: Case) -> None:
    path = case.house.state / "blocks" / "00000001.seg"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff" + data[len(data) // 2 + 1 :])
    case.stack.callback(path.write_bytes, data)


# --- the table ------------------------------------------------------------------------------------

TABLE = {
    "board unplugged": Fault(
        unplug_it_while_metering, "^port_lost .*check the cable", ("alarm", "port"), "board"
    ),
    "board silent": Fault(silence_it, "^port_silent .*38400 baud", ("alarm", "port"), "board"),
    "no board at the start": Fault(
        unplug_the_board, "hint: .*port", ("failed", "no such port"), "dark", 69
    ),
    "wrong baud rate": Fault(
        set_another_baud_rate,
        "alarm=garbage .*set the board to 38400",
        ("alarm", "garbage"),
        "board",
    ),
    "port busy": Fault(
        hold_the_port, "hint: find it with `sudo fuser", ("failed", "another program"), "dark", 75
    ),
    "no permission": Fault(
        forbid_the_port, "hint: add this user to the group", ("failed", "not allowed"), "dark", 77
    ),
    "undervoltage": Fault(
        starve_the_board,
        "alarm=undervoltage .*use the board's own supply",
        ("alarm", "undervoltage"),
        "power",
    ),
    "clock at 1970": Fault(
        forget_the_time, "alarm=clock .*give it a network", ("alarm", "clock"), "clock"
    ),
    "card full": Fault(
        fill_the_card,
        "alarm=storage_full .*run `meterctl prune`",
        ("alarm", "storage_full"),
        "storage",
        prepare=mount_a_card,
    ),
    "no byte left": Fault(
        fill_it_to_the_last_byte,
        "hint: free space on the card",
        ("", "no card takes it"),
        "dark",
        74,
        prepare=mount_a_card,
    ),
    "card read-only at the start": Fault(
        mount_it_read_only,
        "hint: is the card mounted read-only",
        ("", "no card takes it"),
        "dark",
        74,
        prepare=mount_a_card,
    ),
    "card becomes read-only": Fault(
        let_it_become_read_only,
        "hint: the card has become read-only",
        ("failed", "Read-only file system"),
        "dark",
        74,
    ),
    "broker absent": Fault(
        stop_the_broker,
        "alarm=no_broker .*look at network.brokers",
        ("alarm", "no_broker"),
        "neighbours",
        prepare=have_a_broker,
    ),
    "broker's certificate expired": Fault(
        start_the_peer,
        "alarm=certificate_expired .*renew with",
        ("alarm", "certificate_expired"),
        "neighbours",
        prepare=have_a_broker_that_expired,
    ),
    "device's certificate expired": Fault(
        start_the_peer,
        "alarm=certificate_expired .*renew with",
        ("alarm", "certificate_expired"),
        "neighbours",
        prepare=have_expired,
    ),
    "GPIO missing": Fault(remove_gpiozero, "alarm=gpio .*install", ("alarm", "gpio"), "dark"),
    "credential missing": Fault(
        lose_the_credential,
        "hint: start meterd by its unit",
        ("failed", "credential meterd.device"),
        "dark",
        69,
        prepare=have_a_vault,
    ),
    "settings mistaken": Fault(
        mistake_a_setting, "hint: .*config check", ("failed", "1 mistake"), "dark", 78
    ),
    "account damaged": Fault(
        damage_the_account, "hint: .*meterctl verify", ("failed", "does not verify"), "dark", 65
    ),
}


@pytest.fixture
def case() -> Iterator[Case]:
    """A house in a folder that others may look into; pytest's own lets nobody in."""
    need_root()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        house = make_house(
            Path(folder), interval_s=INTERVAL_S, polling_ms=POLLING_MS, commit_s=COMMIT_S
        )
        house.config.write_text(house.config.read_text() + GPIO)
        house.program = (sys.executable, "-m", "tests.mock_pins")
        yield Case(house, stack)


@contextmanager
def running(case: Case) -> Iterator[Program]:
    """Run what the case says."""
    with ExitStack() as stack:
        if case.plugged:
            stack.enter_context(case.house.board(*BOARD, *case.board))
        yield stack.enter_context(
            case.house.run_scaled(SPEED, case.epoch_ms, wrap=case.wrap, environ=case.environ)
        )


def live_well(case: Case, epoch_ms: int) -> Stored:
    """Meter until blocks are sealed, what was open and absent before among them."""
    well = replace(case, epoch_ms=epoch_ms, board=(), plugged=True, wrap=())
    with running(well) as meter:
        for _ in range(4):
            meter.hear("^sealed ")
        until(lambda: "led shows well" in meter.lines, "the LED")
        assert meter.stop() == 0
    case.house.verify_good()
    return Stored(case.house.state)


def told_of(case: Case, fault: Fault) -> list[Event]:
    """Return the events of a fault: an alarm's kind is what it is called, a failure its reason."""
    kind, what = fault.event
    return [
        event
        for event in case.house.account.events
        if event.kind == kind and what in str(event["alarm" if kind == "alarm" else "reason"])
    ]


def go_wrong(case: Case, fault: Fault) -> Program:
    """Run it with the fault until it has said so, or has ended."""
    peer = None
    with ExitStack() as stack:
        meter = stack.enter_context(running(case))
        if fault.code is not None:
            assert meter.end() == fault.code, meter.said
            assert "Traceback" not in meter.said
            assert len(re.findall("^meterd: error: ", meter.said, flags=re.MULTILINE)) == 1
            return meter
        if case.peer:
            command = ("--config", case.house.config, "--state", case.house.state)
            arguments = (sys.executable, "-c", IMPATIENT_PEER, "peer", *command)
            peer = stack.enter_context(Program(arguments))
            peer.hear("^broker_(lost|refused) .*(no connection|renew)")
        meter.hear(fault.message)
        if fault.led != "dark":
            until(lambda: f"led shows {fault.led}" in meter.lines, f"the LED: {meter.said}")
        case.house.ask()
        assert meter.stop() == 0
        if peer is not None:
            told = [line for line in peer.lines if line.startswith("broker_")]
            assert len(set(told)) == len(told), peer.said
    return meter


@pytest.mark.parametrize("fault", TABLE.values(), ids=TABLE)
def test_a_fault_is_told_once_and_nothing_is_lost(case: Case, fault: Fault) -> None:
    if fault.prepare is not None:
        fault.prepare(case)
    before = live_well(case, EPOCH_MS)
    blocks = [block.hash for block in case.house.account.blocks]
    program, environ = case.house.program, dict(case.environ)
    with ExitStack() as undo:
        faulty = replace(case, stack=undo, environ=dict(environ))
        fault.provoke(faulty)
        meter = go_wrong(faulty, fault)
        assert len(re.findall(fault.message, meter.said, flags=re.MULTILINE)) == 1, meter.said
        warned = [line for line in meter.lines if not line.startswith(OTHER_LINES)]
        assert len(set(warned)) == len(warned), f"something is repeated: {meter.said}"
        if fault.led == "dark":
            assert "led shows well" not in meter.lines or fault.code is not None
    case.house.program = program
    after = live_well(case, EPOCH_MS + 2 * DAY_MS)
    assert after.powers_mw[: before.rows] == before.powers_mw
    assert [block.hash for block in case.house.account.blocks][: len(blocks)] == blocks
    assert after.import_uj > before.import_uj
    if fault.event[0]:
        assert len(told_of(case, fault)) == 1
    assert not (case.house.state / FAILURES_FILE).exists()


def test_the_readme_has_every_fault_with_its_event_and_what_the_led_shows() -> None:
    text = (ROOT / "README.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    table = {row[0].removeprefix("| "): row for row in rows if len(row) == 5}
    for name, fault in TABLE.items():
        _, says, event, led, code = table[name]
        assert says
        assert (
            f"`{fault.event[1]}`" if fault.event[0] == "alarm" else fault.event[0] or "none"
        ) in event
        assert led == (
            fault.led if fault.led == "dark" else PATTERNS[fault.led].split(", pause")[0]
        )
        assert code.rstrip(" |") == ("goes on" if fault.code is None else f"ends with {fault.code}")


def test_every_alarm_of_the_table_has_a_pattern() -> None:
    for name, fault in TABLE.items():
        if fault.event[0] == "alarm" and fault.led != "dark":
            assert ALARMS[fault.event[1]] == fault.led, name
    assert CLAIMS.keys() <= ALARMS.keys()
