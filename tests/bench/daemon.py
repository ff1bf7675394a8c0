"""`meterd run` at a line every 2 s: memory, CPU, start, bytes written; and a pty's throughput."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from meterd.config import load
from meterd.init import create_account
from tests.bench.measure import tell

CONFIG = """[meter]
name = "bench-1"
interval_s = 60
[board]
port = "{port}"
polling_ms = {polling_ms}
[[clamp]]
name = "mains"
role = "mains"
[clock]
trust = "always"
[log]
reserve_mb = 1
"""
RUN_S = 130.0  # two intervals and four commits
RSS_MB_MAX = 28
CPU_PERCENT_MAX = 0.1
START_S_MAX = 0.5
BYTES_PER_S_MAX = 1000
FLOOD_LINES = 100_000
LINES_PER_S_MIN = 5_000


def start(
    folder: Path, board: tuple[str, ...], polling_ms: int, settings: str = CONFIG
) -> list[subprocess.Popen[bytes]]:
    """Start a board and a meter; the meter is the second."""
    link, state, config = folder / "board", folder / "account", folder / "meterd.toml"
    config.write_text(settings.format(port=link, polling_ms=polling_ms))
    if not state.exists():
        create_account(state, load(config), bytes(range(32)))
    program = (sys.executable, "-m", "meterd")
    common = ("--link", str(link), "--polling-ms", str(polling_ms), "--wait")
    played = subprocess.Popen((*program, "board", *common, *board), stderr=subprocess.DEVNULL)
    while not link.exists():
        time.sleep(0.01)
    run = (*program, "run", "--config", str(config), "--state", str(state))
    return [played, subprocess.Popen(run, stderr=subprocess.PIPE)]


def wait_for(meter: subprocess.Popen[bytes], word: bytes, seconds: float) -> float:
    """Return the seconds until the meter says `word`."""
    begun, said = time.monotonic(), b""
    stderr = meter.stderr
    if stderr is None:
        raise ValueError
    while word not in said:
        left = seconds - (time.monotonic() - begun)
        if left <= 0 or not select.select([stderr], [], [], left)[0]:
            raise TimeoutError(said)
        said += os.read(stderr.fileno(), 4096)
    return time.monotonic() - begun


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End board and meter."""
    for process in reversed(processes):
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def account_of(pid: int) -> tuple[float, int, float]:
    """Return CPU seconds, bytes written to storage, and resident MB of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines() if line)
    status = Path(f"/proc/{pid}/status").read_text()
    rss = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return cpu_s, int(io["write_bytes"]), rss


def idle() -> None:
    """A line every 2 s."""
    with tempfile.TemporaryDirectory() as name:
        processes = start(Path(name), (), 2000)
        meter = processes[1]
        try:
            opened = wait_for(meter, b"port_opened", 20)
            time.sleep(5)
            cpu0, bytes0, _ = account_of(meter.pid)
            time.sleep(RUN_S)
            cpu1, bytes1, rss = account_of(meter.pid)
        finally:
            stop(processes)
    cpu, rate = 100 * (cpu1 - cpu0) / RUN_S, (bytes1 - bytes0) / RUN_S
    tell("port open after exec", f"{opened:.2f} s", f"≤ {START_S_MAX} s", met=opened <= START_S_MAX)
    tell("peak RSS", f"{rss:.1f} MB", f"≤ {RSS_MB_MAX} MB", met=rss <= RSS_MB_MAX)
    tell("CPU", f"{cpu:.3f} %", f"≤ {CPU_PERCENT_MAX} %", met=cpu <= CPU_PERCENT_MAX)
    tell(
        "bytes written (an interval of 60 s, not 1800)",
        f"{rate:.0f} B/s",
        f"≤ {BYTES_PER_S_MAX} B/s",
        met=rate <= BYTES_PER_S_MAX,
    )


def on_account(state: Path) -> None:
    """Start on an account of long ago, made by `audit.make_year`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "account").symlink_to(state)
        fields = 'layout = "custom"\nfields = ["node", "RP1"]'
        settings = CONFIG.replace("interval_s = 60\n", "").replace("[board]", f"[board]\n{fields}")
        processes = start(folder, (), 2000, settings)
        try:
            opened = wait_for(processes[1], b"port_opened", 20)
            time.sleep(5)
            status = Path(f"/proc/{processes[1].pid}/status").read_text()
        finally:
            stop(processes)
    rss = int(status.split("VmRSS:")[1].split()[0]) / 1024
    what = "with that account on the card"
    tell(
        f"port open after exec, {what}",
        f"{opened:.2f} s",
        f"≤ {START_S_MAX} s",
        met=opened <= START_S_MAX,
    )
    tell(f"RSS, {what}", f"{rss:.1f} MB", f"≤ {RSS_MB_MAX} MB", met=rss <= RSS_MB_MAX)


def flood() -> None:
    """As many lines as the pty carries."""
    with tempfile.TemporaryDirectory() as name:
        board = ("--flood", "--count", str(FLOOD_LINES), "--noise-w", "50")
        begun = time.monotonic()
        processes = start(Path(name), board, 2000)
        try:
            processes[0].wait(120)
            took = time.monotonic() - begun
        finally:
            stop(processes[1:])
        from meterd.device.archive import Known, verify

        verdict = verify(Path(name) / "account", Known())
        rows = verdict.records + verdict.open_rows
    rate = FLOOD_LINES / took
    tell(
        f"through a pty, {FLOOD_LINES} lines, {FLOOD_LINES - rows} lost",
        f"{rate:,.0f} lines/s",
        f"≥ {LINES_PER_S_MIN:,}, none lost",
        met=rate >= LINES_PER_S_MIN and rows == FLOOD_LINES,
    )


def main() -> None:
    """Tell all of it."""
    flood()
    idle()
