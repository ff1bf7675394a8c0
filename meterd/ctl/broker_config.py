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
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.ctl.options import add_json, positive
from meterd.ctl.show import count
from meterd.device.card import Card, Operation
from meterd.errors import AbsentError, ConfigError, EncodingError, UsageError
from meterd.ledger.account import NAME, Genesis, decode_genesis

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from meterd.certificates import Issued

CONF, ACL = "mosquitto.conf", "acl"
PORT_TLS, PORT_PLAIN = 8883, 1883  # as IANA has them for MQTT
PACKET_BYTES_MAX = 71_000
QUEUED_MAX = 1000
QUEUED_BYTES_MAX = 4_000_000
STRANGERS_MAX = 50

HEADER = """\
# Settings of the broker of {network} ({members}), written by `meterctl broker-config write`.
# Write them anew rather than edit them. Nothing in the accounts rests on this broker: it passes
# messages on, or loses them, and members ask each other for what they miss.

# One rule book for all listeners: what a member may do never depends on where it came in.
per_listener_settings false

# When started as root, the broker goes on as this user, before it reads key and topics.
user {user}
"""

LIMITS = """
# --- limits: what one member can take from the others ---

# The longest packet, bytes: an answer of 64 KiB of blocks, with 4 kB for what is around them and
# 1 kB for topic (107 at most), header and properties. A client is told when it connects, and cut
# off if it sends more. (message_size_limit would keep the line, and answer with a reason that
# MQTT 5 does not have there, which clients fail on.)
max_packet_size {packet}

# Messages that wait for a member that is away: some hours of a street. More are dropped unsaid,
# which is no loss: once back, a member compares digests and asks for what it lacks.
max_queued_messages {queued}

# The same in bytes, for each member: times {members} it is the most RAM that queues can take.
max_queued_bytes {queued_bytes}

# On their way to one member at a time, unacknowledged: as many as a member takes. With the 20 of
# the default it would acknowledge, and wait for more, five times as often while it catches up.
max_inflight_messages 100

# Seconds: within one and a half of it a member that has lost its line is seen as gone (its last
# will). 60 is what most clients ask for of themselves; who speaks MQTT 5 is held to it.
max_keepalive 60

# A member that was away for a day starts its session afresh: its queue is long full by then.
persistent_client_expiration 1d

# No $SYS topics: nobody here may read them, and they would be reckoned every 10 s.
sys_interval 0

# Heads and attestations are short, and waited for: they are not held back to be sent together.
set_tcp_nodelay true
"""

KEPT = """
# --- what the broker keeps ---

# Sessions, what waits in them, and retained heads outlive a restart: it spares the members asking
# again. (2.0.11 keeps no session that began with a clean start.)
persistence true
persistence_location {data}/

# Saved every so many seconds: a crash takes what came since (the default is half an hour).
autosave_interval 60

# Seconds, not changes: counted in changes, a flood would have the whole file written many times
# a second.
autosave_on_changes false

# To the journal, as all else here.
log_dest stderr
"""

RIGHTS = """
# --- who may do what ---

# {anonymous}
allow_anonymous {allows}

# Each member by its name: writes below its own branch, reads its network. Others: nothing.
acl_file {acl}
"""

LISTENER = """
# --- where it listens ---

# {why}
listener {listen}

# Connections: each member's, a second one while its broken first is not given up yet, and
# {strangers} for whoever hangs in a handshake. (2.0.11 counts some endings twice, and admits more
# then: the limit that always holds is LimitNOFILE of the service.)
max_connections {connections}

# Nothing is sent at QoS 2: it needs the broker to remember, and members do that themselves.
max_qos 1

# A client is called what its member is called: with a client id of its own choosing, one member
# could take over another's session and throw it out.
use_username_as_clientid true
"""

TLS = """
# 1.3 only: in 1.2 a listener on the line sees the names in the certificates.
tls_version tlsv1.3

# The root of this street and no other: whom it has signed for may connect.
cafile {home}/root.crt

# The broker's own certificate and key: made here with `ca request`, signed with `ca issue-broker`.
certfile {home}/broker.crt
keyfile {home}/broker.key

# What the root has revoked. Without the file the broker does not start: bring an empty list, too.
crlfile {home}/root.crl

# Both sides show a certificate, one for each device ...
require_certificate true

# ... and a member's name is the one in it, whatever it says of itself.
use_identity_as_username true
"""

ACL_HEADER = """\
# Who may do what in {network}, written by `meterctl broker-config write`: write it anew rather than
# edit it. A name that is not here may do nothing, whoever has signed its certificate; that is why
# this is a list of names and not one pattern with %u, which would admit any.
"""

