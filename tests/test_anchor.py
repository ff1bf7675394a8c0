"""Timestamps from outside, by a real authority: `openssl ts`, with a CA that the test makes."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from meterd.anchored import AHEAD_S_MAX, Held, Stamp, judge
from meterd.config import check, load
from meterd.ctl import main
from meterd.device.anchor import TimestampRefusedError, read_imprint, token_name, tokens
from meterd.device.archive import segment_name, segment_numbers
from meterd.init import create_account
from tests.accounts import SEED, config_text
from tests.daemon_kit import until
from tests.device.test_prune import DAY_S, SETTINGS, Stored, feed, made, replay_into, stored
from tests.tsa import Authority, make_authority, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["made", "stored"]

HASHES = [bytes([number]) * 32 for number in range(5)]
CHAIN = [Held(1, n, HASHES[n], HASHES[n - 1], n * 1800) for n in range(1, 4)]


# --- what a timestamp says of an account ----------------------------------------------------------


def stamp(height: int, **changed: Any) -> Stamp:  # noqa: ANN401 - whatever a field is
    return Stamp(1, height, HASHES[height], height * 1800 + 5)._replace(**changed)


@pytest.mark.parametrize(
    ("stamped", "held", "reason"),
    [
        pytest.param(stamp(2), CHAIN, "", id="is as it was"),
        pytest.param(stamp(2, at_s=3600 - AHEAD_S_MAX), CHAIN, "", id="differs by the clocks"),
        pytest.param(stamp(2), CHAIN[:1], "cut back", id="ends before"),
        pytest.param(stamp(2), [], "cut back", id="has nothing"),
        pytest.param(stamp(2, block_hash=HASHES[4]), CHAIN, "another block", id="was exchanged"),
        pytest.param(stamp(2), CHAIN[2:], "no such block", id="begins behind it"),
        pytest.param(stamp(2, incarnation=0), CHAIN, "no such block", id="has another chain"),
        pytest.param(
            stamp(2, at_s=3600 - AHEAD_S_MAX - 1), CHAIN, "clock was ahead", id="is later"
        ),
        pytest.param(
            stamp(3),
            [CHAIN[0], CHAIN[1]._replace(previous=HASHES[4]), CHAIN[2]],
            "block 2 does not link",
            id="has a block exchanged below it",
        ),
    ],
)
def test_an_account_is_judged_that(stamped: Stamp, held: list[Held], reason: str) -> None:
    [judged] = judge([stamped], held)
    assert bool(judged.reason) is bool(reason)
    assert reason in judged.reason


def test_a_link_that_is_broken_above_a_timestamp_says_nothing_of_it() -> None:
    held = [*CHAIN[:2], CHAIN[2]._replace(previous=HASHES[4])]
    judged = judge([stamp(3), stamp(2)], held)
    assert [bool(one.reason) for one in judged] == [False, True]


# --- the command ----------------------------------------------------------------------------------


class Bench(NamedTuple):
    """An account, an authority that is asked, and where its answers are kept."""

    stored: Stored
    authority: Authority
    root: Path
    config: Path
    anchors: Path

    def ctl(self, *options: str | Path) -> int:
        more = ("--state", self.stored.state, "--config", self.config, "--anchors", self.anchors)
        return main(["anchor", *map(str, (*options, *more))])


@pytest.fixture(scope="module")
def authority_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority")
    make_authority(folder)
    return folder


@pytest.fixture
def bench(stored: Stored, authority_folder: Path, tmp_path: Path) -> Iterator[Bench]:
    authority, config = Authority(authority_folder), tmp_path / "meterd.toml"
    root = authority_folder / "root.pem"
    with serving(authority) as url:
        config.write_text(config_text() + f'\n[anchor]\nurl = "{url}"\nca = "{root}"\n')
        yield Bench(stored, authority, root, config, tmp_path / "anchors")


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_head_is_stamped_once_and_checked(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.ctl("--json") == 0
    first = told(capsys)
    assert bench.ctl("--json") == 0
    assert told(capsys)["stamped"] is None
    assert len(bench.authority.asked) == 1
    assert bench.ctl("--check", "--json") == 0
    checked = told(capsys)
    assert (checked["verdict"], checked["anchored"]) == ("good", first["height"])
    assert [one["hash"] for one in checked["anchors"]] == [first["hash"]]
    assert bench.ctl("--check") == 0
    assert "good: 1 timestamp; block" in capsys.readouterr().out


def test_nothing_but_the_hash_leaves_the_device(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.ctl("--json")
    [asked] = bench.authority.asked
    assert bytes.fromhex(told(capsys)["hash"]) in asked
    assert len(asked) < 100  # a hash, its algorithm, a nonce
    assert b"kitchen" not in asked


def test_any_tool_can_verify_the_file(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.ctl("--json")
    stamped = told(capsys)
    verify = ("openssl", "ts", "-verify", "-in", stamped["stamped"], "-CAfile", str(bench.root))
    for digest, status in ((stamped["hash"], 0), ("00" * 32, 1)):
        done = subprocess.run([*verify, "-digest", digest], check=False, capture_output=True)
        assert done.returncode == status, done.stderr


def cut_back(state: Path) -> None:
    last = segment_name(segment_numbers(state / "blocks")[-1])
    (state / "blocks" / last).unlink()


def exchange(state: Path, other: Path) -> None:
    shutil.rmtree(state / "blocks")
    shutil.copytree(other / "blocks", state / "blocks")


def test_an_account_that_was_cut_back_is_found_out(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.ctl()
    cut_back(bench.stored.state)
    capsys.readouterr()
    assert bench.ctl("--check", "--json") == 1
    [anchor] = told(capsys)["anchors"]
    assert "cut back since" in anchor["reason"]


def test_an_account_that_was_made_anew_with_the_same_key_is_found_out(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It verifies: whoever has the key has sealed another past. The timestamp is what tells."""
    bench.ctl()
    forged = tmp_path / "forged"
    create_account(forged, SETTINGS, SEED)
    feed(replay_into(forged), 3000, 4 * DAY_S + 90_000)
    exchange(bench.stored.state, forged)
    capsys.readouterr()
    assert bench.ctl("--check") == 1
    assert "another block there: its past was exchanged" in capsys.readouterr().out


