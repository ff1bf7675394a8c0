"""A member's certificate in bad hands: floods, forgeries, replays, nonsense. For `test_street`."""

from __future__ import annotations

import os
import ssl
import sys
import threading

import paho.mqtt.client as mqtt
from nacl.signing import SigningKey
from paho.mqtt.enums import CallbackAPIVersion

from meterd.authority.messages import Digest, Said, say
from meterd.ledger.encoding import encode, seal

FLOOD = 5000
KINDS = (
    "block",
    "attest",
    "digest",
    "evidence",
    "head",
    "alarm",
    "fetch/house-0",
    "answer/house-1",
)


def main() -> None:
    host, port, name, root, certificate, key = sys.argv[1:]
    heard: list[tuple[str, bytes]] = []
    ready = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name)
    client.tls_set(root, certificate, key, tls_version=ssl.PROTOCOL_TLS_CLIENT)

    def take(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        heard.append((message.topic, bytes(message.payload)))
        if len(heard) > 20:
            ready.set()

    client.on_message = take

    def subscribe(*_: object) -> None:
        client.subscribe("m/demo-street/#", 1)

    client.on_connect = subscribe
    client.connect(host, int(port))
    client.loop_start()
    assert ready.wait(30)
    stranger = SigningKey(os.urandom(32))
    forged = [
        seal(encode(["meterd/block/v1", os.urandom(32)]), stranger, os.urandom(32)),
        say(Said("house-0", 1 << 60, Digest((99, bytes(32)), (), ())), stranger, bytes(32)),
        b"",
        b"\xd2",
        b"\x9f" * 60_000,
        b"\x83" * 60_000,
        os.urandom(60_000),
        encode(["meterd/blocks/v1", [os.urandom(300)] * 200]),
        encode(["meterd/attest/v1", os.urandom(200), os.urandom(64), []]),
    ]
    mine = f"m/demo-street/{name}"
    for number in range(FLOOD):
        kind = KINDS[number % len(KINDS)]
        client.publish(f"{mine}/{kind}", forged[number % len(forged)], 0)
    for _topic, payload in heard * 20:  # replayed under another name, changed by a bit
        changed = bytearray(payload)
        if changed:
            changed[len(changed) // 2] ^= 1
        client.publish(f"{mine}/block", payload, 0)
        client.publish(f"{mine}/attest", bytes(changed), 0)
    for topic in ("m/demo-street/house-0/block", "m/other/house-0/block"):
        client.publish(topic, forged[0], 1)  # not ours: the broker refuses
    last = client.publish(f"{mine}/digest", b"the last", 1)
    last.wait_for_publish(60)
    client.publish(f"{mine}/block", os.urandom(10_000_000), 0)  # 10 MB: the broker cuts us off
    client.loop_stop()
    client.disconnect()


if __name__ == "__main__":
    main()
