"""Bad input to the whole program: refused at the start with one message, or told while it meters.

What must hold is in CONTRACTS.md (exit codes) and in row C2 of REQUIREMENTS.md.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.accounts import replay_lines
from tests.daemon_kit import EPOCH_MS, NOBODY, Cable, House, Stored, line, make_house, need_root
from tests.fast_house_kit import (
    BOARD,
    POLLING_MS,
    SPEED,
    edit,
    import_uj,
    make_fast_house,
    only_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# --- refused at the start -------------------------------------------------------------------------


class Attempt(NamedTuple):
    """How the daemon is started, where not as usual."""

    options: tuple[str, ...] = ()
    wrap: tuple[str, ...] = ()
    config: Path | None = None
    state: Path | None = None


AS_USUAL = Attempt()
HISTORY = [f"{1_795_305_600 + 5 * n}\t{line(300 + n).decode().strip()}" for n in range(400)]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An account with blocks, for every refusal to leave as it is."""
    folder = tmp_path_factory.mktemp("history")
    house = make_house(folder, state=folder / "made", network="")
    replay_lines(HISTORY, house.config.read_text(), folder / "account")
    return folder / "account"


@pytest.fixture
def house(tmp_path: Path, history: Path) -> House:
    """A house with history, its board plugged in."""
    house = make_house(tmp_path, network="")
    shutil.rmtree(house.state)
    shutil.copytree(history, house.state)
    return house


def pull_the_cable(house: House, _: ExitStack) -> Attempt:
    house.port.unlink()
    return AS_USUAL


def name_a_file(house: House, _: ExitStack) -> Attempt:
    house.port.unlink()
    house.port.write_bytes(b"")
    return AS_USUAL


