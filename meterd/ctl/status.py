"""`meterctl status`: is the meter well? By its daemon, or by its account where none answers.

One screen of 80 by 24: the answer first, and where it is no, what to do.
"""

from __future__ import annotations

import json
import shutil
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from meterd.authority.roster import WITNESSED_MAX
from meterd.cli import seen
from meterd.ctl.account import StoredAccount, certified_height_of
from meterd.ctl.advice import Here, doable
from meterd.ctl.alarm_words import kind_of, ordered, todo
from meterd.ctl.in_session import inside
from meterd.ctl.options import add_json, add_socket, add_state, socket_of
from meterd.ctl.registers import readings_line, registers_of
from meterd.ctl.show import (
    COLUMNS,
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
ROWS = 23  # of a terminal of 24, with the prompt
_INDENT = 11  # of what stands beside a line's first word
_CIRCUIT = "circuit "
_LOOK = Here("`meterctl doctor` looks why")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl status`."""
    parser.epilog = """\
The first line says whether it is well: no alarm stands, and it meters. Where no
daemon answers, the account is read, and `source` says so. `meterctl doctor`
looks at the device itself.

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
    except AbsentError:
        account = StoredAccount(options.state)
        reply = {"source": "account"} | status_of(account)
        if not options.json:
            note("no meterd answers: this is what the account says")
    if options.json:
        print(json.dumps(reply))
    else:
        print("\n".join(lines(reply, _zone(options), session=inside())))
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


def answer(reply: dict[str, Any]) -> tuple[str, str]:
    """Return what is not well, and what to do about it; nothing of both where all is well.

    >>> answer({"source": "daemon", "state": "metering", "alarms": []})
    ('', '')
    >>> answer({"source": "daemon", "state": "silent", "alarms": ["port: the board is silent"]})[0]
    'the board is silent'
    """
    if reply["source"] != "daemon":
        state = reply["state"]
        told = "no daemon answers" if state == "not answering" else f"the meter is {state}"
        return told, "`systemctl start meterd`, or `meterd run --config FILE`"
    if reply["alarms"]:
        first, *more = ordered(reply["alarms"])
        text = first.partition(": ")[2] or kind_of(first)
        return text + (f" (and {count(len(more), 'more alarm')})" if more else ""), todo(first)
    if reply["state"] != "metering":
        state = str(reply["state"])
        waits = state.removeprefix("metering, ")
        return f"it {waits}" if waits != state else f"the port is {state}", _LOOK
    return "", ""


def lines(reply: dict[str, Any], zone: tzinfo, *, session: bool = False) -> list[str]:
    """Return a status for people, in 80 columns and no more lines than a screen has.

    Args:
        reply: The daemon's word, or the account's.
        zone: In which times are told.
        session: Whether a technician's session shows it.
    """
    wrong, todo = answer(reply)
    do = f"do: {doable(todo, session=session)}"
    head = _folded("not well:", wrong, 10) + _folded("", do, 10) if wrong else ["well"]
    about = _about(reply, zone)
    alarms = [
        line for alarm in ordered(reply["alarms"]) for line in _folded("alarm", alarm, _INDENT)
    ] or ["alarms     none"]
    if len(head) + len(about) + len(alarms) > ROWS:
        circuits = [line for line in about if line.startswith(_CIRCUIT)]
        about = [line for line in about if line not in circuits]
        if circuits:
            about.append(f"circuits   {len(circuits)}: see `meterctl registers`")
    room = ROWS - len(head) - len(about)
    if len(alarms) > room:
        alarms = [*alarms[: room - 1], "           … see `meterctl status --json`"]
    return head + about + alarms


def _folded(word: str, text: str, indent: int) -> list[str]:
    first, *rest = wrap(seen(text), COLUMNS - indent) or [""]
    return [f"{word:{indent}}{first}", *(f"{'':{indent}}{line}" for line in rest)]


def _about(reply: dict[str, Any], zone: tzinfo) -> list[str]:
    """Return the facts, a line each."""
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
        upto = neighbours["certified_height"]
        told = f"up to block {upto}" if upto else "nothing yet"
        found.append(f"{word}  {told}")
        if neighbours["waits"]:
            found += _folded("sealing", f"waits: {neighbours['waits']}", _INDENT)
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
    return [line for each in found for line in _folded("", each, 0)]
