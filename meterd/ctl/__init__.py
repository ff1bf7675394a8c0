"""`meterctl`: what a technician, a household or a utility asks of a meter, or of its account.

Most commands read the account alone: they need no daemon, no network and no lock. Data goes to
stdout; what is wrong, and what to try, to stderr. Each command's module is imported only when it is
called.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import TYPE_CHECKING

from meterd.cli import Parser, run
from meterd.ctl.in_session import inside

if TYPE_CHECKING:
    from collections.abc import Collection

COMMANDS = {
    "init": ("meterd.ctl.init", "make a meter: its key, its genesis, its settings"),
    "verify": ("meterd.ctl.verify", "judge an account: good, bad at a first place, unreadable"),
    "status": ("meterd.ctl.status", "how the meter is"),
    "doctor": ("meterd.ctl.doctor", "what is well with this device, and what to do if not"),
    "report": ("meterd.ctl.report", "a sealed file for the office: what the device says"),
    "watch": ("meterd.ctl.watch", "readings as they come"),
    "registers": ("meterd.ctl.registers", "energy counted since the meter was commissioned"),
    "usage": ("meterd.ctl.usage", "energy by days and hours, as bars"),
    "blocks": ("meterd.ctl.blocks", "list sealed intervals"),
    "samples": ("meterd.ctl.samples", "list stored readings"),
    "events": ("meterd.ctl.events", "list what has happened"),
    "export": ("meterd.ctl.export", "write a sealed block as it is"),
    "key": ("meterd.ctl.key", "show the public key and the genesis hash"),
    "prune": ("meterd.ctl.prune", "remove old samples; blocks and events stay"),
    "case": ("meterd.ctl.case", "acknowledge that the case was opened"),
    "relay": ("meterd.ctl.relay", "the disconnect relay: show, open, close"),
    "anchor": ("meterd.ctl.anchor", "timestamps of the head from outside: get one, check them"),
    "config": ("meterd.ctl.config", "check settings"),
    "commission": ("meterd.ctl.commission", "take a meter into service, step by step"),
    "parameters": ("meterd.ctl.parameters", "what is measured under, and who may change it"),
    "calibrate": ("meterd.ctl.calibrate", "hold a clamp against a reference; signed changes"),
    "head": ("meterd.ctl.head", "how far the chain is sealed, and certified by others"),
    "peers": ("meterd.ctl.peers", "neighbours, brokers, and everybody's chains"),
    "receipt": ("meterd.ctl.receipt", "write what proves a certified block to a stranger"),
    "evidence": ("meterd.ctl.evidence", "who is proved to have signed two histories"),
    "order": ("meterd.ctl.order", "the distributor's: sign orders, send them, list them"),
    "replace": ("meterd.ctl.replace", "another device takes a meter's place: who does what"),
    "vault": ("meterd.ctl.vault", "the device's secret, and what its vault holds"),
    "network": ("meterd.ctl.network", "found a network, enrol in it, look at it"),
    "lockdown": ("meterd.ctl.lockdown", "close a device: show, apply, check, undo"),
    "broker-config": ("meterd.ctl.broker_config", "a broker's settings; certificates of a street"),
    "completion": ("meterd.ctl.completion", "what makes a shell complete these commands"),
    "ca": ("meterd.ctl.technician_ca", "certificates by which technicians come in over SSH"),
}

EPILOG = """\
examples:
  meterctl init --state ./account --config meterd.toml
  meterctl verify ./account --key key.txt
  meterctl usage --days 14
  meterctl COMMAND --help

exit status:
  0 good; verify: 1 bad, 2 unreadable; 64 usage; 69 something needed is absent;
  74 card or cable; 75 busy; 77 permission; 78 settings and account do not fit
"""


def main(argv: list[str] | None = None) -> int:
    """Run `meterctl` and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not inside():
        return run("meterctl", lambda: _main(arguments, Parser))
    from meterd.ctl import advice
    from meterd.ctl.technician_commands import HINT

    class SessionParser(Parser):
        hint = HINT  # a session has no --help of a command

    return run(
        "meterctl", lambda: _main(arguments, SessionParser), partial(advice.hint, session=True)
    )


def _main(argv: list[str], kind: type[Parser]) -> int:
    chosen = next((word for word in argv if not word.startswith("-")), "")
    options = parser_of({chosen}, kind).parse_args(argv)
    return int(importlib.import_module(COMMANDS[options.command][0]).run(options))


def parser_of(chosen: Collection[str], kind: type[Parser] = Parser) -> Parser:
    """Return the parser of all commands; it knows the arguments of those that are chosen."""
    parser = kind(prog="meterctl", description="Ask a meter, or judge its account.", epilog=EPILOG)
    parser.add_version()
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{name}: {summary}.")
        if name in chosen:
            importlib.import_module(module).add_arguments(command)
    return parser
