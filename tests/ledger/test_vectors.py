"""The committed vectors hold here as they have to hold in any other implementation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from nacl.signing import VerifyKey

from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.account import decode_genesis, decode_parameters
from meterd.ledger.audit import fingerprint_of
from meterd.ledger.block import decode_block
from meterd.ledger.chain import SealTask, open_chain, verify_seals
from meterd.ledger.encoding import take_apart, verify_seal
from meterd.ledger.event import decode_event
from meterd.ledger.order import decode_order
from meterd.ledger.parameters import CommandRefusedError, verify_command
from meterd.ledger.segment import (
    SampleHeader,
    find_damaged_row,
    read_header,
    stored_header,
    walk_frames,
)
from tests.ledger.memory import Stored
from tests.vectors.generate import FILES, FOLDER, generated, known_of

if TYPE_CHECKING:
    from collections.abc import Callable

Case = dict[str, Any]

DECODERS: dict[str, Callable[[bytes], object]] = {
    "genesis": decode_genesis,
    "parameters": decode_parameters,
    "block": decode_block,
    "event": decode_event,
    "order": decode_order,
    **{
        f"{stream}-header": lambda data, stream=stream: read_header(stored_header(data), stream)  # type: ignore[misc]
        for stream in ("samples", "events", "blocks")
    },
}


def cases(name: str) -> list[Case]:
    loaded: list[Case] = json.loads((FOLDER / name).read_text())
    return loaded


@pytest.mark.parametrize("name", FILES)
def test_the_generator_makes_the_committed_vectors(name: str) -> None:
    assert (FOLDER / name).read_text() == generated(name)


def test_messages() -> None:
    for case in cases("messages.json"):
        decode = DECODERS[case["kind"]]
        if case["verdict"] == "good":
            decode(bytes.fromhex(case["bytes"]))
            continue
        with pytest.raises(EncodingError):
            decode(bytes.fromhex(case["bytes"]))


def test_seals() -> None:
    for case in cases("seals.json"):
        key, genesis = VerifyKey(bytes.fromhex(case["key"])), bytes.fromhex(case["genesis_hash"])
        try:
            verify_seal(take_apart(bytes.fromhex(case["bytes"])), key, genesis)
            verdict = "good"
        except (EncodingError, BlockRejectedError):
            verdict = "bad"
        assert verdict == case["verdict"], case["name"]


def test_commands() -> None:
    for case in cases("commands.json"):
        held = decode_parameters(bytes.fromhex(case["parameters"]))
        key, message = bytes.fromhex(case["key"]), bytes.fromhex(case["bytes"])
        try:
            by = verify_command(message, held, key, case["at_s"]).by
        except CommandRefusedError:
            by = ""
        assert by == case["by"], case["name"]


def test_chains() -> None:
    for case in cases("chains.json"):
        genesis = decode_genesis(bytes.fromhex(case["genesis"]))
        chain = open_chain(genesis, genesis.meters[0].name)
        found = verify_seals(SealTask(chain, tuple(map(bytes.fromhex, case["blocks"]))))
        assert len(found.blocks) == case["holds"], case["name"]
        assert bool(found.reason) == (case["verdict"] == "bad"), case["name"]


def test_segments() -> None:
    for case in cases("segments.json"):
        data, stream = bytes.fromhex(case["bytes"]), case["stream"]
        try:
            header, begin = read_header(data, stream)
        except EncodingError:
            assert (case["end"], case["records"]) == (None, 0), case["name"]
            continue
        if isinstance(header, SampleHeader):
            end, _ = find_damaged_row(data, header, len(data))
            records = (end - begin) // header.row_bytes
        else:
            walk = walk_frames(data, header)
            records = len(list(walk))
            end = walk.end
        assert (end, records) == (case["end"], case["records"]), case["name"]
        assert (end == len(data)) == (case["verdict"] == "good"), case["name"]
        if "fingerprint" in case:
            assert isinstance(header, SampleHeader)
            parts = [(header, 0, data[begin:])]
            assert fingerprint_of(parts).hex() == case["fingerprint"]


def test_accounts() -> None:
    clean, *others = cases("accounts.json")
    for case in (clean, *others):
        genesis = str(case.get("genesis", clean["genesis"]))
        streams: dict[str, dict[int, bytes]] = {"samples": {}, "events": {}, "blocks": {}}
        for place, data in {**clean["segments"], **case["segments"]}.items():
            stream, number = place.split("/")
            if data is not None:
                streams[stream][int(number)] = bytes.fromhex(data)
        ordered = {stream: dict(sorted(parts.items())) for stream, parts in streams.items()}
        verdict = Stored(bytes.fromhex(genesis), ordered).judge(known_of(case["known"]))
        bad, tail = verdict.first_bad, verdict.tail
        said = {
            "verdict": verdict.verdict,
            "first_bad": bad and {key: bad._asdict()[key] for key in case["first_bad"] or ()},
            "tail": tail
            and {"stream": tail.stream, "offset": tail.offset, "bytes": len(tail.data)},
        }
        if bad:  # a tail beside it is not part of the vectors
            said["tail"] = None
        assert said == {key: case[key] for key in said}, case["name"]
