"""`meterctl calibrate`: hold a clamp against a reference meter, and change parameters by command.

A change goes three ways: signed here and sent at once (`--sign-with`); prepared here, signed in the
office, applied here (`--prepare`, `sign`, `apply`); or as one line of text where no file can be
named. Before the meter is commissioned the settings' file decides: what to write there is shown.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nacl.signing import SigningKey

from meterd.ctl.calibrate_rules import (
    Comparison,
    Reference,
    bytes_of,
    changes_of,
    clamp_number,
    compare,
    file_of,
    number_of,
    request,
    request_of,
    text_of,
)
from meterd.ctl.options import add_json, add_socket, add_state, hex_bytes, positive
from meterd.ctl.output import put_out
from meterd.ctl.parameters import desk_of
from meterd.ctl.public_key import SUFFIX, draw_private, public_key
from meterd.ctl.show import note
from meterd.device.keys import read_seal
from meterd.enrolment import key_words
from meterd.errors import AbsentError, ConfigError, EncodingError, UsageError
from meterd.ledger.account import NAME
from meterd.ledger.encoding import HASH_BYTES, take_apart
from meterd.ledger.parameters import (
    COMMAND_BYTES_MAX,
    Command,
    Grant,
    decode_grant,
    sign_command,
    sign_grant,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

SECONDS_DEFAULT = 60
SECONDS_MAX = 3600
RETURN_S_MAX = 15.0  # until a meter that starts anew answers again; it takes less than one
MARGIN_S = 15  # the first reading comes a polling late, and so may the last
LOOK_S = 0.2
DAY_S = 86_400
GRANT_DAYS_MAX = 3660


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl calibrate`."""
    parser.epilog = """\
With a steady load on, and a reference meter in the same wire, --reference-w is
what that one shows; or --reference-wh what it counts in just the --seconds that
are watched. The new scale is computed exactly, and shown with the error before
and after. Without --sign-with and --prepare nothing is changed: the request is
shown as a line of text, for `calibrate sign --text`.

examples:
  meterctl calibrate --clamp mains --reference-w 1502.5
  meterctl calibrate --clamp mains --reference-w 1502.5 --sign-with jo.key \\
      --grant jo.grant
  meterctl calibrate --clamp mains --reference-wh 25.1 --seconds 60 \\
      --prepare request.json
  meterctl calibrate --set clamp.1.reversed=true --prepare request.json
  meterctl calibrate sign request.json --key owner.key -o command.json
  meterctl calibrate apply command.json
"""
    add_state(parser)
    add_socket(parser)
    parser.add_argument("--clamp", metavar="NAME", help="which clamp (default: the only one)")
    parser.add_argument("--reference-w", metavar="W", help="steady power by the reference meter")
    parser.add_argument("--reference-wh", metavar="WH", help="its energy in the time watched")
    parser.add_argument(
        "--seconds",
        type=positive,
        default=SECONDS_DEFAULT,
        metavar="N",
        help=f"how long to watch (default: {SECONDS_DEFAULT})",
    )
    parser.add_argument("--force", action="store_true", help="accept a factor past 20 %%")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another parameter, as `meterctl parameters` names it; may be repeated",
    )
    _add_signing(parser, "--sign-with")
    parser.add_argument("--prepare", metavar="FILE", help="write the request; - for stdout")
    parser.add_argument("--text", metavar="BASE64", help="apply a signed command given as text")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    add_json(parser)
    actions = parser.add_subparsers(dest="calibrate_command", metavar="ACTION")
    _add_sign(actions)
    _add_apply(actions)
    _add_key(actions)
    _add_grant(actions)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    action: Callable[[argparse.Namespace], int] = {
        "sign": _sign,
        "apply": _apply,
        "key": _key,
        "grant": _grant,
    }.get(options.calibrate_command, _apply if options.text else _calibrate)
    return action(options)


