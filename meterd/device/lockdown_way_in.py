"""Whether somebody can still come in once a device is locked down, and whoever asks stays in.

It is asked before anything changes: a device that nobody can log in to is a visit with a card
reader, and one whose session was cut off is half changed.
"""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING

from meterd.device import lockdown_text as text
from meterd.device.lockdown_device import Content, Link
from meterd.errors import MeterdError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meterd.device.lockdown_device import Entry, Facts, Item, Session, Tree

CA_FILE = "/etc/meterd/ssh/ca.pub"
SSH_PORT = 22
_SERVICES = "/etc/systemd/system"
_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-", "sk-ssh-ed25519@", "sk-ecdsa-sha2-", "ssh-rsa")


class WouldLockOutError(MeterdError):
    """What is asked shuts out everybody, or whoever asks: provide another way in first."""

    exit_code = 77


def refuse_lock_out(
    tree: Tree,
    facts: Facts,
    items: list[Item],
    without: Collection[str],
    session: Session | None,
) -> None:
    """See that somebody can still come in afterwards, and that whoever asks stays in.

    Args:
        tree: The device's files.
        facts: What else is known of it.
        items: The plan.
        without: The areas that are left out.
        session: How whoever asks has come in; None where that does not matter.

    Raises:
        WouldLockOutError: Not so.
    """
    pending = {item.area for item in items if not item.holds}
    if "ssh" not in without:
        _refuse_shut_ssh({item.path: item.wanted for item in items}, tree, facts)
    if "ssh" in without and "consoles" in pending and not _lets_in(tree):
        raise WouldLockOutError(
            "consoles would close, and SSH does not start by itself: nobody could log in any more",
            hint="enable ssh first (`systemctl enable ssh`), or add --without consoles",
        )
    if session is None:
        return
    if session.at_console and "consoles" in pending:
        raise WouldLockOutError(
            f"this session is at {session.tty}, which would close",
            hint="come in over SSH, or add --cut-session if you have tried that way",
        )
    port = session.ssh_port
    if port not in (None, SSH_PORT) and pending.intersection({"firewall", "ssh"}):
        raise WouldLockOutError(
            f"this session came in at port {port}, which would close",
            hint=f"come in at port {SSH_PORT}, or add --cut-session if you have tried that way",
        )


def ssh_file(facts: Facts, key: str, default: str = "") -> str:
    """Return the file that our settings for sshd name with a key."""
    conf = facts.share.get("config/sshd.conf", b"").decode()
    return text.sshd_value(conf, key) or default


def _refuse_shut_ssh(wanted: Mapping[str, Entry], tree: Tree, facts: Facts) -> None:
    """See that a technician's certificate opens the device."""
    hint = "put it there, or leave SSH and accounts as they are: --no-ssh"
    path = ssh_file(facts, "TrustedUserCAKeys", CA_FILE)
    if not _has_key(tree.entry(path)):
        raise WouldLockOutError(
            f"no public key of a technicians' CA in {path}: nobody could log in any more",
            hint=hint,
        )
    path = ssh_file(facts, "AuthorizedPrincipalsFile")
    found = wanted.get(path) or tree.entry(path)
    if path and not (isinstance(found, Content) and any(text.lines_of(found.text))):
        raise WouldLockOutError(
            f"no principal in {path}: no certificate would open this device", hint=hint
        )


def _lets_in(tree: Tree) -> bool:
    links = ("multi-user.target.wants/ssh.service", "sockets.target.wants/ssh.socket")
    return any(isinstance(tree.entry(f"{_SERVICES}/{link}"), Link) for link in links)


def _has_key(entry: Entry) -> bool:
    """Return whether a file has a public key as OpenSSH writes one."""
    if not isinstance(entry, Content):
        return False
    for line in text.lines_of(entry.text):
        kind, _, rest = line.partition(" ")
        try:
            key = b64decode(rest.split(" ")[0], validate=True)
        except ValueError:
            continue
        length = int.from_bytes(key[:4])
        if kind.startswith(_KEY_TYPES) and key[4 : 4 + length] == kind.encode() and len(key) > 36:  # noqa: PLR2004 - longer than its name
            return True
    return False
