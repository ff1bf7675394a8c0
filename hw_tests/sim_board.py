"""`meterd board` whose one load is switched while it plays: `python -m hw_tests.sim_board …`.

What the load draws, in watts, is the content of the file that $SIM_LOAD_W names; the file is read
anew for each line.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from meterd import board_simulator
from meterd.household import Channel, Load, Moment

VOLTAGE_MV = 230_000
IDLE = Channel(power_mw=0, current_ma=0, voltage_mv=VOLTAGE_MV)


def switched_load(path: Path) -> Load:
    """Return a household whose mains clamp sees one load; two clamps see nothing."""

    def moment(_: int) -> Moment:
        power_mw = round(float(path.read_text()) * 1000)
        seen = Channel(power_mw, abs(power_mw) * 1000 // VOLTAGE_MV, VOLTAGE_MV)
        return Moment((seen, IDLE, IDLE))

    return moment


if __name__ == "__main__":
    from meterd.__main__ import main

    load = switched_load(Path(os.environ["SIM_LOAD_W"]))
    vars(board_simulator)["synthetic_household"] = lambda _: load
    sys.argv[1:1] = ["board"]
    sys.exit(main())
