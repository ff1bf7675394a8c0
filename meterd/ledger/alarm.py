"""What a meter tells others of its events: the last one, and which alarms stand.

An alarm says nothing of energy. It is sealed with the meter's own key, so that nobody else can
raise one in its name or silence it by another; its number is that of the event in the account, so
that it never goes back, over restarts too, and whoever misses one can ask for it in the sealed log.
Each says all that stands: the newest is enough, whatever was lost before it. It has words and
numbers alone, and no room for a detail: no person, no reading.

>>> alarm = Alarm(meter="kitchen-12", incarnation=1, number=7, wall_ms=0, kind="alarm",
...               word="case", untold=0, standing=(Standing("case", 7, 0),))
>>> decode_alarm(alarm.encode()) == alarm
True
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from nacl.signing import VerifyKey

from meterd.errors import EncodingError
from meterd.ledger.account import NAME, shaped
from meterd.ledger.encoding import decode, encode, seal, take_apart, verify_seal

if TYPE_CHECKING:
    from nacl.signing import SigningKey

ALARM_CONTEXT = "meterd/alarm/v1"
STANDING_MAX = 32  # there are some twenty alarms
ALARM_BYTES_MAX = 2048  # of the payload: 160 bytes, and 53 for each alarm that stands
WORD = re.compile(r"[a-z_]{1,32}")
RAISED, OVER = "alarm", "alarm_over"  # kinds of events that have an alarm's word


class Standing(NamedTuple):
    """An alarm that stands.

    Attributes:
        word: Which, as the meter's own events name it.
        number: Of the event that raised it.
        since_ms: Wall clock of that event, right or wrong; ms since 1970.
    """

    word: str
    number: int
    since_ms: int


class Alarm(NamedTuple):
    """An event that others are told of, and the alarms that stand behind it.

    Attributes:
        meter: Whose.
        incarnation: Which of its chains the event is counted on.
        number: The event's.
        wall_ms: Wall clock as it stood then, right or wrong; ms since 1970.
        kind: The event's: `alarm`, `alarm_over`, `started`, `case_opened` …
        word: Which alarm, where the kind is one of the first two; else empty.
        untold: How many such events since the message before are told by none.
        standing: What stands, ascending by word.
    """

    meter: str
    incarnation: int
    number: int
    wall_ms: int
    kind: str
    word: str
    untold: int
    standing: tuple[Standing, ...]

    def encode(self) -> bytes:
        """Return the canonical bytes: what is sealed.

        Raises:
            EncodingError: Something of it has no place in the format, or contradicts the rest.
        """
        _check(self)
        return encode([ALARM_CONTEXT, *self[:-1], [list(one) for one in self.standing]])


def _check(alarm: Alarm) -> None:
    if not NAME.fullmatch(alarm.meter) or alarm.incarnation < 1 or alarm.number < 1:
        raise EncodingError("the alarm is of no meter, of no incarnation, or of no event")
    words = [one.word for one in alarm.standing]
    spoken = alarm.kind in {RAISED, OVER}
    named = (alarm.kind, *words, *((alarm.word,) if spoken else ()))
    if not all(map(WORD.fullmatch, named)) or (alarm.word and not spoken):
        raise EncodingError("the alarm has a word that is none, or one too many")
    if len(words) > STANDING_MAX or any(one >= other for one, other in pairwise(words)):
        raise EncodingError(f"more than {STANDING_MAX} alarms stand, or they are in disorder")
    numbers = {one.word: one.number for one in alarm.standing}
    if not all(0 < number <= alarm.number for number in numbers.values()):
        raise EncodingError("an alarm stands since an event that is none, or is yet to come")
    raised = numbers.get(alarm.word)
    if (alarm.kind == RAISED and raised != alarm.number) or (alarm.kind == OVER and raised):
        raise EncodingError("what stands is not what the event says")


def decode_alarm(data: bytes) -> Alarm:
    """Return the alarm that `data`, bytes from outside, spells; whose seal is another question.

    Raises:
        EncodingError: Not an alarm of this version, or it contradicts itself.
    """
    value = decode(data, bytes_max=ALARM_BYTES_MAX)
    if not shaped(value, str, str, int, int, int, str, str, int, tuple):
        raise EncodingError("not an alarm")
    context, meter, incarnation, number, wall_ms, kind, word, untold, standing = value
    if context != ALARM_CONTEXT:
        raise EncodingError(f"expected {ALARM_CONTEXT}, got {context[:40]}")
    if not all(shaped(one, str, int, int) for one in standing):
        raise EncodingError("an alarm that stands is misshapen")
    stand = tuple(Standing(*one) for one in standing)
    alarm = Alarm(meter, incarnation, number, wall_ms, kind, word, untold, stand)
    _check(alarm)
    return alarm


def seal_alarm(alarm: Alarm, key: SigningKey, genesis: bytes) -> bytes:
    """Return the COSE_Sign1 of an alarm under the meter's sealing key.

    Args:
        alarm: What to tell.
        key: The meter's sealing key.
        genesis: Hash of the network's genesis.

    Raises:
        EncodingError: The alarm has no spelling.
    """
    return seal(alarm.encode(), key, genesis)


def open_alarm(message: bytes, key: bytes, genesis: bytes) -> Alarm:
    """Return the alarm in `message`, from outside, its seal verified under a known key.

    Args:
        message: A COSE_Sign1.
        key: Public sealing key of the meter that the caller takes it for.
        genesis: Hash of the network's genesis.

    Raises:
        EncodingError: It is misspelt.
        BlockRejectedError: It is not sealed by this key, or for another network.
    """
    parts = take_apart(message)
    alarm = decode_alarm(parts.payload)
    verify_seal(parts, VerifyKey(key), genesis)
    return alarm
