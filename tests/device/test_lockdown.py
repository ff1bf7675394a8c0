"""What a lockdown comes to, as tables: nothing is opened."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from meterd.device import lockdown_text as text
from meterd.device.lockdown import AREAS, left_out, needed_packages, place_of, plan
from meterd.device.lockdown_device import (
    Content,
    Entry,
    Facts,
    Gone,
    Item,
    Link,
    Other,
    Session,
    UsbDevice,
)
from meterd.device.lockdown_live import TELLABLE, commands, proofs, read_share, tty_name
from meterd.device.lockdown_way_in import CA_FILE, WouldLockOutError, refuse_lock_out
from meterd.errors import ConfigError, MeterdError
from tests.conftest import ROOT

CMDLINE = (
    "console=serial0,115200 console=tty1 root=PARTUUID=ab-02 rootfstype=ext4 fsck.repair=yes"
    " rootwait quiet splash plymouth.ignore-serial-consoles\n"
)
PASSWD = (
    "root:x:0:0:root:/root:/bin/bash\n"
    "systemd-timesync:x:999:999::/:/usr/sbin/nologin\n"
    "pi:x:1000:1000::/home/pi:/bin/bash\n"
)
GROUP = "root:x:0:\nsystemd-timesync:x:999:\npi:x:1000:\n"
SHADOW = (
    "root:*:20000:0:99999:7:::\n"
    "systemd-timesync:!*:20000::::::\n"
    "pi:$y$j9T$salt$hash:20000:0:99999:7:::\n"
)
CA = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEX3zyvQnYfHaaqY9gXnYYKtZJ9mHWdVNNmeyXdWJkvR ca\n"
ALL_PROGRAMS = frozenset({"nft", "sshd", "usbguard-daemon"})
SSH_CONF = b"AuthenticationMethods publickey\n"


@dataclass
class FakeTree:
    """A device's files, in memory."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def entry(self, path: str) -> Entry:
        return self.entries.get(path, Gone())

    def names(self, folder: str) -> list[str]:
        below = [path.removeprefix(f"{folder}/") for path in self.entries]
        return sorted({path.split("/")[0] for path in below if not path.startswith("/")})

    def text(self, path: str) -> str:
        found = self.entry(path)
        assert isinstance(found, Content), path
        return found.text


def raspberry_pi() -> FakeTree:
    """Return Raspberry Pi OS as it is flashed, as far as a lockdown looks."""
    unit = "/usr/lib/systemd/system"
    files = {
        "/boot/firmware/cmdline.txt": CMDLINE,
        "/boot/firmware/config.txt": "dtparam=audio=on\n[cm4]\notg_mode=1\n",
        "/etc/passwd": PASSWD,
        "/etc/group": GROUP,
        "/etc/gshadow": "root:*::\n",
        "/etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n",
        "/etc/sudoers.d/010_pi-nopasswd": "pi ALL=(ALL) NOPASSWD: ALL\n",
        CA_FILE: CA.decode(),
        f"{unit}/nftables.service": "[Unit]\n[Install]\nWantedBy=sysinit.target\n",
        f"{unit}/ssh.service": "[Install]\nWantedBy=multi-user.target\nAlias=sshd.service\n",
        f"{unit}/usbguard.service": "[Install]\nWantedBy=basic.target\n",
    }
    tree = FakeTree({path: Content(data.encode()) for path, data in files.items()})
    tree.entries["/etc/shadow"] = Content(SHADOW.encode(), 0o640, 0, 42)
    tree.entries["/etc/systemd/system/getty.target.wants/getty@tty1.service"] = Link(
        f"{unit}/getty@.service"
    )
    return tree


def facts(**more: object) -> Facts:
    share = read_share(ROOT) | {"config/sshd.conf": SSH_CONF}
    known = Facts(share=share, programs=ALL_PROGRAMS)
    return replace(known, **more)  # type: ignore[arg-type]


def applied(tree: FakeTree, known: Facts, without: set[str] | None = None) -> FakeTree:
    """Return the device after its lockdown."""
    after = FakeTree(dict(tree.entries))
    for item in plan(tree, known, without or set()):
        assert after.entry(item.path) == item.found, item.path
        after.entries[item.path] = item.wanted
        if isinstance(item.wanted, Gone):
            del after.entries[item.path]
    return after


