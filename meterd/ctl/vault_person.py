"""`meterctl vault put | show | export | rotate | erase`: a person's records, in the running meter.

What is in the vault goes through the process that keeps it, which writes an event of each reading
and each change. Passphrases are typed and data are sealed and opened here: the meter gets neither.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.ctl.options import add_action, add_json, add_socket, add_state, socket_of
from meterd.ctl.output import put_out
from meterd.ctl.passphrase import STDIN, add_passphrase_file, read_passphrase
from meterd.ctl.show import Column, print_table
from meterd.device.control_client import ControlClient
from meterd.device.vault import new_passphrase, passphrase_key
from meterd.errors import AbsentError, ConfigError, EncodingError, UsageError
from meterd.privacy.envelope import Passphrase
from meterd.privacy.share import SHARE_BYTES_MAX, check_word, decode_share, new_share

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from meterd.privacy.share import Share

EXPORT_CONTEXT = "meterd/vault-export/v1"
_BELONGS = """\
SUBJECT and PURPOSE are up to 32 of a-z, 0-9 and dash, and are not encrypted:
SUBJECT is the pseudonym of a subscription, never a name. PURPOSE says what
the record is for: person (name, address), contract (customer number), …
"""
_STATUS = """\
exit status: 0 done, 64 usage, 69 no running meter or no such record,
  75 busy or too many wrong passphrases, 77 wrong passphrase or not allowed
"""


def add_actions(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Describe the actions of this module."""
    _add_put(actions)
    _add_show(actions)
    _add_export(actions)
    _add_rotate(actions)
    _add_erase(actions)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    return _DONE[options.vault_command](options)


def call(options: argparse.Namespace, method: str, **parameters: object) -> dict[str, Any]:
    """Return what the running meter answers.

    Raises:
        AbsentError: None answers: nothing else changes the vault, or writes the events.
    """
    path = socket_of(options)
    try:
        return ControlClient(path).call(method, **parameters)
    except AbsentError as error:
        if path.exists():
            raise
        raise AbsentError(
            f"the vault is read and changed by the running meter, and none answers at {path}",
            hint="start it, or name its socket; without it there are `init` and `list`",
        ) from error


# --- put --------------------------------------------------------------------------------------


