"""Stands for systemd-creds where there is none: what it encrypts goes with its name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PROGRAM = """#!/bin/sh
name=${2#--name=}
case $1 in
encrypt) { echo "$name"; cat; } > "$5" ;;
decrypt)
    [ "$(head -n 1 "$3")" = "$name" ] || { echo "another name" >&2; exit 1; }
    tail -n +2 "$3"
    ;;
esac
"""


def as_root_with_creds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be root, as far as the code asks, on a machine that has it; return a store for its files."""
    program = folder / "bin" / "systemd-creds"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for call in ("seteuid", "setegid"):
        monkeypatch.setattr(os, call, lambda _number: None)
    return folder / "store"
