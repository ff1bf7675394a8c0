"""`meterctl anchor`: have the account's head timestamped outside, and check that it still is so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meterd.anchored import judge
from meterd.config import load
from meterd.ctl.options import add_json, add_state
from meterd.ctl.show import count, utc
from meterd.device.anchor import (
    Authority,
    TimestampRefusedError,
    Token,
    keep_token,
    read_blocks,
    read_head,
    token_name,
    tokens,
)
from meterd.errors import ConfigError, DeniedError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from meterd.anchored import Held, Judged, Stamp

CONFIG_DEFAULT = "/etc/meterd/meterd.toml"
ANCHORS_DEFAULT = "/var/lib/meterd-anchor"
BAD = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl anchor`."""
    parser.epilog = """\
A timestamp authority (RFC 3161) signs that it saw the hash of the last block,
and when; by the links of the account that fixes all before it. Whoever had
every key and every neighbour could still not make another past for that day.
meterd-anchor.timer does it once a day, where [anchor] in the settings names a
url and the authority's root certificates. Nothing but a hash leaves the device.

`--check` verifies each timestamp, and that the account has that very block.
Exit status: 0 all of them hold, 1 one does not.

examples:
  meterctl anchor --config /etc/meterd/meterd.toml
  meterctl anchor --check
  meterctl anchor --check --state ./copy --anchors ./anchors --ca tsa-root.pem
"""
    add_state(parser)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"settings (default: {CONFIG_DEFAULT})"
    )
    parser.add_argument(
        "--anchors",
        type=Path,
        default=Path(ANCHORS_DEFAULT),
        metavar="DIR",
        help=f"where the timestamps are kept (default: {ANCHORS_DEFAULT})",
    )
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="root certificates, with --check (default: settings')",
    )
    parser.add_argument("--check", action="store_true", help="ask nobody; check those there are")
    parser.add_argument(
        "--if-set", action="store_true", help="do nothing where the settings name no authority"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Stamp, or check; returns the exit code."""
    if options.check:
        return _check(options)
    if options.ca:
        raise UsageError(
            "--ca goes with --check; to stamp, `ca` in [anchor] of the settings counts"
        )
    return _stamp(options)


def _stamp(options: argparse.Namespace) -> int:
    settings = load(options.config or Path(CONFIG_DEFAULT)).anchor
    if not settings.url:
        if options.if_set:
            _print(options, {"stamped": None}, "no [anchor] url in the settings: nobody is asked")
            return 0
        raise ConfigError(
            "no timestamp authority is named in the settings",
            hint="set `url` and `ca` in [anchor], as in config/meterd.toml",
        )
    last = read_head(options.state)
    if last is None:
        _print(options, {"stamped": None}, "nothing is sealed yet: there is nothing to stamp")
        return 0
    head, payload = last
    name = token_name(head.incarnation, head.height)
    authority = Authority(Path(settings.ca))
    if (options.anchors / name).exists():
        text = f"block {head.height} is stamped already"
        _print(options, {"stamped": None, "height": head.height}, text)
        return 0
    _need_folder(options.anchors)
    answer, (block_hash, at_s) = authority.stamp(settings.url, payload)
    path = keep_token(options.anchors, head.incarnation, head.height, answer)
    told = {"stamped": str(path), "height": head.height, "hash": block_hash.hex(), "at_s": at_s}
    _print(options, told, f"block {head.height} stamped at {utc(at_s)}: {path}")
    return 0


def _need_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeniedError(
            f"{folder} cannot be made: {error.strerror}", hint="name another with --anchors"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DeniedError(
            f"no permission to write {folder}",
            hint="run as root, or let the unit do it: `systemctl start meterd-anchor`",
        )


class Refused(NamedTuple):
    """A file that says nothing that can be verified."""

    token: Token
    reason: str


def _check(options: argparse.Namespace) -> int:
    authority = Authority(options.ca or Path(_ca_of(options)))
    stamps: list[Stamp] = []
    refused: list[Refused] = []
    for token in tokens(options.anchors):
        try:
            stamps.append(token.stamp(authority))
        except TimestampRefusedError as error:
            refused.append(Refused(token, str(error)))
    held = list(read_blocks(options.state))
    judged = judge(stamps, held)
    bad = len(refused) + sum(bool(one.reason) for one in judged)
    if options.json:
        print(json.dumps(_as_json(judged, refused)))
    else:
        print("\n".join(_lines(judged, refused, held)))
    return BAD if bad else 0


def _ca_of(options: argparse.Namespace) -> str:
    settings = load(options.config or Path(CONFIG_DEFAULT)).anchor
    if not settings.ca:
        raise ConfigError(
            "the settings name no root certificates of a timestamp authority",
            hint="name them with --ca, or as `ca` in [anchor]",
        )
    return settings.ca


def _as_json(judged: Sequence[Judged], refused: Sequence[Refused]) -> dict[str, Any]:
    good = [one.stamp for one in judged if not one.reason]
    return {
        "verdict": "bad" if refused or len(good) < len(judged) else "good",
        "anchored": max((stamp.height for stamp in good), default=None),
        "anchors": [
            {
                "incarnation": one.stamp.incarnation,
                "height": one.stamp.height,
                "hash": one.stamp.block_hash.hex(),
                "at_s": one.stamp.at_s,
                "reason": one.reason or None,
            }
            for one in judged
        ],
        "refused": [{"file": one.token.path.name, "reason": one.reason} for one in refused],
    }


def _lines(judged: Sequence[Judged], refused: Sequence[Refused], held: Sequence[Held]) -> list[str]:
    found = [
        f"bad: block {one.stamp.height}, stamped at {utc(one.stamp.at_s)}:\n  {one.reason}"
        for one in judged
        if one.reason
    ]
    found += [f"bad: {one.token.path.name}:\n  {one.reason}" for one in refused]
    good = [one.stamp for one in judged if not one.reason]
    if good:
        last = max(good, key=lambda stamp: stamp.at_s)
        found.append(
            f"{'good' if not found else 'of these, good'}: {count(len(good), 'timestamp')}; "
            f"block {last.height} was there at {utc(last.at_s)}"
        )
        later = sum(block.height > last.height for block in held)
        found.append(f"  {count(later, 'block')} after it; `meterctl verify` judges the account")
    elif not found:
        found.append("no timestamps: nothing outside vouches for this account")
    return found


def _print(options: argparse.Namespace, told: dict[str, Any], text: str) -> None:
    print(json.dumps(told) if options.json else text)
