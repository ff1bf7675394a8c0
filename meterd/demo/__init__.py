"""`meterd demo`: a street is metered, sealed and certified while one looks, and trouble comes.

Four meters on simulated boards play real days where they are found, else model households; each
runs as it would in a cellar, its clock running fast, with a metering process and a peer process of
its own. They talk through one broker that none of them trusts, and a fifth node plays the
distributor. At the end a stranger, with nothing but the genesis, verifies every account.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meterd.demo.broker import INSIDE, MOSQUITTO, choose_broker
from meterd.demo.faults import KINDS, Fault, parse_faults
from meterd.demo.houses import choose_houses
from meterd.demo.screen import KEYS, QUIT, Lines, Live, Silent
from meterd.demo.street import DISTRIBUTOR, NotYetError, Street
from meterd.demo.summary import Played, Summary, judge, tell_kept
from meterd.demo.watch import Watch
from meterd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterd.demo.houses import House
    from meterd.demo.watch import Happening

SPEED_DEFAULT = 600  # ten minutes a second: an interval is sealed every three seconds
LOOK_S = 0.25
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterd demo`."""
    faults = "\n".join(f"  {kind:<8}{what}" for kind, (_, what) in KINDS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"""faults: KIND:NODE@SECONDS, several joined by commas, or a file of such lines
{faults}

examples:
  meterd demo                       until Ctrl-C; keys make trouble
  meterd demo --for 30 --json       half a minute, then a summary for scripts
  meterd demo --for 60 --faults kill:house-2@10,start:house-2@16,forge:house-4@30,broker:@40
  meterd demo --broker mqtt://127.0.0.1:1883
  meterd demo --csv my-house.csv    columns timestamp,voltage_v,current_a,active_power_w
"""
    parser.add_argument(
        "--for", dest="seconds", type=_seconds, metavar="SECONDS", help="end after so long"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON at the end")
    parser.add_argument("--faults", metavar="FILE|LIST", help="trouble to come: below")
    parser.add_argument(
        "--broker", metavar="URL", help=f"a broker that is there; or {INSIDE}, or {MOSQUITTO}"
    )
    parser.add_argument(
        "--speed", type=int, default=SPEED_DEFAULT, metavar="N", help="times as fast (600)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the recording that house-1 plays")
    parser.add_argument("--seed", type=int, default=1, help="of the model households (1)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all accounts here")


class _Interrupts:
    """Ends the show at the first Ctrl-C; a second is ignored: what it asks for is being done."""

    def __init__(self) -> None:
        self._held = self._asked = self._taken = False
        for number in INTERRUPTS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's
                signal.signal(number, self._take)

    def _take(self, _number: int, _frame: object) -> None:
        if self._taken:  # SIG_IGN instead would have Python complain of a signal that is pending
            return
        self._taken = True
        if self._held:
            self._asked = True
        else:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let what is inside run to its end first, so that no process is lost sight of."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def end(self) -> None:
        """Ignore them from now on: nothing may be left behind."""
        self._taken = True


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; returns the exit code."""
    houses = choose_houses(arguments.csv, arguments.seed)
    faults = _check(arguments, houses)
    interrupts = _Interrupts()
    with contextlib.ExitStack() as stack:
        folder = arguments.keep
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meterd-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        broker = choose_broker(arguments.broker, folder)
        with interrupts.held():
            street = Street(
                folder, houses, speed=arguments.speed, broker=broker, held=interrupts.held
            )
            stack.callback(street.stop)
            stack.callback(interrupts.end)  # is called first
        if not arguments.json:
            print("founding a street and starting its processes: some seconds", flush=True)
        street.start()
        watch = Watch(street)
        played: list[Played] = []
        with contextlib.suppress(KeyboardInterrupt):
            _show(street, watch, faults, played, arguments)
        interrupts.end()
        seconds, dropped = watch.seconds, watch.dropped
        street.stop_meters()
        results = judge(street)
        watch.look()
        summary = Summary(
            street,
            houses,
            speed=arguments.speed,
            results=results,
            evidence=watch.evidence,
            played=played,
        )
        if arguments.json:
            print(json.dumps(summary.spell(seconds, dropped)))
        else:
            summary.tell(seconds)
            if arguments.keep:
                tell_kept(folder, street)
    return 0 if summary.good else 1


def _check(arguments: argparse.Namespace, houses: tuple[House, ...]) -> list[Fault]:
    """Check options against each other; return the faults.

    Raises:
        UsageError: They do not fit.
    """
    if arguments.speed < 1:
        raise UsageError(f"--speed: expected 1 or more, got {arguments.speed}")
    names = [*(house.name for house in houses), DISTRIBUTOR]
    faults = parse_faults(arguments.faults, names) if arguments.faults is not None else []
    seconds = arguments.seconds
    for fault in faults:
        if seconds is not None and fault.at_s >= seconds:
            raise UsageError(f"--faults: {fault}: the demo ends before, after {seconds:g} s")
        given = arguments.broker not in {None, INSIDE, MOSQUITTO}
        if fault.kind == "broker" and given:
            raise UsageError(f"--faults: {fault}: the broker of --broker is not the demo's to kill")
    end_ms = max(house.epoch_ms for house in houses) + (seconds or 0) * 1000 * arguments.speed
    if end_ms > time.time() * 1000:
        raise UsageError(
            "at this speed the households' days would reach our future: nobody certifies that",
            hint="take a lower --speed, fewer seconds, or an older recording",
        )
    return faults


def _show(
    street: Street,
    watch: Watch,
    faults: list[Fault],
    played: list[Played],
    arguments: argparse.Namespace,
) -> None:
    """Show the street until the time is over, and let the faults happen."""
    waiting = list(faults)
    with _screen(street, arguments) as screen:
        while arguments.seconds is None or watch.seconds < arguments.seconds:
            street.check()
            key = screen.key()
            if key == QUIT:
                return
            if key in KEYS:
                waiting.append(_of_key(street, key, watch.seconds))
            told = _play(street, watch, waiting, played)
            street.insist()
            screen.show(watch, told + watch.look())
            time.sleep(LOOK_S)


def _screen(street: Street, arguments: argparse.Namespace) -> Silent:
    if arguments.json:
        return Silent()
    head = [
        *(f"{node.name} plays {node.house.label}" for node in street.nodes.values() if node.house),
        f"{DISTRIBUTOR} plays the distributor: no meter and no vote, and it holds its own key",
        f"clock: {arguments.speed} times as fast as ours; through {street.broker.label}",
    ]
    drawn = sys.stdout.isatty() and importlib.util.find_spec("rich") is not None
    return Live(head, street) if drawn else Lines(head)


def _of_key(street: Street, key: bytes, at_s: float) -> Fault:
    kind, undone, node = KEYS[key]
    if (kind == "kill" and street.nodes[node].killed) or (
        kind == "cut" and street.gates.is_shut(node)
    ):
        kind = undone
    return Fault(at_s, kind, node)


def _play(
    street: Street, watch: Watch, waiting: list[Fault], played: list[Played]
) -> list[Happening]:
    """Let happen what is due; what cannot be yet goes on waiting."""
    told = []
    for fault in [fault for fault in waiting if fault.at_s <= watch.seconds]:
        with contextlib.suppress(NotYetError):
            text = fault.play(street)
            waiting.remove(fault)
            played.append(Played(fault, text))
            told.append(watch.tell(text))
    return told
