"""How much of a sender is looked at: caps by bytes and messages, and quarantine for nonsense.

A sender is a topic, as the broker says: who floods in another's name can delay that one, no more.
"""

from __future__ import annotations

from typing import NamedTuple

FAULTS_MAX = 20  # refused messages within ...
FAULTS_MS = 60_000  # ... a minute put a sender's topic into quarantine for as long


class Settings(NamedTuple):
    """How a node paces itself.

    Attributes:
        tick_ms: Batches are signed at most so often; 0 signs each attestation at once.
        digest_ms: A digest is sent so often, give or take half.
        bytes_s_max: Bytes a second taken of one sender; beyond it they are dropped.
        messages_s_max: Messages a second, likewise.
        answers_s_max: Bytes a second that are read and sent for one who asks.
    """

    tick_ms: int = 500
    digest_ms: int = 5000
    bytes_s_max: int = 10_000_000  # of one who answers a node that was off for long
    messages_s_max: int = 5000
    answers_s_max: int = 10_000_000  # as much as it may send us


PACED = Settings()


class Sender:
    """What a sender's topic has brought lately."""

    __slots__ = (
        "answers",
        "answers_ms",
        "bytes",
        "faults",
        "faults_ms",
        "filled_ms",
        "messages",
        "quarantined_ms",
    )

    def __init__(self, settings: Settings, mono_ms: int) -> None:
        """Begin with two seconds' worth."""
        self.bytes = settings.bytes_s_max * 2
        self.messages = settings.messages_s_max * 2
        self.answers = settings.answers_s_max * 2
        self.filled_ms = self.answers_ms = mono_ms
        self.faults = 0
        self.faults_ms = mono_ms
        self.quarantined_ms = 0

    def admit(self, length: int, settings: Settings, mono_ms: int) -> bool:
        """Say whether a message may be looked at; two seconds' worth may come at once."""
        passed_ms = mono_ms - self.filled_ms
        if passed_ms > 0:
            self.filled_ms = mono_ms
            more = settings.bytes_s_max * passed_ms // 1000
            self.bytes = min(self.bytes + more, settings.bytes_s_max * 2)
            more = settings.messages_s_max * passed_ms // 1000
            self.messages = min(self.messages + more, settings.messages_s_max * 2)
        if mono_ms < self.quarantined_ms or self.bytes < length or self.messages < 1:
            return False
        self.bytes -= length
        self.messages -= 1
        return True

    def ask(self, cost: int, settings: Settings, mono_ms: int) -> bool:
        """Say whether a question may be answered that makes at most `cost` bytes.

        A question is short and its answer is not: whoever asks for all at once would have us read
        and send a thousand times what it sends.
        """
        passed_ms = max(mono_ms - self.answers_ms, 0)
        self.answers_ms = mono_ms
        more = settings.answers_s_max * passed_ms // 1000
        self.answers = min(self.answers + more, settings.answers_s_max * 2)
        if self.answers < cost:
            return False
        self.answers -= cost
        return True

    def fault(self, mono_ms: int) -> bool:
        """Count a refused message; say whether the sender goes into quarantine for it."""
        if mono_ms - self.faults_ms > FAULTS_MS:
            self.faults, self.faults_ms = 0, mono_ms
        self.faults += 1
        if self.faults < FAULTS_MAX:
            return False
        self.faults, self.quarantined_ms = 0, mono_ms + FAULTS_MS
        return True