def _add_put(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(actions, "put", "keep a record, in the place of the one before")
    parser.epilog = f"""\
{_BELONGS}
The passphrase opens all that is kept of SUBJECT, and is asked for twice when
SUBJECT is new. Without it nobody reads them, and nobody can give them back.

{_STATUS}
examples:
  meterctl vault put flat-3 person --file person.txt
  meterctl vault put flat-3 contract --passphrase-file key.txt < contract.txt
"""
    parser.add_argument("subject", metavar="SUBJECT", help="whose: a pseudonym")
    parser.add_argument("purpose", metavar="PURPOSE", help="what for")
    parser.add_argument(
        "--file",
        type=Path,
        default=STDIN,
        metavar="FILE",
        help="what to keep, - for standard input (default: -)",
    )
    add_passphrase_file(parser)
    _add_common(parser)


def _put(options: argparse.Namespace) -> int:
    _check_words(options)
    if options.file == STDIN == options.passphrase_file:
        raise UsageError("data and passphrase cannot both come from standard input")
    data = _data(options.file)
    person = _person(options)
    if person is None:
        how = new_passphrase()
        key = _derived(options.passphrase_file, options.subject, how, new=True)
        share, version, before = new_share(options.subject, how, key, secrets.token_bytes), 1, ""
        taken_from = int(call(options, "VaultList")["version"])
    else:
        key = _derived(options.passphrase_file, options.subject, person.how)
        share, taken_from = _take(options, key, [])
        version, before = person.purposes.get(options.purpose, 0) + 1, key.hex()
    share = share.put(key, options.purpose, version, data, secrets.token_bytes)
    reply = _keep(options, share, before, taken_from)
    return _tell(
        options,
        {"subject": options.subject, "purpose": options.purpose, "version": version},
        f"kept     {options.purpose} of {options.subject}, version {version}",
        reply,
    )


def _data(file: Path) -> bytes:
    if file == STDIN:
        if sys.stdin is None:
            raise UsageError("there is no standard input", hint="use --file FILE")
        if sys.stdin.isatty():
            sys.stderr.write("type what is to be kept; Ctrl-D on a line of its own ends it\n")
        data = sys.stdin.buffer.read(SHARE_BYTES_MAX + 1)
    else:
        with file.open("rb") as opened:
            data = opened.read(SHARE_BYTES_MAX + 1)
    if not data:
        raise UsageError("there is nothing to keep: the input is empty")
    return data


# --- show, export -----------------------------------------------------------------------------


def _add_show(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(actions, "show", "show a person's records")
    parser.epilog = f"""\
Without PURPOSE it shows all. With it, and not at a terminal, it writes the
record as it was put in, byte for byte. The account tells that it was read.

{_STATUS}
examples:
  meterctl vault show flat-3
  meterctl vault show flat-3 person --passphrase-file key.txt > person.txt
"""
    parser.add_argument("subject", metavar="SUBJECT", help="whose: a pseudonym")
    parser.add_argument("purpose", metavar="PURPOSE", nargs="?", default="", help="what for")
    add_passphrase_file(parser)
    _add_common(parser)


def _show(options: argparse.Namespace) -> int:
    opened = _opened(options)
    if options.json:
        print(json.dumps(_spelt(options, opened)))
        return 0
    if options.purpose and not sys.stdout.isatty():
        put_out(opened.data[options.purpose], None)
        return 0
    columns = (Column("purpose", 12), Column("version", 7, right=True), Column("record"))
    rows = (
        (purpose, str(opened.versions[purpose]), _printable(line))
        for purpose, data in opened.data.items()
        for line in data.decode(errors="replace").splitlines() or [""]
    )
    print_table(columns, rows)
    return 0


def _printable(line: str) -> str:
    return line if line.isprintable() else ascii(line)


def _add_export(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(actions, "export", "write all records of a person into one file, in clear")
    parser.epilog = f"""\
The file is JSON, mode 0600, and is for that person: hand it over, then delete
it. One that is there is never written over. The account tells of it.

{_STATUS}
examples:
  meterctl vault export flat-3 -o flat-3.json
"""
    parser.add_argument("subject", metavar="SUBJECT", help="whose: a pseudonym")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="where to; a new file"
    )
    add_passphrase_file(parser)
    _add_common(parser)


def _export(options: argparse.Namespace) -> int:
    options.purpose = ""
    path: Path = options.output
    if os.path.lexists(path):
        raise ConfigError(f"there is {path} already", hint="name another file with -o")
    opened = _opened(options)
    text = json.dumps(_spelt(options, opened), indent=1, ensure_ascii=False) + "\n"
    put_out(text, path, mode=0o600)
    if options.json:
        print(json.dumps({"file": str(path), "purposes": list(opened.data)}))
        return 0
    print(f"wrote {path}: {', '.join(opened.data)}")
    return 0


class _Opened(NamedTuple):
    data: dict[str, bytes]
    versions: dict[str, int]
    vault: int


def _opened(options: argparse.Namespace) -> _Opened:
    """Return a person's records of one purpose, or all, in clear."""
    _check_words(options)
    person = _known(options)
    purposes = [options.purpose] if options.purpose else sorted(person.purposes)
    key = _derived(options.passphrase_file, options.subject, person.how)
    share, version = _take(options, key, purposes)
    return _Opened(
        {record.purpose: share.get(key, record.purpose) for record in share.records},
        {record.purpose: record.version for record in share.records},
        version,
    )


def _spelt(options: argparse.Namespace, opened: _Opened) -> dict[str, object]:
    return {
        "format": EXPORT_CONTEXT,
        "subject": options.subject,
        "vault_version": opened.vault,
        "records": [
            {"purpose": purpose, "version": opened.versions[purpose], **_text(data)}
            for purpose, data in opened.data.items()
        ],
    }


def _text(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": b64encode(data).decode()}


# --- rotate -----------------------------------------------------------------------------------


def _add_rotate(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(actions, "rotate", "replace keys: the vault's, a person's, a passphrase")
    parser.epilog = f"""\
  rotate                        another root key; no record is written anew
  rotate SUBJECT                another key of a person, its records sealed anew
  rotate SUBJECT --passphrase   another passphrase; no record is written anew
  rotate --device               another secret of the device: as root, while
                                the meter is stopped; no record is written anew

After each, what was written before opens with no key of today.

{_STATUS}
examples:
  meterctl vault rotate
  meterctl vault rotate flat-3 --passphrase
"""
    parser.add_argument("subject", metavar="SUBJECT", nargs="?", default="", help="whose")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--passphrase", action="store_true", help="take another passphrase")
    which.add_argument("--device", action="store_true", help="draw another device secret")
    add_passphrase_file(parser)
    add_passphrase_file(parser, "--new-passphrase-file", "new passphrase")
    _add_common(parser)


def _rotate(options: argparse.Namespace) -> int:
    if options.device:
        from meterd.ctl.vault_device import rotate_device

        if options.subject:
            raise UsageError("--device is for the whole device: leave SUBJECT out")
        return rotate_device(options)
    if not options.subject:
        if options.passphrase:
            raise UsageError(
                "whose passphrase?", hint="`meterctl vault rotate SUBJECT --passphrase`"
            )
        reply = call(options, "VaultRotate")
        return _tell(options, {"rotated": "root key"}, "rotated  the root key", reply)
    _check_words(options)
    person = _known(options)
    before = _derived(options.passphrase_file, options.subject, person.how)
    if options.passphrase:
        share, taken_from = _take(options, before, [])
        how = new_passphrase()
        key = _derived(options.new_passphrase_file, options.subject, how, new=True)
        share, what = share.with_passphrase(before, how, key, secrets.token_bytes), "passphrase"
    else:
        share, taken_from = _take(options, before, sorted(person.purposes))
        share, what = share.rekeyed(before, secrets.token_bytes), "key"
    reply = _keep(options, share, before.hex(), taken_from)
    about = {"rotated": what, "subject": options.subject}
    return _tell(options, about, f"rotated  the {what} of {options.subject}", reply)


# --- erase ------------------------------------------------------------------------------------


def _add_erase(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    parser = add_action(actions, "erase", "destroy a person's key and records, for good")
    parser.epilog = f"""\
Neither a passphrase nor a copy of yesterday's vault gives them back on a card
that today's vault is on. What is printed is the receipt: the event stands in
the sealed account. The account itself stays as it is: it has pseudonyms only.

{_STATUS}
examples:
  meterctl vault erase flat-3
  meterctl vault erase flat-3 --yes --json > receipt.json
"""
    parser.add_argument("subject", metavar="SUBJECT", help="whose: a pseudonym")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    _add_common(parser)


def _erase(options: argparse.Namespace) -> int:
    _check_words(options)
    person = _known(options)
    what = ", ".join(sorted(person.purposes))
    if not options.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask at", hint="add --yes once you are sure")
        sys.stderr.write(f"{what} of {options.subject} cannot be got back. Erase? [y/N]: ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("not confirmed: nothing was erased")
    reply = call(options, "VaultErase", subject=options.subject)
    about = {"erased": options.subject, "purposes": reply["purposes"]}
    return _tell(options, about, f"erased   {options.subject}: {what}", reply)


# --- what they share --------------------------------------------------------------------------

_DONE: dict[str, Callable[[argparse.Namespace], int]] = {
    "put": _put,
    "show": _show,
    "export": _export,
    "rotate": _rotate,
    "erase": _erase,
}


class _Person(NamedTuple):
    """Somebody in the vault: how the passphrase becomes a key, and each record's version."""

    how: Passphrase
    purposes: dict[str, int]


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_state(parser)
    add_socket(parser)
    add_json(parser)


def _check_words(options: argparse.Namespace) -> None:
    try:
        check_word(options.subject, "subject")
        if getattr(options, "purpose", ""):
            check_word(options.purpose, "purpose")
    except EncodingError as error:
        raise UsageError(str(error), hint=error.hint) from error


def _person(options: argparse.Namespace) -> _Person | None:
    """Return whom the vault knows by this pseudonym; None where it does not.

    Raises:
        UsageError: It is a part of the device.
    """
    for entry in call(options, "VaultList")["subjects"]:
        if entry["subject"] == options.subject:
            how = entry["passphrase"]
            if how is None:
                raise UsageError(f"{options.subject} is a part of the device, and no person")
            return _Person(
                Passphrase(bytes.fromhex(how["salt"]), how["passes"], how["memory_kib"]),
                {record["purpose"]: record["version"] for record in entry["records"]},
            )
    return None


def _known(options: argparse.Namespace) -> _Person:
    person = _person(options)
    if person is None:
        raise AbsentError(
            f"the vault holds nothing of {options.subject}", hint="see `meterctl vault list`"
        )
    return person


def _derived(file: Path | None, subject: str, how: Passphrase, *, new: bool = False) -> bytes:
    return passphrase_key(read_passphrase(file, subject, new=new), how)


def _take(options: argparse.Namespace, key: bytes, purposes: list[str]) -> tuple[Share, int]:
    reply = call(options, "VaultTake", subject=options.subject, key=key.hex(), purposes=purposes)
    return decode_share(b64decode(reply["share"])), int(reply["version"])


def _keep(
    options: argparse.Namespace, share: Share, before: str, taken_from: int
) -> dict[str, Any]:
    try:
        spelt = b64encode(share.encode()).decode()
    except EncodingError as error:
        raise UsageError(str(error), hint=error.hint) from error
    return call(options, "VaultKeep", share=spelt, key=before, version=taken_from)


def _tell(
    options: argparse.Namespace, about: dict[str, object], line: str, reply: dict[str, Any]
) -> int:
    at = datetime.fromtimestamp(reply["wall_ms"] // 1000, UTC).isoformat()
    if options.json:
        print(json.dumps({**about, "vault": reply["version"], "event": reply["event"], "time": at}))
        return 0
    print(line)
    print(f"vault    version {reply['version']}")
    print(f"event    {reply['event']} of the account")
    print(f"time     {at}")
    return 0
