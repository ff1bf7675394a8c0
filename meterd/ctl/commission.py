"""`meterctl commission`: take a meter into service, step by step; afterwards S3 binds.

Each step has a verdict and what to do. What a person had to do once (a load on, all loads off) is
kept in a file, so that a run that ends early is gone on with. The record's hash is in the account.
"""

from __future__ import annotations

import json
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meterd.cli import told_line
from meterd.ctl import commission_rules as rules
from meterd.ctl.advice import doable
from meterd.ctl.calibrate_rules import clamp_number
from meterd.ctl.commission_progress import (
    forget_progress,
    keep_progress,
    progress_path,
    read_progress,
)
from meterd.ctl.in_session import inside, technician
from meterd.ctl.node import line_of, read_shown
from meterd.ctl.options import add_json, add_socket, add_state, positive, socket_of
from meterd.ctl.output import put_out
from meterd.ctl.parameters import desk_of
from meterd.ctl.public_key import public_key
from meterd.ctl.show import kwh, register_name, register_unit, utc
from meterd.device.control_client import ControlClient
from meterd.device.secret import find_device_key
from meterd.device.vault import VAULT
from meterd.errors import AbsentError, UsageError
from meterd.ledger.parameters import COMMISSIONED

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

SECONDS_DEFAULT = 20
READINGS_MAX = 10_000
RETURN_S_MAX = 15.0  # until a meter that starts anew answers again; it takes less than one
LOOK_S = 0.2
BY_LETTERS_MAX = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `meterctl commission`."""
    parser.epilog = """\
Asks at a terminal, one step after the other: board, layout, direction of the
clamps, zero, clock, enrolment, neighbours, vault, case, alarms, first block.
What is bad comes with what to do; then run it again, what you did with your
hands is kept. When all is good it writes a record to print, and its hash into
the account: from then on parameters change by `meterctl calibrate` alone.

A meter without a distributor needs its owner's public key (--owner): make one
with `meterctl calibrate key -o owner.key`, and keep it elsewhere. Root alone
names it; where a distributor is known, a technician commissions as well.

exit status: 0 commissioned, 1 something is bad, 69 no meter answers

examples:
  meterctl commission --check --answers load=skip,zero=skip --json
  sudo meterctl commission -o record.txt
  sudo meterctl commission --owner owner.key.pub --answers load=on,zero=off \\
      --yes
"""
    add_state(parser)
    add_socket(parser)
    parser.add_argument("--line", type=Path, metavar="DIR", help="folder of peer.json")
    parser.add_argument(
        "--owner",
        metavar="HEX|FILE",
        help="public key of who may change parameters, or its file (.pub)",
    )
    parser.add_argument("--by", default="", metavar="TEXT", help="who does it, for the record")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the record")
    parser.add_argument(
        "--seconds",
        type=positive,
        default=SECONDS_DEFAULT,
        metavar="N",
        help=f"how long to watch at a step (default: {SECONDS_DEFAULT})",
    )
    parser.add_argument(
        "--answers",
        default="",
        metavar="load=on,zero=off",
        help="what you have done, or skip, instead of being asked",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask at the end")
    parser.add_argument("--check", action="store_true", help="look only; commission nothing")
    parser.add_argument("--again", action="store_true", help="forget what an earlier run kept")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Take a meter into service; returns the exit code."""
    if len(options.by) > BY_LETTERS_MAX or not options.by.isprintable():
        raise UsageError(f"--by: expected at most {BY_LETTERS_MAX} letters in one line")
    answers = _answers(options.answers)
    owner = public_key(options.owner, "--owner").hex() if options.owner else ""
    session = _Session(options, answers, owner)
    steps = session.steps()
    if not rules.ready(steps):
        return _not_ready(options, steps)
    if options.check:
        _tell(options, steps)
        _say_hint("all is good; without --check it is commissioned")
        return 0
    return _finish(options, session, steps)


def _answers(text: str) -> dict[str, bool]:
    """Return for each thing to do whether it is done; what is skipped is not.

    Raises:
        UsageError: A word is not known.
    """
    found = {}
    for part in filter(None, text.split(",")):
        name, _, word = part.partition("=")
        if name not in rules.ASKED or word not in (rules.ASKED[name][1], "skip"):
            known = ", ".join(f"{one}={said[1]}|skip" for one, said in rules.ASKED.items())
            raise UsageError(f"--answers: {part[:40]!r} is not known", hint=f"known are {known}")
        found[name] = word != "skip"
    return found


