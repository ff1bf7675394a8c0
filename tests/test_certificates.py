from __future__ import annotations

import fcntl
import os
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from meterd.certificates import root as root_folder
from meterd.certificates.index import INDEX
from meterd.certificates.request import decode_request, make_request
from meterd.certificates.root import (
    ISSUED,
    ROOT_CERTIFICATE,
    ROOT_CRL,
    ROOT_KEY,
    crl,
    issue,
    issued,
    make_root,
    revoke,
)
from meterd.device.files import write_over
from meterd.errors import AbsentError, BusyError, ConfigError, DeniedError, EncodingError

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.now(UTC).replace(microsecond=0)  # OpenSSL goes by the real clock
YEAR = timedelta(days=366)
P256 = ec.SECP256R1()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    make_root(folder, "elm-street", now=NOW)
    return folder


def request(folder: Path, name: str) -> bytes:
    make_request(folder / f"{name}.key", folder / f"{name}.csr", name)
    return (folder / f"{name}.csr").read_bytes()


def csr_of(
    name: str = "kitchen-12",
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | None = None,
    *,
    extra: tuple[x509.NameAttribute[str], ...] = (),
) -> bytes:
    key = key or ec.generate_private_key(P256)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name), *extra])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        csr = builder.sign(key, None)
    else:
        csr = builder.sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM)


def listed(folder: Path) -> list[str]:
    found = x509.load_pem_x509_crl((folder / ROOT_CRL).read_bytes())
    return [f"{entry.serial_number:x}" for entry in found]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the root ---------------------------------------------------------------------------------


def test_a_root_signs_certificates_of_members_and_no_further_authority(root: Path) -> None:
    certificate = x509.load_pem_x509_certificate((root / ROOT_CERTIFICATE).read_bytes())
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert basic.value == x509.BasicConstraints(ca=True, path_length=0)
    lasts = certificate.not_valid_after_utc - NOW
    assert timedelta(days=20 * 365) <= lasts <= 20 * YEAR
    certificate.verify_directly_issued_by(certificate)


def test_a_root_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_root(tmp_path / "root", "elm-street", now=NOW)
    finally:
        os.umask(before)
    assert mode(tmp_path / "root") == 0o700
    assert mode(tmp_path / "root" / ROOT_KEY) == 0o600
    assert mode(tmp_path / "root" / INDEX) == 0o600


def test_a_root_is_never_made_over_another(root: Path) -> None:
    before = (root / ROOT_KEY).read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        make_root(root, "elm-street", now=NOW)
    assert (root / ROOT_KEY).read_bytes() == before


