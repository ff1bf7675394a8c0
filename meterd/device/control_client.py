"""Asks the daemon over its control socket, for programs: blocking, and nothing but a socket.

>>> from pathlib import Path
>>> ControlClient(Path("/nonexistent")).call("Status")
Traceback (most recent call last):
    ...
meterd.errors.AbsentError: no meterd answers at /nonexistent
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from meterd.errors import (
    AbsentError,
    BusyError,
    ConfigError,
    DeniedError,
    MeterdError,
    StorageError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

INTERFACE = "org.meterd.Control"
REPLY_BYTES_MAX = 1 << 20  # a status is about 1 kB
REPLY_S_MAX = 30.0  # pruning a year of segments takes seconds on a slow card

_KINDS = {
    kind.exit_code: kind
    for kind in (UsageError, AbsentError, StorageError, BusyError, DeniedError, ConfigError)
}
_SERVICE = "org.varlink.service"
_STREAM_ENDED = f"{INTERFACE}.StreamEnded"


class ControlClient:
    """Where a daemon listens; each call has a connection of its own."""

    def __init__(
        self, path: Path, *, timeout_s: float = REPLY_S_MAX, interface: str = INTERFACE
    ) -> None:
        """Prepare to ask the daemon at `path`, waiting `timeout_s` for an answer."""
        self._path = path
        self._interface = interface
        self._timeout_s = timeout_s

    def call(self, method: str, /, **parameters: object) -> dict[str, Any]:
        """Return the reply to one call.

        Raises:
            AbsentError: Nobody answers, or does not know the method.
            DeniedError: This user may not connect, or may not call this.
            BusyError: All connections are in use.
            UsageError: A parameter is not of its type.
            MeterdError: What the daemon raised, as the class with its exit code.
        """
        replies = self._exchange({"parameters": parameters}, method, self._timeout_s)
        with contextlib.closing(replies):
            return dict(next(replies)["parameters"])

    def stream(self, method: str, /, **parameters: object) -> Iterator[dict[str, Any]]:
        """Yield each reply to a streaming call, for as long as the daemon has any.

        Raises:
            MeterdError: As `call` does; AbsentError also when the daemon goes.
        """
        replies = self._exchange({"parameters": parameters, "more": True}, method, None)
        with contextlib.closing(replies):
            for reply in replies:
                yield reply["parameters"]

    def stream_for(
        self, seconds: float, method: str, /, **parameters: object
    ) -> Iterator[dict[str, Any]]:
        """Yield each reply to a streaming call for some time; none where none comes for so long.

        Raises:
            MeterdError: As `stream` does.
        """
        ends_s = time.monotonic() + seconds
        replies = self._exchange({"parameters": parameters, "more": True}, method, seconds)
        with contextlib.closing(replies):
            try:
                for reply in replies:
                    yield reply["parameters"]
                    if time.monotonic() >= ends_s:
                        return
            except AbsentError as error:
                if not isinstance(error.__cause__, TimeoutError):
                    raise

    def _exchange(
        self, call: dict[str, object], method: str, timeout_s: float | None
    ) -> Generator[dict[str, Any], None, None]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(self._timeout_s)
            try:
                connection.connect(os.fspath(self._path))
            except PermissionError as error:
                raise DeniedError(
                    f"not allowed to connect to {self._path}",
                    hint=f"use root, or add this user to the group of {self._path}",
                ) from error
            except OSError as error:
                raise AbsentError(
                    f"no meterd answers at {self._path}",
                    hint="start it: `meterd run --config FILE`; or name its socket",
                ) from error
            with contextlib.suppress(BrokenPipeError):  # refused: the reason is there to be read
                call["method"] = f"{self._interface}.{method}"
                connection.sendall(json.dumps(call).encode() + b"\0")
            connection.settimeout(timeout_s)
            yield from self._replies(connection, method)

    def _replies(
        self, connection: socket.socket, method: str
    ) -> Generator[dict[str, Any], None, None]:
        data = b""
        while len(data) <= REPLY_BYTES_MAX:
            message, ended, rest = data.partition(b"\0")
            if ended:
                data = rest
                reply = _decode_reply(message, method)
                if reply is None:
                    return
                yield reply
                if not reply.get("continues"):
                    return
                continue
            try:
                more = connection.recv(65_536)
            except TimeoutError as error:
                raise AbsentError(
                    f"meterd did not answer within {self._timeout_s:g} s",
                    hint="look what it says: `journalctl -u meterd`",
                ) from error
            except ConnectionResetError:
                more = b""
            if not more:
                raise AbsentError(
                    "meterd closed the connection", hint="see `journalctl -u meterd`, try again"
                )
            data += more
        raise MeterdError(f"an answer of more than {REPLY_BYTES_MAX} bytes came")


def _decode_reply(message: bytes, method: str) -> dict[str, Any] | None:
    """Return a reply; None where a stream has ended; raise what it says went wrong."""
    try:
        reply = json.loads(message)
        error, parameters = reply.get("error"), reply.setdefault("parameters", {})
    except (ValueError, RecursionError, AttributeError) as damage:
        raise MeterdError(
            "an answer came that is not Varlink", hint="look whether the path is meterd's socket"
        ) from damage
    if error is None:
        return dict(reply)
    if error == _STREAM_ENDED:
        return None
    if error == f"{INTERFACE}.Failed":
        kind = _KINDS.get(parameters.get("exit_code"), MeterdError)
        raise kind(str(parameters.get("message")), hint=str(parameters.get("hint", "")))
    if error == f"{INTERFACE}.TooManyConnections":
        raise BusyError("all connections to meterd are in use", hint="end another `meterctl watch`")
    if error == f"{_SERVICE}.PermissionDenied":
        raise DeniedError(f"meterd does not let this user call {method}", hint="use root")
    if error == f"{_SERVICE}.InvalidParameter":
        raise UsageError(f"{method} does not take this {parameters.get('parameter')}")
    if error in (f"{_SERVICE}.MethodNotFound", f"{_SERVICE}.InterfaceNotFound"):
        raise AbsentError(
            f"meterd does not know {method}",
            hint="it is of another version than this program: restart it after an update",
        )
    raise MeterdError(f"{method} failed in meterd ({error})", hint="see `journalctl -u meterd`")
