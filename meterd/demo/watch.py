"""Looks at a street from outside, as its nodes show themselves, and tells what has changed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.demo.street import DISTRIBUTOR, is_connected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.demo.street import Street

EVENTS_SHOWN_MAX = 6
ROUTINE_SHOWN_MAX = 2  # of them: with four meters a block is certified nearly every second
SEALS_NO_MORE = "frozen and stopped"
IDLE = {"power_mw": 0}  # of a meter that has no interval open
UJ_PER_WH = 3_600_000_000


def kwh(uj: int) -> str:
    """Return energy in kWh with three decimals, rounded down."""
    wh = uj // UJ_PER_WH
    return f"{wh // 1000}.{wh % 1000:03d}"


def when(unix_s: int | None) -> str:
    """Return household time for people."""
    if unix_s is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(unix_s))


class Row(NamedTuple):
    """One meter at this moment.

    Attributes:
        power_mw: As it measures now; None while it does not run.
        height: Its newest sealed block.
        end_s: Where that ends.
        seen: How many voters attest it.
        certified: Its newest certified block.
        state: What is to be said of it; empty where all is well.
        frozen: How many nodes have frozen its chain.
    """

    name: str
    power_mw: int | None
    import_uj: int
    export_uj: int
    height: int
    end_s: int | None
    seen: int
    certified: int
    state: str
    frozen: int


class Happening(NamedTuple):
    """Something that has just happened.

    Attributes:
        at_s: Seconds since the street was up.
        routine: It happens all the time.
    """

    at_s: float
    text: str
    routine: bool = False


class Watch:
    """Looks at the street, and tells what has changed since the look before.

    Attributes:
        rows: The meters as of the last look.
        happened: All that has happened, for the screen; it keeps the last of each kind.
        dropped: Lines that were dropped by kind, as the meters said last.
        evidence: By (role, name, height) of whom proof convicts: the nodes that keep it.
    """

    def __init__(self, street: Street) -> None:
        """Watch `street`."""
        self._street = street
        self._begun = time.monotonic()
        self._here = set[str]()
        self._lost = set[str]()
        self.rows: list[Row] = []
        self.happened: list[Happening] = []
        self.evidence: dict[tuple[str, str, int], set[str]] = {}

    @property
    def seconds(self) -> float:
        """How long the street has been watched."""
        return time.monotonic() - self._begun

    @property
    def dropped(self) -> dict[str, int]:
        """Lines that the meters have dropped, by kind."""
        total: dict[str, int] = {}
        for node in self._street.houses:
            for kind, count in self._street.status(node)["readings"]["dropped"].items():
                total[kind] = total.get(kind, 0) + count
        return total

    def tell(self, text: str, *, routine: bool = False) -> Happening:
        """Note what has happened now."""
        happening = Happening(self.seconds, text, routine)
        self.happened.append(happening)
        return happening

    def look(self) -> list[Happening]:
        """Look; return what has changed."""
        peers = self._street.peers()
        before = {row.name: row for row in self.rows}
        self.rows = [self._row(name, peers) for name in self._names()]
        first = len(self.happened)
        self._see_lost(peers)
        for row in self.rows:
            self._see_blocks(before.get(row.name), row)
        self._see_evidence(peers)
        told = self.happened[first:]
        self._forget()
        return told

    def shown(self) -> list[Happening]:
        """Return the last happenings, the routine ones only so far as they leave room."""
        routine = [one for one in self.happened if one.routine][-ROUTINE_SHOWN_MAX:]
        other = [one for one in self.happened if not one.routine]
        return sorted([*other[len(routine) - EVENTS_SHOWN_MAX :], *routine])

    def _names(self) -> Iterator[str]:
        return (node.name for node in self._street.houses)

    def _row(self, name: str, peers: dict[str, dict[str, Any]]) -> Row:
        street = self._street
        status, chain = street.status(street.nodes[name]), street.chain(name, peers)
        registers, height = status["registers"], status["height"]
        return Row(
            name=name,
            power_mw=None if street.nodes[name].killed else (status["open"] or IDLE)["power_mw"],
            import_uj=registers["1-0:1.8.0"]["uj"],
            export_uj=registers["1-0:2.8.0"]["uj"],
            height=height,
            end_s=status["last_end_s"],
            seen=len(chain.seen_by) if height <= chain.height else 0,
            certified=chain.certified_height,
            state=self._state(name, status, len(chain.frozen_by)),
            frozen=len(chain.frozen_by),
        )

    def _state(self, name: str, status: dict[str, Any], frozen: int) -> str:
        if self._street.nodes[name].killed:
            return "no power"
        alarms: list[str] = status["alarms"]
        neighbours = next((alarm for alarm in alarms if alarm.startswith("neighbours:")), "")
        if "stopped" in neighbours:
            return SEALS_NO_MORE
        if frozen:
            return f"frozen by {frozen} nodes"
        if self._street.gates.is_shut(name):
            return "cut off"
        if neighbours:
            return "asks its neighbours"
        return ", ".join(alarm.partition(":")[0] for alarm in alarms)

    def _see_lost(self, peers: dict[str, dict[str, Any]]) -> None:
        """A node is lost that was here: its peer process says nothing, or has no broker."""
        here = {name for name, said in peers.items() if is_connected(said)}
        for name in sorted(self._here - here):
            self._lost.add(name)
            left = self._street.voters - len(self._lost - {DISTRIBUTOR})
            self.tell(f"{name} is lost to the others; {left} of {self._street.voters} can vote")
        for name in sorted(self._lost & here):
            self._lost.discard(name)
            self.tell(f"{name} is back among the others")
        self._here = here

    def _see_blocks(self, before: Row | None, row: Row) -> None:
        quorum, voters = self._street.quorum, self._street.voters
        if row.height > (before.height if before else 0):
            self.tell(
                f"{row.name}: block {row.height} sealed, to {when(row.end_s)}: "
                f"import {kwh(row.import_uj)} kWh",
                routine=True,
            )
        if row.certified > (before.certified if before else 0):
            self.tell(
                f"{row.name}: block {row.certified} certified by {quorum} of {voters}",
                routine=True,
            )

        if row.state == SEALS_NO_MORE and before and before.state != SEALS_NO_MORE:
            self.tell(f"{row.name} seals no more: its distributor has to resolve it")

    def _see_evidence(self, peers: dict[str, dict[str, Any]]) -> None:
        found: dict[tuple[str, str, int], set[str]] = {}
        for peer, said in peers.items():
            for one in said["accused"]:
                found.setdefault((one["role"], one["name"], one["height"]), set()).add(peer)
        for (role, name, height), holders in found.items():
            known = self.evidence.setdefault((role, name, height), set())
            if holders <= known:
                continue
            known |= holders
            what = (
                "attested two histories"
                if role == "authority"
                else f"sealed two blocks {height}, and is frozen"
            )
            nodes = len(self._street.nodes)
            self.tell(f"evidence at {len(known)} of {nodes} nodes: {name} {what}")

    def _forget(self) -> None:
        routine = [one for one in self.happened if one.routine][-ROUTINE_SHOWN_MAX:]
        other = [one for one in self.happened if not one.routine][-EVENTS_SHOWN_MAX:]
        self.happened = sorted([*routine, *other])
