"""`meterctl lockdown`: close a device down, see whether it is, and open it again."""

from __future__ import annotations

import json
import os
import sys
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meterd.ctl.options import add_action, add_json
from meterd.ctl.show import count, note
from meterd.device import lockdown_text as text
from meterd.device.lockdown import AREAS, TECHNICIAN, left_out, needed_packages, plan
from meterd.device.lockdown_device import Content, Gone, Item, Link, Other
from meterd.device.lockdown_files import KEPT, DeviceTree, Keeper
from meterd.device.lockdown_live import (
    commands,
    commands_back,
    commands_first,
    consoles_open,
    facts_of,
    firewall_loaded,
    is_live,
    listening,
    present,
    proofs,
    session_of,
    share_folder,
    tell,
)
from meterd.device.lockdown_way_in import refuse_lock_out
from meterd.errors import AbsentError, ConfigError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from meterd.device.lockdown_device import Facts
    from meterd.device.lockdown_files import Record

_SECRET = ("/etc/shadow", "/etc/gshadow")
_DIFF_LINES_MAX = 40  # of one file; more is a whole new file, not an edit


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        area: Of `AREAS`.
        path: Of the device; empty where it is no file.
        what: What has to be so.
        reason: Why.
        row: Of REQUIREMENTS.md.
        holds: Whether it is so.
        detail: What is so instead.
    """

    area: str
    path: str
    what: str
    reason: str
    row: str
    holds: bool
    detail: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl lockdown`."""
    parser.epilog = """\
examples:
  meterctl lockdown plan
  meterctl lockdown apply
  meterctl lockdown check --json
  meterctl lockdown undo
"""
    commands_ = parser.add_subparsers(dest="lockdown_command", required=True, metavar="COMMAND")
    summary = "show what would change; change nothing"
    command = add_action(commands_, "plan", summary)
    _add_choice(command)
    add_json(command)
    command.epilog = """\
examples:
  meterctl lockdown plan
  meterctl lockdown plan --root ./image --no-ssh
"""
    summary = "show what will change, ask, change it; what was there is kept"
    command = add_action(commands_, "apply", summary)
    _add_choice(command)
    command.add_argument("--yes", action="store_true", help="ask nothing")
    command.add_argument(
        "--cut-session", action="store_true", help="also where this session would be cut"
    )
    command.epilog = f"""\
What was there before is kept in {KEPT}.
Applied twice, the second time changes nothing; after a failure of power, apply
or undo again. Under another root, files change and nothing is started. The
command line of the kernel and the settings of the firmware count from the next
start on.

exit status: 0 all is as it has to be; 1 the files are, but something could not
be told to the running system; 77 somebody would be locked out

examples:
  meterctl lockdown apply
  meterctl lockdown apply --no-ssh --yes
  meterctl lockdown apply --root ./image --yes
"""
    summary = "see whether all is as it has to be; changes nothing"
    command = add_action(commands_, "check", summary)
    _add_choice(command)
    add_json(command)
    command.epilog = """\
exit status: 0 all holds, 1 something does not

examples:
  meterctl lockdown check
  meterctl lockdown check --json
"""
    summary = "put everything back as it was before the first apply"
    command = add_action(commands_, "undo", summary)
    _add_root(command)
    command.add_argument("--yes", action="store_true", help="ask nothing")
    command.add_argument(
        "--force", action="store_true", help="also what somebody else has changed since"
    )
    command.epilog = """\
Users whose state is on the device stay: another user would get their number,
and what belongs to them.

exit status: 0 all is as it was; 1 something was changed since, and left

examples:
  meterctl lockdown undo
  meterctl lockdown undo --root ./image --yes
"""


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="the device's files, as of an image that is built (default: /, this system)",
    )


