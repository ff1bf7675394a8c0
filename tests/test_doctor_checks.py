"""What facts mean: each case changes one fact of a device that is well."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from meterd.ctl.alarm_words import WORST_FIRST, kind_of, ordered, todo
from meterd.ctl.doctor import as_json, headline, lines
from meterd.ctl.doctor_checks import examine, is_well
from meterd.ctl.doctor_facts import (
    NEEDS_ROOT,
    Broker,
    Card,
    Clock,
    Facts,
    Happened,
    Heard,
    Locked,
    Memory,
    Port,
    Secret,
    Technician,
    Unit,
    Unseen,
    Vault,
    Verdict,
)
from meterd.ctl.doctor_findings import FAIL, OK, UNKNOWN, WARN, Finding

NOW_S = 1_800_000_000
DAY_S = 86_400
GOOD = Verdict(good=True, told="as it should be")
BAD = Verdict(good=False, told="something is wrong", hint="mend it")
STATUS: dict[str, Any] = {
    "state": "metering",
    "height": 7,
    "alarms": [],
    "neighbours": {"voters": 4, "certified_height": 6, "order": 0, "waits": ""},
}
CARD = Card(
    free_bytes=8_000_000_000,
    total_bytes=16_000_000_000,
    inodes_free=100_000,
    kind="ext4",
    options=("rw", "noatime"),
    errors=0,
    bytes_a_day=600_000,
    reserve_bytes=64_000_000,
    sync_ms=12,
)
PORT = Port("/dev/ttyAMA0", there=True, others=("/dev/ttyUSB0",), mode="crw------- meterd:meterd")
CLOCK = Clock(NOW_S, "S", trusted=False, rtc=True, build_s=1_793_491_200)
PI_4 = "Raspberry Pi 4 Model B Rev 1.4"
PI_5 = "Raspberry Pi 5 Model B Rev 1.0"
CONFIG_TXT = "[pi4]\ndtoverlay=disable-bt\n[pi5]\ndtparam=uart0=on\n[all]\ndtparam=watchdog=on\n"
SECRET = Secret("sealing key", "/s/seal.key", there=True, mode=0o600, needed=True, make="init")
BROKER = Broker("mqtts://b:8883", reached=True, by="the peer process")
WELL = Facts(
    now_s=NOW_S,
    daemon=STATUS,
    units=(Unit("meterd.service", "active", "enabled", 0),),
    settings=GOOD,
    port=PORT,
    model=PI_4,
    config_txt=CONFIG_TXT,
    reset_gpio=4,
    throttled=0,
    low_voltage=False,
    celsius=51,
    clock=CLOCK,
    card=CARD,
    wear=(2, 1),
    account=GOOD,
    secrets=(SECRET,),
    vault=Vault(GOOD, 32, model=True),
    software=GOOD,
    running=("ab" * 32, "ab" * 32),
    locked=Locked(applied=True, items=90, wrong=()),
    brokers=(BROKER,),
    certificate_s=NOW_S + 200 * DAY_S,
    technician=Technician(ca=True, principals=True, revoked_s=NOW_S - DAY_S),
    pins=GOOD,
    kernel="6.12.47+rpt-rpi-v8",
    memory=Memory(900_000_000, 600_000_000),
    journal=GOOD,
    watchdog=(True, 15),
    happened=Happened(NOW_S - 30 * DAY_S, {"sealed": 1440}),
)
HEARD = Heard(b"", 15.0, (8,), 0)
LINE = b"11 374.0 0.0 0.0 1600.0 0.0 0.0 243.87\r\n"


def well_but(**facts: Any) -> Facts:  # noqa: ANN401 - each fact has a type of its own
    """Return the facts of a device that is well, some of them changed."""
    return replace(WELL, **facts)


def board(**changed: object) -> dict[str, object]:
    return {"daemon": BAD, "heard": HEARD._replace(**changed)}  # type: ignore[arg-type]


def daemon(**changed: object) -> dict[str, object]:
    return {"daemon": STATUS | changed}


def test_a_device_that_is_well_has_nothing_but_good_findings() -> None:
    found = examine(WELL)
    assert [finding for finding in found if finding.verdict != OK] == []
    assert len(found) >= 25
    assert is_well(found)


@pytest.mark.parametrize(
    ("changed", "check", "verdict", "told"),
    [
        pytest.param({"daemon": BAD}, "daemon", FAIL, "wrong", id="no daemon answers"),
        pytest.param(
            daemon(alarms=["port: the board is silent"]),
            "alarm port",
            FAIL,
            "the board is silent",
            id="an alarm stands",
        ),
        pytest.param(
            daemon(height=20), "neighbours", WARN, "14 blocks are not", id="neighbours are behind"
        ),
        pytest.param(
            {"units": (Unit("meterd.service", "failed", "enabled", 0),)},
            "unit meterd",
            FAIL,
            "is failed",
            id="the unit has failed",
        ),
        pytest.param(
            {"units": (Unit("meterd.service", "active", "disabled", 0),)},
            "unit meterd",
            FAIL,
            "will not start by itself",
            id="the unit is not enabled",
        ),
        pytest.param(
            {"units": (Unit("meterd.service", "active", "enabled", 40),)},
            "unit meterd",
            WARN,
            "started anew 40 times",
            id="the unit is restarted again and again",
        ),
        pytest.param(
            {"units": (Unit("meterd.service", "inactive", "", 0),)},
            "unit meterd",
            WARN,
            "is not installed",
            id="there is no unit",
        ),
        pytest.param(
            {"units": (Unit("meterd-prune.timer", "inactive", "enabled", 0, needed=False),)},
            "unit meterd-prune.timer",
            WARN,
            "is inactive",
            id="a timer does not run",
        ),
        pytest.param(
            {"units": (Unit("meterd-prune.timer", "active", "disabled", 0, needed=False),)},
            "unit meterd-prune.timer",
            WARN,
            "will not start by itself",
            id="a timer is not enabled",
        ),
        pytest.param({"settings": BAD}, "settings", FAIL, "wrong", id="settings have a mistake"),
        pytest.param(
            {"port": PORT._replace(there=False)}, "port", FAIL, "there is no", id="no port"
        ),
        pytest.param(
            {"port": PORT._replace(holders=("minicom (812)",))},
            "port",
            FAIL,
            "held by minicom (812)",
            id="another program has the port",
        ),
        pytest.param(
            {"port": PORT._replace(gettys=("serial-getty@ttyAMA0.service",))},
            "port",
            FAIL,
            "waits for a login",
            id="a getty is on the port",
        ),
        pytest.param(
            {"port": PORT._replace(console=("console=serial0,115200",))},
            "port",
            FAIL,
            "the kernel writes to it",
            id="a console is on the port",
        ),
        pytest.param(
            {"port": PORT._replace(usable=False), "daemon": BAD},
            "port",
            UNKNOWN,
            "may not open",
            id="the port is not this user's",
        ),
        pytest.param(board(), "board", FAIL, "not a byte", id="the board is silent"),
        pytest.param(
            board(data=b"\x80\xfe\x00\xf8" * 99), "board", FAIL, "garbage", id="the speed is wrong"
        ),
        pytest.param(
            board(data=b"11 1.0 2.0 3.0\r\n" * 9),
            "board",
            FAIL,
            "lines have 4 fields, board.layout says 8",
            id="the layout is another",
        ),
        pytest.param(
            board(data=LINE * 9), "board", FAIL, "no whole reading", id="lines are no readings"
        ),
        pytest.param(
            board(data=LINE[:20]), "board", WARN, "no whole reading", id="one line began only"
        ),
        pytest.param(
            {"config_txt": ""}, "bluetooth", FAIL, "Bluetooth has the good UART", id="a Pi 4's BT"
        ),
        pytest.param(
            {"config_txt": "[pi5]\ndtoverlay=disable-bt\n"},
            "bluetooth",
            FAIL,
            "of this Pi 4",
            id="it is off on another model only",
        ),
        pytest.param(
            {"model": PI_5, "config_txt": "[pi4]\ndtparam=uart0=on\n"},
            "bluetooth",
            FAIL,
            "UART of this Pi 5 is off",
            id="a Pi 5's UART is off",
        ),
        pytest.param(
            {"config_txt": CONFIG_TXT + "dtoverlay=w1-gpio\n"},
            "reset pin",
            FAIL,
            "GPIO 4 resets the board, and is the 1-Wire bus",
            id="1-Wire is on the reset pin",
        ),
        pytest.param(
            {"reset_gpio": 17, "config_txt": CONFIG_TXT + "dtoverlay=w1-gpio,gpiopin=17\n"},
            "reset pin",
            FAIL,
            "GPIO 17",
            id="1-Wire is on another pin, and that one resets",
        ),
        pytest.param({"throttled": 0x50005}, "supply", FAIL, "too low", id="the voltage is low"),
        pytest.param({"throttled": 0x50000}, "supply", WARN, "since", id="the voltage was low"),
        pytest.param({"low_voltage": True}, "supply", FAIL, "kernel's alarm", id="rpi_volt"),
        pytest.param({"celsius": 84}, "temperature", FAIL, "84", id="it is hot"),
        pytest.param({"celsius": 76}, "temperature", WARN, "76", id="it is warm"),
        pytest.param(
            {"memory": Memory(900_000_000, 20_000_000)}, "memory", WARN, "20 of", id="little memory"
        ),
        pytest.param(
            {"memory": Memory(900_000_000, 600_000_000, bounded=False)},
            *("memory bounds", WARN, "no MemoryMax="),
            id="memory that is not accounted for",
        ),
        pytest.param({"bits": 32}, "system", FAIL, "32-bit", id="a 32-bit userland"),
        pytest.param({"kernel": "5.10.103-v8+"}, "kernel", WARN, "older", id="an old kernel"),
        pytest.param({"watchdog": (False, 0)}, "watchdog", WARN, "none", id="no watchdog"),
        pytest.param({"watchdog": (True, 0)}, "watchdog", WARN, "not serve", id="not served"),
        pytest.param({"journal": BAD}, "journal", WARN, "wrong", id="no namespace"),
        pytest.param(
            {"clock": CLOCK._replace(status="R")}, "clock", FAIL, "not synchron", id="no time"
        ),
        pytest.param({"clock": CLOCK._replace(status="I")}, "clock", WARN, "chip", id="a chip's"),
        pytest.param(
            {"clock": CLOCK._replace(trusted=True)}, "clock", WARN, "always", id="trusted blindly"
        ),
        pytest.param(
            {"clock": CLOCK._replace(wall_s=5)}, "clock", FAIL, "before this software", id="1970"
        ),
        pytest.param(
            {"card": CARD._replace(options=("ro",))}, "card", FAIL, "read-only", id="read-only"
        ),
        pytest.param({"card": CARD._replace(kind="tmpfs")}, "card", FAIL, "tmpfs", id="in memory"),
        pytest.param(
            {"card": CARD._replace(kind="overlay")}, "card", WARN, "overlay", id="on a layer"
        ),
        pytest.param({"card": CARD._replace(kind="vfat")}, "card", FAIL, "vfat", id="on FAT"),
        pytest.param(
            {"card": CARD._replace(open_files=3)}, "card", WARN, "3 segments", id="open files"
        ),
        pytest.param(
            {"card": CARD._replace(open_files=None)}, "card", WARN, "no append", id="no flags"
        ),
        pytest.param({"card": CARD._replace(errors=3)}, "card", WARN, "3 errors", id="fs errors"),
        pytest.param(
            {"card": CARD._replace(free_bytes=64_000_000)}, "card", FAIL, "is full", id="full"
        ),
        pytest.param(
            {"card": CARD._replace(free_bytes=70_000_000)}, "card", WARN, "10 days", id="nearly"
        ),
        pytest.param(
            {"card": CARD._replace(inodes_free=7)}, "card", WARN, "7 more files", id="no inodes"
        ),
        pytest.param(
            {"card": CARD._replace(sync_ms=9000)}, "sync", WARN, "9000 ms", id="a slow card"
        ),
        pytest.param(
            {"card": CARD._replace(sync_ms=-1)}, "sync", FAIL, "durable", id="fsync fails"
        ),
        pytest.param(
            {"card": CARD._replace(sync_ms=NEEDS_ROOT)}, "sync", UNKNOWN, "root", id="sync unseen"
        ),
        pytest.param({"wear": (11, 1)}, "wear", FAIL, "rated end", id="a worn card"),
        pytest.param({"wear": (3, 2)}, "wear", WARN, "20 to 30 %", id="its spare blocks go"),
        pytest.param({"account": BAD}, "account", FAIL, "wrong", id="the account is bad"),
        pytest.param(
            {"secrets": (SECRET._replace(there=False),)},
            "sealing key",
            FAIL,
            "there is no /s/seal.key",
            id="the key is gone",
        ),
        pytest.param(
            {"secrets": (SECRET._replace(mode=0o640),)},
            "sealing key",
            FAIL,
            "read or changed by others (mode 0640)",
            id="the key is open to others",
        ),
        pytest.param(
            {"secrets": (SECRET._replace(mode=0o664, encrypted=True),)},
            "sealing key",
            FAIL,
            "changed by others (mode 0664)",
            id="a credential that others may write",
        ),
        pytest.param(
            {"secrets": (SECRET._replace(mode=0o444, credential=True),)},
            "sealing key",
            FAIL,
            "read or changed by others (mode 0444)",
            id="a unit's credential that everybody may read",
        ),
        pytest.param(
            {"secrets": (SECRET._replace(mode=0o460, credential=True),)},
            "sealing key",
            FAIL,
            "read or changed by others (mode 0460)",
            id="a unit's credential that its user may write",
        ),
        pytest.param(
            {"vault": Vault(BAD, 32, model=True)}, "vault", FAIL, "wrong", id="the vault is shut"
        ),
        pytest.param(
            {"vault": Vault(GOOD, 0, model=True)},
            "vault board",
            WARN,
            "no key of its own",
            id="not bound to the board",
        ),
        pytest.param({"software": BAD}, "software", FAIL, "wrong", id="changed software"),
        pytest.param(
            {"running": ("ab" * 32, "cd" * 32)}, "software", FAIL, "runs cdcd", id="an old daemon"
        ),
        pytest.param(
            {"locked": Locked(applied=False, items=9, wrong=("x",))},
            "lockdown",
            WARN,
            "not closed",
            id="never closed",
        ),
        pytest.param(
            {"locked": Locked(applied=True, items=9, wrong=("/etc/nftables.conf",))},
            "lockdown",
            FAIL,
            "1 of 9 items do not hold: /etc/nftables.conf",
            id="opened since",
        ),
        pytest.param(
            {"brokers": (BROKER._replace(reached=False),)}, "broker", FAIL, "not", id="no broker"
        ),
        pytest.param(
            {"brokers": (BROKER._replace(reached=False), BROKER)},
            "broker",
            WARN,
            "not reached",
            id="one of two brokers",
        ),
        pytest.param(
            {"certificate_s": NOW_S - DAY_S}, "certificate", FAIL, "ended", id="certificate over"
        ),
        pytest.param(
            {"certificate_s": NOW_S + 9 * DAY_S}, "certificate", WARN, "in 9 days", id="soon over"
        ),
        pytest.param(
            {"technician": Technician(ca=False, principals=True, revoked_s=NOW_S)},
            "technicians",
            FAIL,
            "no CA",
            id="no CA",
        ),
        pytest.param(
            {"technician": Technician(ca=True, principals=True, revoked_s=None)},
            "technicians",
            FAIL,
            "no revocation list",
            id="no revocation list",
        ),
        pytest.param(
            {"technician": Technician(ca=True, principals=True, revoked_s=NOW_S - 99 * DAY_S)},
            "technicians",
            WARN,
            "99 days old",
            id="an old revocation list",
        ),
        pytest.param({"pins": BAD}, "pins", FAIL, "wrong", id="pins that cannot be used"),
    ],
)
def test_a_finding_where(changed: dict[str, Any], check: str, verdict: str, told: str) -> None:
    found = [each for each in examine(well_but(**changed)) if each.check == check]
    worst = [each for each in found if each.verdict == verdict and told in each.found]
    assert worst, found
    assert all(each.todo for each in worst)
    others = [each for each in examine(well_but(**changed)) if each.verdict == FAIL]
    assert is_well(others) == (not others)


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        pytest.param(daemon(alarms=["port: the board is silent"]), "alarms", id="an alarm stands"),
        pytest.param({"port": PORT._replace(holders=("minicom (8)",))}, "port", id="a held port"),
        pytest.param({"low_voltage": True}, "supply", id="low voltage by one of two alarms"),
        pytest.param({"card": CARD._replace(sync_ms=-1)}, "sync", id="a sync that fails"),
        pytest.param(
            {"units": (Unit("meterd-peer.service", "inactive", "", 0, needed=False),)},
            "unit meterd-peer",
            id="a unit that is neither there nor needed",
        ),
    ],
)
def test_nothing_is_called_good_beside(changed: dict[str, Any], check: str) -> None:
    found = examine(well_but(**changed))
    assert [each for each in found if (each.check, each.verdict) == (check, OK)] == []


def test_a_credential_is_encrypted_and_may_be_read() -> None:
    found = examine(well_but(secrets=(SECRET._replace(mode=0o644, encrypted=True),)))
    assert [each.verdict for each in found if each.check == "sealing key"] == [OK]


def test_a_credential_of_a_unit_that_runs_has_the_mask_of_its_list_of_access() -> None:
    """systemd hands it over as 0440, its user let in by an ACL: so each healthy device has it."""
    found = examine(well_but(secrets=(SECRET._replace(mode=0o440, credential=True),)))
    assert [each.verdict for each in found if each.check == "sealing key"] == [OK]


def test_neighbours_that_have_certified_nothing_yet_are_told_so() -> None:
    young = STATUS | {"height": 2, "neighbours": STATUS["neighbours"] | {"certified_height": 0}}
    [found] = (each for each in examine(well_but(daemon=young)) if each.check == "neighbours")
    assert (found.verdict, found.found) == (OK, "have certified nothing yet")


def test_of_many_items_two_are_named() -> None:
    wrong = ("/etc/a", "/etc/b", "/etc/c")
    facts = well_but(locked=Locked(applied=True, items=9, wrong=wrong))
    (found,) = (each for each in examine(facts) if each.check == "lockdown")
    assert found.found == "3 of 9 items do not hold: /etc/a, /etc/b, …"
    two = well_but(locked=Locked(applied=True, items=9, wrong=wrong[:2]))
    assert any(each.found.endswith("/etc/a, /etc/b") for each in examine(two))


def test_every_rule_is_broken_by_one_of_the_cases_above() -> None:
    marks = [m for m in test_a_finding_where.pytestmark if m.name == "parametrize"]
    broken = {case.values[1] for mark in marks for case in mark.args[1]}
    checks = {each.check for each in examine(well_but(**board(data=LINE, readings=3)))}
    checks |= {each.check for each in examine(WELL)}
    assert checks - broken <= {"alarms", "events"}  # the first is a sum, the second only tells


@pytest.mark.parametrize(
    "name", [field.name for field in fields(Facts) if "Unseen" in str(field.type)]
)
def test_what_was_not_seen_is_never_well(name: str) -> None:
    found = examine(well_but(**{name: Unseen("it hid")}))
    assert [each for each in found if (each.verdict, each.found) == (UNKNOWN, "it hid")]


def test_a_machine_that_is_no_pi_and_has_no_systemd_is_not_blamed_for_it() -> None:
    bare = examine(Facts(now_s=NOW_S))
    assert [(each.check, each.verdict) for each in bare] == [("system", OK)]


def test_alarms_come_the_worst_first_and_one_that_nobody_knows_before_them() -> None:
    alarms = ["cadence: a", "storage_full: b", "zzz_new: c", "port: d"]
    assert [kind_of(alarm) for alarm in ordered(alarms)] == [
        "zzz_new",
        "storage_full",
        "port",
        "cadence",
    ]
    assert all(todo(f"{kind}: x") for kind in WORST_FIRST)


def test_every_alarm_that_the_meter_raises_has_its_place() -> None:
    from meterd.event_kinds import ALARMS

    assert set(ALARMS) == set(WORST_FIRST)
    assert all(not todo(f"{kind}: x").startswith("see `meterctl events") for kind in ALARMS)


@pytest.mark.parametrize("name", ["port", "unit meterd-peer", "unit run-meterd.line.mount"])
def test_a_name_of_any_length_stands_apart_and_a_unit_in_a_command_is_whole(name: str) -> None:
    todo = f"`systemctl start {name[5:]}.timer`; see `journalctl --namespace=meterd -u meterd-x`"
    _, first, *rest = lines([Finding(name, FAIL, "is inactive", todo)])
    assert first.split(maxsplit=1)[1].startswith(f"{name} ")
    assert first.endswith(" is inactive")
    assert {line[:27].strip() for line in rest} == {""}
    assert "-u meterd-x`" in " ".join(rest).replace("  ", "")
    assert [line for line in rest if line.endswith("-")] == []


def test_findings_fit_eighty_columns_and_begin_with_the_answer() -> None:
    found = [
        *examine(well_but(**board(data=b"\x80" * 400), throttled=0x50005)),
        Finding("alarm case_switch_stuck", FAIL, "x" * 300 + "\x1b[2J", "y " * 99),
    ]
    told = list(lines(found))
    assert told[0] == headline(found)
    assert told[0].startswith("not well: ")
    assert [line for line in told if len(line) > 80 or not line.isprintable()] == []
    assert as_json(found)["well"] is False
