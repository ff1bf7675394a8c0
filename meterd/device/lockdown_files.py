"""The files of a device: read as they are, put as they have to be, kept as they were.

Before a path is changed for the first time, what is there is written down in
`/var/lib/meterd-lockdown`, and durable; the change itself is one rename. So whenever power fails,
`apply` goes on and `undo` puts back. A path that somebody else has changed since is left to them.

Nothing follows a link of the device on the way to a path: under another root, `/etc/x -> /etc/y`
would lead into the system that runs this.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from base64 import b64decode, b64encode
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.device import lockdown_text as text
from meterd.device.card import sync_folder
from meterd.device.files import beside, write_over
from meterd.device.lockdown_device import Content, Entry, Gone, Link, Other
from meterd.errors import BusyError, StorageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

KEPT = "/var/lib/meterd-lockdown"
FILE_BYTES_MAX = 4_000_000  # settings are thousands of bytes; what is larger is no settings file
ACCOUNT_FILES = frozenset({"/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"})
_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700


class DeviceTree:
    """The files below a root folder."""

    def __init__(self, root: Path) -> None:
        """Look at nothing yet."""
        self.root = root

    def where(self, path: str) -> Path:
        """Return where a path of the device is here, its folders' links followed below the root.

        Raises:
            StorageError: A link leads out of the root, or in a circle.
        """
        done: list[str] = []
        waiting = path.strip("/").split("/")
        links = 0
        while len(waiting) > 1:
            name = waiting.pop(0)
            if name in {"", "."}:
                continue
            if name == "..":
                del done[-1:]
                continue
            here = self.root.joinpath(*done, name)
            if here.is_symlink():
                links += 1
                if links > 40:  # noqa: PLR2004 - as the kernel counts
                    raise StorageError(f"too many links on the way to {path}")
                target = str(here.readlink())
                if target.startswith("/"):
                    done = []
                waiting = [*target.strip("/").split("/"), *waiting]
            else:
                done.append(name)
        return self.root.joinpath(*done, *waiting)

    def entry(self, path: str) -> Entry:
        """Return what is at a path.

        Raises:
            PermissionError: It may not be read.
            StorageError: It is too large for settings.
        """
        where = self.where(path)
        try:
            status = where.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return Gone()
        if stat.S_ISLNK(status.st_mode):
            return Link(os.readlink(where))  # noqa: PTH115 - as it is spelt, to the letter
        if not stat.S_ISREG(status.st_mode):
            return Other()
        if status.st_size > FILE_BYTES_MAX:
            raise StorageError(f"{path} is too large for settings: {status.st_size} bytes")
        mode = stat.S_IMODE(status.st_mode)
        return Content(where.read_bytes(), mode, status.st_uid, status.st_gid)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none if there is no such folder."""
        where = self.where(f"{folder}/.").parent if folder == "/" else self.where(folder)
        try:
            return sorted(os.listdir(where))  # noqa: PTH208 - names, not paths
        except (FileNotFoundError, NotADirectoryError):
            return []

    def put(self, path: str, wanted: Entry) -> list[str]:
        """Let something be at a path, whole or not at all, and for good; return new folders.

        Raises:
            StorageError: A folder or a device is in its place.
        """
        where = self.where(path)
        if isinstance(self.entry(path), Other):
            hint = "see what it is with `ls -ld`, and move it away"
            raise StorageError(f"{path} is no file that can be replaced", hint=hint)
        made: list[str] = []
        if isinstance(wanted, Gone):
            with suppress(FileNotFoundError, NotADirectoryError):
                where.unlink()
                sync_folder(where.parent)
            return made
        made = self._make_folders(path)
        if isinstance(wanted, Link):
            link = beside(where)
            link.unlink(missing_ok=True)
            link.symlink_to(wanted.target)
            link.replace(where)
            sync_folder(where.parent)
        elif isinstance(wanted, Content):
            write_over(where, wanted.data, mode=wanted.mode, owner=(wanted.uid, wanted.gid))
        return made

    def missing_folders(self, path: str) -> list[str]:
        """Return the folders on the way to a path that are not there yet, the outer ones first."""
        folder = path.rpartition("/")[0]
        missing = []
        while folder and not self.where(f"{folder}/x").parent.is_dir():
            missing.append(folder)
            folder = folder.rpartition("/")[0]
        return missing[::-1]

    def _make_folders(self, path: str) -> list[str]:
        made = self.missing_folders(path)
        for folder in made:
            here = self.where(f"{folder}/x").parent
            here.mkdir(0o755)
            here.chmod(0o755)  # whatever the mask of whoever asks
            sync_folder(here.parent)
        return made

    def tidy(self, path: str) -> None:
        """Remove what a failure of power left half written beside a path."""
        where = self.where(path)
        with suppress(FileNotFoundError, NotADirectoryError):
            beside(where).unlink()

    def remove_folder(self, folder: str) -> None:
        """Remove a folder that is empty; leave one that is not."""
        with suppress(OSError):
            where = self.where(f"{folder}/x").parent
            where.rmdir()
            sync_folder(where.parent)


class Record(NamedTuple):
    """What was at a path before it was changed.

    Attributes:
        number: Which change it was; they are undone from the last.
        path: Of the device.
        before: What was there.
        wrote: What was put there last, and it may be, before that: it is written down first, and
            power may fail between the two.
        folders: Which folders were made for it.
    """

    number: int
    path: str
    before: Entry
    wrote: tuple[Entry, ...]
    folders: tuple[str, ...]


