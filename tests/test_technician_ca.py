"""`meterctl ca`: certificates by the real ssh-keygen, and the index that says which there are."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from meterd.ctl import main, technician_root
from meterd.ctl.technician_certificate import decode_certificate_file
from meterd.ctl.technician_root import (
    INDEX,
    KEY,
    PUBLIC,
    REVOKED,
    decode_index,
    issue,
    issued,
    make_ca,
    revoke,
)
from meterd.device.card import lock
from meterd.errors import (
    AbsentError,
    BusyError,
    ConfigError,
    DeniedError,
    EncodingError,
    UsageError,
)

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 30, 8, 0, 0, 123, tzinfo=UTC)
LINE = "issued 1 jo technician 2026-11-30T07:55:00Z 2026-11-30T16:00:00Z SHA256:x"
GONE = "revoked 1 2026-11-30T09:00:00Z"


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    folder = tmp_path / "ca"
    make_ca(folder, "technicians", asks=False)
    return folder


def public(folder: Path, name: str = "jo", kind: str = "ed25519") -> bytes:
    path = folder / name
    if not path.exists():
        command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "jo@laptop", "-f", str(path)]
        subprocess.run(command, check=True)
    return path.with_suffix(".pub").read_bytes()


def signed(ca: Path, **more: object) -> bytes:
    given = {"identity": "jo", "principals": ["technician"], "now": NOW, "hours": 8} | more
    return issue(ca, public(ca.parent), **given)[1]  # type: ignore[arg-type]


def is_revoked(ca: Path, certificate: bytes) -> bool:
    path = ca.parent / "asked.pub"
    path.write_bytes(certificate)
    done = subprocess.run(
        ["ssh-keygen", "-Q", "-f", ca / REVOKED, path], check=False, capture_output=True
    )
    assert done.returncode in {0, 1}
    return done.returncode == 1


def test_a1_a_certificate_permits_a_terminal_for_a_day_and_nothing_else(ca: Path) -> None:
    found = decode_certificate_file(signed(ca, principals=["elm-street", "oak-street"]))
    assert (found.serial, found.identity) == (1, "jo")
    assert found.principals == ("elm-street", "oak-street")
    assert (found.critical, found.extensions) == ((), ("permit-pty",))
    moment = int(NOW.timestamp())
    assert (found.begins_s, found.ends_s) == (moment - 300, moment + 8 * 3600)


def test_a1_a_certificate_may_begin_earlier_for_a_clock_that_is_behind(ca: Path) -> None:
    found = decode_certificate_file(signed(ca, behind_days=30))
    assert found.begins_s == int((NOW - timedelta(days=30, minutes=5)).timestamp())


def test_serials_only_go_up(ca: Path) -> None:
    for serial in (1, 2, 3):
        assert decode_certificate_file(signed(ca)).serial == serial
        revoke(ca, str(serial), now=NOW)
    assert [one.serial for one in issued(ca)] == [1, 2, 3]


def test_a_serial_is_left_out_where_signing_failed(
    ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DeniedError("no")

    with monkeypatch.context() as patch:
        patch.setattr(technician_root, "keygen", fail)
        with pytest.raises(DeniedError):
            signed(ca)
    assert decode_certificate_file(signed(ca)).serial == 2


def test_a_certificate_that_is_not_the_one_asked_for_is_not_handed_out(
    ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keygen = technician_root.keygen

    def forward(*arguments: str | os.PathLike[str]) -> None:
        keygen(*(word for word in arguments if word not in {"-O", "clear", "permit-pty"}))

    monkeypatch.setattr(technician_root, "keygen", forward)
    with pytest.raises(ConfigError, match="another certificate"):
        signed(ca)
    assert list((ca / "issued").iterdir()) == []


@pytest.mark.parametrize("which", ["1", "jo"])
def test_a1_what_is_revoked_is_in_the_list_and_the_rest_is_not(ca: Path, which: str) -> None:
    first, other = signed(ca), signed(ca, identity="sam")
    assert not is_revoked(ca, first)
    [gone] = revoke(ca, which, now=NOW)
    assert gone.serial == 1
    assert is_revoked(ca, first)
    assert not is_revoked(ca, other)
    assert revoke(ca, which, now=NOW) == ()
    assert not is_revoked(ca, signed(ca))  # a new one, for the same technician


def test_a_list_that_was_lost_is_made_anew_from_the_index(ca: Path) -> None:
    first, second = signed(ca), signed(ca, identity="sam")
    revoke(ca, "jo", now=NOW)
    (ca / REVOKED).unlink()
    revoke(ca, "sam", now=NOW)
    assert is_revoked(ca, first)
    assert is_revoked(ca, second)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"identity": ""}, "expected a letter"),
        ({"identity": "17"}, "expected a letter"),
        ({"identity": "-O"}, "expected a letter"),
        ({"identity": "jo root"}, "expected a letter"),
        ({"identity": "jo\n"}, "expected a letter"),
        ({"identity": "j" * 65}, "expected a letter"),
        ({"principals": []}, "expected principals"),
        ({"principals": ["a", "a"]}, "each once"),
        ({"principals": ["a,root"]}, "expected a letter"),
        ({"hours": 0}, "1 to 168 hours"),
        ({"hours": 169}, "1 to 168 hours"),
        ({"behind_days": 401}, "0 to 400 days"),
    ],
)
def test_nothing_is_signed_that_is_out_of_its_range(
    ca: Path, more: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        signed(ca, **more)
    assert issued(ca) == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "expected one line", id="is empty"),
        pytest.param(b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "private key", id="is private"),
        pytest.param(b"ssh-ed25519 AAAA\n", "more bytes", id="is cut"),
        pytest.param(b"ssh-rsa AAAAB3NzaC1yc2E= jo\n", "type ssh-ed25519", id="is of another type"),
        pytest.param(b'command="x" ssh-ed25519 AAAA\n', "expected one line", id="has options"),
        pytest.param("ssh-ed25519 ä\n".encode(), "expected one line", id="is no base64"),
    ],
)
def test_a_key_is_not_signed_that(ca: Path, data: bytes, message: str) -> None:
    with pytest.raises(EncodingError, match=message):
        issue(ca, data, "jo", ["technician"], now=NOW, hours=8)
    assert issued(ca) == ()


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([LINE[:-1], LINE], id="a serial twice"),
        pytest.param([LINE.replace("issued 1", "issued 01")], id="another spelling"),
        pytest.param([LINE.replace(" jo", "")], id="a word too few"),
        pytest.param([GONE], id="a revocation of what was not issued"),
        pytest.param([LINE, GONE + " x"], id="a word too many"),
        pytest.param([LINE, ""], id="an empty line"),
        pytest.param([LINE, "revoke"], id="half a line"),
        pytest.param([LINE.replace("2026-11-30T16", "2026-13-30T16")], id="no date"),
    ],
)
def test_an_index_is_damaged_that_has(lines: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"line {len(lines)} of"):
        decode_index(lines, tmp_path / INDEX)


def test_an_index_says_who_is_revoked(tmp_path: Path) -> None:
    [one] = decode_index([LINE, GONE], tmp_path)
    assert one.line == LINE
    assert one.revoked == datetime(2026, 11, 30, 9, tzinfo=UTC)
    assert not one.is_live(NOW)


def test_only_one_works_with_a_ca_at_a_time(ca: Path) -> None:
    held = lock(ca)
    try:
        with pytest.raises(BusyError, match="somebody else works with"):
            signed(ca)
    finally:
        os.close(held)


def test_a_ca_is_made_once_and_completed_if_it_was_left_half_made(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    first = make_ca(folder, "technicians", asks=False)
    assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(UsageError, match="already"):
        make_ca(folder, "technicians", asks=False)
    (folder / INDEX).unlink()
    (folder / REVOKED).unlink()
    assert make_ca(folder, "technicians", asks=False) == first
    (folder / INDEX).unlink()
    (folder / PUBLIC).unlink()
    assert make_ca(folder, "technicians", asks=False) != first  # its key was never told of
    assert issued(folder) == ()


def test_without_ssh_keygen_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AbsentError, match="no ssh-keygen") as absent:
        make_ca(tmp_path / "ca", "technicians", asks=False)
    assert "openssh-client" in absent.value.hint


def test_the_commands_work_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public(tmp_path)
    folder, key, out = str(tmp_path / "ca"), str(tmp_path / "jo.pub"), tmp_path / "jo-cert.pub"

    def ctl(*words: str) -> tuple[int, str]:
        status = main(["ca", *words, "--ca", folder])
        return status, capsys.readouterr().out

    assert ctl("init", "--no-passphrase")[0] == 0
    status, said = ctl("issue", "--id", "jo", "--key", key, "-o", str(out))
    assert (status, "serial  1" in said) == (0, True)
    assert decode_certificate_file(out.read_bytes()).identity == "jo"
    assert json.loads(ctl("list", "--json")[1])[0]["revoked"] is None
    assert "revoked 1 jo" in ctl("revoke", "jo")[1]
    assert "revoked before" in ctl("revoke", "jo")[1]
    assert json.loads(ctl("list", "--json")[1])[0]["revoked"]
    assert "revoked" in ctl("list")[1]


@pytest.fixture
def at_desk(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CA in `ca`, and no terminal."""
    monkeypatch.chdir(ca.parent)
    monkeypatch.setattr("sys.stdin", None)


@pytest.mark.usefixtures("at_desk")
@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("list", "--ca", "absent"), 69, "no technician CA in absent"),
        (("init", "--ca", "new"), 64, "no terminal to ask for a passphrase"),
        (("revoke", "--ca", "ca", "jo"), 64, "no certificate of this CA"),
        (("issue", "--ca", "ca", "--id", "jo", "--key", "k", "-o", "x"), 69, "k: no such file"),
    ],
)
def test_a_mistake_is_told_with_what_to_do(
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    assert main(["ca", *words]) == status
    said = capsys.readouterr().err
    assert message in said
    assert "meterctl: hint: " in said
