"""Looks at the meter for `meterctl doctor`: its daemon, account, keys, software, neighbours.

A shell without rules, as `doctor_machine`. Nothing is changed.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import select
import socket
import stat
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from meterd.config import check
from meterd.ctl.account import StoredAccount
from meterd.ctl.doctor_card import card_of, wear_of
from meterd.ctl.doctor_dates import certificate_ends_s, revoked_made_s
from meterd.ctl.doctor_facts import (
    NEEDS_ROOT,
    Broker,
    Clock,
    Facts,
    Happened,
    Heard,
    Locked,
    Port,
    Secret,
    Status,
    Technician,
    Unit,
    Unseen,
    Vault,
    Verdict,
)
from meterd.ctl.node import read_shown
from meterd.ctl.owner import as_owner
from meterd.ctl.show import count
from meterd.device.clock import BUILD_S, SystemClock, rtc_set_clock
from meterd.device.control_client import ControlClient
from meterd.device.lockdown import left_out, plan
from meterd.device.lockdown_files import KEPT, DeviceTree
from meterd.device.lockdown_live import facts_of, share_folder
from meterd.device.port import READ_BYTES_MAX, open_port
from meterd.device.recovery import recover
from meterd.device.secret import BOARD_FILE, DEVICE, STORE, find_device_key
from meterd.device.vault import VAULT, StoredVault
from meterd.errors import BusyError, DeniedError, EncodingError, MeterdError
from meterd.metering.board import BoardDecoder
from meterd.software import check_installed, software_id

if TYPE_CHECKING:
    from meterd.config import Settings
    from meterd.ctl.doctor_machine import Machine

DAEMON_S_MAX = 5.0  # it answers within milliseconds; doctor is to end though it hangs
LISTEN_S_MAX = 15.0
BROKER_S_MAX = 3.0
VISIT_S_MIN = 12 * 3600  # a login younger than this is the visit that asks
VISITS = frozenset({"technician_entered"})  # kinds of events that tell of one
CREDENTIALS = "/run/credentials"  # where systemd hands over secrets, to one unit each
SSHD = "etc/ssh/sshd_config.d/10-meterd.conf"
SSH_FOLDER = "etc/meterd/ssh"


class Where:
    """Where things are on this device.

    Attributes:
        state: Folder of the account.
        config: The settings.
        socket: Of the daemon.
        line: Folder of `peer.json`.
        machine: The computer.
        store: Where credentials lie.
        quick: Whether what takes seconds is left out.
        since_s: Events from here on are told; None for the last visit.
    """

    def __init__(
        self,
        *,
        state: Path,
        config: Path,
        control: Path,
        line: Path,
        machine: Machine,
        store: Path = STORE,
        quick: bool = False,
        since_s: int | None = None,
    ) -> None:
        """Take the places as they are."""
        self.state, self.config, self.socket, self.line = state, config, control, line
        self.machine, self.store = machine, store
        self.quick, self.since_s = quick, since_s


def collect(where: Where) -> Facts:
    """Return all facts of this device that this user can see."""
    machine, now_s = where.machine, int(time.time())
    settings, verdict = _settings(where.config)
    daemon = _daemon(where.socket)
    port = machine.port(settings.board.port) if settings else None
    account = _open_account(where.state)
    peers = settings is not None and bool(settings.network.brokers)
    units = machine.units(peer=peers)
    heard = None if _starts(units) else _heard(where, settings, daemon, port)
    return Facts(
        now_s=now_s,
        daemon=daemon,
        units=units,
        settings=verdict,
        port=port,
        heard=heard,
        model=machine.model,
        config_txt=machine.config_txt(),
        reset_gpio=settings.board.reset_gpio if settings else None,
        throttled=machine.throttled(),
        low_voltage=machine.low_voltage(),
        celsius=machine.celsius(),
        clock=_clock(settings, now_s),
        card=card_of(where.state, machine, settings),
        wear=wear_of(where.state, machine),
        account=account if isinstance(account, Unseen | Verdict) else _verified(where, account),
        secrets=_secrets(where, settings),
        vault=_vault(where),
        software=_software(),
        running=(software_id().hex(), str(daemon["software"]))
        if isinstance(daemon, dict)
        else None,
        locked=None if where.quick else _locked(machine),
        brokers=_brokers(where, settings) if settings and peers else None,
        certificate_s=_certificate(settings) if settings and peers else None,
        technician=_technician(machine.root),
        pins=_pins(machine, settings),
        bits=machine.bits(),
        kernel=platform.release(),
        memory=machine.memory(),
        journal=machine.journal(),
        watchdog=machine.watchdog(),
        happened=_happened(where, account, now_s)
        if isinstance(account, StoredAccount)
        else Unseen("the account cannot be read"),
    )


def _daemon(control: Path) -> Status | Verdict | Unseen:
    try:
        return ControlClient(control, timeout_s=DAEMON_S_MAX).call("Status")
    except DeniedError as error:
        return Unseen(str(error))
    except MeterdError as error:
        return Verdict(good=False, told=str(error), hint=error.hint)


def _settings(path: Path) -> tuple[Settings | None, Verdict | Unseen]:
    try:
        text = path.read_bytes().decode()
    except PermissionError:
        return None, NEEDS_ROOT
    except (OSError, UnicodeDecodeError) as error:
        hint = "name the settings with --config, or write them with `meterctl init`"
        return None, Verdict(good=False, told=f"{path} cannot be read: {error}", hint=hint)
    settings, mistakes = check(text, source=path.name)
    wrong = [mistake for mistake in mistakes if not mistake.warning]
    hint = f"see `meterctl config check {path}`"
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return settings, Verdict(good=False, told=f"{wrong[0]}{more}", hint=hint)
    warnings = f", {count(len(mistakes), 'warning')}" if mistakes else ""
    return settings, Verdict(good=True, told=f"{path}: no mistake{warnings}")


def _starts(units: tuple[Unit, ...] | Unseen | None) -> bool:
    """Return whether systemd starts the meter just now: it must find the port free."""
    return isinstance(units, tuple) and any(
        isinstance(unit, Unit)
        and unit.name == "meterd.service"
        and unit.active in {"active", "activating", "reloading"}
        for unit in units
    )


def _heard(
    where: Where, settings: Settings | None, daemon: Status | Verdict | Unseen, port: Port | None
) -> Heard | Unseen | None:
    """Listen to the board; only where nobody meters, and nobody else has the port."""
    if settings is None or port is None or not isinstance(daemon, Verdict) or where.quick:
        return None
    if not port.there or not port.usable or port.holders:
        return None
    try:
        line = open_port(port.path)
    except BusyError:
        return Unseen("another program holds the port")
    except MeterdError as error:
        return Unseen(str(error))
    decoder = BoardDecoder(settings.rules)
    data, readings, began_s = b"", 0, time.monotonic()
    ends_s = began_s + min(LISTEN_S_MAX, 3 * settings.board.polling_ms / 1000 + 1)
    try:
        while readings < 2 and (left_s := ends_s - time.monotonic()) > 0:  # noqa: PLR2004 - a whole line between them
            if not select.select([line.fileno()], [], [], left_s)[0]:
                break
            more = os.read(line.fileno(), READ_BYTES_MAX)
            if not more:
                break
            data += more
            readings += len(decoder.receive(more, time.monotonic_ns() // 1_000_000))
    except OSError as error:
        return Unseen(f"the port was lost: {error.strerror}")
    finally:
        line.close()
    fields = tuple(sorted({len(alternative) for alternative in settings.rules.fields}))
    return Heard(data, time.monotonic() - began_s, fields, readings)


def _clock(settings: Settings | None, now_s: int) -> Clock | Unseen:
    try:
        status = SystemClock("kernel").stamp().status
        rtc = rtc_set_clock()
    except (MeterdError, OSError) as error:
        return Unseen(str(error))
    trusted = settings is not None and settings.clock.trust == "always"
    return Clock(now_s, status, trusted, rtc, BUILD_S)


# --- the account --------------------------------------------------------------------------------


def _open_account(state: Path) -> StoredAccount | Verdict | Unseen:
    try:
        account = StoredAccount(state)
    except DeniedError:
        return NEEDS_ROOT
    except PermissionError:
        return NEEDS_ROOT
    except (MeterdError, OSError) as error:
        hint = getattr(error, "hint", "") or "name its folder with --state"
        return Verdict(good=False, told=str(error), hint=hint)
    return account


def _verified(where: Where, account: StoredAccount) -> Verdict | Unseen:
    """Verify what has come since the last checkpoint, as the daemon does at its start."""
    began_s = time.monotonic()
    try:
        found = recover(where.state, account.chain)
    except (MeterdError, OSError) as error:
        if isinstance(error, PermissionError | DeniedError):
            return NEEDS_ROOT
        hint = f"`meterctl verify {where.state}`, and keep a copy before anything else"
        return Verdict(good=False, told=str(error), hint=hint)
    took_s = time.monotonic() - began_s
    head = found.found.chain.head
    since = found.checkpoint.start.chain.head.height
    begin = f"block {since}" if since else "its beginning"
    if found.checkpoint_lost:
        begin = f"its beginning ({found.checkpoint_lost})"
    return Verdict(
        good=True, told=f"verifies from {begin} to block {head.height}, in {took_s:.1f} s"
    )


def _happened(where: Where, account: StoredAccount, now_s: int) -> Happened | Unseen:
    try:
        events = account.events
    except PermissionError:
        return NEEDS_ROOT
    except (MeterdError, OSError) as error:
        return Unseen(str(error))
    since_s = where.since_s
    if since_s is None:
        visits = [
            event.wall_ms // 1000
            for event in events
            if event.kind in VISITS and event.wall_ms // 1000 < now_s - VISIT_S_MIN
        ]
        since_s = visits[-1] if visits else None
    kinds = Counter(
        event.kind for event in events if since_s is None or event.wall_ms // 1000 >= since_s
    )
    return Happened(since_s, dict(kinds))


# --- keys and software --------------------------------------------------------------------------


def _secrets(where: Where, settings: Settings | None) -> tuple[Secret, ...] | Unseen:
    peers = settings is not None and bool(settings.network.brokers)
    try:
        vaulted = _has_vault(where)
        found = [
            _secret(
                "sealing key",
                where.state / "seal.key",
                needed=not vaulted,
                make=f"meterctl init --state {where.state}",
            )
        ]
        if settings and settings.network.key:
            make = "meterctl broker-config ca request"
            path = Path(settings.network.key)
            found.append(
                _secret("TLS key", path, needed=not path.is_relative_to("/run"), make=make)
            )
        if os.geteuid() == 0:
            found.append(
                _secret(
                    "device secret",
                    where.store / DEVICE,
                    needed=vaulted,
                    make="meterctl vault init",
                )
            )
            credential = where.store / "meterd.vote"
            vote = credential if credential.exists() else where.state / "peer.key"
            enrol = "meterctl network enrol"
            found.append(_secret("voting key", vote, needed=peers, make=enrol))
    except PermissionError:
        return NEEDS_ROOT
    return tuple(found)


def _has_vault(where: Where) -> bool:
    try:
        return stat.S_ISDIR((where.state / VAULT).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _secret(name: str, path: Path, *, needed: bool, make: str) -> Secret:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return Secret(name, str(path), there=False, mode=0, needed=needed, make=make)
    return Secret(
        name,
        str(path),
        there=True,
        mode=mode,
        needed=needed,
        make=make,
        encrypted=path.parent.name == STORE.name,  # systemd-creds leaves them readable
        credential=path.is_relative_to(CREDENTIALS),
    )


def _vault(where: Where) -> Vault | Unseen | None:
    try:
        if not _has_vault(where):
            return None
    except PermissionError:
        return NEEDS_ROOT
    if os.geteuid() != 0:
        return NEEDS_ROOT
    try:
        bound: int | None = len(BOARD_FILE.read_bytes())
    except OSError:
        bound = None
    return Vault(_opens(where), bound, where.machine.is_pi)


def _opens(where: Where) -> Verdict | Unseen:
    try:
        device = find_device_key({}, store=where.store)
        if device is None:
            hint = "bring back the credential that this device was made with"
            return Verdict(good=False, told=f"there is no {where.store / DEVICE}", hint=hint)
        with as_owner(where.state), StoredVault(where.state, device) as stored:
            return Verdict(good=True, told=f"opens: {count(len(stored.vault.records), 'record')}")
    except BusyError:
        return Unseen("another program has it open")
    except (MeterdError, OSError) as error:
        return Verdict(good=False, told=str(error), hint=getattr(error, "hint", ""))


def _software() -> Verdict:
    try:
        return Verdict(good=True, told=check_installed().detail)
    except MeterdError as error:
        return Verdict(good=False, told=str(error), hint=error.hint)


def _locked(machine: Machine) -> Locked | Unseen:
    if os.geteuid() != 0:
        return NEEDS_ROOT
    tree = DeviceTree(machine.root)
    try:
        facts = facts_of(tree, share_folder())
        items = plan(tree, facts, left_out(facts))
    except (MeterdError, OSError) as error:
        return Unseen(str(error))
    wrong = tuple(item.path or item.what for item in items if not item.holds)
    return Locked(tree.where(f"{KEPT}/x").parent.is_dir(), len(items), wrong)


# --- neighbours, technicians, pins --------------------------------------------------------------


def _brokers(where: Where, settings: Settings) -> tuple[Broker, ...]:
    shown = read_shown(where.line)
    if shown is not None and not shown.stale:
        return tuple(
            Broker(_bare(each["url"]), each["connected"], "the peer process")
            for each in shown.told["brokers"]
        )
    return tuple(_try_broker(url) for url in settings.network.brokers)


def _bare(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}:{_port_of(url)}"
    except ValueError:  # the peer process says it, and may say anything
        return "a broker without a proper address"


def _port_of(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (8883 if parts.scheme == "mqtts" else 1883)


def _try_broker(url: str) -> Broker:
    by = "a connection of doctor's own"
    try:
        address = (urlsplit(url).hostname or "", _port_of(url))
        with socket.create_connection(address, timeout=BROKER_S_MAX):
            return Broker(_bare(url), reached=True, by=by)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Broker(_bare(url), reached=False, by=by, reason=reason)


def _certificate(settings: Settings) -> int | Unseen | None:
    if not settings.network.certificate:
        return None
    path = Path(settings.network.certificate)
    try:
        return certificate_ends_s(path.read_bytes())
    except PermissionError:
        return NEEDS_ROOT
    except OSError as error:
        return Unseen(f"{path}: {(error.strerror or '').lower()}")
    except EncodingError as error:
        return Unseen(f"{path}: {error}")


def _technician(root: Path) -> Technician | Unseen | None:
    if not (root / SSHD).exists():
        return None
    folder = root / SSH_FOLDER
    try:
        lines = (folder / "principals").read_text().splitlines() if folder.is_dir() else []
    except PermissionError:
        return NEEDS_ROOT
    except (OSError, UnicodeDecodeError):
        lines = []
    try:
        revoked_s: int | None = revoked_made_s(
            (folder / "revoked").read_bytes(), (folder / "revoked").stat().st_mtime
        )
    except OSError:
        revoked_s = None
    return Technician(
        ca=(folder / "technician-ca.pub").exists(),
        principals=any(line.strip() and not line.startswith("#") for line in lines),
        revoked_s=revoked_s,
    )


def _pins(machine: Machine, settings: Settings | None) -> Verdict | Unseen | None:
    if settings is None or not settings.gpio.used:
        return None
    if importlib.util.find_spec("gpiozero") is None:
        hint = "install the extra `meterd[gpio]` or python3-gpiozero"
        return Verdict(good=False, told="[gpio] names pins, and gpiozero is absent", hint=hint)
    chips = sorted((machine.root / "dev").glob("gpiochip*"))
    if not chips:
        hint = "take [gpio] out of the settings, or run it on a Pi"
        return Verdict(good=False, told="there is no /dev/gpiochip0", hint=hint)
    return Verdict(good=True, told=f"gpiozero and /dev/{chips[0].name} are there")
