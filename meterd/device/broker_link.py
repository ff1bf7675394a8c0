"""One connection to a broker: paho's client with its socket on the event loop, until it is lost.

What paho and the broker's bytes make of it comes out as one of three: nobody is there, somebody
refuses us, or the connection is lost, each with a reason that a technician can act on.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from meterd.device.broker_client import INFLIGHT_MAX, KEEPALIVE_S, PACKET_BYTES_ASKED
from meterd.errors import AbsentError, MeterdError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import paho.mqtt.client as mqtt
    from paho.mqtt.reasoncodes import ReasonCode

    from meterd.device.broker import BrokerAddress
    from meterd.device.broker_client import Client

Protocol = Literal["5", "3.1.1"]

WAITING_MAX = 1000  # unacknowledged messages; as many as mosquitto keeps for a client
WAITING_BYTES_MAX = 8_000_000
UNSENT_FEW = 100  # packets, whose bytes need not be counted
UNSENT_MAX = 1000  # packets; a broker that sends, and never reads, reaches it
CLOSE_S_MAX = 1.0  # for the last acknowledgements, and once more for DISCONNECT
MISC_S = 5.0  # how often paho looks at its keepalive
READS_MAX = 32  # packets taken at one readiness of the socket
BUSY = 8  # as many messages at once, and the next are not waited for

_PROTOCOL_ERROR, _UNSUPPORTED_VERSION = 130, 132  # reason codes (MQTT v5, 2.4)
_GARBAGE = "what the broker sent is not MQTT"
_LOG_HINT = "look into the broker's log"


class RefusedError(MeterdError):
    """The broker was reached, and does not take us: tell, and try again later."""


class TooNewError(RefusedError):
    """It does not take us, perhaps for speaking MQTT v5: try v3.1.1 at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Why a link ended: the broker's word, what failed below it, or neither."""

    reason: str
    code: int = 0  # of CONNACK or DISCONNECT, or what the broker did comes to
    error: Exception | None = None


