"""Whether a meter is well, in one line."""

from __future__ import annotations

import pytest

from meterd.health import one_line


@pytest.mark.parametrize(
    ("alarms", "height", "certified", "state", "waits", "line"),
    [
        ((), 0, 0, "metering", "", "well: metering; nothing sealed yet"),
        ((), 1, 1, "metering", "", "well: metering; 1 block, certified"),
        ((), 9, 9, "metering", "", "well: metering; 9 blocks sealed, all certified"),
        ((), 9, 7, "metering", "", "well: metering; 9 blocks sealed, certified to 7"),
        (("port",), 9, 9, "lost", "", "not well: port; lost; 9 blocks sealed, all certified"),
        (
            ("neighbours", "case"),
            *(9, 7, "metering", "2 more answers"),
            (
                "not well: case, neighbours; metering; 9 blocks sealed, certified to 7;"
                " waits: 2 more answers"
            ),
        ),
    ],
)
def test_the_line_is(  # noqa: PLR0917 - a row of the table
    alarms: tuple[str, ...], height: int, certified: int, state: str, waits: str, line: str
) -> None:
    said = one_line(alarms, height=height, certified_height=certified, state=state, waits=waits)
    assert said == line