def be_nobody(house: House, stack: ExitStack) -> Attempt:
    """Own all but the port; pytest's own folders let no other user in."""
    need_root()
    folder = Path(stack.enter_context(TemporaryDirectory()))
    folder.chmod(0o755)
    state = folder / "account"
    shutil.copytree(house.state, state)
    shutil.copy(house.config, folder)
    edit(folder / house.config.name, str(house.port), str(house.port.readlink()))
    for path in (state, *state.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return Attempt(wrap=user, config=folder / house.config.name, state=state)


def keep_the_account_from_nobody(house: House, stack: ExitStack) -> Attempt:
    attempt = be_nobody(house, stack)
    assert attempt.state is not None
    os.chown(attempt.state, 0, 0)
    return attempt


def hold_the_port(house: House, stack: ExitStack) -> Attempt:
    held = os.open(house.port, os.O_RDWR | os.O_NOCTTY)
    stack.callback(os.close, held)
    fcntl.flock(held, fcntl.LOCK_EX)
    return AS_USUAL


def run_another(house: House, stack: ExitStack) -> Attempt:
    other = stack.enter_context(house.run())
    other.hear("port_opened")
    stack.callback(other.stop)
    return AS_USUAL


def take_a_foreign_key(house: House, _: ExitStack) -> Attempt:
    (house.state / "seal.key").write_text("11" * 32 + "\n")
    return AS_USUAL


def lose_the_key(house: House, _: ExitStack) -> Attempt:
    (house.state / "seal.key").unlink()
    return AS_USUAL


def show_the_key(house: House, _: ExitStack) -> Attempt:
    (house.state / "seal.key").chmod(0o644)
    return AS_USUAL


def damage_a_block(house: House, _: ExitStack) -> Attempt:
    path = house.state / "blocks" / "00000001.seg"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return AS_USUAL


def damage_the_genesis(house: House, _: ExitStack) -> Attempt:
    path = house.state / "genesis.cbor"
    path.write_bytes(path.read_bytes()[:-1])
    return AS_USUAL


def corrupt_the_settings(house: House, _: ExitStack) -> Attempt:
    house.config.write_bytes(b"[meter\nname = 7\n")
    return AS_USUAL


def mistake_two_settings(house: House, _: ExitStack) -> Attempt:
    edit(house.config, "polling_ms = 5000", "polling_ms = 0")
    edit(house.config, 'role = "mains"', 'role = "mane"')
    return AS_USUAL


def rename_the_meter(house: House, _: ExitStack) -> Attempt:
    edit(house.config, "kitchen-12", "kitchen-13")
    return AS_USUAL


def change_the_interval(house: House, _: ExitStack) -> Attempt:
    edit(house.config, "interval_s = 1800", "interval_s = 900")
    return AS_USUAL


@pytest.mark.parametrize(
    ("prepare", "status", "error", "hint"),
    [
        pytest.param(pull_the_cable, 69, "no such port", "plug|port", id="port unplugged"),
        pytest.param(name_a_file, 69, "no serial port behind", "port", id="port is a file"),
        pytest.param(be_nobody, 77, "not allowed to open /dev", "group", id="port forbidden"),
        pytest.param(hold_the_port, 75, "another program holds", "fuser", id="port busy"),
        pytest.param(
            keep_the_account_from_nobody, 77, "no permission", "owner", id="account forbidden"
        ),
        pytest.param(run_another, 75, "another process writes", "running", id="second instance"),
        pytest.param(take_a_foreign_key, 78, "not the one that", "own key", id="foreign key"),
        pytest.param(lose_the_key, 69, "no sealing key", "meterctl init", id="no key"),
        pytest.param(show_the_key, 77, "read or changed by others", "chmod 600", id="open key"),
        pytest.param(damage_a_block, 65, "does not verify", "meterctl verify", id="damaged"),
        pytest.param(damage_the_genesis, 78, "genesis", "put back", id="damaged genesis"),
        pytest.param(corrupt_the_settings, 78, "line 1", "config check", id="corrupt settings"),
        pytest.param(mistake_two_settings, 78, "2 mistakes", "config check", id="two mistakes"),
        pytest.param(rename_the_meter, 78, "kitchen-13", "meter.name", id="another name"),
        pytest.param(change_the_interval, 78, "900.*1800", "interval", id="another interval"),
        pytest.param(
            lambda *_: Attempt(config=Path("absent.toml")),
            78,
            "no settings file",
            "meterctl init",
            id="no settings",
        ),
        pytest.param(
            lambda *_: Attempt(state=Path("absent")),
            78,
            "no account in",
            "meterctl init",
            id="no account",
        ),
        pytest.param(
            lambda *_: Attempt(options=("--speed", "600")),
            78,
            "scaled clock is refused",
            "demo",
            id="scaled outside a demo",
        ),
        pytest.param(
            lambda *_: Attempt(options=("--fast",)), 64, "--fast", "--help", id="unknown option"
        ),
    ],
)
def test_a_start_is_refused_with_one_message_and_the_account_left_as_it_is(
    house: House,
    prepare: Callable[[House, ExitStack], Attempt],
    status: int,
    error: str,
    hint: str,
) -> None:
    with ExitStack() as stack:
        cable = Cable(house.port)
        stack.callback(cable.close)
        attempt = prepare(house, stack)
        tried = House(
            folder=house.folder,
            config=attempt.config or house.config,
            state=attempt.state or house.state,
            port=house.port,
        )
        before = tried.content
        with tried.run(*attempt.options, wrap=attempt.wrap) as meter:
            assert meter.end() == status, meter.said
        told, told_hint = only_error(meter)
        assert re.search(error, told)
        assert re.search(hint, told_hint)
        assert tried.content == before
        if (tried.state / "genesis.cbor").exists() and "damage" not in prepare.__name__:
            tried.verify_good()


# --- told while metering goes on ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "change", "alarm", "text"),
    [
        pytest.param(
            ("--fault", "wrong-baud@0+1000000"), None, "garbage", "38400 baud", id="wrong baud"
        ),
        pytest.param(
            ("--layout", "rpict3v1-sketch2"), None, "layout", r"board\.layout", id="wrong layout"
        ),
        pytest.param(
            (),
            (f"polling_ms = {POLLING_MS}", f"polling_ms = {4 * POLLING_MS}"),
            "cadence",
            r"lines come every \d+\.\d s, board.polling_ms says 60.0 s: set it",
            id="wrong polling setting",
        ),
        pytest.param(
            ("--fault", "adaptor-out@60+1000000"), None, "adaptor_out", "adaptor", id="no adaptor"
        ),
        pytest.param(("--fault", "frozen@60+1000000"), None, "frozen", "one line", id="frozen"),
    ],
)
def test_metering_goes_on_with_one_alarm_that_says_what_to_do(
    tmp_path: Path,
    board: tuple[str, ...],
    change: tuple[str, str] | None,
    alarm: str,
    text: str,
) -> None:
    house = make_fast_house(tmp_path)
    if change:
        edit(house.config, *change)
    with house.board(*BOARD, *board), house.run_scaled(SPEED) as meter:
        said = meter.hear(f"^alarm alarm={alarm} ").string
        assert re.search(text, said)
        house.ask()
        assert any(text.startswith(f"{alarm}: ") for text in status_of(house)["alarms"])
        assert meter.stop() == 0
    assert meter.said.count(f"alarm alarm={alarm} ") >= 1
    assert "error" not in meter.said
    raised = [event["alarm"] for event in house.account.events if event.kind == "alarm"]
    assert alarm in raised
    house.verify_good()


def status_of(house: House) -> dict[str, Any]:
    return house.ask().call("Status")


def test_a_clock_at_1970_is_told_and_its_energy_counted_once_the_clock_is_set(
    tmp_path: Path,
) -> None:
    house = make_fast_house(tmp_path)
    with house.board(*BOARD):
        with house.run_scaled(SPEED, 0) as meter:
            meter.hear('alarm=clock text="the clock stands before the year 2000')
            house.wait_accepted(100)
            status = status_of(house)
            assert status["height"] == 0
            assert meter.stop() == 0
        stored = Stored(house.state)
        assert stored.import_uj > 0
        house.verify_good()
        with house.run_scaled(SPEED, EPOCH_MS) as again:
            again.hear("^sealed ")
            assert import_uj(house.ask()) >= stored.import_uj
            assert again.stop() == 0
    house.verify_good()
    first = house.account.blocks[0]
    assert first.energy[0].last_uj == stored.import_uj
    assert "alarm=clock" not in again.said
