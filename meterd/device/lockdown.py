"""What a locked-down device looks like: a list of files and links, each with its reason.

Everything that the lockdown changes is the state of a path: a file with these bytes, a link that
leads there, nothing at all. So what is to be done is what differs; what was done is checked by
looking again; and what was there before can be put back. Nothing is opened here: the tree of files
comes in as something to ask.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from meterd.device import lockdown_text as text
from meterd.device.lockdown_device import Content, Entry, Facts, Gone, Item, Link, Tree
from meterd.device.lockdown_way_in import ssh_file
from meterd.errors import MeterdError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

AREAS = {
    "users": "the users of both processes",
    "units": "what starts, and whose the board's port is",
    "kernel": "settings of kernel and service manager",
    "consoles": "no login on a screen, a serial line or USB",
    "boot": "the UART for the board, no console, the watchdog",
    "usb": "nothing that is plugged in gets a driver",
    "services": "what does not run on a meter",
    "firewall": "what goes in and out",
    "ssh": "certificates of technicians, and nothing else",
    "accounts": "no password opens anything",
}
TECHNICIAN = ("ssh", "accounts")  # what decides who comes in: left out together
_SYSTEM = "/etc/systemd/system"
_ACCOUNT_FILES = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow")
_BOOT_FOLDERS = ("/boot/firmware", "/boot")
_NULL = "/dev/null"
_OWN_PORT = "/dev/ttyAMA0"  # what the unit itself opens
_GETTY_WORDS = ("getty@", "getty.service", "autovt@", "getty-static")
_UNITS = (".service", ".socket", ".timer", ".mount", ".path", ".target", ".slice")
_KINDS = {  # of the files in systemd/ that are no units
    ".sysusers": "/etc/sysusers.d/{}.conf",
    ".tmpfiles": "/etc/tmpfiles.d/{}.conf",
    ".rules": "/etc/udev/rules.d/{}.rules",
}
_INSTALLED = {  # of config/: where to, area, what, reason, row, mode
    "sysctl.conf": (
        *("/etc/sysctl.d/zz-meterd.conf", "kernel", "kernel settings"),
        *("a process that was taken over learns little and gets no further", "H1", 0o644),
    ),
    "system.conf": (
        *("/etc/systemd/system.conf.d/meterd.conf", "kernel", "settings of systemd"),
        *("the watchdog restarts what hangs; crashed memory stays off the card", "H2", 0o644),
    ),
    "coredump.conf": (
        *("/etc/systemd/coredump.conf.d/meterd.conf", "kernel", "no core dumps"),
        *("keys and readings are in a process's memory", "H4", 0o644),
    ),
    "logind.conf": (
        *("/etc/systemd/logind.conf.d/meterd.conf", "consoles", "no login on another terminal"),
        *("whoever plugs in a keyboard finds nothing to type to", "E3", 0o644),
    ),
    "resolved.conf": (
        *("/etc/systemd/resolved.conf.d/meterd.conf", "services", "no LLMNR, no multicast DNS"),
        *("the device does not answer strangers on its link", "E4", 0o644),
    ),
}


def plan(tree: Tree, facts: Facts, without: Collection[str] = ()) -> list[Item]:
    """Return every path that a lockdown is about, in the order in which it is applied.

    Args:
        tree: The device's files; what is planned for a path counts as there for what follows.
        facts: What else is known of it.
        without: Areas to leave out.

    Raises:
        ConfigError: A file that meterd brings cannot be understood.
    """
    drawn = _Drawn(tree, facts)
    for area, draw in _DRAWN.items():
        if area not in without:
            draw(drawn)
    return drawn.items


def left_out(facts: Facts, without: Collection[str] = ()) -> set[str]:
    """Return the areas to leave out: those that are named, and what goes with them."""
    going = set(without)
    if going.intersection(TECHNICIAN) or "config/sshd.conf" not in facts.share:
        going.update(TECHNICIAN)
    return going


def needed_packages(facts: Facts, without: Collection[str]) -> list[str]:
    """Return the packages without which an area cannot be applied at all."""
    needs = {"firewall": ("nft", "nftables"), "ssh": ("sshd", "openssh-server")}
    return [
        package
        for area, (program, package) in needs.items()
        if area not in without and program not in facts.programs
    ]


class _Drawn:
    """A plan while it is drawn up."""

    def __init__(self, tree: Tree, facts: Facts) -> None:
        self.items: list[Item] = []
        self.facts = facts
        self._tree = tree
        self._wanted: dict[str, Entry] = {}

    def entry(self, path: str) -> Entry:
        return self._wanted.get(path) or self._tree.entry(path)

    def names(self, folder: str) -> list[str]:
        return self._tree.names(folder)

    def file(self, path: str) -> str | None:
        found = self.entry(path)
        return found.text if isinstance(found, Content) else None

    def brought(self, name: str) -> str:
        return self.facts.share[f"config/{name}"].decode()

    def want(self, path: str, wanted: Entry, about: tuple[str, str, str, str]) -> None:
        """Add an item; `about` is its area, what, reason and row."""
        area, what, reason, row = about
        self.items.append(Item(area, path, self.entry(path), wanted, what, reason, row))
        self._wanted[path] = wanted

    def put(
        self, path: str, data: str | bytes, about: tuple[str, str, str, str], mode: int = 0o644
    ) -> None:
        """Want a whole file of ours."""
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogateescape")
        uid, gid = self.facts.owner
        self.want(path, Content(data, mode, uid, gid), about)

    def edit(self, path: str, new: str, about: tuple[str, str, str, str]) -> None:
        """Want another content of a file that is there; mode and owner stay."""
        found = self.entry(path)
        data = new.encode("utf-8", "surrogateescape")
        if isinstance(found, Content):
            self.want(path, replace(found, data=data), about)
        else:
            self.put(path, data, about)


def _users(drawn: _Drawn) -> None:
    sysusers = "".join(
        data.decode() for name, data in drawn.facts.share.items() if name.endswith(".sysusers")
    )
    before = text.Accounts(*(drawn.file(path) or "" for path in _ACCOUNT_FILES))
    after = text.add_users(before, sysusers)
    about = ("users", "system users", "each process has a user of its own, and no login", "H1")
    new = dict(zip(_ACCOUNT_FILES, after, strict=True))
    for path in sorted(new):  # groups first: users name them by number, also if power fails between
        if drawn.file(path) is not None:
            drawn.edit(path, new[path], about)


def _units(drawn: _Drawn) -> None:
    links: dict[str, str] = {}
    for path, data in sorted(drawn.facts.share.items()):
        folder, _, name = path.partition("/")
        if folder != "systemd":
            continue
        where = place_of(name)
        about = ("units", name, _first_comment(data), "H1")
        drawn.put(where, data, about)
        if name.endswith(_UNITS):
            links |= text.install_links(name, data.decode(), where)
    port = drawn.facts.board_port
    if port not in ("", _OWN_PORT) and re.fullmatch(r"/dev/[A-Za-z0-9._/-]+", port):
        about = ("units", f"the board is at {port}", "the unit opens no port but one", "H1")
        drop_in = f"[Service]\nBindPaths=-{port}\nDeviceAllow={port} rw\n"
        drawn.put(f"{_SYSTEM}/meterd.service.d/port.conf", drop_in, about)
    for link, target in links.items():
        unit = target.rpartition("/")[2]
        drawn.want(link, Link(target), ("units", f"enable {unit}", "it starts by itself", "H2"))


def place_of(name: str) -> str:
    """Return where on a device a file of `systemd/` goes.

    Raises:
        MeterdError: Nothing is known of such files.
    """
    if name.endswith(_UNITS) or ".d/" in name:
        return f"{_SYSTEM}/{name}"
    stem, dot, suffix = name.rpartition(".")
    if dot + suffix not in _KINDS:
        raise MeterdError(f"systemd/{name}: nothing is known of such files")
    return _KINDS[dot + suffix].format(stem)


def _first_comment(data: bytes) -> str:
    """Return the first sentence that a file begins with."""
    first = next((line for line in data.decode().splitlines() if line.startswith("#")), "")
    sentence = first.lstrip("# ").partition(". ")[0]
    return sentence.rstrip(".") or "meterd's own"


def _installed(drawn: _Drawn, area: str) -> None:
    for name, (path, belongs, what, reason, row, mode) in _INSTALLED.items():
        if belongs == area:
            drawn.put(path, drawn.brought(name), (area, what, reason, row), mode)


def _kernel(drawn: _Drawn) -> None:
    _installed(drawn, "kernel")


def _consoles(drawn: _Drawn) -> None:
    _mask(drawn, "consoles", "E3")
    for name, why in (
        ("systemd-getty-generator", "no login is made for whatever console there is"),
        ("systemd-ssh-generator", "no socket for SSH besides sshd's own"),
    ):
        path = f"/etc/systemd/system-generators/{name}"
        drawn.want(path, Link(_NULL), ("consoles", f"mask {name}", why, "E3"))
    for path in _enabled_gettys(drawn):
        about = ("consoles", "not enabled", "a masked login is not asked for either", "E3")
        drawn.want(path, Gone(), about)
    for unit in ("emergency.service", "rescue.service"):
        about = ("consoles", f"{unit} starts anew", "no shell of root when a start fails", "E3")
        drawn.put(f"{_SYSTEM}/{unit}.d/meterd.conf", drawn.brought("no-login.conf"), about)
    _installed(drawn, "consoles")


def _enabled_gettys(drawn: _Drawn) -> Iterator[str]:
    yield f"{_SYSTEM}/getty.target.wants/getty@tty1.service"
    for folder in drawn.names(_SYSTEM):
        if folder.endswith((".wants", ".requires")):
            for name in drawn.names(f"{_SYSTEM}/{folder}"):
                path = f"{_SYSTEM}/{folder}/{name}"
                known = path == f"{_SYSTEM}/getty.target.wants/getty@tty1.service"
                if any(word in name for word in _GETTY_WORDS) and not known:
                    yield path


def _mask(drawn: _Drawn, area: str, row: str, *, named: str = "") -> None:
    for mask in text.masks(drawn.brought("masks")):
        if mask.area == (named or area):
            path = f"{_SYSTEM}/{mask.unit}"
            drawn.want(path, Link(_NULL), (area, f"mask {mask.unit}", mask.reason, row))


def boot_folder(tree: Tree) -> str | None:
    """Return the folder of a Raspberry Pi's boot files; None where there is none."""
    for folder in _BOOT_FOLDERS:
        if isinstance(tree.entry(f"{folder}/cmdline.txt"), Content):
            return folder
    return None


