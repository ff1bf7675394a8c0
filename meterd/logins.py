"""`meterd-logins`: reads in sshd's journal who was not let in, and has the meter's account say so.

Each refused connection is told once, over restarts of this program or of the meter: the place to
read on from is kept once the meter has answered, and the meter knows again what it was told. Only
where both end between the two is it told twice. The place is kept in memory, as long as the boot
lasts; what was not told when the power failed is in the journal alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.cli import Parser, run
from meterd.ctl.options import CONTROL_SYSTEM
from meterd.device.control_client import ControlClient
from meterd.device.systemd import journal_logger, log_event
from meterd.errors import AbsentError, BusyError, StorageError, UsageError
from meterd.login_lines import Doors, decode_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Generator, Iterator
    from types import FrameType

    from meterd.login_lines import Refusal

UNITS = ("ssh.service", "sshd.service")  # Debian's name, and everybody else's
FIELDS = ("MESSAGE", "SYSLOG_IDENTIFIER", "_PID", "_UID", "_BOOT_ID")
KEPT_NAME = "read"
KEPT_BYTES_MAX = 65_536
WAITS_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # for a meter that does not answer; the last for good
ANSWER_S_MAX = 10.0  # of the meter, whose card may stall; a stop waits for it
EPILOG = """\
examples:
  meterd-logins
  meterd-logins --socket ./account/control --kept ./read
"""


def main() -> int:
    """Run it and return its exit code."""
    return run("meterd-logins", lambda: _main(sys.argv[1:]))


def _main(argv: list[str]) -> int:
    folder = Path(os.environ.get("RUNTIME_DIRECTORY") or ".")
    parser = Parser(
        prog="meterd-logins",
        description="Tell the meter of logins over SSH that were refused.",
        epilog=EPILOG,
    )
    parser.add_version()
    parser.add_argument(
        "--socket",
        type=Path,
        default=CONTROL_SYSTEM,
        metavar="PATH",
        help=f"control socket of the daemon (default: {CONTROL_SYSTEM})",
    )
    parser.add_argument(
        "--kept",
        type=Path,
        default=folder / KEPT_NAME,
        metavar="FILE",
        help="where it has read to (default: $RUNTIME_DIRECTORY/read)",
    )
    return follow(parser.parse_args(argv))


def follow(options: argparse.Namespace) -> int:
    """Follow the journal until it ends.

    Raises:
        AbsentError: There is no journalctl, or it has ended.
        DeniedError: This user may not ask the meter.
    """
    signal.signal(signal.SIGTERM, _end)
    logger = journal_logger()
    doors, client = _read(options.kept), ControlClient(options.socket, timeout_s=ANSWER_S_MAX)
    with contextlib.closing(_lines(doors.cursor)) as lines:
        for data in lines:
            line = decode_line(data)
            refusals = doors.receive(line) if line else []
            if refusals:
                _deliver(client, logger, refusals, lambda: _keep(options.kept, doors))
    raise AbsentError("journalctl has ended", hint="see `journalctl -u systemd-journald`")


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _lines(cursor: str) -> Generator[bytes, None, None]:
    """Yield what sshd says, a line of JSON each, from behind `cursor` on, else since the boot."""
    program = shutil.which("journalctl")
    if program is None:
        raise AbsentError("there is no journalctl", hint="this needs systemd's journal")
    command = [
        *(program, "--follow", "--no-tail", "--quiet", "--output=json"),
        f"--output-fields={','.join(FIELDS)}",
        f"--after-cursor={cursor}" if cursor else "--boot",
        *(f"_SYSTEMD_UNIT={unit}" for unit in UNITS),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as journal:
        assert journal.stdout is not None  # noqa: S101 - it is a pipe
        try:
            yield from journal.stdout
        finally:
            journal.terminate()


def _deliver(
    client: ControlClient,
    logger: logging.Logger,
    refusals: list[Refusal],
    keep: Callable[[], None],
) -> None:
    """Have the meter record refusals, and keep that it has; wait for it as long as it takes."""
    waits = iter(WAITS_S)
    wait_s = 0.0
    while True:
        with _undisturbed():
            try:
                for refusal in refusals:
                    _tell(client, logger, refusal)
            except (AbsentError, BusyError, StorageError) as error:
                if not wait_s:
                    log_event(logger, logging.WARNING, "meter_absent", reason=error)
            else:
                keep()
                return
        wait_s = next(waits, WAITS_S[-1])
        time.sleep(wait_s)


def _tell(client: ControlClient, logger: logging.Logger, refusal: Refusal) -> None:
    about = refusal._asdict()
    try:
        client.call("LoginRefused", **about)
    except UsageError as error:
        log_event(logger, logging.WARNING, "refusal_not_taken", reason=error, **about)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a stop wait until what was told is kept, too: else it would be told once more."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read(path: Path) -> Doors:
    """Return the doors as they were left; anew where nothing usable is kept."""
    try:
        with path.open("rb") as file:
            kept = json.loads(file.read(KEPT_BYTES_MAX))
        return Doors(str(kept["cursor"]), tuple(str(key) for key in kept["told"]))
    except FileNotFoundError:
        return Doors()
    except (ValueError, TypeError, KeyError, RecursionError):
        return Doors()  # of another version: some may be told twice, and none not at all


def _keep(path: Path, doors: Doors) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"cursor": doors.cursor, "told": list(doors.told)}))
    fresh.replace(path)
