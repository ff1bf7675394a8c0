"""Who may call what: by the kernel's word for who has connected, over the socket itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meterd.device.control import (
    CONNECTIONS_MAX,
    OPERATOR_PLACES,
    STREAMS_MAX,
    ControlServer,
    _Control,
)
from meterd.device.control_parameters import ParametersInterface
from meterd.device.control_roles import OPERATOR, ROLES, TECHNICIAN, may, role_of
from tests.daemon_kit import NOBODY, need_root
from tests.device.test_control import Meter, served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.device.control_parameters import ChangedReply

OPERATORS_ALONE = {
    *("Prune", "RelaySet", "VaultKeep", "VaultRotate", "VaultErase"),
}
OTHERS = {"Show", "Clamps", "Change", "Commission"}  # of the interface beside
ABOUT = {"certificate": "jo", "serial": 17}
PARAMETERS: dict[str, dict[str, object]] = {
    "Login": {**ABOUT, "key": "SHA256:x", "source": "192.0.2.7"},
    "Left": {**ABOUT, "source": "192.0.2.7"},
    "Command": {**ABOUT, "command": "case ack"},
    "LoginRefused": {
        "key": "1",
        "account": "root",
        "reason": "key",
        "source": "192.0.2.7",
        "at_s": 1,
    },
    "Prune": {"before_s": 7},
    "RelaySet": {"closed": True},
    "Report": {"since_s": 0},
    "VaultTake": {"subject": "s-1", "key": "", "purposes": []},
    "VaultKeep": {"share": "", "key": "", "version": 0},
    "VaultErase": {"subject": "s-1"},
}
STREAMS = {"Events"}
ASK = """\
import json, os, socket, sys
path, calls, uid = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
for call in calls:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendall(json.dumps(call).encode() + b"\\0")
        answer = b""
        while b"\\0" not in answer:
            answer += line.recv(65536)
    print(json.loads(answer.partition(b"\\0")[0]).get("error", ""))
"""


def methods() -> set[str]:
    """Return the methods that our interfaces describe."""
    described = [
        line
        for interface in (_Control, ParametersInterface)
        for line in interface.render_interface_description(comments=False).splitlines()
    ]
    return {line.split("(")[0].split()[1] for line in described if "method " in line}


def test_every_method_has_its_roles_and_no_other_has() -> None:
    assert set(ROLES) == methods()
    assert {name for name in ROLES if not may(TECHNICIAN, name)} == OPERATORS_ALONE
    assert all(may(OPERATOR, name) for name in ROLES)


@pytest.mark.parametrize(
    ("uid", "role"),
    [
        pytest.param(0, OPERATOR, id="root"),
        pytest.param(998, OPERATOR, id="the daemon's own user"),
        pytest.param(1000, TECHNICIAN, id="a member of the group"),
        pytest.param(65_534, TECHNICIAN, id="whom the kernel cannot name"),
    ],
)
def test_the_role_is_that_of(uid: int, role: str) -> None:
    assert role_of(uid, own_uid=998) == role


@pytest.fixture
def hall() -> Iterator[Path]:
    """A folder that everybody may look into."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


