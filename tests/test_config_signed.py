"""What of the settings' file counts once the parameters are signed."""

from __future__ import annotations

import pytest

from meterd.config import parameters
from meterd.config_signed import checked, effect, in_force, missing, with_parameters
from meterd.ctl.parameters import changers
from meterd.errors import ConfigError
from meterd.ledger.parameters import BY, COMMISSIONED, FILE, MISSING, file_digest
from tests.accounts import config_text, settings_of

TEXT = config_text()
FILE_SETTINGS = settings_of(TEXT)
OWN = parameters(FILE_SETTINGS)
SIGNED = ((BY, "jo"), (COMMISSIONED, "5f0c"))
SCALED = tuple((key, "1.02" if key == "clamp.1.scale" else value) for key, value in OWN)
CUSTOM = 'layout = "custom"\nfields = ["node", "RP1", "Irms1", "Vrms"]\npolling_ms'
SEVEN = '[[clamp]]\nname = "oven"\nrole = "circuit"\nscale = 0.5\nzero_below_w = 2.5\n'


def test_the_file_decides_until_the_parameters_are_signed() -> None:
    for record in ((), SCALED):
        now = in_force(FILE_SETTINGS, record)
        assert now == (FILE_SETTINGS, OWN, "")


def test_the_file_decides_too_where_all_that_is_known_is_that_a_record_is_missing() -> None:
    """A card that was put back to before its commissioning: what it lacks is said on."""
    lacks = (MISSING, "5f" * 32)
    assert in_force(FILE_SETTINGS, (*SCALED, lacks)) == (FILE_SETTINGS, (*OWN, lacks), "")
    assert "`meterctl commission`" in missing((*SCALED, lacks))
    assert "(`meterctl calibrate`)" in missing((*SCALED, lacks, *SIGNED))
    assert missing((*SCALED, *SIGNED)) == ""
    asked = {"distributor": "", "owner": "", "signed": {MISSING: lacks[1]}}
    assert changers(asked) == "the settings' file, until it is commissioned"


def test_parameters_come_to_the_same_however_another_software_spells_them() -> None:
    fewer = tuple(pair for pair in OWN if pair[0] != "clamp.1.zero_below_w")
    assert fewer != OWN
    assert effect(fewer) == effect(OWN) == OWN
    assert effect(SCALED) == SCALED
    for strange in ((*OWN, ("board.colour", "red")), (("clamp.0.name", "none"), *OWN), ()):
        assert effect(strange) == strange


def test_s3_what_is_signed_counts_whatever_the_file_says() -> None:
    now = in_force(FILE_SETTINGS, (*SCALED, *SIGNED))
    assert now.pairs == (*SCALED, *SIGNED)
    assert parameters(now.settings) == SCALED
    assert now.settings.board.port == FILE_SETTINGS.board.port
    assert now.settings.log == FILE_SETTINGS.log
    assert "clamp.1.scale is 1 there, 1.02 in force" in now.differs


def test_a_file_that_is_as_signed_or_as_it_was_then_is_no_alarm() -> None:
    assert in_force(FILE_SETTINGS, (*OWN, *SIGNED)).differs == ""
    then = (*SIGNED, (FILE, file_digest(OWN)))
    assert in_force(FILE_SETTINGS, (*SCALED, *then)).differs == ""
    edited = settings_of(TEXT.replace('role = "mains"', 'role = "mains"\nscale = 9'))
    assert "is 9 there, 1.02 in force" in in_force(edited, (*SCALED, *then)).differs


def test_more_than_three_differences_are_cut_short() -> None:
    other = settings_of(TEXT.replace("[board]", "nominal_v = 231\nfuse_a = 9\n[board]\nvest = 2"))
    differs = in_force(
        settings_of(TEXT.replace('"mains"\n\n', '"mains"\nscale = 3\n\n')),
        (*parameters(other), *SIGNED),
    ).differs
    assert differs.count(" there, ") == 3
    assert "; …; put it back" in differs


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.replace("polling_ms", CUSTOM, 1),
        TEXT.replace("[clock]", f"{SEVEN}[clock]"),
        TEXT.replace("polling_ms", 'layout = "rpict3t1"\npolling_ms', 1),
        TEXT.replace('role = "mains"', 'role = "mains"\nreversed = true').replace(
            "always", "kernel"
        ),
    ],
)
def test_a_record_is_metered_by_as_the_file_that_it_came_from(text: str) -> None:
    settings = settings_of(text)
    record = parameters(settings)
    now = in_force(FILE_SETTINGS, (*record, *SIGNED))
    assert (now.settings.rules, now.settings.clock) == (settings.rules, settings.clock)
    assert now.settings.meter.interval_s == settings.meter.interval_s
    assert checked(FILE_SETTINGS, dict(record)) == record


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"clamp.1.scale": "0"}, "expected a number above 0"),
        ({"clamp.1.scale": "x"}, "expected a number above 0"),
        ({"clamp.1.scale": "1.0"}, "expected 1, got 1.0"),
        ({"clamp.1.scale": "²"}, "expected a number above 0"),
        ({"clamp.1.reversed": "yes"}, "expected true or false"),
        ({"meter.interval_s": "61"}, "divide a day"),
        ({"meter.interval_s": "9" * 400}, "whole number"),
        ({"board.layout": "rpict7v1"}, "board.fields: expected node RP1 RP2"),
        ({"board.colour": "red"}, "no such key"),
        ({"clamp.7.scale": "1"}, "no parameter clamp.7.scale"),
        ({"network.brokers": "x"}, "no parameter network.brokers"),
        ({"clock.trust": "never"}, "expected kernel or always"),
    ],
)
def test_a_parameter_is_refused_that_is(changes: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        checked(FILE_SETTINGS, dict(OWN) | changes)


def test_a_record_that_this_software_cannot_meter_by_stops_it() -> None:
    with pytest.raises(ConfigError):
        in_force(FILE_SETTINGS, (*OWN, ("board.layout", "rpict99"), *SIGNED))
    with pytest.raises(ConfigError, match="clamp: no clamp is described"):
        with_parameters(FILE_SETTINGS, {})