# --- the plan -----------------------------------------------------------------------------------


def test_a_device_that_is_locked_down_has_nothing_left_to_do() -> None:
    after = applied(raspberry_pi(), facts())
    assert [item for item in plan(after, facts()) if not item.holds] == []


def test_each_item_has_an_area_a_reason_and_a_row() -> None:
    for item in plan(raspberry_pi(), facts()):
        assert item.area in AREAS
        assert item.path.startswith("/")
        assert item.what
        assert item.reason
        assert item.row.split(", ")[0][0] in "AEH"


def test_areas_come_in_their_order_and_each_can_be_left_out() -> None:
    drawn = [item.area for item in plan(raspberry_pi(), facts())]
    assert list(dict.fromkeys(drawn)) == list(AREAS)
    for area in AREAS:
        less = {item.area for item in plan(raspberry_pi(), facts(), {area})}
        assert less == set(AREAS) - {area}


def test_e3_no_getty_is_left_and_every_way_to_one_is_masked() -> None:
    tree = raspberry_pi()
    more = "/etc/systemd/system/multi-user.target.wants/serial-getty@ttyAMA0.service"
    tree.entries[more] = Link("/usr/lib/systemd/system/serial-getty@.service")
    after = applied(tree, facts())
    assert not [path for path in after.entries if "getty@" in path and ".wants/" in path]
    masked = ("getty@", "serial-getty@", "console-getty", "autovt@", "container-getty@")
    for unit in (*(f"{name}.service" for name in masked), "debug-shell.service"):
        assert after.entry(f"/etc/systemd/system/{unit}") == Link("/dev/null")
    for unit in ("emergency", "rescue"):
        drop_in = after.text(f"/etc/systemd/system/{unit}.service.d/meterd.conf")
        assert "\nExecStart=\nExecStart=/usr/bin/sleep" in drop_in
        assert "sulogin" not in drop_in


def test_sessions_have_bounds_wherever_the_service_manager_puts_them() -> None:
    after = applied(raspberry_pi(), facts())
    for unit, section in (("ssh.service", "[Service]"), ("user-.slice", "[Slice]")):
        lines = after.text(f"/etc/systemd/system/{unit}.d/meterd.conf").splitlines()
        assert {section, "MemoryMax=50%", "TasksMax=128", "CPUWeight=20"} <= set(lines)


def test_e3_the_command_line_has_no_console_and_the_firmware_frees_the_uart() -> None:
    after = applied(raspberry_pi(), facts())
    words = after.text("/boot/firmware/cmdline.txt").split()
    assert [word for word in words if word.startswith("console=")] == ["console=null"]
    assert words[:5] == CMDLINE.split()[2:7]
    assert {"panic=10", "systemd.getty_auto=no", "systemd.ssh_auto=no"} <= set(words)
    assert "cgroup_enable=memory" in words, "or no MemoryMax= of a unit has any effect"
    config = after.text("/boot/firmware/config.txt")
    assert config.startswith("dtparam=audio=on\n[cm4]\notg_mode=1\n")
    sections: dict[str, list[str]] = {}
    section = ""
    for line in text.lines_of(config.partition(text.BEGIN)[2]):
        section = line if line.startswith("[") else section
        sections.setdefault(section, []).append(line)
    assert {"enable_uart=1", "dtparam=watchdog=on"} <= set(sections["[all]"])
    assert "dtoverlay=disable-bt" in sections["[pi3]"]
    assert "dtoverlay=disable-bt" in sections["[pi4]"]
    assert "dtparam=uart0=on" in sections["[pi5]"]


def test_e3_a_kernel_update_of_debian_brings_no_console_back() -> None:
    tree = raspberry_pi()
    path = "/etc/default/raspi-firmware"
    tree.entries[path] = Content(b'#CONSOLES="auto"\nCONSOLES="ttyS1,115200 tty0"\nROOTPART=x\n')
    assert applied(tree, facts()).text(path) == '#CONSOLES="auto"\nROOTPART=x\nCONSOLES="null"\n'


def test_a_machine_without_boot_files_of_a_pi_gets_none() -> None:
    tree = raspberry_pi()
    tree.entries = {path: e for path, e in tree.entries.items() if not path.startswith("/boot")}
    assert "boot" not in {item.area for item in plan(tree, facts())}


