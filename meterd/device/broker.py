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
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NoReturn
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from meterd.errors import AbsentError, ConfigError, MeterdError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from paho.mqtt.enums import MQTTErrorCode
    from paho.mqtt.reasoncodes import ReasonCode

Protocol = Literal["5", "3.1.1"]

PAYLOAD_BYTES_MAX = 65_536  # the largest answer of a peer; more is nobody's message
PACKET_BYTES_ASKED = 70_000  # such a payload with its topic; a v5 broker keeps to it
# Past this the link is cut. A v3.1.1 broker cannot be asked to leave out what is too large, and
# cut off at the first such packet, a neighbour's retained one would keep us off it for ever.
PACKET_BYTES_MAX = 1 << 20
WAITING_MAX = 1000  # unacknowledged messages; as many as mosquitto keeps for a client
WAITING_BYTES_MAX = 8_000_000
INFLIGHT_MAX = 20  # mosquitto's own default, both ways
UNSENT_MAX = 4 * WAITING_MAX  # packets; a broker that sends, and never reads, reaches it
KEEPALIVE_S = 30  # the broker publishes our will after one and a half of it
CONNECT_S_MAX = 10.0  # TCP, TLS and CONNACK together; TCP has repeated itself thrice by then
STEADY_S = 5.0  # a connection held for so long was no mistake
BACKOFF_S_MIN, BACKOFF_S_MAX = 1.0, 60.0  # a street that lost its broker is back within a minute
CLOSE_S_MAX = 1.0  # for the last acknowledgements, and once more for DISCONNECT
MISC_S = 5.0  # how often paho looks at its keepalive
READS_MAX = 32  # packets taken at one readiness of the socket