class _Session:
    """One run: what is asked of the daemon and of the person, in the order of the steps."""

    def __init__(self, options: argparse.Namespace, answers: dict[str, bool], owner: str) -> None:
        self._options, self._answers, self.owner = options, answers, owner
        self._control = ControlClient(socket_of(options))
        self._desk = desk_of(options)
        self._asks = not options.yes and sys.stdin is not None and sys.stdin.isatty()
        self.told: dict[str, Any] = self._desk.call("Show")
        self._kept = {} if options.again else read_progress(options.state, _about(self.told))
        self.status: dict[str, Any] = {}

    def steps(self) -> list[rules.Step]:
        """Go through the steps, showing each; those behind a board that is silent are left out."""
        self.status = self._control.call("Status")
        if COMMISSIONED in self.told["signed"] and not self._options.check:
            raise UsageError(
                f"{self.told['meter']} is commissioned already",
                hint="its parameters change by `meterctl calibrate`; --check looks at it again",
            )
        seen = self._watch(1)
        self.told, self.status = self._desk.call("Show"), self._control.call("Status")
        readings = max((len(powers) for powers in seen.values()), default=0)
        found = [
            rules.board(self.status, self.told, readings),
            rules.layout(self.told["settings"], self.told, readings),
        ]
        if readings:
            found.append(self._handmade("load", "direction"))
            found.append(self._handmade("zero", "zero"))
        self.status = self._control.call("Status")
        alarms = self.status["alarms"]
        has_vault = (self._options.state / VAULT).is_dir()
        found += [
            rules.clock(self.status),
            rules.enrolment(self.status, self.told, self.owner, operator=not technician()),
            rules.peers(self.status, self._heard()),
            rules.vault(secret=has_vault and find_device_key() is not None, used=has_vault),
            rules.case(self.told, alarms),
            rules.no_alarms(alarms),
            rules.block(self.status),
        ]
        return found

    def _handmade(self, question: str, name: str) -> rules.Step:
        """Return a step that a person has a hand in; one that was good before is kept."""
        if name in self._kept and question not in self._answers:
            kept = self._kept[name]
            return rules.Step(name, rules.GOOD, kept["found"], kept.get("todo", ""))
        done = self._ask(question)
        if done:
            _say_hint(f"watching for up to {self._options.seconds} s; leave it as it is")
        seen = self._watch() if done else None
        settings: dict[str, str] = self.told["settings"]
        of = "reversed" if name == "direction" else "zero_below_w"
        clamps = {}
        for clamp in self.told["clamps"]:
            key = f"clamp.{clamp_number(settings, clamp)}"
            clamps[clamp] = (key, settings[f"{key}.{of}"])
        if name == "zero":
            step = rules.zero(seen, clamps)
        else:
            mains = {
                clamp: powers
                for clamp, powers in (seen or {}).items()
                if settings[f"{clamps[clamp][0]}.role"] == "mains"
            }
            step = rules.direction(mains if done else None, clamps)
        if step.verdict == rules.GOOD:
            self._keep(step)
        return step

    def _ask(self, question: str) -> bool:
        """Return whether a person has done what a step needs."""
        _, word, what = rules.ASKED[question]
        if question in self._answers:
            return self._answers[question]
        if not self._asks:
            raise UsageError(
                f"nobody can be asked to {what.partition(',')[0]}",
                hint=f"say so by --answers {question}={word}, or {question}=skip",
            )
        return _answer(f"{what}.\nEnter when it is so, s to skip: ").lower() not in ("s", "skip")

    def _watch(self, most: int = READINGS_MAX) -> dict[str, list[int]]:
        """Return power of each used clamp, mW, over some seconds; at most so many readings."""
        names: list[str] = self.told["clamps"]
        seen: dict[str, list[int]] = {name: [] for name in names}
        for reading in self._desk.stream_for(self._options.seconds, "Clamps"):
            for name, power in zip(names, reading["powers_mw"], strict=True):
                seen[name].append(power)
            if len(seen[names[0]]) >= most:
                break
        return seen

    def _heard(self) -> dict[str, bool] | None:
        """Return of each other voter whether it is heard: a distributor's machine may be off."""
        shown = read_shown(line_of(self._options))
        if shown is None or shown.stale:
            return None
        peers = shown.told["peers"]
        return {str(peer["name"]): peer["heard_s"] is not None for peer in peers if peer["votes"]}

    # --- what is kept between runs ------------------------------------------------------------

    def _keep(self, step: rules.Step) -> None:
        self._kept[step.name] = {"found": step.found, "todo": step.todo}
        try:
            keep_progress(self._options.state, _about(self.told), self._kept)
        except OSError as error:
            _say_hint(f"{step.name} cannot be kept ({error.strerror}): it is asked for again")

    def done(self) -> None:
        """Forget what was kept: the record has it now."""
        try:
            forget_progress(self._options.state)
        except OSError as error:
            path = progress_path(self._options.state)
            _say_hint(f"{path} cannot be removed ({error.strerror})")

    # --- the end --------------------------------------------------------------------------------

    def commission(self, record: bytes) -> dict[str, Any]:
        """Have the daemon write it down; return its answer once it is back."""
        changed = self._desk.call("Commission", record=record.hex(), owner=self.owner)
        ends_s = time.monotonic() + RETURN_S_MAX
        while time.monotonic() < ends_s:
            time.sleep(LOOK_S)
            try:
                if self._desk.call("Show")["sequence"] >= changed["sequence"]:
                    return changed
            except AbsentError:  # it starts anew
                continue
        raise AbsentError(
            "the meter is commissioned, but it does not come back",
            hint="look what it says: `journalctl -u meterd`",
        )


