"""What both programs do alike at the terminal: options, errors, exit statuses.

Data goes to stdout. What is wrong goes to stderr, and below it what to try:

    meterctl: error: there is no settings file meterd.toml
    meterctl: hint: write one with `meterctl init`, or name another file

An error that meterd expects never shows a traceback; one that it does not expect always does.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from meterd.errors import (
    AbsentError,
    BusyError,
    DeniedError,
    MeterdError,
    StorageError,
    UsageError,
    leaves,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE: `meterctl blocks | head` is no error to tell of
COLUMNS = 80  # of a terminal that does not say; a narrower one breaks lines by itself
ID_LETTERS = 12  # of the software id, in hex: enough to tell two builds apart at a glance

_BUSY = frozenset({errno.EBUSY, errno.EADDRINUSE, errno.EWOULDBLOCK, errno.ETXTBSY})
_ABSENT = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ECONNREFUSED, errno.EHOSTUNREACH}
)
_STORAGE_HINTS = {
    errno.ENOSPC: "free some space on it, or prune samples with `meterctl prune`",
    errno.EDQUOT: "raise the quota, or prune samples with `meterctl prune`",
    errno.EROFS: "mount it writable; a failing card turns read-only: look at `dmesg`",
    errno.EIO: "the card or the cable may be failing: look at `dmesg`",
}


class Parser(argparse.ArgumentParser):
    """Options as both programs have them: no abbreviations, and a usage error ends with 64.

    Attributes:
        hint: What to try after a usage error; empty for the command's `--help`.
    """

    hint = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (argparse's own)
        """Take what `argparse.ArgumentParser` takes; an epilog keeps its lines."""
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and end the program."""
        program, *_ = self.prog.split()
        hint = self.hint or f"run `{self.prog} --help`"
        self.exit(UsageError.exit_code, f"{program}: error: {message}\n{program}: hint: {hint}\n")

    def add_version(self) -> None:
        """Add `--version`: the release, and the software that it really is."""
        self.add_argument("--version", action=_Version, nargs=0, help="show the version and end")


class _Version(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002
        values: str | Sequence[Any] | None,  # noqa: ARG002
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        program, *_ = parser.prog.split()
        print(f"{program} {version()}")
        parser.exit()


def version() -> str:
    """Return the release and the beginning of the software id, as people quote it."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as release_of

    from meterd.software import software_id

    try:
        release = release_of("meterd")
    except PackageNotFoundError:
        release = "not installed"
    return f"{release} (software {software_id().hex()[:ID_LETTERS]})"


def run(prog: str, main: Callable[[], int], advise: Callable[[str], str] = str) -> int:
    """Return the exit status of `main`, with every expected error told on stderr.

    Args:
        prog: The program's name, before each line.
        main: Returns an exit status; what it has printed is flushed before that counts.
        advise: Says a hint as whoever reads it can follow it.
    """
    try:
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _give_up_stdout()
        return EXIT_PIPE_CLOSED
    except (MeterdError, OSError, KeyboardInterrupt, BaseExceptionGroup) as error:
        failures = list(leaves(error))
        unexpected = [
            failure
            for failure in failures
            if not isinstance(failure, MeterdError | OSError | KeyboardInterrupt)
        ]
        if unexpected:
            raise
        _give_up_stdout_if_broken()
        return _tell(prog, failures, advise)
    return status


def seen(text: str) -> str:
    r"""Return a text without what upsets a terminal: a stranger's words may be in it.

    >>> seen("block\x1b[2J 7")
    'block?[2J 7'
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def _tell(prog: str, failures: list[BaseException], advise: Callable[[str], str]) -> int:
    """Print each failure once; return the exit status of the first."""
    known = [
        failure if isinstance(failure, MeterdError) else _of_system(failure)
        for failure in failures
        if isinstance(failure, MeterdError | OSError)
    ]
    if not known:
        return EXIT_INTERRUPTED
    told = []
    for failure in known:
        lines = told_line(f"{prog}: error: ", seen(str(failure)))
        if failure.hint:
            lines += told_line(f"{prog}: hint: ", seen(advise(failure.hint)))
        if lines not in told:
            told.append(lines)
    if sys.stderr is not None:
        sys.stderr.write("".join(told))
    return known[0].exit_code


def told_line(begin: str, text: str) -> str:
    """Return what stderr is told, with its line end: folded between words on a terminal.

    A file or a journal has it in one line, to be searched.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return f"{begin}{text}\n"
    from shutil import get_terminal_size
    from textwrap import wrap

    width = max(get_terminal_size((COLUMNS, 24)).columns, COLUMNS)
    indent = " " * len(begin)
    lines = wrap(
        text,
        width,
        initial_indent=begin,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines or [begin.rstrip()]) + "\n"


def _of_system(error: OSError) -> MeterdError:
    """Return what the operating system refused, as a sentence with an exit status."""
    what = error.strerror or str(error) or type(error).__name__
    what = what[:1].lower() + what[1:]
    sentence = f"{error.filename}: {what}" if error.filename is not None else what
    if isinstance(error, PermissionError):
        return DeniedError(sentence, hint="run it as the user meterd or as root, or mend the mode")
    if error.errno in _BUSY:
        return BusyError(sentence, hint="look for another meterd: `pgrep -a meterd`")
    if error.errno in _ABSENT or isinstance(error, TimeoutError):
        return AbsentError(sentence, hint="see that it is there and that its name is right")
    return StorageError(sentence, hint=_STORAGE_HINTS.get(error.errno or 0, ""))


def _give_up_stdout_if_broken() -> None:
    """Keep the interpreter from failing once more, at its end, over what cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        _give_up_stdout()


def _give_up_stdout() -> None:
    if sys.stdout is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
