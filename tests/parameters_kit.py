"""Commands that change parameters, for tests: of an owner, of a technician, of a stranger."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from nacl.signing import SigningKey

from meterd.device.control_client import ControlClient
from meterd.device.control_parameters import INTERFACE
from meterd.errors import AbsentError
from meterd.ledger.parameters import Command, Grant, sign_command, sign_grant
from tests.daemon_kit import until

if TYPE_CHECKING:
    from tests.daemon_kit import House

OWNER = SigningKey(b"owner".ljust(32, b"."))
JO = SigningKey(b"jo".ljust(32, b"."))
STRANGER = SigningKey(b"stranger".ljust(32, b"."))
RECORD = bytes(range(32))  # of a commissioning


def desk(house: House) -> ControlClient:
    """Return a client of the daemon's parameters, once it answers."""
    house.ask()
    return ControlClient(house.state / "control", interface=INTERFACE)


def shown(house: House) -> dict[str, Any]:
    return desk(house).call("Show")


def wait_sequence(house: House, sequence: int) -> dict[str, Any]:
    """Wait until the record of that number is in force; return what is shown then."""
    found: dict[str, Any] = {}

    def in_force() -> bool:
        with contextlib.suppress(AbsentError):  # it starts anew
            found.update(shown(house))
        return found.get("sequence") == sequence

    until(in_force, f"parameter record {sequence} in force")
    return found


def commission(house: House, owner: SigningKey = OWNER) -> dict[str, Any]:
    """Commission a meter whose daemon runs; return what is shown once its parameters are signed."""
    before = shown(house)
    reply = desk(house).call("Commission", record=RECORD.hex(), owner=bytes(owner.verify_key).hex())
    assert reply["sequence"] == before["sequence"] + 1
    return wait_sequence(house, reply["sequence"])


def command(told: dict[str, Any], changes: dict[str, str], grant: bytes = b"") -> Command:
    """Return a command that follows what is shown."""
    return Command(
        bytes.fromhex(told["genesis"]),
        told["meter"],
        told["sequence"] + 1,
        bytes.fromhex(told["record"]),
        tuple((key, told["settings"].get(key, ""), changes[key]) for key in sorted(changes)),
        grant,
    )


def grant(
    genesis: bytes, *, first_s: int = 0, last_s: int = 2**40, owner: SigningKey = OWNER
) -> bytes:
    return sign_grant(Grant(genesis, bytes(JO.verify_key), "jo", first_s, last_s), owner)


def signed(what: Command, key: SigningKey = OWNER) -> str:
    return sign_command(what, key).hex()
