"""`meterctl broker-config ca`: the certificates of a street, made at its root, devices and brokers.

The making is in `meterd.certificates`; here is what is typed for it, and what is told of it. Where
a certificate has to be taken, and what to compare there, is told each time.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.ctl.options import add_action, add_json, positive
from meterd.errors import AbsentError, ConfigError, UsageError
from meterd.ledger.account import NAME

if TYPE_CHECKING:
    import argparse

    from meterd.certificates.index import Issued


def add_ca(commands: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Describe `meterctl broker-config ca`."""
    summary = "certificates: a root, one for each device, one for each broker"
    ca = add_action(commands, "ca", summary)
    ca.epilog = """\
A new street, on three machines (root, device, broker); only requests,
certificates and lists travel, never a key:

  root    meterctl broker-config ca init --ca elm-root --network elm-street
  device  meterctl broker-config ca request --name kitchen-12 --key mqtt.key --csr kitchen-12.csr
  root    meterctl broker-config ca issue --ca elm-root --csr kitchen-12.csr -o kitchen-12.crt
  broker  meterctl broker-config ca request --name broker --key broker.key --csr broker.csr
  root    meterctl broker-config ca issue-broker --ca elm-root --csr broker.csr \\
              --host broker.elm.example -o broker.crt
"""
    actions = ca.add_subparsers(dest="ca_command", required=True, metavar="COMMAND")
    _add_init(actions)
    _add_request(actions)
    _add_issue(actions)
    _add_issue_broker(actions)
    _add_revoke(actions)
    _add_list(actions)


def run_ca(options: argparse.Namespace) -> None:
    """Do what was asked."""
    _CA[options.ca_command](options)


# --- what is typed ----------------------------------------------------------------------------


def _add_root(parser: argparse.ArgumentParser, *, key: bool = True) -> None:
    parser.add_argument("--ca", required=True, type=Path, metavar="DIR", help="folder of the root")
    if key:
        parser.add_argument(
            "--passphrase-file",
            type=Path,
            metavar="FILE",
            help="first line: passphrase of the root key (asked for at a terminal otherwise)",
        )
    add_json(parser)


def _add_init(actions: Any) -> None:  # noqa: ANN401
    parser = add_action(
        actions,
        "init",
        "make the root of a street",
        """\
examples:
  meterctl broker-config ca init --ca elm-root --network elm-street --encrypt
  meterctl broker-config ca init --ca elm-root --network elm-street --passphrase-file FILE
""",
    )
    parser.add_argument("--network", required=True, metavar="NAME", help="the network's name")
    parser.add_argument("--encrypt", action="store_true", help="ask for a passphrase for the key")
    _add_root(parser)


def _add_request(actions: Any) -> None:  # noqa: ANN401
    parser = add_action(
        actions,
        "request",
        "make a key, where it will be used, and a request",
        """\
examples:
  meterctl broker-config ca request --name kitchen-12 --key mqtt.key --csr kitchen-12.csr
  meterctl broker-config ca request --name kitchen-12 --key mqtt.key --csr again.csr --same-key
""",
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="its name in the network")
    parser.add_argument("--key", required=True, type=Path, metavar="FILE", help="stays here")
    parser.add_argument("--csr", required=True, type=Path, metavar="FILE", help="goes to the root")
    parser.add_argument("--same-key", action="store_true", help="for a key that is there")
    add_json(parser)


def _add_sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csr", required=True, type=Path, metavar="FILE", help="the request")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FILE", help="where to")
    parser.add_argument("--years", type=positive, default=2, metavar="N", help="default: 2")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="revoke the live one of that name: take the new list to the broker after the new"
        " certificate is in its place",
    )
    _add_root(parser)


def _add_issue(actions: Any) -> None:  # noqa: ANN401
    parser = add_action(
        actions,
        "issue",
        "sign a device's request",
        """\
examples:
  meterctl broker-config ca issue --ca elm-root --csr kitchen-12.csr -o kitchen-12.crt
  meterctl broker-config ca issue --ca elm-root --csr again.csr -o kitchen-12.crt --replace
""",
    )
    _add_sign(parser)


def _add_issue_broker(actions: Any) -> None:  # noqa: ANN401
    parser = add_action(
        actions,
        "issue-broker",
        "sign a broker's request",
        """\
examples:
  meterctl broker-config ca issue-broker --ca elm-root --csr broker.csr \\
      --host broker.elm.example --host 192.0.2.7 -o broker.crt
""",
    )
    parser.add_argument(
        "--host",
        action="append",
        required=True,
        metavar="NAME",
        help="host name or address that devices have in their settings; may be repeated",
    )
    _add_sign(parser)


def _add_revoke(actions: Any) -> None:  # noqa: ANN401
    parser = add_action(
        actions,
        "revoke",
        "revoke a certificate, and write the list for the broker",
        """\
examples:
  meterctl broker-config ca revoke --ca elm-root kitchen-12 --reason lost
  meterctl broker-config ca revoke --ca elm-root 43f0ef75a5c95f4514bf34aad31c0db18fc78800
""",
    )
    parser.add_argument("which", metavar="NAME|SERIAL", help="whose, or which")
    parser.add_argument(
        "--reason",
        choices=["unspecified", "lost", "replaced", "retired"],
        default="unspecified",
        help="goes into the list",
    )
    _add_root(parser)


def _add_list(actions: Any) -> None:  # noqa: ANN401
    parser = add_action(
        actions,
        "list",
        "show what was issued",
        """\
examples:
  meterctl broker-config ca list --ca elm-root
  meterctl broker-config ca list --ca elm-root --json
""",
    )
    _add_root(parser, key=False)


# --- what is done and told --------------------------------------------------------------------