def test_e3_what_is_plugged_in_is_off_and_what_the_device_needs_is_not() -> None:
    own = UsbDevice("0bda", "8153", "network")
    after = applied(raspberry_pi(), facts(own_usb=(own,)))
    rules = after.text("/etc/udev/rules.d/98-meterd-usb.rules")
    assert 'ATTR{authorized_default}="0"' in rules
    assert 'ATTR{idVendor}=="0bda", ATTR{idProduct}=="8153", ATTR{authorized}="1"' in rules
    assert "allow id 0bda:8153\n" in after.text("/etc/usbguard/rules.conf")
    conf = after.text("/etc/usbguard/usbguard-daemon.conf")
    assert "\nImplicitPolicyTarget=block\n" in conf
    assert "\nAuthorizedDefault=none\n" in conf
    found = after.entry("/etc/usbguard/rules.conf")
    assert isinstance(found, Content)
    assert found.mode == 0o600  # its daemon refuses rules that others read


def test_without_usbguard_its_files_are_left_out() -> None:
    without = facts(programs=frozenset({"nft", "sshd"}))
    paths = [item.path for item in plan(raspberry_pi(), without)]
    assert not [path for path in paths if "usbguard" in path]
    assert "/etc/udev/rules.d/98-meterd-usb.rules" in paths


@pytest.mark.parametrize(("wireless", "masked"), [(True, False), (False, True)])
def test_the_devices_own_wireless_network_is_never_cut(wireless: bool, masked: bool) -> None:
    after = applied(raspberry_pi(), facts(wireless=wireless))
    found = after.entry("/etc/systemd/system/wpa_supplicant.service")
    assert (found == Link("/dev/null")) is masked


def test_e4_the_rules_name_users_that_are_there_and_ports_of_the_settings() -> None:
    after = applied(raspberry_pi(), facts(broker_ports=(8883, 18883)))
    rules = after.text("/etc/nftables.conf")
    assert text.defined(rules, "BROKER_PORTS") == ["8883", "18883"]
    assert text.defined(rules, "NAME_USERS") == ['"meterd-peer"', '"systemd-timesync"']
    assert text.defined(rules, "CLOCK_USERS") == ['"systemd-timesync"']
    assert text.defined(rules, "ANCHOR_PORTS") == ["0"]


def test_e4_a_timestamp_authority_is_reached_where_the_settings_name_one() -> None:
    rules = applied(raspberry_pi(), facts(anchor_port=443)).text("/etc/nftables.conf")
    assert text.defined(rules, "ANCHOR_PORTS") == ["443"]
    users = text.defined(rules, "NAME_USERS")
    assert users == ['"meterd-peer"', '"meterd-anchor"', '"systemd-timesync"']


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("https://tsa.example/tsr", 443),
        ("http://tsa.example", 80),
        ("http://tsa.example:8080/a:9/b", 8080),
        ("https://[2001:db8::1]/tsr", 443),
        ("https://[2001:db8::1]:8443", 8443),
        ("", 0),
        ("ftp://tsa.example", 0),
    ],
)
def test_a_url_leads_to_a_port(url: str, port: int) -> None:
    assert text.url_port(url) == port


def test_timers_are_enabled_and_what_they_start_is_not() -> None:
    after = applied(raspberry_pi(), facts())
    wants = "/etc/systemd/system/{}.target.wants/meterd-{}"
    for name in ("prune", "check", "anchor"):
        target = f"/etc/systemd/system/meterd-{name}.timer"
        assert after.entry(wants.format("timers", f"{name}.timer")) == Link(target)
        assert after.entry(wants.format("multi-user", f"{name}.service")) == Gone()
        assert isinstance(after.entry(f"/etc/systemd/system/meterd-{name}.service"), Content)
    link = "/etc/systemd/system/sysinit.target.wants/nftables.service"
    assert after.entry(link) == Link("/usr/lib/systemd/system/nftables.service")


def test_users_of_both_processes_are_added_with_numbers_that_are_free() -> None:
    after = applied(raspberry_pi(), facts())
    lines = after.text("/etc/passwd").splitlines()[3:5]
    assert lines == [
        "meterd:x:998:998:meterd, the meter:/var/lib/meterd:/usr/sbin/nologin",
        "meterd-peer:x:997:998:meterd, the peer process:/var/lib/meterd-peer:/usr/sbin/nologin",
    ]
    assert "meterd:x:998:" in after.text("/etc/group")


