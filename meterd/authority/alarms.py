"""What meters tell of themselves: the last alarm of each, and what follows from a new one.

A meter's alarms come on its own branch, under its own key, with numbers that only rise; each says
all that stands, so the last one is kept and nothing else. What is lost on the way is repaired by
repetition: this device's meter's last alarm is published anew with each connection and now and
then, retained for whoever subscribes later. Nobody votes by alarms and no block depends on one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nacl.signing import VerifyKey

from meterd.authority.effects import PutAlarm, Send, Taken
from meterd.authority.roster import OrderUnknownError
from meterd.authority.witness import ChainEndedError
from meterd.errors import BlockRejectedError, EncodingError
from meterd.ledger.alarm import RAISED, decode_alarm
from meterd.ledger.encoding import key_id, take_apart, verify_seal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterd.authority.effects import Alarmed
    from meterd.authority.node import Node
    from meterd.authority.roster import Roster
    from meterd.ledger.alarm import Alarm, Standing
    from meterd.ledger.encoding import Sealed as Parts

TOPIC = "alarm"
AGAIN_MS = (
    600_000  # said again so often, give or take half: a broker may have lost what it retained
)
CONNECTED_MS = 500  # ... and within so long of a connection: not all of a street at once
AT_ONCE = 32  # alarms taken of one meter; it tells 16 at once ...
EVERY_MS = 5000  # ... and one in ten seconds from then on; who floods writes our card no faster


def verify_alarm(message: bytes, roster: Roster) -> Alarm:
    """Return the alarm in `message`, from outside, sealed by the meter that it names.

    Whoever is no node verifies by the genesis alone, `found(genesis)`, or with the orders it knows.
    The seal alone is no proof of freshness: numbers of one meter and incarnation only rise.

    Args:
        message: A COSE_Sign1.
        roster: Genesis and the certified orders.

    Raises:
        EncodingError: It is misspelt.
        BlockRejectedError: No meter is called so, or it is not sealed by its present key.
        OrderUnknownError: It is of an incarnation that no order here has opened yet.
        ChainEndedError: Its seal holds, of a chain that an order has ended or revoked.
    """
    parts = take_apart(message)
    alarm = decode_alarm(parts.payload)
    _verify(alarm, parts, roster)
    return alarm


def _verify(alarm: Alarm, parts: Parts, roster: Roster) -> None:
    newest = roster.newest(alarm.meter)
    if newest is not None and alarm.incarnation > newest.incarnation:
        raise OrderUnknownError(f"incarnation {alarm.incarnation} of {alarm.meter} is unknown here")
    chain_id = (alarm.meter, alarm.incarnation)
    enrolled = roster.chains.get(chain_id)
    if enrolled is None or newest is None or chain_id == roster.distributor:
        raise BlockRejectedError(f"{alarm.meter} ({alarm.incarnation}) is no meter")
    # The present key and no other: whoever has one that was rotated out may have stolen it. A meter
    # that has not heard of the order yet says all of it again under the new key.
    verify_seal(parts, VerifyKey(enrolled.keys[-1][1]), roster.genesis)
    if enrolled is not newest or enrolled.closed or enrolled.revoked:
        raise ChainEndedError(f"an order has ended {alarm.meter} ({alarm.incarnation})")


class Allowance:
    """How many alarms of one meter are taken: some at once, then one in a while."""

    __slots__ = ("_left", "_since_ms")

    def __init__(self, mono_ms: int) -> None:
        """Begin with all of it."""
        self._left, self._since_ms = AT_ONCE, mono_ms

    def take(self, mono_ms: int) -> bool:
        """Take one, if there is one."""
        more = (mono_ms - self._since_ms) // EVERY_MS
        self._left, self._since_ms = (
            min(self._left + more, AT_ONCE),
            self._since_ms + more * EVERY_MS,
        )
        if not self._left:
            return False
        self._left -= 1
        return True


class Alarms:
    """The last alarm of each meter, as one node knows it.

    Attributes:
        last: By meter: the alarm, and the message that it came in.
    """

    def __init__(self, node: Node, kept: Iterable[bytes]) -> None:
        """Go on from what the store holds; what its meter's key does not seal any more is left."""
        self._node = node
        self.last: dict[str, tuple[Alarm, bytes]] = {}
        self._kept = tuple(kept)
        self._allowances: dict[str, Allowance] = {}
        self._again_ms: int | None = None  # before the first connection nobody would hear it
        self._letter = ""  # in which our meter's last one lies
        self._early = ""  # the last letter that came before an order that it rests on

    def restore(self) -> None:
        """Take what the store holds, once the orders that it holds are in force."""
        for message in self._kept:
            try:
                alarm = verify_alarm(message, self._node.roster)
            except (BlockRejectedError, EncodingError):
                continue
            self.last[alarm.meter] = (alarm, message)

    # --- what comes -------------------------------------------------------------------------

    def take(self, sender: str, message: bytes, parts: Parts) -> None:
        """Take an alarm that came on the branch of `sender`.

        Raises:
            EncodingError: It is misspelt.
            BlockRejectedError: It is another meter's, or not sealed as `verify_alarm` says.
        """
        alarm = decode_alarm(parts.payload)
        if alarm.meter != sender:
            raise BlockRejectedError(f"an alarm of {alarm.meter} on the branch of {sender}")
        if self._repeats(message, alarm):
            return
        self._check(alarm, parts)
        mono_ms = self._node.now.mono_ms
        allowance = self._allowances.setdefault(sender, Allowance(mono_ms))
        if not self._is_fresh(alarm):
            self._node.count("replayed")
        elif allowance.take(mono_ms):
            self._keep(alarm, message)
        else:
            self._node.count("alarms_dropped")  # it is said again, as the newest or after it

    def _repeats(self, message: bytes, alarm: Alarm) -> bool:
        known = self.last.get(alarm.meter)
        return known is not None and known[1] == message

    def _check(self, alarm: Alarm, parts: Parts) -> None:
        """Verify the seal; who knows an order that is not in force here yet does no wrong."""
        node = self._node
        here, coming = node.roster.newest(alarm.meter), node.latest().newest(alarm.meter)
        if here is None and alarm.meter == node.meter:
            raise OrderUnknownError("its enrolment is not known here")
        renewed = here and coming and here.keys[-1] != coming.keys[-1]
        if renewed and coming and key_id(coming.keys[-1][1]) == parts.kid:
            raise OrderUnknownError("its key is not in force here yet")
        _verify(alarm, parts, node.roster)

    def _is_fresh(self, alarm: Alarm) -> bool:
        """Say whether an alarm is newer than the last, or the same under another seal."""
        known = self.last.get(alarm.meter)
        if known is None or alarm.incarnation > known[0].incarnation:
            return True
        return alarm.number > known[0].number or alarm == known[0]

    def _keep(self, alarm: Alarm, message: bytes) -> None:
        known = self.last.get(alarm.meter)
        self.last[alarm.meter] = (alarm, message)
        self._node.records.append(PutAlarm(alarm.meter, message))
        if alarm.meter == self._node.name:
            return  # its own journal has said so
        before = {(one.word, one.number): one for one in known[0].standing} if known else {}
        after = {(one.word, one.number): one for one in alarm.standing}
        untold = {"untold": alarm.untold} if alarm.untold else {}
        for key, one in after.items():
            if key not in before:
                self._tell(1, "neighbour_alarm", alarm, one, **untold)
        for word in {word for word, _ in before} - {word for word, _ in after}:
            self._node.tell(0, "neighbour_alarm_over", meter=alarm.meter, alarm=word, **untold)
        if alarm.kind not in {RAISED, "alarm_over"} and (known is None or alarm != known[0]):
            self._node.tell(0, "neighbour_event", meter=alarm.meter, kind=alarm.kind, **untold)

    def _tell(self, level: int, event: str, alarm: Alarm, one: Standing, **more: int) -> None:
        self._node.tell(level, event, meter=alarm.meter, alarm=one.word, number=one.number, **more)

    # --- this device's meter ----------------------------------------------------------------

    def offer(self, alarmed: Alarmed) -> None:
        """Take what this device's meter tells, and tell everybody.

        The letter of the newest lies on: whoever loses the store has it from there.
        """
        node = self._node
        try:
            parts = take_apart(alarmed.message)
            alarm = decode_alarm(parts.payload)
            if alarm.meter != node.meter:
                raise BlockRejectedError(f"an alarm of {alarm.meter} in the outbox")  # noqa: TRY301
            self._check(alarm, parts)
        except OrderUnknownError:
            self._early = alarmed.name
            return
        except (BlockRejectedError, EncodingError) as error:
            if not isinstance(error, ChainEndedError):
                node.tell(2, "own_alarm_refused", reason=str(error))
            node.out.append(Taken(alarmed.name))
            return
        repeated = self._repeats(alarmed.message, alarm)
        if not repeated and not self._is_fresh(alarm):
            node.count("own_alarm_old")
            node.out.append(Taken(alarmed.name))
            return
        if not repeated:
            self._keep(alarm, alarmed.message)
            self._say()
        if self._letter not in {"", alarmed.name}:
            node.out.append(Taken(self._letter))
        self._letter, self._early = alarmed.name, ""

    def wants(self, name: str) -> bool:
        """Say whether a letter that was offered before is to be offered again."""
        return name == self._early

    def _say(self) -> None:
        node = self._node
        known = self.last.get(node.meter)
        self._again_ms = node.now.mono_ms + AGAIN_MS // 2 + node.jitter(AGAIN_MS)
        if known is not None:
            node.out.append(Send(TOPIC, known[1], retain=True))

    def connected(self) -> None:
        """A broker can be reached again: what it retained may be lost."""
        at_ms = self._node.now.mono_ms + self._node.jitter(CONNECTED_MS)
        self._again_ms = at_ms if self._again_ms is None else min(self._again_ms, at_ms)

    def turn(self) -> None:
        """Say it again, where it is time to."""
        if self._again_ms is not None and self._node.now.mono_ms >= self._again_ms:
            self._say()

    # --- what is shown ----------------------------------------------------------------------

    def shown(self) -> list[dict[str, Any]]:
        """Return the last alarm of each meter whose chain goes on, for people and scripts."""
        roster, result = self._node.roster, []
        for meter, (alarm, _) in sorted(self.last.items()):
            newest = roster.newest(meter)
            if newest is None or newest.incarnation != alarm.incarnation:
                continue
            if newest.closed or newest.revoked:
                continue
            result.append(
                {
                    "name": meter,
                    "incarnation": alarm.incarnation,
                    "number": alarm.number,
                    "wall_ms": alarm.wall_ms,
                    "kind": alarm.kind,
                    "alarm": alarm.word,
                    "untold": alarm.untold,
                    "standing": [
                        {"alarm": one.word, "number": one.number, "since_ms": one.since_ms}
                        for one in alarm.standing
                    ],
                }
            )
        return result
