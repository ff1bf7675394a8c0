"""The vault under the units, in a booted container: what binds it, who reads it, where it is."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.container.build import BASE
from tests.container.device import BROKER_UNIT, STATE, Board, begin, deliver, enrol, wheel
from tests.container.device import NAME as METER_NAME
from tests.container.machine import METER, Machine, Tree
from tests.vault_kit import CANARIES, CONTRACT, NAME, PASSPHRASE, found_in_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(400)  # whichever comes first boots the machine

BOARD_UNIT = "meterd-board.service"
PLANTED = "/srv/nvmem"  # in the place of the memory, which this kernel does not show
DROP_IN = f"""\
[Service]
TemporaryFileSystem=/sys/bus
BindReadOnlyPaths=-{PLANTED}:/sys/bus/nvmem/devices
"""
ONE_TIME = bytes(range(7, 39))
SEARCH = """
grep --no-messages --text --recursive --fixed-strings --files-with-matches --regexp="$KEY" \\
    /etc /run /usr/lib/systemd /var /srv /tmp
for file in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do
    grep --quiet --text --fixed-strings --regexp="$KEY" "$file" 2>/dev/null && echo "$file"
done
journalctl --namespace=* --all --no-pager --output=export | grep --quiet --text \\
    --fixed-strings --regexp="$KEY" && echo journal
exit 0
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A device that runs, whose board's memory is ours to plant."""
    folder = tmp_path_factory.mktemp("device")
    with Tree(folder, BASE / "root") as tree:
        deliver(tree, wheel(folder))
        (tree.path / "etc/systemd/system/broker.service").write_text(BROKER_UNIT)
        drop_in = tree.path / f"etc/systemd/system/{BOARD_UNIT}.d/test.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(DROP_IN)
        enrol(tree)
        with (
            Board(folder, tree.id_of("meterd")) as board,
            Machine(tree, board=board.link.resolve()) as machine,
        ):
            begin(machine)
            yield machine


def vault(device: Machine, *arguments: str, said: str = "", check: bool = True) -> str:
    return device.run("meterctl", "vault", *arguments, said=said, check=check)


def bound(device: Machine) -> bool:
    return bool(json.loads(vault(device, "list", "--json"))["bound"])


def journal(device: Machine, unit: str) -> str:
    device.run("journalctl", "--namespace=meterd", "--sync")
    return device.run("journalctl", "--namespace=meterd", "-u", unit, "--no-pager", "-o", "cat")


