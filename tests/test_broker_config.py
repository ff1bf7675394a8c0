"""`meterctl broker-config`, and what a real mosquitto does with what it writes."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import ssl
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meterd.certificates.root import revoke
from meterd.ctl.broker_settings import PACKET_BYTES_MAX
from tests.mosquitto_kit import (
    DEADLINE_S,
    EXAMPLES,
    MOSQUITTO,
    NAMES,
    NETWORK,
    Broker,
    Member,
    Street,
    ctl,
    free_port,
    give,
    join,
    made,
    needs_mosquitto,
    running,
    street,
    street_genesis,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["join", "made", "running", "street"]


# --- the command alone ------------------------------------------------------------------------


@pytest.fixture
def genesis(tmp_path: Path) -> Path:
    path = tmp_path / "genesis"
    path.write_bytes(street_genesis().encode())
    return path


def test_the_examples_are_what_write_writes(genesis: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = ctl("write", "--genesis", genesis, "-o", out, "--installed", "/etc/mosquitto/meterd")
    assert said.status == 0
    for name in ("mosquitto.conf", "acl"):
        assert (out / name).read_text() == (EXAMPLES / name).read_text()


def test_every_setting_has_its_reason_above_it() -> None:
    above = ""
    paragraph = False
    for line in (EXAMPLES / "mosquitto.conf").read_text().splitlines():
        if line and not line.startswith("#"):
            assert above.startswith("#") or paragraph, line
            paragraph = True
        else:
            paragraph = False
        above = line


def test_files_that_are_there_are_written_over_only_by_force(genesis: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "acl").write_text("mine\n")
    said = ctl("write", "--genesis", genesis, "-o", out)
    assert (said.status, (out / "acl").read_text()) == (78, "mine\n")
    assert "--force" in said.err
    assert not (out / "mosquitto.conf").exists()
    assert ctl("write", "--genesis", genesis, "-o", out, "--force").status == 0
    assert "user kitchen-12" in (out / "acl").read_text()
    assert [path.name for path in out.iterdir() if path.name.endswith(".new")] == []


def test_members_come_and_go(genesis: Path, tmp_path: Path) -> None:
    said = ctl(
        *("write", "--genesis", genesis, "-o", tmp_path / "out", "--json"),
        *("--member", "attic-7", "--without", "shed-3", "--without", "barn-1"),
    )
    told = json.loads(said.out)
    assert told["members"] == [
        "attic-7",
        "elm-authority",
        "elm-concentrator",
        "elm-distributor",
        "kitchen-12",
    ]
    users = [
        line.removeprefix("user ")
        for line in (tmp_path / "out" / "acl").read_text().splitlines()
        if line.startswith("user ")
    ]
    assert users == told["members"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--listen", "8883"], 64, "expected ADDR:PORT"),
        (["--listen", "127.0.0.1:0"], 64, "expected ADDR:PORT"),
        (["--listen", "127.0.0.1:65536"], 64, "expected ADDR:PORT"),
        (["--listen", "broker.elm.example:8883"], 64, "expected ADDR:PORT"),
        (["--no-tls", "--listen", ":1883"], 64, "only a loopback address"),
        (["--no-tls", "--listen", "0.0.0.0:1883"], 64, "only a loopback address"),
        (["--no-tls", "--listen", "[::]:1883"], 64, "only a loopback address"),
        (["--no-tls", "--listen", "192.0.2.7:1883"], 64, "only a loopback address"),
        (["--member", "a/b"], 64, "a-z, 0-9"),
        (["--member", "+"], 64, "a-z, 0-9"),
        (["--member", "#"], 64, "a-z, 0-9"),
        (["--without", "attic-7"], 64, "no member"),
        (["--installed", "relative"], 64, "absolute"),
        (["--installed", "/etc\nallow_anonymous true"], 64, "absolute"),
        (["--data", "/var\nlistener 1"], 64, "absolute"),
        (["--user", "a b"], 64, "no user"),
        ([word for name in NAMES for word in ("--without", name)], 78, "no members"),
    ],
)
def test_nothing_is_written_for(
    arguments: list[str], status: int, message: str, genesis: Path, tmp_path: Path
) -> None:
    said = ctl("write", "--genesis", genesis, "-o", tmp_path / "out", *arguments)
    assert said.status == status
    assert message in said.err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_genesis_is_refused(tmp_path: Path) -> None:
    (tmp_path / "genesis").write_bytes(b"nonsense")
    assert ctl("write", "--genesis", tmp_path / "genesis", "-o", tmp_path / "out").status == 78
    assert ctl("write", "--genesis", tmp_path / "absent", "-o", tmp_path / "out").status == 69


@pytest.mark.parametrize("command", ["init", "request", "issue", "issue-broker", "revoke", "list"])
def test_each_command_shows_how_it_is_used(command: str) -> None:
    said = ctl("ca", command, "--help")
    assert said.status == 0
    assert f"meterctl broker-config ca {command}" in said.out


def test_a_certificate_goes_through_its_life_at_the_terminal(tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\nbattery\n")
    ca = ("--ca", tmp_path / "root")
    opened = (*ca, "--passphrase-file", secret)
    key, csr, crt = (tmp_path / f"kitchen-12.{ending}" for ending in ("key", "csr", "crt"))

    assert ctl("ca", "init", *opened, "--network", NETWORK).status == 0
    assert ctl("ca", "init", *opened, "--network", NETWORK).status == 78
    asked = ctl("ca", "request", "--name", "kitchen-12", "--key", key, "--csr", csr, "--json")
    assert ctl("ca", "issue", *ca, "--csr", csr, "-o", crt).status == 77
    assert not crt.exists()
    given = ctl("ca", "issue", *opened, "--csr", csr, "-o", crt, "--json")
    assert json.loads(given.out)["key_id"] == json.loads(asked.out)["key_id"]
    assert ctl("ca", "issue", *opened, "--csr", csr, "-o", crt).status == 78
    assert ctl("ca", "issue", *opened, "--csr", csr, "-o", crt, "--replace").status == 0
    assert "revoked kitchen-12" in ctl("ca", "revoke", *opened, "kitchen-12").out
    assert "revoked before" in ctl("ca", "revoke", *opened, "kitchen-12").out
    found = json.loads(ctl("ca", "list", *ca, "--json").out)
    assert [one["reason"] for one in found] == ["replaced", "unspecified"]
    assert len(ctl("ca", "list", *ca).out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["init", "--ca", "{}/root", "--network", "Elm Street"], 64),
        (["init", "--ca", "{}/root", "--network", "elm", "--encrypt"], 64),
        (["request", "--name", "a/b", "--key", "{}/k", "--csr", "{}/c"], 64),
        (["request", "--name", "+", "--key", "{}/k", "--csr", "{}/c"], 64),
        (["request", "--name", "#", "--key", "{}/k", "--csr", "{}/c"], 64),
        (["request", "--name", "a", "--key", "{}/k", "--csr", "{}/c", "--same-key"], 69),
        (["issue", "--ca", "{}/root", "--csr", "{}/c", "-o", "{}/o"], 69),
        (["issue-broker", "--ca", "{}/root", "--csr", "{}/c", "-o", "{}/o"], 64),
        (["revoke", "--ca", "{}/root", "a"], 69),
        (["list", "--ca", "{}/root"], 69),
    ],
)
def test_a_command_for_certificates_is_refused(
    arguments: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    said = ctl("ca", *(word.format(tmp_path) for word in arguments))
    assert said.status == status, said.err
    assert "meterctl: error: " in said.err
    assert list(tmp_path.iterdir()) == []


# --- a real broker ----------------------------------------------------------------------------


def greet(port: int, context: ssl.SSLContext) -> tuple[str, bytes]:
    """Return the TLS version and what the broker answers to a CONNECT of MQTT 3.1.1."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as line:

        def receive() -> None:
            data = line.recv(65_536)
            if data:
                incoming.write(data)
            else:
                incoming.write_eof()

        def until_done(act: Callable[[], bytes | None]) -> bytes:
            while True:
                try:
                    done = act()
                except ssl.SSLWantReadError:
                    line.sendall(outgoing.read())
                    receive()
                else:
                    line.sendall(outgoing.read())
                    return done or b""

        until_done(tls.do_handshake)
        # The client's end is through before the broker has judged its certificate: wait for what it
        # says (tickets, or an alert), since an alert is lost once the line breaks under a CONNECT.
        receive()
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.read(1)
        tls.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x")
        return str(tls.version()), until_done(lambda: tls.read(16))