_VERSIONS = {"5": mqtt.MQTTv5, "3.1.1": mqtt.MQTTv311}
_PROTOCOL_ERROR, _UNSUPPORTED_VERSION = 130, 132  # reason codes (MQTT v5, 2.4)
_GARBAGE = "what the broker sent is not MQTT"
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*|[0-9a-f:.]*:[0-9a-f:.]*")
_LOG_HINT = "look into the broker's log"


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
        self._connect_s_max = connect_s_max
        self._backoff_s = (backoff_s_min, backoff_s_max)
        self._protocols: tuple[Protocol, ...] = ("5", "3.1.1")
        self._link: _Link | None = None
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
            except _TooNewError:
                continue  # at once, in the older protocol: that one's refusal is told
            except _RefusedError as error:
                self._say("broker_refused", reason=str(error), hint=error.hint)
            except AbsentError as error:
                self._say("broker_lost", reason=str(error))
            return

    async def _hold(self, protocol: Protocol) -> None:
        link = _Link(self._client(protocol), self._address, protocol)
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

    def _greet(self, link: _Link, protocol: Protocol) -> None:
        self._protocols = self._protocols[self._protocols.index(protocol) :]
        self._link, self.connected, self.protocol = link, True, protocol
        self._told.clear()
        link.subscribe(self._subscriptions)
        self.publish(*self._birth, retain=True)
        self._say("broker_connected", protocol=protocol)

    def _receive(self, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self.oversize += 1
            return
        if len(message.payload) > PAYLOAD_BYTES_MAX:
            self.oversize += 1
            return
        self._deliver(topic, bytes(message.payload))

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

    def _client(self, protocol: Protocol) -> _Client:
        client = _Client(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            clean_session=None if protocol == "5" else True,
            protocol=_VERSIONS[protocol],
            reconnect_on_failure=False,
        )
        client.will_set(*self._will, qos=1, retain=True)
        client.max_inflight_messages_set(INFLIGHT_MAX)
        client.max_queued_messages_set(WAITING_MAX)
        client.connect_timeout = self._connect_s_max
        if self._tls is not None:
            client.tls_set_context(self._tls)
        return client


class _RefusedError(MeterdError):
    """The broker was reached, and does not take us: tell, and try again later."""


class _TooNewError(_RefusedError):
    """It does not take us, perhaps for speaking MQTT v5: try v3.1.1 at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """Why a link ended: the broker's word, what failed below it, or neither."""

    reason: str
    code: int = 0  # of CONNACK or DISCONNECT, or what the broker did comes to
    error: Exception | None = None


class _Link:
    """One connection: paho's client with its socket on the event loop.

    Nothing of it is used again after a loss, so no state of one connection leaks into the next.
    """

    def __init__(self, client: _Client, address: BrokerAddress, protocol: Protocol) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._address = address
        self._protocol = protocol
        self._attached = self._abandoned = False
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._lost: asyncio.Future[_Loss] = self._loop.create_future()
        self._settled: asyncio.Future[None] | None = None
        self._unacknowledged: dict[int, int] = {}
        self._unacknowledged_bytes = 0
        self._receive: Callable[[mqtt.MQTTMessage], None] | None = None
        self._denied: Callable[[str], None] | None = None
        # What paho's callbacks bring. It is handed on when paho is out of the way: what `deliver`
        # raises is our mistake, and what paho raises is the broker's.
        self._mistake: Exception | None = None
        self._arrived: list[Callable[[], None]] = []
        client.on_socket_open = lambda _c, _d, line: _set_no_delay(line)
        client.on_socket_close = lambda _c, _d, line: self._on_close(line)
        client.on_socket_register_write = lambda _c, _d, line: self._on_register_write(line)
        client.on_socket_unregister_write = lambda _c, _d, line: self._on_unregister_write(line)
        client.on_connect = lambda _c, _d, _f, code, extra: self._on_connect(code, extra)
        client.on_disconnect = lambda _c, _d, flags, code, _e: self._on_disconnect(flags, code)
        client.on_message = lambda _c, _d, message: self._on_message(message)
        client.on_publish = lambda _c, _d, number, _r, _e: self._on_publish(number)
        client.on_subscribe = lambda _c, _d, _n, codes, _e: self._on_subscribe(codes)

    @property
    def waiting(self) -> int:
        """How many messages are unacknowledged."""
        return len(self._unacknowledged)

    async def open(self, connect_s_max: float) -> None:
        """Connect until accepted.

        Raises:
            AbsentError: Nobody answers there.
            _RefusedError: Somebody does, and does not take us.
        """
        try:
            async with asyncio.timeout(connect_s_max):
                await asyncio.to_thread(self._connect)
                self._attach()
                await self._first(self._accepted, self._lost)
        except ssl.SSLError as error:
            raise _tls_refusal(error) from error
        except TimeoutError as error:
            if self._attached:  # an old broker may not answer what it cannot read
                silent = _TooNewError if self._protocol == "5" else _RefusedError
                raise silent(
                    f"no answer to CONNECT within {connect_s_max:g} s",
                    hint="look whether an MQTT broker listens at that port",
                ) from error
            raise AbsentError(f"no connection within {connect_s_max:g} s") from error
        except OSError as error:
            raise AbsentError(f"no connection: {error.strerror or error}") from error
        if not self._accepted.done():
            raise _refusal(self._lost.result(), self._protocol, tls=self._address.tls)

    async def hold(
        self, receive: Callable[[mqtt.MQTTMessage], None], denied: Callable[[str], None]
    ) -> str:
        """Stay connected, handing on what comes; return why that ended."""
        self._receive, self._denied = receive, denied
        self._hand_on()
        while not self._lost.done():
            self._drive(self._client.loop_misc)
            await asyncio.wait((self._lost,), timeout=MISC_S)
        if self._mistake is not None:
            raise self._mistake
        return self._lost.result().reason

    def subscribe(self, filters: Sequence[str]) -> None:
        if filters:
            self._client.subscribe([(topic, 1) for topic in filters])

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        size = len(topic) + len(payload)
        if self.waiting >= WAITING_MAX or self._unacknowledged_bytes + size > WAITING_BYTES_MAX:
            return False
        message = self._client.publish(topic, payload, qos=1, retain=retain)
        if message.rc != mqtt.MQTT_ERR_SUCCESS:
            return False
        self._unacknowledged[message.mid] = size
        self._unacknowledged_bytes += size
        return True

    async def close(self, *, graceful: bool) -> None:
        """Close the socket; gracefully: let what was published arrive, and say goodbye.

        Without the wait the broker would meet a reset connection while it answers us, take us
        for vanished, and publish the will.
        """
        self._receive = self._denied = None
        try:
            if graceful and not self._lost.done():
                self._settled = self._loop.create_future()
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S_MAX):
                        if self._unacknowledged:
                            await self._first(self._settled, self._lost)
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S_MAX):
                        self._client.disconnect()
                        await self._first(self._lost)
        finally:
            self._abandoned = True
            self._client.abort()

    def _connect(self) -> None:
        """Connect, in a thread: resolving, TCP and TLS block. CONNECT is queued, not sent."""
        address = self._address
        if self._protocol == "5":
            asked = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            asked.SessionExpiryInterval = 0
            asked.ReceiveMaximum = INFLIGHT_MAX
            asked.MaximumPacketSize = PACKET_BYTES_ASKED
            self._client.connect(
                address.host, address.port, KEEPALIVE_S, clean_start=True, properties=asked
            )
        else:
            self._client.connect(address.host, address.port, KEEPALIVE_S)
        if self._abandoned:  # cancelled in the meantime: `close` may have found no socket yet
            self._client.abort()

    def _attach(self) -> None:
        line = self._client.socket()
        if line is not None:
            self._attached = True
            self._loop.add_reader(line.fileno(), self._read)
            if self._client.want_write():
                self._loop.add_writer(line.fileno(), self._write)

    def _read(self) -> None:
        if self._lost.done():
            return
        for _ in range(READS_MAX):  # paho reads a packet at a time
            before = len(self._arrived)
            self._drive(self._client.loop_read)
            if len(self._arrived) == before or self._lost.done():
                break
        self._hand_on()
        line = self._client.socket()
        if isinstance(line, ssl.SSLSocket) and line.pending():
            self._loop.call_soon(self._read)  # decrypted already: no event would come for it

    def _write(self) -> None:
        self._drive(self._client.loop_write)

    def _drive(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make paho raise
            self._cut(f"{_GARBAGE} ({error!r})")
        if self._client.unsent > UNSENT_MAX:
            self._cut("the broker does not read what it is sent")

    def _hand_on(self) -> None:
        if self._receive is None or self._denied is None:
            self._arrived.clear()  # not accepted yet, or taking leave
        arrived, self._arrived = self._arrived, []
        try:
            for hand_on in arrived:
                hand_on()
        except Exception as error:  # noqa: BLE001 - it is raised again in `hold`
            self._mistake = error
            self._cut("")

    def _cut(self, reason: str) -> None:
        self._lose(_Loss(reason=reason, code=_PROTOCOL_ERROR))
        self._client.abort()

    def _lose(self, loss: _Loss) -> None:
        if not self._lost.done():
            self._lost.set_result(loss)

    async def _first(self, *futures: asyncio.Future[None] | asyncio.Future[_Loss]) -> None:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)

    def _on_connect(self, code: ReasonCode, properties: Properties | None) -> None:
        if code.is_failure:
            self._lose(_Loss(reason=f"the broker refused: {code}", code=code.value))
        elif not self._accepted.done():
            self._client.heed(properties)
            self._accepted.set_result(None)

    def _on_disconnect(self, flags: mqtt.DisconnectFlags, code: ReasonCode) -> None:
        error = self._client.failure
        if flags.is_disconnect_packet_from_server:
            loss = _Loss(reason=f"the broker disconnected: {code}", code=code.value)
        elif error is not None:
            loss = _Loss(reason=f"the connection failed: {_text(error)}", error=error)
        elif code.value == _PROTOCOL_ERROR:
            loss = _Loss(reason=_GARBAGE, code=code.value)
        elif code.getName() == "Keep alive timeout":
            loss = _Loss(reason=f"no answer within {KEEPALIVE_S} s")
        else:
            loss = _Loss(reason="the broker closed the connection")
        self._lose(loss)

    def _on_message(self, message: mqtt.MQTTMessage) -> None:
        if self._receive is not None:
            self._arrived.append(partial(self._receive, message))

    def _on_publish(self, number: int) -> None:
        self._unacknowledged_bytes -= self._unacknowledged.pop(number, 0)
        if not self._unacknowledged and self._settled and not self._settled.done():
            self._settled.set_result(None)

    def _on_subscribe(self, codes: list[ReasonCode]) -> None:
        for code in codes:
            if code.is_failure and self._denied is not None:
                self._arrived.append(partial(self._denied, str(code)))

    # In the thread that connects, these find nothing attached and leave the loop alone.

    def _on_close(self, line: mqtt.SocketLike) -> None:
        if self._attached:
            self._attached = False
            self._loop.remove_reader(line.fileno())
            self._loop.remove_writer(line.fileno())

    def _on_register_write(self, line: mqtt.SocketLike) -> None:
        if self._attached:
            self._loop.add_writer(line.fileno(), self._write)

    def _on_unregister_write(self, line: mqtt.SocketLike) -> None:
        if self._attached:
            self._loop.remove_writer(line.fileno())