def _boot(drawn: _Drawn) -> None:
    folder = boot_folder(drawn)
    if folder is None:
        return
    old = drawn.file(f"{folder}/cmdline.txt") or ""
    new = text.cmdline(old, drawn.brought("cmdline"))
    about = ("boot", "kernel command line", "no console anywhere; see config/cmdline", "E3")
    drawn.edit(f"{folder}/cmdline.txt", new, about)
    old = drawn.file(f"{folder}/config.txt") or ""
    new = text.with_block(old, drawn.brought("config.txt"))
    about = ("boot", "firmware settings", "the UART is the board's; the watchdog is there", "E3")
    drawn.edit(f"{folder}/config.txt", new, about)
    settings = drawn.file("/etc/default/raspi-firmware")
    if settings is not None:  # Debian's own kernel package writes cmdline.txt anew by it
        new = text.with_setting(settings, "CONSOLES", "null")
        about = ("boot", "consoles after a kernel update", "cmdline.txt is written anew", "E3")
        drawn.edit("/etc/default/raspi-firmware", new, about)


def _usb(drawn: _Drawn) -> None:
    own = drawn.facts.own_usb
    rules = drawn.brought("usb.rules")
    rules += "".join(
        f"# This device's {device.purpose}.\n"
        'ACTION=="add", SUBSYSTEM=="usb", ENV{DEVTYPE}=="usb_device",'
        f' ATTR{{idVendor}}=="{device.vendor}", ATTR{{idProduct}}=="{device.product}",'
        ' ATTR{authorized}="1"\n'
        for device in own
    )
    about = ("usb", "USB off by default", "what is plugged in gets no driver", "E3")
    drawn.put("/etc/udev/rules.d/98-meterd-usb.rules", rules, about)
    if "usbguard-daemon" not in drawn.facts.programs:
        return
    about = ("usb", "USBGuard", "it judges what a device offers, not what it says alone", "E3")
    folder = "/etc/usbguard"
    conf = drawn.brought("usbguard-daemon.conf")
    drawn.put(f"{folder}/usbguard-daemon.conf", conf, about, 0o600)
    rules = drawn.brought("usbguard-rules.conf")
    rules += "".join(
        f"# This device's {device.purpose}.\nallow id {device.vendor}:{device.product}\n"
        for device in own
    )
    drawn.put(f"{folder}/rules.conf", rules, about, 0o600)
    _enable(drawn, "usbguard.service", ("usb", "enable usbguard.service", about[2], "E3"))


