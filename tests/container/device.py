"""A device as it is delivered, in a container: installed, enrolled, its broker beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Self

from tests.conftest import ROOT
from tests.container.build import VENV, install
from tests.container.machine import PORT, Machine, Tree
from tests.daemon_kit import Program, until

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

NAME = "kitchen-12"
STREET = "elm-street"
INTERVAL_S = 60  # the shortest there is
STATE, PEER_STATE, ETC = "/var/lib/meterd", "/var/lib/meterd-peer", "/etc/meterd"
SETTINGS = f"""\
[meter]
name = "{NAME}"
interval_s = {INTERVAL_S}
[board]
port = "{PORT}"
layout = "rpict3v1"
polling_ms = 1000
[[clamp]]
name = "mains"
role = "mains"
[clock]
trust = "always"
[log]
commit_s = 1
reserve_mb = 1
[network]
brokers = ["mqtts://127.0.0.1:8883"]
ca = "{ETC}/ca.pem"
certificate = "{ETC}/mqtt.pem"
key = "/run/credentials/meterd-peer.service/meterd.tls"
"""
UNITS = (
    *("meterd.service", "meterd-peer.service", "meterd-board.service", "meterd-logins.service"),
    "run-meterd.line.mount",
)
BROKER_UNIT = """\
[Service]
ExecStart=/usr/sbin/mosquitto -c /etc/mosquitto/meterd/mosquitto.conf
Restart=always
[Install]
WantedBy=multi-user.target
"""


def wheel(folder: Path) -> Path:
    """Build the wheel of this source tree."""
    command = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory")
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


def deliver(tree: Tree, built: Path) -> None:
    """Install meterd and its units in a tree."""
    inside = tree.path / "tmp" / built.name
    inside.write_bytes(built.read_bytes())
    install(tree.path, f"/tmp/{built.name}")
    inside.unlink()
    for unit in UNITS:
        (tree.path / "usr/lib/systemd/system" / unit).write_bytes(
            (ROOT / "systemd" / unit).read_bytes()
        )
    for name, to in (
        ("meterd.sysusers", "usr/lib/sysusers.d/meterd.conf"),
        ("99-meterd.rules", "usr/lib/udev/rules.d/99-meterd.rules"),
    ):
        (tree.path / to).write_bytes((ROOT / "systemd" / name).read_bytes())
    tree.run("systemd-sysusers")
    (tree.path / ETC[1:]).mkdir()
    (tree.path / ETC[1:] / "meterd.toml").write_text(SETTINGS)
    for program in ("meterd", "meterctl"):
        (tree.path / "usr/bin" / program).symlink_to(f"{VENV}/bin/{program}")


def enrol(tree: Tree, *, distributor: str = "") -> None:
    """Make its keys, a network of it alone, a broker with TLS, and its certificate.

    Where a distributor is named, it is in the network too, and its keys are in `/root/NAME`.
    """

    def ctl(*command: str) -> None:
        tree.run(f"{VENV}/bin/meterctl", *command)

    for state, user in ((STATE, "meterd"), (PEER_STATE, "meterd-peer")):
        tree.run("install", "-d", "-m", "700", "-o", user, "-g", "meterd", state)
    settings = f"{ETC}/meterd.toml"
    where = ("--state", STATE, "--config", settings)
    ctl("network", "enrol", *where, "--network", STREET, "-o", "/root/kitchen.toml")
    flags = (f"--interval-s={INTERVAL_S}", "--zone=UTC", "--currency=EUR", f"--name={STREET}")
    genesis, enrolments = "/root/genesis.cbor", ["--enrolment", "/root/kitchen.toml"]
    if distributor:
        who = ("--name", distributor, "--role", "distributor", "--no-votes", "--network", STREET)
        enrolments += ["--enrolment", "/root/distributor.toml"]
        ctl("network", "enrol", "--state", f"/root/{distributor}", *who, "-o", enrolments[-1])
    ctl("network", "create", *enrolments, *flags, "-o", genesis, "--yes")
    ctl("network", "join", *where, "--genesis", genesis, "--yes")
    ca = ("broker-config", "ca")
    ctl(*ca, "init", "--ca", "/root/ca", "--network", STREET)
    ctl(*ca, "request", "--name", NAME, "--key", "/root/tls.key", "--csr", "/root/a.csr")
    ctl(*ca, "issue", "--ca", "/root/ca", "--csr", "/root/a.csr", "-o", f"{ETC}/mqtt.pem")
    broker = "/etc/mosquitto/meterd"
    ctl("broker-config", "write", "--genesis", genesis, "-o", broker)
    key = f"{broker}/broker.key"
    ctl(*ca, "request", "--name", "broker", "--key", key, "--csr", "/root/b.csr")
    out = ("--host", "127.0.0.1", "-o", f"{broker}/broker.crt")
    ctl(*ca, "issue-broker", "--ca", "/root/ca", "--csr", "/root/b.csr", *out)
    for name in ("root.crt", "root.crl"):
        tree.run("install", "-m", "644", f"/root/ca/{name}", f"{broker}/{name}")
    tree.run("install", "-m", "644", "/root/ca/root.crt", f"{ETC}/ca.pem")
    tree.run("chown", "mosquitto:", key)


EVENING = "2026-11-02T18:00:00"  # no sun: what is drawn is counted as import, whenever tests run


class Board:
    """A board of the host, on a pty that belongs to the meter's user inside."""

    def __init__(self, folder: Path, owner: int, *options: str) -> None:
        """Prepare."""
        self.link, self._owner, self._options = folder / "board", owner, options
        self.program: Program | None = None

    def __enter__(self) -> Self:
        """Start it."""
        command = [sys.executable, "-m", "meterd", "board", "--link", str(self.link)]
        command += ["--start", EVENING]
        command += ["--layout", "rpict3v1", "--polling-ms", "1000", "--seed", "1"]
        self.program = Program([*command, *self._options])
        until(self.link.exists, "a board")
        os.chown(self.link.resolve(), self._owner, self._owner)
        self.link.resolve().chmod(0o600)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        assert self.program is not None
        self.program.close()


def begin(machine: Machine) -> None:
    """Give the peer process its credentials, and start all."""
    for name, path in (("vote", f"{STATE}/peer.key"), ("tls", "/root/tls.key")):
        kept = f"/etc/credstore.encrypted/meterd.{name}"
        machine.run(
            "systemd-creds", "encrypt", "--with-key=host", f"--name=meterd.{name}", path, kept
        )
        machine.run("rm", path)
    machine.run("meterctl", "vault", "init")
    copy = ("install", "-m", "600", "-o", "meterd-peer", "-g", "meterd")
    machine.run(*copy, f"{STATE}/genesis.cbor", f"{PEER_STATE}/genesis.cbor")
    machine.run("systemctl", "daemon-reload")
    for unit in ("broker.service", "meterd.service", "meterd-peer.service"):
        machine.restart(unit)
