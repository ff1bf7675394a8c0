"""Runs the peer process beside the meter, on machines without a service manager.

A thread of its own waits for it: whatever happens over there, metering goes on. A peer process that
ends by itself is started again, later each time.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from meterd.device.systemd import log_event

if TYPE_CHECKING:
    from collections.abc import Sequence

WAIT_S_MIN, WAIT_S_MAX = 1.0, 60.0  # before a peer process that ended is started again
STEADY_S = 60.0  # one that ran for so long is started again at once
STOP_S_MAX = 10.0


class PeerKeeper:
    """Keeps one process running until it is told to stop."""

    def __init__(self, command: Sequence[str], logger: logging.Logger) -> None:
        """Keep `command` running, from `start` on."""
        self._command, self._logger = command, logger
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="peer keeper", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, and again whenever it ends."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the process, and wait for its end."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(STOP_S_MAX)

    def _keep(self) -> None:
        wait_s = WAIT_S_MIN
        while not self._stopping.is_set():
            begun = time.monotonic()
            with self._lock:
                if self._stopping.is_set():
                    return
                # A session of its own: Ctrl-C in a terminal reaches the meter, which stops us both.
                try:
                    self._process = subprocess.Popen(self._command, start_new_session=True)
                except OSError as error:
                    log_event(self._logger, logging.ERROR, "no_peer", reason=str(error))
                    self._process = None
            code = self._process.wait() if self._process else -1
            if self._stopping.is_set():
                return
            log_event(self._logger, logging.WARNING, "peer_ended", code=code)
            wait_s = WAIT_S_MIN if time.monotonic() - begun > STEADY_S else wait_s * 2
            self._stopping.wait(min(wait_s, WAIT_S_MAX))