def _enable(drawn: _Drawn, unit: str, about: tuple[str, str, str, str]) -> None:
    """Want the links that enable a unit of a package, wherever that has its file."""
    for folder in ("/usr/lib/systemd/system", "/lib/systemd/system"):
        found = drawn.file(f"{folder}/{unit}")
        if found is not None:
            path = f"/usr/lib/systemd/system/{unit}"
            for link, target in text.install_links(unit, found, path).items():
                there = drawn.entry(link)
                same = isinstance(there, Link) and there.target.rpartition("/")[2] == unit
                drawn.want(link, there if same else Link(target), about)
            return


def _services(drawn: _Drawn) -> None:
    _mask(drawn, "services", "E4")
    if not drawn.facts.wireless:
        _mask(drawn, "services", "E4", named="wifi")
    _installed(drawn, "services")


def _firewall(drawn: _Drawn) -> None:
    rules = drawn.brought("nftables.conf")
    users = text.names_of(drawn.file("/etc/passwd") or "")
    for name in ("NAME_USERS", "CLOCK_USERS"):
        there = [user for user in text.defined(rules, name) if user.strip('"') in users]
        if not drawn.facts.anchor_port:
            there = [user for user in there if user != '"meterd-anchor"']
        rules = text.with_define(rules, name, there or ['"root"'])
    rules = text.with_define(rules, "BROKER_PORTS", [str(p) for p in drawn.facts.broker_ports])
    rules = text.with_define(rules, "ANCHOR_PORTS", [str(drawn.facts.anchor_port)])
    about = ("firewall", "rules", "all that is not named is dropped, in and out", "A3, E4")
    drawn.put("/etc/nftables.conf", rules, about, 0o644)
    _enable(
        drawn,
        "nftables.service",
        ("firewall", "enable nftables.service", "before the network is there", "E4"),
    )


