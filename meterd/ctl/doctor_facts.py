"""What `meterctl doctor` goes by: facts of a device, each seen, not to be seen, or not there.

A fact that does not apply here (a Raspberry Pi's firmware on another machine, a broker where there
are no neighbours) is None. One that applies and could not be looked at is `Unseen`, with the
reason, and is never taken for good.

>>> Facts(now_s=1_800_000_000, throttled=Unseen("needs root")).throttled
Unseen(reason='needs root')
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias


class Unseen(NamedTuple):
    """A fact that could not be looked at; `reason` is a clause."""

    reason: str


NEEDS_ROOT = Unseen("needs root")


class Unit(NamedTuple):
    """A systemd unit, as `systemctl show` has it.

    Attributes:
        name: With its suffix.
        active: `active`, `failed`, `inactive` …
        enabled: `enabled`, `disabled`, `static`, `masked`; empty where systemd has no such file.
        restarts: How often systemd has started it anew since it was loaded.
        needed: Whether this device has to have it.
    """

    name: str
    active: str
    enabled: str
    restarts: int
    needed: bool = True


class Port(NamedTuple):
    """The board's port.

    Attributes:
        path: As the settings name it.
        there: Whether there is a character device.
        others: Ports that there are.
        usable: Whether this user may read and write it.
        mode: Permission bits, owner and group, as people write them.
        holders: Programs that have it open, as `getty (812)`, the meter itself not among them.
        holders_whole: Whether all processes could be looked at.
        console: Words of the kernel's command line that put a console on it.
        gettys: Active units that wait for a login on it.
    """

    path: str
    there: bool
    others: tuple[str, ...] = ()
    usable: bool = True
    mode: str = ""
    holders: tuple[str, ...] = ()
    holders_whole: bool = True
    console: tuple[str, ...] = ()
    gettys: tuple[str, ...] = ()


class Heard(NamedTuple):
    """What came from the board while nobody metered and `doctor` listened.

    Attributes:
        data: The bytes.
        for_s: How long it listened, seconds.
        fields: Lengths of the lines that `board.layout` allows.
        readings: Lines that were readings.
    """

    data: bytes
    for_s: float
    fields: tuple[int, ...]
    readings: int


class Clock(NamedTuple):
    """What time it is, and what that is worth.

    Attributes:
        wall_s: Unix seconds.
        status: `S`, `I` or `R`, as blocks have it.
        trusted: Whether the settings say to believe it whatever the kernel says.
        rtc: Whether there is a clock chip.
        build_s: Date of this software: no true clock says less.
    """

    wall_s: int
    status: str
    trusted: bool
    rtc: bool
    build_s: int


class Card(NamedTuple):
    """Where the account is stored.

    Attributes:
        free_bytes: For others than root.
        total_bytes: Of the filesystem.
        inodes_free: How many more files it takes; -1 where it does not count them.
        kind: Of the filesystem, `ext4`.
        options: It is mounted with.
        errors: That the filesystem has noted since it was made; -1 where it does not say.
        bytes_a_day: That samples take by the settings.
        reserve_bytes: Kept free of samples.
        sync_ms: How long a small write and its fsync took; Unseen where this user may not write.
        open_files: Segments older than two days that are not append-only; None where the
            filesystem has no such flag.
    """

    free_bytes: int
    total_bytes: int
    inodes_free: int
    kind: str
    options: tuple[str, ...]
    errors: int
    bytes_a_day: int
    reserve_bytes: int
    sync_ms: int | Unseen
    open_files: int | None = 0


class Verdict(NamedTuple):
    """What a look at something came to.

    Attributes:
        good: Whether it is as it has to be.
        told: What was found, a clause.
        hint: What to do where it is not.
    """

    good: bool
    told: str
    hint: str = ""


class Secret(NamedTuple):
    """A file with a secret in it.

    Attributes:
        name: What it is called: `sealing key`.
        path: Where it is.
        there: Whether there is such a file.
        mode: Permission bits.
        needed: Whether this device has to have it.
        make: What makes it.
        encrypted: Whether it lies there encrypted, so that others may read it.
        credential: Whether systemd keeps it there for one unit. A list of access lets that unit's
            user in, and the group's bits of the mode are that list's mask.
    """

    name: str
    path: str
    there: bool
    mode: int
    needed: bool
    make: str
    encrypted: bool = False
    credential: bool = False


class Vault(NamedTuple):
    """The device's vault.

    Attributes:
        opens: Whether this device's secret opens it, and why not.
        board_bytes: Length of what the board's own memory gave; None where no board was asked.
        model: Whether the device is a Raspberry Pi, which could be asked.
    """

    opens: Verdict | Unseen
    board_bytes: int | None
    model: bool


class Broker(NamedTuple):
    """A broker of the settings.

    Attributes:
        url: Without a password.
        reached: Whether the peer process is connected, or its port answers.
        by: Who says so: `the peer process`, `a connection of doctor's own`.
        reason: Why it is not.
    """

    url: str
    reached: bool
    by: str
    reason: str = ""


class Technician(NamedTuple):
    """What lets technicians in.

    Attributes:
        ca: Whether the CA's public key is there.
        principals: Whether the list of principals is there.
        revoked_s: When the revocation list was made, Unix seconds; None where there is none.
    """

    ca: bool
    principals: bool
    revoked_s: int | None


class Happened(NamedTuple):
    """Events since the last visit.

    Attributes:
        since_s: Unix seconds; None where no visit is on record.
        kinds: How many of each kind.
    """

    since_s: int | None
    kinds: dict[str, int]


class Memory(NamedTuple):
    """The machine's memory.

    Attributes:
        total_bytes: All of it.
        available_bytes: What could be had now.
        bounded: Whether the kernel holds units to their MemoryMax=; None where it does not say.
    """

    total_bytes: int
    available_bytes: int
    bounded: bool | None = True


class Locked(NamedTuple):
    """What `meterctl lockdown check` comes to.

    Attributes:
        applied: Whether a lockdown was ever applied here.
        items: How many there are.
        wrong: What of them does not hold.
    """

    applied: bool
    items: int
    wrong: tuple[str, ...]


Status: TypeAlias = dict[str, Any]  # as the control socket tells it


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that was looked at. See the module for None and `Unseen`.

    Attributes:
        now_s: Unix seconds.
        daemon: The meter's own word; `Verdict` where it does not answer.
        units: Of systemd; None where it is not this machine's.
        settings: Whether they are without a mistake.
        port: The board's.
        heard: What the board says, where nobody meters.
        model: What the board of the computer calls itself; empty where it does not.
        config_txt: The firmware's settings.
        reset_gpio: Pin on the clamp board's reset line; None where none is wired.
        throttled: Bits of the firmware: see `doctor_machine_rules`.
        low_voltage: Whether the kernel's own alarm of the supply stands.
        celsius: Of the processor, degrees.
        clock: What time it is.
        card: Where the account is.
        wear: What the card says of itself: (tenths of its life used, pre-end-of-life word).
        account: Whether it verifies since its last checkpoint.
        secrets: Files that hold a secret.
        vault: The device's.
        software: Whether it is as it was installed.
        running: Software ids of the program and of the daemon, hex, where both are known.
        locked: The lockdown.
        brokers: Of the settings.
        certificate_s: When the peer's TLS certificate ends, Unix seconds.
        technician: What lets technicians in.
        pins: Whether the pins of the settings can be used.
        bits: Of the userland, 32 or 64.
        kernel: Its release.
        memory: The machine's.
        journal: Whether the meter's own journal is there.
        watchdog: Whether a hardware watchdog is there and served: (device there, seconds).
        happened: Events since the last visit.
    """

    now_s: int
    daemon: Status | Verdict | Unseen | None = None
    units: tuple[Unit, ...] | Unseen | None = None
    settings: Verdict | Unseen | None = None
    port: Port | Unseen | None = None
    heard: Heard | Unseen | None = None
    model: str = ""
    config_txt: str | Unseen | None = None
    reset_gpio: int | None = None
    throttled: int | Unseen | None = None
    low_voltage: bool | None = None
    celsius: int | None = None
    clock: Clock | Unseen | None = None
    card: Card | Unseen | None = None
    wear: tuple[int, int] | None = None
    account: Verdict | Unseen | None = None
    secrets: tuple[Secret, ...] | Unseen | None = None
    vault: Vault | Unseen | None = None
    software: Verdict | Unseen | None = None
    running: tuple[str, str] | None = None
    locked: Locked | Unseen | None = None
    brokers: tuple[Broker, ...] | Unseen | None = None
    certificate_s: int | Unseen | None = None
    technician: Technician | Unseen | None = None
    pins: Verdict | Unseen | None = None
    bits: int = 64
    kernel: str = ""
    memory: Memory | Unseen | None = None
    journal: Verdict | Unseen | None = None
    watchdog: tuple[bool, int] | Unseen | None = None
    happened: Happened | Unseen | None = None
