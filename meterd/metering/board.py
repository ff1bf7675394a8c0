r"""The clamp board's serial protocol, with no serial port in it.

Bytes go in as they come, in pieces of any size; what comes out does not depend on how they were
cut. A line that is not a whole, plausible measurement is dropped and counted by its kind, and never
turned into a number.

>>> rules = BoardRules(
...     layout="rpict3v1",
...     fields=LAYOUTS["rpict3v1"],
...     clamps=(Clamp(name="mains", role="mains"),),
...     polling_ms=5000,
... )
>>> board = BoardDecoder(rules)
>>> board.receive(b"11 2000.0 0.0 0.0 8700.0 0.0 ", at_ms=0)
[]
>>> [reading.powers_mw for reading in board.receive(b"0.0 230.0\r\n# RPICT3\r\n", at_ms=40)]
[(2000000,)]
>>> board.dropped
{'banner': 1}
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from meterd.metering.calibration import Calibration, DroppedError
from meterd.metering.layout import (
    LAYOUTS,
    channels,
    clamp_estimated,
    estimated_by_layout,
    field_names_ok,
    known_field,
    measurable_channels,
    measures_apparent,
)
from meterd.metering.reading import BoardRules, Clamp, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "LAYOUTS",
    "LINE_BYTES_MAX",
    "BoardDecoder",
    "BoardRules",
    "Clamp",
    "Reading",
    "channels",
    "clamp_estimated",
    "estimated_by_layout",
    "field_names_ok",
    "known_field",
    "measurable_channels",
    "measures_apparent",
]

LINE_BYTES_MAX = 256  # a line of 7 clamps is about 130; past this it is noise

_NUMBERS_ONLY = b"0123456789.- ,\t"  # a line of nothing else is no banner, no error, no garbage
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t"
_BOARD_ERROR = re.compile(rb"\berr\b", re.IGNORECASE)
_INTERVAL = re.compile(rb"\binterval\b", re.IGNORECASE)
_NO_FINITE_NUMBER = re.compile(rb"[+-]?(nan|inf(inity)?|ovf|[0-9.]+e[+-]?[0-9]+)", re.IGNORECASE)
_LETTER = re.compile(rb"[a-z]", re.IGNORECASE)

_KEY = b"\x43\x2d\x7c\x19"  # opens the binary structure that a board sends when it starts
_KEY_END = 0x19  # looked for first: no line of numbers has it, and one byte is found faster
_STRUCTURE_BYTES = {0xA0: 21, 0xA1: 49, 0xA2: 52}  # from the key on, by the byte that follows it
_KIND_AWAITED = -1  # the key is there, and that byte is still to come
# A longer unfinished line is noise however it goes on: with CR LF, or a key of which a byte lacks.
_PENDING_BYTES_MAX = LINE_BYTES_MAX + len(b"\r") + len(_KEY) - 1


class BoardDecoder:
    """Turns what the board says into readings, and counts what it drops.

    Attributes:
        accepted: Readings returned so far.
        dropped: What was dropped so far, by kind: `partial banner not_a_number board_error
            field_count range oversized garbage`; a kind that has not been met is not in it.
        last_dropped: What was dropped last, at most `LINE_BYTES_MAX` bytes of it.
    """

    def __init__(self, rules: BoardRules, *, joins: bool = False) -> None:
        """Prepare to decode lines by `rules`.

        Args:
            rules: What a line says.
            joins: The first line, and the first after `reopen`, may have begun before we listened.
                Where what is left of it could pass for a whole one (a layout of several lengths,
                or without a node in front), it is dropped.

        Raises:
            ConfigError: No field measures a used clamp, or a setting has no meaning.
        """
        self._read_by_count = {
            len(fields): Calibration(rules, fields).reading for fields in rules.fields
        }
        alike = len(rules.fields) > 1 or any(fields[0] != "node" for fields in rules.fields)
        self._drop_first = joins and alike
        self._pending = b""  # the line that has not ended yet
        self._first = True  # the next line to end may have begun before we listened
        self._oversized = False  # the line that has not ended yet is counted already
        self._skip_bytes = 0  # of a binary structure
        self.accepted = 0
        self.dropped: dict[str, int] = {}
        self.last_dropped = b""

    def receive(self, data: bytes, at_ms: int) -> list[Reading]:
        """Return the readings that `data` completes.

        Args:
            data: What came from the board, cut anywhere.
            at_ms: Boot clock when it came, milliseconds; every reading returned carries it.
        """
        readings: list[Reading] = []
        buffer = self._pending + data if self._pending else data
        lines: Iterable[bytes]
        if _KEY_END in buffer or self._skip_bytes or self._oversized:
            lines = self._lines(buffer)
        else:
            lines = buffer.split(b"\n")
            self._pending = lines.pop()
        for ended in lines:
            line = ended.removesuffix(b"\r")
            texts = line.replace(b",", b" ").split()
            try:
                if line.translate(None, _NUMBERS_ONLY) or len(line) > LINE_BYTES_MAX:
                    _refuse_what_is_no_measurement(line)
                read = self._read_by_count.get(len(texts))
                if read is not None:
                    if self._drop_first and self._first:
                        raise DroppedError("partial")  # noqa: TRY301
                    readings.append(read(texts, line, at_ms))
                elif texts:
                    self._drop("partial" if self._first else "field_count", line)
            except DroppedError as error:
                cut_open = self._first and error.kind == "garbage"
                self._drop("partial" if cut_open else error.kind, line)
            self._first = False
        if len(self._pending) > _PENDING_BYTES_MAX:
            self._overflow()
        self.accepted += len(readings)
        return readings

    def reopen(self) -> None:
        """Forget the line that was cut off: the port was opened anew, maybe within another line."""
        self._end_unfinished(self._pending)
        self._pending = b""
        self._skip_bytes = 0
        self._first = True

    def _lines(self, buffer: bytes) -> Iterator[bytes]:
        """Yield the lines that end in `buffer`; pass over binary structures."""
        start = 0
        while start < len(buffer):
            if self._skip_bytes == _KIND_AWAITED:
                structure_bytes = _STRUCTURE_BYTES.get(buffer[start], len(_KEY) + 1)
                self._skip_bytes = structure_bytes - len(_KEY) - 1
                start += 1
                continue
            if self._skip_bytes:
                skipped = min(self._skip_bytes, len(buffer) - start)
                self._skip_bytes -= skipped
                start += skipped
                continue
            key_at = buffer.find(_KEY, start)
            *lines, rest = buffer[start : key_at if key_at >= 0 else None].split(b"\n")
            if lines and self._oversized:
                self._oversized = self._first = False
                del lines[0]
            yield from lines
            if key_at < 0:
                self._pending = rest
                return
            self._end_unfinished(rest)
            self._drop("banner", _KEY)
            self._skip_bytes = _KIND_AWAITED
            start = key_at + len(_KEY)
        self._pending = b""

    def _overflow(self) -> None:
        """Of a line that is too long keep only what may be the beginning of a key."""
        if not self._oversized:
            self._drop("oversized", self._pending)
        self._oversized = True
        self._pending = self._pending[1 - len(_KEY) :]

    def _end_unfinished(self, rest: bytes) -> None:
        """Drop what stands in a line that will not end, unless nothing does."""
        line = rest.removesuffix(b"\r")
        if line and not self._oversized:
            self._drop("partial" if len(line) <= LINE_BYTES_MAX else "oversized", line)
        self._oversized = False
        self._first = False

    def _drop(self, kind: str, line: bytes) -> None:
        self.dropped[kind] = self.dropped.get(kind, 0) + 1
        self.last_dropped = line[:LINE_BYTES_MAX]


def _refuse_what_is_no_measurement(line: bytes) -> None:
    """Pass only what may be one: it may have a word in a field that no clamp uses.

    Raises:
        DroppedError: It is too long, or a banner, an error of the board, or noise.
    """
    if len(line) > LINE_BYTES_MAX:
        raise DroppedError("oversized")
    if line.startswith(b"#"):
        raise DroppedError("banner")
    if line.translate(None, _PRINTABLE):
        raise DroppedError("garbage")
    if _BOARD_ERROR.search(line):
        raise DroppedError("board_error")
    first = line.replace(b",", b" ").split()[0]
    if _INTERVAL.search(line) or (_LETTER.search(first) and not _NO_FINITE_NUMBER.fullmatch(first)):
        raise DroppedError("banner")
