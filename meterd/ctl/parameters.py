"""`meterctl parameters`: what the meter measures under, and who may change it."""

from __future__ import annotations

import json
from textwrap import fill
from typing import TYPE_CHECKING, Any

from meterd.config_signed import missing
from meterd.ctl.options import add_json, add_socket, add_state, socket_of
from meterd.ctl.show import COLUMNS, Column, print_table
from meterd.device.control_client import ControlClient
from meterd.device.control_parameters import INTERFACE
from meterd.enrolment import key_words
from meterd.ledger.parameters import BY, COMMAND, COMMISSIONED, MISSING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

HASH_LETTERS = 16  # of a hash, for people
LACKS = "lacks       "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl parameters`."""
    parser.epilog = """\
Once a meter is commissioned they change by signed commands alone: see
`meterctl calibrate`. What they were before is in `meterctl events --kind
parameters`.

examples:
  meterctl parameters
  meterctl parameters --json
"""
    add_state(parser)
    add_socket(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show the parameters; returns the exit code."""
    told = desk_of(options).call("Show")
    if options.json:
        print(json.dumps(told | {"owner_id": key_words(bytes.fromhex(told["owner"]))}))
        return 0
    record = told["record"][:HASH_LETTERS]
    print(f"meter       {told['meter']}")
    print(f"record      {told['sequence']}, {record}, by {who(told['signed'])}")
    print(f"changed by  {changers(told)}")
    if told["owner"]:
        print(f"key         {told['owner']}")
        print(f"key id      {key_words(bytes.fromhex(told['owner']))}")
    if lacks := missing(tuple(told["signed"].items())):
        print(fill(lacks, COLUMNS, initial_indent=LACKS, subsequent_indent=" " * len(LACKS)))
    print()
    print_table((Column("parameter", 24), Column("value")), list(told["settings"].items()))
    return 0


def desk_of(options: argparse.Namespace) -> ControlClient:
    """Return a client for what concerns parameters."""
    return ControlClient(socket_of(options), interface=INTERFACE)


def who(signed: Mapping[str, str]) -> str:
    """Return in a few words what the parameters rest on.

    >>> who({})
    "the settings' file"
    >>> who({"signed.by": "jo", "signed.command": "5f0c" + 60 * "0"})
    'command 5f0c000000000000 of jo'
    """
    if COMMAND in signed:
        return f"command {signed[COMMAND][:HASH_LETTERS]} of {signed.get(BY, '')}"
    if COMMISSIONED in signed:
        return f"commissioning {signed[COMMISSIONED][:HASH_LETTERS]}"
    return "the settings' file"


def changers(told: Mapping[str, Any]) -> str:
    """Return whose word changes the parameters, from what the daemon shows.

    >>> changers({"owner": "", "distributor": "", "signed": {}})
    "the settings' file, until it is commissioned"
    """
    named = (told["distributor"] or "the owner") if told["owner"] else ""
    if told["signed"].keys() - {MISSING}:
        return named
    return f"the settings' file{f', or {named}' if named else ''}, until it is commissioned"
