"""What the demo shows while it runs: a table that lives, lines for a pipe, nothing for a script."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from typing import TYPE_CHECKING, Self

from meterd.demo.watch import kwh

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterd.demo.street import Street
    from meterd.demo.watch import Happening, Watch

KEYS = {
    b"k": ("kill", "start", "house-2"),
    b"c": ("cut", "join", "house-3"),
    b"f": ("forge", "forge", "house-4"),
    b"b": ("broker", "broker", ""),
}
"""By key: what it does first, what it does next, and to whom."""
QUIT = b"q"
KEYS_LINE = "keys: k kill/start house-2, c cut/join house-3, f forge house-4, b broker, q end"


class Silent:
    """Shows nothing: a script reads the summary."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        return

    def show(self, watch: Watch, told: list[Happening]) -> None:
        """Show what is there now, and what has just happened."""

    def key(self) -> bytes:
        """Return the key that was pressed, or nothing."""
        return b""


class Lines(Silent):
    """A line for each happening, for a pipe or a log."""

    def __init__(self, head: list[str]) -> None:
        """Begin with `head`."""
        for line in head:
            print(line)
        sys.stdout.flush()

    def show(self, watch: Watch, told: list[Happening]) -> None:  # noqa: ARG002 - all is told
        """Print what has just happened."""
        for one in told:
            print(f"{one.at_s:6.1f} s  {one.text}", flush=True)


class Live(Silent):
    """A table that is drawn anew, and keys that make trouble."""

    def __init__(self, head: list[str], street: Street) -> None:
        """Prepare; `head` stands above the table."""
        from rich.live import Live as Drawn

        self._head, self._street = head, street
        self._drawn = Drawn(refresh_per_second=4)
        self._before: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        """Take the terminal: keys come one by one, and are not shown."""
        if sys.stdin.isatty():
            fd = sys.stdin.fileno()
            was = termios.tcgetattr(fd)
            tty.setcbreak(fd)
            self._before = lambda: termios.tcsetattr(fd, termios.TCSADRAIN, was)
        self._drawn.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the terminal back as it was."""
        try:
            self._drawn.stop()
        finally:
            if self._before is not None:
                self._before()

    def key(self) -> bytes:
        """Return the key that was pressed, or nothing."""
        if self._before is None or not select.select([sys.stdin], [], [], 0)[0]:
            return b""
        with contextlib.suppress(OSError):
            return os.read(sys.stdin.fileno(), 1)
        return b""

    def show(self, watch: Watch, told: list[Happening]) -> None:  # noqa: ARG002 - it shows the last
        """Draw the table."""
        from rich.table import Table
        from rich.text import Text

        quorum, voters = self._street.quorum, self._street.voters
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("meter")
        for title in ("W now", "import kWh", "export kWh", "sealed", "seen", "certified"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("")
        for row in watch.rows:
            table.add_row(
                row.name,
                "-" if row.power_mw is None else f"{row.power_mw // 1000}",
                kwh(row.import_uj),
                kwh(row.export_uj),
                str(row.height),
                f"{row.seen} of {voters}" if row.height else "-",
                str(row.certified),
                Text(row.state, style="bold red" if row.frozen else "yellow"),
            )
        outer = Table.grid()
        for line in self._head:
            outer.add_row(Text(line, style="dim"))
        outer.add_row("")
        outer.add_row(table)
        outer.add_row("")
        meaning = "one liar among them cannot get a second history certified"
        outer.add_row(Text(f"certified by {quorum} of {voters}: {meaning}"))
        for one in watch.shown():
            outer.add_row(
                Text(f"{one.at_s:6.1f} s  {one.text}", style="dim" if one.routine else "")
            )
        if self._before is not None:
            outer.add_row(Text(KEYS_LINE, style="dim"))
        self._drawn.update(outer)
