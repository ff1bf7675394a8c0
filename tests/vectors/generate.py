"""Writes the vectors: `python -m tests.vectors.generate`. README.md has their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cbor2
from nacl.signing import SigningKey

from meterd.ledger.audit import fingerprint_of
from meterd.ledger.encoding import decode, encode, key_id, seal, take_apart
from meterd.ledger.parameters import Command, Grant, sign_command, sign_grant
from meterd.ledger.segment import SampleHeader, stored_header
from meterd.ledger.verdict import Known
from tests.ledger.examples import changed
from tests.vectors import street
from tests.vectors.account import GENESIS, KEY, NINE_S, PARAMETERS, STRANGER
from tests.vectors.tamperings import CLEAN, Tampering, flipped, tamperings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.ledger.block import Block

FOLDER = Path(__file__).parent
Case: TypeAlias = "dict[str, Any]"


def messages() -> Iterator[Case]:
    """What a decoder of each kind says of bytes."""
    blocks = [take_apart(stored.frame.body).payload for stored in CLEAN.frames("blocks")]
    block, header = blocks[0], CLEAN.header("samples", 2)[0].encode()
    event = CLEAN.frames("events")[0].frame.body
    good = [
        ("genesis", "genesis", GENESIS.encode()),
        ("parameters", "parameters", PARAMETERS.encode()),
        ("first block", "block", block),
        ("gap block", "block", blocks[2]),
        ("event", "event", event),
        ("header of samples", "samples-header", header),
        ("header of events", "events-header", CLEAN.header("events", 1)[0].encode()),
        ("header of blocks", "blocks-header", CLEAN.header("blocks", 2)[0].encode()),
    ]
    for name, kind, data in good:
        yield {"name": name, "kind": kind, "bytes": data.hex(), "verdict": "good"}
    bad: list[tuple[str, str, bytes]] = [
        ("a trailing byte", "block", block + b"\0"),
        ("a missing byte", "block", block[:-1]),
        ("nothing", "block", b""),
        ("flags in two bytes", "block", block[:-1] + b"\x18" + block[-1:]),
        ("an array without a length", "block", b"\x9f" + block[1:] + b"\xff"),
        ("a length in two bytes", "block", b"\x98\x0f" + block[1:]),
        ("a negative number", "block", block[:-1] + b"\x20"),
        ("a float", "block", block[:-1] + b"\xf9\x00\x00"),
        ("null", "block", block[:-1] + b"\xf6"),
        ("a tag", "block", block[:-1] + b"\xc1" + block[-1:]),
        ("a map", "block", cbor2.dumps({0: block})),
        ("a map with a key twice", "block", bytes.fromhex("a201020103")),
        ("a tagged block", "block", b"\xd9\xd9\xf7" + block),
        ("too deep", "block", b"\x81" * 40 + b"\x00"),
        ("a genesis where a block is due", "block", GENESIS.encode()),
        ("a block where a genesis is due", "genesis", block),
        ("an event where a record is due", "parameters", event),
    ]
    faults: list[tuple[str, str, bytes, tuple[int, ...], object]] = [
        ("a new version", "block", block, (0,), "meterd/block/v2"),
        ("a short hash", "block", block, (5,), bytes(31)),
        ("an unknown clock status", "block", block, (9, 0), "X"),
        ("a register of 64 bits", "block", block, (13, 0, 3), b"\x80" + bytes(7)),
        ("a register of 9 bytes", "block", block, (13, 0, 3), bytes(9)),
        ("no register", "block", block, (13,), []),
        ("an interval that does not divide a day", "genesis", GENESIS.encode(), (2,), 7),
        ("a name in capitals", "genesis", GENESIS.encode(), (6, 0, 0), "Kitchen"),
        ("an unknown role", "genesis", GENESIS.encode(), (5, 0, 1), "owner"),
        ("a setting that is a number", "parameters", PARAMETERS.encode(), (7, 0, 1), 5),
        ("a detail without a value", "event", event, (4, 0), ["run"]),
        ("a row of 41 bytes", "samples-header", header, (12,), 41),
    ]
    bad += [(n, kind, encode(changed(decode(d), place, new))) for n, kind, d, place, new in faults]
    for name, kind, data in bad:
        yield {"name": name, "kind": kind, "bytes": data.hex(), "verdict": "bad"}
    yield from street.order_messages()


def cose(
    payload: bytes,
    key: SigningKey,
    protected: dict[int, object],
    unprotected: dict[int, object],
    genesis: bytes,
) -> bytes:
    head = cbor2.dumps(protected)
    signature = key.sign(cbor2.dumps(["Signature1", head, genesis, payload])).signature
    return cbor2.dumps(cbor2.CBORTag(18, [head, unprotected, payload, signature]))


def seals() -> Iterator[Case]:
    """What a verifier of seals says, given key and genesis hash."""
    payload = take_apart(CLEAN.frames("blocks")[0].frame.body).payload
    here, kid = GENESIS.hash, key_id(bytes(KEY.verify_key))
    ours = seal(payload, KEY, here)
    pinned: dict[int, object] = {1: -19, 4: kid}
    strange: dict[int, object] = {1: -19, 4: key_id(bytes(STRANGER.verify_key))}
    cases = [
        ("a block's", ours, "good"),
        ("of one byte", seal(b"x", KEY, here), "good"),
        ("of nothing", seal(b"", KEY, here), "good"),
        ("a stranger's", seal(payload, STRANGER, here), "bad"),
        ("a stranger's under this kid", cose(payload, STRANGER, pinned, {}, here), "bad"),
        ("this key's under another kid", cose(payload, KEY, strange, {}, here), "bad"),
        ("for another network", seal(payload, KEY, bytes(32)), "bad"),
        ("without external_aad", cose(payload, KEY, pinned, {}, b""), "bad"),
        ("alg -8", cose(payload, KEY, {1: -8, 4: kid}, {}, here), "bad"),
        ("no alg", cose(payload, KEY, {4: kid}, {}, here), "bad"),
        ("no kid", cose(payload, KEY, {1: -19}, {}, here), "bad"),
        ("crit", cose(payload, KEY, {1: -19, 2: [99], 4: kid}, {}, here), "bad"),
        ("kid before alg", cose(payload, KEY, {4: kid, 1: -19}, {}, here), "bad"),
        ("kid unprotected too", cose(payload, KEY, pinned, {4: kid}, here), "bad"),
        ("no tag", ours[1:], "bad"),
        ("a tag in two bytes", b"\xd8\x12" + ours[1:], "bad"),
        ("a trailing byte", ours + b"\0", "bad"),
        ("a missing byte", ours[:-1], "bad"),
        ("an edited payload", ours.replace(b"kitchen-12", b"kitchen-13"), "bad"),
        ("an edited signature", ours[:-1] + bytes([ours[-1] ^ 1]), "bad"),
    ]
    for name, message, verdict in cases:
        yield {
            "name": name,
            "bytes": message.hex(),
            "key": bytes(KEY.verify_key).hex(),
            "genesis_hash": here.hex(),
            "verdict": verdict,
        }


def chains() -> Iterator[Case]:
    """What a verifier of a chain says: each case breaks one rule under valid seals."""
    first, second, gap, last = CLEAN.blocks

    def resealed(*blocks: Block) -> list[bytes]:
        result, previous = [], GENESIS.hash
        for block in blocks:
            linked = block._replace(previous=previous)
            previous = linked.hash
            result.append(seal(linked.encode(), KEY, GENESIS.hash))
        return result

    lower = second.energy[0]._replace(last_uj=second.energy[0].first_uj - 1)
    early = second.energy[0]._replace(first_uj=0)
    relabelled = second.energy[0]._replace(kind=1)
    twice = (second.energy[0], *second.energy)
    new = second.energy[0]._replace(obis=bytes((1, 1, 1, 8, 0, 255)), first_uj=0, last_uj=7)
    clock = second.clock
    cases = [
        ("four blocks", resealed(first, second, gap, last), 4),
        ("none", [], 0),
        ("a new register", resealed(first, second._replace(energy=(*second.energy, new))), 2),
        ("a height repeated", resealed(first, second._replace(height=1)), 1),
        ("a height skipped", resealed(first, second._replace(height=3)), 1),
        ("another meter", resealed(first, second._replace(meter="cellar")), 1),
        ("another incarnation", resealed(first, second._replace(incarnation=2)), 1),
        ("another genesis", resealed(first, second._replace(genesis=bytes(32))), 1),
        ("another order 0", resealed(first, second._replace(order=(0, bytes(32)))), 1),
        ("fewer events", resealed(first, second._replace(events=2)), 1),
        ("no length", resealed(first, second._replace(end_s=second.start_s)), 1),
        ("a hole in time", resealed(first, second._replace(start_s=second.start_s + 1)), 1),
        ("an overlap in time", resealed(first, second._replace(start_s=second.start_s - 1)), 1),
        ("an early end, not said", resealed(first, second._replace(flags=0)), 1),
        ("two intervals", resealed(first, second, gap._replace(end_s=NINE_S + 9000, flags=2)), 2),
        ("a gap not said", resealed(first, second, gap._replace(flags=0)), 2),
        ("an unknown flag", resealed(first, second._replace(flags=66)), 1),
        ("more measured than was", resealed(first, longer(second)), 1),
        ("a register lowered", resealed(first, second._replace(energy=(lower, new))), 1),
        ("energy repeated", resealed(first, second._replace(energy=(early, second.energy[1]))), 1),
        ("a register twice", resealed(first, second._replace(energy=twice)), 1),
        ("registers in disorder", resealed(first, second._replace(energy=second.energy[::-1])), 1),
        ("a register left out", resealed(first, second._replace(energy=second.energy[:1])), 1),
        (
            "a register relabelled",
            resealed(first, second._replace(energy=(relabelled, second.energy[1]))),
            1,
        ),
        (
            "a block left out",
            resealed(first, second, gap, last)[:1] + resealed(first, second, gap)[2:],
            1,
        ),
        ("a stranger's block", [seal(first.encode(), STRANGER, GENESIS.hash)], 0),
    ]
    assert clock.status == "S"
    for name, blocks, holds in cases:
        yield {
            "name": name,
            "genesis": GENESIS.encode().hex(),
            "blocks": [block.hex() for block in blocks],
            "holds": holds,
            "verdict": "good" if holds == len(blocks) else "bad",
        }


def longer(block: Block) -> Block:
    return block._replace(clock=block.clock._replace(measured_ms=605_001))


def segments() -> Iterator[Case]:
    """How far a segment's records hold."""
    for stream, number in (("events", 1), ("blocks", 2), ("samples", 1)):
        data = CLEAN.segment(stream, number)
        header, begin = CLEAN.header(stream, number)
        records = [(b, e) for segment, b, e in CLEAN.records(stream) if segment == number]
        (second, third), last = records[1], records[-1]
        changes = [
            ("whole", data),
            ("without a record", data[:begin]),
            ("cut in the last record", data[: last[1] - 1]),
            ("cut behind the first record", data[:second]),
            ("a byte of the second record changed", flipped(data, second + 9)),
            ("a byte of the second link changed", flipped(data, third - 1)),
            ("the second record twice", data[:third] + data[second:third] + data[third:]),
            ("the second record left out", data[:second] + data[third:]),
            ("a byte more", data + b"\0"),
            ("a byte of the header changed", flipped(data, 3)),
            ("a byte of the header's check changed", flipped(data, begin - 1)),
            ("cut in the header", data[: begin - 1]),
            ("empty", b""),
            ("a header of another stream", stored_header(encode(["meterd/other/v1"]))),
        ]
        for name, changed_data in changes:
            at = first_difference(data, changed_data)
            ends = [begin, *(end for _, end in records)]
            end = max((end for end in ends if end <= at), default=None) if at >= begin else None
            if name == "the second record twice":
                end = third
            yield {
                "name": f"{stream}: {name}",
                "stream": stream,
                "bytes": changed_data.hex(),
                "end": end,
                "records": sum(end is not None and e <= end for _, e in records),
                "verdict": "good" if end == len(changed_data) else "bad",
            }
        if isinstance(header, SampleHeader):
            rows = data[begin:]
            yield {
                "name": "samples: fingerprint of all rows",
                "stream": stream,
                "bytes": data.hex(),
                "end": len(data),
                "records": len(records),
                "fingerprint": fingerprint_of([(header, 0, rows)]).hex(),
                "verdict": "good",
            }


