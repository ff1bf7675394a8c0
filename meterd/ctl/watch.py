"""`meterctl watch`: readings as they come, from the daemon."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import TYPE_CHECKING

from meterd.ctl.options import add_json, add_socket, add_state, positive, socket_of
from meterd.ctl.show import kwh, local_ms, thousandths, zone_of
from meterd.device.control_client import ControlClient
from meterd.errors import MeterdError
from meterd.init import read_genesis

if TYPE_CHECKING:
    import argparse

TITLES_EVERY = 20  # lines: they stay in sight


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl watch`."""
    parser.epilog = """\
Power is positive where it is drawn from the grid. Ends with Ctrl-C.

examples:
  meterctl watch
  meterctl watch --count 1 --json
"""
    add_state(parser)
    add_socket(parser)
    parser.add_argument("--count", type=positive, metavar="N", help="end after N readings")
    add_json(parser, "print JSON, one object a line")


def run(options: argparse.Namespace) -> int:
    """Show readings until the daemon stops, or the user; returns the exit code."""
    readings = ControlClient(socket_of(options)).stream("Live")
    try:
        zone = zone_of(read_genesis(options.state).zone)
    except (MeterdError, OSError):  # the socket may be ours to use and the folder not
        zone = zone_of("UTC")
    for number, reading in enumerate(islice(readings, options.count)):
        if options.json:
            print(json.dumps(reading))
        else:
            if number % (TITLES_EVERY if sys.stdout.isatty() else sys.maxsize) == 0:
                print(
                    f"{'time':25} {'W':>9} {'V':>6} {'A':>7} {'import kWh':>12} {'export kWh':>12}"
                )
            amperes = sum(reading["currents_ma"])
            volts = thousandths(reading["voltage_mv"], 1) if reading["voltage_mv"] else "-"
            print(
                f"{local_ms(reading['wall_ms'], zone, 'seconds'):25}"
                f" {thousandths(reading['power_mw'], 1):>9} {volts:>6}"
                f" {thousandths(amperes, 2):>7}"
                f" {kwh(reading['import_uj']):>12} {kwh(reading['export_uj']):>12}"
            )
        sys.stdout.flush()
    return 0
