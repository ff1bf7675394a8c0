"""What the demo's households draw: real days where they are found, else the model's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from meterd.errors import AbsentError
from meterd.household import local_ms, read_recording

HOUSES = 4  # the fewest voters among whom one may lie
NOISE_W = "2"  # as a real board's last digits have it; without, half-hour means look frozen
MINUTES_FILE = "household-2007-01-08-28d.csv.gz"
HALF_HOURS_FILE = "halfhour-year.csv.gz"
# In the past, since peers defer a block that ends in their future; minutes apart, so that not all
# houses seal at once. The recordings begin likewise.
MODEL_STARTS = [f"2024-04-08T06:{minute:02d}:00" for minute in (0, 8, 15, 23)]


class _Known(NamedTuple):
    """A recording that the project keeps: of whom, from when; None: whose else would it be."""

    file: str
    household: str | None
    start: str
    label: str


_RECORDED = (
    _Known(MINUTES_FILE, None, "2007-01-08T06:00:00", "a home near Paris"),
    _Known(HALF_HOURS_FILE, "ausgrid12", "2011-07-29T08:08:00", "a Sydney home with solar panels"),
    _Known(HALF_HOURS_FILE, "sgsc01", "2013-06-02T06:15:00", "a flat in New South Wales"),
    _Known(HALF_HOURS_FILE, "sgsc03", "2013-06-02T06:23:00", "a house in New South Wales"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What a board of the demo plays.

    Attributes:
        label: For the screen.
        epoch_ms: Household time at which it begins, ms since 1970.
        options: For `meterd board`.
    """

    name: str
    label: str
    epoch_ms: int
    options: tuple[str, ...]


def find_recording(file: str) -> Path | None:
    """Return where a recording of real households lies, if the project's folder has it."""
    folders = [Path(__file__).resolve().parents[3] / "shared" / "data"]
    if "METERD_DATA" in os.environ:
        folders.insert(0, Path(os.environ["METERD_DATA"]))
    return next((folder / file for folder in folders if (folder / file).exists()), None)


def choose_houses(csv: Path | None, seed: int) -> tuple[House, ...]:
    """Return what each house plays: the first one `csv` if given, else real days, else the model.

    Raises:
        AbsentError: The CSV asked for cannot be read.
    """
    houses = [_house(f"house-{number + 1}", number, seed) for number in range(HOUSES)]
    if csv is not None:
        houses[0] = _asked(houses[0].name, csv)
    return tuple(houses)


def _asked(name: str, csv: Path) -> House:
    try:
        start_ms = read_recording(csv).start_ms
    except OSError as error:
        raise AbsentError(f"cannot read {csv}: {error.strerror}") from error
    return House(
        name=name,
        label=f"a real household ({csv.name})",
        epoch_ms=start_ms,
        options=("--csv", str(csv), "--loop"),
    )


def _house(name: str, number: int, seed: int) -> House:
    known = _RECORDED[number]
    path = find_recording(known.file)
    if path is None:
        own = seed + number
        return House(
            name=name,
            label=f"the model household, seed {own}",
            epoch_ms=local_ms(MODEL_STARTS[number]),
            options=("--seed", str(own), "--start", MODEL_STARTS[number], "--noise-w", NOISE_W),
        )
    options = ["--csv", str(path), "--loop", "--start", known.start]
    if known.household is not None:
        options += ["--household", known.household, "--noise-w", NOISE_W]
    return House(
        name=name,
        label=f"real days of {known.label}",
        epoch_ms=local_ms(known.start),
        options=tuple(options),
    )
