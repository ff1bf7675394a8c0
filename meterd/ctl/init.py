"""`meterctl init`: a new meter, its key, its genesis and, where there are none, its settings.

Asks at a terminal; with `--yes`, or without a terminal, it goes by flags, settings and defaults.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.config import Settings, check, load
from meterd.config_fit import LAYOUT_DEFAULT
from meterd.config_rules import TABLES, WrongError
from meterd.ctl.account import StoredAccount
from meterd.ctl.key import show
from meterd.ctl.options import add_json, add_state
from meterd.ctl.owner import as_owner
from meterd.device.files import write_new
from meterd.device.keys import SEED_BYTES
from meterd.device.secret import find_device_key
from meterd.errors import ConfigError, DeniedError, MeterdError, StorageError, UsageError
from meterd.init import create_account, is_free
from meterd.ledger.account import NAME
from meterd.metering.board import LAYOUTS

if TYPE_CHECKING:
    import argparse

TEMPLATE = """\
# Settings of a meter, written by `meterctl init`. What is not here has its default.
# After a change: `meterctl config check {file}`. Name, interval, zone and currency are in the
# genesis as well, and cannot change there.

[meter]
name = {name}
interval_s = {interval_s}          # one block is sealed for each
nominal_v = {nominal_v}             # V: assumed where none is measured
fuse_a = {fuse_a}                 # A: power beyond fuse x nominal x 1.6 is no reading
zone = {zone}
currency = {currency}

[board]
port = {port}
layout = {layout}
polling_ms = {polling_ms}           # what the board's own `polling` is set to
current_unit = {current_unit}        # mA (older firmware) | A (newer)
{clamps}
[clock]
trust = "kernel"           # intervals are cut once the kernel's clock is synchronised

[log]
commit_s = 30              # seconds of samples that a power failure may take; never a block
"""

CLAMP = """
[[clamp]]                  # in the board's order
name = "{name}"
role = "mains"             # mains | circuit | unused
reversed = false           # true: the clamp sits the wrong way round
"""

CLAMPS_MAX = 3  # phases
_KEYS = {
    "name": ("meter", "what the meter is called: a-z, 0-9 and -"),
    "port": ("board", "serial port of the board"),
    "layout": ("board", f"what a line of the board holds: {', '.join(LAYOUTS)}"),
    "polling_ms": ("board", "the board's own `polling`, ms"),
    "current_unit": ("board", "in which the board sends currents: mA, A"),
    "fuse_a": ("meter", "main fuse, A"),
    "nominal_v": ("meter", "nominal voltage, V"),
    "interval_s": ("meter", "length of an interval, seconds"),
    "zone": ("meter", "time zone, such as Europe/Paris"),
    "currency": ("meter", "currency, such as EUR"),
}
_ASKED = ("name", "port", "layout", "fuse_a", "zone")  # the rest is mostly right, and can be edited
_TEXTS = {"name", "port", "layout", "current_unit", "zone", "currency"}
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_INTEGER_KEYS = {"polling_ms", "interval_s"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl init`."""
    parser.epilog = """\
Settings are written where FILE does not exist, by the flags below or by a few
questions. The sealing key is drawn on this machine and stays in DIR.

examples:
  meterctl init --state /var/lib/meterd --config /etc/meterd/meterd.toml
  meterctl init --state ./account --config meterd.toml --yes --name kitchen-12 \\
      --port /dev/ttyAMA0 --layout rpict3v1 --fuse-a 60 --zone Europe/Paris
  meterctl init --settings-alone --config /etc/meterd/meterd.toml
"""
    add_state(parser)
    parser.add_argument(
        "--config", required=True, type=Path, metavar="FILE", help="settings, made if missing"
    )
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    for key, (_, meaning) in _KEYS.items():
        flag = f"--{key.replace('_', '-')}"
        parser.add_argument(flag, metavar="X", help=f"{meaning} (new settings)")
    parser.add_argument(
        "--mains-clamps",
        metavar="N",
        choices=[str(number) for number in range(1, CLAMPS_MAX + 1)],
        help="clamps round the phases of the mains (new settings; default 1)",
    )
    parser.add_argument(
        "--network", default="", metavar="NAME", help="the network's name, for demo networks"
    )
    parser.add_argument(
        "--settings-alone",
        action="store_true",
        help="make no account: for a device that is to enrol in a network of several",
    )
    add_json(parser, "print key, meter and genesis hash as JSON")


