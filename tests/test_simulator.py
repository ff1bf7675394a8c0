"""Streets in memory, by seed: what DESIGN.md claims of authority holds in each of them.

A seed that fails is played again with `python -m tests.simulator SEED`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from tests.planted import BUGS, Bug, planted
from tests.sim_end import judge_receipts
from tests.sim_oracle import Refuted
from tests.sim_plan import Plan, plan_of
from tests.simulator import World, play

SEEDS = 200
CHUNK = 20
SOAK_FIRST, SOAK_END = map(int, os.environ.get("METERD_SEEDS", "0:20000").split(":"))
SOAK_CHUNK = 500

# Each showed an error, on an earlier day.
ONCE_REFUTED = (
    3,
    4,
    7,
    13,
    15,
    21,
    24,
    47,
    60,
    94,
    1011,
    1101,
    1112,
    1193,
    2111,
    2999,
    3937,
    4412,
    10361,
    10576,
    10595,
    20284,
    20620,
    33082,
    34162,
    34563,
    50526,
    102378,
    200450,
    241544,
    260925,
    260952,
    270176,
    270179,
    302800,
    304400,
    307579,
    500781,
)


def play_seed(seed: int) -> World:
    try:
        return play(plan_of(seed))
    except Exception as error:
        raise AssertionError(f"play it again: python -m tests.simulator {seed}") from error


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_claim_holds_in_streets_of_all_kinds(first: int) -> None:
    for seed in range(first, first + CHUNK):
        play_seed(seed)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(SOAK_FIRST, SOAK_END, SOAK_CHUNK))
def test_every_claim_holds_in_very_many_streets(first: int) -> None:
    for seed in range(first, min(first + SOAK_CHUNK, SOAK_END)):
        play_seed(seed)


@pytest.mark.parametrize("seed", ONCE_REFUTED)
def test_every_claim_holds_in_a_street_that_once_refuted_it(seed: int) -> None:
    play_seed(seed)


def test_the_seeds_meet_all_that_can_go_wrong() -> None:
    plans = [plan_of(seed) for seed in range(SEEDS)]
    assert {plan.voters for plan in plans} == {1, 2, 3, 4, 5, 7, 10}
    for name in ("liars", "forkers", "restored", "changes", "order_forks", "replays", "haunts",
                 "forgeries", "turns", "sister", "small", "late", "light", "slow",
                 "removals", "resolves", "rekeys", "replaces", "silent"):  # fmt: skip
        assert sum(bool(getattr(plan, name)) for plan in plans) >= 4, name
    beyond = [plan for plan in plans if len(plan.liars + plan.restored) > (plan.voters - 1) // 3]
    assert len(beyond) >= 4


@pytest.mark.parametrize("seed", [3, 12])
def test_a_seed_plays_the_same_each_time(seed: int) -> None:
    one, other = play(plan_of(seed)), play(plan_of(seed))
    assert one.counts == other.counts
    assert one.oracle.certified == other.oracle.certified


def test_a_seed_plays_the_same_in_another_process() -> None:
    # Another seed of the hash of texts: no set of names may decide what is done first.
    command = (sys.executable, "-m", "tests.simulator", "3", "1011")
    told = {
        subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": one}, capture_output=True, check=True
        ).stdout
        for one in ("1", "2", "3")
    }
    assert len(told) == 1


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(1, voters=4, meters=2, light=100, seconds=10), id="100 meters"),
        pytest.param(
            Plan(2, voters=4, meters=1, light=100, liars=(3,), partitions=2, seconds=10),
            id="100 meters and a liar",
        ),
        pytest.param(
            Plan(3, voters=5, meters=1, light=60, spares=2, changes=((1, 1),), seconds=10),
            id="60 meters, and another roster",
        ),
    ],
)
def test_every_claim_holds_with_many_meters(plan: Plan) -> None:
    assert play(plan).counts["blocks"] > 2 * plan.light


@pytest.mark.parametrize(
    "seed",
    [1, 4, 6, 7, 8, 13, 21],
)
def test_what_is_certified_can_be_shown_to_a_stranger(seed: int) -> None:
    judge_receipts(play(plan_of(seed)))


@pytest.mark.parametrize("bug", [pytest.param(bug, id=name) for name, bug in BUGS.items()])
def test_a_bug_that_is_planted_is_found(bug: Bug) -> None:
    said = Counter[str]()
    for seed in range(bug.seeds):
        plan = replace(bug.plan, seed=seed)
        try:
            with planted(bug):
                play(plan)
        except Refuted as error:
            if re.search(bug.refuted, str(error)):
                play(plan)  # and without the bug all is well
                return
            said[str(error)[:80]] += 1
    pytest.fail(f"{bug.seeds} seeds do not find it; they say {said}")
