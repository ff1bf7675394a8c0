"""The fuzz targets: by Hypothesis in every run, by atheris in the soak."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterd.ledger.encoding import decode, encode
from meterd.ledger.segment import FrameHeader, Linker
from tests.fuzz.targets import GENESIS, KEPT, SHARE, TARGETS

if TYPE_CHECKING:
    from pathlib import Path

FUZZ_S = int(os.environ.get("METERD_FUZZ_S", "600"))
RSS_MB_MAX = 1024  # of the instrumented process; the targets themselves hold a few
SEEDS: dict[str, list[bytes]] = {
    "board": [
        b"11 374.0 0.0 0.0 1600.0 0.0 0.0 243.87\r\n",
        b"# RPICT3 \xa0\x00\r\n\x43\x2d\x7c\x19\xa0" + bytes(range(20)) + b"11 nan err 3\r\n",
        b"11 -50.14 48.9 0.32 242.0 0.9 0 0 0 0 0 0 0 0 0 0\r\n",
    ],
    "strict": [
        GENESIS.encode(),
        encode(["meterd/block/v1", bytes(32), "fuzz-1", 1, 1]),
        b"\xd2\x84\x4d\xa2\x01\x32\x04\x48" + bytes(8) + b"\xa0\x41\x00\x58\x40" + bytes(64),
    ],
    "log": [],
    "config": [
        b'[meter]\nname = "a"\n[board]\nport = "x"\n[[clamp]]\nname = "m"\nrole = "mains"\n'
    ],
    "vault": [SHARE.encode(), KEPT.content, KEPT.key, encode([*decode(KEPT.key)[:4], bytes(31)])],
    "capture": [b"1170633600\t11 374.0\n!restart\n1.5\t2000\t11 \\xa0\n"],
}
HEADER = FrameHeader(
    stream="events",
    genesis=GENESIS.hash,
    meter="fuzz-1",
    incarnation=1,
    number=1,
    previous_digest=bytes(32),
    previous_bytes=0,
    secret=bytes(32),
)
SEEDS["log"].append(HEADER.stored() + Linker(HEADER.encode()).frame(b"\x01"))

pieces = st.sampled_from(sorted({seed for seeds in SEEDS.values() for seed in seeds}))
mixed = st.one_of(
    st.binary(max_size=600),
    st.lists(st.one_of(pieces, st.binary(max_size=20)), max_size=6).map(b"".join),
    st.tuples(pieces, st.integers(0, 400), st.binary(max_size=8)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
    ),
)


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_from_outside_are_taken_or_refused(name: str) -> None:
    @settings(max_examples=300, deadline=None)
    @given(mixed)
    def holds(data: bytes) -> None:
        TARGETS[name](data)

    holds()


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_coverage_guided_fuzzing_finds_no_crash_no_hang_no_leak(name: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[name]):
        (corpus / str(number)).write_bytes(seed)
    options = (f"-max_total_time={FUZZ_S}", "-timeout=10", f"-rss_limit_mb={RSS_MB_MAX}")
    done = subprocess.run(
        (sys.executable, "-m", "tests.fuzz", name, *options, "-max_len=4096", str(corpus)),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