class _Client(mqtt.Client):
    """paho's client, bounded where it leaves that to the broker, and open about failures.

    It has no public way to either; what is overridden here is private to it and held by tests.

    Attributes:
        failure: What its socket raised last.
    """

    failure: Exception | None = None

    @property
    def unsent(self) -> int:
        """How many packets wait for the socket, acknowledgements included."""
        return len(self._out_packet)

    def heed(self, properties: Properties | None) -> None:
        """Send no more at once than the broker takes, and ping no less often than asked here."""
        taken = getattr(properties, "ReceiveMaximum", INFLIGHT_MAX)
        self._max_inflight_messages = max(1, min(INFLIGHT_MAX, taken))
        self._keepalive = min(KEEPALIVE_S, self._keepalive or KEEPALIVE_S)

    def abort(self) -> None:
        """Close the socket, if there is one, without a word."""
        self._sock_close()

    def _sock_recv(self, bufsize: int) -> bytes:
        # paho asks for the rest of a packet at once, whatever length its sender claims.
        if bufsize > PACKET_BYTES_MAX:
            self.failure = ConnectionError(f"a packet of more than {PACKET_BYTES_MAX} bytes")
            raise self.failure
        try:
            return super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self.failure = error
            raise

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.failure = error
            raise

    def _send_pubrec(self, mid: int) -> MQTTErrorCode:
        # QoS 2, which nobody subscribed with: paho would keep each message until it is released.
        self.failure = ConnectionError(f"message {mid} has QoS 2")
        return mqtt.MQTT_ERR_PROTOCOL


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
            f"no certificate for {address} from {names}: {_text(error)}",
            hint="set `ca`, `certificate` and `key` to PEM files, the key not encrypted",
        ) from error
    return context


