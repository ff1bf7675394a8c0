"""The same street over another real broker, which speaks MQTT 3.1.1 alone."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.street_kit import Street, until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(240)
def test_b4_a_street_over_nats_is_certified_and_outlives_its_broker(tmp_path: Path) -> None:
    with Street(tmp_path, broker="nats-server") as street:
        street.goes_on(1)
        street.is_certified()
        street.end_broker(signal.SIGKILL)
        street.goes_on(1)
        street.start_broker()
        street.is_certified()
        street.is_good()
        until(
            lambda: all(
                broker["protocol"] == "3.1.1"
                for house in street.houses
                for broker in house.shown()["brokers"]
            ),
            "a broker that knows no MQTT 5 is spoken to in 3.1.1",
        )