WELCOME = b"\x20\x02\x00\x00"


@needs_mosquitto
def test_the_broker_finds_nothing_to_warn_of_in_its_settings(running: Street) -> None:
    # A broker that has just begun may miss the signal to stop: so it is greeted first, and left.
    assert greet(running.broker.port, running.context("kitchen-12"))[1] == WELCOME
    running.broker.stop()
    loud = [line for line in running.broker.said if "warning" in line.lower() or "rror" in line]
    assert [line for line in loud if "unexpected eof" not in line] == []
    assert any("version" in line for line in running.broker.said)


def test_b1_a_member_gets_in_by_its_certificate_over_tls_1_3(running: Street) -> None:
    assert greet(running.broker.port, running.context("kitchen-12")) == ("TLSv1.3", WELCOME)


@pytest.mark.parametrize(
    ("who", "tls_1_2", "message"),
    [
        pytest.param("kitchen-12", True, "alert protocol version", id="speaks TLS 1.2"),
        pytest.param("", False, "alert certificate required", id="shows no certificate"),
        pytest.param("stranger", False, "alert unknown ca", id="shows a certificate of another"),
        pytest.param("broker", False, "alert", id="shows a certificate of a broker"),
    ],
)
def test_b1_the_broker_turns_away_who(
    who: str, tls_1_2: bool, message: str, running: Street
) -> None:
    context = running.context(who)
    if tls_1_2:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError) as caught:
        greet(running.broker.port, context)
    assert message in str(caught.value).lower().replace("_", " ")
    assert greet(running.broker.port, running.context("kitchen-12"))[1] == WELCOME


