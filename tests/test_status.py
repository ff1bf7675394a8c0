"""`meterctl status` on one screen: the answer, what to do, and the facts."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest

from meterd.ctl.status import ROWS, answer, lines

STATUS: dict[str, Any] = {
    "source": "daemon",
    "name": "kitchen-12",
    "software": "ab" * 32,
    "state": "metering",
    "port": "open",
    "clock": "S",
    "height": 7,
    "last_end_s": 1_795_305_600,
    "open": {"start_s": 1_795_305_600, "records": 12, "power_mw": 1_500_250},
    "registers": {"1-0:1.8.0": {"uj": 3_600_000_000_000, "kind": "measured"}},
    "readings": {"accepted": 99, "dropped": {"banner": 1}},
    "gaps": 0,
    "storage_free_bytes": 12_000_000,
    "neighbours": {"voters": 4, "certified_height": 7, "order": 0, "waits": ""},
    "alarms": [],
}
SILENT = "port: the board is silent"
FULL = (
    "storage_full: the card is full: samples are lost, registers and blocks go on; run"
    " `meterctl prune`"
)


@pytest.mark.parametrize(
    ("changed", "first", "do"),
    [
        pytest.param({}, "well", "", id="all is well"),
        pytest.param(
            {"alarms": [SILENT]},
            "not well: the board is silent",
            "do: see that cable and power of the board sit",
            id="an alarm stands",
        ),
        pytest.param(
            {"alarms": ["cadence: lines come every 9.0 s", FULL]},
            "not well: the card is full: samples are lost",
            "do: `meterctl prune --before DAY`",
            id="the worst of two alarms",
        ),
        pytest.param(
            {"state": "metering, waits for the clock"},
            "not well: it waits for the clock",
            "do: `meterctl doctor`",
            id="nothing can be placed",
        ),
        pytest.param(
            {"source": "account", "state": "stopped"},
            "not well: the meter is stopped",
            "do: `systemctl start meterd`",
            id="it was stopped",
        ),
        pytest.param(
            {"source": "account", "state": "not answering", "alarms": [SILENT]},
            "not well: no daemon answers",
            "do: `systemctl start meterd`",
            id="it was killed",
        ),
    ],
)
def test_the_first_line_answers_whether_it_is_well(
    changed: dict[str, Any], first: str, do: str
) -> None:
    told = lines(STATUS | changed, UTC)
    assert told[0].startswith(first)
    assert (told[0] == "well") == (first == "well")
    assert do in "\n".join(told[1:4])
    assert (answer(STATUS | changed) == ("", "")) == (first == "well")


@pytest.mark.parametrize(
    ("voters", "height", "line"),
    [
        (1, 0, "witnessed  nothing yet"),
        (4, 0, "certified  nothing yet"),
        (1, 1, "witnessed  up to block 1"),
        (4, 7, "certified  up to block 7"),
    ],
)
def test_what_others_vouch_for_is_said_in_words_while_it_is_nothing(
    voters: int, height: int, line: str
) -> None:
    neighbours = STATUS["neighbours"] | {"voters": voters, "certified_height": height}
    assert line in lines(STATUS | {"neighbours": neighbours}, UTC)


def test_everything_at_once_still_fits_a_screen_of_80_by_24() -> None:
    registers = {
        f"1-{k}:1.8.0": {"uj": 2**63 - 1, "kind": "estimated"} for k in range(1, 8)
    } | STATUS["registers"]
    waits = "3 of 5 neighbours have answered what they hold of this meter, and 4 are needed; " * 2
    told = lines(
        STATUS
        | {
            "alarms": [FULL, SILENT, *(f"new_{n}: {'word ' * 40}" for n in range(9))],
            "registers": registers,
            "neighbours": STATUS["neighbours"] | {"waits": waits},
            "readings": {
                "accepted": 10**9,
                "dropped": dict.fromkeys(("partial", "banner", "not_a_number", "range"), 10**6),
            },
        },
        UTC,
    )
    assert len(told) <= ROWS
    assert [line for line in told if len(line) > 80] == []
    assert "circuits   7: see `meterctl registers`" in told
    assert told[-1].endswith("… see `meterctl status --json`")
    assert any(line.startswith("import") for line in told)
