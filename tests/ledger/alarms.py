"""Alarms of a meter, from which a test's case differs in one thing."""

from __future__ import annotations

from meterd.ledger.alarm import STANDING_MAX, Alarm, Standing
from meterd.ledger.encoding import UINT_MAX
from tests.authority.examples import HOUSE

CASE = Standing("case", 40, 1_795_305_600_000)
PORT = Standing("port", 41, 1_795_305_660_000)
ALARM = Alarm(
    meter=HOUSE,
    incarnation=1,
    number=41,
    wall_ms=1_795_305_660_000,
    kind="alarm",
    word="port",
    untold=0,
    standing=(CASE, PORT),
)
OVER = ALARM._replace(number=42, kind="alarm_over", standing=(CASE,))
STARTED = ALARM._replace(kind="started", word="", standing=())
LONG = [f"{'w' * 30}{a}{b}" for a in "abc" for b in "abcdefghijklmnop"]  # 32 letters, ascending
MANY = tuple(Standing(word[-2:], 1, 0) for word in LONG[: STANDING_MAX + 1])
WIDEST = Alarm(
    meter="m" * 32,
    incarnation=UINT_MAX,
    number=UINT_MAX,
    wall_ms=UINT_MAX,
    kind="k" * 32,
    word="",
    untold=UINT_MAX,
    standing=tuple(Standing(word, UINT_MAX, UINT_MAX) for word in LONG[:STANDING_MAX]),
)
