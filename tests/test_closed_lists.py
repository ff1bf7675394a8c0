"""Row S4: what is in no list of commands has no effect, wherever it comes from.

Each way in is fed what nobody offers: the command line words in a wrong order, the control socket
methods that do not exist, the port and the broker bytes. What there is stays as it was, digest by
digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterd import ctl
from meterd.authority.attestation import Header, sign_batch
from meterd.authority.effects import Persist, Received
from meterd.ctl import COMMANDS
from meterd.device.control_roles import ROLES
from meterd.ledger.encoding import encode, key_id, seal
from meterd.metering.board import LAYOUTS, BoardDecoder
from tests.accounts import config_text, replay_lines
from tests.authority.examples import (
    GENESIS,
    HOUSE,
    NOW_S,
    OTHER_HOUSE,
    chain,
    key,
    leaf,
    public,
    sealed,
)
from tests.device.test_control import served
from tests.fuzz.targets import RULES
from tests.net import SEALED, Net, flipped

SPAN_S, START_S = 5, 1_783_000_800
WORDS = (
    *("init", "put", "rotate", "erase", "apply", "undo", "revoke", "issue", "open", "close", "ack"),
    *("--json", "--yes", "--force", "--before=2030-01-01", "--finish", "--last=3", "--dry-run"),
    *("flat-3", "person", "0", "-1", "1e9", "..", "/etc", "", "\x1b[2J", "ü", "a" * 300),
)
FIELDS_TRIED = 40  # more than any layout has
USED = {  # the fields of a mains clamp at the first channel and of a circuit at the third
    "rpict3v1": "RP1 RP3 Irms1 Irms3 Vrms",
    "rpict3v1-sketch2": "RP1 S1 Irms1 Vrms1 RP3 Irms3 Vrms3",
    "rpict3t1": "EP1 EP3",
    "rpict7v1": "RP1 RP3 Irms1 Irms3 Vrms",
}
NO_NUMBERS = (
    *(b"nan", b"inf", b"-inf", b"ovf", b"1e3", b"+1", b".5", b"-.5", b"5.", b"-", b"--1", b"1-2"),
    *(b"1.2.3", b"0x10", b"1_0", b"true", b"1;2", b"\x00", b"\xd9\xa1", b"1.\xc2\xb2"),
)
OUT_OF_RANGE = {  # the fuse of the rules is 60 A, their voltage 230 V: 22080 W are believed
    "RP": (b"22080.1", b"-22080.1", b"1" + b"0" * 40),
    "EP": (b"23040.1", b"-0.1", b"1" + b"0" * 40),
    "S": (b"4294967.296", b"-0.1"),
    "Irms": (b"4294967296", b"-0.1"),
    "Vrms": (b"4294967.296", b"-0.1"),
}
COMMANDS_OF_NO_BOARD = (b"reset", b"AT+RST", b"registers=0", b"interval", b"err", b"#", b"11;reset")
FIFTH_BLOCK = chain(5)[4]
FIFTH = sealed(FIFTH_BLOCK)
WRONG = ("--no-such-option", "--no-such-option=1", "--s\x00", "-\u2212")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("closed") / "account"
    lines = [
        f"{START_S + SPAN_S * at}\t11 374.0 0.0 0.0 1600.0 0.0 0.0 243.87" for at in range(800)
    ]
    replay_lines(lines, config_text(), state)
    return state


def digest_of(folder: Path) -> str:
    """A digest of every name, mode and byte below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)} {path.stat().st_mode:o}\n".encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def status_of(arguments: list[str]) -> object:
    """The exit status, whether the parser ends the program or the command returns."""
    try:
        return ctl.main(arguments)
    except SystemExit as ended:
        return ended.code


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    command=st.sampled_from([*COMMANDS, "shell", "sudo", ""]),
    words=st.lists(st.sampled_from(WORDS), max_size=4),
    wrong=st.sampled_from(WRONG),
)
def test_s4_no_command_line_with_a_word_too_many_changes_the_account(
    account: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: list[str],
    wrong: str,
) -> None:
    before = digest_of(account)
    assert status_of([command, *words, wrong, "--state", str(account)]) == 64
    assert digest_of(account) == before
    said = capsys.readouterr()
    assert "error: " in said.err
    assert said.out == ""


def test_s4_a_command_that_is_offered_changes_it(account: Path, tmp_path: Path) -> None:
    """So that the test above can fail."""
    state = tmp_path / "account"
    shutil.copytree(account, state)
    before = digest_of(state)
    assert ctl.main(["prune", "--before", "2030-01-01", "--state", str(state)]) == 0
    assert digest_of(state) != before


