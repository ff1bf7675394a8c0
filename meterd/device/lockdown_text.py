r"""Text files of a device, before and after its lockdown; nothing is opened here.

>>> cmdline("console=serial0,115200 root=/dev/mmcblk0p2 rw\n", "-console=\n+console=null\n")
'root=/dev/mmcblk0p2 rw console=null\n'
>>> with_block("arm_64bit=1\n", "enable_uart=1\n").splitlines()[-2:]
['enable_uart=1', '# --- meterd lockdown: end']
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from meterd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

BEGIN, END = "# --- meterd lockdown: begin", "# --- meterd lockdown: end"
SYSTEM_ID_MAX, SYSTEM_ID_MIN = 999, 100  # what Debian gives its system users
LOCKED = "*"  # no password has this hash; "!" would keep sshd without PAM from taking a certificate


def lines_of(text: str) -> Iterator[str]:
    """Yield the lines that say something."""
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def cmdline(text: str, rules: str) -> str:
    """Return the kernel's command line (one line) after the rules of `config/cmdline`."""
    going = [rule[1:] for rule in lines_of(rules) if rule.startswith("-")]
    coming = [rule[1:] for rule in lines_of(rules) if rule.startswith("+")]
    words = [
        word
        for word in text.split()
        if word in coming or not any(word.startswith(begin) for begin in going)
    ]
    words = list(dict.fromkeys(words))
    return " ".join([*words, *(word for word in coming if word not in words)]) + "\n"


def with_block(text: str, block: str) -> str:
    """Return the text with our block at its end, in the place of any that was there."""
    kept, ours = [], False
    for line in text.splitlines():
        if line == BEGIN:
            ours = True
        elif line == END:
            ours = False
        elif not ours:
            kept.append(line)
    while kept and not kept[-1].strip():
        kept.pop()
    gap = [""] if kept else []
    return "\n".join([*kept, *gap, BEGIN, *block.strip("\n").splitlines(), END]) + "\n"


def with_setting(text: str, name: str, value: str) -> str:
    """Return shell settings in which `name` is set once, to `value`; a comment is let be."""
    wanted = f'{name}="{value}"'
    pattern = re.compile(rf"\s*(export\s+)?{re.escape(name)}=")
    found = [line for line in text.splitlines() if pattern.match(line)]
    if found == [wanted]:
        return text
    kept = [line for line in text.splitlines() if not pattern.match(line)]
    return "\n".join([*kept, wanted]) + "\n"


def with_include(text: str, folder: str) -> str:
    """Return sshd's settings that read its folder of settings before they say anything else."""
    for line in lines_of(text):
        words = line.split()
        if words[0].lower() == "include" and f"{folder}/*.conf" in words[1:]:
            return text
        break  # sshd keeps what it is told first
    return f"Include {folder}/*.conf\n{text}"


def sshd_value(text: str, key: str) -> str:
    """Return what sshd's settings say to a key, the first that they do; empty without."""
    for line in lines_of(text):
        name, _, value = line.partition(" ")
        if name.lower() == key.lower():
            return value.strip()
    return ""


class User(NamedTuple):
    """A line `u` of sysusers.d(5)."""

    name: str
    group: str
    number: int | None
    comment: str
    home: str
    shell: str


class Accounts(NamedTuple):
    """The four files of users and groups, as text."""

    passwd: str
    group: str
    shadow: str
    gshadow: str


def names_of(text: str) -> set[str]:
    """Return the first field of each line."""
    return {line.split(":", 1)[0] for line in text.splitlines() if line}


def add_users(accounts: Accounts, sysusers: str) -> Accounts:
    """Return the accounts with the users, groups and memberships that a file of sysusers.d names.

    A user or group that is there already stays as it is, as sysusers.d has it; only a line of its
    own in the shadow files it gets, should power have failed before that was written.

    Raises:
        ConfigError: A line says something that is not understood here, or no number is free.
    """
    passwd, group, shadow, gshadow = accounts
    for line in lines_of(sysusers):
        words = _words(line)
        kind, name = words[0], words[1]
        if kind == "g":
            number = _number(words[2]) if len(words) > 2 else None  # noqa: PLR2004
            group, gshadow = _add_group(group, gshadow, name, number, passwd)
        elif kind == "u":
            user = _user(words)
            if user.group == name:
                group, gshadow = _add_group(group, gshadow, name, user.number, passwd)
            shadow += f"{name}:!*:::::::\n" if name not in names_of(shadow) else ""
            if name in names_of(passwd):
                continue
            number = _free(user.number, passwd, group, own=name)
            gid = _group_number(group, user.group)
            passwd += f"{name}:x:{number}:{gid}:{user.comment}:{user.home}:{user.shell}\n"
        elif kind == "m":
            group, gshadow = _join(group, name, words[2]), _join(gshadow, name, words[2])
        else:
            raise ConfigError(f"sysusers: a line {kind!r} is not understood: {line[:80]}")
    return Accounts(passwd, group, shadow, gshadow)