def revoke_here(street: Street, who: str) -> None:
    revoke(street.broker.folder / "authority", who, now=datetime.now(UTC), reason="lost")
    shutil.copy(street.broker.folder / "authority" / "root.crl", street.broker.folder / "root.crl")


def test_b1_the_broker_turns_away_a_revoked_certificate_after_a_restart(running: Street) -> None:
    assert greet(running.broker.port, running.context("barn-1"))[1] == WELCOME
    revoke_here(running, "barn-1")
    running.broker.stop()
    running.broker.start()
    running.broker.wait_for("running")
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.revoked"):
        greet(running.broker.port, running.context("barn-1"))
    assert greet(running.broker.port, running.context("kitchen-12"))[1] == WELCOME


def test_b1_the_broker_turns_away_a_revoked_certificate_after_a_reload(
    running: Street, join: Callable[..., Member]
) -> None:
    connected = join("barn-1")
    revoke_here(running, "barn-1")
    running.broker.reload()
    until = time.monotonic() + DEADLINE_S
    while True:
        try:
            greet(running.broker.port, running.context("barn-1"))
        except ssl.SSLError as error:
            assert "revoked" in str(error).lower()  # noqa: PT017 - once the reload is through
            break
        assert time.monotonic() < until
    assert greet(running.broker.port, running.context("kitchen-12"))[1] == WELCOME
    # Why `ca revoke` says: restart. Who is connected stays so.
    assert not connected.ended.is_set()


