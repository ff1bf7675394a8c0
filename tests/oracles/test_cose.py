"""A COSE library that knows nothing of meterd verifies its blocks, and refuses what was changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cbor2
import pytest

from meterd.authority.attestation import PAD_LEAF, prove
from meterd.ledger.encoding import digest, key_id, take_apart
from tests.authority.examples import (
    ENROL,
    FIRST_BLOCK,
    GENESIS,
    SECOND_BLOCK,
    batch,
    chain,
    leaf,
    order,
    public,
    sealed,
)
from tests.authority.said import BODIES, SENDER, message_of
from tests.authority.test_merkle import mth
from tests.conftest import CI, ROOT
from tests.ledger.examples import STRANGER
from tests.ledger.memory import Stored, sealed_account
from tests.vectors.generate import FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterd.authority.attestation import Leaf

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


def asked(messages: Sequence[tuple[bytes, ...]]) -> list[str]:
    """Return what the library says of (public key, external_aad, message), and a payload apart."""
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
        [tuple(bytes.fromhex(case[k]) for k in ("key", "genesis_hash", "bytes")) for case in cases]
    )
    taken = {case["name"] for case, one in zip(cases, said, strict=True) if "refused" not in one}
    ours = {case["name"] for case in cases if case["verdict"] == "good"}
    lax = {"kid before alg", "kid unprotected too", "crit", "no alg", "no kid"}
    lax |= {"no tag", "a tag in two bytes", "a trailing byte", "alg -8"}
    assert ours <= taken <= ours | lax


def test_orders_and_what_peers_say_verify() -> None:
    item = order(ENROL)
    messages = [(public(f"{item.distributor} seals"), sealed(item), item.encode())]
    for kind in BODIES:
        said = message_of(kind)
        messages.append((public(f"{SENDER} votes"), said, take_apart(said).payload))
    said_of = asked([(key, GENESIS.hash, message) for key, message, _ in messages])
    assert said_of == [payload.hex() for _, _, payload in messages]


LEAVES = {
    "one": [leaf(FIRST_BLOCK)],
    "two": [leaf(FIRST_BLOCK), leaf(order(ENROL))],
    "five": [leaf(chain(1, name)[0]) for name in ("a", "b", "c", "d", "e")],
}


@pytest.mark.parametrize("number", LEAVES)
def test_a_cose_receipt_verifies_over_the_root_of_its_leaves(number: str) -> None:
    """The root comes from the definition in RFC 9162, over what cbor2 makes of the leaves."""
    leaves: Sequence[Leaf] = sorted(LEAVES[number])
    attested = batch(leaves, "regulator")
    spelt = [cbor2.dumps(list(each)) for each in leaves]
    root = mth(spelt if len(spelt) > 1 else [*spelt, PAD_LEAF])
    key = public("regulator votes")
    receipts = [prove(attested, index) for index in range(len(leaves))]
    assert asked([(key, GENESIS.hash, one, root) for one in receipts]) == [root.hex()] * len(spelt)
    said = asked(
        [
            (key, GENESIS.hash, receipts[0], digest(root)),
            (key, GENESIS.hash, receipts[0], mth([cbor2.dumps(list(leaf(SECOND_BLOCK))), b""])),
            (key, bytes(32), receipts[0], root),
            (key, b"", receipts[0], root),
            (public("house-1 votes"), GENESIS.hash, receipts[0], root),
            (key, GENESIS.hash, receipts[0][:-1] + bytes([receipts[0][-1] ^ 1]), root),
            (key, GENESIS.hash, receipts[0].replace(b"batch/v1", b"block/v1"), root),
        ]
    )
    assert all(one.startswith("refused: ") for one in said), said
