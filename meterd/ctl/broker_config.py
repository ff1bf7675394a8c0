"""`meterctl broker-config`: the settings of a street's broker, and the certificates of its members.

The broker is not trusted with anything but the time of day: what it passes on is signed end to end.
Its settings keep strangers out, keep each member to its own branch of the topics, and keep one
member's flood from the others.
"""

from __future__ import annotations

import ipaddress
import json
import os
import pwd
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.ctl.broker_ca import add_ca, run_ca
from meterd.ctl.broker_settings import ACL, CONF, Listen, acl_text, conf_text
from meterd.ctl.options import add_action, add_json
from meterd.ctl.show import count
from meterd.device.card import Card, Operation
from meterd.errors import ConfigError, EncodingError, UsageError
from meterd.ledger.account import NAME, Genesis, decode_genesis

if TYPE_CHECKING:
    import argparse

PORT_TLS, PORT_PLAIN = 8883, 1883  # as IANA has them for MQTT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl broker-config`."""
    parser.epilog = """\
examples:
  meterctl broker-config write --genesis genesis -o /etc/mosquitto/meterd
  meterctl broker-config ca --help
"""
    commands = parser.add_subparsers(dest="broker_command", required=True, metavar="COMMAND")
    _add_write(commands)
    add_ca(commands)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    if options.broker_command == "write":
        _write(options)
    else:
        run_ca(options)
    return 0


# --- write ------------------------------------------------------------------------------------


def _add_write(commands: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "write a mosquitto.conf and its acl from a genesis"
    parser = add_action(commands, "write", summary)
    parser.epilog = """\
examples:
  meterctl broker-config write --genesis genesis -o /etc/mosquitto/meterd
  meterctl broker-config write --genesis genesis -o out --installed /etc/mosquitto/meterd
  meterctl broker-config write --genesis genesis -o out --force --without shed-3
  meterctl broker-config write --genesis genesis -o demo --no-tls --listen 127.0.0.1:1883
"""
    parser.add_argument("--genesis", required=True, type=Path, metavar="FILE", help="the network's")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="DIR", help="where to")
    parser.add_argument(
        "--listen",
        metavar="ADDR:PORT",
        help=f"default: :{PORT_TLS}, every address; without TLS 127.0.0.1:{PORT_PLAIN}",
    )
    parser.add_argument(
        "--tls",
        action=_on_or_off(),
        default=True,
        help="default: with; without, on a loopback address only",
    )
    parser.add_argument(
        "--member",
        action="append",
        default=[],
        metavar="NAME",
        help="a node enrolled since the genesis; may be repeated",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="a node that left, or whose certificate is revoked; may be repeated",
    )
    parser.add_argument(
        "--installed",
        metavar="DIR",
        help="where the files will be on the broker's machine (default: the folder of -o)",
    )
    parser.add_argument(
        "--data",
        default="/var/lib/mosquitto",
        metavar="DIR",
        help="where the broker keeps its sessions (default: /var/lib/mosquitto)",
    )
    parser.add_argument(
        "--user",
        default="mosquitto",
        metavar="NAME",
        help="whom the broker runs as when root starts it (default: mosquitto)",
    )
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    add_json(parser)


def _on_or_off() -> type[argparse.Action]:
    from argparse import BooleanOptionalAction

    return BooleanOptionalAction


