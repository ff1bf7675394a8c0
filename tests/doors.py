"""The part of a daemon that is about doors, for sources that others are tested with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterd.device.control_access import Acknowledged, Refused, RelayReply, Technician, Told


class Doors:
    """The part of a source that is about doors; what it was told can be looked at."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    async def login(self, who: Technician, key: str, source: str) -> Told:
        self.told.append(("login", who, key, source))
        return {"recorded": True}

    async def left(self, who: Technician, source: str) -> Told:
        self.told.append(("left", who, source))
        return {"recorded": True}

    async def command(self, who: Technician, command: str) -> Told:
        self.told.append(("command", who, command))
        return {"recorded": True}

    async def login_refused(self, refused: Refused) -> Told:
        self.told.append(("login_refused", refused))
        return {"recorded": False}

    async def case_acknowledge(self, who: Technician) -> Acknowledged:
        self.told.append(("case_acknowledge", who))
        return {"stood": True}

    def relay(self) -> RelayReply:
        return {"wished": "closed", "state": "closed"}

    async def relay_set(self, who: Technician, *, closed: bool) -> RelayReply:
        self.told.append(("relay_set", who, closed))
        return self.relay()
