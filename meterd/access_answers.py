"""What the meter process answers to whoever watches a door, or stands before one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.access import as_details

if TYPE_CHECKING:
    from meterd.device.control_access import Acknowledged, Refused, RelayReply, Technician, Told
    from meterd.meter import Meter


class AccessAnswers:
    """The part of `control.Source` that is about doors: what it answers is on the card."""

    _meter: Meter

    async def login(self, who: Technician, key: str, source: str) -> Told:
        """Record that a session has begun."""
        self._meter.access.login(who, key, source)
        return await self._recorded()

    async def left(self, who: Technician, source: str) -> Told:
        """Record that it has ended."""
        if not self._meter.access.left(who, source):
            return {"recorded": False}
        return await self._recorded()

    async def command(self, who: Technician, command: str) -> Told:
        """Record a command that changes something, before it does."""
        self._meter.access.command(who, command)
        return await self._recorded()

    async def login_refused(self, refused: Refused) -> Told:
        """Record, or count, that somebody was not let in."""
        if not self._meter.access.refused(refused):
            return {"recorded": False}
        return await self._recorded()

    async def case_acknowledge(self, who: Technician) -> Acknowledged:
        """Let the alarm that the case was opened fall."""
        stood = self._meter.guard.acknowledge(as_details(who))
        await self._meter.flush()
        return {"stood": stood}

    def relay(self) -> RelayReply:
        """Return where the relay stands."""
        self._meter.guard.need_relay()
        relay = self._meter.guard.relay
        return {"wished": "closed" if relay.wished else "open", "state": relay.state}

    async def relay_set(self, who: Technician, *, closed: bool) -> RelayReply:
        """Wish the relay closed or open; the wish is on the card when this returns."""
        self._meter.guard.switch(closed=closed, who=as_details(who))
        await self._meter.flush()
        return self.relay()

    async def _recorded(self) -> Told:
        await self._meter.flush()
        return {"recorded": True}
