r"""Public keys that people give, and private ones that they give by mistake.

Both are 32 bytes, and a private key that is taken for a public one ends in the account, for ever.
A public key is a point of Ed25519's group (RFC 8032 section 5.1.5); of arbitrary bytes one in
sixteen is. What `draw_private` returns never is, so that a key of ours is always told.

>>> public_key("5f" * 32, "--owner")
Traceback (most recent call last):
    ...
meterd.errors.UsageError: --owner: this is a private key, or none at all
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nacl.bindings import crypto_core_ed25519_is_valid_point

from meterd.ctl.options import hex_bytes
from meterd.errors import UsageError
from meterd.ledger.encoding import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

SUFFIX = ".pub"  # as ssh-keygen names the file beside a private key
FILE_BYTES_MAX = 1024
HINT = (
    f"keep a private key to yourself; give the {SUFFIX} beside it, or what"
    " `meterctl calibrate key --show FILE` shows"
)


def public_key(text: str, option: str) -> bytes:
    """Return the public key that an option gives: 64 hex digits, or a file of them.

    Raises:
        UsageError: It is none, or a private one.
    """
    what, path = option, Path(text)
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long a name, a zero byte
        there = False
    if there:
        what = f"{option}: {path}"
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX)
        except OSError as error:
            raise UsageError(f"{option}: cannot read {path}: {error.strerror}") from error
        if b"PRIVATE KEY" in data:
            raise UsageError(f"{what}: this is a private key", hint=HINT)
        text = data.decode(errors="replace")
    key = hex_bytes(text, HASH_BYTES, what)
    if not crypto_core_ed25519_is_valid_point(key):
        raise UsageError(f"{what}: this is a private key, or none at all", hint=HINT)
    return key


def draw_private(draw: Callable[[int], bytes] = os.urandom) -> bytes:
    """Return a new private key, such that it can never be taken for a public one.

    One in sixteen is drawn again, which takes a tenth of a bit from 256.
    """
    while crypto_core_ed25519_is_valid_point(seed := draw(HASH_BYTES)):
        pass
    return seed