def test_b2_a_member_writes_below_its_own_name_only_and_reads_all(
    join: Callable[..., Member],
) -> None:
    kitchen, shed = join("kitchen-12"), join("shed-3")
    assert kitchen.welcome == shed.welcome == "Success"
    assert shed.subscribe("#") == "Granted QoS 1"
    for topic in (
        "m/elm-street/shed-3/head",
        "m/elm-street/kitchen-12x/head",
        "m/elm-street",
        "m/oak-street/kitchen-12/head",
        "kitchen-12",
        "$SYS/broker/version",
    ):
        assert kitchen.publish(topic) == "Not authorized", topic
    for topic in ("head", "status", "block", "attest", "digest", "evidence", "fetch/shed-3"):
        assert kitchen.publish(f"m/elm-street/kitchen-12/{topic}") == "Success", topic
        assert shed.hears() == (f"m/elm-street/kitchen-12/{topic}", b"x")
    assert kitchen.publish("m/elm-street/kitchen-12/answer/shed-3") == "Success"
    assert shed.hears() == ("m/elm-street/kitchen-12/answer/shed-3", b"x")
    assert shed.heard.empty()


def test_b2_a_name_that_is_no_members_can_neither_write_nor_read(
    join: Callable[..., Member],
) -> None:
    kitchen, nobody = join("kitchen-12"), join("nobody-9")
    assert nobody.welcome == "Success"
    nobody.subscribe("#")
    assert nobody.publish("m/elm-street/nobody-9/head") == "Not authorized"
    assert kitchen.publish("m/elm-street/kitchen-12/head") == "Success"
    assert kitchen.subscribe("m/elm-street/#") == "Granted QoS 1"
    assert kitchen.publish("m/elm-street/kitchen-12/block") == "Success"
    assert kitchen.hears()[0] == "m/elm-street/kitchen-12/block"
    # What the broker answers now comes after what it would have sent before.
    assert nobody.publish("m/elm-street/nobody-9/head") == "Not authorized"
    assert nobody.heard.empty()


def test_b1_a_member_cannot_take_anothers_name_user_or_session(join: Callable[..., Member]) -> None:
    kitchen = join("kitchen-12", client_id="kitchen-12")  # as devices name themselves
    shed = join("shed-3", client_id="kitchen-12", user="kitchen-12")
    assert shed.publish("m/elm-street/kitchen-12/head") == "Not authorized"
    assert shed.publish("m/elm-street/shed-3/head") == "Success"
    assert kitchen.publish("m/elm-street/kitchen-12/head") == "Success"
    assert not kitchen.ended.is_set()


def test_b2_a_last_will_keeps_to_the_members_own_branch_too(
    running: Street, join: Callable[..., Member]
) -> None:
    listening = join("barn-1")
    listening.subscribe("#")
    for who in ("kitchen-12", "shed-3"):
        join(who, will="m/elm-street/shed-3/status").vanish()
        running.broker.wait_for(f"Client {who} closed its connection")
    assert listening.hears() == ("m/elm-street/shed-3/status", b"gone")
    assert listening.publish("m/elm-street/barn-1/head") == "Success"
    assert listening.hears() == ("m/elm-street/barn-1/head", b"x")


def test_b3_a_packet_that_is_too_long_ends_its_senders_line_and_no_others(
    join: Callable[..., Member],
) -> None:
    kitchen, shed = join("kitchen-12"), join("shed-3")
    shed.subscribe("m/elm-street/#")
    topic = "m/elm-street/kitchen-12/answer/shed-3"
    assert kitchen.publish(topic, bytes(70_000)) == "Success"
    assert shed.hears() == (topic, bytes(70_000))
    kitchen.throw(topic, bytes(PACKET_BYTES_MAX))
    assert kitchen.ended.wait(DEADLINE_S)
    assert shed.publish("m/elm-street/shed-3/head") == "Success"
    assert shed.hears() == ("m/elm-street/shed-3/head", b"x")


