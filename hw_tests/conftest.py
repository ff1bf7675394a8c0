"""Options that say what is on the bench, and the rig that the tests use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hw_tests.rig import SIM_POLLING_MS, Bench, PiRig, Rig, SimRig
from meterd.metering.layout import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PINS = {"case_switch": 17, "led": 22, "relay": 24}  # where hw_tests/README.md wires them
SIM_LOAD_W = 1000.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench", "what is on the bench (hw_tests/README.md)")
    group.addoption("--port", help="the board's serial port, or `sim`")
    group.addoption("--load-w", type=float, metavar="W", help="what the known load draws")
    group.addoption("--layout", default="rpict3v1", choices=sorted(LAYOUTS), help="(rpict3v1)")
    group.addoption("--polling-ms", type=int, metavar="MS", help="the board's cadence (5000)")
    for key, pin in PINS.items():
        name = f"--{key.replace('_', '-')}"
        group.addoption(name, action="store_true", help=f"there is one, on GPIO {pin}")
        group.addoption(f"{name}-pin", type=int, default=pin, metavar="BCM", help=f"({pin})")
    group.addoption("--interactive", action="store_true", help="somebody switches, pulls and looks")
    group.addoption("--sim-fault", default="", metavar="KIND", help="of the simulated board")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say what is missing before anything is tried, and let a person take their time."""
    ours = [item for item in items if "rig" in getattr(item, "fixturenames", ())]
    if not ours:
        return
    port = config.getoption("--port")
    if not port:
        raise pytest.UsageError("name the board's port: --port /dev/ttyAMA0, or --port sim")
    if port != "sim" and not config.getoption("--load-w"):
        raise pytest.UsageError("say what the known load draws: --load-w 1000")
    for item in ours:
        if port != "sim":
            item.add_marker(pytest.mark.timeout(0 if config.getoption("--interactive") else 600))


def _bench(config: pytest.Config, folder: Path) -> Bench:
    simulated = config.getoption("--port") == "sim"
    polling_ms = config.getoption("--polling-ms")
    return Bench(
        port=folder / "board" if simulated else Path(config.getoption("--port")),
        load_w=config.getoption("--load-w") or SIM_LOAD_W,
        layout=config.getoption("--layout"),
        polling_ms=polling_ms or (SIM_POLLING_MS if simulated else 5000),
        pins={
            key: config.getoption(f"--{key.replace('_', '-')}-pin")
            for key in PINS
            if simulated or config.getoption(f"--{key.replace('_', '-')}")
        },
        interactive=config.getoption("--interactive"),
    )


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """One meter with a new account; its load is on."""
    config = request.config
    bench = _bench(config, tmp_path)
    if config.getoption("--port") == "sim":
        with SimRig(bench, tmp_path, config.getoption("--sim-fault")) as simulated:
            yield simulated
        return
    rig = PiRig(bench, tmp_path, _asker(config))
    rig.switch_load(on=True)
    yield rig


def _asker(config: pytest.Config) -> Callable[[str], str]:
    capture = config.pluginmanager.getplugin("capturemanager")

    def ask(line: str) -> str:
        if capture is None:
            return input(line)
        with capture.global_and_fixture_disabled():
            return input(line)

    return ask
