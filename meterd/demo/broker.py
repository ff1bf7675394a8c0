"""The broker of the demo: one inside it (amqtt), mosquitto where that is installed, or a given one.

The nodes trust none of them, so each will do.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from meterd.device.broker import parse_address
from meterd.errors import AbsentError, ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

INSIDE, MOSQUITTO = "amqtt", "mosquitto"
START_S_MAX = 20.0
PUBLISH_S_MAX = 3.0
MOSQUITTO_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"  # Debian's place, not in users' PATH
MOSQUITTO_CONFIG = """user {user}
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
"""
INSTALL_HINT = "run `pip install 'meterd[demo]'`, or `apt-get install mosquitto`"


@dataclass(slots=True)
class Broker:
    """A broker; one of the demo's own has a command, and a process while it runs.

    Attributes:
        label: For the screen.
        host: Its host name or address.
        port: Where it listens.
        command: How it is started; empty where it was given.
        log: What a broker of the demo's own says.
    """

    label: str
    host: str
    port: int
    command: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def own(self) -> bool:
        """Whether the demo starts and stops it."""
        return bool(self.command)

    def start(self) -> None:
        """Start it, if it is ours; `wait` next."""
        if self.own:
            with self.log.open("ab") as said:
                self.process = subprocess.Popen(
                    self.command, stdout=said, stderr=said, process_group=0
                )

    def wait(self) -> None:
        """Wait until it accepts connections.

        Raises:
            AbsentError: It does not.
        """
        deadline = time.monotonic() + (START_S_MAX if self.own else PUBLISH_S_MAX)
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=PUBLISH_S_MAX).close()
            except OSError as error:
                ended = self.process is not None and self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise self._absent(error) from error
                time.sleep(0.05)
            else:
                return

    def _absent(self, error: OSError) -> AbsentError:
        if not self.own:
            return AbsentError(
                f"no broker answers at {self.host}:{self.port}: {error.strerror or error}",
                hint="start it, or leave out --broker: the demo has one inside",
            )
        said = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        return AbsentError(f"{self.label} did not start: {' / '.join(said)}", hint=INSTALL_HINT)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def publish(self, messages: Iterable[tuple[str, bytes, bool]]) -> None:
        """Publish (topic, payload, whether retained) as a client that nobody has heard of.

        Raises:
            OSError: It cannot be reached.
        """
        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.connect(self.host, self.port)
        client.loop_start()
        try:
            sent = [client.publish(topic, data, 1, retain) for topic, data, retain in messages]
            for one in sent:
                one.wait_for_publish(PUBLISH_S_MAX)
        finally:
            client.disconnect()
            client.loop_stop()


def choose_broker(asked: str | None, folder: Path) -> Broker:
    """Return the broker asked for, by URL or by name; unasked, the first one that is installed.

    Raises:
        AbsentError: It is not installed.
        UsageError: It is none that the demo can use.
    """
    log = folder / "broker.log"
    if asked not in {None, INSIDE, MOSQUITTO}:
        assert asked is not None  # noqa: S101 - None is in the set
        try:
            address = parse_address(asked)
        except ConfigError as error:
            raise UsageError(
                f"--broker: {error}",
                hint=f"write mqtt://HOST:PORT (the demo has no certificates), {INSIDE}"
                f" or {MOSQUITTO}",
            ) from error
        return Broker(f"the broker at {address}", address.host, address.port, (), log)
    program = shutil.which(MOSQUITTO, path=MOSQUITTO_PATH)
    inside = importlib.util.find_spec("amqtt") is not None
    port = _free_port()
    if inside and asked != MOSQUITTO:
        command = (sys.executable, "-m", "meterd.demo.inside", str(port))
        return Broker("a broker inside the demo (amqtt)", "127.0.0.1", port, command, log)
    if program is None or asked == INSIDE:
        raise AbsentError(
            f"{asked or 'neither amqtt nor mosquitto'} is {'not ' if asked else ''}installed",
            hint=INSTALL_HINT,
        )
    config = folder / "mosquitto.conf"
    user = pwd.getpwuid(os.getuid()).pw_name  # started as root it would turn into another's
    config.write_text(MOSQUITTO_CONFIG.format(user=user, port=port))
    return Broker(
        "a mosquitto of the demo's own", "127.0.0.1", port, (program, "-c", str(config)), log
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