def _add_signing(parser: argparse.ArgumentParser, flag: str) -> None:
    parser.add_argument(
        flag, dest="key", type=Path, metavar="FILE", help="private key, 64 hex digits, mode 0600"
    )
    parser.add_argument(
        "--grant", type=Path, metavar="FILE", help="what grants that key; not for the owner's own"
    )


# --- to measure, and to ask for a change --------------------------------------------------------


def _calibrate(options: argparse.Namespace) -> int:
    if options.seconds > SECONDS_MAX:
        raise UsageError(f"--seconds: expected at most {SECONDS_MAX}, got {options.seconds}")
    client = desk_of(options)
    told = client.call("Show")
    settings: dict[str, str] = told["settings"]
    wanted = _wanted(options.set)
    compared = None
    if options.clamp or options.reference_w or options.reference_wh or not wanted:
        compared = _compare(options, told)
        if compared.new != compared.old:
            wanted[compared.key] = compared.new
    if compared and not wanted:
        _show(options, compared, {"changes": []}, "the scale is right as it is: nothing to change")
        return 0
    command = request(told, changes_of(settings, wanted))
    reply: dict[str, Any] = {
        "changes": [list(change) for change in command.changes],
        "sequence": command.sequence,
    }
    if not told["owner"]:
        _show(options, compared, reply, _in_the_file(command))
        return 0
    if options.prepare:
        text = file_of("request", command, command.encode())
        out = None if options.prepare == "-" else Path(options.prepare)
        put_out(text, out)
        if out:
            _show(options, compared, reply, f"request written: {out}")
        return 0
    if not options.key:
        reply["request"] = text_of(command.encode())
        _show(options, compared, reply, f"request  {reply['request']}")
        note("nothing is changed yet: the office signs that line (`calibrate sign --text`)")
        note("what it sends back is applied by `calibrate --text`")
        return 0
    _confirm(options, compared, command)
    message = _signed(command, options.key, options.grant)
    changed = _send(options, message)
    _show(options, compared, reply | changed, _said(changed))
    return 0


def _wanted(given: Sequence[str]) -> dict[str, str]:
    wanted = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(
                f"--set: expected KEY=VALUE, got {text[:40]!r}",
                hint="as in clamp.1.reversed=true; `meterctl parameters` names them",
            )
        wanted[key] = value
    return wanted


def _compare(options: argparse.Namespace, told: Mapping[str, Any]) -> Comparison:
    asks = not options.yes and sys.stdin is not None and sys.stdin.isatty()
    names: list[str] = told["clamps"]
    name = options.clamp or (names[0] if len(names) == 1 else "")
    if not name and asks:
        name = _answer(f"which clamp ({', '.join(names)}): ")
    if not name:
        raise UsageError("--clamp is missing", hint=f"there are: {', '.join(names)}")
    number = clamp_number(told["settings"], name)
    if name not in names:
        raise UsageError(f"clamp {name} is not used", hint=f"used are: {', '.join(names)}")
    if options.reference_w and options.reference_wh:
        raise UsageError("--reference-w and --reference-wh are two ways: take one")
    if not (options.reference_w or options.reference_wh or asks):
        raise UsageError("what the reference meter says is missing", hint="--reference-w W")
    _say(f"watching {name} for {options.seconds} s; keep the load steady\n")
    readings = _watch(options, names.index(name))
    if options.reference_wh:
        reference = Reference("Wh", number_of(options.reference_wh, "--reference-wh"))
    else:
        typed = options.reference_w
        if typed is None:
            average = sum(power for _, power in readings) / max(len(readings), 1) / 1000
            _say(f"{name} shows {average:.1f} W\n")
            typed = _answer("what did the reference meter show, W: ")
        reference = Reference("W", number_of(typed, "--reference-w"))
    if not reference.value:
        raise UsageError("the reference shows nothing: switch a load on")
    key = f"clamp.{number}.scale"
    return compare(key, told["settings"][key], readings, reference, force=options.force)


