"""`meterctl completion`: a script by which bash, zsh or fish completes commands and options.

It is made of the parsers themselves, by shtab, so that it knows what they know. The script stands
by itself: a key that is pressed starts no Python.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from meterd.errors import AbsentError

if TYPE_CHECKING:
    from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish")
_FOLDERS = frozenset({"DIR"})
_FILES = frozenset({"FILE", "PATH", "SOCKET"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl completion`."""
    parser.epilog = """\
The script goes where the shell looks for it, and counts from its next start on:
  bash  /etc/bash_completion.d/meterctl (package bash-completion)
  zsh   a folder of $fpath, as _meterctl
  fish  ~/.config/fish/completions/meterctl.fish

exit status: 0 good, 69 shtab is not installed (the extra `meterd[cli]`)

examples:
  meterctl completion bash | sudo tee /etc/bash_completion.d/meterctl
  source <(meterctl completion bash)
  meterctl completion zsh > ~/.zfunc/_meterctl
  meterctl completion fish > ~/.config/fish/completions/meterctl.fish
"""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" | ".join(SHELLS))


def run(options: argparse.Namespace) -> int:
    """Print the script; returns the exit code."""
    print(script(options.shell))
    return 0


def script(shell: str) -> str:
    """Return the script for one of `SHELLS`.

    Raises:
        AbsentError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise AbsentError(
            "shtab is not installed", hint="`pip install 'meterd[cli]'` in meterd's environment"
        ) from error
    from meterd.ctl import COMMANDS, parser_of

    parser = parser_of(COMMANDS)
    for each in _parsers(parser):
        each.epilog = None  # some shells would show it as a command's summary
        for action in each._actions:  # noqa: SLF001 - argparse has no other way to its options
            if action.metavar in _FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell=shell)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of all its commands."""
    yield parser
    for action in parser._actions:  # noqa: SLF001 - as above
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            for each in action.choices.values():
                yield from _parsers(each)
