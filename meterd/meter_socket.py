"""The meter's control socket: who answers which part of what is asked there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meterd.device.control import ControlServer
from meterd.device.control_parameters import ParametersInterface
from meterd.meter_answers import Answers
from meterd.parameter_answers import ParameterAnswers

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.meter import Meter
    from meterd.vault_desk import VaultDesk


async def serve(meter: Meter, path: Path, vault: VaultDesk) -> None:
    """Answer for a meter until cancelled.

    Raises:
        MeterdError: The socket cannot be made (`ControlServer.serve`).
    """
    answers, parameters = Answers(meter), ParameterAnswers(meter)

    def published(what: object) -> None:
        answers.publish(what)
        parameters.publish()

    meter.published = published
    meter.book.told = meter.alarms.beside(answers.tell)
    server = ControlServer(path, answers, vault=vault, beside=ParametersInterface(parameters))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(vault.watch(), name="watch the vault")
        await server.serve()
