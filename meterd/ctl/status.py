"""`meterctl status`: how the meter is, by its daemon, or by its account where none answers."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from meterd.authority.roster import WITNESSED_MAX
from meterd.ctl.account import StoredAccount, certified_height_of
from meterd.ctl.options import add_json, add_socket, add_state, socket_of
from meterd.ctl.registers import readings_line, registers_of
from meterd.ctl.show import (
    count,
    kwh,
    local,
    note,
    register_name,
    register_unit,
    thousandths,
    zone_of,
)
from meterd.device.control_client import ControlClient
from meterd.errors import AbsentError, MeterdError
from meterd.init import read_genesis

if TYPE_CHECKING:
    import argparse
    from datetime import tzinfo

_CLOCKS = {
    "S": "S, synchronised",
    "I": "I, informative",
    "R": "R, not set: intervals are cut once it is",
}
ID_LETTERS = 12  # of the software id: tells builds apart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl status`."""
    parser.epilog = """\
Where no daemon answers, the account is read, and `source` says so.

examples:
  meterctl status
  meterctl status --state ./account --json
"""
    add_state(parser)
    add_socket(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Show how the meter is; returns the exit code."""
    try:
        reply = {"source": "daemon"} | ControlClient(socket_of(options)).call("Status")
    except AbsentError as absent:
        account = StoredAccount(options.state)
        reply = {"source": "account"} | status_of(account)
        if not options.json:
            note(f"{absent}; this is what the account says")
    if options.json:
        print(json.dumps(reply))
    else:
        print("\n".join(lines(reply, _zone(options))))
    return 0


def _zone(options: argparse.Namespace) -> tzinfo:
    try:
        return zone_of(read_genesis(options.state).zone)
    except (MeterdError, OSError):  # the socket may be ours to use and the folder not
        return zone_of("UTC")


def status_of(account: StoredAccount) -> dict[str, Any]:
    """Return what the daemon would say, as far as the account knows it."""
    registers = registers_of(account)
    last = account.blocks[-1].block if account.blocks else None
    newest = max(account.parameters.values(), key=lambda record: record.sequence, default=None)
    alarms: dict[str, str] = {}
    state = "never started"
    for event in account.events:
        details = dict(event.details)
        if event.kind == "started":
            alarms, state = {}, "not answering"
        elif event.kind == "stopped":
            state = "stopped"
        elif event.kind == "alarm":
            alarms[str(details.get("alarm"))] = "stood when the account was last written"
        elif event.kind == "alarm_over":
            alarms.pop(str(details.get("alarm")), None)
    sealed = sum(block.block.records for block in account.blocks)
    rows = registers["readings"]["accepted"] - sealed
    return {
        "name": account.meter,
        "software": newest.software_id.hex() if newest else "",
        "state": state,
        "port": "unknown",
        "clock": last.clock.status if last else "R",
        "height": registers["height"],
        "last_end_s": last.end_s if last else None,
        "open": {"start_s": last.end_s if last else None, "records": rows, "power_mw": None}
        if rows > 0
        else None,
        "registers": registers["registers"],
        "readings": registers["readings"],
        "gaps": registers["gaps"],
        "storage_free_bytes": shutil.disk_usage(account.state).free,
        "neighbours": _witnesses(account, registers["height"]),
        "alarms": [f"{kind}: {text}" for kind, text in sorted(alarms.items())],
    }


def _witnesses(account: StoredAccount, height: int) -> dict[str, Any]:
    """Return what is known of the neighbours while the daemon is stopped."""
    voters = len(account.roster.committee.voters)
    certified = min(certified_height_of(account), height) if voters else height
    order = account.roster.head.height
    return {"voters": voters, "certified_height": certified, "order": order, "waits": ""}


def lines(reply: dict[str, Any], zone: tzinfo) -> list[str]:
    """Return a status for people."""
    live = reply["source"] == "daemon"
    found = [f"{reply['name']}: {reply['state']} (software {reply['software'][:ID_LETTERS]})"]
    for code, register in reply["registers"].items():
        found.append(
            f"{register_name(code):10} {kwh(register['uj']):>14} {register_unit(code):4} "
            f" {register['kind']}"
        )
    if reply["last_end_s"] is None:
        found.append("sealed     nothing yet")
    else:
        height, end_s = reply["height"], reply["last_end_s"]
        found.append(f"sealed     {count(height, 'block')}, up to {local(end_s, zone)}")
    neighbours = reply.get("neighbours")
    if neighbours and neighbours["voters"]:
        word = "certified" if neighbours["voters"] > WITNESSED_MAX else "witnessed"
        found.append(f"{word}  up to block {neighbours['certified_height']}")
        if neighbours["waits"]:
            found.append(f"sealing    waits: {neighbours['waits']}")
    opened = reply["open"]
    if opened:
        power = opened["power_mw"]
        there = power is not None and reply.get("port") == "open"
        watts = f", {thousandths(power, 1)} W now" if there else ""
        since = f" since {local(opened['start_s'], zone)}" if opened["start_s"] is not None else ""
        found.append(f"open       {count(opened['records'], 'row')}{since}{watts}")
    span = "since the start" if live else "in all"
    found.append(f"board      {readings_line(reply['readings'], reply['gaps'])} {span}")
    if live:
        found.append(f"port       {reply['port']}")
    clock = _CLOCKS.get(reply["clock"], reply["clock"])
    found.append(f"clock      {clock}{'' if live else ' (at the last block)'}")
    found.append(f"card       {reply['storage_free_bytes'] // 1_000_000} MB free")
    alarms = reply["alarms"]
    found += [f"alarm      {alarm}" for alarm in alarms] or ["alarms     none"]
    return found
