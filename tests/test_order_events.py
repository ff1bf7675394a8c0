"""Row E1: an order that is brought is one event, and the key that it puts in force another."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from meterd.authority.certificate import spell_order
from meterd.config import load
from meterd.device.clock import ScaledClock
from meterd.device.mailbox import INBOX, Mailbox
from meterd.device.systemd import Manager
from meterd.meter import Meter
from tests.authority.examples import GENESIS, HOUSE, ROTATE, SHORTER, key, ordered, public, sealed
from tests.daemon_kit import CONFIG

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.ledger.event import Event

AFTER = ordered(SHORTER, ROTATE)
SPELT = [
    spell_order(sealed(order), proof)
    for order, (_, proof) in zip(AFTER.orders, AFTER.certified, strict=True)
]


def meter_of(folder: Path) -> Meter:
    """Return the meter of a house in a street of four."""
    state, config = folder / "account", folder / "meterd.toml"
    for stream in ("samples", "events", "blocks"):
        (state / stream).mkdir(parents=True)
    (state / "genesis.cbor").write_bytes(GENESIS.encode())
    (state / "seal.key").write_text(bytes(key(f"{HOUSE} seals")).hex() + "\n")
    (state / "seal.key").chmod(0o600)
    text = CONFIG.format(
        interval_s=GENESIS.interval_s,
        port=folder / "board",
        layout="rpict3v1",
        polling_ms=5000,
        trust="always",
        commit_s=30,
        reserve_mb=1,
    )
    network = f'[network]\nbrokers = ["mqtt://127.0.0.1:1"]\nline = "{folder / "line"}"\n'
    config.write_text(text.replace("kitchen-12", HOUSE) + network)
    return Meter(
        state,
        load(config),
        GENESIS,
        clock=ScaledClock(1, 1_795_305_600_000),
        manager=Manager({}),
        logger=logging.getLogger("meterd-test-orders"),
    )


def test_e1_an_order_is_one_event_and_the_key_that_it_puts_in_force_another(tmp_path: Path) -> None:
    meter = meter_of(tmp_path)
    told: list[Event] = []
    meter.book.told = told.append
    inbox = Mailbox(tmp_path / "line" / INBOX)
    for _ in range(2):  # it comes again, as letters do
        for number, spelt in enumerate(SPELT, start=1):
            inbox.put(f"order-{number:012d}", spelt)
            meter._hearing.rung = True
            asyncio.run(meter._hearing.turn())
    assert [event.kind for event in told if event.kind in {"order", "key_rotated"}] == [
        "order",
        "order",
        "key_rotated",
    ]
    [rotated] = (event for event in told if event.kind == "key_rotated")
    assert rotated.details == (
        ("old", public(f"{HOUSE} seals")),
        ("new", public(f"{HOUSE} seals, 2")),
    )
