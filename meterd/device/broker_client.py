"""paho's MQTT client, bounded where it leaves that to the broker, and quicker where it counts.

It has no public way to either; what is overridden here is private to it and held by tests.
PUBLISH and its acknowledgement are the packets that come in numbers. paho reads each in three
system calls, and keeps it in objects with a lock each, to be waited for by threads and sent again
by a later connection; here there are neither. That took a quarter of a busy node's CPU.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

import paho.mqtt.client as mqtt

if TYPE_CHECKING:
    from collections.abc import Callable

    from paho.mqtt.enums import MQTTErrorCode
    from paho.mqtt.properties import Properties

PAYLOAD_BYTES_MAX = 65_536  # the largest answer of a peer; more is nobody's message
PACKET_BYTES_ASKED = 70_000  # such a payload with its topic; a v5 broker keeps to it
# Past this the link is cut. A v3.1.1 broker cannot be asked to leave out what is too large, and
# cut off at the first such packet, a neighbour's retained one would keep us off it for ever.
PACKET_BYTES_MAX = 1 << 20
OTHER_BYTES_MAX = 4096  # of a packet that is no message; paho takes such ones apart slowly
INFLIGHT_MAX = 100  # both ways
KEEPALIVE_S = 30  # the broker publishes our will after one and a half of it
READ_BYTES = 65_536  # taken from the socket at once
_PUBACK = b"\x40\x02"
_VARINT_BYTES_MAX = 4  # MQTT v5, 1.5.5


class Client(mqtt.Client):
    """A client for one connection, whose sockets' events are somebody else's to wait for.

    Attributes:
        failure: What its socket raised last.
        drained: Whether the socket had nothing more; set here, cleared by who reads.
        arrived: Takes topic and payload of each message, as they came, still while it reads.
        acknowledged: Called when the broker has taken a message.
        waiting: Sizes of the messages that it has not, in bytes, by number.
        waiting_bytes: Their sum.
    """

    failure: Exception | None = None
    drained = False
    arrived: Callable[[bytes, bytes], None]
    acknowledged: Callable[[], None]
    _unread = memoryview(b"")
    _unacknowledged = b""

    def begin(self) -> None:
        """Prepare what paho knows nothing of."""
        self.waiting: dict[int, int] = {}
        self.waiting_bytes = 0
        self._queued: deque[tuple[int, bytes, bytes, bool]] = deque()

    @property
    def unsent(self) -> int:
        """How many packets wait for the socket."""
        return len(self._out_packet)

    @property
    def unsent_bytes(self) -> int:
        """How many bytes these have."""
        return sum(len(packet["packet"]) for packet in self._out_packet)

    def heed(self, properties: Properties | None) -> None:
        """Send no more at once than the broker takes, and ping no less often than asked here."""
        taken = getattr(properties, "ReceiveMaximum", INFLIGHT_MAX)
        self._max_inflight_messages = max(1, min(INFLIGHT_MAX, taken))
        self._keepalive = min(KEEPALIVE_S, self._keepalive or KEEPALIVE_S)

    def send(self, topic: bytes, payload: bytes, *, retain: bool) -> bool:
        """Send a message with QoS 1, once the broker takes more; say whether there is a link."""
        if self._sock is None:
            return False
        number = self._mid_generate()
        while number in self.waiting:
            number = self._mid_generate()
        self.waiting[number] = len(topic) + len(payload)
        self.waiting_bytes += self.waiting[number]
        if len(self.waiting) - len(self._queued) > self._max_inflight_messages:
            self._queued.append((number, topic, payload, retain))
        else:
            self._send_publish(number, topic, payload, 1, retain)
        return True

    def acknowledge(self) -> None:
        """Send the acknowledgements of all that has arrived since, in one packet of the socket."""
        if self._unacknowledged:
            acknowledgements, self._unacknowledged = self._unacknowledged, b""
            self._packet_queue(mqtt.PUBACK, acknowledgements, 0, 1)

    def abort(self) -> None:
        """Close the socket, if there is one, without a word."""
        self._sock_close()

    def _handle_publish(self) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        at = 2 + int.from_bytes(packet[:2], "big")
        topic = bytes(packet[2:at])
        quality = self._in_packet["command"] >> 1 & 3
        if quality > 1:  # nobody subscribed with it: paho would keep it until it is released
            self.failure = ConnectionError("a message has QoS 2")
            return mqtt.MQTT_ERR_PROTOCOL
        number = packet[at : at + 2 * quality]
        at += 2 * quality
        if self._protocol == mqtt.MQTTv5:
            at += _skipped(packet, at)
        if at > len(packet):
            return mqtt.MQTT_ERR_PROTOCOL
        self.arrived(topic, bytes(packet[at:]))
        if quality:
            self._unacknowledged += _PUBACK + number
        return mqtt.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        number = int.from_bytes(self._in_packet["packet"][:2], "big")
        if cmd == "PUBACK" and number in self.waiting:
            self.waiting_bytes -= self.waiting.pop(number)
            if self._queued:
                number, topic, payload, retain = self._queued.popleft()
                self._send_publish(number, topic, payload, 1, retain)
            self.acknowledged()
        return mqtt.MQTT_ERR_SUCCESS

    def _sock_recv(self, bufsize: int) -> bytes:
        # paho asks for a byte or two of a packet first, and then for all the rest at once,
        # whatever length its sender claims.
        publish = self._in_packet["command"] & 0xF0 == mqtt.PUBLISH
        bytes_max = PACKET_BYTES_MAX if publish else OTHER_BYTES_MAX
        if bufsize > bytes_max:
            self.failure = ConnectionError(f"a packet of more than {bytes_max} bytes")
            raise self.failure
        if not self._unread:
            try:
                self._unread = memoryview(super()._sock_recv(READ_BYTES))
            except BlockingIOError:
                self.drained = True
                raise
            except OSError as error:
                self.failure = error
                raise
        taken, self._unread = bytes(self._unread[:bufsize]), self._unread[bufsize:]
        return taken

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.failure = error
            raise


def _skipped(packet: bytearray, at: int) -> int:
    """Return how many bytes the properties at `at` take, with those that say so.

    Raises:
        ValueError: The length is misspelt.
    """
    length = 0
    for place in range(_VARINT_BYTES_MAX):
        byte = packet[at + place] if at + place < len(packet) else 0x80
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follow
            return place + 1 + length
    raise ValueError("the properties' length is misspelt")