def test_no_password_opens_anything_and_a_mode_stays() -> None:
    after = applied(raspberry_pi(), facts())
    shadow = after.entry("/etc/shadow")
    assert isinstance(shadow, Content)
    assert (shadow.mode, shadow.gid) == (0o640, 42)
    fields = {line.split(":")[0]: line.split(":")[1] for line in shadow.text.splitlines()}
    assert fields["pi"] == "*"
    assert fields["systemd-timesync"] == "!*"
    assert after.entry("/etc/sudoers.d/010_pi-nopasswd") == Gone()


def test_every_file_of_systemd_has_a_place_and_units_are_enabled() -> None:
    after = applied(raspberry_pi(), facts())
    for name in (path.removeprefix("systemd/") for path in facts().share if "systemd/" in path):
        assert isinstance(after.entry(place_of(name)), Content)
    wants = "/etc/systemd/system/multi-user.target.wants"
    for unit in ("meterd.service", "meterd-peer.service"):
        assert after.entry(f"{wants}/{unit}") == Link(f"/etc/systemd/system/{unit}")
    board = "meterd-board.service"  # which the meter's own unit asks for
    assert after.entry(f"{wants}/{board}") == Gone()
    assert f"Wants={board}\n" in after.text("/etc/systemd/system/meterd.service")


def test_what_is_written_for_people_is_installed_nowhere() -> None:
    assert (ROOT / "systemd/README.md").is_file()
    assert (ROOT / "config/README.md").is_file()
    assert [path for path in read_share(ROOT) if path.endswith(".md")] == []


@pytest.mark.parametrize(
    ("port", "opened"),
    [
        ("/dev/ttyUSB0", True),
        ("/dev/serial/by-id/usb-FTDI_A1-if00-port0", True),
        ("/dev/ttyAMA0", False),
        ("", False),
        ("/dev/ttyUSB0\nUser=root", False),
        ("/etc/shadow", False),
    ],
)
def test_another_port_of_the_board_is_opened_to_the_unit(port: str, opened: bool) -> None:
    after = applied(raspberry_pi(), facts(board_port=port))
    found = after.entry("/etc/systemd/system/meterd.service.d/port.conf")
    wanted = Content(f"[Service]\nBindPaths=-{port}\nDeviceAllow={port} rw\n".encode())
    assert found == (wanted if opened else Gone())


def test_a_file_of_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(MeterdError, match="nothing is known of such files"):
        place_of("meterd.xyz")


# --- who comes in -------------------------------------------------------------------------------


def without_file(path: str) -> FakeTree:
    tree = raspberry_pi()
    tree.entries.pop(path)
    return tree


def with_file(path: str, data: bytes) -> FakeTree:
    tree = raspberry_pi()
    tree.entries[path] = Content(data)
    return tree


NO_SSH = {"ssh", "accounts"}
SSH_ON = "/etc/systemd/system/multi-user.target.wants/ssh.service"


@pytest.mark.parametrize(
    ("tree", "without", "session", "message"),
    [
        pytest.param(without_file(CA_FILE), set(), None, "no public key", id="no CA"),
        pytest.param(with_file(CA_FILE, b"\n"), set(), None, "no public key", id="an empty CA"),
        pytest.param(
            with_file(CA_FILE, b"ssh-ed25519 AAAA ca\n"), set(), None, "no public key", id="half"
        ),
        pytest.param(
            with_file(CA_FILE, CA.replace(b"ssh-ed25519", b"ssh-rsa")),
            set(),
            None,
            "no public key",
            id="another kind than it says",
        ),
        pytest.param(
            raspberry_pi(), NO_SSH, None, "SSH does not start", id="SSH left, and not enabled"
        ),
        pytest.param(raspberry_pi(), set(), Session(tty="tty1"), "at tty1", id="at the screen"),
        pytest.param(
            raspberry_pi(), set(), Session(tty="ttyAMA0"), "at ttyAMA0", id="at the serial line"
        ),
        pytest.param(
            raspberry_pi(), set(), Session(ssh_port=2222), "at port 2222", id="another SSH port"
        ),
    ],
)
def test_a_lockdown_is_refused_that_shuts_out(
    tree: FakeTree, without: set[str], session: Session | None, message: str
) -> None:
    with pytest.raises(WouldLockOutError, match=message) as refused:
        refuse_lock_out(tree, facts(), plan(tree, facts(), without), without, session)
    assert refused.value.exit_code == 77
    assert refused.value.hint


