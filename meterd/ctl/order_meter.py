"""Orders on one meter: enrol, replace, rotate, revoke, fork-resolve.

A chain begins with registers, and ends with a block that this node holds. Here is what each order
takes on the command line, and the change that it makes of it.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.ctl.options import add_action, hex_bytes, positive, whole
from meterd.ctl.order_enrolments import read_metering
from meterd.ctl.order_options import add_signing
from meterd.ctl.public_key import public_key
from meterd.errors import AbsentError, ConfigError, UsageError
from meterd.ledger.block import UJ_MAX, Energy
from meterd.ledger.encoding import SIGNATURE_BYTES
from meterd.ledger.order import (
    REASON_CHARS_MAX,
    Change,
    Enrol,
    ForkResolve,
    Replace,
    Revoke,
    Rotate,
)

if TYPE_CHECKING:
    import argparse

    from meterd.authority.roster import Enrolled
    from meterd.ctl.order_desk import Desk

UJ_PER_KWH = 3_600_000_000_000
_CODES = {"import": "1-0:1.8.0", "export": "1-0:2.8.0", "apparent": "1-0:9.8.0"}
_CODE = re.compile(r"1-(\d{1,3}):(\d{1,3})\.8\.0")


def add_enrol(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Describe `meterctl order enrol`."""
    parser = add_action(
        actions,
        "enrol",
        "list a new meter",
        """\
FILE is what `meterctl network enrol` wrote on the device; compare its key ids
by voice. A meter that comes with an account of its own goes on from its
registers.

examples:
  meterctl order enrol house-9.toml
  meterctl order enrol house-9.toml \\
      --register import=1234.567 --register export=0
""",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the enrolment file")
    _add_registers(parser, "0")
    add_signing(parser)


def enrol_change(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    """Return the change that lists a new meter."""
    device = read_metering(options.file, desk.roster)
    before = desk.roster.newest(device.name)
    change = Enrol(
        device.name,
        before.incarnation + 1 if before else 1,
        device.sealing_key,
        device.voting_key,
        device.fuse_ma,
        device.nominal_mv,
        device.mains_clamps,
        _registers(options.register),
    )
    return change, None


def add_replace(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Describe `meterctl order replace`."""
    parser = add_action(
        actions,
        "replace",
        "put another device in the place of a meter's",
        """\
The old device has to be off, and its key revoked by an order that is in force:
nothing more of its chain is certified then, and the peer process comes to know
which block is the last.

examples:
  meterctl order revoke --meter house-4 --reason "the device is broken"
  meterctl order replace house-4-new.toml
""",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the new device's enrolment file")
    _add_final(parser)
    _add_registers(parser, "where the old chain ends")
    add_signing(parser)


def replace_change(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    """Return the change that ends a meter's chain, and begins another device's."""
    device = read_metering(options.file, desk.roster)
    old = _chain(desk, device.name, None)
    height, block_hash, registers = _end(desk, old, options.register, options.final)
    change = Replace(
        device.name,
        old.incarnation,
        height,
        block_hash,
        old.incarnation + 1,
        device.sealing_key,
        device.voting_key,
        device.fuse_ma,
        device.nominal_mv,
        device.mains_clamps,
        registers,
    )
    return change, None


def _add_meter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--meter", required=True, metavar="NAME", help="which meter")
    parser.add_argument(
        "--incarnation", type=positive, metavar="N", help="which of its chains (default: the last)"
    )


def add_rotate(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Describe `meterctl order rotate`."""
    parser = add_action(
        actions,
        "rotate",
        "let a meter seal with another key",
        """\
The key before has to consent: `meterctl order consent` on the device prints it.

examples:
  meterctl order rotate --meter house-4 --new-key 5f0c… --consent 1a2b…
""",
    )
    _add_meter(parser)
    parser.add_argument(
        "--new-key", required=True, metavar="HEX", help="the new public key, 64 hex digits"
    )
    parser.add_argument(
        "--consent", required=True, metavar="HEX", help="the old key's signature, 128 hex digits"
    )
    add_signing(parser)


def rotate_change(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    """Return the change after which a meter seals with another key."""
    chain = _chain(desk, options.meter, options.incarnation)
    key = public_key(options.new_key, "--new-key")
    consent = hex_bytes(options.consent, SIGNATURE_BYTES, "--consent")
    return Rotate(chain.name, chain.incarnation, key, consent), None


def add_revoke(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Describe `meterctl order revoke`."""
    parser = add_action(
        actions,
        "revoke",
        "a meter's key is good no more",
        """\
Nothing of its chain is attested from then on. Another device takes its place by
`meterctl order replace`.

examples:
  meterctl order revoke --meter house-4 --reason "the card was stolen"
""",
    )
    _add_meter(parser)
    parser.add_argument("--reason", required=True, metavar="TEXT", help="for everybody to read")
    add_signing(parser)


def revoke_change(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    """Return the change after which nothing of a chain is attested."""
    chain = _chain(desk, options.meter, options.incarnation)
    if len(options.reason) > REASON_CHARS_MAX or not options.reason.isprintable():
        raise UsageError(f"--reason: expected at most {REASON_CHARS_MAX} letters in one line")
    if chain.revoked:
        raise ConfigError(f"{chain.name} ({chain.incarnation}) is revoked already: {chain.revoked}")
    return Revoke(chain.name, chain.incarnation, options.reason), None


def add_fork_resolve(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Describe `meterctl order fork-resolve`."""
    parser = add_action(
        actions,
        "fork-resolve",
        "end a chain of two histories, and begin it anew",
        """\
Its key has to be revoked by an order that is in force. The chain ends at the
last block that anybody may know to be certified. The device makes new keys and
enrols with them: it, or the card, may be in other hands.

examples:
  meterctl order revoke --meter house-4 --reason "two histories"
  meterctl order fork-resolve house-4-again.toml
""",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the device's new enrolment file")
    _add_final(parser)
    _add_registers(parser, "where the old chain ends")
    add_signing(parser)


def fork_resolve_change(desk: Desk, options: argparse.Namespace) -> tuple[Change, int | None]:
    """Return the change that ends a frozen chain, and begins it anew."""
    device = read_metering(options.file, desk.roster)
    old = _chain(desk, device.name, None)
    held = desk.node.core.chains.get((old.name, old.incarnation))
    if held is None or not held.frozen:
        raise ConfigError(
            f"{old.name} ({old.incarnation}) is not frozen: no two histories of it are proved here",
            hint="`meterctl order replace` ends a chain that is whole; see `meterctl evidence`",
        )
    height, block_hash, registers = _end(desk, old, options.register, options.final)
    change = ForkResolve(
        old.name,
        old.incarnation,
        height,
        block_hash,
        old.incarnation + 1,
        device.sealing_key,
        registers,
    )
    return change, None


# --- where a chain ends, and what the next begins with ----------------------------------------


def _chain(desk: Desk, name: str, incarnation: int | None) -> Enrolled:
    """Return a meter's chain, the last unless told.

    Raises:
        UsageError: There is none.
    """
    found = desk.roster.newest(name)
    if found is not None and incarnation:
        found = desk.roster.chains.get((name, incarnation))
    if found is None or (name, 1) == desk.chain_id:
        known = sorted({one for one, _ in desk.roster.chains if (one, 1) != desk.chain_id})
        raise UsageError(
            f"no meter of {desk.roster.network} is {name} ({incarnation or 1})",
            hint=f"known are {', '.join(known[:20]) or 'none'}",
        )
    return found


def _registers(given: list[str]) -> tuple[Energy, ...]:
    """Return starting registers as they are typed: `import=1234.567`, `1-2:1.8.0=17,estimated`.

    Raises:
        UsageError: One cannot be read.
    """
    found: dict[bytes, Energy] = {}
    for text in given:
        code, _, rest = text.partition("=")
        energy, _, kind = rest.partition(",")
        match = _CODE.fullmatch(_CODES.get(code, code))
        try:
            uj = Decimal(energy) * UJ_PER_KWH
        except InvalidOperation:
            uj = Decimal(-1)
        good = match and uj.is_finite() and 0 <= uj <= UJ_MAX and uj == uj.to_integral_value()
        if not match or not good or kind not in ("", "measured", "estimated"):
            raise UsageError(
                f"--register: expected CODE=KWH, got {text[:60]!r}",
                hint="as in import=1234.567, or 1-2:1.8.0=17.25,estimated",
            )
        channel, what = int(match[1]), int(match[2])
        if max(channel, what) > 255:  # noqa: PLR2004 - a byte each
            raise UsageError(f"--register: {code} is no register")
        obis = bytes((1, channel, what, 8, 0, 255))
        if obis in found:
            raise UsageError(f"--register: {code} is given twice")
        found[obis] = Energy(obis, int(kind == "estimated"), int(uj), int(uj))
    return tuple(found[obis] for obis in sorted(found))


def _add_registers(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="CODE=KWH",
        help=f"what the new chain begins with; may be repeated (default: {default})",
    )


def _add_final(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--final",
        type=whole,
        metavar="N",
        help="last block (default: the last that may be certified). If some know more to be"
        " certified, the order is never in force, and none can follow it",
    )


def _end(
    desk: Desk, chain: Enrolled, given: list[str], final: int | None
) -> tuple[int, bytes, tuple[Energy, ...]]:
    """Return height and hash of the block that a chain ends with, and its last registers.

    Raises:
        AbsentError: The peer process, which knows, is not running.
        ConfigError: The key is not revoked, or it is not certain, or not held here.
    """
    chain_id = (chain.name, chain.incarnation)
    known = desk.node.core.roster.chains.get(chain_id)
    if known is None or not known.revoked:
        raise ConfigError(
            f"the key of {chain.name} ({chain.incarnation}) is not revoked, and more of its chain"
            " may be certified meanwhile",
            hint=f"`meterctl order revoke --meter {chain.name} --reason …` first; this once"
            " `meterctl order list` shows it in force",
        )
    height = _last(desk, chain) if final is None else final
    if height == 0:
        return 0, chain.opened[1], _registers(given) or chain.registers
    block = desk.block(chain_id, height)
    if block is None:
        held = desk.node.core.chains.get(chain_id)
        raise ConfigError(
            f"block {height} of {chain.name} ({chain.incarnation}) is not held here: the last is"
            f" {held.height if held else 0}",
            hint="let the peer process fetch it from its neighbours, then try again",
        )
    last = tuple(energy._replace(first_uj=energy.last_uj) for energy in block.energy)
    return height, block.hash, _registers(given) or last


def _last(desk: Desk, chain: Enrolled) -> int:
    """Return the height of the last block of a chain that anybody may know to be certified.

    Raises:
        AbsentError: The peer process is not running.
        ConfigError: It is not certain yet.
    """
    named, chain_id = f"{chain.name} ({chain.incarnation})", (chain.name, chain.incarnation)
    shown = desk.node.shown
    if shown is None or shown.stale:
        raise AbsentError(
            f"where {named} ends the peer process alone knows, and it is not running",
            hint="start `meterd peer`, and try again in a minute",
        )
    for entry in shown.told["chains"]:
        if (entry["name"], entry["incarnation"]) == chain_id:
            if entry["end_height"] is not None:
                return int(entry["end_height"])
            raise ConfigError(
                f"it is not certain yet where {named} ends: {entry['end_unknown']}",
                hint="try again in a minute; `meterctl peers` shows who is not heard. If that does"
                " not change, decide by --final N",
            )
    return 0  # nobody has seen a block of it
