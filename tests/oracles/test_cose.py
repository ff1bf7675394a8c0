"""A COSE library that knows nothing of meterd verifies its blocks, and refuses what was changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from meterd.ledger.encoding import digest, key_id, take_apart
from tests.conftest import CI, ROOT
from tests.ledger.examples import STRANGER
from tests.ledger.memory import Stored, sealed_account
from tests.vectors.generate import FOLDER

PYTHON = ROOT / ".venv-oracles" / "bin" / "python"
METERCTL = str(Path(sys.executable).with_name("meterctl"))


@pytest.fixture(autouse=True)
def _oracles() -> None:
    if not PYTHON.exists():
        missing = "the oracles' environment is not there: make .venv-oracles/made"
        pytest.fail(missing) if CI else pytest.skip(missing)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oracle") / "account"
    sealed_account(folder)
    return folder


def asked(messages: list[tuple[bytes, bytes, bytes]]) -> list[str]:
    """Return what the library says of (public key, external_aad, message)."""
    lines = "".join(" ".join(part.hex() for part in message) + "\n" for message in messages)
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("verify_cose.py")],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()


def key_of(state: Path) -> tuple[bytes, bytes]:
    """Return public key and genesis hash, as the program says them."""
    done = subprocess.run(
        [METERCTL, "key", "--state", state, "--json"], capture_output=True, check=True, timeout=60
    )
    said = json.loads(done.stdout)
    return bytes.fromhex(said["key"]), bytes.fromhex(said["genesis_hash"])


def exported(state: Path, height: int) -> bytes:
    done = subprocess.run(
        [METERCTL, "export", "--state", state, "--height", str(height), "--cose"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_blocks_that_the_program_exports_verify_and_changed_ones_do_not(state: Path) -> None:
    key, genesis = key_of(state)
    stored = Stored.read(state)
    assert digest(stored.genesis) == genesis
    blocks = [stored_frame.frame.body for stored_frame in stored.frames("blocks")]
    assert [exported(state, height) for height in (1, len(blocks))] == [blocks[0], blocks[-1]]
    payloads = [take_apart(block).payload.hex() for block in blocks]
    assert asked([(key, genesis, block) for block in blocks]) == payloads

    block = blocks[0]
    at_payload = block.index(b"kitchen-12")
    strange = bytes(STRANGER.verify_key)
    refused = [
        (key, genesis, block[:at_payload] + b"kitchen-13" + block[at_payload + 10 :]),
        (key, genesis, block[:-1] + bytes([block[-1] ^ 1])),
        (key, genesis, block[:-65] + b"\x3f" + block[-64:]),
        (key, bytes(32), block),
        (key, b"", block),
        (strange, genesis, block),
        (key, genesis, cose_of(block, strange)),
    ]
    said = asked(refused)
    assert len(said) == len(refused)
    assert all(one.startswith("refused: ") for one in said), said


def cose_of(block: bytes, key: bytes) -> bytes:
    """Return the block under another key's name."""
    return block.replace(take_apart(block).kid, key_id(key))


def test_a_seal_that_we_take_the_library_takes() -> None:
    """The other way round it is lax: no alg, an unknown crit, more bytes do not trouble it."""
    cases = json.loads((FOLDER / "seals.json").read_text())
    said = asked(
        [tuple(bytes.fromhex(case[k]) for k in ("key", "genesis_hash", "bytes")) for case in cases]  # type: ignore[misc]
    )
    taken = {case["name"] for case, one in zip(cases, said, strict=True) if "refused" not in one}
    ours = {case["name"] for case in cases if case["verdict"] == "good"}
    lax = {"kid before alg", "kid unprotected too", "crit", "no alg", "no kid"}
    lax |= {"no tag", "a tag in two bytes", "a trailing byte", "alg -8"}
    assert ours <= taken <= ours | lax
