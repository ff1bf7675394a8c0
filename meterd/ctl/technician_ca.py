"""`meterctl ca`: the certificates by which technicians come in over SSH.

The CA is a folder on a machine that is on no network. A technician brings a public key, takes a
certificate for a day's work, and leaves the key where it was made. What is signed is ssh-keygen's
work (`technician_root`); here is what is typed for it, and what is told of it.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.ctl.options import add_action, add_json, positive, whole
from meterd.ctl.show import Column, note, print_table
from meterd.ctl.technician_root import (
    BEHIND_DAYS_MAX,
    HOURS_MAX,
    KEY,
    PUBLIC,
    PUBLIC_BYTES_MAX,
    REVOKED,
    Issued,
    issue,
    issued,
    make_ca,
    revoke,
)
from meterd.errors import UsageError

if TYPE_CHECKING:
    import argparse

PRINCIPAL = "technician"
HOURS = 8  # a day's work
ON_DEVICE = "/etc/meterd/ssh"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl ca`."""
    parser.epilog = f"""\
A device lets in whoever shows a certificate of this CA that is valid, not
revoked, and names one of the device's principals. It then offers a closed list
of commands, and records each with the certificate's id and serial.

Three files go to {ON_DEVICE} on each device, for all to read and root to
write: {PUBLIC}, {REVOKED}, and `principals`, a line for each.

examples:
  meterctl ca init --ca tech-ca
  meterctl ca issue --ca tech-ca --id jo --key jo.pub -o jo-cert.pub
  meterctl ca revoke --ca tech-ca jo
  meterctl ca list --ca tech-ca
"""
    actions = parser.add_subparsers(dest="ca_command", required=True, metavar="COMMAND")
    _add_init(actions)
    _add_issue(actions)
    _add_revoke(actions)
    _add_list(actions)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code."""
    _ACTIONS[options.ca_command](options)
    return 0


# --- what is typed ----------------------------------------------------------------------------


def _add(actions: Any, name: str, summary: str, epilog: str) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse hides the type
    parser = add_action(actions, name, summary, epilog)
    parser.add_argument("--ca", required=True, type=Path, metavar="DIR", help="folder of the CA")
    add_json(parser)
    return parser


def _add_init(actions: Any) -> None:  # noqa: ANN401
    parser = _add(
        actions,
        "init",
        "make a technician CA",
        """\
examples:
  meterctl ca init --ca tech-ca
  meterctl ca init --ca bench-ca --comment bench --no-passphrase
""",
    )
    parser.add_argument("--comment", default="technicians", metavar="TEXT", help="for people")
    parser.add_argument("--no-passphrase", action="store_true", help="the key is not encrypted")


def _add_issue(actions: Any) -> None:  # noqa: ANN401
    parser = _add(
        actions,
        "issue",
        "sign a technician's public key",
        """\
A certificate cannot be taken back from who has it before every device has the
new list: keep it short. A device that was off for long, and has no clock of its
own, may think that a certificate is not valid yet: --behind is for that visit.

examples:
  meterctl ca issue --ca tech-ca --id jo --key jo.pub -o jo-cert.pub
  meterctl ca issue --ca tech-ca --id jo --key jo.pub -o jo-cert.pub \\
      --principal elm-street --principal oak-street --hours 24
""",
    )
    parser.add_argument("--id", required=True, metavar="NAME", help="whose: in every record")
    parser.add_argument("--key", required=True, type=Path, metavar="FILE", help="public key, .pub")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FILE", help="where to")
    parser.add_argument(
        "--principal",
        action="append",
        metavar="NAME",
        help=f"what it opens; may be repeated (default: {PRINCIPAL})",
    )
    parser.add_argument(
        "--hours",
        type=positive,
        default=HOURS,
        metavar="N",
        help=f"how long it is valid, at most {HOURS_MAX} (default: {HOURS})",
    )
    parser.add_argument(
        "--behind",
        type=whole,
        default=0,
        metavar="DAYS",
        help=f"valid so much earlier, too, at most {BEHIND_DAYS_MAX} (default: 0)",
    )


def _add_revoke(actions: Any) -> None:  # noqa: ANN401
    parser = _add(
        actions,
        "revoke",
        "revoke certificates, and write the list for the devices",
        """\
