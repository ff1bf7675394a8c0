"""What users install: the wheel in an environment of its own; what it makes of changed files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.accounts import flag_names
from tests.conftest import ROOT
from tests.daemon_kit import Cable, House, Stored, line, make_house

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build: list[str | Path] = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        folder,
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; what meterd depends on is lent by the tests' own."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin" / "python",
        "install",
    ]
    options: list[str | Path] = ["--quiet", "--no-deps", "--no-index", "--no-compile", wheel]
    subprocess.run([*pip, *options], check=True, capture_output=True)
    return folder


@pytest.fixture
def house(tmp_path: Path, environment: Path) -> House:
    house = make_house(tmp_path, network="")
    house.program = (environment / "bin" / "meterd",)
    return house


def files_below(folder: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_holds_types_and_the_wire_format_and_what_a_lockdown_installs(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "meterd/py.typed" in names
    assert "meterd/ledger/meterd.cddl" in names
    assert {name for name in names if name.startswith("meterd/")} == {
        *files_below("meterd"),
        *(f"meterd/share/{name}" for name in (*files_below("systemd"), *files_below("config"))),
    }
    assert {name.split("/")[0] for name in names} == {"meterd", "meterd-0.1.0.dist-info"}


@pytest.mark.parametrize("program", ["meterd", "meterctl"])
def test_both_programs_are_installed(environment: Path, program: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [environment / "bin" / program, "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert run.stdout.startswith(f"{program} 0.1.0 (software ")


def test_an_installed_meterctl_has_what_a_lockdown_installs(
    environment: Path, tmp_path: Path
) -> None:
    (tmp_path / "etc").mkdir()
    run = subprocess.run(
        [environment / "bin" / "meterctl", "lockdown", "plan", "--root", tmp_path, "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    paths = {change["path"] for change in json.loads(run.stdout)["changes"]}
    assert {"/etc/systemd/system/meterd.service", "/etc/nftables.conf"} <= paths


class Change(NamedTuple):
    """One bit of an installed file.

    Attributes:
        module: The file, below the package.
        before: The bytes before the one that is changed.
        noted: Whether what is left of the software can still write that down.
        tail: What a kill has left behind the last event.
    """

    module: str
    before: bytes
    noted: bool
    tail: bytes = b""


TIMES_S = count(1_000_000_000, 10)


def write(path: Path, data: bytes) -> None:
    """Write a module at a time of its own: of two in one second, Python takes either byte code."""
    path.write_bytes(data)
    at_s = next(TIMES_S)
    os.utime(path, (at_s, at_s))


def flip(path: Path, before: bytes) -> None:
    """Change one bit of the byte behind `before`."""
    data = bytearray(path.read_bytes())
    data[data.index(before) + len(before)] ^= 1
    write(path, bytes(data))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            Change("metering/energy.py", b'"""Power ', noted=True), id="a word in a comment"
        ),
        pytest.param(
            Change("metering/energy.py", b'"""Power ', noted=True, tail=b"\0\0torn"),
            id="a word in a comment, after a kill",
        ),
        pytest.param(
            Change("ctl/__init__.py", b'"""', noted=True), id="a program that does not meter"
        ),
        pytest.param(Change("metering/energy.py", b"\ndef", noted=False), id="no Python any more"),
        pytest.param(
            Change("config.py", b"        with ", noted=False), id="a name that fails at run time"
        ),
    ],
)
def test_an_installed_daemon_refuses_changed_files_and_goes_on_when_they_are_put_back(
    house: House, environment: Path, change: Change
) -> None:
    """Row S5 of REQUIREMENTS.md: checked at start; on a mismatch it alarms and seals nothing."""
    module, before, noted, tail = change
    [path] = environment.glob(f"lib/python*/site-packages/meterd/{module}")
    whole = path.read_bytes()
    with Cable(house.port) as cable:
        with house.run() as meter:
            assert meter.hear("^started .*").string.endswith("installed=verified")
            meter.hear("port_opened")
            for count in range(50):
                cable.say(line(count))
            house.wait_accepted(50)
            assert meter.stop() == 0
        with (house.state / "events" / "00000001.seg").open("ab") as file:
            file.write(tail)
        flip(path, before)
        try:
            with house.run() as changed:
                assert changed.end() == 78
        finally:
            write(path, whole)
        assert f"meterd/{module} is not as it was installed" in changed.said
        assert "install meterd afresh" in changed.said
        assert "Traceback" not in changed.said
        events = house.account.events
        told = [(event.kind, event.details[:1]) for event in events[-2:] if noted]
        assert [kind for kind, _ in told] == ["refused", "alarm"][: len(told)]
        assert ("refused" in {event.kind for event in events}) is noted
        assert house.account.blocks == [], "changed software sealed what was open"
        house.verify_good()
        with house.run() as again:
            again.hear("port_opened")
            cable.say(line(1) + line(2))
            house.wait_accepted(2)
            assert again.stop() == 0
    assert Stored(house.state).rows == 52
    partial, *others = house.account.blocks
    assert partial.records == 50
    assert all("gap" in flag_names(other.flags) for other in others), (
        "an interval may have ended meanwhile"
    )
    house.verify_good()