TSR = "application/timestamp-reply"


@pytest.mark.parametrize(
    ("reply", "code", "message"),
    [
        ((b"", TSR, 503), 69, "503"),
        ((b"<html>", "text/html", 200), 69, "6 bytes of text/html"),
        ((b"x" * 70_000, TSR, 200), 69, "which is no timestamp"),
        ((b"garbage", TSR, 200), 1, "does not verify"),
        ((bytes.fromhex("30053003020102"), TSR, 200), 1, "refuses: Rejected."),
    ],
)
def test_what_is_no_timestamp_is_not_kept(
    bench: Bench,
    reply: tuple[bytes, str, int],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench.authority.answer, bench.authority.kind, bench.authority.status = reply
    assert bench.ctl() == code
    said = capsys.readouterr().err
    assert message in said
    assert "hint:" in said or code == 1
    assert tokens(bench.anchors) == []


def test_an_answer_to_another_question_is_not_kept(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.ctl()
    bench.authority.answer = next(bench.anchors.iterdir()).read_bytes()
    shutil.rmtree(bench.anchors)
    assert bench.ctl() == 1
    assert "nonce mismatch" in capsys.readouterr().err


@pytest.mark.parametrize("usage", ["timeStamping", "serverAuth"])
def test_another_authority_is_not_believed(
    bench: Bench, usage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    make_authority(other, usage=usage)
    bench.authority.folder = other
    assert bench.ctl() == 1
    assert "meterctl: error: the timestamp " in capsys.readouterr().err
    assert tokens(bench.anchors) == []


def let_it_end(folder: Path, ends: datetime) -> None:
    """Give the authority another certificate, over the same key, that ends then."""
    root = x509.load_pem_x509_certificate((folder / "root.pem").read_bytes())
    old = x509.load_pem_x509_certificate((folder / "tsa.pem").read_bytes())
    key = load_pem_private_key((folder / "root.key").read_bytes(), None)
    assert isinstance(key, RSAPrivateKey)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(old.issuer)
        .subject_name(old.subject)
        .public_key(old.public_key())
        .serial_number(old.serial_number + 1)
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(ends)
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    new = builder.sign(key, hashes.SHA256())
    (folder / "tsa.pem").write_bytes(new.public_bytes(Encoding.PEM))


def test_a_timestamp_outlasts_the_certificate_that_signed_it(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "brief"
    shutil.copytree(bench.authority.folder, folder)
    settings = folder / "openssl.cnf"
    settings.write_text(settings.read_text().replace(str(bench.authority.folder), str(folder)))
    bench.authority.folder = folder
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=10)
    let_it_end(folder, ends)
    assert bench.ctl("--json") == 0
    stamped = told(capsys)
    until(lambda: datetime.now(UTC) > ends + timedelta(seconds=1), "the certificate has ended")
    plain = ("openssl", "ts", "-verify", "-in", stamped["stamped"], "-CAfile", str(bench.root))
    done = subprocess.run([*plain, "-digest", stamped["hash"]], check=False, capture_output=True)
    assert b"certificate has expired" in done.stderr + done.stdout
    assert bench.ctl("--check") == 0


def test_a_file_that_was_damaged_or_renamed_is_found_out(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.ctl()
    [token] = tokens(bench.anchors)
    data = bytearray(token.path.read_bytes())
    token.path.rename(token.path.with_name(token_name(1, 2)))
    capsys.readouterr()
    assert bench.ctl("--check") == 1
    assert "another block there" in capsys.readouterr().out
    for at in range(0, len(data), 97):
        data[at] ^= 1
        (bench.anchors / token_name(1, 2)).write_bytes(bytes(data))
        assert bench.ctl("--check") == 1
        data[at] ^= 1


def der(tag: int, content: bytes) -> bytes:
    """Return an item of X.690 of up to 64 kB."""
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


def with_status(answer: bytes, text: str) -> bytes:
    """Return an answer with this text in its status, which nobody has signed (RFC 3161)."""
    assert (answer[:2], answer[4:9]) == (b"\x30\x82", bytes.fromhex("3003020100"))
    status = der(0x30, b"\x02\x01\x00" + der(0x30, der(0x0C, text.encode())))
    return der(0x30, status + answer[9:])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("well", id="of no matter"),
        pytest.param("x\nTime stamp: {earlier}\nx", id="with another time"),
        pytest.param("x\n\nTST info:\nTime stamp: {earlier}\nx", id="that begins the rest"),
        pytest.param("x\nMessage data:\n    0000 - 00 00   ..", id="with more of a hash"),
    ],
)
def test_l5_a_time_counts_that_is_signed_whatever_stands_before_it(
    bench: Bench, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.ctl()
    [token] = tokens(bench.anchors)
    capsys.readouterr()
    assert bench.ctl("--check", "--json") == 0
    [before] = told(capsys)["anchors"]
    earlier = datetime.fromtimestamp(before["at_s"] - 1, UTC)  # the certificate held then, too
    spelt = text.format(earlier=f"{earlier:%b %d %H:%M:%S %Y} GMT")
    token.path.write_bytes(with_status(token.path.read_bytes(), spelt))
    assert bench.ctl("--check", "--json") == 0
    assert told(capsys)["anchors"] == [before]


@pytest.mark.parametrize("time", ["Dec 31 23:59:60 2026 GMT", "Jan  1 00:00:00 0 GMT"])
def test_a_time_that_is_in_no_calendar_is_refused(time: str) -> None:
    text = f"Status: Granted.\n\nTST info:\nHash Algorithm: sha256\nTime stamp: {time}\n"
    with pytest.raises(TimestampRefusedError, match="in no calendar"):
        read_imprint(text)


def test_without_an_authority_nobody_is_asked(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.config.write_text(config_text())
    assert bench.ctl("--if-set") == 0
    assert bench.ctl() == 78
    assert "set `url` and `ca` in [anchor]" in capsys.readouterr().err
    assert bench.ctl("--check") == 78
    assert bench.authority.asked == []
    assert bench.ctl("--check", "--ca", bench.root) == 0
    assert "nothing outside vouches" in capsys.readouterr().out


def test_an_authority_that_is_away_is_absent(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    text = bench.config.read_text()
    bench.config.write_text(text.replace("http://127.0.0.1:", "http://127.0.0.1:1/?"))
    assert bench.ctl() == 69
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("option", [(), ("--check",)])
def test_an_openssl_that_hangs_is_stopped_and_said(
    option: tuple[str, ...],
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench.ctl("--json") == 0
    kept = [path.name for path in bench.anchors.iterdir()]
    if not option:
        (bench.anchors / kept[0]).unlink()
        kept = []
    hangs = tmp_path / "openssl"
    hangs.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    hangs.chmod(0o755)
    monkeypatch.setattr("meterd.device.anchor.OPENSSL", str(hangs))
    monkeypatch.setattr("meterd.device.anchor.OPENSSL_S_MAX", 0.1)
    capsys.readouterr()
    assert bench.ctl(*option) == 69
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"meterctl: error: {hangs} has not ended after 0 s")
    assert "Traceback" not in said.err
    assert [path.name for path in bench.anchors.iterdir()] == kept


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('url = "https://tsa.example/tsr"', "is missing: by it a timestamp is verified"),
        ('url = "file:///etc/passwd"', "expected a URL such as https://tsa.example/tsr"),
        ('url = "https://user@tsa.example/"', "expected a URL such as"),
        ("every_s = 1", "there is no such key in anchor"),
    ],
)
def test_settings_are_refused_that_say(lines: str, message: str) -> None:
    settings, mistakes = check(f"{config_text()}\n[anchor]\n{lines}\n", source="meterd.toml")
    assert settings is None
    assert any(message in str(mistake) for mistake in mistakes), mistakes


def test_settings_name_an_authority(bench: Bench) -> None:
    assert load(bench.config).anchor.ca == str(bench.root)