def _ssh(drawn: _Drawn) -> None:
    folder = "/etc/ssh/sshd_config.d"
    about = ("ssh", "settings of sshd", "certificates of technicians, and their CLI", "A1, A2")
    drawn.put(f"{folder}/10-meterd.conf", drawn.brought("sshd.conf"), about)
    for name, unit in (("ssh-service.conf", "ssh.service"), ("user-slice.conf", "user-.slice")):
        about = (
            *("ssh", f"bounds of {unit}"),
            *("sessions take no memory and no time from the meter, however many there are", "H3"),
        )
        drawn.put(f"{_SYSTEM}/{unit}.d/meterd.conf", drawn.brought(name), about)
    for key, name, what, reason in (
        (
            *("AuthorizedPrincipalsFile", "principals", "principals"),
            "who a certificate has to name to open this device",
        ),
        ("RevokedKeys", "", "revoked keys", "sshd lets nobody in where the list is not there"),
    ):
        path = ssh_file(drawn.facts, key)
        data = drawn.facts.share.get(f"config/{name}", b"") if name else b""
        if path and isinstance(drawn.entry(path), Gone):  # a device's own list stays
            drawn.put(path, data, ("ssh", what, reason, "A1"))
    settings = drawn.file("/etc/ssh/sshd_config")
    new = text.with_include(settings or "", folder)
    drawn.edit(
        "/etc/ssh/sshd_config",
        new,
        ("ssh", "sshd reads them first", "what sshd is told first stands", "A1"),
    )
    about = ("ssh", "enable ssh.service", "the one way in starts by itself", "A1")
    _enable(drawn, "ssh.service", about)


def _accounts(drawn: _Drawn) -> None:
    shadow = drawn.file("/etc/shadow")
    if shadow is not None:
        about = ("accounts", "passwords", "no password opens anything; certificates do", "A1")
        drawn.edit("/etc/shadow", text.without_passwords(shadow), about)
    for path in ("/etc/sudoers.d/010_pi-nopasswd",):
        about = ("accounts", "no right to be root unasked", "nobody is root without a reason", "A2")
        drawn.want(path, Gone(), about)


_DRAWN = {
    "users": _users,
    "units": _units,
    "kernel": _kernel,
    "consoles": _consoles,
    "boot": _boot,
    "usb": _usb,
    "services": _services,
    "firewall": _firewall,
    "ssh": _ssh,
    "accounts": _accounts,
}
