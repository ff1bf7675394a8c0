"""A lockdown of a device's files below another root: applied, checked, undone, cut short."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from meterd.ctl import main
from meterd.device import card
from meterd.device.lockdown_device import Content, Gone, Link
from meterd.device.lockdown_files import KEPT, DeviceTree, Keeper
from meterd.device.lockdown_live import own_usb, session_of, uses_wireless
from meterd.device.lockdown_way_in import CA_FILE
from meterd.errors import BusyError, StorageError
from tests.conftest import ROOT
from tests.device.test_lockdown import CA, CMDLINE, GROUP, PASSWD, SHADOW

State = dict[str, tuple[object, ...]]
UNIT = "/usr/lib/systemd/system"
SAMPLED = 12  # of the places where a whole apply is killed


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What meterd brings, settings for sshd among it whether this tree has some or not."""
    folder = tmp_path / "share"
    for name in ("systemd", "config"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "config" / "sshd.conf").write_text("AuthenticationMethods publickey\n")
    monkeypatch.setattr("meterd.ctl.lockdown.share_folder", lambda: folder)
    return folder


@pytest.fixture
def root(tmp_path: Path, share: Path) -> Path:
    """Raspberry Pi OS as it is flashed, as far as a lockdown looks, and a technicians' CA."""
    del share
    root = tmp_path / "root"
    files = {
        "/boot/firmware/cmdline.txt": CMDLINE,
        "/boot/firmware/config.txt": "dtparam=audio=on\n",
        "/etc/passwd": PASSWD,
        "/etc/group": GROUP,
        "/etc/gshadow": "root:*::\n",
        "/etc/shadow": SHADOW,
        "/etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\n",
        "/etc/sudoers.d/010_pi-nopasswd": "pi ALL=(ALL) NOPASSWD: ALL\n",
        "/etc/nftables.conf": "flush ruleset\n",
        f"{UNIT}/nftables.service": "[Install]\nWantedBy=sysinit.target\n",
        f"{UNIT}/ssh.service": "[Install]\nWantedBy=multi-user.target\n",
        f"{UNIT}/usbguard.service": "[Install]\nWantedBy=basic.target\n",
        "/usr/sbin/nft": "",
        "/usr/sbin/sshd": "",
        "/usr/sbin/usbguard-daemon": "",
        CA_FILE: CA.decode(),
    }
    for path, data in files.items():
        where = root / path[1:]
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(data)
    (root / "etc/shadow").chmod(0o640)
    (root / "etc/nftables.conf").chmod(0o755)
    (root / "var/lib").mkdir(parents=True)
    getty = root / "etc/systemd/system/getty.target.wants/getty@tty1.service"
    getty.parent.mkdir(parents=True)
    getty.symlink_to(f"{UNIT}/getty@.service")
    return root


def state_of(root: Path, *, kept: bool = False) -> State:
    """Return every path with its kind, mode, owner and content; without what is kept of before."""
    found: State = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            at = "/" + str(path.relative_to(root))
            if at.startswith(KEPT) and not kept:
                continue
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            mode = 0 if path.is_symlink() else stat.S_IMODE(status.st_mode)
            data: object = None
            if path.is_symlink():
                data = str(path.readlink())
            elif path.is_file():
                data = path.read_bytes()
            found[at] = (kind, mode, status.st_uid, status.st_gid, data)
    return found


def lockdown(command: str, root: Path, *more: str) -> int:
    return main(["lockdown", command, "--root", str(root), *more])


