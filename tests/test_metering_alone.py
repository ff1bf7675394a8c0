"""Row S2: metering has no network, and nothing that the process with it says shifts a register."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

import grimp

from meterd.authority.certificate import seals_evidence, spell_order
from meterd.authority.messages import HeadHeld, Said, say
from meterd.authority.roster import found
from meterd.ctl.account import StoredAccount
from meterd.device.mailbox import INBOX, Mailbox
from meterd.ledger.block import decode_block
from meterd.ledger.encoding import seal, take_apart
from meterd.neighbours import Neighbours
from meterd.software import IRRELEVANT, PACKAGE, RELEVANT
from tests import street
from tests.authority.examples import ENROL, block, certificate, key, order, sealed
from tests.net import flipped
from tests.rig import MIDNIGHT_S, Rig

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


METERING = ("meterd.run", "meterd.meter", "meterd.neighbours", "meterd.bookkeeper")
NETWORK_MODULES = {
    *("meterd.peer", "meterd.device.broker", "meterd.device.store", "meterd.authority.gossip"),
    *("paho", "amqtt", "ssl", "http", "urllib", "sqlite3"),
}


def test_s2_nothing_that_metering_imports_now_or_later_has_a_network() -> None:
    """By the source, imports inside functions too. The peer process is started, not imported."""
    graph = grimp.build_graph("meterd", include_external_packages=True, cache_dir=None)
    assert graph.modules >= {"meterd.peer", "meterd.device.broker", "paho", "ssl"}
    for module in METERING:
        reached = graph.find_upstream_modules(module)
        assert len(reached) > 30
        assert not reached & NETWORK_MODULES, module
    assert "paho" in graph.find_upstream_modules("meterd.peer")  # the check can fail


def modules(patterns: Iterable[str]) -> set[str]:
    found = {path for pattern in patterns for path in PACKAGE.glob(pattern) if path.suffix == ".py"}
    names = (path.relative_to(PACKAGE.parent).with_suffix("").as_posix() for path in found)
    return {name.replace("/", ".") for name in names if not name.endswith("__init__")}


def test_s1_all_that_metering_imports_is_identified_or_said_to_be_irrelevant() -> None:
    """By the source: what was made a module of its own yesterday has not fallen out."""
    reached = grimp.build_graph("meterd", cache_dir=None).find_upstream_modules("meterd.run")
    identified = modules(RELEVANT) - modules(IRRELEVANT)
    assert {"meterd.bookkeeper", "meterd.device.log", "meterd.ledger.block"} <= reached
    assert reached | {"meterd.run"} == identified | (modules(IRRELEVANT) & reached)


def test_s2_a_metering_process_has_no_such_module() -> None:
    """Of what asyncio brings itself, `ssl` is one: nobody else asks for it."""
    script = (
        "import asyncio, sys; before = set(sys.modules); "
        f"import {', '.join(METERING)}; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert loaded >= set(METERING)
    harmless = {"urllib", "urllib.parse"}  # of pathlib
    assert not (loaded - harmless) & {*NETWORK_MODULES, "urllib.request", "http.client", "_ssl"}


def fill(inbox: Mailbox, draw: random.Random, kept: list[bytes]) -> None:
    """Write into a meter's inbox what a peer process in bad hands could think of."""
    genesis = street.genesis_of()
    fork = street.chain(genesis, street.HOUSE, 2)
    two = [seal(b.encode(), street.key(f"{street.HOUSE} seals"), genesis.hash) for b in fork]
    other = fork[0]._replace(fingerprint=bytes(range(32)))
    two.append(seal(other.encode(), street.key(f"{street.HOUSE} seals"), genesis.hash))
    own = street.chain(genesis, street.KITCHEN, 1)[0]
    stranger = seal(own._replace(height=len(kept) + 1).encode(), key("stranger"), genesis.hash)
    head = HeadHeld(1, (0, genesis.hash), street.KITCHEN, bytes(16), 1, 99, bytes(32))
    liar = street.key(f"{street.REGULATOR} votes")
    letters = [
        ("certificate", certificate(block()).encode()),
        ("order", spell_order(sealed(order(ENROL)), certificate(order(ENROL)))),
        ("answer", say(Said(street.REGULATOR, 1 << 40, head), liar, genesis.hash)),
        ("block", stranger),
        ("block", two[0]),
        ("evidence", seals_evidence(two[0], two[2])),  # it holds, and convicts another
        ("evidence", seals_evidence(two[0], two[0])),
        *(("block", old) for old in kept[-2:]),
        *(("evidence", seals_evidence(old, stranger)) for old in kept[-1:]),
    ]
    for kind in ("certificate", "order", "answer", "block", "evidence", "nonsense"):
        letters.append((kind, draw.randbytes(draw.randrange(3000))))
        _, real = draw.choice(letters[:7])
        letters.append((kind, flipped(real, draw.randrange(len(real) * 8))))
        letters.append((kind, real[: draw.randrange(len(real))]))
    draw.shuffle(letters)
    for number, (kind, data) in enumerate(letters):
        inbox.put(f"{kind}-{number:012d}", data)
    (inbox.folder / f"odd name {draw.randrange(9)}\x07").touch()
    (inbox.folder / f"folder-{draw.randrange(9)}").mkdir(exist_ok=True)
    link = inbox.folder / f"block-{draw.randrange(9)}99"
    if not link.is_symlink():
        link.symlink_to("/dev/zero")


