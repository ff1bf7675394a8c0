"""`meterctl export`: a sealed block exactly as it is, for any COSE library to check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.ctl.account import StoredAccount
from meterd.ctl.options import add_state, positive
from meterd.ctl.output import put_out, refuse_terminal
from meterd.errors import AbsentError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl export`."""
    parser.epilog = """\
The message is a COSE_Sign1 (RFC 9052) with alg -19 (Ed25519) whose external_aad
is the genesis hash; key and genesis hash are what `meterctl key` shows.

examples:
  meterctl export --height 17 --cose > block-17.cose
"""
    add_state(parser)
    parser.add_argument("--height", required=True, type=positive, metavar="N", help="which block")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--cose", action="store_true", help="the raw COSE_Sign1, as sealed")


def run(options: argparse.Namespace) -> int:
    """Write the block to stdout; returns the exit code."""
    height = options.height
    example = f"meterctl export --height {height} --cose > block-{height}.cose"
    refuse_terminal(None, "a block", example)
    account = StoredAccount(options.state)
    for sealed in account.blocks:
        if sealed.block.height == height:
            put_out(sealed.message, None)
            return 0
    account.close()
    last = account.blocks[-1].block.height if account.blocks else 0
    raise AbsentError(
        f"there is no block {height}: "
        + (f"the last is block {last}" if last else "nothing is sealed yet"),
        hint="an interval is sealed at its end; `meterctl blocks` lists them",
    )
