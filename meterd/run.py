"""`meterd run`: checks the software, takes the account's lock, and lets the meter run."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.config import load
from meterd.device.card import check_writable, lock
from meterd.device.clock import BUILD_S, Clock, ScaledClock, SystemClock
from meterd.device.failures import note_failure, noted
from meterd.device.rebase import finish
from meterd.device.secret import find_device_key
from meterd.device.systemd import Manager, journal_logger, log_event
from meterd.errors import AccountRefusedError, ConfigError, LedgerDamagedError
from meterd.init import read_genesis
from meterd.meter import Meter
from meterd.software import SoftwareChangedError, check_installed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

STATE_DEFAULT = Path("/var/lib/meterd")
DEMO_PREFIX = "demo"  # only in networks named so may the clock run scaled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterd run`."""
    parser.epilog = """examples:
  meterd run --config /etc/meterd/meterd.toml
  meterd run --config meterd.toml --state ./account
"""
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="settings")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path(os.environ.get("STATE_DIRECTORY") or STATE_DEFAULT),
        metavar="DIR",
        help="the account (default: $STATE_DIRECTORY, else /var/lib/meterd)",
    )
    parser.add_argument(
        "--with-peer",
        action="store_true",
        help="start the peer process too, for machines without systemd",
    )
    parser.add_argument(
        "--speed", type=int, default=1, metavar="N", help="run the clock N times as fast (demo)"
    )
    parser.add_argument(
        "--epoch-ms", type=int, metavar="MS", help="where a clock that runs faster starts (demo)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the meter until it is stopped; returns the exit code."""
    logger = journal_logger()
    with noted(arguments.state), _peer(arguments, logger):
        inside: int | None = 0
        while (inside := _run_once(arguments, logger, inside or 0)) is not None:
            log_event(logger, logging.INFO, "starts_anew")
    sys.stderr.flush()
    return 0


def _run_once(arguments: argparse.Namespace, logger: logging.Logger, inside: int) -> int | None:
    """Run the meter until it is stopped; return None, or it must start anew.

    It must where its account has begun anew, or its parameters have been changed. Then it is said
    how many technicians' sessions go on: one that changes parameters ends behind the start that it
    brings about.
    """
    try:
        installed = check_installed()
    except SoftwareChangedError as changed:
        try:
            _open_account(arguments, logger)[0].refuse(changed)
        except Exception as error:
            note_failure(arguments.state, changed, int(time.time()))
            raise changed from error
        raise
    try:
        meter, held = _open_account(arguments, logger, inside)
    except LedgerDamagedError as error:
        raise AccountRefusedError(str(error), hint=error.hint) from error
    meter.begin(installed, sha256(arguments.config.read_bytes()).digest())
    log_event(
        logger,
        logging.INFO,
        "started",
        meter=meter.settings.meter.name,
        run=meter.book.run,
        height=meter.book.chain.head.height,
        software=meter.book.parameters.software_id.hex()[:16],
        installed=installed.state,
    )
    try:
        asyncio.run(meter.run())
    finally:
        os.close(held)
    return meter.access.inside if meter.starts_anew else None


@contextmanager
def _peer(arguments: argparse.Namespace, logger: logging.Logger) -> Iterator[None]:
    """Run the peer process beside this one, where that is asked for; without it we meter on."""
    if not arguments.with_peer:
        yield
        return
    from meterd.peer_keeper import PeerKeeper

    command = (sys.executable, "-m", "meterd", "peer", "--config", str(arguments.config))
    keeper = PeerKeeper((*command, "--state", str(arguments.state)), logger)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


def _open_account(
    arguments: argparse.Namespace, logger: logging.Logger, inside: int = 0
) -> tuple[Meter, int]:
    """Return the meter of the account, recovered, and the descriptor of its lock."""
    settings = load(arguments.config)
    state: Path = arguments.state
    genesis = read_genesis(state)
    epoch_ms: int | None = arguments.epoch_ms
    scaled = arguments.speed != 1 or epoch_ms is not None
    if scaled and not genesis.name.startswith(DEMO_PREFIX):
        raise ConfigError(
            f"a scaled clock is refused in network {genesis.name}: nobody is billed by it",
            hint=f"only in networks named {DEMO_PREFIX}… ; see `meterd demo`",
        )
    manager = Manager()
    clock: Clock = (
        ScaledClock(arguments.speed, BUILD_S * 1000 if epoch_ms is None else epoch_ms)
        if scaled
        else SystemClock(settings.clock.trust)
    )
    if scaled:
        settings = replace(settings, clock=replace(settings.clock, trust="always"))
    held = lock(state)
    check_writable(state)
    finish(state)
    meter = Meter(
        state,
        settings,
        genesis,
        clock=clock,
        manager=manager,
        logger=logger,
        device=find_device_key(),
        speed=arguments.speed,
        inside=inside,
    )
    return meter, held
