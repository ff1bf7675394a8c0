"""What a person had to do once at a commissioning, kept for the next run.

It lies with the account where we may write there. A technician may not, whose user has no folder
of its own: then it lies with the temporary files, until the machine starts again. Nothing rests on
it but that a person is not asked twice: what is there counts only if it is our own file, of this
meter, under the parameters that are in force.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path

from meterd.ctl.owner import as_owner
from meterd.device.files import write_over

PROGRESS_FILE = "commissioning.json"
PROGRESS_BYTES_MAX = 65_536
MODE = 0o600


def progress_path(state: Path) -> Path:
    """Return where the progress of a commissioning of the account in `state` is kept."""
    if os.access(state, os.W_OK):
        return state / PROGRESS_FILE
    return Path(tempfile.gettempdir()) / f"meterd-{os.geteuid()}-{PROGRESS_FILE}"


def read_progress(state: Path, about: tuple[str, str]) -> dict[str, dict[str, str]]:
    """Return what was found at the steps that were good, by their names.

    Args:
        state: The account's folder.
        about: Genesis and parameter record that it has to be of, hex.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(progress_path(state), flags)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            owners = {os.geteuid(), state.stat().st_uid}
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in owners:
                return {}
            kept = json.loads(file.read(PROGRESS_BYTES_MAX))
        steps = kept["steps"]
        if (kept["genesis"], kept["record"]) != about:
            return {}  # of another meter, or under other parameters: to be seen again
        return {
            str(name): {"found": str(one["found"]), "todo": str(one["todo"])}
            for name, one in steps.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def keep_progress(state: Path, about: tuple[str, str], steps: dict[str, dict[str, str]]) -> None:
    """Keep what was found at steps, in the place of what was kept before.

    Raises:
        OSError: It cannot be written, or somebody else's file is in its place, or beside it.
    """
    path = progress_path(state)
    text = json.dumps({"genesis": about[0], "record": about[1], "steps": steps}) + "\n"
    with as_owner(state):
        write_over(path, text.encode(), mode=MODE)


def forget_progress(state: Path) -> None:
    """Remove what was kept, if anything was.

    Raises:
        OSError: It cannot be removed.
    """
    with as_owner(state):
        progress_path(state).unlink(missing_ok=True)
