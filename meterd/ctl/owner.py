"""Writes into an account as its owner: files of root would lock the daemon out."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """As root, have the rights of the folder's owner and no more; as anybody else, one's own."""
    if os.geteuid() != 0 or not folder.is_dir():
        yield
        return
    owner = folder.stat()
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
