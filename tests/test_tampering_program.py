"""A sample of changes to a large account, and those that the program itself finds."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meterd.ledger.account import decode_genesis
from meterd.ledger.segment import STREAMS
from tests.accounts import replay_lines
from tests.ledger.memory import HOUSEHOLD_CONFIG, Stored, household_lines, remembering
from tests.tampering_kit import assert_found, belongs, foreign, sealed, uncounted

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["foreign", "sealed", "uncounted"]

METERCTL = str(Path(sys.executable).with_name("meterctl"))


@pytest.fixture(scope="module", autouse=True)
def _remembering() -> Iterator[None]:
    with remembering():
        yield


def changed_at_random(stored: Stored, draw: random.Random) -> tuple[str, str, Stored]:
    """Return what was done to which stream, and the account after it."""
    stream = draw.choice(STREAMS)
    number = draw.choice(stored.numbers(stream))
    data = stored.segment(stream, number)
    at = draw.randrange(len(data))
    to = draw.randrange(at, min(len(data), at + 2000)) + 1
    how = draw.choice(("bit", "byte", "delete", "insert", "double", "cut", "reverse", "segment"))
    new: bytes | None = {
        "bit": data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :],
        "byte": data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :],
        "delete": data[:at] + data[to:],
        "insert": data[:at] + draw.randbytes(to - at) + data[at:],
        "double": data[:to] + data[at:to] + data[to:],
        "cut": data[:at],
        "reverse": data[:at] + data[at:to][::-1] + data[to:],
        "segment": None,
    }[how]
    return f"{how} {stream} {number} {at}:{to}", stream, stored.with_segment(stream, number, new)


@pytest.mark.usefixtures("uncounted")
def test_a_random_sample_of_changes_to_28_days_of_a_household_is_found(
    data_dir: Path, tmp_path: Path
) -> None:
    replay_lines(household_lines(data_dir), HOUSEHOLD_CONFIG, tmp_path / "account")
    clean = Stored.read(tmp_path / "account")
    verdict = clean.judge()
    assert (verdict.verdict, verdict.tail) == ("good", None)
    assert (verdict.blocks, verdict.records) == (1344, 40_318)
    draw = random.Random(2007)
    for _ in range(120):
        what, stream, tampered = changed_at_random(clean, draw)
        if tampered.streams[stream] != clean.streams[stream]:
            with note(what):
                assert_found(clean, stream, tampered)


@contextmanager
def note(what: str) -> Iterator[None]:
    """Say what was tampered with where an assertion fails."""
    try:
        yield
    except AssertionError as error:
        error.add_note(what)
        raise


def test_a_sample_of_changes_is_found_by_the_program(sealed: Stored, tmp_path: Path) -> None:
    account = tmp_path / "account"
    draw = random.Random(20)
    for _ in range(20):
        what, stream, tampered = changed_at_random(sealed, draw)
        tampered.write(account)
        where = belongs(sealed, stream, tampered)
        code, said = run_verify(account)
        with note(what):
            if where.tail:
                assert (code, said["verdict"], said["tail"]["stream"]) == (0, "good", stream)
            else:
                assert (code, said["verdict"]) == (1, "bad")
                named = said["first_bad"]
                assert (named["stream"], named["height"]) == (stream, where.owner.height)
                assert named["start_s"] == where.owner.start_s
    sealed.write(account)
    assert run_verify(account) == (
        0,
        {
            "verdict": "good",
            "blocks": 6,
            "records": 10,
            "first_bad": None,
            "tail": None,
            "key": "self-asserted",
        },
    )


def run_verify(account: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [METERCTL, "verify", str(account), "--json", *arguments],
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout)


def test_the_program_holds_an_account_against_a_known_head_and_key(
    sealed: Stored, foreign: Stored, tmp_path: Path
) -> None:
    account = tmp_path / "account"
    sealed.write(account)
    head = sealed.judge().head
    assert head is not None
    key = decode_genesis(sealed.genesis).meters[0].sealing_key.hex()
    code, said = run_verify(account, "--key", key, "--head", f"6:{head.block_hash.hex()}")
    assert (code, said["key"]) == (0, "given")
    code, said = run_verify(account, "--head", f"7:{bytes(32).hex()}")
    assert (code, said["first_bad"]["height"]) == (1, 7)
    strange = decode_genesis(foreign.genesis).meters[0].sealing_key.hex()
    code, said = run_verify(account, "--key", strange)
    assert (code, said["first_bad"]["stream"]) == (1, "genesis")
