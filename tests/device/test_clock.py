from __future__ import annotations

import ctypes
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from meterd.device import clock as clock_module
from meterd.device.clock import (
    BUILD_S,
    ERROR_MS_MAX,
    Clock,
    ScaledClock,
    Stamp,
    SystemClock,
    judge_kernel,
    read_boot_id,
    rtc_set_clock,
)
from meterd.errors import DeniedError

if TYPE_CHECKING:
    from pathlib import Path

UNSYNC = 0x40
PLL = 0x01
NOW_MS = BUILD_S * 1000 + 1


@pytest.mark.parametrize(
    ("status_bits", "maxerror_us", "wall_ms", "rtc_set", "expected"),
    [
        pytest.param(PLL, 12_000, NOW_MS, False, ("S", 12), id="synchronised"),
        pytest.param(PLL, 12_001, NOW_MS, False, ("S", 13), id="error rounds up"),
        pytest.param(0, 0, NOW_MS, False, ("S", 0), id="synchronised just now by timesyncd"),
        pytest.param(PLL, 99_000_000, NOW_MS, False, ("S", ERROR_MS_MAX), id="error is capped"),
        pytest.param(PLL, -5_000, NOW_MS, False, ("S", 0), id="error is never negative"),
        pytest.param(PLL, 12_000, 0, True, ("S", 12), id="synchronised to a year before the build"),
        pytest.param(UNSYNC, 16_000_000, NOW_MS, True, ("I", ERROR_MS_MAX), id="set by a chip"),
        pytest.param(UNSYNC, 16_000_000, BUILD_S * 1000, True, ("I", ERROR_MS_MAX), id="at build"),
        pytest.param(
            UNSYNC, 16_000_000, BUILD_S * 1000 - 1, True, ("R", ERROR_MS_MAX), id="battery empty"
        ),
        pytest.param(UNSYNC, 16_000_000, NOW_MS, False, ("R", ERROR_MS_MAX), id="no chip"),
        pytest.param(
            UNSYNC | PLL, 500, NOW_MS, False, ("R", ERROR_MS_MAX), id="a small error is no vouching"
        ),
    ],
)
def test_the_kernels_answer_is_worth(
    status_bits: int, maxerror_us: int, wall_ms: int, rtc_set: bool, expected: tuple[str, int]
) -> None:
    assert judge_kernel(status_bits, maxerror_us, wall_ms=wall_ms, rtc_set=rtc_set) == expected


@pytest.mark.parametrize(
    ("chips", "expected"),
    [
        pytest.param({}, False, id="there is none"),
        pytest.param({"rtc0": "0\n"}, False, id="it came too late"),
        pytest.param({"rtc0": "1\n"}, True, id="it did"),
        pytest.param({"rtc0": "0\n", "rtc1": "1\n"}, True, id="the second did"),
    ],
)
def test_a_clock_chip_set_the_time_if(
    tmp_path: Path, chips: dict[str, str], expected: bool
) -> None:
    for name, text in chips.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "hctosys").write_text(text)
    assert rtc_set_clock(tmp_path) is expected


def test_the_boot_id_is_the_kernels_sixteen_bytes(tmp_path: Path) -> None:
    path = tmp_path / "boot_id"
    path.write_text("00010203-0405-4607-8809-0a0b0c0d0e0f\n")
    assert read_boot_id(path).hex() == "000102030405460788090a0b0c0d0e0f"
    assert SystemClock("always").boot_id == read_boot_id() != read_boot_id(path)


@pytest.mark.parametrize("trust", ["kernel", "always"])
def test_a_real_stamp_lies_between_the_readings_around_it(trust: str) -> None:
    clock: Clock = SystemClock(trust)
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000, time.time_ns() // 1_000_000
    stamp = clock.stamp()
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000, time.time_ns() // 1_000_000
    assert before[0] <= stamp.boot_ms <= after[0]
    assert before[1] <= stamp.wall_ms <= after[1]
    assert stamp.status in ("S" if trust == "always" else "SIR")
    assert 0 <= stamp.error_ms <= (0 if trust == "always" else ERROR_MS_MAX)


