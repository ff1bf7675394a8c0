"""Enrolment files, as an order takes them: believed where both keys have signed what is listed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.enrolment import Enrolment, proven
from meterd.errors import ConfigError
from meterd.founding import enrolment_of
from meterd.ledger.encoding import SIGNATURE_BYTES
from meterd.network_file import TEXT_BYTES_MAX, NetworkFile

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.authority.roster import Roster
    from meterd.network_file import Entry

PROOFS = ("proof_sealing", "proof_voting")


def read_tables(path: Path, *, listing: bool = False) -> NetworkFile:
    """Return a file of [[node]] and [[meter]] tables, without mistakes.

    Args:
        path: The file.
        listing: Whether it is a list of nodes, which need no proofs.

    Raises:
        ConfigError: It has a mistake; the first is told.
    """
    with path.open("rb") as file:
        data = file.read(TEXT_BYTES_MAX + 1)
    try:
        read = NetworkFile(str(path), data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", hint="is it an enrolment file?") from error
    mistakes = [
        found
        for found in read.mistakes()
        if not (
            listing and found.mistake.key.endswith(PROOFS) and found.mistake.problem == "is missing"
        )
    ]
    for found in mistakes[:1]:
        raise ConfigError(str(found), hint=found.mistake.hint)
    return read


def read_enrolment(path: Path, roster: Roster) -> Enrolment:
    """Return the enrolment in a file, proven by both of its keys.

    Raises:
        ConfigError: It is not one enrolment, another network's, or its keys did not sign it.
    """
    read = read_tables(path)
    if len(read.nodes) != 1 or len(read.meters) > 1:
        raise ConfigError(
            f"{path}: expected the one node of an enrolment file, got {len(read.nodes)}",
            hint="give the file that `meterctl network enrol` wrote on the device",
        )
    network = read.network.get("name")
    if network != roster.network:
        raise ConfigError(
            f"{path}: expected an enrolment in {roster.network}, got {network}",
            hint=f"enrol again on the device, with --network {roster.network}",
        )
    return proven_entry(read.nodes[0], read.meters, roster)


def proven_entry(node: Entry, meters: list[Entry], roster: Roster) -> Enrolment:
    """Return the enrolment that a node's entry lists, proven by both of its keys.

    Args:
        node: The entry.
        meters: Those of the same file.
        roster: Of the network that it has to be for.

    Raises:
        ConfigError: Its keys did not sign it.
    """
    values = node.values
    rated = next((meter for meter in meters if meter.values["name"] == values["name"]), None)
    enrolment = enrolment_of(roster.network, node, rated)
    for use in ("sealing", "voting"):
        proof = values.get(f"proof_{use}", b"")
        key = values[f"{use}_key"]
        if len(proof) != SIGNATURE_BYTES or not proven(enrolment, key, proof):
            raise ConfigError(
                f"{node.where}: the {use} key of {values['name']} did not sign what is listed",
                hint="take the enrolment file as the device made it, or enrol again",
            )
    return enrolment


def read_metering(path: Path, roster: Roster) -> Enrolment:
    """Return the enrolment of a device that meters.

    Raises:
        ConfigError: As `read_enrolment`, or it meters nothing.
    """
    enrolment = read_enrolment(path, roster)
    if not enrolment.mains_clamps:
        raise ConfigError(
            f"{path}: {enrolment.name} meters nothing: there is no [[meter]] of it",
            hint="a node without a meter joins by `meterctl order roster --add FILE`",
        )
    return enrolment