def _ca_init(options: argparse.Namespace) -> None:
    from meterd.certificates.root import make_root

    if not NAME.fullmatch(options.network):
        raise UsageError(f"--network: expected 1 to 32 of a-z, 0-9 and -: {options.network[:40]!r}")
    passphrase = _passphrase(options, asks=options.encrypt, twice=True)
    key_id = make_root(options.ca, options.network, now=_now(), passphrase=passphrase)
    if options.json:
        print(json.dumps({"key_id": key_id, "encrypted": bool(passphrase)}))
        return
    print(f"root    {options.ca}")
    print(f"key     {key_id}")
    print(f"\nKeep {options.ca} off every network, and a copy of it elsewhere: whoever has its key")
    if passphrase:
        print("and passphrase can be any device of the street.")
    else:
        print("can be any device of the street, and it is not encrypted.")
    print("root.crt goes to every device and to the broker, root.crl to the broker.")


def _ca_request(options: argparse.Namespace) -> None:
    from meterd.certificates.request import make_request

    if not NAME.fullmatch(options.name):
        raise UsageError(
            f"--name: expected 1 to 32 of a-z, 0-9 and -, got {options.name[:40]!r}",
            hint="topics are made of it, where +, # and / mean something",
        )
    key_id = make_request(options.key, options.csr, options.name, reuse=options.same_key)
    if options.json:
        print(json.dumps({"name": options.name, "key_id": key_id, "csr": str(options.csr)}))
        return
    print(f"name    {options.name}")
    print(f"key     {key_id}")
    print(
        f"\nTake {options.csr} to the root, and compare the line `key` there. {options.key} stays."
    )


def _ca_issue(options: argparse.Namespace) -> None:
    from meterd.certificates.root import issue
    from meterd.device.files import write_over

    new, pem = issue(
        options.ca,
        options.csr.read_bytes(),
        now=_now(),
        hosts=getattr(options, "host", ()),
        passphrase=_passphrase(options),
        years=options.years,
        renew=options.replace,
    )
    write_over(options.out, pem, mode=0o644)
    if options.json:
        print(json.dumps(_told(new)))
        return
    print(f"name    {new.name}")
    print(f"serial  {new.serial}")
    print(f"key     {new.key_id}")
    print(f"until   {new.ends:%Y-%m-%d}")
    print(
        f"\nTake {options.out} and root.crt to where the key is. Is the line `key` the same there?"
    )
    print("If it is not, revoke this certificate: somebody changed the request on its way.")


def _ca_revoke(options: argparse.Namespace) -> None:
    from meterd.certificates.root import ROOT_CRL, revoke

    gone = revoke(
        options.ca,
        options.which,
        now=_now(),
        passphrase=_passphrase(options),
        reason=options.reason,
    )
    if options.json:
        print(json.dumps([_told(one) for one in gone]))
        return
    for one in gone:
        print(f"revoked {one.name} {one.serial}")
    if not gone:
        print("revoked before; the list is written anew")
    print(
        f"\nIt counts once the broker has {options.ca / ROOT_CRL}: copy it there,\n"
        "then `systemctl restart mosquitto`. A reload takes up the list as well, but leaves alone\n"
        "who is connected. Write the acl anew, --without the name, if it is not to come back."
    )


def _ca_list(options: argparse.Namespace) -> None:
    from meterd.certificates.root import issued

    now = _now()
    found = issued(options.ca)
    if options.json:
        print(json.dumps([_told(one) for one in found]))
        return
    for one in found:
        state = "live" if one.is_live(now) else f"revoked, {one.reason}" if one.revoked else "ended"
        print(f"{one.kind:<6}  {one.name:<32}  {one.serial}  until {one.ends:%Y-%m-%d}  {state}")


_CA = {
    "init": _ca_init,
    "request": _ca_request,
    "issue": _ca_issue,
    "issue-broker": _ca_issue,
    "revoke": _ca_revoke,
    "list": _ca_list,
}


def _told(one: Issued) -> dict[str, object]:
    return {
        "kind": one.kind,
        "name": one.name,
        "serial": one.serial,
        "key_id": one.key_id,
        "begins": one.begins.isoformat(),
        "ends": one.ends.isoformat(),
        "revoked": one.revoked.isoformat() if one.revoked else None,
        "reason": one.reason or None,
    }


def _now() -> datetime:
    return datetime.now(UTC)


def _passphrase(options: argparse.Namespace, *, asks: bool = True, twice: bool = False) -> bytes:
    """Return the passphrase of the root key; empty where there is none, or nobody to ask."""
    if options.passphrase_file:
        line, _, _ = options.passphrase_file.read_bytes().partition(b"\n")
        if not line:
            raise ConfigError(f"the first line of {options.passphrase_file} is empty")
        return bytes(line)
    if not asks:
        return b""
    if not twice and not _is_encrypted(options.ca):
        return b""
    if sys.stdin is None or not sys.stdin.isatty():
        if twice:
            raise UsageError(
                "there is no terminal to ask for a passphrase at", hint="use --passphrase-file FILE"
            )
        return b""  # the root says what is missing
    from getpass import getpass

    first = getpass("passphrase of the root key: ")
    if twice and (not first or getpass("once more: ") != first):
        raise UsageError("empty, or not twice the same: nothing was made")
    return first.encode()


def _is_encrypted(folder: Path) -> bool:
    from meterd.certificates.root import ROOT_KEY

    try:
        return b"ENCRYPTED" in (folder / ROOT_KEY).read_bytes()
    except FileNotFoundError as error:
        raise AbsentError(
            f"there is no root in {folder}",
            hint=f"make one with `meterctl broker-config ca init --ca {folder} --network NAME`",
        ) from error
