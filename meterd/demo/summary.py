"""What a demo came to: a stranger judges every account, and the street says what it certified."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.demo.street import DISTRIBUTOR, GENESIS_FILE, is_connected
from meterd.demo.watch import UJ_PER_WH, kwh
from meterd.device.archive import Known, verify

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.demo.faults import Fault
    from meterd.demo.houses import House
    from meterd.demo.node import Node
    from meterd.demo.street import Chain, Street
    from meterd.device.archive import Verdict

GRACE_S_MAX = 10.0  # for the last blocks to be certified: some ticks, and a peer tells every 2 s
LOOK_S = 0.1


class Played(NamedTuple):
    """A fault that was played, and what was done."""

    fault: Fault
    text: str


class Result(NamedTuple):
    """What a meter's account came to.

    Attributes:
        verdict: A stranger's, who has the genesis alone.
        chain: What the street holds of it.
    """

    node: Node
    verdict: Verdict
    chain: Chain

    def register_uj(self, group: int) -> int:
        """Return the register 1-0:group.8.0 as sealed last."""
        energies = self.verdict.head.energy if self.verdict.head else ()
        return next((energy.last_uj for energy in energies if energy.obis[2] == group), 0)


def judge(street: Street) -> list[Result]:
    """Verify every account, and wait a little until the street has certified what it can.

    The meters have ended, so that their accounts stand still; the peers still run.
    """
    known = Known(genesis=street.genesis.encode())
    verdicts = [(node, verify(node.state, known)) for node in street.houses]
    deadline = time.monotonic() + GRACE_S_MAX
    while True:
        peers = street.peers()
        results = [
            Result(node, verdict, street.chain(node.name, peers)) for node, verdict in verdicts
        ]
        open_yet = any(
            result.chain.certified_height < result.verdict.blocks
            for result in results
            if is_connected(peers.get(result.node.name)) and not result.chain.frozen_by
        )
        if not open_yet or time.monotonic() > deadline:
            return results
        time.sleep(LOOK_S)


class Summary:
    """All of it.

    Attributes:
        good: Every account verifies; and, where no fault was played, every sealed block but
            possibly the last of each meter is certified.
    """

    def __init__(
        self,
        street: Street,
        houses: tuple[House, ...],
        *,
        speed: int,
        results: list[Result],
        evidence: dict[tuple[str, str, int], set[str]],
        played: list[Played],
    ) -> None:
        """Sum up `results`."""
        self._street, self._houses, self._speed = street, houses, speed
        self._results, self._evidence, self._played = results, evidence, played
        self.good = all(result.verdict.verdict == "good" for result in results) and (
            bool(played)
            or all(result.chain.certified_height >= result.verdict.blocks - 1 for result in results)
        )

    def spell(self, seconds: float, dropped: dict[str, int]) -> dict[str, Any]:
        """Return it for scripts."""
        return {
            "meters": [self._meter(result) for result in self._results],
            "voters": self._street.voters,
            "quorum": self._street.quorum,
            "distributor": DISTRIBUTOR,
            "broker": self._street.broker.label,
            "played": [house.label for house in self._houses],
            "speed": self._speed,
            "seconds": round(seconds, 1),
            "dropped": dropped,
            "faults": [
                {"at_s": one.fault.at_s, "kind": one.fault.kind, "name": one.fault.node}
                | {"what": one.text}
                for one in self._played
            ],
            "evidence": [
                {"role": role, "name": name, "height": height, "kept_by": sorted(holders)}
                for (role, name, height), holders in sorted(self._evidence.items())
            ],
        }

    @staticmethod
    def _meter(result: Result) -> dict[str, Any]:
        imported_uj = result.register_uj(1)
        return {
            "name": result.node.name,
            "height": result.verdict.blocks,
            "certified_height": result.chain.certified_height,
            "wh": imported_uj // UJ_PER_WH,
            "import_uj": imported_uj,
            "export_uj": result.register_uj(2),
            "records": result.verdict.records,
            "verdict": result.verdict.verdict,
            "frozen": bool(result.chain.frozen_by),
        }

    def tell(self, seconds: float) -> None:
        """Print it for people."""
        quorum, voters = self._street.quorum, self._street.voters
        print(f"\nplayed a street, {self._speed} times as fast, for {seconds:.0f} s")
        for result in self._results:
            verdict = result.verdict
            print(
                f"{result.node.name}: sealed {verdict.blocks} blocks ({verdict.records} samples)"
                f", {result.chain.certified_height} certified by {quorum} of {voters}\n"
                f"         import {kwh(result.register_uj(1))} kWh, "
                f"export {kwh(result.register_uj(2))} kWh"
                + (", frozen: two histories" if result.chain.frozen_by else "")
            )
        for (_, name, height), holders in sorted(self._evidence.items()):
            nodes = len(self._street.nodes)
            print(
                f"{len(holders)} of {nodes} nodes keep proof of what {name} signed twice: block "
                f"{height}"
            )
        bad = [result for result in self._results if result.verdict.verdict != "good"]
        for result in bad:
            verdict = result.verdict
            why = verdict.first_bad or verdict.reason
            print(f"{result.node.name}: verification: {verdict.verdict}: {why}")
        if not bad:
            print(
                "a stranger with the genesis alone verified every seal, sample and register: good"
            )
        print("not sealed yet, and so not vouched for: the intervals that were open at the end")


def tell_kept(folder: Path, street: Street) -> None:
    """Print where everything was kept, and what to look with."""
    state = folder / street.houses[0].name
    print(
        f"kept: {folder}; look with:\n"
        f"  meterctl blocks --state {state}\n"
        f"  meterctl verify {state} --genesis {folder / GENESIS_FILE}\n"
        f"  meterctl peers --state {state}\n"
        f"  meterctl evidence --state {state}"
    )
