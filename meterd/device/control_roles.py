"""Who may ask the daemon for what: a closed list of methods, each with the roles that have it.

There are two roles, and the kernel says which one somebody has: whoever connects as root, or as the
daemon's own user, is the operator; whoever else gets in at all does so as a member of the socket's
group (`meterd-control`) and is a technician. A method without a line here is the operator's alone.

>>> role_of(0, own_uid=998), role_of(998, own_uid=998), role_of(65534, own_uid=998)
('operator', 'operator', 'technician')
>>> may("technician", "Status"), may("technician", "Prune"), may("technician", "Unheard")
(True, False, False)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncvarlink import VarlinkInterfaceRegistry
from asyncvarlink.serviceinterface import PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncvarlink import VarlinkMethodCall, VarlinkMethodSignature

DESCRIBES = "org.varlink.service"  # says which interfaces there are
OPERATOR = "operator"
TECHNICIAN = "technician"
_BOTH = frozenset({OPERATOR, TECHNICIAN})
_OPERATOR = frozenset({OPERATOR})

ROLES = {
    "Status": _BOTH,
    "Registers": _BOTH,
    "Live": _BOTH,
    "Events": _BOTH,
    "Login": _BOTH,
    "Left": _BOTH,
    "Command": _BOTH,
    "LoginRefused": _BOTH,
    "CaseAcknowledge": _BOTH,
    "Relay": _BOTH,
    "RelaySet": _OPERATOR,  # a household's power is the distributor's to cut, and root's to try
    "Report": _BOTH,
    "VaultList": _BOTH,
    "VaultTake": _BOTH,  # still sealed, and by the person's passphrase alone
    "VaultKeep": _OPERATOR,
    "VaultRotate": _OPERATOR,
    "VaultErase": _OPERATOR,
    "Show": _BOTH,
    "Clamps": _BOTH,
    "Change": _BOTH,  # it is signed, and judged by that
    "Commission": _BOTH,  # where an owner is to be named it is the operator's: `may_commission`
    "Prune": _OPERATOR,  # samples exist on this card only
}
"""Each method of our interfaces, and who has it."""


def role_of(uid: int, *, own_uid: int) -> str:
    """Return the role of a user who may connect.

    Under PrivateUsers= every other user shows as 65534: never as root, and never as ourselves.
    """
    return OPERATOR if uid in (0, own_uid) else TECHNICIAN


def may(role: str, method: str) -> bool:
    """Return whether a role has a method."""
    return role in ROLES.get(method, _OPERATOR)


def may_commission(role: str, *, distributor: bool, owner: bool) -> bool:
    """Return whether a role may take a meter into service.

    Whose word changes it from then on is not a technician's to name: where a distributor gives
    orders that is settled, and else the operator names the owner.

    >>> may_commission("technician", distributor=True, owner=False)
    True
    >>> may_commission("technician", distributor=False, owner=True)
    False

    Args:
        role: Of whoever asks.
        distributor: Whether one gives orders to this meter.
        owner: Whether an owner's key is named.
    """
    return role == OPERATOR or (distributor and not owner)


class RoleRegistry(VarlinkInterfaceRegistry):
    """The interfaces as one role sees them: what it may not call is refused before it is read."""

    def __init__(self, role: str, let_listen: Callable[[], None] = lambda: None) -> None:
        """Let `role` call what the list says, and whatever describes our interfaces.

        Args:
            role: Whose calls these are.
            let_listen: Lets a stream begin that is not the operator's, or raises.
        """
        super().__init__()
        self._role, self._let_listen = role, let_listen

    def lookup_method(
        self, call: VarlinkMethodCall
    ) -> tuple[Callable[..., Any], VarlinkMethodSignature]:
        """Return what answers a call, and its signature.

        Raises:
            VarlinkErrorReply: There is no such method, or not for this role.
        """
        found = super().lookup_method(call)
        if call.method_interface != DESCRIBES and not may(self._role, call.method_name):
            raise PermissionDenied
        if call.more and self._role != OPERATOR:
            self._let_listen()
        return found
