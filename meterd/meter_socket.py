"""The meter's control socket: who answers which part of what is asked there."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from meterd.device.control import ControlServer
from meterd.device.control_parameters import ParametersInterface
from meterd.device.secret import is_bound
from meterd.meter_answers import Answers
from meterd.parameter_answers import ParameterAnswers

if TYPE_CHECKING:
    from pathlib import Path

    from meterd.meter import Meter
    from meterd.vault_desk import VaultDesk


async def serve(meter: Meter, path: Path) -> None:
    """Answer for a meter until cancelled.

    Raises:
        MeterdError: The socket cannot be made (`ControlServer.serve`), or the card failed under a
            change of the vault.
    """
    answers, parameters = Answers(meter), ParameterAnswers(meter)

    def published(what: object) -> None:
        answers.publish(what)
        parameters.publish()

    meter.published = published
    meter.book.told = meter.alarms.beside(answers.tell)
    device = meter.opened_as.device
    vault = None if device is None else _vault_desk(meter, device)
    beside = partial(ParametersInterface, parameters)
    server = ControlServer(path, answers, vault=vault, beside=beside)
    async with asyncio.TaskGroup() as tasks:
        if vault is not None:
            tasks.create_task(vault.watch(), name="watch the vault")
        await server.serve()


def _vault_desk(meter: Meter, device: bytes) -> VaultDesk:
    from meterd.vault_desk import VaultDesk

    return VaultDesk(
        meter.state_folder,
        device,
        bound=is_bound(),
        version=meter.opened_as.vault_version,
        record=meter.record,
        now_ms=lambda: meter.stamp().boot_ms,
    )
