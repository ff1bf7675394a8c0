"""Row E5: what a device says to whoever listens, before anybody has shown who they are.

All of it is captured: the real peer process speaks to a broker of the test, which reads what comes
before it has answered; SSH's first line is in `tests/container/test_ssh.py`. A device may say its
pseudonym and its street's name, which each of its topics has, and nothing else of its own.
"""

from __future__ import annotations

import platform
import socket
import ssl
import threading
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from meterd.certificates.request import make_request
from meterd.certificates.root import issue, make_root
from tests.authority.examples import HOUSE
from tests.test_peer import ALONE, Node

DEADLINE_S = 20.0
STREET = ALONE.name
OWNER = "Ada Lovelace"  # in the settings, as a remark: personal data that must stay there
# Bits that a certificate of a device may have: what X.509 demands, and whose and what for it is.
EXTENSIONS = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}
LIMITS = {0x11: 4, 0x21: 2, 0x22: 2, 0x27: 4}  # of session, queue, aliases, packet: bytes of each


class Heard(NamedTuple):
    """What came on one connection.

    Attributes:
        wire: As anybody between hears it: the handshake, encrypted data.
        certificate: What the device has shown within.
        connect: Its first packet of MQTT.
    """

    wire: bytes
    certificate: x509.Certificate
    connect: bytes


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    """A device's first words to a broker that has not answered yet."""
    folder = tmp_path_factory.mktemp("heard")
    now = datetime.now(UTC)
    make_root(folder / "root", STREET, now=now)
    for name, hosts in ((HOUSE, ()), ("broker", ("127.0.0.1",))):
        make_request(folder / f"{name}.key", folder / f"{name}.csr", name)
        _, pem = issue(folder / "root", (folder / f"{name}.csr").read_bytes(), now=now, hosts=hosts)
        (folder / f"{name}.crt").write_bytes(pem)
    found: list[Heard] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(DEADLINE_S)
        node = Node.make(folder, HOUSE, genesis=ALONE)
        port = listening.getsockname()[1]
        text = node.config.read_text().replace("brokers = []", settings_of(folder, port))
        node.config.write_text(f"# of {OWNER}\n{text}")
        thread = threading.Thread(target=lambda: found.append(listen(listening, folder)))
        thread.start()
        with node.start():
            thread.join(DEADLINE_S)
    assert found, "nobody came"
    return found[0]


def settings_of(folder: Path, port: int) -> str:
    return (
        f'brokers = ["mqtts://127.0.0.1:{port}"]\nca = "{folder}/root/root.crt"\n'
        f'certificate = "{folder}/{HOUSE}.crt"\nkey = "{folder}/{HOUSE}.key"'
    )


def listen(listening: socket.socket, folder: Path) -> Heard:
    """Take one connection; return what it says until it waits for an answer to its CONNECT."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "broker.crt", folder / "broker.key")
    context.load_verify_locations(folder / "root/root.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    wire, connect, shaken = b"", b"", False
    line, _ = listening.accept()
    with line:
        line.settimeout(DEADLINE_S)
        while not connect or len(connect) < 2 + connect[1]:
            try:
                if not shaken:
                    tls.do_handshake()
                    shaken = True
                connect += tls.read(4096)
            except ssl.SSLWantReadError:
                if data := outgoing.read():
                    line.sendall(data)
                data = line.recv(65_536)
                assert data, "it went away"
                wire += data
                incoming.write(data)
    shown = tls.getpeercert(binary_form=True)
    assert shown
    return Heard(wire, x509.load_der_x509_certificate(shown), connect)


def secrets_of_this_device() -> dict[str, bytes]:
    """What tells one device, or its software, from another's."""
    named = {
        "version": version("meterd"),
        "python": platform.python_version(),
        "system": platform.release(),
        "host": socket.gethostname(),
        "owner": OWNER,
        "library": "paho",
    }
    machine = Path("/etc/machine-id")
    if machine.is_file() and machine.read_text().strip():
        named["machine"] = machine.read_text().strip()
    return {what: text.encode() for what, text in named.items()}


def test_e5_between_device_and_broker_nobody_reads_even_the_pseudonym(heard: Heard) -> None:
    """TLS 1.3: the certificate is encrypted; an address is no server name (RFC 6066)."""
    assert heard.wire[:3] == b"\x16\x03\x01"  # a ClientHello; the capture is of the real thing
    for what, text in secrets_of_this_device().items():
        assert text not in heard.wire, what
    for name in (HOUSE, STREET):
        assert name.encode() not in heard.wire


def test_e5_a_certificate_says_a_pseudonym_and_a_street(heard: Heard) -> None:
    certificate = heard.certificate
    subject = {name.oid: name.value for name in certificate.subject}
    assert subject == {NameOID.COMMON_NAME: HOUSE}
    assert {name.oid for name in certificate.issuer} <= {
        NameOID.COMMON_NAME,
        NameOID.ORGANIZATION_NAME,
    }
    for name in certificate.issuer:
        assert STREET in str(name.value)
    assert {extension.oid for extension in certificate.extensions} == EXTENSIONS
    assert certificate.serial_number.bit_length() > 100  # drawn, and no number of a device
    der = certificate.public_bytes(Encoding.DER)
    for what, text in secrets_of_this_device().items():
        assert text not in der, what


def fields_of(packet: bytes) -> dict[str, bytes]:
    """Return the fields of a CONNECT of MQTT 5, by the standard's 3.1; all of the packet."""
    assert packet[0] == 0x10
    body = memoryview(packet)[2:] if packet[1] < 128 else memoryview(packet)[3:]
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        assert at <= len(body)
        return bytes(body[at - count : at])

    def text() -> bytes:
        return take(int.from_bytes(take(2)))

    found = {"protocol": text(), "level": take(1), "flags": take(1), "keepalive": take(2)}
    found["properties"] = take(take(1)[0])
    found["client"] = text()
    if found["flags"][0] & 0x04:
        found["will properties"] = take(take(1)[0])
        found["will topic"] = text()
        found["will"] = text()
    assert not found["flags"][0] & 0xC0, "a user name or a password"
    assert at == len(body)
    return found


def test_e5_a_connect_says_a_pseudonym_and_a_street(heard: Heard) -> None:
    fields = fields_of(heard.connect)
    assert (fields["protocol"], fields["level"]) == (b"MQTT", b"\x05")
    assert fields["client"] == f"{STREET}.{HOUSE}".encode()
    assert fields["will topic"] == f"m/{STREET}/{HOUSE}/status".encode()
    rest = fields["properties"]
    while rest:
        assert rest[0] in LIMITS, "a property that is no limit: a user's, or a way to log in"
        rest = rest[1 + LIMITS[rest[0]] :]
    for what, text in secrets_of_this_device().items():
        assert text not in heard.connect, what


def test_e5_a_field_more_would_be_found(heard: Heard) -> None:
    """The fields are all of the packet: one byte more, or a user name, and it is no such packet."""
    for packet in (
        heard.connect + b"x",
        heard.connect[:9] + bytes([heard.connect[9] | 0x80]) + heard.connect[10:],
    ):
        with pytest.raises(AssertionError):
            fields_of(packet)