def first_difference(clean: bytes, other: bytes) -> int:
    same = (i for i, (a, b) in enumerate(zip(clean, other, strict=False)) if a != b)
    return next(same, min(len(clean), len(other)))


def accounts() -> Iterator[Case]:
    """What a verifier says of a whole account; each but the first differs from it in one thing."""
    starts = {block.height: block.start_s for block in CLEAN.blocks}
    starts[len(starts) + 1] = CLEAN.blocks[-1].end_s
    for tampering in (Tampering("clean", CLEAN), *tamperings()):
        name, stored, bad, tail, known, verdict = tampering
        clean = {} if name == "clean" else CLEAN.streams
        segments: dict[str, str | None] = {}
        for stream, parts in stored.streams.items():
            before = clean.get(stream, {})
            for number in sorted({*before, *parts}):
                data = parts.get(number)
                if data != before.get(number):
                    segments[f"{stream}/{number}"] = None if data is None else data.hex()
        case: Case = {"name": name, "segments": segments, "known": known or {}}
        if name == "clean" or stored.genesis != CLEAN.genesis:
            case["genesis"] = stored.genesis.hex()
        case["verdict"] = verdict or ("bad" if bad else "good")
        case["first_bad"] = None
        if bad:
            stream, height = bad
            case["first_bad"] = {"stream": stream, "height": height}
            if bad != ("blocks", 1):  # its start is in its own frame alone
                case["first_bad"]["start_s"] = height and starts[height]
        case["tail"] = tail and dict(zip(("stream", "offset", "bytes"), tail, strict=True))
        yield case