def _watch(options: argparse.Namespace, position: int) -> list[tuple[int, int]]:
    """Return (boot clock ms, mW) of one clamp for so many seconds of the board's time."""
    readings: list[tuple[int, int]] = []
    for reading in desk_of(options).stream_for(options.seconds + MARGIN_S, "Clamps"):
        readings.append((reading["at_ms"], reading["powers_mw"][position]))
        _show_power(readings)
        if readings[-1][0] - readings[0][0] >= options.seconds * 1000:
            break
    if sys.stderr is not None and sys.stderr.isatty():
        _say("\n")
    return readings


def _show_power(readings: list[tuple[int, int]]) -> None:
    """Show on a terminal how the readings go."""
    if sys.stderr is not None and sys.stderr.isatty():
        average = sum(power for _, power in readings) / len(readings) / 1000
        _say(f"\r{readings[-1][1] / 1000:10.1f} W, on average {average:.1f} W  ")


def _in_the_file(command: Command) -> str:
    """Say what to write into the settings of a meter that is not commissioned."""
    lines = ["not commissioned, so that the settings' file decides; write there, and start anew:"]
    for key, _, new in command.changes:
        table, *rest = key.split(".")
        where = f"[[{table}]] number {rest[0]}" if table == "clamp" else f"[{table}]"
        value = (
            new if new in ("true", "false") or new.replace(".", "", 1).isdecimal() else f'"{new}"'
        )
        lines.append(f"  {where}: {rest[-1]} = {value}")
    return "\n".join(lines)


def _show(
    options: argparse.Namespace,
    compared: Comparison | None,
    reply: Mapping[str, Any],
    said: str,
) -> None:
    if compared is not None and not compared.steady:
        note("the load was not steady: take a kettle, or an oven without its thermostat")
    if options.json:
        print(json.dumps((_as_json(compared) if compared else {}) | dict(reply)))
        return
    if compared is not None:
        print("\n".join(_lines(compared)))
    for key, old, new in reply["changes"]:
        print(f"change   {key}: {old or 'absent'} -> {new or 'absent'}")
    print(said)


def _lines(compared: Comparison) -> list[str]:
    shown = Comparison.shown
    watched = f"{compared.readings} readings, {compared.elapsed_ms / 1000:.1f} s"
    return [
        f"clamp    {float(compared.measured):.3f} {compared.unit} ({watched})",
        f"refer.   {float(compared.reference):.3f} {compared.unit}",
        f"scale    {compared.old} -> {compared.new}",
        f"error    {shown(compared.error_before)} % -> {shown(compared.error_after)} %",
    ]


def _as_json(compared: Comparison) -> dict[str, Any]:
    return {
        "unit": compared.unit,
        "measured": float(compared.measured),
        "reference": float(compared.reference),
        "readings": compared.readings,
        "elapsed_ms": compared.elapsed_ms,
        "steady": compared.steady,
        "scale": {"key": compared.key, "old": compared.old, "new": compared.new},
        "error_percent": {
            "before": float(Comparison.shown(compared.error_before)),
            "after": float(Comparison.shown(compared.error_after)),
        },
    }


def _confirm(options: argparse.Namespace, compared: Comparison | None, command: Command) -> None:
    if options.yes or sys.stdin is None or not sys.stdin.isatty():
        return
    for line in _lines(compared) if compared else []:
        _say(f"{line}\n")
    for key, old, new in command.changes:
        _say(f"change   {key}: {old or 'absent'} -> {new or 'absent'}\n")
    if _answer("sign and send it? [y/N]: ").lower() not in ("y", "yes"):
        raise UsageError("not confirmed: nothing was changed")


def _answer(question: str) -> str:
    _say(question)
    line = sys.stdin.readline()
    if not line:
        raise UsageError("the questions were not answered: nothing was changed")
    return line.strip()