def test_h1_what_reads_the_board_is_exposed_no_more_than_it_may() -> None:
    unit = str(ROOT / "systemd" / BOARD_UNIT)
    analyze = ("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=8")
    done = subprocess.run([*analyze, unit], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.fixture(scope="module")
def unbound(device: Machine) -> dict[str, str]:
    """What a device says whose board holds no key; a board cannot be put back to that."""
    return {
        "board": device.shown(BOARD_UNIT, "ActiveState"),
        "meter": device.shown(METER, "ActiveState"),
        "journal": journal(device, BOARD_UNIT),
        "list": vault(device, "list"),
        "bound": str(bound(device)),
    }


def test_a_board_without_a_key_binds_nothing_and_says_so(unbound: dict[str, str]) -> None:
    assert (unbound["board"], unbound["meter"], unbound["bound"]) == ("active", "active", "False")
    assert "holds no key" in unbound["journal"]
    assert "is not bound to the board" in unbound["list"]


@pytest.fixture(scope="module")
def kept(device: Machine) -> str:
    """Return the passphrase's file, once a person's records are in the vault."""
    key = "/dev/shm/passphrase"
    device.run("bash", "-c", f"umask 077; cat > {key}", said=f"{PASSPHRASE}\n")
    for purpose, data in (("person", NAME), ("contract", CONTRACT)):
        vault(device, "put", "flat-3", purpose, "--passphrase-file", key, said=data.decode())
    assert vault(device, "show", "flat-3", "person", "--passphrase-file", key) == NAME.decode()
    return key


@pytest.mark.usefixtures("kept")
def test_v1_v5_what_is_kept_of_a_person_is_on_the_device_in_no_clear_place(
    device: Machine,
) -> None:
    assert STATE in "".join(places_of(device, "flat-3")), "a pseudonym is found, so the search can"
    for canary in CANARIES:
        assert places_of(device, canary.decode()) == []
    pid = device.shown(METER, "MainPID")
    status = device.run("cat", f"/proc/{pid}/status")
    assert "VmRSS" in status
    held = METER_NAME.encode()  # from start to end; a pseudonym is forgotten once it is sealed
    found = found_in_memory(device.outside_id(pid), (*CANARIES, held))
    assert found == {held}, "the search finds what is"


def places_of(device: Machine, text: str) -> list[str]:
    return device.run("bash", "-c", "read -r KEY;" + SEARCH, said=text).split()


def test_v1_the_kernel_writes_no_core_of_the_meter(device: Machine) -> None:
    pid = device.shown(METER, "MainPID")
    limits = device.run("cat", f"/proc/{pid}/limits")
    [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4:6] == ["0", "0"]
    device.run("systemctl", "kill", "--signal=SEGV", METER)
    device.until(
        lambda: (
            device.shown(METER, "MainPID") not in {"0", pid}
            and device.shown(METER, "ActiveState") == "active"
        ),
        "a restart",
    )
    assert "core-dump" not in device.run("journalctl", "-u", METER, "--no-pager", "-o", "cat")
    assert device.run("find", "/", "-xdev", "-name", "core*", "-size", "+1M") == ""


def test_who_is_of_the_group_lists_and_changes_nothing(device: Machine, kept: str) -> None:
    as_technician = ("runuser", "-u", "technician", "--", "meterctl", "vault")
    listed = json.loads(device.run(*as_technician, "list", "--json"))
    assert ("flat-3", "person") in [(one["subject"], one["purpose"]) for one in listed["records"]]
    key = device.run("cat", kept)
    for action in (("rotate",), ("erase", "flat-3", "--yes")):
        said = device.run(*as_technician, *action, check=False)
        assert "does not let this user" in said
    wrong = device.run(
        *as_technician, "show", "flat-3", "--passphrase-file", "-", said="x" * 12, check=False
    )
    assert "that is not the passphrase of flat-3" in wrong
    shown = device.run(*as_technician, "show", "flat-3", "--passphrase-file", "-", said=key)
    assert "17 Elm Street" in shown, "whoever has the passphrase reads"


def plant(device: Machine, data: bytes) -> None:
    """Let the board hold this, as at the next boot."""
    folder = device.tree.path / PLANTED[1:] / "nvmem_priv0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nvmem").write_bytes(data)
    device.run("systemctl", "restart", BOARD_UNIT)


@pytest.mark.usefixtures("unbound")
def test_v6_a_board_with_a_key_binds_the_vault_and_no_other_board_opens_it(
    device: Machine, kept: str
) -> None:
    plant(device, bytes(32))
    assert not device.run("ls", "/run/credstore").split()
    plant(device, ONE_TIME)
    assert "holds a key of 32 bytes" in journal(device, BOARD_UNIT)
    assert device.run("stat", "-c", "%a %U", "/run/credstore", "/run/credstore/meterd.board").split(
        "\n"
    )[:2] == ["700 root", "400 root"]
    device.run("systemctl", "stop", METER)
    vault(device, "rotate", "--device")
    device.restart(METER)
    assert bound(device)
    show = ("show", "flat-3", "person", "--passphrase-file", kept)
    assert vault(device, *show) == NAME.decode()
    plant(device, ONE_TIME[::-1])
    device.run("systemctl", "restart", METER, check=False)
    device.until(lambda: "sealed on another device" in said_by(device), "a refusal by name")
    plant(device, ONE_TIME)
    device.restart(METER)
    device.until(lambda: "flat-3" in vault(device, "list", check=False), "the vault")
    assert vault(device, *show) == NAME.decode()
    verdict = device.run("meterctl", "verify", STATE, "--json", check=False)
    assert json.loads(verdict)["verdict"] == "good"
    place = ONE_TIME[7:20].decode("latin-1")
    assert found_nowhere(device, place)


def said_by(device: Machine) -> str:
    return device.run("journalctl", "--namespace=*", "-u", METER, "--no-pager", "-o", "cat")


def found_nowhere(device: Machine, text: str) -> bool:
    """Return whether no file below the meter's folders or `/etc` has these bytes."""
    return not [
        path
        for folder in ("etc", "var")
        for path in (device.tree.path / folder).rglob("*")
        if path.is_file() and not path.is_symlink() and text.encode("latin-1") in path.read_bytes()
    ]