def commands() -> Iterator[Case]:
    """What a meter says of a command, given its parameter record, the owner's key and the time."""
    record, at_s = PARAMETERS, NINE_S
    key, value = record.settings[0]
    good = Command(
        record.genesis, record.meter, record.sequence + 1, record.hash, ((key, value, "7"),)
    )
    technician = SigningKey(b"technician".ljust(32, b"."))
    grant = Grant(record.genesis, bytes(technician.verify_key), "jo", at_s - 60, at_s + 60)
    granted = sign_grant(grant, KEY)
    by_jo = good._replace(grant=granted)
    late = good._replace(grant=sign_grant(grant._replace(not_after_s=at_s - 1), KEY))
    forged = good._replace(grant=sign_grant(grant, STRANGER))
    cases: list[tuple[str, bytes, int | None, str]] = [
        ("the owner's", sign_command(good, KEY), at_s, "owner"),
        ("the owner's, the time not known", sign_command(good, KEY), None, "owner"),
        ("a technician's", sign_command(by_jo, technician), at_s, "jo"),
        ("a technician's, the time not known", sign_command(by_jo, technician), None, ""),
        ("a technician's, too late", sign_command(late, technician), at_s, ""),
        ("a technician's without a grant", sign_command(good, technician), at_s, ""),
        ("a technician's, granted by a stranger", sign_command(forged, technician), at_s, ""),
        ("a stranger's with another's grant", sign_command(by_jo, STRANGER), at_s, ""),
        ("unsigned", good.encode(), at_s, ""),
        ("a flipped bit", flipped(sign_command(good, KEY), 200), at_s, ""),
        ("used already", sign_command(good._replace(sequence=record.sequence), KEY), at_s, ""),
        ("too early", sign_command(good._replace(sequence=record.sequence + 2), KEY), at_s, ""),
        ("another meter's", sign_command(good._replace(meter="cellar-3"), KEY), at_s, ""),
        ("another network's", sign_command(good._replace(genesis=bytes(32)), KEY), at_s, ""),
        ("another record's", sign_command(good._replace(record=bytes(32)), KEY), at_s, ""),
        (
            "of another old value",
            sign_command(good._replace(changes=((key, "8", "7"),)), KEY),
            at_s,
            "",
        ),
        (
            "that says who signed",
            sign_command(good._replace(changes=(("signed.by", "", "jo"),)), KEY),
            at_s,
            "",
        ),
    ]
    for name, message, now_s, by in cases:
        yield {
            "name": name,
            "parameters": record.encode().hex(),
            "key": bytes(KEY.verify_key).hex(),
            "at_s": now_s,
            "bytes": message.hex(),
            "by": by,
        }


def known_of(case: Case) -> Known:
    """Return what a case says is known from elsewhere."""
    head = case.get("head")
    return Known(
        key=bytes.fromhex(case.get("key", "")),
        head=(head[0], bytes.fromhex(head[1])) if head else None,
    )


FILES = {
    "messages.json": messages,
    "seals.json": seals,
    "chains.json": chains,
    "segments.json": segments,
    "accounts.json": accounts,
    "commands.json": commands,
    "orders.json": street.order_chains,
    "batches.json": street.batches,
    "proofs.json": street.proofs,
    "certificates.json": street.certificates,
    "receipts.json": street.receipts,
    "evidence.json": street.evidence,
    "said.json": street.said,
    "alarms.json": street.alarms,
}


def generated(name: str) -> str:
    """Return what a file of vectors has to contain."""
    return json.dumps(list(FILES[name]()), indent=1) + "\n"


if __name__ == "__main__":
    for name in FILES:
        (FOLDER / name).write_text(generated(name))
        print(name)
