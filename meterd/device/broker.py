"""One connection of the peer process to an MQTT broker, kept up for ever.

A broker is a lossy, hostile cache: nothing rests on what it acknowledges, and nothing that it
does ends the process or fills its memory. What it had not acknowledged when it went is forgotten
and counted; the digests find the gap, and whoever published it says it again.

MQTT v5 is tried first, and v3.1.1 at once after any refusal that an old broker may have meant.
That it was old is known once it accepts v3.1.1, and not before.

>>> parse_address("mqtt://broker.example").port
1883
>>> try:
...     parse_address("mqtts://broker.example")
... except ConfigError as error:
...     print(f"{error}; {error.hint}")
mqtts://broker.example has no ca; set `ca` to the file of the CA that signs the broker's certificate
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from meterd.device.broker_client import INFLIGHT_MAX, PAYLOAD_BYTES_MAX, Client
from meterd.device.broker_link import Link, RefusedError, TooNewError, text_of
from meterd.errors import AbsentError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from meterd.device.broker_link import Protocol

CONNECT_S_MAX = 10.0  # TCP, TLS and CONNACK together; TCP has repeated itself thrice by then
STEADY_S = 5.0  # a connection held for so long was no mistake
BACKOFF_S_MIN, BACKOFF_S_MAX = 1.0, 60.0  # a street that lost its broker is back within a minute

_VERSIONS = {"5": mqtt.MQTTv5, "3.1.1": mqtt.MQTTv311}
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*|[0-9a-f:.]*:[0-9a-f:.]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Where a broker is, and how it and this device prove who they are.

    Attributes:
        ca: PEM file of the only certificates that are trusted; needed with `tls`.
        certificate: PEM file of this device's certificate; with `key`, or neither.
    """

    host: str
    port: int
    tls: bool
    ca: Path | None
    certificate: Path | None
    key: Path | None

    def __str__(self) -> str:
        """Return host and port, as the journal names a broker."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(
    url: str, *, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> BrokerAddress:
    """Return the address that `mqtt://host[:1883]` or `mqtts://host[:8883]` spells.

    Raises:
        ConfigError: It is spelled otherwise, or the files do not fit it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # a port past 65535, a bracket without its other
        host, port, parts = "", None, urlsplit("")
    plain = parts.scheme in {"mqtt", "mqtts"} and "@" not in parts.netloc
    if not plain or parts.path or parts.query or parts.fragment or port == 0:
        host = ""
    if not _HOST.fullmatch(host):
        raise ConfigError(
            f"not the address of a broker: {url}",
            hint="write mqtt://HOST, mqtts://HOST, or either with :PORT",
        )
    tls = parts.scheme == "mqtts"
    if tls and ca is None:
        raise ConfigError(
            f"{url} has no ca",
            hint="set `ca` to the file of the CA that signs the broker's certificate",
        )
    if not tls and (ca or certificate or key):
        raise ConfigError(
            f"{url} uses no certificates, and some are set",
            hint="write mqtts:// for TLS, or leave the files out",
        )
    if (certificate is None) != (key is None):
        raise ConfigError(f"{url} has a certificate or a key without the other", hint="set both")
    port = port or (8883 if tls else 1883)
    return BrokerAddress(host=host, port=port, tls=tls, ca=ca, certificate=certificate, key=key)


