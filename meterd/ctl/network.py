"""`meterctl network`: found a network of several, enrol in it, join it, look at it.

Keys are made on the device that uses them and stay there. What travels is public: an enrolment file
from each device to whoever founds the network, and the genesis back. That both came as they were
sent is for people to see, who read a few groups of hex digits to each other.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from meterd.config import load
from meterd.config_rules import TABLES, WrongError
from meterd.ctl.network_show import show, show_hash, told
from meterd.ctl.options import add_action, add_json, add_state
from meterd.ctl.owner import as_owner
from meterd.ctl.show import count
from meterd.device.archive import read_file
from meterd.device.files import write_new
from meterd.device.keys import SEED_BYTES
from meterd.device.secret import find_device_key
from meterd.enrolment import Enrolment, enrolment_text, key_words
from meterd.errors import ConfigError, EncodingError, UsageError
from meterd.founding import found_network
from meterd.init import (
    check_member,
    enrol_keys,
    fuse_ma,
    join_network,
    mains_clamps,
    nominal_mv,
    read_genesis,
    refuse_account,
)
from meterd.ledger.account import ROLES, Genesis, decode_genesis
from meterd.ledger.encoding import MESSAGE_BYTES_MAX
from meterd.network_file import TEXT_BYTES_MAX, NetworkFile

if TYPE_CHECKING:
    import argparse

    from meterd.config import Settings
    from meterd.network_file import FileMistake

_FLAGS = ("name", "interval_s", "zone", "currency")
_WITHOUT_METER = ("concentrator", "distributor", "authority")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl network`."""
    parser.epilog = """\
A network of several is founded once, by all of its first members:

  each device   meterctl network enrol --state DIR --config FILE \\
                    --network elm-street -o kitchen-12.toml
  one founder   meterctl network create network.toml \\
                    --enrolment kitchen-12.toml --enrolment … -o genesis.cbor
  each device   meterctl network join --state DIR --config FILE \\
                    --genesis genesis.cbor

No key leaves its device; of all that travels, nothing is secret.

examples:
  meterctl network show --state /var/lib/meterd
  meterctl network create --help
"""
    actions = parser.add_subparsers(dest="network_command", required=True, metavar="ACTION")
    _add_enrol(actions)
    _add_create(actions)
    _add_show(actions)
    _add_join(actions)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    status: int = _ACTIONS[options.network_command](options)
    return status


# --- enrol ------------------------------------------------------------------------------------


def _add_enrol(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "make this device's keys, and the file that asks to be listed with them"
    parser = add_action(actions, "enrol", summary)
    parser.epilog = """\
Run it on the device. Keys that are in DIR are used again, never replaced, so
that the same command makes the same file. A meter that has an account of its
own starts a new chain, in a new folder, with new keys.

examples:
  meterctl network enrol --config /etc/meterd/meterd.toml \\
      --network elm-street -o kitchen-12.toml
  meterctl network enrol --state ./dso --name elm-power --role distributor \\
      --network elm-street -o elm-power.toml
"""
    add_state(parser)
    parser.add_argument("--network", required=True, metavar="NAME", help="what it will be called")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--config", type=Path, metavar="FILE", help="settings of the meter: name, fuse, clamps"
    )
    who.add_argument("--name", metavar="NAME", help="of a node that meters nothing")
    parser.add_argument(
        "--role",
        choices=ROLES,
        default="meter",
        metavar="ROLE",
        help=f"{', '.join(ROLES)} (default: meter)",
    )
    parser.add_argument(
        "--no-votes", action="store_true", help="it seals, and attests nobody else's blocks"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="where to (default: standard output)"
    )
    add_json(parser)


def _enrol(options: argparse.Namespace) -> int:
    network = _by_rule("name", options.network, "--network")
    rated = (0, 0, 0)
    if options.config is None:
        if options.role not in _WITHOUT_METER:
            raise UsageError("a meter's name is in its settings", hint="--config FILE, not --name")
        name = _by_rule("name", options.name, "--name")
    else:
        if options.role not in ("meter", "concentrator"):
            raise UsageError(
                f"a node with the role {options.role} meters nothing",
                hint="--name NAME instead of --config",
            )
        settings = settings_of(options.config)
        name = settings.meter.name
        rated = (fuse_ma(settings), nominal_mv(settings), mains_clamps(settings))
    device = find_device_key()
    with as_owner(options.state):
        sealing, voting = enrol_keys(options.state, lambda: os.urandom(SEED_BYTES), device)
    enrolment = Enrolment(
        network,
        name,
        options.role,
        bytes(sealing.verify_key),
        bytes(voting.verify_key),
        int(not options.no_votes),
        *rated,
    )
    text = enrolment_text(enrolment, sealing, voting)
    if options.out is not None:
        _keep(options.out, text)
    if options.json:
        reply = {
            "network": network,
            "name": name,
            "role": enrolment.role,
            "votes": bool(enrolment.votes),
            "sealing_key": enrolment.sealing_key.hex(),
            "voting_key": enrolment.voting_key.hex(),
            "file": None if options.out is None else str(options.out),
            "enrolment": text,
        }
        print(json.dumps(reply))
        return 0
    if options.out is None:
        print(text, end="")
        return 0
    print(f"sealing key  {key_words(enrolment.sealing_key)}")
    print(f"voting key   {key_words(enrolment.voting_key)}")
    print(f"wrote {options.out}\n\nNext:")
    print(f"  carry {options.out.name} to whoever founds {network}; nothing in it is secret")
    print("  compare the two key ids above by voice with those that `network create` shows")
    return 0


