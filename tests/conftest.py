"""What all tests share: where the real data is, and how Hypothesis searches."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from meterd.device.card import Card
from meterd.device.store import Store
from tests.requirements import pytest_runtest_logreport, pytest_sessionfinish  # noqa: F401 - hooks

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
CI = os.environ.get("CI") == "true"
DATA_DIR = Path(os.environ.get("METERD_DATA") or ROOT.parent / "shared" / "data")

LEFT_OUT = "the real data is not at"  # begins the reason of a test that is left out for want of it

# Two shared cores: a deadline per example would measure the neighbours. In CI the examples are the
# same each time, so that a red run tells of the change and not of luck.
settings.register_profile("meterd", settings.get_profile("ci" if CI else "default"), deadline=None)
settings.load_profile("meterd")


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data; a clone without it leaves the test out, CI fails."""
    if DATA_DIR.is_dir():
        return DATA_DIR
    missing = f"{LEFT_OUT} {DATA_DIR} (METERD_DATA names another place)"
    if CI:
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(autouse=True, scope="session")
def stores_closed() -> Iterator[None]:
    """A node that crashes does not close its store; Python 3.13 warns where nobody does."""
    begin = Store.__init__

    def begin_noted(store: Store, path: str, *, genesis: bytes, node: str) -> None:
        begin(store, path, genesis=genesis, node=node)
        weakref.finalize(store, store._db.close)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "__init__", begin_noted)
        yield


@pytest.fixture(autouse=True)
def cards_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A card that a test lets crash keeps its files open: an end of the test is its end."""
    made: list[Card] = []
    begin = Card.__init__

    def begin_noted(card: Card) -> None:
        begin(card)
        made.append(card)

    monkeypatch.setattr(Card, "__init__", begin_noted)
    yield
    for card in made:
        card.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # From the reports and not from what the fixture noted: tests run in several processes.
    left_out = [
        report.nodeid
        for report in terminalreporter.stats.get("skipped", [])
        if LEFT_OUT in str(report.longrepr)
    ]
    if left_out:
        terminalreporter.section("left out")
        terminalreporter.line(f"Without the real data, expected at {DATA_DIR}:")
        for nodeid in sorted(left_out):
            terminalreporter.line(f"  {nodeid}")