@pytest.mark.parametrize(
    ("tree", "without", "session"),
    [
        pytest.param(raspberry_pi(), set(), None, id="a CA is there"),
        pytest.param(raspberry_pi(), set(), Session("pts/0", 22), id="over SSH"),
        pytest.param(with_file(SSH_ON, b""), NO_SSH | {"consoles"}, None, id="consoles are left"),
        pytest.param(
            raspberry_pi(), {"consoles"}, Session(tty="tty1"), id="at a screen that stays"
        ),
    ],
)
def test_a_lockdown_is_let_be_where(
    tree: FakeTree, without: set[str], session: Session | None
) -> None:
    refuse_lock_out(tree, facts(), plan(tree, facts(), without), without, session)


def test_leaving_out_ssh_leaves_accounts_and_consoles_may_close_where_ssh_starts() -> None:
    tree = without_file(CA_FILE)
    tree.entries[SSH_ON] = Link("/usr/lib/systemd/system/ssh.service")
    assert left_out(facts(), {"ssh"}) == NO_SSH
    items = plan(tree, facts(), NO_SSH)
    refuse_lock_out(tree, facts(), items, NO_SSH, None)
    assert "/etc/sudoers.d/010_pi-nopasswd" not in {item.path for item in items}


def test_a_session_at_a_console_goes_on_once_all_is_applied() -> None:
    after = applied(raspberry_pi(), facts())
    refuse_lock_out(after, facts(), plan(after, facts()), set(), Session(tty="tty1"))


def test_without_settings_for_sshd_nobody_is_locked_out() -> None:
    share = read_share(ROOT)
    share.pop("config/sshd.conf", None)
    assert left_out(facts(share=share)) == NO_SSH


CONF_WITH_FILES = b"""\
# TrustedUserCAKeys /no
TrustedUserCAKeys /etc/meterd/ssh/technicians.pub
AuthorizedPrincipalsFile /etc/meterd/ssh/principals
RevokedKeys /etc/meterd/ssh/revoked
"""


def facts_with_files(principals: bytes = b"# who\ntechnician\n") -> Facts:
    share = dict(facts().share)
    share |= {"config/sshd.conf": CONF_WITH_FILES, "config/principals": principals}
    return facts(share=share)


def test_the_files_that_settings_for_sshd_name_are_there_and_a_devices_own_stay() -> None:
    tree = raspberry_pi()
    after = applied(tree, facts_with_files())
    assert after.text("/etc/meterd/ssh/principals") == "# who\ntechnician\n"
    assert after.text("/etc/meterd/ssh/revoked") == ""
    assert [item for item in plan(after, facts_with_files()) if not item.holds] == []
    for name in ("principals", "revoked"):
        tree.entries[f"/etc/meterd/ssh/{name}"] = Content(b"own\n")
        assert applied(tree, facts_with_files()).text(f"/etc/meterd/ssh/{name}") == "own\n"


@pytest.mark.parametrize(
    ("ca", "principals", "message"),
    [
        (b"", b"technician\n", "technicians.pub: nobody could log in"),
        (CA, b"# nobody\n", "no principal in /etc/meterd/ssh/principals"),
    ],
)
def test_the_files_that_settings_for_sshd_name_let_somebody_in(
    ca: bytes, principals: bytes, message: str
) -> None:
    tree = with_file("/etc/meterd/ssh/technicians.pub", ca)
    known = facts_with_files(principals)
    with pytest.raises(WouldLockOutError, match=message):
        refuse_lock_out(tree, known, plan(tree, known), set(), None)
    good = with_file("/etc/meterd/ssh/technicians.pub", CA)
    known = facts_with_files()
    refuse_lock_out(good, known, plan(good, known), set(), None)


