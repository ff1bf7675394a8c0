"""The wire format as it is written down for others is the one that is written."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cbor2
import pytest
from cddl_verifier import Validator

import meterd.ledger
from meterd.device.recovery import CHECKPOINT_FILE
from meterd.ledger.encoding import decode, encode, take_apart
from meterd.ledger.parameters import sign_command
from meterd.ledger.segment import STREAMS
from tests.conftest import ROOT
from tests.ledger import test_parameters as parameters
from tests.ledger.examples import FIRST, GENESIS, PARAMETERS, changed, sealed
from tests.ledger.memory import (
    Stored,
    adaptor_account,
    full_account,
    lossy_account,
    phases_account,
    recalibrated_account,
    sealed_account,
    unplaced_account,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = Path(meterd.ledger.__file__).with_name("meterd.cddl")
BLOCK = FIRST.encode()


@pytest.fixture(scope="module")
def validator() -> Any:  # noqa: ANN401 - it has no types
    return Validator(SCHEMA)


def problems(validator: Any, message: bytes, rule: str) -> list[str]:  # noqa: ANN401
    result = validator.validate(message, root_type=rule)
    return [f"{found.path_text}: {found.message}" for found in result.diagnostics]


@pytest.mark.parametrize(
    "make",
    [
        sealed_account,
        unplaced_account,
        lossy_account,
        full_account,
        adaptor_account,
        phases_account,
        recalibrated_account,
    ],
)
def test_every_message_of_an_account_is_as_the_schema_says(
    make: Callable[[Path], Stored],
    validator: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    stored = make(tmp_path / "account")
    messages = [("genesis", stored.genesis)]
    for stream in STREAMS:
        for number in stored.numbers(stream):
            header, _ = stored.header(stream, number)
            messages.append((f"{stream}-header", header.encode()))
    messages += [("sealed-block", frame.frame.body) for frame in stored.frames("blocks")]
    messages += [("block", take_apart(f.frame.body).payload) for f in stored.frames("blocks")]
    messages += [("event", frame.frame.body) for frame in stored.frames("events")]
    messages += [
        ("parameters", event.bytes_of("record"))
        for event in stored.events
        if event.kind == "parameters"
    ]
    assert {rule for rule, _ in messages} >= {"sealed-block", "event", "parameters", "block"}
    for rule, message in messages:
        assert problems(validator, message, rule) == [], rule


def test_a_checkpoint_is_as_the_schema_says(
    validator: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    sealed_account(tmp_path / "account")
    checkpoint = (tmp_path / "account" / CHECKPOINT_FILE).read_bytes()
    assert problems(validator, checkpoint, "sealed-checkpoint") == []
    assert problems(validator, take_apart(checkpoint).payload, "checkpoint") == []
    assert problems(validator, checkpoint, "sealed-block") != []


def test_what_is_signed_is_as_the_schema_says(validator: Any) -> None:  # noqa: ANN401
    protected, _, payload, _ = cbor2.loads(sealed(FIRST)).value
    signed = cbor2.dumps(["Signature1", protected, GENESIS.hash, payload])
    assert problems(validator, signed, "signed-block") == []
    assert problems(validator, signed, "signed-checkpoint") != []


@pytest.mark.parametrize(
    ("rule", "message", "place", "new"),
    [
        pytest.param("block", BLOCK, (0,), "meterd/block/v2", id="block of a new version"),
        pytest.param("block", BLOCK, (1,), bytes(31), id="block with a short hash"),
        pytest.param("block", BLOCK, (2,), "Kitchen", id="block of a misnamed meter"),
        pytest.param("block", BLOCK, (4,), 0, id="block of height 0"),
        pytest.param("block", BLOCK, (6,), [0], id="block with half an order"),
        pytest.param("block", BLOCK, (9, 0), "X", id="block with an unknown clock status"),
        pytest.param("block", BLOCK, (9, 2), bytes(15), id="block with a short boot id"),
        pytest.param("block", BLOCK, (13,), [], id="block without a register"),
        pytest.param("block", BLOCK, (13, 0, 1), 2, id="block with an unknown kind"),
        pytest.param("block", BLOCK, (13, 0, 3), 720, id="block with a register as a number"),
        pytest.param("block", BLOCK, (13, 0, 3), bytes(9), id="block with a long register"),
        pytest.param("block", BLOCK, (14,), 64, id="block with an unknown flag"),
        pytest.param("genesis", GENESIS.encode(), (2,), 0, id="genesis of intervals of 0 s"),
        pytest.param("genesis", GENESIS.encode(), (5, 0, 1), "owner", id="genesis with a role"),
        pytest.param("genesis", GENESIS.encode(), (5, 0, 4), 2, id="genesis with two votes"),
        pytest.param("genesis", GENESIS.encode(), (6, 0, 1), 0, id="genesis with incarnation 0"),
        pytest.param("parameters", PARAMETERS.encode(), (6, 0, 1), 2, id="record with a kind"),
    ],
)
def test_the_schema_refuses_a(
    validator: Any,  # noqa: ANN401
    rule: str,
    message: bytes,
    place: tuple[int, ...],
    new: object,
) -> None:
    assert problems(validator, message, rule) == []
    assert problems(validator, encode(changed(decode(message), place, new)), rule) != []


def test_commands_and_grants_are_as_the_schema_says(validator: Any) -> None:  # noqa: ANN401
    for command in (parameters.GOOD, parameters.BY_JO):
        message = sign_command(command, parameters.JO)
        assert problems(validator, message, "sealed-command") == []
        assert problems(validator, command.encode(), "command") == []
    assert problems(validator, parameters.GRANTED, "sealed-grant") == []
    assert problems(validator, parameters.GRANTED, "sealed-command") != []
    assert problems(validator, parameters.GOOD._replace(grant=b"?").encode(), "command") != []
    assert problems(validator, parameters.GOOD._replace(changes=()).encode(), "command") != []


@pytest.mark.parametrize(
    ("tag", "protected", "unprotected"),
    [
        pytest.param(98, {1: -19, 4: bytes(8)}, {}, id="another tag"),
        pytest.param(18, {1: -8, 4: bytes(8)}, {}, id="another algorithm"),
        pytest.param(18, {1: -19, 2: [4], 4: bytes(8)}, {}, id="crit"),
        pytest.param(18, {1: -19}, {}, id="no kid"),
        pytest.param(18, {1: -19, 4: bytes(8)}, {4: bytes(8)}, id="an unprotected header"),
    ],
)
def test_the_schema_refuses_a_seal_with(
    validator: Any,  # noqa: ANN401
    tag: int,
    protected: dict[int, object],
    unprotected: dict[int, object],
) -> None:
    ours = cbor2.CBORTag(18, [cbor2.dumps({1: -19, 4: bytes(8)}), {}, BLOCK, bytes(64)])
    assert problems(validator, cbor2.dumps(ours), "sealed-block") == []
    other = cbor2.CBORTag(tag, [cbor2.dumps(protected), unprotected, BLOCK, bytes(64)])
    assert problems(validator, cbor2.dumps(other), "sealed-block") != []


def test_the_schema_comes_with_the_package(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert packed.read("meterd/ledger/meterd.cddl") == SCHEMA.read_bytes()
