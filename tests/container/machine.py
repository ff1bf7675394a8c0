"""A container that is booted: commands run inside it, a pty of the host is the board's port."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.conftest import CI
from tests.container.build import BASE

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 120.0  # only a failing test waits this long
PORT = "/dev/ttyAMA0"
METER = "meterd.service"
INSIDE = ("env", "--ignore-environment", "PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8")


class Tree:
    """A file tree that lies over others: what is written to it stays in its own folder."""

    def __init__(self, folder: Path, *below: Path) -> None:
        """Prepare; `below` has the uppermost first."""
        self.own, self.path = folder / "own", folder / "tree"
        self._work, self._below = folder / "work", below or (BASE / "root",)

    def __enter__(self) -> Self:
        """Mount it."""
        if os.geteuid():
            leave = pytest.fail if CI else pytest.skip
            leave("a container takes root: CI runs this as root")
        for path in (self.own, self.path, self._work):
            path.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={':'.join(map(str, self._below))},upperdir={self.own}"
        mount = ("mount", "-t", "overlay", "overlay", "-o", f"{options},workdir={self._work}")
        subprocess.run([*mount, str(self.path)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Unmount it; what was written stays in `own`."""
        subprocess.run(["umount", str(self.path)], check=True)
        shutil.rmtree(self._work, ignore_errors=True)

    def run(self, *command: str) -> str:
        """Run a command in the tree, without booting it; return what it printed."""
        full = ("chroot", str(self.path), *INSIDE, *command)
        return subprocess.run(full, check=True, capture_output=True, text=True).stdout

    def id_of(self, user: str) -> int:
        """Return the number of a user inside."""
        return int(self.run("id", "-u", user))


def _groups() -> Path:
    """Return where the kernel's second account of processes is, on whatever host this is."""
    beside = Path("/sys/fs/cgroup/unified")
    return beside if beside.exists() else Path("/sys/fs/cgroup")


def _in_a_group(group: Path) -> tuple[str, ...]:
    """Return the words that start a program in a group of processes of its own.

    Two machines in one group would have one `system.slice`, and each would tidy the other's.
    """
    script = 'mkdir -p "$0" && echo $$ >"$0/cgroup.procs" && exec "$@"'
    return ("sh", "-c", script, str(group))


class Machine:
    """A tree that is booted.

    Attributes:
        name: No other machine has it, of this process or of another.
        log: What its console said.
    """

    _numbers = count(1)

    def __init__(self, tree: Tree, *, board: Path | None = None) -> None:
        """Prepare; `board` is the pty that the port of the board is."""
        self.tree, self._board = tree, board
        self._process: subprocess.Popen[bytes] | None = None
        self._init = ""
        self.name = f"meterd-{os.getpid()}-{next(self._numbers)}"
        self._group = _groups() / self.name
        self.log = tree.own.parent / "console"

    def __enter__(self) -> Self:
        """Boot it; return once it says that all units are started."""
        command = [
            *_in_a_group(self._group),
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.tree.path}"),
            *(f"--machine={self.name}", "--register=no", "--keep-unit"),
            *("--private-network", "--system-call-filter=bpf"),
            "--capability=CAP_BPF,CAP_NET_ADMIN",
            *([f"--bind={self._board}:{PORT}"] if self._board else []),
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, SYSTEMD_NSPAWN_UNIFIED_HIERARCHY="1"),
            )
        try:
            self.until(self._is_up, "it boots")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        if self._process is None:
            return
        if self._init:
            self.run("systemctl", "poweroff", check=False)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process = None
        self.until(self._is_gone, "the last of its processes ends")

    def _is_gone(self) -> bool:
        """Remove its group of processes; return whether none was left in it."""
        try:
            for group in sorted(self._group.rglob("*/"), reverse=True):
                group.rmdir()
            self._group.rmdir()
        except FileNotFoundError:  # it never began
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(errors="replace")
        found = subprocess.run(
            ["pgrep", "-P", str(self._process.pid)], check=False, capture_output=True, text=True
        ).stdout.split()
        if not found:
            return False
        self._init = found[0]  # of this moment: there are others before it
        state = self.run("systemctl", "is-system-running", check=False).strip()
        return state in {"running", "degraded"}

    def run(self, *command: str, check: bool = True, said: str = "") -> str:
        """Run a command inside, as root, with `said` for its input; return all that it said.

        Raises:
            AssertionError: It failed, and `check` is set.
        """
        enter = ("nsenter", "-t", self._init, "-m", "-u", "-i", "-n", "-p", "-C")
        done = subprocess.run(
            [*enter, *INSIDE, *command],
            check=False,
            input=said,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert not check or done.returncode == 0, (
            f"{command} ended with {done.returncode}:\n{done.stdout}"
        )
        return done.stdout

    def restart(self, unit: str) -> None:
        """Start a unit, anew if it runs; return once it runs, by its own `Restart=` if need be.

        The meter says that it is ready once it meters, and answers a moment later.
        """
        self.run("systemctl", "restart", unit, check=False)
        try:
            self.until(lambda: self.shown(unit, "ActiveState") == "active", f"{unit} runs")
            if unit == METER:
                self.until(self.meter_answers, f"{unit} answers")
        except AssertionError:
            said = self.run("journalctl", "--namespace=*", "--no-pager", "--lines=60", check=False)
            pytest.fail(f"{unit} does not start:\n{said}")

    def meter_answers(self) -> bool:
        """Return whether the meter does, and not the account in its place."""
        said = self.run("meterctl", "status", "--json", check=False)
        lines = [line for line in said.splitlines() if line.startswith("{")]
        return bool(lines) and json.loads(lines[-1])["source"] == "daemon"

    def outside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the host in the network of this machine; return what came of it."""
        return subprocess.run(
            ["nsenter", "-t", self._init, "-n", *command],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )

    def outside_id(self, pid: str) -> int:
        """Return what the host calls a process that is called `pid` inside."""
        here = Path(f"/proc/{self._init}/ns/pid").readlink()
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):  # it has ended meanwhile
                ids = re.search(r"^NSpid:.*$", status.read_text(), flags=re.MULTILINE)
                same = (status.with_name("ns") / "pid").readlink() == here
                if ids and same and ids[0].split()[-1] == pid:
                    return int(status.parent.name)
        raise AssertionError(pid)

    def shown(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", unit, f"--property={name}", "--value").strip()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Look until something is so."""
        ends_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < ends_s, f"not within {PATIENCE_S:g} s: {what}"
            time.sleep(0.05)