def test_what_cannot_be_applied_names_its_packages() -> None:
    bare = facts(programs=frozenset())
    assert needed_packages(bare, set()) == ["nftables", "openssh-server"]
    assert needed_packages(bare, {"firewall", *NO_SSH}) == []


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0x0401, "tty1"),
        (0x0440, "ttyS0"),
        (0xCC40, "ttyAMA0"),
        (0xBC00, "ttyUSB0"),
        (0x0501, "console"),
        (0x8800, ""),
        (0, ""),
    ],
)
def test_a_terminal_is_known_by_its_number(number: int, name: str) -> None:
    assert tty_name(number) == name


# --- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "a=1 b\n"),
        ("b x a=1\n", "b x a=1\n"),
        ("x a=2 a=3 y", "x y a=1 b\n"),
        ("gone gonetoo x\n\n", "x a=1 b\n"),
        ("x b b\n", "x b a=1\n"),
    ],
)
def test_a_command_line_after_its_rules(before: str, after: str) -> None:
    rules = "# why\n-a=\n+a=1\n-gone\n+b\n"
    assert text.cmdline(before, rules) == after
    assert text.cmdline(after, rules) == after


@pytest.mark.parametrize("before", ["", "a\n", "a", "a\n\n\n", "[all]\r\nb\r\n"])
def test_a_block_is_put_once_and_in_the_place_of_an_older_one(before: str) -> None:
    once = text.with_block(before, "x=1\n")
    assert text.with_block(once, "x=1\n") == once
    assert text.with_block(once, "y\n") == text.with_block(before, "y\n")
    assert once.endswith(f"{text.BEGIN}\nx=1\n{text.END}\n")


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ("Include /d/*.conf\nA b\n", True),
        ("# why\ninclude /d/*.conf\n", True),
        ("A b\nInclude /d/*.conf\n", False),
        ("", False),
        ("Include /other/*.conf\n", False),
    ],
)
def test_sshd_reads_its_folder_before_all_else(before: str, kept: bool) -> None:
    after = text.with_include(before, "/d")
    assert after == (before if kept else f"Include /d/*.conf\n{before}")
    assert text.with_include(after, "/d") == after


@pytest.mark.parametrize(
    ("field_", "after"),
    [
        ("", "*"),
        ("$6$x$y", "*"),
        ("!$6$x$y", "*"),
        ("!", "!"),
        ("*", "*"),
        ("!*", "!*"),
        ("x", "*"),
    ],
)
def test_a_password_field_after_the_lockdown(field_: str, after: str) -> None:
    assert text.without_passwords(f"pi:{field_}:1::::::\n") == f"pi:{after}:1::::::\n"


