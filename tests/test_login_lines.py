"""What sshd's journal says of those who were not let in: releases 9.2 and 10, and hostile names."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meterd.login_lines import (
    CONNECTIONS_MAX,
    TEXT_LETTERS_MAX,
    TOLD_MAX,
    Doors,
    Line,
    Refusal,
    decode_line,
)

FROM = "192.0.2.7 port 4022"
CERT = f"Failed publickey for technician from {FROM} ssh2: ED25519-CERT SHA256:x ID jo (serial 1)"
KEY = f"Failed publickey for technician from {FROM} ssh2: ED25519 SHA256:x"
BEGINS = f'Connection from {FROM} on 192.0.2.1 port 22 rdomain ""'
CLOSED = f"Connection closed by authenticating user technician {FROM} [preauth]"
PID = 41


def lines(*texts: str, pid: int = PID, first: int = 1) -> list[Line]:
    return [Line(f"c{at}", "boot", pid, text, at) for at, text in enumerate(texts, first)]


def refused(*texts: str) -> list[tuple[str, str, str]]:
    """Return account, reason and source of each who is refused in one connection."""
    doors = Doors()
    told = [refusal for line in lines(*texts) for refusal in doors.receive(line)]
    return [(one.account, one.reason, one.source) for one in told]


@pytest.mark.parametrize(
    ("texts", "account", "reason"),
    [
        pytest.param((KEY, CLOSED), "technician", "key", id="a key that does not count"),
        pytest.param((CERT, KEY, CLOSED), "technician", "key", id="two keys"),
        pytest.param(
            ("error: Certificate invalid: expired", CERT, KEY, CLOSED),
            *("technician", "expired"),
            id="an expired certificate, and then its key",
        ),
        pytest.param(
            ("error: Certificate invalid: not yet valid", CERT, CLOSED),
            *("technician", "not_yet_valid"),
            id="a certificate of tomorrow",
        ),
        pytest.param(
            (
                "error: Authentication key ED25519-CERT SHA256:x revoked by file /etc/revoked",
                *(CERT, CLOSED),
            ),
            *("technician", "revoked"),
            id="a revoked certificate",
        ),
        pytest.param(
            ("error: Certificate does not contain an authorized principal", CERT, CLOSED),
            *("technician", "principal"),
            id="another principal",
        ),
        pytest.param(
            ("Certificate lacks principal list", CERT, CLOSED),
            *("technician", "principal"),
            id="no principal",
        ),
        pytest.param(
            (
                (
                    "cert: Authentication tried for technician with valid certificate but not from"
                    " a permitted source address (192.0.2.7)."
                ),
                *(CERT, CLOSED),
            ),
            *("technician", "source"),
            id="another source",
        ),
        pytest.param(
            ("error: Certificate invalid: not a user certificate", CERT, CLOSED),
            *("technician", "certificate"),
            id="a host's certificate",
        ),
        pytest.param(
            (
                "User root from 192.0.2.7 not allowed because not listed in AllowUsers",
                f"Failed publickey for invalid user root from {FROM} ssh2: ED25519 SHA256:x",
                f"Connection closed by invalid user root {FROM} [preauth]",
            ),
            *("root", "account"),
            id="an account that is not allowed",
        ),
        pytest.param(
            (
                f"Invalid user maria from {FROM}",
                f"Connection closed by invalid user maria {FROM} [preauth]",
            ),
            *("other", "account"),
            id="an account that there is not",
        ),
        pytest.param(
            (
                f"Failed password for technician from {FROM} ssh2",
                f"Connection reset by authenticating user technician {FROM} [preauth]",
            ),
            *("technician", "password"),
            id="a password",
        ),
        pytest.param((CLOSED,), "technician", "key", id="nothing that could count"),
        pytest.param(
            (f"Timeout before authentication for {FROM}",),
            *("other", "timeout"),
            id="nothing, for long, by 9.2",
        ),
        pytest.param(
            (
                (
                    "Timeout before authentication for connection from 192.0.2.7 to 192.0.2.1,"
                    f" pid = {PID}"
                ),
            ),
            *("other", "timeout"),
            id="nothing, for long, by 10",
        ),
        pytest.param(
            (KEY, f"Disconnecting authenticating user technician {FROM}: Too many [preauth]"),
            *("technician", "key"),
            id="key after key",
        ),
    ],
)
def test_e1_a_connection_is_refused_once_that_shows(
    texts: tuple[str, ...], account: str, reason: str
) -> None:
    assert refused(BEGINS, *texts, "Connection closed, again") == [(account, reason, "192.0.2.7")]


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(
            (
                *(KEY, f"Accepted publickey for technician from {FROM} ssh2"),
                f"Received disconnect from {FROM}:11: disconnected by user",
                f"Disconnected from user technician {FROM}",
            ),
            id="enters",
        ),
        pytest.param((f"Connection closed by {FROM} [preauth]",), id="only looks"),
        pytest.param((f"banner exchange: Connection from {FROM}: invalid format",), id="babbles"),
        pytest.param((KEY,), id="has not ended"),
    ],
)
def test_nobody_is_refused_who(texts: tuple[str, ...]) -> None:
    assert refused(BEGINS, *texts) == []


HOSTILE = "root from 203.0.113.9 port 1 ssh2"


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(
            (
                f"Invalid user {HOSTILE} from {FROM}",
                f"Connection closed by invalid user {HOSTILE} {FROM} [preauth]",
            ),
            id="name",
        ),
        pytest.param(
            (
                f"Failed publickey for invalid user {HOSTILE} from {FROM} ssh2: ED25519 SHA256:x",
                f"Connection closed by invalid user {HOSTILE} {FROM} [preauth]",
            ),
            id="name, as a key fails",
        ),
        pytest.param(
            (
                (
                    f"Failed publickey for invalid user x from {FROM} ssh2: ED25519-CERT SHA256:x"
                    f" ID root from {FROM} ssh2 (serial 0)"
                ),
                f"Connection closed by invalid user x {FROM} [preauth]",
            ),
            id="certificate's id",
        ),
        pytest.param(
            (
                f"Invalid user Accepted publickey for from {FROM}",
                f"Connection closed by invalid user revoked {FROM} [preauth]",
            ),
            id="name that lets in",
        ),
    ],
)
def test_e1_a_hostile_text_shifts_nothing_in_a(texts: tuple[str, ...]) -> None:
    assert [one[::2] for one in refused(BEGINS, *texts)] == [("other", "192.0.2.7")]


def test_e1_who_is_locked_out_is_told_by_each_connection() -> None:
    texts = [
        f"drop connection #0 from [127.0.0.20]:{port} on [127.0.0.1]:22 penalty: failed"
        " authentication"
        for port in (1, 2)
    ]
    assert refused(*texts, texts[0]) == [("other", "penalty", "127.0.0.20")] * 2
    crowd = "drop connection #30 from [::1]:9 on [::1]:22 past MaxStartups"
    assert refused(crowd) == [("other", "crowd", "::1")]


def test_a_number_that_is_used_again_begins_anew() -> None:
    other = BEGINS.replace("4022", "4023")
    assert refused(BEGINS, KEY, other, KEY.replace("4022", "4023"), CLOSED.replace("4022", "4023"))
    found = refused(BEGINS, KEY, other)
    assert found == [("technician", "key", "192.0.2.7")], "whose end was never told"


# --- the place to read on from --------------------------------------------------------------------


def test_e1_read_on_from_anywhere_each_is_told_once() -> None:
    """As if the watcher were killed behind any line: what it keeps is kept as it tells."""
    texts = [
        *lines(BEGINS, KEY, CLOSED, pid=1, first=1),
        *lines(BEGINS.replace("4022", "5"), pid=2, first=4),
        *lines(BEGINS.replace("4022", "6"), pid=3, first=5),
        *lines(KEY.replace("4022", "6"), CLOSED.replace("4022", "6"), pid=3, first=6),
        *lines(KEY.replace("4022", "5"), CLOSED.replace("4022", "5"), pid=2, first=8),
        *lines(BEGINS.replace("4022", "7"), pid=4, first=10),
    ]
    for killed in range(len(texts) + 1):
        doors, told = Doors(), list[Refusal]()
        kept: tuple[str, tuple[str, ...]] = ("", ())
        for line in texts[:killed]:
            if found := doors.receive(line):
                told += found
                kept = (doors.cursor, tuple(doors.told))
        again = Doors(*kept)
        at = next((n for n, line in enumerate(texts, 1) if line.cursor == kept[0]), 0)
        for line in texts[at:]:
            told += again.receive(line)
        assert [one.key for one in told] == [
            "boot-1-192.0.2.7-4022",
            "boot-3-192.0.2.7-6",
            "boot-2-192.0.2.7-5",
        ]


def test_memory_is_bounded_and_who_falls_out_of_it_is_told() -> None:
    doors, told = Doors(), list[Refusal]()
    for pid in range(3 * CONNECTIONS_MAX):
        begins, fails = (text.replace("4022", str(pid)) for text in (BEGINS, KEY))
        for line in lines(begins, fails, pid=pid):
            told += doors.receive(line)
    assert len(doors._open) == CONNECTIONS_MAX
    assert len(told) == 2 * CONNECTIONS_MAX
    assert len(doors.told) <= TOLD_MAX


# --- the journal's own spelling -------------------------------------------------------------------

ENTRY = {
    "MESSAGE": KEY,
    "SYSLOG_IDENTIFIER": "sshd-session",
    "_PID": "41",
    "_UID": "0",
    "_BOOT_ID": "boot",
    "__CURSOR": "s=1",
    "__REALTIME_TIMESTAMP": "1795411406000001",
}


def test_a_line_of_the_journal_is_read() -> None:
    expected = Line("s=1", "boot", 41, KEY, 1_795_411_406)
    assert decode_line(json.dumps(ENTRY).encode()) == expected
    as_bytes = ENTRY | {"MESSAGE": [*b"Invalid user \xff"], "SYSLOG_IDENTIFIER": "sshd"}
    found = decode_line(json.dumps(as_bytes).encode())
    assert found is not None
    assert found.text == "Invalid user \ufffd"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"_UID": "1000"}, id="by another than root"),
        pytest.param({"SYSLOG_IDENTIFIER": "sudo"}, id="by another program"),
        pytest.param({"MESSAGE": None}, id="too long to show"),
        pytest.param({"MESSAGE": [300]}, id="of no bytes"),
        pytest.param({"_PID": "x"}, id="by no process"),
    ],
)
def test_a_line_is_passed_over_that_is(changed: dict[str, object]) -> None:
    assert decode_line(json.dumps(ENTRY | changed).encode()) is None


VALUES: st.SearchStrategy[object] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.lists(st.integers(), max_size=3)
)
ENTRIES = st.fixed_dictionaries(
    {}, optional={name: st.just(value) | VALUES for name, value in ENTRY.items()}
).map(lambda entry: json.dumps(entry).encode())


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()) | ENTRIES)
@example(json.dumps(ENTRY).encode())
@example(json.dumps(ENTRY | {"_PID": float("inf")}).encode())
@example(json.dumps(ENTRY | {"MESSAGE": "x" * 9999}).encode())
def test_any_bytes_are_a_line_or_passed_over(data: bytes) -> None:
    found = decode_line(data)
    if found is not None:
        entry = json.loads(data)
        assert (entry["_UID"], entry["SYSLOG_IDENTIFIER"][:4]) == ("0", "sshd")
        assert isinstance(found.text, str)
        assert len(found.text) <= TEXT_LETTERS_MAX


@given(st.lists(st.sampled_from([BEGINS, KEY, CLOSED, CERT]) | st.text(max_size=80), max_size=20))
def test_whatever_is_said_a_connection_is_told_once_at_most(texts: list[str]) -> None:
    found = refused(*texts)
    assert len(found) <= sum(text == BEGINS for text in texts) + sum("drop" in t for t in texts)
