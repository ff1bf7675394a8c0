from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from cddl_verifier import Validator
from nacl.signing import SigningKey

import meterd.ledger
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.encoding import decode, digest, encode, seal
from meterd.ledger.report import (
    ALARMS_MAX,
    EVENTS_MAX,
    TEXT_LETTERS_MAX,
    Claim,
    Happened,
    Report,
    decode_file,
    decode_report,
    decode_side,
    encode_file,
    encode_side,
    open_report,
    seal_report,
)
from tests.ledger.examples import changed

KEY = SigningKey(bytes(range(32)))
PUBLIC = bytes(KEY.verify_key)
CLAIMS = (
    Claim("port", "fail", "there is no /dev/ttyAMA0", "plug the board in"),
    Claim("clock", "ok", "synchronised", ""),
)
SIDE = encode_side(CLAIMS)
REPORT = Report(
    genesis=bytes([7]) * 32,
    meter="kitchen-12",
    incarnation=1,
    at=(5000, 1_795_305_600_000, "S"),
    head=(7, bytes([9]) * 32, (1_795_305_600,)),
    certified=6,
    order=(0, bytes([7]) * 32),
    software_id=bytes([1]) * 32,
    parameters=bytes([2]) * 32,
    registers=(("1-0:1.8.0", 0, 2**63 - 1), ("1-0:2.8.0", 1, 0)),
    readings=(99, 1, (("banner", 2),)),
    alarms=(("port", "the board is silent"),),
    events=(12, bytes([3]) * 32, 1_795_000_000, 0),
    happened=(Happened(11, 1_795_305_599_000, "alarm"), Happened(12, 1_795_305_600_000, "sealed")),
    side=digest(SIDE),
)
BEGUN = REPORT._replace(head=(0, bytes([7]) * 32, ()), happened=(), alarms=(), side=b"")


@pytest.mark.parametrize("report", [REPORT, BEGUN], ids=["lived", "just begun"])
def test_a_report_is_read_as_it_was_written(report: Report) -> None:
    assert decode_report(report.encode()) == report
    assert open_report(seal_report(report, KEY), PUBLIC) == report


def test_what_is_longest_still_fits_a_message() -> None:
    happened = tuple(
        Happened(10**7 + n, 1_795_305_599_000 + n, "case_switch_stuck") for n in range(EVENTS_MAX)
    )
    alarms = tuple((f"alarm_{n}", "x" * TEXT_LETTERS_MAX) for n in range(ALARMS_MAX))
    registers = tuple((f"1-{k}:1.8.0", 0, 2**63 - 1) for k in range(10))
    full = REPORT._replace(happened=happened, alarms=alarms, registers=registers)
    assert open_report(seal_report(full, KEY), PUBLIC) == full


@pytest.mark.parametrize(
    ("place", "new"),
    [
        pytest.param((0,), "meterd/block/v1", id="of another context"),
        pytest.param((1,), bytes(31), id="with a short genesis"),
        pytest.param((3,), "1", id="with an incarnation in words"),
        pytest.param((4,), (5000, 6000), id="without the clock's status"),
        pytest.param((4, 2), "X", id="with an unknown status"),
        pytest.param((5,), (7, bytes(32)), id="with half a head"),
        pytest.param((5, 2), (1, 2), id="whose head ends twice"),
        pytest.param((7,), (0,), id="with half an order"),
        pytest.param((10, 0), ("1-0:1.8.0", 0), id="with a register that has no value"),
        pytest.param((11,), (1, 2), id="without what was dropped"),
        pytest.param((11, 2, 0), ("banner", "2"), id="with a number in words"),
        pytest.param((12, 0), ("port",), id="with an alarm without a text"),
        pytest.param((13,), (1, bytes(32), 2), id="with half its events"),
        pytest.param((14, 0), (1, 2, 3), id="with an event of no kind"),
        pytest.param((15,), bytes(31), id="with a short digest"),
    ],
)
def test_a_report_is_refused(place: tuple[int, ...], new: object) -> None:
    data = encode(changed(decode(REPORT.encode()), place, new))
    with pytest.raises(EncodingError, match="not a report"):
        decode_report(data)


def test_every_flipped_bit_of_a_sealed_report_is_refused() -> None:
    message = seal_report(REPORT, KEY)
    for at in range(len(message) * 8):
        data = bytearray(message)
        data[at // 8] ^= 1 << at % 8
        with pytest.raises((EncodingError, BlockRejectedError)):
            open_report(bytes(data), PUBLIC)


def test_a_report_holds_under_its_own_key_alone() -> None:
    stranger = SigningKey(bytes(32))
    with pytest.raises(BlockRejectedError, match="not by this meter's"):
        open_report(seal_report(REPORT, KEY), bytes(stranger.verify_key))
    other = seal(REPORT.encode(), KEY, bytes(32))
    with pytest.raises(BlockRejectedError, match="not this meter's over this content"):
        open_report(other, PUBLIC)


def test_what_stands_beside_is_bound_to_its_report() -> None:
    file = encode_file(seal_report(REPORT, KEY), SIDE)
    message, side = decode_file(file)
    assert decode_side(side, open_report(message, PUBLIC)) == CLAIMS
    assert decode_side(b"", BEGUN) == ()
    for wrong, report in (
        (encode_side(CLAIMS[1:]), REPORT),
        (b"", REPORT),
        (SIDE, BEGUN),
    ):
        with pytest.raises(BlockRejectedError, match="is not what stood there"):
            decode_side(wrong, report)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(["meterd/doctor/v2", []], "no findings", id="another context"),
        pytest.param(["meterd/doctor/v1"], "no findings", id="nothing"),
        pytest.param(["meterd/doctor/v1", [["port"]]], "misshapen finding", id="half a finding"),
    ],
)
def test_misshapen_findings_are_refused_though_they_are_bound(value: Any, message: str) -> None:  # noqa: ANN401
    side = encode(value)
    with pytest.raises(EncodingError, match=message):
        decode_side(side, REPORT._replace(side=digest(side)))


@pytest.mark.parametrize(
    "value",
    [["meterd/report-file/v2", b"", b""], ["meterd/report-file/v1", b""], 7],
    ids=["another context", "a part missing", "a number"],
)
def test_a_file_is_refused_that_is_no_report_s(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(EncodingError, match="not a report's file"):
        decode_file(encode(value))


def test_a_report_is_never_altered() -> None:
    with pytest.raises((AttributeError, FrozenInstanceError)):
        REPORT.meter = "other"  # type: ignore[misc]


def test_reports_are_as_the_schema_says() -> None:
    validator = Validator(Path(meterd.ledger.__file__).with_name("meterd.cddl"))

    def good(data: bytes, rule: str) -> bool:
        return not validator.validate(data, root_type=rule).diagnostics

    for report, side in ((REPORT, SIDE), (BEGUN, b"")):
        message = seal_report(report, KEY)
        assert good(report.encode(), "report")
        assert good(message, "sealed-report")
        assert good(encode_file(message, side), "report-file")
        assert not good(message, "sealed-block")
    assert not good(encode(changed(decode(REPORT.encode()), (4, 2), "X")), "report")
    odd = encode_side([CLAIMS[0]._replace(verdict="perhaps")])
    assert not good(encode_file(seal_report(REPORT, KEY), odd), "report-file")