ACL_MEMBER = """
user {name}
topic write m/{network}/{name}/#
topic read m/{network}/#
"""


class Listen(NamedTuple):
    """Where the broker listens; an empty address is every one."""

    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether nobody from outside gets there."""
        return bool(self.address) and ipaddress.ip_address(self.address).is_loopback


def conf_text(
    network: str,
    members: Sequence[str],
    listen: Listen,
    *,
    tls: bool,
    home: str,
    data: str,
    user: str,
) -> str:
    """Return the broker's settings.

    Args:
        network: The network's name.
        members: Names of its nodes.
        listen: Without `tls` a loopback address.
        tls: Whether certificates say who is who; without, everybody may say anything.
        home: Folder of these files on the broker's machine, absolute.
        data: Folder of what it keeps, absolute.
        user: Whom it runs as.
    """
    if tls:
        anonymous = "Nobody without a name: the one in its certificate."
        why = "For the members, by TLS alone."
    else:
        anonymous = (
            "WITHOUT TLS ANYBODY HERE CAN TAKE ANY NAME: for tests and demos. (`true` lets in who\n"
            "# has no password; who has no name either is turned away below.)"
        )
        why = "Loopback only: whoever is not on this machine cannot get here."
    parts = (
        HEADER,
        LIMITS,
        KEPT,
        RIGHTS,
        LISTENER,
        TLS if tls else "",
    )
    return "".join(parts).format(
        network=network,
        members=count(len(members), "member"),
        user=user,
        packet=PACKET_BYTES_MAX,
        queued=QUEUED_MAX,
        queued_bytes=QUEUED_BYTES_MAX,
        anonymous=anonymous,
        allows="false" if tls else "true",
        acl=f"{home}/{ACL}",
        why=why,
        listen=f"{listen.port} {listen.address}".rstrip(),
        strangers=STRANGERS_MAX,
        connections=2 * len(members) + STRANGERS_MAX,
        home=home,
        data=data,
    )


def acl_text(network: str, members: Sequence[str]) -> str:
    """Return the broker's list of who may do what."""
    return ACL_HEADER.format(network=network) + "".join(
        ACL_MEMBER.format(network=network, name=name) for name in members
    )


# --- the command ------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl broker-config`."""
    parser.epilog = """\
examples:
  meterctl broker-config write --genesis genesis -o /etc/mosquitto/meterd
  meterctl broker-config ca --help
"""
    commands = parser.add_subparsers(dest="broker_command", required=True, metavar="COMMAND")
    _add_write(commands)
    summary = "certificates: a root, one for each device, one for each broker"
    ca = commands.add_parser("ca", help=summary, description=f"ca: {summary}.")
    ca.epilog = """\
A new street, on three machines (root, device, broker); only requests,
certificates and lists travel, never a key:

  root    meterctl broker-config ca init --ca elm-root --network elm-street
  device  meterctl broker-config ca request --name kitchen-12 --key mqtt.key --csr kitchen-12.csr
  root    meterctl broker-config ca issue --ca elm-root --csr kitchen-12.csr -o kitchen-12.crt
  broker  meterctl broker-config ca request --name broker --key broker.key --csr broker.csr
  root    meterctl broker-config ca issue-broker --ca elm-root --csr broker.csr \\
              --host broker.elm.example -o broker.crt
"""
    actions = ca.add_subparsers(dest="ca_command", required=True, metavar="COMMAND")
    _add_init(actions)
    _add_request(actions)
    _add_issue(actions)
    _add_issue_broker(actions)
    _add_revoke(actions)
    _add_list(actions)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    if options.broker_command == "write":
        _write(options)
    else:
        _CA[options.ca_command](options)
    return 0


# --- write ------------------------------------------------------------------------------------


def _add_write(commands: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "write a mosquitto.conf and its acl from a genesis"
    parser = commands.add_parser("write", help=summary, description=f"write: {summary}.")
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


# --- certificates -----------------------------------------------------------------------------


def _add(actions: Any, name: str, summary: str, epilog: str) -> argparse.ArgumentParser:  # noqa: ANN401
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, description=f"{name}: {summary}."
    )
    parser.epilog = f"examples:\n{epilog}"
    return parser


def _add_ca(parser: argparse.ArgumentParser, *, key: bool = True) -> None:
    parser.add_argument("--ca", required=True, type=Path, metavar="DIR", help="folder of the root")
    if key:
        parser.add_argument(
            "--passphrase-file",
            type=Path,
            metavar="FILE",
            help="first line: passphrase of the root key (asked for at a terminal otherwise)",
        )
    add_json(parser)