def sealed_in(state: Path) -> list[bytes]:
    return [each.message for each in StoredAccount(state).blocks]


def lives(state: Path, *, hostile: bool) -> Rig:
    """Return a meter in a street of four that lived half an hour, with its side of the line."""
    state.mkdir()
    genesis = street.genesis_of()
    (state / "genesis.cbor").write_bytes(genesis.encode())
    for stream in ("samples", "events", "blocks"):
        (state / stream).mkdir()
    rig = Rig(state)
    rig.start(MIDNIGHT_S)
    line = Neighbours(
        found(genesis),
        rig.book.chain,
        state=state,
        line=state / "line",
        load=lambda first, last: sealed_in(state)[first - 1 : last],
    )
    inbox, draw = Mailbox(state / "line" / INBOX), random.Random(7)
    others = (street.HOUSE, street.OTHER_HOUSE, street.REGULATOR)
    line.turn(rig.boot_ms)
    head = HeadHeld(1, (0, genesis.hash), street.KITCHEN, line._search.nonce, 1, 0, genesis.hash)
    for number, name in enumerate(others):
        said = Said(name, 1 << 32, head)
        message = say(said, street.key(f"{name} votes"), genesis.hash)
        inbox.put(f"answer-{number:012d}", message)
    assert line.read(rig.boot_ms) == []
    assert line.may_seal(rig.boot_ms)
    kept: list[bytes] = []
    for _ in range(30):
        if hostile:
            fill(inbox, draw, kept)
        rig.rows(12)
        rig.commit()
        for taken in line.read(rig.boot_ms):
            rig.book.event("order", (("spelt", taken.spelt),))
            rig.book.obey(line.chain, line.order, line.changes)
        line.turn(rig.boot_ms)
        rig.book.raise_alarm("neighbours", line.waits, stands=bool(line.waits))
        if line.waits:
            rig.book.waiting = True
        before, kept = len(kept), sealed_in(state)
        line.sealed(rig.book.chain, list(enumerate(kept, start=1))[before:])
        if kept and not line.free:
            first = decode_block(take_apart(kept[0]).payload)
            proof = certificate(first, by=others, roster=found(genesis))
            inbox.put("certificate-900000000000", proof.encode())
    rig.stop()
    if hostile:
        assert set(line.refused) >= {"certificate", "order", "answer", "block", "evidence"}
        assert line.roster == found(genesis)
        assert not line.recovered
    return rig


def test_s2_a_hostile_peer_process_shifts_no_bit_of_what_is_sealed(tmp_path: Path) -> None:
    """Its inbox is full of nonsense, of what was forged, and of what holds but is another's."""
    quiet = lives(tmp_path / "quiet", hostile=False)
    borne = lives(tmp_path / "borne", hostile=True)
    assert len(quiet.blocks) >= 25
    assert not quiet.book.waiting
    assert borne.book.registers_uj() == quiet.book.registers_uj()
    for stream in ("samples", "events", "blocks"):
        one, other = (
            {path.name: path.read_bytes() for path in (rig.state / stream).iterdir()}
            for rig in (quiet, borne)
        )
        assert one == other, stream