class Link:
    """One connection.

    Nothing of it is used again after a loss, so no state of one connection leaks into the next.
    """

    def __init__(
        self, client: Client, address: BrokerAddress, protocol: Protocol, *, gather_s: float
    ) -> None:
        """Prepare; nothing is opened.

        Args:
            client: Not connected yet.
            address: Where the broker is.
            protocol: What `client` speaks.
            gather_s: How long a message that comes alone waits for others to be taken with it.
        """
        self._gather_s = gather_s
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._address = address
        self._protocol = protocol
        self._attached = self._abandoned = self._hurried = self._writing = False
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._lost: asyncio.Future[Loss] = self._loop.create_future()
        self._settled: asyncio.Future[None] | None = None
        self._receive: Callable[[bytes, bytes], None] | None = None
        self._denied: Callable[[str], None] | None = None
        # What paho's callbacks bring. It is handed on when paho is out of the way: what `deliver`
        # raises is our mistake, and what paho raises is the broker's.
        self._mistake: Exception | None = None
        self._arrived: list[Callable[[], None]] = []
        client.on_socket_open = lambda _c, _d, line: _set_no_delay(line)
        client.on_socket_close = lambda _c, _d, line: self._on_close(line)
        client.on_socket_register_write = lambda _c, _d, _line: self._on_register_write()
        client.on_socket_unregister_write = lambda _c, _d, line: self._on_unregister_write(line)
        client.on_connect = lambda _c, _d, _f, code, extra: self._on_connect(code, extra)
        client.on_disconnect = lambda _c, _d, flags, code, _e: self._on_disconnect(flags, code)
        client.arrived = self._on_message
        client.acknowledged = self._on_acknowledged
        client.begin()
        client.on_subscribe = lambda _c, _d, _n, codes, _e: self._on_subscribe(codes)

    @property
    def waiting(self) -> int:
        """How many messages are unacknowledged."""
        return len(self._client.waiting)

    async def open(self, connect_s_max: float) -> None:
        """Connect until accepted.

        Raises:
            AbsentError: Nobody answers there.
            RefusedError: Somebody does, and does not take us.
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
                silent = TooNewError if self._protocol == "5" else RefusedError
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
        self, receive: Callable[[bytes, bytes], None], denied: Callable[[str], None]
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
        """Ask for what is published on these topics."""
        if filters:
            self._client.subscribe([(topic, 1) for topic in filters])

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        """Send a message; say whether there was room for it."""
        size = len(topic) + len(payload)
        if self.waiting >= WAITING_MAX or self._client.waiting_bytes + size > WAITING_BYTES_MAX:
            return False
        return self._client.send(topic.encode(), payload, retain=retain)

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
                        if self.waiting:
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
            self._loop.add_reader(line.fileno(), self._readable)
            if self._client.want_write():
                self._loop.add_writer(line.fileno(), self._write)

    def _readable(self) -> None:
        """Read; or where messages come one by one, a little later, with those behind them."""
        line = self._client.socket()
        if line is not None and self._gather_s and not self._hurried:
            self._loop.remove_reader(line.fileno())
            self._loop.call_later(self._gather_s, self._read)
        else:
            self._read()

    def _read(self) -> None:
        if self._lost.done():
            return
        before = len(self._arrived)
        self._client.drained = False
        for _ in range(READS_MAX):  # paho reads a packet at a time, and TLS gives as little
            self._drive(self._client.loop_read)
            if self._lost.done() or self._client.drained:
                break
        self._hurried = len(self._arrived) - before >= BUSY
        self._drive(self._client.acknowledge)
        self._hand_on()
        line = self._client.socket()
        if line is None:
            return
        if not self._client.drained:
            self._loop.call_soon(self._read)  # no event would come for what TLS holds already
        elif self._gather_s and self._attached:
            self._loop.add_reader(line.fileno(), self._readable)

    def _write(self) -> None:
        self._writing = False
        self._drive(self._client.loop_write)
        line = self._client.socket()
        if self._attached and line is not None and self._client.want_write():
            self._loop.add_writer(line.fileno(), self._write)

    def _drive(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make paho raise
            self._cut(f"{_GARBAGE} ({error!r})")
        unsent = self._client.unsent
        if unsent > UNSENT_MAX or (
            unsent > UNSENT_FEW and self._client.unsent_bytes > WAITING_BYTES_MAX
        ):
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
        self._lose(Loss(reason=reason, code=_PROTOCOL_ERROR))
        self._client.abort()

    def _lose(self, loss: Loss) -> None:
        if not self._lost.done():
            self._lost.set_result(loss)

    async def _first(self, *futures: asyncio.Future[None] | asyncio.Future[Loss]) -> None:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)

    def _on_connect(self, code: ReasonCode, properties: Properties | None) -> None:
        if code.is_failure:
            self._lose(Loss(reason=f"the broker refused: {code}", code=code.value))
        elif not self._accepted.done():
            self._client.heed(properties)
            self._accepted.set_result(None)

    def _on_disconnect(self, flags: mqtt.DisconnectFlags, code: ReasonCode) -> None:
        error = self._client.failure
        if flags.is_disconnect_packet_from_server:
            loss = Loss(reason=f"the broker disconnected: {code}", code=code.value)
        elif error is not None:
            loss = Loss(reason=f"the connection failed: {text_of(error)}", error=error)
        elif code.value == _PROTOCOL_ERROR:
            loss = Loss(reason=_GARBAGE, code=code.value)
        elif code.getName() == "Keep alive timeout":
            loss = Loss(reason=f"no answer within {KEEPALIVE_S} s")
        else:
            loss = Loss(reason="the broker closed the connection")
        self._lose(loss)

    def _on_message(self, topic: bytes, payload: bytes) -> None:
        if self._receive is not None:
            self._arrived.append(partial(self._receive, topic, payload))

    def _on_acknowledged(self) -> None:
        if not self.waiting and self._settled and not self._settled.done():
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

    def _on_register_write(self) -> None:
        if self._attached and not self._writing:
            self._writing = True
            self._loop.call_soon(self._write)  # a socket is nearly always ready: no need to ask

    def _on_unregister_write(self, line: mqtt.SocketLike) -> None:
        if self._attached:
            self._loop.remove_writer(line.fileno())


def _refusal(loss: Loss, protocol: Protocol, *, tls: bool) -> RefusedError:
    """Return what a link that ended before it was accepted comes to."""
    perhaps_old = TooNewError if protocol == "5" else RefusedError
    if isinstance(loss.error, ssl.SSLError) and not isinstance(loss.error, ssl.SSLEOFError):
        return _tls_refusal(loss.error)
    if loss.code in {_PROTOCOL_ERROR, _UNSUPPORTED_VERSION}:
        return perhaps_old(loss.reason, hint="look whether an MQTT broker listens at that port")
    if loss.code:
        return RefusedError(loss.reason, hint=_LOG_HINT)
    if tls:  # so does mosquitto 2.0.11: a closed connection, and no alert
        return perhaps_old(
            "the broker closed the connection unanswered, as for want of a client certificate",
            hint=f"set `certificate` and `key` to what its CA has signed, or {_LOG_HINT}",
        )
    return perhaps_old("the broker closed the connection unanswered", hint=_LOG_HINT)


def _tls_refusal(error: ssl.SSLError) -> RefusedError:
    """Return what a failure of TLS means; never that the broker is old."""
    text = text_of(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        if "expired" in text:
            return RefusedError(
                f"the broker's certificate does not verify: {text}",
                hint="renew it where the CA is, with `meterctl broker-config ca issue-broker`, "
                "unless this device's clock is wrong",
            )
        return RefusedError(
            f"the broker's certificate does not verify: {text}",
            hint="compare `ca` and the host's name with the broker's certificate, and the clock",
        )
    if "alert" in text and "certificate expired" in text:
        return RefusedError(
            f"the broker does not accept the client certificate: {text}",
            hint="renew this device's with `meterctl broker-config ca issue --replace` "
            "where the CA is, and bring it here",
        )
    if "alert" in text and ("certificate" in text or "unknown ca" in text):
        return RefusedError(
            f"the broker does not accept the client certificate: {text}",
            hint="set `certificate` and `key` to what its CA has signed, and is still valid",
        )
    return RefusedError(
        f"no TLS 1.3 with the broker: {text}", hint="look whether it speaks TLS 1.3 at that port"
    )


def text_of(error: Exception) -> str:
    """Return what an error says, in as few words as it has."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _set_no_delay(line: mqtt.SocketLike) -> None:
    # Otherwise Nagle's algorithm and the delayed acknowledgement cost 44 ms a message.
    if isinstance(line, socket.socket):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
