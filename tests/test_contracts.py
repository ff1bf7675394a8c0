"""What outside scripts use, as they use it: programs, files, JSON, exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from nacl.signing import SigningKey

if TYPE_CHECKING:
    from pathlib import Path

SEED = "07" * 32
SETTINGS = """
[meter]
name = "kitchen-12"
interval_s = 1800
nominal_v = 230
power_factor = 1.0
fuse_a = 60

[board]
port = "/dev/ttyAMA0"
layout = "rpict3v1"
polling_ms = 60000
current_unit = "mA"
vest = 240

[[clamp]]
name = "mains"
role = "mains"
reversed = false
scale = 1.0
zero_below_w = 0

[clock]
trust = "always"

[log]
commit_s = 30
"""
CAPTURE = r"""1170633600	11 374.0 0.0 0.0 1600.0 0.0 0.0 243.87
1170633660	11 356.0 0.0 0.0 1600.0 0.0 0.0 243.96
1170633720	# RPICT3 \xa0\x00
1170633780	11 346.0 0.0 -0.0 1600.0 0.0 0.0 244.30
"""
HEX = frozenset("0123456789abcdef")


def program(name: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    module = {"meterd": "meterd.__main__", "meterctl": "meterd.ctl"}[name]
    script = f"import sys; from {module} import main; sys.argv[0] = '{name}'; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "80"},
        check=False,
        timeout=60,
    )


def answer(name: str, *arguments: object, status: int = 0) -> Any:  # noqa: ANN401 - JSON
    done = program(name, *arguments, "--json")
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """An account of the capture in the contract, made as the contract says."""
    (tmp_path / "meterd.toml").write_text(SETTINGS)
    (tmp_path / "capture").write_text(CAPTURE)
    folder = tmp_path / "account"
    done = program(
        *("meterd", "replay", "--capture", tmp_path / "capture", "--state", folder),
        *("--config", tmp_path / "meterd.toml", "--key", SEED, "--salt-seed", "01" * 32),
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_registers(state: Path) -> None:
    said = answer("meterctl", "registers", "--state", state)
    assert {key: said[key] for key in ("registers", "readings", "gaps", "height")} == {
        "registers": {
            "1-0:1.8.0": {"uj": 64_020_000_000, "kind": "measured"},
            "1-0:2.8.0": {"uj": 0, "kind": "measured"},
            # 390.192, 390.336 and 390.880 VA, over 60 and 120 s
            "1-0:9.8.0": {"uj": 70_288_800_000, "kind": "measured"},
        },
        "readings": {"accepted": 3, "dropped": {"banner": 1}},
        "gaps": 0,
        "height": 1,
    }


def test_a_good_verdict(state: Path) -> None:
    assert (
        answer("meterctl", "verify", state).items()
        >= {
            "verdict": "good",
            "blocks": 1,
            "records": 3,
            "first_bad": None,
            "tail": None,
            "key": "self-asserted",
        }.items()
    )


def test_a_bad_verdict(state: Path) -> None:
    path = state / "samples" / "00000001.seg"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    said = answer("meterctl", "verify", state, status=1)
    assert said["verdict"] == "bad"
    assert set(said["first_bad"]) >= {"stream", "height", "start_s", "segment", "offset", "reason"}
    assert (said["first_bad"]["stream"], said["first_bad"]["height"]) == ("samples", 1)
    assert said["first_bad"]["start_s"] == 1_170_633_600


def test_a_tail(state: Path) -> None:
    path = max((state / "events").iterdir())
    path.write_bytes(path.read_bytes() + b"torn")
    said = answer("meterctl", "verify", state)
    assert said["verdict"] == "good"
    assert said["tail"].items() >= {"stream": "events", "bytes": 4}.items()
    assert isinstance(said["tail"]["offset"], int)


def test_the_key_and_a_head_that_is_held_elsewhere(state: Path) -> None:
    said = answer("meterctl", "key", "--state", state)
    assert set(said) >= {"key", "meter", "genesis_hash"}
    assert said["key"] == SigningKey(bytes.fromhex(SEED)).verify_key.encode().hex()
    assert said["meter"] == "kitchen-12"
    assert len(said["genesis_hash"]) == 64
    assert set(said["genesis_hash"]) <= HEX
    known = ("--key", said["key"], "--genesis", state / "genesis.cbor")
    assert answer("meterctl", "verify", state, *known)["key"] != "self-asserted"
    head = f"1:{'00' * 32}"
    assert answer("meterctl", "verify", state, "--head", head, status=1)["verdict"] == "bad"


def test_an_exported_block(state: Path) -> None:
    done = program("meterctl", "export", "--state", state, "--height", 1, "--cose")
    assert done.returncode == 0
    assert done.stdout.startswith(bytes.fromhex("d2844da2013204"))  # COSE_Sign1, alg -19


def test_the_same_capture_key_and_salts_give_the_same_bytes(state: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / "capture").rename(again / "capture")
    arguments = ("--capture", again / "capture", "--config", tmp_path / "meterd.toml")
    done = program(
        *("meterd", "replay", *arguments, "--state", again / "account"),
        *("--key", SEED, "--salt-seed", "01" * 32),
    )
    assert done.returncode == 0, done.stderr
    for stream in ("samples", "events", "blocks"):
        for path in (state / stream).iterdir():
            assert path.read_bytes() == (again / "account" / stream / path.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("meterctl", "verify", "nowhere"), 2),
        (("meterctl", "verify"), 64),
        (("meterctl", "what"), 64),
        (("meterd", "run", "--what"), 64),
        (("meterd", "replay", "--capture", "nowhere", "--state", "a", "--config", "nowhere"), 78),
        (("meterctl", "config", "check", "nowhere"), 78),
        (("meterctl", "registers", "--state", "nowhere"), 78),
    ],
)
def test_a_status_that_scripts_ask_for(arguments: tuple[str, ...], status: int) -> None:
    done = program(*arguments)
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr
    error, hint, *_ = done.stderr.decode().splitlines()
    assert error.startswith(f"{arguments[0]}: error: ")
    assert hint.startswith(f"{arguments[0]}: hint: ")