examples:
  meterctl ca revoke --ca tech-ca 17
  meterctl ca revoke --ca tech-ca jo
""",
    )
    parser.add_argument("which", metavar="SERIAL|NAME", help="which, or all of whom")


def _add_list(actions: Any) -> None:  # noqa: ANN401
    _add(
        actions,
        "list",
        "show what was issued",
        """\
examples:
  meterctl ca list --ca tech-ca
  meterctl ca list --ca tech-ca --json
""",
    )


# --- what is done and told --------------------------------------------------------------------


def _init(options: argparse.Namespace) -> None:
    asks = not options.no_passphrase
    if asks and (sys.stdin is None or not sys.stdin.isatty()):
        raise UsageError(
            "there is no terminal to ask for a passphrase at",
            hint="run it at one, or say --no-passphrase",
        )
    if asks:
        note("ssh-keygen asks for a passphrase twice; without one the key is not encrypted")
    key_id = make_ca(options.ca, options.comment, asks=asks)
    if options.json:
        print(json.dumps({"ca": str(options.ca), "key_id": key_id}))
        return
    print(f"ca      {options.ca}")
    print(f"key     {key_id}")
    print(f"\nKeep {options.ca} off every network, and a copy of it elsewhere: whoever has {KEY}")
    print("and its passphrase can come in to every device.")
    print(f"{PUBLIC} and {REVOKED} go to {ON_DEVICE} on each device.")


def _issue(options: argparse.Namespace) -> None:
    with options.key.open("rb") as file:
        public = file.read(PUBLIC_BYTES_MAX)
    if options.out.exists() and options.out.samefile(options.key):
        raise UsageError("the certificate would take the place of the key", hint="see -o")
    new, signed = issue(
        options.ca,
        public,
        options.id,
        options.principal or [PRINCIPAL],
        now=_now(),
        hours=options.hours,
        behind_days=options.behind,
    )
    options.out.write_bytes(signed)
    if options.json:
        print(json.dumps(_told(new)))
        return
    print(f"id      {new.identity}")
    print(f"serial  {new.serial}")
    print(f"key     {new.key_id}")
    print(f"opens   {', '.join(new.principals)}")
    print(f"valid   {new.begins:%Y-%m-%d %H:%M} to {new.ends:%Y-%m-%d %H:%M} UTC")
    print("\nIs the line `key` what `ssh-keygen -lf` shows where the key is? If it is not, revoke")
    print(f"{new.serial}: somebody changed the key on its way. ssh takes the certificate by itself")
    print("where it lies beside the key, under the key's name and -cert.pub.")


def _revoke(options: argparse.Namespace) -> None:
    gone = revoke(options.ca, options.which, now=_now())
    if options.json:
        print(json.dumps([_told(one) for one in gone]))
        return
    for one in gone:
        print(f"revoked {one.serial} {one.identity}, which ends {one.ends:%Y-%m-%d %H:%M} UTC")
    if not gone:
        print("revoked before; the list is written anew")
    print(
        f"\nIt counts on each device once {options.ca / REVOKED} is there as {ON_DEVICE}/{REVOKED};"
    )
    print("sshd reads it at every login. A session that is open stays open.")


def _list(options: argparse.Namespace) -> None:
    found, now = issued(options.ca), _now()
    if options.json:
        print(json.dumps([_told(one) for one in found]))
        return
    columns = (
        Column("serial", 6, right=True),
        Column("id", 12),
        Column("until (UTC)", 16),
        Column("state", 8),
        Column("opens"),
    )
    rows = (
        (
            str(one.serial),
            one.identity,
            f"{one.ends:%Y-%m-%d %H:%M}",
            "live" if one.is_live(now) else "revoked" if one.revoked else "ended",
            " ".join(one.principals),
        )
        for one in found
    )
    print_table(columns, rows)


_ACTIONS = {"init": _init, "issue": _issue, "revoke": _revoke, "list": _list}


def _told(one: Issued) -> dict[str, object]:
    return {
        "serial": one.serial,
        "id": one.identity,
        "principals": list(one.principals),
        "key_id": one.key_id,
        "begins": one.begins.isoformat(),
        "ends": one.ends.isoformat(),
        "revoked": one.revoked.isoformat() if one.revoked else None,
    }


def _now() -> datetime:
    return datetime.now(UTC)
