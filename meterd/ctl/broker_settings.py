"""What the settings of a street's broker say, and its list of who may do what.

They are for mosquitto, and for whoever reads them on its machine: each setting has its reason in a
comment beside it.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from meterd.ctl.show import count

if TYPE_CHECKING:
    from collections.abc import Sequence

CONF, ACL = "mosquitto.conf", "acl"
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