def _add_choice(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument(
        "--no-ssh",
        action="store_true",
        help="leave SSH and accounts as they are: whoever comes in today still does",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="AREA",
        choices=sorted(AREAS),
        help=f"leave out an area; may be repeated: {', '.join(AREAS)}",
    )


def run(options: argparse.Namespace) -> int:
    """Do what is asked; returns the exit code."""
    if not options.root.is_dir():
        raise AbsentError(f"{options.root} is no folder", hint="name the device's root folder")
    chosen = {"plan": _plan, "apply": _apply, "check": _check, "undo": _undo}
    return chosen[options.lockdown_command](options)


class _Device:
    """A device, and what a lockdown of it comes to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.tree = DeviceTree(options.root)
        self.live = is_live(self.tree)
        self.facts: Facts = facts_of(self.tree, share_folder())
        named = {*options.without, *(TECHNICIAN if options.no_ssh else ())}
        self.without = left_out(self.facts, named)
        self.items = plan(self.tree, self.facts, self.without)
        if not named.intersection(TECHNICIAN) and self.without.intersection(TECHNICIAN):
            note("this build has no settings for sshd: SSH and accounts stay as they are")
        if "usb" not in self.without and "usbguard-daemon" not in self.facts.programs:
            note("usbguard is not installed: what is plugged in is judged by udev alone")

    @property
    def pending(self) -> list[Item]:
        """What does not hold."""
        return [item for item in self.items if not item.holds]


def _plan(options: argparse.Namespace) -> int:
    device = _Device(options)
    if options.json:
        shown = [_as_json(item) for item in device.pending]
        needed = needed_packages(device.facts, device.without)
        print(json.dumps({"changes": shown, "needs": needed}))
        return 0
    _show(device.pending)
    for package in needed_packages(device.facts, device.without):
        note(f"{package} is needed: apt-get install {package}")
    return 0


def _as_json(item: Item) -> dict[str, object]:
    return {
        "area": item.area,
        "path": item.path,
        "what": item.what,
        "reason": item.reason,
        "row": item.row,
        "change": list(_change(item)),
    }


def _show(items: list[Item]) -> None:
    if not items:
        print("nothing to do: all is as it has to be")
    area = ""
    for item in items:
        if item.area != area:
            area = item.area
            print(f"{area}: {AREAS[area]}")
        first, *more = _change(item)
        print(f"  {first}")
        for line in more:
            print(f"      {line}")
        print(f"      # {item.reason} ({item.row})")


def _change(item: Item) -> Iterator[str]:
    """Yield how an item changes: `+` comes, `-` goes, `~` becomes another."""
    found, wanted = item.found, item.wanted
    if isinstance(wanted, Gone):
        yield f"- {item.path}"
    elif isinstance(wanted, Link):
        yield f"{'+' if isinstance(found, Gone) else '~'} {item.path} -> {wanted.target}"
    elif not isinstance(wanted, Content):
        raise TypeError(wanted)
    elif isinstance(found, Content):
        yield f"~ {item.path}"
        yield from _content_change(item.path, found, wanted)
    else:
        yield f"+ {item.path} ({count(len(wanted.data.splitlines()), 'line')})"
    if isinstance(found, Other):
        yield "a folder or device is in its place"


def _content_change(path: str, found: Content, wanted: Content) -> Iterator[str]:
    if found.mode != wanted.mode:
        yield f"mode {found.mode:o} becomes {wanted.mode:o}"
    if (found.uid, found.gid) != (wanted.uid, wanted.gid):
        yield f"owner {found.uid}:{found.gid} becomes {wanted.uid}:{wanted.gid}"
    if path in _SECRET:  # never a hash on a screen, or in a log of it
        before, after = set(found.text.splitlines()), wanted.text.splitlines()
        names = [line.split(":", 1)[0] for line in after if line not in before]
        yield f"lines of {', '.join(names)}" if names else "line ends"
        return
    if path.endswith("/cmdline.txt"):
        old, new = found.text.split(), wanted.text.split()
    else:
        old, new = found.text.splitlines(), wanted.text.splitlines()
    lines = [
        line for line in unified_diff(old, new, lineterm="", n=0) if not line.startswith("@@")
    ][2:]
    yield from (f"{line[0]} {line[1:]}".rstrip() for line in lines[:_DIFF_LINES_MAX])
    if len(lines) > _DIFF_LINES_MAX:
        yield f"… and {count(len(lines) - _DIFF_LINES_MAX, 'more line')}"


def _apply(options: argparse.Namespace) -> int:
    _refuse_to_ask(options)
    keeper = Keeper(DeviceTree(options.root))
    device = _Device(options)
    if device.pending:
        _refuse(options, device)
    _show(device.pending)
    if not device.pending:
        return 0
    _confirm(options, f"{count(len(device.pending), 'change')}: apply? [y/N] ")
    with keeper.alone():
        changed = _Device(options).pending  # somebody may have changed something meanwhile
        for item in changed:
            keeper.change(item.path, item.wanted)
        print(f"applied {count(len(changed), 'change')}; what was there is kept in {KEPT}")
        if not device.live:
            return 0
        _prove(keeper, changed)
    failed = _tell(commands(changed, present()))
    begin = new_units(changed)
    if begin:
        note(f"from the next start on, or now with: systemctl start {' '.join(begin)}")
    return failed


def new_units(changed: list[Item]) -> list[str]:
    """Return the services and timers of meterd itself that are enabled from now on.

    By their short names, as systemctl takes them: a line that fits into a terminal.
    """
    units = [item.path.rpartition("/")[2] for item in changed if isinstance(item.wanted, Link)]
    own = [unit for unit in units if unit.startswith("meterd")]
    services = [unit.removesuffix(".service") for unit in own if unit.endswith(".service")]
    return [*services, *(unit for unit in own if unit.endswith(".timer"))]


def _refuse(options: argparse.Namespace, device: _Device) -> None:
    packages = needed_packages(device.facts, device.without)
    if packages:
        raise AbsentError(
            f"{' and '.join(packages)} must be there first: nothing was changed",
            hint=f"apt-get install {' '.join(packages)}, or leave out an area with --without",
        )
    watched = device.live and not options.cut_session
    session = session_of(Path("/proc"), os.getpid()) if watched else None
    refuse_lock_out(device.tree, device.facts, device.items, device.without, session)


def _prove(keeper: Keeper, changed: list[Item]) -> None:
    """Have the new files judged by those who will read them; put back what is refused."""
    tell(("install", "-d", "-m", "0755", "/run/sshd"))  # sshd judges nothing without it
    records = {record.path: record for record in keeper.records()}
    for path, proof in proofs({item.path for item in changed}):
        told = tell(proof)
        if told.said:
            keeper.undo(records[path], force=True)
            raise ConfigError(
                f"`{told.command}` refuses {path}: {told.said}",
                hint="that file is as it was; nothing of the rest counts before it is mended",
            )


def _tell(told: Iterable[tuple[str, ...]]) -> int:
    failed = 0
    for command in told:
        result = tell(command)
        if result.said:
            failed = 1
            note(f"`{result.command}` failed: {result.said}")
    if failed:
        note("what failed counts from the next start on; see it with `systemctl status`")
    return failed


def _check(options: argparse.Namespace) -> int:
    device = _Device(options)
    findings = [
        Finding(
            *(item.area, item.path, item.what, item.reason, item.row, item.holds),
            "" if item.holds else "; ".join(_change(item)),
        )
        for item in device.items
    ]
    if device.live:
        findings += _running(device)
    holds = all(finding.holds for finding in findings)
    if options.json:
        print(json.dumps({"holds": holds, "items": [finding._asdict() for finding in findings]}))
        return 0 if holds else 1
    for finding in findings:
        where = f" {finding.path}" if finding.path else ""
        mark = "ok" if finding.holds else "NO"
        print(f"{mark}  {finding.area:9} {finding.what}{where}")
        print(f"              {finding.reason} ({finding.row})")
        if not finding.holds:
            print(f"              found: {finding.detail}")
    wrong = sum(not finding.holds for finding in findings)
    print(f"{count(len(findings), 'item')}, {wrong} of them not as they have to be")
    return 0 if holds else 1


def _running(device: _Device) -> Iterator[Finding]:
    """Yield what the running system says, whatever its files do."""
    if "services" not in device.without:
        listed = text.listed_sockets(device.facts.share["config/sockets"].decode())
        if "ssh" in device.without:
            listed = [one._replace(always=False) for one in listed]
        more, less = text.compare_sockets(listening(), listed)
        reason = "each is a way in; see config/sockets"
        for one in more:
            yield Finding(
                "services", "", f"{one} is closed", reason, "E4", holds=False, detail=str(one)
            )
        for one in less:
            what = f"{one} is open"
            yield Finding("services", "", what, reason, "E4", holds=False, detail="closed")
        if not more and not less:
            yield Finding("services", "", "sockets are those listed", reason, "E4", holds=True)
    if "consoles" not in device.without:
        names = consoles_open()
        reason = "whoever has hands on the device has no login"
        what = "no login waits at a console"
        yield Finding("consoles", "", what, reason, "E3", holds=not names, detail=names)
    if "firewall" not in device.without:
        loaded = firewall_loaded()
        what, reason = "the rules are loaded", "a file alone drops nothing"
        yield Finding("firewall", "", what, reason, "A3, E4", holds=loaded, detail="not loaded")


def _undo(options: argparse.Namespace) -> int:
    _refuse_to_ask(options)
    tree = DeviceTree(options.root)
    keeper = Keeper(tree)
    records = keeper.records()
    if not records:
        keeper.tidy()
        print("nothing to undo: nothing is kept of before")
        return 0
    for record in records:
        print(f"  {_back(record)} {record.path}")
    _confirm(options, f"{count(len(records), 'path')}: put back? [y/N] ")
    staying, failed = _staying(tree), 0
    if is_live(tree):
        gone = {record.path for record in records if isinstance(record.before, Gone)}
        failed = _tell(commands_first(gone))
    with keeper.alone():
        records = keeper.records()
        left = [
            record.path
            for record in reversed(records)
            if not keeper.undo(record, force=options.force, keep=staying)
        ]
        keeper.leave()
    print(f"put back {count(len(records) - len(left), 'path')}")
    if staying:
        note(f"users that have something on the device stay: {', '.join(sorted(staying))}")
    for path in left:
        note(f"{path} was changed by somebody else since, and left: --force puts it back")
    if is_live(tree):
        paths = {record.path for record in records} - set(left)
        failed |= _tell(commands_back(paths, present()))
        note("consoles, and what the firmware and the kernel are told, come back with a restart")
    return 1 if left or failed else 0


def _back(record: Record) -> str:
    return "-" if isinstance(record.before, Gone) else "~"


def _staying(tree: DeviceTree) -> set[str]:
    """Return the users and groups of ours that own something, or may."""
    sysusers = "".join(
        path.read_text() for path in sorted((share_folder() / "systemd").glob("*.sysusers"))
    )
    users = text.users_in(sysusers)
    if not any(isinstance(tree.entry(user.home), Other) for user in users if user.home != "/"):
        return set()
    return {line.split()[1] for line in text.lines_of(sysusers) if line.split()[0] in "gu"}


def _refuse_to_ask(options: argparse.Namespace) -> None:
    if not options.yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise UsageError(
            "there is no terminal to ask at", hint="add --yes once `plan` shows what you want"
        )


def _confirm(options: argparse.Namespace, question: str) -> None:
    if options.yes:
        return
    sys.stdout.flush()
    sys.stderr.write(f"\n{question}")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("not confirmed: nothing was changed")