def run(options: argparse.Namespace) -> int:
    """Make a meter; returns the exit code."""
    path, state = options.config, options.state
    asks = not options.yes and sys.stdin is not None and sys.stdin.isatty()
    if not asks and not options.yes:
        raise UsageError(
            "there is no terminal to ask at", hint="add --yes, and flags where defaults do not fit"
        )
    if options.network and not NAME.fullmatch(options.network):
        raise UsageError(f"--network: expected 1 to 32 of a-z, 0-9 and -, got {options.network!r}")
    text = ""
    if options.settings_alone:
        return _settings_alone(options, asks=asks)
    _refuse_full(state)
    if path.exists():
        _refuse_flags(options)
        settings = load(path)
    else:
        text, settings = _new_settings(options, asks=asks)
    if asks:
        _confirm(path, state, settings, new=bool(text))
    if text:
        _write(path, text)
    device = find_device_key()
    try:
        with as_owner(state):
            seed = os.urandom(SEED_BYTES)
            create_account(state, settings, seed, network=options.network, device=device)
    except MeterdError:
        if text:
            path.unlink(missing_ok=True)
        raise
    account = StoredAccount(state)
    show(account, as_json=options.json)
    if not options.json:
        print("\nWrite key and genesis down elsewhere: only against them can others judge it.")
        print(f"Next: meterd run --config {path} --state {state}")
    return 0


def _settings_alone(options: argparse.Namespace, *, asks: bool) -> int:
    """Write settings and nothing else; returns the exit code."""
    path: Path = options.config
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists: settings are not written over", hint="edit the file")
    if options.network:
        raise UsageError("--network does not go with --settings-alone", hint="leave it out")
    text, settings = _new_settings(options, asks=asks)
    _write(path, text)
    if options.json:
        print(json.dumps({"meter": settings.meter.name, "settings": str(path)}))
        return 0
    print(f"wrote {path}: settings of {settings.meter.name}, and no account")
    print(f"Next: meterctl network enrol --config {path} --network NAME -o FILE")
    return 0


def _flags(options: argparse.Namespace) -> dict[str, str]:
    given = {key: getattr(options, key) for key in (*_KEYS, "mains_clamps")}
    return {key: value for key, value in given.items() if value is not None}


def _refuse_flags(options: argparse.Namespace) -> None:
    given = [f"--{key.replace('_', '-')}" for key in _flags(options)]
    if given:
        raise UsageError(
            f"{options.config} exists, so {', '.join(given)} would not count",
            hint="edit the file, or name another with --config",
        )


def _refuse_full(state: Path) -> None:
    """Refuse what `create_account` would refuse, before anything is asked or written."""
    if not is_free(state):
        raise ConfigError(
            f"{state} is not empty: an account is never made over another",
            hint="name an empty folder, or move the old one away and keep it",
        )


