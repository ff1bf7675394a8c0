"""A running meter with a vault, and `meterctl vault` as somebody at it would type it."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meterd.config import load
from meterd.device.keys import take_in
from meterd.device.secret import BOARD, DEVICE
from meterd.init import enrol_keys, join_network
from meterd.ledger.account import standalone
from meterd.privacy.envelope import device_key
from tests.daemon_kit import DEADLINE_S, Cable, House, Program, line, make_house

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = bytes(range(32))
PASSPHRASE = "four words by dice"
OTHER_PASSPHRASE = "four others by dice"
NAME = b"Wilhelmine Canary-Example\n17 Elm Street, 00042 Nowhere\n"
CONTRACT = b"customer 4711-canary-0815\n"
CANARIES = (b"Wilhelmine", b"Canary-Example", b"17 Elm Street", b"4711-canary-0815")
CTL = (sys.executable, "-c", "import sys; from meterd.ctl import main; sys.exit(main())")


class Told(NamedTuple):
    """What a command came to."""

    status: int
    out: bytes
    err: str

    @property
    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.out)
        return found


class VaultHouse:
    """A house whose device has a secret, and people who ask its vault.

    Attributes:
        house: Its folder, account and port.
        credentials: What systemd would give the meter.
    """

    def __init__(self, folder: Path, *, board: bytes = b"", broker: int | None = None) -> None:
        """Make the account, with its sealing key in the vault; `broker` is a port on loopback."""
        self.folder = folder
        self.credentials = folder / "credentials"
        self.credentials.mkdir()
        (self.credentials / DEVICE).write_bytes(SECRET)
        if board:
            (self.credentials / BOARD).write_bytes(board)
        self.device = device_key(SECRET, board)
        self.house: House = make_house(folder)
        if broker is None:
            take_in(self.house.state, self.device)
        else:
            self._join(broker)
        self.passphrase = self.file("passphrase", PASSPHRASE)
        self.other = self.file("other", OTHER_PASSPHRASE)

    def _join(self, broker: int) -> None:
        """Begin again as a network of one, whose blocks go out to a broker."""
        state = self.house.state
        shutil.rmtree(state)
        with self.house.config.open("a") as file:
            file.write(f'[network]\nbrokers = ["mqtt://127.0.0.1:{broker}"]\ndigest_ms = 300\n')
        settings = load(self.house.config)
        seal, vote = enrol_keys(state, lambda: os.urandom(32), self.device)
        sealing, voting = bytes(seal.verify_key), bytes(vote.verify_key)
        alone = standalone(
            settings.meter.name,
            sealing,
            interval_s=settings.meter.interval_s,
            zone="UTC",
            currency="EUR",
            fuse_ma=60_000,
            nominal_mv=230_000,
            mains_clamps=1,
            network="demo",
        )
        node = replace(alone.nodes[0], voting_key=voting, votes=1)
        join_network(state, replace(alone, nodes=(node,)), settings, device=self.device)

    @property
    def vault(self) -> Path:
        return self.house.state / "vault"

    def files(self) -> dict[str, bytes]:
        """The vault as it lies on the card."""
        return {path.name: path.read_bytes() for path in self.vault.iterdir()}

    def lay(self, files: dict[str, bytes]) -> None:
        """Let the vault be these files, and no others."""
        for path in self.vault.iterdir():
            path.unlink()
        for name, data in files.items():
            (self.vault / name).write_bytes(data)

    def file(self, name: str, text: str) -> Path:
        """Return a file that nobody else reads."""
        path = self.folder / name
        path.write_text(text + "\n")
        path.chmod(0o600)
        return path

    @property
    def environ(self) -> dict[str, str]:
        """What the meter's unit has in its environment."""
        return {"CREDENTIALS_DIRECTORY": str(self.credentials)}

    def start(self) -> Program:
        return self.house.run(environ=self.environ)

    @contextmanager
    def running(self) -> Iterator[Program]:
        """Run the meter, with a board that has spoken."""
        with Cable(self.house.port) as cable, self.start() as program:
            program.hear("port_opened")
            cable.say(line(1000.0))
            self.house.ask()
            yield program
            assert program.stop() == 0, program.said

    def ctl(self, *arguments: object, said: bytes = b"") -> Told:
        """Run `meterctl vault` with no terminal."""
        command = [*CTL, "vault", *map(str, arguments), "--state", str(self.house.state)]
        done = subprocess.run(command, input=said, capture_output=True, check=False, timeout=60)
        return Told(done.returncode, done.stdout, done.stderr.decode())

    def put(self, subject: str, purpose: str, data: bytes, passphrase: Path | None = None) -> Told:
        """Put a record in; the passphrase is right unless told."""
        passphrase = passphrase or self.passphrase
        return self.ctl("put", subject, purpose, "--passphrase-file", passphrase, said=data)

    def show(self, subject: str, purpose: str = "", passphrase: Path | None = None) -> Told:
        """Show a record."""
        words = [word for word in (subject, purpose) if word]
        return self.ctl("show", *words, "--passphrase-file", passphrase or self.passphrase)

    def events(self, prefix: str = "vault_") -> list[tuple[str, dict[str, object]]]:
        """The account's events of these kinds, with their details."""
        return [
            (event.kind, dict(event.details))
            for event in self.house.account.events
            if event.kind.startswith(prefix)
        ]


def at_terminal(*arguments: object, typed: tuple[tuple[str, str], ...]) -> tuple[int, str]:
    """Run `meterctl vault` on a terminal of its own: (prompt, answer), each once it is asked."""
    controller, terminal = os.openpty()
    process = subprocess.Popen(
        [*CTL, "vault", *map(str, arguments)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown, looked, ends_s = "", 0, time.monotonic() + DEADLINE_S
    waiting = list(typed)
    try:
        while time.monotonic() < ends_s:
            ready, _, _ = select.select([controller], [], [], max(0, ends_s - time.monotonic()))
            try:
                data = os.read(controller, 4096) if ready else b""
            except OSError:  # EIO: the program has closed its end
                break
            shown += data.decode()
            if waiting and (found := re.search(waiting[0][0], shown[looked:])):
                looked += found.end()
                os.write(controller, waiting.pop(0)[1].encode())
        assert not waiting, f"it never asked {waiting[0][0]!r}: {shown}"
        return process.wait(DEADLINE_S), shown.replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def found_in_memory(pid: int, needles: tuple[bytes, ...]) -> set[bytes]:
    """Return which of these are in a process's memory: all of it that can be written."""
    found = set[bytes]()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for mapped in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = mapped.split()
            begin, end = (int(part, 16) for part in span.split("-"))
            if "rw" not in rights:
                continue
            try:
                memory.seek(begin)
                data = memory.read(end - begin)
            except OSError:  # of the kernel's own, which nobody reads
                continue
            found |= {needle for needle in needles if needle in data}
    return found


def found_in_files(folder: Path, needles: tuple[bytes, ...]) -> list[tuple[str, bytes]]:
    """Return which files have which of these, in content or name."""
    found = []
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        data += os.fsencode(path.name)
        found += [(str(path.relative_to(folder)), needle) for needle in needles if needle in data]
    return found