class Broker:
    """A broker, connected whenever that can be had.

    Attributes:
        connected: It has accepted us, and may be published to.
        protocol: What the connection speaks; after a loss, what it spoke; empty before the first.
        dropped: Messages not handed over: refused by `publish`, or unacknowledged at a loss
            (those may have arrived).
        oversize: Messages from it, larger than `PAYLOAD_BYTES_MAX` or with a topic that is not
            UTF-8, that were not delivered.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        subscriptions: Sequence[str],
        will: tuple[str, bytes],
        birth: tuple[str, bytes],
        deliver: Callable[[str, bytes], None],
        tell: Callable[[str, dict[str, str]], None],
        draw: Callable[[], float],
        gather_s: float = 0,
        connect_s_max: float = CONNECT_S_MAX,
        backoff_s_min: float = BACKOFF_S_MIN,
        backoff_s_max: float = BACKOFF_S_MAX,
    ) -> None:
        """Prepare; nothing is opened but the files of `address`.

        Args:
            address: Where it is.
            client_id: The same on each connection, and no other device's.
            subscriptions: Topic filters, subscribed to with QoS 1 on each connection.
            will: Topic and payload that the broker publishes, retained, when we vanish.
            birth: Topic and payload published, retained, on each connection.
            deliver: Takes topic and payload of a message, on the event loop; must not block.
                What it raises ends `run`.
            tell: Takes an event's name and fields: `broker_connected` (host, protocol),
                `broker_lost` (host, reason), `broker_refused` (host, reason, hint); the last two
                once for each reason until it is connected again.
            draw: Returns a random number in [0, 1), for the jitter.
            gather_s: Seconds that a message which comes alone waits for others to be taken with.
            connect_s_max: Seconds from the first packet to an accepted connection.
            backoff_s_min: Seconds before the second attempt; doubled for each further one.
            backoff_s_max: Seconds that this doubling ends at. A connection held for as long, or for
                `STEADY_S`, begins it anew.

        Raises:
            ConfigError: A file of `address` is missing, unreadable, or does not fit.
        """
        self.connected = False
        self.protocol: Protocol | Literal[""] = ""
        self.dropped = 0
        self.oversize = 0
        self._address = address
        self._tls = _tls_context(address) if address.tls else None
        self._client_id = client_id
        self._subscriptions = tuple(subscriptions)
        self._will = will
        self._birth = birth
        self._deliver = deliver
        self._tell = tell
        self._draw = draw
        self._gather_s = gather_s
        self._connect_s_max = connect_s_max
        self._backoff_s = (backoff_s_min, backoff_s_max)
        self._protocols: tuple[Protocol, ...] = ("5", "3.1.1")
        self._link: Link | None = None
        self._told: set[tuple[str, str]] = set()

    async def run(self) -> NoReturn:
        """Connect, and again after each loss, for ever.

        Cancelled, it waits a little for what was published before to be acknowledged and takes
        its leave, so that the broker does not publish the will.
        """
        loop = asyncio.get_running_loop()
        shortest_s, longest_s = self._backoff_s
        wait_s = shortest_s
        while True:
            began_s = loop.time()
            await self._attempt()
            if loop.time() - began_s >= min(STEADY_S, longest_s):
                wait_s = shortest_s
            await asyncio.sleep(wait_s * (0.5 + self._draw() / 2))
            wait_s = min(2 * wait_s, longest_s)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Hand a message to the link, never waiting; say whether it took it.

        Not while disconnected, nor when too much is unacknowledged: dropped, then, and counted.
        """
        if self._link is not None and self._link.publish(topic, payload, retain=retain):
            return True
        self.dropped += 1
        return False

    async def _attempt(self) -> None:
        """Connect and stay for as long as the broker does; tell how it ended."""
        for protocol in self._protocols:
            try:
                await self._hold(protocol)
            except TooNewError:
                continue  # at once, in the older protocol: that one's refusal is told
            except RefusedError as error:
                self._say("broker_refused", reason=str(error), hint=error.hint)
            except AbsentError as error:
                self._say("broker_lost", reason=str(error))
            return

    async def _hold(self, protocol: Protocol) -> None:
        link = Link(self._client(protocol), self._address, protocol, gather_s=self._gather_s)
        graceful = False
        try:
            await link.open(self._connect_s_max)
            self._greet(link, protocol)
            try:
                reason = await link.hold(self._receive, self._denied)
            except asyncio.CancelledError:
                graceful = True
                raise
            self._told.clear()
            self._say("broker_lost", reason=reason)
        finally:
            self._link, self.connected = None, False
            await link.close(graceful=graceful)
            self.dropped += link.waiting

    def _greet(self, link: Link, protocol: Protocol) -> None:
        self._protocols = self._protocols[self._protocols.index(protocol) :]
        self._link, self.connected, self.protocol = link, True, protocol
        self._told.clear()
        link.subscribe(self._subscriptions)
        self.publish(*self._birth, retain=True)
        self._say("broker_connected", protocol=protocol)

    def _receive(self, topic: bytes, payload: bytes) -> None:
        try:
            name = topic.decode()
        except UnicodeDecodeError:
            self.oversize += 1
            return
        if len(payload) > PAYLOAD_BYTES_MAX:
            self.oversize += 1
            return
        self._deliver(name, payload)

    def _denied(self, reason: str) -> None:
        self._say(
            "broker_refused",
            reason=f"the broker refused a subscription: {reason}",
            hint="let this client read what its neighbours publish, in the broker's settings",
        )

    def _say(self, event: str, **fields: str) -> None:
        # Where a lost broker cannot be reached either, that is no news: the reason is left out.
        news = (event, fields.get("reason", "") if event == "broker_refused" else "")
        if news not in self._told:
            self._told.add(news)  # a handful: the reasons are ours, the system's and OpenSSL's
            self._tell(event, {"host": str(self._address), **fields})

    def _client(self, protocol: Protocol) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            clean_session=None if protocol == "5" else True,
            protocol=_VERSIONS[protocol],
            reconnect_on_failure=False,
        )
        client.will_set(*self._will, qos=1, retain=True)
        client.max_inflight_messages_set(INFLIGHT_MAX)
        client.connect_timeout = self._connect_s_max
        if self._tls is not None:
            client.tls_set_context(self._tls)
        return client


class _TlsSocket(ssl.SSLSocket):
    """A TLS socket that is closed when its handshake fails; paho leaves it open."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - ssl's own
        """Shake hands, or close."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _tls_context(address: BrokerAddress) -> ssl.SSLContext:
    """Return what TLS to `address` asks for: version 1.3, and the broker's name in its certificate.

    Raises:
        ConfigError: A file is missing, unreadable, or does not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.sslsocket_class = _TlsSocket
    files = [address.ca]
    try:
        context.load_verify_locations(cafile=address.ca)
        if address.certificate is not None:
            files = [address.certificate, address.key]
            # An encrypted key is an error here; without a password OpenSSL asks the terminal.
            context.load_cert_chain(address.certificate, address.key, password="")
    except (OSError, TypeError, ValueError) as error:
        names = " and ".join(map(str, files))
        raise ConfigError(
            f"no certificate for {address} from {names}: {text_of(error)}",
            hint="set `ca`, `certificate` and `key` to PEM files, the key not encrypted",
        ) from error
    return context