def _say(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()


# --- sign, apply --------------------------------------------------------------------------------


def _add_sign(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "sign a request; needs no meter"
    parser = actions.add_parser("sign", help=summary, description=f"sign: {summary}.")
    parser.epilog = """\
Look at what it changes before you sign: it is shown.

examples:
  meterctl calibrate sign request.json --key owner.key -o command.json
  meterctl calibrate sign --text hmls… --key jo.key --grant jo.grant
"""
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the request")
    parser.add_argument("--text", metavar="BASE64", help="the request, as a line of text")
    _add_signing(parser, "--key")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: stdout)")
    parser.add_argument("--yes", action="store_true", help="ask nothing")


def _sign(options: argparse.Namespace) -> int:
    what = str(options.file or "--text")
    command = request_of(_given(options, "a request"), what)
    if options.key is None:
        raise UsageError("--key is missing", hint="the owner's, or a granted technician's")
    _say(f"for {command.meter}, command {command.sequence}:\n")
    for key, old, new in command.changes:
        _say(f"  {key}: {old or 'absent'} -> {new or 'absent'}\n")
    asks = not options.yes and sys.stdin is not None and sys.stdin.isatty()
    if asks and _answer("sign it? [y/N]: ").lower() not in ("y", "yes"):
        raise UsageError("not confirmed: nothing was signed")
    message = _signed(command, options.key, options.grant)
    text = file_of("command", command, message)
    put_out(text, options.output)
    if options.output:
        _say(f"command written: {options.output}\n")
    return 0


def _add_apply(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "hand a signed command to the meter"
    parser = actions.add_parser("apply", help=summary, description=f"apply: {summary}.")
    parser.epilog = """\
The meter checks whose it is, that it is for this meter, and that it is the
next one; it is kept in the events, and the meter starts anew under it.

exit status: 0 done, 69 no meter answers, 75 another change is being made,
  77 the meter refuses it: nothing has changed

examples:
  meterctl calibrate apply command.json
  meterctl calibrate apply --text 0oRN…
"""
    add_state(parser)
    add_socket(parser)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the signed command")
    parser.add_argument("--text", metavar="BASE64", help="the signed command, as a line of text")
    add_json(parser)


def _apply(options: argparse.Namespace) -> int:
    changed = _send(options, _given(options, "a signed command"))
    print(json.dumps(changed) if options.json else _said(changed))
    return 0


def _given(options: argparse.Namespace, what: str) -> bytes:
    """Return what was given as a file or as text."""
    file = getattr(options, "file", None)
    if (file is None) == (options.text is None):
        raise UsageError(f"expected {what}, as FILE or as --text", hint="one of both")
    if file is None:
        return bytes_of(options.text, "--text")
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return bytes_of(opened.read(16 * COMMAND_BYTES_MAX), str(file))
    except FileNotFoundError as error:
        raise AbsentError(f"there is no file {file}") from error


def _signed(command: Command, key_file: Path, grant_file: Path | None) -> bytes:
    if grant_file is not None:
        data = bytes_of(_read(grant_file), str(grant_file))
        try:
            grant = decode_grant(take_apart(data).payload)
        except EncodingError as error:
            raise UsageError(f"{grant_file} is no technician's grant: {error}") from error
        command = command._replace(grant=data)
        key = _load(key_file)
        if grant.key != bytes(key.verify_key):
            raise ConfigError(
                f"{grant_file} grants {grant.name} another key than the one in {key_file}",
                hint="take the key that was granted, or have this one granted",
            )
        return sign_command(command, key)
    return sign_command(command, _load(key_file))


def _load(path: Path) -> SigningKey:
    try:
        return read_seal(path)
    except FileNotFoundError as error:
        raise AbsentError(
            f"there is no key {path}", hint="`meterctl calibrate key -o FILE` makes one"
        ) from error


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(16 * COMMAND_BYTES_MAX)
    except FileNotFoundError as error:
        raise AbsentError(f"there is no file {path}") from error


def _send(options: argparse.Namespace, message: bytes) -> dict[str, Any]:
    """Hand a command to the daemon; return what it came to, once the meter is back."""
    client = desk_of(options)
    changed = client.call("Change", command=message.hex())
    ends_s = time.monotonic() + RETURN_S_MAX
    while time.monotonic() < ends_s:
        time.sleep(LOOK_S)
        try:
            if client.call("Show")["sequence"] >= changed["sequence"]:
                return changed
        except AbsentError:  # it starts anew
            continue
    raise AbsentError(
        f"record {changed['sequence']} is accepted, but the meter does not come back",
        hint="look what it says: `journalctl -u meterd`",
    )


def _said(changed: Mapping[str, Any]) -> str:
    return f"in force: record {changed['sequence']}, {changed['record'][:16]}, by {changed['by']}"


# --- keys, grants -------------------------------------------------------------------------------


def _add_key(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "make a key: a meter owner's, or a technician's"
    parser = actions.add_parser("key", help=summary, description=f"key: {summary}.")
    parser.epilog = """\
Keep it elsewhere than on the meter. The public key that is shown, and written
beside it as FILE.pub, is not secret; `meterctl parameters` shows its id too.

examples:
  meterctl calibrate key -o owner.key
  meterctl calibrate key --show owner.key
"""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-o", "--output", type=Path, metavar="FILE", help="make one")
    which.add_argument("--show", type=Path, metavar="FILE", help="the public one of a private key")
    add_json(parser)


def _key(options: argparse.Namespace) -> int:
    if options.show:
        key, written = _load(options.show), ""
    else:
        key, written = _made(options.output)
    public = bytes(key.verify_key)
    if options.json:
        print(json.dumps({"key": public.hex(), "id": key_words(public)}))
        return 0
    print(f"public key  {public.hex()}")
    print(f"key id      {key_words(public)}")
    if written:
        print(f"written     {written}")
    return 0


def _made(path: Path) -> tuple[SigningKey, str]:
    """Make a key, in a file and one beside it; return it, and what to do with the files."""
    key, beside = SigningKey(draw_private()), path.with_name(path.name + SUFFIX)
    if os.path.lexists(beside):
        raise UsageError(f"{beside} exists", hint="name another, or move it away")
    put_out(bytes(key).hex() + "\n", path, mode=0o600)
    put_out(bytes(key.verify_key).hex() + "\n", beside)
    return key, f"{path}, to keep; {beside}, to give"


def _add_grant(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    summary = "let a technician's key sign commands for some time"
    parser = actions.add_parser("grant", help=summary, description=f"grant: {summary}.")
    parser.epilog = """\
For every meter of the network: with the distributor's key, or with the owner's
where there is none. `meterctl key` shows the genesis hash. It cannot be taken
back before its last day, but by a new key of the distributor's.

examples:
  meterctl calibrate grant --key owner.key --genesis 6cd0… --technician 5f0c… \\
      --id jo --days 365 -o jo.grant
"""
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="who grants")
    parser.add_argument("--genesis", required=True, metavar="HEX", help="hash of the genesis")
    parser.add_argument("--technician", required=True, metavar="HEX|FILE", help="public key")
    parser.add_argument("--id", required=True, metavar="NAME", help="whose it is")
    parser.add_argument("--days", type=positive, default=365, metavar="N", help="(default: 365)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: stdout)")


def _grant(options: argparse.Namespace) -> int:
    if not NAME.fullmatch(options.id):
        raise UsageError(f"--id: expected 1 to 32 of a-z, 0-9 and -, got {options.id[:40]!r}")
    if options.days > GRANT_DAYS_MAX:
        raise UsageError(f"--days: expected at most {GRANT_DAYS_MAX}, got {options.days}")
    now_s = int(time.time())
    grant = Grant(
        hex_bytes(options.genesis, HASH_BYTES, "--genesis"),
        public_key(options.technician, "--technician"),
        options.id,
        now_s - DAY_S,  # a meter's clock may be behind
        now_s + options.days * DAY_S,
    )
    text = text_of(sign_grant(grant, _load(options.key))) + "\n"
    put_out(text, options.output)
    return 0