def test_a_root_that_cannot_be_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, *, mode: int) -> None:
        if path.name == INDEX:
            raise OSError(28, "No space left on device", str(path))
        write_over(path, data, mode=mode)

    monkeypatch.setattr(root_folder, "write_over", full)
    with pytest.raises(OSError, match="No space"):
        make_root(tmp_path / "root", "elm-street", now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_root_key_with_a_passphrase_opens_with_that_one_only(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    make_root(folder, "elm-street", now=NOW, passphrase=b"correct horse")
    csr = request(tmp_path, "kitchen-12")
    assert b"ENCRYPTED" in (folder / ROOT_KEY).read_bytes()
    with pytest.raises(DeniedError, match="is encrypted"):
        issue(folder, csr, now=NOW)
    with pytest.raises(DeniedError, match="does not open"):
        issue(folder, csr, now=NOW, passphrase=b"wrong horse")
    assert issued(folder) == ()
    issue(folder, csr, now=NOW, passphrase=b"correct horse")


def test_a_root_key_that_others_can_read_is_not_used(root: Path) -> None:
    (root / ROOT_KEY).chmod(0o640)
    with pytest.raises(DeniedError, match="others may read"):
        issue(root, csr_of(), now=NOW)


def test_a_root_whose_key_is_anothers_is_not_used(root: Path, tmp_path: Path) -> None:
    make_root(tmp_path / "other", "oak-street", now=NOW)
    (tmp_path / "other" / ROOT_KEY).replace(root / ROOT_KEY)
    with pytest.raises(ConfigError, match="not one root's"):
        issue(root, csr_of(), now=NOW)


def test_where_no_root_is_the_way_to_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="no root") as caught:
        issued(tmp_path)
    assert "ca init" in caught.value.hint


def test_two_do_not_issue_at_once(root: Path) -> None:
    descriptor = os.open(root / INDEX, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            issue(root, csr_of(), now=NOW)
    finally:
        os.close(descriptor)
    issue(root, csr_of(), now=NOW)


# --- requests ---------------------------------------------------------------------------------


def test_a_requests_key_is_its_owners_alone_and_not_in_the_request(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        key_id = make_request(tmp_path / "a.key", tmp_path / "a.csr", "kitchen-12")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a.key") == 0o600
    assert b"PRIVATE" not in (tmp_path / "a.csr").read_bytes()
    assert len(key_id) == 64


def test_a_key_is_never_written_over_and_used_again_only_when_asked(tmp_path: Path) -> None:
    first = make_request(tmp_path / "a.key", tmp_path / "a.csr", "kitchen-12")
    with pytest.raises(ConfigError, match="a key already"):
        make_request(tmp_path / "a.key", tmp_path / "b.csr", "kitchen-12")
    assert not (tmp_path / "b.csr").exists()
    again = make_request(tmp_path / "a.key", tmp_path / "b.csr", "kitchen-12", reuse=True)
    assert again == first


BAD_NAMES = [
    pytest.param(name, id=name[:12] or "none")
    for name in (
        "+",
        "#",
        "a/b",
        "",
        "Kitchen",
        "a b",
        "a" * 33,
        "a\n",
        "küche",
        "a.b",
        "$SYS",
        "%u",
    )
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_request_is_made_for_a_name_that_means_something_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a-z"):
        make_request(tmp_path / "a.key", tmp_path / "a.csr", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name.values != ("",)])
def test_nothing_is_issued_to_a_name_that_means_something_else(name: str, root: Path) -> None:
    with pytest.raises(EncodingError, match="a-z"):
        issue(root, csr_of(name), now=NOW)
    assert issued(root) == ()


def _edited() -> bytes:
    csr = x509.load_pem_x509_csr(csr_of("kitchen-12"))
    data = csr.public_bytes(serialization.Encoding.DER).replace(b"kitchen-12", b"kitchen-13")
    return (
        b"-----BEGIN CERTIFICATE REQUEST-----\n"
        + ssl.DER_cert_to_PEM_cert(data).encode().split(b"\n", 1)[1].rsplit(b"-----END", 1)[0]
        + b"-----END CERTIFICATE REQUEST-----\n"
    )


@pytest.mark.parametrize(
    ("csr", "message"),
    [
        pytest.param(b"", "not a request", id="is empty"),
        pytest.param(b"x" * 70_000, "at most", id="is too long"),
        pytest.param(csr_of()[:200], "not a request", id="is cut"),
        pytest.param(_edited(), "not signed by its own key", id="was edited after"),
        pytest.param(
            csr_of(key=ec.generate_private_key(ec.SECP384R1())), "P-256", id="has another curve"
        ),
        pytest.param(
            csr_of(key=ed25519.Ed25519PrivateKey.generate()), "P-256", id="has another algorithm"
        ),
        pytest.param(
            csr_of(extra=(x509.NameAttribute(x509.NameOID.COMMON_NAME, "shed-3"),)),
            "one common name",
            id="has two names",
        ),
        pytest.param(
            csr_of(extra=(x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Elm"),)),
            "one common name",
            id="has more than a name",
        ),
    ],
)
def test_a_request_is_refused_that(csr: bytes, message: str, root: Path) -> None:
    with pytest.raises(EncodingError, match=message):
        issue(root, csr, now=NOW)
    assert issued(root) == ()


@given(data=st.binary(max_size=300), cut=st.integers(0, 600))
def test_any_bytes_are_a_request_or_refused(data: bytes, cut: int) -> None:
    good = csr_of()
    for csr in (data, good[:cut] + data + good[cut:]):
        try:
            name, _ = decode_request(csr)
        except EncodingError:
            continue
        assert name == "kitchen-12"


# --- certificates -----------------------------------------------------------------------------


def test_a_certificate_says_a_name_and_what_it_is_for_and_nothing_the_request_asked(
    root: Path,
) -> None:
    key = ec.generate_private_key(P256)
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kitchen-12")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bank.example")]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    new, pem = issue(root, csr, now=NOW)
    certificate = x509.load_pem_x509_certificate(pem)
    extensions = certificate.extensions
    assert certificate.subject.rfc4514_string() == "CN=kitchen-12"
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        x509.ExtendedKeyUsageOID.CLIENT_AUTH  # type: ignore[attr-defined]
    ]
    with pytest.raises(x509.ExtensionNotFound):
        extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert (
        certificate.not_valid_before_utc <= NOW < certificate.not_valid_after_utc <= NOW + 2 * YEAR
    )
    assert f"{certificate.serial_number:x}" == new.serial
    assert (root / ISSUED / new.file).read_bytes() == pem
    certificate.verify_directly_issued_by(
        x509.load_pem_x509_certificate((root / ROOT_CERTIFICATE).read_bytes())
    )


def test_no_certificate_outlasts_its_root(tmp_path: Path) -> None:
    long_ago = NOW - 19 * YEAR
    make_root(tmp_path / "root", "elm-street", now=long_ago)
    new, _ = issue(tmp_path / "root", csr_of(), now=NOW)
    assert new.ends < NOW + YEAR
    with pytest.raises(ConfigError, match="ended on"):
        issue(tmp_path / "root", csr_of("shed-3"), now=NOW + 2 * YEAR)


def test_a_name_has_one_live_certificate_unless_the_old_one_is_replaced(root: Path) -> None:
    first, _ = issue(root, csr_of(), now=NOW)
    with pytest.raises(ConfigError, match="has a live certificate") as caught:
        issue(root, csr_of(), now=NOW)
    assert "--replace" in caught.value.hint
    second, _ = issue(root, csr_of(), now=NOW, renew=True)
    assert [one.is_live(NOW) for one in issued(root)] == [False, True]
    assert listed(root) == [first.serial] != [second.serial]


def test_a_name_gets_another_once_its_certificate_is_revoked_or_has_ended(root: Path) -> None:
    issue(root, csr_of(), now=NOW)
    revoke(root, "kitchen-12", now=NOW)
    issue(root, csr_of(), now=NOW)
    issue(root, csr_of(), now=NOW + 3 * YEAR)
    assert len(issued(root)) == 3


@pytest.mark.parametrize(
    "host", ["", "a b", "*.elm.example", "-elm", "elm-", "a..b", "a" * 64, "ü"]
)
def test_no_broker_is_called(host: str, root: Path) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an address"):
        issue(root, csr_of("broker"), now=NOW, hosts=[host])
    assert issued(root) == ()


# --- revoking ---------------------------------------------------------------------------------


def test_a_new_list_is_empty_and_lasts_as_long_as_the_root(root: Path) -> None:
    found = x509.load_pem_x509_crl((root / ROOT_CRL).read_bytes())
    certificate = x509.load_pem_x509_certificate((root / ROOT_CERTIFICATE).read_bytes())
    assert list(found) == []
    assert found.next_update_utc == certificate.not_valid_after_utc
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert found.is_signature_valid(key)


def test_a_certificate_is_revoked_by_name_or_by_serial_and_stays_so(root: Path) -> None:
    first, _ = issue(root, csr_of(), now=NOW)
    second, _ = issue(root, csr_of("shed-3"), now=NOW)
    third, _ = issue(root, csr_of("barn-1"), now=NOW)
    assert [one.serial for one in revoke(root, "kitchen-12", now=NOW, reason="lost")] == [
        first.serial
    ]
    assert [one.name for one in revoke(root, second.serial, now=NOW)] == ["shed-3"]
    assert listed(root) == [first.serial, second.serial]
    assert revoke(root, "kitchen-12", now=NOW) == ()
    assert [one.reason for one in issued(root)] == ["lost", "unspecified", ""]
    assert issued(root)[2] == third


def test_each_list_has_a_higher_number_than_the_one_before(root: Path) -> None:
    numbers = []
    for name in ("a", "b", "c"):
        issue(root, csr_of(name), now=NOW)
        revoke(root, name, now=NOW)
        found = x509.load_pem_x509_crl((root / ROOT_CRL).read_bytes())
        numbers.append(found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
    assert numbers == sorted(set(numbers))


def test_what_was_never_issued_cannot_be_revoked(root: Path) -> None:
    with pytest.raises(ConfigError, match="no certificate was issued"):
        revoke(root, "kitchen-12", now=NOW)


def test_a_revocation_whose_list_was_lost_is_in_the_next_list(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, _ = issue(root, csr_of(), now=NOW)

    def failing(path: Path, *_: bytes, **__: int) -> None:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(root_folder, "write_over", failing)
        with pytest.raises(OSError, match="Input/output"):
            revoke(root, "kitchen-12", now=NOW)
    assert listed(root) == []
    assert new.serial.encode() in (root / INDEX).read_bytes()
    crl(root, now=NOW)
    assert listed(root) == [new.serial]


# --- the index --------------------------------------------------------------------------------


def test_lines_of_the_index_are_only_ever_added(root: Path) -> None:
    before = b""
    for name in ("a", "b"):
        issue(root, csr_of(name), now=NOW)
        after_issue = (root / INDEX).read_bytes()
        assert after_issue.startswith(before)
        revoke(root, name, now=NOW)
        before = (root / INDEX).read_bytes()
        assert before.startswith(after_issue)


@pytest.mark.parametrize("cut", [1, 5, 30, 100])
def test_a_line_that_a_power_failure_tore_does_not_count(cut: int, root: Path) -> None:
    issue(root, csr_of("a"), now=NOW)
    whole = (root / INDEX).read_bytes()
    issue(root, csr_of("b"), now=NOW)
    torn = (root / INDEX).read_bytes()[:-cut]
    (root / INDEX).write_bytes(torn)
    assert [one.name for one in issued(root)] == ["a"]
    issue(root, csr_of("c"), now=NOW)
    assert (root / INDEX).read_bytes().startswith(whole)
    assert [one.name for one in issued(root)] == ["a", "c"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "2026-11-22T09:00:00Z issued device",
        "2026-11-22T09:00:00Z issued device ../x 1f 2028-11-21T09:00:00Z 00",
        "2026-11-22T09:00:00Z issued person a 1f 2028-11-21T09:00:00Z 00",
        "2026-11-22T09:00:00Z issued device a xyz 2028-11-21T09:00:00Z 00",
        "2026-11-22T09:00:00Z revoked 1f lost",
        "yesterday revoked 1f lost",
    ],
)
def test_with_a_damaged_index_nothing_is_issued(line: str, root: Path) -> None:
    issue(root, csr_of("a"), now=NOW)
    with (root / INDEX).open("a") as file:
        file.write(f"{line}\n")
    before = (root / INDEX).read_bytes()
    with pytest.raises(ConfigError, match=r"line 2 of .* is damaged"):
        issue(root, csr_of("b"), now=NOW)
    assert (root / INDEX).read_bytes() == before


# --- the extra --------------------------------------------------------------------------------


def test_without_the_package_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "import meterd.ctl.broker_config\n"  # `write` needs it not
        "from meterd.ctl import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "broker-config", "ca", "list", "--ca", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == AbsentError.exit_code
    assert "meterd[ca]" in done.stderr


# --- in use -----------------------------------------------------------------------------------


class Street(NamedTuple):
    """A root with a broker and a device of its own, and one that is somebody else's."""

    folder: Path

    def context(self, who: str, *, server: bool) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.load_verify_locations(self.folder / "root" / ROOT_CERTIFICATE)
        made.verify_mode = ssl.CERT_REQUIRED
        made.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 asks of everybody
        if server:
            made.load_verify_locations(self.folder / "root" / ROOT_CRL)
            made.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        if who:
            made.load_cert_chain(self.folder / f"{who}.crt", self.folder / f"{who}.key")
        return made


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Street:
    folder = tmp_path_factory.mktemp("street")
    old = NOW - 3 * YEAR
    make_root(folder / "root", "elm-street", now=old)
    make_root(folder / "other", "elm-street", now=old)
    for name, begin, home, hosts in (
        ("kitchen-12", NOW, "root", ()),
        ("shed-3", old, "root", ()),
        ("barn-1", NOW, "root", ()),
        ("stranger", NOW, "other", ()),
        ("broker", NOW, "root", ("broker.elm.example", "192.0.2.7")),
        ("old-broker", old, "root", ("broker.elm.example",)),
    ):
        _, pem = issue(folder / home, request(folder, name), now=begin, hosts=hosts)
        write_over(folder / f"{name}.crt", pem, mode=0o644)
    revoke(folder / "root", "barn-1", now=NOW)
    return Street(folder)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> str:
    """Return the protocol that both ends agree on; no socket is needed for it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    return str(ends[0].version())


@pytest.mark.parametrize("host", ["broker.elm.example", "192.0.2.7"])
def test_device_and_broker_know_each_other_by_their_certificates(host: str, street: Street) -> None:
    server, client = (
        street.context("broker", server=True),
        street.context("kitchen-12", server=False),
    )
    assert shake_hands(server, client, host) == "TLSv1.3"


@pytest.mark.parametrize(
    ("server", "client", "host", "message"),
    [
        ("broker", "kitchen-12", "other.elm.example", "Hostname mismatch"),
        ("kitchen-12", "kitchen-12", "broker.elm.example", "unsuitable certificate purpose"),
        ("old-broker", "kitchen-12", "broker.elm.example", "certificate has expired"),
        ("stranger", "kitchen-12", "broker.elm.example", "unable to get local issuer"),
        ("broker", "broker", "broker.elm.example", "unsuitable certificate purpose"),
        ("broker", "shed-3", "broker.elm.example", "certificate has expired"),
        ("broker", "barn-1", "broker.elm.example", "certificate revoked"),
        ("broker", "stranger", "broker.elm.example", "unable to get local issuer"),
        ("broker", "", "broker.elm.example", "peer did not return a certificate"),
    ],
)
def test_no_connection_comes_about_between(
    server: str, client: str, host: str, message: str, street: Street
) -> None:
    with pytest.raises(ssl.SSLError) as caught:
        shake_hands(street.context(server, server=True), street.context(client, server=False), host)
    assert message.lower().replace(" ", "_") in str(caught.value).lower().replace(" ", "_")
