"""Who came to the meter, and who was not let in: events of the account.

The account is for ever and a card is small, so whatever strangers can bring about is rationed: a
few events at once and then one in a while, which says how many were left out. A technician's login
is never left out in silence: past its ration it is refused, and a session without its event may
only look.

A certificate's id is a pseudonym by contract between utility and technicians; the name that a
stranger typed may be a person's, or a password, and is no detail of any event.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from typing import TYPE_CHECKING

from meterd.device.systemd import log_event
from meterd.errors import BusyError, UsageError
from meterd.pins import EVENT_EVERY_MS, EVENTS_AT_ONCE, Ration

if TYPE_CHECKING:
    from meterd.bookkeeper import Bookkeeper
    from meterd.device.clock import Clock
    from meterd.device.control_access import Refused, Technician
    from meterd.ledger.event import Details

LETTERS_MAX = 400  # of any text that a caller brings: a line of a session has no more
SERIAL_MAX = 2**64 - 1  # sshd's own
KNOWN_MAX = 64  # refused connections that are known again, should the watcher repeat its last
SECONDS_MAX = 2**40  # the year 36812
ACCOUNTS = frozenset({"technician", "root", "other"})
_REASON = re.compile(r"[a-z_]{1,32}")
_COMMANDS_AT_ONCE_HINT = (
    f"{EVENTS_AT_ONCE} are taken at once, then one each {EVENT_EVERY_MS // 1000} s: wait, try again"
)


class Access:
    """Writes down who came to one meter.

    Attributes:
        untold: Refused logins that no event tells of yet.
        inside: Sessions whose end is still to come.
    """

    def __init__(
        self, book: Bookkeeper, clock: Clock, logger: logging.Logger, *, inside: int = 0
    ) -> None:
        """Begin with all of each ration, and so many sessions that go on."""
        self._book, self._clock, self._logger = book, clock, logger
        self._refusals, self._visits = Ration(), Ration()
        self._known = deque[str](maxlen=KNOWN_MAX)
        self.inside = inside
        self.untold = 0
        self._last: Details = ()
        self._ended = False

    def login(self, who: Technician, key: str, source: str) -> None:
        """Append the event that a session has begun.

        Raises:
            BusyError: There were too many of late.
            UsageError: A text is none of ours.
        """
        details = (*as_details(who), ("key", _plain(key)), ("source", _plain(source)))
        self._take("logins")
        self.inside += 1
        self._event("technician_entered", details)

    def left(self, who: Technician, source: str) -> bool:
        """Append the event that a session has ended, if one has begun since the process did."""
        details = (*as_details(who), ("source", _plain(source)))
        if not self.inside:
            return False
        self.inside -= 1
        self._event("technician_left", details)
        return True

    def command(self, who: Technician, command: str) -> None:
        """Append the event that something is about to be changed.

        Raises:
            BusyError: There were too many of late.
            UsageError: A text is none of ours.
        """
        details = (*as_details(who), ("command", _plain(command)))
        self._take("commands")
        self._event("technician_command", details)

    def refused(self, who: Refused) -> bool:
        """Append, or count, that somebody was not let in; return whether it is an event.

        Raises:
            BusyError: The meter stops, and what it counted has been told: the next one hears this.
            UsageError: A word is none of ours.
        """
        key, account, reason, source, at_s = who
        if account not in ACCOUNTS or not _REASON.fullmatch(reason):
            raise UsageError(f"no refusal is called {account[:20]!r}, {reason[:20]!r}")
        if not 0 <= at_s <= SECONDS_MAX:
            raise UsageError(f"expected Unix seconds, got {at_s}")
        details = (
            *(("account", account), ("reason", reason)),
            *(("source", _plain(source)), ("at_s", at_s)),
        )
        if self._ended:
            raise BusyError("the meter stops", hint="tell it to the next one")
        if _plain(key) in self._known:
            return True
        self._known.append(key)
        if self.untold or not self._refusals.take(self._now_ms()):
            self.untold, self._last = self.untold + 1, details
            return False
        self._event("login_refused", details)
        return True

    def turn(self) -> None:
        """Tell of those that were counted, once there is a ration for it again."""
        if self.untold and self._refusals.take(self._now_ms()):
            self._tell_counted()

    def end(self) -> None:
        """Tell of those that were counted, and take no more: nobody would be told of them."""
        self._ended = True
        self._tell_counted()

    def _tell_counted(self) -> None:
        """Tell of those that were counted: the last, and how many besides."""
        if self.untold:
            untold, self.untold = self.untold - 1, 0
            more: Details = (("untold", untold),) if untold else ()
            self._event("login_refused", (*self._last, *more))

    def _take(self, what: str) -> None:
        if not self._visits.take(self._now_ms()):
            raise BusyError(f"too many {what} to write each down", hint=_COMMANDS_AT_ONCE_HINT)

    def _event(self, kind: str, details: Details) -> None:
        self._book.stamp(self._clock.stamp())
        self._book.event(kind, details)
        if kind == "login_refused":  # a session's own is in the journal already, by the session
            log_event(self._logger, logging.INFO, kind, **dict(details))

    def _now_ms(self) -> int:
        return self._clock.stamp().boot_ms


def as_details(who: Technician) -> Details:
    """Return who somebody is, as an event says it."""
    if not 0 <= who.serial <= SERIAL_MAX:
        raise UsageError(f"expected the serial number of a certificate, got {who.serial}")
    if not who.certificate:
        return (("by", who.role),)
    return (("certificate", _plain(who.certificate)), ("serial", who.serial))


def _plain(text: str) -> str:
    """Return a text that a caller brings, if it is short and nothing in it is unseen.

    Raises:
        UsageError: It is not.
    """
    if len(text) > LETTERS_MAX or not (text.isascii() and text.isprintable()):
        raise UsageError(
            f"expected at most {LETTERS_MAX} plain letters, got {text[:LETTERS_MAX]!a}"
        )
    return text
