"""A device as the lockdown sees it: what is at a path, what else is known, what has to be there.

Nothing is opened here: the tree of files is something to ask.

>>> item = Item("consoles", "/etc/x", Gone(), Link("/dev/null"), "mask x", "no login", "E3")
>>> item.holds, replace_found(item, Link("/dev/null")).holds
(False, True)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONSOLES = ("tty", "console", "ttyS", "ttyAMA", "ttyUSB", "ttyACM", "ttyGS", "hvc")


@dataclass(frozen=True, slots=True)
class Gone:
    """There is nothing at a path."""


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True, slots=True)
class Content:
    """A regular file."""

    data: bytes = field(repr=False)
    mode: int = 0o644
    uid: int = 0
    gid: int = 0

    @property
    def text(self) -> str:
        """Return it as text; no byte is lost on the way back."""
        return self.data.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Other:
    """A folder, a device: nothing that we put anything in the place of."""


Entry: TypeAlias = Gone | Link | Content | Other


class Tree(Protocol):
    """The files of a device, as they are."""

    def entry(self, path: str) -> Entry:
        """Return what is at an absolute path."""

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none if there is no such folder."""


class UsbDevice(NamedTuple):
    """Something on USB that the device cannot do without."""

    vendor: str
    product: str
    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a device besides its files.

    Attributes:
        share: What meterd brings, by path: `systemd/…`, `config/…`.
        programs: Which of `nft`, `sshd`, `usbguard-daemon` are installed.
        broker_ports: Of the brokers in the settings.
        anchor_port: Of the timestamp authority in the settings; 0 where none is named.
        board_port: The board's port in the settings; empty where there are none.
        own_usb: What on USB carries its system, its network, its board.
        wireless: Whether a wireless network is used, or may be, for all that is known.
        owner: User and group whom new files belong to.
    """

    share: Mapping[str, bytes]
    programs: frozenset[str] = frozenset()
    broker_ports: tuple[int, ...] = (8883,)
    anchor_port: int = 0
    board_port: str = ""
    own_usb: tuple[UsbDevice, ...] = ()
    wireless: bool = True
    owner: tuple[int, int] = (0, 0)


class Session(NamedTuple):
    """How whoever asks has come in.

    Attributes:
        tty: The terminal, without `/dev/`; empty without one.
        ssh_port: The device's own port of the SSH session; None without one.
    """

    tty: str = ""
    ssh_port: int | None = None

    @property
    def at_console(self) -> bool:
        """Whether it is at a terminal that the lockdown closes."""
        return self.tty == "console" or any(
            self.tty.startswith(name) and self.tty[len(name) :].isdecimal() for name in _CONSOLES
        )


class Item(NamedTuple):
    """One path, as it is and as it has to be.

    Attributes:
        area: Of `AREAS`.
        path: Absolute, as the device itself sees it.
        found: What is there.
        wanted: What has to be there.
        what: What that is, in few words.
        reason: Why.
        row: Of REQUIREMENTS.md.
    """

    area: str
    path: str
    found: Entry
    wanted: Entry
    what: str
    reason: str
    row: str

    @property
    def holds(self) -> bool:
        """Whether it is as it has to be."""
        return self.found == self.wanted


def replace_found(item: Item, found: Entry) -> Item:
    """Return the item as it is once something else is there."""
    return item._replace(found=found)
