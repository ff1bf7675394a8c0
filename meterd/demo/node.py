"""A node of the demo: its files and settings, and how its network is founded.

It is founded as any other: each node makes its keys and enrols, what they wrote becomes one
genesis, and each joins with that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meterd.config import load
from meterd.enrolment import Enrolment, enrolment_text
from meterd.errors import MeterdError
from meterd.founding import found_network
from meterd.init import enrol_keys, fuse_ma, join_network, mains_clamps, nominal_mv
from meterd.network_file import NetworkFile

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection
    from pathlib import Path

    from meterd.config import Settings
    from meterd.demo.houses import House
    from meterd.ledger.account import Genesis

POLLING_MS = 5000
INTERVAL_S = 1800
HOUSE_CONFIG = """[meter]
name = "{name}"
interval_s = {interval_s}

[board]
port = "{port}"
layout = "rpict3v1"
polling_ms = {polling_ms}

[[clamp]]
name = "mains"
role = "mains"

[clock]
trust = "always"

[log]
reserve_mb = 1

[network]
brokers = ["mqtt://127.0.0.1:{gate}"]
"""
NODE_CONFIG = """[network]
name = "{name}"
brokers = ["mqtt://127.0.0.1:{gate}"]

[clock]
trust = "always"
"""


@dataclass(slots=True, kw_only=True)
class Node:
    """One node: its files, and its processes while they run.

    Attributes:
        house: What it meters; None for the distributor.
        state: Folder of its account, keys and store.
        gate: Port of its way to the broker.
        killed: The demo ended its processes, and has not started them again.
    """

    name: str
    house: House | None
    state: Path
    gate: int = 0
    board: subprocess.Popen[bytes] | None = None
    meter: subprocess.Popen[bytes] | None = None
    peer: subprocess.Popen[bytes] | None = None
    killed: bool = False

    @property
    def config(self) -> Path:
        """Its settings."""
        return self.state.with_suffix(".toml")

    @property
    def port(self) -> Path:
        """The simulated board's pseudo terminal."""
        return self.state.with_suffix(".board")

    @property
    def log(self) -> Path:
        """What its processes say."""
        return self.state.with_suffix(".log")


def found_street(nodes: Collection[Node], network: str) -> Genesis:
    """Write the settings of `nodes`, let each enrol, found `network` of them, and let each join.

    Raises:
        ConfigError: There is an account already where one is to be made.
        MeterdError: What they enrolled with founds no network.
    """
    settings = {node.name: _configure(node) for node in nodes}
    enrolments = [
        NetworkFile(node.name, _enrol(node, network, settings[node.name])) for node in nodes
    ]
    given = {"name": network, "interval_s": INTERVAL_S, "zone": "UTC", "currency": "EUR"}
    genesis, mistakes = found_network(None, enrolments, given)
    if genesis is None:
        raise MeterdError(f"the demo's network cannot be founded: {mistakes[0]}")
    for node in nodes:
        join_network(node.state, genesis, settings[node.name])
    return genesis


def _configure(node: Node) -> Settings | None:
    if node.house is None:
        node.config.write_text(NODE_CONFIG.format(name=node.name, gate=node.gate))
        return None
    text = HOUSE_CONFIG.format(
        name=node.name,
        interval_s=INTERVAL_S,
        port=node.port,
        polling_ms=POLLING_MS,
        gate=node.gate,
    )
    node.config.write_text(text)
    return load(node.config)


def _enrol(node: Node, network: str, settings: Settings | None) -> str:
    """Make the node's keys; return its enrolment file."""
    sealing, voting = enrol_keys(node.state, lambda: os.urandom(32))
    enrolment = Enrolment(
        network,
        node.name,
        "meter" if settings else "distributor",
        bytes(sealing.verify_key),
        bytes(voting.verify_key),
        1 if settings else 0,
        fuse_ma(settings) if settings else 0,
        nominal_mv(settings) if settings else 0,
        mains_clamps(settings) if settings else 0,
    )
    return enrolment_text(enrolment, sealing, voting)