@settings(deadline=None, max_examples=60)
@given(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(sorted(ROLES)).flatmap(
            lambda name: st.sampled_from([name.lower(), f"{name} ", f"{name}2", f"Un{name}"])
        ),
    ).filter(lambda name: name not in ROLES)
)
def test_s4_no_method_that_is_not_offered_reaches_the_meter(name: str) -> None:
    async def knock(path: Path) -> dict[str, object]:
        async with served(path, lambda _: True) as running:
            before = (running.meter.current, list(running.meter.pruned), list(running.meter.told))
            reader, writer = await running.raw()
            call = {"method": f"org.meterd.Control.{name}", "parameters": {"before_s": 1}}
            writer.write(json.dumps(call).encode() + b"\0")
            said = await asyncio.wait_for(reader.readuntil(b"\0"), 10)
            writer.close()
            after = (running.meter.current, running.meter.pruned, running.meter.told)
            assert after == before
            reply: dict[str, object] = json.loads(said[:-1])
            return reply

    with tempfile.TemporaryDirectory() as folder:
        assert "error" in asyncio.run(knock(Path(folder) / "control"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_s4_what_is_no_line_of_the_board_is_no_reading(layout: str) -> None:
    """No command of the port exists: a line is a reading of the layout, or nothing."""
    fields = LAYOUTS[layout][0]
    counts = {len(alternative) for alternative in LAYOUTS[layout]}
    for count in range(1, FIELDS_TRIED):
        if count not in counts:
            assert_refused(layout, [b"11", *[b"230"] * (count - 1)])
    for command in COMMANDS_OF_NO_BOARD:
        assert_refused(layout, [command, *good_line(layout)[1:]])
    for name in USED[layout].split():
        worse = OUT_OF_RANGE[name.rstrip("123")]
        for text in (*NO_NUMBERS, *worse):
            line = good_line(layout)
            line[fields.index(name)] = text
            assert_refused(layout, line)


def good_line(layout: str) -> list[bytes]:
    """The fields of a line that the layout's shortest alternative reads."""
    return [b"230.0" if name.startswith("Vrms") else b"1.5" for name in LAYOUTS[layout][0]]


def assert_refused(layout: str, fields: list[bytes]) -> None:
    """A line is counted and no reading, and the good one behind it is exactly one."""
    decoder = BoardDecoder(RULES[layout])
    good = b" ".join(good_line(layout)) + b"\r\n"
    decoder.receive(good, 0)  # past what the opening of the port may have cut
    assert decoder.receive(b" ".join(fields) + b"\r\n", 0) == [], fields
    assert (decoder.accepted, sum(decoder.dropped.values())) == (1, 1), fields
    [reading] = decoder.receive(good, 0)
    assert (decoder.accepted, sum(decoder.dropped.values())) == (2, 1)
    assert reading.line + b"\r\n" == good


@cache
def settled() -> Net:
    net = Net()
    net.settle(6)
    net.seal(*SEALED)
    net.settle()
    return net


@cache
def attested() -> bytes:
    """The next batch of votes of a house, which goes on behind its last one."""
    last = settled().nodes[OTHER_HOUSE].gossip.sequences[key_id(public(f"{HOUSE} votes"))]
    header = Header(1, last.number + 1, last.batch_hash, NOW_S, 0)
    return sign_batch(header, [leaf(FIFTH_BLOCK)], key(f"{HOUSE} votes"), GENESIS.hash)


def would_count(kind: str) -> bytes:
    return FIFTH if kind == "a block" else attested()


COUNTS = st.sampled_from(["a block", "votes"]).map(would_count)
NOT_OFFERED = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda data, at: flipped(data, at % (8 * len(data))), COUNTS, st.integers(0, 2**20)),
    st.builds(lambda data, size: data[: size % len(data)], COUNTS, st.integers(0, 2**20)),
    st.sampled_from(["command", "reset", "block/v2", "order/v0", "head/v9", "orders/v1"]).map(
        lambda kind: seal(
            encode([f"meterd/{kind}", HOUSE, 1 << 40, 5]), key(f"{HOUSE} votes"), GENESIS.hash
        )
    ),
)
"""Noise, what would count with a bit changed or cut off, and what is rightly signed and no kind."""


@settings(deadline=None, max_examples=200)
@given(st.lists(NOT_OFFERED, min_size=1, max_size=5))
def test_s4_no_bytes_from_the_broker_change_what_a_node_believes(messages: list[bytes]) -> None:
    node = settled().nodes[OTHER_HOUSE]
    before = node.state
    for message in messages:
        node.gossip._senders.clear()  # quarantine would hide whether it would be believed
        effects = node.feed(Received(HOUSE, message))
        assert not [effect for effect in effects if isinstance(effect, Persist)]
    assert node.state == before


@pytest.mark.parametrize("kind", ["a block", "votes"])
def test_what_counts_from_the_broker_does_change_it(kind: str) -> None:
    """So that the test above can fail."""
    node = settled.__wrapped__().nodes[OTHER_HOUSE]
    before = node.state
    node.feed(Received(HOUSE, would_count(kind)))
    assert node.state != before