def _add_init(actions: Any) -> None:  # noqa: ANN401
    parser = _add(
        actions,
        "init",
        "make the root of a street",
        """\
  meterctl broker-config ca init --ca elm-root --network elm-street --encrypt
  meterctl broker-config ca init --ca elm-root --network elm-street --passphrase-file FILE
""",
    )
    parser.add_argument("--network", required=True, metavar="NAME", help="the network's name")
    parser.add_argument("--encrypt", action="store_true", help="ask for a passphrase for the key")
    _add_ca(parser)


def _add_request(actions: Any) -> None:  # noqa: ANN401
    parser = _add(
        actions,
        "request",
        "make a key, where it will be used, and a request",
        """\
  meterctl broker-config ca request --name kitchen-12 --key mqtt.key --csr kitchen-12.csr
  meterctl broker-config ca request --name kitchen-12 --key mqtt.key --csr again.csr --same-key
""",
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="its name in the network")
    parser.add_argument("--key", required=True, type=Path, metavar="FILE", help="stays here")
    parser.add_argument("--csr", required=True, type=Path, metavar="FILE", help="goes to the root")
    parser.add_argument("--same-key", action="store_true", help="for a key that is there")
    add_json(parser)


def _add_sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csr", required=True, type=Path, metavar="FILE", help="the request")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FILE", help="where to")
    parser.add_argument("--years", type=positive, default=2, metavar="N", help="default: 2")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="revoke the live one of that name: take the new list to the broker after the new"
        " certificate is in its place",
    )
    _add_ca(parser)


def _add_issue(actions: Any) -> None:  # noqa: ANN401
    parser = _add(
        actions,
        "issue",
        "sign a device's request",
        """\
  meterctl broker-config ca issue --ca elm-root --csr kitchen-12.csr -o kitchen-12.crt
  meterctl broker-config ca issue --ca elm-root --csr again.csr -o kitchen-12.crt --replace
""",
    )
    _add_sign(parser)


def _add_issue_broker(actions: Any) -> None:  # noqa: ANN401
    parser = _add(
        actions,
        "issue-broker",
        "sign a broker's request",
        """\
  meterctl broker-config ca issue-broker --ca elm-root --csr broker.csr \\
      --host broker.elm.example --host 192.0.2.7 -o broker.crt
""",
    )
    parser.add_argument(
        "--host",
        action="append",
        required=True,
        metavar="NAME",
        help="host name or address that devices have in their settings; may be repeated",
    )
    _add_sign(parser)


def _add_revoke(actions: Any) -> None:  # noqa: ANN401
    parser = _add(
        actions,
        "revoke",
        "revoke a certificate, and write the list for the broker",
        """\
  meterctl broker-config ca revoke --ca elm-root kitchen-12 --reason lost
  meterctl broker-config ca revoke --ca elm-root 43f0ef75a5c95f4514bf34aad31c0db18fc78800
""",
    )
    parser.add_argument("which", metavar="NAME|SERIAL", help="whose, or which")
    parser.add_argument(
        "--reason",
        choices=["unspecified", "lost", "replaced", "retired"],
        default="unspecified",
        help="goes into the list",
    )
    _add_ca(parser)


def _add_list(actions: Any) -> None:  # noqa: ANN401
    parser = _add(
        actions,
        "list",
        "show what was issued",
        """\
  meterctl broker-config ca list --ca elm-root
  meterctl broker-config ca list --ca elm-root --json
""",
    )
    _add_ca(parser, key=False)


def _ca_init(options: argparse.Namespace) -> None:
    from meterd import certificates

    if not NAME.fullmatch(options.network):
        raise UsageError(f"--network: expected 1 to 32 of a-z, 0-9 and -: {options.network[:40]!r}")
    passphrase = _passphrase(options, asks=options.encrypt, twice=True)
    key_id = certificates.make_root(options.ca, options.network, now=_now(), passphrase=passphrase)
    if options.json:
        print(json.dumps({"key_id": key_id, "encrypted": bool(passphrase)}))
        return
    print(f"root    {options.ca}")
    print(f"key     {key_id}")
    print(f"\nKeep {options.ca} off every network, and a copy of it elsewhere: whoever has its key")
    if passphrase:
        print("and passphrase can be any device of the street.")
    else:
        print("can be any device of the street, and it is not encrypted.")
    print("root.crt goes to every device and to the broker, root.crl to the broker.")


