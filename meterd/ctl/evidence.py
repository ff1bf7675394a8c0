"""`meterctl evidence`: who is proved to have signed two histories, and the proof to hand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.authority.certificate import verify_evidence
from meterd.ctl.node import add_node, open_node
from meterd.ctl.options import add_json
from meterd.ctl.show import count, note
from meterd.device.files import write_new
from meterd.errors import BlockRejectedError, StorageError
from meterd.ledger.encoding import digest

if TYPE_CHECKING:
    import argparse

    from meterd.authority.certificate import Accused
    from meterd.ctl.node import KnownNode

ID_LETTERS = 16  # of the hash, in a file's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl evidence`."""
    parser.epilog = """\
Each proof is verified before it is shown, and stands by itself: whoever has the
network's genesis can check it with `meterctl verify FILE --genesis GENESIS`.

exit status: 0 whether or not somebody is accused, 74 a kept proof does not hold

examples:
  meterctl evidence
  meterctl evidence --json
  meterctl evidence -o ./for-the-regulator
"""
    add_node(parser)
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="write each proof into this folder"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """List the evidence; returns the exit code."""
    with open_node(options) as node:
        node.need_store()
        proven, wrong = evidence_of(node)
    files = [_write(options.out, *each) for each in proven] if options.out else []
    if options.json:
        entries = [
            {
                "id": digest(evidence).hex(),
                **told(accused),
                "file": str(files[number]) if files else None,
            }
            for number, (evidence, accused) in enumerate(proven)
        ]
        print(json.dumps(entries))
    elif not proven:
        print("nobody is accused: no two histories have been seen")
    else:
        for number, (evidence, accused) in enumerate(proven):
            print(f"{words(accused)}\n    proof {digest(evidence).hex()[:ID_LETTERS]}, verified")
            if files:
                print(f"    wrote {files[number]}")
    if wrong:
        raise StorageError(
            f"{count(len(wrong), 'kept proof')} of the store convicts nobody: {wrong[0]}",
            hint="the store may be damaged; peers have its content once more",
        )
    return 0


def evidence_of(node: KnownNode) -> tuple[list[tuple[bytes, Accused]], list[str]]:
    """Return what is kept and holds, with whom it convicts; and why the rest does not hold."""
    proven, wrong = [], []
    for evidence in node.snapshot.evidence:
        try:
            proven.append((evidence, verify_evidence(evidence, node.roster)))
        except BlockRejectedError as error:
            wrong.append(str(error))
    proven.sort(key=lambda each: (each[1].role, each[1].name, each[1].height))
    return proven, wrong


def accusation(name: str, role: str, height: int) -> str:
    """Return in words what somebody did, as far as it is known without the chain."""
    if role == "authority":
        return f"{name} attested two histories of a chain, from block {height} on"
    return f"{name} sealed two {'orders' if role == 'distributor' else 'blocks'} {height}"


def words(accused: Accused) -> str:
    """Return in words whom evidence convicts, and of what.

    >>> from meterd.authority.certificate import Accused
    >>> words(Accused("house-4", "meter", ("house-4", 1), 17))
    'house-4 sealed two blocks 17 (chain 1)'
    >>> words(Accused("house-2", "authority", ("house-4", 1), 17))
    'house-2, an authority, attested two histories of house-4 (1), from block 17 on'
    """
    chain = accused.chain
    if accused.role == "authority":
        return (
            f"{accused.name}, an authority, attested two histories of {chain[0]} ({chain[1]}),"
            f" from block {accused.height} on"
        )
    return f"{accusation(accused.name, accused.role, accused.height)} (chain {chain[1]})"


def told(accused: Accused) -> dict[str, Any]:
    """Return whom evidence convicts, for programs."""
    return {
        "name": accused.name,
        "role": accused.role,
        "chain": accused.chain[0],
        "incarnation": accused.chain[1],
        "height": accused.height,
        "words": words(accused),
    }


def _write(folder: Path, evidence: bytes, accused: Accused) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"evidence-{accused.name}-{digest(evidence).hex()[:ID_LETTERS]}.cbor"
    try:
        write_new(path, evidence)
    except FileExistsError:
        if path.read_bytes() != evidence:
            raise
        note(f"{path} is there already")
    return path