def _write(options: argparse.Namespace) -> None:
    listen = _listen(options.listen, tls=options.tls)
    genesis = _genesis(options.genesis)
    members = _members(genesis, options.member, options.without)
    home = _folder(options.installed or str(options.out.absolute()), "--installed")
    conf = conf_text(
        genesis.name,
        members,
        listen,
        tls=options.tls,
        home=home,
        data=_folder(options.data, "--data"),
        user=_user(options.user),
    )
    files = {
        options.out / ACL: acl_text(genesis.name, members),
        options.out / CONF: conf,  # last: what it names is there by then
    }
    there = [str(path) for path in files if os.path.lexists(path)]
    if there and not options.force:
        raise ConfigError(
            f"there already: {', '.join(there)}", hint="add --force to write over, or move away"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    Card().perform([Operation("replace", path, text.encode()) for path, text in files.items()])
    given = _give(options.user, list(files))
    if options.json:
        told = {"network": genesis.name, "members": members, "files": [str(path) for path in files]}
        print(json.dumps(told))
        return
    print(f"{genesis.name}: {count(len(members), 'member')}")
    for path in files:
        print(f"wrote {path}")
    print("\nNext:")
    for step in _steps(options, home, given=given):
        print(f"  {step}")


def _steps(options: argparse.Namespace, home: str, *, given: bool) -> list[str]:
    steps = []
    user = options.user
    if options.installed:
        steps.append(f"copy both to {home} on the broker's machine")
    if options.tls:
        steps += [
            f"put root.crt and root.crl of the root into {home}",
            f"meterctl broker-config ca request --name broker --key {home}/broker.key --csr FILE",
            f"sign that with `ca issue-broker`, and put the certificate into {home}/broker.crt",
        ]
    if not given or options.installed or options.tls:
        steps.append(f"chown {user}: {home}/*    (the broker reads them as {user})")
    steps.append(f"mosquitto -c {home}/{CONF}    (as a service: ExecStart=, `systemctl edit`)")
    return steps


def _listen(text: str | None, *, tls: bool) -> Listen:
    if text is None:
        return Listen("", PORT_TLS) if tls else Listen("127.0.0.1", PORT_PLAIN)
    address, colon, port = text.rpartition(":")
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        if bare:
            ipaddress.ip_address(bare)
        known = bool(colon) and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16
    except ValueError:
        known = False
    if not known:
        raise UsageError(
            f"--listen: expected ADDR:PORT, got {text[:60]!r}",
            hint="an IP address, or none for every one: 192.0.2.7:8883, [2001:db8::7]:8883, :8883",
        )
    listen = Listen(bare, int(port))
    if not tls and not listen.is_loopback:
        raise UsageError(
            f"--listen: without TLS only a loopback address will do, got {text[:60]!r}",
            hint="127.0.0.1:1883 or [::1]:1883: without certificates anybody can take any name",
        )
    return listen


def _genesis(path: Path) -> Genesis:
    try:
        return decode_genesis(path.read_bytes())
    except EncodingError as error:
        raise ConfigError(
            f"{path} is no genesis: {error}",
            hint="it is the file `genesis` in the account of any member",
        ) from error


def _members(genesis: Genesis, added: list[str], left: list[str]) -> list[str]:
    for name in (*added, *left):
        if not NAME.fullmatch(name):
            raise UsageError(f"a name is 1 to 32 of a-z, 0-9 and -, got {name[:40]!r}")
    names = {node.name for node in genesis.nodes} | set(added)
    unknown = sorted(set(left) - names)
    if unknown:
        raise UsageError(f"--without: no member of {genesis.name}: {', '.join(unknown)}")
    members = sorted(names - set(left))
    if not members:
        raise ConfigError(
            f"{genesis.name} has no members: nobody could use this broker",
            hint="name the genesis of the street, or add --member NAME",
        )
    return members


def _folder(text: str, option: str) -> str:
    """Return a folder as a line of the settings can name it."""
    if not text.startswith("/") or not text.isprintable() or text != text.strip():
        raise UsageError(f"{option}: expected an absolute folder, got {text[:60]!r}")
    return text.rstrip("/")


def _user(name: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", name):
        raise UsageError(f"--user: no user is called {name[:40]!r}")
    return name


def _give(user: str, paths: list[Path]) -> bool:
    """Give the files to the broker's user, if we may and there is one here; say whether.

    Since 2.0.17 mosquitto warns of an access list that others can read or that is not its own, and
    says that it will refuse it one day.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return False
    if os.geteuid() != 0:
        return entry.pw_uid == os.geteuid()
    for path in paths:
        os.chown(path, entry.pw_uid, entry.pw_gid)
    return True
