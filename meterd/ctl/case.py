"""`meterctl case`: acknowledge that the case was opened."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from meterd.ctl.in_session import technician
from meterd.ctl.options import add_action, add_json, add_socket, add_state, socket_of
from meterd.device.control_client import ControlClient

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl case`."""
    parser.epilog = """\
The case switch is a pin of [gpio].

examples:
  meterctl case ack
"""
    actions = parser.add_subparsers(dest="case_command", required=True, metavar="ACTION")
    summary = "let the alarm fall that the case was opened"
    command = add_action(actions, "ack", summary)
    command.epilog = """\
The alarm stands, over restarts too, until somebody has looked at the meter and
says so here. That is an event of the account, with the certificate of the
session that it came from, or the role of whoever said it.

exit status: 0 it stood and has fallen, or did not stand; 69 no daemon answers;
  77 this user may not

examples:
  meterctl case ack
  meterctl case ack --json
"""
    add_state(command)
    add_socket(command)
    add_json(command)


def run(options: argparse.Namespace) -> int:
    """Acknowledge it; returns the exit code."""
    reply = ControlClient(socket_of(options)).call("CaseAcknowledge", **technician())
    if options.json:
        print(json.dumps(reply))
    elif reply["stood"]:
        print("acknowledged: the alarm that the case was opened stands no more")
    else:
        print("nothing to acknowledge: the alarm does not stand")
    return 0