class Keeper:
    """Changes paths of a device, and keeps what was there."""

    def __init__(self, tree: DeviceTree) -> None:
        """Look at nothing yet."""
        self.tree = tree
        self._folder = tree.where(f"{KEPT}/x").parent
        self._known: dict[str, Record] | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the one writer's lock.

        Raises:
            BusyError: Somebody else changes this device.
        """
        above = self._folder.parent
        above.mkdir(parents=True, exist_ok=True)
        held = [os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        try:
            accounts = self.tree.where("/etc/.pwd.lock")  # whoever changes users holds it
            if accounts.is_file():
                held.append(os.open(accounts, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
            try:
                fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
                for descriptor in held[1:]:
                    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise BusyError(
                    "another program changes this device, or its users", hint="wait for its end"
                ) from error
            yield
        finally:
            for descriptor in held:
                os.close(descriptor)

    def records(self) -> list[Record]:
        """Return what is kept, the first change first.

        Raises:
            StorageError: A record cannot be read.
        """
        try:
            paths = [path for path in self._folder.iterdir() if path.suffix == ".json"]
        except FileNotFoundError:
            return []
        return sorted(map(_read_record, paths))

    def change(self, path: str, wanted: Entry) -> None:
        """Let something be at a path; what was there before the first change is kept."""
        if self._known is None:
            self._known = {record.path: record for record in self.records()}
        now = self.tree.entry(path)
        known = self._known.get(path)
        if known is None:
            number = max((record.number for record in self._known.values()), default=0) + 1
            folders = tuple(self.tree.missing_folders(path))
            known = Record(number, path, now, (), folders)
        ours = tuple(entry for entry in known.wrote if entry == now and entry != wanted)
        known = known._replace(wrote=(wanted, *ours))
        self._write_record(known)
        self._known[path] = known
        self.tree.put(path, wanted)

    def undo(self, record: Record, *, force: bool, keep: Collection[str] = ()) -> bool:
        """Put back what was at a path; return whether that was done.

        Args:
            record: Of the path.
            force: Whether to put it back even over what somebody else has written since.
            keep: Names of users and groups that stay.
        """
        now = self.tree.entry(record.path)
        target = record.before
        if record.path in ACCOUNT_FILES and not force:
            target = _merged(record, now, keep)
        elif now not in (record.before, *record.wrote) and not force:
            return False
        if now != target:
            self.tree.put(record.path, target)
        self.tree.tidy(record.path)
        for folder in reversed(record.folders):
            self.tree.remove_folder(folder)
        self._forget(record)
        return True

    def _write_record(self, record: Record) -> None:
        shown = {
            "number": record.number,
            "path": record.path,
            "before": _shown(record.before),
            "wrote": [_shown(entry) for entry in record.wrote],
            "folders": list(record.folders),
        }
        if not self._folder.is_dir():
            self._folder.mkdir(_PRIVATE_FOLDER)
            sync_folder(self._folder.parent)
        self._folder.chmod(_PRIVATE_FOLDER)  # password hashes are in there
        data = json.dumps(shown, indent=1).encode()
        write_over(self._where(record.path), data, mode=_PRIVATE_FILE)

    def _forget(self, record: Record) -> None:
        self._known = None
        self._where(record.path).unlink(missing_ok=True)
        sync_folder(self._folder)

    def leave(self) -> None:
        """Remove the folder of records once it has none."""
        if self._folder.is_dir() and not self.records():
            for path in self._folder.iterdir():
                path.unlink()  # what a failure of power left half written
            self.tree.remove_folder(KEPT)

    def tidy(self) -> None:
        """Remove what an apply has left that ended before its first record was whole."""
        if self._folder.is_dir():
            with self.alone():
                self.leave()

    def _where(self, path: str) -> Path:
        return self._folder / f"{path.strip('/').replace('/', '%')}.json"


def _merged(record: Record, now: Entry, keep: Collection[str]) -> Entry:
    """Return a file of accounts as it was, but for what others have changed in it since."""
    before = record.before
    wrote = now if now in record.wrote else record.wrote[0]
    if not isinstance(before, Content) or not isinstance(now, Content):
        return before
    if not isinstance(wrote, Content):
        return before
    merged = text.merge_back(before.text, wrote.text, now.text, keep=keep)
    if merged == before.text:
        return before
    return Content(merged.encode("utf-8", "surrogateescape"), before.mode, before.uid, before.gid)


def _shown(entry: Entry) -> dict[str, object]:
    if isinstance(entry, Link):
        return {"link": entry.target}
    if isinstance(entry, Content):
        data = b64encode(entry.data).decode()
        return {"data": data, "mode": entry.mode, "uid": entry.uid, "gid": entry.gid}
    return {}


def _read_entry(shown: dict[str, Any]) -> Entry:
    if "link" in shown:
        return Link(str(shown["link"]))
    if "data" in shown:
        data = b64decode(shown["data"], validate=True)
        return Content(data, int(shown["mode"]), int(shown["uid"]), int(shown["gid"]))
    return Gone()


def _read_record(path: Path) -> Record:
    try:
        shown = json.loads(path.read_bytes())
        before = _read_entry(shown["before"])
        wrote = tuple(_read_entry(entry) for entry in shown["wrote"])
        folders = tuple(str(folder) for folder in shown["folders"])
        return Record(int(shown["number"]), str(shown["path"]), before, wrote, folders)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is damaged: {error!r}", hint="put that file back by hand, and remove this one"
        ) from error
