"""The meter behind the board: blocks that verify, registers that stay, a watchdog that hears."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hw_tests.rig import INTERVAL_S, PATIENCE_S
from tests.daemon_kit import until

if TYPE_CHECKING:
    from hw_tests.rig import Rig

WATCHDOG_S = 4.0
MARK = b"MARK"


def import_uj(rig: Rig) -> int:
    return int(rig.told("Registers")["registers"]["1-0:1.8.0"]["uj"])


def test_blocks_are_sealed_and_the_account_verifies(rig: Rig) -> None:
    with rig.metering() as meter:
        for _ in range(2):
            meter.hear("^sealed ", deadline_s=rig.real_s(2 * INTERVAL_S) + PATIENCE_S)
        assert rig.told("Status")["clock"] == "S", "the clock is not synchronised: see timedatectl"
        assert meter.stop() == 0
    command = [sys.executable, "-c", "import sys; from meterd.ctl import main; sys.exit(main())"]
    command += ["verify", str(rig.house.state), "--key", rig.house.public_key.hex(), "--json"]
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    verdict = json.loads(said.stdout)
    assert (verdict["verdict"], verdict["key"]) == ("good", "given")
    assert verdict["blocks"] >= 2


def test_registers_outlast_a_stop_and_a_kill(rig: Rig) -> None:
    with rig.metering() as meter:
        rig.live(5)
        stopped_uj = import_uj(rig)
        assert meter.stop() == 0
    assert stopped_uj > 0
    with rig.metering() as meter:
        assert import_uj(rig) >= stopped_uj
        rig.live(5)
        meter.stop(signal.SIGKILL)
    with rig.metering() as meter:
        assert import_uj(rig) >= stopped_uj
        assert meter.stop() == 0
    rig.house.verify_good()


def test_the_watchdog_hears_the_meter_and_not_one_that_hangs(rig: Rig) -> None:
    with rig.manager(WATCHDOG_S) as manager, rig.metering(**manager.environ) as meter:
        until(lambda: manager.pings >= 3, "some pings")
        os.kill(meter.process.pid, signal.SIGSTOP)
        try:
            state = Path(f"/proc/{meter.process.pid}/status")
            until(lambda: "State:\tT" in state.read_text(), "it stands still")
            manager.say(MARK)
            until(lambda: MARK in manager.heard, "what was on its way has come")
            before = manager.pings
            time.sleep(WATCHDOG_S)
            assert manager.pings == before
        finally:
            os.kill(meter.process.pid, signal.SIGCONT)
        assert meter.stop() == 0