def test_apply_check_and_undo_of_a_device(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(root, kept=True)
    assert lockdown("check", root) == 1
    assert lockdown("plan", root) == 0
    assert state_of(root, kept=True) == before, "check and plan change nothing"
    assert lockdown("apply", root, "--yes") == 0
    assert "what was there is kept in /var/lib/meterd-lockdown" in capsys.readouterr().out
    assert lockdown("check", root) == 0
    after = state_of(root)
    assert not list(root.rglob("*.new"))
    assert lockdown("apply", root, "--yes") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert state_of(root) == after, "the second time changes nothing"
    assert lockdown("undo", root, "--yes") == 0
    assert state_of(root, kept=True) == before, "every byte and mode is as it was"
    assert lockdown("undo", root, "--yes") == 0
    assert "nothing to undo" in capsys.readouterr().out


def test_what_is_kept_is_for_root_alone(root: Path) -> None:
    """Hashes of passwords are in there."""
    lockdown("apply", root, "--yes")
    folder = root / KEPT[1:]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_hash_of_a_password_is_never_shown(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lockdown("plan", root)
    lockdown("plan", root, "--json")
    lockdown("apply", root, "--yes")
    lockdown("check", root)
    said = capsys.readouterr()
    assert "lines of pi" in said.out
    assert "$y$" not in said.out + said.err


def test_a_plan_shows_words_that_go_and_come(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lockdown("plan", root)
    said = capsys.readouterr().out
    assert "- console=serial0,115200" in said
    assert "+ console=null" in said
    assert "+ /etc/systemd/system/getty@.service -> /dev/null" in said
    assert "# no login on a screen and keyboard (E3)" in said


def test_plan_and_check_in_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lockdown("plan", root, "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["needs"] == []
    assert {"area", "path", "what", "reason", "row", "change"} == set(shown["changes"][0])
    assert lockdown("check", root, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is False
    wrong = [item["path"] for item in found["items"] if not item["holds"]]
    assert wrong == [change["path"] for change in shown["changes"]]


def test_nothing_is_changed_without_a_yes(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(root, kept=True)
    monkeypatch.setattr("sys.stdin", None)
    for command in ("apply", "undo"):
        assert lockdown(command, root) == 64
    assert "there is no terminal to ask at" in capsys.readouterr().err
    assert state_of(root, kept=True) == before


def test_nobody_is_locked_out_where_there_is_no_ca(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / CA_FILE[1:]).unlink()
    before = state_of(root, kept=True)
    assert lockdown("apply", root, "--yes") == 77
    said = capsys.readouterr()
    assert "nobody could log in any more" in said.err
    assert "--no-ssh" in said.err
    assert "changed" not in said.out
    assert state_of(root, kept=True) == before
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "ssh.service").symlink_to(f"{UNIT}/ssh.service")
    assert lockdown("apply", root, "--yes", "--no-ssh") == 0
    assert (root / "etc/shadow").read_text().startswith(SHADOW)
    assert not (root / "etc/ssh/sshd_config.d").exists()
    assert lockdown("check", root, "--no-ssh") == 0


def test_what_is_missing_is_named_before_anything_changes(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "usr/sbin/nft").unlink()
    before = state_of(root, kept=True)
    assert lockdown("apply", root, "--yes") == 69
    assert "apt-get install nftables" in capsys.readouterr().err
    assert state_of(root, kept=True) == before
    assert lockdown("apply", root, "--yes", "--without", "firewall") == 0


def test_a_later_version_is_applied_over_an_older_and_undone_to_the_first(
    root: Path, share: Path
) -> None:
    before = state_of(root, kept=True)
    lockdown("apply", root, "--yes")
    for name in ("nftables.conf", "cmdline"):
        file = share / "config" / name
        file.write_text(file.read_text() + "# later\n+later=1\n"[: 8 if name[0] == "n" else None])
    assert lockdown("check", root) == 1
    assert lockdown("apply", root, "--yes") == 0
    assert "later=1" in (root / "boot/firmware/cmdline.txt").read_text()
    assert lockdown("undo", root, "--yes") == 0
    assert state_of(root, kept=True) == before


def test_what_others_have_changed_since_is_left_and_said(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(root, kept=True)
    lockdown("apply", root, "--yes")
    rules = root / "etc/nftables.conf"
    rules.write_text("theirs\n")
    assert lockdown("undo", root, "--yes") == 1
    assert "/etc/nftables.conf was changed by somebody else" in capsys.readouterr().err
    assert rules.read_text() == "theirs\n"
    rest = {path: what for path, what in before.items() if path != "/etc/nftables.conf"}
    assert rest.items() <= state_of(root).items()
    assert lockdown("undo", root, "--yes", "--force") == 0
    assert state_of(root, kept=True) == before


def test_users_that_were_added_since_stay_and_so_do_ours_with_something_of_theirs(
    root: Path,
) -> None:
    lockdown("apply", root, "--yes")
    with (root / "etc/passwd").open("a") as file:
        file.write("new:x:1001:1001::/:/bin/sh\n")
    (root / "var/lib/meterd").mkdir()
    assert lockdown("undo", root, "--yes") == 0
    text = (root / "etc/passwd").read_text()
    assert text.startswith(PASSWD + "meterd:x:")
    assert text.endswith("new:x:1001:1001::/:/bin/sh\n")
    assert "pi:$y$j9T$salt$hash:" in (root / "etc/shadow").read_text()


def test_a_folder_in_the_place_of_a_file_is_not_replaced(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "etc/sysctl.d/zz-meterd.conf").mkdir(parents=True)
    assert lockdown("apply", root, "--yes") == 74
    assert "is no file that can be replaced" in capsys.readouterr().err


def test_two_cannot_change_a_device_at_once(root: Path) -> None:
    one, other = Keeper(DeviceTree(root)), Keeper(DeviceTree(root))
    with one.alone(), pytest.raises(BusyError), other.alone():
        pass


# --- the tree of files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target"), [("/etc", "/real"), ("/etc", "../../real"), ("/etc", "a/../../real/.")]
)
def test_links_of_a_device_never_lead_out_of_its_root(
    tmp_path: Path, link: str, target: str
) -> None:
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / link[1:]).symlink_to(target)
    tree = DeviceTree(root)
    tree.put("/etc/x/y", Content(b"1", 0o600, os.geteuid(), os.getegid()))
    assert (root / "real/x/y").read_bytes() == b"1"
    assert tree.entry("/etc/x/y") == Content(b"1", 0o600, os.geteuid(), os.getegid())
    assert tree.names("/etc/x") == ["y"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/b")
    (tmp_path / "b").symlink_to("/a")
    with pytest.raises(StorageError, match="too many links"):
        DeviceTree(tmp_path).entry("/a/x")


def test_a_record_that_is_damaged_stops_an_undo(root: Path) -> None:
    lockdown("apply", root, "--yes")
    record = root / KEPT[1:] / "etc%shadow.json"
    record.write_bytes(record.read_bytes()[:40])
    before = state_of(root)
    assert lockdown("undo", root, "--yes") == 74
    assert state_of(root) == before


# --- power fails --------------------------------------------------------------------------------


class Step(NamedTuple):
    """One change, of each kind that there is."""

    path: str
    wanted: object


MINE = {"uid": os.geteuid(), "gid": os.getegid()}
STEPS = (
    Step("/etc/new/deep/file", Content(b"new", 0o600, **MINE)),
    Step("/etc/changed", Content(b"after", 0o644, **MINE)),
    Step("/etc/link", Link("/dev/null")),
    Step("/etc/gone", Gone()),
    Step("/etc/new/link", Link("deep/file")),
    Step("/etc/shadow", Content(b"pi:hash:1\nours:x:1\n", 0o640, **MINE)),
    Step("/etc/shadow", Content(b"pi:*:1\nours:x:1\n", 0o640, **MINE)),
)


def small_device(root: Path) -> None:
    (root / "etc").mkdir(parents=True)
    (root / "var/lib").mkdir(parents=True)
    for name, data, mode in (
        ("changed", "before", 0o755),
        ("gone", "here", 0o440),
        ("shadow", "pi:hash:1\n", 0o640),
    ):
        (root / "etc" / name).write_text(data)
        (root / "etc" / name).chmod(mode)
    (root / "etc/link").symlink_to("elsewhere")


def take_steps(root: Path) -> None:
    keeper = Keeper(DeviceTree(root))
    for path, wanted in STEPS:
        keeper.change(path, wanted)  # type: ignore[arg-type]


def undo_all(root: Path) -> None:
    keeper = Keeper(DeviceTree(root))
    for record in reversed(keeper.records()):
        assert keeper.undo(record, force=False), record.path
    keeper.leave()


FILE_EVENTS = frozenset(
    {"open", "os.rename", "os.remove", "os.symlink", "os.mkdir", "os.rmdir", "os.chmod"}
)


def killed_at(number: int, what: object, *arguments: object) -> bool:
    """Do something in a process that is killed before its `number`th step on files; say whether."""
    pid = os.fork()
    if not pid:
        left = number

        def count(event: str, _arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in FILE_EVENTS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            what(*arguments)  # type: ignore[operator]
        except BaseException:  # noqa: BLE001 - never back into the tests of the parent
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_kill_before_any_step_leaves_what_apply_finishes_and_undo_puts_back(
    tmp_path: Path,
) -> None:
    whole = tmp_path / "whole"
    small_device(whole)
    before = state_of(whole, kept=True)
    take_steps(whole)
    after = state_of(whole)
    number, places = 0, 0
    while True:
        root = tmp_path / f"{number}"
        small_device(root)
        if not killed_at(number, take_steps, root):
            break
        assert {path for path in state_of(root) if not path.endswith(".new")} <= {*before, *after}
        again = tmp_path / f"{number}-again"
        shutil.copytree(root, again, symlinks=True)
        take_steps(again)
        assert state_of(again) == after
        undo_all(again)
        assert state_of(again, kept=True) == before
        undo_all(root)
        assert state_of(root, kept=True) == before
        number, places = number + 1, places + 1
    assert places > 60, "the kill reached no step"


def test_a_kill_before_any_step_of_undo_leaves_what_undo_finishes(tmp_path: Path) -> None:
    number = 0
    while True:
        root = tmp_path / f"{number}"
        small_device(root)
        before = state_of(root, kept=True)
        take_steps(root)
        if not killed_at(number, undo_all, root):
            break
        undo_all(root)
        assert state_of(root, kept=True) == before
        number += 1
    assert number > 40, "the kill reached no step"


def test_a_whole_apply_that_is_killed_is_finished_or_undone(root: Path, tmp_path: Path) -> None:
    before = state_of(root, kept=True)
    fresh = tmp_path / "fresh"
    shutil.copytree(root, fresh, symlinks=True)
    lockdown("apply", root, "--yes")
    after = state_of(root)

    def apply(where: Path) -> None:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - the child's own
        lockdown("apply", where, "--yes")

    for number in range(SAMPLED):
        where = tmp_path / f"killed-{number}"
        shutil.copytree(fresh, where, symlinks=True)
        assert killed_at(150 + number * 55, apply, where)
        again = tmp_path / f"killed-{number}-again"
        shutil.copytree(where, again, symlinks=True)
        assert lockdown("apply", again, "--yes") == 0
        assert state_of(again) == after
        if (where / KEPT[1:]).exists():
            assert lockdown("undo", where, "--yes") == 0
            assert state_of(where, kept=True) == before


def test_an_undo_leaves_nothing_of_an_apply_that_ended_before_its_first_record(root: Path) -> None:
    before = state_of(root, kept=True)
    kept = root / KEPT[1:]
    kept.mkdir(0o700, parents=True)
    (kept / "etc%shadow.json.new").write_text("a password's hash, and no more of it")
    assert lockdown("undo", root, "--yes") == 0
    assert not kept.exists()
    assert state_of(root, kept=True) == before


def test_what_was_there_is_durable_before_anything_changes_and_each_change_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of writes, syncs and renames: what a failure of power may lose is chosen."""
    root = tmp_path / "root"
    small_device(root)
    told: list[tuple[str, str]] = []
    sync, sync_folder, rename = os.fsync, card.sync_folder, Path.replace

    def name(path: Path) -> str:
        return "/" + str(path.relative_to(root)) if path.is_relative_to(root) else ""

    def fsync(descriptor: int) -> None:
        told.append(("sync", name(Path(f"/proc/self/fd/{descriptor}").readlink())))
        sync(descriptor)

    def folder(path: Path) -> None:
        told.append(("folder", name(path)))
        sync_folder(path)

    def replace(path: Path, target: Path) -> Path:
        told.append(("rename", name(target)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr("meterd.device.lockdown_files.sync_folder", folder)
    monkeypatch.setattr("meterd.device.files.sync_folder", folder)
    monkeypatch.setattr(Path, "replace", replace)
    Keeper(DeviceTree(root)).change("/etc/changed", Content(b"after", 0o644, **MINE))
    kept = f"{KEPT}/etc%changed.json"
    wanted = [
        ("sync", f"{KEPT}/.etc%changed.json.new"),
        ("rename", kept),
        ("folder", KEPT),
        ("sync", "/etc/.changed.new"),
        ("rename", "/etc/changed"),
        ("folder", "/etc"),
    ]
    position = -1
    for step in wanted:
        position = told.index(step, position + 1)


# --- what is known of a device ------------------------------------------------------------------


def process(proc: Path, pid: int, parent: int, tty: int = 0, environ: bytes = b"") -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} (a (name) S) S {parent} 1 1 {tty} 1 0\n")
    (folder / "environ").write_bytes(environ)


def test_a_session_is_found_behind_sudo(tmp_path: Path) -> None:
    process(tmp_path, 30, 20, 0x8800)
    process(tmp_path, 20, 10, 0x0401, b"A=1\0SSH_CONNECTION=10.0.0.9 50000 10.0.0.2 2222\0")
    process(tmp_path, 10, 1)
    session = session_of(tmp_path, 30)
    assert (session.tty, session.ssh_port) == ("tty1", 2222)
    assert session.at_console


def test_a_session_of_nobody_is_none(tmp_path: Path) -> None:
    process(tmp_path, 30, 1, 0x8800)
    session = session_of(tmp_path, 30)
    assert (session.tty, session.ssh_port, session.at_console) == ("", None, False)


def test_what_the_device_needs_on_usb_is_found_with_its_hubs(tmp_path: Path) -> None:
    sys_ = tmp_path / "sys"
    hub = sys_ / "devices/usb1/1-1"
    adapter = hub / "1-1.2"
    (adapter / "1-1.2:1.0/net/eth0").mkdir(parents=True)
    for folder, vendor, product in (
        (sys_ / "devices/usb1", "1d6b", "0002"),
        (hub, "0424", "9514"),
        (adapter, "0424", "ec00"),
    ):
        (folder / "idVendor").write_text(f"{vendor}\n")
        (folder / "idProduct").write_text(f"{product}\n")
    net = sys_ / "class/net/eth0"
    net.mkdir(parents=True)
    (net / "operstate").write_text("up\n")
    (net / "device").symlink_to(adapter / "1-1.2:1.0")
    found = own_usb(sys_, "/dev/ttyAMA0")
    assert [(one.vendor, one.product, one.purpose) for one in found] == [
        ("0424", "ec00", "network"),
        ("0424", "9514", "network"),
    ]
    (net / "operstate").write_text("down\n")
    assert own_usb(sys_, "/dev/ttyAMA0") == []


@pytest.mark.parametrize(
    ("path", "data", "used"),
    [
        (
            "/etc/NetworkManager/system-connections/x.nmconnection",
            "[connection]\ntype=wifi\n",
            True,
        ),
        ("/etc/NetworkManager/system-connections/x.nmconnection", "type=ethernet\n", False),
        ("/etc/wpa_supplicant/wpa_supplicant.conf", "network={\n}\n", True),
        ("/etc/wpa_supplicant/functions.sh", "", False),
    ],
)
def test_a_wireless_network_is_used_where_one_is_set_up(
    tmp_path: Path, path: str, data: str, used: bool
) -> None:
    where = tmp_path / path[1:]
    where.parent.mkdir(parents=True)
    where.write_text(data)
    assert uses_wireless(tmp_path / "sys", DeviceTree(tmp_path)) is used
