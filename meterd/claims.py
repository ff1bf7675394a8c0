"""What the peer process says of itself, and the meter cannot see: that its network is not there.

A claim is one of a few words, and is signed by nobody: whoever has taken the peer process over can
make it. So it changes nothing but what is shown, says whose word it is, and is rationed: a few
changes at once, then one in ten minutes, however often the other process changes its mind. Where
it falls silent, its claims fall with it.

>>> claims = Claims()
>>> claims.hear(read_claims(spell_claims({"no_broker"})), now_ms=0)
>>> claims.changed(now_ms=0)
frozenset({'no_broker'})
>>> claims.changed(now_ms=SILENT_MS)
frozenset()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterd.errors import EncodingError
from meterd.pins import Ration

if TYPE_CHECKING:
    from collections.abc import Iterable

CLAIMS_BYTES_MAX = 256
REPEAT_MS = 60_000  # so often the peer process says again what it claims
SILENT_MS = 3 * REPEAT_MS  # two that were lost, and it counts as silent
CHANGES_AT_ONCE = 4
CHANGE_EVERY_MS = 600_000  # 53,000 events a year at the worst, some 3 MB

CLAIMS = {
    "certificate_expired": "the peer process says that a certificate has expired, the broker's or "
    "its own: look at both with `openssl x509 -enddate -noout -in FILE`, and at the clock; renew "
    "with `meterctl broker-config ca`",
    "no_broker": "the peer process says that it reaches no broker: look at network.brokers, at the "
    "network and at the broker; blocks are sealed, and wait to be certified",
}
"""The words there are, and what an alarm says of each."""


def spell_claims(words: Iterable[str]) -> bytes:
    """Return claims as they lie in the inbox: words between spaces, sorted."""
    return " ".join(sorted(words)).encode("ascii") + b"\n"


def read_claims(data: bytes) -> frozenset[str]:
    """Return the claims that `data` spells.

    Raises:
        EncodingError: It is too long, or has another word, or the same in another spelling.
    """
    if len(data) > CLAIMS_BYTES_MAX:
        raise EncodingError(f"claims have {len(data)} bytes, at most {CLAIMS_BYTES_MAX} are read")
    try:
        words = frozenset(data.decode("ascii").split())
    except UnicodeDecodeError as error:
        raise EncodingError("claims are not ASCII") from error
    if not words <= CLAIMS.keys() or spell_claims(words) != data:
        raise EncodingError("claims have a word that is none, or are spelt otherwise")
    return words


class Claims:
    """What the peer process claims, as far as it is told."""

    def __init__(self) -> None:
        """Begin with no claim, and nothing heard."""
        self._heard: frozenset[str] = frozenset()
        self._told: frozenset[str] = frozenset()
        self._heard_ms = 0
        self._ration = Ration(at_once=CHANGES_AT_ONCE, every_ms=CHANGE_EVERY_MS)

    def hear(self, words: frozenset[str], now_ms: int) -> None:
        """Take note of what it says now."""
        self._heard, self._heard_ms = words, now_ms

    def changed(self, now_ms: int) -> frozenset[str] | None:
        """Return what it claims, where that is another than was told last and may be told now."""
        if now_ms - self._heard_ms >= SILENT_MS:
            self._heard = frozenset()
        if self._heard == self._told or not self._ration.take(now_ms):
            return None
        self._told = self._heard
        return self._told