@pytest.mark.parametrize(
    ("now", "keep", "after"),
    [
        pytest.param("a:*\nours:x\n", (), "a:hash\n", id="as we left it"),
        pytest.param("a:*\nours:x\nnew:y\n", (), "a:hash\nnew:y\n", id="one was added since"),
        pytest.param("a:other\nours:x\n", (), "a:other\n", id="a password was changed since"),
        pytest.param("a:*\nours:x\n", ("ours",), "a:hash\nours:x\n", id="a user of ours stays"),
        pytest.param("a:hash\n", (), "a:hash\n", id="power failed before it was written"),
        pytest.param("ours:x\n", (), "", id="one was removed since"),
    ],
)
def test_accounts_are_put_back_but_for_what_others_did(
    now: str, keep: tuple[str, ...], after: str
) -> None:
    assert text.merge_back("a:hash\n", "a:*\nours:x\n", now, keep=keep) == (after or now)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("r - 1-2\n", "is not understood"),
        ("u a - - - -\nu b -:nobody\n", "no group nobody"),
        ("g a x\n", "expected a number"),
    ],
)
def test_users_are_refused_that(lines: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        text.add_users(text.Accounts(PASSWD, GROUP, SHADOW, ""), lines)


def test_users_and_groups_that_are_there_stay_and_memberships_are_added_once() -> None:
    lines = 'g tech -\nu pi - "another" /\nm pi tech\nm pi tech\n'
    once = text.add_users(text.Accounts(PASSWD, GROUP, SHADOW, "root:*::\npi:!::\n"), lines)
    assert once.passwd == PASSWD
    assert once.group == GROUP + "tech:x:998:pi\n"
    assert once.gshadow == "root:*::\npi:!::\ntech:!*::pi\n"
    assert text.add_users(once, lines) == once


@pytest.mark.parametrize("written", [1, 2, 3])
def test_users_keep_their_numbers_where_power_failed_between_the_files(written: int) -> None:
    before = text.Accounts(PASSWD, GROUP, SHADOW, "root:*::\npi:!::\n")
    lines = (ROOT / "systemd" / "meterd.sysusers").read_text()
    once = text.add_users(before, lines)
    torn = text.Accounts(*once[:written], *before[written:])
    assert text.add_users(torn, lines) == once


SS = (
    'tcp   LISTEN 0 128   0.0.0.0:22       0.0.0.0:*  users:(("sshd",pid=1,fd=3))\n'
    'tcp   LISTEN 0 128      [::]:22          [::]:*  users:(("sshd",pid=1,fd=4))\n'
    'udp   UNCONN 0 0  10.0.0.2%eth0:68    0.0.0.0:*  users:(("dhcpcd",pid=2,fd=5))\n'
    'udp   UNCONN 0 0  127.0.0.53%lo:53    0.0.0.0:*  users:(("systemd-resolve",pid=3,fd=6))\n'
)


@pytest.mark.parametrize(
    ("said", "more", "less"),
    [
        pytest.param(SS, [], [], id="what is listed"),
        pytest.param(
            SS + 'tcp LISTEN 0 5 *:80 *:* users:(("nginx",pid=4,fd=1),("nginx",pid=5,fd=1))\n',
            ["tcp [::]:80 nginx"],
            [],
            id="one more",
        ),
        pytest.param(
            SS.replace("dhcpcd", "socat"), ["udp 10.0.0.2:68 socat"], [], id="another program"
        ),
        pytest.param("", [], ["tcp 0.0.0.0:22 sshd", "tcp [::]:22 sshd"], id="none"),
        pytest.param(
            SS.replace("0.0.0.0:22 ", "10.0.0.2:22 "),
            ["tcp 10.0.0.2:22 sshd"],
            ["tcp 0.0.0.0:22 sshd"],
            id="another address",
        ),
    ],
)
def test_e4_what_listens_is_compared_with_the_list(
    said: str, more: list[str], less: list[str]
) -> None:
    listed = text.listed_sockets((ROOT / "config" / "sockets").read_text())
    found = text.compare_sockets(text.open_sockets(said), listed)
    assert [[str(one) for one in ones] for ones in found] == [more, less]


@pytest.mark.parametrize(
    ("brokers", "ports"),
    [
        ([], [8883]),
        (["mqtts://a.example"], [8883]),
        (["mqtts://a.example:18883", "mqtt://127.0.0.1"], [1883, 18883]),
        (["mqtts://[2001:db8::1]:8884"], [8884]),
        ("mqtts://a", [8883]),
    ],
)
def test_brokers_ports_are_those_of_the_settings(brokers: object, ports: list[int]) -> None:
    assert text.settings_ports({"brokers": brokers}) == ports


# --- what a running system is told --------------------------------------------------------------


def changed(*paths: tuple[str, Entry]) -> list[Item]:
    return [Item("x", path, Gone(), wanted, "", "", "") for path, wanted in paths]


def test_a_running_system_is_told_what_has_changed_and_no_more() -> None:
    assert commands([], TELLABLE) == []
    told = commands(
        changed(
            ("/etc/nftables.conf", Content(b"")),
            ("/etc/systemd/system/getty@.service", Link("/dev/null")),
            ("/etc/systemd/system/a.target.wants/b.mount", Link("/etc/systemd/system/b.mount")),
        ),
        TELLABLE,
    )
    assert told == [
        ("systemctl", "daemon-reload"),
        ("nft", "-f", "/etc/nftables.conf"),
        ("systemctl", "stop", "getty@*.service"),
        ("systemctl", "start", "b.mount"),
    ]
    assert proofs({"/etc/nftables.conf"}) == [
        ("/etc/nftables.conf", ("nft", "-c", "-f", "/etc/nftables.conf"))
    ]


def test_a_folder_in_the_place_of_a_file_is_no_file_that_holds() -> None:
    tree = raspberry_pi()
    tree.entries["/etc/nftables.conf"] = Other()
    [item] = [item for item in plan(tree, facts()) if item.path == "/etc/nftables.conf"]
    assert not item.holds