def users_in(sysusers: str) -> list[User]:
    """Return the users that a file of sysusers.d names."""
    return [_user(_words(line)) for line in lines_of(sysusers) if line.split()[0] == "u"]


def _words(line: str) -> list[str]:
    return [
        quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', line) if quoted or bare
    ]


def _user(words: list[str]) -> User:
    name, number, group = words[1], None, words[1]
    if len(words) > 2 and words[2] != "-":  # noqa: PLR2004
        first, _, second = words[2].partition(":")
        number, group = (None if first == "-" else _number(first)), second or name
    rest = [*words[3:], "-", "-", "-"]
    comment, home, shell = ("" if word == "-" else word for word in rest[:3])
    return User(name, group, number, comment, home or "/", shell or "/usr/sbin/nologin")


def _number(text: str) -> int | None:
    if text == "-":
        return None
    if not text.isdecimal():
        raise ConfigError(f"sysusers: expected a number or -, got {text[:40]!r}")
    return int(text)


def _numbers(text: str) -> set[int]:
    found = (line.split(":") for line in text.splitlines())
    return {int(fields[2]) for fields in found if len(fields) > 2 and fields[2].isdecimal()}  # noqa: PLR2004


def _free(wanted: int | None, passwd: str, group: str, own: str) -> int:
    """Return a number that no user has; where it can be, that of the group of the same name."""
    users, groups = _numbers(passwd), _numbers(group)
    named = _group_number(group, own) if own in names_of(group) else None
    for number in (wanted, named):
        if number is not None and number not in users:
            return number
    for number in range(SYSTEM_ID_MAX, SYSTEM_ID_MIN - 1, -1):
        if number not in users and number not in groups:
            return number
    raise ConfigError("there is no number left for another system user")


def _add_group(
    group: str, gshadow: str, name: str, number: int | None, passwd: str
) -> tuple[str, str]:
    if gshadow and name not in names_of(gshadow):
        gshadow += f"{name}:!*::\n"
    if name in names_of(group):
        return group, gshadow
    taken = _numbers(group)
    for fields in (line.split(":") for line in passwd.splitlines()):
        if fields[0] == name and len(fields) > 3 and fields[3].isdecimal():  # noqa: PLR2004
            number = int(fields[3])  # power failed once its user was written: that names it
    if number is None or number in taken:
        taken |= _numbers(passwd)
        free = (n for n in range(SYSTEM_ID_MAX, SYSTEM_ID_MIN - 1, -1) if n not in taken)
        number = next(free, None)
    if number is None:
        raise ConfigError("there is no number left for another system group")
    return group + f"{name}:x:{number}:\n", gshadow


def _group_number(group: str, name: str) -> int:
    for line in group.splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return int(fields[2])
    raise ConfigError(
        f"sysusers: there is no group {name}", hint="name it with a line `g` before its users"
    )


def _join(text: str, user: str, group: str) -> str:
    done = []
    for line in text.splitlines():
        fields = line.split(":")
        members = [member for member in fields[-1].split(",") if member]
        if fields[0] == group and user not in members:
            line = ":".join([*fields[:-1], ",".join([*members, user])])  # noqa: PLW2901
        done.append(line)
    return "\n".join(done) + "\n" if done else text


def without_passwords(shadow: str) -> str:
    """Return the shadow file in which no password opens anything; keys and certificates still do.

    An empty field lets anybody in without one.
    """
    done = []
    for line in shadow.splitlines():
        fields = line.split(":")
        if len(fields) > 1 and not fields[1].startswith(("*", "!*")) and fields[1] != "!":
            fields[1] = LOCKED
        done.append(":".join(fields))
    return "\n".join(done) + "\n" if done else shadow


def open_passwords(shadow: str) -> list[str]:
    """Return who can still come in by a password, or without one."""
    return [
        old.split(":", 1)[0]
        for old, new in zip(
            shadow.splitlines(), without_passwords(shadow).splitlines(), strict=False
        )
        if old != new
    ]


def merge_back(before: str, wrote: str, now: str, *, keep: Collection[str] = ()) -> str:
    """Return a file of accounts as it was, but for what others have changed in it since.

    Args:
        before: As it was before us.
        wrote: As we left it.
        now: As it is.
        keep: Names that we added and that stay.
    """
    old, ours = _by_name(before), _by_name(wrote)
    done = []
    for line in now.splitlines():
        name = line.split(":", 1)[0]
        if ours.get(name) != line or name in keep:
            done.append(line)
        elif name in old:
            done.append(old[name])
    return "\n".join(done) + "\n" if done else now


