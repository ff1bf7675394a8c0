"""Who may commission: the daemon's own judgement of a role, whatever a client has looked at."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from meterd.authority.roster import found
from meterd.device.control_parameters import ParametersInterface
from meterd.device.control_roles import OPERATOR, TECHNICIAN
from meterd.errors import ConfigError, DeniedError, MeterdError
from meterd.parameter_answers import ParameterAnswers
from meterd.parameters import Desk
from tests import street
from tests.parameters_kit import OWNER, RECORD
from tests.rig import MIDNIGHT_S, Rig

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC = bytes(OWNER.verify_key).hex()


def commission(rig: Rig, role: str, *, distributor: bool, owner: str) -> int:
    """Ask as the socket does; return the number of the record that is in force then."""
    anew: list[None] = []

    async def flush() -> None:
        """All is durable here."""

    meter: Any = SimpleNamespace(
        desk=Desk(rig.book, rig.settings, rig.settings),
        neighbours=SimpleNamespace(
            roster=found(street.genesis_of() if distributor else rig.genesis)
        ),
        flush=flush,
        start_anew=lambda: anew.append(None),
    )
    interface = ParametersInterface(ParameterAnswers(meter), role)
    method: Any = interface.Commission
    answer = asyncio.run(method(record=RECORD.hex(), owner=owner))
    assert anew, "it starts anew under them"
    return int(getattr(answer, "parameters", answer)["sequence"])


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path / "account")
    rig.start(MIDNIGHT_S)
    return rig


@pytest.mark.parametrize(
    ("role", "distributor", "owner"),
    [
        pytest.param(TECHNICIAN, True, "", id="a technician, for a distributor"),
        pytest.param(OPERATOR, True, "", id="the operator, for a distributor"),
        pytest.param(OPERATOR, False, PUBLIC, id="the operator, who names the owner"),
    ],
)
def test_s3_a_meter_is_commissioned_by(
    rig: Rig, role: str, *, distributor: bool, owner: str
) -> None:
    assert commission(rig, role, distributor=distributor, owner=owner) == 2


@pytest.mark.parametrize(
    ("role", "distributor", "owner", "refusal"),
    [
        pytest.param(TECHNICIAN, False, PUBLIC, DeniedError, id="a technician who names an owner"),
        pytest.param(TECHNICIAN, False, "", DeniedError, id="a technician, for nobody"),
        pytest.param(TECHNICIAN, True, PUBLIC, DeniedError, id="a technician, beside another"),
        pytest.param(OPERATOR, True, PUBLIC, ConfigError, id="the operator, beside another"),
    ],
)
def test_s3_no_meter_is_commissioned_by(
    rig: Rig, role: str, *, distributor: bool, owner: str, refusal: type[MeterdError]
) -> None:
    events = rig.book.log.events
    with pytest.raises(refusal) as refused:
        commission(rig, role, distributor=distributor, owner=owner)
    assert refused.value.hint
    assert rig.book.log.events == events