def _new_settings(options: argparse.Namespace, *, asks: bool) -> tuple[str, Settings]:
    """Return settings as text and checked."""
    given = _flags(options)
    values = {
        "name": _host_name(),
        "port": "/dev/ttyAMA0",
        "layout": LAYOUT_DEFAULT,
        "polling_ms": "5000",
        "current_unit": "mA",
        "fuse_a": "60",
        "nominal_v": "230",
        "interval_s": "1800",
        "zone": _zone_here(),
        "currency": "EUR",
        "mains_clamps": "1",
    } | given
    for key in _KEYS:
        if asks and key in _ASKED and key not in given:
            values[key] = _ask(key, values[key])
        else:
            try:
                _checked(key, values[key])
            except WrongError as error:
                problem, hint = error.args
                flag = f"--{key.replace('_', '-')}"
                raise UsageError(f"{flag}: {problem}", hint=hint) from error
    text = _text(options.config, values)
    settings, mistakes = check(text, source=options.config.name)
    if settings is None:
        wrong = next(mistake for mistake in mistakes if not mistake.warning)
        raise UsageError(f"{wrong.key}: {wrong.problem}", hint=wrong.hint)
    return text, settings


def _text(path: Path, values: dict[str, str]) -> str:
    number = int(values["mains_clamps"])
    names = ["mains"] if number == 1 else [f"mains-{phase}" for phase in range(1, number + 1)]
    shown = {key: json.dumps(value) if key in _TEXTS else value for key, value in values.items()}
    clamps = "".join(CLAMP.format(name=name) for name in names)
    return TEMPLATE.format(file=path.name, clamps=clamps, **shown)


def _checked(key: str, text: str) -> None:
    """Check one value by the settings' own rule.

    Raises:
        WrongError: It breaks the rule.
    """
    from decimal import Decimal

    table, _ = _KEYS[key]
    value: object = text
    if key not in _TEXTS:
        if not _NUMBER.fullmatch(text) or (key in _INTEGER_KEYS and "." in text):
            raise WrongError(f"expected a number, got {text[:40]!r}")
        value = int(text) if key in _INTEGER_KEYS else Decimal(text)
    TABLES[table][key](value)


def _host_name() -> str:
    """Return the machine's name as a meter can have it."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().partition(".")[0].lower())
    return name.strip("-")[:32] or "meter"


def _zone_here() -> str:
    """Return the machine's time zone, or UTC where its name is not known."""
    try:
        _, found, name = str(Path("/etc/localtime").resolve()).partition("/zoneinfo/")
    except OSError:
        return "UTC"
    name = name.removeprefix("posix/")
    try:
        TABLES["meter"]["zone"](name)
    except WrongError:
        return "UTC"
    return name if found and name != "Etc/UTC" else "UTC"


def _ask(key: str, default: str) -> str:
    _, meaning = _KEYS[key]
    while True:
        answer = _answer(f"{meaning} [{default}]: ") or default
        try:
            _checked(key, answer)
        except WrongError as error:
            problem, hint = error.args
            _say(f"  {problem}{f'; {hint}' if hint else ''}\n")
        else:
            return answer


def _answer(question: str) -> str:
    _say(question)
    line = sys.stdin.readline()
    if not line:
        _say("\n")
        raise UsageError("the questions were not answered: nothing was made")
    return line.strip()


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _confirm(path: Path, state: Path, settings: Settings, *, new: bool) -> None:
    meter, rules = settings.meter, settings.rules
    clamps = ", ".join(f"{clamp.name} ({clamp.role})" for clamp in rules.clamps)
    _say(
        f"\nThis makes\n"
        f"  a meter    {meter.name}: intervals of {meter.interval_s} s in {meter.zone},"
        f" {meter.currency},\n"
        f"             {rules.fuse_a} A at {rules.nominal_v} V\n"
        f"  a board    {rules.layout} at {settings.board.port}, every {rules.polling_ms} ms\n"
        f"  clamps     {clamps}\n"
        f"  settings   {path}{' (new)' if new else ' (as they are)'}\n"
        f"  account    {state} (new), with a new sealing key\n"
    )
    if _answer("Make it? [y/N]: ").lower() not in ("y", "yes"):
        raise UsageError("not confirmed: nothing was made")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_new(path, text.encode())
    except PermissionError as error:
        raise DeniedError(
            f"not allowed to write {path}", hint="name another place, or use sudo"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