def _finish(options: argparse.Namespace, session: _Session, steps: list[rules.Step]) -> int:
    text = rules.record(
        session.told,
        session.status,
        steps,
        at=utc(int(time.time())),
        by=options.by or _named(technician()),
        registers=[
            (register_name(code), f"{kwh(register['uj'])} {register_unit(code)}")
            for code, register in session.status["registers"].items()
        ],
    )
    if not options.yes and sys.stdin is not None and sys.stdin.isatty():
        sys.stderr.write("\n".join(rules.lines(_shown(steps))) + "\n")
        if _answer("commission it? [y/N]: ").lower() not in ("y", "yes"):
            raise UsageError("not confirmed: the meter is not commissioned")
    elif not options.yes:
        raise UsageError(
            "there is no terminal to ask at: the meter is not commissioned",
            hint="all is good; add --yes if it is to be",
        )
    if options.output:
        put_out(text, options.output)
    hashed = sha256(text.encode()).digest()
    changed = session.commission(hashed)
    session.done()
    reply = {
        "commissioned": True,
        "record_sha256": hashed.hex(),
        "sequence": changed["sequence"],
        "parameters": changed["record"],
        "steps": [step._asdict() for step in steps],
        "text": text,
    }
    if options.json:
        print(json.dumps(reply))
        return 0
    if not options.output:
        print(text)
    print(f"commissioned: record\n  {hashed.hex()}")
    if options.output:
        print(f"written: {options.output} (its sha256sum is that)")
    return 0


def _about(told: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a step was seen of: which network, and the meter's parameter record."""
    return told["genesis"], told["record"]


def _named(who: Mapping[str, object]) -> str:
    """Return whose certificate it is, for the record; nothing outside a technician's session."""
    return f"certificate {who['certificate']}, serial {who['serial']}" if who else ""


def _not_ready(options: argparse.Namespace, steps: list[rules.Step]) -> int:
    _tell(options, steps)
    bad = ", ".join(step.name for step in steps if step.verdict == rules.BAD)
    sys.stderr.write(told_line("meterctl: error: ", f"not commissioned: {bad}"))
    sys.stderr.write("meterctl: hint: do what `->` says, then run this again\n")
    return 1


def _tell(options: argparse.Namespace, steps: Sequence[rules.Step]) -> None:
    shown = _shown(steps)
    if options.json:
        told = {"commissioned": False, "steps": [step._asdict() for step in shown]}
        print(json.dumps(told))
        return
    print("\n".join(rules.lines(shown)))
    sys.stdout.flush()


def _shown(steps: Sequence[rules.Step]) -> list[rules.Step]:
    """Return steps with what whoever reads this can do about them."""
    session = inside()
    return [step._replace(todo=doable(step.todo, session=session)) for step in steps]


def _say_hint(text: str) -> None:
    sys.stderr.write(told_line("meterctl: note: ", text))


def _answer(question: str) -> str:
    sys.stderr.write(question)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise UsageError("the questions were not answered: the meter is not commissioned")
    return line.strip()