class FakeKernel:
    """The clocks and adjtimex, set by hand; counts the questions."""

    def __init__(self) -> None:
        self.boot_ns = 5_000_000_000
        self.wall_ns = NOW_MS * 1_000_000
        self.status = UNSYNC
        self.maxerror_us = 16_000_000
        self.asked = 0
        self.refuses = False

    def advance(self, ms: int) -> None:
        self.boot_ns += ms * 1_000_000
        self.wall_ns += ms * 1_000_000

    def adjtimex(self, reference: Any) -> int:  # noqa: ANN401 - ctypes does not name what byref returns
        self.asked += 1
        if self.refuses:
            ctypes.set_errno(1)
            return -1
        timex = reference._obj
        assert timex.modes == 0, "would set the clock"
        timex.modes = 0xFF  # the C library is free to write here
        timex.status = self.status
        timex.maxerror_us = self.maxerror_us
        return 0 if not self.status & UNSYNC else 5


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel()

    class Library:
        def __init__(self, name: None, *, use_errno: bool) -> None:
            self.adjtimex = fake.adjtimex

    class Time:
        CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

        @staticmethod
        def clock_gettime_ns(which: int) -> int:
            assert which == time.CLOCK_BOOTTIME
            return fake.boot_ns

        @staticmethod
        def time_ns() -> int:
            return fake.wall_ns

    monkeypatch.setattr(clock_module, "time", Time)
    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(clock_module, "rtc_set_clock", lambda: False)
    return fake


def test_the_kernel_is_asked_once_a_second_at_most(kernel: FakeKernel) -> None:
    clock = SystemClock("kernel")
    assert clock.stamp().status == "R"
    kernel.status, kernel.maxerror_us = PLL, 3_000
    kernel.advance(999)
    assert (clock.stamp().status, kernel.asked) == ("R", 1)
    kernel.advance(1)
    assert clock.stamp() == Stamp(6000, NOW_MS + 1000, "S", 3)
    assert kernel.asked == 2


def test_a_stepped_clock_is_asked_about_at_once(kernel: FakeKernel) -> None:
    kernel.status = PLL
    clock = SystemClock("kernel")
    assert clock.stamp().status == "S"
    kernel.status = UNSYNC  # what settimeofday does to it
    kernel.wall_ns -= 3_600_000_000_000
    assert clock.stamp().status == "R"
    assert clock.stamp().status == "R"
    assert kernel.asked == 2


def test_a_trusted_clock_never_asks(kernel: FakeKernel) -> None:
    kernel.refuses = True
    assert SystemClock("always").stamp() == Stamp(5000, NOW_MS, "S", 0)
    assert kernel.asked == 0


def test_a_sandbox_that_forbids_the_question_is_named_at_start(kernel: FakeKernel) -> None:
    kernel.refuses = True
    with pytest.raises(DeniedError, match=r"adjtimex: Operation not permitted") as caught:
        SystemClock("kernel")
    assert "SystemCallFilter" in caught.value.hint


def test_a_scaled_clock_runs_both_times_faster_from_its_epoch() -> None:
    now_ns = [7_000_000_000]
    clock: Clock = ScaledClock(600, epoch_ms=NOW_MS, now_ns=lambda: now_ns[0])
    assert clock.stamp() == Stamp(0, NOW_MS, "S", 0)
    now_ns[0] += 3_000_000_000
    assert clock.stamp() == Stamp(1_800_000, NOW_MS + 1_800_000, "S", 0)
    now_ns[0] += 1_666_667  # 1000.0002 ms
    assert clock.stamp().boot_ms == 1_801_000


def test_each_scaled_clock_is_a_boot_of_its_own() -> None:
    ids = {
        ScaledClock(600, NOW_MS, now_ns=iter([start_ns]).__next__).boot_id for start_ns in (1, 2)
    }
    ids.add(read_boot_id())
    assert [len(boot_id) for boot_id in ids] == [16, 16, 16]


def test_a_stamp_is_cheap() -> None:
    clock = SystemClock("kernel")
    best_ns = min(_cost_ns(clock) for _ in range(20))
    slack = 10 if sys.gettrace() else 1  # a coverage run traces every line
    assert best_ns <= 3_000 * slack


def _cost_ns(clock: SystemClock) -> int:
    start_ns = time.perf_counter_ns()
    for _ in range(200):
        clock.stamp()
    return (time.perf_counter_ns() - start_ns) // 200