def _ca_request(options: argparse.Namespace) -> None:
    from meterd import certificates

    if not NAME.fullmatch(options.name):
        raise UsageError(
            f"--name: expected 1 to 32 of a-z, 0-9 and -, got {options.name[:40]!r}",
            hint="topics are made of it, where +, # and / mean something",
        )
    key_id = certificates.make_request(
        options.key, options.csr, options.name, reuse=options.same_key
    )
    if options.json:
        print(json.dumps({"name": options.name, "key_id": key_id, "csr": str(options.csr)}))
        return
    print(f"name    {options.name}")
    print(f"key     {key_id}")
    print(
        f"\nTake {options.csr} to the root, and compare the line `key` there. {options.key} stays."
    )


def _ca_issue(options: argparse.Namespace) -> None:
    from meterd import certificates

    new, pem = certificates.issue(
        options.ca,
        options.csr.read_bytes(),
        now=_now(),
        hosts=getattr(options, "host", ()),
        passphrase=_passphrase(options),
        years=options.years,
        renew=options.replace,
    )
    certificates.put(options.out, pem, mode=0o644)
    if options.json:
        print(json.dumps(_told(new)))
        return
    print(f"name    {new.name}")
    print(f"serial  {new.serial}")
    print(f"key     {new.key_id}")
    print(f"until   {new.ends:%Y-%m-%d}")
    print(
        f"\nTake {options.out} and root.crt to where the key is. Is the line `key` the same there?"
    )
    print("If it is not, revoke this certificate: somebody changed the request on its way.")


def _ca_revoke(options: argparse.Namespace) -> None:
    from meterd import certificates

    gone = certificates.revoke(
        options.ca,
        options.which,
        now=_now(),
        passphrase=_passphrase(options),
        reason=options.reason,
    )
    if options.json:
        print(json.dumps([_told(one) for one in gone]))
        return
    for one in gone:
        print(f"revoked {one.name} {one.serial}")
    if not gone:
        print("revoked before; the list is written anew")
    print(
        f"\nIt counts once the broker has {options.ca / certificates.ROOT_CRL}: copy it there,\n"
        "then `systemctl restart mosquitto`. A reload takes up the list as well, but leaves alone\n"
        "who is connected. Write the acl anew, --without the name, if it is not to come back."
    )


def _ca_list(options: argparse.Namespace) -> None:
    from meterd import certificates

    now = _now()
    found = certificates.issued(options.ca)
    if options.json:
        print(json.dumps([_told(one) for one in found]))
        return
    for one in found:
        state = "live" if one.is_live(now) else f"revoked, {one.reason}" if one.revoked else "ended"
        print(f"{one.kind:<6}  {one.name:<32}  {one.serial}  until {one.ends:%Y-%m-%d}  {state}")


_CA = {
    "init": _ca_init,
    "request": _ca_request,
    "issue": _ca_issue,
    "issue-broker": _ca_issue,
    "revoke": _ca_revoke,
    "list": _ca_list,
}


def _told(one: Issued) -> dict[str, object]:
    return {
        "kind": one.kind,
        "name": one.name,
        "serial": one.serial,
        "key_id": one.key_id,
        "begins": one.begins.isoformat(),
        "ends": one.ends.isoformat(),
        "revoked": one.revoked.isoformat() if one.revoked else None,
        "reason": one.reason or None,
    }


def _now() -> datetime:
    return datetime.now(UTC)


def _passphrase(options: argparse.Namespace, *, asks: bool = True, twice: bool = False) -> bytes:
    """Return the passphrase of the root key; empty where there is none, or nobody to ask."""
    if options.passphrase_file:
        line, _, _ = options.passphrase_file.read_bytes().partition(b"\n")
        if not line:
            raise ConfigError(f"the first line of {options.passphrase_file} is empty")
        return bytes(line)
    if not asks:
        return b""
    if not twice and not _is_encrypted(options.ca):
        return b""
    if sys.stdin is None or not sys.stdin.isatty():
        if twice:
            raise UsageError(
                "there is no terminal to ask for a passphrase at", hint="use --passphrase-file FILE"
            )
        return b""  # the root says what is missing
    from getpass import getpass

    first = getpass("passphrase of the root key: ")
    if twice and (not first or getpass("once more: ") != first):
        raise UsageError("empty, or not twice the same: nothing was made")
    return first.encode()


def _is_encrypted(folder: Path) -> bool:
    from meterd import certificates

    try:
        return b"ENCRYPTED" in (folder / certificates.ROOT_KEY).read_bytes()
    except FileNotFoundError as error:
        raise AbsentError(
            f"there is no root in {folder}",
            hint=f"make one with `meterctl broker-config ca init --ca {folder} --network NAME`",
        ) from error
