"""`meterctl config`: check settings, all mistakes in one go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.config import check, load
from meterd.ctl.options import add_action, add_json
from meterd.ctl.show import count
from meterd.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from meterd.config_tables import Mistake


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl config`."""
    commands = parser.add_subparsers(dest="config_command", required=True, metavar="COMMAND")
    summary = "name every mistake, with its key, its line and what to do"
    command = add_action(commands, "check", summary)
    command.epilog = """\
exit status: 0 no mistake (warnings may be), 78 mistakes

examples:
  meterctl config check /etc/meterd/meterd.toml
  meterctl config check meterd.toml --json
"""
    command.add_argument("file", type=Path, metavar="FILE", help="settings, TOML")
    add_json(command)


def run(options: argparse.Namespace) -> int:
    """Check the settings; returns the exit code."""
    path: Path = options.file
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        load(path)  # tells what is wrong with the file
        raise
    _, mistakes = check(text, source=path.name)
    wrong = [mistake for mistake in mistakes if not mistake.warning]
    if options.json:
        print(json.dumps({"file": str(path), "mistakes": [m._asdict() for m in mistakes]}))
    else:
        show(path, mistakes)
    return ConfigError.exit_code if wrong else 0


def show(path: Path, mistakes: list[Mistake]) -> None:
    """Print the mistakes for people."""
    for mistake in mistakes:
        print(f"{'warning: ' if mistake.warning else ''}{mistake}")
        if mistake.hint:
            print(f"    {mistake.hint}")
    warnings = sum(mistake.warning for mistake in mistakes)
    wrong = len(mistakes) - warnings
    found = [count(wrong, "mistake")] if wrong else []
    found += [count(warnings, "warning")] if warnings else []
    print(f"{path}: {', '.join(found) or 'no mistake'}")
