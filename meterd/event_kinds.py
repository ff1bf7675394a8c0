"""Every kind of event that an account has, what it means, and which of them bear on security.

Classes are those of row E1 of REQUIREMENTS.md. An alarm is one kind of event with the alarm's name
among its details, so that its class is that of the alarm. No detail of any event holds a person:
the id of a technician's certificate is a pseudonym by contract, and what a stranger typed is left
out.

>>> KINDS["case_opened"].area, class_of("alarm", {"alarm": "case"}), class_of("sealed", {})
('tamper', 'tamper', '')
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

SECURITY = (
    "login",
    "failed login",
    "configuration",
    "key",
    "update",
    "tamper",
    "start",
    "stop",
    "clock",
    "storage",
    "order",
)
METERING = ""  # of what concerns the readings, and the account's own bookkeeping


class Kind(NamedTuple):
    """One kind of event.

    Attributes:
        area: Of `SECURITY`, or `METERING`.
        meaning: What has happened, for people; a clause.
    """

    area: str
    meaning: str


KINDS = {
    # --- who came ---
    "technician_entered": Kind("login", "a technician came in: certificate, key, address"),
    "technician_left": Kind("login", "a technician's session ended"),
    "technician_command": Kind("configuration", "a technician is about to change something"),
    "login_refused": Kind("failed login", "somebody was not let in; `untold`: others besides"),
    # --- what it runs with ---
    "started": Kind("start", "the daemon started: software, settings, keys, boot"),
    "stopped": Kind("stop", "the daemon stopped as it was told to"),
    "power_lost": Kind("stop", "the run before ended without a word, and the machine with it"),
    "died": Kind("stop", "the run before ended without a word, the machine ran on"),
    "refused": Kind("update", "the daemon refused to start: its software was changed"),
    "software_updated": Kind("update", "the software is another than that of the run before"),
    "configuration": Kind("configuration", "the settings' file is another than the run before had"),
    "parameters": Kind("configuration", "what bears on measurement has changed: the new record"),
    "key_made": Kind("key", "a sealing key is held that the run before did not hold"),
    "key_moved": Kind("key", "a sealing key is kept elsewhere: taken into the vault"),
    "key_gone": Kind("key", "a sealing key is held no more"),
    "key_rotated": Kind("key", "an order has put another sealing key in force"),
    "order": Kind("order", "an order of the distributor is in force, with its certificate"),
    "commissioned": Kind("configuration", "taken into service: parameters change by command alone"),
    "failed": Kind("stop", "an earlier run ended, or did not start, by a failure that is named"),
    # --- whose data, by pseudonym ---
    "vault_put": Kind("configuration", "a person's record was kept in the vault"),
    "vault_read": Kind("login", "a person's records were asked for, with the passphrase"),
    "vault_refused": Kind("failed login", "they were asked for with a wrong passphrase"),
    "vault_rotated": Kind("key", "a key of the vault was drawn anew"),
    "vault_erased": Kind("key", "a person's key was destroyed, and the records with it"),
    # --- hands on the meter ---
    "case_opened": Kind("tamper", "the case was opened"),
    "case_closed": Kind("tamper", "the case was closed"),
    "case_opened_while_off": Kind("tamper", "the case was opened while the meter was off"),
    "case_closed_while_off": Kind("tamper", "the case was closed while the meter was off"),
    "case_acknowledged": Kind("tamper", "somebody looked, and acknowledged that it was opened"),
    "magnet": Kind("tamper", "a magnet is at the meter"),
    "magnet_gone": Kind("tamper", "the magnet is gone"),
    "pins_forgotten": Kind("tamper", "what was kept of the pins cannot be read"),
    "relay_ordered": Kind("configuration", "the disconnect relay is to be set"),
    "relay_confirmed": Kind("configuration", "the relay's pin is as it was ordered"),
    "button": Kind(METERING, "the button was pressed"),
    # --- the clock ---
    "clock_set": Kind("clock", "wall time is known from here on"),
    "clock_stepped": Kind("clock", "wall time was set to another"),
    "clock_held": Kind("clock", "wall time went far ahead: watched, whether it stays"),
    "clock_went_back": Kind("clock", "wall time came back from far ahead"),
    "clock_status": Kind("clock", "how well the clock is synchronised has changed"),
    # --- the card ---
    "torn_tail": Kind("storage", "bytes at the end of a stream that count for nothing"),
    "checkpoint_lost": Kind("storage", "the checkpoint could not be used; all was verified"),
    "recovered": Kind("storage", "the account begins anew behind what neighbours gave back"),
    "pruned": Kind("storage", "a segment of samples goes, under the meter's seal"),
    "sealed": Kind(METERING, "a block was sealed"),
    "counted": Kind(METERING, "lines of the board that were dropped, by kind"),
    # --- the board ---
    "port_opened": Kind(METERING, "the board's port is open"),
    "port_waiting": Kind(METERING, "the board's port cannot be opened yet"),
    "port_lost": Kind(METERING, "the board's port is lost: see the cable"),
    "port_silent": Kind(METERING, "the board says nothing"),
    "port_speaks": Kind(METERING, "the board speaks again"),
    # --- the network, by the peer process's word ---
    "peer_says": Kind(METERING, "what the peer process claims of the network"),
    # --- alarms: their class is the alarm's ---
    "alarm": Kind(METERING, "an alarm stands, named in `alarm`"),
    "alarm_over": Kind(METERING, "that alarm stands no more"),
}
"""Each kind of event."""

ALARMS = {
    "case": "tamper",
    "magnet": "tamper",
    "case_switch_stuck": "tamper",
    "magnet_stuck": "tamper",
    "button_stuck": METERING,
    "gpio": "tamper",  # without its pins a meter does not see its case
    "relay": "tamper",
    "clock": "clock",
    "storage_full": "storage",
    "storage_low": "storage",
    "software_changed": "update",
    "neighbours": "order",
    "port": "tamper",  # the board is part of the meter: whoever unplugs it stops the counting
    "parameters": "configuration",
    "undervoltage": METERING,
    "no_broker": METERING,
    "certificate_expired": "key",
    "frozen": METERING,
    "adaptor_out": METERING,
    "cadence": METERING,
    "garbage": METERING,
    "layout": METERING,
}
"""The class of each alarm."""


def class_of(kind: str, details: Mapping[str, object]) -> str:
    """Return the class of an event, of `SECURITY`; empty for what does not bear on security.

    A kind or an alarm that is not known, of a newer version, counts as tampering: it is shown.
    """
    if kind in {"alarm", "alarm_over"}:
        return ALARMS.get(str(details.get("alarm")), "tamper")
    known = KINDS.get(kind)
    return known.area if known else "tamper"
