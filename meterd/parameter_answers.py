"""What the meter process tells of its parameters on the control socket, and does about them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meterd.device.control import Feed
from meterd.device.control_roles import may_commission
from meterd.errors import DeniedError, UsageError
from meterd.ledger.parameters import COMMAND_BYTES_MAX, split

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meterd.device.control_parameters import ChangedReply, ClampsReading, ParametersReply
    from meterd.meter import Meter
    from meterd.parameters import Changed


def _bytes_of(text: str, what: str) -> bytes:
    digits = frozenset("0123456789abcdefABCDEF")
    if len(text) > 2 * COMMAND_BYTES_MAX or len(text) % 2 or not digits.issuperset(text):
        raise UsageError(f"{what}: expected at most {2 * COMMAND_BYTES_MAX} hex digits, in pairs")
    return bytes.fromhex(text)


class ParameterAnswers:
    """Answers for one meter (`control_parameters.ParameterSource`)."""

    def __init__(self, meter: Meter) -> None:
        """Answer for `meter`."""
        self._meter = meter
        self._clamps: Feed[ClampsReading] = Feed()
        self._changing = asyncio.Lock()

    def publish(self) -> None:
        """Hand the last reading to whoever listens."""
        reading = self._meter.last_reading
        if self._clamps and reading is not None:
            self._clamps.publish(
                {
                    "at_ms": reading.at_ms,
                    "powers_mw": list(reading.powers_mw),
                    "currents_ma": list(reading.currents_ma),
                    "voltage_mv": reading.voltage_mv,
                    "line": reading.line.decode("ascii", errors="replace"),
                }
            )

    def parameters(self) -> ParametersReply:
        """Return what the meter measures under."""
        meter, desk = self._meter, self._meter.desk
        record, roster = desk.record, meter.neighbours.roster
        settings, signed = split(record.settings)
        return {
            "network": roster.network,
            "genesis": record.genesis.hex(),
            "meter": record.meter,
            "sequence": record.sequence,
            "record": record.hash.hex(),
            "settings": dict(settings),
            "signed": dict(signed),
            "owner": desk.owner(roster).hex(),
            "distributor": roster.distributor[0] if roster.distributor else "",
            "clamps": [
                clamp.name for clamp in meter.settings.rules.clamps if clamp.role != "unused"
            ],
            "port": meter.settings.board.port,
            "last_dropped": meter.last_dropped.decode("ascii", errors="replace"),
            "case_switch": meter.settings.gpio.case_switch is not None,
        }

    async def clamps(self) -> AsyncIterator[ClampsReading]:
        """Yield each reading from now on."""
        with self._clamps.listener() as readings:
            async for reading in readings:
                yield reading

    async def change(self, command: str) -> ChangedReply:
        """Do what a signed command says; it is durable before this returns."""
        message, meter = _bytes_of(command, "command"), self._meter
        async with self._changing:
            return await self._changed(
                meter.desk.obey(message, meter.neighbours.roster, meter.stamp())
            )

    async def commission(self, record: str, owner: str, role: str) -> ChangedReply:
        """Let the meter be commissioned by whoever has a role; durable before this returns."""
        hashed, key, meter = _bytes_of(record, "record"), _bytes_of(owner, "owner"), self._meter
        distributor = meter.neighbours.roster.distributor is not None
        if not may_commission(role, distributor=distributor, owner=bool(key)):
            raise DeniedError(
                "a technician commissions a meter whose distributor is known, and names no owner",
                hint="its operator does this one: `sudo meterctl commission --owner PUBLIC`",
            )
        async with self._changing:
            return await self._changed(meter.desk.commission(hashed, key, meter.neighbours.roster))

    async def _changed(self, changed: Changed) -> ChangedReply:
        await self._meter.flush()
        self._meter.start_anew()
        record = changed.record
        return {"by": changed.by, "sequence": record.sequence, "record": record.hash.hex()}