def test_heads_sessions_and_what_waits_outlive_a_restart(running: Street) -> None:
    port = running.broker.port
    # 2.0.11 keeps no session that began with a clean start, whatever expiry it asked for.
    shed = Member(port, running.context("shed-3"), clean=False)
    shed.subscribe("m/elm-street/+/block")
    shed.close()
    kitchen = Member(port, running.context("kitchen-12"))
    kitchen.publish("m/elm-street/kitchen-12/head", b"17", retain=True)
    kitchen.publish("m/elm-street/kitchen-12/block", b"block 17")
    kitchen.close()
    running.broker.stop()
    running.broker.start()
    running.broker.wait_for("running")
    shed = Member(port, running.context("shed-3"), clean=False)
    assert shed.hears() == ("m/elm-street/kitchen-12/block", b"block 17")
    kitchen = Member(port, running.context("kitchen-12"))
    kitchen.subscribe("m/elm-street/+/head")
    assert kitchen.hears() == ("m/elm-street/kitchen-12/head", b"17")
    kitchen.publish("m/elm-street/kitchen-12/block", b"block 18")
    assert shed.hears() == ("m/elm-street/kitchen-12/block", b"block 18")
    kitchen.close()
    shed.close()


def test_b2_with_an_empty_list_of_rights_nobody_may_do_anything(street: Street) -> None:
    (street.broker.folder / "acl").write_text("")
    street.broker.start()
    street.broker.wait_for("running")
    kitchen = Member(street.broker.port, street.context("kitchen-12"))
    try:
        assert kitchen.publish("m/elm-street/kitchen-12/head") == "Not authorized"
    finally:
        kitchen.close()


def _break(path: Path) -> None:
    path.write_text("user kitchen-12\ntopic sometimes m/elm-street/#\n")


@pytest.mark.parametrize(
    ("name", "happens"),
    [
        pytest.param("acl", _break, id="rights are broken"),
        pytest.param("acl", Path.unlink, id="rights are missing"),
        pytest.param("root.crl", Path.unlink, id="list of revoked is missing"),
        pytest.param("root.crt", Path.unlink, id="root is missing"),
        pytest.param("broker.key", Path.unlink, id="key is missing"),
    ],
)
def test_b2_the_broker_does_not_start_whose(
    name: str, happens: Callable[[Path], None], street: Street
) -> None:
    happens(street.broker.folder / name)
    said = street.broker.fails_to_start()
    assert any("Error" in line for line in said), said


# --- without TLS ------------------------------------------------------------------------------


def test_without_tls_who_names_itself_has_that_names_rights(made: Path) -> None:
    if MOSQUITTO is None:
        pytest.fail("mosquitto is not installed: `make test` installs it")
    with tempfile.TemporaryDirectory(prefix="plain-", dir=made) as name:
        folder = Path(name)
        folder.chmod(0o755)
        broker = Broker(folder, free_port())
        said = ctl(
            *("write", "--genesis", made / "genesis", "-o", folder, "--data", folder),
            *("--no-tls", "--listen", f"127.0.0.1:{broker.port}"),
        )
        assert said.status == 0, said.err
        give(folder)
        broker.start()
        members = []
        try:
            broker.wait_for("running")
            members = [Member(broker.port, None, user="kitchen-12"), Member(broker.port, None)]
            kitchen, nameless = members
            assert kitchen.publish("m/elm-street/kitchen-12/head") == "Success"
            assert kitchen.publish("m/elm-street/shed-3/head") == "Not authorized"
            assert nameless.welcome == "Not authorized"
        finally:
            for member in members:
                member.close()
            broker.stop()
        loud = [line for line in broker.said if "warning" in line.lower() or "rror" in line]
        assert loud == []