def _keep(path: Path, text: str) -> None:
    """Write an enrolment file; the same one may be there already."""
    try:
        write_new(path, text.encode())
    except FileExistsError as error:
        if path.is_file() and path.read_bytes() == text.encode():
            return
        raise ConfigError(
            f"{path} is there already, and says something else",
            hint="name another file, or move that one away",
        ) from error


# --- create -----------------------------------------------------------------------------------


def _add_create(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "found a network: one genesis of network.toml and the enrolment files"
    parser = add_action(actions, "create", summary)
    parser.epilog = """\
A genesis never changes, and its hash is in every signature of the network. All
mistakes are named at once, by file and line; then it shows what it will found,
and asks. Every node has to prove that it holds its keys, by what it wrote.

exit status: 0 founded, 64 not confirmed, 78 mistakes

examples:
  meterctl network create network.toml --enrolment kitchen-12.toml \\
      --enrolment elm-power.toml -o genesis.cbor
  meterctl network create --enrolment a.toml --enrolment b.toml \\
      --name elm-street --interval-s 1800 --zone Europe/Paris --currency EUR \\
      -o genesis.cbor --yes
"""
    parser.add_argument(
        "plan", nargs="?", type=Path, metavar="network.toml", help="the network, and its nodes"
    )
    parser.add_argument(
        "--enrolment",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="what `network enrol` wrote on a device; may be repeated",
    )
    parser.add_argument("--name", metavar="NAME", help="of the network: a-z, 0-9 and -")
    parser.add_argument("--interval-s", metavar="N", help="length of an interval, seconds")
    parser.add_argument("--zone", metavar="ZONE", help="time zone, such as Europe/Paris")
    parser.add_argument("--currency", metavar="CODE", help="such as EUR")
    parser.add_argument(
        "-o", "--out", required=True, type=Path, metavar="FILE", help="where the genesis goes"
    )
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    add_json(parser)


def _create(options: argparse.Namespace) -> int:
    _refuse_to_ask(options)
    given = {
        key: _by_rule(key, getattr(options, key), f"--{key.replace('_', '-')}")
        for key in _FLAGS
        if getattr(options, key) is not None
    }
    path: Path = options.out
    if os.path.lexists(path):
        raise ConfigError(
            f"{path} is there already: a genesis is never written over",
            hint="name another file; a network that was founded anew is another network",
        )
    plan = _network_file(options.plan) if options.plan else None
    enrolments = [_network_file(file) for file in options.enrolment]
    genesis, mistakes = found_network(plan, enrolments, given)
    if genesis is None:
        _refuse(mistakes, as_json=options.json)
    for mistake in mistakes:
        sys.stderr.write(f"meterctl: warning: {mistake}\n")
    with redirect_stdout(sys.stderr):
        show(genesis)
    if not options.yes:
        _confirm("Found it? [y/N]: ")
    write_new(path, genesis.encode())
    if options.json:
        warnings = [str(mistake) for mistake in mistakes]
        print(json.dumps({**told(genesis), "file": str(path), "warnings": warnings}))
        return 0
    print(f"wrote {path}\n\nNext:")
    print(f"  carry {path.name} to every device; nothing in it is secret")
    print(f"  meterctl network join --state DIR --config FILE --genesis {path.name}    (on each)")
    print("  compare the genesis hash by voice: every device shows it, and must show this one")
    return 0


def _refuse(mistakes: list[FileMistake], *, as_json: bool) -> NoReturn:
    """Tell all mistakes, and end.

    Raises:
        ConfigError: Always.
    """
    if as_json:
        entries = [{"file": file, **mistake._asdict()} for file, mistake in mistakes]
        print(json.dumps({"mistakes": entries}))
    else:
        for file, mistake in mistakes:
            warns = "warning: " if mistake.warning else ""
            sys.stderr.write(f"{warns}{f'{file}: ' if file else ''}{mistake}\n")
            if mistake.hint:
                sys.stderr.write(f"    {mistake.hint}\n")
    wrong = sum(not mistake.warning for _, mistake in mistakes)
    raise ConfigError(f"{count(wrong, 'mistake')}: no network was founded")


def _network_file(path: Path) -> NetworkFile:
    """Return the file, read.

    Raises:
        ConfigError: It is no text.
    """
    with path.open("rb") as file:
        data = file.read(TEXT_BYTES_MAX + 1)
    try:
        return NetworkFile(str(path), data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not UTF-8 text: line {line} has the byte {data[error.start]:#04x}",
            hint="is it a network's file? save it as UTF-8",
        ) from error


# --- show -------------------------------------------------------------------------------------


def _add_show(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "the network as it was founded: nodes, meters, quorum, hash"
    parser = add_action(actions, "show", summary)
    parser.epilog = """\
Members compare the hash by voice, in groups of four: whose differs is in
another network. What orders have changed since is not in a genesis.

examples:
  meterctl network show --state /var/lib/meterd
  meterctl network show --genesis genesis.cbor --json
"""
    add_state(parser)
    parser.add_argument(
        "--genesis", type=Path, metavar="FILE", help="this one, and not the account's"
    )
    add_json(parser)


def _show(options: argparse.Namespace) -> int:
    genesis = _genesis(options.genesis) if options.genesis else read_genesis(options.state)
    if options.json:
        print(json.dumps(told(genesis)))
    else:
        show(genesis)
    return 0


# --- join -------------------------------------------------------------------------------------


def _add_join(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "make this device's account in the network that lists it"
    parser = add_action(actions, "join", summary)
    parser.epilog = """\
Run it on the device, with the folder that `network enrol` put the keys into,
and without --config where the node meters nothing. It checks that the genesis
names this device, its keys and its settings; that everybody has the same hash
is for people to check. A device that an order has enrolled since needs the
orders too: the file `orders` of another meter's account. They prove themselves.

examples:
  meterctl network join --config /etc/meterd/meterd.toml --genesis genesis.cbor
  meterctl network join --config meterd.toml --genesis genesis.cbor \\
      --orders orders
  meterctl network join --state ./dso --genesis genesis.cbor --yes
"""
    add_state(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of the meter")
    parser.add_argument(
        "--genesis", required=True, type=Path, metavar="FILE", help="from whoever founded it"
    )
    parser.add_argument(
        "--orders", type=Path, metavar="FILE", help="orders since, of another meter's account"
    )
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    add_json(parser)


def _join(options: argparse.Namespace) -> int:
    _refuse_to_ask(options)
    state: Path = options.state
    genesis = _genesis(options.genesis)
    settings = settings_of(options.config) if options.config else None
    orders = read_file(options.orders) if options.orders else b""
    refuse_account(state)
    device = find_device_key()
    node = check_member(state, genesis, settings, orders, device)
    if not options.yes:
        with redirect_stdout(sys.stderr):
            show(genesis)
        _confirm(f"Do others have this hash, and is {node.name} to join? [y/N]: ")
    with as_owner(state):
        join_network(state, genesis, settings, orders, device)
    if options.json:
        reply = {"network": genesis.name, "genesis_hash": genesis.hash.hex(), "name": node.name}
        print(json.dumps({**reply, "role": node.role, "state": str(state)}))
        return 0
    print(f"{node.name} is in {genesis.name}, with its account in {state}")
    show_hash(genesis)
    print("\nNext:\n  compare the hash by voice with the other members'")
    if options.config:
        print(f"  meterd run --with-peer --config {options.config} --state {state}")
    return 0


# --- all of them ------------------------------------------------------------------------------

_ACTIONS = {"enrol": _enrol, "create": _create, "show": _show, "join": _join}


def _by_rule(key: str, text: str, flag: str) -> Any:  # noqa: ANN401 - as the rule has it
    """Return a flag's value by the settings' own rule.

    Raises:
        UsageError: It breaks the rule.
    """
    value: object = text
    if key == "interval_s" and text.isascii() and text.isdecimal() and len(text) < 10:  # noqa: PLR2004
        value = int(text)
    try:
        return TABLES["meter"][key](value)
    except WrongError as error:
        problem, hint = error.args
        raise UsageError(f"{flag}: {problem}", hint=hint) from error


def settings_of(path: Path) -> Settings:
    """Return the settings of a device that is to be in a network of several.

    Raises:
        ConfigError: There are none, or they have mistakes.
        DeniedError: This user may not read them.
    """
    if not os.path.lexists(path):
        raise ConfigError(
            f"there are no settings {path}: the meter's name, fuse and clamps are in them",
            hint=f"`meterctl init --settings-alone --config {path}` makes them;"
            " without that, init makes an account of its own",
        )
    return load(path)


def _genesis(path: Path) -> Genesis:
    """Return the genesis in a file.

    Raises:
        ConfigError: It is none.
    """
    with path.open("rb") as file:
        data = file.read(MESSAGE_BYTES_MAX + 1)
    try:
        return decode_genesis(data)
    except EncodingError as error:
        raise ConfigError(
            f"{path} is no genesis: {error}",
            hint="it is what `meterctl network create` wrote, or genesis.cbor of any member",
        ) from error


def _refuse_to_ask(options: argparse.Namespace) -> None:
    if not options.yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise UsageError(
            "there is no terminal to ask at", hint="add --yes once you know what it will do"
        )


def _confirm(question: str) -> None:
    sys.stderr.write(f"\n{question}")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("not confirmed: nothing was made")
