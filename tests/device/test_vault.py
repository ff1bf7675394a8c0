from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from meterd.device import vault as vault_module
from meterd.device.vault import StoredVault, changes, new_passphrase, passphrase_key
from meterd.errors import AbsentError, BusyError, DeniedError, VaultRefusedError
from meterd.privacy.envelope import Passphrase, Vault, device_key
from tests.test_crash_states import Disk, File

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meterd.device.card import Operation

DEVICE, OTHER = device_key(bytes(32)), device_key(b"o" * 32)
QUICK = Passphrase(bytes(16), 1, 8)
KEY = passphrase_key("correct horse", QUICK)
NAME = b"Ada Example"


def draw(length: int) -> bytes:
    return os.urandom(length)


def with_ada(vault: Vault) -> Vault:
    vault = vault.with_subject("s-1", draw, QUICK, KEY)
    return vault.put("s-1", "name", NAME, draw, KEY)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a state folder whose vault holds one person's name."""
    with StoredVault(tmp_path, DEVICE) as stored:
        assert stored.keep(with_ada(stored.vault)) == 1
    return tmp_path


def names(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "vault").iterdir())


def test_what_is_kept_is_there_the_next_time(state: Path) -> None:
    with StoredVault(state, DEVICE, version_min=1) as stored:
        assert stored.vault.get("s-1", "name", KEY) == NAME
        stored.keep(stored.vault.put("s-1", "name", b"Bob", draw, KEY))
        stored.keep(stored.vault.put("s-1", "city", b"Elm", draw, KEY))
    assert names(state) == ["content-3", "key"]
    with StoredVault(state, DEVICE, version_min=3) as stored:
        assert stored.vault.get("s-1", "name", KEY) == b"Bob"
        assert stored.vault.get("s-1", "city", KEY) == b"Elm"


def test_nobody_else_reads_the_folder(state: Path) -> None:
    assert (state / "vault").stat().st_mode & 0o777 == 0o700
    (state / "vault").chmod(0o750)
    with pytest.raises(DeniedError, match="read or changed by others \\(mode 0750\\)"):
        StoredVault(state, DEVICE)


def test_one_program_at_a_time_has_it_open(state: Path) -> None:
    with (
        StoredVault(state, DEVICE),
        pytest.raises(BusyError, match=r"another program has .*vault open"),
    ):
        StoredVault(state, DEVICE)
    StoredVault(state, DEVICE).close()
    with pytest.raises(VaultRefusedError):
        StoredVault(state, OTHER)
    StoredVault(state, DEVICE).close()


def test_a_child_that_is_being_started_does_not_keep_it_locked(state: Path) -> None:
    stored = StoredVault(state, DEVICE)
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        stored.close()
        StoredVault(state, DEVICE).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_there_is_no_vault_without_an_account(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match=r"there is no .*nothing"):
        StoredVault(tmp_path / "nothing", DEVICE)


def changed(stored: StoredVault) -> Vault:
    return stored.vault.put("s-1", "name", b"Bob", draw, KEY)


def rotated(stored: StoredVault) -> Vault:
    return stored.vault.rooted(draw)


def erased(stored: StoredVault) -> Vault:
    return stored.vault.without("s-1", draw)


def held(state: Path) -> bytes | None:
    """Return the name that the vault holds; None where the person is not there."""
    with StoredVault(state, DEVICE) as stored:
        try:
            name: bytes | None = stored.vault.get("s-1", "name", KEY)
        except AbsentError:
            name = None
        stored.keep(stored.vault.rooted(draw))  # it goes on
    assert len(names(state)) == 2
    return name


