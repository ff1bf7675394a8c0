"""Whose session a command runs in: what `meterd-session` tells `meterctl`, for the record.

It is a hint, and trusted as far as the control socket's group is: whoever may call at all may put
any name there, and what they may do comes from the kernel.

>>> technician({"METERD_TECHNICIAN": spell("jo", 17)}), technician({})
({'certificate': 'jo', 'serial': 17}, {})
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from meterd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "METERD_TECHNICIAN"


def spell(certificate: str, serial: int) -> str:
    """Return the variable's value for a session; ids of certificates may have slashes."""
    return f"{certificate}/{serial}"


def technician(environ: Mapping[str, str] = os.environ) -> dict[str, str | int]:
    """Return certificate and serial as the daemon's methods take them; nothing outside a session.

    Raises:
        UsageError: The variable is there, and is not what a session sets.
    """
    value = environ.get(VARIABLE)
    if not value:
        return {}
    certificate, _, serial = value.rpartition("/")
    if not certificate or not (serial.isascii() and serial.isdecimal()):
        raise UsageError(
            f"${VARIABLE} is not a certificate's id and serial: {value[:60]!a}",
            hint=f"unset {VARIABLE}: a technician's session sets it",
        )
    return {"certificate": certificate, "serial": int(serial)}


def inside(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this is a technician's session: no root there, and a closed list of commands.

    >>> inside({VARIABLE: spell("jo", 17)}), inside({})
    (True, False)
    """
    return bool(environ.get(VARIABLE))
