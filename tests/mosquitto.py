"""A real mosquitto on loopback, for as long as a test needs one."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PATIENCE_S = 20.0  # only a failing test waits this long


class Mosquitto:
    """A broker of one's own, at a port that stays the same over its restarts.

    Attributes:
        port: Where it listens, on 127.0.0.1.
    """

    def __init__(self, folder: Path, *, config_lines: Sequence[str] = ()) -> None:
        """Prepare one that keeps its files in `folder`; `config_lines` belong to its listener."""
        program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            pytest.fail("mosquitto is not installed: `make test` installs it")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._log = folder / f"mosquitto-{self.port}.log"
        config = folder / f"mosquitto-{self.port}.conf"
        config.write_text(
            "\n".join(
                (
                    f"user {pwd.getpwuid(os.getuid()).pw_name}",  # root's own would not get in
                    f"listener {self.port} 127.0.0.1",
                    "allow_anonymous true",
                    *config_lines,
                    "",
                )
            )
        )
        self._command = (program, "-v", "-c", str(config))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Start it; return once it accepts connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S).close()
            except OSError:
                assert time.monotonic() < deadline_s, self.log
                try:
                    self._process.wait(0.01)
                except subprocess.TimeoutExpired:
                    continue
                pytest.fail(f"mosquitto ended: {self.log}")
            return

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None

    def stop(self) -> None:
        """End it in good order, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._process = None