def _refusal(loss: _Loss, protocol: Protocol, *, tls: bool) -> _RefusedError:
    """Return what a link that ended before it was accepted comes to."""
    perhaps_old = _TooNewError if protocol == "5" else _RefusedError
    if isinstance(loss.error, ssl.SSLError) and not isinstance(loss.error, ssl.SSLEOFError):
        return _tls_refusal(loss.error)
    if loss.code in {_PROTOCOL_ERROR, _UNSUPPORTED_VERSION}:
        return perhaps_old(loss.reason, hint="look whether an MQTT broker listens at that port")
    if loss.code:
        return _RefusedError(loss.reason, hint=_LOG_HINT)
    if tls:  # so does mosquitto 2.0.11: a closed connection, and no alert
        return perhaps_old(
            "the broker closed the connection unanswered, as for want of a client certificate",
            hint=f"set `certificate` and `key` to what its CA has signed, or {_LOG_HINT}",
        )
    return perhaps_old("the broker closed the connection unanswered", hint=_LOG_HINT)


def _tls_refusal(error: ssl.SSLError) -> _RefusedError:
    """Return what a failure of TLS means; never that the broker is old."""
    text = _text(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _RefusedError(
            f"the broker's certificate does not verify: {text}",
            hint="compare `ca` and the host's name with the broker's certificate, and the clock",
        )
    if "alert" in text and ("certificate" in text or "unknown ca" in text):
        return _RefusedError(
            f"the broker does not accept the client certificate: {text}",
            hint="set `certificate` and `key` to what its CA has signed, and is still valid",
        )
    return _RefusedError(
        f"no TLS 1.3 with the broker: {text}", hint="look whether it speaks TLS 1.3 at that port"
    )


def _text(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _set_no_delay(line: mqtt.SocketLike) -> None:
    # Otherwise Nagle's algorithm and the delayed acknowledgement cost 44 ms a message.
    if isinstance(line, socket.socket):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