def crashed(folder: Path, operations: list[Operation]) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Yield what may be in the folder, with how many operations were begun before."""
    there = {path.name: path.read_bytes() for path in folder.iterdir()}
    disk = Disk({name: File(data, len(data)) for name, data in there.items()})
    for at, operation in enumerate(operations):
        name = "." if operation.path == folder else operation.path.name
        disk.do(operation.kind, name, operation.data)
        for state in disk.states():
            yield at, state


@pytest.mark.parametrize(
    ("change", "after"),
    [(changed, b"Bob"), (rotated, NAME), (erased, None)],
    ids=["a record", "the root key", "an erasure"],
)
def test_v7_power_may_fail_at_each_step(
    state: Path, tmp_path: Path, change: Callable[[StoredVault], Vault], after: bytes | None
) -> None:
    folder, found = state / "vault", set[bytes | None]()
    with StoredVault(state, DEVICE) as stored:
        before = [path for path in folder.iterdir() if path.name != "key"]
        operations = changes(folder, change(stored), before)
    assert [operation.kind for operation in operations] == [
        "replace", "replace", "unlink", "sync_folder"
    ]  # fmt: skip
    for number, (at, files) in enumerate(crashed(folder, operations)):
        again = tmp_path / f"again-{number}"
        (again / "vault").mkdir(parents=True, mode=0o700)
        for name, data in files.items():
            (again / "vault" / name).write_bytes(data)
        now = held(again)
        assert now == (NAME if at == 0 else after)
        found.add(now)
    assert found == {NAME, after}


_KILLED = """
import os, signal, sys
from pathlib import Path
from meterd.device import vault as module
from tests.device.test_vault import DEVICE, KEY, draw
state, steps = Path(sys.argv[1]), int(sys.argv[2])
with module.StoredVault(state, DEVICE) as stored:
    vault = stored.vault.put("s-1", "name", b"Bob", draw, KEY)
    real, done = stored._card._do, [0]
    def one(operation):
        if done[0] == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        done[0] += 1
        real(operation)
    stored._card._do = one
    stored.keep(vault)
"""


@pytest.mark.parametrize("steps", range(5))
def test_v7_a_process_that_is_killed_leaves_one_valid_state(state: Path, steps: int) -> None:
    ran = subprocess.run([sys.executable, "-c", _KILLED, str(state), str(steps)], check=False)
    assert ran.returncode == -signal.SIGKILL
    assert held(state) == (NAME if steps < 3 else b"Bob")


def lay(state: Path, name: str, data: bytes | None) -> None:
    path = state / "vault" / name
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


def test_v7_what_is_not_the_last_vault_of_this_device_is_refused_by_name(
    state: Path, tmp_path: Path
) -> None:
    yesterday = {path.name: path.read_bytes() for path in (state / "vault").iterdir()}
    with StoredVault(state, DEVICE) as stored:
        stored.keep(stored.vault.put("s-1", "name", b"Bob", draw, KEY))
    today = {path.name: path.read_bytes() for path in (state / "vault").iterdir()}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with StoredVault(elsewhere, OTHER) as stored:
        stored.keep(with_ada(stored.vault))
        stored.keep(stored.vault)
    foreign = {path.name: path.read_bytes() for path in (elsewhere / "vault").iterdir()}
    cases: list[tuple[dict[str, bytes | None], str]] = [
        ({"content-2": yesterday["content-1"]}, "the content is older: version 1, and 2 counts"),
        ({"content-2": foreign["content-2"]}, "the content is another device's"),
        ({"content-2": None}, "content-2, there is none"),
        ({"content-2": None, "content-1": yesterday["content-1"]}, "there is content-1"),
        ({"content-2": bytes(5_000_000)}, "more than 4194304 bytes"),
        ({"key": foreign["key"]}, "sealed on another device"),
        ({"key": b"not a key"}, "the key to the vault is damaged"),
        ({"key": None, "content-1": b""}, "the key to the vault is gone"),
    ]
    for files, reason in cases:
        for name, data in files.items():
            lay(state, name, data)
        with pytest.raises(VaultRefusedError, match=reason):
            StoredVault(state, DEVICE)
        for path in (state / "vault").iterdir():
            path.unlink()
        for name, good in today.items():
            lay(state, name, good)
    for path in (state / "vault").iterdir():
        path.unlink()
    for name, good in yesterday.items():
        lay(state, name, good)
    with pytest.raises(VaultRefusedError, match="the vault is older: 1 of 2 times written"):
        StoredVault(state, DEVICE, version_min=2)
    for path in (state / "vault").iterdir():
        path.unlink()
    with pytest.raises(VaultRefusedError, match="the vault is gone: it was written 2 times"):
        StoredVault(state, DEVICE, version_min=2)


def test_a_passphrase_comes_to_the_same_key_and_another_to_another() -> None:
    assert passphrase_key("correct horse", QUICK) == KEY
    assert passphrase_key("correct horsf", QUICK) != KEY
    assert passphrase_key("correct horse", QUICK._replace(salt=b"s" * 16)) != KEY
    one, other = new_passphrase(), new_passphrase()
    assert one.salt != other.salt
    assert (one.passes, one.memory_kib) == (vault_module.PASSES, vault_module.MEMORY_KIB)


@pytest.mark.parametrize("greedy", [QUICK._replace(memory_kib=2**24), QUICK._replace(passes=10**6)])
def test_a_file_from_elsewhere_does_not_stop_the_machine(greedy: Passphrase) -> None:
    with pytest.raises(VaultRefusedError, match="more time or memory than is allowed"):
        passphrase_key("x", greedy)
