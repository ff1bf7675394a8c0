"""The kinds of orders that `meterctl order` signs, and how each becomes a change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meterd.ctl import order_meter, order_street

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from meterd.ctl.order_desk import Desk
    from meterd.ledger.order import Change


def add_kinds(actions: Any) -> None:  # noqa: ANN401 - argparse hides the type
    """Add the kinds of orders to `meterctl order`."""
    order_meter.add_enrol(actions)
    order_meter.add_replace(actions)
    order_meter.add_rotate(actions)
    order_meter.add_revoke(actions)
    order_street.add_roster(actions)
    order_meter.add_fork_resolve(actions)
    order_street.add_interval(actions)


CHANGES: dict[str, Callable[[Desk, argparse.Namespace], tuple[Change, int | None]]] = {
    "enrol": order_meter.enrol_change,
    "replace": order_meter.replace_change,
    "rotate": order_meter.rotate_change,
    "revoke": order_meter.revoke_change,
    "roster": order_street.roster_change,
    "fork-resolve": order_meter.fork_resolve_change,
    "interval": order_street.interval_change,
}
"""What the order of each kind changes, and from when money and intervals follow it."""