def ask(path: Path, names: list[str], *, uid: int) -> dict[str, str]:
    """Call methods as a user; return the error of each."""
    calls = [
        {
            "method": f"org.meterd.Control.{name}",
            "parameters": PARAMETERS.get(name, {}),
            "more": name in STREAMS,
        }
        for name in names
    ]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ASK, str(path), json.dumps(calls), str(uid)],
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(zip(names, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize(
    ("uid", "refused"),
    [
        pytest.param(NOBODY, OPERATORS_ALONE, id="a technician"),
        pytest.param(0, set(), id="the operator"),
    ],
)
def test_over_the_socket_refused_is_what_is_not_for(
    hall: Path, uid: int, refused: set[str]
) -> None:
    need_root()
    names = sorted(set(ROLES) - {"Live"} - OTHERS)  # it says nothing until there is a reading

    async def knock() -> tuple[dict[str, str], Meter]:
        async with served(hall / "control", lambda _: True) as running:
            (hall / "control").chmod(0o666)
            return await asyncio.to_thread(ask, hall / "control", names, uid=uid), running.meter

    said, meter = asyncio.run(knock())
    denied = {name for name, error in said.items() if error.endswith(".PermissionDenied")}
    assert denied == refused - OTHERS
    vaults = {name for name in names if name.startswith("Vault")}  # there is none
    assert {name for name, error in said.items() if error} - vaults == denied - vaults
    assert bool(meter.pruned) is (not refused)
    assert any(told[0] == "relay_set" for told in meter.told) is (not refused)
    role = TECHNICIAN if refused else OPERATOR
    assert ("command", (role, "jo", 17), "case ack") in meter.told


@pytest.mark.parametrize(("uid", "role"), [(NOBODY, TECHNICIAN), (0, OPERATOR)])
def test_an_interface_beside_is_made_for_the_role_of(hall: Path, uid: int, role: str) -> None:
    need_root()
    asked: list[tuple[str, str, str]] = []

    class Desk:
        async def commission(self, record: str, owner: str, role: str) -> ChangedReply:
            asked.append((record, owner, role))
            return {"by": "commissioning", "sequence": 2, "record": ""}

    async def knock() -> None:
        source: Any = Desk()
        server = ControlServer(
            hall / "control", Meter(), lambda _: True, beside=partial(ParametersInterface, source)
        )
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve())
            await server.listening.wait()
            (hall / "control").chmod(0o666)
            call = {
                "method": "org.meterd.Parameters.Commission",
                "parameters": {"record": "5f", "owner": "5f"},
            }
            command = [sys.executable, "-I", "-c", ASK, str(hall / "control")]
            command += [json.dumps([call]), str(uid)]
            await asyncio.to_thread(lambda: subprocess.run(command, check=True))
            serving.cancel()

    asyncio.run(knock())
    assert asked == [("5f", "5f", role)]


HOLD = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
lines = []
for _ in range(int(sys.argv[3])):
    line = socket.socket(socket.AF_UNIX)
    line.connect(sys.argv[1])
    line.sendall(b'{"method": "org.meterd.Control.Status"}\\0')
    lines.append((line, line.recv(65536)))
print(sum(b"TooManyConnections" in said for _, said in lines), flush=True)
sys.stdin.read()
"""


def test_who_takes_all_the_places_leaves_the_operator_one(hall: Path) -> None:
    need_root()

    async def crowd() -> tuple[int, dict[str, str]]:
        async with served(hall / "control", lambda _: True) as running:
            (hall / "control").chmod(0o666)
            options = ("-I", "-c", HOLD, str(running.path), str(NOBODY), str(CONNECTIONS_MAX))
            crowding = await asyncio.create_subprocess_exec(
                sys.executable, *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert crowding.stdin is not None
            assert crowding.stdout is not None
            turned_away = int(await crowding.stdout.readline())
            said = await asyncio.to_thread(ask, running.path, ["Status"], uid=0)
            crowding.stdin.close()
            await crowding.wait()
            return turned_away, said

    assert asyncio.run(crowd()) == (OPERATOR_PLACES, {"Status": ""})


LISTEN = """
import os, select, socket, sys, time
os.setuid(int(sys.argv[2]))
lines, refused, ends_s = [], 0, time.monotonic() + 20
for _ in range(int(sys.argv[3])):
    line = socket.socket(socket.AF_UNIX)
    line.connect(sys.argv[1])
    line.sendall(b'{"method": "org.meterd.Control.Live", "more": true}\\0')
    lines.append(line)
while refused < int(sys.argv[4]) and time.monotonic() < ends_s:
    for line in select.select(lines, [], [], 0.1)[0]:
        refused += b"TooManyConnections" in line.recv(65536)
print(refused, flush=True)
sys.stdin.read()
"""


def test_who_listens_in_all_the_places_leaves_others_some_to_call(hall: Path) -> None:
    need_root()

    async def listen() -> tuple[int, dict[str, str], dict[str, str]]:
        async with served(hall / "control", lambda _: True) as running:
            (hall / "control").chmod(0o666)
            crowd = (str(NOBODY), str(STREAMS_MAX + 3), "3")
            options = ("-I", "-c", LISTEN, str(running.path), *crowd)
            crowding = await asyncio.create_subprocess_exec(
                sys.executable, *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert crowding.stdin is not None
            assert crowding.stdout is not None
            turned_away = int(await crowding.stdout.readline())
            called = await asyncio.to_thread(ask, running.path, ["Status"], uid=NOBODY)
            listened = await asyncio.to_thread(ask, running.path, ["Events"], uid=0)
            crowding.stdin.close()
            await crowding.wait()
            return turned_away, called, listened

    assert asyncio.run(listen()) == (3, {"Status": ""}, {"Events": ""})


def test_a_method_without_a_line_is_the_operators_alone() -> None:
    assert may(OPERATOR, "Tomorrow")
    assert not may(TECHNICIAN, "Tomorrow")
    assert not may("stranger", "Status")
