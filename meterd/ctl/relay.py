"""`meterctl relay`: show the disconnect relay, open it, close it."""

from __future__ import annotations

import json
import select
import time
from typing import TYPE_CHECKING, Any

from meterd.ctl.in_session import technician
from meterd.ctl.options import add_action, add_json, add_socket, add_state, socket_of
from meterd.device.control_client import ControlClient
from meterd.errors import StorageError

if TYPE_CHECKING:
    import argparse

ACTIONS = {
    "show": "where the relay stands",
    "open": "cut the household off",
    "close": "give the household power",
}
MOVING = {"keeping", "moving"}
MOVES_S_MAX = 10.0  # a card that stalls keeps the wish for seconds; the pin follows at once
LOOK_S = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl relay`."""
    parser.epilog = """\
The disconnect relay is a pin of [gpio].

examples:
  meterctl relay show
  meterctl relay open
"""
    actions = parser.add_subparsers(dest="relay_command", required=True, metavar="ACTION")
    for name, summary in ACTIONS.items():
        command = add_action(actions, name, summary)
        command.epilog = f"""\
The wish is on the card before the pin moves, and stays over restarts. What is
shown is the pin, read back, and not the contact behind it. Everybody who may
ask the meter may look; root and the daemon's own user may switch.

exit status: 0 it is as wished; 69 no daemon, or no relay; 74 the pin does not
  follow; 77 this user may not

examples:
  meterctl relay {name}
  meterctl relay {name} --json
"""
        add_state(command)
        add_socket(command)
        add_json(command)


def run(options: argparse.Namespace) -> int:
    """Show or switch it; returns the exit code."""
    client = ControlClient(socket_of(options))
    if options.relay_command == "show":
        reply = client.call("Relay")
    else:
        closed = options.relay_command == "close"
        reply = _settled(client, client.call("RelaySet", closed=closed, **technician()))
    print(json.dumps(reply) if options.json else _told(reply))
    if reply["state"] == "failed":
        raise StorageError(
            f"the relay's pin does not follow: it was set to be {reply['wished']}",
            hint="look for a short at the pin, and at the alarm `relay`: meterctl status",
        )
    return 0


def _settled(client: ControlClient, reply: dict[str, Any]) -> dict[str, Any]:
    """Return where the relay stands once it has moved, or does not."""
    ends_s = time.monotonic() + MOVES_S_MAX
    while reply["state"] in MOVING and time.monotonic() < ends_s:
        select.select([], [], [], LOOK_S)
        reply = client.call("Relay")
    return reply


def _told(reply: dict[str, Any]) -> str:
    if reply["state"] == reply["wished"]:
        return f"the relay is {reply['state']}"
    return f"the relay is to be {reply['wished']}, and is {reply['state']}"
