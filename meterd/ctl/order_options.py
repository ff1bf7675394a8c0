"""Options that the actions of `meterctl order` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from meterd.ctl.node import add_node
from meterd.ctl.options import add_json

if TYPE_CHECKING:
    import argparse


def add_signing(parser: argparse.ArgumentParser) -> None:
    """Add where to sign, with which key, and where the signed order goes."""
    add_node(parser)
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="the distributor's sealing key, 64 hex digits (default: that of DIR)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="write the signed order here, and send nothing (`meterctl order send FILE`)",
    )
    add_unheard(parser)
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    add_json(parser)


def add_unheard(parser: argparse.ArgumentParser) -> None:
    """Add `--unheard`."""
    parser.add_argument(
        "--unheard",
        action="store_true",
        help="even where the peer process has not heard a quorum lately; not after a restored"
        " backup",
    )
