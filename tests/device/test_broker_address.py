from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization

from meterd.device.broker import parse_address
from meterd.errors import ConfigError
from tests.device.broker_kit import Authority, Peer, tls_address

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        pytest.param("mqtt://broker.example", "broker.example", 1883, id="plain"),
        pytest.param("mqtt://10.0.0.7:11883", "10.0.0.7", 11883, id="with a port"),
        pytest.param("mqtt://[fe80::1]:1884", "fe80::1", 1884, id="of IPv6"),
    ],
)
def test_an_address_is_read_that_is(url: str, host: str, port: int) -> None:
    address = parse_address(url)
    assert (address.host, address.port, address.tls) == (host, port, False)


def test_an_address_of_tls_has_its_own_port(tmp_path: Path) -> None:
    address = parse_address("mqtts://broker.example", ca=tmp_path / "ca")
    assert (address.port, address.tls, str(address)) == (8883, True, "broker.example:8883")


@pytest.mark.parametrize(
    ("url", "files", "message"),
    [
        pytest.param("http://broker", {}, "not the address", id="is of another protocol"),
        pytest.param("broker:1883", {}, "not the address", id="has no protocol"),
        pytest.param("mqtt://", {}, "not the address", id="has no host"),
        pytest.param("mqtt://a..b", {}, "not the address", id="has an empty label"),
        pytest.param("mqtt://[::1", {}, "not the address", id="lacks a bracket"),
        pytest.param("mqtt://b:0", {}, "not the address", id="has port 0"),
        pytest.param("mqtt://b:65536", {}, "not the address", id="has a port past the last"),
        pytest.param("mqtt://me:pw@b", {}, "not the address", id="holds a password"),
        pytest.param("mqtt://b/topic", {}, "not the address", id="goes on behind the port"),
        pytest.param("mqtts://b", {}, "no ca", id="is of TLS without a CA"),
        pytest.param("mqtt://b", {"ca": "x"}, "uses no cert", id="is plain with a CA"),
        pytest.param("mqtts://b", {"ca": "x", "key": "y"}, "without the other", id="has half"),
    ],
)
def test_an_address_is_refused_that(
    tmp_path: Path, url: str, files: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse_address(url, **{name: tmp_path / file for name, file in files.items()})
    assert refused.value.hint


@pytest.mark.parametrize("broken", ["ca", "certificate", "key"])
def test_a_certificate_that_is_missing_or_damaged_is_a_mistake_of_the_settings(
    tmp_path: Path, authority: Authority, broken: str
) -> None:
    whole = tls_address(8883, authority.ca, authority.issue("ann"))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"-----BEGIN NOTHING-----\n")
    for path in (tmp_path / "absent", damaged):
        changed: dict[str, Any] = {broken: path}
        with pytest.raises(ConfigError, match=re.escape(path.name)) as refused:
            Peer(replace(whole, **changed))
        assert refused.value.hint


def test_an_encrypted_key_is_refused_and_not_asked_about(authority: Authority) -> None:
    identity = authority.issue("ann")
    key = serialization.load_pem_private_key(identity.key.read_bytes(), None)
    identity.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match=r"ann\.key"):
        Peer(tls_address(8883, authority.ca, identity))
