"""`meterd`, with a test's hand on the relay: `python -m hw_tests.wired_meter run …`.

On a Pi the pins are real, and the line `relay open` in the named pipe $MOCK_PINS_FIFO asks for that
as a command would. With gpiozero's mock pins, lines such as `17 high` move the inputs besides, and
each change of an output is told on stderr: `wire GPIO22 high`. Where systemd's own module is not
installed, a stand-in sends the notices that it would send.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import threading
import types

from tests import mock_pins


def notify(text: str) -> None:
    """Send a notice as sd_notify(3) says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


def stand_in_for_systemd() -> None:
    """Let the meter find a `systemd.daemon`, where there is none."""
    with contextlib.suppress(ImportError):
        importlib.import_module("systemd.daemon")
        return
    package, daemon = types.ModuleType("systemd"), types.ModuleType("systemd.daemon")
    daemon.notify = notify  # type: ignore[attr-defined]
    package.daemon = daemon  # type: ignore[attr-defined]
    sys.modules |= {"systemd": package, "systemd.daemon": daemon}


def tell_outputs() -> None:
    """Say each change of a mocked output."""
    from gpiozero.pins.mock import MockPin

    change = MockPin._change_state

    def change_told(pin: MockPin, value: bool) -> bool:
        changed = bool(change(pin, value))
        if changed and pin.function == "output":
            sys.stderr.write(f"wire {pin.info.name} {'high' if value else 'low'}\n")
            sys.stderr.flush()
        return changed

    MockPin._change_state = change_told


if __name__ == "__main__":
    stand_in_for_systemd()
    mock_pins.arrange()
    if os.environ.get("GPIOZERO_PIN_FACTORY") == "mock":
        tell_outputs()
    from meterd.__main__ import main

    threading.Thread(target=mock_pins.obey, daemon=True).start()
    sys.exit(main())
