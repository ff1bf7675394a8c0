"""`meterd`: the daemon, and what stands in for the board and the years.

Each subcommand's module is imported only when it is called: the daemon carries nothing that it does
not need to meter.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from meterd.cli import Parser, run

if TYPE_CHECKING:
    from types import ModuleType

COMMANDS = {
    "run": ("meterd.run", "meter: read the board, integrate, log, seal"),
    "peer": ("meterd.peer", "witness the neighbours, and be witnessed by them"),
    "replay": ("meterd.replay", "put a capture through the same path, as fast as it goes"),
    "board": ("meterd.board_simulator", "play a clamp board on a pty"),
    "demo": ("meterd.demo", "watch a street being metered, sealed and certified"),
}


NOT_NEEDED_TO_METER = ("ssl", "_hashlib")  # OpenSSL: 6 MB, and code that parses what a network says


def _leave_out(modules: tuple[str, ...]) -> None:
    """Let the standard library do without `modules`: asyncio without TLS, hashlib with its own."""
    for name in modules:
        if name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]  # importing it fails from now on


def main(argv: list[str] | None = None) -> int:
    """Run `meterd` and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run("meterd", lambda: _main(arguments))


def _load(name: str) -> ModuleType:
    """Import a module; where its file was changed so that it is no Python any more, say that."""
    try:
        return importlib.import_module(name)
    except Exception:
        from meterd.software import check_installed

        check_installed()
        raise


def _main(argv: list[str]) -> int:
    parser = Parser(prog="meterd", description="The meter daemon and its stand-ins.")
    parser.add_version()
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in argv if not word.startswith("-")), "")
    if chosen == "run":
        _leave_out(NOT_NEEDED_TO_METER)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            _load(module).add_arguments(command)
    options = parser.parse_args(argv)
    return int(importlib.import_module(COMMANDS[options.command][0]).run(options))


if __name__ == "__main__":
    sys.exit(main())
