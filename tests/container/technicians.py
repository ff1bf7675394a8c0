"""A device that technicians come in to: sshd as it is delivered, a CA, and all kinds of callers."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.conftest import ROOT
from tests.container.build import VENV

if TYPE_CHECKING:
    from tests.container.machine import Machine, Tree

SSH_ETC = "/etc/meterd/ssh"
CA, OTHER_CA = "/root/tech-ca", "/root/other-ca"
PASSWORD = "a right password, and no use"
EXEMPT = "127.0.0.1"  # for scans: the delivered settings exempt nobody
_ENDED = re.compile(r"ended with (\d+)\n\Z")

# Who comes: a key, and the options of ssh-keygen for what the tool of the project would never sign.
SIGNED_BY_HAND = {
    "expired": ("-n", "technician", "-z", "101", "-V", "20200101:20200102"),
    "not-yet": ("-n", "technician", "-z", "102", "-V", "20990101:20990102"),
    "no-principal": ("-z", "103"),
    "as-root": ("-n", "root,technician", "-z", "104"),
    "as-host": ("-h", "-n", "technician", "-z", "105"),
    "bound": ("-n", "technician", "-z", "106", "-O", "source-address=192.0.2.1"),
    "roomy": ("-n", "technician", "-z", "108"),  # permits all that ssh-keygen permits by itself
    "forcing": ("-n", "technician", "-z", "107", "-O", "force-command=/usr/bin/id"),
}


def admit(tree: Tree) -> None:
    """Set sshd up as it is delivered, make a CA, and certificates of all kinds."""

    def ctl(*command: str) -> None:
        tree.run(f"{VENV}/bin/meterctl", "ca", *command)

    def key(name: str, kind: str = "ed25519") -> str:
        tree.run("ssh-keygen", "-q", "-t", kind, "-N", "", "-f", f"/root/{name}")
        return f"/root/{name}.pub"

    etc = tree.path / SSH_ETC[1:]
    etc.mkdir()
    (etc / "principals").write_bytes((ROOT / "config/principals").read_bytes())
    drop_ins = tree.path / "etc/ssh/sshd_config.d"
    (drop_ins / "10-meterd.conf").write_bytes((ROOT / "config/sshd.conf").read_bytes())
    (drop_ins / "00-test.conf").write_text(f"PerSourcePenaltyExemptList {EXEMPT}\n")

    ctl("init", "--ca", CA, "--no-passphrase")
    ctl("init", "--ca", OTHER_CA, "--no-passphrase")
    for name, ca, more in (
        ("jo", CA, ()),
        ("sam", CA, ()),
        ("gone", CA, ()),
        ("elsewhere", CA, ("--principal", "oak-street")),
        ("stranger", OTHER_CA, ()),
    ):
        given = ("--id", name, "--key", key(name), "-o", f"/root/{name}-cert.pub")
        ctl("issue", "--ca", ca, *given, *more)
    ctl("revoke", "--ca", CA, "gone")
    for name, flags in SIGNED_BY_HAND.items():
        tree.run("ssh-keygen", "-q", "-s", f"{CA}/technician-ca", "-I", name, *flags, key(name))
    old = ("-I", "ecdsa", "-n", "technician", "-z", "109")
    tree.run("ssh-keygen", "-q", "-s", f"{CA}/technician-ca", *old, key("ecdsa", "ecdsa"))
    for name in ("technician-ca.pub", "revoked"):
        tree.run("install", "-m", "644", f"{CA}/{name}", f"{SSH_ETC}/{name}")
    tempt(tree, key("bare"))


def tempt(tree: Tree, bare: str) -> None:
    """Leave about what would let somebody in, or out, if it counted."""
    accounts = f"technician:{PASSWORD}\nroot:{PASSWORD}\n"
    (tree.path / "root/accounts").write_text(accounts)
    tree.run("sh", "-c", "chpasswd </root/accounts")
    for home in ("/.ssh", "/root/.ssh"):
        tree.run("install", "-d", "-m", "755", home)
        tree.run("install", "-m", "644", bare, f"{home}/authorized_keys")
        for name, text in (
            ("rc", "touch /tmp/rc-ran"),
            ("environment", "PLANTED=environment"),
        ):
            (tree.path / home[1:] / name).write_text(f"{text}\n")
    asks = tree.path / "root/asks"
    asks.write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
    asks.chmod(0o755)
    host = (tree.path / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (tree.path / "root/known").write_text(f"127.0.0.1 {host}")


class Said(NamedTuple):
    """What a program said, and its exit status."""

    status: int
    text: str


@dataclass
class Caller:
    """Somebody with a key, at an address of their own."""

    device: Machine
    name: str
    source: str
    certified: bool = True
    user: str = "technician"
    options: tuple[str, ...] = field(default=())

    @property
    def flags(self) -> tuple[str, ...]:
        """What ssh, scp and sftp are told alike."""
        settings = (
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=yes",
            "UserKnownHostsFile=/root/known",
            f"BindAddress={self.source}",
            "ConnectTimeout=20",
            f"CertificateFile={f'/root/{self.name}-cert.pub' if self.certified else 'none'}",
            *self.options,
        )
        named = (word for setting in settings for word in ("-o", setting))
        return ("-F", "none", "-i", self.copy, *named)

    @property
    def copy(self) -> str:
        """The key; without a certificate beside it, one that is not found by its name."""
        return f"/root/{self.name}" if self.certified else f"/root/alone-{self.name}"

    def run(self, *command: str, said: str = "") -> Said:
        """Run a program inside; return what came of it."""
        text = self.device.run(
            "bash", "-c", '"$@"; echo "ended with $?"', "bash", *command, said=said
        )
        ended = _ENDED.search(text)
        assert ended is not None, text
        return Said(int(ended[1]), text[: ended.start()])

    def ssh(self, *words: str, flags: tuple[str, ...] = (), said: str = "") -> Said:
        """Come in by ssh, and ask for something."""
        if not self.certified:
            self.device.run("cp", f"/root/{self.name}", self.copy)
        return self.run("ssh", *self.flags, *flags, f"{self.user}@127.0.0.1", *words, said=said)

    def line(self, *flags: str) -> str:
        """Return the command by which they come in, for a script."""
        return shlex.join(("ssh", *self.flags, *flags, f"{self.user}@127.0.0.1"))

    def records(self) -> list[dict[str, str]]:
        """Return what the journal says of whoever came from this address, oldest first."""
        self.device.run("journalctl", "--namespace=meterd", "--sync")
        said = self.device.run(
            *("journalctl", "--namespace=meterd", "--no-pager", "--output=json"),
            f"METERD_SOURCE={self.source}",
        )
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]