def _by_name(text: str) -> dict[str, str]:
    return {line.split(":", 1)[0]: line for line in text.splitlines()}


def install_links(unit: str, text: str, path: str) -> dict[str, str]:
    """Return the links, with where they lead, that `systemctl enable` makes for a unit.

    Args:
        unit: Its name.
        text: Its file.
        path: Where that is on the device.
    """
    links: dict[str, str] = {}
    section = ""
    for line in lines_of(text):
        if line.startswith("["):
            section = line
        if section != "[Install]":
            continue
        key, _, value = line.partition("=")
        for name in value.split():
            if key in {"WantedBy", "RequiredBy"}:
                kind = "wants" if key == "WantedBy" else "requires"
                links[f"/etc/systemd/system/{name}.{kind}/{unit}"] = path
            elif key == "Alias":
                links[f"/etc/systemd/system/{name}"] = path
    return links


def with_define(text: str, name: str, values: Collection[str]) -> str:
    """Return a rule set in which a set that is defined at a line's begin has these values."""
    wanted = f"define {name} = {{ {', '.join(values)} }}"
    done, count = re.subn(rf"^define {name} = .*$", wanted, text, flags=re.MULTILINE)
    if count != 1:
        raise ConfigError(f"the rule set defines {name} {count} times, not once")
    return done


def defined(text: str, name: str) -> list[str]:
    """Return the values of a set that the rule set defines."""
    match = re.search(rf"^define {name} = {{ (.*) }}$", text, flags=re.MULTILINE)
    return [value.strip() for value in match[1].split(",")] if match else []


class Mask(NamedTuple):
    """A unit that never starts."""

    area: str
    unit: str
    reason: str


def masks(text: str) -> list[Mask]:
    """Return the lines of `config/masks`."""
    return [Mask(*line.split(maxsplit=2)) for line in lines_of(text)]


class Socket(NamedTuple):
    """What listens: of `config/sockets` or of `ss`.

    Attributes:
        protocol: `tcp` or `udp`.
        address: With the port; an IPv6 address in brackets.
        program: The process's name, as far as the kernel keeps it (15 letters).
        always: Whether it has to be there.
    """

    protocol: str
    address: str
    program: str
    always: bool = False

    def __str__(self) -> str:
        """Return it as a line shows it."""
        return f"{self.protocol} {self.address} {self.program}"


def listed_sockets(text: str) -> list[Socket]:
    """Return the lines of `config/sockets`."""
    found = []
    for line in lines_of(text):
        protocol, address, program, when = line.partition("#")[0].split()
        found.append(Socket(protocol, address, program, when == "always"))
    return found


def open_sockets(said: str) -> list[Socket]:
    """Return what `ss -H -lntup` says."""
    found = set()
    for line in said.splitlines():
        protocol, _state, _receive, _send, address, _peer, *users = line.split()
        host, _, port = address.rpartition(":")
        host = host.partition("%")[0] + ("]" if host.startswith("[") and "%" in host else "")
        if host == "*":
            host = "[::]"
        for program in re.findall(r'"([^"]+)",pid=', " ".join(users)) or ["?"]:
            found.add(Socket(protocol, f"{host}:{port}", program))
    return sorted(found)


def compare_sockets(
    opened: Collection[Socket], listed: Collection[Socket]
) -> tuple[list[Socket], list[Socket]]:
    """Return what is open and not listed, and what should be open and is not."""

    def fits(one: Socket, entry: Socket) -> bool:
        same = (
            one.address == entry.address or entry.address == f"*:{one.address.rpartition(':')[2]}"
        )
        return same and (one.protocol, one.program) == (entry.protocol, entry.program)

    more = [one for one in opened if not any(fits(one, entry) for entry in listed)]
    less = [entry for entry in listed if entry.always and not any(fits(o, entry) for o in opened)]
    return more, less


def settings_ports(brokers: Mapping[str, object] | object) -> list[int]:
    """Return the ports of the brokers that the settings' `[network]` names; 8883 if none."""
    urls = brokers.get("brokers", []) if isinstance(brokers, dict) else []
    ports = set()
    for url in urls if isinstance(urls, list) else []:
        match = re.fullmatch(r"(mqtts?)://[^/]*?(?::(\d{1,5}))?/?", str(url))
        if match:
            ports.add(int(match[2]) if match[2] else (8883 if match[1] == "mqtts" else 1883))
    return sorted(ports) or [8883]


def url_port(url: object) -> int:
    """Return the port that a URL of the web leads to; 0 where it is none."""
    match = re.fullmatch(r"(https?)://(?:\[[^\]/]*\]|[^/:\[]+)(?::(\d{1,5}))?(?:/.*)?", str(url))
    if not match:
        return 0
    return int(match[2]) if match[2] else (443 if match[1] == "https" else 80)
